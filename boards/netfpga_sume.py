"""NetFPGA SUME: four SFP+ (10GbE) of which two are used, PCIe Gen3 x8, three QDRII+ and two DDR3 (unused).

The lanes' 156.25 MHz come from a clock multiplier (SI5324) that must be programmed over I2C, through a multiplexer,
before a link can come up.
"""

from amaranth.build import Attrs, Clock, DiffPairs, Pins, Resource, Subsignal
from amaranth.vendor import XilinxPlatform

from hw.config import NicConfig
from hw.shell.sume import CORE_MHZ, SumeShell

from . import Board, Flash, Mac, Pcie
from ._resources import clock, lanes, led, pcie

__all__ = ["BOARD", "NetFpgaSumePlatform"]


def _out(name, pins, standard="LVCMOS15"):
    return Subsignal(name, Pins(pins, dir="o"), Attrs(IOSTANDARD=standard, SLEW="SLOW", DRIVE="12"))


def _in(name, pins, standard="LVCMOS15"):
    return Subsignal(name, Pins(pins, dir="i"), Attrs(IOSTANDARD=standard, PULLUP="TRUE"))


def _sfp(number, *serial, mod_detect, rs, los, tx_disable, tx_fault, leds):
    return Resource(
        "sfp",
        number,
        *lanes(*serial),
        _in("mod_detect", mod_detect),
        _out("rs", rs),
        _in("los", los),
        _out("tx_disable", tx_disable),
        _in("tx_fault", tx_fault),
        _out("leds", leds),
    )


class NetFpgaSumePlatform(XilinxPlatform):
    """Pins of the NetFPGA SUME."""

    toolchain = "Vivado"
    device = "xc7vx690t"
    package = "ffg1761"
    speed = "3"
    connectors = []
    resources = [
        clock("clk200", 0, "H19", "G18", 200e6),
        pcie(
            "pcie_x8",
            "Y4 AA6 AB4 AC6 AD4 AE6 AF4 AG6",
            "Y3 AA5 AB3 AC5 AD3 AE5 AF3 AG5",
            "W2 AA2 AC2 AE2 AG2 AH4 AJ2 AK4",
            "W1 AA1 AC1 AE1 AG1 AH3 AJ1 AK3",
            refclk=("AB8", "AB7"),
            perst="AY35",
            standard="LVCMOS18",
        ),
        _sfp(
            0,
            *("A6", "A5", "B4", "B3"),
            mod_detect="N18",
            rs="N19 P18",
            los="L17",
            tx_disable="M18",
            tx_fault="M19",
            leds="G13 L15",
        ),
        _sfp(
            1,
            *("B8", "B7", "C2", "C1"),
            mod_detect="L19",
            rs="P20 N20",
            los="L20",
            tx_disable="B31",
            tx_fault="C26",
            leds="AL22 BA20",
        ),
        _sfp(
            2,
            *("C6", "C5", "D4", "D3"),
            mod_detect="J37",
            rs="F39 G36",
            los="G37",
            tx_disable="J38",
            tx_fault="E39",
            leds="AY18 AY17",
        ),
        _sfp(
            3,
            *("D8", "D7", "E2", "E1"),
            mod_detect="H36",
            rs="H38 G38",
            los="J36",
            tx_disable="L21",
            tx_fault="J26",
            leds="P31 K32",
        ),
        Resource("sfp_refclk", 0, DiffPairs("E10", "E9", dir="i"), Clock(156.25e6)),
        Resource("si5324", 0, _out("rst", "BA29", "LVCMOS18"), _in("int", "AM29", "LVCMOS18")),
        Resource(
            "i2c",
            0,
            Subsignal("scl", Pins("AK24", dir="io"), Attrs(IOSTANDARD="LVCMOS18")),
            Subsignal("sda", Pins("AK25", dir="io"), Attrs(IOSTANDARD="LVCMOS18")),
            Subsignal("mux_reset", Pins("AM39", dir="o"), Attrs(IOSTANDARD="LVCMOS15")),
            Attrs(SLEW="SLOW", DRIVE="12", PULLUP="TRUE"),
        ),
        led(0, "AR22", "LVCMOS15", "12"),
        led(1, "AR23", "LVCMOS15", "12"),
    ]


BOARD = Board(
    name="netfpga_sume",
    title="NetFPGA SUME",
    part="xc7vx690tffg1761-3",
    family="xc7",
    # The device has no Ultra RAM: connections are in block RAM, of which buffers leave about two thirds.
    config=NicConfig(
        width=32, ports=2, queues=16, listeners=64, flows=32_768, splices=8_192, ultra_ram=False
    ),
    # Xilinx data sheet DS180, table "Virtex-7 FPGA feature summary".
    capacity={"lut": 433_200, "ff": 866_400, "bram36": 1_470, "uram": 0, "dsp": 3_600},
    goals={"lut_sites": 110_000, "levels": 10},
    core_mhz=CORE_MHZ,
    platform=NetFpgaSumePlatform,
    shell=SumeShell,
    pcie=Pcie("pcie_x8", 3, 8, "X0Y1"),
    macs=(
        Mac("sfp", 0, 10, "", "GTHE2_CHANNEL_X1Y39", 156.25),
        Mac("sfp", 1, 10, "", "GTHE2_CHANNEL_X1Y38", 156.25),
    ),
    # Two ports of 10 Gbit/s fit 32 bytes at 200 MHz (51 Gbit/s), not 8.
    widths=(32,),
    flash=Flash(device="28f256p30t-bpi-x16", interface="BPIx16", megabytes=32),
    bitstream={
        "CFGBVS": "GND",
        "CONFIG_VOLTAGE": "1.8",
        "BITSTREAM.GENERAL.COMPRESS": "TRUE",
        "BITSTREAM.CONFIG.UNUSEDPIN": "PULLUP",
    },
)
