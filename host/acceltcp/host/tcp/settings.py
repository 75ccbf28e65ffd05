"""What can be set of TCP: for all connections of an endpoint, and for one."""

from __future__ import annotations

from dataclasses import dataclass

from acceltcp.abi.wire import WSCALE_MAX

from ..checks import check_flag, check_integer, check_number
from .congestion import check_congestion

__all__ = ["DEFAULT_OPTIONS", "OPTION_RANGES", "SECONDS_MAX", "ConnectionOptions", "SharedOptions", "TcpSettings"]

SECONDS_MAX = 0x7FFFFFFF / 1000
"""Longest time that can be set: the kernel's options have milliseconds in an int."""
DELAYED_ACK_MAX = 0.499
"""An acknowledgment must be delayed by less than half a second (RFC 9293 section 3.8.6.3)."""


@dataclass(frozen=True)
class TcpSettings:
    """Of an endpoint. Times in seconds, sizes in bytes. Raises `ValueError` naming what cannot be."""

    mtu: int = 1500
    receive_buffer: int = 1 << 20
    """What a connection keeps for its application at most, unless its `rcvbuf` says otherwise; up to 64 KiB more where a window
    that was promised says so."""
    memory_limit: int = 256 << 20
    """With so much received data in all connections together no window opens further, and out-of-order data are dropped; with
    twice that, what windows promised before is not taken either: peers repeat it."""
    send_memory_limit: int = 256 << 20
    """With so many bytes written and not acknowledged in all connections together, writers are told to wait sooner: above
    16 KiB each instead of `sndbuf`."""
    initial_rto: float = 1.0
    min_rto: float = 0.2
    max_rto: float = 60.0
    retries: int = 10
    """Retransmissions of one segment, or unanswered window probes, before giving up."""
    syn_retries: int = 6
    synack_retries: int = 5
    syn_backlog: int = 1024
    """Handshakes that a listener of the host (not of the NIC) may have unfinished; the oldest gives way."""
    delayed_ack: float = 0.04
    time_wait: float = 2.0
    linger: float = 2.0
    """How long a closed tuple drops what comes instead of taking it for something new: longer than peers wait before they
    repeat a segment."""
    fin_wait_2: float = 60.0
    """How long we wait for the FIN of a peer after the application has closed."""
    initial_segments: int = 10
    window_scale: int = 7
    """Our shift where the host does the handshake."""
    congestion: str = "cubic"
    ecn: bool = False
    """Ask for ECN when we open, grant it where the host answers SYNs."""
    timestamps: bool = True
    """Offer and grant timestamps where the host does the handshake; `sack` likewise."""
    sack: bool = True
    unknown_hold: float = 1.0
    """A segment that belongs to nothing is reset only when it still does after this time."""
    unknown_limit: int = 1024
    challenge_interval: float = 0.1
    """Least time between two answers to segments that should not be."""
    reassembly_pieces: int = 1024
    ports: tuple[int, int] = (32768, 60999)
    """First and last port that `connect` takes for itself."""
    lazy: bool = True
    """Build a connection's control block only when it is needed; the next four are optimisations too, each
    on unless it is to be measured."""
    batch: bool = True
    """Send once per batch of packets instead of after each."""
    zero_copy: bool = True
    """Give the application a view of the ring's buffer."""
    direct: bool = True
    """Build frames in the transmit buffer itself."""
    piggyback: bool = True
    """Let data and FIN carry acknowledgments, and the last data FIN."""

    def __post_init__(self) -> None:
        for name, low, high in _INTEGERS:
            check_integer(name, getattr(self, name), low, high)
        for name, shortest, longest in _TIMES:
            check_number(name, getattr(self, name), shortest, longest)
        for name in _SWITCHES:
            check_flag(name, getattr(self, name))
        check_congestion("congestion", self.congestion)
        if self.min_rto > self.max_rto:
            raise ValueError(f"max_rto must be at least min_rto ({self.min_rto!r}), not {self.max_rto!r}")
        if self.memory_limit < self.receive_buffer:
            raise ValueError(
                f"memory_limit must be at least receive_buffer ({self.receive_buffer!r}), not {self.memory_limit!r}"
            )
        ports = self.ports
        if not isinstance(ports, (tuple, list)) or len(ports) != 2:
            raise ValueError(f"ports must be two ports, like (32768, 60999), not {ports!r}")
        for port in ports:
            check_integer("both of the two ports of ports", port, 1, 65535)
        if ports[0] > ports[1]:
            raise ValueError(f"ports must be two ports, the first not above the last, not {ports!r}")


_INTEGERS = (
    ("mtu", 576, 65535), ("receive_buffer", 2048, 1 << 30), ("memory_limit", 1 << 16, 1 << 40),
    ("send_memory_limit", 1 << 16, 1 << 40), ("retries", 0, 100), ("syn_retries", 0, 100), ("synack_retries", 0, 100),
    ("syn_backlog", 1, 1 << 20), ("initial_segments", 1, 1000), ("window_scale", 0, WSCALE_MAX),
    ("unknown_limit", 1, 1 << 20), ("reassembly_pieces", 1, 1 << 20),
)  # fmt: skip
_TIMES = (
    ("initial_rto", 0.01, 3600), ("min_rto", 0.001, 3600), ("max_rto", 0.01, 3600), ("delayed_ack", 0, DELAYED_ACK_MAX),
    ("time_wait", 0, SECONDS_MAX), ("linger", 0, SECONDS_MAX), ("fin_wait_2", 0, SECONDS_MAX), ("unknown_hold", 0, 3600),
    ("challenge_interval", 0, 3600),
)  # fmt: skip
_SWITCHES = ("ecn", "timestamps", "sack", "lazy", "batch", "zero_copy", "direct", "piggyback")


class ConnectionOptions:
    """Of one connection; may change while it lives (then call `TcpConnection.changed`). Names are those of socket options in lower
    case. Setting a value that cannot be raises `ValueError`; the bounds are Linux's, but times may be fractions of a second.

    nodelay: send small segments at once (no Nagle). cork: send full segments only. quickack: acknowledge every
    segment at once. keepalive: probe a silent peer after `keepidle` seconds, every `keepintvl`, and give up after
    `keepcnt` probes. user_timeout: give up when data stay unacknowledged so many seconds (0: by retries). linger: None, or
    how many seconds `close` may take before the connection is reset (0: at once). congestion: name of the algorithm. sndbuf:
    unsent and unacknowledged bytes above which writers should wait. rcvbuf: received bytes kept (0: from the
    settings). tos: DSCP (upper six bits) of what is sent. ttl: hop limit. maxseg: largest segment (0: what fits).
    """

    __slots__ = (
        "congestion", "cork", "keepalive", "keepcnt", "keepidle", "keepintvl", "linger", "maxseg", "nodelay",
        "quickack", "rcvbuf", "sndbuf", "tos", "ttl", "user_timeout",
    )  # fmt: skip

    def __init__(self) -> None:
        self.nodelay = False
        self.cork = False
        self.quickack = False
        self.keepalive = False
        self.keepidle = 7200.0
        self.keepintvl = 75.0
        self.keepcnt = 9
        self.user_timeout = 0.0
        self.linger: float | None = None
        self.congestion = ""
        self.sndbuf = 1 << 18
        self.rcvbuf = 0
        self.tos = 0
        self.ttl = 64
        self.maxseg = 0

    def copy(self) -> ConnectionOptions:
        """Another one with the same values."""
        other = ConnectionOptions.__new__(ConnectionOptions)
        for name in ConnectionOptions.__slots__:
            object.__setattr__(other, name, getattr(self, name))
        return other

    def __setattr__(self, name: str, value: object) -> None:
        if name in OPTION_RANGES:
            low, high = OPTION_RANGES[name]
            if name in _OPTION_TIMES:
                if name != "linger" or value is not None:
                    check_number(name, value, low, high)
            elif value != 0 or isinstance(value, bool) or name not in _ZERO_IS_DEFAULT:
                check_integer(name, value, int(low), int(high))
        elif name == "congestion":
            if value != "":
                check_congestion(name, value)
        elif name in ConnectionOptions.__slots__:
            check_flag(name, value)
        object.__setattr__(self, name, value)


OPTION_RANGES: dict[str, tuple[float, float]] = {
    "keepidle": (0.001, 32767), "keepintvl": (0.001, 32767), "keepcnt": (1, 127), "user_timeout": (0, SECONDS_MAX),
    "linger": (0, SECONDS_MAX), "sndbuf": (4096, 1 << 30), "rcvbuf": (4096, 1 << 30), "tos": (0, 255), "ttl": (1, 255),
    "maxseg": (88, 32767),
}  # fmt: skip
"""Least and largest value of each option that is a number: for `setsockopt`, too. Where the kernel has whole seconds we take
fractions; its least and largest buffers are matters of its configuration, these are ours."""
_OPTION_TIMES = frozenset(("keepidle", "keepintvl", "user_timeout", "linger"))
_ZERO_IS_DEFAULT = frozenset(("rcvbuf", "maxseg"))


class SharedOptions(ConnectionOptions):
    """What many connections have in common until one of them gets its own: a copy that cannot be changed."""

    __slots__ = ()

    def __init__(self, options: ConnectionOptions) -> None:
        for name in ConnectionOptions.__slots__:
            object.__setattr__(self, name, getattr(options, name))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set here: other connections have these options too; set it in a copy")


DEFAULT_OPTIONS = SharedOptions(ConnectionOptions())
"""Of connections that have none of their own."""
