"""A connection of the fuzzer: what was sent, what has to come back, and in which order."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence

from . import FuzzError
from .model import Verdict
from .target import Target
from .things import Thing

__all__ = ["HEADER", "Wire"]

HEADER = struct.Struct("=HHIII")
_REPLY, _ERROR, _NO_REPLY = 1, 0x20, 0x10
_PATIENCE = 20.0
"""Seconds after which a reply counts as never coming."""


class Wire:
    """A stream socket to the server; every reply is compared with what was foretold.

    ended: the server has closed it.
    """

    def __init__(self, target: Target, link: socket.socket) -> None:
        link.setblocking(False)
        self._target = target
        self.link = link
        self._expected: deque[tuple[int, int, Verdict]] = deque()
        self._data = bytearray()
        self._fds: list[int] = []
        self.ended = False
        self.last = b""
        """Payload of the last success."""
        self.replies = 0
        self.errors = 0
        self.descriptors: list[int] = []
        """That came with replies; whoever takes them closes them."""

    @classmethod
    def to(cls, target: Target) -> Wire:
        """A new connection."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        link.connect(target.path)
        return cls(target, link)

    def command(
        self, number: int, command: int, payload: bytes, things: Sequence[Thing], verdict: Verdict, *, no_reply: bool = False
    ) -> bytes:
        """The bytes of a command, of which the answer is expected from now on."""
        if not no_reply:
            self._expected.append((number, command, verdict))
        return HEADER.pack(number, command, 16 + len(payload), _NO_REPLY if no_reply else 0, 0) + payload

    def send(self, data: bytes, things: Sequence[Thing] = ()) -> None:
        """Send bytes, and descriptors with the first of them. Taking replies if the server waits for that."""
        fds = array.array("i", [thing.fd for thing in things])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        deadline = 0.0
        while data and not self.ended:
            try:
                sent = self.link.sendmsg([data], ancillary)
                data, ancillary = data[sent:], []
                deadline = 0.0
            except BlockingIOError:
                deadline = deadline or time.monotonic() + _PATIENCE
                if time.monotonic() > deadline:
                    raise FuzzError("the server takes no more bytes") from None
                self._target.wait(self.link, select.POLLOUT | select.POLLIN)
                self.take()
            except (BrokenPipeError, ConnectionResetError):
                self.take(True)

    def shut(self) -> None:
        """Say that no more comes."""
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_WR)

    def take(self, gone: bool = False) -> bool:
        """Compare what has come. False when nothing had."""
        some = False
        while not self.ended:
            try:
                data, ancillary, _, _ = self.link.recvmsg(1 << 17, socket.CMSG_SPACE(4 * 8), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data, ancillary = b"", []
            for _, _, content in ancillary:
                self._fds += array.array("i", content)
            if not data:
                self.ended = True
                break
            some = True
            self._data += data
            self._compare()
        if gone and not self.ended:
            raise FuzzError("the connection takes no bytes, but has not ended")
        return some

    def _compare(self) -> None:
        while len(self._data) >= 16:
            number, command, size, flags, error = HEADER.unpack_from(self._data)
            if not 16 <= size <= 1 << 20:
                raise FuzzError(f"a reply says it has {size} bytes")
            if len(self._data) < size:
                return
            if not self._expected:
                raise FuzzError(f"a reply to nothing: message {number}, command {command}, flags {flags:#x}")
            wanted, wanted_command, verdict = self._expected.popleft()
            if (number, command) != (wanted, wanted_command):
                raise FuzzError(f"a reply to {number} ({command}), where {wanted} ({wanted_command}) was next")
            self._judge(verdict, command, flags, error, bytes(self._data[16:size]))
            del self._data[:size]
            self.replies += 1

    def _judge(self, verdict: Verdict, command: int, flags: int, error: int, payload: bytes) -> None:
        if verdict.error:
            self.errors += 1
            if flags != _REPLY | _ERROR or payload or error not in verdict.error:
                raise FuzzError(
                    f"command {command} had to fail with one of {sorted(verdict.error)[:4]}: flags {flags:#x}, errno {error}"
                )
            return
        if flags != _REPLY or error:
            raise FuzzError(f"command {command} had to succeed: flags {flags:#x}, errno {error} ({os.strerror(error)})")
        self.last = payload
        if verdict.payload is not None and payload != verdict.payload:
            raise FuzzError(f"command {command} was answered with {payload.hex()}, not {verdict.payload.hex()}")
        if verdict.payload is None and len(payload) != verdict.size >= 0:
            raise FuzzError(f"command {command} was answered with {len(payload)} bytes, not {verdict.size}")
        if verdict.descriptors:
            if len(self._fds) < verdict.descriptors:
                raise FuzzError(f"command {command} was answered without a descriptor")
            self.descriptors += self._fds[: verdict.descriptors]
            del self._fds[: verdict.descriptors]

    def finish(self, end: bool) -> None:
        """Wait for every reply that is expected, and then for the end if it has to come."""
        deadline = time.monotonic() + _PATIENCE
        while not self.ended and (self._expected or end):
            if not self.take():
                if time.monotonic() > deadline:
                    raise FuzzError("the connection does not end" if not self._expected else f"no reply to {self._expected[0]}")
                self._target.wait(self.link, select.POLLIN)
        if self._expected:
            raise FuzzError(f"the connection has ended before the reply to {self._expected[0]}")
        if self._data or self._fds:
            raise FuzzError(f"{len(self._data)} bytes and {len(self._fds)} descriptors too many came")

    def close(self) -> None:
        """End the connection from this side."""
        self.link.close()
        for fd in (*self._fds, *self.descriptors):
            os.close(fd)
        self._fds.clear()
        self.descriptors.clear()
