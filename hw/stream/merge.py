"""StreamMerge: several streams of single items into one, round robin.

Throughput: one item per cycle. Latency: 1 cycle (0 for a single input, which is wired
through). `o` is registered; `i[k].ready` depends on who asks and on `o.ready`. Overflow: cannot
happen. Reset: forgets the item held.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .buffer import StreamBuffer

__all__ = ["StreamMerge"]


class StreamMerge(wiring.Component):
    """Merges `n` streams of `shape`.

    Members
    -------
    i : In(stream.Signature(shape)).array(n)
    o : Out(stream.Signature(shape))
    """

    def __init__(self, shape, n):
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be at least 1, not {n!r}")
        self._shape, self._n = shape, n
        super().__init__({"i": In(stream.Signature(shape)).array(n), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        n = self._n
        if n == 1:
            connect(m, flipped(self.i[0]), flipped(self.o))
            return m
        m.submodules.buffer = buffer = StreamBuffer(self._shape)
        connect(m, buffer.o, flipped(self.o))

        turn = Signal(range(n))  # the input that goes first
        with m.Switch(turn):
            for first in range(n):
                with m.Case(first):
                    with m.If(0):
                        pass
                    for k in [(first + offset) % n for offset in range(n)]:
                        with m.Elif(self.i[k].valid):
                            m.d.comb += [
                                buffer.i.valid.eq(1),
                                buffer.i.payload.eq(self.i[k].payload),
                                self.i[k].ready.eq(buffer.i.ready),
                            ]
                            with m.If(buffer.i.ready):
                                m.d.sync += turn.eq((k + 1) % n)
        return m
