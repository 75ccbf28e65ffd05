"""AxisSource and AxisSink: round trip, tkeep, tuser, and malformed tkeep."""

import random

import pytest
from amaranth import Module

from hw.stream.axis import AxisSink, AxisSource
from hw.stream.checker import checked
from tests.hw.simulate import always, beats, collect, converts, feed, packets, run, sometimes


@pytest.mark.parametrize("width", (8, 32, 64))
@pytest.mark.parametrize("pauses", (False, True))
def test_round_trip(width, pauses):
    rng = random.Random(width)
    sent = [rng.randbytes(rng.randrange(1, 4 * width + 1)) for _ in range(12)]
    values = [beat for k, packet in enumerate(sent) for beat in beats(packet, width, err=k % 3 == 0)]
    sink, source = AxisSink(width), AxisSource(width)
    m = Module()
    m.submodules.sink = checked(sink, sink.i)
    m.submodules.source = checked(source, source.o)
    for name in ("tdata", "tkeep", "tvalid", "tlast", "tuser"):
        m.d.comb += getattr(source, name).eq(getattr(sink, name))
    m.d.comb += sink.tready.eq(source.tready)
    go = (sometimes(1), sometimes(2)) if pauses else (always, always)

    async def consumer(ctx):
        assert await collect(ctx, source.o, len(values), go[1]) == values

    cycles = 10 * len(values) if pauses else len(values) + 7
    run(m, lambda ctx: feed(ctx, sink.i, values, go[0]), consumer, cycles=cycles)


def test_sink_keep():
    dut = AxisSink(8)
    seen = []

    async def bench(ctx):
        ctx.set(dut.tready, 1)
        for count in range(1, 9):
            ctx.set(dut.i.p, {"data": 0, "count": count, "last": 1, "err": count == 3})
            ctx.set(dut.i.valid, 1)
            await ctx.tick()
            ctx.set(dut.i.valid, 0)
            await ctx.tick().repeat(2)
            seen.append((ctx.get(dut.tkeep), ctx.get(dut.tuser), ctx.get(dut.tvalid)))

    run(dut, bench)
    assert seen == [((1 << count) - 1, count == 3, 1) for count in range(1, 9)]


@pytest.mark.parametrize("always_ready", (False, True))
def test_malformed_keep_becomes_an_error(always_ready):
    width = 8
    dut = AxisSource(width, always_ready=always_ready)
    # (tkeep, tlast) of each beat; every packet but the last is malformed.
    rows = [[(0x0F, 0), (0xFF, 1)], [(0x0D, 1)], [(0xFF, 0), (0, 1)], [(0xFE, 1)], [(0, 0), (0, 1)]]
    rows.append([(0xFF, 0), (0x07, 1)])
    taken = []

    async def bench(ctx):
        if not always_ready:
            ctx.set(dut.o.ready, 1)
        for packet in rows:
            for keep, last in packet:
                ctx.set(dut.tkeep, keep)
                ctx.set(dut.tlast, last)
                ctx.set(dut.tvalid, 1)
                await ctx.tick()
                assert ctx.get(dut.o.valid)
                taken.append(ctx.get(dut.o.payload.as_value()))
        ctx.set(dut.tvalid, 0)

    run(checked(dut, dut.o), bench)
    whole = packets(taken, width)
    errors = [value >> (8 * width + 5) & 1 for value in taken if value >> (8 * width + 4) & 1]
    assert len(whole) == len(rows) and errors == [1] * (len(rows) - 1) + [0]
    assert len(whole[-1]) == 11


@pytest.mark.parametrize("dut", (AxisSink(64), AxisSource(64), AxisSource(8, always_ready=False)))
def test_converts(dut):
    converts(dut)
