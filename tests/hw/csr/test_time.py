import random

import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import connect

from acceltcp.abi.registers import TIME
from hw.csr.time import Clock, Secret, SecretPort, TimePort
from tests.hw.simulate import run, seeds

K = [int.from_bytes(bytes([n] * 16), "little") for n in range(8)]


class Both(wiring.Elaboratable):
    """Clock and Secret as the core has them."""

    def __init__(self):
        self.clock, self.secret = Clock(), Secret()

    def elaborate(self, platform):
        m = Module()
        m.submodules.clock, m.submodules.secret = self.clock, self.secret
        m.d.comb += self.secret.boundary.eq(self.clock.boundary)
        return m


async def tick(ctx, clock, count=1):
    for _ in range(count):
        ctx.set(clock.tick, 1)
        await ctx.tick()
        ctx.set(clock.tick, 0)
        await ctx.tick().repeat(2)


async def commit(ctx, secret, key, now=0):
    ctx.set(secret.port.key, key)
    ctx.set(secret.port.now, now)
    ctx.set(secret.port.commit, 1)
    await ctx.tick()
    ctx.set(secret.port.commit, 0)
    ctx.set(secret.port.key, K[7])  # the words are free for the next secret


def keys(ctx, secret):
    return ctx.get(secret.key_valid), ctx.get(secret.key_current), ctx.get(secret.key_previous)


def test_ports_start_with_the_declared_reset_values():
    members = TimePort().members
    assert members["ts_ticks"].init == TIME["ts_ticks"].reset == 10
    assert members["epoch_ticks"].init == TIME["epoch_ticks"].reset == 640_000
    assert SecretPort().members["key"].shape == 128


@pytest.mark.parametrize("seed", seeds(3))
def test_clock_counts_ticks_steps_and_epochs(seed):
    rng = random.Random(seed)
    dut = Clock()
    ts_ticks, epoch_ticks = rng.choice([(1, 1), (3, 7), (2, 5)])

    async def testbench(ctx):
        ctx.set(dut.port.ts_ticks, ts_ticks)
        ctx.set(dut.port.epoch_ticks, epoch_ticks)
        ticks = 0
        for _ in range(200):
            now = rng.random() < 0.7
            ctx.set(dut.tick, now)
            await ctx.tick()
            ticks += now
            if not now:
                await ctx.tick()
                assert ctx.get(dut.port.ticks) == ticks
                assert ctx.get(dut.ts_clock) == ctx.get(dut.port.ts_clock) == ticks // ts_ticks
                assert ctx.get(dut.epoch) == ctx.get(dut.port.epoch) == ticks // epoch_ticks

    run(dut, testbench)


@pytest.mark.parametrize("period", [0, 1])
def test_period_zero_counts_as_one(period):
    dut = Clock()

    async def testbench(ctx):
        ctx.set(dut.port.ts_ticks, period)
        ctx.set(dut.port.epoch_ticks, period)
        await tick(ctx, dut, 5)
        assert (ctx.get(dut.ts_clock), ctx.get(dut.epoch)) == (5, 5)

    run(dut, testbench)


def test_shorter_period_takes_effect_at_the_next_tick():
    dut = Clock()

    async def testbench(ctx):
        ctx.set(dut.port.ts_ticks, 1000)
        await tick(ctx, dut, 20)
        ctx.set(dut.port.ts_ticks, 4)
        await tick(ctx, dut, 1)
        assert ctx.get(dut.ts_clock) == 1
        await tick(ctx, dut, 4)
        assert ctx.get(dut.ts_clock) == 2

    run(dut, testbench)


def test_writing_the_epoch_starts_it_anew():
    dut = Clock()

    async def testbench(ctx):
        ctx.set(dut.port.epoch_ticks, 10)
        await tick(ctx, dut, 9)
        ctx.set(dut.port.epoch_value, 0xFFFF_FFFF)
        ctx.set(dut.port.epoch_write, 1)
        await ctx.tick()
        ctx.set(dut.port.epoch_write, 0)
        await ctx.tick().repeat(2)
        assert ctx.get(dut.epoch) == 0xFFFF_FFFF
        await tick(ctx, dut, 9)
        assert ctx.get(dut.epoch) == 0xFFFF_FFFF
        await tick(ctx, dut, 1)
        assert ctx.get(dut.epoch) == 0  # wraps

    run(dut, testbench)


def test_secret_rotates_at_epoch_boundaries():
    dut = Both()
    clock, secret = dut.clock, dut.secret

    async def testbench(ctx):
        ctx.set(clock.port.epoch_ticks, 3)
        assert ctx.get(secret.key_valid) == 0
        await commit(ctx, secret, K[1])  # the first counts as `now`
        assert keys(ctx, secret) == (1, K[1], K[1])
        await commit(ctx, secret, K[2])
        await tick(ctx, clock, 2)
        assert keys(ctx, secret) == (1, K[1], K[1])
        await tick(ctx, clock, 1)
        assert ctx.get(clock.epoch) == 1
        assert keys(ctx, secret) == (1, K[2], K[1])
        await tick(ctx, clock, 3)
        assert keys(ctx, secret) == (1, K[2], K[2])  # the words written since were not committed
        await commit(ctx, secret, K[3])
        await commit(ctx, secret, K[4])  # replaces the staged one
        await tick(ctx, clock, 3)
        assert keys(ctx, secret) == (1, K[4], K[2])
        await commit(ctx, secret, K[5])
        await commit(ctx, secret, K[6], now=1)  # at once, and cancels the staged one
        assert keys(ctx, secret) == (1, K[6], K[6])
        await tick(ctx, clock, 3)
        assert keys(ctx, secret) == (1, K[6], K[6])

    run(dut, testbench)


def test_epoch_and_keys_change_at_the_same_edge():
    dut = Both()
    clock, secret = dut.clock, dut.secret

    async def testbench(ctx):
        ctx.set(clock.port.epoch_ticks, 4)
        await commit(ctx, secret, K[1])
        await commit(ctx, secret, K[2])
        ctx.set(clock.tick, 1)
        seen = set()
        for _ in range(12):
            await ctx.tick()
            seen.add(
                (min(ctx.get(clock.epoch), 2), ctx.get(secret.key_current), ctx.get(secret.key_previous))
            )
        assert seen == {(0, K[1], K[1]), (1, K[2], K[1]), (2, K[2], K[2])}

    run(dut, testbench)


@pytest.mark.parametrize("value, rotates", [(0, False), (1, True), (77, True)])
def test_writing_the_epoch_is_a_boundary_if_it_changes(value, rotates):
    dut = Both()
    clock, secret = dut.clock, dut.secret

    async def testbench(ctx):
        await commit(ctx, secret, K[1])
        await commit(ctx, secret, K[2])
        ctx.set(clock.port.epoch_value, value)
        ctx.set(clock.port.epoch_write, 1)
        await ctx.tick()
        ctx.set(clock.port.epoch_write, 0)
        await ctx.tick().repeat(3)
        assert keys(ctx, secret) == (1, K[2] if rotates else K[1], K[1])

    run(dut, testbench)


def test_connects_to_the_register_files_side():
    class Wired(wiring.Elaboratable):
        def elaborate(self, platform):
            m = Module()
            m.submodules.clock, m.submodules.secret = clock, secret = Clock(), Secret()
            connect(m, TimePort().create(), clock.port)
            connect(m, SecretPort().create(), secret.port)
            return m

    from amaranth.hdl import Fragment

    Fragment.get(Wired(), None)
