"""Descriptors to send along: memory that can be mapped and all that cannot."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

__all__ = ["NAME", "PAGE", "Thing", "Things"]

NAME = "fuzz-"
"""How the names of our memory files begin."""

PAGE = 4096
_PAGES = 16
_HUGE = 1 << 45


@dataclass(frozen=True)
class Thing:
    """A descriptor; `bytes` of memory behind it, -1: none that could be mapped."""

    fd: int
    bytes: int = -1
    writable: bool = True
    eventfd: bool = False


class Things:
    """One of each kind. `memory` holds canaries: bytes that depend on their place."""

    def __init__(self) -> None:
        self.canary = b"".join((i * 0x9E3779B1 & 0xFFFFFFFF).to_bytes(4, "little") for i in range(_PAGES * PAGE // 4))
        self.memory = [self._memory("canary", _PAGES * PAGE) for _ in range(4)]
        for thing in self.memory:
            os.pwrite(thing.fd, self.canary, 0)
        read_only = os.open(f"/proc/self/fd/{self.memory[0].fd}", os.O_RDONLY | os.O_CLOEXEC)
        self.eventfds = [Thing(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), eventfd=True) for _ in range(3)]
        pair = socket.socketpair()
        pipe = os.pipe()
        fds = [*pipe, *(end.detach() for end in pair), os.open("/dev/null", os.O_RDWR), os.open("/", os.O_RDONLY)]
        self.others = [Thing(fd) for fd in fds]
        self.short = self._memory("short", PAGE + 100)
        self.huge = self._memory("huge", _HUGE)
        self.read_only = Thing(read_only, _PAGES * PAGE, writable=False)
        self.all = [*self.memory, self.read_only, self.short, self.huge, *self.eventfds, *self.others]

    @staticmethod
    def _memory(name: str, size: int) -> Thing:
        fd = os.memfd_create(NAME + name, os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        return Thing(fd, size)

    def close(self) -> None:
        """Close them all."""
        for thing in self.all:
            os.close(thing.fd)
