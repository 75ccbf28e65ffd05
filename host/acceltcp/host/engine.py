"""What drives a NIC from an asyncio event loop: opening, batches, timers, commands, the end.

All work happens in the event loop: an interrupt (an eventfd) wakes it, a batch of packets is dealt with, timers run,
replies go out, and the interrupt is armed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, Self

from acceltcp.abi.messages import COMMAND, CommandOpcode
from acceltcp.abi.registers import Feature

from .aio.server import TransportServer
from .checks import check_flag, check_integer, check_is, check_names, check_number
from .device import WATCHDOG_S, Device, format_mac, parse_mac, random_mac
from .errors import DeviceError
from .frames import FRAME_MEMORY_BYTES, FramePool
from .listening import IPAddress
from .net import Addresses, Network
from .queue import CommandResult, Queue
from .rings import RX_PACKING
from .server import Server
from .sharing import Sharing
from .tcp import TcpConnection, TcpEndpoint, TcpSettings
from .tcp.flows import FLOW_STATS, Flows
from .tcp.handover import HandOver
from .tcp.settings import SECONDS_MAX
from .tcp.splices import SPLICE_STATS, Splices
from .tcp.splicing import Splicing

__all__ = ["Engine", "NicUser", "engines_of"]

log = logging.getLogger("acceltcp")

_BATCH = 64
_ABORT_S = 1.0
"""How long the NIC may take to let go of the flows that `close` aborts."""
_CHALLENGE_S = 0.25
"""How long a peer that misses data may take to ask whether a reset was meant (RFC 5961 section 3.2)."""
_LINK_OVERHEAD = 22
"""Ethernet header and VLAN tags around a packet of MTU size."""
_TCP_I, _TCP_S, _TCP_M = RX_PACKING["tcp"]
_LISTENING = frozenset((CommandOpcode.LISTEN, CommandOpcode.UNLISTEN, CommandOpcode.LISTEN_UPDATE))
_PORT = RX_PACKING["port"]
_QUEUE_OPTIONS = [
    name for name, one in inspect.signature(Queue).parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY
]


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


class Engine:
    """The part of `Nic` that nobody calls but `start`, `close`, `command`, `stats`: see there for the arguments."""

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
        check_integer("mtu", mtu, 1280, 65535 - _LINK_OVERHEAD)
        for flag, value in (
            ("poll", poll), ("announce", announce), ("promiscuous", promiscuous), ("setup", setup), ("teardown", teardown),
        ):  # fmt: skip
            check_flag(flag, value)
        check_number("linger", linger, 0, SECONDS_MAX)
        check_integer("frame_memory", frame_memory, 0, 1 << 40)
        check_integer("queue_index", queue_index, 0, 0xFFFF)
        if mac is not None:
            check_is("mac", mac, str)
        if tcp is not None:
            check_is("tcp", tcp, TcpSettings)
        if queue is not None:
            check_is("queue", queue, dict)
            check_names("queue", queue, _QUEUE_OPTIONS)
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
        self.on_open: Callable[[Device], None] | None = None
        """Gets the device before it is configured; what it raises ends the start."""
        self.flows: Flows | None = None
        """Connections that the NIC closes; None when this build of it cannot."""
        self.splices: Splices | None = None
        """Connections whose packets the NIC forwards to each other; None when this build of it cannot."""
        self.software_splices = 0
        """Connections that `splice` has joined in software."""
        self.refused_splices: dict[str, int] = {}
        """Of them, why the NIC did not (`splicing.REFUSALS`)."""
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

    async def __aenter__(self) -> Self:
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
        _open_engines.setdefault(self._loop, []).append(self)
        self._work()

    def _configure(self) -> None:
        device = self.device
        if self.on_open is not None:
            self.on_open(device)
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
        if Feature.SPLICE in self.device.identity.features:
            self.splices = Splices(self.queue, pool, step=self.device.flow_step_s())
            if self.sharing is None:
                self.device.registers.SPLICE.linger.write(units=self.splices.linger_units(settings.linger))
            self.endpoint.splices = Splicing(self.endpoint, self.splices)

    async def close(self) -> None:
        """Close servers, let connections that are closing finish for a moment, and reset the others, whatever they have unsent or unread."""
        if self._closing or not self._opened:
            return
        self._closing = True
        _open_engines[self._loop].remove(self)
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
                    if self._open_in_nic and self.sharing is None:
                        self.device.reset()  # the only way left to have our memory back
                    self.queue.stop()
                    if self.flows is not None:
                        self.flows.pool.close()
            self.device.on_reset.remove(self._was_reset)
            self.device.close()

    async def _wind_down(self) -> None:
        asked_until = self._abort([user for user in self._users if not user.is_closing()])
        deadline = time.monotonic() + self._linger
        while (self._users or self._open_in_nic) and time.monotonic() < deadline and self._error is None:
            await asyncio.sleep(0.01)
        asked_until = max(asked_until, self._abort(list(self._users)))
        if self.endpoint.hand_over is not None:
            self.endpoint.hand_over.abort_all()
        if self.endpoint.splices is not None:
            self.endpoint.splices.abort_all()
        self._flush()
        await asyncio.sleep(0)
        while time.monotonic() < asked_until and self._error is None:
            await asyncio.sleep(0.01)
        deadline = time.monotonic() + _ABORT_S
        while self._open_in_nic and time.monotonic() < deadline and self._error is None:
            await asyncio.sleep(0.002)

    @staticmethod
    def _abort(users: list[NicUser]) -> float:
        """Reset connections. Until then one of their peers, which lacks what was before the reset, may ask for another; 0: none will."""
        in_flight = False
        for user in users:
            tcp = user.tcp
            in_flight = in_flight or (not tcp.closed and tcp.snd_una != tcp.snd_nxt)
            user.abort()
        return time.monotonic() + _CHALLENGE_S if in_flight else 0.0

    @property
    def _open_in_nic(self) -> int:
        """What the NIC has of connections: flows and splices."""
        flows = self.flows.open if self.flows is not None else 0
        return flows + (self.splices.open if self.splices is not None else 0)

    def _let_go(self) -> None:
        """Nothing wakes us any more."""
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

    def _stop_loop(self) -> None:
        self._let_go()
        if not self._lost.done():
            self._lost.cancel()

    def _fail(self, error: DeviceError) -> None:
        """The device is gone: everybody who waits for it learns why."""
        if self._error is not None:
            return
        self._error = error
        self._let_go()
        gone = ConnectionAbortedError(errno.ECONNABORTED, "the device went away")
        for user in list(self._users):
            user.tcp.closed = True
            user.tcp.error = gone
            user.closed(gone)
        if self.flows is not None:
            self.flows.fail(gone)
        if self.splices is not None:
            self.splices.fail()
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

    async def wait_for(self, event: asyncio.Event) -> None:
        """Wait until an event is set. Raises the `DeviceError` that says why when the device goes away before."""
        happened = asyncio.ensure_future(event.wait())
        lost = asyncio.ensure_future(self.wait_lost())
        try:
            await asyncio.wait((happened, lost), return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                lost.result()
        finally:
            happened.cancel()
            lost.cancel()

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

    # -- readings --------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, Any]]:
        """Counters of the device, the queue and the stack, each by name.

        Reading those of the device blocks the event loop until they have come: microseconds on a card, 0.1 s on the simulator.
        """
        return {"counters": self.device.counters(), **self._own_stats()}

    def _own_stats(self) -> dict[str, dict[str, Any]]:
        return {
            "queue": self.queue.stats.as_dict(),
            "tcp": {**self.endpoint.stats, "open": len(self.endpoint.connections)},
            "flows": self.flows.stats() if self.flows is not None else dict.fromkeys(FLOW_STATS, 0),
            "splice": {
                **(self.splices.stats() if self.splices is not None else dict.fromkeys(SPLICE_STATS, 0)),
                "software": self.software_splices,
                "refused": dict(self.refused_splices),
            },
            "network": self.network.stats(),
            "listeners": {
                ", ".join(_place(address, server.port) for address in server.addresses): {
                    "accepted": server.accepted,
                    "running": server.connections,
                    "paused": int(server.paused),
                    "pauses": server.pauses,
                }
                for server in self.servers
                if server.addresses
            },
        }


def _place(address: IPAddress, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


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


_open_engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[Engine]] = weakref.WeakKeyDictionary()


def engines_of(loop: asyncio.AbstractEventLoop) -> list[Engine]:
    """What is open in an event loop, in the order in which it was opened."""
    return _open_engines.get(loop, [])
