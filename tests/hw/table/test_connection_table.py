# amaranth: UnusedElaboratable=no
"""The connection table: look-ups in every cycle while entries come, move and go, against a dictionary."""

import random

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import Status
from hw.config import TableSizes
from hw.table.connection_table import ConnectionTable
from hw.table.records import Kind, Lookup
from tests.hw.simulate import run


class Bench:
    """A table; what is surely in it, what surely is not, and a look-up in every cycle."""

    def __init__(self, sizes, rng):
        self.sizes, self.rng = sizes, rng
        self.dut = ConnectionTable(sizes)
        self.present = {}  # digest -> (kind, index), from the answer to the insertion to the deletion's order
        self.unsure = set()
        self.known = []
        self.wrong = []
        self.looked_up = 0
        self.over = False

    def digest(self):
        return self.rng.getrandbits(self.sizes.digest_bits)

    def rows(self, digest):
        bits = self.sizes.row_bits
        return [digest & (1 << bits) - 1, digest >> bits & (1 << bits) - 1]

    async def ready(self, ctx):
        while not ctx.get(self.dut.ready):
            await ctx.tick()

    async def insert(self, ctx, digest, index, kind=Kind.TEARDOWN):
        port = self.dut.port
        self.known.append(digest)
        if digest not in self.present:
            self.unsure.add(digest)
        ctx.set(port.insert.p, {"digest": digest, "kind": kind, "index": index})
        ctx.set(port.insert.valid, 1)
        await ctx.tick().until(port.insert.ready)
        ctx.set(port.insert.valid, 0)
        ctx.set(port.inserted.ready, 1)
        (status,) = await ctx.tick().sample(port.inserted.p.status).until(port.inserted.valid)
        ctx.set(port.inserted.ready, 0)
        if status == Status.OK:
            assert digest not in self.present
            self.present[digest] = (kind.value, index)
        self.unsure.discard(digest)
        return status

    async def delete(self, ctx, digest, index=None, kind=Kind.TEARDOWN):
        port = self.dut.port
        if index is None:
            _, index = self.present.pop(digest)
            self.unsure.add(digest)
        ctx.set(port.delete.p, {"rows": self.rows(digest), "kind": kind, "index": index})
        ctx.set(port.delete.valid, 1)
        await ctx.tick().until(port.delete.ready)
        ctx.set(port.delete.valid, 0)
        ctx.set(port.deleted.ready, 1)
        (told,) = await ctx.tick().sample(port.deleted.p.index).until(port.deleted.valid)
        ctx.set(port.deleted.ready, 0)
        assert told == index
        self.unsure.discard(digest)

    async def look_up(self, ctx):
        """A look-up in every cycle; what may come back is decided when it goes in."""
        layout = Lookup(self.sizes)
        out = Value.cast(self.dut.o)
        expected = []
        while not self.over:
            digest = self.rng.choice(self.known) if self.known and self.rng.random() < 0.9 else self.digest()
            ctx.set(self.dut.i_digest, digest)
            ctx.set(self.dut.i_valid, 1)
            sure = ctx.get(self.dut.ready) and digest not in self.unsure
            expected.append((digest, self.present.get(digest), sure))
            _, _, valid, value = await ctx.tick().sample(self.dut.o_valid, out)
            if len(expected) > self.dut.latency:
                digest, entry, sure = expected.pop(0)
                got = data.Const(layout, value)
                found = (got.kind.value, got.index) if got.hit else None
                self.looked_up += 1
                # Sure at the beginning; if it was being changed meanwhile, the look-up is as of then or later.
                if not valid or (sure and found != entry and digest not in self.changed):
                    self.wrong.append((digest, entry, found))

    changed = frozenset()

    def run(self, scenario, cycles=200_000):
        async def bench(ctx):
            await self.ready(ctx)
            await scenario(ctx)
            await ctx.tick().repeat(3 * self.dut.latency)
            self.over = True

        run(self.dut, bench, self.look_up, cycles=cycles)
        assert not self.wrong, self.wrong[:5]
        assert self.looked_up > 50


@pytest.mark.parametrize("row_bits, ways, stash, seed", ((1, 2, 4, 1), (2, 3, 4, 2), (3, 2, 5, 3), (2, 9, 4, 4)))
def test_no_entry_is_ever_hidden(row_bits, ways, stash, seed):
    """Filled up to refusal and churned at that load, with moves all the time."""
    rng = random.Random(seed)
    sizes = TableSizes(index_bits=row_bits + 4, stash=stash, ways=ways)
    bench = Bench(sizes, rng)
    refused = []

    async def scenario(ctx):
        for _ in range(260):
            full = len(bench.present) >= min(sizes.slots, 1 << sizes.index_bits)
            if bench.present and (full or rng.random() < 0.35):
                digest = rng.choice(list(bench.present))
                if rng.random() < 0.2:
                    assert await bench.insert(ctx, digest, rng.getrandbits(sizes.index_bits)) == Status.DUPLICATE
                else:
                    await bench.delete(ctx, digest)
            else:
                free = set(range(1 << sizes.index_bits)) - {index for _, index in bench.present.values()}
                status = await bench.insert(ctx, bench.digest(), rng.choice(sorted(free)), rng.choice(list(Kind)))
                if status != Status.OK:
                    assert status == Status.TABLE_FULL
                    refused.append(len(bench.present))
            assert ctx.get(bench.dut.held) == len(bench.present)
            await ctx.tick().repeat(rng.choice((1, 1, 2, 30)))

    # Kinds differ in `delete`: give it the entry's own.
    plain = bench.delete

    async def delete(ctx, digest, index=None, kind=None):
        kind = Kind(bench.present[digest][0]) if index is None else kind
        await plain(ctx, digest, index, kind)

    bench.delete = delete
    bench.run(scenario)
    print(f"seed {seed}: refused at {refused[:3]} of {sizes.slots} slots, {bench.looked_up} look-ups")


def test_load_factor():
    """Without deletions the first refusal comes above 90 % of the slots."""
    rng = random.Random(5)
    for ways in (4, 9):
        sizes = TableSizes(index_bits=10 if ways == 4 else 9, stash=8, ways=ways)
        bench = Bench(sizes, rng)

        async def scenario(ctx, bench=bench, sizes=sizes):
            while await bench.insert(ctx, bench.digest(), len(bench.present) & (1 << sizes.index_bits) - 1) == Status.OK:
                pass

        bench.run(scenario)
        assert len(bench.present) >= 0.9 * sizes.slots, (ways, len(bench.present), sizes.slots)


def test_deleting_what_is_not_there_does_nothing():
    bench = Bench(TableSizes(index_bits=6, stash=4, ways=2), random.Random(6))

    async def scenario(ctx):
        digest = bench.digest()
        assert await bench.insert(ctx, digest, 5) == Status.OK
        await bench.delete(ctx, digest, index=6)
        await bench.delete(ctx, digest, index=5, kind=Kind.SPLICE)
        await bench.delete(ctx, digest ^ 1 | digest & ~1 ^ (1 << bench.sizes.row_bits), index=5)
        assert ctx.get(bench.dut.held) == 1
        await ctx.tick().repeat(20)
        await bench.delete(ctx, digest)
        assert ctx.get(bench.dut.held) == 0

    bench.run(scenario)


def test_quiet_when_nothing_is_to_do():
    bench = Bench(TableSizes(index_bits=6, stash=4, ways=2), random.Random(7))

    async def scenario(ctx):
        await ctx.tick().repeat(3)
        assert not ctx.get(bench.dut.busy)
        for index in range(12):
            await bench.insert(ctx, bench.digest(), index)
        for _ in range(4000):
            if not ctx.get(bench.dut.busy):
                break
            await ctx.tick()
        await ctx.tick().repeat(50)
        assert not ctx.get(bench.dut.busy)

    bench.run(scenario)


def test_look_ups_before_clearing_find_nothing():
    """What an earlier life left in the memories is not found after a reset."""
    dut = ConnectionTable(TableSizes(index_bits=8, stash=4, ways=2))

    async def bench(ctx):
        ctx.set(dut.i_valid, 1)
        cycles = 0
        while not ctx.get(dut.ready):
            await ctx.tick()
            cycles += 1
            assert not ctx.get(dut.o.hit)
        assert cycles == 1 << dut.sizes.row_bits

    run(dut, bench)
