"""ChecksumUpdate against scapy's checksum over the whole of random packets, before and after."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest
from scapy.utils import checksum

from hw.packet.checksum_update import ChecksumUpdate
from tests.hw.simulate import converts, run

SIZE = 60


def words(octets: bytes) -> list[int]:
    return [int.from_bytes(octets[at : at + 2], "big") for at in range(0, len(octets), 2)]


def changed(rng: random.Random, count: int) -> tuple[bytes, bytes, list[int]]:
    """A packet, what becomes of it, and the words that may differ: 32-bit numbers at any offset, odd ones too."""
    before = bytearray(rng.choice((rng.randbytes(SIZE), bytes(SIZE), b"\xff" * SIZE)))
    before[0] = 0x45  # no packet is all zeros
    after = bytearray(before)
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(2, 2 * count - 3)
        number = int.from_bytes(after[at : at + 4], "big")
        change = rng.choice((0, 1, 0xFFFFFFFF, 0xFFFF, 0xFFFF0000, rng.getrandbits(32)))
        after[at : at + 4] = (number + change & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(before), bytes(after), list(range(count))


@pytest.mark.parametrize("count", [3, 20, 24])
def test_random_packets(count: int) -> None:
    seed = count
    rng = random.Random(seed)
    dut = ChecksumUpdate(count, count)
    cases = [changed(rng, count) for _ in range(120)]
    wrongs = [rng.choice((0, 0, 1, 0x8000, rng.randrange(0xFFFF))) for _ in cases]
    given = [(checksum(before) + wrong) % 0xFFFF for (before, _, _), wrong in zip(cases, wrongs, strict=True)]
    got: list[int] = []

    async def bench(ctx) -> None:
        for cycle in range(len(cases) + dut.latency):
            if cycle < len(cases):
                before, after, numbers = cases[cycle]
                ctx.set(dut.i_checksum, given[cycle])
                for k in numbers:
                    ctx.set(dut.i_old[k], words(before)[k])
                    ctx.set(dut.i_new[k], words(after)[k])
            if cycle >= dut.latency:
                got.append(ctx.get(dut.o_checksum))
            await ctx.tick()

    run(dut, bench)
    assert len(got) == len(cases)
    for (_, after, _), wrong, value in zip(cases, wrongs, got, strict=True):
        # As wrong as it was: by the same number, modulo 0xffff.
        assert value == (checksum(after) + wrong) % 0xFFFF, (seed, after.hex(), wrong)


def test_both_zeros() -> None:
    """A checksum that came as 0xffff, the other zero, verifies and leaves as what computing it anew gives."""
    before, after = b"\x45\x00\xba\xff", b"\x45\x00\xba\xfe"  # the words add up to 0xffff
    assert checksum(before) == 0
    dut = ChecksumUpdate(1, 1)

    async def bench(ctx) -> None:
        ctx.set(dut.i_checksum, 0xFFFF)
        ctx.set(dut.i_old[0], words(before)[1])
        ctx.set(dut.i_new[0], words(after)[1])
        await ctx.tick().repeat(dut.latency)
        assert ctx.get(dut.o_checksum) == checksum(after) == 1

    run(dut, bench)


def test_latency_and_netlist() -> None:
    assert ChecksumUpdate(24, 24).latency == 5
    assert ChecksumUpdate(0, 20).latency == 5
    converts(ChecksumUpdate(2, 2))


def test_bad_parameters() -> None:
    with pytest.raises(ValueError, match=r"^old must be a number of words from 0 to 16384, not -1$"):
        ChecksumUpdate(-1, 2)
    with pytest.raises(ValueError, match=r"^old and new must not both be 0$"):
        ChecksumUpdate(0, 0)
