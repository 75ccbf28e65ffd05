"""One file per board: which part, which configuration of the core, and what may be expected.

Each module has one `BOARD`. Only `hw.build` imports them.
"""

import difflib
import importlib
import pkgutil
from dataclasses import dataclass, field

from hw.config import NicConfig

__all__ = ["Board", "UnknownBoardError", "load", "names"]


class UnknownBoardError(ValueError):
    """No board has this name; the text suggests the nearest."""


@dataclass(frozen=True)
class Board:
    """A board.

    name: as on the command line.
    title: its full name.
    part: what the vendor's tool calls the device.
    family: what Yosys's `synth_xilinx -family` calls it.
    config: the configuration of the core.
    capacity: what the device has: lut, ff, bram36, uram, dsp.
    goals: figure -> limit, as in the build report.
    """

    name: str
    title: str
    part: str
    family: str
    config: NicConfig
    capacity: dict[str, int]
    goals: dict[str, int] = field(default_factory=dict)


def names():
    """Names of all boards."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name):
    """The board of that name. Raises `UnknownBoardError`."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownBoardError(f"no board is named {name!r}{hint}")
    return importlib.import_module(f"{__name__}.{name}").BOARD
