"""Completions leave after the last answer, with the right status; errors are told."""

import random

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import RX_COMPLETION, EventType, Status
from hw.dma.completions import RxComplete
from hw.dma.events import EventRequest
from hw.dma.ring import RingEntry
from hw.dma.rx_allocate import RxRecord
from tests.hw.simulate import always, collect, converts, feed, run, seeds, sometimes

RECORD = RxRecord()


def simulate(records, answers, *, slow=always, watch=()):
    """records: (queue, index, bursts, tag, length, status). Returns entries, events, counts."""
    dut, counts = RxComplete(), {}
    entries, events = [], []
    values = [
        q | i << 6 | b << 22 | RX_COMPLETION.to_int(tag=t, length=n, status=s) << 25
        for q, i, b, t, n, s in records
    ]
    assert RECORD.size == 25 + RX_COMPLETION.bits

    async def feed_records(ctx):
        await feed(ctx, dut.records, values, slow)

    async def feed_answers(ctx):
        await ctx.tick().repeat(5)
        await feed(ctx, dut.answered, answers, slow)

    async def take(ctx):
        entries.extend(await collect(ctx, dut.entries, len(records), slow))

    async def take_events(ctx):
        shape = data.Layout.cast(EventRequest)
        ctx.set(dut.events.ready, 1)
        async for _, _, valid, value in ctx.tick().sample(dut.events.valid, Value.cast(dut.events.payload)):
            if valid:
                events.append(data.Const(shape, value))

    async def count(ctx):
        names = [name for name, _ in dut.counts.shape()]
        async for _, _, *now in ctx.tick().sample(*(dut.counts[name] for name in names)):
            for name, value in zip(names, now, strict=True):
                counts[name] = counts.get(name, 0) + value

    async def tail(ctx):
        while len(entries) < len(records):
            await ctx.tick()
        await ctx.tick().repeat(3)

    run(dut, feed_records, feed_answers, take, tail, background=[take_events, count])
    layout = data.Layout.cast(RingEntry)
    decoded = [data.Const(layout, value) for value in entries]
    return [(e.queue, e.index, RX_COMPLETION.from_int(e.entry)) for e in decoded], events, counts


@pytest.mark.parametrize("seed", seeds(4))
def test_random(seed):
    rng = random.Random(seed)
    records, answers, expected = [], [], []
    for i in range(80):
        status = rng.choice((Status.OK,) * 6 + (Status.BAD_LENGTH, Status.BAD_ADDRESS))
        bursts = 0 if status else rng.choice((1, 1, 1, 2, 5))
        length = 0 if status else rng.randrange(1, 9000)
        errors = [rng.random() < 0.1 for _ in range(bursts)]
        answers += errors
        records.append((rng.randrange(64), i, bursts, rng.getrandbits(32), length, status))
        final = Status.BAD_ADDRESS if any(errors) else status
        expected.append((final, 0 if final else length))
    slow = sometimes(seed, 0.6) if seed else always
    entries, events, counts = simulate(records, [int(a) for a in answers], slow=slow)
    for record, (status, length), (queue, index, entry) in zip(records, expected, entries, strict=True):
        assert (queue, index, entry["tag"]) == (record[0], record[1], record[3])
        assert (entry["status"], entry["length"]) == (status, length)
    told = [(e.queue, e.event.queue, e.event.tag, e.event.status, e.event.type) for e in events]
    assert told == [
        (record[0], record[0], record[3], status, EventType.RX_ERROR)
        for record, (status, _) in zip(records, expected, strict=True)
        if status
    ]
    good = [length for status, length in expected if not status]
    assert counts == {
        "rx_host_packets": len(good),
        "rx_host_bytes": sum(good),
        "rx_buffer_errors": len(records) - len(good),
    }


def test_nothing_leaves_before_the_last_answer():
    dut = RxComplete()

    async def main(ctx):
        ctx.set(dut.entries.ready, 1)
        ctx.set(dut.events.ready, 1)
        await feed(ctx, dut.answered, [])
        ctx.set(Value.cast(dut.records.payload), 3 << 22)  # three bursts
        ctx.set(dut.records.valid, 1)
        for _ in range(3):
            await ctx.tick().repeat(5)
            assert not ctx.get(dut.entries.valid) and not ctx.get(dut.records.ready)
            await feed(ctx, dut.answered, [0])
        assert ctx.get(dut.entries.valid)

    run(dut, main)


def test_converts():
    converts(RxComplete())
