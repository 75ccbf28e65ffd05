"""`SpliceRewriter`: makes packets of one connection packets of the other one, and sends them.

    records --+                +-> HeaderWindow -> _Translator -> FIFO of new headers --+
              +--> join beats -+                                                        +-> HeaderOverlay -> o
    packets --+                +-> VlanShift -> FIFO of beats --------------------------+

While the header goes through a pipeline that never stalls, the beats wait. What changes: addresses, 802.1Q tag,
ports, sequence and acknowledgment numbers, window, timestamps, SACK blocks, ECN, TTL or hop limit, checksums
(RFC 1624). All else leaves as it came, Ethernet padding too. A frame that loses its tag may be shorter than
60 bytes: TxPort pads it.

* A packet with a TTL or hop limit of 0 or 1 is dropped (RFC 1812 section 5.3.1, RFC 8200 section 3).
* Without the flag ACK the acknowledgment number and TSecr mean nothing and are left alone; SACK blocks are not.
* Windows are shifted whatever the flags. Shifted up, the largest is 65,535.
* Options: see `OptionEditor`, also for malformed lists and duplicates.
* A packet whose checksum is wrong leaves with one that is wrong: `ChecksumUpdate`.

* Latency: `latency` (25) cycles from the beat with the last byte of the TCP header to the first beat on `o`.
* Throughput: one beat per cycle, and one packet per cycle for packets of one beat. A packet that needs one beat more
  because of an added tag takes a cycle more.
* Registered: `o` and `port`. `packets[k].ready` depends on `records` and on registers; `records.ready` on the packet.
* Overflow: cannot happen. At most `PACKETS` packets are inside, and a new header has room when it comes; beats wait
  outside while their FIFO is full. A record without its packet, or the reverse, stands still.
* Reset: forgets all packets inside, also those of which only a part has come in or gone out.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect
from amaranth.utils import exact_log2

from acceltcp.abi.wire import (
    ETHERNET,
    IPV4,
    IPV6,
    TCP,
    TCP_OPTION_BYTES_MAX,
    VLAN,
    WINDOW_MAX,
    EtherType,
    TCPFlag,
)

from ..abi import wire_field
from ..config import NicConfig
from ..counts import counts_layout
from ..packet.checksum_update import ChecksumUpdate, update_latency
from ..packet.delay import Delay
from ..packet.edit import HeaderOverlay, NewHeader, OptionEditor, VlanShift
from ..packet.window import WINDOW_BYTES, HeaderWindow
from ..stream.beat import BeatLayout, packet_stream
from ..stream.buffer import SkidBuffer
from ..stream.fifo import StreamFifo
from .splice_records import SpliceRecord, Translation

__all__ = ["SpliceRewriter"]

PACKETS = 32
"""Packets inside, from their first beat in to their last one out: more than a packet of one beat stays cycles."""

BEATS = 64
"""Beats that wait for their header: those of the longest header at width 8, and what comes while it is translated."""

_LINK_SIZES = (ETHERNET.size, ETHERNET.size + VLAN.size)  # without and with a tag
_OPTION_WORDS = TCP_OPTION_BYTES_MAX // 2  # of 16 bits
_ECN = {IPV4: 0x03, IPV6: 0x30}
"""Where the ECN field lies in the second byte of the header (RFC 3168 section 5, RFC 8200 section 7)."""
_ECN_FLAGS = TCPFlag.ECE | TCPFlag.CWR


class Fields(data.Struct):
    """What changes in a header, before or after, beside options and checksums."""

    second: 8  # byte of the IP header, with the ECN field
    hops: 8
    src: 128  # IPv4: the upper 96 bits are 0
    dst: 128
    src_port: 16
    dst_port: 16
    seq: 32
    ack: 32
    flags: 8
    window: 16


_TCP_FIELDS = ("src_port", "dst_port", "seq", "ack", "flags", "window")
_SUMMED = ("src", "dst", *_TCP_FIELDS)
"""What of it the TCP checksum covers."""


class Frame(data.Struct):
    """What else makes up the new header."""

    dst_mac: 48
    src_mac: 48
    vlan: 1
    vlan_tci: 16
    ipv6: 1
    option_words: SpliceRecord.as_shape()["option_words"].shape
    port: Translation.as_shape()["port"].shape
    drop: 1


class SpliceRewriter(wiring.Component):
    """See the module's docstring.

    Members
    -------
    records: In(stream(SpliceRecord)): one per packet, in order; taken with the packet's last beat.
    packets: In(packet_stream(width)).array(ports): the packet of a record comes on `packets[record.in_port]`. Plain
        TCP over IPv4 without options or IPv6 without extension headers, at most one tag, at least 60 bytes; lengths right.
    o: Out(packet_stream(width)); port: Out(1): MAC port of the packet on `o`, with every beat.
    mac: In(48).array(ports): source addresses, first byte most significant.
    busy: a packet is inside, or its record waits.
    counts: splice_drop_hops.
    """

    def __init__(self, config):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        self._width, self._ports = config.width, config.ports
        super().__init__(
            {
                "records": In(stream.Signature(SpliceRecord)),
                "packets": In(packet_stream(config.width)).array(config.ports),
                "o": Out(packet_stream(config.width)),
                "port": Out(1),
                "mac": In(48).array(config.ports),
                "busy": Out(1),
                "counts": Out(counts_layout("splice_drop_hops")),
            }
        )

    @property
    def latency(self):
        """Cycles from the transfer of the beat with the TCP header's last byte to the first beat on `o`, if idle."""
        return 1 + _Translator.LATENCY + 2 + 1  # HeaderWindow, FIFO, SkidBuffer

    def elaborate(self, platform):
        m = Module()
        width = self._width
        record = self.records.p
        m.submodules.window = window = HeaderWindow(width, range(-(-WINDOW_BYTES // width) + 1))
        m.submodules.shift = shift = VlanShift(width)
        m.submodules.beats = beats = StreamFifo(BeatLayout(width), BEATS, kind="block")
        m.submodules.translator = translator = _Translator(self._ports)
        m.submodules.headers = headers = StreamFifo(NewHeader(WINDOW_BYTES), PACKETS)
        m.submodules.overlay = overlay = HeaderOverlay(width, WINDOW_BYTES)
        out_layout = data.StructLayout({"beat": BeatLayout(width), "port": 1})
        m.submodules.leave = leave = SkidBuffer(out_layout)

        # The way in.
        beat, available = Signal(BeatLayout(width)), Signal()
        inside = Signal(range(PACKETS + 1))
        index = Signal(range(-(-WINDOW_BYTES // width) + 1))
        first, room = Signal(init=1), Signal(init=1)
        go, last = Signal(), Signal()
        for k, packets in enumerate(self.packets):
            chosen = record.in_port == k if self._ports > 1 else C(1)
            with m.If(chosen):
                m.d.comb += [
                    beat.eq(packets.payload),
                    available.eq(packets.valid & self.records.valid & (~first | room)),
                    packets.ready.eq(self.records.valid & (~first | room) & shift.i.ready),
                ]
        m.d.comb += [
            go.eq(available & shift.i.ready),
            last.eq(go & beat.last),
            self.records.ready.eq(last),
            shift.i.valid.eq(available),
            shift.i.payload.eq(beat),
            shift.add.eq(record.translation.vlan & ~record.in_vlan),
            shift.remove.eq(record.in_vlan & ~record.translation.vlan),
            window.i_valid.eq(go),
            window.i_index.eq(index),
            window.i_data.eq(beat.data),
        ]
        with m.If(go):
            m.d.sync += first.eq(beat.last)
        with m.If(last):
            m.d.sync += index.eq(0)
        with m.Elif(go & (index != -(-WINDOW_BYTES // width))):
            m.d.sync += index.eq(index + 1)

        # The header is whole with this beat. A packet that ends before would upset the order, so it counts as whole.
        header_end = Signal(range(WINDOW_BYTES))  # number of its last byte
        gathered, whole = Signal(), Signal()
        m.d.comb += [
            header_end.eq(
                Mux(record.in_vlan, _LINK_SIZES[1], _LINK_SIZES[0])
                + Mux(record.ipv6, IPV6.size, IPV4.size)
                + (TCP.size - 1)
                + (record.option_words << 2)
            ),
            whole.eq(go & ~gathered & ((index == header_end >> exact_log2(width)) | beat.last)),
            translator.octets.eq(window.octets),
        ]
        with m.If(go):
            m.d.sync += gathered.eq((gathered | whole) & ~beat.last)
        m.d.sync += [translator.i_valid.eq(whole), translator.record.eq(record)]
        for k in range(self._ports):
            m.d.comb += translator.mac[k].eq(self.mac[k])

        # The way out.
        connect(m, shift.o, beats.i)
        connect(m, beats.o, overlay.packets)
        connect(m, headers.o, overlay.headers)
        m.d.comb += [
            headers.i.payload.eq(translator.header),
            headers.i.valid.eq(translator.o_valid),  # never full: `inside` bounds its contents
            leave.i.p.beat.eq(overlay.o.payload),
            leave.i.p.port.eq(overlay.port),
            leave.i.valid.eq(overlay.o.valid),
            overlay.o.ready.eq(leave.i.ready),
            self.o.payload.eq(leave.o.p.beat),
            self.o.valid.eq(leave.o.valid),
            self.port.eq(leave.o.p.port),
            leave.o.ready.eq(self.o.ready),
            self.busy.eq((inside != 0) | self.records.valid | self.o.valid),
        ]
        m.d.sync += [
            inside.eq(inside + (go & first) - overlay.left),
            room.eq(inside < PACKETS - 1),  # as it was: one more may have come in since
            self.counts.splice_drop_hops.eq(overlay.dropped),
        ]
        return m


def _words(value):
    """A field of whole bytes at an even offset, as words of the checksum. One byte is the second of its word."""
    return [value[at : at + 16] for at in range(0, len(value), 16)]


def _summed(fields):
    return [word for name in _SUMMED for word in _words(fields[name])]


def _octet_words(octets):
    """Bytes, byte 0 least significant, as words of the checksum."""
    return [Cat(octets[at + 8 : at + 16], octets[at : at + 8]) for at in range(0, len(octets), 16)]


_SUMMED_WORDS = len(_summed(Signal(Fields)))


class _Translator(wiring.Component):
    """Makes the new header of one packet per cycle; never stalls.

    Members
    -------
    i_valid, octets, record: the first bytes of a packet as it came, and its record.
    mac: source addresses.
    o_valid, header: `LATENCY` cycles later; made from registers by one multiplexer.
    """

    _FIELDS = 4  # cycles until Fields are there
    _OPTIONS = 1 + OptionEditor.LATENCY  # cycles until the options are
    _LATE = update_latency(0, _OPTION_WORDS)
    LATENCY = _OPTIONS + _LATE

    def __init__(self, ports):
        self._ports = ports
        super().__init__(
            {
                "i_valid": In(1),
                "octets": In(8 * WINDOW_BYTES),
                "record": In(SpliceRecord),
                "mac": In(48).array(ports),
                "o_valid": Out(1),
                "header": Out(NewHeader(WINDOW_BYTES)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        valid = Signal(self.LATENCY)
        m.d.sync += valid.eq(Cat(self.i_valid, valid))
        m.d.comb += self.o_valid.eq(valid[-1])

        # Stage 1: every field comes to one place.
        old, record = Signal(Fields, reset_less=True), Signal(SpliceRecord, reset_less=True)
        ip_checksum, tcp_checksum = Signal(16, reset_less=True), Signal(16, reset_less=True)
        option_octets = Signal(8 * TCP_OPTION_BYTES_MAX, reset_less=True)
        m.d.sync += record.eq(self.record)
        self._choose(m, old, ip_checksum, tcp_checksum, option_octets)

        m.submodules.options = options = OptionEditor()
        way = record.translation
        acknowledges = Signal()
        m.d.comb += [
            acknowledges.eq((old.flags & TCPFlag.ACK) != 0),
            options.i_octets.eq(option_octets),
            options.i_words.eq(record.option_words),
            options.i_timestamps.eq(way.timestamps),
            options.i_sack.eq(way.sack),
            options.i_tsval.eq(way.tsval_offset),
            options.i_tsecr.eq(Mux(acknowledges, way.tsecr_offset, 0)),
            options.i_edge.eq(record.ack_offset),
        ]
        new, frame = self._translate(m, old, record, acknowledges)
        old = self._delay(m, "old", old, self._FIELDS - 1)

        # Checksums: what changes outside the options, and the old options, in their shadow; then the new options.
        m.submodules.ip_update = ip = ChecksumUpdate(*2 * [2 + 2 * len(_words(old.src[:32]))])
        for words, fields in ((ip.i_old, old), (ip.i_new, new)):
            covered = [fields.second, fields.hops << 8, *_words(fields.src[:32]), *_words(fields.dst[:32])]
            m.d.comb += [words[k].eq(word) for k, word in enumerate(covered)]
        m.submodules.early_update = early = ChecksumUpdate(_SUMMED_WORDS + _OPTION_WORDS, _SUMMED_WORDS)
        octets_then = self._delay(m, "octets", option_octets, self._FIELDS - 1)
        m.d.comb += [early.i_old[k].eq(word) for k, word in enumerate(_summed(old) + _octet_words(octets_then))]
        m.d.comb += [early.i_new[k].eq(word) for k, word in enumerate(_summed(new))]
        m.submodules.late_update = late = ChecksumUpdate(0, _OPTION_WORDS)
        m.d.comb += [late.i_new[k].eq(word) for k, word in enumerate(_octet_words(options.o_octets))]
        for update, checksum in ((ip, ip_checksum), (early, tcp_checksum)):
            name = "ip_checksum" if update is ip else "tcp_checksum"
            m.d.comb += update.i_checksum.eq(self._delay(m, name, checksum, self._FIELDS - 1))
        wait = self._OPTIONS - self._FIELDS - early.latency
        m.d.comb += late.i_checksum.eq(self._delay(m, "early", early.o_checksum, wait))

        # All together.
        rest = self.LATENCY - self._FIELDS
        self._lay_out(
            m,
            fields=self._delay(m, "fields", new, rest),
            frame=self._delay(m, "frame", frame, rest),
            ip_checksum=self._delay(m, "ip", ip.o_checksum, rest - ip.latency),
            tcp_checksum=late.o_checksum,
            options=self._delay(m, "options_late", options.o_octets, self._LATE),
        )
        return m

    @staticmethod
    def _delay(m, name, value, cycles):
        shape = value.shape()
        m.submodules[f"{name}_delay"] = delay = Delay(shape, cycles)
        m.d.comb += delay.i.eq(value)
        return delay.o

    def _choose(self, m, old, ip_checksum, tcp_checksum, option_octets):
        """Registers the fields of IP, which have two places or, as the versions have them, four, and those of TCP."""
        tagged, ipv6 = self.record.in_vlan, self.record.ipv6

        def at_link(pick):
            return Mux(tagged, pick(_LINK_SIZES[1]), pick(_LINK_SIZES[0]))

        def ip(header, name):
            return at_link(lambda offset: wire_field(header, name, self.octets, offset))

        def tcp(pick):
            return Mux(ipv6, at_link(lambda l3: pick(l3 + IPV6.size)), at_link(lambda l3: pick(l3 + IPV4.size)))

        m.d.sync += [
            old.second.eq(at_link(lambda offset: self.octets[8 * (offset + 1) : 8 * (offset + 2)])),
            old.hops.eq(Mux(ipv6, ip(IPV6, "hop_limit"), ip(IPV4, "ttl"))),
            ip_checksum.eq(ip(IPV4, "checksum")),
            tcp_checksum.eq(tcp(lambda offset: wire_field(TCP, "checksum", self.octets, offset))),
            option_octets.eq(tcp(lambda offset: self.octets[8 * (offset + TCP.size) :][: len(option_octets)])),
        ]
        for name in ("src", "dst"):
            m.d.sync += old[name].eq(Mux(ipv6, ip(IPV6, name), ip(IPV4, name)))
        for name in _TCP_FIELDS:
            m.d.sync += old[name].eq(tcp(lambda offset, name=name: wire_field(TCP, name, self.octets, offset)))

    def _translate(self, m, old, record, acknowledges):
        """The new fields and the frame around them, three cycles after the old ones."""
        way = record.translation
        new, frame = Signal(Fields, reset_less=True), Signal(Frame, reset_less=True)
        ecn = Signal(8)
        m.d.comb += ecn.eq(Mux(way.ecn, 0, Mux(record.ipv6, _ECN[IPV6], _ECN[IPV4])))
        m.d.sync += [
            new.second.eq(old.second & ~ecn),
            new.hops.eq(old.hops - 1),
            new.src_port.eq(way.src_port),
            new.dst_port.eq(way.dst_port),
            new.seq.eq(old.seq + record.seq_offset),
            new.ack.eq(old.ack + Mux(acknowledges, record.ack_offset, 0)),
            new.flags.eq(old.flags & ~Mux(way.ecn, 0, C(_ECN_FLAGS, 8))),
            frame.dst_mac.eq(way.dst_mac),
            frame.vlan.eq(way.vlan),
            frame.vlan_tci.eq(way.vlan_tci),
            frame.ipv6.eq(record.ipv6),
            frame.option_words.eq(record.option_words),
            frame.port.eq(way.port),
            frame.drop.eq(old.hops < 2),
        ]
        for name in ("src", "dst"):
            m.d.sync += new[name].eq(Mux(record.ipv6, way[name], way[name][:32]))
        for k in range(self._ports):
            with m.If(way.port == k):
                m.d.sync += frame.src_mac.eq(self.mac[k])
        # The window: by multiples of 4, by the rest, then cut to what the field can hold.
        raised, lowered = Signal(32, reset_less=True), Signal(16, reset_less=True)
        high, low = Signal(32, reset_less=True), Signal(16, reset_less=True)
        fine, down = Signal(2, reset_less=True), Signal(2, reset_less=True)
        window = Signal(16, reset_less=True)
        coarse = way.window_shift & 0xC
        m.d.sync += [
            raised.eq(old.window << coarse),
            lowered.eq(old.window >> coarse),
            fine.eq(way.window_shift),
            down.eq(Cat(way.window_down, down)),
            high.eq(raised << fine),
            low.eq(lowered >> fine),
            window.eq(Mux(down[1], low, Mux(high > WINDOW_MAX, WINDOW_MAX, high))),
        ]
        late = Signal(Fields)
        m.d.comb += [late.eq(self._delay(m, "new", new, 2)), late.window.eq(window)]
        return late, self._delay(m, "frame_early", frame, 2)

    def _lay_out(self, m, *, fields, frame, ip_checksum, tcp_checksum, options):
        """Puts everything where it stands with or without tag, in either version of IP."""
        m.d.comb += [self.header.port.eq(frame.port), self.header.drop.eq(frame.drop)]
        for tagged in (0, 1):
            for ipv6 in (0, 1):
                written = {}  # byte of the frame -> its value

                def put(header, name, value, offset, written=written):
                    at = offset + header.byte_offset(name)
                    octets = header.positions[name][1] // 8
                    for k in range(octets):
                        written[at + k] = value[8 * (octets - 1 - k) :][:8]

                put(ETHERNET, "dst", frame.dst_mac, 0)
                put(ETHERNET, "src", frame.src_mac, 0)
                if tagged:
                    put(ETHERNET, "ethertype", C(EtherType.VLAN, 16), 0)
                    put(VLAN, "tci", frame.vlan_tci, ETHERNET.size)
                l3 = _LINK_SIZES[tagged]
                header = IPV6 if ipv6 else IPV4
                written[l3 + 1] = fields.second
                put(header, "hop_limit" if ipv6 else "ttl", fields.hops, l3)
                put(header, "src", fields.src, l3)
                put(header, "dst", fields.dst, l3)
                if not ipv6:
                    put(header, "checksum", ip_checksum, l3)
                l4 = l3 + header.size
                for name in _TCP_FIELDS:
                    put(TCP, name, fields[name], l4)
                put(TCP, "checksum", tcp_checksum, l4)
                mask = Signal(WINDOW_BYTES, name=f"written{tagged}{ipv6}")
                m.d.comb += mask.eq(sum(1 << at for at in written))
                for k in range(TCP_OPTION_BYTES_MAX):
                    written[l4 + TCP.size + k] = options[8 * k : 8 * k + 8]
                    m.d.comb += mask[l4 + TCP.size + k].eq(frame.option_words > k // 4)
                with m.If((frame.vlan == tagged) & (frame.ipv6 == ipv6)):
                    m.d.comb += [
                        self.header.octets.eq(Cat(written.get(at, C(0, 8)) for at in range(WINDOW_BYTES))),
                        self.header.written.eq(mask),
                    ]
