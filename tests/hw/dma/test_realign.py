"""Realigner: every offset, many lengths, packets back to back."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator

from hw.dma.realign import Realigner
from tests.hw.simulate import converts


def realign(packets: list[tuple[int, bytes, bool]], gap: float = 0.0, seed: int = 0, size: int = 64):
    """Run packets of (offset, bytes, error) through; returns [(bytes, err)] and the cycles used."""
    dut = Realigner(size)
    rng = random.Random(seed)
    out: list[tuple[bytes, int]] = []
    used = 0

    async def bench(ctx):
        nonlocal used
        for offset, packet, bad in packets:
            padded = rng.randbytes(offset) + packet
            padded += rng.randbytes(-len(padded) % size)
            beats = len(padded) // size
            bad_beat = rng.randrange(beats) if bad else -1
            for i in range(beats):
                while rng.random() < gap:
                    ctx.set(dut.i_valid, 0)
                    await ctx.tick()
                ctx.set(dut.i_valid, 1)
                ctx.set(dut.i_data, int.from_bytes(padded[size * i : size * i + size], "little"))
                ctx.set(dut.i_error, i == bad_beat)
                ctx.set(dut.i_first, i == 0)
                ctx.set(dut.i_last, i == beats - 1)
                ctx.set(dut.i_offset, offset)
                ctx.set(dut.i_length, len(packet))
                used += 1
                await ctx.tick()
        ctx.set(dut.i_valid, 0)
        await ctx.tick().repeat(8)

    async def monitor(ctx):
        current = b""
        async for _, _, valid, value, count, last, err in ctx.tick().sample(
            dut.o_valid, dut.o_data, dut.o_count, dut.o_last, dut.o_err
        ):
            if not valid:
                continue
            assert 1 <= count <= size and (last or count == size)
            current += value.to_bytes(size, "little")[:count]
            if last:
                out.append((current, err))
                current = b""

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.add_testbench(monitor, background=True)
    sim.run()
    return out, used


@pytest.mark.parametrize("gap, size", [(0.0, 64), (0.4, 64), (0.0, 8), (0.4, 8), (0.2, 16), (0.2, 32)])
def test_every_offset(gap: float, size: int) -> None:
    rng = random.Random(7)
    packets = [
        (offset, rng.randbytes(length), False)
        for offset in range(size)
        for length in (rng.choice([1, 2, 14, 60]), rng.randrange(63, 67), rng.randrange(100, 300))
    ]
    rng.shuffle(packets)
    out, _ = realign(packets, gap, size=size)
    assert out == [(packet, 0) for _, packet, _ in packets]


@pytest.mark.parametrize("size", [64, 8])
def test_lengths_around_beats(size: int) -> None:
    rng = random.Random(8)
    packets = [
        (offset, rng.randbytes(length), False)
        for length in (beats * size + more for beats in (1, 2, 3) for more in (-1, 0, 1))
        for offset in (0, 1, size - 2, size - 1)
    ]
    out, _ = realign(packets, size=size)
    assert out == [(packet, 0) for _, packet, _ in packets]


@pytest.mark.parametrize("size", [64, 8])
def test_errors_mark_their_packet_only(size: int) -> None:
    rng = random.Random(9)
    packets = [
        (rng.randrange(size), rng.randbytes(rng.randrange(14, 260)), rng.random() < 0.4) for _ in range(80)
    ]
    out, _ = realign(packets, 0.1, size=size)
    assert out == [(packet, int(bad)) for _, packet, bad in packets]


def test_converts() -> None:
    converts(Realigner())
    converts(Realigner(8))
