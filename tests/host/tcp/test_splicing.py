"""Splicing on the host's side, in virtual time: every byte arrives, whenever the NIC takes over and whatever the wires do.

The NIC is a model on packets (`fake_splice`), client and server are stacks of their own (`splice_rig`).
"""

from __future__ import annotations

import random

import pytest

from acceltcp.abi.messages import CommandOpcode, Status
from acceltcp.host.tcp import State, TcpSettings

from ..pair import Path, User
from ..splice_rig import Quiet, Rig

REFUSALS = (Status.TABLE_FULL, Status.DUPLICATE, Status.NO_SECRET, Status.BAD_ARGUMENT, Status.BAD_ADDRESS)


def random_rig(seed: object, *, loss: bool = True) -> tuple[Rig, random.Random]:
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

    rig = Rig(
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
@pytest.mark.parametrize("seed", range(6))
def test_refused(seed, status):
    run_unbounded(("refused", seed), status)


# -- with a limit --------------------------------------------------------------------------------


class Reader(Quiet):
    """Takes what comes, later."""

    def __init__(self, expect: int, at: int) -> None:
        super().__init__()
        self.expect, self.at = expect, at


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
