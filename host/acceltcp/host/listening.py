"""Listening ports: entries in the NIC's listen table or, without its setup, listeners of the host."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, ListenFlag, Status
from acceltcp.abi.wire import IPV4, IPV6, TCP, WSCALE_MAX

from .checks import IPAddress, check_flag, check_integer
from .errors import CommandRefusedError, DeviceError
from .tcp import Listener, TcpConnection

if TYPE_CHECKING:
    from .nic import Nic

__all__ = ["IPAddress", "ListenOptions", "ListeningPort"]

log = logging.getLogger("acceltcp")

_PORT_TRIES = 64


@dataclass(frozen=True)
class ListenOptions:
    """How a port listens; see `Nic.listen`. Raises `ValueError` naming what cannot be."""

    setup: bool
    teardown: bool
    lazy: bool = True
    defer_accept: bool = False
    ecn: bool = False
    mss: int | None = None
    window: int = 65535
    wscale: int = 7

    def __post_init__(self) -> None:
        for name in ("setup", "teardown", "lazy", "defer_accept", "ecn"):
            check_flag(name, getattr(self, name))
        if self.mss is not None:
            check_integer("mss", self.mss, 64, 65535)
        check_integer("window", self.window, 1, 65535)
        check_integer("wscale", self.wscale, 0, WSCALE_MAX)
        if self.defer_accept and not self.setup:
            raise ValueError("only the NIC can defer connections until their first data: defer_accept needs setup")


class ListeningPort:
    """A port at some of our addresses. accept: takes each new connection, or says no. changed: called
    after the port was paused or goes on, so that the user may change its mind.

    Pausing means that no SYN is answered; cookies given out before may still come.
    """

    def __init__(self, nic: Nic, accept: Callable[[TcpConnection], bool], changed: Callable[[], None]) -> None:
        self._nic = nic
        self._accept = accept
        self._changed = changed
        self._entries: dict[int, bytes] = {}
        """Index in the NIC's listen table -> the command that made the entry."""
        self._bound: dict[bytes, Listener] = {}
        """Address -> listener of the host."""
        self._updating: asyncio.Task[None] | None = None
        self._closed = False
        self.port = 0
        self.addresses: list[IPAddress] = []
        self.paused = False
        self.pauses = 0

    async def open(self, hosts: list[IPAddress], port: int, options: ListenOptions) -> None:
        """Listen; port 0 is any that is free. After an exception nothing is left: see `Nic.listen` for which."""
        if not port and self._nic.sharing is not None:
            raise ValueError("port must be from 1 to 65535 in a worker, not 0: each worker would choose another one")
        first, last = self._nic.endpoint.settings.ports
        for tried in range(_PORT_TRIES if not port else 1):
            try:
                await self._open(hosts, port or random.randint(first, last), options)
                return
            except OSError as error:
                if port or error.errno != errno.EADDRINUSE or tried == _PORT_TRIES - 1:
                    raise

    async def _open(self, hosts: list[IPAddress], port: int, options: ListenOptions) -> None:
        self.port = port
        try:
            for address in hosts:
                if options.setup:
                    await self._open_in_nic(address, options)
                else:
                    self._open_in_host(address, options)
        except BaseException:
            await self._remove()
            raise

    async def _open_in_nic(self, address: IPAddress, options: ListenOptions) -> None:
        nic = self._nic
        command = self._command(address, options)
        try:
            result = await nic.command(command)
        except CommandRefusedError as error:
            raise _listen_error(error, address, self.port) from None
        nic.endpoint.listeners[result.value] = self._listener(options)
        self._entries[result.value] = command
        self.addresses.append(address)

    def _open_in_host(self, address: IPAddress, options: ListenOptions) -> None:
        packed = b"" if address.is_unspecified else address.packed
        listener = self._listener(options)
        try:
            self._nic.endpoint.listen(self.port, listener, packed)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise _in_use(address, self.port) from None
        self._bound[packed] = listener
        self.addresses.append(address)

    def _listener(self, options: ListenOptions) -> Listener:
        return Listener(
            self._accept, options.window, options.wscale, options.teardown, lazy=options.lazy, mss=options.mss or 0
        )

    def _command(self, address: IPAddress, options: ListenOptions) -> bytes:
        flags = (ListenFlag.DEFER_ACCEPT if options.defer_accept else 0) | (ListenFlag.ECN if options.ecn else 0)
        if address.version == 6:
            flags |= ListenFlag.IPV6
        if address.is_unspecified:
            flags |= ListenFlag.ANY_ADDRESS
        if self._nic.sharing is not None:
            flags |= ListenFlag.SPREAD
        header = (IPV6 if address.version == 6 else IPV4).size + TCP.size
        return LISTEN_COMMAND.pack(
            opcode=CommandOpcode.LISTEN,
            # The first byte of the address lies first in memory; IPv4 in the last four.
            address=int.from_bytes(address.packed.rjust(16, b"\0"), "little"),
            port=self.port,
            flags=flags,
            queue=self._nic.queue.index,
            mss=options.mss if options.mss is not None else min(self._nic.mtu - header, 65535),
            window=options.window,
            wscale=options.wscale,
        )

    # -- pause -----------------------------------------------------------------------------

    def pause(self, paused: bool) -> None:
        """Pause, or go on; one change at a time, `changed` is called after it."""
        if paused != self.paused and self._updating is None and not self._closed:
            self._updating = asyncio.get_running_loop().create_task(self._update(paused))

    async def _update(self, paused: bool) -> None:
        try:
            for listener in self._bound.values():
                listener.paused = paused
            for command in self._entries.values():
                fields = LISTEN_COMMAND.unpack(command)
                flags = fields["flags"] & ~ListenFlag.PAUSED | (ListenFlag.PAUSED if paused else 0)
                fields.update(opcode=CommandOpcode.LISTEN_UPDATE, flags=flags)
                await self._nic.command(LISTEN_COMMAND.pack(**fields))
            self.paused = paused
            self.pauses += paused
        except DeviceError as error:
            log.error("%s", error)
        finally:
            self._updating = None
        if not self._closed:
            self._changed()

    # -- end -------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take nothing more, from now on; `close` tells the NIC."""
        self._closed = True

    async def close(self) -> None:
        """Listen no more."""
        self._closed = True
        if self._updating is not None:
            await asyncio.gather(self._updating, return_exceptions=True)
        await self._remove()

    async def _remove(self) -> None:
        for packed in self._bound:
            self._nic.endpoint.unlisten(self.port, packed)
        self._bound.clear()
        self.addresses = []
        entries, self._entries = self._entries, {}
        for index, command in entries.items():
            fields = LISTEN_COMMAND.unpack(command)
            fields["opcode"] = CommandOpcode.UNLISTEN
            with contextlib.suppress(DeviceError):
                await self._nic.command(LISTEN_COMMAND.pack(**fields))
            self._nic.endpoint.listeners.pop(index, None)


def _listen_error(error: CommandRefusedError, address: IPAddress, port: int) -> Exception:
    if error.status == Status.DUPLICATE:
        return _in_use(address, port)
    where = f"{address} port {port}"
    if error.status == Status.TABLE_FULL:
        return OSError(errno.ENOBUFS, f"the NIC's listen table has no room for {where}")
    if error.status == Status.BAD_ARGUMENT:
        return ValueError(f"the NIC does not accept the listener on {where}")
    return error


def _in_use(address: IPAddress, port: int) -> OSError:
    return OSError(errno.EADDRINUSE, f"there is already a listener on {address} port {port}")
