"""Receive side scaling (RSS): the Toeplitz hash of Microsoft's definition, which chooses a packet's queue.

The hash is over the received packet's source address, destination address, source port and destination port, in that
order and as they stand on the wire; without the ports where no TCP header was parsed. Bit i of this input,
counted from the first, adds (by XOR) the 32 bits of the key that start at its bit i. The low bits of the hash are the
index into the indirection table, whose entry is the queue.

XOR is linear, so a whole byte of the input has one entry of a table per position: what `Toeplitz` looks up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from .cookie import IPV4_MAPPED_PREFIX
from .registers import RSS, RSS_KEY_BYTES, RSS_TABLE_ENTRIES, RssType
from .wire import IPV4, IPV6, TCP

__all__ = ["RSS_INPUT_BYTES", "RSS_KEY_PUBLISHED", "Toeplitz", "key_words", "spread_evenly"]

RSS_INPUT_BYTES = 2 * (IPV6.positions["src"][1] + TCP.positions["src_port"][1]) // 8
"""Bytes of the longest input: two IPv6 addresses and two ports."""

_IPV4_BYTES = IPV4.positions["src"][1] // 8
_MAPPED = (IPV4_MAPPED_PREFIX >> 32).to_bytes(12, "big")
_HASH_BITS = 32

RSS_KEY_PUBLISHED = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)
"""The key with which the hash was published, for comparisons. Everybody knows it, so a peer can choose its ports such
that all its packets reach one queue: use a random key for anything else."""


def key_words(key: bytes) -> list[int]:
    """The key as the registers RSS.key0 and following take it. Raises `ValueError` for another length."""
    if len(key) != RSS_KEY_BYTES:
        raise ValueError(f"an RSS key must have {RSS_KEY_BYTES} bytes, not {len(key)}")
    return [int.from_bytes(key[at : at + 4], "little") for at in range(0, RSS_KEY_BYTES, 4)]


def spread_evenly(queues: Iterable[int]) -> list[int]:
    """An indirection table that gives these queues equal shares. Raises `ValueError` if there is none."""
    shared = list(queues)
    if not shared:
        raise ValueError("an indirection table needs at least one queue")
    return [queue for queue, _ in zip(itertools.cycle(shared), range(RSS_TABLE_ENTRIES), strict=False)]


class Toeplitz:
    """The hash under one key."""

    def __init__(self, key: bytes) -> None:
        """Raises `ValueError` if the key has not the length that the hash needs."""
        key_words(key)
        self.key = key
        number, bits = int.from_bytes(key, "big"), 8 * len(key)
        self._tables: list[list[int]] = []
        for position in range(RSS_INPUT_BYTES):
            table = [0]
            for bit in range(7, -1, -1):  # the least significant bit of a byte comes last on the wire
                window = number >> bits - _HASH_BITS - 8 * position - bit & (1 << _HASH_BITS) - 1
                table += [window ^ entry for entry in table]
            self._tables.append(table)

    def hash(self, data: bytes) -> int:
        """Hash of an input of at most `RSS_INPUT_BYTES` bytes."""
        if len(data) > RSS_INPUT_BYTES:
            raise ValueError(f"the input of the hash has at most {RSS_INPUT_BYTES} bytes, not {len(data)}")
        value = 0
        for table, octet in zip(self._tables, data, strict=False):
            value ^= table[octet]
        return value

    def flow(self, src: bytes, dst: bytes, src_port: int, dst_port: int) -> int:
        """Hash of a TCP packet as it is received: `src` and `src_port` are the peer's.

        Addresses have 4 or 16 bytes; an IPv4-mapped address stands for its IPv4 address.
        """
        if len(src) != _IPV4_BYTES and src[: len(_MAPPED)] == _MAPPED:
            src, dst = src[len(_MAPPED) :], dst[len(_MAPPED) :]
        return self.hash(src + dst + src_port.to_bytes(2, "big") + dst_port.to_bytes(2, "big"))

    def packet(
        self, types: RssType, src: bytes, dst: bytes, src_port: int | None = None, dst_port: int | None = None
    ) -> int | None:
        """What the NIC computes for a received packet while `types` are switched on: None if nothing.

        Ports are None where no TCP header was parsed.
        """
        ipv4 = len(src) == _IPV4_BYTES
        with_ports, without = (RssType.TCP_IPV4, RssType.IPV4) if ipv4 else (RssType.TCP_IPV6, RssType.IPV6)
        if with_ports in types and src_port is not None and dst_port is not None:
            return self.hash(src + dst + src_port.to_bytes(2, "big") + dst_port.to_bytes(2, "big"))
        return self.hash(src + dst) if without in types else None


assert len(RSS_KEY_PUBLISHED) == RSS_KEY_BYTES == 4 * sum(name.startswith("key") for name in RSS.by_name)
