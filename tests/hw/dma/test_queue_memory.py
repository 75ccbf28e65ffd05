"""QueueMemory: what was written is read in the next cycle, on every port."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest

from hw.dma.queue_memory import QueueMemory
from tests.hw.simulate import converts, run


@pytest.mark.parametrize("queues", [1, 16])
def test_counts_one_up_in_every_cycle(queues: int) -> None:
    dut = QueueMemory(queues, 16, 2)
    rng, model = random.Random(queues), [0] * queues

    async def bench(ctx):
        ctx.set(dut.write, 1)
        for _ in range(200):
            queue, other = rng.randrange(queues), rng.randrange(queues)
            ctx.set(dut.read_queue[0], queue)
            ctx.set(dut.read_queue[1], other)
            assert ctx.get(dut.read_value[0]) == model[queue]
            assert ctx.get(dut.read_value[1]) == model[other]
            model[queue] = (model[queue] + 1) & 0xFFFF
            ctx.set(dut.write_queue, queue)
            ctx.set(dut.write_value, model[queue])
            await ctx.tick()

    run(dut, bench)
    converts(dut)
