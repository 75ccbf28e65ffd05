"""`MatchMemory`: which entries of a table have this key, for all entries at once.

A content-addressable memory in distributed RAM. The key is cut into chunks of five bits; each
chunk addresses a memory of 32 rows, and bit e of row v says that entry e has the value v
there. An entry matches if all its chunks do. A 5-bit address suits the distributed RAM best:
`RAM32M16` holds 14 entries in the place of 8 LUTs (with 6 bits, 7 entries).

Rows are written for a *group* of up to 14 entries at a time, those that share primitives: the
group's entries are shifted in one after the other, then its part of the row is written. Rows
are not reset. An entry is masked by `used` while its rows are written; the bits of its
neighbours are written too, with the values that they have.

* Latency: 1 cycle. Throughput: one key per cycle.
* Registered: after two levels of logic; `match` is one level behind flip-flops.
* Overflow: cannot happen. Reset: none; `used` belongs to the user.
"""

from functools import reduce
from operator import and_

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["MatchMemory"]

_CHUNK = 5
_GROUP_MAX = 14
_LUT_INPUTS = 6


class MatchMemory(wiring.Component):
    """Matches keys of `width` bits with `entries` entries.

    Members
    -------
    enable: take `key` and `used`; else `match` stays.
    key: what to look for.
    used: entries that may match.
    match: the entries that have the key.
    shift, entry, ignore: the next entry's key and those bits of it that match anything.
    row, write: write that row of the groups whose bit is set with the last `group_size` entries.
    """

    rows = 1 << _CHUNK

    def __init__(self, entries, width):
        if not isinstance(entries, int) or entries < 1:
            raise ValueError(f"entries must be a positive integer, not {entries!r}")
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be a positive integer, not {width!r}")
        self._entries, self._width = entries, width
        super().__init__(
            {
                "enable": In(1),
                "key": In(width),
                "used": In(entries),
                "match": Out(entries),
                "shift": In(1),
                "entry": In(width),
                "ignore": In(width),
                "row": In(_CHUNK),
                "write": In(self.groups),
            }
        )

    @property
    def groups(self):
        """Number of groups."""
        return -(-self._entries // _GROUP_MAX)

    @property
    def group_size(self):
        """Entries of a group; group g starts with entry g * group_size. The last may be cut short."""
        return -(-self._entries // self.groups)

    def elaborate(self, platform):
        m = Module()
        size, groups = self.group_size, self.groups
        matches = []
        for number, at in enumerate(range(0, self._width, _CHUNK)):
            bits = slice(at, min(at + _CHUNK, self._width))
            memory = Memory(
                shape=data.ArrayLayout(size, groups),
                depth=1 << (bits.stop - at),
                init=[],
                attrs={"ram_style": "distributed"},
            )
            m.submodules[f"chunk{number}"] = memory
            read, write = memory.read_port(domain="comb"), memory.write_port(granularity=1)
            m.d.comb += read.addr.eq(self.key[bits])
            matches.append(Value.cast(read.data)[: self._entries])

            same = Signal(name=f"same{number}")
            column = Signal(size, name=f"column{number}", reset_less=True)
            m.d.comb += [
                same.eq(((self.entry[bits] ^ self.row) & ~self.ignore[bits])[: bits.stop - at] == 0),
                write.addr.eq(self.row),
                write.data.eq(column.replicate(groups)),
                write.en.eq(self.write),
            ]
            with m.If(self.shift):
                m.d.sync += column.eq(Cat(column[1:], same))

        # Stage 1: look up and combine as many as one LUT takes.
        matches.append(self.used)
        partial = []
        for number, at in enumerate(range(0, len(matches), _LUT_INPUTS)):
            part = Signal(self._entries, name=f"partial{number}", reset_less=True)
            with m.If(self.enable):
                m.d.sync += part.eq(reduce(and_, matches[at : at + _LUT_INPUTS]))
            partial.append(part)
        m.d.comb += self.match.eq(reduce(and_, partial))
        return m
