"""Commands for the server: some right, some with one thing wrong, some rubbish."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from .model import CHANNEL_REPLY, Model
from .target import Burst
from .things import PAGE, Thing, Things

__all__ = ["VERSIONS_BAD", "VERSIONS_GOOD", "Request", "Requests", "version"]

Request = tuple[int, bytes, list[Thing]]
"""Command, payload, descriptors."""

_NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 20, 24, 31, 32, 33, 56, 63, 64, 255, 256, 4095, 4096, 4097, 8192, 65535, 65536]
_NUMBERS += [1 << 20, (1 << 20) + 256, 1 << 31, (1 << 32) - 4096, (1 << 32) - 1]
_LONG = [*_NUMBERS, 1 << 32, 1 << 44, 1 << 62, 1 << 63, (1 << 64) - 65536, (1 << 64) - 4096, (1 << 64) - 1]
_COMMANDS = list(range(20)) + [255, 0x8000, 0xFFFF]
_IRQ_FLAGS = [4 | 32, 1 | 32, 2 | 32, 1 | 8, 1 | 16, 2 | 8, 2 | 16, 4 | 8, 0, 7 | 32, 1 | 56, 64 | 33]


def version(major: int, minor: int, data: bytes = b"") -> bytes:
    """The payload of VERSION."""
    return struct.pack("=HH", major, minor) + data


_CHANNELS = b'{"capabilities": {"register_channels": true, "max_msg_fds": 8}}\0'
VERSIONS_GOOD = [
    (version(0, 1, _CHANNELS), True),
    (version(0, 1, _CHANNELS), True),
    (version(0, 0), False),
    (version(0, 65535, b"{}\0"), False),
    (version(0, 1, b'{"capabilities": {}}\0'), False),
    (version(0, 1, b'{"capabilities": {"max_msg_fds": -1, "pgsizes": "x", "twin_socket": {"supported": true}}}\0'), False),
    (version(0, 1, '{"capabilities": {"näme": [1e999, null]}, "more": 3}\0'.encode()), False),
    (version(0, 1, b'{"capabilities": {"register_channels": 1}}\0'), False),
]
"""Proposals that have to be taken, and whether they get channels."""

VERSIONS_BAD = [
    version(1, 0),
    version(0xFFFF, 1, b"{}\0"),
    b"",
    b"\0\0\1",
    version(0, 1, b"{}"),
    version(0, 1, b"\0"),
    version(0, 1, b"[]\0"),
    version(0, 1, b"null\0"),
    version(0, 1, b'{"capabilities": []}\0'),
    version(0, 1, b'{"capabilities": {"a": \0}}\0'),
    version(0, 1, b'{"capabilities": {"a": ' + b"9" * 5000 + b"}}\0"),
    version(0, 1, b"[" * 50_000 + b"\0"),
    version(0, 1, b"\xff\xfe{}\0"),
    version(0, 1, bytes(70_000)),
]
"""Proposals that have to end the connection."""


class Requests:
    """Draws commands.

    rng: where all chance comes from.
    model: what the connection has by now, so that some commands fit it.
    burst: how the device is made to access memory, if that is known.
    """

    def __init__(self, rng: random.Random, model: Model, things: Things, burst: Burst | None = None) -> None:
        self._rng = rng
        self._random = rng.random
        self._model = model
        self._things = things
        self._burst = burst
        self._queue: list[Request] = []
        """What comes next, the first last."""
        self._kinds: list[Callable[[], Request]] = [
            self._map, self._map, self._map, self._unmap, self._unmap, self._info, self._region_info, self._irq_info,
            self._io_fds, self._irqs, self._irqs, self._irqs, self._read, self._read, self._write, self._write,
            self._config, self._multi, self._reset, self._unknown,
        ]  # fmt: skip
        if burst:
            self._kinds += [self.access] * 4 + [self._access_after_unmap] * 2

    def draw(self) -> Request:
        """The next command."""
        if self._queue:
            return self._queue.pop()
        command, payload, things = self._pick(self._kinds)()
        chance = self._random()
        if chance < 0.15:
            payload = self.spoiled(payload)
        elif chance < 0.17:
            command = self._pick(_COMMANDS)
        elif chance < 0.20:
            things = [*things, *self._some(self._things.all)]
        return command, payload, things

    def _pick(self, values):  # type: ignore[no-untyped-def]
        return values[int(self._random() * len(values))]

    def _some(self, values: list[Thing]) -> list[Thing]:
        return [self._pick(values) for _ in range(1 + int(3 * self._random() ** 3))]

    def spoiled(self, data: bytes) -> bytes:
        """The data with one thing wrong."""
        at, how = int(self._random() * (len(data) + 1)), int(self._random() * 5)
        if how == 0:
            return data[:at]
        if how == 1:
            return data + self._rng.randbytes(1 + int(self._random() * 40))
        if how == 2 and data:
            flipped = bytearray(data)
            flipped[at % len(data)] ^= 1 << int(self._random() * 8)
            return bytes(flipped)
        at &= ~3
        if how == 3:
            return data[:at] + struct.pack("=I", self._pick(_NUMBERS)) + data[at + 4 :]
        return data[: at & ~7] + struct.pack("=Q", self._pick(_LONG)) + data[(at & ~7) + 8 :]

    # Each kind: mostly right

    def access(self, thing: Thing | None = None) -> Request:
        """The device accesses memory, mostly such that is mapped; of a certain file if there is any."""
        assert self._burst
        address = int(self._random() * 48 * PAGE)
        starts = [at for at, mapping in self._model.maps.items() if thing in (None, mapping.thing)]
        if starts and self._random() < 0.9:
            start = self._pick(starts)
            address = start + int(self._random() * min(self._model.maps[start].size, 8 * PAGE))
        return self._at(address)

    def _at(self, address: int) -> Request:
        assert self._burst
        return 10, self._burst(address & ~63, self._random() < 0.7, self._rng.getrandbits(32)), []

    def _access_after_unmap(self) -> Request:
        """The device has just used memory, which then goes, and uses it again."""
        if not self._model.maps:
            return self._map()
        address = self._pick(list(self._model.maps))
        unmap: Request = 3, struct.pack("=IIQQ", 24, 0, address, self._model.maps[address].size), []
        time: Request = 9, struct.pack("=QII", 0, 0, 128), []  # reads take the core through what it has to do
        self._queue = [time, self._at(address), unmap, time]
        return self._at(address)

    def _map(self) -> Request:
        pages = 1 + int(4 * self._random() ** 2)
        address = PAGE * int(self._random() * 48)
        if self._random() < 0.05:
            address = self._pick([1 << 32, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 2 * PAGE]) & ~(PAGE - 1)
        thing = self._pick(self._things.all if self._random() < 0.3 else self._things.memory)
        offset = PAGE * int(self._random() * 15)
        if thing is self._things.huge or self._random() < 0.01:
            thing = self._things.huge
            pages <<= self._pick([10, 31, 32, 33])
            address = (1 + int(self._random() * 4)) << 48
        payload = struct.pack("=IIQQQ", 32, 1 + int(3 * self._random()), offset, address, pages * PAGE)
        return 2, payload, [thing] if self._random() < 0.85 else []

    def _unmap(self) -> Request:
        chance = self._random()
        if chance < 0.06:
            return 3, struct.pack("=IIQQ", 24, 2, 0, 0), []
        if chance < 0.8 and self._model.maps:
            address = self._pick(list(self._model.maps))
            size = self._model.maps[address].size
            if chance < 0.15:  # a part of it
                size, address = max(PAGE, size // 2 & ~(PAGE - 1)), address + self._pick([0, PAGE])
            elif chance < 0.25:  # more than it
                size, address = size + self._pick([1, 2, 9]) * PAGE, max(0, address - self._pick([0, 1]) * PAGE)
            return 3, struct.pack("=IIQQ", 24, 0, address & (1 << 64) - 1, size), []
        return 3, struct.pack("=IIQQ", 24, 0, PAGE * int(self._random() * 48), PAGE), []

    def _info(self) -> Request:
        return 4, struct.pack("=IIII", 16 + int(self._random() * 3) * 4, 0, 0, 0), []

    def _region_info(self) -> Request:
        return 5, struct.pack("=IIIIQQ", 32, 0, int(self._random() * 10), 0, 0, 0), []

    def _irq_info(self) -> Request:
        return 7, struct.pack("=IIII", 16, 0, int(self._random() * 6), 0), []

    def _io_fds(self) -> Request:
        size = CHANNEL_REPLY if self._random() < 0.5 else 16
        return 6, struct.pack("=IIII", size, 0, int(self._random() ** 2 * 10), 0), []

    def _irqs(self) -> Request:
        vectors = self._model.vectors
        start = int(self._random() * vectors)
        count = int(self._random() * (vectors - start + 1))
        flags = self._pick(_IRQ_FLAGS[: 3 + int(self._random() * 10)])
        data, things = b"", []
        if flags & 2:
            data = bytes(int(self._random() * 2) for _ in range(count))
        elif flags & 4 and self._random() < 0.8:
            few = self._things.all if self._random() < 0.1 else self._things.eventfds
            things = [self._pick(few) for _ in range(count if self._random() < 0.9 else int(self._random() * 9))]
        if self._random() < 0.05:
            start = count = 0
        index = 2 if self._random() < 0.95 else int(self._random() * 6)
        return 8, struct.pack("=IIIII", 20 + len(data), flags, index, start, count) + data, things

    def _place(self) -> tuple[int, int, int]:
        """Offset, region and bytes of an access."""
        region = self._pick([0, 0, 0, 0, 2, 7, 7, int(self._random() * 10)])
        count = self._pick([1, 2, 4, 4, 4, 8, 16, 64]) if self._random() < 0.99 else self._pick([4096, 4097, 61440])
        offset = int(self._random() * (65536 if region == 0 else 4096)) & self._pick([~0, ~3, ~3])
        return offset, region, count

    def _read(self) -> Request:
        return 9, struct.pack("=QII", *self._place()), []

    def _write(self) -> Request:
        offset, region, count = self._place()
        return 10, struct.pack("=QII", offset, region, count) + self._rng.randbytes(count), []

    def _config(self) -> Request:
        if self._random() < 0.2:
            return 10, struct.pack("=QIIH", 0x68, 7, 2, 0x8000), []  # function level reset
        return 10, struct.pack("=QIIH", 4, 7, 2, self._pick([2, 6])), []

    def _multi(self) -> Request:
        count = int(self._random() * 4)
        body = b""
        for _ in range(count):
            offset, region, bytes_ = self._place()
            body += struct.pack("=QII8s", offset, region, bytes_ & 15, self._rng.randbytes(8))
        return 15, struct.pack("=Q", count) + body, []

    def _reset(self) -> Request:
        return 13, b"", []

    def _unknown(self) -> Request:
        return self._pick(_COMMANDS), self._rng.randbytes(int(self._random() * 40)), []
