"""The vendor's hard 100G MAC of UltraScale+ with its transceivers, and how it is brought up.

`CmacBringUp` follows the vendor's sequence (AMD PG203, "Core Bring Up Sequence", without AXI4-Lite): receive, and tell
the far side of a fault, until all lanes are aligned; then send. While the far side tells of a fault, idle is sent.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .ip import VendorIp
from .link import LinkState

__all__ = ["MHZ", "WIDTH", "CmacBringUp", "cmac"]

LANES = 4
WIDTH = 64
"""Bytes of its stream."""

MHZ = 322.265625
"""Clock of its stream: 25.78125 Gbit/s per lane, 80 bits a cycle."""


class CmacBringUp(wiring.Component):
    """In the domain of the MAC's stream. All outputs come from registers.

    settle: of `LinkState`; a link is good while the lanes are aligned and the far side tells of no fault.

    Members
    -------
    aligned, remote_fault: In(1): `stat_rx_aligned`, `stat_rx_remote_fault`.
    send_fault, send_idle, enable: Out(1): `ctl_tx_send_rfi`, `ctl_tx_send_idle`, `ctl_tx_enable`.
    restart: Out(1): `core_tx_reset`. up: Out(1): packets may pass. Both are `LinkState`'s.
    """

    aligned: In(1)
    remote_fault: In(1)
    send_fault: Out(1, init=1)
    send_idle: Out(1)
    enable: Out(1)
    restart: Out(1)
    up: Out(1)

    def __init__(self, settle=256):
        self._settle = settle
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.state = state = LinkState(self._settle)
        m.d.comb += [
            state.good.eq(self.aligned & ~self.remote_fault),
            self.up.eq(state.up),
            self.restart.eq(state.restart),
        ]
        m.d.sync += [
            self.send_fault.eq(~self.aligned),
            self.send_idle.eq(self.aligned & self.remote_fault),
            self.enable.eq(self.aligned),
        ]
        return m


def cmac(number, mac, max_frame, init_mhz):
    """`VendorIp` for a `boards.Mac`.

    number: of the port. max_frame: bytes of the largest frame without FCS. init_mhz: the free-running clock.
    """
    first, last = mac.lanes.split("~")
    column, row = first.split("Y")
    lanes = {f"LANE{lane + 1}_GT_LOC": f"{column}Y{int(row) + lane}" for lane in range(LANES)}
    if lanes[f"LANE{LANES}_GT_LOC"] != last:
        raise ValueError(f"lanes must be {LANES} neighbours, first~last, not {mac.lanes!r}")
    return VendorIp(
        module=f"cmac{number}",
        name="cmac_usplus",
        doc="AMD PG203 3.1, table CORE XCI Top-Level Port List",
        ports={
            "gt_rxp_in": ("i", LANES),
            "gt_rxn_in": ("i", LANES),
            "gt_txp_out": ("o", LANES),
            "gt_txn_out": ("o", LANES),
            "gt_ref_clk_p": ("i", 1),
            "gt_ref_clk_n": ("i", 1),
            "gt_ref_clk_out": ("o", 1),
            "gt_rxrecclkout": ("o", LANES),
            "gt_powergoodout": ("o", LANES),
            "gt_loopback_in": ("i", 3 * LANES),
            "gt_txusrclk2": ("o", 1),
            "gt_rxusrclk2": ("o", 1),
            "gtwiz_reset_tx_datapath": ("i", 1),
            "gtwiz_reset_rx_datapath": ("i", 1),
            "init_clk": ("i", 1),
            "sys_reset": ("i", 1),
            "usr_rx_reset": ("o", 1),
            "usr_tx_reset": ("o", 1),
            "core_rx_reset": ("i", 1),
            "core_tx_reset": ("i", 1),
            "rx_clk": ("i", 1),
            "ctl_tx_rsfec_enable": ("i", 1),
            "ctl_rx_rsfec_enable": ("i", 1),
            "ctl_rsfec_ieee_error_indication_mode": ("i", 1),
            "ctl_rx_rsfec_enable_correction": ("i", 1),
            "ctl_rx_rsfec_enable_indication": ("i", 1),
            "ctl_rx_enable": ("i", 1),
            "ctl_rx_force_resync": ("i", 1),
            "ctl_rx_test_pattern": ("i", 1),
            "ctl_tx_enable": ("i", 1),
            "ctl_tx_send_idle": ("i", 1),
            "ctl_tx_send_rfi": ("i", 1),
            "ctl_tx_send_lfi": ("i", 1),
            "ctl_tx_test_pattern": ("i", 1),
            "stat_rx_aligned": ("o", 1),
            "stat_rx_remote_fault": ("o", 1),
            "stat_rx_local_fault": ("o", 1),
            "rx_axis_tvalid": ("o", 1),
            "rx_axis_tdata": ("o", 8 * WIDTH),
            "rx_axis_tkeep": ("o", WIDTH),
            "rx_axis_tlast": ("o", 1),
            "rx_axis_tuser": ("o", 1),
            "tx_axis_tready": ("o", 1),
            "tx_axis_tvalid": ("i", 1),
            "tx_axis_tdata": ("i", 8 * WIDTH),
            "tx_axis_tkeep": ("i", WIDTH),
            "tx_axis_tlast": ("i", 1),
            "tx_axis_tuser": ("i", 1),
            "tx_ovfout": ("o", 1),
            "tx_unfout": ("o", 1),
            "tx_preamblein": ("i", 56),
            "core_drp_reset": ("i", 1),
            "drp_clk": ("i", 1),
            "drp_addr": ("i", 10),
            "drp_di": ("i", 16),
            "drp_en": ("i", 1),
            "drp_we": ("i", 1),
            "drp_do": ("o", 16),
            "drp_rdy": ("o", 1),
        },
        properties={
            "CMAC_CAUI4_MODE": "1",
            "NUM_LANES": "4x25",
            "GT_REF_CLK_FREQ": str(mac.refclk),
            "GT_DRP_CLK": f"{init_mhz:.2f}",
            "USER_INTERFACE": "AXIS",
            "INCLUDE_RS_FEC": "1",
            "ENABLE_AXI_INTERFACE": "0",
            "INCLUDE_STATISTICS_COUNTERS": "0",
            "TX_FLOW_CONTROL": "0",
            "RX_FLOW_CONTROL": "0",
            "RX_MIN_PACKET_LEN": "64",
            "RX_MAX_PACKET_LEN": f"{max_frame + 4}",
            "CMAC_CORE_SELECT": mac.site,
            "GT_GROUP_SELECT": mac.lanes,
            **lanes,
            "INS_LOSS_NYQ": "20",
            "ENABLE_PIPELINE_REG": "1",
        },
    )
