"""AXI4-Stream at the edge of the core: `AxisSource` and `AxisSink` (AMBA IHI 0051).

* Throughput: one beat per cycle. Latency: 1 cycle each.
* `AxisSource` takes AXI4-Stream in and gives beats. It registers the forward side; with
  `always_ready` (a MAC's receive side) there is no `tready`, else `tready` depends on `o.ready`.
* `AxisSink` takes beats and gives AXI4-Stream; both sides are registered.
* Malformed input (`tkeep` with holes, zero, or partial before the last beat) cannot break the
  rules of `Beat`: the packet gets a legal shape and is marked `err` at its end.
* `tuser` bit 0 is the packet's `err`, looked at on the last beat.
* Reset: a packet cut by a reset goes on as if it began there.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .beat import BeatLayout, byte_mask, packet_stream
from .buffer import SkidBuffer

__all__ = ["AxisSink", "AxisSource"]


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
    """

    def __init__(self, width):
        self._width = width
        super().__init__({**_axis_members(width, Out), "i": In(packet_stream(width))})

    def elaborate(self, platform):
        m = Module()
        layout = data.StructLayout({"data": 8 * self._width, "keep": self._width, "last": 1, "user": 1})
        m.submodules.skid = skid = SkidBuffer(layout)
        beat = self.i.payload
        m.d.comb += [
            skid.i.p.data.eq(beat.data),
            skid.i.p.keep.eq(byte_mask(beat.count, self._width)),
            skid.i.p.last.eq(beat.last),
            skid.i.p.user.eq(beat.last & beat.err),
            skid.i.valid.eq(self.i.valid),
            self.i.ready.eq(skid.i.ready),
            self.tdata.eq(skid.o.p.data),
            self.tkeep.eq(skid.o.p.keep),
            self.tlast.eq(skid.o.p.last),
            self.tuser.eq(skid.o.p.user),
            self.tvalid.eq(skid.o.valid),
            skid.o.ready.eq(self.tready),
        ]
        return m
