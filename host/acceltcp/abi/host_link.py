"""The host link: registers, host memory and interrupts in Ethernet frames, for boards without PCI Express.

Every frame begins with an Ethernet header and a `HOST_LINK` header, 40 bytes together, so that what follows
stands on a multiple of 8 bytes. A frame is a request or the reply to one; the reply repeats kind, session and
sequence. docs/host-link.md says who sends what and what happens to frames that are lost or come twice.

Payloads: a reply to DMA_READ has `count` beats of 64 bytes of memory. A DMA_WRITE has `count` beats of 72
bytes: 64 bits that say which bytes are written, bit k (bit k mod 8 of byte k / 8) for byte k, then 64 bytes. Other frames
have none. Bytes after the payload are padding.
"""

from __future__ import annotations

import enum

from .fields import Field, Header
from .wire import ETHERNET

__all__ = [
    "BEATS_MAX",
    "BEAT_BYTES",
    "HEADER_BYTES",
    "HOST_LINK",
    "STROBE_BYTES",
    "VERSION",
    "LinkKind",
    "LinkStatus",
]

VERSION = 1
"""Of the format. It changes with every change that the other side must know."""

BEAT_BYTES = 64
"""Memory is read and written in units of so many bytes, at addresses that are multiples of it."""

STROBE_BYTES = BEAT_BYTES // 8
"""What stands before each beat of a DMA_WRITE: a bit per byte."""

BEATS_MAX = 16
"""Most beats in a frame: the largest has 1192 bytes."""


class LinkKind(enum.IntEnum):
    """What a frame of the host link asks for, or answers."""

    HELLO = 1
    """From the host: begin the session named, with a reset. In a session that has begun: nothing."""
    PING = 2
    """From the host: nothing, but an answer."""
    READ = 3
    """From the host: read the register at `address`; the reply has its value."""
    WRITE = 4
    """From the host: write `value` to the register at `address`."""
    BYE = 5
    """From the host: end the session, reset."""
    DMA_READ = 6
    """From the NIC: `count` beats of memory at `address`."""
    DMA_WRITE = 7
    """From the NIC: write the payload's `count` beats to memory at `address`."""
    INTERRUPT = 8
    """From the NIC: the vector in `value`."""


class LinkStatus(enum.IntEnum):
    """How a request ended."""

    OK = 0
    """As asked."""
    REFUSED = 1
    """Nothing has been done: the driver has mapped no such memory."""


HOST_LINK = Header(
    "HostLink",
    "Follows the Ethernet header when the EtherType is 0x88B5.",
    Field("version", 8, "Of this format: 1."),
    Field("reply", 1, "This is a reply."),
    Field("kind", 7, "What is asked for, or answered.", LinkKind),
    Field("session", 32, "Chosen by the host; not zero."),
    Field("sequence", 16, "Of the request; each side counts its own from 1 in every session. 0 in HELLO, PING and BYE."),
    Field("status", 8, "In a reply: how it went.", LinkStatus),
    Field("count", 8, "Beats of memory, in DMA_READ, DMA_WRITE and their replies."),
    Field("address", 64, "Bus address (a multiple of 64), or offset of a register in BAR 0."),
    Field("value", 32, "Of a register, or number of an interrupt's vector."),
    Field("_padding", 32),
)

HEADER_BYTES = ETHERNET.size + HOST_LINK.size
"""Where the payload begins."""
