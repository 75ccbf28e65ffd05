"""`CmacPort`: what the MAC is told, and the slow pins of its cage. How it stands in a card: test_alveo."""

# amaranth: UnusedElaboratable=no

from types import SimpleNamespace

import pytest
from amaranth import Module
from amaranth.lib import io
from amaranth.sim import Simulator

import boards
from hw.shell.cmac_port import CmacPort, hold_pins

from .recorder import Recorder, differential, lanes


def cage():
    return SimpleNamespace(**lanes(4), refclk=differential())


def test_what_the_mac_is_told():
    port = CmacPort(1, boards.load("alveo_u200").macs[1], 9018, 100.0)
    port.ip = recorder = Recorder(port.ip, qsfp=cage)
    port.elaborate(recorder)
    told = recorder.connections
    # RS-FEC in both directions, correcting; nothing that is for tests.
    for name in ("ctl_tx_rsfec_enable", "ctl_rx_rsfec_enable", "ctl_rx_rsfec_enable_correction", "ctl_rx_enable"):
        assert told[name] == 1
    for name in ("gt_loopback_in", "ctl_tx_test_pattern", "ctl_rx_test_pattern", "ctl_rx_force_resync", "ctl_tx_send_lfi"):
        assert told[name] == 0
    # One clock for both directions of the stream.
    assert told["rx_clk"] is told["gt_txusrclk2"]
    assert port.domains == ["mac1", "port1", "bring1"]
    assert len(set(port.pointers)) == 4 and all(name.startswith("port1.") for name in port.pointers)


@pytest.mark.parametrize("used, expected", [(True, [0, 1, 0, 0b01]), (False, [1, 0, 1, 0b01])])
def test_slow_pins(used, expected):
    pins = {name: io.SimulationPort("o", 2 if name == "fs" else 1) for name in ("modsell", "resetl", "lpmode", "fs")}
    m = Module()
    hold_pins(m, SimpleNamespace(**pins), used=used)
    sim = Simulator(m)

    async def bench(ctx):
        await ctx.delay(1e-9)
        assert [ctx.get(pin.o) for pin in pins.values()] == expected

    sim.add_testbench(bench)
    sim.run()
