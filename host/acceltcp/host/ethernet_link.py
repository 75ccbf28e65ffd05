"""Frames of the host link (docs/host-link.md) as the host makes and answers them. No socket, no thread, no clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from acceltcp.abi.host_link import (
    BEAT_BYTES,
    BEATS_MAX,
    HEADER_BYTES,
    HOST_LINK,
    STROBE_BYTES,
    VERSION,
    LinkKind,
    LinkStatus,
)
from acceltcp.abi.wire import ETHERNET, ETHERNET_MIN_FRAME, EtherType

from .dma import DmaRegion

__all__ = ["BROADCAST", "Frame", "LinkRequests", "find_memory", "pack_frame", "parse_frame", "write_beats"]

BROADCAST = (1 << 48) - 1
_WRITTEN_BYTES = STROBE_BYTES + BEAT_BYTES
_ALL = (1 << BEAT_BYTES) - 1


class Frame(NamedTuple):
    """A frame of the link."""

    dst: int
    src: int
    fields: dict[str, int]
    """Of `HOST_LINK`."""
    payload: memoryview
    """What follows the headers, padding included."""


def pack_frame(dst: int, src: int, payload: bytes = b"", /, **fields: int) -> bytes:
    """A frame of this version. fields: of `HOST_LINK`."""
    ethernet = ETHERNET.pack(dst=dst, src=src, ethertype=EtherType.HOST_LINK)
    frame = ethernet + HOST_LINK.pack(**{"version": VERSION, **fields}) + payload
    # Whole words of 8 bytes, which is how the board takes them.
    size = -(-max(len(frame), ETHERNET_MIN_FRAME) // 8) * 8
    return frame.ljust(size, b"\0")


def parse_frame(raw: bytes) -> Frame | None:
    """What is in the frame; None unless it is one of the link."""
    if len(raw) < HEADER_BYTES:
        return None
    ethernet = ETHERNET.unpack(raw)
    if ethernet["ethertype"] != EtherType.HOST_LINK:
        return None
    return Frame(ethernet["dst"], ethernet["src"], HOST_LINK.unpack(raw, ETHERNET.size), memoryview(raw)[HEADER_BYTES:])


def write_beats(target: memoryview, payload: memoryview, count: int) -> None:
    """Write the `count` beats of a DMA_WRITE's payload to `target`, only the bytes whose strobe is set."""
    for number in range(count):
        at, to = number * _WRITTEN_BYTES, number * BEAT_BYTES
        strobe = int.from_bytes(payload[at : at + STROBE_BYTES], "little")
        beat = payload[at + STROBE_BYTES : at + _WRITTEN_BYTES]
        if strobe == _ALL:
            target[to : to + BEAT_BYTES] = beat
            continue
        while strobe:
            first = (strobe & -strobe).bit_length() - 1
            run = ~(strobe >> first)  # its lowest one is the end of the run of ones
            last = first + (run & -run).bit_length() - 1
            target[to + first : to + last] = beat[first:last]
            strobe = strobe >> last << last


class LinkRequests:
    """Carries out what the board asks for in one session; each request once, in order, however often it comes.

    find: mapped memory of so many bytes at a bus address, or None. interrupt: called with a vector.
    """

    def __init__(self, find: Callable[[int, int], memoryview | None], interrupt: Callable[[int], None]) -> None:
        self._find = find
        self._interrupt = interrupt
        self._sequence = 0
        self._reply: bytes | None = None

    def answer(self, frame: Frame) -> bytes | None:
        """The reply to a request, or None: it is a late copy, or cut short, or no request that a board makes."""
        fields = frame.fields
        if fields["sequence"] == self._sequence:
            return self._reply
        if fields["sequence"] != (self._sequence + 1) & 0xFFFF:
            return None
        done = self._carry_out(fields, frame.payload)
        if done is None:
            return None
        status, payload = done
        told = {name: fields[name] for name in ("kind", "session", "sequence", "count")}
        self._sequence = fields["sequence"]
        self._reply = pack_frame(frame.src, frame.dst, payload, reply=1, status=status, **told)
        return self._reply

    def _carry_out(self, fields: dict[str, int], payload: memoryview) -> tuple[LinkStatus, bytes] | None:
        kind, count = fields["kind"], fields["count"]
        if kind == LinkKind.INTERRUPT:
            self._interrupt(fields["value"])
            return LinkStatus.OK, b""
        if kind not in (LinkKind.DMA_READ, LinkKind.DMA_WRITE) or not 1 <= count <= BEATS_MAX:
            return None
        if kind == LinkKind.DMA_WRITE and len(payload) < count * _WRITTEN_BYTES:
            return None
        memory = self._find(fields["address"], count * BEAT_BYTES)
        if memory is None:
            return LinkStatus.REFUSED, b""
        if kind == LinkKind.DMA_READ:
            return LinkStatus.OK, bytes(memory)
        write_beats(memory, payload, count)
        return LinkStatus.OK, b""


def find_memory(regions: list[DmaRegion], address: int, size: int) -> memoryview | None:
    """`size` bytes at a bus address, which must lie within one region; else None."""
    for region in regions:
        start = address - region.address
        if start >= 0 and start + size <= region.size:
            return region.view[start : start + size]
    return None
