import random

import pytest
from amaranth import Module, ResetInserter, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import connect

from acceltcp.abi.registers import (
    BLOCKS,
    CONTROL,
    COUNTER_BASE,
    COUNTERS,
    FLOWS,
    IDENT,
    MAGIC,
    PORT,
    PORTS_MAX,
    QUEUE,
    QUEUES_MAX,
    RSS,
    RSS_KEY_BYTES,
    SECRET,
    TIME,
    Access,
    Feature,
    QueueState,
    map_hash,
)
from acceltcp.abi.toeplitz import key_words
from hw.config import NicConfig
from hw.csr.counters import Counters
from hw.csr.registers import RegisterFile
from hw.csr.time import Clock, Secret
from tests.hw.csr.master import read, write
from tests.hw.simulate import run, seeds

CONFIG = NicConfig(width=8, rx_buffer_beats=4096, tx_buffer_beats=4096, queues=4, listeners=16)


class Plane(wiring.Elaboratable):
    """The register file with what belongs to it, wired as in the core."""

    def __init__(self, config=CONFIG, timeout=200):
        self.registers = RegisterFile(config, timeout=timeout)
        self.clock, self.secret, self.counters = Clock(), Secret(), Counters(config)

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = registers = self.registers
        for name in ("clock", "secret", "counters"):
            m.submodules[name] = ResetInserter(registers.core_reset)(getattr(self, name))
        connect(m, registers.time, self.clock.port)
        connect(m, registers.secret, self.secret.port)
        connect(m, registers.counters, self.counters.port)
        m.d.comb += self.secret.boundary.eq(self.clock.boundary)
        return m


def bench(testbench, *others, config=CONFIG, cycles=20_000):
    plane = Plane(config)

    async def started(ctx):
        ctx.set(plane.registers.idle, 1)
        await testbench(ctx, plane, plane.registers.axil)

    run(plane, started, *others, cycles=cycles)


async def tick(ctx, plane, count=1):
    for _ in range(count):
        ctx.set(plane.clock.tick, 1)
        await ctx.tick()
        ctx.set(plane.clock.tick, 0)
        await ctx.tick().repeat(3)


async def soft_reset(ctx, axil):
    await write(ctx, axil, CONTROL.address("reset"), 1)
    while await read(ctx, axil, CONTROL.address("status")) & CONTROL["status"].encode(resetting=1):
        pass


async def enable_queue(ctx, axil, queue):
    for ring in ("rx_free", "rx_completion", "tx", "event"):
        await write(ctx, axil, QUEUE.address(f"{ring}_size", queue), 4)
    await write(ctx, axil, QUEUE.address("control", queue), 1)


def test_identity():
    async def testbench(ctx, plane, axil):
        async def fields(name):
            return IDENT[name].decode(await read(ctx, axil, IDENT.address(name)))

        assert await read(ctx, axil, IDENT.address("magic")) == MAGIC
        assert await read(ctx, axil, 8) == map_hash()
        assert await fields("shape") == {"width": 8, "ports": 1, "queues": 4, "tick_us": 10}
        assert await fields("tables") == {"listeners": 16, "flows_log2": 12, "splices_log2": 10}
        assert await read(ctx, axil, IDENT.address("max_frame")) == CONFIG.max_frame
        assert await read(ctx, axil, IDENT.address("features")) == (
            Feature.SETUP | Feature.TEARDOWN | Feature.RSS | Feature.SPLICE
        )

    bench(testbench)


def test_features_of_a_build_without_what_is_optional():
    async def testbench(ctx, plane, axil):
        assert await read(ctx, axil, IDENT.address("features")) == Feature.SETUP | Feature.TEARDOWN

    bench(testbench, config=NicConfig(rss=False, splices=0))


def test_rss_registers():
    """Key, types and entries reach their port; a reset forgets key and types; nothing of the key can be read."""

    async def testbench(ctx, plane, axil):
        rss = plane.registers.rss
        key = bytes(range(1, RSS_KEY_BYTES + 1))
        for number, word in enumerate(key_words(key)):
            await write(ctx, axil, RSS.address(f"key{number}"), word)
            assert await read(ctx, axil, RSS.address(f"key{number}")) == 0
        assert ctx.get(rss.key).to_bytes(RSS_KEY_BYTES, "little") == key
        await write(ctx, axil, RSS.address("control"), 0xFFFF_FFF5)
        assert await read(ctx, axil, RSS.address("control")) == ctx.get(rss.types) == 5
        await soft_reset(ctx, axil)
        assert ctx.get(rss.key) == ctx.get(rss.types) == await read(ctx, axil, RSS.address("control")) == 0

    bench(testbench)


def test_rss_entries():
    """Each whole write is one strobe with its entry."""
    plane = Plane()
    seen = []

    async def watch(ctx):
        rss = plane.registers.rss
        async for _, _, strobe, index, queue in ctx.tick().sample(rss.write, rss.index, rss.queue):
            if strobe:
                seen.append((index, queue))

    async def testbench(ctx):
        ctx.set(plane.registers.idle, 1)
        axil = plane.registers.axil
        for index, queue in ((0, 0), (127, 255), (5, 7)):
            await write(ctx, axil, RSS.address("entry"), RSS["entry"].encode(index=index, queue=queue))
        await write(ctx, axil, RSS.address("entry"), RSS["entry"].encode(index=9, queue=9), strobe=1)
        assert await read(ctx, axil, RSS.address("entry")) == 0

    run(plane, testbench, background=(watch,))
    assert seen == [(0, 0), (127, 255), (5, 7)], "a partial write is none"


@pytest.mark.parametrize("ports", [1, 2])
def test_every_address_answers_and_only_registers_keep_anything(ports):
    """Ones to every address, a read of every address: only read-write registers change."""
    config = NicConfig(ports=ports, queues=2)
    expected = {}
    for block in BLOCKS:
        count = {"PORT": ports, "QUEUE": 2}.get(block.name, block.count)
        for index in range(count):
            for register in block.registers:
                if register.access is Access.RW:
                    bits = sum(field.bits for field in register.fields)
                    expected[block.address(register.name, index)] = (1 << bits) - 1
    skip = {CONTROL.address("reset"), CONTROL.address("snapshot"), SECRET.address("commit"), FLOWS.address("commit")}
    live = {a for b in BLOCKS for r in b.registers if r.access is Access.RO for a in [b.address(r.name)]}
    live |= {QUEUE.address("status", index) for index in range(2)}
    queue_controls = {QUEUE.address("control", index) for index in range(2)}
    addresses = sorted(
        {
            a
            for b in BLOCKS
            for i in range(b.count)
            for r in b.registers
            for a in [b.address(r.name, i)]
            if b is not QUEUE or i in (0, 1, 2, 63)
        }
        | {0x20, 0x3FC, 0x400, 0x1000, 0x1FFC, 0x2000, 0x4000, 0x7FFC, 0xA000, 0xFFFC, QUEUE.base + 0x7C}
    )

    async def testbench(ctx, plane, axil):
        for address in addresses:
            if address not in skip | queue_controls:
                await write(ctx, axil, address, 0xFFFF_FFFF)
        for address in addresses:
            if address not in live | queue_controls:
                value = await read(ctx, axil, address)
                assert value == expected.get(address, 0), hex(address)

    bench(testbench, config=config)


@pytest.mark.parametrize("seed", seeds(2))
def test_partial_writes_merge(seed):
    rng = random.Random(seed)
    registers = [
        IDENT.address("scratch"),
        TIME.address("epoch_ticks"),
        PORT.address("mac_low"),
        QUEUE.address("tx_base_high", 1),
        QUEUE.address("rx_free_base_high", 3),
        TIME.address("epoch"),
    ]

    async def testbench(ctx, plane, axil):
        model = dict.fromkeys(registers, 0)
        model[TIME.address("epoch_ticks")] = TIME["epoch_ticks"].reset
        for _ in range(60):
            address = rng.choice(registers)
            value, strobe = rng.getrandbits(32), rng.randrange(16)
            await write(ctx, axil, address, value, strobe)
            mask = sum(0xFF << 8 * i for i in range(4) if strobe >> i & 1)
            model[address] = model[address] & ~mask | value & mask
            address = rng.choice(registers)
            assert await read(ctx, axil, address) == model[address]

    bench(testbench)


def test_typed_outputs():
    config = NicConfig(ports=2)

    async def testbench(ctx, plane, axil):
        registers = plane.registers
        await write(ctx, axil, PORT.address("mac_low", 1), 0xCCDDEEFF)
        await write(ctx, axil, PORT.address("mac_high", 1), 0xAABB)
        await write(ctx, axil, PORT.address("config", 0), 0b10)
        await write(ctx, axil, PORT.address("config", 1), 0b01)
        await write(ctx, axil, CONTROL.address("default_queue"), 3)
        await write(ctx, axil, CONTROL.address("control"), 1)
        await ctx.tick().repeat(3)
        assert ctx.get(registers.mac[1]) == 0xAABBCCDDEEFF and ctx.get(registers.mac[0]) == 0
        assert [ctx.get(p) for p in registers.promiscuous] == [0, 1]
        assert [ctx.get(p) for p in registers.keep_bad] == [1, 0]
        assert ctx.get(registers.default_queue) == 3
        assert ctx.get(registers.control.enable) == 1

    bench(testbench, config=config)


def test_ticks_high_is_latched_with_low():
    async def testbench(ctx, plane, axil):
        await tick(ctx, plane, 3)
        assert await read(ctx, axil, TIME.address("ticks_low")) == 3
        ctx.set(plane.clock.port.ticks, (7 << 32) - 1)
        assert await read(ctx, axil, TIME.address("ticks_low")) == 0xFFFF_FFFF
        await tick(ctx, plane)
        assert await read(ctx, axil, TIME.address("ticks_high")) == 6
        await write(ctx, axil, TIME.address("ticks_low"), 1)  # a write latches nothing
        assert await read(ctx, axil, TIME.address("ticks_high")) == 6
        assert await read(ctx, axil, TIME.address("ticks_low")) == 0
        assert await read(ctx, axil, TIME.address("ticks_high")) == 7

    bench(testbench)


def test_time_settings_and_epoch():
    async def testbench(ctx, plane, axil):
        await tick(ctx, plane, 10)
        assert await read(ctx, axil, TIME.address("ts_clock")) == 1
        await write(ctx, axil, TIME.address("ts_ticks"), 1)
        await write(ctx, axil, TIME.address("epoch_ticks"), 2)
        await write(ctx, axil, TIME.address("epoch"), 1000)
        await tick(ctx, plane, 4)
        assert await read(ctx, axil, TIME.address("ts_clock")) == 5
        assert await read(ctx, axil, TIME.address("epoch")) == 1002

    bench(testbench)


def test_secret_is_set_word_by_word_and_never_read():
    key = bytes(range(16))

    async def testbench(ctx, plane, axil):
        for word in range(4):
            value = int.from_bytes(key[4 * word : 4 * word + 4], "little")
            await write(ctx, axil, SECRET.address(f"word{word}"), value)
        await write(ctx, axil, SECRET.address("word0"), 0, 0b0111)  # partial: ignored
        assert not await read(ctx, axil, CONTROL.address("status")) & 4
        await write(ctx, axil, SECRET.address("commit"), 0)
        assert await read(ctx, axil, CONTROL.address("status")) & 4
        assert ctx.get(plane.secret.key_current) == int.from_bytes(key, "little")
        for register in SECRET.registers:
            assert await read(ctx, axil, SECRET.address(register.name)) == 0

    bench(testbench)


def test_counters_through_the_window():
    async def testbench(ctx, plane, axil):
        number = [c.name for c in COUNTERS].index("rx_bytes")
        ctx.set(plane.counters.i.rx_bytes, 0xFFFF)
        await ctx.tick().repeat(100)
        ctx.set(plane.counters.i.rx_bytes, 0)
        assert await read(ctx, axil, COUNTER_BASE + 8 * number) == 0  # no snapshot yet
        await write(ctx, axil, CONTROL.address("snapshot"), 1)
        while await read(ctx, axil, CONTROL.address("status")) & 8:
            pass
        for index in range(len(COUNTERS)):
            low = await read(ctx, axil, COUNTER_BASE + 8 * index)
            high = await read(ctx, axil, COUNTER_BASE + 8 * index + 4)
            assert low | high << 32 == (100 * 0xFFFF if index == number else 0)
        for past in (0, 8):
            assert await read(ctx, axil, COUNTER_BASE + 8 * len(COUNTERS) + past) == 0

    bench(testbench)


def test_disable_holds_the_engines_but_not_the_bus():
    async def testbench(ctx, plane, axil):
        registers = plane.registers
        await enable_queue(ctx, axil, 2)
        status = QUEUE.address("status", 2)
        assert QUEUE["status"].decode(await read(ctx, axil, status)) == {"state": 1, "idle": 0}
        ctx.set(registers.idle, 0)
        await write(ctx, axil, QUEUE.address("control", 2), 0)
        for value in range(20):  # registers answer while the engines are being held
            await write(ctx, axil, IDENT.address("scratch"), value)
            assert await read(ctx, axil, IDENT.address("scratch")) == value
        assert ctx.get(registers.hold)
        assert QUEUE["status"].decode(await read(ctx, axil, status)) == {"state": 0, "idle": 0}
        ctx.set(registers.idle, 1)
        *_, queue = await ctx.tick().sample(registers.queues.queue).until(registers.queues.disable)
        assert queue == 2
        await ctx.tick().until(~registers.hold)
        assert QUEUE["status"].decode(await read(ctx, axil, status)) == {"state": 0, "idle": 1}
        await ctx.tick().repeat(5)
        assert not ctx.get(registers.working)

    bench(testbench)


@pytest.mark.parametrize("dead_bus", [False, True])
def test_soft_reset_clears_everything_but_scratch(dead_bus):
    async def testbench(ctx, plane, axil):
        registers = plane.registers
        kept = [
            (block, index, register)
            for block in BLOCKS
            for index in range(min(block.count, 1 if block is PORT else CONFIG.queues))
            for register in block.registers
            if register.access is Access.RW
        ]
        for block, index, register in kept:
            if (block, register.name) != (QUEUE, "control"):
                await write(ctx, axil, block.address(register.name, index), 1)
        await enable_queue(ctx, axil, 1)
        for word in range(4):
            await write(ctx, axil, SECRET.address(f"word{word}"), 5)
        await write(ctx, axil, SECRET.address("commit"), 1)
        ctx.set(plane.counters.i.commands, 1)
        await tick(ctx, plane, 5)
        ctx.set(plane.counters.i.commands, 0)
        assert ctx.get(registers.control.enable)
        ctx.set(registers.idle, not dead_bus)
        await write(ctx, axil, CONTROL.address("reset"), 1)
        await ctx.tick().repeat(3)
        assert not ctx.get(registers.control.enable)  # nothing is received meanwhile
        await soft_reset(ctx, axil)
        for block, index, register in kept:
            want = 1 if register.name == "scratch" else register.reset
            assert await read(ctx, axil, block.address(register.name, index)) == want, register.name
        status = QUEUE["status"].decode(await read(ctx, axil, QUEUE.address("status", 1)))
        assert status == {"state": QueueState.DISABLED, "idle": 1}
        assert await read(ctx, axil, CONTROL.address("status")) == 0
        assert ctx.get(plane.secret.key_current) == ctx.get(registers.secret.key) == 0
        assert await read(ctx, axil, TIME.address("ticks_low")) == 0
        number = [c.name for c in COUNTERS].index("commands")
        await write(ctx, axil, CONTROL.address("snapshot"), 1)
        while await read(ctx, axil, CONTROL.address("status")) & 8:
            pass
        assert await read(ctx, axil, COUNTER_BASE + 8 * number) == 0
        # And the device can be used again.
        ctx.set(registers.idle, 1)
        await write(ctx, axil, QUEUE.address("tx_size", 1), 0)
        await enable_queue(ctx, axil, 1)
        for part in ("rx_free", "tx"):
            assert await read(ctx, axil, QUEUE.address(f"{part}_size", 1)) == 4
        assert QUEUE["status"].decode(await read(ctx, axil, QUEUE.address("status", 1)))["state"] == 1

    bench(testbench)


def test_refused_queue_is_counted():
    plane = Plane()
    errors = 0

    async def testbench(ctx):
        axil = plane.registers.axil
        await write(ctx, axil, QUEUE.address("control", 3), 1)
        assert QUEUE["status"].decode(await read(ctx, axil, QUEUE.address("status", 3)))["state"] == 2

    async def count(ctx):
        nonlocal errors
        for _ in range(100):
            await ctx.tick()
            errors += ctx.get(plane.registers.counts.queue_errors)
        assert errors == 1

    run(plane, testbench, count)


@pytest.mark.parametrize("elsewhere", [QUEUE.address("tx_size", 0), COUNTER_BASE + 8, IDENT.address("magic")])
def test_enable_checks_its_own_queue(elsewhere):
    """Whatever was accessed before, and nothing after it, the check looks at the queue being enabled."""

    async def testbench(ctx, plane, axil):
        await enable_queue(ctx, axil, 1)  # queue 0 has no ring sizes
        await write(ctx, axil, QUEUE.address("control", 1), 0)
        while not await read(ctx, axil, QUEUE.address("status", 1)) & QUEUE["status"].encode(idle=1):
            pass
        await read(ctx, axil, elsewhere)
        await write(ctx, axil, QUEUE.address("control", 1), 1)
        await ctx.tick().repeat(20)
        for queue, state in ((0, QueueState.DISABLED), (1, QueueState.ENABLED)):
            status = await read(ctx, axil, QUEUE.address("status", queue))
            assert QUEUE["status"].decode(status)["state"] == state

    bench(testbench)


def test_blocks_fit_the_decoder():
    assert QUEUE.base == 0x8000 and QUEUE.stride * QUEUES_MAX <= 0x2000
    assert all(block.base + block.stride * block.count <= 0x400 for block in BLOCKS if block is not QUEUE)
    assert COUNTER_BASE == 0x1000 and PORT.count == PORTS_MAX


def test_flow_secret_is_set_once_and_cannot_be_read():
    async def testbench(ctx, plane, axil):
        flows = plane.registers.flows

        async def set_secret(words):
            for i, word in enumerate(words):
                await write(ctx, axil, FLOWS.address(f"word{i}"), word)
            await write(ctx, axil, FLOWS.address("commit"), 1)
            await ctx.tick().repeat(3)

        assert not ctx.get(flows.key_valid)
        await set_secret((1, 2, 3, 4))
        key = 4 << 96 | 3 << 64 | 2 << 32 | 1
        assert ctx.get(flows.key) == key and ctx.get(flows.key_valid)
        assert await read(ctx, axil, FLOWS.address("status")) == 1
        await set_secret((5, 6, 7, 8))
        assert ctx.get(flows.key) == key
        for register in FLOWS.registers:
            value = await read(ctx, axil, FLOWS.address(register.name))
            assert register.name.startswith("word") is False or value == 0
        await soft_reset(ctx, axil)
        assert ctx.get(flows.key) == 0 and not ctx.get(flows.key_valid)

    bench(testbench)


def test_flows_are_shown():
    async def testbench(ctx, plane, axil):
        flows = plane.registers.flows
        record = int.from_bytes(bytes(range(36)), "little")
        ctx.set(flows.ready, 1)
        ctx.set(flows.held, 77)
        ctx.set(Value.cast(flows.found), record << 14 | 5 << 2 | 2)
        await write(ctx, axil, FLOWS.address("find"), 33)
        await ctx.tick().repeat(2)
        assert ctx.get(flows.find.index) == 33
        assert await read(ctx, axil, FLOWS.address("held")) == 77
        assert await read(ctx, axil, FLOWS.address("status")) == 2
        found = FLOWS["found"].decode(await read(ctx, axil, FLOWS.address("found")))
        assert found == {"index": 5, "found": 1, "busy": 0}
        got = b"".join(
            [(await read(ctx, axil, FLOWS.address(f"record{i}"))).to_bytes(4, "little") for i in range(9)]
        )
        assert got == bytes(range(36))
        for name in ("time_wait", "fin_wait_2", "linger", "max_rto", "window"):
            assert ctx.get(getattr(flows, name)) == FLOWS[name].reset
            await write(ctx, axil, FLOWS.address(name), 0x1234)
            await ctx.tick().repeat(2)
            assert ctx.get(getattr(flows, name)) == 0x1234

    bench(testbench)
