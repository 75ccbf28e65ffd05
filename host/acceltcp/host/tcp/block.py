"""The variables of a TCP connection (RFC 9293 section 3.3.1), in two stages.

A connection that the NIC's handshake opens begins with what its first segment tells. The rest, the
control block proper (buffers, what is in flight, congestion, timers), is built when something needs it: a
request that is answered and closed in one go never does. Sequence numbers are integers that never wrap; a
32-bit number off the wire is taken as the one nearest to what is expected.

The class of a connection is made in layers, each a file: `ControlBlock` (here) < `Output` (segments out) <
`Timers` < `Arrival` (segments in) < `TcpConnection` (what its user does).
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from acceltcp.abi.wire import IPV4, IPV6, TCP

from ..checks import check_is
from .congestion import CongestionControl, Prr, make
from .receive_buffer import Reassembly, ReceiveBuffer
from .rtt import RttEstimator
from .scoreboard import Scoreboard
from .segment import TS_OPTION, Peer
from .send_buffer import SendBuffer
from .settings import DEFAULT_OPTIONS, ConnectionOptions, SharedOptions, TcpSettings

if TYPE_CHECKING:
    from .endpoint import TcpEndpoint
    from .flows import Flow
    from .handover import Record
    from .splicing import Half

__all__ = ["CLOCK_STALE_S", "NEVER", "NOTHING_RECEIVED", "RECEIVE_FIRST", "ConnectionEvents", "ControlBlock", "Opening", "State", "Timer", "headers_size"]

NEVER = float("inf")
_HEADERS_V4, _HEADERS_V6 = IPV4.size + TCP.size, IPV6.size + TCP.size
_TS_SIZE = TS_OPTION.size
CLOCK_STALE_S = 0.01
"""The NIC's timestamp clock is read again when the last packet brought it so long ago."""

RECEIVE_FIRST = 1 << 16
"""So much a connection keeps for a user of whom it is not known yet whether he reads."""


class State(enum.Enum):
    """States of RFC 9293 section 3.3.2."""

    SYN_SENT = "syn-sent"
    SYN_RECEIVED = "syn-received"
    ESTABLISHED = "established"
    FIN_WAIT_1 = "fin-wait-1"
    FIN_WAIT_2 = "fin-wait-2"
    CLOSE_WAIT = "close-wait"
    CLOSING = "closing"
    LAST_ACK = "last-ack"
    TIME_WAIT = "time-wait"
    CLOSED = "closed"


class Opening(enum.IntEnum):
    """How far the handshake is."""

    DONE = 0
    SYN_SENT = 1
    SYN_RECEIVED = 2


class Timer(enum.IntEnum):
    """What the retransmission timer is set for; one at a time (RFC 8985 section 8)."""

    RTO = 0
    PROBE = 1
    """Tail loss probe (RFC 8985 section 7)."""
    REORDER = 2
    """RACK's wait for reordered segments."""
    PERSIST = 3
    """Zero-window probe (RFC 9293 section 3.8.6.1)."""


class ConnectionEvents(Protocol):
    """What a connection tells its user. Called from the endpoint's loop; must not block.

    Once the NIC has the connection, the user is kept alive for `closed` only if it cannot be referenced weakly (a class
    with `__slots__` and no `__weakref__` among them).
    """

    def connected(self) -> None:
        """The handshake that `connect` began is over."""

    def readable(self) -> None:
        """Data or the end of data came in."""

    def writable(self) -> None:
        """The peer acknowledged data."""

    def handed_over(self, flow: Flow) -> None:
        """The NIC does the rest; `closed` follows to whoever is still there to hear it."""

    def closed(self, error: OSError | None) -> None:
        """Nothing more will come or go; `error` unless both sides closed in order."""


NOTHING_RECEIVED = ReceiveBuffer()
"""Shared by all that have received nothing yet, and never filled."""


def headers_size(ipv6: bool) -> int:
    """Bytes of IP and TCP headers without options."""
    return _HEADERS_V6 if ipv6 else _HEADERS_V4


class ControlBlock(ABC):
    """All variables; see the comments. `mss` counts data bytes, options are taken off."""

    __slots__ = (
        "_challenged_at", "_cwr_until", "_echo_ce", "_fin_at", "_last_ack_sent", "_moved_at", "_passive",
        "_peer_before", "_record", "_send_cwr", "_small_end", "_taken", "_unacked", "_waiting", "_wl1", "_wl2",
        "ack_at", "ack_now", "built", "closed", "congestion", "cwnd_limited", "ecn", "endpoint", "error",
        "events", "fin_acked", "fin_queued", "fin_received", "fin_sent", "handing", "heap_at", "irs", "iss",
        "keep_at", "keep_probes", "key", "last_heard", "last_sent", "linger_at", "max_wnd",
        "mss", "offload", "opening", "opts", "peer", "peer_mss", "progress_at", "prr", "rcv_adv",
        "rcv_limit", "rcv_max", "rcv_mss", "rcv_nxt", "rcv_shift", "reading", "reassembly", "receive_buffer", "recovering",
        "reset_strays", "retransmit_at", "retries", "rtt", "sack", "scoreboard", "send_buffer", "settings",
        "sink", "snd_nxt", "snd_shift", "snd_una", "snd_wnd", "soft_error", "splice", "syn_at", "timer",
        "timestamps", "ts_floor", "ts_recent", "ts_recent_at", "wait_at",
    )  # fmt: skip

    def __init__(
        self,
        endpoint: TcpEndpoint,
        key: bytes,
        peer: Peer,
        iss: int,
        irs: int,
        mss: int,
        wscale: int | None,
        our_wscale: int,
        our_window: int,
        window: int,
        sack: bool,
        timestamps: bool,
        ts_recent: int,
        ecn: bool,
        offload: bool,
        options: ConnectionOptions | None = None,
    ) -> None:
        self.endpoint: TcpEndpoint = endpoint
        self.settings: TcpSettings = endpoint.settings
        self.opts: ConnectionOptions = options or DEFAULT_OPTIONS
        """What holds; others may have it, too. `options` is what the user gets."""
        self.key = key
        """Peer's address, ours, peer's port, ours."""
        self.peer = peer
        self.events: ConnectionEvents | None = None
        self.sink: Callable[[memoryview], None] | None = None
        """Takes received data as views that die when it returns; without one they go to `receive_buffer`."""
        self.error: OSError | None = None
        self.closed = False
        self.opening = 0
        self.built = False
        self.last_heard = endpoint.now

        self.iss, self.irs = iss, irs
        self.timestamps, self.sack, self.ecn = timestamps, sack, ecn
        self.ts_recent = ts_recent
        self.peer_mss = mss
        self.mss = self.fitting_mss(self.settings.mtu)
        self.snd_una = self.snd_nxt = iss + 1
        self.snd_shift = 0 if wscale is None else wscale
        self.snd_wnd = window
        self.send_buffer: SendBuffer | None = None
        self.rcv_nxt = irs + 1
        self.rcv_shift = 0 if wscale is None else our_wscale
        self.rcv_adv = irs + 1 + our_window
        self.receive_buffer = NOTHING_RECEIVED

        self.reading = True
        self.fin_queued = False
        self.fin_received = False
        self.reset_strays = False
        self.offload = offload
        """The NIC may close the connection when the application has."""
        self.handing = False
        """It was asked to, and has not answered: no data are sent or taken meanwhile."""
        self._record: Record | None = None
        self.splice: Half | None = None
        """The NIC forwards its packets, or is asked to: it stands still but for what it has to send yet (see `splicing`)."""
        self.ts_floor: int | None = None
        """Its peer has seen this TSval, which our clock may not have reached."""
        self.rcv_mss = 0
        """Largest segment that we told the peer to send; 0: what fits the MTU."""

        self.ack_now = False
        self.ack_at: float | None = None
        self.heap_at = NEVER
        """When the endpoint looks at the timers next."""

    def fitting_mss(self, mtu: int) -> int:
        """Data bytes of a full segment: what the peer takes, the path carries, the user wants."""
        room = mtu - (_HEADERS_V6 if self.peer.ipv6 else _HEADERS_V4)
        if self.peer_mss < room:
            room = self.peer_mss
        if 0 < self.opts.maxseg < room:
            room = self.opts.maxseg
        if self.timestamps:
            room -= _TS_SIZE
        return room if room > 0 else 1

    # What the layers above add, and lower ones or the endpoint call.

    @abstractmethod
    def output(self) -> None:
        """Send what may be sent; see `Output`."""

    @abstractmethod
    def deadline(self) -> float | None:
        """See `Timers`."""

    @abstractmethod
    def timers(self) -> None:
        """See `Timers`."""

    @abstractmethod
    def start_sending(self) -> None:
        """The handshake is over; see `TcpConnection`."""

    @abstractmethod
    def maybe_closed(self) -> None:
        """See `TcpConnection`."""

    @abstractmethod
    def abort(self) -> None:
        """Reset; see `TcpConnection`."""

    @abstractmethod
    def end(self, error: OSError | None) -> None:
        """See `TcpConnection`."""

    @property
    def options(self) -> ConnectionOptions:
        """The connection's own options. Who sets one calls `changed` then; a value that cannot be raises `ValueError`."""
        if isinstance(self.opts, SharedOptions):
            self.opts = self.opts.copy()
        return self.opts

    @options.setter
    def options(self, options: ConnectionOptions) -> None:
        check_is("options", options, ConnectionOptions)
        self.opts = options

    @property
    def retransmissions(self) -> int:
        """Segments sent again."""
        return self.scoreboard.retransmissions if self.built else 0

    @property
    def unsent_or_unacked(self) -> int:
        """Bytes that the peer has not acknowledged, sent or not."""
        return len(self.send_buffer) if self.send_buffer is not None else 0

    @property
    def initial_window(self) -> int:
        """First congestion window (RFC 6928)."""
        return min(self.settings.initial_segments * self.mss, max(2 * self.mss, 14600))

    def build(self) -> None:
        """Make the control block. `built` comes last: after an exception the connection is as before, and can be reset."""
        if self.built:
            return
        settings, options, now = self.settings, self.opts, self.endpoint.now
        # Send side. `send_buffer` starts at snd_una.
        if self.send_buffer is None:
            self.send_buffer = SendBuffer(self.iss + 1 if self.opening else self.snd_una)
        self.scoreboard = Scoreboard(self.mss, self.sack, self.snd_una)
        self.congestion: CongestionControl = make(options.congestion or settings.congestion, self.mss, self.initial_window)
        self.prr = Prr()
        self.cwnd_limited = False
        """The congestion window was used up (or half, in slow start) when something was last sent: only then it grows."""
        self.recovering = False
        """Fast recovery: `prr` says what may be sent. (After a time-out, slow start does.)"""
        self.rtt = RttEstimator(settings.initial_rto, settings.min_rto, settings.max_rto, self.endpoint.ts_step)
        self.max_wnd = self.snd_wnd
        self._wl1, self._wl2 = self.rcv_nxt, self.snd_una
        self.retries = 0
        """Time-outs, or unanswered window probes, in a row."""
        self.last_sent = self.progress_at = now
        self._small_end = self.iss
        """End of the last segment that was not full (Nagle, as Minshall has it)."""

        # Receive side.
        self.rcv_max = options.rcvbuf or settings.receive_buffer
        self.rcv_limit = options.rcvbuf or max(min(RECEIVE_FIRST, self.rcv_max), self.rcv_adv - self.rcv_nxt)
        """Bytes that we keep for the user; grows up to `rcv_max` as the user takes them."""
        self._taken = 0
        self.reassembly = Reassembly(settings.reassembly_pieces)
        self._fin_at: int | None = None
        self._unacked = 0
        self._last_ack_sent = min(self.rcv_nxt, self.irs + 1)
        self.ts_recent_at = now

        # Close.
        self.fin_sent = False
        self.fin_acked = False
        self._passive = False
        self._waiting = False
        self.soft_error: OSError | None = None

        # Another MAC address of the peer, until it has proved to be one.
        self._peer_before: Peer | None = None
        self._moved_at = 0

        # ECN (RFC 3168 section 6.1).
        self._echo_ce = False
        self._send_cwr = False
        self._cwr_until = self.iss

        # Timers.
        self.timer = Timer.RTO
        self.retransmit_at: float | None = None
        self.wait_at: float | None = None
        """End of TIME_WAIT, or of the wait for the peer's FIN."""
        self.linger_at: float | None = None
        self.syn_at: float | None = None
        self.keep_probes = 0
        self.keep_at: float | None = now + options.keepidle if options.keepalive else None
        self._challenged_at = -NEVER
        self.endpoint.stats["built"] += 1
        self.built = True
