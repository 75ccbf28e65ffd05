"""`FlowOutputs`: what follows from the operations on flows, laid out and put into queues.

* Latency: 2 cycles from `i` to a queue, and the queue's. Throughput: one operation per cycle.
* Registered: everything behind `i`; streams are queues' outputs (with `hold` gated).
* Overflow: an operation is told beforehand whether there is room (`event_room` and the like, which count what is on its way),
  so events, jobs, deletions and free indices are never lost. Replies that find 32 waiting are dropped and counted.
* Reset: forgets everything.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from acceltcp.abi.messages import FLOW_RECORD, FRAME_TABLE_ALIGN, EventType, Status
from acceltcp.abi.registers import COUNTERS

from ..abi import message_layout
from ..counts import counts_layout
from ..dma.events import EventRequest
from ..packet.delay import Delay
from ..packet.meta import Reply, ReplyKind
from ..stream.fifo import StreamFifo
from ..table.records import Kind, TablePort
from .flow import TIME_BITS, FlowJob, RttState, State, flow_layout
from .flow_rules import Action, FlowAct, FlowOp, OpKind

__all__ = ["FlowOutputs"]

REPLIES, EVENTS, JOBS, DELETES, FREE = 32, 32, 32, 32, 64
MARGIN = 10
"""Operations that may be on their way when a queue turns out to be nearly full."""

FREE_LOW = FREE // 2

_ENDS = {
    Status.OK: "flow_closed",
    Status.RESET: "flow_reset",
    Status.TIMED_OUT: "flow_timed_out",
    Status.PEER_DATA: "flow_peer_data",
    Status.FIN_TIMED_OUT: "flow_fin_timed_out",
    Status.ABORTED: "flow_aborted",
}
_COUNTS = tuple(
    counter.name
    for counter in COUNTERS
    if counter.name.startswith("flow_") and counter.name not in ("flow_opened", "flow_packets", "flow_drop_busy")
)


class FlowOutputs(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    config: NicConfig.
    latency: cycles from the beginning of an operation, with its reply on `reply`, to `i`.

    Members
    -------
    i_valid, i_index, i_op, i_state, i_act: an operation's result, combinational; `i_state` is the new state.
    reply: of the segment that begins in this cycle.
    window, ts_clock, hold, now: see `Teardown`.
    replies, events, jobs, delete, free: queues.
    event_room, job_room, delete_room, free_wanted_room: there is room for the operation that begins.
    free_wanted: free indices are wanted.
    ended, swept, used, given, freed, put_off, was_read, updated, update_found: what has come out, a cycle after `i`.
    record: the flow read last.
    idle: no event and no job is on offer; busy: something is inside.
    counts: strobes.
    """

    def __init__(self, config, latency):
        self._config, self._latency = config, latency
        index = config.flow_bits
        super().__init__(
            {
                "i_valid": In(1),
                "i_index": In(index),
                "i_op": In(FlowOp),
                "i_state": In(flow_layout(config)),
                "i_act": In(FlowAct),
                "reply": In(Reply),
                "window": In(16),
                "ts_clock": In(32),
                "hold": In(1),
                "now": In(TIME_BITS),
                "replies": Out(stream.Signature(Reply)),
                "events": Out(stream.Signature(EventRequest)),
                "jobs": Out(stream.Signature(FlowJob(config))),
                "delete": TablePort(config.table).members["delete"],
                "free": Out(stream.Signature(data.StructLayout({"index": index}))),
                "record": Out(message_layout(FLOW_RECORD)),
                "counts": Out(counts_layout(*_COUNTS)),
                **{
                    name: Out(1)
                    for name in (
                        "event_room", "job_room", "delete_room", "free_wanted_room", "free_wanted",
                        "ended", "swept", "used", "given", "freed", "put_off", "was_read", "updated", "update_found",
                        "idle", "busy",
                    )
                },
            }
        )  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        config = self._config
        valid = Signal()
        index = Signal(config.flow_bits, reset_less=True)
        op = Signal(FlowOp, reset_less=True)
        state = Signal(flow_layout(config), reset_less=True)
        act = Signal(FlowAct, reset_less=True)
        m.d.sync += [
            valid.eq(self.i_valid),
            index.eq(self.i_index),
            op.eq(self.i_op),
            state.eq(self.i_state),
            act.eq(self.i_act),
        ]
        kind = op.kind
        m.d.comb += [
            self.ended.eq(valid),
            self.swept.eq(valid & (kind == OpKind.SWEEP)),
            self.used.eq(act.used),
            self.given.eq(act.give),
            self.freed.eq(valid & act.freed),
            self.put_off.eq(valid & act.put_off),
            self.was_read.eq(valid & (kind == OpKind.READ)),
            self.updated.eq(valid & (kind == OpKind.UPDATE)),
            self.update_found.eq(act.found),
        ]
        rcv_nxt = Signal(32)
        # Without the peer's FIN: in the first two states, and where its data have ended the flow.
        no_fin = (state.state == State.FIN_WAIT_1) | (state.state == State.FIN_WAIT_2) | (act.reply == Action.RST)
        m.d.comb += rcv_nxt.eq(state.rcv_base + Mux(no_fin, 0, 1))
        self._reply(m, valid, op, state, act, rcv_nxt)
        self._queues(m, valid, index, state, act, rcv_nxt)
        self._count(m, valid, act)
        with m.If(self.was_read):
            self._record(m, state, rcv_nxt)
        return m

    def _reply(self, m, valid, op, state, act, rcv_nxt):
        m.submodules.delay = delay = Delay(Reply, self._latency + 1, kind="block")
        m.submodules.replies = replies = StreamFifo(Reply, REPLIES, kind="block")
        connect(m, replies.o, flipped(self.replies))
        m.d.comb += delay.i.eq(self.reply)
        reply = Signal(Reply, reset_less=True)
        sent = Signal()
        stray_end = Signal(32)
        m.d.comb += stray_end.eq(op.end + op.fin + op.syn)
        m.d.sync += [sent.eq(valid & (act.reply != Action.NONE)), reply.eq(delay.o)]
        with m.If(act.reply != Action.SYN_ACK):
            m.d.sync += [
                reply.kind.eq(Mux(act.reply == Action.RST, ReplyKind.RST, ReplyKind.ACK)),
                reply.seq.eq(Mux(act.stray, op.ack, state.snd_end)),
                reply.ack.eq(Mux(act.stray, stray_end, rcv_nxt)),
                reply.window.eq(self.window),
                reply.timestamps.eq(state.timestamps),
                reply.tsval.eq(self.ts_clock),
                reply.tsecr.eq(state.ts_recent),
                reply.ecn.eq(0),
            ]
        m.d.comb += [replies.i.valid.eq(sent), replies.i.payload.eq(reply)]
        m.d.sync += [
            self.counts.flow_reply_busy.eq(sent & ~replies.i.ready),
            self.counts.flow_acks.eq(valid & (act.reply == Action.ACK)),
            self.counts.flow_challenges.eq(valid & (act.reply == Action.ACK) & act.challenge),
            self.counts.flow_resets_sent.eq(valid & (act.reply == Action.RST)),
        ]

    def _queues(self, m, valid, index, state, act, rcv_nxt):
        config = self._config
        m.submodules.events = events = StreamFifo(EventRequest, EVENTS, kind="block")
        m.submodules.jobs = jobs = StreamFifo(FlowJob(config), JOBS, kind="block")
        m.submodules.deletes = deletes = StreamFifo(self.delete.p.shape(), DELETES)
        m.submodules.free = free = StreamFifo(self.free.p.shape(), FREE)
        connect(m, free.o, flipped(self.free))

        # With `hold` nothing new is offered; what is on offer stays.
        for name, queue, out in (
            ("event", events, self.events), ("job", jobs, self.jobs), ("delete", deletes, self.delete),
        ):  # fmt: skip
            offered = Signal(name=f"{name}_offered")
            m.d.comb += [
                out.payload.eq(queue.o.payload),
                out.valid.eq(queue.o.valid & (~self.hold | offered)),
                queue.o.ready.eq(out.ready & (~self.hold | offered)),
            ]
            m.d.sync += offered.eq(out.valid & ~out.ready)
        # A level counts late by what is under way.
        for queue, room, depth in (
            (events, self.event_room, EVENTS), (jobs, self.job_room, JOBS),
            (deletes, self.delete_room, DELETES), (free, self.free_wanted_room, FREE),
        ):  # fmt: skip
            m.d.sync += room.eq(queue.level < depth - MARGIN)
        m.d.comb += [
            self.free_wanted.eq(free.level < FREE_LOW),
            self.idle.eq(~self.events.valid & ~self.jobs.valid),
            self.busy.eq((events.level != 0) | (jobs.level != 0) | (deletes.level != 0) | self.replies.valid),
        ]

        request, job, delete = Signal(EventRequest, reset_less=True), Signal(FlowJob(config), reset_less=True), deletes.i.p
        told, asked = Signal(), Signal()
        event = request.event
        status = Signal(4)
        # A flow that has ended shows its status where its window was.
        m.d.comb += status.eq(state.window[:4])
        m.d.sync += [
            told.eq(valid & act.event),
            request.queue.eq(state.queue),
            event.type.eq(EventType.FLOW_DONE),
            event.status.eq(status),
            event.queue.eq(state.queue),
            event.value.eq(index),
            event.rtt.eq(Mux(state.rtt_state == RttState.SAMPLE, state.rtt, 0)),
            event.retransmissions.eq(state.retransmissions),
            asked.eq(valid & act.job),
            job.index.eq(index),
            job.table.eq(state.table),
            job.frames.eq(state.frames),
            job.port.eq(state.port),
            job.snd_end.eq(state.snd_end),
            job.left.eq(state.unacked),
            job.limit.eq(act.limit),
            job.room.eq(state.window),
            job.ack.eq(rcv_nxt),
            job.timestamps.eq(state.timestamps),
            job.tsecr.eq(state.ts_recent),
        ]
        m.d.comb += [
            events.i.valid.eq(told),
            events.i.payload.eq(request),
            jobs.i.valid.eq(asked),
            jobs.i.payload.eq(job),
            deletes.i.valid.eq(valid & act.delete),
            delete.rows.eq(state.rows),
            delete.kind.eq(Kind.TEARDOWN),
            delete.index.eq(index),
            free.i.valid.eq(valid & act.give),
            free.i.p.index.eq(index),
        ]

    def _count(self, m, valid, act):
        ended = valid & act.ended
        m.d.sync += [
            *(self.counts[name].eq(ended & (act.status == status)) for status, name in _ENDS.items()),
            # Everything else is about frames that could not be read.
            self.counts.flow_faults.eq(
                ended & ~Cat(act.status == status for status in _ENDS).any()
            ),
            self.counts.flow_reused.eq(valid & act.reused),
            self.counts.flow_retransmissions.eq(valid & act.job),
        ]

    def _record(self, m, state, rcv_nxt):
        left = Signal(TIME_BITS)
        ended = (state.state == State.TIME_WAIT) | (state.state == State.LINGER)
        m.d.comb += left.eq(state.deadline - self.now)
        fields = {
            "frames": state.frames + 1,
            "table": Cat(C(0, exact_log2(FRAME_TABLE_ALIGN)), state.table),
            "rcv_nxt": rcv_nxt,
            # What lies more than half of the circle ahead has passed.
            "deadline": Mux(left[-1], 0, left),
            "unacked": Mux(ended, 0, state.unacked),
            "window": Mux(ended, 0, state.window),
        }
        same = ("state", "port", "timestamps", "sending", "queue", "retries", "retry_limit", "snd_end", "ts_recent", "rto")
        m.d.sync += [
            *(self.record[name].eq(value) for name, value in fields.items()),
            *(self.record[name].eq(state[name]) for name in same),
        ]
