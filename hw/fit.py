"""Does a configuration fit a board? Told before anything is built."""

import functools

from amaranth import Shape
from amaranth.hdl import Fragment
from amaranth.hdl._mem import MemoryInstance

from .config import AXI_BYTES

__all__ = ["check", "table_memory"]

_ULTRA = (72, 4096)
_BLOCK = ((72, 512), (36, 1024), (18, 2048), (9, 4096), (4, 8192), (2, 16384), (1, 32768))
"""Shapes of one Ultra RAM and of one block RAM: width, depth."""


@functools.cache
def table_memory(config):
    """What the tables of connections need, in units of the device: uram, bram36. About a second."""
    from .table.connection_table import ConnectionTable
    from .tcp.splice_engine import SpliceEngine
    from .tcp.teardown import Teardown

    designs = [ConnectionTable(config.table), Teardown(config)]
    if config.splices:
        designs.append(SpliceEngine(config))
    needed = {"uram": 0, "bram36": 0}
    for design in designs:
        for width, depth, style in _memories(Fragment.get(design, None)):
            if style == "ultra":
                needed["uram"] += _count(width, depth, *_ULTRA)
            elif style == "block":
                needed["bram36"] += min(_count(width, depth, *shape) for shape in _BLOCK)
    return needed


def check(board, config):
    """Raises `ValueError`, one line, if the board cannot have this configuration."""
    if board.macs and config.ports > len(board.macs):
        raise ValueError(f"ports must be at most {len(board.macs)} on {board.name}, not {config.ports}")
    if board.pcie and config.axi_bytes != AXI_BYTES:
        raise ValueError(f"axi_bytes must be {AXI_BYTES} on {board.name}, which has PCI Express, not {config.axi_bytes}")
    if config.width not in board.widths:
        allowed = " or ".join(map(str, board.widths))
        raise ValueError(
            f"width must be {allowed} on {board.name}, whose MAC gives and takes {board.macs[0].gbps} Gbit/s, not {config.width}"
        )
    if config.ultra_ram and not board.capacity["uram"]:
        raise ValueError(f"ultra_ram must be off on {board.name}, which has none")
    for name, count in table_memory(config).items():
        if count > board.capacity[name]:
            raise ValueError(
                f"the tables of flows={config.flows} and splices={config.splices} need {count:,} {name.upper()}, "
                f"and {board.name} has {board.capacity[name]:,}"
            )


def _memories(fragment):
    """(width, depth, style) of each memory in the fragment."""
    if isinstance(fragment, MemoryInstance):
        data = fragment._data
        yield Shape.cast(data.shape).width, data.depth, fragment._attrs.get("ram_style")
    for inner, *_ in fragment.subfragments:
        yield from _memories(inner)


def _count(width, depth, unit_width, unit_depth):
    return -(-width // unit_width) * -(-depth // unit_depth)
