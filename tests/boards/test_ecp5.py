"""The ECP5 boards' constraints: every pin against amaranth-boards, whose tables are others' work, and the PHYs' pins against a
table of their own."""

import re

import pytest
from amaranth_boards.ecpix5 import ECPIX585Platform
from amaranth_boards.versa_ecp5_5g import VersaECP55GPlatform

import boards
from hw.lattice.constraints import port_constraints
from hw.verilog import convert_for

from .everything import Everything

UPSTREAM = {"ecpix5_85f": ECPIX585Platform, "versa_ecp5_5g": VersaECP55GPlatform}

# From LiteX-Boards, which was written apart from amaranth-boards.
PHYS = {
    "ecpix5_85f": {0: {"rst": "C13", "rx_clk": "E11", "tx_clk": "A12", "rx_ctl": "A11", "tx_ctl": "C9", "rx_data": "B11 A10 B10 A9", "tx_data": "D8 C8 B8 A8"}},
    "versa_ecp5_5g": {
        0: {"rst": "U17", "rx_clk": "L20", "tx_clk": "P19", "rx_ctl": "U19", "tx_ctl": "R20", "rx_data": "T20 U20 T19 R18", "tx_data": "N19 N20 P18 P20"},
        1: {"rst": "F20", "rx_clk": "J19", "tx_clk": "C20", "rx_ctl": "F19", "tx_ctl": "E19", "rx_data": "G18 G16 H18 H17", "tx_data": "J17 J16 D19 D20"},
    },
}  # fmt: skip
STANDARD = {"ecpix5_85f": "LVCMOS33", "versa_ecp5_5g": "LVCMOS25"}


class Phys(Everything):
    """Asks for clock and PHYs only; the whole of amaranth-boards' resources share pins."""

    def elaborate(self, platform):
        for key in [key for key in platform.resources if key[0] not in ("clk100", "eth_rgmii")]:
            del platform.resources[key]
        return super().elaborate(platform)


def exported(name):
    board = boards.load(name)
    platform = board.platform()
    convert_for(platform, Phys(), "top")
    return port_constraints(platform, board)


@pytest.mark.parametrize("name", UPSTREAM)
def test_constraints(name):
    text = exported(name)
    assert all(line.endswith(";") or line.startswith("#") for line in text.splitlines())
    located = dict(re.findall(r'^LOCATE COMP "([^"]+)" SITE "(\w+)";$', text, re.MULTILINE))
    expected = {}
    for number, pins in PHYS[name].items():
        for signal, sites in pins.items():
            names = sites.split()
            for bit, site in enumerate(names):
                index = f"[{bit}]" if len(names) > 1 else ""
                expected[f"eth_rgmii_{number}__{signal}__io{index}"] = site
    assert {port: site for port, site in located.items() if port.startswith("eth")} == expected
    for port in expected:
        assert re.search(rf'^IOBUF PORT "{re.escape(port)}" .*IO_TYPE={STANDARD[name]}\b', text, re.MULTILINE)
    clocks = dict(re.findall(r'^FREQUENCY PORT "([^"]+)" (\S+) MHZ;$', text, re.MULTILINE))
    receive = {f"eth_rgmii_{number}__rx_clk__io": "125" for number in PHYS[name]}
    (oscillator,) = clocks.keys() - receive.keys()
    assert clocks == {**receive, oscillator: "100"} and oscillator.startswith("clk100")


@pytest.mark.parametrize("name", UPSTREAM)
def test_pins_are_upstreams(name):
    ours, theirs = boards.load(name).platform(), UPSTREAM[name]()
    for key, resource in ours.resources.items():
        if key[0] == "eth_rgmii":
            mine, other = (
                {sub.name.replace("ctrl", "ctl"): sub.ios[0].names for sub in platform.resources[key].ios}
                for platform in (ours, theirs)
            )
            assert mine == {signal: names for signal, names in other.items() if signal in mine}
        else:
            assert resource is theirs.resources[key]
    assert ours.resources.keys() == theirs.resources.keys()


@pytest.mark.parametrize("name", UPSTREAM)
def test_part(name):
    board = boards.load(name)
    platform = board.platform()
    assert board.part == f"{platform.device}-{platform.speed}{platform.package}"
    for mac in (*board.macs, *([board.link] if board.link else [])):
        assert (mac.resource, mac.number) in platform.resources
