# amaranth: UnusedElaboratable=no
# (The members of Splices are asked of parts made for that only.)
"""`Flows`: the connection table, connection teardown and splices; wiring only (docs/teardown.md, docs/splice.md).

    connection -> ConnectionLookup -> lookup            close -> Close -------+-> FlowTransmit -> frames
                      ^  ^                                        |  |        |        |
              delete  |  |  insert                                |  +-> FrameTable <--+ -> read
                      |  +----------------------------------------+
    packets, updates -> Teardown -> jobs (to FlowTransmit), replies, events
    splice_packets, splice commands -> Splices -> records, events; to ConnectionLookup and FrameTable like Close

For latency, throughput and overflow see the parts. `idle`: nothing is in flight to host memory and no
event is on offer; right from two cycles after `hold`. Reset: forgets all flows.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.registers import COUNTERS

from ..counts import counts_layout
from ..csr.flows import TIMES, FlowsPort
from ..dma.axi import ReadPort
from ..dma.events import EventRequest
from ..dma.tx import COMMANDS, TxCommand, TxFrame, TxFrameDone
from ..packet.meta import Reply
from ..table.lookup import ConnectionLookup
from ..table.records import ConnectionKey, Lookup
from ..table.share import TableShare
from .close import Close
from .flow import FlowPacket, FlowUpdate
from .frame_table import FrameTable
from .splices import Splices
from .teardown import Teardown
from .transmit import FlowTransmit

__all__ = ["Flows", "event_sources"]



def _counts(config):
    prefixes = ("flow_", "splice_") if config.splices else ("flow_",)
    # (Hops are the rewriter's.)
    names = [c.name for c in COUNTERS if c.name.startswith(prefixes) and c.name != "splice_drop_hops"]
    return counts_layout(*names, "commands", "command_errors")


def event_sources(config):
    """How many sources of events `Flows` has."""
    return 4 if config.splices else 2


def _splice_members(config):
    """Members of `Splices` that are members of `Flows` too, by the name that they have here."""
    if not config.splices:
        return {}
    members = Splices(config).signature.members
    return {"splice_room": members["room"], **{name: members[inner] for name, inner in _SPLICE_STREAMS.items()}}


_SPLICE_STREAMS = {
    "splice_packets": "i",
    "spliced": "o",
    "splice_records": "records",
    "splice": "commands",
    "splice_updates": "updates",
    "splice_updated": "updated",
    "splice_port": "port",
}


class Flows(wiring.Component):
    """Connection table, teardown and splices.

    Members
    -------
    connection, lookup: what `hw.tcp.setup.Setup` asks of the table.
    packets: In(stream of FlowPacket); never stalled: segments of flows.
    close: In(stream of TxCommand): CLOSE commands; close_room: so many are taken at once.
    updates, updated: FLOW_UPDATE commands and their status.
    read: Out(ReadPort()): frame tables.
    frames, frames_done: frames for the TX DMA, and what became of them.
    replies: Out(stream of Reply): segments made here.
    events: Out(stream of EventRequest), `event_sources(config)` of them.
    splice_packets, spliced, splice_records, splice, splice_room, splice_updates, splice_updated, splice_port: i, o, records,
        commands, room, updates, updated and port of `Splices`. Only with `config.splices`.
    port: In(FlowsPort(config)): registers.
    tick, ts_clock: time.
    drain: with `hold`: send frames on, a command waits for them. closing: a command is in work.
    hold, idle, busy: see the module's text; busy: there is work without further input but `tick`.
    counts: strobes.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "connection": In(stream.Signature(ConnectionKey)),
                "lookup": Out(stream.Signature(Lookup(config.table))),
                "packets": In(stream.Signature(FlowPacket(config))),
                "close": In(stream.Signature(TxCommand)),
                "close_room": Out(range(COMMANDS + 1)),
                "updates": In(stream.Signature(FlowUpdate(config))),
                "updated": Out(stream.Signature(data.StructLayout({"status": 8}))),
                "read": Out(ReadPort(config.axi_bytes)),
                "frames": Out(stream.Signature(TxFrame(config))),
                "frames_done": In(stream.Signature(TxFrameDone(config))),
                "replies": Out(stream.Signature(Reply)),
                "events": Out(stream.Signature(EventRequest)).array(event_sources(config)),
                **_splice_members(config),
                "port": In(FlowsPort(config)),
                "tick": In(1),
                "ts_clock": In(32),
                "hold": In(1),
                "drain": In(1),
                "closing": Out(1),
                "idle": Out(1),
                "busy": Out(1),
                "counts": Out(_counts(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.table = table = ConnectionLookup(config)
        m.submodules.teardown = teardown = Teardown(config)
        m.submodules.close = close = Close(config)
        m.submodules.frame_table = frame_table = FrameTable(3 if config.splices else 2, config.axi_bytes)
        m.submodules.transmit = transmit = FlowTransmit(config)

        # The connection table: looked up by the setup engine, changed by CLOSE and by the end of flows.
        connect(m, flipped(self.connection), table.connection)
        connect(m, table.lookup, flipped(self.lookup))
        port = table.port
        if config.splices:
            m.submodules.share = share = TableShare(config.table, 2)
            m.submodules.splices = splices = Splices(config)
            connect(m, share.port, table.port)
            port = share.users[0]
            for name in ("insert", "inserted", "delete", "deleted"):
                connect(m, getattr(splices, name), getattr(share.users[1], name))
        for changer, names in ((close, ("insert", "inserted")), (teardown, ("delete", "deleted"))):
            for name in names:
                connect(m, getattr(changer, name), getattr(port, name))

        # A flow's life: installed, moved by segments, updates and time, told of by an event.
        connect(m, flipped(self.packets), teardown.packets)
        connect(m, flipped(self.updates), teardown.updates)
        connect(m, teardown.updated, flipped(self.updated))
        connect(m, flipped(self.close), close.commands)
        connect(m, teardown.free, close.free)
        connect(m, close.installs, teardown.installs)
        connect(m, teardown.replies, flipped(self.replies))
        events = [close.events, teardown.events, *(splices.events if config.splices else ())]
        for source, sink in zip(events, self.events, strict=True):
            connect(m, source, flipped(sink))

        # Its frames.
        connect(m, close.jobs, transmit.jobs[0])
        connect(m, teardown.jobs, transmit.jobs[1])
        connect(m, transmit.sent, teardown.sent)
        for client, user in enumerate((close, transmit, splices) if config.splices else (close, transmit)):
            connect(m, user.table_requests, frame_table.requests[client])
            connect(m, frame_table.entries[client], user.entries)
        connect(m, frame_table.read, flipped(self.read))
        connect(m, transmit.frames, flipped(self.frames))
        connect(m, flipped(self.frames_done), transmit.frames_done)

        m.d.comb += [
            table.key.eq(self.port.key),
            close.key.eq(self.port.key),
            close.ready.eq(self.port.key_valid & self.port.ready),
            close.now.eq(teardown.now),
            close.exhausted.eq(teardown.exhausted),
            teardown.tick.eq(self.tick),
            teardown.ts_clock.eq(self.ts_clock),
            teardown.window.eq(self.port.window),
            teardown.find.eq(self.port.find),
            self.port.found.eq(teardown.found),
            self.port.held.eq(table.held),
            self.port.ready.eq(table.ready & teardown.ready),
            *(getattr(teardown, name).eq(getattr(self.port, name)) for name in TIMES),
        ]
        working = [table, close, teardown, frame_table, transmit]
        quiet = [close, teardown, frame_table]
        commanding = ~close.idle
        if config.splices:
            working.append(splices)
            quiet.append(splices)
            commanding = commanding | splices.commanding
            for name, inner in _SPLICE_STREAMS.items():
                connect(m, flipped(getattr(self, name)), getattr(splices, inner))
            m.d.comb += [
                self.splice_room.eq(splices.room),
                splices.key.eq(self.port.key),
                splices.ready.eq(close.ready),
                splices.tick.eq(self.tick),
                splices.hold.eq(self.hold),
            ]
        m.d.comb += [
            self.close_room.eq(close.room),
            self.closing.eq(commanding),
            teardown.hold.eq(self.hold),
            frame_table.hold.eq(self.hold & ~self.drain),
            self.idle.eq(Cat(part.idle for part in quiet).all()),
            self.busy.eq(Cat(part.busy for part in working).any()),
        ]
        for name in self.counts.shape().members:
            counting = (close, teardown, splices) if config.splices else (close, teardown)
            sources = [part.counts[name] for part in counting if name in part.counts.shape().members]
            m.d.comb += self.counts[name].eq(sum(sources[1:], sources[0]))
        return m
