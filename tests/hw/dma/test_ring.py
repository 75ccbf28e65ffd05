# amaranth: UnusedElaboratable=no
"""Ring slots against a plain model, and the entry writer's beats, phases and patience."""

import random
from functools import partial

import pytest
from hw.config import NicConfig
from hw.csr.bus import queue_word
from hw.dma.ring import ENTRY_BYTES, EntryWriter, RefusedDoorbells, RingSlots

from tests.hw.simulate import collect, feed, run, sometimes

from .memory import Memory, Traffic, serve_writes
from .rx_helpers import converts, enable, strobes, write

CONFIG = NicConfig(queues=4, writes=16)


class Model:
    """One ring's indices."""

    def __init__(self, log2):
        self.size, self.on = 1 << log2, False
        self.reset()

    def reset(self):
        self.produced = self.consumed = self.claims = 0  # claims: open ones

    @property
    def free(self):
        return self.produced - self.consumed + self.claims < self.size


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ring", ["rx_completion", "event"])
def test_slots_follow_the_model(ring, seed):
    rng = random.Random(seed)
    dut, refusals = RingSlots(CONFIG, ring), [0]
    models = [Model(log2) for log2 in (3, 4, 3, 6)]
    waiting = []  # queues of open claims, in order

    async def count(ctx):
        async for _, _, error in ctx.tick().sample(dut.counts.doorbell_errors):
            refusals[0] += error

    async def main(ctx):
        for queue, model in enumerate(models):
            await write(ctx, dut.bus, queue, f"{ring}_size", model.size.bit_length() - 1)
        ctx.set(dut.doorbell_error.ready, 1)
        bad, pending, pending_on = 0, None, None
        for step in range(2000):
            # What the bus did in the last cycle takes effect now.
            if pending_on is not None:
                models[pending_on].reset()
                models[pending_on].on = True
            claim, finish = rng.randrange(6), waiting[0] if waiting else 0
            do_claim, do_finish = rng.random() < 0.6, bool(waiting) and rng.random() < 0.6
            use = rng.random() < 0.8
            ctx.set(dut.claim.queue, claim)
            ctx.set(dut.claim.strobe, do_claim)
            ctx.set(dut.finish.queue, finish)
            ctx.set(dut.finish.strobe, do_finish)
            ctx.set(dut.finish.use, use)
            ready = ctx.get(dut.claim.ready)
            assert ready == ctx.get(dut.finish.ready) == (pending_on is None)
            on = claim < 4 and models[claim].on and pending_on != claim
            if ready:
                assert ctx.get(dut.claim.enabled) == on
            claimed = finished = None
            if ready and on:
                assert ctx.get(dut.claim.free) == models[claim].free
                claimed = claim if do_claim and models[claim].free else None
            if ready and do_finish:
                model = models[waiting[0]]
                finished = (model, use)
                assert ctx.get(dut.finish.index) == model.produced & 0xFFFF
            # The doorbell of the last cycle sees the state before this cycle's claim and finish.
            if pending is not None:
                queue, index = pending
                model = models[queue]
                consumed = index - model.consumed & 0xFFFF
                if model.on and consumed <= model.produced - model.consumed:
                    model.consumed += consumed
                else:
                    bad += 1
            if claimed is not None:
                models[claimed].claims += 1
                waiting.append(claimed)
            if finished:
                waiting.pop(0)
                finished[0].claims -= 1
                finished[0].produced += finished[1]
            # The bus.
            pending = pending_on = None
            ctx.set(dut.bus.write, 0)
            ctx.set(dut.bus.enable, 0)
            choice, queue = rng.random(), rng.randrange(4)
            ctx.set(dut.bus.queue, queue)
            if choice < 0.3:
                model = models[queue]
                index = model.consumed + rng.choice((0, 1, 2, 5, 5, 5, 9, -1)) & 0xFFFF
                ctx.set(dut.bus.word, queue_word(f"{ring}_head"))
                ctx.set(dut.bus.data, index)
                ctx.set(dut.bus.write, 1)
                pending = queue, index
            elif choice > (0.95 if step < 100 else 0.995) and queue not in waiting and not (do_claim and claim == queue):
                ctx.set(dut.bus.enable, 1)
                pending_on = queue
            await ctx.tick()
            if pending_on is not None and pending_on in waiting:
                raise AssertionError("the test enabled a queue with open claims")
        await ctx.tick().repeat(4)
        # The last doorbell may be either; all others are known.
        assert bad <= refusals[0] <= bad + 1
        assert max(model.produced for model in models) > 50

    run(dut, main, cycles=4000, background=[count])


@pytest.mark.parametrize("log2", [3, 5])
@pytest.mark.parametrize("seed", range(2))
def test_entries_land_in_their_slots(log2, seed):
    rng = random.Random(seed)
    dut, memory, posted = EntryWriter(CONFIG, "event"), Memory(), []
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


def test_posted_only_after_the_answer():
    dut, memory, posted = EntryWriter(CONFIG, "rx_completion"), Memory(), []

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


def test_refused_doorbells_are_reported_once_each():
    dut = RefusedDoorbells(8)

    async def main(ctx):
        for queue in (3, 5, 5, 0):
            ctx.set(dut.queue, queue)
            ctx.set(dut.strobe, 1)
            await ctx.tick()
        ctx.set(dut.strobe, 0)
        got = await collect(ctx, dut.o, 3, sometimes(1, 0.3))
        assert sorted(set(got)) == [0, 3, 5]
        await ctx.tick().repeat(20)
        assert not ctx.get(dut.o.valid) or ctx.get(dut.o.payload.queue) == 5

    run(dut, main)


def test_bad_ring():
    for component in (RingSlots, EntryWriter):
        with pytest.raises(ValueError, match="ring must be 'rx_completion' or 'event', not 'tx'"):
            component(CONFIG, "tx")


def test_converts():
    for queues in (1, 64):
        converts(RingSlots(NicConfig(queues=queues), "rx_completion"))
        converts(EntryWriter(NicConfig(queues=queues), "event"))
