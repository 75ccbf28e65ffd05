"""Precompiled structs for the data path, derived from the declarations of `acceltcp.abi`.

`Message.unpack` builds a dictionary field by field: right for set-up, slow for every packet.
A `Packing` turns a message into one `struct.Struct` whose items ("slots") hold one or more
fields each, and says for every field which slot, shift and mask it has. The data path
unpacks tuples and uses these numbers as constants; no offset is written by hand.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from acceltcp.abi.fields import Field, Message

__all__ = ["Packing", "Slot"]

_CODES = {8: "B", 16: "H", 32: "I", 64: "Q"}


class Slot(NamedTuple):
    """Where a field is: item of the unpacked tuple, shift to the right, mask after it."""

    item: int
    shift: int
    mask: int

    def of(self, items: tuple[int, ...]) -> int:
        """The field's value in an unpacked tuple."""
        return items[self.item] >> self.shift & self.mask


class Packing:
    """A message as one little-endian `struct.Struct`.

    Whole fields of 8, 16, 32 or 64 bits get a slot of their own; other fields that are a
    whole number of bytes become bytes objects; neighbours that share a byte share a slot;
    reserved whole bytes become padding.
    """

    def __init__(self, message: Message) -> None:
        self.message = message
        self.slots: dict[str, Slot] = {}
        code = ["<"]
        pending: list[Field] = []
        index = 0
        for field in _split_reserved(message):
            if not pending and field.reserved and field.bits % 8 == 0:
                code.append(f"{field.bits // 8}x")
                continue
            if not pending and field.bits % 8 == 0 and field.bits not in _CODES:
                code.append(f"{field.bits // 8}s")
                self.slots[field.name] = Slot(index, 0, -1)
                index += 1
                continue
            pending.append(field)
            bits = sum(f.bits for f in pending)
            if bits in _CODES:
                at = 0
                for f in pending:
                    if not f.reserved:
                        self.slots[f.name] = Slot(index, at, (1 << f.bits) - 1)
                    at += f.bits
                code.append(_CODES[bits])
                index += 1
                pending = []
        if pending:
            raise ValueError(f"{message.name}: {pending[0].name} does not end on a byte")
        self.struct = struct.Struct("".join(code))
        if self.struct.size != message.size:
            raise ValueError(f"{message.name}: {self.struct.format} has {self.struct.size} bytes, not {message.size}")
        self.items = index

    def __getitem__(self, name: str) -> Slot:
        return self.slots[name]


def _split_reserved(message: Message) -> list[Field]:
    """The fields, with reserved ones cut at byte limits so that whole bytes become padding."""
    result: list[Field] = []
    at = 0
    for field in message:
        if not field.reserved:
            result.append(field)
            at += field.bits
            continue
        left = field.bits
        head = min(-at % 8, left)
        whole = (left - head) // 8 * 8
        for part, bits in enumerate((head, whole, left - head - whole)):
            if bits:
                result.append(Field(f"{field.name}_{part}", bits))
        at += left
    return result
