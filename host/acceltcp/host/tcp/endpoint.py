"""The host's TCP endpoint: finds the connection for a segment, opens and forgets them.

Below it is a link (`reserve`, `commit`: a `queue.Queue`), above it listeners that take new
connections. It runs no loop and keeps no clock of its own: call `receive` for each packet,
`flush` after each batch, `run_timers` when `next_deadline` has come, with the time each time.

A segment that carries a valid cookie is marked NEW by the NIC; so is every segment like it
until our first byte is acknowledged, which is why the own table is asked first.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Protocol

from acceltcp.abi.cookie import WSCALE_NONE
from acceltcp.abi.messages import ChecksumState, Verdict

from ..rings import RX_PACKING
from .connection import TcpConnection
from .handover import HandOver, Record
from .segment import ACK, FIN, HALF, MASK, RST, SYN, Closed, Peer, Segment, supersedes
from .settings import TcpSettings

__all__ = ["Link", "Listener", "TcpEndpoint"]

log = logging.getLogger("acceltcp.tcp")

_L3 = RX_PACKING["l3_offset"].item
_L4 = RX_PACKING["l4_offset"].item
_VERDICT_I, _VERDICT_S, _VERDICT_M = RX_PACKING["verdict"]
_L4SUM_I, _L4SUM_S, _L4SUM_M = RX_PACKING["l4_checksum"]
_IPV6_I, _IPV6_S, _IPV6_M = RX_PACKING["ipv6"]
_LISTENER = RX_PACKING["listener"]
_LISTENER_INDEX = RX_PACKING["listener_index"].item
_PORT = RX_PACKING["port"]
_TS_CLOCK = RX_PACKING["ts_clock"].item


class Link(Protocol):
    """Where frames go out. See `queue.Queue`."""

    def reserve(self) -> memoryview | None: ...

    def commit(
        self, length: int, l3_offset: int = 0, l4_offset: int = 0, flags: int = 0, port: int = 0
    ) -> None: ...


@dataclass
class Listener:
    """What the endpoint needs to know of an entry of the NIC's listen table.

    accept: called with each new connection; says whether it is wanted. When it is not, the
    segment is dropped and the client will try again. teardown: the NIC may close them, if it can.
    """

    accept: Callable[[TcpConnection], bool]
    window: int = 65535
    wscale: int = 7
    teardown: bool = True


@dataclass
class _Ended:
    until: float
    connection: Closed


@dataclass
class _Unknown:
    """The last segment of a tuple that nobody knows (yet), as a reset would answer it."""

    due: float
    peer: Peer
    seq: int
    ack: int
    flags: int


class TcpEndpoint:
    """All connections of one host on one link.

    addresses: our addresses, packed. ts_clock: reads the NIC's timestamp clock. ts_step: seconds per
    step of it.
    """

    def __init__(
        self,
        link: Link,
        addresses: Container[bytes],
        settings: TcpSettings | None = None,
        *,
        now: float,
        ts_clock: Callable[[], int],
        ts_step: float = 0.001,
    ) -> None:
        self.link = link
        self.addresses = addresses
        self.settings = settings or TcpSettings()
        self.now = now
        self.ts_step = ts_step
        self._read_clock = ts_clock
        self._clock, self._clock_at = ts_clock(), now
        self.hand_over: HandOver | None = None
        """Who gives connections to the NIC; None: nobody."""
        self.connections: dict[bytes, TcpConnection] = {}
        self.listeners: dict[int, Listener] = {}
        """Index in the NIC's listen table -> who takes its connections."""
        self.blocked: set[TcpConnection] = set()
        """Connections that found the transmit ring full."""
        self.stats = dict.fromkeys(
            (
                "opened", "closed", "failed", "segments", "bad_checksum", "unwanted", "duplicates_of_closed",
                "resets_sent", "unknown_dropped", "retransmissions",
            ),
            0,
        )  # fmt: skip
        self._dirty: dict[TcpConnection, None] = {}
        self._ended: dict[bytes, _Ended] = {}
        self._unknown: dict[bytes, _Unknown] = {}
        self._heap: list[tuple[float, int, TcpConnection]] = []
        self._order = itertools.count()

    # -- packets in ----------------------------------------------------------------------

    def receive(self, view: memoryview, items: tuple[int, ...]) -> None:
        """A packet whose completion has `tcp` set."""
        l3, l4 = items[_L3], items[_L4]
        if items[_L4SUM_I] >> _L4SUM_S & _L4SUM_M != ChecksumState.GOOD:
            self.stats["bad_checksum"] += 1
            return
        self.stats["segments"] += 1
        self._learn_clock(items[_TS_CLOCK])
        ipv6 = bool(items[_IPV6_I] >> _IPV6_S & _IPV6_M)
        # Source address, destination address, source port, destination port, as they lie there.
        key = bytes(view[l3 + (8 if ipv6 else 12) : l4 + 4])
        segment = Segment(view, l3, l4, ipv6)
        new = items[_VERDICT_I] >> _VERDICT_S & _VERDICT_M == Verdict.NEW
        connection = self.connections.get(key)
        if connection is not None:
            if new and segment.seq - 1 & MASK != connection.irs and not self._in_window(connection, segment):
                if not supersedes(segment, connection):
                    # Both sides of the old connection ignore this reset; a client that really
                    # has begun anew learns that it must try again.
                    self._reset(Peer(view, l3, l4, ipv6, _PORT.of(items)), segment)
                    return
                # The client has proved a new handshake: it no longer knows the old connection.
                connection._reset_by_peer()
                self._forget(key)
            else:
                if connection.receive(segment) and view[6:12] != connection.peer.mac and not view[6] & 1:
                    connection.moved(Peer(view, l3, l4, ipv6, _PORT.of(items)))
                return
        if self.hand_over is not None and self.hand_over.receive(key, segment, new):
            return
        ended = self._ended.get(key)
        if ended is not None:
            if not new or segment.seq - 1 & MASK == ended.connection.irs or not supersedes(segment, ended.connection):
                self.stats["duplicates_of_closed"] += 1
                if ended.connection.reset_strays and not segment.flags & RST:
                    self._reset(ended.connection.peer, segment)
                return
            del self._ended[key]
        listener = self.listeners.get(items[_LISTENER_INDEX]) if _LISTENER.of(items) else None
        if new and listener is not None:
            self._open(key, view, items, segment, listener, ipv6)
        elif not segment.flags & RST:
            address = bytes(view[l3 + 24 : l3 + 40] if ipv6 else view[l3 + 16 : l3 + 20])
            if listener is None and address not in self.addresses:
                return
            peer = Peer(view, l3, l4, ipv6, _PORT.of(items))
            if listener is None:
                self._reset(peer, segment)
            else:
                self._hold(key, peer, segment)

    def _open(
        self, key: bytes, view: memoryview, items: tuple[int, ...], segment: Segment, listener: Listener, ipv6: bool
    ) -> None:
        slots = RX_PACKING.slots
        wscale = slots["wscale"].of(items)
        connection = TcpConnection(
            self,
            key,
            Peer(view, items[_L3], items[_L4], ipv6, _PORT.of(items)),
            segment,
            mss=slots["mss"].of(items),
            wscale=None if wscale == WSCALE_NONE else wscale,
            our_wscale=listener.wscale,
            our_window=listener.window,
            sack=bool(slots["sack"].of(items)),
            timestamps=bool(slots["timestamps"].of(items)),
            ecn=bool(slots["ecn"].of(items)),
            offload=self.hand_over is not None and listener.teardown,
        )
        if not listener.accept(connection):
            self.stats["unwanted"] += 1
            return
        self.connections[key] = connection
        self._unknown.pop(key, None)
        self.stats["opened"] += 1
        connection.receive(segment)

    @staticmethod
    def _in_window(connection: TcpConnection, segment: Segment) -> bool:
        """Whether a segment marked NEW is just data of this connection: by chance, its
        acknowledgment looks like a cookie (one in 2^27 or 2^23)."""
        ahead = segment.seq - connection.rcv_nxt & MASK
        behind = connection.snd_max - segment.ack & MASK
        return ahead <= connection.rcv_limit and behind <= connection.max_wnd + connection.settings.receive_buffer

    def _hold(self, key: bytes, peer: Peer, segment: Segment) -> None:
        """A segment for a listener that belongs to nothing: perhaps it overtook the first one."""
        known = self._unknown.get(key)
        if known is None and len(self._unknown) >= self.settings.unknown_limit:
            self.stats["unknown_dropped"] += 1
            return
        due = known.due if known is not None else self.now + self.settings.unknown_hold
        end = segment.seq + len(segment.payload) + (segment.flags & FIN)
        self._unknown[key] = _Unknown(due, peer, end & MASK, segment.ack, segment.flags)

    def _reset(self, peer: Peer, segment: Segment) -> None:
        if not segment.flags & RST:
            flags = segment.flags
            end = segment.seq + len(segment.payload) + (flags & FIN) + (1 if flags & SYN else 0)
            self._send_reset(peer, end & MASK, segment.ack, flags)

    def _send_reset(self, peer: Peer, end: int, ack: int, flags: int) -> None:
        """RFC 9293 section 3.5.2, group 1."""
        slot = self.link.reserve()
        if slot is None:
            return
        if flags & ACK:
            length = peer.build(slot, ack, 0, RST, 0, b"", False, 0)
        else:
            length = peer.build(slot, 0, end, RST | ACK, 0, b"", False, 0)
        self.link.commit(length, peer.l3, peer.l4, peer.tx_flags, peer.port)
        self.stats["resets_sent"] += 1

    # -- what connections call -------------------------------------------------------------

    def mark(self, connection: TcpConnection) -> None:
        """`flush` shall look at this connection."""
        self._dirty[connection] = None

    def ended(self, connection: TcpConnection) -> None:
        """A connection is over: keep its tuple for a while."""
        self.stats["failed" if connection.error is not None else "closed"] += 1
        self.stats["retransmissions"] += connection.retransmissions
        if self.connections.get(connection.key) is connection:
            del self.connections[connection.key]
            self.remember(connection.key, connection)
        self.blocked.discard(connection)
        if self.hand_over is not None and connection.offload and not connection.handing and not connection.reading:
            self.hand_over.flows.counts["software"] += 1

    def remember(self, key: bytes, closed: Closed) -> None:
        """Keep a tuple for a while."""
        # Moved to the end, so that the oldest come first.
        self._ended.pop(key, None)
        self._ended[key] = _Ended(self.now + self.settings.linger, closed)

    def remembered(self) -> Iterator[Closed]:
        """Connections that ended lately."""
        return (ended.connection for ended in self._ended.values())

    def offer(self, connection: TcpConnection) -> None:
        """The NIC may have this connection."""
        if self.hand_over is not None:
            self.hand_over.offer(connection)

    def abort_flow(self, record: Record) -> None:
        """Reset a connection that the NIC has."""
        if self.hand_over is not None:
            self.hand_over.abort(record)

    # -- the NIC's timestamp clock ---------------------------------------------------------

    def tsval(self) -> int:
        """The NIC's timestamp clock, as far as we know: at most a step behind, never ahead. The NIC
        goes on with its clock when it closes a connection, and the peer must not see that step back.
        """
        if self.now - self._clock_at >= self.ts_step:
            self._learn_clock(self._read_clock())
            self._clock_at = self.now
        return self._clock

    def _learn_clock(self, clock: int) -> None:
        if (clock - self._clock) & MASK < HALF:
            self._clock, self._clock_at = clock, self.now

    def _forget(self, key: bytes) -> None:
        connection = self.connections.pop(key, None)
        if connection is not None:  # it was in TIME_WAIT, which nobody resets
            connection.closed = True
            self.stats["closed"] += 1
        self._ended.pop(key, None)

    # -- output and time -------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._dirty)

    def flush(self, now: float) -> None:
        """Send what connections have to send, once per batch."""
        self.now = now
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for connection in dirty:
                connection.output()
                self._schedule(connection)
        if self.hand_over is not None:
            self.hand_over.flush()

    def unblock(self) -> None:
        """The transmit ring has room again."""
        for connection in self.blocked:
            self._dirty[connection] = None
        self.blocked.clear()

    def _schedule(self, connection: TcpConnection) -> None:
        deadline = connection.deadline()
        if deadline is not None and deadline < connection.heap_at:
            connection.heap_at = deadline
            heapq.heappush(self._heap, (deadline, next(self._order), connection))

    def next_deadline(self) -> float | None:
        """When `run_timers` is due; it may find nothing to do."""
        heap = self._heap
        while heap and (heap[0][2].closed or heap[0][0] != heap[0][2].heap_at):
            heapq.heappop(heap)
        times = [heap[0][0]] if heap else []
        if self._unknown:
            times.append(next(iter(self._unknown.values())).due)
        if self._ended:
            times.append(next(iter(self._ended.values())).until)
        if self.hand_over is not None and (due := self.hand_over.next_deadline()) is not None:
            times.append(due)
        return min(times) if times else None

    def run_timers(self, now: float) -> None:
        """Whatever is due now; `flush` afterwards."""
        self.now = now
        if self.hand_over is not None:
            self.hand_over.run_timers(now)
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, _, connection = heapq.heappop(heap)
            if connection.closed or at != connection.heap_at:
                continue
            connection.heap_at = float("inf")
            connection.timers()
            self._schedule(connection)
        while self._unknown:
            key, unknown = next(iter(self._unknown.items()))
            if unknown.due > now:
                break
            del self._unknown[key]
            if key not in self.connections and key not in self._ended:
                self._send_reset(unknown.peer, unknown.seq, unknown.ack, unknown.flags)
        while self._ended:
            key, ended = next(iter(self._ended.items()))
            if ended.until > now:
                break
            del self._ended[key]
