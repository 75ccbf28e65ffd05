"""What a host on Ethernet must answer beside TCP: ARP, neighbour discovery, echo requests.

`Responder.answer` takes a frame and returns the frame to send back, or None. Replies go to
the MAC address that the request came from, in its VLAN. Nothing is ever sent unasked except
`announcements`, which tell the neighbours about us.
RFC 826 and 5227 (ARP), 4861 and 4862 (neighbour discovery), 792 and 4443 (echo).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator

from acceltcp.abi.wire import ARP, ETHERNET, ICMP, IPV4, IPV6, VLAN, EtherType, IPProtocol

__all__ = ["Addresses", "Responder", "checksum", "fold"]

_ECHO_REQUEST, _ECHO_REPLY = 8, 0
_ECHO_REQUEST_V6, _ECHO_REPLY_V6 = 128, 129
_NEIGHBOR_SOLICITATION, _NEIGHBOR_ADVERTISEMENT = 135, 136
_OPTION_SOURCE_LINK, _OPTION_TARGET_LINK = 1, 2
_SOLICITED, _OVERRIDE = 0x40000000, 0x20000000
_ALL_NODES = ipaddress.IPv6Address("ff02::1").packed
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_BROADCAST_MAC = b"\xff" * 6
_UNSPECIFIED_V6 = bytes(16)
_HOP_LIMIT = 64

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


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


class Addresses:
    """Our addresses: what the user configured, and the IPv6 link-local one that follows.

    Raises `ValueError` for text that is no address, and for addresses no interface can have.
    """

    def __init__(self, addresses: Iterable[str | Interface], mac: int) -> None:
        self.interfaces: list[Interface] = []
        for text in addresses:
            interface = ipaddress.ip_interface(text)
            ip = interface.ip
            if ip.is_multicast or ip.is_unspecified or ip == ipaddress.IPv4Address("255.255.255.255"):
                raise ValueError(f"an interface cannot have the address {ip}")
            if interface not in self.interfaces:
                self.interfaces.append(interface)
        self.mac = mac.to_bytes(6, "big")
        if any(interface.version == 6 for interface in self.interfaces):
            raw = self.mac
            identifier = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
            local = ipaddress.IPv6Interface((b"\xfe\x80" + bytes(6) + identifier, 64))
            if not any(interface.ip == local.ip for interface in self.interfaces):
                self.interfaces.append(local)
        self.packed = frozenset(interface.ip.packed for interface in self.interfaces)

    def __contains__(self, packed: object) -> bool:
        return packed in self.packed

    @property
    def listenable(self) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        """Addresses that servers are reachable at: all but link-local ones that were derived."""
        chosen = [interface.ip for interface in self.interfaces if not interface.ip.is_link_local]
        return chosen or [interface.ip for interface in self.interfaces]


class Responder:
    """Answers for one MAC port. `stats` counts answers by kind."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._mac = addresses.mac
        self.stats = {"arp": 0, "neighbor": 0, "echo": 0, "echo6": 0}

    def answer(self, frame: memoryview) -> bytes | None:
        """The reply to a frame, without padding, checksums in place; None if there is none."""
        if len(frame) < ETHERNET.size:
            return None
        source = bytes(frame[6:12])
        if source[0] & 1:
            return None
        ethertype = int.from_bytes(frame[12:14], "big")
        tag = b""
        at = ETHERNET.size
        if ethertype == EtherType.VLAN and len(frame) >= ETHERNET.size + VLAN.size:
            tag = bytes(frame[12:16])
            ethertype = int.from_bytes(frame[16:18], "big")
            at += VLAN.size
        packet = frame[at:]
        result: tuple[bytes, bytes] | None = None
        if ethertype == EtherType.ARP:
            result = self._arp(packet)
        elif ethertype == EtherType.IPV4:
            result = self._echo(packet, source)
        elif ethertype == EtherType.IPV6:
            result = self._icmpv6(packet, source)
        if result is None:
            return None
        destination, reply = result
        return destination + self._mac + tag + ethertype.to_bytes(2, "big") + reply

    def announcements(self) -> Iterator[bytes]:
        """Gratuitous ARP and unsolicited neighbour advertisements: our MAC may be new."""
        for interface in self._addresses.interfaces:
            packed = interface.ip.packed
            if interface.version == 4:
                yield (
                    _BROADCAST_MAC
                    + self._mac
                    + EtherType.ARP.to_bytes(2, "big")
                    + self._arp_packet(1, packed, bytes(6), packed)
                )
            else:
                yield (
                    _ALL_NODES_MAC
                    + self._mac
                    + EtherType.IPV6.to_bytes(2, "big")
                    + self._advertisement(packed, packed, _ALL_NODES, _OVERRIDE)
                )

    # -- ARP ---------------------------------------------------------------------------

    def _arp(self, packet: memoryview) -> tuple[bytes, bytes] | None:
        if len(packet) < ARP.size:
            return None
        arp = ARP.unpack(packet)
        if (arp["htype"], arp["ptype"], arp["hlen"], arp["plen"]) != (1, EtherType.IPV4, 6, 4) or arp["oper"] != 1:
            return None
        target = arp["tpa"].to_bytes(4, "big")
        sender = arp["sha"].to_bytes(6, "big")
        if target not in self._addresses or sender[0] & 1 or sender == self._mac:
            return None
        self.stats["arp"] += 1
        return sender, self._arp_packet(2, target, sender, arp["spa"].to_bytes(4, "big"))

    def _arp_packet(self, oper: int, spa: bytes, tha: bytes, tpa: bytes) -> bytes:
        number = int.from_bytes
        return ARP.pack(
            htype=1, ptype=EtherType.IPV4, hlen=6, plen=4, oper=oper,
            sha=number(self._mac, "big"), spa=number(spa, "big"), tha=number(tha, "big"), tpa=number(tpa, "big"),
        )  # fmt: skip

    # -- ICMP --------------------------------------------------------------------------

    def _echo(self, packet: memoryview, source: bytes) -> tuple[bytes, bytes] | None:
        if len(packet) < IPV4.size:
            return None
        ip = IPV4.unpack(packet)
        header = ip["ihl"] * 4
        length = ip["total_length"]
        if (
            ip["version"] != 4
            or header < IPV4.size
            or not header + ICMP.size <= length <= len(packet)
            or ip["protocol"] != IPProtocol.ICMP
            or ip["more_fragments"]
            or ip["fragment_offset"]
            or bytes(packet[16:20]) not in self._addresses
            or not _unicast_v4(bytes(packet[12:16]))
            or checksum(packet[:header])
        ):
            return None
        message = packet[header:length]
        if message[0] != _ECHO_REQUEST or message[1] or checksum(message):
            return None
        self.stats["echo"] += 1
        body = bytes([_ECHO_REPLY, 0, 0, 0]) + bytes(message[4:])
        body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
        head = IPV4.pack(
            version=4, ihl=5, tos=ip["tos"] & 0xFC, total_length=IPV4.size + len(body), ttl=_HOP_LIMIT,
            identification=ip["identification"], protocol=IPProtocol.ICMP, src=ip["dst"], dst=ip["src"],
        )  # fmt: skip
        return source, head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body

    # -- ICMPv6 ------------------------------------------------------------------------

    def _icmpv6(self, packet: memoryview, source: bytes) -> tuple[bytes, bytes] | None:
        if len(packet) < IPV6.size + 4:
            return None
        ip = IPV6.unpack(packet)
        length = ip["payload_length"]
        if ip["version"] != 6 or ip["next_header"] != IPProtocol.ICMPV6 or not 8 <= length <= len(packet) - IPV6.size:
            return None
        message = packet[IPV6.size : IPV6.size + length]
        src, dst = bytes(packet[8:24]), bytes(packet[24:40])
        if src[0] == 0xFF or _checksum_v6(src, dst, message):
            return None
        if message[1]:
            return None
        if message[0] == _NEIGHBOR_SOLICITATION:
            return self._solicited(src, dst, message, ip["hop_limit"], source)
        if message[0] == _ECHO_REQUEST_V6 and dst in self._addresses and src != _UNSPECIFIED_V6:
            self.stats["echo6"] += 1
            body = bytes([_ECHO_REPLY_V6, 0, 0, 0]) + bytes(message[4:])
            return source, _icmpv6_packet(dst, src, body, _HOP_LIMIT, ip["traffic_class"] & 0xFC)
        return None

    def _solicited(
        self, src: bytes, dst: bytes, message: memoryview, hop_limit: int, source: bytes
    ) -> tuple[bytes, bytes] | None:
        """RFC 4861 section 7.1.1 and 7.2.4."""
        if hop_limit != 255 or len(message) < 24:
            return None
        target = bytes(message[8:24])
        if target not in self._addresses:
            return None
        link = None
        at = 24
        while at < len(message):
            size = message[at + 1] * 8 if at + 1 < len(message) else 0
            if not size or at + size > len(message):
                return None
            if message[at] == _OPTION_SOURCE_LINK and size == 8:
                link = bytes(message[at + 2 : at + 8])
            at += size
        if src == _UNSPECIFIED_V6:
            # Duplicate address detection: the asker has no address yet, so all nodes hear it.
            if dst != b"\xff\x02" + bytes(9) + b"\x01\xff" + target[13:] or link is not None:
                return None
            self.stats["neighbor"] += 1
            return _ALL_NODES_MAC, self._advertisement(target, target, _ALL_NODES, _OVERRIDE)
        if link is not None and (link[0] & 1 or link == self._mac):
            return None
        self.stats["neighbor"] += 1
        return link or source, self._advertisement(target, target, src, _SOLICITED | _OVERRIDE)

    def _advertisement(self, target: bytes, src: bytes, dst: bytes, flags: int) -> bytes:
        body = (
            struct.pack("!BBHI", _NEIGHBOR_ADVERTISEMENT, 0, 0, flags)
            + target
            + bytes([_OPTION_TARGET_LINK, 1])
            + self._mac
        )
        return _icmpv6_packet(src, dst, body, 255, 0)


def _unicast_v4(address: bytes) -> bool:
    return 0 < address[0] < 224


def _checksum_v6(src: bytes, dst: bytes, message: bytes | memoryview) -> int:
    return checksum(src, dst, struct.pack("!II", len(message), IPProtocol.ICMPV6), message)


def _icmpv6_packet(src: bytes, dst: bytes, body: bytes, hop_limit: int, traffic_class: int) -> bytes:
    body = body[:2] + _checksum_v6(src, dst, body).to_bytes(2, "big") + body[4:]
    number = int.from_bytes
    head = IPV6.pack(
        version=6, traffic_class=traffic_class, payload_length=len(body), next_header=IPProtocol.ICMPV6,
        hop_limit=hop_limit, src=number(src, "big"), dst=number(dst, "big"),
    )  # fmt: skip
    return head + body
