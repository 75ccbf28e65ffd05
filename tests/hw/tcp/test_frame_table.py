"""FrameTable: entries of tables in host memory, in order, to the client that asked; room, errors, `hold`, turns."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from typing import Any

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import FINAL_FRAME
from hw.dma.axi import ReadBeat, ReadRequest
from hw.tcp.frame_table import TABLES, WORDS, FrameEntry, FrameTable, TableRequest
from tests.hw.simulate import always, collect, converts, feed, run, sometimes


class HostMemory:
    """Tables by address, and the bus, which answers bursts in order after `latency` cycles.

    refused: addresses of beats that the bus refuses.
    """

    def __init__(self, dut: Any, latency: int = 3, go=always, gap=always) -> None:
        self.dut, self.latency, self.go, self.gap = dut, latency, go, gap
        self.size = len(dut.read.response.payload.data) // 8
        self.tables: dict[int, list[int]] = {}
        self.refused: set[int] = set()
        self.requests: list[tuple[int, int]] = []

    def table(self, rng: random.Random, at: int, frames: int) -> list[int]:
        """Random entries at a table's number; behind them lies rubbish."""
        self.tables[at] = [rng.getrandbits(8 * FINAL_FRAME.size) for _ in range(16)]
        return self.tables[at][:frames]

    def beat(self, address: int) -> int:
        octets = b"".join(entry.to_bytes(16, "little") for entry in self.tables[address >> 8])
        return int.from_bytes(octets[address & 255 :][: self.size], "little")

    async def bus(self, ctx: Any) -> None:
        read, waiting, cycle = self.dut.read, [], 0
        while True:
            ready = self.go()
            ctx.set(read.request.ready, ready)
            answer = bool(waiting) and waiting[0][0] <= cycle and self.gap()
            if answer:
                _, address, last = waiting.pop(0)
                beat = {"data": self.beat(address), "error": address in self.refused, "last": last}
                ctx.set(Value.cast(read.response.payload), ReadBeat(self.size).const(beat).as_value().value)
            ctx.set(read.response.valid, answer)
            payload = Value.cast(read.request.payload)
            _, _, valid, value = await ctx.tick().sample(read.request.valid, payload)
            cycle += 1
            if valid and ready:
                request = data.Const(ReadRequest, value)
                self.requests.append((request.address, request.length))
                for k in range(request.length + 1):
                    waiting.append((cycle + self.latency, request.address + self.size * k, k == request.length))


def raw(table: int, frames: int) -> int:
    return TableRequest.const({"table": table, "frames": frames - 1}).as_value().value


def entries_of(values: list[int]) -> list[tuple[int, int, int]]:
    """(entry, last, error) each."""
    got = [data.Const(FrameEntry, value) for value in values]
    return [(one.entry.as_value().value, one.last, one.error) for one in got]


@pytest.mark.parametrize("frames, size", [*((frames, 64) for frames in range(1, 17)), (1, 8), (16, 8), (3, 16), (7, 32)])
def test_every_length(frames, size):
    """One burst of just the beats that are needed."""
    rng = random.Random(frames)
    dut = FrameTable(axi_bytes=size)
    memory = HostMemory(dut)
    at = (1 << 46) - 1
    wanted = memory.table(rng, at, frames)

    async def bench(ctx):
        assert ctx.get(dut.idle) and not ctx.get(dut.busy)
        await feed(ctx, dut.requests[0], [raw(at, frames)])
        assert not ctx.get(dut.idle) and ctx.get(dut.busy)
        got = entries_of(await collect(ctx, dut.entries[0], frames))
        assert got == [(entry, k == frames - 1, 0) for k, entry in enumerate(wanted)]
        assert memory.requests == [(at << 8, -(-frames * 16 // size) - 1)]
        await ctx.tick()
        assert ctx.get(dut.idle) and not ctx.get(dut.busy) and not ctx.get(dut.entries[0].valid)

    run(dut, bench, background=[memory.bus])


@pytest.mark.parametrize("seed, clients, size", [(0, 2, 64), (1, 2, 64), (2, 2, 8), (3, 3, 64), (4, 3, 8), (5, 4, 64), (6, 2, 16)])
def test_several_clients(seed, clients, size):
    """Each gets its own tables in the order of its requests, with the errors of each table from the refused beat on."""
    rng = random.Random(seed)
    go = (lambda n: sometimes(seed * 9 + n, 0.6)) if seed else (lambda n: always)
    dut = FrameTable(clients, size)
    memory = HostMemory(dut, latency=rng.choice((1, 30)), go=go(0), gap=go(1))
    asked: list[list[tuple[int, int]]] = [[] for _ in range(clients)]
    wanted: list[list[tuple[int, int, int]]] = [[] for _ in range(clients)]
    for at in range(80):
        client, frames = rng.randrange(clients), rng.choice((1, 4, 5, 16, rng.randrange(1, 17)))
        bad = rng.choice((0, 1, 2, 3, *[4] * 6))  # the beat that is refused
        entries = memory.table(rng, at, frames)
        if bad < 4:
            memory.refused.add((at << 8) + 64 * bad + rng.randrange(64 // size) * size)
            bad = (max(memory.refused) & 255) // max(size, 16) * max(size, 16) // 16  # the first entry that is
        else:
            bad = 16
        asked[client].append((at, frames))
        wanted[client] += [(entry, k == frames - 1, k >= bad) for k, entry in enumerate(entries)]

    async def client(ctx, number):
        values = [raw(*one) for one in asked[number]]
        await feed(ctx, dut.requests[number], values, go(10 + number))

    async def check(ctx, number):
        got = entries_of(await collect(ctx, dut.entries[number], len(wanted[number]), go(20 + number)))
        assert got == wanted[number], (seed, number)

    run(
        dut,
        *(lambda ctx, n=n: client(ctx, n) for n in range(clients)),
        *(lambda ctx, n=n: check(ctx, n) for n in range(clients)),
        background=[memory.bus],
    )
    assert sorted(memory.requests) == sorted((at << 8, -(-n * 16 // size) - 1) for one in asked for at, n in one)


def test_the_first_client_has_the_right_of_way():
    rng = random.Random(1)
    dut = FrameTable()
    memory = HostMemory(dut)
    for at in range(20):
        memory.table(rng, at, 1)

    async def bench(ctx):
        ctx.set(dut.entries[0].ready, 1)
        ctx.set(dut.entries[1].ready, 1)
        for number, at in ((0, 3), (1, 4)):
            ctx.set(Value.cast(dut.requests[number].payload), raw(at, 1))
            ctx.set(dut.requests[number].valid, 1)
        for _ in range(10):
            assert ctx.get(dut.requests[0].ready) and not ctx.get(dut.requests[1].ready)
            await ctx.tick()
        ctx.set(dut.requests[0].valid, 0)
        assert ctx.get(dut.requests[1].ready)

    run(dut, bench, background=[memory.bus])


def test_the_second_client_is_served_last():
    rng = random.Random(5)
    dut = FrameTable(3)
    memory = HostMemory(dut)
    for at in range(3):
        memory.table(rng, at, 1)

    async def bench(ctx):
        for number in range(3):
            ctx.set(Value.cast(dut.requests[number].payload), raw(number, 1))
            ctx.set(dut.requests[number].valid, 1)
            ctx.set(dut.entries[number].ready, 1)
        for number in (0, 2, 1):
            assert [ctx.get(one.ready) for one in dut.requests] == [k == number for k in range(3)]
            await ctx.tick()
            ctx.set(dut.requests[number].valid, 0)

    run(dut, bench, background=[memory.bus])


@pytest.mark.parametrize("clients", [0, 1, "2"])
def test_bad_number_of_clients(clients):
    with pytest.raises(ValueError, match=f"clients must be at least 2, not {clients!r}"):
        FrameTable(clients)


@pytest.mark.parametrize(
    "latency, frames, rate",
    [(1, 16, 1), (1, 4, 1), (200, 16, 1), (250, 16, 0.95), (250, 1, TABLES / 270)],
)
def test_throughput(latency, frames, rate):
    """One entry per cycle, up to a round trip in which all `WORDS` or `TABLES` are under way."""
    rng = random.Random(2)
    dut = FrameTable()
    memory = HostMemory(dut, latency=latency)
    tables = 600 // frames if frames > 1 else 100
    wanted = [entry for at in range(tables) for entry in memory.table(rng, at, frames)]
    cycles = []

    async def look(ctx):
        ctx.set(dut.entries[0].ready, 1)
        got = []
        values = Value.cast(dut.entries[0].payload)
        for cycle in range(2000):
            _, _, valid, value = await ctx.tick().sample(dut.entries[0].valid, values)
            if valid:
                cycles.append(cycle)
                got.append(value)
                if len(got) == len(wanted):
                    break
        assert [entry for entry, _, _ in entries_of(got)] == wanted

    requests = [raw(at, frames) for at in range(tables)]
    run(dut, lambda ctx: feed(ctx, dut.requests[0], requests), look, background=[memory.bus])
    assert len(wanted) >= rate * (cycles[-1] - cycles[0] + 1)


@pytest.mark.parametrize("frames, most", [(16, WORDS // 4), (1, TABLES)])
def test_no_more_is_asked_for_than_there_is_room_for(frames, most):
    """Entries that nobody takes hold up the requests, not the bus; then everything comes out."""
    rng = random.Random(3)
    dut = FrameTable()
    memory = HostMemory(dut, latency=1)
    tables = most + 10
    wanted = [entry for at in range(tables) for entry in memory.table(rng, at, frames)]

    async def look(ctx):
        await ctx.tick().repeat(200)
        beats = sum(length + 1 for _, length in memory.requests)
        assert most - 1 <= len(memory.requests) <= most + 1 and beats <= WORDS
        got = entries_of(await collect(ctx, dut.entries[1], len(wanted)))
        assert [entry for entry, _, _ in got] == wanted

    values = [raw(at, frames) for at in range(tables)]
    run(dut, lambda ctx: feed(ctx, dut.requests[1], values), look, background=[memory.bus])


def test_hold():
    """Nothing new begins for the second client, the first one goes on; `idle` when the bus owes nothing."""
    rng = random.Random(4)
    dut = FrameTable()
    memory = HostMemory(dut, latency=20)
    wanted = [memory.table(rng, at, 6) for at in range(3)]

    async def bench(ctx):
        await feed(ctx, dut.requests[1], [raw(0, 6)])
        ctx.set(dut.hold, 1)
        ctx.set(Value.cast(dut.requests[1].payload), raw(1, 6))
        ctx.set(dut.requests[1].valid, 1)
        assert not ctx.get(dut.idle)
        got = entries_of(await collect(ctx, dut.entries[1], 6))
        assert [entry for entry, _, _ in got] == wanted[0]
        for _ in range(50):
            await ctx.tick()
            assert ctx.get(dut.idle) and ctx.get(dut.busy) and not ctx.get(dut.requests[1].ready)
        await feed(ctx, dut.requests[0], [raw(2, 6)])
        got = entries_of(await collect(ctx, dut.entries[0], 6))
        assert [entry for entry, _, _ in got] == wanted[2]
        assert [address >> 8 for address, _ in memory.requests] == [0, 2]
        ctx.set(dut.hold, 0)
        await ctx.tick()
        ctx.set(dut.requests[1].valid, 0)
        got = entries_of(await collect(ctx, dut.entries[1], 6))
        assert [entry for entry, _, _ in got] == wanted[1]

    run(dut, bench, background=[memory.bus])


def test_a_request_on_the_bus_stays():
    """`hold` or not, what is on offer is not taken back."""
    dut = FrameTable()

    async def bench(ctx):
        await feed(ctx, dut.requests[1], [raw(77, 16)])
        ctx.set(dut.hold, 1)
        for _ in range(20):
            assert ctx.get(dut.read.request.valid) and not ctx.get(dut.idle)
            assert ctx.get(dut.read.request.p.address) == 77 << 8 and ctx.get(dut.read.request.p.length) == 3
            await ctx.tick()

    run(dut, bench)


def test_converts():
    converts(FrameTable())
    converts(FrameTable(axi_bytes=8))
