"""PacketTap: counts the packets and bytes that pass.

Latency 0, one beat per cycle; the stream passes through untouched. The counts are registered
and come one cycle after the last beat. Packets with `err` count like any other. Reset: a
packet cut by it counts from there.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ..counts import counts_layout
from .beat import packet_stream

__all__ = ["PacketTap"]


class PacketTap(wiring.Component):
    """Counts a packet stream of `width` bytes a beat into counters `packets` and `octets`.

    Members
    -------
    i : In(packet_stream(width)), o : Out(packet_stream(width))
    counts : Out; strobes of the two counters named.
    """

    def __init__(self, width, *, packets, octets):
        self._packets, self._octets = packets, octets
        super().__init__(
            {
                "i": In(packet_stream(width)),
                "o": Out(packet_stream(width)),
                "counts": Out(counts_layout(packets, octets)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        connect(m, flipped(self.i), flipped(self.o))
        so_far = Signal(16)
        beat = self.i.payload
        total = Signal(16)
        m.d.comb += total.eq(so_far + beat.count)
        m.d.sync += self.counts.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += so_far.eq(Mux(beat.last, 0, total))
            with m.If(beat.last):
                m.d.sync += [self.counts[self._packets].eq(1), self.counts[self._octets].eq(total)]
        return m
