"""Two connections made one by the NIC, for good or for so many bytes; in software where it cannot.

`splice` lends the connections: while the NIC or the software joins them, their owners must not read or write. With a limit they get
them back; without one the connections are given away, as with `relay`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from acceltcp.abi.messages import SPLICE_LIMIT_MAX, Status
from acceltcp.abi.registers import Feature

from ..checks import check_flag, check_integer, check_number
from ..tcp import TcpConnection
from ..tcp.settings import SECONDS_MAX
from ..tcp.splicing import REFUSALS, Outcome, blamed
from .relay import Detachable, relay

if TYPE_CHECKING:
    from ..nic import Nic
    from ..tcp.flows import Flow

__all__ = ["SpliceResult", "Spliceable", "splice"]

_PIECE = 1 << 18


class Spliceable(Detachable, Protocol):
    """A `Connection` or a `TcpTransport`."""

    @property
    def tcp(self) -> TcpConnection:
        """What it holds."""

    def connected(self) -> None: ...
    def readable(self) -> None: ...
    def writable(self) -> None: ...
    def handed_over(self, flow: Flow) -> None: ...
    def closed(self, error: OSError | None) -> None: ...


@dataclass(frozen=True)
class SpliceResult:
    """What `splice` has done.

    reason: "closed" by both sides, or "limit". client_octets, server_octets: bytes of each one's data that were handed on.
    client_packets, server_packets: packets of each that were sent on, by the NIC or by the host in its place; 0 for what was relayed in software. hardware:
    the NIC did it. refused: why it did not (a key of `acceltcp.host.tcp.splicing.REFUSALS`, or the name of the NIC's status), None if it was
    not asked. host_packets: packets of both connections that the host dealt with meanwhile, where the NIC did it.
    """

    reason: str
    client_octets: int
    server_octets: int
    client_packets: int = 0
    server_packets: int = 0
    hardware: bool = False
    refused: str | None = None
    host_packets: int = 0


async def splice(
    client: Spliceable,
    server: Spliceable,
    limit: int | None = None,
    *,
    idle_timeout: float | None = None,
    hardware: bool | None = None,
) -> SpliceResult:
    """Hand on what comes on each of two connections to the other one, by the NIC if it can.

    Without a limit: until both have closed, an end of data being handed on as one; the connections are given away (`detach`). With a limit:
    until the client has acknowledged so many bytes of the server, counted from what was not read yet; then both connections are as they were,
    with what the client has sent meanwhile, of which nothing is handed on, and what the server has sent beyond the limit.

    idle_timeout: seconds without a packet after which both are reset. hardware: False never asks the NIC, True insists on it.

    Raises `OSError` as `relay` does, with a text that says whether it was the client or the server: when a connection fails, the other one
    is reset, also if it was closed before (ENOTCONN); `ConnectionResetError`, too, when the server ends its data before the limit;
    `TimeoutError` after the idle time-out, with neither in its text. To cancel resets both. With `hardware` True: `DeviceError` when this
    NIC does not splice, `OSError` (EOPNOTSUPP) with the reason when it does not splice these; they are as before then. So they are after
    `ValueError` for a bad argument, and `OSError` (EBUSY) for a connection that is lent or given away already.
    """
    if limit is not None:
        check_integer("limit", limit, 1, 1 << 62)
    if idle_timeout is not None:
        check_number("idle_timeout", idle_timeout, 0, SECONDS_MAX)
        if not idle_timeout:
            raise ValueError("idle_timeout must be more than 0, or None")
    if hardware is not None:
        check_flag("hardware", hardware)
    if client is server or client.tcp is server.tcp:
        raise ValueError("client and server are the same connection: it cannot be spliced with itself")
    _check(client, server, limit)
    nic = client.nic
    if hardware:
        nic.device.require(Feature.SPLICE)
    refused = _refusal(client, server, idle_timeout) if hardware is not False else None
    if hardware is False or refused is not None:
        return await _in_software(client, server, limit, idle_timeout, refused, hardware)
    if limit is None:
        return await _Hardware(client, server, None, idle_timeout).run(hardware)
    # What one SPLICE cannot be limited to takes several.
    done = client_packets = server_packets = host_packets = 0
    spliced = False
    while done < limit:
        refused = _refusal(client, server, idle_timeout)
        part = min(limit - done, SPLICE_LIMIT_MAX)
        if refused is not None:
            result = await _in_software(client, server, limit - done, idle_timeout, refused, hardware)
        else:
            result = await _Hardware(client, server, part, idle_timeout).run(hardware)
        done += result.server_octets
        spliced = spliced or result.hardware
        client_packets += result.client_packets
        server_packets += result.server_packets
        host_packets += result.host_packets
        refused = result.refused
    return SpliceResult("limit", 0, done, client_packets, server_packets, spliced, refused, host_packets)


def _check(client: Spliceable, server: Spliceable, limit: int | None) -> None:
    """Raises `OSError` for what nobody can join. A connection that is over resets the other one, as it would a moment later: the caller
    may not know that it has it still."""
    sides = (("client", client, server), ("server", server, client))
    for name, one, _ in sides:
        if one.tcp.events is not one and not one.tcp.closed:
            raise OSError(errno.EBUSY, f"the {name}'s connection is spliced already, or given away")
    for name, one, other in sides:
        # With a limit, nobody writes to the server, and what it has said may be there already.
        readable = limit is not None and one is server and (one.tcp.receive_buffer or not one.tcp.closed)
        if not readable and (one.is_closing() or one.tcp.fin_queued or one.tcp.closed):
            other.abort()
            raise OSError(errno.ENOTCONN, f"the {name}'s connection is closed, it cannot be spliced")


def _refusal(client: Spliceable, server: Spliceable, idle_timeout: float | None) -> str | None:
    splicing = client.nic.endpoint.splices
    if splicing is None:
        return "no_feature"
    return splicing.refusal(client.tcp, server.tcp, idle_timeout)


async def _in_software(
    client: Spliceable, server: Spliceable, limit: int | None, idle_timeout: float | None, refused: str | None,
    hardware: bool | None,
) -> SpliceResult:  # fmt: skip
    if refused is not None:
        if hardware:
            text = REFUSALS.get(refused, refused)
            raise OSError(errno.EOPNOTSUPP, f"the NIC cannot splice these connections: {text}")
        refusals = client.nic.refused_splices
        refusals[refused] = refusals.get(refused, 0) + 1
    _check(client, server, limit)  # one may have ended while the NIC was asked
    client.nic.software_splices += 1
    try:
        if limit is not None:
            await _until(_Bounded(client.nic, (_Lent(client), _Lent(server)), limit), idle_timeout)
            return SpliceResult("limit", 0, limit, refused=refused)
        one, two = await _relayed(client, server, idle_timeout)
    except OSError as error:
        for who, side in (("client", client), ("server", server)):
            if side.tcp.error is error:
                raise blamed(error, who) from None
        raise
    return SpliceResult("closed", one, two, refused=refused)


async def _relayed(client: Spliceable, server: Spliceable, idle_timeout: float | None) -> tuple[int, int]:
    """As `relay`, with an idle time-out."""
    tcps = client.tcp, server.tcp
    relaying = asyncio.ensure_future(relay(client, server))
    try:
        await _watch(relaying, tcps, idle_timeout)
        return relaying.result()
    finally:
        if not relaying.done():
            relaying.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await relaying


async def _watch(
    future: asyncio.Future[object] | asyncio.Future[tuple[int, int]] | asyncio.Future[None],
    tcps: tuple[TcpConnection, TcpConnection],
    idle_timeout: float | None,
) -> None:
    """Wait for it, however it ends. Raises `TimeoutError` when nothing has come on either connection for so long."""
    since = time.monotonic()
    while not future.done():
        wait = None
        if idle_timeout is not None:
            heard = max(since, *(tcp.last_heard for tcp in tcps))
            wait = heard + idle_timeout - time.monotonic()
            if wait <= 0:
                raise TimeoutError(errno.ETIMEDOUT, f"no packet came for {idle_timeout:g} s")
        await asyncio.wait((future,), timeout=wait)


class _Lent:
    """A connection that its owner has lent: hears what the connection tells, and what the NIC wants of it."""

    join: _Join

    def __init__(self, owner: Spliceable) -> None:
        self.owner = owner
        self.tcp = owner.tcp
        self.tcp.sink = None
        self.tcp.events = self
        owner.nic.connection_closed(owner)
        owner.nic.connection_opened(self)
        self.lent, self.given = True, False

    def give_away(self) -> None:
        """The owner hears nothing more."""
        if not self.owner.is_closing():
            self.owner.detach()
            self.tcp.events = self
            self.given = True

    def give_back(self) -> None:
        """The owner hears of it again, unless it was given away."""
        if self.given:
            self.owner.nic.connection_closed(self)
            return
        if not self.lent:
            return
        self.lent = False
        owner, nic = self.owner, self.owner.nic
        nic.connection_closed(self)
        self.tcp.events = owner
        if self.tcp.closed:
            owner.closed(self.tcp.error)
        else:
            nic.connection_opened(owner)
            owner.readable()
            owner.writable()

    def connected(self) -> None:
        """It was."""

    def readable(self) -> None:
        self.join.moved()

    def writable(self) -> None:
        self.join.moved()

    def handed_over(self, flow: Flow) -> None:
        self.join.lost(self, None)

    def closed(self, error: OSError | None) -> None:
        self.join.lost(self, error)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.tcp.abort()
        self.owner.nic.schedule_flush()


class _Join(Protocol):
    """What joins two connections."""

    def moved(self) -> None:
        """Data came, or were acknowledged."""

    def lost(self, side: _Lent, error: OSError | None) -> None:
        """A connection is over."""


async def _until(join: _Bounded, idle_timeout: float | None) -> None:
    """Wait for the end of a join in software; after an exception both connections are reset."""
    one, two = join.sides
    try:
        join.moved()
        await _watch(join.done, (one.tcp, two.tcp), idle_timeout)
        join.done.result()
    except BaseException:
        join.done.cancel()  # nobody wants to hear of what follows
        for side in join.sides:
            side.abort()
        raise
    finally:
        for side in join.sides:
            side.give_back()


class _Bounded:
    """So many bytes of the server to the client, in software."""

    def __init__(self, nic: Nic, sides: tuple[_Lent, _Lent], limit: int) -> None:
        self.nic, self.sides, self.left = nic, sides, limit
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for side in sides:
            side.join = self

    def moved(self) -> None:
        if self.done.done():
            return
        client, server = self.sides[0].tcp, self.sides[1].tcp
        if self.left and client.fin_queued:  # its owner has closed it
            self.lost(self.sides[0], None)
            return
        while self.left and server.receive_buffer and not client.closed and client.unsent_or_unacked <= client.send_limit:
            data = server.consume(min(_PIECE, self.left))
            client.write(data)
            self.left -= len(data)
        self.nic.schedule_flush()
        if not self.left:
            if not client.unsent_or_unacked:
                self.done.set_result(None)
        elif not server.receive_buffer and (server.fin_received or server.closed):
            self._fail(
                server.error
                or ConnectionResetError(errno.ECONNRESET, f"the server ended its data {self.left} bytes before the limit")
            )

    def lost(self, side: _Lent, error: OSError | None) -> None:
        if side is self.sides[0]:
            self._fail(error or ConnectionAbortedError(errno.ECONNABORTED, "the client's connection was closed"))
        elif self.left:
            self.moved()
            if self.left and error is not None:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class _Hardware:
    """A splice in the NIC. limit: bytes of the server, at most `SPLICE_LIMIT_MAX`; None: until both have closed."""

    def __init__(self, client: Spliceable, server: Spliceable, limit: int | None, idle_timeout: float | None) -> None:
        self.nic: Nic = client.nic
        self.limit, self.idle_timeout = limit, idle_timeout
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self.owners = client, server
        self.sides = _Lent(client), _Lent(server)
        for side in self.sides:
            side.join = self
        self.refusal: str | None = None
        self.outcome: Outcome | None = None
        self._handed = [0, 0]
        """Bytes of each that had been received before."""

    async def run(self, hardware: bool | None) -> SpliceResult:
        """Until it is over; in software when the NIC refuses."""
        self._hand_on()
        left = None if self.limit is None else self.limit - self._handed[1]
        client, server = self.owners
        if left == 0:
            # All had come already.
            await _until(_Bounded(self.nic, self.sides, 0), self.idle_timeout)
            return SpliceResult("limit", 0, self._handed[1])
        splicing = self.nic.endpoint.splices
        assert splicing is not None
        one, two = self.sides
        reason = splicing.begin(one.tcp, two.tcp, left, self.idle_timeout, self)
        if reason is not None:
            self.refused(reason)
        self.nic.schedule_flush()
        try:
            await asyncio.shield(self.done)
        except asyncio.CancelledError:
            for side in self.sides:
                side.abort()
            raise
        refused, outcome = self.refusal, self.outcome
        if refused is not None:
            result = await _in_software(client, server, left, self.idle_timeout, refused, hardware)
            return SpliceResult(
                result.reason, result.client_octets + self._handed[0], result.server_octets + self._handed[1], refused=refused
            )
        assert outcome is not None
        if outcome.error is not None:
            raise outcome.error
        octets = [before + after for before, after in zip(self._handed, outcome.octets, strict=True)]
        return SpliceResult(
            "limit" if outcome.status is Status.LIMIT else "closed", octets[0], octets[1], *outcome.packets, True, None,
            outcome.host_packets,
        )  # fmt: skip

    def _hand_on(self) -> None:
        """What has been received already goes on in software. With a limit, only of the server, and no more than that."""
        client, server = self.sides[0].tcp, self.sides[1].tcp
        for number, source, sink in ((0, client, server), (1, server, client)):
            if number == 0 and self.limit is not None:
                continue
            while source.receive_buffer:
                left = _PIECE if self.limit is None else min(_PIECE, self.limit - self._handed[number])
                data = source.consume(left)
                if not data:
                    break
                sink.write(data)
                self._handed[number] += len(data)

    # -- from the connections --------------------------------------------------------------

    def moved(self) -> None:
        """It is the NIC's business."""

    def lost(self, side: _Lent, error: OSError | None) -> None:
        """`ended` follows; unless the device is lost, of which `ended` hears too."""

    # -- from the splice -------------------------------------------------------------------

    def spliced(self) -> None:
        """The NIC has the connections."""
        if self.limit is None:
            for side in self.sides:
                side.give_away()

    def refused(self, reason: str) -> None:
        self.refusal = reason
        self._finish()

    def ended(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._finish()

    def _finish(self) -> None:
        for side in self.sides:
            side.give_back()
        if not self.done.done():
            self.done.set_result(None)
        self.nic.schedule_flush()
