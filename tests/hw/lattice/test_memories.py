"""Memories of a Lattice design: where they lie, and reads that need not keep the old word."""

import re

import pytest
from amaranth import *
from amaranth.back import rtlil

import boards
from hw.lattice.memories import free_collisions, memory_attributes
from hw.packet.delay import Delay
from hw.stream.fifo import StreamFifo


def exported(design, platform):
    return free_collisions(rtlil.convert(design, platform=platform, ports=[], emit_src=False))


def masks(text):
    return re.findall(r"COLLISION_X_MASK 1'(.)", text)


@pytest.fixture
def lattice():
    return boards.load("ecpix5_85f").platform()


@pytest.mark.parametrize("kind, depth, style, mask", [("block", 17, "block", "1"), ("block", 16, "distributed", "0"), ("lutram", 64, "distributed", "0")])
def test_fifos(lattice, kind, depth, style, mask):
    text = exported(StreamFifo(5, depth, kind=kind), lattice)
    assert re.findall(r'ram_style "(\w+)"', text) == [style]
    assert masks(text) == [mask]


def test_other_devices_have_block_ram_of_any_depth():
    text = exported(StreamFifo(5, 16, kind="block"), None)
    assert 'ram_style "block"' in text and masks(text) == ["0"]


def test_only_memories_that_say_so_are_freed(lattice):
    assert memory_attributes(lattice, 512) == {"ram_style": "block"}
    m = Module()
    m.submodules.free = StreamFifo(5, 32, kind="block")
    m.submodules.other = other = StreamFifo(5, 32, kind="block")
    text = rtlil.convert(m, platform=lattice, ports=[], emit_src=False)
    kept = text.replace("attribute \\never_read_and_written_at_once 1\n", "", 1)
    assert masks(text) == masks(free_collisions(text.replace("never_read", "seldom_read"))) == ["0", "0"]
    assert sorted(masks(free_collisions(text))) == ["1", "1"] and sorted(masks(free_collisions(kept))) == ["0", "1"]
    assert other.depth == 32


def test_delays(lattice):
    text = exported(Delay(40, 30, kind="block"), lattice)
    assert 'ram_style "block"' in text and masks(text) == ["1"]
