"""What all AMD Alveo cards share: one QSFP28 or two at 100GbE, PCIe Gen3 x16, a quad SPI flash."""

from amaranth.vendor import XilinxPlatform

from . import Flash, Mac, Pcie

__all__ = ["FLASH", "AlveoPlatform", "bitstream", "mac", "pcie_link"]

FLASH = Flash(device="mt25qu01g-spi-x1_x2_x4", interface="SPIx4", megabytes=128, offset=0x0100_2000)
"""The card's own image lies below the offset: a card whose user image is bad still starts."""


class AlveoPlatform(XilinxPlatform):
    """Base of the cards' platforms."""

    toolchain = "Vivado"
    connectors = []


def mac(number, site, lanes, refclk):
    """A 100GbE port in cage `number`: site of its hard MAC, of its transceivers, reference clock in MHz."""
    return Mac("qsfp", number, 100, site, lanes, refclk)


def pcie_link(block):
    """The link to the host. All cards can do Gen3 x16, which the vendor's bridge serves with 512 bits at 250 MHz."""
    return Pcie("pcie_x16", 3, 16, block)


def bitstream(rate):
    """Properties of the design for the card's configuration circuit; `rate` of the flash's clock in MHz."""
    return {
        "CFGBVS": "GND",
        "CONFIG_VOLTAGE": "1.8",
        "CONFIG_MODE": "SPIx4",
        "BITSTREAM.GENERAL.COMPRESS": "TRUE",
        "BITSTREAM.CONFIG.CONFIGFALLBACK": "ENABLE",
        "BITSTREAM.CONFIG.EXTMASTERCCLK_EN": "DISABLE",
        "BITSTREAM.CONFIG.CONFIGRATE": rate,
        "BITSTREAM.CONFIG.SPI_32BIT_ADDR": "YES",
        "BITSTREAM.CONFIG.SPI_BUSWIDTH": "4",
        "BITSTREAM.CONFIG.SPI_FALL_EDGE": "YES",
        "BITSTREAM.CONFIG.UNUSEDPIN": "PULLUP",
        "BITSTREAM.CONFIG.OVERTEMPSHUTDOWN": "ENABLE",
    }
