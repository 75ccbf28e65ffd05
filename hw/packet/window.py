"""The first bytes of each packet, gathered into registers: `HeaderWindow` and `L3Peek`.

Both listen to the beats of a packet as they pass and never stall; packets may follow each
other without a gap, also packets of one beat. They are looked at in the cycle after a packet's
last beat was on the input: the next packet overwrites them from the cycle after that.

* Latency: 1 cycle (`HeaderWindow`, `L3Peek.vlan`), 2 cycles (`L3Peek.info`). Registered.
* Bytes past the end of a short packet are left over from earlier ones: whoever reads the
  window checks lengths.
* Overflow: bytes past the window pass by. Reset: contents are not cleared.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.wire import ETHERNET, HEADER_BYTES_MAX, IPV4, IPV6, VLAN, EtherType

from ..abi import wire_field

__all__ = ["WINDOW_BYTES", "HeaderWindow", "L3Info", "L3Peek"]

WINDOW_BYTES = HEADER_BYTES_MAX


class HeaderWindow(wiring.Component):
    """Keeps the first `WINDOW_BYTES` bytes of the packet that passes.

    Members
    -------
    i_valid, i_data: a beat of `width` bytes. i_index: its number in the packet (`index_bits`
    wide; may saturate beyond the window).
    octets: the bytes, byte 0 least significant.
    """

    def __init__(self, width, index_bits):
        self._width = width
        super().__init__(
            {
                "i_valid": In(1),
                "i_index": In(index_bits),
                "i_data": In(8 * width),
                "octets": Out(8 * WINDOW_BYTES),
            }
        )

    def elaborate(self, platform):
        m = Module()
        octets = Signal(8 * WINDOW_BYTES, reset_less=True)
        m.d.comb += self.octets.eq(octets)
        bits = 8 * self._width
        for k, at in enumerate(range(0, len(octets), bits)):
            with m.If(self.i_valid & (self.i_index == k)):
                m.d.sync += octets[at : at + bits].eq(self.i_data)
        return m


class L3Info(data.Struct):
    """Where the IP packet lies in the frame."""

    vlan: 1
    ipv4: 1  # EtherType and version say IPv4, and IHL is at least 5
    ipv6: 1
    ip_options: 1  # IPv4 with IHL above 5
    end: 17  # offset of the first byte after the IP packet, as its length field says
    l4_length: 16  # bytes after the IP header without options; wraps if the length is too short


class L3Peek(wiring.Component):
    """Reads EtherType, version and length of a packet early: `info` is right for every beat
    from the one in which the length field lies, two cycles after it was on the input.

    Members
    -------
    i_valid, i_index, i_data: as in `HeaderWindow`.
    vlan: the frame has an 802.1Q tag; one cycle after the beat.
    info: L3Info; two cycles after the beat.
    """

    def __init__(self, width, index_bits):
        self._width = width
        super().__init__(
            {
                "i_valid": In(1),
                "i_index": In(index_bits),
                "i_data": In(8 * width),
                "vlan": Out(1),
                "info": Out(L3Info),
            }
        )

    def elaborate(self, platform):
        m = Module()

        def here(header, name, offset):
            """A field as it lies in the beat on the input, and which beat that must be."""
            at = offset + header.byte_offset(name)
            beat = at // self._width
            return wire_field(header, name, self.i_data, offset - beat * self._width), beat

        def capture(register, value, beat):
            with m.If(self.i_valid & (self.i_index == beat)):
                m.d.sync += register.eq(value)

        def ethertypes(value):
            return Cat(value == EtherType.IPV4, value == EtherType.IPV6)

        # Cycle 1: both places at which each field can lie, without and with a tag.
        vlan = Signal(reset_less=True)
        value, beat = here(ETHERNET, "ethertype", 0)
        capture(vlan, value == EtherType.VLAN, beat)
        m.d.comb += self.vlan.eq(vlan)
        types, firsts, totals, payloads = [], [], [], []
        for tagged in (0, 1):
            l3 = ETHERNET.size + (VLAN.size if tagged else 0)
            kind = Signal(2, name=f"type{tagged}", reset_less=True)
            first = Signal(8, name=f"first{tagged}", reset_less=True)
            total = Signal(16, name=f"total{tagged}", reset_less=True)
            payload = Signal(16, name=f"payload{tagged}", reset_less=True)
            value, beat = here(VLAN, "ethertype", ETHERNET.size) if tagged else here(ETHERNET, "ethertype", 0)
            capture(kind, ethertypes(value), beat)
            version, beat = here(IPV4, "version", l3)
            capture(first, Cat(wire_field(IPV4, "ihl", self.i_data, l3 - beat * self._width), version), beat)
            capture(total, *here(IPV4, "total_length", l3))
            capture(payload, *here(IPV6, "payload_length", l3))
            types.append(kind)
            firsts.append(first)
            totals.append(total)
            payloads.append(payload)

        # Cycle 2: choose.
        kind, first = Mux(vlan, types[1], types[0]), Mux(vlan, firsts[1], firsts[0])
        total = Mux(vlan, totals[1], totals[0])
        payload = Mux(vlan, payloads[1], payloads[0])
        ihl, version = first[:4], first[4:]
        info = Signal(L3Info, reset_less=True)
        m.d.comb += self.info.eq(info)
        l3 = Mux(vlan, ETHERNET.size + VLAN.size, ETHERNET.size)
        m.d.sync += [
            info.vlan.eq(vlan),
            info.ipv4.eq(kind[0] & (version == 4) & (ihl >= 5)),
            info.ipv6.eq(kind[1] & (version == 6)),
            info.ip_options.eq(kind[0] & (version == 4) & (ihl > 5)),
            info.end.eq(Mux(kind[1], payload + (l3 + IPV6.size), total + l3)),
            info.l4_length.eq(Mux(kind[1], payload, total - IPV4.size)),
        ]
        return m
