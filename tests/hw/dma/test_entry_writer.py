"""The entry writer: beats, phases, patience, and when it says that an entry is there."""

import random
from dataclasses import replace
from functools import partial

import pytest

from hw.config import NicConfig
from hw.dma.entry_writer import EntryWriter
from hw.dma.ring import ENTRY_BYTES
from tests.hw.simulate import converts, feed, run, seeds_and_sizes, sometimes

from .memory import Memory, Traffic, serve_writes
from .rx_helpers import enable, strobes

CONFIG = NicConfig(queues=4, writes=16)


def narrow(size):
    """The same with a bus of another width."""
    return replace(CONFIG, width=8, axi_bytes=size, read_beats=4096, rx_buffer_beats=None, tx_buffer_beats=None)


@pytest.mark.parametrize("log2", [3, 5])
@pytest.mark.parametrize("seed, size", seeds_and_sizes(2, (0, 8), (1, 32)))
def test_entries_land_in_their_slots(log2, seed, size):
    rng = random.Random(seed)
    dut, memory, posted = EntryWriter(narrow(size), "event"), Memory(), []
    bases = [0x1_2345_0000 + (q << 20) + 64 * q for q in range(4)]
    entries, indices = [], [rng.randrange(3) for _ in range(4)]
    for _ in range(150):
        queue = rng.randrange(2) if rng.random() < 0.3 else 0
        entries.append((queue, indices[queue], rng.getrandbits(256)))
        indices[queue] += 1
    size = 1 << log2

    async def main(ctx):
        for queue, base in enumerate(bases):
            await enable(ctx, dut.bus, queue, event_base=base, event_size=log2)
        values = [q | index << 6 | entry << 22 for q, index, entry in entries]
        await feed(ctx, dut.i, values, sometimes(seed, 0.6))
        while not ctx.get(dut.idle):
            await ctx.tick()
        assert posted

    run(
        dut, main,
        background=[
            partial(
                serve_writes, port=dut.write, memory=memory, latency=9,
                request_go=sometimes(seed + 1, 0.5), response_go=sometimes(seed + 2, 0.5),
            ),
            strobes(dut.posted, posted),
        ],
    )
    image = {}
    for queue, index, entry in entries:
        phase = 1 ^ index // size & 1
        entry = entry & (1 << 255) - 1 | phase << 255
        image[bases[queue] + ENTRY_BYTES * (index % size)] = entry.to_bytes(32, "little")
    for queue, base in enumerate(bases):
        for slot in range(-2, size + 2):
            at = base + ENTRY_BYTES * slot
            assert memory.read(at, 32) == image.get(at, bytes(32)), f"queue {queue} slot {slot}"
    for queue in range(4):
        mine = [index for _, q, index in posted if q == queue]
        assert mine == sorted(set(mine))
        if mine:
            assert mine[-1] == indices[queue]


def test_neighbours_share_a_beat_and_a_lone_entry_does_not_wait_long():
    dut, memory, traffic, posted = EntryWriter(CONFIG, "event"), Memory(), Traffic(), []

    async def main(ctx):
        await enable(ctx, dut.bus, 1, event_base=0x8000, event_size=4)
        await feed(ctx, dut.i, [1 | index << 6 | 0xAB << 22 for index in range(6)])
        while not ctx.get(dut.idle):
            await ctx.tick()
        assert len(traffic.bursts) == 3
        assert [index for _, _, index in posted] == [2, 4, 6]
        start = traffic.cycle
        await feed(ctx, dut.i, [1 | 6 << 6])
        while not ctx.get(dut.idle):
            await ctx.tick()
        assert traffic.bursts[-1][0] - start <= 7 + EntryWriter.PATIENCE

    run(
        dut, main,
        background=[
            partial(serve_writes, port=dut.write, memory=memory, traffic=traffic),
            strobes(dut.posted, posted),
        ],
    )


@pytest.mark.parametrize("size, beats", [(8, 4), (16, 2), (32, 1)])
def test_a_burst_per_entry_without_a_gap(size, beats):
    dut, memory, traffic = EntryWriter(narrow(size), "event"), Memory(), Traffic()

    async def main(ctx):
        await enable(ctx, dut.bus, 1, event_base=0x8000, event_size=4)
        await feed(ctx, dut.i, [1 | index << 6 | index << 22 for index in range(12)])
        while not ctx.get(dut.idle):
            await ctx.tick()

    run(dut, main, background=[partial(serve_writes, port=dut.write, memory=memory, traffic=traffic)])
    first = traffic.bursts[0][0]
    assert traffic.bursts == [(first + beats * k, 0x8000 + ENTRY_BYTES * k, beats) for k in range(12)]
    assert [memory.read(0x8000 + ENTRY_BYTES * k, 1)[0] for k in range(12)] == list(range(12))


@pytest.mark.parametrize("size", [64, 8])
def test_posted_only_after_the_answer(size):
    dut, memory, posted = EntryWriter(narrow(size), "rx_completion"), Memory(), []

    async def main(ctx):
        await enable(ctx, dut.bus, 0, rx_completion_base=0x8000, rx_completion_size=3)
        await feed(ctx, dut.i, [0 | 1 << 6])
        await ctx.tick().repeat(45)
        assert not posted and not ctx.get(dut.idle)
        while not ctx.get(dut.idle):
            await ctx.tick()
        assert [values for _, *values in posted] == [[0, 2]]

    run(
        dut, main,
        background=[
            partial(serve_writes, port=dut.write, memory=memory, latency=60),
            strobes(dut.posted, posted),
        ],
    )


def test_bad_ring():
    with pytest.raises(ValueError, match="ring must be 'rx_completion' or 'event', not 'tx'"):
        EntryWriter(CONFIG, "tx")


def test_converts():
    for queues in (1, 64):
        converts(EntryWriter(NicConfig(queues=queues), "event"))
    converts(EntryWriter(narrow(8), "event"))
