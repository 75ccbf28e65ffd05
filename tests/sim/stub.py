"""Build the stand-in for the core (stub.v) in any shape."""

from __future__ import annotations

import re
from pathlib import Path

from sim.verilate import verilate

SOURCE = Path(__file__).with_name("stub.v")


def stub_verilog(width: int = 64, ports: int = 1) -> str:
    """The stand-in as Verilog, with that width and number of ports."""
    text = SOURCE.read_text().replace("parameter W = 64", f"parameter W = {width}")
    if ports == 2:
        return re.sub(r"`(if|end)_two\n", "", text)
    return re.sub(r"`if_two\n.*?`end_two\n", "", text, flags=re.S)


def stub_library(width: int = 64, ports: int = 1, *, trace: bool = False) -> Path:
    """Shared library of the stand-in."""
    return verilate(stub_verilog(width, ports), width=width, ports=ports, trace=trace, quiet=True)
