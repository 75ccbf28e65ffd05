"""`CmacBringUp`: the vendor's sequence."""

import dataclasses

import pytest

import boards
from hw.shell.cmac import CmacBringUp, cmac

from ..simulate import converts, run

SETTLE = 8


def outputs(ctx, dut):
    return {name: ctx.get(getattr(dut, name)) for name in ("send_fault", "send_idle", "enable", "restart", "up")}


def expected(**high):
    return {"send_fault": 0, "send_idle": 0, "enable": 0, "restart": 0, "up": 0} | high


async def wait(ctx, cycles):
    for _ in range(cycles):
        await ctx.tick()


def test_sequence():
    dut = CmacBringUp(SETTLE)

    async def bench(ctx):
        await wait(ctx, 20)
        assert outputs(ctx, dut) == expected(send_fault=1)
        ctx.set(dut.aligned, 1)
        ctx.set(dut.remote_fault, 1)
        await wait(ctx, 20)
        assert outputs(ctx, dut) == expected(send_idle=1, enable=1)
        ctx.set(dut.remote_fault, 0)
        await wait(ctx, SETTLE - 1)
        assert outputs(ctx, dut) == expected(enable=1)
        await wait(ctx, 2)
        assert outputs(ctx, dut) == expected(enable=1, up=1)
        # Lost: the sender starts anew, and the link stays down for a while even if it is good at once.
        ctx.set(dut.aligned, 0)
        await wait(ctx, 1)
        assert outputs(ctx, dut) == expected(send_fault=1, restart=1)
        ctx.set(dut.aligned, 1)
        for _ in range(SETTLE - 1):
            await wait(ctx, 1)
            assert outputs(ctx, dut) == expected(enable=1, restart=1)
        for _ in range(SETTLE):
            await wait(ctx, 1)
            assert outputs(ctx, dut) == expected(enable=1)
        await wait(ctx, 1)
        assert outputs(ctx, dut) == expected(enable=1, up=1)

    run(dut, bench)


def test_a_flapping_link_is_not_up():
    dut = CmacBringUp(SETTLE)

    async def bench(ctx):
        for _ in range(10):
            for aligned in (1, 0):
                ctx.set(dut.aligned, aligned)
                await wait(ctx, SETTLE - 1)
                assert not ctx.get(dut.up)

    run(dut, bench)


def test_converts():
    converts(CmacBringUp())


def test_lanes_are_neighbours():
    mac = dataclasses.replace(boards.load("alveo_u50").macs[0], lanes="X0Y28~X0Y30")
    with pytest.raises(ValueError, match="lanes must be 4 neighbours, first~last, not 'X0Y28~X0Y30'"):
        cmac(0, mac, 9018, 100.0)
