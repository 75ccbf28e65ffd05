"""A stand-in for the core that can be asked millions of times: registers that keep what is written, and memory."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat

__all__ = ["StandIn"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value
_MASKS = [sum(0xFF << 8 * lane for lane in range(4) if strobe >> lane & 1) for strobe in range(16)]


def _refuse(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class StandIn:
    """What `sim.server.Device` asks for, in plain Python; mappings are made without a descriptor being kept."""

    def __init__(self) -> None:
        self.registers: dict[int, int] = {}
        self.regions: dict[int, tuple[int, int, int]] = {}
        """Bus address -> size, protection, address in this process (0: no memory)."""
        self.bus_master = False

    def read(self, address: int) -> int:
        return self.registers.get(address, 0)

    def write(self, address: int, value: int, strobe: int = 15) -> None:
        if address % 4 or not 0 <= address < 0x10000 or not 0 <= value < 1 << 32 or not 0 <= strobe < 16:
            raise AssertionError(f"no write of {value:#x} at {address:#x} with strobe {strobe}")
        mask = _MASKS[strobe]
        self.registers[address] = self.registers.get(address, 0) & ~mask | value & mask

    def map_file(self, iova: int, size: int, fd: int, offset: int, prot: int) -> None:
        if not size or iova + size > 1 << 64:
            raise _refuse(errno.EINVAL)
        if any(iova < at + length and at < iova + size for at, (length, _, _) in self.regions.items()):
            raise _refuse(errno.EEXIST)
        where = 0
        if fd >= 0:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and offset + size > status.st_size:
                raise _refuse(errno.EINVAL)
            how = mmap.PROT_READ | (mmap.PROT_WRITE if prot & 2 else 0)
            where = _libc.mmap(None, size, how, mmap.MAP_SHARED, fd, offset)
            if where == _FAILED:
                raise _refuse(ctypes.get_errno())
        self.regions[iova] = (size, prot, where)

    def unmap(self, iova: int, size: int) -> int:
        end = iova + size
        inside = [at for at, (length, _, _) in self.regions.items() if iova <= at and at + length <= end]
        met = [at for at, (length, _, _) in self.regions.items() if at < end and iova < at + length]
        if not size or end > 1 << 64 or inside != met:
            raise _refuse(errno.EINVAL)
        total = 0
        for at in inside:
            region = self.regions.pop(at)
            total += region[0]
            self._release(*region)
        return total

    def unmap_all(self) -> None:
        for region in self.regions.values():
            self._release(*region)
        self.regions.clear()

    @staticmethod
    def _release(size: int, prot: int, where: int) -> None:
        if where:
            _libc.munmap(where, size)

    def set_bus_master(self, on: bool) -> None:
        self.bus_master = on

    def reset(self) -> None:
        self.registers.clear()

    @property
    def mappings(self) -> int:
        return len(self.regions)

    @property
    def mapped_bytes(self) -> int:
        return sum(size for size, _, where in self.regions.values() if where)

    def dma_write(self, address: int, data: bytes) -> bool:
        """Write to memory as the core would; False if the bus refuses."""
        for at, (size, prot, where) in self.regions.items():
            if at <= address and address + len(data) <= at + size:
                if self.bus_master and prot & 2 and where:
                    ctypes.memmove(where + address - at, data, len(data))
                    return True
        return False
