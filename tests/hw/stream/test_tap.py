"""PacketTap: passes packets through and counts them."""

import random

import pytest

from hw.stream.tap import PacketTap
from tests.hw.simulate import beats, collect, feed, packets, run, seeds, sometimes


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("seed", seeds(2))
def test_counts_what_passes(width, seed):
    rng = random.Random(seed)
    sent = [rng.randbytes(rng.randrange(1, 4 * width)) for _ in range(20)]
    flat = [beat for packet in sent for beat in beats(packet, width)]
    dut = PacketTap(width, packets="tx_packets", octets="tx_bytes")
    got, counted = [], [0, 0]

    async def source(ctx):
        await feed(ctx, dut.i, flat, sometimes(seed, 0.8))

    async def sink(ctx):
        got.extend(packets(await collect(ctx, dut.o, len(flat), sometimes(seed + 1)), width))

    async def watch(ctx):
        while counted[0] < len(sent):
            await ctx.tick()
            counted[0] += ctx.get(dut.counts.tx_packets)
            counted[1] += ctx.get(dut.counts.tx_bytes)
        for _ in range(4):
            await ctx.tick()
            assert not ctx.get(dut.counts.tx_packets)

    run(dut, source, sink, watch)
    assert got == sent
    assert counted == [len(sent), sum(map(len, sent))]
