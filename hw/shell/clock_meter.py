"""`ClockMeter`: is a clock from outside there, and about as fast as it should be?

A PHY without a gigabit link gives a slower clock or none; then nothing behind it may wait for it.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import Out

__all__ = ["ClockMeter"]

_DIVIDER_BITS = 5
_WINDOW_US = 50


class ClockMeter(wiring.Component):
    """Counts edges of a divided clock in windows of 50 us of `sync`. Domain `seen` is the clock to look at; it needs no reset.

    Parameters
    ----------
    mhz: frequency of `sync`; above an eighth of the other clock's. expected_mhz: what the other clock should have.

    Members
    -------
    good: Out(1): in the last window it was within an eighth of that. 0 at first. Domain `sync`. It falls at the end of the
        window in which the clock fails, so 100 us late at most.
    """

    good: Out(1)

    def __init__(self, mhz, expected_mhz):
        if mhz * 8 <= expected_mhz:
            raise ValueError(f"mhz must be above {expected_mhz / 8:g}, not {mhz!r}")
        self._cycles = round(mhz * _WINDOW_US)
        self._edges = round(expected_mhz * _WINDOW_US) >> (_DIVIDER_BITS - 1)
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        divider = Signal(_DIVIDER_BITS, reset_less=True)
        m.d.seen += divider.eq(divider + 1)
        level, before = Signal(), Signal()
        m.submodules += FFSynchronizer(divider[-1], level)
        left = Signal(range(self._cycles), init=self._cycles - 1)
        count = Signal(range(4 * self._edges))
        margin = self._edges // 8
        m.d.sync += [before.eq(level), left.eq(left - 1), count.eq(count + (level ^ before))]
        with m.If(left == 0):
            m.d.sync += [
                left.eq(self._cycles - 1),
                count.eq(level ^ before),
                self.good.eq((count > self._edges - margin) & (count < self._edges + margin)),
            ]
        return m
