"""Doorbells against a model: accepted and refused indices, registers, reports."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest

from hw.dma.doorbell import Doorbells
from tests.hw.dma.bus import disable_queue, enable_queue, ring_doorbell, set_ring
from tests.hw.simulate import converts, run, seeds


@pytest.mark.parametrize("ring", ["tx", "rx_free"])
@pytest.mark.parametrize("seed", seeds(2))
def test_random_doorbells(ring: str, seed: int) -> None:
    queues = 4
    dut = Doorbells(queues, ring)
    rng = random.Random(seed)
    log2 = [rng.choice([3, 4, 15]) for _ in range(queues)]
    enabled, tail, taken = [False] * queues, [0] * queues, [0] * queues
    errors, reports, accepted = [0], set(), [0]

    async def watch(ctx):
        ctx.set(dut.error.ready, 1)
        async for _, _, error, valid, queue, good in ctx.tick().sample(
            dut.counts.doorbell_errors, dut.error.valid, dut.error.p.queue, dut.accepted
        ):
            errors[0] += error
            accepted[0] += good
            if valid:
                reports.add(queue)

    async def bench(ctx):
        wanted = [0, 0]
        for queue in range(queues):
            await set_ring(ctx, dut.bus, queue, ring, queue << 36 | 64 * queue, log2[queue])
        for _ in range(150):
            queue = rng.randrange(queues)
            action = rng.random()
            if not enabled[queue] and action < 0.5:
                await enable_queue(ctx, dut.bus, queue)
                enabled[queue], tail[queue], taken[queue] = True, 0, 0
                continue
            if enabled[queue] and action < 0.05:
                await disable_queue(ctx, dut.bus, queue)
                enabled[queue] = False
                await ctx.tick().repeat(6)
                reports.discard(queue)
                continue
            has = (tail[queue] - taken[queue]) & 0xFFFF
            taken[queue] = (taken[queue] + rng.randrange(has + 1)) & 0xFFFF
            has = (tail[queue] - taken[queue]) & 0xFFFF
            size = 1 << log2[queue]
            new = rng.choice([has, size, size + 1, rng.randrange(size + 1), has - 1, rng.randrange(65536)])
            good = enabled[queue] and has <= (new & 0xFFFF) <= size
            reports.clear()
            await ring_doorbell(ctx, dut.bus, queue, f"{ring}_tail", taken[queue] + new)
            ctx.set(dut.taken, taken[queue])
            await ctx.tick().repeat(6)
            if good:
                tail[queue] = (taken[queue] + new) & 0xFFFF
            wanted[not good] += 1
            assert reports == ({queue} if enabled[queue] and not good else set())
            ctx.set(dut.at, queue)
            assert ctx.get(dut.base) == queue << 36 | 64 * queue
            assert ctx.get(dut.size_log2) == log2[queue]
            if enabled[queue]:
                assert ctx.get(dut.tail) == tail[queue]
        assert [accepted[0], errors[0]] == wanted

    run(dut, bench, background=[watch])


def test_converts() -> None:
    converts(Doorbells(64, "tx"))
