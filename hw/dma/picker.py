"""`RoundPicker`: which of many requests is served next, fairly and at any number of requests.

It works in rounds: every request standing when a round begins is picked once before the next
round begins. Unlike a rotating priority this has no long path: picking the lowest set bit and
numbering it are two registered stages.

* Latency: a request is offered 3 cycles after it rises, if none is before it.
* Throughput: one pick per cycle, less one cycle between rounds.
* A pick may be out of date: its request may have gone since. Who takes it looks again.
* Registered: `index` and `valid`. Reset: forgets the round.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["RoundPicker"]

GROUP = 8


def lowest(bits):
    """One-hot: the lowest set bit of a short value; zero if there is none."""
    return Cat(bit & ~bits[:i].any() if i else bit for i, bit in enumerate(bits))


class RoundPicker(wiring.Component):
    """Picks one of `n` requests after the other.

    Members
    -------
    requests: one bit per requester; level, not pulse.
    index, valid: the pick.
    take: the pick has been used or thrown away; go on to the next.
    """

    def __init__(self, n):
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be a positive integer, not {n!r}")
        self._n = n
        super().__init__(
            {
                "requests": In(n),
                "take": In(1),
                "index": Out(range(max(n, 2))),
                "valid": Out(1),
            }
        )

    @property
    def n(self):
        """Number of requesters."""
        return self._n

    def elaborate(self, platform):
        m = Module()

        # Stage 1: lowest request of this round, one-hot, in groups to keep the path short.
        left = Signal(self._n)
        standing = Signal(self._n)
        m.d.comb += standing.eq(left & self.requests)
        groups = [standing[at : at + GROUP] for at in range(0, self._n, GROUP)]
        some = Signal(len(groups))
        m.d.comb += some.eq(Cat(group.any() for group in groups))
        chosen_group = lowest(some)
        chosen = Signal(self._n)
        m.d.comb += chosen.eq(
            Cat(Mux(chosen_group[i], lowest(group), 0)[: len(group)] for i, group in enumerate(groups))
        )
        picked = Signal(self._n)
        picked_valid = Signal()
        picked_ready = Signal()
        with m.If(~standing.any()):
            m.d.sync += left.eq(self.requests)
        with m.Elif(picked_ready):
            m.d.sync += left.eq(standing & ~chosen)
        with m.If(picked_ready):
            m.d.sync += [picked.eq(chosen), picked_valid.eq(standing.any())]

        # Stage 2: its number.
        m.d.comb += picked_ready.eq(~self.valid | self.take)
        with m.If(picked_ready):
            m.d.sync += [
                self.valid.eq(picked_valid),
                self.index.eq(
                    Cat(
                        Cat(picked[i] for i in range(self._n) if i >> bit & 1).any()
                        for bit in range(len(self.index))
                    )
                ),
            ]
        return m
