"""`StreamFifo`: a first-in-first-out queue on a stream, with a registered output.

Two flavours. `kind="lutram"`: distributed memory, for up to about 64 entries.
`kind="block"`: block memory whose output passes one more register, which synthesis puts into
the block itself.

* Throughput: one entry per cycle in and out at any fill level.
* Latency: an entry stands on `o` 2 (lutram) or 3 (block) cycles after its transfer on `i`.
* Registered: `o.valid` and `o.payload` are flip-flops. `i.ready` comes from a counter that is
  a flip-flop; it never depends on `o.ready`.
* Overflow: cannot happen; `i.ready` is low while the memory is full. `depth` entries always
  fit; the output registers hold up to one (lutram) or two (block) more.
* Reset: empties it. Memory and payload registers are not cleared.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..lattice.memories import memory_attributes

__all__ = ["StreamFifo"]


class StreamFifo(wiring.Component):
    """A FIFO of `depth` entries of `shape`.

    Parameters
    ----------
    shape: shape of the payload.
    depth: entries of the memory, at least 2.
    kind: "lutram" or "block".

    Members
    -------
    i: In(stream.Signature(shape))
    o: Out(stream.Signature(shape))
    level: entries held, those in the output registers included (at most `capacity`).
    """

    def __init__(self, shape, depth, *, kind="lutram"):
        if not isinstance(depth, int) or depth < 2:
            raise ValueError(f"depth must be an integer of at least 2, not {depth!r}")
        if kind not in ("lutram", "block"):
            raise ValueError(f"kind must be 'lutram' or 'block', not {kind!r}")
        self._shape, self._depth, self._kind = shape, depth, kind
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "level": Out(range(self.capacity + 1)),
            }
        )

    @property
    def depth(self):
        """Entries that always fit."""
        return self._depth

    @property
    def kind(self):
        """The flavour."""
        return self._kind

    @property
    def capacity(self):
        """Entries that fit when nothing is taken out: the memory and the output registers."""
        return self._depth + (1 if self._kind == "lutram" else 2)

    @property
    def latency(self):
        """Cycles from the transfer on `i` until the entry stands on an idle `o`."""
        return 2 if self._kind == "lutram" else 3

    def elaborate(self, platform):
        m = Module()
        block = self._kind == "block"
        m.submodules.memory = memory = Memory(
            shape=self._shape,
            depth=self._depth,
            init=[],
            attrs=memory_attributes(platform, self._depth, collisions=False) if block else {"ram_style": "distributed"},
        )
        write = memory.write_port()
        read = memory.read_port(domain="sync" if block else "comb")

        # Entries in the memory; an address is never read and written at once. A registered flag for "full" keeps i.ready a bare flip-flop.
        stored = Signal(range(self._depth + 1))
        full = Signal()
        push, pop = Signal(), Signal()
        write_at = Signal(range(self._depth))
        read_at = Signal(range(self._depth))

        m.d.comb += [
            self.i.ready.eq(~full),
            push.eq(self.i.valid & ~full),
            write.addr.eq(write_at),
            write.data.eq(self.i.payload),
            write.en.eq(push),
            read.addr.eq(read_at),
        ]
        with m.If(push):
            m.d.sync += write_at.eq(Mux(write_at == self._depth - 1, 0, write_at + 1))
        with m.If(pop):
            m.d.sync += read_at.eq(Mux(read_at == self._depth - 1, 0, read_at + 1))
        m.d.sync += stored.eq(stored + push - pop)
        with m.If(push & ~pop):
            m.d.sync += full.eq(stored == self._depth - 1)
        with m.Elif(pop & ~push):
            m.d.sync += full.eq(0)

        payload = Signal(self._shape, reset_less=True)
        valid = Signal()
        advance = Signal()
        m.d.comb += [
            self.o.payload.eq(payload),
            self.o.valid.eq(valid),
            advance.eq(~valid | self.o.ready),
        ]
        if block:
            # The memory's own output is a pipeline stage: `fetched` says whether it holds an entry.
            fetched = Signal()
            m.d.comb += [
                pop.eq((stored != 0) & (~fetched | advance)),
                read.en.eq(pop),
            ]
            with m.If(~fetched | advance):
                m.d.sync += fetched.eq(pop)
            with m.If(advance):
                m.d.sync += [valid.eq(fetched), payload.eq(read.data)]
        else:
            m.d.comb += pop.eq((stored != 0) & advance)
            with m.If(advance):
                m.d.sync += [valid.eq(pop), payload.eq(read.data)]

        m.d.sync += self.level.eq(self.level + push - (self.o.valid & self.o.ready))
        return m
