# amaranth: UnusedElaboratable=no
"""ConnectionHash and ConnectionHashIterative against the reference in acceltcp.abi.flow."""

import random

import pytest

from acceltcp.abi.flow import flow_digest
from hw.config import NicConfig
from hw.table.hash import ConnectionHash, ConnectionHashIterative
from hw.table.records import ConnectionKey
from tests.hw.simulate import always, collect, converts, feed, run, seeds, sometimes

CONFIG = NicConfig(flows=1 << 18)
MASK = (1 << CONFIG.table.digest_bits) - 1
MAPPED = 0xFFFF << 32


def random_keys(count, seed):
    """Connections, IPv4 and IPv6, and the extremes."""
    rng = random.Random(seed)
    keys = []
    for _ in range(count):
        ipv6 = rng.random() < 0.5
        remote, local = (rng.getrandbits(128) if ipv6 else MAPPED | rng.getrandbits(32) for _ in range(2))
        ports = {"remote_port": rng.getrandbits(16), "local_port": rng.getrandbits(16)}
        keys.append({"remote": remote, "local": local, **ports, "ipv6": int(ipv6)})
    names = {"remote": 128, "local": 128, "remote_port": 16, "local_port": 16, "ipv6": 1}
    # One field alone is all ones: each is in its place.
    keys += [{name: (1 << bits) - 1 if name == only else 0 for name, bits in names.items()} for only in names]
    return keys


def digest(secret, key):
    return flow_digest(secret, **{**key, "ipv6": bool(key["ipv6"])}) & MASK


def test_the_digest_is_cut_to_what_the_table_keeps():
    assert CONFIG.table.digest_bits == 123 == len(ConnectionHash(CONFIG).o)


@pytest.mark.parametrize("seed", seeds(2))
def test_one_key_per_cycle(seed):
    dut = ConnectionHash(CONFIG)
    assert dut.latency == 23
    secret = random.Random(seed).randbytes(16)
    keys = random_keys(40, seed)
    results = []

    async def bench(ctx):
        ctx.set(dut.key, int.from_bytes(secret, "little"))
        for cycle in range(len(keys) + dut.latency):
            if cycle >= dut.latency:
                results.append(ctx.get(dut.o))
            if cycle < len(keys):
                ctx.set(dut.i, keys[cycle])
            await ctx.tick()

    run(dut, bench)
    assert results == [digest(secret, key) for key in keys]


@pytest.mark.parametrize("pauses", (False, True))
def test_iterative(pauses):
    """Each key may come with another secret."""
    dut = ConnectionHashIterative(CONFIG)
    rng = random.Random(3)
    cases = [(rng.randbytes(16), key) for key in random_keys(4, seed=3)]
    shape = dut.i.payload.shape()
    values = [
        shape.const({"key": int.from_bytes(secret, "little"), "connection": ConnectionKey.const(key)}).as_value().value
        for secret, key in cases
    ]
    go_in, go_out = (sometimes(4, 0.2), sometimes(5, 0.2)) if pauses else (always, always)

    async def consumer(ctx):
        assert await collect(ctx, dut.o, len(cases), go_out) == [digest(*case) for case in cases]

    run(dut, lambda ctx: feed(ctx, dut.i, values, go_in), consumer)


def test_iterative_latency_and_interval():
    dut = ConnectionHashIterative(CONFIG)
    taken, offered = [], []

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.o.ready, 1)
        for cycle in range(40):
            if ctx.get(dut.i.ready):
                taken.append(cycle)
            if ctx.get(dut.o.valid):
                offered.append(cycle)
            await ctx.tick()

    run(dut, bench)
    assert taken == [0, 13, 26, 39] and offered == [12, 25, 38]


@pytest.mark.parametrize("component", (ConnectionHash, ConnectionHashIterative))
def test_converts(component):
    converts(component(CONFIG))
