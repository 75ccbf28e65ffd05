"""Frames from the host: contents, checksums, order, fairness, events."""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import Dot1Q, Ether

from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, EventType, Status, TxFlag

from .bench import TB, core_test
from .frames import CLIENT4, CLIENT6, SERVER4, SERVER6, Client, assert_frames_equal, pad, plain_frame, show

V4 = TxFlag.IPV4_CHECKSUM | TxFlag.L4_CHECKSUM
V6 = TxFlag.IPV6 | TxFlag.L4_CHECKSUM


@core_test(timeout_us=2000)
async def any_alignment(dut):
    """Frames of many lengths from buffers at any address; short ones are padded with zeros."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    lengths = [14, 15, 59, 60, 61, 63, 64, 65, 127, 128, 129, 192, 193, 1514, tb.config.max_frame]
    lengths += [tb.rng.randrange(14, 300) for _ in range(33)]
    tb.rng.shuffle(lengths)
    before = await tb.counters("tx_packets", "tx_bytes", "tx_host_packets", "tx_host_bytes", "tx_errors")
    sent, wire_bytes, host_bytes = 0, 0, 0
    while lengths:
        frames = [plain_frame(tb.rng, length) for length in lengths[:16]]
        del lengths[:16]
        for frame in frames:
            queue.send(frame, offset=tb.rng.randrange(64))
        await queue.ring_tx()
        for frame in frames:
            assert_frames_equal(await tb.frame(), pad(frame))
        sent += len(frames)
        host_bytes += sum(map(len, frames))
        wire_bytes += sum(len(pad(frame)) for frame in frames)
    moved = await tb.changes(before)
    assert (moved["tx_packets"], moved["tx_host_packets"]) == (sent, sent)
    assert moved["tx_bytes"] == wire_bytes
    assert moved["tx_host_bytes"] in (wire_bytes, host_bytes)
    assert "tx_errors" not in moved
    await tb.end()


@core_test()
async def every_length(dut):
    """14 bytes to more than four beats of any width, one by one."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    lengths = list(range(14, 60 + min(4 * tb.config.width, 140) + 2))
    for first in range(0, len(lengths), 16):
        frames = [plain_frame(tb.rng, length) for length in lengths[first : first + 16]]
        for frame in frames:
            queue.send(frame)
        await queue.ring_tx()
        assert await tb.frames(len(frames)) == [pad(frame) for frame in frames]
    await tb.end()


@core_test()
async def across_pages(dut):
    tb = await TB.start(dut)
    queue = tb.queues[0]
    largest = tb.config.max_frame
    for length, before_page in ((60, 1), (60, 59), (1000, 999), (largest, 64), (largest, 63), (largest, 1)):
        page = tb.memory.alloc(0, align=4096, offset=4096) + 4096
        tb.memory.alloc(largest + 8192)
        frame = plain_frame(tb.rng, length)
        tb.memory.write(page - before_page, frame)
        queue.send(b"?", address=page - before_page, length=length)
        await queue.ring_tx()
        assert_frames_equal(await tb.frame(), pad(frame))
    await tb.end()


def checksum_cases(tb: TB):
    """(packet whose checksums scapy has computed, layers to spoil, flags)."""
    rng = tb.rng
    tcp_options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    for size in (0, 1, 2, 3, 17, 64, 200):
        data = rng.randbytes(size)
        ip, ip6 = IP(src=SERVER4, dst=CLIENT4, id=size), IPv6(src=SERVER6, dst=CLIENT6)
        tcp = TCP(sport=80, dport=4000, flags="PA", seq=rng.getrandbits(32), options=tcp_options)
        udp = UDP(sport=53, dport=4000)
        yield ip / tcp / data, (IP, TCP), V4
        yield ip6 / tcp / data, (TCP,), V6
        yield ip / udp / data, (IP, UDP), V4 | TxFlag.UDP
        yield ip6 / udp / data, (UDP,), V6 | TxFlag.UDP
    yield ip6 / ICMPv6EchoRequest(id=1, seq=2, data=b"ping"), (ICMPv6EchoRequest,), V6 | TxFlag.ICMPV6
    yield ip6 / ICMPv6ND_NS(tgt=CLIENT6), (ICMPv6ND_NS,), V6 | TxFlag.ICMPV6
    yield ip / ICMP(id=7) / b"only the IP header", (IP,), TxFlag.IPV4_CHECKSUM
    yield ip / TCP(sport=1, dport=2) / b"only the segment", (TCP,), TxFlag.L4_CHECKSUM
    yield IP(src=SERVER4, dst=CLIENT4, options=b"\x94\x04\0\0") / udp / data, (UDP,), TxFlag.L4_CHECKSUM | TxFlag.UDP


@core_test(timeout_us=2000)
async def checksums(dut):
    """Against scapy; what stands in the checksum fields before does not matter."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    field = {IP: "chksum", TCP: "chksum", UDP: "chksum", ICMPv6EchoRequest: "cksum", ICMPv6ND_NS: "cksum"}
    expected = []
    for packet, layers, flags in checksum_cases(tb):
        vlan = tb.rng.random() < 0.4
        ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        good = Ether(bytes((ether / Dot1Q(vlan=9) if vlan else ether) / packet))
        expected.append(pad(bytes(good)))
        for layer in layers:
            setattr(good[layer], field[layer], tb.rng.getrandbits(16))
        l3 = 18 if vlan else 14
        raw = bytes(good)
        l4 = l3 + (40 if IPv6 in good else 4 * (raw[l3] & 15))
        queue.send(raw, flags=flags, l3_offset=l3, l4_offset=l4, offset=tb.rng.randrange(64))
        if len(expected) % 8 == 0:
            await queue.ring_tx()
            for frame in expected[-8:]:
                assert_frames_equal(await tb.frame(), frame)
    await queue.ring_tx()
    for frame in expected[len(expected) // 8 * 8 :]:
        assert_frames_equal(await tb.frame(), frame)
    await tb.end()


@core_test()
async def udp_checksum_zero(dut):
    """A UDP checksum that comes out as 0 is sent as 0xFFFF (RFC 768); a TCP one stays."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    for layer, flags, want in ((UDP(sport=5, dport=6), V4 | TxFlag.UDP, b"\xff\xff"), (TCP(), V4, b"\0\0")):
        kind = type(layer)
        probe = Ether(bytes(Ether() / IP(src=SERVER4, dst=CLIENT4) / layer / b"\0\0"))
        payload = probe[kind].chksum.to_bytes(2, "big")  # adding it to the sum makes the sum 0xFFFF
        frame = bytes(Ether() / IP(src=SERVER4, dst=CLIENT4) / layer / payload)
        at = 14 + 20 + (6 if kind is UDP else 16)
        queue.send(frame, flags=flags, l3_offset=14, l4_offset=34)
        await queue.ring_tx()
        sent = await tb.frame()
        assert sent[at : at + 2] == want, show(sent)
        assert sent[:24] == frame[:24]
    await tb.end()


@core_test()
async def untouched_without_flags(dut):
    """Without flags a frame with any checksum goes out as it is."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    packet = Ether(bytes(Ether() / IP(src=SERVER4, dst=CLIENT4) / TCP() / b"data"))
    packet[IP].chksum, packet[TCP].chksum = 0x1234, 0x5678
    queue.send(bytes(packet), l3_offset=14, l4_offset=34)
    await queue.ring_tx()
    assert_frames_equal(await tb.frame(), pad(bytes(packet)))
    await tb.end()


@core_test()
async def events_in_order(dut):
    """Frames' events come in the order of the ring, and so do commands', each after all that stood before it."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    nop = LISTEN_COMMAND.pack(opcode=CommandOpcode.NOP, tag=77)
    for _ in range(3):
        expected, frames = [], []
        for number in range(12):
            kind = tb.rng.choice(("silent", "flagged", "command", "error"))
            frame = plain_frame(tb.rng, tb.rng.randrange(60, 200))
            if kind == "command":
                index = queue.command_raw(nop)
                expected.append((EventType.COMMAND_DONE, Status.OK, index, 77))
            elif kind == "error":
                index = queue.send(frame, opcode=0)
                expected.append((EventType.TX_ERROR, Status.BAD_OPCODE, index, 0))
            else:
                frames.append(frame)
                index = queue.send(frame, flags=TxFlag.EVENT if kind == "flagged" else 0)
                if kind == "flagged":
                    expected.append((EventType.TX_DONE, Status.OK, index, 0))
            assert number < queue.tx.entries
        last = queue.command_raw(nop)
        expected.append((EventType.COMMAND_DONE, Status.OK, last, 77))
        await queue.ring_tx()
        events = await queue.take_events(len(expected))
        got = [(e["type"], e["status"], e["index"], e["tag"]) for e in events]
        assert all(e["queue"] == 0 and not e["overflow"] for e in events)
        for commands in (False, True):
            of_kind = [one for one in expected if (one[0] == EventType.COMMAND_DONE) == commands]
            assert [one for one in got if (one[0] == EventType.COMMAND_DONE) == commands] == of_kind
        for at, (kind, *_) in enumerate(expected):
            if kind == EventType.COMMAND_DONE:
                assert set(expected[:at]) <= set(got[: got.index(expected[at])]), "a command is a fence"
        assert await tb.frames(len(frames)) == [pad(frame) for frame in frames]
    await tb.end()


@core_test()
async def done_means_read(dut):
    """After TX_DONE the host may overwrite the buffer, even with slow memory and a stalled wire."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    tb.bus.latency = lambda: tb.rng.randrange(50, 200)
    tb.tx[0].pause = lambda: tb.rng.random() < 0.9
    for _ in range(4):
        frame = plain_frame(tb.rng, 700)
        address = tb.memory.alloc(700)
        tb.memory.write(address, frame)
        queue.send(b"?", address=address, length=700, flags=TxFlag.EVENT)
        await queue.ring_tx()
        await queue.take_event()
        tb.memory.write(address, bytes(700))
        assert_frames_equal(await tb.frame(), frame)
    await tb.end()


@core_test(timeout_us=2000)
async def fairness(dut):
    """Queues with much to send take turns: once all are under way none gets far ahead of another."""
    turn, count, per_queue = 8, 4, 120
    tb = await TB.start(dut, queues=count, buffers=0, tx=7, events=8)
    for number, queue in tb.queues.items():
        for index in range(per_queue):
            frame = bytearray(plain_frame(tb.rng, tb.rng.choice((60, 130))))
            frame[14:16] = number, index
            queue.send(bytes(frame))
    for queue in tb.queues.values():
        await queue.ring_tx()
    sent = dict.fromkeys(tb.queues, 0)
    under_way: dict[int, int] | None = None
    for frame in await tb.frames(count * per_queue, within_us=200):
        number = frame[14]
        assert frame[15] == sent[number], "out of order"
        sent[number] += 1
        if under_way is None and all(sent.values()):
            under_way = dict(sent)
        if under_way is not None and max(sent.values()) < per_queue:
            since = [sent[number] - under_way[number] for number in sent]
            assert max(since) - min(since) <= 2 * turn, (under_way, sent)
    assert under_way is not None and max(under_way.values()) < per_queue, under_way
    await tb.end()


@core_test()
async def ring_goes_round(dut):
    """Many more descriptors than entries; doorbells for one and for many."""
    tb = await TB.start(dut, tx=3, events=4, buffers=0)
    queue = tb.queues[0]
    total = 0
    while total < 60:
        count = tb.rng.randrange(1, 9)
        frames = [plain_frame(tb.rng, tb.rng.randrange(60, 130)) for _ in range(count)]
        for frame in frames:
            queue.send(frame, flags=TxFlag.EVENT if frame is frames[-1] else 0)
        await queue.ring_tx()
        assert await tb.frames(count) == frames
        event = await queue.take_event()
        total += count
        assert event["index"] == total - 1 == (queue.tx.index - 1) & 0xFFFF
    await tb.end()


@core_test()
async def replies_between_frames(dut):
    """SYN-ACKs and host frames share the wire; each frame stays whole."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    syns = [Client(1000 + number).syn() for number in range(10)]
    frames = [plain_frame(tb.rng, 300) for _ in range(10)]
    for frame in frames:
        queue.send(frame)
    await queue.ring_tx()
    for syn in syns:
        tb.rx[0].send(syn)
    seen = await tb.frames(20)
    assert [frame for frame in seen if len(frame) == 300] == frames
    replies = [Ether(frame) for frame in seen if len(frame) != 300]
    assert [reply[TCP].dport for reply in replies] == list(range(1000, 1010))
    await tb.alive(listener)
    await tb.end()

