"""The whole receive DMA against a memory image, and its speed behind a slow bus."""

import itertools
import random

import pytest

from acceltcp.abi.messages import EventType, Status
from hw.config import NicConfig
from hw.dma.rx import RxDma
from tests.hw.simulate import converts, seeds, sometimes

from .rx_helpers import write
from .rx_system import Buffer, Packet, Queue, Rig, scattered

BASE = 0x7_0000_0000


def config(**options):
    sizes = {"queues": 4, "writes": 64, "descriptors": 32}
    sizes.update({"rx_buffer_beats": 4096, "tx_buffer_beats": 4096}, **options)
    return NicConfig(**sizes)


@pytest.mark.parametrize(
    "width, size, ports, seed",
    [
        pytest.param(64, 64, 1, 0, marks=pytest.mark.long), (64, 64, 2, 1), (32, 64, 1, 2),
        pytest.param(8, 64, 2, 3, marks=pytest.mark.long), (8, 8, 1, 4), pytest.param(8, 16, 2, 5, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_random_packets_byte_for_byte(width, size, ports, seed):
    rng = random.Random(seed)
    lengths = [1, 63, 64, 65, 127, 128, 129, 192, 250, 256, 257]
    packets = [
        Packet(
            i, rng.randbytes(rng.choice(lengths)), rng.randrange(2), rng.randrange(ports), rng.random() < 0.9
        )
        for i in range(100 if width > 8 else 30)
    ]
    queues = [Queue(k, BASE + (k << 24)) for k in range(2)]
    for queue in queues:
        queue.buffers.extend(scattered(rng, 100, 300, 0x10_0000_0000 + (queue.number << 28)))
    rig = Rig(config(width=width, axi_bytes=size, read_beats=4096, ports=ports), packets, queues)
    rig.run(
        go=sometimes(seed, 0.5), bus_go=sometimes(seed + 1, 0.7),
        take_go=sometimes(seed + 2, 0.7), packet_go=sometimes(seed + 3, 0.8), first=400,
    )
    rig.check()
    kept = [packet for packet in packets if packet.keep]
    assert rig.count("rx_host_packets") == len(kept)
    assert rig.count("rx_host_bytes") == sum(len(packet.octets) for packet in kept)
    assert rig.ended == len(kept)


def rate(rig, low, high):
    """Packets per cycle between two points of one queue's completion ring."""
    start = next(cycle for cycle, _, index in rig.posted if index >= low)
    stop, reached = next((cycle, index) for cycle, _, index in rig.posted if index >= high)
    return (reached - low) / (stop - start)


def slow_bus(count, length, shift, **options):
    """`count` packets of one length to one queue, read and write latency 250."""
    packets = [Packet(i, random.Random(i).randbytes(length)) for i in range(count)]
    queue = Queue(0, BASE, free_log2=10, completion_log2=10)
    step = (length + 191) // 64 * 64
    queue.buffers.extend(Buffer(0x2000_0000 + i * step + shift, length, i) for i in range(count))
    rig = Rig(config(writes=256, descriptors=256, **options), packets, [queue])
    # Packets come at three in four cycles: more than the bus takes, and less than the prefetch of
    # 256 descriptors keeps up with at this latency.
    beat = itertools.cycle((True, True, True, False))
    rig.run(latency=250, first=700, go=lambda: next(beat))
    rig.check()
    assert rig.count("rx_host_packets") == count
    return rig


@pytest.mark.slow
def test_rate_of_smallest_packets_to_one_queue():
    rig = slow_bus(500, 60, 2)
    speed = rate(rig, 50, 450)
    assert speed > 0.64, f"{speed:.3f} packets per cycle"


@pytest.mark.slow
def test_rate_of_full_packets():
    rig = slow_bus(40, 1514, 2)
    # 24 payload beats each; completions share the bus.
    speed = 24 * rate(rig, 5, 35)
    assert speed > 0.96, f"{speed:.3f} payload beats per cycle"


@pytest.mark.slow
def test_large_packets_across_pages():
    rng = random.Random(11)
    packets = [Packet(i, rng.randbytes(rng.choice((1514, 4096, 4097, 9018, 16128)))) for i in range(12)]
    queue = Queue(0, BASE)
    queue.buffers.extend(scattered(rng, 12, 16128))
    rig = Rig(config(max_frame=16128), packets, [queue])
    rig.run(bus_go=sometimes(12, 0.9))
    rig.check()
    assert rig.count("rx_host_packets") == 12


def test_unusable_buffers_end_in_a_completion_and_an_event():
    rng = random.Random(5)
    queue = Queue(0, BASE)
    top = (1 << 64) - 8192
    refused = 0x6_6660_0000
    buffers = [
        (Buffer(0x1000_0000, 0, 1), Status.BAD_LENGTH),
        (Buffer(0x1001_0000, 0x1_0000, 2), Status.BAD_LENGTH),
        (Buffer(0x1002_0000, 99, 3), Status.BAD_LENGTH),
        (Buffer(top + 8192 - 4, 100, 4), Status.BAD_LENGTH),
        (Buffer(top + 8192 - 100, 100, 5), Status.OK),  # the very last bytes
        (Buffer(refused + 3, 200, 6), Status.BAD_ADDRESS),
        (Buffer(0x1003_0000, 100, 7), Status.OK),
        (Buffer(refused + 4096 - 50, 200, 8), Status.BAD_ADDRESS),  # the first of two bursts
        (Buffer(refused - 50, 200, 9), Status.BAD_ADDRESS),  # the second of two bursts
        (Buffer(0x1004_0000, 0xFFFF, 10), Status.OK),
        (Buffer(0x1005_0000, 0xFFFF_FFFF, 11), Status.BAD_LENGTH),
    ]
    queue.buffers.extend(buffer for buffer, _ in buffers)
    packets = [Packet(i, rng.randbytes(100)) for i in range(len(buffers))]
    rig = Rig(config(), packets, [queue])
    rig.memory.errors.append(range(refused, refused + 4096))
    rig.run(first=200)
    expected = [status for _, status in buffers]
    assert [entry["status"] for entry, _ in queue.done] == expected
    assert [entry["tag"] for entry, _ in queue.done] == [buffer.tag for buffer, _ in buffers]
    bad = [(buffer.tag, status) for buffer, status in buffers if status]
    assert [(event["tag"], event["status"]) for event in queue.events] == bad
    assert all(event["type"] == EventType.RX_ERROR and event["queue"] == 0 for event in queue.events)
    assert rig.count("rx_buffer_errors") == len(bad)
    assert rig.count("rx_host_packets") == len(buffers) - len(bad)
    for entry, buffer in queue.done:
        good = entry["status"] == Status.OK
        assert entry["length"] == (100 if good else 0)
        if good:
            assert rig.memory.read(buffer.address, 100) == packets[entry["ts_clock"]].octets
        elif entry["status"] == Status.BAD_LENGTH and buffer.address < top:
            assert rig.memory.read(buffer.address - 64, 300) == bytes([rig.FILL]) * 300


def test_descriptors_that_cannot_be_read():
    rng = random.Random(6)
    queue = Queue(0, BASE)
    queue.buffers.extend(scattered(rng, 30, 100))
    rig = Rig(config(), [Packet(i, rng.randbytes(64)) for i in range(30)], [queue])
    rig.memory.errors.append(range(BASE + 64, BASE + 128))  # descriptors 4 to 7
    rig.run(first=300)
    rig.check()
    bad = [i for i, (entry, _) in enumerate(queue.done) if entry["status"] == Status.BAD_ADDRESS]
    assert len(queue.done) == 30 and set(range(4, 8)) <= set(bad) and len(bad) <= 16
    assert len(queue.events) == len(bad) == rig.count("rx_buffer_errors")


@pytest.mark.parametrize("seed", seeds(2))
def test_small_rings_and_a_slow_host_drop_and_count(seed):
    """Rings of 8, a host that pauses: nothing is overwritten, and what is lost is counted."""
    rng = random.Random(seed)
    packets = [Packet(i, rng.randbytes(rng.choice((60, 130))), rng.randrange(2)) for i in range(250)]
    queues = [Queue(k, BASE + (k << 24), 3 + k, 3, 3) for k in range(2)]
    for queue in queues:
        queue.buffers.extend(scattered(rng, 300, 150, 0x10_0000_0000 + (queue.number << 28)))
    rig = Rig(config(), packets, queues)

    async def moody(ctx):
        while rig.dispatched < len(packets):
            for queue in queues:
                queue.paused = rng.random() < 0.3
            await ctx.tick().repeat(60)
        for queue in queues:
            queue.paused = False

    rig.run(moody, go=sometimes(seed, 0.2), first=200)
    rig.check()
    assert rig.count("rx_drop_no_buffer") and rig.count("rx_drop_completion_full")
    assert rig.ended == 250
    assert sum(len(queue.done) for queue in queues) == rig.count("rx_host_packets") > 50


def test_queues_that_are_off_or_absent():
    rng = random.Random(7)
    packets = [Packet(i, rng.randbytes(60), rng.choice((0, 1, 4, 200))) for i in range(60)]
    queue = Queue(0, BASE)
    queue.buffers.extend(scattered(rng, 60, 100))
    rig = Rig(config(), packets, [queue])
    rig.run(first=200)
    rig.check()
    mine = sum(packet.queue == 0 for packet in packets)
    assert len(queue.done) == mine
    assert rig.count("rx_drop_no_buffer") == 60 - mine


def test_refused_doorbells_are_counted_and_told():
    rng = random.Random(8)
    queue = Queue(0, BASE)
    queue.buffers.extend(scattered(rng, 10, 100))
    rig = Rig(config(), [Packet(i, rng.randbytes(60)) for i in range(10)], [queue])

    async def nonsense(ctx):
        while len(queue.done) < 10:
            await ctx.tick()
        queue.paused = True  # the bus is ours
        await ctx.tick().repeat(40)
        for register in ("rx_completion_head", "rx_free_tail", "event_head"):
            for number in (0, 3):  # queue 3 is off
                await write(ctx, rig.dut.bus, number, register, 10_000)
                await ctx.tick().repeat(40)
        queue.paused = False

    rig.run(nonsense, until=lambda: len(queue.events) == 3)
    rig.check()
    assert rig.count("doorbell_errors") == 6
    told = [(event["type"], event["status"], event["queue"]) for event in queue.events]
    assert told == [(EventType.QUEUE_ERROR, Status.BAD_DOORBELL, 0)] * 3


def test_hold_lets_everything_finish_and_a_queue_starts_anew():
    rng = random.Random(9)
    packets = [Packet(i, rng.randbytes(200)) for i in range(60)]
    queue = Queue(0, BASE)
    queue.buffers.extend(scattered(rng, 64, 200))
    rig = Rig(config(), packets, [queue])
    stopped = []

    async def quiesce(ctx):
        await ctx.tick().repeat(230)
        ctx.set(rig.dut.hold, 1)
        await ctx.tick()
        while not ctx.get(rig.dut.idle):
            await ctx.tick()
        before = rig.dispatched
        assert rig.ended == before, "idle with a packet under way"
        # The bus has answered for all completions: they are in memory and posted.
        assert rig.posted[-1][2] == before
        ctx.set(rig.dut.bus.queue, 0)
        ctx.set(rig.dut.bus.disable, 1)
        await ctx.tick()
        ctx.set(rig.dut.bus.disable, 0)
        await ctx.tick().repeat(50)
        assert rig.dispatched == before
        stopped.append(before)
        ctx.set(rig.dut.hold, 0)

    rig.run(
        quiesce, latency=60, go=sometimes(1, 0.3), first=170, until=lambda: rig.ended == len(packets)
    )
    rig.check()
    assert 0 < stopped[0] < 60
    assert rig.count("rx_drop_no_buffer") == 60 - stopped[0], "a queue that is off drops"
    assert len(queue.done) == stopped[0]


def test_converts():
    converts(RxDma(config()))
