"""TxPad: at least 60 bytes, padding and stale bytes zero, longer packets unchanged."""

import random

import pytest
from amaranth import Value

from hw.stream.beat import BeatLayout
from hw.stream.checker import checked
from hw.stream.pad import TxPad
from tests.hw.simulate import always, beats, collect, converts, feed, run, sometimes


@pytest.mark.parametrize("width", (8, 32, 64))
@pytest.mark.parametrize("pauses", (False, True))
def test_padding(width, pauses):
    rng = random.Random(width)
    sizes = [1, 7, 8, 9, 31, 32, 33, 42, 54, 55, 56, 57, 59, 60, 61, 63, 64, 65, 4 * width] + [14, 60]
    sent = [rng.randbytes(size) for size in sizes]
    values = []
    for k, packet in enumerate(sent):
        for value in beats(packet, width, err=k % 4 == 0):
            # Garbage past the last byte must not reach the wire.
            count = value >> 8 * width & (2 * width - 1)
            values.append(value | rng.getrandbits(8 * width) >> 8 * count << 8 * count)
    padded = [packet.ljust(60, b"\0") for packet in sent]
    expected = [beat for k, packet in enumerate(padded) for beat in beats(packet, width, err=k % 4 == 0)]
    dut = TxPad(width)
    go = (sometimes(1), sometimes(2)) if pauses else (always, always)

    async def consumer(ctx):
        assert await collect(ctx, dut.o, len(expected), go[1]) == expected

    cycles = 10 * len(expected) if pauses else len(expected) + 4
    run(checked(dut, dut.i, dut.o), lambda ctx: feed(ctx, dut.i, values, go[0]), consumer, cycles=cycles)


def test_reset_state_and_convert():
    dut = TxPad(64)
    assert len(Value.cast(dut.o.payload)) == BeatLayout(64).size
    converts(dut)
