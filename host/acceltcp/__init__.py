"""AccelTCP: TCP split between an open FPGA NIC and a Python host stack."""

__version__ = "0.1.0"
