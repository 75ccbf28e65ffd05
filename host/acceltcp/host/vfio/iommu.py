"""The two ways in which the kernel gives out a device and its memory: groups in a container, and iommufd.

Both offer the same: a descriptor of the device, and memory mapped for it. Everything is let go of when the descriptors are
closed, by whatever ends the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from acceltcp.abi.vfio import (
    API_VERSION,
    TYPE1V2_IOMMU,
    AttachIommufd,
    BindIommufd,
    Capability,
    GroupStatus,
    GroupStatusFlag,
    IoasAlloc,
    IoasMap,
    IoasMapFlag,
    Ioctl,
    IommuInfo,
    IommuInfoFlag,
    IovaRange,
    Type1IovaRanges,
    Type1Map,
)
from acceltcp.abi.vfio_user import DmaFlag

from ..dma import align_up
from ..errors import DeviceError
from . import kernel
from .sysfs import VFIO_DRIVER, PciFunction

__all__ = ["Container", "Iommu", "Iommufd", "IovaSpace", "open_iommu"]

DEV = Path("/dev")


class Iommu(Protocol):
    """What `Container` and `Iommufd` have in common."""

    device: int
    """Descriptor of the device."""

    def map(self, vaddr: int, size: int) -> int:
        """Map memory, whole pages, for reading and writing; the address for the device. Raises `OSError`."""

    def close(self) -> None:
        """Let go of the device and of all memory."""


def open_iommu(function: PciFunction, name: str, dev: Path = DEV) -> Iommu:
    """By iommufd where the kernel has it and lets us, else by the group. Raises `DeviceError`, which calls the device `name`."""
    if function.driver != VFIO_DRIVER:
        has = f"the driver {function.driver}" if function.driver else "no driver"
        raise DeviceError(f"{name} has {has}, not {VFIO_DRIVER}: 'sudo acceltcp bind {function.bdf} --owner $USER' gives it that one.")
    cdev = function.cdev
    if cdev is not None and os.access(dev / "iommu", os.R_OK | os.W_OK) and os.access(dev / "vfio" / "devices" / cdev, os.R_OK | os.W_OK):
        return Iommufd(cdev, name, dev)
    return Container(function, name, dev)


class IovaSpace:
    """Hands out addresses for the device, each once.

    ranges: what the IOMMU can translate, first and last address of each.
    """

    START = 1 << 32
    """Addresses below are left to what expects its own there, as long as there are others."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        high = [(max(first, self.START), last) for first, last in ranges if last >= self.START]
        low = [(max(first, kernel.HUGE_PAGE), min(last, self.START - 1)) for first, last in ranges if first < self.START]
        self._ranges = high + low

    def take(self, size: int) -> int:
        """Room for `size` bytes at a multiple of 2 MiB. Raises `OSError` (ENOSPC)."""
        for number, (first, last) in enumerate(self._ranges):
            start = align_up(first, kernel.HUGE_PAGE)
            if start + size - 1 <= last:
                self._ranges[number] = (start + size, last)
                return start
        raise OSError(errno.ENOSPC, f"the IOMMU has no {size} addresses left")


class Container:
    """The group's file, /dev/vfio/N, and a type 1 (version 2) IOMMU of its own."""

    def __init__(self, function: PciFunction, name: str, dev: Path = DEV) -> None:
        self._name = name
        group_number = function.group
        with contextlib.ExitStack() as stack:
            container = self._open(stack, str(dev / "vfio" / "vfio"))
            with self._explained("asking for VFIO's version"):
                version = fcntl.ioctl(container, Ioctl.GET_API_VERSION)
                has_type1 = fcntl.ioctl(container, Ioctl.CHECK_EXTENSION, TYPE1V2_IOMMU) == 1
            if version != API_VERSION:
                raise DeviceError(f"{name}: the kernel's VFIO has version {version}, this driver takes {API_VERSION}.")
            if not has_type1:
                raise DeviceError(f"{name}: the kernel has no type 1 IOMMU for VFIO: is the module vfio_iommu_type1 loaded?")
            group = self._open(stack, str(dev / "vfio" / str(group_number)))
            with self._explained("asking for the group's state"):
                status = kernel.call(group, Ioctl.GROUP_GET_STATUS, GroupStatus(GroupStatus.byte_size))
            if not status.flags & GroupStatusFlag.VIABLE:
                others = ", ".join(map(str, function.in_the_way)) or "which cannot be told"
                raise DeviceError(
                    f"{name} cannot be used while other devices of its IOMMU group {group_number} have drivers of their own: {others}."
                )
            with self._explained("joining group and container"):
                kernel.call_bytes(group, Ioctl.GROUP_SET_CONTAINER, container.to_bytes(4, "little"))
            with self._explained("switching the IOMMU on"):
                fcntl.ioctl(container, Ioctl.SET_IOMMU, TYPE1V2_IOMMU)
                self._iovas = IovaSpace(_ranges(container))
            with self._explained("opening the device"):
                self.device = fcntl.ioctl(group, Ioctl.GROUP_GET_DEVICE_FD, bytearray(function.bdf.encode() + b"\0"))
            stack.callback(os.close, self.device)
            self._container = container
            self._stack = stack.pop_all()

    def _open(self, stack: contextlib.ExitStack, path: str) -> int:
        fd = kernel.open_device(path, self._name)
        stack.callback(os.close, fd)
        return fd

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DeviceError(f"{self._name}: {what} failed: {error.strerror}.") from None

    def map(self, vaddr: int, size: int) -> int:
        iova = self._iovas.take(size)
        kernel.call(
            self._container, Ioctl.IOMMU_MAP_DMA,
            Type1Map(Type1Map.byte_size, DmaFlag.READ | DmaFlag.WRITE, vaddr, iova, size),
        )  # fmt: skip
        return iova

    def close(self) -> None:
        self._stack.close()


def _ranges(container: int) -> list[tuple[int, int]]:
    """Addresses that the IOMMU translates. Kernels before 5.4 do not say: then those of 39 bits, what every IOMMU has, but for
    the window of interrupts below 4 GiB."""
    info = kernel.call(container, Ioctl.IOMMU_GET_INFO, IommuInfo(IommuInfo.byte_size))
    answer = kernel.call_bytes(container, Ioctl.IOMMU_GET_INFO, IommuInfo(info.argsz).pack().ljust(info.argsz, b"\0"))
    info = IommuInfo.unpack(answer)
    at = info.cap_offset if info.flags & IommuInfoFlag.CAPS else 0
    while at:
        capability = Capability.unpack(answer, at)
        if capability.id == Capability.IOVA_RANGES:
            data = at + Capability.byte_size
            first = data + Type1IovaRanges.byte_size
            count = Type1IovaRanges.unpack(answer, data).count
            found = [IovaRange.unpack(answer, first + number * IovaRange.byte_size) for number in range(count)]
            return [(each.start, each.last) for each in found]
        at = capability.next
    return [(IovaSpace.START, (1 << 39) - 1)]


class Iommufd:
    """The device's own file, /dev/vfio/devices/vfioN, and an address space of iommufd, which chooses the addresses."""

    def __init__(self, cdev: str, name: str, dev: Path = DEV) -> None:
        with contextlib.ExitStack() as stack:
            self._iommufd = kernel.open_device(str(dev / "iommu"), name)
            stack.callback(os.close, self._iommufd)
            self.device = kernel.open_device(str(dev / "vfio" / "devices" / cdev), name)
            stack.callback(os.close, self.device)
            try:
                self._bind(name)
                space = kernel.call(self._iommufd, Ioctl.IOAS_ALLOC, IoasAlloc(IoasAlloc.byte_size))
                self._space = space.out_ioas_id
                kernel.call(self.device, Ioctl.DEVICE_ATTACH_IOMMUFD_PT, AttachIommufd(AttachIommufd.byte_size, 0, self._space))
            except OSError as error:
                raise DeviceError(f"{name} cannot be used by iommufd: {error.strerror}.") from None
            self._stack = stack.pop_all()

    def _bind(self, name: str) -> None:
        try:
            kernel.call(self.device, Ioctl.DEVICE_BIND_IOMMUFD, BindIommufd(BindIommufd.byte_size, 0, self._iommufd))
        except OSError as error:
            # Busy: somebody has the group. Invalid: somebody has bound this very file, which only one may.
            if error.errno in (errno.EBUSY, errno.EINVAL):
                raise DeviceError(f"{name} is in use by another program.") from None
            raise

    def map(self, vaddr: int, size: int) -> int:
        flags = IoasMapFlag.READABLE | IoasMapFlag.WRITEABLE
        answer = kernel.call(self._iommufd, Ioctl.IOAS_MAP, IoasMap(IoasMap.byte_size, flags, self._space, 0, vaddr, size))
        return answer.iova

    def close(self) -> None:
        self._stack.close()
