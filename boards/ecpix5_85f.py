"""LambdaConcept ECPIX-5 with the LFE5UM5G-85F: one gigabit PHY, which the network and the host link share.

Lights: the link is up (twice), something is being done.
"""

from amaranth_boards.ecpix5 import ECPIX585Platform

from hw.shell.ecp5 import Ecp5Shell

from . import Board, Mac
from ._ecp5 import CAPACITY_85, CONFIG, rgmii, without

__all__ = ["BOARD", "Ecpix5Platform"]


class Ecpix5Platform(ECPIX585Platform):
    """Pins as in amaranth-boards, with the PHY's clock."""

    resources = [
        *without(ECPIX585Platform.resources, "eth_rgmii"),
        rgmii(
            0,
            rst="C13",
            rx_clk="E11",
            rx_ctl="A11",
            rx_data="B11 A10 B10 A9",
            tx_clk="A12",
            tx_ctl="C9",
            tx_data="D8 C8 B8 A8",
            standard="LVCMOS33",
            # With these straps the PHY offers all its speeds.
            PULLMODE="UP",
        ),
    ]


BOARD = Board(
    name="ecpix5_85f",
    title="LambdaConcept ECPIX-5 (85F)",
    part="LFE5UM5G-85F-8BG554",
    family="ecp5",
    config=CONFIG,
    capacity=CAPACITY_85,
    core_mhz=25.0,
    platform=Ecpix5Platform,
    shell=Ecp5Shell,
    macs=(Mac("eth_rgmii", 0, 1, "", "", 125.0, tx_delay_ps=2000),),
    widths=(8,),
    tried="whole board placed; the MAC is too slow there",
    loader="-b ecpix5",
)
