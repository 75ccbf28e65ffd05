"""PacketFork: every packet goes where its order says, whole, in order, and nowhere else."""

import random

import pytest

from hw.stream.fork import PacketFork
from tests.hw.simulate import always, beats, collect, feed, packets, run, seeds, sometimes

HOST, FORWARD = 1, 2


def simulate(sent, width, pauses):
    """Both outputs, and what the buffer was told."""
    dut = PacketFork(width)
    got, told = {}, []
    kept = [packet for to, packet in sent if to]

    async def order(ctx):
        await feed(ctx, dut.take, [to for to, _ in sent], pauses(0))

    async def buffer(ctx):
        told.extend(await collect(ctx, dut.buffer_take, len(sent), pauses(1)))

    async def source(ctx):
        await feed(ctx, dut.packets, [beat for packet in kept for beat in beats(packet, width)], pauses(2))

    def sink(name, mine, go):
        async def bench(ctx):
            count = sum(len(beats(packet, width)) for to, packet in sent if to & mine)
            got[name] = packets(await collect(ctx, getattr(dut, name), count, go), width)

        return bench

    run(dut, order, buffer, source, sink("host", HOST, pauses(3)), sink("forward", FORWARD, pauses(4)))
    return got, told


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("width", (8, 64))
def test_packets_reach_their_outputs(width, seed):
    rng = random.Random(seed)
    sent = [(rng.randrange(4), rng.randbytes(rng.randrange(1, 4 * width))) for _ in range(40)]
    pauses = (lambda k: sometimes(seed + k, 0.6)) if seed else (lambda k: always)
    got, told = simulate(sent, width, pauses)
    assert told == [int(to != 0) for to, _ in sent]
    assert got["host"] == [packet for to, packet in sent if to & HOST]
    assert got["forward"] == [packet for to, packet in sent if to & FORWARD]


def test_one_packet_a_cycle():
    """Copies too, when neither output pauses."""
    dut = PacketFork(64)
    cycles = []

    async def order(ctx):
        await feed(ctx, dut.take, [1 + k % 3 for k in range(30)], always)

    async def buffer(ctx):
        await collect(ctx, dut.buffer_take, 30, always)

    async def source(ctx):
        await feed(ctx, dut.packets, [beat for k in range(30) for beat in beats(bytes([k]) * 60, 64)], always)

    async def watch(ctx):
        ctx.set(dut.host.ready, 1)
        ctx.set(dut.forward.ready, 1)
        async for number, (_, _, passed) in _numbered(ctx.tick().sample(dut.packets.valid & dut.packets.ready)):
            if passed:
                cycles.append(number)
            if len(cycles) == 30:
                return

    run(dut, order, buffer, source, watch)
    assert cycles[-1] - cycles[0] == 29


async def _numbered(samples):
    number = 0
    async for sample in samples:
        yield number, sample
        number += 1
