"""AMD Alveo U50: one QSFP28 (100GbE), PCIe Gen3 x16, 8 GB HBM (unused).

Lights: activity, link green, link yellow.
"""

from amaranth.build import Attrs, Pins, Resource

from hw.config import NicConfig
from hw.shell.alveo import CORE_CLOCKS, AlveoShell

from . import Board
from ._alveo import FLASH, AlveoPlatform, bitstream, mac, pcie_link
from ._resources import clock, led, pcie, qsfp, satellite

__all__ = ["BOARD", "AlveoU50Platform"]


class AlveoU50Platform(AlveoPlatform):
    """Pins of the U50."""

    device = "xcu50"
    package = "fsvh2104"
    speed = "2-e"
    resources = [
        clock("clk100", 0, "G17", "G16", 100e6),
        clock("clk100", 1, "BB18", "BC18", 100e6),
        pcie(
            "pcie_x16",
            "AL2 AM4 AK4 AN2 AP4 AR2 AT4 AU2 AV4 AW2 BA2 BC2 AY4 BB4 BD4 BE6",
            "AL1 AM3 AK3 AN1 AP3 AR1 AT3 AU1 AV3 AW1 BA1 BC1 AY3 BB3 BD3 BE5",
            "Y5 AA7 AB5 AC7 AD5 AF5 AE7 AH5 AG7 AJ7 AL7 AM9 AN7 AP9 AR7 AT9",
            "Y4 AA6 AB4 AC6 AD4 AF4 AE6 AH4 AG6 AJ6 AL6 AM8 AN6 AP8 AR6 AT8",
            refclk=("AF9", "AF8"),
            perst="AW27",
            standard="LVCMOS18",
        ),
        qsfp(
            0,
            "J45 G45 F43 E45",
            "J46 G46 F44 E46",
            "D42 C40 B42 A40",
            "D43 C41 B43 A41",
            refclk=("N36", "N37"),
            frequency=161_132_812.5,
        ),
        satellite("BB25", "BB26", "C16 C17", "LVCMOS18"),
        led(0, "E18", "LVCMOS18"),
        led(1, "E16", "LVCMOS18"),
        led(2, "F17", "LVCMOS18"),
        Resource("hbm_cattrip", 0, Pins("J18", dir="o"), Attrs(IOSTANDARD="LVCMOS18")),
    ]


BOARD = Board(
    name="alveo_u50",
    title="AMD Alveo U50",
    part="xcu50-fsvh2104-2-e",
    family="xcup",
    config=NicConfig(width=64, ports=1, queues=16, listeners=64, flows=262_144, splices=65_536),
    # AMD data sheet DS965, table "Alveo U50 product details".
    capacity={"lut": 871_680, "ff": 1_743_360, "bram36": 1_344, "uram": 640, "dsp": 5_952},
    # A core of this size and depth closes timing at 250 MHz in a part of speed grade -2.
    goals={"lut_sites": 110_000, "levels": 10},
    platform=AlveoU50Platform,
    shell=AlveoShell,
    core_clocks=CORE_CLOCKS,
    pcie=pcie_link("PCIE4C_X1Y0"),
    macs=(mac(0, "CMACE4_X0Y4", "X0Y28~X0Y31", 161.1328125),),
    # The hard MAC's stream is 512 bits.
    widths=(64,),
    flash=FLASH,
    bitstream=bitstream("85.0"),
    watts=63,
)
