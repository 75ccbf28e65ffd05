"""The command for an ECP5 board, with a small design in the place of the shell and stand-ins for the tools."""

import dataclasses
import hashlib
import json
import sys

import pytest

import boards
from hw import build
from hw.lattice import run as lattice

from .echo import Echo
from .test_reports import REPORT
from .test_run import PLACE, install, tools

__all__ = ["tools"]

_LOAD = boards.load
TOP = "acceltcp_versa_ecp5_5g"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(boards, "load", lambda name: dataclasses.replace(_LOAD(name), shell=Echo))


def main(folder, *arguments):
    return build.main(["--board", "versa_ecp5_5g", "--out", str(folder), *arguments])


def test_without_tools(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main(tmp_path) == 0
    captured = capsys.readouterr()
    assert "no bitstream: nextpnr-ecp5 and ecppack are neither on PATH nor installed" in captured.err and captured.out == ""
    folder = tmp_path / "versa_ecp5_5g"
    assert sorted(path.name for path in folder.iterdir()) == [f"{TOP}.il", f"{TOP}.lpf", "manifest.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["part"] == "LFE5UM5G-45F-8BG381"
    assert manifest["sha256"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (f"{TOP}.il", f"{TOP}.lpf")
    }


def test_to_the_bitstream(tools, tmp_path, capsys):
    assert main(tmp_path, "--json") == 0
    captured = capsys.readouterr()
    folder = tmp_path / "versa_ecp5_5g"
    assert f"openFPGALoader -c ft2232 {folder / TOP}.bit" in captured.err.replace("\n", "")
    report = json.loads(captured.out)
    assert report == json.loads((folder / "report.json").read_text())
    assert report["implementation"]["clocks"]["mac0_clk"] == {"mhz": 152.91, "wanted_mhz": 125}
    assert "mac0_clk: 152.91 MHz of 125 wanted" in (folder / "report.txt").read_text()
    names = {f"{TOP}.il", f"{TOP}.lpf", f"{TOP}.bit", "report.json", "report.txt"}
    assert json.loads((folder / "manifest.json").read_text())["sha256"].keys() == names


def test_failures_are_one_line(tools, tmp_path, capsys):
    slow = {**REPORT, "fmax": {"$glbnet$port.mac0_clk": {"achieved": 100.0, "constraint": 125}}}
    install(tools, "nextpnr-ecp5", PLACE, report=slow)
    assert main(tmp_path) == 1
    error = capsys.readouterr().err
    assert "error: the timing is not met, so there is no bitstream: mac0_clk 100 of 125 MHz" in error and "Traceback" not in error
    folder = tmp_path / "versa_ecp5_5g"
    assert json.loads((folder / "report.json").read_text())["implementation"]["timing"]["met"] is False
    assert not list(folder.glob("*.bit"))

    install(tools, "nextpnr-ecp5", PLACE, body="sys.exit(7)")
    lpf = folder / "work"
    for config in lpf.glob("*/board.config"):
        config.unlink()
    assert main(tmp_path) == 1
    assert "error: nextpnr failed: it ended with status 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--ports", "2"], "ports must be at most 1 on versa_ecp5_5g, not 2"),
        (["--width", "64"], "width must be 8 on versa_ecp5_5g"),
        (["--ultra-ram"], "ultra_ram must be off on versa_ecp5_5g, which has none"),
        (["--core-clock", "pcie"], "core-clock must be left out on versa_ecp5_5g, not 'pcie'"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(tmp_path, *arguments)
    assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_list(capsys):
    assert build.main(["--list"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Ethernet 1G" in text and "the same port" in text and "LFE5UM5G-85F-8BG554" in text
    assert lattice.PLACE == "nextpnr-ecp5"
