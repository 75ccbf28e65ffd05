"""What a worker process and the owner of its device tell each other, and the worker's side of it.

They have a socket of whole messages (SEQPACKET) of which the first byte says what it is (`Kind`). Nothing here is on the
packet path: the owner has the NIC's one listen table, and passes on what it hears of neighbours and from ICMP,
which the NIC gives to no worker, as the hash of such a packet says nothing about whom it concerns.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import itertools
import json
import socket
import struct
from collections.abc import Callable
from typing import Any, TypeVar

from acceltcp.abi.messages import COMMAND, Status
from acceltcp.abi.registers import RSS_TABLE_ENTRIES
from acceltcp.abi.toeplitz import Toeplitz

from .errors import DeviceLostError
from .queue import CommandResult
from .tcp.ports import EphemeralPorts

__all__ = ["MESSAGE_BYTES_MAX", "Kind", "Sharing", "pack_answer", "unpack_command"]

MESSAGE_BYTES_MAX = 1 << 17
"""Longest message; readings are the long ones."""

_PORTS_TRIED = 64
"""Ports of ours that may be in use one after another."""

_T = TypeVar("_T")

_ID = struct.Struct("<BI")
_ANSWER = struct.Struct("<BIBI")
_FRAME = struct.Struct("<BB")


class Kind(enum.IntEnum):
    """First byte of a message."""

    READY = 1
    """Worker: its queue runs, and `main` begins."""
    COMMAND = 2
    """Worker: id, a LISTEN command; answered by ANSWER."""
    ANSWER = 3
    """Owner: id, status, value."""
    FRAME = 4
    """Owner: port, a frame that the worker should look at."""
    TABLE = 5
    """Owner: queues of the indirection table."""
    ASK = 6
    """Owner: id; answered by TELL."""
    TELL = 7
    """Worker: id, readings in JSON."""


def pack_answer(number: int, status: int, value: int) -> bytes:
    """An ANSWER."""
    return _ANSWER.pack(Kind.ANSWER, number, status, value)


def unpack_command(message: bytes) -> tuple[int, bytes]:
    """Id and command of a COMMAND. Raises `ValueError` for another size."""
    if len(message) != _ID.size + COMMAND.size:
        raise ValueError(f"a command's message has {_ID.size + COMMAND.size} bytes, not {len(message)}")
    return _ID.unpack_from(message)[1], message[_ID.size :]


class Sharing:
    """The worker's side.

    link: to the owner. index: the worker's queue. key: of the NIC's hash. ports: the first and the last for active opens.
    on_frame: gets frame and port; readings: gives what the owner may ask for; on_end: the owner has gone.
    """

    def __init__(self, link: socket.socket, index: int, key: bytes, ports: tuple[int, int]) -> None:
        link.setblocking(False)
        self._link = link
        self.index = index
        self._hash = Toeplitz(key).flow
        self._table = bytes(RSS_TABLE_ENTRIES)
        self._ports = EphemeralPorts(*ports, lambda *ends: not self.is_ours(*ends))
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[CommandResult]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.on_frame: Callable[[bytes, int], None] = lambda frame, port: None
        self.readings: Callable[[], dict[str, Any]] = dict
        self.on_end: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to listen to the owner, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._link, self._receive)

    def close(self) -> None:
        """Hear no more."""
        if self._loop is not None:
            self._loop.remove_reader(self._link)
            self._loop = None

    def ready(self) -> None:
        """Tell the owner that this worker is at work."""
        self._link.send(bytes([Kind.READY]))

    async def run(self, command: bytes, timeout: float) -> CommandResult:
        """Have the owner carry out a LISTEN command. Raises `TimeoutError`, and `DeviceLostError` when it has gone."""
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._link.send(_ID.pack(Kind.COMMAND, number) + command)
            return await asyncio.wait_for(future, timeout)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise DeviceLostError(f"The process that owns the device has gone: {error.strerror}.") from None
        finally:
            del self._waiting[number]

    def is_ours(self, local: bytes, remote: bytes, remote_port: int, port: int) -> bool:
        """Whether packets from there to this address and port of ours come to this worker."""
        return self._table[self._hash(remote, local, remote_port, port) % RSS_TABLE_ENTRIES] == self.index

    def connect(self, begin: Callable[[int], _T], local: bytes, remote: bytes, remote_port: int, port: int) -> _T:
        """What `begin` returns for a port of ours to which answers come here; `port`, unless it is 0.

        Raises `OSError`: EADDRNOTAVAIL when answers to `port` would come to another process, or when no port is free;
        and what `begin` raises, but EADDRINUSE only if it does so for many ports.
        """
        if port:
            if not self.is_ours(local, remote, remote_port, port):
                raise OSError(errno.EADDRNOTAVAIL, f"what comes from there to port {port} goes to another process")
            return begin(port)
        for left in range(_PORTS_TRIED - 1, -1, -1):
            try:
                return begin(self._ports.choose(local, remote, remote_port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not left:
                    raise
        raise AssertionError

    def _receive(self) -> None:
        while True:
            try:
                message = self._link.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self.close()
                for future in self._waiting.values():
                    if not future.done():
                        future.set_exception(DeviceLostError("The process that owns the device has gone."))
                self.on_end()
                return
            self._message(message)

    def _message(self, message: bytes) -> None:
        kind = message[0]
        if kind == Kind.FRAME:
            self.on_frame(message[_FRAME.size :], message[1])
        elif kind == Kind.ANSWER:
            _, number, status, value = _ANSWER.unpack(message)
            future = self._waiting.get(number)
            if future is not None and not future.done():
                future.set_result(CommandResult(Status(status), value))
        elif kind == Kind.TABLE:
            self._table = message[1:]
        elif kind == Kind.ASK:
            body = json.dumps(self.readings()).encode()
            with contextlib.suppress(OSError):
                self._link.send(_ID.pack(Kind.TELL, _ID.unpack(message)[1]) + body)
