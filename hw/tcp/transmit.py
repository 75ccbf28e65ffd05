"""`FlowTransmit`: turns jobs into final frames for the TX DMA.

    jobs --> table request --> entries --> choose by `FlowJob` --> frames (TxDma)
                                                                      |
    sent <-- one per job, when the last of its frames has ended <-- frames_done

* Latency: 2 cycles to the table request, 2 from an entry to its frame. Throughput: one entry per cycle; up to `JOBS` jobs are
  in flight, so that a bus round trip costs no rate.
* A job whose frames are all acknowledged, or whose table cannot be read, sends nothing and ends all the same.
* Registered: `frames` and `sent`; `entries.ready` depends on `frames.ready`.
* Overflow: cannot happen. `hold` keeps the table reader from beginning; what has been read goes on.
* Reset: forgets all jobs.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.messages import WINDOW_UNIT, FrameFlag, Status
from acceltcp.abi.wire import TCP

from ..dma.tx import TxFrame, TxFrameDone
from ..dma.tx_read import TIMESTAMPS_BYTES
from ..stream.fifo import StreamFifo
from ..stream.merge import StreamMerge
from .flow import FINAL_BITS, FlowJob, FlowSent
from .frame_table import FrameEntry, TableRequest

__all__ = ["FlowTransmit"]

JOBS = 32
"""Jobs in flight."""

SOURCES = 2


class FlowTransmit(wiring.Component):
    """See the module's text.

    Members
    -------
    jobs: In(stream of FlowJob), two sources in turn.
    table_requests: Out(stream of TableRequest); entries: In(stream of FrameEntry).
    frames: Out(stream of TxFrame); frames_done: In(stream of TxFrameDone).
    sent: Out(stream of FlowSent): one per job, in order.
    busy: a job is inside.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "jobs": In(stream.Signature(FlowJob(config))).array(SOURCES),
                "table_requests": Out(stream.Signature(TableRequest)),
                "entries": In(stream.Signature(FrameEntry)),
                "frames": Out(stream.Signature(TxFrame(config))),
                "frames_done": In(stream.Signature(TxFrameDone(config))),
                "sent": Out(stream.Signature(FlowSent(config))),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.merge = merge = StreamMerge(FlowJob(config), SOURCES)
        m.submodules.waiting = waiting = StreamFifo(FlowJob(config), JOBS, kind="block")
        # How many frames a job has sent, so that its end is known; 0 tells its own status.
        ended = data.StructLayout({"index": config.flow_bits, "any": 1, "status": 8})
        m.submodules.ends = ends = StreamFifo(ended, JOBS)
        for source, sink in zip(self.jobs, merge.i, strict=True):
            connect(m, flipped(source), sink)

        # A job's table is asked for while the job waits for it.
        m.d.comb += [
            self.table_requests.p.table.eq(merge.o.p.table),
            self.table_requests.p.frames.eq(merge.o.p.frames),
            self.table_requests.valid.eq(merge.o.valid & waiting.i.ready),
            waiting.i.payload.eq(merge.o.payload),
            waiting.i.valid.eq(merge.o.valid & self.table_requests.ready),
            merge.o.ready.eq(waiting.i.ready & self.table_requests.ready),
        ]
        self._choose(m, waiting.o, ends)
        self._finish(m, ends.o)
        m.d.comb += self.busy.eq(
            ~merge.idle | (waiting.level != 0) | (ends.level != 0) | self.frames.valid | self.sent.valid
        )
        return m

    def _choose(self, m, job, ends):
        """Stage 1 works out where an entry's frame lies, stage 2 decides."""
        config, want = self._config, job.p
        entry, last, error = self.entries.p.entry, self.entries.p.last, self.entries.p.error
        header = Signal(16)
        m.d.comb += header.eq(entry.l4_offset + TCP.size + Mux(want.timestamps, TIMESTAMPS_BYTES, 0))

        place = data.StructLayout(
            {
                "start": 32,  # from the frame's start to the end of all
                "payload": 16,
                "entry": self.entries.p.entry.shape(),
                "last": 1,
                "error": 1,
            }
        )
        one = Signal(place, reset_less=True)
        one_valid, ready = Signal(), Signal()
        # What comes behind a job's last entry is the next job's, and has to wait for it.
        finish = Signal()
        m.d.comb += self.entries.ready.eq(job.valid & ~finish & ~(one_valid & one.last) & (~one_valid | ready))
        with m.If(ready):
            m.d.sync += one_valid.eq(0)
        with m.If(self.entries.ready):
            m.d.sync += [
                one_valid.eq(self.entries.valid),
                one.start.eq(want.snd_end - entry.seq),
                one.payload.eq(entry.length - header),
                one.entry.eq(entry),
                one.last.eq(last),
                one.error.eq(error),
            ]

        # Chosen: its end lies less than `left` before the end of all; a FIN is part of the last one.
        sent = Signal(range(1 << len(want.limit)))
        first_start = Signal(FINAL_BITS, reset_less=True)
        end, ahead = Signal(signed(33)), Signal(FINAL_BITS)
        chosen, go, frame_free = Signal(), Signal(), Signal()
        frame = Signal(TxFrame(config), reset_less=True)
        frame_valid = Signal()
        # A frame leaves one entry late, so that the last one of the job is known as such.
        held = Signal(TxFrame(config), reset_less=True)
        held_valid, failed = Signal(), Signal()
        unit = WINDOW_UNIT.bit_length() - 1
        m.d.comb += [
            end.eq(one.start - one.payload - one.last),
            ahead.eq(first_start - one.start),
            chosen.eq(
                one_valid
                & ~one.error
                & ~failed
                & (one.start[FINAL_BITS:] == 0)
                & (end >= 0)
                & (end < want.left)
                & (sent != want.limit)
                & ((sent == 0) | ((ahead >> unit) <= want.room))
            ),
            frame_free.eq(~frame_valid | self.frames.ready),
            # Everything that an entry may need is there: a place for the frame held back, and for the job's end.
            go.eq(one_valid & job.valid & frame_free & ends.i.ready & ~finish),
            ready.eq(go),
            self.frames.valid.eq(frame_valid),
            self.frames.payload.eq(frame),
        ]
        with m.If(self.frames.ready):
            m.d.sync += frame_valid.eq(0)
        with m.If(go):
            m.d.sync += [failed.eq(failed | one.error), finish.eq(one.last)]
            with m.If(chosen):
                m.d.sync += [sent.eq(sent + 1), held_valid.eq(1), self._frame(held, want, one)]
                with m.If(sent == 0):
                    m.d.sync += first_start.eq(one.start)
                with m.If(held_valid):
                    m.d.sync += [frame.eq(held), frame.last.eq(0), frame_valid.eq(1)]
        # The job's end: the frame held back is its last.
        m.d.comb += [
            ends.i.p.index.eq(want.index),
            ends.i.p.any.eq(held_valid),
            ends.i.p.status.eq(Mux(failed, Status.BAD_ADDRESS, Status.OK)),
        ]
        with m.If(finish & frame_free & ends.i.ready):
            m.d.comb += [ends.i.valid.eq(1), job.ready.eq(1)]
            m.d.sync += [finish.eq(0), sent.eq(0), held_valid.eq(0), failed.eq(0)]
            with m.If(held_valid):
                m.d.sync += [frame.eq(held), frame.last.eq(1), frame_valid.eq(1)]

    @staticmethod
    def _frame(frame, want, one):
        entry = one.entry
        return [
            frame.address.eq(entry.address),
            frame.length.eq(entry.length),
            frame.port.eq(want.port),
            frame.l4_offset.eq(entry.l4_offset),
            frame.ipv6.eq((entry.flags & FrameFlag.IPV6) != 0),
            frame.index.eq(want.index),
            frame.patch.wanted.eq(1),
            frame.patch.timestamps.eq(want.timestamps),
            frame.patch.ack.eq(want.ack),
            frame.patch.tsecr.eq(want.tsecr),
        ]

    def _finish(self, m, end):
        """A job ends with the last of its frames, or at once when it has none."""
        done = self.frames_done
        worst = Signal(8)
        seen, told = Signal(8), Signal()
        result = Signal(FlowSent(self._config), reset_less=True)
        free, go = Signal(), Signal()
        m.d.comb += [
            free.eq(~told | self.sent.ready),
            # All but the last of a job are taken at any time: the job may be stopped behind them (`TxDma.hold`).
            done.ready.eq(~done.p.last | (end.valid & end.p.any & free)),
            seen.eq(Mux(worst == Status.OK, done.p.status, worst)),
            go.eq(end.valid & free & Mux(end.p.any, done.valid & done.p.last, 1)),
            end.ready.eq(go),
            self.sent.valid.eq(told),
            self.sent.payload.eq(result),
        ]
        with m.If(self.sent.ready):
            m.d.sync += told.eq(0)
        with m.If(done.valid & done.ready):
            m.d.sync += worst.eq(Mux(done.p.last, Status.OK, seen))
        with m.If(go):
            # A table that could not be read to its end: some frames may have left before.
            status = Mux(end.p.any & (end.p.status == Status.OK), seen, end.p.status)
            m.d.sync += [told.eq(1), result.index.eq(end.p.index), result.status.eq(status)]
