"""The open tools for Lattice devices: Yosys, nextpnr, ecppack."""
