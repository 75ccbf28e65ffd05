"""`Close`: carries out CLOSE commands (docs/teardown.md, "The hand-over").

    commands -> check -> waiting --+--> entries of the table -> check -> free index -> install -> insert -> event -> job
                           |       +--> digest of the connection
                           +-> table request

* Latency: about 35 cycles behind the table's data, of which the digest takes 12 beside the check of the entries.
* Throughput: one command in about 35 cycles plus one per frame; up to `COMMANDS` are in work (those whose job waits for the transmitter included), so that the bus round trip of
  the table costs no rate. Commands end in order.
* Registered: all outputs but `entries.ready`.
* Overflow: cannot happen; a command is taken only when there is room for its job, and `room` says for how many there is.
* Reset: forgets the commands in work.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from acceltcp.abi.messages import (
    CLOSE_COMMAND,
    FINAL_FRAMES_MAX,
    FRAME_TABLE_ALIGN,
    CloseFlag,
    EventType,
    FrameFlag,
    Status,
)
from acceltcp.abi.wire import TCP, WSCALE_MAX

from ..abi import address_of, flag_of, message_layout, not_ipv4
from ..counts import counts_layout
from ..dma.events import EventRequest
from ..dma.tx import COMMANDS, TxCommand
from ..dma.tx_read import FINAL_OFFSETS, TIMESTAMPS_BYTES
from ..stream.fifo import StreamFifo
from ..table.hash import ConnectionHashIterative
from ..table.records import Kind, TablePort
from .flow import (
    FINAL_BITS,
    FRAMES_BITS,
    RTO_BITS,
    TABLE_BITS,
    TIME_BITS,
    FlowInstall,
    FlowJob,
    RttState,
    State,
)
from .frame_table import FrameEntry, TableRequest

__all__ = ["Close"]

_KNOWN_FLAGS = sum(CloseFlag)


class Close(wiring.Component):
    """See the module's text.

    Members
    -------
    commands: In(stream of TxCommand): CLOSE commands. room: so many are taken at once.
    table_requests, entries: to the reader of frame tables.
    free: In(stream of {"index"}): indices for flows; without one, `exhausted` says that none will come. installs: Out(stream of FlowInstall).
    insert, inserted: to the connection table, as in `TablePort`.
    jobs: Out(stream of FlowJob). events: Out(stream of EventRequest).
    key, ready: the table's secret; flows can be taken.
    now: time in timer steps.
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
                "free": In(stream.Signature(data.StructLayout({"index": config.flow_bits}))),
                "exhausted": In(1),
                "installs": Out(stream.Signature(FlowInstall(config))),
                "insert": table["insert"],
                "inserted": table["inserted"],
                "jobs": Out(stream.Signature(FlowJob(config))),
                "events": Out(stream.Signature(EventRequest)),
                "key": In(128),
                "ready": In(1),
                "now": In(TIME_BITS),
                "idle": Out(1),
                "busy": Out(1),
                "counts": Out(counts_layout("commands", "command_errors", "flow_opened")),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        command = data.StructLayout({"taken": TxCommand, "bad": 1})
        m.submodules.waiting = waiting = StreamFifo(command, COMMANDS, kind="block")
        m.submodules.jobs = jobs = StreamFifo(FlowJob(config), COMMANDS, kind="block")
        connect(m, jobs.o, flipped(self.jobs))

        # A command is taken when its job will have room; what is asked of the table reader waits in a queue of its own, so
        # that taking a command never waits for the frames of others (`TxDma.command_room`).
        m.submodules.requests = requests = StreamFifo(TableRequest, COMMANDS)
        connect(m, requests.o, flipped(self.table_requests))
        room = Signal(range(COMMANDS + 1), init=COMMANDS)
        ended, job_taken, taken, bad = Signal(), Signal(), Signal(), Signal()
        incoming = data.View(message_layout(CLOSE_COMMAND), self.commands.p.command)
        m.d.comb += [
            bad.eq(self._bad_arguments(incoming)),
            self.room.eq(room),
            self.commands.ready.eq(room != 0),
            taken.eq(self.commands.valid & self.commands.ready),
            waiting.i.valid.eq(taken),
            waiting.i.p.taken.eq(self.commands.payload),
            waiting.i.p.bad.eq(bad),
            requests.i.valid.eq(taken & ~bad),
            requests.i.p.table.eq(incoming.table >> exact_log2(FRAME_TABLE_ALIGN)),
            requests.i.p.frames.eq(incoming.frames - 1),
            job_taken.eq(self.jobs.valid & self.jobs.ready),
        ]
        m.d.sync += room.eq(room - taken + ended + job_taken)

        self._carry_out(m, waiting.o, jobs.i, ended)
        open_ = Signal(range(COMMANDS + 1))
        told = self.events.valid & self.events.ready
        m.d.sync += open_.eq(open_ + taken - told)
        m.d.comb += [
            self.idle.eq((open_ == 0) & ~self.commands.valid),
            self.busy.eq((room != COMMANDS) | self.commands.valid),
        ]
        return m

    def _bad_arguments(self, command):
        """What can be said of a command by itself."""
        ipv6 = flag_of(command.flags, CloseFlag.IPV6)

        return (
            (command.frames == 0)
            | (command.frames > FINAL_FRAMES_MAX)
            | (command.sent > command.frames)
            | (command.retries == 0)
            | (command.port >= self._config.ports)
            | ((command.flags & ~_KNOWN_FLAGS & 0xFF) != 0)
            | (command.table[: exact_log2(FRAME_TABLE_ALIGN)] != 0)
            | (command.table[exact_log2(FRAME_TABLE_ALIGN) + TABLE_BITS :] != 0)
            | (command.rto == 0)
            | (command.rto >> RTO_BITS != 0)
            | (command.wscale > WSCALE_MAX)
            | ((address_of(command.remote, ipv6) == address_of(command.local, ipv6)) & (command.remote_port == command.local_port))
            | ~ipv6 & (not_ipv4(command.remote) | not_ipv4(command.local))
        )

    def _carry_out(self, m, waiting, jobs, ended):
        config = self._config
        command = Signal(message_layout(CLOSE_COMMAND))
        m.d.comb += Value.cast(command).eq(waiting.p.taken.command)
        ipv6, timestamps, peer_fin = (
            flag_of(command.flags, flag) for flag in (CloseFlag.IPV6, CloseFlag.TIMESTAMPS, CloseFlag.PEER_FIN)
        )
        m.submodules.hash = hashing = ConnectionHashIterative(config)
        key = hashing.i.p.connection
        m.d.comb += [
            hashing.i.p.key.eq(self.key),
            key.remote.eq(address_of(command.remote, ipv6)),
            key.local.eq(address_of(command.local, ipv6)),
            key.remote_port.eq(command.remote_port),
            key.local_port.eq(command.local_port),
            key.ipv6.eq(ipv6),
        ]

        status = Signal(8)
        index = Signal(config.flow_bits, reset_less=True)
        digest = Signal(config.table.digest_bits, reset_less=True)
        first, unsent = Signal(32, reset_less=True), Signal(32, reset_less=True)
        following = Signal(32, reset_less=True)  # sequence number after the entries so far
        number = Signal(FRAMES_BITS + 1)
        total = Signal(32)
        m.d.comb += total.eq(following - first)

        entry, entry_end = self.entries.p.entry, Signal(32)
        header = Signal(16)
        payload = Signal(16)
        offsets = Mux(
            ipv6,
            Cat(entry.l4_offset == offset for offset in FINAL_OFFSETS["ipv6"]).any(),
            Cat(entry.l4_offset == offset for offset in FINAL_OFFSETS["ipv4"]).any(),
        )
        short, wrong = Signal(), Signal()
        m.d.comb += [
            header.eq(entry.l4_offset + TCP.size + Mux(timestamps, TIMESTAMPS_BYTES, 0)),
            payload.eq(entry.length - header),
            entry_end.eq(entry.seq + payload),
            short.eq((entry.length < header) | (entry.length > config.max_frame)),
            wrong.eq(
                ~offsets
                | (entry.flags != Mux(ipv6, int(FrameFlag.IPV6), 0))
                | ((number != 0) & (entry.seq != following))
                | ((payload == 0) & ~self.entries.p.last)
            ),
        ]

        install = Signal(FlowInstall(config), reset_less=True)
        job = jobs.p
        snd_end = Signal(32)
        any_unsent = Signal()
        m.d.comb += [
            snd_end.eq(following + 1),
            any_unsent.eq(command.sent != command.frames),
            self.installs.payload.eq(install),
            self.insert.p.digest.eq(digest),
            self.insert.p.kind.eq(Kind.TEARDOWN),
            self.insert.p.index.eq(index),
            job.index.eq(index),
            job.table.eq(install.state.table),
            job.frames.eq(install.state.frames),
            job.port.eq(command.port),
            job.snd_end.eq(snd_end),
            job.left.eq(snd_end - unsent),
            # With nothing to send the job only ends: until then the flow cannot, so its COMMAND_DONE comes before its FLOW_DONE.
            job.limit.eq(Mux(any_unsent, FINAL_FRAMES_MAX, 0)),
            job.room.eq(~C(0, len(job.room))),
            job.ack.eq(command.rcv_nxt),
            job.timestamps.eq(timestamps),
            job.tsecr.eq(command.ts_recent),
        ]
        event = self.events.p.event
        tell = Signal()
        m.d.comb += [
            self.events.valid.eq(tell),
            self.events.p.queue.eq(waiting.p.taken.queue),
            event.type.eq(EventType.COMMAND_DONE),
            event.status.eq(status),
            event.queue.eq(waiting.p.taken.queue),
            event.index.eq(waiting.p.taken.index),
            event.tag.eq(command.tag),
            event.value.eq(Mux(status == Status.OK, index, 0)),
        ]
        m.d.sync += [
            self.counts.commands.eq(self.events.valid & self.events.ready & (status == Status.OK)),
            self.counts.command_errors.eq(self.events.valid & self.events.ready & (status != Status.OK)),
            self.counts.flow_opened.eq(self.events.valid & self.events.ready & (status == Status.OK)),
        ]
        state = install.state
        with m.FSM(name="close"):
            with m.State("Wait for a command"):
                m.d.sync += [number.eq(0), status.eq(Status.OK)]
                with m.If(waiting.valid):
                    m.next = "Hash"
                    with m.If(waiting.p.bad):
                        m.d.sync += status.eq(Status.BAD_ARGUMENT)
                        m.next = "Tell"
            with m.State("Hash"):
                m.d.comb += hashing.i.valid.eq(1)
                with m.If(hashing.i.ready):
                    m.next = "Check the entries"
            with m.State("Check the entries"):
                # All entries are taken, whatever is wrong with one of them.
                m.d.comb += self.entries.ready.eq(1)
                with m.If(self.entries.valid):
                    m.d.sync += [number.eq(number + 1), following.eq(entry_end)]
                    with m.If(number == 0):
                        m.d.sync += first.eq(entry.seq)
                    with m.If(number == command.sent):
                        m.d.sync += unsent.eq(entry.seq)
                    with m.If(self.entries.p.error):
                        m.d.sync += status.eq(Status.BAD_ADDRESS)
                    with m.Elif((status == Status.OK) & short):
                        m.d.sync += status.eq(Status.BAD_LENGTH)
                    with m.Elif((status == Status.OK) & wrong):
                        m.d.sync += status.eq(Status.BAD_ARGUMENT)
                    with m.If(self.entries.p.last):
                        m.next = "Take the digest"
            with m.State("Take the digest"):
                m.d.comb += hashing.o.ready.eq(1)
                m.d.sync += digest.eq(hashing.o.payload)
                with m.If(hashing.o.valid):
                    m.next = "Take an index"
                    with m.If(status != Status.OK):
                        m.next = "Tell"
                    with m.Elif((total >> FINAL_BITS != 0) | total[:FINAL_BITS].all()):
                        m.d.sync += status.eq(Status.BAD_ARGUMENT)
                        m.next = "Tell"
                    with m.Elif(~self.ready):
                        m.d.sync += status.eq(Status.NO_SECRET)
                        m.next = "Tell"
            with m.State("Take an index"):
                m.d.comb += self.free.ready.eq(1)
                m.d.sync += [
                    index.eq(self.free.p.index),
                    install.eq(0),
                    install.index.eq(self.free.p.index),
                    state.snd_end.eq(snd_end),
                    state.table.eq(command.table >> exact_log2(FRAME_TABLE_ALIGN)),
                    state.frames.eq(command.frames - 1),
                    state.queue.eq(waiting.p.taken.queue),
                    state.port.eq(command.port),
                    state.timestamps.eq(timestamps),
                    state.wscale.eq(command.wscale),
                    state.rto.eq(command.rto),
                    state.retry_limit.eq(command.retries),
                    state.rows[0].eq(digest),
                    state.rows[1].eq(digest >> config.table.row_bits),
                    state.rcv_base.eq(command.rcv_nxt - peer_fin),
                    state.state.eq(Mux(peer_fin, State.LAST_ACK.value, State.FIN_WAIT_1.value)),
                    state.unacked.eq(snd_end - first),
                    state.ts_recent.eq(command.ts_recent),
                    state.window.eq(command.window),
                    state.deadline.eq(self.now + command.rto),
                    state.sending.eq(1),
                    state.rtt.eq(self.now),
                    # Timed only if nothing had been sent: else the first acknowledgment may be for that.
                    state.rtt_state.eq(Mux(command.sent == 0, RttState.TIMING.value, RttState.NONE.value)),
                ]
                with m.If(self.free.valid):
                    m.next = "Install"
                with m.Elif(self.exhausted):
                    m.d.sync += status.eq(Status.TABLE_FULL)
                    m.next = "Tell"
            with m.State("Install"):
                m.d.comb += self.installs.valid.eq(1)
                with m.If(self.installs.ready):
                    m.next = "Insert"
            with m.State("Insert"):
                m.d.comb += self.insert.valid.eq(1)
                with m.If(self.insert.ready):
                    m.next = "Wait for the table"
            with m.State("Wait for the table"):
                m.d.comb += self.inserted.ready.eq(1)
                m.d.sync += status.eq(self.inserted.p.status)
                with m.If(self.inserted.valid):
                    m.next = "Tell"
                    with m.If(self.inserted.p.status != Status.OK):
                        m.d.sync += state.eq(0)
                        m.next = "Give the index back"
            with m.State("Give the index back"):
                m.d.comb += self.installs.valid.eq(1)
                with m.If(self.installs.ready):
                    m.next = "Tell"
            with m.State("Tell"):
                m.d.sync += tell.eq(1)
                m.next = "Told"
            with m.State("Told"):
                with m.If(self.events.ready):
                    m.d.sync += tell.eq(0)
                    m.next = "Send"
            with m.State("Send"):
                # There is room for the job since the command was taken.
                m.d.comb += [
                    jobs.valid.eq(status == Status.OK),
                    ended.eq(~jobs.valid),
                    waiting.ready.eq(1),
                ]
                m.next = "Wait for a command"
