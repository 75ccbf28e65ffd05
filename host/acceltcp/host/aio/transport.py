"""`asyncio.Transport` over a connection of the NIC, so that asyncio's protocols run on it.

Callbacks come as asyncio documents: `connection_made`, then data, then `eof_received` at most once, then
`connection_lost` exactly once; all in the event loop's thread. As on a kernel's socket, a transport that was
closed is done once what it wrote fits the send buffer: TCP (or the NIC) delivers that afterwards, and nobody
hears of its fate. `pause_writing` counts what lies above the send buffer (`SO_SNDBUF`).

Received data reach a `Protocol` as `bytes` (one copy from the ring), a `BufferedProtocol` in its buffer (one
copy), and a `ViewProtocol` as a view of the ring itself (none).
"""

from __future__ import annotations

import asyncio
import asyncio.constants
import asyncio.transports
import errno
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..holder import TcpHolder
from ..tcp import TcpConnection
from ..tcp.settings import DEFAULT_OPTIONS, ConnectionOptions, SharedOptions
from .sockets import NicSocket, socket_address

if TYPE_CHECKING:
    from ..nic import Nic
    from ..tcp.flows import Flow
    from .server import TransportServer

__all__ = ["TcpTransport", "ViewProtocol"]

log = logging.getLogger("acceltcp")

_PIECE = 1 << 18
"""Bytes that a protocol gets at once at most, when data had to wait for it."""
_TOLD = asyncio.constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
"""Writes after the end that pass in silence."""


def _transport_options() -> SharedOptions:
    options = ConnectionOptions()
    options.nodelay = True
    return SharedOptions(options)


_OPTIONS = _transport_options()
"""Of all transports until somebody sets one: as asyncio has it for sockets."""


class ViewProtocol(asyncio.BaseProtocol):
    """A protocol that takes data without a copy: what it is given is a part of the receive ring."""

    def view_received(self, view: memoryview) -> None:
        """Data came in. The view is dead when this returns: copy what is needed later."""

    def eof_received(self) -> bool | None:
        """The peer has ended its data. If the result is false the transport closes itself."""
        return None


class TcpTransport(TcpHolder, asyncio.transports._FlowControlMixin, asyncio.Transport):
    """Made by `Nic.create_server` and `Nic.create_connection`.

    server: whose connection it is. `begin` makes it live.
    """

    if TYPE_CHECKING:  # of the mixin, which is not documented; `loop.sendfile` asks for it
        _loop: asyncio.AbstractEventLoop
        _protocol_paused: bool
        _high_water: int
        _low_water: int

        def _maybe_pause_protocol(self) -> None: ...
        def _maybe_resume_protocol(self) -> None: ...

    _start_tls_compatible = True
    _sendfile_compatible = asyncio.constants._SendfileMode.FALLBACK

    # What is so in the beginning, and for most until the end, costs a connection nothing here.
    _closing = False
    _eof_written = False
    _eof_told = False
    _paused = True
    """No data are delivered now; by the user's wish, or since it has not begun."""
    _held = False
    """The user paused reading."""
    _begun = False
    _draining = False
    """`_drain` will be called, or is at work: data have to queue behind what it delivers."""
    _lost = 0
    """1 when the call of connection_lost is scheduled; then it counts writes in vain."""
    _done = False
    _detached = False
    _late_error: OSError | None = None
    """The peer's reset, while data that came before it have not been delivered."""
    _socket: NicSocket | None = None
    _protocol: Any = None
    flow: Flow | None = None
    """What became of the connection in the NIC, once that had taken it over to close it."""

    def __init__(
        self,
        nic: Nic,
        tcp: TcpConnection,
        protocol: asyncio.BaseProtocol,
        *,
        loop: asyncio.AbstractEventLoop,
        server: TransportServer | None = None,
    ) -> None:
        super().__init__(None, loop)
        self._nic = nic
        self._tcp = tcp
        self._server = server
        self._choose(protocol)
        if tcp.opts is DEFAULT_OPTIONS:
            tcp.opts = _OPTIONS
        tcp.events = self
        nic.connection_opened(self)

    def begin(self) -> None:
        """Tell the protocol that there is a connection, and deliver."""
        self._begun = True
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.connection_made() call failed.")
            return
        if not self._held:
            self._paused = False
            self._go_on()

    # -- protocol --------------------------------------------------------------------------

    def _choose(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        if hasattr(protocol, "view_received"):
            self._give: Callable[[Any], None] = self._give_view
        elif isinstance(protocol, asyncio.BufferedProtocol):
            self._give = self._give_buffer
        else:
            self._give = self._give_bytes

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._choose(protocol)
        if self._tcp.sink is not None:
            self._tcp.sink = self._give

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    # -- data in ---------------------------------------------------------------------------

    def _give_view(self, view: memoryview) -> None:
        try:
            self._protocol.view_received(view)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.view_received() call failed.")

    def _give_bytes(self, view: memoryview | bytes) -> None:
        try:
            self._protocol.data_received(bytes(view))  # what has waited is `bytes` already, and not copied
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.data_received() call failed.")

    def _give_buffer(self, view: memoryview) -> None:
        """Into the protocol's buffers, as many as it takes; it may pause, close or change between them."""
        at, length = 0, len(view)
        while at < length:
            protocol = self._protocol
            try:
                buffer = protocol.get_buffer(length - at)
                room = len(buffer)
                if not room:
                    raise RuntimeError("get_buffer() returned an empty buffer")
                count = min(room, length - at)
                buffer[:count] = view[at : at + count]
                protocol.buffer_updated(count)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal_error(error, "Fatal error: protocol.buffer_updated() call failed.")
                return
            at += count
            if self._closing or self._lost or self._detached:
                return
            if at < length and (self._paused or self._protocol is not protocol):
                self._keep(view[at:])
                return

    def _keep(self, rest: memoryview) -> None:
        """What the protocol does not want now: it queues in front of what comes next."""
        self._tcp.sink = None
        self._tcp.deliver(rest)

    def _go_on(self) -> None:
        """Let data through: what waits first, then as they come."""
        tcp = self._tcp
        if tcp.receive_buffer or tcp.fin_received or self._late_error is not None:
            if not self._draining:
                self._draining = True
                self._loop.call_soon(self._drain)
        elif not self._draining:
            tcp.sink = self._give

    def _drain(self) -> None:
        """Deliver what has waited, then the end if that has come."""
        self._draining = False
        tcp = self._tcp
        if self._detached:
            return
        took = False
        while tcp.receive_buffer and not (self._paused or self._closing or self._lost):
            took = True
            self._draining = True
            try:
                self._give_waiting()
            finally:
                self._draining = False
            if self._detached:
                return
        if took:
            self._nic.schedule_flush()
        if self._paused or self._closing or self._lost:
            return
        if tcp.receive_buffer:
            self._go_on()
            return
        if self._late_error is not None:
            self._lose(self._late_error)
        elif tcp.fin_received:
            self._end_of_data()
        else:
            tcp.sink = self._give

    def _give_waiting(self) -> None:
        """Deliver a piece of the receive buffer, no more than the protocol takes at once."""
        tcp = self._tcp
        if not isinstance(self._protocol, asyncio.BufferedProtocol):
            data = tcp.consume(_PIECE)
            self._give(data if self._give == self._give_bytes else memoryview(data))
            return
        try:
            buffer: Any = self._protocol.get_buffer(tcp.buffered)
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
            data = tcp.consume(len(buffer))
            buffer[: len(data)] = data
            self._protocol.buffer_updated(len(data))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.buffer_updated() call failed.")

    def _end_of_data(self) -> None:
        if self._eof_told:
            return
        self._eof_told = True
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    def is_reading(self) -> bool:
        return not self._closing and not (self._paused if self._begun and not self._lost else self._held)

    def pause_reading(self) -> None:
        """No data come until `resume_reading`; the window closes once the receive buffer is full."""
        self._held = True
        if not self._closing:
            self._paused = True
            self._tcp.sink = None

    def resume_reading(self) -> None:
        self._held = False
        if self._begun and self._paused and not self._closing and not self._detached:
            self._paused = False
            self._go_on()

    # -- data out --------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data:
            return
        tcp = self._tcp
        if self._lost or self._closing or self._detached or tcp.closed:
            self._write_in_vain()
            return
        tcp.write(data)
        self._nic.schedule_flush()
        if not self._protocol_paused and self.get_write_buffer_size() > self._high_water:
            self._maybe_pause_protocol()

    def _write_in_vain(self) -> None:
        if self._late_error is not None:
            self._lose(self._late_error)
        if self._lost >= _TOLD:
            log.warning("%r: data written after the end of the connection", self)
        self._lost += self._lost > 0

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def write_eof(self) -> None:
        if self._closing or self._eof_written:
            return
        self._eof_written = True
        self._tcp.shutdown()
        self._nic.schedule_flush()

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        """Bytes that do not fit the send buffer of the connection (`SO_SNDBUF`)."""
        tcp = self._tcp
        return max(tcp.unsent_or_unacked - tcp.send_limit, 0)

    # -- what the TCP tells ----------------------------------------------------------------

    def connected(self) -> None:
        """From the connection; here that is known by other ways."""

    def readable(self) -> None:
        """From the connection: data wait in its buffer, or have ended."""
        if not (self._paused or self._closing or self._lost or self._draining):
            self._drain()

    def writable(self) -> None:
        """From the connection: the peer has acknowledged something."""
        if self._protocol_paused or self._closing:
            size = self.get_write_buffer_size()
            if self._protocol_paused and size <= self._low_water:
                self._maybe_resume_protocol()
            if self._closing and not size:
                self._lose(None)

    def handed_over(self, flow: Flow) -> None:
        """From the connection: the NIC closes it."""
        self.flow = flow
        self._nic.connection_closed(self)
        self._lose(None)

    def closed(self, error: OSError | None) -> None:
        """From the connection: it is over."""
        self._nic.connection_closed(self)
        if error is None:
            if self._closing:
                self._lose(None)
        elif self._paused and self._begun and self._tcp.receive_buffer and not self._protocol_paused and not self._closing:
            self._late_error = error
        else:
            if not self._paused and not self._closing and self._begun:
                self._drain()
            self._lose(error)

    # -- end -------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Read no more; `connection_lost` comes once what was written fits the send buffer."""
        if self._closing or self._detached:
            return
        self._closing = True
        tcp = self._tcp
        tcp.sink = None
        # Before the connection ends, what it has to send is counted: it may abort because of `linger`.
        waiting = self.get_write_buffer_size() and not tcp.closed
        tcp.close()
        self._nic.schedule_flush()
        if not waiting:
            self._lose(None)

    def abort(self) -> None:
        """Reset the connection; `connection_lost(None)` follows."""
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        """Reset the connection; asyncio's TLS calls this, too."""
        if self._detached or self._done:
            return
        self._closing = True
        tcp = self._tcp
        tcp.sink = None
        self._lose(error)
        tcp.abort()
        self._nic.schedule_flush()

    def _fatal_error(self, error: BaseException, message: str) -> None:
        if not isinstance(error, OSError):
            self._loop.call_exception_handler(
                {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
            )
        self._force_close(error)

    def _lose(self, error: BaseException | None) -> None:
        """`connection_lost` shall be called, if it was not yet."""
        if self._lost or self._detached:
            return
        self._lost = 1
        self._closing = True
        self._tcp.sink = None
        self._loop.call_soon(self._call_connection_lost, error)

    def _call_connection_lost(self, error: BaseException | None) -> None:
        if self._detached:
            return
        try:
            if self._begun:
                self._protocol.connection_lost(error)
        finally:
            self._done = True
            self._leave_server()

    def _leave_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.left(self)

    def detach(self) -> TcpConnection:
        """Give the connection away, with all that has not been delivered; the protocol hears nothing more,
        not even `connection_lost`. Raises `OSError` when it is closing or over."""
        if self._closing or self._lost or self._detached:
            raise OSError(errno.ENOTCONN, "the transport is closed, nothing is left to detach")
        self._detached = True
        tcp = self._tcp
        tcp.sink = None
        tcp.events = None
        self._nic.connection_closed(self)
        self._closing = True
        self._leave_server()
        return tcp

    # -- about -----------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """'peername', 'sockname' as sockets have them; 'socket' takes socket options by their usual names;
        'tcp' is the connection, 'nic' the NIC, 'flow' what the NIC knows of its end."""
        if name == "socket":
            if self._socket is None:
                self._socket = NicSocket(self._tcp)
            return self._socket
        if name == "peername":
            return socket_address(self._tcp.key, ours=False)
        if name == "sockname":
            return socket_address(self._tcp.key, ours=True)
        if name in ("tcp", "nic", "flow"):
            return getattr(self, name)
        return super().get_extra_info(name, default)

    def __repr__(self) -> str:
        state = self._tcp.state.value if self.flow is None else f"{self.flow.phase.value} by the NIC"
        return f"<TcpTransport from {self.get_extra_info('peername')[:2]}: {state}{', closing' if self._closing else ''}>"

