"""vfio-user messages out of a byte stream.

`MessageParser` knows nothing of sockets: bytes and descriptor numbers in, whole commands out.
Whatever the bytes are, it either returns commands or raises `ProtocolError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from acceltcp.abi.vfio_user import HEADER_BYTES, Header, HeaderFlag

__all__ = ["FDS_MAX", "MESSAGE_BYTES_MAX", "Message", "MessageParser", "ProtocolError"]

MESSAGE_BYTES_MAX = 1 << 16
"""Longest message that is taken; one access has far less, many writes in one message (QEMU: up to 200) fit."""

FDS_MAX = 16
"""Most descriptors in one message; QEMU turns away a server that says more."""


class ProtocolError(ValueError):
    """The stream makes no sense any more: the connection has to be closed."""


@dataclass
class Message:
    """A whole command. Whoever handles it takes descriptors out of `fds` or closes them."""

    header: Header
    payload: bytes
    fds: list[int] = field(default_factory=list)

    @property
    def no_reply(self) -> bool:
        return bool(self.header.flags & HeaderFlag.NO_REPLY)


class MessageParser:
    """Cuts a stream into commands.

    Descriptors arrive with the first byte of the message that they belong to, so who reads
    from a socket should ask for no more than `wanted` bytes at a time: then none can be
    counted to the message before.

    close: called for each descriptor that is thrown away.
    """

    def __init__(self, close: Callable[[int], None] = os.close) -> None:
        self._close = close
        self._buffer = bytearray()
        self._header: Header | None = None
        self._fds: list[int] = []

    @property
    def wanted(self) -> int:
        """Bytes that are missing until the next step."""
        return (self._header.size if self._header else HEADER_BYTES) - len(self._buffer)

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> list[Message]:
        """The commands that are complete with these bytes. Raises `ProtocolError`."""
        self._fds += fds
        if len(self._fds) > FDS_MAX:
            raise ProtocolError(f"a message must have at most {FDS_MAX} descriptors, not {len(self._fds)}")
        self._buffer += data
        messages: list[Message] = []
        while True:
            if self._header is None:
                if len(self._buffer) < HEADER_BYTES:
                    return messages
                try:
                    self._header = self._checked(Header.unpack(self._buffer))
                except ProtocolError:
                    for message in messages:  # nobody will get these
                        for fd in message.fds:
                            self._close(fd)
                    raise
            size = self._header.size
            if len(self._buffer) < size:
                return messages
            messages.append(Message(self._header, bytes(self._buffer[HEADER_BYTES:size]), self._fds))
            del self._buffer[:size]
            self._header, self._fds = None, []

    @staticmethod
    def _checked(header: Header) -> Header:
        if not HEADER_BYTES <= header.size <= MESSAGE_BYTES_MAX:
            raise ProtocolError(
                f"a message must have {HEADER_BYTES} to {MESSAGE_BYTES_MAX} bytes, not {header.size}"
            )
        if header.flags & HeaderFlag.TYPE_MASK != HeaderFlag.COMMAND:
            raise ProtocolError(f"a message must be a command, not of flags {header.flags:#x}")
        if header.flags not in (HeaderFlag.COMMAND, HeaderFlag.NO_REPLY):
            raise ProtocolError(
                f"a command's flags must be 0 or {HeaderFlag.NO_REPLY:#x}, not {header.flags:#x}"
            )
        return header

    def discard(self) -> None:
        """Throw away what has not become a command."""
        self._buffer.clear()
        self._header = None
        while self._fds:
            self._close(self._fds.pop())
