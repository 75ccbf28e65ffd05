"""Interrupts: when they fire, when they must not, and that none is lost."""

import random

import pytest

from acceltcp.abi.registers import QUEUE
from hw.config import NicConfig
from hw.dma.interrupts import Interrupts
from tests.hw.simulate import converts, run, seeds

from .rx_helpers import enable, write


def arm(ctx, dut, queue, completions=0, events=0):
    value = QUEUE["arm"].encode(completion_head=completions, event_head=events)
    return write(ctx, dut.bus, queue, "arm", value)


async def post(ctx, posted, queue, index):
    ctx.set(posted.queue, queue)
    ctx.set(posted.index, index)
    ctx.set(posted.valid, 1)
    await ctx.tick()
    ctx.set(posted.valid, 0)


async def tick(ctx, dut, count=1):
    for _ in range(count):
        ctx.set(dut.tick, 1)
        await ctx.tick()
        ctx.set(dut.tick, 0)
        await ctx.tick().repeat(8)


def watch(dut, log, go=lambda: True):
    async def bench(ctx):
        cycle = 0
        ready = go()
        ctx.set(dut.irq.ready, ready)
        async for _, _, valid, vector in ctx.tick().sample(dut.irq.valid, dut.irq.payload.vector):
            cycle += 1
            if valid and ready:
                log.append((cycle, vector))
            ready = go()
            ctx.set(dut.irq.ready, ready)

    return bench


def simulate(bench, queues=4, **options):
    dut, log = Interrupts(NicConfig(queues=queues)), []

    async def main(ctx):
        await bench(ctx, dut, log)

    run(dut, main, cycles=20_000, background=[watch(dut, log, **options)])
    return log


def test_fires_once_per_arm_for_either_ring():
    async def bench(ctx, dut, log):
        await enable(ctx, dut.bus, 2)
        await post(ctx, dut.completions, 2, 1)
        await ctx.tick().repeat(10)
        assert not log, "fired without being armed"
        await arm(ctx, dut, 2, completions=0)
        await ctx.tick().repeat(10)
        assert [v for _, v in log] == [2], "an entry that came before must fire at once"
        await post(ctx, dut.completions, 2, 2)
        await ctx.tick().repeat(10)
        assert len(log) == 1, "fired while disarmed"
        await arm(ctx, dut, 2, completions=2, events=0)
        await ctx.tick().repeat(10)
        assert len(log) == 1, "fired without news"
        await post(ctx, dut.events, 2, 1)
        await ctx.tick().repeat(10)
        assert [v for _, v in log] == [2, 2]

    simulate(bench)


def test_enabling_resets_indices_and_disarms():
    async def bench(ctx, dut, log):
        await enable(ctx, dut.bus, 1)
        await post(ctx, dut.completions, 1, 7)
        await arm(ctx, dut, 1, completions=7)
        await enable(ctx, dut.bus, 1)
        await ctx.tick().repeat(10)
        assert not log
        await arm(ctx, dut, 1, completions=0)
        await ctx.tick().repeat(10)
        assert not log, "the index of the queue's former life counted"
        await post(ctx, dut.completions, 1, 1)
        await ctx.tick().repeat(10)
        assert [v for _, v in log] == [1]

    simulate(bench)


def test_moderation_also_after_the_tick_count_wraps():
    async def bench(ctx, dut, log):
        await enable(ctx, dut.bus, 3)
        await write(ctx, dut.bus, 3, "interrupt", 5)
        for index in (1, 2):
            await post(ctx, dut.completions, 3, index)
            await arm(ctx, dut, 3, completions=index - 1)
            await ctx.tick().repeat(12)
        assert len(log) == 1, "the second is within the interval"
        assert not ctx.get(dut.busy), "nothing to do before the next tick"
        await tick(ctx, dut, 4)
        assert len(log) == 1
        await tick(ctx, dut, 1)
        assert len(log) == 2
        await tick(ctx, dut, 5)
        # Make the count come round to just where it was at the last interrupt.
        ctx.set(dut.tick, 1)
        await ctx.tick().repeat(100)
        ctx.set(dut.tick, 0)
        await post(ctx, dut.completions, 3, 3)
        await arm(ctx, dut, 3, completions=2)
        await ctx.tick().repeat(10)
        assert len(log) == 3, "the interval was long over"

    simulate(bench)


@pytest.mark.parametrize("queues", [1, 4, 64])
def test_every_queue_fires_with_its_own_vector(queues):
    async def bench(ctx, dut, log):
        for queue in range(queues):
            await enable(ctx, dut.bus, queue)
        for queue in range(queues):
            await arm(ctx, dut, queue)
        for queue in range(queues):
            await post(ctx, dut.events if queue & 1 else dut.completions, queue, 1)
        while ctx.get(dut.busy):
            await ctx.tick()
        assert sorted(v for _, v in log) == list(range(queues))

    rng = random.Random(queues)
    simulate(bench, queues=queues, go=lambda: rng.random() < 0.3)


@pytest.mark.parametrize("seed", seeds(3))
def test_no_news_is_ever_missed(seed):
    """A host that arms, waits, reads everything and arms again sees all entries."""
    rng = random.Random(seed)

    async def bench(ctx, dut, log):
        produced, seen, handled = [0] * 4, [0] * 4, 0
        for queue in range(4):
            await enable(ctx, dut.bus, queue)
            await write(ctx, dut.bus, queue, "interrupt", rng.choice((0, 1, 3)))
            await arm(ctx, dut, queue)
        for step in range(600):
            if step < 400 and rng.random() < 0.3:
                queue = rng.randrange(4)
                produced[queue] = produced[queue] + rng.randint(1, 3) & 0xFFFF
                await post(ctx, dut.completions, queue, produced[queue])
            if rng.random() < 0.1:
                await tick(ctx, dut)
            if handled < len(log):
                queue = log[handled][1]
                handled += 1
                seen[queue] = produced[queue]
                if rng.random() < 0.5:  # something comes between reading and arming
                    produced[queue] += 1
                    await post(ctx, dut.completions, queue, produced[queue])
                await arm(ctx, dut, queue, completions=seen[queue])
            await ctx.tick()
        assert seen == produced

    simulate(bench)


def test_busy_covers_everything_that_may_still_fire():
    async def bench(ctx, dut, log):
        await enable(ctx, dut.bus, 0)
        while ctx.get(dut.busy):
            await ctx.tick()
        await arm(ctx, dut, 0)
        await post(ctx, dut.completions, 0, 1)
        while ctx.get(dut.busy):
            await ctx.tick()
        assert len(log) == 1

    simulate(bench, queues=16)


def test_converts():
    converts(Interrupts(NicConfig(queues=64)))
    converts(Interrupts(NicConfig(queues=1)))
