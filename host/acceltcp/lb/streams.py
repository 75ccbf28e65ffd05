"""What the proxy reads and writes: a NIC's connections, or sockets of the kernel.

Reads are exact: nothing is taken from a connection that was not asked for, so that the NIC may go on with a body in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, cast

from acceltcp.abi.wire import MSS_DEFAULT_IPV4, TCP
from acceltcp.host import Connection, Nic, splice

__all__ = [
    "PIECE", "HeadTooLarge", "Joined", "Net", "NicNet", "NicStream", "Peer", "PeerError", "SocketNet", "SocketStream", "Stream",
]  # fmt: skip

PIECE = 1 << 16
"""Bytes of a body that are read at once at most."""


class Stream(Protocol):
    """A connection."""

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the other end."""

    async def wait_data(self) -> bool:
        """Wait until there is something to read; False: there is nothing more."""

    async def read(self, n: int) -> bytes:
        """At least one byte and at most `n`; b'' at the end."""

    async def readuntil(self, separator: bytes, limit: int) -> bytes:
        """As `Connection.readuntil`."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None:
        """The other end sees a reset."""

    async def wait_closed(self) -> None:
        """However it ends."""

    def unread(self) -> bool:
        """Whether data wait."""

    def usable(self) -> bool:
        """Whether it is open both ways, for all that we know."""


@dataclass(frozen=True)
class Joined:
    """What became of a splice. refused: why the NIC did not do it, if it did not."""

    client_octets: int
    server_octets: int
    hardware: bool
    refused: str | None


class Net(Protocol):
    """Where connections come from."""

    splices: bool
    """Whether `join` is there."""

    def flavour(self, client: Stream) -> Hashable:
        """What a connection to a back end must be like to be spliced with the client's."""

    async def connect(self, host: str, port: int, client: Stream, timeout: float) -> Stream:
        """To a back end, like the client's connection as far as `flavour` says."""

    async def join(self, client: Stream, server: Stream, limit: int | None, idle: float) -> Joined:
        """As `acceltcp.host.splice`."""


# -- with errors that say whose they are ---------------------------------------------------------------


class PeerError(Exception):
    """One of the two connections has failed. began: whether a part of a head had come; late: whether for want of time."""

    def __init__(self, peer: Peer, text: str, *, began: bool = False, late: bool = False, ended: bool = False) -> None:
        super().__init__(f"{peer.name} {text}")
        self.peer, self.began, self.late, self.ended = peer, began, late, ended


class HeadTooLarge(Exception):  # noqa: N818
    """A head, a line of a chunked body or its trailer fields are longer than they may be."""


class Peer:
    """A stream whose errors say whose they are. name: for logs. idle: seconds for a read or a write in mid-body."""

    def __init__(self, stream: Stream, name: str, idle: float) -> None:
        self.stream, self.name, self.idle = stream, name, idle

    def failed(self, error: BaseException) -> PeerError:
        """An error of the stream."""
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        return PeerError(self, f"failed: {text}")

    def ended(self, where: str, began: bool = False) -> PeerError:
        """It has said its last."""
        return PeerError(self, f"ended its data {where}", ended=True, began=began)

    async def line(self, limit: int) -> bytes:
        """Up to LF."""
        if limit < 1:
            raise HeadTooLarge
        try:
            return await self.stream.readuntil(b"\n", limit)
        except asyncio.LimitOverrunError:
            raise HeadTooLarge from None
        except asyncio.IncompleteReadError as error:
            raise self.ended("in mid-head", began=bool(error.partial)) from None
        except OSError as error:
            raise self.failed(error) from None

    async def some(self, n: int) -> bytes:
        """Some, whenever it comes; b'' at the end."""
        try:
            return await self.stream.read(n)
        except OSError as error:
            raise self.failed(error) from None

    async def read(self, n: int) -> bytes:
        """Some, in time; b'' at the end."""
        try:
            async with asyncio.timeout(self.idle):
                return await self.some(n)
        except TimeoutError:
            raise PeerError(self, f"sent nothing for {self.idle:g} s in mid-body", late=True) from None

    def put(self, data: bytes) -> None:
        """Write, and `drain` later."""
        try:
            self.stream.write(data)
        except OSError as error:
            raise self.failed(error) from None

    async def write(self, data: bytes) -> None:
        """Write, and wait until not too much is queued."""
        self.put(data)
        await self.drain()

    async def drain(self) -> None:
        """Wait until not too much is queued."""
        late = asyncio.timeout(self.idle)
        try:
            async with late:
                await self.stream.drain()
        except OSError as error:
            if late.expired():
                raise PeerError(self, f"took nothing for {self.idle:g} s", late=True) from None
            raise self.failed(error) from None


@contextlib.asynccontextmanager
async def _answered(seconds: float) -> AsyncIterator[None]:
    """A limit for finding a back end's address and connecting to it."""
    late = asyncio.timeout(seconds)
    try:
        async with late:
            yield
    except TimeoutError:
        if late.expired():
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:g} s") from None
        raise


# -- the NIC -------------------------------------------------------------------------------------------


class NicStream:
    """A NIC's connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._line_feed = False
        self.peer = connection.peername
        connection.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.write = connection.write
        self.drain = connection.drain
        self.write_eof = connection.write_eof
        self.abort = connection.abort
        self.close = connection.close

    async def wait_data(self) -> bool:
        # Of one byte the line's end is either the first, or beyond the limit.
        try:
            await self.connection.readuntil(b"\n", limit=1)
            self._line_feed = True
        except asyncio.LimitOverrunError:
            return True
        except asyncio.IncompleteReadError:
            return False
        return True

    async def read(self, n: int) -> bytes:
        if self._line_feed:
            self._line_feed = False
            return b"\n"
        return await self.connection.read(n)

    async def readuntil(self, separator: bytes, limit: int) -> bytes:
        if self._line_feed:
            self._line_feed = False
            return b"\n"
        return await self.connection.readuntil(separator, limit=limit)

    async def wait_closed(self) -> None:
        with contextlib.suppress(OSError):
            await self.connection.wait_closed()

    def unread(self) -> bool:
        return bool(self.connection.tcp.receive_buffer)

    def usable(self) -> bool:
        return not self.connection.is_closing() and not self.connection.at_eof()


class NicNet:
    """Connections of a NIC. splices: which may splice them, and then they are opened so that it can."""

    def __init__(self, nic: Nic, splices: bool = True) -> None:
        self.nic, self.splices = nic, splices

    def flavour(self, client: Stream) -> Hashable:
        """Timestamps or not, and the largest segment that the client takes if that is smaller than usual: packets are forwarded as
        they are. Segments so small that nobody has them but to make many kinds are not worth a kind."""
        if not self.splices:
            return None
        tcp = cast(NicStream, client).connection.tcp
        if tcp.peer_mss < MSS_DEFAULT_IPV4:
            return None
        usual = self.nic.mtu - (tcp.peer.l4 - tcp.peer.l3) - TCP.size
        return tcp.timestamps, min(tcp.peer_mss, usual)

    async def connect(self, host: str, port: int, client: Stream, timeout: float) -> NicStream:
        like = cast(NicStream, client).connection if self.flavour(client) is not None else None
        async with _answered(timeout):
            return NicStream(await self.nic.connect(host, port, splice_with=like))

    async def join(self, client: Stream, server: Stream, limit: int | None, idle: float) -> Joined:
        one, two = cast(NicStream, client).connection, cast(NicStream, server).connection
        result = await splice(one, two, limit, idle_timeout=idle)
        return Joined(result.client_octets, result.server_octets, result.hardware, result.refused)


# -- the kernel ----------------------------------------------------------------------------------------

_HIGH = 1 << 18


class SocketStream(asyncio.Protocol):
    """A socket of the kernel. opened: called with it when it is there."""

    def __init__(self, opened: Callable[[SocketStream], None] | None = None) -> None:
        self._opened = opened
        self._buffer = bytearray()
        self._eof = self._stopped = False
        self._error: OSError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._full = False
        self._closed = asyncio.Event()
        self._transport: asyncio.Transport
        self.peer = ("", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self.peer = (name[0], name[1])
        if self._opened is not None:
            self._opened(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _HIGH and not self._stopped:
            self._stopped = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._eof = True
        self._wake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._error = exc if isinstance(exc, OSError) else OSError(errno.EIO, str(exc))
        self._closed.set()
        self._wake()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _raise(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args)

    def _take(self, n: int) -> bytes:
        data = bytes(self._buffer[:n])
        del self._buffer[:n]
        if self._stopped and len(self._buffer) <= _HIGH // 2 and not self._closed.is_set():
            self._stopped = False
            self._transport.resume_reading()
        return data

    @property
    def _over(self) -> bool:
        return self._eof or self._closed.is_set()

    async def wait_data(self) -> bool:
        while not self._buffer:
            self._raise()
            if self._over:
                return False
            await self._change()
        return True

    async def read(self, n: int) -> bytes:
        return self._take(n) if await self.wait_data() else b""

    async def readuntil(self, separator: bytes, limit: int) -> bytes:
        searched = 0
        while True:
            at = self._buffer.find(separator, max(searched - len(separator) + 1, 0))
            if at >= 0:
                if at + len(separator) > limit:
                    raise asyncio.LimitOverrunError("the separator lies beyond the limit", at)
                return self._take(at + len(separator))
            searched = len(self._buffer)
            if searched >= limit:
                raise asyncio.LimitOverrunError("there is no separator within the limit", searched)
            self._raise()
            if self._over:
                raise asyncio.IncompleteReadError(self._take(searched), None)
            await self._change()

    def write(self, data: bytes) -> None:
        self._raise()
        if self._closed.is_set():
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self._transport.write(data)

    async def drain(self) -> None:
        while self._full and not self._closed.is_set():
            await self._change()
        self._raise()
        if self._closed.is_set():
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def write_eof(self) -> None:
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        if not self._closed.is_set():
            # Without it the kernel would end the data in order.
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    def unread(self) -> bool:
        return bool(self._buffer)

    def usable(self) -> bool:
        return not self._over and not self._transport.is_closing()


class SocketNet:
    """Sockets of the kernel, which nobody splices."""

    splices = False

    def flavour(self, client: Stream) -> Hashable:
        return None

    async def connect(self, host: str, port: int, client: Stream, timeout: float) -> SocketStream:
        async with _answered(timeout):
            _, stream = await asyncio.get_running_loop().create_connection(SocketStream, host, port)
        return stream

    async def join(self, client: Stream, server: Stream, limit: int | None, idle: float) -> Joined:
        raise OSError(errno.EOPNOTSUPP, "sockets of the kernel are not spliced")

    async def listen(self, handler: Callable[[Stream], Awaitable[None]], host: str, port: int) -> asyncio.Server:
        """Run the handler for each connection, and close it afterwards."""

        async def run(stream: SocketStream) -> None:
            try:
                await handler(stream)
            except BaseException:
                stream.abort()
                raise
            stream.close()

        tasks: set[asyncio.Task[None]] = set()

        def opened(stream: SocketStream) -> None:
            task = asyncio.ensure_future(run(stream))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        return await asyncio.get_running_loop().create_server(lambda: SocketStream(opened), host, port)
