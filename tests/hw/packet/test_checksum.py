"""MaskedSum against a direct one's-complement sum, and against scapy's checksums."""

import random

import pytest
from scapy.layers.inet import IP, TCP
from scapy.utils import checksum

from hw.packet.checksum import MaskedSum
from tests.hw.simulate import converts, run, seeds


def reference(packet: bytes, mask: list[bool]) -> int:
    total = 0
    for i, (byte, use) in enumerate(zip(packet, mask, strict=True)):
        if use:
            total += byte << 8 if i % 2 == 0 else byte
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def simulate(width: int, packets: list[tuple[bytes, list[bool]]], pause: float, seed: int) -> list[int]:
    dut = MaskedSum(width)
    rng = random.Random(seed)
    sums: list[int] = []
    ends: list[int] = []
    out_cycles: list[int] = []

    async def bench(ctx):
        cycle = 0

        async def tick():
            nonlocal cycle
            if ctx.get(dut.o_valid):
                sums.append(ctx.get(dut.o_sum))
                out_cycles.append(cycle)
            await ctx.tick()
            cycle += 1

        for packet, mask in packets:
            for at in range(0, len(packet), width):
                while rng.random() < pause:
                    ctx.set(dut.i_valid, 0)
                    await tick()
                part = packet[at : at + width]
                bits = sum(use << i for i, use in enumerate(mask[at : at + width]))
                last = at + width >= len(packet)
                # Bytes past the end are not masked in, so whatever they hold must not matter.
                garbage = bytes(rng.randrange(256) for _ in range(width - len(part)))
                ctx.set(dut.i_data, int.from_bytes(part + garbage, "little"))
                ctx.set(dut.i_mask, bits)
                ctx.set(dut.i_first, at == 0)
                ctx.set(dut.i_last, last)
                ctx.set(dut.i_valid, 1)
                if last:
                    ends.append(cycle)
                await tick()
        ctx.set(dut.i_valid, 0)
        for _ in range(dut.latency + 1):
            await tick()

    run(dut, bench)
    assert out_cycles == [end + dut.latency for end in ends]
    return sums


@pytest.mark.parametrize("width", (2, 8, 32, 64))
@pytest.mark.parametrize("pause", (0, 0.4))
@pytest.mark.parametrize("seed", seeds(2))
def test_random(width, pause, seed):
    rng = random.Random(seed)
    packets = []
    for _ in range(40):
        size = rng.choice((1, width, rng.randrange(1, 4 * width + 1)))
        packet = rng.choice((rng.randbytes(size), b"\xff" * size, bytes(size)))
        packets.append((packet, [rng.random() < 0.7 for _ in packet]))
    assert simulate(width, packets, pause, seed) == [reference(*item) for item in packets]


@pytest.mark.parametrize("width", (8, 64))
def test_scapy_header(width):
    header = bytes(IP(src="10.1.2.3", dst="10.4.5.6", len=40) / TCP())[:20]
    broken = bytearray(header)
    broken[8] ^= 1
    good, bad = simulate(width, [(header, [True] * 20), (bytes(broken), [True] * 20)], 0, 0)
    assert good == 0xFFFF
    assert bad != 0xFFFF and checksum(bytes(broken)) == bad ^ 0xFFFF


def test_long_packet_does_not_overflow():
    packet = b"\xff" * 16128
    assert simulate(64, [(packet, [True] * len(packet))], 0, 0) == [0xFFFF]


def test_converts():
    converts(MaskedSum(64))
