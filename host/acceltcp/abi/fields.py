"""How the contract is declared: ordered bit fields with a name, a width and a sentence.

Two byte orders exist. A `Message` crosses PCIe: little-endian, first field least
significant. A `Header` crosses the wire: big-endian, first field most significant, in the
order of the RFC's diagram.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["Field", "Header", "Message"]


@dataclass(frozen=True)
class Field:
    """One field of a message, header or register.

    `bits` is its width; `doc` one sentence; `codes` the enumeration of its values, if any.
    A name that starts with an underscore is reserved: written as zero, ignored when read.
    """

    name: str
    bits: int
    doc: str = ""
    codes: type[enum.IntEnum] | type[enum.IntFlag] | None = None

    @property
    def reserved(self) -> bool:
        return self.name.startswith("_")


class _FieldList:
    """Ordered fields that fill a whole number of bytes."""

    _order: Any  # "little" or "big", set by the subclass

    def __init__(self, name: str, doc: str, *fields: Field, ref: str = "") -> None:
        self.name = name
        self.doc = doc
        self.ref = ref
        self.fields = fields
        self.bits = sum(field.bits for field in fields)
        if self.bits % 8:
            raise ValueError(f"{name}: fields must fill whole bytes, not {self.bits} bits")
        self.size = self.bits // 8
        names = [field.name for field in fields]
        if len(set(names)) != len(names):
            raise ValueError(f"{name}: field names must be unique, not {names}")

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    @cached_property
    def positions(self) -> Mapping[str, tuple[int, int]]:
        """Name -> (position of the least significant bit in the whole integer, width)."""
        positions = {}
        at = 0
        ordered = self.fields if self._order == "little" else reversed(self.fields)
        for field in ordered:
            positions[field.name] = (at, field.bits)
            at += field.bits
        return positions

    @cached_property
    def _by_name(self) -> Mapping[str, Field]:
        return {field.name: field for field in self.fields}

    @cached_property
    def _decoders(self) -> list[tuple[str, int, int]]:
        return [
            (field.name, self.positions[field.name][0], (1 << field.bits) - 1)
            for field in self.fields
            if not field.reserved
        ]

    def to_int(self, **values: int) -> int:
        """The fields as one integer. Fields not named are zero.

        Raises `ValueError` naming the field for an unknown name or a value out of range.
        """
        total = 0
        for name, value in values.items():
            if name not in self._by_name:
                raise ValueError(f"{self.name} has no field {name!r}")
            at, bits = self.positions[name]
            number = int(value)
            if not 0 <= number < 1 << bits:
                raise ValueError(
                    f"{self.name}.{name} must fit {bits} bits (0 to {(1 << bits) - 1}), not {value!r}"
                )
            total |= number << at
        return total

    def pack(self, **values: int) -> bytes:
        """The fields as `size` bytes; see `to_int` for errors."""
        return self.to_int(**values).to_bytes(self.size, self._order)

    def from_int(self, value: int) -> dict[str, int]:
        """All fields that are not reserved, by name, from one integer."""
        return {name: value >> at & mask for name, at, mask in self._decoders}

    def unpack(self, data: bytes | bytearray | memoryview, offset: int = 0) -> dict[str, int]:
        """All fields that are not reserved, by name, from `size` bytes at `offset`.

        Raises `ValueError` when fewer bytes are there.
        """
        raw = data[offset : offset + self.size]
        if len(raw) < self.size:
            raise ValueError(f"{self.name} takes {self.size} bytes, not {len(raw)}")
        return self.from_int(int.from_bytes(raw, self._order))


class Message(_FieldList):
    """What crosses PCIe: little-endian, the first field in the least significant bits."""

    _order = "little"

    def byte_offset(self, name: str) -> int:
        """Byte offset of a field that starts on a byte."""
        at, _ = self.positions[name]
        if at % 8:
            raise ValueError(f"{self.name}.{name} starts at bit {at}, not on a byte")
        return at // 8


class Header(_FieldList):
    """What crosses the wire: big-endian, fields in the order of the standard's diagram."""

    _order = "big"

    def bit_offset(self, name: str) -> int:
        """Offset of the field's most significant bit from the start of the header."""
        at, bits = self.positions[name]
        return self.bits - at - bits

    def byte_offset(self, name: str) -> int:
        """Byte offset of a field that starts on a byte."""
        offset = self.bit_offset(name)
        if offset % 8:
            raise ValueError(f"{self.name}.{name} starts at bit {offset}, not on a byte")
        return offset // 8
