"""An updated checksum verifies exactly if the old one did, and is what computing it anew gives.

In two steps. The gateware computes equation 3 of RFC 1624 with the one's-complement sum of RFC 1071, for a few words
of either kind. And equation 3 has the property, for any packet in which one word changes: `rest` stands for all
words that stay. More words are as many changes one after the other: their order does not matter, because the
sum is associative, and HC' is complemented again where the next change begins.
"""

from amaranth import *
from amaranth.hdl import Assert, Assume, Cover

from hw.packet.checksum_update import ChecksumUpdate

from .prove import Harness, free, prove, reach


def ones_complement(m, name, *words):
    """The sum, the carry brought round after each word, as RFC 1071 defines it."""
    total = C(0, 16)
    for k, word in enumerate(words):
        wide, folded = Signal(17, name=f"{name}_wide{k}"), Signal(16, name=f"{name}{k}")
        m.d.comb += [wide.eq(total + word), folded.eq(wide[:16] + wide[16])]
        total = folded
    return total


def complement(word):
    return (~word)[:16]


def equation_3(m, name, checksum, old, new):
    words = [complement(checksum), *(complement(word) for word in old), *new]
    return complement(ones_complement(m, name, *words))


def gateware(old, new):
    """A packet in every cycle."""

    def body(m):
        m.submodules.dut = dut = ChecksumUpdate(old, new)
        checksum = free(m, 16)
        going, coming = [free(m, 16) for _ in range(old)], [free(m, 16) for _ in range(new)]
        m.d.comb += [
            dut.i_checksum.eq(checksum),
            *(dut.i_old[k].eq(word) for k, word in enumerate(going)),
            *(dut.i_new[k].eq(word) for k, word in enumerate(coming)),
        ]
        wanted, valid = equation_3(m, "wanted", checksum, going, coming), C(1, 1)
        for stage in range(dut.latency):
            late, late_valid = Signal(16, name=f"late{stage}"), Signal(name=f"valid{stage}")
            m.d.sync += [late.eq(wanted), late_valid.eq(valid)]
            wanted, valid = late, late_valid
        with m.If(valid):
            m.d.comb += Assert(dut.o_checksum == wanted)
        m.d.comb += Cover(valid & (dut.o_checksum == 0xFFFF))

    return Harness(body)


def test_gateware_computes_equation_3():
    for old, new in ((1, 1), (2, 0), (0, 2)):
        prove(gateware(old, new))
    reach(gateware(1, 1), depth=8)


def test_order_of_words_does_not_matter():
    def body(m):
        a, b, c = (free(m, 16) for _ in range(3))
        left = ones_complement(m, "left", ones_complement(m, "ab", a, b), c)
        right = ones_complement(m, "right", a, ones_complement(m, "cb", c, b))
        m.d.comb += Assert(left == right)

    prove(Harness(body))


def equation(m):
    rest, old, new, checksum = (free(m, 16) for _ in range(4))
    before, after = ones_complement(m, "before", rest, old), ones_complement(m, "after", rest, new)
    updated = equation_3(m, "updated", checksum, [old], [new])
    was_right, is_right, nothing = Signal(), Signal(), Signal()
    m.d.comb += [
        Assume((before != 0) & (after != 0)),
        was_right.eq(ones_complement(m, "old_sum", before, checksum) == 0xFFFF),
        is_right.eq(ones_complement(m, "new_sum", after, updated) == 0xFFFF),
        nothing.eq((checksum == 0xFFFF) & (old == 0xFFFF) & (new == 0)),
        Assert(is_right == was_right),
        Assert((updated == 0xFFFF) == nothing),
        Assert(~was_right | nothing | (updated == complement(after))),
        Cover(was_right & (checksum == 0) & (updated != 0)),
        Cover(was_right & (updated == 0)),
        Cover(was_right & nothing),
        Cover(~was_right),
    ]


def test_equation_3_verifies_as_before_and_is_what_computing_anew_gives():
    prove(Harness(equation))
    reach(Harness(equation), depth=2)
