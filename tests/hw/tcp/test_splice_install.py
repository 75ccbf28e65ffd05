"""SpliceInstall: what it takes and makes of it, what it refuses and why, that both directions begin together, that failures leave nothing."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

from acceltcp.abi.messages import SPLICE_COMMAND, SPLICE_SIDE, SpliceSideFlag, Status
from acceltcp.abi.wire import TCPFlag
from hw.dma.tx import COMMANDS
from hw.tcp.splice_install import SpliceInstall
from tests.hw.simulate import always, converts, sometimes
from tests.hw.tcp.splice_bench import CONFIG, Packet, SpliceBench, pack_side, side_message
from tests.hw.tcp.splice_engine_model import Segment

V6, ECN = int(SpliceSideFlag.IPV6), int(SpliceSideFlag.ECN)
M32 = 0xFFFF_FFFF


def sides(number: int = 0, **both: int) -> tuple[dict, dict]:
    return (
        side_message(remote=0x0A000100 + number, **both),
        side_message(remote=0x0B000100 + number, remote_port=80, local_port=1024 + number, **both),
    )


async def done(ctx, bench, count=1):
    """Until so many more commands have ended; what they said."""
    want = len(bench.done) + count
    while len(bench.done) < want:
        await bench.cycle(ctx)
    return [status for _, status, _ in bench.done[-count:]]


def random_side(rng: random.Random, flags: int) -> dict:
    """Anything that may be."""
    ipv6 = flags & V6

    def address():
        return rng.getrandbits(128) if ipv6 else rng.getrandbits(32) | rng.choice((0, 0xFFFF << 32))

    own = rng.choice((0, 2)) | rng.choice((0, 4)) | rng.choice((0, 8))
    return side_message(
        remote=address(), local=address(), remote_port=rng.getrandbits(16), local_port=rng.getrandbits(16),
        dst_mac=rng.getrandbits(48), vlan_tci=rng.getrandbits(16), flags=flags | own, port=rng.randrange(2),
        snd_shift=rng.randrange(15), rcv_shift=rng.randrange(15), snd_nxt=rng.getrandbits(32),
        snd_una=rng.getrandbits(32), rcv_nxt=rng.getrandbits(32), ts_offset=rng.getrandbits(32),
    )  # fmt: skip


def test_everything_that_may_be(monkeypatch):
    """Every field arrives where it matters: a packet each way shows the translation, an abort the state."""
    rng = random.Random(1)
    bench = SpliceBench()

    async def scenario(ctx, bench):
        for _ in range(16):
            flags = rng.choice((0, V6)) | rng.choice((0, ECN))
            name = await bench.open(
                ctx, random_side(rng, flags), random_side(rng, flags), queue=rng.randrange(64),
                limit=rng.choice((None, 1, 1 << 30)), idle=rng.choice((0, 1, 32767)), tag=rng.getrandbits(32),
            )  # fmt: skip
            for way in range(2):
                seq = bench.pairs[name & 0xFFFFFF].sides[way].snd_end
                bench.send(Packet(rng, 2 * (name & 0xFFFFFF) + way, Segment(seq, tsval=3)))
            bench.update(name)
        await bench.settle(ctx)
        assert bench.counted["splice_aborted"] == bench.counted["splice_opened"] == 16
        assert bench.counted["splice_packets"] > 16

    bench.run(monkeypatch, scenario)


def test_refused_commands(monkeypatch):
    """Each by itself; the next one is taken."""
    bad = [
        {"table": 1 << 54}, {"table": 255 << 8 | 128}, {"table": 1}, {"idle": 32768}, {"limit": 5, "bounded": 0},
        {"limit": 0, "bounded": 1}, {"limit": (1 << 30) + 1, "bounded": 1}, {"_zero0": 1}, {"_zero1": 1 << 335},
        {"bounded": 0, "limit": 1 << 31},
    ]  # fmt: skip
    bench = SpliceBench()

    async def scenario(ctx, bench):
        for fields in bad:
            bench.command(*sides(), want=Status.BAD_ARGUMENT, **fields)
            await done(ctx, bench)
        await bench.open(ctx, *sides(), limit=1 << 30, idle=32767)

    bench.run(monkeypatch, scenario)
    assert bench.held == 1


def test_refused_sides(monkeypatch):
    """Every field that can be wrong, on either side; then a splice of the same connections."""
    bad: list[tuple[dict, dict]] = [
        ({"flags": 32}, {}), ({"flags": 128}, {}), ({"port": 2}, {}), ({"port": 3}, {}), ({"snd_shift": 15}, {}),
        ({"rcv_shift": 15}, {}), ({"_zero0": 1}, {}), ({"_zero1": 128}, {}), ({"flags": ECN}, {"flags": 0}),
        ({"flags": V6}, {"flags": 0}), ({"remote": 1 << 32}, {}), ({"local": 1 << 127}, {}), ({"local": 0xFFFE << 32}, {}),
        ({"remote": 7, "local": 7, "remote_port": 9, "local_port": 9}, {}),
        ({"remote": 7 | 0xFFFF << 32, "local": 7, "remote_port": 9, "local_port": 9}, {}),
    ]  # fmt: skip
    same = {"remote": 1, "local": 2, "remote_port": 3, "local_port": 4}
    cases = [*bad, *((server, client) for client, server in bad), (same, same)]
    good = [
        ({"flags": V6, "remote": 7, "local": 1 << 127, "remote_port": 9, "local_port": 9}, {"flags": V6}),
        *((same, same | {name: 9}) for name in same),
    ]
    bench = SpliceBench()

    async def scenario(ctx, bench):
        for client, server in cases:
            one, other = sides()
            bench.command(one | client, other | server, want=Status.BAD_ARGUMENT)
            await done(ctx, bench)
        for number, (client, server) in enumerate(good):
            one, other = sides(number)
            name = await bench.open(ctx, one | client, other | server)
            bench.update(name)
            await bench.settle(ctx)

    bench.run(monkeypatch, scenario)
    assert bench.counted["command_errors"] == len(cases) and bench.counted["commands"] == len(good)


def test_bad_address_and_no_secret(monkeypatch):
    """A refused read counts before what the table seems to say, the secret after it."""
    bench = SpliceBench()

    async def scenario(ctx, bench):
        client, server = sides()
        for raw in (None, 0):
            bench.command(client, server, raw=raw, want=Status.BAD_ADDRESS)
            bench.refused = set(bench.memory)
            await done(ctx, bench)
        bench.refused = set()
        ctx.set(bench.dut.ready, 0)
        bench.command(client, server, raw=0, want=Status.BAD_ARGUMENT)
        bench.command(client, server, want=Status.NO_SECRET)
        await done(ctx, bench, 2)
        ctx.set(bench.dut.ready, 1)
        await bench.open(ctx, client, server)

    bench.run(monkeypatch, scenario)


def test_failed_insertions_leave_nothing(monkeypatch):
    """Full or a duplicate, at the first or at the second entry: nothing is left in the table, the index comes back, and
    packets that had been looked up go to the host as before."""
    bench = SpliceBench()
    rng = random.Random(2)

    async def scenario(ctx, bench):
        first, second = sides(0)
        kept = await bench.open(ctx, first, second)
        table = dict(bench.table)
        for number, room in enumerate((0, 1), 1):
            bench.inserts_until_full = room
            bench.command(*sides(1), want=Status.TABLE_FULL)
            while number not in bench.pairs:
                await bench.cycle(ctx)
            # Its packets come while it is being put in and taken out.
            for _ in range(20):
                bench.send(*(Packet(rng, 2 * number + side, Segment(5000)) for side in (0, 1)))
                await bench.cycle(ctx)
            await bench.settle(ctx)
            assert bench.done[-1][1] == Status.TABLE_FULL and bench.table == table and bench.held == 1
        assert not any(fate.forward or fate.verdict for *_, fate in bench.outputs) and len(bench.outputs) == 80
        bench.inserts_until_full = None
        bench.command(first, sides(1)[1], want=Status.DUPLICATE)
        bench.command(sides(1)[0], second, want=Status.DUPLICATE)
        await done(ctx, bench, 2)
        await bench.settle(ctx)
        assert bench.table == table and bench.held == 1
        bench.update(kept)
        await bench.settle(ctx)
        assert not bench.table and bench.held == 0
        await bench.open(ctx, first, second)

    bench.run(monkeypatch, scenario)


def test_both_directions_begin_together(monkeypatch):
    """Packets of both sides in every cycle: all go to the host up to one cycle, and are forwarded after it."""
    bench = SpliceBench()
    rng = random.Random(3)

    async def scenario(ctx, bench):
        bench.command(*sides(), want=Status.OK)
        while 0 not in bench.pairs:
            await bench.cycle(ctx)
        for _ in range(30):
            bench.send(*(Packet(rng, way, Segment(5000)) for way in (0, 1)))
            await bench.cycle(ctx)
            await bench.cycle(ctx)
        await bench.settle(ctx)
        forwarded = [fate.forward for _, _, fate in bench.outputs]
        switch = forwarded.index(True)
        assert 10 < switch < 50 and all(forwarded[switch:])
        assert [packet.way for _, packet, _ in bench.outputs] == [0, 1] * 30

    bench.run(monkeypatch, scenario)


def test_a_beginning_is_told_before_the_end(monkeypatch):
    """A splice that ends at once, while nobody takes the event that says that it has begun."""
    stuck = {"events0": True}
    bench = SpliceBench(go=lambda name: (lambda: not stuck.get(name)))

    async def scenario(ctx, bench):
        bench.command(*sides(), want=Status.OK)
        while not bench.pairs or bench.pairs[0].state == "PENDING":
            await bench.cycle(ctx)
        bench.send(Packet(random.Random(1), 0, Segment(5000, flags=TCPFlag.RST)))
        for _ in range(200):
            await bench.cycle(ctx)
        assert not bench.table and not bench.told and not bench.done
        stuck.clear()
        await bench.settle(ctx)
        assert len(bench.done) == 1 and [event["status"] for event in bench.told] == [0, Status.RESET]

    bench.run(monkeypatch, scenario)


def test_all_indices(monkeypatch):
    """As many as there are; one more is refused; one that ends makes room for one."""
    bench = SpliceBench(go=lambda name: sometimes(len(name), 0.7) if name in ("entries", "insert", "events0") else always)

    async def scenario(ctx, bench):
        names = [await bench.open(ctx, *sides(k)) for k in range(16)]
        assert [name & 0xFFFFFF for name in names] == list(range(16))
        assert [name >> 24 for name in names] == list(range(16))
        bench.command(*sides(16), want=Status.TABLE_FULL)
        await done(ctx, bench)
        assert bench.held == 16
        for number in range(20):
            ended = names.pop(3)
            bench.update(ended)
            while not bench.told or bench.told[-1]["splice"] != ended or bench.told[-1]["type"] != 8:
                await bench.cycle(ctx)
            # Asked for at once: it waits until the index may be used again.
            names.append(await bench.open(ctx, *sides(100 + number)))
            assert names[-1] & 0xFFFFFF == ended & 0xFFFFFF and names[-1] >> 24 == 16 + number
        bench.update(ended)
        bench.update(ended & 0xFFFFFF | 7 << 24)
        bench.update(16 | 35 << 24)
        bench.update(M32)
        await bench.settle(ctx)
        assert bench.updated == [Status.OK] * 20 + [Status.NOT_FOUND] * 4

    bench.run(monkeypatch, scenario)


def test_nothing_is_known_of_indices_that_were_not_used(monkeypatch):
    """After a reset the memory holds what it likes."""
    bench = SpliceBench()

    async def scenario(ctx, bench):
        for name in (0, 1, 15, 16, 1 << 24, M32):
            bench.update(name)
        await bench.settle(ctx)
        assert bench.updated == [Status.NOT_FOUND] * 6

    bench.run(monkeypatch, scenario)


def test_commands_wait_and_are_carried_out_with_hold(monkeypatch):
    """So many as `room` says are taken at once; `hold` stops none of them; `idle` comes after the last event."""
    stuck = {"entries": True}
    bench = SpliceBench(go=lambda name: (lambda: not stuck.get(name)))

    async def scenario(ctx, bench):
        dut = bench.dut
        assert ctx.get(dut.room) == COMMANDS and not ctx.get(dut.commanding)
        for k in range(COMMANDS + 1):
            bench.command(*sides(k), want=Status.OK if k < 16 else Status.TABLE_FULL)
        for _ in range(60):
            await bench.cycle(ctx)
        assert ctx.get(dut.room) == 0 and len(bench.sources["commands"].waiting) == 1
        ctx.set(dut.hold, 1)
        stuck.clear()
        while not ctx.get(dut.idle):
            await bench.cycle(ctx)
            assert ctx.get(dut.commanding) == (not ctx.get(dut.idle))
        assert len(bench.done) == COMMANDS + 1 and ctx.get(dut.room) == COMMANDS

    bench.run(monkeypatch, scenario)


def test_latency_and_rate(monkeypatch):
    """About 100 cycles a command, with a table that is there at once."""
    bench = SpliceBench()

    async def scenario(ctx, bench):
        for k in range(8):
            bench.command(*sides(k), want=Status.OK)
        begin = bench.cycles
        await done(ctx, bench, 1)
        first = bench.cycles
        assert first - begin <= 100
        await done(ctx, bench, 7)
        assert (bench.cycles - first) / 7 <= 90
        print(first - begin, (bench.cycles - first) / 7)

    bench.run(monkeypatch, scenario)


def test_messages_fill_the_table():
    """The two sides make what the reader of tables reads at once: a multiple of 16 bytes, not more than 256."""
    assert 2 * SPLICE_SIDE.size == 128 and SPLICE_COMMAND.size == 64
    assert pack_side(side_message()).bit_length() <= 512


def test_converts():
    converts(SpliceInstall(CONFIG))
