"""A receive DMA with its bus, a model of the receive buffers before it and of the host behind it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from amaranth import Module, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.messages import EVENT, RX_COMPLETION, RX_FREE
from hw.config import NicConfig
from hw.csr.bus import QueueBus
from hw.dma.axi import AxiMasterSignature
from hw.dma.events import EventWriter
from hw.dma.mux import AxiMaster
from hw.dma.ring import Posted
from hw.dma.rx import RxDma
from hw.packet.meta import RxDispatch
from hw.stream.beat import packet_stream
from hw.stream.fork import TAKE
from tests.hw.simulate import always, beats, run

from .memory import Memory, Traffic, serve_axi_reads, serve_axi_writes
from .rx_helpers import enable, strobes, write

__all__ = ["Buffer", "Packet", "Queue", "Rig", "System"]


class System(wiring.Component):
    """`RxDma`, `EventWriter` and `AxiMaster`, wired as in the NIC."""

    def __init__(self, config: NicConfig) -> None:
        self.config = config
        self.rx = RxDma(config)
        self.events = EventWriter(config)
        self.master = AxiMaster(1, 3, config.axi_bytes)
        super().__init__(
            {
                "bus": In(QueueBus()),
                "hold": In(1),
                "idle": Out(1),
                "dispatch": In(stream.Signature(RxDispatch)),
                "take": Out(stream.Signature(TAKE)).array(config.ports),
                "packets": In(packet_stream(config.width)).array(config.ports),
                "axi": Out(AxiMasterSignature(config.axi_bytes)),
                "posted": Out(Posted),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.rx, m.submodules.events, m.submodules.master = self.rx, self.events, self.master
        rx, events, master = self.rx, self.events, self.master
        connect(m, flipped(self.bus), rx.bus)
        connect(m, flipped(self.bus), events.bus)
        connect(m, flipped(self.dispatch), rx.dispatch)
        for port in range(self.config.ports):
            connect(m, rx.take[port], flipped(self.take[port]))
            connect(m, flipped(self.packets[port]), rx.packets[port])
        connect(m, rx.events, events.i[0])
        connect(m, rx.free_read, master.reads[0])
        connect(m, rx.write, master.writes[0])
        connect(m, rx.completion_write, master.writes[1])
        connect(m, events.write, master.writes[2])
        connect(m, master.axi, flipped(self.axi))
        m.d.comb += [
            rx.hold.eq(self.hold),
            self.posted.eq(rx.posted),
            self.idle.eq(rx.idle & events.idle & master.idle),
        ]
        return m


@dataclass
class Packet:
    """A packet as the verdict stage sees it. `number` travels in the completion's ts_clock."""

    number: int
    octets: bytes
    queue: int = 0
    port: int = 0
    keep: int = 1
    forward: int = 0

    def dispatch(self) -> int:
        at = RX_COMPLETION.to_int(length=len(self.octets), ts_clock=self.number, port=self.port, ipv4=1)
        return self.port | self.keep << 1 | self.forward << 2 | self.queue << 3 | at << 11


@dataclass
class Buffer:
    """A receive buffer."""

    address: int
    length: int
    tag: int


@dataclass
class Queue:
    """The host's side of a queue. Sizes are log2."""

    number: int
    base: int
    free_log2: int = 6
    completion_log2: int = 6
    event_log2: int = 6
    free_tail: int = 0
    head: int = 0
    event_head: int = 0
    buffers: deque[Buffer] = field(default_factory=deque)  # to be posted
    posted: deque[Buffer] = field(default_factory=deque)  # the NIC's, in order
    done: list[tuple[dict[str, int], Buffer]] = field(default_factory=list)
    events: list[dict[str, int]] = field(default_factory=list)
    paused: bool = False  # the host reads nothing

    def ring(self, which: int) -> int:
        return self.base + which * 0x10_0000

    async def start(self, ctx: Any, bus: Any) -> None:
        await enable(
            ctx, bus, self.number,
            rx_free_base=self.ring(0), rx_free_size=self.free_log2,
            rx_completion_base=self.ring(1), rx_completion_size=self.completion_log2,
            event_base=self.ring(2), event_size=self.event_log2,
        )

    async def step(self, ctx: Any, bus: Any, memory: Memory) -> None:
        """Post buffers and read both rings."""
        room = (1 << self.free_log2) - len(self.posted)
        fresh = min(room, len(self.buffers))
        for _ in range(fresh):
            buffer = self.buffers.popleft()
            at = self.ring(0) + RX_FREE.size * (self.free_tail & (1 << self.free_log2) - 1)
            memory.write(at, RX_FREE.pack(address=buffer.address, length=buffer.length, tag=buffer.tag))
            self.posted.append(buffer)
            self.free_tail = self.free_tail + 1 & 0xFFFF
        if fresh:
            await write(ctx, bus, self.number, "rx_free_tail", self.free_tail)
            await ctx.tick().repeat(3)
        if self.paused:
            return
        head, event_head = self.head, self.event_head
        for entry in self._new(memory, 1, RX_COMPLETION, self.completion_log2, head):
            self.done.append((entry, self.posted.popleft()))
            self.head = self.head + 1 & 0xFFFF
        for entry in self._new(memory, 2, EVENT, self.event_log2, event_head):
            self.events.append(entry)
            self.event_head = self.event_head + 1 & 0xFFFF
        if self.head != head:
            await write(ctx, bus, self.number, "rx_completion_head", self.head)
            await ctx.tick().repeat(3)
        if self.event_head != event_head:
            await write(ctx, bus, self.number, "event_head", self.event_head)
            await ctx.tick().repeat(3)

    def _new(self, memory: Memory, ring: int, message: Any, log2: int, head: int) -> list[dict[str, int]]:
        out = []
        for index in range(head, head + (1 << log2)):
            at = self.ring(ring) + message.size * (index & (1 << log2) - 1)
            entry = message.unpack(memory.read(at, message.size))
            if entry["phase"] != 1 ^ index >> log2 & 1:
                break
            out.append(entry)
        return out


class Rig:
    """Runs a `System`: feed packets, let queues work, count."""

    FILL = 0xA5

    def __init__(self, config: NicConfig, packets: list[Packet], queues: list[Queue]) -> None:
        self.config, self.packets, self.queues = config, packets, queues
        self.dut = System(config)
        self.memory = Memory(fill=self.FILL)
        for queue in queues:  # ring memory starts as zeros
            self.memory.write(queue.ring(1), bytes(RX_COMPLETION.size << queue.completion_log2))
            self.memory.write(queue.ring(2), bytes(EVENT.size << queue.event_log2))
        self.counts: dict[str, int] = {}
        self.posted: list[Any] = []
        self.traffic = Traffic()
        self.dispatched = 0

    def count(self, name: str) -> int:
        return self.counts.get(name, 0)

    @property
    def ended(self) -> int:
        """Kept packets that are done with, as the counters tell."""
        names = ("rx_drop_no_buffer", "rx_drop_completion_full", "rx_host_packets", "rx_buffer_errors")
        return sum(self.count(name) for name in names)

    def run(
        self,
        *benches: Callable[[Any], Any],
        latency: int = 20,
        cycles: int = 20_000,
        go: Callable[[], bool] = always,
        bus_go: Callable[[], bool] = always,
        take_go: Callable[[], bool] = always,
        packet_go: Callable[[], bool] = always,
        until: Callable[[], bool] | None = None,
        first: int = 200,
    ) -> None:
        """Simulate until `until()`, by default until every kept packet has ended and been read.

        first: cycles before the first packet, so that buffers can be fetched.
        """
        kept = sum(packet.keep for packet in self.packets)

        def over() -> bool:
            given = self.count("rx_host_packets") + self.count("rx_buffer_errors")
            return self.ended == kept and sum(len(queue.done) for queue in self.queues) == given

        until = until or over

        async def host(ctx: Any) -> None:
            for queue in self.queues:
                await queue.start(ctx, self.dut.bus)
            await ctx.tick().repeat(2)
            while not until():
                for queue in self.queues:
                    await queue.step(ctx, self.dut.bus, self.memory)
                await ctx.tick().repeat(2)
            # The last events.
            for _ in range(3 * latency + 60):
                await ctx.tick()
            for queue in self.queues:
                await queue.step(ctx, self.dut.bus, self.memory)

        axi = self.dut.axi
        run(
            self.dut,
            host,
            *benches,
            cycles=cycles,
            background=[
                partial(serve_axi_reads, axi=axi, memory=self.memory, latency=latency, request_go=bus_go),
                partial(
                    serve_axi_writes, axi=axi, memory=self.memory, latency=latency,
                    address_go=bus_go, data_go=bus_go, response_go=bus_go, traffic=self.traffic,
                ),
                partial(self._dispatch, go=go, first=first),
                *(
                    partial(self._buffer, port=port, take_go=take_go, packet_go=packet_go)
                    for port in range(self.config.ports)
                ),
                self._count,
                strobes(self.dut.posted, self.posted),
            ],
        )

    async def _dispatch(self, ctx: Any, go: Callable[[], bool], first: int) -> None:
        await ctx.tick().repeat(first)
        stream_, payload = self.dut.dispatch, Value.cast(self.dut.dispatch.payload)
        for packet in self.packets:
            while not go():
                ctx.set(stream_.valid, 0)
                await ctx.tick()
            ctx.set(payload, packet.dispatch())
            ctx.set(stream_.valid, 1)
            await ctx.tick().until(stream_.ready)
            self.dispatched += 1
        ctx.set(stream_.valid, 0)

    async def _buffer(self, ctx: Any, port: int, take_go: Any, packet_go: Any) -> None:
        """The receive buffer of a port: reads packets out as it is told to."""
        take, packets = self.dut.take[port], self.dut.packets[port]
        payload = Value.cast(packets.payload)
        stored = deque(packet for packet in self.packets if packet.port == port)
        pending: deque[int] = deque()
        offered, ready = False, take_go()
        ctx.set(take.ready, ready)
        async for _, _, asked, keep, taken in ctx.tick().sample(take.valid, take.payload.host, packets.ready):
            if asked and ready:
                packet = stored.popleft()
                if keep:
                    pending.extend(beats(packet.octets, self.config.width))
            if taken or not offered:
                offered = bool(pending) and packet_go()
                if offered:
                    ctx.set(payload, pending.popleft())
                ctx.set(packets.valid, offered)
            ready = take_go()
            ctx.set(take.ready, ready)

    async def _count(self, ctx: Any) -> None:
        parts = (self.dut.rx, self.dut.events)
        names = [(part, name) for part in parts for name, _ in part.counts.shape()]
        async for _, _, *values in ctx.tick().sample(*(part.counts[name] for part, name in names)):
            for (_, name), value in zip(names, values, strict=True):
                if value:
                    self.counts[name] = self.counts.get(name, 0) + value

    def check(self) -> None:
        """Every completion against its packet and buffer; every byte of memory around them."""
        by_number = {packet.number: packet for packet in self.packets}
        for queue in self.queues:
            numbers = [entry["ts_clock"] for entry, _ in queue.done]
            assert numbers == sorted(set(numbers)), "completions out of order or doubled"
            for entry, buffer in queue.done:
                packet = by_number[entry["ts_clock"]]
                assert (packet.queue, packet.port) == (queue.number, entry["port"])
                assert packet.keep and entry["ipv4"] == 1
                around = self.memory.read(buffer.address - 64, buffer.length + 128)
                octets = packet.octets if entry["status"] == 0 else b""
                assert entry["length"] == len(octets)
                if entry["status"] != 4:
                    assert entry["tag"] == buffer.tag
                    filled = bytes([self.FILL])
                    expected = filled * 64 + octets + filled * (buffer.length - len(octets) + 64)
                    assert around == expected, f"packet {packet.number} at {buffer.address:#x}"


def scattered(rng: random.Random, count: int, length: int, base: int = 0x1_0000_0000) -> list[Buffer]:
    """Buffers at any alignment, some of them across pages, with guard bytes between."""
    buffers, at = [], base
    for _ in range(count):
        at += 128 + rng.randrange(64)
        buffers.append(Buffer(at, length, rng.getrandbits(32)))
        at += length
    return buffers
