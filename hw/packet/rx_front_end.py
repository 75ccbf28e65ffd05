"""`RxFrontEnd`: from a MAC's receive side to whole packets with one record each.

While a packet is written into the buffer, its first bytes are gathered in a window and its
checksums are summed. With the last beat everything about it is known; the window is then parsed
in a pipeline of fixed length. The input is never stalled, so no part of this needs
backpressure: records and sums are joined by counting cycles.

    i -> registers -+-> PacketBuffer ------------------------------------------> packets
                    +-> HeaderWindow -> HeaderParser -----------+-> meta FIFO -> meta
                    +-> L3Peek -> mask -> MaskedSum (header, L4) +

* Throughput: one beat per cycle, and one packet per cycle for packets of one beat.
* Latency: `META_LATENCY` cycles from the last beat on `i` to `meta`; the packet can be taken by then.
* Registered: all outputs, except that `take.ready` depends on `packets.ready`.
* Dropped, each counted once, the first that applies: disabled (`enable` was 0 at the first beat),
  MAC error, oversize, runt, full. Full is: no room in the buffer, `config.packets` packets waiting,
  or no room for the record. Only the packet concerned is lost.
* `rx_packets` and `rx_bytes` count what was kept.
* An endless packet ends in nothing but one drop; packets before it can still be taken.
* Reset: empties everything. The rest of a packet cut by the reset counts as a packet.
* Checksums: RFC 1071, RFC 9293 section 3.1, RFC 8200 section 8.1. Ethernet padding is left out.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from acceltcp.abi.messages import ChecksumState
from acceltcp.abi.wire import ETHERNET, ETHERNET_MIN_FRAME, IPV4, IPV6, VLAN, IPProtocol

from ..counts import counts_layout
from ..stream.beat import BeatLayout, packet_stream
from ..stream.fifo import StreamFifo
from ..stream.packet_buffer import PacketBuffer
from .checksum import MaskedSum
from .delay import Delay
from .meta import RxMeta
from .parser import HeaderParser
from .window import HeaderWindow, L3Peek

__all__ = ["RxFrontEnd"]

COUNTERS = (
    "rx_packets",
    "rx_bytes",
    "rx_drop_mac_error",
    "rx_drop_runt",
    "rx_drop_oversize",
    "rx_drop_disabled",
    "rx_drop_full",
)

META_PACKETS_MAX = 32
"""Records that may wait or be in the parser: more than its latency, so that it never limits."""


class RxFrontEnd(wiring.Component):
    """The receive front end of one MAC port.

    Members
    -------
    i: In(packet_stream(width, always_ready=True)); `err` on the last beat: the MAC found an error.
    enable: In(1); looked at with the first beat of each packet.
    meta: Out(stream of RxMeta); one record per kept packet, in order.
    take: In(stream of {"keep": 1}); for each record, in order: read the packet out, or free it.
    packets: Out(packet_stream(width)); the packets kept.
    busy: Out(1); something is under way, or a packet waits.
    counts: Out(counts_layout(...)).
    """

    META_LATENCY = 2 + HeaderParser.LATENCY + 3

    def __init__(self, config, port):
        if port not in range(config.ports):
            raise ValueError(f"port must be below config.ports={config.ports}, not {port!r}")
        self._config, self._port = config, port
        super().__init__(
            {
                "i": In(packet_stream(config.width, always_ready=True)),
                "enable": In(1),
                "meta": Out(stream.Signature(RxMeta)),
                "take": In(stream.Signature(data.StructLayout({"keep": 1}))),
                "packets": Out(packet_stream(config.width)),
                "busy": Out(1),
                "counts": Out(counts_layout(*COUNTERS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        width = config.width
        # Number of the beat in its packet; stops at one that only oversize packets reach.
        index_max = config.max_frame // width + 1
        index_bits = index_max.bit_length()

        m.submodules.buffer = buffer = PacketBuffer(width, config.rx_buffer_beats, config.packets)
        m.submodules.window = window = HeaderWindow(width, index_bits)
        m.submodules.peek = peek = L3Peek(width, index_bits)
        m.submodules.parser = parser = HeaderParser()
        meta_depth = min(config.packets, META_PACKETS_MAX)
        m.submodules.metas = metas = StreamFifo(RxMeta, meta_depth, kind="block")
        connect(m, flipped(self.take), buffer.take)
        connect(m, buffer.packets, flipped(self.packets))
        connect(m, metas.o, flipped(self.meta))
        m.d.comb += self.meta.p.port.eq(self._port)

        # Cycle 1: the beat, its number, and whether the packet is wanted.
        beat1 = Signal(BeatLayout(width), reset_less=True)
        valid1 = Signal()
        index1 = Signal(index_bits)
        enabled1 = Signal()
        inside = Signal()
        m.d.sync += valid1.eq(self.i.valid)
        with m.If(self.i.valid):
            m.d.sync += [
                beat1.eq(self.i.payload),
                inside.eq(~self.i.p.last),
                index1.eq(Mux(inside, Mux(index1 == index_max, index_max, index1 + 1), 0)),
                enabled1.eq(Mux(inside, enabled1, self.enable)),
            ]

        # Cycle 2: the length, and what is wrong with the packet; the buffer decides.
        reasons = data.StructLayout({"disabled": 1, "mac_error": 1, "oversize": 1, "runt": 1})
        reason1 = Signal(reasons)
        reason2 = Signal(reasons, reset_less=True)
        valid2 = Signal()
        beat2 = Signal(BeatLayout(width), reset_less=True)
        index2 = Signal(index_bits, reset_less=True)
        length2 = Signal(16, reset_less=True)

        def bytes_above(limit):
            beat, count = divmod(limit, width)
            return (index1 > beat) | ((index1 == beat) & (beat1.count > count))

        m.d.comb += [
            reason1.disabled.eq(~enabled1),
            reason1.mac_error.eq(enabled1 & beat1.err),
            reason1.oversize.eq(enabled1 & ~beat1.err & bytes_above(config.max_frame)),
            reason1.runt.eq(enabled1 & ~beat1.err & ~bytes_above(ETHERNET_MIN_FRAME - 1)),
        ]
        m.d.sync += [
            valid2.eq(valid1),
            beat2.eq(beat1),
            beat2.err.eq(reason1.as_value().any()),
            reason2.eq(reason1),
            index2.eq(index1),
            length2.eq((index1 << exact_log2(width)) + beat1.count),
        ]
        m.d.comb += [buffer.i.payload.eq(beat2), buffer.i.valid.eq(valid2)]
        for listener in (window, peek):
            m.d.comb += [
                listener.i_valid.eq(valid1),
                listener.i_index.eq(index1),
                listener.i_data.eq(beat1.data),
            ]
        m.d.comb += [
            parser.octets.eq(window.octets),
            parser.vlan.eq(peek.vlan),
            parser.length.eq(length2),
            parser.info.eq(peek.info),
        ]

        # Cycle 3: count.
        ended3 = Signal()
        reason3 = Signal(reasons, reset_less=True)
        length3 = Signal(16, reset_less=True)
        m.d.sync += [ended3.eq(valid2 & beat2.last), reason3.eq(reason2), length3.eq(length2)]
        m.d.comb += [
            self.counts.rx_packets.eq(buffer.kept),
            self.counts.rx_bytes.eq(Mux(buffer.kept, length3, 0)),
            self.counts.rx_drop_full.eq(buffer.lost),
        ]
        for name in ("disabled", "mac_error", "oversize", "runt"):
            m.d.comb += self.counts[f"rx_drop_{name}"].eq(ended3 & reason3[name])

        # Room for records: one is taken when a packet is kept, given back when its record leaves.
        # `kept` tells a cycle late, so the decision after it looks at both.
        room = Signal(range(meta_depth + 1), init=meta_depth)
        m.d.sync += room.eq(room - buffer.kept + (self.meta.valid & self.meta.ready))
        m.d.comb += buffer.room.eq((room > 1) | ((room == 1) & ~buffer.kept))

        # The records of kept packets meet the checksums.
        kept = Signal(HeaderParser.LATENCY)  # bit k: k + 1 cycles after `buffer.kept` would be seen
        m.d.comb += kept[0].eq(buffer.kept)
        m.d.sync += kept[1:].eq(kept[:-1])
        good = self._elaborate_sums(m, peek, beat2, valid2, index2)
        m.d.comb += [
            metas.i.payload.eq(parser.meta),
            metas.i.valid.eq(kept[-1]),
        ]
        for name in ("ip_checksum", "l4_checksum"):
            with m.If((parser.meta[name] == ChecksumState.GOOD) & ~good[name]):
                m.d.comb += metas.i.p[name].eq(ChecksumState.BAD)

        m.d.comb += self.busy.eq(
            self.i.valid | valid1 | valid2 | inside | ended3 | kept.any() | (metas.level != 0) | buffer.busy
        )
        return m

    def _elaborate_sums(self, m, peek, beat2, valid2, index2):
        """Both checksums of a packet, at the time at which its record leaves the parser."""
        width = self._config.width
        info = peek.info
        m.submodules.l3_sum = l3_sum = MaskedSum(width)
        m.submodules.l4_sum = l4_sum = MaskedSum(width)

        # Cycle 3: beside `info`.
        valid3, valid4 = Signal(), Signal()
        beat3 = Signal.like(beat2, name="beat3", reset_less=True)
        index3 = Signal.like(index2, name="index3", reset_less=True)
        m.d.sync += [valid3.eq(valid2), beat3.eq(beat2), index3.eq(index2)]

        # Cycle 4: which bytes to add. Addresses and segment lie side by side in both IP versions,
        # so the L4 mask is one run, from the source address to the end of the IP packet.
        end_beat, end_lane = info.end >> exact_log2(width), info.end[: exact_log2(width)]
        before_end, at_end = Signal(), Signal()
        m.d.comb += [before_end.eq(index3 < end_beat), at_end.eq(index3 == end_beat)]

        def from_byte(start):
            beat, lane = divmod(start, width)
            return Cat((index3 > beat) | ((index3 == beat) & (k >= lane)) for k in range(width))

        def by_tag(offset):
            """From this offset in the IP header on."""
            plain = ETHERNET.size + offset
            return Mux(info.vlan, from_byte(plain + VLAN.size), from_byte(plain))

        l3_mask = Signal(width, reset_less=True)
        l4_mask = Signal(width, reset_less=True)
        data4 = Signal(8 * width, reset_less=True)
        ends4 = Signal(2, reset_less=True)
        pseudo4 = Signal(17, reset_less=True)  # pseudo-header but for the addresses
        before = Cat(before_end | (at_end & (k < end_lane)) for k in range(width))
        m.d.sync += [
            valid4.eq(valid3),
            data4.eq(beat3.data),
            ends4.eq(Cat(index3 == 0, beat3.last)),
            l3_mask.eq(by_tag(0) & ~by_tag(IPV4.size)),
            l4_mask.eq(
                Mux(info.ipv6, by_tag(IPV6.byte_offset("src")), by_tag(IPV4.byte_offset("src"))) & before
            ),
            pseudo4.eq(info.l4_length + IPProtocol.TCP),
        ]
        for summer, mask in ((l3_sum, l3_mask), (l4_sum, l4_mask)):
            m.d.comb += [
                summer.i_valid.eq(valid4),
                summer.i_first.eq(ends4[0]),
                summer.i_last.eq(ends4[1]),
                summer.i_data.eq(data4),
                summer.i_mask.eq(mask),
            ]

        # The pseudo-header joins the sum; all ones, after folding, is right.
        m.submodules.pseudo = pseudo = Delay(17, l4_sum.latency)
        m.d.comb += pseudo.i.eq(pseudo4)
        total = Signal(18, reset_less=True)
        l3_total = Signal(16, reset_less=True)
        m.d.sync += [total.eq(l4_sum.o_sum + pseudo.o), l3_total.eq(l3_sum.o_sum)]
        states = data.StructLayout({"ip_checksum": 1, "l4_checksum": 1})
        m.submodules.good = good = Delay(states, HeaderParser.LATENCY - 2 - l4_sum.latency - 1)
        m.d.comb += [
            good.i.ip_checksum.eq(l3_total == 0xFFFF),
            # At most 2 * 0xffff + 6: folding gives 0xffff for these two values only.
            good.i.l4_checksum.eq((total == 0xFFFF) | (total == 2 * 0xFFFF)),
        ]
        return good.o
