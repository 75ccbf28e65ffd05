"""`Doorbells`: what the host says about one kind of ring: base, size, and how far it is filled.

A doorbell is accepted if the queue is enabled and its index lies between the last one and a whole
ring past what has been taken out. Any other changes nothing, is counted and, if the queue is
enabled, reported.

* Latency: bus to `accepted` 1 cycle; bus to `error` 4 cycles. Throughput: one register write per cycle.
* Registered: everything from the bus; `error`. Overflow: refusals of a queue that come before the
  last one was reported are reported as one.
* Reset: all queues off.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..counts import counts_layout
from ..csr.bus import QUEUE_BITS, QueueBus, queue_word
from .picker import RoundPicker
from .queue_memory import QueueMemory

__all__ = ["Doorbells"]


class Doorbells(wiring.Component):
    """Ring registers of `queues` queues; `ring` is the prefix of their names.

    Members
    -------
    bus: In(QueueBus()).
    queue: the queue of this cycle's write, `clear` or `off`.
    accepted: `queue` has a new tail.
    clear: `queue` is being enabled: its indices become 0.
    off: `queue` is being disabled.
    working: a register write is being looked at.
    taken: index of `queue` up to which descriptors have been taken out.
    at: a queue; `base`, `size_log2` and `tail` are its.
    error: Out(stream({"queue"})): a doorbell was refused.
    idle: no refusal is unreported.
    counts: doorbell_errors.
    """

    def __init__(self, queues, ring):
        self._queues, self._ring = queues, ring
        super().__init__(
            {
                "bus": In(QueueBus()),
                "queue": Out(QUEUE_BITS),
                "accepted": Out(1),
                "clear": Out(1),
                "off": Out(1),
                "working": Out(1),
                "taken": In(16),
                "at": In(QUEUE_BITS),
                "base": Out(64),
                "size_log2": Out(4),
                "tail": Out(16),
                "error": Out(stream.Signature(data.StructLayout({"queue": QUEUE_BITS}))),
                "idle": Out(1),
                "counts": Out(counts_layout("doorbell_errors")),
            }
        )

    def elaborate(self, platform):
        m = Module()
        queues = self._queues

        # The bus, registered: it comes from far away.
        write = Signal()
        word, value = (
            Signal.like(self.bus.word, reset_less=True),
            Signal.like(self.bus.data, reset_less=True),
        )
        known = self.bus.queue < queues
        m.d.sync += [
            self.queue.eq(self.bus.queue),
            word.eq(self.bus.word),
            value.eq(self.bus.data),
            write.eq(self.bus.write & known),
            self.clear.eq(self.bus.enable & known),
            self.off.eq(self.bus.disable & known),
        ]
        m.d.comb += self.working.eq(write)

        def memory(register, width, readers):
            name = f"{self._ring}_{register}"
            m.submodules[register] = numbers = QueueMemory(queues, width, readers)
            m.d.comb += [
                numbers.write.eq(write & (word == queue_word(name))),
                numbers.write_queue.eq(self.queue),
                numbers.write_value.eq(value),
                numbers.read_queue[0].eq(self.at),
            ]
            return numbers

        base_low, base_high = memory("base_low", 32, 1), memory("base_high", 32, 1)
        size_log2 = memory("size", 4, 2)
        m.submodules.tail = tail = QueueMemory(queues, 16, 2)
        m.d.comb += [
            tail.read_queue[0].eq(self.at),
            self.base.eq(Cat(base_low.read_value[0], base_high.read_value[0])),
            self.size_log2.eq(size_log2.read_value[0]),
            self.tail.eq(tail.read_value[0]),
        ]

        enabled, onehot = Signal(queues), Signal(queues)
        m.d.comb += onehot.eq(1 << self.queue)
        with m.If(self.clear):
            m.d.sync += enabled.eq(enabled | onehot)
        with m.If(self.off):
            m.d.sync += enabled.eq(enabled & ~onehot)

        # Entries from what was taken to the old and to the new tail, modulo 2**16.
        doorbell = Signal()
        had, has, size = Signal(16), Signal(16), Signal(16)
        m.d.comb += [
            doorbell.eq(write & (word == queue_word(f"{self._ring}_tail"))),
            tail.read_queue[1].eq(self.queue),
            size_log2.read_queue[1].eq(self.queue),
            size.eq(1 << size_log2.read_value[1]),
            had.eq(tail.read_value[1] - self.taken),
            has.eq(value[:16] - self.taken),
            self.accepted.eq(doorbell & (enabled & onehot).any() & (has >= had) & (has <= size)),
            tail.write.eq(self.accepted | self.clear),
            tail.write_queue.eq(self.queue),
            tail.write_value.eq(Mux(self.clear, 0, value)),
        ]

        # Refusals: a bit per queue until it has been reported.
        refused, reported = Signal(queues), Signal(queues)
        rejected = doorbell & ~self.accepted
        m.submodules.picker = picker = RoundPicker(queues)
        m.d.comb += [
            picker.requests.eq(refused),
            picker.take.eq(self.error.ready | ~self.error.valid),
            self.error.p.queue.eq(picker.index),
            self.error.valid.eq(picker.valid & refused.bit_select(picker.index, 1)),
            reported.eq(Mux(self.error.valid & self.error.ready, 1 << picker.index, 0)),
            self.idle.eq(~refused.any()),
        ]
        m.d.sync += [
            refused.eq(
                (refused & ~reported | Mux(rejected, onehot & enabled, 0))
                & ~Mux(self.off | self.clear, onehot, 0)
            ),
            self.counts.doorbell_errors.eq(rejected),
        ]
        return m
