"""`Sweeper`: walks a state memory, so that every record's timer is looked at in time, and finds free records.

Records come in groups of 64; one bit per group says whether any of them may be in use. A *lap* visits every group
whose bit is set. It begins `LAP_STEPS` timer steps after the last one began, `AGAIN_STEPS` if something that was due had
to be put off; while nothing is in use none begins. A *search* goes on, group by group, from where the last one ended,
while free records are wanted, and takes turns with a lap; once it has been all around in vain it rests until a record is
freed. The first lap after a reset clears all records.

A visit is a request; its operation comes back `LATENCY` cycles after the grant with what was found. (Clearing is not
answered.)

* Throughput: one visit per cycle when granted in every cycle; a group costs 64 visits and 10 cycles, one whose bit is
  clear costs a lap 2 cycles.
* Registered: requests. Overflow: cannot happen. Reset: starts with the clearing lap.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["GROUP", "LAP_STEPS", "Sweeper"]

GROUP = 64
"""Records of a group."""

LAP_STEPS = 8
"""Timer steps between the beginnings of two laps, at least."""

AGAIN_STEPS = 2
"""The same behind a lap in which not everything due could be done. (Not 0: what has been deleted is found gone by the next
lap, by which no segment that was looked up before may be on its way.)"""


class Sweeper(wiring.Component):
    """Sweeps `depth` records (a multiple of 64).

    Parameters
    ----------
    depth: records.
    latency: cycles from grant to result.

    Members
    -------
    step: a timer step has passed.
    wanted: free records are wanted. exhausted: there are none.
    freed: a record has become free. put_off: something due could not be done in this lap.
    request, index, clear: a visit; with `clear` the record is to be cleared.
    whole: the visit belongs to a lap, not to a search.
    grant: it is under way.
    result, used, given: the oldest visit has ended; the record is in use; it was free and has been given away.
    install, install_index: this record comes into use.
    probe, probe_used: whether a group may hold anything, a cycle later.
    ready: the clearing lap is over.
    busy: a lap is under way or due.
    """

    def __init__(self, depth, latency):
        self._depth, self._latency = depth, latency
        groups = range(max(2, depth // GROUP))
        super().__init__(
            {
                "step": In(1),
                "wanted": In(1),
                "exhausted": Out(1),
                "freed": In(1),
                "put_off": In(1),
                "request": Out(1),
                "index": Out(range(depth)),
                "clear": Out(1),
                "whole": Out(1),
                "grant": In(1),
                "result": In(1),
                "used": In(1),
                "given": In(1),
                "install": In(1),
                "install_index": In(range(depth)),
                "probe": In(groups),
                "probe_used": Out(1),
                "ready": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        groups = self._depth // GROUP
        inner_bits = (GROUP - 1).bit_length()
        m.submodules.occupied = occupied = Memory(
            shape=1, depth=max(2, groups), init=[], attrs={"ram_style": "distributed"}
        )
        look, probe, mark = occupied.read_port(domain="comb"), occupied.read_port(domain="comb"), occupied.write_port()

        lap, lap_group = Signal(), Signal(range(max(2, groups)))
        search_group = Signal(range(max(2, groups)))
        searching = Signal()  # the group now looked at
        turn = Signal()  # the lap has had its group
        # Groups searched since a free record was found or made; the first may have been half over by then.
        in_vain = Signal(range(groups + 2))
        group = Signal(range(max(2, groups)))
        inner = Signal(inner_bits)
        open_visits = Signal(range(self._latency + GROUP + 1))
        since = Signal(range(LAP_STEPS + 1), init=LAP_STEPS)
        any_given, any_used, touched = Signal(), Signal(), Signal()
        again = Signal()  # the next lap is due early
        inhabited = Signal()  # the last lap has seen a group in use, or a record has come into use since it began
        occupied_here = Signal()
        install_group = self.install_index[inner_bits:] if groups > 1 else C(0, 1)

        m.d.comb += [
            look.addr.eq(group),
            probe.addr.eq(self.probe),
            self.index.eq(Cat(inner, group)),
            mark.addr.eq(Mux(self.install, install_group, group)),
            mark.data.eq(self.install),
        ]
        m.d.sync += [
            self.probe_used.eq(probe.data),
            open_visits.eq(open_visits + (self.request & self.grant & ~self.clear) - self.result),
        ]
        with m.If(self.step & (since != LAP_STEPS)):
            m.d.sync += since.eq(since + 1)
        with m.If(self.result):
            m.d.sync += [any_used.eq(any_used | self.used), any_given.eq(any_given | self.given)]
        with m.If(self.put_off):
            m.d.sync += again.eq(1)
        with m.If(self.install):
            m.d.comb += mark.en.eq(1)
            with m.If(install_group == group):
                m.d.sync += touched.eq(1)

        due, hungry, last = Signal(), Signal(), Signal()
        m.d.comb += [
            due.eq((since == LAP_STEPS) | (again & (since >= AGAIN_STEPS))),
            hungry.eq(self.wanted & ~self.exhausted),
            last.eq(group == groups - 1),
            self.whole.eq(~searching),
            self.busy.eq(1),
        ]
        with m.FSM(name="sweep"):
            with m.State("Clear"):
                m.d.comb += [self.request.eq(1), self.clear.eq(1)]
                with m.If(self.grant):
                    m.d.sync += inner.eq(inner + 1)
                    with m.If(inner.all()):
                        m.next = "Clear the group's bit"
            with m.State("Clear the group's bit"):
                m.d.comb += mark.en.eq(1)
                m.d.sync += group.eq(group + 1)
                m.next = "Clear"
                with m.If(last):
                    m.d.sync += self.ready.eq(1)
                    m.next = "Choose"
            with m.State("Choose"):
                m.d.comb += self.busy.eq(lap | due | hungry)
                with m.If(due & ~lap):
                    m.d.sync += [lap.eq(inhabited), inhabited.eq(0), since.eq(0), again.eq(0)]
                with m.Elif(hungry & (~lap | turn)):
                    m.d.sync += [searching.eq(1), turn.eq(0), group.eq(search_group)]
                    m.next = "Look at a group"
                with m.Elif(lap):
                    m.d.sync += [searching.eq(0), turn.eq(1), group.eq(lap_group)]
                    m.next = "Look at a group"
            with m.State("Look at a group"):
                # (A group comes into use after this at the earliest by an insertion, whose timer is not due yet.)
                m.d.sync += [inner.eq(0), any_used.eq(0), any_given.eq(0), touched.eq(0), occupied_here.eq(look.data)]
                m.next = "Skip or visit"
            with m.State("Skip or visit"):
                with m.If(occupied_here | searching):
                    m.d.sync += inhabited.eq(inhabited | ~searching)
                    m.next = "Visit"
                with m.Else():
                    m.d.sync += [group.eq(group + 1), lap_group.eq(Mux(last, 0, lap_group + 1)), lap.eq(~last)]
                    m.next = "Look at a group"
                    with m.If(last | hungry):
                        m.next = "Choose"
            with m.State("Visit"):
                m.d.comb += self.request.eq(1)
                with m.If(self.grant):
                    m.d.sync += inner.eq(inner + 1)
                    with m.If(inner.all()):
                        m.next = "Wait for the last result"
            with m.State("Wait for the last result"):
                with m.If(open_visits == 0):
                    m.next = "Next group"
                    # Nothing in use: the bit goes, unless a record came into use meanwhile.
                    with m.If(~any_used & ~touched & ~self.install):
                        m.d.comb += mark.en.eq(1)
            with m.State("Next group"):
                m.next = "Choose"
                with m.If(~searching):
                    m.d.sync += [lap_group.eq(Mux(last, 0, lap_group + 1)), lap.eq(~last)]
                with m.Else():
                    # A group of which some are left when enough have been found is searched again next time.
                    with m.If(self.wanted | ~any_given):
                        m.d.sync += search_group.eq(Mux(last, 0, search_group + 1))
                    with m.If(~any_given):
                        m.d.sync += in_vain.eq(in_vain + 1)
                        with m.If(in_vain == groups):
                            m.d.sync += self.exhausted.eq(1)
        with m.If(self.install):
            m.d.sync += inhabited.eq(1)
        with m.If(self.freed):
            m.d.sync += self.exhausted.eq(0)
        with m.If(self.freed | self.result & self.given):
            m.d.sync += in_vain.eq(0)
        return m
