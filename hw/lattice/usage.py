"""What a synthesised design takes of an ECP5, before it is placed (Lattice FPGA-DS-02012 has the slices)."""

from collections import Counter

__all__ = ["usage", "shortage"]

_LUT_SITES = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}
"""A carry cell takes two sites; 16 words of 4 bits of distributed memory take four, and two more for their write port."""


def usage(netlist, top):
    """LUT sites at least, registers, block RAMs of 18 kbit and multipliers of the flattened module `top` of Yosys's JSON."""
    cells = Counter(cell["type"] for cell in netlist["modules"][top]["cells"].values())
    return {
        "lut": sum(count * cells[kind] for kind, count in _LUT_SITES.items()),
        "ff": cells["TRELLIS_FF"],
        "ebr": cells["DP16KD"],
        "dsp": cells["MULT18X18D"],
    }


def shortage(used, capacity):
    """What there is too much of, in words; "" if there is nothing. capacity: as of a board, block RAM in pairs."""
    available = {**capacity, "ebr": 2 * capacity["bram36"]}
    return ", ".join(
        f"{count:,} {name.upper()} of {available[name]:,}" for name, count in used.items() if count > available[name]
    )
