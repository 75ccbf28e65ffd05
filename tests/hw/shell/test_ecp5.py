# amaranth: UnusedElaboratable=no
"""`Ecp5Shell` without a core: what it is made of on each board, and what it refuses."""

import dataclasses
import re
from collections import Counter

import pytest

import boards
from hw.shell import host_link_nic
from hw.shell.ecp5 import Ecp5Shell
from hw.verilog import convert_for

from .hollow import HollowNic


@pytest.fixture(autouse=True)
def hollow(monkeypatch):
    monkeypatch.setattr(host_link_nic, "Nic", HollowNic)


@pytest.mark.parametrize("name", ["ecpix5_85f", pytest.param("versa_ecp5_5g", marks=pytest.mark.long)])
def test_cells(name):
    board = boards.load(name)
    platform = board.platform()
    text = convert_for(platform, Ecp5Shell(board, board.config), "top")
    cells = Counter(re.findall(r"^\s+cell \\(\w+) ", text, re.MULTILINE))
    ports = 2 if board.link else 1
    # A port has five double-rate inputs (RX_CTL and data) and six outputs (TX_CTL, data and clock).
    assert (cells["IDDRX1F"], cells["ODDRX1F"], cells["EHXPLLL"]) == (5 * ports, 6 * ports, 1)
    # The ECPIX-5's PHY wants its transmit clock late by 2 ns, which is 80 steps of 25 ps.
    assert cells["DELAYG"] == (name == "ecpix5_85f")
    assert re.findall(r"DEL_VALUE (\d+)", text) == ["80"] * cells["DELAYG"]
    pins = {port.split("[")[0] for port, _, _ in platform.iter_port_constraints_bits()}
    for number in range(ports):
        assert {f"eth_rgmii_{number}__{pin}__io" for pin in ("rst", "rx_clk", "rx_ctl", "rx_data", "tx_clk", "tx_ctl", "tx_data")} <= pins
    assert ("shared" in text) == (not board.link)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 32, "axi_bytes": 32, "rx_buffer_beats": None, "tx_buffer_beats": None}, r"^width must be 8, which is the MAC's, not 32$"),
        ({"ports": 2}, r"^ports must be 1 on Lattice ECP5-5G Versa, not 2$"),
    ],
)
def test_what_does_not_fit(changes, message):
    board = boards.load("versa_ecp5_5g")
    with pytest.raises(ValueError, match=message):
        Ecp5Shell(board, dataclasses.replace(board.config, **changes))
