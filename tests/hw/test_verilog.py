"""Verilog of gateware: large memories have no initial contents, small ones and ROMs do."""

import pytest
from amaranth import *
from amaranth.lib import io
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import Component, In, Out

import boards
from hw.verilog import LARGE_BITS, convert, convert_for


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


class Board(Elaboratable):
    """A memory behind a pin of the U50, so that it is not optimised away."""

    def __init__(self, depth):
        self._depth = depth

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        m.submodules.store = store = Store(self._depth)
        m.submodules.pin = pin = io.Buffer("o", platform.request("led", 0, dir="-"))
        m.d.comb += pin.o.eq(store.found[0])
        return m


@pytest.mark.parametrize("depth, initial", [(LARGE, False), (16, True)])
def test_a_whole_board_alike(depth, initial):
    text = convert_for(boards.load("alveo_u50").platform(), Board(depth), "top")
    assert f"memory [{depth - 1}:0]" in text and "module top(led_0__io);" in text
    assert ("memory[1] = " in text) == initial
