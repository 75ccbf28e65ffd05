"""A listening port whose connections go to a handler or wait for `accept`."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from .connection import Connection
from .listening import IPAddress, ListeningPort, ListenOptions
from .tcp import TcpConnection

if TYPE_CHECKING:
    from .nic import Nic

__all__ = ["Handler", "Server"]

log = logging.getLogger("acceltcp")

Handler = Callable[[Connection], Awaitable[None]]


def _is_of(connection: Connection, error: Exception) -> bool:
    """Whether an error tells the end of this connection, or of its data."""
    tcp = connection.tcp
    if isinstance(error, asyncio.IncompleteReadError):
        return tcp.fin_received
    own = tcp.error
    return (type(error) is type(own) and error.args == own.args) or (tcp.closed and isinstance(error, BrokenPipeError))


class Server:
    """A listening port and the connections it brought. Made by `Nic.listen`.

    Connections wait in a queue of `backlog` until their handler can run (at most
    `max_connections` run at once) or until `accept` takes them. When the queue is full the
    listener is paused: the NIC answers no SYN until half of it is free again.
    """

    def __init__(self, nic: Nic, handler: Handler | None, backlog: int, max_connections: int) -> None:
        self._nic = nic
        self._listening = ListeningPort(nic, self._accept, self._regulate)
        self._handler = handler
        self._backlog = backlog
        self._max_connections = max_connections
        self._waiting: deque[Connection] = deque()
        self._accepting: deque[asyncio.Future[Connection]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self.accepted = 0

    # -- connections in --------------------------------------------------------------------

    def _accept(self, tcp: TcpConnection) -> bool:
        """From the endpoint. Cookies given out before a pause may still come; within reason
        they are taken, beyond it the client's retransmission finds a place later."""
        if self._closed.is_set() or len(self._waiting) >= 2 * self._backlog:
            return False
        connection = Connection(self._nic, tcp)
        self._nic.connection_opened(connection)
        self._waiting.append(connection)
        self._dispatch()
        self._regulate()
        return True

    def _dispatch(self) -> None:
        while self._waiting:
            while self._accepting and self._accepting[0].done():
                self._accepting.popleft()
            if self._handler is not None and len(self._tasks) < self._max_connections:
                connection = self._waiting.popleft()
                self.accepted += 1
                task = asyncio.get_running_loop().create_task(self._run(self._handler, connection))
                self._tasks.add(task)
                task.add_done_callback(self._task_done)
            elif self._handler is None and self._accepting:
                connection = self._waiting.popleft()
                if connection.tcp.closed:
                    continue
                self.accepted += 1
                self._accepting.popleft().set_result(connection)
            else:
                return

    async def _run(self, handler: Handler, connection: Connection) -> None:
        try:
            await handler(connection)
        except (OSError, asyncio.IncompleteReadError) as error:
            # What ends the client's connection is the client's affair; a back end that is down is ours.
            if _is_of(connection, error):
                log.debug("%r ended: %r", connection, error)
            else:
                log.error("the handler of %r failed: %r", connection, error, exc_info=log.isEnabledFor(logging.DEBUG))
            connection.abort()
        except asyncio.CancelledError:
            connection.abort()
            raise
        except Exception:
            log.exception("the handler of %r failed", connection)
            connection.abort()
        else:
            connection.close()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._closed.is_set():
            self._dispatch()
            self._regulate()

    async def accept(self) -> Connection:
        """The next connection, for servers without a handler."""
        if self._handler is not None:
            raise RuntimeError("this server's connections go to its handler")
        if self._closed.is_set():
            raise OSError(errno.EBADF, "the server is closed")
        future: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._accepting.append(future)
        self._dispatch()
        connection = await future
        self._regulate()
        return connection

    # -- pause -----------------------------------------------------------------------------

    def _regulate(self) -> None:
        waiting = len(self._waiting)
        port = self._listening
        port.pause(waiting >= self._backlog if not port.paused else waiting > self._backlog // 2)

    @property
    def paused(self) -> bool:
        """Whether no SYN is answered for now."""
        return self._listening.paused

    @property
    def pauses(self) -> int:
        """How often that came to be."""
        return self._listening.pauses

    @property
    def port(self) -> int:
        """The port's number."""
        return self._listening.port

    @property
    def addresses(self) -> list[IPAddress]:
        """Where it listens."""
        return self._listening.addresses

    async def listen(self, hosts: list[IPAddress], port: int, options: ListenOptions) -> None:
        """From `Nic.listen`: begin."""
        await self._listening.open(hosts, port, options)

    async def stop(self) -> None:
        """From the NIC that closes."""
        await self.close()

    @property
    def connections(self) -> int:
        """Handlers that run now."""
        return len(self._tasks)

    # -- end -------------------------------------------------------------------------------

    async def serve_forever(self) -> None:
        """Wait until the server is closed or the device is lost (then raises `DeviceError`)."""
        await self._nic.wait_for(self._closed)

    async def close(self) -> None:
        """Take no more connections; those that there are go on until their handler ends."""
        if self._closed.is_set():
            return
        self._closed.set()
        for future in self._accepting:
            if not future.done():
                future.set_exception(OSError(errno.EBADF, "the server is closed"))
        self._accepting.clear()
        await self._listening.close()
        for connection in self._waiting:
            connection.abort()
        self._waiting.clear()
        self._nic.servers.discard(self)

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

