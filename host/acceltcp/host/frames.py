"""DMA memory for final frames: what the NIC reads while it closes a connection.

A block holds the table of `FINAL_FRAME` entries and the frames behind it. Blocks are powers of two
from 512 bytes to what 16 of the largest frames take. A block that comes back is kept as it is for the next who wants
one of its size; when there is none, a buddy allocator cuts it out of chunks that it asks for when it needs them, up to a
limit. Before it asks, it joins what is kept, so that no mix of sizes uses memory up for good. A block belongs to the NIC
until the flow's FLOW_DONE event; `free` takes it back exactly once.
"""

from __future__ import annotations

from acceltcp.abi.messages import FINAL_FRAME, FINAL_FRAMES_MAX, FRAME_TABLE_ALIGN

from .dma import DmaAllocator, DmaBuffer, align_up

__all__ = ["FRAME_ALIGN", "FRAME_MEMORY_BYTES", "TABLE_BYTES", "FrameBlock", "FramePool"]

FRAME_MEMORY_BYTES = 16 << 20
"""Memory for final frames at most, unless told otherwise."""

TABLE_BYTES = align_up(FINAL_FRAMES_MAX * FINAL_FRAME.size, FRAME_TABLE_ALIGN)
"""The frames start behind a whole table, however many entries are used."""

FRAME_ALIGN = 64
"""Frames start at a multiple of this, a beat of the bus, so that none costs a beat more than it must."""

_ORDER_MIN = 9
_SIZE_MIN = 1 << _ORDER_MIN
_CHUNK_ORDER_MIN = 18
_GONE = memoryview(b"")

assert _SIZE_MIN >= FRAME_TABLE_ALIGN


class FrameBlock:
    """A piece of memory: `view` here, `address` (a multiple of 256) for the device, `size` in bytes.

    The pool gives the same objects out again: who has freed one must forget it.
    """

    __slots__ = ("_chunk", "_offset", "_order", "_pool", "_whole", "address", "size", "view")

    def __init__(self, pool: FramePool, chunk: int, offset: int, order: int) -> None:
        self._pool: FramePool | None = pool
        self._chunk, self._offset, self._order = chunk, offset, order
        buffer = pool._chunks[chunk]
        self.size = 1 << order
        self.address = buffer.address + offset
        self.view = self._whole = buffer.view[offset : offset + self.size]


class FramePool:
    """Blocks for final frames of at most `largest_frame` bytes.

    limit: bytes that it takes from `memory` at most. Raises `ValueError` when no chunk fits into that.
    """

    def __init__(self, memory: DmaAllocator, largest_frame: int, *, limit: int = FRAME_MEMORY_BYTES) -> None:
        if largest_frame < 1:
            raise ValueError(f"largest_frame must be at least 1, not {largest_frame!r}")
        self.largest = TABLE_BYTES + FINAL_FRAMES_MAX * align_up(largest_frame, FRAME_ALIGN)
        """Bytes of the largest block that anybody may ask for."""
        self._top = max((self.largest - 1).bit_length(), _CHUNK_ORDER_MIN)
        if limit < 1 << self._top:
            raise ValueError(f"limit must be at least {1 << self._top} bytes, one chunk, not {limit!r}")
        self.limit = limit
        self.used = 0
        """Bytes in blocks that are out."""
        self._memory = memory
        self._chunks: list[DmaBuffer] = []
        # By order: blocks as they came back, the latest last; and free pieces, as number of the chunk and offset in it.
        self._kept: list[list[FrameBlock]] = [[] for _ in range(self._top + 1)]
        self._free: list[set[tuple[int, int]]] = [set() for _ in range(self._top + 1)]

    @property
    def taken(self) -> int:
        """Bytes taken from the device's memory so far."""
        return len(self._chunks) << self._top

    def allocate(self, size: int) -> FrameBlock | None:
        """A block of at least `size` bytes, its contents old; None when there is no room.

        Raises `ValueError` for a size that no close needs.
        """
        if not 1 <= size <= self.largest:
            raise ValueError(f"size must be from 1 to {self.largest}, not {size!r}")
        order = (size - 1).bit_length() if size > _SIZE_MIN else _ORDER_MIN
        kept = self._kept[order]
        if kept:
            block = kept.pop()
            block._pool, block.view = self, block._whole
        else:
            piece = self._cut(order)
            if piece is None:
                return None
            block = FrameBlock(self, *piece, order)
        self.used += block.size
        return block

    def free(self, block: FrameBlock) -> None:
        """Take a block back. The caller makes sure that the device no longer reads it.

        Raises `ValueError` for a block that has been freed or that is not of this pool.
        """
        if block._pool is not self:
            what = "has been freed before" if block._pool is None else "belongs to another pool"
            raise ValueError(f"the block at {block.address:#x} {what}")
        block._pool, block.view = None, _GONE
        self.used -= block.size
        self._kept[block._order].append(block)

    def _cut(self, order: int) -> tuple[int, int] | None:
        """A piece of that order: number of its chunk and offset in it."""
        at = self._smallest(order)
        if at is None:
            # Each block is joined once for each time that it was freed, so this costs no more than joining at once.
            self._join()
            at = self._smallest(order)
        if at is None:
            if not self._grow():
                return None
            at = self._top
        chunk, offset = self._free[at].pop()
        while at > order:
            at -= 1
            self._free[at].add((chunk, offset + (1 << at)))
        return chunk, offset

    def _smallest(self, order: int) -> int | None:
        """The lowest order, from `order` up, of which there is a free piece."""
        for at in range(order, self._top + 1):
            if self._free[at]:
                return at
        return None

    def _join(self) -> None:
        """Make free pieces of the blocks that are kept, and join those that lie side by side."""
        for kept in self._kept:
            for block in kept:
                chunk, offset, order = block._chunk, block._offset, block._order
                while order < self._top and (chunk, offset ^ 1 << order) in self._free[order]:
                    self._free[order].remove((chunk, offset ^ 1 << order))
                    offset &= ~(1 << order)
                    order += 1
                self._free[order].add((chunk, offset))
            kept.clear()

    def close(self) -> None:
        """Give all memory back to the device. Raises `ValueError` while blocks are out."""
        if self.used:
            raise ValueError(f"{self.used} bytes of final frames are still in use")
        for chunk in self._chunks:
            self._memory.free(chunk)
        self._chunks.clear()
        for kept, pieces in zip(self._kept, self._free, strict=True):
            kept.clear()
            pieces.clear()

    def _grow(self) -> bool:
        if self.taken + (1 << self._top) > self.limit:
            return False
        try:
            chunk = self._memory.allocate(1 << self._top, FRAME_TABLE_ALIGN)
        except (MemoryError, OSError):
            return False  # the system has no more; connections can be closed without
        self._free[self._top].add((len(self._chunks), 0))
        self._chunks.append(chunk)
        return True
