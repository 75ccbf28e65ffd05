"""StreamChecker catches each broken rule and lets legal traffic pass."""

import pytest

from hw.stream.beat import BeatLayout
from hw.stream.checker import StreamChecker
from tests.hw.simulate import converts, run

WIDTH = 8


def drive(dut, steps):
    async def bench(ctx):
        for valid, ready, payload in steps:
            ctx.set(dut.valid, valid)
            ctx.set(dut.ready, ready)
            ctx.set(dut.payload, payload)
            await ctx.tick()
        ctx.set(dut.valid, 0)
        ctx.set(dut.ready, 0)

    run(dut, bench)


def beat(count=WIDTH, last=0, data=0):
    return {"data": data, "count": count, "last": last, "err": 0}


def test_legal():
    dut = StreamChecker(BeatLayout(WIDTH))
    packet = [(1, 0, beat()), (1, 0, beat()), (1, 1, beat()), (0, 1, beat(0)), (1, 1, beat(3, 1))]
    drive(dut, [*packet, (1, 1, beat(8, 1))])


@pytest.mark.parametrize(
    "steps, message",
    [
        ([(1, 0, beat()), (0, 0, beat())], "valid dropped"),
        ([(1, 0, beat()), (1, 1, beat(data=1))], "payload changed"),
        ([(1, 1, beat(0, 1))], "count not"),
        ([(1, 1, beat(9, 1))], "count not"),
        ([(1, 1, beat(5, 0))], "not full"),
    ],
)
def test_broken(steps, message):
    with pytest.raises(AssertionError, match=message):
        drive(StreamChecker(BeatLayout(WIDTH)), [*steps, (0, 0, steps[-1][2])])


def test_converts():
    converts(StreamChecker(BeatLayout(WIDTH)))
