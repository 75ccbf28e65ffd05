"""`DeepMemory`: one write port and one read port, many times as deep as a memory block of the device.

    read_index -> group 0 --> register, zero unless group 0 was meant --+
               -> group 1 --> register, zero unless group 1 was meant --+-> OR -> data
               -> ...

Words lie in groups of `GROUP`: four blocks deep in Ultra RAM and in block RAM that is 9 bits wide. Choosing one block of four is about a
LUT per bit; behind its register a group that was not meant says zero, so the groups together take an OR, not a wider choice. In Yosys's synthesis
(LUT sites per bit, all included): 131,072 words of Ultra RAM 12 instead of 19 in one piece, 262,144 words 23 instead of 33.

* Latency: `data` stands 2 cycles after `read_index`, one word per cycle; it gives what was there before a write in the cycle of
  `read_index`; reads of the next cycle see the write.
* Registered: the outputs of the groups; `data` is an OR of these (of 16 for 262,144 words).
* Reset: nothing is cleared. Overflow: cannot happen.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

__all__ = ["GROUP", "DeepMemory"]

GROUP = 4 * 4096
"""Words of a group."""


class DeepMemory(wiring.Component):
    """`depth` words of `shape`, a power of two; `style` is the attribute `ram_style` of its memories (`hw.config.ram_style`).

    Members
    -------
    read_index, data: a look.
    write, write_index, write_data: a change.
    """

    latency = 2

    def __init__(self, shape, depth, style, group=GROUP):
        exact_log2(depth)
        self._shape, self._depth, self._style, self._group = shape, depth, style, min(group, depth)
        super().__init__(
            {
                "read_index": In(range(depth)),
                "data": Out(shape),
                "write": In(1),
                "write_index": In(range(depth)),
                "write_data": In(shape),
            }
        )

    def elaborate(self, platform):
        m = Module()
        within = exact_log2(self._group)
        meant = Signal(max(1, exact_log2(self._depth) - within), reset_less=True)
        m.d.sync += meant.eq(self.read_index[within:])
        together = 0
        for k in range(self._depth // self._group):
            memory = Memory(shape=self._shape, depth=self._group, init=[], attrs={"ram_style": self._style})
            m.submodules[f"group{k}"] = memory
            read, change = memory.read_port(), memory.write_port()
            out = Signal(self._shape, name=f"out{k}", reset_less=True)
            m.d.comb += [
                read.addr.eq(self.read_index[:within]),
                change.addr.eq(self.write_index[:within]),
                change.data.eq(self.write_data),
                change.en.eq(self.write & (self.write_index[within:] == k)),
            ]
            m.d.sync += Value.cast(out).eq(Value.cast(read.data))
            with m.If(meant != k):
                m.d.sync += Value.cast(out).eq(0)
            together = together | Value.cast(out)
        m.d.comb += Value.cast(self.data).eq(together)
        return m
