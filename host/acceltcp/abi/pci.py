"""How the NIC shows itself on PCI Express: identity, BARs, MSI-X.

The driver checks these, the simulated device presents them, and boards configure their PCIe
block with them.
"""

from __future__ import annotations

from .registers import ABI_MAJOR, BAR0_BYTES, QUEUES_MAX

__all__ = [
    "BARS",
    "BAR_MSIX",
    "BAR_MSIX_BYTES",
    "BAR_REGISTERS",
    "BAR_REGISTERS_BYTES",
    "CLASS_CODE",
    "DEVICE_ID",
    "IDENTITY",
    "MSIX_ENTRY_BYTES",
    "MSIX_PBA_OFFSET",
    "MSIX_TABLE_OFFSET",
    "REVISION_ID",
    "SUBSYSTEM_ID",
    "SUBSYSTEM_VENDOR_ID",
    "VENDOR_ID",
    "msix_vectors",
]

VENDOR_ID = 0x1234
"""Assigned to nobody by the PCI-SIG; what emulated devices without a vendor use. A board
sold by somebody carries that somebody's instead."""

DEVICE_ID = 0xACC7

IDENTITY = f"{VENDOR_ID:04x}:{DEVICE_ID:04x}"
"""As lspci shows it."""

SUBSYSTEM_VENDOR_ID = VENDOR_ID
SUBSYSTEM_ID = 0x0001

REVISION_ID = ABI_MAJOR

CLASS_CODE = 0x02_00_00
"""Network controller, Ethernet."""

BAR_REGISTERS = 0
"""64-bit memory BAR (so BAR 1 is its upper half): the register file, trapped, never mapped."""

BAR_REGISTERS_BYTES = BAR0_BYTES

BAR_MSIX = 2
"""64-bit memory BAR (so BAR 3 is its upper half): MSI-X table and pending bits."""

BAR_MSIX_BYTES = 0x1000

BARS = {BAR_REGISTERS: BAR_REGISTERS_BYTES, BAR_MSIX: BAR_MSIX_BYTES}
"""BAR number -> size in bytes; others are absent."""

MSIX_TABLE_OFFSET = 0x000
"""Offset of the MSI-X table in `BAR_MSIX`."""

MSIX_PBA_OFFSET = 0x800
"""Offset of the MSI-X pending bit array in `BAR_MSIX`."""

MSIX_ENTRY_BYTES = 16


def msix_vectors(queues: int) -> int:
    """Number of MSI-X vectors of a NIC with that many host queues: one each, of the queue's
    number. Raises `ValueError` for an impossible number of queues.
    """
    if not 1 <= queues <= QUEUES_MAX:
        raise ValueError(f"queues must be from 1 to {QUEUES_MAX}, not {queues!r}")
    return queues
