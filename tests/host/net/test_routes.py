"""Routes against a table that looks at every line; source addresses against the examples of RFC 6724."""

from __future__ import annotations

import errno
import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acceltcp.host.net import Addresses
from acceltcp.host.net.routes import PathMtus, RouteTable

MAC = 0x020000000002


def packed(text):
    return ipaddress.ip_address(text).packed


def table(addresses, routes=(), **options):
    return RouteTable(Addresses(addresses, MAC), routes, **options)


def hop(routes, remote, local=None):
    """Next hop and source, as text."""
    route = routes.route(packed(remote), None if local is None else packed(local))
    assert route.remote == packed(remote)
    return str(ipaddress.ip_address(route.next_hop)), str(ipaddress.ip_address(route.local))


def refused(routes, remote, local=None):
    with pytest.raises(OSError) as caught:
        routes.route(packed(remote), None if local is None else packed(local))
    assert str(ipaddress.ip_address(remote)) in str(caught.value) or (local is not None and local in str(caught.value))
    return caught.value.errno


# -- the table -------------------------------------------------------------------------------


def test_the_usual():
    routes = table(
        ["10.0.0.2/24", "fd00::2/64"],
        ["default via 10.0.0.1", "10.1.0.0/16 via 10.0.0.9", "10.1.2.0/24 via 10.0.0.8", "fd01::/64 via fd00::9",
         "default via fe80::1", "192.168.7.0/24"],
    )  # fmt: skip
    assert hop(routes, "10.0.0.77") == ("10.0.0.77", "10.0.0.2")
    assert hop(routes, "10.1.3.1") == ("10.0.0.9", "10.0.0.2")
    assert hop(routes, "10.1.2.1") == ("10.0.0.8", "10.0.0.2")
    assert hop(routes, "8.8.8.8") == ("10.0.0.1", "10.0.0.2")
    assert hop(routes, "192.168.7.9") == ("192.168.7.9", "10.0.0.2")
    assert hop(routes, "fd00::5") == ("fd00::5", "fd00::2")
    assert hop(routes, "fd01::5") == ("fd00::9", "fd00::2")
    assert hop(routes, "2001:db8::5") == ("fe80::1", "fd00::2")
    assert hop(routes, "fe80::99") == ("fe80::99", "fe80::ff:fe00:2")


def test_nothing_leads_there():
    routes = table(["10.0.0.2/24", "fd00::2/64"])
    for remote in ("10.0.1.1", "fd01::1", "10.0.0.0", "10.0.0.255", "10.0.0.2", "224.0.0.1", "255.255.255.255", "0.0.0.0",
                   "127.0.0.1", "ff02::1", "::", "::1", "::ffff:10.0.0.1", "fd00::2"):  # fmt: skip
        assert refused(routes, remote) == errno.ENETUNREACH, remote
    assert refused(routes, "10.0.0.1", "10.0.0.3") == errno.EADDRNOTAVAIL
    assert refused(routes, "10.0.0.1", "fd00::2") == errno.ENETUNREACH
    assert refused(table(["10.0.0.2/24"]), "fe80::1") == errno.ENETUNREACH
    with pytest.raises(ValueError, match="4 or 16 bytes, not 5"):
        routes.route(bytes(5))


def test_both_ends_of_a_point_to_point_prefix_are_hosts():
    routes = table(["10.0.0.0/31", "10.0.9.9/32"], ["default via 10.0.0.1"])
    assert hop(routes, "10.0.0.1") == ("10.0.0.1", "10.0.0.0")
    assert hop(routes, "10.0.9.8") == ("10.0.0.1", "10.0.0.0")


def test_options():
    routes = table(
        ["10.0.0.2/24", "10.0.0.3/24"],
        ["10.1.0.0/16 via 10.0.0.9 src 10.0.0.3 mtu 1400", "10.2.0.0/16 mtu 9000 via 10.0.0.9"],
    )
    assert hop(routes, "10.1.0.1") == ("10.0.0.9", "10.0.0.3")
    assert hop(routes, "10.1.0.1", "10.0.0.2") == ("10.0.0.9", "10.0.0.2")
    assert routes.route(packed("10.1.0.1")).mtu == 1400
    assert routes.route(packed("10.2.0.1")).mtu == 1500
    assert routes.route(packed("10.0.0.1")).mtu == 1500
    assert table(["10.0.0.2/24"], mtu=9000, port=1).route(packed("10.0.0.1")).port == 1
    assert "10.0.0.9" in repr(routes.route(packed("10.1.0.1")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected 'PREFIX"),
        ("default", "needs 'via GATEWAY'"),
        ("10.1.0.0/16 via", "expected 'PREFIX"),
        ("10.1.0.0/16 by 10.0.0.1", "'by' is not known"),
        ("10.1.0.0/16 via 10.0.0.1 via 10.0.0.1", "twice"),
        ("10.1.0.1/16 via 10.0.0.1", "host bits"),
        ("10.1.0.0/99 via 10.0.0.1", "10.1.0.0/99"),
        ("10.1.0.0/16 via 10.0.0.x", "10.0.0.x"),
        ("10.1.0.0/16 via 10.0.0.2", "ourselves"),
        ("10.1.0.0/16 via 10.1.0.1", "not on the link"),
        ("10.1.0.0/16 via 10.0.0.255", "not on the link"),
        ("10.1.0.0/16 via fd00::1", "not IPv4"),
        ("fd01::/64 via 10.0.0.1", "not IPv6"),
        ("fd01::/64 via fd02::1", "not on the link"),
        ("224.0.0.0/4 via 10.0.0.1", "multicast"),
        ("10.1.0.0/16 via 10.0.0.1 src 10.0.0.7", "not one of our addresses"),
        ("10.1.0.0/16 via 10.0.0.1 mtu 100", "mtu must be from"),
        ("fd01::/64 via fd00::1 mtu 1000", "from 1280"),
        ("10.1.0.0/16 via 10.0.0.1 mtu many", "many"),
        ("10.0.0.0/24 via 10.0.0.1", "already"),
    ],
)
def test_no_route(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        table(["10.0.0.2/24", "fd00::2/64"], [text])
    assert repr(text) in str(caught.value)


def test_a_route_twice():
    with pytest.raises(ValueError, match="already"):
        table(["10.0.0.2/24"], ["default via 10.0.0.1", "default via 10.0.0.9"])


def test_gateways_on_a_named_link():
    routes = table(["10.0.0.2/24"], ["default via 192.168.7.1", "192.168.7.0/24"])
    assert hop(routes, "8.8.8.8") == ("192.168.7.1", "10.0.0.2")


# Few bits, so that prefixes meet.
V4 = st.builds(lambda a, b, n: ipaddress.ip_network((bytes([a, b, 0, 0]), n), strict=False), st.sampled_from([20, 21, 52]), st.integers(0, 3), st.sampled_from([0, 4, 8, 14, 15, 16, 17, 24, 32]))
V6 = st.builds(lambda a, n: ipaddress.ip_network((b"\x20\x01" + bytes([a]) + bytes(13), n), strict=False), st.integers(0, 7), st.sampled_from([0, 3, 16, 20, 22, 23, 24, 64, 128]))
TARGETS = st.one_of(
    st.builds(lambda a, b, c: ipaddress.IPv4Address(bytes([a, b, 0, c])), st.sampled_from([20, 21, 52, 99]), st.integers(0, 3), st.integers(0, 2)),
    st.builds(lambda a, b: ipaddress.IPv6Address(b"\x20\x01" + bytes([a]) + bytes(12) + bytes([b])), st.integers(0, 9), st.integers(0, 2)),
)  # fmt: skip


@given(st.lists(st.one_of(V4, V6), max_size=12, unique=True), st.lists(TARGETS, min_size=1, max_size=10))
@settings(deadline=None, max_examples=300)
def test_the_longest_prefix_wins(networks, targets):
    ours = ["10.0.0.2/24", "fd00::2/64"]
    gateways = {net: ipaddress.ip_address(f"10.0.0.{10 + i}" if net.version == 4 else f"fd00::{10 + i}") for i, net in enumerate(networks)}
    routes = table(ours, [f"{net} via {gateway}" for net, gateway in gateways.items()])
    for target in targets:
        matching = [net for net in networks if net.version == target.version and target in net]
        if matching:
            best = max(matching, key=lambda net: net.prefixlen)
            assert hop(routes, str(target))[0] == str(gateways[best])
            assert not routes.on_link(target.packed)
        else:
            assert refused(routes, str(target)) == errno.ENETUNREACH


# -- our address for a destination -------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "ours", "chosen"),
    [
        # RFC 6724 section 10.1, those that need no deprecated, home or temporary address.
        ("2001:db8:1::1", ["2001:db8:3::1/64", "fe80::1/64"], "2001:db8:3::1"),
        ("2001:db8:1::1", ["fe80::1/64", "2001:db8:3::1/64"], "2001:db8:3::1"),
        ("fe80::9", ["2001:db8:1::1/64", "fe80::2/64"], "fe80::2"),
        ("2001:db8:1::1", ["2001:db8:3::2/64", "2001:db8:1::2/64"], "2001:db8:1::2"),
        ("2002:c633:6401::1", ["2001:db8:1::2/64", "2002:c633:6401::d5e3:7953:13eb:22e8/64"], "2002:c633:6401::d5e3:7953:13eb:22e8"),
        # Rule 6 before rule 8: a unique local address for a unique local destination.
        ("fd99::1", ["2001:db8:1::2/64", "fd00::2/64"], "fd00::2"),
        ("2600::1", ["fd00::2/64", "2001:db8:1::2/64"], "2001:db8:1::2"),
        # Rule 8 counts no more bits than our prefix has: both have 32 in common, the first stays.
        ("2001:db8::ff", ["2001:db8:8000::2/32", "2001:db8::2/32"], "2001:db8:8000::2"),
        # Rule 5.5: the address in the next hop's prefix.
        ("8.8.8.8", ["172.16.0.2/24", "10.0.0.2/24"], "10.0.0.2"),
        ("10.0.0.9", ["10.0.0.2/24", "10.0.0.3/24"], "10.0.0.2"),
        ("169.254.1.1", ["10.0.0.2/24", "169.254.0.2/16"], "169.254.0.2"),
        ("8.8.8.8", ["169.254.0.2/16", "10.0.0.2/24"], "10.0.0.2"),
    ],
)  # fmt: skip
def test_source(remote, ours, chosen):
    v4 = "." in remote
    routes = table(ours, ["default via 10.0.0.1"] if v4 else ["default via fe80::99"])
    assert hop(routes, remote)[1] == str(ipaddress.ip_address(chosen))


def test_who_asks_for_the_gateway():
    """A gateway asked for in the name of an address it has no route to need not answer."""
    routes = table(["10.0.0.2/24", "172.16.0.2/24", "fd00::2/64"], ["default via 10.0.0.1", "default via fe80::1"])
    route = routes.route(packed("8.8.8.8"), packed("172.16.0.2"))
    assert (route.local, route.asker) == (packed("172.16.0.2"), packed("10.0.0.2"))
    route = routes.route(packed("2001:db8::1"))
    assert route.asker == route.local == packed("fd00::2")


# -- path MTUs -----------------------------------------------------------------------------------


def test_path_mtus_age_and_are_bounded():
    paths = PathMtus(limit=3)
    for number in range(5):
        paths.learn(bytes([10, 0, 0, number]), 1400 - number, 100.0 + number)
    assert len(paths) == 3
    assert paths.get(bytes([10, 0, 0, 1]), 105.0) is None
    assert paths.get(bytes([10, 0, 0, 4]), 105.0) == 1396
    assert paths.get(bytes([10, 0, 0, 4]), 703.9) == 1396
    assert paths.get(bytes([10, 0, 0, 4]), 704.0) is None and len(paths) == 2
    paths.learn(bytes([10, 0, 0, 2]), 1300, 200.0)
    paths.learn(bytes([10, 0, 0, 9]), 1300, 200.0)
    paths.learn(bytes([10, 0, 0, 8]), 1300, 200.0)  # the one learned again is younger than .3
    assert paths.get(bytes([10, 0, 0, 2]), 200.0) == 1300 and paths.get(bytes([10, 0, 0, 3]), 200.0) is None


def test_a_remembered_route_is_the_same_route():
    routes = table(["10.0.0.2/24", "10.0.0.3/24", "fd00::2/64"], ["default via 10.0.0.1"])
    for number in range(5000):  # more than are remembered
        remote = str(ipaddress.ip_address(0x0B000000 + number))
        for _ in range(2):
            assert hop(routes, remote) == ("10.0.0.1", "10.0.0.2")
            assert hop(routes, remote, "10.0.0.3") == ("10.0.0.1", "10.0.0.3")
            assert refused(routes, remote, "10.0.0.9") == errno.EADDRNOTAVAIL
    assert len(routes._found) <= 4096
