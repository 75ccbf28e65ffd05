"""The host's Toeplitz hash against the published vectors and against the definition, bit by bit."""

import random

import pytest

from acceltcp.abi import toeplitz
from acceltcp.abi.registers import RSS_KEY_BYTES, RSS_TABLE_ENTRIES, RssType
from acceltcp.abi.toeplitz import RSS_INPUT_BYTES, RSS_KEY_PUBLISHED, Toeplitz, key_words, spread_evenly
from tests.hw.packet.rss_vectors import VECTORS

ALL = RssType.IPV4 | RssType.TCP_IPV4 | RssType.IPV6 | RssType.TCP_IPV6


def by_definition(key: bytes, data: bytes) -> int:
    """Shift the key left for every bit of the input; where the bit is set, add the key's first 32 bits."""
    window, result = int.from_bytes(key, "big"), 0
    for octet in data:
        for bit in range(7, -1, -1):
            if octet >> bit & 1:
                result ^= window >> 8 * len(key) - 32
            window = window << 1 & (1 << 8 * len(key)) - 1
    return result


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.src)
def test_published_vectors(vector):
    hashing = Toeplitz(RSS_KEY_PUBLISHED)
    src, dst = vector.packed
    assert hashing.hash(src + dst) == vector.addresses_only
    assert hashing.flow(src, dst, vector.src_port, vector.dst_port) == vector.with_ports
    assert hashing.packet(ALL, src, dst) == vector.addresses_only
    assert hashing.packet(ALL, src, dst, vector.src_port, vector.dst_port) == vector.with_ports
    without, with_ports = (RssType.IPV6, RssType.TCP_IPV6) if vector.ipv6 else (RssType.IPV4, RssType.TCP_IPV4)
    assert hashing.packet(without, src, dst, vector.src_port, vector.dst_port) == vector.addresses_only
    assert hashing.packet(with_ports, src, dst) is None
    assert hashing.packet(ALL & ~(without | with_ports), src, dst, 1, 2) is None
    if not vector.ipv6:
        mapped = bytes(10) + b"\xff\xff"
        assert hashing.flow(mapped + src, mapped + dst, vector.src_port, vector.dst_port) == vector.with_ports


@pytest.mark.parametrize("seed", range(3))
def test_definition(seed):
    rng = random.Random(seed)
    key = rng.randbytes(RSS_KEY_BYTES)
    hashing = Toeplitz(key)
    for size in range(RSS_INPUT_BYTES + 1):
        data = rng.randbytes(size)
        assert hashing.hash(data) == by_definition(key, data)


def test_key_words():
    assert b"".join(word.to_bytes(4, "little") for word in key_words(RSS_KEY_PUBLISHED)) == RSS_KEY_PUBLISHED
    for size in (0, RSS_KEY_BYTES - 1, RSS_KEY_BYTES + 1):
        with pytest.raises(ValueError, match=f"must have {RSS_KEY_BYTES} bytes, not {size}"):
            key_words(bytes(size))
        with pytest.raises(ValueError, match=f"not {size}"):
            Toeplitz(bytes(size))


def test_input_too_long():
    with pytest.raises(ValueError, match="at most 36 bytes, not 37"):
        Toeplitz(RSS_KEY_PUBLISHED).hash(bytes(37))


def test_even_spreading():
    for queues in ([3], [0, 1], [5, 0, 2]):
        table = spread_evenly(queues)
        assert len(table) == RSS_TABLE_ENTRIES and set(table) == set(queues)
        counts = [table.count(queue) for queue in queues]
        assert max(counts) - min(counts) <= 1
    with pytest.raises(ValueError, match="at least one queue"):
        spread_evenly([])


def test_all_is_exported():
    assert all(hasattr(toeplitz, name) for name in toeplitz.__all__)
