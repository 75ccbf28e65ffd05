"""Every pin of every exported board against a table that was made apart from the boards' files."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import boards
from hw.verilog import convert_for
from hw.vivado.constraints import port_constraints

from .everything import Everything

FACTS = json.loads(Path(__file__).with_name("pins.json").read_text())
NAMES = [name for name in FACTS if not name.startswith("_")]


def exported(board):
    """What the XDC text says: port -> {property: value}, clock port -> period, properties of the design."""
    platform = board.platform()
    verilog = convert_for(platform, Everything(), "top")
    ports, clocks, design = {}, {}, {}
    for line in port_constraints(platform, board).splitlines():
        if match := re.fullmatch(r"set_property (\S+) (\S+) \[get_ports \{(\S+)\}\]", line):
            assert match[1] not in ports.setdefault(match[3], {}), line
            ports[match[3]][match[1]] = match[2]
        elif match := re.fullmatch(r"create_clock -name (\S+) -period (\S+) \[get_ports \{\1\}\]", line):
            clocks[match[1]] = float(match[2])
        elif match := re.fullmatch(r"set_property (\S+) (\S+) \[current_design\]", line):
            design[match[1]] = match[2]
        else:
            assert (
                line.startswith("#") or line == f"set_operating_conditions -design_power_budget {board.watts}"
            )
    return verilog, ports, clocks, design


@pytest.mark.parametrize("name", NAMES)
def test_pins_and_standards(name):
    board, facts = boards.load(name), FACTS[name]
    verilog, ports, clocks, design = exported(board)
    found = {
        port: [got["PACKAGE_PIN"], got["IOSTANDARD"]] if "IOSTANDARD" in got else [got["PACKAGE_PIN"]]
        for port, got in ports.items()
    }
    assert found == facts["pins"]
    assert not [pin for pin, count in Counter(pin for pin, *_ in found.values()).items() if count > 1]
    # What is constrained is a port of the Verilog.
    top = verilog[verilog.index("\nmodule top(") :].partition("endmodule")[0]
    heads = set(re.findall(r"^  (?:input|output|inout) (?:\[\d+:0\] )?(\w+);", top, re.MULTILINE))
    assert {port.partition("[")[0] for port in ports} == heads
    # All oscillators and reference clocks, at periods in ns.
    assert all(0 < period <= 10 for period in clocks.values())
    refclks = {port for port in heads if port.endswith("refclk__p") or port.startswith(("clk", "sfp_refclk"))}
    assert {port for port in refclks if port.endswith("__p")} == set(clocks)
    assert design["CONFIG_VOLTAGE"] == "1.8" and design["BITSTREAM.GENERAL.COMPRESS"] == "TRUE"


@pytest.mark.parametrize("name", NAMES)
def test_part_and_flash(name):
    board, facts = boards.load(name), FACTS[name]
    assert board.part == board.platform()._part == facts["part"]
    flash = board.flash
    assert [flash.device, flash.interface, flash.megabytes, flash.offset] == facts["flash"]


@pytest.mark.parametrize("name", NAMES)
def test_ports_and_links_name_resources(name):
    board = boards.load(name)
    platform = board.platform()
    for mac in board.macs:
        assert (mac.resource, mac.number) in platform.resources
        clocks = [
            sub.clock.frequency
            for resource in platform.resources.values()
            for sub in (resource, *resource.ios)
            if resource.name in (mac.resource, f"{mac.resource}_refclk") and getattr(sub, "clock", None)
        ]
        assert mac.refclk * 1e6 in clocks
    assert (board.pcie.resource, 0) in platform.resources
    assert board.config.ports <= len(board.macs)
    assert board.config.width in board.widths
    assert board.config.ultra_ram == bool(board.capacity["uram"])


def test_the_table_has_every_board_of_this_vendor():
    ours = [
        name
        for name in boards.names()
        if (platform := boards.load(name).platform) and platform.toolchain == "Vivado"
    ]
    assert sorted(NAMES) == ours
