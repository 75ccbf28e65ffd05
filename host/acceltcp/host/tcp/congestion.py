"""Congestion control: Reno (RFC 5681, RFC 3465) and CUBIC (RFC 9438) behind one interface; PRR (RFC 9937).

Windows are bytes, times seconds. How a connection uses it:

* on an acknowledgment of new data outside recovery: `acked`. In recovery: `Prr.acked`, and `Prr.allowed` says
  what may be sent instead of cwnd - in_flight.
* a loss was detected and no recovery runs: `lost`, then `Prr.begin`. ECN-Echo, at most once per round trip: `congested`
  (with `Prr.begin` as well, or sending simply waits until in_flight is below cwnd). All of the flight at the time acknowledged: `recovered`.
* the retransmission timer ran out: `timed_out`. Slow start follows: `acked` again for each acknowledgment.
* the reduction turned out to be spurious: `undo`. Nothing was in flight for longer than the RTO: `idle`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["CONGESTION_CONTROLS", "CongestionControl", "Cubic", "Prr", "Reno", "check_congestion", "make"]

INFINITE = 1 << 30
"""ssthresh before the first loss, and the largest cwnd: the largest window of RFC 7323."""
_L = 8
"""Segments that one acknowledgment counts for in slow start: RFC 3465 section 2.3 as changed by RFC 9406 section 4.2."""

# RFC 9406 section 4.2 and 4.3.
_HYSTART_MIN_THRESH = 0.004
_HYSTART_MAX_THRESH = 0.016
_HYSTART_DIVISOR = 8
_HYSTART_SAMPLES = 8
_HYSTART_GROWTH_DIVISOR = 4
_HYSTART_ROUNDS = 5
_NEVER = float("inf")


class CongestionControl(ABC):
    """What every algorithm has. Subclasses say how the window grows in congestion avoidance and by how much it shrinks.

    cwnd: congestion window. ssthresh: slow start is below it. mss: bytes of a full segment. name: as in settings.
    """

    __slots__ = (
        "_before", "_css_baseline", "_css_rounds", "_initial", "_last_min", "_part", "_round_left", "_round_min", "_round_samples",
        "_timed_out", "cwnd", "mss", "ssthresh",
    )  # fmt: skip
    name: str = ""

    def __init__(self, mss: int, initial_window: int) -> None:
        self.mss = mss
        self._initial = initial_window
        self.cwnd = initial_window
        self.ssthresh = INFINITE
        self._part = 0.0
        self._before: tuple[float, ...] | None = None
        self._timed_out = False
        # HyStart++: the round ends when so many bytes more are acknowledged.
        self._round_left = 0
        self._round_min = self._last_min = _NEVER
        self._round_samples = 0
        self._css_baseline = _NEVER
        self._css_rounds = 0

    # -- acknowledgments -----------------------------------------------------------------

    def acked(self, count: int, in_flight: int, now: float, rtt: float, srtt: float, limited: bool) -> None:
        """`count` bytes newly acknowledged outside recovery (or in slow start after a time-out).

        in_flight: after this acknowledgment. rtt: the sample that came with it, 0.0 without one (HyStart++ needs it).
        limited: the window was used up (RFC 9438 section 5.8, RFC 7661): only then it grows.
        """
        if self.cwnd < self.ssthresh:
            if not limited:
                return
            cwnd = self.cwnd
            # After a time-out what is acknowledged may have left the network long ago: L is 1 (RFC 3465 section 2.3).
            step = self.mss if self._timed_out else _L * self.mss
            if count < step:
                step = count
            if self.ssthresh == INFINITE:
                step = self._hystart(count, in_flight, rtt, step)
            cwnd += step
            self.cwnd = cwnd if cwnd < INFINITE else INFINITE
            return
        self._avoid(count, now, srtt, limited)

    def _hystart(self, count: int, in_flight: int, rtt: float, step: int) -> int:
        """RFC 9406 section 4.2, for the first slow start: by how much it may go on; ends it when delay keeps growing."""
        self._round_left -= count
        if self._round_left <= 0:
            # A round is a window of data; the next one ends with what is now in flight.
            self._round_left = in_flight
            self._last_min, self._round_min = self._round_min, _NEVER
            self._round_samples = 0
            if self._css_baseline != _NEVER:
                self._css_rounds += 1
                if self._css_rounds >= _HYSTART_ROUNDS:
                    self.ssthresh = self.cwnd
                    return 0
        if rtt > 0.0:
            self._round_samples += 1
            if rtt < self._round_min:
                self._round_min = rtt
            if self._round_samples >= _HYSTART_SAMPLES:
                if self._css_baseline != _NEVER:
                    if self._round_min < self._css_baseline:
                        self._css_baseline = _NEVER  # it was jitter: slow start again
                elif self._last_min != _NEVER and self._round_min != _NEVER:
                    threshold = self._last_min / _HYSTART_DIVISOR
                    threshold = max(_HYSTART_MIN_THRESH, min(threshold, _HYSTART_MAX_THRESH))
                    if self._round_min >= self._last_min + threshold:
                        self._css_baseline = self._round_min
                        self._css_rounds = 0
        if self._css_baseline != _NEVER:
            return max(step // _HYSTART_GROWTH_DIVISOR, 1)
        return step

    @abstractmethod
    def _avoid(self, count: int, now: float, srtt: float, limited: bool) -> None:
        """Congestion avoidance."""

    @abstractmethod
    def _reduced(self, in_flight: int) -> int:
        """What is left of the window after a congestion event; remembers what the algorithm needs."""

    def _state(self) -> tuple[float, ...]:
        """What `undo` brings back."""
        return (self.cwnd, self.ssthresh)

    # -- congestion ----------------------------------------------------------------------

    def lost(self, in_flight: int, now: float) -> None:
        """Fast recovery begins (RFC 5681 section 3.2). in_flight: FlightSize, what was sent and not acknowledged
        just before the loss was found. It counts what was SACKed meanwhile and may be more than the window ever let into the network:
        then the window is what is reduced."""
        self._before = self._state()
        self.ssthresh = max(self._reduced(min(in_flight, self.cwnd)), 2 * self.mss)
        self.cwnd = self.ssthresh
        self._part = 0.0

    def congested(self, in_flight: int, now: float) -> None:
        """ECN-Echo (RFC 3168 section 6.1.2): as for a loss, but cwnd may become one segment (RFC 9438 section 4.6), and there is nothing
        that could be undone."""
        left = self._reduced(min(in_flight, self.cwnd))
        self.ssthresh = max(left, 2 * self.mss)
        self.cwnd = max(left, self.mss)
        self._part = 0.0
        self._before = None

    def timed_out(self, in_flight: int, now: float, first: bool = True) -> None:
        """The retransmission timer ran out (RFC 5681 section 3.1). first: not again for the same segment."""
        if first:
            self._before = self._state()
            self.ssthresh = max(self._reduced(min(in_flight, self.cwnd)), 2 * self.mss)
        self.cwnd = self.mss
        self._part = 0.0
        self._timed_out = True

    def recovered(self, now: float) -> None:
        """Everything that was in flight at `lost` or `timed_out` is acknowledged. After `lost` (not after a time-out, where slow start
        has brought the window where it is) cwnd is ssthresh: RFC 9937 and RFC 6582 section 3.2 step 3."""
        if not self._timed_out:
            self.cwnd = self.ssthresh
        self._timed_out = False

    def idle(self, now: float, rto: float) -> None:
        """Nothing was sent for longer than `rto`: the restart window (RFC 5681 section 4.1)."""
        if self.cwnd > self._initial:
            self.cwnd = self._initial
        self._part = 0.0
        self._round_left = 0

    def undo(self) -> None:
        """The last `lost` or `timed_out` was spurious (RFC 4015, RFC 9438 section 4.9): the window before is back."""
        before, self._before = self._before, None
        if before is not None:
            self._restore(before)
        self._timed_out = False

    def _restore(self, before: tuple[float, ...]) -> None:
        self.cwnd = max(self.cwnd, int(before[0]))
        self.ssthresh = max(int(before[1]), 2 * self.mss)

    def resized(self, mss: int) -> None:
        """The path takes another segment size. Smaller: the window keeps its number of segments (RFC 1191 section 6.4 wants slow
        start from the same number); larger: it keeps its bytes."""
        if mss < self.mss:
            self.cwnd = self.cwnd * mss // self.mss
            if self.ssthresh < INFINITE:
                self.ssthresh = self.ssthresh * mss // self.mss
        self.cwnd = max(self.cwnd, mss)
        self.ssthresh = max(self.ssthresh, 2 * mss)
        self.mss = mss


class Reno(CongestionControl):
    """RFC 5681 with appropriate byte counting (RFC 3465)."""

    __slots__ = ()
    name = "reno"

    def _avoid(self, count: int, now: float, srtt: float, limited: bool) -> None:
        """A segment more per window acknowledged (RFC 3465 section 2.1)."""
        if not limited:
            return
        self._part += min(count, self.cwnd)
        if self._part >= self.cwnd:
            self._part -= self.cwnd
            self.cwnd = min(self.cwnd + self.mss, INFINITE)

    def _reduced(self, in_flight: int) -> int:
        return in_flight // 2


class Cubic(CongestionControl):
    """RFC 9438. Names are those of its section 4.1.2, in bytes."""

    __slots__ = ("_cwnd_prior", "_epoch", "_k", "_origin", "_paused", "_w_est", "_w_max")
    name = "cubic"

    C = 0.4
    BETA = 0.7
    ALPHA = 3 * (1 - BETA) / (1 + BETA)

    def __init__(self, mss: int, initial_window: int) -> None:
        super().__init__(mss, initial_window)
        self._w_max = 0.0
        self._cwnd_prior = 0.0
        self._forget_epoch()

    def _forget_epoch(self) -> None:
        """The next acknowledgment in congestion avoidance begins a new stage."""
        self._epoch = -1.0
        self._paused = -1.0
        self._k = 0.0
        self._origin = 0.0
        self._w_est = 0.0

    def _begin(self, now: float) -> None:
        cwnd = self.cwnd + self._part
        self._epoch = now
        self._w_est = cwnd
        if self._w_max > cwnd:
            self._k = float(((self._w_max - cwnd) / self.mss / self.C) ** (1 / 3))
            self._origin = self._w_max
        else:
            # After slow start without a loss, or after a time-out (sections 4.8 and 4.10).
            self._k = 0.0
            self._origin = cwnd

    def _avoid(self, count: int, now: float, srtt: float, limited: bool) -> None:
        """Sections 4.2 to 4.5."""
        if not limited:
            if self._paused < 0.0:
                self._paused = now
            return
        if self._epoch < 0.0:
            self._begin(now)
        elif self._paused >= 0.0:
            self._epoch += now - self._paused  # section 5.8: the time in which the window could not grow does not count
        self._paused = -1.0
        mss = self.mss
        cwnd = self.cwnd + self._part
        if count > cwnd:
            count = int(cwnd)  # an acknowledgment of more than a window tells of one round trip all the same
        t = now - self._epoch
        scale = self.C * mss
        d = t - self._k
        # The Reno-friendly region (section 4.3).
        self._w_est += (self.ALPHA if self._w_est < self._cwnd_prior else 1.0) * mss * count / cwnd
        if scale * d * d * d + self._origin < self._w_est:
            if self._w_est > cwnd:
                cwnd = self._w_est
        else:
            d += srtt
            target = scale * d * d * d + self._origin
            if target > cwnd:
                if target > 1.5 * cwnd:
                    target = 1.5 * cwnd
                cwnd += (target - cwnd) * count / cwnd
        if cwnd > INFINITE:
            cwnd = INFINITE
        self.cwnd = whole = int(cwnd)
        self._part = cwnd - whole

    def _reduced(self, in_flight: int) -> int:
        """Sections 4.6 and 4.7."""
        cwnd = float(self.cwnd)
        self._cwnd_prior = cwnd
        self._w_max = cwnd * (1 + self.BETA) / 2 if cwnd < self._w_max else cwnd
        self._forget_epoch()
        return int(in_flight * self.BETA)

    def timed_out(self, in_flight: int, now: float, first: bool = True) -> None:
        """Section 4.8: the next stage of congestion avoidance starts with K = 0."""
        super().timed_out(in_flight, now, first)
        self._w_max = 0.0
        self._forget_epoch()

    def idle(self, now: float, rto: float) -> None:
        super().idle(now, rto)
        self._forget_epoch()

    def _state(self) -> tuple[float, ...]:
        return (
            self.cwnd, self.ssthresh, self._w_max, self._cwnd_prior, self._epoch, self._k, self._origin, self._w_est, self._part,
        )  # fmt: skip

    def _restore(self, before: tuple[float, ...]) -> None:
        """Section 4.9: all variables of before."""
        if self.cwnd < before[0]:
            self._part = before[8]
        super()._restore(before)
        self._w_max, self._cwnd_prior, self._epoch, self._k, self._origin, self._w_est = before[2:8]
        self._paused = -1.0

    def resized(self, mss: int) -> None:
        ratio = mss / self.mss
        super().resized(mss)
        if ratio < 1.0:
            self._w_max *= ratio
            self._cwnd_prior *= ratio
        self._part = 0.0
        self._forget_epoch()


CONGESTION_CONTROLS: dict[str, type[CongestionControl]] = {"cubic": Cubic, "reno": Reno}


def check_congestion(what: str, name: object) -> None:
    """Raise `ValueError` naming the known ones unless there is a congestion control of this name."""
    if not isinstance(name, str) or name not in CONGESTION_CONTROLS:
        raise ValueError(f"{what} must be one of {', '.join(sorted(CONGESTION_CONTROLS))}, not {name!r}")


def make(name: str, mss: int, initial_window: int) -> CongestionControl:
    """A congestion control by its name. Raises `ValueError` naming the known ones."""
    check_congestion("congestion control", name)
    return CONGESTION_CONTROLS[name](mss, initial_window)


class Prr:
    """Proportional rate reduction (RFC 9937, successor of RFC 6937) for one recovery at a time. RFC 9937 calls `allowed` SndCnt.

    allowed: bytes that may be sent now. In recovery a sender sends lost segments first, then new data, while `allowed` > 0, and tells
    `sent`. The last segment may be larger than what is allowed (a small rest must not stall it): what comes next takes it into account.
    """

    __slots__ = ("allowed", "delivered", "out", "recover_fs")

    def __init__(self) -> None:
        self.allowed = 0
        self.delivered = 0
        self.out = 0
        self.recover_fs = 1

    def begin(self, recover_fs: int, mss: int) -> None:
        """Recovery begins. recover_fs: bytes sent and not known to be delivered before this acknowledgment: for `Scoreboard`,
        high - una - sacked_bytes + delivered. A first segment may go at once."""
        self.recover_fs = max(recover_fs, 1)
        self.delivered = self.out = 0
        self.allowed = mss

    def acked(self, delivered: int, in_flight: int, ssthresh: int, mss: int, safe: bool) -> int:
        """An acknowledgment during recovery, the one that began it too: `allowed` is set and returned.

        delivered: bytes newly acknowledged or SACKed. safe: it advances snd_una and marks nothing lost.
        """
        if delivered <= 0:
            return self.allowed
        self.delivered += delivered
        if in_flight > ssthresh:
            count = -(-self.delivered * ssthresh // self.recover_fs) - self.out
        else:
            count = max(self.delivered - self.out, delivered)
            if safe:
                count += mss
            count = min(count, ssthresh - in_flight)
        if not self.out and count < mss:
            count = mss
        self.allowed = count if count > 0 else 0
        return self.allowed

    def sent(self, count: int) -> None:
        """`count` bytes went out, new or again."""
        self.out += count
        self.allowed -= count
