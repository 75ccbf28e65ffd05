"""AMD Alveo U250: two QSFP28 (100GbE), PCIe Gen3 x16, 64 GB DDR4 (unused)."""

from hw.config import NicConfig
from hw.shell.alveo import CORE_CLOCKS, AlveoShell

from . import Board
from ._alveo import FLASH, AlveoPlatform, bitstream, mac, pcie_link
from ._alveo_ddr4 import RESOURCES

__all__ = ["BOARD", "AlveoU250Platform"]


class AlveoU250Platform(AlveoPlatform):
    """Pins of the U250."""

    device = "xcu250"
    package = "figd2104"
    speed = "2L-e"
    resources = RESOURCES


BOARD = Board(
    name="alveo_u250",
    title="AMD Alveo U250",
    # The grade in the card's board file; designs built for -2-e are about, too.
    part="xcu250-figd2104-2L-e",
    family="xcup",
    config=NicConfig(width=64, ports=2, queues=16, listeners=64, flows=262_144, splices=65_536),
    # AMD data sheet DS962, table "Alveo U250 product details".
    capacity={"lut": 1_728_000, "ff": 3_456_000, "bram36": 2_688, "uram": 1_280, "dsp": 12_288},
    # A core of this size and depth closes timing at 250 MHz in a part of speed grade -2.
    goals={"lut_sites": 110_000, "levels": 10},
    platform=AlveoU250Platform,
    shell=AlveoShell,
    core_clocks=CORE_CLOCKS,
    pcie=pcie_link("X0Y1"),
    macs=(
        mac(0, "CMACE4_X0Y8", "X1Y44~X1Y47", 156.25),
        mac(1, "CMACE4_X0Y7", "X1Y40~X1Y43", 156.25),
    ),
    # The hard MAC's stream is 512 bits.
    widths=(64,),
    flash=FLASH,
    bitstream=bitstream("63.8"),
    watts=160,
)
