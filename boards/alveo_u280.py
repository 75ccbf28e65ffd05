"""AMD Alveo U280: two QSFP28 (100GbE), PCIe Gen3 x16, 8 GB HBM and 32 GB DDR4 (unused). No lights."""

from amaranth.build import Attrs, Pins, Resource

from hw.config import NicConfig
from hw.shell.alveo import CORE_CLOCKS, AlveoShell

from . import Board
from ._alveo import FLASH, AlveoPlatform, bitstream, mac, pcie_link
from ._resources import clock, output, pcie, qsfp, satellite

__all__ = ["BOARD", "AlveoU280Platform"]


class AlveoU280Platform(AlveoPlatform):
    """Pins of the U280."""

    device = "xcu280"
    package = "fsvh2892"
    speed = "2L-e"
    resources = [
        clock("clk100", 0, "BJ43", "BJ44", 100e6),
        clock("clk100", 1, "BH6", "BJ6", 100e6),
        clock("clk100", 2, "G31", "F31", 100e6),
        clock("clk_user", 0, "G30", "F30", 156.25e6),
        pcie(
            "pcie_x16",
            "AL2 AM4 AN6 AN2 AP4 AR2 AT4 AU2 AV4 AW6 AW2 AY4 BA6 BA2 BB4 BC2",
            "AL1 AM3 AN5 AN1 AP3 AR1 AT3 AU1 AV3 AW5 AW1 AY3 BA5 BA1 BB3 BC1",
            "AL11 AM9 AN11 AP9 AR11 AR7 AT9 AU11 AU7 AV9 AW11 AY9 BA11 BB9 BC11 BC7",
            "AL10 AM8 AN10 AP8 AR10 AR6 AT8 AU10 AU6 AV8 AW10 AY8 BA10 BB8 BC10 BC6",
            refclk=("AR15", "AR14"),
            perst="BH26",
            standard="LVCMOS18",
        ),
        qsfp(
            0,
            "L53 K51 J53 H51",
            "L54 K52 J54 H52",
            "L48 L44 K46 J48",
            "L49 L45 K47 J49",
            refclk=("T42", "T43"),
            frequency=156_250_000,
            control=[
                output("oe_l", "H32", "LVCMOS18"),
                output("fs", "G32", "LVCMOS18"),
            ],
        ),
        qsfp(
            1,
            "G53 F51 E53 D51",
            "G54 F52 E54 D52",
            "G48 E48 C48 A49",
            "G49 E49 C49 A50",
            refclk=("P42", "P43"),
            frequency=156_250_000,
            control=[
                output("oe_l", "H30", "LVCMOS18"),
                output("fs", "G33", "LVCMOS18"),
            ],
        ),
        satellite("D29", "E28", "K28 J29 K29 J31", "LVCMOS18"),
        Resource("hbm_cattrip", 0, Pins("D32", dir="o"), Attrs(IOSTANDARD="LVCMOS18")),
    ]


BOARD = Board(
    name="alveo_u280",
    title="AMD Alveo U280",
    part="xcu280-fsvh2892-2L-e",
    family="xcup",
    config=NicConfig(width=64, ports=2, queues=16, listeners=64, flows=262_144, splices=65_536),
    # AMD data sheet DS963, table "Alveo U280 product details".
    capacity={"lut": 1_303_680, "ff": 2_607_360, "bram36": 2_016, "uram": 960, "dsp": 9_024},
    # A core of this size and depth closes timing at 250 MHz in a part of speed grade -2.
    goals={"lut_sites": 110_000, "levels": 10},
    platform=AlveoU280Platform,
    shell=AlveoShell,
    core_clocks=CORE_CLOCKS,
    pcie=pcie_link("PCIE4C_X1Y0"),
    macs=(
        mac(0, "CMACE4_X0Y6", "X0Y40~X0Y43", 156.25),
        mac(1, "CMACE4_X0Y7", "X0Y44~X0Y47", 156.25),
    ),
    # The hard MAC's stream is 512 bits.
    widths=(64,),
    flash=FLASH,
    bitstream=bitstream("85.0"),
    watts=160,
)
