"""TxPatcher against scapy: every place of a TCP header, every field, and nothing else in the frame."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from amaranth import Module, Value
from amaranth.lib import data
from amaranth.lib.wiring import connect
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from acceltcp.abi.messages import TxFlag
from hw.config import AXI_BYTES, NicConfig
from hw.packet.meta import TxMeta
from hw.packet.patch import METAS, TxPatcher
from hw.packet.tx_checksum import TxChecksum
from tests.hw.simulate import always, beats, collect, converts, feed, packets, run, seeds, sometimes

PLACES = [(ipv6, vlan) for ipv6 in (False, True) for vlan in (False, True)]


@dataclass
class Case:
    """A frame of the host and what is to be written into it."""

    frame: bytes
    l4: int
    ipv6: bool
    wanted: int = 1
    timestamps: int = 1
    ack: int = 0
    tsecr: int = 0

    def meta(self) -> int:
        patch = {name: getattr(self, name) for name in ("wanted", "timestamps", "ack", "tsecr")}
        flags = TxFlag.L4_CHECKSUM | (TxFlag.IPV6 if self.ipv6 else TxFlag.IPV4_CHECKSUM)
        values = {
            "length": len(self.frame), "l3_offset": self.l4 - (40 if self.ipv6 else 20), "l4_offset": self.l4,
            "flags": flags, "patch": patch,
        }  # fmt: skip
        return TxMeta.const(values).as_value().value

    def patched(self, clock: int) -> Ether:
        """As scapy makes it."""
        packet = Ether(self.frame)
        if self.wanted:
            packet[TCP].ack = self.ack
            if self.timestamps:
                packet[TCP].options = [("NOP", None), ("NOP", None), ("Timestamp", (clock, self.tsecr))]
        return packet


def final_frame(rng: random.Random, payload: int, ipv6: bool, vlan: bool, timestamps: bool) -> tuple[bytes, int]:
    """A final frame with rubbish where the NIC writes, and the offset of its TCP header."""
    head = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    head = head / Dot1Q(vlan=rng.randrange(4096)) if vlan else head
    ip = IPv6(src="2001:db8::1", dst="fd00::2") if ipv6 else IP(src="10.0.0.2", dst="10.0.0.1", id=7)
    tcp = TCP(sport=80, dport=rng.randrange(65536), seq=rng.getrandbits(32), ack=rng.getrandbits(32), flags="FA")
    if timestamps:
        tcp.options = [("NOP", None), ("NOP", None), ("Timestamp", (rng.getrandbits(32), rng.getrandbits(32)))]
    frame = head / ip / tcp / Raw(rng.randbytes(payload))
    return bytes(frame), len(head) + len(ip)


def random_case(rng: random.Random, **choose: int) -> Case:
    ipv6, vlan = choose.get("place", rng.choice(PLACES))
    timestamps = choose.get("timestamps", rng.getrandbits(1))
    payload = choose.get("payload", rng.choice((0, 1, 6, 50, 51, 64, rng.randrange(300), 1400)))
    frame, l4 = final_frame(rng, payload, ipv6, vlan, bool(timestamps))
    wanted = choose.get("wanted", int(rng.random() < 0.8))
    return Case(frame, l4, ipv6, wanted, timestamps, rng.getrandbits(32), rng.getrandbits(32))


def check(cases: list[Case], *, idle=always, stall=always, meta_idle=always, meta_stall=always, seed: int = 0) -> int:
    """Patch the frames and compare; returns the cycles from the first to the last beat taken."""
    dut = TxPatcher()
    values = [value for case in cases for value in beats(case.frame, AXI_BYTES)]
    metas = [case.meta() for case in cases]
    clocks: list[int] = []  # the clock when a frame's first beat was taken
    taken: list[int] = []

    async def clock(ctx):
        rng = random.Random(seed)
        now, first, cycle = rng.getrandbits(32), True, 0
        while True:
            now = now + rng.choice((0, 1, 1 << 24)) & 0xFFFF_FFFF
            ctx.set(dut.ts_clock, now)
            _, _, go, last = await ctx.tick().sample(dut.packets.valid & dut.packets.ready, dut.packets.p.last)
            cycle += 1
            if go:
                taken.append(cycle)
                if first:
                    clocks.append(now)
                first = bool(last)

    async def get(ctx):
        got = packets(await collect(ctx, dut.o_packets, len(values), stall), AXI_BYTES)
        for number, (case, frame) in enumerate(zip(cases, got, strict=True)):
            assert frame == bytes(case.patched(clocks[number])), (seed, number, case)

    async def get_metas(ctx):
        assert await collect(ctx, dut.o_meta, len(metas), meta_stall) == metas

    run(
        dut,
        lambda ctx: feed(ctx, dut.packets, values, idle),
        lambda ctx: feed(ctx, dut.meta, metas, meta_idle),
        get,
        get_metas,
        background=[clock],
    )
    return taken[-1] - taken[0] + 1


@pytest.mark.parametrize("ipv6, vlan", PLACES)
@pytest.mark.parametrize("wanted, timestamps", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_every_place_and_field(ipv6, vlan, wanted, timestamps):
    """Each byte to be written takes both values of each of its bits; headers end within or behind a beat."""
    rng = random.Random(1)
    cases = []
    for payload in (0, 1, 10, 64, 200):
        for pattern in (0, 0xFFFF_FFFF, 0x0123_4567, 0xFEDC_BA98):
            case = random_case(rng, place=(ipv6, vlan), wanted=wanted, timestamps=timestamps, payload=payload)
            case.ack, case.tsecr = pattern, pattern ^ 0xF0F0_0F0F
            cases.append(case)
    check(cases, seed=1)


@pytest.mark.parametrize("seed", seeds(4))
def test_pauses(seed):
    """All streams pause; a frame is not mistaken for its neighbour."""
    rng = random.Random(seed)
    go = [sometimes(10 * seed + n, rng.choice((0.3, 0.8))) for n in range(4)]
    check(
        [random_case(rng) for _ in range(60)], idle=go[0], stall=go[1], meta_idle=go[2], meta_stall=go[3], seed=seed
    )


def test_other_offsets_are_left_alone():
    """Whatever `patch` says, only a frame whose header starts where final frames have it is written to."""
    rng = random.Random(5)
    cases = []
    for l4 in (0, 33, 36, 50, 55, 62, 255):
        case = random_case(rng, wanted=1, timestamps=1, place=(False, False))
        case.l4 = l4
        cases.append(case)
    dut = TxPatcher()
    values = [value for case in cases for value in beats(case.frame, AXI_BYTES)]
    metas = [
        TxMeta.const({"l4_offset": case.l4, "patch": {"wanted": 1, "timestamps": 1, "ack": 1}}).as_value().value
        for case in cases
    ]

    async def get(ctx):
        assert await collect(ctx, dut.o_packets, len(values)) == values

    async def get_metas(ctx):
        assert await collect(ctx, dut.o_meta, len(metas)) == metas

    run(dut, lambda ctx: feed(ctx, dut.packets, values), lambda ctx: feed(ctx, dut.meta, metas), get, get_metas)


def test_one_beat_per_cycle():
    rng = random.Random(6)
    small = [random_case(rng, payload=0, place=(False, False), timestamps=0) for _ in range(40)]
    assert check(small) == len(small), "one frame per cycle"
    large = [random_case(rng, payload=500) for _ in range(10)]
    assert check(large) == sum(-(-len(case.frame) // AXI_BYTES) for case in large)


def test_metas_that_nobody_takes_stop_the_frames():
    """Up to `METAS` of them wait; nothing is lost."""
    rng = random.Random(7)
    cases = [random_case(rng, payload=0, place=(False, False), timestamps=0) for _ in range(METAS + 10)]
    open_ = [False]
    dut = TxPatcher()
    got = []

    async def look(ctx):
        await ctx.tick().repeat(3 * METAS)
        assert METAS <= len(got) <= METAS + 1
        assert ctx.get(dut.busy)
        open_[0] = True

    async def get(ctx):
        values = Value.cast(dut.o_packets.payload)
        ctx.set(dut.o_packets.ready, 1)
        while len(got) < len(cases):
            _, _, valid, value = await ctx.tick().sample(dut.o_packets.valid, values)
            if valid:
                got.append(value)
        assert packets(got, AXI_BYTES) == [bytes(case.patched(0)) for case in cases]

    async def get_metas(ctx):
        taken = await collect(ctx, dut.o_meta, len(cases), lambda: open_[0])
        assert taken == [case.meta() for case in cases]
        await ctx.tick()
        assert not ctx.get(dut.busy)

    values = [value for case in cases for value in beats(case.frame, AXI_BYTES)]
    run(
        dut,
        lambda ctx: feed(ctx, dut.packets, values),
        lambda ctx: feed(ctx, dut.meta, [case.meta() for case in cases]),
        look,
        get,
        get_metas,
    )


def test_latency():
    """A beat comes out a cycle later, the meta of its frame with it or a cycle later; a frame alone is held by
    nothing."""
    case = random_case(random.Random(8), payload=0, place=(False, False), timestamps=0, wanted=1)
    dut = TxPatcher()

    async def bench(ctx):
        ctx.set(Value.cast(dut.packets.payload), beats(case.frame, AXI_BYTES)[0])
        ctx.set(Value.cast(dut.meta.payload), case.meta())
        ctx.set(dut.packets.valid, 1)
        await ctx.tick()
        assert not ctx.get(dut.packets.ready) and not ctx.get(dut.o_packets.valid), "the meta is missing"
        ctx.set(dut.meta.valid, 1)
        assert ctx.get(dut.packets.ready) and ctx.get(dut.meta.ready)
        await ctx.tick()
        ctx.set(dut.packets.valid, 0)
        ctx.set(dut.meta.valid, 0)
        assert ctx.get(dut.o_packets.valid)
        await ctx.tick()
        assert ctx.get(dut.o_meta.valid)
        assert data.Const(TxMeta, ctx.get(Value.cast(dut.o_meta.payload))).patch.ack == case.ack

    run(dut, bench)


def test_checksums_behind_it():
    """Patcher and checksum unit together: what leaves is what scapy builds, checksums included."""
    rng = random.Random(9)
    cases = [random_case(rng) for _ in range(20)]
    m = Module()
    m.submodules.patcher = patcher = TxPatcher()
    m.submodules.checksum = checksum = TxChecksum(NicConfig(tx_buffer_beats=512, rx_buffer_beats=4096))
    connect(m, patcher.o_packets, checksum.packets)
    connect(m, patcher.o_meta, checksum.meta)
    values = [value for case in cases for value in beats(case.frame, AXI_BYTES)]
    clock = 0xA1B2C3D4

    async def get(ctx):
        ctx.set(patcher.ts_clock, clock)
        got = packets(await collect(ctx, checksum.o, len(values)), AXI_BYTES)
        for case, frame in zip(cases, got, strict=True):
            want = case.patched(clock)
            del want[TCP].chksum
            if not case.ipv6:
                del want[IP].chksum
            assert frame == bytes(want), case

    run(
        m,
        lambda ctx: feed(ctx, patcher.packets, values),
        lambda ctx: feed(ctx, patcher.meta, [case.meta() for case in cases]),
        get,
    )


def test_converts():
    converts(TxPatcher())
