"""What `get_extra_info("socket")` gives: a connection of the NIC that takes socket options by their usual names.

It cannot send or receive, and `fileno()` is -1: the kernel knows nothing of the connection.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ..tcp import State, TcpConnection
from ..tcp.congestion import CONGESTION_CONTROLS
from ..tcp.segment import ends_of
from ..tcp.settings import OPTION_RANGES, SECONDS_MAX, ConnectionOptions

__all__ = ["ListeningSocket", "NicSocket", "copy_options", "socket_address"]

_INT = struct.Struct("i")
_LINGER = struct.Struct("ii")

_TCP_INFO = struct.Struct("=8B24I")
"""struct tcp_info of linux/tcp.h up to tcpi_total_retrans."""
_INFO_TIMESTAMPS, _INFO_SACK, _INFO_WSCALE, _INFO_ECN = 1, 2, 4, 8
_INFO_STATES = {
    State.ESTABLISHED: 1, State.SYN_SENT: 2, State.SYN_RECEIVED: 3, State.FIN_WAIT_1: 4, State.FIN_WAIT_2: 5,
    State.TIME_WAIT: 6, State.CLOSED: 7, State.CLOSE_WAIT: 8, State.LAST_ACK: 9, State.CLOSING: 11,
}  # fmt: skip
"""As in the kernel's enum (include/net/tcp_states.h)."""
_INFO_OPEN, _INFO_RECOVERY = 0, 3
_INFINITE = 0x7FFFFFFF
_TTL_DEFAULT = ConnectionOptions().ttl


def socket_address(key: bytes, *, ours: bool) -> tuple[str, int] | tuple[str, int, int, int]:
    """One end of a connection's key (`TcpConnection.key`) as the `socket` module has it."""
    ends = ends_of(key)
    packed, port = (ends.local, ends.local_port) if ours else (ends.remote, ends.remote_port)
    address = ipaddress.ip_address(packed)
    return (str(address), port) if address.version == 4 else (str(address), port, 0, 0)


class _Option(NamedTuple):
    """An option with an integer as its value. low, high: what is taken; `clip`: others that are not negative become the nearest."""

    get: Callable[[ConnectionOptions], int]
    set: Callable[[ConnectionOptions, int], None]
    low: int = 0
    high: int = _INFINITE
    clip: bool = False


def _flag(name: str) -> _Option:
    return _Option(
        lambda options: int(getattr(options, name)), lambda options, value: setattr(options, name, bool(value)), -_INFINITE - 1
    )


def _number(name: str, *, clip: bool = False) -> _Option:
    low, high = map(int, OPTION_RANGES[name])
    return _Option(
        lambda options: int(getattr(options, name)), lambda options, value: setattr(options, name, value), low, high, clip
    )


def _seconds(name: str, scale: int = 1) -> _Option:
    """A time that the option has in units of 1/scale seconds."""
    low, high = OPTION_RANGES[name]
    return _Option(
        lambda options: round(getattr(options, name) * scale),
        lambda options, value: setattr(options, name, value / scale),
        math.ceil(low * scale),
        round(high * scale),
    )


_SOL, _TCP, _IP, _IP6 = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6

_OPTIONS: dict[tuple[int, int], _Option] = {
    (_SOL, socket.SO_KEEPALIVE): _flag("keepalive"),
    (_SOL, socket.SO_SNDBUF): _number("sndbuf", clip=True),
    (_SOL, socket.SO_RCVBUF): _number("rcvbuf", clip=True),
    (_TCP, socket.TCP_NODELAY): _flag("nodelay"),
    (_TCP, socket.TCP_CORK): _flag("cork"),
    (_TCP, socket.TCP_QUICKACK): _flag("quickack"),
    (_TCP, socket.TCP_KEEPIDLE): _seconds("keepidle"),
    (_TCP, socket.TCP_KEEPINTVL): _seconds("keepintvl"),
    (_TCP, socket.TCP_KEEPCNT): _number("keepcnt"),
    (_TCP, socket.TCP_USER_TIMEOUT): _seconds("user_timeout", 1000),
    (_TCP, socket.TCP_MAXSEG): _number("maxseg"),
}
_OPTIONS_V4 = {(_IP, socket.IP_TOS): _number("tos"), (_IP, socket.IP_TTL): _number("ttl")}
_OPTIONS_V6 = {
    (_IP6, socket.IPV6_TCLASS): _number("tos"),
    (_IP6, socket.IPV6_UNICAST_HOPS): _Option(
        lambda options: options.ttl,
        lambda options, value: setattr(options, "ttl", _TTL_DEFAULT if value < 0 else value),
        -1,
        255,
    ),
}
_ACCEPTED = {
    (_SOL, socket.SO_REUSEADDR): 1,
    (_SOL, socket.SO_REUSEPORT): 0,
    (_IP6, socket.IPV6_V6ONLY): 1,
}
"""Options that may be set without effect, and what they are: a tuple in TIME_WAIT never hinders a listener,
and a listener has one family."""
_CONGESTION_MAX = 16
"""TCP_CA_NAME_MAX: bytes that a name has, with zeros behind it."""


def _names() -> dict[tuple[int, int], str]:
    levels = {"SO_": _SOL, "TCP_": _TCP, "IP_": _IP, "IPV6_": _IP6}
    return {
        (level, getattr(socket, name)): name
        for prefix, level in levels.items()
        for name in dir(socket)
        if name.startswith(prefix) and isinstance(getattr(socket, name), int)
    }


_NAMES = _names()


def _linger(value: bytes | bytearray | memoryview) -> float | None:
    """struct linger as we have it; to the kernel a negative time is the longest."""
    on, seconds = _LINGER.unpack(value)
    if not on:
        return None
    return float(seconds) if 0 <= seconds <= SECONDS_MAX else SECONDS_MAX


def _no_such_option(level: int, name: int) -> OSError:
    known = _NAMES.get((level, name), f"{name} of level {level}")
    return OSError(errno.ENOPROTOOPT, f"connections of the NIC have no socket option {known}")


def _as_integer(value: int | bytes | bytearray | memoryview | None) -> int:
    if isinstance(value, int):
        return value
    if value is None or len(value) < _INT.size:
        raise OSError(errno.EINVAL, f"this socket option is an int of {_INT.size} bytes, not {value!r}")
    return int(_INT.unpack_from(value)[0])


class NicSocket:
    """Looks like the socket of a connection. See the module's docstring."""

    __slots__ = ("_tcp",)

    type = socket.SOCK_STREAM
    proto = socket.IPPROTO_TCP

    def __init__(self, tcp: TcpConnection) -> None:
        self._tcp = tcp

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if len(self._tcp.key) > 12 else socket.AF_INET

    def fileno(self) -> int:
        """-1: there is no file descriptor."""
        return -1

    def getpeername(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """The peer's address."""
        return socket_address(self._tcp.key, ours=False)

    def getsockname(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """Our address."""
        return socket_address(self._tcp.key, ours=True)

    def gettimeout(self) -> float | None:
        """0.0, as a socket in use by asyncio has it."""
        return 0.0

    def settimeout(self, value: float | None) -> None:
        """Accepts 0 only."""
        if value != 0:
            raise ValueError(f"connections of the NIC never block: the timeout must be 0, not {value!r}")

    def setblocking(self, flag: bool) -> None:
        """Accepts False only."""
        if flag:
            raise ValueError("connections of the NIC never block")

    def _option(self, level: int, name: int) -> _Option | None:
        if level in (_IP, _IP6):
            return (_OPTIONS_V6 if self.family == socket.AF_INET6 else _OPTIONS_V4).get((level, name))
        return _OPTIONS.get((level, name))

    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> int | bytes:
        """As `socket.socket.getsockopt`. Raises `OSError` (ENOPROTOOPT) for options that do not exist here."""
        raw = self._special(level, optname)
        if raw is not None:
            return raw[:buflen]
        option = self._option(level, optname)
        if option is not None:
            value = option.get(self._tcp.opts)
            if (level, optname) == (_TCP, socket.TCP_MAXSEG):
                value = self._tcp.mss
            elif (level, optname) == (_SOL, socket.SO_RCVBUF):
                value = value or self._tcp.settings.receive_buffer
        elif (level, optname) in _ACCEPTED:
            value = _ACCEPTED[level, optname]
        elif level == _SOL and optname == socket.SO_ERROR:
            error = self._tcp.error
            value = (error.errno or errno.EIO) if error is not None else 0
        elif level == _SOL and optname in (socket.SO_TYPE, socket.SO_PROTOCOL, socket.SO_DOMAIN, socket.SO_ACCEPTCONN):
            value = {
                socket.SO_TYPE: int(self.type), socket.SO_PROTOCOL: self.proto, socket.SO_DOMAIN: int(self.family),
            }.get(optname, 0)  # fmt: skip
        else:
            raise _no_such_option(level, optname)
        return _INT.pack(value)[:buflen] if buflen else value

    def _special(self, level: int, optname: int) -> bytes | None:
        """Options that are no integers."""
        options = self._tcp.opts
        if (level, optname) == (_SOL, socket.SO_LINGER):
            return _LINGER.pack(options.linger is not None, round(options.linger or 0))
        if (level, optname) == (_TCP, socket.TCP_CONGESTION):
            name = options.congestion or self._tcp.settings.congestion
            return name.encode().ljust(_CONGESTION_MAX, b"\0")
        if (level, optname) == (_TCP, socket.TCP_INFO):
            return self._info()
        return None

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        """As `socket.socket.setsockopt`. Raises `OSError`: ENOPROTOOPT for options that do not exist here, EINVAL for
        values that cannot be."""
        tcp = self._tcp
        if (level, optname) == (_SOL, socket.SO_LINGER):
            if not isinstance(value, (bytes, bytearray, memoryview)) or len(value) != _LINGER.size:
                raise OSError(errno.EINVAL, f"SO_LINGER is two ints of {_INT.size} bytes, not {value!r}")
            tcp.options.linger = _linger(value)
        elif (level, optname) == (_TCP, socket.TCP_CONGESTION):
            self._set_congestion(value)
        else:
            option = self._option(level, optname)
            if option is None:
                if (level, optname) in _ACCEPTED:
                    return
                raise _no_such_option(level, optname)
            number = _as_integer(value)
            if option.clip and number >= 0:
                number = min(max(number, option.low), option.high)
            name = _NAMES.get((level, optname), str(optname))
            if not option.low <= number <= option.high:
                raise OSError(errno.EINVAL, f"{name} must be from {option.low} to {option.high}, not {number}")
            try:
                option.set(tcp.options, number)
            except ValueError as error:
                raise OSError(errno.EINVAL, f"{name}: {error}") from None
        if not tcp.closed:
            tcp.changed()

    def _set_congestion(self, value: Any) -> None:
        try:
            name = value if isinstance(value, str) else bytes(value).rstrip(b"\0").decode("ascii")
        except (TypeError, UnicodeDecodeError):
            raise OSError(errno.EINVAL, f"TCP_CONGESTION is a name, not {value!r}") from None
        if name not in CONGESTION_CONTROLS:
            known = ", ".join(sorted(CONGESTION_CONTROLS))
            raise OSError(errno.ENOENT, f"there is no congestion control {name!r}, only {known}")
        self._tcp.options.congestion = name

    def _info(self) -> bytes:
        """struct tcp_info as far as we know it; what we do not know is zero. Times in microseconds."""
        tcp = self._tcp
        built = tcp.built
        flags = (
            (_INFO_TIMESTAMPS if tcp.timestamps else 0)
            | (_INFO_SACK if tcp.sack else 0)
            | (_INFO_WSCALE if tcp.snd_shift or tcp.rcv_shift else 0)
            | (_INFO_ECN if tcp.ecn else 0)
        )
        words = [0] * 24
        words[2] = tcp.mss
        words[3] = tcp.mss
        words[19] = tcp.mss
        recovery, retries = _INFO_OPEN, 0
        if built:
            if tcp.recovering:
                recovery = _INFO_RECOVERY
            retries = min(tcp.retries, 255)
            now, rtt, scoreboard = tcp.endpoint.now, tcp.rtt, tcp.scoreboard
            words[0] = round(rtt.rto * 1e6)
            words[4] = -(-scoreboard.in_flight // tcp.mss)
            words[5] = -(-scoreboard.sacked_bytes // tcp.mss)
            words[6] = -(-scoreboard.lost_bytes // tcp.mss)
            words[9] = round(max(now - tcp.last_sent, 0) * 1e3)
            words[11] = round(max(now - tcp.last_heard, 0) * 1e3)
            words[13] = tcp.endpoint.path_mtu(tcp)
            words[15] = round(rtt.srtt * 1e6)
            words[16] = round(rtt.rttvar * 1e6)
            words[17] = min(-(-tcp.congestion.ssthresh // tcp.mss), _INFINITE)
            words[18] = tcp.congestion.cwnd // tcp.mss
            words[22] = tcp.rcv_limit
            words[23] = tcp.retransmissions
        return _TCP_INFO.pack(
            _INFO_STATES[tcp.state], recovery, retries, 0, 0, flags, tcp.snd_shift & 15 | (tcp.rcv_shift & 15) << 4, 0,
            *(min(word, 0xFFFFFFFF) for word in words),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<NicSocket laddr={self.getsockname()} raddr={self.getpeername()}>"


class ListeningSocket:
    """What `server.sockets` has of a listener of the NIC: its name."""

    __slots__ = ("_address", "_port")

    type = socket.SOCK_STREAM
    proto = socket.IPPROTO_TCP

    def __init__(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
        self._address, self._port = address, port

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if self._address.version == 6 else socket.AF_INET

    def fileno(self) -> int:
        """-1: there is no file descriptor."""
        return -1

    def getsockname(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """Where it listens."""
        text = str(self._address)
        return (text, self._port) if self._address.version == 4 else (text, self._port, 0, 0)

    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> int | bytes:
        """What can be said of a listener."""
        known = {
            (_SOL, socket.SO_ACCEPTCONN): 1, (_SOL, socket.SO_TYPE): int(self.type), (_SOL, socket.SO_ERROR): 0,
            (_SOL, socket.SO_PROTOCOL): self.proto, (_SOL, socket.SO_DOMAIN): int(self.family), **_ACCEPTED,
        }  # fmt: skip
        if (level, optname) not in known:
            raise _no_such_option(level, optname)
        value = known[level, optname]
        return _INT.pack(value)[:buflen] if buflen else value

    def __repr__(self) -> str:
        return f"<ListeningSocket laddr={self.getsockname()}>"


def copy_options(sock: socket.socket) -> ConnectionOptions:
    """Options for a connection, as somebody has set them on a socket of the kernel."""
    options = ConnectionOptions()
    own = _OPTIONS | (_OPTIONS_V6 if sock.family == socket.AF_INET6 else _OPTIONS_V4)
    with socket.socket(sock.family, sock.type) as fresh:
        for (level, name), option in own.items():
            value = sock.getsockopt(level, name)
            if value != fresh.getsockopt(level, name) and option.low <= value <= option.high:
                with contextlib.suppress(ValueError):  # hop limit 0
                    option.set(options, value)
        linger = sock.getsockopt(_SOL, socket.SO_LINGER, _LINGER.size)
        if linger != fresh.getsockopt(_SOL, socket.SO_LINGER, _LINGER.size):
            options.linger = _linger(linger)
    return options
