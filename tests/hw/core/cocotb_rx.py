"""Packets to the host: contents, completions, buffers."""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

from acceltcp.abi.messages import ChecksumState, Verdict

from .bench import TB, core_test
from .frames import CLIENT4, MACS, SERVER4, Client, mac_text, pad, parsed, plain_frame, udp_frame

GUARD = 0x5A


def guarded(tb: TB, size: int, offset: int) -> int:
    """A buffer between bytes that must not change."""
    start = tb.memory.alloc(size + 192, align=64)
    tb.memory.write(start, bytes([GUARD]) * (size + 192))
    return start + 64 + offset


def assert_guards(tb: TB, address: int, size: int, used: int) -> None:
    around = tb.memory.read(address - 64, 64) + tb.memory.read(address + used, size - used + 64)
    assert around == bytes([GUARD]) * len(around), f"bytes outside {address:#x}+{used} were written"


@core_test(timeout_us=2000)
async def any_alignment(dut):
    """Every byte of frames of many lengths arrives, in buffers at any address, and nothing beside it."""
    tb = await TB.start(dut, buffers=0)
    queue = tb.queues[0]
    lengths = [60, 61, 63, 64, 65, 127, 128, 129, 191, 192, 193, 256, 1514]
    frames = [plain_frame(tb.rng, length) for length in lengths]
    frames += [plain_frame(tb.rng, tb.rng.randrange(60, 400)) for _ in range(40)]
    tb.rng.shuffle(frames)
    for first in range(0, len(frames), 16):
        part = frames[first : first + 16]
        places = []
        for frame in part:
            size = len(frame) + tb.rng.choice((0, 0, 1, 100))
            address = guarded(tb, size, tb.rng.randrange(64))
            places.append((address, size))
            queue.post(size, address=address)
        await queue.ring_rx()
        for frame in part:
            tb.rx[0].send(frame)
        received = await queue.receive(len(part))
        for frame, (address, size), got in zip(part, places, received, strict=True):
            assert got.address == address, "buffers are used in order"
            assert got.data == frame
            assert (got.length, got.status, got.verdict, got.l3_offset) == (len(frame), 0, 0, 0)
            assert_guards(tb, address, size, len(frame))
    await tb.end()


@core_test()
async def across_pages(dut):
    """Buffers that cross 4 KiB, and the largest frame."""
    tb = await TB.start(dut, buffers=0)
    queue = tb.queues[0]
    largest = tb.config.max_frame
    for length, before_page in ((60, 1), (60, 59), (1000, 999), (largest, 64), (largest, 63), (largest, 1)):
        page = tb.memory.alloc(0, align=4096, offset=4096) + 4096
        tb.memory.alloc(largest + 8192)
        queue.post(length, address=page - before_page)
        await queue.ring_rx()
        frame = plain_frame(tb.rng, length)
        tb.rx[0].send(frame)
        assert (await queue.receive_one()).data == frame
    await tb.end()


@core_test()
async def every_length(dut):
    """60 bytes to more than four beats past that, one by one, back to back."""
    tb = await TB.start(dut, buffers=0)
    queue = tb.queues[0]
    lengths = list(range(60, 60 + min(4 * tb.config.width, 140) + 2))
    frames = [plain_frame(tb.rng, length) for length in lengths]
    for first in range(0, len(frames), 28):
        part = frames[first : first + 28]
        await queue.refill(len(part), 512)
        for frame in part:
            tb.rx[0].send(frame)
        assert [got.data for got in await queue.receive(len(part))] == part
    await tb.end()


@core_test()
async def kinds_of_frames(dut):
    """What the completion says about each kind of frame."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    rng = tb.rng
    ether = Ether(dst=mac_text(MACS[0]), src="06:00:00:00:00:09")
    ip = IP(src=CLIENT4, dst=SERVER4)
    none = {"tcp": 0, "l4_offset": 0, "payload_offset": 0, "l4_checksum": ChecksumState.NONE}
    v4 = dict(none, ipv4=1, ipv6=0, l3_offset=14, ip_checksum=ChecksumState.GOOD, fragment=0, ip_options=0)
    v6 = dict(none, ipv4=0, ipv6=1, l3_offset=14, ip_checksum=ChecksumState.NONE, fragment=0, ip_options=0)
    other = dict(v4, ipv4=0, l3_offset=0, ip_checksum=ChecksumState.NONE)
    segment = TCP(sport=1, dport=2, flags="A") / b"segment"
    options = dict(v4, ip_options=1, ip_checksum=ChecksumState.NONE)
    cases = [
        (ether / ARP(op=1, pdst=SERVER4), other),
        (plain_frame(rng, 77), other),
        (ether / ip / UDP(sport=1, dport=2) / rng.randbytes(50), v4),
        (ether / ip / ICMP() / rng.randbytes(50), v4),
        (ether / IPv6(src="fe80::1", dst="fe80::2") / UDP(sport=1, dport=2) / rng.randbytes(9), v6),
        (ether / IPv6(src="fe80::1", dst="fe80::2") / ICMPv6EchoRequest(), v6),
        (ether / IPv6(src="fe80::1", dst="fe80::2") / IPv6ExtHdrHopByHop() / segment, v6),
        (ether / IP(src=CLIENT4, dst=SERVER4, options=[IPOption_NOP()] * 4) / segment, options),
        (ether / IP(src=CLIENT4, dst=SERVER4, flags="MF") / segment, dict(v4, fragment=1)),
        (ether / IP(src=CLIENT4, dst=SERVER4, frag=5) / rng.randbytes(30), dict(v4, fragment=1)),
        (ether / IP(src=CLIENT4, dst=SERVER4, flags="DF") / UDP(), v4),
        (ether / Dot1Q(vlan=5) / Dot1Q(vlan=6) / ip / segment, dict(other, vlan=1, vlan_tci=5)),
        (ether / Dot1AD(vlan=5) / ip / segment, dict(other, vlan=0)),
        (ether / Dot1Q(vlan=0x123, prio=5) / ARP(), dict(other, vlan=1, vlan_tci=0xA123)),
        (udp_frame(rng, 20, vlan=0xFFFF), dict(v4, vlan=1, vlan_tci=0xFFFF, l3_offset=18)),
        (udp_frame(rng, 20, vlan=1, ipv6=True), dict(v6, vlan=1, vlan_tci=1, l3_offset=18)),
    ]
    for packet, expected in cases:
        frame = pad(bytes(packet), b"\xee")
        tb.rx[0].send(frame)
        received = await queue.receive_one()
        assert received.data == frame, packet
        got = {name: received.completion[name] for name in expected}
        assert got == expected, f"{packet!r}"
        assert (received.verdict, received.listener, received.port) == (Verdict.PLAIN, 0, 0)
        assert (received.rss_hash, received.options_bad, received.status) == (0, 0, 0)
        await queue.refill(1)

    for number in range(24):
        client = Client(
            ipv6=bool(number & 1),
            vlan=rng.getrandbits(16) if number & 2 else None,
            options=rng.choice(([], [("MSS", 1460)], [("Timestamp", (1, 2)), ("SAckOK", b"")])),
        )
        frame = client.syn(rng.choice(("S", "A", "FA", "R")), data=rng.randbytes(rng.choice((0, 1, 2, 33, 200))))
        tb.rx[0].send(frame)
        received = await queue.receive_one()
        assert received.data == frame
        expected = parsed(frame)
        assert {name: received.completion[name] for name in expected} == expected
        await queue.refill(1)
    await tb.end()


@core_test()
async def address_filter(dut):
    """Ours, groups, and in promiscuous mode all; never to the offloads unless it is ours."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    group, broadcast, foreign = 0x0100_5E00_0001, 0xFFFF_FFFF_FFFF, MACS[0] ^ 1 << 42
    before = await tb.counters("rx_drop_filter", "rx_host_packets")
    for mac, kept in ((MACS[0], 1), (group, 1), (broadcast, 1), (foreign, 0), (MACS[0] ^ 1, 0), (0, 0)):
        frame = plain_frame(tb.rng, 99, dst_mac=mac or 1 << 41)
        tb.rx[0].send(frame)
        if kept:
            assert (await queue.receive_one()).data == frame
    assert await tb.changes(before) == {"rx_drop_filter": 3, "rx_host_packets": 3}

    await tb.write("PORT", "config", 1)
    syn = Client(dst_mac=foreign).syn()
    for frame in (plain_frame(tb.rng, 99, dst_mac=foreign), syn):
        tb.rx[0].send(frame)
        received = await queue.receive_one()
        assert (received.data, received.verdict) == (frame, Verdict.PLAIN)
    tb.assert_nothing_sent()
    await tb.write("PORT", "config", 0)
    tb.rx[0].send(syn)
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=2000)
async def ring_goes_round(dut):
    """Many more packets than the rings have entries: phases, indices past the end, order."""
    tb = await TB.start(dut, buffers=0, rx=3, completions=3)
    queue = tb.queues[0]
    sent = []
    posted = 0
    for _ in range(12):
        count = tb.rng.randrange(1, 9)
        await queue.refill(count, 256)
        posted += count
        for _ in range(count):
            frame = plain_frame(tb.rng, tb.rng.randrange(60, 200))
            sent.append(frame)
            tb.rx[0].send(frame)
        got = await queue.receive(count)
        assert [received.data for received in got] == sent[-count:]
    assert posted > 3 * queue.rx_free.entries
    await tb.end()


@core_test()
async def no_buffer_no_room(dut):
    """Packets without a buffer, or without room for a completion, are dropped and counted; then it goes on."""
    tb = await TB.start(dut, buffers=3, rx=3, completions=3)
    queue = tb.queues[0]
    names = ("rx_host_packets", "rx_drop_no_buffer", "rx_drop_completion_full")
    before = await tb.counters(*names)
    frames = [plain_frame(tb.rng, 100) for _ in range(5)]
    for frame in frames:
        tb.rx[0].send(frame)
    assert await tb.changes(before) == {"rx_host_packets": 3, "rx_drop_no_buffer": 2}
    assert [got.data for got in await queue.receive(3)] == frames[:3]

    # The host consumes no completion: 8 fit.
    await queue.write("rx_completion_head", queue.rx_completion.index)
    queue.acknowledge = False
    before = await tb.counters(*names)
    frames = []
    for round_size in (6, 4):
        await queue.refill(round_size, 256)
        for _ in range(round_size):
            frames.append(plain_frame(tb.rng, 100))
            tb.rx[0].send(frames[-1])
        await tb.settle()
    assert await tb.changes(before) == {"rx_host_packets": 8, "rx_drop_completion_full": 2}
    queue.acknowledge = True
    assert [got.data for got in await queue.receive(8)] == frames[:8]
    # The buffers that the two dropped packets did not use are still there.
    for _ in range(2):
        frame = plain_frame(tb.rng, 100)
        tb.rx[0].send(frame)
        assert (await queue.receive_one()).data == frame
    await tb.end()


@core_test()
async def disabled_queue(dut):
    """Packets for a queue that is off are dropped and counted."""
    tb = await TB.start(dut, queues=1)
    await tb.write("CONTROL", "default_queue", tb.config.queues - 1)
    before = await tb.counters("rx_drop_no_buffer", "rx_host_packets")
    tb.rx[0].send(plain_frame(tb.rng, 80))
    assert await tb.changes(before) == {"rx_drop_no_buffer": 1}
    # A queue number that this build does not have is no different.
    await tb.write("CONTROL", "default_queue", 255)
    tb.rx[0].send(plain_frame(tb.rng, 80))
    assert await tb.changes(before) == {"rx_drop_no_buffer": 2}
    await tb.write("CONTROL", "default_queue", 0)
    frame = plain_frame(tb.rng, 80)
    tb.rx[0].send(frame)
    assert (await tb.queues[0].receive_one()).data == frame
    await tb.end()


@core_test()
async def bursts(dut):
    """Back-to-back frames, as many as the buffer holds, with slow memory: nothing lost, nothing mixed up."""
    tb = await TB.start(dut, buffers=0, rx=6, completions=6)
    queue = tb.queues[0]
    tb.bus.latency = lambda: tb.rng.randrange(100, 300)
    room = tb.config.rx_buffer_beats * tb.config.width
    frames: list[bytes] = []
    while len(frames) < 60 and (length := tb.rng.choice((60, 64, 65, 128, 300, 1514))) + 64 < room:
        frames.append(plain_frame(tb.rng, length))
        room -= length + tb.config.width
    for _ in frames:
        queue.post(2048, offset=tb.rng.randrange(64))
    await queue.ring_rx()
    before = await tb.counters("rx_drop_full", "rx_host_packets", "rx_host_bytes", "rx_bytes")
    for frame in frames:
        tb.rx[0].send(frame)
    assert [got.data for got in await queue.receive(len(frames))] == frames
    size = sum(map(len, frames))
    assert await tb.changes(before) == {
        "rx_host_packets": len(frames),
        "rx_host_bytes": size,
        "rx_bytes": size,
    }
    await tb.end()
