import pytest
from hypothesis import given
from hypothesis import strategies as st

from acceltcp.abi.fields import Field, Header, Message

FIELDS = (Field("a", 4, "A."), Field("b", 12, "B."), Field("_gap", 8), Field("c", 40, "C."))
MESSAGE = Message("M", "A message.", *FIELDS)
HEADER = Header("H", "A header.", *FIELDS)
VALUES = st.fixed_dictionaries({f.name: st.integers(0, (1 << f.bits) - 1) for f in FIELDS if not f.reserved})


def test_first_field_is_least_significant_in_a_message_and_most_in_a_header():
    assert MESSAGE.to_int(a=1) == 1 and MESSAGE.to_int(b=1) == 1 << 4
    assert HEADER.to_int(a=1) == 1 << 60 and HEADER.to_int(c=1) == 1
    assert MESSAGE.pack(a=5) == bytes([5, *[0] * 7])
    assert HEADER.pack(a=5) == bytes([0x50, *[0] * 7])


@pytest.mark.parametrize("layout", [MESSAGE, HEADER])
@given(values=VALUES, before=st.binary(max_size=5))
def test_unpack_undoes_pack(layout, values, before):
    packed = layout.pack(**values)
    assert len(packed) == layout.size == 8
    assert layout.unpack(before + packed + b"after", len(before)) == values
    assert layout.from_int(layout.to_int(**values)) == values


@given(values=VALUES)
def test_positions_agree_with_arithmetic(values):
    for layout in (MESSAGE, HEADER):
        whole = layout.to_int(**values)
        for name, value in values.items():
            at, bits = layout.positions[name]
            assert whole >> at & (1 << bits) - 1 == value


def test_byte_offsets():
    assert [MESSAGE.byte_offset(n) for n in ("a", "_gap", "c")] == [0, 2, 3]
    assert [HEADER.byte_offset(n) for n in ("a", "_gap", "c")] == [0, 2, 3]
    assert HEADER.bit_offset("b") == 4
    for layout in (MESSAGE, HEADER):
        with pytest.raises(ValueError, match=r"\.b starts at bit 4, not on a byte"):
            layout.byte_offset("b")


def test_errors_name_the_field():
    with pytest.raises(ValueError, match="M has no field 'x'"):
        MESSAGE.pack(x=1)
    for value in (16, -1):
        with pytest.raises(ValueError, match=r"M\.a must fit 4 bits \(0 to 15\), not -?\d+"):
            MESSAGE.pack(a=value)
    with pytest.raises(ValueError, match="H takes 8 bytes, not 3"):
        HEADER.unpack(b"abc")
    with pytest.raises(ValueError, match="must fill whole bytes, not 4 bits"):
        Header("X", "", Field("a", 4))
    with pytest.raises(ValueError, match="names must be unique"):
        Header("X", "", Field("a", 4), Field("a", 4))


def test_reserved_fields_are_not_reported():
    assert "_gap" not in MESSAGE.from_int((1 << 64) - 1)
    assert MESSAGE.fields[2].reserved and not MESSAGE.fields[0].reserved
