import pytest
from hypothesis import given
from hypothesis import strategies as st

from acceltcp.abi.cookie import (
    COOKIE_PLAIN,
    COOKIE_TIMESTAMPS,
    HASHED,
    MSS_CLASSES,
    TIMESTAMP_OPTION_BITS,
    TIMESTAMP_OPTIONS,
    WSCALE_NONE,
    cookie,
    siphash_2_4,
)
from acceltcp.abi.wire import MSS_DEFAULT_IPV4, MSS_DEFAULT_IPV6, WSCALE_MAX

KEY = bytes(range(16))
OFFER = {
    "src": 1,
    "dst": 2,
    "src_port": 3,
    "dst_port": 4,
    "client_iss": 5,
    "epoch": 6,
    "timestamps": True,
    "mss_class": 3,
    "wscale": 7,
    "sack": True,
    "ecn": True,
}

# Published with the reference implementation: key 00..0f, message 00..n-1, output as bytes.
VECTORS = {
    0: "310e0edd47db6f72",
    1: "fd67dc93c539f874",
    2: "5a4fa9d909806c0d",
    3: "2d7efbd796666785",
    4: "b7877127e09427cf",
    5: "8da699cd64557618",
    6: "cee3fe586e46c9cb",
    7: "37d1018bf50002ab",
    8: "6224939a79f5f593",
    15: "e545be4961ca29a1",
    63: "724506eb4c328a95",
}


@pytest.mark.parametrize("length, digest", VECTORS.items())
def test_siphash_published_vectors(length, digest):
    assert siphash_2_4(KEY, bytes(range(length))).to_bytes(8, "little").hex() == digest


def test_siphash_paper_example():
    """Appendix A of the paper."""
    assert siphash_2_4(KEY, bytes(range(15))) == 0xA129CA6149BE45E5


def test_key_length_is_checked():
    with pytest.raises(ValueError, match="a SipHash key has 16 bytes, not 8"):
        siphash_2_4(bytes(8), b"")


def test_formats_fill_their_words():
    assert COOKIE_TIMESTAMPS.bits == COOKIE_PLAIN.bits == TIMESTAMP_OPTIONS.bits == 32
    assert HASHED.size == 55 and HASHED.size % 8 == 7  # SipHash appends the length: whole words
    clock, _ = TIMESTAMP_OPTIONS.positions["clock"]
    assert clock == TIMESTAMP_OPTION_BITS
    assert list(MSS_CLASSES) == sorted(set(MSS_CLASSES)) and len(MSS_CLASSES) == 8
    assert {MSS_DEFAULT_IPV4, MSS_DEFAULT_IPV6} < set(MSS_CLASSES)
    assert WSCALE_MAX < WSCALE_NONE < 16


@pytest.mark.parametrize("timestamps", [False, True])
def test_cookie_carries_what_it_says(timestamps):
    value = cookie(KEY, **{**OFFER, "timestamps": timestamps, "ecn": timestamps})
    fields = (COOKIE_TIMESTAMPS if timestamps else COOKIE_PLAIN).from_int(value)
    assert fields["mss_class"] == 3
    assert fields["epoch"] == (6 & 3 if timestamps else 6 & 1)
    if not timestamps:
        assert (fields["wscale"], fields["sack"]) == (7, 1)


@given(st.sampled_from(sorted(OFFER)), st.integers(1, 1 << 30))
def test_every_input_changes_the_hash(name, by):
    bits = HASHED.positions[name][1]
    changed = dict(OFFER)
    changed[name] = (int(OFFER[name]) + by) % (1 << bits)
    if changed[name] == int(OFFER[name]):
        return
    # All 64 bits: equality by chance would be news.
    assert siphash_2_4(KEY, HASHED.pack(**changed)) != siphash_2_4(KEY, HASHED.pack(**OFFER))


def test_the_key_changes_the_cookie():
    assert cookie(KEY, **OFFER) != cookie(bytes(16), **OFFER)
