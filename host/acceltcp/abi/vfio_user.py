"""The vfio-user protocol: a PCI device in another process, over a UNIX socket.

Numbers and layouts only, shared by the host's transport and the simulated device. From the
"vfio-user Protocol Specification" (QEMU's `docs/interop/vfio-user.rst`), version 0.1, and
the numbers of `<linux/vfio.h>` it refers to. All numbers are in the byte order of the
machine that both processes run on.

Every message is a `Header`, then the layout that the command asks for, then data; file
descriptors travel as `SCM_RIGHTS`. An error reply is a header alone.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Any

from .layout import Layout

__all__ = [
    "CHANNELS",
    "HEADER_BYTES",
    "MAX_DATA_XFER_SIZE_DEFAULT",
    "MAX_DMA_MAPS_DEFAULT",
    "MAX_MSG_FDS_DEFAULT",
    "NUM_IRQS",
    "NUM_REGIONS",
    "VERSION_MAJOR",
    "VERSION_MINOR",
    "Command",
    "DeviceFlag",
    "DeviceInfo",
    "DmaFlag",
    "DmaMap",
    "DmaTransfer",
    "DmaUnmap",
    "DmaUnmapFlag",
    "FeatureFlag",
    "FeatureRequest",
    "Header",
    "HeaderFlag",
    "Irq",
    "IrqInfo",
    "IrqInfoFlag",
    "IrqSet",
    "IrqSetFlag",
    "Region",
    "RegionAccess",
    "RegionFlag",
    "RegionInfo",
    "RegionIoFds",
    "RegionWriteMulti",
    "RegionWriteMultiEntry",
    "SubRegion",
    "SubRegionType",
    "Version",
    "command_message",
    "error_message",
    "pack_version_data",
    "reply_message",
    "unpack_version_data",
]

VERSION_MAJOR = 0
VERSION_MINOR = 1
"""Highest minor version that we speak; a reply names the lower one of both sides."""

MAX_MSG_FDS_DEFAULT = 1
MAX_DATA_XFER_SIZE_DEFAULT = 1 << 20
MAX_DMA_MAPS_DEFAULT = 65535
"""What a side assumes about the other when the version data do not say."""


class Command(enum.IntEnum):
    """`Header.command`. All but DMA_READ and DMA_WRITE go from client to server."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class HeaderFlag(enum.IntFlag):
    """`Header.flags`."""

    COMMAND = 0
    """Type (bits 0 to 3) of a command."""
    REPLY = 1
    """Type (bits 0 to 3) of a reply."""
    TYPE_MASK = 0xF
    NO_REPLY = 0x10
    """In a command: no reply, please."""
    ERROR = 0x20
    """In a reply: failed; `Header.error` is an errno."""


class Region(enum.IntEnum):
    """Region indices of a PCI device."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


NUM_REGIONS = 9


class SubRegionType(enum.IntEnum):
    """`SubRegion.type`."""

    IOEVENTFD = 0
    IOREGIONFD = 1
    CHANNEL = 0x8000_0001
    """Not of the specification: a stream socket that takes REGION_READ and REGION_WRITE of this region, so that several
    processes can use one device. A new one comes with every request, to clients that proposed `CHANNELS`."""


CHANNELS = "register_channels"
"""Name in the version data: whether there are descriptors of `SubRegionType.CHANNEL`."""


class Irq(enum.IntEnum):
    """Interrupt type indices of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


NUM_IRQS = 5


class DmaFlag(enum.IntFlag):
    """`DmaMap.flags`: what the device may do."""

    READ = 1
    WRITE = 2


class DmaUnmapFlag(enum.IntFlag):
    """`DmaUnmap.flags`; the specification has none, `<linux/vfio.h>` these."""

    GET_DIRTY_BITMAP = 1
    ALL = 2
    """Unmap everything; address and size must be 0."""


class DeviceFlag(enum.IntFlag):
    """`DeviceInfo.flags`."""

    RESET = 1
    PCI = 2


class RegionFlag(enum.IntFlag):
    """`RegionInfo.flags`."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqInfoFlag(enum.IntFlag):
    """`IrqInfo.flags`."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqSetFlag(enum.IntFlag):
    """`IrqSet.flags`: exactly one of DATA and one of ACTION."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 16
    ACTION_TRIGGER = 32
    DATA_TYPE_MASK = 7
    ACTION_TYPE_MASK = 56


class FeatureFlag(enum.IntFlag):
    """`FeatureRequest.flags`; the low 16 bits are the feature's index."""

    INDEX_MASK = 0xFFFF
    GET = 0x1_0000
    SET = 0x2_0000
    PROBE = 0x4_0000


@dataclass(frozen=True)
class Header(Layout, layout="HHIII"):
    """First 16 bytes of every message. `size` counts the whole message, header included."""

    msg_id: int
    command: int
    size: int
    flags: int
    error: int = 0


HEADER_BYTES = Header.byte_size


@dataclass(frozen=True)
class Version(Layout, layout="HH"):
    """VERSION, both ways; JSON version data, NUL-terminated, may follow."""

    major: int
    minor: int


@dataclass(frozen=True)
class DmaMap(Layout, layout="IIQQQ"):
    """DMA_MAP. `argsz` is the size of this layout; the reply has no payload. The memory's
    file descriptor travels with it."""

    argsz: int
    flags: int
    offset: int
    address: int
    size: int


@dataclass(frozen=True)
class DmaUnmap(Layout, layout="IIQQ"):
    """DMA_UNMAP, both ways. All mappings within the range go, as with `<linux/vfio.h>`'s type 1 version 2; the reply's `size` says how many
    bytes that were. A range that cuts a mapping is refused (EINVAL)."""

    argsz: int
    flags: int
    address: int
    size: int


@dataclass(frozen=True)
class DeviceInfo(Layout, layout="IIII"):
    """DEVICE_GET_INFO, both ways."""

    argsz: int
    flags: int = 0
    num_regions: int = 0
    num_irqs: int = 0


@dataclass(frozen=True)
class RegionInfo(Layout, layout="IIIIQQ"):
    """DEVICE_GET_REGION_INFO, both ways."""

    argsz: int
    flags: int
    index: int
    cap_offset: int = 0
    size: int = 0
    offset: int = 0


@dataclass(frozen=True)
class RegionIoFds(Layout, layout="IIII"):
    """DEVICE_GET_REGION_IO_FDS, both ways; `count` sub-regions follow in the reply."""

    argsz: int
    flags: int
    index: int
    count: int = 0


@dataclass(frozen=True)
class SubRegion(Layout, layout="QQIIIIQ"):
    """A part of a region that a descriptor stands for, in the reply to DEVICE_GET_REGION_IO_FDS."""

    offset: int
    size: int
    fd_index: int
    type: int
    flags: int = 0
    padding: int = 0
    user_data: int = 0


@dataclass(frozen=True)
class IrqInfo(Layout, layout="IIII"):
    """DEVICE_GET_IRQ_INFO, both ways."""

    argsz: int
    flags: int
    index: int
    count: int = 0


@dataclass(frozen=True)
class IrqSet(Layout, layout="IIIII"):
    """DEVICE_SET_IRQS. `argsz` is its size with the data; `count` bytes follow for DATA_BOOL,
    descriptors travel with it for DATA_EVENTFD; the reply has no payload."""

    argsz: int
    flags: int
    index: int
    start: int
    count: int


@dataclass(frozen=True)
class RegionAccess(Layout, layout="QII"):
    """REGION_READ and REGION_WRITE, both ways; data follow in the write and the read reply."""

    offset: int
    region: int
    count: int


@dataclass(frozen=True)
class RegionWriteMulti(Layout, layout="Q"):
    """REGION_WRITE_MULTI, both ways; `count` entries follow in the command."""

    count: int


@dataclass(frozen=True)
class RegionWriteMultiEntry(Layout, layout="QII8s"):
    """One write of REGION_WRITE_MULTI: up to 8 bytes."""

    offset: int
    region: int
    count: int
    data: bytes


@dataclass(frozen=True)
class DmaTransfer(Layout, layout="QQ"):
    """DMA_READ and DMA_WRITE, from server to client, both ways."""

    address: int
    count: int


@dataclass(frozen=True)
class FeatureRequest(Layout, layout="II"):
    """DEVICE_FEATURE, both ways; data may follow."""

    argsz: int
    flags: int


def command_message(msg_id: int, command: int, payload: bytes = b"", *, no_reply: bool = False) -> bytes:
    """A whole command."""
    flags = HeaderFlag.COMMAND | (HeaderFlag.NO_REPLY if no_reply else 0)
    return Header(msg_id, command, HEADER_BYTES + len(payload), flags).pack() + payload


def reply_message(command: Header, payload: bytes = b"") -> bytes:
    """The whole successful reply to a command."""
    return (
        Header(command.msg_id, command.command, HEADER_BYTES + len(payload), HeaderFlag.REPLY).pack()
        + payload
    )


def error_message(command: Header, errno: int) -> bytes:
    """The whole reply to a command that failed."""
    return Header(
        command.msg_id, command.command, HEADER_BYTES, HeaderFlag.REPLY | HeaderFlag.ERROR, errno
    ).pack()


def pack_version_data(capabilities: dict[str, Any]) -> bytes:
    """Version data: what follows `Version`."""
    return json.dumps({"capabilities": capabilities}).encode() + b"\0"


def unpack_version_data(data: bytes) -> dict[str, Any]:
    """The capabilities in what follows `Version`; empty when there are none.

    Raises `ValueError` unless it is a NUL-terminated JSON object with an object in it.
    """
    if not data:
        return {}
    if data[-1]:
        raise ValueError("version data must end in a NUL byte")
    try:
        document = json.loads(data[:-1].decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"version data must be JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"version data must be a JSON object, not {type(document).__name__}")
    capabilities = document.get("capabilities", {})
    if not isinstance(capabilities, dict):
        raise ValueError(f"capabilities must be a JSON object, not {type(capabilities).__name__}")
    return capabilities
