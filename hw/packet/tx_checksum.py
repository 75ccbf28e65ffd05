"""`TxChecksum`: inserts IPv4, TCP, UDP and ICMPv6 checksums into the hosts' frames (RFC 1071).

Store and forward. While a frame is written to the packet buffer, the bytes that its sums cover
are picked out by masks; when the sums are known the frame is read out and patched on the way.

    packets --+--> PacketBuffer --------------------------------------+--> patch --> o
              +--> find lengths --> masks --> MaskedSum x 2 --> results --+

The pseudo-header (RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1) comes out of the frame:
addresses and IP length field are part of the mask, and a constant turns the sum of the whole
IP length into that of the segment's. Padding after the IP length is not summed. Checksum fields
count as zero. A UDP checksum of 0 is sent as 0xffff.

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

from acceltcp.abi.fields import Field, Header
from acceltcp.abi.messages import TxFlag
from acceltcp.abi.wire import ICMP, IPV4, IPV6, TCP, IPProtocol

from ..config import NicConfig
from ..counts import counts_layout
from ..stream.beat import BeatLayout, byte_mask, packet_stream
from ..stream.fifo import StreamFifo
from ..stream.packet_buffer import PacketBuffer
from .checksum import MaskedSum, fold
from .meta import TxMeta

__all__ = ["TxChecksum"]

PACKETS = 64
"""Frames inside at a time: more than the pipeline from last beat to readout holds."""

UDP = Header(
    "UDP",
    "UDP header (RFC 768).",
    Field("src_port", 16),
    Field("dst_port", 16),
    Field("length", 16),
    Field("checksum", 16),
)

_OFFSET_BITS = 9
"""Header positions: an 8-bit offset and a little more."""


class _Plan(data.Struct):
    """Where things are in a frame, from its `TxMeta`. All positions are even."""

    ipv4_sum: 1
    l4_sum: 1
    l3: _OFFSET_BITS
    l3_checksum: _OFFSET_BITS
    length_field: _OFFSET_BITS
    addresses: _OFFSET_BITS
    addresses_end: _OFFSET_BITS
    l4: _OFFSET_BITS
    l4_checksum: _OFFSET_BITS
    ip_start: _OFFSET_BITS  # what the IP length counts from


class _Patch(data.Struct):
    """What to write into a frame on its way out."""

    port: 1
    length: 16
    l3_on: 1
    l3_at: _OFFSET_BITS
    l3_value: 16
    l4_on: 1
    l4_at: _OFFSET_BITS
    l4_value: 16


class _Pending(data.Struct):
    """What a frame's sums still need to become a `_Patch`."""

    discard: 1
    udp: 1
    constant: 16  # added to the sum: protocol, and the IP length made the segment's
    patch: _Patch


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
        return 20 if self._width == 8 else 21

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
        m.submodules.sums = sums = _Sums(self._width)
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
        connect(m, buffer=buffer.packets, patcher=patcher.packets)
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


class _Sums(wiring.Component):
    """From beats to finished checksums, one frame after the other, at a fixed pace."""

    def __init__(self, width):
        self._width = width
        super().__init__(
            {
                "i_valid": In(1),
                "i_beat": In(BeatLayout(width)),
                "i_meta": In(TxMeta),
                "o_valid": Out(1),
                "o_patch": Out(_Patch),
                "o_discarded": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        stage = self._stage_input(m)
        stage = self._stage_lengths(m, *stage)
        stage = self._stage_ends(m, *stage)
        stage = self._stage_relative(m, *stage)
        stage = self._stage_masks(m, *stage)
        self._stage_sums(m, *stage)
        return m

    def _register(self, m, name, beat, flags):
        """Carry a beat and its flags (valid, first, last) one stage on."""
        carried = Signal(BeatLayout(self._width), name=f"beat_{name}", reset_less=True)
        valid = Signal(name=f"valid_{name}")
        ends = Signal(2, name=f"ends_{name}", reset_less=True)
        m.d.sync += [carried.eq(beat), valid.eq(flags[0]), ends.eq(flags[1:])]
        return carried, Cat(valid, ends)

    def _stage_input(self, m):
        """Number the beats, turn the meta into positions, note what the sums will need."""
        meta = self.i_meta
        flag = {bit: (meta.flags & bit) != 0 for bit in TxFlag}
        ipv6, udp, icmpv6 = flag[TxFlag.IPV6], flag[TxFlag.UDP], flag[TxFlag.ICMPV6]
        index = Signal(16 - exact_log2(self._width))
        first = Signal(init=1)
        with m.If(self.i_valid):
            m.d.sync += [
                first.eq(self.i_beat.last),
                index.eq(Mux(self.i_beat.last, 0, index + 1)),
            ]
        plan = Signal(_Plan, reset_less=True)
        index_1 = Signal.like(index, reset_less=True)
        l4_checksum = Mux(
            udp,
            UDP.byte_offset("checksum"),
            Mux(icmpv6, ICMP.byte_offset("checksum"), TCP.byte_offset("checksum")),
        )
        protocol = Mux(udp, IPProtocol.UDP, Mux(icmpv6, IPProtocol.ICMPV6, IPProtocol.TCP))
        beyond = Signal(16)  # bytes that the IP length counts beside the segment
        m.d.comb += beyond.eq(meta.l4_offset - meta.l3_offset - Mux(ipv6, IPV6.size, 0))
        m.d.sync += [
            index_1.eq(index),
            plan.ipv4_sum.eq(flag[TxFlag.IPV4_CHECKSUM]),
            plan.l4_sum.eq(flag[TxFlag.L4_CHECKSUM]),
            plan.l3.eq(meta.l3_offset),
            plan.l3_checksum.eq(meta.l3_offset + IPV4.byte_offset("checksum")),
            plan.length_field.eq(
                meta.l3_offset
                + Mux(ipv6, IPV6.byte_offset("payload_length"), IPV4.byte_offset("total_length"))
            ),
            plan.addresses.eq(
                meta.l3_offset + Mux(ipv6, IPV6.byte_offset("src"), IPV4.byte_offset("src"))
            ),
            plan.addresses_end.eq(meta.l3_offset + Mux(ipv6, IPV6.size, IPV4.size)),
            plan.ip_start.eq(meta.l3_offset + Mux(ipv6, IPV6.size, 0)),
            plan.l4.eq(meta.l4_offset),
            plan.l4_checksum.eq(meta.l4_offset + l4_checksum),
        ]

        m.submodules.pending = pending = StreamFifo(_Pending, PACKETS)
        self._pending = pending
        patch = pending.i.p.patch
        m.d.comb += [
            pending.i.valid.eq(self.i_valid & self.i_beat.last),
            pending.i.p.discard.eq(self.i_beat.err),
            pending.i.p.udp.eq(udp),
            # Subtraction in one's complement; the protocol's number is small, so one fold does.
            pending.i.p.constant.eq(fold((~beyond)[:16] + protocol)),
            patch.port.eq(meta.port),
            patch.length.eq(meta.length),
            patch.l3_on.eq(flag[TxFlag.IPV4_CHECKSUM]),
            patch.l3_at.eq(meta.l3_offset + IPV4.byte_offset("checksum")),
            patch.l4_on.eq(flag[TxFlag.L4_CHECKSUM]),
            patch.l4_at.eq(meta.l4_offset + l4_checksum),
        ]
        flags = Cat(self.i_valid, first, self.i_beat.last)
        return plan, index_1, *self._register(m, "1", self.i_beat, flags)

    def _word(self, m, name, position, index, beat):
        """The 16-bit word at an even position, and whether it is in this beat; registered."""
        lane_bits = exact_log2(self._width)
        words = data.ArrayLayout(16, self._width // 2)
        here, word = Signal(name=f"{name}_here", reset_less=True), Signal(16, name=name, reset_less=True)
        m.d.sync += [
            here.eq(position[lane_bits:] == index),
            word.eq(data.View(words, beat.data)[position[1:lane_bits]]),
        ]
        return here, word

    def _stage_lengths(self, m, plan, index, beat, flags):
        """Fetch the header length and the IP length out of the frame."""
        header_here, header = self._word(m, "header_word", plan.l3, index, beat)
        length_here, length = self._word(m, "length_word", plan.length_field, index, beat)
        plan_2, index_2 = Signal(_Plan, reset_less=True), Signal.like(index, reset_less=True)
        m.d.sync += [plan_2.eq(plan), index_2.eq(index)]
        found = (header_here, header[:4], length_here, Cat(length[8:], length[:8]))
        return plan_2, index_2, found, *self._register(m, "2", beat, flags)

    def _stage_ends(self, m, plan, index, found, beat, flags):
        """Where header and segment end. Both fields lie before any byte that depends on them."""
        header_here, header_words, length_here, length = found
        header_end = Signal(_OFFSET_BITS, reset_less=True)
        segment_end = Signal(17, reset_less=True)
        with m.If(flags[0] & header_here):
            m.d.sync += header_end.eq(plan.l3 + (header_words << 2))
        with m.If(flags[0] & length_here):
            m.d.sync += segment_end.eq(plan.ip_start + length)
        plan_3, index_3 = Signal(_Plan, reset_less=True), Signal.like(index, reset_less=True)
        m.d.sync += [plan_3.eq(plan), index_3.eq(index)]
        return plan_3, index_3, header_end, segment_end, *self._register(m, "3", beat, flags)

    def _stage_relative(self, m, plan, index, header_end, segment_end, beat, flags):
        """Every position relative to this beat, from 0 (before it) to width (after it)."""
        lane_bits = exact_log2(self._width)

        def relative(name, position):
            position = Value.cast(position)
            at = Signal(lane_bits + 1, name=f"{name}_at", reset_less=True)
            with m.If(position[lane_bits:] < index):
                m.d.sync += at.eq(0)
            with m.Elif(position[lane_bits:] > index):
                m.d.sync += at.eq(self._width)
            with m.Else():
                m.d.sync += at.eq(position[:lane_bits])
            return at

        at = {
            name: relative(name, position)
            for name, position in (
                ("l3", plan.l3),
                ("header_end", header_end),
                ("addresses", plan.addresses),
                ("addresses_end", plan.addresses_end),
                ("l4", plan.l4),
                ("segment_end", segment_end),
                # Fields of one word: `width` when they are elsewhere.
                ("l3_checksum", plan.l3_checksum),
                ("l4_checksum", plan.l4_checksum),
                ("length_field", plan.length_field),
            )
        }
        on = Signal(2, name="on_4", reset_less=True)
        m.d.sync += on.eq(Cat(plan.ipv4_sum, plan.l4_sum))
        # A one-word field before this beat would be taken for one at its start.
        fields = {}
        for name in ("l3_checksum", "l4_checksum", "length_field"):
            fields[name] = Signal(name=f"{name}_here", reset_less=True)
            m.d.sync += fields[name].eq(plan[name][lane_bits:] == index)
        return at, fields, on, *self._register(m, "4", beat, flags)

    def _stage_masks(self, m, at, fields, on, beat, flags):
        """The masks, in two steps: runs of bytes, then their combination."""
        width = self._width

        def run(name, mask):
            bits = Signal(width, name=f"{name}_run", reset_less=True)
            m.d.sync += bits.eq(mask)
            return bits

        def below(name):
            # Even positions: both bytes of a word go together.
            words = Cat(at[name][1:] > i for i in range(width // 2))
            return Cat(bit.replicate(2) for bit in words)

        def word(name):
            bits = (fields[name] & (at[name][1:-1] == i) for i in range(width // 2))
            return Cat(bit.replicate(2) for bit in bits)

        header = run("header", below("header_end") & ~below("l3"))
        header_hole = run("header_hole", word("l3_checksum"))
        addresses = run("addresses", below("addresses_end") & ~below("addresses") | word("length_field"))
        segment = run("segment", byte_mask(at["segment_end"], width) & ~below("l4"))
        segment_hole = run("segment_hole", word("l4_checksum"))
        present = run("present", byte_mask(beat.count, width))
        on_5 = Signal(2, reset_less=True)
        m.d.sync += on_5.eq(on)
        beat, flags = self._register(m, "5", beat, flags)

        header_mask = run("header_mask", Mux(on_5[0], header & ~header_hole & present, 0))
        l4_mask = run("l4_mask", Mux(on_5[1], (addresses | segment & ~segment_hole) & present, 0))
        return header_mask, l4_mask, *self._register(m, "6", beat, flags)

    def _stage_sums(self, m, header_mask, l4_mask, beat, flags):
        """Sum, then finish the checksums."""
        m.submodules.header_sum = header_sum = MaskedSum(self._width)
        m.submodules.l4_sum = l4_sum = MaskedSum(self._width)
        for total, mask in ((header_sum, header_mask), (l4_sum, l4_mask)):
            m.d.comb += [
                total.i_data.eq(beat.data),
                total.i_mask.eq(mask),
                Cat(total.i_valid, total.i_first, total.i_last).eq(flags),
            ]
        pending = self._pending
        m.d.comb += pending.o.ready.eq(l4_sum.o_valid)

        carried = [Signal(_Pending, name=f"pending{i}", reset_less=True) for i in range(3)]
        valid = Signal(3)
        header = [Signal(16, name=f"header{i}", reset_less=True) for i in range(3)]
        total = Signal(17, reset_less=True)
        folded, l4 = Signal(16, reset_less=True), Signal(16, reset_less=True)
        m.d.sync += [
            valid.eq(Cat(l4_sum.o_valid, valid)),
            carried[0].eq(pending.o.payload),
            carried[1].eq(carried[0]),
            carried[2].eq(carried[1]),
            header[0].eq(~header_sum.o_sum),
            header[1].eq(header[0]),
            header[2].eq(header[1]),
            total.eq(l4_sum.o_sum + pending.o.p.constant),
            folded.eq(fold(total)),
            l4.eq(Mux(carried[1].udp & folded.all(), 0xFFFF, ~folded)),
        ]
        m.d.comb += [
            self.o_valid.eq(valid[2] & ~carried[2].discard),
            self.o_discarded.eq(valid[2] & carried[2].discard),
            self.o_patch.eq(carried[2].patch),
            self.o_patch.l3_value.eq(header[2]),
            self.o_patch.l4_value.eq(l4),
        ]


class _Patcher(wiring.Component):
    """Reads frames whose checksums are known out of the buffer and writes them in."""

    def __init__(self, width):
        self._width = width
        super().__init__(
            {
                "patch_valid": In(1),
                "patch": In(_Patch),
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
        m.submodules.patches = patches = StreamFifo(_Patch, PACKETS)
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
        patch_1 = Signal(_Patch, reset_less=True)
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
