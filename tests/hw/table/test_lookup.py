# amaranth: UnusedElaboratable=no
"""ConnectionLookup: keys in, entries out, in order, with either hash; who waits, and for how long."""

import random

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.flow import flow_digest
from acceltcp.abi.messages import Status
from hw.config import NicConfig
from hw.table.lookup import RESULTS, ConnectionLookup
from hw.table.records import ConnectionKey, Kind, Lookup
from tests.hw.simulate import always, collect, converts, feed, run, sometimes

SECRET = bytes(range(16))
KINDS = (True, False)


def key_of(rng):
    ipv6 = rng.getrandbits(1)
    remote, local = (rng.getrandbits(128) if ipv6 else 0xFFFF << 32 | rng.getrandbits(32) for _ in range(2))
    return (remote, local, rng.getrandbits(16), rng.getrandbits(16), ipv6)


def fields(key):
    return dict(zip(("remote", "local", "remote_port", "local_port", "ipv6"), key, strict=True))


def raw(key):
    return ConnectionKey.const(fields(key)).as_value().value


class Bench:
    """A look-up with a table that holds `held`: key -> (kind, index)."""

    def __init__(self, pipelined):
        self.config = NicConfig(flows=512, pipelined_hash=pipelined)
        self.dut = ConnectionLookup(self.config)
        self.held = {}

    def digest(self, key):
        values = fields(key)
        whole = flow_digest(SECRET, **{**values, "ipv6": bool(values["ipv6"])})
        return whole & (1 << self.config.table.digest_bits) - 1

    async def start(self, ctx):
        ctx.set(self.dut.key, int.from_bytes(SECRET, "little"))
        await ctx.tick().until(self.dut.ready)

    async def insert(self, ctx, key, index, kind=Kind.TEARDOWN):
        port = self.dut.port
        entry = port.insert.p.shape().const({"digest": self.digest(key), "kind": kind, "index": index})
        await feed(ctx, port.insert, [entry.as_value().value])
        assert await collect(ctx, port.inserted, 1) == [Status.OK]
        self.held[key] = (kind, index)

    async def delete(self, ctx, key):
        port, bits = self.dut.port, self.config.table.row_bits
        digest = self.digest(key)
        kind, index = self.held.pop(key)
        rows = [digest & (1 << bits) - 1, digest >> bits & (1 << bits) - 1]
        entry = port.delete.p.shape().const({"rows": rows, "kind": kind, "index": index})
        await feed(ctx, port.delete, [entry.as_value().value])
        assert await collect(ctx, port.deleted, 1) == [index]

    def results(self, values):
        """What the stream said, as entries of `held`."""
        got = [data.Const(Lookup(self.config.table), value) for value in values]
        return [(one.kind, one.index) if one.hit else None for one in got]

    def run(self, *scenarios, cycles=5000):
        run(self.dut, *scenarios, cycles=cycles)


@pytest.mark.parametrize("pipelined", KINDS)
@pytest.mark.parametrize("pauses", (False, True))
def test_answers_in_order(pipelined, pauses):
    """Hits and misses mixed, every single field of a key decides; `lookup` may be late within `RESULTS`."""
    rng = random.Random(1 + pauses)
    bench = Bench(pipelined)
    dut = bench.dut
    known = [key_of(rng) for _ in range(6)]
    strangers = [tuple(v ^ (k == field) for k, v in enumerate(known[0])) for field in range(5)]
    asked = [rng.choice([*known, *strangers]) for _ in range(30)] + [*known, *strangers]
    go_in, go_out = (sometimes(3, 0.4), sometimes(4, 0.8)) if pauses else (always, always)

    async def scenario(ctx):
        await bench.start(ctx)
        for number, key in enumerate(known):
            await bench.insert(ctx, key, 80 * number + 3, rng.choice(list(Kind)))
        assert ctx.get(dut.held) == len(known)
        await feed(ctx, dut.connection, [raw(key) for key in asked], go_in)

    async def take(ctx):
        got = bench.results(await collect(ctx, dut.lookup, len(asked), go_out))
        assert got == [bench.held.get(key) for key in asked]
        await ctx.tick().repeat(40)
        assert not ctx.get(dut.busy) and not ctx.get(dut.lookup.valid)

    bench.run(scenario, take)


def test_latency_and_one_a_cycle():
    """A packet pipeline of `latency` stages beside it meets every result, in every cycle, whatever is changed."""
    rng = random.Random(3)
    bench = Bench(True)
    dut, layout = bench.dut, Lookup(bench.config.table)
    known = [key_of(rng) for _ in range(8)]
    changing = key_of(rng)
    started = []
    expected = {}
    seen = {}

    async def changes(ctx):
        await bench.start(ctx)
        for number, key in enumerate(known):
            await bench.insert(ctx, key, number)
        started.append(True)
        for _ in range(5):
            await bench.insert(ctx, changing, 400)
            await bench.delete(ctx, changing)

    async def look_up(ctx):
        while not started:
            await ctx.tick()
        ctx.set(dut.lookup.ready, 1)
        for cycle in range(200):
            valid = rng.random() < 0.9
            key = rng.choice(known) if rng.random() < 0.5 else key_of(rng)
            assert ctx.get(dut.connection.ready)
            ctx.set(Value.cast(dut.connection.payload), raw(key))
            ctx.set(dut.connection.valid, valid)
            if valid:
                expected[cycle + dut.latency] = (0, known.index(key)) if key in known else None
            if ctx.get(dut.lookup.valid):
                one = data.Const(layout, ctx.get(Value.cast(dut.lookup.payload)))
                seen[cycle] = (one.kind.value, one.index) if one.hit else None
            await ctx.tick()

    bench.run(changes, look_up)
    assert seen == {cycle: entry for cycle, entry in expected.items() if cycle < 200}


def test_results_wait_for_packets():
    """As many as `RESULTS` may be asked for before the first is taken."""
    rng = random.Random(4)
    bench = Bench(True)
    dut = bench.dut
    keys = [key_of(rng) for _ in range(RESULTS)]

    async def scenario(ctx):
        await bench.start(ctx)
        for number in range(0, RESULTS, 3):
            await bench.insert(ctx, keys[number], number)
        await feed(ctx, dut.connection, [raw(key) for key in keys])
        await ctx.tick().repeat(2 * dut.latency)
        assert ctx.get(dut.busy)
        got = bench.results(await collect(ctx, dut.lookup, len(keys)))
        assert got == [(Kind.TEARDOWN, k) if k % 3 == 0 else None for k in range(RESULTS)]
        await ctx.tick()
        assert not ctx.get(dut.busy)

    bench.run(scenario)


def test_small_hash_needs_none_while_the_table_is_empty():
    """Then a packet waits four cycles at most and one passes per cycle; with an entry, about 13 cycles each."""
    rng = random.Random(5)
    bench = Bench(False)
    dut = bench.dut
    key = key_of(rng)

    async def time_of(ctx, keys):
        """Cycles from the first request to the last result; their results."""
        start = []
        results = []
        waiting = list(keys)
        ctx.set(dut.lookup.ready, 1)
        for cycle in range(2000):
            ctx.set(dut.connection.valid, bool(waiting))
            ctx.set(Value.cast(dut.connection.payload), raw(waiting[0]) if waiting else 0)
            if waiting and ctx.get(dut.connection.ready):
                start.append(cycle)
                waiting.pop(0)
            if ctx.get(dut.lookup.valid):
                results.append(ctx.get(Value.cast(dut.lookup.payload)))
                if len(results) == len(keys):
                    await ctx.tick()
                    ctx.set(dut.lookup.ready, 0)
                    return cycle - start[0], bench.results(results)
            await ctx.tick()
        raise AssertionError("results are missing")

    async def scenario(ctx):
        await bench.start(ctx)
        cycles, results = await time_of(ctx, [key] * 20)
        assert results == [None] * 20 and cycles <= 4 + 19
        await bench.insert(ctx, key, 77)
        cycles, results = await time_of(ctx, [key])
        assert results == [(Kind.TEARDOWN, 77)] and cycles <= 22
        cycles, results = await time_of(ctx, [key, key_of(rng)] * 5)
        assert results == [(Kind.TEARDOWN, 77), None] * 5 and cycles <= 14 * 10 + 10
        await bench.delete(ctx, key)
        cycles, results = await time_of(ctx, [key] * 3)
        assert results == [None] * 3 and cycles <= 4 + 2

    bench.run(scenario)


def test_small_hash_keeps_order_when_the_table_fills_and_empties():
    """Requests that need no hash must not overtake those that do."""
    rng = random.Random(6)
    bench = Bench(False)
    dut = bench.dut
    key = key_of(rng)
    over = []
    asked, results = [], []

    async def changes(ctx):
        await bench.start(ctx)
        for _ in range(12):
            await bench.insert(ctx, key, 9)
            await ctx.tick().repeat(rng.randrange(40))
            await bench.delete(ctx, key)
            await ctx.tick().repeat(rng.randrange(20))
        over.append(True)

    async def ask(ctx):
        """Even requests name the entry, odd ones nobody."""
        stranger = key_of(rng)
        while not over:
            await feed(ctx, dut.connection, [raw(stranger if len(asked) % 2 else key)])
            asked.append(None)

    async def take(ctx):
        while not over or len(results) < len(asked):
            results.extend(await collect(ctx, dut.lookup, 1))

    bench.run(changes, ask, take, cycles=20_000)
    got = bench.results(results)
    assert len(got) == len(asked) > 30
    assert set(got[1::2]) == {None}, "an answer is at another's place"
    assert set(got[::2]) == {None, (Kind.TEARDOWN, 9)}


@pytest.mark.parametrize("pipelined", KINDS)
def test_misses_until_the_table_is_cleared(pipelined):
    bench = Bench(pipelined)
    dut = bench.dut
    key = raw(key_of(random.Random(7)))

    async def scenario(ctx):
        assert not ctx.get(dut.ready)
        await feed(ctx, dut.connection, [key] * 5)
        assert bench.results(await collect(ctx, dut.lookup, 5)) == [None] * 5

    bench.run(scenario)


@pytest.mark.parametrize("pipelined", KINDS)
def test_converts(pipelined):
    converts(ConnectionLookup(NicConfig(flows=512, pipelined_hash=pipelined)))
