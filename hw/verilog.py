"""Gateware as Verilog text; the one way to get it."""

from contextlib import contextmanager

from amaranth.back import rtlil, verilog

from .lattice.memories import free_collisions

__all__ = ["LARGE_BITS", "convert", "convert_for"]

LARGE_BITS = 1 << 20
"""Memories of so many bits are written without initial contents."""


def convert(design, name, **options):
    """`amaranth.back.verilog.convert`, except for large memories that start with zeros.

    Amaranth writes out their every bit, one by one: the flows of a U50 take 118 Mbit, over 20 minutes and a gigabyte, for
    contents that Ultra RAM cannot have anyway. Whoever uses such a memory clears it after a reset.
    """
    with _large_memories_without_contents():
        return verilog.convert(design, name=name, emit_src=False, **options)


def convert_for(platform, design, name):
    """The whole of a board as Verilog text, from a design that asks `platform` for its pins; large memories as above.
    For a platform whose tools begin with Yosys it is RTLIL.

    Afterwards the platform knows the ports, their pins and clocks. It serves one design.
    """
    with _large_memories_without_contents():
        files = platform.prepare(design, name, emit_src=False).files
        return files.get(f"{name}.v") or free_collisions(files[f"{name}.il"])


@contextmanager
def _large_memories_without_contents():
    # Amaranth (0.5.10, pinned) has no option for this.
    emitter = rtlil.ModuleEmitter
    original = emitter.emit_memory

    def emit_memory(self, index, cell):
        if cell.width * cell.depth < LARGE_BITS or any(cell.init):
            original(self, index, cell)

    emitter.emit_memory = emit_memory
    try:
        yield
    finally:
        emitter.emit_memory = original
