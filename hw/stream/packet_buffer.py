"""`PacketBuffer`: store and forward of whole packets, kept or dropped at either end.

Written without ever stalling the source; a packet becomes visible when its last beat has
been written. Read or freed in order, as the stream `take` says.

* Throughput: one beat per cycle in and out; out also for back-to-back packets of one beat
  (one `take` per cycle). Freeing a packet of any length takes one cycle.
* Latency: a `take` finds its packet from 3 cycles after the packet's last beat (4 with block
  memory for lengths); the first beat stands on `packets` 3 cycles after the `take`.
* Registered: `packets.valid` and payload. `take.ready` depends on `packets.ready`.
* Overflow: a packet that meets a full memory, a full list of packets or `room` = 0 at its end
  is rewound, and only that one; `lost` says so. Memory comes back as beats are read.
* A packet whose `err` is set on the last beat is rewound as well, silently.
* An endless packet occupies the memory until it ends; packets before it can still be read.
* Reset: empties it; the rest of a packet cut by the reset counts as a packet.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..lattice.memories import memory_attributes
from .beat import BeatLayout, packet_stream
from .buffer import StreamBuffer
from .fifo import StreamFifo

__all__ = ["PacketBuffer"]


class PacketBuffer(wiring.Component):
    """A buffer of `depth` beats and `packets` packets.

    Parameters
    ----------
    width: bytes per beat.
    depth: beats, a power of two.
    packets: most packets that are committed and not yet taken, at least 2.

    Members
    -------
    i: In(packet_stream(width, always_ready=True)); `err` on the last beat discards the packet.
    room: In(1); looked at with the last beat: 0 loses the packet. Tie to 1 if not needed.
    kept, lost: Out(1); the cycle after a last beat: committed, or dropped for lack of room.
    take: In(stream of {"keep": 1}); what to do with the oldest packet: read it out or free it.
    packets: Out(packet_stream(width)); `err` is always 0.
    waiting: Out; packets committed and not yet taken.
    busy: Out(1); a packet is being written, waits, or is being read.
    """

    def __init__(self, width, depth, packets):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least 2, not {depth!r}")
        if packets < 2:
            raise ValueError(f"packets must be at least 2, not {packets!r}")
        self._width, self._depth, self._packets = width, depth, packets
        super().__init__(
            {
                "i": In(packet_stream(width, always_ready=True)),
                "room": In(1, init=1),
                "kept": Out(1),
                "lost": Out(1),
                "take": In(stream.Signature(data.StructLayout({"keep": 1}))),
                "packets": Out(packet_stream(width)),
                "waiting": Out(range(packets + 1)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        beats_bits = exact_log2(self._depth)
        # The size of a packet: beats - 1, and valid bytes of the last beat.
        size_layout = data.StructLayout({"beats": beats_bits, "count": exact_log2(self._width) + 1})
        job_layout = data.StructLayout({"size": size_layout, "keep": 1})
        m.submodules.memory = memory = Memory(
            shape=8 * self._width, depth=self._depth, init=[], attrs=memory_attributes(platform, self._depth, collisions=False)
        )
        m.submodules.sizes = sizes = StreamFifo(
            size_layout, self._packets, kind="lutram" if self._packets <= 64 else "block"
        )
        m.submodules.job = job = StreamBuffer(job_layout)

        # Positions have one bit more than addresses, to tell full from empty.
        start = Signal(beats_bits + 1)  # of the packet being written
        write_at = Signal(beats_bits + 1)
        read_at = Signal(beats_bits + 1)
        free_at = Signal(beats_bits + 1)  # read_at of a cycle ago: no address is read and written at once

        self._elaborate_write(m, memory.write_port(), sizes, start, write_at, free_at)

        # Taking: a decision meets the size of the oldest packet.
        m.d.comb += [
            job.i.p.size.eq(sizes.o.payload),
            job.i.p.keep.eq(self.take.p.keep),
            job.i.valid.eq(sizes.o.valid & self.take.valid),
            sizes.o.ready.eq(job.i.ready & self.take.valid),
            self.take.ready.eq(job.i.ready & sizes.o.valid),
        ]
        taken = Signal()
        m.d.comb += taken.eq(self.take.valid & self.take.ready)
        m.d.sync += self.waiting.eq(self.waiting + self._kept_now - taken)

        fetched = self._elaborate_read(m, memory.read_port(), job, read_at, free_at)
        inside = Signal()
        with m.If(self.i.valid):
            m.d.sync += inside.eq(~self.i.p.last)
        m.d.comb += self.busy.eq(inside | (self.waiting != 0) | job.o.valid | fetched | self.packets.valid)
        return m

    def _elaborate_write(self, m, write, sizes, start, write_at, free_at):
        beat = self.i.payload
        full = Signal()
        overflowed = Signal()  # an earlier beat of this packet met a full memory
        no_room = Signal()
        kept_now = self._kept_now = Signal(name="kept_now")
        last = Signal()
        size = Signal.like(sizes.i.payload, reset_less=True)
        m.d.comb += [
            full.eq((write_at ^ free_at) == self._depth),
            no_room.eq(full | overflowed | ~self.room | (self.waiting == self._packets)),
            last.eq(self.i.valid & beat.last),
            kept_now.eq(last & ~beat.err & ~no_room),
            write.addr.eq(write_at[:-1]),
            write.data.eq(beat.data),
            write.en.eq(self.i.valid & ~full & ~overflowed),
            sizes.i.payload.eq(size),
            sizes.i.valid.eq(self.kept),  # never full: `waiting` bounds its contents
        ]
        with m.If(kept_now):
            m.d.sync += [start.eq(write_at + 1), write_at.eq(write_at + 1)]
        with m.Elif(last):
            m.d.sync += write_at.eq(start)
        with m.Elif(write.en):
            m.d.sync += write_at.eq(write_at + 1)
        with m.If(self.i.valid):
            m.d.sync += overflowed.eq((overflowed | full) & ~beat.last)
        m.d.sync += [
            self.kept.eq(kept_now),
            self.lost.eq(last & ~beat.err & no_room),
            size.beats.eq(write_at - start),
            size.count.eq(beat.count),
        ]

    def _elaborate_read(self, m, read, job, read_at, free_at):
        size = job.o.p.size
        index = Signal(len(size.beats))
        issue = Signal()
        at_last = Signal()
        fetched, fetched_last = Signal(), Signal()  # the memory's output register holds a beat
        fetched_count = Signal.like(size.count, reset_less=True)
        advance = Signal()
        valid = Signal()
        beat = Signal(BeatLayout(self._width), reset_less=True)
        m.d.comb += [
            advance.eq(~valid | self.packets.ready),
            at_last.eq(index == size.beats),
            issue.eq(job.o.valid & job.o.p.keep & (~fetched | advance)),
            job.o.ready.eq(~job.o.p.keep | (issue & at_last)),
            read.addr.eq(read_at[:-1]),
            read.en.eq(~fetched | advance),
            self.packets.payload.eq(beat),
            self.packets.valid.eq(valid),
        ]
        with m.If(issue):
            m.d.sync += index.eq(Mux(at_last, 0, index + 1))
        with m.If(issue):
            m.d.sync += read_at.eq(read_at + 1)
        with m.Elif(job.o.valid & ~job.o.p.keep):
            m.d.sync += read_at.eq(read_at + size.beats + 1)
        m.d.sync += free_at.eq(read_at)
        with m.If(~fetched | advance):
            m.d.sync += [
                fetched.eq(issue),
                fetched_last.eq(at_last),
                fetched_count.eq(Mux(at_last, size.count, self._width)),
            ]
        with m.If(advance):
            m.d.sync += [
                valid.eq(fetched),
                beat.data.eq(read.data),
                beat.count.eq(fetched_count),
                beat.last.eq(fetched_last),
            ]
        return fetched
