"""The open tools for Lattice devices: Yosys, nextpnr, ecppack."""

__all__ = ["FAMILY"]

FAMILY = "ecp5"
"""Of the devices, as Yosys calls it."""
