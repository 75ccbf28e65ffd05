# amaranth: UnusedElaboratable=no
"""Delay: every length comes out unchanged after exactly its cycles."""

import pytest

from hw.packet.delay import Delay
from tests.hw.simulate import converts, run


@pytest.mark.parametrize("kind", ("lutram", "block"))
@pytest.mark.parametrize("cycles", (1, 2, 3, 4, 5, 9, 16))
def test_delay(cycles, kind):
    dut = Delay(16, cycles, kind=kind)

    async def bench(ctx):
        for k in range(50):
            ctx.set(dut.i, 1000 + k)
            if k >= cycles:
                assert ctx.get(dut.o) == 1000 + k - cycles
            await ctx.tick()

    run(dut, bench)


def test_parameters_and_convert():
    with pytest.raises(ValueError, match="cycles must be"):
        Delay(8, 0)
    with pytest.raises(ValueError, match="kind must be"):
        Delay(8, 7, kind="uram")
    converts(Delay(8, 7))
    converts(Delay(8, 7, kind="block"))
