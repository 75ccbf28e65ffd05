"""What the tests of the setup engine share: a running `Setup` beside its model, and traffic."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.messages import LISTEN_COMMAND, RX_COMPLETION, CommandOpcode, ListenFlag, Status
from hw.config import NicConfig
from hw.packet.meta import Reply, RxDispatch, RxMeta
from hw.table.records import ConnectionKey, Lookup
from hw.tcp.flow import FlowPacket
from tests.hw.simulate import Session, always
from tests.hw.tcp.model import MAPPED, Facts, ListenModel, Options, Outcome, SetupModel

__all__ = ["ADDRESSES", "MACS", "Bench", "acknowledge", "fields_of", "random_facts", "syn"]

M32 = (1 << 32) - 1
MACS = (0x02_11_22_33_44_55, 0x06_AA_BB_CC_DD_EE)
CLIENT_MAC = 0x02_00_00_00_00_77
V4, V4_OTHER, V4_CLIENT = MAPPED | 0x0A000001, MAPPED | 0x0A000002, MAPPED | 0xC0A80509
V6 = 0x20010DB8_00000000_00000000_00000001
V6_OTHER, V6_CLIENT = V6 + 1, 0x20010DB8_FFFF0000_12345678_9ABCDEF0
ADDRESSES = {0: (V4, V4_OTHER, V4_CLIENT), 1: (V6, V6_OTHER, V6_CLIENT)}

_ODD = {
    0: [MAPPED | quad for quad in (0, M32, 0xE0000001, 0xEFFFFFFF, 0xF0000000, 0xDFFFFFFF)],
    1: [0, 1, 0xFF02 << 112 | 1, 0xFE80 << 112 | 1, MAPPED | 0x0A000001],
}
"""Addresses that nobody may have, and their neighbours."""


def fields_of(shape: Any, number: int) -> dict[str, int]:
    """Fields of a flat layout."""
    return {name: number >> f.offset & (1 << f.width) - 1 for name, f in data.Layout.cast(shape)}


def syn(ipv6: int = 0, **changes: Any) -> Facts:
    """A proper SYN to port 80 of the first address, from the client."""
    options = Options(mss_present=1, mss=1460, wscale=7, sack=1, timestamps=1, tsval=12345)
    server, _, client = ADDRESSES[ipv6]
    facts = Facts(
        length=94 if ipv6 else 74,
        dst_mac=MACS[0],
        src_mac=CLIENT_MAC,
        ipv4=1 - ipv6,
        ipv6=ipv6,
        tcp=1,
        ip_checksum=0 if ipv6 else 1,
        l4_checksum=1,
        src=client,
        dst=server,
        l3_offset=14,
        l4_offset=54 if ipv6 else 34,
        payload_offset=94 if ipv6 else 74,
        src_port=40000,
        dst_port=80,
        seq=0xFFFFFFFF,
        flags=0x02,
        window=64240,
        options=options,
    )
    for name, value in changes.items():
        setattr(options if hasattr(options, name) and not hasattr(facts, name) else facts, name, value)
    return facts


def acknowledge(facts: Facts, reply: dict[str, int], payload: int = 0) -> Facts:
    """The client's answer to a SYN-ACK."""
    options = Options()
    if reply["timestamps"]:
        options = Options(timestamps=1, tsval=facts.options.tsval + 3 & M32, tsecr=reply["tsval"])
    seq, ack = reply["ack"], reply["seq"] + 1 & M32
    return replace(facts, flags=0x10, seq=seq, ack=ack, options=options, payload_length=payload)


def random_facts(rng: random.Random, ports: int = 1) -> Facts:
    """Mostly a SYN, with something odd about it now and then."""
    ipv6 = rng.getrandbits(1)

    def odd(probability: float = 0.04) -> bool:
        return rng.random() < probability

    port = rng.randrange(ports)
    facts = syn(ipv6, port=port, dst_mac=MACS[port])
    facts.dst = rng.choice(ADDRESSES[ipv6][:2])
    facts.src = rng.choice(ADDRESSES[ipv6])
    facts.src_port, facts.dst_port = rng.choice((0, 80, 1025, 65535)), rng.choice((80, 81, 82))
    facts.seq, facts.ack = rng.choice((0, M32, rng.getrandbits(32))), rng.choice((0, rng.getrandbits(32)))
    facts.vlan, facts.vlan_tci = rng.getrandbits(1), rng.getrandbits(16)
    facts.length, facts.window = rng.randrange(60, 9000), rng.getrandbits(16)
    facts.payload_length = rng.choice((0, 0, rng.randrange(1500)))
    flags = (0x02, 0x02, 0x02, 0xC2, 0xC2, 0x42, 0x10, 0x18, 0x11, 0x12, 0x14, rng.getrandbits(8))
    facts.flags = rng.choice(flags)
    facts.options = Options(
        bad=int(odd()),
        mss_present=int(not odd(0.2)),
        mss=rng.choice((63, 64, 535, 536, 1219, 1220, 1460, 8939, 8940, 65535, rng.getrandbits(16))),
        wscale=rng.randrange(16),
        sack=rng.getrandbits(1),
        timestamps=rng.getrandbits(1),
        tsval=rng.getrandbits(32),
        tsecr=rng.getrandbits(32),
    )
    if odd():
        facts.dst_mac = rng.choice((*MACS, 0x02_0102030405, 0xFFFF_FFFF_FFFF, 0x01005E000001))
    if odd():
        facts.src_mac = 0x01005E000001
    if odd():
        facts.src = rng.choice(_ODD[ipv6])
    if odd():
        facts.dst = rng.choice(_ODD[ipv6])
    if odd():
        facts.src, facts.src_port = facts.dst, facts.dst_port
    if odd():
        facts.length_bad = 1
    if odd():
        facts.ip_checksum = rng.randrange(3)
    if odd():
        facts.l4_checksum = 2
    if odd():
        facts.tcp = 0
    return facts


class Bench:
    """A `Setup` in simulation, its model, and everything that came out of it."""

    def __init__(self, dut: Any, config: NicConfig) -> None:
        self.dut, self.config = dut, config
        self.model = SetupModel(ListenModel(config.listeners, config.queues), config.ports)
        self.counted: Counter[str] = Counter()
        self.dispatched: list[int] = []
        self.replied: list[int] = []
        self.held: dict[tuple[int, int, int, int], int] = {}
        """What the connection table holds: (remote, local, remote port, local port) -> index."""
        self.lookup_delay = 1
        """Cycles until a look-up is answered; with the pipelined hash it must not be large."""
        self.flows: list[int] = []
        self._session: Session | None = None
        self._listening = False
        self._go: dict[str, Callable[[], bool]] = {"dispatch": always, "reply": always}
        self.restart()

    def restart(self) -> None:
        """What every test begins with: the model's keys, time and switches."""
        model, ports = self.model, self.config.ports
        model.mac = list(MACS[:ports])
        model.key_current, model.key_previous, model.key_valid = bytes(range(16)), bytes(range(16, 32)), True
        model.epoch, model.ts_clock, model.default_queue = 7, 0x12345678, 1
        model.promiscuous, model.keep_bad = [False] * ports, [False] * ports
        model.rss.key, model.rss.types = bytes(40), 0
        self.held.clear()
        self.lookup_delay = 1

    # Control

    def apply(self, ctx: Any) -> None:
        """Put the model's time, keys and parameters on the gateware's inputs."""
        model, dut = self.model, self.dut
        for name in ("ts_clock", "epoch", "default_queue"):
            ctx.set(getattr(dut, name), getattr(model, name))
        ctx.set(dut.key_valid, int(model.key_valid))
        ctx.set(dut.key_current, int.from_bytes(model.key_current, "little"))
        ctx.set(dut.key_previous, int.from_bytes(model.key_previous, "little"))
        for port in range(self.config.ports):
            ctx.set(dut.mac[port], model.mac[port])
            ctx.set(dut.promiscuous[port], int(model.promiscuous[port]))
            ctx.set(dut.keep_bad[port], int(model.keep_bad[port]))
        ctx.set(dut.rss.key, int.from_bytes(model.rss.key, "little"))
        ctx.set(dut.rss.types, model.rss.types)

    async def write_entries(self, ctx: Any, entries: list[int]) -> None:
        """Write the whole indirection table, an entry per cycle."""
        self.model.rss.table = list(entries)
        port = self.dut.rss
        ctx.set(port.write, 1)
        for index, queue in enumerate(entries):
            ctx.set(port.index, index)
            ctx.set(port.queue, queue)
            await ctx.tick()
        ctx.set(port.write, 0)

    async def listen(self, ctx: Any, opcode: int = CommandOpcode.LISTEN, **values: int) -> int:
        """Run a listen command on both; the index."""
        want = self.model.listeners.command(opcode, **values)
        fields = {"mss": 1460, "window": 65535, "wscale": 7} | values
        fields["address"] = int.from_bytes(values.get("address", 0).to_bytes(16, "big"), "little")
        link = self.dut.listen
        ctx.set(Value.cast(link.command.payload), LISTEN_COMMAND.to_int(opcode=opcode, **fields))
        ctx.set(link.command.valid, 1)
        await ctx.tick().until(link.command.ready)
        ctx.set(link.command.valid, 0)
        ctx.set(link.result.ready, 1)
        sample = ctx.tick().sample(link.result.p.status, link.result.p.value)
        got = await sample.until(link.result.valid)
        ctx.set(link.result.ready, 0)
        assert tuple(got) == want and got[0] == Status.OK
        return got[1]

    async def listen_usually(self, ctx: Any) -> None:
        """Listeners of every kind on ports 80 and 81; none on 82. They stay, as a search of the table takes long."""
        if self._listening:
            return
        self._listening = True
        flags = ListenFlag
        await self.listen(ctx, port=80, address=V4 & M32, flags=flags.ECN, queue=3)
        await self.listen(ctx, port=80, address=V6, flags=flags.IPV6 | flags.ECN, queue=4, mss=1440)
        await self.listen(ctx, port=80, flags=flags.ANY_ADDRESS, queue=5, wscale=0)
        await self.listen(ctx, port=81, flags=flags.ANY_ADDRESS | flags.DEFER_ACCEPT, queue=6, window=1000)
        all_ = flags.ANY_ADDRESS | flags.IPV6 | flags.DEFER_ACCEPT | flags.ECN
        await self.listen(ctx, port=81, flags=all_ | flags.SPREAD, queue=7)
        await self.listen(ctx, port=81, address=V4_OTHER & M32, flags=flags.PAUSED, queue=8)

    # Traffic

    async def feed(self, ctx: Any, traffic: list[Facts], go: Callable[[], bool] = always) -> None:
        """Give the packets to the gateware."""
        meta = self.dut.meta
        payload = Value.cast(meta.payload)
        for facts in traffic:
            while not go():
                await ctx.tick()
            ctx.set(payload, RxMeta.const(facts.flatten()).as_value().value)
            ctx.set(meta.valid, 1)
            await ctx.tick().until(meta.ready)
            ctx.set(meta.valid, 0)

    async def settle(self, ctx: Any) -> None:
        """Wait until nothing is in work."""
        while ctx.get(self.dut.busy):
            await ctx.tick()
        await ctx.tick()

    async def compare(self, ctx: Any, traffic: list[Facts], go: Callable[[], bool] = always) -> list[Outcome]:
        """Feed packets and compare all that follows with the model; its outcomes."""
        self.apply(ctx)
        self.clear()
        await self.feed(ctx, traffic, go)
        await self.settle(ctx)
        outcomes = [self.model.process(facts) for facts in traffic]
        assert len(self.dispatched) == len(traffic)
        for facts, outcome, number in zip(traffic, outcomes, self.dispatched, strict=True):
            got = data.Const(RxDispatch, number)
            assert (got.port, got.keep) == (facts.port, int(outcome.keep)), (facts, outcome)
            if outcome.keep:
                want = RX_COMPLETION.to_int(**outcome.completion)
                have = got.completion.as_value().value
                assert RX_COMPLETION.from_int(have) == RX_COMPLETION.from_int(want), (facts, outcome)
                assert have == want and got.queue == outcome.queue, (facts, outcome)
        replies = [outcome.reply for outcome in outcomes if outcome.reply]
        assert self.replied == [Reply.const(reply).as_value().value for reply in replies]
        assert self.counted == Counter(name for outcome in outcomes for name in outcome.counters)
        return outcomes

    def clear(self) -> None:
        """Forget what came out so far."""
        self.counted.clear()
        self.dispatched.clear()
        self.replied.clear()
        self.flows.clear()

    # Monitors

    async def _watch(self, ctx: Any, stream: Any, into: list[int], name: str) -> None:
        payload = Value.cast(stream.payload)
        while True:
            ready = self._go[name]()
            ctx.set(stream.ready, ready)
            _, _, valid, value = await ctx.tick().sample(stream.valid, payload)
            if valid and ready:
                into.append(value)

    async def _look_up(self, ctx: Any) -> None:
        """Answers for the connection table, in order."""
        connection, lookup = self.dut.connection, self.dut.lookup
        key, result = Value.cast(connection.payload), Value.cast(lookup.payload)
        layout = Lookup(self.config.table)
        waiting: list[tuple[int, int]] = []
        ctx.set(connection.ready, 1)
        for now in itertools.count():
            ready = bool(waiting) and waiting[0][0] <= now
            ctx.set(lookup.valid, ready)
            ctx.set(result, waiting[0][1] if ready else 0)
            _, _, asked, value, taken = await ctx.tick().sample(connection.valid, key, lookup.ready)
            if ready and taken:
                waiting.pop(0)
            if asked:
                at = data.Const(ConnectionKey, value)
                index = self.held.get((at.remote, at.local, at.remote_port, at.local_port))
                hit = 0 if index is None else layout.const({"hit": 1, "index": index}).as_value().value
                waiting.append((now + self.lookup_delay, hit))

    async def _flow(self, ctx: Any) -> None:
        """Segments for the teardown engine."""
        payload = Value.cast(self.dut.flow.payload)
        while True:
            _, _, valid, value = await ctx.tick().sample(self.dut.flow.valid, payload)
            if valid:
                self.flows.append(value)

    def flow_packets(self) -> list[Any]:
        """What came out for the teardown engine."""
        return [data.Const(FlowPacket(self.config), value) for value in self.flows]

    async def _count(self, ctx: Any) -> None:
        counts = Value.cast(self.dut.counts)
        while True:
            _, _, value = await ctx.tick().sample(counts)
            if value:
                self.counted += Counter(fields_of(self.dut.counts.shape(), value))

    def run(
        self,
        scenario: Callable[[Any], Any],
        *,
        dispatch_go: Callable[[], bool] = always,
        reply_go: Callable[[], bool] = always,
        cycles: int = 20_000,
    ) -> None:
        """Simulate until the scenario ends. The next one goes on in the same simulation: what was made and compiled for one
        serves them all, listeners included."""
        self._go = {"dispatch": dispatch_go, "reply": reply_go}

        async def bench(ctx: Any) -> None:
            self.clear()
            await scenario(ctx)

        if self._session is None:
            self._session = Session(
                self.dut,
                lambda ctx: self._watch(ctx, self.dut.dispatch, self.dispatched, "dispatch"),
                lambda ctx: self._watch(ctx, self.dut.syn_ack, self.replied, "reply"),
                self._look_up,
                self._flow,
                self._count,
            )
        self._session.run(bench, cycles)
        self._go = {"dispatch": always, "reply": always}
        self._session.run(self.settle, cycles)
