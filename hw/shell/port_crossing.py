"""`PortCrossing`: between a MAC, its link and the core: both crossings, and their resets while the link is down.

Drives three clock domains, which whoever holds it must define: `macN` and `portN`, the domains `mac` and `port` of
`mac_crossing`, and `bringN`, which has the MAC's clock and is in reset with the MAC alone, N being the port's number.
The core's clock is `sync`.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer, ResetSynchronizer
from amaranth.lib.wiring import In, Out, connect, flipped

from ..stream.beat import packet_stream
from ..stream.width import Downsizer, Upsizer
from .mac_crossing import RxCrossing, TxCrossing

__all__ = ["Port", "PortCrossing"]


class PortCrossing(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    number: of the port. width: bytes per beat. rx_beats: beats on their way to the core, a power of two.
    largest: bytes of the largest packet. mac_width: bytes per beat on the MAC's side, None for `width`; it may be less.

    Members
    -------
    rx: Out(packet_stream(width, always_ready=True)); tx: In(packet_stream(width)): the core's side.
    mac_rx: In(packet_stream(mac_width, always_ready=True)), domain `bringN`.
    mac_tx: Out(packet_stream(mac_width)), domain `macN`: once a packet has begun, `valid` stays to its last beat.
    clock: In(1): the MAC's. mac_reset: In(1): the MAC is in reset; asynchronous. up: In(1), domain `bringN`: packets may pass.
    link: Out(1), domain `sync`: they do.
    """

    def __init__(self, number, width, rx_beats, largest, mac_width=None):
        self._width, self._mac_width = width, mac_width or width
        self._domains = {name: f"{name}{number}" for name in ("mac", "port", "bring")}
        self._rx = RxCrossing(width, rx_beats, name=f"port{number}.rx")
        self._tx = TxCrossing(width, largest, name=f"port{number}.tx")
        super().__init__(
            {
                "rx": Out(packet_stream(width, always_ready=True)),
                "tx": In(packet_stream(width)),
                "mac_rx": In(packet_stream(self._mac_width, always_ready=True)),
                "mac_tx": Out(packet_stream(self._mac_width)),
                "clock": In(1),
                "mac_reset": In(1),
                "up": In(1),
                "link": Out(1),
            }
        )

    @property
    def domains(self):
        """Names of the clock domains that it drives."""
        return list(self._domains.values())

    @property
    def pointers(self):
        """What crosses between the MAC's clock and the core's."""
        return [*self._rx.pointers, *self._tx.pointers]

    def elaborate(self, platform):
        m = Module()
        renamed = DomainRenamer(self._domains)
        mac_domain, port_domain, bring_domain = self.domains
        m.submodules.rx, m.submodules.tx = rx, tx = renamed(self._rx), renamed(self._tx)
        down = Signal()
        m.d.comb += [
            ClockSignal(mac_domain).eq(self.clock),
            ClockSignal(bring_domain).eq(self.clock),
            ClockSignal(port_domain).eq(ClockSignal("sync")),
            down.eq(~self.up | self.mac_reset | ResetSignal("sync")),
        ]
        m.submodules += [
            ResetSynchronizer(self.mac_reset, domain=bring_domain),
            ResetSynchronizer(down, domain=mac_domain),
            ResetSynchronizer(down, domain=port_domain),
            FFSynchronizer(self.up, self.link),
        ]
        connect(m, rx.o, flipped(self.rx))
        connect(m, flipped(self.tx), tx.i)
        if self._mac_width == self._width:
            connect(m, flipped(self.mac_rx), rx.i)
            connect(m, tx.o, flipped(self.mac_tx))
            return m
        # Neither adapter stalls or makes a gap: the one takes a beat each cycle, the other gives one each cycle.
        m.submodules.gather = gather = DomainRenamer(bring_domain)(Upsizer(self._mac_width, self._width))
        m.submodules.scatter = scatter = DomainRenamer(mac_domain)(Downsizer(self._width, self._mac_width))
        m.d.comb += [gather.i.valid.eq(self.mac_rx.valid), gather.i.payload.eq(self.mac_rx.payload)]
        connect(m, gather.o, rx.i)
        connect(m, tx.o, scatter.i)
        connect(m, scatter.o, flipped(self.mac_tx))
        return m


class Port(wiring.Component):
    """Base of what joins a cage to the core through a `PortCrossing`.

    Parameters
    ----------
    crossing: PortCrossing. members: further ones.

    Members
    -------
    rx, tx, link: `PortCrossing`'s.
    """

    def __init__(self, crossing, members):
        self._crossing = crossing
        own = crossing.signature.members
        super().__init__({**{name: own[name] for name in ("rx", "tx", "link")}, **members})

    @property
    def domains(self):
        """Names of the clock domains that it drives."""
        return self._crossing.domains

    @property
    def pointers(self):
        """What crosses between the MAC's clock and the core's."""
        return self._crossing.pointers

    def _connect_core(self, m):
        """The crossing and its side towards the core. Returns it, and a `DomainRenamer` for what is in reset with the MAC."""
        m.submodules.crossing = crossing = self._crossing
        connect(m, crossing.rx, flipped(self.rx))
        connect(m, flipped(self.tx), crossing.tx)
        m.d.comb += self.link.eq(crossing.link)
        return crossing, DomainRenamer(crossing.domains[-1])
