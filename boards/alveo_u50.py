"""AMD Alveo U50: one QSFP28 (100GbE), PCIe Gen3 x16, 8 GB HBM (unused)."""

from hw.config import NicConfig

from . import Board

__all__ = ["BOARD"]

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
)
