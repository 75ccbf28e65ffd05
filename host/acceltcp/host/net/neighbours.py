"""Who has which MAC address: the neighbour cache, for ARP and neighbour discovery alike.

RFC 4861 sections 7.2 and 7.3 (appendix C is the state machine in one table), used for IPv4 too as RFC 1122 section
2.3.2.1 allows; RFC 826 and 5227 for what ARP packets say.

Entries come into being in two ways only: we look an address up, or somebody asks for one of our addresses
and says his own. The latter live in a pool of their own, so that strangers, however many names they invent,
push out nobody but strangers. Answers that nobody asked for change what is known and never add to it.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from acceltcp.abi.wire import ARP, EtherType

from .icmp import icmpv6_packet

__all__ = [
    "ARP_REPLY",
    "ARP_REQUEST",
    "NEIGHBOR_ADVERTISEMENT",
    "NEIGHBOR_SOLICITATION",
    "OPTION_SOURCE_LINK",
    "OPTION_TARGET_LINK",
    "Neighbour",
    "NeighbourCache",
    "NeighbourSettings",
    "NeighbourState",
    "arp_fields",
    "arp_packet",
    "link_option",
    "question",
    "solicited_node",
]

ARP_REQUEST, ARP_REPLY = 1, 2
NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT = 135, 136
OPTION_SOURCE_LINK, OPTION_TARGET_LINK = 1, 2
_TARGET_AT, _OPTIONS_AT = 8, 24
_SOLICITED_NODE = b"\xff\x02" + bytes(9) + b"\x01\xff"
_BROADCAST_MAC = b"\xff" * 6
_NEVER = float("inf")
_NO_TIMER = -1
_HEAP_SLACK = 64


# -- packets -------------------------------------------------------------------------------


def arp_fields(packet: memoryview) -> tuple[int, bytes, bytes, bytes] | None:
    """Operation, sender's MAC and IPv4 address, target's IPv4 address; None if it is not ARP for IPv4 over Ethernet."""
    if len(packet) < ARP.size:
        return None
    arp = ARP.unpack(packet)
    if (arp["htype"], arp["ptype"], arp["hlen"], arp["plen"]) != (1, EtherType.IPV4, 6, 4):
        return None
    return (
        arp["oper"],
        arp["sha"].to_bytes(6, "big"),
        arp["spa"].to_bytes(4, "big"),
        arp["tpa"].to_bytes(4, "big"),
    )


def arp_packet(oper: int, sha: bytes, spa: bytes, tha: bytes, tpa: bytes) -> bytes:
    """An ARP packet for IPv4 over Ethernet."""
    number = int.from_bytes
    return ARP.pack(
        htype=1, ptype=EtherType.IPV4, hlen=6, plen=4, oper=oper,
        sha=number(sha, "big"), spa=number(spa, "big"), tha=number(tha, "big"), tpa=number(tpa, "big"),
    )  # fmt: skip


def link_option(message: memoryview, kind: int) -> bytes | None:
    """The MAC address in an option of a neighbour solicitation or advertisement, b"" without one; None when the
    message is too short or an option has no length or runs over the end (RFC 4861 section 7.1).
    """
    if len(message) < _OPTIONS_AT:
        return None
    link = b""
    at = _OPTIONS_AT
    while at < len(message):
        size = message[at + 1] * 8 if at + 1 < len(message) else 0
        if not size or at + size > len(message):
            return None
        if message[at] == kind and size == 8:
            link = bytes(message[at + 2 : at + 8])
        at += size
    return link


def solicited_node(address: bytes) -> bytes:
    """The multicast group that has this IPv6 address's last three bytes (RFC 4291 section 2.7.1)."""
    return _SOLICITED_NODE + address[13:]


def question(mac: bytes, asker: bytes, target: bytes, known: bytes | None) -> bytes:
    """The frame that asks for the MAC address of `target` in the name of our address `asker`: to everybody, or, as
    a probe, to the MAC address known so far.
    """
    if len(target) == 4:
        body = arp_packet(ARP_REQUEST, mac, asker, bytes(6), target)
        return (known or _BROADCAST_MAC) + mac + EtherType.ARP.to_bytes(2, "big") + body
    group = solicited_node(target)
    head = struct.pack("!BBHI", NEIGHBOR_SOLICITATION, 0, 0, 0)
    message = head + target + bytes([OPTION_SOURCE_LINK, 1]) + mac
    body = icmpv6_packet(asker, group if known is None else target, message, 255)
    return (known or b"\x33\x33" + group[12:]) + mac + EtherType.IPV6.to_bytes(2, "big") + body


# -- cache ---------------------------------------------------------------------------------


class NeighbourState(enum.IntEnum):
    """RFC 4861 section 7.3.2; PERMANENT is what the user configured."""

    INCOMPLETE = 0
    REACHABLE = 1
    STALE = 2
    DELAY = 3
    PROBE = 4
    PERMANENT = 5


_INCOMPLETE, _REACHABLE, _STALE, _DELAY, _PROBE, _PERMANENT = NeighbourState


@dataclass(frozen=True)
class NeighbourSettings:
    """Times in seconds; defaults of RFC 4861 section 10."""

    reachable_time: float = 30.0
    """Mean; the one in use is drawn from half to one and a half of it (section 6.3.2)."""
    retransmit: float = 1.0
    solicitations: int = 3
    delay: float = 5.0
    """How long a neighbour in doubt may be confirmed by TCP before it is probed."""
    hold: float = 1.0
    """For IPv4: an answer that contradicts one not older than this is ignored."""
    limit: int = 1024
    """Most entries that we looked up; the least recently used one goes."""
    strangers: int = 256
    """Most entries of those who asked for us and whom we never needed."""


class Neighbour:
    """What is known of one address. `header` begins frames to it: its MAC, ours, the EtherType."""

    __slots__ = (
        "address", "asker", "changed_at", "confirmed_at", "header", "mac", "state", "timer", "tries", "used_at",
    )  # fmt: skip

    def __init__(self, address: bytes, asker: bytes, now: float) -> None:
        self.address = address
        self.asker = asker
        self.state = _INCOMPLETE
        self.mac: bytes | None = None
        self.header: bytes | None = None
        self.timer = _NO_TIMER
        """Number of the timer that runs for this entry."""
        self.tries = 0
        self.confirmed_at = self.changed_at = -_NEVER
        self.used_at = now


class NeighbourCache:
    """The neighbours of one link.

    mac: ours. send: takes a frame. found: called with an address that was waited for, or whose MAC has changed;
    failed: with one that does not answer (any more). Both are called from `advertised`, `asked` and `run_timers`,
    never from `resolve`. static: packed address -> MAC, which nothing changes.
    """

    def __init__(
        self,
        mac: bytes,
        send: Callable[[bytes], object],
        found: Callable[[bytes], None],
        failed: Callable[[bytes], None],
        settings: NeighbourSettings | None = None,
        static: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self.settings = settings or NeighbourSettings()
        self.reachable_time = self.settings.reachable_time * random.uniform(0.5, 1.5)
        self.stats = dict.fromkeys(
            ("questions", "found", "failed", "strangers", "evicted", "moved", "contradictions", "unasked"), 0
        )
        self._mac = mac
        self._send = send
        self._found, self._failed = found, failed
        self._ours: dict[bytes, Neighbour] = {}
        self._strangers: dict[bytes, Neighbour] = {}
        self._heap: list[tuple[float, int, Neighbour]] = []
        self._order = itertools.count()
        self._given_up: list[bytes] = []
        """Evicted while somebody waited: told at the next `run_timers`."""
        for address, known in (static or {}).items():
            entry = self._ours[address] = Neighbour(address, b"", -_NEVER)
            self._learn(entry, known, -_NEVER)
            entry.state = _PERMANENT
        self._permanent = len(self._ours)

    def __len__(self) -> int:
        return len(self._ours) + len(self._strangers)

    def state(self, address: bytes, now: float) -> NeighbourState | None:
        """What is known of an address; None: nothing."""
        entry = self._ours.get(address) or self._strangers.get(address)
        if entry is None:
            return None
        return _STALE if self._expired(entry, now) else entry.state

    def mac(self, address: bytes) -> bytes | None:
        """The MAC address of a neighbour, as far as known; this is no use of it."""
        entry = self._ours.get(address) or self._strangers.get(address)
        return None if entry is None else entry.mac

    def table(self, now: float) -> list[dict[str, object]]:
        """All entries, for people: packed address, MAC or None, state."""
        entries = [*self._ours.values(), *self._strangers.values()]
        return [{"address": e.address, "mac": e.mac, "state": self.state(e.address, now)} for e in entries]

    # -- use -------------------------------------------------------------------------------

    def resolve(self, address: bytes, asker: bytes, now: float) -> bytes | None:
        """Something is about to be sent to a neighbour: how the frame begins; None: the neighbour has been
        asked, in the name of our address `asker`, and `found` or `failed` will be called.
        """
        entry = self._ours.get(address)
        if entry is None:
            entry = self._wanted(address, asker, now)
        entry.used_at = now
        if entry.state is _REACHABLE:
            if now < entry.confirmed_at + self.reachable_time:
                return entry.header
            entry.state = _STALE
        if entry.state is _STALE:
            entry.state = _DELAY
            entry.asker = asker
            self._arm(entry, now + self.settings.delay)
        return entry.header

    def confirm(self, address: bytes, now: float) -> None:
        """TCP made progress through this neighbour (RFC 4861 section 7.3.1): it is there."""
        entry = self._ours.get(address)
        if entry is not None and entry.header is not None:
            entry.used_at = now
            self._reached(entry, now)

    def _wanted(self, address: bytes, asker: bytes, now: float) -> Neighbour:
        if len(self._ours) - self._permanent >= self.settings.limit:
            self._evict()
        entry = self._strangers.pop(address, None)
        if entry is None:
            entry = Neighbour(address, asker, now)
            self._ours[address] = entry
            self._ask(entry, now)
        else:
            entry.asker = asker
            self._ours[address] = entry
        return entry

    def _evict(self) -> None:
        # Those that somebody waits for go last.
        oldest = min(
            (entry for entry in self._ours.values() if entry.state is not _PERMANENT),
            key=lambda entry: (entry.state is _INCOMPLETE, entry.used_at),
        )
        if oldest.state is _INCOMPLETE:
            self._given_up.append(oldest.address)
        self._drop(oldest)
        self.stats["evicted"] += 1

    # -- what neighbours say -----------------------------------------------------------------

    def advertised(
        self, address: bytes, mac: bytes | None, solicited: bool, override: bool, now: float
    ) -> None:
        """A neighbour advertisement (RFC 4861 section 7.2.5)."""
        entry = self._ours.get(address) or self._strangers.get(address)
        if entry is None:
            self.stats["unasked"] += 1
            return
        state = entry.state
        if state is _PERMANENT:
            return
        if state is _INCOMPLETE:
            if mac is None:
                return
            self._learn(entry, mac, now)
            if solicited:
                self._reached(entry, now)
            else:
                self._doubt(entry)
            self._tell(entry)
            return
        differs = mac is not None and mac != entry.mac
        if differs and not override:
            if state is _REACHABLE:
                self._doubt(entry)
            return
        if differs:
            assert mac is not None
            self._learn(entry, mac, now)
        if solicited:
            self._reached(entry, now)
        elif differs:
            self._doubt(entry)
        if differs:
            self._moved(entry)

    def arp(self, address: bytes, mac: bytes, reply_to_us: bool, now: float) -> None:
        """An ARP packet says who has `address`. It counts as an advertisement that overrides, and as a solicited one
        if it answers a question of ours that is open.
        """
        entry = self._ours.get(address) or self._strangers.get(address)
        if entry is None:
            self.stats["unasked"] += 1
            return
        if entry.state not in (_INCOMPLETE, _PERMANENT) and mac != entry.mac:
            if now < entry.changed_at + self.settings.hold:
                self.stats["contradictions"] += 1
                return
        self.advertised(address, mac, reply_to_us and entry.state in (_INCOMPLETE, _PROBE), True, now)

    def asked(self, address: bytes, mac: bytes, now: float) -> None:
        """A neighbour asked for us and said his MAC address (RFC 4861 section 7.2.3, RFC 826)."""
        entry = self._ours.get(address) or self._strangers.get(address)
        if entry is None:
            strangers = self._strangers
            if len(strangers) >= self.settings.strangers:
                del strangers[next(iter(strangers))]
                self.stats["evicted"] += 1
            entry = strangers[address] = Neighbour(address, b"", now)
            self._learn(entry, mac, now)
            entry.state = _STALE
            self.stats["strangers"] += 1
        elif entry.state is _INCOMPLETE:
            self._learn(entry, mac, now)
            self._doubt(entry)
            self._tell(entry)
        elif entry.state is not _PERMANENT and mac != entry.mac:
            if len(address) == 4 and now < entry.changed_at + self.settings.hold:
                self.stats["contradictions"] += 1
                return
            self._learn(entry, mac, now)
            self._doubt(entry)
            self._moved(entry)
        elif address in self._strangers:
            self._strangers[address] = self._strangers.pop(address)  # the one who asked last goes last

    # -- changes of state --------------------------------------------------------------------

    def _expired(self, entry: Neighbour, now: float) -> bool:
        return entry.state is _REACHABLE and now >= entry.confirmed_at + self.reachable_time

    def _learn(self, entry: Neighbour, mac: bytes, now: float) -> None:
        kind = EtherType.IPV4 if len(entry.address) == 4 else EtherType.IPV6
        entry.mac = mac
        entry.header = mac + self._mac + kind.to_bytes(2, "big")
        entry.changed_at = now

    def _reached(self, entry: Neighbour, now: float) -> None:
        if entry.state is not _PERMANENT:
            entry.state = _REACHABLE
            entry.confirmed_at = now
            entry.timer = _NO_TIMER

    def _doubt(self, entry: Neighbour) -> None:
        entry.state = _STALE
        entry.timer = _NO_TIMER

    def _tell(self, entry: Neighbour) -> None:
        self.stats["found"] += 1
        self._found(entry.address)

    def _moved(self, entry: Neighbour) -> None:
        self.stats["moved"] += 1
        if self._ours.get(entry.address) is entry:
            self._found(entry.address)

    def _drop(self, entry: Neighbour) -> None:
        entry.timer = _NO_TIMER
        del self._ours[entry.address]

    # -- time --------------------------------------------------------------------------------

    def _arm(self, entry: Neighbour, when: float) -> None:
        entry.timer = next(self._order)
        heap = self._heap
        heapq.heappush(heap, (when, entry.timer, entry))
        if len(heap) > 2 * len(self._ours) + _HEAP_SLACK:
            self._heap = [item for item in heap if item[1] == item[2].timer]
            heapq.heapify(self._heap)

    def _ask(self, entry: Neighbour, now: float) -> None:
        entry.tries += 1
        self._arm(entry, now + self.settings.retransmit)
        self.stats["questions"] += 1
        # A full ring is like a lost frame: the next try comes in a second.
        self._send(question(self._mac, entry.asker, entry.address, entry.mac))

    def next_deadline(self) -> float | None:
        """When `run_timers` is due; None: nothing waits."""
        if self._given_up:
            return -_NEVER
        heap = self._heap
        while heap and heap[0][1] != heap[0][2].timer:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_timers(self, now: float) -> None:
        """Whatever is due: questions again, probes, giving up."""
        given_up, self._given_up = self._given_up, []
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, timer, entry = heapq.heappop(heap)
            if timer != entry.timer:
                continue
            if entry.state is _DELAY:
                entry.state = _PROBE
                entry.tries = 0
                self._ask(entry, now)
            elif entry.tries < self.settings.solicitations:
                self._ask(entry, now)
            else:
                self._drop(entry)
                given_up.append(entry.address)
            heap = self._heap
        for address in given_up:
            # It may have been asked for again meanwhile: by us, and who waits is told later, or the other way round.
            known = self._ours.get(address) or self._strangers.get(address)
            if known is None:
                self.stats["failed"] += 1
                self._failed(address)
            elif known.header is not None:
                self._tell(known)
