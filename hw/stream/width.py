"""Width adapters between packet streams: `Upsizer` and `Downsizer`.

* Throughput: the narrow side moves one beat per cycle, whatever the packet lengths.
* Latency: 1 cycle (Upsizer: from the last narrow beat of a wide one; Downsizer: to the first).
* Registered: the forward side (the Downsizer's count is one gate behind its registers);
  `i.ready` depends on `o.ready`.
* Overflow: cannot happen. Reset: forgets the beat under way.
* Equal widths: one register stage.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .beat import BeatLayout, packet_stream

__all__ = ["Downsizer", "Upsizer"]


class Upsizer(wiring.Component):
    """Gathers beats of `w_in` bytes into beats of `w_out` bytes.

    Members
    -------
    i: In(packet_stream(w_in))
    o: Out(packet_stream(w_out))
    """

    def __init__(self, w_in, w_out):
        if w_out < w_in:
            raise ValueError(f"w_out must be at least w_in={w_in}, not {w_out!r}")
        self._w_in, self._w_out = w_in, w_out
        super().__init__({"i": In(packet_stream(w_in)), "o": Out(packet_stream(w_out))})

    def elaborate(self, platform):
        m = Module()
        w_in, ratio = self._w_in, self._w_out // self._w_in
        beat = Signal(BeatLayout(self._w_out), reset_less=True)
        valid = Signal()
        full = Signal()
        slot = Signal(range(ratio)) if ratio > 1 else C(0, 1)
        m.d.comb += [
            self.o.payload.eq(beat),
            self.o.valid.eq(valid),
            self.i.ready.eq(~valid | self.o.ready),
            full.eq(self.i.p.last | (slot == ratio - 1)),
        ]
        with m.If(self.i.ready):
            m.d.sync += valid.eq(self.i.valid & full)
            with m.If(self.i.valid):
                m.d.sync += [
                    beat.count.eq((slot << exact_log2(w_in)) + self.i.p.count),
                    beat.last.eq(self.i.p.last),
                    beat.err.eq(self.i.p.err),
                ]
                for k in range(ratio):
                    with m.If(slot == k):
                        m.d.sync += beat.data[8 * w_in * k : 8 * w_in * (k + 1)].eq(self.i.p.data)
                if ratio > 1:
                    m.d.sync += slot.eq(Mux(full, 0, slot + 1))
        return m


class Downsizer(wiring.Component):
    """Cuts beats of `w_in` bytes into beats of `w_out` bytes.

    Members
    -------
    i: In(packet_stream(w_in))
    o: Out(packet_stream(w_out))
    """

    def __init__(self, w_in, w_out):
        if w_in < w_out:
            raise ValueError(f"w_out must be at most w_in={w_in}, not {w_out!r}")
        self._w_in, self._w_out = w_in, w_out
        super().__init__({"i": In(packet_stream(w_in)), "o": Out(packet_stream(w_out))})

    def elaborate(self, platform):
        m = Module()
        w_out = self._w_out
        beat = Signal(BeatLayout(self._w_in), reset_less=True)  # shifted out, low bytes first
        valid = Signal()
        final = Signal()
        m.d.comb += [
            final.eq(beat.count <= w_out),
            self.o.valid.eq(valid),
            self.o.p.data.eq(beat.data),
            self.o.p.count.eq(Mux(final, beat.count, w_out)),
            self.o.p.last.eq(beat.last & final),
            self.o.p.err.eq(beat.err & final),
            self.i.ready.eq(~valid | (self.o.ready & final)),
        ]
        with m.If(self.i.ready):
            m.d.sync += [valid.eq(self.i.valid), beat.eq(self.i.payload)]
        with m.Elif(self.o.ready):
            m.d.sync += [
                beat.data.eq(beat.data >> 8 * w_out),
                beat.count.eq(beat.count - w_out),
            ]
        return m
