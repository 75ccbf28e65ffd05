"""RoundPicker: everyone in turn, nothing that is not asked for."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator

from hw.dma.picker import RoundPicker
from tests.hw.simulate import converts, seeds


@pytest.mark.parametrize("n", [1, 2, 5, 16, 64])
def test_standing_requests_are_served_evenly(n: int) -> None:
    dut = RoundPicker(n)
    rng = random.Random(n)
    requests = sorted(rng.sample(range(n), max(1, n // 2)))
    picks = []

    async def bench(ctx):
        ctx.set(dut.requests, sum(1 << i for i in requests))
        ctx.set(dut.take, 1)
        for _ in range(4 * (len(requests) + 1) + 4):
            _, _, valid, index = await ctx.tick().sample(dut.valid, dut.index)
            if valid:
                picks.append(index)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert picks[: 3 * len(requests)] == requests * 3
    assert len(picks) >= 4 * len(requests) - 1


@pytest.mark.parametrize("seed", seeds(3))
def test_random_requests(seed: int) -> None:
    n = 20
    dut = RoundPicker(n)
    rng = random.Random(seed)
    waited = [0] * n

    async def bench(ctx):
        standing = 0
        for _ in range(600):
            standing |= 1 << rng.randrange(n) if rng.random() < 0.3 else 0
            ctx.set(dut.requests, standing)
            take = rng.random() < 0.7
            ctx.set(dut.take, take)
            _, _, valid, index = await ctx.tick().sample(dut.valid, dut.index)
            if valid and take:
                waited[index] = 0
                standing &= ~(1 << index)
            for i in range(n):
                if standing >> i & 1:
                    waited[i] += 1
                    assert waited[i] < 4 * n, f"request {i} starves"

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def test_converts_and_refuses() -> None:
    converts(RoundPicker(64))
    with pytest.raises(ValueError, match="positive integer"):
        RoundPicker(0)
