"""What has to become of each command, after the vfio-user specification and the promises of the simulated NIC.

Written a second time on purpose, with nothing of `sim.server`: a mistake would have to be made twice to pass.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .things import PAGE, Thing

__all__ = ["CHANNEL_REPLY", "Mapping", "Model", "Verdict"]

CHANNEL_REPLY = 16 + 40
"""Bytes of a reply to DEVICE_GET_REGION_IO_FDS that describes a channel."""

_REGIONS = {0: 65536, 2: 4096, 7: 4096}
_ACCESS_MAX = 4096
_CHANNELS = 128
_MAPS = 32768
_MAPPED_BYTES = 1 << 44
_IRQ_TYPES, _MSIX = 5, 2


@dataclass(frozen=True)
class Verdict:
    """What a command has to be answered with.

    payload: of a success, whole; None where only `size` is known, or not even that (-1).
    error: errnos that an error may have; empty: no error.
    descriptors: that come with the reply.
    """

    payload: bytes | None = None
    size: int = 0
    error: frozenset[int] = frozenset()
    descriptors: int = 0


_ANY = frozenset(errno.errorcode)
_REFUSED = Verdict(error=_ANY)
_DONE = Verdict(payload=b"")


def _refused(*numbers: int) -> Verdict:
    return Verdict(error=frozenset(numbers))


@dataclass(frozen=True)
class Mapping:
    """Memory that the device may reach."""

    size: int
    prot: int
    thing: Thing | None
    offset: int


class Model:
    """One connection after its version: what it has mapped, and what the registers hold.

    vectors: MSI-X vectors of the device.
    registers: whether they keep what is written, as those of `StandIn`.
    channels: whether the connection may ask for channels.
    """

    def __init__(self, vectors: int, registers: bool, channels: bool) -> None:
        self.vectors = vectors
        self.registers = bytearray(_REGIONS[0]) if registers else None
        self.channels_allowed = channels
        self.channels = 0
        self.maps: dict[int, Mapping] = {}
        self.bus_master = False
        self._judges = {
            2: self._dma_map, 3: self._dma_unmap, 4: self._info, 5: self._region_info, 6: self._io_fds, 7: self._irq_info,
            8: self._set_irqs, 9: self._read, 10: self._write, 13: self._reset, 15: self._write_multi,
        }  # fmt: skip

    def judge(self, command: int, payload: bytes, things: Sequence[Thing]) -> Verdict:
        """What has to come of a command, whose effect the model takes over."""
        judge = self._judges.get(command)
        if judge is None or (things and command not in (2, 8)):
            return _REFUSED
        return judge(payload, things)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of memory that are mapped."""
        return sum(mapping.size for mapping in self.maps.values() if mapping.thing)

    def at(self, address: int) -> tuple[int, Mapping] | None:
        """The mapping that an address is in, and where it starts."""
        for start, mapping in self.maps.items():
            if start <= address < start + mapping.size:
                return start, mapping
        return None

    # Each command

    def _dma_map(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) != 32:
            return _REFUSED
        argsz, flags, offset, address, size = struct.unpack("=IIQQQ", payload)
        if argsz != 32 or flags not in (1, 2, 3) or not size or (offset | address | size) % PAGE:
            return _REFUSED
        if offset >> 63 or address + size > 1 << 64 or len(things) > 1 or len(self.maps) >= _MAPS:
            return _REFUSED
        thing = things[0] if things else None
        if thing and (offset + size > thing.bytes or (flags & 2 and not thing.writable)):
            return _REFUSED
        if thing and self.mapped_bytes + size > _MAPPED_BYTES:
            return _refused(errno.ENOMEM)
        if any(address < at + other.size and at < address + size for at, other in self.maps.items()):
            return _refused(errno.EEXIST)
        self.maps[address] = Mapping(size, flags, thing, offset)
        return _DONE

    def _dma_unmap(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) != 24:
            return _REFUSED
        argsz, flags, address, size = struct.unpack("=IIQQ", payload)
        if argsz < 24 or flags not in (0, 2) or (flags and (address or size)):
            return _REFUSED
        if flags:
            self.maps.clear()
            return Verdict(payload)
        end = address + size
        if not size or end > 1 << 64:
            return _REFUSED
        touched = {at: mapping for at, mapping in self.maps.items() if at < end and address < at + mapping.size}
        if any(at < address or at + mapping.size > end for at, mapping in touched.items()):
            return _REFUSED
        for at in touched:
            del self.maps[at]
        return Verdict(struct.pack("=IIQQ", argsz, 0, address, sum(mapping.size for mapping in touched.values())))

    def _info(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) != 16 or struct.unpack_from("=I", payload)[0] < 16:
            return _REFUSED
        return Verdict(struct.pack("=IIII", 16, 3, 9, 5))

    def _region_info(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) != 32:
            return _REFUSED
        argsz, _, index = struct.unpack_from("=III", payload)
        if argsz < 32 or index >= 9:
            return _REFUSED
        size = _REGIONS.get(index, 0)
        return Verdict(struct.pack("=IIIIQQ", 32, 3 if size else 0, index, 0, size, 0))

    def _io_fds(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) != 16:
            return _REFUSED
        argsz, flags, index, count = struct.unpack("=IIII", payload)
        if argsz < 16 or flags or count or index >= 9:
            return _REFUSED
        if index or not self.channels_allowed:
            return Verdict(struct.pack("=IIII", 16, 0, index, 0))
        if argsz < CHANNEL_REPLY:
            return Verdict(struct.pack("=IIII", CHANNEL_REPLY, 0, 0, 0))
        if self.channels >= _CHANNELS:
            return _refused(errno.ENOSPC)
        self.channels += 1
        return Verdict(size=CHANNEL_REPLY, descriptors=1)

    def _irq_info(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) != 16:
            return _REFUSED
        argsz, _, index, _ = struct.unpack("=IIII", payload)
        if argsz < 16 or index >= _IRQ_TYPES:
            return _REFUSED
        msix = index == _MSIX
        return Verdict(struct.pack("=IIII", 16, 3 if msix else 0, index, self.vectors if msix else 0))

    def _set_irqs(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) < 20:
            return _REFUSED
        argsz, flags, index, start, count = struct.unpack_from("=IIIII", payload)
        data = len(payload) - 20
        if argsz != len(payload) or index >= _IRQ_TYPES or flags & ~0x3F:
            return _REFUSED
        kind, action = flags & 7, flags >> 3
        if kind not in (1, 2, 4) or action not in (1, 2, 4):
            return _REFUSED
        if start + count > (self.vectors if index == _MSIX else 0):
            return _REFUSED
        if data != (count if kind == 2 else 0) or (things and kind != 4):
            return _REFUSED
        if kind == 4:
            right = action == 4 and count and len(things) in (0, count) and all(thing.eventfd for thing in things)
            return _DONE if right else _REFUSED
        if not count:
            return _DONE if (kind, action, start) == (1, 4, 0) else _REFUSED
        return _DONE

    @staticmethod
    def _inside(region: int, offset: int, count: int) -> bool:
        return 0 < count <= _ACCESS_MAX and offset + count <= _REGIONS.get(region, 0)

    def _read(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) != 16:
            return _REFUSED
        offset, region, count = struct.unpack("=QII", payload)
        if not self._inside(region, offset, count):
            return _REFUSED
        if region == 0 and self.registers is not None:
            return Verdict(payload + self.registers[offset : offset + count])
        return Verdict(size=16 + count)

    def _write(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) < 16:
            return _REFUSED
        offset, region, count = struct.unpack_from("=QII", payload)
        if len(payload) != 16 + count or not self._inside(region, offset, count):
            return _REFUSED
        self._written(region, offset, payload[16:])
        return Verdict(payload[:16])

    def _write_multi(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if len(payload) < 8 or len(payload) != 8 + 24 * struct.unpack_from("=Q", payload)[0]:
            return _REFUSED
        writes = [struct.unpack_from("=QII8s", payload, at) for at in range(8, len(payload), 24)]
        if not all(count <= 8 and self._inside(region, offset, count) for offset, region, count, _ in writes):
            return _REFUSED
        for offset, region, count, data in writes:
            self._written(region, offset, data[:count])
        return Verdict(payload[:8])

    def _written(self, region: int, offset: int, data: bytes) -> None:
        if region == 0 and self.registers is not None:
            self.registers[offset : offset + len(data)] = data
        if region == 7:
            if offset <= 4 < offset + len(data):
                self.bus_master = bool(data[4 - offset] & 4)
            if offset <= 0x69 < offset + len(data) and data[0x69 - offset] & 0x80:  # function level reset
                self._clear()

    def _clear(self) -> None:
        if self.registers is not None:
            self.registers[:] = bytes(len(self.registers))

    def _reset(self, payload: bytes, things: Sequence[Thing]) -> Verdict:
        if payload:
            return _REFUSED
        self._clear()
        return _DONE
