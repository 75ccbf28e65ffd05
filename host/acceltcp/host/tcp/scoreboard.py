"""What is in flight and what became of it: RFC 2018, 2883, 6582, 6675 and RACK-TLP (RFC 8985).

Only ranges of sequence numbers are kept here (plain integers that never wrap), one `Sent` per segment as it went out; a SYN or
FIN counts one. A segment counts as SACKed when one block covers all of it; nothing is ever split by what a peer says, so what a
peer can make us do is bounded by what we sent. Times are seconds of one monotonic clock.

How a connection uses it:

* `sent` for each new segment, in order; `resent` for each one sent again, which `next_lost` (or `last`, for a probe) named.
* `acked` for every acknowledgment that is acceptable; then `news` (flags below), `newly_acked`, `delivered`, `rtt` say what it
  brought. With SACK then `detect`; without it `duplicate` if it was a duplicate acknowledgment. Both can be skipped while `calm`
  and no blocks came.
* `lost_bytes` and not `recovering`: a loss was found. Reduce the window, call `recover`, send again what `next_lost` names.
  RECOVERED in `news` says when that is over. REPAIRED: a probe has repaired a loss alone: reduce the window (RFC 8985 section 7.4.2).
* SPURIOUS in `news`: nothing was lost after all: `undo` here and of the congestion control.
* the retransmission timer ran out: `time_out`. Everything comes up in `next_lost`; at least one segment has to go whatever cwnd says.
* `probe_due` after sending new data and after an acknowledgment of new data says when a tail loss probe is due. It is either new data
  (`sent`, then `probed(None)`) or `last()` again (`resent`, then `probed(entry)`). Rearm the retransmission timer after it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

__all__ = ["DSACK", "RECOVERED", "REORDERED", "REPAIRED", "SPURIOUS", "Scoreboard", "Sent"]

DSACK = 1
"""The acknowledgment reported a duplicate of something that we did send twice (RFC 2883)."""
SPURIOUS = 2
"""No retransmission of this recovery was needed, by its timestamp (RFC 3522) or by DSACKs (RFC 3708)."""
RECOVERED = 4
"""Everything sent before the recovery is acknowledged; it is over."""
REPAIRED = 8
"""A tail loss probe has replaced the one segment that was lost."""
REORDERED = 16
"""A segment never sent twice arrived after one sent later."""

DUP_THRESH = 3
MAX_ACK_DELAY = 0.2
"""WCDelAckT of RFC 8985 section 7.2: how long a peer may hold back an acknowledgment of a single segment."""
_MULT_PERSIST = 16
_TICK = 1e-6
"""Less than that is rounding of floats."""
_BLOCKS = 4
"""As many as options have room for (RFC 2018 section 3)."""
_FORGET = 512
_UNKNOWN = float("inf")

_START = attrgetter("start")
_END = attrgetter("end")


class Sent:
    """A segment in flight: [start, end).

    sent_at: when it last went out. resent: how often again. copies: how many are presumed to be in the network; 0: SACKed, or lost
    and to be sent again. sacked: the peer has it, out of order.
    """

    __slots__ = ("copies", "end", "resent", "sacked", "sent_at", "start")

    def __init__(self, start: int, end: int, sent_at: float) -> None:
        self.start = start
        self.end = end
        self.sent_at = sent_at
        self.copies = 1
        self.resent = 0
        self.sacked = False

    @property
    def lost(self) -> bool:
        """Deemed lost, and not sent again since."""
        return not self.copies and not self.sacked


class Scoreboard:
    """Of one connection.

    una, high: what is not acknowledged starts and ends there. in_flight: bytes presumed in the network (pipe of RFC 6675: a segment that was
    sent again before it was deemed lost counts twice). lost_bytes: to be sent again. sacked_bytes: SACKed above una.
    recovering: between `recover` or `time_out` and RECOVERED; recover_until: the sequence number that ends it. sack: whether the peer
    sends SACK. reordering_seen: ever. retransmissions: segments, ever.

    Set by `acked`: news: flags. newly_acked: by how much una advanced. delivered: bytes not known to be delivered before. rtt: the round trip of the
    latest segment delivered that was never sent again, 0.0 without one.
    """

    __slots__ = (
        "_cursor",
        "_dsack_credit",
        "_dsack_round",
        "_dup_bytes",
        "_entries",
        "_episode",
        "_episode_dups",
        "_episode_first",
        "_fack",
        "_first",
        "_head",
        "_left",
        "_lost",
        "_marked_until",
        "_mult",
        "_persist",
        "_probe_again",
        "_probe_end",
        "_rack_at",
        "_rack_end",
        "_rack_rtt",
        "_resent",
        "_right",
        "_sacked_count",
        "_serial",
        "delivered",
        "duplicates",
        "high",
        "in_flight",
        "lost_bytes",
        "mss",
        "newly_acked",
        "news",
        "recover_until",
        "recovering",
        "reo_wnd",
        "reordering_seen",
        "retransmissions",
        "rtt",
        "sack",
        "sacked_bytes",
        "una",
    )  # fmt: skip

    def __init__(self, mss: int, sack: bool, una: int) -> None:
        """`una`: the first sequence number that `sent` will get. mss: `next_lost` splits what is longer (it may be changed)."""
        self.mss = mss
        self.sack = sack
        self.una = self.high = self._first = una
        self.in_flight = self.lost_bytes = self.sacked_bytes = 0
        self.recovering = False
        self.recover_until = una - 1
        self.reordering_seen = False
        self.retransmissions = 0
        self.duplicates = 0
        self.news = self.newly_acked = self.delivered = 0
        self.rtt = 0.0
        self.reo_wnd = 0.0

        # All segments in order of their numbers; those before _head are acknowledged.
        self._entries: list[Sent] = []
        self._head = 0
        # Above it is nothing SACKed, lost, sent again or sent before something was sent again: an acknowledgment is simple arithmetic.
        self._marked_until = una
        # Runs of SACKed segments: disjoint, not adjacent, ascending; ends on borders of segments.
        self._left: list[int] = []
        self._right: list[int] = []
        self._sacked_count = 0
        # Lost and to be sent again: a heap by sequence number; what is not lost any more is dropped when it comes up.
        self._lost: list[tuple[int, int, Sent]] = []
        self._serial = 0
        self._dup_bytes = 0  # without SACK: bytes that duplicate acknowledgments say have left the network

        # RACK (RFC 8985 section 5.2). In the order of transmission are: all segments never sent again (their order in _entries), and
        # _resent with the count of retransmissions at the time; _cursor: segments before it need no look any more.
        self._rack_at = -1.0
        self._rack_end = una
        self._rack_rtt = 0.0
        self._fack = una  # may lag behind una: what is in flight ends above either
        self._cursor = 0
        self._resent: deque[tuple[Sent, int]] = deque()
        self._mult = 1
        self._persist = _MULT_PERSIST
        self._dsack_round = -1
        self._dsack_credit = 0

        # Spurious or not: retransmissions of this recovery not yet reported as duplicates, and when the first one went out.
        self._episode = False
        self._episode_dups = 0
        self._episode_first = _UNKNOWN
        # Tail loss probe (RFC 8985 section 7.1): its end, -1 without one; whether it was a retransmission.
        self._probe_end = -1
        self._probe_again = False

    def __len__(self) -> int:
        """Segments not acknowledged."""
        return len(self._entries) - self._head

    @property
    def calm(self) -> bool:
        """Nothing in flight is SACKed, lost, sent again or older than something sent again: neither `detect` nor `next_lost` has anything to say."""
        return self.una >= self._marked_until

    @property
    def probing(self) -> bool:
        """A tail loss probe is under way: `acked` needs to see duplicate acknowledgments without blocks as well (RFC 8985 section 7.4.2)."""
        return self._probe_end >= 0

    # -- sending -------------------------------------------------------------------------

    def sent(self, start: int, end: int, now: float) -> None:
        """The first transmission of [start, end); start is where the one before ended, else `ValueError`."""
        if start != self.high or end <= start:
            raise ValueError(f"sent [{start}, {end}) does not follow {self.high}")
        self._entries.append(Sent(start, end, now))
        self.high = end
        self.in_flight += end - start

    def resent(self, entry: Sent, now: float) -> None:
        """A segment went out again."""
        length = entry.end - entry.start
        if entry.sacked:
            return  # nobody should; it is not in flight for anybody
        if not entry.copies:
            self.lost_bytes -= length
        entry.copies += 1
        entry.resent += 1
        entry.sent_at = now
        self.in_flight += length
        self.retransmissions += 1
        self._dsack_credit += 1
        if self._episode:
            self._episode_dups += 1
            if self._episode_first == _UNKNOWN:
                self._episode_first = now
        self._marked_until = self.high  # when it arrives, whatever went out before it should have
        self._resent.append((entry, entry.resent))

    def next_lost(self) -> Sent | None:
        """The lowest lost segment that was not sent again since. Longer than `mss` it is split."""
        heap = self._lost
        una = self.una
        while heap:
            entry = heap[0][2]
            if entry.copies or entry.sacked or entry.end <= una:
                heapq.heappop(heap)
                continue
            if entry.end - entry.start > self.mss:
                self._split(entry)
            return entry
        return None

    def _split(self, entry: Sent) -> None:
        """Cut a lost segment after `mss` bytes."""
        entries = self._entries
        at = bisect_left(entries, entry.start, self._head, key=_START) + 1
        rest = Sent(entry.start + self.mss, entry.end, entry.sent_at)
        rest.copies, rest.resent = 0, entry.resent
        entry.end = rest.start
        entries.insert(at, rest)  # before _cursor maybe, which then looks at a segment once more: no harm
        self._push(rest)

    def last(self) -> Sent | None:
        """The segment with the highest numbers: what a tail loss probe sends again when there is nothing new."""
        return self._entries[-1] if len(self._entries) > self._head else None

    # -- acknowledgments -----------------------------------------------------------------

    def acked(
        self, ack: int, blocks: Sequence[tuple[int, int]], now: float, min_rtt: float = 0.0, echoed: float = _UNKNOWN
    ) -> None:
        """An acknowledgment up to `ack`, with SACK blocks (left, right) as they came, DSACK first; may be nonsense.

        min_rtt: smallest round trip so far. echoed: the latest time at which what made the peer send this can have gone out, from
        the timestamp it echoes; infinite when that is not known.
        """
        una = self.una
        if not blocks and una >= self._marked_until:
            self.news = 0
            if ack <= una:
                self.newly_acked = self.delivered = 0
                self.rtt = 0.0
                if self._probe_end >= 0:
                    self._probe_acked(ack, False, False)
                return
            # Nothing special is in flight.
            if ack > self.high:
                ack = self.high
            entries = self._entries
            head = at = self._head
            count = len(entries)
            while at < count and entries[at].end <= ack:
                at += 1
            gone = ack - una
            self.newly_acked = self.delivered = gone
            self.in_flight -= gone
            self.una = ack
            if at > head:
                latest = entries[at - 1]
                self.rtt = self._rack_rtt = now - latest.sent_at
                self._rack_at = latest.sent_at
                self._rack_end = latest.end
            else:
                self.rtt = 0.0
            if at == count:
                entries.clear()
                self._head = self._cursor = 0
            else:
                if entries[at].start < ack:
                    entries[at].start = ack
                self._head = at
                if at >= _FORGET or at > count >> 1:
                    self._forget()
            self.duplicates = 0
            if self._probe_end >= 0:
                self._probe_acked(ack, False, False)
            return
        self._acked(ack, blocks, now, min_rtt, echoed)

    def _acked(self, ack: int, blocks: Sequence[tuple[int, int]], now: float, min_rtt: float, echoed: float) -> None:
        """The long way: something SACKed, lost or sent again is in flight."""
        self.news = self.newly_acked = self.delivered = 0
        self.rtt = 0.0
        una = self.una
        if ack > self.high:
            ack = self.high
        again = False
        if ack > una:
            again = self._advance(ack, now, min_rtt, echoed)
        dsack = False
        if blocks and self.sack:
            if self._is_duplicate(blocks, ack if ack > una else una):
                dsack = True
                self._duplicate_reported()
            una = self.una
            # In order: the newest comes first, and what lies below is not late because of that (RFC 8985 section 6.2 step 3).
            for left, right in sorted(blocks[:_BLOCKS]):
                if left < right <= self.high and right > una:
                    self._sacked(left if left > una else una, right, now, min_rtt, echoed)
        if self._probe_end >= 0:
            self._probe_acked(ack, dsack, bool(blocks))
        # RFC 3522: the first acknowledgment of new data after a retransmission tells which copy it answers.
        if self.newly_acked and self._episode and self._episode_first != _UNKNOWN:
            if again and echoed < self._episode_first:
                self.news |= SPURIOUS
            self._episode_first = -_UNKNOWN
        if self.news & SPURIOUS:
            self._episode = False
        if self.newly_acked:
            self.duplicates = 0
            if self.recovering:
                if self.una >= self.recover_until:
                    self._recovered()
                elif not self.sack:
                    self._partial()

    def _advance(self, ack: int, now: float, min_rtt: float, echoed: float) -> bool:
        """Take away what is acknowledged. Whether any of it had been sent again."""
        entries = self._entries
        at = self._head
        count = len(entries)
        una = self.una
        again = False
        rtt = 0.0
        while at < count:
            entry = entries[at]
            if entry.end > ack:
                break
            at += 1
            length = entry.end - entry.start
            if entry.sacked:
                self.sacked_bytes -= length
                self._sacked_count -= 1
                continue
            self.delivered += length
            if entry.copies:
                self.in_flight -= entry.copies * length
            else:
                self.lost_bytes -= length
            if entry.resent:
                again = True
            else:
                rtt = now - entry.sent_at
            self._came(entry, now, min_rtt, echoed)
        if at < count and entries[at].start < ack:
            entry = entries[at]
            length = ack - entry.start
            entry.start = ack
            if entry.sacked:
                self.sacked_bytes -= length
            else:
                self.delivered += length
                if entry.copies:
                    self.in_flight -= entry.copies * length
                else:
                    self.lost_bytes -= length
                if entry.resent:
                    again = True
        if self._dup_bytes:
            # Without SACK: what duplicates told of, beyond the segment that was missing, is among what is acknowledged now.
            back = min(self._dup_bytes, max(ack - una - self.mss, 0))
            self._dup_bytes -= back
            self.in_flight += back
            self.delivered -= min(back, self.delivered)
            if self.in_flight < 0:
                self._dup_bytes += self.in_flight
                self.in_flight = 0
        # An old copy of a segment sent again may be what is acknowledged, and without SACK what follows it came long ago (Karn).
        if not again:
            self.rtt = rtt
        self.newly_acked = ack - una
        self.una = ack
        if ack >= self._marked_until:
            self.in_flight += self._dup_bytes
            self._dup_bytes = 0
        right = self._right
        if right and right[0] <= ack:
            gone = bisect_right(right, ack)
            del right[:gone]
            del self._left[:gone]
        if self._left and self._left[0] < ack:
            self._left[0] = ack
        self._head = at
        if at == count:
            entries.clear()
            self._head = self._cursor = 0
            self._resent.clear()
            self._lost.clear()
            self._marked_until = ack
        elif at >= _FORGET or at > count >> 1:
            self._forget()
        if not self.lost_bytes:
            self._lost.clear()
        return again

    def _forget(self) -> None:
        """Drop acknowledged segments; often enough that they do not pile up, seldom enough that it costs nothing."""
        head = self._head
        del self._entries[:head]
        self._cursor = self._cursor - head if self._cursor > head else 0
        self._head = 0

    def _came(self, entry: Sent, now: float, min_rtt: float, echoed: float) -> None:
        """RACK steps 1 to 3: a segment has been delivered."""
        sent_at = entry.sent_at
        end = entry.end
        if end > self._fack:
            self._fack = end
        elif end < self._fack and not entry.resent:
            self.reordering_seen = True
            self.news |= REORDERED
        if entry.resent and (echoed < sent_at or now - sent_at < min_rtt):
            return  # an earlier copy was answered
        if sent_at > self._rack_at or (sent_at == self._rack_at and end > self._rack_end):
            self._rack_at = sent_at
            self._rack_end = end
            self._rack_rtt = now - sent_at

    def _sacked(self, left: int, right: int, now: float, min_rtt: float, echoed: float) -> None:
        """A SACK block inside una..high. Costs a few bisections, and the segments and runs that become one."""
        lefts, rights = self._left, self._right
        first = bisect_left(rights, right)
        if first < len(lefts) and lefts[first] <= left:
            return  # known
        entries = self._entries
        low = bisect_left(entries, left, self._head, key=_START)
        above = bisect_right(entries, right, low, key=_END)
        if low >= above:
            return
        left = entries[low].start
        right = entries[above - 1].end
        first = bisect_left(rights, left)
        after = bisect_right(lefts, right)
        at = left
        for index in range(first, after):
            if lefts[index] > at:
                self._mark_sacked(at, lefts[index], now, min_rtt, echoed)
            if rights[index] > at:
                at = rights[index]
        if at < right:
            self._mark_sacked(at, right, now, min_rtt, echoed)
        if first < after:
            left = min(left, lefts[first])
            right = max(right, rights[after - 1])
        lefts[first:after] = [left]
        rights[first:after] = [right]
        if right > self._marked_until:
            self._marked_until = right

    def _mark_sacked(self, left: int, right: int, now: float, min_rtt: float, echoed: float) -> None:
        entries = self._entries
        at = bisect_left(entries, left, self._head, key=_START)
        count = len(entries)
        while at < count:
            entry = entries[at]
            if entry.end > right:
                break
            at += 1
            length = entry.end - entry.start
            if entry.copies:
                self.in_flight -= entry.copies * length
            else:
                self.lost_bytes -= length
            entry.copies = 0
            entry.sacked = True
            self.sacked_bytes += length
            self._sacked_count += 1
            self.delivered += length
            if not entry.resent:
                self.rtt = now - entry.sent_at
            self._came(entry, now, min_rtt, echoed)

    # -- duplicates (RFC 2883) -----------------------------------------------------------

    def _is_duplicate(self, blocks: Sequence[tuple[int, int]], una: int) -> bool:
        """RFC 2883 section 4: the first block is below the acknowledgment or inside the second one; and it names what can be."""
        left, right = blocks[0]
        if not self._first <= left < right <= self.high or self._dsack_credit <= 0:
            return False
        if right <= una:
            return True
        return len(blocks) > 1 and blocks[1][0] <= left and right <= blocks[1][1]

    def _duplicate_reported(self) -> None:
        self.news |= DSACK
        self._dsack_credit -= 1
        if not self.probing:
            # It was late, not lost. Without this, what more than three others overtake would be sent again each time.
            self.reordering_seen = True
        # RFC 8985 section 6.2 step 4: wait longer for reordered segments, once per round trip.
        if self.una >= self._dsack_round:
            self._dsack_round = self.high
            self._mult += 1
            self._persist = _MULT_PERSIST
        if self._episode and self._episode_dups:
            self._episode_dups -= 1
            if not self._episode_dups:
                self.news |= SPURIOUS

    # -- detection -----------------------------------------------------------------------

    def detect(self, now: float, srtt: float, min_rtt: float) -> float | None:
        """RACK steps 4 and 5: marks lost what was sent sufficiently long before something that has been delivered.

        Returns when to call it again because something may turn out lost by then, or None. (RFC 8985 waits for the last such segment; each one is
        taken at its own time here.) Costs constant time, and each transmission once.
        """
        if not self.sack or self.una >= self._marked_until or self._rack_at < 0.0:
            return None
        if not self.reordering_seen and (self.recovering or self._sacked_count >= DUP_THRESH):
            reo_wnd = 0.0
        else:
            reo_wnd = min(self._mult * min_rtt / 4, srtt)
        self.reo_wnd = reo_wnd
        wait = self._rack_rtt + reo_wnd
        limit = now - wait + _TICK
        rack_at, rack_end = self._rack_at, self._rack_end
        due = _UNKNOWN

        entries = self._entries
        count = len(entries)
        at = self._cursor if self._cursor > self._head else self._head
        while at < count:
            entry = entries[at]
            if entry.copies and not entry.resent:
                sent_at = entry.sent_at
                if sent_at > rack_at or (sent_at == rack_at and entry.end >= rack_end):
                    break
                if sent_at > limit:
                    due = sent_at + wait
                    break
                self._mark_lost(entry)
            at += 1
        self._cursor = at

        again = self._resent
        while again:
            entry, times = again[0]
            if entry.copies and entry.resent == times and entry.end > self.una:
                sent_at = entry.sent_at
                if sent_at > rack_at or (sent_at == rack_at and entry.end >= rack_end):
                    break
                if sent_at > limit:
                    due = min(due, sent_at + wait)
                    break
                self._mark_lost(entry)
            again.popleft()
        return None if due == _UNKNOWN else due

    def _mark_lost(self, entry: Sent) -> None:
        """All copies of it."""
        length = entry.end - entry.start
        self.in_flight -= entry.copies * length
        self.lost_bytes += length
        entry.copies = 0
        if entry.end > self._marked_until:
            self._marked_until = entry.end
        self._push(entry)
        if self.in_flight < 0:
            self._dup_bytes += self.in_flight
            self.in_flight = 0

    def _push(self, entry: Sent) -> None:
        self._serial += 1
        heapq.heappush(self._lost, (entry.start, self._serial, entry))

    def duplicate(self) -> int:
        """A duplicate acknowledgment without SACK (RFC 5681 section 2). How many there were in a row.

        A segment has left the network (it counts as `delivered`). The third one marks the first segment lost unless an earlier recovery's data
        may be what is repeated (RFC 6582 section 3.2 step 2).
        """
        self.duplicates += 1
        if self.sack or self._head == len(self._entries):
            return self.duplicates
        # The first segment is what is missing: it has not left by arriving.
        first = self._entries[self._head]
        held = first.copies * (first.end - first.start)
        gone = min(self.mss, max(self.in_flight - held, 0))
        if gone:
            self._marked_until = self.high
            self._dup_bytes += gone
            self.in_flight -= gone
            self.delivered += gone
        if self.duplicates == DUP_THRESH and not self.recovering and self.una > self.recover_until and first.copies:
            self._mark_lost(first)
        return self.duplicates

    def _partial(self) -> None:
        """RFC 6582 section 3.2 step 3: what a partial acknowledgment stops at is lost too."""
        first = self._entries[self._head]
        if first.copies and not first.resent:
            self._mark_lost(first)

    # -- recovery ------------------------------------------------------------------------

    def recover(self) -> None:
        """Recovery begins, or goes on further: RECOVERED comes when all that is sent by now is acknowledged."""
        self.recover_until = self.high
        self._marked_until = max(self.high, self.una + 1)  # with nothing in flight the next acknowledgment ends it
        if not self.recovering:
            self.recovering = self._episode = True
            self._episode_dups = 0
            self._episode_first = _UNKNOWN

    def _recovered(self) -> None:
        self.news |= RECOVERED
        self.recovering = False
        self._episode = False
        self._persist -= 1
        if self._persist <= 0:
            self._mult = 1
        self.in_flight += self._dup_bytes
        self._dup_bytes = 0

    def time_out(self) -> None:
        """The retransmission timer ran out: everything not SACKed is lost. If even the first segment is SACKed the peer has dropped
        what it had: then everything (RFC 2018 section 8). Recovery begins (again)."""
        entries = self._entries
        count = len(entries)
        head = self._head
        renege = head < count and entries[head].sacked
        lost: list[tuple[int, int, Sent]] = []
        lost_bytes = 0
        serial = self._serial
        for at in range(head, count):
            entry = entries[at]
            if entry.sacked:
                if not renege:
                    continue
                entry.sacked = False
            entry.copies = 0
            lost_bytes += entry.end - entry.start
            serial += 1
            lost.append((entry.start, serial, entry))
        self._serial = serial
        self._lost = lost
        self.lost_bytes = lost_bytes
        self.in_flight = self._dup_bytes = 0
        if renege:
            self._left.clear()
            self._right.clear()
            self.sacked_bytes = self._sacked_count = 0
        self._cursor = count
        self._resent.clear()
        self.duplicates = 0
        self._probe_end = -1
        self.recover()

    def cut_anew(self) -> None:
        """`mss` has become smaller and larger segments do not arrive: everything not SACKed is to be sent again. Neighbours are joined, and
        `next_lost` cuts them: else each of many sizes in a row would leave its own scraps."""
        self.time_out()
        whole: list[Sent] = []
        for entry in self._entries[self._head :]:
            if whole and not entry.sacked and not whole[-1].sacked:
                before = whole[-1]
                before.end = entry.end
                before.resent = max(before.resent, entry.resent)
            else:
                whole.append(entry)
        self._entries = whole
        self._head = 0
        self._cursor = len(whole)
        self._serial += len(whole)
        self._lost = [(entry.start, number, entry) for number, entry in enumerate(whole) if not entry.sacked]

    def undo(self) -> None:
        """The loss was none (SPURIOUS): what is deemed lost is in flight. The recovery is over."""
        for entry in self._entries[self._head :]:
            if not entry.copies and not entry.sacked:
                entry.copies = 1
                self.in_flight += entry.end - entry.start
        self.lost_bytes = 0
        self._lost.clear()
        again = [entry for entry in self._entries[self._head :] if entry.copies and entry.resent]
        again.sort(key=lambda entry: (entry.sent_at, entry.end))
        self._resent = deque((entry, entry.resent) for entry in again)
        self._cursor = self._head
        if self.recovering:
            self._recovered()
            self.news &= ~RECOVERED

    # -- tail loss probe (RFC 8985 section 7) --------------------------------------------

    def probe_due(self, now: float, srtt: float) -> float | None:
        """When a tail loss probe is due (section 7.2), or None: nothing in flight, without SACK, in recovery, something SACKed, or one is
        under way. If the retransmission timer is due earlier the probe takes its place."""
        if not self.in_flight or self.recovering or self._probe_end >= 0 or not self.sack:
            return None
        if self.sacked_bytes or self.lost_bytes:
            return None
        if srtt <= 0.0:
            return now + 1.0
        wait = 2 * srtt
        if len(self._entries) - self._head == 1:
            wait += MAX_ACK_DELAY
        return now + wait

    def probed(self, entry: Sent | None) -> None:
        """A tail loss probe went out: `entry` again (after `resent`), or new data (after `sent`)."""
        self._probe_end = self.high
        self._probe_again = entry is not None

    def _probe_acked(self, ack: int, dsack: bool, blocks: bool) -> None:
        """Section 7.4.2."""
        end = self._probe_end
        if ack < end:
            return
        if not self._probe_again or dsack:
            self._probe_end = -1
        elif ack > end:
            self._probe_end = -1
            self.news |= REPAIRED
        elif not self.newly_acked and not blocks:
            self._probe_end = -1
