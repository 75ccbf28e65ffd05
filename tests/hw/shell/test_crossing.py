"""`StreamCrossing` between clocks of odd ratios."""

import random

import pytest
from amaranth import Signal

from hw.shell.crossing import StreamCrossing, Synchroniser, crossing_constraints

from ..simulate import always, sometimes
from .clocks import collect, feed, run

RATIOS = [(4.0, 3.1), (4.0, 4.0), (10.0, 1.7), (1.7, 10.0)]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("pauses", [(always, always), (always, None), (None, always), (None, None)])
def test_crossing_keeps_order(ratio, pauses):
    dut = StreamCrossing(16, 8, name="test", i_domain="a", o_domain="b")
    values = [random.Random(1).randrange(1 << 16) for _ in range(200)]
    go = [pause or sometimes(seed) for seed, pause in enumerate(pauses)]
    got = []

    async def sender(ctx):
        await feed(ctx, dut.i, values, "a", go[0])

    async def receiver(ctx):
        got.extend(await collect(ctx, dut.o, "b", lambda taken: len(taken) == len(values), go[1]))

    run(dut, {"a": ratio[0], "b": ratio[1]}, sender, receiver)
    assert [value for _, value in got] == values


@pytest.mark.parametrize("ratio", RATIOS)
def test_crossing_goes_at_the_slower_clock(ratio):
    dut = StreamCrossing(16, 32, name="test", i_domain="a", o_domain="b")
    got = []

    async def sender(ctx):
        await feed(ctx, dut.i, range(400), "a")

    async def receiver(ctx):
        got.extend(await collect(ctx, dut.o, "b", lambda taken: len(taken) == 400))

    run(dut, {"a": ratio[0], "b": ratio[1]}, sender, receiver)
    spent = (got[-1][0] - got[100][0]) * ratio[1]
    assert spent <= 300 * max(ratio) * 1.02


def test_crossing_is_emptied_by_a_reset_of_both():
    dut = StreamCrossing(16, 8, name="test", i_domain="a", o_domain="b")
    reset = Signal()
    got = []

    async def bench(ctx):
        await feed(ctx, dut.i, range(5), "a")
        ctx.set(reset, 1)
        for _ in range(8):
            await ctx.tick("a")
        ctx.set(reset, 0)
        await feed(ctx, dut.i, range(100, 107), "a")
        got.extend(await collect(ctx, dut.o, "b", lambda taken: len(taken) == 7))

    run(dut, {"a": 4.0, "b": 3.1}, bench, reset={"a": reset, "b": reset})
    assert [value for _, value in got] == list(range(100, 107))


def test_constraints_name_both_sides():
    lines = crossing_constraints("x.read", 3.103)
    assert [line.split()[0] for line in lines] == ["set_max_delay", "set_bus_skew"]
    for line in lines:
        assert line.endswith(" 3.103")
        assert 'crossing_from == "x.read"' in line and 'crossing_to == "x.read"' in line


def test_errors():
    with pytest.raises(ValueError, match="depth must be a power of two of at least 8, not 12"):
        StreamCrossing(8, 12, name="x", i_domain="a", o_domain="b")
    with pytest.raises(ValueError, match="of one width, not 2 and 3 bits"):
        Synchroniser(Signal(2), Signal(3), name="x", i_domain="a", o_domain="b")
