"""The contract of `acceltcp.abi` as Amaranth layouts.

A `Message` becomes a `StructLayout` with the same bit positions (both are first-field-least-
significant). A `Header` is a slice of a byte array in wire order: `wire_field` picks a field
out of bytes, `wire_bytes` lays fields out as bytes. The byte order is turned here and
nowhere else.
"""

from amaranth import *
from amaranth.lib import data

from acceltcp.abi.cookie import IPV4_MAPPED_PREFIX
from acceltcp.abi.fields import Header, Message

__all__ = ["address_of", "flag_of", "message_layout", "not_ipv4", "number_of", "reserved_of", "wire_bytes", "wire_field"]


def message_layout(message: Message) -> data.StructLayout:
    """Layout of a message; every field is an unsigned number."""
    return data.StructLayout({field.name: field.bits for field in message.fields})


def flag_of(flags, flag):
    """One bit of a field of flags; `flag` is a member of its `IntFlag`."""
    return flags[int(flag).bit_length() - 1]


def reserved_of(view, message: Message):
    """All reserved bits of a message: they must be zero."""
    return Cat(view[field.name] for field in message.fields if field.reserved)


def number_of(field, first, last):
    """Bytes `first` to `last` (not included) of a field as they lie in memory, the first one most significant."""
    return Cat(field[8 * at : 8 * at + 8] for at in range(last - 1, first - 1, -1))


def address_of(field, ipv6):
    """An address in a message as tables keep it: first byte most significant, IPv4 as ::ffff:a.b.c.d."""
    number = number_of(field, 0, 16)
    return Mux(ipv6, number, Cat(number[:32], C(IPV4_MAPPED_PREFIX >> 32, 96)))


def not_ipv4(field):
    """Whether more than an IPv4 address stands in the field: its last bytes matter, and before them may be ::ffff: only."""
    upper = number_of(field, 0, 12)
    return (upper != 0) & (upper != IPV4_MAPPED_PREFIX >> 32)


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
