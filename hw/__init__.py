"""Gateware of the AccelTCP NIC."""
