# amaranth: UnusedElaboratable=no
"""`SumeShell`: the board's Verilog with its vendor blocks, their ports, pins and constraints."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
from amaranth import Module
from amaranth.lib import io
from amaranth.sim import Simulator

import boards
from hw.config import NicConfig
from hw.shell import core
from hw.shell.sume import REFERENCE, ROUTE, SumeShell
from hw.shell.ten_gig_port import TenGigPort, quiet

from .hollow import HollowNic, lint, same_crossings, verilog
from .recorder import Recorder, differential, lanes
from .vendor_ports import AXI_PCIE3, TEN_GIG_OTHER, TEN_GIG_SHARED

BOARD = boards.load("netfpga_sume")


@pytest.fixture(autouse=True)
def hollow(monkeypatch):
    monkeypatch.setattr(core, "Nic", HollowNic)


def shell_of(**changes):
    return SumeShell(BOARD, dataclasses.replace(BOARD.config, **changes))


@pytest.mark.parametrize("ports", [2, pytest.param(1, marks=pytest.mark.long)])
def test_verilog(ports, tmp_path):
    shell, platform = shell_of(ports=ports), BOARD.platform()
    text = verilog(platform, shell)
    assert lint(text, shell, tmp_path) == []
    named = same_crossings(text, shell.constraints())
    # Five channels of two AXI crossings and two crossings of each port, each with two pointers.
    assert len(named) == 2 * (2 * 5 + 2 * ports)

    # Each block is there once, and the lanes that are used have their pins; the other cages have only slow ones.
    for ip in shell.ips:
        assert len(re.findall(rf"^ +{ip.module} \w+ \($", text, re.MULTILINE)) == 1
    pins = [name.split("[")[0].removesuffix("__io") for name, _, _ in platform.iter_port_constraints_bits()]
    for lane in ("rx_p", "rx_n", "tx_p", "tx_n"):
        assert pins.count(f"pcie_x8_0__{lane}") == 8
        assert [pins.count(f"sfp_{cage}__{lane}") for cage in range(4)] == [1] * ports + [0] * (4 - ports)
    for cage in range(4):
        assert pins.count(f"sfp_{cage}__tx_disable") == 1 and pins.count(f"sfp_{cage}__rs") == 2
    assert {"sfp_refclk_0__p", "si5324_0__rst", "i2c_0__scl", "i2c_0__sda", "i2c_0__mux_reset"} <= set(pins)
    # The bridge and the MACs' clock are never the core's.
    assert {port.name for port, _ in platform.iter_port_clock_constraints()} == {
        "clk200_0__p", "pcie_x8_0__refclk__p", "sfp_refclk_0__p",
    }  # fmt: skip


def test_ports_of_the_blocks():
    bridge, first, other = shell_of().ips
    assert dict(first.ports) == TEN_GIG_SHARED
    assert dict(other.ports) == TEN_GIG_OTHER
    for name, port in bridge.ports.items():
        assert AXI_PCIE3[name] == port, name
    assert {name for name in AXI_PCIE3.keys() - bridge.ports if AXI_PCIE3[name][0] == "i"} == set()


def test_reference_clock():
    assert REFERENCE.output == BOARD.macs[0].refclk * 1e6 == 156.25e6
    assert ROUTE == ((0x74, b"\x10"),)


def cage():
    ways = {"los": ("i", 1), "tx_fault": ("i", 1), "tx_disable": ("o", 1), "rs": ("o", 2), "leds": ("o", 2)}
    slow = {name: io.SimulationPort(way, width) for name, (way, width) in ways.items()}
    return SimpleNamespace(**lanes(1), **slow)


def test_what_the_macs_are_told():
    ports, told = [], []
    for number in range(2):
        port = TenGigPort(number, BOARD.macs[number], 32, 9018, first=ports[0] if ports else None, reference="sfp_refclk")
        port.ip = recorder = Recorder(port.ip, sfp=cage, sfp_refclk=differential)
        port.elaborate(recorder)
        ports.append(port)
        told.append(recorder.connections)
    for connections in told:
        # Enabled, VLAN tags, any length; neither in reset, nor FCS by the core, nor pause frames.
        assert connections["mac_tx_configuration_vector"] == connections["mac_rx_configuration_vector"] == 0b10110
        assert connections["pcs_pma_configuration_vector"] == 0
        assert connections["sim_speedup_control"] == connections["s_axis_pause_tvalid"] == 0
    # The second lives on the clocks of the first.
    assert told[1]["coreclk"] is told[0]["coreclk_out"] and told[1]["qplloutclk"] is told[0]["qplloutclk_out"]
    assert [port.domains for port in ports] == [["mac0", "port0", "bring0"], ["mac1", "port1", "bring1"]]


def test_a_cage_that_is_not_used_is_dark():
    pins = {name: io.SimulationPort("o", width) for name, width in (("tx_disable", 1), ("rs", 2), ("leds", 2))}
    m = Module()
    quiet(m, SimpleNamespace(**pins))
    sim = Simulator(m)

    async def bench(ctx):
        await ctx.delay(1e-9)
        assert [ctx.get(pin.o) for pin in pins.values()] == [1, 0, 0]

    sim.add_testbench(bench)
    sim.run()


def test_a_width_that_does_not_fit():
    with pytest.raises(ValueError, match="width must be 32, which the shell joins to its MACs, not 64"):
        SumeShell(BOARD, NicConfig(width=64, ports=2))
