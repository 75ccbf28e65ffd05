# amaranth: UnusedElaboratable=no
"""Classifier alone: sampling of time and keys, holding, the inputs of the hash."""

import pytest
from amaranth import Value
from amaranth.lib import data

from hw.config import NicConfig
from hw.packet.meta import RxMeta
from hw.tcp.classify import Classifier
from hw.tcp.records import Action, SetupRecord
from tests.hw.simulate import run
from tests.hw.tcp.harness import MACS, syn

M32 = (1 << 32) - 1
LISTENER = {"hit": 1, "index": 9, "queue": 4, "mss": 1400, "window": 1000, "wscale": 3, "ecn": 1}


async def start(ctx, dut):
    ctx.set(dut.enable, 1)
    ctx.set(dut.mac[0], MACS[0])
    ctx.set(dut.key_valid, 1)
    ctx.set(dut.key_current, 1)
    ctx.set(dut.key_previous, 2)
    ctx.set(dut.listener, LISTENER)


async def classify(ctx, dut, facts, cycles=None):
    """The request that a packet becomes."""
    ctx.set(Value.cast(dut.i), RxMeta.const(facts.flatten()).as_value().value)
    ctx.set(dut.i_valid, 1)
    await ctx.tick()
    ctx.set(dut.i_valid, 0)
    await ctx.tick().repeat(dut.latency - 1)
    assert ctx.get(dut.o_valid)
    return ctx.get(dut.o)


def ack(**changes):
    return syn(flags=0x10, **changes)


def test_epoch_and_key_follow_the_claim():
    dut = Classifier(NicConfig())

    async def bench(ctx):
        await start(ctx, dut)
        for epoch in (0, 1, 2, 3, 4, M32 - 1, M32):
            ctx.set(dut.epoch, epoch)
            for timestamps, bits in ((1, 2), (0, 1)):
                for behind in range(1 << bits):
                    low = (epoch - behind) % (1 << bits)
                    claimed = low << 32 - bits | 0x12345
                    got = await classify(ctx, dut, ack(timestamps=timestamps, ack=claimed + 1 & M32))
                    assert got.side.action == Action.CHECK
                    assert got.side.hopeless == (behind > 1) and got.hash == (behind <= 1)
                    assert got.inputs.client_iss == 0xFFFFFFFE and got.side.reply.seq == claimed
                    if behind <= 1:
                        assert got.inputs.epoch == (epoch - behind) & M32 and got.key == 1 + behind
                        assert got.side.epoch == got.inputs.epoch & 3
            got = await classify(ctx, dut, syn(ack=1 << 30))
            assert (got.inputs.epoch, got.key, got.side.action) == (epoch, 1, Action.ANSWER)

    run(dut, bench)


def test_our_timestamp_is_never_ahead_of_the_clock():
    dut = Classifier(NicConfig())

    async def bench(ctx):
        await start(ctx, dut)
        for clock in (0, 1, 0x37, 0x38, 0x3F, 0x40, 0x77, 0x78, M32 - 64, M32):
            ctx.set(dut.ts_clock, clock)
            for flags in (0x02, 0xC2):
                got = (await classify(ctx, dut, syn(flags=flags, wscale=8))).side
                tsval = got.reply.tsval
                assert tsval & 63 == (0x38 if flags & 0xC0 else 0x18)
                assert 0 <= (clock - tsval) & M32 < 64 and got.info.ts_clock == clock

    run(dut, bench)


@pytest.mark.parametrize("flags", (0x02, 0x42, 0x82, 0xC2))
def test_ecn_needs_both_bits_the_listener_and_timestamps(flags):
    dut = Classifier(NicConfig())

    async def bench(ctx):
        await start(ctx, dut)
        for ecn in (0, 1):
            for timestamps in (0, 1):
                ctx.set(dut.listener.ecn, ecn)
                got = await classify(ctx, dut, syn(flags=flags, timestamps=timestamps))
                granted = int(flags == 0xC2 and ecn and timestamps)
                assert got.inputs.terms.ecn == got.side.terms.ecn == got.side.reply.ecn == granted

    run(dut, bench)


def test_holding():
    """While `enable` is low nothing moves and nothing is counted twice."""
    dut = Classifier(NicConfig())

    async def bench(ctx):
        await start(ctx, dut)
        facts = [syn(seq=number) for number in range(8)]
        seen, counted = [], 0
        for cycle in range(80):
            enable = cycle % 5 == 0
            ctx.set(dut.enable, enable)
            ctx.set(dut.i_valid, bool(facts))
            if facts:
                ctx.set(Value.cast(dut.i), RxMeta.const(facts[0].flatten()).as_value().value)
            if enable:
                if facts:
                    facts.pop(0)
                if ctx.get(dut.o_valid):
                    seen.append(ctx.get(dut.o.inputs.client_iss))
            counted += ctx.get(dut.counts.setup_syn)
            await ctx.tick()
        assert seen == list(range(8)) and counted == 8

    run(dut, bench)


def test_records_lose_nothing():
    """The completion's fields pass through as they came."""
    dut = Classifier(NicConfig())

    async def bench(ctx):
        await start(ctx, dut)
        facts = syn(vlan=1, vlan_tci=0xABCD, dst_port=7, length=77, payload_offset=3)
        info = (await classify(ctx, dut, facts)).side.info
        for name, _ in data.Layout.cast(info.shape()):
            if hasattr(facts, name):
                assert getattr(info, name) == getattr(facts, name), name
        assert info.listener and info.listener_index == 9

    run(dut, bench)
    assert data.Layout.cast(SetupRecord).size < 900
