"""The send buffer against a plain bytearray, and what it costs, by counting."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acceltcp.host.tcp.send_buffer import SendBuffer

BASE = (1 << 32) - 20_000  # numbers go on beyond 32 bits


def copied(buffer: SendBuffer, seq: int, length: int) -> bytes:
    """What `copy_into` writes, and that it writes nothing else."""
    slot = bytearray(b"\xee" * (length + 9))
    buffer.copy_into(memoryview(slot), 4, seq, length)
    assert slot[:4] == b"\xee" * 4 and slot[4 + length :] == b"\xee" * 5
    return bytes(slot[4 : 4 + length])


sizes = st.one_of(st.integers(0, 40), st.integers(0, 20_000))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), sizes, st.sampled_from(["bytes", "bytearray", "memoryview"])),
        st.tuples(st.just("copy"), st.floats(0, 1), sizes),
        st.tuples(st.just("next"), st.just(0), sizes),  # as new segments are sent, one after the other
        st.tuples(st.just("release"), st.floats(-0.1, 1), st.just(0)),
    ),
    max_size=80,
)


@given(operations, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_is_a_bytearray(todo, chooser):
    buffer, model, start = SendBuffer(BASE), bytearray(), BASE
    nxt = BASE
    for what, first, second in todo:
        if what == "append":
            data = chooser.randbytes(first)
            given_ = {"bytes": bytes, "bytearray": bytearray, "memoryview": lambda d: memoryview(bytearray(d))}[second](data)
            buffer.append(given_)
            model += data
            if second != "bytes" and first:
                given_[0] ^= 0xFF  # the writer may use its buffer again
        elif what == "release":
            upto = start + int(first * len(model))
            buffer.release(upto)
            if upto > start:
                del model[: upto - start]
                start = upto
        else:
            seq = start + int(first * len(model)) if what == "copy" else max(nxt, start)
            length = min(second, start + len(model) - seq)
            assert copied(buffer, seq, length) == model[seq - start : seq - start + length]
            if what == "next":
                nxt = seq + length
        assert (buffer.start, buffer.end, len(buffer)) == (start, start + len(model), len(model))
    assert copied(buffer, start, len(model)) == model


@pytest.mark.parametrize(("seq", "length"), [(99, 1), (99, 2), (100, 11), (110, 1), (111, 0), (200, 5), (0, 0)])
def test_what_is_not_there_cannot_be_copied(seq, length):
    buffer = SendBuffer(50)
    buffer.append(bytes(60))
    buffer.release(100)
    slot = bytearray(20)
    with pytest.raises(ValueError, match=f"bytes {seq} to {seq + length} are not in the send buffer, which has 100 to 110"):
        buffer.copy_into(slot, 0, seq, length)
    assert slot == bytes(20)


def test_no_more_than_there_is_can_be_released():
    buffer = SendBuffer(50)
    buffer.append(b"abc")
    with pytest.raises(ValueError, match="cannot release up to 54: the send buffer ends at 53"):
        buffer.release(54)
    assert copied(buffer, 50, 3) == b"abc"


def test_items_of_a_view_need_not_be_bytes():
    buffer = SendBuffer(0)
    buffer.append(memoryview(b"abcdefgh").cast("I"))
    assert len(buffer) == 8 and copied(buffer, 0, 8) == b"abcdefgh"


def test_large_bytes_are_kept_as_they_are():
    """And let go when their last byte is acknowledged, not before."""
    data = bytes(range(256)) * 4096
    before = sys.getrefcount(data)
    buffer = SendBuffer(0)
    buffer.append(data)
    assert sys.getrefcount(data) == before + 1
    buffer.append(b"x" * 100_000)
    buffer.release(len(data) - 1)
    assert sys.getrefcount(data) == before + 1
    buffer.release(len(data))
    assert sys.getrefcount(data) == before
    assert copied(buffer, len(data), 3) == b"xxx"


def test_small_writes_are_joined():
    """100,000 writes of a byte: few chunks, and each byte moved a bounded number of times."""
    buffer = SendBuffer(0)
    for number in range(100_000):
        buffer.append(bytes([number & 0xFF]))
    assert len(buffer._chunks) <= 100_000 // 8192 + 1
    want = bytes(number & 0xFF for number in range(100_000))
    got = b"".join(copied(buffer, at, min(1448, 100_000 - at)) for at in range(0, 100_000, 1448))
    assert got == want


@pytest.mark.parametrize("size", [5000, 9000])
def test_memory_follows_what_is_kept(size):
    """A connection that always has something unacknowledged does not grow."""
    buffer = SendBuffer(0)
    for number in range(20_000):
        buffer.append(bytes(size))
        if number >= 10:
            buffer.release((number - 9) * size - 1)
    assert len(buffer) == 10 * size + 1
    assert len(buffer._chunks) == len(buffer._starts) <= 150
    assert sum(map(len, buffer._chunks)) <= 11 * size + 8192


class Counting(list):
    """A list that counts how many of its items are read."""

    reads = 0

    def __getitem__(self, index):
        Counting.reads += 1
        return super().__getitem__(index)


def test_copies_do_not_search_from_the_front():
    """In 10,000 chunks, sending in order and retransmitting anywhere look at a few of them."""
    buffer = SendBuffer(0)
    for _ in range(10_000):
        buffer.append(bytes(9000))
    buffer._starts, buffer._chunks = Counting(buffer._starts), Counting(buffer._chunks)
    slot = bytearray(1448)
    Counting.reads = 0
    segments = range(0, 10_000 * 9000 - 1448, 1448)
    for at in segments:
        buffer.copy_into(slot, 0, at, 1448)
    in_order = Counting.reads / len(segments)
    Counting.reads = 0
    for number in range(1000):
        buffer.copy_into(slot, 0, number * 7_919_777 % (10_000 * 9000 - 1448), 1448)
    assert in_order < 10
    assert Counting.reads / 1000 < 20
