# amaranth: UnusedElaboratable=no
import pytest

from hw.csr.quiesce import RESET_CYCLES, SETTLE_CYCLES, Quiesce
from tests.hw.simulate import run


async def pulse(ctx, signal):
    ctx.set(signal, 1)
    await ctx.tick()
    ctx.set(signal, 0)


def test_rejects_a_short_timeout():
    with pytest.raises(ValueError, match="timeout must be at least 32 cycles, not 1"):
        Quiesce(1)


def test_disable_waits_for_lasting_idleness():
    dut = Quiesce(64)

    async def testbench(ctx):
        ctx.set(dut.idle, 1)
        ctx.set(dut.disable_pending, 1)
        await ctx.tick().repeat(2)
        assert ctx.get(dut.hold)
        # Idle flickers: never long enough.
        for _ in range(10):
            await ctx.tick().repeat(SETTLE_CYCLES - 3)
            await_idle = ctx.get(dut.disable_now)
            assert not await_idle
            ctx.set(dut.idle, 0)
            await ctx.tick()
            ctx.set(dut.idle, 1)
        await ctx.tick().until(dut.disable_now)
        assert ctx.get(dut.hold)
        ctx.set(dut.disable_pending, 0)
        await pulse(ctx, dut.disable_done)
        assert not ctx.get(dut.disable_now) and ctx.get(dut.hold)
        await ctx.tick().until(~dut.hold)
        await ctx.tick()
        assert not ctx.get(dut.active)

    run(dut, testbench)


def test_disable_waits_for_ever_on_a_dead_bus_until_a_soft_reset():
    dut = Quiesce(64)

    async def testbench(ctx):
        ctx.set(dut.disable_pending, 1)
        await ctx.tick().repeat(300)
        assert ctx.get(dut.hold) and not ctx.get(dut.disable_now)
        await pulse(ctx, dut.reset)
        assert ctx.get(dut.resetting)
        await ctx.tick().repeat(60)
        assert not ctx.get(dut.core_reset)  # still patient
        await ctx.tick().repeat(10)
        assert ctx.get(dut.core_reset)

    run(dut, testbench)


def test_soft_reset_sequence():
    dut = Quiesce(1000)

    async def testbench(ctx):
        await pulse(ctx, dut.reset)
        await ctx.tick().repeat(50)
        assert ctx.get(dut.hold) and not ctx.get(dut.core_reset)
        ctx.set(dut.idle, 1)
        await ctx.tick().until(dut.core_reset)
        cycles = 1
        while ctx.get(dut.core_reset):
            assert ctx.get(dut.hold) and ctx.get(dut.resetting)
            await ctx.tick()
            cycles += 1
        assert cycles >= RESET_CYCLES
        assert ctx.get(dut.clear) and ctx.get(dut.hold)
        await pulse(ctx, dut.reset)  # a second request is part of the first
        await ctx.tick().repeat(5)
        await pulse(ctx, dut.cleared)
        await ctx.tick().repeat(3)
        for line in (dut.hold, dut.resetting, dut.clear, dut.active):
            assert not ctx.get(line)
        # And it works again.
        await pulse(ctx, dut.reset)
        await ctx.tick().until(dut.core_reset)

    run(dut, testbench)


def test_reset_during_a_disable_follows_it():
    dut = Quiesce(1000)

    async def testbench(ctx):
        ctx.set(dut.idle, 1)
        ctx.set(dut.disable_pending, 1)
        await ctx.tick().until(dut.disable_now)
        await pulse(ctx, dut.reset)
        ctx.set(dut.disable_pending, 0)
        await pulse(ctx, dut.disable_done)
        await ctx.tick().until(dut.core_reset)

    run(dut, testbench)
