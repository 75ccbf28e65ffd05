"""What the Linux kernel's VFIO takes beyond what `vfio_user` has in common with it: ioctls, and their arguments.

From `<linux/vfio.h>` and `<linux/iommufd.h>`. Regions, interrupt types and their layouts are those of `acceltcp.abi.vfio_user`.
All sizes are those of x86-64; numbers are in the byte order of the machine.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .layout import Layout

__all__ = [
    "API_VERSION",
    "TYPE1V2_IOMMU",
    "AttachIommufd",
    "BindIommufd",
    "Capability",
    "GroupStatus",
    "GroupStatusFlag",
    "IoasAlloc",
    "IoasMap",
    "IoasMapFlag",
    "Ioctl",
    "IommuInfo",
    "IommuInfoFlag",
    "IovaRange",
    "Type1IovaRanges",
    "Type1Map",
]

API_VERSION = 0
"""The answer to GET_API_VERSION."""

TYPE1V2_IOMMU = 3
"""Kind of IOMMU for CHECK_EXTENSION and SET_IOMMU."""


class Ioctl(enum.IntEnum):
    """Request numbers. VFIO's and iommufd's have no size and no direction in them."""

    GET_API_VERSION = 0x3B64
    CHECK_EXTENSION = 0x3B65
    SET_IOMMU = 0x3B66
    GROUP_GET_STATUS = 0x3B67
    GROUP_SET_CONTAINER = 0x3B68
    GROUP_GET_DEVICE_FD = 0x3B6A
    DEVICE_GET_INFO = 0x3B6B
    DEVICE_GET_REGION_INFO = 0x3B6C
    DEVICE_GET_IRQ_INFO = 0x3B6D
    DEVICE_SET_IRQS = 0x3B6E
    DEVICE_RESET = 0x3B6F
    IOMMU_GET_INFO = 0x3B70
    IOMMU_MAP_DMA = 0x3B71
    DEVICE_BIND_IOMMUFD = 0x3B76
    DEVICE_ATTACH_IOMMUFD_PT = 0x3B77
    IOAS_ALLOC = 0x3B81
    IOAS_MAP = 0x3B85


class GroupStatusFlag(enum.IntFlag):
    """`GroupStatus.flags`."""

    VIABLE = 1
    """Every device of the group has a driver that leaves it alone, or none."""
    CONTAINER_SET = 2


@dataclass(frozen=True)
class GroupStatus(Layout, layout="II"):
    """GROUP_GET_STATUS."""

    argsz: int
    flags: int = 0


class IommuInfoFlag(enum.IntFlag):
    """`IommuInfo.flags`."""

    PGSIZES = 1
    CAPS = 2


@dataclass(frozen=True)
class IommuInfo(Layout, layout="IIQII"):
    """IOMMU_GET_INFO; capabilities follow, each a `Capability` and its data, the first at `cap_offset`."""

    argsz: int
    flags: int = 0
    iova_pgsizes: int = 0
    cap_offset: int = 0
    padding: int = 0


@dataclass(frozen=True)
class Capability(Layout, layout="HHI"):
    """Head of a capability; the next one is at `next` from the start of the whole answer, 0: none."""

    IOVA_RANGES = 1
    """`id` of the one whose data are `Type1IovaRanges`."""

    id: int
    version: int
    next: int


@dataclass(frozen=True)
class Type1IovaRanges(Layout, layout="II"):
    """Data of the capability IOVA_RANGES; `count` times `IovaRange` follow."""

    count: int
    reserved: int


@dataclass(frozen=True)
class IovaRange(Layout, layout="QQ"):
    """Addresses that the device may be given; `last` is one of them."""

    start: int
    last: int


@dataclass(frozen=True)
class Type1Map(Layout, layout="IIQQQ"):
    """IOMMU_MAP_DMA. `flags` are `acceltcp.abi.vfio_user.DmaFlag`."""

    argsz: int
    flags: int
    vaddr: int
    iova: int
    size: int


@dataclass(frozen=True)
class BindIommufd(Layout, layout="IIiI"):
    """DEVICE_BIND_IOMMUFD."""

    argsz: int
    flags: int
    iommufd: int
    out_devid: int = 0


@dataclass(frozen=True)
class AttachIommufd(Layout, layout="III"):
    """DEVICE_ATTACH_IOMMUFD_PT."""

    argsz: int
    flags: int
    pt_id: int


@dataclass(frozen=True)
class IoasAlloc(Layout, layout="III"):
    """IOAS_ALLOC: a new address space."""

    size: int
    flags: int = 0
    out_ioas_id: int = 0


class IoasMapFlag(enum.IntFlag):
    """`IoasMap.flags`."""

    FIXED_IOVA = 1
    WRITEABLE = 2
    READABLE = 4


@dataclass(frozen=True)
class IoasMap(Layout, layout="IIIIQQQ"):
    """IOAS_MAP. Without FIXED_IOVA the kernel chooses `iova`."""

    size: int
    flags: int
    ioas_id: int
    reserved: int
    user_va: int
    length: int
    iova: int = 0
