"""`SpliceIndices`: which pairs are in use, and which index a new one gets.

Indices that have never been given out are counted; those that come back wait in a FIFO. A packet may have been looked up before
the entries of its pair left the connection table, and may still be on its way to the splice engine: an index is used
again only when all of those have passed. Since packets stay in order it is enough to wait until none can be in front of the
dispatch FIFO any more (`LOOKUP_CYCLES`), and then until that FIFO has once been empty or as many packets have come as fit in it. This is done
for all indices together that have come back until then.

* Latency: an index comes back after about `LOOKUP_CYCLES` cycles, and at most as long again. Throughput: one index per two cycles.
* Registered: all outputs. Overflow: cannot happen, the FIFO has room for all indices. Reset: all are free.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..stream.fifo import StreamFifo

__all__ = ["LOOKUP_CYCLES", "SpliceIndices"]

LOOKUP_CYCLES = 1024
"""More than the longest way of a packet from its look-up to the dispatch FIFO: with the small hash engines 16 packets
may be in it, of which each takes some 20 cycles."""

QUIET_CYCLES = 8
"""So long must nothing come out of the dispatch FIFO until it has been empty; more than its latency."""


class SpliceIndices(wiring.Component):
    """See the module's text.

    Members
    -------
    free: Out(stream of {"index"}). exhausted: all indices are in use (those that wait as above do not count).
    returned: In(stream of {"index"}); never stalled.
    packet, none: a packet has come to the engine; there is none.
    used_end: no index from here on has been given out since the reset.
    held: indices given out and not returned.
    busy: an index waits.
    """

    def __init__(self, config):
        self._config = config
        index = data.StructLayout({"index": config.splice_bits})
        super().__init__(
            {
                "free": Out(stream.Signature(index)),
                "exhausted": Out(1),
                "returned": In(stream.Signature(index)),
                "packet": In(1),
                "none": In(1),
                "used_end": Out(range(config.splices + 1)),
                "held": Out(range(config.splices + 1)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        count = range(config.splices + 1)
        m.submodules.waiting = waiting = StreamFifo(self.free.p.shape(), config.splices, kind="block")

        # How many of those that have come back may be used, wait for the next round, are waited for in this one.
        usable, fresh, batch = Signal(count), Signal(count), Signal(count)
        begin, finish = Signal(), Signal()
        unused, came, gone = Signal(), Signal(), Signal()
        # As of the cycle before; after one has gone the next is looked at once more.
        any_usable, just_gone = Signal(), Signal()
        m.d.comb += [
            # (Their number is a power of two.)
            unused.eq(~self.used_end[-1]),
            self.free.valid.eq(unused | waiting.o.valid & any_usable & ~just_gone),
            self.free.p.index.eq(Mux(unused, self.used_end, waiting.o.p.index)),
            gone.eq(self.free.valid & self.free.ready),
            waiting.o.ready.eq(gone & ~unused),
            waiting.i.valid.eq(self.returned.valid),
            waiting.i.payload.eq(self.returned.payload),
            self.returned.ready.eq(1),
            came.eq(self.returned.valid),
            self.busy.eq((fresh != 0) | (batch != 0)),
            self.exhausted.eq(self.held[-1]),
        ]
        with m.If(gone & unused):
            m.d.sync += self.used_end.eq(self.used_end + 1)
        m.d.sync += [
            any_usable.eq(usable != 0),
            just_gone.eq(gone),
            self.held.eq(self.held + gone - came),
            usable.eq(usable + Mux(finish, batch, 0) - (gone & ~unused)),
            fresh.eq(Mux(begin, 0, fresh) + came),
        ]

        left = Signal(range(LOOKUP_CYCLES))
        packets = Signal(range(config.packets * config.ports + QUIET_CYCLES))
        quiet = Signal(range(QUIET_CYCLES))
        packet, none = Signal(), Signal()
        m.d.sync += [packet.eq(self.packet), none.eq(self.none)]
        with m.FSM(name="rounds"):
            with m.State("Wait"):
                m.d.sync += left.eq(LOOKUP_CYCLES - 1)
                with m.If(fresh != 0):
                    m.d.comb += begin.eq(1)
                    m.d.sync += batch.eq(fresh)
                    m.next = "Packets come into the FIFO"
            with m.State("Packets come into the FIFO"):
                m.d.sync += [left.eq(left - 1), packets.eq(0), quiet.eq(0)]
                with m.If(left == 0):
                    m.next = "Packets leave it"
            with m.State("Packets leave it"):
                m.d.sync += [packets.eq(packets + packet), quiet.eq(Mux(none, quiet + 1, 0))]
                with m.If((quiet == QUIET_CYCLES - 1) | (packets == config.packets * config.ports + QUIET_CYCLES - 1)):
                    m.d.comb += finish.eq(1)
                    m.d.sync += batch.eq(0)
                    m.next = "Wait"
        return m
