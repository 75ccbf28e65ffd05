"""BurstPlanner: every base, size and fill against a few lines of arithmetic."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest

from hw.dma.descriptor_burst import BURST, BurstPlanner
from tests.hw.simulate import converts, run, seeds_and_sizes


@pytest.mark.parametrize("seed, width", seeds_and_sizes(2, (0, 8), (1, 16), (2, 32)))
def test_bursts(seed: int, width: int) -> None:
    depth = 32
    dut = BurstPlanner(depth, width)
    rng = random.Random(seed)

    async def bench(ctx):
        ctx.set(dut.request.ready, 1)
        for _ in range(200):
            log2 = rng.choice([3, 5, 8, 15])
            size = 1 << log2
            base = rng.getrandbits(50) << 6
            taken = rng.getrandbits(16)
            used = rng.randrange(min(size, depth) + 1)
            fill = rng.choice([0, 1, 3, 16, rng.randrange(size + 1)])
            fill = min(fill, size - used)
            asked, tail = taken + used & 0xFFFF, taken + used + fill & 0xFFFF
            first = base + 16 * (asked % size)
            count = min(fill, BURST, size - asked % size, BURST - first // 16 % BURST)
            for name, value in (
                ("tail", tail), ("asked", asked), ("taken", taken), ("base", base), ("size_log2", log2),
                ("queue_valid", 1), ("queue", 3),
            ):  # fmt: skip
                ctx.set(getattr(dut, name), value)
            await ctx.tick().until(dut.take)
            ctx.set(dut.queue_valid, 0)
            ctx.set(dut.burst.ready, 1)
            seen = []
            for _ in range(8):
                _, _, valid, index, n, again, block, new = await ctx.tick().sample(
                    dut.burst.valid, dut.burst.p.index, dut.burst.p.count, dut.again, dut.block, dut.asked_new
                )
                if valid:
                    seen.append((index, n, again, new))
                    address, length = await sample_request(ctx, dut)
                    end = first + 16 * count
                    assert address == first // width * width
                    assert address + width * length == (end - 1) // width * width
                    assert address // 4096 == (end - 1) // 4096
                elif count and used + count > depth and block:
                    seen.append("block")
            if not count:
                assert seen == []
            elif used + count > depth:
                assert seen == ["block"]
            else:
                assert seen == [(asked, count, int(fill > count), asked + count & 0xFFFF)]

    run(dut, bench)


async def sample_request(ctx, dut) -> tuple[int, int]:
    _, _, valid, address, length = await ctx.tick().sample(
        dut.request.valid, dut.request.p.address, dut.request.p.length
    )
    assert valid
    return address, length


@pytest.mark.parametrize("popped_at", range(1, 8))
def test_a_pop_during_the_decision_asks_again(popped_at: int) -> None:
    """Else a queue that is drained meanwhile would be blocked for ever."""
    dut = BurstPlanner(16)

    async def bench(ctx):
        ctx.set(dut.tail, 32)
        ctx.set(dut.asked, 16)
        ctx.set(dut.size_log2, 8)
        ctx.set(dut.queue_valid, 1)
        await ctx.tick().until(dut.take)
        ctx.set(dut.queue_valid, 0)
        outcome = []
        for cycle in range(1, 9):
            ctx.set(dut.popped, cycle == popped_at)
            _, _, again, block = await ctx.tick().sample(dut.again, dut.block)
            if again or block:
                outcome.append((again, block))
        assert outcome == [(1, 0) if popped_at <= 6 else (0, 1)]

    run(dut, bench)


def test_converts() -> None:
    converts(BurstPlanner(256))
    converts(BurstPlanner(16, 8))
