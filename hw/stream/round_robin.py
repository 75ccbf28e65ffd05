"""`round_robin`: whose turn it is among those who ask. Combinational; the caller keeps the turn."""

from amaranth import *

__all__ = ["round_robin"]


def round_robin(m, wanted, last, pick):
    """Set `pick` to the first wanted requester after `last`; leave it if nobody asks."""
    count = len(wanted)
    with m.Switch(last):
        for at in range(count):
            with m.Case(at):
                # The last assignment wins: go from the least favoured to the most.
                for distance in range(count, 0, -1):
                    candidate = (at + distance) % count
                    with m.If(wanted[candidate]):
                        m.d.comb += pick.eq(candidate)
