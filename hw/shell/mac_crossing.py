"""Between a MAC's clock and the core's: `RxCrossing` and `TxCrossing`, whole packets only.

Both live in three domains: `sync` is the core's; `mac` is the MAC's; `port` has the core's clock. `mac` and `port`
are in reset together while the link is down (see `StreamCrossing`).

* Throughput: one beat per cycle of the slower clock, for packets of any length.
* Latency: that of `StreamCrossing`; TxCrossing adds the time in which a packet comes in, as a MAC accepts no gap in it.
* RxCrossing never stalls the MAC. A packet that finds no room is cut short and marked bad, one that finds none for its
  first beat leaves a bad packet of one beat: so no loss goes uncounted in the core. Losses in a row count as one.
* Link down: a packet on its way to the core is ended and marked bad; packets to the MAC are discarded, so the core
  never stands still for a cable. Up again: nothing begins in the middle of a packet, in either direction.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect
from amaranth.utils import ceil_log2

from ..stream.beat import BeatLayout, packet_stream
from ..stream.fifo import StreamFifo
from .crossing import StreamCrossing

__all__ = ["RxCrossing", "TxCrossing"]


class RxCrossing(wiring.Component):
    """From the MAC to the core.

    Parameters
    ----------
    width: bytes per beat.
    depth: beats that it holds, a power of two.
    name: unique in the design.

    Members
    -------
    i: In(packet_stream(width, always_ready=True)), domain `mac`.
    o: Out(packet_stream(width, always_ready=True)), domain `sync`.
    """

    def __init__(self, width, depth, *, name):
        self._width = width
        self._queue = StreamCrossing(BeatLayout(width), depth, name=name, i_domain="mac", o_domain="port")
        super().__init__(
            {
                "i": In(packet_stream(width, always_ready=True)),
                "o": Out(packet_stream(width, always_ready=True)),
            }
        )

    @property
    def pointers(self):
        """What crosses; see `StreamCrossing`."""
        return self._queue.pointers

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = self._queue
        bad_end = {"count": 1, "last": 1, "err": 1}

        # `owed`: a beat was refused and nobody has been told; `skip`: the rest of its packet is to come.
        owed, skip = Signal(), Signal()
        # What was there before a reset: it may end in the middle of a packet.
        coming, fresh, ignored = Signal(reset_less=True), Signal(init=1), Signal()
        with m.If(self.i.valid):
            m.d.mac += coming.eq(~self.i.p.last)
        with m.If(~coming | (self.i.valid & self.i.p.last)):
            m.d.mac += fresh.eq(0)
        m.d.comb += [ignored.eq(skip | (fresh & coming)), queue.i.payload.eq(self.i.payload)]
        with m.If(owed):
            for name, value in bad_end.items():
                m.d.comb += queue.i.p[name].eq(value)
        m.d.comb += queue.i.valid.eq(owed | (self.i.valid & ~ignored))
        refused = self.i.valid & ~ignored & (owed | ~queue.i.ready)
        with m.If(refused):
            m.d.mac += skip.eq(~self.i.p.last)
        with m.Elif(self.i.valid & self.i.p.last):
            m.d.mac += skip.eq(0)
        with m.If(refused & ~queue.i.ready):
            m.d.mac += owed.eq(1)
        with m.Elif(queue.i.ready):
            m.d.mac += owed.eq(0)

        # Core's side: what a dead link cuts is ended here.
        inside, down = Signal(), Signal()
        m.d.comb += [
            down.eq(ResetSignal("port")),
            queue.o.ready.eq(1),
            self.o.valid.eq(Mux(down, inside, queue.o.valid)),
            self.o.payload.eq(queue.o.payload),
        ]
        with m.If(down):
            for name, value in bad_end.items():
                m.d.comb += self.o.p[name].eq(value)
        with m.If(self.o.valid):
            m.d.sync += inside.eq(~self.o.p.last)
        return m


class TxCrossing(wiring.Component):
    """From the core to the MAC.

    Parameters
    ----------
    width: bytes per beat.
    largest: bytes of the largest packet.
    name: unique in the design.

    Members
    -------
    i: In(packet_stream(width)), domain `sync`.
    o: Out(packet_stream(width)), domain `mac`; once a packet has begun, `valid` stays to its last beat.
    """

    def __init__(self, width, largest, *, name):
        self._depth = 2 << ceil_log2(-(-largest // width))
        self._width = width
        self._queue = StreamCrossing(BeatLayout(width), 16, name=name, i_domain="port", o_domain="mac")
        super().__init__({"i": In(packet_stream(width)), "o": Out(packet_stream(width))})

    @property
    def pointers(self):
        """What crosses; see `StreamCrossing`."""
        return self._queue.pointers

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = self._queue
        store = DomainRenamer("mac")(StreamFifo(BeatLayout(self._width), self._depth, kind="block"))
        m.submodules.store = store

        # Core's side: while the link is down, and to the end of a packet in which it came up, all is discarded.
        down, inside, headless = Signal(), Signal(), Signal()
        m.d.comb += [
            down.eq(ResetSignal("port")),
            queue.i.payload.eq(self.i.payload),
            queue.i.valid.eq(self.i.valid & ~down & ~headless),
            self.i.ready.eq(queue.i.ready | down | headless),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += inside.eq(~self.i.p.last)
            with m.If(self.i.p.last):
                m.d.sync += headless.eq(0)
            with m.Elif(down):
                m.d.sync += headless.eq(1)
        with m.Elif(down & inside):
            m.d.sync += headless.eq(1)

        # MAC's side: a packet leaves once all of it is here, or if it is larger than it may be.
        whole, leaving = Signal(range(self._depth + 3)), Signal()
        go = Signal()
        connect(m, queue.o, store.i)
        # A beat comes out of the store up to three cycles after it has gone in, and only then does it count.
        came = Signal(2)
        m.d.mac += came.eq(Cat(store.i.valid & store.i.ready & store.i.p.last, came))
        went = self.o.valid & self.o.ready & self.o.p.last
        m.d.comb += [
            go.eq((whole != 0) | leaving | ~store.i.ready),
            self.o.payload.eq(store.o.payload),
            self.o.valid.eq(store.o.valid & go),
            store.o.ready.eq(self.o.ready & go),
        ]
        m.d.mac += whole.eq(whole + came[1] - went)
        with m.If(self.o.valid):
            m.d.mac += leaving.eq(~(self.o.ready & self.o.p.last))
        return m
