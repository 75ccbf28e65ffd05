"""Segments in: RFC 9293 section 3.10.7 from SYN-SENT on, with RFC 5961 (forged segments), RFC 7323
(timestamps, PAWS) and RFC 3168 (ECN)."""

from __future__ import annotations

import errno
import os

from acceltcp.abi.wire import MSS_DEFAULT_IPV4, MSS_DEFAULT_IPV6, WINDOW_MAX

from .block import CLOCK_STALE_S, NEVER, NOTHING_RECEIVED, RECEIVE_FIRST, Opening, Timer
from .receive_buffer import ReceiveBuffer
from .scoreboard import RECOVERED, REPAIRED, SPURIOUS
from .segment import ACK, CWR, ECE, FIN, HALF, MASK, RST, SYN, Peer, Segment
from .timers import Timers

__all__ = ["Arrival"]

_PAWS_IDLE_S = 24 * 86400.0


class Arrival(Timers):
    """Fourth layer of a connection."""

    __slots__ = ()

    def receive(self, segment: Segment) -> bool:
        """A segment of this connection. Whether it was acceptable, so that what it says about its
        sender may be believed."""
        if self.opening:
            return self._handshake(segment)
        endpoint = self.endpoint
        now = endpoint.now
        flags = segment.flags
        payload = segment.payload
        length = len(payload)
        rcv_nxt = self.rcv_nxt
        seq = rcv_nxt + ((segment.seq - rcv_nxt + HALF) & MASK) - HALF
        if not self.built:
            if (
                seq == rcv_nxt
                and flags & (SYN | RST | FIN | ACK) == ACK
                and segment.ack == self.snd_nxt & MASK
                and seq + length <= self.rcv_adv
                and segment.ts == self.timestamps
                and self.reading
                and not self.fin_queued
                and not (self.timestamps and (segment.tsval - self.ts_recent) & MASK >= HALF)
                and not segment.ce
                and endpoint.buffered < endpoint.memory_most
            ):
                self._first_data(segment, length, now)
                return True
            self.build()
        end = seq + length + (flags & FIN)

        if flags & (SYN | RST) == SYN:
            self._answer_stray(False)  # whatever its number and its options (RFC 5961 section 4.2)
            return False
        if self.timestamps and not flags & RST:
            if not segment.ts:
                return False
            if (segment.tsval - self.ts_recent) & MASK >= HALF and now - self.ts_recent_at < _PAWS_IDLE_S:
                self._answer_stray(length > 0)
                return False

        if flags & RST:
            if seq == rcv_nxt:
                self.reset_by_peer()
            elif rcv_nxt < seq < self.rcv_adv:
                self._answer_stray(False)
            return False

        if end > seq:
            inside = seq <= self.rcv_adv and end > rcv_nxt
        else:
            inside = self._last_ack_sent <= seq <= self.rcv_adv
        if not inside:
            # A repetition, mostly: our acknowledgment was lost. Nobody may make us chatter.
            if length and end <= rcv_nxt:
                self.reassembly.duplicate(seq, end - (flags & FIN))
            self._answer_stray(end > seq)
            return False
        if not flags & ACK:
            return False

        if self.timestamps and seq <= self._last_ack_sent:
            self.ts_recent = segment.tsval
            self.ts_recent_at = now
        self.last_heard = now

        una = self.snd_una
        ack = una + ((segment.ack - una + HALF) & MASK) - HALF
        if ack > self.snd_nxt or ack < una - self.max_wnd:
            self._answer_stray(False)
            return False
        if ack > una or segment.sack or self.snd_nxt > una or segment.window << self.snd_shift != self.snd_wnd:
            self._acknowledged(ack, segment, seq, end > seq, now)
            if self.closed:
                return True
        else:
            self._wl1, self._wl2 = seq, ack
        if self.ecn:
            if segment.ce:
                self._echo_ce = True
                self.ack_now = True
            elif flags & CWR:
                self._echo_ce = False
        if length and endpoint.buffered >= endpoint.memory_most and self.sink is None and self.reading:
            self.ack_now = True  # nowhere to put it: the peer will repeat it
        elif end > seq and not (self.handing and seq + length > rcv_nxt):
            self._data(seq, payload, bool(flags & FIN), now)
        if not self.closed:
            endpoint.mark(self)
        return True

    def _first_data(self, segment: Segment, length: int, now: float) -> None:
        """In-order data before anything was sent: all that a lazy connection knows how to take."""
        if self.timestamps:
            self.ts_recent = segment.tsval
        self.last_heard = now
        self.snd_wnd = segment.window << self.snd_shift
        if length:
            self.rcv_nxt += length
            if self.rcv_nxt - self.irs > RECEIVE_FIRST // 2:
                self.build()  # somebody sends much: the window shall grow with its reader
            if self.ack_at is None:
                self.ack_at = now + self.settings.delayed_ack
            else:
                self.ack_now = True
            self.endpoint.mark(self)
            self.deliver(segment.payload)

    # -- handshake of `connect` ----------------------------------------------------------

    def _handshake(self, segment: Segment) -> bool:
        """RFC 9293 section 3.10.7.3 (SYN-SENT) and, after a simultaneous open, 3.10.7.4 (SYN-RECEIVED)."""
        flags = segment.flags
        acceptable = bool(flags & ACK) and segment.ack == self.iss + 1 & MASK and self.syn_at is not None
        if self.opening == Opening.SYN_SENT:
            if flags & ACK and not acceptable:
                if not flags & RST:
                    self.endpoint.answer_with_reset(self.peer, segment)
                return False
            if flags & RST:
                if acceptable:
                    self.end(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
                return False
            if not flags & SYN or not self._agree(segment, acceptable):
                return False
            if not acceptable:
                # Simultaneous open: we answer with SYN-ACK and wait for the acknowledgment of our SYN.
                self.opening = Opening.SYN_RECEIVED
                self.retries = 0
                self.syn_at = None
                self.endpoint.mark(self)
                return True
            self._established(segment.window)
            self.ack_now = True
            if segment.payload or flags & FIN:
                self._data(self.rcv_nxt, segment.payload, bool(flags & FIN), self.endpoint.now)
            return True
        seq = self.rcv_nxt + ((segment.seq - self.rcv_nxt + HALF) & MASK) - HALF
        if flags & RST:
            if seq == self.rcv_nxt:
                self.end(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
            return False
        if flags & SYN and flags & ACK and acceptable and segment.seq == self.irs & MASK:
            # The other side of a simultaneous open says what we know, and acknowledges our SYN.
            self._established(segment.window)
            self.ack_now = True
            return True
        if not acceptable or flags & SYN or not self.rcv_nxt <= seq + len(segment.payload) <= self.rcv_adv + len(segment.payload):
            return False
        self._established(segment.window << self.snd_shift)
        return self.receive(segment)

    def _agree(self, segment: Segment, acknowledged: bool) -> bool:
        """Take over what the peer's SYN offers of what we offered; False for malformed options."""
        options = segment.syn_options()
        if options is None:
            return False
        self.irs = segment.seq
        self.rcv_nxt = self.irs + 1
        self.rcv_adv = self.rcv_nxt + min(self.rcv_limit, WINDOW_MAX)
        self.ecn = self.ecn and segment.flags & (ECE | CWR) == (ECE if acknowledged else ECE | CWR) and self.retries == 0
        self.sack = self.sack and options.sack
        self.timestamps = self.timestamps and options.tsval is not None
        if options.wscale is None:
            self.snd_shift = self.rcv_shift = 0
        else:
            self.snd_shift = options.wscale
        self.ts_recent = options.tsval or 0
        self.ts_recent_at = self.endpoint.now
        self.peer_mss = options.mss if options.mss is not None else (MSS_DEFAULT_IPV6 if self.peer.ipv6 else MSS_DEFAULT_IPV4)
        self.mss = self.fitting_mss(self.endpoint.path_mtu(self))
        self._last_ack_sent = self.rcv_nxt
        self.snd_wnd = self.max_wnd = segment.window
        self._wl1 = self.rcv_nxt
        return True

    def _established(self, window: int) -> None:
        """The handshake is over. window: the peer's, in bytes."""
        now = self.endpoint.now
        first = self.retries == 0
        started = self.progress_at
        self.opening = Opening.DONE
        self.syn_at = None
        self.retries = 0
        self.snd_una = self.snd_nxt = self.iss + 1
        self._wl2 = self.snd_una
        self.snd_wnd = self.max_wnd = window
        self.start_sending()
        if first:
            self.rtt.sample(now - started, now)
        else:
            self.rtt.handshake_timed_out()
        self.last_heard = self.progress_at = now
        self.endpoint.connected(self)
        self.endpoint.mark(self)
        if self.events is not None:
            self.events.connected()

    # -- odd segments --------------------------------------------------------------------

    def _answer_stray(self, repeated: bool) -> None:
        """ACK for a segment that is not acceptable. Repeated data get theirs at once; what may
        be an attack or the start of a loop, only so often (RFC 5961 section 7)."""
        now = self.endpoint.now
        if repeated and self._waiting:
            self.wait_at = now + self.settings.time_wait
        if repeated or now - self._challenged_at >= self.settings.challenge_interval:
            if not repeated:
                self._challenged_at = now
            self.send_ack()

    def reset_by_peer(self) -> None:
        """A valid RST."""
        self.build()
        if self._waiting:
            return  # TIME_WAIT is not to be assassinated (RFC 1337)
        if self.fin_sent and self.fin_received:
            self.end(None)
        else:
            self.end(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    # -- acknowledgments -----------------------------------------------------------------

    def _acknowledged(self, ack: int, segment: Segment, seq: int, has_data: bool, now: float) -> None:
        window = segment.window << self.snd_shift
        una = self.snd_una
        board = self.scoreboard
        progress = ack > una
        blocks = self._blocks(segment.sack, una) if segment.sack and self.sack else ()
        outstanding = board.high - una
        if progress or blocks or (board.probing and ack == una and not has_data):
            flight = board.in_flight
            board.acked(ack, blocks, now, self.rtt.min_rtt, NEVER if board.calm else self._echoed(segment, now))
            if board.rtt > 0.0:
                self.rtt.sample(board.rtt, now, max(1, flight // (2 * self.mss)))
            if progress:
                self._progress(ack, now, board.rtt > 0.0)
            if board.news:
                self._news(board.news, outstanding, now)
            if self.sack and not board.calm:
                if self.timer == Timer.PROBE:
                    self.timer, self.retransmit_at = Timer.RTO, None  # no probe beside SACKed data (RFC 8985 section 7.2)
                self.detect_loss(now)
        elif not self.sack and not has_data and window == self.snd_wnd and self.snd_nxt > una and self.timer != Timer.PERSIST and not self.handing:
            board.duplicate()
        else:
            board.newly_acked = board.delivered = 0
        if board.lost_bytes and not board.recovering:
            self.begin_recovery(now)
        if board.delivered:
            if self.recovering:
                self.prr.acked(
                    board.delivered, board.in_flight, self.congestion.ssthresh, self.mss, progress and not board.lost_bytes
                )
            elif board.newly_acked:
                self.congestion.acked(board.newly_acked, board.in_flight, now, board.rtt, self.rtt.srtt, self.cwnd_limited)

        # Also when it acknowledges more than any before, though its number is old: what the peer sends again tells the window of now,
        # and SND.UNA + SND.WND would else be an edge that nobody promised.
        if progress or self._wl1 < seq or (self._wl1 == seq and self._wl2 <= ack):
            if window != self.snd_wnd:
                opened = self.timer == Timer.PERSIST and window > self.snd_wnd and self.retransmit_at is not None
                self.snd_wnd = window
                if window > self.max_wnd:
                    self.max_wnd = window
                if opened:
                    # What probed the closed window was perhaps dropped by it.
                    self.retries = 0
                    self.retransmit_at = None
                    self.timer = Timer.RTO
                    if self.snd_nxt > self.snd_una:
                        board.time_out()
            if not window:
                self.retries = 0  # the peer is there, its window closed (RFC 9293 section 3.8.6.1)
            self._wl1, self._wl2 = seq, ack
        if self.ecn and segment.flags & ECE and self.snd_una > self._cwr_until and self.snd_nxt > self.snd_una:
            self._cwr_until = self.snd_nxt
            if not self.recovering:
                self.congestion.congested(outstanding, now)
            self._send_cwr = True
        if self.fin_acked:
            self.maybe_closed()

    @staticmethod
    def _blocks(sack: tuple[tuple[int, int], ...], una: int) -> list[tuple[int, int]]:
        """SACK blocks as numbers that do not wrap."""
        return [
            (una + ((left - una + HALF) & MASK) - HALF, una + ((right - una + HALF) & MASK) - HALF) for left, right in sack
        ]

    def _echoed(self, segment: Segment, now: float) -> float:
        """The latest time at which what this segment acknowledges can have gone out, by the timestamp it echoes. Ours may
        be late by `CLOCK_STALE_S`."""
        if not self.timestamps or not segment.ts or not segment.tsecr or self.ts_floor is not None:
            return NEVER
        endpoint = self.endpoint
        steps = endpoint.tsval() - segment.tsecr & MASK
        if steps >= HALF:
            return NEVER
        return now - (steps - 1) * endpoint.ts_step + CLOCK_STALE_S

    def _progress(self, ack: int, now: float, sampled: bool) -> None:
        """snd_una moves."""
        buffer = self.send_buffer
        assert buffer is not None
        size = len(buffer)
        if self.fin_sent and ack > buffer.end:
            self.fin_acked = True
            buffer.release(buffer.end)
        else:
            buffer.release(ack)
        self.endpoint.queued -= size - len(buffer)
        self.snd_una = ack
        if ack > self._moved_at:
            self._peer_before = None
        if self.retries:
            self.retries = 0
            if not sampled:
                self.rtt.progress()
        self.progress_at = now
        self.soft_error = None
        self.retransmit_at = None
        self.timer = Timer.RTO
        if self.events is not None:
            self.events.writable()

    def _news(self, news: int, outstanding: int, now: float) -> None:
        """What the scoreboard concludes. outstanding: bytes that were not acknowledged before."""
        if news & SPURIOUS:
            self.congestion.undo()
            self.scoreboard.undo()
            self.recovering = False
            self.endpoint.stats["spurious"] += 1
        elif news & RECOVERED:
            self.recovering = False
            self.congestion.recovered(now)
        if news & REPAIRED and not self.scoreboard.recovering:
            self.congestion.lost(outstanding, now)
            self.congestion.recovered(now)

    # -- data ----------------------------------------------------------------------------

    def _data(self, seq: int, payload: memoryview, fin: bool, now: float) -> None:
        if self.fin_received:
            return
        length = len(payload)
        nxt = self.rcv_nxt
        if fin and self._fin_at is None and seq + length <= self.rcv_adv:
            self._fin_at = seq + length
        if not self.reading and self.fin_acked and payload and seq + length > nxt:
            # Everything we had to say was heard, and nobody reads: the data are lost (RFC 1122 4.2.2.13).
            self.emit(self.snd_nxt, RST | ACK)
            self.reset_strays = True
            self.end(ConnectionResetError(errno.ECONNRESET, "data came after the connection was closed"))
            return
        limit = self.rcv_adv
        if self._fin_at is not None and self._fin_at < limit:
            limit = self._fin_at
        if seq + length > limit:
            payload = payload[: max(limit - seq, 0)]
            length = len(payload)
            self.ack_now = True
        reassembly = self.reassembly
        if seq > nxt:
            if payload and not self.endpoint.pressed:
                self.endpoint.buffered += reassembly.add(seq, payload)
            self.send_ack()
            return
        filled = bool(reassembly)
        if seq < nxt:
            if payload:
                reassembly.duplicate(seq, min(nxt, seq + length))
            payload = payload[nxt - seq :]
            self.ack_now = True
        fresh = len(payload)
        parts: list[bytes] | None = None
        self.rcv_nxt = nxt = nxt + fresh
        self._unacked += fresh
        if filled:
            held = reassembly.size
            parts = reassembly.join(nxt)
            self.endpoint.buffered -= held - reassembly.size
            self.rcv_nxt = nxt = nxt + sum(map(len, parts))
            self.ack_now = True
        ended = self._fin_at is not None and nxt == self._fin_at
        if ended:
            self.rcv_nxt += 1
            self.ack_now = True
            if reassembly:
                self.endpoint.buffered -= reassembly.size
                reassembly.clear()
        elif self._unacked >= 2 * self.mss or (self.opts.quickack and fresh) or not self.settings.piggyback:
            self.ack_now = True
        if self._unacked and not self.ack_now and self.ack_at is None:
            self.ack_at = now + self.settings.delayed_ack
        if fresh:
            self.deliver(payload)
        if parts:
            for part in parts:
                self.deliver(memoryview(part), part)
        if ended and not self.closed:
            # Only now: whoever is told of data looks at it to see whether more will come.
            self.fin_received = True
            if self.events is not None:
                self.events.readable()
            self.maybe_closed()

    def deliver(self, view: memoryview, whole: bytes | None = None) -> None:
        """Data for the user, in order. whole: the same as an object that may be kept."""
        if not self.reading or self.closed:
            return
        sink = self.sink
        if sink is not None and not self.receive_buffer:
            if not self.settings.zero_copy:
                view = memoryview(bytes(bytearray(view)))
            sink(view)
            if self.built:
                self.taken(len(view))
            return
        buffer = self.receive_buffer
        if buffer is NOTHING_RECEIVED:
            buffer = self.receive_buffer = ReceiveBuffer()
        if whole is not None:
            buffer.append_bytes(whole)
        else:
            buffer.append(view)
        self.endpoint.buffered += len(view)
        if self.events is not None:
            self.events.readable()

    def taken(self, size: int) -> None:
        """The user takes what comes: offer him more at once, so that the window is not what holds the peer back."""
        if self.rcv_limit < self.rcv_max and not self.endpoint.pressed:
            self._taken += size
            if self._taken >= self.rcv_limit // 2:
                self._taken = 0
                self.rcv_limit = min(2 * self.rcv_limit, self.rcv_max)

    # -- where replies go ----------------------------------------------------------------

    def moved(self, peer: Peer) -> None:
        """A segment came from another MAC address: replies go there from now on."""
        self.build()
        self._peer_before, self.peer = self.peer, peer
        self._moved_at = self.snd_nxt

    @property
    def address_in_doubt(self) -> bool:
        """Nothing first sent to the peer's present MAC address has been acknowledged."""
        return self.built and self._peer_before is not None
