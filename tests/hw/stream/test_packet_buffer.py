# amaranth: UnusedElaboratable=no
"""PacketBuffer: keeps, frees, rewinds; full speed; overflow costs only the packet concerned."""

import random

import pytest
from amaranth import Value

from hw.stream.beat import BeatLayout
from hw.stream.checker import checked
from hw.stream.packet_buffer import PacketBuffer
from tests.hw.simulate import always, beats, collect, converts, feed, packets, run, seeds, sometimes


async def write(ctx, dut, width, frames, verdicts, go=always):
    """Puts (packet, err) in and notes what became of each: "kept", "lost" or "bad"."""
    payload = Value.cast(dut.i.payload)

    async def tick(ended):
        await ctx.tick()
        kept, lost = ctx.get(dut.kept), ctx.get(dut.lost)
        assert not (kept and lost) and (ended or not (kept or lost))
        if ended:
            verdicts.append("kept" if kept else "lost" if lost else "bad")

    for frame, err in frames:
        values = beats(frame, width, err=err)
        for value in values:
            while not go():
                ctx.set(dut.i.valid, 0)
                await tick(False)
            ctx.set(payload, value)
            ctx.set(dut.i.valid, 1)
            await tick(value is values[-1])
    ctx.set(dut.i.valid, 0)


def make(seed, width, count):
    rng = random.Random(seed)
    sizes = [rng.choice((1, width, width + 1, rng.randrange(1, 4 * width + 1))) for _ in range(count)]
    return [(rng.randbytes(size), rng.random() < 0.2) for size in sizes]


@pytest.mark.parametrize("width", (8, 32, 64))
@pytest.mark.parametrize("pauses", (False, True))
@pytest.mark.parametrize("seed", seeds(2))
def test_keep_and_free(width, pauses, seed):
    """No overflow here: the writer waits while the buffer is half full."""
    rng = random.Random(seed)
    dut = PacketBuffer(width, 64, 16)
    frames = make(seed, width, 40)
    good = [frame for frame, err in frames if not err]
    keep = [rng.random() < 0.6 for _ in good]
    want = [frame for frame, kept in zip(good, keep, strict=True) if kept]
    total = sum(-(-len(frame) // width) for frame in want)
    go = [sometimes(seed + k, 0.6) if pauses else always for k in range(3)]
    verdicts: list[str] = []

    async def writer(ctx):
        for frame in frames:
            while ctx.get(dut.waiting) > 6:
                await ctx.tick()
            await write(ctx, dut, width, [frame], verdicts, go[0])
        assert verdicts == ["bad" if err else "kept" for _, err in frames]

    async def reader(ctx):
        assert packets(await collect(ctx, dut.packets, total, go[2]), width) == want
        for _ in range(60):
            await ctx.tick()
        assert not ctx.get(dut.busy)

    takes = lambda ctx: feed(ctx, dut.take, map(int, keep), go[1])  # noqa: E731
    run(checked(dut, dut.packets), writer, takes, reader, cycles=4000)


@pytest.mark.parametrize("width", (8, 64))
def test_one_beat_packets_at_one_per_cycle(width):
    count = 40
    dut = PacketBuffer(width, 64, 64)
    frames = [(bytes([k]) * width, False) for k in range(count)]
    taken = []

    async def bench(ctx):
        ctx.set(dut.packets.ready, 1)
        ctx.set(dut.take.valid, 1)
        ctx.set(dut.take.p.keep, 1)
        for cycle in range(count + 12):
            if cycle < count:
                ctx.set(dut.i.payload.as_value(), beats(frames[cycle][0], width)[0])
            ctx.set(dut.i.valid, cycle < count)
            if ctx.get(dut.packets.valid):
                taken.append((cycle, ctx.get(dut.packets.p.data) & 0xFF))
            await ctx.tick()
        assert not ctx.get(dut.busy)

    run(dut, bench)
    first = taken[0][0]
    assert taken == [(first + k, k) for k in range(count)]


def test_free_takes_one_cycle_whatever_the_length():
    width = 8
    dut = PacketBuffer(width, 64, 16)
    frames = [(bytes(width * 12), False)] * 5

    async def bench(ctx):
        await write(ctx, dut, width, frames, [])
        for _ in range(6):
            await ctx.tick()
        ctx.set(dut.take.valid, 1)
        for _ in range(5):
            assert ctx.get(dut.take.ready)
            await ctx.tick()
        ctx.set(dut.take.valid, 0)
        await ctx.tick()
        await ctx.tick()
        assert not ctx.get(dut.busy)

    run(dut, bench)


def test_full_memory_loses_only_the_packet():
    width, depth = 8, 16
    dut = PacketBuffer(width, depth, 8)
    # 10 + 5 beats fit, 2 and an endless one do not, 1 does.
    sizes = [10, 5, 2, 100, 1, 1]
    frames = [(bytes([k]) * width * size, False) for k, size in enumerate(sizes)]

    async def bench(ctx):
        verdicts: list[str] = []
        await write(ctx, dut, width, frames, verdicts)
        assert verdicts == ["kept", "kept", "lost", "lost", "kept", "lost"]
        ctx.set(dut.take.valid, 1)
        ctx.set(dut.take.p.keep, 1)
        got = packets(await collect(ctx, dut.packets, 16), width)
        assert [(packet[0], len(packet) // width) for packet in got] == [(0, 10), (1, 5), (4, 1)]
        # Everything is free again.
        ctx.set(dut.take.valid, 0)
        await write(ctx, dut, width, [(bytes(width * depth), False)], verdicts)
        assert verdicts[-1] == "kept"

    run(dut, bench)


def test_room_in_the_middle_of_a_packet_comes_too_late():
    """A packet that met a full memory is lost, though its later beats would fit."""
    width, depth = 8, 16
    dut = PacketBuffer(width, depth, 8)
    payload = Value.cast(dut.i.payload)

    async def bench(ctx):
        verdicts: list[str] = []
        await write(ctx, dut, width, [(bytes(12 * width), False)], verdicts)
        values = beats(bytes(8 * width), width)
        for k, value in enumerate(values):
            if k == 6:  # two beats have been lost by now: free the first packet
                ctx.set(dut.i.valid, 0)
                ctx.set(dut.take.valid, 1)
                for _ in range(6):
                    await ctx.tick()
            ctx.set(payload, value)
            ctx.set(dut.i.valid, 1)
            await ctx.tick()
        ctx.set(dut.i.valid, 0)
        assert ctx.get(dut.lost) and not ctx.get(dut.kept)
        await write(ctx, dut, width, [(bytes(depth * width), False)], verdicts)
        assert verdicts == ["kept", "kept"]

    run(dut, bench)


def test_too_many_packets_and_no_room():
    width = 8
    dut = PacketBuffer(width, 64, 4)

    async def bench(ctx):
        verdicts: list[str] = []
        await write(ctx, dut, width, [(b"a", False)] * 6, verdicts)
        assert verdicts == ["kept"] * 4 + ["lost"] * 2
        ctx.set(dut.take.valid, 1)
        for _ in range(20):
            await ctx.tick()
        ctx.set(dut.take.valid, 0)
        ctx.set(dut.room, 0)
        await write(ctx, dut, width, [(b"b", False), (b"c", True)], verdicts)
        ctx.set(dut.room, 1)
        await write(ctx, dut, width, [(b"d" * 20, False)], verdicts)
        assert verdicts[6:] == ["lost", "bad", "kept"]

    run(dut, bench)


@pytest.mark.parametrize("seed", seeds(3))
def test_random_overflow(seed):
    """Whatever is lost, the packets that were kept come out whole and in order."""
    width = 8
    rng = random.Random(seed)
    dut = PacketBuffer(width, 16, 16)
    frames = make(seed, width, 80)
    verdicts: list[str] = []
    out: list[int] = []
    keep: list[bool] = []
    done = False

    async def writer(ctx):
        nonlocal done
        await write(ctx, dut, width, frames, verdicts, sometimes(seed, 0.8))
        for _ in range(300):
            await ctx.tick()
        assert not ctx.get(dut.busy)
        done = True

    async def taker(ctx):
        while not done:
            decision = rng.random() < 0.7
            ctx.set(dut.take.p.keep, decision)
            ctx.set(dut.take.valid, 1)
            while not done:
                (ready,) = (await ctx.tick().sample(dut.take.ready))[-1:]
                if ready:
                    keep.append(decision)
                    break
            ctx.set(dut.take.valid, 0)
            while rng.random() < 0.8:
                await ctx.tick()

    async def reader(ctx):
        while not done:
            if ctx.get(dut.packets.valid):
                out.extend(await collect(ctx, dut.packets, 1, sometimes(rng.randrange(99))))
            await ctx.tick()

    run(checked(dut, dut.packets), writer, taker, reader, cycles=4000)
    kept = [frame for (frame, _), verdict in zip(frames, verdicts, strict=True) if verdict == "kept"]
    assert "lost" in verdicts and len(kept) > 10
    assert packets(out, width) == [frame for frame, taken in zip(kept, keep, strict=True) if taken]


def test_bad_parameters_and_convert():
    with pytest.raises(ValueError, match="depth must be"):
        PacketBuffer(8, 10, 4)
    with pytest.raises(ValueError, match="packets must be"):
        PacketBuffer(8, 16, 1)
    dut = PacketBuffer(64, 1024, 512)
    assert len(Value.cast(dut.i.payload)) == BeatLayout(64).size
    converts(dut)
