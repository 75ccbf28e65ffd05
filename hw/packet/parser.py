"""`HeaderParser`: turns the first bytes of a packet into the fields of `RxMeta`.

Ethernet II with at most one 802.1Q tag, IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293) and its
options. Only the tag and the IP version move a header, so every field has at most four places:
two rows of 2:1 multiplexers, one per cycle.

* Throughput: one packet per cycle, never stalls. Latency: `LATENCY` cycles. Registered.
* The window may hold bytes past the end of the packet: no field is believed before the lengths
  are checked. Packets must have at least 60 bytes.
* What is not parsed (second tag, QinQ, wrong version, IHL below 5) has ipv4 = ipv6 = 0; then, and
  for anything but a whole TCP header, the fields of that layer mean nothing, except that
  offsets, `payload_length` and the flags of `options` are 0 and `wscale` is 15.
* `ip_checksum` and `l4_checksum` say GOOD here wherever there is something to verify, else NONE.
* `length_bad`: the IP length is shorter than its header or longer than the frame; or a TCP header
  is cut, its data offset below 5 or beyond the segment.
* Overflow: none. Reset: data registers are not cleared; validity travels elsewhere.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.cookie import WSCALE_NONE
from acceltcp.abi.messages import ChecksumState
from acceltcp.abi.wire import ETHERNET, IPV4, IPV6, TCP, TCP_OPTION_BYTES_MAX, VLAN, IPProtocol

from ..abi import wire_field
from .delay import Delay
from .meta import RxMeta
from .options import OptionsParser
from .window import WINDOW_BYTES, L3Info

__all__ = ["HeaderParser"]

L4_BYTES = TCP.size + TCP_OPTION_BYTES_MAX
L3_BYTES = IPV6.size + L4_BYTES

Fields = data.StructLayout(
    {name: field.shape for name, field in data.Layout.cast(RxMeta) if name not in ("port", "options")}
)
"""`RxMeta` without what the parser does not know and what comes from the options."""

_LINK_FIELDS = ("length", "dst_mac", "src_mac", "vlan", "vlan_tci")
_IP_FIELDS = ("src", "dst")
"""Fields that are final after stages 1 and 2."""


class HeaderParser(wiring.Component):
    """Fields of one packet per cycle.

    Members
    -------
    octets, vlan, length: the window, whether the frame is tagged, and the frame's bytes.
    info: L3Info of the same packet, one cycle later than `octets`.
    meta: RxMeta, `LATENCY` cycles after `octets`; `port` is 0.
    """

    LATENCY = 2 + OptionsParser.LATENCY + 1

    octets: In(8 * WINDOW_BYTES)
    vlan: In(1)
    length: In(16)
    info: In(L3Info)
    meta: Out(RxMeta)

    def elaborate(self, platform):
        m = Module()
        m.submodules.options = options = OptionsParser()

        # Stage 1: the IP header comes to one place.
        l3 = Signal(8 * L3_BYTES, reset_less=True)
        link = Signal(Fields, reset_less=True)
        plain, tagged = (self.octets[8 * size :] for size in (ETHERNET.size, ETHERNET.size + VLAN.size))
        m.d.sync += [
            l3.eq(Mux(self.vlan, tagged[: len(l3)], plain[: len(l3)])),
            link.length.eq(self.length),
            link.dst_mac.eq(wire_field(ETHERNET, "dst", self.octets)),
            link.src_mac.eq(wire_field(ETHERNET, "src", self.octets)),
            link.vlan.eq(self.vlan),
            link.vlan_tci.eq(Mux(self.vlan, wire_field(VLAN, "tci", self.octets, ETHERNET.size), 0)),
            link.l3_offset.eq(Mux(self.vlan, ETHERNET.size + VLAN.size, ETHERNET.size)),
        ]

        # Stage 2: so does the TCP header. `info` is valid from here on.
        l4 = Signal(8 * L4_BYTES, reset_less=True)
        ip = Signal(Fields, reset_less=True)
        info = Signal(L3Info, reset_less=True)
        protocol = Signal(8, reset_less=True)
        self._stage_ip(m, l3, link, l4, ip, info, protocol)

        # Stage 3: fields of TCP, and the comparisons.
        tcp = Signal(Fields, reset_less=True)
        candidate = Signal(reset_less=True)
        header_ok = Signal(reset_less=True)
        l4_length = Signal(16, reset_less=True)
        header = Signal(6, reset_less=True)  # bytes of the TCP header
        l4_offset = Signal(8, reset_less=True)
        data_offset = Signal(4)
        m.d.comb += [
            data_offset.eq(wire_field(TCP, "data_offset", l4)),
            options.octets.eq(l4[8 * TCP.size :]),
            options.words.eq(Mux(data_offset < 5, 0, data_offset - 5)),
        ]
        m.d.sync += [
            tcp.eq(ip),
            candidate.eq(
                ((info.ipv4 & ~info.ip_options & ~ip.fragment) | info.ipv6)
                & (protocol == IPProtocol.TCP)
                & ~ip.length_bad
            ),
            header_ok.eq((data_offset >= 5) & ((data_offset << 2) <= info.l4_length)),
            header.eq(data_offset << 2),
            l4_length.eq(info.l4_length),
            l4_offset.eq(ip.l3_offset + Mux(info.ipv6, IPV6.size, IPV4.size)),
        ]
        for name in ("src_port", "dst_port", "seq", "ack", "flags", "window"):
            m.d.sync += tcp[name].eq(wire_field(TCP, name, l4))

        # Stage 4: what that makes of the packet.
        whole = Signal()
        fields = Signal(Fields, reset_less=True)
        m.d.comb += whole.eq(candidate & header_ok)
        m.d.sync += [
            fields.eq(tcp),
            fields.tcp.eq(whole),
            fields.length_bad.eq(tcp.length_bad | (candidate & ~header_ok)),
            fields.l3_offset.eq(Mux(tcp.ipv4 | tcp.ipv6, tcp.l3_offset, 0)),
            fields.l4_offset.eq(Mux(whole, l4_offset, 0)),
            fields.payload_offset.eq(Mux(whole, l4_offset + header, 0)),
            fields.payload_length.eq(Mux(whole, l4_length - header, 0)),
            fields.ip_checksum.eq(Mux(tcp.ipv4 & ~tcp.ip_options, ChecksumState.GOOD, ChecksumState.NONE)),
            fields.l4_checksum.eq(Mux(whole, ChecksumState.GOOD, ChecksumState.NONE)),
        ]

        # Last stage: the options have been parsed meanwhile. Each field has waited since it was final.
        meta = Signal(RxMeta, reset_less=True)
        m.d.sync += meta.options.eq(options.options)
        delays = {}
        rest = [name for name, _ in Fields if name not in _LINK_FIELDS + _IP_FIELDS]
        for label, stage, record, names in (
            ("link", 1, link, _LINK_FIELDS),
            ("ip", 2, ip, _IP_FIELDS),
            ("rest", 4, fields, rest),
        ):
            layout = data.StructLayout({name: Fields[name].shape for name in names})
            delay = delays[label] = Delay(layout, self.LATENCY - 1 - stage, kind="block")
            m.submodules[f"{label}_delay"] = delay
            m.d.comb += [delay.i[name].eq(record[name]) for name in names]
            m.d.sync += [meta[name].eq(delay.o[name]) for name in names]
        with m.If(~delays["rest"].o.tcp):
            m.d.sync += [meta.options[name].eq(0) for name in ("bad", "mss_present", "sack", "timestamps")]
            m.d.sync += meta.options.wscale.eq(WSCALE_NONE)
        m.d.comb += self.meta.eq(meta)
        return m

    def _stage_ip(self, m, l3, link, l4, ip, info, protocol):
        """Registers the TCP header at one place and the fields of IP."""
        here = self.info
        total = wire_field(IPV4, "total_length", l3)
        header = Signal(6)
        m.d.comb += header.eq(wire_field(IPV4, "ihl", l3) << 2)
        mapped = C(0xFFFF, 48)  # RFC 4291 section 2.5.5.2, IPv4-mapped address
        fragment = wire_field(IPV4, "more_fragments", l3) | (wire_field(IPV4, "fragment_offset", l3) != 0)
        m.d.sync += [
            ip.eq(link),
            info.eq(here),
            l4.eq(Mux(here.ipv6, l3[8 * IPV6.size :], l3[8 * IPV4.size :][: len(l4)])),
            protocol.eq(
                Mux(here.ipv6, wire_field(IPV6, "next_header", l3), wire_field(IPV4, "protocol", l3))
            ),
            ip.ipv4.eq(here.ipv4),
            ip.ipv6.eq(here.ipv6),
            ip.ip_options.eq(here.ip_options),
            ip.fragment.eq(here.ipv4 & fragment),
            ip.length_bad.eq(
                ((here.ipv4 | here.ipv6) & (here.end > link.length)) | (here.ipv4 & (total < header))
            ),
        ]
        for name in ("src", "dst"):
            four = Cat(wire_field(IPV4, name, l3), mapped)
            m.d.sync += ip[name].eq(Mux(here.ipv6, wire_field(IPV6, name, l3), four))
