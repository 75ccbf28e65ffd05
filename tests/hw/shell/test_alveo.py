# amaranth: UnusedElaboratable=no
"""`AlveoShell`: every card's Verilog with its vendor blocks, their properties, pins and constraints."""

import dataclasses
import re

import pytest

import boards
from hw.config import NicConfig
from hw.shell import core
from hw.shell.alveo import CORE_CLOCKS, AlveoShell

from .hollow import HollowNic, lint, same_crossings, verilog

CARDS = [name for name in boards.names() if name.startswith("alveo")]


@pytest.fixture(autouse=True)
def hollow(monkeypatch):
    monkeypatch.setattr(core, "Nic", HollowNic)


def shell_of(name, core_clock="pcie", **changes):
    board = boards.load(name)
    return board, AlveoShell(board, dataclasses.replace(board.config, **changes), core_clock)


@pytest.mark.parametrize(
    "name, core_clock, changes",
    [
        ("alveo_u50", "pcie", {}),
        ("alveo_u250", "mac", {}),
        *(pytest.param(name, "pcie", {}, marks=pytest.mark.long) for name in CARDS),
        pytest.param("alveo_u280", "pcie", {"ports": 1}, marks=pytest.mark.long),
    ],
)
def test_verilog(name, core_clock, changes, tmp_path):
    board, shell = shell_of(name, core_clock, **changes)
    platform = board.platform()
    text = verilog(platform, shell)
    assert lint(text, shell, tmp_path) == []

    named = same_crossings(text, shell.constraints())
    assert any(crossing.startswith("memory.") for crossing in named) == (core_clock == "mac")

    # Each block is there once, and each lane has its pins.
    for ip in shell.ips:
        assert len(re.findall(rf"^ +{ip.module} \w+ \($", text, re.MULTILINE)) == 1
    pins = [name.split("[")[0].removesuffix("__io") for name, _, _ in platform.iter_port_constraints_bits()]
    ports = shell.ips[0].ports
    for lane in ("rx_p", "rx_n", "tx_p", "tx_n"):
        assert pins.count(f"pcie_x16_0__{lane}") == ports["pci_exp_rxp"][1]
        for number in range(len(shell.ips) - 1):
            assert pins.count(f"qsfp_{number}__{lane}") == 4


@pytest.mark.parametrize("name", CARDS)
def test_macs_stand_where_the_board_has_them(name):
    board, shell = shell_of(name)
    assert len(shell.ips) == 1 + len(board.macs)
    for mac, ip in zip(board.macs, shell.ips[1:], strict=True):
        properties = ip.properties
        assert properties["CMAC_CORE_SELECT"] == mac.site
        lanes = [properties[f"LANE{lane}_GT_LOC"] for lane in range(1, 5)]
        assert f"{lanes[0]}~{lanes[3]}" == mac.lanes
        assert float(properties["GT_REF_CLK_FREQ"]) == mac.refclk
        assert properties["INCLUDE_RS_FEC"] == "1"
        assert int(properties["RX_MAX_PACKET_LEN"]) == board.config.max_frame + 4


@pytest.mark.parametrize(
    "changes, core_clock, message",
    [
        ({"width": 32}, "pcie", "width must be 64, which is the MAC's, not 32"),
        ({"ports": 2}, "pcie", "ports must be at most 1 on AMD Alveo U50, not 2"),
        ({}, "board", "core_clock must be one of pcie, mac, not 'board'"),
    ],
)
def test_what_does_not_fit(changes, core_clock, message):
    board = boards.load("alveo_u50")
    config = NicConfig(**{"width": 64, "ports": 1, **changes})
    with pytest.raises(ValueError, match=message):
        AlveoShell(board, config, core_clock)


def test_ticks():
    for mhz in CORE_CLOCKS.values():
        cycles = core.Prescaler(mhz, 100).cycles
        assert abs(cycles / mhz - 100) < 100 * 50e-6, "as exact as a crystal"
