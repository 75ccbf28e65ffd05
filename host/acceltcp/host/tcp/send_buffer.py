"""Data that the application has written and the peer has not acknowledged, kept by sequence number."""

from __future__ import annotations

from bisect import bisect_right

__all__ = ["SendBuffer"]

_JOIN = 8192
"""Small writes are put together in chunks of at most so many bytes."""
_VIEW = 2048
"""Larger chunks are kept as views."""
_COMPACT = 64
"""Released chunks that the lists may still have room for; above it, half of them at most."""


class SendBuffer:
    """Bytes [start, end) of the stream, as a list of chunks. Sequence numbers do not wrap.

    A `bytes` object is kept as it is, so that large writes cost nothing until they are sent; others are copied
    once. Small writes are joined: n of one byte take n / 8192 chunks and linear time. An object is let go when all
    of it has been released.
    """

    __slots__ = ("_chunks", "_cursor", "_first", "_starts", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        """Sequence number of the first byte that is kept."""
        self.end = start
        """Sequence number after the last one."""
        # Parallel: a chunk, and the sequence number of its first byte. Those before `_first` have been released.
        self._chunks: list[bytes | bytearray | memoryview] = []
        self._starts: list[int] = []
        self._first = 0
        self._cursor = 0
        """Chunk that was last copied from; the next copy mostly begins there or one further."""

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add data at the end. A memoryview counts as its bytes, whatever its items are."""
        if type(data) is memoryview:
            size = data.nbytes
        else:
            size = len(data)
        if not size:
            return
        chunks = self._chunks
        if len(chunks) > self._first:
            last = chunks[-1]
            if len(last) + size <= _JOIN:
                if type(last) is bytearray:
                    last += data
                else:
                    # A bytearray grows in amortised constant time.
                    chunks[-1] = joined = bytearray(last)
                    joined += data
                self.end += size
                return
        whole = data if type(data) is bytes else bytes(data)
        # Slices of a view are not copied; of a small object a copy costs less than a view.
        chunks.append(memoryview(whole) if size > _VIEW else whole)
        self._starts.append(self.end)
        self.end += size

    def release(self, upto: int) -> None:
        """Forget what is before `upto`; nothing when it is not after `start`. Raises `ValueError` beyond `end`."""
        if upto <= self.start:
            return
        if upto >= self.end:
            if upto > self.end:
                raise ValueError(f"cannot release up to {upto}: the send buffer ends at {self.end}")
            self.start = upto
            self._chunks.clear()
            self._starts.clear()
            self._first = self._cursor = 0
            return
        self.start = upto
        starts, first = self._starts, self._first
        after = first + 1
        if after < len(starts) and starts[after] <= upto:
            after = bisect_right(starts, upto, after)
            chunks = self._chunks
            for index in range(first, after - 1):
                chunks[index] = b""
            first = after - 1
            if first > _COMPACT and 2 * first > len(starts):
                del chunks[:first], starts[:first]
                self._cursor = max(self._cursor - first, 0)
                first = 0
            self._first = first

    def copy_into(self, slot: memoryview | bytearray, at: int, seq: int, length: int) -> None:
        """Write bytes [seq, seq + length) to slot[at : at + length]. Raises `ValueError` when they are not all here."""
        end = seq + length
        if seq < self.start or end > self.end:
            raise ValueError(f"bytes {seq} to {end} are not in the send buffer, which has {self.start} to {self.end}")
        if not length:
            return
        starts, chunks, index = self._starts, self._chunks, self._cursor
        offset = seq - starts[index]
        chunk = chunks[index]
        if offset < 0 or offset >= len(chunk):
            index = self._cursor = bisect_right(starts, seq, self._first) - 1
            offset = seq - starts[index]
            chunk = chunks[index]
        stop = offset + length
        if stop <= len(chunk):
            slot[at : at + length] = chunk[offset:stop]
            return
        while True:
            part = chunk[offset : offset + length]
            size = len(part)
            slot[at : at + size] = part
            length -= size
            if not length:
                break
            at += size
            index += 1
            chunk = chunks[index]
            offset = 0
        self._cursor = index
