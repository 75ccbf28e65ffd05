"""Frames of the host link, in and out: `LinkReceiver` and `LinkSender`, 8 bytes per beat.

The format is `acceltcp.abi.host_link`. A frame is a header of `HEADER_WORDS` words of 8 bytes and payload words; the first
byte on the wire is the least significant.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.fields import Header
from acceltcp.abi.host_link import BEAT_BYTES, BEATS_MAX, HEADER_BYTES, HOST_LINK, STROBE_BYTES
from acceltcp.abi.wire import ETHERNET, ETHERNET_MIN_FRAME, EtherType

from ..abi import wire_bytes, wire_field
from ..stream.axis import AxisSource

__all__ = ["BEAT_WORDS", "HEADER_WORDS", "PAYLOAD_WORDS", "STROBE_WORDS", "WORD_BYTES", "LinkHeader", "LinkReceiver", "LinkSender"]

WORD_BYTES = 8
HEADER_WORDS = HEADER_BYTES // WORD_BYTES
BEAT_WORDS = BEAT_BYTES // WORD_BYTES
STROBE_WORDS = STROBE_BYTES // WORD_BYTES
PAYLOAD_WORDS = BEATS_MAX * (BEAT_WORDS + STROBE_WORDS)
"""Most payload words in a frame."""

_MIN_WORDS = -(-ETHERNET_MIN_FRAME // WORD_BYTES)


def _fields(header: Header):
    return {field.name: field.bits for field in header if not field.reserved}


LinkHeader = data.StructLayout(_fields(ETHERNET) | _fields(HOST_LINK))
"""The fields of both headers of a frame."""


class LinkReceiver(wiring.Component):
    """Frames from the MAC: headers whole, payload word by word.

    Latency: 2 cycles from the last beat to `valid`. It takes a beat per cycle and cannot be stalled. Reset: a frame cut by it
    is ignored.

    Members
    -------
    tdata, tkeep, tvalid, tlast, tuser : In
        As of the core's MAC ports.
    valid : Out(1)
        For one cycle: a good frame of the host link has ended; `header` and `payload_words` are its.
    header : Out(LinkHeader)
    payload_words : Out
        Words after the header, padding included; it stands at its largest value for more.
    word, word_index, word_valid : Out
        A word after the header, as it comes: the frame may still turn out bad.
    """

    def __init__(self):
        super().__init__(
            {
                "tdata": In(8 * WORD_BYTES),
                "tkeep": In(WORD_BYTES),
                "tvalid": In(1),
                "tlast": In(1),
                "tuser": In(1),
                "valid": Out(1),
                "header": Out(LinkHeader),
                "payload_words": Out(range(PAYLOAD_WORDS + 1)),
                "word": Out(8 * WORD_BYTES),
                "word_index": Out(range(PAYLOAD_WORDS)),
                "word_valid": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.source = source = AxisSource(WORD_BYTES, always_ready=True)
        beat = source.o.payload
        taken = Signal(8 * HEADER_BYTES, reset_less=True)
        at = Signal(range(HEADER_WORDS + 1))  # words of the header so far
        payload = Signal(range(PAYLOAD_WORDS + 1))  # words after it so far
        full = payload == PAYLOAD_WORDS
        in_header = at != HEADER_WORDS
        words = Signal.like(payload)
        m.d.comb += [
            *(getattr(source, name).eq(getattr(self, name)) for name in ("tdata", "tkeep", "tvalid", "tlast", "tuser")),
            words.eq(payload + ~(full | in_header)),
            self.word.eq(beat.data),
            self.word_index.eq(payload),
            self.word_valid.eq(source.o.valid & ~in_header & ~full),
        ]
        for header, offset in ((ETHERNET, 0), (HOST_LINK, ETHERNET.size)):
            for name in _fields(header):
                m.d.comb += self.header[name].eq(wire_field(header, name, taken, offset))

        good = Signal()
        m.d.sync += good.eq(source.o.valid & beat.last & ~beat.err & (at >= HEADER_WORDS - 1))
        m.d.comb += self.valid.eq(good & (self.header.ethertype == EtherType.HOST_LINK))
        with m.If(source.o.valid):
            m.d.sync += [payload.eq(words), self.payload_words.eq(words)]
            with m.If(in_header):
                m.d.sync += [at.eq(at + 1), taken.eq(Cat(taken[8 * WORD_BYTES :], beat.data))]
            with m.If(beat.last):
                m.d.sync += [at.eq(0), payload.eq(0)]
        return m


class LinkSender(wiring.Component):
    """Frames to the MAC: a header and payload out of a memory, at least the least that Ethernet has.

    Latency: 2 cycles from `start` to the first beat; then a beat per cycle that the MAC is ready.

    Members
    -------
    start : In(1)
        Send a frame with `header` and `payload_words`, looked at in this cycle. Only while `idle`.
    header : In(LinkHeader)
    payload_words : In
    idle : Out(1)
    read_index, read_enable : Out
        Word of the payload to read.
    read_data : In
        That word, a cycle later.
    tdata, tkeep, tvalid, tlast, tuser : Out. tready : In
    """

    def __init__(self):
        super().__init__(
            {
                "start": In(1),
                "header": In(LinkHeader),
                "payload_words": In(range(PAYLOAD_WORDS + 1)),
                "idle": Out(1),
                "read_index": Out(range(PAYLOAD_WORDS)),
                "read_enable": Out(1),
                "read_data": In(8 * WORD_BYTES),
                "tdata": Out(8 * WORD_BYTES),
                "tkeep": Out(WORD_BYTES),
                "tvalid": Out(1),
                "tlast": Out(1),
                "tuser": Out(1),
                "tready": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        header = Signal(8 * HEADER_BYTES, reset_less=True)
        payload_words = Signal.like(self.payload_words)
        index = Signal(range(HEADER_WORDS + PAYLOAD_WORDS + 1))  # of the word to fetch
        last = Signal.like(index)
        active = Signal()
        advance = Signal()
        # What stands on the output: the next word of the header, the memory's, or padding.
        from_header = Signal()
        from_memory = Signal()
        m.d.comb += [
            advance.eq(~self.tvalid | self.tready),
            self.idle.eq(~active & ~self.tvalid),
            self.read_index.eq(index - HEADER_WORDS),
            self.read_enable.eq(advance),
            self.tdata.eq(Mux(from_header, header[: 8 * WORD_BYTES], Mux(from_memory, self.read_data, 0))),
            self.tkeep.eq(~0),
        ]
        with m.If(advance):
            with m.If(self.tvalid & from_header):
                m.d.sync += header.eq(header[8 * WORD_BYTES :])
            m.d.sync += [
                self.tvalid.eq(active),
                self.tlast.eq(active & (index == last)),
                from_header.eq(index < HEADER_WORDS),
                from_memory.eq(index < HEADER_WORDS + payload_words),
            ]
            with m.If(active):
                m.d.sync += index.eq(index + 1)
                with m.If(index == last):
                    m.d.sync += active.eq(0)
        with m.If(self.start):
            words = HEADER_WORDS + self.payload_words
            ethernet, link = (
                wire_bytes(part, **{name: self.header[name] for name in _fields(part)}) for part in (ETHERNET, HOST_LINK)
            )
            m.d.sync += [
                active.eq(1),
                index.eq(0),
                last.eq(Mux(words < _MIN_WORDS, _MIN_WORDS, words) - 1),
                payload_words.eq(self.payload_words),
                header.eq(Cat(ethernet, link)),
            ]
        return m
