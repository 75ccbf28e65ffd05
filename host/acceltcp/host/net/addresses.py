"""Our addresses: what the user configured, and the IPv6 link-local one that follows."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ..checks import check_texts

__all__ = ["Addresses", "Interface"]

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Addresses:
    """Our addresses: what the user configured, and the IPv6 link-local one that follows.

    Raises `ValueError` for text that is no address, for addresses no interface can have, for one that is there with two
    prefixes, and when there is none at all.
    """

    def __init__(self, addresses: Iterable[str | Interface], mac: int) -> None:
        check_texts("addresses", addresses, "10.0.0.2/24")
        self.interfaces: list[Interface] = []
        for text in addresses:
            interface = _interface(text)
            for other in self.interfaces:
                if other.ip == interface.ip and other != interface:
                    raise ValueError(f"addresses must have one prefix each, and {other} was there when {interface} came")
            if interface not in self.interfaces:
                self.interfaces.append(interface)
        if not self.interfaces:
            raise ValueError("addresses must have at least one, like '10.0.0.2/24'")
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


def _interface(text: str | Interface) -> Interface:
    """An address with its prefix."""
    try:
        if not isinstance(text, (str, ipaddress.IPv4Interface, ipaddress.IPv6Interface)):
            raise ValueError
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(f"an address must be like '10.0.0.2/24' or 'fd00::2/64', not {text!r}") from None
    ip, network = interface.ip, interface.network
    if isinstance(interface, ipaddress.IPv6Interface) and interface.scope_id is not None:
        raise ValueError(f"an address must be without a zone, as the NIC has one link only, not {text!r}")
    if ip.is_multicast or ip.is_unspecified or ip == ipaddress.IPv4Address("255.255.255.255"):
        raise ValueError(f"an interface cannot have the address {ip}")
    if ip.version == 4 and network.prefixlen < 31 and ip in (network.network_address, network.broadcast_address):
        what = "network" if ip == network.network_address else "broadcast"
        raise ValueError(f"an interface cannot have the address {ip}: it is the {what} address of {network}")
    return interface
