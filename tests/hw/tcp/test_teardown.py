# amaranth: UnusedElaboratable=no
"""The teardown engine, rule by rule of docs/teardown.md; expected values by hand."""

from acceltcp.abi.messages import EventType, Status
from hw.packet.meta import ReplyKind
from hw.tcp.flow import State
from tests.hw.tcp.flow_bench import ACK, FIN, PSH, RST, SYN, FlowBench


def scenario(function=None, **times):
    """Runs the decorated coroutine as a test."""

    def wrap(function):
        def test():
            FlowBench(**times).run(function)

        test.__doc__, test.__name__ = function.__doc__, function.__name__
        return test

    return wrap(function) if function else wrap


def is_ack(reply, ack=9000, seq=5000):
    assert reply.kind == ReplyKind.ACK
    assert (reply.seq, reply.ack, reply.window, reply.tsval) == (seq, ack, 0x7777, 4242)
    return True


def done(bench, index, status):
    (request,) = bench.taken("events")
    event = request.event
    assert (event.type, event.status, event.value) == (EventType.FLOW_DONE, status, index)
    assert request.queue == event.queue == 3
    return event


@scenario
async def test_active_close(ctx, bench):
    index = await bench.install(ctx)
    assert await bench.state(ctx, index) == State.FIN_WAIT_1
    await bench.segment(ctx, index)
    assert await bench.state(ctx, index) == State.FIN_WAIT_2
    await bench.segment(ctx, index, ACK | FIN, tsval=702)
    (reply,) = bench.taken("replies")
    assert is_ack(reply, 9001) and reply.tsecr == 702 and reply.timestamps and reply.dst_port == 1000 + index
    assert done(bench, index, Status.OK).retransmissions == 0
    assert await bench.state(ctx, index) == State.TIME_WAIT
    # The FIN again: answered, and TIME_WAIT begins anew.
    await bench.steps(ctx, 40)
    await bench.segment(ctx, index, ACK | FIN, tsval=703)
    assert is_ack(*bench.taken("replies"), 9001)
    await bench.steps(ctx, 40)
    assert await bench.state(ctx, index) == State.TIME_WAIT and not bench.deletes
    await bench.steps(ctx, 30)
    (delete,) = bench.taken("delete")
    assert delete.index == index and list(delete.rows) == [1, 2]
    assert await bench.state(ctx, index) == State.DELETING
    await bench.steps(ctx, 20)
    assert await bench.state(ctx, index) == State.DELETING, "the table still has it"
    await bench.deleted(ctx, index)
    await bench.steps(ctx, 30)
    assert await bench.record(ctx, 0) is None
    assert not bench.events and bench.counted["flow_closed"] == 1 and bench.counted["flow_acks"] == 2


@scenario
async def test_all_in_one_segment(ctx, bench):
    """FIN that acknowledges ours."""
    index = await bench.install(ctx)
    await bench.segment(ctx, index, ACK | FIN)
    assert is_ack(*bench.taken("replies"), 9001)
    done(bench, index, Status.OK)
    assert await bench.state(ctx, index) == State.TIME_WAIT


@scenario
async def test_simultaneous_close(ctx, bench):
    index = await bench.install(ctx)
    await bench.segment(ctx, index, ACK | FIN, ack=4899)
    assert is_ack(*bench.taken("replies"), 9001)
    assert await bench.state(ctx, index) == State.CLOSING and not bench.events
    await bench.segment(ctx, index, ACK | FIN, ack=4899)  # again
    assert is_ack(*bench.taken("replies"), 9001)
    await bench.segment(ctx, index, seq=9001)
    done(bench, index, Status.OK)
    assert await bench.state(ctx, index) == State.TIME_WAIT and not bench.replies


@scenario
async def test_passive_close(ctx, bench):
    index = await bench.install(ctx, state=State.LAST_ACK)
    await bench.segment(ctx, index, ACK | FIN, ack=4899)
    assert is_ack(*bench.taken("replies"), 9001)
    await bench.segment(ctx, index, seq=9001, ack=4950)
    assert await bench.state(ctx, index) == State.LAST_ACK
    await bench.segment(ctx, index, seq=9001)
    done(bench, index, Status.OK)
    assert await bench.state(ctx, index) == State.LINGER
    for flags in (ACK, ACK | FIN, ACK | PSH, RST, SYN):
        await bench.segment(ctx, index, flags, length=5)
    assert not bench.replies and not bench.events
    await bench.steps(ctx, 35)
    assert [delete.index for delete in bench.taken("delete")] == [index]


@scenario(time_wait=0)
async def test_no_time_wait(ctx, bench):
    index = await bench.install(ctx)
    await bench.segment(ctx, index, ACK | FIN)
    done(bench, index, Status.OK)
    assert await bench.state(ctx, index) == State.LINGER


@scenario
async def test_resets(ctx, bench):
    """RFC 5961 section 3."""
    index = await bench.install(ctx)
    await bench.segment(ctx, index, RST, seq=9001, tsval=None)
    assert is_ack(*bench.taken("replies"))
    for seq in (9002, 8999, 9000 + 65536, 9000 - 70000):
        await bench.segment(ctx, index, RST, seq=seq, tsval=None)
    assert not bench.replies and await bench.state(ctx, index) == State.FIN_WAIT_1
    await bench.steps(ctx, 1)
    await bench.segment(ctx, index, RST | ACK, seq=9000, tsval=None)
    done(bench, index, Status.RESET)
    assert await bench.state(ctx, index) == State.LINGER and not bench.replies
    assert bench.counted["flow_challenges"] == 1 and bench.counted["flow_reset"] == 1


@scenario
async def test_what_is_not_believed(ctx, bench):
    """Malformed options, missing and old timestamps, SYN, no ACK: nothing changes."""
    index = await bench.install(ctx, rto=3000)
    challenge = {"syn": (SYN, {"tsval": 800}), "paws": (ACK, {"tsval": 699}), "future": (ACK, {"ack": 5001})}
    for flags, fields in challenge.values():
        await bench.segment(ctx, index, flags, **fields)
        assert is_ack(*bench.taken("replies"))
        await bench.segment(ctx, index, flags, **fields)
        assert not bench.replies, "one challenge in 256 timer steps"
        await bench.steps(ctx, 256)
    for flags, fields in ((ACK, {"bad": 1}), (ACK, {"tsval": None}), (PSH, {"length": 5}), (FIN, {})):
        await bench.segment(ctx, index, flags, **fields)
    assert not bench.replies and await bench.state(ctx, index) == State.FIN_WAIT_1
    found = await bench.record(ctx, index)
    assert found[1].unacked == 101 and found[1].ts_recent == 700
    plain = await bench.install(ctx, timestamps=0)
    await bench.segment(ctx, plain, tsval=None)
    assert await bench.state(ctx, plain) == State.FIN_WAIT_2


@scenario
async def test_old_segments_are_acknowledged(ctx, bench):
    index = await bench.install(ctx)
    for fields in ({"seq": 8990, "length": 10}, {"seq": 8999}, {"seq": 8980, "length": 5}):
        await bench.segment(ctx, index, ack=4899, **fields)
        assert is_ack(*bench.taken("replies"))
    await bench.segment(ctx, index, seq=8990, ack=4899)  # neither data nor a keep-alive
    assert not bench.replies
    await bench.segment(ctx, index, seq=8990, length=5)  # old, but its acknowledgment counts
    assert is_ack(*bench.taken("replies")) and await bench.state(ctx, index) == State.FIN_WAIT_2
    await bench.segment(ctx, index, ACK | FIN, seq=8990, length=10)  # old data and a new FIN
    assert is_ack(*bench.taken("replies"), 9001)
    done(bench, index, Status.OK)


@scenario
async def test_data_for_nobody(ctx, bench):
    """Ignored with its FIN while ours are under way, then answered with RST."""
    index = await bench.install(ctx)
    await bench.segment(ctx, index, ACK | FIN, ack=4899, length=10)
    assert not bench.replies and await bench.state(ctx, index) == State.FIN_WAIT_1
    await bench.segment(ctx, index, ACK, seq=8990, length=20)  # half old, acknowledges everything
    (reply,) = bench.taken("replies")
    assert reply.kind == ReplyKind.RST and (reply.seq, reply.ack) == (5000, 9000)
    done(bench, index, Status.PEER_DATA)
    await bench.segment(ctx, index, ACK | PSH, seq=9000, length=20, ack=5000)
    (reply,) = bench.taken("replies")
    assert reply.kind == ReplyKind.RST and (reply.seq, reply.ack) == (5000, 9020)
    assert bench.counted["flow_resets_sent"] == 2 and bench.counted["flow_peer_data"] == 1


@scenario
async def test_time_outs(ctx, bench):
    """30, 60, 120 steps, then given up after 240; the sweeper may be up to a lap late each time."""
    index = await bench.install(ctx)
    left = 30
    for retry in range(3):
        await bench.steps(ctx, left - 1)
        assert not bench.jobs, retry
        await bench.steps(ctx, 10)
        (job,) = bench.taken("jobs")
        assert (job.index, job.left, job.limit, job.frames, job.table, job.ack) == (index, 101, 1, 0, 0x1234, 9000)
        # Nothing more while the frames are being read.
        found = (await bench.record(ctx, index))[1]
        assert (found.sending, found.retries) == (1, retry + 1)
        left = found.deadline
        assert 0 <= (30 << retry + 1) - left <= 10
        await bench.sent(ctx, index)
        assert (await bench.record(ctx, index))[1].sending == 0
    await bench.steps(ctx, left - 1)
    assert not bench.events
    await bench.steps(ctx, 10)
    done(bench, index, Status.TIMED_OUT)
    assert not bench.jobs and await bench.state(ctx, index) == State.LINGER
    assert bench.counted["flow_retransmissions"] == 3


@scenario(max_rto=50)
async def test_largest_time_out(ctx, bench):
    index = await bench.install(ctx, retry_limit=15)
    for _ in range(6):
        await bench.steps(ctx, 62)
        assert len(bench.taken("jobs")) == 1
        await bench.sent(ctx, index)


@scenario
async def test_three_duplicates(ctx, bench):
    """RFC 5681: the third repeats the first frame; segments that are no duplicates do not count."""
    index = await bench.install(ctx, frames=3, unacked=400, rto=3000)
    duplicate = {"ack": 4600}
    await bench.segment(ctx, index, **duplicate)  # also takes the window: 250 << 2
    for _ in range(2):
        await bench.segment(ctx, index, **duplicate)
    await bench.segment(ctx, index, window=300, **duplicate)
    await bench.segment(ctx, index, window=300, length=5, **duplicate)
    await bench.segment(ctx, index, window=300, ack=4599)
    assert not bench.jobs
    await bench.segment(ctx, index, window=300, **duplicate)
    (job,) = bench.taken("jobs")
    assert (job.left, job.limit) == (400, 1)
    await bench.sent(ctx, index)
    for _ in range(4):
        await bench.segment(ctx, index, window=300, **duplicate)
    assert not bench.jobs
    # A partial acknowledgment: two more.
    await bench.segment(ctx, index, ack=4700, window=300)
    (job,) = bench.taken("jobs")
    assert (job.left, job.limit) == (300, 2)
    await bench.sent(ctx, index)
    await bench.segment(ctx, index, window=300)
    assert await bench.state(ctx, index) == State.FIN_WAIT_2 and not bench.jobs


@scenario
async def test_back_to_back(ctx, bench):
    """Sixteen segments of one flow in sixteen cycles: as if there were time between them."""
    index = await bench.install(ctx, frames=15, unacked=1600, rto=3000)
    other = await bench.install(ctx)
    acks = [bench.packet(index, ack=3400 + 100 * k, tsval=701 + k) for k in range(1, 9)]
    duplicates = [bench.packet(index, ack=4200, tsval=710)] * 3
    rest = [bench.packet(other, ACK | FIN), bench.packet(index, ack=4300, tsval=709), bench.packet(index, ack=4999, tsval=711)]
    await bench.send(ctx, *acks, *duplicates, *rest)
    (job,) = bench.taken("jobs")
    assert (job.index, job.left, job.tsecr) == (index, 800, 710)
    found = (await bench.record(ctx, index))[1]
    assert (found.unacked, found.ts_recent) == (1, 711)
    assert bench.counted["flow_packets"] == 14
    done(bench, other, Status.OK)


@scenario
async def test_rtt(ctx, bench):
    index = await bench.install(ctx)
    await bench.steps(ctx, 17)
    await bench.segment(ctx, index, ACK | FIN)
    assert done(bench, index, Status.OK).rtt == 17
    index = await bench.install(ctx, snd_end=6000)
    await bench.segment(ctx, index, ACK | FIN, ack=6000)
    assert done(bench, index, Status.OK).rtt == 1
    index = await bench.install(ctx)
    await bench.steps(ctx, 40)
    assert len(bench.taken("jobs")) == 1
    await bench.segment(ctx, index, ACK | FIN)
    assert not bench.events, "host memory is being read"
    await bench.sent(ctx, index)
    event = done(bench, index, Status.OK)
    assert (event.rtt, event.retransmissions) == (0, 1)


@scenario
async def test_zero_window(ctx, bench):
    index = await bench.install(ctx, frames=3, unacked=400, retry_limit=2)
    await bench.segment(ctx, index, ack=4700, window=0)
    for wait in (30, 60, 120, 120, 120):
        waited = 0
        while not bench.taken("jobs"):
            await bench.steps(ctx, 1)
            waited += 1
        assert wait - 1 <= waited <= wait + 10, "probes become rarer, and never stop"
        await bench.sent(ctx, index)
        await bench.segment(ctx, index, ack=4700, window=0)
    assert not bench.events
    await bench.segment(ctx, index, ack=4700, window=100)
    (job,) = bench.taken("jobs")
    assert (job.left, job.limit, job.room) == (300, 2, 400 // 64)


@scenario
async def test_fin_wait_2_ends(ctx, bench):
    index = await bench.install(ctx)
    await bench.segment(ctx, index)
    await bench.steps(ctx, 50)
    assert not bench.events
    await bench.steps(ctx, 20)
    done(bench, index, Status.FIN_TIMED_OUT)


@scenario
async def test_reuse(ctx, bench):
    """RFC 6191, with and without timestamps; only for a SYN that a listener answers."""
    for timestamps in (1, 0):
        index = await bench.install(ctx, timestamps=timestamps)
        times = {"tsval": 702 if timestamps else None}
        await bench.segment(ctx, index, ACK | FIN, **times)
        bench.taken("replies")
        bench.taken("events")
        await bench.steps(ctx, 20)
        old = {"tsval": 702, "seq": 9001} if timestamps else {"tsval": None, "seq": 9001}
        await bench.segment(ctx, index, SYN, answer=1, **old)
        assert is_ack(*bench.taken("replies"), 9001)
        new = {"tsval": 703, "seq": 5} if timestamps else {"tsval": None, "seq": 9002}
        await bench.segment(ctx, index, SYN, answer=0, **new)
        assert await bench.state(ctx, index) == State.TIME_WAIT and not bench.deletes
        bench.taken("replies")
        await bench.segment(ctx, index, SYN, answer=1, **new)
        (reply,) = bench.taken("replies")
        assert reply.kind == ReplyKind.SYN_ACK and reply.seq == 0x5EED and reply.tsval == 0xAAAA
        assert [delete.index for delete in bench.taken("delete")] == [index]
        await bench.segment(ctx, index, SYN, answer=1, **new)
        assert not bench.replies and not bench.deletes
        await bench.deleted(ctx, index)
    assert bench.counted["flow_reused"] == 2


@scenario
async def test_time_wait_strangers(ctx, bench):
    index = await bench.install(ctx)
    await bench.segment(ctx, index, ACK | FIN)
    bench.taken("replies")
    done(bench, index, Status.OK)
    await bench.segment(ctx, index, RST, seq=9001)  # RFC 1337
    await bench.segment(ctx, index, seq=9001)
    assert not bench.replies and await bench.state(ctx, index) == State.TIME_WAIT
    await bench.segment(ctx, index, seq=9001, length=3)
    assert is_ack(*bench.taken("replies"), 9001)
    await bench.segment(ctx, index, seq=9001, length=3)
    assert not bench.replies


@scenario
async def test_updates(ctx, bench):
    index = await bench.install(ctx, frames=1)
    assert await bench.update(ctx, index, snd_end=5001) == Status.NOT_FOUND
    assert await bench.update(ctx, index + 1) == Status.NOT_FOUND
    assert await bench.update(ctx, index, ack=4950, ts_recent=900, window=9) == Status.OK
    found = (await bench.record(ctx, index))[1]
    assert (found.unacked, found.ts_recent, found.window) == (50, 900, 9)
    assert await bench.update(ctx, index, ack=4949, ts_recent=899) == Status.OK
    found = (await bench.record(ctx, index))[1]
    assert (found.unacked, found.ts_recent) == (50, 900)
    assert await bench.update(ctx, index, ack=4950, fin=1) == Status.OK
    assert await bench.state(ctx, index) == State.CLOSING and not bench.replies
    assert await bench.update(ctx, index, ack=5000) == Status.OK
    done(bench, index, Status.OK)
    assert await bench.update(ctx, index, ack=5000) == Status.NOT_FOUND
    other = await bench.install(ctx)
    await ctx.tick().repeat(8)
    assert await bench.update(ctx, other, abort=1) == Status.OK
    done(bench, other, Status.ABORTED)
    await bench.segment(ctx, other, ACK | PSH, length=1)
    assert [reply.kind for reply in bench.taken("replies")] == [ReplyKind.RST]


@scenario
async def test_faults(ctx, bench):
    index = await bench.install(ctx, sending=1)
    await bench.segment(ctx, index, RST)
    assert await bench.state(ctx, index) == State.LINGER and not bench.events, "host memory is being read"
    await bench.sent(ctx, index, Status.BAD_ADDRESS)
    done(bench, index, Status.RESET)
    index = await bench.install(ctx, sending=1)
    await bench.sent(ctx, index, Status.BAD_ADDRESS)
    done(bench, index, Status.BAD_ADDRESS)
    assert bench.counted["flow_faults"] == 1 and bench.counted["flow_reset"] == 1


@scenario
async def test_no_room_for_events(ctx, bench):
    """Fifty flows end while nobody takes events: each is told later, once."""
    bench.accept["events"] = False
    indices = [await bench.install(ctx, rto=4000) for _ in range(50)]
    for index in indices:
        await bench.segment(ctx, index, RST)
    await bench.steps(ctx, 2)
    bench.accept["events"] = True
    await bench.steps(ctx, 30)
    told = [request.event.value for request in bench.taken("events")]
    assert sorted(told) == sorted(indices)
    await bench.steps(ctx, 30)
    assert not bench.events and len(bench.deletes) == 50


@scenario
async def test_no_room_for_jobs(ctx, bench):
    """Forty time-outs while the transmitter is busy: none is lost."""
    bench.accept["jobs"] = False
    indices = [await bench.install(ctx) for _ in range(40)]
    await bench.steps(ctx, 45)
    bench.accept["jobs"] = True
    await bench.steps(ctx, 25)
    jobs = [job.index for job in bench.taken("jobs")]
    assert sorted(jobs) == sorted(indices)


@scenario
async def test_hold(ctx, bench):
    """With `hold` no event and no job comes out; afterwards they do."""
    ctx.set(bench.dut.hold, 1)
    await ctx.tick().repeat(2)
    index = await bench.install(ctx)
    await bench.segment(ctx, index, RST)
    assert ctx.get(bench.dut.idle) and not bench.events
    ctx.set(bench.dut.hold, 0)
    await ctx.tick().repeat(5)
    done(bench, index, Status.RESET)


@scenario
async def test_indices_come_round(ctx, bench):
    """All 512 flows, in use, gone and in use again."""
    for count in (512, 40):
        indices = [await bench.install(ctx, rto=8000) for _ in range(count)]
        assert sorted(set(indices)) == sorted(indices) and max(indices) < 512
        await ctx.tick().repeat(2000)
        assert ctx.get(bench.dut.free.valid) == (count < 512)
        for index in indices:
            await bench.segment(ctx, index, RST)
        await bench.steps(ctx, 30)
        bench.taken("events")
        assert sorted(delete.index for delete in bench.taken("delete")) == sorted(indices)
        for index in indices:
            await bench.put(ctx, bench.dut.deleted, index)
        await bench.steps(ctx, 40)


@scenario
async def test_giving_back(ctx, bench):
    """An index that is not used after all is free again."""
    free = bench.dut.free
    seen = set()
    for _ in range(1200):
        ctx.set(free.ready, 1)
        (index,) = await ctx.tick().sample(free.p.index).until(free.valid)
        ctx.set(free.ready, 0)
        seen.add(index)
        await bench.put(ctx, bench.dut.installs, index)
    assert len(seen) >= 64
    assert await bench.record(ctx, 0) is None


@scenario
async def test_find(ctx, bench):
    indices = sorted([await bench.install(ctx, snd_end=10_000 * k) for k in range(1, 100)])
    found, at = [], 0
    while at < 512 and (entry := await bench.record(ctx, at)) is not None:
        found.append(entry[0])
        record = entry[1]
        assert (record.table, record.frames, record.queue, record.rto) == (0x1234 << 8, 1, 3, 30)
        assert record.deadline <= 30 and record.retry_limit == 3
        at = entry[0] + 1
    assert found == indices


@scenario
async def test_quiet_without_flows(ctx, bench):
    """Nothing to do: no activity, also while time passes."""
    await bench.rest(ctx)
    assert not ctx.get(bench.dut.busy)
    await bench.steps(ctx, 3)
    assert not ctx.get(bench.dut.busy)
