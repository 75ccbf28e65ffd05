"""`BurstPlanner`: decides which descriptors of a queue to request next.

A burst holds what the doorbell allows, at most `BURST` descriptors; it ends at the end of the ring and
at every address that is a multiple of `BURST` descriptors, so it never crosses 4 KiB. It is requested
whole or, while the buffer has no room for it, not at all.

* Latency: 6 cycles from taking a queue to the request. Throughput: one decision per 7 cycles.
* Registered: `request`. Reset: forgets the decision under way.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from acceltcp.abi.messages import TX_DESCRIPTOR

from ..config import AXI_BYTES
from ..csr.bus import QUEUE_BITS
from .axi import ReadRequest

__all__ = ["BURST", "Burst", "BurstPlanner"]

_DESCRIPTOR_BITS = exact_log2(TX_DESCRIPTOR.size)

BURST = 16
"""Most descriptors in a burst."""


class Burst(data.Struct):
    """A burst in flight: which descriptors it brings."""

    queue: QUEUE_BITS
    index: 16  # of its first wanted descriptor
    count: range(BURST + 1)


class BurstPlanner(wiring.Component):
    """Decides on one burst at a time, for a buffer of `depth` descriptors per queue and a bus of `axi_bytes`."""

    def __init__(self, depth, axi_bytes=AXI_BYTES):
        self._depth, self._axi_bytes = depth, axi_bytes
        super().__init__(
            {
                "queue": In(QUEUE_BITS),
                "queue_valid": In(1),  # this queue wants a burst
                "queue_stale": In(1),  # it no longer does
                "take": Out(1),
                "at": Out(QUEUE_BITS),  # the queue being worked on; its state follows
                "tail": In(16),
                "asked": In(16),
                "taken": In(16),
                "base": In(64),
                "size_log2": In(4),
                "popped": In(1),  # a pop of `at` in this cycle
                "pause": In(1),  # request nothing now
                "asked_write": Out(1),
                "asked_new": Out(16),
                "again": Out(1),  # `at` wants another burst
                "block": Out(1),  # `at` has no room
                "burst": Out(stream.Signature(Burst)),
                "request": Out(stream.Signature(ReadRequest)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        at = Signal(QUEUE_BITS, reset_less=True)
        tail, asked, taken = (Signal(16, name=n, reset_less=True) for n in ("tail_r", "asked_r", "taken_r"))
        base = Signal(64, reset_less=True)
        size, offset, available, used, wrap = (
            Signal(16, name=n, reset_less=True) for n in ("size", "offset", "available", "used", "wrap")
        )
        address = Signal(64, reset_less=True)
        count = Signal(range(BURST + 1), reset_less=True)
        popped = Signal(reset_less=True)
        request = Signal.like(self.request.payload, name="request_r", reset_less=True)
        request_valid = Signal()
        m.d.comb += [
            self.at.eq(at),
            self.request.payload.eq(request),
            self.request.valid.eq(request_valid),
        ]
        with m.If(self.request.ready):
            m.d.sync += request_valid.eq(0)
        # A pop during the decision makes `used` too high; then try again rather than wait for
        # a further pop that may never come.
        m.d.sync += popped.eq(popped | self.popped)

        fits = Signal()
        lane, beat = _DESCRIPTOR_BITS, exact_log2(self._axi_bytes)
        if beat >= lane:
            beats = (address[lane:beat] + count + ((1 << beat - lane) - 1))[beat - lane :]
        else:
            beats = count << lane - beat
        m.d.comb += [
            fits.eq(used[: len(used)] + count <= self._depth),
            self.asked_new.eq(asked + count),
            self.burst.p.queue.eq(at),
            self.burst.p.index.eq(asked),
            self.burst.p.count.eq(count),
        ]

        with m.FSM(name="ask") as fsm:
            m.d.comb += self.idle.eq(fsm.ongoing("Select") & ~request_valid)
            with m.State("Select"):
                m.d.comb += self.take.eq(self.queue_valid | self.queue_stale)
                m.d.sync += [at.eq(self.queue), popped.eq(0)]
                with m.If(self.queue_valid):
                    m.next = "Read"
            with m.State("Read"):
                m.d.sync += [
                    tail.eq(self.tail),
                    asked.eq(self.asked),
                    taken.eq(self.taken),
                    base.eq(self.base),
                    size.eq(1 << self.size_log2),
                ]
                m.next = "Subtract"
            with m.State("Subtract"):
                m.d.sync += [
                    available.eq(tail - asked),
                    used.eq(asked - taken),
                    offset.eq(asked & (size - 1)),
                ]
                m.next = "Locate"
            with m.State("Locate"):
                m.d.sync += [
                    address.eq(base + (offset << lane)),
                    wrap.eq(size - offset),
                    count.eq(Mux(available >= BURST, BURST, available)),
                ]
                m.next = "Cut at ring"
            with m.State("Cut at ring"):
                with m.If(wrap < count):
                    m.d.sync += count.eq(wrap)
                m.next = "Cut at boundary"
            with m.State("Cut at boundary"):
                room = Signal(range(BURST + 1))
                m.d.comb += room.eq(BURST - address[lane : lane + exact_log2(BURST)])
                with m.If(room < count):
                    m.d.sync += count.eq(room)
                m.next = "Request"
            with m.State("Request"):
                with m.If(count == 0):
                    m.next = "Select"
                with m.Elif(~fits):
                    m.d.comb += [self.block.eq(~(popped | self.popped)), self.again.eq(~self.block)]
                    m.next = "Select"
                with m.Elif(~self.pause & (~request_valid | self.request.ready)):
                    m.d.comb += self.burst.valid.eq(1)
                    with m.If(self.burst.ready):
                        m.d.comb += [
                            self.asked_write.eq(1),
                            self.again.eq(available != count),
                        ]
                        m.d.sync += [
                            request_valid.eq(1),
                            request.address.eq(address & ~((1 << max(lane, beat)) - 1)),
                            request.length.eq(beats - 1),
                        ]
                        m.next = "Select"
        return m
