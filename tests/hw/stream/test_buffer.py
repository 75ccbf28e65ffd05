"""StreamBuffer and SkidBuffer: order, throughput, and which side is registered."""

import pytest
from amaranth.lib import data

from hw.stream.buffer import SkidBuffer, StreamBuffer
from tests.hw.simulate import always, collect, converts, feed, run, sometimes


@pytest.mark.parametrize("kind", (StreamBuffer, SkidBuffer))
@pytest.mark.parametrize("pauses", (None, "in", "out", "both"))
def test_order(kind, pauses):
    dut = kind(16)
    values = list(range(1, 300))
    go_in = sometimes(1, 0.5) if pauses in ("in", "both") else always
    go_out = sometimes(2, 0.5) if pauses in ("out", "both") else always

    async def consumer(ctx):
        assert await collect(ctx, dut.o, len(values), go_out) == values
        await ctx.tick()
        assert not ctx.get(dut.o.valid)

    cycles = len(values) + 5 if pauses is None else 2000
    run(dut, lambda ctx: feed(ctx, dut.i, values, go_in), consumer, cycles=cycles)


def test_skid_ready_is_registered():
    dut = SkidBuffer(8)

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        await ctx.tick()
        for ready in (0, 1, 0):
            ctx.set(dut.o.ready, ready)
            assert ctx.get(dut.i.ready) == 1  # one entry: ready whatever `o` says
        await ctx.tick()
        for ready in (0, 1):
            ctx.set(dut.o.ready, ready)
            assert ctx.get(dut.i.ready) == 0  # two entries: not ready whatever `o` says

    run(dut, bench)


@pytest.mark.parametrize("kind", (StreamBuffer, SkidBuffer))
def test_converts(kind):
    converts(kind(data.StructLayout({"a": 3, "b": 9})))
