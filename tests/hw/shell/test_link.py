"""`LinkState`: cycle by cycle."""

import pytest

from hw.shell.link import LinkState
from tests.hw.simulate import converts, run

SETTLE = 8


@pytest.mark.parametrize("flicker", [0, 1, SETTLE - 1])
def test_life_of_a_link(flicker):
    """A link is up when it was good for so long, without a gap; lost, it restarts the sender and must settle anew."""
    dut = LinkState(SETTLE)

    async def wait(ctx, good, cycles):
        """(up, restart) in each of the cycles."""
        ctx.set(dut.good, good)
        seen = []
        for _ in range(cycles):
            await ctx.tick()
            seen.append((ctx.get(dut.up), ctx.get(dut.restart)))
        return seen

    async def bench(ctx):
        assert await wait(ctx, 0, 3 * SETTLE) == [(0, 0)] * (3 * SETTLE)
        assert await wait(ctx, 1, flicker) == [(0, 0)] * flicker
        assert await wait(ctx, 0, 1) == [(0, 0)]
        for _ in range(2):
            assert await wait(ctx, 1, SETTLE) == [(0, 0)] * (SETTLE - 1) + [(1, 0)]
            assert await wait(ctx, 1, 5 * SETTLE) == [(1, 0)] * (5 * SETTLE)
            # Down at once, and for `SETTLE` cycles whatever the link does meanwhile.
            assert await wait(ctx, 0, 1) == [(0, 1)]
            assert await wait(ctx, flicker > 0, SETTLE) == [(0, 1)] * (SETTLE - 1) + [(0, 0)]

    run(dut, bench)


def test_converts():
    converts(LinkState())
