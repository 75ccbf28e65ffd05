"""The core on a bench with many pairs of connections that it splices."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from acceltcp.abi.messages import (
    COMMAND,
    FRAME_TABLE_ALIGN,
    SPLICE_COMMAND,
    SPLICE_SIDE,
    TX_DESCRIPTOR,
    CommandOpcode,
    EventType,
    SpliceSideFlag,
    Status,
    TxOpcode,
)
from acceltcp.abi.registers import QUEUE
from acceltcp.abi.wire import ETHERNET, IPV4, TCP, EtherType, IPProtocol, TCPFlag
from sim.device import LogKind, Shell

from .rig import ADDRESS, CLIENT_MAC, MAC, PORT_NUMBER, Rig
from .setup import client

__all__ = ["Pair", "SpliceRig"]

SERVER, SERVER_PORT = "203.0.113.9", 9000
_FIRST_PORT = 20_000
"""Our port of the first pair's connection to the server."""
_TIMESTAMPS = bytes((1, 1, 8, 10))
"""NOP, NOP, and the head of the timestamps option (RFC 7323, appendix A)."""
_CLOCKS = 100_000, 300_000
"""TSval of each side."""
_TS_OFFSETS = 7, 9


def _number(address: str) -> int:
    return int.from_bytes(bytes(map(int, address.split("."))), "big")


def _mapped(address: int) -> int:
    """A 128-bit field of the messages."""
    return int.from_bytes(address.to_bytes(16, "big"), "little")


@dataclass(frozen=True)
class Pair:
    """Both connections of splice number `index`: client to us, us to the server.

    The client has sent up to `rcv[0]` and the server to `rcv[1]`; we to them up to `snd`.
    """

    index: int

    @property
    def peers(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Address and port of client and server."""
        return client(self.index), (_number(SERVER), SERVER_PORT)

    @property
    def ports(self) -> tuple[int, int]:
        """Ours, towards each."""
        return PORT_NUMBER, _FIRST_PORT + self.index

    @property
    def rcv(self) -> tuple[int, int]:
        """RCV.NXT of each side."""
        return 0x10000 * self.index + 1000 & 0xFFFF_FFFF, 0x20000 * self.index + 5000 & 0xFFFF_FFFF

    @property
    def snd(self) -> tuple[int, int]:
        """SND.NXT towards each side, all of it acknowledged."""
        return 0x30000 * self.index + 9000 & 0xFFFF_FFFF, 0x50000 * self.index + 70_000 & 0xFFFF_FFFF

    def table(self) -> bytes:
        """The two SPLICE_SIDE messages."""
        return b"".join(
            SPLICE_SIDE.pack(
                remote=_mapped(self.peers[side][0]), local=_mapped(_number(ADDRESS)), remote_port=self.peers[side][1],
                local_port=self.ports[side], dst_mac=int.from_bytes(CLIENT_MAC.to_bytes(6, "big"), "little"),
                flags=SpliceSideFlag.TIMESTAMPS, snd_nxt=self.snd[side], snd_una=self.snd[side], rcv_nxt=self.rcv[side],
                ts_offset=_TS_OFFSETS[side],
            )
            for side in (0, 1)
        )  # fmt: skip

    def segment(self, side: int, length: int) -> bytes:
        """A frame of `length` bytes from one side to us. 60: an ACK without options; else data with timestamps."""
        options = _TIMESTAMPS + struct.pack("!II", _CLOCKS[side], _CLOCKS[1 - side]) if length > 60 else b""
        return self._frame(
            length, options, dst_mac=MAC, src_mac=CLIENT_MAC, src=self.peers[side][0], dst=_number(ADDRESS), ttl=64,
            src_port=self.peers[side][1], dst_port=self.ports[side], seq=self.rcv[side], ack=self.snd[side],
        )  # fmt: skip

    def forwarded(self, side: int, length: int) -> bytes:
        """What `segment` is when it leaves to the other side: by RFC 791, 9293 and 7323, and what docs/splice.md says."""
        other = 1 - side
        stamps = (_CLOCKS[side] + _TS_OFFSETS[other], _CLOCKS[other] - _TS_OFFSETS[side])
        options = _TIMESTAMPS + struct.pack("!II", *stamps) if length > 60 else b""
        return self._frame(
            length, options, dst_mac=CLIENT_MAC, src_mac=MAC, src=_number(ADDRESS), dst=self.peers[other][0], ttl=63,
            src_port=self.ports[other], dst_port=self.peers[other][1], seq=self.snd[other], ack=self.rcv[other],
        )  # fmt: skip

    @staticmethod
    def _frame(
        length: int, options: bytes, *, dst_mac: int, src_mac: int, src: int, dst: int, ttl: int, src_port: int, dst_port: int,
        seq: int, ack: int,
    ) -> bytes:  # fmt: skip
        payload = bytes(length - ETHERNET.size - IPV4.size - TCP.size - len(options)) if length > 60 else b""
        tcp_bytes = TCP.size + len(options) + len(payload)
        ip = {"version": 4, "ihl": 5, "total_length": IPV4.size + tcp_bytes, "ttl": ttl, "protocol": IPProtocol.TCP, "src": src, "dst": dst}
        tcp = {
            "src_port": src_port, "dst_port": dst_port, "seq": seq, "ack": ack, "data_offset": (TCP.size + len(options)) // 4,
            "flags": TCPFlag.ACK, "window": 0x1000,
        }  # fmt: skip
        pseudo = struct.pack("!IIHH", src, dst, IPProtocol.TCP, tcp_bytes)
        return (
            ETHERNET.pack(dst=dst_mac, src=src_mac, ethertype=EtherType.IPV4)
            + IPV4.pack(**ip, checksum=_checksum(IPV4.pack(**ip)))
            + TCP.pack(**tcp, checksum=_checksum(pseudo + TCP.pack(**tcp) + options + payload))
            + options
            + payload
        ).ljust(60, b"\0")


def _checksum(octets: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets[: len(octets) & ~1])) + (octets[-1] << 8 if len(octets) & 1 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class SpliceRig(Rig):
    """A `Rig` whose connection table is ready. No buffer is posted: what goes to the host is dropped and counted."""

    def __init__(self, shell: Shell) -> None:
        super().__init__(shell)
        self.ready_tables()
        self._order = self._allocate(COMMAND.size)
        self._table = self._allocate(2 * SPLICE_SIDE.size + FRAME_TABLE_ALIGN) + FRAME_TABLE_ALIGN - 1 & -FRAME_TABLE_ALIGN

    def splice(self, pair: Pair) -> int:
        """Join a pair. Returns the cycles from the last beat of the command that was fetched to its event's first one.

        Raises `RuntimeError` when it is refused.
        """
        sides = pair.table()
        self._memory[self._table : self._table + len(sides)] = sides
        command = SPLICE_COMMAND.pack(opcode=CommandOpcode.SPLICE, tag=pair.index, table=self.address(self._table))
        return self._run(command)

    def nop(self) -> int:
        """The same for a command that does nothing."""
        return self._run(COMMAND.pack(opcode=CommandOpcode.NOP))

    def _run(self, command: bytes) -> int:
        shell = self.shell
        self._memory[self._order : self._order + len(command)] = command
        shell.set_log(256)
        self._post(TX_DESCRIPTOR.pack(address=self.address(self._order), length=COMMAND.size, opcode=TxOpcode.COMMAND), 1)
        shell.run(100_000)
        entries = list(shell.log())
        shell.set_log(0)
        events = self.take_events()
        self.write(QUEUE, "event_head", self._event_head & 0xFFFF)
        if [(event["type"], event["status"]) for event in events] != [(EventType.COMMAND_DONE, Status.OK)]:
            raise RuntimeError(f"a command ended with {events}")
        asked = next(entry.cycle for entry in entries if entry.kind == LogKind.AXI_READ and entry.where == self.address(self._order))
        told = next(entry.cycle for entry in entries if entry.kind == LogKind.AXI_WRITE and entry.cycle > asked)
        return told - asked

    def expect(self, pairs: list[Pair], length: int) -> None:
        """One packet of each side of each pair. Raises `RuntimeError` unless it leaves as it should."""
        shell = self.shell
        frames = [(pair, side) for pair in pairs for side in (0, 1)]
        shell.tx()
        shell.rx_many(0, [pair.segment(side, length) for pair, side in frames])
        shell.run(1_000_000)
        sent = [frame.data for frame in shell.tx()]
        wanted = [pair.forwarded(side, length) for pair, side in frames]
        for number, (pair, side) in enumerate(frames):
            if sent[number : number + 1] != wanted[number : number + 1]:
                got = sent[number].hex() if number < len(sent) else "nothing"
                raise RuntimeError(
                    f"a packet of {length} bytes of side {side} of pair {pair.index} left as {got}, not as {wanted[number].hex()}"
                )
        if len(sent) != len(wanted):
            raise RuntimeError(f"{len(wanted)} packets went in, {len(sent)} came out")
