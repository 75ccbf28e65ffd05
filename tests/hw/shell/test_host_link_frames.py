"""Frames of the host link: what is taken off a MAC and what is put on one."""

import random

import pytest

from acceltcp.abi.host_link import HEADER_BYTES, HOST_LINK, LinkKind
from acceltcp.abi.wire import ETHERNET, EtherType
from hw.shell.host_link_frames import (
    HEADER_WORDS,
    PAYLOAD_WORDS,
    WORD_BYTES,
    LinkHeader,
    LinkReceiver,
    LinkSender,
)
from tests.hw.simulate import always, converts, run, seeds, sometimes

from .link_mac import collect_frames, send_frame


def headers(rng):
    """Random values for both headers, EtherType aside."""
    values = {field.name: rng.getrandbits(field.bits) for header in (ETHERNET, HOST_LINK) for field in header if not field.reserved}
    return values | {"ethertype": EtherType.HOST_LINK}


def packed(values, payload=b""):
    ethernet = {field.name: values[field.name] for field in ETHERNET}
    link = {name: value for name, value in values.items() if name not in ethernet}
    return ETHERNET.pack(**ethernet) + HOST_LINK.pack(**link) + payload


def get_header(ctx, header):
    return {name: ctx.get(header[name]) for name, _ in LinkHeader}


class Taken:
    """What a receiver has said: (header, payload words, payload) of each frame."""

    def __init__(self, dut):
        self._dut = dut
        self.frames = []

    async def watch(self, ctx):
        dut = self._dut
        words = {}
        while True:
            await ctx.tick()
            if ctx.get(dut.valid):
                count = ctx.get(dut.payload_words)
                self.frames.append((get_header(ctx, dut.header), count, b"".join(words[at] for at in range(count))))
            if ctx.get(dut.word_valid):
                words[ctx.get(dut.word_index)] = ctx.get(dut.word).to_bytes(WORD_BYTES, "little")


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("pauses", [False, True])
def test_received_frames(seed, pauses):
    rng = random.Random(seed)
    dut = LinkReceiver()
    taken = Taken(dut)
    expected = []

    async def feed(ctx):
        for size in (24, 0, 8, 8 * PAYLOAD_WORDS, *(8 * rng.randrange(PAYLOAD_WORDS) for _ in range(4))):
            values, payload = headers(rng), rng.randbytes(size)
            bad = rng.random() < 0.2
            await send_frame(ctx, dut, "", packed(values, payload), bad=bad, go=sometimes(seed) if pauses else always)
            if not bad:
                expected.append((values, size // WORD_BYTES, payload))
        await ctx.tick().repeat(5)

    run(dut, feed, background=[taken.watch])
    assert len(expected) > 2
    assert taken.frames == expected


def test_what_is_no_frame_of_the_link_is_passed_over():
    rng = random.Random(0)
    dut = LinkReceiver()
    taken = Taken(dut)
    good = headers(rng)

    async def feed(ctx):
        await send_frame(ctx, dut, "", packed(good | {"ethertype": EtherType.IPV4}, bytes(24)))
        await send_frame(ctx, dut, "", packed(good)[: HEADER_BYTES - WORD_BYTES])
        await send_frame(ctx, dut, "", b"x")
        await send_frame(ctx, dut, "", packed(good, bytes(24)), bad=True)
        await send_frame(ctx, dut, "", packed(good, bytes(8 * (PAYLOAD_WORDS + 20))))
        await send_frame(ctx, dut, "", packed(good, bytes(21)))  # a MAC may give any padding
        await ctx.tick().repeat(5)

    run(dut, feed, background=[taken.watch])
    assert [(header, words) for header, words, _ in taken.frames] == [(good, PAYLOAD_WORDS), (good, 3)]


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("ready", [False, True])
def test_sent_frames(seed, ready):
    rng = random.Random(seed)
    dut = LinkSender()
    memory = [rng.getrandbits(64) for _ in range(PAYLOAD_WORDS)]
    expected, frames = [], []
    counts = [0, 1, 3, 4, PAYLOAD_WORDS, *(rng.randrange(PAYLOAD_WORDS) for _ in range(3))]

    async def serve_memory(ctx):
        while True:
            _, _, index, enable = await ctx.tick().sample(dut.read_index, dut.read_enable)
            if enable:
                ctx.set(dut.read_data, memory[index] if index < PAYLOAD_WORDS else 0)

    async def start(ctx):
        for count in counts:
            values = headers(rng)
            payload = b"".join(word.to_bytes(WORD_BYTES, "little") for word in memory[:count])
            expected.append(packed(values, payload).ljust(64, b"\0"))
            for name, value in values.items():
                ctx.set(dut.header[name], value)
            ctx.set(dut.payload_words, count)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.header, {"kind": LinkKind.BYE})
            await ctx.tick().until(dut.idle)

    async def take(ctx):
        frames.extend(await collect_frames(ctx, dut, "", len(counts), sometimes(seed) if ready else always))

    run(dut, start, take, background=[serve_memory])
    assert frames == expected
    assert {len(frame) for frame in frames} >= {64, 8 * (HEADER_WORDS + PAYLOAD_WORDS)}


def test_conversion():
    converts(LinkReceiver())
    converts(LinkSender())
