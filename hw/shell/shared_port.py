"""`SharedPort`: one cable for the network and the host link, told apart by the EtherType. 8 bytes per beat, domain `sync`.

For a board with one port. What comes in with the link's EtherType goes to the link, everything else to the core, so the
core never sees the link's frames. Frames out take turns, whole. Whoever is on the cable can speak to the link.

Throughput: a beat per cycle. Latency: one beat in (the EtherType is in the second), so a frame of one beat waits for nothing:
it is bad in any case. Overflow: cannot happen inwards, as no side may stall; outwards the streams wait.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.wire import EtherType

from ..stream.beat import BeatLayout, packet_stream

__all__ = ["SharedPort"]

_WIDTH = 8
_ETHERTYPE = 12 - _WIDTH
"""Place of the EtherType in the second beat."""


class SharedPort(wiring.Component):
    """See the module's text.

    Members
    -------
    rx: In(packet_stream(8, always_ready=True)), tx: Out(packet_stream(8)): the MAC's.
    network_rx, link_rx: Out(packet_stream(8, always_ready=True)). network_tx, link_tx: In(packet_stream(8)).
    """

    def __init__(self):
        inward, outward = packet_stream(_WIDTH, always_ready=True), packet_stream(_WIDTH)
        super().__init__(
            {
                "rx": In(inward),
                "network_rx": Out(inward),
                "link_rx": Out(inward),
                "tx": Out(outward),
                "network_tx": In(outward),
                "link_tx": In(outward),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self._elaborate_in(m)
        self._elaborate_out(m)
        return m

    def _elaborate_in(self, m):
        # The beat before the newest one waits here until its frame is known.
        held, waiting = Signal(BeatLayout(_WIDTH)), Signal()
        first, link = Signal(init=1), Signal()  # `held` is a frame's first beat; its frame is the link's
        newest = self.rx.p
        ours = newest.data[8 * _ETHERTYPE :][:16] == int.from_bytes(EtherType.HOST_LINK.to_bytes(2, "big"), "little")
        full = newest.count >= _ETHERTYPE + 2
        to_link, leaves = Signal(), Signal()
        m.d.comb += [
            leaves.eq(waiting & (held.last | self.rx.valid)),
            to_link.eq(Mux(first, ~held.last & ours & full, link)),
            self.network_rx.valid.eq(leaves & ~to_link),
            self.link_rx.valid.eq(leaves & to_link),
            self.network_rx.payload.eq(held),
            self.link_rx.payload.eq(held),
        ]
        with m.If(leaves):
            m.d.sync += [waiting.eq(0), first.eq(held.last), link.eq(to_link)]
        with m.If(self.rx.valid):
            m.d.sync += [waiting.eq(1), held.eq(newest)]

    def _elaborate_out(self, m):
        sources = (self.link_tx, self.network_tx)
        inside, chosen, turn = Signal(), Signal(), Signal()
        # Between frames: whose turn it is, or who has something.
        pick = Signal()
        m.d.comb += pick.eq(Mux(inside, chosen, Mux(turn, self.network_tx.valid, ~self.link_tx.valid)))
        for number, source in enumerate(sources):
            with m.If(pick == number):
                m.d.comb += [
                    self.tx.valid.eq(source.valid),
                    self.tx.payload.eq(source.payload),
                    source.ready.eq(self.tx.ready),
                ]
        # A choice stands from the first beat offered, as an offer must not be withdrawn.
        with m.If(self.tx.valid):
            m.d.sync += [inside.eq(1), chosen.eq(pick)]
            with m.If(self.tx.ready & self.tx.p.last):
                m.d.sync += [inside.eq(0), turn.eq(~pick)]
