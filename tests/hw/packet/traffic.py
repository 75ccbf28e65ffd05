"""Frames for the tests of the receive path, and what an independent reader makes of them.

Field values come from scapy's own dissection; only what scapy has no opinion about (contradicting
lengths, malformed option lists) is written out here, byte by byte, from the RFCs.
"""

from __future__ import annotations

import ipaddress
import random
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, in4_chksum
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, in6_chksum
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

__all__ = ["cases", "good_options", "option_reference", "options_of", "reference", "tcp_frame"]

NONE, GOOD, BAD = 0, 1, 2
MAX_SHIFT = 14
NO_SHIFT = 15


# --- TCP options -----------------------------------------------------------------------------


def good_options(rng: random.Random) -> bytes:
    """A legal option list of any mix, order and padding, 0 to 40 bytes, a multiple of 4."""
    pool = [
        b"\x02\x04" + rng.randbytes(2),
        b"\x03\x03" + bytes([rng.randrange(0, 20)]),
        b"\x04\x02",
        b"\x08\x0a" + rng.randbytes(8),
        b"\x05" + bytes([10]) + rng.randbytes(8),
        b"\x22\x06" + rng.randbytes(4),  # Fast Open cookie: unknown here
        bytes([rng.randrange(30, 256), 5]) + rng.randbytes(3),
        b"\x01",
        b"\x01\x01",
        b"\x01\x01\x01",
        b"\x02\x04" + rng.randbytes(2),
    ]
    rng.shuffle(pool)
    out = b""
    for option in pool[: rng.randrange(0, len(pool) + 1)]:
        if len(out) + len(option) <= 40:
            out += option
    space = -len(out) % 4
    if space and rng.random() < 0.5:
        return out + b"\x01" * space
    if space:
        return out + b"\x00" + rng.randbytes(space - 1)  # nothing after end-of-list counts
    if len(out) < 40 and rng.random() < 0.2:
        return out + b"\x00" + rng.randbytes(3)
    return out


def bad_options(rng: random.Random) -> bytes:
    """An option list with something wrong in it, somewhere."""
    wrong = rng.choice(
        [
            b"\x02\x03\x05",
            b"\x02\x05\x05\x06\x07",
            b"\x03\x02",
            b"\x03\x04\x01\x01",
            b"\x04\x03\x01",
            b"\x05\x09" + bytes(7),
            b"\x05\x02",
            b"\x08\x09" + bytes(7),
            b"\x08\x0b" + bytes(9),
            b"\x63\x00",
            b"\x63\x01",
            b"\x63\xff",
            b"\x63\x29",
        ]
    )
    head = good_options(rng)
    if 0 in head:
        head = b"\x01" * rng.randrange(0, 8)
    if len(head) + len(wrong) > 40:
        head = b"\x01" * rng.randrange(0, 40 - len(wrong) + 1)
    out = head + wrong
    return out + b"\x01" * (-len(out) % 4)


def option_reference(octets: bytes) -> dict[str, int]:
    """The list read byte by byte, as RFC 9293 section 3.1 says."""
    result = {"bad": 0, "wscale": NO_SHIFT, "sack": 0, "mss_present": 0, "timestamps": 0}
    at = 0
    while at < len(octets):
        kind = octets[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        length = octets[at + 1] if at + 1 < len(octets) else 0
        legal = {2: (4,), 3: (3,), 4: (2,), 5: (10, 18, 26, 34), 8: (10,)}.get(kind)
        if length < 2 or at + length > len(octets) or (legal and length not in legal):
            result["bad"] = 1
            break
        value = octets[at + 2 : at + length]
        if kind == 2:
            result.update(mss_present=1, mss=int.from_bytes(value, "big"))
        elif kind == 3:
            result["wscale"] = min(value[0], MAX_SHIFT)
        elif kind == 4:
            result["sack"] = 1
        elif kind == 8:
            result.update(
                timestamps=1,
                tsval=int.from_bytes(value[:4], "big"),
                tsecr=int.from_bytes(value[4:], "big"),
            )
        at += length
    return result


def scapy_options(segment: TCP) -> dict[str, int]:
    """The same from scapy's dissection; for legal lists only."""
    result = {"bad": 0, "wscale": NO_SHIFT, "sack": 0, "mss_present": 0, "timestamps": 0}
    for name, value in segment.options:
        if name == "MSS":
            result.update(mss_present=1, mss=value)
        elif name == "WScale":
            result["wscale"] = min(value, MAX_SHIFT)
        elif name == "SAckOK":
            result["sack"] = 1
        elif name == "Timestamp":
            result.update(timestamps=1, tsval=value[0], tsecr=value[1])
    return result


def options_of(segment: bytes) -> dict[str, int]:
    """Options of a TCP segment; scapy and the byte-by-byte reader must agree on legal ones."""
    result = option_reference(segment[20 : 4 * (segment[12] >> 4)])
    if not result["bad"]:
        assert scapy_options(TCP(segment)) == result
    return result


# --- whole frames ----------------------------------------------------------------------------


def reference(frame: bytes) -> dict[str, Any]:
    """Expected fields of `RxMeta`; fields that mean nothing for this frame are left out."""
    link = Ether(frame)
    want: dict[str, Any] = {
        "length": len(frame),
        "dst_mac": int(link.dst.replace(":", ""), 16),
        "src_mac": int(link.src.replace(":", ""), 16),
        **dict.fromkeys(
            (
                "vlan", "vlan_tci", "ipv4", "ipv6", "fragment", "ip_options", "tcp", "length_bad",
                "ip_checksum", "l4_checksum", "l3_offset", "l4_offset", "payload_offset", "payload_length",
            ),
            0,
        ),
        "options": {"bad": 0, "wscale": NO_SHIFT, "sack": 0, "mss_present": 0, "timestamps": 0},
    }  # fmt: skip
    at, kind = 14, getattr(link, "type", 0)  # 0: scapy reads 802.3 length fields as Dot3
    if kind == 0x8100:
        tag = link[Dot1Q]
        dei = tag.fields.get("dei", tag.fields.get("id"))
        want.update(vlan=1, vlan_tci=tag.prio << 13 | dei << 12 | tag.vlan)
        at, kind = 18, tag.type
    rest = frame[at:]
    if kind == 0x0800 and rest[0] >> 4 == 4 and rest[0] & 15 >= 5:
        segment, protocol = _ipv4(want, rest)
    elif kind == 0x86DD and rest[0] >> 4 == 6:
        segment, protocol = _ipv6(want, rest)
    else:
        return want
    want["l3_offset"] = at
    if protocol == 6 and not (want["length_bad"] or want["fragment"] or want["ip_options"]):
        _tcp(want, segment, len(frame), at)
    return want


def _ipv4(want: dict[str, Any], rest: bytes) -> tuple[bytes, int]:
    ip = IP(rest)
    header = 4 * ip.ihl
    want.update(
        ipv4=1,
        fragment=int(bool(ip.flags.MF or ip.frag)),
        ip_options=int(ip.ihl > 5),
        length_bad=int(ip.len < header or ip.len > len(rest)),
        src=int(ipaddress.ip_address("::ffff:" + ip.src)),
        dst=int(ipaddress.ip_address("::ffff:" + ip.dst)),
    )
    if ip.ihl == 5:
        want["ip_checksum"] = GOOD if checksum(rest[:20]) == 0 else BAD
    segment = rest[header : ip.len]
    if ip.proto == 6 and not want["length_bad"] and len(segment) >= 20:
        want["_l4_sum"] = in4_chksum(6, IP(src=ip.src, dst=ip.dst, len=ip.len), segment)
    return segment, ip.proto


def _ipv6(want: dict[str, Any], rest: bytes) -> tuple[bytes, int]:
    ip = IPv6(rest[:40])
    want.update(
        ipv6=1,
        length_bad=int(ip.plen + 40 > len(rest)),
        src=int(ipaddress.ip_address(ip.src)),
        dst=int(ipaddress.ip_address(ip.dst)),
    )
    segment = rest[40 : 40 + ip.plen]
    want["_l4_sum"] = in6_chksum(6, IPv6(src=ip.src, dst=ip.dst), segment)
    return segment, ip.nh


def _tcp(want: dict[str, Any], segment: bytes, length: int, l3: int) -> None:
    header = 4 * (segment[12] >> 4) if len(segment) >= 20 else 0
    if not 20 <= header <= len(segment):
        want["length_bad"] = 1
        return
    tcp = TCP(segment)
    l4 = l3 + (20 if want["ipv4"] else 40)
    want.update(
        tcp=1,
        l4_offset=l4,
        payload_offset=l4 + header,
        payload_length=len(segment) - header,
        src_port=tcp.sport,
        dst_port=tcp.dport,
        seq=tcp.seq,
        ack=tcp.ack,
        flags=int(tcp.flags) & 0xFF,
        window=tcp.window,
        l4_checksum=GOOD if want["_l4_sum"] == 0 else BAD,
        options=options_of(segment),
    )


def tcp_frame(
    rng: random.Random,
    *,
    ipv6: bool | None = None,
    vlan: bool | None = None,
    options: bytes | None = None,
    payload: bytes | None = None,
    ip: dict[str, Any] | None = None,
    tcp: dict[str, Any] | None = None,
    tags: list[Packet] | None = None,
) -> bytes:
    """A correct TCP frame with random fields, padded to 60 bytes."""
    ipv6 = rng.random() < 0.5 if ipv6 is None else ipv6
    vlan = rng.random() < 0.5 if vlan is None else vlan
    options = good_options(rng) if options is None else options
    payload = rng.randbytes(rng.choice((0, 0, 1, 2, rng.randrange(0, 200)))) if payload is None else payload
    frame: Packet = Ether(dst=_mac(rng), src=_mac(rng))
    if tags is None:
        tags = [Dot1Q(vlan=rng.randrange(4096), prio=rng.randrange(8))] if vlan else []
    for tag in tags:
        frame = frame / tag
    if ipv6:
        frame = frame / IPv6(
            src=str(ipaddress.IPv6Address(rng.randbytes(16))),
            dst=str(ipaddress.IPv6Address(rng.randbytes(16))),
            **(ip or {}),
        )
    else:
        frame = frame / IP(
            src=str(ipaddress.IPv4Address(rng.randbytes(4))),
            dst=str(ipaddress.IPv4Address(rng.randbytes(4))),
            id=rng.randrange(65536),
            **(ip or {}),
        )
    # The option bytes go in as if they were payload; only the data offset tells.
    fields = {
        "sport": rng.randrange(65536),
        "dport": rng.randrange(65536),
        "seq": rng.getrandbits(32),
        "ack": rng.getrandbits(32),
        "flags": rng.randrange(256),
        "window": rng.randrange(65536),
        "dataofs": 5 + len(options) // 4,
        **(tcp or {}),
    }
    return _pad(rng, bytes(frame / TCP(**fields) / Raw(options + payload)))


def _mac(rng: random.Random) -> str:
    return rng.randbytes(6).hex(":")


def _pad(rng: random.Random, frame: bytes) -> bytes:
    # Padding is random, not zero: it must not enter any sum.
    return frame + rng.randbytes(max(0, 60 - len(frame)))


def cases(rng: random.Random, count: int) -> list[bytes]:
    """`count` frames of all kinds, legal and not, each at least 60 bytes."""
    makers = [
        lambda: tcp_frame(rng),
        lambda: tcp_frame(rng),
        lambda: tcp_frame(rng, payload=b"", options=b""),
        lambda: tcp_frame(rng, options=bad_options(rng)),
        lambda: _flip(rng, tcp_frame(rng)),
        lambda: _bad_sum(rng),
        lambda: tcp_frame(rng)[: rng.randrange(60, 70)],  # truncated
        lambda: tcp_frame(rng) + rng.randbytes(rng.randrange(1, 80)),  # padded beyond need
        lambda: tcp_frame(rng, ipv6=False, ip={"len": rng.choice((0, 19, 20, 39, 40, 41, 60, 400, 65535))}),
        lambda: tcp_frame(rng, ipv6=True, ip={"plen": rng.choice((0, 19, 20, 21, 40, 400, 65535))}),
        lambda: tcp_frame(rng, tcp={"dataofs": rng.choice((0, 4, 5, 6, 9, 15))}),
        lambda: tcp_frame(rng, ipv6=False, ip={"options": rng.choice(([b"\x94\x04\0\0"], [b"\x01" * 4]))}),
        lambda: tcp_frame(rng, ipv6=False, ip={"flags": "MF", "frag": rng.choice((0, 3))}),
        lambda: tcp_frame(rng, ipv6=False, ip={"frag": rng.choice((1, 8191))}),
        lambda: tcp_frame(rng, ipv6=False, ip={"flags": "DF"}),
        lambda: tcp_frame(rng, ip={"version": rng.choice((0, 4, 5, 6, 15))}),
        lambda: tcp_frame(rng, ipv6=False, ip={"ihl": rng.choice((0, 4, 6, 15))}),
        lambda: tcp_frame(rng, tags=[Dot1Q(vlan=5), Dot1Q(vlan=6)]),
        lambda: tcp_frame(rng, tags=[Dot1AD(vlan=5), Dot1Q(vlan=6)]),
        lambda: _pad(rng, bytes(Ether(dst=_mac(rng), src=_mac(rng)) / ARP())),
        lambda: _pad(rng, bytes(Ether() / IP(dst="10.1.1.1") / UDP() / Raw(b"u" * rng.randrange(50)))),
        lambda: _pad(rng, bytes(Ether() / Dot1Q(vlan=9) / IP(dst="10.1.1.1") / ICMP() / Raw(b"x" * 30))),
        lambda: _pad(rng, bytes(Ether() / IPv6() / ICMPv6EchoRequest(data=b"y" * 7))),
        lambda: _pad(rng, bytes(Ether() / IPv6() / IPv6ExtHdrDestOpt() / TCP() / Raw(b"z" * 30))),
        lambda: rng.randbytes(rng.randrange(60, 200)),
    ]
    order = [makers[k % len(makers)] for k in range(count)]
    rng.shuffle(order)
    return [make() for make in order]


def _flip(rng: random.Random, frame: bytes) -> bytes:
    """One bit wrong, somewhere after the EtherTypes."""
    out = bytearray(frame)
    out[rng.randrange(18, len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _bad_sum(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return tcp_frame(rng, ipv6=False, ip={"chksum": rng.randrange(65536)})
    return tcp_frame(rng, tcp={"chksum": rng.randrange(65536)})
