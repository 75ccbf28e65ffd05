"""Splices in the RTL between the kernel and the kernel."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import random
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from acceltcp.host import TcpSettings

from .namespace import isolated
from .splicing import BACKEND, PROXY, Backend, Ledger, Proxy, many, receive
from .test_capture import MALFORMED, NOTE, bad_checksums, tshark
from .test_options import offer
from .test_splice_ends import Sending, joining
from .test_transfer import WIRES
from .world import KERNEL4, KERNEL6, MAC, NIC4, NIC6, TAP, TRANSFER_S, World, folder, ip, sysctl

pytestmark = pytest.mark.slow
LONG = [pytest.mark.long, pytest.mark.timeout(1200)]

FAMILIES = {"ipv4": (NIC4, KERNEL4), "ipv6": (NIC6, KERNEL6)}
"""Where the client connects to, and the proxy."""
SETTINGS = TcpSettings(time_wait=0.3, linger=0.3, unknown_hold=20.0)
"""(The simulator is slow: when a client's first segments are lost, it may take seconds until it repeats them.)"""


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
@pytest.mark.parametrize("large", [100_000, pytest.param(1_000_000, marks=LONG)])
def test_every_byte(large: int) -> None:
    """One connection after the other, each way and both; the NIC forwards nearly all packets, few reach the host."""
    sizes = [(0, 0), (1, 1), (0, large), (large, 0), (large // 2, large // 2)]
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
        ("clean", "ipv4", 12, 6, 40_000),
        pytest.param("bad", "ipv6", 8, 8, 40_000, marks=pytest.mark.long),
        *(pytest.param(w, f, 84, 84, 100_000, marks=LONG) for w in WIRES for f in FAMILIES),
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
        counted = ledger.close()
        all_well(proxy, backend, count)
        stats = world.do(lambda: world.nic.stats()["splice"])
        print(stats, {name: value for name, value in counted.items() if value})
        assert stats["hardware"] == sum(r.hardware for r in proxy.results)
        closed_in_order(counted, stats["hardware"])
        # A transfer may have ended by then.
        assert stats["hardware"] >= count * 3 // 4 and stats["refused"].keys() <= {"state"}, stats


@isolated
@pytest.mark.long
@pytest.mark.parametrize(
    "family, size", [("ipv4", 500_000), *(pytest.param(f, 50_000_000, marks=pytest.mark.timeout(1200)) for f in FAMILIES)]
)
def test_large(family: str, size: int) -> None:
    """Most of it one way: the host sees what its hand-over costs, however much follows."""
    address, target = FAMILIES[family]
    with World(tcp=SETTINGS) as world:
        ledger, proxy = Ledger(world), Proxy(world, target=target)
        backend = start(world, proxy)
        many([(1, size // 50, size)], workers=1, address=address)
        counted = ledger.close()
        all_well(proxy, backend, 1)
        assert counted["octets"] > size
        assert proxy.results[0].host_packets < 100, proxy.results


@isolated
@pytest.mark.long
@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.timeout(1200))])
def test_all_at_once(count: int) -> None:
    """As many connections at once as there are clients; the NIC has room for all of them."""
    with World(tcp=SETTINGS) as world:
        ledger, proxy = Ledger(world), Proxy(world, hardware=None)
        backend = start(world, proxy, 2 * count)
        many([(number, 10_000, 20_000) for number in range(count)], workers=count)
        counted = ledger.close()
        all_well(proxy, backend, count)
        closed_in_order(counted, sum(r.hardware for r in proxy.results))
        assert counted["opened"] >= count * 3 // 4


# -- what the two sides disagree on ------------------------------------------------------


@isolated
@pytest.mark.long
@pytest.mark.parametrize("family, step", [("ipv4", 5), *(pytest.param(f, 1, marks=pytest.mark.timeout(1200)) for f in FAMILIES)])
def test_options(family: str, step: int) -> None:
    """Each mix of timestamps, SACK and window scaling on one side with each mix on the other one: spliced, unless only one has
    timestamps; that is counted."""
    address, target = FAMILIES[family]
    mixes = list(itertools.product((1, 0), repeat=3))
    pairs = list(itertools.product(mixes, mixes))[::step]
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

TO_SERVER = (str(PROXY), str(BACKEND))
"""Destination ports of what goes from the client towards the server, before the NIC and behind it."""
TTL = 64
"""Of what the host sends; what the NIC forwards has one less than the kernel's, which is the same."""
PATIENT = dataclasses.replace(SETTINGS, min_rto=20)


def patient() -> None:
    """The kernel, too, repeats nothing before 20 s are over: beside its clock, the simulator is slow."""
    sysctl(tcp_early_retrans=0)
    for family, *network in (("-4", "10.0.0.0/24"), ("-6", "fd00::/64", "metric", "256")):
        ip(family, "route", "change", *network, "dev", TAP, "proto", "kernel", "rto_min", "20s")


ORDINARY = re.compile(
    # Every connection begins and ends.
    "Connection (establish|finish)|This frame (initiates|undergoes) the connection closing"
    # The kernel fills the window that it is told (`beyond_window` sees to it that nobody does more).
    "|TCP window specified by the receiver is now completely full"
    # A note below NOTE beside another one.
    "|TCP window update"
)
OF_THE_KERNEL = "TCP Checksum 0xffff instead of 0x0000"
"""Linux computes it so in software (CSUM_MANGLED_0); the NIC's own are to be 0."""


def remarks(capture: Path) -> list[tuple[str, ...]]:
    """tshark's expert notes from severity NOTE on, of both connections of each transfer, but for those that are ordinary, and those
    that the hand-over explains: (frame, stream, source, note, the byte that it is about).

    At a hand-over, the NIC forwards at once what comes from then on; what came before, the host sends on after that (docs/splice.md). So
    tshark misses a segment in front of the first one forwarded; what comes from the host is late, may be repeated (by the peer, or by the
    host's tail loss probe when the simulator is slow), and is acknowledged several times meanwhile, selectively if twice. All
    of that is about bytes that the host has sent, or SYNs, which are repeated after a second; none may be about a byte behind them, which the
    NIC forwards. What it forwards is known by its TTL. Both connections of a transfer have the same numbers, if the first byte is 1.
    """
    ends: dict[tuple[int, bool], int] = collections.defaultdict(lambda: 1)
    by_host = f"eth.src == {MAC} && tcp.len > 0 && (ip.ttl == {TTL} || ipv6.hlim == {TTL})"
    for stream, to, seq, size in tshark(capture, by_host, "tcp.stream", "tcp.dstport", "tcp.seq", "tcp.len", relative=True):
        way = int(stream) // 2, to in TO_SERVER
        ends[way] = max(ends[way], int(seq) + int(size))
    fields = (
        "frame.number", "tcp.stream", "eth.src", "tcp.dstport", "tcp.seq", "tcp.ack", "tcp.options.sack_le",
        "_ws.expert.message",
    )  # fmt: skip
    found = []
    for row in tshark(capture, f"tcp && _ws.expert.severity >= {NOTE}", *fields, relative=True):
        frame, stream, source, to, seq, ack, sack, messages = row
        for note in messages.split(","):
            if ORDINARY.match(note) or (source != MAC and note.startswith(OF_THE_KERNEL)):
                continue
            of_data = not note.startswith(("Duplicate ACK", "D-SACK"))
            byte = int(seq if of_data else sack.split(",")[0] if "D-SACK" in messages else ack)
            end = ends[int(stream) // 2, (to in TO_SERVER) == of_data]
            # The first one behind them is what a segment is missed in front of, and what is acknowledged.
            if byte > end or (byte == end and not note.startswith(("Previous segment", "Duplicate ACK"))):
                found.append((frame, stream, source, note, str(byte)))
    return found


def beyond_window(capture: Path) -> list[str]:
    """Frames of the NIC with data for which the receiver had not told of room by then."""
    edges: dict[tuple[str, str], int] = collections.defaultdict(int)
    found = []
    fields = ("frame.number", "tcp.stream", "eth.src", "tcp.seq", "tcp.len", "tcp.ack", "tcp.window_size")
    for frame, stream, source, seq, size, ack, window in tshark(capture, "tcp.flags.reset == 0", *fields, relative=True):
        ours = source == MAC
        if ours and int(size) and int(seq) + int(size) > edges[stream]:
            found.append(frame)
        if not ours:
            edges[stream] = max(edges[stream], int(ack) + int(window))
    return found


@isolated
@pytest.mark.parametrize("family", FAMILIES)
def test_capture(family: str) -> None:
    """What tshark says of the wire: nothing but that hand-overs in the midst of transfers leave a gap for a moment. Nothing is malformed, no
    checksum wrong, nobody spoken to beyond his window; a splice that begins at rest shows nothing at all."""
    address, target = FAMILIES[family]
    with folder() as where:
        capture = where / "splice.pcap"
        with World(f"pcap={capture}", tcp=PATIENT) as world:
            patient()
            with joining(world, address, target) as (make, ledger), make.pair() as joined:
                sending = [Sending(sock, number, 150_000) for number, sock in enumerate(joined.ends)]
                with ThreadPoolExecutor(2) as pool:
                    list(pool.map(receive, joined.ends, (150_000, 150_000)))
                for one in sending:
                    one.join()
                for sock in joined.ends:
                    sock.shutdown(socket.SHUT_WR)
                assert joined.result.result(TRANSFER_S).reason == "closed"
            ledger.close()
            proxy = Proxy(world, after=lambda seed: seed * 10_000, target=target)
            backend = start(world, proxy)
            many([(1, 0, 150_000), (2, 150_000, 0), (3, 100_000, 100_000)], workers=1, address=address)
            ledger.close()
            all_well(proxy, backend, 3)
            dropped = world.counters()["rx_drop_l4_checksum"]
        for port in (PROXY, BACKEND):
            assert len(tshark(capture, f"eth.src == {MAC} && tcp.port == {port}", "frame.number")) > 300
        assert tshark(capture, MALFORMED, "frame.number", "frame.protocols") == []
        assert bad_checksums(capture, dropped) == []
        assert beyond_window(capture) == []
        assert remarks(capture) == []
