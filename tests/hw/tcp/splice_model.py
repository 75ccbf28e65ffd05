"""What the splice rewriter does to a packet, on bytes: written from RFC 9293, 7323, 2018, 3168 and 1624.

Nothing here comes from the gateware: the header is read and written with `struct`, an option list byte by byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["Way", "ones_sum", "rewrite", "rewrite_options"]

M32 = 0xFFFFFFFF
FIXED_LENGTHS = {2: {4}, 3: {3}, 4: {2}, 5: {10, 18, 26, 34}, 8: {10}}
"""Legal lengths of the options that have one: MSS, window scale, SACK permitted, SACK, timestamps."""


@dataclass
class Way:
    """Translation of one direction."""

    src: bytes
    dst: bytes
    """4 or 16 bytes."""
    src_port: int = 0
    dst_port: int = 0
    src_mac: bytes = bytes(6)
    dst_mac: bytes = bytes(6)
    tci: int | None = None
    """Tag that the frame leaves with."""
    port: int = 0
    seq_offset: int = 0
    ack_offset: int = 0
    tsval_offset: int = 0
    tsecr_offset: int = 0
    window_shift: int = 0
    """Negative: down."""
    timestamps: bool = True
    sack: bool = True
    ecn: bool = True
    in_port: int = 0


def ones_sum(octets: bytes) -> int:
    """Sum of big-endian words modulo 0xffff."""
    octets += b"\0" * (len(octets) % 2)
    return sum(struct.unpack(f">{len(octets) // 2}H", octets)) % 0xFFFF


def updated(checksum: int, before: bytes, after: bytes) -> int:
    """RFC 1624: off by as much as it was, if it was."""
    return (checksum + ones_sum(before) - ones_sum(after)) % 0xFFFF


def plus(octets: bytes, offset: int) -> bytes:
    return (int.from_bytes(octets, "big") + offset & M32).to_bytes(4, "big")


def rewrite_options(options: bytes, way: Way, ack: bool) -> bytes:
    """The option list; what follows its end or a fault stays as it is."""
    out = bytearray(options)
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options) or length not in FIXED_LENGTHS.get(kind, {length}):
            break
        if (kind == 8 and not way.timestamps) or (kind == 5 and not way.sack):
            out[at : at + length] = b"\x01" * length
        elif kind == 8:
            out[at + 2 : at + 6] = plus(options[at + 2 : at + 6], way.tsval_offset)
            if ack:
                out[at + 6 : at + 10] = plus(options[at + 6 : at + 10], way.tsecr_offset)
        elif kind == 5:
            for edge in range(at + 2, at + length, 4):
                out[edge : edge + 4] = plus(options[edge : edge + 4], way.ack_offset)
        at += length
    return bytes(out)


def rewrite_segment(header: bytes, way: Way) -> bytes:
    """TCP header with options; the checksum is left."""
    _, _, seq, ack, offset, flags, window, checksum, urgent = struct.unpack(">HHIIBBHHH", header[:20])
    acknowledges = bool(flags & 0x10)
    if acknowledges:
        ack = ack + way.ack_offset & M32
    if not way.ecn:
        flags &= 0x3F
    if way.window_shift < 0:
        window >>= -way.window_shift
    else:
        window = min(window << way.window_shift, 0xFFFF)
    seq = seq + way.seq_offset & M32
    fixed = struct.pack(">HHIIBBHHH", way.src_port, way.dst_port, seq, ack, offset, flags, window, checksum, urgent)
    return fixed + rewrite_options(header[20:], way, acknowledges)


def rewrite(frame: bytes, way: Way) -> bytes | None:
    """The frame as it leaves; None: dropped."""
    tagged = frame[12:14] == b"\x81\x00"
    l3 = 18 if tagged else 14
    ethertype, packet = frame[l3 - 2 : l3], frame[l3:]
    if ethertype == b"\x08\x00":
        ip, rest = bytearray(packet[:20]), packet[20:]
        if ip[8] < 2:
            return None
        if not way.ecn:
            ip[1] &= 0xFC
        ip[8] -= 1
        ip[12:20] = way.src + way.dst
        checksum = updated(int.from_bytes(ip[10:12], "big"), packet[:10] + packet[12:20], bytes(ip[:10] + ip[12:20]))
        ip[10:12] = checksum.to_bytes(2, "big")
    else:
        assert ethertype == b"\x86\xdd"
        ip, rest = bytearray(packet[:40]), packet[40:]
        if ip[7] < 2:
            return None
        if not way.ecn:
            ip[1] &= 0xCF
        ip[7] -= 1
        ip[8:40] = way.src + way.dst
    size = 4 * (rest[12] >> 4)
    addresses = len(way.src) * 2
    header, payload = rest[:size], rest[size:]
    new = rewrite_segment(header, way)
    before = packet[len(ip) - addresses : len(ip)] + header[:16] + header[18:]
    after = way.src + way.dst + new[:16] + new[18:]
    checksum = updated(int.from_bytes(header[16:18], "big"), before, after)
    new = new[:16] + checksum.to_bytes(2, "big") + new[18:]
    tag = b"" if way.tci is None else b"\x81\x00" + way.tci.to_bytes(2, "big")
    return way.dst_mac + way.src_mac + tag + ethertype + bytes(ip) + new + payload
