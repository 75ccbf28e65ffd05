"""The simulated NIC: the Verilated core served as a PCI device over vfio-user.

`export` and `verilate` make a shared library of the core, `device` drives it, `server` is the
PCI device around it, `wires` are what its MAC ports are plugged into, `simulator` is the loop
that joins them, and `cli` its command line.
"""
