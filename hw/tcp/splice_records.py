"""Records of splicing: what is kept of a pair of connections, and what its parts tell each other.

    SPLICE command -> SpliceInstall -+-> SpliceWay, one per direction (never changed)
                                     +-> SplicePair (changed by every packet)
    packets -> SpliceEngine -> SpliceRecord -> SpliceRewriter -> wire

Side 0 is the client, side 1 the server. *Way* d is that of the packets that come from side d and leave
to the other one. docs/splice.md says what the fields mean.
"""

from amaranth.lib import data, enum

from acceltcp.abi.messages import RX_COMPLETION, SPLICE_COMMAND, SPLICE_EVENT, Status
from acceltcp.abi.registers import PORTS_MAX, QUEUES_MAX
from acceltcp.abi.wire import TCP_OPTION_BYTES_MAX

from .records import DispatchRecord

__all__ = [
    "GENERATION_BITS",
    "OCTETS_BITS",
    "SPLICE_INDEX_BITS",
    "SPLICE_TIME_BITS",
    "STATUS_BITS",
    "PairState",
    "SpliceInput",
    "SpliceOutput",
    "SplicePair",
    "SplicePacket",
    "SpliceRecord",
    "SpliceSideState",
    "SpliceWay",
    "Translation",
]

SPLICE_TIME_BITS = SPLICE_COMMAND.positions["idle"][1]
"""Width of a time in units of SPLICE_UNIT_STEPS; times are compared modulo 2^16 and lie less than half of that ahead."""

GENERATION_BITS = 8
"""A splice is named by its index and, above SPLICE_INDEX_BITS, by how often indices have been given out, so that an old name is
not taken for a new splice."""

SPLICE_INDEX_BITS = 24

OCTETS_BITS = SPLICE_EVENT.positions["octets"][1]

STATUS_BITS = max(Status).bit_length()
"""Width of a splice's final status."""

_VERDICT_BITS = RX_COMPLETION.positions["verdict"][1]
_PORT_BITS = (PORTS_MAX - 1).bit_length()


class PairState(enum.Enum, shape=2):
    """What a pair is doing, unless it is ending."""

    PENDING = 0  # its entries are being put into the connection table: packets go to the host as if there were none
    ACTIVE = 1
    LINGER = 2  # both sides have closed; still forwards


class Translation(data.Struct):
    """What makes a packet of one connection a packet of the other one; constant. `src` is us."""

    src: 128  # IPv4 as ::ffff:a.b.c.d; first byte of the address most significant
    dst: 128
    src_port: 16
    dst_port: 16
    dst_mac: 48
    vlan: 1  # the frame leaves with this tag, however it came
    vlan_tci: 16
    port: _PORT_BITS  # MAC port to send on; its address is the source
    window_down: 1  # windows are shifted down (rounded down), else up (65,535 at most)
    window_shift: 4
    tsval_offset: 32  # added modulo 2^32
    tsecr_offset: 32
    timestamps: 1  # else the option becomes NOPs
    sack: 1
    ecn: 1  # else the ECN field of the IP header becomes 0, and so do the flags ECE and CWR


def SpliceWay(config):  # noqa: N802
    """What is constant of one direction: at most 504 bits, seven words of Ultra RAM."""
    return data.StructLayout(
        {
            "translation": Translation,
            "rows": data.ArrayLayout(config.table.row_bits, 2),  # of the side's entry in the connection table
        }
    )


class SpliceSideState(data.Struct):
    """What packets have told of one side, in its own sequence numbers."""

    snd_end: 32  # after the last byte, or FIN, that was forwarded
    ack: 32  # highest acknowledgment received
    tsval: 32  # latest TSval forwarded, if any was (`stamped`)
    stamped: 1
    fin: 1  # its FIN was forwarded
    fin_acked: 1  # and acknowledged by the other side
    guard: 1  # what the host has to deliver to this side ends at `guard_end` (constant), and is not known to have arrived
    guard_end: 32
    offset: 32  # added to its sequence numbers they are those of the other connection
    octets: OCTETS_BITS
    packets: 32


class SplicePair(data.Struct):
    """What changes of a pair: at most 576 bits, eight block RAMs in parallel."""

    state: PairState
    ending: 1  # packets go to the host, DIVERTED; nothing changes any more
    queue: (QUEUES_MAX - 1).bit_length()
    generation: GENERATION_BITS
    idle: SPLICE_TIME_BITS
    deadline: SPLICE_TIME_BITS
    bounded: 1
    limit_end: 32  # bounded: what the client acknowledges when it has all, in the client's connection
    status: STATUS_BITS  # `ending`: why, and
    reset_by: 1  # who, as in SPLICE_EVENT
    sides: data.ArrayLayout(SpliceSideState, 2)


def SplicePacket(config):  # noqa: N802
    """What the engine has to know of a packet that the connection table says is spliced."""
    return data.StructLayout(
        {
            "way": config.splice_bits + 1,  # 2 * pair + side that it came from
            "seq": 32,
            "ack": 32,
            "tsval": 32,
            "timestamps": 1,
            "flags": 8,  # acceltcp.abi.wire.TCPFlag
            "payload_length": 16,
        }
    )


def SpliceInput(config):  # noqa: N802
    """A packet on its way to the host or to the rewriter, in order with all others. `hit`: it is a spliced one, of which
    the engine decides, and `dispatch.keep` is set. Without splices there is nothing but the dispatch record."""
    members = {"dispatch": DispatchRecord}
    if config.splices:
        members |= {"hit": 1, "packet": SplicePacket(config)}
    return data.StructLayout(members)


class SpliceOutput(data.Struct):
    """What becomes of a packet. `verdict`: of a spliced packet for the host, GUARD or DIVERTED; 0: as the dispatch record says."""

    forward: 1
    verdict: _VERDICT_BITS
    dispatch: DispatchRecord  # its `keep` and `queue` are the engine's


class SpliceRecord(data.Struct):
    """A packet to rewrite and send: where it is, what it looks like, and what becomes of it."""

    in_port: _PORT_BITS  # receive port whose buffer it leaves
    in_vlan: 1  # it came with an 802.1Q tag
    ipv6: 1
    option_words: (TCP_OPTION_BYTES_MAX // 4).bit_length()  # 4-byte words of TCP options
    seq_offset: 32  # added modulo 2^32
    ack_offset: 32  # also to the edges of SACK blocks
    translation: Translation
