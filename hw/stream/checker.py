"""`StreamChecker`: asserts the rules of streams and of `Beat`, in simulation and formally.

The checker only listens. Its assertions are ordinary Amaranth `Assert` statements: they fail
a simulation with `AssertionError`, and become assertions for SymbiYosys when converted for
formal verification. `checked(dut, dut.i, dut.o)` wraps a component with checkers for tests.

Rules, at each clock edge outside reset:

* once valid, a transfer stays valid and its payload unchanged until it is taken;
* (beats) `count` is 1 to `width`, and `width` on every beat but the last.

Latency, overflow: none. Reset forgets the transfer under way.
"""

from amaranth import *
from amaranth.hdl import Assert
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from .beat import BeatLayout

__all__ = ["StreamChecker", "checked"]


class StreamChecker(wiring.Component):
    """Listens to one stream of `shape`; a `BeatLayout` also gets the rules of beats.

    Members
    -------
    payload, valid, ready: all In; wire them to the stream's.
    """

    def __init__(self, shape, name="stream"):
        self._shape, self._name = shape, name
        super().__init__({"payload": In(shape), "valid": In(1), "ready": In(1)})

    def elaborate(self, platform):
        m = Module()
        name = self._name
        payload = Value.cast(self.payload)
        waiting = Signal()
        offered = Signal(len(payload), reset_less=True)
        m.d.sync += [waiting.eq(self.valid & ~self.ready), offered.eq(payload)]
        with m.If(waiting):
            m.d.sync += [
                Assert(self.valid, f"{name}: valid dropped before the transfer"),
                Assert(payload == offered, f"{name}: payload changed before the transfer"),
            ]
        if isinstance(self._shape, BeatLayout):
            width, count = self._shape.width, self.payload.count
            with m.If(self.valid):
                m.d.sync += [
                    Assert((count >= 1) & (count <= width), f"{name}: count not from 1 to width"),
                    Assert(
                        self.payload.last | (count == width),
                        f"{name}: a beat before the last is not full",
                    ),
                ]
        return m


class _Checked(Elaboratable):
    def __init__(self, dut, streams):
        self._dut, self._streams = dut, streams

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = self._dut
        for i, stream in enumerate(self._streams):
            checker = StreamChecker(stream.payload.shape(), name=f"stream {i}")
            m.submodules[f"checker{i}"] = checker
            m.d.comb += [
                checker.payload.eq(stream.payload),
                checker.valid.eq(stream.valid),
                checker.ready.eq(stream.ready),
            ]
        return m


def checked(dut, *streams):
    """The component with a checker on each of these of its streams, to be simulated."""
    return _Checked(dut, streams)
