import random

import pytest

from acceltcp.abi.registers import QUEUE, Access, QueueState
from hw.config import NicConfig
from hw.csr.bus import queue_word
from hw.csr.queues import QueueRegisters
from tests.hw.simulate import run

RINGS = ("rx_free", "rx_completion", "tx", "event")


async def write(ctx, dut, queue, name, value, strobe=0xF):
    """One write as the register file does it; returns what the bus showed until not busy."""
    ctx.set(dut.queue, queue)
    ctx.set(dut.word, queue_word(name))
    ctx.set(dut.data, value)
    ctx.set(dut.strobe, strobe)
    await ctx.tick().repeat(3)
    ctx.set(dut.write, 1)
    await ctx.tick()
    ctx.set(dut.write, 0)
    shown = []
    for _ in range(100):
        bus = dut.bus
        shown += [
            (kind, ctx.get(bus.queue), *((ctx.get(bus.word), ctx.get(bus.data)) if kind == "write" else ()))
            for kind in ("write", "enable", "disable")
            if ctx.get(getattr(bus, kind))
        ]
        if not ctx.get(dut.busy):
            break
        await ctx.tick()
    await ctx.tick()
    return shown


async def read(ctx, dut, queue, name):
    ctx.set(dut.queue, queue)
    ctx.set(dut.word, queue_word(name))
    await ctx.tick().repeat(2)
    return ctx.get(dut.value)


async def state(ctx, dut, queue):
    fields = QUEUE["status"].decode(await read(ctx, dut, queue, "status"))
    return QueueState(fields["state"]), fields["idle"]


async def set_up(ctx, dut, queue, **changes):
    for number, ring in enumerate(RINGS):
        values = {"base_low": 0x1000 * number, "base_high": number, "size": 4 + number}
        for part, value in values.items():
            await write(ctx, dut, queue, f"{ring}_{part}", changes.get(f"{ring}_{part}", value))


async def disable_all(ctx, dut):
    """What `Quiesce` does; returns the queues disabled on the bus."""
    off = []
    ctx.set(dut.disable_now, 1)
    while not ctx.get(dut.disable_done):
        await ctx.tick()
        if ctx.get(dut.bus.disable):
            off.append(ctx.get(dut.bus.queue))
    ctx.set(dut.disable_now, 0)
    await ctx.tick().repeat(2)
    return off


@pytest.mark.parametrize("queues", [1, 2, 64])
def test_every_register_reads_back_and_is_broadcast(queues):
    dut = QueueRegisters(NicConfig(queues=queues))
    rng = random.Random(queues)
    kept: dict[tuple[int, str], int] = {}

    async def testbench(ctx):
        for queue in sorted({0, queues // 2, queues - 1}):
            for register in QUEUE.registers:
                if register.name in ("control", "status"):
                    continue
                value = rng.getrandbits(32)
                shown = await write(ctx, dut, queue, register.name, value)
                value &= (1 << sum(field.bits for field in register.fields)) - 1
                assert shown == [("write", queue, queue_word(register.name), value)]
                kept[queue, register.name] = value if register.access is Access.RW else 0
        for (queue, name), value in kept.items():
            assert await read(ctx, dut, queue, name) == value

    run(dut, testbench)


def test_queues_that_do_not_exist_read_zero_and_ignore_writes():
    dut = QueueRegisters(NicConfig(queues=4))

    async def testbench(ctx):
        assert await write(ctx, dut, 4, "tx_base_low", 64) == []
        assert await write(ctx, dut, 4, "control", 1) == []
        for register in QUEUE.registers:
            assert await read(ctx, dut, 4, register.name) == 0
        assert await read(ctx, dut, 0, "tx_base_low") == 0
        assert (await state(ctx, dut, 0)) == (QueueState.DISABLED, 1)

    run(dut, testbench)


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize(
    "part, value, good",
    [
        ("base_low", 1, False),
        ("base_low", 32, False),
        ("base_low", 64, True),
        ("size", 2, False),
        ("size", 3, True),
        ("size", 15, True),
        ("size", 0, False),
    ],
)
def test_enable_checks_every_ring(ring, part, value, good):
    dut = QueueRegisters(NicConfig(queues=4))
    errors = 0

    async def testbench(ctx):
        await set_up(ctx, dut, 2, **{f"{ring}_{part}": value})
        shown = await write(ctx, dut, 2, "control", 1)
        assert shown == ([("enable", 2)] if good else [])
        expected = QueueState.ENABLED if good else QueueState.REFUSED
        assert await state(ctx, dut, 2) == (expected, int(not good))
        assert (await state(ctx, dut, 1))[0] == QueueState.DISABLED
        if not good:  # repaired, it goes on
            await set_up(ctx, dut, 2)
            assert await write(ctx, dut, 2, "control", 1) == [("enable", 2)]
        assert errors == int(not good)

    async def count(ctx):
        nonlocal errors
        for _ in range(150):
            await ctx.tick()
            errors += ctx.get(dut.counts.queue_errors)

    run(dut, testbench, count)


def test_disable_and_its_states():
    dut = QueueRegisters(NicConfig(queues=8))

    async def testbench(ctx):
        for queue in (1, 7):
            await set_up(ctx, dut, queue)
            await write(ctx, dut, queue, "control", 1)
        assert await write(ctx, dut, 1, "control", 1) == []  # already on: no restart
        assert await write(ctx, dut, 1, "tx_base_low", 0x5000) == []  # a ring in use stays
        assert await read(ctx, dut, 1, "tx_base_low") == 0x2000
        assert len(await write(ctx, dut, 1, "interrupt", 9)) == 1  # moderation may change
        assert not ctx.get(dut.disable_pending)
        for queue in (1, 7):
            await write(ctx, dut, queue, "control", 0)
            assert await state(ctx, dut, queue) == (QueueState.DISABLED, 0)
        assert ctx.get(dut.disable_pending)
        assert await write(ctx, dut, 1, "tx_base_low", 0x5000) == []
        # Enabled again before the engines have let go: refused, and still to be disabled.
        assert await write(ctx, dut, 7, "control", 1) == []
        assert await state(ctx, dut, 7) == (QueueState.REFUSED, 0)
        assert await disable_all(ctx, dut) == [1, 7]
        assert not ctx.get(dut.disable_pending)
        assert await state(ctx, dut, 1) == (QueueState.DISABLED, 1)
        assert await state(ctx, dut, 7) == (QueueState.REFUSED, 1)
        assert await disable_all(ctx, dut) == []
        assert await write(ctx, dut, 7, "control", 1) == [("enable", 7)]

    run(dut, testbench)


def test_partial_writes_of_doorbells():
    dut = QueueRegisters(NicConfig(queues=2))

    async def testbench(ctx):
        for strobe in range(16):
            shown = await write(ctx, dut, 0, "tx_tail", 5, strobe)
            assert len(shown) == (strobe & 3 == 3)
            shown = await write(ctx, dut, 0, "arm", 5, strobe)
            assert len(shown) == (strobe == 15)

    run(dut, testbench)


def test_clear_resets_registers_here_and_in_the_engines():
    dut = QueueRegisters(NicConfig(queues=2))

    async def testbench(ctx):
        await set_up(ctx, dut, 1)
        await write(ctx, dut, 1, "interrupt", 3)
        await write(ctx, dut, 1, "control", 1)
        ctx.set(dut.clear, 1)
        zeroed = set()
        while not ctx.get(dut.cleared):
            await ctx.tick()
            if ctx.get(dut.bus.write):
                assert ctx.get(dut.bus.data) == 0
                zeroed.add((ctx.get(dut.bus.queue), ctx.get(dut.bus.word)))
        ctx.set(dut.clear, 0)
        words = {queue_word(r.name) for r in QUEUE.registers if r.access is Access.RW and r.name != "control"}
        assert zeroed == {(queue, word) for queue in range(2) for word in words}
        for register in QUEUE.registers:
            if register.name != "status":
                assert await read(ctx, dut, 1, register.name) == 0
        assert await state(ctx, dut, 1) == (QueueState.DISABLED, 1)

    run(dut, testbench)
