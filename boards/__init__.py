"""One file per board: which part, which pins, which configuration of the core, and what may be expected.

Each module has one `BOARD`; those whose names begin with `_` are shared parts. Only `hw.build` imports them.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

from hw.config import NicConfig

__all__ = ["Board", "Flash", "Mac", "Pcie", "UNTRIED", "UnknownBoardError", "load", "names"]

UNTRIED = "simulation only"
"""What is true of every board so far."""


class UnknownBoardError(ValueError):
    """No board has this name; the text suggests the nearest."""


@dataclass(frozen=True)
class Pcie:
    """How a board sits on PCI Express.

    resource: name of the platform's resource.
    generation, lanes: the fastest link that the shell is made for.
    block: site of the hard block, as the vendor's IP calls it.
    """

    resource: str
    generation: int
    lanes: int
    block: str

    def __str__(self):
        return f"Gen{self.generation} x{self.lanes}"


@dataclass(frozen=True)
class Mac:
    """A network port that the shell serves.

    resource, number: the platform's resource of its cage.
    gbps: its rate.
    site: the hard MAC's site; "" where the MAC is made of logic.
    lanes: sites of its transceivers, first and last with `~` between.
    refclk: frequency of its reference clock in MHz.
    tx_delay_ps: for a PHY at RGMII, by how much its transmit clock must be late.
    """

    resource: str
    number: int
    gbps: int
    site: str
    lanes: str
    refclk: float
    tx_delay_ps: int = 0


@dataclass(frozen=True)
class Flash:
    """The configuration memory.

    device: what the vendor's programmer calls it.
    interface: as in `write_cfgmem -interface`.
    megabytes: its size.
    offset: where our image begins; what lies below is the maker's fallback and stays.
    """

    device: str
    interface: str
    megabytes: int
    offset: int = 0


@dataclass(frozen=True)
class Board:
    """A board.

    name: as on the command line.
    title: its full name.
    part: what the vendor's tool calls the device.
    family: what Yosys's `synth_xilinx -family` calls it; "ecp5": Lattice's, built with nextpnr.
    config: the configuration of the core.
    capacity: what the device has: lut, ff, bram36, uram, dsp.
    goals: figure -> limit, as in the build report.
    core_mhz: clock of the core.
    core_clocks: what else may drive the core, the usual one too: name -> MHz; `shell` takes the name as `core_clock`.
    platform: class of its Amaranth platform.
    shell: what surrounds the core: called with board and configuration; None: there is none yet.
    pcie: its link to the host, None if it has none.
    macs: its network ports; the core's port 0 is the first.
    link: the port of the host link, where there is no PCI Express; None with `pcie` None: the first of `macs` carries both.
    widths: widths of the core in bytes that the shell joins to the MAC.
    flash: its configuration memory.
    bitstream: properties of the whole design, in XDC: name -> value.
    loader: options by which openFPGALoader finds the board, "" where it is not used.
    watts: budget for the tool's power analysis, None for none.
    tried: what has been tried, in a few words.
    """

    name: str
    title: str
    part: str
    family: str
    config: NicConfig
    capacity: dict[str, int]
    goals: dict[str, int] = field(default_factory=dict)
    core_mhz: float = 250.0
    core_clocks: dict[str, float] = field(default_factory=dict)
    platform: type | None = None
    shell: Callable | None = None
    pcie: Pcie | None = None
    macs: tuple[Mac, ...] = ()
    link: Mac | None = None
    widths: tuple[int, ...] = (8, 32, 64)
    flash: Flash | None = None
    bitstream: dict[str, str] = field(default_factory=dict)
    loader: str = ""
    watts: int | None = None
    tried: str = UNTRIED


def names():
    """Names of all boards."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name):
    """The board of that name. Raises `UnknownBoardError`."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownBoardError(f"no board is named {name!r}{hint}")
    return importlib.import_module(f"{__name__}.{name}").BOARD
