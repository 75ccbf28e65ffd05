"""`Delay`: a record that reappears a fixed number of cycles later.

For what travels beside a pipeline that never stalls. Long delays of wide records are a ring
in distributed memory or, with `kind="block"`, in block memory instead of shift registers.

* Latency: `cycles`. Throughput: one record per cycle; registered output.
* Reset: contents are not cleared; what tells valid records from others travels elsewhere.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..lattice.memories import memory_attributes

__all__ = ["Delay"]


class Delay(wiring.Component):
    """Delays `i` (of `shape`) by `cycles`, at least 1.

    Parameters
    ----------
    shape: shape of the record.
    cycles: the delay; fewer than 4 are flip-flops whatever the `kind`.
    kind: "lutram" or "block".

    Members
    -------
    i: In(shape)
    o: Out(shape)
    """

    def __init__(self, shape, cycles, *, kind="lutram"):
        if not isinstance(cycles, int) or cycles < 1:
            raise ValueError(f"cycles must be an integer of at least 1, not {cycles!r}")
        if kind not in ("lutram", "block"):
            raise ValueError(f"kind must be 'lutram' or 'block', not {kind!r}")
        self._shape, self._cycles, self._kind = shape, cycles, kind
        super().__init__({"i": In(shape), "o": Out(shape)})

    def elaborate(self, platform):
        m = Module()
        if self._cycles < 4:
            value = self.i
            for k in range(self._cycles):
                stage = Signal(self._shape, name=f"stage{k}", reset_less=True)
                m.d.sync += stage.eq(value)
                value = stage
            m.d.comb += self.o.eq(value)
            return m
        # The oldest record is read from distributed memory in the cycle in which the newest
        # overwrites it; from block memory, which has a register of its own, one cycle earlier.
        block = self._kind == "block"
        depth = self._cycles - 1
        m.submodules.ring = ring = Memory(
            shape=self._shape,
            depth=depth,
            init=[],
            attrs=memory_attributes(platform, depth, collisions=depth == 1) if block else {"ram_style": "distributed"},
        )
        write, read = ring.write_port(), ring.read_port(domain="sync" if block else "comb")
        at = Signal(range(depth))
        following = Signal(range(depth))
        out = Signal(self._shape, reset_less=True)
        m.d.comb += following.eq(Mux(at == depth - 1, 0, at + 1))
        m.d.sync += [at.eq(following), out.eq(read.data)]
        m.d.comb += [
            write.addr.eq(at),
            write.data.eq(self.i),
            write.en.eq(1),
            read.addr.eq(following if block else at),
            self.o.eq(out),
        ]
        return m
