"""`SpliceInstall`: carries out SPLICE commands.

    commands -> check -> waiting -> read the two sides -> check -> digests -> ways -> pair (PENDING) -> insert both entries
                                                                                 event <- pair (ACTIVE) <-+
    a failed insertion -> undo

Packets of the two connections go to the host as before until the pair becomes ACTIVE, in one operation of the engine:
both directions begin in the same cycle.

* Latency: about 90 cycles and the bus's round trip from the command to its event. Throughput: one command in that time; up
  to `COMMANDS` wait.
* Registered: all outputs come from registers through little logic; what the engine and the table get stands still.
* Overflow: cannot happen; `room` says how many commands are taken at once.
* Reset: forgets the commands in work.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from acceltcp.abi.messages import (
    FINAL_FRAME,
    FRAME_TABLE_ALIGN,
    SPLICE_COMMAND,
    SPLICE_IDLE_MAX,
    SPLICE_LIMIT_MAX,
    SPLICE_SIDE,
    EventType,
    SpliceSideFlag,
    Status,
)
from acceltcp.abi.wire import WSCALE_MAX

from ..abi import address_of, flag_of, message_layout, not_ipv4, number_of, reserved_of
from ..counts import counts_layout
from ..dma.events import EventRequest
from ..dma.tx import COMMANDS, TxCommand
from ..stream.fifo import StreamFifo
from ..table.hash import ConnectionHashIterative
from ..table.records import Kind, TablePort
from .flow import TABLE_BITS
from .frame_table import FrameEntry, TableRequest
from .splice_end import SpliceUndo
from .splice_engine import SpliceInstallation
from .splice_records import GENERATION_BITS, SPLICE_INDEX_BITS, PairState, SplicePair, SpliceWay

__all__ = ["SpliceInstall"]

SIDES = 2
ENTRIES = SIDES * SPLICE_SIDE.size // FINAL_FRAME.size
"""Entries of the table as its reader counts them."""

_KNOWN_FLAGS = sum(SpliceSideFlag)

_COMMAND_FIELDS = {name: SPLICE_COMMAND.positions[name][1] for name in ("tag", "bounded", "limit", "idle")}


class SpliceInstall(wiring.Component):
    """See the module's text.

    Members
    -------
    commands: In(stream of TxCommand): SPLICE commands. room: so many are taken at once.
    table_requests, entries: to the reader of tables.
    free: In(stream of {"index"}): indices of pairs, taken when the pair's state is written; `exhausted`: none will come.
    way_write, way_index, way, installs: to the engine.
    insert, inserted: to the connection table, as in `TablePort`.
    undo: Out(stream of SpliceUndo(config)): the index was taken in vain.
    events: Out(stream of EventRequest).
    key, ready: the table's secret; it can be used.
    untold: a splice has begun, of which the event has not been taken.
    idle: no command waits for its event. busy: something is inside.
    counts: strobes.
    """

    def __init__(self, config):
        self._config = config
        table = TablePort(config.table).members
        super().__init__(
            {
                "commands": In(stream.Signature(TxCommand)),
                "room": Out(range(COMMANDS + 1)),
                "table_requests": Out(stream.Signature(TableRequest)),
                "entries": In(stream.Signature(FrameEntry)),
                "free": In(stream.Signature(data.StructLayout({"index": config.splice_bits}))),
                "exhausted": In(1),
                "way_write": Out(1),
                "way_index": Out(config.splice_bits + 1),
                "way": Out(SpliceWay(config)),
                "installs": Out(stream.Signature(SpliceInstallation(config))),
                "insert": table["insert"],
                "inserted": table["inserted"],
                "undo": Out(stream.Signature(SpliceUndo(config))),
                "events": Out(stream.Signature(EventRequest)),
                "key": In(128),
                "ready": In(1),
                "untold": Out(1),
                "idle": Out(1),
                "busy": Out(1),
                "counts": Out(counts_layout("commands", "command_errors", "splice_opened")),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # Commands wait here, so that taking one never waits for the frames of others (`TxDma.command_room`).
        queued = data.StructLayout({"queue": 8, "index": 16, "table": TABLE_BITS, "bad": 1, **_COMMAND_FIELDS})
        m.submodules.waiting = waiting = StreamFifo(queued, COMMANDS)
        incoming = data.View(message_layout(SPLICE_COMMAND), self.commands.p.command)
        low = exact_log2(FRAME_TABLE_ALIGN)
        left = Signal(range(COMMANDS + 1))
        taken, done = Signal(), Signal()
        m.d.comb += [
            self.commands.ready.eq(left != COMMANDS),
            self.room.eq(COMMANDS - left),
            taken.eq(self.commands.valid & self.commands.ready),
            waiting.i.valid.eq(taken),
            waiting.i.p.queue.eq(self.commands.p.queue),
            waiting.i.p.index.eq(self.commands.p.index),
            waiting.i.p.table.eq(incoming.table >> low),
            *(waiting.i.p[name].eq(incoming[name]) for name in _COMMAND_FIELDS),
            waiting.i.p.bad.eq(
                reserved_of(incoming, SPLICE_COMMAND).any()
                | (incoming.table[:low] != 0)
                | (incoming.table[low + TABLE_BITS :] != 0)
                | (incoming.idle > SPLICE_IDLE_MAX)
                | Mux(incoming.bounded, (incoming.limit == 0) | (incoming.limit > SPLICE_LIMIT_MAX), incoming.limit != 0)
            ),
            done.eq(self.events.valid & self.events.ready),
            self.idle.eq((left == 0) & ~self.commands.valid),
            self.busy.eq(~self.idle),
        ]
        m.d.sync += left.eq(left + taken - done)
        self._carry_out(m, waiting.o)
        return m

    def _wrong(self, m, sides):
        """Whether the sides cannot be taken, a cycle later."""
        config = self._config
        wrong, parts = Signal(), []
        for side in sides:
            ipv6 = flag_of(side.flags, SpliceSideFlag.IPV6)
            for name in ("remote", "local"):
                parts.append(~ipv6 & not_ipv4(side[name]))
            parts += [
                reserved_of(side, SPLICE_SIDE).any(),
                (side.flags & ~_KNOWN_FLAGS & 0xFF) != 0,
                side.port >= config.ports,
                side.snd_shift > WSCALE_MAX,
                side.rcv_shift > WSCALE_MAX,
                (address_of(side.remote, ipv6) == address_of(side.local, ipv6)) & (side.remote_port == side.local_port),
            ]
        client, server = sides
        for flag in (SpliceSideFlag.IPV6, SpliceSideFlag.ECN):
            parts.append(flag_of(client.flags, flag) != flag_of(server.flags, flag))
        ipv6 = flag_of(client.flags, SpliceSideFlag.IPV6)
        parts.append(
            Cat(
                *(address_of(client[name], ipv6) == address_of(server[name], ipv6) for name in ("remote", "local")),
                *(client[name] == server[name] for name in ("remote_port", "local_port")),
            ).all()
        )
        m.d.sync += wrong.eq(Cat(parts).any())
        return wrong

    def _way_of(self, m, way, source, sink, digest):
        """What makes packets of `source` packets to `sink`; takes effect in the next cycle."""
        config = self._config
        ipv6 = flag_of(sink.flags, SpliceSideFlag.IPV6)
        translation = way.translation
        shift = Signal(signed(5), name="shift")
        m.d.comb += shift.eq(source.snd_shift - sink.rcv_shift)
        m.d.sync += [
            translation.src.eq(address_of(sink.local, ipv6)),
            translation.dst.eq(address_of(sink.remote, ipv6)),
            translation.src_port.eq(sink.local_port),
            translation.dst_port.eq(sink.remote_port),
            translation.dst_mac.eq(number_of(sink.dst_mac, 0, 6)),
            translation.vlan_tci.eq(sink.vlan_tci),
            translation.port.eq(sink.port),
            translation.window_down.eq(shift < 0),
            translation.window_shift.eq(Mux(shift < 0, -shift, shift)),
            translation.tsval_offset.eq(sink.ts_offset),
            translation.tsecr_offset.eq(-source.ts_offset),
            *(
                translation[name].eq(flag_of(sink.flags, flag))
                for name, flag in (
                    ("vlan", SpliceSideFlag.VLAN),
                    ("timestamps", SpliceSideFlag.TIMESTAMPS),
                    ("sack", SpliceSideFlag.SACK),
                    ("ecn", SpliceSideFlag.ECN),
                )
            ),
            *(way.rows[k].eq(digest >> k * config.table.row_bits) for k in range(2)),
        ]

    def _carry_out(self, m, waiting):
        config = self._config
        m.submodules.hash = hashing = ConnectionHashIterative(config)
        command = waiting.p
        octets = Signal(8 * SIDES * SPLICE_SIDE.size, reset_less=True)
        sides = [
            data.View(message_layout(SPLICE_SIDE), octets[8 * SPLICE_SIDE.size * k :][: 8 * SPLICE_SIDE.size])
            for k in range(SIDES)
        ]
        wrong = self._wrong(m, sides)
        status = Signal(8, reset_less=True)
        side = Signal()  # that is dealt with
        digests = Signal(data.ArrayLayout(config.table.digest_bits, SIDES), reset_less=True)
        index = Signal(config.splice_bits, reset_less=True)
        generation = Signal(GENERATION_BITS)
        pair = Signal(SplicePair, reset_less=True)
        way = Signal(SpliceWay(config), reset_less=True)
        inserted = Signal()  # side 0 is

        # The side's connection, and its entry in the table.
        chosen = Signal(message_layout(SPLICE_SIDE))
        digest = Signal(config.table.digest_bits)
        ipv6 = flag_of(chosen.flags, SpliceSideFlag.IPV6)
        connection = hashing.i.p.connection
        m.d.comb += [
            Value.cast(chosen).eq(Mux(side, Value.cast(sides[1]), Value.cast(sides[0]))),
            digest.eq(Mux(side, digests[1], digests[0])),
            hashing.i.p.key.eq(self.key),
            connection.remote.eq(address_of(chosen.remote, ipv6)),
            connection.local.eq(address_of(chosen.local, ipv6)),
            connection.remote_port.eq(chosen.remote_port),
            connection.local_port.eq(chosen.local_port),
            connection.ipv6.eq(ipv6),
            self.table_requests.p.table.eq(command.table),
            self.table_requests.p.frames.eq(ENTRIES - 1),
            self.way_index.eq(Cat(side, index)),
            self.way.eq(way),
            self.installs.p.index.eq(index),
            self.installs.p.pair.eq(pair),
            self.insert.p.digest.eq(digest),
            self.insert.p.kind.eq(Kind.SPLICE),
            self.insert.p.index.eq(Cat(side, index)),
            self.undo.p.index.eq(index),
            self.undo.p.entry.eq(inserted),
            *(self.undo.p.rows[k].eq(digests[0] >> k * config.table.row_bits) for k in range(2)),
        ]

        event = self.events.p.event
        told = Signal()
        m.d.comb += [
            self.events.p.queue.eq(command.queue),
            event.type.eq(EventType.COMMAND_DONE),
            event.status.eq(status),
            event.queue.eq(command.queue),
            event.index.eq(command.index),
            event.tag.eq(command.tag),
            told.eq(self.events.valid & self.events.ready),
        ]
        with m.If(status == Status.OK):
            m.d.comb += event.value.eq(Cat(index, C(0, SPLICE_INDEX_BITS - len(index)), pair.generation))
        m.d.sync += [
            self.counts.commands.eq(told & (status == Status.OK)),
            self.counts.command_errors.eq(told & (status != Status.OK)),
            self.counts.splice_opened.eq(told & (status == Status.OK)),
        ]

        def refuse(why):
            m.d.sync += status.eq(why)
            m.next = "Tell"

        with m.FSM(name="install"):
            with m.State("Wait for a command"):
                m.d.sync += [status.eq(Status.OK), side.eq(0), inserted.eq(0)]
                with m.If(waiting.valid):
                    m.next = "Ask for the sides"
                    with m.If(command.bad):
                        refuse(Status.BAD_ARGUMENT)
            with m.State("Ask for the sides"):
                m.d.comb += self.table_requests.valid.eq(1)
                with m.If(self.table_requests.ready):
                    m.next = "Take the sides"
            with m.State("Take the sides"):
                # All of them, whatever is wrong with one: others wait behind.
                m.d.comb += self.entries.ready.eq(1)
                entry = Value.cast(self.entries.p.entry)
                with m.If(self.entries.valid):
                    m.d.sync += octets.eq(Cat(octets, entry)[len(entry) :])
                    with m.If(self.entries.p.error):
                        m.d.sync += status.eq(Status.BAD_ADDRESS)
                    with m.If(self.entries.p.last):
                        m.next = "Check the sides"
            with m.State("Check the sides"):
                m.next = "Judge the sides"
            with m.State("Judge the sides"):
                m.next = "Hash"
                with m.If(status != Status.OK):
                    m.next = "Tell"
                with m.Elif(wrong):
                    refuse(Status.BAD_ARGUMENT)
                with m.Elif(~self.ready):
                    refuse(Status.NO_SECRET)
            with m.State("Hash"):
                m.d.comb += hashing.i.valid.eq(1)
                with m.If(hashing.i.ready):
                    m.next = "Take the digest"
            with m.State("Take the digest"):
                m.d.comb += hashing.o.ready.eq(1)
                with m.If(hashing.o.valid):
                    m.d.sync += [digests[0].eq(digests[1]), digests[1].eq(hashing.o.payload), side.eq(~side)]
                    m.next = "Hash"
                    with m.If(side):
                        m.next = "Look for an index"
            with m.State("Look for an index"):
                m.d.sync += index.eq(self.free.p.index)
                with m.If(self.free.valid):
                    m.next = "Make a way"
                with m.Elif(self.exhausted):
                    refuse(Status.TABLE_FULL)
            with m.State("Make a way"):
                with m.If(side):
                    self._way_of(m, way, sides[1], sides[0], digests[1])
                with m.Else():
                    self._way_of(m, way, sides[0], sides[1], digests[0])
                    self._pair_of(m, pair, command, sides, generation)
                m.next = "Write the way"
            with m.State("Write the way"):
                m.d.comb += self.way_write.eq(1)
                m.d.sync += side.eq(~side)
                m.next = "Make a way"
                with m.If(side):
                    m.next = "Install"
            with m.State("Install"):
                m.d.comb += self.installs.valid.eq(1)
                with m.If(self.installs.ready):
                    m.next = "Take the index"
            with m.State("Take the index"):
                # It counts as used only now that its pair's state is known. (It has been on offer since it was looked for.)
                m.d.comb += self.free.ready.eq(1)
                m.d.sync += generation.eq(generation + 1)
                m.next = "Insert"
            with m.State("Insert"):
                m.d.comb += self.insert.valid.eq(1)
                with m.If(self.insert.ready):
                    m.next = "Wait for the table"
            with m.State("Wait for the table"):
                m.d.comb += self.inserted.ready.eq(1)
                with m.If(self.inserted.valid):
                    m.d.sync += [status.eq(self.inserted.p.status), side.eq(~side)]
                    with m.If(self.inserted.p.status != Status.OK):
                        m.next = "Undo"
                    with m.Elif(side):
                        m.next = "Activate"
                    with m.Else():
                        m.d.sync += inserted.eq(1)
                        m.next = "Insert"
            with m.State("Undo"):
                m.d.comb += self.undo.valid.eq(1)
                with m.If(self.undo.ready):
                    m.next = "Tell"
            with m.State("Activate"):
                m.d.comb += [self.installs.valid.eq(1), self.installs.p.activate.eq(1), self.untold.eq(1)]
                with m.If(self.installs.ready):
                    m.next = "Tell"
            with m.State("Tell"):
                m.d.comb += [self.events.valid.eq(1), self.untold.eq(status == Status.OK)]
                with m.If(self.events.ready):
                    m.d.comb += waiting.ready.eq(1)
                    m.next = "Wait for a command"

    def _pair_of(self, m, pair, command, sides, generation):
        """The state that the pair begins with, in the next cycle."""
        m.d.sync += [
            pair.eq(0),
            pair.state.eq(PairState.PENDING),
            pair.queue.eq(command.queue),
            pair.generation.eq(generation),
            pair.idle.eq(command.idle),
            pair.bounded.eq(command.bounded),
            pair.limit_end.eq(sides[0].snd_nxt + command.limit),
        ]
        for state, side, other in zip(pair.sides, sides, reversed(sides), strict=True):
            m.d.sync += [
                state.snd_end.eq(side.rcv_nxt),
                state.ack.eq(side.snd_una),
                state.guard.eq(side.snd_una != side.snd_nxt),
                state.guard_end.eq(side.snd_nxt),
                state.offset.eq(other.snd_nxt - side.rcv_nxt),
            ]
