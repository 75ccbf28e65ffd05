"""Splices, packet by packet: every rule with exact values, rate, latency, stalls, deadlines."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from functools import partial
from itertools import pairwise

from acceltcp.abi.messages import SPLICE_UNIT_STEPS, EventType, Status, Verdict
from acceltcp.abi.registers import TIMER_TICKS
from acceltcp.abi.wire import TCPFlag
from hw.config import NicConfig
from hw.tcp.splice_engine import RECORDS, SHARE, SpliceEngine
from hw.tcp.splice_records import SplicePair, SpliceWay
from hw.tcp.splices import Splices
from tests.hw.simulate import converts
from tests.hw.tcp.splice_bench import CONFIG, Packet, SpliceBench, side_message
from tests.hw.tcp.splice_engine_model import HOST_SENT, Segment

A, F, S, R = TCPFlag.ACK, TCPFlag.FIN, TCPFlag.SYN, TCPFlag.RST
M32 = 0xFFFF_FFFF
DIVERTED, GUARD = Verdict.DIVERTED, Verdict.GUARD

# The client has sent up to 5000 and acknowledged all of ours (1000); the server has sent up to 70,000 and we up to 30,000.
CLIENT = side_message()
SERVER = side_message(remote=0x0A000003, remote_port=8080, local_port=50000, snd_nxt=30000, snd_una=30000, rcv_nxt=70000)


class Talk:
    """A splice and what its packets came to."""

    def __init__(self, bench: SpliceBench, name: int, rng: random.Random | None = None) -> None:
        self.bench, self.name, self.index = bench, name, name & 0xFFFFFF
        self.rng = rng or random.Random(name)

    async def say(self, ctx, side, seq, ack=0, flags=A, payload=0, tsval=None):
        """One packet; (forward, keep, verdict)."""
        before = len(self.bench.outputs)
        self.bench.send(Packet(self.rng, 2 * self.index + side, Segment(seq & M32, ack & M32, flags, payload, tsval)))
        while len(self.bench.outputs) == before:
            await self.bench.cycle(ctx)
        fate = self.bench.outputs[-1][2]
        return fate.forward, fate.keep, fate.verdict

    async def end(self, ctx):
        """The two events, which must come."""
        before = len(self.bench.told)
        for _ in range(200):
            await self.bench.cycle(ctx)
            if len(self.bench.told) == before + 2:
                return self.bench.told[-2:]
        raise AssertionError("no end")


def talk(monkeypatch, *scenarios, client=CLIENT, server=SERVER, linger=2, how=None, **run):
    """Opens a splice for each `scenario(ctx, talk)` and runs it, one after the other."""
    bench = SpliceBench(linger=linger)

    async def go(ctx, bench):
        for number, scenario in enumerate(scenarios):
            sides = ({**side, "local_port": side["local_port"] + number} for side in (client, server))
            await scenario(ctx, Talk(bench, await bench.open(ctx, *sides, **(how or {}))))

    bench.run(monkeypatch, go, **run)
    return bench


FORWARDED, DIVERT, COPIED, DROPPED = (True, False, None), (False, True, DIVERTED), (True, True, GUARD), (False, False, None)


def test_sizes_on_the_largest_board():
    """Seven words of Ultra RAM, and eight block RAMs in parallel."""
    assert SplicePair.as_shape().size <= 576
    assert SpliceWay(NicConfig(splices=65536, flows=262144)).size <= 504


def test_data_and_acknowledgments(monkeypatch):
    async def scenario(ctx, t):
        assert await t.say(ctx, 0, 5000, 1000, payload=100) == FORWARDED
        assert await t.say(ctx, 1, 70000, 30100, payload=1000) == FORWARDED
        # More than can have been forwarded is not acknowledged; less than known is no news.
        assert await t.say(ctx, 1, 71000, 30100 + HOST_SENT) == FORWARDED
        assert await t.say(ctx, 0, 5100, 2000, tsval=7) == FORWARDED
        assert await t.say(ctx, 0, 5100, 1500, tsval=6) == FORWARDED
        # A gap: the highest end counts; a retransmission counts as a packet.
        assert await t.say(ctx, 0, 5200, 2000, payload=50, tsval=9) == FORWARDED
        assert await t.say(ctx, 0, 5100, 2000, payload=100) == FORWARDED
        # Too far ahead.
        assert await t.say(ctx, 0, 5250 + (1 << 30), 2000, payload=1) == FORWARDED
        t.bench.update(t.name)
        client, server = await t.end(ctx)
        assert client["type"] == EventType.SPLICE_SIDE and client["status"] == 0
        assert (client["snd_end"], client["ack"], client["tsval"]) == (5250, 2000, 9)
        assert (client["packets"], client["octets"], client["fin"]) == (6, 251, 0)
        assert server["type"] == EventType.SPLICE_DONE and server["status"] == Status.ABORTED
        assert (server["snd_end"], server["ack"], server["tsval"]) == (71000, 30100, 0)
        assert (server["packets"], server["octets"]) == (2, 1000)
        assert t.bench.updated == [Status.OK]

    talk(monkeypatch, scenario)


def test_numbers_wrap(monkeypatch):
    client = side_message(snd_nxt=M32, snd_una=M32, rcv_nxt=M32 - 1)
    server = side_message(remote=9, snd_nxt=5, snd_una=5, rcv_nxt=0x7FFF_FFFF)

    async def scenario(ctx, t):
        assert await t.say(ctx, 0, M32 - 1, M32, payload=10, tsval=0x8000_0000) == FORWARDED
        assert await t.say(ctx, 0, 8, M32, payload=1, tsval=0x7FFF_FFFF) == FORWARDED
        assert await t.say(ctx, 0, 9, M32, payload=1, tsval=M32) == FORWARDED
        assert await t.say(ctx, 0, 9, M32, payload=1, tsval=1) == FORWARDED
        assert await t.say(ctx, 1, 0x7FFF_FFFF, 16, payload=2) == FORWARDED
        assert await t.say(ctx, 0, 10, 1) == FORWARDED
        t.bench.update(t.name)
        client, server = await t.end(ctx)
        assert (client["snd_end"], client["ack"], client["tsval"]) == (10, 1, 1)
        assert (server["snd_end"], server["ack"]) == (0x8000_0001, 16)

    talk(monkeypatch, scenario, client=client, server=server)


def test_first_timestamp_counts_whatever_it_is(monkeypatch):
    async def scenario(ctx, t):
        await t.say(ctx, 1, 70000, tsval=0xF000_0000)
        t.bench.update(t.name)
        assert (await t.end(ctx))[1]["tsval"] == 0xF000_0000

    talk(monkeypatch, scenario)


def test_guard(monkeypatch):
    """Packets of a side are copied until it has acknowledged what the host relayed; the packet that does so is still copied."""
    async def scenario(ctx, t):
        assert await t.say(ctx, 0, 5000, 700) == COPIED
        assert await t.say(ctx, 1, 70000, 30000) == COPIED  # the other side's too
        assert await t.say(ctx, 0, 5000, 999, payload=3) == COPIED
        assert await t.say(ctx, 0, 5003, 1000 + HOST_SENT) == COPIED  # nobody has sent that: no acknowledgment
        assert await t.say(ctx, 0, 5003, 1000, flags=0) == COPIED  # no acknowledgment at all
        assert await t.say(ctx, 0, 5003, 1000) == COPIED
        assert await t.say(ctx, 0, 5003, 1000) == FORWARDED

    bench = talk(monkeypatch, scenario, client=side_message(snd_una=600))
    assert bench.counted["splice_copied"] == 6 and bench.counted["splice_packets"] == 7


def test_copies_anew(monkeypatch):
    """The host asks for them when it may have missed one: of each side until it has said once more what it has."""
    async def scenario(ctx, t):
        assert await t.say(ctx, 0, 5000, 1000) == COPIED
        assert await t.say(ctx, 1, 70000, 30000) == FORWARDED
        t.bench.update(t.name, copy=True)
        while len(t.bench.updated) < 1:
            await t.bench.cycle(ctx)
        assert await t.say(ctx, 0, 5000, 999) == COPIED
        assert await t.say(ctx, 0, 5000, 1000) == COPIED
        assert await t.say(ctx, 0, 5000, 1000) == COPIED  # the server's
        assert await t.say(ctx, 1, 70000, 30000) == COPIED
        assert await t.say(ctx, 1, 70000, 30000) == FORWARDED
        t.bench.update(t.name ^ 1 << 24, copy=True)  # of a splice that is no more
        while len(t.bench.updated) < 2:
            await t.bench.cycle(ctx)
        assert await t.say(ctx, 0, 5000, 1000) == FORWARDED
        assert t.bench.updated == [Status.OK, Status.NOT_FOUND]

    talk(monkeypatch, scenario, client=side_message(snd_una=999))


def test_stale(monkeypatch):
    """What a side repeats of the bytes that the host has acknowledged is not sent in place of the host's own, which the other side waits
    for; afterwards it harms nobody."""
    async def scenario(ctx, t):
        # The server has 29,900 of the 30,000 bytes that were written to it; the client's first byte to forward is 5000.
        only_host = (False, True, GUARD)
        assert await t.say(ctx, 0, 4999, 1000) == only_host
        assert await t.say(ctx, 0, 4000, 1000, payload=1448) == only_host  # beyond 5000, too
        assert await t.say(ctx, 0, 5000, 1000, payload=10) == COPIED
        assert await t.say(ctx, 0, 4950, 1000, flags=A | R) == COPIED  # a reset is for the other side to judge
        assert await t.say(ctx, 1, 69000, 29999, payload=100) == COPIED  # the client waits for nothing
        assert await t.say(ctx, 0, 4000, 1000, payload=1448) == only_host
        assert await t.say(ctx, 1, 70000, 30010) == COPIED
        assert await t.say(ctx, 0, 4000, 1000, payload=1448) == FORWARDED
        t.bench.update(t.name)
        client, _ = await t.end(ctx)
        assert (client["snd_end"], client["packets"], client["octets"]) == (5448, 3, 1458)

    bench = talk(monkeypatch, scenario, server={**SERVER, "snd_una": 29900})
    assert bench.counted["splice_stale"] == 3


def test_what_the_host_forwarded(monkeypatch):
    """It is acknowledged like all else, and counts as sent; but nothing can follow a FIN."""
    async def scenario(ctx, t):
        assert await t.say(ctx, 1, 70000, 30000 + HOST_SENT - 1) == FORWARDED
        assert await t.say(ctx, 0, 5000 + HOST_SENT - 1, 1000, flags=A | F) == FORWARDED
        assert await t.say(ctx, 1, 70000, 30000 + HOST_SENT + 1) == FORWARDED
        t.bench.update(t.name)
        client, server = await t.end(ctx)
        assert (client["snd_end"], client["fin"]) == (5000 + HOST_SENT, 1)
        assert server["ack"] == 30000 + HOST_SENT - 1

    talk(monkeypatch, scenario)


def test_closing(monkeypatch):
    """Both FINs, both acknowledged: LINGER, in which packets still pass; its end is OK."""
    async def scenario(ctx, t, first):
        seq, ack, oseq, oack = (5000, 1000, 70000, 30000) if first == 0 else (70000, 30000, 5000, 1000)
        other = 1 - first
        assert await t.say(ctx, first, seq, ack, A | F, 10) == FORWARDED
        assert await t.say(ctx, other, oseq, oack + 11) == FORWARDED
        assert await t.say(ctx, other, oseq, oack + 11, A | F) == FORWARDED
        assert await t.say(ctx, first, seq, ack, A | F, 10) == FORWARDED  # again
        assert t.bench.pairs[t.index].state == "ACTIVE"
        assert await t.say(ctx, first, seq + 11, ack + 1) == FORWARDED
        assert t.bench.pairs[t.index].state == "LINGER"
        assert await t.say(ctx, other, oseq, oack + 11, A | F) == FORWARDED
        await t.bench.units(ctx, 2)
        client, server = await t.end(ctx)
        assert client["fin"] and server["fin"] and server["status"] == Status.OK
        assert await t.say(ctx, first, seq + 11, ack + 1) == DIVERT

    bench = talk(monkeypatch, *(partial(scenario, first=k) for k in (0, 1)))
    assert bench.counted["splice_closed"] == 2 and bench.counted["splice_diverted"] == 2


def test_a_new_syn_ends_the_linger(monkeypatch):
    async def scenario(ctx, t, side):
        assert await t.say(ctx, side, 1, flags=S) == FORWARDED  # while it is open
        await t.say(ctx, 0, 5000, 1000, A | F)
        await t.say(ctx, 1, 70000, 30001, A | F)
        await t.say(ctx, 0, 5001, 1001)
        assert await t.say(ctx, side, 1, flags=S | A) == FORWARDED
        assert await t.say(ctx, side, 77, flags=S) == DROPPED
        assert await t.say(ctx, side, 77, flags=S) == DIVERT
        assert (await t.end(ctx))[1]["status"] == Status.OK

    bench = talk(monkeypatch, *(partial(scenario, side=k) for k in (0, 1)), linger=30)
    assert bench.counted["splice_drop_syn"] == 2 and bench.counted["splice_closed"] == 2


RESETS = [
    (0, 5000, True), (0, 5001, False), (0, 4999, False), (1, 70000, True), (1, 70001, False), (0, 5010, True), (1, 70020, True),
]  # fmt: skip


def test_reset(monkeypatch):
    """It is forwarded always; it ends the splice if it stands where the far end expects it, or where the sender ends."""
    async def scenario(ctx, t, side, seq, ends):
        if seq in (5010, 70020):  # forwarded but not acknowledged
            await t.say(ctx, side, seq - 10, payload=10)
            if seq == 70020:
                await t.say(ctx, side, seq - 20, payload=10)
        assert await t.say(ctx, side, seq, flags=R) == FORWARDED
        if ends:
            client, server = await t.end(ctx)
            assert server["status"] == Status.RESET and server["reset_by"] == side
            assert client["reset_by"] == client["status"] == 0
            assert await t.say(ctx, side, seq, flags=R) == DIVERT
        else:
            assert await t.say(ctx, side, seq) == FORWARDED
            t.bench.update(t.name)
            assert (await t.end(ctx))[1]["reset_by"] == 0

    talk(monkeypatch, *(partial(scenario, side=side, seq=seq, ends=ends) for side, seq, ends in RESETS))


def test_reset_where_the_far_end_has_acknowledged(monkeypatch):
    async def scenario(ctx, t):
        await t.say(ctx, 0, 5000, 1000, payload=100)
        await t.say(ctx, 1, 70000, 30040)
        assert await t.say(ctx, 0, 5040, 1000, A | R, 20) == FORWARDED
        client, server = await t.end(ctx)
        assert server["status"] == Status.RESET and client["snd_end"] == 5100 and client["octets"] == 120

    talk(monkeypatch, scenario)


def test_limit(monkeypatch):
    """Nothing of the client but acknowledgments; of the server as much as allowed; the end when the client has it all."""
    async def scenario(ctx, t):
        assert await t.say(ctx, 0, 5000, 1000, payload=1) == DIVERT
        assert await t.say(ctx, 0, 5001, 1000, A | F) == DIVERT
        assert await t.say(ctx, 0, 5000, 1000) == FORWARDED
        assert await t.say(ctx, 1, 70000, 30000, payload=60) == FORWARDED
        assert await t.say(ctx, 1, 70060, 30000, payload=41) == DIVERT
        assert await t.say(ctx, 1, 70060, 30000, A | F, 40) == DIVERT
        assert await t.say(ctx, 1, 70060, 30000, payload=40) == FORWARDED
        assert await t.say(ctx, 1, 70100, 30000) == FORWARDED
        assert await t.say(ctx, 1, 70101, 30000) == DIVERT
        assert await t.say(ctx, 0, 5000, 1060, payload=9) == DIVERT  # its acknowledgment counts
        assert t.bench.pairs[t.index].sides[0].ack == 1060
        assert await t.say(ctx, 0, 5000, 1100) == FORWARDED
        client, server = await t.end(ctx)
        assert server["status"] == Status.LIMIT
        assert (client["snd_end"], client["ack"], client["octets"], client["packets"]) == (5000, 1100, 0, 2)
        assert (server["snd_end"], server["ack"], server["octets"], server["packets"]) == (70100, 30000, 100, 3)
        assert await t.say(ctx, 0, 5000, 1100) == DIVERT

    bench = talk(monkeypatch, scenario, how={"limit": 100})
    assert bench.counted["splice_limit"] == 1


def test_limit_reached_by_a_diverted_packet(monkeypatch):
    """A request that acknowledges the whole answer."""
    async def scenario(ctx, t):
        assert await t.say(ctx, 1, 70000, 30000, payload=100) == FORWARDED
        assert await t.say(ctx, 0, 5000, 1100, payload=200) == DIVERT
        client, server = await t.end(ctx)
        assert server["status"] == Status.LIMIT and client["ack"] == 1100 and client["snd_end"] == 5000

    talk(monkeypatch, scenario, how={"limit": 100})


def test_bounded_reset(monkeypatch):
    async def scenario(ctx, t):
        assert await t.say(ctx, 0, 5000, 1000, R | A, 5) == FORWARDED
        assert (await t.end(ctx))[1]["status"] == Status.RESET

    talk(monkeypatch, scenario, how={"limit": 1 << 30})


def test_idle(monkeypatch):
    """Time begins anew with every packet; a lap of the walk comes with every unit."""
    async def scenario(ctx, t):
        await t.bench.units(ctx, 2)
        assert await t.say(ctx, 0, 5000) == FORWARDED
        await t.bench.units(ctx, 2)
        assert await t.say(ctx, 1, 70000) == FORWARDED
        assert not t.bench.told
        await t.bench.units(ctx, 3)
        _, server = await t.end(ctx)
        assert server["status"] == Status.IDLE
        assert t.bench.told_in_time == [0]

    bench = talk(monkeypatch, scenario, how={"idle": 3})
    assert bench.counted["splice_idle"] == 1


def test_a_unit_of_time(monkeypatch):
    """As long as the ABI says."""
    async def scenario(ctx, t):
        await t.bench.units(ctx, 1)
        assert t.bench.cycles > SPLICE_UNIT_STEPS * TIMER_TICKS
        assert (await t.end(ctx))[1]["status"] == Status.IDLE

    talk(monkeypatch, scenario, how={"idle": 1}, unit_steps=SPLICE_UNIT_STEPS)


def test_no_idle_time_out(monkeypatch):
    async def scenario(ctx, t):
        await t.bench.units(ctx, 4)
        assert not t.bench.told
        assert await t.say(ctx, 0, 5000) == FORWARDED

    bench = talk(monkeypatch, scenario)
    assert bench.held == 1


def test_packets_that_are_not_spliced(monkeypatch):
    """They pass as they are, in order with the others, as fast."""
    async def scenario(ctx, t):
        rng = random.Random(3)
        for k in range(200):
            spliced = rng.random() < 0.5
            segment = Segment(5000 + k, 1000, payload=1)
            t.bench.send(Packet(rng, 2 * t.index, segment) if spliced else Packet(rng))
        await t.bench.settle(ctx)

    bench = talk(monkeypatch, scenario)
    assert len(bench.outputs) == 200
    assert {latency for latency, *_ in bench.outputs} == {SpliceEngine.latency}


def test_rate_and_latency(monkeypatch):
    """One packet of one splice in every cycle, each seeing the one before; seven cycles."""
    async def scenario(ctx, t):
        rng = random.Random(4)
        count = 400
        for k in range(count):
            t.bench.send(Packet(rng, 2 * t.index, Segment(5000 + 10 * k, 1000, payload=10, tsval=k)))
        begin = t.bench.cycles
        while t.bench.packets:
            await t.bench.cycle(ctx)
        assert t.bench.cycles - begin == count
        await t.bench.settle(ctx)
        t.bench.update(t.name)
        client, _ = await t.end(ctx)
        assert (client["snd_end"], client["packets"], client["tsval"]) == (5000 + 10 * count, count, count - 1)

    bench = talk(monkeypatch, scenario)
    assert {latency for latency, *_ in bench.outputs} == {SpliceEngine.latency}


def test_packets_leave_room_for_the_walk(monkeypatch):
    """With packets in every cycle deadlines are still looked at, in one cycle of nine; the others are packets'."""
    bench = SpliceBench()

    async def scenario(ctx, bench):
        names = []
        for k in range(6):
            client, server = side_message(remote=k + 10), side_message(remote=k + 100)
            names.append(await bench.open(ctx, client, server, idle=1))
        rng = random.Random(5)
        talking = names[0] & 0xFFFFFF
        bench.tick = 1
        begin, lost = bench.cycles, []
        while len(bench.told) < 10:
            if len(bench.packets) < 2:
                bench.send(*(Packet(rng, 2 * talking, Segment(5000, 1000)) for _ in range(50)))
            waiting = len(bench.packets)
            await bench.cycle(ctx)
            if len(bench.packets) == waiting:
                lost.append(bench.cycles - begin)
        # One lap per unit: at most six visits, and each pair that ended is read twice.
        assert 6 + 2 * 5 <= len(lost) <= bench.now * 6 + 2 * 5
        assert min(b - a for a, b in pairwise(lost)) == SHARE + 1
        bench.tick = 0
        assert sorted(e["splice"] for e in bench.told[1::2]) == sorted(names[1:])
        assert all(e["status"] == Status.IDLE for e in bench.told[1::2])

    bench.run(monkeypatch, scenario, unit_steps=64)
    assert SHARE == 8


def test_stalls(monkeypatch):
    """Without room behind it the engine stops, and loses nothing."""
    go = {"o": False, "records": False}
    bench = SpliceBench(go=lambda name: (lambda: go.get(name, True)))

    async def scenario(ctx, bench):
        go.update(o=True, records=True)
        name = await bench.open(ctx, CLIENT, SERVER)
        rng = random.Random(6)
        for stuck in ("records", "o"):
            go[stuck] = False
            bench.send(*(Packet(rng, 2 * (name & 0xFFFFFF), Segment(5000, 1000)) for _ in range(RECORDS + 100)))
            for _ in range(RECORDS + 100):
                await bench.cycle(ctx)
            taken = RECORDS + 100 - len(bench.packets)
            assert taken == (RECORDS if stuck == "records" else 16)
            go[stuck] = True
            await bench.settle(ctx)
        # Packets that are not spliced need no room for records, but stay behind those that do.
        go["records"] = False
        bench.send(*(Packet(rng, 2 * (name & 0xFFFFFF), Segment(5000, 1000)) for _ in range(RECORDS)))
        bench.send(*(Packet(rng) for _ in range(50)), Packet(rng, 2 * (name & 0xFFFFFF), Segment(5000, 1000)), Packet(rng))
        for _ in range(300):
            await bench.cycle(ctx)
        assert len(bench.packets) == 2
        go["records"] = True

    bench.run(monkeypatch, scenario)


def test_converts():
    converts(Splices(CONFIG))
