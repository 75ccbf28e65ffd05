"""`SpliceEnd`: takes ended splices out of the connection table and tells the host.

    ended --> FIFO --> read the pair --> delete both entries --> SPLICE_SIDE, SPLICE_DONE --> its index comes back
    undo (of an insertion) ------------> delete one entry ----------------------------------> its index comes back

* Latency: about 40 cycles from `ended` to the first event, when nothing else is in work. Throughput: one splice in that time.
* Registered: `events` and all requests come from registers through little logic; `reads` and `delete` never wait for events.
* Overflow: cannot happen: the FIFO has room for all pairs, and each ends once while it is in use.
* Reset: forgets everything.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.messages import SPLICE_EVENT, EventType, Status

from ..abi import message_layout
from ..dma.events import EventRequest
from ..stream.fifo import StreamFifo
from ..table.records import Kind, TablePort
from .splice_records import SPLICE_INDEX_BITS, SplicePair, SpliceSideState

__all__ = ["SpliceEnd", "SpliceUndo"]


def SpliceUndo(config):  # noqa: N802
    """An index was taken in vain. `entry`: side 0 is in the connection table, in these rows."""
    rows = data.ArrayLayout(config.table.row_bits, 2)
    return data.StructLayout({"index": config.splice_bits, "entry": 1, "rows": rows})


class SpliceEnd(wiring.Component):
    """See the module's text.

    Members
    -------
    ended, reads, read: as `hw.tcp.splice_engine.SpliceEngine` has them.
    undo: In(stream of SpliceUndo(config)).
    delete, deleted: to the connection table, as in `TablePort`.
    returned: Out(stream of {"index"}): never stalled.
    events: Out(stream of EventRequest).
    untold: the host has not been told yet of a splice that has begun: no end is told.
    hold: put no new event on offer. idle: none is on offer. busy: something is inside.
    """

    def __init__(self, config):
        self._config = config
        table = TablePort(config.table).members
        index = config.splice_bits
        rows = data.ArrayLayout(config.table.row_bits, 2)
        super().__init__(
            {
                "ended": In(data.StructLayout({"valid": 1, "index": index})),
                "reads": Out(stream.Signature(data.StructLayout({"way": index + 1}))),
                "read": In(data.StructLayout({"valid": 1, "rows": rows, "pair": SplicePair})),
                "undo": In(stream.Signature(SpliceUndo(config))),
                "delete": table["delete"],
                "deleted": table["deleted"],
                "returned": Out(stream.Signature(data.StructLayout({"index": index}))),
                "events": Out(stream.Signature(EventRequest)),
                "untold": In(1),
                "hold": In(1),
                "idle": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.waiting = waiting = StreamFifo(config.splice_bits, config.splices, kind="block")
        m.d.comb += [waiting.i.valid.eq(self.ended.valid), waiting.i.payload.eq(self.ended.index)]

        pair = Signal(SplicePair, reset_less=True)
        pair_index = Signal(config.splice_bits, reset_less=True)
        telling, told = Signal(), Signal()  # `pair` is to be told; has been
        self._delete(m, waiting, pair, pair_index, telling, told)
        self._tell(m, pair, pair_index, telling, told)
        return m

    def _delete(self, m, waiting, pair, pair_index, telling, told):
        undo = self.undo
        rows = Signal.like(undo.p.rows, reset_less=True)
        side, undoing = Signal(), Signal()
        index = Mux(undoing, undo.p.index, waiting.o.payload)
        m.d.comb += [
            self.reads.p.way.eq(Cat(side, waiting.o.payload)),
            self.delete.p.rows.eq(rows),
            self.delete.p.kind.eq(Kind.SPLICE),
            self.delete.p.index.eq(Cat(side, index)),
            self.returned.p.index.eq(Mux(told, pair_index, undo.p.index)),
            self.returned.valid.eq(told),
        ]
        with m.If(told):
            m.d.sync += telling.eq(0)
        with m.FSM(name="delete") as fsm:
            m.d.comb += self.busy.eq(
                ~fsm.ongoing("Wait") | undo.valid | self.ended.valid | (waiting.level != 0) | telling
            )
            with m.State("Wait"):
                m.d.sync += [side.eq(0), undoing.eq(undo.valid)]
                with m.If(undo.valid):
                    m.d.sync += rows.eq(undo.p.rows)
                    m.next = "Give the index back"
                    with m.If(undo.p.entry):
                        m.next = "Delete"
                with m.Elif(waiting.o.valid & ~telling):
                    m.next = "Read"
            with m.State("Read"):
                m.d.comb += self.reads.valid.eq(1)
                with m.If(self.reads.ready):
                    m.next = "Take what was read"
            with m.State("Take what was read"):
                with m.If(self.read.valid):
                    m.d.sync += [rows.eq(self.read.rows), pair.eq(self.read.pair)]
                    m.next = "Delete"
            with m.State("Delete"):
                m.d.comb += self.delete.valid.eq(1)
                with m.If(self.delete.ready):
                    m.next = "Wait for the table"
            with m.State("Wait for the table"):
                m.d.comb += self.deleted.ready.eq(1)
                with m.If(self.deleted.valid):
                    with m.If(undoing):
                        m.next = "Give the index back"
                    with m.Elif(~side):
                        m.d.sync += side.eq(1)
                        m.next = "Read"
                    with m.Else():
                        m.d.comb += waiting.o.ready.eq(1)
                        m.d.sync += [telling.eq(1), pair_index.eq(waiting.o.payload)]
                        m.next = "Wait"
            with m.State("Give the index back"):
                # The other one that gives back goes first.
                with m.If(~told):
                    m.d.comb += [self.returned.valid.eq(1), undo.ready.eq(1)]
                    m.next = "Wait"

    def _tell(self, m, pair, index, telling, told):
        side = Signal()
        chosen = Signal(SpliceSideState)
        event = data.View(message_layout(SPLICE_EVENT), Value.cast(self.events.p.event))
        fields = ("snd_end", "ack", "tsval", "packets", "octets", "fin")
        m.d.comb += [
            Value.cast(chosen).eq(Mux(side, Value.cast(pair.sides[1]), Value.cast(pair.sides[0]))),
            self.events.p.queue.eq(pair.queue),
            event.type.eq(Mux(side, EventType.SPLICE_DONE, EventType.SPLICE_SIDE)),
            event.queue.eq(pair.queue),
            event.splice.eq(Cat(index, C(0, SPLICE_INDEX_BITS - len(index)), pair.generation)),
            *(event[name].eq(chosen[name]) for name in fields),
        ]
        with m.If(side):
            m.d.comb += [
                event.status.eq(pair.status),
                event.reset_by.eq((pair.status == Status.RESET) & pair.reset_by),
            ]
        with m.FSM(name="tell") as fsm:
            m.d.comb += self.idle.eq(~fsm.ongoing("Offer"))
            with m.State("Wait"):
                with m.If(telling & ~self.untold & ~self.hold):
                    m.next = "Offer"
            with m.State("Offer"):
                m.d.comb += self.events.valid.eq(1)
                with m.If(self.events.ready):
                    m.d.sync += side.eq(~side)
                    m.next = "Wait"
                    with m.If(side):
                        m.next = "Told"
            with m.State("Told"):
                m.d.comb += told.eq(1)
                m.next = "Wait"
