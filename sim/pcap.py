"""Classic pcap files: written with nanoseconds, read in every variant.

Format: "PCAP Capture File Format" (draft-ietf-opsawg-pcap).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

__all__ = ["PcapError", "PcapPacket", "PcapWriter", "read_pcap"]

MAGIC_MICROSECONDS, MAGIC_NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
LINKTYPE_ETHERNET = 1
SNAPSHOT_BYTES = 1 << 18


class PcapError(ValueError):
    """Not a pcap file that can be read."""


class PcapPacket(NamedTuple):
    """A packet and when it was seen, in nanoseconds since 1970."""

    time_ns: int
    data: bytes


class PcapWriter:
    """Writes a pcap file of Ethernet frames, complete after every packet.

    nanoseconds: resolution of the timestamps; else microseconds.
    """

    def __init__(self, path: str | Path, *, nanoseconds: bool = True) -> None:
        self._nanoseconds = nanoseconds
        self._file: BinaryIO = open(path, "wb", buffering=0)  # noqa: SIM115
        magic = MAGIC_NANOSECONDS if nanoseconds else MAGIC_MICROSECONDS
        self._file.write(struct.pack("<IHHiIII", magic, 2, 4, 0, 0, SNAPSHOT_BYTES, LINKTYPE_ETHERNET))

    def write(self, time_ns: int, frame: bytes) -> None:
        """Add a frame."""
        seconds, fraction = divmod(time_ns, 1_000_000_000)
        if not self._nanoseconds:
            fraction //= 1000
        self._file.write(
            struct.pack("<IIII", seconds & 0xFFFF_FFFF, fraction, len(frame), len(frame)) + frame
        )

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def read_pcap(path: str | Path) -> list[PcapPacket]:
    """All packets of a pcap file of Ethernet frames, either byte order and resolution.

    Packets that the capture cut short are left out. Raises `PcapError`.
    """
    data = Path(path).read_bytes()
    if len(data) < 24:
        raise PcapError(f"{path} has {len(data)} bytes, too few for a pcap file")
    for order in "<>":
        (magic,) = struct.unpack_from(order + "I", data)
        if magic in (MAGIC_MICROSECONDS, MAGIC_NANOSECONDS):
            break
    else:
        raise PcapError(f"{path} is no pcap file: it starts with {data[:4].hex()}")
    (link,) = struct.unpack_from(order + "I", data, 20)
    if link & 0xFFFF != LINKTYPE_ETHERNET:
        raise PcapError(f"{path} must hold Ethernet frames (link type 1), not link type {link & 0xFFFF}")
    unit = 1 if magic == MAGIC_NANOSECONDS else 1000
    packets, at = [], 24
    while at < len(data):
        if at + 16 > len(data):
            raise PcapError(f"{path} ends inside a packet header, at byte {at}")
        seconds, fraction, captured, original = struct.unpack_from(order + "IIII", data, at)
        at += 16
        if at + captured > len(data):
            raise PcapError(f"{path} ends inside a packet, at byte {at}")
        if captured == original:
            packets.append(PcapPacket(seconds * 1_000_000_000 + fraction * unit, data[at : at + captured]))
        at += captured
    return packets
