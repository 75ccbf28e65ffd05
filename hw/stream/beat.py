"""`Beat`: the one way in which packets travel inside the NIC.

A packet is a run of beats of `width` bytes on an Amaranth stream. Rules, beside those of
`amaranth.lib.stream`:

* `data`: byte 0 of the beat in the least significant bits; the first byte on the wire first.
* `count`: valid bytes, 1 to `width`. Every beat but the last is full (`count == width`).
  Bytes past `count` are unspecified: who puts them on a wire clears them.
* `last`: the packet ends with this beat.
* `err`: the packet is bad; looked at on the last beat only.
* `valid` may drop between beats of a packet.

The receive side of a MAC cannot be stalled; there the stream is `always_ready`.
"""

from amaranth import *
from amaranth.lib import data, stream
from amaranth.utils import exact_log2

__all__ = ["BeatLayout", "byte_mask", "packet_stream"]


class BeatLayout(data.StructLayout):
    """Layout of a beat of `width` bytes (a power of two)."""

    def __init__(self, width):
        if width < 2 or width & (width - 1):
            raise ValueError(f"width must be a power of two of at least 2, not {width!r}")
        self._width = width
        super().__init__(
            {"data": 8 * width, "count": exact_log2(width) + 1, "last": 1, "err": 1}
        )

    @property
    def width(self):
        """Bytes per beat."""
        return self._width


def packet_stream(width, *, always_ready=False):
    """Signature of a stream of beats."""
    return stream.Signature(BeatLayout(width), always_ready=always_ready)


def byte_mask(count, width):
    """One bit per byte: the lowest `count` of `width` set. `count` is 0 to `width`."""
    return Cat(count > i for i in range(width))
