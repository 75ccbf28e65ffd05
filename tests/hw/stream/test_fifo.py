# amaranth: UnusedElaboratable=no
"""StreamFifo: order, capacity, throughput and latency of both flavours."""

import pytest
from amaranth.lib import data

from hw.stream.fifo import StreamFifo
from tests.hw.simulate import always, collect, converts, feed, run, sometimes

KINDS = ("lutram", "block")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", (2, 3, 8))
@pytest.mark.parametrize("pauses", (None, "in", "out", "both"))
def test_order(kind, depth, pauses):
    dut = StreamFifo(16, depth, kind=kind)
    values = list(range(1, 200))
    go_in = sometimes(depth, 0.4) if pauses in ("in", "both") else always
    go_out = sometimes(depth + 1, 0.4) if pauses in ("out", "both") else always

    async def consumer(ctx):
        assert await collect(ctx, dut.o, len(values), go_out) == values
        await ctx.tick()
        assert not ctx.get(dut.o.valid) and ctx.get(dut.level) == 0

    run(dut, lambda ctx: feed(ctx, dut.i, values, go_in), consumer, cycles=2000)


@pytest.mark.parametrize("kind", KINDS)
def test_full_throughput_and_latency(kind):
    dut = StreamFifo(8, 4, kind=kind)
    taken = []

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        for cycle in range(40):
            ctx.set(dut.i.valid, 1)
            ctx.set(dut.i.payload, cycle)
            assert ctx.get(dut.i.ready)
            if ctx.get(dut.o.valid):
                taken.append((cycle, ctx.get(dut.o.payload)))
            await ctx.tick()

    run(dut, bench)
    assert taken == [(cycle, cycle - dut.latency) for cycle in range(dut.latency, 40)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", (2, 5, 8))
def test_capacity(kind, depth):
    dut = StreamFifo(8, depth, kind=kind)

    async def bench(ctx):
        accepted = 0
        for _ in range(depth + 10):
            ctx.set(dut.i.valid, 1)
            ctx.set(dut.i.payload, accepted)
            accepted += ctx.get(dut.i.ready)
            await ctx.tick()
            assert ctx.get(dut.level) == accepted
        assert accepted == dut.capacity
        ctx.set(dut.i.valid, 0)
        assert await collect(ctx, dut.o, accepted) == list(range(accepted))

    run(dut, bench)


@pytest.mark.parametrize("kind", KINDS)
def test_struct_payload_converts(kind):
    shape = data.StructLayout({"a": 3, "b": 9})
    converts(StreamFifo(shape, 8, kind=kind))


def test_bad_parameters():
    with pytest.raises(ValueError, match="depth must be"):
        StreamFifo(8, 1)
    with pytest.raises(ValueError, match="kind must be"):
        StreamFifo(8, 4, kind="ram")
