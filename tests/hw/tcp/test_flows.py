"""Flows: its parts together, from a CLOSE command to the end of the flow, with host memory beside it."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import FINAL_FRAME, CloseFlag, EventType, FlowState, Status
from acceltcp.abi.wire import TCPFlag
from boards.alveo_u50 import BOARD
from hw.config import NicConfig
from hw.packet.meta import ReplyKind
from hw.table.lookup import ConnectionLookup
from hw.table.records import ConnectionKey, Kind, Lookup
from hw.tcp.close import COMMANDS
from hw.tcp.flow import FlowPacket
from hw.tcp.flows import Flows
from hw.tcp.setup import Setup
from tests.hw.dma.memory import Memory, Traffic, serve_reads
from tests.hw.simulate import Shared, collect, converts, feed
from tests.hw.tcp.test_close import MAPPED, QUEUE, SECRET, TABLE, Hand

ACK, FIN, RST = TCPFlag.ACK, TCPFlag.FIN, TCPFlag.RST
TIMES = {"time_wait": 30, "fin_wait_2": 60, "linger": 20, "max_rto": 4000}

CONFIGS = {pipelined: NicConfig(flows=512, splices=0, pipelined_hash=pipelined) for pipelined in (False, True)}
SHARED = {pipelined: Shared(partial(Flows, config)) for pipelined, config in CONFIGS.items()}


def hand(number: int, payloads: tuple[int, ...] = (700, 30), **fields: int) -> Hand:
    """A connection of its own; its table and frames have addresses of their own."""
    fields = {"tag": number, "table": TABLE + 256 * number, "remote_port": 1000 + number, **fields}
    made = Hand(list(payloads), **fields)
    for k, entry in enumerate(made.entries):
        entry["address"] = (number << 20) + 4096 * k + 8
    return made


def frames_of(one: Hand) -> list[tuple[int, int]]:
    """(address, last) of all of its frames."""
    return [(entry["address"], int(entry is one.entries[-1])) for entry in one.entries]


class Bench:
    """A Flows with its host memory and takers of everything. `log` says what came out, in order:

    ("done", tag, status, index), ("frame", index, address, last), ("end", index) for a frame's end,
    ("over", status, index) for FLOW_DONE, ("reply", kind, seq, ack).

    frames: may a frame be taken now? frame_time: cycles until it ends; frame_status: how.
    """

    def __init__(self, *, pipelined: bool = False, latency: int = 30) -> None:
        self.config, self.shared = CONFIGS[pipelined], SHARED[pipelined]
        self.dut = self.shared.dut
        self.memory, self.traffic, self.latency = Memory(), Traffic(), latency
        self.log: list[tuple[Any, ...]] = []
        self.frames: Callable[[], bool] = lambda: True
        self.frame_time, self.frame_status = 10, Status.OK
        self.key_valid = 1
        self.counted: Counter[str] = Counter()
        self._ending: list[tuple[int, int, int]] = []

    def named(self, kind: str) -> list[tuple[Any, ...]]:
        return [entry[1:] for entry in self.log if entry[0] == kind]

    # In

    async def close(self, ctx: Any, *hands: Hand) -> None:
        """Give commands, one by one as they are taken."""
        for one in hands:
            table = b"".join(FINAL_FRAME.pack(**entry) for entry in one.entries)
            self.memory.write(one.fields["table"], table)
        await feed(ctx, self.dut.close, [one.raw() for one in hands])

    async def find(self, ctx: Any, one: Hand) -> Any:
        """Look its connection up as for a received packet: its index, or None."""
        names = ("remote", "local")
        key = {n: one.fields[n] | (0 if one.ipv6 else MAPPED) for n in names}
        key |= {n: one.fields[n] for n in ("remote_port", "local_port")} | {"ipv6": one.ipv6}
        await feed(ctx, self.dut.connection, [ConnectionKey.const(key).as_value().value])
        (value,) = await collect(ctx, self.dut.lookup, 1)
        found = data.Const(Lookup(self.config.table), value)
        assert not found.hit or found.kind == Kind.TEARDOWN
        return found.index if found.hit else None

    async def segment(self, ctx: Any, one: Hand, flags: int, *, ack: int) -> None:
        """A received segment without data, at rcv_nxt, on its way through the table."""
        index = await self.find(ctx, one)
        assert index is not None
        values = {
            "index": index,
            "segment": {"flags": flags, "window": 100, "timestamps": one.timestamps},
            "reply": {"seq": ack - 1, "ack": one.fields["rcv_nxt"] + 1, "tsecr": one.fields["ts_recent"]},
        }
        await feed(ctx, self.dut.packets, [FlowPacket(self.config).const(values).as_value().value])

    async def until(self, ctx: Any, condition: Callable[[], Any], cycles: int = 3000) -> None:
        for _ in range(cycles):
            if condition():
                return
            await ctx.tick()
        raise AssertionError(f"not after {cycles} cycles: {self.log}")

    async def told(self, ctx: Any, kind: str, count: int = 1) -> list[tuple[Any, ...]]:
        """Wait for so many of a kind in all."""
        await self.until(ctx, lambda: len(self.named(kind)) >= count)
        assert len(self.named(kind)) == count
        return self.named(kind)

    async def rest(self, ctx: Any) -> None:
        """Until nothing more happens by itself."""
        ctx.set(self.dut.tick, 0)
        await self.until(ctx, lambda: not ctx.get(self.dut.busy))

    # Out

    async def _take(self, ctx: Any, stream: Any, note: Callable[[Any], None], go: Callable[[], bool]) -> None:
        payload, shape = Value.cast(stream.payload), stream.p.shape()
        while True:
            ready = go()
            ctx.set(stream.ready, ready)
            _, _, valid, value = await ctx.tick().sample(stream.valid, payload)
            if valid and ready:
                note(data.Const(shape, value))

    def _note_done(self, request: Any) -> None:
        event = request.event
        assert event.type == EventType.COMMAND_DONE and request.queue == event.queue == QUEUE
        self.log.append(("done", event.tag, event.status, event.value))

    def _note_over(self, request: Any) -> None:
        event = request.event
        assert event.type == EventType.FLOW_DONE and request.queue == event.queue == QUEUE
        self.log.append(("over", event.status, event.value))

    def _note_frame(self, frame: Any) -> None:
        self.log.append(("frame", frame.index, frame.address, frame.last))
        self._ending.append((self.traffic.cycle + self.frame_time, frame.index, frame.last))

    def _note_reply(self, reply: Any) -> None:
        self.log.append(("reply", reply.kind, reply.seq, reply.ack))

    async def _end_frames(self, ctx: Any) -> None:
        stream = self.dut.frames_done
        while True:
            while not self._ending or self._ending[0][0] > self.traffic.cycle:
                await ctx.tick()
            _, index, last = self._ending.pop(0)
            values = {"index": index, "last": last, "status": self.frame_status}
            await feed(ctx, stream, [stream.p.shape().const(values).as_value().value])
            self.log.append(("end", index))

    async def _count(self, ctx: Any) -> None:
        shape = self.dut.counts.shape()
        async for _, _, value in ctx.tick().sample(Value.cast(self.dut.counts)):
            if value:
                counts = data.Const(shape, value)
                self.counted += Counter({name: counts[name] for name in shape.members})

    def run(self, scenario: Any, *beside: Any, ready: bool = True, cycles: int = 20_000) -> Bench:
        dut = self.dut

        async def bench(ctx: Any) -> None:
            ctx.set(dut.port.key, int.from_bytes(SECRET, "little"))
            ctx.set(dut.port.key_valid, self.key_valid)
            for name, value in TIMES.items():
                ctx.set(getattr(dut.port, name), value)
            if ready:
                await self.until(ctx, lambda: ctx.get(dut.port.ready))
                await self.rest(ctx)
            await scenario(ctx)

        takers = [
            (dut.events[0], self._note_done, lambda: True),
            (dut.events[1], self._note_over, lambda: True),
            (dut.replies, self._note_reply, lambda: True),
            (dut.frames, self._note_frame, lambda: self.frames()),
        ]
        bus = {"port": dut.read, "memory": self.memory, "latency": self.latency, "traffic": self.traffic}
        self.shared.run(
            bench,
            cycles=cycles,
            background=[
                partial(serve_reads, **bus),
                *(partial(self._take, stream=s, note=note, go=go) for s, note, go in takers),
                self._end_frames,
                self._count,
                *beside,
            ],
        )
        return self


@pytest.mark.parametrize("pipelined", (False, True))
def test_a_whole_close(pipelined):
    """Command, table, event, frames; a segment that ends it; FLOW_DONE behind its frames' end; deletion."""
    bench = Bench(pipelined=pipelined)
    bench.frame_time = 400
    dut = bench.dut
    one, other = hand(1, (1000, 500, 0), flags=CloseFlag.TIMESTAMPS), hand(2)

    async def scenario(ctx):
        assert await bench.find(ctx, one) is None
        await bench.close(ctx, one)
        assert ctx.get(dut.closing) and not ctx.get(dut.idle)
        ((tag, status, index),) = await bench.told(ctx, "done")
        assert (tag, status) == (1, Status.OK) and not ctx.get(dut.closing)
        assert ctx.get(dut.port.held) == 1
        await bench.told(ctx, "frame", 3)
        # Both readers have had the table.
        assert [(at, beats) for _, at, beats in bench.traffic.bursts] == [(one.fields["table"], 1)] * 2
        assert await bench.find(ctx, one) == index and await bench.find(ctx, other) is None
        ctx.set(dut.port.find, {"start": 1, "index": 0})
        await ctx.tick()
        ctx.set(dut.port.find, {"start": 0, "index": 0})
        await ctx.tick()
        await bench.until(ctx, lambda: not ctx.get(dut.port.found.busy))
        found = ctx.get(dut.port.found)
        assert (found.found, found.index, found.record.state) == (1, index, FlowState.FIN_WAIT_1)
        assert (found.record.table, found.record.sending) == (one.fields["table"], 1)

        await bench.segment(ctx, one, ACK | FIN, ack=one.snd_end)
        await bench.told(ctx, "over")
        rcv_nxt = one.fields["rcv_nxt"]
        assert bench.log == [
            ("done", 1, Status.OK, index),
            *(("frame", index, *frame) for frame in frames_of(one)),
            ("reply", ReplyKind.ACK, one.snd_end, rcv_nxt + 1),
            *[("end", index)] * 3,
            ("over", Status.OK, index),
        ]
        assert await bench.find(ctx, one) == index, "TIME_WAIT"
        ctx.set(dut.tick, 1)
        await bench.until(ctx, lambda: ctx.get(dut.port.held) == 0)
        await bench.rest(ctx)
        assert await bench.find(ctx, one) is None

    bench.run(scenario)
    assert bench.counted == Counter(commands=1, flow_opened=1, flow_packets=1, flow_acks=1, flow_closed=1)


def test_the_same_connection_again():
    """Once the table has let go of it, not before; a refused command costs no index."""
    bench = Bench()
    dut = bench.dut
    one = hand(1)

    async def scenario(ctx):
        await bench.close(ctx, one, one)
        first, second = await bench.told(ctx, "done", 2)
        assert first[:2] == (1, Status.OK) and second == (1, Status.DUPLICATE, 0)
        await bench.segment(ctx, one, RST, ack=0)
        assert await bench.told(ctx, "over") == [(Status.RESET, first[2])]
        ctx.set(dut.tick, 1)
        await bench.until(ctx, lambda: ctx.get(dut.port.held) == 0)
        await bench.rest(ctx)
        await bench.close(ctx, one)
        third = (await bench.told(ctx, "done", 3))[2]
        assert third[:2] == (1, Status.OK) and await bench.find(ctx, one) == third[2]
        assert ctx.get(dut.port.held) == 1

    bench.run(scenario)
    assert bench.counted == Counter(commands=2, command_errors=1, flow_opened=2, flow_packets=1, flow_reset=1)


def test_time_sends_again_and_updates_end():
    """The timer's job sends the first frame; FLOW_UPDATE ends the flow, and finds it no more."""
    bench = Bench()
    dut = bench.dut
    one = hand(1, (100, 200), sent=2, rto=10)

    async def update(ctx, index):
        fields = {"index": index, "snd_end": one.snd_end, "abort": 1}
        await feed(ctx, dut.updates, [dut.updates.p.shape().const(fields).as_value().value])
        return await collect(ctx, dut.updated, 1)

    async def scenario(ctx):
        await bench.close(ctx, one)
        ((_, _, index),) = await bench.told(ctx, "done")
        await bench.rest(ctx)
        assert not bench.named("frame")
        ctx.set(dut.tick, 1)
        await bench.told(ctx, "frame")
        ctx.set(dut.tick, 0)
        assert bench.named("frame") == [(index, one.entries[0]["address"], 1)]
        assert await update(ctx, index) == [Status.OK]
        assert await bench.told(ctx, "over") == [(Status.ABORTED, index)]
        assert bench.log[-2:] == [("end", index), ("over", Status.ABORTED, index)]
        assert await update(ctx, index) == [Status.NOT_FOUND]
        await bench.rest(ctx)

    bench.run(scenario)
    assert bench.counted == Counter(commands=1, flow_opened=1, flow_retransmissions=1, flow_aborted=1)


def test_what_cannot_be_read():
    """A table: the command is refused. A frame: the flow ends."""
    bench = Bench()
    bench.frame_status = Status.BAD_ADDRESS
    bad, good = hand(1), hand(2)
    bench.memory.errors = [range(bad.fields["table"], bad.fields["table"] + 64)]

    async def scenario(ctx):
        await bench.close(ctx, bad, good)
        refused, (tag, status, index) = await bench.told(ctx, "done", 2)
        assert refused == (1, Status.BAD_ADDRESS, 0) and (tag, status) == (2, Status.OK)
        assert await bench.told(ctx, "over") == [(Status.BAD_ADDRESS, index)]
        assert bench.named("frame") == [(index, *frame) for frame in frames_of(good)]

    bench.run(scenario)
    assert bench.counted == Counter(commands=1, command_errors=1, flow_opened=1, flow_faults=1)


def test_no_secret():
    """Without a secret, and while the tables are being cleared; nothing is left of it."""
    bench = Bench()
    bench.key_valid = 0
    dut = bench.dut
    one = hand(1)

    async def scenario(ctx):
        ctx.set(dut.port.key_valid, 1)
        await bench.close(ctx, one)
        await bench.told(ctx, "done")
        assert not ctx.get(dut.port.ready)
        ctx.set(dut.port.key_valid, 0)
        await bench.until(ctx, lambda: ctx.get(dut.port.ready))
        await bench.rest(ctx)
        await bench.close(ctx, one)
        assert await bench.told(ctx, "done", 2) == [(1, Status.NO_SECRET, 0)] * 2
        await bench.rest(ctx)
        assert ctx.get(dut.idle) and ctx.get(dut.port.held) == 0 and not bench.named("frame")
        assert await bench.find(ctx, one) is None
        ctx.set(dut.port.key_valid, 1)
        await bench.close(ctx, one)
        assert (await bench.told(ctx, "done", 3))[2][1] == Status.OK
        await bench.rest(ctx)

    bench.run(scenario, ready=False)
    assert bench.counted == Counter(commands=1, command_errors=2, flow_opened=1)


async def watch_room(ctx, dut, rooms):
    """`close_room` says how many commands are taken without waiting; it shrinks only when one is taken."""
    before, taken = COMMANDS, 0
    signals = (dut.close_room, dut.close.valid, dut.close.ready)
    async for _, _, room, valid, ready in ctx.tick().sample(*signals):
        assert room <= COMMANDS and room >= before - taken, (room, before, taken)
        assert ready or not valid or not room
        before, taken = room, valid and ready
        assert not (taken and not room), "taken without room"
        rooms.append(room)


def test_commands_while_nobody_takes_frames():
    """Forty in a row: `close_room` falls to 0 and no further, none is lost, and once frames flow all end."""
    bench = Bench(latency=100)
    dut = bench.dut
    hands = [hand(k, (50 + k, 0)) for k in range(40)]
    rooms: list[int] = []
    state = {"begin": False, "open": False, "given": 0}
    bench.frames = lambda: state["open"]

    async def give(ctx):
        while not state["begin"]:
            await ctx.tick()
        for one in hands:
            await bench.close(ctx, one)
            state["given"] += 1

    async def scenario(ctx):
        state["begin"] = True
        await ctx.tick().repeat(1500)
        assert ctx.get(dut.close_room) == 0 and ctx.get(dut.close.valid) and not ctx.get(dut.close.ready)
        assert COMMANDS <= state["given"] < 40 and not bench.named("frame")
        assert ctx.get(dut.closing) and not ctx.get(dut.idle)
        state["open"] = True
        done = await bench.told(ctx, "done", 40)
        await bench.told(ctx, "frame", 80)
        await bench.rest(ctx)
        assert [(tag, status) for tag, status, _ in done] == [(k, Status.OK) for k in range(40)]
        indices = [index for *_, index in done]
        assert len(set(indices)) == 40
        wanted = [(i, *f) for one, i in zip(hands, indices, strict=True) for f in frames_of(one)]
        assert bench.named("frame") == wanted
        assert ctx.get(dut.close_room) == COMMANDS and not ctx.get(dut.closing) and ctx.get(dut.idle)
        for one in hands:
            await bench.segment(ctx, one, RST, ack=0)
        assert await bench.told(ctx, "over", 40) == [(Status.RESET, index) for index in indices]

    bench.run(scenario, give, partial(watch_room, dut=dut, rooms=rooms))
    assert min(rooms) == 0 and max(rooms) == COMMANDS


async def settle(ctx, bench, accept):
    """`drain` for as long as a command is in work, and frames taken meanwhile; until it is idle."""
    dut = bench.dut
    for _ in range(4000):
        accept["frames"] = ctx.get(dut.closing)
        ctx.set(dut.drain, accept["frames"])
        if ctx.get(dut.idle):
            break
        await ctx.tick()
    assert ctx.get(dut.idle) and not ctx.get(dut.closing)


async def check_quiet(ctx, bench, cycles):
    """Idle for good: nothing on the bus, no event, no frame."""
    dut = bench.dut
    before = len(bench.traffic.bursts), len(bench.named("done")), len(bench.named("over"))
    for _ in range(cycles):
        assert ctx.get(dut.idle) and not ctx.get(dut.read.request.valid) and not bench.traffic.outstanding
        assert not any(ctx.get(events.valid) for events in dut.events)
        await ctx.tick()
    assert (len(bench.traffic.bursts), len(bench.named("done")), len(bench.named("over"))) == before


def test_hold_with_commands_behind_frames():
    """A command waits behind frames that nobody takes: `drain` lets it end. What is held comes afterwards."""
    bench = Bench()
    dut = bench.dut
    hands = [hand(k) for k in range(30)]
    accept = {"frames": False}
    bench.frames = lambda: accept["frames"]

    async def scenario(ctx):
        await bench.close(ctx, *hands)
        await ctx.tick().repeat(500)
        assert ctx.get(dut.closing) and 0 < len(bench.named("done")) < 30
        ctx.set(dut.hold, 1)
        for _ in range(200):
            await ctx.tick()
            assert ctx.get(dut.closing) and not ctx.get(dut.idle)
        await settle(ctx, bench, accept)
        assert len(bench.named("done")) == 30
        await check_quiet(ctx, bench, 200)
        # Segments are still understood; what is to be told of them waits.
        index = bench.named("done")[0][2]
        await bench.segment(ctx, hands[0], RST, ack=0)
        await check_quiet(ctx, bench, 200)
        ctx.set(dut.hold, 0)
        accept["frames"] = True
        await bench.rest(ctx)
        assert bench.named("over") == [(Status.RESET, index)]
        indices = [index for *_, index in bench.named("done")]
        wanted = [(i, *f) for one, i in zip(hands, indices, strict=True) for f in frames_of(one)]
        assert bench.named("frame") == wanted

    bench.run(scenario)


@pytest.mark.parametrize("part", range(2))
def test_hold_at_any_time(part):
    """A few cycles into a CLOSE: it ends, `idle` comes and stays; its frames leave now or behind the hold."""
    bench = Bench()
    dut = bench.dut
    accept = {"frames": True}
    bench.frames = lambda: accept["frames"]

    async def scenario(ctx):
        for number, wait in enumerate(range(1 + 6 * part, 100, 12)):
            one = hand(number, (20, 30, 40))
            await bench.close(ctx, one)
            await ctx.tick().repeat(wait)
            ctx.set(dut.hold, 1)
            await ctx.tick().repeat(2)
            await settle(ctx, bench, accept)
            *_, (tag, status, index) = await bench.told(ctx, "done", number + 1)
            assert (tag, status) == (number, Status.OK), wait
            await check_quiet(ctx, bench, 40)
            ctx.set(dut.drain, 0)
            ctx.set(dut.hold, 0)
            accept["frames"] = True
            await bench.told(ctx, "frame", 3 * (number + 1))
            assert bench.named("frame")[-3:] == [(index, *frame) for frame in frames_of(one)], wait
            await bench.rest(ctx)

    bench.run(scenario)


def test_latency_of_a_look_up():
    """A result is there when the setup engine needs it: for the card, and for what is the default."""
    for config in (BOARD.config, NicConfig()):
        assert config.pipelined_hash
        assert ConnectionLookup(config).latency <= Setup(config).lookup_latency_max


@pytest.mark.slow
def test_converts():
    converts(Flows(NicConfig(flows=512, pipelined_hash=False)))
