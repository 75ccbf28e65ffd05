"""Connection setup on the wire: SYN, SYN-ACK, first segment."""

from __future__ import annotations

import itertools
from dataclasses import replace

from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from acceltcp.abi.messages import CommandOpcode, Status, Verdict

from .bench import SECRET, TB, core_test
from .driver import Listener
from .frames import Client, assert_frames_equal, assert_new, show, syn_ack

STAMP = ("Timestamp", (0xA1B2_C3D4, 0))
SACK, NOP, EOL = ("SAckOK", b""), ("NOP", None), ("EOL", None)
OPTIONS = [
    [],
    [("MSS", 1460)],
    [("MSS", 64), SACK],
    [("MSS", 65535), NOP, ("WScale", 0)],
    [("MSS", 1460), SACK, STAMP, NOP, ("WScale", 7)],  # Linux
    [("MSS", 1460), NOP, ("WScale", 8), NOP, NOP, SACK],  # Windows
    [("MSS", 1440), NOP, ("WScale", 6), NOP, NOP, STAMP, SACK, EOL],  # BSD, macOS
    [STAMP],
    [SACK, ("WScale", 14), ("MSS", 1220), STAMP],
    [NOP, NOP, NOP, ("WScale", 15), ("MSS", 8940)],  # a shift above 14 counts as 14
    [("MSS", 535), EOL, ("WScale", 3)],  # what follows EOL does not count
    [(254, b"\x12\x34\x56"), ("MSS", 1300), (77, b""), SACK],  # unknown options are passed over
]


def clients(tb: TB, count: int = 1, **kwargs) -> list[Client]:
    return [
        Client(tb.rng.randrange(1, 65536), iss=tb.rng.getrandbits(32), **kwargs) for _ in range(count)
    ]  # fmt: skip


@core_test(timeout_us=2000)
async def syn_ack_matrix(dut):
    """IPv4 and IPv6, with and without VLAN, option mixes: all at once; then their first data."""
    tb = await TB.start(dut, buffers=24)
    queue = tb.queues[0]
    v4 = await tb.listen(Listener(80, mss=1460, wscale=7, window=0xFACE))
    v6 = await tb.listen(Listener(80, mss=8940, wscale=14, window=1, ipv6=True, ecn=True))
    await tb.write("TIME", "ts_ticks", 1)
    await tb.tick(3 * 64 + 17)
    epoch, ts_clock = await tb.clocks()
    opened = []
    for ipv6, vlan, options in itertools.product((False, True), (None, 0xEFFE), OPTIONS):
        ecn = tb.rng.random() < 0.5
        (client,) = clients(tb, ipv6=ipv6, vlan=vlan, options=options, ecn=ecn)
        opened.append((client, v6 if ipv6 else v4))
        tb.rx[0].send(client.syn())
    before = await tb.counters("setup_syn")
    assert before["setup_syn"] <= len(opened)
    answers = await tb.frames(len(opened))
    for (client, listener), answer in zip(opened, answers, strict=True):
        expected = syn_ack(client.syn(), listener, secret=SECRET, epoch=epoch, ts_clock=ts_clock)
        assert_frames_equal(answer, expected)
    totals = await tb.counters("setup_syn", "setup_syn_ack", "tx_packets", "tx_bytes", "axi_write_bytes")
    assert totals["setup_syn"] == totals["setup_syn_ack"] == totals["tx_packets"] == len(opened)
    assert totals["tx_bytes"] == sum(map(len, answers))
    assert tb.bus.writes == 2, "no host DMA for SYNs: only the two events of LISTEN"

    for (client, listener), answer in zip(opened, answers, strict=True):
        data = tb.rng.randbytes(tb.rng.choice((0, 1, 5, 100)))
        segment = client.ack(answer, data=data, flags=tb.rng.choice(("A", "PA", "FA", "PAU", "AEC")))
        tb.rx[0].send(segment)
        received = await queue.receive_one()
        assert_new(received, client.syn(), listener, segment)
        assert received.ts_clock == ts_clock
        await queue.refill(1)
    await tb.end()


@core_test()
async def random_options(dut):
    """Option lists in random order with random padding, SYNs that carry data."""
    tb = await TB.start(dut)
    listener = await tb.listen(Listener(80, ecn=True))
    await tb.tick(30)
    for _ in range(40):
        pool = [("MSS", tb.rng.randrange(64, 65536)), SACK, ("WScale", tb.rng.randrange(16)), STAMP, (99, b"x")]
        options = tb.rng.sample(pool, tb.rng.randrange(len(pool) + 1))
        for _ in range(tb.rng.randrange(4)):
            options.insert(tb.rng.randrange(len(options) + 1), NOP)
        (client,) = clients(tb, options=options, ecn=tb.rng.random() < 0.7)
        syn = client.syn(data=tb.rng.randbytes(tb.rng.choice((0, 0, 1, 64))))
        epoch, ts_clock = await tb.clocks()
        tb.rx[0].send(syn)
        expected = syn_ack(syn, listener, secret=SECRET, epoch=epoch, ts_clock=ts_clock)
        assert_frames_equal(await tb.frame(), expected)
    await tb.end()


@core_test()
async def defer_accept(dut):
    """A bare ACK is consumed; data, or the end of the stream, are the first that the host hears."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen(Listener(80, defer=True))
    before = await tb.counters("setup_deferred", "setup_cookie_good", "rx_host_packets")
    for options in ([("MSS", 1460)], [("MSS", 1460), STAMP, SACK]):
        (client,) = clients(tb, options=options)
        answer = await tb.open(client, listener)
        tb.rx[0].send(client.ack(answer))
        for flags, data in (("PA", b"GET / HTTP/1.1"), ("FA", b"")):
            segment = client.ack(answer, flags=flags, data=data)
            tb.rx[0].send(segment)
            assert_new(await queue.receive_one(), client.syn(), listener, segment)
    moved = await tb.changes(before)
    assert moved == {"setup_deferred": 2, "setup_cookie_good": 6, "rx_host_packets": 4}
    # A bare ACK with a wrong cookie is not consumed.
    (client,) = clients(tb)
    tb.rx[0].send(client.segment("A", 1, 2))
    assert (await queue.receive_one()).verdict == Verdict.PLAIN
    await tb.end()


@core_test()
async def ecn(dut):
    """Granted only when the listener, both bits and timestamps agree."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    willing = await tb.listen(Listener(80, ecn=True))
    unwilling = await tb.listen(Listener(81))
    for listener, flags, options in itertools.product(
        (willing, unwilling), ("S", "SE", "SC", "SEC"), ([("MSS", 1460)], [("MSS", 1460), STAMP])
    ):
        (client,) = clients(tb, options=options, server_port=listener.port)
        syn = client.syn(flags)
        epoch, ts_clock = await tb.clocks()
        tb.rx[0].send(syn)
        answer = await tb.frame()
        assert_frames_equal(
            answer, syn_ack(syn, listener, secret=SECRET, epoch=epoch, ts_clock=ts_clock)
        )
        segment = client.ack(answer, data=b"x")
        tb.rx[0].send(segment)
        assert_new(await queue.receive_one(), syn, listener, segment)
        await queue.refill(1)
    await tb.end()


@core_test()
async def paused(dut):
    """A paused listener answers no SYN, but cookies given before still open."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    (client,) = clients(tb)
    answer = await tb.open(client, listener)
    update = CommandOpcode.LISTEN_UPDATE
    assert (await queue.run(replace(listener, paused=True).command(update)))["status"] == Status.OK
    before = await tb.counters("setup_syn", "setup_syn_ack", "setup_drop_paused")
    for other in clients(tb, 3):
        tb.rx[0].send(other.syn())
    assert await tb.changes(before) == {"setup_syn": 3, "setup_drop_paused": 3}
    segment = client.ack(answer, data=b"still good")
    tb.rx[0].send(segment)
    assert_new(await queue.receive_one(), client.syn(), listener, segment)
    assert (await queue.run(listener.command(update)))["status"] == Status.OK
    await tb.alive(listener)
    await tb.end()


@core_test()
async def no_secret(dut):
    tb = await TB.start(dut, secret=None)
    queue, listener = tb.queues[0], await tb.listen()
    assert not (await tb.read_fields("CONTROL", "status"))["secret_valid"]
    before = await tb.counters("setup_syn", "setup_syn_ack", "setup_drop_no_secret", "setup_cookie_good")
    (client,) = clients(tb)
    tb.rx[0].send(client.syn())
    assert await tb.changes(before) == {"setup_syn": 1, "setup_drop_no_secret": 1}
    # Nor does any acknowledgment open a connection, not even one under an all-zero key.
    fake = syn_ack(client.syn(), listener, secret=bytes(16), epoch=(await tb.clocks())[0], ts_clock=0)
    tb.rx[0].send(client.ack(fake, data=b"x"))
    assert (await queue.receive_one()).verdict == Verdict.PLAIN
    # The first secret is in force at once, whatever `now` says.
    await tb.set_secret(SECRET, now=False)
    assert (await tb.read_fields("CONTROL", "status"))["secret_valid"]
    await tb.alive(listener)
    await tb.end()


@core_test()
async def epochs(dut):
    """A cookie lasts for its epoch and the next, in both formats, and then never again."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    for start in (7, 0xFFFF_FFFF):
        await tb.write("TIME", "epoch_ticks", 4)
        await tb.write("TIME", "epoch", start)
        for options in ([("MSS", 1460), ("WScale", 3)], [("MSS", 1300), STAMP]):
            (client,) = clients(tb, options=options)
            answer = await tb.open(client, listener)
            segment = client.ack(answer, data=b"data")
            verdicts = []
            for age in range(6):
                tb.rx[0].send(segment)
                received = await queue.receive_one()
                verdicts.append(received.verdict)
                if age < 2:
                    assert_new(received, client.syn(), listener, segment)
                await tb.tick(4)
            await queue.refill(6)
            assert verdicts == [Verdict.NEW] * 2 + [Verdict.PLAIN] * 4
    await tb.end()


@core_test()
async def secret_rotation(dut):
    """A staged secret comes into force with the next epoch and invalidates nothing before its time."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    await tb.write("TIME", "epoch_ticks", 4)
    await tb.write("TIME", "epoch", 100)
    old, new, newest = SECRET, tb.rng.randbytes(16), tb.rng.randbytes(16)

    async def verdict(client, answer):
        segment = client.ack(answer, data=b"?")
        tb.rx[0].send(segment)
        received = await queue.receive_one()
        await queue.refill(1)
        return received.verdict

    a, b, c, d = clients(tb, 4, options=[("MSS", 1460), STAMP])
    under_old = await tb.open(a, listener, secret=old)
    await tb.set_secret(new, now=False)
    still_old = await tb.open(b, listener, secret=old)
    await tb.tick(4)
    under_new = await tb.open(c, listener, secret=new)
    assert await verdict(a, under_old) == await verdict(b, still_old) == Verdict.NEW
    assert await verdict(c, under_new) == Verdict.NEW
    await tb.tick(4)
    assert await verdict(a, under_old) == Verdict.PLAIN
    assert await verdict(c, under_new) == Verdict.NEW
    # At once: everything outstanding is void.
    await tb.set_secret(newest, now=True)
    assert await verdict(c, under_new) == Verdict.PLAIN
    under_newest = await tb.open(d, listener, secret=newest)
    assert await verdict(d, under_newest) == Verdict.NEW
    await tb.end()


@core_test()
async def forged_cookies(dut):
    """Any bit wrong, in any part that the cookie covers, and it opens nothing."""
    tb = await TB.start(dut, buffers=28)
    queue, listener = tb.queues[0], await tb.listen()
    before = await tb.counters("setup_cookie_good", "setup_cookie_bad")
    total = 0
    for options in ([("MSS", 1460), ("WScale", 2), SACK], [("MSS", 1460), STAMP, SACK]):
        (client,) = clients(tb, options=options)
        good = client.ack(await tb.open(client, listener), data=b"x")
        tcp = Ether(good)[TCP]
        stamps = list(tcp.options)
        forged = [client.segment("A", tcp.seq, tcp.ack ^ 1 << tb.rng.randrange(32), options=stamps)]
        forged += [client.segment("A", tcp.seq + shift, tcp.ack, options=stamps) for shift in (-1, 1, 1 << 31)]
        forged += [Client(client.port ^ 1).segment("A", tcp.seq, tcp.ack, options=stamps)]
        forged += [Client(client.port, src="198.51.100.8").segment("A", tcp.seq, tcp.ack, options=stamps)]
        forged += [Client(client.port, dst="192.0.2.99").segment("A", tcp.seq, tcp.ack, options=stamps)]
        # Window scale, SACK and ECN ride in the echoed timestamp and are covered too.
        echo = dict(stamps)["Timestamp"][1] if stamps else 0
        echoes = [echo ^ 1 << bit for bit in range(6)] if stamps else [0, 0x2F]
        for changed in echoes:
            stamp = [NOP, NOP, ("Timestamp", (777, changed))]
            forged.append(client.segment("A", tcp.seq, tcp.ack, options=stamp, data=b"x"))
        for frame in forged:
            tb.rx[0].send(frame)
        for frame, received in zip(forged, await queue.receive(len(forged)), strict=True):
            assert received.data == frame
            assert received.verdict == Verdict.PLAIN, show(frame)
            assert (received.listener, received.mss) == (1, 0)
        total += len(forged)
        tb.rx[0].send(good)
        assert_new(await queue.receive_one(), client.syn(), listener, good)
    assert await tb.changes(before) == {"setup_cookie_good": 2, "setup_cookie_bad": total}
    await tb.end()


@core_test()
async def not_for_setup(dut):
    """What is not a handshake reaches the host as it is: to the listener's queue, or the default one."""
    tb = await TB.start(dut, queues=2)
    listener = await tb.listen(Listener(80, queue=1))
    await tb.write("CONTROL", "default_queue", 0)
    client = Client()
    for flags in ("SA", "R", "RA", "F", "", "PU"):
        frame = client.segment(flags, 5, 6)
        tb.rx[0].send(frame)
        received = await tb.queues[1].receive_one()
        assert (received.verdict, received.listener, received.listener_index) == (0, 1, listener.index), flags
        assert received.data == frame
    stranger = Client(server_port=81)
    for flags in ("S", "A", "SA", "R"):
        frame = stranger.segment(flags, 5, 6)
        tb.rx[0].send(frame)
        received = await tb.queues[0].receive_one()
        assert (received.verdict, received.listener, received.data) == (0, 0, frame)
    await tb.write("CONTROL", "default_queue", 1)
    tb.rx[0].send(frame)
    assert (await tb.queues[1].receive_one()).data == frame
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=2000)
async def flood(dut):
    """A SYN flood: every SYN is answered or counted as dropped; the NIC writes nothing to the host."""
    tb = await TB.start(dut)
    listener = await tb.listen()
    await tb.settle()
    before, written = await tb.counters("setup_syn", "setup_syn_ack", "setup_drop_busy", "rx_drop_full"), tb.bus.writes
    pairs = [(client, client.syn()) for client in clients(tb, 120)]
    epoch, ts_clock = await tb.clocks()
    for _, syn in pairs:
        tb.rx[0].send(syn)
    await tb.rx[0].wait()
    moved = await tb.changes(before)
    # An iterative hash does not keep up with the wire; the receive buffer drops what it cannot hold.
    full = 0 if tb.config.pipelined_hash else moved.get("rx_drop_full", 0)
    assert moved["setup_syn"] + full == len(pairs), moved
    assert moved["setup_syn"] == moved["setup_syn_ack"] + moved.get("setup_drop_busy", 0), moved
    assert tb.bus.writes == written
    expected = [syn_ack(syn, listener, secret=SECRET, epoch=epoch, ts_clock=ts_clock) for _, syn in pairs]
    got = list(tb.tx[0].frames)
    tb.tx[0].frames.clear()
    assert len(got) == moved["setup_syn_ack"]
    remaining = iter(expected)
    for frame in got:
        assert frame in remaining, f"not an answer, or out of order: {show(frame)}"
    await tb.alive(listener)
    await tb.end()
