"""ConnectionTable: a key that is held is found in every cycle, also while entries move, and one that is not is never found.

The proof is by induction and so holds for runs of any length: any order and any number of insertions, refusals,
deletions, moves and resets, with look-ups in every cycle. Only the table is small. `ATTEMPTS`, `PATIENCE` and the
random register are the real ones; their values are free in the induction.

One key (`digest`) and one flow (`kind` and `index`) are watched, any of each. What is assumed of who uses the table:

* streams keep their offers (`offer`);
* a flow is not inserted while it is held, under this or another digest;
* who deletes the flow while it is held names the rows of the digest that it was inserted with.

What is shown from outside: look-ups of the digest find the flow from the answer OK to the order to delete it;
from the answer to the deletion to the order of the next insertion they do not find it; in between either;
a second insertion of a digest that is held is answered DUPLICATE; answers keep the rules of streams.

`_contents`, `_change` and `_pipeline` strengthen this to an invariant: what is in the memories and in the stash, what the
state machine knows of it, and what the look-ups in work have seen of it.
"""

import inspect
import sys
from contextlib import contextmanager
from itertools import pairwise
from types import ModuleType

import pytest
from amaranth import *
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cover, Fragment
from amaranth.lib import data

from acceltcp.abi.messages import Status
from hw.config import TableSizes
from hw.table import connection_table, stash
from hw.table.connection_table import ConnectionTable
from hw.table.stash import Entry

from .prove import Harness, accept, check, free, induct, offer, reach


class Sizes(TableSizes):
    """A digest of one bit more than the rows that it selects: two keys per pair of rows."""

    @property
    def digest_bits(self):
        return 2 * self.row_bits + 1


SMALL = Sizes(index_bits=2, stash=2, ways=1, row_bits=1)


@contextmanager
def variables(*functions):
    """Local variables of functions as they return, by qualified name: the signals of an elaborated component."""
    found = {}

    def note(frame, event, _):
        if event == "return" and frame.f_code.co_qualname in functions:
            found[frame.f_code.co_qualname] = dict(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


def flow(entry):
    """Kind and index of an entry."""
    return Cat(entry.kind, entry.index)


def count(bits):
    """How many of them are set."""
    return sum(bits, C(0))


class Watched(Elaboratable):
    """A table, any user of it, and an account of one key and one flow.

    table: class of the table.
    inside: assert the invariant of its inside, too.
    hurry: to find a run soon: something is always to be inserted, nothing deleted. For no proof.
    """

    def __init__(self, sizes=SMALL, table=ConnectionTable, *, inside=False, hurry=False):
        self._sizes, self._inside, self._hurry = sizes, inside, hurry
        self._places = [(bank, way) for bank in range(2) for way in range(sizes.ways)]
        places, rows, memories = self._places, range(1 << sizes.row_bits), {}

        class Opened(table):
            def elaborate(self, platform):
                m = super().elaborate(platform)
                for bank, way in places:
                    memory = m.submodules[f"bank{bank}_way{way}"]
                    memories[bank, way] = [port.data for port in memory.read_ports]
                    for row in rows:
                        port = memory.read_port(domain="comb")
                        m.d.comb += port.addr.eq(row)
                        memories[bank, way, row] = port.data
                return m

        self._dut, self._memories = Opened(sizes), memories

    def elaborate(self, platform):
        m = Module()
        names = ("ConnectionTable._look_up", "ConnectionTable._change", "ConnectionTable._make_room", "Stash.elaborate")
        with variables(*names) as found:
            m.submodules.dut = fragment = Fragment.get(self._dut, platform)
        self._look_up, self._table, self._room, self._stash = (found[name] for name in names)
        self._on = lambda *states: Cat(fragment.generated["change"].ongoing(state) for state in states).any()
        self._account(m)
        self._ask(m)
        self._list_entries(m)
        if self._inside:
            self._contents(m)
            self._change(m)
            self._pipeline(m)
        self._cover(m)
        if self._hurry:
            port = self._dut.port
            m.d.comb += Assume(port.insert.valid & port.inserted.ready & ~port.delete.valid)
        return m

    def _account(self, m):
        """What the user of the table knows: taken from the order to insert, held from the answer OK, ..."""
        port, sizes = self._dut.port, self._sizes
        self.digest, self.flow = Signal(sizes.digest_bits), Signal(len(flow(port.insert.p)))
        m.d.comb += [self.digest.eq(AnyConst(len(self.digest))), self.flow.eq(AnyConst(len(self.flow)))]
        inserts, deletes = offer(m, port.insert), offer(m, port.delete)
        answers = accept(m, port.inserted), accept(m, port.deleted)

        self.taken, self.settled, self.leaving = Signal(), Signal(), Signal()
        self.owner = Signal(sizes.digest_bits)  # what the watched flow was inserted with
        self.again = Signal()  # this inserts the digest a second time
        with m.If(inserts):
            m.d.sync += self.again.eq(self.settled & (self.owner == self.digest) & (port.insert.p.digest == self.digest))
            with m.If(flow(port.insert.p) == self.flow):
                m.d.comb += Assume(~self.taken)
                m.d.sync += [self.taken.eq(1), self.owner.eq(port.insert.p.digest)]
        with m.If(deletes & self.taken & (flow(port.delete.p) == self.flow)):
            m.d.comb += Assume(Value.cast(port.delete.p.rows) == self.owner[: 2 * sizes.row_bits])
            m.d.sync += self.leaving.eq(1)
        status = port.inserted.p.status
        accepted, refused = Signal(), Signal()
        self.held, self.gone = Signal(), Signal()
        m.d.comb += [
            accepted.eq(port.inserted.valid & (status == Status.OK)),
            refused.eq(port.inserted.valid & (status != Status.OK)),
            self.held.eq(self.taken & ~self.leaving & (self.settled | accepted)),
            self.gone.eq(~self.taken | (self.leaving & port.deleted.valid) | (~self.settled & refused)),
        ]
        with m.If(Cat(answers).any()):
            m.d.sync += [self.settled.eq(self.held), self.taken.eq(~self.gone), self.leaving.eq(0), self.again.eq(0)]
        with m.If(self.again & port.inserted.valid):
            m.d.comb += Assert(status == Status.DUPLICATE)

    def _ask(self, m):
        """Look up anything in any cycle. `self.asked[k]`: what was asked for k cycles ago, and must or may be found."""
        dut = self._dut
        layout = data.StructLayout({"valid": 1, "watched": 1, "must": 1, "never": 1})
        self.asked = asked = [Signal(layout, name=f"asked{k}") for k in range(dut.latency + 1)]
        watched, ours = Signal(), Signal()
        m.d.comb += [
            dut.i_valid.eq(free(m)),
            dut.i_digest.eq(free(m, len(dut.i_digest))),
            watched.eq(dut.i_valid & (dut.i_digest == self.digest)),
            ours.eq(self.owner == self.digest),
            asked[0].valid.eq(dut.i_valid),
            asked[0].watched.eq(watched),
            asked[0].must.eq(watched & ours & self.held),
            asked[0].never.eq(watched & ~(ours & ~self.gone)),
        ]
        for before, after in pairwise(asked):
            m.d.sync += after.eq(before)
        found = dut.o.hit & (flow(dut.o) == self.flow)
        m.d.comb += [
            Assert(dut.o_valid == asked[-1].valid),
            Assert(~asked[-1].must | found),
            Assert(~asked[-1].never | ~found),
        ]

    def _list_entries(self, m):
        """All places of the table, as a look-up of this cycle sees them: used, entry, whether it may lie there."""
        sizes, stash, clearing = self._sizes, self._stash, self._table["clearing"]
        self.in_cells, self.in_stash = [], []
        for bank, way in self._places:
            for row in range(1 << sizes.row_bits):
                slot, used = self._memories[bank, way, row], Signal(name=f"used{bank}_{way}_{row}")
                m.d.comb += used.eq(slot.used & ~clearing)
                self.in_cells.append((used, slot.entry, self._row(slot.entry.digest, bank) == row))
        for k, entry in enumerate(stash["entries"]):
            # The stash compares a cycle later than the memories read: with the change that waits.
            now, used, seen = stash["write"] & (stash["at"] == k), Signal(name=f"stashed{k}"), Signal(Entry(sizes))
            m.d.comb += [
                used.eq(Mux(now, stash["valid"], stash["used"][k])),
                seen.eq(Mux(now, Value.cast(stash["new"]), Value.cast(entry))),
            ]
            self.in_stash.append((used, seen, C(1)))

    def _row(self, digest, bank):
        return digest[bank * self._sizes.row_bits :][: self._sizes.row_bits]

    def _contents(self, m):
        """The digest lies in one place at most; the flow in one if it is held, else in none; both where they belong."""
        on, clearing, at = self._on, self._table["clearing"], self._table["at"]
        everything = self.in_cells + self.in_stash
        stored = Signal()  # from the write to the write
        m.d.comb += stored.eq(self.taken & ~self.gone & (self.settled | self.held))
        m.d.comb += [
            Assert(count(used & (entry.digest == self.digest) for used, entry, _ in everything) <= 1),
            Assert(count(used & (flow(entry) == self.flow) for used, entry, _ in everything) == stored),
            Assert(clearing == on("Clear")),
        ]
        for used, entry, belongs in everything:
            with m.If(used & (entry.digest == self.digest)):
                m.d.comb += Assert(belongs)
            with m.If(used & (flow(entry) == self.flow)):
                m.d.comb += Assert(belongs & (entry.digest == self.owner))
        with m.If(clearing):
            m.d.comb += Assert(~self.taken & ~self._stash["used"].any() & ~self._stash["write"])
            for bank, way in self._places:
                for row in range(1 << self._sizes.row_bits):
                    m.d.comb += Assert((row >= at) | ~self._memories[bank, way, row].used)

    def _change(self, m):
        """What the state machine has in hand, and that what it has read is still so."""
        on, table, stash, sizes = self._on, self._table, self._stash, self._sizes
        entry, rows, waits, operation = (table[name] for name in ("entry", "rows", "waits", "operation"))
        for_room = ("Read for room", "Move for room", "Return to the insertion")
        inserting, deleting, moving, in_hand = Signal(), Signal(), Signal(), Signal(Entry(sizes))
        m.d.comb += [
            inserting.eq(on("Insert", "Make room", *for_room, "Tell") | (on("Read") & (operation == 0))),
            deleting.eq(on("Delete", "Tell of the deletion") | (on("Read") & (operation == 1))),
            moving.eq(on("Move") | (on("Read") & (operation == 2))),
            in_hand.eq(Mux(on(*for_room), Value.cast(self._room["kept"]), Value.cast(entry))),
            Assert(operation != 3),
            Assert(~inserting | (operation == 0)),
            Assert(~deleting | (operation == 1)),
            Assert(~on("Move", "Let it settle") | (operation == 2)),
            Assert(~self.settled | self.taken),
            Assert(~self.leaving | (self.settled & deleting)),
            Assert(~self.taken | self.settled | inserting),
            Assert(~self.again | (inserting & self.settled & (self.owner == self.digest))),
        ]
        ours = flow(in_hand) == self.flow
        with m.If(inserting):
            m.d.comb += [
                Assert(ours == (self.taken & ~self.settled)),
                Assert(~ours | (in_hand.digest == self.owner)),
                Assert(~self.again | (in_hand.digest == self.digest)),
            ]
        with m.If(deleting):
            m.d.comb += [
                Assert((ours & self.taken) == self.leaving),
                Assert(~self.leaving | (Value.cast(rows) == self.owner[: 2 * sizes.row_bits])),
            ]
        walking = on("Read for room", "Move for room")
        with m.If((inserting & ~on(*for_room)) | walking | moving):
            m.d.comb += Assert(Value.cast(rows) == entry.digest[: 2 * sizes.row_bits])

        # The entry on its walk is the one in the stash. Changes of the stash are over before the next reading.
        for where, when in ((table["moving"], moving), (self._room["moving"], walking)):
            m.d.comb += Assert(where < sizes.stash)
            for k, stashed in enumerate(stash["entries"]):
                with m.If(when & (where == k)):
                    m.d.comb += Assert(stash["used"][k] & (entry == stashed))
        m.d.comb += [
            Assert(~(on("Make room") | walking) | stash["used"].all()),
            Assert(
                ~stash["write"]
                | on("Tell", "Tell of the deletion", "Let it settle", "Return to the insertion")
            ),
            Assert(~stash["write"] | (stash["at"] < sizes.stash)),
            Assert(table["place"] < len(self._places)),
        ]

        # Reading: the memory, its output register, the judgement.
        judged, reading = on("Insert", "Delete", "Move", "Move for room"), on("Read", "Read for room")
        m.d.comb += Assert(~reading | (waits <= 3))
        for number, (bank, way) in enumerate(self._places):
            _, read = self._memories[bank, way]
            slot = Signal.like(read, name=f"slot{bank}_{way}")
            with m.Switch(rows[bank]):
                for row in range(1 << sizes.row_bits):
                    with m.Case(row):
                        m.d.comb += slot.eq(self._memories[bank, way, row])
            with m.If(judged | (reading & (waits >= 1))):
                m.d.comb += Assert(read == slot)
            with m.If(judged | (reading & (waits >= 2))):
                m.d.comb += Assert(table["seen"][number] == slot)
            with m.If(judged | (reading & (waits >= 3))):
                m.d.comb += [
                    Assert(table["used"][number] == slot.used),
                    Assert(table["same"][number] == (slot.used & (slot.entry.digest == entry.digest))),
                    Assert(table["fits"][number] == (slot.used & (flow(slot.entry) == flow(entry)))),
                ]
        with m.If(judged | (reading & (waits >= 1))):
            for k, stashed in enumerate(stash["entries"]):
                used = stash["used"][k]
                m.d.comb += [
                    Assert(table["same_stash"][k] == (used & (stashed.digest == entry.digest))),
                    Assert(table["fits_stash"][k] == (used & (flow(stashed) == flow(entry)))),
                ]

    def _pipeline(self, m):
        """What a look-up has seen after one, two and three cycles: one place at most, and what must be found."""
        look, stash = self._look_up, self._stash
        stashed = zip(stash["used"], stash["entries"], strict=True)
        stages = [
            [(slot.used, slot.entry) for slot in (self._memories[place][0] for place in self._places)] + [*stashed],
            [(slot.used, slot.entry) for slot in look["slots"]],
            [*zip(look["match"], look["values"], strict=True)],
        ]

        def compare(entries):
            return [(used & (entry.digest == self.digest), flow(entry)) for used, entry in entries]

        stages[0] = compare(stages[0])
        stages[1] = compare(stages[1]) + [*zip(stash["matches"], stash["values"], strict=True)]
        for k, (asked, hits) in enumerate(zip(self.asked[1:-1], stages, strict=True)):
            live = look["valid"][k]
            found = Cat(hit & (value == self.flow) for hit, value in hits).any()
            m.d.comb += [
                Assert(~asked.watched | ~live | (count(hit for hit, _ in hits) <= 1)),
                Assert(~asked.must | (live & found)),
                Assert(~asked.never | ~live | ~found),
            ]
        for k, asked in enumerate(self.asked[1:]):
            m.d.comb += [Assert(asked.valid == look["valids"][k]), Assert(asked.watched | ~(asked.must | asked.never))]
        with m.If(self.asked[1].watched):
            m.d.comb += Assert((look["digest"][0] == self.digest) & (stash["digest"] == self.digest))
        with m.If(self.asked[2].watched):
            m.d.comb += Assert(look["digest"][1] == self.digest)

    def _cover(self, m):
        """The key that must be found is kicked out of its slot, or leaves the stash, in the very cycle of a look-up."""
        in_cells, in_stash, was_in_cells, was_in_stash = (Signal() for _ in range(4))
        for where, entries in ((in_cells, self.in_cells), (in_stash, self.in_stash)):
            m.d.comb += where.eq(Cat(used & (entry.digest == self.digest) for used, entry, _ in entries).any())
        must, before = self.asked[0].must, self.asked[1].must
        m.d.sync += [was_in_cells.eq(in_cells), was_in_stash.eq(in_stash)]
        m.d.comb += [
            Cover(before & was_in_cells & must & in_stash & ~in_cells),
            Cover(before & was_in_stash & must & in_cells & ~in_stash),
        ]


def any_time(proof):
    """The same with a reset in any cycle: the memories keep what was in them."""

    def body(m):
        m.submodules.watched = ResetInserter(free(m))(proof)

    return Harness(body)


@pytest.mark.parametrize(
    "sizes",
    [
        SMALL,
        Sizes(index_bits=3, stash=2, ways=2, row_bits=1),
        pytest.param(Sizes(index_bits=3, stash=3, ways=1, row_bits=2), marks=pytest.mark.long),
    ],
    ids=["one-way", "two-ways", "four-rows"],
)
def test_held_is_found_and_nothing_else(sizes):
    induct(any_time(Watched(sizes, inside=True)), steps=2)


def test_moves_happen_in_the_cycle_of_a_look_up():
    reach(Watched(hurry=True), depth=32)


def broken(module, old, new):
    """The table with a piece of the source of it or of its stash replaced."""
    made = {}
    for original in (stash, connection_table):
        text = inspect.getsource(original)
        if original is module:
            assert text.count(old) == 1, f"{old!r} is not in {module.__name__} once"
            text = text.replace(old, new)
        made[original] = copy = ModuleType(original.__name__)
        copy.__package__ = original.__package__
        exec(compile(text, original.__file__, "exec"), vars(copy))
    made[connection_table].Stash = made[stash].Stash
    return made[connection_table].ConnectionTable


@pytest.mark.parametrize(
    "depth, hurry, fault",
    [
        (8, False, (connection_table, "match[number].eq(slot.used & (", "match[number].eq((")),
        (16, False, (connection_table, "[write.eq(~C(0, count)), written", "[write.eq(0), written")),
        (21, False, (connection_table, "slot.used & (slot.entry.index == entry.index) &", "slot.used &")),
        (28, True, (connection_table, "match[-1].eq(stash.hit)", "match[-1].eq(0)")),
        (34, True, (stash, "m.d.sync += [write.eq(self.write)", "m.d.comb += [write.eq(self.write)")),
        (34, True, (stash, "m.d.sync += digest.eq(self.digest)", "m.d.comb += digest.eq(self.digest)")),
    ],
    ids=[
        "free slots are searched",
        "memories are not cleared",
        "any index is deleted",
        "the stash is not searched",
        "the stash changes before the bank",
        "the stash is searched before the bank",
    ],
)
def test_broken_table_hides_or_invents_an_entry(depth, hurry, fault):
    """There is a run from power-up in which a look-up goes wrong."""
    table = broken(*fault)
    with pytest.raises(AssertionError, match=r"test_connection_table\.py"):
        check(any_time(Watched(table=table, hurry=hurry)), depth=depth)


@pytest.mark.parametrize(
    "fault",
    [
        (connection_table, "same.any() | same_stash.any()", "same.any()"),
        (connection_table, "stash.valid.eq(0)]\n                    m.d.sync += attempts", "]\n                    m.d.sync += attempts"),
        (connection_table, "m.d.sync += [entry.eq(kept), waits", "m.d.sync += [waits"),
        (connection_table, "waits == 3):\n                    with m.Switch", "waits == 1):\n                    with m.Switch"),
    ],
    ids=["a duplicate of the stash", "left in the stash", "the insertion loses its entry", "read too soon"],
)
def test_broken_table_is_not_proved(fault):
    table = broken(*fault)
    with pytest.raises(AssertionError, match="not inductive"):
        induct(any_time(Watched(table=table, inside=True)), steps=2)
