"""Counter strobes: how a component says what happened.

A component that counts has a member `counts` with one field per counter it feeds, named as
in `acceltcp.abi.registers.COUNTERS`; each cycle the field's value is added to the counter.
The wiring joins them by name.
"""

from amaranth.lib import data

from acceltcp.abi.registers import COUNTERS

__all__ = ["counts_layout"]

_WIDTHS = {counter.name: counter.width for counter in COUNTERS}


def counts_layout(*names):
    """Layout of the strobes of these counters. Raises `ValueError` for an unknown name."""
    for name in names:
        if name not in _WIDTHS:
            raise ValueError(f"no counter is named {name!r}")
    return data.StructLayout({name: _WIDTHS[name] for name in names})
