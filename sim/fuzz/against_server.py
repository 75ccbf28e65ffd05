"""Sessions with the server: each is one connection, from its version to an end that may come anywhere.

Every session is drawn from the seed and its own number, so that one can be seen again without those before it.
"""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable

from . import FuzzError
from .good import good_session
from .model import Model, Verdict
from .process import descriptors, mapped_bytes, quiet_descriptors, resident_bytes
from .requests import VERSIONS_BAD, VERSIONS_GOOD, Requests
from .target import Target
from .things import NAME, Thing, Things
from .wire import HEADER, Wire

__all__ = ["ServerFuzzer"]

_VERSION = 1
_FDS_MAX = 16
_MESSAGE_MAX = 1 << 16
_GOOD_EVERY = 250
_GROWTH_MAX = 64 << 20
_PATIENCE = 20.0
_QUIET_SECONDS = 0.2


class ServerFuzzer:
    """Sends sessions to a server and watches what becomes of them. Raises `FuzzError`.

    target: the server.
    seed: of all chance.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self._target = target
        self._seed = seed
        self._things = Things()
        self.sessions = self.messages = self.replies = self.errors = self.good = 0
        self.ends: dict[str, int] = {}
        self._descriptors = quiet_descriptors(target.pid, _QUIET_SECONDS)
        self._good()
        self._descriptors = quiet_descriptors(target.pid, _QUIET_SECONDS)  # the first interrupt has left some
        self._resident = 0
        self._endings: list[tuple[str, Callable[[Wire], None]]] = [
            ("clean", self._clean), ("clean", self._clean), ("clean", self._clean), ("shut", self._shut), ("cut", self._cut),
            ("abrupt", lambda wire: None), ("bad header", self._bad_header), ("flood", self._flood),
        ]  # fmt: skip

    def close(self) -> None:
        """Close what was opened; the server stays."""
        self._things.close()

    def session(self, number: int) -> None:
        """One session."""
        self._rng = rng = random.Random(f"{self._seed}/{number}")
        self._random = rng.random
        wire = Wire.to(self._target)
        try:
            self._run(wire)
            self._leave(wire)
            self._nothing_left()
            self._restore()
            if number % _GOOD_EVERY == 0:
                self._good()
                self._nothing_left()
        except FuzzError as error:
            raise FuzzError(f"{error} (seed {self._seed}, session {number})") from error
        except Exception as error:
            what = f"the server ended in {type(error).__name__}: {error}"
            raise FuzzError(f"{what} (seed {self._seed}, session {number})") from error
        finally:
            wire.close()
        self.sessions += 1
        self.replies += wire.replies
        self.errors += wire.errors

    def _leave(self, wire: Wire) -> None:
        """The client goes; its channels have to end with it."""
        channels = [Wire(self._target, socket.socket(fileno=fd)) for fd in wire.descriptors]
        wire.descriptors.clear()
        wire.close()
        try:
            self._target.settle()
            for channel in channels:
                channel.finish(True)
        finally:
            for channel in channels:
                channel.close()

    def finish(self) -> None:
        """What has to hold after all sessions."""
        self._good()
        self._nothing_left()

    def _good(self) -> None:
        self._vectors = good_session(self._target)
        self.good += 1

    def _nothing_left(self) -> None:
        """The server is as it was before the session."""
        pid = self._target.pid
        deadline = time.monotonic() + _PATIENCE
        while (left := descriptors(pid) - self._descriptors) and time.monotonic() < deadline:
            self._target.settle()
            time.sleep(0.001)
        if left:
            raise FuzzError(f"{left} descriptors are left")
        if self._target.apart or self._random() < 0.25:
            while (mapped := mapped_bytes(pid, NAME)) and self._target.apart and time.monotonic() < deadline:
                time.sleep(0.001)
            if mapped:
                raise FuzzError(f"{mapped} bytes of a client that has gone are still mapped")
        if self.sessions == 1000:
            self._resident = resident_bytes(pid)
        elif self.sessions > 1000 and self.sessions % 1000 == 0:
            grown = resident_bytes(pid) - self._resident
            if grown > _GROWTH_MAX:
                raise FuzzError(f"the process has grown by {grown} bytes")

    def _count(self, end: str) -> None:
        self.ends[end] = self.ends.get(end, 0) + 1

    def _run(self, wire: Wire) -> None:
        self._memory = [self._things.canary for _ in self._things.memory]
        self._written = [bytearray(len(self._things.canary)) for _ in self._things.memory]
        self._model = Model(self._vectors, self._target.registers, False)
        if self._random() < 0.06:
            self._count("no version")
            self.messages += 1
            wire.send(self._no_version(wire))
            wire.finish(True)
            return
        payload, channels = self._pick(VERSIONS_GOOD)
        quiet = self._random() < 0.05
        wire.send(wire.command(self._number(), _VERSION, payload, [], Verdict(size=-1), no_reply=quiet))
        self.messages += 1
        self._model.channels_allowed = channels
        self._requests = Requests(self._rng, self._model, self._things, self._target.burst)
        if self._target.burst:
            self._send_quick(wire, 10, struct.pack("=QIIH", 4, 7, 2, 6), [])  # bus master
        self._commands(wire)
        name, end = self._pick(self._endings)
        self._count(name)
        end(wire)

    def _pick(self, values):  # type: ignore[no-untyped-def]
        return values[int(self._random() * len(values))]

    def _number(self) -> int:
        return int(self._random() * 65536)

    # What is said before a version

    def _no_version(self, wire: Wire) -> bytes:
        if self._random() < 0.3:
            return self._wrong_header()
        command, payload = _VERSION, self._pick(VERSIONS_BAD)
        if self._random() < 0.4:
            command, payload = 2 + int(self._random() * 20), self._rng.randbytes(int(self._random() * 40))
        return HEADER.pack(self._number(), command, 16 + len(payload), self._pick([0, 0x10]), 0) + payload

    # Commands

    def _commands(self, wire: Wire) -> None:
        style = self._pick(["each", "each", "packed", "dribbled"])
        packed = b""
        for count in range(1, 1 + int(80 * self._random())):
            data, things = self._command(wire)
            if style == "packed" and not things:
                packed += data
            else:
                wire.send(packed)
                packed = b""
                self._deliver(wire, data, things, style)
            if count % 24 == 0:
                wire.send(packed)
                packed = b""
                self._look(wire)
        wire.send(packed)

    def _command(self, wire: Wire) -> tuple[bytes, list[Thing]]:
        command, payload, things = self._requests.draw()
        self.messages += 1
        quiet = self._random() < 0.15
        if quiet and command == 6:  # a channel that nobody gets ends by itself, at a time of its own
            quiet = False
        verdict = self._model.judge(command, payload, things)
        if command == 2 and not verdict.error:
            self._reachable(payload, things)
        return wire.command(self._number(), command, payload, things, verdict, no_reply=quiet), things

    def _send_quick(self, wire: Wire, command: int, payload: bytes, things: list[Thing]) -> None:
        """A command that is right, on its own."""
        self.messages += 1
        wire.send(wire.command(self._number(), command, payload, things, self._model.judge(command, payload, things)), things)

    def _reachable(self, payload: bytes, things: list[Thing]) -> None:
        """Where the device may write from now on, bytes do not have to stay."""
        _, flags, offset, _, size = struct.unpack("=IIQQQ", payload)
        if flags & 2 and things and things[0] in self._things.memory:
            self._written[self._things.memory.index(things[0])][offset : offset + size] = b"\1" * size

    def _cut_short(self, wire: Wire) -> None:
        """A file loses its memory while the device uses it."""
        place = int(self._random() * len(self._things.memory))
        thing = self._things.memory[place]
        os.ftruncate(thing.fd, 0)
        for _ in range(8):
            self._send_quick(wire, *self._requests.access(thing))
            self._send_quick(wire, 9, struct.pack("=QII", 0, 0, 128), [])  # reads take the core through it
        wire.finish(False)
        os.ftruncate(thing.fd, thing.bytes)
        os.pwrite(thing.fd, self._memory[place], 0)

    def _deliver(self, wire: Wire, data: bytes, things: list[Thing], style: str) -> None:
        if style != "dribbled" or self._random() < 0.5:
            wire.send(data, things)
            return
        at = 0
        when = int(self._random() * 3)  # the piece that the descriptors come with
        for piece in range(4):
            step = 1 + int(self._random() * 20) if piece < 3 else len(data)
            part = data[at : at + step]
            last = at + step >= len(data)
            mine = things if piece == when or (last and things) else []
            wire.send(part, mine)
            if mine:
                things = []
            at += step
            if last:
                return
            self._target.wait(wire.link, select.POLLOUT)

    def _look(self, wire: Wire) -> None:
        """In the middle of a session: all replies are there, memory is as foretold, others are kept out."""
        self._send_quick(wire, 4, struct.pack("=IIII", 16, 0, 0, 0), [])  # its reply comes after all that was posted before
        wire.finish(False)
        wrong = self._target.check(self._model, self._things, self._place())
        if wrong:
            raise FuzzError(wrong)
        self._canaries()
        chance = self._random()
        if self._target.burst and chance > 0.9:
            self._cut_short(wire)
        if chance < 0.1:
            self._intruder(wire)
        while wire.descriptors:
            self._channel(wire.descriptors.pop())

    def _place(self) -> int:
        if self._model.maps and self._random() < 0.8:
            start = self._pick(list(self._model.maps))
            return int(start + 8 * int(self._random() * (self._model.maps[start].size // 8)))
        return int(self._random() * (1 << 20)) & ~7

    def _intruder(self, wire: Wire) -> None:
        """Another client is turned away at once."""
        other = Wire.to(self._target)
        other.send(HEADER.pack(1, _VERSION, 20, 0, 0) + struct.pack("=HH", 0, 1))
        other.finish(True)
        other.close()

    def _channel(self, fd: int) -> None:
        """Accesses over a channel, and an end of it that has to be its own end alone."""
        channel = Wire(self._target, socket.socket(fileno=fd))
        try:
            for _ in range(int(self._random() * 6)):
                offset = int(self._random() * 66000)
                region = self._pick([0, 0, 0, 2, 7, 9])
                payload = struct.pack("=QII", offset, region, 4)
                command = self._pick([9, 10])
                payload += b"" if command == 9 else self._rng.randbytes(4)
                if region:
                    verdict = Verdict(error=frozenset([errno.EACCES]))
                else:
                    verdict = self._model.judge(command, payload, [])
                self.messages += 1
                channel.send(channel.command(self._number(), command, payload, [], verdict))
            channel.finish(False)
            how = self._random()
            if how < 0.7:
                if how < 0.25:
                    channel.send(HEADER.pack(1, self._pick([1, 2, 4, 8, 13, 15, 77]), 16, 0, 0))
                elif how < 0.5:
                    channel.send(self._wrong_header())
                else:
                    channel.send(HEADER.pack(1, 9, 32, 0, 0), [self._pick(self._things.all)])
                channel.finish(True)
        finally:
            channel.close()
        self._target.settle()
        self._model.channels -= 1
        if self._target.apart:
            time.sleep(0.002)  # the server sees the channel's end in its own time

    # Ends

    def _clean(self, wire: Wire) -> None:
        self._look(wire)
        mapped = mapped_bytes(self._target.pid, NAME)
        if mapped != self._model.mapped_bytes:
            raise FuzzError(f"{mapped} bytes are mapped, not {self._model.mapped_bytes}")

    def _shut(self, wire: Wire) -> None:
        wire.shut()
        wire.finish(True)

    def _cut(self, wire: Wire) -> None:
        """The connection ends within a command, after every byte there is."""
        data, things = self._command(wire)
        wire.send(data[: int(self._random() * len(data))], things)
        self._target.settle()

    def _wrong_header(self) -> bytes:
        size, flags = 16, 0
        if self._random() < 0.5:
            size = self._pick([0, 1, 15, _MESSAGE_MAX + 1, 1 << 31, (1 << 32) - 1])
        else:
            flags = self._pick([1, 2, 3, 15, 0x20, 0x21, 0x31, 0x30, 0x40, 0x80000000, 0xFFFFFFFF])
        return HEADER.pack(self._number(), self._pick([1, 4, 9]), size, flags, 0) + self._rng.randbytes(int(self._random() * 20))

    def _bad_header(self, wire: Wire) -> None:
        wire.send(self._wrong_header())
        wire.finish(True)

    def _flood(self, wire: Wire) -> None:
        """More descriptors than a message may have, at once or one after the other."""
        data = HEADER.pack(1, self._pick([2, 4, 8, 13]), 16, 0, 0)
        things = [self._pick(self._things.all) for _ in range(_FDS_MAX + 1 + int(self._random() * 100))]
        if self._random() < 0.5:
            wire.send(data, things)
        else:
            for at in range(0, len(things), 10):
                wire.send(data[at // 10 : at // 10 + 1], things[at : at + 10])
        wire.finish(True)

    def _restore(self) -> None:
        """Look for the last time, once the server has done what it was told, and put the canaries back."""
        self._canaries()
        for place, thing in enumerate(self._things.memory):
            if self._memory[place] is not self._things.canary:
                os.pwrite(thing.fd, self._things.canary, 0)

    def _canaries(self) -> None:
        """Memory has changed since the last look only where the device might have written in that time."""
        for place, thing in enumerate(self._things.memory):
            found, written = os.pread(thing.fd, thing.bytes, 0), self._written[place]
            if found != self._memory[place]:
                for at, (is_, was, may) in enumerate(zip(found, self._memory[place], written, strict=True)):
                    if is_ != was and not may:
                        raise FuzzError(f"byte {at} of memory that the device may not write has changed")
                self._memory[place] = found
            written[:] = bytes(len(written))
        for mapping in self._model.maps.values():
            if mapping.prot & 2 and mapping.thing in self._things.memory:
                written = self._written[self._things.memory.index(mapping.thing)]
                written[mapping.offset : mapping.offset + mapping.size] = b"\1" * mapping.size
