# amaranth: UnusedElaboratable=no
"""StateMemory: each operation sees the result of all operations before it, however close they follow."""

import random

import pytest
from amaranth import ResetInserter, Signal
from amaranth.lib import data

from hw.table.state import StateMemory
from tests.hw.simulate import converts, run

LAYOUT = data.StructLayout({"fixed": 8, "count": 24})
DEPTH = 16


def step(count, side):
    """An update that does not commute, so that order and every single one matter."""
    return (5 * count + side) & 0xFFFFFF


def fixed_of(index):
    """What an index's first update writes for good."""
    return index & 0xFF ^ 0xA5


def model(operations):
    """What comes out, by a dictionary: cycle -> (index, side, state before it)."""
    records, seen = {}, {}
    for cycle, operation in enumerate(operations):
        if operation:
            index, side = operation
            seen[cycle + 4] = (index, side, records.get(index, (0, 0)))
            if side % 2 == 0:
                records[index] = (fixed_of(index), step(records.get(index, (0, 0))[1], side))
    return seen


def check(operations, depth=DEPTH):
    """Operations cycle by cycle, (index, side) or None, through a memory. Those with an even side write."""
    dut = StateMemory(LAYOUT, depth, 8)
    seen, early = {}, {}

    async def bench(ctx):
        for cycle, operation in enumerate([*operations, *[None] * (dut.latency + 1)]):
            # Without an operation the index may say anything.
            index, side = operation or (cycle % DEPTH, 0)
            ctx.set(dut.i_valid, operation is not None)
            ctx.set(dut.i_index, index)
            ctx.set(dut.i_side, side)
            if ctx.get(dut.early_valid):
                early[cycle] = (ctx.get(dut.early_index), ctx.get(dut.early_side), ctx.get(dut.early_state.fixed))
            index, side, state = ctx.get(dut.o_index), ctx.get(dut.o_side), ctx.get(dut.o_state)
            if ctx.get(dut.o_valid):
                seen[cycle] = (index, side, (state.fixed, state.count))
            # Without `o_valid`, `write` has no effect.
            ctx.set(dut.write, side % 2 == 0)
            ctx.set(dut.next, {"fixed": fixed_of(index), "count": step(state.count, side)})
            await ctx.tick()

    run(dut, bench)
    want = model(operations)
    assert seen == want
    assert early.keys() == {cycle - 1 for cycle in want}
    for cycle, (index, side, fixed) in early.items():
        assert (index, side) == want[cycle + 1][:2], cycle
        # An update of this very cycle is not in `early_state` yet; what none changes is right.
        if want.get(cycle, (None,))[0] != index:
            assert fixed == want[cycle + 1][2][0], cycle


def test_back_to_back_on_one_index():
    """One segment of a flow per cycle, all of them updates."""
    check([(3, 2 * k) for k in range(60)])


@pytest.mark.parametrize("gap", range(9))
def test_every_distance(gap):
    """Two updates and a look, `gap` cycles apart: each register on the way is passed by an update."""
    pause = [None] * gap
    check([(7, 2), *pause, (7, 4), *pause, (7, 1)])


@pytest.mark.parametrize("gap", range(1, 9))
def test_other_indices_are_left_alone(gap):
    """As before, with operations on other indices in between."""
    others = [(index, 6) for index in range(gap)]
    check([(15, 2), *others, (15, 4), *others, (15, 1), *others])


@pytest.mark.parametrize("indices", (1, 2, 3, DEPTH))
@pytest.mark.parametrize("density", (1, 0.6))
def test_random_operations(indices, density):
    rng = random.Random(int(indices * 10 + density * 5))
    operations = [
        (rng.randrange(indices), rng.getrandbits(8)) if rng.random() < density else None for _ in range(500)
    ]
    check(operations)


@pytest.mark.parametrize("depth", (256, 16384))
def test_larger_memories(depth):
    """The styles of block RAM and Ultra RAM behave alike."""
    rng = random.Random(depth)
    ends = [0, 1, depth - 1]
    check([(rng.choice(ends), rng.getrandbits(8)) for _ in range(100)], depth)


def test_reset_forgets_operations_but_keeps_the_memory():
    dut = StateMemory(LAYOUT, DEPTH, 1)
    reset = Signal()

    async def bench(ctx):
        ctx.set(dut.write, 1)
        ctx.set(dut.next, {"fixed": 1, "count": 77})
        ctx.set(dut.i_index, 5)
        ctx.set(dut.i_valid, 1)
        await ctx.tick()
        ctx.set(dut.i_valid, 0)
        await ctx.tick().repeat(6)
        ctx.set(dut.next, {"fixed": 1, "count": 99})
        ctx.set(dut.i_valid, 1)
        await ctx.tick().repeat(2)
        ctx.set(dut.i_valid, 0)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        for _ in range(6):
            assert not ctx.get(dut.o_valid) and not ctx.get(dut.early_valid)
            await ctx.tick()
        ctx.set(dut.i_valid, 1)
        await ctx.tick().repeat(4)
        assert ctx.get(dut.o_valid) and ctx.get(dut.o_state.count) == 77

    run(ResetInserter(reset)(dut), bench)


@pytest.mark.parametrize("depth", (16, 256, 16384))
def test_converts(depth):
    converts(StateMemory(LAYOUT, depth, 8))
