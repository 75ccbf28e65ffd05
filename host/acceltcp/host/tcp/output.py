"""Segments out: what a connection may send now (RFC 9293 section 3.8), and the making of each.

`output` sends in this order: what was lost (RFC 6675, limited by RFC 6937), new data as the windows, Nagle and
silly window avoidance let it, FIN, and last an acknowledgment if none of these carried it.
"""

from __future__ import annotations

import struct

from acceltcp.abi.wire import TCP, TCP_OPTION_BYTES_MAX, WINDOW_MAX, TCPOption

from .block import NOTHING_RECEIVED, RECEIVE_FIRST, ControlBlock, Opening, Timer
from .scoreboard import Sent
from .segment import ACK, CWR, ECE, FIN, HALF, MASK, PSH, SYN, TS_OPTION, TS_PREFIX

__all__ = ["Output"]

_BLOCK = struct.Struct("!II")
_pack_timestamps = TS_OPTION.pack


class Output(ControlBlock):
    """Second layer of a connection."""

    __slots__ = ()

    # -- what a segment says -------------------------------------------------------------

    def window_field(self) -> int:
        """The window field, and with it the promise `rcv_adv`; the right edge moves back only
        when a peer would make us keep more than we said (RFC 7323 section 2.4)."""
        shift = self.rcv_shift
        if self.splice is not None:
            return min(max(self.rcv_adv - self.rcv_nxt, 0) >> shift, WINDOW_MAX)
        if not self.built and self.receive_buffer is NOTHING_RECEIVED:
            # Of what was received nothing is kept.
            window = RECEIVE_FIRST >> shift
            if window > WINDOW_MAX:
                window = WINDOW_MAX
            if self.rcv_nxt + (window << shift) >= self.rcv_adv and not self.endpoint.pressed:
                self.rcv_adv = self.rcv_nxt + (window << shift)
                return window
        buffered = len(self.receive_buffer)
        limit = self.rcv_limit if self.built else RECEIVE_FIRST
        promised = self.rcv_adv - self.rcv_nxt
        if promised < 0:
            promised = 0
        free = limit - buffered
        if self.endpoint.pressed and free > promised:
            free = promised
        # Silly window avoidance (RFC 9293 section 3.8.6.2.2).
        if free - promised < min(limit // 2, self.mss):
            free = promised
        window = min(free >> shift, WINDOW_MAX)
        if window << shift < promised:
            if buffered <= limit + WINDOW_MAX + 1:
                window = min(promised + (1 << shift) - 1 >> shift, WINDOW_MAX)
            else:
                window = min(promised >> shift, WINDOW_MAX)
        edge = self.rcv_nxt + (window << shift)
        if edge > self.rcv_adv:
            self.rcv_adv = edge
        return window

    def tsval(self) -> int:
        """TSval of a segment: the NIC's clock, but never less than the peer has seen. While the NIC forwards the packets of
        another peer in its place, the clock of that one goes on and ours stands (RFC 7323 section 5)."""
        floor = self.ts_floor
        if floor is not None and self.splice is not None:
            return floor
        clock = self.endpoint.tsval()
        if floor is None:
            return clock
        if (floor - clock) & MASK < HALF:
            return floor
        self.ts_floor = None
        return clock

    def emit(self, seq: int, flags: int, length: int = 0, fresh: bool = False) -> bool:
        """Send a segment with `length` bytes of the send buffer from `seq`; False when the device has no
        room now (then the endpoint calls `output` again later). fresh: sent for the first time."""
        endpoint = self.endpoint
        link = endpoint.link
        slot = link.reserve()
        if slot is None:
            endpoint.blocked.add(self)
            return False
        options = b""
        if self.timestamps:
            tsval = endpoint.tsval() if self.ts_floor is None else self.tsval()
            options = _pack_timestamps(TS_PREFIX, tsval, self.ts_recent)
        if self.built:
            if self.sack and not length and self.reassembly:
                options += self._sack_blocks(len(options))
            if self.ecn:
                if self._echo_ce:
                    flags |= ECE
                if fresh and self._send_cwr:
                    flags |= CWR
                    self._send_cwr = False
            self.last_sent = endpoint.now
            self._last_ack_sent = self.rcv_nxt
            self._unacked = 0
        peer = self.peer
        frame = slot if endpoint.direct else bytearray(peer.l4 + TCP.size + len(options) + length)
        at = peer.build(frame, seq, self.rcv_nxt, flags, self.window_field(), options, self.ecn and fresh, length)
        if length:
            self.send_buffer.copy_into(frame, at, seq, length)  # type: ignore[union-attr]
        if frame is not slot:
            slot[: len(frame)] = frame
        link.commit(at + length, peer.l3, peer.l4, peer.tx_flags, peer.port)
        self.ack_now = False
        self.ack_at = None
        return True

    def _sack_blocks(self, used: int) -> bytes:
        """RFC 2018 section 4, with the duplicate first (RFC 2883)."""
        blocks = self.reassembly.blocks((TCP_OPTION_BYTES_MAX - used - 4) // 8)
        if not blocks:
            return b""
        body = b"".join(_BLOCK.pack(left & MASK, right & MASK) for left, right in blocks)
        return bytes((TCPOption.NOP, TCPOption.NOP, TCPOption.SACK, 2 + len(body))) + body

    def send_ack(self) -> bool:
        """An acknowledgment; False when the device has no room for it now."""
        if not self.emit(self.snd_nxt, ACK):
            self.ack_now = True
            return False
        return True

    # -- what may be sent ----------------------------------------------------------------

    def output(self) -> None:
        """Send what may be sent now, and an acknowledgment if one is due."""
        if self.closed:
            return
        if self.opening:
            self.send_syn()
            return
        if not self.handing:
            if not self.built and self._lazy_output():
                return
            if self.offload and not self.reading and self.fin_queued and not self.fin_acked:
                self.endpoint.offer(self)  # type: ignore[arg-type]
        if self.handing:
            if self.ack_now:
                self.send_ack()
            return
        if not self.settings.piggyback and self.ack_now:
            self.send_ack()
        now = self.endpoint.now
        board = self.scoreboard
        sent = board.lost_bytes > 0 and self._send_lost(now)
        if (self.snd_nxt < self.send_buffer.end or (self.fin_queued and not self.fin_acked)) and self._send_new(now):  # type: ignore[union-attr]
            sent = True
        if sent or (self.retransmit_at is None and (self.snd_nxt > self.snd_una or self.snd_nxt < self.send_buffer.end)):  # type: ignore[union-attr]
            self.arm(now)
        if self.ack_now:
            self.send_ack()

    def _lazy_output(self) -> bool:
        """Output of a connection without control block; False when it takes one."""
        if self.fin_queued and not self.reading and self.offload and self.settings.piggyback:
            self.endpoint.offer(self)  # type: ignore[arg-type]
            if self.handing or self in self.endpoint.blocked:
                return True
        if self.fin_queued or self.send_buffer is not None:
            self.build()
            return False
        if self.ack_now:
            self.send_ack()
        return True

    def _budget(self) -> int:
        """Bytes that congestion control lets go now."""
        return self.prr.allowed if self.recovering else self.congestion.cwnd - self.scoreboard.in_flight

    def _send_lost(self, now: float) -> bool:
        """Retransmit what was lost, as far as the congestion window allows."""
        board = self.scoreboard
        budget = self._budget()
        edge = self.snd_una + max(self.snd_wnd, 1)
        sent = False
        while True:
            entry = board.next_lost()
            if entry is None or entry.start >= edge:
                return sent
            size = entry.end - entry.start
            # Of what PRR rounds down the rest goes too; and something must always be in flight.
            if budget <= 0 if self.recovering else size > budget and (sent or board.in_flight > 0):
                return sent
            if not self.resend(entry, now):
                return sent
            budget -= size
            sent = True

    def resend(self, entry: Sent, now: float) -> bool:
        """Send a range again; False when the device has no room."""
        end = self.send_buffer.end  # type: ignore[union-attr]
        fin = entry.end > end
        length = entry.end - entry.start - fin
        flags = ACK
        if fin:
            flags |= FIN
        if length and entry.end >= end:
            flags |= PSH
        if not self.emit(entry.start, flags, length):
            return False
        self.scoreboard.resent(entry, now)
        if self.recovering:
            self.prr.sent(entry.end - entry.start)
        return True

    def _send_new(self, now: float) -> bool:
        """Data and FIN that have not been sent."""
        board = self.scoreboard
        mss, una, nxt = self.mss, self.snd_una, self.snd_nxt
        data_end = self.send_buffer.end  # type: ignore[union-attr]
        if nxt == una:
            self.progress_at = now  # what counts is how long data have been waiting for their acknowledgment
            if now - self.last_sent > self.rtt.rto:
                self.congestion.idle(now, self.rtt.rto)
        budget = self._budget()
        edge = una + self.snd_wnd
        options = self.opts
        sent = False
        while True:
            left = data_end - nxt
            length = min(left, mss, edge - nxt, budget)
            fin = self.fin_queued and length == left >= 0 and not self.fin_acked
            if length <= 0:
                # A FIN alone is sent even against a closed window: it takes no buffer space.
                if not fin:
                    break
                length = 0
            elif length < mss:
                if length < left:
                    # Silly window avoidance: wait for an acknowledgment, or the probe timer.
                    if nxt > una or length < self.max_wnd // 2:
                        break
                elif not self.fin_queued and not self._small_may_go(nxt, options.nodelay, options.cork):
                    break
            if fin and length and not self.settings.piggyback:
                fin = False
            flags = ACK
            if length and length == left:
                flags |= PSH
            if fin:
                flags |= FIN
            end = nxt + length + fin
            if not self.emit(nxt, flags, length, True):
                break
            board.sent(nxt, end, now)
            if self.recovering:
                self.prr.sent(end - nxt)
            if 0 < length < mss:
                self._small_end = end
            if fin and not self.fin_sent:
                self.fin_sent = True
                self._passive = self.fin_received
            self.snd_nxt = nxt = end
            budget -= length
            sent = True
            if fin:
                break
        if sent:
            cwnd, flight = self.congestion.cwnd, board.in_flight
            self.cwnd_limited = flight + 2 * mss > cwnd or (cwnd < self.congestion.ssthresh and 2 * flight >= cwnd)
        return sent

    def _small_may_go(self, nxt: int, nodelay: bool, cork: bool) -> bool:
        """Whether the last, not full segment may go (RFC 9293 section 3.7.4, Nagle; with Minshall's change it waits only
        for another one like it)."""
        if self.splice is not None:
            return True  # nothing more will be written
        if cork:
            return False
        return nodelay or nxt == self.snd_una or self._small_end <= self.snd_una

    # -- the retransmission timer --------------------------------------------------------

    def arm(self, now: float) -> None:
        """Set the timer for what is in flight, or for the window to open."""
        if self.snd_nxt > self.snd_una:
            # Only progress starts it anew (RFC 6298 section 5.3), except that each transmission moves the probe.
            if self.retransmit_at is not None and self.timer != Timer.PROBE:
                return
            rto_at = now + self.rtt.rto
            if self.sack and not self.retries:
                probe_at = self.scoreboard.probe_due(now, self.rtt.srtt)
                if probe_at is not None and probe_at < rto_at:
                    self.timer, self.retransmit_at = Timer.PROBE, probe_at
                    return
            self.timer, self.retransmit_at = Timer.RTO, rto_at
        elif self.snd_nxt < self.send_buffer.end and self.retransmit_at is None and (  # type: ignore[union-attr]
            self.snd_wnd < min(self.send_buffer.end - self.snd_nxt, self.mss)  # type: ignore[union-attr]
        ):
            # Nothing in flight, something to send, and the window forbids it.
            self.timer, self.retransmit_at = Timer.PERSIST, now + self.rtt.rto

    # -- handshake -----------------------------------------------------------------------

    def send_syn(self) -> None:
        """The SYN of `connect`, or our half of a simultaneous open; again when the timer is due."""
        if self.syn_at is not None or not self.endpoint.locate(self):
            return
        endpoint = self.endpoint
        slot = endpoint.link.reserve()
        if slot is None:
            endpoint.blocked.add(self)
            return
        opened = self.opening == Opening.SYN_SENT
        flags = SYN if opened else SYN | ACK
        if self.ecn and self.retries == 0:
            flags |= ECE | CWR if opened else ECE
        options = endpoint.syn_options(self)
        peer = self.peer
        window = min(self.rcv_adv - self.rcv_nxt, WINDOW_MAX)
        ack = 0 if opened else self.rcv_nxt
        length = peer.build(slot, self.iss, ack, flags, window, options, False, 0)
        endpoint.link.commit(length, peer.l3, peer.l4, peer.tx_flags, peer.port)
        if self.retries == 0:
            self.progress_at = endpoint.now  # the first round trip begins here, not when the peer was looked for
        self.syn_at = endpoint.now + min(self.settings.initial_rto * (1 << self.retries), self.settings.max_rto)
        self.ack_now = False
