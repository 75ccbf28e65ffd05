"""The endpoint against a client of its own make, in virtual time, over a wire that loses."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acceltcp.host.tcp import State, TcpSettings

from . import fake_device
from .world import ACK, CWR, ECE, FIN, M32, RST, SYN, World

PATTERN = random.Random(5).randbytes(1 << 20)


def opened(world: World, **options):
    client = world.connect(**options)
    world.run(1, lambda: bool(world.connections))
    assert world.connections, "no connection"
    world.run(0.02)
    return client, world.connections[-1]


# -- opening -----------------------------------------------------------------------------


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("ts", [False, True])
@pytest.mark.parametrize("wscale", [None, 0, 9])
def test_open_takes_what_the_cookie_says(v6, ts, wscale):
    client, connection = opened(World(), v6=v6, ts=ts, wscale=wscale, mss=1300)
    assert connection.timestamps == ts and connection.sack
    assert connection.snd_shift == (wscale or 0)
    assert connection.rcv_shift == (0 if wscale is None else 7)
    assert connection.mss == 1300 - (12 if ts else 0)
    assert connection.iss == client.irs and connection.irs == client.iss
    assert connection.state is State.ESTABLISHED


def test_segment_size_follows_our_mtu():
    _, connection = opened(World(settings=TcpSettings(mtu=1280)), v6=True, mss=8940)
    assert connection.mss == 1280 - 60 - 12


def test_vlan_tag_and_mac_come_back():
    world = World()
    seen: list[bytes] = []
    client = world.connect(vlan=0xA00A)
    carry = world.transport.on_wire
    world.transport.on_wire = lambda frame: (seen.append(frame), carry(frame))
    world.run(1, lambda: bool(world.connections))
    world.connections[0].write(b"hello")
    world.run(0.1)
    assert bytes(client.got) == b"hello"
    assert all(frame[:16].hex() == "020000000001020000000002" + "8100a00a" for frame in seen) and seen


def test_replies_follow_a_peer_whose_mac_changes():
    world = World()
    client, connection = opened(world)
    client.send(client.nxt, ACK, b"x", mac=bytes.fromhex("0200000000aa"))
    world.run(0.1)
    assert connection.peer.mac.hex() == "0200000000aa"
    client.send(client.nxt + (1 << 30), ACK, b"x", mac=bytes.fromhex("0200000000bb"))
    world.run(0.1)
    assert connection.peer.mac.hex() == "0200000000aa"


def test_every_first_segment_is_new_and_opens_once():
    world = World()
    client, connection = opened(world)
    for _ in range(5):
        client.send(client.nxt, ACK)
    client.send(client.nxt, ACK, b"data")
    client.send(client.nxt, ACK, b"data")
    world.run(0.1)
    assert world.connections == [connection]
    assert connection.receive_buffer.peek(1 << 30) == b"data"
    assert world.transport.counters["setup_cookie_good"] >= 7


def test_defer_accept_opens_with_data():
    world = World(defer=True)
    client = world.connect()
    world.run(0.5)
    assert not world.connections and client.established
    client.write(b"GET")
    world.run(0.1)
    assert bytes(world.connections[0].receive_buffer) == b"GET"


def test_unwanted_connection_may_come_later():
    world = World()
    world.accepting = False
    client = world.connect()
    world.run(0.2)
    assert not world.connections and world.endpoint.stats["unwanted"] == 1 and not client.reset
    world.accepting = True
    client.write(b"again")
    world.run(1)
    assert bytes(world.connections[0].receive_buffer) == b"again"


# -- data --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("loss", "swap"), [(0, 0), (0.02, 0), (0.1, 0.1), (0, 0.3)])
@pytest.mark.parametrize("ts", [False, True])
def test_both_ways_whole_and_in_order(seed, loss, swap, ts):
    world = World(loss=loss, swap=swap, seed=seed, settings=TcpSettings(retries=20))
    client = world.connect(ts=ts, iss=M32 - 20_000, v6=bool(seed % 2))
    size = 200_000 if loss < 0.1 else 60_000
    client.write(PATTERN[:size], fin=True)
    received = bytearray()
    written = 0

    def pump() -> None:
        nonlocal written
        for connection in world.connections:
            received.extend(connection.consume(1 << 20))
            if not connection.closed and written < size and connection.unsent_or_unacked < 50_000:
                connection.write(PATTERN[written : written + 20_000][: size - written])
                written = min(written + 20_000, size)
            if written == size and connection.fin_received:
                connection.shutdown()
        world.at(world.now + 0.01, pump)

    pump()
    world.run(300, lambda: client.fin_seen and client.fin_acked)
    assert bytes(received) == PATTERN[:size]
    assert bytes(client.got) == PATTERN[:size]
    world.run(30, lambda: not world.endpoint.connections)
    assert world.endpoint.stats["failed"] == 0 and not world.endpoint.connections
    if loss == 0 and swap == 0:
        assert world.connections[0].retransmissions == 0


def test_sequence_numbers_wrap_on_our_side(monkeypatch):
    monkeypatch.setattr(fake_device, "cookie", lambda *args, **kwargs: M32 - 50_000)
    world = World(loss=0.01)
    client, connection = opened(world)
    assert connection.iss == M32 - 50_000
    connection.write(PATTERN)
    world.run(60, lambda: len(client.got) == len(PATTERN))
    assert bytes(client.got) == PATTERN


def test_small_transmit_ring_delays_but_loses_nothing():
    world = World(tx=8)
    client, connection = opened(world)
    connection.write(PATTERN[:300_000])
    world.run(20, lambda: len(client.got) == 300_000)
    assert bytes(client.got) == PATTERN[:300_000]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_reassembly_of_any_overlapping_pieces(data):
    world = World()
    client, connection = opened(world)
    client.auto = False
    size = data.draw(st.integers(1, 4000))
    pieces = data.draw(
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, 1400)), min_size=1, max_size=25), label="pieces"
    )
    for start, length in pieces:
        client.send(client.nxt + start, ACK, PATTERN[start : min(start + length, size)])
    world.run(0.2)
    covered = 0
    for start, length in sorted(pieces):
        if start > covered:
            break
        covered = max(covered, min(start + length, size))
    assert connection.receive_buffer.peek(1 << 30) == PATTERN[:covered]
    kept = connection.reassembly.size if connection.built else 0
    assert kept <= size - covered
    for start in range(0, size, 1400):
        client.send(client.nxt + start, ACK | (FIN if start + 1400 >= size else 0), PATTERN[start : min(start + 1400, size)])
    world.run(0.2)
    assert connection.receive_buffer.peek(1 << 30) == PATTERN[:size] and connection.fin_received


def test_out_of_order_data_are_answered_at_once_with_sack():
    world = World()
    client, _ = opened(world)
    client.seen.clear()
    client.auto = False
    for start in (100, 300, 500):
        client.send(client.nxt + start, ACK, b"x" * 50)
    world.run(0.011)
    base = client.nxt
    assert len(client.seen) == 3 and all(segment.ack == base for segment in client.seen)
    assert client.seen[-1].sack[0] == (base + 500 & M32, base + 550 & M32)
    assert set(client.seen[-1].sack) == {(base + at & M32, base + at + 50 & M32) for at in (100, 300, 500)}


def test_reassembly_is_bounded():
    world = World(settings=TcpSettings(reassembly_pieces=10))
    client, connection = opened(world)
    for start in range(1, 200, 2):
        client.send(client.nxt + start, ACK, b"x")
    world.run(0.1)
    assert len(connection.reassembly) == 10


def test_delayed_acknowledgment():
    world = World()
    client, _ = opened(world)
    client.seen.clear()
    start = world.now
    client.send(client.nxt, ACK, b"one")
    world.run(1, lambda: bool(client.seen))
    assert 0.04 <= world.now - start <= 0.06
    client.seen.clear()
    for i in range(2):
        client.send(client.nxt + 3 + 1448 * i, ACK, PATTERN[:1448])
    world.run(0.0101)
    assert [segment.ack for segment in client.seen] == [client.nxt + 3 + 2896 & M32]


def test_first_flight_is_ten_segments():
    world = World(delay=0.1)
    client, connection = opened(world)
    client.auto = False
    client.seen.clear()
    connection.write(PATTERN[:100_000])
    world.run(0.15)
    assert len(client.seen) == 10
    assert all(len(segment.payload) == connection.mss for segment in client.seen)


# -- loss --------------------------------------------------------------------------------


def test_three_duplicates_retransmit_without_a_time_out():
    world = World(delay=0.02)
    client, connection = opened(world, sack=False)
    real, dropped = world.transport.on_wire, []

    def drop_one(frame: bytes) -> None:
        if not dropped and len(frame) > 1000:
            dropped.append(frame)
        else:
            real(frame)

    world.transport.on_wire = drop_one
    start = world.now
    connection.write(PATTERN[:30_000])
    world.run(5, lambda: len(client.got) == 30_000)
    assert dropped and world.now - start < 0.2
    assert connection.retransmissions == 1
    assert bytes(client.got) == PATTERN[:30_000]


def test_time_outs_double_and_end():
    world = World(settings=TcpSettings(retries=4))
    client, connection = opened(world)
    client.auto = False
    client.seen.clear()
    times: list[float] = []
    real = world.transport.on_wire
    world.transport.on_wire = lambda frame: (times.append(world.now), real(frame))
    connection.write(b"hello?")
    world.run(100, lambda: connection.closed)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert len(times) == 6  # first, four again, reset
    assert all(1.9 < b / a < 2.1 for a, b in itertools.pairwise(gaps[:-1]))
    assert isinstance(connection.error, TimeoutError)
    world.run(0.1)
    assert client.reset


def test_round_trip_time_sets_the_time_out():
    for ts in (False, True):
        world = World(delay=0.15)
        client, connection = opened(world, ts=ts)
        world.run(1)
        for _ in range(20):
            connection.write(PATTERN[:1000])
            world.run(1)
        assert connection.rtt.srtt == pytest.approx(0.3, abs=0.02)
        assert 0.3 <= connection.rtt.rto < 0.45
        assert len(client.got) == 20_000


def test_zero_window_is_probed():
    world = World()
    client, connection = opened(world)
    client.window = 0
    client.send(client.nxt, ACK)
    world.run(0.1)
    client.auto = False
    client.seen.clear()
    connection.write(b"abcdef")
    world.run(20)
    probes = [segment for segment in client.seen if segment.payload]
    assert probes and all(segment.payload == b"a" for segment in probes)
    gaps = 20 / len(probes)
    assert 1 < gaps < 10
    # A receiver that answers, for however long, keeps the connection.
    client.auto = True
    world.run(900)
    assert not connection.closed
    client.window = 65535
    client.send(client.nxt, ACK)
    world.run(1)
    assert bytes(client.got) == b"abcdef" and not connection.send_buffer


def test_our_window_closes_and_opens():
    world = World(settings=TcpSettings(receive_buffer=65535))
    client, connection = opened(world)
    client.write(PATTERN[:300_000])
    world.run(5)
    assert 65535 <= len(connection.receive_buffer) <= 65535 + 256
    assert client.seen[-1].window <= 1
    got = bytearray()
    for _ in range(2000):
        got += connection.consume(5000)
        world.run(0.05)
        if len(got) == 300_000:
            break
    assert bytes(got) == PATTERN[:300_000]
    assert world.endpoint.stats["failed"] == 0


def test_peer_window_is_respected():
    world = World()
    client, connection = opened(world, wscale=0, window=5000)
    client.auto = False
    client.seen.clear()
    connection.write(PATTERN[:50_000])
    world.run(0.05)
    sent = sum(len(segment.payload) for segment in client.seen)
    assert 5000 - connection.mss < sent <= 5000


# -- closing -----------------------------------------------------------------------------


def test_client_closes_first():
    world = World()
    client, connection = opened(world)
    client.write(b"bye", fin=True)
    world.run(0.2)
    assert connection.state is State.CLOSE_WAIT and client.fin_acked
    connection.write(b"and you")
    connection.close()
    world.run(0.2)
    assert client.fin_seen and bytes(client.got) == b"and you"
    assert connection.state is State.CLOSED and connection.error is None


def test_server_closes_first():
    world = World()
    client, connection = opened(world)
    connection.write(b"done")
    connection.close()
    world.run(0.2)
    assert connection.state is State.FIN_WAIT_2 and client.fin_seen
    client.write(b"", fin=True)
    world.run(0.2)
    assert connection.state is State.TIME_WAIT and client.fin_acked
    client.seen.clear()
    client.send(client.nxt - 1, ACK | FIN)  # our last ACK was lost
    world.run(0.1)
    assert [segment.ack for segment in client.seen] == [client.nxt]
    client.send(client.nxt, RST)
    world.run(0.1)
    assert connection.state is State.TIME_WAIT  # RFC 1337
    world.run(3)
    assert connection.state is State.CLOSED and connection.error is None


def test_simultaneous_close():
    world = World(delay=0.1)
    client, connection = opened(world)
    world.run(0.5)
    connection.close()
    client.write(b"", fin=True)
    world.run(0.15)
    assert connection.state is State.CLOSING
    world.run(0.3)
    assert connection.state is State.TIME_WAIT and client.fin_seen and client.fin_acked
    world.run(3)
    assert connection.closed and connection.error is None


@pytest.mark.parametrize("seed", range(8))
def test_closing_survives_loss(seed):
    world = World(loss=0.3, seed=seed, settings=TcpSettings(retries=30))
    client = world.connect()
    client.write(b"request")
    world.run(60, lambda: bool(world.connections))
    connection = world.connections[0]
    connection.write(b"answer")
    connection.close()
    world.run(60, lambda: client.fin_seen)
    client.write(b"", fin=True)
    world.run(100, lambda: client.fin_acked)
    world.run(100, lambda: connection.closed)
    assert bytes(client.got) == b"answer" and connection.closed and connection.error is None


def test_half_close_keeps_reading():
    world = World()
    client, connection = opened(world)
    connection.shutdown()
    world.run(0.1)
    client.write(b"still here", fin=True)
    world.run(0.1)
    assert connection.receive_buffer.peek(1 << 30) == b"still here" and connection.fin_received


def test_data_for_nobody_are_reset_once_everything_was_said():
    world = World()
    client, connection = opened(world)
    connection.close()
    world.run(0.1)
    assert connection.state is State.FIN_WAIT_2
    client.write(b"more")
    world.run(0.1)
    assert client.reset and connection.closed


def test_peer_that_never_closes_is_given_up():
    world = World(settings=TcpSettings(fin_wait_2=5))
    _, connection = opened(world)
    connection.close()
    world.run(4)
    assert connection.state is State.FIN_WAIT_2
    world.run(2)
    assert connection.closed


def test_fin_with_lost_data_before_it():
    world = World()
    client, connection = opened(world)
    client.auto = False
    client.send(client.nxt + 5, ACK | FIN, b"later")
    world.run(0.1)
    assert not connection.fin_received
    client.send(client.nxt, ACK, b"first")
    world.run(0.1)
    assert connection.fin_received and connection.receive_buffer.peek(1 << 30) == b"firstlater"


# -- resets and strays -------------------------------------------------------------------


def test_reset_needs_the_exact_number():
    world = World()
    client, connection = opened(world)
    world.run(1)
    client.auto = False
    client.seen.clear()
    client.send(client.nxt + 1000, RST)
    world.run(0.05)
    assert not connection.closed and len(client.seen) == 1 and client.seen[0].flags == ACK
    client.send(client.nxt - 1, RST)
    client.send(client.nxt + (1 << 30), RST)
    world.run(0.05)
    assert not connection.closed and len(client.seen) == 1
    client.send(client.nxt, RST)
    world.run(0.05)
    assert connection.closed and isinstance(connection.error, ConnectionResetError)
    assert len(client.seen) == 1  # a reset is never answered


def test_strays_are_answered_but_not_often():
    world = World()
    client, connection = opened(world)
    world.run(1)
    client.auto = False
    client.seen.clear()
    for _ in range(50):
        client.send(client.nxt, ACK, ack=client.rcv + 100_000)
        client.send(client.nxt, ACK, ack=client.rcv - (1 << 28))
    world.run(0.05)
    assert len(client.seen) == 1 and not connection.closed


def test_paws_drops_old_segments():
    world = World()
    client, connection = opened(world)
    client.send(client.nxt, ACK, b"old", tsval=client.tsval() - 10_000)
    world.run(0.1)
    assert not connection.receive_buffer and client.seen[-1].ack == client.nxt
    client.send(client.nxt, ACK, b"new")
    world.run(0.1)
    assert connection.receive_buffer.peek(1 << 30) == b"new"


def test_segment_without_the_agreed_timestamps_is_dropped():
    world = World()
    client, connection = opened(world)
    client.send(client.nxt, ACK, b"bare", options=b"")
    world.run(0.1)
    assert not connection.receive_buffer


def test_unknown_tuple_on_a_listening_port_is_reset_only_a_second_later():
    world = World()
    client = world.connect()
    client.auto = False
    world.run(0.1)
    client.send(client.nxt + 10, ACK, b"overtook")
    world.run(0.9)
    assert not client.reset
    world.run(0.3)
    assert client.reset and client.seen[-1].seq == client.rcv and client.seen[-1].flags == RST


def test_overtaken_first_segment_still_opens():
    world = World()
    client = world.connect()
    client.auto = False
    world.run(0.1)
    client.send(client.nxt + 5, ACK, b"world")
    world.run(0.5)
    client.send(client.nxt, ACK, b"hello")
    world.run(2)
    assert not client.reset and bytes(world.connections[0].receive_buffer) == b"hello"
    client.send(client.nxt + 5, ACK, b"world")
    world.run(0.1)
    assert bytes(world.connections[0].receive_buffer) == b"helloworld"


def test_unknown_tuples_take_bounded_memory():
    world = World(settings=TcpSettings(unknown_limit=16))
    client = world.connect()
    client.auto = False
    world.run(0.1)
    for port in range(1000, 1100):
        client.port = port
        client.send(client.nxt + 9, ACK, b"x")
    world.run(0.1)
    assert len(world.endpoint._unknown) == 16 and world.endpoint.stats["unknown_dropped"] == 84
    world.run(2)
    assert len(world.strays) == 16 and not world.endpoint._unknown


@pytest.mark.parametrize(
    ("flags", "reply", "seq", "ack"),
    [(ACK, RST, 777, 0), (ACK | FIN, RST, 777, 0), (SYN, RST | ACK, 0, 1001 + 4), (0, RST | ACK, 0, 1000 + 4), (RST, None, 0, 0)],
)
def test_closed_port(flags, reply, seq, ack):
    world = World()
    client = world.connect(dst_port=81)
    client.established = True
    world.run(0.1)
    client.seen.clear()
    client.send(1000, flags, b"data", ack=777, options=b"")
    world.run(0.1)
    answers = [(segment.flags, segment.seq, segment.ack) for segment in client.seen]
    assert answers == ([] if reply is None else [(reply, seq, ack)])


def test_closed_connection_does_not_open_again():
    world = World()
    client, _ = opened(world)
    client.write(b"", fin=True)
    world.run(0.05)
    world.connections[0].close()
    world.run(0.1)
    assert world.connections[0].closed
    first = client.iss + 1
    client.send(first, ACK, ack=client.irs + 1)  # a late duplicate: its cookie is still good
    client.send(first, ACK, b"late", ack=client.irs + 1)
    world.run(0.2)
    assert len(world.connections) == 1 and not client.reset
    assert world.endpoint.stats["duplicates_of_closed"] == 2
    world.run(3)
    assert not world.endpoint._ended


@pytest.mark.parametrize("ts", [False, True])
@pytest.mark.parametrize("state", ["open", "time-wait", "closed"])
def test_fresh_handshake_of_the_same_tuple_replaces_the_old_one(state, ts):
    world = World()
    client, old = opened(world, iss=1000, ts=ts)
    if state == "time-wait":
        old.close()
        world.run(0.05)
        client.write(b"", fin=True)
    elif state == "closed":
        client.write(b"", fin=True)
        world.run(0.05)
        old.close()
    world.run(0.1)
    again, new = opened(world, iss=5_000_000, ts=ts)
    assert len(world.connections) == 2 and not new.closed and old.closed
    assert (old.error is not None) == (state == "open")
    again.write(b"hello")
    new.write(b"fresh")
    world.run(0.2)
    assert new.receive_buffer.peek(1 << 30) == b"hello" and bytes(again.got) == b"fresh"


def test_older_handshake_does_not_replace_a_connection():
    world = World()
    client, old = opened(world, iss=5_000_000)
    ghost = world.connect(iss=1000, ts_offset=0)
    world.run(0.3)
    assert len(world.connections) == 1 and not old.closed
    assert ghost.reset
    assert client.established


def test_aborted_connection_resets_what_comes_after():
    world = World()
    client, connection = opened(world)
    connection.abort()
    world.run(0.05)
    assert client.reset and isinstance(connection.error, ConnectionAbortedError)
    client.seen.clear()
    client.send(client.nxt, ACK, b"x")
    world.run(0.05)
    assert [segment.flags for segment in client.seen] == [RST]


# -- ECN ---------------------------------------------------------------------------------


def test_ecn_marks_echoes_and_slows_down():
    world = World(ecn=True)
    client, connection = opened(world, ecn=True)
    assert connection.ecn
    client.seen.clear()
    connection.write(PATTERN[:5000])
    world.run(0.1)
    assert all(segment.ect == 2 for segment in client.seen if segment.payload)
    assert all(segment.ect == 0 for segment in client.seen if not segment.payload)
    client.send(client.nxt, ACK, b"congested", ce=True)
    world.run(0.1)
    assert client.seen[-1].flags & ECE
    client.nxt = client.nxt + 9 & M32
    client.send(client.nxt, ACK | CWR, b"heard")
    world.run(0.1)
    assert not client.seen[-1].flags & ECE
    client.nxt = client.nxt + 5 & M32
    before = connection.congestion.cwnd
    client.auto = False
    connection.write(PATTERN[:30_000])
    world.run(0.05)
    client.send(client.nxt, ACK | ECE, ack=connection.snd_una + 1448)
    world.run(0.05)
    assert connection.congestion.cwnd < before
    assert not any(segment.flags & CWR for segment in client.seen)
    client.auto = True
    client.send(client.nxt, ACK)
    world.run(1)
    told = [segment for segment in client.seen if segment.flags & CWR]
    assert len(told) == 1 and told[0].payload
    assert not connection.send_buffer


def test_our_timestamps_go_on_from_the_handshake():
    world = World()
    client, connection = opened(world)
    world.run(5)
    connection.write(b"x")
    world.run(0.1)
    clock = world.transport.ts_clock()
    assert client.ts_recent <= clock and clock - client.ts_recent < 200


def test_a_fault_costs_one_connection_and_is_told(caplog):
    world = World()
    (_, broken), (second, whole) = opened(world), opened(world, port=40001)

    class Faulty:
        def writable(self) -> None:
            raise RuntimeError("no such thing")

        closed_with: OSError | None = None

        def closed(self, error: OSError | None) -> None:
            self.closed_with = error

    def copy_into(*arguments: object) -> None:
        raise RuntimeError("no such thing")

    faulty = broken.events = Faulty()
    broken.write(b"never sent")
    broken.send_buffer = type("Broken", (), {"copy_into": copy_into, "end": broken.snd_una + 10, "__len__": lambda self: 10})()
    whole.write(b"sent")
    world.run(0.2)
    assert bytes(second.got) == b"sent" and not whole.closed
    assert broken.closed and isinstance(faulty.closed_with, ConnectionAbortedError)
    assert "no such thing" in caplog.text
