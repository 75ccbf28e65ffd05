"""The host's TCP endpoint: finds the connection for a segment, opens and forgets them.

Below it is a link (`reserve`, `commit`: a `queue.Queue`) and, for connections that we open, the network (`net.Network`);
above it listeners that take new connections. It runs no loop and keeps no clock of its own: call `receive` for each
packet, `flush` after each batch, `run_timers` when `next_deadline` has come, with the time each time.

A segment that carries a valid cookie is marked NEW by the NIC; so is every segment like it
until our first byte is acknowledged, which is why the own table is asked first.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import logging
import os
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING, Protocol

from acceltcp.abi.cookie import WSCALE_NONE
from acceltcp.abi.messages import ChecksumState, Verdict
from acceltcp.abi.wire import WINDOW_MAX, WSCALE_MAX, EtherType

from ..errors import DeviceError
from ..net.icmp import IcmpErrorKind
from ..rings import RX_PACKING
from .block import CLOCK_STALE_S, NEVER, ConnectionEvents, ControlBlock, Opening, headers_size
from .connection import TcpConnection
from .handover import HandOver, Record
from .handshake import Embryo, Handshakes, Listener, scale_for, syn_options
from .ports import EphemeralPorts, InitialSequence
from .segment import ACK, FIN, HALF, MALFORMED, MASK, RST, SYN, Closed, Peer, Segment, ends_of, supersedes
from .settings import ConnectionOptions, TcpSettings
from .splicing import Splicing

if TYPE_CHECKING:
    from ..net.network import Network

__all__ = ["Link", "TcpEndpoint"]

log = logging.getLogger("acceltcp.tcp")

_L3 = RX_PACKING["l3_offset"].item
_L4 = RX_PACKING["l4_offset"].item
_VERDICT_I, _VERDICT_S, _VERDICT_M = RX_PACKING["verdict"]
_L4SUM_I, _L4SUM_S, _L4SUM_M = RX_PACKING["l4_checksum"]
_IPV6_I, _IPV6_S, _IPV6_M = RX_PACKING["ipv6"]
_LISTENER_I, _LISTENER_S, _ = RX_PACKING["listener"]
_LISTENER_INDEX = RX_PACKING["listener_index"].item
_PORT = RX_PACKING["port"]
_PORT_I, _PORT_S, _PORT_M = _PORT
_TS_CLOCK = RX_PACKING["ts_clock"].item
_MSS = RX_PACKING["mss"].item
_GRANTED = RX_PACKING["wscale"].item
"""What a cookie grants lies together in one item: window shift in front, then bits."""
_SACK, _TIMESTAMPS, _ECN = (1 << RX_PACKING[name].shift for name in ("sack", "timestamps", "ecn"))
assert all(RX_PACKING[name].item == _GRANTED for name in ("sack", "timestamps", "ecn"))
assert RX_PACKING["wscale"].shift == 0 and RX_PACKING["wscale"].mask == WSCALE_NONE
assert RX_PACKING["mss"].shift == 0

_NO_MAC = bytes(6)
_NOWHERE = {
    4: _NO_MAC * 2 + EtherType.IPV4.to_bytes(2, "big"),
    16: _NO_MAC * 2 + EtherType.IPV6.to_bytes(2, "big"),
}
"""Link header, by size of an address, while we do not know where the peer is."""
_REUSE_S = 1.0
"""A tuple in TIME_WAIT for that long may be connected anew, if both sides have timestamps (RFC 6191)."""
_ISS_STEP = 0x20000
"""So far ahead of the old connection's numbers the new one starts then."""
_PATH_MTU_MIN = 552
"""Smaller packets than that nobody makes us send by ICMP (RFC 1191 allows 68; RFC 5927 section 7 advises a floor)."""
_PATH_MTU_MIN_V6 = 1280


class Link(Protocol):
    """Where frames go out. See `queue.Queue`."""

    def reserve(self) -> memoryview | None: ...

    def commit(
        self, length: int, l3_offset: int = 0, l4_offset: int = 0, flags: int = 0, port: int = 0
    ) -> None: ...

    def flush(self) -> None: ...


class _Ended:
    """A closed tuple, and until when it is remembered."""

    __slots__ = ("connection", "until")

    def __init__(self, until: float, connection: Closed) -> None:
        self.until, self.connection = until, connection


class _Unknown:
    """The last segment of a tuple that nobody knows (yet), as a reset would answer it."""

    __slots__ = ("ack", "due", "flags", "peer", "seq")

    def __init__(self, due: float, peer: Peer, seq: int, ack: int, flags: int) -> None:
        self.due, self.peer, self.seq, self.ack, self.flags = due, peer, seq, ack, flags


class TcpEndpoint:
    """All connections of one host on one link.

    addresses: our addresses, packed. ts_clock: reads the NIC's timestamp clock. ts_step: seconds per
    step of it. network: finds ways to peers that we connect to; None: we connect to nobody.
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
        network: Network | None = None,
    ) -> None:
        self.link = link
        self.addresses = addresses
        self.settings = settings or TcpSettings()
        self.direct = self.settings.direct
        self.memory_most = 2 * self.settings.memory_limit
        """Received data that nobody has read: with so much, no more are taken, whatever was promised."""
        self.now = now
        self.ts_step = ts_step
        self._read_clock = ts_clock
        self._clock, self._clock_at = ts_clock(), now
        self.network = network
        self.hand_over: HandOver | None = None
        """Who gives connections to the NIC; None: nobody."""
        self.splices: Splicing | None = None
        """Who has the NIC forward the packets of two connections; None: nobody."""
        self.connections: dict[bytes, TcpConnection] = {}
        self.listeners: dict[int, Listener] = {}
        """Index in the NIC's listen table -> who takes its connections."""
        self.bound: dict[int, dict[bytes, Listener]] = {}
        """Port -> address (b"" is any) -> listener for which the host does the handshakes."""
        self.handshakes = Handshakes(self)
        self.blocked: set[ControlBlock] = set()
        """Connections that found the transmit ring full."""
        self.buffered = 0
        """Bytes of received data that all connections keep."""
        self.queued = 0
        """Bytes that were written on all of them and not acknowledged."""
        self.stats = dict.fromkeys(
            (
                "opened", "closed", "failed", "segments", "bad_checksum", "unwanted", "duplicates_of_closed",
                "resets_sent", "unknown_dropped", "retransmissions", "connected", "syn_acks", "syn_overflow",
                "bad_options", "malformed", "spurious", "built", "path_mtu",
            ),
            0,
        )  # fmt: skip
        self._dirty: dict[ControlBlock, None] = {}
        self._ended: dict[bytes, _Ended] = {}
        self._unknown: dict[bytes, _Unknown] = {}
        self._seeking: dict[bytes, set[ControlBlock]] = {}
        """Remote address -> connections that wait to hear where it is."""
        self._heap: list[tuple[float, int, ControlBlock]] = []
        self._order = itertools.count()
        self._iss = InitialSequence()
        self._ports = EphemeralPorts(*self.settings.ports, self._tuple_in_use)

    # -- packets in ----------------------------------------------------------------------

    def receive(self, view: memoryview, items: tuple[int, ...]) -> None:
        """A packet whose completion has `tcp` set."""
        l3, l4 = items[_L3], items[_L4]
        stats = self.stats
        if items[_L4SUM_I] >> _L4SUM_S & _L4SUM_M != ChecksumState.GOOD:
            stats["bad_checksum"] += 1
            return
        stats["segments"] += 1
        clock = items[_TS_CLOCK]
        if clock != self._clock:
            self._learn_clock(clock)
        else:
            self._clock_at = self.now
        ipv6 = bool(items[_IPV6_I] >> _IPV6_S & _IPV6_M)
        segment = Segment(view, l3, l4, ipv6)
        if segment.flags == MALFORMED:
            stats["malformed"] += 1
            return
        key = segment.key
        verdict = items[_VERDICT_I] >> _VERDICT_S & _VERDICT_M
        new = verdict == Verdict.NEW
        connection = self.connections.get(key)
        if connection is not None and connection.splice is not None:
            connection.splice.receive(segment, verdict, view, items)
            known = True
        elif connection is not None:
            known = self._for_connection(connection, key, view, items, segment, new)
        else:
            known = self.hand_over is not None and self.hand_over.receive(key, segment, new)
        if not known:
            self._for_nobody(key, view, items, segment, new, ipv6)
        if not self.settings.batch:
            self.flush(self.now)
            self.link.flush()

    def _for_connection(
        self, connection: TcpConnection, key: bytes, view: memoryview, items: tuple[int, ...], segment: Segment, new: bool
    ) -> bool:
        """A segment with the tuple of a connection; False when it has made the tuple free for another."""
        if new and segment.seq - 1 & MASK != connection.irs & MASK and not self._in_window(connection, segment):
            if view[0] & 1:
                return True
            if not supersedes(segment, connection):
                # Both sides of the old connection ignore this reset; a client that really
                # has begun anew learns that it must try again.
                self.answer_with_reset(Peer(view, items[_L3], items[_L4], len(key) > 12, _PORT.of(items)), segment)
                return True
            # The client has proved a new handshake: it no longer knows the old connection.
            connection.reset_by_peer()
            self._forget(key)
            return False
        if segment.flags & (SYN | ACK | RST) == SYN and connection.in_time_wait and supersedes(segment, connection):
            self._forget(key)  # RFC 9293 section 3.6.1, RFC 6191
            return False
        if connection.receive(segment) and segment.mac != connection.peer.mac and not segment.mac[0] & 1:
            connection.moved(Peer(view, items[_L3], items[_L4], len(key) > 12, _PORT.of(items)))
        return True

    def _for_nobody(
        self, key: bytes, view: memoryview, items: tuple[int, ...], segment: Segment, new: bool, ipv6: bool
    ) -> None:
        """A segment that no connection has."""
        if view[0] & 1:
            return  # to a group of stations: RFC 1122 section 3.3.6, 4.2.3.10
        flags = segment.flags
        embryos = self.handshakes.embryos
        if embryos and not new and key in embryos and not flags & SYN:
            embryo = self.handshakes.acknowledged(key, segment)
            if embryo is not None:
                self._grow(key, embryo, segment)
            return
        ended = self._ended.get(key)
        first = flags & (SYN | ACK | RST) == SYN
        if ended is not None:
            fresh = (new and segment.seq - 1 & MASK != ended.connection.irs & MASK) or first
            if not fresh or not supersedes(segment, ended.connection):
                self.stats["duplicates_of_closed"] += 1
                if ended.connection.reset_strays and not flags & RST:
                    self.answer_with_reset(ended.connection.peer, segment)
                return
            del self._ended[key]
        l3, l4 = items[_L3], items[_L4]
        listener = self.listeners.get(items[_LISTENER_INDEX]) if items[_LISTENER_I] >> _LISTENER_S & 1 else None
        if new and listener is not None:
            self._open(key, view, items, segment, listener, ipv6)
            return
        if flags & RST:
            return
        address = key[16:32] if ipv6 else key[4:8]
        if first and self.bound and address in self.addresses:
            own = self._listener(address, int.from_bytes(key[-2:], "big"))
            if own is not None:
                self.handshakes.syn(key, Peer(view, l3, l4, ipv6, _PORT.of(items)), segment, own)
                return
        if listener is None and address not in self.addresses:
            return
        peer = Peer(view, l3, l4, ipv6, _PORT.of(items))
        if listener is None:
            self.answer_with_reset(peer, segment)
        else:
            self._hold(key, peer, segment)

    def _open(
        self, key: bytes, view: memoryview, items: tuple[int, ...], segment: Segment, listener: Listener, ipv6: bool
    ) -> None:
        """A segment marked NEW."""
        granted = items[_GRANTED]
        shift = granted & WSCALE_NONE
        wscale: int | None = None
        window = segment.window
        if shift != WSCALE_NONE:
            wscale = shift if shift < WSCALE_MAX else WSCALE_MAX
            window <<= wscale
        connection = TcpConnection(
            self, key, Peer(view, items[_L3], items[_L4], ipv6, items[_PORT_I] >> _PORT_S & _PORT_M),
            segment.ack - 1 & MASK, segment.seq - 1 & MASK, items[_MSS], wscale, listener.wscale, listener.window, window,
            granted & _SACK != 0, granted & _TIMESTAMPS != 0, segment.tsval, granted & _ECN != 0,
            listener.teardown and self.hand_over is not None,
        )  # fmt: skip
        connection.rcv_mss = listener.mss
        self._accept(key, connection, listener, segment)

    def _grow(self, key: bytes, embryo: Embryo, segment: Segment) -> None:
        """The last acknowledgment of a handshake of ours."""
        listener = embryo.listener
        connection = TcpConnection(
            self, key, embryo.peer, embryo.iss, embryo.irs, embryo.mss, embryo.wscale, listener.wscale, listener.window,
            segment.window << (embryo.wscale or 0), embryo.sack, embryo.timestamps, embryo.ts_recent, embryo.ecn,
            listener.teardown and self.hand_over is not None,
        )  # fmt: skip
        connection.rcv_mss = listener.mss
        if embryo.tries:
            connection.build()
            connection.rtt.handshake_timed_out()
        if self._accept(key, connection, listener, segment):
            self.handshakes.forget(key)

    def _accept(self, key: bytes, connection: TcpConnection, listener: Listener, segment: Segment) -> bool:
        if self.network is not None and self.network.path_mtus:
            connection.mss = connection.fitting_mss(self.path_mtu(connection))
        if not (listener.lazy and self.settings.lazy):
            connection.build()
        if not listener.accept(connection):
            self.stats["unwanted"] += 1
            return False
        self.connections[key] = connection
        self._unknown.pop(key, None)
        self.stats["opened"] += 1
        connection.receive(segment)
        return True

    @staticmethod
    def _in_window(connection: TcpConnection, segment: Segment) -> bool:
        """Whether a segment marked NEW is just data of this connection: by chance, its
        acknowledgment looks like a cookie (one in 2^27 or 2^23)."""
        ahead = segment.seq - connection.rcv_nxt & MASK
        behind = connection.snd_nxt - segment.ack & MASK
        window = connection.max_wnd if connection.built else connection.snd_wnd
        limit = connection.rcv_limit if connection.built else connection.settings.receive_buffer
        return ahead <= limit and behind <= window + connection.settings.receive_buffer

    def _hold(self, key: bytes, peer: Peer, segment: Segment) -> None:
        """A segment for a listener that belongs to nothing: perhaps it overtook the first one."""
        known = self._unknown.get(key)
        if known is None and len(self._unknown) >= self.settings.unknown_limit:
            self.stats["unknown_dropped"] += 1
            return
        due = known.due if known is not None else self.now + self.settings.unknown_hold
        end = segment.seq + len(segment.payload) + (segment.flags & FIN)
        self._unknown[key] = _Unknown(due, peer, end & MASK, segment.ack, segment.flags)

    def answer_with_reset(self, peer: Peer, segment: Segment) -> None:
        """RST for a segment that belongs to nothing (RFC 9293 section 3.5.2, group 1)."""
        if not segment.flags & RST:
            flags = segment.flags
            end = segment.seq + len(segment.payload) + (flags & FIN) + (1 if flags & SYN else 0)
            self._send_reset(peer, end & MASK, segment.ack, flags)

    def _send_reset(self, peer: Peer, end: int, ack: int, flags: int) -> None:
        slot = self.link.reserve()
        if slot is None:
            return
        if flags & ACK:
            length = peer.build(slot, ack, 0, RST, 0, b"", False, 0)
        else:
            length = peer.build(slot, 0, end, RST | ACK, 0, b"", False, 0)
        self.link.commit(length, peer.l3, peer.l4, peer.tx_flags, peer.port)
        self.stats["resets_sent"] += 1

    # -- listeners of the host -----------------------------------------------------------

    def listen(self, port: int, listener: Listener, address: bytes = b"") -> None:
        """Do the handshakes of a port ourselves. Raises `OSError` with EADDRINUSE when somebody does."""
        there = self.bound.setdefault(port, {})
        if address in there:
            raise OSError(errno.EADDRINUSE, f"there is already a listener on port {port}")
        there[address] = listener

    def unlisten(self, port: int, address: bytes = b"") -> None:
        """Undo `listen`."""
        there = self.bound.get(port, {})
        listener = there.pop(address, None)
        if not there:
            self.bound.pop(port, None)
        embryos = self.handshakes.embryos
        for key in [key for key, embryo in embryos.items() if embryo.listener is listener]:
            del embryos[key]

    def _listener(self, address: bytes, port: int) -> Listener | None:
        there = self.bound.get(port)
        if there is None:
            return None
        return there.get(address) or there.get(b"")

    # -- connections that we open --------------------------------------------------------

    def connect(
        self,
        remote: bytes,
        port: int,
        *,
        local: bytes | None = None,
        local_port: int = 0,
        options: ConnectionOptions | None = None,
        offload: bool = True,
        events: ConnectionEvents | None = None,
        splice_with: TcpConnection | None = None,
    ) -> TcpConnection:
        """Open a connection to an address (packed) and port. `events` hears `connected`, or `closed` with the reason.

        local: which of our addresses (None: as the route says); local_port: 0 takes a free one. offload: the NIC
        may close it. splice_with: offer what that one has (timestamps or none, no larger segments than its peer takes), so
        that the two can be spliced.

        Raises `OSError`: ENETUNREACH without a route, EADDRNOTAVAIL for an address that is not ours or without a free
        port, EADDRINUSE for a tuple in use.
        """
        if self.network is None:
            raise OSError(errno.ENETUNREACH, "this endpoint has no network to connect over")
        if local is not None and local not in self.addresses:
            raise OSError(errno.EADDRNOTAVAIL, "the local address is none of this NIC's")
        route = self.network.route(remote, local)
        source = route.local
        tail = port.to_bytes(2, "big")
        if local_port:
            key = remote + source + tail + local_port.to_bytes(2, "big")
            if self._taken(key):
                raise OSError(errno.EADDRINUSE, f"port {local_port} is connected to that address already")
        else:
            local_port = self._ports.choose(source, remote, port)
            key = remote + source + tail + local_port.to_bytes(2, "big")
        settings = self.settings
        rcvbuf = options.rcvbuf if options is not None and options.rcvbuf else settings.receive_buffer
        iss = self.new_iss(key)
        old = self.connections.get(key)
        if old is not None:
            iss = old.snd_nxt + _ISS_STEP & MASK
            self._forget(key)
        self._ended.pop(key, None)
        connection = TcpConnection(
            self, key, Peer.route(_NOWHERE[len(remote)], source, remote, local_port, port, 0), iss, 0, 0xFFFF, 0,
            max(settings.window_scale, scale_for(rcvbuf)), min(rcvbuf, WINDOW_MAX), 0, settings.sack,
            settings.timestamps and (splice_with is None or splice_with.timestamps), 0, settings.ecn,
            offload and self.hand_over is not None, options,
        )  # fmt: skip
        mss = settings.mtu - headers_size(len(remote) == 16)
        for other in (connection.opts.maxseg, splice_with.peer_mss if splice_with is not None else 0):
            mss = min(mss, other or mss)
        connection.rcv_mss = mss
        connection.events = events
        connection.snd_una = connection.iss
        connection.opening = Opening.SYN_SENT
        connection.build()
        self.connections[key] = connection
        self.mark(connection)
        return connection

    def connected(self, connection: ControlBlock) -> None:
        """A connection that we opened is established."""
        self.stats["connected"] += 1

    def _taken(self, key: bytes) -> bool:
        """Whether a tuple cannot be connected now; one in TIME_WAIT can after a while (RFC 6191)."""
        connection = self.connections.get(key)
        if connection is not None:
            if not connection.in_time_wait or not connection.timestamps:
                return True
            since = (connection.wait_at or NEVER) - self.settings.time_wait
            return self.now - since < _REUSE_S
        if self.hand_over is not None and key in self.hand_over.records:
            return True
        if self.splices is not None and key in self.splices.keys:
            return True
        ended = self._ended.get(key)
        if ended is not None and not ended.connection.timestamps:
            return True
        return key in self.handshakes.embryos

    def _tuple_in_use(self, local: bytes, remote: bytes, remote_port: int, port: int) -> bool:
        return (
            port in self.bound
            or self._taken(remote + local + remote_port.to_bytes(2, "big") + port.to_bytes(2, "big"))
        )

    def locate(self, connection: ControlBlock) -> bool:
        """Whether we know where a connection's peer is; if not, it is asked for, and the connection is marked later."""
        peer = connection.peer
        if peer.mac != _NO_MAC:
            return True
        network = self.network
        assert network is not None
        ends = ends_of(connection.key)
        try:
            route = network.route(ends.remote, ends.local)
        except OSError as error:
            connection.end(error)
            return False
        header = network.resolve(route)
        if header is None:
            self._seeking.setdefault(route.next_hop, set()).add(connection)
            return False
        connection.peer = Peer.route(
            header, ends.local, ends.remote, ends.local_port, ends.remote_port, route.port,
            tos=connection.opts.tos, ttl=connection.opts.ttl,
        )  # fmt: skip
        connection.mss = connection.fitting_mss(self.path_mtu(connection))
        return True

    def neighbour_found(self, address: bytes) -> None:
        """From the network: it is known where a next hop is."""
        for connection in self._seeking.pop(address, ()):
            self.mark(connection)

    def neighbour_failed(self, address: bytes) -> None:
        """From the network: a next hop does not answer."""
        for connection in self._seeking.pop(address, ()):
            connection.end(OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)))

    def doubt(self, connection: ControlBlock) -> None:
        """A peer does not answer: perhaps its next hop has another MAC address now. Asking for it makes the network
        check it."""
        if self.network is None:
            return
        ends = ends_of(connection.key)
        try:
            header = self.network.resolve(self.network.route(ends.remote, ends.local))
        except OSError:
            return  # the peer found us by a way that we have no route for
        if header is not None and header != connection.peer.link and len(header) == connection.peer.l3:
            connection.peer.link = header

    def syn_options(self, connection: ControlBlock) -> bytes:
        """Of a connection's SYN."""
        return syn_options(connection, self.tsval(), self.settings.mtu)

    def new_iss(self, key: bytes) -> int:
        """RFC 6528."""
        ends = ends_of(key)
        return self._iss.iss(ends.local, ends.remote, ends.local_port, ends.remote_port, self.now)

    # -- what ICMP says ------------------------------------------------------------------

    def path_mtu(self, connection: ControlBlock) -> int:
        """Largest packet on the way to a connection's peer, as far as we know."""
        if self.network is None:
            return self.settings.mtu
        return min(self.settings.mtu, self.network.path_mtu(ends_of(connection.key).remote))

    def icmp_error(self, kind: IcmpErrorKind, mtu: int, key: bytes, seq: int) -> bool:
        """ICMP says that a segment of ours with that sequence number has not arrived; mtu: what would pass, for TOO_BIG. Whether
        it is believed: only for numbers that are in flight (RFC 5927 section 4.1)."""
        connection = self.connections.get(key)
        if connection is None or not connection.built:
            return False
        if seq - connection.snd_una & MASK >= max(connection.snd_nxt - connection.snd_una, 1):
            return False
        if kind is IcmpErrorKind.TOO_BIG:
            floor = _PATH_MTU_MIN_V6 if len(key) > 12 else _PATH_MTU_MIN
            self.stats["path_mtu"] += 1
            connection.path_mtu(max(mtu, floor))
        else:
            connection.soft(OSError(kind.errno, os.strerror(kind.errno)))
        return True

    # -- what connections call -------------------------------------------------------------

    def mark(self, connection: ControlBlock) -> None:
        """`flush` shall look at this connection."""
        self._dirty[connection] = None

    def ended(self, connection: TcpConnection) -> None:
        """A connection is over: keep its tuple for a while."""
        self.stats["failed" if connection.error is not None else "closed"] += 1
        if connection.built:
            self.stats["retransmissions"] += connection.retransmissions
        if self.connections.get(connection.key) is connection:
            del self.connections[connection.key]
            if connection.opening != Opening.SYN_SENT:
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

    # -- memory ----------------------------------------------------------------------------

    @property
    def pressed(self) -> bool:
        """Whether received data take all the memory that they may."""
        return self.buffered >= self.settings.memory_limit

    # -- the NIC's timestamp clock ---------------------------------------------------------

    def tsval(self) -> int:
        """The NIC's timestamp clock, as far as we know: perhaps behind, never ahead. The NIC
        goes on with its clock when it closes a connection, and the peer must not see that step back.
        """
        if self.now - self._clock_at >= CLOCK_STALE_S:
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
            connection.uncount()
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
                if connection.closed:
                    continue
                try:
                    connection.output()
                    self._schedule(connection)
                except DeviceError:
                    raise
                except Exception as error:
                    self._give_up(connection, error)
        if self.hand_over is not None:
            self.hand_over.flush()
        if self.splices is not None:
            self.splices.flush()

    def _give_up(self, connection: ControlBlock, error: Exception) -> None:
        """A fault of ours, or of a callback: it costs one connection, not all."""
        log.error("a connection failed: it is given up", exc_info=error)
        with contextlib.suppress(Exception):
            connection.end(ConnectionAbortedError(errno.ECONNABORTED, f"internal error: {error}"))

    def unblock(self) -> None:
        """The transmit ring has room again."""
        for connection in self.blocked:
            self._dirty[connection] = None
        self.blocked.clear()

    def _schedule(self, connection: ControlBlock) -> None:
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
        for other in (self.hand_over, self.splices, self.handshakes):
            due = other.next_deadline() if other is not None else None
            if due is not None:
                times.append(due)
        return min(times) if times else None

    def run_timers(self, now: float) -> None:
        """Whatever is due now; `flush` afterwards."""
        self.now = now
        if self.hand_over is not None:
            self.hand_over.run_timers(now)
        if self.splices is not None:
            self.splices.run_timers(now)
        self.handshakes.run_timers(now)
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, _, connection = heapq.heappop(heap)
            if connection.closed or at != connection.heap_at:
                continue
            connection.heap_at = NEVER
            try:
                connection.timers()
                self._schedule(connection)
            except DeviceError:
                raise
            except Exception as error:
                self._give_up(connection, error)
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
