"""Two connections made one in software: what splicing in the NIC falls back to, and its baseline."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Protocol

from ..tcp import TcpConnection

if TYPE_CHECKING:
    from ..nic import Nic
    from ..tcp.flows import Flow

__all__ = ["Detachable", "relay"]

_PIECE = 1 << 18


class Detachable(Protocol):
    """A `Connection` or a `TcpTransport`."""

    @property
    def nic(self) -> Nic:
        """The NIC that has the connection."""

    def detach(self) -> TcpConnection:
        """Give it away."""

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""

    def abort(self) -> None:
        """Reset it."""


class _Side:
    """One of the two connections: hands on what it receives, and takes what the other one does."""

    def __init__(
        self, nic: Nic, tcp: TcpConnection, done: asyncio.Future[None], errors: list[OSError]
    ) -> None:
        self._nic = nic
        self.tcp = tcp
        self._done = done
        self._errors = errors
        """Of both sides, the cause first."""
        self.other: _Side
        self.received = 0
        self._ended = False
        """Its data have ended and were all handed on."""
        self._stopped = False
        """The other one takes no more for now."""
        self.over = False

    def start(self) -> None:
        """Live from now on."""
        self.tcp.events = self
        self._nic.connection_opened(self)
        if self.tcp.closed and not self.tcp.receive_buffer:
            self.closed(self.tcp.error)

    # -- from the connection ---------------------------------------------------------------

    def connected(self) -> None:
        """It was."""

    def _view(self, view: memoryview) -> None:
        self.received += len(view)
        other = self.other.tcp
        if other.closed or other.fin_queued:
            return
        other.write(view)
        if other.unsent_or_unacked > other.send_limit:
            self._stopped = True
            self.tcp.sink = None
        self.other._flush()

    def readable(self) -> None:
        """Data wait, or have ended."""
        tcp, other = self.tcp, self.other.tcp
        while not self._stopped and tcp.receive_buffer:
            data = tcp.consume(_PIECE)
            self.received += len(data)
            if not (other.closed or other.fin_queued):
                other.write(data)
                self._stopped = other.unsent_or_unacked > other.send_limit
        if not self._stopped and not tcp.receive_buffer:
            if tcp.fin_received:
                self._end_of_data()
            elif not tcp.closed:
                tcp.sink = self._view
        self._flush()
        self.other._flush()

    def _end_of_data(self) -> None:
        if self._ended:
            return
        self._ended = True
        self.other.tcp.shutdown()
        if self.other._ended:
            # Nothing will come on either: now the NIC may have both.
            self.tcp.close()
            self.other.tcp.close()

    def writable(self) -> None:
        """The peer has taken some: the other side may go on."""
        if self.other._stopped and self.tcp.unsent_or_unacked <= self.tcp.send_limit // 4:
            self.other._stopped = False
            self.other.readable()

    def handed_over(self, flow: Flow) -> None:
        """The NIC closes it."""
        self.closed(None)

    def closed(self, error: OSError | None) -> None:
        """It is over: in order, or the other one is reset too."""
        if self.over:
            return
        self.over = True
        self._nic.connection_closed(self)
        if error is not None:
            self._errors.append(error)
            if not self.other.over:
                self.other.abort()
        if self.other.over and not self._done.done():
            self._done.set_result(None)

    # -- from the NIC ----------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether it ends without being told to."""
        return self.tcp.fin_queued and self._ended

    def abort(self) -> None:
        """Reset it."""
        self.tcp.abort()
        self._flush()

    def _flush(self) -> None:
        self._nic.schedule_flush()


async def relay(first: Detachable, second: Detachable) -> tuple[int, int]:
    """Hand on what comes on each connection to the other, with back-pressure, until both have closed; the numbers of
    bytes that came on the first and on the second. Both are detached: their owners hear nothing more.

    An end of data is handed on as one. A connection that fails resets the other, and its `OSError` is raised; so does one that
    was closed before (ENOTCONN). To cancel resets both.
    """
    for mine, theirs in ((first, second), (second, first)):
        if mine.is_closing():
            theirs.abort()
            raise OSError(errno.ENOTCONN, "one of the connections is closed, nothing can be relayed")
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    errors: list[OSError] = []
    sides = (_Side(first.nic, first.detach(), done, errors), _Side(second.nic, second.detach(), done, errors))
    one, two = sides
    one.other, two.other = two, one
    for side in sides:
        side.start()
    for side in sides:
        side.readable()
    try:
        await done
    except asyncio.CancelledError:
        for side in sides:
            if not side.over:
                side.abort()
        raise
    if errors:
        raise errors[0]
    return one.received, two.received
