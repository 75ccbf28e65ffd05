"""`TxSchedule`: whose descriptor comes next.

Queues with buffered descriptors take turns, round robin; a queue's turn is up to 8
descriptors. A queue that has the NIC to itself goes on without a pause.

* Latency: 5 cycles from `pending` to the first pop.
* Throughput: one pop per cycle within a turn and between full turns; a turn that ends because the
  queue ran empty costs one cycle.
* Registered: nothing on `pop`; `pop.valid` comes from flip-flops through one multiplexer.
* Reset: forgets whose turn it is.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import NicConfig
from ..csr.bus import QUEUE_BITS
from .picker import RoundPicker

__all__ = ["TURN", "TxSchedule"]

TURN = 8
"""Descriptors that a queue may take in one turn."""


class TxSchedule(wiring.Component):
    """Chooses the queue of every pop.

    Members
    -------
    pending: one bit per queue: it has a buffered descriptor. Must be right in the cycle after a pop.
    hold: offer no further pop (one that is on offer stays).
    pop: Out(stream({"queue"})): to `DescriptorFetch`.
    """

    def __init__(self, config):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        self._queues = config.queues
        super().__init__(
            {
                "pending": In(config.queues),
                "hold": In(1),
                "pop": Out(stream.Signature(data.StructLayout({"queue": QUEUE_BITS}))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.picker = picker = RoundPicker(self._queues)
        queue = Signal(QUEUE_BITS)
        left = Signal(range(TURN), init=TURN - 1)
        here, offered, turn_over, change = Signal(), Signal(), Signal(), Signal()
        # Who is next, kept ready: so the end of a turn does not reach into the picker.
        waiting, waiting_queue = Signal(), Signal(QUEUE_BITS, reset_less=True)
        wanted = Signal()
        m.d.comb += [
            picker.requests.eq(self.pending),
            picker.take.eq(~waiting),
            here.eq(self.pending.bit_select(queue, 1)),
            wanted.eq(self.pending.bit_select(waiting_queue, 1)),
            self.pop.p.queue.eq(queue),
            self.pop.valid.eq(here & (~self.hold | offered)),
            turn_over.eq(~here | (self.pop.valid & self.pop.ready & (left == 0))),
            change.eq(turn_over & waiting & wanted),
        ]
        m.d.sync += offered.eq(self.pop.valid & ~self.pop.ready)
        with m.If(~waiting):
            m.d.sync += [waiting.eq(picker.valid), waiting_queue.eq(picker.index)]
        with m.Elif(change | ~wanted):
            # A pick whose queue has run empty meanwhile is thrown away.
            m.d.sync += waiting.eq(0)
        with m.If(turn_over):
            m.d.sync += left.eq(TURN - 1)
        with m.Elif(self.pop.valid & self.pop.ready):
            m.d.sync += left.eq(left - 1)
        with m.If(change):
            m.d.sync += queue.eq(waiting_queue)
        return m
