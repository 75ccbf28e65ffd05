"""A Linux guest that has the simulated NIC as a PCI card: Debian's kernel, its vfio-pci, an IOMMU.

`image` builds what it boots from, `machine` runs it in QEMU, `agent` runs commands in it, `cli` is the command line of
`acceltcp vm`.
"""
