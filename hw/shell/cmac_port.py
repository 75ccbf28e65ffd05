"""`CmacPort`: a cage with its hard 100G MAC, to the core's clock. Link state and activity for the lights.

Drives the clock domains of `PortCrossing`, which whoever holds it must define; the bring-up is in `bringN`. The core's clock
is `sync`, the free-running one `init`.
"""

from amaranth import *
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import Out, connect

from ..stream.axis import AxisSource
from ..stream.beat import byte_mask
from .cmac import WIDTH, CmacBringUp, cmac
from .pins import hold
from .port_crossing import Port, PortCrossing

__all__ = ["CmacPort", "hold_pins"]

_RX_BEATS = 512
"""32 KiB: what comes in while a slower core reads a burst of small packets that fill little more than one beat."""

_PINS = {"modsell": (0, 1), "resetl": (1, 0), "lpmode": (0, 1), "refclk_reset": (0, 0), "fs": (0b01, 0b01)}
"""Slow outputs of a cage: in use (module selected, not in reset, at full power), not in use."""


def hold_pins(m, cage, *, used):
    """Drive the slow outputs of a cage, as far as it has them."""
    hold(m, cage, **{name: values[not used] for name, values in _PINS.items()})


class CmacPort(Port):
    """See the module's text.

    Parameters
    ----------
    number: of the port. mac: `boards.Mac`. max_frame: bytes of the largest frame. init_mhz: of domain `init`.

    Members
    -------
    rx, tx, link: as `Port`.
    clock: Out(1): the MAC's clock. clock_good: Out(1), domain `init`: it has begun to run, and does not stop for a lost link.
    """

    def __init__(self, number, mac, max_frame, init_mhz):
        self._mac = mac
        self.ip = cmac(number, mac, max_frame, init_mhz)
        super().__init__(PortCrossing(number, WIDTH, _RX_BEATS, max_frame), {"clock": Out(1), "clock_good": Out(1)})

    def elaborate(self, platform):
        m = Module()
        mac = self._mac
        cage = platform.request(mac.resource, mac.number, dir="-")
        hold_pins(m, cage, used=True)
        clock, tx_reset, rx_reset = Signal(), Signal(), Signal()
        crossing, bring = self._connect_core(m)
        m.submodules.bring_up = bring_up = bring(CmacBringUp())
        m.submodules.rx_axis = source = bring(AxisSource(WIDTH, always_ready=True))
        tx = crossing.mac_tx

        running = Signal()
        m.submodules += FFSynchronizer(~tx_reset, running, o_domain="init")
        with m.If(running):
            m.d.init += self.clock_good.eq(1)
        m.d.comb += [
            self.clock.eq(clock),
            crossing.clock.eq(clock),
            crossing.mac_reset.eq(tx_reset | rx_reset),
            crossing.up.eq(bring_up.up),
        ]
        connect(m, source.o, crossing.mac_rx)

        m.submodules.mac = self.ip.instance(
            gt_rxp_in=cage.rx_p.io, gt_rxn_in=cage.rx_n.io, gt_txp_out=cage.tx_p.io, gt_txn_out=cage.tx_n.io,
            gt_ref_clk_p=cage.refclk.p, gt_ref_clk_n=cage.refclk.n,
            gt_loopback_in=0, gt_txusrclk2=clock, rx_clk=clock,
            gtwiz_reset_tx_datapath=0, gtwiz_reset_rx_datapath=0,
            init_clk=ClockSignal("init"), sys_reset=ResetSignal("init"),
            usr_tx_reset=tx_reset, usr_rx_reset=rx_reset, core_rx_reset=0, core_tx_reset=bring_up.restart,
            # RS-FEC in both directions; frames that it cannot mend are marked.
            ctl_tx_rsfec_enable=1, ctl_rx_rsfec_enable=1, ctl_rx_rsfec_enable_correction=1, ctl_rx_rsfec_enable_indication=1,
            ctl_rsfec_ieee_error_indication_mode=1,
            ctl_rx_enable=1, ctl_rx_force_resync=0, ctl_rx_test_pattern=0,
            ctl_tx_enable=bring_up.enable, ctl_tx_send_idle=bring_up.send_idle, ctl_tx_send_rfi=bring_up.send_fault,
            ctl_tx_send_lfi=0, ctl_tx_test_pattern=0,
            stat_rx_aligned=bring_up.aligned, stat_rx_remote_fault=bring_up.remote_fault,
            rx_axis_tvalid=source.tvalid, rx_axis_tdata=source.tdata, rx_axis_tkeep=source.tkeep,
            rx_axis_tlast=source.tlast, rx_axis_tuser=source.tuser,
            tx_axis_tready=tx.ready, tx_axis_tvalid=tx.valid, tx_axis_tdata=tx.p.data,
            tx_axis_tkeep=byte_mask(tx.p.count, WIDTH), tx_axis_tlast=tx.p.last, tx_axis_tuser=tx.p.last & tx.p.err,
            tx_preamblein=0, core_drp_reset=0, drp_clk=ClockSignal("init"), drp_addr=0, drp_di=0, drp_en=0, drp_we=0,
        )  # fmt: skip
        return m
