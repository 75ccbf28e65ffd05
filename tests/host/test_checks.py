"""What users give that cannot be: every refusal names the argument, the value and what was expected."""

from __future__ import annotations

import ipaddress
import re

import pytest

from acceltcp.host import Nic, TcpSettings
from acceltcp.host.checks import check_integer, check_names, check_number, parse_address
from acceltcp.host.net import Addresses

ADDRESSES = ["10.0.0.2/24", "fd00::2/64"]


def test_numbers():
    check_integer("n", 3, 3, 3)
    check_number("t", 0.5, 0, 1)
    check_number("t", 1, 0, 1)
    for value in (True, 3.0, "3", None):
        with pytest.raises(ValueError, match=f"n must be an integer from 3 to 9, not {value!r}"):
            check_integer("n", value, 3, 9)
    for value in (True, "3", None, 1j):
        with pytest.raises(ValueError, match=re.escape(f"t must be a number from 0 to 9 seconds, not {value!r}")):
            check_number("t", value, 0, 9)
    for value in (-0.1, 9.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"t must be from 0 to 9 bytes, not {value!r}"):
            check_number("t", value, 0, 9, "bytes")


def test_names():
    check_names("f", ["b"], ["a", "b"])
    with pytest.raises(TypeError, match="f has no option 'c', only a, b"):
        check_names("f", ["b", "c"], ["b", "a"])


@pytest.mark.parametrize("value", ["10.0.0.2", "fd00::2", ipaddress.ip_address("10.0.0.2")])
def test_addresses_are_texts_or_addresses(value):
    assert parse_address("host", value) == ipaddress.ip_address(value)


@pytest.mark.parametrize("value", ["", "10.0.0.300", "10.0.0.2/24", 5, b"\x0a\0\0\2", None, ["10.0.0.2"]])
def test_what_is_no_address(value):
    with pytest.raises(ValueError, match=r"host must be an IP address like .*, not " + re.escape(repr(value))):
        parse_address("host", value)


def test_zones_are_refused():
    for value in ("fe80::1%eth0", ipaddress.ip_address("fe80::1%eth0")):
        with pytest.raises(ValueError, match=r"host must be an address without a zone, .* not 'fe80::1%eth0'"):
            parse_address("host", value)


@pytest.mark.parametrize(
    ("addresses", "text"),
    [
        ("10.0.0.2/24", "addresses must be a list of texts like .*, not '10.0.0.2/24'"), (5, "addresses must be a list .* not 5"),
        (None, "addresses must be a list .* not None"), ([], "addresses must have at least one"),
        (["10.0.0.255/24"], "10.0.0.255: it is the broadcast address of 10.0.0.0/24"),
        (["10.0.0.0/24"], "10.0.0.0: it is the network address of 10.0.0.0/24"),
        (["10.0.9.2/24", "10.0.9.2"], "one prefix each, and 10.0.9.2/24 was there when 10.0.9.2/32 came"),
        (["fe80::1%eth0/64"], "without a zone"), ([5], "an address must be like .* not 5"), (["hello"], "an address must be like .* not 'hello'"),
    ],
)  # fmt: skip
def test_addresses_of_a_nic(addresses, text):
    with pytest.raises(ValueError, match=text):
        Nic("sim:", addresses)


@pytest.mark.parametrize("good", ["10.0.0.0/31", "10.0.0.1/31", "10.0.0.2", "10.0.0.254/24"])
def test_addresses_that_are_no_broadcast(good):
    """RFC 3021: in a /31 both are hosts; a /32 has no network."""
    assert [str(ip) for ip in Addresses([good], 2).listenable] == [good.partition("/")[0]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"routes": "default via 10.0.0.1"}, "routes must be a list of texts like .*, not 'default via 10.0.0.1'"),
        ({"neighbours": ["10.0.0.1"]}, "neighbours must be a dict like .*, not"),
        ({"neighbours": {"nobody": "02:00:00:00:00:01"}}, "a neighbour must be an IP address like .*, not 'nobody'"),
        ({"neighbours": {"10.0.0.1": 5}}, "a neighbour's MAC address must be a str, not 5"),
        ({"mtu": "big"}, "mtu must be an integer from 1280 to .* not 'big'"), ({"mac": 5}, "mac must be a str, not 5"),
        ({"tcp": {"mtu": 1500}}, "tcp must be a TcpSettings, not"), ({"setup": "yes"}, "setup must be True or False, not 'yes'"),
        ({"teardown": 1}, "teardown must be True or False, not 1"), ({"poll": None}, "poll must be True or False"),
        ({"linger": -1}, "linger must be from 0 to .* seconds, not -1"), ({"frame_memory": -1}, "frame_memory must be from 0"),
        ({"queue_index": -1}, "queue_index must be from 0"), ({"queue": 5}, "queue must be a dict, not 5"),
        ({"tcp": TcpSettings(), "queue": []}, r"queue must be a dict, not \[\]"),
    ],
)  # fmt: skip
def test_arguments_of_a_nic(options, text):
    with pytest.raises(ValueError, match=text):
        Nic("sim:", ADDRESSES, **options)


def test_unknown_queue_options_are_named():
    with pytest.raises(TypeError, match="queue has no option 'ring', only buffer_size, completions, events"):
        Nic("sim:", ADDRESSES, queue={"ring": 8})
