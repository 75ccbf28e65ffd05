"""Received data in order against a plain bytearray; out of order against a dict of byte positions; costs by counting."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from acceltcp.host.tcp.receive_buffer import Reassembly, ReceiveBuffer

# -- in order ----------------------------------------------------------------------------

sizes = st.one_of(st.integers(0, 30), st.integers(0, 6000))
operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["append", "append_bytes"]), sizes),
        st.tuples(st.sampled_from(["take", "take_into", "peek"]), sizes),
        st.tuples(st.just("find"), st.integers(0, 400)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=40,
)


@given(operations, st.randoms(use_true_random=False), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_is_a_bytearray(todo, chooser, letters):
    """Few letters, so that separators are found, often across chunks."""
    buffer, model = ReceiveBuffer(), bytearray()
    for what, number in todo:
        if what.startswith("append"):
            data = bytes(chooser.choices(b"abcde"[:letters], k=number))
            if what == "append":
                source = bytearray(data)
                buffer.append(memoryview(source))
                source[:] = bytes(number)  # the ring buffer is used again
            else:
                buffer.append_bytes(data)
            model += data
        elif what == "take":
            assert buffer.take(number) == model[:number]
            del model[:number]
        elif what == "take_into":
            target = bytearray(b"\xee" * number)
            count = buffer.take_into(target)
            assert count == min(number, len(model))
            assert target == model[:count] + b"\xee" * (number - count)
            del model[:count]
        elif what == "peek":
            assert buffer.peek(number) == model[:number]
        elif what == "find":
            separator = bytes(chooser.choices(b"abcde"[:letters], k=chooser.choice([1, 2, 3, 7, 12])))
            assert buffer.find(separator, number) == model.find(separator, number)
            assert buffer.find(separator) == model.find(separator)
        else:
            buffer.clear()
            model.clear()
        assert len(buffer) == len(model) and bytes(buffer) == model
    assert buffer.take(1 << 30) == model
    assert not buffer and buffer.take(1) == b""


@pytest.mark.parametrize("separator", [b"\r\n", b"\r\n\r\n", b"x" * 40])
@pytest.mark.parametrize("piece", [1, 3, 600, 5000])
def test_a_separator_across_chunks(separator, piece):
    data = b"a" * 4999 + separator + b"b" * 5000
    buffer = ReceiveBuffer()
    for at in range(0, len(data), piece):
        buffer.append(memoryview(data)[at : at + piece])
    for start in (0, 4000, 4998, 4999):
        assert buffer.find(separator, start) == 4999
    assert buffer.find(separator, 5000) == data.find(separator, 5000)
    assert buffer.find(b"c" + separator) == -1


def test_whole_chunks_are_not_copied():
    buffer = ReceiveBuffer()
    data = [bytes([number]) * 1448 for number in range(1, 5)]
    for one in data:
        buffer.append_bytes(one)
    assert all(buffer.take(1448) is one for one in data)
    buffer.append(memoryview(b"short"))
    assert buffer.take(100) == b"short"


def test_bad_arguments():
    buffer = ReceiveBuffer()
    with pytest.raises(ValueError, match="cannot take -1 bytes"):
        buffer.take(-1)
    with pytest.raises(ValueError, match="empty separator"):
        buffer.find(b"")


@pytest.mark.parametrize("size", [1, 7, 511])
def test_small_pieces_are_joined(size):
    """A peer that sends byte by byte costs no object per byte."""
    buffer = ReceiveBuffer()
    count = 100_000 // size
    for _ in range(count):
        buffer.append(memoryview(b"x" * size))
    assert len(buffer._chunks) <= count * size // (4096 - size) + 1
    assert buffer.take(count * size) == b"x" * (count * size)


@pytest.mark.parametrize("size", [100, 600, 1448])
def test_memory_follows_what_is_held(size):
    """A reader that always leaves something does not make it grow."""
    buffer = ReceiveBuffer()
    buffer.append(memoryview(b"1"))
    for _ in range(20_000):
        buffer.append(memoryview(bytes(size)))
        buffer.take(size)
        assert len(buffer) == 1
    assert len(buffer._chunks) == len(buffer._starts) <= 150
    assert sum(map(len, buffer._chunks)) <= 2 * 4096


class Counting(list):
    """A list that counts how many of its items are read."""

    reads = 0

    def __getitem__(self, index):
        Counting.reads += 1
        return super().__getitem__(index)


def test_repeated_searches_look_at_each_byte_once():
    """A line that never ends, searched after each segment, costs linear time."""
    buffer = ReceiveBuffer()
    buffer._chunks, buffer._starts = Counting(), Counting()
    Counting.reads = 0
    for _ in range(5000):
        start = max(len(buffer) - 1, 0)
        buffer.append(memoryview(b"x" * 1448))
        assert buffer.find(b"\r\n", start) == -1
    assert Counting.reads < 5000 * 30


# -- out of order ------------------------------------------------------------------------


class Model:
    """Byte positions, and what RFC 2018 and RFC 2883 say about blocks, as plainly as can be."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.touched: dict[int, int] = {}
        """Byte position -> when the segment that it came in, or that joined its stretch, came."""
        self.clock = 0
        self.duplicate: tuple[int, int] | None = None

    def islands(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for position in sorted(self.held):
            if found and found[-1][1] == position:
                found[-1] = (found[-1][0], position + 1)
            else:
                found.append((position, position + 1))
        return found

    def add(self, seq: int, data: bytes) -> int:
        self.clock += 1
        double = [seq + i for i in range(len(data)) if seq + i in self.held]
        if double:
            end = double[0]
            while end in self.held and end < seq + len(data):
                end += 1
            self.duplicate = double[0], end
        for i, byte in enumerate(data):
            self.held.setdefault(seq + i, byte)
            self.touched[seq + i] = self.clock
        return len(data) - len(double)

    def join(self, rcv_nxt: int) -> bytes:
        below = sorted(position for position in self.held if position < rcv_nxt)
        if below:
            end = below[0]
            while end in self.held and end < rcv_nxt:
                end += 1
            self.duplicate = below[0], end
        for position in below:
            del self.held[position], self.touched[position]
        out = bytearray()
        while rcv_nxt in self.held:
            out.append(self.held.pop(rcv_nxt))
            del self.touched[rcv_nxt]
            rcv_nxt += 1
        return bytes(out)

    def blocks(self, count: int) -> list[tuple[int, int]]:
        newest = sorted(self.islands(), key=lambda island: -max(self.touched[at] for at in range(*island)))
        first = [self.duplicate] if self.duplicate is not None else []
        if count > 0:
            self.duplicate = None
        return (first + newest)[:count] if count > 0 else []


arrivals = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 300), st.integers(0, 60)),
        st.tuples(st.just("add"), st.integers(0, 300), st.integers(0, 3)),
        st.tuples(st.just("join"), st.integers(0, 60), st.just(0)),
        st.tuples(st.just("blocks"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("duplicate"), st.integers(0, 300), st.integers(-2, 20)),
    ),
    max_size=60,
)
BASE = (1 << 32) - 100  # numbers go on beyond 32 bits


@given(arrivals, st.randoms(use_true_random=False), st.sampled_from([1, 37, 600]))
@example([("add", 1, 3), ("join", 0, 0), ("add", 0, 2)], random.Random(0), 1)
@settings(max_examples=300, deadline=None)
def test_reassembly_is_a_dict_of_bytes(todo, chooser, scale):
    """scale: segments of a few bytes (which are joined) and of some hundreds (which are not)."""
    reassembly, model, rcv_nxt = Reassembly(1000), Model(), BASE
    for what, first, second in todo:
        if what == "add":
            seq, data = rcv_nxt + 1 + first * scale % 9000, chooser.randbytes(second * scale)
            source = bytearray(data)
            added = reassembly.add(seq, memoryview(source))
            source[:] = bytes(len(source))
            if data:
                assert added == model.add(seq, data)
        elif what == "join":
            # In-order data that fill the hole, perhaps more than that.
            rcv_nxt += first * scale
            joined = b"".join(parts := reassembly.join(rcv_nxt))
            assert all(type(part) is bytes for part in parts)
            assert joined == model.join(rcv_nxt)
            rcv_nxt += len(joined)
        elif what == "blocks":
            assert reassembly.blocks(first) == model.blocks(first)
        else:
            reassembly.duplicate(rcv_nxt - 50 + first, rcv_nxt - 50 + first + second)
            if second > 0:
                model.duplicate = rcv_nxt - 50 + first, rcv_nxt - 50 + first + second
        islands = model.islands()
        assert (reassembly.size, len(reassembly)) == (len(model.held), len(islands))
        assert bool(reassembly) == bool(islands or model.duplicate)
    assert reassembly.blocks(1000) == model.blocks(1000)
    if reassembly:
        # Everything that was kept comes out, as it first came.
        for left, _ in model.islands():
            assert b"".join(reassembly.join(left)) == model.join(left)
    assert (reassembly.size, bool(reassembly)) == (0, False)


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 900)), max_size=30), st.integers(0, 9000))
@settings(max_examples=200, deadline=None)
def test_prune_drops_from_the_top(segments, keep):
    reassembly, model = Reassembly(1000), {}
    for seq, length in segments:
        data = bytes((seq + i) & 0xFF for i in range(length))
        reassembly.add(seq, memoryview(data))
        model.update((seq + i, data[i]) for i in range(length))
    before = reassembly.size
    dropped = reassembly.prune(keep)
    assert dropped == before - reassembly.size and reassembly.size <= keep
    # What is left is the lower part, and no more was dropped than a piece too many.
    left = sorted(model)[: reassembly.size]
    assert before <= keep or keep - reassembly.size < 4096
    reassembly._duplicate = None
    out = {}
    for start, end in sorted(reassembly.blocks(1000)):
        out.update(enumerate(b"".join(reassembly.join(start)), start))
        assert end in (max(out) + 1, end)
    assert out == {position: model[position] for position in left}


def test_the_first_copy_wins():
    """An attacker who guesses numbers cannot replace what has come."""
    reassembly = Reassembly(10)
    reassembly.add(10, memoryview(b"good"))
    reassembly.add(20, memoryview(b"fine"))
    assert reassembly.add(8, memoryview(b"X" * 20)) == 12
    assert b"".join(reassembly.join(8)) == b"XXgoodXXXXXXfineXXXX"


@pytest.mark.parametrize("stretch", [1, 100, 2000])
def test_the_first_block_holds_the_latest_segment(stretch):
    """RFC 2018 section 4, the example of a sender whose every other segment is lost: newest first, then as told before."""
    reassembly = Reassembly(1000)
    for number in range(1, 9):
        reassembly.add(10_000 * number, memoryview(bytes(stretch)))
        want = [(10_000 * n, 10_000 * n + stretch) for n in range(number, 0, -1)]
        assert reassembly.blocks(4) == want[:4]
    reassembly.add(20_000 + stretch, memoryview(b"x"))
    assert reassembly.blocks(3) == [(20_000, 20_001 + stretch), (80_000, 80_000 + stretch), (70_000, 70_000 + stretch)]


# RFC 2883 section 4, each example as what the receiver does and the blocks of its next acknowledgment.
def test_duplicate_segment_below_the_acknowledgment():
    """Section 4.1, example 1: 3000-3499 came, 3500-3999 came; 3000-3499 comes again: SACK 3000-3500."""
    reassembly = Reassembly(10)
    reassembly.duplicate(3000, 3500)
    assert reassembly.blocks(4) == [(3000, 3500)] and reassembly.blocks(4) == []


def test_duplicate_beside_a_block():
    """Section 4.1, example 2: with 4500-4999 held above, the duplicate stands first."""
    reassembly = Reassembly(10)
    reassembly.add(4500, memoryview(bytes(500)))
    assert reassembly.blocks(4) == [(4500, 5000)]
    reassembly.duplicate(3000, 3500)
    assert reassembly.blocks(4) == [(3000, 3500), (4500, 5000)]
    assert reassembly.blocks(4) == [(4500, 5000)]


def test_duplicate_inside_a_block():
    """Section 4.1, example 3: 5000-5499 comes twice above a hole: SACK 5000-5500, 4500-5500 (later -6000)."""
    reassembly = Reassembly(10)
    for seq in (4500, 5000):
        reassembly.add(seq, memoryview(bytes(500)))
    assert reassembly.add(5000, memoryview(bytes(500))) == 0
    assert reassembly.blocks(4) == [(5000, 5500), (4500, 5500)]


def test_partly_duplicate_segment():
    """Section 4.2: of a segment 500-1499 whose 500-999 had come, that part is told."""
    reassembly = Reassembly(10)
    reassembly.add(500, memoryview(bytes(500)))
    reassembly.blocks(1)
    assert reassembly.add(500, memoryview(bytes(1000))) == 500
    assert reassembly.blocks(4) == [(500, 1000), (500, 1500)]


def test_two_duplicate_stretches():
    """Section 4.2.3, two non-contiguous duplicate stretches: only the first is told."""
    reassembly = Reassembly(10)
    reassembly.add(1500, memoryview(bytes(500)))
    reassembly.add(2500, memoryview(bytes(500)))
    reassembly.blocks(4)
    reassembly.add(1500, memoryview(bytes(1500)))
    assert reassembly.blocks(4) == [(1500, 2000), (1500, 3000)]


# -- hostile input -----------------------------------------------------------------------


def test_islands_are_bounded():
    reassembly = Reassembly(64)
    for number in range(1000):
        reassembly.add(10 * number + 5, memoryview(b"xx"))
    assert len(reassembly) == 64 and reassembly.size == 128
    # What extends or joins islands still comes in.
    assert reassembly.add(7, memoryview(b"y" * 8)) == 8
    assert len(reassembly) == 63


def pieces(reassembly: Reassembly) -> int:
    return sum(map(len, reassembly._islands))


@pytest.mark.parametrize("order", ["up", "down", "random", "odd then even", "odd then even down"])
@pytest.mark.parametrize("size", [1, 3, 511])
def test_small_segments_cost_few_objects(order, size):
    """In whatever order they come: at most an object for every 256 bytes, and one for each island."""
    count = 20_000 // size
    numbers = list(range(count))
    if order == "down":
        numbers.reverse()
    elif order == "random":
        random.Random(3).shuffle(numbers)
    elif order.startswith("odd"):
        step = -1 if order.endswith("down") else 1
        numbers = numbers[1::2] + numbers[::2][::step]
    data = random.Random(4).randbytes(count * size)
    reassembly = Reassembly(1 << 20)
    worst = 0.0
    for number in numbers:
        reassembly.add(1 + number * size, memoryview(data)[number * size : (number + 1) * size])
        if number % 97 == 0:
            worst = max(worst, pieces(reassembly) - len(reassembly) - reassembly.size / 256)
    assert worst <= 1
    assert pieces(reassembly) <= 1 + len(data) / 256
    assert b"".join(reassembly.join(1)) == data


def test_large_windows_are_not_cut_short():
    """One lost segment and 20,000 after it: as many as the window has room for are kept, with one island."""
    reassembly = Reassembly(16)
    for number in range(20_000):
        assert reassembly.add(1448 * (number + 1), memoryview(bytes(1448))) == 1448
    assert len(reassembly) == 1 and reassembly.size == 20_000 * 1448
    assert sum(map(len, reassembly.join(1448))) == 20_000 * 1448
