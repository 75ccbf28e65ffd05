"""AMD Alveo U200: two QSFP28 (100GbE), PCIe Gen3 x16, 64 GB DDR4 (unused)."""

from hw.config import NicConfig
from hw.shell.alveo import CORE_CLOCKS, AlveoShell

from . import Board
from ._alveo import FLASH, AlveoPlatform, bitstream, mac, pcie_link
from ._alveo_ddr4 import RESOURCES

__all__ = ["BOARD", "AlveoU200Platform"]


class AlveoU200Platform(AlveoPlatform):
    """Pins of the U200."""

    device = "xcu200"
    package = "fsgd2104"
    speed = "2-e"
    resources = RESOURCES


BOARD = Board(
    name="alveo_u200",
    title="AMD Alveo U200",
    part="xcu200-fsgd2104-2-e",
    family="xcup",
    config=NicConfig(width=64, ports=2, queues=16, listeners=64, flows=262_144, splices=65_536),
    # AMD data sheet DS962, table "Alveo U200 product details".
    capacity={"lut": 1_182_240, "ff": 2_364_480, "bram36": 2_160, "uram": 960, "dsp": 6_840},
    # A core of this size and depth closes timing at 250 MHz in a part of speed grade -2.
    goals={"lut_sites": 110_000, "levels": 10},
    platform=AlveoU200Platform,
    shell=AlveoShell,
    core_clocks=CORE_CLOCKS,
    pcie=pcie_link("X1Y2"),
    macs=(
        # Three hard MACs are within reach of cage 0, two of cage 1; these two are neighbours of their lanes.
        mac(0, "CMACE4_X0Y7", "X1Y48~X1Y51", 156.25),
        mac(1, "CMACE4_X0Y6", "X1Y44~X1Y47", 156.25),
    ),
    # The hard MAC's stream is 512 bits.
    widths=(64,),
    flash=FLASH,
    bitstream=bitstream("63.8"),
    watts=160,
)
