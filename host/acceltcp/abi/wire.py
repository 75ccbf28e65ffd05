"""Wire formats: Ethernet, VLAN, ARP, IPv4, IPv6, ICMP, TCP and its options."""

from __future__ import annotations

import enum

from .fields import Field, Header

__all__ = [
    "ARP",
    "ETHERNET",
    "ETHERNET_MIN_FRAME",
    "HEADERS",
    "HEADER_BYTES_MAX",
    "ICMP",
    "IPV4",
    "IPV6",
    "MSS_DEFAULT_IPV4",
    "MSS_DEFAULT_IPV6",
    "TCP",
    "TCP_OPTION_BYTES_MAX",
    "VLAN",
    "WINDOW_MAX",
    "WSCALE_MAX",
    "EtherType",
    "IPProtocol",
    "TCPFlag",
    "TCPOption",
]


class EtherType(enum.IntEnum):
    """IEEE 802 numbers that the NIC or the host tells apart."""

    IPV4 = 0x0800
    ARP = 0x0806
    VLAN = 0x8100
    IPV6 = 0x86DD
    QINQ = 0x88A8
    HOST_LINK = 0x88B5
    """Local experimental EtherType 1 of IEEE 802: the host link of boards without PCI Express."""


class IPProtocol(enum.IntEnum):
    """IANA protocol numbers."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58


class TCPFlag(enum.IntFlag):
    """TCP control bits, as they stand in the field `flags` (RFC 9293 section 3.1, RFC 3168)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


class TCPOption(enum.IntEnum):
    """TCP option kinds (RFC 9293 section 3.2, RFC 7323, RFC 2018)."""

    EOL = 0
    NOP = 1
    MSS = 2
    WSCALE = 3
    SACK_PERMITTED = 4
    SACK = 5
    TIMESTAMPS = 8

    @property
    def length(self) -> int:
        """Bytes of the whole option; 0 where it varies."""
        return {0: 1, 1: 1, 2: 4, 3: 3, 4: 2, 5: 0, 8: 10}[self]


ETHERNET = Header(
    "Ethernet",
    "Ethernet II header, without preamble and frame check sequence.",
    Field("dst", 48, "Destination MAC address."),
    Field("src", 48, "Source MAC address."),
    Field("ethertype", 16, "What follows.", EtherType),
    ref="IEEE 802.3",
)
VLAN = Header(
    "VLAN",
    "802.1Q tag: follows the source address when the EtherType is 0x8100.",
    Field("tci", 16, "Priority (3 bits), drop eligible (1), VLAN identifier (12)."),
    Field("ethertype", 16, "What follows.", EtherType),
    ref="IEEE 802.1Q",
)
ARP = Header(
    "ARP",
    "ARP for IPv4 over Ethernet.",
    Field("htype", 16, "Hardware type: 1."),
    Field("ptype", 16, "Protocol type: 0x0800.", EtherType),
    Field("hlen", 8, "Hardware address length: 6."),
    Field("plen", 8, "Protocol address length: 4."),
    Field("oper", 16, "1 request, 2 reply."),
    Field("sha", 48, "Sender hardware address."),
    Field("spa", 32, "Sender protocol address."),
    Field("tha", 48, "Target hardware address."),
    Field("tpa", 32, "Target protocol address."),
    ref="RFC 826",
)
IPV4 = Header(
    "IPv4",
    "IPv4 header without options.",
    Field("version", 4, "4."),
    Field("ihl", 4, "Header length in 32-bit words; 5 without options."),
    Field("tos", 8, "DSCP (6 bits) and ECN (2)."),
    Field("total_length", 16, "Header and data in bytes."),
    Field("identification", 16, "Fragment identification."),
    Field("_flags_reserved", 1),
    Field("dont_fragment", 1, "The packet must not be fragmented."),
    Field("more_fragments", 1, "This is not the last fragment."),
    Field("fragment_offset", 13, "Position of this fragment in units of 8 bytes."),
    Field("ttl", 8, "Time to live."),
    Field("protocol", 8, "Upper layer.", IPProtocol),
    Field("checksum", 16, "One's complement sum over the header (RFC 1071)."),
    Field("src", 32, "Source address."),
    Field("dst", 32, "Destination address."),
    ref="RFC 791",
)
IPV6 = Header(
    "IPv6",
    "IPv6 fixed header.",
    Field("version", 4, "6."),
    Field("traffic_class", 8, "DSCP (6 bits) and ECN (2)."),
    Field("flow_label", 20, "Flow label."),
    Field("payload_length", 16, "Bytes after this header."),
    Field("next_header", 8, "Upper layer or extension header.", IPProtocol),
    Field("hop_limit", 8, "Hop limit."),
    Field("src", 128, "Source address."),
    Field("dst", 128, "Destination address."),
    ref="RFC 8200",
)
ICMP = Header(
    "ICMP",
    "First word of every ICMP and ICMPv6 message, and the echo identifier.",
    Field("type", 8, "Message type."),
    Field("code", 8, "Message code."),
    Field("checksum", 16, "One's complement sum (ICMPv6: with pseudo-header)."),
    Field("identifier", 16, "Echo: identifier."),
    Field("sequence", 16, "Echo: sequence number."),
    ref="RFC 792, RFC 4443",
)
TCP = Header(
    "TCP",
    "TCP header without options.",
    Field("src_port", 16, "Source port."),
    Field("dst_port", 16, "Destination port."),
    Field("seq", 32, "Sequence number."),
    Field("ack", 32, "Acknowledgment number."),
    Field("data_offset", 4, "Header length in 32-bit words, 5 to 15."),
    Field("_reserved", 4),
    Field("flags", 8, "Control bits, CWR first.", None),
    Field("window", 16, "Receive window, before scaling."),
    Field("checksum", 16, "One's complement sum with pseudo-header."),
    Field("urgent", 16, "Urgent pointer."),
    ref="RFC 9293",
)

HEADERS = (ETHERNET, VLAN, ARP, IPV4, IPV6, ICMP, TCP)

TCP_OPTION_BYTES_MAX = 40
"""The data offset is at most 15 words, of which 5 are the fixed header."""

HEADER_BYTES_MAX = ETHERNET.size + VLAN.size + IPV6.size + TCP.size + TCP_OPTION_BYTES_MAX
"""118: the longest header that the NIC parses."""

ETHERNET_MIN_FRAME = 60
"""Shortest legal frame, without the frame check sequence."""

MSS_DEFAULT_IPV4 = 536
"""Assumed when a SYN over IPv4 has no MSS option (RFC 9293 section 3.7.1)."""

MSS_DEFAULT_IPV6 = 1220
"""Assumed when a SYN over IPv6 has no MSS option (RFC 9293 section 3.7.1)."""

WINDOW_MAX = 0xFFFF
"""Largest value of the field `window`, before it is scaled."""

WSCALE_MAX = 14
"""Largest window shift (RFC 7323 section 2.3); larger offers count as this."""
