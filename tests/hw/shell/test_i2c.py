"""`I2cMaster` on a bus with slaves: bytes both ways, acknowledges, clock stretching, a clock that is held for ever."""

import pytest

from hw.shell.i2c import I2cMaster, Op

from ..simulate import converts, run
from .i2c_bus import ClockChip, Slaves, Switch

QUARTER = 6


class Scenario:
    """A master of its own on a bus; `ask` makes a request and gives (data, nack, fault)."""

    def __init__(self, **faults):
        self.dut = I2cMaster(QUARTER, 200)
        self.switch, self.chip = Switch(0x74), ClockChip(114_285_000)
        self.slaves = Slaves(self.dut, self.switch, {4: [self.chip]}, **faults)

    async def ask(self, ctx, op, value=0):
        request, result = self.dut.request, self.dut.result
        ctx.set(request.p.op, op)
        ctx.set(request.p.data, value)
        ctx.set(request.valid, 1)
        await ctx.tick().until(request.ready)
        ctx.set(request.valid, 0)
        return (await ctx.tick().sample(result.p.data, result.p.nack, result.p.fault).until(result.valid))[-3:]

    async def write(self, ctx, *values, stop=True):
        """What each byte was answered with: 0 is an acknowledge."""
        await self.ask(ctx, Op.START)
        answers = [(await self.ask(ctx, Op.WRITE, value))[1] for value in values]
        if stop:
            await self.ask(ctx, Op.STOP)
        return answers

    def run(self, bench):
        run(self.dut, bench, cycles=40_000, background=[self.slaves.run])


@pytest.mark.parametrize("stretch", [0, 1, 50])
def test_writes_and_reads(stretch):
    bus = Scenario(stretch=stretch)

    async def bench(ctx):
        assert await bus.write(ctx, 0x74 << 1, 0x10) == [0, 0]
        assert bus.switch.branches == 0x10
        assert await bus.write(ctx, 0x68 << 1, 10, 0xA5, 0x00, 0xFF, 0x81) == [0] * 6
        for register, value in ((12, 0xFF), (10, 0xA5), (13, 0x81), (11, 0x00)):
            assert await bus.write(ctx, 0x68 << 1, register, stop=False) == [0, 0]
            assert await bus.write(ctx, 0x68 << 1 | 1, stop=False) == [0]
            assert (await bus.ask(ctx, Op.READ))[0] == value
            await bus.ask(ctx, Op.STOP)

    bus.run(bench)
    assert bus.slaves.transfers[:2] == [[0xE8, 0x10], [0xD0, 10, 0xA5, 0, 0xFF, 0x81]]
    # Each level lasts its two quarters, whatever the slaves add.
    assert min(bus.slaves.highs[1:]) >= 2 * QUARTER and min(bus.slaves.lows[1:]) >= 2 * QUARTER
    assert min(bus.slaves.lows) >= QUARTER


def test_nobody_answers():
    bus = Scenario()

    async def bench(ctx):
        assert await bus.write(ctx, 0x68 << 1, 0) == [1, 1]  # the branch is not connected
        assert await bus.write(ctx, 0x74 << 1) == [0]

    bus.run(bench)


def test_a_clock_that_is_held_for_ever():
    bus = Scenario(stuck=0)

    async def bench(ctx):
        await bus.ask(ctx, Op.START)
        assert (await bus.ask(ctx, Op.WRITE, 0x74 << 1))[2] == 1
        assert not ctx.get(bus.dut.scl_low) and not ctx.get(bus.dut.sda_low)

    bus.run(bench)


def test_converts():
    converts(I2cMaster(8, 1000))


def test_a_quarter_too_short():
    with pytest.raises(ValueError, match="quarter must be at least 4 cycles, not 3"):
        I2cMaster(3, 1000)
