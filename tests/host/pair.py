"""Two of our stacks on one cable, in virtual time.

`Pair` has two `Side`s: endpoint, queue and model device (`fake_device`) each, joined by a cable whose two
directions are `Path`s: loss, duplication, reordering, corruption, delay, rate. `User` is an application on a
connection: it writes a known stream and compares what comes with the other's, byte for byte. Everything is decided by
the seed and by nothing else, no clock is read: a run can be repeated exactly.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath

from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, ListenFlag
from acceltcp.abi.wire import EtherType
from acceltcp.host.device import Device
from acceltcp.host.frames import FRAME_MEMORY_BYTES, FramePool
from acceltcp.host.net import Addresses
from acceltcp.host.net.routes import Route
from acceltcp.host.queue import Queue
from acceltcp.host.rings import RX_PACKING
from acceltcp.host.tcp import Listener, TcpConnection, TcpEndpoint, TcpSettings
from acceltcp.host.tcp.flows import Flow, Flows
from acceltcp.host.tcp.handover import HandOver
from sim.pcap import PcapWriter

from .fake_device import FakeTransport

_TCP_I, _TCP_S, _TCP_M = RX_PACKING["tcp"]
_BLOCK = random.Random(20).randbytes(1_000_003)
_STREAM = memoryview(_BLOCK + _BLOCK)
_SWEEP_S = 0.01
_STUCK = 10_000
"""Turns at one instant of virtual time after which something never ends."""


def pattern(seed: int, at: int, count: int) -> memoryview:
    """Bytes `at` to `at + count` of the endless stream `seed`; at most 1,000,003 at a time."""
    start = (seed * 7919 + at) % len(_BLOCK)
    return _STREAM[start : start + count]


@dataclass(frozen=True)
class Path:
    """One direction of the cable.

    loss, duplicate, reorder, corrupt: probabilities per frame; one that is reordered comes `reorder_delay` s late,
    one that is corrupted has one bit flipped. delay: seconds; jitter: up to so many more, order kept. rate: bytes per
    second (0: no limit) behind a buffer of `buffer` bytes that drops what does not fit.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.005
    jitter: float = 0.0
    reorder_delay: float = 0.01
    rate: float = 0.0
    buffer: int = 256 * 1024


class _Direction:
    """Carries frames to `side`; counts what it did."""

    def __init__(self, pair: Pair, side: Side, path: Path, seed: object) -> None:
        self.pair, self.side, self.path = pair, side, path
        self.random = random.Random(repr(seed))
        self.tamper: Callable[[bytes], bytes | None] | None = None
        """Looks at every frame before anything else; None: the frame is lost."""
        self.carried = self.lost = self.overflowed = 0
        self._free_at = self._last = 0.0

    def put(self, frame: bytes) -> None:
        path, chance, now = self.path, self.random.random, self.pair.now
        if self.tamper is not None:
            tampered = self.tamper(frame)
            if tampered is None:
                self.lost += 1
                return
            frame = tampered
        if path.loss and chance() < path.loss:
            self.lost += 1
            return
        if path.corrupt and chance() < path.corrupt:
            spoiled = bytearray(frame)
            spoiled[self.random.randrange(len(frame))] ^= 1 << self.random.randrange(8)
            frame = bytes(spoiled)
        leaves = now
        if path.rate:
            leaves = max(now, self._free_at)
            if (leaves - now) * path.rate > path.buffer:
                self.overflowed += 1
                return
            leaves = self._free_at = leaves + len(frame) / path.rate
        due = max(self._last, leaves + path.delay + (path.jitter * chance() if path.jitter else 0.0))
        if path.reorder and chance() < path.reorder:
            due += path.reorder_delay
        else:
            self._last = due
        self.carried += 1
        self.pair.deliver(due, self.side, frame)
        if path.duplicate and chance() < path.duplicate:
            self.pair.deliver(due, self.side, frame)


class Wiring:
    """The network of a side: everything is the other side's, whose MAC address is known.

    Answers what an endpoint asks of `net.Network`. `known` False: the neighbour does not answer yet.
    """

    def __init__(self, side: Side, mtu: int) -> None:
        self.side, self.mtu = side, mtu
        self.known = True
        self.path_mtus: dict[bytes, int] = {}
        self.asked: list[bytes] = []

    def route(self, remote: bytes, local: bytes | None = None) -> Route:
        local = local if local is not None else self.side.address(v6=len(remote) == 16)
        return Route(remote, local, remote, local, 0, self.mtu)

    def path_mtu(self, remote: bytes) -> int:
        return self.path_mtus.get(remote, self.mtu)

    def confirm(self, address: bytes) -> None:
        """The neighbour is there: no news."""

    def resolve(self, route: Route) -> bytes | None:
        if not self.known:
            self.asked.append(route.next_hop)
            return None
        kind = EtherType.IPV6 if len(route.next_hop) == 16 else EtherType.IPV4
        return self.side.other.mac + self.side.mac + int(kind).to_bytes(2, "big")


class Side:
    """One host: 10.0.0.N and fd00::N, MAC 02:00:00:00:00:0N. flows: how many connections its NIC can close."""

    def __init__(
        self, pair: Pair, number: int, settings: TcpSettings, *, tx: int = 1024, rx: int = 1024, flows: int = 0,
        listeners: int = 8,
    ) -> None:  # fmt: skip
        self.pair, self.number = pair, number
        self.other: Side
        self.mac = bytes([2, 0, 0, 0, 0, number])
        self.transport = FakeTransport(clock=lambda: pair.now, flows=flows, listeners=listeners)
        self.device = Device(self.transport)
        self.device.set_mac(int.from_bytes(self.mac, "big"))
        self.device.set_secret()
        self.device.enable()
        self.queue = Queue(self.device, tx=tx, events=2 * tx, rx_free=rx, completions=rx)
        self.addresses = Addresses([f"10.0.0.{number}/24", f"fd00::{number}/64"], int.from_bytes(self.mac, "big"))
        self.endpoint = TcpEndpoint(
            self.queue, self.addresses, settings, now=pair.now, ts_clock=self.transport.ts_clock
        )
        self.network = Wiring(self, settings.mtu)
        self.endpoint.network = self.network  # type: ignore[assignment]
        self.queue.on_space = self.endpoint.unblock
        if flows:
            self.device.prepare_flows(
                time_wait=settings.time_wait, fin_wait_2=settings.fin_wait_2, linger=settings.linger,
                max_rto=settings.max_rto,
            )  # fmt: skip
            pool = FramePool(self.device.memory, settings.mtu + 22, limit=FRAME_MEMORY_BYTES)
            self.flows = Flows(self.queue, pool, step=self.device.flow_step_s(), mtu=settings.mtu)
            self.endpoint.hand_over = HandOver(self.endpoint, self.flows)
            self._sweep()
        self.writer: PcapWriter | None = None
        self.users: list[User] = []
        self.turns = 0
        self.wakes_at = float("inf")

    def _sweep(self) -> None:
        self.transport.sweep()
        self.pair.at(self.pair.now + _SWEEP_S, self._sweep)

    def address(self, v6: bool = False) -> bytes:
        """Its address, packed."""
        return bytes(self.addresses.interfaces[v6].ip.packed)

    def capture(self, path: FilePath) -> None:
        """Write what this side's port sends and receives to a file from now on."""
        self.writer = PcapWriter(path)

    # -- frames ------------------------------------------------------------------------------

    def sent(self, frame: bytes) -> None:
        if self.writer is not None:
            self.writer.write(int(self.pair.now * 1e9), frame)
        self.pair.ways[self.number].put(frame)

    def arrived(self, frame: bytes) -> None:
        if self.writer is not None:
            self.writer.write(int(self.pair.now * 1e9), frame)
        self.transport.inject(frame)

    def _packet(self, view: memoryview, items: tuple[int, ...]) -> None:
        if items[_TCP_I] >> _TCP_S & _TCP_M:
            self.endpoint.receive(view, items)

    def turn(self) -> None:
        """What the event loop does when it wakes."""
        self.turns += 1
        endpoint, queue, now = self.endpoint, self.queue, self.pair.now
        endpoint.now = now
        while queue.poll(self._packet):
            pass
        endpoint.run_timers(now)
        endpoint.flush(now)
        queue.flush()
        deadline = endpoint.next_deadline()
        self.wakes_at = float("inf") if deadline is None else deadline

    # -- listening and connecting --------------------------------------------------------------

    def listen(
        self, accept: Callable[[TcpConnection], bool], port: int = 80, *, window: int = 65535, wscale: int = 7,
        ecn: bool = False, setup: bool = True, teardown: bool = True, mss: int = 1460,
    ) -> Listener:  # fmt: skip
        """Listen on both addresses. setup: the NIC answers SYNs; else the host does."""
        listener = Listener(accept, window, wscale, teardown)
        if not setup:
            self.endpoint.listen(port, listener)
            return listener
        for v6 in (False, True):
            command = LISTEN_COMMAND.pack(
                opcode=CommandOpcode.LISTEN, address=int.from_bytes(self.address(v6).rjust(16, b"\0"), "little"), port=port,
                flags=(ListenFlag.ECN if ecn else 0) | (ListenFlag.IPV6 if v6 else 0), mss=mss, window=window,
                wscale=wscale,
            )  # fmt: skip
            self.endpoint.listeners[self.queue.run_command(command).value] = listener
        return listener

    def serve(self, port: int = 80, *, setup: bool = True, user: Callable[[], User] | None = None, **options: object) -> None:
        """Listen; every connection gets the user that `user` makes."""
        make = user or (lambda: User(self))

        def accept(connection: TcpConnection) -> bool:
            make().take(connection)
            return True

        self.listen(accept, port, setup=setup, **options)  # type: ignore[arg-type]

    def connect(self, user: User, port: int = 80, *, v6: bool = False, local_port: int = 0, options: object = None) -> User:
        """Open a connection to the other side."""
        self.endpoint.now = self.pair.now
        remote, local = self.other.address(v6), self.address(v6)
        user.connection = self.endpoint.connect(
            remote, port, local=local, local_port=local_port, options=options, events=user
        )
        self.pair.touch(self)
        return user


class User:
    """An application on a connection: writes `size` bytes of stream `seed`, then does what `close` says, and checks that it
    receives the first bytes of stream `expect`.

    close: "shutdown" (half-close when everything is written), "close" (when everything is written and the other's end was
    read), "eager" (at once when everything is written), "never". reading: takes what comes at once; else `read` does. ahead: unacknowledged bytes that it
    writes at most. reply: bytes that it must have received before it writes.
    """

    __slots__ = (
        "__weakref__", "ahead", "close", "connected_at", "connection", "ended_at", "ends", "error", "expect", "finished", "flow", "reading",
        "received", "reply", "seed", "side", "size", "was_connected", "written",
    )  # fmt: skip

    def __init__(
        self, side: Side, size: int = 0, *, seed: int = 1, expect: int = 1, close: str = "shutdown", reading: bool = True,
        ahead: int = 1 << 18, reply: int = 0,
    ) -> None:  # fmt: skip
        self.side, self.size, self.seed, self.expect, self.close = side, size, seed, expect, close
        self.reading, self.ahead, self.reply = reading, ahead, reply
        self.connection: TcpConnection | None = None
        self.received = self.written = 0
        self.was_connected = self.finished = False
        self.connected_at = self.ended_at = 0.0
        self.error: OSError | None = None
        self.ends = 0
        self.flow: Flow | None = None
        side.users.append(self)

    def take(self, connection: TcpConnection) -> None:
        """Use a connection that a listener accepted."""
        self.connection = connection
        connection.events = self
        self.connected()

    # -- ConnectionEvents ----------------------------------------------------------------------

    def connected(self) -> None:
        assert not self.was_connected, "connected twice"
        self.was_connected, self.connected_at = True, self.side.pair.now
        self.pump()

    def readable(self) -> None:
        if self.reading:
            self.read()

    def writable(self) -> None:
        self.pump()

    def handed_over(self, flow: Flow) -> None:
        self.flow = flow

    def closed(self, error: OSError | None) -> None:
        self.ends += 1
        assert self.ends == 1, "closed twice"
        if error is None and self.reading:
            self.read()
        self.error, self.ended_at = error, self.side.pair.now

    # -- the application -----------------------------------------------------------------------

    def read(self, limit: int = 1 << 40) -> int:
        """Take up to `limit` bytes of what is there and check them; how many."""
        connection = self.connection
        assert connection is not None
        total = 0
        while limit and (data := connection.consume(min(limit, 1 << 16))):
            assert data == pattern(self.expect, self.received, len(data)), f"wrong bytes near {self.received}"
            self.received += len(data)
            total += len(data)
            limit -= len(data)
        self.pump()
        return total

    def pump(self) -> None:
        """Write what there is room for; then the end."""
        connection = self.connection
        if connection is None or connection.closed or self.finished or not self.was_connected:
            return
        if self.received < self.reply:
            return
        while self.written < self.size:
            room = self.ahead - connection.unsent_or_unacked
            if room <= 0:
                return
            part = pattern(self.seed, self.written, min(self.size - self.written, room, 1 << 16))
            connection.write(part)
            self.written += len(part)
        if self.close == "shutdown":
            self.finished = True
            connection.shutdown()
        elif self.close == "eager" or (self.close == "close" and connection.fin_received):
            self.finished = True
            connection.close()

    @property
    def over(self) -> bool:
        """Its connection has ended, well or badly."""
        return self.ends > 0


class Pair:
    """Two sides and the cable. to_b, to_a: its directions. moderation: seconds within which what arrives is dealt with
    in one batch, as with interrupt moderation.
    """

    def __init__(
        self, to_b: Path = Path(), to_a: Path | None = None, *, seed: object = 0, a: TcpSettings | None = None,
        b: TcpSettings | None = None, moderation: float = 0.0, a_options: dict[str, int] | None = None,
        b_options: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.now = 100.0
        self.seed = seed
        self._events: list[tuple[float, int, Side | None, object]] = []
        self._order = itertools.count()
        self._moderation = moderation
        self._touched: dict[Side, None] = {}
        self.a = Side(self, 1, a or TcpSettings(), **(a_options or {}))
        self.b = Side(self, 2, b or TcpSettings(), **(b_options or {}))
        self.a.other, self.b.other = self.b, self.a
        self.sides: tuple[Side, ...] = (self.a, self.b)
        self.ways = {
            1: _Direction(self, self.b, to_b, (seed, "to b")),
            2: _Direction(self, self.a, to_b if to_a is None else to_a, (seed, "to a")),
        }
        """By the number of the side that sends."""
        for side in (self.a, self.b):
            side.transport.on_wire = side.sent

    @property
    def to_b(self) -> _Direction:
        """Carries what `a` sends."""
        return self.ways[1]

    @property
    def to_a(self) -> _Direction:
        """Carries what `b` sends."""
        return self.ways[2]

    def at(self, when: float, what: Callable[[], object]) -> None:
        """Call `what` then; both sides take a turn after it."""
        heapq.heappush(self._events, (when, next(self._order), None, what))

    def deliver(self, when: float, side: Side, frame: bytes) -> None:
        """A frame arrives at a side then."""
        if self._moderation:
            when = -(-when // self._moderation) * self._moderation
        heapq.heappush(self._events, (when, next(self._order), side, frame))

    def touch(self, side: Side) -> None:
        """Give a side a turn soon."""
        self._touched[side] = None

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, at most so much; whether `until` came true."""
        stop = self.now + seconds
        sides = self.sides
        for side in sides:
            side.turn()
        events, turns, instant = self._events, 0, self.now
        while not until():
            now = min(stop, *(side.wakes_at for side in sides))
            if self._touched:
                now = self.now
            if events and events[0][0] < now:
                now = events[0][0]
            self.now = now = max(now, self.now)
            turns = 0 if now != instant else turns + 1
            instant = now
            assert turns < _STUCK, f"nothing ends at {now}: {self.a.endpoint.stats} {self.b.endpoint.stats}"
            while events and events[0][0] <= now:
                _, _, side, what = heapq.heappop(events)
                if side is None:
                    what()  # type: ignore[operator]
                    self._touched.update(dict.fromkeys(sides))
                else:
                    side.arrived(what)  # type: ignore[arg-type]
                    self._touched[side] = None
            touched, self._touched = self._touched, {}
            for side in sides:
                if side in touched or side.wakes_at <= now or side.endpoint.pending:
                    side.turn()
            if now >= stop and not self._touched and not (events and events[0][0] <= now):
                return until()
        return True

    def until(self, condition: Callable[[], bool], seconds: float = 600.0) -> None:
        """Let time pass until it is true; fails, naming the seed, when that takes longer than `seconds`."""
        assert self.run(seconds, condition), (
            f"seed {self.seed!r}: not within {seconds:g} s of virtual time; a: {self.a.endpoint.stats}, b: {self.b.endpoint.stats}"
        )
