"""System calls that VFIO takes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
from typing import TypeVar

from acceltcp.abi.layout import Layout
from acceltcp.abi.vfio import Ioctl

from ..dma import align_up
from ..errors import DeviceError

__all__ = ["HUGE_PAGE", "call", "call_bytes", "memory", "open_device", "refusal"]

HUGE_PAGE = 2 << 20

_MAP_HUGETLB = 0x40000
_MAP_HUGE_2MB = 21 << 26

_L = TypeVar("_L", bound=Layout)


def call(fd: int, request: Ioctl, argument: _L) -> _L:
    """An ioctl with a layout that the kernel may fill in. Raises `OSError`."""
    answer = bytearray(argument.pack())
    fcntl.ioctl(fd, request, answer)
    return type(argument).unpack(answer)


def call_bytes(fd: int, request: Ioctl, argument: bytes) -> bytes:
    """As `call`, for what is no single layout."""
    answer = bytearray(argument)
    fcntl.ioctl(fd, request, answer)
    return bytes(answer)


def open_device(path: str, name: str) -> int:
    """Open one of VFIO's files for the device called `name`. Raises `DeviceError`."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise DeviceError(f"You may not use {path}, which {name} needs: 'sudo acceltcp bind BDF --owner $USER' makes it yours.") from None
    except FileNotFoundError:
        raise DeviceError(f"{path}, which {name} needs, is not there: is the module vfio-pci loaded? 'acceltcp bind' does it.") from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise DeviceError(f"{name} is in use: another program has {path} open.") from None
        raise DeviceError(f"{path}, which {name} needs, cannot be opened: {error.strerror}.") from None


def memory(size: int) -> tuple[mmap.mmap, int]:
    """Zeroed memory that stays the same after a fork, of huge pages if `size` fills some and the system has them, and its address."""
    mapping = None
    if size == align_up(size, HUGE_PAGE):
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_HUGETLB | _MAP_HUGE_2MB
        try:
            mapping = mmap.mmap(-1, size, flags=flags)
        except OSError:  # none are reserved, or too few
            mapping = None
    if mapping is None:
        try:
            mapping = mmap.mmap(-1, size)
        except OSError as error:
            raise DeviceError(f"There are no {size} bytes of memory for the device: {error.strerror}.") from None
    return mapping, ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def refusal(error: OSError, size: int, name: str) -> DeviceError:
    """Why the kernel does not map `size` bytes for the device called `name`."""
    if error.errno != errno.ENOMEM:
        return DeviceError(f"{size:,} bytes could not be mapped for {name}: {error.strerror}.")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY:
        return DeviceError(f"{size:,} bytes could not be mapped for {name}: the kernel has no memory to lock for it.")
    return DeviceError(
        f"{size:,} more bytes cannot be locked in memory for {name}: the limit is {limit:,} bytes. "
        "Raise it: 'ulimit -l', 'memlock' in /etc/security/limits.conf, or LimitMEMLOCK= of a systemd unit."
    )
