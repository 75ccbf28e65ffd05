"""Close: what it takes, what it refuses and why, in which order things happen, one event for every command."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.flow import flow_digest
from acceltcp.abi.messages import (
    CLOSE_COMMAND,
    CloseFlag,
    CommandOpcode,
    EventType,
    FlowState,
    FrameFlag,
    Status,
)
from hw.config import NicConfig
from hw.dma.tx import TxCommand
from hw.table.records import Kind
from hw.tcp.close import COMMANDS, Close
from hw.tcp.flow import RttState
from hw.tcp.frame_table import FrameEntry, TableRequest
from tests.hw.simulate import Shared, always, collect, converts, feed, seeds, sometimes

CONFIG = NicConfig(flows=512)
SECRET = bytes(range(100, 116))
M32 = 0xFFFF_FFFF
MAPPED = 0xFFFF << 32
TABLE = 0x12_3456_7800
QUEUE = 5
SHARED = Shared(lambda: Close(CONFIG))


class Hand:
    """A CLOSE: the command's fields and the entries of its table. Addresses are numbers, first byte most significant."""

    def __init__(self, payloads: list[int], *, vlan: bool = False, seq: int = 1000, **fields: int) -> None:
        self.fields = {
            "opcode": CommandOpcode.CLOSE, "frames": len(payloads), "sent": 0, "retries": 7, "port": 0, "flags": 0,
            "tag": 0xCAFE, "table": TABLE, "remote": 0x0A000001, "local": 0x0A000002, "remote_port": 40000,
            "local_port": 80, "rcv_nxt": 7000, "ts_recent": 99, "rto": 300, "window": 1000, "wscale": 7,
        } | fields  # fmt: skip
        flags = self.fields["flags"]
        self.ipv6, self.timestamps = bool(flags & CloseFlag.IPV6), bool(flags & CloseFlag.TIMESTAMPS)
        l4 = 14 + 4 * vlan + (40 if self.ipv6 else 20)
        self.first = seq
        self.entries = []
        for number, payload in enumerate(payloads):
            length = l4 + (32 if self.timestamps else 20) + payload
            self.entries.append(
                {"address": 4096 * number, "seq": seq, "length": length, "l4_offset": l4, "flags": int(self.ipv6)}
            )
            seq = seq + payload & M32
        self.snd_end = seq + 1 & M32
        self.refused_entry: int | None = None

    def raw(self, index: int = 0) -> int:
        turned = {
            name: int.from_bytes(self.fields[name].to_bytes(16, "big"), "little") for name in ("remote", "local")
        }
        command = CLOSE_COMMAND.to_int(**{**self.fields, **turned})
        return TxCommand.const({"queue": QUEUE, "index": index, "command": command}).as_value().value

    def table(self) -> list[int]:
        values = []
        for k, entry in enumerate(self.entries):
            error = self.refused_entry is not None and k >= self.refused_entry
            one = {"entry": entry, "last": k == len(self.entries) - 1, "error": error}
            values.append(FrameEntry.const(one).as_value().value)
        return values

    def digest(self) -> int:
        address = {n: self.fields[n] | (0 if self.ipv6 else MAPPED) for n in ("remote", "local")}
        ports = {n: self.fields[n] for n in ("remote_port", "local_port")}
        return flow_digest(SECRET, **address, **ports, ipv6=self.ipv6) & (1 << CONFIG.table.digest_bits) - 1

    def state(self, now: int) -> dict[str, Any]:
        """The state of docs/teardown.md that the flow begins with; what is not named is 0."""
        f, digest, bits = self.fields, self.digest(), CONFIG.table.row_bits
        fin = bool(f["flags"] & CloseFlag.PEER_FIN)
        mask = (1 << bits) - 1
        return {
            "snd_end": self.snd_end, "table": f["table"] >> 8, "frames": f["frames"] - 1, "queue": QUEUE,
            "port": f["port"], "timestamps": self.timestamps, "wscale": f["wscale"], "rto": f["rto"],
            "retry_limit": f["retries"], "rows": [digest & mask, digest >> bits & mask],
            "rcv_base": f["rcv_nxt"] - fin & M32, "state": FlowState.LAST_ACK if fin else FlowState.FIN_WAIT_1,
            "unacked": self.snd_end - self.first & M32, "ts_recent": f["ts_recent"], "window": f["window"],
            "deadline": now + f["rto"] & (1 << 20) - 1, "sending": 1, "rtt": now & (1 << 14) - 1,
            "rtt_state": RttState.NONE if f["sent"] else RttState.TIMING,
        }  # fmt: skip

    def job(self, index: int) -> dict[str, int]:
        """With nothing to send it sends nothing (`limit` 0), so that the flow's end is not told before its beginning."""
        f = self.fields
        left = {"left": self.snd_end - self.entries[f["sent"]]["seq"] & M32} if f["sent"] < f["frames"] else {}
        return left | {
            "index": index, "table": f["table"] >> 8, "frames": f["frames"] - 1, "port": f["port"],
            "snd_end": self.snd_end, "limit": 16 if left else 0, "room": 4095, "ack": f["rcv_nxt"],
            "timestamps": self.timestamps, "tsecr": f["ts_recent"],
        }  # fmt: skip


class Bench:
    """A Close with all that surrounds it. `log` holds what it did, in order: ("install", index, state) and so on.

    free: indices to hand out. held: digests in the connection table. full: it takes no more.
    go: may output `name` be taken, may input `name` be given?
    """

    def __init__(self, *hands: Hand, go=lambda name: always, table_latency: int = 5) -> None:
        self.dut = SHARED.dut
        self.hands, self.go, self.table_latency = hands, go, table_latency
        self.tables = {hand.fields["table"] >> 8: hand for hand in hands}
        self.free = list(range(100, 100 + len(hands)))
        self.held: set[int] = set()
        self.full = False
        self.ready = 1
        self.now = 0xFFFFF
        self.log: list[tuple[Any, ...]] = []
        self.counted: Counter[str] = Counter()
        self.asked: list[tuple[int, int]] = []
        self.over = False
        self._stage: list[tuple[int, int]] = []

    def named(self, kind: str) -> list[tuple[Any, ...]]:
        return [entry[1:] for entry in self.log if entry[0] == kind]

    async def _take(self, ctx, name):
        stream, shape = getattr(self.dut, name), getattr(self.dut, name).p.shape()
        payload, go = Value.cast(stream.payload), self.go(name)
        while True:
            ready = go()
            ctx.set(stream.ready, ready)
            _, _, valid, value = await ctx.tick().sample(stream.valid, payload)
            if valid and ready:
                self.log.append((name, data.Const(shape, value)))

    async def _read_tables(self, ctx):
        stream = self.dut.table_requests
        while True:
            (value,) = await collect(ctx, stream, 1, self.go("table_requests"))
            request = data.Const(TableRequest, value)
            self.asked.append((request.table, request.frames))

    async def _entries(self, ctx):
        at = 0
        while True:
            while len(self.asked) <= at:
                await ctx.tick()
            if at == 0:
                await ctx.tick().repeat(self.table_latency)
            await feed(ctx, self.dut.entries, self.tables[self.asked[at][0]].table(), self.go("entries"))
            at += 1

    async def _free(self, ctx):
        free = self.dut.free
        while True:
            ctx.set(free.valid, bool(self.free))
            ctx.set(self.dut.exhausted, not self.free)
            ctx.set(free.p.index, self.free[0] if self.free else 0)
            _, _, ready = await ctx.tick().sample(free.ready)
            if ready and self.free:
                self.free.pop(0)

    async def _insert(self, ctx):
        insert, inserted = self.dut.insert, self.dut.inserted
        while True:
            (value,) = await collect(ctx, insert, 1, self.go("insert"))
            entry = data.Const(insert.p.shape(), value)
            status = Status.DUPLICATE if entry.digest in self.held else Status.TABLE_FULL if self.full else Status.OK
            if status == Status.OK:
                self.held.add(entry.digest)
            self.log.append(("insert", entry.digest, entry.kind, entry.index, status))
            await feed(ctx, inserted, [int(status)], self.go("inserted"))

    async def _count(self, ctx):
        names = list(self.dut.counts.shape().members)
        async for _, _, *values in ctx.tick().sample(*(self.dut.counts[name] for name in names)):
            self.counted += Counter(dict(zip(names, values, strict=True)))

    def run(self, scenario=None, cycles=20_000):
        async def bench(ctx):
            ctx.set(self.dut.key, int.from_bytes(SECRET, "little"))
            ctx.set(self.dut.ready, self.ready)
            ctx.set(self.dut.now, self.now)
            if scenario:
                await scenario(ctx)
                return
            await feed(ctx, self.dut.commands, [hand.raw(k) for k, hand in enumerate(self.hands)], self.go("commands"))
            while ctx.get(self.dut.busy):
                await ctx.tick()
            await ctx.tick().repeat(5)
            assert ctx.get(self.dut.idle)

        takers = [partial(self._take, name=name) for name in ("installs", "events", "jobs")]
        parts = [self._read_tables, self._entries, self._free, self._insert, self._count, *takers]
        SHARED.run(bench, background=parts, cycles=cycles)
        return self

    def events(self) -> list[tuple[int, int, int, int]]:
        """(ring index, tag, status, value) of every event; checks the rest of it."""
        found = []
        for (request,) in self.named("events"):
            event = request.event
            assert event.type == EventType.COMMAND_DONE and request.queue == event.queue == QUEUE
            found.append((event.index, event.tag, event.status, event.value))
        return found


def plain(state: Any) -> dict[str, Any]:
    """Fields of a flow's state as numbers; those that are 0 left out."""
    fields = {name: state[name] for name, _ in state.shape()} if isinstance(state, data.Const) else state
    values = {name: list(v) if name == "rows" else getattr(v, "value", v) for name, v in fields.items()}
    return {name: value for name, value in values.items() if value and value != [0, 0]}


ACCEPTED = [
    Hand([0]),
    Hand([100], sent=1),
    Hand([1448, 1448, 0], sent=0, flags=CloseFlag.TIMESTAMPS, seq=M32 - 2000),
    Hand([1448, 1448, 500], sent=2, flags=CloseFlag.PEER_FIN, rcv_nxt=0),
    Hand([1] * 16, sent=16, vlan=True, remote=MAPPED | 0xC0A80509, local=MAPPED | 0x0A000001),
    Hand([8964] * 16, sent=5, retries=15, rto=16383, wscale=14, window=4095),
    Hand([10, 20], flags=CloseFlag.IPV6, remote=0x20010DB8 << 96 | 1, local=0xFD << 120 | 2, retries=1, rto=1, window=0),
    Hand([8932], flags=CloseFlag.IPV6 | CloseFlag.TIMESTAMPS | CloseFlag.PEER_FIN, remote=1, local=2, vlan=False),
    Hand([700], remote=0x0A000002, local=0x0A000002, remote_port=81),  # to itself, from another port
    Hand([700], table=(1 << 54) - 256),
]


@pytest.mark.parametrize("hand", ACCEPTED)
def test_accepted(hand):
    """State, connection table, event and job say what the command said; in this order."""
    bench = Bench(hand).run()
    kinds = ["installs", "insert", "events", "jobs"]
    assert [entry[0] for entry in bench.log] == kinds
    ((install,),) = bench.named("installs")
    assert install.index == 100 and plain(install.state) == plain(hand.state(bench.now))
    assert bench.named("insert") == [(hand.digest(), Kind.TEARDOWN, 100, Status.OK)]
    assert bench.events() == [(0, 0xCAFE, Status.OK, 100)]
    for (job,) in bench.named("jobs"):
        assert {name: job[name] for name in hand.job(100)} == hand.job(100)
    assert bench.asked == [(hand.fields["table"] >> 8, hand.fields["frames"] - 1)]
    assert bench.counted == Counter(commands=1, flow_opened=1)


def check_refused(bench: Bench, status: int) -> None:
    """One event that says so, and no effect: an index that was taken is given back."""
    bench.run()
    assert bench.events() == [(0, 0xCAFE, status, 0)]
    assert not bench.named("jobs")
    assert all(told != Status.OK for *_, told in bench.named("insert"))
    assert bench.counted == Counter(command_errors=1)
    installs = [install for (install,) in bench.named("installs")]
    if installs:
        assert [install.index for install in installs] == [100, 100]
        assert plain(installs[-1].state) == {} and bench.log[-1][0] == "events"
    else:
        assert bench.free == [100] or status == Status.TABLE_FULL


IPV6 = CloseFlag.IPV6
ONE_BIT_FLAGS = [1 << bit for bit in range(8) if 1 << bit not in list(CloseFlag)]


@pytest.mark.parametrize(
    "fields",
    [
        {"frames": 0}, {"frames": 17}, {"frames": 31}, {"sent": 4}, {"sent": 31}, {"retries": 0}, {"port": 1}, {"port": 2},
        *({"flags": flag} for flag in ONE_BIT_FLAGS),
        *({"table": TABLE + (1 << bit)} for bit in range(8)), {"table": 1 << 54}, {"table": 1 << 63},
        {"rto": 0}, {"rto": 1 << 14}, {"rto": 65535}, {"wscale": 15},
        {"remote": 0x0A000002, "remote_port": 80},
        {"remote": 7, "local": 7, "remote_port": 80, "flags": IPV6},
        {"remote": 1 << 32 | 1}, {"local": 1 << 127 | 1}, {"remote": 0xFFFE << 32 | 1}, {"local": MAPPED | 1 << 50},
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments(fields):
    """What the command itself shows: its table is not even read."""
    bench = Bench(Hand([10, 20, 30], **fields))
    check_refused(bench, Status.BAD_ARGUMENT)
    assert not bench.asked


@pytest.mark.parametrize("mapped", ("remote", "local", "both"))
def test_source_equal_to_destination(mapped):
    """An IPv4 address is the same alone and as ::ffff:a.b.c.d; another port is another end."""
    fields = {name: 0x0A000002 | (MAPPED if mapped in (name, "both") else 0) for name in ("remote", "local")}
    bench = Bench(Hand([10], **fields, remote_port=80, local_port=80))
    check_refused(bench, Status.BAD_ARGUMENT)
    assert not bench.asked
    bench = Bench(Hand([10], **fields, remote_port=81, local_port=80)).run()
    assert bench.events() == [(0, 0xCAFE, Status.OK, 100)]


@pytest.mark.parametrize(
    "number, change, status",
    [
        (1, {"seq": 1009}, Status.BAD_ARGUMENT),
        (1, {"seq": 1011}, Status.BAD_ARGUMENT),
        (2, {"seq": 1030 ^ 1 << 31}, Status.BAD_ARGUMENT),
        (0, {"length": 54}, Status.BAD_ARGUMENT),  # no data, and not the last
        (1, {"length": 54}, Status.BAD_ARGUMENT),
        (0, {"length": 53}, Status.BAD_LENGTH),
        (2, {"length": 53}, Status.BAD_LENGTH),
        (2, {"length": 0}, Status.BAD_LENGTH),
        (2, {"length": 9019}, Status.BAD_LENGTH),
        (2, {"length": 65535}, Status.BAD_LENGTH),
        *((2, {"flags": 1 << bit}, Status.BAD_ARGUMENT) for bit in range(8)),
        *((2, {"l4_offset": at}, Status.BAD_ARGUMENT) for at in (0, 33, 35, 36, 39, 54, 58)),
        (2, {"l4_offset": 255}, Status.BAD_LENGTH),
    ],
)
def test_bad_entries(number, change, status):
    """All entries are taken and the next command is not disturbed."""
    hand, good = Hand([10, 20, 30]), Hand([10], table=TABLE + 256, tag=1, remote_port=5)
    hand.entries[number].update(change)
    check_refused(bench := Bench(hand), status)
    assert bench.asked == [(TABLE >> 8, 2)]
    bench = Bench(hand, good).run()
    assert bench.events() == [(0, 0xCAFE, status, 0), (1, 1, Status.OK, 100)]


def test_ipv6_and_timestamps_are_checked_in_entries():
    """Headers are longer with timestamps; IPv6 frames have other offsets and a flag."""
    hand = Hand([10], flags=CloseFlag.TIMESTAMPS)
    hand.entries[0]["length"] = 65
    check_refused(Bench(hand), Status.BAD_LENGTH)
    for change in ({"l4_offset": 34}, {"l4_offset": 38}, {"flags": 0}, {"flags": FrameFlag.IPV6 | 2}):
        hand = Hand([100], flags=IPV6)
        hand.entries[0].update(change)
        check_refused(Bench(hand), Status.BAD_ARGUMENT)


@pytest.mark.parametrize("at", range(3))
def test_table_that_cannot_be_read(at):
    """Whatever else is wrong with it: what stands there means nothing."""
    hand = Hand([10, 20, 30])
    hand.refused_entry = at
    check_refused(Bench(hand), Status.BAD_ADDRESS)
    hand.entries[0]["length"] = 1
    check_refused(Bench(hand), Status.BAD_ADDRESS)


def test_duplicate():
    hand = Hand([10])
    bench = Bench(hand)
    bench.held.add(hand.digest())
    check_refused(bench, Status.DUPLICATE)
    assert len(bench.named("installs")) == 2


@pytest.mark.parametrize("name", ("remote", "local", "remote_port", "local_port", "flags"))
def test_another_connection_is_no_duplicate(name):
    """One with the same numbers but IPv6 neither."""
    hand = Hand([10])
    other = Hand([10], **{name: CloseFlag.IPV6 if name == "flags" else hand.fields[name] + 1})
    if name == "flags":
        other.fields.update({n: MAPPED | hand.fields[n] for n in ("remote", "local")})
    bench = Bench(other)
    bench.held.add(hand.digest())
    bench.run()
    assert bench.events() == [(0, 0xCAFE, Status.OK, 100)]


def test_table_full():
    bench = Bench(Hand([10]))
    bench.full = True
    check_refused(bench, Status.TABLE_FULL)
    assert len(bench.named("installs")) == 2
    bench = Bench(Hand([10]))
    bench.free = []
    check_refused(bench, Status.TABLE_FULL)
    assert not bench.named("installs") and not bench.named("insert")


def test_no_secret():
    bench = Bench(Hand([10]))
    bench.ready = 0
    check_refused(bench, Status.NO_SECRET)


@pytest.mark.parametrize("seed", seeds(4))
def test_random_commands(seed):
    """Good and bad ones mixed, with pauses everywhere: exactly one event each, in order, and its consequences."""
    rng = random.Random(seed)
    hands, wanted = [], []
    held: set[int] = set()
    for number in range(30):
        payloads = [rng.randrange(1, 1400) for _ in range(rng.randrange(1, 6))]
        flags = rng.choice((0, CloseFlag.TIMESTAMPS, CloseFlag.PEER_FIN, IPV6))
        hand = Hand(
            payloads, flags=flags, sent=rng.randrange(len(payloads) + 1), seq=rng.getrandbits(32), tag=number,
            table=TABLE + 256 * number, remote_port=rng.randrange(12),
        )  # fmt: skip
        kind = rng.randrange(8)
        status = Status.OK
        if kind == 0:
            hand.fields["retries"], status = 0, Status.BAD_ARGUMENT
        elif kind == 1:
            hand.refused_entry, status = rng.randrange(len(payloads)), Status.BAD_ADDRESS
        elif kind == 2:
            rng.choice(hand.entries)["length"], status = 9, Status.BAD_LENGTH
        elif hand.digest() in held:
            status = Status.DUPLICATE
        else:
            held.add(hand.digest())
        hands.append(hand)
        wanted.append(status)
    names = ("commands", "table_requests", "entries", "installs", "insert", "inserted", "events", "jobs")
    go = {name: sometimes(10 * seed + k, 0.5) if seed else always for k, name in enumerate(names)}
    bench = Bench(*hands, go=go.get, table_latency=40).run()
    events = bench.events()
    assert [(index, tag, status) for index, tag, status, _ in events] == [
        (k, k, status) for k, status in enumerate(wanted)
    ]
    opened = [(hand, value) for hand, (*_, status, value) in zip(hands, events, strict=True) if status == Status.OK]
    assert len({value for _, value in opened}) == len(opened), "an index is used twice"
    expected = [hand.job(index) for hand, index in opened]
    jobs = [job for (job,) in bench.named("jobs")]
    assert [{name: job[name] for name in want} for job, want in zip(jobs, expected, strict=True)] == expected
    assert bench.held == held and Status.DUPLICATE in wanted
    assert bench.counted == Counter(
        commands=len(opened), flow_opened=len(opened), command_errors=len(hands) - len(opened)
    )


def test_idle_and_busy():
    """`idle` when every event has been taken; `busy` while a job waits, too."""
    hand = Hand([10])
    open_ = {"events": False, "jobs": False}
    bench = Bench(hand, go=lambda name: (lambda: open_.get(name, True)))
    dut = bench.dut

    async def scenario(ctx):
        assert ctx.get(dut.idle) and not ctx.get(dut.busy)
        ctx.set(Value.cast(dut.commands.payload), hand.raw())
        ctx.set(dut.commands.valid, 1)
        assert not ctx.get(dut.idle) and ctx.get(dut.busy)
        await ctx.tick().until(dut.commands.ready)
        ctx.set(dut.commands.valid, 0)
        for _ in range(100):
            assert not ctx.get(dut.idle) and ctx.get(dut.busy)
            await ctx.tick()
        assert ctx.get(dut.events.valid) and not ctx.get(dut.jobs.valid), "a frame before the event"
        open_["events"] = True
        await ctx.tick().repeat(8)
        assert ctx.get(dut.idle) and ctx.get(dut.busy) and ctx.get(dut.jobs.valid)
        open_["jobs"] = True
        await ctx.tick().repeat(3)
        assert ctx.get(dut.idle) and not ctx.get(dut.busy)

    bench.run(scenario)


def test_jobs_that_nobody_takes():
    """`COMMANDS` are carried out, the next one waits; none is lost."""
    hands = [Hand([10], table=TABLE + 256 * k, remote_port=k + 1, tag=k) for k in range(COMMANDS + 4)]
    open_ = [False]
    bench = Bench(*hands, go=lambda name: (lambda: open_[0]) if name == "jobs" else always)

    async def scenario(ctx):
        for k, hand in enumerate(hands[:COMMANDS]):
            await feed(ctx, bench.dut.commands, [hand.raw(k)])
        await ctx.tick().repeat(60 * COMMANDS)
        assert len(bench.named("events")) == COMMANDS and not ctx.get(bench.dut.commands.ready)
        open_[0] = True
        for k in range(COMMANDS, len(hands)):
            await feed(ctx, bench.dut.commands, [hands[k].raw(k)])
        await ctx.tick().repeat(300)
        assert [job.index for (job,) in bench.named("jobs")] == list(range(100, 100 + len(hands)))
        assert not ctx.get(bench.dut.busy)

    bench.run(scenario)


def test_rate():
    """A round trip of 250 cycles to the tables is paid once."""
    hands = [Hand([10], table=TABLE + 256 * k, remote_port=k + 1) for k in range(12)]
    bench = Bench(*hands, table_latency=250).run(cycles=250 + 12 * 40)
    assert len(bench.events()) == 12


def test_converts():
    converts(Close(CONFIG))
