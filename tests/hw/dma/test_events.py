"""Events: order, phase, overflow, many sources, doorbells."""

import random
from functools import partial

import pytest
from amaranth import Value

from acceltcp.abi.messages import EVENT, EventType, Status
from hw.config import NicConfig
from hw.dma.events import DoorbellEvents, EventWriter
from tests.hw.simulate import converts, feed, run, seeds, sometimes

from .memory import Memory, Traffic, serve_writes
from .rx_helpers import count_into, enable, strobes, write

CONFIG = NicConfig(queues=4, writes=32)


def request(queue, tag, **fields):
    return queue | EVENT.to_int(queue=queue, tag=tag, type=EventType.TX_DONE, **fields) << 8


class Host:
    """Reads the event rings of a memory that was zero."""

    def __init__(self, memory, logs):
        self.memory, self.logs, self.heads = memory, logs, dict.fromkeys(logs, 0)

    def new(self, queue):
        base, log2 = self.logs[queue]
        out = []
        while True:
            head = self.heads[queue]
            at = base + 32 * (head & (1 << log2) - 1)
            entry = EVENT.unpack(self.memory.read(at, 32))
            if entry["phase"] != 1 ^ head >> log2 & 1:
                return out
            out.append(entry)
            self.heads[queue] = head + 1 & 0xFFFF
            if len(out) > 1 << log2:
                raise AssertionError("the ring never ends")


@pytest.mark.parametrize("seed", seeds(3))
def test_many_sources_many_queues(seed):
    rng = random.Random(seed)
    dut, memory, totals, posted = EventWriter(CONFIG, inputs=3), Memory(), {}, []
    rings = {q: (0x1000_0000 * (q + 1), 3 + q) for q in range(3)}
    host = Host(memory, rings)
    sent = [[(rng.randrange(4), k << 16 | i) for i in range(80)] for k in range(3)]
    seen = {q: [] for q in rings}
    left = 3

    def source(k):
        async def main(ctx):
            nonlocal left
            await ctx.tick().repeat(60)
            await feed(ctx, dut.i[k], [request(q, tag) for q, tag in sent[k]], sometimes(seed + k, 0.2))
            left -= 1

        return main

    async def reader(ctx):
        for q, (base, log2) in rings.items():
            await enable(ctx, dut.bus, q, event_base=base, event_size=log2)
        quiet = 0
        while quiet < 60:
            quiet = 0 if left or not ctx.get(dut.idle) else quiet + 1
            for q in rings:
                fresh = host.new(q)
                if fresh:
                    seen[q] += fresh
                    await write(ctx, dut.bus, q, "event_head", host.heads[q])
            await ctx.tick().repeat(rng.choice((1, 5, 40)))

    run(
        dut, *(source(k) for k in range(3)), reader,
        background=[
            partial(
                serve_writes, port=dut.write, memory=memory, latency=15,
                request_go=sometimes(seed, 0.6), response_go=sometimes(seed + 1, 0.6),
            ),
            count_into(dut, totals),
            strobes(dut.posted, posted),
        ],
    )
    total = sum(len(events) for events in seen.values())
    lost = 240 - total
    assert totals["event_overflow"] == lost and totals["doorbell_errors"] == 0
    assert lost >= sum(q == 3 for source_ in sent for q, _ in source_), "queue 3 is off"
    for q, events in seen.items():
        tags = [event["tag"] for event in events]
        for k in range(3):
            mine = [tag for tag in tags if tag >> 16 == k]
            everything = [tag for queue, tag in sent[k] if queue == q]
            it = iter(everything)
            assert all(tag in it for tag in mine), "order within a source"
        assert all(event["queue"] == q for event in events)
    # Every entry was posted, in order.
    for q in rings:
        indices = [index for _, queue, index in posted if queue == q]
        assert indices == sorted(indices) and indices[-1] == len(seen[q])


def test_overflow_is_counted_and_told():
    dut, memory, totals = EventWriter(CONFIG), Memory(), {}
    host = Host(memory, {1: (0x4000, 3)})

    async def main(ctx):
        await enable(ctx, dut.bus, 1, event_base=0x4000, event_size=3)
        await ctx.tick().repeat(3)
        await feed(ctx, dut.i[0], [request(1, i) for i in range(11)])
        while not ctx.get(dut.idle):
            await ctx.tick()
        first = host.new(1)
        assert [event["tag"] for event in first] == list(range(8))
        assert not any(event["overflow"] for event in first)
        assert totals["event_overflow"] == 3
        await write(ctx, dut.bus, 1, "event_head", 8)
        await ctx.tick().repeat(3)
        await feed(ctx, dut.i[0], [request(1, i, overflow=1) for i in (20, 21)])
        await ctx.tick()
        while not ctx.get(dut.idle):
            await ctx.tick()
        second = host.new(1)
        assert [(event["tag"], event["overflow"]) for event in second] == [(20, 1), (21, 0)]
        # More consumed than produced; then backwards.
        for index in (11, 7):
            await write(ctx, dut.bus, 1, "event_head", index)
            await ctx.tick().repeat(4)
            while not ctx.get(dut.idle):
                await ctx.tick()
        third = host.new(1)
        assert [(event["type"], event["status"]) for event in third] == [
            (EventType.QUEUE_ERROR, Status.BAD_DOORBELL)
        ] * 2
        assert totals["doorbell_errors"] == 2
        # Enabling again starts at slot 0, phase 1, without a memory of losses.
        memory.write(0x4000, bytes(256))
        host.heads[1] = 0
        await enable(ctx, dut.bus, 1)
        await ctx.tick().repeat(3)
        await feed(ctx, dut.i[0], [request(1, 99)])
        await ctx.tick()
        while not ctx.get(dut.idle):
            await ctx.tick()
        assert [(event["tag"], event["overflow"]) for event in host.new(1)] == [(99, 0)]

    run(
        dut, main,
        background=[partial(serve_writes, port=dut.write, memory=memory), count_into(dut, totals)],
    )


def test_one_event_per_cycle_in_pairs():
    dut, memory, traffic = EventWriter(NicConfig(queues=1, writes=128)), Memory(), Traffic()

    async def main(ctx):
        await enable(ctx, dut.bus, 0, event_base=0x1_0000, event_size=8)
        await ctx.tick().repeat(3)
        await feed(ctx, dut.i[0], [request(0, i) for i in range(200)])
        while not ctx.get(dut.idle):
            await ctx.tick()

    run(dut, main, background=[partial(serve_writes, port=dut.write, memory=memory, latency=100, traffic=traffic)])
    assert len(traffic.bursts) == 100
    assert traffic.bursts[-1][0] - traffic.bursts[0][0] <= 200
    for i in range(200):
        assert EVENT.unpack(memory.read(0x1_0000 + 32 * i, 32))["tag"] == i


def test_payload_width_and_conversion():
    dut = EventWriter(CONFIG, inputs=2)
    assert len(Value.cast(dut.i[0].payload)) == 8 + EVENT.bits
    converts(dut)
    converts(DoorbellEvents())


def test_bad_parameter():
    with pytest.raises(ValueError, match="inputs must be at least 1, not 0"):
        EventWriter(CONFIG, inputs=0)
