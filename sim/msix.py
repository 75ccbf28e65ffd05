"""MSI-X: table, pending bits, and the eventfds that stand for messages.

With VFIO the messages themselves are the business of whoever owns the other side: SET_IRQS
gives each vector an eventfd, and addresses and data in the table are only kept. A vector is
masked by SET_IRQS, by the function mask in configuration space, or by its mask bit in the
table. The mask bits are set after a reset, as PCI says, but count only once the client has
written that vector's control word itself: behind VFIO nobody has to touch the table. An interrupt
of a masked vector sets its pending bit and is delivered when nothing masks it any more; one of a
vector without eventfd is lost, as it is while MSI-X is off.
"""

from __future__ import annotations

import os
import struct

from acceltcp.abi.pci import BAR_MSIX_BYTES, MSIX_ENTRY_BYTES, MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET

from .eventfd import signal_eventfd

__all__ = ["Msix"]

CONTROL_OFFSET = 12
MASKED = 1


class Msix:
    """State of all vectors.

    vectors: how many there are.
    """

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        self.function_masked = False
        self._table = bytearray()
        self._controlled = [False] * vectors
        self._masked = [False] * vectors
        self._pending = [False] * vectors
        self._eventfds: list[int | None] = [None] * vectors
        self.delivered = 0
        """Interrupts signalled."""
        self.reset()

    def reset(self) -> None:
        """Table and pending bits as after a reset; eventfds and SET_IRQS masks stay."""
        self._table = bytearray(struct.pack("<IIII", 0, 0, 0, MASKED) * self.vectors)
        self._controlled = [False] * self.vectors
        self._pending = [False] * self.vectors
        self.function_masked = False

    def close(self) -> None:
        """Forget all eventfds and masks."""
        for vector in range(self.vectors):
            self.assign(vector, None)
            self._masked[vector] = False
        self.reset()

    def assign(self, vector: int, eventfd: int | None) -> None:
        """Take over an eventfd, or none, for a vector; the old one is closed."""
        old, self._eventfds[vector] = self._eventfds[vector], eventfd
        if old is not None:
            os.close(old)
        if eventfd is None:
            self._pending[vector] = False
        else:
            self._deliver(vector)

    def mask(self, vector: int, masked: bool) -> None:
        """SET_IRQS's own mask."""
        self._masked[vector] = masked
        self._deliver(vector)

    def set_function_mask(self, masked: bool) -> None:
        """The mask of all vectors."""
        self.function_masked = masked
        for vector in range(self.vectors):
            self._deliver(vector)

    def is_masked(self, vector: int) -> bool:
        """Whether anything masks the vector."""
        table = self._table[MSIX_ENTRY_BYTES * vector + CONTROL_OFFSET] & MASKED
        return self._masked[vector] or self.function_masked or (self._controlled[vector] and bool(table))

    def is_pending(self, vector: int) -> bool:
        """The vector's pending bit."""
        return self._pending[vector]

    def trigger(self, vector: int) -> None:
        """An interrupt. A vector that does not exist is ignored."""
        if vector < self.vectors and self._eventfds[vector] is not None:
            self._pending[vector] = True
            self._deliver(vector)

    def _deliver(self, vector: int) -> None:
        eventfd = self._eventfds[vector]
        if eventfd is None or not self._pending[vector] or self.is_masked(vector):
            return
        self._pending[vector] = False
        signal_eventfd(eventfd)
        self.delivered += 1

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the BAR; the range has been checked."""
        image = bytearray(BAR_MSIX_BYTES)
        image[MSIX_TABLE_OFFSET : MSIX_TABLE_OFFSET + len(self._table)] = self._table
        pending = sum(1 << vector for vector in range(self.vectors) if self._pending[vector])
        words = (self.vectors + 63) // 64
        image[MSIX_PBA_OFFSET : MSIX_PBA_OFFSET + 8 * words] = pending.to_bytes(8 * words, "little")
        return bytes(image[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """Write to the BAR; what is not the table ignores it."""
        touched = set()
        for at, byte in enumerate(data, offset - MSIX_TABLE_OFFSET):
            if not 0 <= at < len(self._table):
                continue
            vector, inside = divmod(at, MSIX_ENTRY_BYTES)
            if inside == 0:
                byte &= 0xFC
            elif inside == CONTROL_OFFSET:
                byte &= MASKED
                self._controlled[vector] = True
                touched.add(vector)
            elif inside > CONTROL_OFFSET:
                byte = 0
            self._table[at] = byte
        for vector in touched:
            self._deliver(vector)
