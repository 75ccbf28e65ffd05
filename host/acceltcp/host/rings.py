"""The four rings of a queue in host memory.

Indices are free-running 16-bit counts. Rings that the NIC writes are read by phase bit: the
last bit of an entry is 1 on the first trip round, 0 on the second, and so on.
"""

from __future__ import annotations

from collections.abc import Callable

from acceltcp.abi.fields import Message
from acceltcp.abi.messages import (
    EVENT,
    RING_SIZE_LOG2_MAX,
    RING_SIZE_LOG2_MIN,
    RX_COMPLETION,
    RX_FREE,
    TX_DESCRIPTOR,
)

from .dma import DmaBuffer
from .layout import Packing

__all__ = ["EVENT_PACKING", "RX_PACKING", "ConsumerRing", "ProducerRing", "check_ring_size"]

RX_PACKING = Packing(RX_COMPLETION)
EVENT_PACKING = Packing(EVENT)
_PRODUCED = {message.name: Packing(message) for message in (RX_FREE, TX_DESCRIPTOR)}
_CONSUMED = {message.name: packing for message, packing in ((RX_COMPLETION, RX_PACKING), (EVENT, EVENT_PACKING))}

for _packing in _CONSUMED.values():
    assert _packing.message.positions["phase"] == (_packing.message.bits - 1, 1), "phase is the last bit"


def check_ring_size(name: str, entries: int) -> int:
    """log2 of a ring's size. Raises `ValueError` naming the value and what is allowed."""
    if isinstance(entries, int) and entries > 0 and not entries & (entries - 1):
        log2 = entries.bit_length() - 1
        if RING_SIZE_LOG2_MIN <= log2 <= RING_SIZE_LOG2_MAX:
            return log2
    raise ValueError(
        f"{name} must be a power of two from {1 << RING_SIZE_LOG2_MIN} to {1 << RING_SIZE_LOG2_MAX}, not {entries!r}"
    )


class ProducerRing:
    """A ring that the host fills (RX_FREE, TX_DESCRIPTOR).

    `tail` counts entries posted, `head` entries known to be free again. `doorbell` tells the
    device the tail. Who posts packet by packet does what `push` does by itself: `pack_into` the entry at
    `(tail & mask) * size` of `view`, advance `tail`.
    """

    __slots__ = ("_doorbell", "buffer", "entries", "head", "log2", "mask", "pack_into", "rung", "size", "tail", "view")

    def __init__(self, message: Message, entries: int, buffer: DmaBuffer, doorbell: Callable[[int], None]) -> None:
        self.log2 = check_ring_size(message.name, entries)
        self.entries = entries
        self.buffer = buffer
        self.head = 0
        self.tail = 0
        self.rung = 0
        """The tail that the device knows."""
        self.mask = entries - 1
        self.size = message.size
        self._doorbell = doorbell
        self.pack_into = _PRODUCED[message.name].struct.pack_into
        self.view = buffer.view[: entries * message.size]

    @property
    def space(self) -> int:
        """Entries that may be pushed now."""
        return self.entries - (self.tail - self.head & 0xFFFF)

    def push(self, *items: int) -> int:
        """Write an entry; its index. The caller has looked at `space`; `ring` makes it known."""
        index = self.tail
        self.pack_into(self.view, (index & self.mask) * self.size, *items)
        self.tail = index + 1 & 0xFFFF
        return index

    def ring(self) -> None:
        """Tell the device about what was pushed since the last time, if anything was."""
        if self.rung != self.tail:
            self.rung = self.tail
            self._doorbell(self.tail)


class ConsumerRing:
    """A ring that the device fills (RX_COMPLETION, EVENT).

    `head` counts entries consumed; `doorbell` tells the device.
    """

    __slots__ = ("_doorbell", "_iter_unpack", "_size", "_view", "buffer", "entries", "head", "log2")

    def __init__(self, message: Message, entries: int, buffer: DmaBuffer, doorbell: Callable[[int], None]) -> None:
        self.log2 = check_ring_size(message.name, entries)
        self.entries = entries
        self.buffer = buffer
        self.head = 0
        self._size = message.size
        self._doorbell = doorbell
        self._iter_unpack = _CONSUMED[message.name].struct.iter_unpack
        self._view = buffer.view[: entries * message.size]

    def ready(self) -> bool:
        """Whether there is a new entry."""
        at = self.head & self.entries - 1
        phase = self.head // self.entries & 1 ^ 1
        return self._view[at * self._size + self._size - 1] >> 7 == phase

    def take(self, limit: int) -> list[tuple[int, ...]]:
        """Up to `limit` new entries as unpacked tuples; call `acknowledge` when done with them.

        The phase byte is looked at before the rest of an entry is read.
        """
        size, view = self._size, self._view
        first = self.head & self.entries - 1
        # One run without wrap: the phase is the same all along.
        phase = 0x80 if not self.head // self.entries & 1 else 0
        at = first * size + size - 1
        last = first + limit
        end = (last if last < self.entries else self.entries) * size
        while at < end and view[at] & 0x80 == phase:
            at += size
        count = at // size - first
        if not count:
            return []
        taken = list(self._iter_unpack(view[first * size : (first + count) * size]))
        self.head = self.head + count & 0xFFFF
        return taken

    def entry(self, index: int) -> memoryview:
        """An entry as it lies there, by its free-running index; of one that was taken, until `acknowledge`."""
        at = (index & self.entries - 1) * self._size
        return self._view[at : at + self._size]

    def acknowledge(self) -> None:
        """Tell the device that all taken entries may be overwritten."""
        self._doorbell(self.head)
