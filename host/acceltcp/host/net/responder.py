"""What a host on Ethernet must answer beside TCP: ARP, neighbour discovery, echo requests.

`Responder.answer` takes a frame and returns the frame to send back, or None. Replies go to
the MAC address that the request came from, in its VLAN. Nothing is ever sent unasked except
`announcements`, which tell the neighbours about us.
RFC 826 and 5227 (ARP), 4861 and 4862 (neighbour discovery), 792 and 4443 (echo).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator

from acceltcp.abi.wire import ETHERNET, IPV4, IPV6, VLAN, EtherType, IPProtocol

from .addresses import Addresses
from .icmp import HOP_LIMIT, checksum, icmp_message, icmpv6_message, icmpv6_packet
from .neighbours import (
    ARP_REPLY,
    ARP_REQUEST,
    NEIGHBOR_ADVERTISEMENT,
    NEIGHBOR_SOLICITATION,
    OPTION_SOURCE_LINK,
    OPTION_TARGET_LINK,
    arp_fields,
    arp_packet,
    link_option,
    solicited_node,
)

__all__ = ["Responder"]

_ECHO_REQUEST, _ECHO_REPLY = 8, 0
_ECHO_REQUEST_V6, _ECHO_REPLY_V6 = 128, 129
_SOLICITED, _OVERRIDE = 0x40000000, 0x20000000
_ALL_NODES = ipaddress.IPv6Address("ff02::1").packed
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_BROADCAST_MAC = b"\xff" * 6
_UNSPECIFIED_V6 = bytes(16)


class Responder:
    """Answers for one MAC port. `stats` counts answers by kind, and what was malformed.

    heard: called with protocol address and MAC address of who asked for ours in a way that says his own, when
    the question came without a VLAN tag.
    """

    def __init__(self, addresses: Addresses, heard: Callable[[bytes, bytes], None] | None = None) -> None:
        self._addresses = addresses
        self._mac = addresses.mac
        self._heard = heard
        self.stats = {"arp": 0, "neighbor": 0, "echo": 0, "echo6": 0, "malformed": 0}

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
            result = self._arp(packet, not tag)
        elif ethertype == EtherType.IPV4:
            result = self._echo(packet, source)
        elif ethertype == EtherType.IPV6:
            result = self._icmpv6(packet, source, not tag)
        if result is None:
            return None
        destination, reply = result
        return destination + self._mac + tag + ethertype.to_bytes(2, "big") + reply

    def announcements(self) -> Iterator[bytes]:
        """Gratuitous ARP and unsolicited neighbour advertisements: our MAC may be new."""
        for interface in self._addresses.interfaces:
            yield self.announcement(interface.ip.packed)

    def announcement(self, packed: bytes) -> bytes:
        """The frame that tells everybody that one address is ours (RFC 5227 section 2.3, RFC 4861 section 7.2.6)."""
        if len(packed) == 4:
            body = arp_packet(ARP_REQUEST, self._mac, packed, bytes(6), packed)
            return _BROADCAST_MAC + self._mac + EtherType.ARP.to_bytes(2, "big") + body
        body = self._advertisement(packed, packed, _ALL_NODES, _OVERRIDE)
        return _ALL_NODES_MAC + self._mac + EtherType.IPV6.to_bytes(2, "big") + body

    # -- ARP ---------------------------------------------------------------------------

    def _arp(self, packet: memoryview, untagged: bool) -> tuple[bytes, bytes] | None:
        fields = arp_fields(packet)
        if fields is None:
            self.stats["malformed"] += 1
            return None
        oper, sender, spa, target = fields
        if oper != ARP_REQUEST or target not in self._addresses or sender[0] & 1 or sender == self._mac:
            return None
        self.stats["arp"] += 1
        if untagged and self._heard is not None and spa != bytes(4):
            self._heard(spa, sender)
        return sender, arp_packet(ARP_REPLY, self._mac, target, sender, spa)

    # -- ICMP --------------------------------------------------------------------------

    def _echo(self, packet: memoryview, source: bytes) -> tuple[bytes, bytes] | None:
        if (
            len(packet) < IPV4.size
            or packet[9] != IPProtocol.ICMP
            or bytes(packet[16:20]) not in self._addresses
        ):
            return None
        message = icmp_message(packet)
        if message is None:
            self.stats["malformed"] += 1
            return None
        if message[0] != _ECHO_REQUEST or message[1]:
            return None
        self.stats["echo"] += 1
        ip = IPV4.unpack(packet)
        body = bytes([_ECHO_REPLY, 0, 0, 0]) + bytes(message[4:])
        body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
        head = IPV4.pack(
            version=4, ihl=5, tos=ip["tos"] & 0xFC, total_length=IPV4.size + len(body), ttl=HOP_LIMIT,
            identification=ip["identification"], protocol=IPProtocol.ICMP, src=ip["dst"], dst=ip["src"],
        )  # fmt: skip
        return source, head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body

    # -- ICMPv6 ------------------------------------------------------------------------

    def _icmpv6(self, packet: memoryview, source: bytes, untagged: bool) -> tuple[bytes, bytes] | None:
        if len(packet) < IPV6.size or packet[6] != IPProtocol.ICMPV6:
            return None
        message = icmpv6_message(packet)
        if message is None:
            self.stats["malformed"] += 1
            return None
        if message[1]:
            return None
        src, dst = bytes(packet[8:24]), bytes(packet[24:40])
        if message[0] == NEIGHBOR_SOLICITATION:
            return self._solicited(src, dst, message, packet[7], source, untagged)
        if message[0] == _ECHO_REQUEST_V6 and dst in self._addresses and src != _UNSPECIFIED_V6:
            self.stats["echo6"] += 1
            body = bytes([_ECHO_REPLY_V6, 0, 0, 0]) + bytes(message[4:])
            traffic_class = (packet[0] << 4 | packet[1] >> 4) & 0xFC
            return source, icmpv6_packet(dst, src, body, HOP_LIMIT, traffic_class)
        return None

    def _solicited(
        self, src: bytes, dst: bytes, message: memoryview, hop_limit: int, source: bytes, untagged: bool
    ) -> tuple[bytes, bytes] | None:
        """RFC 4861 section 7.1.1 and 7.2.4."""
        found = link_option(message, OPTION_SOURCE_LINK)
        if hop_limit != 255 or found is None:
            self.stats["malformed"] += 1
            return None
        target = bytes(message[8:24])
        if target not in self._addresses:
            return None
        link = found or None
        if src == _UNSPECIFIED_V6:
            # Duplicate address detection: the asker has no address yet, so all nodes hear it.
            if dst != solicited_node(target) or link is not None:
                return None
            self.stats["neighbor"] += 1
            return _ALL_NODES_MAC, self._advertisement(target, target, _ALL_NODES, _OVERRIDE)
        if link is not None and (link[0] & 1 or link == self._mac):
            return None
        self.stats["neighbor"] += 1
        if link is not None and untagged and self._heard is not None:
            self._heard(src, link)
        return link or source, self._advertisement(target, target, src, _SOLICITED | _OVERRIDE)

    def _advertisement(self, target: bytes, src: bytes, dst: bytes, flags: int) -> bytes:
        head = struct.pack("!BBHI", NEIGHBOR_ADVERTISEMENT, 0, 0, flags)
        return icmpv6_packet(src, dst, head + target + bytes([OPTION_TARGET_LINK, 1]) + self._mac, 255)
