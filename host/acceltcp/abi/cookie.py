"""The SYN cookie: how our initial sequence number encodes what a SYN offered.

Two formats, told apart by whether the client's ACK carries timestamps:

* timestamps: epoch (2 bits) | MSS class (3) | MAC (27); window scale, SACK-permitted and ECN
  ride in the low 6 bits of our timestamp value;
* no timestamps: epoch (1) | MSS class (3) | window scale (4) | SACK-permitted (1) | MAC (23);
  ECN is not granted.

MAC is the low bits of SipHash-2-4 (Aumasson and Bernstein, 2012) under a 128-bit secret. This
module is plain arithmetic over the declarations: the reference for the gateware's tests and
what a fleet manager needs to share a secret. Data path code does not use it.
"""

from __future__ import annotations

from .fields import Field, Header

__all__ = [
    "COOKIE_PLAIN",
    "COOKIE_TIMESTAMPS",
    "HASHED",
    "IPV4_MAPPED_PREFIX",
    "MSS_CLASSES",
    "TIMESTAMP_OPTIONS",
    "TIMESTAMP_OPTION_BITS",
    "WSCALE_NONE",
    "cookie",
    "sip_round",
    "siphash_2_4",
]

MSS_CLASSES = (64, 536, 1220, 1300, 1400, 1440, 1460, 8940)
"""Class -> segment size. The class of a SYN is the largest that does not exceed its MSS; a
SYN whose MSS is below the first is malformed. 1220 and 536 are the defaults of IPv6 and
IPv4, 1440 and 1460 fit Ethernet, 8940 jumbo frames over either version."""

WSCALE_NONE = 15
"""Window scale code for 'not offered'."""

COOKIE_TIMESTAMPS = Header(
    "COOKIE_TIMESTAMPS",
    "Initial sequence number for a client with timestamps.",
    Field("epoch", 2, "Low bits of the epoch counter."),
    Field("mss_class", 3, "Index into MSS_CLASSES."),
    Field("mac", 27, "Low bits of the hash."),
)
COOKIE_PLAIN = Header(
    "COOKIE_PLAIN",
    "Initial sequence number for a client without timestamps.",
    Field("epoch", 1, "Low bit of the epoch counter."),
    Field("mss_class", 3, "Index into MSS_CLASSES."),
    Field("wscale", 4, "The client's window shift, or WSCALE_NONE."),
    Field("sack", 1, "SACK is permitted."),
    Field("mac", 23, "Low bits of the hash."),
)

TIMESTAMP_OPTIONS = Header(
    "TIMESTAMP_OPTIONS",
    "Our timestamp value in a SYN-ACK: as in Linux, the low 6 bits are options.",
    Field("clock", 26, "The NIC's timestamp clock without its low 6 bits; one less if the whole would exceed the clock."),
    Field("ecn", 1, "ECN is granted."),
    Field("sack", 1, "SACK is permitted."),
    Field("wscale", 4, "The client's window shift, or WSCALE_NONE."),
)
TIMESTAMP_OPTION_BITS = 6

IPV4_MAPPED_PREFIX = 0xFFFF << 32
"""IPv4 addresses are hashed (and kept in tables) as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2)."""

HASHED = Header(
    "HASHED",
    "The 55 bytes that are hashed, always in full.",
    Field("src", 128, "Client's address, IPv4 as ::ffff:a.b.c.d."),
    Field("dst", 128, "Our address."),
    Field("src_port", 16, "Client's port."),
    Field("dst_port", 16, "Our port."),
    Field("client_iss", 32, "Client's initial sequence number."),
    Field("epoch", 64, "Full epoch counter."),
    Field("_zero0", 7),
    Field("timestamps", 1, "Format."),
    Field("_zero1", 5),
    Field("mss_class", 3, "Index into MSS_CLASSES."),
    Field("_zero2", 4),
    Field("wscale", 4, "The client's window shift, or WSCALE_NONE."),
    Field("_zero3", 7),
    Field("sack", 1, "SACK is permitted."),
    Field("_zero4", 7),
    Field("ecn", 1, "ECN is granted."),
    Field("_zero5", 16),
)

_MASK = (1 << 64) - 1


def _rotl(value: int, by: int) -> int:
    return (value << by | value >> 64 - by) & _MASK


def sip_round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    """One SipRound."""
    v0 = (v0 + v1) & _MASK
    v2 = (v2 + v3) & _MASK
    v1 = _rotl(v1, 13) ^ v0
    v3 = _rotl(v3, 16) ^ v2
    v0 = _rotl(v0, 32)
    v2 = (v2 + v1) & _MASK
    v0 = (v0 + v3) & _MASK
    v1 = _rotl(v1, 17) ^ v2
    v3 = _rotl(v3, 21) ^ v0
    v2 = _rotl(v2, 32)
    return v0, v1, v2, v3


def siphash_2_4(key: bytes, data: bytes) -> int:
    """SipHash-2-4 of `data` (any length) under the 16-byte `key`: 64 bits."""
    if len(key) != 16:
        raise ValueError(f"a SipHash key has 16 bytes, not {len(key)}")
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573
    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v3 ^= word
        for _ in range(2):
            v0, v1, v2, v3 = sip_round(v0, v1, v2, v3)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(4):
        v0, v1, v2, v3 = sip_round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def cookie(
    key: bytes,
    *,
    src: int,
    dst: int,
    src_port: int,
    dst_port: int,
    client_iss: int,
    epoch: int,
    timestamps: bool,
    mss_class: int,
    wscale: int,
    sack: bool,
    ecn: bool,
) -> int:
    """The 32-bit initial sequence number for one SYN. `src` and `dst` are 128 bits."""
    mac = siphash_2_4(
        key,
        HASHED.pack(
            src=src,
            dst=dst,
            src_port=src_port,
            dst_port=dst_port,
            client_iss=client_iss,
            epoch=epoch,
            timestamps=timestamps,
            mss_class=mss_class,
            wscale=wscale,
            sack=sack,
            ecn=ecn,
        ),
    )
    if timestamps:
        return COOKIE_TIMESTAMPS.to_int(epoch=epoch & 3, mss_class=mss_class, mac=mac & (1 << 27) - 1)
    return COOKIE_PLAIN.to_int(
        epoch=epoch & 1, mss_class=mss_class, wscale=wscale, sack=sack, mac=mac & (1 << 23) - 1
    )
