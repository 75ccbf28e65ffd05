"""A session without fault, in which everything has to work: what the next client may expect after any other."""

from __future__ import annotations

import os
import select
import struct

from acceltcp.abi.registers import IDENT

from . import FuzzError
from .model import Verdict
from .target import Target
from .things import PAGE, Thing
from .wire import Wire

__all__ = ["good_session"]

_SCRATCH = IDENT.base + IDENT.by_name["scratch"].offset
_DONE = Verdict(payload=b"")


def good_session(target: Target) -> int:
    """Negotiate, look around, use registers, memory and interrupts. The number of vectors. Raises `FuzzError`."""
    wire = Wire.to(target)
    memory = os.memfd_create("good", os.MFD_CLOEXEC)
    eventfds: list[Thing] = []
    try:
        os.ftruncate(memory, 4 * PAGE)
        vectors = _vectors(wire, target)
        eventfds += [Thing(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), eventfd=True) for _ in range(vectors)]
        _ask(wire, 4, struct.pack("=IIII", 16, 0, 0, 0), Verdict(struct.pack("=IIII", 16, 3, 9, 5)))
        command = struct.pack("=QII", 4, 7, 2)
        _ask(wire, 10, command + struct.pack("=H", 6), Verdict(command))
        scratch = struct.pack("=QII", _SCRATCH, 0, 4)
        for value in (0x11223344, 0xFFFFFFFF, 0):
            data = struct.pack("=I", value)
            _ask(wire, 10, scratch + data, Verdict(scratch))
            _ask(wire, 9, scratch, Verdict(scratch + data))
        _ask(wire, 2, struct.pack("=IIQQQ", 32, 3, PAGE, 1 << 32, 2 * PAGE), _DONE, [Thing(memory, 4 * PAGE)])
        _ask(wire, 8, struct.pack("=IIIII", 20, 4 | 32, 2, 0, vectors), _DONE, eventfds)
        _ask(wire, 8, struct.pack("=IIIII", 20, 1 | 32, 2, 0, vectors), _DONE)
        _ask(wire, 3, request := struct.pack("=IIQQ", 24, 0, 1 << 32, 2 * PAGE), Verdict(request))
        _ask(wire, 13, b"", _DONE)
        wire.finish(False)
        for vector, thing in enumerate(eventfds):
            if not select.select([thing.fd], [], [], 5.0)[0] or os.eventfd_read(thing.fd) != 1:
                raise FuzzError(f"a good session did not get interrupt {vector} once")
    except FuzzError as error:
        raise FuzzError(f"in a good session: {error}") from error
    finally:
        wire.close()
        for fd in (memory, *(thing.fd for thing in eventfds)):
            os.close(fd)
        target.settle()
    return vectors


def _ask(wire: Wire, command: int, payload: bytes, verdict: Verdict, things: list[Thing] | None = None) -> None:
    wire.send(wire.command(command, command, payload, things or [], verdict), things or [])


def _vectors(wire: Wire, target: Target) -> int:
    """Negotiate, and ask how many vectors there are."""
    wire.send(wire.command(1, 1, struct.pack("=HH", 0, 1), [], Verdict(size=-1)))
    _ask(wire, 7, struct.pack("=IIII", 16, 0, 2, 0), Verdict(size=16))
    wire.finish(False)
    return int(struct.unpack_from("=I", wire.last, 12)[0])
