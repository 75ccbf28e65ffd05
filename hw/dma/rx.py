"""Receive DMA: packets with a verdict to host memory, and their completions.

    dispatch -> RxAllocate -- take --> receive buffers --> packets -> RxWrite -> payload writes
                 |  ^  |  \\-- plan ------------------------------------^   |
      DescriptorFetch  |                                                   | answers
      (free buffers)    \\-- records --> FIFO ------------------------> RxComplete -> EntryWriter

Latency: about 12 cycles from `dispatch` to `take`, 8 from a packet's beat to its write, 7 from
the last answer to the completion's write. Throughput: one line (as wide as the bus) per cycle; with
one-line packets to one queue two packets in three bus beats, for as long as `config.writes`
packets hide the bus's latency. Ordering: completions of a queue are written in the order of
`dispatch`, each only after the bus has answered all writes of its payload.
Overflow: stalls `dispatch`; packets without buffer or completion slot are dropped and counted.
Reset: forgets what is under way; every queue is off.

This file only wires, and counts what is in flight.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ..counts import counts_layout
from ..csr.bus import QueueBus
from ..packet.meta import RxDispatch
from ..stream.beat import packet_stream
from ..stream.fifo import StreamFifo
from ..stream.fork import TAKE
from ..stream.merge import StreamMerge
from ..stream.width import Upsizer
from .axi import ReadPort, WritePort
from .completions import RxComplete
from .descriptors import DescriptorFetch
from .entry_writer import EntryWriter
from .events import DoorbellEvents, EventRequest
from .ring import Posted
from .rx_allocate import RxAllocate, RxRecord
from .rx_write import RxWrite

__all__ = ["RxDma"]

_COUNTS = (
    "rx_drop_no_buffer",
    "rx_drop_completion_full",
    "rx_host_packets",
    "rx_host_bytes",
    "rx_buffer_errors",
    "doorbell_errors",
)


class RxDma(wiring.Component):
    """See the module's docstring.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    bus : In(QueueBus())
    hold : In(1)
        Accept no new dispatch and fetch no more descriptors.
    idle : Out(1)
        Nothing is in flight, the last completion's answer included.
    dispatch : In(stream.Signature(RxDispatch))
    take : Out(stream.Signature(TAKE)), one per port
    packets : In(packet_stream(config.width)), one per port
        Packets taken for the host, in that order.
    free_read : Out(ReadPort())
        Fetch of RX_FREE descriptors.
    write, completion_write : Out(WritePort())
    posted : Out(Posted)
        Completions that are in host memory.
    events : Out(stream.Signature(EventRequest))
        RX_ERROR, and QUEUE_ERROR for refused doorbells of the two receive rings.
    counts : Out(rx_drop_no_buffer, rx_drop_completion_full, rx_host_packets, rx_host_bytes,
                 rx_buffer_errors, doorbell_errors)
    """

    def __init__(self, config):
        self._config = config
        packets = In(packet_stream(config.width)).array(config.ports)
        super().__init__(
            {
                "bus": In(QueueBus()),
                "hold": In(1),
                "idle": Out(1),
                "dispatch": In(stream.Signature(RxDispatch)),
                "take": Out(stream.Signature(TAKE)).array(config.ports),
                "packets": packets,
                "free_read": Out(ReadPort(config.axi_bytes)),
                "write": Out(WritePort(config.axi_bytes)),
                "completion_write": Out(WritePort(config.axi_bytes)),
                "posted": Out(Posted),
                "events": Out(stream.Signature(EventRequest)),
                "counts": Out(counts_layout(*_COUNTS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.fetch = fetch = DescriptorFetch(config, "rx_free")
        m.submodules.allocate = allocate = RxAllocate(config)
        m.submodules.writer = writer = RxWrite(config)
        m.submodules.records = records = StreamFifo(RxRecord(config.axi_bytes), config.writes, kind="block")
        m.submodules.complete = complete = RxComplete(config.axi_bytes)
        m.submodules.entries = entries = EntryWriter(config, "rx_completion")

        for part in (fetch, allocate, entries):
            connect(m, flipped(self.bus), part.bus)
        m.d.comb += [fetch.hold.eq(self.hold), allocate.hold.eq(self.hold)]
        connect(m, flipped(self.dispatch), allocate.dispatch)
        connect(m, allocate.pop, fetch.pop)
        connect(m, fetch.popped, allocate.popped)
        connect(m, fetch.read, flipped(self.free_read))
        connect(m, allocate.plan, writer.plan)
        connect(m, allocate.records, records.i)
        connect(m, records.o, complete.records)
        connect(m, writer.answered, complete.answered)
        connect(m, complete.entries, entries.i)
        connect(m, writer.write, flipped(self.write))
        connect(m, entries.write, flipped(self.completion_write))
        m.d.comb += self.posted.eq(entries.posted)
        for port in range(config.ports):
            connect(m, allocate.take[port], flipped(self.take[port]))
            if config.width == config.axi_bytes:
                connect(m, flipped(self.packets[port]), writer.packets[port])
            else:
                upsizer = Upsizer(config.width, config.axi_bytes)
                m.submodules[f"upsizer{port}"] = upsizer
                connect(m, flipped(self.packets[port]), upsizer.i)
                connect(m, upsizer.o, writer.packets[port])

        # Events of three origins.
        m.submodules.joined = joined = StreamMerge(EventRequest, 3)
        m.submodules.free_doorbells = free_doorbells = DoorbellEvents()
        m.submodules.head_doorbells = head_doorbells = DoorbellEvents()
        connect(m, fetch.doorbell_error, free_doorbells.i)
        connect(m, allocate.doorbell_error, head_doorbells.i)
        connect(m, complete.events, joined.i[0])
        connect(m, free_doorbells.o, joined.i[1])
        connect(m, head_doorbells.o, joined.i[2])
        connect(m, joined.o, flipped(self.events))

        for part, names in (
            (allocate, ("rx_drop_no_buffer", "rx_drop_completion_full")),
            (complete, ("rx_host_packets", "rx_host_bytes", "rx_buffer_errors")),
        ):
            m.d.comb += [self.counts[name].eq(part.counts[name]) for name in names]
        # Both look at one register write per cycle, equally late: never together.
        m.d.comb += self.counts.doorbell_errors.eq(
            fetch.counts.doorbell_errors | allocate.counts.doorbell_errors
        )

        in_flight = Signal(16)
        m.d.sync += in_flight.eq(
            in_flight
            + (self.dispatch.valid & self.dispatch.ready)
            - allocate.ended
            - complete.ended
        )
        m.d.comb += self.idle.eq(
            ~in_flight.any()
            & fetch.idle
            & allocate.idle
            & complete.idle
            & entries.idle
            & joined.idle
        )
        return m
