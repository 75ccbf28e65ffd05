"""`StateMemory`: one record per index, read and rewritten by one operation per cycle.

    i -> memory, its registers -> register (`early`) -> update (`o`, `next`) -> memory
      `----- newer than that -----^

Operations on one index may follow each other in every cycle: what an update writes is put in front of every
later operation that is on its way already. Beside the memory it waits for what the memory gives; behind it, it takes its place. So `state` on `o`
is always the result of all operations before. Whether an update is of an operation's index is known a cycle before it.

* Latency: 4 cycles from `i` to `o` (`latency`), one operation per cycle, never stalls. `early` is an operation one
  cycle before `o`: fields that no update changes may be looked at there already.
* Registered: `early` and `o`. `next` and `write` must be there in the cycle of `o`.
* Reset: the memory is not cleared; operations inside are forgotten.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..config import ram_style
from .deep_memory import DeepMemory

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
        m.submodules.memory = memory = DeepMemory(self._layout, depth, self._style)
        writes = Signal()
        m.d.comb += [
            writes.eq(self.o_valid & self.write),
            memory.write.eq(writes),
            memory.write_index.eq(self.o_index),
            memory.write_data.eq(self.next),
            memory.read_index.eq(self.i_index),
        ]

        stage = data.StructLayout({"index": range(depth), "side": self._side})
        # (The last one is reset: else synthesis sees a shift register, from whose output everything would take a LUT level more.)
        at = [Signal(stage, name=f"stage{k}", reset_less=k != self.latency - 1) for k in range(self.latency)]
        valid = Signal(self.latency)
        m.d.sync += [
            valid.eq(Cat(self.i_valid, valid)),
            at[0].index.eq(self.i_index),
            at[0].side.eq(self.i_side),
            *(later.eq(earlier) for later, earlier in zip(at[1:], at, strict=False)),
        ]

        # Whether the operation in `at[k]` is on the index of the update that is due.
        same = Signal(self.latency - 1)
        m.d.sync += same.eq(Cat(at[self.latency - 2].index == index for index in (self.i_index, *(each.index for each in at[:-2]))))

        def newest(state, k):
            """What is known of the record of `at[k]`, with the update of this cycle."""
            return Mux(writes & same[k], Value.cast(self.next), Value.cast(state))

        # Updates of this cycle and the next one come too late for the memory, which is being read.
        newer = Signal(2)
        values = [Signal(self._layout, name=f"newer{k}", reset_less=True) for k in range(2)]
        states = [Signal(self._layout, name=f"state{k}", reset_less=True) for k in range(2)]
        m.d.sync += [
            newer[0].eq(writes & (self.o_index == self.i_index)),
            newer[1].eq(newer[0] | writes & same[0]),
            values[0].eq(self.next),
            Value.cast(values[1]).eq(newest(values[0], 0)),
            Value.cast(states[0]).eq(newest(Mux(newer[1], Value.cast(values[1]), Value.cast(memory.data)), 1)),
            Value.cast(states[1]).eq(newest(states[0], 2)),
        ]
        for name, k in (("early", self.latency - 2), ("o", self.latency - 1)):
            m.d.comb += [
                getattr(self, f"{name}_valid").eq(valid[k]),
                getattr(self, f"{name}_index").eq(at[k].index),
                getattr(self, f"{name}_side").eq(at[k].side),
                getattr(self, f"{name}_state").eq(states[k - 2]),
            ]
        return m
