"""`LinkState`: when a link counts as up."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["LinkState"]


class LinkState(wiring.Component):
    """In the domain of the MAC's stream. Both outputs come from registers.

    settle: cycles for which the link must be good before it counts as up; so long, too, is it down at least.

    Members
    -------
    good: In(1): what the MAC says.
    up: Out(1): packets may pass.
    restart: Out(1): for `settle` cycles after a link is lost: the MAC's sender forgets the packet that it was in.
    """

    good: In(1)
    up: Out(1)
    restart: Out(1)

    def __init__(self, settle=256):
        self._settle = settle
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        quiet = Signal(range(self._settle))
        with m.If(self.up):
            with m.If(~self.good):
                m.d.sync += [self.up.eq(0), self.restart.eq(1), quiet.eq(0)]
        with m.Elif(quiet == self._settle - 1):
            m.d.sync += [self.restart.eq(0), quiet.eq(0), self.up.eq(self.good & ~self.restart)]
        with m.Elif(self.restart | self.good):
            m.d.sync += quiet.eq(quiet + 1)
        with m.Else():
            m.d.sync += quiet.eq(0)
        return m
