"""HeaderWindow and L3Peek: first bytes and early fields, for packets without gaps too."""

import random

import pytest
from amaranth import Module

from hw.packet.window import WINDOW_BYTES, HeaderWindow, L3Peek
from tests.hw.packet.test_parser import info_of
from tests.hw.packet.traffic import cases
from tests.hw.simulate import converts, run


@pytest.mark.parametrize("width", (8, 32, 64))
@pytest.mark.parametrize("pause", (0, 0.5))
def test_gathers(width, pause):
    rng = random.Random(width)
    window, peek = HeaderWindow(width, 8), L3Peek(width, 8)
    m = Module()
    m.submodules.window, m.submodules.peek = window, peek
    frames = cases(rng, 40) + [rng.randbytes(width) for _ in range(4)] + cases(rng, 10)
    checked = 0
    pending: list[bytes] = []  # packets that ended one, two cycles ago (or b"")

    async def bench(ctx):
        nonlocal checked

        async def tick(ended):
            nonlocal checked
            await ctx.tick()
            pending.insert(0, ended)
            if pending[0]:
                size = min(len(pending[0]), WINDOW_BYTES)
                octets = ctx.get(window.octets).to_bytes(WINDOW_BYTES, "little")
                assert octets[:size] == pending[0][:size]
                if len(pending[0]) >= 60:
                    assert ctx.get(peek.vlan) == (pending[0][12:14] == b"\x81\x00")
            if len(pending) > 1 and len(pending[1]) >= 60:
                want = info_of(pending[1])
                if not want["ipv4"] and not want["ipv6"]:
                    want = {name: want[name] for name in ("vlan", "ipv4", "ipv6", "ip_options")}
                assert {name: ctx.get(peek.info[name]) for name in want} == want
                checked += 1

        for frame in frames:
            for k, at in enumerate(range(0, len(frame), width)):
                while rng.random() < pause:
                    for part in (window, peek):
                        ctx.set(part.i_valid, 0)
                        ctx.set(part.i_data, rng.getrandbits(8 * width))
                    await tick(b"")
                for part in (window, peek):
                    ctx.set(part.i_valid, 1)
                    ctx.set(part.i_index, min(k, 255))
                    ctx.set(part.i_data, int.from_bytes(frame[at : at + width], "little"))
                await tick(frame if at + width >= len(frame) else b"")
        for part in (window, peek):
            ctx.set(part.i_valid, 0)
        await tick(b"")

    run(m, bench)
    assert checked >= 50


@pytest.mark.parametrize("dut", (HeaderWindow(64, 8), L3Peek(64, 8), L3Peek(8, 12)))
def test_converts(dut):
    converts(dut)
