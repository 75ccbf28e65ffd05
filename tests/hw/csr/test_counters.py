import random

import pytest
from amaranth import Value

from acceltcp.abi.registers import COUNTERS
from hw.config import NicConfig
from hw.csr.counters import Counters, increments_layout
from tests.hw.simulate import run, seeds


async def snapshot(ctx, dut):
    """Ask for a snapshot in this cycle and read all of it."""
    ctx.set(dut.port.snapshot, 1)
    await ctx.tick()
    ctx.set(dut.port.snapshot, 0)
    return await fetch(ctx, dut)


async def fetch(ctx, dut):
    cycles = 0
    await ctx.tick()
    while ctx.get(dut.port.busy):
        await ctx.tick()
        cycles += 1
    values = []
    for number in range(len(COUNTERS)):
        halves = []
        for half in range(2):
            ctx.set(dut.port.address, 2 * number + half)
            await ctx.tick()
            halves.append(ctx.get(dut.port.data))
        values.append(halves[0] | halves[1] << 32)
    return values, cycles


def test_layout_is_one_bit_wider_with_two_ports():
    one, two = (increments_layout(NicConfig(ports=ports)) for ports in (1, 2))
    for counter in COUNTERS:
        assert one[counter.name].width == counter.width
        assert two[counter.name].width == counter.width + 1


def test_reads_zero_after_reset():
    dut = Counters(NicConfig())

    async def testbench(ctx):
        values, _ = await fetch(ctx, dut)
        assert values == [0] * len(COUNTERS)

    run(dut, testbench)


@pytest.mark.parametrize("ports", [1, 2])
def test_nothing_is_lost_at_the_largest_strobe_in_every_cycle(ports):
    dut = Counters(NicConfig(ports=ports))
    layout = increments_layout(NicConfig(ports=ports))
    largest = [(1 << layout[c.name].width) - 1 for c in COUNTERS]

    async def testbench(ctx):
        await ctx.tick().repeat(60)
        ctx.set(Value.cast(dut.i), (1 << layout.size) - 1)
        await ctx.tick().repeat(500)
        ctx.set(dut.port.snapshot, 1)
        await ctx.tick()  # 501 cycles of strobes so far
        ctx.set(dut.port.snapshot, 0)
        first, _ = await fetch(ctx, dut)
        before = 500 - 1 + 2
        for value, most in zip(first, largest, strict=True):
            assert value % most == 0 and before <= value // most <= before + 1
        assert len({value // most for value, most in zip(first, largest, strict=True)}) == 1  # one clock edge
        ctx.set(Value.cast(dut.i), 0)
        await ctx.tick()
        second, cycles = await snapshot(ctx, dut)
        assert len({value // most for value, most in zip(second, largest, strict=True)}) == 1
        assert cycles <= len(COUNTERS) + 6
        third, _ = await snapshot(ctx, dut)
        assert third == second  # reading clears nothing

    run(dut, testbench)


@pytest.mark.parametrize("seed", seeds(3))
def test_random_strobes_against_a_model(seed):
    rng = random.Random(seed)
    dut = Counters(NicConfig())
    layout = increments_layout(NicConfig())
    totals = dict.fromkeys((c.name for c in COUNTERS), 0)

    async def testbench(ctx):
        for _ in range(3):
            for _ in range(rng.randrange(1, 200)):
                values = {c.name: rng.getrandbits(c.width) for c in COUNTERS if rng.random() < 0.4}
                ctx.set(Value.cast(dut.i), layout.const(values).as_bits())
                for name, value in values.items():
                    totals[name] += value
                await ctx.tick()
            ctx.set(Value.cast(dut.i), 0)
            values, _ = await snapshot(ctx, dut)
            assert dict(zip(totals, values, strict=True)) == totals

    run(dut, testbench)


def test_a_snapshot_asked_for_during_another_is_taken_after_it():
    dut = Counters(NicConfig())

    async def testbench(ctx):
        await ctx.tick().repeat(60)
        ctx.set(dut.port.snapshot, 1)
        await ctx.tick()
        ctx.set(dut.port.snapshot, 0)
        await ctx.tick().repeat(5)
        ctx.set(dut.i.commands, 1)
        await ctx.tick().repeat(4)
        ctx.set(dut.i.commands, 0)
        values, cycles = await snapshot(ctx, dut)
        assert values[[c.name for c in COUNTERS].index("commands")] == 4
        assert cycles > len(COUNTERS)

    run(dut, testbench)


@pytest.mark.slow
def test_totals_pass_32_bits():
    """A byte counter at full rate: the sum crosses 2**32, so the carry between halves shows."""
    dut = Counters(NicConfig(ports=2))

    async def testbench(ctx):
        ctx.set(dut.i.rx_bytes, 0x1_FFFF)
        await ctx.tick().repeat(33_000)
        ctx.set(dut.i.rx_bytes, 0)
        values, _ = await snapshot(ctx, dut)
        assert values[1] == 0x1_FFFF * 33_000 > 1 << 32

    run(dut, testbench, cycles=40_000)
