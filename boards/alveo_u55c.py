"""AMD Alveo U55C: two QSFP28 (100GbE), PCIe Gen3 x16, 16 GB HBM (unused).

Lights: activity, link green, link yellow of cage 0; the same of cage 1.
"""

from amaranth.build import Attrs, Pins, Resource

from hw.config import NicConfig
from hw.shell.alveo import CORE_CLOCKS, AlveoShell

from . import Board
from ._alveo import FLASH, AlveoPlatform, bitstream, mac, pcie_link
from ._resources import clock, led, pcie, qsfp, satellite

__all__ = ["BOARD", "AlveoU55CPlatform"]


class AlveoU55CPlatform(AlveoPlatform):
    """Pins of the U55C."""

    device = "xcu55c"
    package = "fsvh2892"
    speed = "2L-e"
    resources = [
        clock("clk100", 0, "BK10", "BL10", 100e6),
        clock("clk100", 1, "BK43", "BK44", 100e6),
        clock("clk100", 2, "F24", "F23", 100e6),
        pcie(
            "pcie_x16",
            "AL2 AM4 AN6 AN2 AP4 AR2 AT4 AU2 AV4 AW6 AW2 AY4 BA6 BA2 BB4 BC2",
            "AL1 AM3 AN5 AN1 AP3 AR1 AT3 AU1 AV3 AW5 AW1 AY3 BA5 BA1 BB3 BC1",
            "AL11 AM9 AN11 AP9 AR11 AR7 AT9 AU11 AU7 AV9 AW11 AY9 BA11 BB9 BC11 BC7",
            "AL10 AM8 AN10 AP8 AR10 AR6 AT8 AU10 AU6 AV8 AW10 AY8 BA10 BB8 BC10 BC6",
            refclk=("AR15", "AR14"),
            perst="BF41",
            standard="LVCMOS18",
        ),
        qsfp(
            0,
            "AD51 AC53 AC49 AB51",
            "AD52 AC54 AC50 AB52",
            "AD46 AC44 AB46 AA48",
            "AD47 AC45 AB47 AA49",
            refclk=("AD42", "AD43"),
            frequency=161_132_812.5,
        ),
        qsfp(
            1,
            "AA53 Y51 W53 V51",
            "AA54 Y52 W54 V52",
            "AA44 Y46 W48 W44",
            "AA45 Y47 W49 W45",
            refclk=("AB42", "AB43"),
            frequency=161_132_812.5,
        ),
        satellite("BH42", "BJ42", "BE46 BH46 BF45 BF46", "LVCMOS18"),
        led(0, "BL13", "LVCMOS18"),
        led(1, "BK11", "LVCMOS18"),
        led(2, "BJ11", "LVCMOS18"),
        led(3, "BK14", "LVCMOS18"),
        led(4, "BK15", "LVCMOS18"),
        led(5, "BL12", "LVCMOS18"),
        Resource("hbm_cattrip", 0, Pins("BE45", dir="o"), Attrs(IOSTANDARD="LVCMOS18")),
    ]


BOARD = Board(
    name="alveo_u55c",
    title="AMD Alveo U55C",
    part="xcu55c-fsvh2892-2L-e",
    family="xcup",
    config=NicConfig(width=64, ports=2, queues=16, listeners=64, flows=262_144, splices=65_536),
    # AMD data sheet DS978, table "Alveo U55C product details".
    capacity={"lut": 1_303_680, "ff": 2_607_360, "bram36": 2_016, "uram": 960, "dsp": 9_024},
    # A core of this size and depth closes timing at 250 MHz in a part of speed grade -2.
    goals={"lut_sites": 110_000, "levels": 10},
    platform=AlveoU55CPlatform,
    shell=AlveoShell,
    core_clocks=CORE_CLOCKS,
    # As in the card's board file; PCIE4C_X1Y0, which serves the upper lanes when they are split, is within reach too.
    pcie=pcie_link("PCIE4C_X1Y1"),
    macs=(
        mac(0, "CMACE4_X0Y3", "X0Y24~X0Y27", 161.1328125),
        mac(1, "CMACE4_X0Y4", "X0Y28~X0Y31", 161.1328125),
    ),
    # The hard MAC's stream is 512 bits.
    widths=(64,),
    flash=FLASH,
    bitstream=bitstream("85.0"),
    watts=63,
)
