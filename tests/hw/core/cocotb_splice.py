"""Splices on the whole core: SPLICE to SPLICE_DONE, frames of both peers built with scapy.

docs/splice.md; what is forwarded is compared byte for byte with `tests.hw.tcp.splice_model`. With two ports
the client is on port 0 and the server on port 1.
"""

from __future__ import annotations

from acceltcp.abi.messages import EventType, SpliceSideFlag, Status, Verdict

from .bench import MEMORY_BASE, MEMORY_BYTES, core_test
from .closing import Closing
from .frames import MACS, TCP, Client, Ether, assert_new, plain_frame
from .splicing import LINGER, M32, TABLE_ALIGN, Splice, World

PLAIN, NEW, GUARD, DIVERTED = Verdict.PLAIN, Verdict.NEW, Verdict.GUARD, Verdict.DIVERTED
KINDS = (
    {},
    {"ipv6": True},
    {"vlans": (None, 0x2064)},
    {"ipv6": True, "vlans": (5, None)},
    {"vlans": (7, 9), "flags": SpliceSideFlag.TIMESTAMPS},
    {"ipv6": True, "vlans": (None, 1), "flags": SpliceSideFlag.SACK},
)
"""IPv4 and IPv6, all changes of tags, options that one side does not know."""


async def close_all(world: World, splices: list[Splice]) -> None:
    """Both sides close: FIN, FIN with the acknowledgment of the first, the last acknowledgment."""
    for splice in splices:
        splice.send(0, "FA")
        await world.check()
        splice.send(1, "FA")
        await world.check()
        splice.send(0, "A")
        await world.check()
        assert splice.pair.state == "LINGER"
    await world.units(LINGER)
    for splice in splices:
        splice.pair.sweep(world.now)
    for splice in splices:
        await splice.over(Status.OK, fin=1)


@core_test(timeout_us=4000)
async def both_ways(dut):
    """Six splices of all kinds, frames both ways without a pause: what leaves is right in every byte; the host sees nothing."""
    world = await World.start(dut)
    tb = world.tb
    splices = [await Splice(world, number, **kind).open() for number, kind in enumerate(KINDS)]
    assert [splice.name for splice in splices] == [number << 24 | number for number in range(len(KINDS))]
    assert await world.held() == len(KINDS)
    if tb.config.ports > 1:  # the rewriter does a beat per cycle, for both
        for port in range(tb.config.ports):
            tb.rx[port].gap = lambda: tb.rng.random() < 0.55
    before = await tb.counters()
    count = octets = 0
    for number in range(240):
        splice, d = splices[number * 7 // 3 % len(splices)], tb.rng.randrange(2)
        size = tb.rng.choice((0, 0, 1, 6, 100, 500, 1400))
        # (With two ports the order between the sides is not known: acknowledgments of what has been sent before.)
        splice.send(d, tb.rng.choice(("A", "PA", "AE", "CA")), size, sack=tb.rng.random() < 0.3, ack=splice.messages[d]["snd_nxt"])
        count, octets = count + 1, octets + size
    received = sum(map(len, (frame for source in tb.rx for frame, _ in source._queue)))
    sent = sum(len(frame) for wire in world.wire for frame in wire)
    assert await world.check() == []
    assert await tb.changes(before) == {
        "rx_packets": count, "rx_bytes": received, "splice_packets": count, "splice_octets": octets,
        "tx_packets": count, "tx_bytes": sent,
    }  # fmt: skip
    await close_all(world, splices)
    moved = await tb.changes(before)
    assert moved["splice_closed"] == len(KINDS) and moved["splice_packets"] == count + 3 * len(KINDS)
    await world.end()


@core_test(timeout_us=2000)
async def guarded(dut):
    """While one peer has not acknowledged what the host relayed to it, the host sees what either side sends."""
    world = await World.start(dut)
    tb = world.tb
    before = await tb.counters("splice_copied", "splice_packets", "rx_host_packets")
    for guard in ((300, 0), (0, 300)):
        splice = await Splice(world, guard[1], guard=guard).open()
        d = int(guard[1] > 0)
        relayed = splice.messages[d]["snd_nxt"]
        splice.send(d, size=100, ack=relayed - 300, sack=True)  # the host has acknowledged more: no SACK for the other one
        assert await world.check() == [GUARD]
        splice.send(1 - d, size=50)
        assert await world.check() == [GUARD]
        splice.send(d, ack=relayed - 1, sack=True)
        assert await world.check() == [GUARD]
        splice.send(d, ack=relayed, sack=True)  # the last one: from now on it knows
        assert await world.check() == [GUARD]
        splice.send(d, size=10, ack=relayed)
        splice.send(1 - d, size=10)
        assert await world.check() == []
        await splice.abort()
    assert await tb.changes(before) == {"splice_copied": 8, "splice_packets": 12, "rx_host_packets": 8}
    await world.end()


@core_test(timeout_us=3000)
async def bounded(dut):
    """The server's bytes up to the limit pass; what goes beyond, and what the client sends, is the host's. Then all is."""
    world = await World.start(dut)
    tb = world.tb
    before = await tb.counters("splice_diverted", "splice_packets", "splice_octets", "splice_limit")
    splice = await Splice(world, limit=2000, vlans=(3, None)).open()
    start = splice.messages[0]["snd_nxt"]
    splice.send(1, size=900)
    await world.check()
    splice.send(0, ack=start + 900)
    splice.send(0, "PA", 40, ack=start + 900)  # the next request
    assert await world.check() == [DIVERTED]
    splice.send(1, size=900)
    splice.send(1, "FA", 0)
    splice.send(1, size=201)
    splice.send(1, size=200)
    splice.send(1, size=1)
    assert await world.check() == [DIVERTED, DIVERTED, DIVERTED]
    splice.send(0, ack=start + 1999)
    assert await world.check() == []
    assert splice.pair.state == "ACTIVE"
    splice.send(0, ack=start + 2000)
    assert await world.check() == []
    await splice.over(Status.LIMIT, ack=start + 2000 & M32, octets=0, packets=3)
    assert await world.held() == 0
    # Both connections live on at the host.
    for d in (0, 1):
        frame = splice.frame(d, size=30)
        world.plain(frame, splice.messages[d]["port"])
        assert await world.check() == [PLAIN]
    # And again, from where they stand.
    again = Splice(world, limit=100, vlans=(3, None))
    await again.open()
    again.send(1, size=100)
    await world.check()
    again.send(0)
    await again.over(Status.LIMIT)
    moved = await tb.changes(before)
    assert moved == {"splice_diverted": 4, "splice_packets": 8, "splice_octets": 2100, "splice_limit": 2}
    await world.end()


@core_test(timeout_us=3000)
async def bounded_by_the_host(dut):
    """A segment across the limit is the host's, which sends on its first part: the client's acknowledgment of that ends the splice."""
    world = await World.start(dut)
    splice = await Splice(world, limit=1000).open()
    splice.send(1, size=1400)
    assert await world.check() == [DIVERTED]
    splice.send(0, ack=splice.messages[0]["snd_nxt"] + 1000)
    await world.check()
    told = await splice.over(Status.LIMIT, ack=splice.messages[0]["snd_nxt"] + 1000 & M32)
    assert told[1]["snd_end"] == splice.messages[1]["rcv_nxt"] + 1000 & M32 and told[1]["octets"] == 0
    await world.end()


@core_test(timeout_us=3000)
async def both_close(dut):
    """After both FINs it lingers: what is repeated still passes. SYNs of new connections end it at once."""
    world = await World.start(dut)
    tb = world.tb
    listener = await tb.listen()
    before = await tb.counters("splice_closed", "splice_drop_syn")
    for by_syn in (False, True):
        splice = await Splice(world).open()
        splice.send(1, "FPA", 77)
        await world.check()
        splice.send(0, "A", 10)
        splice.send(0, "FA")
        await world.check()
        assert splice.pair.state == "ACTIVE"
        last = splice.send(1, "A")
        await world.check()
        assert splice.pair.state == "LINGER"
        await world.units(LINGER - 1)
        splice.deliver(1, last)
        await world.check()
        assert await world.held() == 1
        if by_syn:
            splice.deliver(0, splice.sides[0].peer.syn())
            await world.check()
        else:
            await world.units(2)
            splice.pair.sweep(world.now)
        await splice.over(Status.OK, fin=1, octets=10, packets=2)
        assert await world.held() == 0
        # Its tuple is free again.
        peer = splice.sides[0].peer
        peer.server_port = listener.port
        answer = await tb.open(peer, listener)
        segment = peer.ack(answer, data=b"GET")
        tb.rx[0].send(segment)
        assert_new(await tb.queues[0].receive_one(), peer.syn(), listener, segment)
        await tb.queues[0].refill(1)
    assert await tb.changes(before) == {"splice_closed": 2, "splice_drop_syn": 1}
    await world.end()


@core_test(timeout_us=2000)
async def lost_fin(dut):
    """The client's FIN gets lost in front of the NIC; an acknowledgment that it sends afterwards does not make the repetition void."""
    world = await World.start(dut)
    splice = await Splice(world).open()
    fin = splice.next_seq(0)
    splice.send(1, size=10)
    await world.check()
    splice.send(0, seq=fin + 1)
    await world.check()
    splice.send(0, "FA", seq=fin)
    await world.check()
    splice.send(1, "FA")
    await world.check()
    splice.send(0)
    await world.check()
    assert splice.pair.state == "LINGER"
    await world.units(LINGER)
    splice.pair.sweep(world.now)
    await splice.over(Status.OK, fin=1)
    await world.end()


@core_test(timeout_us=2000)
async def resets(dut):
    """Every reset is forwarded, an exact one ends the splice."""
    world = await World.start(dut)
    tb = world.tb
    for d in (0, 1):
        for exact in ("sent", "acknowledged"):
            splice = await Splice(world, d).open()
            splice.send(d, size=100)
            await world.check()
            seq = splice.next_seq(d)
            splice.send(d, "R", seq=seq + 1)
            splice.send(d, "RA", seq=seq - 50)
            await world.check()
            assert splice.pair.state == "ACTIVE" and await world.held() == 1
            splice.send(d, "R", seq=seq if exact == "sent" else seq - 100)
            await world.check()
            told = await splice.over(Status.RESET)
            assert told[1]["reset_by"] == d and await world.held() == 0
    assert (await tb.counters("splice_reset"))["splice_reset"] == 4
    await world.end()


@core_test(timeout_us=3000)
async def idle_and_update(dut):
    """A splice that nobody uses ends, each packet puts that off; the host can end one, once."""
    world = await World.start(dut)
    splice = await Splice(world, idle=3).open()
    other = await Splice(world, 1).open()
    for d in (0, 1, 0):
        await world.units(2)
        splice.send(d, size=1)
        await world.check()
        assert splice.pair.due(world.now) is None
    await world.units(2)
    assert await world.held() == 2
    await world.units(1)
    splice.pair.sweep(world.now)
    await splice.over(Status.IDLE)
    assert await world.held() == 1

    assert await splice.update() == Status.NOT_FOUND
    assert await other.update(other.name ^ 1 << 24) == Status.NOT_FOUND
    assert await other.update(other.name + 1) == Status.NOT_FOUND
    assert await other.update(other.name | 0xFFFFFF) == Status.NOT_FOUND
    other.send(0, size=9)
    assert await world.check() == []
    await other.abort()
    assert await other.update() == Status.NOT_FOUND
    moved = await world.tb.counters("splice_opened", "splice_idle", "splice_aborted")
    assert moved == {"splice_opened": 2, "splice_idle": 1, "splice_aborted": 1}
    await world.end()


@core_test(timeout_us=4000)
async def refusals(dut):
    """What cannot be carried out is refused with its reason, and changes nothing."""
    world = await World.start(dut)
    tb = world.tb
    splice, other = Splice(world), Splice(world, 1)
    same = splice.messages[0]
    bad = SpliceSideFlag.ECN
    for changes, fields in (
        (({}, {}), {"table": splice.table + TABLE_ALIGN // 4}),
        (({}, {}), {"table": 1 << 54}),
        (({}, {}), {"limit": 5}),
        (({}, {}), {"bounded": 1, "limit": 0}),
        (({}, {}), {"bounded": 1, "limit": (1 << 30) + 1}),
        (({}, {}), {"idle": 1 << 15}),
        (({"port": tb.config.ports}, {}), {}),
        (({}, {"snd_shift": 15}), {}),
        (({"rcv_shift": 15}, {}), {}),
        (({"flags": 0x80}, {"flags": 0x80}), {}),
        (({"flags": splice.messages[0]["flags"] ^ bad}, {}), {}),
        (({}, {"flags": splice.messages[1]["flags"] | SpliceSideFlag.IPV6}), {}),
        (({}, {name: same[name] for name in ("remote", "local", "remote_port", "local_port")}), {}),
        (({"local": same["remote"], "local_port": same["remote_port"]}, {}), {}),
        (({"remote": same["remote"] | 1}, {}), {}),
    ):
        event = await splice.command(changes, **fields)
        assert event["status"] == Status.BAD_ARGUMENT, (changes, fields, event)
    outside = MEMORY_BASE + MEMORY_BYTES
    assert (await splice.command(table=outside))["status"] == Status.BAD_ADDRESS

    # Nothing of it stayed.
    assert await world.held() == 0
    for d in (0, 1):
        world.plain(splice.frame(d, size=20), splice.messages[d]["port"])
        assert await world.check() == [PLAIN]

    # Each connection is spliced once; if the second one is held already, the first one stays free.
    await splice.open()
    assert (await splice.command())["status"] == Status.DUPLICATE
    for d in (0, 1):
        key = {name: splice.messages[d][name] for name in ("remote", "local", "remote_port", "local_port")}
        changes = (key, {}) if d == 0 else ({}, key)
        assert (await other.command(changes))["status"] == Status.DUPLICATE
    assert await world.held() == 1
    await other.open()
    for d in (0, 1):
        splice.send(d, size=20)
        other.send(d, size=20)
    assert await world.check() == []
    for one in (splice, other):
        await one.abort()

    # A connection that closes is not spliced, and the reverse.
    flow = await Closing(tb, splice.sides[0].peer, [b"abc"]).close()
    await flow.expect_frame(0)
    assert (await splice.command())["status"] == Status.DUPLICATE
    await other.open()
    assert (await Closing(tb, other.sides[1].peer, [b"abc"]).command())["status"] == Status.DUPLICATE
    await other.abort()
    flow.segment("R")
    await flow.done(Status.RESET)
    await world.end()


@core_test(timeout_us=4000)
async def too_many(dut):
    """As many as IDENT says, and no more; then they end, all of them, and there is room again."""
    world = await World.start(dut)
    tb = world.tb
    most = 1 << (await tb.read_fields("IDENT", "tables"))["splices_log2"]
    assert most == tb.config.splices
    splices = [await Splice(world, number).open() for number in range(most)]
    assert await world.held() == most
    extra = Splice(world, most)
    assert (await extra.command())["status"] == Status.TABLE_FULL
    for splice in tb.rng.sample(splices, 20):
        splice.send(tb.rng.randrange(2), size=30)
    assert await world.check() == []
    for splice in splices:
        await splice.abort()
    assert await world.held() == 0
    await extra.open()
    extra.send(0, size=30)
    await world.check()
    await extra.abort()
    await world.end()


@core_test(timeout_us=2000)
async def no_secret(dut):
    world = await World.start(dut)
    tb = world.tb
    await tb.reset()
    await tb.set_addresses()
    await tb.queues[0].restart()
    event = await Splice(world).command()
    assert event["status"] == Status.NO_SECRET
    await tb.rest()
    tb.assert_nothing_sent()


@core_test(timeout_us=2000)
async def hops(dut):
    """A frame that has been forwarded too often is dropped, and counted."""
    world = await World.start(dut)
    tb = world.tb
    splice = await Splice(world).open()
    frame = Ether(splice.frame(0, size=100))
    frame["IP"].ttl = 1
    del frame["IP"].chksum
    splice.deliver(0, bytes(frame))
    splice.send(1, size=100)
    await world.check()
    assert (await tb.counters("splice_drop_hops"))["splice_drop_hops"] == 1
    await splice.abort()
    await world.end()


@core_test(timeout_us=4000)
async def queue_disabled(dut):
    """A queue goes down under its splices: they go on, their copies and news are lost, nothing hangs; their place is free in the end."""
    world = await World.start(dut, queues=2)
    tb = world.tb
    plain = await Splice(world, 0, queue=1).open()
    guarded = await Splice(world, 1, queue=1, guard=(50, 0)).open()
    stays = await Splice(world, 2).open()
    await tb.queues[1].disable()
    before = await tb.counters("rx_drop_no_buffer", "event_overflow")
    for splice in (plain, guarded, stays):
        splice.send(1, size=200)
        splice.send(0, ack=splice.messages[0]["snd_nxt"] - 50)
    # Copies for a queue that is off are dropped.
    assert [verdict for verdict, _ in world.host[1]] == [GUARD, GUARD]
    world.host[1].clear()
    await world.check()
    for splice in (plain, guarded):
        splice.send(0, "R")
        world.host[1].clear()
        await world.check()
        assert splice.pair.status == Status.RESET
    await tb.rest(2000)
    assert await world.held() == 1
    moved = await tb.changes(before)
    assert moved == {"rx_drop_no_buffer": 3, "event_overflow": 4}, moved
    await tb.queues[1].restart()
    again = await Splice(world, 0, queue=1).open()
    again.send(1, size=10)
    assert await world.check() == []
    await again.abort()
    await stays.abort()
    await world.end()


@core_test(timeout_us=4000)
async def disabled_behind_commands(dut):
    """A queue is disabled with SPLICE commands under way: it becomes idle, and each that was taken has its event."""
    world = await World.start(dut, queues=2)
    tb = world.tb
    splices = [Splice(world, number, queue=1) for number in range(60)]
    counts = []
    for wait in (20, 100, 400):
        for splice in splices:
            splice.pack()
        await tb.queues[1].ring_tx()
        await tb.cycles(wait)
        await tb.queues[1].disable()
        tb.queues[1].poll_events()
        told = list(tb.queues[1].events)
        assert all((event["type"], event["status"]) == (EventType.COMMAND_DONE, Status.OK) for event in told), told
        assert await world.held() == len(told) <= len(splices)
        counts.append(len(told))
        await tb.queues[1].restart()
        for event in told:
            splice = splices[0]
            splice.name = event["value"]
            assert await splice.update() == Status.OK
            side, done = await tb.queues[1].take_events(2)
            assert (side["type"], done["type"]) == (EventType.SPLICE_SIDE, EventType.SPLICE_DONE)
            assert side["splice"] == done["splice"] == splice.name and done["status"] == Status.ABORTED
    assert any(0 < count < len(splices) for count in counts), counts
    await world.end()


@core_test(timeout_us=4000)
async def soft_reset(dut):
    """A soft reset in the middle of everything forgets all splices; their packets are plain ones, and the NIC works again."""
    world = await World.start(dut)
    tb = world.tb
    for round_ in range(3):
        splices = [await Splice(world, number, guard=(number, 0)).open() for number in range(6)]
        for number in range(60):
            splices[number % 6].send(number & 1, size=tb.rng.randrange(600))
        await tb.cycles((40, 300, 900)[round_])
        await world.reset()
        for source in tb.rx:
            await source.wait()
        await tb.rest()
        # What came while it began again is nobody's matter.
        for wire, sink in zip(world.wire, tb.tx, strict=True):
            wire.clear()
            sink.frames.clear()
        world.host.clear()
        tb.queues[0].poll_received()
        await tb.queues[0].refill(len(tb.queues[0].received))
        tb.queues[0].received.clear()
        assert await world.held() == 0
        world.plain(splices[0].frame(0, size=20))
        assert await world.check() == [PLAIN]
        splice = await Splice(world, 0).open()
        splice.send(0, size=200)
        splice.send(1, size=200)
        assert await world.check() == []
        await splice.abort()
    await world.end()


@core_test(timeout_us=12000)
async def mixed(dut):
    """Spliced, closing and plain connections at once, splices that begin and end all the time, a wire that stalls."""
    world = await World.start(dut, queues=2)
    tb, rng = world.tb, world.tb.rng
    await tb.listen()
    tb.bus.stall(ar=0.1, r=0.1, aw=0.1, w=0.1, b=0.1)
    for sink in tb.tx:
        sink.pause = lambda: rng.random() < 0.15
    for source in tb.rx:
        source.gap = lambda: rng.random() < 0.4
    live: list[Splice] = []
    ends: dict[Status, int] = {}
    number = closed = 0
    for _ in range(10):
        while len(live) < 5:
            kind = rng.choice(KINDS)
            guard = rng.choice(((0, 0), (0, 0), (400, 0), (0, 7)))
            live.append(await Splice(world, number, guard=guard, limit=1400 if number % 2 else None, **kind).open())
            number += 1
        others: dict[int, list[bytes]] = {}
        flows = []
        for _ in range(3):
            client = Client(41000 + closed, ipv6=rng.random() < 0.5)
            closed += 1
            others[client.port] = []
            flow = await Closing(tb, client, [rng.randbytes(50)], queue=1, seq=rng.getrandbits(32), rcv_nxt=rng.getrandbits(32)).close()
            await flow.expect_frame(0)
            flows.append(flow)
        pending = [*flows]
        ending: list[Splice] = []
        # With two ports one side after the other, since their order is not known.
        for d in rng.sample((0, 1), 2) if tb.config.ports > 1 else (None,):
            for _ in range(30):
                splice, side = rng.choice(live), rng.randrange(2) if d is None else d
                if splice not in ending:
                    lost = rng.random() < 0.1
                    flags = rng.choices(("A", "PA", "FA", "R"), (20, 20, 2, 1))[0]
                    seq = splice.next_seq(side) + (rng.choice((-100, 100, 5000)) if lost else 0)
                    ack = splice.next_ack(side) if rng.random() < 0.8 else splice.pair.sides[side].ack
                    size = 0 if splice.pair.sides[side].fin or flags == "R" else rng.choice((0, 0, 10, 700, 1300))
                    if splice.limit is not None and side == 1 and not lost and rng.random() < 0.8:
                        size = min(size or 1400, splice.pair.limit_end - splice.next_ack(0) & M32)  # at most what is left
                    splice.send(side, flags, size, seq=seq, ack=ack, sack=rng.random() < 0.2)
                    if splice.pair.state == "ENDING":
                        ending.append(splice)
                if rng.random() < 0.1:
                    world.plain(plain_frame(rng, rng.randrange(60, 500), dst_mac=MACS[d or 0]), port=d or 0)
                if pending and side == 0 and rng.random() < 0.3:
                    pending.pop().segment("FA")
            if d is not None:
                await world.check(others=others)
        while pending:
            pending.pop().segment("FA")
        await world.check(others=others)
        for flow in flows:
            (frame,) = others[flow.client.port]
            answer = Ether(frame)[TCP]
            assert (str(answer.flags), answer.ack) == ("A", flow.rcv_nxt + 1 & M32), answer
        for event in await tb.queues[1].take_events(len(flows), within_us=100):
            assert (event["type"], event["status"]) == (EventType.FLOW_DONE, Status.OK), event
        told = await tb.queues[0].take_events(2 * len(ending), within_us=100) if ending else []
        wanted = [event for splice in ending for event in splice.pair.events(splice.name)]
        assert [event | {"phase": 0} for event in told] == wanted
        for splice in ending:
            ends[splice.pair.status] = ends.get(splice.pair.status, 0) + 1
            live.remove(splice)
        assert await world.held() == len(live)
    for splice in live:
        await splice.abort()
    assert {Status.RESET, Status.LIMIT} <= set(ends) and set(world.verdicts) == {PLAIN, GUARD, DIVERTED}
    for sink in tb.tx:
        sink.pause = lambda: False
    await world.end()
