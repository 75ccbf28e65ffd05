"""The host link's format: alignment, sizes, and that it is documented."""

import pytest

from acceltcp.abi import docgen, host_link
from acceltcp.abi.host_link import BEAT_BYTES, BEATS_MAX, HEADER_BYTES, HOST_LINK, STROBE_BYTES, LinkKind
from acceltcp.abi.wire import ETHERNET, EtherType


def test_payloads_are_aligned_and_frames_fit_a_usual_interface():
    largest = HEADER_BYTES + BEATS_MAX * (STROBE_BYTES + BEAT_BYTES)
    assert HEADER_BYTES == 40
    assert HEADER_BYTES % 8 == 0
    assert largest == 1192
    assert largest <= ETHERNET.size + 1500


def test_a_frame_byte_by_byte():
    header = HOST_LINK.pack(
        version=1, reply=1, kind=LinkKind.DMA_READ, session=0x01020304, sequence=0x0506, status=1, count=2, address=0x1122334455667788
    )
    assert header.hex() == "0186" "01020304" "0506" "01" "02" "1122334455667788" "00000000" "00000000"
    assert EtherType.HOST_LINK == 0x88B5


def test_every_kind_fits_its_field():
    assert max(LinkKind) < 1 << HOST_LINK.positions["kind"][1]


@pytest.mark.parametrize("name", ["HostLink", "LinkKind", "LinkStatus"])
def test_the_reference_has_it(name):
    assert f"## {name}\n" in docgen.pages()["wire.md"]


def test_exports():
    assert all(hasattr(host_link, name) for name in host_link.__all__)
