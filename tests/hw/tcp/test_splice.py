"""SpliceRewriter, packet by packet against a model on bytes and against scapy, which also computes checksums anew."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from amaranth import Value
from scapy.layers.inet import IP, TCP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from hw.config import NicConfig
from hw.tcp.splice import SpliceRewriter
from hw.tcp.splice_records import SpliceRecord
from tests.hw.packet.traffic import bad_options, good_options
from tests.hw.simulate import always, beats, converts, packets, run, sometimes
from tests.hw.tcp.splice_model import M32, Way, rewrite

MACS = (b"\x02\x11\x22\x33\x44\x55", b"\x06\xaa\xbb\xcc\xdd\xee")
MAPPED = 0xFFFF << 32


def config(width: int = 64, ports: int = 2) -> NicConfig:
    return NicConfig(width=width, ports=ports, splices=16, tx_buffer_beats=32768 // width)


# --- Traffic -----------------------------------------------------------------------------------


def number(rng: random.Random) -> int:
    return rng.choice((0, 1, M32, 0x80000000, 0xFFFF, *(rng.getrandbits(32) for _ in range(5))))


def any_way(rng: random.Random, ipv6: bool, **fixed) -> Way:
    size = 16 if ipv6 else 4
    port = rng.randrange(2)
    way = Way(
        src=rng.choice((rng.randbytes(size), b"\xff" * size)),
        dst=rng.randbytes(size),
        src_port=rng.getrandbits(16),
        dst_port=rng.getrandbits(16),
        src_mac=MACS[port],
        dst_mac=rng.randbytes(6),
        tci=rng.choice((None, rng.getrandbits(16))),
        port=port,
        seq_offset=number(rng),
        ack_offset=number(rng),
        tsval_offset=number(rng),
        tsecr_offset=number(rng),
        window_shift=rng.choice((0, rng.randrange(-14, 15))),
        timestamps=rng.random() < 0.7,
        sack=rng.random() < 0.7,
        ecn=rng.random() < 0.5,
        in_port=rng.randrange(2),
    )
    for name, value in fixed.items():
        setattr(way, name, value)
    return way


def plain_options(rng: random.Random) -> list:
    """As scapy writes them: any order, every alignment."""
    out: list = []
    size = 0
    for _ in range(rng.randrange(5)):
        blocks = rng.randrange(1, 5)
        option, length = rng.choice(
            (
                (("NOP", None), 1),
                (("Timestamp", (number(rng), number(rng))), 10),
                (("SAck", tuple(number(rng) for _ in range(2 * blocks))), 2 + 8 * blocks),
            )
        )
        if size + length <= 40:
            out.append(option)
            size += length
    return out + [("NOP", None)] * (-size % 4)


def build(
    rng: random.Random, ipv6: bool, tci: int | None, options: list | bytes, payload: bytes, flags: int, hops: int
) -> Packet:
    """A frame before its padding; scapy computes lengths and checksums."""
    frame = Ether(src=rng.randbytes(6), dst=rng.randbytes(6))
    if tci is not None:
        frame /= Dot1Q(prio=tci >> 13, dei=tci >> 12 & 1, vlan=tci & 0xFFF)
    if ipv6:
        frame /= IPv6(src=address(rng.randbytes(16)), dst=address(rng.randbytes(16)), hlim=hops)
        frame[IPv6].tc, frame[IPv6].fl = rng.getrandbits(8), rng.getrandbits(20)
    else:
        frame /= IP(src=address(rng.randbytes(4)), dst=address(rng.randbytes(4)), ttl=hops)
        frame[IP].tos, frame[IP].id = rng.getrandbits(8), rng.getrandbits(16)
    segment = TCP(sport=rng.getrandbits(16), dport=rng.getrandbits(16), seq=number(rng), ack=number(rng))
    segment.window = rng.choice((0, 1, 65535, rng.getrandbits(16)))
    segment.flags, segment.urgptr = flags, rng.getrandbits(16)
    if isinstance(options, bytes):
        segment.dataofs = 5 + len(options) // 4
        return frame / segment / Raw(options + payload)
    segment.options = options
    return frame / segment / Raw(payload)


def address(octets: bytes) -> str:
    return str(ipaddress.ip_address(octets))


@dataclass
class Job:
    """A frame and what becomes of it."""

    frame: bytes
    way: Way
    option_words: int
    wanted: bytes | None = None
    corrupt: bool = False
    plain: Packet | None = None
    """As scapy has it, when scapy understands its options."""
    sent: bytes | None = field(default=None)

    def __post_init__(self) -> None:
        self.wanted = rewrite(self.frame, self.way)

    @property
    def tagged(self) -> bool:
        return self.frame[12:14] == b"\x81\x00"

    @property
    def ipv6(self) -> bool:
        return len(self.way.src) == 16

    def record(self) -> int:
        way = self.way

        def whole(octets: bytes) -> int:
            return int.from_bytes(octets, "big") | (MAPPED if len(octets) == 4 else 0)

        translation = {
            "src": whole(way.src),
            "dst": whole(way.dst),
            "src_port": way.src_port,
            "dst_port": way.dst_port,
            "dst_mac": int.from_bytes(way.dst_mac, "big"),
            "vlan": way.tci is not None,
            "vlan_tci": way.tci or 0,
            "port": way.port,
            "window_down": way.window_shift < 0,
            "window_shift": abs(way.window_shift),
            "tsval_offset": way.tsval_offset,
            "tsecr_offset": way.tsecr_offset,
            "timestamps": way.timestamps,
            "sack": way.sack,
            "ecn": way.ecn,
        }
        fields = {
            "in_port": way.in_port,
            "in_vlan": self.tagged,
            "ipv6": self.ipv6,
            "option_words": self.option_words,
            "seq_offset": way.seq_offset,
            "ack_offset": way.ack_offset,
            "translation": translation,
        }
        return SpliceRecord.const(fields).as_value().value


def job(rng: random.Random, **choose) -> Job:
    """A random packet; what matters may be chosen."""
    ipv6 = choose.get("ipv6", rng.random() < 0.5)
    tci = choose["tci"] if "tci" in choose else rng.choice((None, rng.getrandbits(16)))
    kind = rng.choice((plain_options, plain_options, good_options, bad_options))
    options = choose["options"] if "options" in choose else kind(rng)
    payload = rng.randbytes(choose["payload"] if "payload" in choose else rng.choice((0, 0, 1, 2, rng.randrange(150))))
    flags = rng.choice((0x10, 0x10, 0x18, 0x11, 0xD0, 0x04, 0x14, rng.getrandbits(8)))
    hops = choose.get("hops", rng.choice((64, 255, 2, 128)))
    packet = build(rng, ipv6, tci, options, payload, flags, hops)
    octets = bytearray(bytes(packet))
    end = len(octets)
    corrupt = rng.random() < choose.get("corrupt", 0)
    l3 = 14 if tci is None else 18
    l4 = l3 + (40 if ipv6 else 20)
    if corrupt:
        anywhere = (l4 + 16, l4 + 17, l4 + 5, end - 1)
        at = rng.choice(anywhere if ipv6 else (*anywhere, l3 + 10, l3 + 11, l3 + 4))
        octets[at] ^= 1 << rng.randrange(8)
    octets += rng.randbytes(max(0, 60 - end))
    way = choose["way"] if "way" in choose else any_way(rng, ipv6)
    made = Job(bytes(octets), way, (octets[l4 + 12] >> 4) - 5, corrupt=corrupt)
    if isinstance(options, list):
        made.plain = Ether(bytes(packet))
    return made


# --- Oracles beside the model ------------------------------------------------------------------


def verifies(frame: bytes) -> bool:
    """By the sums that scapy makes of the frame's own bytes: odd options it would write otherwise than they came."""
    frame = bytearray(frame)
    packet = Ether(frame)
    ip = packet[IPv6] if IPv6 in packet else packet[IP]
    l3 = len(packet) - len(ip)
    l4 = l3 + (40 if IPv6 in packet else 20)
    end = l4 + ip.plen if IPv6 in packet else l3 + ip.len
    segment = bytes(frame[l4:end])
    blank = segment[:16] + b"\0\0" + segment[18:]
    given = int.from_bytes(segment[16:18], "big")
    if IPv6 in packet:
        return in6_chksum(6, ip, blank) == given
    header = bytes(frame[l3:l4])
    whole = checksum(header[:10] + b"\0\0" + header[12:]) == ip.chksum
    return whole and in4_chksum(6, ip, blank) == given


def by_scapy(made: Job) -> bytes:
    """The frame as it must leave, field by field in scapy's words."""
    way, packet = made.way, made.plain.copy()
    segment = packet[TCP]
    ack = bool(segment.flags.A)
    segment.sport, segment.dport = way.src_port, way.dst_port
    segment.seq = segment.seq + way.seq_offset & M32
    if ack:
        segment.ack = segment.ack + way.ack_offset & M32
    if way.window_shift < 0:
        segment.window >>= -way.window_shift
    else:
        segment.window = min(65535, segment.window << way.window_shift)
    if not way.ecn:
        segment.flags = int(segment.flags) & ~0xC0
    options: list = []
    for name, value in segment.options:
        if name == "Timestamp" and way.timestamps:
            tsval, tsecr = value
            value = (tsval + way.tsval_offset & M32, tsecr + way.tsecr_offset & M32 if ack else tsecr)
        elif name == "SAck" and way.sack:
            value = tuple(edge + way.ack_offset & M32 for edge in value)
        elif name != "NOP":
            options += [("NOP", None)] * (10 if name == "Timestamp" else 2 + 4 * len(value))
            continue
        options.append((name, value))
    segment.options = options
    ip = packet[IPv6] if made.ipv6 else packet[IP]
    ip.src, ip.dst = address(way.src), address(way.dst)
    if made.ipv6:
        ip.hlim -= 1
        ip.tc &= 0xFF if way.ecn else 0xFC
    else:
        ip.ttl -= 1
        ip.tos &= 0xFF if way.ecn else 0xFC
        del ip.chksum
    del segment.chksum
    out = Ether(src=way.src_mac, dst=way.dst_mac)
    if way.tci is not None:
        out /= Dot1Q(prio=way.tci >> 13, dei=way.tci >> 12 & 1, vlan=way.tci & 0xFFF)
    size = len(bytes(made.plain))
    return bytes(out / ip) + made.frame[size:]


# --- Running it --------------------------------------------------------------------------------


def rewritten(
    jobs: list[Job],
    width: int = 64,
    ports: int = 2,
    go_records: Callable[[], bool] = always,
    go_packets: Callable[[], bool] = always,
    go_out: Callable[[], bool] = always,
    cycles: int = 20_000,
) -> list[int]:
    """Runs all jobs, compares every frame that leaves, and returns the cycle of each beat taken on `o`."""
    dut = SpliceRewriter(config(width, ports))
    total = sum(-(-len(job.wanted) // width) for job in jobs if job.wanted is not None)
    drops = sum(job.wanted is None for job in jobs)
    taken: list[int] = []
    out_ports: list[int] = []
    times: list[int] = []
    dropped = [0]

    async def offer(ctx, stream, values, go) -> None:
        payload = Value.cast(stream.payload)
        for value in values:
            while not go():
                ctx.set(stream.valid, 0)
                await ctx.tick()
            ctx.set(payload, value)
            ctx.set(stream.valid, 1)
            await ctx.tick().until(stream.ready)
        ctx.set(stream.valid, 0)

    def port_source(port):
        values = [value for job in jobs if job.way.in_port == port for value in beats(job.frame, width)]
        return lambda ctx: offer(ctx, dut.packets[port], values, go_packets)

    async def record_source(ctx) -> None:
        await offer(ctx, dut.records, [job.record() for job in jobs], go_records)

    async def sink(ctx) -> None:
        payload = Value.cast(dut.o.payload)
        for port in range(ports):
            ctx.set(dut.mac[port], int.from_bytes(MACS[port], "big"))
        now = 0
        idle = 0
        while len(taken) < total or dropped[0] < drops or idle < 5:
            ready = go_out()
            ctx.set(dut.o.ready, ready)
            sampled = ctx.tick().sample(dut.o.valid, payload, dut.port, dut.counts.splice_drop_hops, dut.busy)
            _, _, valid, value, port, gone, busy = await sampled
            if valid and ready:
                taken.append(value)
                out_ports.append(port)
                times.append(now)
            dropped[0] += gone
            idle = 0 if busy else idle + 1
            now += 1

    run(dut, *(port_source(port) for port in range(ports)), record_source, sink, cycles=cycles)
    assert dropped[0] == drops and len(taken) == total
    kept = [job for job in jobs if job.wanted is not None]
    got = packets(taken, width)
    assert len(got) == len(kept)
    at = 0
    for job, frame in zip(kept, got, strict=True):
        assert frame == job.wanted, f"\n{job.frame.hex()}\n{frame.hex()}\n{job.wanted.hex()}\n{job.way}"
        count = -(-len(frame) // width)
        assert out_ports[at : at + count] == [job.way.port] * count
        at += count
        job.sent = frame
    return times


def check_independently(jobs: list[Job]) -> None:
    """What has left, as scapy sees it."""
    for job in jobs:
        if job.sent is not None:
            assert verifies(job.sent) == (not job.corrupt), job.sent.hex()
            if job.plain is not None and not job.corrupt:
                assert job.sent == by_scapy(job), job.sent.hex()


# --- Tests -------------------------------------------------------------------------------------


def one_beat(rng: random.Random) -> Job:
    return job(rng, ipv6=False, tci=None, options=[], payload=0, way=any_way(rng, False, tci=rng.choice((None, 3))))


@pytest.mark.parametrize("width, ports, count", [(8, 2, 12), (32, 1, 15), (64, 2, 110)])
def test_random_packets(width: int, ports: int, count: int) -> None:
    """The first one has the longest header: cycles from the beat with its last byte to the first beat out."""
    seed = 100 + width
    rng = random.Random(seed)
    print(f"seed {seed}")
    options = [("SAck", tuple(range(8))), ("NOP", None), ("NOP", None)]
    fixed = {"in_port": 0, "port": 0, "src_mac": MACS[0]} if ports == 1 else {}
    jobs = [job(rng, ipv6=True, tci=None, options=options, payload=300, way=any_way(rng, True, tci=None, **fixed))]
    for _ in range(count):
        ipv6 = rng.random() < 0.5
        jobs.append(job(rng, ipv6=ipv6, corrupt=0.2, way=any_way(rng, ipv6, **fixed)))
    assert sum(job.plain is not None for job in jobs) > count / 4 and any(job.corrupt for job in jobs)
    times = rewritten(jobs, width, ports)
    check_independently(jobs)
    latency = SpliceRewriter(config(width)).latency
    assert latency <= 32
    assert times[0] == (14 + 40 + 20 + 36 - 1) // width + latency
    beats_of_first = -(-len(jobs[0].sent) // width)
    assert times[:beats_of_first] == list(range(times[0], times[0] + beats_of_first))


@pytest.mark.parametrize("width, count", [(64, 50), (8, 6)])
def test_pauses(width: int, count: int) -> None:
    """Everywhere at random, and two stops in which everything inside fills up; nothing is lost or changes places."""
    rng = random.Random(7 + width)
    jobs = [one_beat(rng) for _ in range(50 if width == 64 else 5)] + [job(rng, payload=20 * width)]
    jobs += [job(rng, hops=rng.choice((0, 1, 2, 64))) for _ in range(count)]
    assert any(job.wanted is None for job in jobs)
    now, often = [0], sometimes(3, 0.6)

    def go_out() -> bool:
        now[0] += 1
        return not (20 < now[0] < 90 or 120 < now[0] < 190) and often()

    rewritten(jobs, width, go_records=sometimes(1, 0.8), go_packets=sometimes(2, 0.8), go_out=go_out)
    assert now[0] > 190


def test_tags_padding_and_hops() -> None:
    """Every length near a beat's boundary, with the tag added, removed, changed or left.

    Bytes after the IP packet are those that came. With the last hop used up nothing leaves.
    """
    rng = random.Random(9)
    jobs = []
    for before, after in ((None, 5), (0xE001, None), (0x1001, 0x2002), (7, 7), (None, None)):
        for ipv6, header in ((False, 54), (True, 74)):
            for size in (*range(60, 69), *range(124, 132)):
                payload = size - header - (0 if before is None else 4)
                if payload >= 0:
                    way = any_way(rng, ipv6, tci=after)
                    jobs.append(job(rng, ipv6=ipv6, tci=before, options=[], payload=payload, way=way))
    small = [job(rng, ipv6=False, tci=None, options=[], payload=k, way=any_way(rng, False, tci=None)) for k in range(7)]
    hops = []
    for ipv6 in (False, True):
        hops += [job(rng, ipv6=ipv6, hops=left, payload=rng.choice((0, 300))) for left in (0, 1, 2, 3, 255)]
    assert [job.wanted is None for job in hops] == [True, True, False, False, False] * 2
    jobs += small + hops
    rng.shuffle(jobs)
    rewritten(jobs)
    check_independently(jobs)
    for made in jobs:
        if made.sent is not None:
            assert len(made.sent) - len(made.frame) == 4 * ((made.way.tci is not None) - made.tagged)
    for size, made in enumerate(small):
        assert made.sent[54 + size :] == made.frame[54 + size :] and len(made.sent) == 60


def test_rates() -> None:
    """One packet of 60 bytes per cycle; then long ones, a beat per cycle but for the beat that a removed tag saves."""
    rng = random.Random(13)
    short = [one_beat(rng) for _ in range(64)]
    long = []
    for payload, tci in ((1400, 5), (700, None)):
        for ipv6 in (False, True):
            long.append(job(rng, ipv6=ipv6, tci=9, payload=payload, way=any_way(rng, ipv6, tci=tci)))
    times = rewritten(short + long)
    assert times[0] == SpliceRewriter(config()).latency == 25
    assert times[:64] == list(range(times[0], times[0] + 64))
    # A beat more: the second one of the first long packet has its header's last byte.
    assert times[-1] - times[63] <= sum(-(-len(job.frame) // 64) for job in long) + 1


def test_netlist_and_parameters() -> None:
    converts(SpliceRewriter(config()))
    with pytest.raises(TypeError, match=r"^config must be a NicConfig, not 64$"):
        SpliceRewriter(64)
