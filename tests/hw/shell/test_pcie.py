# amaranth: UnusedElaboratable=no
"""The bridges of both families show the device of `acceltcp.abi.pci`."""

import pytest

import boards
from acceltcp.abi import pci
from hw.dma.axi import AXI_ID_BITS
from hw.shell.message_writer import BUS_ID_BITS
from hw.shell.pcie import bridge
from hw.shell.pcie_virtex7 import HOST_ID_BITS, virtex7_bridge

BRIDGES = [("alveo_u50", bridge, 512), ("netfpga_sume", virtex7_bridge, 256)]


@pytest.mark.parametrize("name, make, bits", BRIDGES)
def test_the_device(name, make, bits):
    board = boards.load(name)
    block = make(board.pcie, board.config.queues)
    properties = block.properties
    assert (properties["vendor_id"], properties["pf0_device_id"]) == ("1234", "ACC7")
    assert [properties[f"pf0_class_code_{part}"] for part in ("base", "sub", "interface")] == ["02", "00", "00"]
    for bar, size in pci.BARS.items():
        scale = {"Kilobytes": 1 << 10}[properties[f"pf0_bar{bar}_scale"]]
        assert int(properties[f"pf0_bar{bar}_size"]) * scale == size
        # The bridge puts a BAR in the place of its address's low bits.
        assert int(properties[f"pciebar2axibar_{bar}"], 16) % size == 0
    assert int(properties["pf0_msix_cap_table_size"], 16) + 1 == board.config.queues
    assert properties["pf0_msix_cap_table_bir"] == properties["pf0_msix_cap_pba_bir"] == "BAR_3:2"
    assert int(properties["pf0_msix_cap_pba_offset"], 16) == pci.MSIX_PBA_OFFSET
    # Link width and speed stand last, and are looked at again.
    assert list(properties)[-2:] == ["pl_link_cap_max_link_width", "pl_link_cap_max_link_speed"]
    assert properties["pl_link_cap_max_link_width"] == f"X{board.pcie.lanes}" and len(block.after) == 2
    assert properties["pcie_blk_locn"] == board.pcie.block
    # All of the host's 64-bit addresses, in beats of the width that the ports have.
    assert int(properties["axibar_highaddr_0"], 16) == (1 << 64) - 1 and properties["axi_addr_width"] == "64"
    assert properties["axi_data_width"] == f"{bits}_bit"
    widths = {width for port, (_, width) in block.ports.items() if port.endswith(("wdata", "rdata")) and width > 32}
    assert widths == {bits}
    assert next(iter(properties)) == ("functional_mode" if name == "alveo_u50" else "mode_selection")


def test_identifiers_of_the_core_fit_beside_the_mark_of_a_message():
    assert AXI_ID_BITS < BUS_ID_BITS
    assert HOST_ID_BITS < BUS_ID_BITS
