"""A NIC with addresses, servers and connections, in an asyncio event loop.

`open` gives a `Nic`; `Nic.listen` puts an entry in the NIC's listen table and starts a task
per connection. All work happens in the event loop: an interrupt (an eventfd) wakes it, a
batch of packets is dealt with, timers run, replies go out, and the interrupt is armed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import ssl as ssl_module
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from acceltcp.abi.messages import COMMAND, CommandOpcode
from acceltcp.abi.registers import Feature

from .aio.server import TransportServer
from .aio.tls import Tls
from .aio.transport import TcpTransport
from .connecting import connect_tcp
from .connection import Connection
from .device import WATCHDOG_S, Device, format_mac, parse_mac, random_mac
from .errors import DeviceError
from .flow_table import FLOWS_SHOWN, flow_table
from .frames import FRAME_MEMORY_BYTES, FramePool
from .listening import IPAddress, ListenOptions, check_range
from .net import Addresses, Network
from .queue import CommandResult, Queue
from .rings import RX_PACKING
from .server import Handler, Server
from .sharing import Sharing
from .tcp import TcpConnection, TcpEndpoint, TcpSettings
from .tcp.flows import FLOW_STATS, Flow, Flows
from .tcp.handover import HandOver
from .tcp.settings import ConnectionOptions

__all__ = ["Nic", "NicUser", "current_nic", "nics_of", "open"]

log = logging.getLogger("acceltcp")

_BATCH = 64
_ABORT_S = 1.0
"""How long the NIC may take to let go of the flows that `close` aborts."""
_LINK_OVERHEAD = 22
"""Ethernet header and VLAN tags around a packet of MTU size."""
_TCP_I, _TCP_S, _TCP_M = RX_PACKING["tcp"]
_LISTENING = frozenset((CommandOpcode.LISTEN, CommandOpcode.UNLISTEN, CommandOpcode.LISTEN_UPDATE))
_PORT = RX_PACKING["port"]


class NicUser(Protocol):
    """Somebody who has a connection of this NIC, and hears when the device goes away."""

    @property
    def tcp(self) -> TcpConnection:
        """The connection."""

    def is_closing(self) -> bool:
        """Whether it ends without being told to."""

    def abort(self) -> None:
        """Reset it."""

    def closed(self, error: OSError | None) -> None:
        """It is over."""


class Nic:
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

    def __init__(
        self,
        device: Device | str,
        addresses: Iterable[str],
        *,
        mac: str | None = None,
        mtu: int = 1500,
        routes: Iterable[str] = (),
        neighbours: Mapping[str, str] | None = None,
        tcp: TcpSettings | None = None,
        queue: dict[str, int] | None = None,
        poll: bool = False,
        announce: bool = True,
        promiscuous: bool = False,
        linger: float = 2.0,
        setup: bool = True,
        teardown: bool = True,
        frame_memory: int = FRAME_MEMORY_BYTES,
        queue_index: int = 0,
        sharing: Sharing | None = None,
    ) -> None:
        if not 1280 <= mtu <= 65535 - _LINK_OVERHEAD:
            raise ValueError(f"mtu must be from 1280 to {65535 - _LINK_OVERHEAD}, not {mtu!r}")
        self._spec = device
        name = device if isinstance(device, str) else device.transport.description
        self._mac = parse_mac(mac) if mac is not None else random_mac(name)
        self.addresses = Addresses(addresses, self._mac)
        settings = tcp or TcpSettings(mtu=mtu)
        self._settings = replace(settings, mtu=min(settings.mtu, mtu))
        self.mtu = mtu
        """Largest IP packet."""
        self._queue_options = queue or {}
        self._poll = poll
        self._announce = announce
        self._promiscuous = promiscuous
        self._linger = linger
        self._setup = setup
        self._teardown = teardown
        self._frame_memory = frame_memory
        self._queue_index = queue_index
        self.sharing = sharing
        """What makes us one of several processes on this device, if we are."""
        self.on_frame: Callable[[memoryview, int], None] | None = None
        """Gets every frame that is not TCP, and its port, besides what we do with it."""
        self.flows: Flows | None = None
        """Connections that the NIC closes; None when this build of it cannot."""
        self._table_lock = asyncio.Lock()
        self.network = Network(
            self.addresses, self._send_frame, routes=routes, neighbours=neighbours, mtu=self.mtu
        )
        self.servers: set[Server | TransportServer] = set()
        self._users: set[NicUser] = set()
        self._error: DeviceError | None = None
        self._loss_waiters = 0
        self._opened = False
        self._closing = False
        self._work_handle: asyncio.Handle | None = None
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._eventfd = -1
        self._watched: int | None = None

    # -- open and close --------------------------------------------------------------------

    async def __aenter__(self) -> Nic:
        if not self._opened:
            await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the device, reset it and begin to receive. Raises `DeviceError`.

        `async with` does this if it has not been done.
        """
        if self._opened:
            raise RuntimeError("this NIC has been started before")
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        spec = self._spec
        if isinstance(spec, str):
            self.device = await _open_in_thread(spec)
        else:
            self.device = spec
        try:
            self._configure()
        except BaseException:
            self.device.close()
            raise
        self._opened = True
        _open_nics.setdefault(self._loop, []).append(self)
        self._work()

    def _configure(self) -> None:
        device = self.device
        frame = self.mtu + _LINK_OVERHEAD
        if self.mtu + 14 > device.identity.max_frame:
            raise DeviceError(
                f"{device.transport.description} takes frames of {device.identity.max_frame} bytes, "
                f"too few for an MTU of {self.mtu}."
            )
        if self.sharing is None:
            if Feature.SETUP in device.identity.features:
                device.set_secret()
            device.set_mac(self._mac)
            device.configure_port(promiscuous=self._promiscuous)
            device.registers.CONTROL.default_queue.write(queue=self._queue_index)
        else:
            self.sharing.on_frame = self._told
            self.sharing.readings = self._own_stats
        self.queue = Queue(device, self._queue_index, **{"buffer_size": max(2048, frame), **self._queue_options})
        self.queue.on_space = self._space
        self.endpoint = TcpEndpoint(
            self.queue,
            self.addresses,
            self._settings,
            now=time.monotonic(),
            ts_clock=device.timestamp_clock,
            ts_step=device.timestamp_step_s(),
            network=self.network,
        )
        self.network.on_neighbour_found = self.endpoint.neighbour_found
        self.network.on_neighbour_failed = self.endpoint.neighbour_failed
        self.network.on_tcp_error = self.endpoint.icmp_error
        if Feature.TEARDOWN in device.identity.features:
            self._prepare_flows()
        device.on_reset.append(self._was_reset)
        if not self._poll:
            self._eventfd = device.transport.enable_interrupts(self._queue_index + 1)[self._queue_index]
            self._loop.add_reader(self._eventfd, self._interrupt)
        self._watched = device.transport.fileno()
        if self._watched is not None:
            self._loop.add_reader(self._watched, self._check_device)
        if self.sharing is None:
            device.enable()
        if self._announce:
            self.network.announce(time.monotonic())
            self.queue.flush()

    def _prepare_flows(self) -> None:
        settings = self._settings
        if self.sharing is None:
            self.device.prepare_flows(
                time_wait=settings.time_wait,
                fin_wait_2=settings.fin_wait_2,
                linger=settings.linger,
                max_rto=settings.max_rto,
            )
        pool = FramePool(self.device.memory, self.mtu + _LINK_OVERHEAD, limit=self._frame_memory)
        self.flows = Flows(self.queue, pool, step=self.device.flow_step_s(), mtu=self.mtu)
        self.endpoint.hand_over = HandOver(self.endpoint, self.flows)

    async def close(self) -> None:
        """Close servers, let connections that are closing finish for a moment, reset the others."""
        if self._closing or not self._opened:
            return
        self._closing = True
        nics = _open_nics[self._loop]
        nics.remove(self)
        try:
            if self._error is None:
                for server in list(self.servers):
                    await server.stop()
                await self._wind_down()
        finally:
            self._stop_loop()
            with contextlib.suppress(DeviceError):
                if self._error is None:
                    if self.sharing is None:
                        self.device.enable(False)
                    self.queue.drain()
                    if self._open_flows and self.sharing is None:
                        self.device.reset()  # the only way left to have our memory back
                    self.queue.stop()
                    if self.flows is not None:
                        self.flows.pool.close()
            self.device.on_reset.remove(self._was_reset)
            self.device.close()

    async def _wind_down(self) -> None:
        for user in list(self._users):
            if not user.is_closing():
                user.abort()
        deadline = time.monotonic() + self._linger
        while (self._users or self._open_flows) and time.monotonic() < deadline and self._error is None:
            await asyncio.sleep(0.01)
        for user in list(self._users):
            user.abort()
        if self.endpoint.hand_over is not None:
            self.endpoint.hand_over.abort_all()
        self._flush()
        await asyncio.sleep(0)
        deadline = time.monotonic() + _ABORT_S
        while self._open_flows and time.monotonic() < deadline and self._error is None:
            await asyncio.sleep(0.002)

    @property
    def _open_flows(self) -> int:
        return self.flows.open if self.flows is not None else 0

    def _stop_loop(self) -> None:
        if self._eventfd >= 0:
            self._loop.remove_reader(self._eventfd)
            self._eventfd = -1
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._watched = None
        for handle in (self._work_handle, self._flush_handle, self._timer):
            if handle is not None:
                handle.cancel()
        self._work_handle = self._flush_handle = self._timer = None
        if not self._lost.done():
            self._lost.cancel()

    def _fail(self, error: DeviceError) -> None:
        """The device is gone: everybody who waits for it learns why."""
        if self._error is not None:
            return
        self._error = error
        for handle in (self._work_handle, self._flush_handle, self._timer):
            if handle is not None:
                handle.cancel()
        self._work_handle = self._flush_handle = self._timer = None
        for fd in (self._eventfd, self._watched):
            if fd is not None and fd >= 0:
                self._loop.remove_reader(fd)
        self._eventfd, self._watched = -1, None
        gone = ConnectionAbortedError(errno.ECONNABORTED, "the device went away")
        for user in list(self._users):
            user.tcp.closed = True
            user.tcp.error = gone
            user.closed(gone)
        if self.flows is not None:
            self.flows.fail(gone)
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # retrieved: nobody has to wait for it
        if not self._closing and not self._loss_waiters:  # who waits is told by the exception
            log.error("%s", error)

    async def wait_lost(self) -> None:
        """Wait for the device to go away; raises the `DeviceError` that says why."""
        self._loss_waiters += 1
        try:
            await asyncio.shield(self._lost)
        finally:
            self._loss_waiters -= 1

    @property
    def mac(self) -> str:
        """Our MAC address."""
        return format_mac(self._mac)

    # -- the loop --------------------------------------------------------------------------

    def _check_device(self) -> None:
        try:
            self.device.transport.check()
        except DeviceError as error:
            self._fail(error)

    def _was_reset(self) -> None:
        self._fail(DeviceError(f"{self.device.transport.description} was reset while in use."))

    def _interrupt(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        self.queue.stats.interrupts += 1
        if self._work_handle is None:
            self._work()

    def _work(self) -> None:
        """One batch: packets and events in, timers; replies go out after who was woken by them has run."""
        self._work_handle = None
        if self._error is not None:
            return
        try:
            now = time.monotonic()
            self.endpoint.now = now
            self.queue.poll(self._packet, _BATCH)
            self._run_timers(now)
        except DeviceError as error:
            self._fail(error)
            return
        # Not at once: tasks that the batch has woken run before it, and their answers go out together.
        self._work_handle = self._loop.call_soon(self._end_batch)

    def _end_batch(self) -> None:
        """Replies out; then the next batch, if it is there, or wait for an interrupt."""
        self._work_handle = None
        if self._error is not None:
            return
        try:
            self.endpoint.flush(time.monotonic())
            self.queue.flush()
            if self._poll or self.queue.ready:
                self._work_handle = self._loop.call_soon(self._work)
            else:
                self.queue.arm()  # what has come meanwhile interrupts at once
            self._set_timer()
        except DeviceError as error:
            self._fail(error)

    def _packet(self, view: memoryview, items: tuple[int, ...]) -> None:
        if items[_TCP_I] >> _TCP_S & _TCP_M:
            self.endpoint.receive(view, items)
            return
        port = _PORT.of(items)
        if self.on_frame is not None:
            self.on_frame(view, port)
        self.network.receive(view, port, self.endpoint.now)

    def _told(self, frame: bytes, port: int) -> None:
        """A frame that the owner of the device has received, and that may concern us."""
        self.network.receive(memoryview(frame), port, time.monotonic())
        self.schedule_flush()

    def _send_frame(self, frame: bytes, port: int) -> bool:
        return len(frame) <= self.queue.buffer_size and self.queue.send(frame, port=port)

    def _space(self) -> None:
        self.endpoint.unblock()

    def schedule_flush(self) -> None:
        """Send what was written at the end of this turn of the event loop."""
        if self._flush_handle is None and self._work_handle is None and self._error is None and self._opened:
            self._flush_handle = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_handle = None
        if self._error is not None:
            return
        try:
            self.endpoint.flush(time.monotonic())
            self.queue.flush()
            self._set_timer()
        except DeviceError as error:
            self._fail(error)

    def _run_timers(self, now: float) -> None:
        self.endpoint.run_timers(now)
        due = self.network.next_deadline()
        if due is not None and due <= now:
            self.network.run_timers(now)

    def _set_timer(self) -> None:
        deadline = self.endpoint.next_deadline()
        due = self.network.next_deadline()
        if deadline is None or (due is not None and due < deadline):
            if due is None:
                return
            deadline = due
        at = self._loop.time() + max(deadline - time.monotonic(), 0)
        if self._timer is not None:
            if self._timer.when() <= at + 0.0005:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        if self._error is not None:
            return
        try:
            self._run_timers(time.monotonic())
        except DeviceError as error:
            self._fail(error)
        self._flush()

    def connection_opened(self, user: NicUser) -> None:
        """From who has a new connection."""
        self._users.add(user)

    def connection_closed(self, user: NicUser) -> None:
        """From who has nothing more to do with it."""
        self._users.discard(user)

    # -- commands --------------------------------------------------------------------------

    async def command(self, command: bytes, timeout: float = WATCHDOG_S) -> CommandResult:
        """Run a command. Raises `CommandRefusedError` or `DeviceTimeoutError`.

        Those that change the listen table are the owner's to run if the device is shared.
        """
        if self._error is not None:
            raise self._error
        if self.sharing is not None and command[0] in _LISTENING:
            try:
                return self.queue.check_result(command, await self.sharing.run(command, timeout))
            except TimeoutError:
                raise self.queue.command_timeout(command, timeout) from None
        future: asyncio.Future[CommandResult] = self._loop.create_future()

        def done(result: CommandResult) -> None:
            if not future.done():
                future.set_result(result)

        try:
            tag = self.queue.post_command(command, done)
        except DeviceError as error:
            if self._error is None:
                self._check_device()
            raise self._error or error from None
        waiting: set[asyncio.Future[Any]] = {future, self._lost}
        await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return self.queue.check_result(command, future.result())
        self.queue.forget_command(tag)
        if self._error is not None:
            raise self._error
        raise self.queue.command_timeout(command, timeout)

    async def nop(self) -> None:
        """A fence: everything queued before has been read by the NIC."""
        await self.command(COMMAND.pack(opcode=CommandOpcode.NOP))

    # -- listen ----------------------------------------------------------------------------

    async def listen(
        self,
        port: int,
        handler: Handler | None = None,
        *,
        host: str | None = None,
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

        host: one of our addresses; None is all of them, "0.0.0.0" or "::" any at all. setup: the NIC answers the SYNs
        and checks the handshakes, not the host. teardown: the NIC closes the connections. lazy: build a connection's control block only
        when it is needed. (None, for these: as for the `Nic`.) defer_accept: take a connection only when its
        first data come. mss: what is offered (default: what fits the MTU). window, wscale: the first window, and our window shift.

        Raises `OSError` with EADDRINUSE when there is such a listener, ENOBUFS when the NIC's table is full;
        `DeviceError` for an offload that this build of the NIC has not; `ValueError` for a bad argument.
        """
        options = self._listen_options(
            setup, teardown, lazy, defer_accept=defer_accept, ecn=ecn, mss=mss, window=window, wscale=wscale
        )
        check_range("port", port, 1, 65535)
        check_range("backlog", backlog, 1, 1 << 20)
        check_range("max_connections", max_connections, 1, 1 << 20)
        hosts: list[IPAddress] = self.addresses.listenable if host is None else [ipaddress.ip_address(host)]
        if not hosts:
            raise ValueError("the NIC has no address to listen on")
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
        chosen = self._listen_options(setup, teardown, lazy, **options)
        check_range("port", port, 0, 65535)
        check_range("backlog", backlog, 1, 1 << 30)
        check_range("max_connections", max_connections, 1, 1 << 20)
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
            for each in [host] if isinstance(host, (str, ipaddress.IPv4Address, ipaddress.IPv6Address)) else host:
                address = ipaddress.ip_address(each)
                if address.is_unspecified:
                    found += [known for known in own if known.version == address.version]
                elif address.packed in self.addresses:
                    found.append(address)
                else:
                    raise OSError(errno.EADDRNOTAVAIL, f"{address} is no address of this NIC")
        if not found:
            raise OSError(errno.EADDRNOTAVAIL, f"the NIC has no address to listen on for {host!r}")
        return list(dict.fromkeys(found))

    def _listen_options(
        self, setup: bool | None, teardown: bool | None, lazy: bool | None, **options: Any
    ) -> ListenOptions:
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
    ) -> Connection:
        """Open a connection. host: an address or a name, or several addresses of which the first that answers is taken.

        local_addr: from which address of ours (None: as the route says) and port (0: any). timeout: seconds for each
        attempt (None: as many as TCP tries). teardown: the NIC may close it (None: as for the `Nic`).

        Raises `OSError` as sockets do: `ConnectionRefusedError`, `TimeoutError`, EHOSTUNREACH, ENETUNREACH, EADDRINUSE,
        EADDRNOTAVAIL.
        """
        return Connection(self, await self._open_tcp(host, port, local_addr, timeout, teardown, options))

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
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """`loop.create_connection` over the NIC: transport and protocol. Arguments and errors as for `connect`."""
        tls = Tls.wanted(
            ssl, server_side=False, host=host if isinstance(host, str) else "", server_hostname=server_hostname,
            handshake_timeout=ssl_handshake_timeout, shutdown_timeout=ssl_shutdown_timeout,
        )  # fmt: skip
        tcp = await self._open_tcp(host, port, local_addr, timeout, teardown, options)
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
    ) -> TcpConnection:
        if self._error is not None:
            raise self._error
        check_range("port", port, 1, 65535)
        local_host, local_port = local_addr or (None, 0)
        local = ipaddress.ip_address(local_host) if local_host else None
        if local is not None and local.is_unspecified:
            local = None
        return await connect_tcp(
            self, await self._targets(host, port), port, local=local, local_port=local_port, options=options,
            teardown=self._teardown if teardown is None else teardown, timeout=timeout,
        )  # fmt: skip

    async def _targets(self, host: str | IPAddress | Sequence[str | IPAddress], port: int) -> list[IPAddress]:
        if not isinstance(host, str):
            several = [host] if isinstance(host, (ipaddress.IPv4Address, ipaddress.IPv6Address)) else host
            return [ipaddress.ip_address(each) for each in several]
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            infos = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(ipaddress.ip_address(info[4][0]) for info in infos))

    # -- readings --------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, Any]]:
        """Counters of the device, the queue and the stack, each by name."""
        return {"counters": self.device.counters(), **self._own_stats()}

    def _own_stats(self) -> dict[str, dict[str, Any]]:
        return {
            "queue": self.queue.stats.as_dict(),
            "tcp": {**self.endpoint.stats, "open": len(self.endpoint.connections)},
            "flows": self.flows.stats() if self.flows is not None else dict.fromkeys(FLOW_STATS, 0),
            "network": self.network.stats(),
            "listeners": {
                f"{address}:{server.port}": {
                    "accepted": server.accepted,
                    "running": server.connections,
                    "paused": int(server.paused),
                    "pauses": server.pauses,
                }
                for server in self.servers
                for address in server.addresses[:1]
            },
        }

    async def flow_table(self, limit: int = FLOWS_SHOWN) -> dict[str, Any]:
        """What the NIC's connection table holds; see `flow_table.flow_table`."""
        async with self._table_lock:
            return await flow_table(self.device, self._known_flows(), limit)

    def _known_flows(self) -> dict[int, Flow]:
        """By index: flows whose addresses we know, those that have ended lately too."""
        if self.flows is None or self.endpoint.hand_over is None:
            return {}
        return {**self.endpoint.hand_over.ended_flows(), **self.flows.held}


async def _open_in_thread(spec: str) -> Device:
    """Opening may take a while (a simulator compiles); if we are cancelled, nothing is left."""

    def drop(done: asyncio.Future[Device]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().close()

    given_up = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(Device.open, spec, stop=given_up.is_set))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        given_up.set()
        task.add_done_callback(drop)
        raise


_open_nics: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[Nic]] = weakref.WeakKeyDictionary()


def nics_of(loop: asyncio.AbstractEventLoop) -> list[Nic]:
    """NICs that are open in an event loop, in the order in which they were opened."""
    return _open_nics.get(loop, [])


def current_nic() -> Nic:
    """The NIC that is open in the running event loop. Raises `RuntimeError` unless there is exactly one."""
    nics = nics_of(asyncio.get_running_loop())
    if len(nics) != 1:
        raise RuntimeError(f"{len(nics) or 'no'} NICs are open in this event loop: say which with nic=")
    return nics[0]


def open(device: Device | str, addresses: Iterable[str], **options: Any) -> Nic:
    """A NIC for `async with`; see `Nic` for the options."""
    return Nic(device, addresses, **options)
