"""What happens to a connection as time passes: retransmission (RFC 6298), tail loss probe and reordering
time-out (RFC 8985), window probes (RFC 9293 section 3.8.6.1), delayed acknowledgment, keep-alive (RFC 9293 section
3.8.4), user time-out, the waits of a close.

`deadline` says when there is something to do, `timers` does it.
"""

from __future__ import annotations

import errno
import os

from .block import NEVER, Opening, Timer
from .output import Output
from .segment import ACK, RST

__all__ = ["Timers"]


class Timers(Output):
    """Third layer of a connection."""

    __slots__ = ()

    def deadline(self) -> float | None:
        """When `timers` has something to do."""
        if self.closed:
            return None
        at = self.ack_at if self.ack_at is not None else NEVER
        if self.built:
            if self.retransmit_at is not None and self.retransmit_at < at and not self.handing:
                at = self.retransmit_at
            for other in (self.wait_at, self.linger_at, self.keep_at, self.syn_at):
                if other is not None and other < at:
                    at = other
            if self.opts.user_timeout and self.snd_nxt > self.snd_una:
                at = min(at, self.progress_at + self.opts.user_timeout)
        return at if at != NEVER else None

    def timers(self) -> None:
        """Run what is due."""
        now = self.endpoint.now
        if self.ack_at is not None and now >= self.ack_at:
            self.ack_at = None
            self.send_ack()
        if not self.built:
            return
        if self.syn_at is not None and now >= self.syn_at:
            self._syn_timer()
        if self.wait_at is not None and now >= self.wait_at:
            self.end(None)
        if self.closed:
            return
        if self.linger_at is not None and now >= self.linger_at:
            self.abort()
            return
        if self.handing:
            return
        if self.opts.user_timeout and self.snd_nxt > self.snd_una and now >= self.progress_at + self.opts.user_timeout:
            self.give_up()
            return
        if self.keep_at is not None and now >= self.keep_at:
            self._keep_alive(now)
        if self.retransmit_at is not None and now >= self.retransmit_at and not self.closed:
            self.retransmit_at = None
            if self.timer == Timer.RTO:
                self._time_out(now)
            elif self.timer == Timer.PERSIST:
                self._probe_window(now)
            elif self.timer == Timer.PROBE:
                self._probe_tail(now)
            else:
                self.detect_loss(now)
            if not self.closed:
                self.output()

    # -- retransmission ------------------------------------------------------------------

    def _time_out(self, now: float) -> None:
        """RFC 6298 section 5.4 to 5.7: everything in flight is taken for lost, and slow start sends it again."""
        self.retries += 1
        if self.retries > self.settings.retries:
            self.give_up()
            return
        self._look_elsewhere()
        if self.splice is not None:
            self.splice.timed_out()
        self.rtt.backed_off()
        board = self.scoreboard
        self.congestion.timed_out(board.high - board.una, now, self.retries == 1)
        self.recovering = False
        board.time_out()
        self.timer, self.retransmit_at = Timer.RTO, now + self.rtt.rto

    def _look_elsewhere(self) -> None:
        """One frame with an odd source address must not cut us off: after the second time-out try both in turn."""
        if self.retries > 1 and self._peer_before is not None:
            self._peer_before, self.peer = self.peer, self._peer_before
            self._moved_at = self.snd_nxt
        if self.retries > 2:
            self.endpoint.doubt(self)

    def detect_loss(self, now: float) -> None:
        """RACK (RFC 8985 section 6.2, step 5): mark what is lost, begin recovery, wait for what may only be late."""
        board, rtt = self.scoreboard, self.rtt
        wait = board.detect(now, rtt.srtt, rtt.min_rtt)
        if board.lost_bytes and not board.recovering:
            self.begin_recovery(now)
        if wait is not None:
            self.timer, self.retransmit_at = Timer.REORDER, wait
        elif self.timer == Timer.REORDER:
            self.timer, self.retransmit_at = Timer.RTO, None

    def begin_recovery(self, now: float) -> None:
        """Something was lost: RFC 6675 section 5, with the rate of RFC 6937."""
        board = self.scoreboard
        self.congestion.lost(board.high - board.una, now)
        self.prr.begin(board.high - board.una - board.sacked_bytes + board.delivered, self.mss)
        board.recover()
        self.recovering = True

    def _probe_tail(self, now: float) -> None:
        """RFC 8985 section 7.3: new data if the window has room for some, else the last segment again."""
        board = self.scoreboard
        length = min(self.mss, self.send_buffer.end - self.snd_nxt, self.snd_una + self.snd_wnd - self.snd_nxt)  # type: ignore[union-attr]
        if length > 0:
            if self._send_data(length, now):
                board.probed(None)
        else:
            entry = board.last()
            if entry is not None and self.resend(entry, now):
                board.probed(entry)
        self.timer, self.retransmit_at = Timer.RTO, now + self.rtt.rto

    def _send_data(self, length: int, now: float) -> bool:
        """New data whatever the congestion window says."""
        end = self.snd_nxt + length
        if not self.emit(self.snd_nxt, ACK, length, True):
            return False
        if self.snd_nxt == self.snd_una:
            self.progress_at = now
        self.scoreboard.sent(self.snd_nxt, end, now)
        self.snd_nxt = end
        return True

    def _probe_window(self, now: float) -> None:
        """A byte against the closed window. It is sent like any other data, so it may be taken."""
        self.retries += 1
        if self.retries > self.settings.retries:
            self.give_up()
            return
        self._look_elsewhere()
        self.rtt.backed_off()
        if self.snd_nxt > self.snd_una:
            self.scoreboard.time_out()  # the probe before was not taken; `output` sends it again
        elif self.snd_nxt < self.send_buffer.end:  # type: ignore[union-attr]
            self._send_data(min(max(self.snd_wnd, 1), self.mss, self.send_buffer.end - self.snd_nxt), now)  # type: ignore[union-attr]
        self.timer, self.retransmit_at = Timer.PERSIST, now + self.rtt.rto

    def _syn_timer(self) -> None:
        self.syn_at = None
        self.retries += 1
        limit = self.settings.syn_retries if self.opening == Opening.SYN_SENT else self.settings.synack_retries
        if self.retries > limit:
            self.end(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
            return
        self.endpoint.doubt(self)
        self.endpoint.mark(self)

    # -- silence -------------------------------------------------------------------------

    def _keep_alive(self, now: float) -> None:
        options = self.opts
        if not options.keepalive or self.fin_sent or self.splice is not None:
            self.keep_at = None
            return
        if now < self.last_heard + options.keepidle or self.snd_nxt > self.snd_una:
            self.keep_at = max(self.last_heard, now if self.snd_nxt > self.snd_una else 0.0) + options.keepidle
            self.keep_probes = 0
            return
        if self.keep_probes >= options.keepcnt:
            self.give_up()
            return
        self.keep_probes += 1
        # A byte that the peer has acknowledged: it must answer (RFC 9293 section 3.8.4).
        self.emit(self.snd_una - 1, ACK)
        self.keep_at = now + options.keepintvl

    def give_up(self) -> None:
        """The peer does not answer."""
        self.emit(min(self.snd_nxt, self.snd_una + self.snd_wnd), RST | ACK)
        self.reset_strays = True
        self.end(self.soft_error or TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
