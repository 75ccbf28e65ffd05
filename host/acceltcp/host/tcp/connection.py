"""One TCP connection of the host's endpoint: what its user does, and how it ends.

The state of RFC 9293 section 3.3.2 follows from the handshake and four facts: our FIN queued, sent,
acknowledged; the peer's FIN received.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from .arrival import Arrival
from .block import NOTHING_RECEIVED, RECEIVE_FIRST, ConnectionEvents, Opening, State, Timer
from .congestion import make
from .scoreboard import Scoreboard
from .segment import ACK, FIN, HALF, MASK, RST
from .send_buffer import SendBuffer

if TYPE_CHECKING:
    from .handover import Record
    from .segment import Segment

__all__ = ["TcpConnection"]

_SHARE = 16384
_WINDOW_LOW = 32768
"""With less than that many bytes of our window left, reading opens it at once; else the next acknowledgment does."""


class TcpConnection(Arrival):
    """A connection. Made by `TcpEndpoint`: by a segment that opens one, or by `connect`."""

    __slots__ = ()

    # -- state ---------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of RFC 9293 section 3.3.2."""
        if self.closed:
            return State.CLOSED
        if self.opening:
            return State.SYN_SENT if self.opening == Opening.SYN_SENT else State.SYN_RECEIVED
        if not self.built or not self.fin_sent:
            return State.CLOSE_WAIT if self.fin_received else State.ESTABLISHED
        if self.fin_received:
            if self._passive:
                return State.LAST_ACK
            return State.TIME_WAIT if self.fin_acked else State.CLOSING
        return State.FIN_WAIT_2 if self.fin_acked else State.FIN_WAIT_1

    @property
    def send_limit(self) -> int:
        """With more bytes unsent or unacknowledged than that, writers should wait."""
        limit = self.opts.sndbuf
        if self.endpoint.queued > self.settings.send_memory_limit and limit > _SHARE:
            return _SHARE
        return limit

    @property
    def buffered(self) -> int:
        """Received bytes that nobody has taken."""
        return len(self.receive_buffer)

    @property
    def in_time_wait(self) -> bool:
        """Whether only the wait for late segments is left."""
        return self.built and self._waiting and not self.closed

    @property
    def teardown(self) -> bool:
        """Whether the NIC may close the connection when the user has. Setting it raises `OSError` (EOPNOTSUPP) when the NIC
        cannot."""
        return self.offload

    @teardown.setter
    def teardown(self, on: bool) -> None:
        if on and self.endpoint.hand_over is None:
            raise OSError(errno.EOPNOTSUPP, "this NIC does not close connections")
        self.offload = on

    # -- what the user does --------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue data; `bytes` are kept, not copied. Raises `OSError` when the connection is over or closed for
        writing."""
        if self.error is not None:
            raise self.error
        if self.closed or self.fin_queued:
            raise BrokenPipeError(errno.EPIPE, "the connection is closed for writing")
        if self.splice is not None:
            raise OSError(errno.EBUSY, "the connection is spliced: the NIC forwards another one's data to it")
        buffer = self.send_buffer
        if buffer is None:
            buffer = self.send_buffer = SendBuffer(self.iss + 1 if self.opening else self.snd_una)
        size = len(buffer)
        buffer.append(data)
        self.endpoint.queued += len(buffer) - size
        self.endpoint.mark(self)

    def consume(self, count: int) -> bytes:
        """Take up to `count` received bytes."""
        buffer = self.receive_buffer
        data = buffer.take(count)
        if not data:
            return b""
        if not self.closed:
            self.endpoint.buffered -= len(data)
        if self.built:
            self.taken(len(data))
        self.room_grew()
        return data

    def room_grew(self) -> None:
        """Received data were taken: tell the peer when its window was nearly used up."""
        if self.closed or self.fin_received or self.opening or self.splice is not None:
            return
        window = self.rcv_adv - self.rcv_nxt
        if window >= _WINDOW_LOW and window >= 2 * self.mss:
            return
        limit = self.rcv_limit if self.built else RECEIVE_FIRST
        grown = self.rcv_nxt + limit - len(self.receive_buffer) - self.rcv_adv
        # Not just because the window of the SYN-ACK was smaller: a short connection never needs more.
        nearly_used = window < min(limit // 4, _WINDOW_LOW)
        if (nearly_used and grown >= limit // 4) or (window < 2 * self.mss <= grown):
            self.ack_now = True
            self.endpoint.mark(self)

    def shutdown(self) -> None:
        """Send FIN after what was written; reading goes on. Of a spliced connection nobody here knows where its data end: then
        it is reset."""
        if self.splice is not None:
            self.abort()
        elif not self.closed and not self.fin_queued:
            self.fin_queued = True
            self.endpoint.mark(self)

    def close(self) -> None:
        """Send FIN after what was written; nobody reads any more."""
        if self.closed:
            return
        if self.opening or self.opts.linger == 0.0 or self.splice is not None:
            self.abort()
            return
        unread = len(self.receive_buffer)
        self.reading = False
        self.sink = None
        if unread:
            self.endpoint.buffered -= unread
            self.receive_buffer.clear()
        self.fin_queued = True
        self.endpoint.mark(self)  # with FIN queued before, too: now the NIC may have it
        if self.opts.linger:
            self.build()
            self.linger_at = self.endpoint.now + self.opts.linger
        if self.built and self.fin_acked and not self.fin_received:
            self._set_wait(self.settings.fin_wait_2)

    def abort(self) -> None:
        """Reset the connection."""
        if self._record is not None and not self.handing:
            self.endpoint.abort_flow(self._record)
        elif self.splice is not None:
            self.splice.abort()
        elif not self.closed:
            if self.opening != Opening.SYN_SENT:
                # Within the window: a probe of a closed one was not taken, and a reset behind it would not be either.
                self.emit(min(self.snd_nxt, self.snd_una + self.snd_wnd), RST | ACK)
                self.reset_strays = True
            self.end(ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)))

    def changed(self) -> None:
        """`options` have changed."""
        if not self.built:
            options = self.opts
            if not (
                options.keepalive or options.tos or options.ttl != 64 or options.maxseg or options.quickack or options.rcvbuf
            ):
                return
            self.build()
        options = self.opts
        if options.keepalive and self.keep_at is None:
            self.keep_at = self.last_heard + options.keepidle
            self.keep_probes = 0
        elif not options.keepalive:
            self.keep_at = None
        if options.congestion and options.congestion != self.congestion.name:
            cwnd, ssthresh = self.congestion.cwnd, self.congestion.ssthresh
            self.congestion = make(options.congestion, self.mss, self.initial_window)
            self.congestion.cwnd, self.congestion.ssthresh = cwnd, ssthresh
        if options.rcvbuf:
            self.rcv_limit = self.rcv_max = options.rcvbuf
        if options.maxseg and (mss := self.fitting_mss(self.endpoint.path_mtu(self))) < self.mss:
            self.mss = self.scoreboard.mss = mss
            self.congestion.resized(mss)
        peer = self.peer
        if peer.tos != options.tos & 0xFC:
            peer.tos = options.tos
        if peer.ttl != options.ttl:
            peer.ttl = options.ttl
        self.endpoint.mark(self)

    # -- path ----------------------------------------------------------------------------

    def path_mtu(self, mtu: int) -> None:
        """The path carries no larger packets than this: cut what is in flight anew (RFC 1191, RFC 8201)."""
        self.build()
        mss = self.fitting_mss(mtu)
        if mss >= self.mss or self.closed:
            return
        self.mss = self.scoreboard.mss = mss
        self.congestion.resized(mss)
        if self.snd_nxt > self.snd_una:
            self.recovering = False
            self.scoreboard.cut_anew()
            if self.timer == Timer.PROBE:
                self.timer, self.retransmit_at = Timer.RTO, None  # it would send the last one again as it was
        self.endpoint.mark(self)

    def start_sending(self) -> None:
        """The handshake is over: `mss` and `sack` are known, data begin at snd_una."""
        self.scoreboard = Scoreboard(self.mss, self.sack, self.snd_una)
        self.congestion = make(self.opts.congestion or self.settings.congestion, self.mss, self.initial_window)
        if self.send_buffer is None:
            self.send_buffer = SendBuffer(self.snd_una)

    def soft(self, error: OSError) -> None:
        """ICMP says that the peer cannot be reached. An established connection goes on trying (RFC 5461)."""
        if self.opening:
            self.end(error)
        elif self.built:
            self.soft_error = error

    # -- hand-over to the NIC (see `handover`) -------------------------------------------

    @property
    def in_trouble(self) -> bool:
        """Whether something was lost, or the window has closed, and that is not over."""
        return self.built and (
            self.recovering or self.retries > 0 or self.scoreboard.lost_bytes > 0 or self.timer == Timer.PERSIST
        )

    @property
    def owes_ack(self) -> bool:
        """Whether the peer waits for an acknowledgment."""
        return self.ack_now or self.ack_at is not None

    @property
    def echoes_ce(self) -> bool:
        """Whether what we send must tell of congestion (RFC 3168 section 6.1.3)."""
        return self.built and self.ecn and self._echo_ce

    def hand_over_begins(self, record: Record) -> None:
        """`CLOSE` has been posted; the frames carry what acknowledgment was due."""
        self.handing, self._record = True, record
        self.ack_now, self.ack_at = False, None

    def hand_over_refused(self) -> None:
        """The NIC does not take the connection: go on as before, and do not ask again."""
        self.handing = self.offload = False
        self._record = None
        self.build()
        self.endpoint.mark(self)

    def handed_over(self) -> ConnectionEvents | None:
        """The NIC has the connection: nothing of it is kept here. Who wants to hear of its end."""
        self.handing = False
        told = self.closed or self.in_time_wait or self.error is not None
        if not self.closed:
            self.uncount()
        self.closed = True
        self.drop_memory()
        self.endpoint.blocked.discard(self)
        events, self.events = self.events, None
        return None if told else events

    # -- splicing (see `splicing`) -------------------------------------------------------

    def acknowledged_to_splice(self, segment: Segment, ack: int) -> None:
        """What a peer says of data that were written before the NIC began to forward others behind them; ack: at most the end
        of those. Nothing else of the segment is for us."""
        now = self.endpoint.now
        self.last_heard = now
        seq = self.rcv_nxt + ((segment.seq - self.rcv_nxt + HALF) & MASK) - HALF
        self._acknowledged(ack, segment, seq, bool(segment.payload or segment.flags & FIN), now)
        if not self.closed:
            self.endpoint.mark(self)

    def forwarded_up_to(self, end: int) -> None:
        """The NIC has sent on data up to `end` behind ours, and all are acknowledged: go on from there."""
        self.endpoint.queued -= self.unsent_or_unacked
        self.send_buffer = SendBuffer(end)
        retransmissions = self.scoreboard.retransmissions
        self.scoreboard = Scoreboard(self.mss, self.sack, end)
        self.scoreboard.retransmissions = retransmissions
        self.snd_una = self.snd_nxt = end
        self.recovering = False
        self.retries = 0
        self.timer, self.retransmit_at = Timer.RTO, None
        self._small_end = self._cwr_until = end
        self._peer_before = None
        self._wl1, self._wl2 = self.rcv_nxt - 1, end
        # What window it has now we have not heard; one segment is no risk.
        self.snd_wnd = max(self.snd_wnd, self.mss)

    def acknowledged_elsewhere(self, ack: int) -> None:
        """The NIC has heard that the peer has all data up to `ack`."""
        if self.snd_una < ack <= self.snd_nxt:
            now = self.endpoint.now
            self.scoreboard.acked(ack, (), now)
            self._progress(ack, now, False)
            if self.scoreboard.news:
                self._news(self.scoreboard.news, self.scoreboard.high - ack, now)

    def received_up_to(self, end: int) -> None:
        """The peer of the other connection has acknowledged all data up to `end`: so have we."""
        self.rcv_nxt = self._last_ack_sent = end
        self._unacked = 0
        self._wl1 = min(self._wl1, end - 1)

    def take_kept(self) -> None:
        """Go on as what was: what came meanwhile is received now, and the peer hears where we are."""
        now = self.endpoint.now
        edge = self.reassembly.end
        self.rcv_adv = max(self.rcv_adv, self.rcv_nxt if edge is None else edge)
        self.last_heard = self.ts_recent_at = now
        if self.opts.keepalive and self.keep_at is None:
            self.keep_at = now + self.opts.keepidle
        self._data(self.rcv_nxt, memoryview(b""), False, now)
        self.ack_now = True
        self.endpoint.mark(self)

    def ended_elsewhere(self) -> None:
        """Both sides have closed, by what the NIC has forwarded."""
        self.fin_queued = self.fin_sent = self.fin_acked = self.fin_received = True
        self.ack_now = False
        self.end(None)

    # -- end -----------------------------------------------------------------------------

    def drop_memory(self) -> None:
        """Forget data; keep received ones that somebody may still read."""
        if self.closed:
            self.send_buffer = None
        if self.built and self.reassembly:
            self.endpoint.buffered -= self.reassembly.size
            self.reassembly.clear()
        if not self.reading:
            self.receive_buffer = NOTHING_RECEIVED

    def uncount(self) -> None:
        """The connection is over: what nobody has read yet is his who may still read it, not the endpoint's; what nobody has
        acknowledged is gone."""
        self.endpoint.buffered -= len(self.receive_buffer)
        self.endpoint.queued -= self.unsent_or_unacked

    def maybe_closed(self) -> None:
        """After a FIN or its acknowledgment."""
        if self.fin_acked and self.fin_received:
            if self._passive:
                self.end(None)
            elif not self._waiting:
                self._waiting = True
                self.retransmit_at = self.linger_at = self.keep_at = None
                self.drop_memory()
                self._set_wait(self.settings.time_wait)
                if self.events is not None:
                    self.events.closed(None)
        elif self.fin_acked:
            self.linger_at = None
            if not self.reading and self.wait_at is None:
                self._set_wait(self.settings.fin_wait_2)

    def _set_wait(self, seconds: float) -> None:
        self.wait_at = self.endpoint.now + seconds
        self.endpoint.mark(self)

    def end(self, error: OSError | None) -> None:
        """Over. The endpoint keeps the tuple for a while so that stray segments are not news."""
        if self.closed:
            return
        if self.ack_now and error is None:
            self.send_ack()
        waiting = self.in_time_wait
        self.closed = True
        self.error = error
        self.uncount()
        self.endpoint.ended(self)
        self.drop_memory()
        if self.splice is not None:
            self.splice.closed(error)
        if self.events is not None and not waiting:
            self.events.closed(error)
