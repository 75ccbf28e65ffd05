"""What a server answers to the driver: first as it should be, then spoiled.

The driver numbers its messages from 1 and asks one thing at a time, so all replies of a session are known before it begins.
"""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass, field

from acceltcp.abi.pci import BAR_REGISTERS_BYTES, DEVICE_ID, VENDOR_ID
from acceltcp.abi.vfio_user import SubRegionType

from .wire import HEADER

__all__ = ["Reply", "VECTORS", "opening", "spoil"]

VECTORS = 4
_REPLY, _ERROR, _NO_REPLY = 1, 0x20, 0x10
_NUMBERS = [0, 1, 15, 16, 17, 32, 255, 65535, 65536, 1 << 20, (1 << 20) + 256, 1 << 31, (1 << 32) - 1]
_LIMITS: list[object] = [0, -1, 1, 1 << 70, 1.5, True, None, "8", [1], {}]
_DATA = [
    b"", b"\0", b"{}", b"{}\0", b"[]\0", b"{]\0", b"null\0", b"\xff\0", b'{"capabilities": 1}\0', b"[" * 20_000 + b"\0",
    b'{"capabilities": {"max_msg_fds": ' + b"9" * 5000 + b"}}\0",
    *(
        json.dumps({"capabilities": {name: value}}).encode() + b"\0"
        for name in ("max_msg_fds", "max_data_xfer_size", "register_channels")
        for value in _LIMITS
    ),
]  # fmt: skip


@dataclass
class Reply:
    """A message for the driver. `descriptors`: how many go along; `right`: nothing is wrong with it."""

    number: int
    command: int
    payload: bytes = b""
    flags: int = _REPLY
    error: int = 0
    size: int | None = None
    descriptors: int = 0
    right: bool = True
    tail: bytes = field(default=b"")

    def pack(self) -> bytes:
        """Its bytes."""
        size = 16 + len(self.payload) if self.size is None else self.size
        return HEADER.pack(self.number & 0xFFFF, self.command & 0xFFFF, size & 0xFFFFFFFF, self.flags, self.error) + self.payload + self.tail


def read(number: int, offset: int, region: int, data: bytes) -> Reply:
    """The reply to a read."""
    return Reply(number, 9, struct.pack("=QII", offset, region, len(data)) + data)


def channel(number: int) -> Reply:
    """The reply that brings a channel."""
    size = 16 + 40
    payload = struct.pack("=IIII", size, 0, 0, 1)
    payload += struct.pack("=QQIIIIQ", 0, BAR_REGISTERS_BYTES, 0, SubRegionType.CHANNEL, 0, 0, 0)
    return Reply(number, 6, payload, descriptors=1)


def opening() -> list[Reply]:
    """Replies to what the driver asks when it comes to a device."""
    capabilities = json.dumps({"capabilities": {"max_msg_fds": 8, "register_channels": True}}).encode() + b"\0"
    return [
        Reply(1, 1, struct.pack("=HH", 0, 1) + capabilities),
        Reply(2, 4, struct.pack("=IIII", 16, 3, 9, 5)),
        Reply(3, 5, struct.pack("=IIIIQQ", 32, 3, 0, 0, BAR_REGISTERS_BYTES, 0)),
        read(4, 0, 7, struct.pack("=HH", VENDOR_ID, DEVICE_ID)),
        read(5, 4, 7, struct.pack("=H", 2)),
        Reply(6, 10, struct.pack("=QII", 4, 7, 2)),
        Reply(7, 7, struct.pack("=IIII", 16, 3, 2, VECTORS)),
    ]


def spoil(rng: random.Random, replies: list[Reply], at: int) -> None:
    """Make something of one reply wrong, or of what is around it."""
    reply = replies[at]
    reply.right = False
    how = rng.randrange(14)
    if how == 0:
        reply.number += rng.choice([1, -1, 256, 32768])
    elif how == 1:
        reply.command = rng.choice([0, 1, 4, 9, 11, 77, 65535])
    elif how == 2:
        reply.size = rng.choice([*_NUMBERS, 16 + len(reply.payload) + rng.choice([-1, 1, 4])])
    elif how == 3:
        reply.flags = rng.choice([0, 2, 3, 15, 0x10, 0x11, 0x20, 0x31, 0x41, 0xFFFFFFFF, 1 << rng.randrange(32)])
    elif how == 4:
        reply.flags, reply.error = _REPLY | _ERROR, rng.choice([*_NUMBERS, 12, 22, 133, 134, 4095])
        reply.payload = rng.choice([b"", reply.payload])
    elif how == 5:
        reply.payload = reply.payload[: rng.randrange(len(reply.payload) + 1)]
    elif how == 6:
        reply.payload += rng.randbytes(1 + rng.randrange(40))
    elif how == 7 and reply.payload:
        flipped = bytearray(reply.payload)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        reply.payload = bytes(flipped)
    elif how == 8 and len(reply.payload) >= 4:
        place = rng.randrange(len(reply.payload) // 4) * 4
        reply.payload = reply.payload[:place] + struct.pack("=I", rng.choice(_NUMBERS)) + reply.payload[place + 4 :]
    elif how == 9:
        del replies[at]
    elif how == 10:
        replies.insert(at, Reply(reply.number, reply.command, reply.payload, right=False, descriptors=rng.randrange(3)))
    elif how == 11:  # the device asks for something
        for _ in range(rng.choice([1, 1, 3, 100])):
            flags, descriptors = rng.choice([0, 0, _NO_REPLY]), rng.choice([0, 0, 0, 2])
            replies.insert(at, Reply(rng.randrange(65536), rng.choice([11, 12, 1, 99]), rng.randbytes(16), flags, descriptors=descriptors, right=False))
    elif how == 12:
        reply.descriptors = rng.choice([1, 2, 5]) if not reply.descriptors else 0
    else:
        reply.tail = rng.randbytes(1 + rng.randrange(60))
    if reply.command == 1 and how > 4:
        version = struct.pack("=HH", rng.choice([0, 0, 0, 1]), rng.choice([0, 1, 1, 2]))
        reply.payload = version + rng.choice(_DATA)
