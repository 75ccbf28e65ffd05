"""The payload writer alone: alignment, bursts, strobes and full rate."""

import random

import pytest
from amaranth import Value

from hw.config import NicConfig
from hw.dma.rx_allocate import RxPlan
from hw.dma.rx_write import RxWrite
from tests.hw.simulate import always, beats, collect, converts, feed, run, seeds_and_sizes, sometimes

from .memory import Memory, Traffic, serve_writes

FILL = 0xA5


def config(size=64, **options):
    return NicConfig(queues=2, width=32 if size >= 32 else 8, axi_bytes=size, read_beats=4096, **options)


def plan(address, length, port=0, size=64):
    shift = address % size
    lines, needed = -(-(shift + length) // size), -(-length // size)
    return (
        RxPlan(size)
        .const(
            {
                "port": port,
                "line": address // size,
                "shift": shift,
                "end": (shift + length - 1) % size,
                "lines": lines - 1,
                "residual": lines != needed,
            }
        )
        .as_value()
        .value
    )


def simulate(jobs, *, packet_go=always, bus_go=always, latency=10, ports=1, answered_go=always, size=64, **options):
    """Write (address, octets, port) jobs; returns memory, traffic and the answers."""
    dut, memory, traffic = RxWrite(config(size, ports=ports, **options)), Memory(fill=FILL), Traffic()
    page = min(4096, 256 * size)
    pages = [((a + len(o) - 1) // page - a // page) + 1 for a, o, _ in jobs]
    answers = []

    async def plans(ctx):
        await feed(ctx, dut.plan, [plan(a, len(o), p, size) for a, o, p in jobs])

    def packets(port):
        async def main(ctx):
            for _, octets, p in jobs:
                if p == port:
                    await feed(ctx, dut.packets[port], beats(octets, size), packet_go)

        return main

    async def answered(ctx):
        answers.extend(await collect(ctx, dut.answered, sum(pages), answered_go))

    async def bus(ctx):
        await serve_writes(
            ctx, dut.write, memory, latency=latency, request_go=bus_go, response_go=bus_go, traffic=traffic
        )

    run(dut, plans, *(packets(p) for p in range(ports)), answered, cycles=20_000, background=[bus])
    return memory, traffic, answers


@pytest.mark.parametrize("seed, size", seeds_and_sizes(3, (0, 8), (2, 16), (3, 32)))
def test_any_alignment_and_length(seed, size):
    rng = random.Random(seed)
    jobs, at = [], 0x3_0000_0000
    for i in range(120):
        if i % 4 == 3:  # near the end of a page
            at = (at | 4095) + 1 - rng.randrange(130)
        at += 64 + rng.randrange(64)
        octets = rng.randbytes(rng.choice((1, 2, 63, 64, 65, rng.randrange(1, 200), rng.randrange(1, 200))))
        jobs.append((at, octets, rng.randrange(2)))
        at += len(octets)
    memory, _, answers = simulate(
        jobs, packet_go=sometimes(seed, 0.8), bus_go=sometimes(seed + 1, 0.7), ports=2,
        answered_go=sometimes(seed, 0.6), writes=8, size=size,
    )
    start = jobs[0][0] - 256
    image = bytearray([FILL]) * (at - start + 256)
    for address, octets, _ in jobs:
        image[address - start : address - start + len(octets)] = octets
    assert memory.read(start, len(image)) == image
    assert not any(answers)


def test_every_alignment_of_short_packets():
    rng = random.Random(0)
    jobs = [
        (0x1000 * (i + 1) - 64 + shift, rng.randbytes(length), 0)
        for i, (shift, length) in enumerate((s, n) for s in range(64) for n in (1, 64, 66))
    ]
    memory, _, _ = simulate(jobs)
    for address, octets, _ in jobs:
        guard = bytes([FILL]) * 64
        assert memory.read(address - 64, len(octets) + 128) == guard + octets + guard


def test_long_bursts_are_cut():
    """At 4 KiB, and at 2 KiB on a bus of 8 bytes, which has more beats there than a burst may."""
    octets = random.Random(4).randbytes(9000)
    memory, traffic, answers = simulate([(0x1FF5, octets, 0)], size=8)
    assert memory.read(0x1FF5 - 64, 9128) == bytes([FILL]) * 64 + octets + bytes([FILL]) * 64
    assert [(at, beats) for _, at, beats in traffic.bursts] == [
        (0x1FF0, 2), *((at, 256) for at in range(0x2000, 0x4000, 0x800)), (0x4000, 100),
    ]  # fmt: skip
    assert not any(answers)


@pytest.mark.parametrize(
    "shift, length, lines, size",
    [(0, 64, 1, 64), (4, 60, 1, 64), (2, 1514, 24, 64), (63, 64, 2, 64), (0, 64, 8, 8), (2, 60, 8, 8), (7, 9, 2, 8), (2, 1514, 190, 8)],
)
def test_no_gap_between_packets(shift, length, lines, size):
    count = 200 if lines < 3 else max(4, 200 // lines)
    jobs = [(0x10_0000 + 4096 * i + shift, bytes(length), 0) for i in range(count)]
    _, traffic, _ = simulate(jobs, latency=40, writes=128, size=size)
    first, last = traffic.bursts[0][0], traffic.bursts[-1][0]
    assert last - first == (count - 1) * lines


def test_never_more_bursts_than_allowed():
    jobs = [(64 * i, bytes(64), 0) for i in range(40)]
    _, traffic, _ = simulate(jobs, latency=100, writes=8)
    assert traffic.outstanding_max == 8


def test_refused_bursts_are_told_in_order():
    dut_jobs = [(4096 * (i + 1), bytes(10), 0) for i in range(6)]
    dut, memory = RxWrite(config()), Memory()
    memory.errors.append(range(4096 * 3, 4096 * 4))
    got = []

    async def main(ctx):
        await feed(ctx, dut.plan, [plan(a, len(o)) for a, o, _ in dut_jobs])

    async def data_(ctx):
        for _, octets, _ in dut_jobs:
            await feed(ctx, dut.packets[0], beats(octets, 64))

    async def answered(ctx):
        got.extend(await collect(ctx, dut.answered, 6))

    async def bus(ctx):
        await serve_writes(ctx, dut.write, memory)

    run(dut, main, data_, answered, background=[bus])
    assert got == [0, 0, 1, 0, 0, 0]
    assert len(Value.cast(dut.answered.payload)) == 1


def test_converts():
    converts(RxWrite(config(ports=2)))
    converts(RxWrite(config(8)))
