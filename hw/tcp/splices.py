"""`Splices`: pairs of connections that the NIC forwards to each other; wiring only, but for SPLICE_UPDATE.

    i ----------> SpliceEngine ------------------> o, records
    commands ---> SpliceInstall --> engine, connection table
                  SpliceEnd <------ engine; --> connection table, SpliceIndices --> SpliceInstall
    updates ----> engine

For latency, throughput and overflow see the parts; SPLICE_UPDATE takes about 10 cycles. Reset: forgets all splices.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.messages import Status
from acceltcp.abi.registers import COUNTERS

from ..counts import counts_layout
from ..csr.splice import SplicePort
from ..dma.events import EventRequest
from ..dma.tx import COMMANDS, TxCommand
from ..table.records import TablePort
from .frame_table import FrameEntry, TableRequest
from .splice_end import SpliceEnd
from .splice_engine import SpliceEngine
from .splice_indices import SpliceIndices
from .splice_install import SpliceInstall
from .splice_records import GENERATION_BITS, SPLICE_INDEX_BITS, SpliceInput, SpliceOutput, SpliceRecord

__all__ = ["Splices"]

EVENTS = 2
"""Sources of events."""

_COUNTS = (
    # (Hops are the rewriter's.)
    *(c.name for c in COUNTERS if c.name.startswith("splice_") and c.name != "splice_drop_hops"),
    "commands",
    "command_errors",
)


class Splices(wiring.Component):
    """See the module's text.

    Members
    -------
    i, o: In(stream of SpliceInput), Out(stream of SpliceOutput): every packet, in order.
    records: Out(stream of SpliceRecord): packets to rewrite and send, in order.
    commands: In(stream of TxCommand): SPLICE commands; room: so many are taken at once.
    updates, updated: In(stream of {"splice", "copy"}), Out(stream of {"status"}): SPLICE_UPDATE commands.
    table_requests, entries: to the reader of tables (`FrameTable`).
    insert, inserted, delete, deleted: to the connection table, as in `TablePort`.
    events: Out(stream of EventRequest), two of them: COMMAND_DONE; SPLICE_SIDE and SPLICE_DONE. The end of a splice is offered when
        its beginning has been taken.
    port: In(SplicePort(config)): registers.
    key, ready: the table's secret; it can be used.
    tick: of time.
    hold: put no news of ends on offer. (Commands that have been taken are carried out: their tables are read while they are there.)
    commanding: a command is in work. idle: none is, and no event is on offer. busy: there is work without further input but `tick`.
    counts: strobes.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(SpliceInput(config))),
                "o": Out(stream.Signature(SpliceOutput)),
                "records": Out(stream.Signature(SpliceRecord)),
                "commands": In(stream.Signature(TxCommand)),
                "room": Out(range(COMMANDS + 1)),
                "updates": In(stream.Signature(data.StructLayout({"splice": 32, "copy": 1}))),
                "updated": Out(stream.Signature(data.StructLayout({"status": 8}))),
                "table_requests": Out(stream.Signature(TableRequest)),
                "entries": In(stream.Signature(FrameEntry)),
                **TablePort(config.table).members,
                "events": Out(stream.Signature(EventRequest)).array(EVENTS),
                "port": In(SplicePort(config)),
                "key": In(128),
                "ready": In(1),
                "tick": In(1),
                "hold": In(1),
                "commanding": Out(1),
                "idle": Out(1),
                "busy": Out(1),
                "counts": Out(counts_layout(*_COUNTS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.engine = engine = SpliceEngine(config)
        m.submodules.install = install = SpliceInstall(config)
        m.submodules.end = end = SpliceEnd(config)
        m.submodules.indices = indices = SpliceIndices(config)

        # Packets.
        connect(m, flipped(self.i), engine.i)
        connect(m, engine.o, flipped(self.o))
        connect(m, engine.records, flipped(self.records))

        # A splice's life.
        for name in ("commands", "entries", "inserted"):
            connect(m, flipped(getattr(self, name)), getattr(install, name))
        for name in ("table_requests", "insert"):
            connect(m, getattr(install, name), flipped(getattr(self, name)))
        connect(m, indices.free, install.free)
        connect(m, install.installs, engine.installs)
        connect(m, install.undo, end.undo)
        connect(m, end.reads, engine.reads)
        connect(m, end.delete, flipped(self.delete))
        connect(m, flipped(self.deleted), end.deleted)
        connect(m, end.returned, indices.returned)
        connect(m, install.events, flipped(self.events[0]))
        connect(m, end.events, flipped(self.events[1]))

        m.d.comb += [
            self.room.eq(install.room),
            install.key.eq(self.key),
            install.ready.eq(self.ready),
            install.exhausted.eq(indices.exhausted),
            *(getattr(engine, name).eq(getattr(install, name)) for name in ("way_write", "way_index", "way")),
            engine.used_end.eq(indices.used_end),
            engine.any_held.eq(indices.held != 0),
            engine.tick.eq(self.tick),
            engine.linger.eq(self.port.linger),
            end.ended.eq(engine.ended),
            end.read.eq(engine.read),
            end.untold.eq(install.untold),
            end.hold.eq(self.hold),
            indices.packet.eq(self.i.valid & self.i.ready),
            indices.none.eq(~self.i.valid),
            self.port.held.eq(indices.held),
            self.commanding.eq(~install.idle),
            self.idle.eq(install.idle & end.idle),
        ]
        updating = self._update(m, engine, indices)
        m.d.comb += self.busy.eq(updating | Cat(part.busy for part in (engine, install, end, indices)).any())
        for name in self.counts.shape().members:
            (source,) = (part.counts[name] for part in (engine, install) if name in part.counts.shape().members)
            m.d.comb += self.counts[name].eq(source)
        return m

    def _update(self, m, engine, indices):
        """SPLICE_UPDATE; returns whether one is in work."""
        splice = Signal(data.StructLayout({"index": SPLICE_INDEX_BITS, "generation": GENERATION_BITS}))
        found = Signal()
        m.d.comb += [
            Value.cast(splice).eq(self.updates.p.splice),
            engine.updates.p.index.eq(splice.index),
            engine.updates.p.generation.eq(splice.generation),
            engine.updates.p.copy.eq(self.updates.p.copy),
            self.updated.p.status.eq(Mux(found, Status.OK, Status.NOT_FOUND)),
        ]
        updating = Signal()
        with m.FSM(name="update") as fsm:
            m.d.comb += updating.eq(~fsm.ongoing("Wait") | self.updates.valid)
            with m.State("Wait"):
                m.d.sync += found.eq(0)
                with m.If(self.updates.valid):
                    m.next = "Update"
                    # Of what has not been given out since the reset the memory knows nothing.
                    with m.If(splice.index >= indices.used_end):
                        m.d.comb += self.updates.ready.eq(1)
                        m.next = "Tell"
            with m.State("Update"):
                m.d.comb += engine.updates.valid.eq(1)
                with m.If(engine.updates.ready):
                    m.d.comb += self.updates.ready.eq(1)
                    m.next = "Wait for the engine"
            with m.State("Wait for the engine"):
                m.d.sync += found.eq(engine.updated.found)
                with m.If(engine.updated.valid):
                    m.next = "Tell"
            with m.State("Tell"):
                m.d.comb += self.updated.valid.eq(1)
                with m.If(self.updated.ready):
                    m.next = "Wait"
        return updating
