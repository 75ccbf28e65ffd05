"""Received data: in order, waiting for the application (`ReceiveBuffer`), and out of order, waiting for what is
missing (`Reassembly`)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

__all__ = ["Reassembly", "ReceiveBuffer"]

_SMALL = 512
"""Pieces below this size are joined with their neighbour, so that an object's own size stays small beside its data."""
_JOIN = 4096
"""Joined pieces grow to so many bytes at most."""
_COMPACT = 64
"""Taken chunks that the lists may still have room for; above it, half of them at most."""


class ReceiveBuffer:
    """A queue of bytes, as a list of chunks. Positions count from the first byte that is held.

    Large chunks go in and out without a copy when they are taken as they came; small ones are joined. Every
    operation takes time linear in the bytes it moves or looks at, however small the chunks are.
    """

    __slots__ = ("_chunks", "_first", "_head", "_size", "_starts", "_tail")

    def __init__(self) -> None:
        # Parallel: a chunk, and the position in the stream of its first byte. Those before `_first` have been taken.
        self._chunks: list[bytes | bytearray] = []
        self._starts: list[int] = []
        self._first = 0
        self._head = 0
        """Position in the stream of the first byte held."""
        self._tail = 0
        """Position in the stream after the last byte held."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self.peek(self._size)

    def append(self, view: memoryview) -> None:
        """Add data at the end; copied once, the view may die."""
        size = len(view)
        if size:
            if size < _SMALL and self._join(view, size):
                return
            self._add(bytes(view), size)

    def append_bytes(self, data: bytes) -> None:
        """Add data at the end, without a copy unless they are small."""
        size = len(data)
        if size:
            if size < _SMALL and self._join(data, size):
                return
            self._add(data, size)

    def _add(self, data: bytes, size: int) -> None:
        self._chunks.append(data)
        self._starts.append(self._tail)
        self._tail += size
        self._size += size

    def _join(self, data: bytes | memoryview, size: int) -> bool:
        """Put small data into the last chunk, if there is room."""
        chunks = self._chunks
        if len(chunks) == self._first:
            return False
        last = chunks[-1]
        if len(last) + size > _JOIN:
            return False
        if type(last) is not bytearray:
            last = chunks[-1] = bytearray(last)
        last += data
        self._tail += size
        self._size += size
        return True

    def take(self, count: int) -> bytes:
        """Remove and return up to `count` bytes; all that there are when there are fewer. No copy is made when that is
        exactly a chunk. Raises `ValueError` for a negative count."""
        if count <= 0:
            if count < 0:
                raise ValueError(f"cannot take {count} bytes: the count must not be negative")
            return b""
        if count > self._size:
            count = self._size
            if not count:
                return b""
        chunk = self._chunks[self._first]
        offset = self._head - self._starts[self._first]
        left = len(chunk) - offset
        if count < left:
            self._head += count
            self._size -= count
            return bytes(chunk[offset : offset + count])
        if count == left:
            self._drop(count, self._first + 1)
            return bytes(chunk[offset:]) if offset else bytes(chunk)
        parts, after = self._parts(count)
        data = b"".join(parts)
        self._drop(count, after)
        return data

    def take_into(self, buffer: bytearray | memoryview) -> int:
        """Remove as many bytes as fit `buffer` and write them to its beginning; how many."""
        target = memoryview(buffer).cast("B")
        count = min(len(target), self._size)
        if not count:
            return 0
        parts, after = self._parts(count)
        at = 0
        for part in parts:
            target[at : at + len(part)] = part
            at += len(part)
        parts.clear()
        self._drop(count, after)
        return count

    def peek(self, count: int) -> bytes:
        """The first `count` bytes, or all that there are, which stay."""
        count = min(count, self._size)
        return b"".join(self._parts(count)[0]) if count > 0 else b""

    def find(self, separator: bytes, start: int = 0) -> int:
        """Position of the first occurrence that begins at or after `start`; -1 when there is none.

        Who searches again after more data have come in begins at the old length less len(separator) - 1, and so looks at
        each byte once. Raises `ValueError` for an empty separator.
        """
        size = len(separator)
        if not size:
            raise ValueError("an empty separator is found everywhere")
        chunks, starts = self._chunks, self._starts
        position = self._head + max(start, 0)
        if position + size > self._tail:
            return -1
        index = bisect_right(starts, position, self._first) - 1
        while index < len(chunks):
            chunk = chunks[index]
            base = starts[index]
            found = chunk.find(separator, max(position - base, 0))
            if found >= 0:
                return base + found - self._head
            after = base + len(chunk)
            # It may begin in the last bytes of this chunk and end in later ones.
            begin = max(after - size + 1, position, base)
            if begin < after < self._tail:
                window = bytearray(chunk[begin - base :])
                wanted = len(window) + size - 1
                following = index + 1
                while len(window) < wanted and following < len(chunks):
                    window += chunks[following][: wanted - len(window)]
                    following += 1
                found = window.find(separator)
                if found >= 0:
                    return begin + found - self._head
            index += 1
        return -1

    def clear(self) -> None:
        """Drop everything."""
        self._chunks.clear()
        self._starts.clear()
        self._head = self._tail
        self._first = self._size = 0

    def _parts(self, count: int) -> tuple[list[bytes | bytearray | memoryview], int]:
        """The first `count` bytes (at least one, at most all) in pieces, and the chunk that is then the first."""
        chunks = self._chunks
        index = self._first
        position, end = self._head, self._head + count
        parts: list[bytes | bytearray | memoryview] = []
        while position < end:
            chunk = chunks[index]
            offset = position - self._starts[index]
            left = len(chunk) - offset
            if left <= end - position:
                parts.append(memoryview(chunk)[offset:] if offset else chunk)
                position += left
                index += 1
            else:
                parts.append(memoryview(chunk)[offset : offset + end - position])
                position = end
        return parts, index

    def _drop(self, count: int, first: int) -> None:
        """Forget the first `count` bytes; `first` is then the first chunk with some left."""
        chunks = self._chunks
        self._head += count
        self._size -= count
        if first == len(chunks):
            chunks.clear()
            self._starts.clear()
            self._first = 0
            return
        for index in range(self._first, first):
            chunks[index] = b""
        if first > _COMPACT and 2 * first > len(chunks):
            del chunks[:first], self._starts[:first]
            first = 0
        self._first = first


class Reassembly:
    """Data beyond rcv_nxt, and the SACK blocks that tell of them (RFC 2018, RFC 2883). Sequence numbers do not wrap.

    Data are kept as islands: stretches without a gap in them and with a gap around. Where segments overlap, the
    first copy wins. The memory beside the data is bounded by the number of islands and a small part of the data,
    whatever the sizes and the order of the segments. A segment costs at worst time linear in the islands and in the pieces of those it joins.

    limit_pieces: how many islands there may be; a segment that would make one more is not kept.
    """

    __slots__ = ("_duplicate", "_islands", "_lefts", "_limit", "_newest", "_recent", "_rights", "size")

    def __init__(self, limit_pieces: int) -> None:
        self._limit = limit_pieces
        # Parallel and sorted: where an island begins, ends, and its pieces.
        self._lefts: list[int] = []
        self._rights: list[int] = []
        self._islands: list[list[bytes | bytearray]] = []
        # Keys: left edges of all islands, in the order in which they last grew.
        self._recent: dict[int, None] = {}
        self._newest = -1
        """The last key of `_recent`."""
        self._duplicate: tuple[int, int] | None = None
        self.size = 0
        """Bytes of data held."""

    def __bool__(self) -> bool:
        """Whether there is something to tell of in a SACK option."""
        return bool(self._lefts) or self._duplicate is not None

    def __len__(self) -> int:
        """Number of islands."""
        return len(self._lefts)

    def add(self, seq: int, view: memoryview) -> int:
        """Keep what of a segment's data is not here yet; how many bytes that was. The view may die.

        What was here already is reported as a duplicate by the next `blocks` (of several stretches the first:
        RFC 2883 section 4).
        """
        length = len(view)
        if not length:
            return 0
        lefts, rights = self._lefts, self._rights
        if rights and seq == rights[-1]:
            # Mostly: one hole, and the data after it come in order.
            _extend(self._islands[-1], view, length)
            rights[-1] = seq + length
            self.size += length
            left = lefts[-1]
            if left != self._newest:
                self._touch(left)
            return length
        end = seq + length
        # Islands `first` to `last` - 1 touch or overlap the segment.
        first = bisect_left(rights, seq)
        last = bisect_right(lefts, end, first)
        if first == last:
            if len(lefts) >= self._limit:
                return 0
            lefts.insert(first, seq)
            rights.insert(first, end)
            self._islands.insert(first, [bytes(view)])
            self.size += length
            self._touch(seq)
            return length
        return self._merge(seq, end, view, first, last)

    def _merge(self, seq: int, end: int, view: memoryview, first: int, last: int) -> int:
        """Put a segment and the islands `first` to `last` - 1 into one."""
        lefts, rights, islands, recent = self._lefts, self._rights, self._islands, self._recent
        added = 0
        doubled = False
        merged: list[bytes | bytearray] = []
        at = seq  # what is before it has been dealt with
        for index in range(first, last):
            left, right = lefts[index], rights[index]
            if left > at:
                _extend(merged, view[at - seq : left - seq], left - at)
                added += left - at
                at = left
            if not doubled and at < right and at < end:
                doubled = True
                self._duplicate = at, min(right, end)
            if not merged:
                merged = islands[index]
            else:
                island = islands[index]
                _extend(merged, island[0], len(island[0]))
                merged += island[1:]
            at = max(at, right)
            del recent[left]
        if end > at:
            _extend(merged, view[at - seq :], end - at)
            added += end - at
        left, right = min(seq, lefts[first]), max(end, rights[last - 1])
        lefts[first:last], rights[first:last], islands[first:last] = [left], [right], [merged]
        self.size += added
        recent[left] = None
        self._newest = left
        return added

    def _touch(self, left: int) -> None:
        """An island grew: it is told of first."""
        self._recent.pop(left, None)
        self._recent[left] = None
        self._newest = left

    def join(self, rcv_nxt: int) -> list[bytes]:
        """Remove and return the data that follow `rcv_nxt` without a gap, in order; what is before it is dropped."""
        count = bisect_right(self._lefts, rcv_nxt)
        if not count:
            return []
        lefts, rights, islands = self._lefts, self._rights, self._islands
        if lefts[0] < rcv_nxt:
            # The segment that filled the hole went further.
            self._duplicate = lefts[0], min(rights[0], rcv_nxt)
        parts: list[bytes] = []
        for index in range(count):
            left, right = lefts[index], rights[index]
            self.size -= right - left
            del self._recent[left]
            if right <= rcv_nxt:
                continue
            skip = rcv_nxt - left
            for piece in islands[index]:
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                parts.append(bytes(piece[skip:]) if skip else bytes(piece))
                skip = 0
        del lefts[:count], rights[:count], islands[:count]
        self._newest = next(reversed(self._recent), -1)
        return parts

    def take(self) -> list[tuple[int, bytes]]:
        """Remove and return all data: where each stretch begins, and what it holds."""
        stretches = [(left, b"".join(island)) for left, island in zip(self._lefts, self._islands, strict=True)]
        self.clear()
        return stretches

    @property
    def end(self) -> int | None:
        """Sequence number after the last byte held; None without any."""
        return self._rights[-1] if self._rights else None

    def duplicate(self, left: int, right: int) -> None:
        """Data [left, right) came that had come before: the next `blocks` tells so."""
        if left < right:
            self._duplicate = left, right

    def blocks(self, count: int) -> list[tuple[int, int]]:
        """Up to `count` blocks for a SACK option: a pending duplicate (told of once), then the islands, those that grew last
        first (RFC 2018 section 4)."""
        blocks: list[tuple[int, int]] = []
        if count <= 0:
            return blocks
        lefts, rights = self._lefts, self._rights
        if self._duplicate is not None:
            blocks.append(self._duplicate)
            self._duplicate = None
            count -= 1
        if len(lefts) == 1:
            if count:
                blocks.append((lefts[0], rights[0]))
            return blocks
        for left in reversed(self._recent):
            if not count:
                break
            blocks.append((left, rights[bisect_left(lefts, left)]))
            count -= 1
        return blocks

    def prune(self, to_bytes: int) -> int:
        """Drop the data with the highest sequence numbers until at most `to_bytes` are left; how many bytes that were. A
        receiver short of memory may do so although it has told of them (RFC 2018 section 8)."""
        before = self.size
        lefts, rights, islands = self._lefts, self._rights, self._islands
        while self.size > to_bytes and islands:
            island = islands[-1]
            while island and self.size > to_bytes:
                size = len(island.pop())
                rights[-1] -= size
                self.size -= size
            if not island:
                del self._recent[lefts[-1]]
                del lefts[-1], rights[-1], islands[-1]
        self._newest = next(reversed(self._recent), -1)
        return before - self.size

    def clear(self) -> None:
        """Drop everything."""
        self._lefts.clear()
        self._rights.clear()
        self._islands.clear()
        self._recent.clear()
        self._newest = -1
        self._duplicate = None
        self.size = 0


def _extend(pieces: list[bytes | bytearray], data: bytes | bytearray | memoryview, size: int) -> None:
    """Add data to the end of an island; small data, or data after small ones, are joined to what is there."""
    if pieces:
        last = pieces[-1]
        known = len(last)
        if (size < _SMALL or known < _SMALL) and known + size <= _JOIN:
            if type(last) is not bytearray:
                last = pieces[-1] = bytearray(last)
            last += data
            return
    pieces.append(bytes(data))
