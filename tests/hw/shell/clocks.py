"""Simulations with several clocks."""

from amaranth import ClockDomain, Module
from amaranth.sim import Simulator

from ..simulate import WatchdogError

__all__ = ["run"]


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
