"""The endpoint alone, and a peer that says exactly what a test tells it to.

`Bench` is what lies below an endpoint: a link that remembers frames, a network that knows everybody, virtual
time. `Talk` is the other end of one four-tuple: `say` puts a segment into the endpoint and returns what it sends at
once; nothing is ever sent by itself. Both are written against the RFCs' formats, with `struct`.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections.abc import Callable

from acceltcp.abi.messages import ChecksumState, Verdict
from acceltcp.host.net import Addresses
from acceltcp.host.net.icmp import IcmpErrorKind
from acceltcp.host.net.routes import Route
from acceltcp.host.rings import RX_PACKING
from acceltcp.host.tcp import ConnectionOptions, Listener, TcpConnection, TcpEndpoint, TcpSettings
from acceltcp.host.tcp.flows import Flow

M32 = 0xFFFFFFFF
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << i for i in range(8))
OUR_MAC, PEER_MAC = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")
OURS = {False: bytes((10, 0, 0, 2)), True: bytes.fromhex("fd") + bytes(14) + b"\2"}
PEERS = {False: bytes((10, 0, 0, 1)), True: bytes.fromhex("fd") + bytes(14) + b"\1"}
MSS_OPTION, WSCALE_OPTION, SACK_PERMITTED, SACK_OPTION, TS_OPTION = 2, 3, 4, 5, 8


class Out:
    """A segment that the endpoint sent at `time`. options: kind -> body; sack: its blocks; tos: whole byte."""

    def __init__(self, time: float, frame: bytes, l3: int, l4: int) -> None:
        self.time, self.frame = time, frame
        self.ipv6 = frame[l3] >> 4 == 6
        if self.ipv6:
            self.tos = int.from_bytes(frame[l3 : l3 + 2], "big") >> 4 & 0xFF
            self.ttl = frame[l3 + 7]
            end = l3 + 40 + int.from_bytes(frame[l3 + 4 : l3 + 6], "big")
        else:
            self.tos, self.ttl = frame[l3 + 1], frame[l3 + 8]
            end = l3 + int.from_bytes(frame[l3 + 2 : l3 + 4], "big")
        assert end == len(frame), "IP's length is that of the frame"
        self.packet = end - l3
        self.src, self.dst = (frame[l3 + 8 : l3 + 24], frame[l3 + 24 : l3 + 40]) if self.ipv6 else (frame[l3 + 12 : l3 + 16], frame[l3 + 16 : l3 + 20])
        self.sport, self.dport, self.seq, self.ack, offset, self.flags, self.window = struct.unpack_from("!HHIIBBH", frame, l4)
        data = l4 + (offset >> 4) * 4
        self.payload = frame[data:end]
        self.options: dict[int, bytes] = {}
        at = l4 + 20
        while at < data and frame[at]:
            size = 1 if frame[at] == 1 else frame[at + 1]
            if frame[at] != 1:
                assert frame[at] not in self.options, "an option twice"
                self.options[frame[at]] = frame[at + 2 : at + size]
            at += size
        self.sack = list(struct.iter_unpack("!II", self.options.get(SACK_OPTION, b"")))
        self.ts: tuple[int, int] | None = struct.unpack("!II", self.options[TS_OPTION]) if TS_OPTION in self.options else None

    @property
    def end(self) -> int:
        """The sequence number after it."""
        return self.seq + len(self.payload) + bool(self.flags & FIN) + bool(self.flags & SYN) & M32

    @property
    def mss(self) -> int | None:
        """MSS option."""
        return int.from_bytes(self.options[MSS_OPTION], "big") if MSS_OPTION in self.options else None

    @property
    def wscale(self) -> int | None:
        """Window scale option."""
        return self.options[WSCALE_OPTION][0] if WSCALE_OPTION in self.options else None

    def __repr__(self) -> str:
        names = "".join(letter for bit, letter in enumerate("FSRPAUEC") if self.flags >> bit & 1)
        return f"<{self.time:.4f} {names} {self.seq}+{len(self.payload)} ack {self.ack} win {self.window}>"


class Net:
    """The network of a bench. known: next hops are. Answers what an endpoint asks of `net.Network`."""

    def __init__(self, mtu: int) -> None:
        self.mtu = mtu
        self.known = True
        self.asked: list[bytes] = []
        self.unreachable: OSError | None = None
        self.path_mtus: dict[bytes, int] = {}

    def route(self, remote: bytes, local: bytes | None = None) -> Route:
        if self.unreachable is not None:
            raise self.unreachable
        local = local if local is not None else OURS[len(remote) == 16]
        return Route(remote, local, remote, local, 0, self.mtu)

    def path_mtu(self, remote: bytes) -> int:
        return self.path_mtus.get(remote, self.mtu)

    def confirm(self, address: bytes) -> None: ...

    def resolve(self, route: Route) -> bytes | None:
        self.asked.append(route.next_hop)
        if not self.known:
            return None
        return PEER_MAC + OUR_MAC + (b"\x86\xdd" if len(route.next_hop) == 16 else b"\x08\x00")


class User:
    """Hears what a connection tells, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.errors: list[OSError | None] = []
        self.on_readable: Callable[[], None] = lambda: None

    def connected(self) -> None:
        self.heard.append("connected")

    def readable(self) -> None:
        self.heard.append("readable")
        self.on_readable()

    def writable(self) -> None:
        self.heard.append("writable")

    def handed_over(self, flow: Flow) -> None:
        self.heard.append("handed over")

    def closed(self, error: OSError | None) -> None:
        self.heard.append("closed")
        self.errors.append(error)


class Bench:
    """An endpoint with 10.0.0.2 and fd00::2. It is its link. room: segments that the transmit ring takes until it is raised.

    Settings are those of `TcpSettings`, plus what a test names.
    """

    def __init__(self, settings: TcpSettings | None = None, **names: object) -> None:
        self.now = 1000.0
        self.room = 1 << 60
        self.out: list[Out] = []
        self.talks: dict[tuple[bytes, int, int], Talk] = {}
        self.accepting = True
        self.accepted: list[TcpConnection] = []
        self.users: list[User] = []
        self._slot = memoryview(bytearray(70_000))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        settings = settings or TcpSettings(**names)  # type: ignore[arg-type]
        self.addresses = Addresses(["10.0.0.2/24", "fd00::2/64"], int.from_bytes(OUR_MAC, "big"))
        self.endpoint = TcpEndpoint(
            self, self.addresses, settings, now=self.now, ts_clock=self.clock, ts_step=0.001
        )
        self.net = self.endpoint.network = Net(settings.mtu)  # type: ignore[assignment]

    def clock(self) -> int:
        """Timestamp clock of the NIC: a step per millisecond."""
        return int(self.now * 1000) + 7_000_000 & M32

    # -- the link ------------------------------------------------------------------------

    def reserve(self) -> memoryview | None:
        return self._slot if self.room > 0 else None

    def commit(self, length: int, l3_offset: int = 0, l4_offset: int = 0, flags: int = 0, port: int = 0) -> None:
        self.room -= 1
        segment = Out(self.now, bytes(self._slot[:length]), l3_offset, l4_offset)
        self.out.append(segment)
        talk = self.talks.get((segment.dst, segment.dport, segment.sport))
        if talk is not None:
            talk.heard(segment)

    def flush(self) -> None: ...

    # -- time ----------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Call it then."""
        heapq.heappush(self._events, (when, next(self._order), what))

    def turn(self) -> list[Out]:
        """Do what is due now; what went out."""
        before = len(self.out)
        endpoint = self.endpoint
        endpoint.now = self.now
        endpoint.run_timers(self.now)
        endpoint.flush(self.now)
        return self.out[before:]

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> list[Out]:
        """Let time pass; what went out. It stops at each instant that the endpoint named, and never in between."""
        before, stop = len(self.out), self.now + seconds
        self.turn()
        idle, instant = 0, self.now
        while not until():
            due = self.endpoint.next_deadline()
            times = [stop] + ([self._events[0][0]] if self._events else []) + ([due] if due is not None else [])
            now = max(min(times), self.now)
            idle = idle + 1 if now == instant else 0
            assert idle < 1000, f"nothing ends at {now}"
            self.now = instant = now
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            self.turn()
            if self.now >= stop:
                break
        return self.out[before:]

    # -- users ---------------------------------------------------------------------------

    def accept(self, connection: TcpConnection) -> bool:
        """What listeners call."""
        if self.accepting:
            connection.events = User()
            self.users.append(connection.events)
            self.accepted.append(connection)
        return self.accepting

    def listen(self, port: int = 80, address: bytes = b"", **options: object) -> Listener:
        """The host does the handshakes of this port."""
        listener = Listener(self.accept, **options)  # type: ignore[arg-type]
        self.endpoint.listen(port, listener, address)
        return listener

    def connect(
        self, port: int = 7, *, v6: bool = False, local_port: int = 0, options: ConnectionOptions | None = None
    ) -> tuple[TcpConnection, User]:
        """An active open to the peer; its SYN goes out at once if it can."""
        user = User()
        self.endpoint.now = self.now
        connection = self.endpoint.connect(PEERS[v6], port, local=OURS[v6], local_port=local_port, options=options, events=user)
        self.turn()
        return connection, user

    # -- packets in ----------------------------------------------------------------------

    def inject(self, frame: bytes, l4: int, **fields: int) -> list[Out]:
        """A packet with these fields of its completion; what goes out by the end of the batch."""
        items = [0] * RX_PACKING.items
        ipv6 = l4 == 54
        values = {
            "length": len(frame), "l3_offset": 14, "l4_offset": l4, "ipv6": ipv6, "ipv4": not ipv6, "tcp": 1,
            "l4_checksum": ChecksumState.GOOD, "ts_clock": self.clock(), **fields,
        }  # fmt: skip
        for name, value in values.items():
            slot = RX_PACKING[name]
            items[slot.item] |= int(value) << slot.shift
        before = len(self.out)
        self.endpoint.now = self.now
        self.endpoint.receive(memoryview(frame), tuple(items))
        self.turn()
        return self.out[before:]

    def icmp(self, kind: IcmpErrorKind, connection: TcpConnection, seq: int, mtu: int = 0) -> bool:
        """An ICMP error about a segment of that connection; whether it was believed."""
        self.endpoint.now = self.now
        believed = self.endpoint.icmp_error(kind, mtu, connection.key, seq & M32)
        self.turn()
        return believed


def syn_options(mss: int | None = 1460, wscale: int | None = 7, sack: bool = True, ts: int | None = None) -> bytes:
    """Options of a SYN."""
    raw = b"" if mss is None else struct.pack("!BBH", 2, 4, mss)
    raw += b"\4\2" if sack else b""
    raw += b"" if ts is None else struct.pack("!BBII", 8, 10, ts, 0)
    raw += b"" if wscale is None else bytes((3, 3, wscale))
    return raw + b"\0" * (-len(raw) % 4)


class Talk:
    """A peer on one four-tuple: 10.0.0.1 or fd00::1, `port`, to `to`.

    iss, irs: initial numbers. seq: the next number it would send. rcv: the next number it expects, moved by what comes in
    order. window: what it says; a bare number for the field, scaled by `wscale` on the other side.
    """

    def __init__(
        self, bench: Bench, port: int = 4000, to: int = 80, *, v6: bool = False, iss: int = 0x1234_5678, ts: bool = True,
        mss: int | None = 1460, wscale: int | None = 7, sack: bool = True, window: int = 65535,
    ) -> None:  # fmt: skip
        self.bench, self.port, self.to, self.v6 = bench, port, to, v6
        self.iss, self.irs = iss, 0
        self.seq, self.rcv = iss, 0
        self.ts, self.mss, self.wscale, self.sack, self.window = ts, mss, wscale, sack, window
        self.ts_recent = 0
        self.got = bytearray()
        self.fin = self.reset = False
        self.segments: list[Out] = []
        self.follow = True
        self._held: dict[int, Out] = {}
        bench.talks[PEERS[v6], port, to] = self

    def tsval(self) -> int:
        return int(self.bench.now * 1000) + 123_000 & M32

    def frame(
        self, flags: int, payload: bytes, seq: int, ack: int, window: int, options: bytes, ce: bool, mac: bytes, ttl: int = 64
    ) -> tuple[bytes, int]:
        """A frame and where its TCP header is. Checksums are the NIC's affair."""
        tcp = struct.pack(
            "!HHIIBBHHH", self.port, self.to, seq & M32, ack & M32, 5 + len(options) // 4 << 4, flags, window, 0, 0
        )
        tcp += options + payload
        if self.v6:
            ip = struct.pack("!IHBB", 6 << 28 | (3 if ce else 0) << 20, len(tcp), 6, ttl) + PEERS[True] + OURS[True]
            return OUR_MAC + mac + b"\x86\xdd" + ip + tcp, 54
        ip = struct.pack("!BBHHHBBH", 0x45, 3 if ce else 0, 20 + len(tcp), 0, 0x4000, ttl, 6, 0) + PEERS[False] + OURS[False]
        return OUR_MAC + mac + b"\x08\x00" + ip + tcp, 34

    def say(
        self, flags: int = ACK, payload: bytes = b"", *, seq: int | None = None, ack: int | None = None,
        window: int | None = None, options: bytes | None = None, blocks: tuple[tuple[int, int], ...] = (), ce: bool = False,
        tsval: int | None = None, tsecr: int | None = None, mac: bytes = PEER_MAC, **fields: int,
    ) -> list[Out]:  # fmt: skip
        """A segment; what the endpoint sends at once. Without seq it is the next one, and `seq` moves on. fields: of the completion."""
        at = self.seq if seq is None else seq
        if seq is None:
            self.seq = self.seq + len(payload) + bool(flags & FIN) + bool(flags & SYN) & M32
        if options is None:
            options = b""
            if flags & SYN:
                options = syn_options(self.mss, self.wscale, self.sack, self.tsval() if self.ts else None)
            elif self.ts and not flags & RST:
                options = b"\1\1" + struct.pack(
                    "!BBII", 8, 10, self.tsval() if tsval is None else tsval & M32, self.ts_recent if tsecr is None else tsecr
                )
            if blocks:
                body = b"".join(struct.pack("!II", left & M32, right & M32) for left, right in blocks)
                options += bytes((1, 1, 5, 2 + len(body))) + body
        window = self.window if window is None else window
        ack = (self.rcv if ack is None else ack) if flags & ACK else 0
        frame, l4 = self.frame(flags, payload, at, ack, window, options, ce, mac)
        return self.bench.inject(frame, l4, **fields)

    def heard(self, segment: Out) -> None:
        """What the endpoint sent; data in order are taken if `follow`."""
        self.segments.append(segment)
        if segment.flags & RST:
            self.reset = True
            return
        if segment.ts is not None:
            self.ts_recent = segment.ts[0]
        if segment.flags & SYN:
            self.irs, self.rcv = segment.seq, segment.seq + 1 & M32
            return
        if not self.follow:
            return
        self._held[segment.seq] = segment
        for held in sorted(self._held.values(), key=lambda one: one.seq - self.rcv & M32):
            skip = self.rcv - held.seq & M32
            if skip < (held.end - held.seq & M32):
                self.got += held.payload[skip:]
                self.fin |= bool(held.flags & FIN)
                self.rcv = held.end
        self._held = {seq: held for seq, held in self._held.items() if (held.end - self.rcv & M32) < 1 << 31 and held.end != self.rcv}

    # -- opening ---------------------------------------------------------------------------

    def open(self) -> TcpConnection:
        """A handshake with a listener of the host; the connection that it makes."""
        count = len(self.bench.accepted)
        answer = self.say(SYN)
        assert len(answer) == 1 and answer[0].flags & (SYN | ACK) == SYN | ACK, answer
        self.say(ACK)
        assert len(self.bench.accepted) == count + 1
        return self.bench.accepted[-1]

    def cookie(self, payload: bytes = b"", flags: int = ACK, irs: int = 0x0BAD_CAFE) -> list[Out]:
        """The first segment after a handshake that the NIC has done: marked NEW, listener 0."""
        self.irs, self.rcv, self.seq = irs, irs + 1 & M32, self.iss + 1 & M32
        self.bench.endpoint.listeners.setdefault(0, Listener(self.bench.accept))
        return self.say(flags, payload, **self.granted())

    def granted(self) -> dict[str, int]:
        """What the completion of a segment with a valid cookie says."""
        return {
            "verdict": Verdict.NEW, "listener": 1, "listener_index": 0, "mss": self.mss or 536, "sack": self.sack,
            "wscale": 15 if self.wscale is None else self.wscale, "timestamps": self.ts,
        }  # fmt: skip

    def answer(self, connection: TcpConnection, **syn: object) -> list[Out]:
        """SYN-ACK to the SYN of an active open."""
        opening = next(out for out in reversed(self.bench.out) if out.flags & SYN and out.dport == self.port)
        self.to = opening.sport
        self.bench.talks[PEERS[self.v6], self.port, self.to] = self
        self.heard(opening)
        if self.ts:
            self.ts = opening.ts is not None
        return self.say(SYN | ACK, **syn)  # type: ignore[arg-type]


def active(bench: Bench, *, port: int = 7, v6: bool = False, options: ConnectionOptions | None = None, **talk: object) -> tuple[Talk, TcpConnection, User]:
    """An established connection that the endpoint opened."""
    connection, user = bench.connect(port, v6=v6, options=options)
    peer = Talk(bench, port, 0, v6=v6, **talk)  # type: ignore[arg-type]
    peer.answer(connection)
    assert user.heard == ["connected"]
    return peer, connection, user


def passive(bench: Bench, **talk: object) -> tuple[Talk, TcpConnection, User]:
    """An established connection that the host accepted."""
    if 80 not in bench.endpoint.bound:
        bench.listen()
    peer = Talk(bench, **talk)  # type: ignore[arg-type]
    connection = peer.open()
    return peer, connection, bench.users[-1]


def data(segments: list[Out]) -> list[Out]:
    """Those with data."""
    return [segment for segment in segments if segment.payload]


def read(connection: TcpConnection) -> bytes:
    """All that it has for its user."""
    return b"".join(iter(lambda: connection.consume(1 << 20), b""))
