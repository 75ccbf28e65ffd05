"""Signalling an eventfd that somebody else may fill up at any moment.

A write to a full eventfd waits until it is read, unless it is non-blocking, which its owner decides and can change
between a look at it and the write. So the kernel signals it itself, as it does for its own events: an empty
asynchronous read (`io_submit(2)`) that names it with `IOCB_FLAG_RESFD` never waits. Where that is not to be had, a write
after a look remains.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import select
import stat

__all__ = ["is_eventfd", "signal_eventfd"]

_SYSCALLS = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}
"""io_setup, io_getevents and io_submit."""

_PREAD, _RESFD = 0, 1
_EVENTS = 64
_EVENT_BYTES = 32


def is_eventfd(fd: int) -> bool:
    """Whether the descriptor is an eventfd."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:
        return not stat.S_ISREG(os.fstat(fd).st_mode)  # no /proc: believe anything that is no file


class _Iocb(ctypes.Structure):
    """`struct iocb` of <linux/aio_abi.h>, where `aio_key` and `aio_rw_flags` are both 0."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("key_and_rw_flags", ctypes.c_uint64),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    ]


class _Kernel:
    """One context of asynchronous requests. Raises `OSError` where there are none."""

    def __init__(self) -> None:
        numbers = _SYSCALLS.get(platform.machine())
        if numbers is None:
            raise OSError("no numbers of system calls for this machine")
        self._setup, self._getevents, self._submit = map(ctypes.c_long, numbers)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._pid = os.getpid()
        self._context = ctypes.c_ulong(0)
        self._events = ctypes.create_string_buffer(_EVENTS * _EVENT_BYTES)
        self._call(self._setup, ctypes.c_uint(_EVENTS), ctypes.byref(self._context))
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _call(self, *arguments: object) -> int:
        result = int(self._syscall(*arguments))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def signal(self, eventfd: int) -> None:
        """Add 1 to the eventfd, or leave it as full as it is."""
        if os.getpid() != self._pid:
            raise OSError("the context belongs to the process that made it")
        request = _Iocb(opcode=_PREAD, fd=self._null, flags=_RESFD, resfd=eventfd)
        list_of_one = (ctypes.POINTER(_Iocb) * 1)(ctypes.pointer(request))
        self._call(self._submit, self._context, ctypes.c_long(1), list_of_one)
        # Nobody needs the answers, but they take the context's room.
        self._call(self._getevents, self._context, ctypes.c_long(0), ctypes.c_long(_EVENTS), self._events, None)


_kernel: _Kernel | None = None
_without_kernel = False


def signal_eventfd(eventfd: int) -> None:
    """Add 1 to an eventfd. Never waits; one that is full is signalled already."""
    global _kernel, _without_kernel
    if _kernel is None and not _without_kernel:
        try:
            _kernel = _Kernel()
        except OSError:
            _without_kernel = True
    if _kernel is not None:
        with contextlib.suppress(OSError):
            _kernel.signal(eventfd)
            return
    poll = select.poll()
    poll.register(eventfd, select.POLLOUT)
    if poll.poll(0):
        with contextlib.suppress(BlockingIOError):
            os.write(eventfd, b"\1\0\0\0\0\0\0\0")
