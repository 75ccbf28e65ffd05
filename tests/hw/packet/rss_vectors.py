"""The vectors with which the hash was published ("Verifying the RSS Hash Calculation", Microsoft)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

__all__ = ["VECTORS", "Vector"]


@dataclass(frozen=True)
class Vector:
    """A packet and its hashes."""

    dst: str
    dst_port: int
    src: str
    src_port: int
    addresses_only: int
    with_ports: int

    @property
    def ipv6(self) -> bool:
        return ip_address(self.src).version == 6

    @property
    def packed(self) -> tuple[bytes, bytes]:
        """Source and destination as they stand on the wire."""
        return ip_address(self.src).packed, ip_address(self.dst).packed


VECTORS = (
    Vector("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323E8FC2, 0x51CCC178),
    Vector("65.69.140.83", 4739, "199.92.111.2", 14230, 0xD718262A, 0xC626B0EA),
    Vector("12.22.207.184", 38024, "24.19.198.95", 12898, 0xD2D0A5DE, 0x5C2B394A),
    Vector("209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xAFC7327F),
    Vector("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5D1809C5, 0x10E828A2),
    Vector("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2CC18CD5, 0x40207D3D),
    Vector("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0F0C461C, 0xDDE51BBF),
    Vector("fe80::200:f8ff:fe21:67cf", 38024, "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, 0x4B61E985, 0x02D1FEEF),
)
