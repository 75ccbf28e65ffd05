"""Ring slots against a plain model; refused doorbells."""

import random

import pytest

from hw.config import NicConfig
from hw.csr.bus import queue_word
from hw.dma.ring import RefusedDoorbells, RingSlots
from tests.hw.simulate import collect, converts, run, seeds, sometimes

from .rx_helpers import write

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


@pytest.mark.parametrize("seed", seeds(3))
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
    with pytest.raises(ValueError, match="ring must be 'rx_completion' or 'event', not 'tx'"):
        RingSlots(CONFIG, "tx")


def test_converts():
    for queues in (1, 64):
        converts(RingSlots(NicConfig(queues=queues), "rx_completion"))
