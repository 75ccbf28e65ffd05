"""Our addresses: what the user configured, and the IPv6 link-local one that follows."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

__all__ = ["Addresses", "Interface"]

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


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
