"""Segments off the wire and the headers that go back, against scapy."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
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
