"""Layouts and request numbers of VFIO, against the C compiler and the kernel's own header."""

import subprocess
from pathlib import Path

import pytest

from acceltcp.abi import vfio, vfio_user

HEADER = Path("/usr/include/linux/vfio.h")

LAYOUTS = {
    vfio.GroupStatus: ("vfio_group_status", ("argsz", "flags")),
    vfio.IommuInfo: ("vfio_iommu_type1_info", ("argsz", "flags", "iova_pgsizes", "cap_offset")),
    vfio.Capability: ("vfio_info_cap_header", ("id", "version", "next")),
    vfio.IovaRange: ("vfio_iova_range", ("start", "end")),
    vfio.Type1Map: ("vfio_iommu_type1_dma_map", ("argsz", "flags", "vaddr", "iova", "size")),
    vfio_user.RegionInfo: ("vfio_region_info", ("argsz", "flags", "index", "cap_offset", "size", "offset")),
    vfio_user.IrqInfo: ("vfio_irq_info", ("argsz", "flags", "index", "count")),
    vfio_user.IrqSet: ("vfio_irq_set", ("argsz", "flags", "index", "start", "count")),
}
"""Ours -> the kernel's structure and its fields; one that is longer begins with ours."""

OF_THE_HEADER = {
    vfio.Ioctl: {
        "GET_API_VERSION": "VFIO_GET_API_VERSION", "CHECK_EXTENSION": "VFIO_CHECK_EXTENSION", "SET_IOMMU": "VFIO_SET_IOMMU",
        "GROUP_GET_STATUS": "VFIO_GROUP_GET_STATUS", "GROUP_SET_CONTAINER": "VFIO_GROUP_SET_CONTAINER",
        "GROUP_GET_DEVICE_FD": "VFIO_GROUP_GET_DEVICE_FD", "DEVICE_GET_INFO": "VFIO_DEVICE_GET_INFO",
        "DEVICE_GET_REGION_INFO": "VFIO_DEVICE_GET_REGION_INFO", "DEVICE_GET_IRQ_INFO": "VFIO_DEVICE_GET_IRQ_INFO",
        "DEVICE_SET_IRQS": "VFIO_DEVICE_SET_IRQS", "DEVICE_RESET": "VFIO_DEVICE_RESET", "IOMMU_GET_INFO": "VFIO_IOMMU_GET_INFO",
        "IOMMU_MAP_DMA": "VFIO_IOMMU_MAP_DMA",
    },
    vfio.GroupStatusFlag: {"VIABLE": "VFIO_GROUP_FLAGS_VIABLE", "CONTAINER_SET": "VFIO_GROUP_FLAGS_CONTAINER_SET"},
    vfio.IommuInfoFlag: {"PGSIZES": "VFIO_IOMMU_INFO_PGSIZES", "CAPS": "VFIO_IOMMU_INFO_CAPS"},
    vfio_user.DmaFlag: {"READ": "VFIO_DMA_MAP_FLAG_READ", "WRITE": "VFIO_DMA_MAP_FLAG_WRITE"},
    vfio_user.RegionFlag: {
        "READ": "VFIO_REGION_INFO_FLAG_READ", "WRITE": "VFIO_REGION_INFO_FLAG_WRITE", "MMAP": "VFIO_REGION_INFO_FLAG_MMAP",
    },
    vfio_user.IrqSetFlag: {"DATA_EVENTFD": "VFIO_IRQ_SET_DATA_EVENTFD", "ACTION_TRIGGER": "VFIO_IRQ_SET_ACTION_TRIGGER"},
    vfio_user.DeviceFlag: {"RESET": "VFIO_DEVICE_FLAGS_RESET", "PCI": "VFIO_DEVICE_FLAGS_PCI"},
    vfio_user.Irq: {"MSIX": "VFIO_PCI_MSIX_IRQ_INDEX", "REQ": "VFIO_PCI_REQ_IRQ_INDEX"},
    vfio_user.Region: {"BAR0": "VFIO_PCI_BAR0_REGION_INDEX", "CONFIG": "VFIO_PCI_CONFIG_REGION_INDEX"},
}  # fmt: skip


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """What a C program says of the header: expression -> number."""
    folder = tmp_path_factory.mktemp("header")
    asked = ["VFIO_API_VERSION", "VFIO_TYPE1v2_IOMMU", "VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE"]
    asked += [name for names in OF_THE_HEADER.values() for name in names.values()]
    for name, fields in LAYOUTS.values():
        asked += [f"sizeof(struct {name})"]
        asked += [f"offsetof(struct {name}, {field})" for field in fields]
    asked += [f"offsetof(struct vfio_device_info, {field})" for field in ("argsz", "flags", "num_regions", "num_irqs")]
    lines = "".join(f'  printf("%llu\\n", (unsigned long long)({each}));\n' for each in asked)
    source = f"#include <cstddef>\n#include <cstdio>\n#include <linux/vfio.h>\nint main() {{\n{lines}}}\n"
    (folder / "ask.cpp").write_text(source)
    subprocess.run(["g++", "-w", "-o", folder / "ask", folder / "ask.cpp"], check=True, timeout=120)
    said = subprocess.run([folder / "ask"], check=True, capture_output=True, text=True, timeout=10).stdout.split()
    return dict(zip(asked, map(int, said), strict=True))


def offsets(kind):
    """Of each field, from the format: the first byte that differs when the field alone is all ones."""
    names = list(kind.__dataclass_fields__)
    found = []
    for number in range(len(names)):
        for ones in ((1 << 64) - 1, (1 << 32) - 1, (1 << 16) - 1):
            values = [0] * len(names)
            values[number] = ones
            try:
                packed = kind(*values).pack()
            except Exception:
                continue
            found.append(packed.index(0xFF))
            break
    return found


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.__name__)
def test_layouts(kernel, kind):
    name, fields = LAYOUTS[kind]
    assert offsets(kind)[: len(fields)] == [kernel[f"offsetof(struct {name}, {field})"] for field in fields]
    assert kind.byte_size == kernel[f"sizeof(struct {name})"]


def test_a_device_s_description_begins_like_the_kernel_s(kernel):
    fields = ("argsz", "flags", "num_regions", "num_irqs")
    assert offsets(vfio_user.DeviceInfo) == [kernel[f"offsetof(struct vfio_device_info, {field})"] for field in fields]


def test_numbers(kernel):
    for kind, names in OF_THE_HEADER.items():
        for ours, theirs in names.items():
            assert kind[ours] == kernel[theirs], theirs
    assert kernel["VFIO_API_VERSION"] == vfio.API_VERSION
    assert kernel["VFIO_TYPE1v2_IOMMU"] == vfio.TYPE1V2_IOMMU
    assert kernel["VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE"] == vfio.Capability.IOVA_RANGES


def test_iommufd():
    """Not in Debian 12's header: by the kernel's include/uapi/linux/iommufd.h, _IO(';', 0x80 + n), and vfio.h, _IO(';', 100 + n)."""
    io = ord(";") << 8
    assert [io | 0x81, io | 0x85] == [vfio.Ioctl.IOAS_ALLOC, vfio.Ioctl.IOAS_MAP]
    assert [io | 118, io | 119] == [vfio.Ioctl.DEVICE_BIND_IOMMUFD, vfio.Ioctl.DEVICE_ATTACH_IOMMUFD_PT]
    assert (vfio.BindIommufd.byte_size, vfio.AttachIommufd.byte_size) == (16, 12)
    assert (vfio.IoasAlloc.byte_size, vfio.IoasMap.byte_size) == (12, 40)
    assert offsets(vfio.IoasMap) == [0, 4, 8, 12, 16, 24, 32]


def test_too_few_bytes():
    with pytest.raises(ValueError, match="GroupStatus takes 8 bytes, not 3"):
        vfio.GroupStatus.unpack(b"abcde", 2)
    assert vfio.GroupStatus.unpack(vfio.GroupStatus(8, 1).pack() + b"more") == vfio.GroupStatus(8, 1)
