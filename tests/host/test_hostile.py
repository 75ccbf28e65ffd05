"""Peers, attackers, applications and devices that misbehave: what each may cost, and that acknowledged data are never lost.

In virtual time on the functional model. The client is `world.Client`, a TCP of its own whose every field can be wrong.
Each test names the section that says what has to happen; where none does, the docstring says what we do.
"""

from __future__ import annotations

import gc
import itertools
import random
import struct
import tracemalloc

import pytest

from acceltcp.abi.messages import TxFlag
from acceltcp.abi.wire import IPV4, TCP
from acceltcp.host.tcp import Listener, State, TcpConnection, TcpSettings

from .fake_device import insert_checksums
from .world import ACK, CLIENT_MAC, ECE, FIN, M32, MAC, PSH, RST, SYN, URG, Client, World

STREAM = random.Random(77).randbytes(1 << 20)
NOPS = b"\1\1"


class Watcher:
    """A user that counts what it is told."""

    def __init__(self) -> None:
        self.ends: list[OSError | None] = []

    def connected(self) -> None: ...
    def readable(self) -> None: ...
    def writable(self) -> None: ...
    def handed_over(self, flow: object) -> None: ...

    def closed(self, error: OSError | None) -> None:
        self.ends.append(error)


@pytest.fixture(autouse=True)
def no_exceptions(caplog):
    """Nothing that a peer sends may raise: the queue logs a packet that could not be handled."""
    yield
    bad = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert not bad, bad


def opened(world: World, **options) -> tuple[Client, TcpConnection]:
    client = world.connect(**options)
    count = len(world.connections)
    world.run(1, lambda: len(world.connections) > count)
    assert len(world.connections) == count + 1, "no connection"
    world.run(0.02)
    return client, world.connections[-1]


def forge(client: Client, tcp: dict[str, int], options: bytes = b"", payload: bytes = b"", *, total: int | None = None) -> None:
    """A segment of IPv4 with any fields, right checksums; options need not be padded. total: bytes that IP claims."""
    fields = {
        "src_port": client.port, "dst_port": client.dst_port, "seq": client.nxt, "ack": client.rcv,
        "data_offset": 5 + -(-len(options) // 4), "flags": ACK, "window": client.window, **tcp,
    }  # fmt: skip
    segment = TCP.pack(**{name: value & M32 for name, value in fields.items()}) + options + payload
    ip = IPV4.pack(
        version=4, ihl=5, total_length=20 + len(segment) if total is None else total, ttl=64, protocol=6, src=0x0A000001,
        dst=0x0A000002,
    )  # fmt: skip
    frame = MAC + CLIENT_MAC + b"\x08\x00" + ip + segment
    client.world.to_nic(insert_checksums(frame, 14, 34, TxFlag.L4_CHECKSUM | TxFlag.IPV4_CHECKSUM).ljust(60, b"\0"))


def stamped(client: Client, options: bytes = b"") -> bytes:
    """The timestamps option, then others."""
    return NOPS + b"\x08\x0a" + struct.pack("!II", client.tsval(), client.ts_recent) + options


def sack(*blocks: tuple[int, int]) -> bytes:
    """A SACK option of these blocks (RFC 2018 section 3)."""
    body = b"".join(struct.pack("!II", left & M32, right & M32) for left, right in blocks)
    return NOPS + bytes([5, 2 + len(body)]) + body


def received(connection: TcpConnection) -> bytes:
    """All that it has for its application."""
    out = b""
    while part := connection.consume(1 << 20):
        out += part
    return out


def still_works(world: World, client: Client, connection: TcpConnection) -> None:
    """Data pass both ways, unharmed."""
    client.auto, client.window = True, 65535
    client.send(client.nxt, ACK)
    world.run(0.2)
    got = len(client.got)
    before = received(connection)
    client.write(STREAM[:5000])
    connection.write(STREAM[5000:12000])
    world.run(30, lambda: len(client.got) >= got + 7000 and not client.out)
    assert bytes(client.got[got:]) == STREAM[5000:12000]
    assert received(connection) == STREAM[:5000], before
    assert not connection.closed


# -- old and forged segments ---------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_old_segments_change_nothing(seed):
    """RFC 7323 section 5.3 (PAWS) and RFC 9293 section 3.10.7.4: every old segment is dropped, whatever it holds."""
    rng = random.Random(seed)
    world = World(seed=seed)
    client, connection = opened(world)
    client.write(STREAM[:60_000])
    world.run(2)
    old = client.nxt
    for _ in range(300):
        behind = rng.randrange(1, 60_000)
        length = rng.randrange(1, min(behind, 1400) + 1)
        stale = rng.random() < 0.5
        client.send(old - behind, ACK | PSH, rng.randbytes(length), tsval=client.tsval() - 5000 & M32 if stale else None)
    for _ in range(100):  # in order, but from before the connection's last timestamp
        client.send(old, ACK | PSH, b"?" * rng.randrange(1, 1400), tsval=client.tsval() - rng.randrange(2000, 1 << 30) & M32)
    world.run(1)
    assert received(connection) == STREAM[:60_000]
    still_works(world, client, connection)


@pytest.mark.parametrize("ts", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_forged_segments_off_path(seed, ts):
    """RFC 5961 sections 3 to 5: who cannot see the connection can neither end it nor put data in. Segments of
    random sequence number outside the window, or with an acknowledgment outside what section 5.2 allows."""
    rng = random.Random(seed)
    world = World(seed=seed)
    client, connection = opened(world, ts=ts)
    client.write(STREAM[:40_000])
    connection.write(STREAM[:300_000])
    window = 16 << 20

    def attack() -> None:
        for _ in range(40):
            blind_seq = rng.random() < 0.5
            seq = client.nxt + rng.randrange(window, M32 - window) if blind_seq else client.nxt + rng.randrange(3000)
            ack = rng.getrandbits(32) if blind_seq else client.rcv + rng.randrange(window, M32 - window)
            flags = rng.choice((ACK, ACK | PSH, ACK | FIN, ACK | SYN, SYN | FIN, FIN, 0, URG | ACK | PSH, RST if blind_seq else ACK))
            client.send(seq, flags, rng.randbytes(rng.randrange(0, 200)), ack=ack)
        if len(client.got) < 300_000:
            world.at(world.now + 0.01, attack)

    attack()
    world.run(60, lambda: len(client.got) == 300_000 and not client.out)
    assert bytes(client.got) == STREAM[:300_000] and received(connection) == STREAM[:40_000]
    still_works(world, client, connection)


def test_reset_storm():
    """RFC 5961 section 3.2: a reset within the window but not at its edge is answered with a challenge ACK, and section 7:
    only so many of them. The connection lives on."""
    world = World()
    client, connection = opened(world)
    world.run(1)
    client.auto = False
    client.seen.clear()
    rng = random.Random(3)
    for _ in range(10_000):
        client.send(client.nxt + rng.randrange(1, 60_000), RST | rng.choice((0, ACK)), ack=rng.getrandbits(32))
    world.run(0.5)
    limit = 0.5 / connection.settings.challenge_interval + 2
    assert not connection.closed and 1 <= len(client.seen) <= limit
    assert all(segment.flags == ACK and segment.ack == client.nxt for segment in client.seen)
    still_works(world, client, connection)


@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
def test_syn_storm_on_a_live_flow(flags):
    """RFC 5961 section 4.2: a SYN never resets a connection. A SYN for a listener of the NIC is answered with a cookie
    by the NIC and does not reach the host; one with ACK reaches it and gets challenge ACKs, not many."""
    world = World()
    client, connection = opened(world)
    world.run(1)
    client.auto = False
    client.seen.clear()
    rng = random.Random(4)
    for _ in range(3000):
        options = b"\x02\x04\x05\xb4" + (stamped(client) if flags & ACK else b"")
        client.send(client.nxt + rng.randrange(60_000), flags, ack=client.rcv, options=options)
    world.run(0.5)
    challenges = [segment for segment in client.seen if not segment.flags & SYN]
    assert not any(segment.flags & RST for segment in client.seen)
    assert not connection.closed and len(challenges) <= 0.5 / connection.settings.challenge_interval + 2
    if flags & ACK:
        assert challenges
    still_works(world, client, connection)


def test_syn_storm_on_a_live_flow_of_the_host():
    """RFC 5961 section 4.2, where the host does the handshakes: every SYN of the tuple, in the window or not, gets a challenge ACK at
    most, and few of those."""
    world = World()
    world.endpoint.listen(81, Listener(world._accept))
    client, connection = opened(world, dst_port=81)
    world.run(1)
    client.auto = False
    client.seen.clear()
    rng = random.Random(4)
    for _ in range(3000):
        client.send(rng.choice((client.nxt, client.nxt + rng.randrange(60_000), rng.getrandbits(32))), SYN, options=stamped(client))
    world.run(0.5)
    assert client.seen and not any(segment.flags & (SYN | RST) for segment in client.seen)
    assert not connection.closed and len(client.seen) <= 0.5 / connection.settings.challenge_interval + 2
    still_works(world, client, connection)


@pytest.mark.parametrize("ahead", [-5000, 0, 1 << 30])
@pytest.mark.parametrize("with_timestamp", [False, True])
def test_one_syn_on_a_live_flow_of_the_host_is_challenged(ahead, with_timestamp):
    """RFC 5961 section 4.2: irrespective of its sequence number; a peer that has begun anew may have no timestamps, too."""
    world = World()
    world.endpoint.listen(81, Listener(world._accept))
    client, connection = opened(world, dst_port=81)
    world.run(1)
    client.auto = False
    client.seen.clear()
    client.send(client.nxt + ahead, SYN, options=stamped(client) if with_timestamp else b"\x02\x04\x05\xb4")
    world.run(0.1)
    (answer,) = client.seen
    assert answer.flags == ACK and answer.ack == client.nxt & M32 and answer.seq == connection.snd_nxt & M32
    still_works(world, client, connection)


def test_syn_flood_on_a_listener_of_the_host():
    """RFC 4987 section 3.2: unfinished handshakes are bounded (settings.syn_backlog), the oldest gives way; connections that are there are not
    touched, they time out by themselves, and a client that comes after the flood gets in."""
    world = World(settings=TcpSettings(syn_backlog=64, synack_retries=2))
    world.endpoint.listen(81, Listener(world._accept))
    client, connection = opened(world, dst_port=81)
    flood = Client(world, 50_000, dst_port=81)
    del world.clients[50_000]
    for number in range(5000):
        flood.port = 1024 + number
        flood.send(number * 77_777, SYN, options=b"\x02\x04\x05\xb4")
        if number % 500 == 499:
            world.run(0.01)
    assert len(world.endpoint.handshakes.embryos) <= 64
    late, second = opened(world, port=39_999, dst_port=81)
    still_works(world, client, connection)
    still_works(world, late, second)
    world.run(20)
    assert not world.endpoint.handshakes.embryos and len(world.endpoint.connections) == 2


def test_acknowledgments_of_data_never_sent():
    """RFC 9293 section 3.10.7.4 and RFC 5961 section 5.2: answered with an ACK (not often), and dropped: the window
    does not open, nothing counts as acknowledged, data in the segment are not taken."""
    world = World()
    client, connection = opened(world)
    client.auto = False
    connection.write(STREAM[:1_000_000])
    world.run(0.1)
    sent = {segment.seq for segment in client.seen if segment.payload}
    client.seen.clear()
    una = connection.snd_una
    for ahead in (1, 1000, 1 << 20, 1 << 30):
        client.send(client.nxt, ACK | PSH, b"evil", ack=connection.snd_nxt + ahead)
    world.run(0.01)
    assert connection.snd_una == una and received(connection) == b""
    assert not [segment for segment in client.seen if segment.payload and segment.seq not in sent]
    assert len(client.seen) <= 1
    client.auto = True
    client.send(client.nxt, ACK)
    world.run(60, lambda: len(client.got) == 1_000_000)
    assert bytes(client.got) == STREAM[:1_000_000]


def test_acknowledgments_from_long_ago_are_not_believed():
    """RFC 5961 section 5.2: an acknowledgment older than the largest window the peer ever offered is dropped, with its data."""
    world = World()
    client, connection = opened(world)
    world.run(1)
    client.send(client.nxt, ACK | PSH, b"injected", ack=client.rcv - (65535 << 7) - 1)
    world.run(0.1)
    assert received(connection) == b""
    client.send(client.nxt, ACK | PSH, b"genuine")
    world.run(0.1)
    assert received(connection) == b"genuine"


def test_optimistic_acknowledgments_gain_nothing_by_division():
    """RFC 5681 section 3.1 (RFC 3465): a window grows by bytes acknowledged, not by acknowledgments; a receiver that
    acknowledges every byte on its own gets no faster."""
    flights = []
    for parts in (1, 100):
        world = World()
        client, connection = opened(world)
        client.auto = False
        client.seen.clear()
        connection.write(STREAM)
        world.run(0.05)
        first = [segment for segment in client.seen if segment.payload]
        size = sum(len(segment.payload) for segment in first)
        assert size == 10 * connection.mss  # RFC 6928
        client.seen.clear()
        start = first[0].seq
        for part in range(1, parts + 1):
            client.send(client.nxt, ACK, ack=start + size * part // parts)
        world.run(0.05)
        flights.append(sum(len(segment.payload) for segment in client.seen if segment.payload))
    assert max(flights) <= 2 * 10 * 1448, flights  # doubled at most


def test_optimistic_acknowledgments_of_lost_data_lose_nothing_of_others():
    """Who acknowledges what he has not received has lost it, nobody else. The connection ends in order."""
    world = World()
    client, connection = opened(world)
    client.auto = False
    other, second = opened(world, port=40001)
    connection.write(STREAM[:500_000])
    connection.shutdown()
    second.write(STREAM[:500_000])

    def lie() -> None:
        if not client.reset and connection.snd_una < connection.snd_nxt:
            client.send(client.nxt, ACK, ack=connection.snd_nxt)
        world.at(world.now + 0.004, lie)

    lie()
    world.run(60, lambda: len(other.got) == 500_000 and connection.state is State.FIN_WAIT_2)
    assert bytes(other.got) == STREAM[:500_000] and connection.state is State.FIN_WAIT_2


# -- SACK ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_sack_of_anything(seed):
    """RFC 2018: blocks of data never sent, inverted, empty, overlapping, below the acknowledgment, across the wrap: they
    are advice, and none may stop the data or upset the sender (RFC 6675 section 5)."""
    rng = random.Random(seed)
    world = World(seed=seed, loss=0.02)
    client, connection = opened(world, iss=M32 - 10)
    connection.write(STREAM[:400_000])

    def lie() -> None:
        for _ in range(5):
            base = connection.snd_una + rng.choice((0, 0, rng.randrange(100_000), -rng.randrange(1 << 31), rng.getrandbits(32)))
            blocks = [
                (base + rng.randrange(-3000, 50_000), base + rng.randrange(-3000, 80_000)) for _ in range(rng.randrange(1, 4))
            ]
            client.send(client.nxt, ACK, ack=client.rcv, options=stamped(client, sack(*blocks)[: 28]))
        if world.now < 103:
            world.at(world.now + 0.003, lie)

    lie()
    world.run(200, lambda: len(client.got) == 400_000)
    assert bytes(client.got) == STREAM[:400_000]
    assert not connection.closed


def test_sack_of_data_never_sent_counts_for_nothing():
    """Blocks beyond what was sent are ignored: nothing more may leave than the first window allows."""
    world = World()
    client, connection = opened(world)
    client.auto = False
    client.seen.clear()
    first = client.rcv
    connection.write(STREAM)
    world.run(0.02)
    top = connection.snd_nxt
    for i in range(20):
        client.send(client.nxt, ACK, ack=first, options=stamped(client, sack((top + 1000 * i, top + 1000 * i + 900))))
    world.run(0.1)
    fresh = {segment.seq for segment in client.seen if segment.payload}
    # Limited transmit (RFC 3042) and a tail loss probe (RFC 8985 section 7) may send a few more.
    assert len(fresh) <= 10 + 3 and connection.snd_una & M32 == first


def test_sack_reneging():
    """RFC 2018 section 8: a receiver may forget what it has reported; the sender keeps it until the cumulative
    acknowledgment, and after a time-out sends it again."""
    world = World()
    client, connection = opened(world)
    client.auto = False
    first = client.rcv
    connection.write(STREAM[:14_000])
    world.run(0.05)
    # Everything but the first segment is reported, and then forgotten.
    for upto in range(3000, 14_001, 1448):
        client.send(client.nxt, ACK, ack=first, options=stamped(client, sack((first + 1448, first + upto))))
    world.run(0.05)
    client.pieces.clear()
    client.got.clear()
    client.rcv = first
    client.auto = True
    client.send(client.nxt, ACK, ack=first)
    world.run(60, lambda: len(client.got) == 14_000)
    assert bytes(client.got) == STREAM[:14_000] and not connection.closed


def test_sack_floods_cost_a_bounded_time():
    """Every acknowledgment may carry four blocks; with thousands of segments in flight each must not look at all of
    them (CVE-2019-11477 and its kin). Counted by what the interpreter does, not by the clock."""
    world = World(settings=TcpSettings(initial_segments=1000), window=65535)
    client, connection = opened(world, wscale=10)
    client.auto = False
    connection.write(STREAM)
    world.run(0.05)
    una, top = connection.snd_una, connection.snd_nxt
    assert top > una
    blocks = [(una + 1448 * (2 * i + 1), una + 1448 * (2 * i + 2)) for i in range(3)]
    counts = []
    for rounds in (50, 200):
        counts.append(_calls(lambda rounds=rounds: _flood(world, client, blocks, rounds)))
    assert counts[1] < 6 * counts[0], counts
    assert not connection.closed


def _flood(world: World, client: Client, blocks: list[tuple[int, int]], rounds: int) -> None:
    for _ in range(rounds):
        client.send(client.nxt, ACK, options=stamped(client, sack(*blocks)))
    world.run(0.02)


def _calls(function) -> int:
    """How many lines of the stack ran."""
    import sys

    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if "acceltcp/host/tcp" not in frame.f_code.co_filename:
            return None
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


# -- windows -------------------------------------------------------------------------------


def test_shrinking_window():
    """RFC 9293 section 3.8.6: a sender must be robust against a window that shrinks: nothing new is sent beyond it, what is in
    flight is sent again, and when the window opens everything arrives."""
    world = World()
    client, connection = opened(world, wscale=0)
    connection.write(STREAM[:200_000])
    rng = random.Random(8)

    def squeeze() -> None:
        client.window = rng.choice((0, 1, 100, 1000, 5000, 65535))
        if client.window:
            client.send(client.nxt, ACK)
        if len(client.got) < 200_000:
            world.at(world.now + 0.05, squeeze)

    squeeze()
    world.run(600, lambda: len(client.got) == 200_000)
    assert bytes(client.got) == STREAM[:200_000] and not connection.closed


def test_window_shrunk_to_nothing_over_data_in_flight():
    """RFC 9293 section 3.8.6 (SHLD-16 to 18) at its worst: ten segments are under way when the window becomes 0, and they are lost.
    They may be sent again, without limit of time as long as the peer answers; of what is new a probe's byte at most."""
    world = World(settings=TcpSettings(retries=5))
    client, connection = opened(world)
    client.seen.clear()
    world.loss = 1.0
    connection.write(STREAM[:50_000])
    world.run(0.02)
    world.loss = 0.0
    top = connection.snd_nxt
    assert top == connection.snd_una + 10 * 1448
    client.window = 0
    client.send(client.nxt, ACK)
    world.run(200)
    assert not connection.closed and connection.snd_nxt <= top + 1
    assert 2 < len(client.seen) < 200  # neither silent nor a storm
    client.window = 65535
    client.send(client.nxt, ACK)
    world.run(200, lambda: len(client.got) == 50_000)
    assert bytes(client.got) == STREAM[:50_000]


def test_zero_window_for_ever_while_probes_are_answered():
    """RFC 9293 section 3.8.6.1: as long as probes are answered the connection must stay open; they get rarer up to the
    largest time-out, and what we keep does not grow."""
    world = World(settings=TcpSettings(retries=3, max_rto=10))
    client, connection = opened(world)
    client.window = 0
    client.send(client.nxt, ACK)
    world.run(0.02)
    connection.write(STREAM[:10_000])
    client.seen.clear()
    world.run(1000)
    assert not connection.closed and connection.unsent_or_unacked == 10_000
    # 1000 s at one probe in 10 s, and the first ones.
    assert 90 <= len(client.seen) <= 115, len(client.seen)
    assert all(len(segment.payload) <= 1 for segment in client.seen)
    still_works_after_window(world, client, 10_000)


def still_works_after_window(world: World, client: Client, size: int) -> None:
    client.window = 65535
    client.send(client.nxt, ACK)
    world.run(60, lambda: len(client.got) == size)
    assert bytes(client.got) == STREAM[:size]


def test_zero_window_and_silence_ends():
    """RFC 9293 section 3.8.6.1, RFC 1122 section 4.2.3.5: probes that nobody answers are given up like retransmissions."""
    world = World(settings=TcpSettings(retries=4, max_rto=2))
    client, connection = opened(world)
    watcher = connection.events = Watcher()
    client.window = 0
    client.send(client.nxt, ACK)
    world.run(0.02)
    client.auto = False
    connection.write(STREAM[:10_000])
    world.run(60)
    assert connection.closed and isinstance(connection.error, TimeoutError)
    assert len(watcher.ends) == 1 and isinstance(watcher.ends[0], TimeoutError)


@pytest.mark.parametrize("window", [1, 50, 700, 1447, 1448, 2000])
def test_windows_smaller_than_a_segment(window):
    """RFC 9293 section 3.8.6.2.1: a sender fills a window that is never larger (after the override time-out if need be), and
    does not send crumbs: at least half of the largest window seen at a time."""
    world = World(settings=TcpSettings(retries=30))
    client, connection = opened(world, wscale=None, window=window)
    size = min(20_000, 100 * window)
    connection.write(STREAM[:size])
    world.run(600, lambda: len(client.got) == size)
    assert bytes(client.got) == STREAM[:size]
    parts = [len(segment.payload) for segment in client.seen if segment.payload]
    assert max(parts) <= max(window, 1)
    small = [part for part in parts[:-1] if part < min(window, 1448) // 2]
    assert len(small) <= 2, parts


def test_window_update_storm():
    """A thousand window updates a second, each another size: none loses the data or makes us send crumbs."""
    world = World()
    client, connection = opened(world, wscale=2)
    connection.write(STREAM[:300_000])
    rng = random.Random(1)

    def update() -> None:
        client.send(client.nxt, ACK, window=rng.randrange(3000, 65535))
        if len(client.got) < 300_000:
            world.at(world.now + 0.001, update)

    update()
    world.run(120, lambda: len(client.got) == 300_000)
    assert bytes(client.got) == STREAM[:300_000]


# -- urgent data, options, headers -----------------------------------------------------------


@pytest.mark.parametrize("pointer", [0, 1, 3, 1000, 65535])
def test_urgent_data_stay_in_line(pointer):
    """RFC 6093 section 5 and RFC 9293 section 3.8.5: urgent data are delivered in line; the pointer, right or wrong, changes
    nothing of the stream."""
    world = World()
    client, connection = opened(world)
    for number, flags in enumerate((ACK | URG, ACK | URG | PSH, ACK)):
        forge(client, {"seq": client.nxt + 5 * number, "flags": flags, "urgent": pointer}, stamped(client), b"%05d" % number)
        world.run(0.01)
    world.run(0.1)
    assert received(connection) == b"000000000100002"
    client.nxt = client.nxt + 15 & M32
    client.una = client.nxt
    still_works(world, client, connection)


BAD_OPTIONS = [
    b"\x08\x28", b"\x08\x00", b"\x08\x01\x00\x00", b"\x05\xff" + bytes(6), b"\x05\x02\x01\x01", b"\x05\x03\x00\x01",
    b"\x05\x09" + bytes(10), b"\x02\x04\x00\x00\x08\x0a\x00\x00", b"\xfe\x01" * 4, b"\xff" * 8, b"\x01" * 39 + b"\x05",
    b"\x01" * 38 + b"\x05\x0a", b"\x03", b"\x1d\x12" + bytes(14), b"\x13\x12" + bytes(16) + b"\x01\x01",
]  # fmt: skip


@pytest.mark.parametrize("raw", BAD_OPTIONS, ids=bytes.hex)
@pytest.mark.parametrize("ts", [True, False])
def test_malformed_options(raw, ts):
    """RFC 9293 section 3.1 (MUST-7): options of an illegal length, or beyond the header, do no harm. The segment is
    taken without what cannot be read, or dropped; both leave the connection as it was."""
    world = World()
    client, connection = opened(world, ts=ts)
    padded = raw + bytes(-len(raw) % 4)
    for prefix in (b"", stamped(client) if ts and len(padded) <= 28 else b""):
        forge(client, {}, prefix + padded)
        world.run(0.05)
    still_works(world, client, connection)


@pytest.mark.parametrize("offset", range(16))
@pytest.mark.parametrize("length", [20, 23, 24, 60])
def test_any_data_offset(offset, length):
    """RFC 9293 section 3.1: a header that is shorter than 20 bytes or longer than its segment is none. The segment is
    dropped; no byte of the next packet is read as data."""
    world = World()
    client, connection = opened(world, ts=False)
    body = b"\1" * (length - 20)
    forge(client, {"data_offset": offset}, b"", body, total=20 + length)
    world.run(0.2)
    data = received(connection)
    expected = body[4 * offset - 20 :] if offset >= 5 and 4 * offset <= length else b""
    assert data == expected
    client.nxt = client.una = client.nxt + len(expected) & M32
    still_works(world, client, connection)


@pytest.mark.parametrize("seed", range(6))
def test_random_segments_of_a_peer_gone_mad(seed):
    """Anything with right checksums on the tuple of a connection: memory stays bounded, nothing raises, another connection
    is not touched."""
    rng = random.Random(seed)
    world = World(seed=seed, settings=TcpSettings(receive_buffer=1 << 16))
    client, connection = opened(world)
    other, second = opened(world, port=40001)
    connection.write(STREAM[:100_000])
    second.write(STREAM[:100_000])
    del world.clients[client.port]  # it does not listen
    for _ in range(1500):
        near = lambda base: base + rng.choice((0, 0, 1, -1, rng.randrange(-3000, 70_000), rng.getrandbits(32)))  # noqa: E731
        options = rng.choice((stamped(client), stamped(client), rng.randbytes(4 * rng.randrange(11))))
        options += rng.choice((b"", sack((near(connection.snd_una), near(connection.snd_una))))) if len(options) <= 28 else b""
        forge(
            client,
            {
                "seq": near(client.nxt), "ack": near(client.rcv), "window": rng.getrandbits(16), "urgent": rng.getrandbits(16),
                "flags": rng.choice((ACK, ACK, ACK | PSH, ACK | FIN, SYN, SYN | ACK, RST if rng.random() < 0.02 else ACK, rng.getrandbits(8) & ~RST)),
            },
            options, rng.randbytes(rng.choice((0, 0, 1, 100, 1400))),
        )  # fmt: skip
        if rng.random() < 0.1:
            world.run(0.01)
    world.run(5, lambda: len(other.got) == 100_000)
    assert bytes(other.got) == STREAM[:100_000]
    buffered = len(connection.receive_buffer)
    assert buffered <= (1 << 16) + 65_535 * 2
    still_works(world, other, second)


# -- memory --------------------------------------------------------------------------------


def test_reassembly_flood_of_single_bytes():
    """Data out of order are kept up to a number of pieces (settings.reassembly_pieces); the rest the peer has to repeat
    (RFC 9293 section 3.8.3 allows to drop them), and then all arrive."""
    world = World()
    client, connection = opened(world)
    del world.clients[client.port]  # it does not listen
    tracemalloc.start()
    base = tracemalloc.get_traced_memory()[0]
    for at in range(3, 5_003, 2):
        client.send(client.nxt + at, ACK, STREAM[at : at + 1])
        if at % 1000 == 3:
            world.run(0.001)
            world.strays.clear()
    world.run(0.1)
    world.strays.clear()
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    assert used < connection.settings.reassembly_pieces * 700 + 200_000, used
    for at in range(0, 5_003, 1000):
        client.send(client.nxt + at, ACK, STREAM[at : min(at + 1000, 5_003)])
    world.run(0.5)
    assert received(connection) == STREAM[:5_003]


def test_overlapping_segments_keep_what_came_first():
    """What was received first is what the application gets; later copies with other contents change nothing."""
    world = World()
    client, connection = opened(world)
    client.auto = False
    rng = random.Random(6)
    for at in range(1000, 9000, 1000):
        client.send(client.nxt + at, ACK, STREAM[at : at + 1000])
    for _ in range(200):
        at = rng.randrange(1000, 8800)
        length = min(rng.randrange(1, 1400), 9000 - at)
        client.send(client.nxt + at, ACK, bytes(length))
    client.send(client.nxt, ACK, STREAM[:1000])
    world.run(0.5)
    assert received(connection) == STREAM[:9000]


def test_application_that_never_reads():
    """RFC 9293 section 3.8.6: the window closes; what is beyond it is not acknowledged; probes are answered; when it reads at
    last, all that was acknowledged is there."""
    limit = 1 << 16
    world = World(settings=TcpSettings(receive_buffer=limit))
    client, connection = opened(world)
    client.write(STREAM[:400_000])
    world.run(60)
    assert len(connection.receive_buffer) <= limit + 65_535
    acked = 400_000 - len(client.out)
    assert acked == len(connection.receive_buffer) and client.peer_window == 0
    # Somebody who does not care about the window.
    for at in range(0, 100_000, 1000):
        client.send(client.una + at, ACK, STREAM[acked + at : acked + at + 1000])
    world.run(1)
    assert len(connection.receive_buffer) <= limit + 65_535
    out = bytearray()

    def read() -> None:
        out.extend(connection.consume(1 << 15))
        world.at(world.now + 0.01, read)

    read()
    world.run(120, lambda: len(out) == 400_000)
    assert bytes(out) == STREAM[:400_000]


def test_many_applications_that_never_read_share_a_limit():
    """settings.memory_limit bounds what all connections together keep; whoever reads then gets everything that was
    acknowledged. Another connection still gets its share, a small one."""
    limit = 1 << 20
    world = World(settings=TcpSettings(receive_buffer=1 << 18, memory_limit=limit), window=8192)
    pairs = [opened(world, port=41000 + number) for number in range(32)]
    for client, _ in pairs:
        client.write(STREAM[:200_000])
    world.run(20)
    kept = sum(len(connection.receive_buffer) for _, connection in pairs)
    # Promises that were given before the limit was near are kept: a window (RFC 9293 section 3.8.6 forbids to shrink it).
    assert kept <= limit + 32 * 65_535, kept
    for client, connection in pairs:
        assert not connection.closed
        assert 200_000 - len(client.out) <= len(connection.receive_buffer)
    done: dict[int, bytearray] = {number: bytearray() for number in range(32)}

    def read() -> None:
        for number, (_, connection) in enumerate(pairs):
            done[number] += connection.consume(1 << 16)
        world.at(world.now + 0.02, read)

    read()
    world.run(300, lambda: all(len(data) == 200_000 for data in done.values()))
    assert all(bytes(data) == STREAM[:200_000] for data in done.values())


def test_application_that_never_writes():
    """A connection that nobody uses costs little and lives for ever (RFC 9293 section 3.8.4: keep-alives are off by default)."""
    world = World()
    count = 300
    tracemalloc.start()
    base = tracemalloc.get_traced_memory()[0]
    for number in range(count):
        world.connect(port=42000 + number)
    world.run(1)
    assert len(world.connections) == count
    world.clients.clear()  # their memory is not ours
    world.strays.clear()
    world.run(0.2)
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    assert used < count * 6000, used / count
    frames = world.transport.counters["tx_host_packets"]
    world.run(7000)
    assert not any(connection.closed for connection in world.connections)
    assert world.transport.counters["tx_host_packets"] == frames


def test_thousands_of_half_closed_peers():
    """Peers that have closed while the application has not: CLOSE_WAIT has no limit of time (RFC 9293 section 3.6), each costs
    little, and what is still to be written reaches them."""
    world = World()
    count = 2000
    for number in range(count):
        client = world.connect(port=20_000 + number)
        client.write(b"bye", fin=True)
    world.run(3)
    assert len(world.connections) == count
    assert all(connection.state is State.CLOSE_WAIT for connection in world.connections)
    for connection in world.connections:
        assert received(connection) == b"bye"
        connection.write(b"farewell")
        connection.close()
    world.run(5, lambda: not world.endpoint.connections)
    assert not world.endpoint.connections
    assert all(bytes(client.got) == b"farewell" and client.fin_seen for client in world.clients.values())


def test_thousands_of_peers_that_never_close():
    """We have closed, they have not: FIN_WAIT_2 without an application ends after settings.fin_wait_2."""
    world = World(settings=TcpSettings(fin_wait_2=5))
    count = 1000
    for number in range(count):
        world.connect(port=20_000 + number)
    world.run(1)
    assert len(world.connections) == count
    for connection in world.connections:
        connection.write(b"the end")
        connection.close()
    world.run(2)
    states = {connection.state for connection in world.endpoint.connections.values()}
    assert states == {State.FIN_WAIT_2}
    world.run(6)
    assert not world.endpoint.connections
    assert all(bytes(client.got) == b"the end" for client in world.clients.values())
    world.run(5)
    assert not world.endpoint._heap or len(world.endpoint._heap) < count


def test_connections_that_vanish_leave_nothing():
    """Opened, filled, reset, a thousand times: no memory stays."""
    world = World(settings=TcpSettings(linger=0.1, time_wait=0.1))

    def cycle(count: int) -> None:
        for number in range(count):
            client, connection = opened(world, port=30_000 + number)
            connection.write(STREAM[:3000])
            client.write(STREAM[:3000])
            world.run(0.05)
            client.send(client.nxt, RST)
            world.run(0.05)
            assert connection.closed
        world.connections.clear()
        world.clients.clear()
        world.strays.clear()
        world.run(5)
        world.transport.writes.clear()
        gc.collect()

    cycle(30)
    tracemalloc.start()
    base = tracemalloc.get_traced_memory()[0]
    cycle(150)
    used = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    assert used < 100_000, used
    assert not world.endpoint.connections and not world.endpoint._ended


# -- rings and device ------------------------------------------------------------------------


def test_transmit_ring_that_never_has_room():
    """The device stops taking frames while a hundred connections write: nothing is lost, nothing spins, and what was built is
    bounded by the ring."""
    world = World(tx=16)
    pairs = [opened(world, port=43000 + number) for number in range(100)]
    world.transport.frozen = True
    for _, connection in pairs:
        connection.write(STREAM[:8000])
    world.run(5)
    assert len(world.endpoint.blocked) > 0
    world.transport.thaw()
    world.run(60, lambda: all(len(client.got) == 8000 for client, _ in pairs))
    assert all(bytes(client.got) == STREAM[:8000] for client, _ in pairs)


def test_receive_ring_without_buffers():
    """More frames at once than the ring has buffers: the device drops them (as a wire would) and the peer's
    retransmissions bring them."""
    world = World()
    client, connection = opened(world)
    count = 3000
    for at in range(count):
        client.send(client.nxt + at * 10, ACK, STREAM[at * 10 : at * 10 + 10])
    world.run(1)
    assert world.transport.counters["rx_drop_no_buffer"] > 0
    for at in range(0, count * 10, 1000):
        client.send(client.nxt + at, ACK, STREAM[at : at + 1000])
    world.run(1)
    assert received(connection) == STREAM[: count * 10]


def test_device_that_forgets_the_listener():
    """A device that was reset by somebody else answers nothing; what was acknowledged is still there to be read, and connections end
    by time-out."""
    world = World(settings=TcpSettings(retries=3, max_rto=1))
    client, connection = opened(world)
    client.write(STREAM[:5000])
    world.run(1)
    connection.write(STREAM[:5000])
    world.transport.queue[0].enabled = False
    world.run(20)
    assert connection.closed and isinstance(connection.error, TimeoutError)
    assert received(connection) == STREAM[:5000]


# -- the end of a connection -------------------------------------------------------------------


def test_time_wait_is_not_assassinated():
    """RFC 1337: a reset in TIME_WAIT is ignored."""
    world = World(settings=TcpSettings(time_wait=2))
    client, connection = opened(world)
    connection.close()
    client.write(b"", fin=True)
    world.run(0.2)
    assert connection.state is State.TIME_WAIT
    for ahead in (0, 1, 100):
        client.send(client.rcv and client.nxt + ahead, RST)
    world.run(0.2)
    assert connection.state is State.TIME_WAIT
    world.run(3)
    assert connection.closed and connection.error is None


def test_fin_storm():
    """A FIN repeated, moved about and with other data: the end of the stream is where the first one in order says, and an
    acknowledged byte stays."""
    world = World()
    client, connection = opened(world)
    client.auto = False
    client.send(client.nxt, ACK, b"data")
    client.send(client.nxt + 4, ACK | FIN)
    world.run(0.05)
    rng = random.Random(9)
    for _ in range(300):
        client.send(client.nxt + rng.randrange(0, 50), ACK | FIN, rng.randbytes(rng.randrange(20)))
    world.run(0.5)
    assert connection.fin_received and received(connection) == b"data" and connection.state is State.CLOSE_WAIT
    connection.write(b"answer")
    connection.close()
    client.auto = True
    world.run(2)
    assert bytes(client.got) == b"answer" and client.fin_seen


def test_ecn_echo_storm():
    """RFC 3168 section 6.1.2: at most one reduction per window of data, however often the peer says ECE; one who did not
    agree to ECN is not believed."""
    world = World(ecn=True)
    client, connection = opened(world, ecn=True)
    plain, other = opened(world, port=40001)
    for peer, its in ((client, connection), (plain, other)):
        its.write(STREAM[:300_000])
        peer.send(peer.nxt, ACK)
    sent = itertools.count()

    def echo() -> None:
        for peer in (client, plain):
            peer.send(peer.nxt, ACK | ECE)
        if next(sent) < 2000:
            world.at(world.now + 0.002, echo)

    echo()
    world.run(120, lambda: len(client.got) == len(plain.got) == 300_000)
    assert bytes(client.got) == bytes(plain.got) == STREAM[:300_000]
