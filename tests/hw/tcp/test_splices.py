"""Splices: pairs that begin and end all the time under random traffic, packet for packet and event for event as the model says."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest

from acceltcp.abi.wire import TCPFlag
from tests.hw.simulate import seeds, sometimes
from tests.hw.tcp.splice_bench import Packet, SpliceBench, side_message
from tests.hw.tcp.splice_engine_model import Segment

A, F, S, R = TCPFlag.ACK, TCPFlag.FIN, TCPFlag.SYN, TCPFlag.RST
M32 = 0xFFFF_FFFF
CYCLES = 3000


def segment_of(rng: random.Random, pair, side: int) -> Segment:
    """A packet as a peer might send it, or near it: most of them make a difference."""
    mine, other = pair.sides[side], pair.sides[1 - side]
    top = other.snd_end + other.offset
    payload = rng.choice((0, 0, 1, 10, 100, rng.randrange(1500)))
    flags = A
    kind = rng.random()
    if kind < 0.1:
        flags |= F
    elif kind < 0.105:
        flags = rng.choice((R, R | A))
    elif kind < 0.13:
        flags = rng.choice((S, S | A, 0, F))
    seq = rng.choice((mine.snd_end,) * 7 + (other.guard_end - mine.offset,)) + rng.choice((0, 0, 0, 0, -1, -payload, 1, 100, 1 << 30, -(1 << 31)))
    if flags & R and rng.random() < 0.5:
        seq = other.ack - mine.offset + rng.choice((0, 1, -1))
    if mine.fin and rng.random() < 0.8:
        payload = 0
    ack = rng.choice((top, top, top, top + 1, mine.ack, mine.ack + 1, mine.guard_end, mine.guard_end - 1, top - 5))
    if pair.limit_end is not None and rng.random() < 0.2:
        if side:
            left = (pair.limit_end - mine.snd_end - mine.offset) & M32
            if left < 65000:
                payload, seq = left + rng.choice((0, 0, 1)), mine.snd_end
        else:
            ack = pair.limit_end
    tsval = rng.choice((None, (mine.tsval or rng.getrandbits(32)) + rng.choice((0, 1, 5, -1, 1 << 31))))
    return Segment(seq & M32, ack & M32, flags, payload & 0xFFFF, None if tsval is None else tsval & M32)


@pytest.mark.parametrize("seed", seeds(3))
def test_random(monkeypatch, seed):
    """A few pairs that begin and end all the time, packets in (nearly) every cycle, against the model."""
    rng = random.Random(seed)
    paused = {"o": 0.9, "records": 0.8, "events0": 0.5, "events1": 0.3, "delete": 0.5, "insert": 0.5} if seed % 2 else {}

    def go(name):
        return sometimes(seed * 100 + len(name), paused[name]) if name in paused else (lambda: True)

    bench = SpliceBench(go=go, linger=1)

    async def scenario(ctx, bench):
        opened = ahead = 0
        bench.tick = 1
        while bench.cycles < CYCLES:
            if len(bench.names) < 4 and len(bench._order) < 2 and rng.random() < 0.05:
                opened += 1
                low = rng.getrandbits(32)
                client = side_message(
                    remote=opened, snd_nxt=low, snd_una=(low - rng.choice((0, 0, 5, 200))) & M32, rcv_nxt=rng.getrandbits(32)
                )
                low = rng.getrandbits(32)
                server = side_message(
                    remote=opened, remote_port=7, snd_nxt=low, snd_una=(low - rng.choice((0, 0, 9))) & M32,
                    rcv_nxt=rng.getrandbits(32), port=1, snd_shift=rng.randrange(15),
                )  # fmt: skip
                bench.command(client, server, limit=rng.choice((None, None, 1, 500, 3000)), idle=rng.choice((0, 1)))
            if bench.names and rng.random() < 0.008:
                name = rng.choice(list(bench.names.values()))
                bench.update(name ^ rng.choice((0, 0, 1 << 24, 1 << 23)), copy=rng.random() < 0.5)
            if not bench.packets:
                ahead = rng.choice((2, 2, 2, 30))
            while len(bench.packets) < ahead:
                # Looked up some time ago.
                held = sorted(bench.table.values())
                if held and rng.random() < 0.9:
                    way = rng.choice(held[:4])
                    pair = bench.pairs[way >> 1]
                    bench.send(Packet(rng, way, segment_of(rng, pair, way & 1)))
                else:
                    bench.send(Packet(rng))
            await bench.cycle(ctx)
        bench.tick = 0
        print(seed, bench.counted)
        for what in ("opened", "reset", "limit", "closed", "aborted", "copied", "diverted", "stale", "idle", "drop_syn"):
            seen[what] = seen.get(what, 0) + bench.counted[f"splice_{what}"]

    seen: dict[str, int] = {}
    bench.run(monkeypatch, scenario, cycles=3 * CYCLES)
    ends = [seen[what] for what in ("reset", "limit", "closed", "aborted", "idle")]
    assert seen["opened"] > 12 and seen["diverted"] and seen["copied"] and seen["stale"] and sum(map(bool, ends)) >= 4, seen
