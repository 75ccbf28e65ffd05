"""`asyncio.AbstractServer` for a port of the NIC: a protocol for each connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import DeviceError
from ..listening import IPAddress, ListeningPort, ListenOptions
from ..tcp import TcpConnection
from .sockets import ListeningSocket
from .tls import Tls
from .transport import TcpTransport

if TYPE_CHECKING:
    from ..nic import Nic

__all__ = ["TransportServer"]

log = logging.getLogger("acceltcp")


class TransportServer(asyncio.AbstractServer):
    """Made by `Nic.create_server`. beside: servers of the kernel that share its fate.

    At `max_connections` the port is paused: no SYN is answered until an eighth of them is gone.
    """

    def __init__(
        self,
        nic: Nic,
        factory: Callable[[], asyncio.BaseProtocol],
        hosts: list[IPAddress],
        port: int,
        options: ListenOptions,
        *,
        tls: Tls | None,
        max_connections: int,
    ) -> None:
        self._nic = nic
        self._loop = asyncio.get_running_loop()
        self._factory = factory
        self._hosts, self._port, self._options = hosts, port, options
        self._tls = tls
        self._max_connections = max_connections
        self._listening = ListeningPort(nic, self._accept, self._regulate)
        self._transports: set[TcpTransport] = set()
        self._started = False
        self._closed = False
        self._ending: asyncio.Task[None] | None = None
        self._forever: asyncio.Future[None] | None = None
        self.beside: list[asyncio.AbstractServer] = []
        self.accepted = 0

    # -- connections -----------------------------------------------------------------------

    def _accept(self, tcp: TcpConnection) -> bool:
        if self._closed or len(self._transports) >= self._max_connections:
            return False
        loop = self._loop
        try:
            protocol = self._factory()
            if self._tls is not None:
                waiter: asyncio.Future[None] = loop.create_future()
                waiter.add_done_callback(self._handshaken)
                protocol = self._tls.wrap(loop, protocol, waiter)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            loop.call_exception_handler(
                {"message": "Error on transport creation for incoming connection", "exception": error}
            )
            return False
        transport = TcpTransport(self._nic, tcp, protocol, loop=loop, server=self)
        self._transports.add(transport)
        self.accepted += 1
        transport.begin()
        if len(self._transports) >= self._max_connections:
            self._regulate()
        return not tcp.closed

    @staticmethod
    def _handshaken(waiter: asyncio.Future[None]) -> None:
        if not waiter.cancelled() and (error := waiter.exception()) is not None:
            log.debug("a TLS handshake failed: %r", error)

    def left(self, transport: TcpTransport) -> None:
        """From a transport that is done."""
        self._transports.discard(transport)
        if self._listening.paused:
            self._regulate()

    def _regulate(self) -> None:
        count, most = len(self._transports), self._max_connections
        port = self._listening
        port.pause(count >= most if not port.paused else count > most - max(most // 8, 1))

    # -- asyncio's surface -----------------------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._started and not self._closed

    async def start_serving(self) -> None:
        """Listen. Raises as `Nic.create_server`."""
        if self._started:
            return
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        self._started = True
        try:
            await self._listening.open(self._hosts, self._port, self._options)
        except BaseException:
            self._started = False
            raise
        if self._closed:
            await self._listening.close()
            return
        self._nic.servers.add(self)
        for server in self.beside:
            await server.start_serving()

    @property
    def sockets(self) -> tuple[ListeningSocket, ...]:
        """A socket look-alike for each address, with `getsockname`; those of the kernel's servers too."""
        if self._closed:
            return ()
        port = self._listening.port or self._port
        ours = tuple(ListeningSocket(address, port) for address in self._hosts)
        return ours + tuple(sock for server in self.beside for sock in getattr(server, "sockets", ()))

    async def serve_forever(self) -> None:
        """Serve until it is cancelled, which closes the server, or the device is lost (then raises `DeviceError`)."""
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        self._forever = self._loop.create_future()
        lost = asyncio.ensure_future(self._nic.wait_lost())
        try:
            await self.start_serving()
            await asyncio.wait((self._forever, lost), return_when=asyncio.FIRST_COMPLETED)
            if self._forever.cancelled():
                raise asyncio.CancelledError
            lost.result()
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            lost.cancel()
            self._forever = None

    def close(self) -> None:
        """Take no more connections; those that there are go on."""
        if self._closed:
            return
        self._closed = True
        self._listening.stop()
        if self._started:
            self._ending = self._loop.create_task(self._end())
        for server in self.beside:
            server.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()

    async def _end(self) -> None:
        await self._listening.close()
        self._nic.servers.discard(self)

    async def stop(self) -> None:
        """From the NIC that closes."""
        self.close()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until the NIC listens no more."""
        if self._ending is not None:
            with contextlib.suppress(DeviceError):
                await asyncio.shield(self._ending)
        if self._closed:
            for server in self.beside:
                await server.wait_closed()

    def close_clients(self) -> None:
        """Close all connections."""
        for transport in list(self._transports):
            transport.close()

    def abort_clients(self) -> None:
        """Reset all connections."""
        for transport in list(self._transports):
            transport.abort()

    # -- about -----------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port's number."""
        return self._listening.port

    @property
    def addresses(self) -> list[IPAddress]:
        """Where it listens."""
        return self._listening.addresses

    @property
    def connections(self) -> int:
        """Transports that are not done."""
        return len(self._transports)

    @property
    def paused(self) -> bool:
        """Whether no SYN is answered for now."""
        return self._listening.paused

    @property
    def pauses(self) -> int:
        """How often that came to be."""
        return self._listening.pauses

    def __repr__(self) -> str:
        return f"<TransportServer sockets={self.sockets!r}>"
