"""Interrupts with moderation: one vector per queue.

A queue that the host has armed fires once as soon as one of its two rings holds an entry
past the indices given with `arm`, and `interval` ticks have passed since it fired last;
firing disarms it. One queue is looked at per cycle, round robin, so a queue fires at most
`queues` + 1 cycles after it may. Because indices are compared and not edges, an entry that came
before `arm` fires at once and none is ever missed.

Latency: 3 to `queues` + 3 cycles after `posted`, `arm` or `tick`. Throughput: one interrupt per
cycle. `irq` is registered; while it is stalled no other queue fires, and nothing is lost.
Reset and `bus.enable` disarm.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..counts import counts_layout
from ..csr.bus import QUEUE_BITS, QueueBus, queue_word
from .queue_memory import queue_memory
from .ring import Posted

__all__ = ["Interrupts"]

_TICK_BITS = 17  # one more than `interval`: elapsed times up to 65,535 ticks never alias


class Interrupts(wiring.Component):
    """See the module's docstring.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    bus : In(QueueBus())
    tick : In(1)
        One-cycle pulses.
    completions, events : In(Posted)
        What the two ring writers say.
    irq : Out(stream.Signature({"vector": QUEUE_BITS}))
    counts : Out(interrupts)
    busy : Out(1)
        Something may fire without another input. Stays high for one scan after any input.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "bus": In(QueueBus()),
                "tick": In(1),
                "completions": In(Posted),
                "events": In(Posted),
                "irq": Out(stream.Signature(data.StructLayout({"vector": QUEUE_BITS}))),
                "counts": Out(counts_layout("interrupts")),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bus, queues = self.bus, self._config.queues
        exists = bus.queue < queues
        # The queue looked up, and the one decided on, a cycle later. They are never the same,
        # so that a decision never meets a look-up made before the decision before it.
        positions = max(2, queues)
        at, now_at = Signal(range(positions)), Signal(range(positions))
        # The host has just written to the queue: leave it for the next round.
        written, touched = Signal(), Signal()
        m.d.comb += written.eq(bus.write | bus.enable | bus.disable)
        m.d.sync += [
            at.eq(Mux(at == positions - 1, 0, at + 1)),
            now_at.eq(at),
            touched.eq(written & (bus.queue == at)),
        ]

        def memory(name, shape, strobe, queue, value, some=1):
            """Write port to `queue`, and, registered, what the queue decided on has (0 unless `some`)."""
            mem = queue_memory(m, queues, name, shape)
            write, read = mem.write_port(), mem.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(queue),
                write.data.eq(value),
                write.en.eq(strobe & (queue < queues)),
                read.addr.eq(at),
            ]
            found = Signal(shape, name=name, reset_less=True)
            m.d.sync += found.eq(Mux(some, read.data, 0))
            return found

        def look(bits):
            return bits.bit_select(now_at, 1)

        # Producer indices. A queue without entries since it was enabled counts as index 0,
        # so that enabling need not write the memories.
        newer = []
        arm = Signal()
        m.d.comb += arm.eq(bus.write & (bus.word == queue_word("arm")) & exists)
        for name, posted, low in (("completion", self.completions, 0), ("event", self.events, 16)):
            some = Signal(queues, name=f"some_{name}")
            with m.If(bus.enable & exists):
                m.d.sync += some.bit_select(bus.queue, 1).eq(0)
            with m.If(posted.valid):
                m.d.sync += some.bit_select(posted.queue, 1).eq(1)
            index = memory(
                f"{name}_index", 16, posted.valid, posted.queue, posted.index, some.bit_select(at, 1)
            )
            head = memory(f"{name}_head", 16, arm, bus.queue, bus.data[low : low + 16])
            newer.append(index != head)

        # Moderation. `waiting` lasts from firing until the interval has passed; it, and not
        # the difference alone, decides, because the tick count wraps.
        now = Signal(_TICK_BITS)
        m.d.sync += now.eq(now + self.tick)
        waiting, armed = Signal(queues), Signal(queues)
        fire = Signal()
        interval = memory(
            "interval", 16, bus.write & (bus.word == queue_word("interrupt")), bus.queue, bus.data
        )
        fired_at = memory("fired_at", _TICK_BITS, fire, now_at, now)
        elapsed = Signal(_TICK_BITS)
        over = Signal()
        m.d.comb += [
            elapsed.eq(now - fired_at),
            over.eq(~look(waiting) | (elapsed >= interval)),
        ]

        # Decide, and disarm, in one cycle, unless the host is just writing.
        valid, quiet = Signal(), Signal()
        vector = Signal(QUEUE_BITS, reset_less=True)
        m.d.comb += [
            quiet.eq(~touched & ~(written & (bus.queue == now_at))),
            fire.eq(look(armed) & quiet & (newer[0] | newer[1]) & over & (~valid | self.irq.ready)),
            self.irq.valid.eq(valid),
            self.irq.payload.vector.eq(vector),
        ]
        with m.If(self.irq.ready):
            m.d.sync += valid.eq(0)
        with m.If(over & quiet):
            m.d.sync += look(waiting).eq(0)
        with m.If(fire):
            m.d.sync += [
                valid.eq(1),
                vector.eq(now_at),
                look(armed).eq(0),
                look(waiting).eq(1),
            ]
        with m.If(arm):
            m.d.sync += armed.bit_select(bus.queue, 1).eq(1)
        with m.If((bus.enable | bus.disable) & exists):
            m.d.sync += [
                armed.bit_select(bus.queue, 1).eq(0),
                waiting.bit_select(bus.queue, 1).eq(0),
            ]
        m.d.sync += self.counts.interrupts.eq(fire)

        # After an input that may matter every queue has to be looked at once more. A tick
        # matters to queues that are armed and wait.
        settle = Signal(range(positions + 5))
        moderated = Signal()
        m.d.sync += moderated.eq((waiting & armed).any())
        with m.If(
            self.completions.valid | self.events.valid | bus.write | valid | (self.tick & moderated)
        ):
            m.d.sync += settle.eq(positions + 4)
        with m.Elif(settle != 0):
            m.d.sync += settle.eq(settle - 1)
        m.d.comb += self.busy.eq(settle != 0)
        return m
