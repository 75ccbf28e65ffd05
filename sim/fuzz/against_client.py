"""Sessions of the driver with a server whose replies are spoiled.

All replies are in the socket before the driver asks, so that one thread is enough. In most sessions nothing follows
them, which the driver sees as the end of the connection; in some nothing comes at all, and its time runs out.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from acceltcp.host.errors import DeviceError
from acceltcp.host.transport import Transport
from acceltcp.host.vfio_user import VfioUserTransport

from . import FuzzError
from .process import descriptors, quiet_descriptors, resident_bytes
from .replies import VECTORS, Reply, channel, opening, read, spoil

__all__ = ["ClientFuzzer"]

_TIMEOUT = 0.05
_SLOW = 5.0
"""Seconds that a good session may take on a machine with much to do, and that no session may take more than twice."""
_GOOD_EVERY = 100
_GROWTH_MAX = 64 << 20
_READ = 9


@dataclass(frozen=True)
class Step:
    """What is done with the driver, what has to come of it if all is right, and the replies as they should be."""

    act: Callable[[Transport], object]
    wanted: object = None
    replies: tuple[Reply, ...] = ()
    ends: bool = False
    """The end of the connection is seen here at the latest."""

    def justified(self, result: object, came: list[Reply]) -> bool:
        """Whether the driver may take what came for a success with this result."""
        return all(any(self._fits(right, reply, result) for reply in came) for right in self.replies)

    def _fits(self, right: Reply, reply: Reply, result: object) -> bool:
        if (reply.number & 0xFFFF, reply.command, reply.flags) != (right.number, right.command, right.flags):
            return False
        if right.command != _READ:
            return True
        values = [int.from_bytes(reply.payload[at : at + 4], "little") for at in range(16, len(reply.payload), 4)]
        return reply.payload[:16] == right.payload[:16] and result in (values, *values[:1])


class ClientFuzzer:
    """Is a server that means harm. Raises `FuzzError`.

    seed: of all chance.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.sessions = self.messages = self.errors = self.lost = self.good = 0
        self._peers = [os.memfd_create("theirs", os.MFD_CLOEXEC), os.eventfd(0), os.open("/dev/null", os.O_RDONLY)]
        self._peers += [end.detach() for end in socket.socketpair()]
        self._resident = 0
        self._run(random.Random(0), 0)
        self._descriptors = quiet_descriptors(os.getpid(), 0.2)

    def close(self) -> None:
        """Close what was opened."""
        for fd in self._peers:
            os.close(fd)

    def session(self, number: int) -> None:
        """One session."""
        rng = random.Random(f"{self._seed}/{number}")
        try:
            self._run(rng, 0 if number % _GOOD_EVERY == 0 else 1 + int(3 * rng.random() ** 2))
            if left := descriptors(os.getpid()) - self._descriptors:
                gc.collect()  # an error may hold a frame
                left = descriptors(os.getpid()) - self._descriptors
            if left:
                raise FuzzError(f"{left} descriptors are left")
        except FuzzError as error:
            raise FuzzError(f"{error} (seed {self._seed}, session {number}, of the client)") from error
        self.sessions += 1
        if self.sessions == 1000:
            self._resident = resident_bytes(os.getpid())
        elif self.sessions > 1000 and self.sessions % 1000 == 0:
            grown = resident_bytes(os.getpid()) - self._resident
            if grown > _GROWTH_MAX:
                raise FuzzError(f"the process has grown by {grown} bytes")

    def finish(self) -> None:
        """What has to hold after all sessions."""
        self._run(random.Random(0), 0)

    def _run(self, rng: random.Random, faults: int) -> None:
        replies = opening()
        steps = self._steps(rng, replies)
        for _ in range(faults):
            if replies:
                spoil(rng, replies, rng.randrange(len(replies)))
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # nobody reads what the driver says
        with theirs:
            theirs.setblocking(False)
            self._answer(rng, theirs, replies)
            ends = not faults or rng.random() < 0.99
            if ends:
                theirs.shutdown(socket.SHUT_WR)
            self._drive(ours, steps, replies, not faults, _SLOW if not faults else _TIMEOUT)
        self.good += not faults

    def _answer(self, rng: random.Random, link: socket.socket, replies: list[Reply]) -> None:
        for reply in replies:
            data = reply.pack()
            fds = [rng.choice(self._peers) for _ in range(reply.descriptors)]
            if fds and reply.right:
                fds = [self._peers[-1]]  # a socket, as it should be
            self.messages += 1
            try:
                if fds:
                    socket.send_fds(link, [data], fds)
                else:
                    link.sendall(data)
            except BlockingIOError:
                return

    def _steps(self, rng: random.Random, replies: list[Reply]) -> list[Step]:
        """What the driver does; the replies to it are appended."""
        steps: list[Step] = []
        posted = 0

        def add(act: Callable[[Transport], object], wanted: object, *these: Reply) -> None:
            replies.extend(these)
            steps.append(Step(act, wanted, tuple(replace(reply) for reply in these)))

        for _ in range(rng.randrange(12)):
            number = len(replies) + 1 + posted
            kind = rng.randrange(8)
            if kind < 3:
                offset, data = 4 * rng.randrange(16384), rng.randbytes(4)
                add(partial(_read32, offset), int.from_bytes(data, "little"), read(number, offset, 0, data))
            elif kind == 3:
                count = 1 + rng.randrange(20)
                data = rng.randbytes(4 * count)
                values = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
                add(partial(_read_block, 256, count), values, read(number, 256, 0, data))
            elif kind == 4:
                posted += 1
                add(lambda t: t.write32(0x1C, 5), None)
            elif kind == 5:
                add(lambda t: t.reset(), None, Reply(number, 13))
            elif kind == 6:
                add(lambda t: len(t.enable_interrupts(VECTORS)), VECTORS, Reply(number, 8))
            elif rng.random() < 0.5:
                add(lambda t: t.map_memory(100).size, 4096, Reply(number, 2))
            else:
                add(lambda t: t.share(8192).close(), None, Reply(number, 2), channel(number + 1))
        if rng.random() < 0.2:
            steps.append(Step(lambda t: t.check(), ends=True))
        return steps

    def _drive(self, link: socket.socket, steps: list[Step], replies: list[Reply], right: bool, timeout: float) -> None:
        start = time.monotonic()
        transport = None
        try:
            transport = VfioUserTransport("fuzz", timeout=timeout, connect=lambda path, timeout: _timed(link, timeout))
            for step in steps:
                try:
                    result = step.act(transport)
                except DeviceError as error:
                    self._checked(error)
                    if right and not step.ends:
                        raise FuzzError(f"the driver is not content with a good server: {error}") from error
                else:
                    if right and result != step.wanted:
                        raise FuzzError(f"the driver made {result!r} of {step.wanted!r}")
                    if not step.justified(result, replies):
                        wrong = [reply for reply in replies if not reply.right]
                        raise FuzzError(f"the driver made {result!r} of a wrong reply for {step.replies}: {wrong}")
        except DeviceError as error:
            self._checked(error)
            if right:
                raise FuzzError(f"the driver is not content with a good server: {error}") from error
            self.lost += 1
        except (FuzzError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise FuzzError(f"the driver ended in {type(error).__name__}: {error}") from error
        finally:
            if transport is not None:
                transport.close()
            link.close()
        if (taken := time.monotonic() - start) > 2 * _SLOW:
            raise FuzzError(f"the driver took {taken:.1f} s")

    def _checked(self, error: DeviceError) -> None:
        """An error is one sentence or two, on one line."""
        self.errors += 1
        text = str(error)
        if "\n" in text or not text.endswith(".") or len(text) > 500:
            raise FuzzError(f"the driver says {text!r}") from error


def _read32(offset: int, transport: Transport) -> int:
    return transport.read32(offset)


def _read_block(offset: int, count: int, transport: Transport) -> list[int]:
    return transport.read_block(offset, count)


def _timed(link: socket.socket, timeout: float) -> socket.socket:
    link.settimeout(timeout)
    return link
