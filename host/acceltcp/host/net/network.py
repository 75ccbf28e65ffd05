"""The network layer of one MAC port: routes, neighbours, what must be answered, what ICMP reports.

How it is wired (`nic.Nic` does):

* `receive(frame, port, now)` for every frame that is not TCP; it answers, learns, and calls the hooks.
* `announce(now)` once the port is up.
* `run_timers(now)` when `next_deadline()` has come. Send what waits (`TcpEndpoint.flush`) after `receive` and `run_timers`:
  hooks make connections ready.
* `on_neighbour_found(next_hop)`, `on_neighbour_failed(next_hop)`, `on_tcp_error(kind, mtu, key, seq)` are set by who
  has the connections (below).

How TCP uses it:

* `route(remote, local)` before it connects; the answer stays good as long as the addresses do.
* `resolve(route)` before it sends the SYN: how frames begin (destination MAC, our MAC, EtherType), or None: wait for
  `on_neighbour_found(route.next_hop)`, then ask again, or for `on_neighbour_failed(route.next_hop)`: EHOSTUNREACH for those who wait.
* `resolve(route)` again whenever it sends something a second time: a neighbour that has gone is noticed that way,
  and a new MAC address picked up. `on_neighbour_found` is called as well when a neighbour's MAC has changed; headers
  built before are out of date then. For an established connection `on_neighbour_failed` is no reason to end.
* `confirm(route.next_hop)` when the peer acknowledges something new, once per round trip is plenty: the
  neighbour is there, no need to probe it.
* `path_mtu(remote)` instead of `route.mtu` where it matters: it changes with what routers report, and goes up again
  ten minutes after.
* `on_tcp_error(kind, mtu, key, seq)` returns whether it believes the report: the connection `key` exists and `seq` lies within
  what it has in flight (RFC 5927 section 4.1). Only then a path MTU is learned. All kinds are soft errors for a synchronized
  connection (RFC 5927 section 5.2); an attempt to connect ends with `OSError(kind.errno)`, TOO_BIG excepted.

Connections that a peer opened need none of this but `path_mtu` and errors: their frames go back where they came from.
Frames with a VLAN tag are answered in their VLAN, and errors in them count, but they teach nothing of
neighbours: lookups are untagged.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Mapping

from acceltcp.abi.wire import ETHERNET, IPV4, IPV6, VLAN, EtherType, IPProtocol

from ..checks import check_is, check_texts, parse_address
from .addresses import Addresses
from .icmp import (
    ERROR_TYPES_V4,
    ERROR_TYPES_V6,
    IcmpErrorKind,
    TcpError,
    icmp_message,
    icmpv6_message,
    tcp_error_v4,
    tcp_error_v6,
)
from .neighbours import (
    ARP_REPLY,
    ARP_REQUEST,
    NEIGHBOR_ADVERTISEMENT,
    OPTION_TARGET_LINK,
    NeighbourCache,
    NeighbourSettings,
    arp_fields,
    link_option,
)
from .responder import Responder
from .routes import PathMtus, Route, RouteTable

__all__ = ["Network"]

_ANNOUNCE_NUM = 2
_ANNOUNCE_INTERVAL = 2.0
_DEFEND_INTERVAL = 10.0
"""RFC 5227 section 1.1."""
_FLAG_SOLICITED, _FLAG_OVERRIDE = 0x40, 0x20
_NEVER = float("inf")


class Network:
    """The network layer of one MAC port; the module's text says how to use it.

    addresses: ours. send: takes a frame and a MAC port, returns whether it was taken (not if it is too long, or the ring is
    full). routes: see `RouteTable`. neighbours: address -> MAC for those that shall not be asked, like {"10.0.0.1": "02:00:00:00:00:01"}. mtu: largest IP
    packet of the link. port: MAC port. clock: gives the time when `resolve` and its like are called without.
    Raises `ValueError` for routes and neighbours that make no sense.
    """

    def __init__(
        self,
        addresses: Addresses,
        send: Callable[[bytes, int], bool],
        *,
        routes: Iterable[str] = (),
        neighbours: Mapping[str, str] | None = None,
        mtu: int = 1500,
        port: int = 0,
        settings: NeighbourSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_texts("routes", routes, "default via 10.0.0.1")
        if neighbours is not None and not isinstance(neighbours, Mapping):
            raise ValueError(
                f"neighbours must be a dict like {{'10.0.0.1': '02:00:00:00:00:01'}}, not {neighbours!r}"
            )
        self.addresses = addresses
        self.mtu = mtu
        self.port = port
        self.on_neighbour_found: Callable[[bytes], None] = lambda next_hop: None
        self.on_neighbour_failed: Callable[[bytes], None] = lambda next_hop: None
        self.on_tcp_error: Callable[[IcmpErrorKind, int, bytes, int], bool] = _disbelieve
        self.routes = RouteTable(addresses, routes, mtu, port)
        self.path_mtus = PathMtus()
        self.responder = Responder(addresses, self._asked)
        self._counts = dict.fromkeys(
            ("malformed", "icmp_errors", "icmp_foreign", "icmp_disbelieved", "path_mtus", "conflicts", "unsent"), 0
        )  # fmt: skip
        self._send = send
        self._clock = clock
        self._now = 0.0
        self._announcements = 0
        self._announce_at = _NEVER
        self._defended: dict[bytes, float] = {}
        self.neighbours = NeighbourCache(
            addresses.mac,
            lambda frame: self._out(frame, port),
            lambda address: self.on_neighbour_found(address),
            lambda address: self.on_neighbour_failed(address),
            settings,
            {_address(ip): _mac(mac) for ip, mac in (neighbours or {}).items()},
        )
        for ip in neighbours or {}:
            packed = _address(ip)
            if packed in addresses:
                raise ValueError(f"neighbour {ip} is one of our own addresses")
            if not self.routes.on_link(packed):
                raise ValueError(f"neighbour {ip} is not on the link of any of our addresses")

    # -- what TCP asks ---------------------------------------------------------------------

    def route(self, remote: bytes, local: bytes | None = None) -> Route:
        """How to reach `remote` (packed), from our address `local` or from the one that suits best. Nobody may
        change what this returns.

        Raises `OSError`: ENETUNREACH when nothing leads there, EADDRNOTAVAIL when `local` is not ours.
        """
        route = self.routes.route(remote, local)
        known = self.path_mtus.get(remote, self._clock()) if self.path_mtus else None
        if known is None or known >= route.mtu:
            return route
        return Route(remote, route.local, route.next_hop, route.asker, route.port, known)

    def resolve(self, route: Route, now: float | None = None) -> bytes | None:
        """How frames on this route begin: destination MAC, our MAC, EtherType. None: the next hop has been asked, and
        `on_neighbour_found` or `on_neighbour_failed` will be called with it.
        """
        return self.neighbours.resolve(route.next_hop, route.asker, self._clock() if now is None else now)

    def confirm(self, next_hop: bytes, now: float | None = None) -> None:
        """A peer behind this neighbour acknowledged something new."""
        self.neighbours.confirm(next_hop, self._clock() if now is None else now)

    def path_mtu(self, remote: bytes, now: float | None = None) -> int:
        """Largest IP packet that is believed to reach `remote`; the route's or the link's MTU where nothing else is known."""
        mtu = self.routes.mtu(remote)
        known = self.path_mtus.get(remote, self._clock() if now is None else now)
        return mtu if known is None or known > mtu else known

    def stats(self) -> dict[str, int]:
        """Answers given, questions asked, what neighbours and routers said."""
        answers = dict(self.responder.stats)
        answers["malformed"] += self._counts["malformed"]
        return {**self._counts, **answers, **self.neighbours.stats, "neighbours": len(self.neighbours)}

    # -- frames ----------------------------------------------------------------------------

    def receive(self, frame: memoryview, port: int, now: float) -> None:
        """A frame that is not TCP. The view is not kept."""
        self._now = now
        if len(frame) >= ETHERNET.size and not frame[6] & 1:
            kind = frame[12] << 8 | frame[13]
            at = ETHERNET.size
            tagged = kind == EtherType.VLAN and len(frame) >= at + VLAN.size
            if tagged:
                kind = frame[16] << 8 | frame[17]
                at += VLAN.size
            if kind == EtherType.ARP:
                if not tagged and self._arp(frame[at:]):
                    return
            elif kind == EtherType.IPV4:
                if self._icmp(frame[at:]):
                    return
            elif kind == EtherType.IPV6:
                if self._icmpv6(frame[at:], tagged):
                    return
        reply = self.responder.answer(frame)
        if reply is not None:
            self._out(reply, port)

    def _out(self, frame: bytes, port: int) -> None:
        if not self._send(frame, port):
            self._counts["unsent"] += 1

    def _arp(self, packet: memoryview) -> bool:
        """What an ARP packet says of its sender; whether that was all."""
        fields = arp_fields(packet)
        if fields is None:
            return False
        oper, sender, spa, target = fields
        if sender[0] & 1 or sender == self.addresses.mac:
            return True
        if spa in self.addresses:
            self._conflict(spa)
        elif oper == ARP_REPLY:
            to_us = target in self.addresses and packet[18:24] == self.addresses.mac
            self.neighbours.arp(spa, sender, to_us, self._now)
        elif oper == ARP_REQUEST and target not in self.addresses:
            # A question to others, or an announcement (RFC 5227 section 3).
            self.neighbours.arp(spa, sender, False, self._now)
        else:
            return False
        return oper != ARP_REQUEST

    def _icmp(self, packet: memoryview) -> bool:
        if len(packet) < IPV4.size or packet[9] != IPProtocol.ICMP:
            return True  # nobody of ours speaks it
        header = (packet[0] & 0xF) * 4
        if len(packet) <= header or packet[header] not in ERROR_TYPES_V4:
            return False
        dst = bytes(packet[16:20])
        if dst not in self.addresses:
            return True
        message = icmp_message(packet)
        if message is None:
            self._counts["malformed"] += 1
            return True
        self._error(tcp_error_v4(dst, message, self.mtu))
        return True

    def _icmpv6(self, packet: memoryview, tagged: bool) -> bool:
        if len(packet) <= IPV6.size or packet[6] != IPProtocol.ICMPV6:
            return True
        kind = packet[IPV6.size]
        if kind not in ERROR_TYPES_V6 and kind != NEIGHBOR_ADVERTISEMENT:
            return False
        message = icmpv6_message(packet)
        if message is None:
            self._counts["malformed"] += 1
            return True
        dst = bytes(packet[24:40])
        if kind == NEIGHBOR_ADVERTISEMENT:
            if not tagged:
                self._advertisement(packet, message, dst)
        elif dst in self.addresses:
            self._error(tcp_error_v6(dst, message))
        return True

    def _advertisement(self, packet: memoryview, message: memoryview, dst: bytes) -> None:
        """RFC 4861 sections 7.1.2 and 7.2.5."""
        link = link_option(message, OPTION_TARGET_LINK)
        solicited = bool(message[4] & _FLAG_SOLICITED)
        if (
            link is None
            or packet[7] != 255
            or message[1]
            or message[8] == 0xFF
            or (solicited and dst[0] == 0xFF)
            or (link and (link[0] & 1 or link == self.addresses.mac))
        ):
            self._counts["malformed"] += 1
            return
        target = bytes(message[8:24])
        if target in self.addresses:
            self._conflict(target)
            return
        override = bool(message[4] & _FLAG_OVERRIDE)
        self.neighbours.advertised(target, link or None, solicited, override, self._now)

    def _asked(self, address: bytes, mac: bytes) -> None:
        if address not in self.addresses and self.routes.on_link(address):
            self.neighbours.asked(address, mac, self._now)

    def _conflict(self, ours: bytes) -> None:
        """Somebody else uses our address (RFC 5227 section 2.4 (b)): say once in ten seconds that it is ours."""
        self._counts["conflicts"] += 1
        if self._now >= self._defended.get(ours, -_NEVER) + _DEFEND_INTERVAL:
            self._defended[ours] = self._now
            self._out(self.responder.announcement(ours), self.port)

    def _error(self, error: TcpError | None) -> None:
        if error is None:
            self._counts["icmp_foreign"] += 1
            return
        too_big = error.kind is IcmpErrorKind.TOO_BIG
        if too_big and error.mtu >= self.path_mtu(error.remote, self._now):
            self._counts["icmp_disbelieved"] += 1
            return
        if not self.on_tcp_error(error.kind, error.mtu, error.key, error.seq):
            self._counts["icmp_disbelieved"] += 1
            return
        self._counts["icmp_errors"] += 1
        if too_big:
            self.path_mtus.learn(error.remote, error.mtu, self._now)
            self._counts["path_mtus"] += 1

    # -- time --------------------------------------------------------------------------------

    def announce(self, now: float) -> None:
        """Tell the neighbours our MAC address, and again after two seconds (RFC 5227 section 2.3)."""
        self._announcements = _ANNOUNCE_NUM
        self._announce_at = now
        self.run_timers(now)

    def next_deadline(self) -> float | None:
        """When `run_timers` is due; None: never."""
        due = self.neighbours.next_deadline()
        if self._announce_at < _NEVER and (due is None or self._announce_at < due):
            return self._announce_at
        return due

    def run_timers(self, now: float) -> None:
        """Whatever is due now."""
        self._now = now
        if now >= self._announce_at:
            self._announcements -= 1
            self._announce_at = now + _ANNOUNCE_INTERVAL if self._announcements else _NEVER
            for frame in self.responder.announcements():
                self._out(frame, self.port)
        self.neighbours.run_timers(now)


def _disbelieve(kind: IcmpErrorKind, mtu: int, key: bytes, seq: int) -> bool:
    return False


def _address(text: str) -> bytes:
    return parse_address("a neighbour", text).packed


def _mac(text: str) -> bytes:
    check_is("a neighbour's MAC address", text, str)
    parts = text.split(":")
    try:
        mac = struct.pack("6B", *(int(part, 16) for part in parts))
    except (ValueError, struct.error):
        mac = b"\1"
    if mac[0] & 1 or not any(mac):
        raise ValueError(
            f"a neighbour's MAC address must be like 02:00:00:00:00:01 and no group, not {text!r}"
        )
    return mac
