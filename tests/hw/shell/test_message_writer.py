"""`MessageWriter`: bursts and messages keep whole and in order."""

import random

import pytest

from hw.config import AXI_BYTES
from hw.shell.message_writer import MessageWriter

from ..simulate import converts, run, seeds, sometimes


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("order", ["address first", "data first", "mixed"])
def test_messages_between_bursts(seed, order):
    dut = MessageWriter()
    rng = random.Random(seed)
    bursts = [(number, rng.randint(1, 5)) for number in range(60)]
    wanted = [(0xFEE0_0000 + 4 * rng.randrange(64), rng.getrandbits(32)) for _ in range(20)]
    addresses, beats, answered = [], [], []
    sent_aw = sent_w = 0

    async def send_aw(ctx):
        nonlocal sent_aw
        go = sometimes(seed + 1)
        for number, length in bursts:
            while not go() or (order == "data first" and sent_w <= number and rng.random() < 0.9):
                await ctx.tick()
            ctx.set(dut.core.awaddr, number * 4096)
            ctx.set(dut.core.awid, number % 3)
            ctx.set(dut.core.awlen, length - 1)
            ctx.set(dut.core.awsize, AXI_BYTES.bit_length() - 1)
            ctx.set(dut.core.awvalid, 1)
            await ctx.tick().until(dut.core.awready)
            ctx.set(dut.core.awvalid, 0)
            sent_aw += 1

    async def send_w(ctx):
        nonlocal sent_w
        go = sometimes(seed + 2)
        for number, length in bursts:
            while order == "address first" and sent_aw <= number:
                await ctx.tick()
            for beat in range(length):
                while not go():
                    await ctx.tick()
                ctx.set(dut.core.wdata, number * 16 + beat)
                ctx.set(dut.core.wstrb, (1 << AXI_BYTES) - 1)
                ctx.set(dut.core.wlast, beat == length - 1)
                ctx.set(dut.core.wvalid, 1)
                await ctx.tick().until(dut.core.wready)
                ctx.set(dut.core.wvalid, 0)
            sent_w += 1

    async def send_messages(ctx):
        for address, value in wanted:
            for _ in range(rng.randrange(12)):
                await ctx.tick()
            ctx.set(dut.message.p.address, address)
            ctx.set(dut.message.p.data, value)
            ctx.set(dut.message.valid, 1)
            await ctx.tick().until(dut.message.ready)
            ctx.set(dut.message.valid, 0)

    async def take_aw(ctx):
        go = sometimes(seed + 3)
        while len(addresses) < len(bursts) + len(wanted):
            ctx.set(dut.bus.awready, go())
            valid, ready, *fields = (
                await ctx.tick().sample(
                    dut.bus.awvalid, dut.bus.awready, dut.bus.awid, dut.bus.awaddr, dut.bus.awlen, dut.bus.awsize
                )
            )[-6:]
            if valid and ready:
                addresses.append(fields)
        ctx.set(dut.bus.awready, 1)

    async def take_w(ctx):
        go = sometimes(seed + 4)
        left = sum(length for _, length in bursts) + len(wanted)
        while len(beats) < left:
            ctx.set(dut.bus.wready, go())
            valid, ready, *fields = (
                await ctx.tick().sample(
                    dut.bus.wvalid, dut.bus.wready, dut.bus.wdata, dut.bus.wstrb, dut.bus.wlast
                )
            )[-5:]
            if valid and ready:
                beats.append(fields)

    run(dut, send_aw, send_w, send_messages, take_aw, take_w)
    found, at = [], 0
    for identifier, address, length, size in addresses:
        burst, at = beats[at : at + length + 1], at + length + 1
        assert [last for _, _, last in burst] == [0] * length + [1]
        assert 1 << size == AXI_BYTES
        if identifier >= 4:
            ((value, strobe, _),) = burst
            lane = address % AXI_BYTES
            assert strobe == 0xF << lane
            found.append((address, value >> 8 * lane & 0xFFFF_FFFF))
        else:
            number = address // 4096
            answered.append(number)
            assert identifier == number % 3
            assert [value for value, _, _ in burst] == [number * 16 + beat for beat in range(length + 1)]
    assert found == wanted
    assert answered == [number for number, _ in bursts]


def test_answers_go_to_whom_they_belong():
    dut = MessageWriter()

    async def bench(ctx):
        for identifier, ready in ((2, 0), (2, 1), (4, 0), (4, 1)):
            ctx.set(dut.bus.bid, identifier)
            ctx.set(dut.bus.bresp, 2)
            ctx.set(dut.bus.bvalid, 1)
            ctx.set(dut.core.bready, ready)
            await ctx.tick()
            assert ctx.get(dut.core.bvalid) == (identifier == 2)
            assert ctx.get(dut.bus.bready) == (identifier == 4 or ready)
            assert ctx.get(dut.core.bid) == identifier % 4 and ctx.get(dut.core.bresp) == 2

    run(dut, bench)


def test_converts():
    converts(MessageWriter())
