"""Rings that the NIC writes: who may use which slot.

Used for receive completions and for events alike. A ring has 2**log2
entries of 32 bytes; indices are 16 bits and free-running, so an index's bit `log2` tells
odd trips from even ones and is the complement of the phase: no other state is needed.

`RingSlots` keeps the indices. A slot is *claimed* before there is anything to write, so the
ring can never overflow, and a claim ends as either *used* (it gets the next index) or
*given back*; claims end in the order in which they were made, so indices have no holes.

`RefusedDoorbells` remembers which queues' doorbells were refused until somebody is told.
Latencies, overflow and reset: see the components. Entries are written by `EntryWriter`.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature, connect, flipped

from acceltcp.abi.messages import RX_COMPLETION

from ..counts import counts_layout
from ..csr.bus import QUEUE_BITS, QueueBus, queue_word
from .picker import RoundPicker
from .queue_memory import bus_memory, queue_memory

__all__ = [
    "ENTRY_BYTES",
    "ClaimPort",
    "FinishPort",
    "LOG2_BITS",
    "Posted",
    "QueueNumber",
    "RefusedDoorbells",
    "RingEntry",
    "RingSlots",
]

ENTRY_BYTES = RX_COMPLETION.size
"""Size of a completion and of an event."""

LOG2_BITS = 4
"""Width of a ring size, log2 of the number of entries."""


class QueueNumber(data.Struct):
    """A queue."""

    queue: QUEUE_BITS


class Posted(data.Struct):
    """Entries up to, not including, `index` of this queue's ring are in host memory."""

    valid: 1
    queue: QUEUE_BITS
    index: 16


class RingEntry(data.Struct):
    """An entry and its place. The phase (its most significant bit) is filled in on the way."""

    queue: QUEUE_BITS
    index: 16
    entry: 8 * ENTRY_BYTES


class ClaimPort(Signature):
    """Ask for a slot, from the asker's side; answered in the same cycle.

    With `strobe` a slot is taken, provided that `ready`, `enabled` and `free` are high.
    """

    def __init__(self):
        super().__init__(
            {
                "queue": Out(8),
                "strobe": Out(1),
                "ready": In(1),  # low while a queue is being enabled: try again
                "enabled": In(1),  # the queue exists and is on
                "free": In(1),  # there is a slot
            }
        )


class FinishPort(Signature):
    """End the oldest claim of `queue`, from the asker's side; answered in the same cycle."""

    def __init__(self):
        super().__init__(
            {
                "queue": Out(QUEUE_BITS),
                "strobe": Out(1),
                "use": Out(1),  # 1: use the slot, whose number is `index`; 0: give it back
                "ready": In(1),
                "index": In(16),
            }
        )


class RefusedDoorbells(wiring.Component):
    """Remembers which queues had a doorbell refused until somebody has been told.

    Members
    -------
    strobe, forget : In(1)
        A doorbell of `queue` was refused; forget those of `queue`.
    queue : In(QUEUE_BITS)
    o : Out(stream.Signature(QueueNumber))
    idle : Out(1)
    """

    def __init__(self, queues):
        self._queues = queues
        super().__init__(
            {
                "strobe": In(1),
                "forget": In(1),
                "queue": In(QUEUE_BITS),
                "o": Out(stream.Signature(QueueNumber)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        waiting = Signal(self._queues)
        # One report at a time is on its way to the output and stays whatever happens.
        m.submodules.picker = picker = RoundPicker(self._queues)
        valid = Signal()
        free = Signal()
        m.d.comb += [
            free.eq(~valid | self.o.ready),
            picker.requests.eq(waiting),
            picker.take.eq(free),
            self.o.valid.eq(valid),
            self.idle.eq(~waiting.any() & ~valid),
        ]
        with m.If(free):
            chosen = waiting.bit_select(picker.index, 1)
            m.d.sync += [valid.eq(picker.valid & chosen), self.o.payload.queue.eq(picker.index)]
            with m.If(picker.valid):
                m.d.sync += chosen.eq(0)
        with m.If(self.strobe):
            m.d.sync += waiting.bit_select(self.queue, 1).eq(1)
        with m.If(self.forget):
            m.d.sync += waiting.bit_select(self.queue, 1).eq(0)
        return m


class RingSlots(wiring.Component):
    """Indices of one kind of ring of all queues.

    Claims and finishes are answered in the same cycle, one of each per cycle, for the same
    queue or others; drive them from registers (about 7 levels of logic lie behind them).
    `ready` is low for the one cycle in which a queue is enabled. Enabling puts all of the
    queue's indices to 0. Nothing may be claimed at the moment a queue is disabled.

    A head doorbell is refused when the queue is off or when it consumes
    more than was produced. What counts as produced is a used slot, not an answered write:
    the host may see an entry, and say so, before the write's answer has come back.

    Parameters
    ----------
    config : NicConfig
    ring : "rx_completion" or "event", the prefix of the ring's registers

    Members
    -------
    bus : In(QueueBus())
    claim : In(ClaimPort())
    finish : In(FinishPort())
    doorbell_error : Out(stream.Signature(QueueNumber))
        A doorbell of this enabled queue was refused; several may be reported as one.
    counts : Out(doorbell_errors), 2 cycles after the bus
    idle : Out(1)
        No refused doorbell waits to be reported.
    """

    def __init__(self, config, ring):
        if ring not in ("rx_completion", "event"):
            raise ValueError(f"ring must be 'rx_completion' or 'event', not {ring!r}")
        self._config, self._ring = config, ring
        super().__init__(
            {
                "bus": In(QueueBus()),
                "claim": In(ClaimPort()),
                "finish": In(FinishPort()),
                "doorbell_error": Out(stream.Signature(QueueNumber)),
                "counts": Out(counts_layout("doorbell_errors")),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, ring = self._config, self._ring
        exists = self.bus.queue < config.queues
        enabled = Signal(config.queues)
        # One cycle late, so that memories are reset from registers.
        enable, doorbell = Signal(), Signal()
        queue, index = Signal(QUEUE_BITS, reset_less=True), Signal(16, reset_less=True)
        m.d.sync += [
            enable.eq(self.bus.enable & exists),
            doorbell.eq(self.bus.write & (self.bus.word == queue_word(f"{ring}_head")) & exists),
            queue.eq(self.bus.queue),
            index.eq(self.bus.data),
        ]
        with m.If(self.bus.disable & exists):
            m.d.sync += enabled.bit_select(self.bus.queue, 1).eq(0)
        with m.If(enable):
            m.d.sync += enabled.bit_select(queue, 1).eq(1)

        sizes = bus_memory(m, config.queues, self.bus, "sizes", f"{ring}_size", LOG2_BITS)
        # Free-running counts per queue: claims, claims given back, slots used, slots consumed.
        claimed = queue_memory(m, config.queues, "claimed", 16)
        returned = queue_memory(m, config.queues, "returned", 16)
        produced = queue_memory(m, config.queues, "produced", 16)
        consumed = queue_memory(m, config.queues, "consumed", 16)

        def count(memory, at, strobe, new):
            """Write `new`, or 0 while a queue is enabled."""
            port = memory.write_port()
            m.d.comb += [
                port.addr.eq(Mux(enable, queue, at)),
                port.data.eq(Mux(enable, 0, new)),
                port.en.eq(enable | strobe),
            ]

        def look(memory, at):
            port = memory.read_port(domain="comb")
            m.d.comb += port.addr.eq(at)
            return port.data

        # Claim. Claims in force = claimed - returned - consumed, never more than the ring has.
        claim, finish = self.claim, self.finish
        taken, in_force = Signal(), Signal(16)
        claims = look(claimed, claim.queue)
        m.d.comb += [
            claim.ready.eq(~enable),
            claim.enabled.eq(enabled.bit_select(claim.queue, 1) & (claim.queue < config.queues)),
            in_force.eq(claims - look(returned, claim.queue) - look(consumed, claim.queue)),
            claim.free.eq(~in_force.bit_select(look(sizes, claim.queue), 1)),
            taken.eq(claim.strobe & claim.ready & claim.enabled & claim.free),
        ]
        count(claimed, claim.queue, taken, claims + 1)

        # Finish.
        m.d.comb += [finish.ready.eq(~enable), finish.index.eq(look(produced, finish.queue))]
        count(produced, finish.queue, finish.strobe & finish.use, finish.index + 1)
        returns = look(returned, finish.queue)
        count(returned, finish.queue, finish.strobe & ~finish.use, returns + 1)

        # Doorbell.
        head, used = look(consumed, queue), look(produced, queue)
        step, limit = Signal(16), Signal(16)
        on, good = Signal(), Signal()
        m.d.comb += [
            step.eq(index - head),
            limit.eq(used - head),
            on.eq(enabled.bit_select(queue, 1)),
            good.eq((step <= limit) & on),
        ]
        count(consumed, queue, doorbell & good, index)
        m.d.sync += self.counts.doorbell_errors.eq(doorbell & ~good)
        m.submodules.refused = refused = RefusedDoorbells(config.queues)
        connect(m, refused.o, flipped(self.doorbell_error))
        m.d.comb += [
            refused.strobe.eq(doorbell & on & ~good),
            refused.forget.eq(enable),
            refused.queue.eq(queue),
            self.idle.eq(refused.idle),
        ]
        return m
