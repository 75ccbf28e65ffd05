"""Lattice ECP5-5G Versa: LFE5UM5G-45F, two gigabit PHYs: one for the network, one for the host.

Its edge connector (PCIe Gen2 x1) is not used. Lights: the network's link, the host's link, something is being done.
"""

from amaranth_boards.versa_ecp5_5g import VersaECP55GPlatform

from hw.shell.ecp5 import Ecp5Shell

from . import Board, Mac
from ._ecp5 import CAPACITY_45, CONFIG, TOO_LARGE, rgmii, without

__all__ = ["BOARD", "VersaPlatform"]


class VersaPlatform(VersaECP55GPlatform):
    """Pins as in amaranth-boards, with the PHYs' clocks."""

    resources = [
        *without(VersaECP55GPlatform.resources, "eth_rgmii"),
        rgmii(
            0,
            rst="U17",
            rx_clk="L20",
            rx_ctl="U19",
            rx_data="T20 U20 T19 R18",
            tx_clk="P19",
            tx_ctl="R20",
            tx_data="N19 N20 P18 P20",
            standard="LVCMOS25",
        ),
        rgmii(
            1,
            rst="F20",
            rx_clk="J19",
            rx_ctl="F19",
            rx_data="G18 G16 H18 H17",
            tx_clk="C20",
            tx_ctl="E19",
            tx_data="J17 J16 D19 D20",
            standard="LVCMOS25",
        ),
    ]


BOARD = Board(
    name="versa_ecp5_5g",
    title="Lattice ECP5-5G Versa",
    part="LFE5UM5G-45F-8BG381",
    family="ecp5",
    config=CONFIG,
    capacity=CAPACITY_45,
    core_mhz=25.0,
    platform=VersaPlatform,
    shell=Ecp5Shell,
    macs=(Mac("eth_rgmii", 0, 1, "", "", 125.0),),
    link=Mac("eth_rgmii", 1, 1, "", "", 125.0),
    widths=(8,),
    tried=TOO_LARGE,
    loader="-c ft2232",
)
