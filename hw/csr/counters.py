"""All event counters: 64 bits each, with an atomic snapshot.

Each counter has a small accumulator that takes its strobe every cycle. A walker visits one
accumulator per cycle, adds it to the counter's 64-bit total in a memory and restarts it. An
accumulator is wide enough for its largest strobe in every cycle between two visits, so
nothing is ever lost. Totals wrap at 2**64.

Snapshot: at one clock edge all accumulators are copied; during the next round of the walker
`total + copy` goes to a second memory, which is what the host reads. Thus all values are
of the same edge: everything counted by strobes in the cycles before it. A snapshot asked for
during another one is taken as soon as that one ends.

Latency: a snapshot takes 6 cycles more than there are counters. Reading takes 1 cycle. Throughput:
every counter, every cycle, its full width. Reset clears all counters: the first round after it
ignores the old totals and takes a snapshot, so that the snapshot reads zero too.
"""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out, Signature
from amaranth.utils import ceil_log2

from acceltcp.abi.registers import COUNTERS

__all__ = ["CounterPort", "Counters", "increments_layout"]

_COUNT = len(COUNTERS)
# A visit comes every _COUNT cycles, or one later when a snapshot is captured in between.
_VISIT_BITS = ceil_log2(_COUNT + 2)
_INDEX_BITS = ceil_log2(_COUNT)


def increments_layout(config):
    """One field per counter, named as in `COUNTERS`: what to add in this cycle.

    With two ports two strobes of one counter add up, hence one bit more.
    """
    extra = config.ports - 1
    return data.StructLayout({counter.name: counter.width + extra for counter in COUNTERS})


class CounterPort(Signature):
    """Register file to `Counters`, from the register file's side."""

    def __init__(self):
        super().__init__(
            {
                "snapshot": Out(1),  # strobe
                "busy": In(1),  # a snapshot is being taken
                "address": Out(_INDEX_BITS + 1),  # counter, and half in the lowest bit
                "data": In(32),  # one cycle after `address`
            }
        )


class Counters(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    config : NicConfig
        For the number of ports.

    Members
    -------
    i : In(increments_layout(config))
        What to add, every cycle.
    port : In(CounterPort())
        Snapshot and reading.
    """

    def __init__(self, config):
        self._increments = increments_layout(config)
        super().__init__({"i": In(self._increments), "port": In(CounterPort())})

    def elaborate(self, platform):
        m = Module()
        m.submodules.totals = totals = memory.Memory(shape=64, depth=1 << _INDEX_BITS, init=[])
        m.submodules.snapshot = snapshot = memory.Memory(shape=64, depth=1 << _INDEX_BITS, init=[])
        total_read, total_write = totals.read_port(), totals.write_port()
        snapshot_read, snapshot_write = snapshot.read_port(), snapshot.write_port()

        index = Signal(_INDEX_BITS)
        fresh = Signal(init=1)  # first round after reset: old totals count as zero
        asked = Signal(init=1)
        capturing = Signal()  # this cycle's closing edge is the snapshot
        left = Signal(range(_COUNT + 1))  # visits until the snapshot is whole

        # Stage 1: accumulate; visit one. No visit while capturing: that accumulator would be
        # both in its total and in its copy.
        visited = Signal(16 + 1 + _VISIT_BITS)
        copied = Signal.like(visited)
        accumulators, copies = [], []
        m.d.comb += capturing.eq(asked & (left == 0))
        for number, counter in enumerate(COUNTERS):
            strobe = self.i[counter.name]
            accumulator = Signal(len(strobe) + _VISIT_BITS, name=f"sum_{counter.name}")
            copy = Signal.like(accumulator, name=f"copy_{counter.name}", reset_less=True)
            visit = (index == number) & ~capturing
            m.d.sync += accumulator.eq(Mux(visit, 0, accumulator) + strobe)
            with m.If(capturing):
                m.d.sync += copy.eq(accumulator)
            accumulators.append(accumulator)
            copies.append(copy)
        m.d.sync += [visited.eq(Array(accumulators)[index]), copied.eq(Array(copies)[index])]
        with m.If(self.port.snapshot):
            m.d.sync += asked.eq(1)
        with m.Elif(capturing):
            m.d.sync += asked.eq(0)
        with m.If(capturing):
            m.d.sync += left.eq(_COUNT)
        with m.Else():
            m.d.sync += index.eq(index + 1)
            with m.If(index == _COUNT - 1):
                m.d.sync += index.eq(0)
            with m.If(left != 0):
                m.d.sync += left.eq(left - 1)
                with m.If(left == 1):
                    m.d.sync += fresh.eq(0)

        s1 = Signal(data.StructLayout({"valid": 1, "keep": 1, "fresh": 1, "index": _INDEX_BITS}))
        m.d.comb += total_read.addr.eq(index)
        m.d.sync += [
            s1.valid.eq(~capturing),
            s1.keep.eq(left != 0),
            s1.fresh.eq(fresh),
            s1.index.eq(index),
        ]

        # Stage 2: add.
        before = Signal(64)
        total = Signal(64)
        kept = Signal(64)
        s2 = Signal.like(s1)
        m.d.comb += before.eq(Mux(s1.fresh, 0, total_read.data))
        m.d.sync += [s2.eq(s1), total.eq(before + visited), kept.eq(before + copied)]

        # Stage 3: write back.
        m.d.comb += [
            total_write.addr.eq(s2.index),
            total_write.data.eq(total),
            total_write.en.eq(s2.valid),
            snapshot_write.addr.eq(s2.index),
            snapshot_write.data.eq(kept),
            snapshot_write.en.eq(s2.valid & s2.keep),
        ]
        m.d.sync += self.port.busy.eq(asked | (left != 0) | s1.keep | s2.keep | self.port.snapshot)

        half = Signal()
        m.d.sync += half.eq(self.port.address[0])
        m.d.comb += [
            snapshot_read.addr.eq(self.port.address[1:]),
            self.port.data.eq(snapshot_read.data.word_select(half, 32)),
        ]
        return m
