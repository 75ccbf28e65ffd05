"""TxRead: bursts cover the frame, stop at 4 KiB, and never ask for more than there is room for."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import TX_DESCRIPTOR, Status, TxFlag, TxOpcode
from hw.config import NicConfig
from hw.dma.axi import ReadRequest
from hw.dma.descriptors import Popped
from hw.dma.tx_read import TxFrame, TxJob, TxRead
from tests.hw.simulate import always, collect, converts, feed, run, seeds_and_sizes, sometimes


@pytest.mark.parametrize("seed, size", seeds_and_sizes(3, (0, 8), (2, 16)))
def test_bursts_and_jobs(seed: int, size: int) -> None:
    rng = random.Random(seed)
    dut = TxRead(NicConfig(queues=4, width=8, axi_bytes=size, read_beats=4096))
    most = 12800 // size
    page = min(4096, 256 * size)
    frames = []
    for index in range(60):
        length = rng.choice([60, 1514, 9018, rng.randrange(14, 9019), 5])
        frames.append((index, rng.getrandbits(40), length))
    wanted = []
    for _, address, length in frames:
        at, end = address // size * size, address + length
        while length != 5 and at < end:
            stop = min(at // page * page + page, -(-end // size) * size)
            wanted.append((at, (stop - at) // size - 1))
            at = stop
    values = [
        Popped.const(
            {
                "queue": 1, "ok": 1, "index": index,
                "descriptor": TX_DESCRIPTOR.to_int(address=address, length=length, opcode=TxOpcode.SEND),
            }
        ).as_value().value
        for index, address, length in frames
    ]  # fmt: skip
    go = (lambda n: sometimes(seed * 9 + n, 0.5)) if seed else (lambda n: always)
    claimed = [0]

    async def room(ctx):
        left = most
        async for _, _, claim in ctx.tick().sample(dut.claim):
            left -= claim
            claimed[0] += claim
            assert left >= 0
            if left < most:
                left += 1
            ctx.set(dut.room, left)

    async def put(ctx):
        ctx.set(dut.room, most)
        await feed(ctx, dut.popped, values, go(0))

    async def requests(ctx):
        got = [data.Const(ReadRequest, v) for v in await collect(ctx, dut.request, len(wanted), go(1))]
        assert [(r.address, r.length) for r in got] == wanted
        await ctx.tick().repeat(8)
        assert ctx.get(dut.idle)
        assert claimed[0] == sum(length + 1 for _, length in wanted)

    async def jobs(ctx):
        got = [data.Const(TxJob(size), v) for v in await collect(ctx, dut.jobs, len(frames), go(2))]
        for job, (index, address, length) in zip(got, frames, strict=True):
            assert job.index == index
            assert job.status == (Status.BAD_LENGTH if length == 5 else Status.OK)
            if length != 5:
                beats = -(-(address % size + length) // size)
                assert (job.offset, job.length, job.beats) == (address % size, length, beats)
                assert job.extra == (beats != -(-length // size))

    run(dut, put, requests, jobs, background=[room], cycles=80000)


def test_one_descriptor_per_cycle() -> None:
    dut = TxRead(NicConfig(queues=4))
    value = TX_DESCRIPTOR.to_int(address=4096, length=60, opcode=TxOpcode.SEND)
    payload = Popped.const({"ok": 1, "descriptor": value}).as_value().value

    async def bench(ctx):
        ctx.set(dut.room, 100)
        ctx.set(Value.cast(dut.popped.payload), payload)
        ctx.set(dut.popped.valid, 1)
        ctx.set(dut.request.ready, 1)
        ctx.set(dut.jobs.ready, 1)
        await ctx.tick().until(dut.request.valid)
        for _ in range(50):
            _, _, valid = await ctx.tick().sample(dut.request.valid)
            assert valid

    run(dut, bench)


@pytest.mark.parametrize(
    "change, status",
    [
        ({}, Status.OK),
        ({"length": 54}, Status.OK),
        ({"length": 53}, Status.BAD_LENGTH),
        ({"length": 66, "timestamps": 1}, Status.OK),
        ({"length": 65, "timestamps": 1}, Status.BAD_LENGTH),
        ({"length": 9018}, Status.OK),
        ({"length": 9019}, Status.BAD_LENGTH),
        ({"l4_offset": 38}, Status.OK),
        ({"l4_offset": 54}, Status.BAD_ARGUMENT),
        ({"l4_offset": 36}, Status.BAD_ARGUMENT),
        ({"l4_offset": 54, "ipv6": 1}, Status.OK),
        ({"l4_offset": 58, "ipv6": 1}, Status.OK),
        ({"l4_offset": 34, "ipv6": 1}, Status.BAD_ARGUMENT),
        ({"port": 1}, Status.BAD_ARGUMENT),
        ({"address": (1 << 64) - 100}, Status.OK),
        ({"address": (1 << 64) - 99}, Status.BAD_ADDRESS),
    ],
)
def test_checks_of_final_frames(change: dict[str, int], status: int) -> None:
    config = NicConfig(flows=512)
    dut = TxRead(config)
    frame = {"address": 0x1234, "length": 100, "l4_offset": 34, "index": 7} | change
    frame["patch"] = {"wanted": 1, "timestamps": frame.pop("timestamps", 0)}
    value = TxFrame(config).const(frame).as_value().value

    async def bench(ctx):
        ctx.set(dut.room, 512)
        ctx.set(dut.request.ready, 1)
        await feed(ctx, dut.frames, [value])
        (job,) = (data.Const(TxJob(), v) for v in await collect(ctx, dut.jobs, 1))
        assert (job.status, job.final, job.command, job.notify) == (status, 1, 0, 0)
        if status == Status.OK:
            ipv6 = frame.get("ipv6", 0)
            assert (job.l4_offset, job.l3_offset) == (frame["l4_offset"], frame["l4_offset"] - (40 if ipv6 else 20))
            assert job.flags == TxFlag.L4_CHECKSUM | (TxFlag.IPV6 if ipv6 else TxFlag.IPV4_CHECKSUM)
            assert job.length == frame["length"]

    async def no_request_of_a_bad_one(ctx):
        async for _, _, valid in ctx.tick().sample(dut.request.valid):
            assert status == Status.OK or not valid

    run(dut, bench, background=[no_request_of_a_bad_one])


def test_frames_and_descriptors_alternate_without_a_gap() -> None:
    config = NicConfig(flows=512)
    dut = TxRead(config)
    descriptor = TX_DESCRIPTOR.to_int(address=4096, length=60, opcode=TxOpcode.SEND)
    frame = {"address": 8192, "length": 60, "l4_offset": 34}

    async def bench(ctx):
        ctx.set(dut.room, 512)
        ctx.set(Value.cast(dut.popped.payload), Popped.const({"ok": 1, "descriptor": descriptor}).as_value().value)
        ctx.set(Value.cast(dut.frames.payload), TxFrame(config).const(frame).as_value().value)
        for stream, value in ((dut.popped, "valid"), (dut.frames, "valid"), (dut.request, "ready"), (dut.jobs, "ready")):
            ctx.set(getattr(stream, value), 1)
        await ctx.tick().until(dut.request.valid)
        addresses = []
        for _ in range(40):
            _, _, valid, address = await ctx.tick().sample(dut.request.valid, dut.request.p.address)
            assert valid
            addresses.append(address)
        assert set(addresses[::2]) | set(addresses[1::2]) == {4096, 8192}
        assert len(set(addresses[::2])) == 1 and len(set(addresses[1::2])) == 1

    run(dut, bench)


def test_converts() -> None:
    converts(TxRead(NicConfig()))
