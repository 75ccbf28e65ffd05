"""A running `Teardown` for tests: operations in, everything that comes out in lists. Values are plain integers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.registers import TIMER_TICKS
from hw.config import NicConfig
from hw.tcp.flow import FlowPacket, State, flow_layout
from hw.tcp.teardown import Teardown
from tests.hw.simulate import run

__all__ = ["ACK", "FIN", "PSH", "RST", "SYN", "FlowBench"]

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
M32 = 0xFFFF_FFFF
CONFIG = NicConfig(flows=512, splices=0, width=8, pipelined_hash=False)
LAP_STEPS = 9


class FlowBench:
    """See the module's text. `scenario(ctx, bench)` runs once the tables are cleared.

    accept: name of an output -> whether it is taken (may be changed at any time).
    """

    def __init__(self, **times: int) -> None:
        self.config = CONFIG
        self.dut = Teardown(self.config)
        self.times = {"time_wait": 50, "fin_wait_2": 60, "linger": 20, "max_rto": 400, **times}
        self.replies: list[Any] = []
        self.events: list[Any] = []
        self.jobs: list[Any] = []
        self.deletes: list[Any] = []
        self.accept = {"replies": True, "events": True, "jobs": True, "delete": True}
        self.counted: Counter[str] = Counter()
        self._over = False
        self._outputs = {"replies": self.replies, "events": self.events, "jobs": self.jobs, "delete": self.deletes}

    # In

    async def put(self, ctx: Any, stream: Any, value: int) -> None:
        ctx.set(Value.cast(stream.payload), value)
        ctx.set(stream.valid, 1)
        await ctx.tick().until(stream.ready)
        ctx.set(stream.valid, 0)

    async def install(self, ctx: Any, **fields: Any) -> int:
        """A flow in FIN_WAIT_1, with a frame of 100 bytes and FIN; its index."""
        free = self.dut.free
        ctx.set(free.ready, 1)
        (index,) = await ctx.tick().sample(free.p.index).until(free.valid)
        ctx.set(free.ready, 0)
        await self.install_at(ctx, index, **fields)
        return index

    async def install_at(self, ctx: Any, index: int, **fields: Any) -> None:
        now = ctx.get(self.dut.now)
        values = {
            "state": State.FIN_WAIT_1, "snd_end": 5000, "unacked": 101, "rcv_base": 9000, "timestamps": 1,
            "ts_recent": 700, "window": 1000, "wscale": 2, "rto": 30, "retry_limit": 3, "queue": 3, "port": 0,
            "frames": 0, "table": 0x1234, "rows": [1, 2], "rtt": now, "rtt_state": 1,
        } | fields  # fmt: skip
        values["deadline"] = values.get("deadline", now + values["rto"]) % (1 << 20)
        layout = flow_layout(self.config)
        state = layout.const(values).as_value().value
        request = self.dut.installs.p.shape()
        await self.put(ctx, self.dut.installs, request.const({"index": index}).as_value().value | state << self.config.flow_bits)

    def packet(self, index: int, flags: int = ACK, *, seq: int = 9000, ack: int = 5000, length: int = 0, tsval: int | None = 701, window: int = 250, answer: int = 0, bad: int = 0) -> int:
        """A segment of the peer as the verdict stage hands it over."""
        values = {
            "index": index,
            "answer": answer,
            "segment": {"flags": flags, "window": window, "payload_length": length, "timestamps": int(tsval is not None), "options_bad": bad},
            "reply": {
                "kind": 0, "seq": 0x5EED if answer else (ack - 1) & M32, "ack": (seq + 1) & M32, "tsecr": tsval or 0,
                "src_port": 80, "dst_port": 1000 + index, "port": 0, "timestamps": 1, "tsval": 0xAAAA,
            },
        }  # fmt: skip
        return FlowPacket(self.config).const(values).as_value().value

    async def send(self, ctx: Any, *packets: int) -> None:
        """Segments in consecutive cycles; returns when they have been dealt with."""
        stream = self.dut.packets
        for packet in packets:
            ctx.set(Value.cast(stream.payload), packet)
            ctx.set(stream.valid, 1)
            await ctx.tick()
        ctx.set(stream.valid, 0)
        await ctx.tick().repeat(24)

    async def segment(self, ctx: Any, index: int, flags: int = ACK, **fields: Any) -> None:
        await self.send(ctx, self.packet(index, flags, **fields))

    async def sent(self, ctx: Any, index: int, status: int = 0) -> None:
        await self.put(ctx, self.dut.sent, index | status << self.config.flow_bits)
        await ctx.tick().repeat(12)

    async def deleted(self, ctx: Any, index: int) -> None:
        await self.put(ctx, self.dut.deleted, index)
        await ctx.tick().repeat(8)

    async def update(self, ctx: Any, index: int, **fields: int) -> int:
        values = {"index": index, "snd_end": 5000, "ack": 4899, "ts_recent": 700, "window": 1000, "fin": 0, "abort": 0} | fields
        layout = self.dut.updates.p.shape()
        await self.put(ctx, self.dut.updates, layout.const(values).as_value().value)
        ctx.set(self.dut.updated.ready, 1)
        (status,) = await ctx.tick().sample(self.dut.updated.p.status).until(self.dut.updated.valid)
        ctx.set(self.dut.updated.ready, 0)
        await ctx.tick().repeat(12)
        return status

    async def steps(self, ctx: Any, count: int) -> None:
        """Timer steps pass, one by one with time for the sweeper in between."""
        for _ in range(count):
            for _ in range(TIMER_TICKS):
                ctx.set(self.dut.tick, 1)
                await ctx.tick()
            ctx.set(self.dut.tick, 0)
            await self.rest(ctx)

    async def rest(self, ctx: Any) -> None:
        """Wait until nothing is in work; outputs that nobody takes do not count."""
        for _ in range(1500):
            if not ctx.get(self.dut.busy):
                break
            await ctx.tick()
        await ctx.tick().repeat(3)

    # Out

    async def _watch(self, ctx: Any) -> None:
        """Takes what comes out, and counts. (One trigger for everything and for all cycles: to make one costs more than the cycle.)"""
        streams = [getattr(self.dut, name) for name in self._outputs]
        counts = Value.cast(self.dut.counts)
        names = list(self.dut.counts.shape().members)
        told: list[bool] = []
        signals = (*(stream.valid for stream in streams), *(Value.cast(stream.payload) for stream in streams))
        ready = self._ready(ctx, streams, told)
        async for _, _, value, *sampled in ctx.tick().sample(counts, *signals):
            for out, stream, valid, payload, taken in zip(
                self._outputs.values(), streams, sampled, sampled[len(streams) :], ready, strict=False
            ):
                if valid and taken:
                    out.append(data.Const(stream.p.shape(), payload))
            if value:
                self.counted.update(name for bit, name in enumerate(names) if value >> bit & 1)
            ready = self._ready(ctx, streams, ready)
            if self._over:
                return

    def _ready(self, ctx: Any, streams: list[Any], before: list[bool]) -> list[bool]:
        """Who is taken from in the next cycle."""
        ready = list(self.accept.values())
        if ready != before:
            for stream, taken in zip(streams, ready, strict=True):
                ctx.set(stream.ready, taken)
        return ready

    def taken(self, name: str) -> list[Any]:
        """What has come out of that output since the last call."""
        found = list(self._outputs[name])
        self._outputs[name].clear()
        return found

    async def record(self, ctx: Any, index: int) -> Any:
        """The first flow at or after `index`: (index, record), or None."""
        ctx.set(self.dut.find, {"start": 1, "index": index})
        await ctx.tick()
        ctx.set(self.dut.find, {"start": 0, "index": 0})
        for _ in range(3000):
            await ctx.tick()
            if not ctx.get(self.dut.found.busy):
                found = ctx.get(self.dut.found)
                return (found.index, found.record) if found.found else None
        raise AssertionError("the search does not end")

    async def state(self, ctx: Any, index: int) -> State | None:
        found = await self.record(ctx, index)
        return State(found[1].state) if found and found[0] == index else None

    def run(self, scenario: Any, cycles: int = 200_000) -> FlowBench:
        async def bench(ctx: Any) -> None:
            for name, value in self.times.items():
                ctx.set(getattr(self.dut, name), value)
            ctx.set(self.dut.window, 0x7777)
            ctx.set(self.dut.ts_clock, 4242)
            while not ctx.get(self.dut.ready):
                await ctx.tick()
            await self.rest(ctx)
            await scenario(ctx, self)
            self._over = True

        run(self.dut, bench, self._watch, cycles=cycles)
        return self
