"""The core on a bench with many connections in teardown."""

from __future__ import annotations

import struct

from acceltcp.abi.messages import (
    CLOSE_COMMAND,
    COMMAND,
    FINAL_FRAME,
    FRAME_TABLE_ALIGN,
    TX_DESCRIPTOR,
    CommandOpcode,
    EventType,
    Status,
    TxOpcode,
)
from acceltcp.abi.registers import QUEUE
from acceltcp.abi.wire import ETHERNET, IPV4, TCP, EtherType, IPProtocol, TCPFlag
from sim.device import Shell

from .rig import ADDRESS, CLIENT_MAC, MAC, PORT_NUMBER, Rig
from .setup import client

__all__ = ["FlowRig"]

PAYLOAD = b"final"
BATCH = 4096
RCV_NXT = 2
_SLOT = 2 * FRAME_TABLE_ALIGN
"""A flow's table and its frame."""


def _number(address: str) -> int:
    return int.from_bytes(bytes(map(int, address.split("."))), "big")


class FlowRig(Rig):
    """A `Rig` with memory for the final frames of `count` flows, one frame each.

    Flow i is that of client i of the bench; its frame starts at sequence number 16 i.
    """

    def __init__(self, shell: Shell, count: int) -> None:
        super().__init__(shell, memory=(8 << 20) + count * _SLOT + BATCH * COMMAND.size)
        self.count = count
        self.ready_tables()
        self._commands = self._allocate(BATCH * COMMAND.size)
        self._slots = self._allocate(count * _SLOT + FRAME_TABLE_ALIGN) + FRAME_TABLE_ALIGN - 1 & -FRAME_TABLE_ALIGN
        self.length = ETHERNET.size + IPV4.size + TCP.size + len(PAYLOAD)
        for index in range(count):
            self._write_flow(index)

    @staticmethod
    def tuple_of(index: int) -> tuple[int, int]:
        """Client's address and port of a flow; all different."""
        src, port = client(index)
        return src + 0x10000 * (index // 60000), port

    def end(self, index: int) -> int:
        """Sequence number after the flow's FIN."""
        return 16 * index + len(PAYLOAD) + 1 & 0xFFFF_FFFF

    def _write_flow(self, index: int) -> None:
        remote, port = self.tuple_of(index)
        ip = IPV4.pack(
            version=4, ihl=5, total_length=IPV4.size + TCP.size + len(PAYLOAD), ttl=64, protocol=IPProtocol.TCP,
            src=_number(ADDRESS), dst=remote,
        )  # fmt: skip
        tcp = TCP.pack(
            src_port=PORT_NUMBER, dst_port=port, seq=16 * index & 0xFFFF_FFFF, data_offset=5,
            flags=TCPFlag.FIN | TCPFlag.PSH | TCPFlag.ACK, window=501,
        )  # fmt: skip
        frame = ETHERNET.pack(dst=CLIENT_MAC, src=MAC, ethertype=EtherType.IPV4) + ip + tcp + PAYLOAD
        at = self._slots + index * _SLOT
        entry = FINAL_FRAME.pack(
            address=self.address(at + FRAME_TABLE_ALIGN), seq=16 * index & 0xFFFF_FFFF, length=len(frame),
            l4_offset=ETHERNET.size + IPV4.size,
        )  # fmt: skip
        self._memory[at : at + len(entry)] = entry
        self._memory[at + FRAME_TABLE_ALIGN : at + FRAME_TABLE_ALIGN + len(frame)] = frame

    def close_flows(self, indices: range, *, rto: int, spread: int = 1, sent: int = 1) -> list[int]:
        """Hand these flows over, flow i with a time-out of `rto` + i mod `spread` steps; the NIC's indices.

        Raises `RuntimeError` when one is refused.
        """
        taken: list[int] = []
        for first in range(indices.start, indices.stop, BATCH):
            batch = range(first, min(first + BATCH, indices.stop))
            for k, index in enumerate(batch):
                remote, port = self.tuple_of(index)
                command = CLOSE_COMMAND.pack(
                    opcode=CommandOpcode.CLOSE, frames=1, sent=sent, retries=3, tag=index,
                    table=self.address(self._slots + index * _SLOT),
                    remote=int.from_bytes(remote.to_bytes(16, "big"), "little"),
                    local=int.from_bytes(_number(ADDRESS).to_bytes(16, "big"), "little"),
                    remote_port=port, local_port=PORT_NUMBER, rcv_nxt=RCV_NXT, rto=rto + index % spread, window=1000,
                )  # fmt: skip
                at = self._commands + k * COMMAND.size
                self._memory[at : at + COMMAND.size] = command
                descriptor = TX_DESCRIPTOR.pack(address=self.address(at), length=COMMAND.size, opcode=TxOpcode.COMMAND)
                self._write_descriptor(descriptor)
            self.write(QUEUE, "tx_tail", self._tail & 0xFFFF)
            wanted = len(batch)
            for _ in range(200):
                self.shell.run(20_000)
                for event in self.events():
                    if event["type"] != EventType.COMMAND_DONE:
                        continue
                    if event["status"] != Status.OK:
                        raise RuntimeError(f"flow {event['tag']} was refused: {Status(event['status']).name}")
                    taken.append(event["value"])
                    wanted -= 1
                if not wanted:
                    break
            else:
                raise RuntimeError(f"{wanted} of {len(batch)} CLOSE commands have not ended")
        return taken

    def segments(self, indices: range | list[int], flags: int, *, seq: int = RCV_NXT) -> list[bytes]:
        """A segment without payload of each of these flows' peers, acknowledging everything."""
        template = bytearray(self._plain(flags, seq))
        ack_at = ETHERNET.size + IPV4.size + TCP.byte_offset("ack")
        frames = []
        for index in indices:
            src, port = self.tuple_of(index)
            struct.pack_into("!I", template, ETHERNET.size + IPV4.byte_offset("src"), src)
            struct.pack_into("!H", template, ETHERNET.size + IPV4.size, port)
            struct.pack_into("!I", template, ack_at, self.end(index))
            frames.append(_with_checksums(template))
        return frames

    @staticmethod
    def _plain(flags: int, seq: int) -> bytes:
        ip = IPV4.pack(version=4, ihl=5, total_length=IPV4.size + TCP.size, ttl=64, protocol=IPProtocol.TCP, dst=_number(ADDRESS))
        tcp = TCP.pack(dst_port=PORT_NUMBER, seq=seq, data_offset=5, flags=flags, window=0x4000)
        return (ETHERNET.pack(dst=MAC, src=CLIENT_MAC, ethertype=EtherType.IPV4) + ip + tcp).ljust(60, b"\0")

    def events(self) -> list[dict[str, int]]:
        """Events since the last call."""
        found = self.take_events()
        if found:
            self.write(QUEUE, "event_head", self._event_head & 0xFFFF)
        return found


def _with_checksums(frame: bytearray) -> bytes:
    ip_at, tcp_at = ETHERNET.size, ETHERNET.size + IPV4.size
    ip_sum, tcp_sum = ip_at + IPV4.byte_offset("checksum"), tcp_at + TCP.byte_offset("checksum")
    struct.pack_into("!H", frame, ip_sum, 0)
    struct.pack_into("!H", frame, tcp_sum, 0)
    words = struct.unpack_from("!10H", frame, ip_at)
    struct.pack_into("!H", frame, ip_sum, _fold(sum(words)))
    words = struct.unpack_from("!10H", frame, tcp_at)
    addresses = struct.unpack_from("!4H", frame, ip_at + IPV4.byte_offset("src"))
    struct.pack_into("!H", frame, tcp_sum, _fold(sum(words) + sum(addresses) + IPProtocol.TCP + TCP.size))
    return bytes(frame)


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

