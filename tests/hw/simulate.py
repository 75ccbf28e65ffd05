"""Helpers of the unit tests: run an Amaranth simulation, feed and drain streams.

Values on streams are plain integers (fast); `beats` and `packets` convert packets to and
from beats. Every run has a watchdog, so a hung handshake fails instead of waiting.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial

import pytest
from amaranth import ClockDomain, Module, Signal, Value
from amaranth.back import rtlil
from amaranth.lib import data
from amaranth.lib.wiring import In
from amaranth.sim import Simulator

from hw.stream.beat import BeatLayout

__all__ = ["Session", "Shared", "WatchdogError", "always", "beats", "collect", "converts", "feed", "packets", "run", "seeds", "seeds_and_sizes", "sometimes"]


class WatchdogError(AssertionError):
    """The simulation did not end in time."""


def run(dut, *testbenches, cycles: int = 10_000, vcd: str | None = None, background: Iterable = ()) -> None:
    """Simulate until every testbench has returned. Raises `WatchdogError` after `cycles`.

    background: endless testbenches (bus models, monitors), not waited for.
    """
    # A clock domain of our own, so that purely combinational blocks run too.
    top = Module()
    top.domains.sync = ClockDomain()
    top.submodules.dut = dut
    sim = Simulator(top)
    sim.add_clock(1e-6)
    left = len(testbenches)

    def wrap(testbench):
        async def wrapped(ctx):
            nonlocal left
            await testbench(ctx)
            left -= 1

        return wrapped

    async def watchdog(ctx):
        for _ in range(cycles):
            await ctx.tick()
            if not left:
                return
        raise WatchdogError(f"not finished after {cycles} cycles")

    for endless in background:
        sim.add_testbench(endless, background=True)
    for testbench in testbenches:
        sim.add_testbench(wrap(testbench))
    sim.add_testbench(watchdog)
    if vcd:
        with sim.write_vcd(vcd):
            sim.run()
    else:
        sim.run()


class Session:
    """A simulation that several scenarios use, each beginning where the one before has ended: what takes most of the time of
    a short one is to make and compile it.

    background: endless testbenches. An exception leaves the simulation as it was then; begin a new one.
    """

    def __init__(self, dut, *background) -> None:
        top = Module()
        top.domains.sync = ClockDomain()
        top.submodules.dut = dut
        self._sim = Simulator(top)
        self._sim.add_clock(1e-6)

        def wrap(testbench):
            async def wrapped(ctx):
                await testbench(ctx)

            return wrapped

        for endless in background:
            self._sim.add_testbench(wrap(endless), background=True)
        self._scenario = None
        self._cycles = 0
        self._sim.add_testbench(self._serve)
        self._sim.add_testbench(self._count, background=True)

    async def _serve(self, ctx) -> None:
        while True:
            if self._scenario is not None:
                await self._scenario(ctx)
                self._scenario = None
            await ctx.tick()

    async def _count(self, ctx) -> None:
        while True:
            await ctx.tick()
            self._cycles += 1

    def run(self, scenario, cycles: int = 10_000) -> None:
        """Simulate until it returns. Raises `WatchdogError` after `cycles`."""
        self._scenario, self._cycles = scenario, 0
        while self._scenario is not None:
            if self._cycles >= cycles:
                raise WatchdogError(f"not finished after {cycles} cycles")
            self._sim.advance()


class _Until:
    """Awaits a coroutine, and closes it in the middle once `over()` is true."""

    def __init__(self, coroutine, over: Callable[[], bool]) -> None:
        self._coroutine, self._over = coroutine, over

    def __await__(self):
        try:
            while not self._over():
                try:
                    trigger = self._coroutine.send(None)
                except StopIteration:
                    return
                yield trigger
        finally:
            self._coroutine.close()


class Shared:
    """One simulation in which many tests run, each as with `run`: the component is reset before, and its inputs have their
    initial values. Memories keep what they hold, as on a board, so the component must clear what it relies on.

    make: makes the component. After a test that fails, the next one gets a new component: read `dut` anew in every test.
    slots: testbenches and background testbenches of one test, at most.
    """

    def __init__(self, make: Callable[[], object], *, slots: int = 16) -> None:
        self._make, self._slots = make, slots
        self._dut = self._sim = None
        self._jobs: list = []
        self._next: list = []
        self._round = self._left = self._cycles = 0

    @property
    def dut(self):
        if self._dut is None:
            self._dut = self._make()
        return self._dut

    def _start(self) -> None:
        top = Module()
        top.domains.sync = domain = ClockDomain()
        top.submodules.dut = dut = self.dut
        self._reset, self._wake = domain.rst, Signal()
        self._inputs = []
        for _, member, value in dut.signature.flatten(dut):
            if member.flow == In and isinstance(signal := Value.cast(value), Signal):
                self._inputs.append(signal)
        self._sim = Simulator(top)
        self._sim.add_clock(1e-6)
        for number in range(self._slots):
            self._sim.add_testbench(partial(self._slot, number=number), background=True)
        self._sim.add_testbench(self._lead)

    async def _slot(self, ctx, number: int) -> None:
        while True:
            if number < len(self._jobs) and (job := self._jobs[number]):
                self._jobs[number] = None
                await _Until(job(ctx), partial(self._is_over, self._round))
            else:
                await ctx.changed(self._wake)

    def _is_over(self, number: int) -> bool:
        return self._round != number

    async def _lead(self, ctx) -> None:
        """Reset, and time for what is left of the test before to end; then wake the next test's testbenches."""
        while True:
            now = self._round
            ctx.set(self._reset, 1)
            await ctx.tick()
            await ctx.tick()
            for signal in self._inputs:
                ctx.set(signal, signal.init)
            await ctx.tick()
            ctx.set(self._reset, 0)
            self._jobs = self._next
            ctx.set(self._wake, ~ctx.get(self._wake) & 1)
            while self._round == now:
                await ctx.tick()
                self._cycles += 1

    def run(self, *testbenches, cycles: int = 10_000, background: Iterable = ()) -> None:
        """As `run`."""

        def counted(testbench):
            async def wrapped(ctx):
                await testbench(ctx)
                self._left -= 1

            return wrapped

        self._next = [*background, *map(counted, testbenches)]
        if len(self._next) > self._slots:
            raise ValueError(f"{len(self._next)} testbenches, at most {self._slots} expected")
        if self._sim is None:
            self._start()
        self._round += 1
        self._left, self._cycles = len(testbenches), 0
        try:
            while self._left:
                if self._cycles >= cycles:
                    raise WatchdogError(f"not finished after {cycles} cycles")
                self._sim.advance()
        except BaseException:
            self._dut = self._sim = None
            raise


def converts(component) -> None:
    """Fail unless the component can be made into a netlist, `always_ready` streams allowed.

    It is Amaranth's own netlist; that Yosys takes it too is what the build of the whole core
    shows, at a tenth of the time for all components one by one.
    """
    values = (Value.cast(value) for _, _, value in component.signature.flatten(component))
    assert "module" in rtlil.convert(component, ports=[v for v in values if isinstance(v, Signal)])


def seeds(count: int) -> list:
    """Seeds of a random test, for `parametrize`: the first one in every run, all others with the marker `long`."""
    return [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, count))]


def seeds_and_sizes(count: int, *narrow: tuple[int, int]) -> list:
    """(seed, bytes of the bus): seeds as of `seeds` with 64 bytes, and those given."""
    wide = (pytest.param(seed, 64, marks=pytest.mark.long) for seed in range(1, count))
    return [(0, 64), *wide, *narrow]


def always() -> bool:
    """A pattern without pauses."""
    return True


def sometimes(seed: int, probability: float = 0.5) -> Callable[[], bool]:
    """A pattern with random pauses."""
    rng = random.Random(seed)
    return lambda: rng.random() < probability


async def feed(ctx, stream, values: Iterable[int], go: Callable[[], bool] = always) -> None:
    """Put integers on a stream's payload, one transfer each, pausing when `go()` is false."""
    payload = Value.cast(stream.payload)
    for value in values:
        while not go():
            ctx.set(stream.valid, 0)
            await ctx.tick()
        ctx.set(payload, value)
        ctx.set(stream.valid, 1)
        await ctx.tick().until(stream.ready)
    ctx.set(stream.valid, 0)


async def collect(ctx, stream, count: int, go: Callable[[], bool] = always) -> list[int]:
    """Take `count` payloads off a stream as integers, not ready when `go()` is false."""
    payload = Value.cast(stream.payload)
    taken: list[int] = []
    while len(taken) < count:
        if not go():
            if not isinstance(stream.ready, int):
                ctx.set(stream.ready, 0)
            await ctx.tick()
            continue
        ctx.set(stream.ready, 1)
        valid, value = (await ctx.tick().sample(stream.valid, payload))[-2:]
        if valid:
            taken.append(value)
    ctx.set(stream.ready, 0)
    return taken


def beats(packet: bytes, width: int, err: bool = False) -> list[int]:
    """A packet as integers for a stream of `BeatLayout(width)`."""
    layout = BeatLayout(width)
    out = []
    for at in range(0, len(packet), width):
        part = packet[at : at + width]
        last = at + width >= len(packet)
        out.append(
            layout.const(
                {
                    "data": int.from_bytes(part, "little"),
                    "count": len(part),
                    "last": last,
                    "err": last and err,
                }
            )
            .as_value()
            .value
        )
    return out


def packets(values: Iterable[int], width: int) -> list[bytes]:
    """Whole packets from integers of `BeatLayout(width)`; checks the rules of `Beat`."""
    layout = BeatLayout(width)
    out, current = [], b""
    for value in values:
        beat = data.Const(layout, value)
        assert 1 <= beat.count <= width, f"count {beat.count} of {width}"
        assert beat.last or beat.count == width, "a beat before the last is not full"
        current += int(beat.data).to_bytes(width, "little")[: beat.count]
        if beat.last:
            out.append(current)
            current = b""
    assert not current, "the last packet has no last beat"
    return out
