"""A Linux guest that has the simulated NIC as a PCI card: Debian's kernel, its vfio-pci, an IOMMU.

`image` builds what it boots from, `machine` runs it in QEMU, `agent` runs commands in it, `cli` is the command line of
`acceltcp vm`.
"""

__all__ = ["NIC_BDF", "NIC_SLOT"]

NIC_SLOT = 3
"""Of the first NIC, on the guest's bus 0; others follow."""

NIC_BDF = f"0000:00:{NIC_SLOT:02x}.0"
"""Where the first NIC is."""
