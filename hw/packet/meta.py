"""What the NIC knows about a packet: the records that travel beside packet data.

`RxMeta` leaves the receive front end, one per kept packet. `RxDispatch` leaves the verdict
stage, one per `RxMeta` and in the same order. `SynAck` goes to the reply builder.
`TxMeta` accompanies a frame from the host through checksum insertion.
"""

from amaranth.lib import data

from acceltcp.abi.messages import RX_COMPLETION

from ..abi import message_layout

__all__ = ["RxDispatch", "RxMeta", "SynAck", "TcpOptions", "TxMeta"]


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

    keep = 0: free it. keep = 1: write it to a buffer of `queue`. In `completion` the verdict
    stage fills everything except `tag`, `status` and `phase`; `length` is the frame's.
    """

    port: 1
    keep: 1
    queue: 8
    completion: message_layout(RX_COMPLETION)


class SynAck(data.Struct):
    """Everything that a SYN-ACK is built from, already turned round: `src` is us."""

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
    seq: 32  # the cookie
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


class TxMeta(data.Struct):
    """A frame from the host, one per packet, offered no later than its first beat."""

    port: 1
    length: 16
    l3_offset: 8
    l4_offset: 8
    flags: 6  # acceltcp.abi.messages.TxFlag
