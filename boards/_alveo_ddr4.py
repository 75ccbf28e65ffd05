"""Pins of the Alveo U200 and U250, which differ in the device alone.

The lanes take the 156.25 MHz that the card's oscillator gives without being programmed (its buffer feeds both
cages). The second oscillator of each cage, which `fs` sets, is not used.
"""

from ._resources import clock, led, output, pcie, qsfp, satellite, strapped

__all__ = ["RESOURCES"]

RESOURCES = [
    clock("clk300", 0, "AY37", "AY38", 300e6),
    clock("clk300", 1, "AW20", "AW19", 300e6),
    clock("clk300", 2, "F32", "E32", 300e6),
    clock("clk300", 3, "J16", "H16", 300e6),
    clock("clk_user", 0, "AU19", "AV19", 156.25e6),
    pcie(
        "pcie_x16",
        "AF2 AG4 AH2 AJ4 AK2 AL4 AM2 AN4 AP2 AR4 AT2 AU4 AV2 AW4 BA2 BC2",
        "AF1 AG3 AH1 AJ3 AK1 AL3 AM1 AN3 AP1 AR3 AT1 AU3 AV1 AW3 BA1 BC1",
        "AF7 AG9 AH7 AJ9 AK7 AL9 AM7 AN9 AP7 AR9 AT7 AU9 AV7 BB5 BD5 BF5",
        "AF6 AG8 AH6 AJ8 AK6 AL8 AM6 AN8 AP6 AR8 AT6 AU8 AV6 BB4 BD4 BF4",
        refclk=("AM11", "AM10"),
        perst="BD21",
        standard="LVCMOS12",
    ),
    qsfp(
        0,
        "N4 M2 L4 K2",
        "N3 M1 L3 K1",
        "N9 M7 L9 K7",
        "N8 M6 L8 K6",
        refclk=("M11", "M10"),
        frequency=156_250_000,
        control=[
            output("modsell", "BE16", "LVCMOS12"),
            output("resetl", "BE17", "LVCMOS12"),
            strapped("modprsl", "BE20", "LVCMOS12"),
            strapped("intl", "BE21", "LVCMOS12"),
            output("lpmode", "BD18", "LVCMOS12"),
            output("refclk_reset", "AT22", "LVCMOS12"),
            output("fs", "AT20 AU22", "LVCMOS12"),
        ],
    ),
    qsfp(
        1,
        "U4 T2 R4 P2",
        "U3 T1 R3 P1",
        "U9 T7 R9 P7",
        "U8 T6 R8 P6",
        refclk=("T11", "T10"),
        frequency=156_250_000,
        control=[
            output("modsell", "AY20", "LVCMOS12"),
            output("resetl", "BC18", "LVCMOS12"),
            strapped("modprsl", "BC19", "LVCMOS12"),
            strapped("intl", "AV21", "LVCMOS12"),
            output("lpmode", "AV22", "LVCMOS12"),
            output("refclk_reset", "AR21", "LVCMOS12"),
            output("fs", "AR22 AU20", "LVCMOS12"),
        ],
    ),
    satellite("BB19", "BA19", "AR20 AM20 AM21 AN21", "LVCMOS12"),
    led(0, "BC21", "LVCMOS12"),
    led(1, "BB21", "LVCMOS12"),
    led(2, "BA20", "LVCMOS12"),
]
