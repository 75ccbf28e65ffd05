"""Receive side scaling on the whole core: published hashes, queues by the indirection table, listeners."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from acceltcp.abi.messages import Verdict
from acceltcp.abi.registers import RssType, block
from acceltcp.abi.toeplitz import RSS_KEY_PUBLISHED, Toeplitz, spread_evenly
from tests.hw.packet.rss_vectors import VECTORS

from .bench import TB, core_test
from .driver import Listener
from .frames import CLIENT_MAC, MACS, Client, assert_new, mac_text, pad, plain_frame, udp_frame

ALL = RssType.IPV4 | RssType.TCP_IPV4 | RssType.IPV6 | RssType.TCP_IPV6


def vector_frame(vector, layer) -> bytes:
    ip = (IPv6 if vector.ipv6 else IP)(src=vector.src, dst=vector.dst)
    ether = Ether(dst=mac_text(MACS[0]), src=mac_text(CLIENT_MAC))
    return pad(bytes(ether / ip / layer(sport=vector.src_port, dport=vector.dst_port)))


async def start(dut, queues: int = 4) -> tuple[TB, list[int]]:
    """A core with the published key and an indirection table over its queues; no type is on yet."""
    tb = await TB.start(dut, queues=queues)
    table = [tb.rng.randrange(queues) for _ in range(128)]
    await tb.set_rss(RSS_KEY_PUBLISHED, table)
    return tb, table


@core_test(timeout_us=2000)
async def published_vectors(dut):
    """TCP by addresses and ports, UDP and fragments by addresses; each to its entry's queue."""
    tb, table = await start(dut)
    await tb.write("RSS", "control", ALL)
    for vector in VECTORS:
        cases = [(vector_frame(vector, TCP), vector.with_ports), (vector_frame(vector, UDP), vector.addresses_only)]
        if not vector.ipv6:
            whole = Ether(vector_frame(vector, TCP))
            for name, value in (("flags", "MF"), ("frag", 5)):
                piece = whole.copy()
                setattr(piece[IP], name, value)
                del piece[IP].chksum
                cases.append((pad(bytes(piece)), vector.addresses_only))
        for frame, value in cases:
            tb.rx[0].send(frame)
            received = await tb.queues[table[value & 127]].receive_one()
            assert (received.rss_hash, received.verdict, received.data) == (value, Verdict.PLAIN, frame)
            await tb.queues[table[value & 127]].refill(1)
    await tb.end()


@core_test(timeout_us=2000)
async def types(dut):
    """Every type alone: what it does not cover goes to the default queue without a hash."""
    tb, table = await start(dut)
    default = 3
    await tb.write("CONTROL", "default_queue", default)
    vectors = {0: VECTORS[1], 1: VECTORS[5]}
    for on in (RssType(0), *RssType, ALL & ~RssType.TCP_IPV4, ALL & ~RssType.TCP_IPV6):
        await tb.write("RSS", "control", on)
        for ipv6, vector in vectors.items():
            by_address, by_port = (RssType.IPV6, RssType.TCP_IPV6) if ipv6 else (RssType.IPV4, RssType.TCP_IPV4)
            for layer in (TCP, UDP):
                frame = vector_frame(vector, layer)
                value = vector.with_ports if layer is TCP and by_port in on else vector.addresses_only if by_address in on else 0
                queue = tb.queues[table[value & 127] if value else default]
                tb.rx[0].send(frame)
                received = await queue.receive_one()
                assert (received.rss_hash, received.data) == (value, frame), (on, layer)
                await queue.refill(1)
        frame = plain_frame(tb.rng, 70)
        tb.rx[0].send(frame)
        received = await tb.queues[default].receive_one()
        assert (received.rss_hash, received.data) == (0, frame)
        await tb.queues[default].refill(1)
    await tb.end()


@core_test(timeout_us=3000)
async def listeners(dut):
    """NEW and PLAIN segments of a connection reach one queue: the indirection table's with SPREAD, else the listener's."""
    tb, table = await start(dut)
    hashing = Toeplitz(RSS_KEY_PUBLISHED)
    await tb.write("RSS", "control", RssType.TCP_IPV4 | RssType.TCP_IPV6)
    seen: Counter[int] = Counter()
    for ipv6 in (False, True):
        spread = await tb.listen(Listener(80, ipv6=ipv6, queue=2, spread=True))
        fixed = await tb.listen(Listener(81, ipv6=ipv6, queue=2))
        for number in range(12):
            for listener in (spread, fixed):
                client = Client(2000 + 977 * number, ipv6=ipv6, server_port=listener.port, iss=tb.rng.getrandbits(32))
                packet = Ether(client.syn())
                ip = packet[IPv6] if ipv6 else packet[IP]
                value = hashing.flow(
                    ip_address(ip.src).packed, ip_address(ip.dst).packed, client.port, client.server_port
                )
                to = table[value & 127] if listener.spread else listener.queue
                answer = await tb.open(client, listener)
                first = client.ack(answer, data=b"first")
                later = client.segment("PA", client.iss + 6, 1, data=b"later")
                tb.rx[0].send(first)
                tb.rx[0].send(later)
                new, plain = await tb.queues[to].receive(2)
                assert_new(new, client.syn(), replace(listener, queue=to), first)
                assert (plain.verdict, plain.data, plain.listener) == (Verdict.PLAIN, later, 1)
                assert new.rss_hash == plain.rss_hash == value
                seen[to] += listener.spread
                await tb.queues[to].refill(2)
    print("connections per queue", dict(seen))
    assert len(seen) == 4 and sum(seen.values()) == 24
    # While RSS is off, SPREAD listeners have a queue too.
    await tb.write("RSS", "control", 0)
    client = Client(5000, ipv6=True)
    answer = await tb.open(client, spread)
    tb.rx[0].send(client.ack(answer, data=b"x"))
    received = await tb.queues[2].receive_one()
    assert (received.verdict, received.rss_hash) == (Verdict.NEW, 0)
    await tb.end()


@core_test(timeout_us=2000)
async def entries_move(dut):
    """An entry that changes moves its packets and no others; a soft reset switches everything off."""
    tb, _ = await start(dut)
    await tb.write("RSS", "control", ALL)
    vector = VECTORS[2]
    frame = vector_frame(vector, TCP)
    entry = block("RSS")["entry"]
    for queue in (0, 3, 1):
        for index in (vector.with_ports & 127, vector.addresses_only & 127):
            await tb.write("RSS", "entry", entry.encode(index=index, queue=queue))
        for layer in (TCP, UDP):
            tb.rx[0].send(vector_frame(vector, layer))
            await tb.queues[queue].receive_one()
    # A queue that this build does not have: dropped and counted.
    before = await tb.counters("rx_drop_no_buffer")
    await tb.write("RSS", "entry", entry.encode(index=vector.with_ports & 127, queue=255))
    tb.rx[0].send(frame)
    assert await tb.changes(before) == {"rx_drop_no_buffer": 1}
    await tb.write("CONTROL", "reset", 1)

    async def over() -> bool:
        return not (await tb.read_fields("CONTROL", "status"))["resetting"]

    await tb.until(over)
    assert await tb.read("RSS", "control") == 0
    await tb.queues[0].restart()
    for number in (1, 2, 3):
        await tb.queues[number].restart()
    await tb.set_addresses()
    await tb.write("CONTROL", "control", 1)
    tb.rx[0].send(frame)
    received = await tb.queues[0].receive_one()
    assert (received.rss_hash, received.data) == (0, frame)
    # The table is as it was, the key is gone: its hash is zero.
    await tb.write("RSS", "entry", entry.encode(index=0, queue=2))
    await tb.write("RSS", "control", ALL)
    tb.rx[0].send(frame)
    received = await tb.queues[2].receive_one()
    assert (received.rss_hash, received.data) == (0, frame)
    await tb.end()


@core_test(timeout_us=3000)
async def line_rate(dut):
    """Packets back to back to all queues: none is lost and each queue gets its own in order."""
    tb = await TB.start(dut, queues=4, rx=7, completions=7, buffers=100)
    key = tb.rng.randbytes(40)
    hashing = Toeplitz(key)
    table = spread_evenly(range(4))
    await tb.set_rss(key, table, ALL)
    tb.bus.latency = lambda: 4
    expected: dict[int, list[bytes]] = {number: [] for number in range(4)}
    frames = []
    for number in range(80):
        ipv6 = bool(number & 1)
        client = Client(tb.rng.randrange(1, 65536), ipv6=ipv6, server_port=tb.rng.randrange(1, 65536))
        src, dst = (ip_address(address).packed for address in (client.src, client.dst))
        if number % 5:
            frame = client.segment("A", number)
            value = hashing.flow(src, dst, client.port, client.server_port)
        else:
            frame, value = udp_frame(tb.rng, number, ipv6=ipv6), hashing.hash(src + dst)
        frames.append(frame)
        expected[table[value & 127]].append(frame)
    for frame in frames:
        tb.rx[0].send(frame)
    for number, queue in tb.queues.items():
        got = await queue.receive(len(expected[number]), within_us=200)
        assert [received.data for received in got] == expected[number]
    await tb.end()
