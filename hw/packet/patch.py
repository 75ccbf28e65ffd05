"""`TxPatcher`: writes acknowledgment and timestamps into final frames on their way to the wire.

What a final frame says of the peer was true when the host wrote it; the NIC has heard more since.
Between TxDma and the checksums, at the full width of the bus: a frame whose `TxMeta.patch.wanted` is
set gets `patch.ack` as acknowledgment number (RFC 9293 section 3.1) and, with `patch.timestamps`,
the NIC's clock as TSval and `patch.tsecr` as TSecr of the option that stands, after two NOPs, behind the
fixed header (RFC 7323 section 3.2 and appendix A). All else passes unchanged.

* Latency: 1 cycle for beats, 2 for `o_meta`, which stays until its frame has passed whoever comes next.
* Throughput: one beat per cycle, and one frame per cycle for frames of one beat.
* Registered: `o_packets` and `o_meta`; `packets.ready` depends on `o_packets.ready` and on registers.
* Overflow: cannot happen. Reset: forgets the beats under way; the next one begins a frame.

The TCP header may start at the few offsets of `FINAL_OFFSETS` only (TxRead refuses others), so each field
has four places, and none reaches beyond byte 90.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.wire import TCP

from ..config import AXI_BYTES
from ..dma.tx_read import FINAL_OFFSETS, TIMESTAMPS_BYTES
from ..stream.beat import BeatLayout, packet_stream
from ..stream.buffer import StreamBuffer
from ..stream.fifo import StreamFifo
from .meta import TxMeta

__all__ = ["TxPatcher"]

METAS = 16
"""Frames whose meta nobody has taken yet."""

_OFFSETS = tuple(sorted(offset for offsets in FINAL_OFFSETS.values() for offset in offsets))
_ACK_AT = TCP.byte_offset("ack")
_TSECR_AT = TCP.size + TIMESTAMPS_BYTES - 4
_TSVAL_AT = _TSECR_AT - 4
_END = max(_OFFSETS) + _TSECR_AT + 4  # nothing is written behind


class TxPatcher(wiring.Component):
    """See the module's docstring.

    Members
    -------
    packets: In(packet_stream(axi_bytes)), meta: In(stream(TxMeta)): from TxDma; one meta per packet, offered no
        later than its first beat.
    o_packets: Out(packet_stream(axi_bytes)), o_meta: Out(stream(TxMeta)): the same.
    ts_clock: the NIC's timestamp clock.
    busy: something is inside.
    """

    def __init__(self, axi_bytes=AXI_BYTES):
        self._axi_bytes = axi_bytes
        super().__init__(
            {
                "packets": In(packet_stream(axi_bytes)),
                "meta": In(stream.Signature(TxMeta)),
                "o_packets": Out(packet_stream(axi_bytes)),
                "o_meta": Out(stream.Signature(TxMeta)),
                "ts_clock": In(32),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.buffer = buffer = StreamBuffer(BeatLayout(self._axi_bytes))
        m.submodules.metas = metas = StreamFifo(TxMeta, METAS)
        connect(m, buffer.o, flipped(self.o_packets))
        connect(m, metas.o, flipped(self.o_meta))

        beats = -(-_END // self._axi_bytes)  # in which there is something to write
        beat = Signal(range(beats + 1))  # number of the beat in its frame, `beats` for all later ones
        first, go, last = Signal(), Signal(), Signal()
        m.d.comb += [
            first.eq(beat == 0),
            go.eq(self.packets.valid & self.meta.valid & buffer.i.ready & (~first | metas.i.ready)),
            last.eq(go & self.packets.p.last),
            self.packets.ready.eq(self.meta.valid & buffer.i.ready & (~first | metas.i.ready)),
            self.meta.ready.eq(last),
            metas.i.valid.eq(go & first),
            metas.i.payload.eq(self.meta.payload),
            buffer.i.valid.eq(self.packets.valid & self.meta.valid & (~first | metas.i.ready)),
            buffer.i.payload.eq(self.packets.payload),
            self.busy.eq(self.packets.valid | buffer.o.valid | (metas.level != 0)),
        ]
        with m.If(last):
            m.d.sync += beat.eq(0)
        with m.Elif(go & (beat != beats)):
            m.d.sync += beat.eq(beat + 1)

        # The clock is one value for a frame: the option may lie in two beats.
        clock = Signal(32)
        kept = Signal(32, reset_less=True)
        m.d.comb += clock.eq(Mux(first, self.ts_clock, kept))
        m.d.sync += kept.eq(clock)

        patch = self.meta.p.patch
        for offset in _OFFSETS:
            with m.If(patch.wanted & (self.meta.p.l4_offset == offset)):
                self._write(m, buffer.i.p.data, beat, offset + _ACK_AT, patch.ack)
                with m.If(patch.timestamps):
                    self._write(m, buffer.i.p.data, beat, offset + _TSVAL_AT, clock)
                    self._write(m, buffer.i.p.data, beat, offset + _TSECR_AT, patch.tsecr)
        return m

    def _write(self, m, octets, beat, at, value):
        """Put a number of four bytes, most significant first, to byte `at` of the frame."""
        for k in range(4):
            number, lane = divmod(at + k, self._axi_bytes)
            with m.If(beat == number):
                m.d.comb += octets[8 * lane : 8 * lane + 8].eq(value[24 - 8 * k : 32 - 8 * k])
