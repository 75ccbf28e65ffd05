"""Fixed layouts of bytes in the byte order of the machine, each declared once as a dataclass."""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

__all__ = ["Layout"]

_L = TypeVar("_L", bound="Layout")


class Layout:
    """The fields of the dataclass in order, packed as `layout` says (of `struct`, without padding)."""

    format: ClassVar[struct.Struct]
    byte_size: ClassVar[int]

    def __init_subclass__(cls, layout: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.format = struct.Struct("=" + layout)
        cls.byte_size = cls.format.size

    def pack(self) -> bytes:
        """The fields as bytes. Raises `struct.error` for a value that does not fit."""
        return self.format.pack(*(getattr(self, field.name) for field in fields(self)))  # type: ignore[arg-type]

    @classmethod
    def unpack(cls: type[_L], data: Any, offset: int = 0) -> _L:
        """From the bytes at `offset`. Raises `ValueError` when fewer than `byte_size` are there."""
        if len(data) - offset < cls.byte_size:
            raise ValueError(f"{cls.__name__} takes {cls.byte_size} bytes, not {max(len(data) - offset, 0)}")
        return cls(*cls.format.unpack_from(data, offset))
