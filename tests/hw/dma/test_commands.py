"""Commands against a stand-in listen table: statuses, events, counters, no effect when refused."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import (
    COMMAND,
    LISTEN_COMMAND,
    CommandOpcode,
    EventType,
    Status,
)
from hw.config import NicConfig
from hw.dma.commands import Commands
from hw.dma.events import EventRequest
from hw.dma.tx import TxCommand
from tests.hw.simulate import always, collect, converts, feed, run, seeds, sometimes

LISTEN = {
    "opcode": CommandOpcode.LISTEN, "address": 0x0100000A, "port": 80, "mss": 1460, "window": 65535, "wscale": 7,
}  # fmt: skip


def command(rng: random.Random) -> tuple[bytes, int, bool]:
    """(bytes, status or -1 for the table's, reaches the table)."""
    tag = rng.getrandbits(32)
    kind = rng.randrange(7)
    if kind == 0:
        return COMMAND.pack(opcode=CommandOpcode.NOP, tag=tag), Status.OK, False
    if kind == 1:
        dirty = bytearray(COMMAND.pack(opcode=CommandOpcode.NOP, tag=tag))
        dirty[rng.choice([1, 2, 3, 8, 40, 63])] |= 1 << rng.randrange(8)
        return bytes(dirty), Status.BAD_ARGUMENT, False
    if kind == 2:
        return COMMAND.pack(opcode=rng.randrange(max(CommandOpcode) + 1, 256), tag=tag, body=rng.getrandbits(448)), Status.BAD_OPCODE, False
    octets = bytearray(LISTEN_COMMAND.pack(**{**LISTEN, "opcode": rng.choice([1, 2, 3]), "tag": tag}))
    if kind == 3:
        octets[rng.choice([1, 2, 3, 33, 50, 63])] |= 1 << rng.randrange(8)
        return bytes(octets), Status.BAD_ARGUMENT, False
    return bytes(octets), -1, True


@pytest.mark.parametrize("seed", seeds(4))
def test_random_commands(seed: int) -> None:
    rng = random.Random(seed)
    dut = Commands(NicConfig())
    posted = [(rng.randrange(64), rng.randrange(65536), *command(rng)) for _ in range(80)]
    answers = [
        (rng.choice([Status.OK, Status.DUPLICATE, Status.TABLE_FULL, Status.NOT_FOUND]), rng.randrange(64))
        for *_, reaches in posted
        if reaches
    ]
    go = (lambda n: sometimes(seed * 9 + n, 0.5)) if seed else (lambda n: always)
    counted = [0, 0]

    async def put(ctx):
        values = [
            TxCommand.const({"queue": q, "index": i, "command": int.from_bytes(octets, "little")}).as_value().value
            for q, i, octets, *_ in posted
        ]
        await feed(ctx, dut.i, values, go(0))

    async def table(ctx):
        reaching = [octets for _, _, octets, _, reaches in posted if reaches]
        for (status, value), octets in zip(answers, reaching, strict=True):
            (got,) = await collect(ctx, dut.listen.command, 1, go(1))
            assert got.to_bytes(64, "little") == octets
            await ctx.tick().repeat(rng.randrange(1, 5))
            await feed(ctx, dut.listen.result, [value << 8 | status])

    async def get(ctx):
        events = await collect(ctx, dut.events, len(posted), go(2))
        left = iter(answers)
        for (queue, index, octets, status, reaches), raw in zip(posted, events, strict=True):
            got = data.Const(EventRequest, raw)
            value = 0
            if reaches:
                status, value = next(left)
            assert got.queue == got.event.queue == queue
            assert got.event.type == EventType.COMMAND_DONE
            assert (got.event.status, got.event.value, got.event.index) == (status, value, index)
            assert got.event.tag == COMMAND.unpack(octets)["tag"]
        await ctx.tick().repeat(4)
        assert ctx.get(dut.idle)
        good = sum(data.Const(EventRequest, e).event.status == Status.OK for e in events)
        assert counted == [good, len(posted) - good]

    async def count(ctx):
        async for _, _, good, bad in ctx.tick().sample(dut.counts.commands, dut.counts.command_errors):
            counted[0] += good
            counted[1] += bad

    run(dut, put, table, get, background=[count])


def test_the_offer_to_the_table_stays() -> None:
    dut = Commands(NicConfig())
    octets = LISTEN_COMMAND.pack(**LISTEN)
    value = TxCommand.const({"queue": 3, "index": 9, "command": int.from_bytes(octets, "little")}).as_value().value

    async def bench(ctx):
        ctx.set(Value.cast(dut.i.payload), value)
        ctx.set(dut.i.valid, 1)
        await ctx.tick().until(dut.listen.command.valid)
        for _ in range(20):
            assert ctx.get(dut.listen.command.valid) and not ctx.get(dut.idle)
            assert ctx.get(Value.cast(dut.listen.command.payload)).to_bytes(64, "little") == octets
            await ctx.tick()

    run(dut, bench)


def test_converts() -> None:
    converts(Commands(NicConfig()))
