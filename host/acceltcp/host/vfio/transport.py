"""A NIC on PCI Express, by the kernel's VFIO.

Registers are BAR 0, mapped; each access is one load or store of 32 bits. Stores to memory and to registers become visible to the
device in their order, which x86-64 guarantees. Memory is anonymous, of huge pages if the system has some reserved, and
locked while it is mapped. Interrupts are MSI-X vectors as eventfds. When the process ends, however it does, the kernel
takes the device back: it stops it from reading and writing memory, resets it, and unmaps and unlocks everything.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from pathlib import Path

from acceltcp.abi import pci
from acceltcp.abi.vfio import Ioctl
from acceltcp.abi.vfio_user import (
    DeviceFlag,
    DeviceInfo,
    Irq,
    IrqInfo,
    IrqSet,
    IrqSetFlag,
    Region,
    RegionFlag,
    RegionInfo,
)

from ..dma import DmaRegion, align_up
from ..errors import DeviceError, DeviceLostError
from ..shared_transport import SharedTransport
from ..transport import Transport
from . import kernel
from .iommu import DEV, open_iommu
from .sysfs import PciFunction

__all__ = ["VfioTransport"]

_PCI_ID = struct.Struct("<HH")
_PCI_COMMAND = 4  # configuration space: command register
_COMMAND_MEMORY_AND_BUS_MASTER = 0x6

_GONE = 0xFFFF_FFFF
"""What a read gives when nobody answers; a counter may have this value, too."""


class _Registers:
    """BAR 0, mapped. Every process that the mapping was inherited by may use it."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self.words = memoryview(mapping).cast("I")
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self.words.release()
        self._mapping.close()


class VfioTransport(Transport):
    """The function at `bdf`, which vfio-pci has. root, dev: where sysfs and the device files are.

    Raises `DeviceError`: no such function, not bound, no IOMMU, group not viable, no permission, in use, not a NIC.
    """

    def __init__(self, bdf: str, *, root: Path = Path("/sys"), dev: Path = DEV, description: str | None = None) -> None:
        function = PciFunction(bdf, root)
        self.description = description or f"vfio:{function.bdf}"
        self._maps: list[tuple[memoryview, mmap.mmap]] = []
        self._eventfds: list[int] = []
        self._wanted = -1
        self._lost: str | None = None
        self._registers: _Registers | None = None
        self._iommu = open_iommu(function, self.description, dev)
        self._device = self._iommu.device
        try:
            self._identify()
            self._wanted = self._ask_to_be_told()
        except OSError as error:
            self.close()
            raise DeviceError(f"{self.description} cannot be set up: {error.strerror}.") from None
        except BaseException:
            self.close()
            raise

    # -- set-up ------------------------------------------------------------------------

    def _identify(self) -> None:
        info = kernel.call(self._device, Ioctl.DEVICE_GET_INFO, DeviceInfo(DeviceInfo.byte_size))
        self._can_reset = bool(info.flags & DeviceFlag.RESET)
        self._config = self._region(Region.CONFIG)
        vendor, device = _PCI_ID.unpack(os.pread(self._device, _PCI_ID.size, self._config.offset))
        if (vendor, device) != (pci.VENDOR_ID, pci.DEVICE_ID):
            raise DeviceError(
                f"{self.description} is PCI device {vendor:04x}:{device:04x}, not {pci.IDENTITY}."
            )
        bar = self._region(Region(pci.BAR_REGISTERS))
        wanted = RegionFlag.READ | RegionFlag.WRITE | RegionFlag.MMAP
        if bar.size < pci.BAR_REGISTERS_BYTES or bar.flags & wanted != wanted:
            raise DeviceError(
                f"{self.description} has a BAR {pci.BAR_REGISTERS} of {bar.size} bytes (flags {bar.flags:#x}); "
                f"an AccelTCP NIC has {pci.BAR_REGISTERS_BYTES} that can be mapped."
            )
        self._reset()
        (command,) = struct.unpack("<H", os.pread(self._device, 2, self._config.offset + _PCI_COMMAND))
        os.pwrite(
            self._device, struct.pack("<H", command | _COMMAND_MEMORY_AND_BUS_MASTER), self._config.offset + _PCI_COMMAND
        )
        self._registers = _Registers(mmap.mmap(self._device, pci.BAR_REGISTERS_BYTES, offset=bar.offset))
        irqs = kernel.call(self._device, Ioctl.DEVICE_GET_IRQ_INFO, IrqInfo(IrqInfo.byte_size, 0, Irq.MSIX))
        self._vectors = irqs.count

    def _region(self, region: Region) -> RegionInfo:
        return kernel.call(self._device, Ioctl.DEVICE_GET_REGION_INFO, RegionInfo(RegionInfo.byte_size, 0, region))

    def _ask_to_be_told(self) -> int:
        """An eventfd for the kernel's wish to have the device back; -1 when it cannot say so."""
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._set_eventfds(Irq.REQ, [fd])
        except OSError:
            os.close(fd)
            return -1
        return fd

    def _set_eventfds(self, kind: Irq, fds: list[int]) -> None:
        data = struct.pack(f"={len(fds)}i", *fds)
        flags = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER
        request = IrqSet(IrqSet.byte_size + len(data), flags, kind, 0, len(fds))
        kernel.call_bytes(self._device, Ioctl.DEVICE_SET_IRQS, request.pack() + data)

    # -- the seam ----------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        if self._registers is None:
            self.check()
            raise AssertionError
        value = self._registers.words[offset >> 2]
        if value == _GONE:
            self._check_presence()
        return value

    def write32(self, offset: int, value: int) -> None:
        if self._registers is None:
            self.check()
            raise AssertionError
        self._registers.words[offset >> 2] = value

    def _check_presence(self) -> None:
        """After a read of ones: whether the function still answers at all."""
        try:
            identity = os.pread(self._device, _PCI_ID.size, self._config.offset)
        except OSError as error:
            identity, reason = b"", error.strerror
        else:
            reason = "it does not answer on the bus"
        if identity != _PCI_ID.pack(pci.VENDOR_ID, pci.DEVICE_ID):
            self._lost = reason
            self.check()

    def map_memory(self, size: int) -> DmaRegion:
        if self._registers is None:
            self.check()
        size = align_up(size, mmap.PAGESIZE)
        mapping, vaddr = kernel.memory(size)
        try:
            address = self._iommu.map(vaddr, size)
        except OSError as error:
            mapping.close()
            raise kernel.refusal(error, size, self.description) from None
        view = memoryview(mapping)
        self._maps.append((view, mapping))
        return DmaRegion(view, address, size)

    def enable_interrupts(self, count: int) -> list[int]:
        if self._registers is None:
            self.check()  # the descriptor's number may be another file's by now
        if not 1 <= count <= self._vectors:
            raise DeviceError(f"{self.description} has {self._vectors} interrupt vectors, not {count}.")
        if not self._eventfds:
            # All at once: before Linux 6.5 the kernel adds none to those that are enabled.
            eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(self._vectors)]
            try:
                self._set_eventfds(Irq.MSIX, eventfds)
            except OSError as error:
                for fd in eventfds:
                    os.close(fd)
                raise DeviceError(f"{self.description}: its interrupts could not be enabled: {error.strerror}.") from None
            self._eventfds = eventfds
        return self._eventfds[:count]

    def reset(self) -> None:
        if self._registers is None:
            self.check()
        self._reset()

    def _reset(self) -> None:
        if not self._can_reset:
            return
        try:
            kernel.call_bytes(self._device, Ioctl.DEVICE_RESET, b"")
        except OSError as error:
            if error.errno == errno.ENODEV:
                self._lost = "it does not answer on the bus"
                self.check()
            raise DeviceError(f"{self.description} could not be reset: {error.strerror}.") from None

    def fileno(self) -> int | None:
        return self._wanted if self._wanted >= 0 else None

    def check(self) -> None:
        if self._lost is None and self._wanted >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wanted)
                self._lost = "the kernel wants it back (it is being unbound or removed)"
        if self._lost is not None:
            raise DeviceLostError(f"{self.description} went away: {self._lost}.")
        if self._registers is None:
            raise DeviceLostError(f"{self.description} has been closed.")

    def share(self, memory: int) -> Transport:
        if self._registers is None:
            self.check()
        assert self._registers is not None
        region = self.map_memory(memory)
        return _Share(self.description, region, list(self._eventfds), self._registers)

    def close(self) -> None:
        if self._registers is not None:
            self._registers.close()
            self._registers = None
        self._iommu.close()
        for fd in (*self._eventfds, *([self._wanted] if self._wanted >= 0 else [])):
            os.close(fd)
        self._eventfds, self._wanted = [], -1
        for view, mapping in self._maps:
            # Somebody may still hold a slice; the memory then goes when the slice does.
            with contextlib.suppress(BufferError):
                view.release()
                mapping.close()
        self._maps = []


class _Share(SharedTransport):
    """For a process that is forked after this."""

    def __init__(self, description: str, region: DmaRegion, eventfds: list[int], registers: _Registers) -> None:
        super().__init__(description, region, eventfds)
        self._registers: _Registers | None = registers

    def _words(self) -> memoryview:
        if self._registers is None or self._registers.closed:
            raise DeviceLostError(f"{self.description} has been closed.")
        return self._registers.words

    def read32(self, offset: int) -> int:
        return self._words()[offset >> 2]

    def write32(self, offset: int, value: int) -> None:
        self._words()[offset >> 2] = value

    def close(self) -> None:
        self._registers = None
