"""`ReplyBuilder`: turns `Reply` records into frames of 54 to 98 bytes, checksums included.

Frame: Ethernet, the client's 802.1Q tag if it had one, IPv4 (DF, identification 0, TTL 64) or
IPv6 (hop limit 64), TCP. Options of a SYN-ACK in this order: MSS; then SACK-permitted with
timestamps, or either alone, padded in front with NOPs to whole words; then NOP and window scale
(RFC 9293 section 3.2, RFC 2018, RFC 7323). ECE is set alone when ECN is granted (RFC 3168 section
6.1.1). An ACK or RST carries two NOPs and timestamps (RFC 7323 appendix A), or no option.

* Latency: 9 cycles from `i` to the first beat (`latency`): `ReplyChecksum` and a FIFO.
* Throughput: a beat per cycle without a gap between frames. With 64-byte beats an untagged IPv4
  reply with MSS alone or without options takes one cycle, every other at most two.
* Registered: `i.ready`; `o` comes from flip-flops through a count of beats. `o.ready` goes to the
  enable of the frame register and no further.
* Overflow: cannot happen; `i.ready` goes low. Reset: forgets all replies.

Frames may be shorter than 60 bytes and bytes past `count` are not cleared; padding is the
business of who feeds the wire.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.wire import ETHERNET, IPV4, IPV6, TCP, VLAN, EtherType, IPProtocol, TCPFlag, TCPOption

from ..abi import wire_bytes
from ..packet.meta import Reply, ReplyKind
from ..stream.beat import packet_stream
from ..stream.fifo import StreamFifo

__all__ = ["ReplyBuilder", "ReplyChecksum"]

REPLIES = 16
"""Records that may be inside; more than the latency of the checksums, so that small replies flow
one a cycle."""

HOPS = 64
OPTION_WORDS_MAX = 5
FRAME_BYTES_MAX = ETHERNET.size + VLAN.size + IPV6.size + TCP.size + 4 * OPTION_WORDS_MAX

_Sums = data.StructLayout({"ip": 16, "tcp": 16})

_MSS = TCPOption.MSS << 8 | TCPOption.MSS.length
_SACK = TCPOption.SACK_PERMITTED << 8 | TCPOption.SACK_PERMITTED.length
_TIMESTAMPS = TCPOption.TIMESTAMPS << 8 | TCPOption.TIMESTAMPS.length
_PADDING = TCPOption.NOP << 8 | TCPOption.NOP
_WSCALE = TCPOption.NOP << 24 | TCPOption.WSCALE << 16 | TCPOption.WSCALE.length << 8


def _option_words(reply):
    """The five option words as numbers, unused ones zero, and how many are used."""
    wscale = Mux(reply.wscale_present, C(_WSCALE, 32) | reply.wscale, 0)
    both = Cat(C(_TIMESTAMPS, 16), Mux(reply.sack, C(_SACK, 16), C(_PADDING, 16)))
    sack_alone = C(_PADDING << 16 | _SACK, 32)
    words = [
        Cat(reply.mss, C(_MSS, 16)),
        Mux(reply.timestamps, both, Mux(reply.sack, sack_alone, wscale)),
        Mux(reply.timestamps, reply.tsval, Mux(reply.sack, wscale, 0)),
        Mux(reply.timestamps, reply.tsecr, 0),
        Mux(reply.timestamps, wscale, 0),
    ]
    used = 1 + Mux(reply.timestamps, 3, reply.sack) + reply.wscale_present
    # Not a SYN-ACK: only timestamps.
    plain = [C(_PADDING << 16 | _TIMESTAMPS, 32), reply.tsval, reply.tsecr, C(0, 32), C(0, 32)]
    syn = reply.kind == ReplyKind.SYN_ACK
    words = [
        Mux(syn, word, Mux(reply.timestamps, other, 0)) for word, other in zip(words, plain, strict=True)
    ]
    return words, Mux(syn, used, Mux(reply.timestamps, 3, 0))


def _tcp_flags(reply):
    syn_ack = TCPFlag.SYN | TCPFlag.ACK | Mux(reply.ecn, int(TCPFlag.ECE), 0)
    plain = TCPFlag.ACK | Mux(reply.kind == ReplyKind.RST, int(TCPFlag.RST), 0)
    return Mux(reply.kind == ReplyKind.SYN_ACK, syn_ack, plain)


def _halves(value):
    value = Value.cast(value)
    return [value[at : at + 16] for at in range(0, len(value), 16)]


class ReplyChecksum(wiring.Component):
    """The two checksums of a reply: one's complement sums as adder trees (RFC 1071).

    Latency: `latency` cycles. Throughput: one reply per cycle; cannot be stalled. The order of
    the words does not matter to the sum, so the frame need not be laid out for it.

    Members
    -------
    i: In(Reply)
    o: the checksum fields of what was on `i` `latency` cycles ago; `ip` is for IPv4 only.
    """

    latency = 6

    def __init__(self):
        super().__init__({"i": In(Reply), "o": Out(_Sums)})

    def elaborate(self, platform):
        m = Module()

        def registers(name, values):
            """Each value in a register; the width is the value's."""
            out = []
            for number, value in enumerate(values):
                register = Signal(len(value), name=f"{name}{number}", reset_less=True)
                m.d.sync += register.eq(value)
                out.append(register)
            return out

        def sums(name, values, group):
            """Sums of up to `group` values each, registered."""
            groups = [values[at : at + group] for at in range(0, len(values), group)]
            return registers(name, [sum(part[1:], part[0]) for part in groups])

        # Stage 1: the words of the segment and its pseudo-header. The prefix of an IPv4-mapped
        # address counts 0xffff, which is zero to this sum.
        reply = self.i
        words, used = _option_words(reply)
        segment = Signal(7)
        m.d.comb += segment.eq(TCP.size + Cat(C(0, 2), used))
        addresses = registers("address", [*_halves(reply.src)[:2], *_halves(reply.dst)[:2]])
        rest = registers(
            "word",
            [
                *_halves(reply.src)[2:],
                *_halves(reply.dst)[2:],
                *(half for word in words for half in _halves(word)),
                *_halves(reply.seq),
                *_halves(reply.ack),
                Value.cast(reply.src_port),
                Value.cast(reply.dst_port),
                Value.cast(reply.window),
            ],
        )
        (length,) = registers("length", [segment])
        (flags,) = registers("flags", [_tcp_flags(reply)])

        # Stages 2 to 4: add. The four words of the IPv4 addresses count in both sums.
        # The data offset stands in the upper 4 bits of its word and is length / 4.
        header_word = Cat(flags, C(0, 12 - len(flags)), length[2:6])
        partial = sums("partial", [*addresses, *rest, header_word, length + IPProtocol.TCP], 4)
        first_word = int.from_bytes(IPV4.pack(version=4, ihl=5)[:2], "big")
        fragment_word = int.from_bytes(IPV4.pack(dont_fragment=1)[6:8], "big")
        hops_word = HOPS << 8 | IPProtocol.TCP
        constant = first_word + fragment_word + hops_word + IPV4.size
        (ip_rest,) = registers("ip_rest", [length + constant])
        (ip_sum,) = registers("ip", [partial[0] + ip_rest])
        middle = sums("middle", partial, 4)
        (ip_total,) = registers("ip_total", [ip_sum])
        (tcp_total,) = sums("total", middle, 4)

        # Stages 5 and 6: fold the carries twice and complement.
        def fold(value):
            return value[:16] + value[16:]

        folded = registers("folded", [fold(ip_total), fold(tcp_total)])
        done = registers("checksum", [~fold(value)[:16] for value in folded])
        m.d.comb += [self.o.ip.eq(done[0]), self.o.tcp.eq(done[1])]
        return m


class ReplyBuilder(wiring.Component):
    """Builds the frames.

    Members
    -------
    i: In(stream of Reply)
    o: Out(packet_stream(config.width))
    port: MAC port of the packet on `o`.
    busy: replies are inside.
    """

    latency = ReplyChecksum.latency + 3

    def __init__(self, config):
        self._width = config.width
        super().__init__(
            {
                "i": In(stream.Signature(Reply)),
                "o": Out(packet_stream(config.width)),
                "port": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        width = self._width

        # Records wait while their checksums are computed. The second FIFO has room for as much as
        # fits into the first, so it is never full.
        m.submodules.replies = replies = StreamFifo(Reply, REPLIES, kind="block")
        m.submodules.checksum = checksum = ReplyChecksum()
        m.submodules.sums = sums = StreamFifo(_Sums, replies.capacity)
        valid = Signal(checksum.latency)
        m.d.sync += valid.eq(Cat(self.i.valid & self.i.ready, valid))
        m.d.comb += [
            replies.i.valid.eq(self.i.valid),
            replies.i.payload.eq(self.i.payload),
            self.i.ready.eq(replies.i.ready),
            checksum.i.eq(self.i.payload),
            sums.i.valid.eq(valid[-1]),
            sums.i.payload.eq(checksum.o),
        ]

        octets, length = self._frame(m, replies.o.p, sums.o.p)

        # The frame moves out of a shift register from its front.
        beats_max = -(-FRAME_BYTES_MAX // width)
        frame = Signal(8 * width * beats_max, reset_less=True)
        left = Signal(range(FRAME_BYTES_MAX + 1))
        port = Signal(reset_less=True)
        load = Signal()
        available = Signal()
        last = Signal()
        m.d.comb += [
            last.eq(left <= width),
            self.o.valid.eq(left != 0),
            self.o.p.data.eq(frame[: 8 * width]),
            self.o.p.count.eq(Mux(last, left, width)),
            self.o.p.last.eq(last),
            self.port.eq(port),
            available.eq(replies.o.valid & sums.o.valid),
            load.eq(available & (~self.o.valid | self.o.ready & last)),
            replies.o.ready.eq(load),
            sums.o.ready.eq(load),
        ]
        with m.If(load):
            m.d.sync += [frame.eq(octets), left.eq(length), port.eq(replies.o.p.port)]
        with m.Elif(self.o.valid & self.o.ready):
            m.d.sync += [frame.eq(frame >> 8 * width), left.eq(Mux(last, 0, left - width))]

        m.d.comb += self.busy.eq(self.i.valid | (replies.level != 0) | self.o.valid)
        return m

    def _frame(self, m, reply, sums):
        """The frame with byte 0 least significant, and its length."""
        words, used = _option_words(reply)
        segment = Signal(7)
        tcp_words = Signal(4)
        m.d.comb += [tcp_words.eq(TCP.size // 4 + used), segment.eq(Cat(C(0, 2), tcp_words))]
        tcp = Cat(
            wire_bytes(
                TCP,
                src_port=reply.src_port,
                dst_port=reply.dst_port,
                seq=reply.seq,
                ack=reply.ack,
                data_offset=tcp_words,
                flags=_tcp_flags(reply),
                window=reply.window,
                checksum=sums.tcp,
            ),
            *(Cat(word[at : at + 8] for at in (24, 16, 8, 0)) for word in words),
        )
        ipv4 = wire_bytes(
            IPV4,
            version=4,
            ihl=IPV4.size // 4,
            total_length=IPV4.size + segment,
            dont_fragment=1,
            ttl=HOPS,
            protocol=IPProtocol.TCP,
            checksum=sums.ip,
            src=reply.src,
            dst=reply.dst,
        )
        ipv6 = wire_bytes(
            IPV6,
            version=6,
            payload_length=segment,
            next_header=IPProtocol.TCP,
            hop_limit=HOPS,
            src=reply.src,
            dst=reply.dst,
        )
        # One choice per byte and step: IP version, then tag.
        packet = Signal(8 * (IPV6.size + TCP.size + 4 * OPTION_WORDS_MAX))
        octets = Signal(8 * FRAME_BYTES_MAX)
        ethertype = Mux(reply.ipv6, int(EtherType.IPV6), int(EtherType.IPV4))
        ethernet = wire_bytes(
            ETHERNET,
            dst=reply.dst_mac,
            src=reply.src_mac,
            ethertype=Mux(reply.vlan, int(EtherType.VLAN), ethertype),
        )
        tag = wire_bytes(VLAN, tci=reply.vlan_tci, ethertype=ethertype)
        length = Signal(range(FRAME_BYTES_MAX + 1))
        m.d.comb += [
            packet.eq(Mux(reply.ipv6, Cat(ipv6, tcp), Cat(ipv4, tcp))),
            octets.eq(Mux(reply.vlan, Cat(ethernet, tag, packet), Cat(ethernet, packet))),
            length.eq(
                ETHERNET.size
                + Mux(reply.vlan, VLAN.size, 0)
                + Mux(reply.ipv6, IPV6.size, IPV4.size)
                + segment
            ),
        ]
        return octets, length
