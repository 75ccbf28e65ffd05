"""The vendor's PCIe bridge for UltraScale+: PCI Express on one side, AXI4 on the other."""

from dataclasses import replace

from amaranth.hdl import ClockSignal, ResetSignal
from amaranth.lib import io

from acceltcp.abi import pci

from ..config import AXI_BYTES
from .bars import BAR_OFFSETS
from .ip import VendorIp, axi_ports
from .message_writer import BUS_ID_BITS

__all__ = ["bridge", "common_pins", "common_ports", "device_properties", "lite_ports", "with_link"]

_SPEEDS = {1: "2.5_GT/s", 2: "5.0_GT/s", 3: "8.0_GT/s", 4: "16.0_GT/s"}
_REGION = {"region": 4}
_MASTER = {"prot": 3, "lock": 1, "cache": 4}


def device_properties(queues):
    """Properties with which the vendor's blocks show the device that `acceltcp.abi.pci` describes."""
    properties = {
        "vendor_id": f"{pci.VENDOR_ID:04X}",
        "pf0_device_id": f"{pci.DEVICE_ID:04X}",
        "pf0_revision_id": f"{pci.REVISION_ID:02X}",
        "pf0_subsystem_vendor_id": f"{pci.SUBSYSTEM_VENDOR_ID:04X}",
        "pf0_subsystem_id": f"{pci.SUBSYSTEM_ID:04X}",
        "pf0_base_class_menu": "Network_controller",
        "pf0_sub_class_interface_menu": "Ethernet_controller",
        "pf0_class_code_base": f"{pci.CLASS_CODE >> 16:02X}",
        "pf0_class_code_sub": f"{pci.CLASS_CODE >> 8 & 0xFF:02X}",
        "pf0_class_code_interface": f"{pci.CLASS_CODE & 0xFF:02X}",
    }
    for bar, size in pci.BARS.items():
        properties |= {
            f"pf0_bar{bar}_enabled": "true",
            f"pf0_bar{bar}_64bit": "true",
            f"pf0_bar{bar}_prefetchable": "false",
            f"pf0_bar{bar}_scale": "Kilobytes",
            f"pf0_bar{bar}_size": f"{size >> 10}",
            f"pciebar2axibar_{bar}": f"0x{BAR_OFFSETS[bar]:016X}",
        }
    bir = f"BAR_{pci.BAR_MSIX + 1}:{pci.BAR_MSIX}"
    return properties | {
        "pf0_interrupt_pin": "NONE",
        "pf0_msi_enabled": "false",
        "pf0_msix_enabled": "true",
        "pf0_msix_cap_table_size": f"{pci.msix_vectors(queues) - 1:03X}",
        "pf0_msix_cap_table_bir": bir,
        "pf0_msix_cap_table_offset": f"{pci.MSIX_TABLE_OFFSET:08X}",
        "pf0_msix_cap_pba_bir": bir,
        "pf0_msix_cap_pba_offset": f"{pci.MSIX_PBA_OFFSET:08X}",
    }


def common_ports(link):
    """Ports that the vendor's bridges of all families have; `link`: `boards.Pcie`."""
    return {
        "sys_rst_n": ("i", 1),
        "pci_exp_rxp": ("i", link.lanes),
        "pci_exp_rxn": ("i", link.lanes),
        "pci_exp_txp": ("o", link.lanes),
        "pci_exp_txn": ("o", link.lanes),
        "axi_aclk": ("o", 1),
        "axi_aresetn": ("o", 1),
        "axi_ctl_aresetn": ("o", 1),
        "interrupt_out": ("o", 1),
        "cfg_interrupt_msix_enable": ("o", 4),
        "cfg_interrupt_msix_mask": ("o", 4),
        "cfg_interrupt_msix_address": ("i", 64),
        "cfg_interrupt_msix_data": ("i", 32),
        "cfg_interrupt_msix_int": ("i", 1),
    }


def common_pins(m, edge, reset_n, enable, mask):
    """Connections of `common_ports`, and domain `pcie`, which is in reset while `reset_n` is low.

    edge: the edge connector, a resource of `boards._resources.pcie` that was asked for raw. reset_n, enable, mask: what the bridge
    says of the bus and of MSI-X. Messages are ours, so the bridge is asked for none.
    """
    m.d.comb += ResetSignal("pcie").eq(~reset_n)
    m.submodules.perst = perst = io.Buffer("i", edge.perst)
    lanes = {f"pci_exp_{way}{sign}": getattr(edge, f"{way}_{sign}").io for way in ("rx", "tx") for sign in ("p", "n")}
    return {
        **lanes,
        "sys_rst_n": perst.i,
        "axi_aclk": ClockSignal("pcie"),
        "axi_aresetn": reset_n,
        "cfg_interrupt_msix_enable": enable,
        "cfg_interrupt_msix_mask": mask,
        **{f"cfg_interrupt_msix_{name}": 0 for name in ("address", "data", "int")},
    }


def lite_ports(prefix, address, *, prot=True):
    """Ports of the bridge's own registers, AXI4-Lite; `address`: width in bits."""
    ports = {
        "awaddr": ("i", address), "awprot": ("i", 3), "awvalid": ("i", 1), "awready": ("o", 1),
        "wdata": ("i", 32), "wstrb": ("i", 4), "wvalid": ("i", 1), "wready": ("o", 1),
        "bvalid": ("o", 1), "bresp": ("o", 2), "bready": ("i", 1),
        "araddr": ("i", address), "arprot": ("i", 3), "arvalid": ("i", 1), "arready": ("o", 1),
        "rdata": ("o", 32), "rresp": ("o", 2), "rvalid": ("o", 1), "rready": ("i", 1),
    }  # fmt: skip
    return {f"{prefix}_{name}": port for name, port in ports.items() if prot or not name.endswith("prot")}


def with_link(ip, link):
    """The block with width and speed of a `boards.Pcie`. Other properties may put these back, so they come last and are
    looked at again."""
    wanted = {
        "pl_link_cap_max_link_width": f"X{link.lanes}",
        "pl_link_cap_max_link_speed": _SPEEDS[link.generation],
    }
    name = ip.module
    checks = tuple(
        f'if {{[get_property CONFIG.{key} [get_ips {name}]] ne "{value}"}} '
        f'{{error "{name}: {key} is [get_property CONFIG.{key} [get_ips {name}]], {value} expected"}}'
        for key, value in wanted.items()
    )
    return replace(ip, properties={**ip.properties, **wanted}, after=(*ip.after, *checks))


def bridge(link, queues):
    """The DMA/Bridge subsystem in bridge mode: `VendorIp` for a `boards.Pcie`."""
    width = 8 * AXI_BYTES
    block = VendorIp(
        module="pcie_bridge",
        name="xdma",
        doc="AMD PG194, tables Global Signals, AXI Slave Interface, AXI Master Interface, AXI4-Lite Control Interface, "
        "AXI Bridge MSI-X Signals, DMA/Bridge Subsystem for PCIe in Bridge Mode Interrupt Signals",
        ports={
            "sys_clk": ("i", 1),
            "sys_clk_gt": ("i", 1),
            "user_lnk_up": ("o", 1),
            "usr_irq_req": ("i", 1),
            "usr_irq_ack": ("o", 1),
            "msix_enable": ("o", 1),
            **common_ports(link),
            "cfg_interrupt_msi_sent": ("o", 1),
            "cfg_interrupt_msi_fail": ("o", 1),
            **axi_ports("s_axib", "slave", data=width, address=64, identifier=BUS_ID_BITS, extra=_REGION),
            **axi_ports("m_axib", "master", data=width, address=64, identifier=BUS_ID_BITS, extra=_MASTER),
            **lite_ports("s_axil", 32),
        },
        properties={
            # The mode first: the others exist only in it.
            "functional_mode": "AXI_Bridge",
            "mode_selection": "Advanced",
            "PCIE_BOARD_INTERFACE": "Custom",
            "SYS_RST_N_BOARD_INTERFACE": "Custom",
            "pcie_blk_locn": link.block,
            "axi_addr_width": "64",
            "axi_data_width": f"{width}_bit",
            "axisten_freq": "250",
            "en_axi_slave_if": "true",
            "c_s_axi_supports_narrow_burst": "false",
            # All of the host's addresses, unchanged.
            "axibar_num": "1",
            "axibar_0": f"0x{0:016X}",
            "axibar_highaddr_0": f"0x{(1 << 64) - 1:016X}",
            "axibar2pciebar_0": f"0x{0:016X}",
            **device_properties(queues),
            "pf0_msix_impl_locn": "External",
        },
    )
    return with_link(block, link)
