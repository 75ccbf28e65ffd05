"""Slow pins that stay at one level, and lights."""

from amaranth import *
from amaranth.lib import io, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Blinker", "drive", "hold"]

_BLINK_BITS = 24


def drive(m, name, port, value):
    """An output pin; `name` is the buffer's, unique in the module."""
    m.submodules[name] = buffer = io.Buffer("o", port)
    m.d.comb += buffer.o.eq(value)


def hold(m, ports, **levels):
    """Drive those of the pins that there are: name in `ports` -> level."""
    for name, level in levels.items():
        if hasattr(ports, name):
            drive(m, f"pin_{name}", getattr(ports, name), level)


class Blinker(wiring.Component):
    """A light that blinks while there is something to see: `light` is on for 2^23 cycles and off for as many.

    Members
    -------
    busy: In(1); light: Out(1), from a register.
    """

    busy: In(1)
    light: Out(1)

    def elaborate(self, platform):
        m = Module()
        left = Signal(_BLINK_BITS)
        m.d.sync += left.eq(Mux(left.any(), left - 1, Mux(self.busy, ~0, 0)))
        m.d.comb += self.light.eq(left[-1])
        return m
