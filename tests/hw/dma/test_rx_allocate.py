"""Allocation: which packets are dropped, why, and that slots and buffers stay paired."""

import random
from collections import deque

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import RX_COMPLETION, RX_FREE, Status
from hw.config import NicConfig
from hw.dma.descriptors import Popped
from hw.dma.rx_allocate import RxAllocate, RxPlan, RxRecord
from tests.hw.simulate import always, converts, feed, run, seeds, sometimes

from .rx_helpers import enable
from .rx_system import Packet

CONFIG = NicConfig(queues=4, ports=2)
POPPED = data.Layout.cast(Popped)


class Fetch:
    """Answers pops from a list of buffers per queue; None means that none is buffered."""

    def __init__(self, dut, buffers, latency=5):
        self.dut, self.buffers, self.latency, self.pops = dut, buffers, latency, 0

    async def serve(self, ctx):
        dut, due = self.dut, deque()
        ctx.set(dut.pop.ready, 1)
        payload = Value.cast(dut.popped.payload)
        cycle = 0
        async for _, _, asked, queue, taken in ctx.tick().sample(
            dut.pop.valid, dut.pop.payload.queue, dut.popped.ready
        ):
            cycle += 1
            if taken and ctx.get(dut.popped.valid):
                due.popleft()
            if asked:
                self.pops += 1
                buffer = self.buffers[queue].popleft() if self.buffers[queue] else None
                fields = {"queue": queue, "ok": buffer is not None}
                if buffer:
                    address, length, tag, error = buffer
                    fields["descriptor"] = RX_FREE.to_int(address=address, length=length, tag=tag)
                    fields["error"] = error
                due.append((cycle + self.latency - 1, POPPED.const(fields).as_value().value))
            ready = bool(due) and due[0][0] <= cycle
            if ready:
                ctx.set(payload, due[0][1])
            ctx.set(dut.popped.valid, ready)


def simulate(packets, buffers, *, log2=15, on=(0, 1, 2, 3), go=always, out_go=always, cycles=5000):
    dut = RxAllocate(CONFIG)
    fetch = Fetch(dut, buffers)
    seen = {"takes": [[], []], "plans": [], "records": [], "counts": {}, "ended": 0, "dispatched": 0}
    streams = [
        (dut.take[0], seen["takes"][0], None),
        (dut.take[1], seen["takes"][1], None),
        (dut.plan, seen["plans"], RxPlan()),
        (dut.records, seen["records"], RxRecord()),
    ]

    async def main(ctx):
        for queue in on:
            await enable(ctx, dut.bus, queue, rx_completion_size=log2)
        await ctx.tick().repeat(3)
        await feed(ctx, dut.dispatch, [packet.dispatch() for packet in packets], go)
        quiet = 0
        while quiet < 10:
            quiet += sum(map(len, seen["takes"])) == len(packets)
            await ctx.tick()

    def drain(stream, log, shape):
        async def watch(ctx):
            ready = out_go()
            ctx.set(stream.ready, ready)
            payload, cycle = Value.cast(stream.payload), 0
            async for _, _, valid, value in ctx.tick().sample(stream.valid, payload):
                cycle += 1
                if valid and ready:
                    log.append((cycle, value if shape is None else data.Const(shape, value)))
                ready = out_go()
                ctx.set(stream.ready, ready)

        return watch

    async def count(ctx):
        names = [name for name, _ in dut.counts.shape()]
        async for _, _, ended, *now in ctx.tick().sample(dut.ended, *(dut.counts[n] for n in names)):
            seen["ended"] += ended
            for name, value in zip(names, now, strict=True):
                seen["counts"][name] = seen["counts"].get(name, 0) + value

    run(dut, main, cycles=cycles, background=[fetch.serve, count, *(drain(*s) for s in streams)])
    seen["pops"] = fetch.pops
    return seen


@pytest.mark.parametrize("seed", seeds(3))
def test_random(seed):
    rng = random.Random(seed)
    packets = [
        Packet(i, bytes(rng.randrange(60, 2000)), rng.randrange(5), rng.randrange(2), rng.random() < 0.9)
        for i in range(150)
    ]
    buffers = {q: deque() for q in range(4)}
    for queue in range(3):
        for tag in range(25):
            address = rng.getrandbits(40) if rng.random() < 0.9 else (1 << 64) - rng.randrange(1, 2000)
            length = rng.choice((2048, 2048, 2048, 1000, 0, 65535, 65536))
            buffers[queue].append((address, length, tag, rng.random() < 0.05))
    copy = {q: deque(b) for q, b in buffers.items()}
    seen = simulate(packets, buffers, on=(0, 1, 3), go=sometimes(seed, 0.8), out_go=sometimes(seed + 1, 0.6))
    takes, plans, records = [[], []], [], []
    no_buffer = 0
    index = [0] * 4
    for packet in packets:
        length = len(packet.octets)
        good = False
        if packet.keep:
            if packet.queue not in (0, 1) or not copy[packet.queue]:
                no_buffer += 1
            else:
                address, room, tag, error = copy[packet.queue].popleft()
                wraps = address + room > 1 << 64
                status = Status.OK
                if error:
                    status, tag = Status.BAD_ADDRESS, 0
                elif not length <= room <= 65535 or wraps:
                    status = Status.BAD_LENGTH
                good = status == Status.OK
                bursts = (address + length - 1) // 4096 - address // 4096 + 1 if good else 0
                records.append((packet.queue, index[packet.queue], bursts, tag, length * good, status, packet.number))
                index[packet.queue] += 1
                if good:
                    lines = (address % 64 + length + 63) // 64
                    plans.append(
                        (
                            packet.port, address // 64, address % 64, (address + length - 1) % 64,
                            lines - 1, lines != (length + 63) // 64,
                        )
                    )
        takes[packet.port].append(good)
    assert [[value for _, value in log] for log in seen["takes"]] == takes
    assert [(p.port, p.line, p.shift, p.end, p.lines, p.residual) for _, p in seen["plans"]] == plans
    got = []
    for _, r in seen["records"]:
        c = RX_COMPLETION.from_int(r.completion.as_value().value)
        got.append((r.queue, r.index, r.bursts, c["tag"], c["length"], c["status"], c["ts_clock"]))
    assert got == records
    assert seen["counts"]["rx_drop_no_buffer"] == no_buffer
    assert seen["counts"]["rx_drop_completion_full"] == 0
    assert seen["ended"] == len(packets) - len(records)


def test_full_ring_pops_no_buffer():
    packets = [Packet(i, bytes(64), 2) for i in range(12)]
    buffers = {2: deque((4096 * i, 100, i, 0) for i in range(20))}
    seen = simulate(packets, buffers, log2=3)
    assert len(seen["records"]) == 8 == seen["pops"]
    assert seen["counts"]["rx_drop_completion_full"] == 4


def test_slots_of_packets_without_buffer_are_given_back():
    """More misses than slots: later packets still find one."""
    packets = [Packet(i, bytes(64), 1) for i in range(30)]
    buffers = {1: deque([None] * 22 + [(4096 * i, 100, i, 0) for i in range(20)])}
    seen = simulate(packets, buffers, log2=3, go=sometimes(0, 0.1))
    assert [r.index for _, r in seen["records"]] == list(range(8))
    assert seen["counts"]["rx_drop_no_buffer"] == 22


def test_one_packet_per_cycle():
    packets = [Packet(i, bytes(64), i % 4) for i in range(200)]
    buffers = {q: deque((4096 * i, 100, i, 0) for i in range(60)) for q in range(4)}
    seen = simulate(packets, buffers)
    cycles = [cycle for cycle, _ in seen["records"]]
    assert len(cycles) == 200 and cycles[-1] - cycles[0] == 199


def test_converts():
    converts(RxAllocate(CONFIG))


def test_a_packet_to_forward_is_taken_in_any_case():
    """With a buffer for the host's copy, without one, and when the host gets none."""
    packets = [Packet(i, bytes(100), 0, 0, keep) for i, keep in enumerate((True, True, False, True))]
    for packet in packets:
        packet.forward = packet.number < 3
    seen = simulate(packets, {0: deque([(4096, 2048, 9, False)]), **{q: deque() for q in range(1, 4)}})
    assert [value for _, value in seen["takes"][0]] == [0b11, 0b10, 0b10, 0b00]
    assert len(seen["plans"]) == len(seen["records"]) == 1 and seen["counts"]["rx_drop_no_buffer"] == 2
