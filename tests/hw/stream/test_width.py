"""Upsizer and Downsizer: bytes unchanged, rules of Beat kept, narrow side always busy."""

import random

import pytest

from hw.stream.checker import checked
from hw.stream.width import Downsizer, Upsizer
from tests.hw.simulate import always, beats, collect, converts, feed, packets, run, sometimes

PAIRS = [(8, 8), (8, 32), (8, 64), (32, 64), (64, 64)]


def traffic(seed, narrow, wide):
    rng = random.Random(seed)
    sizes = [1, narrow, narrow + 1, wide - 1, wide, wide + 1, 2 * wide, 3 * wide + 1, 4 * wide]
    return [rng.randbytes(size) for size in sizes + [rng.randrange(1, 4 * wide) for _ in range(6)]]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("up", (True, False))
@pytest.mark.parametrize("pauses", (None, "in", "out", "both"))
def test_bytes(pair, up, pauses):
    narrow, wide = pair
    w_in, w_out = pair if up else pair[::-1]
    dut = (Upsizer if up else Downsizer)(w_in, w_out)
    sent = traffic(narrow + wide, narrow, wide)
    values = [beat for k, packet in enumerate(sent) for beat in beats(packet, w_in, err=k % 3 == 0)]
    expected = [beat for k, packet in enumerate(sent) for beat in beats(packet, w_out, err=k % 3 == 0)]
    narrow_beats = sum(-(-len(packet) // narrow) for packet in sent)
    go_in = sometimes(3) if pauses in ("in", "both") else always
    go_out = sometimes(4) if pauses in ("out", "both") else always

    async def consumer(ctx):
        got = await collect(ctx, dut.o, len(expected), go_out)
        assert packets(got, w_out) == sent
        # `err` and `last` too: every bit of each beat except bytes past its count.
        flags = 8 * w_out
        assert [value >> flags for value in got] == [value >> flags for value in expected]

    cycles = narrow_beats + 4 if pauses is None else 8 * narrow_beats
    run(checked(dut, dut.i, dut.o), lambda ctx: feed(ctx, dut.i, values, go_in), consumer, cycles=cycles)


@pytest.mark.parametrize("dut", (Upsizer(8, 64), Downsizer(64, 8)))
def test_converts(dut):
    converts(dut)
