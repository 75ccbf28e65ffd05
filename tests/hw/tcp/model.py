"""Reference model of connection setup in plain Python, written from the rules.

`facts_of_frame` reads a raw frame as the receive front end must (scapy does the headers and
checksums); `SetupModel.process` says what becomes of it; `syn_ack_frame` lays out the reply with
scapy. No gateware is imported: `Facts` uses the names of `RxMeta`, and `flatten` gives values for a
layout of nested structs. The model knows no time: `ts_clock`, `epoch` and the keys are attributes
that a test sets. The one thing that it does not foresee is a SYN-ACK dropped because the reply
builder is busy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from scapy.layers.inet import IP, TCP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import checksum, mac2str

from acceltcp.abi.cookie import COOKIE_PLAIN, COOKIE_TIMESTAMPS, MSS_CLASSES, TIMESTAMP_OPTIONS, cookie
from acceltcp.abi.messages import ChecksumState, CommandOpcode, ListenFlag, Status, Verdict
from acceltcp.abi.wire import EtherType, TCPFlag

__all__ = [
    "MAPPED",
    "Entry",
    "Facts",
    "ListenModel",
    "Options",
    "Outcome",
    "SetupModel",
    "facts_of_frame",
    "mac_int",
    "mapped",
    "parse_options",
    "syn_ack_frame",
]

MAPPED = 0xFFFF << 32
M32 = (1 << 32) - 1


def mapped(address: str) -> int:
    """An IPv4 address as ::ffff:a.b.c.d, as a number."""
    return MAPPED | int.from_bytes(bytes(int(part) for part in address.split(".")), "big")


def mac_int(address: str) -> int:
    """A MAC address as a number, first byte most significant."""
    return int.from_bytes(mac2str(address), "big")


@dataclass
class Options:
    """As `hw.packet.meta.TcpOptions`."""

    bad: int = 0
    mss_present: int = 0
    mss: int = 0
    wscale: int = 15
    sack: int = 0
    timestamps: int = 0
    tsval: int = 0
    tsecr: int = 0


@dataclass
class Facts:
    """As `hw.packet.meta.RxMeta`."""

    port: int = 0
    length: int = 60
    dst_mac: int = 0
    src_mac: int = 0
    vlan: int = 0
    vlan_tci: int = 0
    ipv4: int = 0
    ipv6: int = 0
    fragment: int = 0
    ip_options: int = 0
    tcp: int = 0
    length_bad: int = 0
    ip_checksum: int = ChecksumState.NONE
    l4_checksum: int = ChecksumState.NONE
    src: int = 0
    dst: int = 0
    l3_offset: int = 0
    l4_offset: int = 0
    payload_offset: int = 0
    payload_length: int = 0
    src_port: int = 0
    dst_port: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    options: Options = field(default_factory=Options)

    def flatten(self) -> dict[str, Any]:
        """Values for the layout of the same name."""
        return asdict(self)


def parse_options(raw: bytes) -> Options:
    """RFC 9293 section 3.1: kinds, lengths and padding. Of a duplicate the last one counts."""
    options = Options()
    at = 0
    while at < len(raw):
        kind = raw[at]
        if kind == 0:
            return options
        if kind == 1:
            at += 1
            continue
        if at + 1 >= len(raw) or raw[at + 1] < 2 or at + raw[at + 1] > len(raw):
            options.bad = 1
            return options
        length, body = raw[at + 1], raw[at + 2 : at + raw[at + 1]]
        if length != {2: 4, 3: 3, 4: 2, 8: 10}.get(kind, length):
            options.bad = 1
            return options
        if kind == 2:
            options.mss_present, options.mss = 1, int.from_bytes(body, "big")
        elif kind == 3:
            options.wscale = min(body[0], 14)
        elif kind == 4:
            options.sack = 1
        elif kind == 8:
            options.timestamps = 1
            options.tsval, options.tsecr = int.from_bytes(body[:4], "big"), int.from_bytes(body[4:], "big")
        at += length
    return options


def facts_of_frame(frame: bytes, port: int = 0) -> Facts:
    """What the NIC has to find out about a frame (without FCS)."""
    facts = Facts(port=port, length=len(frame))
    ether = Ether(frame[:14])
    facts.dst_mac, facts.src_mac = mac_int(ether.dst), mac_int(ether.src)
    # Not from scapy, which takes a small EtherType for an 802.3 length.
    ethertype, at = int.from_bytes(frame[12:14], "big"), 14
    if ethertype == EtherType.VLAN and len(frame) >= 18:
        tag = Dot1Q(frame[14:18])
        facts.vlan, facts.vlan_tci = 1, int.from_bytes(frame[14:16], "big")
        ethertype, at = tag.type, 18
    rest = frame[at:]
    if ethertype == EtherType.IPV4 and len(rest) >= 20 and rest[0] >> 4 == 4 and rest[0] & 15 >= 5:
        ip = IP(rest[:20])
        facts.ipv4, facts.l3_offset = 1, at
        facts.src, facts.dst = mapped(ip.src), mapped(ip.dst)
        facts.ip_options = int(ip.ihl > 5)
        facts.fragment = int(bool(ip.flags.MF) or ip.frag != 0)
        if ip.ihl == 5:
            facts.ip_checksum = ChecksumState.BAD if checksum(rest[:20]) else ChecksumState.GOOD
        if ip.len < 4 * ip.ihl or ip.len > len(rest):
            facts.length_bad = 1
            return facts
        if ip.ihl > 5:
            return facts
        segment, protocol, header = rest[20 : ip.len], ip.proto, 20
        if facts.fragment:
            return facts
    elif ethertype == EtherType.IPV6 and len(rest) >= 40 and rest[0] >> 4 == 6:
        ip = IPv6(rest[:40])
        facts.ipv6, facts.l3_offset = 1, at
        facts.src, facts.dst = int.from_bytes(rest[8:24], "big"), int.from_bytes(rest[24:40], "big")
        if ip.plen + 40 > len(rest):
            facts.length_bad = 1
            return facts
        segment, protocol, header = rest[40 : 40 + ip.plen], ip.nh, 40
    else:
        return facts
    if protocol != 6:
        return facts
    if len(segment) < 20 or not 20 <= 4 * (segment[12] >> 4) <= len(segment):
        facts.length_bad = 1
        return facts
    tcp = TCP(segment[:20])
    data_at = 4 * tcp.dataofs
    total = in4_chksum(6, ip, segment) if facts.ipv4 else in6_chksum(6, ip, segment)
    facts.l4_checksum = ChecksumState.BAD if total else ChecksumState.GOOD
    facts.tcp, facts.l4_offset, facts.payload_offset = 1, at + header, at + header + data_at
    facts.payload_length = len(segment) - data_at
    facts.src_port, facts.dst_port, facts.seq, facts.ack = tcp.sport, tcp.dport, tcp.seq, tcp.ack
    facts.flags, facts.window = segment[13], tcp.window
    facts.options = parse_options(segment[20:data_at])
    return facts


@dataclass
class Entry:
    """A listener."""

    address: int | None  # None: any address
    port: int
    ipv6: bool
    queue: int
    mss: int
    window: int
    wscale: int
    defer_accept: bool = False
    ecn: bool = False
    paused: bool = False
    spread: bool = False

    @property
    def key(self) -> tuple[int | None, int, bool]:
        return self.address, self.port, self.ipv6


class ListenModel:
    """The listen table and its commands."""

    def __init__(self, entries: int, queues: int) -> None:
        self.entries: list[Entry | None] = [None] * entries
        self.queues = queues

    def lookup(self, address: int, port: int, ipv6: bool) -> tuple[int, Entry] | None:
        """Index and listener; an exact address comes first."""
        for wanted in ((address, port, ipv6), (None, port, ipv6)):
            for index, entry in enumerate(self.entries):
                if entry and entry.key == wanted:
                    return index, entry
        return None

    def command(
        self,
        opcode: int,
        *,
        address: int = 0,
        port: int = 0,
        flags: int = 0,
        queue: int = 0,
        mss: int = 1460,
        window: int = 65535,
        wscale: int = 7,
        reserved: int = 0,
    ) -> tuple[int, int]:
        """Run a command; status and value. `address`: first byte most significant."""
        if opcode not in (CommandOpcode.LISTEN, CommandOpcode.UNLISTEN, CommandOpcode.LISTEN_UPDATE):
            return Status.BAD_OPCODE, 0
        ipv6 = bool(flags & ListenFlag.IPV6)
        wildcard = bool(flags & ListenFlag.ANY_ADDRESS)
        bad = port == 0 or (wildcard and address != 0)
        bad = bad or (not ipv6 and address >> 32 not in (0, 0xFFFF))
        if opcode != CommandOpcode.UNLISTEN:
            bad = bad or queue >= self.queues or mss < 64 or wscale > 14 or reserved != 0 or flags > 63
        if bad:
            return Status.BAD_ARGUMENT, 0
        where = None if wildcard else address if ipv6 else MAPPED | address & M32
        entry = Entry(
            where,
            port,
            ipv6,
            queue,
            mss,
            window,
            wscale,
            bool(flags & ListenFlag.DEFER_ACCEPT),
            bool(flags & ListenFlag.ECN),
            bool(flags & ListenFlag.PAUSED),
            bool(flags & ListenFlag.SPREAD),
        )
        at = next((i for i, old in enumerate(self.entries) if old and old.key == entry.key), None)
        if opcode == CommandOpcode.LISTEN:
            if at is not None:
                return Status.DUPLICATE, 0
            if None not in self.entries:
                return Status.TABLE_FULL, 0
            at = self.entries.index(None)
        elif at is None:
            return Status.NOT_FOUND, 0
        self.entries[at] = None if opcode == CommandOpcode.UNLISTEN else entry
        return Status.OK, at


@dataclass
class Outcome:
    """What becomes of a packet. `completion` and `queue` mean nothing without `keep`."""

    keep: bool
    counters: list[str]
    queue: int = 0
    completion: dict[str, int] = field(default_factory=dict)
    reply: dict[str, int] | None = None


class RssModel:
    """Receive side scaling, by the definition's own words: a window on the key that moves on by a bit."""

    def __init__(self) -> None:
        self.key = bytes(40)
        self.types = 0
        self.table = [0] * 128

    def hash(self, f: Facts) -> int | None:
        """The packet's hash; None if it is not hashed."""
        if not (f.ipv4 or f.ipv6):
            return None
        width = 128 if f.ipv6 else 32
        by_address, by_port = (4, 8) if f.ipv6 else (1, 2)
        parts = [(f.src, width), (f.dst, width)]
        if f.tcp and self.types & by_port:
            parts += [(f.src_port, 16), (f.dst_port, 16)]
        elif not self.types & by_address:
            return None
        bits = "".join(f"{value & (1 << size) - 1:0{size}b}" for value, size in parts)
        key = "".join(f"{octet:08b}" for octet in self.key)
        result = 0
        for at, bit in enumerate(bits):
            if bit == "1":
                result ^= int(key[at : at + 32], 2)
        return result

    def queue(self, f: Facts, default: int) -> int:
        """Where a packet goes that no listener keeps to its own queue."""
        value = self.hash(f)
        return default if value is None else self.table[value & 127]


class SetupModel:
    """The setup engine's rules."""

    def __init__(self, listeners: ListenModel, ports: int = 1) -> None:
        self.listeners = listeners
        self.mac = [0] * ports
        self.promiscuous = [False] * ports
        self.keep_bad = [False] * ports
        self.default_queue = 0
        self.ts_clock = 0
        self.epoch = 0
        self.key_current = bytes(16)
        self.key_previous = bytes(16)
        self.key_valid = True
        self.rss = RssModel()

    def process(self, f: Facts) -> Outcome:
        """The fate of one packet."""
        group = bool(f.dst_mac >> 40 & 1)
        mine = f.dst_mac == self.mac[f.port]
        if not (group or mine or self.promiscuous[f.port]):
            return Outcome(False, ["rx_drop_filter"])
        broken = (
            "rx_drop_length"
            if f.length_bad
            else "rx_drop_ip_checksum"
            if f.ip_checksum == ChecksumState.BAD
            else "rx_drop_l4_checksum"
            if f.l4_checksum == ChecksumState.BAD
            else None
        )
        if broken and not self.keep_bad[f.port]:
            return Outcome(False, [broken])
        if broken or not f.tcp or not (group or mine):
            return self._to_host(f)
        found = self.listeners.lookup(f.dst, f.dst_port, bool(f.ipv6))
        if found is None:
            return self._to_host(f)
        flags = TCPFlag(f.flags)
        if TCPFlag.SYN in flags and TCPFlag.ACK not in flags:
            return self._syn(f, found[1])
        if not mine:
            return self._to_host(f)
        if TCPFlag.SYN in flags or TCPFlag.RST in flags or TCPFlag.ACK not in flags:
            return self._to_host(f, found)
        terms = self._check(f)
        if terms is None:
            return self._to_host(f, found, counters=["setup_cookie_bad"])
        counters = ["setup_cookie_good"]
        if found[1].defer_accept and f.payload_length == 0 and TCPFlag.FIN not in flags:
            return Outcome(False, [*counters, "setup_deferred"])
        return self._to_host(f, found, terms, counters)

    def _to_host(
        self,
        f: Facts,
        found: tuple[int, Entry] | None = None,
        terms: dict[str, int] | None = None,
        counters: list[str] | None = None,
    ) -> Outcome:
        completion = {
            "length": f.length,
            "l3_offset": f.l3_offset,
            "l4_offset": f.l4_offset,
            "payload_offset": f.payload_offset,
            "port": f.port,
            "verdict": Verdict.PLAIN if terms is None else Verdict.NEW,
            "ip_checksum": f.ip_checksum,
            "l4_checksum": f.l4_checksum,
            "vlan": f.vlan,
            "ipv4": f.ipv4,
            "ipv6": f.ipv6,
            "tcp": f.tcp,
            "fragment": f.fragment,
            "ip_options": f.ip_options,
            "options_bad": f.options.bad,
            "vlan_tci": f.vlan_tci,
            "ts_clock": self.ts_clock,
            "listener": int(found is not None),
            "listener_index": found[0] if found else 0,
            "rss_hash": self.rss.hash(f) or 0,
        }
        if terms is not None:
            completion["mss"] = MSS_CLASSES[terms["mss_class"]]
            completion.update({name: int(terms[name]) for name in ("wscale", "sack", "timestamps", "ecn")})
        fixed = found[1].queue if found else self.default_queue
        queue = fixed if found and not found[1].spread else self.rss.queue(f, fixed)
        return Outcome(True, counters or [], queue, completion)

    def _unreachable(self, f: Facts) -> bool:
        """RFC 9293 section 3.9.2.3 and what else would make us answer to the wrong place."""
        if f.dst_mac >> 40 & 1 or f.src_mac >> 40 & 1 or f.src_port == 0:
            return True
        if (f.src, f.src_port) == (f.dst, f.dst_port):
            return True
        for address in (f.src, f.dst):
            if f.ipv4:
                quad = address & M32
                if quad in (0, M32) or 224 <= quad >> 24 <= 239:
                    return True
            elif address == 0 or address >> 120 == 0xFF or address >> 32 == 0xFFFF:
                return True
        return False

    def _syn(self, f: Facts, listener: Entry) -> Outcome:
        def drop(reason: str) -> Outcome:
            return Outcome(False, ["setup_syn", reason])

        flags, options = TCPFlag(f.flags), f.options
        if flags & (TCPFlag.FIN | TCPFlag.RST):
            return drop("setup_drop_flags")
        if self._unreachable(f):
            return drop("setup_drop_address")
        mss = options.mss if options.mss_present else 1220 if f.ipv6 else 536
        if options.bad or mss < 64:
            return drop("setup_drop_options")
        if listener.paused:
            return drop("setup_drop_paused")
        if not self.key_valid:
            return drop("setup_drop_no_secret")
        ecn = listener.ecn and bool(options.timestamps) and flags & 0xC0 == TCPFlag.ECE | TCPFlag.CWR
        seq = self._cookie(
            f,
            f.seq,
            self.epoch,
            timestamps=options.timestamps,
            mss_class=max(number for number, size in enumerate(MSS_CLASSES) if size <= mss),
            wscale=options.wscale,
            sack=options.sack,
            ecn=int(ecn),
        )
        low = TIMESTAMP_OPTIONS.to_int(ecn=ecn, sack=options.sack, wscale=options.wscale)
        tsval = self.ts_clock & ~63 | low
        if tsval > self.ts_clock:
            tsval = (tsval - 64) & M32
        reply = {
            "kind": 0,  # SYN-ACK
            "port": f.port,
            "dst_mac": f.src_mac,
            "src_mac": f.dst_mac,
            "vlan": f.vlan,
            "vlan_tci": f.vlan_tci,
            "ipv6": f.ipv6,
            "src": f.dst,
            "dst": f.src,
            "src_port": f.dst_port,
            "dst_port": f.src_port,
            "seq": seq,
            "ack": (f.seq + 1) & M32,
            "ecn": int(ecn),
            "window": listener.window,
            "mss": listener.mss,
            "wscale": listener.wscale,
            "wscale_present": int(options.wscale != 15),
            "sack": options.sack,
            "timestamps": options.timestamps,
            "tsval": tsval,
            "tsecr": options.tsval,
        }
        return Outcome(False, ["setup_syn", "setup_syn_ack"], reply=reply)

    def _cookie(self, f: Facts, iss: int, epoch: int, **terms: int) -> int:
        key = self.key_current if epoch == self.epoch else self.key_previous
        return cookie(
            key,
            src=f.src,
            dst=f.dst,
            src_port=f.src_port,
            dst_port=f.dst_port,
            client_iss=iss & M32,
            epoch=epoch & M32,
            **terms,  # type: ignore[arg-type]
        )

    def _check(self, f: Facts) -> dict[str, int] | None:
        """The terms of a valid cookie."""
        if not self.key_valid or f.options.bad:
            return None
        if f.ipv6 and 0xFFFF in (f.src >> 32, f.dst >> 32):
            return None
        claimed = (f.ack - 1) & M32
        if f.options.timestamps:
            terms = TIMESTAMP_OPTIONS.from_int(f.options.tsecr)
            del terms["clock"]
            terms |= {"timestamps": 1, "mss_class": COOKIE_TIMESTAMPS.from_int(claimed)["mss_class"]}
        else:
            terms = COOKIE_PLAIN.from_int(claimed)
            del terms["mac"], terms["epoch"]
            terms |= {"timestamps": 0, "ecn": 0}
        for epoch in (self.epoch, (self.epoch - 1) & M32):
            if self._cookie(f, f.seq - 1, epoch, **terms) == claimed:
                return terms
        return None


def syn_ack_frame(reply: dict[str, int]) -> bytes:
    """The frame of a reply (fields as `hw.packet.meta.Reply`), as scapy builds it."""

    def mac(number: int) -> str:
        return number.to_bytes(6, "big").hex(":")

    options: list[tuple[str, Any]] = [("MSS", reply["mss"])]
    stamps = ("Timestamp", (reply["tsval"], reply["tsecr"]))
    if reply["timestamps"]:
        options += [("SAckOK", b""), stamps] if reply["sack"] else [("NOP", None), ("NOP", None), stamps]
    elif reply["sack"]:
        options += [("NOP", None), ("NOP", None), ("SAckOK", b"")]
    if reply["wscale_present"]:
        options += [("NOP", None), ("WScale", reply["wscale"])]
    packet = Ether(dst=mac(reply["dst_mac"]), src=mac(reply["src_mac"]))
    if reply["vlan"]:
        tci = reply["vlan_tci"]
        packet /= Dot1Q(prio=tci >> 13, dei=tci >> 12 & 1, vlan=tci & 0xFFF)
    if reply["ipv6"]:
        src, dst = (
            ":".join(f"{reply[name] >> at & 0xFFFF:x}" for at in range(112, -1, -16)) for name in ("src", "dst")
        )
        packet /= IPv6(src=src, dst=dst, hlim=64)
    else:
        src, dst = (".".join(str(reply[name] >> at & 255) for at in (24, 16, 8, 0)) for name in ("src", "dst"))
        packet /= IP(src=src, dst=dst, flags="DF", id=0, ttl=64)
    packet /= TCP(
        sport=reply["src_port"],
        dport=reply["dst_port"],
        seq=reply["seq"],
        ack=reply["ack"],
        flags="SAE" if reply["ecn"] else "SA",
        window=reply["window"],
        options=options,
    )
    return bytes(packet)
