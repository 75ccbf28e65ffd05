"""Round-trip time and retransmission time-out: RFC 6298, samples weighted as RFC 7323 appendix G says.

How it is used: `sample` for every measured round trip; `backed_off` each time the retransmission timer
runs out; `progress` when an acknowledgment of new data brings no sample (all of it was retransmitted and there
are no timestamps): it keeps the back-off, as section 5 of RFC 6298 wants, so it is the caller's choice to call it.
Times are seconds.
"""

from __future__ import annotations

__all__ = ["RttEstimator"]

_ALPHA = 1 / 8
_BETA = 1 / 4
_K = 4.0
_MIN_WINDOW = 300.0
"""For how long a smallest round trip counts (RFC 8985 section 6.2 leaves the window open)."""


class RttEstimator:
    """Of one connection.

    srtt: smoothed round trip, 0.0 before the first sample. rttvar: its variation. rto: the time-out with
    back-off. base_rto: without. min_rtt: the smallest sample of the last 150 to 300 seconds, 0.0 before the first.
    """

    __slots__ = (
        "_granularity", "_half_at", "_half_min", "_max_rto", "_min_rto", "base_rto", "min_rtt", "rto", "rttvar", "srtt",
    )  # fmt: skip

    def __init__(
        self, initial_rto: float = 1.0, min_rto: float = 0.2, max_rto: float = 60.0, granularity: float = 0.01
    ) -> None:
        """`granularity` is G of RFC 6298: how late our own timers and time stamps may be."""
        self.srtt = 0.0
        self.rttvar = 0.0
        self.min_rtt = 0.0
        self._half_min = 0.0
        self._half_at = 0.0
        self._granularity = granularity
        self._min_rto = min_rto
        self._max_rto = max(min_rto, max_rto)
        self.base_rto = self.rto = min(max(initial_rto, min_rto), self._max_rto)

    def sample(self, rtt: float, now: float, weight: int = 1) -> None:
        """A measured round trip (never of a retransmitted segment unless a timestamp tells which copy was
        answered: Karn). `weight`: how many samples are expected per round trip; RFC 7323 appendix G suggests
        ceil(FlightSize / (2 * MSS)). Ends the back-off."""
        if rtt < 0.0:
            rtt = 0.0  # a clock that went back is worth no exception
        srtt = self.srtt
        if srtt == 0.0:
            self.srtt = srtt = rtt if rtt > 0.0 else 1e-6
            self.rttvar = variation = rtt / 2
            self.min_rtt = self._half_min = srtt
            self._half_at = now
        else:
            error = rtt - srtt
            variation = self.rttvar
            if weight < 1:
                weight = 1
            variation += _BETA / weight * ((error if error >= 0.0 else -error) - variation)
            self.rttvar = variation
            self.srtt = srtt = srtt + _ALPHA / weight * error
            # The minimum of two half windows: the one that runs, and the one before.
            if rtt <= self.min_rtt:
                self.min_rtt = self._half_min = rtt if rtt > 0.0 else 1e-6
                self._half_at = now
            else:
                if rtt < self._half_min:
                    self._half_min = rtt
                if now - self._half_at > _MIN_WINDOW / 2:
                    self.min_rtt = self._half_min
                    self._half_min = rtt
                    self._half_at = now
        variation *= _K
        rto = srtt + (variation if variation > self._granularity else self._granularity)
        if rto < self._min_rto:
            rto = self._min_rto
        elif rto > self._max_rto:
            rto = self._max_rto
        self.base_rto = self.rto = rto

    def backed_off(self) -> None:
        """The retransmission timer ran out (RFC 6298 section 5.5)."""
        self.rto = min(self.rto * 2, self._max_rto)

    def progress(self) -> None:
        """The peer answers again without giving a sample: no back-off any more."""
        self.rto = self.base_rto

    def handshake_timed_out(self) -> None:
        """Our SYN or SYN-ACK was lost: data start with three seconds until there is a sample (RFC 6298 section 5.7)."""
        if self.srtt == 0.0:
            self.base_rto = self.rto = min(max(self.base_rto, 3.0), self._max_rto)
