"""Commands: CLOSE is passed on and forgotten, FLOW_UPDATE waits for the teardown engine; order, statuses, counters."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import (
    CLOSE_COMMAND,
    COMMAND,
    FLOW_COMMAND,
    CommandOpcode,
    EventType,
    FlowFlag,
    Status,
)
from hw.config import NicConfig
from hw.dma.commands import Commands
from hw.dma.events import EventRequest
from hw.dma.tx import TxCommand
from hw.tcp.flow import FlowUpdate
from tests.hw.simulate import always, collect, feed, run, seeds, sometimes

CONFIG = NicConfig(flows=512)
UPDATE = {
    "opcode": CommandOpcode.FLOW_UPDATE, "flags": 0, "tag": 0xABCD, "flow": 300, "snd_end": 0x8899AABB,
    "ack": 0x11223344, "ts_recent": 0x55667788, "window": 0xFED,
}  # fmt: skip


def raw(octets: bytes, queue: int = 3, index: int = 9) -> int:
    command = int.from_bytes(octets, "little")
    return TxCommand.const({"queue": queue, "index": index, "command": command}).as_value().value


def wanted_update(fields: dict[str, int]) -> dict[str, int]:
    same = {name: fields[name] for name in ("snd_end", "ack", "ts_recent", "window")}
    flags = fields["flags"]
    return {**same, "index": fields["flow"], "fin": flags & 1, "abort": flags >> 1 & 1}


def fields_of(update: data.Const) -> dict[str, int]:
    return {name: update[name] for name, _ in update.shape()}


@pytest.mark.parametrize("flags", (0, FlowFlag.FIN, FlowFlag.ABORT, FlowFlag.FIN | FlowFlag.ABORT))
@pytest.mark.parametrize("status", (Status.OK, Status.NOT_FOUND))
def test_flow_update(flags, status):
    """What the engine gets, and that its answer is the event's status."""
    dut = Commands(CONFIG)
    fields = UPDATE | {"flags": flags}

    async def bench(ctx):
        ctx.set(Value.cast(dut.i.payload), raw(FLOW_COMMAND.pack(**fields)))
        ctx.set(dut.i.valid, 1)
        (value,) = await collect(ctx, dut.updates, 1)
        assert fields_of(data.Const(FlowUpdate(CONFIG), value)) == wanted_update(fields)
        for _ in range(20):
            assert not ctx.get(dut.events.valid) and not ctx.get(dut.updates.valid) and not ctx.get(dut.idle)
            await ctx.tick()
        await feed(ctx, dut.updated, [int(status)])
        (value,) = await collect(ctx, dut.events, 1)
        ctx.set(dut.i.valid, 0)
        request = data.Const(EventRequest, value)
        event = request.event
        assert (event.type, event.status, event.tag) == (EventType.COMMAND_DONE, status, 0xABCD)
        assert (request.queue, event.queue, event.index, event.value) == (3, 3, 9, 0)
        assert ctx.get(dut.idle)

    run(dut, bench)


@pytest.mark.parametrize(
    "octet, bit, status",
    [
        *((1, bit, Status.BAD_ARGUMENT) for bit in range(2, 8)),  # unknown flags
        *((octet, bit, Status.BAD_ARGUMENT) for octet in (2, 3) for bit in (0, 7)),
        (25, 4, Status.BAD_ARGUMENT), (40, 0, Status.BAD_ARGUMENT), (63, 7, Status.BAD_ARGUMENT),
        (9, 1, Status.NOT_FOUND),  # index 300 + 512: there is no such flow
        (11, 7, Status.NOT_FOUND),
    ],
)  # fmt: skip
def test_refused_updates_do_not_reach_the_engine(octet, bit, status):
    """`octet` and `bit` of the command as it lies in memory."""
    dut = Commands(CONFIG)
    octets = bytearray(FLOW_COMMAND.pack(**UPDATE))
    octets[octet] |= 1 << bit

    async def bench(ctx):
        ctx.set(Value.cast(dut.i.payload), raw(bytes(octets)))
        ctx.set(dut.i.valid, 1)
        (value,) = await collect(ctx, dut.events, 1)
        assert data.Const(EventRequest, value).event.status == status

    async def nothing(ctx):
        async for _, _, valid in ctx.tick().sample(dut.updates.valid):
            assert not valid

    run(dut, bench, background=[nothing])


def test_close_is_passed_on():
    """As it came, whatever is in it; it makes no event here, and the next command need not wait for its own."""
    rng = random.Random(1)
    dut = Commands(CONFIG)
    octets = bytes([CommandOpcode.CLOSE]) + rng.randbytes(CLOSE_COMMAND.size - 1)
    assert len(octets) == 64
    close, nop = raw(octets, 7, 4321), raw(COMMAND.pack(opcode=CommandOpcode.NOP, tag=5))

    async def bench(ctx):
        ctx.set(Value.cast(dut.i.payload), close)
        ctx.set(dut.i.valid, 1)
        await ctx.tick().until(dut.close.valid)
        for _ in range(10):
            assert ctx.get(dut.close.valid) and ctx.get(Value.cast(dut.close.payload)) == close
            assert not ctx.get(dut.i.ready) and not ctx.get(dut.events.valid) and not ctx.get(dut.idle)
            await ctx.tick()
        ctx.set(dut.close.ready, 1)
        assert ctx.get(dut.i.ready)
        await ctx.tick()
        ctx.set(dut.close.ready, 0)
        ctx.set(Value.cast(dut.i.payload), nop)
        (value,) = await collect(ctx, dut.events, 1)
        assert data.Const(EventRequest, value).event.tag == 5
        assert not ctx.get(dut.close.valid)

    run(dut, bench)


@pytest.mark.parametrize("seed", seeds(4))
def test_mixed(seed):
    """NOP, CLOSE and FLOW_UPDATE in a random order, with pauses: each reaches its place once, in order."""
    rng = random.Random(seed)
    dut = Commands(CONFIG)
    go = (lambda n: sometimes(seed * 9 + n, 0.5)) if seed else (lambda n: always)
    values, closes, updates, answers, events = [], [], [], [], []
    for index in range(60):
        kind, tag = rng.randrange(4), rng.getrandbits(32)
        if kind == 0:
            octets = CLOSE_COMMAND.pack(opcode=CommandOpcode.CLOSE, tag=tag, frames=rng.randrange(32))
            closes.append(raw(octets, index % 8, index))
        elif kind == 1:
            octets = COMMAND.pack(opcode=CommandOpcode.NOP, tag=tag)
            events.append((index, tag, Status.OK))
        else:
            fields = UPDATE | {"tag": tag, "flow": rng.randrange(1024), "flags": rng.randrange(4)}
            octets = FLOW_COMMAND.pack(**fields)
            status = Status.NOT_FOUND
            if fields["flow"] < CONFIG.flows:
                updates.append(wanted_update(fields))
                status = rng.choice((Status.OK, Status.NOT_FOUND))
                answers.append(int(status))
            events.append((index, tag, status))
        values.append(raw(octets, index % 8, index))
    counted = [0, 0]

    async def engine(ctx):
        for want, answer in zip(updates, answers, strict=True):
            (value,) = await collect(ctx, dut.updates, 1, go(1))
            assert fields_of(data.Const(FlowUpdate(CONFIG), value)) == want
            await ctx.tick().repeat(rng.randrange(1, 14))
            await feed(ctx, dut.updated, [answer])

    async def close(ctx):
        assert await collect(ctx, dut.close, len(closes), go(2)) == closes

    async def get(ctx):
        got = [data.Const(EventRequest, value) for value in await collect(ctx, dut.events, len(events), go(3))]
        assert [(one.event.index, one.event.tag, one.event.status) for one in got] == events
        assert all(one.queue == one.event.queue == one.event.index % 8 for one in got)

    async def count(ctx):
        async for _, _, good, bad in ctx.tick().sample(dut.counts.commands, dut.counts.command_errors):
            counted[0] += good
            counted[1] += bad

    async def put(ctx):
        await feed(ctx, dut.i, values, go(0))
        await ctx.tick().repeat(5)
        assert ctx.get(dut.idle) and not ctx.get(dut.events.valid)

    run(dut, put, engine, close, get, background=[count])
    # CLOSE counts itself.
    good = sum(status == Status.OK for *_, status in events)
    assert counted == [good, len(events) - good]
