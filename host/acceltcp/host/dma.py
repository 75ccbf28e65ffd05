"""Host memory that the device can reach.

A transport hands out `DmaRegion`s: a few large, mapped pieces. `DmaAllocator` cuts them into
aligned `DmaBuffer`s for rings and packets, so that the number of mappings stays small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["DmaAllocator", "DmaBuffer", "DmaRegion", "align_up"]

REGION_BYTES = 2 << 20
"""Least size of a region: one huge page."""


def align_up(value: int, alignment: int) -> int:
    """The next multiple of `alignment` (a power of two)."""
    return (value + alignment - 1) & -alignment


@dataclass
class DmaRegion:
    """A mapped piece of memory: `view` here, `address` for the device."""

    view: memoryview
    address: int
    size: int


@dataclass
class DmaBuffer:
    """A part of a region. The memory is zero when it is handed out for the first time."""

    view: memoryview
    address: int
    size: int


@dataclass
class _Arena:
    region: DmaRegion
    used: int = 0
    free: list[tuple[int, int]] = field(default_factory=list)


class DmaAllocator:
    """First fit over regions that are asked for when the ones there are full."""

    def __init__(self, map_region: Callable[[int], DmaRegion]) -> None:
        self._map_region = map_region
        self._arenas: list[_Arena] = []

    def allocate(self, size: int, alignment: int = 64) -> DmaBuffer:
        """Zeroed memory. Raises `ValueError` for a size below 1 or an alignment that is not
        a power of two, and what the transport raises when it cannot map more.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size!r}")
        if alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"alignment must be a power of two, not {alignment!r}")
        for arena in self._arenas:
            buffer = self._take(arena, size, alignment)
            if buffer is not None:
                return buffer
        arena = _Arena(self._map_region(align_up(size, REGION_BYTES)))
        self._arenas.append(arena)
        buffer = self._take(arena, size, alignment)
        if buffer is None:
            raise MemoryError(f"alignment {alignment} is more than a region's start has")
        return buffer

    def free(self, buffer: DmaBuffer) -> None:
        """Give memory back. The caller makes sure that the device no longer uses it."""
        for arena in self._arenas:
            start = buffer.address - arena.region.address
            if 0 <= start < arena.region.size:
                arena.free.append((start, buffer.size))
                self._merge(arena)
                return
        raise ValueError(f"{buffer.address:#x} is not memory of this allocator")

    @staticmethod
    def _merge(arena: _Arena) -> None:
        """Join neighbouring free pieces, and give the last one back to the unused end."""
        pieces: list[tuple[int, int]] = []
        for start, size in sorted(arena.free):
            if pieces and pieces[-1][0] + pieces[-1][1] == start:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + size)
            else:
                pieces.append((start, size))
        arena.free = pieces

    @staticmethod
    def _take(arena: _Arena, size: int, alignment: int) -> DmaBuffer | None:
        base = arena.region.address
        for index, (start, length) in enumerate(arena.free):
            at = align_up(base + start, alignment) - base
            if at + size <= start + length:
                rest = []
                if at > start:
                    rest.append((start, at - start))
                if at + size < start + length:
                    rest.append((at + size, start + length - at - size))
                arena.free[index : index + 1] = rest
                view = arena.region.view[at : at + size]
                view[:] = bytes(size)
                return DmaBuffer(view, base + at, size)
        at = align_up(base + arena.used, alignment) - base
        if at + size > arena.region.size:
            return None
        if at > arena.used:
            arena.free.append((arena.used, at - arena.used))
        arena.used = at + size
        return DmaBuffer(arena.region.view[at : at + size], base + at, size)
