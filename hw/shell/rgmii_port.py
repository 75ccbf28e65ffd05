"""`RgmiiPort`: a gigabit port with its PHY at RGMII, to the core's clock.

Drives two clock domains, which whoever holds it must define: `macN` and `portN`, the domains `mac` and `port` of
`mac_crossing`, where N is the port's number. The core's clock is `sync`. The port is in reset while the PHY's clock is not that
of a gigabit link. A PHY that keeps 125 MHz without a cable leaves the port up: frames then go nowhere.

The PHY is used as its straps set it, over no management bus. Its reset is held for 20 ms after the core's.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out, connect, flipped

from ..stream.beat import packet_stream
from .clock_meter import ClockMeter
from .gmii import GmiiReceiver, GmiiTransmitter
from .mac_crossing import RxCrossing, TxCrossing
from .pins import drive
from .rgmii import RgmiiPins

__all__ = ["MHZ", "WIDTH", "RgmiiPort"]

MHZ = 125.0
"""Of the PHY's clock at 1 Gbit/s."""

WIDTH = 8
_RX_BEATS = 64
_PHY_RESET_US = 20_000


class RgmiiPort(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    number: of the port. mac: `boards.Mac`. max_frame: bytes of the largest frame. mhz: of `sync`.

    Members
    -------
    rx: Out(packet_stream(8, always_ready=True)); tx: In(packet_stream(8)). link: Out(1). Domain `sync`.
    """

    def __init__(self, number, mac, max_frame, mhz):
        self._mac, self._max_frame, self._mhz = mac, max_frame, mhz
        self._domains = {name: f"{name}{number}" for name in ("mac", "port")}
        self._rx = RxCrossing(WIDTH, _RX_BEATS, name=f"port{number}.rx")
        self._tx = TxCrossing(WIDTH, max_frame, name=f"port{number}.tx")
        super().__init__(
            {"rx": Out(packet_stream(WIDTH, always_ready=True)), "tx": In(packet_stream(WIDTH)), "link": Out(1)}
        )

    @property
    def domains(self):
        """Names of the clock domains that it drives."""
        return list(self._domains.values())

    def elaborate(self, platform):
        m = Module()
        pads = platform.request(self._mac.resource, self._mac.number, dir="-")
        mac_domain, port_domain = self.domains
        renamed, on_mac = DomainRenamer(self._domains), DomainRenamer(mac_domain)
        m.submodules.pins = pins = renamed(RgmiiPins(pads, tx_delay_ps=self._mac.tx_delay_ps))
        m.submodules.receiver = receiver = on_mac(GmiiReceiver(self._max_frame))
        m.submodules.transmitter = transmitter = on_mac(GmiiTransmitter())
        m.submodules.rx_crossing, m.submodules.tx_crossing = rx, tx = renamed(self._rx), renamed(self._tx)
        m.submodules.meter = meter = DomainRenamer({"seen": mac_domain})(ClockMeter(self._mhz, MHZ))
        m.d.comb += self.link.eq(meter.good)

        down = Signal()
        m.d.comb += [
            ClockSignal(mac_domain).eq(pins.clock),
            ClockSignal(port_domain).eq(ClockSignal("sync")),
            down.eq(~meter.good | ResetSignal("sync")),
            *(getattr(receiver, name).eq(getattr(pins, name)) for name in ("rxd", "rx_dv", "rx_er")),
            *(getattr(pins, name).eq(getattr(transmitter, name)) for name in ("txd", "tx_en", "tx_er")),
        ]
        m.submodules += [ResetSynchronizer(down, domain=domain) for domain in self.domains]
        connect(m, receiver.o, rx.i)
        connect(m, rx.o, flipped(self.rx))
        connect(m, flipped(self.tx), tx.i)
        connect(m, tx.o, transmitter.i)

        left = Signal(range(round(self._mhz * _PHY_RESET_US)), init=round(self._mhz * _PHY_RESET_US) - 1)
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        drive(m, "phy_reset", pads.rst, left != 0)
        return m
