"""One connection of the simulator's server: commands in, replies out, never waiting."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Sequence

from .protocol import FDS_MAX, Message, MessageParser, ProtocolError

__all__ = ["OUT_BYTES_MAX", "EndOfLinkError", "Link"]

OUT_BYTES_MAX = 4 << 20
"""Replies that may wait for a client to take them."""


class EndOfLinkError(Exception):
    """The other side has closed the connection."""


class Link:
    """A non-blocking stream socket that carries vfio-user messages.

    fds_max: most descriptors that a message may bring along, up to `FDS_MAX`.

    `OSError` of the socket comes out of every method that uses it.
    """

    def __init__(self, link: socket.socket, fds_max: int = FDS_MAX) -> None:
        link.setblocking(False)
        self._socket = link
        self._fds_max = fds_max
        self._parser = MessageParser()
        self._out: deque[tuple[bytearray, list[int]]] = deque()
        """What has to be sent, with the descriptors that go along with its first byte."""
        self._waiting = 0

    def watched(self) -> tuple[int, int]:
        """Descriptor and events to watch it for. Who does not take replies gets no commands carried out."""
        return self._socket.fileno(), select.POLLOUT if self._out else select.POLLIN

    def receive(self) -> list[Message] | None:
        """The commands complete with one more step of reading; None when nothing is there.

        Raises `EndOfLinkError`, and `ProtocolError` when the stream makes no sense.
        """
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                self._parser.wanted, socket.CMSG_SPACE(4 * self._fds_max), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if flags & socket.MSG_CTRUNC:  # those that found room are ours already
            for fd in fds:
                os.close(fd)
            raise ProtocolError(f"a message must have at most {self._fds_max} descriptors")
        if not data:
            raise EndOfLinkError
        return self._parser.feed(data, fds)

    def put(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Queue a reply; its descriptors are closed once sent. Raises `ProtocolError` when too much waits."""
        if not data:
            for fd in fds:
                os.close(fd)
            return
        if fds or not self._out or self._out[-1][1]:
            self._out.append((bytearray(data), list(fds)))
        else:
            self._out[-1][0].extend(data)
        self._waiting += len(data)
        if self._waiting > OUT_BYTES_MAX:
            raise ProtocolError(f"the client leaves {self._waiting} bytes of replies unread")

    def flush(self) -> bool:
        """Send what waits; True when nothing is left."""
        while self._out:
            data, fds = self._out[0]
            try:
                sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
            except BlockingIOError:
                return False
            while fds:
                os.close(fds.pop())
            del data[:sent]
            self._waiting -= sent
            if not data:
                self._out.popleft()
        return True

    def close(self) -> None:
        """End the connection."""
        self._socket.close()
        self._parser.discard()
        for _, fds in self._out:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._out.clear()
