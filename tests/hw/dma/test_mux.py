"""The AXI master: throughput, order, byte-exact data under stalls, errors and counts."""

import random
from functools import partial

import pytest
from amaranth import Value

from hw.dma.axi import ReadBeat, WriteBeat
from hw.dma.mux import AxiMaster
from tests.hw.simulate import always, converts, feed, run, seeds_and_sizes, sometimes

from .memory import Memory, Traffic, serve_axi_reads, serve_axi_writes
from .rx_helpers import count_into


async def read_bursts(ctx, port, bursts, log, go=always):
    """Offer (address, beats) requests; `log` grows by the beats that come back."""
    payload = Value.cast(port.request.payload)
    for address, beats in bursts:
        while not go():
            ctx.set(port.request.valid, 0)
            await ctx.tick()
        ctx.set(payload, address | (beats - 1) << 64)
        ctx.set(port.request.valid, 1)
        await ctx.tick().until(port.request.ready)
    ctx.set(port.request.valid, 0)
    total = sum(beats for _, beats in bursts)
    while len(log) < total:
        await ctx.tick()


def keep_responses(port, log):
    async def watch(ctx):
        payload = Value.cast(port.response.payload)
        async for _, _, valid, value in ctx.tick().sample(port.response.valid, payload):
            if valid:
                log.append(value)

    return watch


def write_beats(address, octets, strobes=None, size=64):
    """One burst as `WriteBeat` integers."""
    count = len(octets) // size
    shape = WriteBeat(size)
    return [
        shape.const(
            {
                "address": address,
                "length": count - 1,
                "data": int.from_bytes(octets[size * i : size * i + size], "little"),
                "strobe": (1 << size) - 1 if strobes is None else strobes[i],
                "last": i == count - 1,
            }
        )
        .as_value()
        .value
        for i in range(count)
    ]


@pytest.mark.parametrize("seed, size", seeds_and_sizes(3, (0, 8), (1, 32)))
def test_reads_random(seed, size):
    rng = random.Random(seed)
    dut, memory, totals = AxiMaster(3, 1, size), Memory(), {}
    memory.write(0, rng.randbytes(1 << 16))
    memory.errors.append(range(0x4000, 0x4100))
    wanted = []
    for _ in range(3):
        bursts = []
        for _ in range(25):
            beats = rng.choice((1, 1, 2, 4, 9))
            line = rng.randrange(64 - beats + 1)
            bursts.append(((rng.randrange(16) << 12) + line * size, beats))
        wanted.append(bursts)
    logs = [[] for _ in range(3)]

    def bench(k):
        return lambda ctx: read_bursts(ctx, dut.reads[k], wanted[k], logs[k], sometimes(seed + k, 0.8))

    run(
        dut,
        *(bench(k) for k in range(3)),
        background=[
            partial(
                serve_axi_reads, axi=dut.axi, memory=memory, latency=20,
                request_go=sometimes(seed, 0.6), response_go=sometimes(seed + 9, 0.7), interleave=rng,
            ),
            *(keep_responses(dut.reads[k], logs[k]) for k in range(3)),
            count_into(dut, totals),
        ],
    )
    errors = 0
    for bursts, log in zip(wanted, logs, strict=True):
        expected = []
        for address, beats in bursts:
            for i in range(beats):
                at = address + size * i
                errors += memory.fails(at, size)
                expected.append(
                    ReadBeat(size).const(
                        {"data": memory.read_beat(at, size), "error": memory.fails(at, size), "last": i == beats - 1}
                    ).as_value().value
                )
        assert log == expected
    beats = sum(len(log) for log in logs)
    assert (totals["axi_read_errors"], totals["axi_read_bytes"]) == (errors, size * beats)


@pytest.mark.parametrize("address_p, data_p, size", [(1, 1, 64), (0.2, 1, 64), (1, 0.2, 64), (0.6, 0.6, 64), (0.6, 0.6, 8), (1, 1, 16)])
def test_writes_random(address_p, data_p, size):
    rng = random.Random(int(10 * address_p + 100 * data_p))
    dut, memory, totals = AxiMaster(1, 3, size), Memory(fill=0xA5), {}
    memory.errors.append(range(0x1_0000, 0x1_1000))
    image = bytearray([0xA5]) * 0x1_1000
    beats, failing, written = [[], [], []], [0, 0, 0], 0
    for k in range(3):
        for page in range(15):
            bad = rng.random() < 0.1
            count, line = rng.choice((1, 1, 1, 3, 8)), rng.randrange(56)
            address = (0x1_0000 if bad else (3 * page + k) % 16 << 12 | k << 10) + 0
            address += 0 if not bad else line << 6
            octets = rng.randbytes(size * count)
            strobes = [rng.getrandbits(size) for _ in range(count)]
            beats[k] += write_beats(address, octets, strobes, size)
            failing[k] += bad
            written += sum(s.bit_count() for s in strobes)
            if not bad:
                for i in range(size * count):
                    if strobes[i // size] >> i % size & 1:
                        image[address + i] = octets[i]
    logs = [[] for _ in range(3)]

    def bench(k):
        async def main(ctx):
            await feed(ctx, dut.writes[k].request, beats[k], sometimes(k, 0.8))
            while len(logs[k]) < 15:
                await ctx.tick()
            await ctx.tick().repeat(2)  # counts come late

        return main

    async def idle(ctx):
        await ctx.tick().repeat(5)
        while not ctx.get(dut.idle):
            await ctx.tick()
        assert all(len(log) == 15 for log in logs), "idle with writes unanswered"

    run(
        dut,
        *(bench(k) for k in range(3)),
        idle,
        background=[
            partial(
                serve_axi_writes, axi=dut.axi, memory=memory, latency=10, interleave=rng,
                address_go=sometimes(1, address_p), data_go=sometimes(2, data_p),
                response_go=sometimes(3, 0.7),
            ),
            *(keep_responses(dut.writes[k], logs[k]) for k in range(3)),
            count_into(dut, totals),
        ],
    )
    assert memory.read(0, 0x1_0000) == image[:0x1_0000]
    assert [sum(log) for log in logs] == failing
    assert totals["axi_write_errors"] == sum(failing)
    assert totals["axi_write_bytes"] == written


def test_one_burst_per_cycle_from_alternating_requesters():
    dut, memory, traffic, reads = AxiMaster(2, 2), Memory(), Traffic(), Traffic()
    count = 150
    logs, read_logs = [[], []], [[], []]

    def writes(k):
        async def main(ctx):
            beats = []
            for i in range(count):
                beats += write_beats(k << 20 | i << 6, bytes(64))
            await feed(ctx, dut.writes[k].request, beats)

        return main

    def bursts(k):
        return lambda ctx: read_bursts(
            ctx, dut.reads[k], [(i << 6, 1) for i in range(count)], read_logs[k]
        )

    async def quiet(ctx):
        await ctx.tick().repeat(10)
        while not ctx.get(dut.idle):
            await ctx.tick()

    run(
        dut, writes(0), writes(1), bursts(0), bursts(1), quiet,
        background=[
            partial(serve_axi_writes, axi=dut.axi, memory=memory, latency=100, traffic=traffic),
            partial(serve_axi_reads, axi=dut.axi, memory=memory, latency=100, traffic=reads),
            *(keep_responses(dut.writes[k], logs[k]) for k in range(2)),
            *(keep_responses(dut.reads[k], read_logs[k]) for k in range(2)),
        ],
    )
    for seen in (traffic, reads):
        cycles = [cycle for cycle, _, _ in seen.bursts]
        assert len(cycles) == 2 * count
        assert cycles[-1] - cycles[0] == 2 * count - 1, "a gap between bursts"


@pytest.mark.parametrize("reads, writes", [(0, 1), (1, 5), (1, "2")])
def test_bad_parameters(reads, writes):
    with pytest.raises(ValueError, match="must be from 1 to 4"):
        AxiMaster(reads, writes)


def test_converts():
    converts(AxiMaster(4, 4))
    converts(AxiMaster(1, 1))
    converts(AxiMaster(4, 3, 8))
