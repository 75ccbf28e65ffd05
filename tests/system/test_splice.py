"""Splices in the RTL between the kernel and the kernel."""

from __future__ import annotations

import itertools
import random

import pytest

from acceltcp.host import TcpSettings

from .namespace import isolated
from .splicing import BACKEND, PROXY, Backend, Ledger, Proxy, many
from .test_capture import MALFORMED, bad_checksums, tshark
from .test_options import offer
from .test_transfer import WIRES
from .world import KERNEL4, KERNEL6, MAC, NIC4, NIC6, World, folder

pytestmark = [pytest.mark.slow, pytest.mark.long]

FAMILIES = {"ipv4": (NIC4, KERNEL4), "ipv6": (NIC6, KERNEL6)}
"""Where the client connects to, and the proxy."""
SETTINGS = TcpSettings(time_wait=0.3, linger=0.3)


def start(world: World, proxy: Proxy, backlog: int = 128) -> Backend:
    """The proxy listens, the back end serves it."""
    world.listen(PROXY, proxy, backlog=backlog)
    return Backend(proxy.target)


def all_well(proxy: Proxy, backend: Backend, count: int) -> None:
    """Each connection was joined, and came to a good end."""
    backend.close()
    assert not proxy.errors and not backend.errors, (proxy.errors[:3], backend.errors[:3])
    assert len(proxy.results) == backend.served == count
    assert {result.reason for result in proxy.results} == {"closed"}


def closed_in_order(counted: dict[str, int], count: int) -> None:
    """So many splices have ended, none by force. (A side that has closed and has forgotten the connection resets what comes
    twice: the NIC counts that one as reset, though nothing was lost.)"""
    assert counted["opened"] == counted["closed"] + counted["reset"] == count, counted
    assert counted["reset"] <= max(2, count // 4), counted


@isolated
def test_every_byte() -> None:
    """One connection after the other, each way and both; the NIC forwards nearly all packets, few reach the host."""
    sizes = [(0, 0), (1, 1), (0, 100_000), (100_000, 0), (300_000, 300_000), (0, 1_000_000), (1_000_000, 0)]
    with World(tcp=SETTINGS) as world:
        ledger, proxy = Ledger(world), Proxy(world)
        backend = start(world, proxy)
        for number, (up, down) in enumerate(sizes):
            before = world.counters()["rx_host_packets"]
            many([(number, up, down)], workers=1)
            ledger.close()
            came = world.counters()["rx_host_packets"] - before
            # Handshakes, HEAD, what was on its way at the hand-over, copies until the host's own data are acknowledged.
            few = 150 if up else 30
            print(f"{up} up, {down} down: {came} packets to the host, {proxy.results[-1]}")
            assert came < few and proxy.results[-1].host_packets < few, (up, down, came, proxy.results[-1])
        all_well(proxy, backend, len(sizes))
        counted = ledger.close()
        assert all(result.hardware for result in proxy.results)
        closed_in_order(counted, len(sizes))


# -- at random moments -------------------------------------------------------------------


@isolated
@pytest.mark.parametrize(
    "wire, family, count, workers, size",
    [
        *(("clean", "ipv4", 10, 5, 100_000), ("bad", "ipv6", 10, 5, 100_000), ("delayed", "ipv4", 10, 5, 100_000)),
        *(pytest.param(w, f, 84, 84, 400_000, marks=pytest.mark.long) for w in WIRES for f in FAMILIES),
    ],
)
def test_random_moments(wire: str, family: str, count: int, workers: int, size: int) -> None:
    """Many at once, both ways at once, handed over at random moments, before anything was relayed too."""
    address, target = FAMILIES[family]
    rng = random.Random(f"{wire} {family}")

    def after(seed: int) -> int:
        return random.Random(seed).randrange(size) if seed % 4 else 0

    with World(WIRES[wire], tcp=SETTINGS) as world:
        ledger, proxy = Ledger(world), Proxy(world, after=after, hardware=None, target=target)
        backend = start(world, proxy, 2 * count)
        jobs = [(number, rng.randrange(size), rng.randrange(size)) for number in range(count)]
        many(jobs, workers=workers, address=address)
        counted = ledger.close(60)
        all_well(proxy, backend, count)
        stats = world.do(lambda: world.nic.stats()["splice"])
        print(stats, {name: value for name, value in counted.items() if value})
        assert stats["hardware"] == sum(r.hardware for r in proxy.results)
        closed_in_order(counted, stats["hardware"])
        # A transfer may have ended by then.
        assert stats["hardware"] >= count * 3 // 4 and stats["refused"].keys() <= {"state"}, stats


@isolated
@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_large(family: str) -> None:
    """50 MB, most of them one way; a sequence number that wraps on the way is likely in no other test."""
    address, target = FAMILIES[family]
    with World(tcp=SETTINGS) as world:
        ledger, proxy = Ledger(world), Proxy(world, target=target)
        backend = start(world, proxy)
        many([(1, 1_000_000, 50_000_000)], workers=1, address=address)
        counted = ledger.close()
        all_well(proxy, backend, 1)
        assert counted["octets"] > 50_000_000
        assert proxy.results[0].host_packets < 100, proxy.results


@isolated
@pytest.mark.long
def test_two_hundred_at_once() -> None:
    """As many connections at once as there are clients; the NIC has room for all of them."""
    count = 200
    with World(tcp=SETTINGS) as world:
        ledger, proxy = Ledger(world), Proxy(world, hardware=None)
        backend = start(world, proxy, 2 * count)
        many([(number, 20_000, 40_000) for number in range(count)], workers=count)
        counted = ledger.close(60)
        all_well(proxy, backend, count)
        closed_in_order(counted, sum(r.hardware for r in proxy.results))
        assert counted["opened"] >= count * 3 // 4


# -- what the two sides disagree on ------------------------------------------------------


@isolated
@pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=pytest.mark.long)])
def test_options(family: str) -> None:
    """Each mix of timestamps, SACK and window scaling on one side with each mix on the other one: spliced, unless only one has
    timestamps; that is counted."""
    address, target = FAMILIES[family]
    mixes = list(itertools.product((1, 0), repeat=3))
    pairs = list(itertools.product(mixes, mixes))[:: 1 if family == "ipv6" else 3]
    with World(tcp=SETTINGS) as world:
        server_side: list[tuple[int, int, int]] = []
        proxy = Proxy(world, hardware=None, target=target, before_connect=lambda: offer(*server_side[-1], 0))
        ledger = Ledger(world)
        backend = start(world, proxy)
        for number, (one, two) in enumerate(pairs):
            offer(*one, 0)
            server_side.append(two)
            # Beyond a window without scaling, at times.
            size = (2000, 90_000)[number % 9 == 0]
            many([(number, size, 2 * size)], workers=1, address=address)
        counted = ledger.close()
        all_well(proxy, backend, len(pairs))
        for number, (one, two) in enumerate(pairs):
            agree, result = one[0] == two[0], proxy.by_seed[number]
            assert (result.hardware, result.refused) == (agree, None if agree else "timestamps"), (one, two, result)
        stats = world.do(lambda: world.nic.stats()["splice"])
        joined = sum(one[0] == two[0] for one, two in pairs)
        refused = len(pairs) - joined
        assert stats["refused"] == {"timestamps": refused} and (stats["software"], stats["hardware"]) == (refused, joined)
        closed_in_order(counted, joined)


# -- on the wire -------------------------------------------------------------------------


@isolated
def test_capture() -> None:
    """Nothing malformed, no wrong checksum, nothing acknowledged that never came, on either side."""
    with folder() as where:
        capture = where / "splice.pcap"
        with World(f"pcap={capture}", tcp=SETTINGS) as world:
            ledger = Ledger(world)
            for address, target in FAMILIES.values():
                proxy = Proxy(world, after=lambda seed: seed * 10_000, target=target)
                server = world.listen(PROXY, proxy)
                backend = Backend(target)
                many([(1, 0, 300_000), (2, 300_000, 0), (3, 150_000, 150_000)], workers=1, address=address)
                ledger.close()
                all_well(proxy, backend, 3)
                world.call(server.close())
            dropped = world.counters()["rx_drop_l4_checksum"]
        for port in (PROXY, BACKEND):
            assert len(tshark(capture, f"eth.src == {MAC} && tcp.port == {port}", "frame.number")) > 500
        assert tshark(capture, MALFORMED, "frame.number", "frame.protocols") == []
        assert bad_checksums(capture, dropped) == []
        assert tshark(capture, f"eth.src == {MAC} && tcp.analysis.ack_lost_segment", "frame.number") == []
