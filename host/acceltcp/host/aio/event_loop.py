"""An event loop whose TCP goes through the NIC, so that programs and libraries for asyncio need no change."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import weakref
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from ..connecting import connect_tcp
from ..device import Device
from ..listening import IPAddress
from ..nic import Nic, nics_of, open
from ..tcp import TcpConnection
from .sockets import copy_options
from .tls import Tls

__all__ = ["EventLoop", "run"]

Result = TypeVar("Result")

_LOOPBACK4 = ipaddress.ip_network("127.0.0.0/8")


def _numeric(host: object) -> IPAddress | None:
    """The address that a text is, if it is one; bytes are decoded."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str):
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _zone(address: IPAddress) -> bool:
    """Whether an address names an interface of the kernel."""
    return isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop, with the NIC that is open in it.

    Servers: on the NIC where the host is one of its addresses, none, "0.0.0.0" or "::" (then they listen on the NIC
    alone); on the kernel otherwise ("127.0.0.1", "::1", its own addresses, `sock`). Connections: over the NIC if it
    has a route to the address; over the kernel otherwise, and for loopback always. A socket of the kernel that is not
    bound and is given to `sock_connect` is connected over the NIC by the same rule and then serves `create_connection(sock=)`,
    as libraries do it that race several addresses. UNIX sockets, datagrams and everything else belong to the kernel.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._over_nic: weakref.WeakKeyDictionary[socket.socket, _Connected] = weakref.WeakKeyDictionary()

    @property
    def nic(self) -> Nic | None:
        """The NIC: the first that was opened in this loop and is still open."""
        nics = nics_of(self)
        return nics[0] if nics else None

    # -- names -----------------------------------------------------------------------------

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        """As the base class; for an address and a number it needs no thread."""
        if _numeric(host) is not None and isinstance(port, int):
            numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            return socket.getaddrinfo(host, port, family, type, proto, flags & ~socket.AI_ADDRCONFIG | numeric)
        return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)

    async def _resolve(self, host: Any, port: Any, family: int, flags: int) -> list[Any]:
        infos = await self.getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags
        )
        return list(infos)

    # -- servers ---------------------------------------------------------------------------

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        family: int = socket.AF_UNSPEC,
        flags: int = socket.AI_PASSIVE,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: Any = None,
        start_serving: bool = True,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        **options: Any,
    ) -> asyncio.AbstractServer:
        """As the base class; see the class for where it listens."""
        nic = self.nic
        kernel_options: dict[str, Any] = {
            "family": family, "flags": flags, "backlog": backlog, "ssl": ssl, "start_serving": start_serving,
            "ssl_handshake_timeout": ssl_handshake_timeout, "ssl_shutdown_timeout": ssl_shutdown_timeout, **options,
        }  # fmt: skip
        if nic is None or sock is not None:
            return await super().create_server(protocol_factory, host, port, sock=sock, **kernel_options)
        hosts = [host] if isinstance(host, (str, bytes)) or not isinstance(host, Iterable) else list(host)
        ours: list[IPAddress] = []
        kernels: list[Any] = []
        for each in hosts:
            found = await self._ours(nic, each, port, family, flags)
            if found:
                ours.extend(found)
            else:
                kernels.append(each)
        if not ours:
            return await super().create_server(protocol_factory, host, port, **kernel_options)
        number = port if isinstance(port, int) else socket.getservbyname(str(port), "tcp") if port else 0
        server = await nic.create_server(
            protocol_factory, list(dict.fromkeys(ours)), number, backlog=backlog, ssl=ssl, start_serving=start_serving,
            ssl_handshake_timeout=ssl_handshake_timeout, ssl_shutdown_timeout=ssl_shutdown_timeout,
        )  # fmt: skip
        if kernels:
            try:
                server.beside.append(await super().create_server(protocol_factory, kernels, port, **kernel_options))
            except BaseException:
                server.close()
                await server.wait_closed()
                raise
        return server

    async def _ours(self, nic: Nic, host: Any, port: Any, family: int, flags: int) -> list[IPAddress]:
        """The NIC's addresses that a server's host means; none if it is a matter of the kernel."""
        versions = {socket.AF_INET: (4,), socket.AF_INET6: (6,)}.get(socket.AddressFamily(family), (4, 6))
        address = _numeric(host)
        if not host:
            return [address for address in nic.addresses.listenable if address.version in versions]
        if address is None:
            infos = await self._resolve(host, port, family, flags)
            return [known for info in infos if (known := _numeric(info[4][0])) is not None and known.packed in nic.addresses]
        if address.is_unspecified:
            return [known for known in nic.addresses.listenable if known.version == address.version]
        return [address] if address.packed in nic.addresses and not _zone(address) else []

    # -- connections -----------------------------------------------------------------------

    def _route(self, address: IPAddress) -> Nic | None:
        nic = self.nic
        if nic is None or address.is_loopback or address.is_unspecified or _zone(address) or not nic.reaches(address):
            return None
        return nic

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        ssl: Any = None,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        sock: socket.socket | None = None,
        local_addr: Any = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        **options: Any,
    ) -> Any:
        """As the base class; see the class for where it goes."""
        tls_options: dict[str, Any] = {
            "server_hostname": server_hostname,
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
        if sock is not None and host is None and port is None:
            connected = self._over_nic.pop(sock, None)
            if connected is not None:
                tls = Tls.wanted(
                    ssl, server_side=False, server_hostname=server_hostname,
                    handshake_timeout=ssl_handshake_timeout, shutdown_timeout=ssl_shutdown_timeout,
                )  # fmt: skip
                sock.close()
                return await connected.nic.adopt(connected.take(), protocol_factory, tls)
        elif sock is None and host is not None and self.nic is not None:
            infos = await self._resolve(host, port, family, flags)
            addresses = [address for info in infos if (address := _numeric(info[4][0])) is not None]
            nic = self._route(addresses[0]) if addresses else None
            if nic is not None:
                over_nic = [address for address in addresses if self._route(address) is nic]
                return await nic.create_connection(
                    protocol_factory, over_nic, infos[0][4][1], ssl=ssl, local_addr=local_addr,
                    **tls_options | {"server_hostname": server_hostname or (host if ssl else None)},
                )  # fmt: skip
        return await super().create_connection(
            protocol_factory, host, port, ssl=ssl, family=family, proto=proto, flags=flags, sock=sock,
            local_addr=local_addr, **tls_options, **options,
        )  # fmt: skip

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """As the base class; over the NIC if that has a route and the socket is a TCP socket that is not bound."""
        target = None
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
            target = _numeric(address[0])
        nic = self._route(target) if target is not None else None
        if nic is None or target is None or _bound(sock):
            await super().sock_connect(sock, address)
            return
        tcp = await connect_tcp(nic, [target], address[1], options=copy_options(sock))
        self._over_nic[sock] = _Connected(self, nic, tcp, sock)


class _Connected:
    """A connection of the NIC that a kernel's socket stands for until a transport takes it."""

    def __init__(self, loop: EventLoop, nic: Nic, tcp: TcpConnection, sock: socket.socket) -> None:
        self.nic = nic
        self._tcp = tcp
        # Nobody wants it: the socket lost a race, and was forgotten.
        self._forgotten = weakref.finalize(sock, _drop, loop, nic, tcp)
        self._forgotten.atexit = False

    def take(self) -> TcpConnection:
        """Give the connection to who uses it."""
        self._forgotten.detach()
        return self._tcp


def _drop(loop: EventLoop, nic: Nic, tcp: TcpConnection) -> None:
    def abort() -> None:
        tcp.abort()
        nic.schedule_flush()

    if not loop.is_closed():
        loop.call_soon_threadsafe(abort)


def _bound(sock: socket.socket) -> bool:
    host, port = sock.getsockname()[:2]
    return bool(port) or not ipaddress.ip_address(host).is_unspecified


def run(
    main: Coroutine[Any, Any, Result] | Callable[[Nic], Coroutine[Any, Any, Result]],
    *,
    device: Device | str,
    addresses: Iterable[str],
    debug: bool | None = None,
    **options: Any,
) -> Result:
    """`asyncio.run` with an `EventLoop` in which the NIC is open: what `main` returns.

    main: a coroutine, or a function that makes one when it is given the `Nic`. Further options are those of `Nic`.
    Ctrl-C cancels `main`, closes the NIC, and is raised as `KeyboardInterrupt`, as `asyncio.run` does.
    """

    async def inside() -> Result:
        try:
            nic = open(device, addresses, **options)
            await nic.start()
        except BaseException:
            if isinstance(main, Coroutine):
                main.close()
            raise
        async with nic:
            return await (main if isinstance(main, Coroutine) else main(nic))

    with asyncio.Runner(loop_factory=EventLoop, debug=debug) as runner:
        return runner.run(inside())
