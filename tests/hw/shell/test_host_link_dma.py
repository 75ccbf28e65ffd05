"""What `LinkDma` does with replies that come at a bad time; `test_host_link.py` has the rest."""

import pytest

from acceltcp.abi.host_link import BEAT_BYTES, LinkKind, LinkStatus
from hw.shell.host_link_dma import LinkDma
from hw.shell.host_link_frames import BEAT_WORDS, WORD_BYTES
from tests.hw.simulate import converts, run

BEATS = 2


async def words(ctx, dut, octets, first=0):
    """Payload as it comes, from word `first` on."""
    for at in range(0, len(octets), WORD_BYTES):
        ctx.set(dut.word, int.from_bytes(octets[at : at + WORD_BYTES], "little"))
        ctx.set(dut.word_index, first + at // WORD_BYTES)
        ctx.set(dut.word_valid, 1)
        await ctx.tick()
    ctx.set(dut.word_valid, 0)


async def reply(ctx, dut, payload_words, **fields):
    """The end of a frame."""
    ctx.set(dut.header, {"reply": 1, "kind": LinkKind.DMA_READ, "sequence": 1, **fields})
    ctx.set(dut.payload_words_in, payload_words)
    ctx.set(dut.valid, 1)
    await ctx.tick()
    ctx.set(dut.valid, 0)


async def ask(ctx, dut):
    """A read that waits for its reply."""
    ctx.set(dut.axi.araddr, 0x1000)
    ctx.set(dut.axi.arlen, BEATS - 1)
    ctx.set(dut.axi.arvalid, 1)
    await ctx.tick().until(dut.axi.arready)
    ctx.set(dut.axi.arvalid, 0)
    ctx.set(dut.sent, 1)
    await ctx.tick().until(dut.pending)
    ctx.set(dut.sent, 0)


async def take(ctx, dut):
    """The beats that come."""
    ctx.set(dut.axi.rready, 1)
    octets = b""
    for _ in range(BEATS):
        data, response = await ctx.tick().sample(dut.axi.rdata, dut.axi.rresp).until(dut.axi.rvalid)
        assert response == 0
        octets += data.to_bytes(BEAT_BYTES, "little")
    return octets


PAYLOAD = bytes(range(BEATS * BEAT_BYTES))


def test_a_reply_during_whose_arrival_the_request_is_repeated_is_whole():
    dut = LinkDma(retry_ticks=1)

    async def lead(ctx):
        await ask(ctx, dut)
        ctx.set(dut.tick, 1)
        await ctx.tick()
        ctx.set(dut.tick, 0)
        half = len(PAYLOAD) // 2
        await words(ctx, dut, PAYLOAD[:half])  # while the request waits to be sent again
        ctx.set(dut.sent, 1)
        await ctx.tick().until(dut.pending)
        ctx.set(dut.sent, 0)
        await words(ctx, dut, PAYLOAD[half:], half // WORD_BYTES)
        await reply(ctx, dut, BEATS * BEAT_WORDS)
        assert await take(ctx, dut) == PAYLOAD

    run(dut, lead)


@pytest.mark.parametrize(
    ("payload_words", "fields"),
    [
        (BEATS * BEAT_WORDS - 1, {}),
        (BEATS * BEAT_WORDS, {"sequence": 2}),
        (BEATS * BEAT_WORDS, {"kind": LinkKind.DMA_WRITE}),
        (BEATS * BEAT_WORDS, {"reply": 0}),
    ],
    ids=["short", "sequence", "kind", "request"],
)
def test_replies_to_something_else_are_passed_over(payload_words, fields):
    dut = LinkDma(retry_ticks=1)

    async def lead(ctx):
        await ask(ctx, dut)
        await words(ctx, dut, bytes([255]) * len(PAYLOAD))
        await reply(ctx, dut, payload_words, **fields)
        await ctx.tick().repeat(30)
        assert not ctx.get(dut.axi.rvalid)
        await words(ctx, dut, PAYLOAD)
        await reply(ctx, dut, BEATS * BEAT_WORDS)
        assert await take(ctx, dut) == PAYLOAD

    run(dut, lead)


def test_a_refusal_has_no_payload():
    dut = LinkDma(retry_ticks=1)

    async def lead(ctx):
        await ask(ctx, dut)
        await reply(ctx, dut, 0, status=LinkStatus.REFUSED)
        ctx.set(dut.axi.rready, 1)
        for last in (0, 1):
            got = await ctx.tick().sample(dut.axi.rresp, dut.axi.rlast).until(dut.axi.rvalid)
            assert got == (2, last)

    run(dut, lead)


def test_conversion():
    converts(LinkDma(retry_ticks=1))
