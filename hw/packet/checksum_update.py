"""`ChecksumUpdate`: the Internet checksum of a packet of which some 16-bit words change (RFC 1624).

Equation 3: HC' = ~(~HC + ~m + m'), for every word m that goes and every m' that comes. Words are those of the
checksum's own alignment, first byte most significant: what a field is does not matter, only which bytes
stand in which word. So a 32-bit number at an odd offset counts as the three words that it touches,
with its bytes where they stand. A word that is given as old and as new but did not change makes no
difference; nor do bytes that are put as 0 into both.

What is equal, in the words of RFC 1071: a packet verifies if the one's-complement sum of all its words, HC
among them, is 0xffff.
* If the packet verified before, it does after; if it did not, it does not after. (The sum of the words of a
  packet that are not HC is never 0, before or after: IP has a version, and the pseudo-header a protocol.)
* If it verified, HC' is what computing it anew gives, bit for bit, unless HC, the complement of every old word and
  every new word make up nothing but zeros: HC = 0xffff, all old words 0xffff, all new words 0. Then HC' is 0xffff,
  where computing anew gives 0; both verify. Otherwise HC' is never 0xffff.

* Throughput: one packet per cycle, never stalls. Latency: `latency` cycles. Registered.
* Overflow: none for up to 32,768 words. Reset: data registers are not cleared; validity travels elsewhere.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .checksum import fold

__all__ = ["ChecksumUpdate", "update_latency"]

_GROUP = 4  # terms that a stage adds up: two levels of adders, or one of ternary adders and a half


def _tree_stages(terms):
    stages = 0
    while terms > 1:
        stages, terms = stages + 1, -(-terms // _GROUP)
    return stages


def update_latency(old, new):
    """Cycles that `ChecksumUpdate(old, new)` takes."""
    return _tree_stages(1 + old + new) + 2


class ChecksumUpdate(wiring.Component):
    """Updates one checksum per cycle.

    Parameters
    ----------
    old: number of words that go.
    new: number of words that come.

    Members
    -------
    i_checksum, i_old, i_new: HC, and the words.
    o_checksum: HC', `latency` cycles later.
    """

    def __init__(self, old, new):
        for name, value in (("old", old), ("new", new)):
            if not isinstance(value, int) or not 0 <= value <= 1 << 14:
                raise ValueError(f"{name} must be a number of words from 0 to {1 << 14}, not {value!r}")
        if not old + new:
            raise ValueError("old and new must not both be 0")
        self._old, self._new = old, new
        super().__init__(
            {
                "i_checksum": In(16),
                "i_old": In(data.ArrayLayout(16, old)),
                "i_new": In(data.ArrayLayout(16, new)),
                "o_checksum": Out(16),
            }
        )

    @property
    def latency(self):
        """Cycles from the words to the new checksum."""
        return update_latency(self._old, self._new)

    def elaborate(self, platform):
        m = Module()
        # The complements cost nothing: they go into the first adders' look-up tables.
        terms = [(~self.i_checksum)[:16]]
        terms += [(~self.i_old[k])[:16] for k in range(self._old)]
        terms += [self.i_new[k] for k in range(self._new)]
        for stage in range(_tree_stages(len(terms))):
            added = []
            for at in range(0, len(terms), _GROUP):
                total = sum(terms[at + 1 : at + _GROUP], terms[at])
                register = Signal(len(total), name=f"sum{stage}_{at}", reset_less=True)
                m.d.sync += register.eq(total)
                added.append(register)
            terms = added
        # Two folds: as in MaskedSum.
        folded, checksum = Signal(17, reset_less=True), Signal(16, reset_less=True)
        m.d.sync += [folded.eq(fold(terms[0])), checksum.eq(~fold(folded))]
        m.d.comb += self.o_checksum.eq(checksum)
        return m
