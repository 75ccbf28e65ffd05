"""The identity of a connection in the NIC's table: a keyed hash of its addresses and ports.

The table does not keep the 289 bits of a key. It keeps a *digest*: the low bits of SipHash-1-3 with
128 bits of output under a secret that is drawn anew after every reset. Two keys with one digest do
not occur (2^-120; a small board may keep fewer bits, `NicConfig.digest`), and nobody who does not know the secret can look for them.
"""

from __future__ import annotations

from .cookie import sip_round
from .fields import Field, Header

__all__ = ["FLOW_HASHED", "flow_digest", "siphash_1_3_128"]

FLOW_HASHED = Header(
    "FLOW_HASHED",
    "The 37 bytes that are hashed to the digest of a connection.",
    Field("remote", 128, "Peer's address, IPv4 as ::ffff:a.b.c.d."),
    Field("local", 128, "Our address."),
    Field("remote_port", 16, "Peer's port."),
    Field("local_port", 16, "Our port."),
    Field("_zero", 7),
    Field("ipv6", 1, "The packets are IPv6."),
)


def siphash_1_3_128(key: bytes, data: bytes) -> int:
    """SipHash-1-3 with 128 bits of output (Aumasson and Bernstein, 2012; the output of 128 bits is
    that of their reference code), as an integer: byte 0 of the output is the least significant."""
    if len(key) != 16:
        raise ValueError(f"a SipHash key has 16 bytes, not {len(key)}")
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573
    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v3 ^= word
        v0, v1, v2, v3 = sip_round(v0, v1, v2, v3)
        v0 ^= word
    v2 ^= 0xEE
    for _ in range(3):
        v0, v1, v2, v3 = sip_round(v0, v1, v2, v3)
    low = v0 ^ v1 ^ v2 ^ v3
    v1 ^= 0xDD
    for _ in range(3):
        v0, v1, v2, v3 = sip_round(v0, v1, v2, v3)
    return low | (v0 ^ v1 ^ v2 ^ v3) << 64


def flow_digest(key: bytes, *, remote: int, local: int, remote_port: int, local_port: int, ipv6: bool) -> int:
    """The 128-bit digest; addresses are 128 bits, the table keeps the low bits of it."""
    return siphash_1_3_128(
        key,
        FLOW_HASHED.pack(remote=remote, local=local, remote_port=remote_port, local_port=local_port, ipv6=ipv6),
    )
