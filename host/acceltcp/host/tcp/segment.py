"""A TCP segment as it comes off the wire, and the headers that go back to its sender."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import NamedTuple, Protocol

from acceltcp.abi.messages import TxFlag
from acceltcp.abi.wire import (
    ETHERNET,
    IPV4,
    IPV6,
    TCP,
    TCP_OPTION_BYTES_MAX,
    VLAN,
    WSCALE_MAX,
    EtherType,
    IPProtocol,
    TCPFlag,
    TCPOption,
)

__all__ = ["Closed", "Ends", "Peer", "Segment", "SynOptions", "ends_of", "supersedes"]

MASK = 0xFFFFFFFF
MALFORMED = 1 << 8
"""Flags of a segment whose header cannot be: none of the eight that there are."""
HALF = 0x80000000

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (
    int(flag)
    for flag in (
        TCPFlag.FIN, TCPFlag.SYN, TCPFlag.RST, TCPFlag.PSH, TCPFlag.ACK, TCPFlag.URG, TCPFlag.ECE, TCPFlag.CWR,
    )
)  # fmt: skip

# Members of an enumeration are looked up and compared more slowly than numbers.
_EOL, _NOP, _MSS, _WSCALE, _SACK_PERMITTED, _SACK, _TIMESTAMPS = (
    int(kind)
    for kind in (
        TCPOption.EOL, TCPOption.NOP, TCPOption.MSS, TCPOption.WSCALE, TCPOption.SACK_PERMITTED, TCPOption.SACK,
        TCPOption.TIMESTAMPS,
    )
)  # fmt: skip
_LENGTHS = {int(kind): kind.length for kind in TCPOption if kind.length > 1}
"""Options that have one length only."""
_TIMESTAMPS_LENGTH = TCPOption.TIMESTAMPS.length
_SACK_LENGTHS = (10, 18, 26, 34)
"""One to four blocks."""
_SACK_PREFIX = bytes((_NOP, _NOP, _SACK))

_ECN = 3
_ECT0, _CE = 2, 3
_ECN_IPV6, _CE_IPV6 = _ECN << 4, _CE << 4
"""In the first half-word of the header."""
TS_PREFIX = bytes([TCPOption.NOP, TCPOption.NOP, TCPOption.TIMESTAMPS, TCPOption.TIMESTAMPS.length])
TS_OPTION = struct.Struct("!4sII")
_TS_PREFIX = int.from_bytes(TS_PREFIX, "big")

# From sequence number to window, and the urgent pointer after the checksum.
_TCP_MIDDLE = struct.Struct("!IIHH2xH")
_MIDDLE_AT = TCP.byte_offset("seq")
assert _MIDDLE_AT + _TCP_MIDDLE.size == TCP.size
_PAIR = struct.Struct("!II")
_U16 = struct.Struct("!H")
_PORTS = struct.Struct("!HH")

# All of a frame's headers in one go, where there are no IP options or extension headers: source MAC; type of service
# (IPv4) or first half-word (IPv6); IP's length; addresses and ports; TCP from sequence to urgent pointer. With a VLAN tag or
# without; and for what comes most, without one and with a timestamp as the only TCP option, three words of options.
_IPV4_TCP, _IPV6_TCP = "xBH8x12sIIHH2xH", "H2xH2x36sIIHH2xH"
_PLAIN_IPV4, _PLAIN_IPV6 = struct.Struct("!6x6s2x" + _IPV4_TCP), struct.Struct("!6x6s2x" + _IPV6_TCP)
_TAGGED_IPV4, _TAGGED_IPV6 = struct.Struct("!6x6s6x" + _IPV4_TCP), struct.Struct("!6x6s6x" + _IPV6_TCP)
_TIMED_IPV4, _TIMED_IPV6 = struct.Struct(_PLAIN_IPV4.format + "III"), struct.Struct(_PLAIN_IPV6.format + "III")
_L4_IPV4, _L4_IPV6 = ETHERNET.size + IPV4.size, ETHERNET.size + IPV6.size
_L4_TAGGED_IPV4, _L4_TAGGED_IPV6 = _L4_IPV4 + VLAN.size, _L4_IPV6 + VLAN.size
_OFFSET_IPV4, _OFFSET_IPV6 = (l4 + TCP.byte_offset("data_offset") for l4 in (_L4_IPV4, _L4_IPV6))
_OFFSET_TS = (TCP.size + TS_OPTION.size) // 4 << 4
_DATA_IPV4, _DATA_IPV6 = _L4_IPV4 + TCP.size + TS_OPTION.size, _L4_IPV6 + TCP.size + TS_OPTION.size
assert (_TIMED_IPV4.size, _TIMED_IPV6.size) == (_DATA_IPV4, _DATA_IPV6)
assert (_TAGGED_IPV4.size, _TAGGED_IPV6.size) == (_L4_TAGGED_IPV4 + TCP.size, _L4_TAGGED_IPV6 + TCP.size)

_NO_DATA = memoryview(b"")
_TCP_SIZE = TCP.size
_WORDS_AT = 12
"""Where the header's length in words stands in the half-word of offset and flags."""
_LENGTH_AT_IPV4, _LENGTH_AT_IPV6 = IPV4.byte_offset("total_length"), IPV6.byte_offset("payload_length")


class Segment:
    """A TCP segment, parsed. The NIC has checked the IP header and that the TCP header is inside the packet.

    seq, ack, flags, window, urgent: fields of the header. ts: it has timestamps, `tsval` and `tsecr` (else 0). sack:
    (left, right) edges of SACK blocks. ce: congestion was experienced (RFC 3168). payload: a view that dies with
    the packet's buffer. key: source and destination address, source and destination port, as they lie there; mac: the
    sender's. A list of options is believed as far as it is well formed; the rest is ignored. A header that
    is shorter than a header or longer than the packet leaves no
    payload and MALFORMED as flags.
    """

    __slots__ = (
        "_options", "ack", "ce", "flags", "key", "mac", "payload", "sack", "seq", "ts", "tsecr", "tsval", "urgent",
        "window",
    )  # fmt: skip

    def __init__(self, view: memoryview, l3: int, l4: int, ipv6: bool) -> None:
        self.parse(view, l3, l4, ipv6)

    def parse(self, view: memoryview, l3: int, l4: int, ipv6: bool) -> None:
        """Become the segment of another frame. view: the frame. l3, l4: where its IP and TCP headers begin."""
        self.sack: tuple[tuple[int, int], ...] = ()
        if ipv6:
            if l4 == _L4_IPV6:
                if view[_OFFSET_IPV6] == _OFFSET_TS:
                    (
                        self.mac, word, length, self.key, self.seq, self.ack, bits, self.window, self.urgent,
                        prefix, self.tsval, self.tsecr,
                    ) = _TIMED_IPV6.unpack_from(view)  # fmt: skip
                    if prefix == _TS_PREFIX and not bits & SYN:
                        self.flags = bits & 0xFF
                        self.ce = word & _ECN_IPV6 == _CE_IPV6
                        self.ts = True
                        end = length + _L4_IPV6
                        self.payload = view[_DATA_IPV6:end] if end > _DATA_IPV6 else _NO_DATA
                        return
                else:
                    self.mac, word, length, self.key, self.seq, self.ack, bits, self.window, self.urgent = (
                        _PLAIN_IPV6.unpack_from(view)
                    )
                end = length + _L4_IPV6
            elif l4 == _L4_TAGGED_IPV6:
                self.mac, word, length, self.key, self.seq, self.ack, bits, self.window, self.urgent = (
                    _TAGGED_IPV6.unpack_from(view)
                )
                end = length + _L4_TAGGED_IPV6
            else:
                word, length = _U16.unpack_from(view, l3)[0], _U16.unpack_from(view, l3 + _LENGTH_AT_IPV6)[0]
                self.mac = bytes(view[6:12])
                self.key = bytes(view[l3 + 8 : l3 + IPV6.size]) + bytes(view[l4 : l4 + _MIDDLE_AT])
                self.seq, self.ack, bits, self.window, self.urgent = _TCP_MIDDLE.unpack_from(view, l4 + _MIDDLE_AT)
                end = l3 + IPV6.size + length
            self.ce = word & _ECN_IPV6 == _CE_IPV6
        else:
            if l4 == _L4_IPV4:
                if view[_OFFSET_IPV4] == _OFFSET_TS:
                    (
                        self.mac, tos, length, self.key, self.seq, self.ack, bits, self.window, self.urgent,
                        prefix, self.tsval, self.tsecr,
                    ) = _TIMED_IPV4.unpack_from(view)  # fmt: skip
                    if prefix == _TS_PREFIX and not bits & SYN:
                        self.flags = bits & 0xFF
                        self.ce = tos & _ECN == _CE
                        self.ts = True
                        end = length + ETHERNET.size
                        self.payload = view[_DATA_IPV4:end] if end > _DATA_IPV4 else _NO_DATA
                        return
                else:
                    self.mac, tos, length, self.key, self.seq, self.ack, bits, self.window, self.urgent = (
                        _PLAIN_IPV4.unpack_from(view)
                    )
            elif l4 == _L4_TAGGED_IPV4 and l3 == l4 - IPV4.size:
                self.mac, tos, length, self.key, self.seq, self.ack, bits, self.window, self.urgent = (
                    _TAGGED_IPV4.unpack_from(view)
                )
            else:
                tos, length = view[l3 + 1], _U16.unpack_from(view, l3 + _LENGTH_AT_IPV4)[0]
                self.mac = bytes(view[6:12])
                self.key = bytes(view[l3 + 12 : l3 + IPV4.size]) + bytes(view[l4 : l4 + _MIDDLE_AT])
                self.seq, self.ack, bits, self.window, self.urgent = _TCP_MIDDLE.unpack_from(view, l4 + _MIDDLE_AT)
            end = l3 + length
            self.ce = tos & _ECN == _CE
        self.flags = bits & 0xFF
        data = l4 + (bits >> _WORDS_AT) * 4
        self.payload = view[data:end] if end > data else _NO_DATA
        if data < l4 + _TCP_SIZE or data > end:
            self.flags, self.payload = MALFORMED, _NO_DATA
            data = l4 + _TCP_SIZE
        self.ts = False
        self.tsval = self.tsecr = 0
        if data > l4 + _TCP_SIZE:
            self._walk(bytes(view[l4 + _TCP_SIZE : data]))
        elif bits & SYN:
            self._options = b""

    def _walk(self, options: bytes) -> None:
        """Timestamps and SACK blocks, wherever they stand; of duplicates the last."""
        at, end = 0, len(options)
        syn = self.flags & SYN
        if syn:
            self._options = options
        elif end > TS_OPTION.size and options.startswith(TS_PREFIX):
            # What most stacks send with SACK blocks.
            self.ts = True
            self.tsval, self.tsecr = _PAIR.unpack_from(options, len(TS_PREFIX))
            at = TS_OPTION.size
            if options.startswith(_SACK_PREFIX, at):
                at += 2
        while at < end:
            kind = options[at]
            if kind == _NOP:
                at += 1
                continue
            if kind == _EOL:
                return
            length = options[at + 1] if at + 1 < end else 0
            if length < 2 or at + length > end:
                return
            if kind == _TIMESTAMPS:
                if length != _TIMESTAMPS_LENGTH:
                    return
                self.ts = True
                self.tsval, self.tsecr = _PAIR.unpack_from(options, at + 2)
            elif kind == _SACK:
                if length not in _SACK_LENGTHS:
                    return
                if not syn:
                    self.sack = tuple(_PAIR.iter_unpack(options[at + 2 : at + length]))
            elif _LENGTHS.get(kind, length) != length:
                return
            at += length

    def syn_options(self) -> SynOptions | None:
        """What a segment with SYN offers; None when its options are malformed. Raises `ValueError` without SYN."""
        if not self.flags & SYN:
            raise ValueError("only a segment with SYN has options of a SYN")
        return SynOptions.parse(self._options, 0, len(self._options))


class SynOptions:
    """What one side offers in its SYN or SYN-ACK (RFC 9293 section 3.2, RFC 7323, RFC 2018).

    mss: largest segment it takes, in bytes without options (RFC 6691); None: not said. wscale: its window's
    shift, 0 to 14; None: it does not scale. sack: it understands SACK. tsval: its timestamp; None: it has none.
    tsecr: the timestamp that it echoes.
    """

    __slots__ = ("mss", "sack", "tsecr", "tsval", "wscale")

    def __init__(
        self,
        mss: int | None = None,
        wscale: int | None = None,
        sack: bool = False,
        tsval: int | None = None,
        tsecr: int = 0,
    ) -> None:
        self.mss, self.wscale, self.sack, self.tsval, self.tsecr = mss, wscale, sack, tsval, tsecr

    @staticmethod
    def parse(view: memoryview | bytes, at: int, end: int) -> SynOptions | None:
        """Read the options at `view[at:end]`, in any order and padding; None: malformed, the SYN is to be dropped.

        The rules are the gateware's: end-of-list ends the list; unknown kinds are skipped; malformed is a length of 0
        or 1, an option beyond the end, or a known kind of a wrong length. Of duplicates the last counts. A shift
        above 14 counts as 14 (RFC 7323 section 2.3). An MSS of 0 says nothing.
        """
        options = SynOptions()
        while at < end:
            kind = view[at]
            if kind == _NOP:
                at += 1
                continue
            if kind == _EOL:
                break
            length = view[at + 1] if at + 1 < end else 0
            if length < 2 or at + length > end or _LENGTHS.get(kind, length) != length:
                return None
            if kind == _MSS:
                options.mss = (view[at + 2] << 8 | view[at + 3]) or None
            elif kind == _WSCALE:
                options.wscale = min(view[at + 2], WSCALE_MAX)
            elif kind == _SACK_PERMITTED:
                options.sack = True
            elif kind == _TIMESTAMPS:
                options.tsval, options.tsecr = _PAIR.unpack_from(view, at + 2)
            elif kind == _SACK and length not in _SACK_LENGTHS:
                return None
            at += length
        return options

    def build(self) -> bytes:
        """The options as bytes, a multiple of 4: at most 20. Words are aligned as RFC 7323 appendix A has it, and
        SACK-permitted takes the place of padding. Raises `ValueError` for an MSS or a shift that cannot be."""
        mss, wscale, tsval = self.mss, self.wscale, self.tsval
        parts = b""
        if mss is not None:
            if not 1 <= mss <= 0xFFFF:
                raise ValueError(f"the MSS must be from 1 to 65535, not {mss}")
            parts = bytes((_MSS, 4, mss >> 8, mss & 0xFF))
        if tsval is not None:
            # Two bytes fill the word before the timestamps: either SACK-permitted or padding.
            parts += bytes((_SACK_PERMITTED, 2)) + TS_PREFIX[2:] if self.sack else TS_PREFIX
            parts += _PAIR.pack(tsval & MASK, self.tsecr & MASK)
        elif self.sack:
            parts += bytes((_NOP, _NOP, _SACK_PERMITTED, 2))
        if wscale is not None:
            if not 0 <= wscale <= WSCALE_MAX:
                raise ValueError(f"the window's shift must be from 0 to {WSCALE_MAX}, not {wscale}")
            parts += bytes((_NOP, _WSCALE, 3, wscale))
        return parts


_IPV4_SIZE, _IPV6_SIZE = IPV4.size, IPV6.size
_SIZES = {False: IPV4.size, True: IPV6.size}
_ADDRESSES_AT = {False: IPV4.byte_offset("src"), True: IPV6.byte_offset("src")}
_TX_FLAGS = {
    False: int(TxFlag.L4_CHECKSUM | TxFlag.IPV4_CHECKSUM),
    True: int(TxFlag.L4_CHECKSUM | TxFlag.IPV6),
}
_TTL = 64


def _frames(l3: int, ipv6: bool) -> list[struct.Struct]:
    """Formats of all headers of a frame, by words of options: what is before IP's length, the length, what is between it
    and the ports' end, then TCP (checksum and urgent pointer are 0: the NIC computes the checksum)."""
    before = l3 + (_LENGTH_AT_IPV6 if ipv6 else _LENGTH_AT_IPV4)
    between = l3 + _SIZES[ipv6] + _MIDDLE_AT - before - _U16.size
    return [struct.Struct(f"!{before}sH{between}sIIHH4x{size}s") for size in range(0, TCP_OPTION_BYTES_MAX + 1, 4)]


@functools.cache
def _packers(l3: int, ipv6: bool) -> list[Callable[..., None]]:
    return [frame.pack_into for frame in _frames(l3, ipv6)]


_unpack_ports = struct.Struct("!2s2s").unpack_from


@functools.cache
def _ends(l3: int, ipv6: bool) -> Callable[..., tuple[bytes, ...]]:
    """Reader of a frame: destination and source MAC address, rest of the link header, source and destination address."""
    size = 16 if ipv6 else 4
    return struct.Struct(f"!6s6s{l3 - 12}s{_ADDRESSES_AT[ipv6]}x{size}s{size}s").unpack_from


@functools.cache
def _ip_start(ipv6: bool, tos: int) -> bytes:
    """IP header up to its length."""
    if ipv6:
        return IPV6.pack(version=6, traffic_class=tos)[:_LENGTH_AT_IPV6]
    return IPV4.pack(version=4, ihl=IPV4.size // 4, tos=tos)[:_LENGTH_AT_IPV4]


@functools.cache
def _ip_middle(ipv6: bool, ttl: int) -> bytes:
    """IP header from behind its length to the addresses."""
    if ipv6:
        header = IPV6.pack(next_header=IPProtocol.TCP, hop_limit=ttl)
    else:
        header = IPV4.pack(dont_fragment=1, ttl=ttl, protocol=IPProtocol.TCP)
    return header[(_LENGTH_AT_IPV6 if ipv6 else _LENGTH_AT_IPV4) + _U16.size : _ADDRESSES_AT[ipv6]]


class Peer:
    """Where segments to the other side go: everything in front of the sequence number.

    Made from a frame of the peer, turned round, or by `Peer.route`. l3, l4: where the IP and TCP headers of what is built
    begin. port: of the NIC. mac: the address that frames go to. tx_flags: what the NIC does with them.
    """

    __slots__ = ("_back", "_base", "_front", "_front_ect", "_packers", "_tos", "_ttl", "ipv6", "l3", "l4", "mac", "port",
                 "tx_flags")  # fmt: skip

    def __init__(self, view: memoryview, l3: int, l4: int, ipv6: bool, port: int) -> None:
        # A VLAN tag stays as it is; IP options and extension headers are not answered with any.
        our_mac, mac, kind, theirs, ours = _ends(l3, ipv6)(view)
        their_port, our_port = _unpack_ports(view, l4)
        link = mac + our_mac + kind
        self.ipv6, self.port, self.mac = ipv6, port, mac
        self.l3 = l3
        self.l4 = l4 = l3 + (_IPV6_SIZE if ipv6 else _IPV4_SIZE)
        self.tx_flags = _TX_FLAGS[ipv6]
        self._base = l4 if ipv6 else l3
        self._packers = _packers(l3, ipv6)
        self._tos, self._ttl = 0, _TTL
        self._front = link + _ip_start(ipv6, 0)
        self._front_ect = link + _ip_start(ipv6, _ECT0)
        self._back = _ip_middle(ipv6, _TTL) + ours + theirs + our_port + their_port

    @classmethod
    def route(
        cls, link: bytes, src: bytes, dst: bytes, sport: int, dport: int, port: int, *, tos: int = 0, ttl: int = _TTL
    ) -> Peer:
        """A peer that has sent nothing yet.

        link: destination and source MAC address, VLAN tag or none, EtherType. src, dst: our and its address, packed;
        sport, dport: our and its TCP port. port: of the NIC. tos: DSCP in the upper six bits. ttl: hop limit.
        Raises `ValueError` when one is out of range or does not fit the others.
        """
        ipv6 = len(src) == 16
        if len(src) != len(dst) or len(src) not in (4, 16):
            raise ValueError(f"addresses must both have 4 or both 16 bytes, not {len(src)} and {len(dst)}")
        if len(link) not in (ETHERNET.size, ETHERNET.size + VLAN.size):
            raise ValueError(f"a link header has {ETHERNET.size} or {ETHERNET.size + VLAN.size} bytes, not {len(link)}")
        if link[-2:] != _U16.pack(EtherType.IPV6 if ipv6 else EtherType.IPV4):
            raise ValueError(f"EtherType {link[-2:].hex()} is not that of IPv{6 if ipv6 else 4}")
        for name, value in (("source", sport), ("destination", dport)):
            if not 1 <= value <= 0xFFFF:
                raise ValueError(f"the {name} port must be from 1 to 65535, not {value}")
        peer = cls.__new__(cls)
        peer._set(link, src + dst + _U16.pack(sport) + _U16.pack(dport), ipv6, port, tos, ttl)
        return peer

    def _set(self, link: bytes, ends: bytes, ipv6: bool, port: int, tos: int, ttl: int) -> None:
        """ends: addresses and ports, ours first."""
        self.ipv6, self.port, self.mac = ipv6, port, link[:6]
        self.l3 = l3 = len(link)
        self.l4 = l3 + _SIZES[ipv6]
        self.tx_flags = _TX_FLAGS[ipv6]
        self._base = self.l4 if ipv6 else l3
        self._packers = _packers(l3, ipv6)
        self._mark(link, ends, tos, ttl)

    def _mark(self, link: bytes, ends: bytes, tos: int, ttl: int) -> None:
        ipv6 = self.ipv6
        if not 0 <= tos <= 0xFF:
            raise ValueError(f"the type of service must be from 0 to 255, not {tos}")
        if not 1 <= ttl <= 0xFF:
            raise ValueError(f"the hop limit must be from 1 to 255, not {ttl}")
        tos &= ~_ECN
        self._tos, self._ttl = tos, ttl
        self._front = link + _ip_start(ipv6, tos)
        self._front_ect = link + _ip_start(ipv6, tos | _ECT0)
        self._back = _ip_middle(ipv6, ttl) + ends

    @property
    def tos(self) -> int:
        """DSCP, in the upper six bits; the lower two are ECN's, see `build`. Setting it raises `ValueError` when it is
        not a byte."""
        return self._tos

    @tos.setter
    def tos(self, tos: int) -> None:
        self._mark(self._front[: self.l3], self._ends, tos, self._ttl)

    @property
    def ttl(self) -> int:
        """Hop limit. Setting it raises `ValueError` when it is not from 1 to 255."""
        return self._ttl

    @ttl.setter
    def ttl(self, ttl: int) -> None:
        self._mark(self._front[: self.l3], self._ends, self._tos, ttl)

    @property
    def link(self) -> bytes:
        """Link header of what is built. Another one must be as long."""
        return self._front[: self.l3]

    @link.setter
    def link(self, link: bytes) -> None:
        if len(link) != self.l3:
            raise ValueError(f"the link header must keep its {self.l3} bytes, not have {len(link)}")
        self.mac = link[:6]
        self._mark(link, self._ends, self._tos, self._ttl)

    @property
    def _ends(self) -> bytes:
        return self._back[-(2 * (16 if self.ipv6 else 4) + _MIDDLE_AT) :]

    def build(
        self,
        slot: memoryview | bytearray,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        options: bytes,
        ect: bool,
        payload: int,
    ) -> int:
        """Write headers to `slot`; where the payload of that many bytes goes. options: a multiple of 4 bytes. ect: tell the
        network that the transport understands ECN (RFC 3168)."""
        size = len(options)
        data = self.l4 + _TCP_SIZE + size
        self._packers[size >> 2](
            slot, 0, self._front_ect if ect else self._front, data + payload - self._base, self._back,
            seq & MASK, ack & MASK, (_TCP_SIZE + size) << _WORDS_AT - 2 | flags, window, options,
        )  # fmt: skip
        return data


class Ends(NamedTuple):
    """What a connection's key says: addresses packed, ports."""

    remote: bytes
    local: bytes
    remote_port: int
    local_port: int


def ends_of(key: bytes) -> Ends:
    """Both ends of a connection, from its key (`Segment.key`: the peer's address, ours, the peer's port, ours)."""
    size = (len(key) - 2 * _U16.size) // 2
    return Ends(key[:size], key[size : 2 * size], *_PORTS.unpack_from(key, 2 * size))


class Closed(Protocol):
    """What must be known of a connection to tell late segments of it from a new handshake."""

    irs: int
    peer: Peer
    reset_strays: bool

    @property
    def timestamps(self) -> bool: ...
    @property
    def ts_recent(self) -> int: ...
    @property
    def rcv_nxt(self) -> int: ...


def supersedes(segment: Segment, old: Closed) -> bool:
    """Whether a verified handshake is newer than a connection of the same tuple (RFC 6191):
    by its timestamp, or by its sequence number."""
    if segment.ts and old.timestamps and segment.tsval != old.ts_recent:
        return (segment.tsval - old.ts_recent) & MASK < HALF
    return 0 < (segment.seq - old.rcv_nxt) & MASK < HALF
