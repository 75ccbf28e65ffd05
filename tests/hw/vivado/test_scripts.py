"""The scripts for the vendor's tool, run by tclsh with stand-ins for its commands."""

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest

import boards
from hw.vivado.scripts import ip_script, project_files

STANDINS = Path(__file__).with_name("standins.tcl")
U50 = boards.load("alveo_u50")


@dataclass(frozen=True)
class Ip:
    """As the shells describe a vendor's block."""

    module: str
    name: str
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    vendor: str = "xilinx.com"
    library: str = "ip"
    after: tuple[str, ...] = ()


IPS = [
    Ip("second", "cmac_usplus", {"CONFIG.B": "1", "CONFIG.A": "GTY X0Y28~X0Y31", "CONFIG.C": "$x [y]"}),
    Ip(
        "first",
        "xdma",
        {"pl_link_cap_max_link_speed": "8.0_GT/s"},
        after=("set_property LATE 1 [get_ips first]",),
    ),
]


class Project:
    """A folder with a project, and tclsh to run its scripts."""

    def __init__(self, folder, board=U50, ips=IPS, verilog="module top; endmodule\n", late="# late\n"):
        self.folder = folder
        for name, text in project_files(board, "top", verilog, "# early\n", late, ips).items():
            (folder / name).write_text(text)

    def run(self, script="project.tcl", *arguments, slack="0.1", fail_at=None):
        """Calls of commands, in order, each a list of words, and the finished process."""
        log = self.folder / "calls"
        log.unlink(missing_ok=True)
        done = subprocess.run(
            ["tclsh", STANDINS, log, slack, self.folder / script, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": "/usr/bin:/bin"} | ({"FAIL_AT": fail_at} if fail_at else {}),
        )
        calls = subprocess.run(
            ["tclsh"],
            input=f'set f [open {{{log}}}]\nforeach call [split [string trim [read $f]] "\\n"] '
            '{foreach word $call {puts -nonewline "$word\\x1f"}; puts ""}',
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return [line.split("\x1f")[:-1] for line in calls.splitlines()], done

    def results(self):
        """Names of the results that are there."""
        return sorted(path.name for path in self.folder.iterdir() if path.suffix in (".bit", ".mcs"))


def names(calls):
    return [call[0] for call in calls]


def test_from_verilog_to_flash_image(tmp_path):
    project = Project(tmp_path)
    calls, done = project.run()
    assert done.returncode == 0, done.stderr
    assert calls[0] == ["create_project", "-in_memory", "-part", "xcu50-fsvh2104-2-e"]
    steps = [
        "synth_design",
        "opt_design",
        "place_design",
        "phys_opt_design",
        "route_design",
        "phys_opt_design",
    ]
    assert [name for name in names(calls) if name in steps] == steps
    assert [call[1:] for call in calls if call[0] == "synth_design"] == [
        ["-top", "top", "-part", "xcu50-fsvh2104-2-e"]
    ]
    files = [(call[0], Path(call[1]).name) for call in calls if call[0].startswith("read_")]
    assert files == [("read_verilog", "top.v"), ("read_xdc", "top.xdc"), ("read_xdc", "top_cells.xdc")]
    # What speaks of cells is read when they are there.
    assert names(calls).index("synth_design") < names(calls).index("opt_design")
    late = next(
        i for i, call in enumerate(calls) if call[0] == "read_xdc" and call[1].endswith("top_cells.xdc")
    )
    assert names(calls).index("synth_design") < late < names(calls).index("opt_design")
    (image,) = [call[1:] for call in calls if call[0] == "write_cfgmem"]
    assert image == [
        *("-force", "-format", "mcs", "-interface", "SPIx4", "-size", "128"),
        *("-loadbit", "up 0x01002000 top.bit", "-file", "top.mcs"),
    ]
    assert project.results() == ["top.bit", "top.mcs"]
    assert (tmp_path / "timing.rpt").exists() and (tmp_path / "utilisation.rpt").exists()
    assert done.stdout.splitlines()[-1] == "ACCELTCP: complete"


def test_vendor_blocks_with_properties_in_order(tmp_path):
    calls, done = Project(tmp_path).run()
    assert done.returncode == 0, done.stderr
    made = [call[1:-2] for call in calls if call[0] == "create_ip"]
    common = ["-vendor", "xilinx.com", "-library", "ip", "-name"]
    assert made == [
        [*common, "cmac_usplus", "-module_name", "second"],
        [*common, "xdma", "-module_name", "first"],
    ]
    # Words are taken as they are, whatever Tcl might see in them.
    assert [call[1:] for call in calls if call[0] == "set_property" and call[-1] in ("first", "second")] == [
        ["CONFIG.B", "1", "second"],
        ["CONFIG.A", "GTY X0Y28~X0Y31", "second"],
        ["CONFIG.C", "$x [y]", "second"],
        ["CONFIG.pl_link_cap_max_link_speed", "8.0_GT/s", "first"],
        ["LATE", "1", "first"],
    ]
    assert sorted(call[1] for call in calls if call[0] == "synth_ip") == ["first", "second"]
    assert max(i for i, name in enumerate(names(calls)) if name == "synth_ip") < names(calls).index(
        "synth_design"
    )


@pytest.mark.parametrize("name", [n for n in boards.names() if (b := boards.load(n)).flash and b.shell])
def test_the_shell_of_every_board(name, tmp_path):
    board = boards.load(name)
    shell = board.shell(board, board.config)
    late = "".join(f"{line}\n" for line in shell.constraints())
    calls, done = Project(tmp_path, board, shell.ips, late=late).run()
    assert done.returncode == 0, done.stdout + done.stderr
    made = [call[call.index("-module_name") + 1] for call in calls if call[0] == "create_ip"]
    assert made == [ip.module for ip in shell.ips] and len(made) == 1 + board.config.ports
    for ip in shell.ips:
        values = [call[1:3] for call in calls if call[0] == "set_property" and call[-1] == ip.module]
        wanted = [[f"CONFIG.{name.removeprefix('CONFIG.')}", str(value)] for name, value in ip.properties.items()]
        assert values[: len(wanted)] == wanted
    # Each crossing has a delay and a skew.
    count = sum(call[0] == "set_bus_skew" for call in calls)
    assert count == sum(call[0] == "set_max_delay" for call in calls) >= 4 * board.config.ports


def test_a_property_that_has_not_held_is_one_line(tmp_path):
    _, done = Project(tmp_path, ips=[Ip("a", "b", after=("error {a: X is 1, 2 expected}",))]).run()
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "ERROR: a: X is 1, 2 expected"


def test_an_interrupted_run_goes_on(tmp_path):
    project = Project(tmp_path)
    _, done = project.run(fail_at="route_design")
    assert done.returncode and project.results() == []
    calls, done = project.run()
    assert done.returncode == 0, done.stderr
    assert calls[0][0] == "open_checkpoint" and Path(calls[0][1]).name == "placed.dcp"
    assert not {"create_ip", "synth_design", "place_design"} & set(names(calls))
    assert project.results() == ["top.bit", "top.mcs"]


def test_half_made_blocks_are_made_again(tmp_path):
    project = Project(tmp_path)
    _, done = project.run(fail_at="synth_ip")
    assert done.returncode
    calls, done = project.run()
    assert done.returncode == 0 and names(calls).count("create_ip") == 2
    # Whole ones are not, when only what follows was interrupted.
    for checkpoint in tmp_path.glob("work/*/*.dcp"):
        checkpoint.unlink()
    calls, done = project.run()
    assert done.returncode == 0 and names(calls).count("create_ip") == 0
    assert [Path(call[1]).name for call in calls if call[0] == "read_ip"] == ["first.xci", "second.xci"]


def test_a_changed_input_begins_anew(tmp_path):
    Project(tmp_path).run()
    calls, done = Project(tmp_path, verilog="module top; wire a; endmodule\n").run()
    assert done.returncode == 0 and calls[0][0] == "create_project" and "route_design" in names(calls)


def test_no_bitstream_when_timing_is_not_met(tmp_path):
    project = Project(tmp_path)
    project.run()
    (tmp_path / "work").rename(tmp_path / "aside")
    calls, done = project.run(slack="-0.013")
    assert done.returncode == 1 and "write_bitstream" not in names(calls)
    assert "ERROR: timing is not met: worst setup slack -0.013 ns" in done.stdout
    # Neither is the former one taken for this one's.
    assert project.results() == [] and (tmp_path / "timing.rpt").exists()


@pytest.mark.parametrize("name", [n for n in boards.names() if boards.load(n).flash])
def test_flash_of_every_board(name, tmp_path):
    board = boards.load(name)
    calls, done = Project(tmp_path, board, ips=[]).run()
    assert done.returncode == 0, done.stderr
    (image,) = [shlex.join(call) for call in calls if call[0] == "write_cfgmem"]
    flash = board.flash
    assert f"-interface {flash.interface} -size {flash.megabytes} -loadbit 'up 0x{flash.offset:08x} " in image


def test_programming_the_device(tmp_path):
    project = Project(tmp_path)
    _, done = project.run("program.tcl", "fpga")
    assert (
        done.returncode == 1 and f"ERROR: there is no {tmp_path}/top.bit: run build.sh first" in done.stdout
    )
    project.run()
    calls, done = project.run("program.tcl", "fpga")
    assert done.returncode == 0, done.stderr
    assert ["connect_hw_server"] in calls and ["get_hw_devices", "-quiet", "*u50*"] in calls
    assert ["set_property", "PROGRAM.FILE", f"{tmp_path}/top.bit", "xcu50_u55n_0"] in calls
    assert calls[-2] == ["program_hw_devices", "xcu50_u55n_0"]


def test_programming_the_flash(tmp_path):
    project = Project(tmp_path)
    project.run()
    calls, done = project.run("program.tcl", "flash", "lab:3121")
    assert done.returncode == 0, done.stderr
    assert ["connect_hw_server", "-url", "lab:3121"] in calls
    assert ["create_hw_cfgmem", "-hw_device", "xcu50_u55n_0", "mt25qu01g-spi-x1_x2_x4"] in calls
    properties = {call[1]: call[2] for call in calls if call[0] == "set_property"}
    assert properties["PROGRAM.FILES"] == f"{tmp_path}/top.mcs"
    assert properties["PROGRAM.ERASE"] == properties["PROGRAM.VERIFY"] == "1"
    assert "PROGRAM.BPI_RS_PINS" not in properties
    assert calls[-2] == ["program_hw_cfgmem", "-hw_cfgmem", "value of PROGRAM.HW_CFGMEM"]


def test_programming_wants_a_verb(tmp_path):
    _, done = Project(tmp_path).run("program.tcl")
    assert done.returncode == 1 and 'program.tcl takes fpga or flash, not ""' in done.stdout


def test_a_board_that_is_not_there(tmp_path):
    project = Project(tmp_path, boards.load("netfpga_sume"), ips=[])
    project.run()
    _, done = project.run("program.tcl", "fpga")
    assert (
        done.returncode == 1 and "no device *7vx690t* on this JTAG chain, only: xcu50_u55n_0" in done.stdout
    )


def test_folders_may_have_spaces(tmp_path):
    folder = tmp_path / "a folder [with] $signs"
    folder.mkdir()
    project = Project(folder)
    _, done = project.run()
    assert done.returncode == 0 and project.results() == ["top.bit", "top.mcs"], done.stderr
    _, done = project.run("program.tcl", "flash")
    assert done.returncode == 0, done.stderr


def test_a_value_that_would_break_tcl_is_refused():
    with pytest.raises(ValueError, match=r"must have its braces in pairs, not '\{'"):
        ip_script([Ip("x", "y", {"A": "{"})])


def test_build_sh_without_the_tool(tmp_path):
    Project(tmp_path)
    done = subprocess.run(
        ["sh", tmp_path / "build.sh"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 1 and "vivado is not on PATH" in done.stderr


def test_build_sh_starts_the_tool(tmp_path):
    project = Project(tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "vivado").write_text('#!/bin/sh\necho "$PWD:$*"\n')
    (tools / "vivado").chmod(0o755)
    done = subprocess.run(
        ["sh", tmp_path / "build.sh"],
        capture_output=True,
        text=True,
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        cwd="/",
    )
    assert done.stdout.startswith(f"{project.folder}:-mode batch ") and done.stdout.endswith(
        "-source project.tcl\n"
    )
