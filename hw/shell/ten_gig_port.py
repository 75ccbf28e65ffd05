"""`TenGigPort`: an SFP+ cage with the vendor's 10G MAC, to the core's clock, 8 bytes on one side and `width` on the other.

Drives the clock domains of `PortCrossing`, which whoever holds it must define. The core's clock is `sync`; `init` is that of the
transceiver's registers.
"""

from amaranth import *
from amaranth.lib import io
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, connect

from ..stream.beat import byte_mask
from .link import LinkState
from .pins import drive, hold
from .port_crossing import Port, PortCrossing
from .ten_gig import CONFIGURATION, SHARED, WIDTH, TenGigReceiver, ten_gig

__all__ = ["TenGigPort", "quiet"]

_RX_BEATS = 512
"""16 KiB at 32 bytes: as many as one block RAM is deep."""


def quiet(m, cage):
    """Pins of a cage that is not used: no light in the fibre."""
    hold(m, cage, tx_disable=1, rs=0b00, leds=0b00)


class TenGigPort(Port):
    """See the module's text.

    Parameters
    ----------
    number: of the port. mac: `boards.Mac`. width: bytes per beat of the core. max_frame: bytes of the largest frame.
    first: the port with the shared logic, None in that port itself. reference: the platform's resource of its reference clock.

    Members
    -------
    rx, tx, link: as `Port`.
    reference_good: In(1), domain `init`: the reference clock is there; the MAC is in reset until then.
    activity: In(1): the cage's second light; the first is `link`.
    """

    def __init__(self, number, mac, width, max_frame, *, first=None, reference=None):
        self._mac, self._first, self._reference = mac, first, reference
        self.ip = ten_gig(number, shared=first is None)
        self._largest = max_frame
        self.shared = {name: Signal(name=f"shared_{name}") for name in SHARED} if first is None else first.shared
        crossing = PortCrossing(number, width, _RX_BEATS, max_frame, WIDTH)
        super().__init__(crossing, {"reference_good": In(1), "activity": In(1)})

    def elaborate(self, platform):
        m = Module()
        cage = platform.request(self._mac.resource, self._mac.number, dir="-")
        crossing, bring = self._connect_core(m)
        m.submodules.receiver = receiver = bring(TenGigReceiver(self._largest))
        m.submodules.state = state = bring(LinkState())
        connect(m, receiver.o, crossing.mac_rx)
        tx = crossing.mac_tx

        m.submodules.los = los = io.Buffer("i", cage.los)
        m.submodules.tx_fault = tx_fault = io.Buffer("i", cage.tx_fault)
        disable, pcs, faults, locked = Signal(), Signal(8), Signal(3), Signal()
        # The module is for 10 Gbit/s and more: both rate selects high (SFF-8431).
        hold(m, cage, rs=0b11, leds=Cat(self.link, self.activity))
        drive(m, "tx_disable", cage.tx_disable, disable)
        m.submodules += FFSynchronizer(pcs[0], locked, o_domain=crossing.domains[-1])
        ready = Signal()
        m.d.comb += [
            crossing.clock.eq(self.shared["coreclk_out"]),
            crossing.mac_reset.eq(~self.reference_good | self.shared["areset_datapathclk_out"] | ~ready),
            # The MAC answers faults by itself: idle to a far side that does not hear, a fault to one that is not heard.
            state.good.eq(locked & ~faults[0] & ~faults[1]),
            crossing.up.eq(state.up),
        ]
        if self._first is None:
            reference = platform.request(self._reference, 0, dir="-")
            clocks = {
                **self.shared,
                "refclk_p": reference.p,
                "refclk_n": reference.n,
                "reset": ~self.reference_good,
                "resetdone_out": ready,
            }
        else:
            done = Signal(2)
            m.d.comb += ready.eq(done.all())
            clocks = {SHARED[name]: signal for name, signal in self.shared.items()}
            clocks |= {"areset": ~self.reference_good, "tx_resetdone": done[0], "rx_resetdone": done[1]}
        m.submodules.mac = self.ip.instance(
            **clocks,
            dclk=ClockSignal("init"),
            txp=cage.tx_p.io, txn=cage.tx_n.io, rxp=cage.rx_p.io, rxn=cage.rx_n.io,
            signal_detect=~los.i, tx_fault=tx_fault.i, tx_disable=disable,
            pcspma_status=pcs, mac_status_vector=faults, sim_speedup_control=0,
            mac_tx_configuration_vector=CONFIGURATION, mac_rx_configuration_vector=CONFIGURATION,
            pcs_pma_configuration_vector=0,
            tx_axis_aresetn=~state.restart, rx_axis_aresetn=1, tx_ifg_delay=0,
            s_axis_tx_tready=tx.ready, s_axis_tx_tvalid=tx.valid, s_axis_tx_tdata=tx.p.data,
            s_axis_tx_tkeep=byte_mask(tx.p.count, WIDTH), s_axis_tx_tlast=tx.p.last, s_axis_tx_tuser=tx.p.last & tx.p.err,
            s_axis_pause_tdata=0, s_axis_pause_tvalid=0,
            m_axis_rx_tvalid=receiver.tvalid, m_axis_rx_tdata=receiver.tdata, m_axis_rx_tkeep=receiver.tkeep,
            m_axis_rx_tlast=receiver.tlast, m_axis_rx_tuser=receiver.tuser,
        )  # fmt: skip
        return m
