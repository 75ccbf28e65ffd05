"""`TxChecksum`: inserts IPv4, TCP, UDP and ICMPv6 checksums into the hosts' frames (RFC 1071).

Store and forward. While a frame is written to the packet buffer, the bytes that its sums cover
are picked out by masks; when the sums are known the frame is read out and patched on the way.

    packets --+--> PacketBuffer --+--> patch --> o
              +------> TxSums ----+

* Latency: `latency` cycles from the last beat of a frame to its first beat on `o` (idle output).
* Throughput: one beat per cycle, and one frame per cycle for frames of one beat.
* Registered: `o` and `port`. `packets.ready` is two flip-flops and `meta.valid`.
* Overflow: cannot happen; `packets.ready` falls while the buffer is full. A frame longer than the
  buffer would stand still; `NicConfig` and the TX DMA's length check exclude it.
* A frame with `err` on its last beat is discarded.
* Reset: empties it.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from ..config import NicConfig
from ..counts import counts_layout
from ..stream.beat import BeatLayout, packet_stream
from ..stream.fifo import StreamFifo
from ..stream.packet_buffer import PacketBuffer
from .meta import TxMeta
from .tx_sums import PACKETS, Patch, TxSums

__all__ = ["TxChecksum"]

class TxChecksum(wiring.Component):
    """Checksum insertion for one stream of frames.

    Members
    -------
    packets: In(packet_stream(width)).
    meta: In(stream(TxMeta)): one per packet, in order, offered no later than the packet's first beat;
        taken with its last beat. Offsets and flags must make sense: the TX DMA has checked them.
    o: Out(packet_stream(width)).
    port: Out(1): MAC port of the packet on `o`, with every beat.
    busy: a frame is inside.
    counts: tx_host_packets, tx_host_bytes.
    """

    def __init__(self, config):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        self._config, self._width = config, config.width
        super().__init__(
            {
                "packets": In(packet_stream(config.width)),
                "meta": In(stream.Signature(TxMeta)),
                "o": Out(packet_stream(config.width)),
                "port": Out(1),
                "busy": Out(1),
                "counts": Out(counts_layout("tx_host_packets", "tx_host_bytes")),
            }
        )

    @property
    def width(self):
        """Bytes per beat."""
        return self._width

    @property
    def latency(self):
        """Cycles from the last beat taken to the first beat offered."""
        return 23 if self._width == 8 else 24

    def elaborate(self, platform):
        m = Module()
        depth = self._config.tx_buffer_beats

        # The way in: a beat and its meta together, if there is room for it and for its frame.
        used = Signal(range(depth + 1))  # beats inside, the written part of this frame included
        inside = Signal(range(PACKETS + 1))
        beats_before = Signal(exact_log2(depth) + 1)  # of this frame
        accept, last, discard = Signal(), Signal(), Signal()
        m.d.comb += [
            self.packets.ready.eq(self.meta.valid & (used != depth) & (inside != PACKETS)),
            accept.eq(self.packets.valid & self.packets.ready),
            last.eq(accept & self.packets.p.last),
            discard.eq(last & self.packets.p.err),
            self.meta.ready.eq(last),
        ]
        with m.If(accept):
            m.d.sync += beats_before.eq(Mux(last, 0, beats_before + 1))

        m.submodules.buffer = buffer = PacketBuffer(self._width, depth, PACKETS)
        m.submodules.sums = sums = TxSums(self._width)
        m.submodules.patcher = patcher = _Patcher(self._width)
        m.d.comb += [
            buffer.i.payload.eq(self.packets.payload),
            buffer.i.valid.eq(accept),
            buffer.room.eq(1),
            sums.i_valid.eq(accept),
            sums.i_beat.eq(self.packets.payload),
            sums.i_meta.eq(self.meta.payload),
            patcher.patch_valid.eq(sums.o_valid),
            patcher.patch.eq(sums.o_patch),
        ]
        connect(m, take=patcher.take, buffer=buffer.take)
        # Without this FIFO `o.ready` would reach through patcher and packet buffer to its lists. In
        # block memory it is smaller than a skid buffer's multiplexer.
        m.submodules.exit = leave = StreamFifo(BeatLayout(self._width), 8, kind="block")
        connect(m, buffer=buffer.packets, exit=leave.i)
        connect(m, exit=leave.o, patcher=patcher.packets)
        connect(m, patcher=patcher.o, o=flipped(self.o))
        m.d.comb += self.port.eq(patcher.port)

        leaves = Signal()
        m.d.comb += leaves.eq(self.o.valid & self.o.ready)
        m.d.sync += [
            used.eq(used + accept - leaves - Mux(discard, beats_before + 1, 0)),
            # A discarded frame counts until its sums have come out and been thrown away.
            inside.eq(inside + last - (leaves & self.o.p.last) - sums.o_discarded),
            self.counts.tx_host_packets.eq(leaves & self.o.p.last),
            self.counts.tx_host_bytes.eq(Mux(leaves & self.o.p.last, patcher.length, 0)),
        ]
        m.d.comb += self.busy.eq((used != 0) | (inside != 0))
        return m


class _Patcher(wiring.Component):
    """Reads frames whose checksums are known out of the buffer and writes them in."""

    def __init__(self, width):
        self._width = width
        super().__init__(
            {
                "patch_valid": In(1),
                "patch": In(Patch),
                "take": Out(stream.Signature(data.StructLayout({"keep": 1}))),
                "packets": In(packet_stream(width)),
                "o": Out(packet_stream(width)),
                "port": Out(1),
                "length": Out(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        width, lane_bits = self._width, exact_log2(self._width)
        m.submodules.patches = patches = StreamFifo(Patch, PACKETS, kind="block")
        to_take = Signal(range(PACKETS + 1))
        m.d.comb += [
            patches.i.payload.eq(self.patch),
            patches.i.valid.eq(self.patch_valid),  # never full: frames inside are counted
            self.take.p.keep.eq(1),
            self.take.valid.eq(to_take != 0),
        ]
        m.d.sync += to_take.eq(to_take + self.patch_valid - (self.take.valid & self.take.ready))

        # Stage 1: are the fields in this beat?
        beat_1, beat_2 = (Signal(BeatLayout(width), name=f"beat{i}", reset_less=True) for i in (1, 2))
        valid_1, valid_2 = Signal(), Signal()
        patch_1 = Signal(Patch, reset_less=True)
        here = Signal(2, reset_less=True)
        index = Signal(16 - lane_bits)
        ready_1, ready_2 = Signal(), Signal()
        patch = patches.o.p
        go = Signal()
        m.d.comb += [
            ready_2.eq(~valid_2 | self.o.ready),
            ready_1.eq(~valid_1 | ready_2),
            self.packets.ready.eq(ready_1 & patches.o.valid),
            go.eq(self.packets.ready & self.packets.valid),
            patches.o.ready.eq(go & self.packets.p.last),
        ]
        with m.If(go):
            m.d.sync += index.eq(Mux(self.packets.p.last, 0, index + 1))
        with m.If(ready_1):
            m.d.sync += [
                valid_1.eq(go),
                beat_1.eq(self.packets.payload),
                patch_1.eq(patch),
                here[0].eq(patch.l3_on & (patch.l3_at[lane_bits:] == index)),
                here[1].eq(patch.l4_on & (patch.l4_at[lane_bits:] == index)),
            ]

        # Stage 2: write them.
        port, length = Signal(reset_less=True), Signal(16, reset_less=True)
        with m.If(ready_2):
            m.d.sync += [
                valid_2.eq(valid_1),
                beat_2.eq(beat_1),
                port.eq(patch_1.port),
                length.eq(patch_1.length),
            ]
            for word in range(width // 2):
                place = beat_2.data[16 * word : 16 * word + 16]
                for i, (at, value) in enumerate(
                    ((patch_1.l3_at, patch_1.l3_value), (patch_1.l4_at, patch_1.l4_value))
                ):
                    with m.If(here[i] & (at[1:lane_bits] == word)):
                        m.d.sync += place.eq(Cat(value[8:], value[:8]))
        m.d.comb += [
            self.o.payload.eq(beat_2),
            self.o.valid.eq(valid_2),
            self.port.eq(port),
            self.length.eq(length),
        ]
        return m
