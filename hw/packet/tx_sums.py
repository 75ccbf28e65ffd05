"""`TxSums`: the checksums of frames, computed as their beats go by (RFC 1071).

    beat -> positions -> fetch IP header length and IP length -> ends -> masks -> MaskedSum x 2 -> finish

The pseudo-header (RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1) comes out of the frame:
addresses and IP length field are part of the mask, and a constant turns the whole IP length into
the segment's. Padding after the IP length is not summed. Checksum fields count as zero. A UDP
checksum of 0 becomes 0xffff.

* Latency: 9 cycles and that of `MaskedSum` from a frame's last beat to its `Patch`.
* Throughput: one beat per cycle, and one frame per cycle for frames of one beat. No backpressure.
* Registered: every stage. At most `PACKETS` frames may be inside.
* Reset: forgets what is inside. Data registers are not cleared.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from acceltcp.abi.fields import Field, Header
from acceltcp.abi.messages import TxFlag
from acceltcp.abi.wire import ICMP, IPV4, IPV6, TCP, IPProtocol

from ..stream.beat import BeatLayout, byte_mask
from ..stream.fifo import StreamFifo
from .checksum import MaskedSum, fold
from .delay import Delay
from .meta import TxMeta

__all__ = ["PACKETS", "Patch", "TxSums"]

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


class Patch(data.Struct):
    """What to write into a frame on its way out."""

    port: 1
    length: 16
    l3_on: 1
    l3_at: _OFFSET_BITS
    l3_value: 16
    l4_on: 1
    l4_at: _OFFSET_BITS
    l4_value: 16


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


class _Pending(data.Struct):
    """What a frame's sums still need to become a `Patch`."""

    discard: 1
    udp: 1
    constant: 16  # added to the sum: protocol, and the IP length made the segment's
    patch: Patch


class TxSums(wiring.Component):
    """Beats in, one `Patch` per good frame out.

    Members
    -------
    i_valid, i_beat, i_meta: a beat, and the `TxMeta` of its frame.
    o_valid, o_patch: what is to be written into the oldest frame that is not discarded.
    o_discarded: a frame with `err` has come to its end; it gives no patch.
    """

    def __init__(self, width):
        self._width = width
        super().__init__(
            {
                "i_valid": In(1),
                "i_beat": In(BeatLayout(width)),
                "i_meta": In(TxMeta),
                "o_valid": Out(1),
                "o_patch": Out(Patch),
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

    def _register(self, m, name, count, flags):
        """Carry a beat's count and flags (valid, first, last) one stage on; its data wait elsewhere."""
        carried = Signal.like(self.i_beat.count, name=f"count_{name}", reset_less=True)
        valid = Signal(name=f"valid_{name}")
        ends = Signal(2, name=f"ends_{name}", reset_less=True)
        m.d.sync += [carried.eq(count), valid.eq(flags[0]), ends.eq(flags[1:])]
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

        m.submodules.pending = pending = StreamFifo(_Pending, PACKETS, kind="block")
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
        octets = Signal(8 * self._width, name="octets_1", reset_less=True)
        m.d.sync += octets.eq(self.i_beat.data)
        # The data are needed once more, in stage 6.
        m.submodules.octets = self._octets = Delay(len(octets), 5, kind="block")
        m.d.comb += self._octets.i.eq(octets)
        return plan, index_1, octets, *self._register(m, "1", self.i_beat.count, flags)

    def _word(self, m, name, position, index, octets):
        """The 16-bit word at an even position, and whether it is in this beat; registered."""
        lane_bits = exact_log2(self._width)
        words = data.ArrayLayout(16, self._width // 2)
        here, word = Signal(name=f"{name}_here", reset_less=True), Signal(16, name=name, reset_less=True)
        m.d.sync += [
            here.eq(position[lane_bits:] == index),
            word.eq(data.View(words, octets)[position[1:lane_bits]]),
        ]
        return here, word

    def _stage_lengths(self, m, plan, index, octets, count, flags):
        """Fetch the header length and the IP length out of the frame."""
        header_here, header = self._word(m, "header_word", plan.l3, index, octets)
        length_here, length = self._word(m, "length_word", plan.length_field, index, octets)
        plan_2, index_2 = Signal(_Plan, reset_less=True), Signal.like(index, reset_less=True)
        m.d.sync += [plan_2.eq(plan), index_2.eq(index)]
        found = (header_here, header[:4], length_here, Cat(length[8:], length[:8]))
        return plan_2, index_2, found, *self._register(m, "2", count, flags)

    def _stage_ends(self, m, plan, index, found, count, flags):
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
        return plan_3, index_3, header_end, segment_end, *self._register(m, "3", count, flags)

    def _stage_relative(self, m, plan, index, header_end, segment_end, count, flags):
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
        return at, fields, on, *self._register(m, "4", count, flags)

    def _stage_masks(self, m, at, fields, on, count, flags):
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
        present = run("present", byte_mask(count, width))
        on_5 = Signal(2, reset_less=True)
        m.d.sync += on_5.eq(on)
        _, flags = self._register(m, "5", count, flags)

        header_mask = run("header_mask", Mux(on_5[0], header & ~header_hole & present, 0))
        l4_mask = run("l4_mask", Mux(on_5[1], (addresses | segment & ~segment_hole) & present, 0))
        _, flags = self._register(m, "6", count, flags)
        return header_mask, l4_mask, flags

    def _stage_sums(self, m, header_mask, l4_mask, flags):
        """Sum, then finish the checksums."""
        m.submodules.header_sum = header_sum = MaskedSum(self._width)
        m.submodules.l4_sum = l4_sum = MaskedSum(self._width)
        for total, mask in ((header_sum, header_mask), (l4_sum, l4_mask)):
            m.d.comb += [
                total.i_data.eq(self._octets.o),
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
