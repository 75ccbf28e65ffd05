"""The core on a bench: rings in memory of this process, cycles counted by the simulator.

No driver and no sockets between: descriptors are laid out in advance, so that what is
measured is the NIC and nothing else.
"""

from __future__ import annotations

import ctypes
import ipaddress
import mmap
from types import TracebackType
from typing import Self

from acceltcp.abi.fields import Message
from acceltcp.abi.messages import (
    COMMAND,
    EVENT,
    LISTEN_COMMAND,
    RX_COMPLETION,
    RX_FREE,
    TX_DESCRIPTOR,
    CommandOpcode,
    ListenFlag,
    Status,
    TxOpcode,
)
from acceltcp.abi.registers import CONTROL, COUNTER_BASE, COUNTERS, FLOWS, PORT, QUEUE, SECRET, Block
from sim.device import Shell, Stop

__all__ = ["ADDRESS", "CLIENT_MAC", "MAC", "PORT_NUMBER", "Rig"]

MAC = 0x02_00_00_00_00_02
CLIENT_MAC = 0x02_00_00_00_00_01
ADDRESS = "192.0.2.1"
PORT_NUMBER = 80

_FREE_LOG2, _COMPLETION_LOG2, _TX_LOG2, _EVENT_LOG2 = 15, 15, 14, 15
_BASE = 0x10_0000_0000


class Rig:
    """One core with queue 0 set up and a listener on `ADDRESS`:`PORT_NUMBER`."""

    def __init__(self, shell: Shell, *, defer_accept: bool = False, memory: int = 8 << 20) -> None:
        self.shell = shell
        self._memory = mmap.mmap(-1, memory)
        self._next = 0
        shell.map_pointer(
            _BASE, len(self._memory), ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        )
        shell.set_bus_master(True)
        shell.reset()
        self._free = self._ring("rx_free", RX_FREE, _FREE_LOG2)
        self._completions = self._ring("rx_completion", RX_COMPLETION, _COMPLETION_LOG2)
        self._tx = self._ring("tx", TX_DESCRIPTOR, _TX_LOG2)
        self._events = self._ring("event", EVENT, _EVENT_LOG2)
        self.buffer = self._allocate(16384)
        self.frame = self._allocate(16384)
        self._command = self._allocate(COMMAND.size)
        self._tail = 0
        self._event_head = 0
        self.write(QUEUE, "control", 1)
        for word in range(4):
            self.write(SECRET, f"word{word}", 0x01234567 * (word + 1) & 0xFFFF_FFFF)
        self.write(SECRET, "commit", 1)
        self.write(PORT, "mac_low", MAC & 0xFFFF_FFFF)
        self.write(PORT, "mac_high", MAC >> 32)
        self.listen(ListenFlag.DEFER_ACCEPT if defer_accept else 0)
        self.write(CONTROL, "control", 1)
        shell.run()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.shell.close()

    def _allocate(self, size: int) -> int:
        at = self._next
        self._next = at + size + 63 & ~63
        if self._next > len(self._memory):
            raise MemoryError(f"the bench's memory has {len(self._memory)} bytes, no room for {size} more")
        return at

    def address(self, offset: int) -> int:
        """Bus address of a place in the bench's memory."""
        return _BASE + offset

    def _ring(self, prefix: str, message: Message, log2: int) -> int:
        at = self._allocate(message.size << log2)
        self.write(QUEUE, f"{prefix}_base_low", self.address(at) & 0xFFFF_FFFF)
        self.write(QUEUE, f"{prefix}_base_high", self.address(at) >> 32)
        self.write(QUEUE, f"{prefix}_size", log2)
        return at

    def write(self, block: Block, name: str, value: int) -> None:
        """Write a register (instance 0 of its block)."""
        self.shell.write(block.address(name), value)

    def ready_tables(self) -> None:
        """Set the secret of the connection table, and wait until the tables are cleared."""
        for word in range(4):
            self.write(FLOWS, f"word{word}", 0x89ABCDEF * (word + 3) & 0xFFFF_FFFF)
        self.write(FLOWS, "commit", 1)
        ready = FLOWS["status"].encode(secret_valid=1, ready=1)
        for _ in range(100):
            self.shell.run(1 << 20)
            if self.shell.read(FLOWS.address("status")) == ready:
                return
        raise RuntimeError("the tables were not cleared")

    def listen(self, flags: int) -> None:
        """Set the listener up by command, and see it accepted."""
        command = LISTEN_COMMAND.pack(
            opcode=CommandOpcode.LISTEN,
            tag=1,
            address=int.from_bytes(int(ipaddress.IPv4Address(ADDRESS)).to_bytes(16, "big"), "little"),
            port=PORT_NUMBER,
            flags=flags,
            mss=1460,
            window=65535,
            wscale=7,
        )
        self._memory[self._command : self._command + len(command)] = command
        self._post(TX_DESCRIPTOR.pack(address=self.address(self._command), length=COMMAND.size, opcode=TxOpcode.COMMAND), 1)
        self.shell.run(100_000)
        events = self.take_events()
        if [event["status"] for event in events] != [Status.OK]:
            raise RuntimeError(f"LISTEN ended with {events}")

    def take_events(self) -> list[dict[str, int]]:
        """Events since the last call (the NIC is not told that they were taken)."""
        found: list[dict[str, int]] = []
        while True:
            at = self._events + self._event_head % (1 << _EVENT_LOG2) * EVENT.size
            phase = ~(self._event_head >> _EVENT_LOG2) & 1
            if self._memory[at + EVENT.size - 1] >> 7 != phase:
                return found
            found.append(EVENT.unpack(self._memory[at : at + EVENT.size]))
            self._event_head += 1

    def _post(self, descriptor: bytes, count: int) -> None:
        for _ in range(count):
            self._write_descriptor(descriptor)
        self.write(QUEUE, "tx_tail", self._tail & 0xFFFF)

    def _write_descriptor(self, descriptor: bytes) -> None:
        at = self._tx + self._tail % (1 << _TX_LOG2) * len(descriptor)
        self._memory[at : at + len(descriptor)] = descriptor
        self._tail += 1

    def post_frames(self, frame: bytes, count: int) -> None:
        """Ask for `frame` to be sent `count` times (fewer than the ring has entries)."""
        self._memory[self.frame : self.frame + len(frame)] = frame
        self._post(TX_DESCRIPTOR.pack(address=self.address(self.frame), length=len(frame), opcode=TxOpcode.SEND), count)

    def post_buffers(self) -> int:
        """Fill the RX free ring, all with the same buffer; returns how many."""
        count = 1 << _FREE_LOG2
        entry = RX_FREE.pack(address=self.address(self.buffer), length=16384)
        self._memory[self._free : self._free + count * len(entry)] = entry * count
        self.write(QUEUE, "rx_free_tail", count)
        return count

    def completions(self) -> int:
        """Completions in the ring (which is never consumed here)."""
        size = RX_COMPLETION.size
        last = self._completions + size - 1
        end = self._completions + (size << _COMPLETION_LOG2)
        return sum(byte >> 7 for byte in self._memory[last:end:size])

    def counters(self) -> dict[str, int]:
        """The NIC's own counters, by name."""
        self.write(CONTROL, "snapshot", 1)
        self.shell.run(100_000)
        return {
            counter.name: self.shell.read(COUNTER_BASE + 8 * i) | self.shell.read(COUNTER_BASE + 8 * i + 4) << 32
            for i, counter in enumerate(COUNTERS)
        }

    def cycles(self, count: int) -> None:
        """Run exactly that many cycles."""
        self.shell.run(count, Stop.NOTHING)
