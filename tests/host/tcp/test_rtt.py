"""RFC 6298 and RFC 7323 appendix G, against the formulas in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acceltcp.host.tcp.rtt import RttEstimator

MIN_RTO, MAX_RTO, GRANULARITY = 0.2, 60.0, 0.01


def estimator(initial: float = 1.0) -> RttEstimator:
    return RttEstimator(initial, MIN_RTO, MAX_RTO, GRANULARITY)


def by_the_rfc(samples: list[tuple[float, int]]) -> tuple[Fraction, Fraction, Fraction]:
    """(SRTT, RTTVAR, RTO) after these samples (seconds, samples expected per round trip)."""
    srtt = rttvar = Fraction(0)
    for number, (value, expected) in enumerate(samples):
        rtt = Fraction(value)
        if number == 0:
            srtt, rttvar = rtt, rtt / 2
        else:
            rttvar = (1 - Fraction(1, 4) / expected) * rttvar + Fraction(1, 4) / expected * abs(srtt - rtt)
            srtt = (1 - Fraction(1, 8) / expected) * srtt + Fraction(1, 8) / expected * rtt
    rto = srtt + max(Fraction(GRANULARITY), 4 * rttvar)
    return srtt, rttvar, min(max(rto, Fraction(MIN_RTO)), Fraction(MAX_RTO))


def test_before_a_sample():
    rtt = estimator()
    assert (rtt.srtt, rtt.rto, rtt.min_rtt) == (0.0, 1.0, 0.0)


def test_first_two_samples_by_hand():
    rtt = estimator()
    rtt.sample(0.5, 0.0)
    assert (rtt.srtt, rtt.rttvar, rtt.rto) == (0.5, 0.25, 1.5)
    rtt.sample(0.3, 1.0)  # RTTVAR 3/4 * 0.25 + 1/4 * 0.2, SRTT 7/8 * 0.5 + 1/8 * 0.3
    assert rtt.rttvar == pytest.approx(0.2375)
    assert rtt.srtt == pytest.approx(0.475)
    assert rtt.rto == pytest.approx(0.475 + 4 * 0.2375)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-5, 100), st.integers(1, 50)), min_size=1, max_size=60))
def test_formulas(samples):
    rtt = estimator()
    for number, (value, expected) in enumerate(samples):
        rtt.sample(value, float(number), expected)
    srtt, rttvar, rto = by_the_rfc(samples)
    assert rtt.srtt == pytest.approx(float(srtt), rel=1e-9)
    assert rtt.rttvar == pytest.approx(float(rttvar), rel=1e-6, abs=1e-9)
    assert rtt.rto == rtt.base_rto == pytest.approx(float(rto), rel=1e-6)


def test_weight_makes_a_window_of_samples_count_like_one():
    """RFC 7323 appendix G: the memory must not shrink with the number of samples per round trip."""
    once, often = estimator(), estimator()
    once.sample(0.1, 0.0)
    often.sample(0.1, 0.0)
    once.sample(0.2, 1.0)
    for _ in range(50):
        often.sample(0.2, 1.0, 50)
    assert often.srtt == pytest.approx(once.srtt, rel=0.02)
    assert often.rttvar == pytest.approx(once.rttvar, rel=0.2)


def test_back_off_doubles_up_to_the_limit_and_a_sample_ends_it():
    rtt = estimator()
    seen = []
    for _ in range(8):
        rtt.backed_off()
        seen.append(rtt.rto)
    assert seen == [2, 4, 8, 16, 32, 60, 60, 60]
    rtt.sample(0.1, 0.0)
    assert rtt.rto == pytest.approx(0.3)
    rtt.backed_off()
    rtt.progress()
    assert rtt.rto == pytest.approx(0.3)


def test_a_lost_syn_makes_it_three_seconds():
    rtt = estimator()
    rtt.handshake_timed_out()
    assert rtt.rto == 3.0
    rtt = estimator()
    rtt.sample(0.1, 0.0)
    rtt.handshake_timed_out()
    assert rtt.rto == pytest.approx(0.3)


def test_clock_that_goes_back_and_clock_that_stands_still():
    rtt = estimator()
    rtt.sample(-1.0, 0.0)
    rtt.sample(0.0, 0.0, 0)
    assert 0.0 < rtt.srtt < 1e-3 and rtt.rttvar >= 0.0 and rtt.rto == MIN_RTO and rtt.min_rtt > 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 40), st.floats(1e-4, 1)), min_size=1, max_size=200))
def test_min_rtt_is_of_the_last_minutes(steps):
    """Never above what the last 150 s brought, never below what the last 300 s and a pause brought."""
    rtt = estimator()
    now = 0.0
    seen: list[tuple[float, float]] = []
    for pause, value in steps:
        now += pause
        seen.append((now, value))
        rtt.sample(value, now)
        assert rtt.min_rtt <= min(v for at, v in seen if now - at < 150)
        assert rtt.min_rtt >= min(v for at, v in seen if now - at <= 300 + 2 * 40)


def test_min_rtt_forgets_a_shorter_path():
    rtt = estimator()
    rtt.sample(0.01, 0.0)
    for second in range(1, 400):
        rtt.sample(0.05, float(second))
    assert rtt.min_rtt == 0.05
