"""`ConnectionTable`: two-choice cuckoo hash table with a stash; a digest finds {kind, index}.

Two banks of `ways` memories. A digest's low bits are its row in bank 0, the next its row in bank 1; its
entry lies in a slot of one of these rows, or in the stash. Look-ups read both rows and the stash at once
through a port of their own: one per cycle, whatever else happens. Insertion, deletion and moves share
the second port:

* insert: a free slot in the emptier of the two rows; else a place in the stash. Only when the stash is
  full, and `PATIENCE` attempts to make room have failed, the answer is TABLE_FULL.
* moves: while the stash is not empty an entry of it goes to a free slot of its rows, or changes places
  with a random entry there (a cuckoo's random walk), one step between any two insertions or deletions. After
  `ATTEMPTS` steps without success it rests until the next insertion or deletion.
* Every move is one cycle in which two places change together; the stash's change is delayed by as much as its
  look-ups, so each look-up sees either the table before or the table after: no entry is ever hidden.

* Latency: look-up 4 cycles (`latency`); insertion about 8 cycles, deletion 7, a move 6.
* Registered: `o`; the digest of a look-up goes to memories and to a register.
* Overflow: cannot happen; changes wait for their turn.
* Reset: clears the table, one row per cycle; until `ready` look-ups find nothing and changes wait.

Pagh and Rodler, "Cuckoo hashing" (2004); Kirsch, Mitzenmacher and Wieder, "More robust hashing: cuckoo
hashing with a stash" (2009).
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from acceltcp.abi.messages import Status

from ..config import ram_style
from .records import Lookup, TablePort
from .stash import Entry, Stash

__all__ = ["ATTEMPTS", "PATIENCE", "ConnectionTable"]

ATTEMPTS = 255
"""Moves in a row before the stash rests."""

PATIENCE = 127
"""Moves that an insertion waits for while the stash is full."""

ULTRA_ROWS, BLOCK_ROWS = 4096, 128
"""Rows from which Ultra RAM and block RAM are worth it."""


class ConnectionTable(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    sizes: hw.config.TableSizes.

    Members
    -------
    i_valid, i_digest: a look-up.
    o_valid, o: Lookup(sizes), `latency` cycles later.
    port: In(TablePort(sizes)): changes.
    ready: the table has been cleared.
    held: entries.
    busy: something is in work.
    """

    latency = 4

    def __init__(self, sizes):
        self._sizes = sizes
        super().__init__(
            {
                "i_valid": In(1),
                "i_digest": In(sizes.digest_bits),
                "o_valid": Out(1),
                "o": Out(Lookup(sizes)),
                "port": In(TablePort(sizes)),
                "ready": Out(1),
                "held": Out(sizes.index_bits + 1),
                "busy": Out(1),
            }
        )

    @property
    def sizes(self):
        """Sizes of the table."""
        return self._sizes

    def elaborate(self, platform):
        m = Module()
        sizes = self._sizes
        slot = data.StructLayout({"used": 1, "entry": Entry(sizes)})
        rows = 1 << sizes.row_bits
        style = ram_style(rows, ultra=ULTRA_ROWS, block=BLOCK_ROWS, ultra_ram=sizes.ultra_ram)
        m.submodules.stash = stash = Stash(sizes)
        places = [(bank, way) for bank in range(2) for way in range(sizes.ways)]

        # The second port: one address per bank for reading and writing.
        row = [Signal(sizes.row_bits, name=f"row{bank}") for bank in range(2)]
        write = Signal(len(places))
        written = Signal(slot)
        looked_up, seen = [], []
        for number, (bank, way) in enumerate(places):
            memory = Memory(shape=slot, depth=rows, init=[], attrs={"ram_style": style})
            m.submodules[f"bank{bank}_way{way}"] = memory
            first, second, change = memory.read_port(), memory.read_port(), memory.write_port()
            at = self.i_digest[bank * sizes.row_bits :][: sizes.row_bits]
            out = Signal(slot, name=f"slot{bank}_{way}", reset_less=True)
            beside = Signal(slot, name=f"beside{bank}_{way}", reset_less=True)
            m.d.comb += [
                first.addr.eq(at),
                second.addr.eq(row[bank]),
                # Never both at once: then reading and writing are one port of an Ultra RAM.
                second.en.eq(~write[number]),
                change.addr.eq(row[bank]),
                change.data.eq(written),
                change.en.eq(write[number]),
            ]
            m.d.sync += [out.eq(first.data), beside.eq(second.data)]
            looked_up.append(out)
            seen.append(beside)
        self._look_up(m, looked_up, stash)
        self._change(m, seen, stash, row, write, written)
        return m

    def _look_up(self, m, slots, stash):
        digest = [Signal(len(self.i_digest), name=f"digest{k}", reset_less=True) for k in (1, 2)]
        valid = Signal(self.latency)
        match = Signal(len(slots) + 1)
        values = []
        m.d.comb += stash.digest.eq(self.i_digest)
        m.d.sync += [
            digest[0].eq(self.i_digest),
            digest[1].eq(digest[0]),
            valid.eq(Cat(self.i_valid & self.ready, valid)),
        ]
        # Cycle 3: compare. The stash has done so already.
        for number, slot in enumerate(slots):
            value = Signal(len(Value.cast(self.o)) - 1, name=f"value{number}", reset_less=True)
            m.d.sync += [
                match[number].eq(slot.used & (slot.entry.digest == digest[1])),
                value.eq(Cat(slot.entry.kind, slot.entry.index)),
            ]
            values.append(value)
        stashed = Signal(len(values[0]), reset_less=True)
        m.d.sync += [match[-1].eq(stash.hit), stashed.eq(Value.cast(stash.found))]
        values.append(stashed)
        # Cycle 4: an entry lies in one place, or for a moment in two that say the same.
        chosen = 0
        for number, value in enumerate(values):
            chosen = chosen | Mux(match[number], value, 0)
        result = Signal(Lookup(self._sizes), reset_less=True)
        passed = Signal()
        valids = Signal(self.latency)
        m.d.sync += [
            Value.cast(result).eq(Cat(match.any() & valid[2], chosen)),
            valids.eq(Cat(self.i_valid, valids)),
        ]
        m.d.comb += [passed.eq(valids[-1]), self.o_valid.eq(passed), self.o.eq(result)]

    def _change(self, m, seen, stash, row, write, written):
        sizes, port = self._sizes, self.port
        ways, count = sizes.ways, len(seen)
        entry = Signal(Entry(sizes), reset_less=True)
        rows = Signal(data.ArrayLayout(sizes.row_bits, 2), reset_less=True)
        status = Signal(8, reset_less=True)
        waited = Signal(range(PATIENCE + 1))
        attempts = Signal(range(ATTEMPTS + 1))
        turn = Signal()  # a move has its turn before the next insertion
        clearing = Signal(init=1)
        at = Signal(sizes.row_bits)
        random = Signal(16, init=0xACE1)  # Galois register, for the random walk
        m.d.sync += random.eq((random >> 1) ^ Mux(random[0], 0xB400, 0))

        # What the rows of `entry` hold, judged in a register.
        used, same, fits = Signal(count), Signal(count), Signal(count)
        m.d.sync += [
            used.eq(Cat(slot.used for slot in seen)),
            same.eq(Cat(slot.used & (slot.entry.digest == entry.digest) for slot in seen)),
            fits.eq(
                Cat(
                    slot.used & (slot.entry.index == entry.index) & (slot.entry.kind == entry.kind)
                    for slot in seen
                )
            ),
        ]
        same_stash, fits_stash = Signal(sizes.stash), Signal(sizes.stash)
        m.d.sync += [same_stash.eq(stash.same_digest), fits_stash.eq(stash.same_index)]

        def lowest(bits):
            """One-hot: the lowest bit that is set."""
            return bits & (~bits + 1)[: len(bits)]

        def number_of(onehot, width):
            return Cat(Cat(onehot[i] for i in range(len(onehot)) if i >> bit & 1).any() for bit in range(width))

        free = [~used[bank * ways : (bank + 1) * ways] for bank in range(2)]
        level = [sum(used[bank * ways + way] for way in range(ways)) for bank in range(2)]
        second, room = Signal(), Signal()
        target = Signal(count)
        m.d.comb += [
            # A row that is full is never the emptier one.
            second.eq(level[1] < level[0]),
            room.eq(~used.all()),
            target.eq(Mux(second, Cat(C(0, ways), lowest(free[1])), lowest(free[0]))),
        ]
        # A random victim: way and bank.
        victim = Signal(count)
        place = Signal(range(count))
        m.d.sync += place.eq((random[:8] * count) >> 8)
        m.d.comb += victim.eq(1 << place)
        victim_entry = Signal(Entry(sizes))
        kicked = 0
        for number, slot in enumerate(seen):
            kicked = kicked | Mux(victim[number], Value.cast(slot.entry), 0)
        m.d.comb += Value.cast(victim_entry).eq(kicked)

        stash_bits = len(stash.at)
        stash_free = Signal()
        moving = Signal.like(stash.at)  # place in the stash of the entry on its walk
        m.d.comb += [
            stash_free.eq(~stash.used.all()),
            stash.match_digest.eq(entry.digest),
            stash.match_index.eq(entry.index),
            stash.match_kind.eq(entry.kind),
            stash.entry.eq(entry),
            stash.valid.eq(1),
            written.used.eq(1),
            written.entry.eq(entry),
            port.inserted.p.status.eq(status),
            port.deleted.p.index.eq(entry.index),
            self.ready.eq(~clearing),
            self.busy.eq(1),
        ]
        for bank in range(2):
            m.d.comb += row[bank].eq(Mux(clearing, at, rows[bank]))

        want_move = Signal()
        m.d.comb += want_move.eq(stash.used.any() & (attempts != ATTEMPTS))

        def load(where, digest, kind, index, rows_of=None):
            m.d.sync += [entry.digest.eq(digest), entry.kind.eq(kind), entry.index.eq(index)]
            for bank in range(2):
                part = digest[bank * sizes.row_bits :][: sizes.row_bits] if rows_of is None else rows_of[bank]
                m.d.sync += rows[bank].eq(part)
            m.next = where

        waits = Signal(3)
        operation = Signal(2)  # 0 insert, 1 delete, 2 move
        with m.FSM(name="change"):
            with m.State("Clear"):
                m.d.comb += [write.eq(~C(0, count)), written.eq(0)]
                m.d.sync += at.eq(at + 1)
                with m.If(at.all()):
                    m.d.sync += clearing.eq(0)
                    m.next = "Wait"
            with m.State("Wait"):
                m.d.sync += [waits.eq(0), waited.eq(0)]
                m.d.comb += self.busy.eq(port.insert.valid | port.delete.valid | want_move)
                m.d.comb += stash.read_at.eq(number_of(lowest(stash.used), stash_bits))
                with m.If(want_move & (turn | ~(port.insert.valid | port.delete.valid))):
                    m.d.sync += [turn.eq(0), operation.eq(2), moving.eq(stash.read_at)]
                    load("Read", stash.read.digest, stash.read.kind, stash.read.index)
                with m.Elif(port.delete.valid):
                    m.d.comb += port.delete.ready.eq(1)
                    m.d.sync += [turn.eq(1), operation.eq(1), attempts.eq(0)]
                    delete = port.delete.p
                    load("Read", C(0, sizes.digest_bits), delete.kind, delete.index, delete.rows)
                with m.Elif(port.insert.valid):
                    m.d.comb += port.insert.ready.eq(1)
                    m.d.sync += [turn.eq(1), operation.eq(0), attempts.eq(0)]
                    insert = port.insert.p
                    load("Read", insert.digest, insert.kind, insert.index)
            with m.State("Read"):
                # Address, memory, its output register, judgement.
                m.d.sync += waits.eq(waits + 1)
                with m.If(waits == 3):
                    with m.Switch(operation):
                        with m.Case(0):
                            m.next = "Insert"
                        with m.Case(1):
                            m.next = "Delete"
                        with m.Default():
                            m.next = "Move"
            with m.State("Insert"):
                m.d.sync += status.eq(Status.OK)
                m.next = "Tell"
                with m.If(same.any() | same_stash.any()):
                    m.d.sync += status.eq(Status.DUPLICATE)
                with m.Elif(room):
                    m.d.comb += write.eq(target)
                    m.d.sync += self.held.eq(self.held + 1)
                with m.Elif(stash_free):
                    m.d.comb += [stash.write.eq(1), stash.at.eq(number_of(lowest(~stash.used), stash_bits))]
                    m.d.sync += self.held.eq(self.held + 1)
                with m.Elif(waited == PATIENCE):
                    m.d.sync += status.eq(Status.TABLE_FULL)
                with m.Else():
                    m.d.sync += waited.eq(waited + 1)
                    m.next = "Make room"
            with m.State("Tell"):
                # A look-up that comes after this finds the entry, in the stash too.
                m.d.comb += port.inserted.valid.eq(1)
                with m.If(port.inserted.ready):
                    m.next = "Wait"
            with m.State("Delete"):
                # In the stash: taken out of there. (`entry.digest` is zero.)
                m.next = "Tell of the deletion"
                with m.If(fits.any()):
                    m.d.comb += [write.eq(lowest(fits)), written.eq(0)]
                    m.d.sync += self.held.eq(self.held - 1)
                with m.Elif(fits_stash.any()):
                    m.d.comb += [
                        stash.write.eq(1),
                        stash.valid.eq(0),
                        stash.at.eq(number_of(lowest(fits_stash), stash_bits)),
                    ]
                    m.d.sync += self.held.eq(self.held - 1)
            with m.State("Tell of the deletion"):
                m.d.comb += port.deleted.valid.eq(1)
                with m.If(port.deleted.ready):
                    m.next = "Wait"
            with m.State("Move"):
                m.d.comb += [stash.write.eq(1), stash.at.eq(moving)]
                m.d.sync += attempts.eq(attempts + 1)
                m.next = "Let it settle"
                with m.If(room):
                    m.d.comb += [write.eq(target), stash.valid.eq(0)]
                    m.d.sync += attempts.eq(0)
                with m.Else():
                    m.d.comb += [write.eq(victim), stash.entry.eq(victim_entry)]
            with m.State("Let it settle"):
                m.next = "Wait"
            self._make_room(m, stash, entry, rows, waits, room, target, victim, victim_entry, write, written)

    def _make_room(self, m, stash, entry, rows, waits, room, target, victim, victim_entry, write, written):
        """States in which an insertion that found the stash full moves entries of it. What it inserts
        waits in `kept`; a move ends where the insertion is judged again."""
        sizes = self._sizes
        kept = Signal(Entry(sizes), reset_less=True)
        moving = Signal.like(stash.at)
        with m.State("Make room"):
            m.d.sync += [kept.eq(entry), waits.eq(0), entry.eq(stash.read)]
            m.d.comb += stash.read_at.eq(moving)
            for bank in range(2):
                m.d.sync += rows[bank].eq(stash.read.digest[bank * sizes.row_bits :][: sizes.row_bits])
            m.next = "Read for room"
        with m.State("Read for room"):
            m.d.sync += waits.eq(waits + 1)
            with m.If(waits == 3):
                m.next = "Move for room"
        with m.State("Move for room"):
            m.d.comb += [stash.write.eq(1), stash.at.eq(moving)]
            with m.If(room):
                m.d.comb += [write.eq(target), stash.valid.eq(0)]
            with m.Else():
                m.d.comb += [write.eq(victim), stash.entry.eq(victim_entry)]
            m.d.sync += moving.eq(Mux(moving == sizes.stash - 1, 0, moving + 1))
            m.next = "Return to the insertion"
        with m.State("Return to the insertion"):
            m.d.sync += [entry.eq(kept), waits.eq(0)]
            for bank in range(2):
                m.d.sync += rows[bank].eq(kept.digest[bank * sizes.row_bits :][: sizes.row_bits])
            m.next = "Read"
