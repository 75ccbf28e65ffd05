"""`Teardown`: the flows that the NIC closes for the host (docs/teardown.md).

    packets FIFO --+
    updates, sent, installs, deleted, sweeper, find --+--> StateMemory + FlowRules --> FlowOutputs --> replies, events,
                                                                                       jobs, delete, free
One operation per cycle, whatever it is; packets have the right of way, but the sweeper gets at least one cycle in nine.
Back-to-back segments of one flow are right at one per cycle (`StateMemory`).

* Latency: packet to reply 4 (FIFO) + 6 cycles, then a FIFO. Throughput: 8 segments in 9 cycles while a lap of the sweeper is
  under way, else one per cycle.
* Registered: all outputs come from FIFOs or registers.
* Overflow: segments that find 64 others waiting are dropped and counted; so are replies that find 32 waiting. Events, jobs
  and deletions are never lost: without room the flow keeps what it owes, and the sweeper comes back to it.
* Reset: clears the state memory, one entry per cycle; `ready` when done.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.messages import FLOW_RECORD, Status
from acceltcp.abi.registers import COUNTERS, TIMER_TICKS
from acceltcp.abi.wire import TCPFlag

from ..abi import message_layout
from ..counts import counts_layout
from ..csr.flows import TIMES
from ..dma.events import EventRequest
from ..packet.meta import Reply
from ..stream.fifo import StreamFifo
from ..table.records import TablePort
from ..table.state import StateMemory
from ..table.sweeper import GROUP, Sweeper
from .flow import TIME_BITS, FlowInstall, FlowJob, FlowPacket, FlowSent, FlowUpdate, State, flow_layout
from .flow_outputs import FlowOutputs
from .flow_rules import FlowOp, FlowRules, OpKind

__all__ = ["Teardown"]

PACKETS = 64
"""Segments that may wait."""

SWEEP_SHARE = 8
"""Cycles in a row that others may take from a waiting sweeper."""

_COUNTS = tuple(c.name for c in COUNTERS if c.name.startswith("flow_") and c.name != "flow_opened")


class Teardown(wiring.Component):
    """See the module's text.

    Members
    -------
    packets: In(stream of FlowPacket); never stalled.
    installs: In(stream of FlowInstall): every later operation sees the state; state 0 gives a reserved index back.
    updates, updated: In(stream of FlowUpdate), Out(stream of {"status"}), in order.
    sent: In(stream of FlowSent). jobs: Out(stream of FlowJob).
    free: Out(stream of {"index"}): indices for new flows. exhausted: all are in use.
    delete, deleted: to the connection table, as in `TablePort`.
    replies: Out(stream of Reply). events: Out(stream of EventRequest): FLOW_DONE.
    tick, now, ts_clock: time; `now` in timer steps.
    time_wait, fin_wait_2, linger, max_rto, window: see `acceltcp.abi.registers.FLOWS`.
    find, found: look for the first flow in use at or after an index.
    ready: cleared after a reset.
    hold: put no new event, job or deletion on offer. idle: no event and no job is on offer.
    busy: there is work without further input but `tick`.
    counts: strobes.
    """

    def __init__(self, config):
        self._config = config
        table = TablePort(config.table).members
        index = config.flow_bits
        super().__init__(
            {
                "packets": In(stream.Signature(FlowPacket(config))),
                "installs": In(stream.Signature(FlowInstall(config))),
                "updates": In(stream.Signature(FlowUpdate(config))),
                "updated": Out(stream.Signature(data.StructLayout({"status": 8}))),
                "sent": In(stream.Signature(FlowSent(config))),
                "free": Out(stream.Signature(data.StructLayout({"index": index}))),
                "jobs": Out(stream.Signature(FlowJob(config))),
                "delete": table["delete"],
                "deleted": table["deleted"],
                "replies": Out(stream.Signature(Reply)),
                "events": Out(stream.Signature(EventRequest)),
                "tick": In(1),
                "now": Out(TIME_BITS),
                "ts_clock": In(32),
                **{name: In(TIME_BITS) for name in TIMES},
                "window": In(16),
                "find": In(data.StructLayout({"start": 1, "index": index})),
                "found": Out(
                    data.StructLayout(
                        {"busy": 1, "found": 1, "index": index, "record": message_layout(FLOW_RECORD)}
                    )
                ),
                "exhausted": Out(1),
                "ready": Out(1),
                "hold": In(1),
                "idle": Out(1),
                "busy": Out(1),
                "counts": Out(counts_layout(*_COUNTS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.waiting = waiting = StreamFifo(FlowPacket(config), PACKETS, kind="block")
        m.submodules.memory = memory = StateMemory(flow_layout(config), config.flows, FlowOp, config.ultra_ram)
        m.submodules.rules = rules = FlowRules(config)
        m.submodules.outputs = outputs = FlowOutputs(config, memory.latency)
        m.submodules.sweeper = sweeper = Sweeper(config.flows, memory.latency + 1)

        # Time.
        ticks = Signal(range(TIMER_TICKS))
        step = Signal()
        m.d.comb += step.eq(self.tick & (ticks == TIMER_TICKS - 1))
        with m.If(self.tick):
            m.d.sync += ticks.eq(Mux(step, 0, ticks + 1))
        with m.If(step):
            m.d.sync += self.now.eq(self.now + 1)

        # Segments wait for their turn; a full queue costs the segment.
        m.d.comb += [
            waiting.i.payload.eq(self.packets.payload),
            waiting.i.valid.eq(self.packets.valid),
            self.packets.ready.eq(1),
        ]
        m.d.sync += [
            self.counts.flow_packets.eq(self.packets.valid),
            self.counts.flow_drop_busy.eq(self.packets.valid & ~waiting.i.ready),
        ]

        op, index = Signal(FlowOp), Signal(config.flow_bits)
        begun = Signal()
        self._choose(m, waiting, memory, rules, sweeper, outputs, op, index, begun)

        # The operation meets its flow.
        m.d.comb += [
            memory.i_valid.eq(begun),
            memory.i_index.eq(index),
            memory.i_side.eq(op),
            rules.early_op.eq(memory.early_side),
            rules.early_state.eq(memory.early_state),
            rules.op.eq(memory.o_side),
            rules.state.eq(memory.o_state),
            rules.now.eq(self.now),
            *(getattr(rules, name).eq(getattr(self, name)) for name in TIMES),
            memory.next.eq(rules.next),
            memory.write.eq(rules.write),
            outputs.i_valid.eq(memory.o_valid),
            outputs.i_index.eq(memory.o_index),
            outputs.i_op.eq(memory.o_side),
            outputs.i_state.eq(rules.next),
            outputs.i_act.eq(rules.act),
            outputs.reply.eq(waiting.o.p.reply),
            outputs.window.eq(self.window),
            outputs.ts_clock.eq(self.ts_clock),
            outputs.hold.eq(self.hold),
            outputs.now.eq(self.now),
        ]
        for name in ("replies", "events", "jobs", "delete", "free"):
            connect(m, getattr(outputs, name), flipped(getattr(self, name)))

        # What the sweeper hears.
        m.d.comb += [
            sweeper.step.eq(step),
            sweeper.wanted.eq(outputs.free_wanted),
            sweeper.freed.eq(outputs.freed),
            sweeper.put_off.eq(outputs.put_off),
            sweeper.result.eq(outputs.swept),
            sweeper.used.eq(outputs.used),
            sweeper.given.eq(outputs.given),
            self.ready.eq(sweeper.ready),
            self.exhausted.eq(sweeper.exhausted),
        ]
        for name in outputs.counts.shape().members:
            m.d.comb += self.counts[name].eq(outputs.counts[name])
        inside = Signal(range(memory.latency + 3))
        m.d.sync += inside.eq(inside + begun - outputs.ended)
        m.d.comb += [
            self.idle.eq(outputs.idle),
            self.busy.eq(
                sweeper.busy | (waiting.level != 0) | (inside != 0) | outputs.busy | self.found.busy
                | self.installs.valid | self.updates.valid | self.sent.valid | self.deleted.valid
            ),
        ]  # fmt: skip
        return m

    def _choose(self, m, waiting, memory, rules, sweeper, outputs, op, index, begun):
        """Which operation begins in this cycle."""
        config = self._config
        # An installation's state waits beside the pipeline: one at a time, they are rare.
        installing = Signal(FlowInstall(config), reset_less=True)
        install_left = Signal(range(memory.latency + 1))
        update_open, status = Signal(), Signal(8, reset_less=True)
        update_told = Signal()
        m.d.comb += [
            self.updated.valid.eq(update_told),
            self.updated.p.status.eq(status),
            rules.install.eq(installing.state),
        ]
        find_index = Signal(config.flow_bits)
        find_wanted, find_granted = Signal(), Signal()
        self._find(m, sweeper, outputs, find_index, find_wanted, find_granted)

        segment, reply = waiting.o.p.segment, waiting.o.p.reply
        flag = {one: segment.flags[int(one).bit_length() - 1] for one in TCPFlag}
        seq = Signal(32)
        update = self.updates.p
        m.d.comb += [
            seq.eq(reply.ack - 1),
            op.seq.eq(seq),
            op.end.eq(seq + segment.payload_length),
            op.ack.eq(reply.seq + 1),
            op.tsval.eq(reply.tsecr),
            op.window.eq(segment.window),
            op.syn.eq(flag[TCPFlag.SYN]),
            op.fin.eq(flag[TCPFlag.FIN]),
            op.rst.eq(flag[TCPFlag.RST]),
            op.has_ack.eq(flag[TCPFlag.ACK]),
            op.timestamps.eq(segment.timestamps),
            op.bad.eq(segment.options_bad),
            op.answer.eq(waiting.o.p.answer),
            op.empty.eq(segment.payload_length == 0),
            op.status.eq(self.sent.p.status),
            op.snd_end.eq(update.snd_end),
            op.event_room.eq(outputs.event_room),
            op.job_room.eq(outputs.job_room),
            op.delete_room.eq(outputs.delete_room),
            op.give_room.eq(outputs.free_wanted_room),
            op.whole.eq(sweeper.whole),
            begun.eq(1),
        ]
        sweeper_waits = Signal(range(SWEEP_SHARE + 1))
        urgent = Signal()
        m.d.comb += urgent.eq(sweeper.clear | (sweeper_waits == SWEEP_SHARE))
        with m.If(sweeper.grant | ~sweeper.request):
            m.d.sync += sweeper_waits.eq(0)
        with m.Elif(sweeper_waits != SWEEP_SHARE):
            m.d.sync += sweeper_waits.eq(sweeper_waits + 1)

        with m.If(sweeper.request & urgent):
            m.d.comb += [
                op.kind.eq(Mux(sweeper.clear, OpKind.CLEAR, OpKind.SWEEP)),
                index.eq(sweeper.index),
                sweeper.grant.eq(1),
            ]
        with m.Elif(self.sent.valid):
            m.d.comb += [op.kind.eq(OpKind.SENT), index.eq(self.sent.p.index), self.sent.ready.eq(1)]
        with m.Elif(self.deleted.valid):
            m.d.comb += [op.kind.eq(OpKind.DELETED), index.eq(self.deleted.p.index), self.deleted.ready.eq(1)]
        with m.Elif(self.installs.valid & (install_left == 0)):
            m.d.comb += [op.kind.eq(OpKind.INSTALL), index.eq(self.installs.p.index), self.installs.ready.eq(1)]
        with m.Elif(self.updates.valid & ~update_open):
            m.d.comb += [
                op.kind.eq(OpKind.UPDATE),
                index.eq(update.index),
                op.ack.eq(update.ack),
                op.tsval.eq(update.ts_recent),
                op.window.eq(update.window),
                op.fin.eq(update.fin),
                op.abort.eq(update.abort),
                op.empty.eq(1),
                self.updates.ready.eq(1),
            ]
        with m.Elif(waiting.o.valid):
            m.d.comb += [op.kind.eq(OpKind.PACKET), index.eq(waiting.o.p.index), waiting.o.ready.eq(1)]
        with m.Elif(sweeper.request):
            m.d.comb += [op.kind.eq(OpKind.SWEEP), index.eq(sweeper.index), sweeper.grant.eq(1)]
        with m.Elif(find_wanted):
            m.d.comb += [op.kind.eq(OpKind.READ), index.eq(find_index), find_granted.eq(1)]
        with m.Else():
            m.d.comb += [op.kind.eq(OpKind.READ), begun.eq(0)]

        m.d.comb += [
            sweeper.install.eq(self.installs.valid & self.installs.ready & (self.installs.p.state.state != State.FREE)),
            sweeper.install_index.eq(self.installs.p.index),
        ]
        with m.If(install_left != 0):
            m.d.sync += install_left.eq(install_left - 1)
        with m.If(self.installs.valid & self.installs.ready):
            m.d.sync += [installing.eq(self.installs.payload), install_left.eq(memory.latency)]
        with m.If(self.updates.valid & self.updates.ready):
            m.d.sync += update_open.eq(1)
        with m.If(outputs.updated):
            m.d.sync += [update_told.eq(1), status.eq(Mux(outputs.update_found, Status.OK, Status.NOT_FOUND))]
        with m.If(self.updated.valid & self.updated.ready):
            m.d.sync += [update_told.eq(0), update_open.eq(0)]

    def _find(self, m, sweeper, outputs, index, wanted, granted):
        """Reads one entry after the other; groups that hold nothing are passed over."""
        config, found = self._config, self.found
        last = config.flows - 1
        inner = (GROUP - 1).bit_length()
        m.d.comb += [
            sweeper.probe.eq(index[inner:]),
            found.index.eq(index),
            found.record.eq(outputs.record),
        ]
        with m.FSM(name="find") as fsm:
            m.d.comb += found.busy.eq(~fsm.ongoing("Wait"))
            with m.State("Wait"):
                with m.If(self.find.start):
                    m.d.sync += [index.eq(self.find.index), found.found.eq(0)]
                    m.next = "Look at the group"
            with m.State("Look at the group"):
                m.next = "Skip it"
            with m.State("Skip it"):
                m.next = "Read"
                with m.If(~sweeper.probe_used):
                    m.d.sync += index.eq((index | (GROUP - 1)) + 1)
                    m.next = "Look at the group"
                    with m.If((index >> inner) == (last >> inner)):
                        m.next = "Wait"
            with m.State("Read"):
                m.d.comb += wanted.eq(1)
                with m.If(granted):
                    m.next = "Judge"
            with m.State("Judge"):
                with m.If(outputs.was_read):
                    m.d.sync += index.eq(index + 1)
                    m.next = "Look at the group"
                    with m.If(outputs.used):
                        m.d.sync += [index.eq(index), found.found.eq(1)]
                    with m.If(outputs.used | (index == last)):
                        m.next = "Wait"
