"""Events to the host: many sources, one ring per queue.

Latency: 8 cycles from `i` to the write request, and a few more when the entry waits for a
neighbour (see `EntryWriter`). Throughput: one event per cycle over all inputs, half a beat
of the bus each when neighbours follow each other. `i[k].ready` depends on registers and on
who asks only. Overflow: an event for a full ring is lost, counted, and told of by `overflow`
in the next event of that queue; one for a queue that is off is lost and counted. Neither
ever stalls a source. Reset: forgets what is in flight; every queue is off.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.messages import EVENT, EventType, Status

from ..abi import message_layout
from ..counts import counts_layout
from ..csr.bus import QueueBus
from ..stream.merge import StreamMerge
from .axi import WritePort
from .entry_writer import EntryWriter
from .ring import Posted, QueueNumber, RingEntry, RingSlots

__all__ = ["DoorbellEvents", "EventRequest", "EventWriter"]


class EventRequest(data.Struct):
    """One event for `queue`'s ring; `phase` and `overflow` are filled in by the writer."""

    queue: 8
    event: message_layout(EVENT)


class DoorbellEvents(wiring.Component):
    """Turns refused doorbells into QUEUE_ERROR events; combinational.

    Members
    -------
    i : In(stream.Signature(QueueNumber))
    o : Out(stream.Signature(EventRequest))
    """

    i: In(stream.Signature(QueueNumber))
    o: Out(stream.Signature(EventRequest))

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
            self.o.payload.queue.eq(self.i.payload.queue),
            self.o.payload.event.queue.eq(self.i.payload.queue),
            self.o.payload.event.type.eq(EventType.QUEUE_ERROR),
            self.o.payload.event.status.eq(Status.BAD_DOORBELL),
        ]
        return m


class EventWriter(wiring.Component):
    """Writes events; see the module's docstring.

    There is no `hold`: events end what others have begun, so whoever quiesces the NIC
    holds the sources and waits for `idle`.

    Parameters
    ----------
    config : NicConfig
    inputs : int
        Number of sources, served round robin.

    Members
    -------
    bus : In(QueueBus())
    i : In(stream.Signature(EventRequest)), one per source
    write : Out(WritePort())
    posted : Out(Posted)
    counts : Out(event_overflow, doorbell_errors)
    idle : Out(1)
    """

    def __init__(self, config, inputs=1):
        if not isinstance(inputs, int) or inputs < 1:
            raise ValueError(f"inputs must be at least 1, not {inputs!r}")
        self._config, self._inputs = config, inputs
        super().__init__(
            {
                "bus": In(QueueBus()),
                "i": In(stream.Signature(EventRequest)).array(inputs),
                "write": Out(WritePort(config.axi_bytes)),
                "posted": Out(Posted),
                "counts": Out(counts_layout("event_overflow", "doorbell_errors")),
                "idle": Out(1),
            }
        )

    @property
    def inputs(self):
        """Number of sources."""
        return self._inputs

    def elaborate(self, platform):
        m = Module()
        m.submodules.slots = slots = RingSlots(self._config, "event")
        m.submodules.writer = writer = EntryWriter(self._config, "event")
        connect(m, flipped(self.bus), slots.bus)
        connect(m, flipped(self.bus), writer.bus)
        connect(m, flipped(self.write), writer.write)

        # Stage 1: one source per cycle. This ring's own refused doorbells are one of them.
        m.submodules.request = request = StreamMerge(EventRequest, self._inputs + 1)
        m.submodules.doorbells = doorbells = DoorbellEvents()
        connect(m, slots.doorbell_error, doorbells.i)
        connect(m, doorbells.o, request.i[self._inputs])
        for k, i in enumerate(self.i):
            connect(m, flipped(i), request.i[k])

        # Stage 2: a slot, or the event is lost.
        lost = Signal(self._config.queues)  # events of this queue were lost since the last one
        entry, valid = Signal(RingEntry, reset_less=True), Signal()
        asks, go, good = Signal(), Signal(), Signal()
        queue = request.o.payload.queue
        m.d.comb += [
            slots.claim.queue.eq(queue),
            slots.finish.queue.eq(queue),
            slots.finish.use.eq(1),
            go.eq((~valid | writer.i.ready) & slots.claim.ready),
            request.o.ready.eq(go),
            asks.eq(go & request.o.valid),
            good.eq(slots.claim.enabled & slots.claim.free),
            slots.claim.strobe.eq(asks),
            slots.finish.strobe.eq(asks & good),
            writer.i.payload.eq(entry),
            writer.i.valid.eq(valid),
            self.idle.eq(request.idle & ~valid & writer.idle & slots.idle),
        ]
        with m.If(writer.i.ready):
            m.d.sync += valid.eq(0)
        with m.If(asks):
            event = Signal.like(request.o.payload.event)
            m.d.comb += [
                event.eq(request.o.payload.event),
                event.overflow.eq(lost.bit_select(queue, 1)),
            ]
            m.d.sync += [
                valid.eq(good),
                entry.queue.eq(queue),
                entry.index.eq(slots.finish.index),
                entry.entry.eq(event),
            ]
            with m.If(slots.claim.enabled):
                m.d.sync += lost.bit_select(queue, 1).eq(~slots.claim.free)
        with m.If(self.bus.enable & (self.bus.queue < self._config.queues)):
            m.d.sync += lost.bit_select(self.bus.queue, 1).eq(0)
        m.d.sync += self.counts.event_overflow.eq(asks & ~good)

        m.d.comb += [
            self.posted.eq(writer.posted),
            self.counts.doorbell_errors.eq(slots.counts.doorbell_errors),
        ]
        return m
