"""What a process has of a device that another process has opened and shared with it."""

from __future__ import annotations

import mmap

from .dma import DmaRegion, align_up
from .errors import DeviceError
from .transport import Transport

__all__ = ["SharedTransport"]


class SharedTransport(Transport):
    """Base of what `Transport.share` gives: a piece of memory, and interrupts that somebody else has enabled. Registers are left to
    the transport."""

    def __init__(self, description: str, region: DmaRegion, eventfds: list[int]) -> None:
        self.description = description
        self._region = region
        self._used = 0
        self._eventfds = eventfds

    def map_memory(self, size: int) -> DmaRegion:
        size = align_up(size, mmap.PAGESIZE)
        start, end = self._used, self._used + size
        if end > self._region.size:
            raise DeviceError(
                f"{self.description}: this process has {self._region.size} bytes of memory for the device, "
                f"{self._region.size - start} of them free, which are too few for {size}."
            )
        self._used = end
        return DmaRegion(self._region.view[start:end], self._region.address + start, size)

    def enable_interrupts(self, count: int) -> list[int]:
        if not 1 <= count <= len(self._eventfds):
            raise DeviceError(f"{self.description} has {len(self._eventfds)} interrupts enabled, not {count}.")
        return self._eventfds[:count]

    def reset(self) -> None:
        raise DeviceError(f"{self.description} is shared: only who opened it can reset it.")

    def share(self, memory: int) -> Transport:
        raise DeviceError(f"{self.description} is shared: only who opened it can share it.")
