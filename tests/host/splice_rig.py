"""A client, a proxy and a server on one switch, in virtual time: three of our stacks (`pair.Side`), the proxy's on a NIC that splices.

`Rig.open` makes a connection from the client to the proxy and one from the proxy to the server. Everything is decided by the seed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from acceltcp.abi.wire import EtherType
from acceltcp.host.device import Device
from acceltcp.host.frames import FRAME_MEMORY_BYTES, FramePool
from acceltcp.host.net.routes import Route
from acceltcp.host.tcp import TcpConnection, TcpSettings
from acceltcp.host.tcp.flows import Flows
from acceltcp.host.tcp.handover import HandOver
from acceltcp.host.tcp.splices import Splices
from acceltcp.host.tcp.splicing import Outcome, Splicing

from .pair import Pair, Path, Side, User, Wiring, _Direction

PROXY_PORT, SERVER_PORT = 80, 8080
CLEAN = Path()


class _Switch(Wiring):
    """Everybody's MAC address follows from his IP address."""

    def resolve(self, route: Route) -> bytes | None:
        kind = EtherType.IPV6 if len(route.next_hop) == 16 else EtherType.IPV4
        return bytes([2, 0, 0, 0, 0, route.next_hop[-1]]) + self.side.mac + int(kind).to_bytes(2, "big")


class _Fork:
    """What the proxy sends, to whom it is addressed."""

    def __init__(self, ways: dict[int, _Direction]) -> None:
        self.ways = ways

    def put(self, frame: bytes) -> None:
        self.ways[frame[5]].put(frame)


@dataclass
class Hears:
    """The user of a splice, in virtual time. owners: who hears of the connections after LIMIT."""

    owners: tuple[object, ...] = ()
    halves: tuple[TcpConnection, ...] = ()
    spliced_at: float | None = None
    refusals: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    clock: Callable[[], float] = lambda: 0.0

    def spliced(self) -> None:
        assert self.spliced_at is None
        self.spliced_at = self.clock()

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)
        self._give_back()

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._give_back()

    def _give_back(self) -> None:
        for conn, owner in zip(self.halves, self.owners, strict=False):
            conn.events = owner  # type: ignore[assignment]
            if not conn.closed:
                owner.readable()  # type: ignore[attr-defined]


class Quiet:
    """Hears nothing: data stay in the receive buffer."""

    def __init__(self) -> None:
        self.ends: list[OSError | None] = []

    def connected(self) -> None: ...
    def readable(self) -> None: ...
    def writable(self) -> None: ...
    def handed_over(self, flow: object) -> None: ...

    def closed(self, error: OSError | None) -> None:
        self.ends.append(error)


class Rig(Pair):
    """a is the client, p the proxy, b the server. client_wire, server_wire: both directions of each."""

    def __init__(
        self, client_wire: Path = CLEAN, server_wire: Path = CLEAN, *, seed: object = 0, client: TcpSettings | None = None,
        proxy: TcpSettings | None = None, server: TcpSettings | None = None, splices: int = 16, lags: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(seed=seed, a=client, b=server)
        self.p = Side(self, 3, proxy or TcpSettings())
        self.p.other = self.b
        self.sides = (self.a, self.p, self.b)
        for side in self.sides:
            side.network = _Switch(side, side.endpoint.settings.mtu)
            side.endpoint.network = side.network  # type: ignore[assignment]
        self.a.other = self.p
        self.ways[1] = _Direction(self, self.p, client_wire, (seed, "from client"))
        self.ways[2] = _Direction(self, self.p, server_wire, (seed, "from server"))
        self.down = {
            1: _Direction(self, self.a, client_wire, (seed, "to client")),
            2: _Direction(self, self.b, server_wire, (seed, "to server")),
        }
        self.ways[3] = _Fork(self.down)  # type: ignore[assignment]
        self.p.transport.on_wire = self.p.sent
        self._give(splices, lags)
        self.random = random.Random(repr((seed, "rig")))
        self._ports = itertools.count(40000)

    def _give(self, splices: int, lags: float) -> None:
        p, chance = self.p, random.Random(repr((self.seed, "lags"))).random
        model = p.transport.give_splices(splices)
        model.later = lambda seconds, what: self.at(self.now + seconds, what)
        if lags:
            model.begin_lag = lambda: lags * chance()
            model.answer_lag = lambda: lags * chance()
            model.end_lag = lambda: lags * chance()
        self.model = model
        settings = p.endpoint.settings
        p.device = Device(p.transport, reset=False)
        p.device.prepare_flows(
            time_wait=settings.time_wait, fin_wait_2=settings.fin_wait_2, linger=settings.linger, max_rto=settings.max_rto
        )
        self.pool = FramePool(p.device.memory, settings.mtu + 22, limit=FRAME_MEMORY_BYTES)
        p.flows = Flows(p.queue, self.pool, step=p.device.flow_step_s(), mtu=settings.mtu)
        p.endpoint.hand_over = HandOver(p.endpoint, p.flows)
        self.splices = Splices(p.queue, self.pool, step=p.device.flow_step_s())
        self.splicing = p.endpoint.splices = Splicing(p.endpoint, self.splices)
        p._sweep()

    def at(self, when: float, what: Callable[[], object]) -> None:
        """Call `what` then, once; everybody takes a turn after it."""
        done: list[bool] = []

        def once() -> None:
            if not done:
                done.append(True)
                what()

        super().at(when, once)

    def open(
        self, client_user: User, server_user: User, *, v6: bool = False, setup: bool = False, like: bool = False
    ) -> tuple[TcpConnection, TcpConnection]:
        """The proxy's ends of two connections, established; their data wait in the receive buffers. like: the second is opened so
        that it can be spliced with the first."""
        accepted: list[TcpConnection] = []

        def accept(connection: TcpConnection) -> bool:
            connection.events = Quiet()
            accepted.append(connection)
            return True

        if not self.p.endpoint.bound and not self.p.endpoint.listeners:
            self.p.listen(accept, PROXY_PORT, setup=setup)
        self.b.serve(SERVER_PORT, setup=False, user=lambda: server_user)
        self.a.connect(client_user, PROXY_PORT, v6=v6)
        p = self.p
        if like:
            self.until(lambda: bool(accepted))
        p.endpoint.now = self.now
        server = p.endpoint.connect(
            self.b.address(v6), SERVER_PORT, local=p.address(v6), events=Quiet(),
            splice_with=accepted[0] if like else None,
        )
        self.touch(p)
        self.until(lambda: bool(accepted) and not server.opening and server_user.connection is not None)
        return accepted[0], server

    def hand_on(self, source: TcpConnection, sink: TcpConnection, most: int = 1 << 40) -> int:
        """What has been received on one goes to the other one, as before a splice."""
        moved = 0
        while moved < most and (data := source.consume(min(most - moved, 1 << 16))):
            sink.write(data)
            moved += len(data)
        if moved:
            self.touch(self.p)
        return moved

    def splice(
        self, client: TcpConnection, server: TcpConnection, limit: int | None = None, idle: float | None = None,
        owners: tuple[object, ...] = (),
    ) -> Hears:  # fmt: skip
        """Hand on what has come, and post SPLICE."""
        self.p.endpoint.now = self.now
        moved = self.hand_on(server, client) if limit is None else self.hand_on(server, client, limit)
        if limit is None:
            self.hand_on(client, server)
        hears = Hears(owners, (client, server), clock=lambda: self.now)
        assert self.splicing.refusal(client, server, idle) is None
        left = None if limit is None else limit - moved
        assert left is None or left > 0
        reason = self.splicing.begin(client, server, left, idle, hears)
        assert reason is None, reason
        self.touch(self.p)
        return hears

    def settled(self) -> None:
        """Nothing is left of any splice."""
        assert not self.splices.open and not self.splicing.keys and not self.splicing.dirty and not self.model.pairs
        assert not self.pool.used and not self.p.endpoint.buffered and not self.p.endpoint.queued
