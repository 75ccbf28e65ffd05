"""How fast transfers are over a wire that loses: exactly in virtual time, and beside the kernel's CUBIC on the same wire.

`python -m tests.host.throughput` makes the long comparison, whose figures mean something; here the margins are what
chance leaves of a short one.
"""

from __future__ import annotations

import statistics

import pytest

from acceltcp.host.tcp import TcpSettings

from .pair import Pair, Path, User
from .throughput import measure

LOSS, RTT, MSS = 0.01, 0.05, 1448


def goodput(seed: int, congestion: str, seconds: float = 22.0) -> float:
    """Bytes per second that arrive, after three seconds of warm-up."""
    settings = TcpSettings(congestion=congestion)
    pair = Pair(Path(loss=LOSS, delay=RTT / 2), seed=seed, a=settings, b=settings)
    answering = User(pair.b, 0, expect=1)
    pair.b.serve(user=lambda: answering)
    pair.a.connect(User(pair.a, 1 << 40, seed=1))
    pair.run(3)
    before = answering.received
    pair.run(seconds)
    return (answering.received - before) / seconds


@pytest.mark.parametrize("congestion", ["cubic", "reno"])
def test_average_window(congestion):
    """At this loss CUBIC is in its Reno-friendly region: both have the average window of RFC 9438 section 4.3, sqrt(3 / (2 p)) segments,
    less what recovery and time-outs cost (a fifth or so: Linux has 0.83 of it on such a wire)."""
    expected = (1.5 / LOSS) ** 0.5 * MSS / RTT
    rates = [goodput(seed, congestion) for seed in range(3)]
    print([round(rate / 1e3) for rate in rates], round(expected / 1e3))
    assert 0.65 * expected < statistics.median(rates) < 1.1 * expected
    assert max(rates) < 1.5 * expected


@pytest.mark.long
def test_beside_the_kernel():
    """Our transfers to the kernel against the kernel's own: neither starved nor greedy. What `make test` runs of this is
    the average window in virtual time: here the machine's speed counts too. `python -m tests.host.throughput` compares at length."""
    options = {"loss": LOSS, "rtt": RTT, "seed": 7, "flows": 6, "warm": 2, "seconds": 6}
    theirs = statistics.median(measure("kernel to kernel", **options))
    ours = statistics.median(measure("ours to kernel", **options))
    received = statistics.median(measure("kernel to ours", **options))
    print(f"kB/s: kernel {theirs / 1e3:.0f}, ours {ours / 1e3:.0f}, kernel to us {received / 1e3:.0f}")
    assert 0.6 * theirs < ours < 1.6 * theirs
    assert 0.6 * theirs < received < 1.6 * theirs
