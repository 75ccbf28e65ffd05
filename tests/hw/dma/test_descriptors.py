"""DescriptorFetch against a memory model: order, contents, doorbells, errors, throughput."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from functools import partial

import pytest
from amaranth import Value
from amaranth.lib import data

from hw.config import NicConfig
from hw.dma.descriptors import DescriptorFetch, Popped
from tests.hw.dma.bus import disable_queue, enable_queue, ring_doorbell, set_ring
from tests.hw.dma.memory import Memory, Traffic, serve_reads
from tests.hw.simulate import always, converts, run, seeds, sometimes

BASE = 0x12_3456_7000


def fetcher(queues: int = 4, descriptors: int = 32) -> DescriptorFetch:
    return DescriptorFetch(NicConfig(queues=queues, descriptors=descriptors), "tx")


class Ring:
    """The host's side of one ring."""

    def __init__(self, memory: Memory, queue: int, base: int, log2: int) -> None:
        self.memory, self.queue, self.base, self.log2 = memory, queue, base, log2
        self.tail = 0
        self.descriptors: list[int] = []

    def post(self, count: int, rng: random.Random) -> None:
        for _ in range(count):
            value = rng.getrandbits(128)
            self.descriptors.append(value)
            at = self.base + 16 * (self.tail % (1 << self.log2))
            self.memory.write(at, value.to_bytes(16, "little"))
            self.tail += 1

    async def start(self, ctx, bus) -> None:
        await set_ring(ctx, bus, self.queue, "tx", self.base, self.log2)
        await enable_queue(ctx, bus, self.queue)
        await ctx.tick()

    async def doorbell(self, ctx, bus) -> None:
        await ring_doorbell(ctx, bus, self.queue, "tx_tail", self.tail)


async def pop(ctx, dut, queue: int) -> None:
    ctx.set(dut.pop.p.queue, queue)
    ctx.set(dut.pop.valid, 1)
    await ctx.tick().until(dut.pop.ready)
    ctx.set(dut.pop.valid, 0)


async def popped(ctx, dut, go=always):
    while not go():
        ctx.set(dut.popped.ready, 0)
        await ctx.tick()
    ctx.set(dut.popped.ready, 1)
    (value,) = await ctx.tick().sample(Value.cast(dut.popped.payload)).until(dut.popped.valid)
    ctx.set(dut.popped.ready, 0)
    return data.Const(Popped, value)


async def until_pending(ctx, dut, queue: int) -> None:
    while not ctx.get(dut.pending) >> queue & 1:
        await ctx.tick()


@pytest.mark.parametrize("base", [BASE, BASE + 64, BASE + 192, BASE + 0xFC0])
@pytest.mark.parametrize("log2", [3, 5])
def test_ring_wraps_and_reads_only_what_was_posted(base: int, log2: int) -> None:
    dut, memory, traffic = fetcher(), Memory(), Traffic()
    rng = random.Random(base + log2)
    ring = Ring(memory, 2, base, log2)

    async def bench(ctx):
        await ring.start(ctx, dut.bus)
        taken = 0
        while taken < 80:
            # Wait for what was read before the slot is used again, as a host does.
            count = rng.choice([1, 1, 2, 3, 5, 1 << log2])
            ring.post(count, rng)
            await ring.doorbell(ctx, dut.bus)
            for _ in range(count):
                await until_pending(ctx, dut, 2)
                await pop(ctx, dut, 2)
                answer = await popped(ctx, dut)
                assert (answer.ok, answer.error, answer.queue) == (1, 0, 2)
                assert answer.index == taken
                assert answer.descriptor == ring.descriptors[taken]
                taken += 1
        assert ctx.get(dut.pending) == 0
        assert ctx.get(dut.idle) == 1
        assert ctx.get(dut.busy) == 0

    run(dut, bench, background=[partial(serve_reads, port=dut.read, memory=memory, traffic=traffic)])
    for _, address, beats in traffic.bursts:
        assert base <= address and address + 64 * beats <= base + (16 << log2)


def test_a_single_doorbell_reads_one_beat() -> None:
    dut, memory, traffic = fetcher(), Memory(), Traffic()
    ring = Ring(memory, 0, BASE, 6)

    async def bench(ctx):
        await ring.start(ctx, dut.bus)
        for i in range(6):
            ring.post(1, random.Random(i))
            await ring.doorbell(ctx, dut.bus)
            start = traffic.cycle
            await until_pending(ctx, dut, 0)
            assert traffic.cycle - start < 12 + 4 + 4
            await pop(ctx, dut, 0)
            assert (await popped(ctx, dut)).descriptor == ring.descriptors[i]

    run(dut, bench, background=[partial(serve_reads, port=dut.read, memory=memory, traffic=traffic)])
    assert [(a, n) for _, a, n in traffic.bursts] == [(BASE, 1)] * 4 + [(BASE + 64, 1)] * 2


def test_one_pop_per_cycle_at_latency_250() -> None:
    dut, memory, traffic = fetcher(1, 256), Memory(), Traffic()
    ring, count = Ring(memory, 0, BASE, 10), 1000
    cycles = []

    async def pops(ctx):
        await ring.start(ctx, dut.bus)
        ring.post(count, random.Random(1))
        await ring.doorbell(ctx, dut.bus)
        await until_pending(ctx, dut, 0)
        sent = 0
        while sent < count:
            ctx.set(dut.pop.valid, ctx.get(dut.pending))
            _, _, valid, ready = await ctx.tick().sample(dut.pop.valid, dut.pop.ready)
            sent += valid & ready
        ctx.set(dut.pop.valid, 0)

    async def answers(ctx):
        ctx.set(dut.popped.ready, 1)
        values = []
        while len(values) < count:
            _, _, valid, value = await ctx.tick().sample(
                dut.popped.valid, Value.cast(dut.popped.payload)
            )
            if valid:
                values.append(value)
                cycles.append(traffic.cycle)
        assert [data.Const(Popped, v).descriptor for v in values] == ring.descriptors

    serve = partial(serve_reads, port=dut.read, memory=memory, latency=250, traffic=traffic)
    run(dut, pops, answers, background=[serve])
    rate = count / (cycles[-1] - cycles[0] + 1)
    print(f"{rate:.2f} pops per cycle, {traffic.outstanding_max} bursts in flight")
    assert rate > 0.8
    assert cycles[99] - cycles[0] == 99


@pytest.mark.parametrize("seed", seeds(4))
def test_random_queues_doorbells_and_stalls(seed: int) -> None:
    rng = random.Random(seed)
    queues = 4
    dut, memory = fetcher(queues, 16), Memory()
    rings = [Ring(memory, q, BASE + 0x10040 * q, rng.choice([3, 4, 6])) for q in range(queues)]
    taken = [0] * queues
    total = 150
    asked: list[int] = []

    async def host(ctx):
        for ring in rings:
            await ring.start(ctx, dut.bus)
        while any(len(ring.descriptors) < total for ring in rings):
            ring = rng.choice(rings)
            room = (1 << ring.log2) - (ring.tail - taken[ring.queue])
            count = min(rng.choice([1, 2, 7, 64]), room, total - len(ring.descriptors))
            if count:
                ring.post(count, rng)
                await ring.doorbell(ctx, dut.bus)
            else:
                await ctx.tick().repeat(rng.randrange(1, 9))

    async def pops(ctx):
        left = [total] * queues
        while any(left):
            queue = rng.randrange(queues)
            if ctx.get(dut.pending) >> queue & 1:
                await pop(ctx, dut, queue)
                asked.append(queue)
                left[queue] -= 1
            else:
                await ctx.tick()

    async def answers(ctx):
        go = sometimes(seed, 0.7)
        while sum(taken) < total * queues:
            answer = await popped(ctx, dut, go)
            queue = asked.pop(0)
            assert answer.ok and answer.queue == queue
            assert answer.index == taken[queue]
            assert answer.descriptor == rings[queue].descriptors[taken[queue]]
            taken[queue] += 1

    serve = partial(
        serve_reads, port=dut.read, memory=memory, latency=20,
        request_go=sometimes(seed + 9, 0.3), response_go=sometimes(seed + 10, 0.5),
    )  # fmt: skip
    run(dut, host, pops, answers, background=[serve], cycles=30000)


def test_refused_doorbells_change_nothing() -> None:
    dut, memory, traffic = fetcher(), Memory(), Traffic()
    ring = Ring(memory, 1, BASE, 3)
    errors, reports = [], []

    async def count(ctx):
        async for _, _, error in ctx.tick().sample(dut.counts.doorbell_errors):
            errors.append(error)

    async def report(ctx):
        ctx.set(dut.doorbell_error.ready, 1)
        async for _, _, valid, queue in ctx.tick().sample(
            dut.doorbell_error.valid, dut.doorbell_error.p.queue
        ):
            if valid:
                reports.append(queue)

    async def bench(ctx):
        await ring_doorbell(ctx, dut.bus, 1, "tx_tail", 4)  # disabled: counted, nobody to tell
        await ctx.tick().repeat(20)
        assert sum(errors) == 1 and not reports
        await ring.start(ctx, dut.bus)
        await ring_doorbell(ctx, dut.bus, 1, "tx_tail", 9)  # more than the ring holds
        await ctx.tick().repeat(20)
        assert sum(errors) == 2 and reports == [1]
        assert not traffic.bursts
        ring.post(8, random.Random(3))
        await ring.doorbell(ctx, dut.bus)
        await until_pending(ctx, dut, 1)
        await ring_doorbell(ctx, dut.bus, 1, "tx_tail", 7)  # backwards
        await ring_doorbell(ctx, dut.bus, 1, "tx_tail", 9)
        await ctx.tick().repeat(20)
        assert sum(errors) == 4 and set(reports) == {1}
        for i in range(8):
            await pop(ctx, dut, 1)
            answer = await popped(ctx, dut)
            assert answer.ok and answer.descriptor == ring.descriptors[i]
        await ctx.tick().repeat(20)
        assert ctx.get(dut.pending) == 0 and ctx.get(dut.idle) == 1
        await pop(ctx, dut, 1)
        assert not (await popped(ctx, dut)).ok
        await ring_doorbell(ctx, dut.bus, 1, "tx_tail", 8)  # the same again is fine
        await ctx.tick().repeat(20)
        assert sum(errors) == 4

    run(dut, bench, background=[count, report, partial(serve_reads, port=dut.read, memory=memory, traffic=traffic)])


def test_bus_errors_mark_their_descriptors() -> None:
    dut, memory = fetcher(), Memory()
    ring = Ring(memory, 0, BASE, 4)
    memory.errors = [range(BASE + 64, BASE + 128)]

    async def bench(ctx):
        await ring.start(ctx, dut.bus)
        ring.post(16, random.Random(0))
        await ring.doorbell(ctx, dut.bus)
        for i in range(16):
            await until_pending(ctx, dut, 0)
            await pop(ctx, dut, 0)
            answer = await popped(ctx, dut)
            assert answer.error == (4 <= i < 8) and answer.ok and answer.index == i

    run(dut, bench, background=[partial(serve_reads, port=dut.read, memory=memory)])


@pytest.mark.parametrize("consumed", [0, 3])
def test_disable_and_enable_start_afresh(consumed: int) -> None:
    dut, memory = fetcher(), Memory()
    ring, other = Ring(memory, 3, BASE, 4), Ring(memory, 1, BASE + 0x4000, 4)

    async def bench(ctx):
        await other.start(ctx, dut.bus)
        other.post(8, random.Random(8))
        await other.doorbell(ctx, dut.bus)
        for attempt in range(3):
            ring.tail, ring.descriptors = 0, []
            await ring.start(ctx, dut.bus)
            ring.post(10, random.Random(attempt))
            await ring.doorbell(ctx, dut.bus)
            await until_pending(ctx, dut, 3)
            for i in range(consumed):
                await pop(ctx, dut, 3)
                answer = await popped(ctx, dut)
                assert answer.index == i and answer.descriptor == ring.descriptors[i]
            ctx.set(dut.hold, 1)
            while not ctx.get(dut.idle):
                await ctx.tick()
            await disable_queue(ctx, dut.bus, 3)
            ctx.set(dut.hold, 0)
            await ctx.tick().repeat(20)
            assert ctx.get(dut.pending) == 1 << 1
        for i in range(8):
            await pop(ctx, dut, 1)
            assert (await popped(ctx, dut)).descriptor == other.descriptors[i]

    run(dut, bench, background=[partial(serve_reads, port=dut.read, memory=memory, latency=30)])


def test_hold_starts_no_burst() -> None:
    dut, memory, traffic = fetcher(), Memory(), Traffic()
    ring = Ring(memory, 0, BASE, 4)

    async def bench(ctx):
        await ring.start(ctx, dut.bus)
        ctx.set(dut.hold, 1)
        ring.post(4, random.Random(0))
        await ring.doorbell(ctx, dut.bus)
        await ctx.tick().repeat(40)
        assert ctx.get(dut.idle) and ctx.get(dut.busy) and not traffic.bursts
        ctx.set(dut.hold, 0)
        await until_pending(ctx, dut, 0)

    run(dut, bench, background=[partial(serve_reads, port=dut.read, memory=memory, traffic=traffic)])


@pytest.mark.parametrize("queues", [1, pytest.param(64, marks=pytest.mark.slow)])
def test_converts(queues: int) -> None:
    converts(fetcher(queues, 256))


def test_refuses_bad_parameters() -> None:
    with pytest.raises(ValueError, match="ring must be"):
        DescriptorFetch(NicConfig(), "event")
    with pytest.raises(ValueError, match="depth must be"):
        DescriptorFetch(NicConfig(), "tx", depth=24)
