"""Beats of a narrow bus put together to words."""

from amaranth import *

from .axi import ReadBeat

__all__ = ["gathered"]


def gathered(m, response, axi_bytes, word_bytes):
    """Words of `word_bytes` out of the beats of read bursts that begin and end with one.

    response: stream(ReadBeat(axi_bytes), always_ready), with the beats of one burst after those of the other. Returns
    (word, valid): ReadBeat(word_bytes), with `error` if any of its beats has one, in the cycle of its last beat. A bus as wide
    as a word costs nothing; else it takes the registers of a word and a beat less. Reset: forgets the word under way.
    """
    if word_bytes <= axi_bytes:
        return response.payload, response.valid
    parts = word_bytes // axi_bytes
    beat = response.payload
    held = Signal(8 * (word_bytes - axi_bytes), reset_less=True)
    failed = Signal(reset_less=True)
    part = Signal(range(parts))
    word, valid = Signal(ReadBeat(word_bytes), name="word"), Signal(name="word_valid")
    m.d.comb += [
        word.data.eq(Cat(held, beat.data)),
        word.error.eq(beat.error | (failed & (part != 0))),
        word.last.eq(beat.last),
        valid.eq(response.valid & (part == parts - 1)),
    ]
    with m.If(response.valid):
        m.d.sync += [held.eq(Cat(held, beat.data)[8 * axi_bytes :]), failed.eq(word.error), part.eq(part + 1)]
    return word, valid
