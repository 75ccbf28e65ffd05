# amaranth: UnusedElaboratable=no
"""Setup against the model: random traffic, cookies and their rotation, throughput, overflow."""

import itertools
import random

import pytest
from amaranth import Module, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from acceltcp.abi.messages import CommandOpcode, ListenFlag, Verdict
from hw.config import NicConfig
from hw.packet.meta import Reply, ReplyKind, RxDispatch, RxMeta
from hw.stream.beat import packet_stream
from hw.table.lookup import ConnectionLookup
from hw.tcp.reply import ReplyBuilder
from hw.tcp.setup import REPLIES, Setup
from tests.hw.simulate import packets, run, sometimes
from tests.hw.tcp.harness import MACS, Bench, acknowledge, fields_of, random_facts, syn
from tests.hw.tcp.model import facts_of_frame, syn_ack_frame

M32 = (1 << 32) - 1
HASHES = pytest.mark.parametrize("pipelined", (True, False), ids=("pipelined", "iterative"))


_benches = {}


def make(pipelined=True, *, fresh=False, **changes):
    """The bench of that configuration, as other tests have left it: with the usual listeners or with none, idle; a fresh one has none."""
    config = NicConfig(**({"listeners": 8, "splices": 0, "packets": 64, "pipelined_hash": pipelined} | changes))
    bench = None if fresh else _benches.pop(config, None)
    if bench is None:
        bench = Bench(Setup(config), config)
    bench.restart()
    return bench


def run_in(bench, scenario, **options):
    """Run it; the bench is kept for the next test unless this one fails."""
    bench.run(scenario, **options)
    _benches[bench.config] = bench


def random_batch(rng, ports, offers, count):
    """New packets mixed with answers, some of them tampered with, to earlier SYN-ACKs."""
    batch = []
    for _ in range(count):
        if not offers or rng.random() < 0.5:
            batch.append(random_facts(rng, ports))
            continue
        facts = acknowledge(*rng.choice(offers), payload=rng.choice((0, 100)))
        change = rng.randrange(12)
        if change == 0:
            facts.seq ^= 1 << rng.randrange(32)
        elif change == 1:
            facts.ack ^= 1 << rng.randrange(32)
        elif change == 2:
            facts.options.tsecr ^= 1 << rng.randrange(8)
        elif change == 3:
            facts.src_port ^= 1 << rng.randrange(16)
        elif change == 4:
            facts.flags = rng.choice((0x10, 0x11, 0x12, 0x14, 0x18, 0x19, 0x00, 0xD8))
        elif change == 5:
            facts.options.timestamps ^= 1
        elif change == 6:
            facts.options.bad = 1
        elif change == 7:
            facts.ipv4, facts.ipv6 = facts.ipv6, facts.ipv4
        batch.append(facts)
    return batch


@HASHES
@pytest.mark.parametrize("ports, seed, pauses", (pytest.param(1, 1, False, marks=pytest.mark.long), (2, 2, True)))
def test_random_traffic(pipelined, ports, seed, pauses):
    bench = make(pipelined, ports=ports)
    rng = random.Random(seed)
    go = sometimes(seed, 0.6) if pauses else lambda: True
    seen = set()

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        steer = random.Random(seed + 3)
        await bench.write_entries(ctx, [steer.randrange(16) for _ in range(128)])
        offers = []
        for _ in range(6):
            model = bench.model
            model.rss.key, model.rss.types = steer.randbytes(40), steer.choice((0, 15, 15, steer.randrange(16)))
            model.promiscuous = [rng.random() < 0.5 for _ in range(ports)]
            model.keep_bad = [rng.random() < 0.5 for _ in range(ports)]
            model.key_valid = rng.random() < 0.9
            model.ts_clock = rng.choice((0, 5, M32, rng.getrandbits(32)))
            batch = random_batch(rng, ports, offers, 50 if pipelined else 30)
            outcomes = await bench.compare(ctx, batch, go)
            both = zip(batch, outcomes, strict=True)
            offers += [(facts, outcome.reply) for facts, outcome in both if outcome.reply]
            seen.update(name for outcome in outcomes for name in outcome.counters)
            for _ in range(rng.choice((0, 0, 1, 2))):
                model.epoch = model.epoch + 1 & M32
                model.key_previous = model.key_current
                model.key_current = rng.choice((model.key_current, rng.randbytes(16)))

    run_in(
        bench,
        scenario,
        dispatch_go=sometimes(seed + 1, 0.7) if pauses else lambda: True,
        reply_go=sometimes(seed + 2, 0.8) if pauses else lambda: True,
    )
    assert {"setup_syn_ack", "setup_cookie_good", "setup_cookie_bad"} <= seen


def test_without_rss():
    """A build without it: whatever the registers say, nothing is hashed, and SPREAD listeners have a queue."""
    bench = make(rss=False)
    spread, exact = ListenFlag.ANY_ADDRESS | ListenFlag.SPREAD, 0xFFFF0A000001

    async def scenario(ctx):
        await bench.listen(ctx, port=80, flags=spread, queue=6)
        await bench.write_entries(ctx, [9] * 128)
        traffic = [syn(flags=0x10), syn(flags=0x10, dst_port=81), syn(1, flags=0x10), syn(tcp=0, dst=exact)]
        bench.apply(ctx)
        ctx.set(bench.dut.rss.types, 15)
        ctx.set(bench.dut.rss.key, (1 << 320) - 1)
        await bench.feed(ctx, traffic)
        await bench.settle(ctx)
        got = [data.Const(RxDispatch, number) for number in bench.dispatched]
        assert [(one.queue, one.completion.rss_hash) for one in got] == [(6, 0), (1, 0), (1, 0), (1, 0)]

    bench.run(scenario)


def test_every_reason_is_counted():
    bench = make()
    odd = {
        "rx_drop_filter": {"dst_mac": 0x02_0000_0000_01},
        "rx_drop_length": {"length_bad": 1, "ip_checksum": 2, "l4_checksum": 2},
        "rx_drop_ip_checksum": {"ip_checksum": 2, "l4_checksum": 2},
        "rx_drop_l4_checksum": {"l4_checksum": 2},
        "setup_drop_flags": {"flags": 0x06, "src_port": 0},
        "setup_drop_address": {"dst_mac": 0xFFFF_FFFF_FFFF, "bad": 1},
        "setup_drop_options": {"mss": 63, "dst_port": 81, "dst": 0xFFFF0A000002},
        "setup_drop_paused": {"dst_port": 81, "dst": 0xFFFF0A000002},
        "setup_syn_ack": {},
    }

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        for reason, changes in odd.items():
            (outcome,) = await bench.compare(ctx, [syn(**changes)])
            assert outcome.counters[-1] == reason
        bench.model.key_valid = False
        (outcome,) = await bench.compare(ctx, [syn()])
        assert outcome.counters[-1] == "setup_drop_no_secret"

    run_in(bench, scenario)


def verdicts(bench):
    return [data.Const(RxDispatch, number).completion.verdict for number in bench.dispatched]


@pytest.mark.slow
@HASHES
def test_every_flipped_bit_of_the_acknowledgment_is_rejected(pipelined):
    bench = make(pipelined)

    async def flip(ctx, timestamps):
        facts = syn(timestamps=timestamps, flags=0xC2)
        (outcome,) = await bench.compare(ctx, [facts])
        good = acknowledge(facts, outcome.reply)
        batch = [good]
        for bit in range(32):
            for name in ("ack", "seq"):
                forged = acknowledge(facts, outcome.reply)
                setattr(forged, name, getattr(good, name) ^ 1 << bit)
                batch.append(forged)
        for bit in range(6 * timestamps):
            forged = acknowledge(facts, outcome.reply)
            forged.options.tsecr ^= 1 << bit
            batch.append(forged)
        await bench.compare(ctx, batch)
        assert verdicts(bench) == [Verdict.NEW] + [Verdict.PLAIN] * (len(batch) - 1)
        assert bench.counted["setup_cookie_bad"] == len(batch) - 1
        completion = data.Const(RxDispatch, bench.dispatched[0]).completion
        granted = completion.mss, completion.wscale, completion.sack, completion.timestamps, completion.ecn
        assert granted == (1460, 7, 1, timestamps, timestamps)

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        for timestamps in (0, 1):
            await flip(ctx, timestamps)

    run_in(bench, scenario)


@pytest.mark.slow
def test_rotation():
    """A cookie lives through one rotation of the secret and not through two, also when the epoch
    counter wraps."""
    bench = make()

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        model = bench.model
        for start, timestamps in itertools.product((0, 3, M32 - 1, M32), (0, 1)):
            model.epoch = start
            model.key_current, model.key_previous = b"current secret..", b"earlier secret.."
            facts = syn(timestamps=timestamps)
            (outcome,) = await bench.compare(ctx, [facts])
            answer = acknowledge(facts, outcome.reply)
            for age, new_key in enumerate((b"current secret..", b"next secret.....", b"third secret....")):
                model.epoch = start + age & M32
                if age:
                    model.key_previous, model.key_current = model.key_current, new_key
                await bench.compare(ctx, [answer])
                assert verdicts(bench) == [Verdict.NEW if age < 2 else Verdict.PLAIN], (start, age)
            # Four epochs later the low bits of the epoch are the same again.
            model.epoch = start + 4 & M32
            model.key_current = b"current secret.."
            await bench.compare(ctx, [answer])
            assert verdicts(bench) == [Verdict.PLAIN]

    run_in(bench, scenario)


@pytest.mark.slow
def test_no_secret_verifies_nothing():
    """The zero key is as good a key as any, and must not count before one is set."""
    bench = make()

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        bench.model.key_current = bench.model.key_previous = bytes(16)
        facts = syn()
        (outcome,) = await bench.compare(ctx, [facts])
        bench.model.key_valid = False
        await bench.compare(ctx, [acknowledge(facts, outcome.reply)])
        assert bench.counted["setup_cookie_bad"] == 1 and verdicts(bench) == [Verdict.PLAIN]

    run_in(bench, scenario)


def test_deferred_accept():
    bench = make()

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        facts = syn(dst_port=81)
        (outcome,) = await bench.compare(ctx, [facts])
        bare, with_data = (acknowledge(facts, outcome.reply, payload) for payload in (0, 1))
        last = acknowledge(facts, outcome.reply)
        last.flags = 0x11
        results = await bench.compare(ctx, [bare, with_data, last, bare])
        assert [result.keep for result in results] == [False, True, True, False]
        assert bench.counted["setup_deferred"] == 2 and bench.counted["setup_cookie_good"] == 4

    run_in(bench, scenario)


@pytest.mark.slow
def test_paused_and_resumed():
    bench = make(fresh=True)

    async def scenario(ctx):
        await bench.listen(ctx, port=80, flags=ListenFlag.ANY_ADDRESS)
        facts = syn()
        (outcome,) = await bench.compare(ctx, [facts])
        flags = ListenFlag.ANY_ADDRESS | ListenFlag.PAUSED
        await bench.listen(ctx, CommandOpcode.LISTEN_UPDATE, port=80, flags=flags)
        # A cookie given before the pause still opens its connection.
        await bench.compare(ctx, [facts, acknowledge(facts, outcome.reply)])
        assert bench.counted == {"setup_syn": 1, "setup_drop_paused": 1, "setup_cookie_good": 1}
        await bench.listen(ctx, CommandOpcode.UNLISTEN, port=80, flags=ListenFlag.ANY_ADDRESS)
        (outcome,) = await bench.compare(ctx, [facts])
        assert outcome.queue == 1 and not outcome.completion["listener"]

    bench.run(scenario)


def frame(ipv6, *, vlan=False, payload=b"", **tcp):
    """A client's frame, as scapy builds it."""
    packet = Ether(dst=MACS[0].to_bytes(6, "big").hex(":"), src="02:00:00:00:00:77")
    if vlan:
        packet /= Dot1Q(prio=3, vlan=123)
    packet /= IPv6(src="2001:db8::9", dst="2001:db8::1") if ipv6 else IP(src="192.168.5.9", dst="10.0.0.1")
    raw = bytes(packet / TCP(sport=4321, dport=80, **tcp) / payload)
    return raw + bytes(60 - len(raw)) if len(raw) < 60 else raw


@pytest.mark.slow
def test_handshake_in_whole_frames():
    bench = make()

    async def handshake(ctx, ipv6, vlan, timestamps):
        options = [("MSS", 8960), ("SAckOK", b""), ("Timestamp", (1000, 0)), ("NOP", None), ("WScale", 9)]
        if not timestamps:
            options.pop(2)
        first = facts_of_frame(frame(ipv6, vlan=vlan, flags="SEC", seq=5, options=options))
        await bench.compare(ctx, [first])
        (reply,) = [fields_of(Reply, number) for number in bench.replied]
        answer = Ether(syn_ack_frame(reply))[TCP]
        stamps = dict(option for option in answer.options if option[0] == "Timestamp").get("Timestamp")
        assert (stamps is not None) == timestamps and answer.ack == 6
        if timestamps:
            assert stamps[1] == 1000 and 0 <= bench.model.ts_clock - stamps[0] < 128
        options = [("Timestamp", (1001, stamps[0]))] if timestamps else []
        ack = answer.seq + 1 & M32
        second = frame(ipv6, vlan=vlan, flags="PA", seq=6, ack=ack, options=options, payload=b"GET")
        await bench.compare(ctx, [facts_of_frame(second)])
        completion = data.Const(RxDispatch, bench.dispatched[0]).completion
        assert completion.verdict == Verdict.NEW and completion.mss == 8940 and completion.wscale == 9
        assert completion.sack and completion.ecn == completion.timestamps == int(timestamps)

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        for ipv6, vlan, timestamps in itertools.product((0, 1), (False, True), (False, True)):
            await handshake(ctx, ipv6, vlan, timestamps)

    run_in(bench, scenario)


@pytest.mark.parametrize("pipelined, to_dispatch, to_reply", ((True, 46, 46), pytest.param(False, 30, 30, marks=pytest.mark.slow)))
def test_latency(pipelined, to_dispatch, to_reply):
    bench = make(pipelined)

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        bench.apply(ctx)
        dut = bench.dut
        ctx.set(Value.cast(dut.meta.payload), RxMeta.const(syn().flatten()).as_value().value)
        ctx.set(dut.meta.valid, 1)
        times = {}
        for cycle in range(60):
            for name in ("dispatch", "syn_ack"):
                if ctx.get(getattr(dut, name).valid):
                    times.setdefault(name, cycle)
            assert ctx.get(dut.busy) == (cycle <= max(times.values(), default=99) or len(times) < 2)
            await ctx.tick()
            ctx.set(dut.meta.valid, 0)
        assert times == {"dispatch": to_dispatch, "syn_ack": to_reply}

    run_in(bench, scenario)


def test_a_syn_per_cycle():
    """Every cycle a SYN, every cycle a reply and a verdict."""
    bench = make()
    arrivals = {"dispatch": [], "syn_ack": []}

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        bench.apply(ctx)
        dut = bench.dut
        count = 80
        inputs = [RxMeta.const(syn(i & 1, seq=i).flatten()).as_value().value for i in range(count)]
        for cycle in range(count + 60):
            ctx.set(dut.meta.valid, cycle < count)
            if cycle < count:
                ctx.set(Value.cast(dut.meta.payload), inputs[cycle])
                assert ctx.get(dut.meta.ready)
            for name, cycles in arrivals.items():
                if ctx.get(getattr(dut, name).valid):
                    cycles.append(cycle)
            await ctx.tick()
        assert bench.counted == {"setup_syn": count, "setup_syn_ack": count}
        for cycles in arrivals.values():
            assert cycles == list(range(cycles[0], cycles[0] + count))

    run_in(bench, scenario)


@pytest.mark.slow
def test_replies_without_room_are_dropped_and_counted():
    bench = make(packets=128)
    open_ = [False]

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        bench.apply(ctx)
        count = REPLIES + 20
        await bench.feed(ctx, [syn(seq=i) for i in range(count)])
        await ctx.tick().repeat(60)
        assert ctx.get(bench.dut.busy)
        # Two more stand in the FIFO's output registers. Every packet got its verdict.
        assert bench.counted == {"setup_syn": count, "setup_syn_ack": REPLIES + 2, "setup_drop_busy": 18}
        assert len(bench.dispatched) == count
        open_[0] = True
        await bench.settle(ctx)
        replies = [data.Const(Reply, number) for number in bench.replied]
        assert [reply.ack for reply in replies] == list(range(1, REPLIES + 3))

    run_in(bench, scenario, reply_go=lambda: open_[0])


@pytest.mark.slow
def test_stalled_host_does_not_stall_replies():
    """SYN-ACKs leave although nobody takes the verdicts."""
    bench = make(packets=64)
    open_ = [False]

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        bench.apply(ctx)
        await bench.feed(ctx, [syn(seq=i) for i in range(64)])
        await ctx.tick().repeat(60)
        assert len(bench.replied) == 64 and not bench.dispatched and ctx.get(bench.dut.busy)
        open_[0] = True
        await bench.settle(ctx)
        assert len(bench.dispatched) == 64

    run_in(bench, scenario, dispatch_go=lambda: open_[0])


def test_small_engine_passes_what_needs_no_hash():
    """One packet per cycle when no hash is asked for, one per 20 cycles when it is."""
    bench = make(pipelined=False)
    taken = []

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        bench.apply(ctx)
        dut = bench.dut
        for facts in (syn(dst_port=82), syn()):
            ctx.set(Value.cast(dut.meta.payload), RxMeta.const(facts.flatten()).as_value().value)
            ctx.set(dut.meta.valid, 1)
            accepted = 0
            for _ in range(105):
                accepted += ctx.get(dut.meta.ready)
                await ctx.tick()
            taken.append(accepted)
            ctx.set(dut.meta.valid, 0)
            await bench.settle(ctx)

    run_in(bench, scenario)
    assert taken == [105, 10]


class Replier(wiring.Component):
    """Setup, ReplyBuilder and an empty connection table, wired as in the NIC."""

    def __init__(self, config):
        self.setup, self.builder, self.lookup = Setup(config), ReplyBuilder(config), ConnectionLookup(config)
        super().__init__({"o": Out(packet_stream(config.width)), "unused": In(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.setup, m.submodules.builder, m.submodules.lookup = self.setup, self.builder, self.lookup
        wiring.connect(m, self.setup.connection, self.lookup.connection)
        wiring.connect(m, self.lookup.lookup, self.setup.lookup)
        wiring.connect(m, self.setup.syn_ack, self.builder.i)
        wiring.connect(m, self.builder.o, wiring.flipped(self.o))
        return m


@pytest.mark.slow
def test_flood_of_syns_is_answered_on_the_wire():
    """74-byte SYNs need two beats on the wire, and so do the replies: one per two cycles is kept
    up without a drop, and the first beat leaves at most 60 cycles after its SYN came."""
    config = NicConfig(listeners=8, splices=0, packets=64)
    dut = Replier(config)
    bench = Bench(dut.setup, config)
    flood = [syn(seq=i) for i in range(100)]
    first_beat, taken = [], []

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        bench.apply(ctx)
        ctx.set(dut.o.ready, 1)
        ctx.set(dut.setup.dispatch.ready, 1)
        for cycle in range(300):
            new = cycle % 2 == 0 and cycle // 2 < len(flood)
            ctx.set(dut.setup.meta.valid, new)
            if new:
                flat = flood[cycle // 2].flatten()
                ctx.set(Value.cast(dut.setup.meta.payload), RxMeta.const(flat).as_value().value)
            if ctx.get(dut.o.valid):
                first_beat.append(cycle)
                taken.append(ctx.get(Value.cast(dut.o.payload)))
            assert not ctx.get(dut.setup.counts.setup_drop_busy)
            await ctx.tick()

    run(dut, scenario)
    assert first_beat == list(range(first_beat[0], first_beat[0] + 200)) and first_beat[0] <= 60
    wanted = [syn_ack_frame(bench.model.process(facts).reply) for facts in flood]
    assert packets(taken, 64) == wanted


@HASHES
def test_segments_of_held_connections(pipelined):
    """They leave for the teardown engine alone, in order; others pass as if there were none."""
    bench = make(pipelined)
    rng = random.Random(11)

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        bench.apply(ctx)
        held = syn(src_port=50000)
        bench.held[held.src, held.dst, 50000, 80] = 1234
        kinds = {
            "syn": {"flags": 0x02},
            "data": {"flags": 0x18, "payload_length": 300, "ack": 99},
            "fin": {"flags": 0x11, "ack": 99},
            "rst": {"flags": 0x04},
        }
        traffic = [
            syn(src_port=rng.choice((50000, 50001)), seq=rng.getrandbits(32), **kinds[rng.choice(list(kinds))])
            for _ in range(60)
        ]
        bad = [syn(src_port=50000, l4_checksum=2), syn(src_port=50000, dst_mac=0x02_0102030405)]
        bench.clear()
        await bench.feed(ctx, traffic + bad, sometimes(3, 0.7))
        await bench.settle(ctx)
        mine = [facts for facts in traffic if facts.src_port == 50000]
        got = bench.flow_packets()
        assert len(got) == len(mine) > 20
        for packet, facts in zip(got, mine, strict=True):
            assert packet.index == 1234
            assert packet.answer == (facts.flags == 0x02)
            assert (packet.segment.flags, packet.segment.window) == (facts.flags, facts.window)
            assert packet.segment.payload_length == facts.payload_length
            assert packet.reply.ack == (facts.seq + 1) & M32 and packet.reply.tsecr == facts.options.tsval
            assert (packet.reply.src, packet.reply.dst) == (facts.dst, facts.src)
            if facts.flags != 0x02:
                assert packet.reply.seq == (facts.ack - 1) & M32
        # The host got the others' segments only, and only their SYNs were answered.
        kept = [data.Const(RxDispatch, number).keep for number in bench.dispatched]
        assert kept == [int(f.src_port == 50001 and f.flags != 0x02) for f in traffic] + [0, 0]
        syns = [f for f in traffic if f.src_port == 50001 and f.flags == 0x02]
        assert len(bench.replied) == len(syns) == bench.counted["setup_syn_ack"]
        # A SYN's record is the whole answer, as it would have left.
        cookies = [data.Const(Reply, n) for n in bench.replied]
        assert all(reply.kind == ReplyKind.SYN_ACK for reply in cookies)
        bench.held.clear()
        answers = [packet.reply for packet in got if packet.answer]
        bench.clear()
        await bench.feed(ctx, [f for f in mine if f.flags == 0x02])
        await bench.settle(ctx)
        assert bench.replied == [reply.as_value().value for reply in answers]

    run_in(bench, scenario)


def test_the_small_engine_waits_for_slow_lookups():
    """Results may come late; no packet passes its own, none is lost."""
    bench = make(pipelined=False)
    bench.lookup_delay = 40

    async def scenario(ctx):
        await bench.listen_usually(ctx)
        await bench.compare(ctx, [syn(src_port=1000 + k, flags=0x10 if k % 3 else 0x02) for k in range(60)])

    run_in(bench, scenario)
