"""TableShare: each user's changes are made, in its order, and each answer reaches who asked."""

import random

import pytest

from acceltcp.abi.messages import Status
from hw.config import TableSizes
from hw.table.share import TableShare
from tests.hw.simulate import run, seeds, sometimes

SIZES = TableSizes(6)
USERS = 2


@pytest.mark.parametrize("seed", seeds(3))
def test_answers_reach_who_asked(seed):
    rng = random.Random(seed)
    dut = TableShare(SIZES, USERS)
    wanted = [[rng.randrange(64) for _ in range(20)] for _ in range(USERS)]
    inserted, deleted = [], []
    statuses = [Status.OK, Status.DUPLICATE, Status.TABLE_FULL]

    async def table(ctx):
        """Answers after a while; what it says follows from the index, so that answers can be told apart."""
        port = dut.port
        go = sometimes(seed, 0.5)
        owed = []
        while len(inserted) < USERS * 20 or len(deleted) < USERS * 20 or owed:
            ctx.set(port.insert.ready, go() and not owed)
            ctx.set(port.delete.ready, 0 if owed else ctx.get(port.insert.ready) ^ 1)
            _, _, insert, delete, index, old = await ctx.tick().sample(
                port.insert.valid & port.insert.ready, port.delete.valid & port.delete.ready,
                port.insert.p.index, port.delete.p.index,
            )  # fmt: skip
            ctx.set(port.insert.ready, 0)
            ctx.set(port.delete.ready, 0)
            if insert:
                inserted.append(index)
                ctx.set(port.inserted.p.status, statuses[index % 3])
                ctx.set(port.inserted.valid, 1)
                await ctx.tick().until(port.inserted.ready)
                ctx.set(port.inserted.valid, 0)
            if delete:
                deleted.append(old)
                ctx.set(port.deleted.p.index, old)
                ctx.set(port.deleted.valid, 1)
                await ctx.tick().until(port.deleted.ready)
                ctx.set(port.deleted.valid, 0)

    def user(k, request, answer, check):
        async def bench(ctx):
            ask, told = getattr(dut.users[k], request), getattr(dut.users[k], answer)
            for index in wanted[k]:
                ctx.set(ask.p.index, index)
                ctx.set(ask.valid, 1)
                await ctx.tick().until(ask.ready)
                ctx.set(ask.valid, 0)
                ctx.set(told.ready, 1)
                (value,) = await ctx.tick().sample(told.payload).until(told.valid)
                ctx.set(told.ready, 0)
                check(index, value)

        return bench

    def status_is_right(index, value):
        assert value.status == statuses[index % 3]

    def index_is_right(index, value):
        assert value.index == index

    users = [
        user(k, *names)
        for k in range(USERS)
        for names in (("insert", "inserted", status_is_right), ("delete", "deleted", index_is_right))
    ]
    run(dut, table, *users)
    for made in (inserted, deleted):
        assert sorted(made) == sorted(wanted[0] + wanted[1])


def test_nobody_starves():
    """Two that always ask take turns."""
    dut = TableShare(SIZES, USERS)
    order = []

    async def bench(ctx):
        for k in range(USERS):
            ctx.set(dut.users[k].insert.valid, 1)
            ctx.set(dut.users[k].insert.p.index, k)
            ctx.set(dut.users[k].inserted.ready, 1)
        ctx.set(dut.port.insert.ready, 1)
        for _ in range(8):
            (index,) = await ctx.tick().sample(dut.port.insert.p.index).until(dut.port.insert.valid)
            order.append(index)
            ctx.set(dut.port.inserted.valid, 1)
            await ctx.tick().until(dut.port.inserted.ready)
            ctx.set(dut.port.inserted.valid, 0)

    run(dut, bench)
    assert order in ([0, 1] * 4, [1, 0] * 4)
