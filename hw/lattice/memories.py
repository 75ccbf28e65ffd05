"""What Yosys is told of memories of an ECP5, beside what all tools are told.

A block RAM has at least 512 words, so memories of up to 16 words, which is what a cell of distributed memory has, are better
off there; that gives a clocked read for nothing, too.

In a FIFO no address is read and written in one cycle. Amaranth's read ports give the old word then, which a block RAM of an
ECP5 cannot, so Yosys otherwise adds two registers per bit, a comparison and a multiplexer. Amaranth (0.5.10, pinned) has no way to
say that it does not matter; its RTLIL does.
"""

import re

from amaranth.vendor import LatticePlatform

__all__ = ["free_collisions", "memory_attributes"]

_LUTRAM_WORDS = 16
_ATTRIBUTE = "never_read_and_written_at_once"
_MODULE = re.compile(r"^module .*?^end$", re.MULTILINE | re.DOTALL)
_MEMORY = re.compile(rf"attribute \\{_ATTRIBUTE} 1\s+(?:attribute .*\s+)*memory .* (\\\S+)$", re.MULTILINE)


def memory_attributes(platform, depth, *, collisions=True):
    """Attributes of a memory of `depth` words in block RAM whose read is clocked, in a design elaborated for `platform`.

    collisions: an address may be read and written in one cycle.
    """
    if not isinstance(platform, LatticePlatform):
        return {"ram_style": "block"}
    if depth <= _LUTRAM_WORDS:
        return {"ram_style": "distributed"}
    return {"ram_style": "block"} | ({} if collisions else {_ATTRIBUTE: 1})


def free_collisions(rtlil):
    """The RTLIL text with reads free to give anything while their address is being written, in memories without collisions."""

    def module(match):
        text = match[0]
        for name in _MEMORY.findall(text):
            mask = re.compile(
                rf'(parameter \\MEMID "\\{re.escape(name)}"\n(?:\s+parameter .*\n)*?\s+parameter \\COLLISION_X_MASK )(\d+)\'0+$', re.MULTILINE
            )
            text = mask.sub(lambda port: f"{port[1]}{port[2]}'{'1' * int(port[2])}", text)
        return text

    return _MODULE.sub(module, rtlil)
