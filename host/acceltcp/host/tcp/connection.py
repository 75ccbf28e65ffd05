"""One TCP connection of the host's endpoint: RFC 9293 from ESTABLISHED on.

Sequence numbers are kept as plain integers that never wrap: a 32-bit number off the wire is
taken as the one nearest to what is expected. The state of section 3.3.2 follows from four
facts: our FIN queued, sent, acknowledged; the peer's FIN received.

Loss recovery is NewReno (RFC 6582) with RFC 6298 timers; congestion control RFC 5681 with a
first window of RFC 6928; timestamps and PAWS RFC 7323; resets and stray segments RFC 5961;
ECN RFC 3168. SACK blocks (RFC 2018) are sent, not used.
"""

from __future__ import annotations

import bisect
import enum
import errno
import os
import struct
from typing import TYPE_CHECKING, Protocol

from acceltcp.abi.wire import IPV4, IPV6, TCP, WSCALE_MAX, TCPOption

from .segment import ACK, CWR, ECE, FIN, HALF, MASK, PSH, RST, SYN, TS_OPTION, TS_PREFIX, Peer, Segment

if TYPE_CHECKING:
    from .endpoint import TcpEndpoint
    from .flows import Flow
    from .handover import Record

__all__ = ["ConnectionEvents", "State", "TcpConnection"]

_PAWS_IDLE_S = 24 * 86400.0
_WINDOW_LOW = 32768
"""With less than that many bytes of our window left, reading opens it at once; else the next acknowledgment does."""


class State(enum.Enum):
    """States of RFC 9293 that a connection can be in here."""

    ESTABLISHED = "established"
    FIN_WAIT_1 = "fin-wait-1"
    FIN_WAIT_2 = "fin-wait-2"
    CLOSE_WAIT = "close-wait"
    CLOSING = "closing"
    LAST_ACK = "last-ack"
    TIME_WAIT = "time-wait"
    CLOSED = "closed"


class ConnectionEvents(Protocol):
    """What a connection tells its user. Called from the endpoint's loop; must not block."""

    def readable(self) -> None:
        """Data or the end of data came in."""

    def writable(self) -> None:
        """The peer acknowledged data."""

    def handed_over(self, flow: Flow) -> None:
        """The NIC does the rest; `closed` follows to whoever is still there to hear it."""

    def closed(self, error: OSError | None) -> None:
        """Nothing more will come or go; `error` unless both sides closed in order."""


class TcpConnection:
    """A connection that a NEW segment opened. Created by `TcpEndpoint`."""

    def __init__(
        self,
        endpoint: TcpEndpoint,
        key: bytes,
        peer: Peer,
        segment: Segment,
        *,
        mss: int,
        wscale: int | None,
        our_wscale: int,
        our_window: int,
        sack: bool,
        timestamps: bool,
        ecn: bool,
        offload: bool = False,
    ) -> None:
        settings = endpoint.settings
        self.endpoint = endpoint
        self.settings = settings
        self.key = key
        self.peer = peer
        self._peer_before: Peer | None = None
        self._moved_at = 0
        self.events: ConnectionEvents | None = None
        self.error: OSError | None = None
        self.closed = False
        now = endpoint.now
        self.opened_at = self.last_heard = now

        self.iss, self.irs = segment.ack - 1 & MASK, segment.seq - 1 & MASK
        self.timestamps, self.sack, self.ecn = timestamps, sack, ecn
        self.ts_recent = segment.tsval
        self.ts_recent_at = now

        headers = (IPV6.size if peer.ipv6 else IPV4.size) + TCP.size
        options = 12 if timestamps else 0
        self.mss = max(min(mss, settings.mtu - headers) - options, 1)

        # Send side. `send_buffer` starts at snd_una.
        self.send_buffer = bytearray()
        self.snd_una = self.snd_nxt = self.snd_max = self.iss + 1
        self.snd_shift = 0 if wscale is None else min(wscale, WSCALE_MAX)
        self.snd_wnd = self.max_wnd = segment.window << self.snd_shift
        self._wl1, self._wl2 = self.irs + 1, self.snd_una
        self.cwnd = min(settings.initial_segments * self.mss, max(2 * self.mss, 14600))
        self._initial_cwnd = self.cwnd
        self.ssthresh = 1 << 30
        self._dupacks = 0
        self._recovering = False
        self._recover = self.iss
        self.rto = settings.initial_rto
        self.srtt: float | None = None
        self.rttvar = 0.0
        self._timed: tuple[int, float] | None = None
        self._retries = 0
        self._persisting = False
        self._probe_end = self.snd_una
        self._last_sent = now
        self.retransmissions = 0

        # Receive side.
        self.receive_buffer = bytearray()
        self.rcv_nxt = self._last_ack_sent = self.irs + 1
        self.rcv_shift = 0 if wscale is None else our_wscale
        self.rcv_limit = max(settings.receive_buffer, our_window)
        self._rcv_adv = self.rcv_nxt + our_window
        self._pieces: list[tuple[int, bytes]] = []
        self._newest_piece = 0
        self._fin_at: int | None = None
        self._ack_now = False
        self._unacked = 0

        # Close.
        self.reading = True
        self.fin_queued = False
        self.fin_sent = False
        self.fin_acked = False
        self.fin_received = False
        self._passive = False
        self._waiting = False
        self.reset_strays = False
        self.offload = offload
        """The NIC may close the connection when the application has."""
        self.handing = False
        """It was asked to, and has not answered: no data are sent or taken meanwhile."""
        self._record: Record | None = None

        # ECN (RFC 3168 section 6.1).
        self._echo_ce = False
        self._send_cwr = False
        self._cwr_until = self.iss

        # Timers: when each is due, and when the endpoint looks next.
        self.retransmit_at: float | None = None
        self.ack_at: float | None = None
        self.wait_at: float | None = None
        self.heap_at = float("inf")
        self._challenged_at = -1e9

    # -- what the user does --------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of RFC 9293 section 3.3.2."""
        if self.closed:
            return State.CLOSED
        if not self.fin_sent:
            return State.CLOSE_WAIT if self.fin_received else State.ESTABLISHED
        if self.fin_received:
            if self._passive:
                return State.LAST_ACK
            return State.TIME_WAIT if self.fin_acked else State.CLOSING
        return State.FIN_WAIT_2 if self.fin_acked else State.FIN_WAIT_1

    @property
    def unsent_or_unacked(self) -> int:
        """Bytes that the peer has not acknowledged."""
        return len(self.send_buffer)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue data. Raises `OSError` when the connection is over or closed for writing."""
        if self.error is not None:
            raise self.error
        if self.closed or self.fin_queued:
            raise BrokenPipeError(errno.EPIPE, "the connection is closed for writing")
        self.send_buffer += data
        self.endpoint.mark(self)

    def shutdown(self) -> None:
        """Send FIN after what was written; reading goes on."""
        if not self.closed and not self.fin_queued:
            self.fin_queued = True
            self.endpoint.mark(self)

    def close(self) -> None:
        """Send FIN after what was written; nobody reads any more."""
        self.reading = False
        self.receive_buffer.clear()
        self.shutdown()
        self.endpoint.mark(self)  # with FIN queued before, too: now the NIC may have it
        if self.fin_acked and not self.fin_received:
            self._set_wait(self.settings.fin_wait_2)

    def abort(self) -> None:
        """Reset the connection."""
        if self._record is not None and not self.handing:
            self.endpoint.abort_flow(self._record)
        elif not self.closed:
            self._emit(self.snd_max, RST | ACK)
            self.reset_strays = True
            self._end(ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)))

    def consume(self, count: int) -> bytes:
        """Take up to `count` received bytes."""
        data = bytes(self.receive_buffer[:count])
        del self.receive_buffer[: len(data)]
        if not self.closed and not self.fin_received:
            grown = self.rcv_nxt + self.rcv_limit - len(self.receive_buffer) - self._rcv_adv
            window = self._rcv_adv - self.rcv_nxt
            # Not just because the window of the SYN-ACK was smaller: a short connection never needs more.
            nearly_used = window < min(self.rcv_limit // 4, _WINDOW_LOW)
            if (nearly_used and grown >= self.rcv_limit // 4) or (window < 2 * self.mss <= grown):
                self._ack_now = True
                self.endpoint.mark(self)
        return data

    # -- hand-over to the NIC (see `handover`) -------------------------------------------

    @property
    def recovering(self) -> bool:
        """Whether something was lost, or the window has closed, and that is not over."""
        return self._recovering or self._persisting or self._retries > 0

    @property
    def owes_ack(self) -> bool:
        """Whether the peer waits for an acknowledgment."""
        return self._ack_now or self.ack_at is not None

    @property
    def echoes_ce(self) -> bool:
        """Whether what we send must tell of congestion (RFC 3168 section 6.1.3)."""
        return self.ecn and self._echo_ce

    def hand_over_begins(self, record: Record) -> None:
        """`CLOSE` has been posted; the frames carry what acknowledgment was due."""
        self.handing, self._record = True, record
        self._ack_now, self.ack_at = False, None

    def hand_over_refused(self) -> None:
        """The NIC does not take the connection: go on as before, and do not ask again."""
        self.handing = self.offload = False
        self._record = None
        self.endpoint.mark(self)

    def handed_over(self) -> ConnectionEvents | None:
        """The NIC has the connection: nothing of it is kept here. Who wants to hear of its end."""
        self.handing = False
        told = self.closed or self._waiting or self.error is not None
        self.closed = True
        self.send_buffer = bytearray()
        self._pieces.clear()
        self.endpoint.blocked.discard(self)
        events, self.events = self.events, None
        return None if told else events

    # -- where replies go ----------------------------------------------------------------

    def moved(self, peer: Peer) -> None:
        """A segment came from another MAC address: replies go there from now on."""
        self._peer_before, self.peer = self.peer, peer
        self._moved_at = self.snd_max

    @property
    def address_in_doubt(self) -> bool:
        """Nothing first sent to the peer's present MAC address has been acknowledged."""
        return self._peer_before is not None

    # -- segments in ---------------------------------------------------------------------

    def receive(self, segment: Segment) -> bool:
        """RFC 9293 section 3.10.7.4, with RFC 5961 and RFC 7323. Whether the segment was
        acceptable, so that what it says about its sender may be believed."""
        now = self.endpoint.now
        flags = segment.flags
        length = len(segment.payload)
        rcv_nxt = self.rcv_nxt
        seq = rcv_nxt + ((segment.seq - rcv_nxt + HALF) & MASK) - HALF
        end = seq + length + (flags & FIN)

        if self.timestamps and not flags & RST:
            if not segment.ts:
                return False
            if (segment.tsval - self.ts_recent) & MASK >= HALF and now - self.ts_recent_at < _PAWS_IDLE_S:
                self._answer_stray(length > 0)
                return False

        if flags & RST:
            if seq == rcv_nxt:
                self._reset_by_peer()
            elif rcv_nxt < seq < self._rcv_adv:
                self._answer_stray(False)
            return False

        if end > seq:
            inside = seq <= self._rcv_adv and end > rcv_nxt
        else:
            inside = self._last_ack_sent <= seq <= self._rcv_adv
        if not inside:
            # A repetition, mostly: our acknowledgment was lost. Nobody may make us chatter.
            self._answer_stray(end > seq)
            return False
        if flags & SYN:
            self._answer_stray(False)
            return False
        if not flags & ACK:
            return False

        if self.timestamps and seq <= self._last_ack_sent:
            self.ts_recent = segment.tsval
            self.ts_recent_at = now
        self.last_heard = now

        ack = self.snd_una + ((segment.ack - self.snd_una + HALF) & MASK) - HALF
        if ack > max(self.snd_max, self._probe_end) or ack < self.snd_una - self.max_wnd:
            self._answer_stray(False)
            return False
        self._acknowledged(ack, segment, seq, end > seq, now)
        if self.closed:
            return True
        if self.ecn and segment.ce:
            self._echo_ce = True
            self._ack_now = True
        if self.ecn and flags & CWR and not segment.ce:
            self._echo_ce = False
        if end > seq and not (self.handing and seq + length > rcv_nxt):
            self._data(seq, segment, now)
        if not self.closed:
            self.endpoint.mark(self)
        return True

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

    def _reset_by_peer(self) -> None:
        if self._waiting:
            return  # TIME_WAIT is not to be assassinated (RFC 1337)
        if self.fin_sent and self.fin_received:
            self._end(None)
        else:
            self._end(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _acknowledged(self, ack: int, segment: Segment, seq: int, has_data: bool, now: float) -> None:
        window = segment.window << self.snd_shift
        una = self.snd_una
        flight = self.snd_nxt - una
        if ack > una:
            acked = ack - una
            self._retries = 0
            self._persisting = False
            self._measure(ack, segment, now)
            data_end = una + len(self.send_buffer)
            if self.fin_sent and ack > data_end:
                self.fin_acked = True
                del self.send_buffer[:]
            else:
                del self.send_buffer[:acked]
            self.snd_una = ack
            if ack > self._moved_at:
                self._peer_before = None
            self.snd_nxt = max(self.snd_nxt, ack)
            self.snd_max = max(self.snd_max, ack)
            self._congestion(ack, acked, flight, segment)
            self.retransmit_at = now + self.rto if self.snd_nxt > ack else None
            if self.events is not None:
                self.events.writable()
        elif (
            ack == una
            and not has_data
            and window == self.snd_wnd
            and self.snd_max > una
            and not self._persisting
        ):
            self._duplicate_ack()
        if self._wl1 < seq or (self._wl1 == seq and self._wl2 <= ack):
            if window != self.snd_wnd:
                if self._persisting and window:
                    self._persisting = False
                    self._retries = 0
                    self.retransmit_at = None
                self.snd_wnd = window
                self.max_wnd = max(self.max_wnd, window)
            elif self._persisting:
                self._retries = 0  # the peer is there, its window still closed
            self._wl1, self._wl2 = seq, ack
        if self.ecn and segment.flags & ECE and self.snd_una > self._cwr_until and self.snd_nxt > self.snd_una:
            self._cwr_until = self.snd_nxt
            self.ssthresh = max((self.snd_nxt - self.snd_una) // 2, 2 * self.mss)
            self.cwnd = self.ssthresh
            self._send_cwr = True
        if self.fin_acked:
            self._maybe_closed()

    def _measure(self, ack: int, segment: Segment, now: float) -> None:
        """Round-trip time (RFC 6298; with timestamps every acknowledgment is a sample)."""
        sample: float | None = None
        if self.timestamps:
            if segment.tsecr:
                steps = (self.endpoint.tsval() - segment.tsecr) & MASK
                if steps < HALF:
                    sample = steps * self.endpoint.ts_step
        elif self._timed is not None and ack >= self._timed[0]:
            sample = now - self._timed[1]
            self._timed = None
        if sample is None or sample > 60:
            return
        if self.srtt is None:
            self.srtt, self.rttvar = sample, sample / 2
        else:
            self.rttvar += (abs(self.srtt - sample) - self.rttvar) / 4
            self.srtt += (sample - self.srtt) / 8
        settings = self.settings
        rto = self.srtt + max(self.endpoint.ts_step, 4 * self.rttvar)
        self.rto = min(max(rto, settings.min_rto), settings.max_rto)

    def _congestion(self, ack: int, acked: int, flight: int, segment: Segment) -> None:
        mss = self.mss
        if self._recovering:
            if ack >= self._recover:
                self._recovering = False
                self._recover = ack - 1  # the next loss may be recovered from at once
                self.cwnd = min(self.ssthresh, max(self.snd_nxt - ack, mss) + mss)
            else:
                self.cwnd = max(self.cwnd - acked, mss) + (mss if acked >= mss else 0)
                self._retransmit_first()
        elif flight + 2 * mss >= self.cwnd or (self.cwnd < self.ssthresh and 2 * flight >= self.cwnd):
            if self.cwnd < self.ssthresh:
                self.cwnd += min(acked, self.ssthresh - self.cwnd)
            else:
                self.cwnd += max(mss * min(acked, self.cwnd) // self.cwnd, 1)
        self._dupacks = 0

    def _duplicate_ack(self) -> None:
        if self.handing:
            return
        self._dupacks += 1
        if self._recovering:
            self.cwnd += self.mss
        elif self._dupacks == 3 and self.snd_una > self._recover:
            flight = self.snd_max - self.snd_una
            self.ssthresh = max(flight // 2, 2 * self.mss)
            self._recovering = True
            self._recover = self.snd_max
            self._retransmit_first()
            self.cwnd = self.ssthresh + 3 * self.mss

    def _data(self, seq: int, segment: Segment, now: float) -> None:
        payload = segment.payload
        fin = bool(segment.flags & FIN)
        if self.fin_received:
            return
        if fin and self._fin_at is None:
            end = seq + len(payload)
            if end <= self._rcv_adv:
                self._fin_at = end
        if not self.reading and self.fin_acked and payload and seq + len(payload) > self.rcv_nxt:
            # Everything we had to say was heard, and nobody reads: the data are lost (RFC 1122 4.2.2.13).
            self._emit(self.snd_max, RST | ACK)
            self.reset_strays = True
            self._end(ConnectionResetError(errno.ECONNRESET, "data came after the connection was closed"))
            return
        nxt = self.rcv_nxt
        limit = self._rcv_adv
        if self._fin_at is not None:
            limit = min(limit, self._fin_at)
        if seq + len(payload) > limit:
            payload = payload[: max(limit - seq, 0)]
            self._ack_now = True
        if seq > nxt:
            if payload:
                self._keep_piece(seq, payload)
            self.send_ack()
            return
        filled = bool(self._pieces)
        if payload:
            fresh = payload[nxt - seq :]
            if self.reading:
                self.receive_buffer += fresh
            self.rcv_nxt = nxt = nxt + len(fresh)
            self._unacked += len(fresh)
            if len(fresh) < len(segment.payload):
                self._ack_now = True
        if filled:
            self._join_pieces()
            self._ack_now = True
        if self._fin_at is not None and self.rcv_nxt == self._fin_at:
            self.rcv_nxt += 1
            self.fin_received = True
            self._ack_now = True
            self._pieces.clear()
            self._maybe_closed()
        elif self._unacked >= 2 * self.mss:
            self._ack_now = True
        if self._unacked and not self._ack_now and self.ack_at is None:
            self.ack_at = now + self.settings.delayed_ack
        if self.events is not None:
            self.events.readable()

    def _keep_piece(self, seq: int, payload: memoryview) -> None:
        """Out-of-order data: sorted, without overlap; what is there already stays."""
        pieces = self._pieces
        end = seq + len(payload)
        at = bisect.bisect_right(pieces, seq, key=lambda piece: piece[0])
        if at and pieces[at - 1][0] + len(pieces[at - 1][1]) > seq:
            seen = pieces[at - 1][0] + len(pieces[at - 1][1])
            payload = payload[seen - seq :]
            seq = seen
        self._newest_piece = seq
        while seq < end and len(pieces) < self.settings.reassembly_pieces:
            stop = min(end, pieces[at][0]) if at < len(pieces) else end
            if stop > seq:
                pieces.insert(at, (seq, bytes(payload[: stop - seq])))
                at += 1
            if at >= len(pieces):
                return
            after = pieces[at][0] + len(pieces[at][1])
            payload = payload[after - seq :]
            seq = after
            at += 1

    def _join_pieces(self) -> None:
        pieces = self._pieces
        used = 0
        for start, data in pieces:
            if start > self.rcv_nxt:
                break
            fresh = data[self.rcv_nxt - start :]
            if self.reading:
                self.receive_buffer += fresh
            self.rcv_nxt += len(fresh)
            used += 1
        del pieces[:used]

    # -- segments out --------------------------------------------------------------------

    def window_field(self) -> int:
        """The window field, and with it the promise `_rcv_adv`; the right edge moves back only
        when a peer would make us keep more than we said (RFC 7323 section 2.4)."""
        shift = self.rcv_shift
        buffered = len(self.receive_buffer)
        free = max(self.rcv_limit - buffered, 0)
        promised = max(self._rcv_adv - self.rcv_nxt, 0)
        # Silly window avoidance (RFC 9293 section 3.8.6.2.2).
        if free - promised < min(self.rcv_limit // 2, self.mss):
            free = promised
        window = min(free >> shift, 0xFFFF)
        if window << shift < promised:
            if buffered <= self.rcv_limit + 0x10000:
                window = min(promised + (1 << shift) - 1 >> shift, 0xFFFF)
            else:
                window = min(promised >> shift, 0xFFFF)
        self._rcv_adv = max(self._rcv_adv, self.rcv_nxt + (window << shift))
        return window

    def _emit(self, seq: int, flags: int, offset: int = 0, length: int = 0) -> bool:
        """Send a segment with `length` bytes of the send buffer from `offset`; False when the
        device has no room now (then the endpoint calls `output` again later)."""
        link = self.endpoint.link
        slot = link.reserve()
        if slot is None:
            self.endpoint.blocked.add(self)
            return False
        now = self.endpoint.now
        options = b""
        if self.timestamps:
            options = TS_OPTION.pack(TS_PREFIX, self.endpoint.tsval(), self.ts_recent)
        if self._pieces and self.sack and not length:
            options += self._sack_blocks(len(options))
        fresh = length > 0 and seq >= self.snd_max
        if self.ecn:
            if self._echo_ce:
                flags |= ECE
            if fresh and self._send_cwr:
                flags |= CWR
                self._send_cwr = False
        peer = self.peer
        at = peer.build(slot, seq, self.rcv_nxt, flags, self.window_field(), options, self.ecn and fresh, length)
        if length:
            slot[at : at + length] = self.send_buffer[offset : offset + length]
            self._last_sent = now
            if self._timed is None and not self.timestamps and fresh:
                self._timed = (seq + length, now)
        link.commit(at + length, peer.l3, peer.l4, peer.tx_flags, peer.port)
        self._last_ack_sent = self.rcv_nxt
        self._ack_now = False
        self._unacked = 0
        self.ack_at = None
        return True

    def _sack_blocks(self, used: int) -> bytes:
        """RFC 2018 section 4: the block with the newest segment first."""
        blocks: list[list[int]] = []
        for start, data in self._pieces:
            if blocks and blocks[-1][1] == start:
                blocks[-1][1] = start + len(data)
            else:
                blocks.append([start, start + len(data)])
        blocks.sort(key=lambda block: not block[0] <= self._newest_piece < block[1])
        room = (40 - used - 4) // 8
        body = b"".join(struct.pack("!II", left & MASK, right & MASK) for left, right in blocks[:room])
        return bytes([TCPOption.NOP, TCPOption.NOP, TCPOption.SACK, 2 + len(body)]) + body

    def send_ack(self) -> bool:
        """An acknowledgment; False when the device has no room for it now."""
        # Not snd_nxt, which goes back after a time-out: a peer would take that for an old segment.
        if not self._emit(self.snd_max, ACK):
            self._ack_now = True
            return False
        return True

    def _retransmit_first(self) -> None:
        """The first segment that is not acknowledged, again."""
        length = min(self.mss, len(self.send_buffer), max(self.snd_max - self.snd_una, 0))
        if self.fin_sent and length == len(self.send_buffer):
            flags = ACK | FIN | (PSH if length else 0)
        else:
            flags = ACK
        self._timed = None  # Karn: this sample would be ambiguous
        if length or flags & FIN:
            self.retransmissions += 1
            self._emit(self.snd_una, flags, 0, length)

    def output(self) -> None:
        """Send what may be sent now, and an acknowledgment if one is due."""
        if self.closed:
            return
        if self.offload and not self.handing and not self.reading and self.fin_queued and not self.fin_acked:
            self.endpoint.offer(self)
        if self.handing:
            if self._ack_now:
                self.send_ack()
            return
        now = self.endpoint.now
        mss = self.mss
        una = self.snd_una
        data_end = una + len(self.send_buffer)
        if self.snd_nxt == una == self.snd_max and now - self._last_sent > self.rto:
            self.cwnd = min(self.cwnd, self._initial_cwnd)  # RFC 5681 section 4.1
        limit = una + min(self.snd_wnd, self.cwnd)
        sent = False
        while self.snd_nxt <= data_end:
            nxt = self.snd_nxt
            length = min(mss, data_end - nxt, limit - nxt)
            last = self.fin_queued and nxt + max(length, 0) == data_end and not self.fin_acked
            if length <= 0:
                # A FIN alone is sent even against a closed window: it takes no buffer space.
                if not (last and data_end == nxt):
                    break
                length = 0
            elif length < mss and nxt + length < data_end and (nxt > una or length < self.max_wnd // 2):
                break  # silly window avoidance: wait for an acknowledgment, or the probe timer
            flags = ACK
            if length and nxt + length == data_end:
                flags |= PSH
            if last:
                flags |= FIN
            again = nxt < self.snd_max
            if not self._emit(nxt, flags, nxt - una, length):
                break
            if again:
                self.retransmissions += 1
                self._timed = None
            if last and not self.fin_sent:
                self.fin_sent = True
                self._passive = self.fin_received
            self.snd_nxt = nxt + length + last
            self.snd_max = max(self.snd_max, self.snd_nxt)
            sent = True
            if last:
                break
        if self.snd_nxt > una:
            if sent and (self.retransmit_at is None or self._persisting):
                self._persisting = False
                self.retransmit_at = now + self.rto
        elif self.snd_nxt < data_end and self.retransmit_at is None:
            # Nothing in flight, something to send, and the window forbids it.
            self._persisting = True
            self.retransmit_at = now + self.rto
        if self._ack_now:
            self.send_ack()

    # -- timers --------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `timers` has something to do."""
        retransmit_at = None if self.handing else self.retransmit_at
        times = [at for at in (retransmit_at, self.ack_at, self.wait_at) if at is not None]
        return min(times) if times and not self.closed else None

    def timers(self) -> None:
        """Run what is due."""
        now = self.endpoint.now
        if self.ack_at is not None and now >= self.ack_at:
            self.ack_at = None
            self.send_ack()
        if self.wait_at is not None and now >= self.wait_at:
            self._end(None)
            return
        if self.retransmit_at is not None and now >= self.retransmit_at and not self.handing:
            self._retransmission_timer(now)

    def _retransmission_timer(self, now: float) -> None:
        self._retries += 1
        if self._retries > self.settings.retries:
            self._emit(self.snd_max, RST | ACK)
            self.reset_strays = True
            self._end(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
            return
        if self._retries > 1 and self._peer_before is not None:
            # One frame with an odd source address must not cut us off: try both in turn.
            self._peer_before, self.peer = self.peer, self._peer_before
            self._moved_at = self.snd_max
        self.rto = min(self.rto * 2, self.settings.max_rto)
        self.retransmit_at = now + self.rto
        if self._persisting:
            self._probe()
            return
        flight = self.snd_max - self.snd_una
        if self._retries == 1:
            self.ssthresh = max(flight // 2, 2 * self.mss)
        self.cwnd = self.mss
        self._dupacks = 0
        self._recovering = False
        self._recover = self.snd_max
        self._timed = None
        # Everything after the first segment is presumed lost as well: slow start sends it again.
        self.snd_nxt = self.snd_una
        self.output()
        if self.snd_nxt == self.snd_una and self.snd_max > self.snd_una:
            self._retransmit_first()  # the window has closed over what is in flight

    def _probe(self) -> None:
        """RFC 9293 section 3.8.6.1: a byte against the closed window, or what fits."""
        room = min(self.snd_wnd, self.cwnd)
        length = min(max(room, 1), self.mss, len(self.send_buffer))
        if length and self._emit(self.snd_una, ACK, 0, length):
            self._probe_end = self.snd_una + length

    def _set_wait(self, seconds: float) -> None:
        self.wait_at = self.endpoint.now + seconds
        self.endpoint.mark(self)

    # -- end -----------------------------------------------------------------------------

    def _maybe_closed(self) -> None:
        if self.fin_acked and self.fin_received:
            if self._passive:
                self._end(None)
            elif not self._waiting:
                self._waiting = True
                self.retransmit_at = None
                self._set_wait(self.settings.time_wait)
                if self.events is not None:
                    self.events.closed(None)
        elif self.fin_acked and not self.reading and self.wait_at is None:
            self._set_wait(self.settings.fin_wait_2)

    def _end(self, error: OSError | None) -> None:
        """Over. The endpoint keeps the tuple for a while so that stray segments are not news."""
        if self.closed:
            return
        if self._ack_now and error is None:
            self.send_ack()
        self.closed = True
        self.error = error
        self.send_buffer = bytearray()
        self._pieces.clear()
        self.endpoint.ended(self)
        if self.events is not None and not self._waiting:
            self.events.closed(error)
