"""A TCP connection for asyncio programs: the surface of a stream reader and writer in one."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .aio.sockets import NicSocket, socket_address
from .holder import TcpHolder
from .tcp import TcpConnection

if TYPE_CHECKING:
    from .nic import Nic
    from .tcp.flows import Flow

__all__ = ["Connection"]


class Connection(TcpHolder):
    """Read and write like `asyncio.StreamReader` and `asyncio.StreamWriter`.

    Errors are those of sockets: `ConnectionResetError`, `TimeoutError`, `BrokenPipeError`.
    high_water: `drain` waits while more bytes than this are not acknowledged.
    """

    def __init__(self, nic: Nic, tcp: TcpConnection, *, high_water: int = 1 << 18) -> None:
        self._nic = nic
        self._tcp = tcp
        self._high_water = high_water
        self._readers: list[asyncio.Future[None]] = []
        self._writers: list[asyncio.Future[None]] = []
        self._closed = asyncio.Event()
        self._error: OSError | None = None
        self.detached = False
        """Somebody else has the connection."""
        self.flow: Flow | None = None
        """What became of the connection in the NIC, once that had taken it over to close it: `flow.end`
        has round-trip time, retransmissions and status."""
        tcp.events = self

    # -- what the TCP tells ----------------------------------------------------------------

    def connected(self) -> None:
        """The connection is established before anybody has a `Connection`."""

    def readable(self) -> None:
        _wake(self._readers)

    def writable(self) -> None:
        if self._writers and self._tcp.unsent_or_unacked <= min(self._high_water, self._tcp.send_limit):
            _wake(self._writers)

    def handed_over(self, flow: Flow) -> None:
        self.flow = flow
        _wake(self._readers)
        _wake(self._writers)
        self._nic.connection_closed(self)

    def closed(self, error: OSError | None) -> None:
        self._error = error
        self._closed.set()
        _wake(self._readers)
        _wake(self._writers)
        self._nic.connection_closed(self)

    # -- addresses -------------------------------------------------------------------------

    @property
    def peername(self) -> tuple[str, int]:
        """The client's address and port."""
        return socket_address(self._tcp.key, ours=False)[:2]

    @property
    def sockname(self) -> tuple[str, int]:
        """Our address and port."""
        return socket_address(self._tcp.key, ours=True)[:2]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """'peername' or 'sockname', as with asyncio; 'socket' takes socket options by their usual names."""
        if name == "socket":
            return NicSocket(self._tcp)
        return getattr(self, name) if name in ("peername", "sockname") else default

    # -- read ------------------------------------------------------------------------------

    @property
    def _eof(self) -> bool:
        return self._tcp.fin_received or self._tcp.closed or not self._tcp.reading

    def at_eof(self) -> bool:
        """Whether the peer has ended its data and all were read."""
        return self._eof and not self._tcp.receive_buffer

    async def _wait_readable(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._readers.append(future)
        try:
            await future
        finally:
            if future in self._readers:
                self._readers.remove(future)

    def _raise(self) -> None:
        error = self._error or self._tcp.error
        if error is not None:
            raise type(error)(*error.args)

    def _take(self, count: int) -> bytes:
        data = self._tcp.consume(count)
        self._nic.schedule_flush()
        return data

    async def read(self, n: int = -1) -> bytes:
        """At least one byte and at most `n`, all until the end if `n` is negative; b'' at the end."""
        if self.detached:
            self._raise()
        if n == 0:
            return b""
        if n < 0:
            parts = []
            while part := await self.read(1 << 20):
                parts.append(part)
            return b"".join(parts)
        while not self._tcp.receive_buffer:
            self._raise()
            if self._eof:
                return b""
            await self._wait_readable()
        return self._take(n)

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes. Raises `asyncio.IncompleteReadError` when the data end before."""
        if n < 0:
            raise ValueError(f"n must not be negative, not {n}")
        parts: list[bytes] = []
        left = n
        while left:
            part = await self.read(left)
            if not part:
                raise asyncio.IncompleteReadError(b"".join(parts), n)
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    async def readuntil(self, separator: bytes = b"\n", *, limit: int = 1 << 16) -> bytes:
        """Up to and including `separator`. Raises `asyncio.IncompleteReadError` at the end of
        data and `asyncio.LimitOverrunError` when it is not among the first `limit` bytes.
        """
        if not separator:
            raise ValueError("separator must not be empty")
        if self.detached:
            self._raise()
        searched = 0
        while True:
            buffer = self._tcp.receive_buffer
            at = buffer.find(separator, max(searched - len(separator) + 1, 0))
            if at >= 0:
                if at + len(separator) > limit:
                    raise asyncio.LimitOverrunError("the separator lies beyond the limit", at)
                return self._take(at + len(separator))
            searched = len(buffer)
            if searched >= limit:
                raise asyncio.LimitOverrunError("there is no separator within the limit", searched)
            self._raise()
            if self._eof:
                raise asyncio.IncompleteReadError(self._take(searched), None)
            await self._wait_readable()

    async def readline(self) -> bytes:
        """A line with its end; what is left when the data end without one. Raises `ValueError`
        for a line of more than 64 KiB."""
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError as error:
            raise ValueError(str(error)) from None

    def __aiter__(self) -> Connection:
        """`async for line in connection`: lines, as a `StreamReader` gives them, until the peer has ended its data."""
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    # -- write -----------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue data; `drain` afterwards. Raises what ended the connection, if something did."""
        self._raise()
        self._tcp.write(data)
        self._nic.schedule_flush()

    def writelines(self, parts: Iterable[bytes]) -> None:
        """Queue several pieces."""
        for part in parts:
            self.write(part)

    async def drain(self) -> None:
        """Wait until not too much is queued."""
        while self._tcp.unsent_or_unacked > min(self._high_water, self._tcp.send_limit):
            self._raise()
            if self._tcp.closed:
                raise BrokenPipeError("the connection is closed")
            future = asyncio.get_running_loop().create_future()
            self._writers.append(future)
            try:
                await future
            finally:
                if future in self._writers:
                    self._writers.remove(future)
        self._raise()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """End our data; reading goes on."""
        if self.detached:
            return
        self._tcp.shutdown()
        self._nic.schedule_flush()

    def close(self) -> None:
        """End our data and read no more. What was written is still delivered: by the NIC, as soon as
        what is left is little enough, if the listener's `teardown` is on."""
        if self.detached:
            return
        self._tcp.close()
        self._nic.schedule_flush()
        _wake(self._readers)

    def abort(self) -> None:
        """Reset the connection; what was not acknowledged is lost."""
        if self.detached:
            return
        self._tcp.abort()
        self._nic.schedule_flush()

    def detach(self) -> TcpConnection:
        """Give the connection away, with all that has not been read; who waits for it here gets an error. Raises
        `OSError` when nothing can be written any more."""
        if self.is_closing():
            raise OSError(errno.ENOTCONN, "the connection is closed, nothing is left to detach")
        self._tcp.events = None
        self.detached = True
        self._error = OSError(errno.ENOTCONN, "the connection was detached")
        self._nic.connection_closed(self)
        self._closed.set()
        _wake(self._readers)
        _wake(self._writers)
        return self._tcp

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._tcp.fin_queued or self._tcp.closed

    async def wait_closed(self) -> None:
        """Wait until both sides have closed (TIME_WAIT counts). Raises what ended the connection else."""
        await self._closed.wait()
        self._raise()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __repr__(self) -> str:
        address, port = self.peername
        state = self._tcp.state.value if self.flow is None else f"{self.flow.phase.value} by the NIC"
        return f"<Connection from {address} port {port}: {state}>"


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
    waiting.clear()
