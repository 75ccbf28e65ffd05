"""`RxCrossing` and `TxCrossing` between clocks of odd ratios: whole packets, and links that come and go."""

import random

import pytest
from amaranth import Signal, Value
from amaranth.lib import data

from hw.shell.mac_crossing import RxCrossing, TxCrossing
from hw.stream.beat import BeatLayout

from ..simulate import always, beats, packets, seeds, sometimes
from .clocks import collect, feed, run


def some_packets(seed, count, width):
    """Packets of one beat to nine, no two alike."""
    rng = random.Random(seed)
    sizes = [rng.choice([4, width, width + 1, 3 * width, rng.randint(4, 9 * width)]) for _ in range(count)]
    return [number.to_bytes(2, "big") + rng.randbytes(size - 2) for number, size in enumerate(sizes)]


def split(values, width):
    """(packet, bad) of each packet."""
    layout, out, current = BeatLayout(width), [], []
    for value in values:
        current.append(value)
        beat = data.Const(layout, value)
        if beat.last:
            (packet,) = packets(current, width)
            out.append((packet, bool(beat.err)))
            current = []
    assert not current
    return out


def clocks_of(core, mac):
    return {"sync": core, "port": core, "mac": mac}


def simulate_rx(dut, sent, ratio, go, *, width, quiet=60):
    """What the core sees of `sent`, as `split`; the run ends `quiet` cycles after the last beat."""
    got, over = [], []
    clocks = clocks_of(*ratio)

    async def sender(ctx):
        await feed(ctx, dut.i, [beat for packet in sent for beat in beats(packet, width)], "mac", go)
        await ctx.tick("sync").repeat(quiet)
        over.append(True)

    async def receiver(ctx):
        got.extend(await collect(ctx, dut.o, "sync", lambda taken: over))

    run(dut, clocks, sender, receiver)
    return split([value for _, value in got], width)


@pytest.mark.parametrize("ratio", [(4.0, 3.1), (3.1, 4.0), (3.1, 3.1)])
@pytest.mark.parametrize("seed", seeds(3))
def test_rx_with_room_loses_nothing(ratio, seed):
    sent = some_packets(seed, 60, 8)
    # At random gaps a slower core keeps up.
    got = simulate_rx(RxCrossing(8, 64, name="rx"), sent, ratio, sometimes(seed, 0.6), width=8)
    assert got == [(packet, False) for packet in sent]


@pytest.mark.parametrize("seed", seeds(5))
def test_rx_without_room_marks_what_it_cuts(seed):
    """The MAC is much faster than the core: every packet is either whole and good or there is a bad one instead."""
    sent = some_packets(seed, 120, 8)
    got = simulate_rx(RxCrossing(8, 16, name="rx"), sent, (10.0, 2.3), always, width=8, quiet=100)
    good = [packet for packet, bad in got if not bad]
    assert 0 < len(good) < len(sent)
    # Where good packets follow each other, they did so when sent: between others there is a bad one.
    at, lost = 0, False
    for packet, bad in [*got, (None, False)]:
        if bad:
            lost = True
            continue
        place = sent.index(packet, at) if packet else len(sent)
        assert lost or place == at, "a packet is missing and nothing says so"
        at, lost = place + 1, False


def test_rx_ends_a_packet_when_the_link_goes_down():
    dut, down = RxCrossing(8, 16, name="rx"), Signal()
    got, over = [], []

    async def sender(ctx):
        await feed(ctx, dut.i, beats(bytes(80), 8)[:6], "mac")
        await ctx.tick("sync").repeat(30)
        ctx.set(down, 1)
        await ctx.tick("sync").repeat(6)
        await feed(ctx, dut.i, beats(bytes(80), 8)[6:], "mac")
        ctx.set(down, 0)
        await ctx.tick("sync").repeat(2)
        await feed(ctx, dut.i, beats(b"next" * 4, 8), "mac")
        await ctx.tick("sync").repeat(30)
        over.append(True)

    async def receiver(ctx):
        got.extend(await collect(ctx, dut.o, "sync", lambda taken: over))

    run(dut, clocks_of(4.0, 3.1), sender, receiver, reset={"mac": down, "port": down})
    (cut, bad), whole = split([value for _, value in got], 8)
    assert bad and len(cut) == 49
    assert whole == (b"next" * 4, False)


def test_rx_begins_with_a_whole_packet():
    """A reset ends within a packet: what is left of it is no packet."""
    dut, down = RxCrossing(8, 16, name="rx"), Signal(init=1)
    got, over = [], []

    async def sender(ctx):
        values = beats(bytes(80), 8)
        await feed(ctx, dut.i, values[:6], "mac")
        ctx.set(down, 0)
        await feed(ctx, dut.i, [*values[6:], *beats(b"next" * 4, 8)], "mac")
        await ctx.tick("sync").repeat(30)
        over.append(True)

    async def receiver(ctx):
        got.extend(await collect(ctx, dut.o, "sync", lambda taken: over))

    run(dut, clocks_of(4.0, 3.1), sender, receiver, reset={"mac": down, "port": down})
    assert split([value for _, value in got], 8) == [(b"next" * 4, False)]


@pytest.mark.parametrize("ratio", [(4.0, 3.1), (3.1, 4.0), (3.1, 3.1), (5.0, 6.4)])
@pytest.mark.parametrize("pauses", [(0.3, 1), (1, 0.5), (1, 1)])
def test_tx_has_no_gap_in_a_packet(ratio, pauses):
    dut = TxCrossing(8, 72, name="tx")
    sent = some_packets(7, 60, 8)
    expected = [beat for packet in sent for beat in beats(packet, 8)]
    got, gaps, inside = [], [], False

    async def sender(ctx):
        await feed(ctx, dut.i, expected, "sync", sometimes(1, pauses[0]))

    async def receiver(ctx):
        nonlocal inside
        go, last = sometimes(2, pauses[1]), dut.o.p.last
        while len(got) < len(expected):
            ctx.set(dut.o.ready, go())
            valid, ready, value, end = (
                await ctx.tick("mac").sample(dut.o.valid, dut.o.ready, Value.cast(dut.o.payload), last)
            )[-4:]
            if inside and not valid:
                gaps.append(len(got))
            if valid and ready:
                got.append(value)
                inside = not end

    run(dut, clocks_of(*ratio), sender, receiver)
    assert packets(got, 8) == sent
    assert not gaps


def test_tx_at_full_rate():
    dut = TxCrossing(8, 72, name="tx")
    sent = [bytes([n]) for n in range(200)]
    got = []

    async def sender(ctx):
        await feed(ctx, dut.i, [beat for packet in sent for beat in beats(packet, 8)], "sync")

    async def receiver(ctx):
        got.extend(await collect(ctx, dut.o, "mac", lambda taken: len(taken) == len(sent)))

    run(dut, clocks_of(4.0, 3.1), sender, receiver)
    assert packets([value for _, value in got], 8) == sent
    assert (got[-1][0] - got[50][0]) * 3.1 <= 149 * 4.0 * 1.02


def test_tx_lets_a_packet_through_that_is_too_large():
    dut = TxCrossing(8, 16, name="tx")
    sent, got = bytes(range(200)), []

    async def sender(ctx):
        await feed(ctx, dut.i, beats(sent, 8), "sync")

    async def receiver(ctx):
        got.extend(await collect(ctx, dut.o, "mac", lambda taken: len(taken) == 25))

    run(dut, clocks_of(4.0, 3.1), sender, receiver)
    assert packets([value for _, value in got], 8) == [sent]


@pytest.mark.parametrize("before", [0, 3, 6])
def test_tx_discards_while_the_link_is_down(before):
    """The link goes down `before` beats into the second packet and comes up within the third one."""
    dut, down = TxCrossing(8, 72, name="tx"), Signal()
    sent = [bytes([n]) * 64 for n in range(5)]
    got, over = [], []

    async def sender(ctx):
        await feed(ctx, dut.i, beats(sent[0], 8) + beats(sent[1], 8)[:before], "sync")
        await ctx.tick("sync").repeat(40)
        ctx.set(down, 1)
        await ctx.tick("sync").repeat(3)
        await feed(ctx, dut.i, beats(sent[1], 8)[before:] + beats(sent[2], 8)[:4], "sync")
        await ctx.tick("sync").repeat(3)
        ctx.set(down, 0)
        await ctx.tick("sync").repeat(3)
        await feed(ctx, dut.i, [beat for packet in [sent[2][32:], *sent[3:]] for beat in beats(packet, 8)], "sync")
        await ctx.tick("sync").repeat(40)
        over.append(True)

    async def receiver(ctx):
        got.extend(await collect(ctx, dut.o, "mac", lambda taken: over))

    run(dut, clocks_of(4.0, 3.1), sender, receiver, reset={"mac": down, "port": down})
    assert packets([value for _, value in got], 8) == [sent[0], *sent[3:]]
