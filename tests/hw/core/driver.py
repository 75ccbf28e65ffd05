"""A small host driver: the rings of `acceltcp.abi` in the simulated host memory.

It is written from the contract alone and shares no code with the production driver.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from cocotb.triggers import SimTimeoutError, with_timeout

from acceltcp.abi.fields import Message
from acceltcp.abi.messages import (
    COMMAND,
    EVENT,
    LISTEN_COMMAND,
    RX_COMPLETION,
    RX_FREE,
    SPLICE_EVENT,
    TX_DESCRIPTOR,
    CommandOpcode,
    EventType,
    ListenFlag,
    Status,
    TxOpcode,
)
from acceltcp.abi.registers import QUEUE, QueueState

__all__ = ["Listener", "Queue", "Received"]

_SPLICE_EVENTS = (EventType.SPLICE_SIDE, EventType.SPLICE_DONE)
"""Events that look like SPLICE_EVENT; their type stands in the first byte."""


@dataclass
class Received:
    """One RX completion, with the packet."""

    completion: dict[str, int]
    data: bytes
    address: int

    def __getattr__(self, name: str) -> int:
        try:
            return self.completion[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Listener:
    """What a LISTEN command says."""

    port: int
    address: int | None = None  # as a plain number; None is any
    ipv6: bool = False
    queue: int = 0
    mss: int = 1460
    window: int = 0xFFFF
    wscale: int = 7
    defer: bool = False
    ecn: bool = False
    paused: bool = False
    spread: bool = False
    index: int = field(default=-1, compare=False)

    @property
    def flags(self) -> ListenFlag:
        flags = ListenFlag(0)
        for flag, wanted in (
            (ListenFlag.IPV6, self.ipv6),
            (ListenFlag.ANY_ADDRESS, self.address is None),
            (ListenFlag.DEFER_ACCEPT, self.defer),
            (ListenFlag.ECN, self.ecn),
            (ListenFlag.PAUSED, self.paused),
            (ListenFlag.SPREAD, self.spread),
        ):
            if wanted:
                flags |= flag
        return flags

    def command(self, opcode: int = CommandOpcode.LISTEN, **changes: int) -> dict[str, int]:
        """Fields of the command; `changes` overrides any, to build bad ones."""
        address = (self.address or 0).to_bytes(16, "big")
        values: dict[str, int] = {
            "opcode": opcode,
            "address": int.from_bytes(address, "little"),
            "port": self.port,
            "flags": self.flags,
            "queue": self.queue,
            "mss": self.mss,
            "window": self.window,
            "wscale": self.wscale,
        }
        values.update(changes)
        return values


class Ring:
    """One ring: its memory and free-running indices."""

    def __init__(self, tb: Any, message: Message, log2: int) -> None:
        self.message, self.log2, self.entries = message, log2, 1 << log2
        self.memory = tb.memory
        self.base = self.memory.alloc(message.size << log2, align=64)
        self.clear()

    def clear(self) -> None:
        self.index = 0
        self.memory.write(self.base, bytes(self.message.size << self.log2))

    def put(self, **values: int) -> int:
        """Write the next entry; its index."""
        self.put_raw(self.message.pack(**values))
        return (self.index - 1) & 0xFFFF

    def put_raw(self, raw: bytes) -> None:
        slot = self.index & self.entries - 1
        self.memory.write(self.base + slot * self.message.size, raw)
        self.index = self.index + 1 & 0xFFFF

    def take(self) -> dict[str, int] | None:
        """The next entry that the NIC has written, if there is one."""
        slot = self.index & self.entries - 1
        phase = ~(self.index >> self.log2) & 1
        raw = self.memory.read(self.base + slot * self.message.size, self.message.size)
        if raw[-1] >> 7 != phase:
            return None
        message = SPLICE_EVENT if self.message is EVENT and raw[0] in _SPLICE_EVENTS else self.message
        for name, (at, bits) in message.positions.items():
            if name.startswith("_"):
                assert not int.from_bytes(raw, "little") >> at & (1 << bits) - 1, f"{name} is not zero"
        self.index = self.index + 1 & 0xFFFF
        return message.unpack(raw)


class Queue:
    """One host queue."""

    def __init__(self, tb: Any, number: int, *, rx: int = 5, completions: int = 6, tx: int = 4, events: int = 6):
        self.tb, self.number, self.memory = tb, number, tb.memory
        self.rx_free = Ring(tb, RX_FREE, rx)
        self.rx_completion = Ring(tb, RX_COMPLETION, completions)
        self.tx = Ring(tb, TX_DESCRIPTOR, tx)
        self.event = Ring(tb, EVENT, events)
        self.buffers: dict[int, tuple[int, int]] = {}  # tag -> address, length
        self.received: deque[Received] = deque()
        self.events: deque[dict[str, int]] = deque()
        self._tag = 0x1000_0000 * (number + 1)
        self.acknowledge = True  # ring the head doorbells after each poll

    # Set-up

    async def write(self, register: str, value: int) -> None:
        await self.tb.write("QUEUE", register, value, index=self.number)

    async def read(self, register: str) -> int:
        return await self.tb.read("QUEUE", register, index=self.number)

    async def set_up(self) -> None:
        """Write bases and sizes."""
        for name in ("rx_free", "rx_completion", "tx", "event"):
            ring: Ring = getattr(self, name)
            await self.write(f"{name}_base_low", ring.base & 0xFFFF_FFFF)
            await self.write(f"{name}_base_high", ring.base >> 32)
            await self.write(f"{name}_size", ring.log2)

    async def enable(self, buffers: int = 16, size: int = 2048) -> Queue:
        """Set up, enable, post buffers."""
        await self.set_up()
        await self.write("control", 1)
        await self.tb.until(self.has_state, QueueState.ENABLED)
        if buffers:
            await self.refill(buffers, size)
        return self

    async def state(self) -> dict[str, int]:
        return QUEUE["status"].decode(await self.read("status"))

    async def has_state(self, state: QueueState) -> bool:
        return (await self.state())["state"] == state

    async def disable(self) -> None:
        """Off, and wait until its memory is free."""
        await self.write("control", 0)

        async def off() -> bool:
            state = await self.state()
            return state["state"] == QueueState.DISABLED and bool(state["idle"])

        await self.tb.until(off)

    async def restart(self, buffers: int = 16, size: int = 2048) -> None:
        """After a disable or reset: everything from index 0 again."""
        for ring in (self.rx_free, self.rx_completion, self.tx, self.event):
            ring.clear()
        self.buffers.clear()
        self.received.clear()
        self.events.clear()
        await self.enable(buffers, size)

    # Receiving

    def post(self, size: int = 2048, *, offset: int = 0, address: int | None = None, length: int | None = None) -> int:
        """Put a buffer into the free ring (no doorbell); its tag."""
        if address is None:
            address = self.memory.alloc(size, align=64, offset=offset)
        self._tag += 1
        length = size if length is None else length
        self.buffers[self._tag] = (address, length)
        self.rx_free.put(address=address, length=length, tag=self._tag)
        return self._tag

    async def ring_rx(self, *, wait: bool = True) -> None:
        """Ring the doorbell; `wait` gives the NIC the time to fetch the descriptors."""
        await self.write("rx_free_tail", self.rx_free.index)
        if wait:
            await self.tb.rest(20)

    def poll_received(self) -> int:
        count = 0
        while (completion := self.rx_completion.take()) is not None:
            tag = completion["tag"]
            if tag == 0 and completion["status"] == Status.BAD_ADDRESS:
                # The descriptor itself could not be read, so its tag is not known.
                self.received.append(Received(completion, b"", 0))
                count += 1
                continue
            assert tag in self.buffers, f"completion for tag {tag:#x}, which is not with the NIC: {completion}"
            address, length = self.buffers.pop(tag)
            # A buffer refused for its length may lie anywhere and holds nothing.
            assert completion["length"] <= length, completion
            data = self.memory.read(address, completion["length"]) if completion["length"] else b""
            self.received.append(Received(completion, data, address))
            count += 1
        return count

    async def receive(self, count: int = 1, *, within_us: int = 40) -> list[Received]:
        """The next `count` completions."""
        await self._wait(lambda: len(self.received) >= count, f"{count} completions", within_us)
        return [self.received.popleft() for _ in range(count)]

    async def receive_one(self, **kwargs: int) -> Received:
        (received,) = await self.receive(1, **kwargs)
        return received

    async def refill(self, count: int, size: int = 2048) -> None:
        """Post buffers and ring."""
        for _ in range(count):
            self.post(size)
        await self.ring_rx()

    # Sending

    def send(
        self,
        frame: bytes,
        *,
        flags: int = 0,
        l3_offset: int = 0,
        l4_offset: int = 0,
        port: int = 0,
        offset: int = 0,
        **changes: int,
    ) -> int:
        """Put a frame into the TX ring (no doorbell); the descriptor's index."""
        address = self.memory.alloc(max(1, len(frame)), align=64, offset=offset)
        self.memory.write(address, frame)
        values: dict[str, int] = {
            "address": address,
            "length": len(frame),
            "opcode": TxOpcode.SEND,
            "flags": flags,
            "l3_offset": l3_offset,
            "l4_offset": l4_offset,
            "port": port,
        }
        values.update(changes)
        return self.tx.put(**values)

    def command_raw(self, raw: bytes, offset: int = 0, **changes: int) -> int:
        """Put a command into the TX ring (no doorbell)."""
        address = self.memory.alloc(len(raw), align=64, offset=offset)
        self.memory.write(address, raw)
        values: dict[str, int] = {"address": address, "length": COMMAND.size, "opcode": TxOpcode.COMMAND}
        values.update(changes)
        return self.tx.put(**values)

    async def ring_tx(self, index: int | None = None) -> None:
        await self.write("tx_tail", self.tx.index if index is None else index)

    async def run(self, values: dict[str, int], *, offset: int = 0, **changes: int) -> dict[str, int]:
        """Run one command and return its event."""
        self._tag += 1
        raw = LISTEN_COMMAND.pack(**{**values, "tag": self._tag})
        index = self.command_raw(raw, offset=offset, **changes)
        await self.ring_tx()
        event = await self.take_event()
        assert (event["index"], event["queue"]) == (index, self.number), event
        if event["type"] == EventType.COMMAND_DONE:
            assert event["tag"] == self._tag, event
        else:
            assert event["type"] == EventType.TX_ERROR, event
        return event

    async def listen(self, listener: Listener) -> Listener:
        """Run LISTEN, which must succeed; the listener with its table index."""
        event = await self.run(listener.command())
        assert event["status"] == Status.OK, event
        return replace(listener, index=event["value"])

    # Events

    def poll_events(self) -> int:
        count = 0
        while (event := self.event.take()) is not None:
            self.events.append(event)
            count += 1
        return count

    async def take_events(self, count: int = 1, *, within_us: int = 40) -> list[dict[str, int]]:
        await self._wait(lambda: len(self.events) >= count, f"{count} events", within_us)
        return [self.events.popleft() for _ in range(count)]

    async def take_event(self, **kwargs: int) -> dict[str, int]:
        (event,) = await self.take_events(1, **kwargs)
        return event

    # Common

    async def poll(self) -> bool:
        """Look at both rings and ring their head doorbells."""
        received, events = self.poll_received(), self.poll_events()
        if self.acknowledge:
            if received:
                await self.write("rx_completion_head", self.rx_completion.index)
            if events:
                await self.write("event_head", self.event.index)
        return bool(received or events)

    async def _wait(self, done, what: str, within_us: int) -> None:
        async def wait() -> None:
            while True:
                self.memory.changed.clear()
                await self.poll()
                if done():
                    return
                await self.memory.changed.wait()

        try:
            await with_timeout(wait(), within_us, "us")
        except SimTimeoutError:
            raise AssertionError(
                f"queue {self.number}: no {what} within {within_us} us; {len(self.received)} completions and "
                f"{len(self.events)} events are here, the last ones: "
                f"{[r.completion for r in self.received][-2:]} {list(self.events)[-3:]}"
            ) from None

    def assert_quiet(self) -> None:
        """Nothing unexpected has come."""
        self.poll_received()
        self.poll_events()
        assert not self.received, f"unexpected completions {[r.completion for r in self.received]}"
        assert not self.events, f"unexpected events {list(self.events)}"
