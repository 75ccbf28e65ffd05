"""Segments off the wire and the headers that go back, against scapy."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from scapy.layers.inet import IP, TCP, IPOption
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import Dot1Q, Ether

from acceltcp.abi.messages import TxFlag
from acceltcp.host.tcp.segment import Peer, Segment, supersedes

M32 = 0xFFFFFFFF


def frame_of(ipv6: bool, vlan: bool, tos: int = 0, payload: bytes = b"", **tcp) -> tuple[memoryview, int, int]:
    """A frame, padded like on the wire, and the offsets of its IP and TCP headers."""
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    if vlan:
        link /= Dot1Q(prio=3, vlan=77)
    ip = IPv6(src="fd00::1", dst="fd00::2", tc=tos) if ipv6 else IP(src="10.0.0.1", dst="10.0.0.2", tos=tos)
    raw = bytes(link / ip / TCP(sport=40000, dport=80, **tcp) / payload)
    l3 = 18 if vlan else 14
    return memoryview(raw.ljust(60, b"\0")), l3, l3 + (40 if ipv6 else 20)


kinds = pytest.mark.parametrize(("ipv6", "vlan"), [(False, False), (True, False), (False, True), (True, True)])


@kinds
@pytest.mark.parametrize("seed", range(5))
def test_fields(ipv6, vlan, seed):
    chooser = random.Random(seed)
    seq, ack = chooser.getrandbits(32), chooser.getrandbits(32)
    flags, window, tos = chooser.getrandbits(8), chooser.getrandbits(16), chooser.getrandbits(8)
    payload = chooser.randbytes(chooser.choice([0, 1, 3, 1000]))
    view, l3, l4 = frame_of(ipv6, vlan, tos, payload, seq=seq, ack=ack, flags=flags, window=window)
    segment = Segment(view, l3, l4, ipv6)
    assert (segment.seq, segment.ack, segment.flags, segment.window) == (seq, ack, flags, window), f"seed {seed}"
    assert bytes(segment.payload) == payload and segment.ce == (tos & 3 == 3), f"seed {seed}"
    assert not segment.ts and segment.tsval == segment.tsecr == 0
    assert segment.sack == ()


STAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (0xFEDCBA98, 7))]
ends = {
    False: bytes((10, 0, 0, 1, 10, 0, 0, 2)) + (40000).to_bytes(2, "big") + (80).to_bytes(2, "big"),
    True: b"\xfd" + bytes(14) + b"\x01\xfd" + bytes(14) + b"\x02" + (40000).to_bytes(2, "big") + (80).to_bytes(2, "big"),
}


@kinds
@pytest.mark.parametrize("options", [[], STAMPS, [*STAMPS, ("NOP", None), ("NOP", None), ("SAck", (5, 6))], [("MSS", 1)]])
@pytest.mark.parametrize("seed", range(3))
def test_all_fields_whatever_the_options(ipv6, vlan, options, seed):
    """Each form of frame has its own way through the parser; all say the same."""
    chooser = random.Random(seed)
    seq, ack, window, urgent = (chooser.getrandbits(bits) for bits in (32, 32, 16, 16))
    flags, tos = chooser.getrandbits(8), chooser.getrandbits(8)
    payload = chooser.randbytes(chooser.choice([0, 1, 1000]))
    view, l3, l4 = frame_of(
        ipv6, vlan, tos, payload, seq=seq, ack=ack, flags=flags, window=window, urgptr=urgent, options=options
    )
    segment = Segment(view, l3, l4, ipv6)
    assert (segment.seq, segment.ack, segment.flags, segment.window) == (seq, ack, flags, window), f"seed {seed}"
    assert (segment.urgent, segment.ce, bytes(segment.payload)) == (urgent, tos & 3 == 3, payload), f"seed {seed}"
    assert (segment.key, segment.mac.hex()) == (ends[ipv6], "020000000001")
    stamped = options[:3] == STAMPS
    assert (segment.ts, segment.tsval, segment.tsecr) == ((True, 0xFEDCBA98, 7) if stamped else (False, 0, 0))
    assert segment.sack == (((5, 6),) if len(options) > 3 and not flags & 2 else ())


@kinds
@pytest.mark.parametrize("options", [[], STAMPS])
def test_headers_between_ip_and_tcp(ipv6, vlan, options):
    """IP options and extension headers: the NIC says where TCP begins."""
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    if vlan:
        link /= Dot1Q(vlan=77)
    if ipv6:
        ip, more = IPv6(src="fd00::1", dst="fd00::2", tc=3) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]), 8
    else:
        ip, more = IP(src="10.0.0.1", dst="10.0.0.2", tos=3, options=[IPOption(b"\x01" * 20)]), 20
    raw = bytes(link / ip / TCP(sport=40000, dport=80, seq=5, ack=6, flags="A", options=options) / b"data")
    l3 = 18 if vlan else 14
    l4 = l3 + (40 if ipv6 else 20) + more
    segment = Segment(memoryview(raw + b"padding"), l3, l4, ipv6)
    assert (segment.seq, segment.ack, segment.key, segment.mac.hex()) == (5, 6, ends[ipv6], "020000000001")
    assert (segment.ce, bytes(segment.payload), segment.ts) == (True, b"data", bool(options))
    # The answer has no such headers.
    peer, slot = Peer(memoryview(raw), l3, l4, ipv6, 1), bytearray(100)
    at = peer.build(slot, 1, 2, 0x10, 3, b"", False, 0)
    answer = Ether(bytes(slot[:at]))[TCP]
    assert at == peer.l4 + 20 == l3 + (60 if ipv6 else 40)
    assert (answer.sport, answer.dport, answer.seq, answer.ack, answer.window) == (80, 40000, 1, 2, 3)


@kinds
def test_a_segment_can_be_used_again(ipv6, vlan):
    """Nothing of the frame before is left."""
    rich = frame_of(
        ipv6, vlan, 3, b"data", flags="A", urgptr=9, options=[*STAMPS, ("NOP", None), ("NOP", None), ("SAck", (5, 6))]
    )
    bare = frame_of(ipv6, vlan, 0, b"", flags="S", seq=4)
    segment = Segment(*rich, ipv6)
    for view, l3, l4 in (bare, rich, bare):
        segment.parse(view, l3, l4, ipv6)
    fresh = Segment(*bare, ipv6)
    assert all(getattr(segment, name) == getattr(fresh, name) for name in Segment.__slots__)
    assert segment.syn_options().mss is None


def test_a_syn_with_timestamps_only_is_a_syn():
    """It looks like the frames that come most, and its options can be asked for."""
    for ipv6 in (False, True):
        segment = Segment(*frame_of(ipv6, False, flags="S", options=STAMPS), ipv6)
        options = segment.syn_options()
        assert (segment.flags, segment.ts, segment.tsval) == (2, True, 0xFEDCBA98)
        assert (options.tsval, options.tsecr, options.mss) == (0xFEDCBA98, 7, None)


@kinds
@pytest.mark.parametrize(
    "options",
    [
        [("NOP", None), ("NOP", None), ("Timestamp", (0xFEDCBA98, 7))],
        [("Timestamp", (0xFEDCBA98, 7)), ("NOP", None), ("NOP", None)],
        [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (0xFEDCBA98, 7)), ("NOP", None), ("WScale", 7)],
        [("NOP", None), ("NOP", None), ("Timestamp", (0xFEDCBA98, 7)), ("NOP", None), ("NOP", None), ("SAck", (1, 2))],
        [("NOP", None), ("NOP", None), ("SAck", (1, 2)), ("NOP", None), ("NOP", None), ("Timestamp", (0xFEDCBA98, 7))],
        [(253, b"ab"), ("Timestamp", (0xFEDCBA98, 7))],
    ],
)
def test_timestamps_wherever_they_stand(ipv6, vlan, options):
    view, l3, l4 = frame_of(ipv6, vlan, payload=b"data", options=options, flags="A")
    segment = Segment(view, l3, l4, ipv6)
    assert (segment.ts, segment.tsval, segment.tsecr) == (True, 0xFEDCBA98, 7)
    assert bytes(segment.payload) == b"data"


@pytest.mark.parametrize(
    "raw",
    [
        bytes.fromhex("00080a0000000100000002" + "00"),  # behind the end of options
        bytes.fromhex("080b000000010000000200" + "01"),  # of a wrong length
        bytes.fromhex("0101010101010101" + "01080a00"),  # beyond the header
        bytes.fromhex("fd0000000000000000000000"),  # behind an option of no length
        bytes.fromhex("fd0100000000000000000000"),
        bytes.fromhex("0101010101010101010101" + "08"),  # its kind is the last byte
    ],
)
def test_malformed_options_end_the_search(raw):
    view, l3, l4 = frame_of(False, False, payload=raw + b"data", dataofs=5 + len(raw) // 4)
    segment = Segment(view, l3, l4, False)
    assert not segment.ts and bytes(segment.payload) == b"data"


@kinds
@pytest.mark.parametrize("ect", [False, True])
@pytest.mark.parametrize("payload", [b"", b"some data"])
@pytest.mark.parametrize("timestamps", [False, True])
def test_reply_goes_back_the_same_way(ipv6, vlan, ect, payload, timestamps):
    peer = Peer(*frame_of(ipv6, vlan, tos=3, payload=b"request", flags="PA"), ipv6, 1)
    options = bytes.fromhex("0101080a") + (5).to_bytes(4, "big") + (6).to_bytes(4, "big") if timestamps else b""
    slot = bytearray(b"\xee" * 200)
    at = peer.build(slot, (1 << 32) + 8, 1 << 33 | 9, 0x18, 1234, options, ect, len(payload))
    slot[at : at + len(payload)] = payload

    link = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
    if vlan:
        link /= Dot1Q(prio=3, vlan=77)
    tos = 2 if ect else 0
    ip = IPv6(src="fd00::2", dst="fd00::1", tc=tos) if ipv6 else IP(src="10.0.0.2", dst="10.0.0.1", tos=tos, flags="DF", id=0)
    said = [("NOP", None), ("NOP", None), ("Timestamp", (5, 6))] if timestamps else []
    want = link / ip / TCP(sport=80, dport=40000, seq=8, ack=9, flags="PA", window=1234, options=said, chksum=0) / payload
    if not ipv6:
        want[IP].chksum = 0  # the NIC fills them in
    assert bytes(slot[: at + len(payload)]) == bytes(want)
    assert slot[at + len(payload) :] == b"\xee" * (200 - at - len(payload))
    assert (peer.l3, peer.l4, peer.ipv6, peer.port) == (18 if vlan else 14, at - 20 - len(options), ipv6, 1)
    assert peer.tx_flags == TxFlag.L4_CHECKSUM | (TxFlag.IPV6 if ipv6 else TxFlag.IPV4_CHECKSUM)


def header_of(ipv6: bool, vlan: bool) -> bytes:
    """Link header of what we send."""
    link = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01", type=0x86DD if ipv6 else 0x0800)
    if vlan:
        link = Ether(src=link.src, dst=link.dst) / Dot1Q(prio=3, vlan=77, type=link.type)
    return bytes(link)


def route_of(ipv6: bool, vlan: bool, **more) -> Peer:
    ours, theirs = ends[ipv6][len(ends[ipv6]) // 2 - 2 : -4], ends[ipv6][: len(ends[ipv6]) // 2 - 2]
    return Peer.route(header_of(ipv6, vlan), ours, theirs, 80, 40000, 1, **more)


@kinds
@pytest.mark.parametrize("ect", [False, True])
def test_a_route_is_like_a_peer_that_has_sent(ipv6, vlan, ect):
    answered = Peer(*frame_of(ipv6, vlan, flags="A"), ipv6, 1)
    routed = route_of(ipv6, vlan)
    slots = bytearray(200), bytearray(200)
    at = [peer.build(slot, 5, 6, 0x10, 7, bytes(12), ect, 3) for peer, slot in zip((answered, routed), slots, strict=True)]
    assert at[0] == at[1] and slots[0] == slots[1]
    for name in ("ipv6", "l3", "l4", "mac", "port", "tx_flags", "link", "tos", "ttl"):
        assert getattr(answered, name) == getattr(routed, name)


@kinds
@pytest.mark.parametrize("ect", [False, True])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("tos", [0, 0xB8, 0xFF])
def test_type_of_service_and_hop_limit(ipv6, vlan, ect, later, tos):
    """The lower two bits are ECN's, whatever the user says (RFC 3168 section 5)."""
    if later:
        peer = Peer(*frame_of(ipv6, vlan, flags="A"), ipv6, 1)
        peer.tos, peer.ttl = tos, 3
    else:
        peer = route_of(ipv6, vlan, tos=tos, ttl=3)
    slot = bytearray(100)
    peer.build(slot, 0, 0, 0, 0, b"", ect, 0)
    ip = Ether(bytes(slot))[IPv6 if ipv6 else IP]
    marked = tos & 0xFC | (2 if ect else 0)
    assert (ip.tc, ip.hlim) == (marked, 3) if ipv6 else (ip.tos, ip.ttl) == (marked, 3)
    assert (peer.tos, peer.ttl) == (tos & 0xFC, 3)
    assert (ip.src, ip.dst) == (("fd00::2", "fd00::1") if ipv6 else ("10.0.0.2", "10.0.0.1"))


@kinds
def test_another_way_to_the_peer(ipv6, vlan):
    peer, slot = route_of(ipv6, vlan, tos=8, ttl=9), bytearray(100)
    link = bytes.fromhex("020000000009") + header_of(ipv6, vlan)[6:]
    peer.link = link
    peer.build(slot, 0, 0, 0, 0, b"", False, 0)
    assert slot[: len(link)] == link == peer.link and peer.mac == link[:6]
    assert (peer.tos, peer.ttl) == (8, 9)
    with pytest.raises(ValueError, match=f"must keep its {len(link)} bytes, not have 3"):
        peer.link = b"abc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"src": bytes(5)}, "4 or both 16 bytes, not 5 and 4"),
        ({"src": bytes(16)}, "4 or both 16 bytes, not 16 and 4"),
        ({"link": bytes(13)}, "14 or 18 bytes, not 13"),
        ({"link": bytes(12) + b"\x86\xdd"}, "EtherType 86dd is not that of IPv4"),
        ({"sport": 0}, "the source port must be from 1 to 65535, not 0"),
        ({"dport": 65536}, "the destination port must be from 1 to 65535, not 65536"),
        ({"tos": 256}, "the type of service must be from 0 to 255, not 256"),
        ({"ttl": 0}, "the hop limit must be from 1 to 255, not 0"),
    ],
)
def test_routes_that_are_none(change, message):
    right = {"link": bytes(12) + b"\x08\x00", "src": bytes(4), "dst": bytes(4), "sport": 1, "dport": 2, "port": 0}
    Peer.route(**right)
    with pytest.raises(ValueError, match=message):
        Peer.route(**(right | change))


@pytest.mark.parametrize("rcv_nxt", [0, 5, 1 << 31, M32])
@pytest.mark.parametrize(("ahead", "newer"), [(0, False), (1, True), ((1 << 31) - 1, True), (1 << 31, False), (-1, False)])
@pytest.mark.parametrize("both", [False, True])
def test_newer_handshake_by_sequence_number(rcv_nxt, ahead, newer, both):
    """Without timestamps on both sides, and with equal ones, the sequence number decides (RFC 6191 section 2)."""
    segment = SimpleNamespace(seq=rcv_nxt + ahead & M32, ts=both, tsval=7)
    old = SimpleNamespace(rcv_nxt=rcv_nxt, timestamps=both, ts_recent=7)
    assert supersedes(segment, old) is newer


@pytest.mark.parametrize("ts_recent", [0, 5, 1 << 31, M32])
@pytest.mark.parametrize(("ahead", "newer"), [(1, True), ((1 << 31) - 1, True), (1 << 31, False), (-1, False)])
@pytest.mark.parametrize("seq", [99, 101])
def test_newer_handshake_by_timestamp(ts_recent, ahead, newer, seq):
    segment = SimpleNamespace(seq=seq, ts=True, tsval=ts_recent + ahead & M32)
    assert supersedes(segment, SimpleNamespace(rcv_nxt=100, timestamps=True, ts_recent=ts_recent)) is newer
