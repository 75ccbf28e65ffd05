"""`SharedPort`: frames of both kinds on one cable, in and out."""

import itertools
import random

import pytest

from acceltcp.abi.wire import EtherType
from hw.shell.shared_port import SharedPort

from ..simulate import beats, collect, converts, feed, packets, run, seeds, sometimes

WIDTH = 8
LINK = int(EtherType.HOST_LINK).to_bytes(2, "big")


def frame(rng, ethertype, size):
    return (rng.randbytes(12) + ethertype + rng.randbytes(64))[:size]


def arrive(frames):
    """What network and link get of these frames, each a list of frames."""
    dut, got, over = SharedPort(), {"network_rx": [], "link_rx": []}, []

    async def sender(ctx):
        rng = random.Random(1)
        for packet in frames:
            for beat in beats(packet, WIDTH):
                ctx.set(dut.rx.payload.as_value(), beat)
                ctx.set(dut.rx.valid, 1)
                await ctx.tick()
                ctx.set(dut.rx.valid, 0)
                await ctx.tick().repeat(rng.randint(0, 1) + 1) if rng.random() < 0.4 else None
        await ctx.tick().repeat(4)
        over.append(True)

    def watcher(name):
        stream = getattr(dut, name)

        async def watch(ctx):
            while not over:
                _, _, valid, payload = await ctx.tick().sample(stream.valid, stream.payload.as_value())
                if valid:
                    got[name].append(payload)

        return watch

    run(dut, sender, watcher("network_rx"), watcher("link_rx"))
    return packets(got["network_rx"], WIDTH), packets(got["link_rx"], WIDTH)


@pytest.mark.parametrize("seed", seeds(3))
def test_frames_in_go_to_one_side(seed):
    rng = random.Random(seed)
    kinds = [b"\x08\x00", b"\x86\xdd", LINK, LINK, LINK[::-1], LINK[:1] + b"\x00", b"\x00" + LINK[1:]]
    frames = [frame(rng, rng.choice(kinds), rng.choice([14, 16, 17, 60, 61, 64])) for _ in range(60)]
    network, link = arrive(frames)
    assert link == [one for one in frames if one[12:14] == LINK]
    assert network == [one for one in frames if one[12:14] != LINK]
    assert link and network


def test_what_is_too_short_for_an_ethertype_is_not_the_links():
    short = [b"\x01", bytes(8), bytes(9), bytes(12) + LINK[:1], bytes(12) + LINK]
    network, link = arrive(short)
    assert network == short[:-1] and link == short[-1:]


@pytest.mark.parametrize("seed", seeds(3))
def test_frames_out_are_whole_and_take_turns(seed):
    dut, rng = SharedPort(), random.Random(seed)
    sent = {
        name: [mark + rng.randbytes(rng.randint(4, 40)) for _ in range(20)]
        for name, mark in (("network_tx", b"N"), ("link_tx", b"L"))
    }
    count = sum(len(beats(one, WIDTH)) for frames in sent.values() for one in frames)
    got = []

    def sender(name):
        async def send(ctx):
            await feed(ctx, getattr(dut, name), [beat for one in sent[name] for beat in beats(one, WIDTH)])

        return send

    async def receiver(ctx):
        got.extend(await collect(ctx, dut.tx, count, sometimes(seed, 0.7)))

    run(dut, *(sender(name) for name in sent), receiver)
    out = packets(got, WIDTH)
    for name, mark in (("network_tx", b"N"), ("link_tx", b"L")):
        assert [one for one in out if one[:1] == mark] == sent[name]
    # Both always have something, so nobody goes twice in a row.
    assert all(a[:1] != b[:1] for a, b in itertools.pairwise(out))


def test_converts():
    converts(SharedPort())
