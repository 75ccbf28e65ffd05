# amaranth: UnusedElaboratable=no
"""ListenTable: commands and their results, lookups against the model while commands run."""

import copy
import random

import pytest
from amaranth import ResetInserter, Signal, Value

from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, ListenFlag, Status
from hw.config import NicConfig
from hw.tcp.listen import ListenKey, ListenTable
from tests.hw.simulate import always, run, sometimes
from tests.hw.tcp.model import MAPPED, Entry, ListenModel, mapped

LISTEN, UNLISTEN, UPDATE = CommandOpcode.LISTEN, CommandOpcode.UNLISTEN, CommandOpcode.LISTEN_UPDATE
V6, ANY, DEFER, ECN, PAUSED, SPREAD = ListenFlag
HOST4 = 0x0A000001
HOST6 = 0x20010DB8_00000000_00000000_00000001


def to_int(opcode, *, address=0, reserved=0, **values):
    """A command as an integer; defaults as in the model."""
    fields = {"mss": 1460, "window": 65535, "wscale": 7} | values
    fields["address"] = int.from_bytes(address.to_bytes(16, "big"), "little")
    at, _ = LISTEN_COMMAND.positions["_zero1"]
    return LISTEN_COMMAND.to_int(opcode=opcode, tag=99, **fields) | reserved << at


async def command(ctx, link, opcode, **values):
    """Run one command; status and value."""
    ctx.set(Value.cast(link.command.payload), to_int(opcode, **values))
    ctx.set(link.command.valid, 1)
    await ctx.tick().until(link.command.ready)
    ctx.set(link.command.valid, 0)
    ctx.set(link.result.ready, 1)
    status, value = (
        await ctx.tick().sample(link.result.p.status, link.result.p.value).until(link.result.valid)
    )
    ctx.set(link.result.ready, 0)
    return status, value


async def look_up(ctx, dut, address, port, ipv6):
    """The listener as the model's (index, Entry), key unknown, or None."""
    ctx.set(dut.key, {"address": address, "port": port, "ipv6": ipv6})
    await ctx.tick().repeat(dut.latency)
    return decode(ctx.get(dut.listener))


def decode(got):
    if not got.hit:
        return None
    return (
        got.index, got.queue, got.mss, got.window, got.wscale, got.defer_accept, got.ecn, got.paused, got.spread,
    )  # fmt: skip


def expected(found: tuple[int, Entry] | None):
    if found is None:
        return None
    index, e = found
    return (index, e.queue, e.mss, e.window, e.wscale, int(e.defer_accept), int(e.ecn), int(e.paused), int(e.spread))


SCRIPT = [
    # command, expected status
    ((UNLISTEN, {"port": 80, "address": HOST4}), Status.NOT_FOUND),
    ((UPDATE, {"port": 80, "address": HOST4}), Status.NOT_FOUND),
    ((LISTEN, {"port": 80, "address": HOST4, "queue": 3, "wscale": 14, "mss": 64}), Status.OK),
    ((LISTEN, {"port": 80, "address": HOST4}), Status.DUPLICATE),
    ((LISTEN, {"port": 80, "address": MAPPED | HOST4}), Status.DUPLICATE),
    ((LISTEN, {"port": 80, "flags": ANY, "queue": 1}), Status.OK),
    ((LISTEN, {"port": 80, "flags": ANY | DEFER}), Status.DUPLICATE),
    ((LISTEN, {"port": 80, "flags": ANY | V6, "mss": 65535}), Status.OK),
    ((LISTEN, {"port": 0}), Status.BAD_ARGUMENT),
    ((LISTEN, {"port": 81, "queue": 16}), Status.BAD_ARGUMENT),
    ((LISTEN, {"port": 81, "mss": 63}), Status.BAD_ARGUMENT),
    ((LISTEN, {"port": 81, "wscale": 15}), Status.BAD_ARGUMENT),
    ((LISTEN, {"port": 81, "flags": 64}), Status.BAD_ARGUMENT),
    ((LISTEN, {"port": 81, "reserved": 1}), Status.BAD_ARGUMENT),
    ((LISTEN, {"port": 81, "reserved": 1 << 247}), Status.BAD_ARGUMENT),
    ((LISTEN, {"port": 81, "flags": ANY, "address": HOST4}), Status.BAD_ARGUMENT),
    ((LISTEN, {"port": 81, "flags": ANY | V6, "address": 1 << 127}), Status.BAD_ARGUMENT),
    ((LISTEN, {"port": 81, "address": HOST6}), Status.BAD_ARGUMENT),
    ((CommandOpcode.NOP, {"port": 81}), Status.BAD_OPCODE),
    ((7, {"port": 81}), Status.BAD_OPCODE),
    ((LISTEN, {"port": 80, "address": HOST6, "flags": V6 | ECN | PAUSED}), Status.OK),
    ((LISTEN, {"port": 81, "address": HOST4}), Status.TABLE_FULL),
    ((UPDATE, {"port": 80, "address": HOST4, "flags": DEFER, "queue": 15, "wscale": 0}), Status.OK),
    ((UPDATE, {"port": 80, "address": HOST4, "queue": 16}), Status.BAD_ARGUMENT),
    # Only the key of UNLISTEN is looked at.
    ((UNLISTEN, {"port": 80, "flags": ANY | 128 | PAUSED, "queue": 255, "mss": 0, "reserved": 1}), Status.OK),
    ((UNLISTEN, {"port": 80, "flags": ANY}), Status.NOT_FOUND),
    ((LISTEN, {"port": 81, "address": HOST4}), Status.OK),
]


def test_script():
    config = NicConfig(listeners=4)
    dut, model = ListenTable(config), ListenModel(4, config.queues)
    ends = [(MAPPED | HOST4, 0), (MAPPED | HOST4 + 1, 0), (HOST6, 1), (HOST6 + 1, 1), (MAPPED | HOST4, 1)]
    keys = [(address, port, ipv6) for port in (80, 81) for address, ipv6 in ends]

    async def bench(ctx):
        ctx.set(dut.enable, 1)
        for (opcode, values), status in SCRIPT:
            got = await command(ctx, dut.port, opcode, **values)
            assert got == model.command(opcode, **values), (opcode, values)
            assert got[0] == status, (opcode, values)
            assert not ctx.get(dut.busy)
            for key in keys:
                assert await look_up(ctx, dut, *key) == expected(model.lookup(*key)), key

    run(dut, bench)


def test_exact_beats_any_at_every_index():
    """Whatever order they were made in."""
    dut = ListenTable(NicConfig(listeners=2))

    async def bench(ctx):
        ctx.set(dut.enable, 1)
        for first in (0, 1):
            for number in (first, 1 - first):
                values = {"address": HOST4} if number else {"flags": ANY}
                assert (await command(ctx, dut.port, LISTEN, port=5, queue=number, **values))[0] == Status.OK
            got = await look_up(ctx, dut, MAPPED | HOST4, 5, 0)
            assert got[1] == 1
            assert (await look_up(ctx, dut, mapped("10.0.0.2"), 5, 0))[1] == 0
            for values in ({"address": HOST4}, {"flags": ANY}):
                assert (await command(ctx, dut.port, UNLISTEN, port=5, **values))[0] == Status.OK
            assert await look_up(ctx, dut, MAPPED | HOST4, 5, 0) is None

    run(dut, bench)


@pytest.mark.parametrize("entries, stalls, seed", ((1, False, 1), (4, False, 2), (1, True, 3), (8, True, 4)))
def test_lookups_while_commands_run(entries, stalls, seed):
    """Every lookup sees the table as it was before or after a command, never between; after the
    result only as it is after."""
    config = NicConfig(listeners=entries)
    dut, model = ListenTable(config), ListenModel(entries, config.queues)
    rng = random.Random(seed)
    go = sometimes(seed, 0.2) if stalls else always
    # states[n]: after n commands. `given`: results seen.
    states, given, finished = [copy.deepcopy(model)], 0, False
    addresses = [(MAPPED | HOST4, 0), (MAPPED | HOST4 + 1, 0), (HOST6, 1)]

    async def commands(ctx):
        nonlocal given, finished
        for _ in range(60):
            opcode = rng.choice((LISTEN, LISTEN, UNLISTEN, UPDATE))
            address, v6 = rng.choice(addresses)
            flags = V6 * v6
            if rng.random() < 0.3:
                address, flags = 0, flags | ANY
            values = {
                "address": address & 0xFFFFFFFF if not v6 else address,
                "flags": int(flags) | rng.choice((0, DEFER, ECN, PAUSED, SPREAD)),
                "port": rng.choice((80, 81)),
                "queue": rng.randrange(16),
                "mss": rng.randrange(64, 65536),
                "window": rng.randrange(65536),
                "wscale": rng.randrange(15),
            }
            want = model.command(opcode, **values)
            states.append(copy.deepcopy(model))
            assert await command(ctx, dut.port, opcode, **values) == want
            given += 1
        finished = True

    async def lookups(ctx):
        flying: list = []
        hits = 0
        while not finished:
            if len(flying) == dut.latency:
                key, since = flying.pop(0)
                got = decode(ctx.get(dut.listener))
                assert got in [expected(state.lookup(*key)) for state in states[since:]]
                hits += got is not None
            address, v6 = rng.choice(addresses)
            key = (address, rng.choice((80, 81)), v6)
            ctx.set(dut.key, dict(zip(("address", "port", "ipv6"), key, strict=True)))
            flying.append((key, given))
            # A stalled pipeline keeps its contents and takes the key later.
            while not go():
                ctx.set(dut.enable, 0)
                await ctx.tick()
            ctx.set(dut.enable, 1)
            await ctx.tick()
        assert hits > 10

    run(dut, commands, lookups, cycles=40_000)


@pytest.mark.slow
def test_every_entry_of_a_large_table():
    config = NicConfig(listeners=32)  # three groups of the match memory
    dut = ListenTable(config)

    async def bench(ctx):
        ctx.set(dut.enable, 1)
        for index in range(config.listeners):
            got = await command(ctx, dut.port, LISTEN, port=1000 + index, address=HOST4, mss=100 + index)
            assert got == (Status.OK, index)
        assert (await command(ctx, dut.port, LISTEN, port=1, address=HOST4)) == (Status.TABLE_FULL, 0)
        # One lookup per cycle.
        for step in range(config.listeners + dut.latency):
            if step >= dut.latency:
                index = step - dut.latency
                assert decode(ctx.get(dut.listener))[:3] == (index, 0, 100 + index)
            ctx.set(dut.key, {"address": MAPPED | HOST4, "port": 1000 + step, "ipv6": 0})
            await ctx.tick()

    run(dut, bench, cycles=40_000)


def test_key_bits():
    """A difference in any one bit of the key is a miss."""
    dut = ListenTable(NicConfig(listeners=1))

    async def bench(ctx):
        ctx.set(dut.enable, 1)
        await command(ctx, dut.port, LISTEN, port=80, address=HOST6, flags=V6)
        key = ListenKey.const({"address": HOST6, "port": 80, "ipv6": 1}).as_value().value
        hits = []
        for step in range(146 + dut.latency):
            ctx.set(Value.cast(dut.key), key ^ (1 << step - 1 if 0 < step < 146 else 0))
            hits.append(ctx.get(dut.listener.hit))
            await ctx.tick()
        assert hits[dut.latency :] == [1] + [0] * 145

    run(dut, bench)


def test_reset_empties_the_table():
    """What the memories still hold from before matters to nobody."""
    dut, reset = ListenTable(NicConfig(listeners=2)), Signal()

    async def bench(ctx):
        ctx.set(dut.enable, 1)
        await command(ctx, dut.port, LISTEN, port=80, flags=ANY)
        await command(ctx, dut.port, LISTEN, port=80, address=HOST4, queue=1)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        assert await look_up(ctx, dut, MAPPED | HOST4, 80, 0) is None
        assert await command(ctx, dut.port, LISTEN, port=80, address=HOST4 + 1, queue=2) == (Status.OK, 0)
        assert await look_up(ctx, dut, MAPPED | HOST4, 80, 0) is None
        assert (await look_up(ctx, dut, MAPPED | HOST4 + 1, 80, 0))[1] == 2
        assert await command(ctx, dut.port, LISTEN, port=80, flags=ANY) == (Status.OK, 1)

    run(ResetInserter(reset)(dut), bench)
