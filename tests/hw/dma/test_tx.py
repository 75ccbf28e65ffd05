"""TxDma against a memory model: contents, order, events, commands, errors, throughput, fairness."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import COMMAND, TX_DESCRIPTOR, EventType, Status, TxFlag, TxOpcode
from hw.config import NicConfig
from hw.dma.events import EventRequest
from hw.dma.tx import COMMANDS, FRAMES, TxCommand, TxDma, TxFrame, TxFrameDone
from hw.packet.meta import TxMeta
from hw.stream.beat import BeatLayout
from tests.hw.dma.bus import disable_queue, enable_queue, ring_doorbell, set_ring
from tests.hw.dma.memory import Memory, Traffic, serve_reads
from tests.hw.simulate import always, converts, feed, run, seeds, seeds_and_sizes, sometimes

RINGS = 0x9_0000_0000
DATA = 0x5_4000_0000


@dataclass
class Frame:
    """One descriptor and what must come of it."""

    octets: bytes
    address: int
    opcode: int = TxOpcode.SEND
    flags: int = 0
    mss: int = 0
    l3: int = 0
    l4: int = 0
    port: int = 0
    status: int = Status.OK
    read_error: bool = False
    length: int | None = None

    def descriptor(self) -> bytes:
        return TX_DESCRIPTOR.pack(
            address=self.address,
            length=len(self.octets) if self.length is None else self.length,
            mss=self.mss, l3_offset=self.l3, l4_offset=self.l4,
            opcode=self.opcode, flags=self.flags, port=self.port,
        )  # fmt: skip


@dataclass
class Bench:
    """A TxDma with host memory and everything that came out of it."""

    dut: TxDma
    memory: Memory = field(default_factory=Memory)
    packets: list[tuple[bytes, int]] = field(default_factory=list)
    metas: list[data.Const] = field(default_factory=list)
    commands: list[data.Const] = field(default_factory=list)
    events: list[data.Const] = field(default_factory=list)
    errors: int = 0
    cycle: int = 0
    ends: list[int] = field(default_factory=list)  # cycle of each packet's last beat
    next_data: int = DATA
    traffic: Traffic = field(default_factory=Traffic)

    def place(self, octets: bytes, align: int | None, rng: random.Random) -> int:
        """Put bytes into memory; `align` is the offset in a beat, None any address."""
        offset = rng.randrange(64) if align is None else align
        address = (self.next_data + 63) // 64 * 64 + offset
        self.memory.write(address, octets)
        self.next_data = address + len(octets)
        return address

    async def post(self, ctx, queue: int, frames: list[Frame], log2: int, at: int = 0) -> None:
        for i, frame in enumerate(frames, at):
            self.memory.write(RINGS + (queue << 20) + 16 * (i % (1 << log2)), frame.descriptor())
        await ring_doorbell(ctx, self.dut.bus, queue, "tx_tail", at + len(frames))

    async def start(self, ctx, queue: int, log2: int) -> None:
        ctx.set(self.dut.command_room, COMMANDS)
        await set_ring(ctx, self.dut.bus, queue, "tx", RINGS + (queue << 20), log2)
        await enable_queue(ctx, self.dut.bus, queue)

    async def _watch(self, ctx, stream, go, take) -> None:
        ready = go()
        ctx.set(stream.ready, ready)
        waiting = None
        async for _, _, valid, value in ctx.tick().sample(stream.valid, Value.cast(stream.payload)):
            if waiting is not None:
                assert valid and value == waiting, "offered payload changed"
            waiting = value if valid and not ready else None
            if valid and ready:
                take(value)
            ready = go()
            ctx.set(stream.ready, ready)

    def background(self, latency: int = 30, stall: int | None = None, go=always):
        size = self.dut.config.axi_bytes
        dut, layout, current = self.dut, BeatLayout(size), bytearray()
        mask, count_at, last_at, err_at = (
            (1 << 8 * size) - 1, layout["count"].offset, layout["last"].offset, layout["err"].offset,
        )  # fmt: skip

        def beat(value: int) -> None:
            count = value >> count_at & 2 * size - 1
            last = value >> last_at & 1
            assert 1 <= count <= size and (last or count == size)
            if stall is None:
                assert len(self.metas) > len(self.packets), "meta comes no later than its packet"
            current.extend((value & mask).to_bytes(size, "little")[:count])
            if last:
                self.packets.append((bytes(current), value >> err_at & 1))
                self.ends.append(self.cycle)
                current.clear()

        async def count(ctx):
            async for _, _, error in ctx.tick().sample(dut.counts.tx_errors):
                self.errors += error
                self.cycle += 1

        def pattern(n: int):
            return always if stall is None else sometimes(stall + n, 0.5)

        serve = partial(serve_reads, memory=self.memory, latency=latency)
        request, response = pattern(3), pattern(4)
        return [
            count,
            # Metas are taken first: in one cycle both may pass.
            partial(self._watch, stream=dut.meta, go=pattern(0), take=lambda v: self.metas.append(data.Const(TxMeta, v))),
            partial(self._watch, stream=dut.packets, go=go if go is not always else pattern(1), take=beat),
            partial(self._watch, stream=dut.commands, go=pattern(2), take=lambda v: self.commands.append(data.Const(TxCommand, v))),
            partial(self._watch, stream=dut.events, go=pattern(5), take=lambda v: self.events.append(data.Const(EventRequest, v))),
            partial(serve, port=dut.descriptor_read),
            partial(serve, port=dut.read, request_go=request, response_go=response, traffic=self.traffic),
        ]  # fmt: skip

    async def quiet(self, ctx) -> None:
        while ctx.get(self.dut.busy):
            await ctx.tick()


def expected(frames: dict[int, list[Frame]]):
    """Per queue: packets (bytes, err), commands (index, bytes), events (type, status, index)."""
    out = {}
    for queue, posted in frames.items():
        packets, commands, events = [], [], []
        for index, frame in enumerate(posted):
            good = frame.status == Status.OK
            bad = frame.status if not good else Status.BAD_ADDRESS if frame.read_error else None
            if frame.opcode == TxOpcode.SEND and good:
                packets.append((frame.octets, int(frame.read_error)))
            if frame.opcode == TxOpcode.COMMAND and bad is None:
                commands.append((index, frame.octets))
            if bad is not None:
                events.append((EventType.TX_ERROR, bad, index))
            elif frame.opcode == TxOpcode.SEND and frame.flags & TxFlag.EVENT:
                events.append((EventType.TX_DONE, Status.OK, index))
        out[queue] = packets, commands, events
    return out


def check(bench: Bench, frames: dict[int, list[Frame]]) -> None:
    for queue, (packets, commands, events) in expected(frames).items():
        assert [p for p in bench.packets if p[0][0] == queue] == packets
        assert [
            (c.index, int(c.command).to_bytes(64, "little")) for c in bench.commands if c.queue == queue
        ] == commands
        assert [
            (e.event.type, e.event.status, e.event.index)
            for e in bench.events
            if e.queue == queue and e.event.queue == queue
        ] == events
    assert len(bench.packets) == len(bench.metas) == sum(len(e[0]) for e in expected(frames).values())
    assert bench.errors == sum(e.event.type == EventType.TX_ERROR for e in bench.events)


def random_frames(bench: Bench, queue: int, count: int, rng: random.Random, longest: int) -> list[Frame]:
    """Frames whose first byte is the queue."""
    frames = []
    for _ in range(count):
        if rng.random() < 0.15:
            octets = bytes([queue]) + rng.randbytes(63)
            frames.append(Frame(octets, bench.place(octets, None, rng), TxOpcode.COMMAND))
            if rng.random() < 0.2:
                at = frames[-1].address + rng.randrange(64)
                bench.memory.errors.append(range(at, at + 1))
                bench.next_data += 64
            continue
        length = rng.choice([14, 60, 63, 64, 65, rng.randrange(14, 300), rng.randrange(14, longest)])
        octets = bytes([queue]) + rng.randbytes(length - 1)
        frame = Frame(octets, bench.place(octets, None, rng), flags=rng.choice([0, TxFlag.EVENT]))
        kind = rng.random()
        if kind < 0.05:
            frame.opcode, frame.status = 7, Status.BAD_OPCODE
        elif kind < 0.1:
            frame.length, frame.status = rng.choice([0, 13, 9019, 65535]), Status.BAD_LENGTH
        elif kind < 0.15:
            frame.mss, frame.status = 1460, Status.FEATURE_ABSENT
        elif kind < 0.25:
            frame.read_error = True
            at = frame.address + rng.randrange(length)
            bench.memory.errors.append(range(at, at + 1))
        frames.append(frame)
        bench.next_data += 64  # an error range must not touch the next frame
    return frames


def config_of(size: int, **options: int) -> NicConfig:
    """With a bus of `size` bytes."""
    return NicConfig(width=8, axi_bytes=size, read_beats=4096, **options) if size < 64 else NicConfig(**options)


@pytest.mark.parametrize("seed, size", seeds_and_sizes(3, (1, 8)))
def test_random_frames_commands_and_errors(seed: int, size: int) -> None:
    rng = random.Random(seed)
    bench = Bench(TxDma(config_of(size, queues=4, descriptors=32)))
    count = 40 if size == 64 else 15
    frames = {q: random_frames(bench, q, count, rng, 1600 if seed else 9018) for q in range(4)}
    for posted in frames.values():
        for frame in posted:
            first, last = frame.address // size * size, frame.address + len(frame.octets)
            hit = any(first < bad.stop and bad.start < -(-last // size) * size for bad in bench.memory.errors)
            frame.read_error = hit and frame.status == Status.OK

    async def host(ctx):
        for queue in frames:
            await bench.start(ctx, queue, 6)
        at = dict.fromkeys(frames, 0)
        while any(n < count for n in at.values()):
            queue = rng.choice([q for q, n in at.items() if n < count])
            step = min(rng.choice([1, 2, 9, 40]), count - at[queue])
            await bench.post(ctx, queue, frames[queue][at[queue] : at[queue] + step], 6, at[queue])
            at[queue] += step
            await ctx.tick().repeat(rng.randrange(1, 60))
        await bench.quiet(ctx)

    stall = seed * 100 if seed else None
    run(bench.dut, host, background=bench.background(30, stall), cycles=30000)
    check(bench, frames)


@pytest.mark.slow
@pytest.mark.parametrize(
    "length, align, packets, goal",
    [(60, 0, 700, 0.9), (60, None, 400, 0.5), (1514, 0, 60, 0.97), (1514, 2, 60, 0.97), (9018, None, 9, 0.97)],
)
def test_throughput_at_latency_250(length: int, align: int | None, packets: int, goal: float) -> None:
    """Small packets: packets per cycle. Large ones: bus beats per cycle."""
    rng = random.Random(length)
    bench = Bench(TxDma(NicConfig(queues=4)))
    frames = {0: []}
    for i in range(packets):
        octets = bytes([0]) + i.to_bytes(2, "little") + bytes(length - 3)
        frames[0].append(Frame(octets, bench.place(octets, align, rng)))

    async def host(ctx):
        await bench.start(ctx, 0, 10)
        await bench.post(ctx, 0, frames[0], 10)
        await bench.quiet(ctx)

    run(bench.dut, host, background=bench.background(250), cycles=6000)
    check(bench, frames)
    cycles = bench.ends[-1] - bench.ends[0]
    beats = sum((f.address % 64 + length + 63) // 64 for f in frames[0][1:])
    rate = (packets - 1) / cycles if length == 60 else beats / cycles
    print(f"{length} bytes, offset {align}: {(packets - 1) / cycles:.2f} packets, {beats / cycles:.3f} beats per cycle")
    assert rate >= goal


def test_four_queues_share_the_bus_fairly() -> None:
    rng = random.Random(5)
    bench = Bench(TxDma(NicConfig(queues=4)))
    frames = {q: [] for q in range(4)}
    for q in range(4):
        for _ in range(100):
            octets = bytes([q]) + bytes(199)
            frames[q].append(Frame(octets, bench.place(octets, 0, rng)))

    async def host(ctx):
        for q in range(4):
            await bench.start(ctx, q, 7)
        for q in range(4):
            await bench.post(ctx, q, frames[q], 7)
        await bench.quiet(ctx)

    run(bench.dut, host, background=bench.background(100), cycles=6000)
    check(bench, frames)
    # At first only those whose descriptors have come can take part, at last only who has some left.
    middle = [p[0][0] for p in bench.packets[128:288]]
    assert all(abs(middle.count(q) - 40) <= 8 for q in range(4))


@pytest.mark.parametrize(
    "change, status",
    [
        ({"port": 1}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.IPV4_CHECKSUM, "l3": 14}, Status.OK),
        ({"flags": TxFlag.IPV4_CHECKSUM, "l3": 12}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.IPV4_CHECKSUM, "l3": 15}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.IPV4_CHECKSUM, "l3": 80}, Status.OK),
        ({"flags": TxFlag.IPV4_CHECKSUM, "l3": 82}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.IPV4_CHECKSUM | TxFlag.IPV6, "l3": 14}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.L4_CHECKSUM, "l3": 14, "l4": 34}, Status.OK),
        ({"flags": TxFlag.L4_CHECKSUM, "l3": 14, "l4": 32}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.L4_CHECKSUM, "l3": 14, "l4": 80}, Status.OK),
        ({"flags": TxFlag.L4_CHECKSUM, "l3": 14, "l4": 82}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.L4_CHECKSUM | TxFlag.UDP, "l3": 14, "l4": 92}, Status.OK),
        ({"flags": TxFlag.L4_CHECKSUM | TxFlag.UDP, "l3": 14, "l4": 94}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.L4_CHECKSUM | TxFlag.IPV6, "l3": 14, "l4": 54}, Status.OK),
        ({"flags": TxFlag.L4_CHECKSUM | TxFlag.IPV6, "l3": 14, "l4": 34}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.L4_CHECKSUM | TxFlag.ICMPV6, "l3": 14, "l4": 34}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.L4_CHECKSUM | TxFlag.IPV6 | TxFlag.ICMPV6, "l3": 14, "l4": 54}, Status.OK),
        ({"opcode": 0}, Status.BAD_OPCODE),
        ({"opcode": TxOpcode.COMMAND}, Status.BAD_LENGTH),
        ({"address": (1 << 64) - 99}, Status.BAD_ADDRESS),
        ({"address": (1 << 64) - 100}, Status.OK),
    ],
)
def test_checks(change: dict[str, int], status: int) -> None:
    bench = Bench(TxDma(NicConfig(queues=2, descriptors=16)))
    octets = bytes([1]) + bytes(99)
    frame = Frame(octets, DATA + 5, status=status)
    for name, value in change.items():
        setattr(frame, name, value)
    frame.flags |= TxFlag.EVENT
    after = Frame(bytes([1]) + bytes(range(80)), DATA + 0x1000, flags=TxFlag.EVENT)
    for each in (frame, after):
        if status == Status.OK or each is after:
            bench.memory.write(each.address, each.octets)

    async def host(ctx):
        await bench.start(ctx, 1, 3)
        await bench.post(ctx, 1, [frame, after], 3)
        await bench.quiet(ctx)

    run(bench.dut, host, background=bench.background(5))
    check(bench, {1: [frame, after]})
    if frame.status == Status.OK and frame.opcode == TxOpcode.SEND:
        meta = bench.metas[0]
        assert (meta.length, meta.l3_offset, meta.l4_offset, meta.flags) == (100, frame.l3, frame.l4, frame.flags)


def test_descriptor_read_error_and_refused_doorbell_become_events() -> None:
    bench = Bench(TxDma(NicConfig(queues=2, descriptors=16)))
    bench.memory.errors = [range(RINGS, RINGS + 64)]
    octets = bytes(60)
    frames = [Frame(octets, DATA) for _ in range(5)]

    async def host(ctx):
        await bench.start(ctx, 0, 3)
        await bench.post(ctx, 0, frames, 3)
        await bench.quiet(ctx)
        await ring_doorbell(ctx, bench.dut.bus, 0, "tx_tail", 100)
        await ctx.tick().repeat(20)

    run(bench.dut, host, background=bench.background(5))
    got = [(e.event.type, e.event.status, e.event.index) for e in bench.events]
    assert got == [(EventType.TX_ERROR, Status.BAD_ADDRESS, i) for i in range(4)] + [
        (EventType.QUEUE_ERROR, Status.BAD_DOORBELL, 0)
    ]
    assert bench.packets == [(octets, 0)]


def test_hold_drains_and_a_new_start_is_clean() -> None:
    rng = random.Random(6)
    bench = Bench(TxDma(NicConfig(queues=2, descriptors=16)))
    first, second = (
        [Frame(o := bytes([0, k]) + bytes([i] * 98), bench.place(o, None, rng)) for i in range(30)]
        for k in range(2)
    )

    async def host(ctx):
        await bench.start(ctx, 0, 5)
        await bench.post(ctx, 0, first, 5)
        while len(bench.packets) < 5:
            await ctx.tick()
        ctx.set(bench.dut.hold, 1)
        while not ctx.get(bench.dut.idle):
            await ctx.tick()
        sent = len(bench.packets)
        await ctx.tick().repeat(60)
        assert ctx.get(bench.dut.idle) and 5 <= len(bench.packets) == sent < 30
        await disable_queue(ctx, bench.dut.bus, 0)
        ctx.set(bench.dut.hold, 0)
        await bench.start(ctx, 0, 5)
        await bench.post(ctx, 0, second, 5)
        await bench.quiet(ctx)
        assert [p[0] for p in bench.packets[sent:]] == [f.octets for f in second]

    run(bench.dut, host, background=bench.background(20))


@dataclass
class Final:
    """A final frame, and what must come of it."""

    octets: bytes
    address: int
    index: int = 0
    last: int = 0
    ipv6: int = 0
    l4: int = 34
    port: int = 0
    timestamps: int = 0
    ack: int = 0
    tsecr: int = 0
    status: int = Status.OK
    read_error: bool = False
    length: int | None = None

    def value(self, config: NicConfig) -> int:
        length = len(self.octets) if self.length is None else self.length
        patch = {"wanted": 1, "timestamps": self.timestamps, "ack": self.ack, "tsecr": self.tsecr}
        frame = {
            "address": self.address, "length": length, "port": self.port, "l4_offset": self.l4,
            "ipv6": self.ipv6, "index": self.index, "last": self.last, "patch": patch,
        }  # fmt: skip
        return TxFrame(config).const(frame).as_value().value


def final_background(bench: Bench, finals: list[Final], done: list, go, take_go):
    """Feeds final frames and takes their ends."""
    layout = TxFrameDone(bench.dut.config)
    values = [final.value(bench.dut.config) for final in finals]
    return [
        partial(feed, stream=bench.dut.frames, values=values, go=go),
        partial(bench._watch, stream=bench.dut.frames_done, go=take_go, take=lambda v: done.append(data.Const(layout, v))),
    ]  # fmt: skip


def check_finals(bench: Bench, finals: list[Final], done: list) -> None:
    """Final frames begin with 255, so that they are known among the hosts'."""
    assert [(d.index, d.last, d.status) for d in done] == [
        (f.index, f.last, Status.BAD_ADDRESS if f.read_error else f.status) for f in finals
    ]
    sent = [f for f in finals if f.status == Status.OK]
    got = [
        (*packet, meta) for packet, meta in zip(bench.packets, bench.metas, strict=True) if packet[0][0] == 255
    ]
    assert [(octets, err) for octets, err, _ in got] == [(f.octets, f.read_error) for f in sent]
    for f, (_, _, meta) in zip(sent, got, strict=True):
        sums = TxFlag.L4_CHECKSUM | (TxFlag.IPV6 if f.ipv6 else TxFlag.IPV4_CHECKSUM)
        assert (meta.length, meta.l3_offset, meta.l4_offset) == (len(f.octets), f.l4 - (40 if f.ipv6 else 20), f.l4)
        assert (meta.flags, meta.port) == (sums, f.port)
        assert (meta.patch.wanted, meta.patch.timestamps) == (1, f.timestamps)
        assert (meta.patch.ack, meta.patch.tsecr) == (f.ack, f.tsecr)
    assert all(not m.patch.wanted for p, m in zip(bench.packets, bench.metas, strict=True) if p[0][0] != 255)


def random_finals(bench: Bench, count: int, rng: random.Random) -> list[Final]:
    finals = []
    for _ in range(count):
        ipv6, vlan, timestamps = rng.randrange(2), rng.randrange(2), rng.randrange(2)
        l4 = 14 + 4 * vlan + (40 if ipv6 else 20)
        shortest = l4 + 20 + 12 * timestamps
        length = rng.choice([shortest, shortest + 1, rng.randrange(shortest, 300), rng.randrange(shortest, 1515)])
        octets = bytes([255]) + rng.randbytes(length - 1)
        final = Final(
            octets, bench.place(octets, None, rng), rng.randrange(512), rng.randrange(2), ipv6, l4,
            timestamps=timestamps, ack=rng.getrandbits(32), tsecr=rng.getrandbits(32),
        )  # fmt: skip
        kind = rng.random()
        if kind < 0.1:
            final.length, final.status = rng.choice([0, shortest - 1, 9019, 65535]), Status.BAD_LENGTH
        elif kind < 0.15:
            final.l4, final.status = rng.choice([0, 14, l4 + 2, l4 - 1, 88 - l4]), Status.BAD_ARGUMENT
            final.length = 9000
        elif kind < 0.2:
            final.address, final.status = (1 << 64) - 60, Status.BAD_ADDRESS
            final.length = 100
        elif kind < 0.3:
            final.read_error = True
            at = final.address + rng.randrange(length)
            bench.next_data += 64
            bench.memory.errors.append(range(at, at + 1))
        bench.next_data += 64
        finals.append(final)
    return finals


@pytest.mark.parametrize("seed", seeds(3))
def test_final_frames_among_descriptors(seed: int) -> None:
    rng = random.Random(1000 + seed)
    config = NicConfig(queues=2, flows=512, descriptors=32)
    bench = Bench(TxDma(config))
    finals = random_finals(bench, 100, rng)
    for final in finals:
        # An error range may touch a neighbour's beat.
        first, stop = final.address & ~63, final.address + len(final.octets) + 63 & ~63
        hit = any(first < bad.stop and bad.start < stop for bad in bench.memory.errors)
        final.read_error = hit and final.status == Status.OK
    frames = {q: random_frames(bench, q, 30, rng, 1600) for q in range(2)}
    for posted in frames.values():
        for frame in posted:
            first, stop = frame.address & ~63, frame.address + len(frame.octets) + 63 & ~63
            hit = any(first < bad.stop and bad.start < stop for bad in bench.memory.errors)
            frame.read_error = hit and frame.status == Status.OK
    done: list = []

    async def host(ctx):
        for queue in frames:
            await bench.start(ctx, queue, 6)
            await bench.post(ctx, queue, frames[queue], 6)
        while len(done) < len(finals):
            await ctx.tick()
        await bench.quiet(ctx)

    go = (lambda n: sometimes(seed * 9 + n, 0.5)) if seed else (lambda n: always)
    background = bench.background(30, seed * 100 if seed else None)
    run(bench.dut, host, background=background + final_background(bench, finals, done, go(0), go(1)), cycles=20000)
    check_finals(bench, finals, done)
    # The rest is as if there were no final frames; one that fails is no error of the host's.
    pairs = [(p, m) for p, m in zip(bench.packets, bench.metas, strict=True) if p[0][0] != 255]
    bench.packets, bench.metas = [p for p, _ in pairs], [m for _, m in pairs]
    check(bench, frames)


def test_neither_descriptors_nor_final_frames_starve() -> None:
    rng = random.Random(8)
    config = NicConfig(queues=2, flows=512)
    bench = Bench(TxDma(config))
    frames, finals, done = [], [], []
    for i in range(150):
        octets = bytes([0]) + bytes(63)
        frames.append(Frame(octets, bench.place(octets, 0, rng)))
        octets = bytes([255]) + bytes(63)
        finals.append(Final(octets, bench.place(octets, 0, rng), index=i))

    async def host(ctx):
        await bench.start(ctx, 0, 8)
        await bench.post(ctx, 0, frames, 8)
        while len(bench.packets) < 300:
            await ctx.tick()
        await bench.quiet(ctx)

    run(bench.dut, host, background=bench.background(40) + final_background(bench, finals, done, always, always))
    check_finals(bench, finals, done)
    firsts = [p[0][0] for p in bench.packets]
    start = firsts.index(0)  # final frames were under way before the first descriptor had come
    middle = firsts[start : start + 120]
    assert 50 <= middle.count(255) <= 70


def test_an_end_comes_after_the_last_read() -> None:
    rng = random.Random(9)
    bench = Bench(TxDma(NicConfig(queues=1, flows=512)))
    finals = random_finals(bench, 40, rng)
    bench.memory.errors.clear()
    for final in finals:
        final.read_error = False
    done: list = []
    layout = TxFrameDone(bench.dut.config)
    # Bus beats that have come back when the n-th end comes.
    beats, total = [], 0
    for final in finals:
        if final.status == Status.OK:
            total += (final.address % 64 + len(final.octets) + 63) // 64
        beats.append(total)

    def take(value: int) -> None:
        assert bench.traffic.beats >= beats[len(done)]
        done.append(data.Const(layout, value))

    async def host(ctx):
        while len(done) < len(finals):
            await ctx.tick()
        await bench.quiet(ctx)

    put = final_background(bench, finals, [], always, always)[0]
    watch = partial(bench._watch, stream=bench.dut.frames_done, go=always, take=take)
    run(bench.dut, host, background=[*bench.background(60), put, watch])
    check_finals(bench, finals, done)


def test_hold_stops_final_frames_and_idle_covers_them() -> None:
    rng = random.Random(10)
    bench = Bench(TxDma(NicConfig(queues=1, flows=512)))
    finals, done = [], []
    for i in range(3 * FRAMES):
        octets = bytes([255]) + bytes(199)
        finals.append(Final(octets, bench.place(octets, None, rng), index=i))

    async def host(ctx):
        dut = bench.dut
        while len(done) < 5:
            await ctx.tick()
        ctx.set(dut.hold, 1)
        while not ctx.get(dut.idle):
            await ctx.tick()
        taken = len(done)
        assert 5 <= taken == len(bench.packets) < len(finals)
        for _ in range(60):
            await ctx.tick()
            assert ctx.get(dut.idle) and ctx.get(dut.busy) and not ctx.get(dut.frames.ready)
        assert len(done) == taken
        ctx.set(dut.hold, 0)
        while len(done) < len(finals):
            await ctx.tick()
        await bench.quiet(ctx)

    run(bench.dut, host, background=bench.background(20) + final_background(bench, finals, done, always, always))
    check_finals(bench, finals, done)


def test_final_frames_pass_commands_that_wait() -> None:
    """No more commands are read than will be taken; behind them frames of flows still leave, and in a hold too if
    `drain` says so: a command that nobody takes must never stop what its taker waits for."""
    rng = random.Random(12)
    bench = Bench(TxDma(NicConfig(queues=1, flows=512)))
    commands = [bytes([i] * COMMAND.size) for i in range(9)]
    frames = [Frame(octets, bench.place(octets, 0, rng), TxOpcode.COMMAND) for octets in commands]
    frames[3].length = 5  # refused, with its event; it holds no room
    finals, done = [], []
    for i in range(80):
        octets = bytes([255]) + bytes(199)
        finals.append(Final(octets, bench.place(octets, None, rng), index=i))

    def numbers() -> list[int]:
        return [command.command & 0xFF for command in bench.commands]

    async def host(ctx):
        dut = bench.dut
        await bench.start(ctx, 0, 4)
        ctx.set(dut.command_room, 0)
        await bench.post(ctx, 0, frames, 4)
        while len(done) < 30:
            await ctx.tick()
        assert not bench.commands and ctx.get(dut.commanding)
        ctx.set(dut.hold, 1)
        ctx.set(dut.drain, 1)
        seen = len(done)
        while len(done) < seen + 10:
            await ctx.tick()
        assert not ctx.get(dut.idle)
        ctx.set(dut.command_room, 1)
        while ctx.get(dut.commanding):
            await ctx.tick()
        ctx.set(dut.drain, 0)
        while not ctx.get(dut.idle):
            await ctx.tick()
        assert bench.commands, "those that were under way"
        ctx.set(dut.hold, 0)
        while len(done) < len(finals):
            await ctx.tick()
        await bench.quiet(ctx)

    run(bench.dut, host, background=bench.background(20) + final_background(bench, finals, done, always, always))
    check_finals(bench, finals, done)
    assert numbers() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert [(event.event.index, event.event.status) for event in bench.events] == [(3, Status.BAD_LENGTH)]


def test_no_more_than_64_final_frames_are_in_flight() -> None:
    """With the ends not taken, frames are refused in the end and nothing is lost."""
    rng = random.Random(11)
    bench = Bench(TxDma(NicConfig(queues=1, flows=512)))
    finals, done, accepted, stuck = [], [], [0], [True]
    for i in range(120):
        octets = bytes([255]) + bytes(63)
        finals.append(Final(octets, bench.place(octets, 0, rng), index=i))

    async def count(ctx):
        async for _, _, valid, ready in ctx.tick().sample(bench.dut.frames.valid, bench.dut.frames.ready):
            accepted[0] += valid & ready

    async def host(ctx):
        await ctx.tick().repeat(400)
        # Notes in their FIFO and its register, ends in theirs.
        assert FRAMES <= accepted[0] <= FRAMES + 20 and not ctx.get(bench.dut.idle)
        stuck[0] = False
        while len(done) < len(finals):
            await ctx.tick()
        await bench.quiet(ctx)

    finals_too = final_background(bench, finals, done, always, lambda: not stuck[0])
    run(bench.dut, host, background=[*bench.background(20), *finals_too, count])
    check_finals(bench, finals, done)


def test_converts() -> None:
    converts(TxDma(NicConfig(queues=8)))
