"""Host memory behind the core's AXI4 master.

The five channels are cocotbext-axi's; what happens between a request and its response is
ours, because the order is what is tested: latencies are random, responses of different
identifiers overtake each other and read beats of different bursts interleave, as AXI4
allows. A write becomes visible only when its response leaves, so a NIC that writes a
completion before its payload has been acknowledged is caught with stale payload.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cocotb
from cocotb.triggers import Event, RisingEdge, Timer
from cocotb.utils import get_sim_time
from cocotbext.axi import AxiBus
from cocotbext.axi.axi_channels import AxiARSink, AxiAWSink, AxiBSource, AxiRSource, AxiWSink

__all__ = ["AxiMemory", "AxiRules", "Fault", "HostMemory"]

OKAY, SLVERR, DECERR = 0, 2, 3
NS_PER_CYCLE = 4


@dataclass
class Fault:
    """Accesses to `start`..`end` are answered with an error and have no effect."""

    start: int
    end: int
    read: int = SLVERR
    write: int = SLVERR
    hits: int = field(default=0, init=False)


class HostMemory:
    """A block of memory with an allocator; everything around it answers DECERR."""

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.bytes = bytearray(size)
        self.faults: list[Fault] = []
        self.changed = Event()
        self._next = base

    @property
    def end(self) -> int:
        return self.base + len(self.bytes)

    def alloc(self, size: int, align: int = 64, offset: int = 0) -> int:
        """A free, zeroed block whose address is `offset` past a multiple of `align`."""
        address = (self._next + align - 1) // align * align + offset
        self._next = address + size
        if self._next > self.end:
            raise MemoryError("the test uses more host memory than there is")
        return address

    def read(self, address: int, size: int) -> bytes:
        at = address - self.base
        assert at >= 0 and at + size <= len(self.bytes), f"read at {address:#x}"
        return bytes(self.bytes[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        at = address - self.base
        assert at >= 0 and at + len(data) <= len(self.bytes), f"write at {address:#x}"
        self.bytes[at : at + len(data)] = data

    def response(self, address: int, size: int, *, write: bool) -> int:
        """What the bus says to an access."""
        for fault in self.faults:
            if address < fault.end and address + size > fault.start:
                answer = fault.write if write else fault.read
                if answer != OKAY:
                    fault.hits += 1
                    return answer
        inside = self.base <= address and address + size <= self.end
        return OKAY if inside else DECERR


@dataclass
class _Read:
    due: int
    address: int
    beats: int
    done: int = 0


@dataclass
class _Write:
    due: int
    address: int
    beats: list[tuple[int, int]]  # data, strobe


class AxiMemory:
    """Answers the AXI4 master out of a `HostMemory`.

    latency: called for each burst; cycles from request to first response.
    """

    def __init__(self, dut, memory: HostMemory, prefix: str, clock, reset, rng: random.Random) -> None:
        self.memory = memory
        self.rng = rng
        self.latency: Callable[[], int] = lambda: 8
        self.reads = self.writes = self.read_beats = self.written_beats = 0
        self.bursts: list[int] = []
        bus = AxiBus.from_prefix(dut, prefix)
        self.width = len(bus.read.r.rdata) // 8
        self.ar = AxiARSink(bus.read.ar, clock, reset)
        self.r = AxiRSource(bus.read.r, clock, reset)
        self.aw = AxiAWSink(bus.write.aw, clock, reset)
        self.w = AxiWSink(bus.write.w, clock, reset)
        self.b = AxiBSource(bus.write.b, clock, reset)
        self.r.queue_occupancy_limit = self.b.queue_occupancy_limit = 2
        self._tasks: list[Any] = []
        self.restart()

    def restart(self) -> None:
        """Forget everything under way: the reset of the bus."""
        for task in self._tasks:
            task.cancel()
        for channel in (self.ar, self.r, self.aw, self.w, self.b):
            channel.clear()
        self._r_waiting: dict[int, deque[_Read]] = {}
        self._b_waiting: dict[int, deque[_Write]] = {}
        self._r_work, self._b_work = Event(), Event()
        coroutines = (self._take_reads, self._answer_reads, self._take_writes, self._answer_writes)
        self._tasks = [cocotb.start_soon(coroutine()) for coroutine in coroutines]

    @property
    def idle(self) -> bool:
        """No burst is waiting for a response."""
        return not any(self._r_waiting.values()) and not any(self._b_waiting.values())

    def stall(self, **probability: float) -> None:
        """Pause channels (ar, r, aw, w, b) with these probabilities per cycle; others never."""
        for name in ("ar", "r", "aw", "w", "b"):
            channel = getattr(self, name)
            p = probability.get(name, 0.0)
            channel.clear_pause_generator()
            channel.pause = False
            if p:
                channel.set_pause_generator(self._pauses(p))

    def _pauses(self, p: float):
        while True:
            yield self.rng.random() < p

    def _due(self) -> int:
        return int(get_sim_time("ns")) + NS_PER_CYCLE * self.latency()

    def _check(self, address: int, length: int, size: int, burst: int, what: str) -> None:
        assert 1 << size == self.width, f"{what}: size {size}, not the bus's width"
        assert burst == 1, f"{what}: burst type {burst}, not INCR"
        assert address % self.width == 0, f"{what}: address {address:#x} is not a multiple of {self.width}"
        assert address % 4096 + self.width * (length + 1) <= 4096, f"{what}: {address:#x} crosses 4 KiB"

    async def _take_reads(self) -> None:
        while True:
            ar = await self.ar.recv()
            address, length = int(ar.araddr), int(ar.arlen)
            self._check(address, length, int(ar.arsize), int(ar.arburst), "AR")
            self.reads += 1
            waiting = self._r_waiting.setdefault(int(ar.arid), deque())
            waiting.append(_Read(self._due(), address, length + 1))
            self._r_work.set()

    async def _answer_reads(self) -> None:
        while True:
            identifier, read = await self._pick(self._r_waiting, self._r_work)
            address = read.address + self.width * read.done
            response = self.memory.response(address, self.width, write=False)
            # What comes with an error is garbage and must not be used.
            data = self.memory.read(address, self.width) if response == OKAY else self.rng.randbytes(self.width)
            read.done += 1
            beat = self.r._transaction_obj()
            beat.rid, beat.rresp = identifier, response
            beat.rdata = int.from_bytes(data, "little")
            beat.rlast = read.done == read.beats
            if read.done == read.beats:
                self._r_waiting[identifier].popleft()
            self.read_beats += 1
            await self.r.send(beat)

    async def _take_writes(self) -> None:
        while True:
            aw = await self.aw.recv()
            address, length = int(aw.awaddr), int(aw.awlen)
            self._check(address, length, int(aw.awsize), int(aw.awburst), "AW")
            beats = []
            for number in range(length + 1):
                w = await self.w.recv()
                beats.append((int(w.wdata), int(w.wstrb)))
                last = bool(int(w.wlast))
                assert last == (number == length), f"WLAST {last} on beat {number} of {length + 1}"
            self.writes += 1
            self.written_beats += len(beats)
            waiting = self._b_waiting.setdefault(int(aw.awid), deque())
            waiting.append(_Write(self._due(), address, beats))
            self._b_work.set()

    async def _answer_writes(self) -> None:
        while True:
            identifier, write = await self._pick(self._b_waiting, self._b_work)
            self._b_waiting[identifier].popleft()
            answer = self.b._transaction_obj()
            answer.bid, answer.bresp = identifier, self._store(write)
            await self.b.send(answer)

    def _store(self, write: _Write) -> int:
        worst = OKAY
        for number, (data, strobe) in enumerate(write.beats):
            address = write.address + self.width * number
            # Only bytes with a strobe are accessed.
            first = (strobe & -strobe).bit_length() - 1 if strobe else 0
            size = strobe.bit_length() - first
            response = self.memory.response(address + first, size, write=True) if strobe else OKAY
            worst = max(worst, response)
            if response == OKAY:
                raw = data.to_bytes(self.width, "little")
                if strobe == (1 << self.width) - 1:
                    self.memory.write(address, raw)
                    continue
                for lane in range(first, first + size):
                    if strobe >> lane & 1:
                        self.memory.write(address + lane, raw[lane : lane + 1])
        self.memory.changed.set()
        return worst

    async def _pick(self, waiting, work: Event):
        """Some identifier whose oldest burst is due."""
        while True:
            now = int(get_sim_time("ns"))
            heads = [(identifier, queue[0]) for identifier, queue in waiting.items() if queue]
            due = [head for head in heads if head[1].due <= now]
            if due:
                return due[0] if len(due) == 1 else self.rng.choice(due)
            work.clear()
            if not heads:
                await work.wait()
            else:
                await Timer(max(1, min(min(head[1].due for head in heads) - now, 4 * NS_PER_CYCLE)), "ns")


class AxiRules:
    """Checks each cycle that an offered transfer stays as it is until it is taken."""

    CHANNELS = {
        "aw": ("awid", "awaddr", "awlen", "awsize", "awburst"),
        "w": ("wdata", "wstrb", "wlast"),
        "ar": ("arid", "araddr", "arlen", "arsize", "arburst"),
    }

    def __init__(self, dut, prefix: str, clock, reset) -> None:
        self.dut, self.prefix, self.clock, self.reset = dut, prefix, clock, reset
        self.stalled = dict.fromkeys(self.CHANNELS, 0)
        for channel, fields in self.CHANNELS.items():
            cocotb.start_soon(self._watch(channel, fields))

    async def _watch(self, channel: str, fields: tuple[str, ...]) -> None:
        def signal(name):
            return getattr(self.dut, f"{self.prefix}_{name}")

        valid, ready = signal(channel + "valid"), signal(channel + "ready")
        payload = [signal(name) for name in fields]
        edge, held = RisingEdge(self.clock), None
        while True:
            await edge
            if self.reset.value:
                held = None
                continue
            offered = bool(valid.value)
            if held is not None:
                assert offered, f"{channel}valid fell before the transfer was taken"
                now = [int(part.value) for part in payload]
                assert now == held, f"{channel}: payload changed while it waited"
            if offered and not ready.value:
                self.stalled[channel] += 1
                if held is None:
                    held = [int(part.value) for part in payload]
            else:
                held = None
