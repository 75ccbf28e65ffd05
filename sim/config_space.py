"""PCI configuration space of the simulated NIC (PCI Express Base Specification, chapter 7).

A type 0 header with two 64-bit memory BARs, and the power management, MSI-X and PCI Express
capabilities. Every bit says whether it can be written; BAR sizing follows from that.
"""

from __future__ import annotations

import struct

from acceltcp.abi import pci

__all__ = ["CONFIG_BYTES", "ConfigSpace"]

CONFIG_BYTES = 4096

COMMAND, STATUS, BAR0, CAPABILITIES = 0x04, 0x06, 0x10, 0x34
POWER, MSIX, EXPRESS = 0x40, 0x50, 0x60

COMMAND_MEMORY, COMMAND_MASTER = 1 << 1, 1 << 2
COMMAND_WRITABLE = 0x0546  # memory, bus master, parity, SERR#, INTx off
STATUS_CAPABILITIES = 1 << 4
BAR_64_BIT = 0x4
MSIX_FUNCTION_MASK, MSIX_ENABLE = 1 << 14, 1 << 15
DEVICE_CONTROL_RESET = 1 << 15
LINK_GEN3_X16 = 3 | 16 << 4


class ConfigSpace:
    """The bytes of configuration space and what writing them does.

    vectors: MSI-X vectors.
    """

    def __init__(self, vectors: int) -> None:
        self._vectors = vectors
        self._data = bytearray(CONFIG_BYTES)
        self._mask = bytearray(CONFIG_BYTES)
        self.reset()

    def reset(self) -> None:
        """Back to the values after power-on, with memory decoding on as VFIO leaves it."""
        self._data[:] = bytes(CONFIG_BYTES)
        self._mask[:] = bytes(CONFIG_BYTES)
        self._put("<HHHH", 0, pci.VENDOR_ID, pci.DEVICE_ID, COMMAND_MEMORY, STATUS_CAPABILITIES)
        self._put("<I", 0x08, pci.CLASS_CODE << 8 | pci.REVISION_ID)
        for bar, size in pci.BARS.items():
            self._put("<Q", BAR0 + 4 * bar, BAR_64_BIT, ((1 << 64) - size) & ~0xF)
        self._put("<HH", 0x2C, pci.SUBSYSTEM_VENDOR_ID, pci.SUBSYSTEM_ID)
        self._put("<B", CAPABILITIES, POWER)
        self._allow("<H", COMMAND, COMMAND_WRITABLE)
        self._allow("<B", 0x0C, 0xFF)  # cache line size
        self._allow("<B", 0x3C, 0xFF)  # interrupt line
        # Power management 1.2; state is kept and has no effect; no soft reset on D3 to D0.
        self._put("<BBHH", POWER, 0x01, MSIX, 0x0003, 0x0008)
        self._allow("<H", POWER + 4, 0x0003)
        self._put(
            "<BBHII", MSIX, 0x11, EXPRESS, self._vectors - 1,
            pci.MSIX_TABLE_OFFSET | pci.BAR_MSIX, pci.MSIX_PBA_OFFSET | pci.BAR_MSIX,
        )  # fmt: skip
        self._allow("<H", MSIX + 2, MSIX_FUNCTION_MASK | MSIX_ENABLE)
        # Endpoint of version 2; payloads of 256 bytes, role-based errors, function level reset.
        self._put("<BBHIHH", EXPRESS, 0x10, 0, 0x0002, 0x1000_8001, 0x2810, 0)
        self._put("<IHH", EXPRESS + 0x0C, LINK_GEN3_X16, 0, LINK_GEN3_X16)
        self._allow("<H", EXPRESS + 8, 0x7FFF)
        self._allow("<H", EXPRESS + 0x10, 0x00C3)

    def _put(self, layout: str, at: int, *values: int) -> None:
        """Values; for the "<Q" of a BAR its writable bits come along."""
        if layout == "<Q":
            value, writable = values
            self._allow("<Q", at, writable)
            values = (value,)
        struct.pack_into(layout, self._data, at, *values)

    def _allow(self, layout: str, at: int, writable: int) -> None:
        struct.pack_into(layout, self._mask, at, writable)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes; the range has been checked."""
        return bytes(self._data[offset : offset + count])

    def write(self, offset: int, data: bytes) -> bool:
        """Change what can be changed. True if a function level reset was asked for."""
        for at, byte in enumerate(data, offset):
            mask = self._mask[at]
            self._data[at] = self._data[at] & ~mask & 0xFF | byte & mask
        high = EXPRESS + 9
        return offset <= high < offset + len(data) and bool(data[high - offset] << 8 & DEVICE_CONTROL_RESET)

    def _word(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + 2], "little")

    @property
    def bus_master(self) -> bool:
        """The device may access memory and raise interrupts."""
        return bool(self._word(COMMAND) & COMMAND_MASTER)

    @property
    def function_masked(self) -> bool:
        """All MSI-X vectors are masked."""
        return bool(self._word(MSIX + 2) & MSIX_FUNCTION_MASK)
