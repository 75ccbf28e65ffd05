"""Simulations with several clocks."""

from amaranth import ClockDomain, Module, Signal, Value
from amaranth.sim import Simulator

from ..simulate import WatchdogError, always

__all__ = ["collect", "feed", "run"]


def run(dut, clocks, *testbenches, cycles=20_000, reset=None):
    """Simulate until every testbench has returned.

    clocks: domain -> period in ns; those of one period tick together. reset: domain -> signal that resets it.
    Raises `WatchdogError` after `cycles` of the first clock.
    """
    top = Module()
    for domain in clocks:
        clock = ClockDomain(domain)
        top.domains += clock
        if reset and domain in reset:
            top.d.comb += clock.rst.eq(reset[domain])
    top.submodules.dut = dut
    sim = Simulator(top)
    for domain, period in clocks.items():
        sim.add_clock(period * 1e-9, domain=domain)
    left = len(testbenches)

    def wrap(testbench):
        async def wrapped(ctx):
            nonlocal left
            await testbench(ctx)
            left -= 1

        return wrapped

    async def watchdog(ctx):
        for _ in range(cycles):
            await ctx.tick(next(iter(clocks)))
            if not left:
                return
        raise WatchdogError(f"not finished after {cycles} cycles")

    for testbench in testbenches:
        sim.add_testbench(wrap(testbench))
    sim.add_testbench(watchdog)
    sim.run()


async def feed(ctx, stream, values, domain, go=always):
    """As `simulate.feed`, in a domain; also where `ready` is constant."""
    payload = Value.cast(stream.payload)
    for value in values:
        while not go():
            ctx.set(stream.valid, 0)
            await ctx.tick(domain)
        ctx.set(payload, value)
        ctx.set(stream.valid, 1)
        ready = 0
        while not ready:
            ready = (await ctx.tick(domain).sample(stream.ready))[-1]
    ctx.set(stream.valid, 0)


async def collect(ctx, stream, domain, done, go=always):
    """Payloads until `done(payloads)`; each with the number of the cycle."""
    payload, taken, cycle = Value.cast(stream.payload), [], 0
    while not done(taken):
        if isinstance(stream.ready, Signal):
            ctx.set(stream.ready, go())
        valid, ready, value = (await ctx.tick(domain).sample(stream.valid, stream.ready, payload))[-3:]
        cycle += 1
        if valid and ready:
            taken.append((cycle, value))
    return taken
