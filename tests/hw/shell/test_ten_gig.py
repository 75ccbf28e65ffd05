"""`TenGigReceiver`: frames as the vendor's MAC gives them, good, bad and odd."""

import random

import pytest
from amaranth.lib import data

from hw.shell.ten_gig import SHARED, WIDTH, TenGigReceiver, ten_gig
from hw.stream.beat import BeatLayout

from ..simulate import always, converts, packets, run, seeds, sometimes

LARGEST = 100


def cut(frame, *, good=True, late=False):
    """Beats of a frame: (bytes, keep, last, user). late: its end comes in a beat without bytes."""
    parts = [frame[at : at + WIDTH] for at in range(0, len(frame), WIDTH)]
    beats = [(part, (1 << len(part)) - 1, 0, 0) for part in parts]
    if late:
        return [*beats, (b"", 0, 1, int(good))]
    part, keep, _, _ = beats.pop()
    return [*beats, (part, keep, 1, int(good))]


def receive(beats, go=always, largest=LARGEST):
    """What comes out: (frame, bad) of each."""
    dut, got = TenGigReceiver(largest), []

    async def mac(ctx):
        for part, keep, last, user in beats:
            while not go():
                await ctx.tick()
            for name, value in (("data", int.from_bytes(part, "little")), ("keep", keep), ("last", last), ("user", user)):
                ctx.set(getattr(dut, f"t{name}"), value)
            ctx.set(dut.tvalid, 1)
            await ctx.tick()
            ctx.set(dut.tvalid, 0)
        await ctx.tick().repeat(4)

    async def core(ctx):
        async for *_, valid, value in ctx.tick().sample(dut.o.valid, dut.o.payload.as_value()):
            if valid:
                got.append(value)

    run(dut, mac, background=[core])
    layout, frames, current = BeatLayout(WIDTH), [], []
    for value in got:
        current.append(value)
        beat = data.Const(layout, value)
        assert 1 <= beat.count <= WIDTH and (beat.last or beat.count == WIDTH)
        if beat.last:
            (frame,) = packets(current, WIDTH)
            frames.append((frame, bool(beat.err)))
            current = []
    assert not current
    return frames


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("gaps", [False, True])
def test_frames_of_all_lengths(seed, gaps):
    rng = random.Random(seed)
    sizes = [*range(1, 20), LARGEST, *(rng.randint(1, LARGEST) for _ in range(30))]
    rng.shuffle(sizes)
    sent = [(rng.randbytes(size), rng.random() < 0.7, rng.random() < 0.4) for size in sizes]
    beats = [beat for frame, good, late in sent for beat in cut(frame, good=good, late=late)]
    got = receive(beats, sometimes(seed, 0.6) if gaps else always)
    assert got == [(frame, not good) for frame, good, _ in sent]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("excess", [1, 4, 5, 100])
def test_too_long(excess, late):
    """A frame that is too long is cut and bad; the next one is whole."""
    long, after = bytes(range(LARGEST + excess)), b"next one"
    got = receive(cut(long, late=late) + cut(after))
    assert got[1:] == [(after, False)]
    frame, bad = got[0]
    assert bad and len(frame) <= LARGEST + WIDTH and long.startswith(frame[:LARGEST])


def test_odd_frames():
    hole = [(bytes(8), 0xFF, 0, 0), (bytes(8), 0x7F, 0, 0), (bytes(8), 0xFF, 1, 1)]
    torn = [(bytes(8), 0xFF, 0, 0), (bytes(8), 0xB, 1, 1)]
    nothing = [(b"", 0, 1, 1)]
    good = cut(b"0123456789")
    got = receive(hole + good + torn + good + nothing + good + nothing + nothing + good)
    bad = [at for at, (_, bad) in enumerate(got) if bad]
    assert bad == [0, 2, 4, 6, 7]
    assert [frame for frame, bad in got if not bad] == [b"0123456789"] * 4


def test_what_one_block_gives_and_the_other_takes():
    first, other = ten_gig(0, shared=True), ten_gig(1, shared=False)
    for source, target in SHARED.items():
        assert first.ports[source] == ("o", 1) and other.ports[target] == ("i", 1)
        assert source not in other.ports and target not in first.ports
    assert (first.properties["SupportLevel"], other.properties["SupportLevel"]) == ("1", "0")


def test_converts():
    converts(TenGigReceiver(9018))
