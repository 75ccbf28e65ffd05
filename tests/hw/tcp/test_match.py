# amaranth: UnusedElaboratable=no
"""MatchMemory: rows of every size of table against a comparison of the keys."""

import random

import pytest

from hw.tcp.match import MatchMemory
from tests.hw.simulate import run

WIDTH = 13  # two whole chunks and a part of one
ALL = (1 << WIDTH) - 1


async def write_group(ctx, dut, group, keys, row_values):
    """Write the rows of a group as its user does; `keys` holds (key, ignored bits)."""
    first = group * dut.group_size
    for row in row_values:
        ctx.set(dut.shift, 1)
        for index in range(first, first + dut.group_size):
            key, ignore = keys[index % len(keys)]
            ctx.set(dut.entry, key)
            ctx.set(dut.ignore, ignore)
            ctx.set(dut.row, row)
            await ctx.tick()
        ctx.set(dut.shift, 0)
        ctx.set(dut.write, 1 << group)
        await ctx.tick()
        ctx.set(dut.write, 0)


@pytest.mark.parametrize("entries", (1, 2, 8, 16, 32))
def test_match(entries):
    """Every entry is found with and without ignored bits; a group's rewriting disturbs nobody."""
    dut = MatchMemory(entries, WIDTH)
    rng = random.Random(entries)
    keys = [(rng.getrandbits(WIDTH), 0 if rng.random() < 0.7 else 0x3F) for _ in range(entries)]

    def matches(key, used):
        same = (i for i, (other, ignore) in enumerate(keys) if not (key ^ other) & ~ignore & ALL)
        return sum(1 << i for i in same) & used

    def some_key():
        key = rng.choice(keys)[0]
        return key ^ rng.choice((0, 0, 1 << rng.randrange(WIDTH), rng.getrandbits(WIDTH)))

    async def check(ctx, key, used):
        ctx.set(dut.key, key)
        ctx.set(dut.used, used)
        await ctx.tick()
        assert ctx.get(dut.match) == matches(key, used)

    async def bench(ctx):
        ctx.set(dut.enable, 1)
        for group in range(dut.groups):
            await write_group(ctx, dut, group, keys, range(dut.rows))
        for _ in range(200):
            await check(ctx, some_key(), rng.getrandbits(entries))
        # A new key for the first entry: the others match all the while.
        used = (1 << entries) - 2
        keys[0] = (rng.getrandbits(WIDTH), 0)
        for row in range(dut.rows):
            await write_group(ctx, dut, 0, keys, (row,))
            await check(ctx, some_key(), used)
        await check(ctx, keys[0][0], used | 1)
        # Held, it keeps what it has.
        ctx.set(dut.enable, 0)
        ctx.set(dut.key, keys[0][0] ^ 1)
        await ctx.tick()
        assert ctx.get(dut.match) == matches(keys[0][0], used | 1)

    run(dut, bench, cycles=20_000)


@pytest.mark.parametrize(
    "entries, groups, size", ((1, 1, 1), (8, 1, 8), (16, 2, 8), (64, 5, 13), (256, 19, 14))
)
def test_groups(entries, groups, size):
    dut = MatchMemory(entries, 145)
    assert (dut.groups, dut.group_size) == (groups, size) and groups * size >= entries


def test_parameters():
    with pytest.raises(ValueError, match="entries must be"):
        MatchMemory(0, 8)
    with pytest.raises(ValueError, match="width must be"):
        MatchMemory(8, 0)
