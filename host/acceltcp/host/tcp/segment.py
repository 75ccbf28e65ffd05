"""A TCP segment as it comes off the wire, and the headers that go back to its sender."""

from __future__ import annotations

import struct
from typing import Protocol

from acceltcp.abi.messages import TxFlag
from acceltcp.abi.wire import IPV4, IPV6, TCP, IPProtocol, TCPFlag, TCPOption

__all__ = ["Closed", "Peer", "Segment", "supersedes"]

MASK = 0xFFFFFFFF
HALF = 0x80000000

FIN, SYN, RST, PSH, ACK, ECE, CWR = (
    int(flag)
    for flag in (
        TCPFlag.FIN, TCPFlag.SYN, TCPFlag.RST, TCPFlag.PSH, TCPFlag.ACK, TCPFlag.ECE, TCPFlag.CWR,
    )
)  # fmt: skip

_ECT0, _CE = 2, 3
TS_PREFIX = bytes([TCPOption.NOP, TCPOption.NOP, TCPOption.TIMESTAMPS, TCPOption.TIMESTAMPS.length])
TS_OPTION = struct.Struct("!4sII")

# Sequence number to window in one go; the ports before and checksum and urgent after are in the
# template (the NIC computes the checksum).
_TCP_MIDDLE = struct.Struct("!IIHH")
_MIDDLE_AT = TCP.byte_offset("seq")
_U16 = struct.Struct("!H")
assert _MIDDLE_AT + _TCP_MIDDLE.size == TCP.byte_offset("checksum")


class Segment:
    """A TCP segment, parsed. `payload` is a view that dies with the packet's buffer."""

    __slots__ = ("ack", "ce", "flags", "payload", "seq", "ts", "tsecr", "tsval", "window")

    def __init__(self, view: memoryview, l3: int, l4: int, ipv6: bool) -> None:
        self.seq, self.ack, bits, self.window = _TCP_MIDDLE.unpack_from(view, l4 + _MIDDLE_AT)
        self.flags = bits & 0xFF
        data = l4 + (bits >> 12) * 4
        if ipv6:
            end = l3 + IPV6.size + (view[l3 + 4] << 8 | view[l3 + 5])
            self.ce = view[l3 + 1] >> 4 & 3 == _CE
        else:
            end = l3 + (view[l3 + 2] << 8 | view[l3 + 3])
            self.ce = view[l3 + 1] & 3 == _CE
        self.payload = view[data:end]
        self.ts = False
        self.tsval = self.tsecr = 0
        at = l4 + TCP.size
        if data - at >= 12 and view[at : at + 4] == TS_PREFIX:
            self.ts = True
            _, self.tsval, self.tsecr = TS_OPTION.unpack_from(view, at)
        elif data > at:
            self._options(view, at, data)

    def _options(self, view: memoryview, at: int, end: int) -> None:
        while at < end:
            kind = view[at]
            if kind == TCPOption.EOL:
                return
            if kind == TCPOption.NOP:
                at += 1
                continue
            length = view[at + 1] if at + 1 < end else 0
            if length < 2 or at + length > end:
                return
            if kind == TCPOption.TIMESTAMPS and length == 10:
                self.ts = True
                self.tsval, self.tsecr = struct.unpack_from("!II", view, at + 2)
            at += length


class Peer:
    """Where replies go: everything in front of the sequence number, turned round."""

    __slots__ = ("head", "ipv6", "l3", "l4", "port", "tx_flags")

    def __init__(self, view: memoryview, l3: int, l4: int, ipv6: bool, port: int) -> None:
        self.l3, self.l4, self.ipv6, self.port = l3, l4, ipv6, port
        # Destination, source, EtherType; a VLAN tag in between stays as it is.
        link = bytes(view[6:12]) + bytes(view[0:6]) + bytes(view[12:l3])
        if ipv6:
            ip = IPV6.pack(
                version=6, next_header=IPProtocol.TCP, hop_limit=64,
                src=int.from_bytes(view[l3 + 24 : l3 + 40], "big"), dst=int.from_bytes(view[l3 + 8 : l3 + 24], "big"),
            )  # fmt: skip
        else:
            ip = IPV4.pack(
                version=4, ihl=5, dont_fragment=1, ttl=64, protocol=IPProtocol.TCP,
                src=int.from_bytes(view[l3 + 16 : l3 + 20], "big"), dst=int.from_bytes(view[l3 + 12 : l3 + 16], "big"),
            )  # fmt: skip
        ports = bytes(view[l4 + 2 : l4 + 4]) + bytes(view[l4 : l4 + 2])
        self.head = link + ip + ports + bytes(TCP.size - len(ports))
        self.tx_flags = int(
            TxFlag.L4_CHECKSUM | TxFlag.IPV6 if ipv6 else TxFlag.L4_CHECKSUM | TxFlag.IPV4_CHECKSUM
        )

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
        """Write headers to `slot`; where the payload of that many bytes goes."""
        l3, l4 = self.l3, self.l4
        data = l4 + TCP.size + len(options)
        slot[: l4 + TCP.size] = self.head
        if self.ipv6:
            _U16.pack_into(slot, l3 + 4, data + payload - l4)
            if ect:
                slot[l3 + 1] = _ECT0 << 4
        else:
            _U16.pack_into(slot, l3 + 2, data + payload - l3)
            if ect:
                slot[l3 + 1] = _ECT0
        header = (TCP.size + len(options)) // 4
        _TCP_MIDDLE.pack_into(slot, l4 + _MIDDLE_AT, seq & MASK, ack & MASK, header << 12 | flags, window)
        if options:
            slot[l4 + TCP.size : data] = options
        return data


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
