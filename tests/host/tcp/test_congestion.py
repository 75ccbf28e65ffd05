"""Reno against traces by hand, CUBIC against the closed formulas of RFC 9438, PRR against the text of RFC 9937."""

from __future__ import annotations

import itertools
import math
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acceltcp.host.tcp.congestion import (
    CONGESTION_CONTROLS,
    INFINITE,
    CongestionControl,
    Cubic,
    Prr,
    Reno,
    make,
)
from acceltcp.host.tcp.scoreboard import RECOVERED, Scoreboard

MSS = 1000
NAMES = sorted(CONGESTION_CONTROLS)


def ack(cc: CongestionControl, count: int = MSS, now: float = 0.0, rtt: float = 0.0, limited: bool = True) -> None:
    cc.acked(count, max(cc.cwnd - count, 0), now, rtt, 0.1, limited)


def in_avoidance(name: str, segments: int, now: float = 0.0) -> CongestionControl:
    """With cwnd = ssthresh = so many segments, after a loss."""
    cc = make(name, MSS, 10 * MSS)
    beta = {"reno": 0.5, "cubic": 0.7}[name]
    cc.cwnd = round(segments * MSS / beta)
    cc.lost(cc.cwnd, now)
    cc.recovered(now)
    assert cc.cwnd == pytest.approx(segments * MSS, abs=1)
    return cc


# -- all ---------------------------------------------------------------------------------


def test_names():
    assert isinstance(make("cubic", MSS, 10 * MSS), Cubic) and isinstance(make("reno", MSS, 10 * MSS), Reno)
    with pytest.raises(ValueError, match="one of cubic, reno, not 'bbr'"):
        make("bbr", MSS, 10 * MSS)


@pytest.mark.parametrize("name", NAMES)
def test_slow_start_doubles_with_an_ack_for_every_second_segment(name):
    cc = make(name, MSS, 10 * MSS)
    for _ in range(5):
        ack(cc, 2 * MSS)
    assert cc.cwnd == 20 * MSS


@pytest.mark.parametrize("name", NAMES)
def test_slow_start_counts_eight_segments_per_ack_at_most(name):
    """RFC 3465 section 2.2 and 2.3 with RFC 9406 section 4.2: L = 8, after a time-out L = 1; and not more than was acknowledged."""
    cc = make(name, MSS, 10 * MSS)
    ack(cc, 9 * MSS)
    assert cc.cwnd == 18 * MSS
    ack(cc, 1)
    assert cc.cwnd == 18 * MSS + 1
    cc.timed_out(cc.cwnd, 0.0)
    assert cc.cwnd == MSS
    ack(cc, 9 * MSS)
    assert cc.cwnd == 2 * MSS


@pytest.mark.parametrize("name", NAMES)
def test_a_window_that_is_not_used_does_not_grow(name):
    cc = make(name, MSS, 10 * MSS)
    for _ in range(50):
        ack(cc, limited=False)
    assert cc.cwnd == 10 * MSS
    cc = in_avoidance(name, 20)
    before = cc.cwnd
    for step in range(200):
        ack(cc, now=step * 0.1, limited=False)
    assert cc.cwnd == before


@pytest.mark.parametrize(("name", "beta"), [("reno", 0.5), ("cubic", 0.7)])
@pytest.mark.parametrize("event", ["lost", "congested", "timed_out"])
def test_reductions(name, beta, event):
    """Of FlightSize, not of cwnd (RFC 5681 equation 4)."""
    cc = make(name, MSS, 100 * MSS)
    getattr(cc, event)(50 * MSS, 0.0)
    assert cc.ssthresh == 50 * MSS * beta
    assert cc.cwnd == (MSS if event == "timed_out" else cc.ssthresh)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("event", "cwnd"), [("lost", 2 * MSS), ("congested", MSS), ("timed_out", MSS)])
def test_smallest_windows(name, event, cwnd):
    cc = make(name, MSS, 10 * MSS)
    getattr(cc, event)(MSS, 0.0)
    assert (cc.ssthresh, cc.cwnd) == (2 * MSS, cwnd)


@pytest.mark.parametrize("name", NAMES)
def test_time_outs_in_a_row_keep_ssthresh(name):
    """RFC 5681 section 3.1: ssthresh is held constant when the retransmission is lost too."""
    cc = make(name, MSS, 100 * MSS)
    cc.timed_out(80 * MSS, 0.0)
    ssthresh = cc.ssthresh
    cc.timed_out(MSS, 1.0, first=False)
    assert (cc.ssthresh, cc.cwnd) == (ssthresh, MSS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("event", ["lost", "timed_out"])
def test_undo_brings_everything_back(name, event):
    once, undone = (in_avoidance(name, 50) for _ in range(2))
    for cc in (once, undone):
        for step in range(300):
            ack(cc, now=1 + step * 0.002)
    getattr(undone, event)(undone.cwnd, 1.7)
    assert undone.cwnd < once.cwnd
    undone.undo()
    assert (undone.cwnd, undone.ssthresh) == (once.cwnd, once.ssthresh)
    for cc in (once, undone):
        for step in range(3000):
            ack(cc, now=2 + step * 0.002)
    assert undone.cwnd == pytest.approx(once.cwnd, abs=2)


@pytest.mark.parametrize("name", NAMES)
def test_undo_after_ecn_or_twice_does_nothing(name):
    cc = make(name, MSS, 100 * MSS)
    cc.congested(100 * MSS, 0.0)
    window = cc.cwnd
    cc.undo()
    cc.undo()
    assert cc.cwnd == window


@pytest.mark.parametrize("name", NAMES)
def test_undo_does_not_shrink_what_has_grown(name):
    cc = make(name, MSS, 10 * MSS)
    cc.timed_out(10 * MSS, 0.0)
    cc.cwnd = 30 * MSS
    cc.undo()
    assert (cc.cwnd, cc.ssthresh) == (30 * MSS, INFINITE)


@pytest.mark.parametrize("name", NAMES)
def test_restart_after_idle(name):
    cc = in_avoidance(name, 80)
    cc.idle(100.0, 1.0)
    assert (cc.cwnd, cc.ssthresh // MSS) == (10 * MSS, 80)
    small = in_avoidance(name, 4)
    small.idle(100.0, 1.0)
    assert small.cwnd == pytest.approx(4 * MSS, abs=1)


@pytest.mark.parametrize("name", NAMES)
def test_smaller_segments_keep_their_number_larger_their_bytes(name):
    cc = make(name, MSS, 10 * MSS)
    cc.resized(500)
    assert (cc.mss, cc.cwnd) == (500, 10 * 500)
    cc.resized(1400)
    assert (cc.mss, cc.cwnd) == (1400, 10 * 500)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_never_below_a_segment_nor_above_the_largest_window(name, data):
    cc = make(name, MSS, 10 * MSS)
    now = 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.floats(0, 100))
        action = data.draw(st.sampled_from(["ack", "lost", "congested", "timed_out", "recovered", "idle", "undo", "resized"]))
        flight = data.draw(st.integers(0, 1 << 30))
        if action == "ack":
            before = cc.cwnd
            cc.acked(flight, flight, now, 0.01, 0.01, data.draw(st.booleans()))
            assert before <= cc.cwnd <= max(before * 3 // 2 + cc.mss, before + 8 * cc.mss)
        elif action in ("lost", "congested", "timed_out"):
            getattr(cc, action)(flight, now)
        elif action == "resized":
            cc.resized(data.draw(st.integers(1, 9000)))
        elif action == "idle":
            cc.idle(now, 1.0)
        else:
            getattr(cc, action)(*([now] if action == "recovered" else []))
        assert cc.mss <= cc.cwnd <= INFINITE
        assert isinstance(cc.cwnd, int) and isinstance(cc.ssthresh, int)


# -- HyStart++ (RFC 9406) ----------------------------------------------------------------


def rounds(cc: CongestionControl, rtts: list[float], acks: int = 0) -> list[int]:
    """Slow start with a round trip per round; cwnd after each."""
    windows = []
    for rtt in rtts:
        for _ in range(cc.cwnd // MSS):
            cc.acked(MSS, cc.cwnd, 0.0, rtt, rtt, True)
        windows.append(cc.cwnd // MSS)
    return windows


def test_hystart_goes_on_while_delay_does_not_grow():
    assert rounds(make("cubic", MSS, 10 * MSS), [0.100, 0.101, 0.100, 0.103]) == [20, 40, 80, 160]


@pytest.mark.parametrize("name", NAMES)
def test_hystart_ends_slow_start_when_delay_keeps_growing(name):
    """Delay above min(max(4 ms, 100 ms / 8), 16 ms) = 12.5 ms: five rounds of a quarter of the growth, then congestion avoidance."""
    cc = make(name, MSS, 16 * MSS)
    windows = rounds(cc, [0.100, 0.100, 0.120, 0.125, 0.130, 0.135, 0.140, 0.145, 0.150, 0.155])
    assert windows[:2] == [32, 64]
    assert 64 < windows[2] < 100  # conservative from the eighth sample on: a quarter of the growth
    assert cc.ssthresh < INFINITE and cc.ssthresh <= cc.cwnd
    growth = [after / before for before, after in itertools.pairwise(windows[2:7])]
    assert all(1.1 < ratio < 1.35 for ratio in growth), growth


def test_hystart_takes_a_jitter_back():
    """RFC 9406 section 4.2: in conservative slow start a round trip below the baseline resumes slow start."""
    cc = make("cubic", MSS, 16 * MSS)
    windows = rounds(cc, [0.100, 0.100, 0.120, 0.100, 0.100, 0.100])
    assert cc.ssthresh == INFINITE
    assert windows[-1] == pytest.approx(2 * windows[-2], rel=0.1)


def test_hystart_is_for_the_first_slow_start_only():
    cc = in_avoidance("reno", 200)
    cc.timed_out(200 * MSS, 0.0)
    ssthresh = cc.ssthresh
    rounds(cc, [0.1] * 3 + [0.2] * 3)
    assert cc.ssthresh == ssthresh


# -- Reno --------------------------------------------------------------------------------


def test_reno_by_hand():
    """Start 10, loss at 40: 20, then one segment per window; time-out at 24: 12 and slow start from 1."""
    reno = make("reno", MSS, 10 * MSS)
    while reno.cwnd < 40 * MSS:
        ack(reno, 2 * MSS)
    reno.lost(40 * MSS, 0.0)
    assert (reno.cwnd, reno.ssthresh) == (20 * MSS, 20 * MSS)
    reno.recovered(0.0)
    for window in (20, 21, 22, 23):
        assert reno.cwnd == window * MSS
        for _ in range(window):
            ack(reno)
    assert reno.cwnd == 24 * MSS
    reno.timed_out(24 * MSS, 0.0)
    trace = [reno.cwnd // MSS]
    for _ in range(11):
        ack(reno)
        trace.append(reno.cwnd // MSS)
    assert trace == list(range(1, 13))
    for _ in range(12):
        ack(reno)
    assert reno.cwnd == 13 * MSS


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=200))
def test_reno_counts_bytes_not_acks(counts):
    """RFC 3465: dividing acknowledgments brings nothing (no ack division attack)."""
    whole, divided = in_avoidance("reno", 20), in_avoidance("reno", 20)
    for count in counts:
        ack(whole, count)
        for _ in range(count % 7):
            ack(divided, count // 7)
        ack(divided, count - count // 7 * (count % 7))
    assert abs(whole.cwnd - divided.cwnd) <= MSS


# -- CUBIC (RFC 9438) --------------------------------------------------------------------

C, BETA = 0.4, 0.7
ALPHA = 3 * (1 - BETA) / (1 + BETA)


def fluid(cc: CongestionControl, rtt: float, until: float, start: float = 0.0) -> list[tuple[float, float]]:
    """Acknowledge a window per round trip, evenly; (time since start, cwnd in segments) after each acknowledgment."""
    now, trace = start, []
    while now - start < until:
        now += rtt / (cc.cwnd / MSS)
        cc.acked(MSS, cc.cwnd - MSS, now, rtt, rtt, True)
        trace.append((now - start, cc.cwnd / MSS))
    return trace


@pytest.mark.parametrize(("w_max", "rtt"), [(1000, 0.1), (400, 0.05), (4000, 0.2)])
def test_cubic_follows_its_curve(w_max, rtt):
    """Equations 1 and 2: back at W_max after K, concave before, convex after."""
    cc = make("cubic", MSS, w_max * MSS)
    cc.lost(w_max * MSS, 0.0)
    cc.recovered(0.0)
    epoch = w_max * BETA
    k = math.cbrt((w_max - epoch) / C)
    trace = fluid(cc, rtt, 1.5 * k)
    for t, window in trace[len(trace) // 20 :: 97]:
        # The window is brought to the curve's value one round trip ahead, within that round trip; it can lag by one of them.
        low, high = (C * (at - k) ** 3 + w_max for at in (t - rtt, t + rtt))
        assert low * 0.99 <= window <= high * 1.01, (t, window, low, high)
    assert min(abs(t - k) for t, window in trace if abs(window - w_max) < 1) < 2 * rtt


def reference(w_max: float, prior: float, epoch: float, rtt: float, acks: list[float]) -> list[float]:
    """cwnd in segments after acknowledgments of a segment each at these times: section 4.2 to 4.5 written down plainly."""
    k = math.cbrt((w_max - epoch) / C) if w_max > epoch else 0.0
    w_max = max(w_max, epoch)
    cwnd = w_est = epoch
    started, out = None, []
    for now in acks:
        if started is None:
            started = now
        t = now - started
        w_est = w_est + (ALPHA if w_est < prior else 1.0) * 1 / cwnd
        if C * (t - k) ** 3 + w_max < w_est:
            cwnd = max(w_est, cwnd)
        else:
            target = min(max(C * (t + rtt - k) ** 3 + w_max, cwnd), 1.5 * cwnd)
            cwnd = cwnd + (target - cwnd) / cwnd
        out.append(cwnd)
    return out


@settings(max_examples=50, deadline=None)
@given(
    st.integers(4, 3000), st.floats(0.001, 0.5), st.lists(st.floats(1e-5, 0.05), min_size=1, max_size=300),
    st.booleans(),
)  # fmt: skip
def test_cubic_against_a_plain_transcription(w_max, rtt, gaps, fast):
    cc = make("cubic", MSS, w_max * MSS)
    peak = float(w_max)
    if fast:
        cc.lost(w_max * MSS, 0.0)
        peak = w_max * BETA if cc.cwnd == int(w_max * MSS * BETA) else 2.0
    prior = cc.cwnd / MSS
    cc.lost(cc.cwnd, 0.0)
    w_max_now = prior * (1 + BETA) / 2 if fast else peak
    cc.recovered(0.0)
    times, now = [], 1.0
    for gap in gaps:
        now += gap
        times.append(now)
    expected = reference(w_max_now, prior, cc.cwnd / MSS, rtt, times)
    for at, want in zip(times, expected, strict=True):
        cc.acked(MSS, 0, at, rtt, rtt, True)
        assert cc.cwnd / MSS == pytest.approx(want, rel=1e-6, abs=2 / MSS)


def test_cubic_is_not_slower_than_reno_where_reno_is_fast():
    """Section 4.3: with short round trips and small windows the average is that of AIMD(alpha, beta), and from cwnd_prior on
    a segment per round trip."""
    cc = make("cubic", MSS, 20 * MSS)
    cc.lost(20 * MSS, 0.0)
    cc.recovered(0.0)
    trace = fluid(cc, 0.001, 0.0305)
    windows = [window for _, window in trace]
    to_prior = next(t for t, window in trace if window >= 20)
    assert to_prior == pytest.approx(6 / ALPHA * 0.001, rel=0.1)  # six segments at alpha per round trip
    after = [(t, window) for t, window in trace if t > to_prior]
    slope = (after[-1][1] - after[0][1]) / ((after[-1][0] - after[0][0]) / 0.001)
    assert slope == pytest.approx(1.0, rel=0.1) and windows == sorted(windows)


def test_cubic_fast_convergence():
    """Section 4.7: a second loss below the last W_max leaves room for others: W_max = cwnd * (1 + beta) / 2."""
    cc = make("cubic", MSS, 1000 * MSS)
    cc.lost(1000 * MSS, 0.0)
    cc.recovered(0.0)
    assert cc.cwnd == 700 * MSS
    cc.lost(700 * MSS, 1.0)
    cc.recovered(1.0)
    k = math.cbrt((700 * (1 + BETA) / 2 - 490) / C)
    trace = fluid(cc, 0.05, 1.2 * k)
    crossed = next(t for t, window in trace if window >= 595)
    assert crossed == pytest.approx(k, abs=0.2 * k)
    plateau = [window for t, window in trace if 0.8 * k < t < k]
    assert max(plateau) - min(plateau) < 10


def test_cubic_time_without_use_does_not_count():
    """Section 5.8: an application that pauses for a minute does not come back with a larger window."""
    steady, paused = in_avoidance("cubic", 500), in_avoidance("cubic", 500)
    fluid(steady, 0.05, 2.0)
    fluid(paused, 0.05, 2.0)
    for step in range(100):
        ack(paused, now=2.0 + step * 0.6, limited=False)
    after_steady = fluid(steady, 0.05, 1.0, start=2.0)
    after_paused = fluid(paused, 0.05, 1.0, start=62.0)
    assert after_paused[-1][1] == pytest.approx(after_steady[-1][1], rel=0.01)


def test_cubic_after_a_time_out():
    """Section 4.8: the stage after it starts at K = 0 from the window it begins with."""
    cc = make("cubic", MSS, 100 * MSS)
    cc.timed_out(100 * MSS, 0.0)
    while cc.cwnd < cc.ssthresh:
        ack(cc, now=5.0)
    assert cc.cwnd == 70 * MSS
    cc.recovered(5.0)
    assert cc.cwnd == 70 * MSS
    trace = fluid(cc, 0.1, 4.0, start=5.0)
    curve = C * trace[-1][0] ** 3 + 70
    assert trace[-1][1] == pytest.approx(curve, rel=0.05)


def test_cubic_after_slow_start_without_loss():
    """Section 4.10: K = 0 and W_max = cwnd when HyStart++ ended slow start."""
    cc = make("cubic", MSS, 100 * MSS)
    cc.ssthresh = cc.cwnd
    trace = fluid(cc, 0.1, 5.0)
    assert trace[-1][1] == pytest.approx(C * trace[-1][0] ** 3 + 100, rel=0.05)


# -- PRR (RFC 9937) ----------------------------------------------------------------------


def test_prr_by_hand():
    """Flight of 20, ssthresh 10, the first lost, an ACK per segment that arrives. While pipe > ssthresh, every second ACK lets a segment go
    (the first at once, so the next waits for the fourth); at the 16th pipe is 10 and nothing goes; then one per ACK."""
    prr = Prr()
    prr.begin(20 * MSS, MSS)
    pipe, sent_at = 19 * MSS, []
    for number in range(1, 20):
        pipe -= MSS
        if prr.acked(MSS, pipe, 10 * MSS, MSS, False) >= MSS:
            prr.sent(MSS)
            pipe += MSS
            sent_at.append(number)
    assert sent_at == [1, 4, 6, 8, 10, 12, 14, 17, 18, 19]
    assert pipe == 10 * MSS


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 200), st.floats(0.3, 0.9), st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=300)
)
def test_prr_bounds(flight, beta, acks):
    """What RFC 9937 promises: never more than ssthresh in flight by PRR's doing; above it proportional, not more than delivered."""
    prr = Prr()
    ssthresh = max(int(flight * MSS * beta), 2 * MSS)
    prr.begin(flight * MSS, MSS)
    pipe = flight * MSS
    total = 0
    for count, safe, lost in acks:
        if lost:
            pipe = max(pipe - MSS, 0)
        arrived = min(count * MSS, pipe)
        pipe -= arrived
        total += arrived
        first = not prr.out
        before = prr.allowed
        allowed = prr.acked(arrived, pipe, ssthresh, MSS, safe and not lost)
        assert allowed >= 0 and (arrived or allowed == before)
        if arrived and not first:
            if pipe > ssthresh:
                assert prr.out + allowed <= max(-(-total * ssthresh // (flight * MSS)), prr.out)
            else:
                assert pipe + allowed <= ssthresh
        if arrived and first:
            assert allowed >= MSS
        prr.sent(allowed)
        pipe += allowed
        assert prr.allowed == 0 and prr.delivered == total


def test_prr_first_retransmission_goes_at_once():
    prr = Prr()
    prr.begin(100 * MSS, MSS)
    assert prr.allowed == MSS
    assert prr.acked(1, 99 * MSS, 70 * MSS, MSS, False) == MSS


def test_prr_slow_start_after_heavy_loss():
    """Most of the window lost: a safe ACK may grow the flight by one more segment, up to ssthresh."""
    prr = Prr()
    prr.begin(100 * MSS, MSS)
    prr.sent(MSS)
    assert prr.acked(2 * MSS, 5 * MSS, 70 * MSS, MSS, True) == 3 * MSS
    prr.sent(3 * MSS)
    assert prr.acked(2 * MSS, 6 * MSS, 70 * MSS, MSS, False) == 2 * MSS


# -- all together ------------------------------------------------------------------------


def average_window(name: str, rtt: float, every: int, transmissions: int, ssthresh: int) -> float:
    """Segments delivered per round trip by a greedy sender whose every `every`-th transmission is lost, on a path with nothing but
    delay; the first half of the transmissions is not counted, and slow start ends at `ssthresh` segments. Sending is up to cwnd, in recovery up to what PRR allows."""
    cc, prr, board = make(name, MSS, 10 * MSS), Prr(), Scoreboard(MSS, True, 0)
    cc.ssthresh = ssthresh * MSS
    acks: deque[tuple[float, int]] = deque()  # (when its acknowledgment is here, first byte)
    have: set[int] = set()  # of the receiver, out of order
    ack = 0
    sent = 0
    now = began = 0.0
    began_at = 0

    def out(start: int) -> None:
        nonlocal sent
        sent += 1
        if sent % every:
            acks.append((now + rtt, start))

    def room() -> bool:
        return prr.allowed > 0 if board.recovering else board.in_flight + MSS <= cc.cwnd

    while sent < transmissions:
        while room():
            entry = board.next_lost()
            if entry is None:
                start = board.high
                board.sent(start, start + MSS, now)
            else:
                start = entry.start
                board.resent(entry, now)
            if board.recovering:
                prr.sent(MSS)
            out(start)
        assert acks, "nothing in flight and nothing may be sent"
        now, start = acks.popleft()
        have.add(start)
        while ack in have:
            have.discard(ack)
            ack += MSS
        # No acknowledgment is lost, so each needs to tell of its own segment only.
        blocks = [(start, start + MSS)] if start > ack else []
        flight = board.high - board.una
        limited = flight >= cc.cwnd - MSS
        recover_fs = flight - board.sacked_bytes
        board.acked(ack, blocks, now, rtt)
        before = board.lost_bytes
        due = board.detect(now, rtt, rtt)
        assert due is None or due <= now + 2 * rtt
        if board.news & RECOVERED:
            cc.recovered(now)
        elif board.recovering or board.lost_bytes:
            if not board.recovering:
                cc.lost(flight, now)
                board.recover()
                prr.begin(recover_fs, MSS)
            prr.acked(board.delivered, board.in_flight, cc.ssthresh, MSS, bool(board.newly_acked) and board.lost_bytes <= before)
        elif board.newly_acked:
            cc.acked(board.newly_acked, board.in_flight, now, board.rtt, rtt, limited)
        if not began and sent >= transmissions // 2:
            began, began_at = now, board.una
    return (board.una - began_at) / MSS / ((now - began) / rtt)


@pytest.mark.parametrize("every", [100, 1000, 10_000])
@pytest.mark.parametrize("name", NAMES)
def test_average_windows_are_those_of_the_formulas(name, every):
    """RTT 0.1 s. Reno: RFC 9438 section 4.3, sqrt(alpha * (1 + beta) / (2 * (1 - beta) * p)); CUBIC section 5.1, where Reno is not faster."""
    p, rtt = 1 / every, 0.1
    window = math.sqrt(1.5 / p)
    if name == "cubic":
        window = max(window, (C * (3 + BETA) / (4 * (1 - BETA))) ** 0.25 * (rtt / p) ** 0.75)
    found = average_window(name, rtt, every, max(every * 32, 20_000), 2 * round(window))
    print(f"{found:.1f} segments, formula: {window:.1f}")
    assert found == pytest.approx(window, rel=0.15)
