"""Memory for final frames: sizes, bounds, and that nothing is freed twice or overlaps."""

from __future__ import annotations

import random

import pytest

from acceltcp.abi.messages import FINAL_FRAME, FINAL_FRAMES_MAX, FRAME_TABLE_ALIGN
from acceltcp.host.dma import DmaAllocator, DmaRegion
from acceltcp.host.frames import TABLE_BYTES, FramePool

CHUNK = 256 << 10


def memory(most: int = 1 << 30):
    """An allocator, and how much it has been asked for."""
    asked = []

    def map_region(size: int) -> DmaRegion:
        if sum(asked) + size > most:
            raise MemoryError("no more")
        asked.append(size)
        return DmaRegion(memoryview(bytearray(size)), 0x1_0000_0000 * len(asked), size)

    return DmaAllocator(map_region), asked


def test_sizes_are_powers_of_two_and_aligned():
    pool = FramePool(memory()[0], 1518)
    assert FINAL_FRAMES_MAX * FINAL_FRAME.size <= TABLE_BYTES
    for size, got in ((1, 512), (512, 512), (513, 1024), (3000, 4096), (pool.largest, 32768)):
        block = pool.allocate(size)
        assert block.size == got == len(block.view)
        assert block.address % FRAME_TABLE_ALIGN == 0


def test_jumbo_frames_fit():
    pool = FramePool(memory()[0], 9018)
    assert pool.allocate(TABLE_BYTES + 16 * 9024).size == CHUNK


@pytest.mark.parametrize("seed", range(5))
def test_blocks_never_overlap_and_all_memory_comes_back(seed):
    chooser = random.Random(seed)
    pool = FramePool(memory()[0], 1518, limit=1 << 20)
    held: dict[int, object] = {}
    refused = 0
    for step in range(3000):
        if held and chooser.random() < 0.45:
            number = chooser.choice(list(held))
            block = held.pop(number)
            assert bytes(block.view) == number.to_bytes(4, "little") * (block.size // 4)
            pool.free(block)
        else:
            block = pool.allocate(chooser.choice([300, 1000, 5000, 20000]))
            if block is None:
                refused += 1
                continue
            block.view[:] = step.to_bytes(4, "little") * (block.size // 4)
            held[step] = block
    assert pool.taken <= 1 << 20 and refused
    assert pool.used == sum(block.size for block in held.values())
    for block in held.values():
        pool.free(block)
    # Whole chunks again: what was cut has been joined.
    assert pool.used == 0
    whole = [pool.allocate(pool.largest) for _ in range((1 << 20) // 32768)]
    assert all(whole) and pool.allocate(1) is None


def test_block_is_given_out_again_as_it_was():
    pool = FramePool(memory()[0], 1518)
    first, second = pool.allocate(300), pool.allocate(512)
    address = second.address
    second.view[:] = b"2" * 512
    pool.free(second)
    again = pool.allocate(512)
    assert again.address == address != first.address and bytes(again.view) == b"2" * 512
    assert pool.used == 1024


def test_small_blocks_that_are_kept_are_joined_before_memory_is_asked_for():
    allocator, asked = memory()
    pool = FramePool(allocator, 1518)
    small = [pool.allocate(512) for _ in range(CHUNK // 512)]
    for block in small:
        pool.free(block)
    whole = [pool.allocate(pool.largest) for _ in range(CHUNK // 32768)]
    assert len({block.address for block in whole}) == len(whole) and pool.taken == CHUNK and len(asked) == 1
    for block in whole:
        pool.free(block)
    # Nor do the large ones keep the small ones out.
    assert all(pool.allocate(512) for _ in range(CHUNK // 512)) and pool.taken == CHUNK


def test_bounded_and_grown_on_demand():
    allocator, asked = memory()
    pool = FramePool(allocator, 1518, limit=2 * CHUNK)
    assert not asked
    blocks = [pool.allocate(512) for _ in range(2 * CHUNK // 512)]
    assert all(blocks) and pool.taken == 2 * CHUNK and len(asked) == 1
    assert pool.allocate(1) is None
    pool.free(blocks.pop())
    assert pool.allocate(1) is not None


def test_system_without_memory_is_no_error():
    pool = FramePool(memory(most=0)[0], 1518)
    assert pool.allocate(512) is None


def test_freed_twice_or_elsewhere():
    pool, other = FramePool(memory()[0], 1518), FramePool(memory()[0], 1518)
    block = pool.allocate(512)
    with pytest.raises(ValueError, match=f"{block.address:#x} belongs to another pool"):
        other.free(block)
    pool.free(block)
    with pytest.raises(ValueError, match="has been freed before"):
        pool.free(block)
    assert pool.used == 0 and not block.view


def test_close_gives_everything_back():
    allocator, asked = memory()
    pool = FramePool(allocator, 1518)
    block = pool.allocate(512)
    with pytest.raises(ValueError, match="512 bytes of final frames are still in use"):
        pool.close()
    pool.free(block)
    pool.close()
    assert pool.taken == 0
    assert allocator.allocate(CHUNK).address == block.address and len(asked) == 1
    assert pool.allocate(512) is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FramePool(memory()[0], 0), "largest_frame must be at least 1, not 0"),
        (lambda: FramePool(memory()[0], 1518, limit=1000), "limit must be at least 262144 bytes"),
        (lambda: FramePool(memory()[0], 1518).allocate(0), "size must be from 1 to"),
        (lambda: FramePool(memory()[0], 1518).allocate(1 << 20), "size must be from 1 to"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
