# amaranth: UnusedElaboratable=no
"""ReplyBuilder: every option combination byte for byte as scapy builds it, checksums included."""

import itertools
import random

import pytest
from amaranth import Value
from amaranth.lib import data
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from hw.config import NicConfig
from hw.packet.meta import Reply, ReplyKind
from hw.tcp.reply import ReplyBuilder
from tests.hw.simulate import always, collect, feed, packets, run, sometimes
from tests.hw.tcp.model import MAPPED, facts_of_frame, syn_ack_frame

WIDTHS = (8, 32, 64)
BITS = {name: field.width for name, field in data.Layout.cast(Reply)}


def config(width):
    return NicConfig(width=width, rx_buffer_beats=4096, tx_buffer_beats=4096)


def random_reply(rng, **fixed):
    """A reply whose fields are random but for those given."""
    reply = {}
    for name, bits in BITS.items():
        # Extremes are where carries go wrong.
        reply[name] = rng.choice((0, (1 << bits) - 1, *(rng.getrandbits(bits) for _ in range(3))))
    reply["kind"] = ReplyKind.SYN_ACK.value
    reply |= fixed
    if not reply["ipv6"]:
        for name in ("src", "dst"):
            reply[name] = MAPPED | reply[name] & 0xFFFF_FFFF
    reply["wscale"] %= 15
    return reply


def to_int(reply):
    return Reply.const(reply).as_value().value


def every_combination(rng):
    names = ("ipv6", "vlan", "timestamps", "sack", "wscale_present", "ecn")
    chosen = (zip(names, bits, strict=True) for bits in itertools.product((0, 1), repeat=len(names)))
    return [random_reply(rng, **dict(fixed)) for fixed in chosen]


def frame_length(reply):
    """Of a SYN-ACK as scapy builds it; of the others by their headers."""
    if reply["kind"] == ReplyKind.SYN_ACK.value:
        return len(syn_ack_frame(reply))
    return 14 + 4 * reply["vlan"] + (40 if reply["ipv6"] else 20) + 20 + 12 * reply["timestamps"]


def build(width, replies, go_in=always, go_out=always):
    """Frames and their ports."""
    dut = ReplyBuilder(config(width))
    frames, ports = [], []
    count = sum(-(-frame_length(reply) // width) for reply in replies)

    async def consumer(ctx):
        frames.extend(packets(await collect(ctx, dut.o, count, go_out), width))
        await ctx.tick().repeat(3)
        assert not ctx.get(dut.o.valid) and not ctx.get(dut.busy)

    async def watch_port(ctx):
        while len(ports) < len(replies):
            _, _, valid, ready, last, port = await ctx.tick().sample(
                dut.o.valid, dut.o.ready, dut.o.p.last, dut.port
            )
            if valid and ready and last:
                ports.append(port)

    run(
        dut,
        lambda ctx: feed(ctx, dut.i, [to_int(reply) for reply in replies], go_in),
        consumer,
        watch_port,
    )
    return frames, ports


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("pauses", (None, "both"))
def test_every_combination(width, pauses):
    rng = random.Random(width)
    replies = every_combination(rng)
    go_in = sometimes(1, 0.5) if pauses else always
    go_out = sometimes(2, 0.5) if pauses else always
    frames, ports = build(width, replies, go_in, go_out)
    assert frames == [syn_ack_frame(reply) for reply in replies]
    assert ports == [reply["port"] for reply in replies]
    for frame, reply in zip(frames, replies, strict=True):
        # Read back by an independent parser: lengths and checksums are right, the options are
        # what was asked for, and a resolved checksum of zero or 0xffff would be seen here.
        facts = facts_of_frame(frame)
        assert facts.tcp and not facts.length_bad and facts.l4_checksum == 1
        assert facts.ip_checksum == (0 if reply["ipv6"] else 1)
        assert facts.flags == (0x52 if reply["ecn"] else 0x12) and not facts.options.bad
        assert facts.options.mss == reply["mss"] and facts.options.sack == reply["sack"]
        assert facts.options.wscale == (reply["wscale"] if reply["wscale_present"] else 15)
        assert facts.options.timestamps == reply["timestamps"]
        if reply["timestamps"]:
            assert (facts.options.tsval, facts.options.tsecr) == (reply["tsval"], reply["tsecr"])


@pytest.mark.parametrize("width", WIDTHS)
def test_ack_and_rst(width):
    """Against scapy: no options, or two NOPs and timestamps, whatever the rest of the record says."""
    rng = random.Random(width)
    replies = [
        random_reply(rng, kind=kind.value, ipv6=ipv6, vlan=vlan, timestamps=timestamps)
        for kind in (ReplyKind.ACK, ReplyKind.RST)
        for ipv6, vlan, timestamps in itertools.product((0, 1), repeat=3)
    ]
    frames, _ = build(width, replies)
    for frame, reply in zip(frames, replies, strict=True):
        packet = Ether(frame)
        facts = facts_of_frame(frame)
        assert facts.l4_checksum == 1 and facts.ip_checksum == (0 if reply["ipv6"] else 1)
        assert (facts.src, facts.dst) == (reply["src"], reply["dst"])
        tcp = packet[TCP]
        assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack, tcp.window) == tuple(
            reply[name] for name in ("src_port", "dst_port", "seq", "ack", "window")
        )
        assert str(tcp.flags) == ("A" if reply["kind"] == ReplyKind.ACK.value else "RA")
        times = ("Timestamp", (reply["tsval"], reply["tsecr"]))
        assert tcp.options == ([("NOP", None), ("NOP", None), times] if reply["timestamps"] else [])
        assert not bytes(tcp.payload) and len(frame) == facts.payload_offset


@pytest.mark.slow
def test_random_replies():
    rng = random.Random(7)
    replies = [random_reply(rng) for _ in range(300)]
    frames, _ = build(64, replies)
    assert frames == [syn_ack_frame(reply) for reply in replies]


def test_lengths_and_scapy_options():
    rng = random.Random(8)
    small = random_reply(rng, ipv6=0, vlan=0, timestamps=0, sack=0, wscale_present=0)
    large = random_reply(rng, ipv6=1, vlan=1, timestamps=1, sack=1, wscale_present=1)
    frames, _ = build(64, [small, large])
    assert [len(frame) for frame in frames] == [58, 98]
    names = [name for name, _ in Ether(frames[1])[TCP].options]
    assert names == ["MSS", "SAckOK", "Timestamp", "NOP", "WScale"]


@pytest.mark.parametrize("width, beats", ((64, 2), (32, 3), (8, 10)))
def test_no_gap_between_frames(width, beats):
    """74-byte replies (IPv4, all options) leave back to back; the first after `latency`."""
    dut = ReplyBuilder(config(width))
    rng = random.Random(9)
    reply = random_reply(rng, ipv6=0, vlan=0, timestamps=1, sack=1, wscale_present=1)
    assert len(syn_ack_frame(reply)) == 74
    valid = []

    async def bench(ctx):
        ctx.set(Value.cast(dut.i.payload), to_int(reply))
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.o.ready, 1)
        for _ in range(60 + dut.latency):
            valid.append((ctx.get(dut.o.valid), ctx.get(dut.o.p.last)))
            await ctx.tick()

    run(dut, bench)
    assert not any(v for v, _ in valid[: dut.latency])
    assert valid[dut.latency :] == [(1, int(i % beats == beats - 1)) for i in range(60)]


def test_one_beat_replies_leave_one_per_cycle():
    dut = ReplyBuilder(config(64))
    reply = random_reply(random.Random(1), ipv6=0, vlan=0, timestamps=0, sack=0, wscale_present=0)

    async def bench(ctx):
        ctx.set(Value.cast(dut.i.payload), to_int(reply))
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.o.ready, 1)
        await ctx.tick().repeat(dut.latency)
        for _ in range(60):
            assert ctx.get(dut.i.ready) and ctx.get(dut.o.valid) and ctx.get(dut.o.p.last)
            await ctx.tick()

    run(dut, bench)
