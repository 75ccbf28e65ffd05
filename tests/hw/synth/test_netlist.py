"""Depth and area of small designs whose answer is known by construction."""

import json
from functools import reduce
from operator import xor

import pytest
from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from hw.build import MODULE, export
from hw.synth.netlist import Netlist, NetlistError
from hw.synth.yosys import stage_modules, synthesise


class Bench(wiring.Component):
    """All small designs in one, each a stage of its own: one run of Yosys for all tests."""

    def __init__(self):
        super().__init__({"a": In(64), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        outputs = []
        for name, part in {
            "chain1": Chain(1),
            "chain9": Chain(9),
            "parity": Parity(),
            "adder": Adder(),
            "lutram": Lutram(),
            "lutram_xor": LutramXor(),
            "delay": Delay(),
            "bram": Bram(),
            "wires": Wires(),
        }.items():
            m.submodules[name] = part
            m.d.comb += part.i.eq(self.a)
            outputs.append(part.o)
        # Keep all outputs alive.
        m.d.sync += self.o.eq(reduce(xor, outputs))
        return m


class Part(wiring.Component):
    i: In(64)
    o: Out(32)


class Chain(Part):
    """LUTs placed by hand, one behind the other: `length` levels."""

    def __init__(self, length):
        self.length = length
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        x = Signal(64)
        m.d.sync += x.eq(self.i)
        at = x[0]
        for n in range(self.length):
            out = Signal(name=f"out{n}")
            m.submodules[f"lut{n}"] = Instance("LUT2", p_INIT=C(0b0111, 4), i_I0=at, i_I1=x[n + 1], o_O=out)
            at = out
        m.d.sync += self.o.eq(at)
        return m


class Parity(Part):
    """Six bits fit one LUT."""

    def elaborate(self, platform):
        m = Module()
        x = Signal(6)
        m.d.sync += [x.eq(self.i), self.o.eq(x.xor())]
        return m


class Adder(Part):
    """A carry chain behind one level of nothing: two registers added."""

    def elaborate(self, platform):
        m = Module()
        x = Signal(32)
        y = Signal(32)
        m.d.sync += [x.eq(self.i[:32]), y.eq(self.i[32:]), self.o.eq(x + y)]
        return m


class Lutram(Part):
    """Register -> asynchronous read -> register: one level, no LUT needed."""

    extra = False

    def elaborate(self, platform):
        m = Module()
        m.submodules.mem = mem = memory.Memory(shape=7, depth=64, init=[])
        write, read = mem.write_port(), mem.read_port(domain="comb")
        address = Signal(6)
        m.d.sync += address.eq(self.i)
        m.d.comb += [
            write.en.eq(self.i[0]),
            write.addr.eq(self.i[8:14]),
            write.data.eq(self.i[16:23]),
            read.addr.eq(address),
        ]
        m.d.sync += self.o.eq(read.data[:6].xor() if self.extra else read.data)
        return m


class LutramXor(Lutram):
    """The same with a XOR of six bits behind it: one level more."""

    extra = True


class Delay(Part):
    """A shift register of 16 bits without reset: one SRL."""

    def elaborate(self, platform):
        m = Module()
        bit = self.i[0]
        for n in range(20):
            stage = Signal(reset_less=True, name=f"stage{n}")
            m.d.sync += stage.eq(bit)
            bit = stage
        m.d.comb += self.o.eq(bit)
        return m


class Bram(Part):
    def elaborate(self, platform):
        m = Module()
        m.submodules.mem = mem = memory.Memory(shape=32, depth=1024, init=[])
        write, read = mem.write_port(), mem.read_port()
        m.d.comb += [
            write.en.eq(self.i[63]),
            write.addr.eq(self.i),
            write.data.eq(self.i[16:]),
            read.addr.eq(self.i[32:]),
            self.o.eq(read.data),
        ]
        return m


class Wires(Part):
    """No cell at all."""

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(self.i)
        return m


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with space")
    text = export(None, Bench())
    source = folder / "bench.v"
    source.write_text(text)
    modules = stage_modules(text, MODULE)
    passes = []
    design, seconds = synthesise(
        source, MODULE, folder, "bench", family="xcup", stages=modules.values(), progress=passes.append
    )
    assert seconds > 0 and "ABC9" in passes
    return {name: Netlist(design, module.removeprefix("\\")) for name, module in modules.items()} | {
        "": Netlist(design, MODULE)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, levels, carries",
    [
        ("chain1", 1, 0),
        ("chain9", 9, 0),
        ("parity", 1, 0),
        ("lutram", 1, 0),
        ("lutram_xor", 2, 0),
        ("bram", 0, 0),
    ],
)
def test_levels(bench, name, levels, carries):
    path = bench[name].paths()[0]
    assert (path.levels, path.carries) == (levels, carries)


@pytest.mark.slow
def test_carry_chain_is_one_level_and_eight_carries(bench):
    path = bench["adder"].paths()[0]
    assert (path.levels, path.carries) == (1, 8)
    assert bench["adder"].usage().carry == 8
    # From the least significant bit of a register to the most significant of the sum.
    assert path.end.startswith("o[") and path.start in ("x[0]", "y[0]")
    assert path.steps[-1].startswith("CARRY4")


@pytest.mark.slow
def test_paths_name_their_ends(bench):
    path = bench["chain9"].paths()[0]
    assert path.start in ("x[0]", "x[1]") and path.end == "o[0] (D)"
    assert [step.split()[0] for step in path.steps] == ["LUT2"] * 9
    path = bench["lutram"].paths()[0]
    assert path.start.startswith("address[") and path.end.startswith("o[")
    assert path.steps[0].startswith("RAM64")


@pytest.mark.slow
def test_usage(bench):
    usage = {name: netlist.usage() for name, netlist in bench.items()}
    assert (usage["chain9"].lut_sites, usage["chain9"].ff) == (9, 11)
    assert usage["adder"].lut_sites == 32
    assert usage["lutram"].lutram == 8 and usage["lutram"].lut_sites == 8
    assert usage["delay"].srl == 1 and usage["delay"].lut == 0
    assert (usage["bram"].bram36, usage["bram"].bram18, usage["bram"].bram) == (1, 0, 1.0)
    assert len(bench[""].instances) == 8 and "wires" not in usage  # Amaranth dissolves it


def module(cells, ports=None):
    return {"modules": {"top": {"ports": ports or {}, "cells": cells, "netnames": {}, "attributes": {}}}}


def lut(inputs, output, kind="LUT2"):
    pins = {f"I{n}": [bit] for n, bit in enumerate(inputs)} | {"O": [output]}
    directions = {name: "output" if name == "O" else "input" for name in pins}
    return {"type": kind, "connections": pins, "port_directions": directions}


def test_loops_and_unknown_cells_are_errors():
    loop = {"one": lut([4, 2], 3), "two": lut([3, 2], 4)}
    with pytest.raises(NetlistError, match="top has a combinational loop through net"):
        Netlist(module(loop), "top").paths()
    strange = {"s": {"type": "FROB", "connections": {}}}
    with pytest.raises(NetlistError, match="top has 1 cells of the unknown type 'FROB'"):
        Netlist(module(strange), "top").usage()
    with pytest.raises(NetlistError, match="has no module 'other'"):
        Netlist(module({}), "other")


def test_long_chains_need_no_recursion():
    count = 5000
    cells = {f"l{n}": lut([n, "1"], n + 1) for n in range(2, 2 + count)}
    ports = {"o": {"direction": "output", "bits": [count + 2]}, "i": {"direction": "input", "bits": [2]}}
    path = Netlist(module(cells, ports), "top").paths()[0]
    assert path.levels == count and path.end == "port o"


def test_carry_arcs_go_upwards_only():
    """A late input of bit 3 does not delay the sum of bit 0."""
    cells = {
        "late1": lut([2, 3], 10),
        "late2": lut([10, 3], 11),
        "carry": {
            "type": "CARRY4",
            "connections": {
                "CI": ["0"],
                "CYINIT": ["0"],
                "S": [2, 2, 2, 11],
                "DI": [3, 3, 3, 3],
                "O": [20, 21, 22, 23],
                "CO": [30, 31, 32, 33],
            },
        },
    }
    for bit, levels in ((20, 0), (22, 0), (32, 0), (23, 2), (33, 2)):
        ports = {"o": {"direction": "output", "bits": [bit]}}
        assert Netlist(module(cells, ports), "top").paths()[0].levels == levels


@pytest.mark.slow
def test_netlist_is_json_serialisable(bench):
    assert json.dumps([path.as_dict() for path in bench[""].paths(3)])
