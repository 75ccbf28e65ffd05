"""`StateMemory`: one record per index, read and rewritten by one operation per cycle.

    i -> memory -> register -> register (`early`) -> update (`o`, `next`) -> memory

Operations on one index may follow each other in every cycle: what an update writes is put in front of every
later operation that is on its way already, at each register that it passes. So `state` on `o` is always the
result of all operations before.

* Latency: 4 cycles from `i` to `o` (`latency`), one operation per cycle, never stalls. `early` is an operation one
  cycle before `o`: fields that no update changes may be looked at there already.
* Registered: `early` and `o`. `next` and `write` must be there in the cycle of `o`.
* Reset: the memory is not cleared; operations inside are forgotten.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..config import ram_style

__all__ = ["StateMemory"]

ULTRA_DEPTH, BLOCK_DEPTH = 16384, 256
"""Records from which Ultra RAM and block RAM are worth it."""


class StateMemory(wiring.Component):
    """Read-modify-write memory of `depth` records of `layout`; `side` is the shape of what travels along.

    ultra_ram: a deep memory may be Ultra RAM; else it is block RAM.

    Members
    -------
    i_valid, i_index, i_side: an operation.
    early_valid, early_index, early_side, early_state: one cycle before its update.
    o_valid, o_index, o_side, o_state: the operation whose update is due.
    write, next: the update.
    """

    latency = 4

    def __init__(self, layout, depth, side, ultra_ram=True):
        self._layout, self._depth = layout, depth
        self._style = ram_style(depth, ultra=ULTRA_DEPTH, block=BLOCK_DEPTH, ultra_ram=ultra_ram)
        index = range(depth)
        super().__init__(
            {
                "i_valid": In(1),
                "i_index": In(index),
                "i_side": In(side),
                "early_valid": Out(1),
                "early_index": Out(index),
                "early_side": Out(side),
                "early_state": Out(layout),
                "o_valid": Out(1),
                "o_index": Out(index),
                "o_side": Out(side),
                "o_state": Out(layout),
                "write": In(1),
                "next": In(layout),
            }
        )
        self._side = side

    def elaborate(self, platform):
        m = Module()
        depth = self._depth
        m.submodules.memory = memory = Memory(
            shape=self._layout, depth=depth, init=[], attrs={"ram_style": self._style}
        )
        change, read = memory.write_port(), memory.read_port()
        writes = Signal()
        m.d.comb += [
            writes.eq(self.o_valid & self.write),
            change.addr.eq(self.o_index),
            change.data.eq(self.next),
            change.en.eq(writes),
            read.addr.eq(self.i_index),
        ]

        stage = data.StructLayout({"index": range(depth), "side": self._side})
        at = [Signal(stage, name=f"stage{k}", reset_less=True) for k in range(self.latency)]
        valid = Signal(self.latency)
        m.d.sync += [
            valid.eq(Cat(self.i_valid, valid)),
            at[0].index.eq(self.i_index),
            at[0].side.eq(self.i_side),
            *(later.eq(earlier) for later, earlier in zip(at[1:], at, strict=False)),
        ]

        def newest(state, index):
            """What is known of a record, with the update of this cycle."""
            return Mux(writes & (self.o_index == index), Value.cast(self.next), Value.cast(state))

        # The memory gives what was there before an update of the cycle in which it was read.
        missed, missed_value = Signal(), Signal(self._layout, reset_less=True)
        m.d.sync += [missed.eq(writes & (self.o_index == self.i_index)), missed_value.eq(self.next)]
        first = Mux(missed, Value.cast(missed_value), Value.cast(read.data))
        states = [Signal(self._layout, name=f"state{k}", reset_less=True) for k in range(1, self.latency)]
        m.d.sync += Value.cast(states[0]).eq(newest(first, at[0].index))
        for k in range(1, self.latency - 1):
            m.d.sync += Value.cast(states[k]).eq(newest(states[k - 1], at[k].index))
        for name, k in (("early", self.latency - 2), ("o", self.latency - 1)):
            m.d.comb += [
                getattr(self, f"{name}_valid").eq(valid[k]),
                getattr(self, f"{name}_index").eq(at[k].index),
                getattr(self, f"{name}_side").eq(at[k].side),
                getattr(self, f"{name}_state").eq(states[k - 1]),
            ]
        return m
