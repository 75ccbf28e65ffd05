"""Time: RFC 6298, RFC 9293 section 3.8.3 to 3.8.6 and 3.6, RFC 8985 section 7 and 6.2, RFC 5482."""

from __future__ import annotations

import errno
import itertools

import pytest

from acceltcp.host.tcp import ConnectionOptions, State, TcpConnection

from .bench import ACK, FIN, M32, RST, Bench, Out, Talk, User, active, data, passive

MSS = 1448


def opened(rtt: float = 0.1, options: ConnectionOptions | None = None, talk: dict[str, object] | None = None, **settings: object) -> tuple[Bench, Talk, TcpConnection, User]:
    """An active open with a known round trip."""
    bench = Bench(**settings)
    connection, user = bench.connect(options=options)
    bench.run(rtt)
    peer = Talk(bench, 7, 0, **(talk or {}))
    peer.answer(connection)
    return bench, peer, connection, user


def gaps(segments: list[Out]) -> list[float]:
    return [round(b.time - a.time, 4) for a, b in itertools.pairwise(segments)]


# -- retransmission --------------------------------------------------------------------------


@pytest.mark.parametrize("sack", [False, True])
def test_retransmission_sequence(sack):
    """RFC 6298 sections 5.4 to 5.7: one segment each time, back-off by two, up to 60 s, `retries` times, then a reset and ETIMEDOUT. With SACK
    a tail loss probe comes first, once (RFC 8985 section 7)."""
    bench, _, connection, user = opened(0.3, talk={"sack": sack}, retries=8)
    rto = 0.3 + 4 * 0.15
    connection.write(bytes(MSS))
    sent = data(bench.turn()) + data(bench.run(1000))
    steps = gaps(sent)
    if sack:
        assert steps[0] == pytest.approx(2 * 0.3 + 0.2, abs=0.01)  # PTO = 2 SRTT + WCDelAckT
        steps = steps[1:]
    assert steps == pytest.approx([min(rto * 2**i, 60.0) for i in range(8)], rel=0.01)
    assert bench.out[-1].flags & RST and isinstance(user.errors[0], TimeoutError)
    assert user.errors[0].errno == errno.ETIMEDOUT and not bench.endpoint.connections


def test_the_least_and_the_greatest_time_out():
    """RFC 6298 section 2.4 wants 1 s at least; ours is a setting (0.2 s, as most stacks have it); section 2.5: at most 60 s."""
    bench, _, connection, _ = opened(0.001, talk={"sack": False}, min_rto=0.5, max_rto=1.5)
    connection.write(b"x")
    sent = data(bench.turn()) + data(bench.run(8))
    assert gaps(sent) == pytest.approx([0.5, 1.0, 1.5, 1.5, 1.5, 1.5], abs=0.001)


def test_estimator_on_the_wire():
    """RFC 6298 section 2.3 computed here: alpha 1/8, beta 1/4, K 4, weights as RFC 7323 appendix G (one segment: 1)."""
    bench, peer, connection, _ = opened(0.1, talk={"sack": False})
    srtt, rttvar = 0.1, 0.05
    for rtt in (0.2, 0.15, 0.3, 0.1, 0.12):
        connection.write(b"x" * MSS)
        bench.turn()
        bench.run(rtt)
        peer.say()
        rttvar += (abs(srtt - rtt) - rttvar) / 4
        srtt += (rtt - srtt) / 8
    connection.write(b"y")
    sent = data(bench.turn()) + data(bench.run(2, lambda: connection.retransmissions > 0))
    assert gaps(sent)[0] == pytest.approx(srtt + 4 * rttvar, rel=0.01)


def test_progress_starts_the_timer_anew():
    """RFC 6298 section 5.3."""
    bench, peer, connection, _ = opened(0.1, talk={"sack": False})
    connection.write(bytes(2 * MSS))
    first, _ = bench.turn()
    bench.run(0.25)
    peer.say(ack=first.end)
    (again,) = data(bench.run(0.6))[:1]
    assert again.seq == first.end and again.time - bench.now < 0
    # RTO after samples 0.1 and 0.25, counted from the acknowledgment.
    rttvar = 0.05 + (0.15 - 0.05) / 4
    assert again.time - (1000.1 + 0.25) == pytest.approx(0.1 + 0.15 / 8 + 4 * rttvar, rel=0.02)


def test_everything_acknowledged_stops_the_timer():
    """RFC 6298 section 5.2."""
    bench, peer, connection, _ = opened()
    connection.write(bytes(5 * MSS))
    bench.turn()
    peer.say()
    assert bench.run(1000) == [] and bench.endpoint.next_deadline() is None
    assert connection.state is State.ESTABLISHED


def test_retransmissions_give_no_sample_without_timestamps():
    """Karn's algorithm, RFC 6298 section 3: the back-off stays until new data are acknowledged."""
    bench, peer, connection, _ = opened(0.1, talk={"sack": False, "ts": False})
    connection.write(b"x")
    bench.turn()
    bench.run(0.5)
    srtt = connection.rtt.srtt
    assert connection.retransmissions == 1
    bench.run(0.05)
    peer.say()
    assert connection.rtt.srtt == srtt


def test_after_a_time_out_one_segment_then_slow_start():
    """RFC 5681 section 3.1: the loss window is one segment."""
    bench, peer, connection, _ = opened(0.1, talk={"sack": False})
    peer.follow = False
    connection.write(bytes(10 * MSS))
    first = bench.turn()
    assert len(first) == 10
    (again,) = data(bench.run(0.35))
    assert again.seq == first[0].seq
    assert [out.seq for out in peer.say(ack=first[0].end)] == [first[1].seq, first[2].seq]


def test_user_time_out():
    """RFC 5482, RFC 9293 section 3.8.3: unacknowledged for so long: give up, whatever the retries."""
    options = ConnectionOptions()
    options.user_timeout = 3.0
    bench, _, connection, user = opened(options=options)
    bench.run(100)  # idle: no matter
    start = bench.now
    connection.write(b"x")
    bench.run(100, lambda: bool(user.errors))
    assert bench.now - start == pytest.approx(3.0, abs=0.01) and isinstance(user.errors[0], TimeoutError)


# -- window probes ---------------------------------------------------------------------------


def test_probes_of_a_closed_window_go_on_for_ever_while_they_are_answered():
    """RFC 9293 section 3.8.6.1: the first after an RTO, intervals doubled up to the limit; the connection must stay as long as the
    peer acknowledges."""
    bench, peer, connection, user = opened(0.1, max_rto=10.0)
    peer.window = 0
    peer.follow = False
    peer.say()
    connection.write(b"data")
    assert bench.turn() == []
    times = [bench.now]
    while bench.now < 3000:
        (probe,) = bench.run(20, lambda: bench.out[-1].time > times[-1])[-1:]
        assert probe.payload == b"d" and len(probe.payload) == 1
        times.append(probe.time)
        peer.say()
    steps = [b - a for a, b in itertools.pairwise(times)]
    assert steps[:7] == pytest.approx([0.3, 0.6, 1.2, 2.4, 4.8, 9.6, 10.0], rel=0.05)
    assert all(step <= 10.01 for step in steps) and not user.errors
    peer.window, peer.follow = 100, True
    out = peer.say()
    assert b"".join(one.payload for one in out) == b"data"


def test_probes_nobody_answers_end():
    bench, peer, connection, user = opened(0.1, retries=4)
    peer.say(window=0)
    connection.write(b"data")
    probes = data(bench.run(1000))
    assert len(probes) == 4 and isinstance(user.errors[0], TimeoutError)
    assert gaps(probes) == pytest.approx([0.6, 1.2, 2.4], rel=0.05)


def test_a_probe_that_is_taken_opens_the_way():
    bench, peer, connection, _ = opened(0.1)
    peer.window = 0
    peer.say()
    connection.write(b"data")
    probe = data(bench.run(0.5))[0]
    assert probe.payload == b"d"
    peer.window = 1000
    peer.say()
    bench.run(0.1)
    assert bytes(peer.got) == b"data"


def test_user_time_out_of_a_closed_window():
    """RFC 9293 section 3.8.3 counts what was sent and not acknowledged; a probe that nobody takes is."""
    options = ConnectionOptions()
    options.user_timeout = 5.0
    bench, peer, connection, user = opened(options=options)
    peer.follow = False
    peer.window = 0
    peer.say()
    start = bench.now
    connection.write(b"data")
    out = bench.run(100, lambda: bool(user.errors))
    assert isinstance(user.errors[0], TimeoutError) and 5.0 <= bench.now - start < 12
    # RFC 5961 section 3.2: believed at once only if it is the next byte, which the probe was not for this peer.
    assert out[-1].flags & RST and out[-1].seq == peer.rcv


# -- keep-alive -----------------------------------------------------------------------------


def keeping(idle: float = 10, interval: float = 3, count: int = 4) -> ConnectionOptions:
    options = ConnectionOptions()
    options.keepalive, options.keepidle, options.keepintvl, options.keepcnt = True, idle, interval, count
    return options


def test_keep_alive_of_a_dead_peer():
    """RFC 9293 section 3.8.4: a segment with an old number; RST and ETIMEDOUT after `keepcnt` of them."""
    bench, peer, _, user = opened(options=keeping())
    start = bench.now
    out = bench.run(100)
    probes, reset = out[:-1], out[-1]
    assert [round(one.time - start, 6) for one in probes] == [10, 13, 16, 19]
    assert all(one.seq == peer.rcv - 1 and one.flags == ACK and not one.payload for one in probes)
    assert reset.flags & RST and reset.time - start == pytest.approx(22) and isinstance(user.errors[0], TimeoutError)


@pytest.mark.parametrize("what", ["ack", "data", "late"])
def test_any_answer_keeps_it_alive(what):
    bench, peer, connection, user = opened(options=keeping())
    for _ in range(10):
        bench.run(17 if what == "late" else 10.5)  # after one, or the third, probe
        peer.say(ACK, b"x" if what == "data" else b"")
    assert connection.state is State.ESTABLISHED and not user.errors
    quiet = bench.now
    (probe,) = [out for out in bench.run(10.5) if out.seq == peer.rcv - 1 & M32]
    assert probe.time - quiet == pytest.approx(10)


def test_no_keep_alive_unless_asked_for():
    """RFC 9293 section 3.8.4: off by default."""
    bench, _, connection, _ = opened()
    assert bench.run(100_000) == [] and connection.state is State.ESTABLISHED


def test_keep_alive_switched_on_and_off():
    bench, _, connection, _ = opened()
    bench.run(100)
    connection.options = keeping()
    connection.changed()
    bench.turn()
    assert len(bench.run(4)) == 2, "silent for longer than `keepidle` already: at once, and again 3 s later"
    connection.options.keepalive = False
    connection.changed()
    assert bench.run(1000) == [] and connection.state is State.ESTABLISHED


def test_no_keep_alive_while_data_are_in_flight():
    """RFC 1122 section 4.2.3.6: only when nothing else is sent: retransmissions probe as well."""
    bench, _, connection, _ = opened(options=keeping(1.0, 1.0, 1), retries=12)
    connection.write(b"x")
    out = bench.run(20)
    assert all(one.payload for one in out) and connection.state is State.ESTABLISHED


# -- linger ----------------------------------------------------------------------------------


def test_linger_zero_resets():
    """SO_LINGER as all systems have it: a reset instead of FIN, data dropped."""
    options = ConnectionOptions()
    options.linger = 0.0
    bench, _, connection, user = opened(options=options)
    connection.write(bytes(50_000))
    bench.turn()
    connection.close()
    reset = bench.out[-1]
    assert reset.flags & RST and reset.seq == connection.snd_nxt & M32
    assert isinstance(user.errors[0], ConnectionAbortedError) and bench.run(100) == []


@pytest.mark.parametrize("heard", [False, True])
def test_linger_is_a_limit(heard):
    """Until then data go out as always; then a reset, unless FIN was acknowledged."""
    options = ConnectionOptions()
    options.linger = 2.0
    bench, peer, connection, user = opened(options=options)
    connection.write(bytes(3000))
    connection.close()
    start = bench.now
    bench.turn()
    if heard:
        bench.run(0.1)
        peer.say()
        assert connection.state is State.FIN_WAIT_2
        assert bench.run(10) == [] and not user.errors
        return
    out = bench.run(10)
    assert out[-1].flags & RST and out[-1].time - start == pytest.approx(2)
    assert isinstance(user.errors[0], ConnectionAbortedError)


# -- tail loss probe, reordering ---------------------------------------------------------------


def test_tail_loss_probe_sends_the_last_segment():
    """RFC 8985 sections 7.2 and 7.3: PTO = 2 SRTT with several segments in flight; nothing new to send: the last one again."""
    bench, peer, connection, _ = opened(0.1)
    peer.follow = False
    connection.write(bytes(4 * MSS))
    sent = bench.turn()
    bench.run(0.1)
    peer.say(ack=sent[1].end)
    (probe,) = data(bench.run(0.25))
    assert probe.time - (sent[0].time + 0.1) == pytest.approx(0.2, rel=0.02)
    assert probe.seq == sent[3].seq and probe.payload == sent[3].payload
    bench.run(0.06)
    # The peer has it, but not the third: SACK tells, and that is sent again without a time-out.
    cwnd = connection.congestion.cwnd
    (again,) = data(peer.say(ack=sent[1].end, blocks=((sent[3].seq, sent[3].end),)) + bench.run(0.1))[:1]
    assert again.seq == sent[2].seq and connection.congestion.cwnd < cwnd and connection.retries == 0


def test_tail_loss_probe_sends_new_data_if_it_can():
    """RFC 8985 section 7.3: a new segment if there is one and the peer's window lets it."""
    bench, peer, connection, _ = opened(0.1, initial_segments=2)
    peer.follow = False
    connection.write(bytes(10 * MSS))
    sent = bench.turn()
    assert len(sent) == 2
    (probe,) = data(bench.run(0.25))
    assert probe.seq == sent[1].end


def test_a_probe_that_repairs_a_loss_reduces_the_window():
    """RFC 8985 section 7.4.2: one segment lost at the tail and repaired by the probe is a loss all the same."""
    bench, peer, connection, _ = opened(0.1)
    connection.write(bytes(10 * MSS))
    sent = bench.turn()
    bench.run(0.1)
    peer.say(ack=sent[8].end)
    cwnd = connection.congestion.cwnd
    (probe,) = data(bench.run(0.5, lambda: connection.retransmissions > 0))
    assert probe.seq == sent[9].seq
    connection.write(bytes(MSS))
    bench.turn()
    peer.say(ack=connection.snd_nxt)
    assert connection.congestion.cwnd < cwnd


def test_reordering_time_out():
    """RFC 8985 section 6.2: fewer than three SACKed segments: wait a quarter of the smallest round trip (srtt at most), then it is lost."""
    bench, peer, connection, _ = opened(0.1)
    peer.follow = False
    connection.write(bytes(3 * MSS))
    sent = bench.turn()
    bench.run(0.1)
    assert peer.say(ack=sent[0].seq, blocks=((sent[1].seq, sent[1].end),)) == []
    acked = bench.now
    (again,) = data(bench.run(0.1))[:1]
    assert again.seq == sent[0].seq and again.time - acked == pytest.approx(0.1 / 4, abs=0.003)


def test_what_comes_within_the_reordering_window_is_not_sent_again():
    bench, peer, connection, _ = opened(0.1)
    peer.follow = False
    connection.write(bytes(3 * MSS))
    sent = bench.turn()
    bench.run(0.1)
    cwnd = connection.congestion.cwnd
    peer.say(ack=sent[0].seq, blocks=((sent[1].seq, sent[1].end),))
    bench.run(0.02)
    peer.say(ack=sent[2].end)
    assert data(bench.run(5)) == [] and connection.retransmissions == 0 and connection.congestion.cwnd >= cwnd


# -- the waits of a close --------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.5, 2.0, 30.0])
def test_time_wait_lasts(seconds):
    """RFC 9293 section 3.6.1: 2 MSL, ours as set; a FIN that comes again is acknowledged and starts it anew (section 3.10.7.4)."""
    bench, peer, connection, user = opened(time_wait=seconds)
    connection.shutdown()
    bench.turn()
    (answer,) = peer.say(ACK | FIN)
    assert answer.ack == peer.seq and connection.state is State.TIME_WAIT and user.errors == [None]
    bench.run(seconds * 0.6)
    (answer,) = peer.say(ACK | FIN, seq=peer.seq - 1)
    assert answer.ack == peer.seq
    bench.run(seconds * 0.9)
    assert connection.state is State.TIME_WAIT
    bench.run(seconds * 0.15)
    assert connection.state is State.CLOSED and user.errors == [None]


def test_resets_do_not_shorten_time_wait():
    """RFC 1337."""
    bench, peer, connection, _ = opened()
    connection.shutdown()
    bench.turn()
    peer.say(ACK | FIN)
    peer.say(RST, seq=peer.seq)
    assert connection.state is State.TIME_WAIT


@pytest.mark.parametrize("seconds", [1.0, 60.0])
def test_fin_wait_2_of_who_has_closed_ends(seconds):
    """RFC 9293 section 3.6 leaves it open; RFC 1122 section 4.2.2.20 (f) lets a time-out end it, once nobody reads."""
    bench, peer, connection, user = opened(fin_wait_2=seconds)
    connection.close()
    bench.turn()
    peer.say()
    assert connection.state is State.FIN_WAIT_2
    bench.run(seconds * 0.99)
    assert not connection.closed
    bench.run(seconds * 0.02)
    assert connection.closed and user.errors == [None]


def test_fin_wait_2_of_who_still_reads_does_not_end():
    """Half-closed: RFC 9293 section 3.6, case 1."""
    bench, peer, connection, user = opened(fin_wait_2=1.0)
    connection.shutdown()
    bench.turn()
    peer.say()
    bench.run(100_000)
    assert connection.state is State.FIN_WAIT_2 and not user.errors
    connection.close()
    bench.run(1.1)
    assert connection.closed


def test_fin_is_sent_again_and_given_up():
    """A FIN is retransmitted like data."""
    bench, _, connection, user = opened(0.1, talk={"sack": False}, retries=3)
    connection.shutdown()
    fins = [out for out in bench.turn() + bench.run(100) if out.flags & FIN]
    assert gaps(fins) == pytest.approx([0.3, 0.6, 1.2], rel=0.03) and isinstance(user.errors[0], TimeoutError)
    assert connection.closed


def test_last_ack_ends_at_once():
    """RFC 9293 section 3.6: the passive closer does not wait."""
    bench = Bench()
    peer, connection, user = active(bench)
    peer.say(ACK | FIN)
    connection.shutdown()
    bench.turn()
    assert connection.state is State.LAST_ACK
    peer.say()
    assert connection.state is State.CLOSED and user.errors == [None]
    # A late FIN of the peer is dropped silently for a while (`linger`), not reset.
    assert peer.say(ACK | FIN, seq=peer.seq - 1) == []


def test_an_idle_connection_costs_no_time():
    """No timer at all: `next_deadline` is None."""
    bench = Bench()
    passive(bench)
    active(bench)
    bench.run(10)
    assert bench.endpoint.next_deadline() is None
