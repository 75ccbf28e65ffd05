"""`PacketArbiter`: several packet streams into one, by whole packets, round robin.

* Throughput: one beat per cycle, also when one-beat packets of different inputs alternate.
* Latency: 1 cycle. Registered: the forward side; `i[k].ready` depends on which inputs are valid
  and on `o.ready`.
* Fairness: after a packet of input k the others come first, in order, then k again.
* Once a packet has begun, its input keeps the output until its last beat, even while it pauses.
* Overflow: cannot happen. Reset: forgets beats under way; the rest of a cut packet goes on
  as if it began there.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .beat import BeatLayout, packet_stream
from .buffer import StreamBuffer
from .round_robin import round_robin

__all__ = ["PacketArbiter"]


class PacketArbiter(wiring.Component):
    """`n` inputs, one output.

    Members
    -------
    i: In(packet_stream(width)).array(n)
    o: Out(packet_stream(width))
    """

    def __init__(self, width, n):
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be an integer of at least 1, not {n!r}")
        self._width, self._n = width, n
        super().__init__({"i": In(packet_stream(width)).array(n), "o": Out(packet_stream(width))})

    def elaborate(self, platform):
        m = Module()
        n = self._n
        m.submodules.buffer = buffer = StreamBuffer(BeatLayout(self._width))
        connect(m, buffer.o, flipped(self.o))

        current = Signal(range(n))  # owner of the packet under way, else of the last one
        inside = Signal()
        chosen = Signal(range(n))
        m.d.comb += chosen.eq(current)
        with m.If(~inside):
            round_robin(m, Cat(i.valid for i in self.i), current, chosen)
        with m.Switch(chosen):
            for k in range(n):
                with m.Case(k):
                    m.d.comb += [
                        buffer.i.payload.eq(self.i[k].payload),
                        buffer.i.valid.eq(self.i[k].valid),
                        self.i[k].ready.eq(buffer.i.ready),
                    ]
        with m.If(buffer.i.valid & buffer.i.ready):
            m.d.sync += [current.eq(chosen), inside.eq(~buffer.i.p.last)]
        return m
