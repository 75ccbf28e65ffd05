# amaranth: UnusedElaboratable=no
"""RxFrontEnd: records against scapy, packets back unchanged, every drop counted, full speed."""

import random

import pytest
from amaranth import Module, ResetInserter, Signal
from amaranth.lib import data

from hw.config import NicConfig
from hw.packet.meta import RxMeta
from hw.packet.rx_front_end import COUNTERS, RxFrontEnd
from hw.stream.checker import checked
from tests.hw.packet.traffic import cases, reference, tcp_frame
from tests.hw.simulate import always, beats, converts, packets, run, sometimes

WIDTHS = (pytest.param(8, marks=pytest.mark.slow), pytest.param(32, marks=pytest.mark.slow), 64)


def config_of(width, **changes):
    beats_needed = 4096 // (width // 8)
    values = {
        "width": width,
        "rx_buffer_beats": beats_needed,
        "tx_buffer_beats": beats_needed,
        "max_frame": 1514,
        "packets": 64,
        **changes,
    }
    return NicConfig(**values)


class Bench:
    """Drives one front end cycle by cycle: `send` frames, decide with `keep`, and take everything out."""

    def __init__(self, config, *, keep=lambda k: True, gap=always, take=always, out=always, port=0):
        self.config, self.dut = config, RxFrontEnd(config, port)
        self.keep, self.gap, self.take, self.out = keep, gap, take, out
        self.metas = []
        self.meta_cycles = []
        self.values = []
        self.value_cycles = []
        self.last_cycles = []
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.cycle = 0
        self.decided = 0
        self.offered = False

    async def tick(self, ctx):
        """One cycle on every output."""
        dut = self.dut
        ctx.set(dut.meta.ready, 1)
        if not self.offered and self.decided < len(self.metas) and self.take():
            self.offered = True
            ctx.set(dut.take.p.keep, self.keep(self.decided))
        ctx.set(dut.take.valid, self.offered)
        ctx.set(dut.packets.ready, self.out())
        if ctx.get(dut.meta.valid):
            self.metas.append(data.Const(RxMeta, ctx.get(dut.meta.payload.as_value())))
            self.meta_cycles.append(self.cycle)
        if self.offered and ctx.get(dut.take.ready):
            self.offered = False
            self.decided += 1
        if ctx.get(dut.packets.valid & dut.packets.ready):
            self.values.append(ctx.get(dut.packets.payload.as_value()))
            self.value_cycles.append(self.cycle)
        counts = ctx.get(dut.counts)
        if counts.as_bits():
            for name in COUNTERS:
                self.counts[name] += counts[name]
        await ctx.tick()
        self.cycle += 1

    async def send(self, ctx, frame, *, err=False):
        dut = self.dut
        for value in beats(frame, self.config.width, err=err):
            while not self.gap():
                ctx.set(dut.i.valid, 0)
                await self.tick(ctx)
            ctx.set(dut.i.payload.as_value(), value)
            ctx.set(dut.i.valid, 1)
            await self.tick(ctx)
        self.last_cycles.append(self.cycle - 1)
        ctx.set(dut.i.valid, 0)

    async def drain(self, ctx, limit=3000):
        ctx.set(self.dut.i.valid, 0)
        for _ in range(limit):
            await self.tick(ctx)
            if not ctx.get(self.dut.busy):
                return
        raise AssertionError("still busy")

    def run(self, bench, cycles=20_000):
        async def started(ctx):
            ctx.set(self.dut.enable, 1)
            await bench(ctx)

        run(checked(self.dut, self.dut.meta, self.dut.packets), started, cycles=cycles)

    @property
    def packets(self):
        return packets(self.values, self.config.width)


def compare(frame, meta, port=0):
    want = reference(frame)
    assert meta.port == port
    for name, value in want.items():
        if name == "options":
            assert meta.options.bad == value["bad"], frame.hex()
            names = () if value["bad"] else value
            assert {key: meta.options[key] for key in names} == {key: value[key] for key in names}, (
                frame.hex()
            )
        elif not name.startswith("_"):
            assert meta[name] == value, (name, meta[name], value, frame.hex())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("pauses", (pytest.param(False, marks=pytest.mark.slow), True))
def test_all_kinds(width, pauses):
    """Every kind of frame, random decisions; with and without pauses on all sides."""
    rng = random.Random(width + pauses)
    frames = cases(rng, 75)
    keep = [rng.random() < 0.6 for _ in frames]
    go = {name: sometimes(k, 0.7) for k, name in enumerate(("gap", "take", "out"))} if pauses else {}
    bench = Bench(config_of(width, ports=2), keep=keep.__getitem__, port=1, **go)

    async def stimulus(ctx):
        for frame in frames:
            # Nothing may be lost here: an endpoint of the tests is slower than the wire.
            while bench.decided + 20 < len(bench.last_cycles):
                await bench.tick(ctx)
            await bench.send(ctx, frame)
        await bench.drain(ctx)

    bench.run(stimulus)
    assert len(bench.metas) == len(frames)
    for frame, meta in zip(frames, bench.metas, strict=True):
        compare(frame, meta, port=1)
    assert bench.packets == [frame for frame, kept in zip(frames, keep, strict=True) if kept]
    expected = {"rx_packets": len(frames), "rx_bytes": sum(map(len, frames))}
    assert bench.counts == {**dict.fromkeys(COUNTERS, 0), **expected}


@pytest.mark.parametrize("width", WIDTHS)
def test_checksum_of_every_length(width):
    """Segments of all lengths over four beats: the end of the mask passes every lane."""
    rng = random.Random(width)
    sizes = range(0, 4 * width, 1 if width < 64 else 3)
    frames = [tcp_frame(rng, payload=rng.randbytes(size), options=b"") for size in sizes]
    frames = [frame + rng.randbytes(rng.randrange(3)) for frame in frames]
    # The same frames with one wrong bit in the last byte of the segment, or the byte before.
    for frame in frames[:]:
        want = reference(frame)
        end = want["payload_offset"] + want["payload_length"]
        damaged = bytearray(frame)
        damaged[end - 1 - rng.randrange(2)] ^= 1 << rng.randrange(8)
        frames.append(bytes(damaged))
    bench = Bench(config_of(width), keep=lambda k: False)

    async def stimulus(ctx):
        for frame in frames:
            await bench.send(ctx, frame)
        await bench.drain(ctx)

    bench.run(stimulus)
    half = len(frames) // 2
    assert [meta.l4_checksum for meta in bench.metas] == [1] * half + [2] * half
    for frame, meta in zip(frames, bench.metas, strict=True):
        compare(frame, meta)


@pytest.mark.parametrize("width", (64,))
def test_one_beat_packets_at_one_per_cycle(width):
    """Initiation interval 1 on every stream, and the documented latency."""
    rng = random.Random(1)
    frames = [tcp_frame(rng, ipv6=False, vlan=False, payload=b"", options=b"") for _ in range(60)]
    bench = Bench(config_of(width))

    async def stimulus(ctx):
        for frame in frames:
            await bench.send(ctx, frame)
        await bench.drain(ctx)

    bench.run(stimulus)
    count = len(frames)
    latency = RxFrontEnd.META_LATENCY
    assert bench.meta_cycles == [k + latency for k in range(count)]
    assert bench.value_cycles == [bench.value_cycles[0] + k for k in range(count)]
    assert bench.packets == frames


def test_every_reason_to_drop():
    width = 64
    rng = random.Random(3)
    good = tcp_frame(rng)
    bench = Bench(config_of(width))
    steps = [
        (good, False, 1, "rx_packets"),
        (good, True, 1, "rx_drop_mac_error"),
        (rng.randbytes(59), False, 1, "rx_drop_runt"),
        (rng.randbytes(1), False, 1, "rx_drop_runt"),
        (rng.randbytes(60), False, 1, "rx_packets"),
        (rng.randbytes(1514), False, 1, "rx_packets"),
        (rng.randbytes(1515), False, 1, "rx_drop_oversize"),
        (rng.randbytes(1600), True, 1, "rx_drop_mac_error"),
        (good, False, 0, "rx_drop_disabled"),
        (rng.randbytes(20), True, 0, "rx_drop_disabled"),
        (rng.randbytes(70_000), False, 1, "rx_drop_oversize"),
        (good, False, 1, "rx_packets"),
    ]

    async def stimulus(ctx):
        for frame, err, enable, name in steps:
            before = dict(bench.counts)
            ctx.set(bench.dut.enable, enable)
            await bench.send(ctx, frame, err=err)
            ctx.set(bench.dut.enable, 1)
            await bench.drain(ctx)
            changed = {key for key in COUNTERS if bench.counts[key] != before[key]}
            assert changed == ({name, "rx_bytes"} if name == "rx_packets" else {name})

    bench.run(stimulus)
    assert bench.packets == [frame for frame, _, _, name in steps if name == "rx_packets"]


@pytest.mark.parametrize("width", (8, pytest.param(64, marks=pytest.mark.slow)))
def test_enable_is_looked_at_with_the_first_beat(width):
    rng = random.Random(4)
    frames = [tcp_frame(rng, payload=rng.randbytes(300)) for _ in range(4)]
    bench = Bench(config_of(width))

    async def stimulus(ctx):
        for k, frame in enumerate(frames):
            for at, value in enumerate(beats(frame, width)):
                ctx.set(bench.dut.enable, (k % 2) ^ (at > 0))
                ctx.set(bench.dut.i.payload.as_value(), value)
                ctx.set(bench.dut.i.valid, 1)
                await bench.tick(ctx)
        await bench.drain(ctx)

    bench.run(stimulus)
    assert bench.packets == [frames[1], frames[3]]
    assert bench.counts["rx_drop_disabled"] == 2


@pytest.mark.parametrize("width", (pytest.param(8, marks=pytest.mark.slow), 64))
def test_overflow_then_recovery(width):
    """With a stuck consumer frames are lost whole and counted; what was kept is intact."""
    rng = random.Random(width)
    frames = [tcp_frame(rng) + bytes(rng.randrange(0, 1000)) for _ in range(50)]
    stuck = True
    bench = Bench(config_of(width, packets=32, rx_buffer_beats=8192 // width), take=lambda: not stuck)
    lost_at = []

    async def stimulus(ctx):
        nonlocal stuck
        for frame in frames:
            before = bench.counts["rx_drop_full"]
            await bench.send(ctx, frame)
            for _ in range(4):
                await bench.tick(ctx)
            lost_at.append(bench.counts["rx_drop_full"] - before)
        stuck = False
        await bench.drain(ctx)
        await bench.send(ctx, frames[0])
        await bench.drain(ctx)

    bench.run(stimulus)
    kept = [frame for frame, lost in zip(frames, lost_at, strict=True) if not lost] + [frames[0]]
    assert sum(lost_at) > 10 and len(kept) > 4
    assert bench.packets == kept
    assert bench.counts["rx_packets"] == len(kept) == len(bench.metas)


def test_no_room_for_records():
    """Nobody takes records: at most as many packets as the record FIFO holds are kept."""
    width = 64
    rng = random.Random(5)
    frames = [tcp_frame(rng, payload=b"", options=b"", ipv6=False, vlan=False) for _ in range(45)]
    bench = Bench(config_of(width, packets=64))
    dut = bench.dut
    got = []

    async def stimulus(ctx):
        lost = 0
        for frame in frames + [None] * 30:
            if frame:
                ctx.set(dut.i.payload.as_value(), beats(frame, width)[0])
            ctx.set(dut.i.valid, frame is not None)
            lost += ctx.get(dut.counts.rx_drop_full)
            await ctx.tick()
        assert lost == 45 - 32
        ctx.set(dut.meta.ready, 1)
        for _ in range(40):
            if ctx.get(dut.meta.valid):
                got.append(data.Const(RxMeta, ctx.get(dut.meta.payload.as_value())))
            await ctx.tick()

    bench.run(stimulus)
    assert len(got) == 32
    for frame, meta in zip(frames[:32], got, strict=True):
        compare(frame, meta)


@pytest.mark.parametrize("width", WIDTHS)
def test_reset_in_the_middle_of_a_packet(width):
    """The rest of the cut packet is a packet of its own or a runt; the next one is right."""
    rng = random.Random(width)
    frame = tcp_frame(rng, payload=rng.randbytes(400))
    config = config_of(width)
    bench = Bench(config)
    reset = Signal()
    m = Module()
    m.submodules.dut = ResetInserter(reset)(bench.dut)

    async def stimulus(ctx):
        ctx.set(bench.dut.enable, 1)
        await bench.send(ctx, frame)
        values = beats(frame, width)
        cut = len(values) // 2
        for k, value in enumerate(values):
            ctx.set(bench.dut.i.payload.as_value(), value)
            ctx.set(bench.dut.i.valid, 1)
            ctx.set(reset, k == cut)
            if k == cut:  # nothing that was under way survives
                bench.metas.clear()
                bench.values.clear()
                bench.decided, bench.offered = 0, False
                await ctx.tick()
            elif k < cut:
                await ctx.tick()
            else:
                await bench.tick(ctx)
        await bench.send(ctx, frame)
        await bench.drain(ctx)

    run(m, stimulus)
    assert bench.packets[-1] == frame and len(bench.packets) <= 2
    compare(frame, bench.metas[-1])


@pytest.mark.parametrize("width", (8, 64))
def test_sustained(width):
    """The buffer is passed many times over at full rate, and nothing is lost."""
    rng = random.Random(width)
    config = config_of(width, rx_buffer_beats=4096 // width, packets=32)
    frames = []
    while sum(-(-len(frame) // width) for frame in frames) < 3 * config.rx_buffer_beats:
        frames.append(tcp_frame(rng, payload=rng.randbytes(rng.choice((0, 10, 64, 200)))))
    bench = Bench(config)

    async def stimulus(ctx):
        for frame in frames:
            await bench.send(ctx, frame)
        await bench.drain(ctx)

    bench.run(stimulus)
    assert bench.counts["rx_drop_full"] == 0
    assert bench.packets == frames


def test_converts():
    dut = RxFrontEnd(config_of(64), 0)
    converts(dut)


def test_bad_port():
    with pytest.raises(ValueError, match="port must be"):
        RxFrontEnd(config_of(64), 1)
