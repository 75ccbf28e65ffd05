"""FlowRules and FlowOutputs: single operations on a flow, a table by hand from docs/teardown.md.

Every row names the rule, the flow before, what happens, which fields change, and what goes out. Sequences of
operations are what test_teardown_random.py is for.
"""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from amaranth import Module, Value
from amaranth.lib import data

from acceltcp.abi.messages import EventType, FlowState, Status
from hw.config import NicConfig
from hw.packet.meta import ReplyKind
from hw.table.state import StateMemory
from hw.tcp.flow import RttState
from hw.tcp.flow_outputs import FlowOutputs
from hw.tcp.flow_rules import FlowRules, OpKind
from tests.hw.simulate import converts, run

CONFIG = NicConfig(flows=512)
LATENCY = StateMemory.latency
M32 = 0xFFFF_FFFF
INDEX, NOW, SLOT = 0x155, 1000, 3  # 1000 / 256 modulo 4
FREE, DELETING, FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK, TIME_WAIT, LINGER = FlowState
TIMES = {"time_wait": 50, "fin_wait_2": 60, "linger": 20, "max_rto": 400}
OWED, STRAYS = 16, 32
"""Bits of `window` in TIME_WAIT and LINGER."""

# Our FIN is 4999; 101 numbers are not acknowledged. The window is 15 units: 250 << 2 bytes.
FLOW = {
    "snd_end": 5000, "table": 0x1234, "frames": 2, "queue": 3, "port": 0, "timestamps": 1, "wscale": 2, "rto": 30,
    "retry_limit": 3, "rows": [1, 2], "rcv_base": 9000, "state": FIN_WAIT_1, "unacked": 101, "ts_recent": 700,
    "window": 15, "deadline": 1500, "retries": 0, "duplicates": 0, "sending": 0, "rtt": 990,
    "rtt_state": RttState.TIMING.value, "retransmissions": 0, "challenge": 0,
}  # fmt: skip
ROOM = {"event_room": 1, "job_room": 1, "delete_room": 1, "give_room": 1}
SAMPLE = {"rtt": 10, "rtt_state": RttState.SAMPLE.value}
SPOILT = {"rtt_state": RttState.SPOILT.value}
AGAIN = {"sending": 1, "retransmissions": 1, **SPOILT}
CHALLENGED = {"challenge": SLOT}
DONE = {"unacked": 0, **SAMPLE}


class Row(NamedTuple):
    """before: fields other than `FLOW`. after: fields that change. out: what goes out."""

    name: str
    before: dict[str, int]
    op: dict[str, int]
    after: dict[str, int]
    out: dict[str, Any]
    times: dict[str, int] = {}


def seg(flags: str = "A", seq: int = 9000, ack: int = 4899, length: int = 0, tsval: int | None = 700, **more: int) -> dict[str, int]:
    """A segment of the peer. Without more it says nothing new."""
    values = {
        "kind": OpKind.PACKET, "seq": seq & M32, "end": seq + length & M32, "ack": ack & M32, "empty": length == 0, "window": 250,
        "timestamps": tsval is not None, "tsval": (tsval or 0) & M32, "has_ack": "A" in flags, "syn": "S" in flags,
        "fin": "F" in flags, "rst": "R" in flags,
    }  # fmt: skip
    return values | more


def update(ack: int = 4899, **more: int) -> dict[str, int]:
    values = {"kind": OpKind.UPDATE, "snd_end": 5000, "ack": ack, "tsval": 700, "window": 15, "empty": 1}
    return values | more


def ack(number: int = 9000, seq: int = 5000) -> dict[str, Any]:
    return {"reply": (ReplyKind.ACK, seq, number)}


def rst(number: int = 9000, seq: int = 5000) -> dict[str, Any]:
    return {"reply": (ReplyKind.RST, seq, number)}


def over(status: int, state: int = LINGER, flags: int = 0) -> dict[str, int]:
    """What a flow that has ended looks like once its event has gone."""
    return {"state": state, "deadline": NOW + (20 if state == LINGER else 50), "window": status | flags}


def done(status: int) -> dict[str, Any]:
    return {"event": status}


SWEEP, SENT = {"kind": OpKind.SWEEP, "whole": 1}, {"kind": OpKind.SENT, "status": Status.OK}
DUE = {"deadline": NOW}
ENDED = {"unacked": 0, "window": 0, "rtt_state": 0}
WAITING, GONE = {"state": TIME_WAIT, **ENDED}, {"state": LINGER, **ENDED}
STRAYING = {"state": LINGER, **ENDED, "window": Status.PEER_DATA | STRAYS}

ROWS = [
    # What is dropped or challenged.
    Row("1: malformed options", {}, seg("FA", ack=5000, bad=1), {}, {}),
    Row("1: malformed options in TIME_WAIT", WAITING, seg("FA", bad=1), {}, {}),
    Row("1: malformed options in LINGER", STRAYING, seg(bad=1), {}, {}),
    Row("2: RST at rcv_nxt", {}, seg("R"), over(Status.RESET), done(Status.RESET)),
    Row("2: RST needs no timestamps", {}, seg("R", tsval=None), over(Status.RESET), done(Status.RESET)),
    Row("2: RST behind the peer's FIN", {"state": CLOSING}, seg("R", seq=9001), over(Status.RESET), done(Status.RESET)),
    Row("2: RST in the window", {}, seg("R", seq=9001), CHALLENGED, ack()),
    Row("2: RST at the window's end", {}, seg("R", seq=9000 + 65534), CHALLENGED, ack()),
    Row("2: RST beyond the window", {}, seg("R", seq=9000 + 65535), {}, {}),
    Row("2: RST before rcv_nxt", {}, seg("R", seq=8999), {}, {}),
    Row("3: timestamps are missing", {}, seg("FA", ack=5000, tsval=None), {}, {}),
    Row("3: timestamps not in use", {"timestamps": 0}, seg(tsval=None, ack=5000), {"state": FIN_WAIT_2, "deadline": 1060, **DONE}, {}),
    Row("3: PAWS", {}, seg("FA", ack=5000, tsval=699), CHALLENGED, ack()),
    Row("3: PAWS across the wrap", {"ts_recent": 1}, seg("FA", ack=5000, tsval=-1), CHALLENGED, ack()),
    Row("4: SYN", {}, seg("S"), CHALLENGED, ack()),
    Row("4: SYN and ACK", {}, seg("SA", ack=5000), CHALLENGED, ack()),
    Row("4: no second challenge in 256 steps", {"challenge": SLOT}, seg("S"), {}, {}),
    Row("5: no ACK", {}, seg("F"), {}, {}),
    Row("6: beyond the window", {}, seg(seq=9000 + 65535, length=1, ack=5000), {}, ack()),
    Row("6: beyond the window, empty", {}, seg(seq=9000 + 65535, ack=5000), {}, {}),
    Row("6: old data, acknowledgment used", {}, seg(seq=8990, length=10, ack=5000), {"state": FIN_WAIT_2, "deadline": 1060, **DONE}, ack()),
    Row("6: too old to be used", {}, seg(seq=9000 - 65536, length=10, ack=5000), {}, ack()),
    Row("6: as old as may be", {}, seg(seq=9000 - 65535, ack=4949), {"unacked": 51, "deadline": 1030, **SAMPLE}, {}),
    Row("6: keep-alive", {}, seg(seq=8999), {"duplicates": 1}, ack()),
    Row("6: the peer's FIN again", {"state": LAST_ACK}, seg("FA"), {}, ack(9001)),
    Row("7: what was never sent", {}, seg(ack=5001), CHALLENGED, ack()),
    Row("7: very old", {}, seg(ack=5000 - (1 << 20)), CHALLENGED, ack()),
    Row("7: old", {}, seg(ack=5001 - (1 << 20)), {}, {}),
    # Acknowledgments.
    Row("8: one that advances", {"retries": 0, "duplicates": 2}, seg(ack=4949), {"unacked": 51, "deadline": 1030, "duplicates": 0, **SAMPLE}, {}),
    Row("8: the next one is no sample", {"rtt_state": 2}, seg(ack=4949), {"unacked": 51, "deadline": 1030}, {}),
    Row("8: partial, after a time-out", {"retries": 2, **SPOILT}, seg(ack=4949), {"unacked": 51, "deadline": 1030, "retries": 0, "duplicates": 3, "sending": 1, "retransmissions": 1}, {"job": 2}),
    Row("8: partial, nothing sent while sending", {"duplicates": 3, "sending": 1, "rtt_state": 3}, seg(ack=4949), {"unacked": 51, "deadline": 1030}, {}),
    Row("8: first duplicate", {}, seg(), {"duplicates": 1}, {}),
    Row("8: third duplicate", {"duplicates": 2}, seg(), {"duplicates": 3, **AGAIN}, {"job": 1}),
    Row("8: the third without room", {"duplicates": 2}, seg(job_room=0), {}, {}),
    Row("8: the fourth", {"duplicates": 3}, seg(), {}, {}),
    Row("8: with data it is none", {"duplicates": 2}, seg(length=1), {}, {}),
    Row("8: with another window it is none", {"duplicates": 2}, seg(window=251 << 4), {"window": 251}, {}),
    Row("9: window closes", {}, seg(window=0), {"window": 0}, {}),
    Row("9: window is at most 4095 units", {}, seg(window=65535, ack=4900), {"window": 4095, "unacked": 100, "deadline": 1030, **SAMPLE}, {}),
    Row("9: window opens", {"window": 0, "retries": 2}, seg(), {"window": 15, "retries": 0, "deadline": 1030, **AGAIN}, {"job": 2}),
    Row("9: probe answered", {"window": 0, "retries": 3}, seg(window=0), {"retries": 1}, {}),
    Row("9: an old acknowledgment's window does not count", {}, seg(ack=4898, window=0), {}, {}),
    Row("10: TS.Recent", {"unacked": 0, "state": FIN_WAIT_2}, seg(ack=5000, tsval=750), {"ts_recent": 750}, {}),
    Row("10: not from beyond rcv_nxt", {"unacked": 0, "state": FIN_WAIT_2}, seg(ack=5000, seq=9001, tsval=750), {}, {}),
    # States.
    Row("11: FIN_WAIT_1", {}, seg(ack=5000), {"state": FIN_WAIT_2, "deadline": 1060, **DONE}, {}),
    Row("11: CLOSING", {"state": CLOSING}, seg(seq=9001, ack=5000), {**DONE, **over(0, TIME_WAIT)}, done(0)),
    Row("11: CLOSING without TIME_WAIT", {"state": CLOSING}, seg(seq=9001, ack=5000), {**DONE, **over(0)}, done(0), {"time_wait": 0}),
    Row("11: LAST_ACK", {"state": LAST_ACK}, seg(seq=9001, ack=5000), {**DONE, **over(0)}, done(0)),
    Row("12: data for nobody", {}, seg(ack=5000, length=1), {**DONE, **over(Status.PEER_DATA, flags=STRAYS)}, {**rst(), **done(Status.PEER_DATA)}),
    Row("12: with a FIN", {"state": FIN_WAIT_2, "unacked": 0}, seg("FA", ack=5000, length=1), over(Status.PEER_DATA, flags=STRAYS), {**rst(), **done(Status.PEER_DATA)}),
    Row("12: while ours is not acknowledged", {}, seg("FA", length=1), {}, {}),
    Row("12: behind the peer's FIN nothing counts", {"state": CLOSING}, seg(seq=9001, length=1), {}, {}),
    Row("13: FIN_WAIT_1 to CLOSING", {}, seg("FA"), {"state": CLOSING}, ack(9001)),
    Row("13: FIN_WAIT_1 to TIME_WAIT", {}, seg("FA", ack=5000), {**DONE, **over(0, TIME_WAIT)}, {**ack(9001), **done(0)}),
    Row("13: FIN_WAIT_2", {"state": FIN_WAIT_2, "unacked": 0}, seg("FA", ack=5000), over(0, TIME_WAIT), {**ack(9001), **done(0)}),
    Row("13: behind a gap", {"state": FIN_WAIT_2, "unacked": 0}, seg("FA", ack=5000, seq=9001), {}, {}),
    # FLOW_DONE waits.
    Row("done: while a job reads", {"sending": 1}, seg("R"), over(Status.RESET, flags=OWED), {}),
    Row("done: no room for the event", {}, seg("R", event_room=0), over(Status.RESET, flags=OWED), {}),
    Row("done: with the job's end", {**GONE, "window": Status.RESET | OWED, "sending": 1}, SENT, {"window": Status.RESET, "sending": 0}, done(Status.RESET)),
    Row("done: with the sweeper", {**GONE, "window": Status.RESET | OWED}, SWEEP, {"window": Status.RESET}, done(Status.RESET)),
    # TIME_WAIT and LINGER.
    Row("TIME_WAIT: RST", WAITING, seg("R", seq=9001), {}, {}),
    Row("TIME_WAIT: FIN", WAITING, seg("FA", ack=5000), {"deadline": 1050}, ack(9001)),
    Row("TIME_WAIT: old FIN by its timestamp", WAITING, seg("FA", tsval=699), CHALLENGED, ack(9001)),
    Row("TIME_WAIT: data", WAITING, seg(seq=9001, length=1), CHALLENGED, ack(9001)),
    Row("TIME_WAIT: nothing", WAITING, seg(seq=9001), {}, {}),
    Row("TIME_WAIT: outside the window", WAITING, seg(seq=9000), CHALLENGED, ack(9001)),
    Row("TIME_WAIT: SYN, newer timestamp", WAITING, seg("S", seq=1, tsval=701, answer=1), {"state": DELETING}, {"reply": "SYN_ACK", "delete": 1}),
    Row("TIME_WAIT: SYN, same timestamp, newer number", WAITING, seg("S", seq=9002, answer=1), {"state": DELETING}, {"reply": "SYN_ACK", "delete": 1}),
    Row("TIME_WAIT: SYN, same timestamp, old number", WAITING, seg("S", seq=9001, answer=1), CHALLENGED, ack(9001)),
    Row("TIME_WAIT: SYN, old timestamp", WAITING, seg("S", seq=9002, tsval=699, answer=1), CHALLENGED, ack(9001)),
    Row("TIME_WAIT: SYN, timestamps are new", {**WAITING, "timestamps": 0}, seg("S", seq=1, answer=1), {"state": DELETING}, {"reply": "SYN_ACK", "delete": 1}),
    Row("TIME_WAIT: SYN without timestamps", WAITING, seg("S", seq=9002, tsval=None, answer=1), {"state": DELETING}, {"reply": "SYN_ACK", "delete": 1}),
    Row("TIME_WAIT: SYN that nobody listens for", WAITING, seg("S", seq=9002, tsval=701), CHALLENGED, ack(9001)),
    Row("TIME_WAIT: SYN while the event is owed", {**WAITING, "window": OWED}, seg("S", tsval=701, answer=1, event_room=0), CHALLENGED, ack(9001)),
    Row("LINGER: SYN", GONE, seg("S", tsval=701, answer=1), {"state": DELETING}, {"reply": "SYN_ACK", "delete": 1}),
    Row("LINGER: SYN without room to delete", GONE, seg("S", tsval=701, answer=1, delete_room=0), {}, {}),
    Row("LINGER: nothing else is answered", GONE, seg("FA", length=3), {}, {}),
    Row("LINGER: stray", STRAYING, seg("FA", seq=9100, ack=4950, length=3), {}, rst(9104, 4950)),
    Row("LINGER: stray SYN and ACK", STRAYING, seg("SA", seq=9100, ack=4950), {}, rst(9101, 4950)),
    Row("LINGER: stray RST", STRAYING, seg("RA"), {}, {}),
    Row("LINGER: stray without ACK", STRAYING, seg("F"), {}, {}),
    Row("FREE: a segment", {"state": FREE}, seg("FA", ack=5000), {}, {}),
    Row("DELETING: a segment", {"state": DELETING}, seg("FA", ack=5000), {}, {}),
    # Timers.
    Row("timer: not yet", {"deadline": NOW + 1}, SWEEP, {}, {}),
    Row("timer: again", DUE, SWEEP, {"retries": 1, "deadline": NOW + 60, **AGAIN}, {"job": 1}),
    Row("timer: again, late", {"deadline": 500, "retries": 2, "state": LAST_ACK}, SWEEP, {"retries": 3, "deadline": NOW + 240, **AGAIN}, {"job": 1}),
    Row("timer: max_rto", {**DUE, "retries": 4, "retry_limit": 15}, SWEEP, {"retries": 5, "deadline": NOW + 400, **AGAIN}, {"job": 1}),
    Row("timer: limit", {**DUE, "retries": 3, "state": CLOSING}, SWEEP, over(Status.TIMED_OUT), done(Status.TIMED_OUT)),
    Row("timer: limit, while a job reads", {**DUE, "retries": 3, "sending": 1}, SWEEP, {}, {}),
    Row("timer: no room for the job", DUE, {**SWEEP, "job_room": 0}, {}, {}),
    Row("timer: FIN_WAIT_2", {**DUE, "state": FIN_WAIT_2, "unacked": 0}, SWEEP, over(Status.FIN_TIMED_OUT), done(Status.FIN_TIMED_OUT)),
    Row("timer: TIME_WAIT", {**WAITING, **DUE}, SWEEP, {"state": DELETING}, {"delete": 1}),
    Row("timer: LINGER, event owed and no room", {**GONE, **DUE, "window": OWED}, {**SWEEP, "event_room": 0}, {}, {}),
    Row("timer: LINGER, no room to delete", {**GONE, **DUE}, {**SWEEP, "delete_room": 0}, {}, {}),
    # FLOW_UPDATE and ends of jobs.
    Row("update: acknowledgment", {}, update(4949), {"unacked": 51, "deadline": 1030, **SAMPLE}, {"found": 1}),
    Row("update: counts no duplicates", {"duplicates": 2}, update(), {}, {"found": 1}),
    Row("update: FIN, without an ACK", {}, update(5000, fin=1), {**DONE, **over(0, TIME_WAIT)}, {"found": 1, **done(0)}),
    Row("update: window and TS.Recent", {}, update(window=9, tsval=800), {"window": 9, "ts_recent": 800}, {"found": 1}),
    Row("update: forbidden acknowledgment", {}, update(5001, window=9), {}, {"found": 1}),
    Row("update: abort", {}, update(5000, abort=1), over(Status.ABORTED, flags=STRAYS), {"found": 1, **done(Status.ABORTED)}),
    Row("update: another flow", {}, update(5000, snd_end=5001, abort=1), {}, {"found": 0}),
    Row("update: over", WAITING, update(5000, abort=1), {}, {"found": 0}),
    Row("update: free", {"state": FREE}, update(5000, abort=1), {}, {"found": 0}),
    Row("job: ended", {"sending": 1}, SENT, {"sending": 0}, {}),
    Row("job: cannot be read", {"sending": 1}, {**SENT, "status": Status.BAD_ADDRESS}, {"sending": 0, **over(Status.BAD_ADDRESS)}, done(Status.BAD_ADDRESS)),
    Row("job: cannot be read, too late to matter", {**WAITING, "sending": 1}, {**SENT, "status": Status.BAD_ADDRESS}, {"sending": 0}, {}),
    # Entries without a flow.
    Row("free: given", {"state": FREE}, SWEEP, {"sending": 1}, {"free": 1}),
    Row("free: given already", {"state": FREE, "sending": 1}, SWEEP, {}, {}),
    Row("free: nobody wants it", {"state": FREE}, {**SWEEP, "give_room": 0}, {}, {}),
    Row("deleting: the table still has it", {"state": DELETING}, SWEEP, {}, {}),
    Row("deleting: the table has let go", {"state": DELETING}, {"kind": OpKind.DELETED}, {"duplicates": 1}, {}),
    Row("deleting: a first visit", {"state": DELETING, "duplicates": 1}, SWEEP, {"duplicates": 2}, {}),
    Row("deleting: found by a search", {"state": DELETING, "duplicates": 2}, {**SWEEP, "whole": 0}, {}, {}),
    Row("deleting: a whole round later", {"state": DELETING, "duplicates": 2}, SWEEP, dict.fromkeys(FLOW, 0) | {"rows": [0, 0]}, {"freed": 1}),
    Row("clear", {}, {"kind": OpKind.CLEAR}, dict.fromkeys(FLOW, 0) | {"rows": [0, 0]}, {}),
    Row("read", DUE, {"kind": OpKind.READ}, {}, {}),
]  # fmt: skip


def plain(state: Any) -> dict[str, Any]:
    values = {name: state[name] for name, _ in state.shape()}
    return {name: list(v) if name == "rows" else getattr(v, "value", v) for name, v in values.items()}


@pytest.fixture(scope="module")
def results() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """All rows in one simulation: (state behind it, what went out)."""
    m = Module()
    m.submodules.rules = rules = FlowRules(CONFIG)
    m.submodules.outputs = outputs = FlowOutputs(CONFIG, LATENCY)
    m.d.comb += [
        outputs.i_op.eq(rules.op),
        outputs.i_state.eq(rules.next),
        outputs.i_act.eq(rules.act),
        outputs.i_index.eq(INDEX),
    ]
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    queues = ("replies", "events", "jobs", "delete", "free")

    async def bench(ctx):
        ctx.set(outputs.window, 0x7777)
        ctx.set(outputs.ts_clock, 4242)
        for dut in (rules, outputs):
            ctx.set(dut.now, NOW)
        # What the segment's SYN-ACK would be.
        ctx.set(outputs.reply, {"kind": ReplyKind.SYN_ACK, "seq": 0x5EED, "ack": 77, "src_port": 80, "window": 1})
        for name in queues:
            ctx.set(getattr(outputs, name).ready, 1)
        await ctx.tick().repeat(LATENCY + 2)
        for row in ROWS:
            for name, value in (TIMES | row.times).items():
                ctx.set(getattr(rules, name), value)
            state, op = FLOW | row.before, ROOM | row.op
            ctx.set(rules.early_op, op)
            ctx.set(rules.early_state, state)
            await ctx.tick()
            ctx.set(rules.early_op, {})
            ctx.set(rules.early_state, {})
            ctx.set(rules.op, op)
            ctx.set(rules.state, state)
            ctx.set(outputs.i_valid, 1)
            after = plain(ctx.get(rules.next)) if ctx.get(rules.write) else state
            await ctx.tick()
            ctx.set(outputs.i_valid, 0)
            out: dict[str, Any] = {}
            if ctx.get(outputs.freed):
                out["freed"] = 1
            if ctx.get(outputs.updated):
                out["found"] = ctx.get(outputs.update_found)
            for _ in range(8):
                for name in queues:
                    stream = getattr(outputs, name)
                    if ctx.get(stream.valid):
                        assert name not in out, (row.name, name)
                        out[name] = data.Const(stream.p.shape(), ctx.get(Value.cast(stream.payload)))
                await ctx.tick()
            found.append((after, out))

    run(m, bench)
    return found


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda number: ROWS[number].name)
def test_row(results, number):
    row = ROWS[number]
    after, out = results[number]
    before = FLOW | row.before
    changed = {name: value for name, value in after.items() if value != before[name]}
    assert changed == {name: value for name, value in row.after.items() if value != before[name]}
    names = {"reply": "replies", "event": "events", "job": "jobs"}
    assert out.keys() == {names.get(name, name) for name in row.out}
    if "reply" in row.out:
        check_reply(out["replies"], row.out["reply"], after)
    if "event" in row.out:
        event = out["events"].event
        assert out["events"].queue == event.queue == 3
        assert (event.type, event.status, event.value) == (EventType.FLOW_DONE, row.out["event"], INDEX)
        rtt = after["rtt"] if after["rtt_state"] == RttState.SAMPLE.value else 0
        assert (event.rtt, event.retransmissions) == (rtt, after["retransmissions"])
    if "job" in row.out:
        job = out["jobs"]
        assert (job.index, job.table, job.frames, job.port, job.snd_end) == (INDEX, 0x1234, 2, 0, 5000)
        assert (job.left, job.limit, job.room) == (after["unacked"], row.out["job"], after["window"])
        rcv_nxt = 9001 if after["state"] in (CLOSING, LAST_ACK) else 9000
        assert (job.ack, job.timestamps, job.tsecr) == (rcv_nxt, 1, after["ts_recent"])
    if "delete" in row.out:
        assert (list(out["delete"].rows), out["delete"].index) == ([1, 2], INDEX)
    if "free" in row.out:
        assert out["free"].index == INDEX
    for name in ("freed", "found"):
        assert out.get(name) == row.out.get(name)


def check_reply(reply: data.Const, want: Any, after: dict[str, Any]) -> None:
    assert isinstance(reply, data.Const) and reply.src_port == 80
    if want == "SYN_ACK":
        assert (reply.kind, reply.seq, reply.ack, reply.window) == (ReplyKind.SYN_ACK, 0x5EED, 77, 1)
        return
    assert (reply.kind, reply.seq, reply.ack) == want
    assert (reply.window, reply.tsval, reply.tsecr) == (0x7777, 4242, after["ts_recent"])
    assert reply.timestamps == after["timestamps"]


def test_converts():
    converts(FlowRules(CONFIG))
    converts(FlowOutputs(CONFIG, LATENCY))
