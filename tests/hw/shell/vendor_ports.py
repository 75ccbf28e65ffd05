"""Ports of the vendor's blocks of the SUME, as the vendor's tool lists them for this device in its instantiation templates: direction
and width, one a word. Apart from the shell's own descriptions, which are compared with them."""

__all__ = ["AXI_PCIE3", "TEN_GIG", "TEN_GIG_OTHER", "TEN_GIG_SHARED", "table"]


def table(text):
    """name -> (direction, width), from words such as i:dclk or o:rdata:64."""
    ports = {}
    for word in text.split():
        direction, name, *width = word.split(":")
        ports[name] = (direction, int(width[0]) if width else 1)
    return ports


# axi_10g_ethernet 3.1, 10GBASE-R, without management interface: ports of either form
TEN_GIG = table("""
    i:tx_axis_aresetn i:rx_axis_aresetn i:tx_ifg_delay:8 i:dclk o:txp o:txn i:rxp i:rxn i:signal_detect i:tx_fault o:tx_disable
    o:pcspma_status:8 i:sim_speedup_control o:rxrecclk_out i:mac_tx_configuration_vector:80 i:mac_rx_configuration_vector:80
    o:mac_status_vector:3 i:pcs_pma_configuration_vector:536 o:pcs_pma_status_vector:448
    i:s_axis_tx_tdata:64 i:s_axis_tx_tkeep:8 i:s_axis_tx_tlast o:s_axis_tx_tready i:s_axis_tx_tuser i:s_axis_tx_tvalid
    i:s_axis_pause_tdata:16 i:s_axis_pause_tvalid
    o:m_axis_rx_tdata:64 o:m_axis_rx_tkeep:8 o:m_axis_rx_tlast o:m_axis_rx_tuser o:m_axis_rx_tvalid
    o:tx_statistics_valid o:tx_statistics_vector:26 o:rx_statistics_valid o:rx_statistics_vector:30
""")

# ... with the shared logic (SupportLevel 1)
TEN_GIG_SHARED = TEN_GIG | table("""
    o:areset_datapathclk_out o:txusrclk_out o:txusrclk2_out o:gttxreset_out o:gtrxreset_out o:txuserrdy_out o:coreclk_out
    o:resetdone_out o:reset_counter_done_out o:qplllock_out o:qplloutclk_out o:qplloutrefclk_out i:refclk_p i:refclk_n i:reset
""")

# ... and without (SupportLevel 0)
TEN_GIG_OTHER = TEN_GIG | table("""
    i:areset_coreclk i:txusrclk i:txusrclk2 o:txoutclk i:txuserrdy o:tx_resetdone o:rx_resetdone i:coreclk i:areset i:gttxreset
    i:gtrxreset i:qplllock i:qplloutclk i:qplloutrefclk i:reset_counter_done
""")

# axi_pcie3 3.0, eight lanes, 256 bits of data, 64 of address: those that an endpoint with MSI-X can have. Not listed: MSI, debugging,
# parity (wuser, ruser).
AXI_PCIE3 = table("""
    i:sys_rst_n o:cfg_ltssm_state:6 o:user_link_up i:refclk o:axi_aclk o:axi_aresetn o:axi_ctl_aresetn o:interrupt_out
    i:pci_exp_rxp:8 i:pci_exp_rxn:8 o:pci_exp_txp:8 o:pci_exp_txn:8
    o:cfg_interrupt_msix_enable:4 o:cfg_interrupt_msix_mask:4 o:cfg_interrupt_msix_vf_enable:8 o:cfg_interrupt_msix_vf_mask:8
    i:cfg_interrupt_msix_data:32 i:cfg_interrupt_msix_address:64 i:cfg_interrupt_msix_int o:cfg_interrupt_msix_sent
    o:cfg_interrupt_msix_fail
    i:s_axi_awid:4 i:s_axi_awaddr:64 i:s_axi_awregion:4 i:s_axi_awlen:8 i:s_axi_awsize:3 i:s_axi_awburst:2 i:s_axi_awvalid
    o:s_axi_awready i:s_axi_wdata:256 i:s_axi_wstrb:32 i:s_axi_wlast i:s_axi_wvalid o:s_axi_wready
    o:s_axi_bid:4 o:s_axi_bresp:2 o:s_axi_bvalid i:s_axi_bready
    i:s_axi_arid:4 i:s_axi_araddr:64 i:s_axi_arregion:4 i:s_axi_arlen:8 i:s_axi_arsize:3 i:s_axi_arburst:2 i:s_axi_arvalid
    o:s_axi_arready o:s_axi_rid:4 o:s_axi_rdata:256 o:s_axi_rresp:2 o:s_axi_rlast o:s_axi_rvalid i:s_axi_rready
    o:m_axi_awid:3 o:m_axi_awaddr:64 o:m_axi_awlen:8 o:m_axi_awsize:3 o:m_axi_awburst:2 o:m_axi_awprot:3 o:m_axi_awvalid
    i:m_axi_awready o:m_axi_awlock o:m_axi_awcache:4 o:m_axi_wdata:256 o:m_axi_wstrb:32 o:m_axi_wlast o:m_axi_wvalid i:m_axi_wready
    i:m_axi_bid:3 i:m_axi_bresp:2 i:m_axi_bvalid o:m_axi_bready
    o:m_axi_arid:3 o:m_axi_araddr:64 o:m_axi_arlen:8 o:m_axi_arsize:3 o:m_axi_arburst:2 o:m_axi_arprot:3 o:m_axi_arvalid
    i:m_axi_arready o:m_axi_arlock o:m_axi_arcache:4 i:m_axi_rid:3 i:m_axi_rdata:256 i:m_axi_rresp:2 i:m_axi_rlast i:m_axi_rvalid
    o:m_axi_rready
    i:s_axi_ctl_awaddr:12 i:s_axi_ctl_awvalid o:s_axi_ctl_awready i:s_axi_ctl_wdata:32 i:s_axi_ctl_wstrb:4 i:s_axi_ctl_wvalid
    o:s_axi_ctl_wready o:s_axi_ctl_bresp:2 o:s_axi_ctl_bvalid i:s_axi_ctl_bready i:s_axi_ctl_araddr:12 i:s_axi_ctl_arvalid
    o:s_axi_ctl_arready o:s_axi_ctl_rdata:32 o:s_axi_ctl_rresp:2 o:s_axi_ctl_rvalid i:s_axi_ctl_rready
""")
