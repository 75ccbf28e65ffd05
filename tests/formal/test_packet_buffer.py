"""PacketBuffer: a packet comes out whole and in its turn, or not a single beat of it."""

import pytest
from amaranth import *
from amaranth.hdl import Assert, Assume, Cover

from hw.stream.beat import BeatLayout
from hw.stream.packet_buffer import PacketBuffer

from .prove import Harness, accept, check, free, offer, reach

DEPTH, PACKETS = 4, 2


def body(m):
    """One packet, any one, is coloured; each of its beats says its number in the packet."""
    m.submodules.dut = dut = PacketBuffer(2, DEPTH, PACKETS)
    colour, index = Signal(), Signal(3)
    payload = Signal(BeatLayout(2))
    m.d.comb += [
        payload.data.eq(Cat(colour, index)),
        Cat(payload.count, payload.last, payload.err).eq(free(m, 4)),
        dut.room.eq(free(m)),
    ]
    push = offer(m, dut.i, Value.cast(payload))
    take, pop = offer(m, dut.take), accept(m, dut.packets)
    end = push & payload.last

    # Colour one packet, whichever.
    inside, coloured, keep_colour = Signal(), Signal(), Signal()
    start = free(m)
    m.d.comb += colour.eq(Mux(inside, keep_colour, start & ~coloured))
    with m.If(push):
        m.d.sync += [
            inside.eq(~payload.last),
            keep_colour.eq(colour),
            coloured.eq(coloured | colour),
            index.eq(Mux(payload.last, 0, Mux(index == 7, 7, index + 1))),
        ]

    # What becomes of each packet is told in the cycle after its last beat.
    told, bad, of_colour = Signal(), Signal(), Signal()
    beats, count = Signal(3), Signal(2)
    m.d.sync += [told.eq(end), bad.eq(end & payload.err), of_colour.eq(end & colour)]
    with m.If(end & colour):
        m.d.sync += [beats.eq(index), count.eq(payload.count)]
    m.d.comb += Assert((dut.kept + dut.lost + bad) == told)

    # Kept and not yet taken; `ahead` of them are before the coloured one.
    waiting, ahead, next_up = Signal(3), Signal(3), Signal()
    kept, taken_away, read_out = Signal(), Signal(), Signal()
    m.d.sync += waiting.eq(waiting + dut.kept - take)
    m.d.comb += next_up.eq(kept & (ahead == 0) & ~taken_away & ~read_out)
    with m.If(dut.kept & of_colour):
        m.d.sync += [kept.eq(1), ahead.eq(waiting - take)]
        m.d.comb += Assert(beats < DEPTH)
    with m.Elif(take & next_up):
        m.d.sync += [read_out.eq(dut.take.p.keep), taken_away.eq(~dut.take.p.keep)]
    with m.Elif(take & kept & (ahead != 0)):
        m.d.sync += ahead.eq(ahead - 1)
    m.d.comb += [Assert(waiting <= PACKETS), Assert(~take | (waiting != 0))]

    # Beats that come out: of the coloured packet only when it is being read, in order and all of them.
    out = dut.packets.p
    shown = Signal(3)
    with m.If(dut.packets.valid):
        with m.If(out.data[0]):
            m.d.comb += [
                Assert(read_out & (out.data[1:4] == shown)),
                Assert(out.last == (shown == beats)),
                Assert(~out.last | (out.count == count)),
            ]
        with m.Else():
            # No other packet's beat in the middle of it.
            m.d.comb += Assert((shown == 0) | (shown == beats + 1))
        m.d.comb += Assert(~out.err)
    with m.If(pop & out.data[0]):
        m.d.sync += shown.eq(shown + 1)

    # It is shown in time: when nothing is taken out, the output fills within three cycles.
    silent = Signal(3)
    m.d.sync += silent.eq(Mux(read_out & (shown <= beats) & ~dut.packets.valid, silent + 1, 0))
    m.d.comb += Assert(silent <= 3)
    # Nothing remains: when it has been quiet for long enough, `busy` says so.
    m.d.comb += Assert(dut.busy | (~dut.packets.valid & (dut.waiting == 0)))
    m.d.comb += Assume(~(inside & (index == 7)))  # where the number of a beat ends
    m.d.comb += Cover(pop & out.data[0] & out.last & (beats == 2) & (ahead == 0))


@pytest.mark.slow
def test_whole_packets_or_nothing():
    check(Harness(body), depth=14)
    reach(Harness(body), depth=14)
