"""MaskedSum is the one's-complement sum, added up word by word with the carry brought round each time."""

from amaranth import *
from amaranth.hdl import Assert, Assume, Cover

from hw.packet.checksum import MaskedSum, fold

from .prove import Harness, check, free, prove, reach


def test_two_folds_lose_nothing():
    def body(m):
        once, twice = Signal(17), Signal(17)
        m.d.comb += [once.eq(fold(free(m, 32))), twice.eq(fold(once)), Assert(~twice[16])]

    prove(Harness(body))


def masked_sum(m):
    beats = 3  # of the longest packet
    m.submodules.dut = dut = MaskedSum(2)
    valid, first, last = free(m), Signal(init=1), free(m)
    number = Signal(range(beats + 1))
    with m.If(valid):
        m.d.sync += [first.eq(last), number.eq(Mux(last, 0, number + 1))]
    m.d.comb += [
        dut.i_valid.eq(valid),
        dut.i_first.eq(first),
        dut.i_last.eq(last),
        dut.i_data.eq(free(m, 16)),
        dut.i_mask.eq(free(m, 2)),
        Assume(~valid | last | (number < beats - 1)),
    ]
    # Byte 0 of the beat is the high byte of the word.
    word, so_far, added, total = Signal(16), Signal(16), Signal(17), Signal(16)
    m.d.comb += [
        word.eq(Cat(Mux(dut.i_mask[1], dut.i_data[8:], 0), Mux(dut.i_mask[0], dut.i_data[:8], 0))),
        added.eq(Mux(first, 0, so_far) + word),
        total.eq(added[:16] + added[16]),
    ]
    with m.If(valid):
        m.d.sync += so_far.eq(total)
    ends, sums = valid & last, total
    for stage in range(dut.latency):
        delayed_ends, delayed_sums = Signal(name=f"ends{stage}"), Signal(16, name=f"sums{stage}")
        m.d.sync += [delayed_ends.eq(ends), delayed_sums.eq(sums)]
        ends, sums = delayed_ends, delayed_sums
    m.d.comb += Assert(dut.o_valid == ends)
    with m.If(ends):
        m.d.comb += Assert(dut.o_sum == sums)
    m.d.comb += Cover(dut.o_valid & (dut.o_sum == 1))


def test_masked_sum():
    check(Harness(masked_sum), depth=10)
    reach(Harness(masked_sum), depth=8)
