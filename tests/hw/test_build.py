import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

import boards
from hw import build
from tests.boards.everything import Everything

from .vivado import fake_vivado


class Stage(wiring.Component):
    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.o + self.i)
        return m


class Toy(wiring.Component):
    """Two stages; stands for the core, so that the test takes seconds."""

    a: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = Stage()
        m.submodules.second = second = Stage()
        m.d.comb += [first.i.eq(self.a), second.i.eq(first.o), self.o.eq(second.o)]
        return m


class Broken(wiring.Component):
    """Asks for a module that nobody has written."""

    a: In(1)
    o: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.part = Instance("nowhere", i_a=self.a, o_o=self.o)
        return m


_LOAD = boards.load


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Boards without their shells, whose export takes a minute."""
    monkeypatch.setattr(boards, "load", lambda name: dataclasses.replace(_LOAD(name), shell=None))


def test_verilog_only(tmp_path, capsys):
    assert build.main(["--board", "alveo_u50", "--out", str(tmp_path), "--no-synth"], design=Toy()) == 0
    folder = tmp_path / "alveo_u50"
    assert sorted(path.name for path in folder.iterdir()) == ["acceltcp_nic.v", "manifest.json"]
    assert "module acceltcp_nic(" in (folder / "acceltcp_nic.v").read_text()
    captured = capsys.readouterr()
    assert captured.out == "" and "written to " in captured.err


@pytest.mark.slow
def test_whole_build(tmp_path, capsys):
    arguments = ["--board", "netfpga_sume", "--out", str(tmp_path), "--json", "--width", "32"]
    arguments += ["--tx-buffer-beats", "2048", "--no-pipelined-hash"]
    assert build.main(arguments, design=Toy()) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    folder = tmp_path / "netfpga_sume"
    assert report == json.loads((folder / "report.json").read_text())
    assert "whole core, flattened" in (folder / "report.txt").read_text()
    assert (report["config"]["width"], report["config"]["pipelined_hash"]) == (32, False)
    # Buffers keep their size in bytes unless told otherwise.
    assert (report["config"]["rx_buffer_beats"], report["config"]["tx_buffer_beats"]) == (2048, 2048)
    assert report["config"]["queues"] == boards.load("netfpga_sume").config.queues
    assert set(report["stages"]) == {"first", "second", "(wiring)"}
    assert report["stages"]["first"]["ff"] == 8 and report["total"]["ff"] == 16
    assert report["total"]["lut_sites"] == 16
    assert report["total"]["levels"] == 1 and report["total"]["carry"] == 4
    assert report["goals"]["levels"]["met"]
    assert set(report["seconds"]) == set(report["cpu_seconds"]) == {"export", "whole core", "stages"}
    assert "whole core" in captured.err  # progress


def test_list_describes_every_board(capsys):
    assert build.main(["--list"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in boards.names():
        assert name in text
    for words in ("xc7vx690tffg1761-3", "PCIe Gen3 x8", "2 x 100G QSFP", "1 x 100G QSFP", "2 x 10G SFP", "simulation only"):
        assert words in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--board", "alveo_u500"], "no board is named 'alveo_u500'; did you mean 'alveo_u50'?"),
        (["--board", "u50"], "did you mean 'alveo_u50'?"),
        ([], "--board is needed"),
        (["--board", "alveo_u50", "--ports", "2"], "ports must be at most 1 on alveo_u50, not 2"),
        (["--board", "alveo_u50", "--width", "8"], "width must be 64 on alveo_u50"),
        (["--board", "alveo_u50", "--config", "/nowhere.toml"], "/nowhere.toml: No such file or directory"),
        (["--board", "alveo_u50", "--width", "7"], "width must be one of (8, 32, 64), not 7"),
        (["--board", "alveo_u50", "--queues", "3"], "queues must be a power of two from 1 to 64, not 3"),
        (["--board", "alveo_u50", "--queues", "many"], "invalid int value: 'many'"),
        (["--board", "alveo_u50", "--rx-buffer-beats", "64"], "rx_buffer_beats must hold two frames"),
    ],
)
def test_bad_arguments_end_with_2_and_one_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        build.main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_failed_synthesis_ends_with_1(tmp_path, capsys):
    assert build.main(["--board", "alveo_u50", "--out", str(tmp_path)], design=Broken()) == 1
    error = capsys.readouterr().err
    assert "nowhere" in error and "Traceback" not in error


class Shell(Everything):
    """Stands for what surrounds the core: takes all pins, and has one block of the vendor's."""

    def __init__(self, board, config, core_clock="pcie"):
        self._core_clock = core_clock
        self.ips = [SimpleNamespace(module="mac", name="m", vendor="v", library="l", properties={"A": "1"}, after=())]

    def constraints(self):
        return [f"set_false_path -to [get_cells {self._core_clock}]"]


@pytest.fixture
def shelled(monkeypatch):
    """The U50 with that shell."""
    board = dataclasses.replace(boards.load("alveo_u50"), shell=Shell)
    monkeypatch.setattr(boards, "load", lambda name: board)
    return board


def run(tmp_path, *arguments):
    return build.main(["--board", "alveo_u50", "--out", str(tmp_path), "--no-synth", *arguments], design=Toy())


def manifest(tmp_path):
    """What the manifest lists, each checked against its file."""
    listed = json.loads((tmp_path / "alveo_u50/manifest.json").read_text())["sha256"]
    for name, digest in listed.items():
        assert hashlib.sha256((tmp_path / "alveo_u50" / name).read_bytes()).hexdigest() == digest, name
    return set(listed)


VENDOR_FILES = {
    "acceltcp_nic.v", "acceltcp_alveo_u50.v", "acceltcp_alveo_u50.xdc", "acceltcp_alveo_u50_cells.xdc",
    "ip.tcl", "settings.tcl", "project.tcl", "program.tcl", "build.sh",
}  # fmt: skip


def test_everything_up_to_the_door_of_the_vendors_tool(tmp_path, shelled, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(tmp_path) == 0
    assert manifest(tmp_path) == VENDOR_FILES
    folder = tmp_path / "alveo_u50"
    assert "module acceltcp_alveo_u50(" in (folder / "acceltcp_alveo_u50.v").read_text()
    assert "set_property PACKAGE_PIN AW27 [get_ports {pcie_x16_0__perst__io}]" in (folder / "acceltcp_alveo_u50.xdc").read_text()
    assert (folder / "acceltcp_alveo_u50_cells.xdc").read_text() == "set_false_path -to [get_cells pcie]\n"
    assert "-module_name mac" in (folder / "ip.tcl").read_text()
    said = " ".join(capsys.readouterr().err.split())
    assert "no bitstream: vivado is not on PATH" in said and "run build.sh" in said


def test_core_clock(tmp_path, shelled, capsys):
    assert run(tmp_path, "--no-vivado", "--core-clock", "mac") == 0
    assert "get_cells mac" in (tmp_path / "alveo_u50/acceltcp_alveo_u50_cells.xdc").read_text()
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path, "--core-clock", "moon")
    assert exit_.value.code == 2
    assert "core-clock must be pcie or mac on alveo_u50, not 'moon'" in capsys.readouterr().err


def test_no_choice_of_clocks_without_a_shell(tmp_path, capsys):
    with pytest.raises(SystemExit):
        build.main(["--board", "netfpga_sume", "--core-clock", "mac", "--out", str(tmp_path)])
    assert "core-clock must be left out on netfpga_sume, not 'mac'" in capsys.readouterr().err


def test_a_bitstream_where_the_tool_is(tmp_path, shelled, capsys, monkeypatch):
    fake_vivado.install(tmp_path / "tools", monkeypatch, fake_vivado.GOOD)
    assert run(tmp_path, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["implementation"]["timing"]["setup_slack_ns"] == 0.012 and report["total"] is None
    assert report == json.loads((tmp_path / "alveo_u50/report.json").read_text())
    results = {"acceltcp_alveo_u50.bit", "acceltcp_alveo_u50.mcs", "report.json", "report.txt"}
    assert manifest(tmp_path) == VENDOR_FILES | results
    assert "program it" in captured.err and "vivado" in captured.err
    assert run(tmp_path) == 0
    assert "Timing met; worst slack in ns: setup +0.012, hold +0.010" in capsys.readouterr().out


def test_the_tool_is_left_alone_when_told_so(tmp_path, shelled, capsys, monkeypatch):
    fake_vivado.install(tmp_path / "tools", monkeypatch, fake_vivado.DIES)
    assert run(tmp_path, "--no-vivado") == 0
    assert "vivado was not run" in capsys.readouterr().err


def test_a_failing_tool_is_one_line(tmp_path, shelled, capsys, monkeypatch):
    fake_vivado.install(tmp_path / "tools", monkeypatch, fake_vivado.FAILS)
    assert run(tmp_path) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "vivado failed in reports: ERROR: [Route 35-9] router went away" in line
    # What was exported is whole all the same.
    assert manifest(tmp_path) == VENDOR_FILES


def test_missed_timing_is_reported_and_an_error(tmp_path, shelled, capsys, monkeypatch):
    fake_vivado.install(tmp_path / "tools", monkeypatch, fake_vivado.MISSED)
    assert run(tmp_path) == 1
    assert "timing is not met" in capsys.readouterr().err
    assert manifest(tmp_path) == VENDOR_FILES | {"report.json", "report.txt"}
    assert "NOT MET at 41 endpoints" in (tmp_path / "alveo_u50/report.txt").read_text()


def test_a_full_disk_is_one_line(tmp_path, shelled, capsys, monkeypatch):
    real = Path.replace

    def full(self, target):
        if target.name == "acceltcp_alveo_u50.v":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    assert run(tmp_path) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert line.endswith("alveo_u50/acceltcp_alveo_u50.v: No space left on device")
    assert not (tmp_path / "alveo_u50/manifest.json").exists()
    monkeypatch.undo()


def test_a_disk_that_is_really_full(tmp_path):
    """On a file system of one page, in a mount namespace of its own."""
    script = (
        "import sys\nfrom hw import build\nbuild.export = lambda *_: 'x' * 10000\n"
        "sys.exit(build.main(['--board', 'alveo_u50', '--no-synth', '--out', sys.argv[1]]))\n"
    )
    small = 'mount -t tmpfs -o size=4k none "$2" && "$0" -c "$1" "$2"; status=$?; ls -A "$2/alveo_u50"; exit $status'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", small, sys.executable, script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert line == f"error: {tmp_path}/alveo_u50/acceltcp_nic.v: No space left on device"
    assert done.stdout == ""


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "alveo_u50").write_text("in the way")
    assert run(tmp_path) == 1
    assert f"error: {tmp_path}/alveo_u50: File exists" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_no_manifest_and_can_be_done_again(number, tmp_path, shelled, capsys):
    """Interrupted in a process of its own, while it exports."""
    script = (
        "import sys, time\nfrom hw import build\n"
        "def slow(*_):\n    print('exporting', flush=True)\n    time.sleep(60)\n"
        "build.export = slow\nsys.exit(build.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--board", "alveo_u50", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "exporting\n"
    started = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - started < 20
    assert "error: interrupted; what is whole stays in" in error and "Traceback" not in error
    assert not list((tmp_path / "alveo_u50").iterdir())
    assert run(tmp_path, "--no-vivado") == 0 and manifest(tmp_path) == VENDOR_FILES


@pytest.mark.parametrize("name", boards.names())
def test_boards_are_whole(name):
    board = boards.load(name)
    assert board.name == name and board.part and board.title
    assert set(board.capacity) == {"lut", "ff", "bram36", "uram", "dsp"}
    assert set(board.goals) <= {"lut_sites", "levels", "ff", "bram36"}
