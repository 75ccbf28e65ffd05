"""`Blinker`, and pins that stay at a level."""

from types import SimpleNamespace

import pytest
from amaranth import Module, Signal
from amaranth.lib import io
from amaranth.sim import Simulator

from hw.shell import pins
from hw.shell.pins import Blinker, drive, hold
from tests.hw.simulate import converts, run


@pytest.mark.parametrize("busy_for", [1, 40])
def test_blinks_while_busy(monkeypatch, busy_for):
    """As long on as off, whole periods, and as long as there is something to see."""
    monkeypatch.setattr(pins, "_BLINK_BITS", 4)
    dut = Blinker()

    async def bench(ctx):
        assert not ctx.get(dut.light)
        seen = []
        for cycle in range(100):
            ctx.set(dut.busy, cycle < busy_for)
            await ctx.tick()
            seen.append(ctx.get(dut.light))
        period = [1] * 8 + [0] * 8
        whole = -(-busy_for // 16)
        assert seen == period * whole + [0] * (100 - 16 * whole)

    run(dut, bench)


def test_levels():
    """Each pin that is there is driven, an inverted one the other way; one that the board has not is no error."""
    m = Module()
    ports = SimpleNamespace(low=io.SimulationPort("o", 1), high=io.SimulationPort("o", 1), inverted=io.SimulationPort("o", 1, invert=True))
    light = io.SimulationPort("o", 1)
    level = Signal()
    hold(m, ports, low=0, high=1, inverted=1, absent=1)
    drive(m, "light", light, level)

    async def bench(ctx):
        assert [ctx.get(port.o) for port in (ports.low, ports.high, ports.inverted)] == [0, 1, 0]
        for value in (1, 0):
            ctx.set(level, value)
            assert ctx.get(light.o) == value

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()


def test_converts():
    converts(Blinker())
