"""`Teardown` against the reference model: random interleavings, event for event and reply for reply.

Operations are made up with the model's state in view, so that most segments are nearly right, and carried
out by the model at once; the gateware then gets the same, segments back to back. Time stands still meanwhile. It
moves by exactly the distance between two laps of the sweeper, and the lap ends before anything else happens, so
that both see every flow at the same time. Indices are taken right after a lap only, since the sweeper looks
for new ones at once. After every step replies, jobs, events, deletions and the records of all flows are
compared, at the end the counters.
"""

import random
from collections import Counter
from dataclasses import asdict, replace

import pytest
from amaranth import Value
from amaranth.lib import data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acceltcp.abi.messages import EventType, FlowState, Status
from acceltcp.abi.registers import COUNTERS, TIMER_TICKS
from acceltcp.abi.wire import TCPFlag
from hw.config import NicConfig
from hw.dma.events import EventRequest
from hw.packet.meta import Reply, ReplyKind
from hw.tcp.flow import FlowInstall, FlowJob, FlowPacket, FlowSent, FlowUpdate
from hw.tcp.teardown import Teardown
from tests.hw.simulate import always, run, seeds, sometimes
from tests.hw.tcp.teardown_model import NONE, OPEN, TIMING, Flow, Registers, Segment, TeardownModel

CONFIG = NicConfig(flows=512, width=8, queues=4, ports=2, pipelined_hash=False)
M32 = (1 << 32) - 1
LAP = 8
SLOTS = 6
FIN, SYN, RST, ACK = TCPFlag.FIN, TCPFlag.SYN, TCPFlag.RST, TCPFlag.ACK
REGISTERS = Registers(time_wait=48, fin_wait_2=64, linger=24, max_rto=60, window=0x1234, ts_clock=0xFFFF_FFF0)
COUNTED = [c.name for c in COUNTERS if c.name.startswith("flow_") and c.name != "flow_opened"]


def pack(shape, **values):
    """An integer of a layout from the named fields, nested ones as dictionaries."""
    return data.Layout.cast(shape).const(values).as_value().value


def take(shape, number):
    """Fields of a layout, nested ones as integers."""
    return {name: number >> f.offset & (1 << f.width) - 1 for name, f in data.Layout.cast(shape)}


EVENT_LAYOUT = data.Layout.cast(EventRequest)["event"].shape


class Rig:
    """The gateware in simulation beside the model."""

    def __init__(self, seed=0, go=always):
        self.dut = Teardown(CONFIG)
        self.model = TeardownModel(replace(REGISTERS))
        self.rng = random.Random(seed)
        self.slots = [None] * SLOTS
        self.serial = 0
        self.burst, self.expected = [], []
        self.seen = {"replies": [], "jobs": [], "events": [], "deletes": [], "updated": []}
        self.job_go = self.event_go = self.reply_go = go
        self.counted = Counter()
        self.working = set()
        self.log = []

    # The ports.

    async def watch_counts(self, ctx):
        names = [name for name, _ in self.dut.counts.shape()]
        async for _, _, value in ctx.tick().sample(Value.cast(self.dut.counts)):
            if value:
                self.counted.update({n: v for n, v in take(self.dut.counts.shape(), value).items() if v})
        assert set(names) == set(COUNTED)

    def drain(self, stream, name, go):
        """Takes what comes; `go` is a function that gives the pattern of the moment."""

        async def watch(ctx):
            payload = Value.cast(stream.payload)
            ready = go()()
            ctx.set(stream.ready, ready)
            async for _, _, valid, value in ctx.tick().sample(stream.valid, payload):
                if valid and ready:
                    self.seen[name].append(value)
                ready = go()()
                ctx.set(stream.ready, ready)

        return watch

    async def table(self, ctx):
        """The connection table: deletes a few cycles later."""
        dut = self.dut
        ctx.set(dut.delete.ready, 1)
        due = []
        payload = Value.cast(dut.delete.payload)
        async for _, _, valid, value, taken in ctx.tick().sample(
            dut.delete.valid, payload, dut.deleted.ready
        ):
            if taken and ctx.get(dut.deleted.valid):
                due.pop(0)
            if valid:
                fields = take(dut.delete.payload.shape(), value)
                self.seen["deletes"].append(value)
                due.append(fields["index"])
            offer = bool(due) and self.rng.random() < 0.4
            ctx.set(dut.deleted.valid, offer or bool(due and ctx.get(dut.deleted.valid) and not taken))
            if due:
                ctx.set(dut.deleted.payload.index, due[0])

    def run(self, main, cycles=400_000):
        dut = self.dut

        async def bench(ctx):
            for name in ("time_wait", "fin_wait_2", "linger", "max_rto", "window", "ts_clock"):
                ctx.set(getattr(dut, name), getattr(REGISTERS, name))
            await ctx.tick().until(dut.ready)
            await self.settle(ctx)
            await main(ctx)

        run(
            dut,
            bench,
            cycles=cycles,
            background=[
                self.watch_counts,
                self.table,
                self.drain(dut.replies, "replies", lambda: self.reply_go),
                self.drain(dut.jobs, "jobs", lambda: self.job_go),
                self.drain(dut.events, "events", lambda: self.event_go),
                self.drain(dut.updated, "updated", lambda: always),
            ],
        )

    async def settle(self, ctx, least=30):
        await ctx.tick().repeat(least)
        for _ in range(4000):
            if not ctx.get(self.dut.busy):
                return
            await ctx.tick()
        raise AssertionError("busy for ever with time standing still")

    async def put(self, ctx, stream, number):
        ctx.set(Value.cast(stream.payload), number)
        ctx.set(stream.valid, 1)
        await ctx.tick().until(stream.ready)
        ctx.set(stream.valid, 0)

    # Operations. The model goes first.

    async def install(self, ctx, slot, **fields):
        """A new flow, right after a lap."""
        assert self.slots[slot] is None and not self.burst
        free = self.dut.free
        ctx.set(free.ready, 1)
        (index,) = await ctx.tick().sample(free.payload.index).until(free.valid)
        ctx.set(free.ready, 0)
        rng, now = self.rng, self.model.now
        values = {
            "snd_end": rng.choice((rng.getrandbits(32), 3, 0x80000000)),
            "rcv_base": rng.choice((rng.getrandbits(32), M32, 0x7FFFFFFF)),
            "state": rng.choice((FlowState.FIN_WAIT_1, FlowState.FIN_WAIT_1, FlowState.LAST_ACK)),
            "unacked": rng.choice((1, 2, 1460, (1 << 18) - 1, rng.randrange(1, 1 << 18))),
            "window": rng.choice((0, 1, 100, 4095)),
            "wscale": rng.randrange(15),
            "timestamps": rng.getrandbits(1),
            "ts_recent": rng.choice((5, 0x80000000, rng.getrandbits(32))),
            "rto": rng.choice((8, 16, 20)),
            "retry_limit": rng.randrange(1, 8),
            "sending": rng.getrandbits(1),
            "rtt_state": rng.choice((NONE, TIMING)),
            "challenge": (now // 256 - 1) % 4,
            "table": rng.getrandbits(40),
            "frames": rng.randrange(16),
            "queue": rng.randrange(4),
            "port": rng.getrandbits(1),
            "rows": (rng.randrange(32), rng.randrange(32)),
        }
        values.update(fields)
        flow = Flow(**values)
        flow.deadline = now + flow.rto
        flow.rtt = now & 0x3FFF if flow.rtt_state == TIMING else 0
        assert index not in self.model.flows, f"index {index} is given out twice"
        self.model.install(index, flow)
        self.slots[slot] = index
        self.log.append((index, replace(flow)))
        stored = asdict(flow)
        del stored["owed"], stored["strays"]
        stored["rows"] = list(stored["rows"])
        await self.put(ctx, self.dut.installs, pack(FlowInstall(CONFIG), index=index, state=stored))
        await self.settle(ctx)

    def segment(self, index, segment):
        """Made up already; joins the burst."""
        self.serial += 1
        self.log.append((index, f"serial {self.serial}", segment))
        rng = self.rng
        reply = {
            "kind": ReplyKind.SYN_ACK if segment.answer else ReplyKind.ACK,
            "port": rng.getrandbits(1),
            "dst_mac": self.serial,
            "src_mac": rng.getrandbits(48),
            "vlan": rng.getrandbits(1),
            "vlan_tci": rng.getrandbits(16),
            "ipv6": rng.getrandbits(1),
            "src": rng.getrandbits(128),
            "dst": rng.getrandbits(128),
            "src_port": rng.getrandbits(16),
            "dst_port": index,
            "seq": rng.getrandbits(32) if segment.answer else segment.ack - 1 & M32,
            "ack": segment.seq + 1 & M32,
            "timestamps": int(segment.tsval is not None),
            "tsecr": segment.tsval or 0,
            "mss": rng.getrandbits(16),
            "window": rng.getrandbits(16),
            "tsval": REGISTERS.ts_clock,
        }
        packet = pack(
            FlowPacket(CONFIG),
            index=index,
            answer=int(segment.answer),
            segment={
                "flags": int(segment.flags),
                "window": segment.window,
                "payload_length": segment.payload,
                "timestamps": int(segment.tsval is not None),
                "options_bad": int(segment.options_bad),
            },
            reply=reply,
        )
        self.burst.append(packet)
        self.model.segment(index, segment)
        for made in self.model.replies:
            wanted = {**reply, "kind": ReplyKind[made.kind].value}
            if made.kind != "SYN_ACK":
                names = ("seq", "ack", "window", "timestamps", "tsval", "tsecr")
                wanted.update({name: getattr(made, name) for name in names})
                for name in ("ecn", "mss", "wscale", "wscale_present", "sack"):
                    wanted.pop(name, None)
                if not made.timestamps:
                    del wanted["tsval"], wanted["tsecr"]
            self.expected.append(wanted)
        self.model.replies.clear()

    async def flush(self, ctx, gap=0.0):
        """Feeds the burst, one segment a cycle but for random gaps, and compares."""
        packets = self.dut.packets
        payload = Value.cast(packets.payload)
        for at in range(0, len(self.burst), 24):  # neither queue overflows
            for packet in self.burst[at : at + 24]:
                while self.rng.random() < gap:
                    await ctx.tick()
                ctx.set(payload, packet)
                ctx.set(packets.valid, 1)
                await ctx.tick()
                ctx.set(packets.valid, 0)
            await self.settle(ctx, 60)
        self.burst = []
        await self.compare(ctx)

    async def sent(self, ctx, index, status):
        self.log.append((index, "sent", status))
        self.model.sent(index, status)
        await self.put(ctx, self.dut.sent, pack(FlowSent(CONFIG), index=index, status=int(status)))
        await self.settle(ctx)
        await self.compare(ctx)

    async def update(self, ctx, index, **fields):
        self.log.append((index, "update", fields))
        status = self.model.update(index, **fields)
        await self.put(ctx, self.dut.updates, pack(FlowUpdate(CONFIG), index=index, **fields))
        await self.settle(ctx)
        assert self.seen["updated"] == [int(status)], (self.seen["updated"], status)
        self.seen["updated"].clear()
        await self.compare(ctx)

    async def lap(self, ctx):
        """The time of one lap passes, and the lap."""
        self.log.append(("lap",))
        ctx.set(self.dut.tick, 1)
        await ctx.tick().repeat(LAP * TIMER_TICKS)
        ctx.set(self.dut.tick, 0)
        self.model.now += LAP
        await ctx.tick()
        assert ctx.get(self.dut.now) == self.model.now
        self.model.sweep()
        await self.settle(ctx, 60)
        await self.compare(ctx)

    # Comparison.

    async def compare(self, ctx):
        model, seen = self.model, self.seen
        replies = [take(Reply, value) for value in seen["replies"]]
        assert len(replies) == len(self.expected), ("replies", replies, self.expected, self.history())
        for got, wanted in zip(replies, self.expected, strict=True):
            differing = {
                k: (got[k], int(v)) for k, v in wanted.items() if got[k] != int(getattr(v, "value", v))
            }
            assert not differing, (
                "reply (got, wanted)", differing, self.history(got["dst_port"], wanted["dst_port"])
            )  # fmt: skip
        jobs = [take(FlowJob(CONFIG), value) for value in seen["jobs"]]
        self.same("jobs", jobs, [asdict(job) for job in model.jobs])
        events = []
        for value in seen["events"]:
            request = take(EventRequest, value)
            event = take(EVENT_LAYOUT, request["event"])
            assert event["type"] == EventType.FLOW_DONE and request["queue"] == event["queue"]
            events.append({k: event[k] for k in ("queue", "status", "value", "rtt", "retransmissions")})
        self.same("events", events, [{**e, "status": int(e["status"])} for e in model.events], key="value")
        deletes = []
        for value in seen["deletes"]:
            fields = take(self.dut.delete.payload.shape(), value)
            deletes.append({"index": fields["index"], "rows": fields["rows"], "kind": fields["kind"]})
        bits = CONFIG.table.row_bits
        wanted = [
            {"index": i, "rows": rows[0] | rows[1] << bits, "kind": 0}
            for i in model.deletes
            for rows in [model.flows[i].rows]
        ]
        self.same("deletes", deletes, wanted)
        for index in model.deletes:
            model.deleted(index)
            self.slots[self.slots.index(index)] = None
        for records in (model.jobs, model.events, model.deletes, self.expected):
            records.clear()
        for name in ("replies", "jobs", "events", "deletes"):
            seen[name].clear()
        for index in model.flows:
            await self.record(ctx, index)

    def same(self, what, got, wanted, key="index"):
        """Order counts within a flow."""
        got, wanted = (sorted(records, key=lambda record: record[key]) for records in (got, wanted))
        history = self.history(*{r[key] for r in got + wanted})
        assert got == wanted, (what, "got", got, "wanted", wanted, history)

    async def record(self, ctx, index):
        """FLOWS.find and what it finds."""
        dut, flow = self.dut, self.model.flows[index]
        ctx.set(dut.find.index, index)
        ctx.set(dut.find.start, 1)
        await ctx.tick()
        ctx.set(dut.find.start, 0)
        await ctx.tick()
        for _ in range(600):
            if not ctx.get(dut.found.busy):
                break
            await ctx.tick()
        found = take(dut.found.shape(), ctx.get(Value.cast(dut.found)))
        got = take(dut.found.record.shape(), found["record"])
        assert found["found"] and found["index"] == index, (found, index, self.history(index))
        wanted = {
            "state": flow.state, "port": flow.port, "timestamps": flow.timestamps, "sending": flow.sending,
            "queue": flow.queue, "frames": flow.frames + 1, "retry_limit": flow.retry_limit,
            "snd_end": flow.snd_end, "table": flow.table << 8, "rto": flow.rto,
        }  # fmt: skip
        left = (flow.deadline - self.model.now) % (1 << 20)
        if left < 1 << 19:
            wanted["deadline"] = left
        if flow.state in OPEN:
            wanted.update(unacked=flow.unacked, rcv_nxt=flow.rcv_nxt, retries=flow.retries, window=flow.window)
            if flow.timestamps:
                wanted["ts_recent"] = flow.ts_recent
        differing = {k: (got[k], int(v)) for k, v in wanted.items() if got[k] != int(v)}
        assert not differing, (f"flow {index} (got, wanted)", differing, flow, self.history(index))

    def history(self, *indices):
        """The last that happened, to those flows."""
        entries = [entry for entry in self.log if not indices or entry[0] in (*indices, "lap")][-30:]
        return "\n".join(["", *map(str, entries)])


# Operations from small numbers, so that hypothesis can make them simpler.

FLAGS = (*(ACK,) * 14, *(ACK | FIN,) * 5, RST, ACK | RST, SYN, SYN, SYN | ACK, FIN, TCPFlag(0))
OFFSETS = (*(0,) * 18, 1, -1, 2, -2, 100, -100, 65_534, 65_535, 65_536, -65_535, -65_536, 1 << 31)
PAYLOADS = (*(0,) * 12, 1, 2, 100, 65_535)
STAMPS = (*(0,) * 8, *(1,) * 4, 2, -1, 0x7FFFFFFF, -0x7FFFFFFF)


def make_segment(flow, rng):
    """A segment for this flow, nearly right."""
    over = flow.state not in OPEN
    flags = SYN if over and rng.random() < 0.3 else rng.choice(FLAGS)
    payload = rng.choice(PAYLOADS)
    seq = flow.rcv_nxt + rng.choice(OFFSETS) - rng.choice((0, 0, 0, payload))
    acks = (
        flow.snd_una, flow.snd_una, flow.snd_una, flow.snd_end, flow.snd_end, flow.snd_end - 1,
        flow.snd_end + 1, flow.snd_una - 1, flow.snd_una + rng.randrange(max(flow.unacked, 1)),
        flow.snd_end - (1 << min(18 + flow.wscale, 31)), flow.snd_end - (1 << min(18 + flow.wscale, 31)) + 1,
        rng.getrandbits(32),
    )  # fmt: skip
    windows = (-(-(flow.window * 64) >> flow.wscale), 0, 1, 64, 65_535, rng.getrandbits(16))
    tsval = None
    if rng.random() < (0.9 if flow.timestamps else 0.1):
        tsval = flow.ts_recent + rng.choice(STAMPS) & M32
    if flags == SYN:
        seq = flow.rcv_nxt + rng.choice((-1, 0, 1, 100_000, 1 << 31))
    return Segment(
        seq & M32,
        rng.choice(acks) & M32,
        flags,
        payload,
        min(rng.choice((windows[0], windows[0], *windows)), 65_535),
        tsval,
        options_bad=rng.random() < 0.03,
        answer=flags == SYN and rng.random() < 0.7,
    )


async def operate(rig, ctx, operation, seed):
    """One operation; `seed` decides on its details."""
    rng = random.Random(seed)
    held = [index for index in rig.slots if index is not None]
    if operation == "install" or not held:
        await rig.flush(ctx)
        await rig.lap(ctx)
        for slot, index in enumerate(rig.slots):
            if index is None:
                await rig.install(ctx, slot)
    elif operation == "segments":
        busy = rng.choice(held)
        for _ in range(rng.randrange(1, 12)):
            index = busy if rng.random() < 0.6 else rng.choice(held)
            rig.segment(index, make_segment(rig.model.flows[index], rng))
        if len(rig.burst) >= 20 or rng.random() < 0.5:
            await rig.flush(ctx, rng.choice((0.0, 0.0, 0.3)))
    else:
        await rig.flush(ctx)
        held = [index for index in rig.slots if index is not None]
        if operation == "sent":
            status = rng.choice((Status.OK,) * 29 + (Status.BAD_ADDRESS,))
            for index in held:
                if rig.model.flows[index].sending and rng.random() < 0.7:
                    await rig.sent(ctx, index, status)
        elif operation == "update" and held:
            index = rng.choice(held)
            flow = rig.model.flows[index]
            ack = rng.choice((flow.snd_una, flow.snd_una, flow.snd_end, flow.snd_end + 1, flow.snd_una - 1))
            await rig.update(
                ctx,
                index,
                snd_end=flow.snd_end + (rng.random() < 0.1) & M32,
                ack=ack & M32,
                window=rng.choice((0, flow.window if flow.state in OPEN else 7, 9)),
                ts_recent=flow.ts_recent + rng.choice((-1, 0, 1)) & M32,
                fin=rng.random() < 0.3,
                abort=rng.random() < 0.1,
            )
        elif operation == "laps":
            for _ in range(rng.randrange(1, 4)):
                await rig.lap(ctx)


OPERATIONS = ("segments", "segments", "segments", "sent", "sent", "update", "laps", "laps", "install")


def play(operations, seed):
    rig = Rig(seed)

    async def main(ctx):
        for operation, detail in operations:
            await operate(rig, ctx, operation, detail)
        await rig.flush(ctx)
        # Everything ends by itself once its jobs are done and the peer is silent.
        for _ in range(200):
            for index in list(rig.model.flows):
                if rig.model.flows[index].sending:
                    await rig.sent(ctx, index, Status.OK)
            await rig.lap(ctx)
            if not rig.model.flows:
                break
        assert not rig.model.flows
        wanted = {name: count for name, count in rig.model.counts.items() if count}
        assert {name: count for name, count in rig.counted.items() if count} == wanted

    rig.run(main)
    return rig


@pytest.mark.parametrize("seed", seeds(3))
def test_long(seed):
    rng = random.Random(seed)
    play([(rng.choice(OPERATIONS), rng.getrandbits(32)) for _ in range(150)], seed)


@settings(
    max_examples=3, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck), print_blob=True,
)  # fmt: skip
@given(
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 1 << 16)), min_size=5, max_size=25),
    st.integers(0, 1 << 16),
)
def test_generated(operations, seed):
    play(operations, seed)


def peer_closes(flow):
    """The segment that ends a flow properly."""
    fin = FIN if flow.state == FlowState.FIN_WAIT_1 else 0
    tsval = flow.ts_recent if flow.timestamps else None
    return Segment(flow.rcv_nxt, flow.snd_end, ACK | fin, 0, 100, tsval)


@pytest.mark.parametrize("seed", seeds(2))
def test_back_pressure(seed):
    """Slow readers of events, jobs and replies: nothing is told twice or lost, but replies may be."""
    rig = Rig(seed)
    rng = random.Random(seed)

    async def main(ctx):
        indices = {}
        rig.event_go = rig.job_go = rig.reply_go = lambda: False
        await rig.lap(ctx)
        for number in range(40):
            # Rows and queues differ; no job is out.
            rig.slots[0] = None
            await rig.install(ctx, 0, sending=0, window=100, wscale=0, rtt_state=NONE, rto=8, retry_limit=15)
            indices[rig.slots[0]] = number
        flows = rig.model.flows
        for _ in range(3):
            ctx.set(rig.dut.tick, 1)
            await ctx.tick().repeat(LAP * TIMER_TICKS)
            ctx.set(rig.dut.tick, 0)
            await ctx.tick().repeat(200)
        rig.model.now += 3 * LAP
        order = list(indices)
        rng.shuffle(order)
        for index in order:
            rig.segment(index, peer_closes(flows[index]))
        payload = Value.cast(rig.dut.packets.payload)
        for packet in rig.burst:
            ctx.set(payload, packet)
            ctx.set(rig.dut.packets.valid, 1)
            await ctx.tick()
        ctx.set(rig.dut.packets.valid, 0)
        await ctx.tick().repeat(200)
        # Now everybody reads, slowly, and jobs are done as they come.
        rig.event_go, rig.job_go, rig.reply_go = (sometimes(seed + i, 0.3) for i in range(3))
        done = 0
        for _ in range(40):
            ctx.set(rig.dut.tick, 1)
            await ctx.tick().repeat(LAP * TIMER_TICKS)
            ctx.set(rig.dut.tick, 0)
            await ctx.tick().repeat(150)
            jobs = rig.seen["jobs"]
            while done < len(jobs):
                index = take(FlowJob(CONFIG), jobs[done])["index"]
                await rig.put(ctx, rig.dut.sent, pack(FlowSent(CONFIG), index=index, status=0))
                done += 1
        await ctx.tick().repeat(300)
        events = [take(EVENT_LAYOUT, take(EventRequest, v)["event"]) for v in rig.seen["events"]]
        assert Counter(e["value"] for e in events) == dict.fromkeys(indices, 1)
        assert {e["status"] for e in events} == {Status.OK}
        replies = [take(Reply, v)["dst_port"] for v in rig.seen["replies"]]
        wanted = [reply["dst_port"] for reply in rig.expected]
        it = iter(wanted)
        assert all(port in it for port in replies), "replies out of order"
        assert len(replies) + rig.counted["flow_reply_busy"] == len(wanted)
        assert rig.counted["flow_closed"] == 40
        deletes = [take(rig.dut.delete.payload.shape(), v)["index"] for v in rig.seen["deletes"]]
        assert Counter(deletes) == dict.fromkeys(indices, 1)

    rig.run(main)
