"""`RoundPicker`: which of many requests is served next, fairly and at any number of requests.

It works in rounds: every request standing when a round begins is picked once before the next
round begins. Unlike a rotating priority this has no long path: picking the lowest set bit and
numbering it are two registered stages.

* Latency: a request is offered 3 cycles after it rises, if none is before it.
* Throughput: one pick per cycle; a round of a single request may cost a second cycle.
* A pick may be out of date: its request may have gone since. Who takes it looks again.
* Registered: `index` and `valid`. Reset: forgets the round.
"""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["RoundPicker"]

GROUP = 8


def lowest(bits):
    """One-hot: the lowest set bit of a short value; zero if there is none."""
    return Cat(bit & ~bits[:i].any() if i else bit for i, bit in enumerate(bits))


def _encode(onehot, width):
    """Number of the set bit."""
    onehot = Value.cast(onehot)
    return Cat(Cat(onehot[i] for i in range(len(onehot)) if i >> bit & 1).any() for bit in range(width))


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

        # Stage 1: the lowest group of up to 8 requests that stand in this round. A new round may begin
        # while the last group of the round before is still being served.
        left = Signal(self._n)
        standing = Signal(self._n)
        m.d.comb += standing.eq(left & self.requests)
        groups = [standing[at : at + GROUP] for at in range(0, self._n, GROUP)]
        some = Signal(len(groups))
        m.d.comb += some.eq(Cat(group.any() for group in groups))
        chosen = Signal(len(groups))
        m.d.comb += chosen.eq(lowest(some))
        group = Signal(GROUP)
        number = Signal(range(max(len(groups), 2)), reset_less=True)
        rest = Signal(GROUP)
        load, step = Signal(), Signal()
        m.d.comb += [
            rest.eq(group & (group - 1)),
            step.eq(~self.valid | self.take),
            load.eq(~group.any() | (step & ~rest.any())),
        ]
        with m.If(~some.any()):
            m.d.sync += left.eq(self.requests)
        with m.Elif(load):
            for i in range(self._n):
                with m.If(chosen[i // GROUP]):
                    m.d.sync += left[i].eq(0)
        with m.If(load):
            m.d.sync += [
                group.eq(reduce(or_, (Mux(chosen[i], bits, 0) for i, bits in enumerate(groups)))),
                number.eq(_encode(chosen, len(number))),
            ]
        with m.Elif(step):
            m.d.sync += group.eq(rest)

        # Stage 2: the lowest request of the group.
        with m.If(step):
            m.d.sync += [
                self.valid.eq(group.any()),
                self.index.eq(Cat(_encode(lowest(group), GROUP.bit_length() - 1), number)),
            ]
        return m
