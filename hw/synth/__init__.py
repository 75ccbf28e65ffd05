"""Synthesis with Yosys, and what can be said about the netlist."""
