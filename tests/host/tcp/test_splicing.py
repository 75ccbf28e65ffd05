"""Splicing on the host's side, in virtual time: every byte arrives, whenever the NIC takes over and whatever the wires do.

The NIC is a model on packets (`fake_splice`), client and server are stacks of their own (`splice_rig`).
"""

from __future__ import annotations

import errno
import random
from functools import cached_property

import pytest

from acceltcp.abi.messages import CommandOpcode, Status, Verdict
from acceltcp.host.errors import DeviceTimeoutError
from acceltcp.host.tcp import State, TcpSettings
from acceltcp.host.tcp.segment import RST
from acceltcp.host.tcp.splices import SideEnd

from ..pair import Path, User, pattern
from ..splice_rig import Hears, Quiet, Rig

REFUSALS = (Status.TABLE_FULL, Status.DUPLICATE, Status.NO_SECRET, Status.BAD_ARGUMENT, Status.BAD_ADDRESS)


def random_rig(seed: object, *, loss: bool = True, kind: type[Rig] = Rig) -> tuple[Rig, random.Random]:
    """Wires and settings drawn at random."""
    rng = random.Random(repr(seed))

    def part(most: float) -> float:
        return rng.choice((0.0, rng.random() * most)) if loss else 0.0

    def wire() -> Path:
        return Path(
            loss=part(0.05), duplicate=part(0.05), reorder=part(0.1), delay=rng.choice((0.0002, 0.002, 0.02)),
            jitter=part(0.003), rate=rng.choice((0, 0, 3e6)), buffer=60_000,
        )  # fmt: skip

    timestamps = rng.random() < 0.6

    def settings(proxy: bool = False) -> TcpSettings:
        return TcpSettings(
            retries=40, syn_retries=20, timestamps=timestamps, sack=rng.random() < 0.7, ecn=rng.random() < 0.3,
            window_scale=rng.choice((0, 2, 7, 10 if proxy else 14)), receive_buffer=rng.choice((1 << 14, 1 << 16, 1 << 20)),
            mtu=1500, delayed_ack=rng.choice((0.0, 0.04)), time_wait=1.0,
        )  # fmt: skip

    rig = kind(
        wire(), wire(), seed=seed, client=settings(), proxy=settings(True), server=settings(), lags=rng.choice((0.0, 0.005, 0.05))
    )
    return rig, rng


class Relay:
    """What hands on in software before a splice: the proxy of a test. `stop` at any time."""

    def __init__(self, rig: Rig, client, server, limit: int | None = None) -> None:
        self.rig, self.client, self.server, self.limit = rig, client, server, limit
        self.down = 0
        self.on = True
        client.events = server.events = self

    def connected(self) -> None: ...
    def handed_over(self, flow: object) -> None: ...
    def closed(self, error: OSError | None) -> None: ...

    def readable(self) -> None:
        if self.on:
            if self.limit is None:
                self.rig.hand_on(self.client, self.server)
            self.down += self.rig.hand_on(self.server, self.client, (self.limit or 1 << 40) - self.down)

    writable = readable


# -- until both have closed ----------------------------------------------------------------------


def run_unbounded(seed: object, refuse: Status | None = None) -> Rig:
    rig, rng = random_rig(seed)
    up, down = rng.randrange(0, 120_000), rng.randrange(0, 120_000)
    ahead = rng.choice((4000, 20_000, 1 << 18))
    one = User(rig.a, up, seed=1, expect=2, ahead=ahead)
    two = User(rig.b, down, seed=2, expect=1, ahead=ahead, reply=rng.choice((0, up // 2)))
    client, server = rig.open(one, two, v6=rng.random() < 0.3)
    relay = Relay(rig, client, server)
    relay.readable()
    rig.run(rng.choice((0.0, rng.random() * 0.3)))
    if refuse is not None:
        rig.p.transport.command_hook = lambda fields: refuse if fields["opcode"] == CommandOpcode.SPLICE else None
    if any(conn.fin_received or conn.closed for conn in (client, server)):
        return rig  # too late: it is half-closed
    relay.on = False
    hears = rig.splice(client, server)

    def software() -> None:
        """After a refusal."""
        relay.on = True
        for conn, other in ((client, server), (server, client)):
            conn.events = relay
            rig.hand_on(conn, other)

    def over() -> bool:
        if hears.refusals and not relay.on:
            software()
        if relay.on:
            for conn, other in ((client, server), (server, client)):
                if conn.fin_received and not conn.receive_buffer and not other.fin_queued:
                    other.shutdown()
                    rig.touch(rig.p)
        return one.over and two.over

    rig.until(over, 400)
    what = f"seed {seed!r}: "
    assert (one.error, two.error) == (None, None), what
    assert (one.received, two.received) == (down, up), what
    if refuse is None:
        rig.until(lambda: bool(hears.outcomes), 60)
        outcome = hears.outcomes[0]
        assert outcome.status is Status.OK and outcome.error is None and not hears.refusals, what
        assert client.closed and server.closed
    else:
        assert hears.refusals == [refuse.name.lower()], what
    rig.run(80)
    rig.settled()
    return rig


@pytest.mark.parametrize("seed", range(100))
def test_until_both_have_closed(seed):
    run_unbounded(seed)


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("seed", range(4))
def test_refused(seed, status):
    run_unbounded(("refused", seed), status)


class Inverting(Rig):
    """The proxy inverts what it relays in software."""

    def hand_on(self, source, sink, most: int = 1 << 40) -> int:
        data = bytes(source.consume(min(most, 1 << 20)))
        sink.write(bytes(255 - byte for byte in data))
        self.relayed[sink] = self.relayed.get(sink, 0) + len(data)
        self.touch(self.p)
        return len(data)

    @cached_property
    def relayed(self) -> dict[object, int]:
        """Bytes for each of the proxy's connections."""
        return {}


class Receiver(User):
    """Knows what is inverted: all, before the connections are spliced."""

    __slots__ = ("inverted",)
    inverted: int

    def read(self, limit: int = 1 << 40) -> int:
        count = 0
        while data := self.connection.consume(1 << 16):
            at, count = self.received, count + len(data)
            want = bytes(pattern(self.expect, at, len(data)))
            first = max(min(self.inverted - at, len(data)), 0)
            assert data[:first] == bytes(255 - byte for byte in want[:first]), f"wrong bytes near {at}, of the proxy"
            assert data[first:] == want[first:], f"wrong bytes near {at}, behind the proxy's {self.inverted}"
            self.received += len(data)
        self.pump()
        return count


@pytest.mark.parametrize("early", [False, True])
def test_what_the_client_repeats_does_not_take_the_place_of_what_the_proxy_wrote(early):
    """The proxy's acknowledgment was lost, and so were its bytes for the server. early: the repetition comes before the NIC has begun."""
    rig = Inverting()
    one, two = Receiver(rig.a, 0, seed=1, expect=2, close="never"), Receiver(rig.b, 0, seed=2, expect=1, close="never")
    one.inverted = two.inverted = 1 << 40
    client, server = rig.open(one, two)
    own = bytes(255 - byte for byte in pattern(1, 0, 16))
    rig.down[1].tamper = lambda frame: None
    rig.down[2].tamper = lambda frame: None if own in frame else frame
    one.size = 5000
    one.pump()
    rig.touch(rig.a)
    rig.until(lambda: client.buffered == 5000)
    if early:
        rig.model.begin_lag = lambda: 3.5
    hears = rig.splice(client, server)
    one.inverted, two.inverted = rig.relayed[client], rig.relayed[server]
    rig.run(4)
    rig.down[1].tamper = rig.down[2].tamper = lambda frame: frame
    rig.until(lambda: hears.spliced_at is not None and two.received == 5000 and not one.connection.unsent_or_unacked, 10)
    assert rig.p.transport.counters["splice_stale"] or early
    for user in (one, two):
        user.connection.shutdown()
        rig.touch(user.side)
    rig.until(lambda: bool(hears.outcomes), 60)
    assert hears.outcomes[0].status is Status.OK
    rig.run(80)
    rig.settled()


@pytest.mark.parametrize("seed", range(40))
def test_what_the_proxy_wrote_arrives_whatever_is_lost(seed):
    rig, rng = random_rig(("own", seed), kind=Inverting)
    up, down = rng.randrange(20_000, 120_000), rng.randrange(20_000, 120_000)
    one, two = Receiver(rig.a, up, seed=1, expect=2), Receiver(rig.b, down, seed=2, expect=1)
    one.inverted = two.inverted = 1 << 40
    client, server = rig.open(one, two, v6=rng.random() < 0.3)
    relay = Relay(rig, client, server)
    relay.readable()
    rig.run(rng.choice((0.0, rng.random() * 0.3)))
    if any(conn.fin_received or conn.closed for conn in (client, server)):
        return
    relay.on = False
    hears = rig.splice(client, server)
    one.inverted, two.inverted = rig.relayed[client], rig.relayed[server]
    rig.until(lambda: one.over and two.over, 400)
    assert (one.error, two.error, one.received, two.received) == (None, None, down, up)
    rig.until(lambda: bool(hears.outcomes), 60)
    assert hears.outcomes[0].status is Status.OK
    rig.run(80)
    rig.settled()


def test_copies_that_find_no_room():
    """The host learns what has arrived though all copies that told of it were lost: it asks for others."""
    rig = Rig()
    one, two = (User(rig.a, 9000, seed=1, expect=2, close="never"), User(rig.b, 40_000, seed=2, expect=1, close="never"))
    client, server = rig.open(one, two)
    lost, asked, takes = 0, [], rig.model.takes

    def without_room(*packet):
        nonlocal lost
        fate = takes(*packet)
        if fate is None or fate[2] != Verdict.GUARD or asked:
            return fate
        lost += fate[0]
        return (False, *fate[1:])

    rig.model.takes = without_room
    rig.p.transport.command_hook = lambda fields: asked.append(rig.now) if fields["opcode"] == CommandOpcode.SPLICE_UPDATE else None
    rig.run(0.001)
    hears = rig.splice(client, server)
    assert client.unsent_or_unacked or server.unsent_or_unacked
    rig.until(lambda: not (client.unsent_or_unacked or server.unsent_or_unacked), 3)
    assert (one.received, two.received) == (40_000, 9000)
    for user in (one, two):
        user.connection.shutdown()
        rig.touch(user.side)
    rig.until(lambda: bool(hears.outcomes), 60)
    assert hears.outcomes[0].status is Status.OK and hears.outcomes[0].error is None
    assert lost and 1 <= len(asked) <= 3
    rig.run(80)
    rig.settled()


# -- with a limit --------------------------------------------------------------------------------


def run_bounded(seed: object) -> None:
    rig, rng = random_rig(seed)
    limit = rng.choice((1, rng.randrange(1, 400), rng.randrange(1, 100_000)))
    beyond = rng.choice((0, 1, rng.randrange(0, 20_000)))
    up = rng.choice((0, rng.randrange(1, 20_000)))
    close = rng.choice(("shutdown", "never"))
    one = User(rig.a, up, seed=1, expect=2, close="never")
    two = User(rig.b, limit + beyond, seed=2, expect=1, close=close, ahead=rng.choice((4000, 1 << 18)))
    client, server = rig.open(one, two, v6=rng.random() < 0.3)
    rig.run(rng.choice((0.0, rng.random() * 0.2)))
    if server.buffered >= limit or server.fin_received:
        return
    owners = Quiet(), Quiet()
    hears = rig.splice(client, server, limit, owners=owners)
    what = f"seed {seed!r}: "
    rig.until(lambda: bool(hears.outcomes), 400)
    outcome = hears.outcomes[0]
    assert outcome.error is None and outcome.status is Status.LIMIT, what
    assert one.received == limit, what
    assert client.state in (State.ESTABLISHED,) and client.unsent_or_unacked == 0, what
    assert client.events is owners[0] and server.events is owners[1]
    # Everything else, in software: what the client has sent, and what the server has beyond the limit.
    relay = Relay(rig, client, server)
    relay.readable()

    def over() -> bool:
        relay.readable()
        return one.received == limit + beyond and two.received == up

    rig.until(over, 400)
    if close == "shutdown":
        rig.until(lambda: server.fin_received, 400)
    one.connection.shutdown()
    rig.touch(rig.a)
    rig.until(lambda: client.fin_received, 400)
    client.close()
    server.close()
    two.connection.shutdown()
    rig.touch(rig.p)
    rig.touch(rig.b)
    rig.until(lambda: one.over and two.over, 400)
    assert (one.error, two.error) == (None, None), what
    rig.run(80)
    rig.settled()


@pytest.mark.parametrize("seed", range(100))
def test_limited(seed):
    run_bounded(seed)


# -- bad ends ------------------------------------------------------------------------------------


def spliced(seed: object, limit: int | None = None, idle: float | None = None, **settings):
    """A splice of two connections on which much is still to be said, at a random moment."""
    rig, rng = random_rig(seed, loss=settings.pop("loss", True))
    one = User(rig.a, 100_000, seed=1, expect=2, close="never")
    two = User(rig.b, 100_000 if limit is None else limit, seed=2, expect=1, close="never")
    client, server = rig.open(one, two)
    relay = Relay(rig, client, server, limit)
    if limit is None:
        relay.readable()
        rig.run(rng.random() * 0.05)
    relay.on = False
    hears = rig.splice(client, server, limit, idle)
    return rig, rng, one, two, client, server, hears


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("who", ["client", "server", "proxy"])
def test_a_reset_at_any_time(seed, who):
    limit = 80_000 if seed % 3 == 0 else None
    rig, rng, one, two, client, server, hears = spliced(("reset", seed, who), limit)
    rig.run(rng.choice((0.0, 0.01, rng.random() * 0.4)))
    if hears.outcomes:
        return  # too late
    if who == "proxy":
        rng.choice((client, server)).abort()
        rig.touch(rig.p)
    else:
        user = one if who == "client" else two
        user.connection.abort()
        rig.touch(user.side)
    # A reset that was lost is found when something else is sent, or never: then the proxy's owner ends it.
    if not rig.run(20, lambda: bool(hears.outcomes)):
        assert who != "proxy"
        client.abort()
        rig.touch(rig.p)
    rig.until(lambda: bool(hears.outcomes), 20)
    outcome = hears.outcomes[0]
    if outcome.status is Status.LIMIT:
        for conn in (client, server):
            conn.abort()
        rig.touch(rig.p)
    else:
        assert isinstance(outcome.error, (ConnectionResetError, ConnectionAbortedError)), outcome
        assert outcome.status in (Status.RESET, Status.ABORTED)
        assert client.closed and server.closed
    assert len(hears.outcomes) == 1
    # Whoever goes on learns that nobody is there any more.
    for user in (one, two):
        if not user.over:
            user.connection.write(b"x" * 10)
            rig.touch(user.side)
    rig.until(lambda: one.over and two.over, 400)
    rig.run(80)
    rig.settled()


def test_a_reset_after_both_have_closed():
    """As of a peer that has forgotten the connection, when something comes a second time: the end was in order."""
    rig, one, two, client, server = quiet()
    hears = rig.splice(client, server)
    rig.run(0.1)
    one.connection.shutdown()
    rig.touch(rig.a)
    rig.until(lambda: two.connection.fin_received)
    two.connection.shutdown()
    rig.touch(rig.b)
    rig.run(0.1)
    assert not hears.outcomes  # it lingers
    assert one.connection.emit(one.connection.snd_nxt, RST)
    rig.touch(rig.a)
    rig.until(lambda: bool(hears.outcomes), 1)
    assert rig.splicing.splices.counts["reset"] == 1
    outcome = hears.outcomes[0]
    assert outcome.status is Status.OK and outcome.error is None
    assert client.error is None and server.error is None
    rig.run(80)
    rig.settled()


def test_idle_at_any_time():
    rig, _, one, two, *_, hears = spliced("idle", None, 1.0, loss=False)
    rig.until(lambda: one.received == two.received == 100_000, 100)
    at = rig.now
    rig.until(lambda: bool(hears.outcomes), 10)
    assert 0.9 < rig.now - at < 1.5
    outcome = hears.outcomes[0]
    assert outcome.status is Status.IDLE and isinstance(outcome.error, TimeoutError) and "1 s" in str(outcome.error)
    rig.until(lambda: one.over and two.over, 10)
    assert isinstance(one.error, ConnectionResetError) and isinstance(two.error, ConnectionResetError)
    rig.run(10)
    rig.settled()


def test_a_peer_that_never_acknowledges_the_backlog():
    """The host gives up as it would without a splice, and takes the other side with it."""
    rig = Rig(proxy=TcpSettings(retries=3, min_rto=0.1, max_rto=0.5))
    one = User(rig.a, 0, seed=1, expect=2, close="never")
    two = User(rig.b, 5000, seed=2, expect=1, close="never")
    client, server = rig.open(one, two)
    rig.until(lambda: server.buffered == 5000)
    rig.down[1].tamper = lambda frame: None
    hears = rig.splice(client, server)
    rig.until(lambda: bool(hears.outcomes), 20)
    assert isinstance(hears.outcomes[0].error, TimeoutError) and hears.outcomes[0].status is Status.ABORTED
    assert client.closed and isinstance(client.error, TimeoutError) and server.closed
    rig.until(lambda: two.over)
    assert isinstance(two.error, ConnectionResetError)
    rig.run(70)
    rig.settled()


def test_the_tuples_stay_in_use_until_the_nic_has_let_go():
    rig, _, one, two, client, server, hears = spliced("tuples", None, loss=False)
    rig.run(0.1)
    rig.model.end_lag = lambda: 5.0
    key = server.key
    server.end(TimeoutError("test"))
    rig.touch(rig.p)
    rig.run(1.0)
    assert not hears.outcomes and key not in rig.p.endpoint.connections
    assert rig.p.endpoint._taken(key) and rig.p.endpoint._taken(client.key)
    rig.until(lambda: bool(hears.outcomes), 20)
    assert key not in rig.splicing.keys
    rig.until(lambda: one.over, 60)
    rig.run(60)
    rig.settled()
    assert not two.over  # it was not told


def test_a_device_that_does_not_answer():
    rig = Rig()
    one, two = User(rig.a, 10, close="never"), User(rig.b, 10, close="never")
    client, server = rig.open(one, two)
    rig.p.transport.swallow_commands = True
    rig.splice(client, server)
    with pytest.raises(DeviceTimeoutError, match="SPLICE"):
        rig.run(60)


# -- details -------------------------------------------------------------------------------------


def quiet(limit: int | None = None, **options):
    """Two connections on which nothing is said before the splice."""
    rig = Rig(**options)
    one = User(rig.a, 0, seed=1, expect=2, close="never")
    two = User(rig.b, 0, seed=2, expect=1, close="never")
    client, server = rig.open(one, two)
    rig.run(0.2)
    return rig, one, two, client, server


def say(user: User, size: int) -> None:
    user.size += size
    user.pump()
    user.side.pair.touch(user.side)


def test_a_quiet_connection_costs_the_host_nothing():
    """Nothing was in flight: no packet of the splice comes to the host."""
    rig, one, two, client, server = quiet()
    hears = rig.splice(client, server)
    rig.run(0.01)
    sent = rig.p.transport.counters["tx_host_packets"]
    for _ in range(10):
        say(one, 10_000)
        say(two, 10_000)
        rig.run(0.3)
    assert one.received == two.received == 100_000
    assert rig.p.transport.counters["tx_host_packets"] == sent
    one.connection.shutdown()
    two.connection.shutdown()
    rig.touch(rig.a)
    rig.touch(rig.b)
    rig.until(lambda: bool(hears.outcomes), 10)
    assert hears.outcomes[0].host_packets == 0 and hears.outcomes[0].octets == (100_000, 100_000)
    rig.run(70)
    rig.settled()


def test_an_acknowledgment_that_was_due_is_sent_before():
    rig, one, _, client, server = quiet(proxy=TcpSettings(delayed_ack=0.2))
    say(one, 1)
    rig.until(lambda: client.buffered == 1)
    assert client.owes_ack
    rig.splice(client, server)
    rig.run(0.02)
    assert one.connection.unsent_or_unacked == 0


def test_what_nagle_and_a_cork_hold_back_goes_at_once():
    rig, _, two, client, server = quiet()
    server.options.cork = True
    server.changed()
    server.write(bytes(pattern(1, 0, 10)))
    rig.touch(rig.p)
    rig.run(0.1)
    assert two.received == 0
    rig.splice(client, server)
    rig.run(0.1)
    assert two.received == 10


def test_a_window_that_was_closed_opens():
    """The proxy did not read, so that the server waits; the client has room: it hears of that at once, not when it probes."""
    rig, one, two, client, server = quiet(proxy=TcpSettings(receive_buffer=4096))
    say(two, 50_000)
    rig.run(0.3)
    assert two.connection.snd_wnd < 1460
    rig.splice(client, server)
    rig.run(0.15)
    assert one.received == 50_000


def test_time_stamps_never_step_back():
    """The server's clock runs ahead of the NIC's; after the splice ours waits, and the NIC does not close the connection."""
    rig, one, two, client, server = quiet()
    # A server whose time stamps run a hundred times as fast.
    clock = rig.b.transport.ts_clock
    start = clock()
    rig.b.endpoint._read_clock = lambda: start + 100 * (clock() - start)
    rig.b.endpoint._learn_clock = lambda value: None  # only what it reads itself
    rig.b.endpoint.tsval = rig.b.endpoint._read_clock
    hears = rig.splice(client, server, 20_000, owners=(Quiet(), Quiet()))
    say(two, 10_000)
    rig.run(2.0)
    say(two, 10_000)
    rig.until(lambda: bool(hears.outcomes), 10)
    assert one.received == 20_000 and client.ts_floor is not None
    seen = one.connection.ts_recent
    assert (client.ts_floor - seen) % (1 << 32) < 1 << 31
    assert client.tsval() == client.ts_floor != rig.p.endpoint.tsval()
    client.write(bytes(pattern(2, 20_000, 100)))
    rig.touch(rig.p)
    rig.run(0.2)
    assert one.received == 20_100, "the client has dropped what came with an older time stamp (PAWS)"
    commands = rig.p.transport.counters["commands"]
    client.teardown = True
    client.close()
    rig.touch(rig.p)
    rig.run(0.5)
    assert one.connection.fin_received and rig.p.transport.counters["commands"] == commands
    # Once the clock has caught up, all is as ever.
    rig.run(400)
    assert server.tsval() == rig.p.endpoint.tsval() and server.ts_floor is None


def test_a_spliced_connection_refuses_its_user():
    rig, _, _, client, server = quiet()
    rig.splice(client, server)
    with pytest.raises(OSError, match="spliced") as info:
        client.write(b"x")
    assert info.value.errno == errno.EBUSY
    assert rig.splicing.refusal(client, server, None) == "state"


@pytest.mark.parametrize(
    ("reason", "rig"),
    [
        ("timestamps", {"server": TcpSettings(timestamps=False)}),
        ("mss", {"server": TcpSettings(mtu=1280)}),
        ("window_scale", {"proxy": TcpSettings(window_scale=14)}),
    ],
)
def test_refusals(reason, rig):
    rig, _, _, client, server = quiet(**rig)
    assert rig.splicing.refusal(client, server, None) == reason


def test_refusals_of_state_and_time():
    rig, one, _, client, server = quiet()
    assert rig.splicing.refusal(client, server, None) is None
    assert rig.splicing.refusal(client, server, 1e6) == "idle_timeout"
    assert rig.splicing.refusal(client, server, 3000) is None
    other = Rig().splicing
    assert other.refusal(client, server, None) == "two_nics"
    one.connection.shutdown()
    rig.touch(rig.a)
    rig.run(0.1)
    assert rig.splicing.refusal(client, server, None) == "state"


def test_both_versions_of_ip_are_not_mixed():
    rig, _, _, client, _ = quiet()
    one, two = User(rig.a, 0, close="never"), User(rig.b, 0, close="never")
    rig.b.serve(9000, setup=False, user=lambda: two)
    rig.p.endpoint.now = rig.now
    six = rig.p.endpoint.connect(rig.b.address(True), 9000, local=rig.p.address(True), events=Quiet())
    rig.touch(rig.p)
    rig.until(lambda: not six.opening)
    assert rig.splicing.refusal(client, six, None) == "ip_version"
    assert one.connection is None


def test_a_full_ring_or_no_memory_is_a_refusal():
    rig, _, _, client, server = quiet()
    hears = Hears()
    rig.pool.allocate = lambda size: None
    assert rig.splicing.begin(client, server, None, None, hears) == "no_memory"
    assert client.splice is None and not rig.splicing.keys
    rig.p.queue.reserve = lambda: None
    assert rig.splicing.begin(client, server, None, None, hears) == "ring_full"
    assert client.splice is None and server.splice is None and not rig.splices.open


def test_a_lost_device_ends_it():
    rig, _, _, client, server = quiet()
    hears = rig.splice(client, server)
    rig.run(0.1)
    assert rig.splices.stats()["live"] == 1
    rig.splices.fail()
    assert hears.outcomes[0].status is None and isinstance(hears.outcomes[0].error, ConnectionAbortedError)
    assert not rig.splices.open and not rig.splicing.keys and client.splice is None and rig.splices.stats()["lost"] == 1


def test_a_client_of_the_nics_handshake():
    """Its first segments are marked NEW until our first byte is acknowledged, and nothing of it is built."""
    for seed in range(10):
        rig = Rig(seed=seed, lags=0.02)
        one = User(rig.a, 30_000, seed=1, expect=2)
        two = User(rig.b, 30_000, seed=2, expect=1)
        client, server = rig.open(one, two, setup=True)
        hears = rig.splice(client, server)
        rig.until(lambda one=one, two=two: one.over and two.over, 60)
        assert (one.error, two.error, one.received, two.received) == (None, None, 30_000, 30_000)
        rig.until(lambda hears=hears: bool(hears.outcomes), 60)
        rig.run(70)
        rig.settled()


@pytest.mark.parametrize("client", [TcpSettings(timestamps=False), TcpSettings(mtu=1280), TcpSettings(mtu=1280, timestamps=False)])
def test_a_connection_that_is_opened_to_be_spliced(client):
    """It offers the server what the client has, so that neither timestamps nor the size of segments are in the way."""
    rig = Rig(client=client)
    one, two = User(rig.a, 20_000, seed=1, expect=2, close="never"), User(rig.b, 20_000, seed=2, expect=1, close="never")
    plain, other = rig.open(one, two)
    assert rig.splicing.refusal(plain, other, None) in ("timestamps", "mss")
    rig = Rig(client=client)
    one, two = User(rig.a, 20_000, seed=1, expect=2, close="never"), User(rig.b, 20_000, seed=2, expect=1, close="never")
    front, back = rig.open(one, two, like=True)
    assert back.timestamps == client.timestamps and two.connection.peer_mss == client.mtu - 40
    rig.splice(front, back)
    rig.until(lambda: one.received == two.received == 20_000, 60)


def test_more_than_the_nic_believes_is_left_to_the_sender(monkeypatch):
    """What came while the NIC was asked is sent on up to a bound, beyond which the NIC would not believe that it has arrived."""
    monkeypatch.setattr("acceltcp.host.tcp.splicing.SPLICE_HOST_SENT_MAX", 5000)
    rig, one, two, client, server = quiet()
    rig.model.begin_lag = rig.model.answer_lag = lambda: 0.05
    hears = rig.splice(client, server)
    say(two, 30_000)
    rig.run(0.05)
    assert len(rig.splicing.keys[server.key].halves[1].queue) >= 10
    rig.until(lambda: one.received == 30_000, 10)
    half = rig.splicing.keys[server.key].halves[1]
    assert half.rcv + 3000 < half.sent < half.rcv + 5000
    one.connection.shutdown()
    two.connection.shutdown()
    rig.touch(rig.a)
    rig.touch(rig.b)
    rig.until(lambda: bool(hears.outcomes), 10)
    assert hears.outcomes[0].octets == (0, 30_000)


@pytest.mark.parametrize("octets", [0, 1, 1000, (1 << 31) + 5, (1 << 32) - 1, 1 << 32, (1 << 32) + 7, 5 << 32])
@pytest.mark.parametrize("repeated", [0, 5000])
def test_counts_beyond_32_bits(octets, repeated):
    rig, _, _, client, server = quiet()
    rig.splice(client, server)
    half = rig.splicing.keys[server.key].halves[1]
    for fin in (False, True):
        end = SideEnd(half.rcv + octets + fin & 0xFFFFFFFF, 0, 0, 1, octets + repeated, fin)
        assert half.end_of(end) == half.rcv + octets + fin


def test_what_the_host_alone_has_sent_on_may_be_all():
    """The NIC has not heard of it before the end."""
    rig, _, _, client, server = quiet()
    rig.splice(client, server)
    half = rig.splicing.keys[server.key].halves[1]
    half.sent += 5000
    assert half.end_of(SideEnd(half.rcv & 0xFFFFFFFF, 0, 0, 0, 0, False)) == half.rcv
    assert half.end_of(SideEnd(half.rcv + 5000 & 0xFFFFFFFF, 0, 0, 0, 0, False)) == half.rcv + 5000
