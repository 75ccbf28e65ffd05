"""`ClockMeter` with clocks that are right, slow, and stopped."""

import pytest
from amaranth import ClockDomain, Module
from amaranth.sim import Simulator

from hw.shell.clock_meter import ClockMeter

CORE = 5.0


def good(periods):
    """Is the other clock good, after 120 us at each of these periods in ns (None: it stands), at a core of 5 MHz and 12.5 expected."""
    dut, top, found = ClockMeter(CORE, 12.5), Module(), []
    top.domains += [ClockDomain("sync"), seen := ClockDomain("seen")]
    top.submodules.dut = dut
    sim = Simulator(top)
    sim.add_clock(1e-6 / CORE, domain="sync")

    async def clock(ctx):
        for period in periods:
            if period is None:
                await ctx.delay(120e-6)
            else:
                for _ in range(round(120e3 / period)):
                    for level in (1, 0):
                        ctx.set(seen.clk, level)
                        await ctx.delay(period * 0.5e-9)
            found.append(ctx.get(dut.good))

    sim.add_testbench(clock)
    sim.run()
    return found


def test_right_clocks():
    assert good([80, 78, 82]) == [1, 1, 1]


def test_a_hundred_megabits_or_ten_or_nothing_is_not_good():
    assert good([400, 4000, None]) == [0, 0, 0]


def test_it_falls_and_comes_back():
    assert good([80, None, 80, 400, 80, 64]) == [1, 0, 1, 0, 1, 0]


def test_a_core_too_slow_to_count():
    with pytest.raises(ValueError, match=r"^mhz must be above 15.625, not 15$"):
        ClockMeter(15, 125.0)
