"""`FrameTable`: reads tables of final frames from host memory for two clients, and other tables of that shape for more.

A table holds up to 16 entries of 16 bytes, such as `FINAL_FRAME`, and starts at a multiple of 256 bytes, so it is one
burst of up to 256 bytes. Beats of fewer than 16 bytes are gathered to words of 16. Requests are answered in order, entry by entry, to the client that asked.

* Latency: 1 cycle to the bus, 3 from it. Throughput: one entry per cycle; requests follow each other without
  waiting for their data: up to `TABLES` tables and `WORDS` beats or words are in flight. With a bus round trip of 250 cycles that makes
  0.95 entries per cycle with tables of 16 entries; with tables of up to four, `TABLES` tables per round trip.
* Registered: `read.request`; `entries` is one multiplexer behind registers.
* Overflow: a burst is asked for only when there is room for its data. With `hold` none is begun for the second client.
* The second client asks most and is served last; the others are served in their order.
* Reset: forgets everything; what the bus still owes must have been waited for (`hold`, `idle`).
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from acceltcp.abi.messages import FINAL_FRAME, FRAME_TABLE_ALIGN

from ..abi import message_layout
from ..config import AXI_BYTES
from ..dma.axi import ReadPort, ReadRequest
from ..dma.gather import gathered
from ..stream.fifo import StreamFifo
from .flow import FRAMES_BITS, TABLE_BITS

__all__ = ["FrameEntry", "FrameTable", "TableRequest"]

TABLES = 32
"""Tables in flight or waiting."""

WORDS = 64
"""Beats, or words of 16 bytes, in flight or waiting."""

_TABLE_ENTRIES = 1 << FRAMES_BITS


class TableRequest(data.Struct):
    """A table to read: its address / 256, and the number of its entries less one."""

    table: TABLE_BITS
    frames: FRAMES_BITS


class FrameEntry(data.Struct):
    """An entry of the table; of another kind of table its plain bits. `error`: the bus refused this one or an earlier one of
    the table."""

    entry: message_layout(FINAL_FRAME)
    last: 1
    error: 1


class FrameTable(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    clients: how many there are, at least 2.
    axi_bytes: width of the bus.

    Members
    -------
    requests: In(stream of TableRequest), one per client; the first has the right of way.
    entries: Out(stream of FrameEntry), one per client.
    read: Out(ReadPort()).
    hold: begin no burst for the second client. idle: none is in flight. busy: something is inside.
    """

    def __init__(self, clients=2, axi_bytes=AXI_BYTES):
        if not isinstance(clients, int) or clients < 2:
            raise ValueError(f"clients must be at least 2, not {clients!r}")
        self._clients, self._axi_bytes = clients, axi_bytes
        super().__init__(
            {
                "requests": In(stream.Signature(TableRequest)).array(clients),
                "entries": Out(stream.Signature(FrameEntry)).array(clients),
                "read": Out(ReadPort(axi_bytes)),
                "hold": In(1),
                "idle": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        job = data.StructLayout({"client": range(self._clients), "frames": FRAMES_BITS})
        word_bytes = max(self._axi_bytes, FINAL_FRAME.size)
        entries_n = word_bytes // FINAL_FRAME.size
        octets = data.StructLayout({"data": 8 * word_bytes, "error": 1})
        m.submodules.jobs = jobs = StreamFifo(job, TABLES)
        m.submodules.beats = beats = StreamFifo(octets, WORDS, kind="block")

        # Requests. There is room for all their beats before they are asked for.
        request = Signal(ReadRequest, reset_less=True)
        request_valid = Signal()
        room = Signal(range(WORDS + 1), init=WORDS)
        need = Signal(range(WORDS + 1))
        chosen = Signal(TableRequest)
        client = Signal(range(self._clients))
        go, wanted, taken, popped = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            # Whoever has nothing to ask leaves it to the second client.
            client.eq(1),
            wanted.eq(Cat(request.valid & (~self.hold if k == 1 else 1) for k, request in enumerate(self.requests)).any()),
            need.eq((chosen.frames >> exact_log2(entries_n)) + 1),
            go.eq(wanted & (~request_valid | self.read.request.ready) & (room >= _TABLE_ENTRIES // entries_n) & jobs.i.ready),
            jobs.i.valid.eq(go),
            jobs.i.p.client.eq(client),
            jobs.i.p.frames.eq(chosen.frames),
            self.read.request.valid.eq(request_valid),
            self.read.request.payload.eq(request),
        ]
        # The last assignment counts.
        for k in (*range(self._clients - 1, 1, -1), 0):
            with m.If(self.requests[k].valid):
                m.d.comb += client.eq(k)
        with m.Switch(client):
            for k, one in enumerate(self.requests):
                with m.Case(k):
                    m.d.comb += [chosen.eq(one.payload), one.ready.eq(go)]
        with m.If(self.read.request.ready):
            m.d.sync += request_valid.eq(0)
        with m.If(go):
            m.d.sync += [
                request_valid.eq(1),
                request.address.eq(chosen.table << exact_log2(FRAME_TABLE_ALIGN)),
                request.length.eq(Cat(C(0, exact_log2(word_bytes // self._axi_bytes)), need) - 1),
            ]
        word, word_valid = gathered(m, self.read.response, self._axi_bytes, word_bytes)
        # What waits here for a client is no longer the bus's business.
        owed = Signal(range(WORDS + 1))
        claim = Mux(go, need, 0)
        m.d.sync += [room.eq(room - claim + popped), owed.eq(owed + claim - word_valid)]
        m.d.comb += [
            beats.i.valid.eq(word_valid),
            beats.i.p.data.eq(word.data),
            beats.i.p.error.eq(word.error),
        ]

        # Entries out of the beats.
        at = Signal(FRAMES_BITS)
        bad = Signal()
        entry = Signal(FrameEntry)
        entries = Value.cast(beats.o.p.data)
        valid, ready = Signal(), Signal()
        ready_of = Array(out.ready for out in self.entries)
        inner = at[: exact_log2(entries_n)]
        with m.Switch(inner):
            for k in range(entries_n):
                with m.Case(k):
                    m.d.comb += Value.cast(entry.entry).eq(entries[8 * FINAL_FRAME.size * k :][: 8 * FINAL_FRAME.size])
        m.d.comb += [
            entry.last.eq(at == jobs.o.p.frames),
            entry.error.eq(bad | beats.o.p.error),
            valid.eq(jobs.o.valid & beats.o.valid),
            ready.eq(ready_of[jobs.o.p.client]),
            taken.eq(valid & ready),
            popped.eq(taken & (entry.last | inner.all())),
            beats.o.ready.eq(popped),
            jobs.o.ready.eq(taken & entry.last),
        ]
        for number, out in enumerate(self.entries):
            m.d.comb += [out.valid.eq(valid & (jobs.o.p.client == number)), out.payload.eq(entry)]
        with m.If(taken):
            m.d.sync += [at.eq(Mux(entry.last, 0, at + 1)), bad.eq(entry.error & ~entry.last)]
        m.d.comb += [
            self.idle.eq((owed == 0) & ~request_valid),
            self.busy.eq((room != WORDS) | Cat(one.valid for one in self.requests).any() | (jobs.level != 0)),
        ]
        return m
