"""Endpoint, queue, model device and tiny clients in virtual time, with a wire that loses.

`Client` is a TCP of its own, written against the RFCs and not against the endpoint: it
acknowledges every segment, repeats everything after a fixed time-out, reassembles.
"""

from __future__ import annotations

import heapq
import itertools
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, ListenFlag, TxFlag
from acceltcp.abi.wire import IPV4, IPV6, TCP
from acceltcp.host.device import Device
from acceltcp.host.net import Addresses
from acceltcp.host.queue import Queue
from acceltcp.host.tcp import Listener, TcpConnection, TcpEndpoint, TcpSettings

from .fake_device import FakeTransport, Options, insert_checksums

M32 = 0xFFFFFFFF
MAC, CLIENT_MAC = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << i for i in range(8))


@dataclass
class Seg:
    """A segment as the client sees it."""

    seq: int
    ack: int
    flags: int
    window: int
    options: Options
    payload: bytes
    sack: list[tuple[int, int]] = field(default_factory=list)
    ect: int = 0
    frame: bytes = b""


class World:
    """loss, swap: probabilities either way. delay: seconds one way."""

    def __init__(
        self, *, loss: float = 0, swap: float = 0, seed: int = 1, delay: float = 0.005, settings: TcpSettings | None = None,
        ecn: bool = False, defer: bool = False, wscale: int = 7, window: int = 65535, tx: int = 1024,
    ) -> None:  # fmt: skip
        self.now = 100.0
        self.loss, self.swap, self.delay = loss, swap, delay
        self.random = random.Random(seed)
        self.transport = FakeTransport(clock=lambda: self.now)
        self.device = Device(self.transport)
        self.device.set_mac(int.from_bytes(MAC, "big"))
        self.device.set_secret()
        self.device.enable()
        self.queue = Queue(self.device, tx=tx, events=2 * tx)
        addresses = Addresses(["10.0.0.2/24", "fd00::2/64"], int.from_bytes(MAC, "big"))
        self.endpoint = TcpEndpoint(
            self.queue, addresses, settings, now=self.now, ts_clock=self.transport.ts_clock
        )
        self.queue.on_space = self.endpoint.unblock
        self.connections: list[TcpConnection] = []
        self.accepting = True
        self.clients: dict[int, Client] = {}
        self.strays: list[Seg] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.transport.on_wire = lambda frame: self._carry(lambda: self._to_client(frame))
        flags = (ListenFlag.ECN if ecn else 0) | (ListenFlag.DEFER_ACCEPT if defer else 0)
        for v6 in (False, True):
            packed = addresses.interfaces[v6].ip.packed
            command = LISTEN_COMMAND.pack(
                opcode=CommandOpcode.LISTEN, address=int.from_bytes(packed.rjust(16, b"\0"), "little"), port=80,
                flags=flags | (ListenFlag.IPV6 if v6 else 0), mss=1460, window=window, wscale=wscale,
            )  # fmt: skip
            index = self.queue.run_command(command).value
            self.endpoint.listeners[index] = Listener(self._accept, window, wscale)

    def _accept(self, connection: TcpConnection) -> bool:
        if self.accepting:
            self.connections.append(connection)
        return self.accepting

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def _carry(self, deliver: Callable[[], None]) -> None:
        if self.random.random() >= self.loss:
            self.at(self.now + self.delay * (3 if self.random.random() < self.swap else 1), deliver)

    def to_nic(self, frame: bytes) -> None:
        self._carry(lambda: self.transport.inject(frame))

    def _to_client(self, frame: bytes) -> None:
        if frame[12:14] == b"\x81\x00":
            frame = frame[:12] + frame[16:]
        v6 = frame[12:14] == b"\x86\xdd"
        l4 = 54 if v6 else 34
        end = 54 + IPV6.unpack(frame, 14)["payload_length"] if v6 else 14 + IPV4.unpack(frame, 14)["total_length"]
        tcp = TCP.unpack(frame, l4)
        data = l4 + 4 * tcp["data_offset"]
        raw = frame[l4 + 20 : data]
        options = Options.parse(raw)
        assert options is not None, raw
        segment = Seg(tcp["seq"], tcp["ack"], tcp["flags"], tcp["window"], options, frame[data:end], frame=frame)
        segment.ect = frame[15] >> 4 & 3 if v6 else frame[15] & 3
        at = 0
        while at < len(raw) and raw[at]:
            if raw[at] == 5:
                body = raw[at + 2 : at + raw[at + 1]]
                segment.sack = list(struct.iter_unpack("!II", body))
            at += 1 if raw[at] == 1 else raw[at + 1]
        client = self.clients.get(tcp["dst_port"])
        if client is not None:
            client.receive(segment)
        else:
            self.strays.append(segment)

    def turn(self) -> None:
        """What the event loop does at one instant."""
        self.endpoint.now = self.now
        while self.queue.poll(self.endpoint.receive):
            pass
        self.endpoint.run_timers(self.now)
        self.endpoint.flush(self.now)
        self.queue.flush()

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass."""
        stop = self.now + seconds
        self.turn()
        while not until():
            times = [stop]
            if self._events:
                times.append(self._events[0][0])
            deadline = self.endpoint.next_deadline()
            if deadline is not None:
                times.append(max(deadline, self.now))
            self.now = max(min(times), self.now)
            ran = False
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
                ran = True
            self.turn()
            if self.now >= stop and not ran:
                return

    def connect(self, port: int = 40000, **options: object) -> Client:
        client = Client(self, port, **options)  # type: ignore[arg-type]
        client.connect()
        return client


class Client:
    """A TCP client. `auto`: acknowledge what comes by itself."""

    def __init__(
        self, world: World, port: int, *, v6: bool = False, ts: bool = True, wscale: int | None = 7, sack: bool = True,
        ecn: bool = False, vlan: int | None = None, iss: int | None = None, mss: int = 1460, window: int = 65535,
        ts_offset: int = 5000, dst_port: int = 80,
    ) -> None:  # fmt: skip
        self.world, self.port, self.v6, self.vlan = world, port, v6, vlan
        self.ts, self.wscale, self.sack, self.ecn = ts, wscale, sack, ecn
        self.mss, self.window, self.dst_port = mss, window, dst_port
        self.ts_offset = ts_offset
        self.iss = world.random.getrandbits(32) if iss is None else iss
        self.irs = 0
        self.una = self.nxt = self.iss + 1 & M32
        self.rcv = 0
        self.out = bytearray()
        self.fin_wanted = self.fin_acked = False
        self.got = bytearray()
        self.pieces: dict[int, tuple[bytes, bool]] = {}
        self.fin_seen = self.reset = self.established = False
        self.auto = True
        self.ts_recent = 0
        self.peer_window = 65535
        self.peer_shift = 0
        self.peer_mss = 0
        self.seen: list[Seg] = []
        self.sent_at = -1.0
        world.clients[port] = self

    def tsval(self) -> int:
        return self.ts_offset + int(self.world.now * 1000) & M32

    def send(
        self, seq: int, flags: int, payload: bytes = b"", *, ack: int | None = None, options: bytes | None = None,
        window: int | None = None, tsval: int | None = None, ce: bool = False, mac: bytes = CLIENT_MAC,
    ) -> None:  # fmt: skip
        """A segment, whatever it is."""
        if options is None:
            options = b""
            if self.ts and not flags & SYN:
                options = b"\1\1\x08\x0a" + struct.pack("!II", self.tsval() if tsval is None else tsval, self.ts_recent)
        ack = self.rcv if ack is None else ack
        segment = TCP.pack(
            src_port=self.port, dst_port=self.dst_port, seq=seq & M32, ack=ack & M32 if flags & ACK else 0,
            data_offset=5 + len(options) // 4, flags=flags, window=self.window if window is None else window,
        ) + options + payload  # fmt: skip
        tos = 3 if ce else 0
        if self.v6:
            ip = IPV6.pack(
                version=6, payload_length=len(segment), next_header=6, hop_limit=64, traffic_class=tos,
                src=0xFD00 << 112 | 1, dst=0xFD00 << 112 | 2,
            )  # fmt: skip
        else:
            ip = IPV4.pack(
                version=4, ihl=5, total_length=20 + len(segment), ttl=64, protocol=6, src=0x0A000001, dst=0x0A000002,
                tos=tos,
            )  # fmt: skip
        tag = b"" if self.vlan is None else b"\x81\x00" + self.vlan.to_bytes(2, "big")
        link = MAC + mac + tag + (b"\x86\xdd" if self.v6 else b"\x08\x00")
        checks = TxFlag.L4_CHECKSUM | (TxFlag.IPV6 if self.v6 else TxFlag.IPV4_CHECKSUM)
        self.world.to_nic(insert_checksums(link + ip + segment, len(link), len(link) + len(ip), checks).ljust(60, b"\0"))

    def connect(self) -> None:
        if self.established or self.reset:
            return
        options = b"\x02\x04" + self.mss.to_bytes(2, "big")
        if self.ts:
            options += (b"\x04\x02" if self.sack else b"\1\1") + b"\x08\x0a" + struct.pack("!II", self.tsval(), 0)
        elif self.sack:
            options += b"\1\1\x04\x02"
        if self.wscale is not None:
            options += bytes([1, 3, 3, self.wscale])
        self.send(self.iss, SYN | (ECE | CWR if self.ecn else 0), options=options)
        self.world.at(self.world.now + 1.0, self.connect)

    def write(self, data: bytes, fin: bool = False) -> None:
        self.out += data
        self.fin_wanted |= fin
        if self.established:
            self.push(fresh=True)

    def push(self, fresh: bool = False) -> None:
        """Send from `una`, as far as the window goes; again after a while if it was not heard."""
        if self.reset or not self.established:
            return
        limit = min(self.peer_window << self.peer_shift, 20 * self.mss)
        offset = self.nxt - self.una & M32 if fresh else 0
        segment = self.mss - (12 if self.ts else 0)
        while offset < min(len(self.out), limit):
            part = bytes(self.out[offset : min(offset + segment, limit)])
            self.send(self.una + offset, ACK | PSH, part)
            offset += len(part)
        if self.fin_wanted and not self.fin_acked and offset == len(self.out):
            self.send(self.una + offset, ACK | FIN)
            offset += 1
        self.nxt = self.una + max(offset, self.nxt - self.una & M32) & M32
        if self.out or (self.fin_wanted and not self.fin_acked):
            self.sent_at = self.world.now
            self.world.at(self.world.now + 0.3, self._again)

    def _again(self) -> None:
        if self.world.now - self.sent_at >= 0.299 and (self.out or (self.fin_wanted and not self.fin_acked)):
            self.push()

    def receive(self, segment: Seg) -> None:
        self.seen.append(segment)
        if segment.flags & RST:
            self.reset = True
            return
        if segment.options.ts is not None and not segment.flags & RST:
            if (segment.options.ts[0] - self.ts_recent) & M32 >= 1 << 31 and self.established:
                assert self.world.swap, "our timestamps stepped back, and no frame was overtaken"
                self.send(self.nxt, ACK)
                return
        if segment.flags & SYN:
            if not self.established:
                self.irs, self.rcv = segment.seq, segment.seq + 1 & M32
                self.established = True
                self.peer_window = segment.window
                self.peer_mss = segment.options.mss or 536
                if segment.options.ts is None:
                    self.ts = False
            if segment.options.ts is not None:
                self.ts_recent = segment.options.ts[0]
            if self.auto:
                self.send(self.nxt, ACK)
                self.push()
            return
        self.peer_shift = 7 if self.wscale is not None else 0
        self.peer_window = segment.window
        if segment.options.ts is not None and (segment.seq - self.rcv) & M32 in (0, *range(M32 - 3000, M32 + 1)):
            self.ts_recent = segment.options.ts[0]
        acked = segment.ack - self.una & M32
        if 0 < acked <= len(self.out) + self.fin_wanted:
            if acked == len(self.out) + 1:
                self.fin_acked = True
            del self.out[: min(acked, len(self.out))]
            self.una = segment.ack
            if (self.nxt - self.una & M32) >= 1 << 31:
                self.nxt = self.una
            self.sent_at = self.world.now
            self.push(fresh=True)
        if segment.payload and not self.window:
            if self.auto:
                self.send(self.nxt, ACK)
        elif segment.payload or segment.flags & FIN:
            self.pieces[segment.seq] = (segment.payload, bool(segment.flags & FIN))
            moved = True
            while moved:
                moved = False
                for seq, (payload, fin) in sorted(self.pieces.items(), key=lambda item: item[0] - self.rcv & M32):
                    skip = self.rcv - seq & M32
                    if self.fin_seen or not skip <= len(payload) or (skip == len(payload) and not fin):
                        continue
                    self.got += payload[skip:]
                    self.rcv = self.rcv + len(payload) - skip & M32
                    if fin:
                        self.fin_seen = True
                        self.rcv = self.rcv + 1 & M32
                    del self.pieces[seq]
                    moved = True
                    break
            if self.auto:
                self.send(self.nxt, ACK)
