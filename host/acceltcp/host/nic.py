"""A NIC with addresses, servers and connections, in an asyncio event loop.

`open` gives a `Nic`; `Nic.listen` puts an entry in the NIC's listen table and starts a task
per connection. `engine` drives it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import ipaddress
import socket
import ssl as ssl_module
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from acceltcp.abi.registers import Feature

from .aio.server import TransportServer
from .aio.tls import Tls
from .aio.transport import TcpTransport
from .checks import check_flag, check_integer, check_is, check_names, check_number, parse_address
from .connecting import connect_tcp
from .connection import Connection
from .device import Device
from .engine import Engine, engines_of
from .flow_table import FLOWS_SHOWN, flow_table
from .holder import TcpHolder
from .listening import IPAddress, ListenOptions
from .server import Handler, Server
from .tcp import TcpConnection
from .tcp.flows import Flow
from .tcp.settings import SECONDS_MAX, ConnectionOptions

__all__ = ["Nic", "current_nic", "nics_of", "open"]


_LISTEN_OPTIONS = frozenset(field.name for field in dataclasses.fields(ListenOptions)) - {"setup", "teardown", "lazy"}


class Nic(Engine):
    """A NIC in use by this program. Made by `open`; use it in `async with`.

    addresses: what we are called, like "10.0.0.2/24" or "fd00::2/64". mac: our MAC address,
    or one that follows from the device's name. routes: beyond the networks of our addresses, like
    "default via 10.0.0.1" (see `net.RouteTable`). neighbours: MAC addresses that shall not be asked for, by address. queue: sizes for `Queue`. poll: look for work
    without pause instead of waiting for interrupts. mtu: largest IP packet; the one in `tcp` counts only if it is
    smaller. setup: have the NIC do the handshakes of clients, if it can, where `listen` does not say
    otherwise; teardown: have it close connections, likewise. frame_memory: bytes for their last frames at most.
    queue_index: which of the device's queues. sharing: for a worker process whose device belongs to another one
    (see `workers`), which configures it; None: it is ours alone.
    """

    # -- listen ----------------------------------------------------------------------------

    async def listen(
        self,
        port: int,
        handler: Handler | None = None,
        *,
        host: str | IPAddress | None = None,
        backlog: int = 128,
        max_connections: int = 4096,
        setup: bool | None = None,
        teardown: bool | None = None,
        lazy: bool | None = None,
        defer_accept: bool = False,
        ecn: bool = False,
        mss: int | None = None,
        window: int = 65535,
        wscale: int = 7,
    ) -> Server:
        """Answer SYNs to `port`, and run `handler(connection)` for each connection.

        port: 0 is any that is free (not in a worker). host: one of our addresses; None is all of them, "0.0.0.0" or "::" any at all, though a
        listener on the address itself goes first (unlike with sockets, both may be there). setup: the NIC answers the SYNs
        and checks the handshakes, not the host. teardown: the NIC closes the connections. lazy: build a connection's control block only
        when it is needed. (None, for these: as for the `Nic`.) defer_accept: take a connection only when its
        first data come. mss: what is offered (default: what fits the MTU). window, wscale: the first window, and our window shift.

        Raises `OSError` with EADDRINUSE when there is such a listener, EADDRNOTAVAIL for an address that is not ours, ENOBUFS
        when the NIC's table is full;
        `DeviceError` for an offload that this build of the NIC has not; `ValueError` for a bad argument.
        """
        options = self._listen_options(
            "Nic.listen", setup, teardown, lazy, defer_accept=defer_accept, ecn=ecn, mss=mss, window=window, wscale=wscale
        )
        check_integer("port", port, 0, 65535)
        check_integer("backlog", backlog, 1, 1 << 20)
        check_integer("max_connections", max_connections, 1, 1 << 20)
        hosts = self.addresses.listenable if host is None else [self._own(host, unspecified=True)]
        server = Server(self, handler, backlog, max_connections)
        await server.listen(hosts, port, options)
        self.servers.add(server)
        return server

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | IPAddress | Sequence[str | IPAddress] | None = None,
        port: int = 0,
        *,
        ssl: ssl_module.SSLContext | None = None,
        backlog: int = 100,
        max_connections: int = 1 << 16,
        start_serving: bool = True,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        setup: bool | None = None,
        teardown: bool | None = None,
        lazy: bool | None = None,
        **options: Any,
    ) -> TransportServer:
        """`loop.create_server` on the NIC: a protocol for each connection.

        host: one of our addresses or several; None is all of them, "0.0.0.0" and "::" those of a family. port: 0 is any that is free.
        backlog: accepted for asyncio's sake; connections never wait, as a protocol takes each at once.
        max_connections: with so many the port is paused. setup, teardown, lazy and further options are those of `listen`.

        Raises as `listen`, and `OSError` with EADDRNOTAVAIL for an address that is not ours.
        """
        chosen = self._listen_options("Nic.create_server", setup, teardown, lazy, **options)
        check_integer("port", port, 0, 65535)
        check_integer("backlog", backlog, 1, 1 << 30)
        check_integer("max_connections", max_connections, 1, 1 << 20)
        tls = Tls.wanted(
            ssl, server_side=True, handshake_timeout=ssl_handshake_timeout, shutdown_timeout=ssl_shutdown_timeout
        )
        hosts = self._hosts(host)
        server = TransportServer(
            self, protocol_factory, hosts, port, chosen, tls=tls, max_connections=max_connections
        )
        if start_serving:
            await server.start_serving()
        return server

    def _hosts(self, host: str | IPAddress | Sequence[str | IPAddress] | None) -> list[IPAddress]:
        """Our addresses that a server's host means."""
        own = self.addresses.listenable
        if host is None or host == "":
            found = list(own)
        else:
            found = []
            for each in _several(host):
                address = self._own(each, unspecified=True)
                if address.is_unspecified:
                    found += [known for known in own if known.version == address.version]
                else:
                    found.append(address)
        if not found:
            raise OSError(errno.EADDRNOTAVAIL, f"the NIC has no address to listen on for {host!r}")
        return list(dict.fromkeys(found))

    def _own(self, host: object, *, unspecified: bool = False) -> IPAddress:
        """One of our addresses, or one that is none in particular."""
        address = parse_address("host", host)
        if address.packed not in self.addresses and not (unspecified and address.is_unspecified):
            raise OSError(errno.EADDRNOTAVAIL, f"{address} is no address of this NIC")
        return address

    def _listen_options(
        self, caller: str, setup: bool | None, teardown: bool | None, lazy: bool | None, **options: Any
    ) -> ListenOptions:
        check_names(caller, options, _LISTEN_OPTIONS)
        for name, value in (("setup", setup), ("teardown", teardown), ("lazy", lazy)):
            if value is not None:
                check_flag(name, value)
        features = self.device.identity.features
        if setup:
            self.device.require(Feature.SETUP)
        if teardown:
            self.device.require(Feature.TEARDOWN)
        return ListenOptions(
            self._setup and Feature.SETUP in features if setup is None else setup,
            self._teardown if teardown is None else teardown,
            self._settings.lazy if lazy is None else lazy,
            **options,
        )

    # -- connect ---------------------------------------------------------------------------

    def reaches(self, address: IPAddress) -> bool:
        """Whether there is a route to the address over this NIC."""
        if address.packed in self.addresses:
            return False
        try:
            self.network.route(address.packed)
        except OSError:
            return False
        return True

    async def connect(
        self,
        host: str | IPAddress | Sequence[str | IPAddress],
        port: int,
        *,
        local_addr: tuple[str | None, int] | None = None,
        timeout: float | None = None,
        teardown: bool | None = None,
        options: ConnectionOptions | None = None,
        splice_with: Connection | TcpTransport | None = None,
    ) -> Connection:
        """Open a connection. host: an address or a name, or several addresses of which the first that answers is taken.

        local_addr: from which address of ours (None: as the route says) and port (0: any), like ("10.0.0.2", 0). timeout: seconds for each
        attempt (None: as many as TCP tries). teardown: the NIC may close it (None: as for the `Nic`). splice_with: a connection that `splice` shall
        join with this one: what is offered is what that one has, since the NIC forwards packets as they are.

        Raises `OSError` as sockets do: `ConnectionRefusedError`, `TimeoutError`, EHOSTUNREACH, ENETUNREACH, EADDRINUSE,
        EADDRNOTAVAIL; `socket.gaierror` for an unknown name; `ValueError` for a bad argument.
        """
        return Connection(self, await self._open_tcp(host, port, local_addr, timeout, teardown, options, splice_with))

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | IPAddress | Sequence[str | IPAddress],
        port: int,
        *,
        ssl: ssl_module.SSLContext | bool | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        local_addr: tuple[str | None, int] | None = None,
        timeout: float | None = None,
        teardown: bool | None = None,
        options: ConnectionOptions | None = None,
        splice_with: Connection | TcpTransport | None = None,
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """`loop.create_connection` over the NIC: transport and protocol. Arguments and errors as for `connect`."""
        tls = Tls.wanted(
            ssl, server_side=False, host=host if isinstance(host, str) else "", server_hostname=server_hostname,
            handshake_timeout=ssl_handshake_timeout, shutdown_timeout=ssl_shutdown_timeout,
        )  # fmt: skip
        tcp = await self._open_tcp(host, port, local_addr, timeout, teardown, options, splice_with)
        return await self.adopt(tcp, protocol_factory, tls)

    async def adopt(
        self, tcp: TcpConnection, protocol_factory: Callable[[], asyncio.BaseProtocol], tls: Tls | None = None
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """A transport and a protocol for an established connection that belongs to nobody (any more)."""
        protocol = protocol_factory()
        if tls is None:
            transport = TcpTransport(self, tcp, protocol, loop=self._loop)
            transport.begin()
            return transport, protocol
        waiter: asyncio.Future[None] = self._loop.create_future()
        wrapped = tls.wrap(self._loop, protocol, waiter)
        TcpTransport(self, tcp, wrapped, loop=self._loop).begin()
        secure = wrapped._app_transport
        assert secure is not None
        try:
            await waiter
        except BaseException:
            secure.close()
            raise
        return secure, protocol

    async def _open_tcp(
        self,
        host: str | IPAddress | Sequence[str | IPAddress],
        port: int,
        local_addr: tuple[str | None, int] | None,
        timeout: float | None,
        teardown: bool | None,
        options: ConnectionOptions | None,
        splice_with: Connection | TcpTransport | None,
    ) -> TcpConnection:
        if self._error is not None:
            raise self._error
        check_integer("port", port, 1, 65535)
        if timeout is not None:
            check_number("timeout", timeout, 0, SECONDS_MAX)
        if teardown is not None:
            check_flag("teardown", teardown)
        if options is not None:
            check_is("options", options, ConnectionOptions)
        if splice_with is not None and not isinstance(splice_with, TcpHolder):
            raise ValueError(f"splice_with must be a Connection or a TcpTransport, not {splice_with!r}")
        local, local_port = self._local(local_addr)
        return await connect_tcp(
            self, await self._targets(host, port), port, local=local, local_port=local_port, options=options,
            teardown=self._teardown if teardown is None else teardown, timeout=timeout,
            splice_with=splice_with.tcp if splice_with is not None else None,
        )  # fmt: skip

    def _local(self, local_addr: object) -> tuple[IPAddress | None, int]:
        """Address (None: any of ours) and port (0: any) to connect from."""
        if local_addr is None:
            return None, 0
        if not isinstance(local_addr, (tuple, list)) or len(local_addr) < 2:
            raise ValueError(f"local_addr must be an address or None and a port, like ('10.0.0.2', 0), not {local_addr!r}")
        host, port = local_addr[:2]
        check_integer("the port of local_addr", port, 0, 65535)
        local = parse_address("the address of local_addr", host) if host else None
        return None if local is None or local.is_unspecified else local, port

    async def _targets(self, host: str | IPAddress | Sequence[str | IPAddress], port: int) -> list[IPAddress]:
        if isinstance(host, str) and host and not _is_address(host):
            infos = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            # Zones of what a name means are the kernel's.
            found = [ipaddress.ip_address(info[4][0]) for info in infos if "%" not in str(info[4][0])]
            if not found:
                raise OSError(errno.EADDRNOTAVAIL, f"{host!r} has no address without a zone")
            return list(dict.fromkeys(found))
        targets = [parse_address("host", each) for each in _several(host)]
        if not targets:
            raise ValueError(f"host must be a name, an address, or several addresses, not {host!r}")
        return targets

    # -- readings --------------------------------------------------------------------------

    async def flow_table(self, limit: int = FLOWS_SHOWN) -> dict[str, Any]:
        """What the NIC's connection table holds; see `flow_table.flow_table`."""
        async with self._table_lock:
            return await flow_table(self.device, self._known_flows(), limit)

    def _known_flows(self) -> dict[int, Flow]:
        """By index: flows whose addresses we know, those that have ended lately too."""
        if self.flows is None or self.endpoint.hand_over is None:
            return {}
        return {**self.endpoint.hand_over.ended_flows(), **self.flows.held}


def _several(host: object) -> Sequence[object]:
    """What was given as one host or several."""
    if isinstance(host, Sequence) and not isinstance(host, (str, bytes)):
        return host
    return [host]


def _is_address(text: str) -> bool:
    """Whether a text is an address (with a zone, too) and no name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def nics_of(loop: asyncio.AbstractEventLoop) -> list[Nic]:
    """NICs that are open in an event loop, in the order in which they were opened."""
    return [engine for engine in engines_of(loop) if isinstance(engine, Nic)]


def current_nic() -> Nic:
    """The NIC that is open in the running event loop. Raises `RuntimeError` unless there is exactly one."""
    nics = nics_of(asyncio.get_running_loop())
    if len(nics) != 1:
        raise RuntimeError(f"{len(nics) or 'no'} NICs are open in this event loop: say which with nic=")
    return nics[0]


def open(device: Device | str, addresses: Iterable[str], **options: Any) -> Nic:
    """A NIC for `async with`; see `Nic` for the options."""
    return Nic(device, addresses, **options)
