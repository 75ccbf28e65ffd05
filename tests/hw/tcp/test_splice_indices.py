"""SpliceIndices: each index is in use once, none is lost, and none comes back while packets of before may be on their way."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from collections import deque

import pytest

from hw.config import NicConfig
from hw.tcp.splice_indices import LOOKUP_CYCLES, SpliceIndices
from tests.hw.simulate import converts, run, seeds

CONFIG = NicConfig(flows=512, splices=16, packets=32, ports=2, width=8, pipelined_hash=False)


class Driver:
    """One cycle after the other."""

    def __init__(self, ctx, dut):
        self.ctx, self.dut, self.cycles = ctx, dut, 0

    async def cycle(self, *, take=False, give=None, packet=False, none=True):
        """The index taken, if any."""
        ctx, dut = self.ctx, self.dut
        ctx.set(dut.free.ready, take)
        ctx.set(dut.returned.valid, give is not None)
        ctx.set(dut.returned.p.index, give or 0)
        ctx.set(dut.packet, packet)
        ctx.set(dut.none, none)
        got = ctx.get(dut.free.p.index) if take and ctx.get(dut.free.valid) else None
        await ctx.tick()
        self.cycles += 1
        return got


@pytest.mark.parametrize("seed", seeds(2))
def test_thousands(monkeypatch, seed):
    monkeypatch.setattr("hw.tcp.splice_indices.LOOKUP_CYCLES", 20)
    rng = random.Random(seed)
    dut = SpliceIndices(CONFIG)
    used: list[int] = []

    async def bench(ctx):
        driver = Driver(ctx, dut)
        taken, ever = 0, 0
        while taken < 2000:
            give = used.pop(rng.randrange(len(used))) if used and rng.random() < 0.4 else None
            got = await driver.cycle(take=rng.random() < 0.6, give=give, none=rng.random() < 0.95)
            if got is not None:
                assert got not in used
                used.append(got)
                taken += 1
                ever = max(ever, got + 1)
            assert ctx.get(dut.held) == len(used) and ctx.get(dut.used_end) == ever
            assert ctx.get(dut.exhausted) == (len(used) == 16)
        # All come back, and all can be had again.
        while used:
            await driver.cycle(give=used.pop())
        while ctx.get(dut.busy):
            await driver.cycle()
        got = []
        while len(got) < 16:
            one = await driver.cycle(take=True)
            got += [] if one is None else [one]
            assert driver.cycles < 100_000
        assert sorted(got) == list(range(16)) and ctx.get(dut.exhausted) and ctx.get(dut.held) == 16
        for _ in range(50):
            assert await driver.cycle(take=True) is None

    run(dut, bench, cycles=100_000)


async def waited_for(ctx, dut, driver, traffic):
    """Cycles until the only index that is not in use comes back, `traffic(cycle)` being (packet, none)."""
    while len(taken := getattr(driver, "taken", [])) < 16:
        driver.taken = taken + [await driver.cycle(take=True)]
    await driver.cycle(give=5)
    begin = driver.cycles
    assert not ctx.get(dut.exhausted)
    while True:
        packet, none = traffic(driver.cycles - begin)
        if await driver.cycle(take=True, packet=packet, none=none) is not None:
            return driver.cycles - begin
        assert driver.cycles < 20_000


def test_waits_until_the_fifo_has_been_empty():
    """Eight cycles in a row without a packet, after the time that a look-up may take."""
    dut = SpliceIndices(CONFIG)

    async def bench(ctx):
        driver = Driver(ctx, dut)
        until = LOOKUP_CYCLES + 500

        def traffic(cycle):
            # A stalled packet now and then; it does not move.
            return False, cycle >= until or cycle % 7 > 0

        assert until < await waited_for(ctx, dut, driver, traffic) < until + 20

    run(dut, bench, cycles=30_000)


def test_waits_until_as_many_packets_have_passed_as_fit():
    dut = SpliceIndices(CONFIG)
    fits = CONFIG.packets * CONFIG.ports + 2  # a block FIFO has two places more
    passed = deque()

    async def bench(ctx):
        driver = Driver(ctx, dut)

        def traffic(cycle):
            packet = cycle % 3 == 0
            if cycle > LOOKUP_CYCLES and packet:
                passed.append(cycle)
            return packet, False

        await waited_for(ctx, dut, driver, traffic)
        assert fits <= len(passed) < fits + 20

    run(dut, bench, cycles=30_000)


def test_converts():
    converts(SpliceIndices(CONFIG))
