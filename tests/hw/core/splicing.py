"""Splices on the whole core: peers with scapy frames, and what must become of these.

What the NIC decides comes from `tests.hw.tcp.splice_engine_model`, what it makes of a frame from
`tests.hw.tcp.splice_model`; both are plain Python and know nothing of the gateware.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from acceltcp.abi.messages import (
    SPLICE_COMMAND,
    SPLICE_SIDE,
    SPLICE_UNIT_STEPS,
    SPLICE_UPDATE_COMMAND,
    CommandOpcode,
    EventType,
    SpliceSideFlag,
    Status,
    Verdict,
)
from acceltcp.abi.registers import TIMER_TICKS
from tests.hw.tcp.splice_engine_model import Pair, Segment
from tests.hw.tcp.splice_model import Way, rewrite

from .bench import TB
from .closing import flow_secret
from .frames import CLIENT_MAC, MACS, TCP, Client, Ether, as_number, pad, show

__all__ = ["LINGER", "Splice", "World"]

M32 = 0xFFFF_FFFF
LINGER = 2
"""SPLICE.linger in the tests."""

TABLE_ALIGN = 256
SHIFTS = ((7, 7), (2, 9), (14, 0), (0, 3))
"""snd_shift, rcv_shift of the two sides, by number of the splice."""


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def memory_order(number: int, size: int) -> int:
    """A field whose first byte lies first in memory."""
    return int.from_bytes(number.to_bytes(size, "big"), "little")


@dataclass
class Side:
    """One connection: the peer, its tag, and the message that the host writes."""

    peer: Client
    message: dict[str, int]


class World:
    """A core, its splices, and what is expected on the wire and in the rings.

    With two ports clients are on port 0 and servers on port 1.
    """

    def __init__(self, tb: TB) -> None:
        self.tb = tb
        self.now = 0
        self.wire: list[deque[bytes]] = [deque() for _ in range(tb.config.ports)]
        self.host: dict[int, deque[tuple[Verdict, bytes]]] = {}
        self.verdicts: list[Verdict] = []
        """Of all that `check` has found in the rings."""

    @classmethod
    async def start(cls, dut: Any, *, queues: int = 1, rules: bool = False) -> World:
        tb = await TB.start(dut, queues=queues, rules=rules, buffers=48, rx=6, completions=7, events=7, tx=6)
        world = cls(tb)
        await flow_secret(tb)
        await tb.write("SPLICE", "linger", LINGER)
        return world

    async def units(self, count: int) -> None:
        """Let units of a splice's time pass."""
        dut, tb = self.tb.dut, self.tb
        dut.tick.value = 1
        await tb.cycles(count * SPLICE_UNIT_STEPS * TIMER_TICKS)
        dut.tick.value = 0
        self.now += count
        await tb.rest()

    async def held(self) -> int:
        return await self.tb.read("SPLICE", "held")

    def plain(self, frame: bytes, port: int = 0) -> None:
        """Send a frame that is the host's."""
        self.tb.rx[port].send(frame)
        self.host.setdefault(0, deque()).append((Verdict.PLAIN, frame))

    async def check(self, *, others: dict[int, list[bytes]] | None = None) -> list[Verdict]:
        """All that was to come has come, in order, and nothing else; verdicts of what came to the host.

        others: frames to these TCP ports are put here instead.
        """
        tb = self.tb
        # Ring by ring, so that there are always buffers.
        verdicts = []
        for number, expected in self.host.items():
            queue = tb.queues[number]
            while expected:
                (got,) = await queue.receive(1, within_us=200)
                verdict, frame = expected.popleft()
                assert got.data == frame, f"\n got {show(got.data)}\nwant {show(frame)}"
                assert got.verdict == verdict, (got.completion, verdict)
                verdicts.append(verdict)
                await queue.refill(1)
        await tb.settle()
        for port, sink in enumerate(tb.tx):
            while sink.frames:
                frame = sink.frames.popleft()
                if others is not None and (to := Ether(frame)[TCP].dport) in others:
                    others[to].append(frame)
                    continue
                assert self.wire[port], f"port {port}: nothing more was to come, but {show(frame)}"
                want = self.wire[port].popleft()
                assert frame == want, f"\n got {show(frame)}\nwant {show(want)}"
            assert not self.wire[port], f"port {port}: {len(self.wire[port])} frames are missing: {show(self.wire[port][0])}"
        for queue in tb.queues.values():
            queue.poll_received()
            assert not queue.received, f"unexpected completions {[r.completion for r in queue.received]}"
        self.verdicts += verdicts
        return verdicts

    async def end(self) -> None:
        """Nothing is left over, and no splice is in use."""
        await self.check()
        assert await self.held() == 0
        await self.tb.end()

    async def reset(self) -> None:
        """A soft reset; then as after `start`."""
        tb = self.tb
        await tb.write("CONTROL", "reset", 1)

        async def over() -> bool:
            return not (await tb.read_fields("CONTROL", "status"))["resetting"]

        await tb.until(over)
        await tb.set_addresses()
        await tb.set_secret(bytes(range(16)))
        for queue in tb.queues.values():
            await queue.restart(buffers=48)
        await tb.write("CONTROL", "control", 1)
        await flow_secret(tb)
        await tb.write("SPLICE", "linger", LINGER)


class Splice:
    """Two connections that are joined.

    number: makes ports and addresses different. vlans: of the two peers. guard: bytes that the host has still to get to each of them.
    flags: what both connections are like, besides IPV6 and VLAN.
    """

    def __init__(
        self,
        world: World,
        number: int = 0,
        *,
        ipv6: bool = False,
        vlans: tuple[int | None, int | None] = (None, None),
        guard: tuple[int, int] = (0, 0),
        limit: int | None = None,
        idle: int = 0,
        queue: int = 0,
        flags: SpliceSideFlag = SpliceSideFlag.TIMESTAMPS | SpliceSideFlag.SACK | SpliceSideFlag.ECN,
    ) -> None:
        self.world, self.tb = world, world.tb
        self.limit, self.idle, self.queue = limit, idle, self.tb.queues[queue]
        rng, ports = self.tb.rng, self.tb.config.ports
        client, server = ("2001:db8::c", "2001:db8:2::d") if ipv6 else ("198.51.100.7", "203.0.113.80")
        outside, inside = ("2001:db8:1::53", "2001:db8:2::1") if ipv6 else ("192.0.2.10", "10.0.0.1")
        shifts = SHIFTS[number % len(SHIFTS)]
        self.sides = []
        for d in (0, 1):
            port = d if ports > 1 else 0
            peer = Client(
                (20000 + number, 8080)[d], server_port=(443, 30000 + number)[d], ipv6=ipv6, vlan=vlans[d],
                src=(client, server)[d], dst=(outside, inside)[d], dst_mac=MACS[port], src_mac=CLIENT_MAC + 16 * d,
            )  # fmt: skip
            snd_nxt = rng.getrandbits(32)
            message = {
                "remote": memory_order(as_number(peer.src), 16),
                "local": memory_order(as_number(peer.dst), 16),
                "remote_port": peer.port,
                "local_port": peer.server_port,
                "dst_mac": memory_order(peer.src_mac, 6),
                "vlan_tci": vlans[d] or 0,
                "flags": flags
                | (SpliceSideFlag.IPV6 if ipv6 else 0)
                | (SpliceSideFlag.VLAN if vlans[d] is not None else 0),
                "port": port,
                "snd_shift": shifts[d],
                "rcv_shift": shifts[1 - d],
                "snd_nxt": snd_nxt,
                "snd_una": snd_nxt - guard[d] & M32,
                "rcv_nxt": rng.getrandbits(32),
                "ts_offset": rng.getrandbits(32),
            }
            self.sides.append(Side(peer, message))
        self.table = self.tb.memory.alloc(2 * SPLICE_SIDE.size, align=TABLE_ALIGN)
        self.clocks = [rng.getrandbits(32), rng.getrandbits(32)]
        self.messages = [side.message for side in self.sides]
        self.ways = [self._way(d) for d in (0, 1)]
        self.name = -1
        self.pair: Pair | None = None

    def _way(self, d: int) -> Way:
        """What the two messages say of frames of side d."""
        source, sink = self.messages[d], self.messages[1 - d]
        peer, flags = self.sides[1 - d].peer, self.messages[1 - d]["flags"]
        return Way(
            src=packed(peer.dst), dst=packed(peer.src), src_port=peer.server_port, dst_port=peer.port,
            src_mac=MACS[sink["port"]].to_bytes(6, "big"), dst_mac=peer.src_mac.to_bytes(6, "big"), tci=peer.vlan,
            port=sink["port"],
            seq_offset=sink["snd_nxt"] - source["rcv_nxt"], ack_offset=sink["rcv_nxt"] - source["snd_nxt"],
            tsval_offset=sink["ts_offset"], tsecr_offset=-source["ts_offset"],
            window_shift=source["snd_shift"] - sink["rcv_shift"],
            timestamps=bool(flags & SpliceSideFlag.TIMESTAMPS), sack=bool(flags & SpliceSideFlag.SACK),
            ecn=bool(flags & SpliceSideFlag.ECN),
        )  # fmt: skip

    # Commands

    async def command(self, changes: tuple[dict[str, int], dict[str, int]] = ({}, {}), **fields: int) -> dict[str, int]:
        """Run SPLICE; its event. `changes`: of the two SPLICE_SIDE messages, `fields`: of the command."""
        index, tag = self.pack(changes, **fields)
        return await self._done(index, tag)

    def pack(self, changes: tuple[dict[str, int], dict[str, int]] = ({}, {}), **fields: int) -> tuple[int, int]:
        """Put SPLICE into the ring (no doorbell); its descriptor's index, and its tag."""
        tag = self.tb.rng.getrandbits(32)
        sides = (SPLICE_SIDE.pack(**{**message, **change}) for message, change in zip(self.messages, changes, strict=True))
        self.tb.memory.write(self.table, b"".join(sides))
        command = {
            "opcode": CommandOpcode.SPLICE, "bounded": self.limit is not None, "limit": self.limit or 0, "idle": self.idle,
            "table": self.table, "tag": tag,
        }  # fmt: skip
        return self.queue.command_raw(SPLICE_COMMAND.pack(**{**command, **fields})), tag

    async def _done(self, index: int, tag: int) -> dict[str, int]:
        await self.queue.ring_tx()
        event = await self.queue.take_event()
        assert (event["type"], event["index"], event["tag"]) == (EventType.COMMAND_DONE, index, tag), event
        return event

    async def open(self) -> Splice:
        """Join the two; the NIC must take it."""
        event = await self.command()
        assert event["status"] == Status.OK, event
        self.name = event["value"]
        self.pair = Pair(
            self.messages, queue=self.queue.number, generation=self.name >> 24, limit=self.limit, idle=self.idle, linger=LINGER
        )
        self.pair.activate(self.world.now)
        return self

    async def update(self, name: int | None = None) -> int:
        """Run SPLICE_UPDATE; its status."""
        tag = self.tb.rng.getrandbits(32)
        name = self.name if name is None else name
        raw = SPLICE_UPDATE_COMMAND.pack(opcode=CommandOpcode.SPLICE_UPDATE, tag=tag, splice=name)
        index = self.queue.command_raw(raw)
        await self.queue.ring_tx()
        for _ in range(3):
            # News of the end, if there are any, may come before.
            event = await self.queue.take_event()
            if event["type"] == EventType.COMMAND_DONE:
                break
            self.queue.events.append(event)
        assert (event["type"], event["index"], event["tag"]) == (EventType.COMMAND_DONE, index, tag), event
        return event["status"]

    async def abort(self) -> None:
        """SPLICE_UPDATE, and its consequences."""
        assert self.pair.abort(self.name >> 24)
        assert await self.update() == Status.OK
        await self.over(Status.ABORTED)

    async def over(self, status: Status, **client: int) -> list[dict[str, int]]:
        """The two events of its end, which come last. `client`: fields of the first one, besides what the model says."""
        assert self.pair.status == status, self.pair
        told = await self.queue.take_events(2, within_us=100)
        for event, want in zip(told, self.pair.events(self.name), strict=True):
            assert event | {"phase": 0} == want, (event, want)
        assert told[1]["status"] == status and {name: told[0][name] for name in client} == client, told
        return told

    # The peers

    def frame(self, d: int, flags: str = "A", size: int = 0, *, seq: int | None = None, ack: int | None = None, timestamps: bool = True, sack: bool = False, **tcp: Any) -> bytes:
        """A segment of side d: by default its next data, and all that the other has sent acknowledged."""
        rng, side = self.tb.rng, self.sides[d]
        seq = self.next_seq(d) if seq is None else seq
        ack = self.next_ack(d) if ack is None else ack
        options: list[tuple[str, Any]] = []
        if timestamps:
            self.clocks[d] = self.clocks[d] + rng.randrange(3) & M32
            options += [("NOP", None), ("NOP", None), ("Timestamp", (self.clocks[d], rng.getrandbits(32)))]
        if sack:
            edge = ack + 1000
            options += [("NOP", None), ("NOP", None), ("SAck", (edge & M32, edge + 1460 & M32))]
        tcp.setdefault("window", rng.getrandbits(16))
        return side.peer.segment(flags, seq, ack, options=options, data=rng.randbytes(size), **tcp)

    def next_seq(self, d: int) -> int:
        return self.pair.sides[d].snd_end if self.pair else self.messages[d]["rcv_nxt"]

    def next_ack(self, d: int) -> int:
        if self.pair is None:
            return self.messages[d]["snd_nxt"]
        other = self.pair.sides[1 - d]
        return other.snd_end + other.offset & M32

    def deliver(self, d: int, frame: bytes) -> None:
        """Send a frame of side d; note what must become of it."""
        packet = Ether(frame)
        tcp = packet[TCP]
        stamps = [value[0] for name, value in tcp.options if name == "Timestamp"]
        l4 = (18 if self.sides[d].peer.vlan is not None else 14) + (40 if self.sides[d].peer.ipv6 else 20)
        total = 14 + 4 * (self.sides[d].peer.vlan is not None)
        total += 40 + packet["IPv6"].plen if self.sides[d].peer.ipv6 else packet["IP"].len
        payload = total - l4 - 4 * tcp.dataofs
        segment = Segment(tcp.seq, tcp.ack, int(tcp.flags), payload, stamps[0] if stamps else None)
        fate = self.pair.packet(d, segment, self.world.now)
        self.tb.rx[self.messages[d]["port"]].send(frame)
        if fate.keep:
            verdict = Verdict.PLAIN if fate.verdict is None else fate.verdict
            self.world.host.setdefault(fate.queue or 0, deque()).append((verdict, frame))
        if fate.forward:
            way = self.ways[d]
            sent = rewrite(frame, replace(way, sack=way.sack and not fate.hide_sack))
            if sent is not None:
                self.world.wire[self.ways[d].port].append(pad(sent))

    def send(self, d: int, flags: str = "A", size: int = 0, **kwargs: Any) -> bytes:
        """Build and deliver."""
        frame = self.frame(d, flags, size, **kwargs)
        self.deliver(d, frame)
        return frame
