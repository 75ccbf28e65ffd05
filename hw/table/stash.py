"""The stash: a small fully associative memory (CAM) beside the banks of the connection table.

Changes happen one cycle after they are asked for, and look-ups compare one cycle after they come in: so what is
asked for in one cycle together with a write to a bank takes effect for the same look-up (see `ConnectionTable`).

Latency of a look-up: 2 cycles (`latency`), one per cycle. Registered: outputs. Reset: empty.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .records import Kind

__all__ = ["Entry", "Stash"]


def Entry(sizes):  # noqa: N802
    """An entry of the table."""
    return data.StructLayout({"kind": Kind, "index": sizes.index_bits, "digest": sizes.digest_bits})


class Stash(wiring.Component):
    """`sizes.stash` entries.

    Members
    -------
    digest: of a look-up.
    hit, found: 2 cycles later: whether it is here; its kind and index (0 without `hit`).
    write, at, valid, entry: put `entry` (or nothing, without `valid`) into place `at`.
    used: places in use; a change shows two cycles after it was asked for.
    read_at, read: an entry, to be moved.
    match_digest, match_index, match_kind: places with that digest; with that index and kind.
    """

    latency = 2

    def __init__(self, sizes):
        self._sizes = sizes
        entry, places = Entry(sizes), range(max(2, sizes.stash))
        super().__init__(
            {
                "digest": In(sizes.digest_bits),
                "hit": Out(1),
                "found": Out(data.StructLayout({"kind": Kind, "index": sizes.index_bits})),
                "write": In(1),
                "at": In(places),
                "valid": In(1),
                "entry": In(entry),
                "used": Out(sizes.stash),
                "read_at": In(places),
                "read": Out(entry),
                "match_digest": In(sizes.digest_bits),
                "match_index": In(sizes.index_bits),
                "match_kind": In(Kind),
                "same_digest": Out(sizes.stash),
                "same_index": Out(sizes.stash),
            }
        )

    def elaborate(self, platform):
        m = Module()
        sizes = self._sizes
        entries = [Signal(Entry(sizes), name=f"entry{k}", reset_less=True) for k in range(sizes.stash)]
        used = Signal(sizes.stash)
        # The order waits a cycle.
        write, valid = Signal(), Signal(reset_less=True)
        at = Signal.like(self.at, reset_less=True)
        new = Signal(Entry(sizes), reset_less=True)
        m.d.sync += [write.eq(self.write), valid.eq(self.valid), at.eq(self.at), new.eq(self.entry)]
        m.d.comb += self.used.eq(used)
        with m.If(write):
            for k, entry in enumerate(entries):
                with m.If(at == k):
                    m.d.sync += [entry.eq(new), used[k].eq(valid)]
        with m.Switch(self.read_at):
            for k, entry in enumerate(entries):
                with m.Case(k):
                    m.d.comb += self.read.eq(entry)
        m.d.comb += [
            self.same_digest.eq(Cat(used[k] & (entry.digest == self.match_digest) for k, entry in enumerate(entries))),
            self.same_index.eq(
                Cat(
                    used[k] & (entry.index == self.match_index) & (entry.kind == self.match_kind)
                    for k, entry in enumerate(entries)
                )
            ),
        ]

        digest = Signal(sizes.digest_bits, reset_less=True)
        matches = Signal(sizes.stash)
        values = [Signal(sizes.index_bits + len(Value.cast(self.found.kind)), name=f"value{k}", reset_less=True) for k in range(sizes.stash)]
        m.d.sync += digest.eq(self.digest)
        # One digest lies in one place, so an OR of the places that match will do. It is not registered
        # again: who uses it has a register behind it.
        m.d.sync += matches.eq(Cat(used[k] & (entry.digest == digest) for k, entry in enumerate(entries)))
        for value, entry in zip(values, entries, strict=True):
            m.d.sync += value.eq(Cat(entry.kind, entry.index))
        chosen = 0
        for k, value in enumerate(values):
            chosen = chosen | Mux(matches[k], value, 0)
        m.d.comb += [self.hit.eq(matches.any()), Value.cast(self.found).eq(chosen)]
        return m
