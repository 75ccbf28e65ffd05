"""Verilog of gateware: large memories have no initial contents, small ones and ROMs do."""

import pytest
from amaranth import *
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import Component, In, Out

from hw.verilog import LARGE_BITS, convert


class Store(Component):
    """One memory of 64-bit words."""

    def __init__(self, depth, init=()):
        super().__init__({"address": In(range(depth)), "data": In(64), "write": In(1), "found": Out(64)})
        self._depth, self._init = depth, init

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=64, depth=self._depth, init=self._init)
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += [read.addr.eq(self.address), write.addr.eq(self.address), write.data.eq(self.data)]
        m.d.comb += [write.en.eq(self.write), read.en.eq(1), self.found.eq(read.data)]
        return m


LARGE = LARGE_BITS // 64


@pytest.mark.parametrize("depth, init, initial", [(LARGE, (), False), (LARGE // 4, (), True), (16, (3, 4), True)])
def test_initial_contents(depth, init, initial):
    text = convert(Store(depth, init), "store")
    assert f"memory [{depth - 1}:0]" in text
    assert ("memory[1] = " in text) == initial


def test_large_memories_with_contents_keep_them():
    assert "memory[1] = 64'h0000000000000004" in convert(Store(LARGE, (3, 4)), "store")
