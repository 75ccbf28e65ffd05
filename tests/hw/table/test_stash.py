# amaranth: UnusedElaboratable=no
"""The stash against a list: every look-up sees what had been asked for before it came in."""

import random

import pytest

from hw.config import TableSizes
from hw.table.records import Kind
from hw.table.stash import Stash
from tests.hw.simulate import converts, run, seeds


def sizes_of(stash):
    return TableSizes(index_bits=6, stash=stash, ways=2)


def close_digests(sizes, rng):
    """Digests one bit apart: only a comparison of all bits tells them."""
    base = rng.getrandbits(sizes.digest_bits)
    bits = [0, *rng.sample(range(1, sizes.digest_bits - 1), 18), sizes.digest_bits - 1]
    return [base, *(base ^ 1 << bit for bit in bits)]


@pytest.mark.parametrize("stash", (2, 5, 16))
@pytest.mark.parametrize("seed", seeds(2))
def test_random_changes_and_look_ups(stash, seed):
    """A look-up and mostly a change in every cycle. What is asked for in cycle n is there from n + 2 on, and is
    what a look-up of cycle n + 1 finds in cycle n + 3."""
    rng = random.Random(100 * stash + seed)
    sizes = sizes_of(stash)
    dut = Stash(sizes)
    digests = close_digests(sizes, rng)
    places = [None] * stash  # all that has been asked for: (digest, kind, index)
    shown = [[None] * stash] * 2  # what is there in this cycle and in the next
    looked_up = [None, None]

    async def bench(ctx):
        for cycle in range(900):
            # Outputs of this cycle.
            there = shown.pop(0)
            assert ctx.get(dut.used) == sum(1 << k for k, entry in enumerate(there) if entry), cycle
            at = rng.randrange(stash)
            digest, kind, index = rng.choice([entry for entry in there if entry] or [(1, Kind.TEARDOWN, 0)])
            ctx.set(dut.read_at, at)
            ctx.set(dut.match_digest, digest)
            ctx.set(dut.match_kind, kind)
            ctx.set(dut.match_index, index)
            if there[at]:
                read = ctx.get(dut.read)
                assert (read.digest, read.kind, read.index) == there[at], cycle
            same = sum(1 << k for k, entry in enumerate(there) if entry and entry[0] == digest)
            assert ctx.get(dut.same_digest) == same, cycle
            same = sum(1 << k for k, entry in enumerate(there) if entry and entry[1:] == (kind, index))
            assert ctx.get(dut.same_index) == same, cycle
            want = looked_up.pop(0)
            found = ctx.get(dut.found)
            assert ctx.get(dut.hit) == (want is not None), cycle
            assert (found.kind, found.index) == (want[1:] if want else (Kind.TEARDOWN, 0)), cycle
            # Inputs of this cycle.
            digest = rng.choice(digests)
            ctx.set(dut.digest, digest)
            looked_up.append(next((entry for entry in places if entry and entry[0] == digest), None))
            write = rng.random() < 0.8
            ctx.set(dut.write, write)
            # No two places hold one digest; kind and index may repeat.
            at = rng.randrange(stash)
            free = [d for d in digests if all(not e or e[0] != d or k == at for k, e in enumerate(places))]
            entry = (rng.choice(free), rng.choice(list(Kind)), rng.randrange(3) * 31)
            valid = rng.random() < 0.6
            ctx.set(dut.at, at)
            ctx.set(dut.valid, valid)
            ctx.set(dut.entry, dict(zip(("digest", "kind", "index"), entry, strict=True)))
            if write:
                places[at] = entry if valid else None
            shown.append(list(places))
            await ctx.tick()

    run(dut, bench)


def test_an_exchange_hides_neither_entry():
    """A move in one cycle: the digest looked up in the cycle of the order finds the old entry, one cycle later
    the new one, as look-ups in a bank do."""
    dut = Stash(sizes_of(4))
    old, new = {"digest": 5, "kind": Kind.TEARDOWN, "index": 7}, {"digest": 6, "kind": Kind.SPLICE, "index": 9}
    hits = {}

    async def bench(ctx):
        for cycle in range(12):
            ctx.set(dut.write, cycle in (0, 4))
            ctx.set(dut.at, 2)
            ctx.set(dut.valid, 1)
            ctx.set(dut.entry, old if cycle < 4 else new)
            ctx.set(dut.digest, 5 if cycle % 2 else 6)
            if cycle >= dut.latency:
                hits[cycle - dut.latency] = ctx.get(dut.hit) and ctx.get(dut.found.index)
            await ctx.tick()

    run(dut, bench)
    # Odd cycles ask for `old`, even ones for `new`.
    assert hits == {0: 0, 1: 7, 2: 0, 3: 7, 4: 0, 5: 0, 6: 9, 7: 0, 8: 9, 9: 0}


def test_empty_after_reset():
    """Nothing is found in it, whatever the entries' flip-flops hold."""
    dut = Stash(sizes_of(3))

    async def bench(ctx):
        for _ in range(5):
            assert not ctx.get(dut.used) and not ctx.get(dut.same_digest) and not ctx.get(dut.same_index)
            await ctx.tick()
            assert not ctx.get(dut.hit)

    run(dut, bench)


def test_converts():
    converts(Stash(sizes_of(16)))
