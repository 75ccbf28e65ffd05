"""TxChecksum against scapy: every protocol, width, alignment and length; errors; throughput."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from amaranth import Value
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from acceltcp.abi.messages import TxFlag
from hw.config import NicConfig
from hw.packet.meta import TxMeta
from hw.packet.tx_checksum import TxChecksum
from tests.hw.simulate import always, beats, collect, converts, feed, packets, run, seeds, sometimes


def config(width: int = 64) -> NicConfig:
    return NicConfig(width=width, tx_buffer_beats=32768 // width, rx_buffer_beats=4096, ports=2)


@dataclass
class Case:
    """A frame as the host hands it over and as it must leave."""

    given: bytes
    wanted: bytes
    l3: int = 0
    l4: int = 0
    flags: int = 0
    port: int = 0
    err: bool = False

    def meta(self) -> int:
        return (
            TxMeta.const(
                {
                    "port": self.port,
                    "length": len(self.given),
                    "l3_offset": self.l3,
                    "l4_offset": self.l4,
                    "flags": self.flags,
                }
            )
            .as_value()
            .value
        )


def frame(rng: random.Random, payload: int, **choose: object) -> Case:
    """A random frame; scapy computes the checksums, the NIC gets rubbish in their place."""
    ipv6 = choose.get("ipv6", rng.random() < 0.5)
    kind = choose.get("kind", rng.choice(["tcp", "udp", "icmp", "none"]))
    vlan = choose.get("vlan", rng.random() < 0.3)
    options = rng.choice([0, 0, 1]) if not ipv6 else 0
    head = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    if vlan:
        head /= Dot1Q(vlan=rng.randrange(4096))
    l3 = 18 if vlan else 14
    if ipv6:
        ip = IPv6(src=f"2001:db8::{rng.randrange(1, 65535):x}", dst=f"fd00::{rng.randrange(1, 65535):x}")
        ip.hlim, l4 = rng.randrange(256), l3 + 40
    else:
        ip = IP(src=f"10.{rng.randrange(256)}.0.1", dst=f"192.168.{rng.randrange(256)}.{rng.randrange(256)}")
        ip.id, ip.tos = rng.randrange(65536), rng.randrange(256)
        if options:
            ip.options = [IPOption_NOP()] * 4 + [IPOption_Router_Alert()]
        l4 = l3 + 20 + 8 * options
    body = Raw(rng.randbytes(payload))
    flags, hole = (TxFlag.IPV6 if ipv6 else TxFlag.IPV4_CHECKSUM), None
    if kind == "tcp":
        layer = TCP(sport=rng.randrange(65536), dport=80, seq=rng.getrandbits(32), flags="PA")
        layer.options = rng.choice([[], [("Timestamp", (rng.getrandbits(32), 7)), ("NOP", None), ("NOP", None)]])
        flags, hole = flags | TxFlag.L4_CHECKSUM, l4 + 16
    elif kind == "udp":
        layer = UDP(sport=rng.randrange(65536), dport=53)
        flags, hole = flags | TxFlag.L4_CHECKSUM | TxFlag.UDP, l4 + 6
    elif kind == "icmp" and ipv6:
        layer = ICMPv6EchoRequest(id=rng.randrange(65536), data=rng.randbytes(payload))
        body, flags, hole = None, flags | TxFlag.L4_CHECKSUM | TxFlag.ICMPV6, l4 + 2
    else:
        layer = ICMP(id=rng.randrange(65536))
    packet = head / ip / layer / body if body is not None else head / ip / layer
    wanted = bytearray(bytes(packet))
    wanted += rng.randbytes(max(0, 60 - len(wanted)))  # padding that is not zero must not count
    given = bytearray(wanted)
    if not ipv6:
        given[l3 + 10 : l3 + 12] = rng.randbytes(2)
    if hole:
        given[hole : hole + 2] = rng.randbytes(2)
    return Case(bytes(given), bytes(wanted), l3, l4 if hole else rng.randrange(256), flags, rng.randrange(2))


def check(cases: list[Case], width: int, *, idle=always, stall=always, meta_go=always, cycles=20000) -> int:
    """Run the frames through and compare; returns the cycles from first to last beat out."""
    dut = TxChecksum(config(width))
    good = [case for case in cases if not case.err]
    total = sum(-(-len(case.wanted) // width) for case in good)
    ports: list[int] = []
    counted = [0, 0]
    span: list[int] = []

    async def put(ctx):
        values = [value for case in cases for value in beats(case.given, width, case.err)]
        await feed(ctx, dut.packets, values, idle)

    async def put_meta(ctx):
        await feed(ctx, dut.meta, [case.meta() for case in cases], meta_go)

    async def get(ctx):
        assert packets(await collect(ctx, dut.o, total, stall), width) == [case.wanted for case in good]
        await ctx.tick().repeat(60)
        assert not ctx.get(dut.o.valid) and not ctx.get(dut.busy)
        assert counted == [len(good), sum(len(case.wanted) for case in good)]
        assert ports == [case.port for case in good]

    async def monitor(ctx):
        waiting, cycle = None, 0
        async for _, _, valid, ready, last, port, value, n, size in ctx.tick().sample(
            dut.o.valid, dut.o.ready, dut.o.p.last, dut.port, Value.cast(dut.o.payload),
            dut.counts.tx_host_packets, dut.counts.tx_host_bytes,
        ):  # fmt: skip
            cycle += 1
            assert waiting is None or (valid and (port, value) == waiting), "offered beat changed"
            waiting = (port, value) if valid and not ready else None
            if valid and ready:
                span.append(cycle)
                if last:
                    ports.append(port)
            counted[0] += n
            counted[1] += size

    run(dut, put, put_meta, get, background=[monitor], cycles=cycles)
    return span[-1] - span[0] + 1


@pytest.mark.parametrize("width", [8, 32, 64])
@pytest.mark.parametrize("seed", seeds(2))
def test_random_frames(width: int, seed: int) -> None:
    rng = random.Random(10 * width + seed)
    cases = [frame(rng, rng.choice([0, 1, 2, rng.randrange(200), rng.randrange(1440)])) for _ in range(40)]
    if seed:
        check(cases, width, idle=sometimes(1, 0.7), stall=sometimes(2, 0.6), meta_go=sometimes(3, 0.3))
    else:
        check(cases, width)


@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("ipv6", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_length_to_four_beats(kind: str, ipv6: bool) -> None:
    rng = random.Random(len(kind) + ipv6)
    check([frame(rng, n, kind=kind, ipv6=ipv6) for n in range(0, 200, 3)], 64)


@pytest.mark.slow
@pytest.mark.parametrize("width", [8, 64])
def test_jumbo_frames(width: int) -> None:
    rng = random.Random(width)
    check([frame(rng, 8900 + n, kind="tcp") for n in range(2)], width)


@pytest.mark.parametrize("width", [pytest.param(8, marks=pytest.mark.slow), pytest.param(32, marks=pytest.mark.slow), 64])
def test_bad_frames_are_discarded(width: int) -> None:
    rng = random.Random(3)
    cases = [frame(rng, rng.randrange(300)) for _ in range(60)]
    for case in cases:
        case.err = rng.random() < 0.5
    cases[-1].err = True
    check(cases, width, stall=sometimes(5, 0.8))


@pytest.mark.slow
def test_more_bad_frames_than_fit() -> None:
    rng = random.Random(4)
    cases = [frame(rng, 8900, kind="udp") for _ in range(5)]
    for case in cases[:-1]:
        case.err = True
    check(cases, 64)


def test_frames_without_flags_pass_untouched() -> None:
    rng = random.Random(6)
    cases = []
    for length in (14, 15, 60, 64, 65, 1514):
        octets = rng.randbytes(length)
        cases.append(Case(octets, octets, rng.randrange(256), rng.randrange(256), TxFlag.EVENT))
    check(cases, 64)


@pytest.mark.parametrize("ipv6", [False, True])
def test_udp_zero_is_sent_as_ones(ipv6: bool) -> None:
    """Choose the payload so that the sum becomes 0xffff; scapy sends 0xffff then as well."""
    rng = random.Random(7)
    case = frame(rng, 2, kind="udp", ipv6=ipv6, vlan=False)
    at = case.l4 + 6
    old = int.from_bytes(case.wanted[at : at + 2], "big")
    word = int.from_bytes(case.wanted[at + 2 : at + 4], "big") + old
    word = (word & 0xFFFF) + (word >> 16)
    given, wanted = bytearray(case.given), bytearray(case.wanted)
    given[at + 2 : at + 4] = wanted[at + 2 : at + 4] = word.to_bytes(2, "big")
    wanted[at : at + 2] = b"\xff\xff"
    again = Ether(bytes(wanted))
    del again[UDP].chksum
    assert bytes(again) == bytes(wanted), "scapy agrees"
    case.given, case.wanted = bytes(given), bytes(wanted)
    check([case], 64)


@pytest.mark.slow
def test_one_frame_per_cycle() -> None:
    rng = random.Random(8)
    cases = [frame(rng, 6, kind="tcp", ipv6=False, vlan=False) for _ in range(150)]
    cases = [case for case in cases if len(case.given) <= 64]
    assert check(cases, 64) <= len(cases) + 2


def test_one_beat_per_cycle() -> None:
    rng = random.Random(9)
    cases = [frame(rng, 1460, kind="tcp", ipv6=False, vlan=False) for _ in range(12)]
    total = sum(-(-len(case.wanted) // 64) for case in cases)
    assert check(cases, 64) <= total + 2


@pytest.mark.parametrize("width", [8, 32, 64])
def test_latency_is_as_stated(width: int) -> None:
    dut = TxChecksum(config(width))
    case = frame(random.Random(1), 100)
    cycles = 0

    async def bench(ctx):
        nonlocal cycles
        ctx.set(dut.o.ready, 1)
        ctx.set(Value.cast(dut.meta.payload), case.meta())
        ctx.set(dut.meta.valid, 1)
        await feed(ctx, dut.packets, beats(case.given, width))
        ctx.set(dut.meta.valid, 0)
        while not ctx.get(dut.o.valid):
            cycles += 1
            await ctx.tick()

    run(dut, bench)
    assert cycles + 1 == dut.latency


def test_converts() -> None:
    for width in (8, 32):
        converts(TxChecksum(config(width)))
