"""What travels through the setup engine beside the cookie hash.

`SetupRecord` is made by the classifier and read by the verdict stage; only what the host's
completion or a SYN-ACK needs is in it. `DispatchRecord` is an `RxDispatch` without its constant
fields, which need not lie in memory.
"""

from amaranth.lib import data, enum

from acceltcp.abi.messages import RX_COMPLETION

from ..packet.meta import Reply
from .cookie import CookieTerms
from .flow import Segment

__all__ = ["Action", "DispatchRecord", "HostInfo", "SetupRecord"]


class Action(enum.Enum, shape=2):
    """What the classifier wants done."""

    DROP = 0
    PASS = 1  # to the host, as PLAIN
    ANSWER = 2  # with a SYN-ACK
    CHECK = 3  # the cookie; then to the host as NEW or PLAIN


_HOST_FIELDS = (
    "length",
    "l3_offset",
    "l4_offset",
    "payload_offset",
    "port",
    "ip_checksum",
    "l4_checksum",
    "vlan",
    "ipv4",
    "ipv6",
    "tcp",
    "fragment",
    "ip_options",
    "listener",
    "options_bad",
    "vlan_tci",
    "ts_clock",
    "listener_index",
    "rss_hash",
)

HostInfo = data.StructLayout({name: RX_COMPLETION.positions[name][1] for name in _HOST_FIELDS})
"""Fields of RX_COMPLETION that are known before the verdict."""


class SetupRecord(data.Struct):
    """A classified packet."""

    action: Action
    hopeless: 1  # CHECK: it cannot be valid, whatever the hash
    deferrable: 1  # CHECK: consumed if valid
    epoch: 2  # low bits of the epoch that was hashed
    terms: CookieTerms
    queue: 8
    flow: 1  # good enough for a flow, if the NIC holds one of that tuple
    segment: Segment
    info: HostInfo
    # ANSWER: all but `seq`. Else `seq` is the cookie that the client claims, SEG.ACK - 1, and what
    # a flow needs is right: addresses, ports, `ack`, `tsecr`.
    reply: Reply


class DispatchRecord(data.Struct):
    """What remains of an `RxDispatch`."""

    keep: 1
    new: 1
    queue: 8
    info: HostInfo
    terms: CookieTerms  # zero unless `new`
