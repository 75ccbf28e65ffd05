"""SpliceRules: single operations on random pairs, with numbers near each other and near their wrap, against the model."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from typing import Any

import pytest
from amaranth import Value

from acceltcp.abi.messages import Status, Verdict
from acceltcp.abi.wire import TCPFlag
from hw.tcp.splice_records import PairState, SplicePair
from hw.tcp.splice_rules import OpKind, SpliceOp, SpliceRules
from tests.hw.simulate import converts, run, seeds
from tests.hw.tcp.splice_bench import side_message
from tests.hw.tcp.splice_engine_model import Pair, Segment, ahead

M32 = 0xFFFF_FFFF
STATE = SplicePair.as_shape()["state"].offset, SplicePair.as_shape()["state"].width
STEPS = (0, 0, 0, 1, -1, 2, 100, -100, 1 << 30, (1 << 30) - 1, 1 << 31, (1 << 31) - 1, -(1 << 31) + 1)


def random_pair(rng: random.Random) -> Pair:
    """Any pair, with numbers that are the same or nearly so more often than not."""
    def near(number: int) -> int:
        return (number + rng.choice(STEPS)) & M32

    base = rng.choice((0, M32, 1 << 31, rng.getrandbits(32)))
    messages = [side_message(snd_nxt=near(base), snd_una=near(base), rcv_nxt=near(base + 77)) for _ in range(2)]
    pair = Pair(
        messages, queue=rng.randrange(64), generation=rng.randrange(256), limit=rng.choice((None, 1, 100, 1 << 30)),
        idle=rng.choice((0, 1, 5, 32767)), linger=rng.randrange(1, 100),
        state=rng.choice(("PENDING", "ACTIVE", "ACTIVE", "ACTIVE", "LINGER", "LINGER", "ENDING")),
        deadline=rng.getrandbits(16), reset_by=rng.randrange(2),
    )  # fmt: skip
    pair.status = Status.IDLE if pair.state == "ENDING" else None
    for side, other in ((pair.sides[0], pair.sides[1]), (pair.sides[1], pair.sides[0])):
        side.snd_end = near(side.snd_end)
        side.ack = rng.choice((near(side.ack), other.snd_end + other.offset & M32))
        side.tsval = rng.choice((None, near(base)))
        side.fin, side.guard = rng.random() < 0.5, rng.random() < 0.5
        side.octets, side.packets = rng.choice((0, (1 << 40) - 1)), rng.choice((0, M32))
    for side, other in ((pair.sides[0], pair.sides[1]), (pair.sides[1], pair.sides[0])):
        # No more is acknowledged than has been forwarded, and what is has been seen to be.
        top = side.snd_end + side.offset & M32
        if not -(1 << 31) < ahead(other.ack, top) <= 0:
            other.ack = top
        side.fin_acked = side.fin and (other.ack == top or rng.random() < 0.3)
    if pair.limit_end is not None:
        # Else the splice would have ended before.
        pair.limit_end = near(rng.choice((pair.sides[0].ack, pair.sides[1].snd_end + pair.sides[1].offset)))
        if pair.limit_end == pair.sides[0].ack:
            pair.limit_end = pair.limit_end + 1 & M32
    return pair


def random_segment(rng: random.Random, pair: Pair, d: int) -> Segment:
    mine, other = pair.sides[d], pair.sides[1 - d]
    seqs = [mine.snd_end, other.ack - mine.offset, other.guard_end - mine.offset]
    acks = [mine.ack, other.snd_end + other.offset, mine.guard_end]
    if pair.limit_end is not None:
        seqs.append(pair.limit_end - mine.offset)
        acks.append(pair.limit_end)
    payload = rng.choice((0, 0, 1, 2, 100, 65535))
    tsval = rng.choice((None, (mine.tsval or 0) + rng.choice(STEPS) & M32))
    flags = rng.choice((16, 16, 16, 17, 17, 20, 4, 2, 18, 1, 0, rng.randrange(256)))
    seq = rng.choice(seqs) + rng.choice((0, -payload)) + rng.choice(STEPS)
    return Segment(seq & M32, rng.choice(acks) + rng.choice(STEPS) & M32, flags, payload, tsval)


def state_of(pair: Pair) -> dict[str, Any]:
    """The pair as the gateware keeps it."""
    ending = pair.state == "ENDING"
    return {
        # With `ending` the state does not matter.
        "state": PairState.ACTIVE if ending else PairState[pair.state], "ending": ending,
        "limit_end": pair.limit_end or 0, "bounded": pair.limit_end is not None,
        "queue": pair.queue, "generation": pair.generation, "idle": pair.idle, "deadline": pair.deadline & 0xFFFF,
        "status": pair.status or 0, "reset_by": pair.reset_by,
        "sides": [
            {name: getattr(side, name) for name in ("snd_end", "ack", "fin", "fin_acked", "guard", "guard_end", "offset")}
            | {"tsval": side.tsval or 0, "stamped": side.tsval is not None}
            | {"octets": side.octets & (1 << 40) - 1, "packets": side.packets & M32}
            for side in pair.sides
        ],
    }  # fmt: skip


def raw(shape: Any, fields: dict) -> int:
    return shape.const(fields).as_value().value


class Bench:
    """One operation at a time; `early` a cycle before, as the state memory has it."""

    def __init__(self, ctx: Any, dut: SpliceRules) -> None:
        self.ctx, self.dut = ctx, dut

    async def do(self, pair: Pair, now: int, **op: Any) -> tuple[int, int, Any]:
        """(next, write, act)"""
        ctx, dut = self.ctx, self.dut
        state, op_value = raw(SplicePair, state_of(pair)), raw(SpliceOp, op)
        for at, value in ((dut.early_op, op_value), (dut.early_state, state), (dut.op, op_value), (dut.state, state)):
            ctx.set(Value.cast(at), value)
        ctx.set(dut.now, now)
        ctx.set(dut.linger, pair.linger)
        await ctx.tick()
        return ctx.get(Value.cast(dut.next)), ctx.get(dut.write), ctx.get(dut.act)

    def same(self, pair: Pair, before: int, result: tuple[int, int, Any], what: Any) -> None:
        after = result[0] if result[1] else before
        ending = SplicePair.from_bits(after).ending
        at, width = STATE
        mask = ~((1 << width) - 1 << at) if ending else -1
        assert after & mask == raw(SplicePair, state_of(pair)) & mask, what


def flags_of(segment: Segment) -> dict[str, int]:
    names = {"has_ack": TCPFlag.ACK, "syn": TCPFlag.SYN, "fin": TCPFlag.FIN, "rst": TCPFlag.RST}
    return {name: int(segment.has(flag)) for name, flag in names.items()}


@pytest.mark.parametrize("seed", seeds(3))
def test_packets(seed):
    rng = random.Random(seed)
    dut = SpliceRules()
    seen, hidden, stale = set(), set(), 0

    async def bench(ctx):
        nonlocal stale
        rules = Bench(ctx, dut)
        for number in range(1500):
            pair, d, now = random_pair(rng), rng.randrange(2), rng.getrandbits(16)
            segment = random_segment(rng, pair, d)
            before, was = raw(SplicePair, state_of(pair)), pair.state
            result = await rules.do(
                pair, now, kind=OpKind.PACKET, side=d, seq=segment.seq, data_end=segment.seq + segment.payload & M32,
                ack=segment.ack, tsval=segment.tsval or 0, timestamps=segment.tsval is not None,
                payload_length=segment.payload, **flags_of(segment),
            )  # fmt: skip
            what = (seed, number, was, d, segment)
            fate, act = pair.packet(d, segment, now), result[2]
            rules.same(pair, before, result, what)
            assert (act.keep, act.forward, act.dropped) == (fate.keep, fate.forward, fate.dropped), what
            if fate.forward:
                assert act.hide_sack == fate.hide_sack, what
                hidden.add(fate.hide_sack)
            stale += fate.verdict == Verdict.GUARD and not fate.forward
            if fate.keep:
                assert act.verdict == int(fate.verdict or 0), what
                assert act.steer == (fate.queue is not None), what
            ended = pair.state != was and pair.state == "ENDING"
            assert act.ended == ended and (not ended or act.status == pair.status), what
            seen.add((was, pair.state, pair.status, fate.verdict, fate.forward))

    run(dut, bench)
    ways = {(was, state, status) for was, state, status, *_ in seen if was != "ENDING"}
    assert ways == {
        ("PENDING", "PENDING", None),
        *((was, was, None) for was in ("ACTIVE", "LINGER")),
        *((was, "ENDING", status) for was in ("ACTIVE", "LINGER") for status in (Status.RESET, Status.LIMIT)),
        ("ACTIVE", "LINGER", None),
        ("LINGER", "ENDING", Status.OK),
    }
    assert {verdict for *_, verdict, _ in seen} == {None, Verdict.GUARD, Verdict.DIVERTED}
    assert hidden == {False, True} and stale > 20


def test_lost_fin():
    """An acknowledgment that was sent after a FIN comes before it: the repeated FIN counts nevertheless, and both sides can close."""
    dut = SpliceRules()

    async def bench(ctx):
        rules = Bench(ctx, dut)
        pair = random_pair(random.Random(1))
        pair.state, pair.limit_end = "ACTIVE", None
        for side in pair.sides:
            side.fin = side.fin_acked = False
        state = SplicePair.from_bits(raw(SplicePair, state_of(pair)))
        fin = state.sides[0].snd_end
        for seq, flags, seen in ((fin + 1, {"has_ack": 1}, 0), (fin, {"has_ack": 1, "fin": 1}, 1)):
            ack = state.sides[0].ack
            op = {"kind": OpKind.PACKET, "seq": seq & M32, "data_end": seq & M32, "ack": ack, **flags}
            after, write, act = await rules.do(pair, 5, **op)
            assert write and act.forward
            state = SplicePair.from_bits(after)
            assert (state.sides[0].snd_end, state.sides[0].fin) == (fin + 1 & M32, seen)
            pair.sides[0].snd_end, pair.sides[0].fin = state.sides[0].snd_end, bool(state.sides[0].fin)

    run(dut, bench)


def test_everything_else():
    """Time, aborts, installation; reading and packets of others change nothing."""
    rng = random.Random(9)
    dut = SpliceRules()

    async def bench(ctx):
        rules = Bench(ctx, dut)
        for number in range(1500):
            pair = random_pair(rng)
            now = (pair.deadline + rng.choice((0, 1, -1, 32767, -32768, rng.getrandbits(16)))) & 0xFFFF
            before, was = raw(SplicePair, state_of(pair)), pair.state
            kind = rng.choice((OpKind.SWEEP, OpKind.ABORT, OpKind.COPY, OpKind.READ, OpKind.PASS, OpKind.INSTALL, OpKind.ACTIVATE))
            generation = pair.generation ^ rng.choice((0, 0, 1, 128))
            what = (number, was, kind)
            if kind == OpKind.INSTALL:
                other = random_pair(rng)
                ctx.set(Value.cast(dut.install), raw(SplicePair, state_of(other)))
                result = await rules.do(pair, now, kind=kind)
                rules.same(other, before, result, what)
                assert not result[2].ended
                continue
            if kind == OpKind.ACTIVATE:
                pair.state = was = "PENDING"
                before = raw(SplicePair, state_of(pair))
            result = await rules.do(pair, now, kind=kind, generation=generation)
            if kind == OpKind.SWEEP and pair.state != "PENDING":
                pair.sweep(now)
            elif kind == OpKind.ABORT:
                assert result[2].found == pair.abort(generation), what
            elif kind == OpKind.COPY:
                assert result[2].found == pair.copy(generation), what
            elif kind == OpKind.ACTIVATE:
                pair.activate(now)
            rules.same(pair, before, result, what)
            ended = pair.state != was and pair.state == "ENDING"
            assert result[2].ended == ended and (not ended or result[2].status == pair.status), what

    run(dut, bench)


def test_converts():
    converts(SpliceRules())
