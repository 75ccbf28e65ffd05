"""`ReferenceClock`: what the chip is told, in the chip's own terms, and what happens when it does not answer."""

import dataclasses

import pytest

from hw.shell.si5324 import ReferenceClock, Si5324Plan, switch

from ..simulate import converts, run
from .i2c_bus import ClockChip, Slaves, Switch

PLAN = Si5324Plan(crystal=114_285_000, n1_hs=9, nc1_ls=4, n2_hs=10, n2_ls=150_000, n3=30_476, bandwidth=1)
SCALE = 1000


def program(chip, cycles=30_000, **faults):
    """Run until the clock is good; returns the slaves, the gateware, and how often it began again."""
    dut, hub = ReferenceClock(PLAN, [switch(0x74, 4)], 8.0, SCALE), Switch(0x74)
    slaves = Slaves(dut, hub, {4: [chip]}, **faults)
    failures = None

    async def bench(ctx):
        nonlocal failures
        assert ctx.get(dut.reset) and not ctx.get(dut.good)
        await ctx.tick().until(dut.good)
        failures = ctx.get(dut.failures)
        assert not ctx.get(dut.reset) and not ctx.get(dut.scl_low) and not ctx.get(dut.sda_low)
        await ctx.tick().repeat(1000)
        assert ctx.get(dut.good) and ctx.get(dut.failures) == failures

    run(dut, bench, cycles=cycles, background=[slaves.run])
    return slaves, failures


@pytest.mark.parametrize("stretch", [0, pytest.param(15, marks=pytest.mark.long)])
def test_the_chip_makes_the_frequency(stretch):
    chip = ClockChip(114_285_000, locks_after=3 if stretch == 0 else 0)
    slaves, failures = program(chip, stretch=stretch)
    assert chip.output() == 156_250_000
    assert failures == 0
    assert chip.calibrations == 1 and chip.asked == (4 if stretch == 0 else 1)
    # The branch first, and the calibration after all dividers.
    assert slaves.transfers[0] == [0xE8, 0x10]
    written = [transfer[1] for transfer in slaves.transfers[1:] if len(transfer) > 2]
    assert written == [0, 10, 25, 31, 40, 43, 136]


def test_a_chip_that_answers_late():
    chip = ClockChip(114_285_000)
    _, failures = program(chip, deaf=2)
    assert failures == 2 and chip.output() == 156_250_000


def test_a_slave_that_holds_the_clock():
    chip = ClockChip(114_285_000)
    slaves, failures = program(chip, stuck=4)
    assert failures == 1 and slaves.resets == 1 and chip.output() == 156_250_000


class Sleepy(ClockChip):
    """Does not lock after its first calibration."""

    def write(self, byte):
        self._locks_after = None if self.calibrations == 0 else 1
        return super().write(byte)


def test_a_loop_that_does_not_lock_is_calibrated_anew():
    chip = Sleepy(114_285_000)
    _, failures = program(chip)
    assert failures == 1 and chip.calibrations == 2


@pytest.mark.parametrize("changes, message", [
    ({"n1_hs": 3}, "n1_hs must be 4 to 11, not 3"),
    ({"n3": 1 << 20}, "n3 must be 1 to 524288, not 1048576"),
    ({"nc1_ls": 5}, "nc1_ls must be even and at most 1048576, not 5"),
    ({"n2_ls": 1}, "n2_ls must be even and at most 1048576, not 1"),
    ({"n3": 10}, r"crystal / N3 must be 2000 to 2e\+06 Hz, not 1.14285e\+07"),
    ({"n2_hs": 11}, r"the oscillator must be 4.85e\+09 to 5.67e\+09 Hz, not 6.1875e\+09"),
])  # fmt: skip
def test_what_the_chip_cannot_do(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAN, **changes)


def test_converts():
    converts(ReferenceClock(PLAN, [switch(0x74, 4)], 200.0))
