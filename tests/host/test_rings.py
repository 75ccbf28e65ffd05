"""Rings, packings and DMA memory against the declarations of `acceltcp.abi`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acceltcp.abi.messages import EVENT, MESSAGES, RX_COMPLETION, RX_FREE, TX_DESCRIPTOR
from acceltcp.host.dma import DmaAllocator, DmaBuffer, DmaRegion
from acceltcp.host.layout import Packing
from acceltcp.host.rings import ConsumerRing, ProducerRing, check_ring_size


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_packing_reads_what_the_declaration_writes(message, data):
    values = {
        field.name: data.draw(st.integers(0, (1 << field.bits) - 1), label=field.name)
        for field in message
        if not field.reserved
    }
    packing = Packing(message)
    items = packing.struct.unpack(message.pack(**values))
    assert len(items) == packing.items
    for name, value in values.items():
        item = items[packing[name].item]
        found = int.from_bytes(item, "little") if isinstance(item, bytes) else packing[name].of(items)
        assert found == value, name


@pytest.mark.parametrize("entries", [0, 4, 7, 12, 65536, -8, 8.0, "8"])
def test_bad_ring_sizes_are_named(entries):
    with pytest.raises(ValueError, match=r"rx_free must be a power of two from 8 to 32768, not"):
        check_ring_size("rx_free", entries)


@pytest.mark.parametrize("log2", range(3, 16))
def test_good_ring_sizes(log2):
    assert check_ring_size("tx", 1 << log2) == log2


def buffer(size: int) -> DmaBuffer:
    return DmaBuffer(memoryview(bytearray(size)), 0x1000, size)


@pytest.mark.parametrize("message", [RX_COMPLETION, EVENT], ids=lambda message: message.name)
@given(batches=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=20, max_size=60))
@settings(max_examples=30, deadline=None)
def test_consumer_follows_the_phase_bit(message, batches):
    entries = 8
    memory = buffer(entries * message.size)
    heads: list[int] = []
    ring = ConsumerRing(message, entries, memory, heads.append)
    packing = Packing(message)
    written = read = 0
    for produce, limit in batches:
        for _ in range(min(produce, entries - (written - read))):
            phase = 1 - written // entries % 2
            at = written % entries * message.size
            memory.view[at : at + message.size] = message.pack(tag=written, phase=phase)
            written += 1
        assert ring.ready() == (written > read)
        taken = ring.take(limit)
        assert len(taken) <= limit
        assert len(taken) > 0 or written == read
        for items in taken:
            assert packing["tag"].of(items) == read
            read += 1
        ring.acknowledge()
        assert heads[-1] == read & 0xFFFF
    while ring.take(8):
        pass
    assert not ring.ready()


def test_consumer_index_wraps_at_16_bits():
    ring = ConsumerRing(EVENT, 8, buffer(8 * EVENT.size), lambda head: None)
    for count in range(0, 65536 + 64, 8):
        phase = 1 - count // 8 % 2
        for i in range(8):
            ring.buffer.view[i * EVENT.size : (i + 1) * EVENT.size] = EVENT.pack(tag=count + i, phase=phase)
        assert len(ring.take(100)) == 8
        assert not ring.ready()
        assert ring.head == count + 8 & 0xFFFF


def test_producer_writes_entries_and_rings_once():
    rung: list[int] = []
    ring = ProducerRing(RX_FREE, 8, buffer(8 * RX_FREE.size), rung.append)
    for i in range(8):
        assert ring.space == 8 - i
        assert ring.push(0x1000 * i, 100 + i, i) == i
    assert ring.space == 0
    ring.ring()
    ring.ring()
    assert rung == [8]
    assert RX_FREE.unpack(ring.buffer.view, 3 * RX_FREE.size) == {"address": 0x3000, "length": 103, "tag": 3}
    ring.head = 5
    assert ring.space == 5
    ring.push(1, 2, 3)
    assert RX_FREE.unpack(ring.buffer.view, 0) == {"address": 1, "length": 2, "tag": 3}


def test_producer_wraps_at_16_bits():
    ring = ProducerRing(TX_DESCRIPTOR, 8, buffer(8 * TX_DESCRIPTOR.size), lambda tail: None)
    for i in range(65540):
        ring.push(i, 0, 0, 0, 0, 0, 0)
        assert ring.space == 7
        ring.head = ring.tail
    assert ring.tail == 4


@given(st.lists(st.tuples(st.integers(1, 100_000), st.integers(0, 12)), min_size=1, max_size=40), st.randoms())
@settings(max_examples=50, deadline=None)
def test_allocator_gives_aligned_memory_that_nobody_else_has(wishes, random):
    regions: list[DmaRegion] = []

    def map_region(size: int) -> DmaRegion:
        regions.append(DmaRegion(memoryview(bytearray(size)), 0x10000000 * (len(regions) + 1), size))
        return regions[-1]

    allocator = DmaAllocator(map_region)
    held: list[DmaBuffer] = []
    for size, log2 in wishes:
        got = allocator.allocate(size, 1 << log2)
        assert got.address % (1 << log2) == 0 and len(got.view) == size == got.size
        assert not any(got.view)
        got.view[:] = b"\xff" * size
        assert all(got.address + size <= other.address or other.address + other.size <= got.address for other in held)
        held.append(got)
        if random.random() < 0.4:
            allocator.free(held.pop(random.randrange(len(held))))
    assert len(regions) <= 3


def test_allocator_refuses_nonsense():
    allocator = DmaAllocator(lambda size: DmaRegion(memoryview(bytearray(size)), 0, size))
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        allocator.allocate(0)
    with pytest.raises(ValueError, match="power of two, not 48"):
        allocator.allocate(10, 48)
    with pytest.raises(ValueError, match="not memory of this allocator"):
        allocator.free(DmaBuffer(memoryview(b""), 99, 1))
