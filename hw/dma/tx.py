"""`TxDma`: from the hosts' TX rings to packets and commands; and final frames of flows to packets.

    doorbells -> DescriptorFetch -> TxSchedule -> TxRead -> bus -> read buffer -> Realigner
                         final frames ----^          -> packets with TxMeta (frames), commands, events

Every descriptor is carried out in the order of its ring and ends in at most one event:
`TX_ERROR` when it could not be carried out, else `TX_DONE` when asked for (a command's own
event comes from who runs it). A frame with a read error leaves with `err` on its last beat and
must be discarded; a command with one does not leave at all. A final frame (docs/teardown.md) leaves
like any other, with a `patch` in its TxMeta; it ends in one entry of `frames_done` and never in an event.

* Latency: doorbell to first packet beat about 40 cycles plus two bus latencies.
* Throughput: one bus beat per cycle, whatever the sizes; one frame per cycle when frames lie in
  one bus beat each. `config.read_beats` beats are under way at most.
* Registered: both read requests, `packets`, `meta`, `events`, `commands`, `frames_done`.
* Overflow: cannot happen; data are asked for only when there is room for them.
* Reset: forgets everything; what the bus still owes must have been waited for (`hold`, `idle`).
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.messages import COMMAND, EventType, Status

from ..config import NicConfig
from ..counts import counts_layout
from ..csr.bus import QueueBus
from ..packet.meta import TxMeta, TxPatch
from ..stream.beat import BeatLayout, packet_stream
from ..stream.buffer import SkidBuffer
from ..stream.fifo import StreamFifo
from .axi import ReadPort
from .descriptors import DescriptorFetch
from .events import EventRequest
from .realign import Realigner
from .tx_read import TxFrame, TxJob, TxRead
from .tx_schedule import TxSchedule

__all__ = ["TxCommand", "TxDma", "TxFrame", "TxFrameDone"]

EXIT_BEATS = 32
"""Packet beats between read buffer and output: more than the pipeline's round trip."""

JOB_BYTES = 64
"""There is room for as many jobs as read data would be if each had so many."""

EVENTS = 32
"""Events that wait for the event writer before the data path stops."""

COMMANDS = 16
"""Commands under way at most, as long as who runs them has room for all of them."""

FRAMES = 64
"""Final frames in flight. Their patches wait here: too wide for the long FIFO of jobs."""

FRAMES_DONE = 16
"""Ends of final frames that wait to be taken before the data path stops."""


class TxCommand(data.Struct):
    """A command out of a TX ring."""

    queue: 8
    index: 16  # of its descriptor
    command: 8 * COMMAND.size


def TxFrameDone(config):  # noqa: N802
    """End of a final frame: nothing reads it any more. `status` is acceltcp.abi.messages.Status; anything
    but OK: it has not been sent."""
    return data.StructLayout({"index": config.flow_bits, "last": 1, "status": 8})


def _Note(config):  # noqa: N802
    """What is kept of a final frame until it ends."""
    return data.StructLayout({"index": config.flow_bits, "last": 1, "patch": TxPatch})


class _Leaving(data.Struct):
    """What is known of a packet or command that leaves the realigner."""

    command: 1
    queue: 8
    index: 16


class TxDma(wiring.Component):
    """Reads what the hosts want sent or done.

    Members
    -------
    bus: In(QueueBus()).
    command_room: commands that will be taken without waiting for a final frame; grows as it likes, and
        shrinks by a command at most when one is taken. No more are under way: what follows a command that must wait for
        frames would stop those frames too.
    hold: take up no new descriptor or final frame, and prefetch no descriptor.
    drain: take up final frames all the same: a command waits for them.
    commanding: a command is under way or waits for room.
    idle: nothing is in flight. Combinational from flip-flops: right in the cycle in which
        `hold` rises. Prefetched descriptors do not count.
    busy: something is in flight or could be started.
    descriptor_read, read: Out(ReadPort()): two requesters of the bus.
    frames: In(stream(TxFrame(config))): final frames; they take turns with descriptors.
    frames_done: Out(stream(TxFrameDone(config))): one per final frame, in order. Who takes no ends stops
        everything.
    packets: Out(packet_stream(config.axi_bytes)).
    meta: Out(stream(TxMeta)): one per packet, offered before its first beat.
    commands: Out(stream(TxCommand)).
    events: Out(stream(EventRequest)): TX_DONE, TX_ERROR, QUEUE_ERROR for refused TX doorbells.
    counts: tx_errors, doorbell_errors.
    """

    def __init__(self, config):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        self._config = config
        super().__init__(
            {
                "bus": In(QueueBus()),
                "command_room": In(range(COMMANDS + 1)),
                "hold": In(1),
                "drain": In(1),
                "commanding": Out(1),
                "idle": Out(1),
                "busy": Out(1),
                "descriptor_read": Out(ReadPort(config.axi_bytes)),
                "read": Out(ReadPort(config.axi_bytes)),
                "frames": In(stream.Signature(TxFrame(config))),
                "frames_done": Out(stream.Signature(TxFrameDone(config))),
                "packets": Out(packet_stream(config.axi_bytes)),
                "meta": Out(stream.Signature(TxMeta)),
                "commands": Out(stream.Signature(TxCommand)),
                "events": Out(stream.Signature(EventRequest)),
                "counts": Out(counts_layout("tx_errors", "doorbell_errors")),
            }
        )

    @property
    def config(self):
        """The NIC's parameters."""
        return self._config

    def elaborate(self, platform):
        m = Module()
        beats, axi_bytes = self._config.read_beats, self._config.axi_bytes

        # Descriptors.
        m.submodules.fetch = fetch = DescriptorFetch(self._config, "tx")
        m.submodules.schedule = schedule = TxSchedule(self._config)
        m.submodules.read = read = TxRead(self._config)
        connect(m, bus=flipped(self.bus), fetch=fetch.bus)
        connect(m, descriptor_read=flipped(self.descriptor_read), fetch=fetch.read)
        connect(m, schedule=schedule.pop, fetch=fetch.pop)
        connect(m, fetch=fetch.popped, read=read.popped)
        connect(m, request=flipped(self.read.request), read=read.request)
        # A hold lasts a cycle longer in here: a queue's `disable` may be its last cycle.
        held = Signal()
        m.d.sync += held.eq(self.hold)
        m.d.comb += [
            fetch.hold.eq(self.hold),
            schedule.hold.eq(self.hold | held),
            schedule.pending.eq(fetch.pending),
        ]

        # Final frames beside them. The note of a frame is at hand until the frame ends.
        m.submodules.notes = notes = StreamFifo(_Note(self._config), FRAMES)
        m.submodules.ends = ends = StreamFifo(TxFrameDone(self._config), FRAMES_DONE)
        connect(m, ends=ends.o, output=flipped(self.frames_done))
        open_ = Signal()
        m.d.comb += [
            open_.eq(notes.i.ready & (~self.hold | self.drain)),
            read.frames.payload.eq(self.frames.payload),
            read.frames.valid.eq(self.frames.valid & open_),
            self.frames.ready.eq(read.frames.ready & open_),
            notes.i.valid.eq(read.frames.valid & read.frames.ready),
            notes.i.p.index.eq(self.frames.p.index),
            notes.i.p.last.eq(self.frames.p.last),
            notes.i.p.patch.eq(self.frames.p.patch),
        ]

        # What has been asked for, and the data as they come.
        m.submodules.jobs = jobs = StreamFifo(TxJob(axi_bytes), beats * axi_bytes // JOB_BYTES, kind="block")
        octets = data.StructLayout({"data": 8 * axi_bytes, "error": 1})
        m.submodules.buffer = buffer = StreamFifo(octets, beats, kind="block")
        connect(m, read=read.jobs, jobs=jobs.i)
        taken = Signal()
        room = Signal(range(beats + 1), init=beats)
        m.d.comb += [
            buffer.i.valid.eq(self.read.response.valid),
            buffer.i.p.data.eq(self.read.response.p.data),
            buffer.i.p.error.eq(self.read.response.p.error),
            taken.eq(buffer.o.valid & buffer.o.ready),
            read.room.eq(room),
        ]
        m.d.sync += room.eq(room - read.claim + taken)

        # Out of the buffer into the realigner, and who hears of it.
        m.submodules.feed = feed = _Feed(self._config)
        m.submodules.realigner = realigner = Realigner(axi_bytes)
        m.submodules.exit = leave = StreamFifo(BeatLayout(axi_bytes), EXIT_BEATS, kind="block")
        m.submodules.leaving = leaving = StreamFifo(_Leaving, EXIT_BEATS)
        m.submodules.meta = meta = StreamFifo(TxMeta, EXIT_BEATS)
        m.submodules.events = events = StreamFifo(EventRequest, EVENTS, kind="block")
        connect(m, jobs=jobs.o, feed=feed.jobs)
        connect(m, buffer=buffer.o, feed=feed.beats)
        connect(m, notes=notes.o, feed=feed.notes)
        connect(m, feed=feed.ends, ends=ends.i)
        connect(m, feed=feed.meta, meta=meta.i)
        connect(m, feed=feed.leaving, leaving=leaving.i)
        connect(m, meta=meta.o, output=flipped(self.meta))
        connect(m, events=events.o, output=flipped(self.events))
        free = Signal(range(EXIT_BEATS + 1), init=EXIT_BEATS)
        m.d.comb += [
            feed.exit_free.eq(free != 0),
            realigner.i_valid.eq(taken),
            realigner.i_data.eq(buffer.o.p.data),
            realigner.i_error.eq(buffer.o.p.error),
            realigner.i_first.eq(feed.first),
            realigner.i_last.eq(feed.last),
            realigner.i_offset.eq(jobs.o.p.offset),
            realigner.i_length.eq(jobs.o.p.length),
            leave.i.valid.eq(realigner.o_valid),
            leave.i.p.data.eq(realigner.o_data),
            leave.i.p.count.eq(realigner.o_count),
            leave.i.p.last.eq(realigner.o_last),
            leave.i.p.err.eq(realigner.o_err),
        ]
        m.d.sync += free.eq(free - feed.claim + (leave.o.valid & leave.o.ready))

        # Events of jobs come first; refused doorbells take a gap.
        # (The buffer keeps the long path through `feed` out of the doorbells.)
        m.submodules.refusals = refusals = SkidBuffer(fetch.doorbell_error.p.shape())
        connect(m, fetch=fetch.doorbell_error, refusals=refusals.i)
        refused = refusals.o
        m.d.comb += [
            feed.events.ready.eq(events.i.ready),
            refused.ready.eq(events.i.ready & ~feed.events.valid),
            events.i.valid.eq(feed.events.valid | refused.valid),
        ]
        with m.If(feed.events.valid):
            m.d.comb += events.i.payload.eq(feed.events.payload)
        with m.Else():
            m.d.comb += [
                events.i.p.queue.eq(refused.p.queue),
                events.i.p.event.queue.eq(refused.p.queue),
                events.i.p.event.type.eq(EventType.QUEUE_ERROR),
                events.i.p.event.status.eq(Status.BAD_DOORBELL),
            ]
        m.d.sync += [
            self.counts.tx_errors.eq(feed.error & ~jobs.o.p.final),
            self.counts.doorbell_errors.eq(fetch.counts.doorbell_errors),
        ]

        # The way out: a packet, a command, or (a command that could not be read) nothing.
        command = leaving.o.p.command
        here = leave.o.valid & leaving.o.valid
        whole, last = self._command(m, leave.o, axi_bytes)
        m.d.comb += [
            self.packets.payload.eq(leave.o.payload),
            self.packets.valid.eq(here & ~command),
            self.commands.p.queue.eq(leaving.o.p.queue),
            self.commands.p.index.eq(leaving.o.p.index),
            self.commands.p.command.eq(whole),
            self.commands.valid.eq(here & command & ~leave.o.p.err & last),
            leave.o.ready.eq(
                leaving.o.valid & Mux(command, self.commands.ready | leave.o.p.err | ~last, self.packets.ready)
            ),
            leaving.o.ready.eq(leave.o.valid & leave.o.ready & leave.o.p.last),
        ]

        # Commands under way, from the descriptor to its taking or its error.
        commands = Signal(range(COMMANDS + 1))
        gone = (leaving.o.valid & command & leave.o.valid & leave.o.ready & last) + feed.refused
        m.d.sync += [
            commands.eq(commands + read.command - gone),
            read.command_free.eq(self.command_room > commands + read.command),
        ]
        # One that waits is told a cycle late, and by then it is one of those under way.
        blocked = Signal()
        m.d.sync += blocked.eq(read.blocked)
        m.d.comb += self.commanding.eq((commands != 0) | blocked)

        quiet = (
            read.idle & ~schedule.pop.valid & (room == beats) & (free == EXIT_BEATS) & (jobs.level == 0)
        )  # fmt: skip
        told = (meta.level == 0) & (leaving.level == 0) & (events.level == 0) & ~refused.valid
        final = (notes.level != 0) | (ends.level != 0)
        m.d.comb += [
            self.idle.eq(fetch.idle & quiet & told & ~final),
            self.busy.eq(~self.idle | fetch.busy | fetch.pending.any() | self.frames.valid),
        ]
        return m

    @staticmethod
    def _command(m, beats, axi_bytes):
        """The command whose last beat stands on `beats`, and whether this is the last. On a bus of 64 bytes it always is."""
        if axi_bytes == COMMAND.size:
            return beats.p.data, C(1)
        held = Signal(8 * (COMMAND.size - axi_bytes), reset_less=True)
        with m.If(beats.valid & beats.ready):
            m.d.sync += held.eq(Cat(held, beats.p.data)[8 * axi_bytes :])
        return Cat(held, beats.p.data), beats.p.last


class _Feed(wiring.Component):
    """Hands a job's beats on, one per cycle, and says what becomes of the job."""

    def __init__(self, config):
        octets = data.StructLayout({"data": 8 * config.axi_bytes, "error": 1})
        super().__init__(
            {
                "jobs": In(stream.Signature(TxJob(config.axi_bytes))),
                "beats": In(stream.Signature(octets)),
                "notes": In(stream.Signature(_Note(config))),
                "exit_free": In(1),
                "claim": Out(1),  # a packet beat will come out of this one
                "first": Out(1),
                "last": Out(1),
                "meta": Out(stream.Signature(TxMeta)),
                "leaving": Out(stream.Signature(_Leaving)),
                # Not streams in their own right: `ready` is waited for before `valid` rises.
                "ends": Out(stream.Signature(TxFrameDone(config))),
                "events": Out(stream.Signature(EventRequest)),
                "error": Out(1),  # a job has failed
                "refused": Out(1),  # a command that will not leave
            }
        )

    def elaborate(self, platform):
        m = Module()
        job = self.jobs.p
        first = Signal(init=1)
        left = Signal.like(job.beats, reset_less=True)
        failed = Signal(reset_less=True)
        good, roomy, go, done, bad = Signal(), Signal(), Signal(), Signal(), Signal()
        status = Signal.like(job.status)
        m.d.comb += [
            good.eq(job.status == Status.OK),
            self.first.eq(first),
            self.last.eq(Mux(first, job.beats == 1, left == 1)),
            # Everything that a beat may need is there; all of it flip-flops elsewhere.
            roomy.eq(
                self.jobs.valid
                & self.exit_free
                & self.meta.ready
                & self.leaving.ready
                & Mux(job.final, self.ends.ready & self.notes.valid, self.events.ready)
            ),
            self.beats.ready.eq(roomy & good),
            go.eq(self.beats.ready & self.beats.valid),
            self.claim.eq(go & ~(first & job.extra)),
            done.eq(Mux(good, go & self.last, roomy)),
            self.jobs.ready.eq(done),
            bad.eq((failed & ~first) | self.beats.p.error),
            status.eq(Mux(good & bad, Status.BAD_ADDRESS, job.status)),
            self.error.eq(done & (status != Status.OK)),
            self.refused.eq(done & ~good & job.command),
        ]
        with m.If(go):
            m.d.sync += [
                first.eq(self.last),
                left.eq(Mux(first, job.beats, left) - 1),
                failed.eq(bad),
            ]
        m.d.comb += [
            self.meta.valid.eq(go & first & ~job.command),
            self.meta.p.port.eq(job.port),
            self.meta.p.length.eq(job.length),
            self.meta.p.l3_offset.eq(job.l3_offset),
            self.meta.p.l4_offset.eq(job.l4_offset),
            self.meta.p.flags.eq(job.flags),
            self.meta.p.patch.eq(self.notes.p.patch),
            self.meta.p.patch.wanted.eq(job.final & self.notes.p.patch.wanted),
            self.leaving.valid.eq(go & first),
            self.leaving.p.command.eq(job.command),
            self.leaving.p.queue.eq(job.queue),
            self.leaving.p.index.eq(job.index),
            self.ends.valid.eq(done & job.final),
            self.ends.p.index.eq(self.notes.p.index),
            self.ends.p.last.eq(self.notes.p.last),
            self.ends.p.status.eq(status),
            self.notes.ready.eq(done & job.final),
            self.events.valid.eq(done & ~job.final & (self.error | (job.notify & ~job.command))),
            self.events.p.queue.eq(job.queue),
            self.events.p.event.type.eq(Mux(self.error, EventType.TX_ERROR, EventType.TX_DONE)),
            self.events.p.event.status.eq(status),
            self.events.p.event.queue.eq(job.queue),
            self.events.p.event.index.eq(job.index),
        ]
        return m
