"""The digest of a connection: against OpenSSL and against the rules of the message."""

import random

import pytest

from acceltcp.abi.cookie import siphash_2_4
from acceltcp.abi.flow import FLOW_HASHED, flow_digest, siphash_1_3_128

KEY = bytes(range(16))

# openssl mac -macopt hexkey:000102030405060708090a0b0c0d0e0f -macopt size:16 -macopt c-rounds:1
#     -macopt d-rounds:3 -in FILE SIPHASH, where FILE holds the bytes 0 to n - 1 (OpenSSL 3.0.19).
VECTORS = {
    0: "e77ebcb22788a5befd62db6add303001",
    1: "fc6f370460d3eda85e0573cc2b2ff063",
    7: "1084b923f2aae0c3a62f2ec80848ab77",
    8: "aa12fee1d5e3dab4724f16ab35f9c799",
    15: "c17e5505b2bd526c2921cdec1e7e0109",
    36: "37a110f002718edad24b3f9ee453f140",
    37: "b9877e381aedd3da08c33e75ff23ac10",
    38: "7c5004005ec5da4c5ac9440e5c723193",
    63: "4c5800e34efe426f079f6b0aa75260ad",
}


@pytest.mark.parametrize("length", VECTORS)
def test_openssl(length):
    assert siphash_1_3_128(KEY, bytes(range(length))).to_bytes(16, "little").hex() == VECTORS[length]


def test_key_length():
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        siphash_1_3_128(bytes(15), b"")
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        siphash_2_4(bytes(15), b"")


def test_every_bit_of_a_key_counts():
    rng = random.Random(1)
    key = {"remote": rng.getrandbits(128), "local": rng.getrandbits(128), "remote_port": 80, "local_port": 1, "ipv6": 1}
    seen = {flow_digest(KEY, **key)}
    for name, value in key.items():
        for bit in range(FLOW_HASHED.positions[name][1]):
            seen.add(flow_digest(KEY, **{**key, name: value ^ 1 << bit}))
    assert len(seen) == 1 + 128 + 128 + 16 + 16 + 1
    assert FLOW_HASHED.size == 37
