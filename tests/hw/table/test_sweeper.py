# amaranth: UnusedElaboratable=no
"""Sweeper: what a lap visits, when laps begin, and that free records are found, against sets of indices."""

import itertools
import random

import pytest

from hw.table.sweeper import GROUP, LAP_STEPS, Sweeper
from hw.tcp.flow import FlowInstall
from tests.hw.simulate import converts, run, seeds
from tests.hw.tcp.flow_bench import FlowBench

LATENCY = 5


class Bench:
    """A sweeper and its records. `go()` says whether a request is granted."""

    def __init__(self, depth=4 * GROUP, go=lambda: True):
        self.depth, self.go = depth, go
        self.dut = Sweeper(depth, LATENCY)
        self.used, self.reserved = set(), set()
        self.given = []
        self.visits = []  # (cycle, index), in laps
        self.searched = []  # indices, in searches
        self.cycle = self.steps = 0
        self._open = []

    def take(self):
        """Visits since the last call."""
        visits, self.visits = self.visits, []
        return [index for _, index in visits]

    async def tick(self, ctx, step=False, install=None, freed=None):
        """One cycle, with what happens in it besides visits."""
        dut = self.dut
        result = bool(self._open) and self._open[0][0] == self.cycle
        index = self._open.pop(0)[1] if result else 0
        give = result and ctx.get(dut.wanted) and index not in self.used | self.reserved
        if give:
            self.reserved.add(index)
            self.given.append(index)
        granted = self.go() and ctx.get(dut.request)
        ctx.set(dut.grant, granted)
        ctx.set(dut.result, result)
        ctx.set(dut.used, result and index in self.used)
        ctx.set(dut.given, give)
        ctx.set(dut.step, step)
        ctx.set(dut.install, install is not None)
        ctx.set(dut.install_index, install or 0)
        ctx.set(dut.freed, freed is not None)
        if install is not None:
            self.used.add(install)
            self.reserved.discard(install)
        if freed is not None:
            self.used.discard(freed)
            self.reserved.discard(freed)
        if granted and not ctx.get(dut.clear):
            visited = ctx.get(dut.index)
            self._open.append((self.cycle + LATENCY, visited))
            if ctx.get(dut.whole):
                self.visits.append((self.cycle, visited))
            else:
                self.searched.append(visited)
        self.cycle += 1
        self.steps += step
        await ctx.tick()

    async def idle(self, ctx, cycles):
        for _ in range(cycles):
            await self.tick(ctx)

    async def settle(self, ctx):
        """Until no lap is under way or due."""
        for _ in range(20 * self.depth):
            await self.tick(ctx)
            if not ctx.get(self.dut.busy):
                return
        raise AssertionError("laps do not end")

    async def lap(self, ctx):
        """Time for another lap passes; what it visits."""
        await self.settle(ctx)
        self.take()
        for _ in range(LAP_STEPS):
            await self.tick(ctx, step=True)
        await self.settle(ctx)
        return self.take()

    def run(self, scenario, cycles=60_000):
        async def bench(ctx):
            for _ in range(5 * self.depth):
                if ctx.get(self.dut.ready):
                    break
                await self.tick(ctx)
            # The clock begins with a lap that is due at once, over nothing.
            await self.settle(ctx)
            await scenario(ctx)

        run(self.dut, bench, cycles=cycles)


def members(*groups):
    return [index for group in groups for index in range(GROUP * group, GROUP * (group + 1))]


@pytest.mark.parametrize("depth", (GROUP, 2 * GROUP, 8 * GROUP))
@pytest.mark.parametrize("pauses", (False, True))
def test_clear_at_reset(depth, pauses):
    """Every record is cleared once, before anything else is asked for."""
    rng = random.Random(depth)
    dut = Sweeper(depth, LATENCY)
    cleared = []

    async def bench(ctx):
        cycles = 0
        while not ctx.get(dut.ready):
            grant = not pauses or rng.random() < 0.5
            ctx.set(dut.grant, grant)
            if ctx.get(dut.request) and grant:
                assert ctx.get(dut.clear)
                cleared.append(ctx.get(dut.index))
            assert ctx.get(dut.busy)
            await ctx.tick()
            cycles += 1
            assert cycles < 4 * depth
        assert pauses or cycles == depth + depth // GROUP
        # From now on there are only visits, and none of what is known to be empty.
        for _ in range(100):
            assert not ctx.get(dut.request) and not ctx.get(dut.clear)
            await ctx.tick()

    run(dut, bench)
    assert cleared == list(range(depth))


@pytest.mark.parametrize("pauses", (False, True))
def test_a_lap_visits_what_is_in_use(pauses):
    """Groups in use, every index of them once and in order; no others."""
    rng = random.Random(1)
    bench = Bench(go=(lambda: rng.random() < 0.4) if pauses else lambda: True)

    async def scenario(ctx):
        assert await bench.lap(ctx) == []
        await bench.tick(ctx, install=GROUP)
        assert await bench.lap(ctx) == members(1)
        await bench.tick(ctx, install=4 * GROUP - 1)
        await bench.tick(ctx, install=0)
        assert await bench.lap(ctx) == members(0, 1, 3)
        assert await bench.lap(ctx) == members(0, 1, 3)
        # One that has become empty is visited once more.
        await bench.tick(ctx, freed=GROUP)
        assert await bench.lap(ctx) == members(0, 1, 3)
        assert await bench.lap(ctx) == members(0, 3)

    bench.run(scenario)


def test_one_group():
    bench = Bench(GROUP)

    async def scenario(ctx):
        assert await bench.lap(ctx) == []
        await bench.tick(ctx, install=17)
        assert await bench.lap(ctx) == members(0)
        await bench.tick(ctx, freed=17)
        assert await bench.lap(ctx) == members(0)
        assert await bench.lap(ctx) == []

    bench.run(scenario)


@pytest.mark.parametrize("period, gap", ((150, LAP_STEPS), (60, None)))
def test_no_lap_before_its_time(period, gap):
    """Eight steps from the beginning of one to that of the next, however long it took; what takes longer than
    that is followed by the next at once."""
    rng = random.Random(period)
    bench = Bench(go=lambda: rng.random() < 0.3)
    begun = []  # (steps, cycle) at the first visit of a lap

    async def scenario(ctx):
        for index in (0, 70, 200):
            await bench.tick(ctx, install=index)
        for cycle in range(8000):
            before = len(bench.visits)
            await bench.tick(ctx, step=cycle % period == 0)
            if len(bench.visits) > before and bench.visits[-1][1] == 0:
                begun.append((bench.steps, bench.cycle))

    bench.run(scenario)
    assert len(begun) >= 6
    for (steps, cycle), (later_steps, later_cycle) in itertools.pairwise(begun):
        if gap:
            assert later_steps - steps == gap
        else:
            # 192 visits at 0.3 a cycle.
            assert 500 < later_cycle - cycle < 900 and later_steps - steps >= LAP_STEPS


def test_cost_of_a_lap():
    """64 visits and 10 cycles for a group in use, 2 cycles for one that is not."""
    bench = Bench(8 * GROUP)

    async def scenario(ctx):
        await bench.tick(ctx, install=0)
        await bench.tick(ctx, install=GROUP)
        await bench.tick(ctx, install=5 * GROUP)
        await bench.settle(ctx)
        bench.visits.clear()
        for _ in range(LAP_STEPS):
            await bench.tick(ctx, step=True)
        await bench.settle(ctx)
        first = {index // GROUP: cycle for cycle, index in bench.visits if index % GROUP == 0}
        assert [index for _, index in bench.visits] == members(0, 1, 5)
        assert first[1] - first[0] == GROUP + 5 + LATENCY
        assert first[5] - first[1] == GROUP + 5 + LATENCY + 3 * 2

    bench.run(scenario)


def test_nothing_in_use_costs_nothing():
    """A lap that is due while every record is free is over at once: after a reset, and when the last one has gone."""
    bench = Bench(8 * GROUP)

    async def cost(ctx):
        """Busy cycles of the next lap that is due."""
        await bench.settle(ctx)
        cycles = 0
        for cycle in range(LAP_STEPS + 3 * bench.depth):
            await bench.tick(ctx, step=cycle < LAP_STEPS)
            cycles += ctx.get(bench.dut.busy)
        return cycles

    async def scenario(ctx):
        assert await cost(ctx) == 1
        await bench.tick(ctx, install=3 * GROUP)
        assert await cost(ctx) > GROUP
        await bench.tick(ctx, freed=3 * GROUP)
        assert await cost(ctx) > GROUP  # finds that it is the last
        assert 2 * 8 <= await cost(ctx) < GROUP  # finds nothing
        assert await cost(ctx) == 1
        assert bench.take() == members(3, 3)
        await bench.tick(ctx, install=5 * GROUP)
        assert await bench.lap(ctx) == members(5)

    bench.run(scenario)


def test_free_records_are_given_once_and_at_once():
    """While they are wanted all groups are searched without waiting for a timer step."""
    bench = Bench()

    async def scenario(ctx):
        for index in (3, 100, 101, 255):
            await bench.tick(ctx, install=index)
        ctx.set(bench.dut.wanted, 1)
        await bench.settle(ctx)
        free = [index for index in range(bench.depth) if index not in (3, 100, 101, 255)]
        assert bench.given == free
        # All around in vain: that is the end of it until one is freed.
        assert ctx.get(bench.dut.exhausted)
        bench.searched.clear()
        await bench.idle(ctx, 500)
        assert bench.searched == [] and bench.visits == []
        await bench.tick(ctx, freed=101)
        assert not ctx.get(bench.dut.exhausted)
        await bench.settle(ctx)
        assert bench.given == [*free, 101] and ctx.get(bench.dut.exhausted)

    bench.run(scenario)


@pytest.mark.parametrize("at", range(0, 310, 30))
def test_a_record_freed_during_a_lap_in_vain_is_found(at):
    """A lap that finds nothing free must not keep the next from finding what came free behind it."""
    bench = Bench()

    async def scenario(ctx):
        bench.reserved = set(range(bench.depth)) - {5}
        ctx.set(bench.dut.wanted, 1)
        await bench.settle(ctx)
        assert bench.given == [5]
        # The lap after this one finds nothing.
        await bench.tick(ctx, freed=5)
        await bench.idle(ctx, 320 + at)
        await bench.tick(ctx, freed=7)
        await bench.settle(ctx)
        assert bench.given == [5, 5, 7]

    bench.run(scenario)


def test_enough_free_records():
    """Once no more are wanted, the search stops; the next one goes on where it stopped."""
    bench = Bench()

    async def scenario(ctx):
        ctx.set(bench.dut.wanted, 1)
        for _ in range(300):
            await bench.tick(ctx)
            if len(bench.given) >= 10:
                break
        ctx.set(bench.dut.wanted, 0)
        await bench.settle(ctx)
        assert bench.searched == members(0) and 10 <= len(bench.given) <= 10 + LATENCY
        await bench.idle(ctx, 300)
        assert bench.searched == members(0) and bench.visits == []
        ctx.set(bench.dut.wanted, 1)
        while len(bench.given) < 70:
            await bench.tick(ctx)
            assert bench.cycle < 3000
        assert bench.given == members(0, 1)[: len(bench.given)] and set(bench.searched) <= set(members(0, 1))

    bench.run(scenario)


def test_a_search_and_a_lap_take_turns():
    """Neither waits for the other's end."""
    bench = Bench(8 * GROUP)

    async def scenario(ctx):
        for index in range(bench.depth - 1):
            await bench.tick(ctx, install=index)
        await bench.settle(ctx)
        bench.take()
        ctx.set(bench.dut.wanted, 1)
        for _ in range(LAP_STEPS):
            await bench.tick(ctx, step=True)
        for _ in range(5 * (GROUP + 10)):
            await bench.tick(ctx)
        assert {bench.visits[k][1] // GROUP for k in range(len(bench.visits))} >= {0, 1}
        assert {index // GROUP for index in bench.searched} >= {0, 1}
        await bench.settle(ctx)
        assert bench.take() == members(*range(8)) and bench.given == [bench.depth - 1]

    bench.run(scenario)


def test_what_is_put_off_is_looked_at_again_soon():
    bench = Bench()

    async def scenario(ctx):
        await bench.tick(ctx, install=0)
        assert await bench.lap(ctx) == members(0)
        ctx.set(bench.dut.put_off, 1)
        await bench.tick(ctx)
        ctx.set(bench.dut.put_off, 0)
        for step, visited in enumerate(([], members(0), *[[]] * (LAP_STEPS - 1), members(0)), 1):
            await bench.tick(ctx, step=True)
            await bench.settle(ctx)
            assert bench.take() == visited, step

    bench.run(scenario)


@pytest.mark.parametrize("at", range(0, 76, 5))
def test_a_record_that_comes_into_use_during_the_visit_keeps_its_group(at):
    """At any moment of the visit of an otherwise empty group."""
    bench = Bench()

    async def scenario(ctx):
        await bench.tick(ctx, install=GROUP + 1)
        await bench.lap(ctx)
        await bench.tick(ctx, freed=GROUP + 1)
        for _ in range(LAP_STEPS):
            await bench.tick(ctx, step=True)
        bench.take()
        while not bench.visits:
            await bench.tick(ctx)
            assert bench.cycle < 3000
        await bench.idle(ctx, at)
        # Mostly one that this lap has passed already.
        await bench.tick(ctx, install=GROUP)
        assert await bench.lap(ctx) == members(1)

    bench.run(scenario)


def test_probe():
    """Whether a group may hold anything, a cycle later, while laps go on."""
    bench = Bench()

    async def scenario(ctx):
        for index in (64, 130):
            await bench.tick(ctx, install=index)
        for group in (0, 1, 2, 3, 1, 0):
            ctx.set(bench.dut.probe, group)
            await bench.tick(ctx, step=True)
            assert ctx.get(bench.dut.probe_used) == (group in (1, 2))
        await bench.tick(ctx, freed=64)
        await bench.lap(ctx)
        for group in range(4):
            ctx.set(bench.dut.probe, group)
            await bench.tick(ctx)
            assert ctx.get(bench.dut.probe_used) == (group == 2)

    bench.run(scenario)


@pytest.mark.parametrize("seed", seeds(3))
def test_random(seed):
    """Each lap visits every record that is in use all the while, none twice; what is free is found in the end."""
    rng = random.Random(seed)
    bench = Bench(3 * GROUP, go=lambda: rng.random() < 0.7)
    laps = []  # (in use all the while, visited)

    async def scenario(ctx):
        await bench.tick(ctx, install=0)
        bench.take()
        whole = None  # in use since before the present lap; None: it began before we looked
        for _ in range(6000):
            install = freed = None
            if bench.reserved and rng.random() < 0.02:
                install = rng.choice(sorted(bench.reserved))
            elif rng.random() < 0.02:
                freed = rng.choice([*sorted(bench.used - {0}), None])
            ctx.set(bench.dut.wanted, len(bench.reserved) < 20)
            before = set(bench.used)
            await bench.tick(ctx, step=rng.random() < 0.01, install=install, freed=freed)
            if bench.visits and bench.visits[-1][1] == 0 and len(bench.visits) > 1:
                *visited, zero = bench.take()
                if whole is not None:
                    laps.append((whole, visited))
                bench.visits.append((bench.cycle, zero))
                whole = before
            elif whole is not None:
                whole &= bench.used
        # Let it have them all.
        ctx.set(bench.dut.wanted, 1)
        await bench.settle(ctx)
        assert bench.used | bench.reserved == set(range(bench.depth))

    bench.run(scenario)
    assert len(laps) > 3
    for whole, visited in laps:
        assert visited == sorted(set(visited)), visited
        assert whole <= set(visited), sorted(whole - set(visited))


def test_the_engine_hands_out_each_index_once():
    """All 512 of a teardown engine, then none; one that is given back comes again, whenever that happens."""
    bench = FlowBench()
    dut = bench.dut

    async def scenario(ctx, bench):
        async def take(cycles):
            ctx.set(dut.free.ready, 1)
            taken = []
            for _ in range(cycles):
                _, _, valid, index = await ctx.tick().sample(dut.free.valid, dut.free.p.index)
                if valid:
                    taken.append(index)
            ctx.set(dut.free.ready, 0)
            return taken

        taken = await take(2500)
        assert sorted(taken) == list(range(bench.config.flows))
        assert await take(1000) == []
        # The groups that are empty are looked at again at once.
        for index in (5, 511):
            await bench.put(ctx, dut.installs, FlowInstall(bench.config).const({"index": index}).as_value().value)
            assert await take(1000) == [index]
        assert await take(1000) == []

    bench.run(scenario)


def test_converts():
    converts(Sweeper(GROUP, LATENCY))
    converts(Sweeper(512, LATENCY))
