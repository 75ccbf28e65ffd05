import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers import inet, inet6, l2
from scapy.layers.l2 import Dot1Q, Ether

from acceltcp.abi.wire import (
    ARP,
    ETHERNET,
    HEADER_BYTES_MAX,
    HEADERS,
    ICMP,
    IPV4,
    IPV6,
    TCP,
    VLAN,
    EtherType,
    TCPFlag,
    TCPOption,
)


def values(header):
    """Random values for all fields of a header."""
    return st.fixed_dictionaries(
        {f.name: st.integers(0, (1 << f.bits) - 1) for f in header.fields if not f.reserved}
    )


def mac(number):
    return ":".join(f"{byte:02x}" for byte in number.to_bytes(6, "big"))


def ip4(number):
    return str(ipaddress.IPv4Address(number))


def ip6(number):
    return str(ipaddress.IPv6Address(number))


def from_scapy(header, **fields):
    """What scapy makes of the same values."""
    f = fields
    if header is ETHERNET:
        return Ether(dst=mac(f["dst"]), src=mac(f["src"]), type=f["ethertype"])
    if header is VLAN:
        tci = f["tci"]
        return Dot1Q(prio=tci >> 13, dei=tci >> 12 & 1, vlan=tci & 0xFFF, type=f["ethertype"])
    if header is ARP:
        # Types and lengths are fixed, else scapy changes the size of the addresses.
        return l2.ARP(
            hwtype=f["htype"],
            ptype=0x0800,
            hwlen=6,
            plen=4,
            op=f["oper"],
            hwsrc=mac(f["sha"]),
            psrc=ip4(f["spa"]),
            hwdst=mac(f["tha"]),
            pdst=ip4(f["tpa"]),
        )
    if header is IPV4:
        return inet.IP(
            version=f["version"],
            ihl=f["ihl"],
            tos=f["tos"],
            len=f["total_length"],
            id=f["identification"],
            flags=f["dont_fragment"] << 1 | f["more_fragments"],
            frag=f["fragment_offset"],
            ttl=f["ttl"],
            proto=f["protocol"],
            chksum=f["checksum"],
            src=ip4(f["src"]),
            dst=ip4(f["dst"]),
        )
    if header is IPV6:
        return inet6.IPv6(
            version=f["version"],
            tc=f["traffic_class"],
            fl=f["flow_label"],
            plen=f["payload_length"],
            nh=f["next_header"],
            hlim=f["hop_limit"],
            src=ip6(f["src"]),
            dst=ip6(f["dst"]),
        )
    if header is ICMP:
        # 8 (echo) is the type for which scapy has identifier and sequence number.
        return inet.ICMP(type=8, code=f["code"], chksum=f["checksum"], id=f["identifier"], seq=f["sequence"])
    assert header is TCP
    return inet.TCP(
        sport=f["src_port"],
        dport=f["dst_port"],
        seq=f["seq"],
        ack=f["ack"],
        dataofs=f["data_offset"],
        reserved=0,
        flags=f["flags"],
        window=f["window"],
        chksum=f["checksum"],
        urgptr=f["urgent"],
    )


FIXED = {"ARP": {"htype": 1, "ptype": 0x0800, "hlen": 6, "plen": 4}, "ICMP": {"type": 8}}


@pytest.mark.parametrize("header", HEADERS, ids=[h.name for h in HEADERS])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_header_agrees_with_scapy(header, data):
    fields = data.draw(values(header)) | FIXED.get(header.name, {})
    packed = header.pack(**fields)
    assert packed == bytes(from_scapy(header, **fields))[: header.size]
    assert header.unpack(packed) == fields


def test_sizes_are_the_standards():
    assert [h.size for h in HEADERS] == [14, 4, 28, 20, 40, 8, 20]
    assert HEADER_BYTES_MAX == 118


@pytest.mark.parametrize("flag", TCPFlag, ids=lambda flag: flag.name)
def test_flags_have_scapys_letters(flag):
    letter = {"ECE": "E", "CWR": "C"}.get(flag.name, flag.name[0])
    assert int(inet.TCP(flags=letter).flags) == flag


@pytest.mark.parametrize(
    "option, scapy",
    [
        (TCPOption.MSS, ("MSS", 1460)),
        (TCPOption.WSCALE, ("WScale", 7)),
        (TCPOption.SACK_PERMITTED, ("SAckOK", b"")),
        (TCPOption.TIMESTAMPS, ("Timestamp", (1, 2))),
        (TCPOption.NOP, ("NOP", None)),
        (TCPOption.EOL, ("EOL", None)),
    ],
)
def test_options_have_scapys_kind_and_length(option, scapy):
    raw = bytes(inet.TCP(options=[scapy]))[20:]
    assert raw[0] == option
    if option.length > 1:
        assert raw[1] == option.length


def test_sack_has_no_fixed_length():
    assert TCPOption.SACK.length == 0
    assert bytes(inet.TCP(options=[("SAck", (1, 2))]))[20:22] == bytes([TCPOption.SACK, 10])


def test_ethertypes_are_scapys():
    assert Ether(bytes(Ether() / inet6.IPv6())).type == EtherType.IPV6
    assert Ether(bytes(Ether() / inet.IP())).type == EtherType.IPV4
    assert Ether(bytes(Ether() / Dot1Q())).type == EtherType.VLAN
    assert Ether(bytes(Ether() / l2.ARP())).type == EtherType.ARP


@pytest.mark.parametrize("header", HEADERS, ids=[h.name for h in HEADERS])
def test_documentation_is_there(header):
    assert header.doc.endswith(".") and header.ref
    assert all(f.doc.endswith(".") for f in header.fields if not f.reserved)
