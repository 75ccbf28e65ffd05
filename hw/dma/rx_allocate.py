"""Receive DMA, first part: every packet gets a completion slot and a buffer, or is dropped.

Before a packet is taken out of its receive buffer, a slot of its queue's completion ring is
claimed and a buffer is popped, so whatever is taken can be finished. In order:

* no queue, or it is off, or it has no buffer: dropped, `rx_drop_no_buffer`; a claimed slot
  is given back;
* no slot: dropped, `rx_drop_completion_full`; no buffer is popped;
* the buffer is no good (length 0, above 65,535 or too small, address wraps round, or its
  descriptor could not be read): the packet is dropped, and a completion without bytes
  gives the buffer back;
* else the packet is taken, and a plan tells the payload writer where it goes.

What happens to a packet here changes nothing for the splice rewriter: a packet to forward is taken in any case.

Latency: about 12 cycles from `dispatch` to `take` (5 of them in the descriptor fetch), one more
to `plan` and `records`. Throughput: one packet per cycle. `dispatch.ready` depends on registers only; outputs are registered.
Overflow: stalls `dispatch`. Reset: forgets what is under way; every queue is off.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from acceltcp.abi.messages import RX_COMPLETION, RX_FREE, Status

from ..abi import message_layout
from ..config import AXI_BYTES
from ..counts import counts_layout
from ..csr.bus import QUEUE_BITS, QueueBus
from ..packet.meta import RxDispatch
from ..stream.fifo import StreamFifo
from ..stream.fork import TAKE
from .axi import burst_bytes
from .descriptors import Popped
from .ring import QueueNumber, RingSlots

__all__ = ["RxAllocate", "RxPlan", "RxRecord"]

_PENDING = 32  # packets between claim and popped buffer: more than the latency of a pop
_TAKES = 16
_FRAME = 1 << 14  # above every `max_frame`


def RxPlan(axi_bytes=AXI_BYTES):  # noqa: N802
    """Where a packet goes. `lane` is a byte's position in its line, which is as long as the bus is wide."""
    lane_bits = exact_log2(axi_bytes)
    return data.StructLayout(
        {
            "port": 1,
            "line": 64 - lane_bits,  # address / axi_bytes
            "shift": lane_bits,  # lane of the first byte
            "end": lane_bits,  # lane of the last byte
            "lines": 15 - lane_bits,  # lines touched, less one
            "residual": 1,  # more lines than beats: the last line has no beat of its own
        }
    )


def RxRecord(axi_bytes=AXI_BYTES):  # noqa: N802
    """A completion that waits for `bursts` write answers: 0 to one more than the largest frame has bursts."""
    bursts = _FRAME // burst_bytes(axi_bytes) + 1
    return data.StructLayout(
        {"queue": QUEUE_BITS, "index": 16, "bursts": range(bursts + 1), "completion": message_layout(RX_COMPLETION)}
    )


class RxAllocate(wiring.Component):
    """See the module's docstring.

    Members
    -------
    bus : In(QueueBus())
    hold : In(1)
        Accept nothing new.
    dispatch : In(stream.Signature(RxDispatch))
        `completion.length`, the frame's length, is at least 1.
    pop, popped
        To the fetch of RX_FREE descriptors.
    take : Out(stream.Signature(TAKE)), one per port
    plan : Out(stream.Signature(RxPlan(config.axi_bytes)))
        One per packet taken for the host, in the order of the takes.
    records : Out(stream.Signature(RxRecord(config.axi_bytes)))
        One per buffer popped, in order.
    doorbell_error : Out(stream.Signature(QueueNumber))
        Of the completion ring.
    counts : Out(rx_drop_no_buffer, rx_drop_completion_full, doorbell_errors)
    ended : Out(1)
        A dispatch has ended here, without a record.
    idle : Out(1)
        No take and no refused doorbell waits. Says nothing of dispatches under way.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "bus": In(QueueBus()),
                "hold": In(1),
                "dispatch": In(stream.Signature(RxDispatch)),
                "pop": Out(stream.Signature(data.StructLayout({"queue": QUEUE_BITS}))),
                "popped": In(stream.Signature(Popped)),
                "take": Out(stream.Signature(TAKE)).array(config.ports),
                "plan": Out(stream.Signature(RxPlan(config.axi_bytes))),
                "records": Out(stream.Signature(RxRecord(config.axi_bytes))),
                "doorbell_error": Out(stream.Signature(QueueNumber)),
                "counts": Out(
                    counts_layout("rx_drop_no_buffer", "rx_drop_completion_full", "doorbell_errors")
                ),
                "ended": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.slots = slots = RingSlots(self._config, "rx_completion")
        connect(m, flipped(self.bus), slots.bus)
        connect(m, slots.doorbell_error, flipped(self.doorbell_error))
        m.d.comb += self.counts.doorbell_errors.eq(slots.counts.doorbell_errors)

        # Stage 1: claim a slot, then ask for a buffer.
        s1, s1_valid, s1_go = Signal(RxDispatch, reset_less=True), Signal(), Signal()
        waiting = data.StructLayout({"dispatch": RxDispatch, "wants": 1, "full": 1})
        m.submodules.pending = pending = StreamFifo(waiting, _PENDING, kind="block")
        pop_valid, pop_queue = Signal(), Signal(QUEUE_BITS, reset_less=True)
        open_ = Signal()
        wants = Signal()
        m.d.comb += [
            slots.claim.queue.eq(s1.queue),
            s1_go.eq(slots.claim.ready & pending.i.ready & (~pop_valid | self.pop.ready)),
            wants.eq(s1.keep & slots.claim.enabled & slots.claim.free),
            slots.claim.strobe.eq(s1_valid & s1_go & s1.keep),
            pending.i.valid.eq(s1_valid & s1_go),
            pending.i.payload.dispatch.eq(s1),
            pending.i.payload.wants.eq(wants),
            pending.i.payload.full.eq(slots.claim.enabled & ~slots.claim.free),
            self.pop.valid.eq(pop_valid),
            self.pop.payload.queue.eq(pop_queue),
            open_.eq(~self.hold & (~s1_valid | s1_go)),
            self.dispatch.ready.eq(open_),
        ]
        with m.If(self.pop.ready):
            m.d.sync += pop_valid.eq(0)
        with m.If(s1_valid & s1_go):
            m.d.sync += [s1_valid.eq(0), pop_valid.eq(wants), pop_queue.eq(s1.queue)]
        with m.If(open_):
            m.d.sync += [s1_valid.eq(self.dispatch.valid), s1.eq(self.dispatch.payload)]

        # Stage 2: the buffer, or none.
        p2 = pending.o.payload
        s2, s2_valid, s2_go = Signal(waiting, reset_less=True), Signal(), Signal()
        buffer = Signal(Popped, reset_less=True)
        join, s2_open = Signal(), Signal()
        m.d.comb += [
            s2_open.eq(~s2_valid | s2_go),
            join.eq(pending.o.valid & (~p2.wants | self.popped.valid) & s2_open),
            pending.o.ready.eq(join),
            self.popped.ready.eq(join & p2.wants),
        ]
        with m.If(s2_open):
            m.d.sync += [s2_valid.eq(join), s2.eq(p2), buffer.eq(self.popped.payload)]

        # Stage 3: finish the claim; judge the buffer.
        free = Signal(message_layout(RX_FREE))
        has, frame = Signal(), s2.dispatch.completion.length
        buffer_end = Signal(17)
        s3, s3_valid, s3_go = Signal(waiting, reset_less=True), Signal(), Signal()
        s3_open = Signal()
        s3_free = Signal(free.shape(), reset_less=True)
        has3, index = Signal(reset_less=True), Signal(16, reset_less=True)
        bad_length, bad_read = Signal(reset_less=True), Signal(reset_less=True)
        span = Signal(17, reset_less=True)
        m.d.comb += [
            free.eq(buffer.descriptor),
            has.eq(s2.wants & buffer.ok),
            slots.finish.queue.eq(s2.dispatch.queue),
            slots.finish.use.eq(has),
            slots.finish.strobe.eq(s2_valid & s2_go & s2.wants),
            s3_open.eq(~s3_valid | s3_go),
            s2_go.eq(s3_open & slots.finish.ready),
            buffer_end.eq(free.address[:16] + free.length[:16]),
        ]
        with m.If(s3_open):
            m.d.sync += [
                s3_valid.eq(s2_valid & s2_go),
                s3.eq(s2),
                s3_free.eq(free),
                has3.eq(has),
                index.eq(slots.finish.index),
                bad_read.eq(buffer.error),
                bad_length.eq(
                    free.length[16:].any()
                    | (free.length[:16] < frame)
                    | (free.address[16:].all() & buffer_end[16] & buffer_end[:16].any())
                ),
                span.eq(free.address[: exact_log2(burst_bytes(self._config.axi_bytes))] + frame),
            ]
        lost = s2_valid & s2_go & s2.dispatch.keep & ~has
        m.d.sync += [
            self.counts.rx_drop_completion_full.eq(lost & s2.full),
            self.counts.rx_drop_no_buffer.eq(lost & ~s2.full),
        ]

        self._decide(m, s3, s3_valid, s3_go, s3_free, has3, index, bad_length, bad_read, span)
        m.d.comb += self.idle.eq(
            slots.idle & ~Cat(take.valid for take in self.take).any()
        )
        return m

    def _decide(self, m, s3, s3_valid, s3_go, free, has, index, bad_length, bad_read, span):
        """Stage 4: take, plan and record, each through its own FIFO or straight out."""
        valid, go = Signal(), Signal()
        port, keep, has4 = Signal(reset_less=True), Signal(reset_less=True), Signal(reset_less=True)
        forward = Signal(reset_less=True)
        lane_bits = exact_log2(self._config.axi_bytes)
        plan_layout, record_layout = RxPlan(self._config.axi_bytes), RxRecord(self._config.axi_bytes)
        plan = Signal(plan_layout, reset_less=True)
        record = Signal(record_layout, reset_less=True)
        completion = s3.dispatch.completion
        final = Signal(16)  # frame length - 1
        first_end = Signal(lane_bits + 1)
        last = Signal(17)
        bad = bad_length | bad_read
        m.d.comb += [
            final.eq(completion.length - 1),
            first_end.eq(free.address[:lane_bits] + final[:lane_bits]),
            last.eq(span - 1),
            s3_go.eq(~valid | go),
        ]
        with m.If(s3_go):
            m.d.sync += [
                valid.eq(s3_valid),
                port.eq(s3.dispatch.port),
                has4.eq(has),
                keep.eq(has & ~bad),
                forward.eq(s3.dispatch.forward),
                plan.port.eq(s3.dispatch.port),
                plan.line.eq(free.address[lane_bits:]),
                plan.shift.eq(free.address[:lane_bits]),
                plan.end.eq(first_end[:lane_bits]),
                plan.residual.eq(first_end[lane_bits]),
                plan.lines.eq(final[lane_bits:] + first_end[lane_bits]),
                record.queue.eq(s3.dispatch.queue),
                record.index.eq(index),
                record.bursts.eq(Mux(bad, 0, last[exact_log2(burst_bytes(self._config.axi_bytes)) :] + 1)),
                record.completion.eq(completion),
                # A descriptor that could not be read has no tag to give back.
                record.completion.tag.eq(Mux(bad_read, 0, free.tag)),
                record.completion.status.eq(
                    Mux(bad_read, Status.BAD_ADDRESS, Mux(bad_length, Status.BAD_LENGTH, Status.OK))
                ),
            ]
            with m.If(bad):
                m.d.sync += record.completion.length.eq(0)

        # All three leave in the same cycle. Each `ready` below stays until it is used.
        m.submodules.plans = plans = StreamFifo(plan_layout, _TAKES, kind="block")
        connect(m, plans.o, flipped(self.plan))
        ready = Signal()
        with m.Switch(port):
            for k in range(self._config.ports):
                takes = StreamFifo(TAKE, _TAKES, kind="lutram")
                m.submodules[f"take{k}"] = takes
                connect(m, takes.o, flipped(self.take[k]))
                with m.Case(k):
                    m.d.comb += [ready.eq(takes.i.ready), takes.i.valid.eq(valid & go)]
                m.d.comb += [takes.i.p.host.eq(keep), takes.i.p.forward.eq(forward)]
        m.submodules.held = held = StreamFifo(record_layout, 4, kind="block")
        connect(m, held.o, flipped(self.records))
        m.d.comb += [
            go.eq(ready & plans.i.ready & held.i.ready),
            plans.i.payload.eq(plan),
            plans.i.valid.eq(valid & go & keep),
            held.i.payload.eq(record),
            held.i.valid.eq(valid & go & has4),
            self.ended.eq(valid & go & ~has4),
        ]
