"""FlowOutputs alone: its queues and their promises of room, `hold`, lost replies, order, counters, the record.

What single transitions send out is in test_flow_rules.py; here operations are made up.
"""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import EventType, FlowState, Status
from hw.config import NicConfig
from hw.packet.meta import Reply, ReplyKind
from hw.table.records import Kind
from hw.tcp.flow import RttState, flow_layout
from hw.tcp.flow_outputs import DELETES, EVENTS, FREE, FREE_LOW, JOBS, REPLIES, FlowOutputs
from hw.tcp.flow_rules import Action, FlowAct, FlowOp, OpKind
from tests.hw.simulate import always, run, seeds, sometimes

CONFIG = NicConfig(flows=512)
LATENCY = 4
M32 = 0xFFFF_FFFF
WINDOW, TS_CLOCK = 0x7777, 0x1234_5678
QUEUES = ("replies", "events", "jobs", "delete", "free")
GATED = ("events", "jobs", "delete")
OVER = (FlowState.TIME_WAIT, FlowState.LINGER)

ROOMS = {"events": "event_room", "jobs": "job_room", "delete": "delete_room", "free": "free_wanted_room"}
ACTS = {"events": "event", "jobs": "job", "delete": "delete", "free": "give"}
DEPTHS = {"events": EVENTS, "jobs": JOBS, "delete": DELETES, "free": FREE}

# docs/registers.md: what a flow ended with, and where it is counted.
ENDS = {
    Status.OK: "flow_closed",
    Status.RESET: "flow_reset",
    Status.TIMED_OUT: "flow_timed_out",
    Status.PEER_DATA: "flow_peer_data",
    Status.FIN_TIMED_OUT: "flow_fin_timed_out",
    Status.ABORTED: "flow_aborted",
    Status.BAD_LENGTH: "flow_faults",
    Status.BAD_ARGUMENT: "flow_faults",
    Status.BAD_ADDRESS: "flow_faults",
}


@dataclass
class Op:
    """An operation's result: fields by name; what is not named is 0."""

    index: int = 0
    op: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    act: dict[str, Any] = field(default_factory=dict)
    reply: dict[str, Any] = field(default_factory=dict)

    def rcv_nxt(self) -> int:
        """Without the peer's FIN before it came, and in the RST that says its data are not read."""
        no_fin = self.state.get("state") in (FlowState.FIN_WAIT_1, FlowState.FIN_WAIT_2)
        return self.state.get("rcv_base", 0) + (not (no_fin or self.act.get("reply") == Action.RST)) & M32

    def out(self, name: str) -> dict[str, Any] | None:
        """What this puts into a queue."""
        state, act = Counter(self.state), self.act
        sample = state["rtt_state"] == RttState.SAMPLE.value
        if name == "replies":
            return self._reply() if act.get("reply", Action.NONE) != Action.NONE else None
        if not act.get(ACTS[name]):
            return None
        return {
            "events": {
                "queue": state["queue"],
                "event.queue": state["queue"],
                "event.type": EventType.FLOW_DONE,
                "event.status": state["window"] % 16,
                "event.value": self.index,
                "event.rtt": state["rtt"] if sample else 0,
                "event.retransmissions": state["retransmissions"],
            },
            "jobs": {
                "index": self.index, "table": state["table"], "frames": state["frames"], "port": state["port"],
                "snd_end": state["snd_end"], "left": state["unacked"], "limit": act.get("limit", 0),
                "room": state["window"], "ack": self.rcv_nxt(), "timestamps": state["timestamps"],
                "tsecr": state["ts_recent"],
            },
            "delete": {"rows": state.get("rows", [0, 0]), "kind": Kind.TEARDOWN, "index": self.index},
            "free": {"index": self.index},
        }[name]  # fmt: skip

    def _reply(self) -> dict[str, Any]:
        if self.act["reply"] == Action.SYN_ACK:
            return self.reply
        op, state = Counter(self.op), Counter(self.state)
        stray = self.act.get("stray")
        return self.reply | {
            "kind": ReplyKind.RST if self.act["reply"] == Action.RST else ReplyKind.ACK,
            "seq": op["ack"] if stray else state["snd_end"],
            "ack": op["end"] + op["syn"] + op["fin"] & M32 if stray else self.rcv_nxt(),
            "window": WINDOW,
            "timestamps": state["timestamps"],
            "tsval": TS_CLOCK,
            "tsecr": state["ts_recent"],
            "ecn": 0,
        }


def flat(value: Any) -> dict[str, Any]:
    """Fields of a record by name, those inside it with a dot; what is 0 left out."""
    found: dict[str, Any] = {}
    names = value if isinstance(value, dict) else [name for name, _ in data.Layout.cast(value.shape())]
    for name in names:
        one = value[name]
        if isinstance(one, data.Const) and isinstance(one.shape(), data.StructLayout):
            found |= {f"{name}.{inner}": number for inner, number in flat(one).items()}
        else:
            number = list(one) if name == "rows" else getattr(one, "value", one)
            found |= {name: number} if number not in (0, [0, 0]) else {}
    return found


class Bench:
    """A FlowOutputs in front of which operations begin; `LATENCY` cycles later their result is there.

    go: name of a queue -> is it taken now? `out` holds what was taken.
    """

    def __init__(self) -> None:
        self.dut = FlowOutputs(CONFIG, LATENCY)
        self.go: dict[str, Callable[[], bool]] = dict.fromkeys(QUEUES, always)
        self.out: dict[str, list[Any]] = {name: [] for name in QUEUES}
        self.counted: Counter[str] = Counter()
        self.begun: list[Op] = []
        self._inside: deque[Op | None] = deque([None] * LATENCY)

    def close(self, *names: str) -> None:
        self.go |= dict.fromkeys(names or QUEUES, lambda: False)

    def open(self) -> None:
        self.go = dict.fromkeys(QUEUES, always)

    async def begin(self, ctx: Any, op: Op | None = None) -> None:
        """One cycle; the operation begins in it."""
        dut = self.dut
        if op:
            self.begun.append(op)
            ctx.set(dut.reply, op.reply)
        else:
            # Another packet's, or nobody's.
            ctx.set(Value.cast(dut.reply), (1 << len(Value.cast(dut.reply))) - 1)
        self._inside.append(op)
        now = self._inside.popleft()
        ctx.set(dut.i_valid, now is not None)
        if now:
            ctx.set(dut.i_index, now.index)
            for name in ("op", "state", "act"):
                ctx.set(getattr(dut, f"i_{name}"), getattr(now, name))
        await ctx.tick()

    async def rest(self, ctx: Any, cycles: int = 120) -> None:
        for _ in range(cycles):
            await self.begin(ctx)

    async def _take(self, ctx: Any, name: str) -> None:
        """Takes a queue; checks that what is on offer stays, and that `hold` lets nothing new be offered."""
        stream, hold = getattr(self.dut, name), self.dut.hold
        payload, shape = Value.cast(stream.payload), stream.p.shape()
        waiting = None
        while True:
            ready = self.go[name]()
            ctx.set(stream.ready, ready)
            _, _, valid, value, held = await ctx.tick().sample(stream.valid, payload, hold)
            if waiting is not None:
                assert valid and value == waiting, f"{name}: what was on offer has changed"
            elif name in GATED:
                assert not (valid and held), f"{name}: offered although held"
            waiting = value if valid and not ready else None
            if valid and ready:
                self.out[name].append(flat(data.Const(shape, value)))

    async def _count(self, ctx: Any) -> None:
        names = list(self.dut.counts.shape().members)
        async for _, _, *values in ctx.tick().sample(*(self.dut.counts[name] for name in names)):
            self.counted += Counter(dict(zip(names, values, strict=True)))

    def wanted(self, name: str) -> list[dict[str, Any]]:
        """What everything begun puts into a queue, in order."""
        return [flat(out) for op in self.begun if (out := op.out(name)) is not None]

    def check(self, *names: str) -> None:
        for name in names or QUEUES:
            assert self.out[name] == self.wanted(name), name

    def run(self, scenario: Callable[[Any], Any], cycles: int = 5000) -> Bench:
        async def bench(ctx: Any) -> None:
            ctx.set(self.dut.window, WINDOW)
            ctx.set(self.dut.ts_clock, TS_CLOCK)
            await self.rest(ctx, LATENCY + 2)
            await scenario(ctx)

        takers = [partial(self._take, name=name) for name in QUEUES]
        run(self.dut, bench, background=[*takers, self._count], cycles=cycles)
        return self


def random_fields(rng: random.Random, shape: Any, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        name: [rng.getrandbits(5), rng.getrandbits(5)] if name == "rows" else rng.getrandbits(one.width)
        for name, one in data.Layout.cast(shape)
        if name not in leave
    }


def ends(bench: Bench) -> Iterator[str]:
    """Counters that the operations begun so far should have moved."""
    for op in bench.begun:
        act = Counter({name: value for name, value in op.act.items() if name != "reply"})
        reply = op.act.get("reply", Action.NONE)
        yield from ["flow_retransmissions"] * act["job"] + ["flow_reused"] * act["reused"]
        yield from ["flow_acks"] * (reply == Action.ACK) + ["flow_resets_sent"] * (reply == Action.RST)
        yield from ["flow_challenges"] * (reply == Action.ACK and act["challenge"])
        if act["ended"]:
            yield ENDS[Status(op.act["status"])]


@pytest.mark.parametrize("seed", seeds(4))
def test_random_operations(seed):
    """Everything at once, an operation in nearly every cycle, queues taken now and then, `hold` coming and
    going: each queue gives what was put into it, in order; replies are each made from their own packet's."""
    rng = random.Random(seed)
    bench = Bench()
    dut = bench.dut
    rate = {name: sometimes(10 * seed + k, rng.choice((0.2, 0.5, 1))) for k, name in enumerate(QUEUES)}
    bench.go = rate | {"replies": always}

    def one(room: dict[str, int]) -> Op:
        act: dict[str, Any] = {ACTS[name]: rng.getrandbits(1) & room[name] for name in ROOMS}
        act |= random_fields(rng, FlowAct, ("reply", "status", *ACTS.values()))
        act |= {"reply": rng.choice(list(Action)), "status": rng.choice(list(ENDS))}
        op = random_fields(rng, FlowOp, ("kind",)) | {"kind": rng.choice(list(OpKind))}
        state = random_fields(rng, flow_layout(CONFIG), ("state",)) | {"state": rng.choice(list(FlowState))}
        reply = random_fields(rng, Reply, ("kind",)) | {"kind": ReplyKind.SYN_ACK}
        return Op(rng.randrange(512), op, state, act, reply)

    async def scenario(ctx):
        for _ in range(400):
            if rng.random() < 0.05:
                ctx.set(dut.hold, rng.getrandbits(1))
            room = {name: ctx.get(getattr(dut, signal)) for name, signal in ROOMS.items()}
            await bench.begin(ctx, one(room) if rng.random() < 0.9 else None)
        ctx.set(dut.hold, 0)
        bench.open()
        await bench.rest(ctx)
        assert not ctx.get(dut.busy) and ctx.get(dut.idle)

    bench.run(scenario)
    bench.check()
    assert min(len(found) for found in bench.out.values()) > 40, seed
    assert bench.counted == Counter(ends(bench)), seed


@pytest.mark.parametrize("name", ROOMS)
def test_room(name):
    """While nobody takes the queue, an operation in every cycle in which there is room: all of them fit, with
    those on their way when the room ends. Once the queue is taken there is room again."""
    bench = Bench()
    bench.close(name)
    room = getattr(bench.dut, ROOMS[name])
    depth = DEPTHS[name]
    sizes = []

    async def fill(ctx):
        before = len(bench.begun)
        for _ in range(depth + 40):
            go = ctx.get(room)
            await bench.begin(ctx, Op(len(bench.begun), {}, {"window": 5}, {ACTS[name]: 1}) if go else None)
        assert not ctx.get(room)
        sizes.append(len(bench.begun) - before)

    async def scenario(ctx):
        for _ in range(2):
            await fill(ctx)
            assert len(bench.out[name]) == len(bench.begun) - sizes[-1]
            bench.open()
            await bench.rest(ctx, depth + 10)
            assert ctx.get(room)
            bench.close(name)

    bench.run(scenario)
    bench.check()
    assert all(depth - 10 <= size <= depth for size in sizes), sizes


def test_each_queue_has_its_own_room():
    """A queue that is full says nothing of the others."""
    bench = Bench()
    bench.close()

    async def scenario(ctx):
        full = []
        for name in ROOMS:
            for _ in range(DEPTHS[name]):
                go = ctx.get(getattr(bench.dut, ROOMS[name]))
                await bench.begin(ctx, Op(len(bench.begun), {}, {}, {ACTS[name]: 1}) if go else None)
            await bench.rest(ctx, 10)
            full.append(name)
            assert [one for one in ROOMS if not ctx.get(getattr(bench.dut, ROOMS[one]))] == full
        bench.open()
        await bench.rest(ctx)

    bench.run(scenario)
    bench.check()


def test_replies_that_find_32_waiting_are_lost():
    """They are counted; the first ones wait in order; later ones get through again."""
    bench = Bench()
    bench.close("replies")
    kept = []

    def ack(number):
        return Op(0, {}, {"snd_end": number}, {"reply": Action.ACK}, {"src_port": number})

    async def scenario(ctx):
        for number in range(1, 61):
            await bench.begin(ctx, ack(number))
        await bench.rest(ctx, 10)
        bench.open()
        await bench.rest(ctx)
        kept.append(len(bench.out["replies"]))
        for number in range(100, 130):
            await bench.begin(ctx, ack(number))
        await bench.rest(ctx)

    bench.run(scenario)
    # The queue's own output registers hold two more.
    assert REPLIES == 32 and REPLIES <= kept[0] <= REPLIES + 2
    wanted = bench.wanted("replies")
    assert bench.out["replies"] == wanted[: kept[0]] + wanted[60:]
    assert bench.counted == Counter(flow_acks=90, flow_reply_busy=60 - kept[0])


def test_hold():
    """Of events, jobs and deletions what is on offer stays until it is taken, what waits behind it is not
    offered; replies and free indices go on. Behind the hold everything comes, in order."""
    bench = Bench()
    bench.close()
    dut = bench.dut
    act = {"event": 1, "job": 1, "delete": 1, "give": 1, "reply": Action.ACK}

    async def scenario(ctx):
        for number in range(8):
            await bench.begin(ctx, Op(number, {}, {"snd_end": number}, act))
        await bench.rest(ctx, 10)
        ctx.set(dut.hold, 1)
        for _ in range(20):
            await bench.rest(ctx, 1)
            assert all(ctx.get(getattr(dut, name).valid) for name in GATED) and not ctx.get(dut.idle)
        bench.open()
        await bench.rest(ctx, 40)
        assert {name: len(out) for name, out in bench.out.items()} == {
            "replies": 8, "free": 8, "events": 1, "jobs": 1, "delete": 1,
        }  # fmt: skip
        assert ctx.get(dut.idle) and ctx.get(dut.busy)
        # What comes now waits, too.
        for number in range(8, 12):
            await bench.begin(ctx, Op(number, {}, {"snd_end": number}, act))
        await bench.rest(ctx, 20)
        assert [len(bench.out[name]) for name in GATED] == [1, 1, 1]
        assert ctx.get(dut.idle) and ctx.get(dut.busy)
        ctx.set(dut.hold, 0)
        await bench.rest(ctx, 40)
        assert ctx.get(dut.idle) and not ctx.get(dut.busy)

    bench.run(scenario)
    bench.check()


@pytest.mark.parametrize("name", ("events", "jobs"))
def test_idle_right_after_hold(name):
    """Nothing is on offer any more from the cycle behind the hold on, if it was taken."""
    bench = Bench()
    dut = bench.dut
    bench.close(name)

    async def scenario(ctx):
        for number in range(4):
            await bench.begin(ctx, Op(number, {}, {}, {ACTS[name]: 1}))
        await bench.rest(ctx, 10)
        bench.open()
        await bench.rest(ctx, 1)
        ctx.set(dut.hold, 1)
        for cycle in range(30):
            assert ctx.get(dut.idle) or cycle < 2
            await bench.rest(ctx, 1)
        assert 1 <= len(bench.out[name]) <= 3
        ctx.set(dut.hold, 0)
        await bench.rest(ctx, 20)

    bench.run(scenario)
    bench.check()


def test_counters_by_outcome():
    """One operation each, and the very counter that it moves."""
    cases = [({"ended": 1, "status": status}, {name: 1}) for status, name in ENDS.items()]
    cases += [
        ({"status": Status.RESET}, {}),
        ({"job": 1}, {"flow_retransmissions": 1}),
        ({"reused": 1}, {"flow_reused": 1}),
        ({"reply": Action.ACK}, {"flow_acks": 1}),
        ({"reply": Action.ACK, "challenge": 1}, {"flow_acks": 1, "flow_challenges": 1}),
        ({"reply": Action.RST, "stray": 1}, {"flow_resets_sent": 1}),
        (
            {"reply": Action.RST, "ended": 1, "status": Status.PEER_DATA},
            {"flow_resets_sent": 1, "flow_peer_data": 1},
        ),
        ({"reply": Action.SYN_ACK, "reused": 1}, {"flow_reused": 1}),
        ({"event": 1, "delete": 1, "give": 1, "freed": 1, "used": 1, "found": 1, "challenge": 1}, {}),
    ]
    bench = Bench()

    async def scenario(ctx):
        for act, wanted in cases:
            bench.counted.clear()
            await bench.begin(ctx, Op(1, {}, {}, act))
            await bench.rest(ctx, LATENCY + 4)
            assert bench.counted == Counter(wanted), act

    bench.run(scenario)


def test_free_indices():
    """They are wanted while fewer than half of what fits waits, and handed out in the order they came in."""
    bench = Bench()
    dut = bench.dut
    bench.close("free")
    given = [(37 * k + 5) % 512 for k in range(FREE)]

    async def scenario(ctx):
        for count, index in enumerate(given[: FREE - 10]):
            assert ctx.get(dut.free_wanted) == (count < FREE_LOW)
            await bench.begin(ctx, Op(index, {"kind": OpKind.SWEEP}, {}, {"give": 1}))
            await bench.rest(ctx, LATENCY + 4)
        bench.open()
        await bench.rest(ctx, FREE)
        assert ctx.get(dut.free_wanted) and not ctx.get(dut.free.valid)

    bench.run(scenario)
    assert [out.get("index", 0) for out in bench.out["free"]] == given[: FREE - 10]


def test_what_the_sweeper_hears():
    """A cycle after the operation's result, and of no other."""
    bench = Bench()
    dut = bench.dut
    found = []
    names = ("ended", "swept", "was_read", "updated", "freed")
    cases: list[tuple[OpKind, dict[str, int], set[str]]] = [(kind, {}, set()) for kind in OpKind]
    cases += [(OpKind.SWEEP, {"freed": 1}, {"freed"}), (OpKind.INSTALL, {"freed": 1}, {"freed"})]
    cases += [(OpKind.SWEEP, {"used": 1}, {"used"}), (OpKind.SWEEP, {"give": 1}, {"given"})]
    cases += [(OpKind.READ, {"used": 1}, {"used"}), (OpKind.UPDATE, {"found": 1}, {"update_found"})]
    told = {OpKind.SWEEP: {"swept"}, OpKind.READ: {"was_read"}, OpKind.UPDATE: {"updated"}}

    async def scenario(ctx):
        for kind, act, _ in cases:
            await bench.begin(ctx, Op(1, {"kind": kind}, {}, act))
            for _ in range(LATENCY):
                assert not any(ctx.get(getattr(dut, name)) for name in names)
                await bench.begin(ctx)
            more = ("used", "given", "update_found")
            found.append({name for name in (*names, *more) if ctx.get(getattr(dut, name))})
            await bench.rest(ctx, 3)

    bench.run(scenario)
    assert found == [{"ended"} | told.get(kind, set()) | more for kind, _, more in cases]


@pytest.mark.parametrize("state", FlowState)
def test_record(state):
    """Of the flow read last: as docs/messages.md says, times from now on; other operations leave it alone."""
    bench = Bench()
    dut = bench.dut
    rng = random.Random(int(state))
    now, top = 0xFFFF0, 1 << 20

    async def scenario(ctx):
        ctx.set(dut.now, now)
        for left, shown in ((0, 0), (1, 1), (32, 32), (top // 2 - 1, top // 2 - 1), (-1, 0), (-top // 2, 0)):
            fields = random_fields(rng, flow_layout(CONFIG), ("state", "deadline"))
            fields |= {"state": state, "deadline": (now + left) % top}
            await bench.begin(ctx, Op(3, {"kind": OpKind.READ}, fields, {"used": 1}))
            for kind in OpKind:
                if kind != OpKind.READ:
                    await bench.begin(ctx, Op(4, {"kind": kind}, {"snd_end": 1, "state": FlowState.CLOSING}))
            await bench.rest(ctx, LATENCY + 2)
            same = ("port", "timestamps", "sending", "queue", "retries", "retry_limit", "snd_end", "ts_recent")
            fin = state not in (FlowState.FIN_WAIT_1, FlowState.FIN_WAIT_2)
            over = state in OVER
            assert flat(ctx.get(dut.record)) == flat(
                {
                    **{name: fields[name] for name in same},
                    "state": int(state),
                    "rto": fields["rto"],
                    "frames": fields["frames"] + 1,
                    "table": fields["table"] * 256,
                    "rcv_nxt": fields["rcv_base"] + fin & M32,
                    "deadline": shown,
                    "unacked": 0 if over else fields["unacked"],
                    "window": 0 if over else fields["window"],
                }
            ), left

    bench.run(scenario)
