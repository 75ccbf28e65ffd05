"""Drives the queue bus as the register file does."""

from __future__ import annotations

from typing import Any

from acceltcp.abi.registers import QUEUE
from hw.csr.bus import queue_word

__all__ = ["disable_queue", "enable_queue", "ring_doorbell", "set_ring", "write_queue"]


async def write_queue(ctx: Any, bus: Any, queue: int, register: str, value: int) -> None:
    """One register write, in one cycle."""
    assert register in QUEUE.by_name
    ctx.set(bus.queue, queue)
    ctx.set(bus.word, queue_word(register))
    ctx.set(bus.data, value)
    ctx.set(bus.write, 1)
    await ctx.tick()
    ctx.set(bus.write, 0)


async def set_ring(ctx: Any, bus: Any, queue: int, ring: str, base: int, size_log2: int) -> None:
    """Base and size of one ring ("tx", "rx_free", "rx_completion", "event")."""
    await write_queue(ctx, bus, queue, f"{ring}_base_low", base & 0xFFFFFFFF)
    await write_queue(ctx, bus, queue, f"{ring}_base_high", base >> 32)
    await write_queue(ctx, bus, queue, f"{ring}_size", size_log2)


async def enable_queue(ctx: Any, bus: Any, queue: int) -> None:
    """The queue goes on."""
    ctx.set(bus.queue, queue)
    ctx.set(bus.enable, 1)
    await ctx.tick()
    ctx.set(bus.enable, 0)


async def disable_queue(ctx: Any, bus: Any, queue: int) -> None:
    """The queue goes off; engines must be held and idle."""
    ctx.set(bus.queue, queue)
    ctx.set(bus.disable, 1)
    await ctx.tick()
    ctx.set(bus.disable, 0)


async def ring_doorbell(ctx: Any, bus: Any, queue: int, register: str, index: int) -> None:
    """Index after the last entry, modulo 2**16."""
    await write_queue(ctx, bus, queue, register, index & 0xFFFF)
