"""Bad input from the wire: each kind ends in the right counter, and the next good client is served."""

from __future__ import annotations

import cocotb

from acceltcp.abi.messages import ChecksumState, Verdict
from acceltcp.abi.wire import ETHERNET, ETHERNET_MIN_FRAME

from .bench import TB, core_test
from .frames import CLIENT4, CLIENT6, MACS, SERVER4, SERVER6, Client, Listener, pad, plain_frame

L3, L4 = ETHERNET.size, ETHERNET.size + 20


def inet_sum(data: bytes) -> int:
    data += b"\0" * (len(data) & 1)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def patched(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


def resum(frame: bytes, *, v6: bool = False, length: int | None = None) -> bytes:
    """IPv4 and TCP checksums of an untagged frame as its bytes are; `length` of the segment."""
    if v6:
        l4, pseudo = L3 + 40, frame[L3 + 8 : L3 + 40]
        size = int.from_bytes(frame[L3 + 4 : L3 + 6], "big") if length is None else length
    else:
        frame = patched(frame, L3 + 10, b"\0\0")
        frame = patched(frame, L3 + 10, inet_sum(frame[L3:L4]).to_bytes(2, "big"))
        l4, pseudo = L4, frame[L3 + 12 : L3 + 20]
        total = int.from_bytes(frame[L3 + 2 : L3 + 4], "big")
        size = max(0, total - 20) if length is None else length
    segment = patched(frame, l4 + 16, b"\0\0")[l4 : l4 + size]
    value = inet_sum(pseudo + b"\0\6" + size.to_bytes(2, "big") + segment)
    return patched(frame, l4 + 16, value.to_bytes(2, "big"))


def syn_with(options: bytes, *, v6: bool = False, flags: str = "S") -> bytes:
    """A SYN with these raw option bytes (a multiple of 4) and right checksums."""
    assert len(options) % 4 == 0
    frame = Client(ipv6=v6, options=[("NOP", None)] * len(options)).syn(flags)
    return resum(patched(frame, L3 + (40 if v6 else 20) + 20, options), v6=v6)


async def expect(tb: TB, listener: Listener, cases: list, names: tuple[str, ...], *, to_host: bool = False) -> None:
    """Send each (frame, counter); exactly that counter moves by one, besides the ones that go with it."""
    before = await tb.counters(*names)
    wanted: dict[str, int] = {}
    for number, (frame, counter) in enumerate(cases):
        tb.rx[0].send(frame)
        wanted[counter] = wanted.get(counter, 0) + 1
        if number % 8 == 7:
            await tb.alive(listener)
    moved = await tb.changes(before)
    assert moved == wanted
    await tb.alive(listener)


@core_test(timeout_us=2000)
async def mac_level(dut):
    """Flagged by the MAC, runts, oversize: nothing of them is left behind."""
    tb = await TB.start(dut, buffers=0)
    queue, listener = tb.queues[0], await tb.listen()
    await queue.refill(4, tb.config.max_frame)
    names = ("rx_packets", "rx_drop_mac_error", "rx_drop_runt", "rx_drop_oversize", "rx_host_packets")
    limit = tb.config.max_frame
    good = Client().syn()
    before = await tb.counters(*names)
    sent = 0
    for length in (1, 2, 13, 14, 20, 33, 54, 58, 59):
        tb.rx[0].send(pad(good)[:length])
        sent += 1
    for length in (limit + 1, limit + tb.config.width, limit + 500):
        tb.rx[0].send(plain_frame(tb.rng, length))
        sent += 1
    for length in (14, 60, 61, 300, limit, limit + 1):
        tb.rx[0].send(plain_frame(tb.rng, length), error=True)
    tb.rx[0].send(good, error=True)
    frames = [plain_frame(tb.rng, length) for length in (ETHERNET_MIN_FRAME, limit)]
    for frame in frames:
        tb.rx[0].send(frame)
    moved = await tb.changes(before)
    assert (moved["rx_drop_runt"], moved["rx_drop_oversize"]) == (9, 3)
    assert moved["rx_drop_mac_error"] == 7
    assert moved["rx_packets"] in (2, 2 + sent)
    assert [received.data for received in await queue.receive(2)] == frames
    tb.assert_nothing_sent()
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=2000)
async def lengths_that_lie(dut):
    """IP and TCP lengths that contradict the frame or each other."""
    tb = await TB.start(dut)
    listener = await tb.listen()
    v6_listener = await tb.listen(Listener(80, ipv6=True))
    cases = []
    for v6 in (False, True):
        frame = Client(ipv6=v6).syn(data=b"0123456789" * 4)
        l4 = L3 + (40 if v6 else 20)
        inside = len(frame) - L3
        if v6:
            for length in (inside - 40 + 1, 0x8000, 0xFFFF):
                cases.append(resum(patched(frame, L3 + 4, length.to_bytes(2, "big")), v6=True))
        else:
            for length in (0, 1, 19, inside + 1, 0x8000, 0xFFFF):
                cases.append(resum(patched(frame, L3 + 2, length.to_bytes(2, "big"))))
        for offset in (0, 1, 4):
            cases.append(resum(patched(frame, l4 + 12, bytes([offset << 4])), v6=v6))
        # The data offset points past the segment.
        short = Client(ipv6=v6, options=[]).syn()
        cases.append(resum(patched(short, l4 + 12, b"\xf0"), v6=v6))
    names = ("rx_drop_length", "rx_drop_ip_checksum", "rx_drop_l4_checksum", "setup_syn", "rx_host_packets")
    before = await tb.counters(*names)
    for frame in cases:
        tb.rx[0].send(frame)
    assert await tb.changes(before) == {"rx_drop_length": len(cases)}

    # Segments too short for a TCP header: dropped too, or handed over as not TCP; never answered.
    for v6 in (False, True):
        for size in (0, 1, 12, 19):
            client = Client(ipv6=v6, options=[])
            frame = client.syn()
            at, base = (L3 + 4, 0) if v6 else (L3 + 2, 20)
            frame = patched(frame, at, (base + size).to_bytes(2, "big"))
            tb.rx[0].send(resum(frame, v6=v6))
    await tb.settle()
    tb.queues[0].poll_received()
    for received in tb.queues[0].received:
        assert (received.verdict, received.tcp, received.l4_offset) == (Verdict.PLAIN, 0, 0)
    count = len(tb.queues[0].received)
    tb.queues[0].received.clear()
    await tb.queues[0].refill(count)
    moved = await tb.changes(before)
    assert moved.get("rx_drop_length", 0) + moved.get("rx_host_packets", 0) == len(cases) + 8
    assert "setup_syn" not in moved
    await tb.alive(listener)
    await tb.open(Client(ipv6=True), v6_listener)
    await tb.end()


@core_test(timeout_us=2000)
async def wrong_checksums(dut):
    """One bit wrong anywhere that a checksum covers."""
    tb = await TB.start(dut)
    listener = await tb.listen()
    await tb.listen(Listener(80, ipv6=True))
    names = ("rx_drop_ip_checksum", "rx_drop_l4_checksum", "rx_drop_length", "setup_syn", "rx_host_packets")
    before = await tb.counters(*names)
    cases = 0
    for v6 in (False, True):
        for size in (0, 1, 2, 31, 64, 65):
            frame = Client(ipv6=v6).syn(data=tb.rng.randbytes(size))
            l4 = L3 + (40 if v6 else 20)
            end = l4 + 24 + size
            fixed = (l4, l4 + 2, l4 + 4, l4 + 14, l4 + 16, l4 + 17)
            spots = list(fixed) + [tb.rng.randrange(l4, l4 + 12)] + ([end - 1] if size else [])
            for at in spots:
                tb.rx[0].send(patched(frame, at, bytes([frame[at] ^ 1 << tb.rng.randrange(8)])))
                cases += 1
    moved = await tb.changes(before)
    assert moved == {"rx_drop_l4_checksum": cases}
    # The IPv4 header: its checksum comes first, except where the length is hit.
    before = await tb.counters(*names)
    frame = Client().syn(data=b"x" * 30)
    for at in (L3 + 1, L3 + 4, L3 + 8, L3 + 10, L3 + 11, L3 + 12, L3 + 19):
        tb.rx[0].send(patched(frame, at, bytes([frame[at] ^ 1 << tb.rng.randrange(8)])))
    assert await tb.changes(before) == {"rx_drop_ip_checksum": 7}
    await tb.alive(listener)
    await tb.end()


@core_test()
async def keep_bad(dut):
    """With `keep_bad` the host gets them, marked, and the offloads still do not."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    await tb.write("PORT", "config", 2)
    syn = Client().syn(data=b"12345678901234567890")
    ip_bad = patched(syn, L3 + 10, bytes([syn[L3 + 10] ^ 1]))
    l4_bad = patched(syn, L4 + 16, bytes([syn[L4 + 16] ^ 1]))
    length_bad = resum(patched(syn, L3 + 2, b"\x0f\xff"))
    for frame, ip_state, l4_state in (
        (ip_bad, ChecksumState.BAD, None),
        (l4_bad, ChecksumState.GOOD, ChecksumState.BAD),
        (length_bad, None, None),
    ):
        tb.rx[0].send(frame)
        received = await queue.receive_one()
        assert (received.data, received.verdict) == (frame, Verdict.PLAIN)
        assert ip_state is None or received.ip_checksum == ip_state
        assert l4_state is None or received.l4_checksum == l4_state
    tb.assert_nothing_sent()
    await tb.write("PORT", "config", 0)
    await tb.alive(listener)
    await tb.end()


BAD_OPTIONS = {
    "MSS of length 0": "02000000",
    "MSS of length 1": "02010000",
    "MSS of length 3": "02030500",
    "MSS of length 5": "0205050000000000",
    "MSS past the header": "01010204",
    "last byte is a kind": "01010102",
    "unknown kind at the end": "010101fe",
    "unknown of length 0": "fe000000",
    "unknown of length 1": "fe010000",
    "unknown past the header": "fe050000",
    "window scale of length 4": "03040700",
    "window scale of length 2": "03020101",
    "SACK permitted of length 3": "04030000",
    "timestamps of length 8": "0808000000010000",
    "timestamps past the header": "0101080a00000001",
    "good MSS, then nonsense": "020405b4ff000000",
    "MSS 0": "02040000",
    "MSS 1": "02040001",
    "MSS 63": "0204003f",
}


@core_test(timeout_us=2000)
async def bad_options(dut):
    """Option lists that run past the header or have impossible lengths; MSS values that are no use."""
    tb = await TB.start(dut)
    listener = await tb.listen()
    await tb.listen(Listener(80, ipv6=True))
    cases = []
    for v6 in (False, True):
        for text in BAD_OPTIONS.values():
            raw = bytes.fromhex(text)
            cases.append(syn_with(raw, v6=v6))
            filler = b"\x01" * (40 - len(raw))
            cases.append(syn_with(filler + raw, v6=v6))
    before = await tb.counters("setup_syn", "setup_drop_options", "setup_syn_ack", "rx_host_packets")
    for frame in cases:
        tb.rx[0].send(frame)
    moved = await tb.changes(before)
    assert moved == {"setup_syn": len(cases), "setup_drop_options": len(cases)}
    await tb.alive(listener)
    await tb.end()


@core_test()
async def strange_but_good_options(dut):
    """A window shift of 0, EOL before garbage, the header full of options: these are answered."""
    tb = await TB.start(dut)
    listener = await tb.listen()
    for options in (
        [("WScale", 0)],
        [("EOL", None)] * 4,
        [("MSS", 64)],
        [("NOP", None)] * 40,
        [(200, b"x" * 38)],
        [("Timestamp", (0, 0))],
        [("Timestamp", (0xFFFF_FFFF, 0xFFFF_FFFF)), ("MSS", 65535), ("SAckOK", b""), ("WScale", 14)],
    ):
        await tb.open(Client(options=options), listener)
    await tb.end()


@core_test(timeout_us=2000)
async def hostile_syns(dut):
    """SYNs that no honest client sends."""
    tb = await TB.start(dut)
    listener = await tb.listen()
    v6_listener = await tb.listen(Listener(80, ipv6=True))
    flags, address = "setup_drop_flags", "setup_drop_address"
    cases = [(Client(options=[("MSS", 1460)]).syn(f), flags) for f in ("SF", "SR", "SFR", "SFPU", "SRPUEC")]
    cases += [(Client(src=src).syn(), address) for src in ("0.0.0.0", "255.255.255.255", "224.0.0.1", "239.1.2.3")]
    cases += [(Client(dst=dst).syn(), address) for dst in ("255.255.255.255", "224.0.0.251", "0.0.0.0")]
    cases += [
        (Client(0).syn(), address),
        (Client(80, src=SERVER4, dst=SERVER4).syn(), address),  # land
        (Client(dst_mac=0xFFFF_FFFF_FFFF).syn(), address),
        (Client(dst_mac=0x0100_5E00_0001).syn(), address),
        (Client(ipv6=True).syn("SF"), flags),
        (Client(ipv6=True, src="::").syn(), address),
        (Client(ipv6=True, src="ff02::1").syn(), address),
        (Client(ipv6=True, dst="ff02::1").syn(), address),
        (Client(ipv6=True, dst="::").syn(), address),
        (Client(80, ipv6=True, src=SERVER6, dst=SERVER6).syn(), address),
        (Client(ipv6=True, dst_mac=0x3333_0000_0001).syn(), address),
    ]
    names = (flags, address, "setup_drop_options", "setup_syn_ack", "rx_host_packets", "rx_drop_filter")
    before = await tb.counters(*names)
    wanted: dict[str, int] = {}
    for frame, counter in cases:
        tb.rx[0].send(frame)
        wanted[counter] = wanted.get(counter, 0) + 1
    moved = await tb.changes(before)
    if moved != wanted:  # find out which
        for frame, counter in cases:
            before = await tb.counters(*names)
            tb.rx[0].send(frame)
            one = await tb.changes(before)
            assert one == {counter: 1}, f"{one} for {frame.hex()}"
    # Neighbours of the hostile ones are fine.
    for client in (
        Client(81, src=SERVER4, dst=SERVER4),
        Client(80, src="192.0.2.9", dst=SERVER4),
        Client(src="223.255.255.255"),
        Client(dst="240.0.0.1"),
        Client(1),
        Client(65535, iss=0xFFFF_FFFF),
    ):
        await tb.open(client, listener)
    await tb.open(Client(ipv6=True, src="::1", dst="fe80::1"), v6_listener)
    await tb.alive(listener)
    await tb.end()


@core_test()
async def unparsed_to_host(dut):
    """Fragments, IP options, a second tag, extension headers with a SYN inside: PLAIN, never answered."""
    from scapy.layers.inet import IP, TCP, IPOption_NOP
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
    from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    await tb.listen(Listener(80, ipv6=True))
    ether = Ether(dst=MACS[0].to_bytes(6, "big").hex(":"), src="06:00:00:00:00:01")
    tcp = TCP(sport=999, dport=80, flags="S", options=[("MSS", 1460)])
    ip, ip6 = {"src": CLIENT4, "dst": SERVER4}, {"src": CLIENT6, "dst": SERVER6}
    version = bytearray(bytes(ether / IP(**ip) / tcp))
    version[14] = 0x65
    ihl = bytearray(bytes(ether / IP(**ip) / tcp))
    ihl[14] = 0x44
    for packet in (
        ether / IP(**ip, flags="MF") / tcp,
        ether / IP(**ip, frag=1) / tcp,
        ether / IP(**ip, options=[IPOption_NOP()]) / tcp,
        ether / Dot1Q(vlan=1) / Dot1Q(vlan=2) / IP(**ip) / tcp,
        ether / Dot1AD(vlan=1) / IP(**ip) / tcp,
        ether / Dot1AD(vlan=1) / Dot1Q(vlan=2) / IP(**ip) / tcp,
        ether / IPv6(**ip6) / IPv6ExtHdrDestOpt() / tcp,
        ether / IPv6(**ip6) / IPv6ExtHdrFragment(m=1) / tcp,
        bytes(version),
        bytes(ihl),
    ):
        frame = pad(bytes(packet))
        tb.rx[0].send(frame)
        received = await queue.receive_one()
        assert (received.data, received.verdict, received.listener) == (frame, Verdict.PLAIN, 0), packet
        assert (received.tcp, received.l4_offset, received.payload_offset) == (0, 0, 0)
    tb.assert_nothing_sent()
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=2000)
async def cut_anywhere(dut):
    """A good SYN cut at every byte past the shortest frame: never answered, never stuck."""
    tb = await TB.start(dut, buffers=0)
    listener = await tb.listen()
    v6 = await tb.listen(Listener(80, ipv6=True))
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    sent = 0
    names = ("rx_drop_length", "rx_drop_no_buffer", "rx_drop_runt", "setup_syn_ack")
    before = await tb.counters(*names)
    for ipv6, vlan in ((False, None), (True, 7)):
        frame = Client(ipv6=ipv6, vlan=vlan, options=options).syn(data=b"a" * 20)
        for length in range(60, len(frame), 3):
            tb.rx[0].send(frame[:length])
            sent += 1
    moved = await tb.changes(before)
    assert moved == {"rx_drop_length": sent}
    await tb.queues[0].refill(4)
    await tb.alive(listener)
    await tb.open(Client(ipv6=True), v6)
    await tb.end()


@core_test(timeout_us=3000)
async def noise(dut):
    """Random bytes with believable headers: every frame is accounted for, the NIC lives."""
    tb = await TB.start(dut, buffers=0, rx=7, completions=7)
    queue, listener = tb.queues[0], await tb.listen()
    await tb.listen(Listener(80, ipv6=True))
    await queue.refill(100, 512)
    before = await tb.counters()
    count = 90
    for _ in range(count):
        client = Client(ipv6=tb.rng.random() < 0.5, vlan=tb.rng.choice((None, 1)))
        frame = bytearray(client.syn(tb.rng.choice(("S", "A", "SA")), data=tb.rng.randbytes(tb.rng.randrange(40))))
        for _ in range(tb.rng.randrange(1, 6)):
            at = tb.rng.randrange(12, min(len(frame), 90))
            frame[at] = tb.rng.choice((0, 0xFF, frame[at] ^ 1 << tb.rng.randrange(8)))
        data = bytes(frame)[: tb.rng.choice((len(frame), tb.rng.randrange(1, len(frame) + 1)))]
        tb.rx[0].send(data, error=tb.rng.random() < 0.05)
    moved = await tb.changes(before)
    where = [name for name in moved if name.startswith("rx_drop")] + ["rx_host_packets", "setup_syn", "setup_deferred"]
    assert sum(moved.get(name, 0) for name in where) == count, moved
    queue.poll_received()
    queue.received.clear()
    await queue.write("rx_completion_head", queue.rx_completion.index)
    tb.tx[0].frames.clear()
    await tb.alive(listener)
    await tb.end()


@core_test()
async def during_and_after_reset(dut):
    """Frames while reset is asserted, and one cut by it: dropped; what follows is good again."""
    tb = await TB.start(dut)
    await tb.listen()
    frame, syn = plain_frame(tb.rng, 300), Client().syn()
    for _ in range(3):
        tb.rx[0].send(frame)
        tb.rx[0].send(syn)
    for cycles_before, cycles in ((3, 5), (0, 30), (7, 1)):
        await tb.cycles(cycles_before)
        await tb.reset(cycles)
        tb.rx[0].send(syn)
    await tb.rx[0].wait()
    for sink in tb.tx:
        sink.frames.clear()
        assert not sink.partial
    # Nothing is set up: frames are dropped as such until the host enables receiving.
    before = await tb.counters("rx_drop_disabled", "setup_syn", "rx_host_packets")
    assert (await tb.read("CONTROL", "control"), await tb.read("PORT", "mac_low")) == (0, 0)
    tb.rx[0].send(syn)
    assert await tb.changes(before) == {"rx_drop_disabled": 1}
    await tb.set_addresses()
    await tb.set_secret(bytes(range(0x10, 0x20)))
    await tb.queues[0].restart()
    await tb.write("CONTROL", "control", 1)
    await tb.alive(await tb.listen())
    await tb.end()


@core_test()
async def malformed_stream(dut):
    """`tkeep` as no MAC drives it: the packet is an error and the next one is fine."""
    tb = await TB.start(dut)
    listener = await tb.listen()
    source = tb.rx[0]
    width = tb.config.width
    before = await tb.counters("rx_drop_mac_error", "setup_syn")

    async def beat(data, keep, last):
        source.data.value, source.keep.value = data, keep
        source.last.value, source.valid.value = last, 1
        await cocotb.triggers.RisingEdge(dut.clk)
        source.valid.value = 0

    full = (1 << width) - 1
    await tb.cycles(1)
    beats = -(-64 // width)
    for holes, cut in ((full & ~2, full), (full, 0), (full, full & ~1)):
        for number in range(beats):
            last = number == beats - 1
            await beat(0, cut if last else (holes if number == 0 else full), last)
        if holes != full and beats == 1:
            await beat(0, holes, 0)
            await beat(0, full, 1)
    moved = await tb.changes(before)
    assert set(moved) == {"rx_drop_mac_error"}, moved
    await tb.alive(listener)
    await tb.end()
