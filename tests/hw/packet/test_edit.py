"""Editing blocks: options against a reader on bytes; shifts at all lengths, widths and with pauses; overlays."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest
from amaranth import Value

from hw.packet.edit import HeaderOverlay, NewHeader, OptionEditor, VlanShift
from tests.hw.packet.traffic import bad_options, good_options
from tests.hw.simulate import always, beats, collect, converts, feed, packets, run, sometimes
from tests.hw.tcp.splice_model import Way, rewrite_options

EDGES = (0, 1, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFF, 0x1000000, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)


# --- Options -----------------------------------------------------------------------------------


def number(rng: random.Random) -> int:
    return rng.choice((*EDGES, rng.getrandbits(32), rng.getrandbits(32)))


def any_way(rng: random.Random) -> Way:
    return Way(
        b"",
        b"",
        ack_offset=number(rng),
        tsval_offset=number(rng),
        tsecr_offset=number(rng),
        timestamps=rng.random() < 0.8,
        sack=rng.random() < 0.8,
    )


def numbers(rng: random.Random, count: int) -> bytes:
    return b"".join(number(rng).to_bytes(4, "big") for _ in range(count))


def padded(rng: random.Random, octets: bytes) -> bytes:
    space = -len(octets) % 4
    return octets + rng.choice((b"\x01" * space, b"\x00" + rng.randbytes(space - 1) if space else b""))


def full_options(rng: random.Random) -> bytes:
    """Timestamps and SACK blocks at any offset and in any order, some of them twice."""
    out = b""
    for _ in range(rng.randrange(1, 6)):
        blocks = rng.randrange(1, 5)
        option = rng.choice(
            (
                b"\x08\x0a" + numbers(rng, 2),
                bytes([5, 2 + 8 * blocks]) + numbers(rng, 2 * blocks),
                b"\x01" * rng.randrange(1, 6),
                b"\x1e" + bytes([blocks + 1]) + rng.randbytes(blocks - 1),
            )
        )
        if len(out) + len(option) <= 40:
            out += option
    return padded(rng, out)


def everywhere() -> list[bytes]:
    """Each option that matters at each offset at which it fits."""
    rng = random.Random(5)
    out = []
    for option in [b"\x08\x0a" + numbers(rng, 2)] + [bytes([5, 2 + 8 * n]) + numbers(rng, 2 * n) for n in (1, 2, 3, 4)]:
        out += [padded(rng, b"\x01" * at + option) for at in range(41 - len(option))]
    return out


def edit(cases: list[tuple[bytes, Way, bool]], seed: int) -> list[bytes]:
    """One list per cycle; the 40 bytes of each."""
    dut = OptionEditor()
    rng = random.Random(seed)
    results: list[bytes] = []
    behind = [rng.randbytes(40 - len(octets)) for octets, _, _ in cases]

    async def bench(ctx) -> None:
        for cycle in range(len(cases) + dut.LATENCY):
            if cycle < len(cases):
                octets, way, ack = cases[cycle]
                ctx.set(dut.i_octets, int.from_bytes(octets + behind[cycle], "little"))
                ctx.set(dut.i_words, len(octets) // 4)
                ctx.set(dut.i_timestamps, way.timestamps)
                ctx.set(dut.i_sack, way.sack)
                ctx.set(dut.i_tsval, way.tsval_offset)
                ctx.set(dut.i_tsecr, way.tsecr_offset if ack else 0)
                ctx.set(dut.i_edge, way.ack_offset)
            if cycle >= dut.LATENCY:
                results.append(ctx.get(dut.o_octets).to_bytes(40, "little"))
            await ctx.tick()

    run(dut, bench)
    for (octets, way, ack), rest, got in zip(cases, behind, results, strict=True):
        assert got == rewrite_options(octets, way, ack) + rest, (seed, octets.hex(), way, ack)
    return results


@pytest.mark.parametrize("make", [full_options, good_options, bad_options])
def test_random_lists(make) -> None:
    seed = 11
    rng = random.Random(seed)
    cases = [(make(rng), any_way(rng), rng.random() < 0.7) for _ in range(200)]
    results = edit(cases, seed)
    assert sum(got[: len(octets)] != octets for (octets, _, _), got in zip(cases, results, strict=True)) > 40


def test_every_option_everywhere() -> None:
    rng = random.Random(3)
    cases = [(octets, any_way(rng), True) for octets in everywhere()]
    assert len(cases) == 31 + 31 + 23 + 15 + 7
    edit(cases, 3)


def test_carries() -> None:
    """Through one, two and three full bytes, and never out of a number."""
    cases = []
    for value in EDGES:
        for offset in EDGES:
            octets = b"\x01\x05\x0a" + value.to_bytes(4, "big") * 2 + b"\x01"
            cases.append((octets, Way(b"", b"", ack_offset=offset), True))
    edit(cases, 4)


def test_option_editor_latency() -> None:
    assert OptionEditor.LATENCY == 15


# --- Shift -------------------------------------------------------------------------------------


def shifted(packet: bytes, change: int) -> bytes:
    """Without the first bytes if they mean nothing."""
    return {0: packet, 4: packet, -4: packet[4:]}[change]


def shift(width: int, jobs: list[tuple[bytes, int]], *, go_in=always, go_out=always, cycles: int = 20_000) -> int:
    """Cycles from the first beat offered to the last one taken; checks all packets."""
    dut = VlanShift(width)
    values, changes = [], []
    for packet, change in jobs:
        part = beats(packet, width)
        values += part
        changes += [change] * len(part)
    wanted = [len(packet) + change for packet, change in jobs]
    total = sum(-(-size // width) for size in wanted)
    taken: list[int] = []
    spent = [0]

    async def source(ctx) -> None:
        payload = Value.cast(dut.i.payload)
        for value, change in zip(values, changes, strict=True):
            while not go_in():
                ctx.set(dut.i.valid, 0)
                await ctx.tick()
            ctx.set(payload, value)
            ctx.set(dut.add, change == 4)
            ctx.set(dut.remove, change == -4)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def sink(ctx) -> None:
        taken.extend(await collect(ctx, dut.o, total, go_out))

    async def clock(ctx) -> None:
        while len(taken) < total:
            await ctx.tick()
            spent[0] += 1

    run(dut, source, sink, clock, cycles=cycles)
    got = packets(taken, width)
    assert len(got) == len(jobs)
    for (packet, change), result in zip(jobs, got, strict=True):
        assert len(result) == len(packet) + change
        assert result[4 if change == 4 else 0 :] == shifted(packet, change), (width, len(packet), change)
    return spent[0]


@pytest.mark.parametrize("width", [8, 32, 64])
def test_every_length(width: int) -> None:
    rng = random.Random(width)
    jobs = [(rng.randbytes(size), change) for size in range(60, 200 if width > 8 else 130) for change in (4, -4, 0)]
    rng.shuffle(jobs)
    shift(width, jobs)


@pytest.mark.parametrize("width", [8, 64])
def test_pauses(width: int) -> None:
    rng = random.Random(width)
    jobs = [(rng.randbytes(rng.randrange(60, 200)), rng.choice((4, -4, 0))) for _ in range(150)]
    shift(width, jobs, go_in=sometimes(1, 0.6), go_out=sometimes(2, 0.6))


@pytest.mark.parametrize("change", [0, 4, -4])
def test_rates(change: int) -> None:
    """A beat per cycle; packets of one beat too."""
    size = 60 if change >= 0 else 64
    assert shift(64, [(bytes(range(size)), change)] * 100) <= 102
    assert shift(64, [(bytes(640), change)] * 10) <= 102 + (10 if change == 4 else 0)


# --- Overlay -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 64])
def test_overlay(width: int) -> None:
    size = 118
    rng = random.Random(width)
    frames = [rng.randbytes(rng.choice((60, 64, 65, rng.randrange(60, 300)))) for _ in range(60)]
    headers = [(rng.randbytes(size), rng.getrandbits(size), rng.getrandbits(1), rng.random() < 0.2) for _ in frames]
    dut = HeaderOverlay(width, size)
    layout = NewHeader(size)
    values = [
        layout.const({"octets": int.from_bytes(octets, "little"), "written": written, "port": port, "drop": drop})
        for octets, written, port, drop in headers
    ]
    wanted, ports = [], []
    for frame, (octets, written, port, drop) in zip(frames, headers, strict=True):
        if not drop:
            wanted.append(
                bytes(octets[k] if k < size and written >> k & 1 else octet for k, octet in enumerate(frame))
            )
            ports += [port] * len(beats(frame, width))
    taken: list[int] = []
    seen, left, dropped = [], [0], [0]
    over = [False]

    async def source(ctx) -> None:
        await feed(ctx, dut.packets, [v for frame in frames for v in beats(frame, width)], sometimes(1, 0.8))
        await ctx.tick()
        over[0] = True

    async def header_source(ctx) -> None:
        await feed(ctx, dut.headers, [value.as_value().value for value in values], sometimes(2, 0.8))

    async def sink(ctx) -> None:
        taken.extend(await collect(ctx, dut.o, len(ports), sometimes(3, 0.8)))

    async def monitor(ctx) -> None:
        while not over[0]:
            sampled = ctx.tick().sample(dut.o.valid & dut.o.ready, dut.port, dut.left, dut.dropped)
            _, _, moved, port, ends, gone = await sampled
            if moved:
                seen.append(port)
            left[0] += ends
            dropped[0] += gone

    run(dut, source, header_source, sink, monitor)
    assert packets(taken, width) == wanted and seen == ports
    assert left[0] == len(frames) and dropped[0] == sum(drop for *_, drop in headers) > 0


def test_netlists() -> None:
    converts(VlanShift(64))
    converts(HeaderOverlay(64, 118))


def test_bad_width() -> None:
    with pytest.raises(ValueError, match=r"^width must be at least 8, not 4$"):
        VlanShift(4)
