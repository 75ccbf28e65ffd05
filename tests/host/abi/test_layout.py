"""Layouts: order, no padding, and what does not fit."""

import struct
import sys
from dataclasses import dataclass

import pytest

from acceltcp.abi.layout import Layout


@dataclass(frozen=True)
class Mixed(Layout, layout="HIb"):
    first: int
    second: int = 7
    third: int = -1


def test_packed_in_order_without_padding():
    assert Mixed.byte_size == 7
    data = Mixed(0x0102).pack()
    assert data == (0x0102).to_bytes(2, sys.byteorder) + (7).to_bytes(4, sys.byteorder) + b"\xff"


def test_unpacked_at_an_offset():
    data = b"xyz" + Mixed(1, 2, 3).pack() + b"behind"
    assert Mixed.unpack(data, 3) == Mixed(1, 2, 3)
    assert Mixed.unpack(memoryview(bytearray(data)), 3) == Mixed(1, 2, 3)


@pytest.mark.parametrize(("given", "offset", "there"), [(b"", 0, 0), (bytes(6), 0, 6), (bytes(9), 3, 6), (bytes(3), 9, 0)])
def test_too_few_bytes(given, offset, there):
    with pytest.raises(ValueError, match=f"^Mixed takes 7 bytes, not {there}$"):
        Mixed.unpack(given, offset)


@pytest.mark.parametrize("wrong", [Mixed(-1), Mixed(1 << 16), Mixed(0, 1 << 32), Mixed(0, 0, 128)])
def test_a_value_that_does_not_fit(wrong):
    with pytest.raises(struct.error):
        wrong.pack()
