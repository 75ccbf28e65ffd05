"""ICMP and ICMPv6 messages: checksums, the frame around them, and what errors say about our segments.

RFC 792 and 4443 (messages), 1191 and 8201 (path MTU), 5927 (what a TCP may believe of them).
Nothing here believes anything: `tcp_error` takes a message apart and says which segment of which
connection it complains of. Whether there is such a segment only TCP knows.
"""

from __future__ import annotations

import enum
import errno
import struct

from acceltcp.abi.wire import ICMP, IPV4, IPV6, TCP, IPProtocol

__all__ = [
    "ERROR_TYPES_V4",
    "ERROR_TYPES_V6",
    "HOP_LIMIT",
    "MTU_FLOOR_V4",
    "MTU_FLOOR_V6",
    "PLATEAUS",
    "IcmpErrorKind",
    "TcpError",
    "checksum",
    "checksum_v6",
    "fold",
    "icmp_message",
    "icmpv6_message",
    "icmpv6_packet",
    "plateau_below",
    "tcp_error_v4",
    "tcp_error_v6",
    "unicast_v4",
]

HOP_LIMIT = 64

_UNREACHABLE, _TIME_EXCEEDED, _PARAMETER_PROBLEM = 3, 11, 12
_FRAGMENTATION_NEEDED = 4
_UNREACHABLE_V6, _PACKET_TOO_BIG, _TIME_EXCEEDED_V6, _PARAMETER_PROBLEM_V6 = 1, 2, 3, 4
ERROR_TYPES_V4 = frozenset((_UNREACHABLE, _TIME_EXCEEDED, _PARAMETER_PROBLEM))
ERROR_TYPES_V6 = frozenset((_UNREACHABLE_V6, _PACKET_TOO_BIG, _TIME_EXCEEDED_V6, _PARAMETER_PROBLEM_V6))

_ERROR_HEADER = 8
"""Bytes of an ICMP error before the packet that it quotes, in both versions."""
_TCP_QUOTED = 8
"""What an IPv4 router must quote of the segment: ports and sequence number (RFC 792)."""

MTU_FLOOR_V4 = 296
"""Least MTU of any link that carries IPv4 in earnest (RFC 1191 section 7): who reports less reports this."""
MTU_FLOOR_V6 = 1280
"""RFC 8200 section 5; reports below it are discarded (RFC 8201 section 4)."""

PLATEAUS = (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, MTU_FLOOR_V4, 68)
"""RFC 1191 section 7.1, for routers that do not say which MTU they have."""


class IcmpErrorKind(enum.IntEnum):
    """What an ICMP error says. `errno` is what a connection attempt that it ends fails with."""

    TOO_BIG = 0
    NET_UNREACHABLE = 1
    HOST_UNREACHABLE = 2
    PROTOCOL_UNREACHABLE = 3
    PORT_UNREACHABLE = 4
    PROHIBITED = 5
    TIME_EXCEEDED = 6
    PARAMETER_PROBLEM = 7

    @property
    def errno(self) -> int:
        """Number of the `OSError`."""
        return _ERRNO[self]


_ERRNO = {
    IcmpErrorKind.TOO_BIG: errno.EMSGSIZE,
    IcmpErrorKind.NET_UNREACHABLE: errno.ENETUNREACH,
    IcmpErrorKind.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    IcmpErrorKind.PROTOCOL_UNREACHABLE: errno.ENOPROTOOPT,
    IcmpErrorKind.PORT_UNREACHABLE: errno.ECONNREFUSED,
    IcmpErrorKind.PROHIBITED: errno.EACCES,
    IcmpErrorKind.TIME_EXCEEDED: errno.EHOSTUNREACH,
    IcmpErrorKind.PARAMETER_PROBLEM: errno.EPROTO,
}

# RFC 792 and 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1; codes that nobody assigned say nothing.
_UNREACHABLE_CODES = {
    0: IcmpErrorKind.NET_UNREACHABLE,
    1: IcmpErrorKind.HOST_UNREACHABLE,
    2: IcmpErrorKind.PROTOCOL_UNREACHABLE,
    3: IcmpErrorKind.PORT_UNREACHABLE,
    _FRAGMENTATION_NEEDED: IcmpErrorKind.TOO_BIG,
    5: IcmpErrorKind.HOST_UNREACHABLE,
    6: IcmpErrorKind.NET_UNREACHABLE,
    7: IcmpErrorKind.HOST_UNREACHABLE,
    8: IcmpErrorKind.HOST_UNREACHABLE,
    9: IcmpErrorKind.PROHIBITED,
    10: IcmpErrorKind.PROHIBITED,
    11: IcmpErrorKind.NET_UNREACHABLE,
    12: IcmpErrorKind.HOST_UNREACHABLE,
    13: IcmpErrorKind.PROHIBITED,
    14: IcmpErrorKind.HOST_UNREACHABLE,
    15: IcmpErrorKind.HOST_UNREACHABLE,
}
# RFC 4443 section 3.1.
_UNREACHABLE_CODES_V6 = {
    0: IcmpErrorKind.NET_UNREACHABLE,
    1: IcmpErrorKind.PROHIBITED,
    2: IcmpErrorKind.HOST_UNREACHABLE,
    3: IcmpErrorKind.HOST_UNREACHABLE,
    4: IcmpErrorKind.PORT_UNREACHABLE,
    5: IcmpErrorKind.PROHIBITED,
    6: IcmpErrorKind.PROHIBITED,
}


# -- checksums -----------------------------------------------------------------------------


def fold(data: bytes | bytearray | memoryview) -> int:
    """One's-complement sum of 16-bit words (RFC 1071), odd lengths padded with zero.

    65536 is 1 modulo 65535, so the whole string's remainder is the folded sum.
    """
    number = int.from_bytes(data, "big")
    if len(data) % 2:
        number <<= 8
    return number % 0xFFFF


def checksum(*parts: bytes | bytearray | memoryview) -> int:
    """Internet checksum over parts, all but the last of even length, as a header has it; 0 when
    the parts hold a checksum that is right. (Not for parts that are zero altogether.)
    """
    return (0xFFFF - sum(fold(part) for part in parts) % 0xFFFF) % 0xFFFF


def checksum_v6(src: bytes, dst: bytes, message: bytes | memoryview) -> int:
    """The checksum of an ICMPv6 message, which covers a pseudo-header (RFC 4443 section 2.3)."""
    return checksum(src, dst, struct.pack("!II", len(message), IPProtocol.ICMPV6), message)


def unicast_v4(address: bytes) -> bool:
    """Whether a host may have this address: not 0/8, no group, no broadcast to all."""
    return 0 < address[0] < 224


# -- messages in packets -------------------------------------------------------------------


def icmp_message(packet: memoryview) -> memoryview | None:
    """The ICMP message of an IPv4 packet, without padding; None when packet or message is malformed
    or a fragment. Both checksums are right then, and the source is no group.
    """
    if len(packet) < IPV4.size or packet[9] != IPProtocol.ICMP:
        return None
    header = (packet[0] & 0xF) * 4
    length = packet[2] << 8 | packet[3]
    if (
        packet[0] >> 4 != 4
        or header < IPV4.size
        or not header + ICMP.size <= length <= len(packet)
        or (packet[6] << 8 | packet[7]) & 0x3FFF
        or not unicast_v4(bytes(packet[12:16]))
        or checksum(packet[:header])
    ):
        return None
    message = packet[header:length]
    return None if checksum(message) else message


def icmpv6_message(packet: memoryview) -> memoryview | None:
    """The ICMPv6 message that follows an IPv6 header at once, without padding; None when packet or message
    is malformed. The checksum is right then, and the source is no group.
    """
    if len(packet) < IPV6.size + ICMP.size or packet[6] != IPProtocol.ICMPV6 or packet[0] >> 4 != 6:
        return None
    length = packet[4] << 8 | packet[5]
    if not ICMP.size <= length <= len(packet) - IPV6.size or packet[8] == 0xFF:
        return None
    message = packet[IPV6.size : IPV6.size + length]
    return None if checksum_v6(bytes(packet[8:24]), bytes(packet[24:40]), message) else message


def icmpv6_packet(src: bytes, dst: bytes, body: bytes, hop_limit: int, traffic_class: int = 0) -> bytes:
    """An IPv6 packet around a message whose checksum field is zero; the checksum is filled in."""
    body = body[:2] + checksum_v6(src, dst, body).to_bytes(2, "big") + body[4:]
    number = int.from_bytes
    head = IPV6.pack(
        version=6, traffic_class=traffic_class, payload_length=len(body), next_header=IPProtocol.ICMPV6,
        hop_limit=hop_limit, src=number(src, "big"), dst=number(dst, "big"),
    )  # fmt: skip
    return head + body


# -- errors --------------------------------------------------------------------------------


class TcpError:
    """An ICMP error about a segment that we are said to have sent.

    kind: what happened. mtu: the MTU that the router has, for TOO_BIG, else 0. key: the connection as the
    endpoint names it (peer's address, ours, peer's port, ours, as they lie in a received segment). seq: the
    segment's sequence number, 32 bits. remote: the peer's address.
    """

    __slots__ = ("key", "kind", "mtu", "remote", "seq")

    def __init__(self, kind: IcmpErrorKind, mtu: int, key: bytes, seq: int, remote: bytes) -> None:
        self.kind, self.mtu, self.key, self.seq, self.remote = kind, mtu, key, seq, remote


def plateau_below(size: int) -> int:
    """The largest MTU that links have below this packet size (RFC 1191 section 5)."""
    return next((mtu for mtu in PLATEAUS if mtu < size), PLATEAUS[-1])


def tcp_error_v4(dst: bytes, message: memoryview, largest: int) -> TcpError | None:
    """What an ICMP error to us says of a segment of ours; None when it quotes none, or makes no sense.

    dst: whom the message was sent to, which must be who sent what it quotes. largest: the longest packet that
    we can have sent; a quoted length above it counts the header twice, as some routers do (RFC 1191 section 5).
    """
    kind: IcmpErrorKind | None
    if message[0] == _UNREACHABLE:
        kind = _UNREACHABLE_CODES.get(message[1])
    elif message[0] == _TIME_EXCEEDED:
        kind = IcmpErrorKind.TIME_EXCEEDED
    else:
        kind = IcmpErrorKind.PARAMETER_PROBLEM
    quoted = message[_ERROR_HEADER:]
    if kind is None or len(quoted) < IPV4.size or quoted[0] >> 4 != 4 or quoted[9] != IPProtocol.TCP:
        return None
    header = (quoted[0] & 0xF) * 4
    if header < IPV4.size or len(quoted) < header + _TCP_QUOTED or (quoted[6] << 8 | quoted[7]) & 0x1FFF:
        return None
    src, remote = bytes(quoted[12:16]), bytes(quoted[16:20])
    if src != dst or not unicast_v4(remote):
        return None
    mtu = 0
    if kind is IcmpErrorKind.TOO_BIG:
        length = quoted[2] << 8 | quoted[3]
        if length > largest:
            length -= header
        mtu = message[6] << 8 | message[7]
        if not mtu:
            mtu = plateau_below(length)
        if mtu >= length:
            return None  # it would have fitted
        mtu = max(mtu, MTU_FLOOR_V4)
    return _quoted_tcp(kind, mtu, src, remote, quoted[header:])


def tcp_error_v6(dst: bytes, message: memoryview) -> TcpError | None:
    """As `tcp_error_v4`, for ICMPv6. Segments with extension headers are not ours."""
    kind: IcmpErrorKind | None
    mtu = 0
    if message[0] == _UNREACHABLE_V6:
        kind = _UNREACHABLE_CODES_V6.get(message[1])
    elif message[0] == _PACKET_TOO_BIG:
        kind = IcmpErrorKind.TOO_BIG
        mtu = int.from_bytes(message[4:8], "big")
    elif message[0] == _TIME_EXCEEDED_V6:
        kind = IcmpErrorKind.TIME_EXCEEDED
    else:
        kind = IcmpErrorKind.PARAMETER_PROBLEM
    quoted = message[_ERROR_HEADER:]
    if (
        kind is None
        or len(quoted) < IPV6.size + _TCP_QUOTED
        or quoted[0] >> 4 != 6
        or quoted[6] != IPProtocol.TCP
    ):
        return None
    src, remote = bytes(quoted[8:24]), bytes(quoted[24:40])
    if src != dst or remote[0] == 0xFF:
        return None
    if kind is IcmpErrorKind.TOO_BIG:
        if mtu < MTU_FLOOR_V6 or mtu >= IPV6.size + (quoted[4] << 8 | quoted[5]):
            return None
    return _quoted_tcp(kind, mtu, src, remote, quoted[IPV6.size :])


_SEQ_AT = TCP.byte_offset("seq")


def _quoted_tcp(kind: IcmpErrorKind, mtu: int, src: bytes, remote: bytes, tcp: memoryview) -> TcpError:
    key = remote + src + bytes(tcp[2:4]) + bytes(tcp[0:2])
    return TcpError(kind, mtu, key, int.from_bytes(tcp[_SEQ_AT : _SEQ_AT + 4], "big"), remote)
