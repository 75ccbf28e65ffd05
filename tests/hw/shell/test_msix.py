"""`Msix` against a model of the specification's words, and the behaviour that the simulated device has."""

import random
import struct

import pytest
from amaranth import Value

from acceltcp.abi.pci import BAR_MSIX_BYTES, MSIX_ENTRY_BYTES, MSIX_PBA_OFFSET
from hw.csr.axil import RegisterRequest
from hw.shell.msix import Msix
from sim.msix import Msix as SimulatedMsix

from ..simulate import converts, run, seeds

VECTORS = 5


async def access(ctx, dut, offset, value=None, strobe=0xF):
    """Read a word of the BAR, or write one."""
    request = {"write": value is not None, "word": offset // 4, "data": value or 0, "strobe": strobe}
    ctx.set(Value.cast(dut.request.payload), RegisterRequest.const(request).as_value())
    ctx.set(dut.request.valid, 1)
    await ctx.tick().until(dut.request.ready)
    ctx.set(dut.request.valid, 0)
    while True:
        valid, answer = (await ctx.tick().sample(dut.response.valid, dut.response.payload))[-2:]
        if valid:
            return answer


async def ask(ctx, dut, vector):
    ctx.set(dut.irq.p.vector, vector)
    ctx.set(dut.irq.valid, 1)
    await ctx.tick()
    ctx.set(dut.irq.valid, 0)


async def messages(ctx, dut, cycles=4 * VECTORS + 20):
    """What is sent within some cycles, taken at once: (address, data)."""
    got = []
    ctx.set(dut.message.ready, 1)
    for _ in range(cycles):
        valid, address, value = (
            await ctx.tick().sample(dut.message.valid, dut.message.p.address, dut.message.p.data)
        )[-3:]
        if valid:
            got.append((address, value))
    return got


def entry(vector):
    return struct.unpack("<IIII", struct.pack("<QII", 0x1_FEE0_0000 + 4 * vector, 0x4000 + vector, 0))


async def set_up(ctx, dut, vector, control=0):
    for at, word in enumerate((*entry(vector)[:3], control)):
        await access(ctx, dut, MSIX_ENTRY_BYTES * vector + 4 * at, word)


def message_of(vector):
    return (0x1_FEE0_0000 + 4 * vector, 0x4000 + vector)


def scenario(bench):
    """Run one with a new component."""
    dut = Msix(VECTORS)

    async def testbench(ctx):
        ctx.set(dut.enable, 1)
        await bench(ctx, dut)

    run(dut, testbench)


def test_table_after_reset():
    async def bench(ctx, dut):
        for at in range(0, MSIX_ENTRY_BYTES * VECTORS, 4):
            assert await access(ctx, dut, at) == (1 if at % MSIX_ENTRY_BYTES == 12 else 0)
        for at in (MSIX_ENTRY_BYTES * VECTORS, MSIX_PBA_OFFSET, MSIX_PBA_OFFSET + 8, BAR_MSIX_BYTES - 4):
            assert await access(ctx, dut, at) == 0

    scenario(bench)


@pytest.mark.parametrize("seed", seeds(3))
def test_table_reads_as_in_the_simulated_device(seed):
    rng = random.Random(seed)
    offsets = [*range(0, MSIX_ENTRY_BYTES * (VECTORS + 1), 4), MSIX_PBA_OFFSET, MSIX_PBA_OFFSET + 4]
    model = SimulatedMsix(VECTORS)

    async def bench(ctx, dut):
        for _ in range(120):
            at = rng.choice(offsets)
            if rng.random() < 0.5:
                value, strobe = rng.getrandbits(32), rng.choice([0xF, 0xF, rng.getrandbits(4)])
                await access(ctx, dut, at, value, strobe)
                for byte in range(4):
                    if strobe >> byte & 1:
                        model.write(at + byte, bytes([value >> 8 * byte & 0xFF]))
            else:
                assert await access(ctx, dut, at) == int.from_bytes(model.read(at, 4), "little")

    scenario(bench)


def test_message():
    async def bench(ctx, dut):
        for vector in range(VECTORS):
            await set_up(ctx, dut, vector)
        for vector in (3, 0, 4):
            await ask(ctx, dut, vector)
            assert await messages(ctx, dut) == [message_of(vector)]
        assert await access(ctx, dut, MSIX_PBA_OFFSET) == 0

    scenario(bench)


@pytest.mark.parametrize("how", ["function", "vector"])
def test_masked_is_pending_until_unmasked(how):
    async def bench(ctx, dut):
        await set_up(ctx, dut, 2, control=how == "vector")
        ctx.set(dut.mask, how == "function")
        await ask(ctx, dut, 2)
        await ask(ctx, dut, 2)
        assert await messages(ctx, dut) == []
        assert await access(ctx, dut, MSIX_PBA_OFFSET) == 1 << 2
        if how == "vector":
            await access(ctx, dut, MSIX_ENTRY_BYTES * 2 + 12, 0)
        ctx.set(dut.mask, 0)
        assert await messages(ctx, dut) == [message_of(2)]
        assert await access(ctx, dut, MSIX_PBA_OFFSET) == 0

    scenario(bench)


def test_address_is_the_one_at_the_time_of_unmasking():
    async def bench(ctx, dut):
        await set_up(ctx, dut, 1, control=1)
        await ask(ctx, dut, 1)
        await set_up(ctx, dut, 1)
        assert await messages(ctx, dut) == [message_of(1)]
        await access(ctx, dut, MSIX_ENTRY_BYTES, 0xAB0)
        await ask(ctx, dut, 1)
        assert await messages(ctx, dut) == [(0x1_0000_0AB0, 0x4001)]

    scenario(bench)


def test_off_loses_requests_and_what_was_pending():
    async def bench(ctx, dut):
        await set_up(ctx, dut, 1)
        ctx.set(dut.mask, 1)
        await ask(ctx, dut, 1)
        ctx.set(dut.enable, 0)
        await ask(ctx, dut, 1)
        ctx.set(dut.enable, 1)
        ctx.set(dut.mask, 0)
        assert await messages(ctx, dut) == []

    scenario(bench)


def test_impossible_vector_is_ignored():
    async def bench(ctx, dut):
        for vector in range(VECTORS):
            await set_up(ctx, dut, vector)
        await ask(ctx, dut, VECTORS)
        assert await messages(ctx, dut) == []

    scenario(bench)


def test_stalled_message_stays_and_the_rest_waits():
    async def bench(ctx, dut):
        for vector in range(VECTORS):
            await set_up(ctx, dut, vector)
        await ask(ctx, dut, 1)
        await ctx.tick().until(dut.message.valid)
        for vector in (1, 2, 2):
            await ask(ctx, dut, vector)
        for _ in range(10):
            await ctx.tick()
            assert ctx.get(dut.message.valid) and ctx.get(dut.message.p.address) == message_of(1)[0]
        assert sorted(await messages(ctx, dut)) == [message_of(1), message_of(1), message_of(2)]

    scenario(bench)


def test_many_requests_at_random():
    """Each request is followed by a message of its vector, and there are no more messages than requests."""
    rng = random.Random(5)

    async def bench(ctx, dut):
        for vector in range(VECTORS):
            await set_up(ctx, dut, vector)
        asked, owed = [0] * VECTORS, [False] * VECTORS
        got = [0] * VECTORS
        for cycle in range(1500):
            vector = rng.randrange(VECTORS)
            going = rng.random() < 0.3 and cycle < 1400
            ctx.set(dut.irq.valid, going)
            ctx.set(dut.irq.p.vector, vector)
            ctx.set(dut.message.ready, cycle > 1400 or rng.random() < 0.4)
            valid, ready, data = (
                await ctx.tick().sample(dut.message.valid, dut.message.ready, dut.message.p.data)
            )[-3:]
            if going:
                asked[vector] += 1
                owed[vector] = True
            if valid and ready:
                got[data - 0x4000] += 1
                owed[data - 0x4000] = going and vector == data - 0x4000
        assert await access(ctx, dut, MSIX_PBA_OFFSET) == 0
        assert all(1 <= mine <= all_ for mine, all_ in zip(got, asked, strict=True))

    scenario(bench)


@pytest.mark.parametrize("queues", [1, 16, 64])
def test_converts(queues):
    converts(Msix(queues))
