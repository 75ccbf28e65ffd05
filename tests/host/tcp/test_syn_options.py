"""Options of TCP headers, read and written, against scapy and the RFCs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from acceltcp.host.tcp.segment import Segment, SynOptions

M32 = 0xFFFFFFFF
SYN, ACK = 2, 16


def segment_of(options: bytes, flags: int, ipv6: bool = False, payload: bytes = b"data") -> Segment:
    """A segment with exactly these bytes of options."""
    assert len(options) % 4 == 0
    tcp = TCP(sport=1, dport=2, seq=7, flags=flags, dataofs=5 + len(options) // 4)
    ip = IPv6(src="fd00::1", dst="fd00::2") if ipv6 else IP(src="10.0.0.1", dst="10.0.0.2")
    # With its addresses given, scapy asks nobody for them.
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    raw = bytes(link / ip / tcp / (options + payload))
    return Segment(memoryview(raw.ljust(60, b"\0")), 14, 54 if ipv6 else 34, ipv6)


def by_scapy(options: list) -> bytes:
    """Options as scapy writes them, padded with end-of-list."""
    return bytes(TCP(options=options))[20:]


def fields(options: SynOptions) -> tuple:
    return options.mss, options.wscale, options.sack, options.tsval, options.tsecr


def plain(options: bytes) -> tuple | None:
    """RFC 9293 section 3.1, as plainly as can be: what a SYN says; None: malformed."""
    said: dict[int, bytes] = {}
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        if len(options) < 2 or options[1] < 2 or options[1] > len(options):
            return None
        kind, value, options = options[0], options[2 : options[1]], options[options[1] :]
        right = {2: [2], 3: [1], 4: [0], 5: [8, 16, 24, 32], 8: [8]}
        if kind in right and len(value) not in right[kind]:
            return None
        said[kind] = value
        if kind == 2 and not any(value):
            del said[2]
    stamps = said.get(8)
    return (
        int.from_bytes(said[2], "big") if 2 in said else None,
        min(said[3][0], 14) if 3 in said else None,
        4 in said,
        int.from_bytes(stamps[:4], "big") if stamps else None,
        int.from_bytes(stamps[4:], "big") if stamps else 0,
    )


well_formed = st.one_of(
    st.just(b"\x01"),
    st.integers(0, 0xFFFF).map(lambda mss: b"\x02\x04" + mss.to_bytes(2, "big")),
    st.integers(0, 255).map(lambda shift: bytes((3, 3, shift))),
    st.just(b"\x04\x02"),
    st.binary(min_size=8, max_size=8).map(lambda stamps: b"\x08\x0a" + stamps),
    st.binary(min_size=8, max_size=16).filter(lambda b: len(b) % 8 == 0).map(lambda b: bytes((5, len(b) + 2)) + b),
    st.tuples(st.integers(9, 255), st.binary(max_size=10)).map(lambda o: bytes((o[0], len(o[1]) + 2)) + o[1]),
)
odd = st.one_of(st.just(b"\x00"), st.tuples(st.sampled_from([2, 3, 4, 5, 8, 254]), st.integers(0, 45)).map(bytes), st.binary(max_size=6))
lists = st.one_of(
    st.lists(well_formed, max_size=9).map(b"".join),
    st.lists(st.one_of(well_formed, odd), max_size=9).map(b"".join),
    st.binary(max_size=40),
).map(lambda raw: raw[:40].ljust(-(-len(raw[:40]) // 4) * 4, b"\x01"))


@given(lists)
@settings(max_examples=500, deadline=None)
def test_any_list_of_a_syn(options):
    want = plain(options)
    got = SynOptions.parse(b"\x02\x02" + options + b"\x08\x0a", 2, 2 + len(options))
    assert (got and fields(got)) == want
    got = segment_of(options, SYN).syn_options()
    assert (got and fields(got)) == want


@given(lists, st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_list_of_an_established_connection(options, ipv6):
    """What stands before the first fault counts."""
    segment = segment_of(options, ACK, ipv6)
    stamps, sack = None, ()
    at = 0
    # The longest beginning that is a list without fault, item by item.
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        item = options[at : at + length]
        if length < 2 or len(item) < length or plain(item) is None:
            break
        if item[0] == 8:
            stamps = item[2:]
        if item[0] == 5:
            sack = tuple(
                (int.from_bytes(item[i : i + 4], "big"), int.from_bytes(item[i + 4 : i + 8], "big")) for i in range(2, length, 8)
            )
        at += length
    assert segment.ts == (stamps is not None)
    assert (segment.tsval, segment.tsecr) == (
        (int.from_bytes(stamps[:4], "big"), int.from_bytes(stamps[4:], "big")) if stamps else (0, 0)
    )
    assert segment.sack == sack
    assert bytes(segment.payload) == b"data" and segment.seq == 7


@pytest.mark.parametrize("seed", range(20))
def test_what_scapy_writes(seed):
    chooser = random.Random(seed)
    mss, shift, stamps = chooser.randint(1, 65535), chooser.randint(0, 14), (chooser.getrandbits(32), chooser.getrandbits(32))
    every = [("MSS", mss), ("WScale", shift), ("SAckOK", b""), ("Timestamp", stamps), (253, b"unknown"), ("NOP", None)]
    chosen = chooser.sample(every, chooser.randint(0, 6))
    names = [name for name, _ in chosen]
    got = segment_of(by_scapy(chosen), SYN, chooser.random() < 0.5).syn_options()
    assert fields(got) == (
        mss if "MSS" in names else None,
        shift if "WScale" in names else None,
        "SAckOK" in names,
        *(stamps if "Timestamp" in names else (None, 0)),
    ), f"seed {seed}: {chosen}"


@given(
    st.none() | st.integers(1, 0xFFFF), st.none() | st.integers(0, 14), st.booleans(), st.none() | st.integers(0, M32), st.integers(0, M32)
)
@settings(max_examples=300, deadline=None)
def test_what_scapy_reads(mss, wscale, sack, tsval, tsecr):
    raw = SynOptions(mss, wscale, sack, tsval, tsecr).build()
    assert len(raw) % 4 == 0 and len(raw) <= 20
    read = TCP(bytes(TCP(dataofs=5 + len(raw) // 4))[:20] + raw).options
    said = {name: value for name, value in read if name != "NOP"}
    assert len(said) == sum(name != "NOP" for name, _ in read), "nothing is said twice"
    want = {}
    if mss is not None:
        want["MSS"] = mss
    if wscale is not None:
        want["WScale"] = wscale
    if sack:
        want["SAckOK"] = b""
    if tsval is not None:
        want["Timestamp"] = (tsval, tsecr)
    assert said == want
    # And what one side builds the other understands.
    assert fields(SynOptions.parse(raw, 0, len(raw))) == (mss, wscale, sack, tsval, tsecr if tsval is not None else 0)


def test_clocks_wrap():
    raw = SynOptions(tsval=(1 << 32) + 5, tsecr=1 << 33 | 6).build()
    assert (raw[4:8], raw[8:12]) == ((5).to_bytes(4, "big"), (6).to_bytes(4, "big"))


@pytest.mark.parametrize("shift", [14, 15, 16, 255])
def test_larger_shifts_count_as_14(shift):
    """RFC 7323 section 2.3."""
    assert SynOptions.parse(bytes((3, 3, shift, 0)), 0, 4).wscale == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mss": 0}, "the MSS must be from 1 to 65535, not 0"),
        ({"mss": 65536}, "the MSS must be from 1 to 65535, not 65536"),
        ({"wscale": 15}, "the window's shift must be from 0 to 14, not 15"),
        ({"wscale": -1}, "the window's shift must be from 0 to 14, not -1"),
    ],
)
def test_what_cannot_be_said(options, message):
    with pytest.raises(ValueError, match=message):
        SynOptions(**options).build()


def test_no_mss_in_a_segment_without_syn():
    with pytest.raises(ValueError, match="only a segment with SYN"):
        segment_of(by_scapy([("MSS", 1460)]), ACK).syn_options()


def test_blocks_in_a_syn_are_not_believed():
    """RFC 2018 section 3: the SACK option is sent once the connection is established."""
    segment = segment_of(by_scapy([("SAck", (1, 2))]), SYN | ACK)
    assert segment.sack == () and segment.syn_options() is not None


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("stamps", [False, True])
def test_blocks_by_scapy(count, stamps):
    if stamps and count == 4:
        count = 3  # 40 bytes are all there is
    edges = tuple(range(M32 - 3, M32 - 3 + 2 * count))
    edges = tuple(edge & M32 for edge in edges)
    options = [("NOP", None), ("NOP", None), ("Timestamp", (3, 4))] if stamps else []
    segment = segment_of(by_scapy([*options, ("NOP", None), ("NOP", None), ("SAck", edges)]), ACK)
    assert segment.sack == tuple(zip(edges[::2], edges[1::2], strict=True))
    assert segment.ts == stamps
