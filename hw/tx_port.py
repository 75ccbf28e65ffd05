"""TxPort: the way out to one MAC; wiring only.

Replies, frames from the host and spliced packets take turns packet by packet, are padded to the shortest
legal frame, and are counted. Latency 1 cycle in the arbiter, see `TxPad` and `AxisSink`
for the others; one beat per cycle. With `stop` the frame under way is finished and none begins,
so that a soft reset cuts no frame on the wire.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .counts import counts_layout
from .stream.arbiter import PacketArbiter
from .stream.axis import AxisSink
from .stream.beat import packet_stream
from .stream.pad import TxPad
from .stream.tap import PacketTap

__all__ = ["TxPort"]



class TxPort(wiring.Component):
    """See the module's docstring.

    Members
    -------
    i : In(packet_stream(width)).array(sources)
        Segments that the NIC makes, frames from the host, and with splices what they forward.
    tdata, tkeep, tvalid, tlast, tuser : Out, tready : In
        AXI4-Stream to the MAC.
    busy : Out(1)
        A beat waits for the MAC.
    stop : In(1)
        Begin no frame.
    drained : Out(1)
        No frame is half sent.
    counts : Out(tx_packets, tx_bytes)
    """

    def __init__(self, config):
        self._width = width = config.width
        self._sources = 3 if config.splices else 2
        super().__init__(
            {
                "i": In(packet_stream(width)).array(self._sources),
                "tdata": Out(8 * width),
                "tkeep": Out(width),
                "tvalid": Out(1),
                "tlast": Out(1),
                "tuser": Out(1),
                "tready": In(1),
                "busy": Out(1),
                "stop": In(1),
                "drained": Out(1),
                "counts": Out(counts_layout("tx_packets", "tx_bytes")),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.arbiter = arbiter = PacketArbiter(self._width, self._sources)
        m.submodules.pad = pad = TxPad(self._width)
        m.submodules.tap = tap = PacketTap(self._width, packets="tx_packets", octets="tx_bytes")
        m.submodules.sink = sink = AxisSink(self._width)
        for source, sink_i in zip(self.i, arbiter.i, strict=True):
            connect(m, flipped(source), sink_i)
        connect(m, arbiter.o, pad.i)
        connect(m, tap.o, sink.i)
        begun, go = Signal(), Signal()
        m.d.comb += [
            go.eq(begun | ~self.stop),
            tap.i.payload.eq(pad.o.payload),
            tap.i.valid.eq(pad.o.valid & go),
            pad.o.ready.eq(tap.i.ready & go),
            self.drained.eq(~begun & ~tap.i.valid & ~sink.busy),
        ]
        with m.If(tap.i.valid):
            m.d.sync += begun.eq(~(tap.i.ready & tap.i.p.last))
        for name in ("tdata", "tkeep", "tvalid", "tlast", "tuser"):
            m.d.comb += getattr(self, name).eq(getattr(sink, name))
        m.d.comb += [
            sink.tready.eq(self.tready),
            self.busy.eq(arbiter.o.valid | pad.o.valid | sink.busy),
            self.counts.eq(tap.counts),
        ]
        return m
