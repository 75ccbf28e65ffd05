"""Ephemeral ports (RFC 6056) and initial sequence numbers (RFC 6528): what they promise, over many draws."""

from __future__ import annotations

import errno
import itertools
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acceltcp.host.tcp.ports import EphemeralPorts, InitialSequence

LOCAL, REMOTE = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1))
LOCAL6, REMOTE6 = bytes(15) + b"\x02", bytes(15) + b"\x01"
SECRET = bytes(range(32))


def never(*tuple_: object) -> bool:
    return False


@given(st.integers(1, 0xFFFF), st.integers(0, 300), st.data())
@settings(max_examples=100, deadline=None)
def test_only_free_ports_and_all_of_them(first, more, data):
    """Whatever is in use: a port in use is never given, and as long as one is free, one is given."""
    last = min(first + more, 0xFFFF)
    used = data.draw(st.sets(st.integers(first, last)))
    ports = EphemeralPorts(first, last, lambda local, remote, remote_port, port: port in used)
    while len(used) < last - first + 1:
        port = ports.choose(LOCAL, REMOTE, 80)
        assert first <= port <= last and port not in used
        used.add(port)
    with pytest.raises(OSError, match=f"no port from {first} to {last} is free") as caught:
        ports.choose(LOCAL, REMOTE, 80)
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("free", [32768, 32769, 45678, 60999])
@pytest.mark.parametrize(("local", "remote"), [(LOCAL, REMOTE), (LOCAL6, REMOTE6)])
def test_the_only_free_port_is_found(free, local, remote):
    ports = EphemeralPorts(32768, 60999, lambda *tuple_: tuple_[3] != free)
    assert ports.choose(local, remote, 443) == free


def test_in_use_is_asked_about_the_whole_tuple():
    asked = []
    EphemeralPorts(5000, 5000, lambda *tuple_: bool(asked.append(tuple_))).choose(LOCAL6, REMOTE6, 443)
    assert asked == [(LOCAL6, REMOTE6, 443, 5000)]


def test_a_free_port_costs_one_question():
    asked = []
    ports = EphemeralPorts(1024, 65535, lambda *tuple_: bool(asked.append(tuple_)))
    for _ in range(1000):
        ports.choose(LOCAL, REMOTE, 80)
    assert len(asked) == 1000


def test_a_port_is_used_again_as_late_as_possible():
    """RFC 6056 section 3.1: instance identifiers to one destination repeat only after all the others."""
    ports = EphemeralPorts(2000, 2999, never)
    drawn = [ports.choose(LOCAL, REMOTE, 80) for _ in range(2000)]
    assert sorted(drawn[:1000]) == list(range(2000, 3000))
    assert drawn[1000:] == drawn[:1000]


def correlation(first: list[int], second: list[int]) -> float:
    return abs(statistics.correlation(first, second))


def test_destinations_do_not_reveal_a_counter():
    """Ports towards one destination after another look independent, with a secret nobody knows."""
    ports = EphemeralPorts(32768, 60999, never, SECRET)
    drawn = [ports.choose(LOCAL, bytes((10, 1, number >> 8, number & 0xFF)), 80) for number in range(4000)]
    steps = [(after - before) % 28232 for before, after in itertools.pairwise(drawn)]
    # A counter would step by one (or a little) each time. By chance, one in 28232 steps is any given one; nine equal ones
    # happen once in 10^8 runs.
    assert max(steps.count(step) for step in set(steps)) <= 8
    assert sum(0 < step <= 500 for step in steps) < 3 * len(steps) * 500 / 28232
    assert correlation(drawn[:-1], drawn[1:]) < 0.1  # five standard deviations are 0.08
    # Spread over the range: each of 16 parts has about 250.
    parts = [(port - 32768) * 16 // 28232 for port in drawn]
    assert all(150 < parts.count(part) < 350 for part in range(16))


def test_connections_elsewhere_hardly_move_a_destination():
    """An observer of one destination cannot count connections to others: of 1024 counters few are shared."""
    ports = EphemeralPorts(32768, 60999, never, SECRET)
    moved = 0
    for number in range(200):
        before = ports.choose(LOCAL, REMOTE, 80)
        ports.choose(LOCAL, bytes((10, 2, 0, number)), 80)
        moved += (ports.choose(LOCAL, REMOTE, 80) - before) % 28232 != 1
    assert moved <= 5


@pytest.mark.parametrize("what", range(3))
def test_every_part_of_the_destination_counts(what):
    places = set()
    for number in range(50):
        ports = EphemeralPorts(1024, 65535, never, SECRET)
        ports._counters = [0] * len(ports._counters)
        tuple_ = [LOCAL, REMOTE, 80]
        tuple_[what] = 80 + number if what == 2 else bytes((10, 0, 9, number))
        places.add(ports.choose(*tuple_))
    assert len(places) >= 48


def test_another_secret_begins_elsewhere():
    first, second = (
        [EphemeralPorts(1024, 65535, never).choose(LOCAL, bytes((10, 3, 0, number)), 80) for number in range(100)] for _ in range(2)
    )
    assert sum(a == b for a, b in zip(first, second, strict=True)) <= 2


@pytest.mark.parametrize(("first", "last"), [(0, 10), (10, 9), (1, 65536), (-1, 5)])
def test_ranges_that_are_none(first, last):
    with pytest.raises(ValueError, match=f"not {first} and {last}"):
        EphemeralPorts(first, last, never)


@pytest.mark.parametrize("size", [0, 15, 33])
def test_secrets_have_a_length(size):
    with pytest.raises(ValueError, match=f"16 to 32 bytes, not {size}"):
        EphemeralPorts(1, 2, never, bytes(size))
    with pytest.raises(ValueError, match=f"16 to 32 bytes, not {size}"):
        InitialSequence(bytes(size))


# -- RFC 6528 ----------------------------------------------------------------------------


def test_the_clock_steps_every_4_us():
    sequence = InitialSequence(SECRET)
    at_zero = sequence.iss(LOCAL, REMOTE, 1, 2, 0.0)
    for microseconds in (4, 8, 1000, 1_000_000, 17_179_869_184 - 4):
        after = sequence.iss(LOCAL, REMOTE, 1, 2, microseconds / 1e6 + 1e-7)
        assert (after - at_zero) & 0xFFFFFFFF == microseconds // 4
    assert sequence.iss(LOCAL, REMOTE, 1, 2, 17_179.869184 + 1e-7) == at_zero  # 4.77 hours: it wraps


@given(st.floats(0, 1e7), st.floats(0.000005, 8000), st.integers(1, 65535), st.integers(1, 65535))
@settings(deadline=None)
def test_the_next_of_a_tuple_is_higher(now, later, local_port, remote_port):
    """So that TIME_WAIT of the peer can be left by it (RFC 6191)."""
    sequence = InitialSequence()
    first = sequence.iss(LOCAL, REMOTE, local_port, remote_port, now)
    second = sequence.iss(LOCAL, REMOTE, local_port, remote_port, now + later)
    assert 0 < (second - first) & 0xFFFFFFFF < 1 << 31


def test_tuples_and_secrets_do_not_tell_of_each_other():
    chooser = random.Random(1)
    sequence = InitialSequence(SECRET)
    tuples = {(chooser.randbytes(4), chooser.randbytes(4), chooser.randrange(65536), chooser.randrange(65536)) for _ in range(4000)}
    drawn = [sequence.iss(*tuple_, 5.0) for tuple_ in tuples]
    assert len(set(drawn)) > 3980
    assert correlation(drawn[:-1], drawn[1:]) < 0.1
    for bit in range(32):
        assert 1750 < sum(number >> bit & 1 for number in drawn) < 2250  # eight standard deviations
    other = InitialSequence(SECRET[::-1])
    assert sum(sequence.iss(*tuple_, 5.0) == other.iss(*tuple_, 5.0) for tuple_ in tuples) <= 2


def test_neighbouring_tuples_differ():
    sequence = InitialSequence(SECRET)
    base = sequence.iss(LOCAL, REMOTE, 5000, 80, 1.0)
    for other in ((REMOTE, LOCAL, 5000, 80), (LOCAL, REMOTE, 80, 5000), (LOCAL, REMOTE, 5001, 80), (LOCAL, REMOTE, 5000, 81)):
        assert sequence.iss(*other, 1.0) != base
