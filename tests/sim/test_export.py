"""The core as Verilog: cached by its sources, and a sentence where the tool is missing."""

import importlib.metadata

import pytest

from sim.cache import BuildError
from sim.export import run_constants, source_hash
from sim.verilate import for_speed


def test_without_amaranth_a_sentence_says_what_to_install(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(BuildError, match=r"pip install 'acceltcp\[sim\]'"):
        source_hash()


def test_sources_have_one_hash():
    assert source_hash() == source_hash()


def test_processes_that_nothing_wakes_are_made_to_run():
    text = "module m;\n  always @*\n    x[0] = 1'h1;\n  always @*\n    y = a;\nendmodule\n"
    assert run_constants(text) == text.replace("always @*\n    x[0]", "always_comb\n    x[0]")


def test_every_change_of_the_clock_is_a_cycle_and_reset_comes_through_a_register():
    inner = "module inner(rst, clk);\n  input rst;\n  wire rst;\n  always @(posedge clk)\n    x <= y;\nendmodule\n"
    top = "module top(rst, clk);\n  input rst;\n  wire rst;\n{}  inner inner (\n    .rst({})\n  );\nendmodule\n"
    taken = "  reg rst_taken;\n  always @(edge clk)\n    rst_taken <= rst;\n"
    assert for_speed(top.format("", "rst") + inner) == top.format(taken, "rst_taken") + inner.replace("posedge", "edge")
