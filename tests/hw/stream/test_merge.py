"""StreamMerge: nothing lost or made up, order per input kept, turns taken."""

import pytest

from hw.stream.merge import StreamMerge
from tests.hw.simulate import always, collect, converts, feed, run, seeds, sometimes


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("pauses", [False, True])
def test_every_item_comes_out_once_and_in_order(n, seed, pauses):
    dut = StreamMerge(16, n)
    sent = [[k << 12 | number for number in range(40)] for k in range(n)]
    got = []

    def source(k):
        async def bench(ctx):
            await feed(ctx, dut.i[k], sent[k], sometimes(seed + k) if pauses else always)

        return bench

    async def sink(ctx):
        got.extend(await collect(ctx, dut.o, 40 * n, sometimes(seed + 9) if pauses else always))

    run(dut, *(source(k) for k in range(n)), sink)
    for k in range(n):
        assert [item for item in got if item >> 12 == k] == sent[k]


def test_busy_inputs_take_turns():
    dut = StreamMerge(16, 3)
    got = []

    def source(k):
        async def bench(ctx):
            await feed(ctx, dut.i[k], [k] * 20)

        return bench

    async def sink(ctx):
        got.extend(await collect(ctx, dut.o, 60))

    run(dut, *(source(k) for k in range(3)), sink, cycles=90)
    middle = got[6:48]
    assert all(set(middle[at : at + 3]) == {0, 1, 2} for at in range(len(middle) - 2))


def test_bad_parameters():
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        StreamMerge(8, 0)


def test_converts():
    converts(StreamMerge(8, 2))
