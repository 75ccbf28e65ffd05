"""Connections without a control block: who needs none has none, and whoever comes to need one notices nothing.

`endpoint.stats["built"]` counts control blocks. With the NIC that closes (model device), a request that is answered and closed never
makes one; every other course of a connection does, and must go on as if it had been there from the beginning.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from acceltcp.abi.messages import Status
from acceltcp.host.tcp import Listener, State, TcpConnection, TcpSettings

from ..test_flows import FlowWorld
from ..world import ACK, FIN, M32, RST, SYN, Client
from .bench import Bench, Talk, read

STREAM = random.Random(9).randbytes(1 << 20)
REQUEST = b"GET / HTTP/1.1\r\n\r\n"
MSS = 1448


class App:
    """An application on a connection: `answer` is written when `size` bytes have come, then `end` is called."""

    def __init__(self, world: LazyWorld, connection: TcpConnection) -> None:
        self.world, self.connection = world, connection
        self.got = b""
        self.ends: list[OSError | None] = []
        self.answered = False

    def connected(self) -> None: ...
    def writable(self) -> None: ...
    def handed_over(self, flow: object) -> None: ...

    def readable(self) -> None:
        self.got += read(self.connection)
        if len(self.got) >= self.world.size and not self.answered and not self.world.late:
            self.answer()

    def answer(self) -> None:
        self.answered = True
        if self.world.answer:
            self.connection.write(self.world.answer)
        self.world.end(self.connection)

    def closed(self, error: OSError | None) -> None:
        self.ends.append(error)


class LazyWorld(FlowWorld):
    """size: of a request. end: what follows the answer; late: the application answers when the test says so."""

    def __init__(
        self, *, size: int = len(REQUEST), answer: bytes = b"hello", late: bool = False,
        end: Callable[[TcpConnection], None] = TcpConnection.close, **options: object,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        self.size, self.answer, self.late, self.end = size, answer, late, end
        self.apps: list[App] = []

    def _accept(self, connection: TcpConnection) -> bool:
        self.connections.append(connection)
        self.apps.append(App(self, connection))
        connection.events = self.apps[-1]
        return True

    @property
    def built(self) -> int:
        return self.endpoint.stats["built"]

    def client(self, port: int = 40000, **options: object) -> Client:
        client = self.connect(port, **options)
        self.run(1, lambda: client.established)
        self.run(0.02)
        return client

    def finish(self, *clients: Client) -> None:
        """Clients close when they have heard everything; all is over afterwards."""
        for client in clients:
            if not client.reset:
                client.write(b"", fin=True)
        self.run(30, lambda: all(client.reset or (client.fin_acked and client.fin_seen) for client in clients))
        self.run(70, lambda: not self.endpoint.connections and not self.transport.flows)
        self.run(0.1)
        self.settled()
        assert self.endpoint.buffered == 0


def test_requests_that_are_answered_and_closed_build_nothing():
    world = LazyWorld()
    clients = [world.client(40_000 + number) for number in range(30)]
    for client in clients:
        client.write(REQUEST)
    world.run(0.2)
    assert world.built == 0 and all(bytes(client.got) == b"hello" and client.fin_seen for client in clients)
    world.finish(*clients)
    assert world.built == 0 and all(app.ends == [None] and app.got == REQUEST for app in world.apps)


@pytest.mark.parametrize("size", [0, 1, MSS, MSS + 1, 14_000])
@pytest.mark.parametrize("v6", [False, True])
def test_answers_of_any_size_that_fits(size, v6):
    world = LazyWorld(answer=STREAM[:size])
    client = world.client(v6=v6)
    client.write(REQUEST)
    world.run(1)
    assert bytes(client.got) == STREAM[:size]
    world.finish(client)
    assert world.built == 0


@pytest.mark.parametrize("size", [1000, 5000, 20_000])
def test_a_request_in_several_segments(size):
    """Acknowledged as RFC 9293 section 3.8.6.3 says, without a control block."""
    world = LazyWorld(size=size)
    client = world.client()
    client.seen.clear()
    client.write(STREAM[:size])
    world.run(1)
    assert world.apps[0].got == STREAM[:size] and bytes(client.got) == b"hello" and world.built == 0
    world.finish(client)


def test_a_large_request_builds_a_control_block():
    """Whoever sends much needs a window that grows."""
    world = LazyWorld(size=100_000)
    client = world.client()
    client.write(STREAM[:100_000])
    world.run(2)
    assert world.apps[0].got == STREAM[:100_000] and bytes(client.got) == b"hello"
    assert world.built == 1
    world.finish(client)


def test_an_answer_that_takes_its_time():
    """The request is acknowledged meanwhile."""
    world = LazyWorld(late=True)
    client = world.client()
    client.auto = True
    client.write(REQUEST)
    world.run(0.3)
    assert not client.out, "acknowledged"
    assert world.built == 0
    world.apps[0].answer()
    world.run(0.3)
    assert bytes(client.got) == b"hello" and client.fin_seen
    world.finish(client)
    assert world.built == 0


def keep_open(connection: TcpConnection) -> None:
    """No end."""


@pytest.mark.parametrize("end", [TcpConnection.shutdown, keep_open], ids=["half-close", "keep-alive"])
def test_who_does_not_close_builds(end):
    world = LazyWorld(end=end)
    client = world.client()
    client.write(REQUEST)
    world.run(0.3)
    assert world.built == 1 and bytes(client.got) == b"hello"
    client.write(b"and more")
    world.run(0.3)
    assert world.apps[0].got == REQUEST + b"and more"
    connection = world.connections[0]
    assert connection.state is (State.FIN_WAIT_2 if end is TcpConnection.shutdown else State.ESTABLISHED)
    if end is keep_open:
        connection.write(STREAM[:100_000])
        world.run(2)
        assert bytes(client.got) == b"hello" + STREAM[:100_000]
    connection.close()
    world.finish(client)
    assert world.apps[0].ends == [None]


@pytest.mark.parametrize("size", [30_000, 200_000])
def test_an_answer_that_does_not_fit(size):
    """It is sent by the host until the rest fits."""
    world = LazyWorld(answer=STREAM[:size])
    client = world.client()
    client.write(REQUEST)
    world.run(5)
    assert bytes(client.got) == STREAM[:size] and client.fin_seen and world.built == 1
    world.finish(client)


@pytest.mark.parametrize("status", [Status.TABLE_FULL, Status.BAD_ARGUMENT, Status.NO_SECRET])
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_refused_close(status, loss):
    world = LazyWorld(answer=STREAM[:8000], loss=loss, seed=4)
    world.refuse = status
    client = world.client()
    client.write(REQUEST)
    world.run(30, lambda: client.fin_seen)
    assert world.built == 1 and bytes(client.got) == STREAM[:8000]
    world.finish(client)
    assert world.apps[0].ends == [None]


def test_a_full_ring():
    """CLOSE waits for room; nothing is lost. (The event ring has 16 entries.)"""
    world = LazyWorld(tx=8)
    clients = [world.client(40_000 + number) for number in range(14)]
    for client in clients:
        client.write(REQUEST)
    world.run(5, lambda: all(client.fin_seen for client in clients))
    assert all(bytes(client.got) == b"hello" for client in clients)
    world.finish(*clients)


def test_no_memory_for_frames():
    world = LazyWorld(answer=STREAM[:9000])
    world.pool.allocate = lambda size: None
    client = world.client()
    client.write(REQUEST)
    world.run(1)
    assert bytes(client.got) == STREAM[:9000] and world.built == 1
    world.finish(client)


@pytest.mark.parametrize("when", ["before", "answer"])
def test_abort(when):
    world = LazyWorld(late=when == "before", end=TcpConnection.abort)
    client = world.client()
    client.write(REQUEST)
    world.run(0.2)
    if when == "before":
        world.connections[0].abort()
        world.run(0.2)
    assert client.reset and isinstance(world.apps[0].ends[0], ConnectionAbortedError) and not client.got
    assert not world.endpoint.connections and world.built == 0


def test_a_client_that_resets():
    world = LazyWorld(late=True)
    client = world.client()
    client.write(REQUEST)
    world.run(0.2)
    client.send(client.nxt, RST)
    world.run(0.1)
    assert isinstance(world.apps[0].ends[0], ConnectionResetError) and not world.endpoint.connections
    with pytest.raises(ConnectionResetError):
        world.connections[0].write(b"x")


@pytest.mark.parametrize("late", [False, True])
def test_fin_in_the_request(late):
    """The client has closed its half: LAST-ACK follows."""
    world = LazyWorld(late=late)
    client = world.client()
    client.auto = True
    client.send(client.nxt, ACK | FIN, REQUEST)
    client.out += REQUEST
    client.fin_wanted = True
    world.run(0.3)
    if late:
        assert world.connections[0].state is State.CLOSE_WAIT
        world.apps[0].answer()
    world.run(2, lambda: client.fin_seen)
    assert bytes(client.got) == b"hello" and world.apps[0].got == REQUEST
    world.run(5)
    world.settled()


def test_out_of_order_and_repeated_segments():
    world = LazyWorld(size=30)
    client = world.client()
    client.auto = True
    base = client.nxt
    for start, end in ((10, 20), (0, 10), (0, 10), (20, 30), (5, 25)):
        client.send(base + start, ACK, STREAM[start:end])
    client.nxt = client.una = base + 30 & M32
    world.run(0.5)
    assert world.apps[0].got == STREAM[:30] and bytes(client.got) == b"hello" and world.built == 1
    world.finish(client)


@pytest.mark.parametrize("odd", ["syn", "old", "no timestamps", "ack", "beyond", "behind", "reset"])
def test_odd_segments_first(odd):
    """None of them is taken, and the request that follows is answered as ever."""
    world = LazyWorld()
    client = world.client()
    before = world.apps[0].got
    nxt = client.nxt
    match odd:
        case "syn":
            client.send(nxt + 9, SYN)
        case "old":
            client.send(nxt, ACK, b"bad", tsval=client.tsval() - 10_000)
        case "no timestamps":
            client.send(nxt, ACK, b"bad", options=b"")
        case "ack":
            client.send(nxt, ACK, b"bad", ack=client.rcv + 5)
        case "beyond":
            client.send(nxt + 70_000, ACK, b"bad")
        case "behind":
            client.send(nxt - 3, ACK, b"bad")
        case "reset":
            client.send(nxt + 4, RST)
    world.run(0.2)
    assert world.apps[0].got == before == b"" and not world.apps[0].ends
    client.write(REQUEST)
    world.run(0.5)
    assert bytes(client.got) == b"hello" and world.apps[0].got == REQUEST
    world.finish(client)


def test_a_listener_without_teardown():
    world = LazyWorld()
    for listener in world.endpoint.listeners.values():
        listener.teardown = False
    client = world.client()
    client.write(REQUEST)
    world.run(0.3)
    assert bytes(client.got) == b"hello" and world.built == 1 and not world.commands[2:]
    client.write(b"", fin=True)
    world.run(5)
    assert world.apps[0].ends == [None] and not world.endpoint.connections


@pytest.mark.parametrize("which", ["listener", "settings"])
def test_laziness_switched_off(which):
    world = LazyWorld(settings=TcpSettings(lazy=which != "settings"))
    if which == "listener":
        for listener in world.endpoint.listeners.values():
            listener.lazy = False
    client = world.client()
    assert world.built == 1
    client.write(REQUEST)
    world.run(0.3)
    assert bytes(client.got) == b"hello" and client.fin_seen
    world.finish(client)


def test_handshake_in_the_host():
    """Set-up offload off, teardown on: still nothing is built."""
    world = LazyWorld()
    world.endpoint.listen(81, Listener(world._accept))
    client = Client(world, 40_000, dst_port=81)
    client.connect()
    world.run(0.1)
    client.write(REQUEST)
    world.run(0.3)
    assert bytes(client.got) == b"hello" and world.built == 0
    world.finish(client)


@pytest.mark.parametrize("loss", [0.05, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_on_a_bad_wire(seed, loss):
    world = LazyWorld(answer=STREAM[:6000], loss=loss, swap=0.1, seed=seed)
    clients = [world.connect(40_000 + number) for number in range(10)]
    for client in clients:
        client.write(REQUEST)
    world.run(100, lambda: all(client.fin_seen for client in clients))
    assert all(bytes(client.got) == STREAM[:6000] for client in clients), f"seed {seed}"
    assert all(app.got == REQUEST for app in world.apps)


# -- without a NIC that closes -----------------------------------------------------------------


def test_a_connection_that_only_receives_is_lazy():
    """Even without offload, until something is to be sent."""
    bench = Bench()
    talk = Talk(bench)
    talk.cookie(b"one")
    talk.say(ACK, b"two")
    bench.run(1)
    connection = bench.accepted[0]
    assert bench.endpoint.stats["built"] == 0 and read(connection) == b"onetwo"
    connection.write(b"three")
    (out,) = bench.turn()
    assert bench.endpoint.stats["built"] == 1 and out.payload == b"three" and out.seq == talk.irs + 1


def test_the_window_grows_for_a_connection_that_only_receives():
    """Lazy or not, a reader that keeps up is offered more than the first 64 KiB."""
    bench = Bench()
    talk = Talk(bench)
    talk.cookie(b"x")
    connection = bench.accepted[0]
    for _ in range(500):
        talk.say(ACK, bytes(MSS))
        read(connection)
    assert bench.out[-1].window << 7 > 200_000


def test_mac_address_that_changes_before_anything_is_built():
    bench = Bench()
    talk = Talk(bench)
    talk.cookie(b"x")
    talk.say(ACK, b"y", mac=bytes.fromhex("0200000000aa"))
    assert bench.out[-1].frame[:6].hex() == "0200000000aa"
