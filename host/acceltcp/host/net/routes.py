"""Where packets go: on-link prefixes and gateways, our address for a destination, path MTUs.

The longest prefix wins (RFC 1812 section 5.2.4.3). Our address is chosen by RFC 6724 section 5 as far as it applies to
an interface whose addresses are all permanent: scope, the next hop's prefix, label, longest match.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Iterable

from .addresses import Addresses, Interface
from .icmp import MTU_FLOOR_V4, MTU_FLOOR_V6

__all__ = ["PathMtus", "Route", "RouteTable"]

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 6724 section 2.1, default policy table: prefix -> label. IPv4 addresses all have one label and need no table.
_LABELS = tuple(
    (ipaddress.IPv6Network(prefix), label)
    for prefix, label in (
        ("::1/128", 0), ("::ffff:0:0/96", 4), ("::/96", 3), ("2001::/32", 5), ("2002::/16", 2), ("3ffe::/16", 12),
        ("fec0::/10", 11), ("fc00::/7", 13), ("::/0", 1),
    )
)  # fmt: skip
_LINK_SCOPE, _SITE_SCOPE, _GLOBAL_SCOPE = 2, 5, 14
_FOUND_LIMIT = 4096
"""Destinations whose route is remembered: proxies connect to the same ones again and again."""
_SITE_LOCAL = ipaddress.IPv6Network("fec0::/10")


class Route:
    """How to reach one destination.

    remote, local: the two ends, packed. next_hop: the neighbour that takes the packets, packed; remote itself when
    it is on the link. asker: our address that asks for the next hop. port: MAC port. mtu: largest IP packet that is known to
    pass, when the route was made.
    """

    __slots__ = ("asker", "local", "mtu", "next_hop", "port", "remote")

    def __init__(
        self, remote: bytes, local: bytes, next_hop: bytes, asker: bytes, port: int, mtu: int
    ) -> None:
        self.remote, self.local, self.next_hop, self.asker = remote, local, next_hop, asker
        self.port, self.mtu = port, mtu

    def __repr__(self) -> str:
        remote, local, hop = (ipaddress.ip_address(part) for part in (self.remote, self.local, self.next_hop))
        return f"<Route to {remote} via {hop} from {local}, port {self.port}, mtu {self.mtu}>"


class _Entry:
    """A line of the table. via: gateway, None on the link. source: our address, if one is configured."""

    __slots__ = ("mtu", "network", "source", "via")

    def __init__(
        self, network: IPNetwork, via: IPAddress | None, source: Interface | None, mtu: int | None
    ) -> None:
        self.network, self.via, self.source, self.mtu = network, via, source, mtu


class RouteTable:
    """The routes of one link.

    routes: like "default via 10.0.0.1", "10.1.0.0/16 via 10.0.0.9", "fd01::/64 via fe80::9 src fd00::2 mtu 1400", or
    "10.2.0.0/16" for a network that is on the link though none of our addresses is in it. Prefixes of
    our addresses are on the link without being named. mtu: of the link.
    Raises `ValueError` for text that is no route, and for gateways that are not on the link.
    """

    def __init__(
        self, addresses: Addresses, routes: Iterable[str] = (), mtu: int = 1500, port: int = 0
    ) -> None:
        self._addresses = addresses
        self._mtu = mtu
        self._port = port
        self._found: dict[tuple[bytes, bytes | None], Route] = {}
        self._by_packed = {interface.ip.packed: interface for interface in addresses.interfaces}
        # Address length in bits -> (bits behind the prefix, prefix -> entry), longest prefix first.
        self._levels: dict[int, list[tuple[int, dict[int, _Entry]]]] = {32: [], 128: []}
        tables: dict[int, dict[int, dict[int, _Entry]]] = {32: {}, 128: {}}

        def add(entry: _Entry, text: str) -> None:
            network = entry.network
            behind = network.max_prefixlen - network.prefixlen
            table = tables[network.max_prefixlen].setdefault(behind, {})
            prefix = int(network.network_address) >> behind
            if prefix in table and text:
                raise ValueError(f"route {text!r}: there is a route to {network} already")
            table.setdefault(prefix, entry)
            self._levels[network.max_prefixlen] = sorted(tables[network.max_prefixlen].items())

        for interface in addresses.interfaces:
            add(_Entry(interface.network, None, None, None), "")
        parsed = [(text, self._parse(text)) for text in routes]
        # Gateways must be on the link, and what is on the link may be said in any order.
        for text, entry in sorted(parsed, key=lambda pair: pair[1].via is not None):
            if entry.via is not None:
                self._check_gateway(text, entry.via)
            add(entry, text)

    def _parse(self, text: str) -> _Entry:
        words = text.split()
        if not words or len(words) % 2 == 0:
            raise ValueError(f"route {text!r}: expected 'PREFIX [via GATEWAY] [src ADDRESS] [mtu BYTES]'")
        options = dict(zip(words[1::2], words[2::2], strict=True))
        unknown = [word for word in words[1::2] if word not in ("via", "src", "mtu")]
        if unknown or len(options) != len(words) // 2:
            what = f"{unknown[0]!r} is not known" if unknown else "a word occurs twice"
            raise ValueError(
                f"route {text!r}: {what}; expected 'PREFIX [via GATEWAY] [src ADDRESS] [mtu BYTES]'"
            )
        try:
            via = ipaddress.ip_address(options["via"]) if "via" in options else None
            source = ipaddress.ip_address(options["src"]) if "src" in options else None
            if words[0] == "default":
                if via is None:
                    raise ValueError("'default' needs 'via GATEWAY'")
                network = ipaddress.ip_network("0.0.0.0/0" if via.version == 4 else "::/0")
            else:
                network = ipaddress.ip_network(words[0])
            mtu = int(options["mtu"]) if "mtu" in options else None
        except ValueError as error:
            raise ValueError(f"route {text!r}: {error}") from None
        for other in (via, source):
            if other is not None and other.version != network.version:
                raise ValueError(f"route {text!r}: {other} is not IPv{network.version}")
        if network.is_multicast:
            raise ValueError(f"route {text!r}: TCP has no multicast")
        interface = None
        if source is not None:
            interface = self._by_packed.get(source.packed)
            if interface is None:
                raise ValueError(f"route {text!r}: src {source} is not one of our addresses")
        floor = MTU_FLOOR_V4 if network.version == 4 else MTU_FLOOR_V6
        if mtu is not None and not floor <= mtu <= 65535:
            raise ValueError(f"route {text!r}: mtu must be from {floor} to 65535, not {mtu}")
        return _Entry(network, via, interface, mtu)

    def _check_gateway(self, text: str, via: IPAddress) -> None:
        if via.packed in self._addresses:
            raise ValueError(f"route {text!r}: the gateway {via} is ourselves")
        entry = self._lookup(via.packed)
        if entry is None or entry.via is not None or self._unusable(entry, via.packed):
            raise ValueError(f"route {text!r}: the gateway {via} is not on the link of any of our addresses")

    # -- questions -------------------------------------------------------------------------

    def _lookup(self, packed: bytes) -> _Entry | None:
        number = int.from_bytes(packed, "big")
        for behind, table in self._levels[len(packed) * 8]:
            entry = table.get(number >> behind)
            if entry is not None:
                return entry
        return None

    def on_link(self, packed: bytes) -> bool:
        """Whether an address is a neighbour's."""
        entry = self._lookup(packed)
        return entry is not None and entry.via is None

    def mtu(self, remote: bytes) -> int:
        """Largest IP packet that the route to an address takes; the link's where there is no route."""
        entry = self._lookup(remote)
        return self._mtu if entry is None or entry.mtu is None else min(entry.mtu, self._mtu)

    @staticmethod
    def _unusable(entry: _Entry | None, packed: bytes) -> str:
        """Why no TCP connection goes to this address; empty: one may."""
        if len(packed) == 4:
            if not 0 < packed[0] < 224 or packed[0] == 127:
                return "is no host's address"
            if entry is not None and entry.via is None and entry.network.prefixlen < 31:
                network = entry.network
                if packed in (network.network_address.packed, network.broadcast_address.packed):
                    return f"is the network {network} itself or its broadcast"
        elif (
            packed[0] == 0xFF
            or (not any(packed[:15]) and packed[15] < 2)
            or packed[:12] == bytes(10) + b"\xff\xff"
        ):
            return "is no host's address"
        return ""

    def route(self, remote: bytes, local: bytes | None = None) -> Route:
        """How to reach `remote` (4 or 16 bytes), from `local` or from the address of ours that suits best. The
        routes are shared: nobody may change one.

        Raises `OSError`: ENETUNREACH when nothing leads there, EADDRNOTAVAIL when `local` is not ours.
        """
        found = self._found.get((remote, local))
        if found is None:
            found = self._find(remote, local)
            if len(self._found) >= _FOUND_LIMIT:
                self._found.clear()
            self._found[remote, local] = found
        return found

    def _find(self, remote: bytes, local: bytes | None) -> Route:
        if len(remote) not in (4, 16):
            raise ValueError(f"an address has 4 or 16 bytes, not {len(remote)}")
        if local is not None and local not in self._addresses:
            raise OSError(
                errno.EADDRNOTAVAIL,
                f"{os.strerror(errno.EADDRNOTAVAIL)}: {_text(local)} is not an address of this NIC",
            )
        entry = self._lookup(remote)
        reason = self._unusable(entry, remote)
        if not reason and entry is None:
            reason = "has no route"
        if not reason and remote in self._addresses:
            reason = "is our own, and the NIC does not send to itself"
        if not reason and local is not None and len(local) != len(remote):
            reason = f"cannot be reached from {_text(local)}"
        chosen = None
        if not reason and entry is not None:
            hop = remote if entry.via is None else entry.via.packed
            chosen = (
                self._by_packed[local] if local is not None else entry.source or self._source(remote, hop)
            )
            if chosen is None:
                reason = "cannot be reached: we have no address of that version"
        if reason or chosen is None or entry is None:
            raise OSError(errno.ENETUNREACH, f"{os.strerror(errno.ENETUNREACH)}: {_text(remote)} {reason}")
        return Route(remote, chosen.ip.packed, hop, self._asker(hop, chosen), self._port, self.mtu(remote))

    def _source(self, remote: bytes, hop: bytes) -> Interface | None:
        """RFC 6724 section 5; of equals the first configured."""
        best = None
        best_rank: tuple[int, ...] = ()
        wanted = _scope(remote)
        label = _label(remote)
        hop_number = int.from_bytes(hop, "big")
        remote_number = int.from_bytes(remote, "big")
        for interface in self._addresses.interfaces:
            packed = interface.ip.packed
            if len(packed) != len(remote):
                continue
            scope = _scope(packed)
            bits = len(packed) * 8
            behind = bits - interface.network.prefixlen
            number = int(interface.ip)
            # Rule 2: the smallest scope that suffices, else the largest. Rules 5.5, 6, 8.
            rank = (
                -scope if scope >= wanted else scope - 100,
                int(number >> behind == hop_number >> behind),
                int(_label(packed) == label),
                min(bits - (number ^ remote_number).bit_length(), interface.network.prefixlen),
            )
            if best is None or rank > best_rank:
                best, best_rank = interface, rank
        return best

    def _asker(self, hop: bytes, chosen: Interface) -> bytes:
        """In whose name the next hop is asked for: in that of the packet's source (RFC 4861 section 7.2.2); but
        neighbours need not answer ARP from a network they are not in.
        """
        if chosen.version == 4:
            address = ipaddress.IPv4Address(hop)
            if address not in chosen.network:
                for interface in self._addresses.interfaces:
                    if interface.version == 4 and address in interface.network:
                        return interface.ip.packed
        return chosen.ip.packed


def _text(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


def _scope(packed: bytes) -> int:
    """RFC 6724 section 3.1 and 3.2."""
    address = ipaddress.ip_address(packed)
    if address.is_link_local or address.is_loopback:
        return _LINK_SCOPE
    if isinstance(address, ipaddress.IPv6Address) and address in _SITE_LOCAL:
        return _SITE_SCOPE
    return _GLOBAL_SCOPE


def _label(packed: bytes) -> int:
    if len(packed) == 4:
        return 4
    address = ipaddress.IPv6Address(packed)
    return next(label for network, label in _LABELS if address in network)


class PathMtus:
    """Path MTUs smaller than the link's, learned from routers, for ten minutes each (RFC 1191 section 6.3, RFC
    8201 section 5.3). limit: how many are kept; the oldest goes.
    """

    def __init__(self, limit: int = 1024, age: float = 600.0) -> None:
        self._limit, self._age = limit, age
        self._known: dict[bytes, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, remote: bytes, now: float) -> int | None:
        """What is known of the path to an address."""
        known = self._known.get(remote)
        if known is None:
            return None
        mtu, until = known
        if now >= until:
            del self._known[remote]
            return None
        return mtu

    def learn(self, remote: bytes, mtu: int, now: float) -> None:
        """The path has this MTU, from now on."""
        self._known.pop(remote, None)
        if len(self._known) >= self._limit:
            del self._known[next(iter(self._known))]
        self._known[remote] = (mtu, now + self._age)
