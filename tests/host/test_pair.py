"""Two of our stacks against each other, in virtual time (see `pair`): every byte arrives, whatever the cable does."""

from __future__ import annotations

import itertools
import random
from pathlib import Path as FilePath

import pytest

from acceltcp.host.tcp import State, TcpSettings
from acceltcp.host.tcp.settings import ConnectionOptions
from tests.system.test_capture import tshark

from .pair import Pair, Path, User

PERSISTENT = TcpSettings(retries=30, syn_retries=20)
"""For wires so bad that ten time-outs in a row are to be expected now and then."""

CABLES = {
    "clean": Path(),
    "loss-1": Path(loss=0.01),
    "loss-10": Path(loss=0.1),
    "duplicate-10": Path(duplicate=0.1),
    "reorder-10": Path(reorder=0.1),
    "corrupt-10": Path(corrupt=0.1),
    "jitter": Path(jitter=0.02),
    "slow": Path(rate=1e6, buffer=30_000, delay=0.02),
    "all-3": Path(loss=0.03, duplicate=0.03, reorder=0.03, corrupt=0.03, jitter=0.003),
    "all-10": Path(loss=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1, jitter=0.01),
}


def finished(*users: User) -> bool:
    return all(user.over for user in users)


def exchange(
    pair: Pair, up: int, down: int, *, v6: bool = False, setup: bool = True, options: object = None, port: int = 80,
    seconds: float = 3000,
) -> User:
    """A connection on which both sides send at once; both must get everything and end without an error."""
    answering = User(pair.b, down, seed=2, expect=1)
    pair.b.serve(port, setup=setup, user=lambda: answering)
    opening = pair.a.connect(User(pair.a, up, seed=1, expect=2), port, v6=v6, options=options)
    pair.until(lambda: finished(opening, answering), seconds)
    check(pair, opening, answering, up, down)
    return opening


def check(pair: Pair, one: User, two: User, up: int, down: int) -> None:
    what = f"seed {pair.seed!r}: "
    assert one.error is None and two.error is None, what + f"{one.error!r} {two.error!r}"
    assert (one.received, two.received) == (down, up), what + f"{one.received} of {down}, {two.received} of {up}"


# -- every byte --------------------------------------------------------------------------------


@pytest.mark.parametrize("cable", CABLES)
@pytest.mark.parametrize("setup", [True, False])
def test_every_byte(cable, setup):
    bad = cable in ("loss-10", "all-10", "corrupt-10")
    for seed in range(2 if bad else 1):
        pair = Pair(CABLES[cable], seed=(cable, seed), a=PERSISTENT, b=PERSISTENT)
        size = 60_000 if bad else 300_000
        exchange(pair, size, size // 3, setup=setup, v6=setup == bool(seed))


@pytest.mark.parametrize("size", [0, 1, 2, 535, 1447, 1448, 1449, 14_480, 65_535, 65_536, 100_001])
@pytest.mark.parametrize("setup", [True, False])
def test_sizes(size, setup):
    for up, down in ((size, 0), (0, size), (size, size)):
        exchange(Pair(Path(loss=0.02), seed=size), up, down, setup=setup)


@pytest.mark.parametrize("seed", range(6))
def test_random_wires_and_options(seed):
    """Everything drawn at random, each direction for itself."""
    rng = random.Random(seed)

    def path() -> Path:
        part = lambda most: rng.choice((0.0, rng.random() * most))  # noqa: E731
        return Path(
            loss=part(0.06), duplicate=part(0.1), reorder=part(0.1), corrupt=part(0.05), delay=rng.choice((0.0001, 0.005, 0.1)),
            jitter=part(0.02), rate=rng.choice((0, 0, 3e5, 5e6)), buffer=rng.choice((10_000, 100_000)),
        )  # fmt: skip

    def side() -> TcpSettings:
        return TcpSettings(
            retries=30, syn_retries=20, mtu=rng.choice((576, 1280, 1500)), receive_buffer=rng.choice((4096, 1 << 16, 1 << 20)),
            timestamps=rng.random() < 0.7, sack=rng.random() < 0.7, ecn=rng.random() < 0.3, window_scale=rng.choice((0, 2, 7, 14)),
            congestion=rng.choice(("cubic", "reno")), initial_segments=rng.choice((1, 10)),
        )  # fmt: skip

    options = ConnectionOptions()
    options.nodelay, options.quickack = rng.random() < 0.3, rng.random() < 0.3
    pair = Pair(path(), path(), seed=seed, a=side(), b=side(), moderation=rng.choice((0.0, 0.001)))
    exchange(pair, rng.randrange(150_000), rng.randrange(60_000), setup=rng.random() < 0.5, options=options)


@pytest.mark.parametrize("cable", ["clean", "loss-1", "all-3"])
def test_the_nic_closes(cable):
    """With teardown in both NICs: `close` gives the connection away, and still everything arrives."""
    options = {"flows": 64}
    pair = Pair(CABLES[cable], seed=cable, a_options=options, b_options=options, a=PERSISTENT, b=PERSISTENT)
    answering = User(pair.b, 50_000, seed=2, expect=1, close="close")
    pair.b.serve(user=lambda: answering)
    opening = pair.a.connect(User(pair.a, 30_000, seed=1, expect=2, close="shutdown"))
    pair.until(lambda: opening.received == 50_000 and answering.received == 30_000)
    pair.until(lambda: not pair.a.endpoint.connections and not pair.b.endpoint.connections and not pair.b.transport.flows, 200)
    assert opening.error is None and answering.error is None
    assert pair.b.transport.counters["commands"] >= 3  # two listeners and the connection


# -- large and many ------------------------------------------------------------------------------


def transfer(size: int, path: Path, seed: object) -> Pair:
    pair = Pair(path, seed=seed, moderation=0.0005)
    answering = User(pair.b, 0, expect=1)
    pair.b.serve(user=lambda: answering)
    opening = pair.a.connect(User(pair.a, size, seed=1))
    pair.until(lambda: finished(opening, answering), 3000)
    check(pair, opening, answering, size, 0)
    return pair


def test_ten_megabytes():
    transfer(10_000_000, Path(rate=50e6, delay=0.002), 1)


@pytest.mark.long
def test_a_hundred_megabytes():
    """Over a cable that loses now and then."""
    transfer(100_000_000, Path(loss=0.0002, rate=100e6, delay=0.001, buffer=1 << 20), 2)


def many(count: int, path: Path, *, setup: bool) -> None:
    """So many connections open at once; then all talk at once."""
    settings = TcpSettings(receive_buffer=1 << 16)
    pair = Pair(path, seed=count, a=settings, b=settings, moderation=0.001, a_options={"rx": 4096, "tx": 4096}, b_options={"rx": 4096, "tx": 4096})
    # Nobody sends before `go`: each side's first bytes are held back.
    answering: list[User] = []

    def user() -> User:
        answering.append(User(pair.b, 200, seed=2, expect=1, reply=100))
        return answering[-1]

    pair.b.serve(setup=setup, user=user)
    opening: list[User] = []
    for number in range(count):
        opening.append(User(pair.a, 0, seed=1, expect=2, close="never"))
        pair.a.connect(opening[-1])
        if number % 500 == 499:
            pair.run(0.02)
    pair.until(lambda: all(one.was_connected for one in opening), 60)
    assert len(pair.a.endpoint.connections) == count
    for number, one in enumerate(opening):
        one.size, one.close = 100, "shutdown"
        one.pump()
        if number % 200 == 199:
            pair.run(0.002)
    pair.until(lambda: len(answering) == count and finished(*opening, *answering), 120)
    assert not [one for one in (*opening, *answering) if one.error is not None]
    assert all(one.received == 200 for one in opening) and all(one.received == 100 for one in answering)


@pytest.mark.parametrize("setup", [True, False])
def test_five_hundred_connections_at_once(setup):
    many(500, Path(loss=0.01), setup=setup)


def test_two_thousand_connections_at_once():
    many(2000, Path(), setup=False)


@pytest.mark.long
def test_ten_thousand_connections_at_once():
    many(10_000, Path(), setup=False)


# -- opening and closing -------------------------------------------------------------------------


@pytest.mark.parametrize("setup", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_handshake_over_a_bad_wire(seed, setup):
    """RFC 9293 section 3.5: SYN, SYN-ACK and ACK may all be lost, doubled, late and spoiled."""
    pair = Pair(Path(loss=0.3, duplicate=0.3, reorder=0.3, corrupt=0.1), seed=seed, a=PERSISTENT, b=PERSISTENT)
    for port in range(90, 94):
        exchange(pair, 100, 100, setup=setup, port=port)
        pair.run(5)


def test_nobody_listens():
    """RFC 9293 section 3.10.7.3: a reset in SYN-SENT that acknowledges our SYN ends the attempt."""
    pair = Pair()
    user = pair.a.connect(User(pair.a, 10), 81)
    pair.until(lambda: user.over, 5)
    assert isinstance(user.error, ConnectionRefusedError) and not user.was_connected and not pair.a.endpoint.connections


def test_nobody_is_there():
    """RFC 9293 section 3.8.3 (R2 for SYN), RFC 6298: SYNs back off and the attempt ends with a time-out."""
    pair = Pair(Path(loss=1.0), a=TcpSettings(syn_retries=3))
    user = pair.a.connect(User(pair.a, 10))
    frames: list[float] = []
    pair.to_b.tamper = lambda frame: (frames.append(pair.now), frame)[1]
    pair.until(lambda: user.over, 200)
    gaps = [after - before for before, after in itertools.pairwise(frames)]
    assert isinstance(user.error, TimeoutError)
    assert len(frames) == 4 and all(abs(gap - 2**i) < 0.05 for i, gap in enumerate(gaps)), gaps


@pytest.mark.parametrize("seed", range(3))
def test_simultaneous_open(seed):
    """RFC 9293 section 3.5, figure 7: both sides send SYN before either hears the other."""
    path = Path(delay=0.05, loss=0.05 * seed)
    pair = Pair(path, seed=seed, a=PERSISTENT, b=PERSISTENT)
    one = pair.a.connect(User(pair.a, 20_000, seed=1, expect=2), 5001, local_port=5000)
    two = pair.b.connect(User(pair.b, 30_000, seed=2, expect=1), 5000, local_port=5001)
    pair.until(lambda: finished(one, two), 600)
    check(pair, one, two, 20_000, 30_000)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_simultaneous_close(loss, offload):
    """RFC 9293 section 3.6, figure 13: FINs that cross; both wait in TIME_WAIT, none sees an error."""
    options = {"flows": 16} if offload else {}
    pair = Pair(Path(delay=0.05, loss=loss), seed=loss, a=PERSISTENT, b=PERSISTENT, a_options=options, b_options=options)
    two = User(pair.b, 1000, seed=2, expect=1, close="never")
    pair.b.serve(user=lambda: two)
    one = pair.a.connect(User(pair.a, 1000, seed=1, expect=2, close="never"))
    pair.until(lambda: one.received == two.received == 1000, 100)
    pair.run(5)
    for user in (one, two):
        user.close = "close"
        assert user.connection is not None
        user.finished = True
        user.connection.close()
    if not loss and not offload:
        pair.run(0.02)
        assert one.connection.state is two.connection.state is State.FIN_WAIT_1
        pair.run(0.05)
        assert one.connection.state is two.connection.state is State.CLOSING
    pair.run(200, lambda: not pair.a.endpoint.connections and not pair.b.endpoint.connections)
    assert not pair.a.endpoint.connections and not pair.b.endpoint.connections
    assert one.error is None and two.error is None


@pytest.mark.parametrize("cable", ["clean", "loss-10"])
def test_half_close(cable):
    """RFC 9293 section 3.6: who has closed still receives, for as long as the other likes."""
    pair = Pair(CABLES[cable], seed=cable, a=PERSISTENT, b=PERSISTENT)
    answering = User(pair.b, 100_000, seed=2, expect=1, close="close", reply=1 << 40)
    pair.b.serve(user=lambda: answering)
    opening = pair.a.connect(User(pair.a, 10, seed=1, expect=2))
    pair.until(lambda: answering.received == 10, 100)
    pair.run(300)  # longer than any time-out of ours
    assert opening.connection.state is State.FIN_WAIT_2 and answering.connection.state is State.CLOSE_WAIT
    answering.reply = 0
    answering.pump()
    pair.until(lambda: finished(opening, answering), 600)
    check(pair, opening, answering, 10, 100_000)


@pytest.mark.parametrize("setup", [True, False])
def test_a_port_is_used_again_at_once(setup):
    """RFC 6191 and RFC 1122 section 4.2.2.13: the server closed first and is in TIME_WAIT; a new SYN with the same four numbers
    opens a new connection at once."""
    pair = Pair(seed=3)
    answering: list[User] = []

    def user() -> User:
        answering.append(User(pair.b, 100 + len(answering), seed=2, expect=1, close="eager", reply=50))
        return answering[-1]

    pair.b.serve(setup=setup, user=user)
    for number in range(20):
        opening = pair.a.connect(User(pair.a, 50, seed=1, expect=2, close="close"), local_port=4000)
        pair.until(lambda one=opening: one.over, 30)
        assert opening.error is None and opening.received == 100 + number
    assert len(answering) == 20 and all(one.received == 50 and one.error is None for one in answering)


# -- slow readers, and the rest --------------------------------------------------------------------


@pytest.mark.parametrize("cable", ["clean", "loss-1", "reorder-10"])
@pytest.mark.parametrize("buffer", [4096, 1 << 16])
def test_reader_that_takes_its_time(cable, buffer):
    """The window closes and opens many times (RFC 9293 sections 3.8.6.1 and 3.8.6.2); the receiver keeps no more than it may."""
    pair = Pair(CABLES[cable], seed=cable, b=TcpSettings(receive_buffer=buffer))
    answering = User(pair.b, 0, expect=1, reading=False)
    pair.b.serve(user=lambda: answering, window=min(buffer, 65535), wscale=2)
    size = 30 * buffer if buffer < 10_000 else 8 * buffer
    opening = pair.a.connect(User(pair.a, size, seed=1))
    rng = random.Random(4)
    most = 0

    def read() -> None:
        nonlocal most
        if answering.connection is not None:
            most = max(most, len(answering.connection.receive_buffer))
            if rng.random() < 0.5:
                answering.read(rng.randrange(1, buffer))
            answering.pump()
        if not finished(opening, answering):
            pair.at(pair.now + 0.05, read)

    read()
    pair.until(lambda: finished(opening, answering), 2000)
    answering.read()  # what was left when both had closed
    check(pair, opening, answering, size, 0)
    assert most <= max(buffer, 65535)


@pytest.mark.parametrize("congestion", ["cubic", "reno"])
def test_all_that_a_cable_carries(congestion):
    """A cable of 2 MB/s with a buffer of its bandwidth-delay product is full (RFC 9438 section 1: high utilisation), and our
    receiver's window does not limit it."""
    settings = TcpSettings(congestion=congestion)
    pair = Pair(Path(rate=2e6, delay=0.02, buffer=80_000), Path(delay=0.02), seed=congestion, a=settings, b=settings)
    size = 8_000_000
    opening = exchange(pair, size, 0)
    took = pair.b.users[0].ended_at - opening.connected_at
    assert size * 1514 / 1448 / took > 0.85 * 2e6, took


def test_reordering_alone_is_not_taken_for_loss():
    """RFC 8985 section 6.2: what comes a little late is sent again now and then, before RACK has learned to wait; it does not
    keep the window small (RFC 3522, RFC 3708: a reduction that was in vain is undone)."""
    pair = Pair(Path(reorder=0.05, reorder_delay=0.002, delay=0.01), Path(delay=0.01), seed=5)
    opening = exchange(pair, 2_000_000, 0)
    resent = pair.a.endpoint.stats["retransmissions"]
    assert resent < 0.05 * 2_000_000 / 1448, resent
    # As long as slow start takes to send so much: nothing else has slowed it down.
    assert opening.ended_at - opening.connected_at < 0.5


@pytest.mark.parametrize("loss", [0.001, 0.01, 0.03])
def test_recovery_needs_few_time_outs(loss):
    """With SACK and RACK-TLP nearly everything that is lost is repaired without a time-out, and what is sent again is hardly more
    than what was lost."""
    pair = Pair(Path(loss=loss, delay=0.01), Path(delay=0.01), seed=loss)
    exchange(pair, 3_000_000, 0)
    lost, resent = pair.to_b.lost, pair.a.endpoint.stats["retransmissions"]
    assert resent <= 1.1 * lost + 5, (lost, resent)


# -- what tshark says --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_expert(seed, tmp_path: FilePath):
    """On a wire with every fault: no malformed segment, no wrong checksum, no acknowledgment of what never came."""
    path = Path(loss=0.03, duplicate=0.03, reorder=0.03, jitter=0.003)
    pair = Pair(path, seed=seed, a=PERSISTENT, b=PERSISTENT, a_options={"flows": 16}, b_options={"flows": 16})
    files = {}
    for side in (pair.a, pair.b):
        files[side] = tmp_path / f"{side.number}.pcap"
        side.capture(files[side])
    served: list[User] = []

    def user() -> User:
        served.append(User(pair.b, 50_000, seed=2, expect=1, close="close"))
        return served[-1]

    # Ports whose payload tshark does not look into.
    pair.b.serve(7, user=user)
    pair.b.serve(9, user=user, setup=False)
    opened = [
        pair.a.connect(User(pair.a, 100_000, seed=1, expect=2), port, v6=v6) for port in (7, 9) for v6 in (False, True)
    ]
    pair.until(lambda: all(one.received == 50_000 for one in opened) and all(one.received == 100_000 for one in served), 600)
    pair.run(30)
    for side, capture in files.items():
        mine = f"eth.src == {':'.join(f'{byte:02x}' for byte in side.mac)}"
        assert len(tshark(capture, mine, "frame.number")) > 100
        for wrong in (
            # Not what tshark makes of the payload by the number of a port.
            '_ws.malformed && !(frame.protocols matches ":tcp:(?!data|_ws)")', "tcp.checksum.status != 1", "ip && ip.checksum.status != 1", "tcp.analysis.ack_lost_segment",
            "tcp.analysis.window_full && tcp.analysis.zero_window", "tcp.options.mss_val && !(tcp.flags.syn == 1)",
        ):  # fmt: skip
            found = tshark(capture, f"{mine} && ({wrong})", "frame.number", "tcp.stream", "tcp.seq", "tcp.ack", "tcp.len")
            assert found == [], (wrong, found[:5])
