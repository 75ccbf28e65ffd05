"""Where the server that is tested lives: in this process, or in another one."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sim.server import Device, PciDevice, Server

from .model import Model
from .standin import StandIn
from .things import Things

__all__ = ["Burst", "InProcess", "Outside", "Target"]


Burst = Callable[[int, bool, int], bytes]
"""From a bus address, whether to write, and a pattern: the payload of a REGION_WRITE that starts such an access."""


class Target(Protocol):
    """A server to be tested."""

    path: str
    pid: int
    registers: bool
    """They keep what is written."""
    apart: bool
    """It works in its own time, not when it is told."""
    burst: Burst | None
    """Makes the device access memory."""

    def wait(self, link: socket.socket, events: int) -> None:
        """Let the server work until the connection may have something, for a moment."""

    def settle(self) -> None:
        """Let the server see that connections have ended."""

    def check(self, model: Model, things: Things, at: int) -> str | None:
        """What is wrong with the memory that the device reaches at an address; None: nothing."""

    def close(self) -> None: ...


class InProcess:
    """A server on a device of ours, turned by hand: everything happens in one thread.

    device: a `StandIn` unless given.
    burst: how that device is made to access memory.
    """

    apart = False

    def __init__(self, path: Path, queues: int, device: Device | None = None, burst: Burst | None = None) -> None:
        self.burst = burst
        self.path = str(path)
        self.pid = os.getpid()
        self.device = device or StandIn()
        self.registers = isinstance(self.device, StandIn)
        self.server = Server(path, PciDevice(self.device, queues))

    def wait(self, link: socket.socket, events: int) -> None:
        self.server.handle()

    def settle(self) -> None:
        for _ in range(3):
            self.server.handle()

    def check(self, model: Model, things: Things, at: int) -> str | None:
        if self.device.mappings != len(model.maps):
            return f"the device has {self.device.mappings} mappings, not {len(model.maps)}"
        if not isinstance(self.device, StandIn):
            return None
        found = model.at(at)
        word = b"written!"
        start, mapping = found or (0, None)
        allowed = bool(
            mapping and model.bus_master and mapping.prot & 2 and mapping.thing in things.memory and at + 8 <= start + mapping.size
        )
        if mapping and mapping.thing not in things.memory:
            return None
        if self.device.dma_write(at, word) != allowed:
            return f"a write by the device to {at:#x} was {'refused' if allowed else 'let through'}"
        if allowed and mapping and mapping.thing:
            place = mapping.offset + at - start
            if os.pread(mapping.thing.fd, 8, place) != word:
                return f"a write by the device to {at:#x} is not where it should be"
            os.pwrite(mapping.thing.fd, things.canary[place : place + 8], place)
        return None

    def close(self) -> None:
        self.server.close()


class Outside:
    """A server in another process."""

    registers = False
    apart = True
    burst: Burst | None = None

    def __init__(self, path: str, pid: int) -> None:
        self.path = path
        self.pid = pid

    def wait(self, link: socket.socket, events: int) -> None:
        poll = select.poll()
        poll.register(link, events)
        poll.poll(100)

    def settle(self) -> None:
        pass

    def check(self, model: Model, things: Things, at: int) -> str | None:
        return None

    def close(self) -> None:
        pass
