# amaranth: UnusedElaboratable=no
"""Verdict alone: each action, with and without room for the reply."""

import pytest

from acceltcp.abi.cookie import COOKIE_PLAIN, COOKIE_TIMESTAMPS
from hw.config import NicConfig
from hw.table.records import Kind
from hw.tcp.records import Action
from hw.tcp.verdict import Verdict
from tests.hw.simulate import run

MAC = 0x5A5A5A5 & (1 << 27) - 1


def cookies(terms, epoch):
    if terms["timestamps"]:
        return COOKIE_TIMESTAMPS.to_int(epoch=epoch & 3, mss_class=terms["mss_class"], mac=MAC)
    granted = {name: terms[name] for name in ("mss_class", "wscale", "sack")}
    return COOKIE_PLAIN.to_int(epoch=epoch & 1, **granted, mac=MAC & (1 << 23) - 1)


async def decide(ctx, dut, side, room=1):
    """What comes out: (dispatch, reply or None, names counted)."""
    ctx.set(dut.reply.ready, room)
    ctx.set(dut.i.p, {"mac": MAC, "side": side})
    ctx.set(dut.i.valid, 1)
    await ctx.tick()
    ctx.set(dut.i.valid, 0)
    assert ctx.get(dut.dispatch.valid)
    counted = [name for name in dut.counts.shape().members if ctx.get(getattr(dut.counts, name))]
    reply = ctx.get(dut.reply.payload) if ctx.get(dut.reply.valid) else None
    got = ctx.get(dut.dispatch.p.dispatch), reply, counted
    await ctx.tick()
    assert not ctx.get(dut.dispatch.valid) and not ctx.get(dut.reply.valid)
    return got


@pytest.mark.parametrize("timestamps", (0, 1))
def test_actions(timestamps):
    dut = Verdict(NicConfig())
    terms = {"timestamps": timestamps, "mss_class": 5, "wscale": 15, "sack": 1, "ecn": timestamps}
    good = cookies(terms, 3)

    async def bench(ctx):
        common = {"terms": terms, "epoch": 3, "queue": 6}
        for action, keep in ((Action.DROP, 0), (Action.PASS, 1)):
            dispatch, reply, counted = await decide(ctx, dut, {**common, "action": action})
            assert (dispatch.keep, dispatch.new, reply, counted) == (keep, 0, None, [])
            assert dispatch.terms.as_value().value == 0

        side = {**common, "action": Action.ANSWER, "reply": {"seq": 5, "ack": 77}}
        dispatch, reply, counted = await decide(ctx, dut, side)
        assert (dispatch.keep, reply.seq, reply.ack, counted) == (0, good, 77, ["setup_syn_ack"])
        dispatch, _, counted = await decide(ctx, dut, side, room=0)
        assert (dispatch.keep, counted) == (0, ["setup_drop_busy"])

        side = {**common, "action": Action.CHECK, "reply": {"seq": good}}
        dispatch, reply, counted = await decide(ctx, dut, side)
        assert (dispatch.keep, dispatch.new, dispatch.queue, reply) == (1, 1, 6, None)
        assert counted == ["setup_cookie_good"] and dispatch.terms.mss_class == 5
        dispatch, _, counted = await decide(ctx, dut, {**side, "deferrable": 1})
        assert dispatch.keep == 0 and counted == ["setup_cookie_good", "setup_deferred"]
        for bad in ({"hopeless": 1}, {"epoch": 2}, *({"reply": {"seq": good ^ 1 << bit}} for bit in range(32))):
            dispatch, _, counted = await decide(ctx, dut, {**side, "deferrable": 1, **bad})
            assert (dispatch.keep, dispatch.new, counted) == (1, 0, ["setup_cookie_bad"])
            assert dispatch.terms.as_value().value == 0

    run(dut, bench)


@pytest.mark.parametrize("action", Action)
def test_held_connection(action):
    """Whatever its segment would have been: it goes to the teardown engine or the splice engine, unless it is bad."""
    dut = Verdict(NicConfig(splices=2048))
    terms = {"timestamps": 1, "mss_class": 5, "wscale": 15, "sack": 1, "ecn": 0}
    good = cookies(terms, 3)

    async def bench(ctx):
        segment = {"flags": 0x11, "window": 500, "payload_length": 9, "timestamps": 1, "options_bad": 0}
        side = {
            "terms": terms, "epoch": 3, "queue": 6, "action": action, "segment": segment,
            "reply": {"seq": good, "ack": 77, "src_port": 80, "tsecr": 1234},
        }  # fmt: skip
        for flow, lookup in (
            (1, {"hit": 1, "kind": Kind.TEARDOWN, "index": 0x5A5}),
            (0, {"hit": 1, "kind": Kind.TEARDOWN, "index": 0x5A5}),
            (1, {"hit": 0, "kind": Kind.TEARDOWN, "index": 0x5A5}),
            (1, {"hit": 1, "kind": Kind.SPLICE, "index": 0x5A5}),
        ):
            found = flow and lookup["hit"] and action != Action.DROP
            taken, spliced = (found and lookup["kind"] == kind for kind in (Kind.TEARDOWN, Kind.SPLICE))
            ctx.set(dut.lookup, lookup)
            ctx.set(dut.reply.ready, 1)
            ctx.set(dut.i.p, {"mac": MAC, "side": {**side, "flow": flow}})
            ctx.set(dut.i.valid, 1)
            await ctx.tick()
            ctx.set(dut.i.valid, 0)
            assert ctx.get(dut.dispatch.valid) and ctx.get(dut.flow.valid) == bool(taken)
            if taken:
                assert not ctx.get(dut.dispatch.p.dispatch.keep) and not ctx.get(dut.reply.valid)
                assert ctx.get(dut.counts.as_value()) == 0
                got = ctx.get(dut.flow.payload)
                assert (got.index, got.answer) == (0x5A5, action == Action.ANSWER)
                assert (got.segment.window, got.segment.flags, got.segment.payload_length) == (500, 0x11, 9)
                assert (got.reply.seq, got.reply.ack, got.reply.tsecr, got.reply.src_port) == (good, 77, 1234, 80)
            elif spliced:
                dispatch, packet = ctx.get(dut.dispatch.p.dispatch), ctx.get(dut.dispatch.p.packet)
                assert ctx.get(dut.dispatch.p.hit) and (dispatch.keep, dispatch.new) == (1, 0)
                assert not ctx.get(dut.reply.valid) and ctx.get(dut.counts.as_value()) == 0
                assert (packet.way, packet.seq, packet.ack) == (0x5A5, 76, good + 1)
                assert (packet.flags, packet.payload_length, packet.timestamps, packet.tsval) == (0x11, 9, 1, 1234)
            else:
                keep = action in (Action.PASS, Action.CHECK)
                assert not ctx.get(dut.dispatch.p.hit)
                assert ctx.get(dut.dispatch.p.dispatch.keep) == keep and ctx.get(dut.reply.valid) == (action == Action.ANSWER)
            await ctx.tick()

    run(dut, bench)
