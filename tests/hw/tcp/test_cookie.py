# amaranth: UnusedElaboratable=no
"""CookieEngine: the whole cookie against the reference, order and latency of both variants."""

import random

import pytest
from amaranth import Module, Signal, Value
from amaranth.lib import data

from acceltcp.abi.cookie import MSS_CLASSES, WSCALE_NONE, cookie
from hw.tcp.cookie import CookieEngine, CookieRequest, CookieTerms, compose_cookie, mss_class, mss_of_class
from tests.hw.simulate import always, run, sometimes

M32 = (1 << 32) - 1
Side = data.StructLayout({"terms": CookieTerms, "epoch": 2, "number": 16})


def random_request(rng, number):
    """Fields of a request and the cookie that it must give; None when no hash is asked for."""
    timestamps = rng.getrandbits(1)
    terms = {
        "timestamps": timestamps,
        "mss_class": rng.randrange(8),
        "wscale": rng.choice((0, 14, WSCALE_NONE)),
        "sack": rng.getrandbits(1),
        "ecn": rng.getrandbits(1) & timestamps,
    }
    ends = {"src": rng.getrandbits(128), "dst": rng.getrandbits(128)}
    ends |= {"src_port": rng.getrandbits(16), "dst_port": 80}
    ends |= {"client_iss": rng.getrandbits(32), "epoch": rng.choice((0, M32, rng.getrandbits(32)))}
    key = rng.randbytes(16)
    needed = int(rng.random() < 0.7)
    request = {
        "hash": needed,
        "key": int.from_bytes(key, "little"),
        "inputs": {**ends, "terms": terms},
        "side": {"terms": terms, "epoch": ends["epoch"] & 3, "number": number},
    }
    packed = CookieRequest(Side).const(request).as_value().value
    return packed, (cookie(key, **ends, **terms) if needed else None), needed


def compute(pipelined, requests, go=always):
    """(number, cookie) of each response and the cycles between request and response."""
    dut = CookieEngine(Side, pipelined=pipelined)
    m = Module()
    m.submodules.dut = dut
    side = dut.o.p.side
    composed, number = compose_cookie(side.terms, side.epoch, dut.o.p.mac), side.number
    got, offered, given = [], [], []

    async def feed(ctx):
        for packed, _, _ in requests:
            while not go():
                ctx.set(dut.i.valid, 0)
                await ctx.tick()
            ctx.set(Value.cast(dut.i.payload), packed)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def watch(ctx):
        cycle, fresh = 0, True
        while len(got) < len(requests):
            _, _, asked, ready, valid, *response = await ctx.tick().sample(
                dut.i.valid, dut.i.ready, dut.o.valid, number, composed
            )
            if asked and fresh:
                offered.append(cycle)
            fresh = not asked or ready
            if valid:
                got.append(tuple(response))
                given.append(cycle)
            cycle += 1

    run(m, feed, watch)
    return got, [end - start for start, end in zip(offered, given, strict=True)]


@pytest.mark.parametrize("pipelined", (True, False))
@pytest.mark.parametrize("pauses", (False, True))
def test_cookies(pipelined, pauses):
    rng = random.Random(pipelined + 2 * pauses)
    requests = [random_request(rng, number) for number in range(60 if pipelined else 25)]
    got, delays = compute(pipelined, requests, sometimes(5, 0.4) if pauses else always)
    assert [number for number, _ in got] == list(range(len(requests)))
    for (_, value), (_, wanted, _) in zip(got, requests, strict=True):
        assert wanted is None or value == wanted
    if pipelined:
        assert set(delays) == {CookieEngine(Side, pipelined=True).latency} == {37}
    else:
        wanted = CookieEngine(Side, pipelined=False).latency
        assert delays == [wanted if needed else 0 for _, _, needed in requests] and wanted == 19


def test_mss_classes():
    m = Module()
    sizes = sorted({size + step for size in MSS_CLASSES for step in (-1, 0, 1)} | {65535})[1:]
    mss, index, back = Signal(16), Signal(3), Signal(16)
    m.d.comb += [index.eq(mss_class(mss)), back.eq(mss_of_class(index))]
    m.d.sync += Signal().eq(0)

    async def bench(ctx):
        for size in sizes:
            ctx.set(mss, size)
            number = max(i for i, smallest in enumerate(MSS_CLASSES) if smallest <= size)
            assert (ctx.get(index), ctx.get(back)) == (number, MSS_CLASSES[number])

    run(m, bench)
