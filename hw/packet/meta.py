"""What the NIC knows about a packet: the records that travel beside packet data.

`RxMeta` leaves the receive front end, one per kept packet. `RxDispatch` leaves the verdict
stage, one per `RxMeta` and in the same order. `Reply` goes to the reply builder.
`TxMeta` accompanies a frame from the host through checksum insertion.
"""

from amaranth.lib import data, enum

from acceltcp.abi.messages import RX_COMPLETION

from ..abi import message_layout

__all__ = ["Reply", "ReplyKind", "RxDispatch", "RxMeta", "TcpOptions", "TxMeta", "TxPatch"]


class TcpOptions(data.Struct):
    """Result of really parsing a TCP option list, in any order and padding."""

    bad: 1  # the list runs past the header, or a known option has a wrong length
    mss_present: 1
    mss: 16
    wscale: 4  # clamped to 14; cookie.WSCALE_NONE (15) when absent
    sack: 1  # SACK-permitted
    timestamps: 1
    tsval: 32
    tsecr: 32


class RxMeta(data.Struct):
    """A received packet. Multi-byte numbers are plain values (byte order already turned)."""

    port: 1
    length: 16  # bytes, without FCS
    dst_mac: 48
    src_mac: 48
    vlan: 1
    vlan_tci: 16
    ipv4: 1
    ipv6: 1
    fragment: 1
    ip_options: 1
    tcp: 1  # TCP header parsed: whole, not a fragment, no IP options, no extension headers
    length_bad: 1  # IP or TCP lengths contradict the frame
    ip_checksum: 2  # acceltcp.abi.messages.ChecksumState
    l4_checksum: 2
    src: 128  # IPv4 as ::ffff:a.b.c.d; first byte of the address most significant
    dst: 128
    l3_offset: 8  # 0 when absent, likewise below
    l4_offset: 8
    payload_offset: 8
    payload_length: 16  # TCP payload bytes; Ethernet padding does not count
    src_port: 16
    dst_port: 16
    seq: 32
    ack: 32
    flags: 8  # acceltcp.abi.wire.TCPFlag
    window: 16
    options: TcpOptions


class RxDispatch(data.Struct):
    """What to do with the next packet of its port's receive buffer.

    keep = 1: write it to a buffer of `queue`. forward = 1: give it to the splice rewriter. Neither: free it. In
    `completion` the verdict stage fills everything except `tag`, `status` and `phase`; `length` is the frame's.
    """

    port: 1
    keep: 1
    forward: 1
    queue: 8
    completion: message_layout(RX_COMPLETION)


class ReplyKind(enum.Enum, shape=2):
    """What a segment that the NIC makes itself is."""

    SYN_ACK = 0
    ACK = 1
    RST = 2  # with ACK set


class Reply(data.Struct):
    """Everything that a segment of the NIC's own is built from, already turned round: `src` is us.

    `ecn`, `mss`, `wscale` and `sack` are looked at for a SYN-ACK only.
    """

    kind: ReplyKind
    port: 1
    dst_mac: 48
    src_mac: 48
    vlan: 1
    vlan_tci: 16
    ipv6: 1
    src: 128
    dst: 128
    src_port: 16
    dst_port: 16
    seq: 32  # of a SYN-ACK: the cookie
    ack: 32
    ecn: 1  # set ECE
    window: 16
    mss: 16
    wscale: 4  # ours; meaningful when wscale_present
    wscale_present: 1
    sack: 1
    timestamps: 1
    tsval: 32
    tsecr: 32


class TxPatch(data.Struct):
    """What the NIC writes into the TCP header of a final frame before its checksum is computed."""

    wanted: 1  # else the frame leaves as the host wrote it
    timestamps: 1  # the option stands, after two NOPs, behind the fixed header
    ack: 32
    tsecr: 32


class TxMeta(data.Struct):
    """A frame from the host, one per packet, offered no later than its first beat."""

    port: 1
    length: 16
    l3_offset: 8
    l4_offset: 8
    flags: 6  # acceltcp.abi.messages.TxFlag
    patch: TxPatch
