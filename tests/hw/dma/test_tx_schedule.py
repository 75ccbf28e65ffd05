"""TxSchedule against a model of buffered descriptors: fairness, turns, no idle cycles, hold."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator

from hw.config import NicConfig
from hw.dma.tx_schedule import TURN, TxSchedule
from tests.hw.simulate import converts, seeds


def schedule(waiting: list[int], cycles: int, ready: float = 1.0, hold_at: int = 1 << 30, seed: int = 0):
    """Queue of every pop, cycle by cycle (None: no pop), with `waiting` descriptors per queue."""
    dut = TxSchedule(NicConfig(queues=len(waiting)))
    rng, pops, left = random.Random(seed), [], list(waiting)

    async def bench(ctx):
        offered = None
        for cycle in range(cycles):
            ctx.set(dut.pending, sum((n > 0) << q for q, n in enumerate(left)))
            ctx.set(dut.hold, cycle >= hold_at)
            taken = rng.random() < ready
            ctx.set(dut.pop.ready, taken)
            _, _, valid, queue = await ctx.tick().sample(dut.pop.valid, dut.pop.p.queue)
            assert offered is None or (valid and queue == offered), "an offered pop changed"
            offered = queue if valid and not taken else None
            if valid and taken:
                assert left[queue] > 0
                left[queue] -= 1
            pops.append(queue if valid and taken else None)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return pops


def test_one_queue_never_pauses() -> None:
    pops = schedule([0, 0, 1000, 0], 200)
    assert pops[8:] == [2] * 192


def test_full_queues_take_turns_without_pause() -> None:
    pops = schedule([1000] * 4, 8 + 32 * 8)[8:]
    assert None not in pops
    for queue in range(4):
        assert abs(pops.count(queue) - len(pops) // 4) <= TURN


def test_short_queues_get_half_rate_at_least() -> None:
    pops = schedule([1] * 16, 64)
    assert sorted(q for q in pops if q is not None) == list(range(16))
    assert len(pops) - pops[::-1].index(15) <= 8 + 32


@pytest.mark.parametrize("seed", seeds(3))
def test_random(seed: int) -> None:
    rng = random.Random(seed)
    waiting = [rng.choice([0, 1, 3, 20]) for _ in range(8)]
    pops = schedule(waiting, 400, ready=0.6, seed=seed)
    assert [pops.count(q) for q in range(8)] == waiting


def test_hold_stops_but_keeps_the_offer() -> None:
    pops = schedule([1000, 1000], 100, ready=0.3, hold_at=50, seed=4)
    assert sum(q is not None for q in pops[50:]) <= 1


def test_converts() -> None:
    converts(TxSchedule(NicConfig(queues=64)))
