"""The contract of `acceltcp.abi` as Amaranth layouts.

A `Message` becomes a `StructLayout` with the same bit positions (both are first-field-least-
significant). A `Header` is a slice of a byte array in wire order: `wire_field` picks a field
out of bytes, `wire_bytes` lays fields out as bytes. The byte order is turned here and
nowhere else.
"""

from amaranth import *
from amaranth.lib import data

from acceltcp.abi.fields import Header, Message

__all__ = ["message_layout", "wire_bytes", "wire_field"]


def message_layout(message: Message) -> data.StructLayout:
    """Layout of a message; every field is an unsigned number."""
    return data.StructLayout({field.name: field.bits for field in message.fields})


def wire_field(header: Header, name: str, octets, offset=0):
    """Value of a header's field.

    `octets` holds byte 0 of the frame in its least significant bits (a flat value, or a view
    of an `ArrayLayout(8, n)`); `offset` (a Python integer) is where the header starts.
    """
    octets = Value.cast(octets)
    at, bits = header.bit_offset(name), header.positions[name][1]
    first, last = offset + at // 8, offset + (at + bits - 1) // 8
    whole = Cat(octets[8 * i : 8 * i + 8] for i in range(last, first - 1, -1))
    low = 8 * (last - offset + 1) - (at + bits)
    return whole[low : low + bits]


def wire_bytes(header: Header, **values):
    """The header as a flat value, its first byte in the least significant bits.

    Values are anything `Value.cast` takes; fields not named are zero. Each is cut or
    zero-extended to its field's width.
    """
    unknown = set(values) - set(header.positions)
    if unknown:
        raise ValueError(f"{header.name} has no field {sorted(unknown)}")
    parts = []
    for field in reversed(header.fields):
        value = Value.cast(values.get(field.name, 0))
        part = value[: field.bits]
        parts.append(Cat(part, C(0, field.bits - len(part))))
    big = Cat(*parts)
    return Cat(big[8 * i : 8 * i + 8] for i in range(header.size - 1, -1, -1))
