"""AXI4-Stream at the edge of the core: `AxisSource` and `AxisSink` (AMBA IHI 0051).

* Throughput: one beat per cycle. Latency: 1 cycle in, 3 cycles out.
* `AxisSource` takes AXI4-Stream in and gives beats. It registers the forward side; with
  `always_ready` (a MAC's receive side) there is no `tready`, else `tready` depends on `o.ready`.
* `AxisSink` takes beats and gives AXI4-Stream; both sides are registered. A small FIFO in block
  memory lies between: it takes the place of a wide multiplexer.
* Malformed input (`tkeep` with holes, zero, or partial before the last beat) cannot break the
  rules of `Beat`: the packet gets a legal shape and is marked `err` at its end.
* `tuser` bit 0 is the packet's `err`, looked at on the last beat.
* Reset: a packet cut by a reset goes on as if it began there.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .beat import BeatLayout, byte_mask, packet_stream
from .fifo import StreamFifo

__all__ = ["AxisSink", "AxisSource"]

_SINK_BEATS = 8


def _axis_members(width, direction):
    back = In if direction is Out else Out
    return {
        "tdata": direction(8 * width),
        "tkeep": direction(width),
        "tvalid": direction(1),
        "tlast": direction(1),
        "tuser": direction(1),
        "tready": back(1),
    }


def _ones(bits):
    """Number of ones, as a balanced tree."""
    if len(bits) == 1:
        return bits
    half = len(bits) // 2
    return _ones(bits[:half]) + _ones(bits[half:])


class AxisSource(wiring.Component):
    """Where packets come in.

    Members
    -------
    tdata, tkeep, tvalid, tlast, tuser: In. tready: Out, absent if `always_ready`.
    o: Out(packet_stream(width, always_ready=always_ready))
    """

    def __init__(self, width, *, always_ready=False):
        self._width, self._always_ready = width, always_ready
        members = _axis_members(width, In)
        if always_ready:
            del members["tready"]
        super().__init__({**members, "o": Out(packet_stream(width, always_ready=always_ready))})

    def elaborate(self, platform):
        m = Module()
        width = self._width
        beat = Signal(BeatLayout(width), reset_less=True)
        valid = Signal()
        take = Signal()
        # A thermometer code has no 1 above a 0; its length is the number of ones. Bytes are
        # summed in two halves of the tree, so that all of it stays within a few levels.
        holes = (self.tkeep[1:] & ~self.tkeep[:-1]).any()
        broken = Signal()
        bad_before = Signal()
        m.d.comb += [
            broken.eq(holes | ~self.tkeep[0] | (~self.tlast & ~self.tkeep[-1])),
            self.o.payload.eq(beat),
            self.o.valid.eq(valid),
        ]
        if self._always_ready:
            m.d.comb += take.eq(1)
        else:
            m.d.comb += [self.tready.eq(~valid | self.o.ready), take.eq(self.tready)]
        with m.If(take):
            m.d.sync += [
                valid.eq(self.tvalid),
                beat.data.eq(self.tdata),
                beat.last.eq(self.tlast),
                beat.err.eq(self.tlast & (self.tuser | broken | bad_before)),
                beat.count.eq(Mux(~self.tlast | ~self.tkeep[0], width, _ones(self.tkeep))),
            ]
            with m.If(self.tvalid):
                m.d.sync += bad_before.eq((bad_before | broken) & ~self.tlast)
        return m


class AxisSink(wiring.Component):
    """Where packets go out.

    Members
    -------
    i: In(packet_stream(width))
    tdata, tkeep, tvalid, tlast, tuser: Out. tready: In.
    busy: Out(1); a beat is inside.
    """

    def __init__(self, width):
        self._width = width
        super().__init__({**_axis_members(width, Out), "i": In(packet_stream(width)), "busy": Out(1)})

    def elaborate(self, platform):
        m = Module()
        layout = data.StructLayout({"data": 8 * self._width, "keep": self._width, "last": 1, "user": 1})
        m.submodules.fifo = fifo = StreamFifo(layout, _SINK_BEATS, kind="block")
        beat = self.i.payload
        m.d.comb += [
            fifo.i.p.data.eq(beat.data),
            fifo.i.p.keep.eq(byte_mask(beat.count, self._width)),
            fifo.i.p.last.eq(beat.last),
            fifo.i.p.user.eq(beat.last & beat.err),
            fifo.i.valid.eq(self.i.valid),
            self.i.ready.eq(fifo.i.ready),
            self.tdata.eq(fifo.o.p.data),
            self.tkeep.eq(fifo.o.p.keep),
            self.tlast.eq(fifo.o.p.last),
            self.tuser.eq(fifo.o.p.user),
            self.tvalid.eq(fifo.o.valid),
            fifo.o.ready.eq(self.tready),
            self.busy.eq(fifo.level != 0),
        ]
        return m
