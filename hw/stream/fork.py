"""`PacketFork`: packets of a receive buffer to the host, to the splice rewriter, or to both.

Sits between whoever takes packets and the buffer: an order that names a destination or two reads the packet out
and is remembered until its last beat has passed; an order without any frees the packet.

* Latency: 0 for orders and beats. Throughput: one beat per cycle; a packet for both goes at the rate of the slower one.
* Registered: nothing. Neither output waits for the other: whichever has taken a beat waits until both have.
* Overflow: cannot happen; orders wait while `ORDERS` packets are on their way. Reset: forgets the packets on their way.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .beat import packet_stream
from .fifo import StreamFifo

__all__ = ["TAKE", "PacketFork"]

TAKE = data.StructLayout({"host": 1, "forward": 1})
"""Where the next packet of a receive buffer goes; neither: it is freed."""

ORDERS = 16
"""Packets that are taken and have not passed; more than a receive buffer's latency."""


class PacketFork(wiring.Component):
    """See the module's text.

    Members
    -------
    take: In(stream of TAKE): where each packet goes. buffer_take: Out(stream of {"keep"}): to the buffer.
    packets: In(packet_stream(width)): from the buffer.
    host, forward: Out(packet_stream(width)).
    """

    def __init__(self, width):
        super().__init__(
            {
                "take": In(stream.Signature(TAKE)),
                "buffer_take": Out(stream.Signature(data.StructLayout({"keep": 1}))),
                "packets": In(packet_stream(width)),
                "host": Out(packet_stream(width)),
                "forward": Out(packet_stream(width)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.orders = orders = StreamFifo(TAKE, ORDERS)
        keep, room = Signal(), Signal()
        m.d.comb += [
            keep.eq(self.take.p.host | self.take.p.forward),
            room.eq(~keep | orders.i.ready),
            self.buffer_take.p.keep.eq(keep),
            self.buffer_take.valid.eq(self.take.valid & room),
            self.take.ready.eq(self.buffer_take.ready & room),
            orders.i.payload.eq(self.take.payload),
            orders.i.valid.eq(self.take.valid & self.buffer_take.ready & keep),
        ]
        done, passed = [], Signal()
        for name in ("host", "forward"):
            out, wanted, sent = getattr(self, name), orders.o.p[name], Signal(name=f"{name}_sent")
            m.d.comb += [
                out.payload.eq(self.packets.payload),
                out.valid.eq(self.packets.valid & orders.o.valid & wanted & ~sent),
            ]
            with m.If(passed):
                m.d.sync += sent.eq(0)
            with m.Elif(out.valid & out.ready):
                m.d.sync += sent.eq(1)
            done.append(~wanted | sent | out.ready)
        m.d.comb += [
            self.packets.ready.eq(orders.o.valid & done[0] & done[1]),
            passed.eq(self.packets.valid & self.packets.ready),
            orders.o.ready.eq(passed & self.packets.p.last),
        ]
        return m
