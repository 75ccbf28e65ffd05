"""TxSums: patches equal scapy's checksums, frames of one beat in every cycle, bad ones left out."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import TxFlag
from hw.packet.tx_sums import Patch, TxSums
from tests.hw.packet.test_tx_checksum import frame
from tests.hw.simulate import beats, converts, run


@pytest.mark.parametrize("width", [8, 64])
def test_patches(width: int) -> None:
    rng = random.Random(width)
    dut = TxSums(width)
    cases = [frame(rng, rng.choice([0, 6, rng.randrange(120)])) for _ in range(50)]
    for case in cases:
        case.err = rng.random() < 0.2
    good = [case for case in cases if not case.err]
    discarded = [0]
    patches: list[data.Const] = []

    async def put(ctx):
        for case in cases:
            ctx.set(Value.cast(dut.i_meta), case.meta())
            for value in beats(case.given, width, case.err):
                ctx.set(Value.cast(dut.i_beat), value)
                ctx.set(dut.i_valid, 1)
                await ctx.tick()
        ctx.set(dut.i_valid, 0)
        await ctx.tick().repeat(20)

    async def get(ctx):
        async for _, _, valid, value, gone in ctx.tick().sample(
            dut.o_valid, Value.cast(dut.o_patch), dut.o_discarded
        ):
            discarded[0] += gone
            if valid:
                patches.append(data.Const(Patch, value))

    run(dut, put, background=[get])
    assert discarded[0] == len(cases) - len(good)
    for patch, case in zip(patches, good, strict=True):
        assert (patch.port, patch.length) == (case.port, len(case.given))
        assert patch.l3_on == bool(case.flags & TxFlag.IPV4_CHECKSUM)
        assert patch.l4_on == bool(case.flags & TxFlag.L4_CHECKSUM)
        for on, at, value in (
            (patch.l3_on, patch.l3_at, patch.l3_value),
            (patch.l4_on, patch.l4_at, patch.l4_value),
        ):
            if on:
                assert value == int.from_bytes(case.wanted[at : at + 2], "big")


def test_converts() -> None:
    converts(TxSums(32))
