"""FlowTransmit: which frames a job sends, with what, and when it has ended; against a model of `FlowJob`'s text."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from amaranth.lib import data

from acceltcp.abi.messages import WINDOW_UNIT, FrameFlag, Status
from hw.config import NicConfig
from hw.dma.tx import TxFrame, TxFrameDone
from hw.tcp.flow import FlowJob, FlowSent
from hw.tcp.frame_table import FrameEntry, TableRequest
from hw.tcp.transmit import JOBS, FlowTransmit
from tests.hw.simulate import always, collect, converts, feed, run, seeds, sometimes

CONFIG = NicConfig(flows=512)
M32 = 0xFFFF_FFFF
ALL = {"left": (1 << 18) - 1, "limit": 16, "room": 4095}


@dataclass
class Job:
    """A job, the table it names, and how its frames end."""

    fields: dict[str, int]
    entries: list[dict[str, int]]
    error_at: int | None = None
    """From this entry on the bus has refused the table."""
    ends: list[int] = field(default_factory=lambda: [Status.OK] * 16)

    def raw(self) -> int:
        return FlowJob(CONFIG).const({**self.fields, "frames": len(self.entries) - 1}).as_value().value

    def table(self) -> list[int]:
        values = []
        for k, entry in enumerate(self.entries):
            error = self.error_at is not None and k >= self.error_at
            one = {"entry": entry, "last": k == len(self.entries) - 1, "error": error}
            values.append(FrameEntry.const(one).as_value().value)
        return values

    def frames(self) -> list[dict[str, Any]]:
        """What is to be sent."""
        want, chosen, first = self.fields, [], 0
        header = 32 if want["timestamps"] else 20
        for k, entry in enumerate(self.entries):
            if self.error_at is not None and k >= self.error_at:
                break
            fin = k == len(self.entries) - 1
            start = want["snd_end"] - entry["seq"] & M32  # its first sequence number lies so far before `snd_end`
            end = start - (entry["length"] - entry["l4_offset"] - header) - fin
            if not 0 <= end < want["left"] or len(chosen) == want["limit"]:
                continue
            first = first if chosen else start
            # The window is told in whole units, rounded down.
            if (first - start) // WINDOW_UNIT > want["room"]:
                continue
            patch = {"wanted": 1, "timestamps": want["timestamps"], "ack": want["ack"], "tsecr": want["tsecr"]}
            chosen.append(
                {
                    "address": entry["address"], "length": entry["length"], "l4_offset": entry["l4_offset"],
                    "ipv6": int(entry["flags"] == FrameFlag.IPV6), "port": want["port"], "index": want["index"],
                    "last": 0, "patch": patch,
                }
            )  # fmt: skip
        if chosen:
            chosen[-1]["last"] = 1
        return chosen

    def status(self) -> int:
        if self.error_at is not None:
            return Status.BAD_ADDRESS
        return next((status for status in self.ends[: len(self.frames())] if status), Status.OK)


def make_job(rng: random.Random, number: int, **choose: Any) -> Job:
    """Consecutive frames up to `snd_end`, as CLOSE has checked them; numbers wrap now and then."""
    ipv6, vlan, timestamps = (rng.getrandbits(1) for _ in range(3))
    timestamps = choose.get("timestamps", timestamps)
    payloads = choose.pop("payloads", None)
    if payloads is None:
        payloads = [rng.choice((1, 63, 64, 1448, rng.randrange(1, 8900))) for _ in range(rng.randrange(1, 17))]
        if rng.random() < 0.3:
            payloads[-1] = 0  # a FIN alone
    l4 = 14 + 4 * vlan + (40 if ipv6 else 20)
    seq = choose.pop("seq", rng.choice((rng.getrandbits(32), -rng.randrange(20000) & M32)))
    entries = []
    for payload in payloads:
        entries.append(
            {
                "address": rng.getrandbits(64), "seq": seq, "length": l4 + (32 if timestamps else 20) + payload,
                "l4_offset": l4, "flags": FrameFlag.IPV6 if ipv6 else 0,
            }
        )  # fmt: skip
        seq = seq + payload & M32
    total = sum(payloads) + 1
    fields = {
        "index": rng.randrange(512), "table": number, "port": 0, "snd_end": seq + 1 & M32,
        "left": rng.choice((0, 1, 2, total - 1, total, total, rng.randrange(1, total + 1))),
        "limit": rng.choice((1, 2, 16, 16)),
        "room": rng.choice((0, 10, 4095, 4095, rng.randrange(300))),
        "ack": rng.getrandbits(32), "timestamps": timestamps, "tsecr": rng.getrandbits(32),
    }  # fmt: skip
    job = Job(fields | choose, entries)
    job.ends = [rng.choice((Status.OK, Status.OK, Status.OK, Status.BAD_ADDRESS, Status.BAD_LENGTH)) for _ in range(16)]
    return job


class Bench:
    """Jobs from two sources through a transmitter; what comes out is compared with the model."""

    def __init__(self, sources: tuple[list[Job], list[Job]], go=lambda n: always) -> None:
        self.dut = FlowTransmit(CONFIG)
        self.sources, self.go = sources, go
        self.by_table = {job.fields["table"]: job for source in sources for job in source}
        self.order: list[Job] = []
        self.frames: list[Any] = []
        self.sent: list[tuple[int, int]] = []
        self.ended_frames = 0

    async def tables(self, ctx):
        """The reader of tables."""
        for _ in self.by_table:
            (value,) = await collect(ctx, self.dut.table_requests, 1, self.go(0))
            request = data.Const(TableRequest, value)
            job = self.by_table[request.table]
            assert request.frames == len(job.entries) - 1
            self.order.append(job)

    async def entries(self, ctx):
        for number in range(len(self.by_table)):
            while len(self.order) <= number:
                await ctx.tick()
            await feed(ctx, self.dut.entries, self.order[number].table(), self.go(1))

    async def transmit(self, ctx):
        """The TX DMA: a job is not told of before its last frame has ended."""
        for number in range(len(self.by_table)):
            while len(self.order) <= number:
                await ctx.tick()
            job = self.order[number]
            for want, status in zip(job.frames(), job.ends, strict=False):
                (value,) = await collect(ctx, self.dut.frames, 1, self.go(2))
                assert value == TxFrame(CONFIG).const(want).as_value().value, (number, job)
                self.frames.append((want, status))

    async def ends(self, ctx):
        total = sum(len(job.frames()) for job in self.by_table.values())
        for number in range(total):
            while len(self.frames) <= number:
                await ctx.tick()
            want, status = self.frames[number]
            done = {"index": want["index"], "last": want["last"], "status": status}
            await feed(ctx, self.dut.frames_done, [TxFrameDone(CONFIG).const(done).as_value().value], self.go(3))
            self.ended_frames += 1

    async def take_sent(self, ctx):
        before = 0
        for number in range(len(self.by_table)):
            (value,) = await collect(ctx, self.dut.sent, 1, self.go(4))
            got = data.Const(FlowSent(CONFIG), value)
            job = self.order[number]
            assert (got.index, got.status) == (job.fields["index"], job.status()), (number, job)
            before += len(job.frames())
            assert self.ended_frames >= before, "told before its last frame has ended"
        for _ in range(8):
            await ctx.tick()
        assert not ctx.get(self.dut.busy) and not ctx.get(self.dut.sent.valid) and not ctx.get(self.dut.frames.valid)

    def run(self, background=()):
        sources = [
            lambda ctx, k=k: feed(ctx, self.dut.jobs[k], [job.raw() for job in self.sources[k]], self.go(5 + k))
            for k in (0, 1)
        ]
        parts = (self.tables, self.entries, self.transmit, self.ends, self.take_sent)
        run(self.dut, *sources, *parts, cycles=20_000, background=background)


@pytest.mark.parametrize("seed", seeds(5))
def test_random_jobs(seed):
    rng = random.Random(seed)
    jobs = [make_job(rng, number) for number in range(60)]
    for job in jobs:
        if rng.random() < 0.15:
            job.error_at = rng.randrange(len(job.entries))
    go = (lambda n: sometimes(10 * seed + n, 0.6)) if seed else (lambda n: always)
    Bench((jobs[::2], jobs[1::2]), go).run()
    assert sum(not job.frames() for job in jobs) > 3 and sum(len(job.frames()) > 1 for job in jobs) > 5, seed


def one_job(rng: random.Random, **choose: Any) -> Job:
    job = make_job(rng, 1, **{"timestamps": 0, "seq": M32 - 1500, **choose})
    job.ends = [Status.OK] * 16
    return job


# Three segments of 1000 bytes; the last one has the FIN: `snd_end` is 3001 after the first one's start.
@pytest.mark.parametrize(
    "choose, sent",
    [
        ({}, [0, 1, 2]),
        ({"left": 3001}, [0, 1, 2]),  # nothing is acknowledged
        ({"left": 2002}, [0, 1, 2]),  # all but the last byte of the first one
        ({"left": 2001}, [1, 2]),  # the first one
        ({"left": 1002}, [1, 2]),
        ({"left": 1001}, [2]),
        ({"left": 1}, [2]),  # the FIN only
        ({"left": 0}, []),  # everything
        ({"limit": 1}, [0]),
        ({"limit": 2}, [0, 1]),
        ({"left": 2001, "limit": 1}, [1]),
        ({"room": 0}, [0]),  # one always goes: it probes a window of 0
        ({"room": 15}, [0, 1]),  # 15 units are 960 to 1023 bytes
        ({"room": 14}, [0]),
        ({"room": 31}, [0, 1, 2]),
        ({"room": 30}, [0, 1]),
        ({"left": 2001, "room": 15}, [1, 2]),
    ],
)
def test_choice(choose, sent):
    """By hand; numbers wrap in the second segment."""
    job = one_job(random.Random(1), **{"payloads": [1000] * 3, **ALL, **choose})
    assert [frame["address"] for frame in job.frames()] == [job.entries[k]["address"] for k in sent]
    Bench(([job], [])).run()


def test_the_longest_hand_over():
    """2^18 - 1 sequence numbers, all of them sent with the largest room."""
    job = one_job(random.Random(2), payloads=[16384] * 15 + [16382], **ALL)
    assert len(job.frames()) == 16
    Bench(([job], [])).run()


def test_entries_that_contradict_the_flow():
    """Entries whose numbers the flow cannot have: not sent, and the job ends."""
    rng = random.Random(3)
    job = one_job(rng, payloads=[100] * 4, **ALL)
    job.entries[0]["seq"] = job.fields["snd_end"] + 5 & M32
    job.entries[1]["seq"] = job.fields["snd_end"] - (1 << 18) - 100 & M32
    job.entries[2]["seq"] = job.fields["snd_end"] - 99 & M32  # ends behind the end
    job.entries[3]["seq"] = job.fields["snd_end"] - (1 << 31) & M32
    assert job.frames() == [] and job.status() == Status.OK
    Bench(([job], [])).run()


def test_the_first_error_is_told():
    job = one_job(random.Random(4), payloads=[100] * 5, **ALL)
    job.ends[1], job.ends[3] = Status.BAD_LENGTH, Status.BAD_ADDRESS
    assert job.status() == Status.BAD_LENGTH
    good = one_job(random.Random(5), payloads=[100] * 5, **ALL)
    good.fields["table"] = 2
    assert good.status() == Status.OK
    Bench(([job, good], [])).run()


def test_rate():
    """Jobs of 16 entries: one entry per cycle and at most 2 cycles for the job."""
    rng = random.Random(6)
    bench = Bench(([make_job(rng, number, payloads=[100] * 16, **ALL) for number in range(20)], []))
    dut = bench.dut
    cycles = []

    async def count(ctx):
        cycle = 0
        async for _, _, go in ctx.tick().sample(dut.frames.valid & dut.frames.ready):
            cycle += 1
            if go:
                cycles.append(cycle)

    bench.run(background=[count])
    assert len(cycles) == 20 * 16 and cycles[-1] - cycles[0] + 1 <= 20 * 18


def test_jobs_in_flight():
    """`JOBS` tables are asked for before the first one comes."""
    rng = random.Random(7)
    dut = FlowTransmit(CONFIG)
    asked = []

    async def count(ctx):
        ctx.set(dut.table_requests.ready, 1)
        async for _, _, valid, table in ctx.tick().sample(dut.table_requests.valid, dut.table_requests.p.table):
            if valid:
                asked.append(table)

    async def put(ctx):
        for number in range(JOBS):
            await feed(ctx, dut.jobs[number % 2], [make_job(rng, number).raw()])
        await ctx.tick().repeat(5)
        assert asked == list(range(JOBS)) and ctx.get(dut.busy) and not ctx.get(dut.sent.valid)

    run(dut, put, background=[count])


def test_converts():
    converts(FlowTransmit(CONFIG))
