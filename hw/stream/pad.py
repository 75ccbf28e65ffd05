"""`TxPad`: brings frames to the Ethernet minimum of 60 bytes (IEEE 802.3 clause 4.2.3.3).

Appends zero bytes, and clears whatever stood past `count`, so that nothing of an earlier
packet or of host memory leaves through the padding.

* Throughput: one beat per cycle; a short packet takes the beats that 60 bytes take.
* Latency: 1 cycle. Registered: the forward side; `i.ready` depends on `o.ready`.
* `err` is kept. Overflow: cannot happen. Reset: forgets the beat under way; the rest of a cut
  packet goes on as if it began there.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.wire import ETHERNET_MIN_FRAME

from .beat import BeatLayout, byte_mask, packet_stream
from .buffer import StreamBuffer

__all__ = ["TxPad"]


class TxPad(wiring.Component):
    """Pads packets of a stream.

    Members
    -------
    i: In(packet_stream(width))
    o: Out(packet_stream(width))
    """

    def __init__(self, width):
        self._width = width
        super().__init__({"i": In(packet_stream(width)), "o": Out(packet_stream(width))})

    def elaborate(self, platform):
        m = Module()
        width = self._width
        final = (ETHERNET_MIN_FRAME - 1) // width  # index of the beat with the 60th byte
        final_count = ETHERNET_MIN_FRAME - final * width
        m.submodules.buffer = buffer = StreamBuffer(BeatLayout(width))
        connect(m, buffer.o, flipped(self.o))

        index = Signal(range(final + 2))  # beat of the packet; final + 1 stands for all later ones
        filling = Signal()  # the packet has ended, padding beats follow
        err = Signal()
        beat = self.i.payload
        mask = byte_mask(beat.count, width)
        at_final = Signal()
        m.d.comb += [
            at_final.eq(index == final),
            buffer.i.valid.eq(self.i.valid | filling),
            self.i.ready.eq(buffer.i.ready & ~filling),
        ]
        out = buffer.i.payload
        for k in range(width):
            byte = slice(8 * k, 8 * k + 8)
            m.d.comb += out.data[byte].eq(Mux(mask[k] & ~filling, beat.data[byte], 0))
        with m.If(filling):
            m.d.comb += [
                out.count.eq(Mux(at_final, final_count, width)),
                out.last.eq(at_final),
                out.err.eq(at_final & err),
            ]
        with m.Elif(index < final):
            m.d.comb += out.count.eq(width)
        with m.Else():
            short = at_final & (beat.count < final_count)
            m.d.comb += [
                out.count.eq(Mux(short, final_count, beat.count)),
                out.last.eq(beat.last),
                out.err.eq(beat.err),
            ]
        with m.If(buffer.i.valid & buffer.i.ready):
            with m.If(out.last):
                m.d.sync += [index.eq(0), filling.eq(0)]
            with m.Else():
                with m.If(index <= final):
                    m.d.sync += index.eq(index + 1)
                with m.If(~filling & beat.last):
                    m.d.sync += [filling.eq(1), err.eq(beat.err)]
        return m
