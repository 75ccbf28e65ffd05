"""What surrounds the core on a board: MACs, the PCIe bridge, clocks and resets, clock crossings."""
