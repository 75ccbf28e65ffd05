"""`PortCrossing` between a MAC of 8 bytes at 156.25 MHz and a core of 32 bytes at 200 MHz, and the other way about."""

import random

import pytest
from amaranth import ClockDomain, ClockSignal, Elaboratable, Module, Signal, Value
from amaranth.lib import data

from hw.shell.port_crossing import PortCrossing
from hw.stream.beat import BeatLayout

from ..simulate import beats, packets, sometimes
from .clocks import collect, feed, run

CORE, MAC = 32, 8
LARGEST = 400


class Board(Elaboratable):
    """Defines the domains, and has the signals of the MAC in a domain of its own, `wire`."""

    def __init__(self):
        self.port = PortCrossing(0, CORE, 64, LARGEST, MAC)
        self.up, self.mac_reset = Signal(), Signal()

    def elaborate(self, platform):
        m = Module()
        for domain in self.port.domains:
            m.domains += ClockDomain(domain)
        m.submodules.port = port = self.port
        m.d.comb += [port.clock.eq(ClockSignal("wire")), port.up.eq(self.up), port.mac_reset.eq(self.mac_reset)]
        return m


def some(seed, count):
    rng = random.Random(seed)
    sizes = [rng.choice([1, 7, 8, 9, 31, 32, 33, 64, 65, LARGEST, rng.randint(1, LARGEST)]) for _ in range(count)]
    return [number.to_bytes(1, "big") + rng.randbytes(size - 1) for number, size in enumerate(sizes)]


def split(taken, width):
    """(packet, bad) of each."""
    out, current, layout = [], [], BeatLayout(width)
    for _, value in taken:
        current.append(value)
        if (beat := data.Const(layout, value)).last:
            out.append((*packets(current, width), bool(beat.err)))
            current = []
    return out


@pytest.mark.parametrize("clocks", [{"sync": 5.0, "wire": 6.4}, {"sync": 7.0, "wire": 3.1}])
def test_both_ways(clocks):
    board = Board()
    port = board.port
    inward, outward = some(1, 30), some(2, 30)
    got_in, gaps, got_out = [], [], []

    async def mac_sends(ctx):
        ctx.set(board.up, 1)
        await ctx.tick("wire").repeat(20)
        # The core at 7 ns and 32 bytes keeps up with 8 bytes every 3.1 ns.
        await feed(ctx, port.mac_rx, [beat for packet in inward for beat in beats(packet, MAC)], "wire")

    async def core_takes(ctx):
        got_in.extend(await collect(ctx, port.rx, "sync", lambda taken: len(split(taken, CORE)) == len(inward)))

    async def core_sends(ctx):
        await ctx.tick("wire").repeat(20)
        await feed(ctx, port.tx, [beat for packet in outward for beat in beats(packet, CORE)], "sync", sometimes(4))

    async def mac_takes(ctx):
        go, inside, ends = sometimes(5), False, 0
        while ends < len(outward):
            ctx.set(port.mac_tx.ready, go())
            valid, ready, last, value = (
                await ctx.tick("wire").sample(
                    port.mac_tx.valid, port.mac_tx.ready, port.mac_tx.p.last, Value.cast(port.mac_tx.payload)
                )
            )[-4:]
            if inside and not valid:
                gaps.append(len(got_out))
            if valid and ready:
                got_out.append(value)
                inside, ends = not last, ends + last

    run(board, clocks, mac_sends, core_takes, core_sends, mac_takes)
    assert split(got_in, CORE) == [(packet, False) for packet in inward]
    assert packets(got_out, MAC) == outward
    assert not gaps


@pytest.mark.parametrize("resets", [False, True])
def test_a_link_that_is_lost_in_a_packet(resets):
    """What was under way is bad or gone, in both directions; the next packets are whole. resets: the MAC, too."""
    board = Board()
    port = board.port
    over, got_in, got_out = [], [], []
    long, after = bytes(range(200)), b"next" * 20

    async def line(ctx):
        ctx.set(board.up, 1)
        await ctx.tick("wire").repeat(20)
        assert ctx.get(port.link)
        values = beats(long, MAC)
        await feed(ctx, port.mac_rx, values[:12], "wire")
        ctx.set(board.up, 0)
        ctx.set(board.mac_reset, resets)
        await ctx.tick("wire").repeat(20)
        assert not ctx.get(port.link)
        if not resets:
            await feed(ctx, port.mac_rx, values[12:18], "wire")
        ctx.set(board.mac_reset, 0)
        ctx.set(board.up, 1)
        await ctx.tick("wire").repeat(8)
        if not resets:
            await feed(ctx, port.mac_rx, values[18:], "wire")
        await ctx.tick("wire").repeat(20)
        # After a reset the MAC's first packet may be lost: nobody knows whether it is one.
        for _ in range(2):
            await feed(ctx, port.mac_rx, beats(after, MAC), "wire")
        await ctx.tick("wire").repeat(60)
        over.append(True)

    async def core_takes(ctx):
        got_in.extend(await collect(ctx, port.rx, "sync", lambda taken: over))

    async def core_sends(ctx):
        await ctx.tick("wire").repeat(20)
        while not over:
            await feed(ctx, port.tx, beats(after, CORE), "sync")

    async def mac_takes(ctx):
        got_out.extend(await collect(ctx, port.mac_tx, "wire", lambda taken: over))

    run(board, {"sync": 5.0, "wire": 6.4}, line, core_takes, core_sends, mac_takes)
    frames = split(got_in, CORE)
    assert frames[0][1] and len(frames[0][0]) < len(long)
    assert frames[1:] == [(after, False)] * (len(frames) - 1) and len(frames) in ((2, 3) if resets else (3,))
    # A packet that the loss has cut is followed by its neighbour's beats; a MAC in restart has forgotten it.
    whole = [packet for packet, _ in split(got_out, MAC)]
    assert len(whole) > 6 and sum(packet != after for packet in whole) <= 1
