import itertools
import random

import pytest
from amaranth.sim import Simulator

from hw.csr.axil import AxiLiteSlave
from tests.hw.csr.master import read, write
from tests.hw.simulate import seeds


async def memory(ctx, dut, model, latency, log, done):
    """Answers requests from a dictionary, as a register file does."""
    request = dut.request
    while not done:
        ctx.set(request.ready, 1)
        *_, valid, fields = await ctx.tick().sample(request.valid, request.payload)
        if not valid:
            continue
        ctx.set(request.ready, 0)
        value = model.get(fields.word, 0)
        if log is not None:
            log.append(("write" if fields.write else "read", fields.word))
        if fields.write:
            mask = sum(0xFF << 8 * i for i in range(4) if fields.strobe >> i & 1)
            model[fields.word] = value & ~mask | fields.data & mask
        if latency:
            await ctx.tick().repeat(latency)
        ctx.set(dut.response.payload, value)
        ctx.set(dut.response.valid, 1)
        await ctx.tick()
        ctx.set(dut.response.valid, 0)


def simulate(dut, testbench, model, latency=1, log=None):
    done = []

    async def served(ctx):
        await testbench(ctx)
        done.append(1)

    async def watchdog(ctx):
        for _ in range(20_000):
            await ctx.tick()
            if done:
                return
        raise AssertionError("not finished")

    async def serve(ctx):
        await memory(ctx, dut, model, latency, log, done)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(serve)
    sim.add_testbench(served)
    sim.add_testbench(watchdog)
    sim.run()


@pytest.mark.parametrize("seed", seeds(3))
def test_random_accesses_match_a_memory(seed):
    rng = random.Random(seed)
    model: dict[int, int] = {}
    expected: dict[int, int] = {}
    dut = AxiLiteSlave()

    async def testbench(ctx):
        for _ in range(100):
            address = rng.choice([0, 4, 8, 0x7FFC, 0x8000, 0xFFFC])
            if rng.random() < 0.5:
                value, strobe = rng.getrandbits(32), rng.randrange(16)
                waits = {name: rng.choice([0, 0, 1, 3]) for name in ("aw_wait", "w_wait", "b_wait")}
                await write(ctx, dut.axil, address, value, strobe, **waits)
                mask = sum(0xFF << 8 * i for i in range(4) if strobe >> i & 1)
                expected[address] = expected.get(address, 0) & ~mask | value & mask
            else:
                got = await read(ctx, dut.axil, address | rng.randrange(4), r_wait=rng.choice([0, 2]))
                assert got == expected.get(address, 0)

    simulate(dut, testbench, model, latency=seed)


def test_address_before_data_and_after():
    dut = AxiLiteSlave()
    model: dict[int, int] = {}

    async def testbench(ctx):
        await write(ctx, dut.axil, 4, 1, w_wait=5)
        await write(ctx, dut.axil, 8, 2, aw_wait=5)
        assert model == {1: 1, 2: 2}

    simulate(dut, testbench, model)


def test_reads_and_writes_take_turns():
    """With both always waiting neither starves."""
    dut = AxiLiteSlave()
    log: list[tuple[str, int]] = []

    async def testbench(ctx):
        for valid in (dut.axil.awvalid, dut.axil.wvalid, dut.axil.arvalid, dut.axil.bready, dut.axil.rready):
            ctx.set(valid, 1)
        await ctx.tick().repeat(100)
        kinds = [kind for kind, _ in log]
        assert len(kinds) >= 10
        assert all(a != b for a, b in itertools.pairwise(kinds))

    simulate(dut, testbench, {}, log=log)


def test_answers_wait_for_the_master():
    dut = AxiLiteSlave()

    async def testbench(ctx):
        ctx.set(dut.axil.arvalid, 1)
        ctx.set(dut.axil.araddr, 4)
        await ctx.tick()
        ctx.set(dut.axil.araddr, 8)
        await ctx.tick().until(dut.axil.rvalid)
        for _ in range(20):
            assert (ctx.get(dut.axil.rvalid), ctx.get(dut.axil.rdata)) == (1, 11)
            await ctx.tick()
        ctx.set(dut.axil.rready, 1)
        await ctx.tick()
        *_, value = await ctx.tick().sample(dut.axil.rdata).until(dut.axil.rvalid)
        assert value == 22

    simulate(dut, testbench, {1: 11, 2: 22})
