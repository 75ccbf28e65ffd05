"""SpliceEnd: both entries out of the table, then two events, then the index; what waits for what; undoing."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from typing import Any

from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import EVENT, SPLICE_EVENT, EventType, Status
from hw.config import NicConfig
from hw.dma.events import EventRequest
from hw.table.records import Kind
from hw.tcp.splice_end import SpliceEnd
from hw.tcp.splice_records import SplicePair
from tests.hw.simulate import converts, run

CONFIG = NicConfig(flows=512, splices=16, width=8, pipelined_hash=False)


def pair_of(rng: random.Random, **fields: int) -> int:
    """Random bits, but for what is given."""
    layout = SplicePair.as_shape()
    value = rng.getrandbits(layout.size)
    for name, number in fields.items():
        at, width = layout[name].offset, layout[name].width
        value = value & ~((1 << width) - 1 << at) | number << at
    return value


class Bench:
    """The engine and the table around it. `log`: what happened, in order. `stuck`: what does not move."""

    def __init__(self) -> None:
        self.dut = SpliceEnd(CONFIG)
        self.pairs: dict[int, int] = {}
        self.rows = {way: (way * 3 & 15, way * 5 & 15) for way in range(32)}
        self.log: list[Any] = []
        self.stuck: set[str] = set()
        self._reading: list[int] = []
        self._deleting: list[int] = []

    async def cycle(self, ctx, ended=None):
        dut = self.dut
        ctx.set(dut.ended.valid, ended is not None)
        ctx.set(dut.ended.index, ended or 0)
        ctx.set(dut.returned.ready, 1)
        for name in ("reads", "delete", "events"):
            ctx.set(getattr(dut, name).ready, name not in self.stuck)
        read = self._reading.pop(0) if len(self._reading) == 5 else None
        ctx.set(dut.read.valid, read is not None)
        if read is not None:
            ctx.set(Value.cast(dut.read.pair), self.pairs[read >> 1])
            ctx.set(Value.cast(dut.read.rows), self.rows[read][0] | self.rows[read][1] << CONFIG.table.row_bits)
        elif self._reading:
            self._reading.append(self._reading[-1])
        ctx.set(dut.deleted.valid, bool(self._deleting))
        streams = [getattr(dut, name) for name in ("reads", "delete", "events", "returned")]
        flat = [x for one in streams for x in (one.valid, Value.cast(one.payload))]
        _, _, done, *values = await ctx.tick().sample(dut.deleted.valid & dut.deleted.ready, *flat)
        if done:
            self._deleting.pop()
        for name, valid, value in zip(("reads", "delete", "events", "returned"), values[::2], values[1::2], strict=True):
            if not valid or name in self.stuck:
                continue
            if name == "reads":
                self._reading = [value]
            elif name == "delete":
                entry = data.Const(dut.delete.p.shape(), value)
                assert entry.kind == Kind.SPLICE
                self.log.append(("delete", entry.index, tuple(int(row) for row in entry.rows)))
                self._deleting.append(1)
            elif name == "events":
                request = data.Const(EventRequest, value)
                event = SPLICE_EVENT.from_int(request.event.as_value().value)
                assert request.queue == event["queue"]
                self.log.append(("event", event))
            else:
                self.log.append(("returned", value))

    async def until_idle(self, ctx):
        for _ in range(500):
            await self.cycle(ctx)
            if not ctx.get(self.dut.busy):
                return
        raise AssertionError("still busy")

    def deletion(self, way: int) -> tuple:
        return ("delete", way, self.rows[way])


def told(index: int, raw: int) -> list[tuple]:
    """The events of a pair: all that is said of it."""
    pair = data.Const(SplicePair, raw)
    out = []
    for number, side in enumerate(pair.sides):
        out.append(
            ("event", {
                "type": (EventType.SPLICE_SIDE, EventType.SPLICE_DONE)[number], "status": pair.status if number else 0,
                "queue": pair.queue, "overflow": 0, "splice": pair.generation << 24 | index, "phase": 0,
                "reset_by": pair.reset_by if number and pair.status == Status.RESET else 0,
                **{name: getattr(side, name) for name in ("snd_end", "ack", "tsval", "packets", "octets", "fin")},
            })
        )  # fmt: skip
    return out


def test_the_event_has_the_fields_of_every_event_in_their_places():
    for name in ("type", "status", "queue", "overflow", "phase"):
        assert SPLICE_EVENT.positions[name] == EVENT.positions[name]
    assert SPLICE_EVENT.size == EVENT.size


def test_in_order():
    """Several that end at once: one after the other, each in its order; none is lost."""
    rng = random.Random(1)
    bench = Bench()
    order = list(range(16))
    rng.shuffle(order)
    statuses = (Status.OK, Status.RESET, Status.IDLE, Status.LIMIT, Status.ABORTED)
    bench.pairs = {k: pair_of(rng, status=statuses[k % 5], reset_by=k & 1) for k in order}

    async def scenario(ctx):
        assert not ctx.get(bench.dut.busy) and ctx.get(bench.dut.idle)
        for index in order:
            await bench.cycle(ctx, ended=index)
        await bench.until_idle(ctx)
        deleted = [one for one in bench.log if one[0] == "delete"]
        assert deleted == [bench.deletion(2 * index + side) for index in order for side in (0, 1)]
        rest = [one for one in bench.log if one[0] != "delete"]
        assert rest == [one for k in order for one in (*told(k, bench.pairs[k]), ("returned", k))]
        for index in order:
            first = bench.log.index(told(index, bench.pairs[index])[0])
            assert bench.log.index(bench.deletion(2 * index + 1)) < first

    run(bench.dut, scenario)


def test_latency_and_rate():
    rng = random.Random(2)
    bench = Bench()
    bench.pairs = {k: pair_of(rng, status=0) for k in range(16)}

    async def scenario(ctx):
        await bench.cycle(ctx, ended=0)
        cycles = 0
        while not any(one[0] == "event" for one in bench.log):
            await bench.cycle(ctx)
            cycles += 1
        assert cycles <= 40
        for index in range(1, 16):
            await bench.cycle(ctx, ended=index)
        while len([one for one in bench.log if one[0] == "returned"]) < 16:
            await bench.cycle(ctx)
            cycles += 1
        assert cycles <= 16 * 40

    run(bench.dut, scenario)


def test_hold_and_untold():
    """Neither lets a new event be offered; one that is on offer stays; an insertion can be undone meanwhile."""
    rng = random.Random(3)

    for name in ("hold", "untold"):
        bench = Bench()
        bench.pairs = {k: pair_of(rng, status=0) for k in range(3)}

        async def scenario(ctx, name=name, bench=bench):
            dut = bench.dut
            ctx.set(getattr(dut, name), 1)
            for index in range(2):
                await bench.cycle(ctx, ended=index)
            for _ in range(100):
                await bench.cycle(ctx)
                assert not ctx.get(dut.events.valid) and ctx.get(dut.idle) and ctx.get(dut.busy)
            assert bench.log == [bench.deletion(0), bench.deletion(1)]
            for entry in (0, 1):
                ctx.set(dut.undo.p.index, 9)
                ctx.set(dut.undo.p.entry, entry)
                ctx.set(dut.undo.p.rows, [7, 8])
                ctx.set(dut.undo.valid, 1)
                while True:
                    ready = ctx.get(dut.undo.ready)
                    await bench.cycle(ctx)
                    if ready:
                        break
                ctx.set(dut.undo.valid, 0)
            assert bench.log[2:] == [("returned", 9), ("delete", 18, (7, 8)), ("returned", 9)]
            # An event stands when `hold` comes back: it stays, and nothing follows it.
            bench.stuck = {"events"}
            ctx.set(getattr(dut, name), 0)
            while not ctx.get(dut.events.valid):
                await bench.cycle(ctx)
            ctx.set(getattr(dut, name), 1)
            for _ in range(20):
                await bench.cycle(ctx)
                assert ctx.get(dut.events.valid) and not ctx.get(dut.idle)
            bench.stuck = set()
            for _ in range(20):
                await bench.cycle(ctx)
            assert bench.log[5:] == told(0, bench.pairs[0])[:1] and ctx.get(dut.idle)
            ctx.set(getattr(dut, name), 0)
            await bench.until_idle(ctx)
            assert [one for one in bench.log[5:] if one[0] != "delete"] == [
                one for k in (0, 1) for one in (*told(k, bench.pairs[k]), ("returned", k))
            ]

        run(bench.dut, scenario)


def test_an_index_comes_back_once_whoever_gives_it():
    """Undoing at random times, in the cycle too in which a splice gives its index back."""
    rng = random.Random(4)
    bench = Bench()
    bench.pairs = {k: pair_of(rng, status=0) for k in range(15)}

    async def scenario(ctx):
        dut = bench.dut
        undone = at_once = number = 0
        asking = False
        ctx.set(dut.undo.p.index, 15)
        while number < 150 or ctx.get(dut.busy):
            # An index can end when it has come back.
            back = sum(one[0] == "returned" and one[1] != 15 for one in bench.log)
            ended = number % 15 if number < 150 and number - back < 15 and rng.random() < 0.1 else None
            number += ended is not None
            if not asking and number < 150 and rng.random() < 0.3:
                asking = True
            ctx.set(dut.undo.valid, asking)
            ready = ctx.get(dut.undo.ready)
            before = len(bench.log)
            at_once += asking and ctx.get(dut.returned.valid) and not ready
            await bench.cycle(ctx, ended=ended)
            if asking and ready:
                asking, undone = False, undone + 1
                assert ("returned", 15) in bench.log[before:]
                ctx.set(dut.undo.valid, 0)
        returned = [one[1] for one in bench.log if one[0] == "returned"]
        assert undone > 100 and returned.count(15) == undone and at_once > 5
        assert sorted(k for k in returned if k != 15) == sorted(10 * list(range(15)))

    run(bench.dut, scenario)


def test_converts():
    converts(SpliceEnd(CONFIG))
