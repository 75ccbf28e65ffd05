"""The test bench of the whole core: clocks, buses, MACs, host memory, registers.

Every cocotb test makes one `TB`, which resets the core. Memories of the core keep what
earlier tests left in them, as on a real board.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge, SimTimeoutError, Timer, with_timeout
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from acceltcp.abi.registers import COUNTER_BASE, COUNTERS, block
from hw.config import NicConfig

from .driver import Listener, Queue
from .frames import MACS, Client, assert_frames_equal, assert_new, syn_ack
from .mac import MacSink, MacSource
from .memory import NS_PER_CYCLE, AxiMemory, AxiRules, HostMemory

__all__ = ["MACS", "SECRET", "TB", "core_test"]

SECRET = bytes(range(0x10, 0x20))
MEMORY_BASE = 0x12_3456_0000
MEMORY_BYTES = 8 << 20

COUNTER_NAMES = [counter.name for counter in COUNTERS]


def core_test(timeout_us: int = 1000, **options: Any):
    """`cocotb.test` with the watchdog that every test has."""
    return cocotb.test(timeout_time=timeout_us, timeout_unit="us", **options)


class TB:
    """Use: `tb = await TB.start(dut)`.

    config: the build's `NicConfig`; rng: seeded from cocotb's seed.
    """

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.config = NicConfig(**json.loads(os.environ["ACCELTCP_CORE_CONFIG"]))
        # cocotb seeds `random` anew for each test and prints the seed of the run.
        self.seed = random.getrandbits(32)
        self.rng = random.Random(self.seed)
        dut._log.info("test bench seed %#x", self.seed)
        for name in ("s_axil", "m_axi"):
            logging.getLogger(f"cocotb.{dut._name}.{name}").setLevel(logging.WARNING)
        clock, reset = dut.clk, dut.rst
        dut.tick.value = 0
        dut.irq_ready.value = 1
        reset.value = 1
        cocotb.start_soon(Clock(clock, NS_PER_CYCLE, unit="ns").start())
        self.axil = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), clock, reset)
        self.memory = HostMemory(MEMORY_BASE, MEMORY_BYTES)
        self.bus = AxiMemory(dut, self.memory, "m_axi", clock, reset, self.rng)
        self.bus.latency = lambda: self.rng.randrange(4, 40)
        self.rx = [
            MacSource(dut, port, self.config.width, clock, self.rng) for port in range(self.config.ports)
        ]
        self.tx = [MacSink(dut, port, self.config.width, clock, reset) for port in range(self.config.ports)]
        self.rules: AxiRules | None = None
        self.interrupts: list[int] = []
        self.queues: dict[int, Queue] = {}
        cocotb.start_soon(self._watch_interrupts())

    @classmethod
    async def start(
        cls, dut: Any, *, queues: int = 1, rules: bool = False, secret: bytes | None = SECRET, **queue_options: Any
    ) -> TB:
        """Reset the core, set MAC addresses and the secret, enable `queues` and receiving."""
        tb = cls(dut)
        if rules:
            tb.rules = AxiRules(dut, "m_axi", dut.clk, dut.rst)
        await tb.reset()
        await tb.set_addresses()
        if secret is not None:
            await tb.set_secret(secret)
        for number in range(queues):
            await tb.queue(number, **queue_options)
        await tb.write("CONTROL", "control", 1)
        return tb

    async def reset(self, cycles: int = 8) -> None:
        """Reset the core together with its bus."""
        self.dut.rst.value = 1
        await self.cycles(cycles)
        self.bus.restart()
        self.dut.rst.value = 0
        await self.cycles(4)

    async def cycles(self, count: int) -> None:
        await ClockCycles(self.dut.clk, count)

    async def rest(self, cycles: int = 100) -> None:
        """Wait until `busy` has been low, and the memory idle, for a while."""

        async def at_rest() -> bool:
            for _ in range(cycles // 10 + 1):
                if self.dut.busy.value or not self.bus.idle:
                    return False
                await Timer(10 * NS_PER_CYCLE, "ns")
            return True

        await self.until(at_rest)

    async def settle(self) -> None:
        """Let everything sent so far arrive, and everything in flight end."""
        for source in self.rx:
            await source.wait()
        await self.rest()

    async def until(self, condition: Callable[..., Awaitable[bool]], *arguments: Any, within_us: int = 100) -> None:
        """Poll until an asynchronous condition holds."""

        async def wait() -> None:
            while not await condition(*arguments):
                await Timer(8 * NS_PER_CYCLE, "ns")

        try:
            await with_timeout(wait(), within_us, "us")
        except SimTimeoutError:
            name = getattr(condition, "__name__", condition)
            raise AssertionError(f"not {name}{arguments} within {within_us} us") from None

    # Registers

    async def read_address(self, address: int) -> int:
        return int.from_bytes((await self.axil.read(address, 4)).data, "little")

    async def write_address(self, address: int, value: int) -> None:
        await self.axil.write(address, value.to_bytes(4, "little"))

    async def read(self, block_name: str, register: str, index: int = 0) -> int:
        return await self.read_address(block(block_name).address(register, index))

    async def read_fields(self, block_name: str, register: str, index: int = 0) -> dict[str, int]:
        return block(block_name)[register].decode(await self.read(block_name, register, index))

    async def write(self, block_name: str, register: str, value: int, index: int = 0) -> None:
        await self.write_address(block(block_name).address(register, index), value)

    async def set_addresses(self) -> None:
        for port in range(self.config.ports):
            await self.write("PORT", "mac_low", MACS[port] & 0xFFFF_FFFF, port)
            await self.write("PORT", "mac_high", MACS[port] >> 32, port)

    async def set_secret(self, secret: bytes, *, now: bool = True) -> None:
        for word in range(4):
            value = int.from_bytes(secret[4 * word : 4 * word + 4], "little")
            await self.write("SECRET", f"word{word}", value)
        await self.write("SECRET", "commit", int(now))

    async def set_rss(self, key: bytes, entries: list[int], types: int = 0) -> None:
        """Write the key and the indirection table; then the types."""
        await self.write("RSS", "control", 0)
        for word in range(len(key) // 4):
            await self.write("RSS", f"key{word}", int.from_bytes(key[4 * word : 4 * word + 4], "little"))
        for index, queue in enumerate(entries):
            await self.write("RSS", "entry", block("RSS")["entry"].encode(index=index, queue=queue))
        await self.write("RSS", "control", types)

    async def queue(self, number: int, *, buffers: int = 16, size: int = 2048, **sizes: int) -> Queue:
        """Make and enable a queue."""
        self.queues[number] = queue = Queue(self, number, **sizes)
        return await queue.enable(buffers, size)

    async def listen(self, listener: Listener | None = None) -> Listener:
        """Run LISTEN on queue 0; by default for any address, port 80, queue 0."""
        return await self.queues[0].listen(listener or Listener(80))

    # Time

    async def tick(self, count: int = 1) -> None:
        """Let `count` ticks pass."""
        edge = RisingEdge(self.dut.clk)
        for _ in range(count):
            self.dut.tick.value = 1
            await edge
            self.dut.tick.value = 0
            await edge
        await self.cycles(4)

    # Counters

    async def counters(self, *names: str) -> dict[str, int]:
        """A snapshot: all counters, or the named ones."""
        await self.write("CONTROL", "snapshot", 1)

        async def taken() -> bool:
            return not (await self.read_fields("CONTROL", "status"))["snapshot_busy"]

        await self.until(taken)
        values = {}
        for name in names or COUNTER_NAMES:
            raw = await self.axil.read(COUNTER_BASE + 8 * COUNTER_NAMES.index(name), 8)
            values[name] = int.from_bytes(raw.data, "little")
        return values

    async def changes(self, before: dict[str, int]) -> dict[str, int]:
        """Counters that moved since `before`, once everything has settled."""
        await self.settle()
        after = await self.counters(*before)
        return {name: after[name] - before[name] for name in before if after[name] != before[name]}

    # Wire

    async def frame(self, port: int = 0, *, within_us: int = 40) -> bytes:
        """The next frame that the NIC sends."""
        sink = self.tx[port]

        async def wait() -> None:
            while not sink.frames:
                sink.arrived.clear()
                await sink.arrived.wait()

        try:
            await with_timeout(wait(), within_us, "us")
        except SimTimeoutError:
            raise AssertionError(f"port {port}: no frame was sent within {within_us} us") from None
        return sink.frames.popleft()

    async def frames(self, count: int, port: int = 0, *, within_us: int = 40) -> list[bytes]:
        return [await self.frame(port, within_us=within_us) for _ in range(count)]

    def assert_nothing_sent(self) -> None:
        for port, sink in enumerate(self.tx):
            assert not sink.frames, f"port {port}: unexpected frames {[f.hex() for f in sink.frames]}"
            assert not sink.partial, f"port {port}: half a frame"

    async def end(self) -> None:
        """Everything has come to rest and nothing unexpected is left over."""
        await self.settle()
        self.assert_nothing_sent()
        for queue in self.queues.values():
            queue.assert_quiet()

    # Connections

    async def clocks(self) -> tuple[int, int]:
        """Current epoch and timestamp clock; they move with `tick` only."""
        return await self.read("TIME", "epoch"), await self.read("TIME", "ts_clock")

    async def open(self, client: Client, listener: Listener, *, port: int = 0, secret: bytes = SECRET) -> bytes:
        """Send a SYN and check the answer byte for byte; the answer."""
        syn = client.syn()
        epoch, ts_clock = await self.clocks()
        self.rx[port].send(syn)
        answer = await self.frame(port)
        expected = syn_ack(syn, listener, secret=secret, epoch=epoch, ts_clock=ts_clock)
        assert_frames_equal(answer, expected)
        return answer

    async def alive(self, listener: Listener) -> None:
        """A good client is still served: SYN-ACK, and its first data come as NEW."""
        queue = self.queues[listener.queue]
        stray = self.rng.choice(([("MSS", 1400)], [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (5, 0))]))
        client = Client(
            self.rng.randrange(1024, 65536), iss=self.rng.getrandbits(32), server_port=listener.port, options=stray
        )
        answer = await self.open(client, listener)
        segment = client.ack(answer, data=b"alive")
        self.rx[0].send(segment)
        assert_new(await queue.receive_one(), client.syn(), listener, segment)
        await queue.refill(1)

    # Interrupts

    async def _watch_interrupts(self) -> None:
        edge, rise = RisingEdge(self.dut.clk), RisingEdge(self.dut.irq_valid)
        while True:
            await edge
            if self.dut.irq_valid.value and not self.dut.rst.value:
                if self.dut.irq_ready.value:
                    self.interrupts.append(int(self.dut.irq_vector.value))
            else:
                await rise
