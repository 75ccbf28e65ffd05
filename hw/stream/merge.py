"""StreamMerge: several streams of single items into one, round robin.

Throughput: one item per cycle. Latency: 1 cycle (0 for a single input, which is wired
through). `o` is registered; `i[k].ready` depends on who asks and on `o.ready`. Overflow: cannot
happen. Reset: forgets the item held.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .buffer import StreamBuffer
from .round_robin import round_robin

__all__ = ["StreamMerge"]


class StreamMerge(wiring.Component):
    """Merges `n` streams of `shape`.

    Members
    -------
    i : In(stream.Signature(shape)).array(n)
    o : Out(stream.Signature(shape))
    idle : Out(1); nothing is offered or held.
    """

    def __init__(self, shape, n):
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be at least 1, not {n!r}")
        self._shape, self._n = shape, n
        super().__init__(
            {
                "i": In(stream.Signature(shape)).array(n),
                "o": Out(stream.Signature(shape)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        n = self._n
        wanted = Signal(n)
        m.d.comb += [
            wanted.eq(Cat(i.valid for i in self.i)),
            self.idle.eq(~wanted.any() & ~self.o.valid),
        ]
        if n == 1:
            connect(m, flipped(self.i[0]), flipped(self.o))
            return m
        m.submodules.buffer = buffer = StreamBuffer(self._shape)
        connect(m, buffer.o, flipped(self.o))

        pick, last = Signal(range(n)), Signal(range(n), init=n - 1)
        m.d.comb += buffer.i.valid.eq(wanted.any())
        round_robin(m, wanted, last, pick)
        with m.If(wanted.any() & buffer.i.ready):
            m.d.sync += last.eq(pick)
        with m.Switch(pick):
            for k, i in enumerate(self.i):
                with m.Case(k):
                    m.d.comb += [buffer.i.payload.eq(i.payload), i.ready.eq(buffer.i.ready)]
        return m
