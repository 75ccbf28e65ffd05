# amaranth: UnusedElaboratable=no
"""DeepMemory: every word of every group, reads and writes side by side, against a list."""

import random

import pytest

from hw.table.deep_memory import GROUP, DeepMemory
from tests.hw.simulate import converts, run


@pytest.mark.parametrize(("depth", "group"), [(64, 8), (16, 16), (8, 16), (16, 8)])
def test_against_a_list(depth, group):
    """A read gives what was there before a write of the same cycle, two cycles later, one per cycle."""
    dut = DeepMemory(16, depth, "distributed", group)
    rng = random.Random(depth)
    words = [0] * depth
    indices = [*range(depth), *(rng.randrange(depth) for _ in range(600))]
    due = []

    async def bench(ctx):
        for number, index in enumerate(indices):
            ctx.set(dut.read_index, index)
            due.append(words[index])
            at = rng.choice((index, rng.randrange(depth)))
            # Every word is written once, to begin with; later in two of three cycles.
            at = (number * 5 + 3) % depth if number < depth else at
            write, value = number < depth or rng.random() < 0.67, rng.getrandbits(16)
            ctx.set(dut.write, write)
            ctx.set(dut.write_index, at)
            ctx.set(dut.write_data, value)
            if write:
                words[at] = value
            await ctx.tick()
            if number >= dut.latency - 1:
                assert ctx.get(dut.data) == due[number - dut.latency + 1], number

    run(dut, bench)


def test_size_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="12"):
        DeepMemory(8, 12, "block")


def test_converts():
    converts(DeepMemory(8, 2 * GROUP, "block"))
