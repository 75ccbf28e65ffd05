# amaranth: UnusedElaboratable=no
"""SipHash: published vectors, then both engines against the reference for the cookie's length."""

import random

import pytest

from acceltcp.abi.cookie import siphash_2_4
from hw.tcp.siphash import SipHashInput, SipHashIterative, SipHashPipeline
from tests.hw.simulate import always, collect, feed, run, sometimes

KEY = bytes(range(16))

# SipHash-2-4 of 0, 1, ... 63 bytes 00 01 02 ... under the key 00 01 ... 0f, as published with the
# reference implementation (github.com/veorq/SipHash, vectors_sip64); each is the 8 bytes in order.
PUBLISHED = """
    310e0edd47db6f72 fd67dc93c539f874 5a4fa9d909806c0d 2d7efbd796666785 b7877127e09427cf
    8da699cd64557618 cee3fe586e46c9cb 37d1018bf50002ab 6224939a79f5f593 b0e4a90bdf82009e
    f3b9dd94c5bb5d7a a7ad6b22462fb3f4 fbe50e86bc8f1e75 903d84c02756ea14 eef27a8e90ca23f7
    e545be4961ca29a1 db9bc2577fcc2a3f 9447be2cf5e99a69 9cd38d96f0b3c14b bd6179a71dc96dbb
    98eea21af25cd6be c7673b2eb0cbf2d0 883ea3e395675393 c8ce5ccd8c030ca8 94af49f6c650adb8
    eab8858ade92e1bc f315bb5bb835d817 adcf6b0763612e2f a5c91da7acaa4dde 716595876650a2a6
    28ef495c53a387ad 42c341d8fa92d832 ce7cf2722f512771 e37859f94623f3a7 381205bb1ab0e012
    ae97a10fd434e015 b4a31508beff4d31 81396229f0907902 4d0cf49ee5d4dcca 5c73336a76d8bf9a
    d0a704536ba93e0e 925958fcd6420cad a915c29bc8067318 952b79f3bc0aa6d4 f21df2e41d4535f9
    87577519048f53a9 10a56cf5dfcd9adb eb75095ccd986cd0 51a9cb9ecba312e6 96afadfc2ce666c7
    72fe52975a4364ee 5a1645b276d592a1 b274cb8ebf87870a 6f9bb4203de7b381 eaecb2a30b22a87f
    9924a43cc1315724 bd838d3aafbf8db7 0b1a2a3265d51aea 135079a3231ce660 932b2846e4d70666
    e1915f5cb1eca46c f325965ca16d629f 575ff28e60381be5 724506eb4c328a95
"""
VECTORS = [int.from_bytes(bytes.fromhex(word), "little") for word in PUBLISHED.split()]


def packed(length, key, message):
    """The engines' input as an integer."""
    values = {"key": int.from_bytes(key, "little"), "message": int.from_bytes(message, "little")}
    return SipHashInput(length).const(values).as_value().value


def random_cases(length, count, seed):
    rng = random.Random(seed)
    cases = [(rng.randbytes(16), rng.randbytes(length)) for _ in range(count)]
    return cases + [(b"\xff" * 16, b"\xff" * length), (bytes(16), bytes(length))]


def hash_pipelined(length, cases):
    """Results of the pipeline, one case per cycle without a gap."""
    dut = SipHashPipeline(length)
    results = []

    async def bench(ctx):
        for cycle in range(len(cases) + dut.latency):
            if cycle >= dut.latency:
                results.append(ctx.get(dut.o))
            if cycle < len(cases):
                key, message = cases[cycle]
                ctx.set(dut.i.key, int.from_bytes(key, "little"))
                ctx.set(dut.i.message, int.from_bytes(message, "little"))
            await ctx.tick()

    run(dut, bench)
    return results


def test_reference_reproduces_the_published_vectors():
    assert len(VECTORS) == 64 and VECTORS[15] == 0xA129CA6149BE45E5
    assert [siphash_2_4(KEY, bytes(range(length))) for length in range(64)] == VECTORS


@pytest.mark.parametrize("length", (1, 7, 8, 15, 55))
def test_published_vector(length):
    message = bytes(range(length))
    assert hash_pipelined(length, [(KEY, message)]) == [VECTORS[length]]
    dut = SipHashIterative(length)

    async def consumer(ctx):
        assert await collect(ctx, dut.o, 1) == [VECTORS[length]]

    run(dut, lambda ctx: feed(ctx, dut.i, [packed(length, KEY, message)]), consumer)


@pytest.mark.parametrize("seed", (1, 2))
def test_pipeline_takes_one_message_per_cycle(seed):
    assert SipHashPipeline(55).latency == 37
    cases = random_cases(55, 60, seed)
    assert hash_pipelined(55, cases) == [siphash_2_4(*case) for case in cases]


@pytest.mark.parametrize("pauses", (None, "in", "out", "both"))
def test_iterative(pauses):
    dut = SipHashIterative(55)
    cases = random_cases(55, 8, seed=3)
    go_in = sometimes(4, 0.1) if pauses in ("in", "both") else always
    go_out = sometimes(5, 0.1) if pauses in ("out", "both") else always

    async def consumer(ctx):
        taken = await collect(ctx, dut.o, len(cases), go_out)
        assert taken == [siphash_2_4(*case) for case in cases]

    run(dut, lambda ctx: feed(ctx, dut.i, [packed(55, *case) for case in cases], go_in), consumer)


def test_iterative_latency_and_interval():
    dut = SipHashIterative(55)
    taken, offered = [], []

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.o.ready, 1)
        for cycle in range(60):
            if ctx.get(dut.i.ready):
                taken.append(cycle)
            if ctx.get(dut.o.valid):
                offered.append(cycle)
            await ctx.tick()

    run(dut, bench)
    assert taken == [0, 20, 40] and offered == [19, 39, 59]


@pytest.mark.parametrize("length", (0, 256, "55"))
def test_bad_length(length):
    with pytest.raises(ValueError, match=r"^length must be an integer from 1 to 255, not "):
        SipHashInput(length)
