"""Realigner: every offset, many lengths, packets back to back."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator

from hw.dma.realign import Realigner
from tests.hw.simulate import converts


def realign(packets: list[tuple[int, bytes, bool]], gap: float = 0.0, seed: int = 0):
    """Run packets of (offset, bytes, error) through; returns [(bytes, err)] and the cycles used."""
    dut = Realigner()
    rng = random.Random(seed)
    out: list[tuple[bytes, int]] = []
    used = 0

    async def bench(ctx):
        nonlocal used
        for offset, packet, bad in packets:
            padded = rng.randbytes(offset) + packet
            padded += rng.randbytes(-len(padded) % 64)
            beats = len(padded) // 64
            bad_beat = rng.randrange(beats) if bad else -1
            for i in range(beats):
                while rng.random() < gap:
                    ctx.set(dut.i_valid, 0)
                    await ctx.tick()
                ctx.set(dut.i_valid, 1)
                ctx.set(dut.i_data, int.from_bytes(padded[64 * i : 64 * i + 64], "little"))
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
            assert 1 <= count <= 64 and (last or count == 64)
            current += value.to_bytes(64, "little")[:count]
            if last:
                out.append((current, err))
                current = b""

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.add_testbench(monitor, background=True)
    sim.run()
    return out, used


@pytest.mark.parametrize("gap", [0.0, 0.4])
def test_every_offset(gap: float) -> None:
    rng = random.Random(7)
    packets = [
        (offset, rng.randbytes(length), False)
        for offset in range(64)
        for length in (rng.choice([1, 2, 14, 60]), rng.randrange(63, 67), rng.randrange(100, 300))
    ]
    rng.shuffle(packets)
    out, _ = realign(packets, gap)
    assert out == [(packet, 0) for _, packet, _ in packets]


def test_lengths_around_beats() -> None:
    rng = random.Random(8)
    packets = [
        (offset, rng.randbytes(length), False)
        for length in (63, 64, 65, 127, 128, 129, 191, 192, 193)
        for offset in (0, 1, 62, 63)
    ]
    out, _ = realign(packets)
    assert out == [(packet, 0) for _, packet, _ in packets]


def test_errors_mark_their_packet_only() -> None:
    rng = random.Random(9)
    packets = [
        (rng.randrange(64), rng.randbytes(rng.randrange(14, 260)), rng.random() < 0.4) for _ in range(80)
    ]
    out, _ = realign(packets, 0.1)
    assert out == [(packet, int(bad)) for _, packet, bad in packets]


def test_converts() -> None:
    converts(Realigner())
