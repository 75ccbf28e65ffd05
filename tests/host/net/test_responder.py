"""ARP, neighbour discovery and echo: scapy builds the questions and reads the answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import checksum as scapy_checksum

from acceltcp.host.net import Addresses, Responder, checksum, fold

OURS, PEER = "02:00:00:00:00:02", "02:00:00:00:00:01"
V4, V6, LOCAL = "10.0.0.2", "fd00::2", "fe80::ff:fe00:2"
NODE = "ff02::1:ff00:2"


@pytest.fixture
def responder():
    return Responder(Addresses([f"{V4}/24", f"{V6}/64"], 0x020000000002))


def ask(responder, packet, pad=60):
    answer = responder.answer(memoryview(bytes(packet).ljust(pad, b"\0")))
    return None if answer is None else Ether(answer)


def checked(packet):
    """The packet as scapy would have built it: same bytes, so every checksum is right."""
    again = packet.copy()
    for layer in (IP, ICMP, ICMPv6EchoReply, ICMPv6ND_NA):
        if layer in again:
            for name in ("chksum", "cksum"):
                if name in again[layer].fields:
                    del again[layer].fields[name]
    assert bytes(again) == bytes(packet)
    return packet


# -- checksums ---------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=200))
@settings(deadline=None)
def test_checksum_is_that_of_scapy(data):
    if any(data):
        assert checksum(data) == scapy_checksum(data)
        padded = data + bytes(len(data) % 2)
        assert checksum(padded, scapy_checksum(data).to_bytes(2, "big")) == 0
    assert fold(data) % 0xFFFF == (0xFFFF - scapy_checksum(data)) % 0xFFFF


# -- ARP ---------------------------------------------------------------------------------


@pytest.mark.parametrize("vlan", [None, 7])
def test_arp(responder, vlan):
    link = Ether(src=PEER, dst="ff:ff:ff:ff:ff:ff")
    packet = link / ARP(op=1, hwsrc=PEER, psrc="10.0.0.1", pdst=V4)
    if vlan is not None:
        packet = link / Dot1Q(vlan=vlan, prio=3) / ARP(op=1, hwsrc=PEER, psrc="10.0.0.1", pdst=V4)
    reply = ask(responder, packet)
    assert (reply.src, reply.dst) == (OURS, PEER)
    assert (Dot1Q in reply) == (vlan is not None)
    if vlan is not None:
        assert (reply[Dot1Q].vlan, reply[Dot1Q].prio) == (7, 3)
    arp = reply[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc, arp.hwdst, arp.pdst) == (2, OURS, V4, PEER, "10.0.0.1")


def test_arp_probe_is_answered(responder):
    reply = ask(responder, Ether(src=PEER) / ARP(op=1, hwsrc=PEER, psrc="0.0.0.0", pdst=V4))
    assert (reply[ARP].psrc, reply[ARP].pdst) == (V4, "0.0.0.0")


@pytest.mark.parametrize(
    "arp",
    [
        {"op": 2}, {"pdst": "10.0.0.3"}, {"hwtype": 6}, {"ptype": 0x86DD}, {"hwsrc": "ff:ff:ff:ff:ff:ff"},
        {"hwsrc": OURS}, {"hwlen": 8}, {"plen": 16},
    ],
)  # fmt: skip
def test_arp_that_is_not_for_us(responder, arp):
    fields = {"op": 1, "hwsrc": PEER, "psrc": "10.0.0.1", "pdst": V4, **arp}
    assert ask(responder, Ether(src=PEER) / ARP(**fields)) is None


# -- neighbour discovery -------------------------------------------------------------------


def solicitation(target=V6, src="fd00::1", dst=NODE, hlim=255, option=True, **link):
    packet = Ether(src=PEER, dst="33:33:ff:00:00:02", **link) / IPv6(src=src, dst=dst, hlim=hlim) / ICMPv6ND_NS(tgt=target)
    return packet / ICMPv6NDOptSrcLLAddr(lladdr=PEER) if option else packet


@pytest.mark.parametrize("target", [V6, LOCAL])
@pytest.mark.parametrize("option", [True, False])
def test_solicitation(responder, target, option):
    reply = checked(ask(responder, solicitation(target=target, option=option)))
    assert (reply.src, reply.dst) == (OURS, PEER)
    assert (reply[IPv6].src, reply[IPv6].dst, reply[IPv6].hlim) == (target, "fd00::1", 255)
    na = reply[ICMPv6ND_NA]
    assert (na.tgt, na.R, na.S, na.O) == (target, 0, 1, 1)
    assert reply[ICMPv6NDOptDstLLAddr].lladdr == OURS


def test_duplicate_address_detection_is_answered_to_all(responder):
    reply = checked(ask(responder, solicitation(src="::", option=False)))
    assert (reply.dst, reply[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (reply[ICMPv6ND_NA].S, reply[ICMPv6ND_NA].O) == (0, 1)


@pytest.mark.parametrize(
    "packet",
    [
        solicitation(target="fd00::3"),
        solicitation(hlim=64),
        solicitation(src="::", option=True),
        solicitation(src="::", dst=V6, option=False),
        solicitation(src="ff02::1"),
        Ether(src=PEER) / IPv6(src="fd00::1", dst=V6, hlim=255) / ICMPv6ND_NS(tgt=V6, code=1),
        Ether(src=PEER) / IPv6(src="fd00::1", dst=V6, hlim=255) / ICMPv6ND_NS(tgt=V6, cksum=1),
        Ether(src=PEER) / IPv6(src="fd00::1", dst=V6, hlim=255) / ICMPv6ND_NS(tgt=V6) / Raw(b"\1\0" + b"\0" * 6),
        Ether(src=PEER) / IPv6(src="fd00::1", dst=V6, hlim=255) / ICMPv6ND_NS(tgt=V6) / Raw(b"\1\2" + b"\0" * 6),
        Ether(src=PEER) / IPv6(src="fd00::1", dst=V6, hlim=255) / ICMPv6ND_NS(tgt=V6) / ICMPv6NDOptSrcLLAddr(lladdr=OURS),
    ],
)
def test_bad_solicitations(responder, packet):
    assert ask(responder, packet) is None


# -- echo --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 17, 56, 1471, 1472])
@pytest.mark.parametrize("vlan", [False, True])
def test_echo(responder, size, vlan):
    link = Ether(src=PEER, dst=OURS) / Dot1Q(vlan=9) if vlan else Ether(src=PEER, dst=OURS)
    data = bytes(range(256)) * 6
    packet = link / IP(src="10.0.0.1", dst=V4, ttl=3, id=99) / ICMP(id=5, seq=6) / Raw(data[:size])
    reply = checked(ask(responder, packet))
    assert (reply.src, reply.dst, Dot1Q in reply) == (OURS, PEER, vlan)
    assert (reply[IP].src, reply[IP].dst, reply[IP].ttl) == (V4, "10.0.0.1", 64)
    assert (reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq) == (0, 5, 6)
    assert bytes(reply[ICMP].payload) == data[:size]


@pytest.mark.parametrize("size", [0, 1, 56, 1452])
@pytest.mark.parametrize("dst", [V6, LOCAL])
def test_echo_v6(responder, size, dst):
    data = bytes(range(256)) * 6
    packet = Ether(src=PEER, dst=OURS) / IPv6(src="fd00::1", dst=dst, hlim=3) / ICMPv6EchoRequest(id=5, seq=6, data=data[:size])
    reply = checked(ask(responder, packet))
    assert (reply[IPv6].src, reply[IPv6].dst, reply[IPv6].hlim) == (dst, "fd00::1", 64)
    echo = reply[ICMPv6EchoReply]
    assert (echo.id, echo.seq, bytes(echo.data)) == (5, 6, data[:size])


def test_echo_with_ip_options(responder):
    packet = Ether(src=PEER, dst=OURS) / IP(src="10.0.0.1", dst=V4, options=[IPOption_NOP() for _ in range(4)]) / ICMP() / Raw(b"hi")
    reply = checked(ask(responder, packet))
    assert reply[IP].ihl == 5 and bytes(reply[ICMP].payload) == b"hi"


IP4 = {"src": "10.0.0.1", "dst": V4}


@pytest.mark.parametrize(
    "packet",
    [
        IP(src="10.0.0.1", dst="10.0.0.3") / ICMP(),
        IP(src="10.0.0.1", dst="10.0.0.255") / ICMP(),
        IP(src="224.0.0.1", dst=V4) / ICMP(),
        IP(src="255.255.255.255", dst=V4) / ICMP(),
        IP(src="0.0.0.0", dst=V4) / ICMP(),
        IP(**IP4, chksum=1) / ICMP(),
        IP(**IP4) / ICMP(chksum=1),
        IP(**IP4) / ICMP(type=0),
        IP(**IP4) / ICMP(code=1),
        IP(**IP4, len=27) / ICMP(),
        IP(**IP4, len=2000) / ICMP(),
        IP(**IP4) / UDP(sport=1, dport=7),
        fragment(IP(**IP4) / ICMP() / Raw(bytes(100)), 64)[0],
        fragment(IP(**IP4) / ICMP() / Raw(bytes(100)), 64)[1],
    ],
)
def test_what_is_not_answered(responder, packet):
    assert ask(responder, Ether(src=PEER, dst=OURS) / packet) is None


def test_no_answer_to_a_group_mac(responder):
    assert ask(responder, Ether(src="01:00:00:00:00:01") / IP(**IP4) / ICMP()) is None


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_survived(data):
    Responder(Addresses([f"{V4}/24", f"{V6}/64"], 0x020000000002)).answer(memoryview(data))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_questions_with_a_few_wrong_bytes_are_survived(data):
    responder = Responder(Addresses([f"{V4}/24", f"{V6}/64"], 0x020000000002))
    frame = bytearray(bytes(data.draw(st.sampled_from([solicitation(), Ether(src=PEER) / IP(**IP4) / ICMP()]))))
    for _ in range(3):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    responder.answer(memoryview(frame)[: data.draw(st.integers(0, len(frame)))])


# -- addresses ---------------------------------------------------------------------------


def test_announcements(responder):
    frames = [Ether(frame) for frame in responder.announcements()]
    assert [frame[ARP].pdst for frame in frames if ARP in frame] == [V4]
    advertised = [frame for frame in frames if ICMPv6ND_NA in frame]
    assert [frame[ICMPv6ND_NA].tgt for frame in advertised] == [V6, LOCAL]
    for frame in advertised:
        checked(frame)


def test_addresses():
    addresses = Addresses(["10.0.0.2/24", "10.0.0.2/24", "fd00::2/64"], 0x020000000002)
    assert [str(ip) for ip in addresses.listenable] == [V4, V6]
    assert bytes([10, 0, 0, 2]) in addresses and bytes([10, 0, 0, 3]) not in addresses
    for bad in ("10.0.0.300/24", "224.0.0.1/24", "::/64", "255.255.255.255/32", "hello"):
        with pytest.raises(ValueError):
            Addresses([bad], 2)
