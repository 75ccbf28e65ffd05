"""What the tests of the receive DMA, rings and interrupts share."""

from __future__ import annotations

from typing import Any

from amaranth.lib import data

from acceltcp.abi.registers import QUEUE
from hw.csr.bus import queue_word

__all__ = ["count_into", "enable", "strobes", "write"]


async def write(ctx: Any, bus: Any, queue: int, register: str, value: int) -> None:
    """One register write on the queue bus, one cycle."""
    ctx.set(bus.queue, queue)
    ctx.set(bus.word, queue_word(register))
    ctx.set(bus.data, value)
    ctx.set(bus.write, 1)
    await ctx.tick()
    ctx.set(bus.write, 0)


async def enable(ctx: Any, bus: Any, queue: int, **registers: int) -> None:
    """Write registers of a queue, bases as `x_base`, and switch it on."""
    for name, value in registers.items():
        if name in QUEUE.by_name:
            await write(ctx, bus, queue, name, value)
        else:
            await write(ctx, bus, queue, f"{name}_low", value & 0xFFFFFFFF)
            await write(ctx, bus, queue, f"{name}_high", value >> 32)
    ctx.set(bus.queue, queue)
    ctx.set(bus.enable, 1)
    await ctx.tick()
    ctx.set(bus.enable, 0)


def strobes(signal: Any, log: list[Any]) -> Any:
    """A background testbench that keeps what a `{valid, ...}` struct says in `log`.

    Each entry is (cycle, values of the other fields in order).
    """
    names = [name for name, _ in data.Layout.cast(signal.shape()) if name != "valid"]

    async def watch(ctx: Any) -> None:
        cycle = 0
        sampled = [signal.valid, *(signal[name] for name in names)]
        async for _, _, valid, *values in ctx.tick().sample(*sampled):
            cycle += 1
            if valid:
                log.append((cycle, *values))

    return watch


def count_into(dut: Any, totals: dict[str, int]) -> Any:
    """A background testbench that adds the counter strobes of a component up."""

    async def watch(ctx: Any) -> None:
        names = [name for name, _ in dut.counts.shape()]
        async for _, _, *values in ctx.tick().sample(*(dut.counts[name] for name in names)):
            for name, value in zip(names, values, strict=True):
                totals[name] = totals.get(name, 0) + value

    return watch
