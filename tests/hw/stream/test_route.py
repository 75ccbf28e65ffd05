"""PacketRoute: whole packets reach the output that was chosen."""

import random

import pytest

from hw.stream.route import PacketRoute
from tests.hw.simulate import beats, collect, feed, packets, run, seeds, sometimes


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("n", [1, 2])
def test_packets_reach_their_output(seed, n):
    rng = random.Random(seed)
    width = 8
    sent = [(rng.randrange(n), rng.randbytes(rng.randrange(1, 40))) for _ in range(20)]
    dut = PacketRoute(width, n)
    got = {k: [] for k in range(n)}

    async def source(ctx):
        for to, packet in sent:
            ctx.set(dut.to, to)
            await feed(ctx, dut.i, beats(packet, width), sometimes(seed, 0.7))

    def sink(k):
        async def bench(ctx):
            count = sum(len(beats(packet, width)) for to, packet in sent if to == k)
            got[k] = packets(await collect(ctx, dut.o[k], count, sometimes(seed + k + 1)), width)

        return bench

    run(dut, source, *(sink(k) for k in range(n)))
    assert got == {k: [packet for to, packet in sent if to == k] for k in range(n)}


def test_bad_parameters():
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        PacketRoute(8, 0)
