"""A functional model of the NIC behind the `Transport` seam: no gateware, no process.

It keeps registers, walks the rings, runs LISTEN commands, answers SYNs with real cookies and
marks segments NEW, all at once in `write32` and `inject`. Given room for flows it closes connections as
docs/teardown.md says; their timers run in `sweep`. Given room for splices it forwards packets (`fake_splice`). Written against the contract in
`acceltcp.abi` and the standards, not against the driver. Frames that the device sends go to
`on_wire`.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from acceltcp.abi import registers as regs
from acceltcp.abi.cookie import (
    COOKIE_PLAIN,
    COOKIE_TIMESTAMPS,
    IPV4_MAPPED_PREFIX,
    MSS_CLASSES,
    TIMESTAMP_OPTIONS,
    WSCALE_NONE,
    cookie,
)
from acceltcp.abi.fields import Message
from acceltcp.abi.messages import (
    CLOSE_COMMAND,
    COMMAND,
    EVENT,
    FINAL_FRAME,
    FINAL_FRAMES_MAX,
    FLOW_COMMAND,
    FLOW_RECORD,
    LISTEN_COMMAND,
    RX_COMPLETION,
    RX_FREE,
    SPLICE_COMMAND,
    SPLICE_UPDATE_COMMAND,
    TX_DESCRIPTOR,
    WINDOW_UNIT,
    ChecksumState,
    CloseFlag,
    CommandOpcode,
    EventType,
    FlowFlag,
    FlowState,
    FrameFlag,
    ListenFlag,
    Status,
    TxFlag,
    TxOpcode,
    Verdict,
)
from acceltcp.abi.toeplitz import Toeplitz
from acceltcp.abi.wire import ETHERNET, IPV4, IPV6, TCP, VLAN, EtherType, IPProtocol, TCPFlag
from acceltcp.host.dma import DmaRegion
from acceltcp.host.transport import Transport

from .fake_splice import FakeSplices

M32 = 0xFFFFFFFF


def sum16(data: bytes) -> int:
    """The one's-complement sum of 16-bit words: 2^16 is 1 modulo 0xFFFF, so the whole is one number's remainder."""
    if len(data) % 2:
        data += b"\0"
    return int.from_bytes(data, "big") % 0xFFFF or (0xFFFF if any(data) else 0)


def l4_sum(frame: bytes, l3: int, l4: int, end: int, ipv6: bool, protocol: int) -> int:
    addresses = frame[l3 + 8 : l3 + 40] if ipv6 else frame[l3 + 12 : l3 + 20]
    return sum16(addresses + struct.pack("!II", end - l4, protocol) + frame[l4:end])


def insert_checksums(frame: bytes, l3: int, l4: int, flags: int) -> bytes:
    """What the TX checksum stage does."""
    out = bytearray(frame)
    ipv6 = bool(flags & TxFlag.IPV6)
    if flags & TxFlag.IPV4_CHECKSUM:
        out[l3 + 10 : l3 + 12] = b"\0\0"
        out[l3 + 10 : l3 + 12] = (0xFFFF ^ sum16(bytes(out[l3 : l3 + 20]))).to_bytes(2, "big")
    if flags & TxFlag.L4_CHECKSUM:
        at = l4 + (6 if flags & TxFlag.UDP else 2 if flags & TxFlag.ICMPV6 else 16)
        protocol = 17 if flags & TxFlag.UDP else 58 if flags & TxFlag.ICMPV6 else 6
        end = l3 + (40 + int.from_bytes(out[l3 + 4 : l3 + 6], "big") if ipv6 else int.from_bytes(out[l3 + 2 : l3 + 4], "big"))
        out[at : at + 2] = b"\0\0"
        out[at : at + 2] = (0xFFFF ^ l4_sum(bytes(out), l3, l4, end, ipv6, protocol)).to_bytes(2, "big")
    return bytes(out)


@dataclass
class Options:
    mss: int | None = None
    wscale: int = WSCALE_NONE
    sack: bool = False
    ts: tuple[int, int] | None = None

    @classmethod
    def parse(cls, data: bytes) -> Options | None:
        found, at = cls(), 0
        while at < len(data):
            kind = data[at]
            if kind == 0:
                break
            if kind == 1:
                at += 1
                continue
            if at + 1 >= len(data) or data[at + 1] < 2 or at + data[at + 1] > len(data):
                return None
            body = data[at + 2 : at + data[at + 1]]
            if len(body) not in {2: (2,), 3: (1,), 4: (0,), 5: (8, 16, 24, 32), 8: (8,)}.get(kind, (len(body),)):
                return None
            if kind == 2:
                found.mss = int.from_bytes(body, "big")
            elif kind == 3:
                found.wscale = min(body[0], 14)
            elif kind == 4:
                found.sack = True
            elif kind == 8:
                found.ts = struct.unpack("!II", body)
            at += data[at + 1]
        return found


class FakeQueue:
    """Indices of one queue, as the device keeps them."""

    def __init__(self) -> None:
        self.free_head = self.free_tail = self.completion = self.completion_head = 0
        self.tx_head = self.tx_tail = self.event = self.event_head = 0
        self.armed: tuple[int, int] | None = None
        self.enabled = False
        self.state = regs.QueueState.DISABLED


BEFORE_LINGER = (FlowState.FIN_WAIT_1, FlowState.FIN_WAIT_2, FlowState.CLOSING, FlowState.LAST_ACK)


@dataclass
class FakeFlow:
    """A flow: what `CLOSE` said (`command`, `frames`) and what has become of it. Times in timer steps."""

    queue: int
    command: dict[str, int]
    key: tuple[bytes, bytes, int, int]
    frames: list[tuple[dict[str, int], bytes]]
    """Entries of the table, each with its frame as it was when the flow was taken."""
    snd_end: int
    una: int
    rcv_nxt: int
    state: FlowState
    window: int
    ts_recent: int
    deadline: int
    started: int
    fin: bool = False
    retries: int = 0
    duplicates: int = 0
    retransmissions: int = 0
    rtt: int = 0
    timed: bool = False
    status: Status | None = None
    """How it ended; FLOW_DONE has told so."""

    @property
    def timestamps(self) -> bool:
        return bool(self.command["flags"] & CloseFlag.TIMESTAMPS)

    @property
    def unacked(self) -> int:
        return self.snd_end - self.una & M32


class FakeTransport(Transport):
    """The device. `frozen` makes it stop looking at its rings until `thaw`. flows: how many it can close."""

    def __init__(
        self, *, queues: int = 4, listeners: int = 8, ports: int = 1, flows: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.description = "fake:"
        self.queues, self.listeners_max, self.ports = queues, listeners, ports
        self.clock = clock
        self.memory: list[DmaRegion] = []
        self.on_wire: Callable[[bytes], None] = lambda frame: None
        self.abi = (regs.ABI_MAJOR, regs.ABI_MINOR)
        self.magic = regs.MAGIC
        self.map_hash = regs.map_hash()
        self.features = regs.Feature.SETUP | regs.Feature.RSS
        self.flows_max = 0
        self.splices: FakeSplices | None = None
        if flows:
            self.give_flows(flows)
        self.stuck = False  # the reset never ends
        self.dead: Exception | None = None
        self.frozen = False
        self.command_hook: Callable[[dict[str, int]], Status | None] = lambda fields: None
        self.swallow_commands = False
        self.closed = False
        self.fds: list[int] = []
        self.secret_words = [0] * 4
        self.rss_table = [0] * regs.RSS_TABLE_ENTRIES  # a reset keeps it
        self.writes: list[tuple[int, int]] = []
        self._addresses: dict[int, tuple[regs.Block, regs.Register, int]] = {
            block.address(register.name, index): (block, register, index)
            for block in regs.BLOCKS
            for index in range(block.count)
            for register in block.registers
        }
        self._reset()

    def give_flows(self, count: int) -> None:
        """Be a build that closes connections."""
        self.features |= regs.Feature.TEARDOWN
        self.flows_max = count

    def give_splices(self, count: int) -> FakeSplices:
        """Be a build that splices; it closes connections, too."""
        if not self.flows_max:
            self.give_flows(2 * count)
        self.features |= regs.Feature.SPLICE
        self.splices = FakeSplices(self, count)
        return self.splices

    def _reset(self) -> None:
        self.values: dict[int, int] = {}
        self.flows: dict[int, FakeFlow] = {}
        if self.splices is not None:
            self.splices.reset()
        self.flow_secret = False
        self.found: int | None = None
        self.record = bytes(FLOW_RECORD.size)
        self.queue = [FakeQueue() for _ in range(self.queues)]
        self.listen: dict[int, dict[str, int]] = {}
        self.counters = dict.fromkeys((counter.name for counter in regs.COUNTERS), 0)
        self.snapshot = dict(self.counters)
        self.key: bytes | None = None
        self.rss_key = bytearray(regs.RSS_KEY_BYTES)
        self.toeplitz: Toeplitz | None = None
        self.epoch = 5
        self.started = self.clock()

    # -- the seam --------------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        if self.dead:
            raise self.dead
        if regs.COUNTER_BASE <= offset < regs.COUNTER_BASE + 8 * len(regs.COUNTERS):
            index, high = divmod(offset - regs.COUNTER_BASE, 8)
            value = self.snapshot[regs.COUNTERS[index].name]
            return value >> 32 if high else value & M32
        block, register, index = self._addresses[offset]
        name = f"{block.name}.{register.name}"
        computed = {
            "IDENT.magic": lambda: self.magic,
            "IDENT.abi": lambda: register.encode(major=self.abi[0], minor=self.abi[1]),
            "IDENT.map_hash": lambda: self.map_hash,
            "IDENT.features": lambda: int(self.features),
            "IDENT.shape": lambda: register.encode(width=64, ports=self.ports, queues=self.queues, tick_us=10),
            "IDENT.tables": lambda: register.encode(
                listeners=self.listeners_max, flows_log2=max(self.flows_max, 1).bit_length() - 1,
                splices_log2=0 if self.splices is None else self.splices.most.bit_length() - 1,
            ),
            "IDENT.max_frame": lambda: 9018,
            "CONTROL.status": lambda: register.encode(resetting=int(self.stuck), secret_valid=int(self.key is not None)),
            "TIME.ts_clock": self.ts_clock,
            "QUEUE.status": lambda: register.encode(state=self.queue[index].state, idle=1),
            "FLOWS.status": lambda: register.encode(secret_valid=int(self.flow_secret), ready=1),
            "FLOWS.held": lambda: len(self.flows),
            "SPLICE.held": lambda: 0 if self.splices is None else len(self.splices.pairs),
            "FLOWS.found": lambda: register.encode(found=int(self.found is not None), index=self.found or 0),
        }
        if name.startswith("FLOWS.record"):
            return struct.unpack_from("<I", self.record, 4 * int(name.removeprefix("FLOWS.record")))[0]
        if register.access is regs.Access.WO:
            return 0
        if name in computed:
            return computed[name]()
        return self.values.get(offset, register.reset)

    def write32(self, offset: int, value: int) -> None:
        if self.dead:
            raise self.dead
        self.writes.append((offset, value))
        block, register, index = self._addresses[offset]
        if register.access is regs.Access.RO:
            return
        self.values[offset] = value
        fields = register.decode(value)
        name = f"{block.name}.{register.name}"
        if name == "CONTROL.reset" and value & 1:
            self._reset()
        elif name == "CONTROL.snapshot":
            self.snapshot = dict(self.counters)
        elif name.startswith("SECRET.word"):
            self.secret_words[int(name[-1])] = value
        elif name == "SECRET.commit":
            self.key = struct.pack("<4I", *self.secret_words)
        elif name.startswith("RSS.key"):
            struct.pack_into("<I", self.rss_key, 4 * int(name.removeprefix("RSS.key")), value)
            self.toeplitz = None
        elif name == "RSS.entry":
            self.rss_table[fields["index"]] = fields["queue"]
        elif name == "FLOWS.commit":
            self.flow_secret = True
        elif name == "FLOWS.find":
            self.found = min((at for at in self.flows if at >= value), default=None)
            self.record = bytes(FLOW_RECORD.size) if self.found is None else self._flow_record(self.flows[self.found])
        elif block.name == "QUEUE":
            self._queue_write(register.name, index, fields)

    def map_memory(self, size: int) -> DmaRegion:
        address = 0x1_0000_0000 + sum(r.size + (1 << 20) for r in self.memory)
        region = DmaRegion(memoryview(bytearray(size)), address, size)
        self.memory.append(region)
        return region

    def enable_interrupts(self, count: int) -> list[int]:
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        return self.fds

    def reset(self) -> None:
        self._reset()

    def check(self) -> None:
        if self.dead:
            raise self.dead

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            for fd in self.fds:
                os.close(fd)

    # -- memory ----------------------------------------------------------------------------

    def at(self, address: int, size: int) -> memoryview | None:
        for region in self.memory:
            if region.address <= address and address + size <= region.address + region.size:
                return region.view[address - region.address :][:size]
        return None

    def _ring(self, index: int, name: str) -> tuple[int, int]:
        block = regs.QUEUE
        get = lambda part: self.values.get(block.address(f"{name}_{part}", index), 0)  # noqa: E731
        return get("base_low") | get("base_high") << 32, 1 << get("size")

    def _entry(self, index: int, name: str, at: int, size: int) -> memoryview:
        base, entries = self._ring(index, name)
        view = self.at(base + at % entries * size, size)
        assert view is not None, f"the ring {name} is not in mapped memory"
        return view

    # -- queues ----------------------------------------------------------------------------

    def _queue_write(self, name: str, index: int, fields: dict[str, int]) -> None:
        if index >= self.queues:
            return
        queue = self.queue[index]
        if name == "control":
            if fields["enable"]:
                bad = False
                for ring in ("rx_free", "rx_completion", "tx", "event"):
                    base, entries = self._ring(index, ring)
                    bad |= bool(base % 64) or not 8 <= entries <= 32768
                self.queue[index] = queue = FakeQueue()
                queue.enabled = not bad
                queue.state = regs.QueueState.REFUSED if bad else regs.QueueState.ENABLED
            else:
                queue.enabled, queue.state = False, regs.QueueState.DISABLED
        elif name == "rx_free_tail":
            assert fields["index"] - queue.free_head & 0xFFFF <= self._ring(index, "rx_free")[1], "doorbell beyond the ring"
            queue.free_tail = fields["index"]
        elif name == "rx_completion_head":
            queue.completion_head = fields["index"]
        elif name == "event_head":
            queue.event_head = fields["index"]
        elif name == "arm":
            queue.armed = (fields["completion_head"], fields["event_head"])
            self._interrupt(index)
        elif name == "tx_tail":
            assert fields["index"] - queue.tx_head & 0xFFFF <= self._ring(index, "tx")[1], "doorbell beyond the ring"
            queue.tx_tail = fields["index"]
            self._transmit(index)

    def thaw(self) -> None:
        self.frozen = False
        for index in range(self.queues):
            self._transmit(index)

    def _interrupt(self, index: int) -> None:
        queue = self.queue[index]
        if queue.armed is not None and queue.armed != (queue.completion, queue.event):
            queue.armed = None
            self.counters["interrupts"] += 1
            if index < len(self.fds):
                os.eventfd_write(self.fds[index], 1)

    def post_event(self, number: int, message: Message = EVENT, **fields: int) -> None:
        queue = self.queue[number]
        entries = self._ring(number, "event")[1]
        if queue.event - queue.event_head & 0xFFFF >= entries:
            self.counters["event_overflow"] += 1
            return
        phase = 1 - queue.event // entries % 2
        self._entry(number, "event", queue.event, EVENT.size)[:] = message.pack(queue=number, phase=phase, **fields)
        queue.event = queue.event + 1 & 0xFFFF
        self._interrupt(number)

    def _transmit(self, index: int) -> None:
        queue = self.queue[index]
        while queue.tx_head != queue.tx_tail and queue.enabled and not self.frozen:
            at = queue.tx_head
            queue.tx_head = at + 1 & 0xFFFF
            descriptor = TX_DESCRIPTOR.unpack(self._entry(index, "tx", at, TX_DESCRIPTOR.size))
            data = self.at(descriptor["address"], descriptor["length"])
            error = Status.OK
            if descriptor["opcode"] not in (TxOpcode.SEND, TxOpcode.COMMAND):
                error = Status.BAD_OPCODE
            elif data is None:
                error = Status.BAD_ADDRESS
            elif descriptor["opcode"] == TxOpcode.SEND and descriptor["length"] < 14:
                error = Status.BAD_LENGTH
            if error or data is None:
                self.counters["tx_errors"] += 1
                self.post_event(index, type=EventType.TX_ERROR, status=error, index=at)
            elif descriptor["opcode"] == TxOpcode.COMMAND:
                self._command(index, at, bytes(data))
            else:
                frame = insert_checksums(bytes(data), descriptor["l3_offset"], descriptor["l4_offset"], descriptor["flags"])
                data[:] = b"\xee" * len(data)  # nobody may count on the slot any more
                self.counters["tx_host_packets"] += 1
                if descriptor["flags"] & TxFlag.EVENT:
                    self.post_event(index, type=EventType.TX_DONE, index=at)
                self.on_wire(frame.ljust(60, b"\0"))

    def _command(self, index: int, at: int, data: bytes) -> None:
        fields = COMMAND.unpack(data)
        status, value = Status.OK, 0
        if self.swallow_commands:
            return
        hooked = self.command_hook(fields)
        if hooked is not None:
            status = hooked
        elif fields["opcode"] in (CommandOpcode.LISTEN, CommandOpcode.UNLISTEN, CommandOpcode.LISTEN_UPDATE):
            status, value = self._listen(LISTEN_COMMAND.unpack(data))
        elif fields["opcode"] == CommandOpcode.CLOSE:
            status, value = self._close(index, CLOSE_COMMAND.unpack(data))
        elif fields["opcode"] == CommandOpcode.FLOW_UPDATE:
            status = self._flow_update(FLOW_COMMAND.unpack(data))
        elif fields["opcode"] == CommandOpcode.SPLICE and self.splices is not None:
            self.splices.command(index, at, SPLICE_COMMAND.unpack(data))
            return
        elif fields["opcode"] == CommandOpcode.SPLICE_UPDATE and self.splices is not None:
            status = self.splices.update(SPLICE_UPDATE_COMMAND.unpack(data))
        elif fields["opcode"] != CommandOpcode.NOP:
            status = Status.BAD_OPCODE
        self.counters["command_errors" if status else "commands"] += 1
        self.post_event(index, type=EventType.COMMAND_DONE, status=status, index=at, tag=fields["tag"], value=value)
        if fields["opcode"] == CommandOpcode.CLOSE and status == Status.OK:
            self._send_unsent(value)
        elif fields["opcode"] == CommandOpcode.FLOW_UPDATE and status == Status.OK:
            self._flow_told(FLOW_COMMAND.unpack(data))
        elif fields["opcode"] == CommandOpcode.SPLICE_UPDATE and status == Status.OK and self.splices is not None:
            self.splices.updated(SPLICE_UPDATE_COMMAND.unpack(data))

    def _listen(self, fields: dict[str, int]) -> tuple[Status, int]:
        key_flags = ListenFlag.IPV6 | ListenFlag.ANY_ADDRESS
        key = (fields["address"], fields["port"], fields["flags"] & key_flags)
        known = {
            (entry["address"], entry["port"], entry["flags"] & key_flags): index for index, entry in self.listen.items()
        }
        if fields["opcode"] == CommandOpcode.LISTEN:
            if key in known:
                return Status.DUPLICATE, 0
            if len(self.listen) >= self.listeners_max:
                return Status.TABLE_FULL, 0
            if fields["mss"] < 64 or fields["wscale"] > 14 or not fields["port"] or fields["queue"] >= self.queues:
                return Status.BAD_ARGUMENT, 0
            index = min(set(range(self.listeners_max)) - set(self.listen))
            self.listen[index] = fields
            return Status.OK, index
        if key not in known:
            return Status.NOT_FOUND, 0
        if fields["opcode"] == CommandOpcode.UNLISTEN:
            del self.listen[known[key]]
        else:
            self.listen[known[key]] = fields
        return Status.OK, known[key]

    # -- flows -----------------------------------------------------------------------------

    @property
    def _steps(self) -> int:
        """Time in timer steps of four ticks of 100 us."""
        return int((self.clock() - self.started) * 10_000 / regs.TIMER_TICKS)

    def _flow_time(self, name: str) -> int:
        register = next(register for register in regs.FLOWS.registers if register.name == name)
        return self.values.get(regs.FLOWS.address(name), register.reset)

    def _close(self, queue: int, command: dict[str, int]) -> tuple[Status, int]:
        """The checks of docs/teardown.md in their order, then the flow."""
        count, sent, ts = command["frames"], command["sent"], bool(command["flags"] & CloseFlag.TIMESTAMPS)
        ipv6 = bool(command["flags"] & CloseFlag.IPV6)
        same = command["remote"] == command["local"] and command["remote_port"] == command["local_port"]
        if (
            not 1 <= count <= FINAL_FRAMES_MAX or sent > count or not command["retries"] or command["port"] >= self.ports
            or not 0 < command["rto"] < 1 << 14 or command["table"] % 256 or command["table"] >> 54 or same
            or command["wscale"] > 14 or command["flags"] & ~sum(CloseFlag)
        ):  # fmt: skip
            return Status.BAD_ARGUMENT, 0
        table = self.at(command["table"], count * FINAL_FRAME.size)
        if table is None:
            return Status.BAD_ADDRESS, 0
        entries = [FINAL_FRAME.unpack(bytes(table), number * FINAL_FRAME.size) for number in range(count)]
        first = seq = entries[0]["seq"]
        for number, entry in enumerate(entries):
            payload = entry["length"] - entry["l4_offset"] - (32 if ts else 20)
            if payload < 0 or entry["length"] > 9018:
                return Status.BAD_LENGTH, 0
            if entry["seq"] != seq or entry["flags"] != (FrameFlag.IPV6 if ipv6 else 0) or (not payload and number < count - 1):
                return Status.BAD_ARGUMENT, 0
            seq = seq + payload & M32
        end = seq + 1 & M32
        if end - first & M32 > (1 << 18) - 1:
            return Status.BAD_ARGUMENT, 0
        if not self.flow_secret:
            return Status.NO_SECRET, 0
        if len(self.flows) >= self.flows_max:
            return Status.TABLE_FULL, 0
        # Remote and local address as the command has them, and the ports.
        remote, local = (command[name].to_bytes(16, "little") for name in ("remote", "local"))
        key = remote, local, command["remote_port"], command["local_port"]
        if self._flow_of(key) is not None:
            return Status.DUPLICATE, 0
        frames = [(entry, bytes(self.at(entry["address"], entry["length"]) or b"")) for entry in entries]
        fin = bool(command["flags"] & CloseFlag.PEER_FIN)
        index = min(set(range(self.flows_max)) - set(self.flows))
        self.flows[index] = FakeFlow(
            queue, command, key, frames, end, first, command["rcv_nxt"], FlowState.LAST_ACK if fin else FlowState.FIN_WAIT_1,
            command["window"], command["ts_recent"], self._steps + command["rto"], self._steps, fin=fin, timed=not sent,
        )  # fmt: skip
        return Status.OK, index

    def _send_unsent(self, index: int) -> None:
        flow = self.flows[index]
        for frame in flow.frames[flow.command["sent"] :]:
            self._send_frame(flow, frame)

    def _send_frame(self, flow: FakeFlow, frame: tuple[dict[str, int], bytes], again: bool = False) -> None:
        entry, before = frame
        flow.retransmissions += again
        flow.timed = flow.timed and not again
        data = self.at(entry["address"], entry["length"])
        if data is None:
            self.end_flow(flow, Status.BAD_ADDRESS)
            return
        assert bytes(data) == before, "a final frame has changed while it was the NIC's"
        l4, ipv6 = entry["l4_offset"], bool(entry["flags"] & FrameFlag.IPV6)
        out = bytearray(data)
        struct.pack_into("!I", out, l4 + 8, flow.rcv_nxt)
        if flow.timestamps:
            struct.pack_into("!II", out, l4 + 24, self.ts_clock(), flow.ts_recent)
        flags = TxFlag.L4_CHECKSUM | (TxFlag.IPV6 if ipv6 else TxFlag.IPV4_CHECKSUM)
        self.on_wire(insert_checksums(bytes(out), l4 - (40 if ipv6 else 20), l4, flags).ljust(60, b"\0"))

    def _send_first(self, flow: FakeFlow, count: int = 1) -> None:
        """Retransmit the first frames that are not acknowledged whole."""
        ends = [entry["seq"] for entry, _ in flow.frames[1:]] + [flow.snd_end]
        left = [frame for frame, end in zip(flow.frames, ends, strict=True) if (flow.snd_end - end & M32) < flow.unacked]
        for frame in left[:count]:
            self._send_frame(flow, frame, again=True)

    def _turned(self, frame: bytes, l3: int, l4: int, flow: FakeFlow, flags: int) -> None:
        """A segment of the NIC's own to whoever sent `frame`."""
        ipv6 = l4 - l3 == 40
        body = b"\1\1\x08\x0a" + struct.pack("!II", self.ts_clock(), flow.ts_recent) if flow.timestamps else b""
        segment = TCP.pack(
            src_port=flow.command["local_port"], dst_port=flow.command["remote_port"], seq=flow.snd_end, ack=flow.rcv_nxt,
            data_offset=5 + len(body) // 4, flags=flags, window=self._flow_time("window"),
        ) + body  # fmt: skip
        if ipv6:
            ip = IPV6.unpack(frame, l3)
            header = IPV6.pack(
                version=6, payload_length=len(segment), next_header=6, hop_limit=64, src=ip["dst"], dst=ip["src"]
            )
        else:
            ip = IPV4.unpack(frame, l3)
            header = IPV4.pack(
                version=4, ihl=5, total_length=20 + len(segment), ttl=64, protocol=6, src=ip["dst"], dst=ip["src"]
            )
        link = frame[6:12] + frame[0:6] + frame[12:l3]
        checks = TxFlag.L4_CHECKSUM | (TxFlag.IPV6 if ipv6 else TxFlag.IPV4_CHECKSUM)
        self.on_wire(insert_checksums(link + header + segment, l3, l4, checks).ljust(60, b"\0"))

    def end_flow(self, flow: FakeFlow, status: Status, state: FlowState = FlowState.LINGER) -> None:
        """TIME_WAIT or LINGER; the host is told unless it has been."""
        if state is FlowState.TIME_WAIT and not self._flow_time("time_wait"):
            state = FlowState.LINGER
        flow.state = state
        flow.deadline = self._steps + self._flow_time("time_wait" if state is FlowState.TIME_WAIT else "linger")
        if flow.status is None:
            flow.status = status
            index = next(index for index, other in self.flows.items() if other is flow)
            self.post_event(
                flow.queue, type=EventType.FLOW_DONE, status=status, value=index, rtt=flow.rtt,
                retransmissions=min(flow.retransmissions, 63),
            )  # fmt: skip

    def _acknowledged(self, flow: FakeFlow, ack: int, window: int, ts_recent: int | None) -> None:
        """Rules 8 to 11, without duplicate ACKs."""
        new = (flow.snd_end - ack & M32) < flow.unacked
        if (flow.snd_end - ack & M32) <= flow.unacked:
            opened = not flow.window and window
            flow.window = window
            if new:
                flow.una = ack
                if flow.timed:
                    flow.rtt, flow.timed = self._steps - flow.started, False
                repeated = flow.retries or flow.duplicates >= 3
                flow.retries, flow.duplicates = 0, 3 if repeated and flow.unacked else 0
                flow.deadline = self._steps + flow.command["rto"]
                if flow.unacked and repeated:
                    self._send_first(flow, 2)
            elif opened and flow.unacked:
                self._send_first(flow, 2)
        if ts_recent is not None:
            flow.ts_recent = ts_recent
        if not flow.unacked:
            if flow.state is FlowState.FIN_WAIT_1:
                flow.state, flow.deadline = FlowState.FIN_WAIT_2, self._steps + self._flow_time("fin_wait_2")
            elif flow.state is FlowState.CLOSING:
                self.end_flow(flow, Status.OK, FlowState.TIME_WAIT)
            elif flow.state is FlowState.LAST_ACK:
                self.end_flow(flow, Status.OK)

    def _fin_received(self, flow: FakeFlow) -> None:
        """Rule 13."""
        flow.fin, flow.rcv_nxt = True, flow.rcv_nxt + 1 & M32
        if flow.state is FlowState.FIN_WAIT_1:
            flow.state = FlowState.CLOSING
        elif flow.state is FlowState.FIN_WAIT_2:
            self.end_flow(flow, Status.OK, FlowState.TIME_WAIT)

    def _flow_segment(
        self, flow: FakeFlow, frame: bytes, l3: int, l4: int, tcp: dict[str, int], options: Options | None, payload: int
    ) -> None:
        """The rules of docs/teardown.md for a received segment; challenge ACKs have no limit here."""
        flags = tcp["flags"]
        fin = bool(flags & TCPFlag.FIN)
        offset = (tcp["seq"] - flow.rcv_nxt + (1 << 31) & M32) - (1 << 31)
        length = payload + fin

        def reply() -> None:
            self._turned(frame, l3, l4, flow, TCPFlag.ACK)

        if flow.state not in BEFORE_LINGER:
            if flow.state is FlowState.TIME_WAIT and fin:
                flow.deadline = self._steps + self._flow_time("time_wait")
                reply()
            return
        if options is None:
            return
        if flags & TCPFlag.RST:
            if offset == 0:
                self.end_flow(flow, Status.RESET)
            elif 0 < offset < 65535:
                reply()
            return
        if flow.timestamps and options.ts is None:
            return
        old = flow.timestamps and options.ts is not None and options.ts[0] - flow.ts_recent & M32 >= 1 << 31
        if old or flags & TCPFlag.SYN:
            reply()
            return
        if not flags & TCPFlag.ACK:
            return
        genuine = (flow.snd_end - tcp["ack"] & M32) < 1 << min(18 + flow.command["wscale"], 31)
        window = min((tcp["window"] << flow.command["wscale"]) // WINDOW_UNIT, 4095)
        ts_recent = options.ts[0] if flow.timestamps and options.ts is not None and offset <= 0 else None
        if offset >= 65535 or offset + length < 0 or (length and offset + length <= 0) or (not length and offset < 0):
            if length or offset == -1:
                reply()
            if genuine and -65535 <= offset < 0:
                self._acknowledged(flow, tcp["ack"], flow.window, None)
            return
        if not genuine:
            reply()
            return
        duplicate = tcp["ack"] == flow.una and not length and window == flow.window and window and flow.unacked
        if duplicate:
            flow.duplicates += 1
            if flow.duplicates == 3:
                self._send_first(flow)
        self._acknowledged(flow, tcp["ack"], window, ts_recent)
        if flow.state not in BEFORE_LINGER or flow.fin:
            return
        if payload and offset + payload > 0:
            if not flow.unacked:
                self._turned(frame, l3, l4, flow, TCPFlag.RST | TCPFlag.ACK)
                self.end_flow(flow, Status.PEER_DATA)
        elif fin and offset + payload == 0:
            self._fin_received(flow)
            reply()

    def _flow_update(self, fields: dict[str, int]) -> Status:
        flow = self.flows.get(fields["flow"])
        if flow is None or flow.state not in BEFORE_LINGER or flow.snd_end != fields["snd_end"]:
            return Status.NOT_FOUND
        return Status.OK

    def _flow_told(self, fields: dict[str, int]) -> None:
        flow = self.flows[fields["flow"]]
        if fields["flags"] & FlowFlag.ABORT:
            self.end_flow(flow, Status.ABORTED)
            return
        newer = fields["ts_recent"] - flow.ts_recent & M32 < 1 << 31
        if (flow.snd_end - fields["ack"] & M32) < 1 << min(18 + flow.command["wscale"], 31):
            self._acknowledged(flow, fields["ack"], fields["window"], fields["ts_recent"] if newer else None)
        if fields["flags"] & FlowFlag.FIN and not flow.fin and flow.state in BEFORE_LINGER:
            self._fin_received(flow)

    def sweep(self) -> None:
        """Run the timers of flows and splices."""
        if self.splices is not None:
            self.splices.sweep()
        now = self._steps
        for index, flow in list(self.flows.items()):
            if now < flow.deadline:
                continue
            if flow.state in (FlowState.TIME_WAIT, FlowState.LINGER):
                del self.flows[index]
            elif flow.state is FlowState.FIN_WAIT_2:
                self.end_flow(flow, Status.FIN_TIMED_OUT)
            elif flow.retries >= flow.command["retries"]:
                self.end_flow(flow, Status.TIMED_OUT)
            else:
                flow.retries += 1
                flow.deadline = now + min(flow.command["rto"] << flow.retries, self._flow_time("max_rto"))
                self._send_first(flow)

    def _flow_record(self, flow: FakeFlow) -> bytes:
        return FLOW_RECORD.pack(
            state=flow.state, port=flow.command["port"], timestamps=int(flow.timestamps), queue=flow.queue,
            frames=len(flow.frames), retries=flow.retries, retry_limit=flow.command["retries"], snd_end=flow.snd_end,
            table=flow.command["table"], unacked=flow.unacked, rcv_nxt=flow.rcv_nxt, ts_recent=flow.ts_recent,
            deadline=flow.deadline - self._steps & M32, rto=flow.command["rto"], window=flow.window,
        )  # fmt: skip

    def _flow_of(self, key: tuple[bytes, bytes, int, int]) -> tuple[int, FakeFlow] | None:
        return next(((index, flow) for index, flow in self.flows.items() if flow.key == key), None)

    def _flow_takes(
        self, frame: bytes, l3: int, l4: int, src: int, dst: int, tcp: dict[str, int], options: Options | None, payload: int
    ) -> bool:
        """Whether the segment is a flow's. A newer SYN ends TIME_WAIT and LINGER (RFC 6191) and is nobody's."""
        remote, local = ((address if l4 - l3 == 40 else address & M32).to_bytes(16, "big") for address in (src, dst))
        found = self._flow_of((remote, local, tcp["src_port"], tcp["dst_port"]))
        if found is None:
            return False
        index, flow = found
        plain_syn = tcp["flags"] & (TCPFlag.SYN | TCPFlag.ACK | TCPFlag.RST | TCPFlag.FIN) == TCPFlag.SYN
        if plain_syn and options is not None and flow.state not in BEFORE_LINGER:
            after = (tcp["seq"] - flow.rcv_nxt - 1 & M32) < (1 << 31) - 1
            if options.ts is not None and flow.timestamps:
                ahead = options.ts[0] - flow.ts_recent & M32
                after = 0 < ahead < 1 << 31 or (not ahead and after)
            elif options.ts is not None:
                after = True
            if after:
                del self.flows[index]
                return False
        self._flow_segment(flow, frame, l3, l4, tcp, options, payload)
        return True

    # -- packets in ------------------------------------------------------------------------

    def ts_clock(self) -> int:
        return 1_000_000 + int((self.clock() - self.started) * 1000) & M32

    def inject(self, frame: bytes) -> None:
        """A frame from the wire."""
        self.counters["rx_packets"] += 1
        if not self.values.get(regs.CONTROL.address("control"), 0):
            self.counters["rx_drop_disabled"] += 1
            return
        mac = self.values.get(regs.PORT.address("mac_high"), 0) << 32 | self.values.get(regs.PORT.address("mac_low"), 0)
        if not frame[0] & 1 and frame[:6] != mac.to_bytes(6, "big"):
            self.counters["rx_drop_filter"] += 1
            return
        out: dict[str, int] = {"ts_clock": self.ts_clock(), "wscale": WSCALE_NONE}
        l3, ethertype = 14, int.from_bytes(frame[12:14], "big")
        if ethertype == EtherType.VLAN:
            out.update(vlan=1, vlan_tci=int.from_bytes(frame[14:16], "big"))
            l3, ethertype = 18, int.from_bytes(frame[16:18], "big")
        l4 = 0
        if ethertype == EtherType.IPV4:
            ip = IPV4.unpack(frame, l3)
            out.update(ipv4=1, l3_offset=l3, ip_options=ip["ihl"] > 5, fragment=bool(ip["more_fragments"] or ip["fragment_offset"]))
            end = l3 + ip["total_length"]
            if end > len(frame):
                self.counters["rx_drop_length"] += 1
                return
            if ip["ihl"] == 5:
                if sum16(frame[l3 : l3 + 20]) != 0xFFFF:
                    self.counters["rx_drop_ip_checksum"] += 1
                    return
                out["ip_checksum"] = ChecksumState.GOOD
                if ip["protocol"] == IPProtocol.TCP and not out["fragment"]:
                    l4 = l3 + 20
            src, dst = IPV4_MAPPED_PREFIX | ip["src"], IPV4_MAPPED_PREFIX | ip["dst"]
        elif ethertype == EtherType.IPV6:
            ip = IPV6.unpack(frame, l3)
            out.update(ipv6=1, l3_offset=l3)
            end = l3 + 40 + ip["payload_length"]
            src, dst = ip["src"], ip["dst"]
            if end > len(frame):
                self.counters["rx_drop_length"] += 1
                return
            if ip["next_header"] == IPProtocol.TCP:
                l4 = l3 + 40
        if l4:
            tcp = TCP.unpack(frame, l4) if end - l4 >= TCP.size else {"data_offset": 0}
            payload = l4 + tcp["data_offset"] * 4
            if tcp["data_offset"] < 5 or payload > end:
                self.counters["rx_drop_length"] += 1
                return
            if l4_sum(frame, l3, l4, end, "ipv6" in out, 6) != 0xFFFF:
                self.counters["rx_drop_l4_checksum"] += 1
                return
            out.update(tcp=1, l4_offset=l4, payload_offset=payload, l4_checksum=ChecksumState.GOOD)
            options = Options.parse(frame[l4 + 20 : payload])
            out["options_bad"] = options is None
            if self.flows and self._flow_takes(frame, l3, l4, src, dst, tcp, options, end - payload):
                return
            spliced = None
            if self.splices is not None:
                tsval = options.ts[0] if options is not None and options.ts is not None else None
                spliced = self.splices.takes(frame, l3, l4, tcp, tsval, end - payload)
                if spliced is not None and not spliced[0]:
                    return
            if spliced is not None and spliced[1] is not None:
                queue, out["verdict"] = spliced[1], spliced[2]
            else:
                queue = self._setup(frame, l3, l4, src, dst, tcp, options, end - payload, "ipv6" in out, out)
            if queue is None:
                return
        else:
            queue = self._spread(frame, l3, out)
            if queue is None:
                queue = self.values.get(regs.CONTROL.address("default_queue"), 0)
        self.deliver(frame, out, queue)

    def _spread(self, frame: bytes, l3: int, out: dict[str, int], ports: bytes | None = None) -> int | None:
        """The queue that RSS chooses, if it does; puts the hash into the completion."""
        types = regs.RssType(self.values.get(regs.RSS.address("control"), 0))
        if not types or not ("ipv4" in out or "ipv6" in out):
            return None
        at, size = (8, 16) if "ipv6" in out else (12, 4)
        addresses = frame[l3 + at : l3 + at + 2 * size]
        numbers = (None, None) if ports is None else struct.unpack("!HH", ports)
        if self.toeplitz is None:
            self.toeplitz = Toeplitz(bytes(self.rss_key))
        value = self.toeplitz.packet(types, addresses[:size], addresses[size:], *numbers)
        if value is None:
            return None
        out["rss_hash"] = value
        return self.rss_table[value % regs.RSS_TABLE_ENTRIES]

    def deliver(self, frame: bytes, out: dict[str, int], index: int = 0) -> None:
        """Write a frame to the host."""
        queue = self.queue[index]
        if not queue.enabled or queue.free_head == queue.free_tail:
            self.counters["rx_drop_no_buffer"] += 1
            return
        entries = self._ring(index, "rx_completion")[1]
        if queue.completion - queue.completion_head & 0xFFFF >= entries:
            self.counters["rx_drop_completion_full"] += 1
            return
        free = RX_FREE.unpack(self._entry(index, "rx_free", queue.free_head, RX_FREE.size))
        queue.free_head = queue.free_head + 1 & 0xFFFF
        buffer = self.at(free["address"], free["length"])
        out = {**out, "tag": free["tag"], "length": len(frame)}
        if buffer is None:
            out.update(length=0, status=Status.BAD_ADDRESS)
        elif len(frame) > free["length"]:
            out.update(length=0, status=Status.BAD_LENGTH)
        else:
            buffer[: len(frame)] = frame
            self.counters["rx_host_packets"] += 1
        phase = 1 - queue.completion // entries % 2
        entry = self._entry(index, "rx_completion", queue.completion, RX_COMPLETION.size)
        entry[:] = RX_COMPLETION.pack(**out, phase=phase)
        queue.completion = queue.completion + 1 & 0xFFFF
        self._interrupt(index)

    def _setup(self, frame, l3, l4, src, dst, tcp, options, payload, ipv6, out) -> int | None:  # type: ignore[no-untyped-def]
        flags = tcp["flags"]
        packed = (dst if ipv6 else dst & M32).to_bytes(16, "big")
        hit = None
        for wildcard in (False, True):
            for index, entry in self.listen.items():
                same = (
                    bool(entry["flags"] & ListenFlag.ANY_ADDRESS) == wildcard
                    and bool(entry["flags"] & ListenFlag.IPV6) == ipv6
                    and entry["port"] == tcp["dst_port"]
                    and (wildcard or entry["address"].to_bytes(16, "little") == packed)
                )
                if same and hit is None:
                    hit = index, entry
        spread = self._spread(frame, l3, out, frame[l4 : l4 + 4])
        if hit is None or frame[0] & 1:
            return self.values.get(regs.CONTROL.address("default_queue"), 0) if spread is None else spread
        index, entry = hit
        out.update(listener=1, listener_index=index)
        if flags & TCPFlag.SYN and not flags & TCPFlag.ACK:
            self.counters["setup_syn"] += 1
            mss = 536 if options and options.mss is None else options.mss if options else 0
            if options is None or mss < MSS_CLASSES[0]:
                self.counters["setup_drop_options"] += 1
            elif entry["flags"] & ListenFlag.PAUSED:
                self.counters["setup_drop_paused"] += 1
            elif self.key is None:
                self.counters["setup_drop_no_secret"] += 1
            else:
                self._syn_ack(frame, l3, l4, src, dst, tcp, options, mss, entry, ipv6)
            return None
        if flags & TCPFlag.ACK and not flags & (TCPFlag.SYN | TCPFlag.RST) and options is not None and self.key:
            iss = tcp["ack"] - 1 & M32
            ecn = False
            if options.ts is not None:
                ride = TIMESTAMP_OPTIONS.unpack(options.ts[1].to_bytes(4, "big"))
                parts = COOKIE_TIMESTAMPS.unpack(iss.to_bytes(4, "big"))
                wscale, sack, ecn = ride["wscale"], bool(ride["sack"]), bool(ride["ecn"])
            else:
                parts = COOKIE_PLAIN.unpack(iss.to_bytes(4, "big"))
                wscale, sack = parts["wscale"], bool(parts["sack"])
            expected = cookie(
                self.key, src=src, dst=dst, src_port=tcp["src_port"], dst_port=tcp["dst_port"],
                client_iss=tcp["seq"] - 1 & M32, epoch=self.epoch, timestamps=options.ts is not None,
                mss_class=parts["mss_class"], wscale=wscale, sack=sack, ecn=ecn,
            )  # fmt: skip
            if expected == iss:
                self.counters["setup_cookie_good"] += 1
                if entry["flags"] & ListenFlag.DEFER_ACCEPT and not payload and not flags & TCPFlag.FIN:
                    self.counters["setup_deferred"] += 1
                    return None
                out.update(
                    verdict=Verdict.NEW, mss=MSS_CLASSES[parts["mss_class"]], wscale=wscale, sack=sack,
                    timestamps=options.ts is not None, ecn=ecn,
                )  # fmt: skip
            else:
                self.counters["setup_cookie_bad"] += 1
        return spread if spread is not None and entry["flags"] & ListenFlag.SPREAD else entry["queue"]

    def _syn_ack(self, frame, l3, l4, src, dst, tcp, options, mss, entry, ipv6) -> None:  # type: ignore[no-untyped-def]
        assert self.key is not None
        mss_class = max(i for i, value in enumerate(MSS_CLASSES) if value <= mss)
        both = TCPFlag.ECE | TCPFlag.CWR
        ecn = bool(entry["flags"] & ListenFlag.ECN) and tcp["flags"] & both == both and options.ts is not None
        iss = cookie(
            self.key, src=src, dst=dst, src_port=tcp["src_port"], dst_port=tcp["dst_port"], client_iss=tcp["seq"],
            epoch=self.epoch, timestamps=options.ts is not None, mss_class=mss_class, wscale=options.wscale,
            sack=options.sack, ecn=ecn,
        )  # fmt: skip
        body = b"\x02\x04" + entry["mss"].to_bytes(2, "big")
        if options.ts is not None:
            clock = self.ts_clock()
            tsval = clock & ~63 | ecn << 5 | options.sack << 4 | options.wscale
            if tsval > clock:
                tsval -= 64
            body += (b"\x04\x02" if options.sack else b"\1\1") + b"\x08\x0a" + struct.pack("!II", tsval, options.ts[0])
        elif options.sack:
            body += b"\1\1\x04\x02"
        if options.wscale != WSCALE_NONE:
            body += bytes([1, 3, 3, entry["wscale"]])
        segment = TCP.pack(
            src_port=tcp["dst_port"], dst_port=tcp["src_port"], seq=iss, ack=tcp["seq"] + 1 & M32,
            data_offset=5 + len(body) // 4, flags=TCPFlag.SYN | TCPFlag.ACK | (TCPFlag.ECE if ecn else 0),
            window=entry["window"],
        ) + body  # fmt: skip
        if ipv6:
            ip = IPV6.pack(version=6, payload_length=len(segment), next_header=6, hop_limit=64, src=dst, dst=src)
        else:
            ip = IPV4.pack(
                version=4, ihl=5, total_length=20 + len(segment), dont_fragment=1, ttl=64, protocol=6,
                src=dst & M32, dst=src & M32,
            )  # fmt: skip
        link = frame[6:12] + frame[0:6] + frame[12:l3]
        flags = TxFlag.L4_CHECKSUM | (TxFlag.IPV6 if ipv6 else TxFlag.IPV4_CHECKSUM)
        self.counters["setup_syn_ack"] += 1
        self.on_wire(insert_checksums(link + ip + segment, l3, l4, flags).ljust(60, b"\0"))


assert ETHERNET.size == 14 and VLAN.size == 4
