"""Host memory for unit tests: serves `ReadPort`, `WritePort` and raw AXI4 in the Amaranth simulator.

`Memory` is sparse, so addresses may be anything in 64 bits. Each server is an endless
testbench: pass it to `run(dut, ..., background=[...])`, wrapped by `functools.partial` or a
lambda that takes the context. Servers check the rules of the seam as they go: alignment, 4 KiB
boundaries, burst lengths, `last`, and that an offered request neither changes nor vanishes.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from amaranth import Value
from amaranth.lib import data

from hw.config import AXI_BYTES
from hw.dma.axi import ReadBeat, ReadRequest, WriteBeat

__all__ = ["Memory", "Traffic", "serve_axi_reads", "serve_axi_writes", "serve_reads", "serve_writes"]

Go = Callable[[], bool]
PAGE = 4096
OKAY, SLVERR = 0, 2


def _always() -> bool:
    return True


def _field(shape: Any, name: str) -> tuple[int, int]:
    """(lowest bit, mask) of a field of a layout."""
    at = data.Layout.cast(shape)[name]
    return at.offset, (1 << at.width) - 1


_REQUEST = {name: _field(ReadRequest, name) for name in ("address", "length")}


def _fields(shape: Any) -> dict[str, tuple[int, int]]:
    return {name: _field(shape, name) for name, _ in data.Layout.cast(shape)}


def _get(fields: dict[str, tuple[int, int]], value: int, name: str) -> int:
    at, mask = fields[name]
    return value >> at & mask


class Memory:
    """Bytes at 64-bit addresses; unwritten ones read as `fill`.

    errors: ranges of addresses, as Python `range`s, where the bus answers SLVERR.
    """

    def __init__(self, fill: int = 0) -> None:
        self._pages: dict[int, bytearray] = {}
        self._fill = fill
        self.errors: list[range] = []

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            self._pages[number] = bytearray([self._fill]) * PAGE
        return self._pages[number]

    def write(self, address: int, octets: bytes) -> None:
        """Store bytes, across pages if need be."""
        while octets:
            page, at = divmod(address, PAGE)
            part = octets[: PAGE - at]
            self._page(page)[at : at + len(part)] = part
            address, octets = address + len(part), octets[len(part) :]

    def read(self, address: int, length: int) -> bytes:
        """Bytes from `address` on."""
        out = b""
        while length:
            page, at = divmod(address, PAGE)
            part = bytes(self._page(page)[at : at + length])
            out, address, length = out + part, address + len(part), length - len(part)
        return out

    def fails(self, address: int, size: int = AXI_BYTES) -> bool:
        """Whether an access to the beat of `size` bytes at `address` is answered with an error."""
        return any(
            bad.start < address + size and address < bad.stop for bad in self.errors if len(bad)
        )

    def read_beat(self, address: int, size: int = AXI_BYTES) -> int:
        """One beat as an integer."""
        page, at = divmod(address, PAGE)
        return int.from_bytes(self._page(page)[at : at + size], "little")

    def write_beat(self, address: int, value: int, strobe: int, size: int = AXI_BYTES) -> None:
        """Store the bytes of a beat whose strobe is set."""
        page, at = divmod(address, PAGE)
        octets = value.to_bytes(size, "little")
        memory = self._page(page)
        if strobe == (1 << size) - 1:
            memory[at : at + size] = octets
            return
        for lane in range(size):
            if strobe >> lane & 1:
                memory[at + lane] = octets[lane]


@dataclass
class Traffic:
    """What a server saw: for assertions and throughput figures. Cycles count from its start."""

    size: int = AXI_BYTES  # bytes per beat; set by the server
    cycle: int = 0
    bursts: list[tuple[int, int, int]] = field(default_factory=list)  # (cycle, address, beats)
    beats: int = 0  # response beats delivered, or write beats taken
    outstanding: int = 0  # bursts requested and not wholly answered
    outstanding_max: int = 0

    def _begin(self, address: int, beats: int) -> None:
        _check_burst(address, beats, self.size)
        self.bursts.append((self.cycle, address, beats))
        self.outstanding += 1
        self.outstanding_max = max(self.outstanding_max, self.outstanding)


def _check_burst(address: int, beats: int, size: int) -> None:
    assert address % size == 0, f"address {address:#x} is not a multiple of {size}"
    assert beats <= 256, f"{beats} beats are more than AXI4 allows"
    assert address // PAGE == (address + size * beats - 1) // PAGE, f"{beats} beats at {address:#x} cross a 4 KiB boundary"


class _Rule:
    """An offered payload stays until it is taken."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: int | None = None

    def check(self, valid: int, ready: int, payload: int) -> None:
        if self._waiting is not None:
            assert valid, f"{self._name}: valid dropped before the transfer"
            assert payload == self._waiting, f"{self._name}: payload changed before the transfer"
        self._waiting = payload if valid and not ready else None


async def serve_reads(
    ctx: Any,
    port: Any,
    memory: Memory,
    *,
    latency: int = 4,
    request_go: Go = _always,
    response_go: Go = _always,
    traffic: Traffic | None = None,
) -> None:
    """Answer a `ReadPort`. Pipelined: any number of bursts may be under way.

    latency: cycles from taking a request to offering its first beat (at least 1). The two
    patterns stall requests and pause responses.
    """
    traffic = traffic if traffic is not None else Traffic()
    size = traffic.size = len(port.response.payload.data) // 8
    beat = _fields(ReadBeat(size))
    request = Value.cast(port.request.payload)
    response = Value.cast(port.response.payload)
    waiting: deque[tuple[int, int, int, bool]] = deque()
    rule = _Rule("read request")
    ready = request_go()
    ctx.set(port.request.ready, ready)
    async for _, _, valid, payload in ctx.tick().sample(port.request.valid, request):
        traffic.cycle += 1
        rule.check(valid, ready, payload)
        if valid and ready:
            address, beats = _get(_REQUEST, payload, "address"), _get(_REQUEST, payload, "length") + 1
            traffic._begin(address, beats)
            for i in range(beats):
                waiting.append((traffic.cycle + latency - 1, address + size * i, i, i == beats - 1))
        offer = bool(waiting) and waiting[0][0] <= traffic.cycle and response_go()
        if offer:
            _, at, _, last = waiting.popleft()
            # The memory is read when the data come back: the worst case for who asks too early.
            value = memory.read_beat(at, size) | memory.fails(at, size) << beat["error"][0] | last << beat["last"][0]
            ctx.set(response, value)
            traffic.beats += 1
            traffic.outstanding -= last
        ctx.set(port.response.valid, offer)
        ready = request_go()
        ctx.set(port.request.ready, ready)


async def serve_writes(
    ctx: Any,
    port: Any,
    memory: Memory,
    *,
    latency: int = 4,
    request_go: Go = _always,
    response_go: Go = _always,
    traffic: Traffic | None = None,
) -> None:
    """Answer a `WritePort`. Data reach the memory when the burst is answered, not before.

    latency: cycles from a burst's last beat to its response (at least 1). A burst that
    touches an error range is answered with an error and writes nothing.
    """
    traffic = traffic if traffic is not None else Traffic()
    size = traffic.size = len(port.request.payload.strobe)
    fields = _fields(WriteBeat(size))
    request = Value.cast(port.request.payload)
    response = Value.cast(port.response.payload)
    waiting: deque[tuple[int, list[tuple[int, int, int]]]] = deque()
    burst: list[tuple[int, int, int]] = []
    address = beats = 0
    rule = _Rule("write request")
    ready = request_go()
    ctx.set(port.request.ready, ready)
    async for _, _, valid, payload in ctx.tick().sample(port.request.valid, request):
        traffic.cycle += 1
        rule.check(valid, ready, payload)
        if valid and ready:
            if not burst:
                address, beats = _get(fields, payload, "address"), _get(fields, payload, "length") + 1
                traffic._begin(address, beats)
            at = address + size * len(burst)
            burst.append((at, _get(fields, payload, "data"), _get(fields, payload, "strobe")))
            traffic.beats += 1
            last = bool(_get(fields, payload, "last"))
            assert last == (len(burst) == beats), f"last is {last} at beat {len(burst)} of {beats}"
            if last:
                waiting.append((traffic.cycle + latency - 1, burst))
                burst = []
        offer = bool(waiting) and waiting[0][0] <= traffic.cycle and response_go()
        if offer:
            _, done = waiting.popleft()
            ctx.set(response, _finish(memory, done, size))
            traffic.outstanding -= 1
        ctx.set(port.response.valid, offer)
        ready = request_go()
        ctx.set(port.request.ready, ready)


def _finish(memory: Memory, burst: list[tuple[int, int, int]], size: int) -> int:
    """Carry out a write burst; 1 if the bus refuses it."""
    if any(memory.fails(at, size) for at, _, _ in burst):
        return 1
    for at, value, strobe in burst:
        memory.write_beat(at, value, strobe, size)
    return 0


async def serve_axi_reads(
    ctx: Any,
    axi: Any,
    memory: Memory,
    *,
    latency: int = 4,
    request_go: Go = _always,
    response_go: Go = _always,
    interleave: random.Random | None = None,
    traffic: Traffic | None = None,
) -> None:
    """Answer AR and R of an `AxiMasterSignature`.

    Beats of one identifier stay in order. With `interleave`, those of different ones are
    mixed at random, beat by beat; without, bursts are answered in the order of AR.
    """
    traffic = traffic if traffic is not None else Traffic()
    size = traffic.size = len(axi.rdata) // 8
    waiting: dict[int, deque[tuple[int, int, int, bool]]] = {}
    rule = _Rule("AR")
    ready, offered, sequence = request_go(), False, 0
    ctx.set(axi.arready, ready)
    signals = (axi.arvalid, axi.arid, axi.araddr, axi.arlen, axi.arsize, axi.arburst, axi.rready)
    async for _, _, valid, ident, address, length, log2, kind, taken in ctx.tick().sample(*signals):
        traffic.cycle += 1
        rule.check(valid, ready, ident << 72 | address << 8 | length)
        if valid and ready:
            assert (1 << log2, kind) == (size, 1), "AR must be INCR bursts of beats as wide as the bus"
            traffic._begin(address, length + 1)
            for i in range(length + 1):
                beat = (traffic.cycle + latency - 1, sequence, address + size * i, i == length)
                waiting.setdefault(ident, deque()).append(beat)
            sequence += 1
        if taken or not offered:
            due = [i for i, beats in waiting.items() if beats and beats[0][0] <= traffic.cycle]
            offered = bool(due) and response_go()
            if offered:
                chosen = interleave.choice(due) if interleave else min(due, key=lambda i: waiting[i][0][1])
                _, _, at, last = waiting[chosen].popleft()
                ctx.set(axi.rid, chosen)
                ctx.set(axi.rdata, memory.read_beat(at, size))
                ctx.set(axi.rresp, SLVERR if memory.fails(at, size) else OKAY)
                ctx.set(axi.rlast, last)
                traffic.beats += 1
                traffic.outstanding -= last
            ctx.set(axi.rvalid, offered)
        ready = request_go()
        ctx.set(axi.arready, ready)


async def serve_axi_writes(
    ctx: Any,
    axi: Any,
    memory: Memory,
    *,
    latency: int = 4,
    address_go: Go = _always,
    data_go: Go = _always,
    response_go: Go = _always,
    interleave: random.Random | None = None,
    traffic: Traffic | None = None,
) -> None:
    """Answer AW, W and B of an `AxiMasterSignature`.

    AW and W run apart, each with its own stalls. Bursts take effect with their response;
    those of one identifier in order, those of different ones at random with `interleave`.
    """
    traffic = traffic if traffic is not None else Traffic()
    size = traffic.size = len(axi.wdata) // 8
    addresses: deque[tuple[int, int, int]] = deque()
    beats: deque[tuple[int, int, int]] = deque()
    waiting: dict[int, deque[tuple[int, int, list[tuple[int, int, int]]]]] = {}
    rules = _Rule("AW"), _Rule("W")
    aw_ready, w_ready, offered, sequence = address_go(), data_go(), False, 0
    ctx.set(axi.awready, aw_ready)
    ctx.set(axi.wready, w_ready)
    signals = (
        *(axi.awvalid, axi.awid, axi.awaddr, axi.awlen, axi.awsize, axi.awburst),
        *(axi.wvalid, axi.wdata, axi.wstrb, axi.wlast, axi.bready),
    )
    async for _, _, *now in ctx.tick().sample(*signals):
        aw_valid, ident, address, length, log2, kind, w_valid, value, strobe, last, taken = now
        traffic.cycle += 1
        rules[0].check(aw_valid, aw_ready, ident << 72 | address << 8 | length)
        rules[1].check(w_valid, w_ready, value << size + 1 | strobe << 1 | last)
        if aw_valid and aw_ready:
            assert (1 << log2, kind) == (size, 1), "AW must be INCR bursts of beats as wide as the bus"
            traffic._begin(address, length + 1)
            addresses.append((ident, address, length + 1))
        if w_valid and w_ready:
            beats.append((value, strobe, last))
            traffic.beats += 1
        if addresses and len(beats) >= addresses[0][2]:
            owner, start, count = addresses.popleft()
            burst = [beats.popleft() for _ in range(count)]
            assert [b[2] for b in burst] == [0] * (count - 1) + [1], "wlast is not on the last beat"
            done = [(start + size * i, b[0], b[1]) for i, b in enumerate(burst)]
            waiting.setdefault(owner, deque()).append((traffic.cycle + latency - 1, sequence, done))
            sequence += 1
        if taken or not offered:
            due = [i for i, bursts in waiting.items() if bursts and bursts[0][0] <= traffic.cycle]
            offered = bool(due) and response_go()
            if offered:
                chosen = interleave.choice(due) if interleave else min(due, key=lambda i: waiting[i][0][1])
                _, _, done = waiting[chosen].popleft()
                ctx.set(axi.bid, chosen)
                ctx.set(axi.bresp, SLVERR if _finish(memory, done, size) else OKAY)
                traffic.outstanding -= 1
            ctx.set(axi.bvalid, offered)
        aw_ready, w_ready = address_go(), data_go()
        ctx.set(axi.awready, aw_ready)
        ctx.set(axi.wready, w_ready)
