"""Closing a connection by CLOSE: the host's frames, the peer's segments, what must come back.

Written from docs/teardown.md and the RFCs; frames are built and read with scapy.
"""

from __future__ import annotations

from typing import Any

from acceltcp.abi.messages import (
    CLOSE_COMMAND,
    FINAL_FRAME,
    FLOW_COMMAND,
    FLOW_RECORD,
    CloseFlag,
    CommandOpcode,
    EventType,
    FlowState,
    FrameFlag,
    Status,
)
from acceltcp.abi.registers import TIMER_TICKS

from .bench import TB
from .frames import CLIENT_MAC, MACS, Client, as_number, mac_text

from scapy.layers.inet import IP, TCP  # isort: skip
from scapy.layers.inet6 import IPv6  # isort: skip
from scapy.layers.l2 import Dot1Q, Ether  # isort: skip

__all__ = ["Closing", "flow_secret", "held", "records", "set_times", "steps"]

M32 = 0xFFFF_FFFF
LAP_STEPS = 26
"""Timer steps after which every timer has been served: 10 ms."""


async def flow_secret(tb: TB) -> None:
    """Set the secret of the connection table; wait until CLOSE is taken."""
    for word in range(4):
        await tb.write("FLOWS", f"word{word}", tb.rng.getrandbits(32))
    await tb.write("FLOWS", "commit", 1)

    async def ready() -> bool:
        return await tb.read_fields("FLOWS", "status") == {"secret_valid": 1, "ready": 1}

    await tb.until(ready)


async def set_times(tb: TB, **times: int) -> None:
    """Registers of FLOWS in timer steps."""
    for name, value in times.items():
        await tb.write("FLOWS", name, value)


async def steps(tb: TB, count: int) -> None:
    """Let timer steps pass, and the sweeper do what is due."""
    await tb.tick(count * TIMER_TICKS)
    await tb.rest(60)


async def held(tb: TB) -> int:
    return await tb.read("FLOWS", "held")


async def records(tb: TB) -> dict[int, dict[str, int]]:
    """All flows that the NIC holds, by index, through the debug registers."""
    found: dict[int, dict[str, int]] = {}
    at = 0
    while True:
        await tb.write("FLOWS", "find", at)

        async def over() -> bool:
            return not (await tb.read_fields("FLOWS", "found"))["busy"]

        await tb.until(over)
        fields = await tb.read_fields("FLOWS", "found")
        if not fields["found"]:
            return found
        assert fields["index"] >= at, (fields, at)
        raw = b"".join([(await tb.read("FLOWS", f"record{i}")).to_bytes(4, "little") for i in range(9)])
        found[fields["index"]] = FLOW_RECORD.unpack(raw)
        at = fields["index"] + 1
        if at >= tb.config.flows:
            return found


class Closing:
    """One connection at its end, seen from both sides.

    client: the peer. seq: our next sequence number; rcv_nxt: the peer's. parts: data of the final frames; the
    last may be empty (a bare FIN).
    """

    def __init__(
        self,
        tb: TB,
        client: Client,
        parts: list[bytes],
        *,
        seq: int = 0xFFFF_FF00,
        rcv_nxt: int = 0x8000_0000,
        timestamps: bool = True,
        queue: int = 0,
        port: int = 0,
        rto: int = 500,
        retries: int = 5,
        sent: int = 0,
        peer_fin: bool = False,
        window: int = 4095,
        wscale: int = 7,
    ) -> None:
        self.tb, self.client, self.parts, self.timestamps = tb, client, parts, timestamps
        self.queue, self.port = tb.queues[queue], port
        self.start, self.rcv_nxt = seq, rcv_nxt
        self.end = seq + sum(map(len, parts)) + 1 & M32
        self.tsval = 1000
        self.index = -1
        self.fields: dict[str, int] = {
            "opcode": CommandOpcode.CLOSE,
            "frames": len(parts),
            "sent": sent,
            "retries": retries,
            "port": port,
            "flags": (CloseFlag.IPV6 if client.ipv6 else 0)
            | (CloseFlag.TIMESTAMPS if timestamps else 0)
            | (CloseFlag.PEER_FIN if peer_fin else 0),
            "remote": int.from_bytes(as_number(client.src).to_bytes(16, "big"), "little"),
            "local": int.from_bytes(as_number(client.dst).to_bytes(16, "big"), "little"),
            "remote_port": client.port,
            "local_port": client.server_port,
            "rcv_nxt": rcv_nxt,
            "ts_recent": self.tsval,
            "rto": rto,
            "window": window,
            "wscale": wscale,
        }
        self.seqs, self.frames = [], []
        at = seq
        for number, part in enumerate(parts):
            self.seqs.append(at)
            self.frames.append(self._frame(at, part, last=number == len(parts) - 1))
            at = at + len(part) & M32
        memory = tb.memory
        self.addresses = [memory.alloc(len(frame), align=64, offset=tb.rng.randrange(64)) for frame in self.frames]
        self.table = memory.alloc(FINAL_FRAME.size * max(len(parts), 1), align=256)
        self.fields["table"] = self.table
        self.write()

    def _frame(self, seq: int, data: bytes, *, last: bool) -> bytes:
        """As the host writes it: checksums, acknowledgment and timestamps are the NIC's business."""
        client = self.client
        packet = Ether(dst=mac_text(client.src_mac), src=mac_text(client.dst_mac))
        if client.vlan is not None:
            packet /= Dot1Q(prio=client.vlan >> 13, dei=client.vlan >> 12 & 1, vlan=client.vlan & 0xFFF)
        packet /= IPv6(src=client.dst, dst=client.src) if client.ipv6 else IP(src=client.dst, dst=client.src, flags="DF", id=0)
        options: list[tuple[str, Any]] = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))] if self.timestamps else []
        packet /= TCP(
            sport=client.server_port, dport=client.port, seq=seq, ack=0x1234, window=501,
            flags="FPA" if last and data else "FA" if last else "A", options=options, chksum=0xDEAD,
        )  # fmt: skip
        return bytes(packet / data if data else packet)

    @property
    def l4(self) -> int:
        return (18 if self.client.vlan is not None else 14) + (40 if self.client.ipv6 else 20)

    def write(self, **changes: dict[int, int]) -> None:
        """Write frames and table to host memory; `changes`: field -> {entry: value}."""
        for number, (address, frame) in enumerate(zip(self.addresses, self.frames, strict=True)):
            self.tb.memory.write(address, frame)
            entry = {
                "address": address, "seq": self.seqs[number], "length": len(frame), "l4_offset": self.l4,
                "flags": FrameFlag.IPV6 if self.client.ipv6 else 0,
            }  # fmt: skip
            for name, values in changes.items():
                entry[name] = values.get(number, entry[name])
            self.tb.memory.write(self.table + number * FINAL_FRAME.size, FINAL_FRAME.pack(**entry))

    async def command(self, **changes: int) -> dict[str, int]:
        """Run CLOSE; its event."""
        tag = self.tb.rng.getrandbits(32)
        index = self.queue.command_raw(CLOSE_COMMAND.pack(**{**self.fields, "tag": tag, **changes}))
        await self.queue.ring_tx()
        event = await self.queue.take_event()
        assert (event["type"], event["index"], event["tag"]) == (EventType.COMMAND_DONE, index, tag), event
        return event

    async def close(self, **changes: int) -> Closing:
        """Hand over; the NIC must take it."""
        event = await self.command(**changes)
        assert event["status"] == Status.OK, event
        self.index = event["value"]
        assert self.index < self.tb.config.flows
        return self

    async def update(self, **changes: int) -> int:
        """Run FLOW_UPDATE; its status."""
        fields = {
            "opcode": CommandOpcode.FLOW_UPDATE, "flow": self.index, "snd_end": self.end, "ack": self.start,
            "window": 4095, "ts_recent": self.tsval, "tag": 5,
        }  # fmt: skip
        self.queue.command_raw(FLOW_COMMAND.pack(**{**fields, **changes}))
        await self.queue.ring_tx()
        event = await self.queue.take_event()
        assert event["type"] == EventType.COMMAND_DONE, event
        return event["status"]

    # The peer

    def segment(self, flags: str, ack: int | None = None, *, seq: int | None = None, data: bytes = b"", tsval: int | None = None, **kwargs: Any) -> None:
        """Send a segment of the peer; by default it acknowledges everything."""
        if self.timestamps and "options" not in kwargs:
            self.tsval = self.tsval + 1 if tsval is None else self.tsval
            stamps = (self.tsval if tsval is None else tsval, 1)
            kwargs["options"] = [("NOP", None), ("NOP", None), ("Timestamp", stamps)]
        seq = self.rcv_nxt if seq is None else seq
        frame = self.client.segment(flags, seq, self.end if ack is None else ack, data=data, **kwargs)
        self.tb.rx[self.port].send(frame)

    # What the NIC sends

    async def reply(self) -> Any:
        """The next frame as scapy reads it; addressed to the peer, with good checksums."""
        raw = await self.tb.frame(self.port)
        packet, client = Ether(raw), self.client
        assert (packet.dst, packet.src) == (mac_text(CLIENT_MAC), mac_text(MACS[self.port])), packet
        assert (Dot1Q in packet) == (client.vlan is not None)
        ip = packet[IPv6] if client.ipv6 else packet[IP]
        assert (ip.src, ip.dst) == (client.dst, client.src), packet
        tcp = packet[TCP]
        assert (tcp.sport, tcp.dport) == (client.server_port, client.port), packet
        good = Ether(raw)
        del good[TCP].chksum
        if not client.ipv6:
            del good[IP].chksum
        good = Ether(bytes(good))
        assert good[TCP].chksum == tcp.chksum, packet
        assert client.ipv6 or good[IP].chksum == ip.chksum, packet
        return packet

    async def expect_frame(self, number: int, *, ack: int | None = None) -> None:
        """The next frame sent is final frame `number`, with fresh acknowledgment and timestamps."""
        packet = await self.reply()
        tcp = packet[TCP]
        want = Ether(self.frames[number])[TCP]
        assert (tcp.seq, tcp.flags, tcp.window) == (want.seq, want.flags, want.window), packet
        assert bytes(tcp.payload)[: len(self.parts[number])] == self.parts[number], packet
        assert tcp.ack == (self.rcv_nxt if ack is None else ack), packet
        self._stamps(tcp)

    async def expect(self, flags: str, *, seq: int | None = None, ack: int | None = None) -> Any:
        """The next frame sent is a segment of the NIC's own."""
        packet = await self.reply()
        tcp = packet[TCP]
        assert str(tcp.flags) == flags, packet
        assert tcp.seq == (self.end if seq is None else seq), packet
        assert tcp.ack == (self.rcv_nxt if ack is None else ack & M32), packet
        if flags == "A":
            self._stamps(tcp)
        return packet

    def _stamps(self, tcp: Any) -> None:
        stamps = [value for name, value in tcp.options if name == "Timestamp"]
        assert bool(stamps) == self.timestamps, tcp
        if stamps:
            assert stamps[0][1] <= self.tsval and stamps[0][0] >= self.clock_before, (stamps, self.tsval)

    clock_before = 0
    """Reading of the NIC's timestamp clock before what is looked at was sent."""

    async def done(self, status: Status, **fields: int) -> dict[str, int]:
        """The flow's one event."""
        event = await self.queue.take_event()
        assert (event["type"], event["value"]) == (EventType.FLOW_DONE, self.index), event
        assert event["status"] == status, event
        for name, value in fields.items():
            assert event[name] == value, (name, event)
        return event

    async def state(self) -> FlowState | None:
        """Its state, as the debug registers show it; None when it is not held."""
        flow = (await records(self.tb)).get(self.index)
        if flow is None:
            return None
        assert flow["state"] != FlowState.FREE and flow["frames"] == len(self.parts), flow
        assert flow["table"] == self.table and flow["snd_end"] == self.end, flow
        return FlowState(flow["state"])

    async def gone(self) -> None:
        """Wait for the end of its linger; the tuple is free again."""
        linger = await self.tb.read("FLOWS", "linger")
        before = await held(self.tb)
        await steps(self.tb, linger + 2 * LAP_STEPS)
        assert await held(self.tb) < before
