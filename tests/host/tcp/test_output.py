"""What goes out and when: RFC 9293 sections 3.7.4 and 3.8.6, RFC 1122 section 4.2.3.4, RFC 5681, RFC 6928."""

from __future__ import annotations

import itertools

import pytest

from acceltcp.host.tcp import ConnectionOptions, State, TcpConnection

from .bench import ACK, FIN, M32, PSH, Bench, Out, Talk, active, data, passive, read

MSS = 1448
"""1500 less IP, TCP and timestamps."""


def opened(bench: Bench | None = None, rtt: float = 0.1, **options: object) -> tuple[Bench, Talk, TcpConnection]:
    """An active open with a known round trip."""
    bench = bench or Bench()
    connection, _ = bench.connect()
    bench.run(rtt)
    peer = Talk(bench, 7, 0, **options)
    peer.answer(connection)
    return bench, peer, connection


def sizes(segments: list[Out]) -> list[int]:
    return [len(out.payload) for out in segments]


def write(bench: Bench, connection: TcpConnection, count: int) -> list[Out]:
    connection.write(bytes(count))
    return bench.turn()


# -- Nagle -----------------------------------------------------------------------------------


def test_a_small_segment_goes_when_nothing_is_in_flight():
    bench, _, connection = opened()
    assert sizes(write(bench, connection, 1)) == [1]


def test_a_second_small_segment_waits_for_the_first():
    """RFC 9293 section 3.7.4: unacknowledged data are in flight: collect until they are acknowledged or a segment is full."""
    bench, peer, connection = opened()
    write(bench, connection, 10)
    assert write(bench, connection, 10) == [] and write(bench, connection, 20) == []
    (rest,) = peer.say()
    assert len(rest.payload) == 30 and rest.flags == ACK | PSH


def test_a_small_segment_behind_full_ones_goes_at_once():
    """Minshall's change (draft-minshall-nagle-01; RFC 9293 section 3.7.4 names it): only a small segment in flight holds another
    back, so that the end of a large write is not delayed."""
    bench, _, connection = opened()
    assert sizes(write(bench, connection, 2 * MSS + 100)) == [MSS, MSS, 100]
    assert write(bench, connection, 100) == []
    assert sizes(write(bench, connection, MSS)) == [MSS]  # 100 + MSS: a full one goes, 100 are left
    assert connection.snd_nxt == connection.send_buffer.end - 100


def test_nodelay():
    """RFC 1122 section 4.2.3.4: an application can disable Nagle."""
    options = ConnectionOptions()
    options.nodelay = True
    bench = Bench()
    _, connection, _ = active(bench, options=options)
    for _ in range(5):
        assert sizes(write(bench, connection, 7)) == [7]


def test_nodelay_set_later_lets_go_what_waits():
    bench, _, connection = opened()
    connection.options = connection.options.copy()
    write(bench, connection, 10)
    write(bench, connection, 10)
    connection.options.nodelay = True
    connection.changed()
    assert sizes(bench.turn()) == [10]


def test_cork():
    """Only full segments; taking it out sends the rest."""
    options = ConnectionOptions()
    options.cork = True
    bench = Bench()
    _, connection, _ = active(bench, options=options)
    assert write(bench, connection, 100) == []
    assert sizes(write(bench, connection, MSS)) == [MSS]
    options.cork = False
    connection.changed()
    assert sizes(bench.turn()) == [100]


def test_cork_and_the_end():
    """FIN lets everything go."""
    options = ConnectionOptions()
    options.cork = True
    bench = Bench()
    _, connection, _ = active(bench, options=options)
    assert write(bench, connection, 100) == []
    connection.shutdown()
    (out,) = bench.turn()
    assert len(out.payload) == 100 and out.flags & FIN


# -- PSH and FIN -----------------------------------------------------------------------------


def test_push_marks_the_end_of_what_there_is():
    """RFC 9293 section 3.9.1.2: on the last segment of the buffered data."""
    bench, _, connection = opened()
    out = write(bench, connection, 3 * MSS)
    assert [one.flags for one in out] == [ACK, ACK, ACK | PSH]


@pytest.mark.parametrize("size", [1, MSS - 1, MSS, MSS + 1, 3 * MSS])
def test_fin_rides_on_the_last_data(size):
    bench, peer, connection = opened()
    connection.write(bytes(size))
    connection.shutdown()
    out = bench.turn()
    assert [bool(one.flags & FIN) for one in out] == [False] * (len(out) - 1) + [True]
    assert out[-1].payload and connection.state is State.FIN_WAIT_1
    peer.say()
    assert connection.state is State.FIN_WAIT_2


def test_fin_alone_needs_no_window():
    """A FIN takes no buffer: RFC 9293 section 3.8.6 counts data."""
    bench, peer, connection = opened()
    peer.say(window=0)
    connection.shutdown()
    (out,) = bench.turn()
    assert out.flags == FIN | ACK and not out.payload


def test_fin_waits_for_data_that_the_window_holds_back():
    bench, peer, connection = opened()
    peer.window = 0
    peer.say()
    connection.write(b"data")
    connection.shutdown()
    assert bench.turn() == []
    peer.window = 1000
    (out,) = peer.say()
    assert out.payload == b"data" and out.flags & FIN


def test_nothing_after_our_fin():
    """RFC 9293 section 3.10.2: SEND after CLOSE is an error."""
    bench, _, connection = opened()
    connection.shutdown()
    bench.turn()
    with pytest.raises(BrokenPipeError, match="closed for writing"):
        connection.write(b"x")
    connection.shutdown()
    assert bench.turn() == []


def test_piggyback_off_sends_everything_apart():
    """For measuring: acknowledgment, data and FIN each in a segment of its own."""
    bench = Bench(piggyback=False)
    peer, connection, _ = active(bench)
    connection.write(b"answer")
    connection.shutdown()
    out = peer.say(ACK, b"question")
    kinds = [(bool(one.payload), bool(one.flags & FIN)) for one in out]
    assert kinds == [(False, False), (True, False), (False, True)]


def test_data_carry_the_acknowledgment():
    bench = Bench()
    peer, connection, user = active(bench)
    user.on_readable = lambda: connection.write(b"answer")
    (out,) = peer.say(ACK, b"question")
    assert out.payload == b"answer" and out.ack == peer.seq
    assert bench.run(0.03) == []


# -- windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0, 3])
def test_the_window_is_never_exceeded(scale):
    """RFC 9293 section 3.8.6: SND.UNA + SND.WND is the edge."""
    bench, peer, connection = opened(wscale=scale)
    window = 5000
    peer.window = window >> (scale or 0)
    peer.say()
    out = write(bench, connection, 50_000)
    edge = peer.rcv - sum(sizes(out)) + (peer.window << (scale or 0))
    assert out[-1].end == edge or edge - out[-1].end < MSS
    assert sum(sizes(out)) <= window
    # Acknowledged, it moves on.
    for _ in range(30):
        out = peer.say()
        assert sum(sizes(out)) <= window
        if not out:
            bench.run(0.3)
    assert len(peer.got) == 50_000


def test_sender_silly_window_avoidance():
    """RFC 1122 section 4.2.3.4: no small segment only because the window is small: a full one, or half the largest window
    ever seen, or all there is and nothing in flight; else the override time-out (here: the persist timer)."""
    bench, peer, connection = opened(wscale=None, window=4000)
    peer.say()
    assert connection.max_wnd == 4000
    assert sizes(write(bench, connection, 20_000)) == [MSS, MSS]  # 1104 are left of the window, with data in flight
    assert peer.say(window=1400) == [], "less than a segment and than half of the largest window, though nothing is in flight"
    (out,) = peer.say(window=1000 + MSS)
    assert len(out.payload) == MSS


def test_half_of_the_largest_window_will_do():
    """RFC 1122 section 4.2.3.4, condition 3: Fs = 1/2."""
    bench, peer, connection = opened(wscale=None, window=1000)
    peer.say()
    assert sizes(write(bench, connection, 5000)) == [1000]
    assert sizes(peer.say(window=499)) == []
    assert sizes(peer.say(window=500)) == [500]


def test_override_time_out_sends_what_fits():
    """RFC 1122 section 4.2.3.4, condition 4: when the window stays small it goes after all."""
    bench, peer, connection = opened(wscale=None, window=2000)
    peer.say()
    write(bench, connection, 5000)
    peer.say(window=100)
    first, *_ = data(bench.run(1.5))
    assert 0.1 <= first.time - 1000.1 <= 1 and len(first.payload) == 100


def test_window_of_a_segment_that_was_sent_again():
    """RFC 9293 section 3.10.7.4 takes no window from a lower sequence number than the latest; but with a higher acknowledgment it is the newest
    all the same, and the edge must not move beyond what was promised."""
    bench, peer, connection = opened(wscale=None, window=2 * MSS)
    base = peer.seq
    peer.say(ACK, b"later", seq=base + 5)
    assert sizes(write(bench, connection, 10_000)) == [MSS, MSS]
    assert data(peer.say(ACK, b"first", seq=base, window=0)) == []
    assert connection.snd_wnd == 0 and data(bench.run(0.1)) == []


def test_receiver_silly_window_avoidance():
    """RFC 9293 section 3.8.6.2.2: the edge moves by at least min(half the buffer, a segment) or not at all."""
    options = ConnectionOptions()
    options.rcvbuf = 20_000
    bench = Bench(window_scale=0)
    peer, connection, _ = active(bench, options=options)
    edges = []

    def edge(out: Out) -> int:
        return out.ack + out.window - peer.iss

    sent = 0
    while sent < 20_000:
        part = min(MSS, 20_000 - sent)
        out = peer.say(ACK, bytes(part)) + bench.run(0.05)
        sent += part
        edges += [edge(one) for one in out]
    assert edges[-1] == edges[0] and bench.out[-1].window == 0, "nobody reads: the edge stands still, to the last byte"
    last = edges[-1]
    for _ in range(200):
        connection.consume(100)
        for one in bench.turn():
            moved = edge(one) - last
            assert moved == 0 or moved >= MSS, moved
            last = edge(one)
    # What was read beyond two segments' room is told with the next acknowledgment.
    peer.say(ACK, bytes(MSS))
    peer.say(ACK, bytes(MSS))
    assert edge(bench.out[-1]) == 20_001 + 20_000


def test_the_edge_never_moves_back():
    """RFC 9293 section 3.8.6: shrinking the window is strongly discouraged."""
    bench = Bench()
    peer, connection, _ = active(bench)
    edge = 0
    for number in range(300):
        out = peer.say(ACK, bytes(1 + 97 * number % MSS)) + (bench.run(0.05) if number % 3 == 0 else [])
        if number % 7 == 0:
            connection.consume(number * 50)
        for one in out:
            now = (one.ack - peer.iss & M32) + (one.window << 7)
            assert now >= edge
            edge = now


def test_zero_window_opens_with_reading_at_once():
    """The update is not delayed until the peer probes."""
    options = ConnectionOptions()
    options.rcvbuf = 8000
    bench = Bench(window_scale=0)
    peer, connection, _ = active(bench, options=options)
    for size in (MSS, MSS, MSS, MSS, MSS, 760):
        peer.say(ACK, bytes(size))
    bench.run(0.1)
    assert bench.out[-1].window == 0
    read(connection)
    (update,) = bench.turn()
    assert update.flags == ACK and update.window == 8000


# -- initial window, idle restart --------------------------------------------------------------


@pytest.mark.parametrize("mss", [200, 536, 1000, 1460, 4000, 8960])
@pytest.mark.parametrize("segments", [1, 3, 10])
def test_initial_window(mss, segments):
    """RFC 6928 section 2: min(10 MSS, max(2 MSS, 14600)); fewer segments if so set."""
    bench = Bench(initial_segments=segments, mtu=9000)
    _, _, connection = opened(bench, mss=mss, ts=False)
    out = write(bench, connection, 200_000)
    allowed = min(segments * mss, max(2 * mss, 14600))
    assert sum(sizes(out)) == min(allowed // mss * mss, 65535)


def test_slow_start_doubles():
    """RFC 5681 section 3.1: each acknowledged segment makes room for two, when every second is acknowledged for two of them (RFC 3465, L = 2)."""
    bench, peer, connection = opened()
    peer.window = 65535
    peer.follow = False
    flight = write(bench, connection, 1_000_000)
    assert len(flight) == 10
    after = []
    for one, two in zip(flight[::2], flight[1::2], strict=True):
        after.append(len(peer.say(ack=two.end)))
        assert one.end == two.seq
    assert after == [4] * 5


def test_idle_connection_starts_again_slowly():
    """RFC 5681 section 4.1: after more than an RTO without sending, cwnd is at most the restart window (the initial one)."""
    bench, peer, connection = opened()
    for _ in range(6):
        connection.write(bytes(60_000))
        bench.turn()
        while connection.snd_una < connection.snd_nxt:
            bench.run(0.05)
            peer.say()
    assert connection.congestion.cwnd > 40_000
    bench.run(30)
    assert sum(sizes(write(bench, connection, 200_000))) <= 14_600


def test_busy_connection_does_not():
    bench, peer, connection = opened()
    for _ in range(6):
        connection.write(bytes(60_000))
        bench.turn()
        while connection.snd_una < connection.snd_nxt:
            bench.run(0.02)
            peer.say()
    assert sum(sizes(write(bench, connection, 60_000))) > 40_000


# -- acknowledgments ---------------------------------------------------------------------------


def test_every_second_full_segment_is_acknowledged():
    """RFC 9293 section 3.8.6.3 (RFC 1122 section 4.2.3.2): at least every second full-sized segment, at once."""
    bench = Bench()
    peer, _, _ = passive(bench)
    answers = [len(peer.say(ACK, bytes(MSS))) for _ in range(10)]
    assert answers == [0, 1] * 5
    assert all(out.ack == peer.seq for out in bench.out[-1:])


def test_a_single_segment_is_acknowledged_within_half_a_second():
    """RFC 9293 section 3.8.6.3: less than 0.5 s; ours as set."""
    bench = Bench(delayed_ack=0.12)
    peer, _, _ = passive(bench)
    start = bench.now
    assert peer.say(ACK, b"x") == []
    (out,) = bench.run(1)
    assert out.time - start == pytest.approx(0.12) and out.ack == peer.seq


def test_small_segments_share_an_acknowledgment():
    """Until two segments' worth have come, or the time is over."""
    bench, peer, _ = opened()
    for _ in range(20):
        assert peer.say(ACK, bytes(100)) == []
        bench.now += 0.001
    (out,) = bench.run(0.1)
    assert out.ack == peer.seq


def test_quickack():
    options = ConnectionOptions()
    options.quickack = True
    bench = Bench()
    peer, _, _ = active(bench, options=options)
    assert [len(peer.say(ACK, b"x")) for _ in range(5)] == [1] * 5


@pytest.mark.parametrize("lazy", [True, False])
def test_gaps_and_what_fills_them_are_acknowledged_at_once(lazy):
    """RFC 5681 section 4.2: out-of-order segments, and those that fill a gap."""
    bench = Bench(lazy=lazy)
    peer, connection, _ = passive(bench)
    base = peer.seq
    (out,) = peer.say(ACK, b"c", seq=base + 2)
    assert out.ack == base and out.sack == [(base + 2, base + 3)]
    (out,) = peer.say(ACK, b"a", seq=base)
    assert out.ack == base + 1
    (out,) = peer.say(ACK, b"b", seq=base + 1)
    assert out.ack == base + 3 and not out.sack and read(connection) == b"abc"


def test_pure_acknowledgments_are_not_acknowledged():
    bench = Bench()
    peer, _, _ = active(bench)
    assert [peer.say() for _ in range(5)] == [[]] * 5 and bench.run(10) == []


def test_a_repetition_is_answered_with_dsack():
    """RFC 9293 section 3.10.7.4 and RFC 2883 section 4.1."""
    bench = Bench()
    peer, _, _ = active(bench)
    base = peer.seq
    peer.say(ACK, bytes(100))
    bench.run(0.1)
    (out,) = peer.say(ACK, bytes(100), seq=base)
    assert out.ack == base + 100 and out.sack[0] == (base, base + 100)
    (out,) = peer.say(ACK, bytes(150), seq=base) or bench.run(0.1)
    assert out.ack == base + 150 and out.sack[:1] == [(base, base + 100)]


# -- the ring ------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", range(1, 12))
def test_a_full_ring_delays_but_changes_nothing(room):
    """Any point at which the ring may be full: the same segments leave in the end."""
    bench, peer, connection = opened()
    bench.room = room
    connection.write(bytes(range(256)) * 40)
    connection.shutdown()
    bench.turn()
    peer.say(ACK, b"hello")
    for _ in range(20):
        bench.room = 1
        bench.endpoint.unblock()
        bench.turn()
    bench.room = 1 << 30
    bench.endpoint.unblock()
    bench.run(0.1)
    peer.say()
    assert bytes(peer.got) == bytes(range(256)) * 40 and peer.fin
    assert connection.retransmissions == 0 and read(connection) == b"hello"


def test_sequence_of_segments_has_no_holes():
    bench, _, connection = opened()
    out = write(bench, connection, 14_000)
    assert all(before.end == after.seq for before, after in itertools.pairwise(out))
    assert out[0].seq == connection.iss + 1 & M32
