"""Receive DMA, third part: a completion leaves once the bus has answered all of its payload.

Latency: 1 cycle from the last answer. Throughput: one packet per cycle when each is one
burst, else one answer per cycle. `entries` and `events` are registered. A refused burst
makes the completion's status BAD_ADDRESS and its length 0; every completion whose status
is not OK is also told by an RX_ERROR event. Overflow: stalls its inputs. Reset: forgets.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.messages import EventType, Status

from ..config import AXI_BYTES
from ..counts import counts_layout
from .axi import WriteDone
from .events import EventRequest
from .ring import RingEntry
from .rx_allocate import RxRecord

__all__ = ["RxComplete"]


class RxComplete(wiring.Component):
    """See the module's docstring.

    Members
    -------
    records : In(stream.Signature(RxRecord))
        In the order of the payload's bursts.
    answered : In(stream.Signature(WriteDone))
    entries : Out(stream.Signature(RingEntry))
    events : Out(stream.Signature(EventRequest))
    counts : Out(rx_host_packets, rx_host_bytes, rx_buffer_errors)
    ended : Out(1)
        A packet has ended: its completion is on its way.
    idle : Out(1)
        Nothing is held.
    """

    def __init__(self, axi_bytes=AXI_BYTES):
        super().__init__(
            {
                "records": In(stream.Signature(RxRecord(axi_bytes))),
                "answered": In(stream.Signature(WriteDone)),
                "entries": Out(stream.Signature(RingEntry)),
                "events": Out(stream.Signature(EventRequest)),
                "counts": Out(counts_layout("rx_host_packets", "rx_host_bytes", "rx_buffer_errors")),
                "ended": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        record = self.records.payload
        got, refused = Signal.like(record.bursts, name="got"), Signal()  # answers for the first record, and whether one was bad
        entry, entry_valid = Signal(RingEntry, reset_less=True), Signal()
        event_valid = Signal()
        told = Signal.like(record.completion.tag, reset_less=True)
        told_status = Signal.like(record.completion.status, reset_less=True)
        told_queue = Signal.like(record.queue, reset_less=True)

        none, room, last, done = Signal(), Signal(), Signal(), Signal()
        bad_write, status = Signal(), Signal.like(record.completion.status)
        m.d.comb += [
            none.eq(record.bursts == 0),
            room.eq((~entry_valid | self.entries.ready) & (~event_valid | self.events.ready)),
            last.eq(got + 1 == record.bursts),
            self.answered.ready.eq(self.records.valid & ~none & (~last | room)),
            done.eq(self.records.valid & room & (none | (last & self.answered.valid))),
            self.records.ready.eq(room & (none | (last & self.answered.valid))),
            bad_write.eq(~none & (refused | self.answered.payload.error)),
            status.eq(Mux(bad_write, Status.BAD_ADDRESS, record.completion.status)),
            self.ended.eq(done),
            self.idle.eq(~entry_valid & ~event_valid),
        ]
        with m.If(done):
            m.d.sync += [got.eq(0), refused.eq(0)]
        with m.Elif(self.answered.valid & self.answered.ready):
            m.d.sync += [got.eq(got + 1), refused.eq(refused | self.answered.payload.error)]

        with m.If(self.entries.ready):
            m.d.sync += entry_valid.eq(0)
        with m.If(self.events.ready):
            m.d.sync += event_valid.eq(0)
        completion = Signal.like(record.completion)
        m.d.comb += [completion.eq(record.completion), completion.status.eq(status)]
        with m.If(bad_write):
            m.d.comb += completion.length.eq(0)
        with m.If(done):
            m.d.sync += [
                entry_valid.eq(1),
                entry.queue.eq(record.queue),
                entry.index.eq(record.index),
                entry.entry.eq(completion),
                event_valid.eq(status != Status.OK),
                told.eq(record.completion.tag),
                told_status.eq(status),
                told_queue.eq(record.queue),
            ]
        m.d.comb += [
            self.entries.payload.eq(entry),
            self.entries.valid.eq(entry_valid),
            self.events.valid.eq(event_valid),
            self.events.payload.queue.eq(told_queue),
            self.events.payload.event.type.eq(EventType.RX_ERROR),
            self.events.payload.event.status.eq(told_status),
            self.events.payload.event.queue.eq(told_queue),
            self.events.payload.event.tag.eq(told),
        ]

        ended_well, length = Signal(), Signal(16, reset_less=True)
        m.d.sync += [
            ended_well.eq(done & (status == Status.OK)),
            length.eq(record.completion.length),
            self.counts.rx_buffer_errors.eq(done & (status != Status.OK)),
        ]
        m.d.comb += [
            self.counts.rx_host_packets.eq(ended_well),
            self.counts.rx_host_bytes.eq(Mux(ended_well, length, 0)),
        ]
        return m
