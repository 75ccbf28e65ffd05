"""The network layer with frames: scapy asks, answers, complains and reads what we say."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import inet_pton

from acceltcp.host.net import Addresses, IcmpErrorKind, NeighbourSettings, NeighbourState, Network
from acceltcp.host.net.icmp import PLATEAUS, plateau_below

OURS, PEER, OTHER = "02:00:00:00:00:02", "02:00:00:00:00:01", "02:00:00:00:00:11"
V4, V6, LOCAL = "10.0.0.2", "fd00::2", "fe80::ff:fe00:2"
P4, P6 = "10.0.0.1", "fd00::1"
FAR4, FAR6 = "198.51.100.7", "2001:db8::7"
INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, PERMANENT = NeighbourState


def packed(text):
    return inet_pton(10 if ":" in text else 2, text)


class World:
    """A network layer, what it sent, what it reported. believe: what TCP says of ICMP errors."""

    def __init__(self, **options):
        self.now = 1000.0
        self.sent: list[tuple[Ether, int]] = []
        self.room = True
        self.calls: list[tuple] = []
        self.believe = True
        options = {"routes": [f"default via {P4}", f"default via {P6}"], **options}
        self.net = Network(Addresses([f"{V4}/24", f"{V6}/64"], 0x020000000002), self._send, clock=lambda: self.now, **options)
        self.net.on_neighbour_found = lambda address: self.calls.append(("found", address))
        self.net.on_neighbour_failed = lambda address: self.calls.append(("failed", address))
        self.net.on_tcp_error = self._tcp_error

    def _send(self, frame, port):
        if self.room:
            self.sent.append((Ether(frame), port))
        return self.room

    def _tcp_error(self, kind, mtu, key, seq):
        self.calls.append((kind, mtu, key, seq))
        return self.believe

    def receive(self, packet, port=0):
        self.net.receive(memoryview(bytes(packet).ljust(60, b"\0")), port, self.now)

    def take(self):
        sent, self.sent = self.sent, []
        return [frame for frame, _ in sent]

    def run(self, seconds):
        end = self.now + seconds
        while (due := self.net.next_deadline()) is not None and due <= end:
            self.now = max(due, self.now)
            self.net.run_timers(self.now)
        self.now = end

    def resolve(self, remote):
        return self.net.resolve(self.net.route(packed(remote)))

    def state(self, address):
        return self.net.neighbours.state(packed(address), self.now)

    def known(self, address):
        """Let a neighbour be known and reachable."""
        self.resolve(address)
        self.receive(reply(address))
        assert self.state(address) is REACHABLE
        self.sent.clear()
        self.calls.clear()
        self.now += 2


@pytest.fixture
def world():
    return World()


def arp(op=2, hwsrc=PEER, psrc=P4, hwdst=OURS, pdst=V4, dst=OURS, **fields):
    return Ether(src=hwsrc, dst=dst) / ARP(op=op, hwsrc=hwsrc, psrc=psrc, hwdst=hwdst, pdst=pdst, **fields)


def advertisement(target=P6, mac=PEER, s=1, o=1, dst=V6, hlim=255, src=None, **fields):
    packet = Ether(src=PEER, dst=OURS) / IPv6(src=src or target, dst=dst, hlim=hlim) / ICMPv6ND_NA(tgt=target, R=0, S=s, O=o, **fields)
    return packet / ICMPv6NDOptDstLLAddr(lladdr=mac) if mac else packet


def reply(address, mac=PEER):
    return advertisement(target=address, mac=mac) if ":" in address else arp(psrc=address, hwsrc=mac)


# -- lookups ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("remote", "hop"), [(P4, P4), (FAR4, P4), (P6, P6), (FAR6, P6), ("fe80::7", "fe80::7")])
def test_lookup(world, remote, hop):
    route = world.net.route(packed(remote))
    assert route.next_hop == packed(hop) and route.mtu == 1500 and route.port == 0
    assert world.net.resolve(route) is None
    (question,) = world.take()
    if ":" in hop:
        assert question[ICMPv6ND_NS].tgt == hop and question[IPv6].src == (LOCAL if hop == "fe80::7" else V6)
        assert question[ICMPv6NDOptSrcLLAddr].lladdr == OURS
        answer = advertisement(target=hop, dst=question[IPv6].src)
    else:
        assert (question.dst, question[ARP].pdst, question[ARP].psrc) == ("ff:ff:ff:ff:ff:ff", hop, V4)
        # scapy's own idea of what answers this question
        answer = arp(psrc=hop)
        assert answer[ARP].answers(question[ARP])
    world.receive(answer)
    assert world.calls == [("found", packed(hop))]
    kind = "86dd" if ":" in hop else "0800"
    assert world.net.resolve(route).hex() == (PEER + OURS).replace(":", "") + kind
    assert not world.take()


def test_nobody_answers(world):
    assert world.resolve(FAR4) is None
    world.run(10)
    assert len(world.take()) == 3 and world.calls == [("failed", packed(P4))]


def test_a_full_ring_is_a_lost_question(world):
    world.room = False
    world.resolve(P4)
    assert world.net.stats()["unsent"] == 1
    world.room = True
    world.run(1)
    assert len(world.take()) == 1


def test_static_neighbours():
    world = World(neighbours={P4: PEER, "fe80::9": OTHER}, routes=[f"default via {P4}", "default via fe80::9"])
    assert world.resolve(FAR4)[:6].hex(":") == PEER
    assert world.resolve(FAR6)[:6].hex(":") == OTHER
    world.receive(arp(hwsrc=OTHER))
    world.run(1000)
    assert world.resolve(FAR4)[:6].hex(":") == PEER and not world.take() and not world.calls


@pytest.mark.parametrize(
    ("neighbours", "said"),
    [
        ({"10.0.0": PEER}, "10.0.0"),
        ({P4: "02:00:00:00:00"}, "02:00:00:00:00"),
        ({P4: "02:00:00:00:00:1ff"}, "1ff"),
        ({P4: "ff:ff:ff:ff:ff:ff"}, "no group"),
        ({P4: "00:00:00:00:00:00"}, "00:00"),
        ({V4: PEER}, "our own"),
        ({"10.1.0.1": PEER}, "not on the link"),
    ],
)
def test_bad_static_neighbours(neighbours, said):
    with pytest.raises(ValueError, match=said):
        World(neighbours=neighbours)


# -- what neighbours say ---------------------------------------------------------------------


def test_who_asks_for_us_is_answered_and_known(world):
    world.receive(arp(op=1, hwdst="00:00:00:00:00:00", dst="ff:ff:ff:ff:ff:ff"))
    (answer,) = world.take()
    assert (answer.dst, answer[ARP].op, answer[ARP].psrc, answer[ARP].hwsrc) == (PEER, 2, V4, OURS)
    packet = Ether(src=PEER, dst="33:33:ff:00:00:02") / IPv6(src=P6, dst="ff02::1:ff00:2", hlim=255) / ICMPv6ND_NS(tgt=V6)
    world.receive(packet / ICMPv6NDOptSrcLLAddr(lladdr=PEER), port=1)
    assert world.sent[0][1] == 1  # out where it came in
    (answer,) = world.take()
    assert answer[ICMPv6ND_NA].tgt == V6
    for address in (P4, P6):
        assert world.state(address) is STALE
        assert world.resolve(address)[:6].hex(":") == PEER
    assert not world.take()


@pytest.mark.parametrize(
    "packet",
    [
        # Not from our networks, not one host's, from ourselves, in a VLAN, without its own address.
        arp(op=1, psrc="192.168.1.1"),
        arp(op=1, psrc="0.0.0.0"),
        arp(op=1, hwsrc="01:00:00:00:00:01"),
        arp(op=1, hwsrc=OURS),
        Ether(src=PEER, dst=OURS) / Dot1Q(vlan=5) / ARP(op=1, hwsrc=PEER, psrc=P4, pdst=V4),
        Ether(src=PEER) / IPv6(src=P6, dst=V6, hlim=255) / ICMPv6ND_NS(tgt=V6),
        Ether(src=PEER) / IPv6(src="2001:db8::1", dst=V6, hlim=255) / ICMPv6ND_NS(tgt=V6) / ICMPv6NDOptSrcLLAddr(lladdr=PEER),
        Ether(src=PEER) / IPv6(src=P6, dst=V6, hlim=254) / ICMPv6ND_NS(tgt=V6) / ICMPv6NDOptSrcLLAddr(lladdr=PEER),
        Ether(src=PEER) / IPv6(src=P6, dst=V6, hlim=255) / ICMPv6ND_NS(tgt="fd00::3") / ICMPv6NDOptSrcLLAddr(lladdr=PEER),
        # Answers to questions that we did not ask.
        arp(), advertisement(), arp(op=1, pdst=P4, dst="ff:ff:ff:ff:ff:ff"), advertisement(s=0, dst="ff02::1"),
    ],
)  # fmt: skip
def test_who_is_not_remembered(world, packet):
    world.receive(packet)
    assert world.state(P4) is None and world.state(P6) is None and len(world.net.neighbours) == 0


BAD_ADVERTISEMENTS = [
    advertisement(hlim=64),
    advertisement(code=1),
    advertisement(cksum=1),
    advertisement(target="ff02::1", src=P6),
    advertisement(s=1, dst="ff02::1"),
    advertisement(mac="01:00:00:00:00:01"),
    advertisement(mac=OURS),
    advertisement(mac=None) / Raw(b"\2\0" + bytes(6)),
    advertisement(mac=None) / Raw(b"\2\2" + bytes(6)),
    advertisement(src="ff02::5"),
]


@pytest.mark.parametrize("packet", BAD_ADVERTISEMENTS)
def test_bad_advertisements(world, packet):
    world.resolve(P6)
    world.receive(packet)
    assert world.state(P6) is INCOMPLETE and not world.calls
    assert world.net.stats()["malformed"] == 1


@pytest.mark.parametrize(
    "fields", [{"hwtype": 6}, {"ptype": 0x86DD}, {"hwlen": 8}, {"plen": 16}, {"hwsrc": "01:00:00:00:00:01"}, {"hwsrc": OURS}]
)
def test_bad_arp(world, fields):
    world.resolve(P4)
    world.receive(arp(**fields))
    world.net.receive(memoryview(bytes(arp())[:41]), 0, world.now)
    assert world.state(P4) is INCOMPLETE and not world.calls


def test_a_neighbour_with_a_new_mac(world):
    world.known(P4)
    world.known(P6)
    # An announcement as RFC 5227 section 3 has it, and an unsolicited advertisement.
    world.receive(arp(op=1, hwsrc=OTHER, hwdst="00:00:00:00:00:00", pdst=P4, dst="ff:ff:ff:ff:ff:ff"))
    world.receive(advertisement(mac=OTHER, s=0, dst="ff02::1"))
    assert world.calls == [("found", packed(P4)), ("found", packed(P6))]
    for address in (P4, P6):
        assert world.state(address) is STALE
        assert world.resolve(address)[:6].hex(":") == OTHER
    # It is used, so it must show that it is there.
    world.run(5)
    assert sorted(frame.dst for frame in world.take()) == [OTHER, OTHER]


def test_the_confirmed_are_left_alone(world):
    world.known(P4)
    for _ in range(200):
        world.now += 1
        world.resolve(FAR4)
        world.net.confirm(packed(P4))
        world.net.run_timers(world.now)
    assert not world.take() and world.state(P4) is REACHABLE


def test_somebody_else_has_our_address(world):
    for _ in range(3):
        world.receive(arp(op=1, psrc=V4, pdst=V4, hwdst="00:00:00:00:00:00", dst="ff:ff:ff:ff:ff:ff"))
        world.receive(arp(op=2, psrc=V4, pdst=P4))
        world.receive(advertisement(target=V6, s=0, dst="ff02::1"))
    frames = world.take()
    announced = [frame for frame in frames if frame.dst in ("ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01")]
    assert [frame[ARP].psrc if ARP in frame else frame[ICMPv6ND_NA].tgt for frame in announced] == [V4, V6]
    assert announced[0][ARP].hwsrc == OURS
    assert world.net.stats()["conflicts"] == 9
    world.now += 10
    world.receive(arp(op=2, psrc=V4, pdst=P4))
    assert len(world.take()) == 1


def test_announcements(world):
    world.net.announce(world.now)
    first = world.take()
    assert [frame[ARP].psrc if ARP in frame else frame[ICMPv6ND_NA].tgt for frame in first] == [V4, V6, LOCAL]
    world.run(1.9)
    assert not world.take()
    world.run(0.1)
    assert [bytes(frame) for frame in world.take()] == [bytes(frame) for frame in first]
    world.run(100)
    assert not world.take() and world.net.next_deadline() is None


def test_routers_and_redirects_change_nothing(world):
    world.known(P6)
    link = Ether(src=OTHER, dst="33:33:00:00:00:01")
    world.receive(link / IPv6(src="fe80::5", dst="ff02::1", hlim=255) / ICMPv6ND_RA() / ICMPv6NDOptSrcLLAddr(lladdr=OTHER))
    world.receive(Ether(dst=OURS) / IPv6(src="fe80::5", dst=V6, hlim=255) / ICMPv6ND_Redirect(tgt="fe80::5", dst=FAR6))
    world.receive(Ether(dst=OURS) / IP(src=P4, dst=V4) / ICMP(type=5, code=1, gw="10.0.0.66") / IP(src=V4, dst=FAR4) / TCP())
    assert world.net.route(packed(FAR6)).next_hop == packed(P6) and world.net.route(packed(FAR4)).next_hop == packed(P4)
    assert not world.take() and len(world.net.neighbours) == 1


# -- floods ----------------------------------------------------------------------------------


def test_floods_leave_the_cache_bounded(world):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    world = World(settings=NeighbourSettings(limit=32, strangers=64), routes=["10.0.0.0/8", f"default via {P6}"])
    world.known(P4)
    world.known(P6)
    request, answer = bytes(arp(op=1)), bytes(arp())
    solicitation = Ether(src=PEER) / IPv6(src=P6, dst=V6, hlim=255) / ICMPv6ND_NS(tgt=V6) / ICMPv6NDOptSrcLLAddr(lladdr=PEER)
    templates = [bytearray(request), bytearray(answer), bytearray(bytes(solicitation)), bytearray(bytes(advertisement()))]
    for number in range(10_000):
        frame = templates[number % 4]
        name = bytes([10, *rng.randbytes(3)])
        if number % 4 < 2:
            frame[28:32] = name
        else:
            # The last four bytes of source or target change, and the checksum with them (RFC 1624).
            at = 34 if number % 4 == 2 else 74
            old = int.from_bytes(frame[at : at + 4], "big")
            frame[at : at + 4] = name
            new = int.from_bytes(name, "big")
            total = (0xFFFF - int.from_bytes(frame[56:58], "big")) + new % 0xFFFF - old % 0xFFFF
            frame[56:58] = (0xFFFF - total % 0xFFFF).to_bytes(2, "big")
        world.receive(frame)
        assert len(world.net.neighbours) <= 32 + 64
    stats = world.net.stats()
    assert stats["malformed"] == 0 and stats["strangers"] > 4900 and stats["unasked"] > 4900, stats
    assert world.state(P4) is REACHABLE and world.state(P6) is REACHABLE
    assert not [call for call in world.calls if call[1] in (packed(P4), packed(P6))]


# -- ICMP errors -----------------------------------------------------------------------------


def segment(remote=FAR4, local=V4, seq=0x89ABCDEF, size=1500, **ip):
    """What we are said to have sent."""
    if ":" in remote:
        return IPv6(src=local if ":" in local else V6, dst=remote, plen=size - 40, **ip) / TCP(sport=80, dport=50000, seq=seq)
    return IP(src=local, dst=remote, len=size, flags="DF", **ip) / TCP(sport=80, dport=50000, seq=seq)


def key(remote, local):
    return packed(remote) + packed(local) + (50000).to_bytes(2, "big") + (80).to_bytes(2, "big")


def error4(icmp, quoted, src="203.0.113.1", dst=V4, cut=None, **ip):
    quoted = bytes(quoted)
    return Ether(src=PEER, dst=OURS) / IP(src=src, dst=dst, **ip) / icmp / Raw(quoted[:cut])


def error6(icmp, quoted, src="2001:db8:ff::1", dst=V6, cut=None, **ip):
    return Ether(src=PEER, dst=OURS) / IPv6(src=src, dst=dst, **ip) / icmp / Raw(bytes(quoted)[:cut])


K = IcmpErrorKind


@pytest.mark.parametrize(
    ("kind", "number", "codes"),
    [
        (K.NET_UNREACHABLE, errno.ENETUNREACH, [(3, 0), (3, 6), (3, 11)]),
        (K.HOST_UNREACHABLE, errno.EHOSTUNREACH, [(3, 1), (3, 5), (3, 7), (3, 8), (3, 12)]),
        (K.PROTOCOL_UNREACHABLE, errno.ENOPROTOOPT, [(3, 2)]),
        (K.PORT_UNREACHABLE, errno.ECONNREFUSED, [(3, 3)]),
        (K.PROHIBITED, errno.EACCES, [(3, 9), (3, 10), (3, 13)]),
        (K.TIME_EXCEEDED, errno.EHOSTUNREACH, [(11, 0), (11, 1)]),
        (K.PARAMETER_PROBLEM, errno.EPROTO, [(12, 0), (12, 1)]),
    ],
)
@pytest.mark.parametrize("cut", [None, 28])
def test_icmp_errors(world, kind, number, codes, cut):
    assert kind.errno == number
    for kind_of, code in codes:
        world.receive(error4(ICMP(type=kind_of, code=code), segment(), cut=cut))
    assert world.calls == [(kind, 0, key(FAR4, V4), 0x89ABCDEF)] * len(codes)
    assert world.net.stats()["icmp_errors"] == len(codes) and not world.take()


@pytest.mark.parametrize(
    ("kind", "icmp"),
    [
        *((k, ICMPv6DestUnreach(code=c)) for c, k in enumerate(
            [K.NET_UNREACHABLE, K.PROHIBITED, K.HOST_UNREACHABLE, K.HOST_UNREACHABLE, K.PORT_UNREACHABLE, K.PROHIBITED, K.PROHIBITED])),
        (K.TIME_EXCEEDED, ICMPv6TimeExceeded(code=0)),
        (K.PARAMETER_PROBLEM, ICMPv6ParamProblem(code=1, ptr=6)),
    ],
)  # fmt: skip
def test_icmpv6_errors(world, kind, icmp):
    world.receive(error6(icmp, segment(FAR6)))
    assert world.calls == [(kind, 0, key(FAR6, V6), 0x89ABCDEF)]


def test_path_mtu(world):
    world.receive(error4(ICMP(type=3, code=4, nexthopmtu=1400), segment()))
    world.receive(error6(ICMPv6PacketTooBig(mtu=1300), segment(FAR6)))
    assert world.calls == [(K.TOO_BIG, 1400, key(FAR4, V4), 0x89ABCDEF), (K.TOO_BIG, 1300, key(FAR6, V6), 0x89ABCDEF)]
    assert world.net.path_mtu(packed(FAR4)) == 1400 and world.net.route(packed(FAR4)).mtu == 1400
    assert world.net.path_mtu(packed(FAR6)) == 1300 and world.net.path_mtu(packed(P4)) == 1500
    # It only ever shrinks.
    for mtu in (1400, 1450):
        world.receive(error4(ICMP(type=3, code=4, nexthopmtu=mtu), segment()))
    assert len(world.calls) == 2 and world.net.path_mtu(packed(FAR4)) == 1400
    world.receive(error4(ICMP(type=3, code=4, nexthopmtu=1200), segment(size=1400)))
    assert world.net.path_mtu(packed(FAR4)) == 1200
    world.now += 600
    assert world.net.path_mtu(packed(FAR4)) == 1500


def test_a_path_mtu_that_tcp_does_not_believe(world):
    world.believe = False
    world.receive(error4(ICMP(type=3, code=4, nexthopmtu=1400), segment()))
    world.receive(error6(ICMPv6PacketTooBig(mtu=1300), segment(FAR6)))
    assert len(world.calls) == 2
    assert world.net.path_mtu(packed(FAR4)) == 1500 and len(world.net.path_mtus) == 0
    assert world.net.stats()["icmp_disbelieved"] == 2


@pytest.mark.parametrize(
    ("size", "mtu"), [(1500, 1492), (1492, 1006), (1006, 508), (508, 296), (1400, 1006), (300, 296)]
)
def test_routers_that_do_not_say_their_mtu(world, size, mtu):
    """RFC 1191 section 7.1: the next plateau below what did not fit."""
    world.receive(error4(ICMP(type=3, code=4, nexthopmtu=0), segment(size=size)))
    assert world.calls == [(K.TOO_BIG, mtu, key(FAR4, V4), 0x89ABCDEF)]


def test_plateaus_are_those_of_the_rfc():
    # Table 7-1 of RFC 1191.
    assert PLATEAUS == (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)
    assert plateau_below(65535) == 32000 and plateau_below(68) == 68


def test_routers_that_count_the_header_twice(world):
    """RFC 1191 section 5: a quoted length above what we can have sent."""
    world.receive(error4(ICMP(type=3, code=4, nexthopmtu=0), segment(size=1520)))
    assert world.calls == [(K.TOO_BIG, 1492, key(FAR4, V4), 0x89ABCDEF)]


def test_floors(world):
    """No path has less than 296 (IPv4, RFC 1191 table 7-1) or 1280 (IPv6: discarded, RFC 8201 section 4)."""
    world.receive(error4(ICMP(type=3, code=4, nexthopmtu=68), segment()))
    world.receive(error6(ICMPv6PacketTooBig(mtu=1279), segment(FAR6)))
    world.receive(error6(ICMPv6PacketTooBig(mtu=0), segment(FAR6)))
    assert world.calls == [(K.TOO_BIG, 296, key(FAR4, V4), 0x89ABCDEF)]
    assert world.net.path_mtu(packed(FAR6)) == 1500
    world.receive(error6(ICMPv6PacketTooBig(mtu=1280), segment(FAR6)))
    assert world.net.path_mtu(packed(FAR6)) == 1280


def test_a_link_with_a_smaller_mtu():
    world = World(mtu=1400)
    world.receive(error4(ICMP(type=3, code=4, nexthopmtu=1450), segment()))
    assert world.net.path_mtu(packed(FAR4)) == 1400 and not world.calls


def test_routes_with_an_mtu_of_their_own():
    world = World(routes=[f"default via {P4} mtu 1440"])
    assert world.net.route(packed(FAR4)).mtu == world.net.path_mtu(packed(FAR4)) == 1440
    assert world.net.path_mtu(packed(P4)) == 1500


@pytest.mark.parametrize(
    "packet",
    [
        # Not ours, not TCP, cut short, a later fragment, no such code, or it would have fitted.
        error4(ICMP(type=3, code=1), segment(local="10.0.0.3")),
        error4(ICMP(type=3, code=1), IP(src=V4, dst=FAR4) / UDP(sport=80, dport=50000)),
        error4(ICMP(type=3, code=1), segment(), cut=27),
        error4(ICMP(type=3, code=1), segment(), cut=19),
        error4(ICMP(type=3, code=1), segment(), cut=0),
        error4(ICMP(type=3, code=1), segment(frag=3)),
        error4(ICMP(type=3, code=1), segment(version=6)),
        error4(ICMP(type=3, code=1), segment(ihl=4)),
        error4(ICMP(type=3, code=1), segment(ihl=15), cut=40),
        error4(ICMP(type=3, code=16), segment()),
        error4(ICMP(type=3, code=1), segment(remote="224.0.0.1")),
        error4(ICMP(type=3, code=4, nexthopmtu=1500), segment()),
        error4(ICMP(type=3, code=4, nexthopmtu=1400), segment(size=1400)),
        error6(ICMPv6DestUnreach(code=0), segment(FAR6, local="fd00::3")),
        error6(ICMPv6DestUnreach(code=0), segment(FAR6), dst=LOCAL),
        error6(ICMPv6DestUnreach(code=9), segment(FAR6)),
        error6(ICMPv6DestUnreach(code=0), segment(FAR6), cut=47),
        error6(ICMPv6DestUnreach(code=0), IPv6(src=V6, dst=FAR6) / UDP()),
        error6(ICMPv6DestUnreach(code=0), IPv6(src=V6, dst=FAR6) / IPv6ExtHdrDestOpt() / TCP()),
        error6(ICMPv6DestUnreach(code=0), segment("ff02::1")),
        error6(ICMPv6PacketTooBig(mtu=1500), segment(FAR6)),
        error6(ICMPv6PacketTooBig(mtu=1400), segment(FAR6, size=1300)),
    ],
)
def test_errors_about_nothing_of_ours(world, packet):
    world.receive(packet)
    assert not world.calls and not world.take()
    assert world.net.stats()["icmp_foreign"] == 1 and world.net.stats()["malformed"] == 0


@pytest.mark.parametrize(
    "packet",
    [
        error4(ICMP(type=3, code=1, chksum=1), segment()),
        error4(ICMP(type=3, code=1), segment(), chksum=1),
        error4(ICMP(type=3, code=1), segment(), len=27),
        error4(ICMP(type=3, code=1), segment(), len=1000),
        error4(ICMP(type=3, code=1), segment(), flags="MF"),
        error4(ICMP(type=3, code=1), segment(), src="224.0.0.1"),
        error6(ICMPv6DestUnreach(code=0, cksum=1), segment(FAR6)),
        error6(ICMPv6DestUnreach(code=0), segment(FAR6), plen=1000),
        error6(ICMPv6DestUnreach(code=0), segment(FAR6), plen=7),
        error6(ICMPv6DestUnreach(code=0), segment(FAR6), src="ff02::1"),
    ],
)
def test_malformed_errors(world, packet):
    world.receive(packet)
    assert not world.calls and not world.take() and world.net.stats()["malformed"] == 1


def test_in_a_vlan_errors_count_and_neighbours_do_not(world):
    world.resolve(P4)
    world.resolve(P6)
    for packet in (arp(), advertisement(), arp(op=2, psrc=V4), error4(ICMP(type=3, code=1), segment()),
                   error6(ICMPv6DestUnreach(code=0), segment(FAR6))):  # fmt: skip
        world.receive(packet.__class__(src=packet.src, dst=packet.dst) / Dot1Q(vlan=5) / packet.payload)
    assert world.calls == [(K.HOST_UNREACHABLE, 0, key(FAR4, V4), 0x89ABCDEF), (K.NET_UNREACHABLE, 0, key(FAR6, V6), 0x89ABCDEF)]
    assert world.state(P4) is INCOMPLETE and world.state(P6) is INCOMPLETE and world.net.stats()["conflicts"] == 0


def test_errors_to_others(world):
    world.receive(error4(ICMP(type=3, code=1), segment(local="10.0.0.3"), dst="10.0.0.3"))
    world.receive(error6(ICMPv6DestUnreach(code=0), segment(FAR6, local="fd00::3"), dst="fd00::3"))
    assert not world.calls


def test_errors_with_options_in_both_headers(world):
    options = [IPOption_NOP() for _ in range(8)]
    world.receive(error4(ICMP(type=3, code=1), segment(options=options), options=options))
    assert world.calls == [(K.HOST_UNREACHABLE, 0, key(FAR4, V4), 0x89ABCDEF)]


# -- echo, through the whole layer -------------------------------------------------------------


def test_echo(world):
    world.receive(Ether(src=PEER, dst=OURS) / IP(src=P4, dst=V4) / ICMP(id=5, seq=6) / Raw(b"hello"), port=1)
    world.receive(Ether(src=PEER, dst=OURS) / Dot1Q(vlan=9) / IPv6(src=P6, dst=V6) / ICMPv6EchoRequest(id=5, data=b"hello"))
    assert [port for _, port in world.sent] == [1, 0]
    one, two = world.take()
    assert (one[ICMP].type, one[ICMP].id, bytes(one[ICMP].payload)) == (0, 5, b"hello")
    assert two[Dot1Q].vlan == 9 and two[ICMPv6EchoReply].data == b"hello"
    stats = world.net.stats()
    assert (stats["echo"], stats["echo6"], stats["neighbours"]) == (1, 1, 0)


# -- garbage -----------------------------------------------------------------------------------

SAMPLES = [
    bytes(packet)
    for packet in (
        arp(), arp(op=1), advertisement(), error4(ICMP(type=3, code=4, nexthopmtu=1400), segment()),
        error6(ICMPv6PacketTooBig(mtu=1300), segment(FAR6)), error4(ICMP(type=11), segment()),
    )
]  # fmt: skip


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_wrong_bytes_are_survived(data):
    world = World()
    world.believe = False
    world.resolve(P4)
    world.resolve(P6)
    frame = bytearray(data.draw(st.one_of(st.sampled_from(SAMPLES), st.binary(max_size=120))))
    for _ in range(data.draw(st.integers(0, 4))):
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    world.net.receive(memoryview(frame)[: data.draw(st.integers(0, len(frame)))], 0, world.now)
    world.run(10)
    assert len(world.net.neighbours) <= 3 and world.net.path_mtu(packed(FAR4)) == 1500
