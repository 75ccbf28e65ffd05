"""Pipeline registers on a stream: `StreamBuffer` and `SkidBuffer`.

* Throughput: one entry per cycle. Latency: 1 cycle.
* `StreamBuffer` registers the forward side (valid, payload); `ready` passes through
  combinationally. `SkidBuffer` registers both sides: no path crosses it; it holds two entries.
* Overflow: cannot happen. Reset: empties them; payload registers are not cleared.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["SkidBuffer", "StreamBuffer"]


class StreamBuffer(wiring.Component):
    """One register stage: `o` comes from flip-flops, `i.ready` depends on `o.ready`.

    Members
    -------
    i: In(stream.Signature(shape))
    o: Out(stream.Signature(shape))
    """

    def __init__(self, shape):
        self._shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        payload = Signal(self._shape, reset_less=True)
        valid = Signal()
        m.d.comb += [
            self.o.payload.eq(payload),
            self.o.valid.eq(valid),
            self.i.ready.eq(~valid | self.o.ready),
        ]
        with m.If(self.i.ready):
            m.d.sync += [valid.eq(self.i.valid), payload.eq(self.i.payload)]
        return m


class SkidBuffer(wiring.Component):
    """Two entries: `o` and `i.ready` all come from flip-flops.

    Members
    -------
    i: In(stream.Signature(shape))
    o: Out(stream.Signature(shape))
    """

    def __init__(self, shape):
        self._shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        payload = Signal(self._shape, reset_less=True)
        spare = Signal(self._shape, reset_less=True)
        valid, spare_valid = Signal(), Signal()
        m.d.comb += [
            self.o.payload.eq(payload),
            self.o.valid.eq(valid),
            self.i.ready.eq(~spare_valid),
        ]
        # The spare entry takes what arrives in the cycle in which `o` stops: the source
        # learns of the stop only one cycle later.
        with m.If(~spare_valid):
            m.d.sync += spare.eq(self.i.payload)
        with m.If(~valid | self.o.ready):
            m.d.sync += [
                valid.eq(self.i.valid | spare_valid),
                payload.eq(Mux(spare_valid, Value.cast(spare), Value.cast(self.i.payload))),
                spare_valid.eq(0),
            ]
        with m.Elif(self.i.valid & ~spare_valid):
            m.d.sync += spare_valid.eq(1)
        return m
