"""Rss against the published vectors, and against the host's hash: on a basis of its inputs, which for a
linear function is all of them, and on random packets with the pipeline held now and then."""

import random

import pytest
from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.registers import RSS_KEY_BYTES, RSS_TABLE_ENTRIES, RssType
from acceltcp.abi.toeplitz import RSS_INPUT_BYTES, RSS_KEY_PUBLISHED, Toeplitz
from hw.packet.meta import RxMeta
from hw.packet.rss import Rss, Steering
from tests.hw.packet.rss_vectors import VECTORS
from tests.hw.simulate import converts, run, seeds
from tests.hw.tcp.harness import random_facts

ALL = RssType.IPV4 | RssType.TCP_IPV4 | RssType.IPV6 | RssType.TCP_IPV6
MAPPED = 0xFFFF << 32
DEFAULT = 77


def packet(src: bytes, dst: bytes, src_port: int, dst_port: int, *, tcp: bool = True) -> dict[str, int]:
    """Fields of `RxMeta`."""
    ipv6 = len(src) == 16
    mapped = 0 if ipv6 else MAPPED
    return {
        "src": mapped | int.from_bytes(src, "big"),
        "dst": mapped | int.from_bytes(dst, "big"),
        "src_port": src_port,
        "dst_port": dst_port,
        "ipv4": int(not ipv6),
        "ipv6": int(ipv6),
        "tcp": int(tcp),
    }


def number(fields: dict) -> int:
    return RxMeta.const(fields).as_value().value


def expected(hashing: Toeplitz, types: RssType, fields: dict[str, int], table: list[int]) -> tuple[int, int, int]:
    """(hashed, hash, queue) by the host's implementation."""
    value = None
    if fields["ipv4"] or fields["ipv6"]:
        size = 16 if fields["ipv6"] else 4
        src, dst = (fields[name].to_bytes(16, "big")[-size:] for name in ("src", "dst"))
        ports = (fields["src_port"], fields["dst_port"]) if fields["tcp"] else (None, None)
        value = hashing.packet(types, src, dst, *ports)
    if value is None:
        return 0, 0, DEFAULT
    return 1, value, table[value % RSS_TABLE_ENTRIES]


async def program(ctx, dut, key: bytes, types: int, table: list[int] = ()) -> None:
    ctx.set(dut.port.key, int.from_bytes(key, "little"))
    ctx.set(dut.port.types, types)
    ctx.set(dut.default_queue, DEFAULT)
    for index, queue in enumerate(table):
        ctx.set(dut.port.write, 1)
        ctx.set(dut.port.index, index)
        ctx.set(dut.port.queue, queue)
        await ctx.tick()
    ctx.set(dut.port.write, 0)


async def steer(ctx, dut, packets, go=lambda: True) -> list[tuple[int, int, int]]:
    """What comes out for each packet, one per enabled cycle; checks the latency."""
    out = []
    stream = [number(fields) for fields in packets] + [0] * dut.latency
    for at, value in enumerate(stream):
        ctx.set(Value.cast(dut.i), value)
        while not go():
            ctx.set(dut.enable, 0)
            await ctx.tick()
        ctx.set(dut.enable, 1)
        await ctx.tick()
        if at >= dut.latency - 1:
            got = data.Const(Steering, ctx.get(Value.cast(dut.o)))
            out.append((got.hashed, got.hash, got.queue))
        ctx.set(dut.enable, 0)
    return out[: len(packets)]


def test_published_vectors():
    dut = Rss()

    async def bench(ctx):
        table = [(7 * index + 3) % 256 for index in range(RSS_TABLE_ENTRIES)]
        await program(ctx, dut, RSS_KEY_PUBLISHED, ALL, table)
        ends = [(*vector.packed, vector.src_port, vector.dst_port) for vector in VECTORS]
        got = await steer(ctx, dut, [packet(*ends[i], tcp=tcp) for i in range(len(ends)) for tcp in (1, 0)])
        hashes = [value for vector in VECTORS for value in (vector.with_ports, vector.addresses_only)]
        assert [result[1] for result in got] == hashes
        assert got == [(1, value, table[value & 127]) for value in hashes]

    run(dut, bench)


@pytest.mark.parametrize("ipv6", (1, pytest.param(0, marks=pytest.mark.long)))
def test_all_inputs_by_linearity(ipv6):
    """A basis: one bit of the input set, under keys of one bit and a random one; and the zero input.

    Exclusive ors of these are all inputs and all keys; that the gateware holds nothing but exclusive ors of
    ANDs of one bit each is seen in `test_random`."""
    rng = random.Random(ipv6)
    size = 16 if ipv6 else 4
    dut = Rss()
    zero = packet(bytes(size), bytes(size), 0, 0)
    packets = [zero]
    for name, bits in (("src", 8 * size), ("dst", 8 * size), ("src_port", 16), ("dst_port", 16)):
        packets += [zero | {name: zero[name] | 1 << bit} for bit in range(bits)]
    keys = [1 << bit for bit in sorted({0, 31, 32, 319, *rng.sample(range(8 * RSS_KEY_BYTES), 4)})]
    keys.append(rng.getrandbits(8 * RSS_KEY_BYTES))

    async def bench(ctx):
        table = [rng.randrange(256) for _ in range(RSS_TABLE_ENTRIES)]
        await program(ctx, dut, bytes(RSS_KEY_BYTES), ALL, table)
        for value in keys:
            key = value.to_bytes(RSS_KEY_BYTES, "big")
            await program(ctx, dut, key, ALL)
            hashing = Toeplitz(key)
            got = await steer(ctx, dut, packets)
            assert got == [expected(hashing, ALL, fields, table) for fields in packets]

    run(dut, bench)
    assert len(packets) == (8 * RSS_INPUT_BYTES if ipv6 else 96) + 1


@pytest.mark.parametrize("seed", seeds(3))
def test_random(seed):
    """Every set of types, packets of every kind, a pipeline that is held, entries that change."""
    rng = random.Random(seed)
    print("seed", seed)
    dut = Rss()
    key = rng.randbytes(RSS_KEY_BYTES)
    hashing = Toeplitz(key)

    def fields():
        facts = random_facts(rng).flatten()
        facts["tcp"] = rng.getrandbits(1)
        for name, probability in (("src", 0.5), ("dst", 0.5), ("src_port", 0.5)):
            if rng.random() < probability:
                bits = 16 if name == "src_port" else 128 if facts["ipv6"] else 32
                facts[name] = rng.getrandbits(bits) | (MAPPED if bits == 32 else 0)
        if rng.random() < 0.1:
            facts["ipv4"] = facts["ipv6"] = 0
        return facts

    async def bench(ctx):
        table = [rng.randrange(256) for _ in range(RSS_TABLE_ENTRIES)]
        await program(ctx, dut, key, 0, table)
        for types in map(RssType, range(16)):
            at = rng.randrange(RSS_TABLE_ENTRIES)
            table[at] = rng.randrange(256)
            ctx.set(dut.port.index, at)
            ctx.set(dut.port.queue, table[at])
            ctx.set(dut.port.write, 1)
            await ctx.tick()
            await program(ctx, dut, key, types)
            packets = [fields() for _ in range(25)]
            got = await steer(ctx, dut, packets, lambda: rng.random() < 0.7)
            assert got == [expected(hashing, types, facts, table) for facts in packets], types

    run(dut, bench)


def test_converts():
    converts(Rss())
