"""PacketArbiter: packets whole and in order per input, fair, never idle without need."""

import random

import pytest

from hw.stream.arbiter import PacketArbiter
from hw.stream.checker import checked
from tests.hw.simulate import always, beats, collect, converts, feed, packets, run, sometimes


@pytest.mark.parametrize("width", (8, 32, 64))
@pytest.mark.parametrize("n", (1, 2, 3))
@pytest.mark.parametrize("pauses", (False, True))
def test_packets(width, n, pauses):
    rng = random.Random(width + n)
    sent = [[bytes([k]) + rng.randbytes(rng.randrange(0, 4 * width)) for _ in range(8)] for k in range(n)]
    values = [[beat for packet in queue for beat in beats(packet, width)] for queue in sent]
    total = sum(map(len, values))
    dut = PacketArbiter(width, n)

    def feeder(k):
        return lambda ctx: feed(ctx, dut.i[k], values[k], sometimes(k) if pauses else always)

    async def consumer(ctx):
        got = packets(await collect(ctx, dut.o, total, sometimes(9) if pauses else always), width)
        for k in range(n):
            assert [packet for packet in got if packet[0] == k] == sent[k]

    cycles = 20 * total if pauses else total + 4
    run(checked(dut, *dut.i, dut.o), *map(feeder, range(n)), consumer, cycles=cycles)


def test_one_beat_packets_alternate_at_full_rate():
    width, each = 8, 10
    dut = PacketArbiter(width, 3)

    def feeder(k):
        return lambda ctx: feed(ctx, dut.i[k], [beats(bytes([k]), width)[0]] * each)

    async def consumer(ctx):
        got = packets(await collect(ctx, dut.o, 3 * each), width)
        order = [packet[0] for packet in got]
        assert all(order[i] != order[i + 1] for i in range(len(order) - 3))
        assert all(sorted(order[i : i + 3]) == [0, 1, 2] for i in range(0, 3 * each - 3, 3))

    run(dut, *map(feeder, range(3)), consumer, cycles=3 * each + 3)


def test_converts():
    converts(PacketArbiter(64, 3))
