import json

import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

import boards
from hw import build
from hw.config import NicConfig


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


def test_verilog_only(tmp_path, capsys):
    assert build.main(["--board", "alveo_u50", "--out", str(tmp_path), "--no-synth"], design=Toy()) == 0
    folder = tmp_path / "alveo_u50"
    assert [path.name for path in folder.iterdir()] == ["acceltcp_nic.v"]
    assert "module acceltcp_nic(" in (folder / "acceltcp_nic.v").read_text()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_whole_build(tmp_path, capsys):
    arguments = ["--board", "alveo_u50", "--out", str(tmp_path), "--json", "--width", "32"]
    arguments += ["--tx-buffer-beats", "2048", "--no-pipelined-hash"]
    assert build.main(arguments, design=Toy()) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    folder = tmp_path / "alveo_u50"
    assert report == json.loads((folder / "report.json").read_text())
    assert "whole core, flattened" in (folder / "report.txt").read_text()
    assert (report["config"]["width"], report["config"]["pipelined_hash"]) == (32, False)
    # Buffers keep their size in bytes unless told otherwise.
    assert (report["config"]["rx_buffer_beats"], report["config"]["tx_buffer_beats"]) == (2048, 2048)
    assert report["config"]["queues"] == boards.load("alveo_u50").config.queues
    assert set(report["stages"]) == {"first", "second", "(wiring)"}
    assert report["stages"]["first"]["ff"] == 8 and report["total"]["ff"] == 16
    assert report["total"]["lut_sites"] == 16
    assert report["total"]["levels"] == 1 and report["total"]["carry"] == 4
    assert report["goals"]["levels"]["met"]
    assert set(report["seconds"]) == set(report["cpu_seconds"]) == {"export", "whole core", "stages"}
    assert "whole core" in captured.err  # progress


def test_list(capsys):
    assert build.main(["--list"]) == 0
    assert "alveo_u50" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--board", "alveo_u500"], "no board is named 'alveo_u500'; did you mean 'alveo_u50'?"),
        (["--board", "u50"], "did you mean 'alveo_u50'?"),
        ([], "--board is needed"),
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


def test_every_parameter_has_a_flag():
    flags = {flag for action in build._parser()._actions for flag in action.option_strings}
    assert {"--" + name.replace("_", "-") for name in NicConfig.names()} <= flags


@pytest.mark.parametrize("name", boards.names())
def test_boards_are_whole(name):
    board = boards.load(name)
    assert board.name == name and board.part and board.title
    assert set(board.capacity) == {"lut", "ff", "bram36", "uram", "dsp"}
    assert set(board.goals) <= {"lut_sites", "levels", "ff", "bram36"}
