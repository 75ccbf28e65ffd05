"""Counting a netlist's cells, against what nextpnr 0.11.1 counted of the same netlist."""

from hw.lattice.usage import shortage, usage

# `Echo` for the Versa as Yosys 0.70 made it.
CELLS = {"TRELLIS_FF": 851, "LUT4": 608, "CCU2C": 89, "PFUMX": 33, "TRELLIS_DPR16X4": 18, "DP16KD": 6, "ODDRX1F": 6, "EHXPLLL": 1}


def netlist(cells):
    names = (f"{kind}{number}" for kind, count in cells.items() for number in range(count))
    kinds = (kind for kind, count in cells.items() for _ in range(count))
    return {"modules": {"top": {"cells": {name: {"type": kind} for name, kind in zip(names, kinds, strict=True)}}}}


def test_counts():
    used = usage(netlist(CELLS), "top")
    assert (used["ff"], used["ebr"], used["dsp"]) == (851, 6, 0)
    # nextpnr took 972 sites of LUTs: it adds carry cells where a chain begins and ends.
    assert 850 < used["lut"] <= 972


def test_shortage():
    capacity = {"lut": 100, "ff": 100, "bram36": 5, "uram": 0, "dsp": 0}
    assert shortage({"lut": 100, "ff": 1, "ebr": 10, "dsp": 0}, capacity) == ""
    assert shortage({"lut": 1101, "ff": 1, "ebr": 11, "dsp": 0}, capacity) == "1,101 LUT of 100, 11 EBR of 10"
