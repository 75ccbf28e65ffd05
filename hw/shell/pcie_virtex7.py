"""The vendor's PCIe bridge for Virtex-7 XT: PCI Express Gen3 x8 on one side, AXI4 of 32 bytes on the other."""

from .axi_narrower import NARROW_BYTES
from .ip import VendorIp, axi_ports
from .message_writer import BUS_ID_BITS
from .pcie import common_ports, device_properties, lite_ports, with_link

__all__ = ["HOST_ID_BITS", "virtex7_bridge"]

HOST_ID_BITS = 3
"""Width of an identifier of the bridge's AXI master: eight reads may be under way."""


def virtex7_bridge(link, queues):
    """AXI Bridge for PCI Express Gen3: `VendorIp` for a `boards.Pcie`.

    MSI and INTx are off, and their ports left open.
    """
    width = 8 * NARROW_BYTES
    block = VendorIp(
        module="pcie_bridge",
        name="axi_pcie3",
        doc="AMD PG194, tables Global Signals, PCIe Interface, AXI Slave Interface, AXI Master Interface, AXI4-Lite Control "
        "Interface, AXI Bridge for PCIe Gen3 MSI-X Signals",
        ports={
            "refclk": ("i", 1),
            **common_ports(link),
            "user_link_up": ("o", 1),
            "cfg_interrupt_msix_sent": ("o", 1),
            "cfg_interrupt_msix_fail": ("o", 1),
            **axi_ports("s_axi", "slave", data=width, address=64, identifier=BUS_ID_BITS, extra={"region": 4}),
            **axi_ports(
                "m_axi", "master", data=width, address=64, identifier=HOST_ID_BITS, extra={"prot": 3, "lock": 1, "cache": 4}
            ),
            **lite_ports("s_axi_ctl", 12, prot=False),
        },
        properties={
            "mode_selection": "Advanced",
            "pcie_blk_locn": link.block,
            "ref_clk_freq": "100_MHz",
            "plltype": "QPLL1",
            "axi_addr_width": "64",
            "axi_data_width": f"{width}_bit",
            "axisten_freq": "250",
            "dedicate_perst": "false",
            "en_axi_slave_if": "true",
            "s_axi_id_width": f"{BUS_ID_BITS}",
            "c_s_axi_supports_narrow_burst": "false",
            "comp_timeout": "50ms",
            # All of the host's addresses, unchanged.
            "axibar_0": f"0x{0:016X}",
            "axibar_highaddr_0": f"0x{(1 << 64) - 1:016X}",
            "axibar2pciebar_0": f"0x{0:016X}",
            **device_properties(queues),
        },
    )
    return with_link(block, link)
