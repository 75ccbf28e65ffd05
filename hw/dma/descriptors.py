"""`DescriptorFetch`: prefetches 16-byte descriptors of every queue's ring out of host memory.

A doorbell says how far the host has filled the ring. What lies between is fetched in bursts of
up to 16 descriptors (256 bytes), never more than the doorbell allows, many bursts in flight, until
`depth` descriptors of the queue are buffered or on their way. `pop` takes them out in ring order.

* Latency: doorbell to read request 12 cycles; read data to `pending` 3 cycles; `pop` to
  `popped` 4 cycles.
* Throughput: one pop per cycle, also from one queue; one burst request per 7 cycles (2.3
  descriptors per cycle); read data one beat per cycle.
* Registered: `read.request`, `popped`, `pop.ready`, `pending`.
* Overflow: cannot happen; room for a burst is reserved before it is requested. A doorbell that
  passes the ring's size or goes backwards changes nothing, is counted and reported.
* A burst refused by the bus delivers its descriptors with `error` set.
* Enabling a queue sets its indices to 0 and forgets what was prefetched. Reset disables all queues;
  memories keep their contents, which enabling makes harmless.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.messages import RX_FREE, TX_DESCRIPTOR

from ..config import NicConfig
from ..counts import counts_layout
from ..csr.bus import QUEUE_BITS, QueueBus
from .axi import ReadPort
from .descriptor_buffer import POPS, DescriptorBuffer, Popped
from .descriptor_burst import BURST, BurstPlanner
from .doorbell import Doorbells
from .picker import RoundPicker
from .queue_memory import QueueMemory

__all__ = ["DescriptorFetch", "Popped"]


class DescriptorFetch(wiring.Component):
    """Prefetch of one kind of ring for all queues.

    Parameters
    ----------
    config: NicConfig.
    ring: which ring: the prefix of its registers, "tx" or "rx_free".
    depth: descriptors per queue buffered or in flight; a power of two of at least 16.

    Members
    -------
    bus: In(QueueBus()): ring base and size, doorbells, enable and disable.
    hold: start no new burst.
    idle: no burst in flight, no pop unanswered, no refused doorbell unreported. Combinational
        from flip-flops: right in the very cycle in which `hold` rises.
    busy: not idle, or a burst could be requested.
    read: Out(ReadPort())
    pop: In(stream({"queue"})): take the next descriptor of a queue.
    popped: Out(stream(Popped)): one answer per pop, in order.
    pending: one bit per queue: a descriptor is buffered. Right in the cycle after a pop.
    doorbell_error: Out(stream({"queue"})): a doorbell of this enabled queue was refused; several
        in a row may be reported as one.
    counts: doorbell_errors.
    """

    def __init__(self, config, ring, depth=None):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        if ring not in ("tx", "rx_free"):
            raise ValueError(f"ring must be 'tx' or 'rx_free', not {ring!r}")
        depth = config.descriptors if depth is None else depth
        if not isinstance(depth, int) or depth < BURST or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least {BURST}, not {depth!r}")
        assert TX_DESCRIPTOR.size == RX_FREE.size
        self._config, self._ring, self._depth = config, ring, depth
        queue = data.StructLayout({"queue": QUEUE_BITS})
        super().__init__(
            {
                "bus": In(QueueBus()),
                "hold": In(1),
                "idle": Out(1),
                "busy": Out(1),
                "read": Out(ReadPort(config.axi_bytes)),
                "pop": In(stream.Signature(queue)),
                "popped": Out(stream.Signature(Popped)),
                "pending": Out(config.queues),
                "doorbell_error": Out(stream.Signature(queue)),
                "counts": Out(counts_layout("doorbell_errors")),
            }
        )

    @property
    def config(self):
        """The NIC's parameters."""
        return self._config

    @property
    def ring(self):
        """Prefix of the ring's registers."""
        return self._ring

    @property
    def depth(self):
        """Descriptors per queue buffered or in flight."""
        return self._depth

    def elaborate(self, platform):
        m = Module()
        queues = self._config.queues

        # Four indices per queue, each with one writer. tail: doorbell. asked: requested up to.
        # stored: buffered up to. taken: popped up to.
        m.submodules.doorbells = doorbells = Doorbells(queues, self._ring)
        m.submodules.asked = asked = QueueMemory(queues, 16, 1)
        m.submodules.stored = stored = QueueMemory(queues, 16, 1)
        m.submodules.taken = taken = QueueMemory(queues, 16, 3)
        m.submodules.picker = picker = RoundPicker(queues)
        m.submodules.planner = planner = BurstPlanner(self._depth, self._config.axi_bytes)
        m.submodules.buffer = buffer = DescriptorBuffer(queues, self._depth, self._config.axi_bytes)
        connect(m, bus=flipped(self.bus), doorbells=doorbells.bus)
        connect(m, error=flipped(self.doorbell_error), doorbells=doorbells.error)
        connect(m, request=flipped(self.read.request), planner=planner.request)
        connect(m, planner=planner.burst, buffer=buffer.burst)
        connect(m, buffer=buffer.popped, popped=flipped(self.popped))
        bus_queue, clear, off = doorbells.queue, doorbells.clear, doorbells.off
        bus_onehot = Signal(queues)
        m.d.comb += [
            bus_onehot.eq(1 << bus_queue),
            taken.read_queue[0].eq(bus_queue),
            doorbells.taken.eq(taken.read_value[0]),
            buffer.response.payload.eq(self.read.response.payload),
            buffer.response.valid.eq(self.read.response.valid),
        ]
        gone = Mux(clear | off, bus_onehot, 0)

        # Which queues want a burst; a blocked one (no room for it) wants it after its next pop.
        want, blocked, plan_onehot = Signal(queues), Signal(queues), Signal(queues)
        # Told of a pop a cycle late, like the planner: a burst that is blocked in the cycle of a pop
        # is unblocked in the next.
        popped, popped_queue = Signal(), Signal(QUEUE_BITS, reset_less=True)
        unblock = Signal(queues)
        picked = Mux(planner.queue_valid & planner.take, 1 << picker.index, 0)[:queues]
        # A hold lasts a cycle longer in here: a queue's `disable` may be its last cycle.
        held = Signal()
        m.d.comb += [
            plan_onehot.eq(1 << planner.at),
            unblock.eq(Mux(popped, (1 << popped_queue) & blocked, 0)),
            picker.requests.eq(want),
            picker.take.eq(planner.take),
            planner.queue.eq(picker.index),
            planner.queue_valid.eq(
                picker.valid & ~self.hold & ~held & want.bit_select(picker.index, 1)
            ),
            planner.queue_stale.eq(picker.valid & ~want.bit_select(picker.index, 1)),
        ]
        m.d.sync += [
            held.eq(self.hold),
            want.eq(
                (
                    want & ~picked
                    | Mux(doorbells.accepted, bus_onehot, 0)
                    | unblock
                    | Mux(planner.again, plan_onehot, 0)
                )
                & ~gone
            ),
            blocked.eq((blocked & ~unblock | Mux(planner.block, plan_onehot, 0)) & ~gone),
        ]

        # What the planner sees of its queue.
        m.d.comb += [
            doorbells.at.eq(planner.at),
            planner.base.eq(doorbells.base),
            planner.size_log2.eq(doorbells.size_log2),
            planner.tail.eq(doorbells.tail),
            asked.read_queue[0].eq(planner.at),
            planner.asked.eq(asked.read_value[0]),
            taken.read_queue[1].eq(planner.at),
            planner.taken.eq(taken.read_value[1]),
            planner.popped.eq(popped & (popped_queue == planner.at)),
            asked.write.eq(planner.asked_write | clear),
            asked.write_queue.eq(Mux(clear, bus_queue, planner.at)),
            asked.write_value.eq(Mux(clear, 0, planner.asked_new)),
        ]

        # Storing. Data cannot wait, so a clear waits for a cycle in which none are stored; no
        # burst is requested until then.
        forget, forget_queue = Signal(), Signal(QUEUE_BITS, reset_less=True)
        m.d.comb += [
            stored.write.eq(buffer.stored | forget),
            stored.write_queue.eq(Mux(buffer.stored, buffer.stored_queue, forget_queue)),
            stored.write_value.eq(Mux(buffer.stored, buffer.stored_index, 0)),
            planner.pause.eq(forget | clear),
        ]
        with m.If(clear):
            m.d.sync += [forget.eq(1), forget_queue.eq(bus_queue)]
        with m.Elif(~buffer.stored):
            m.d.sync += forget.eq(0)

        # Taking out. `pending` decides, not the indices: those of a queue that is off are stale.
        free = Signal(range(POPS + 1), init=POPS)
        pop_onehot, popping = Signal(queues), Signal()
        m.d.comb += [
            self.pop.ready.eq((free != 0) & ~clear & ~off),
            pop_onehot.eq(1 << self.pop.p.queue),
            stored.read_queue[0].eq(self.pop.p.queue),
            taken.read_queue[2].eq(self.pop.p.queue),
            buffer.pop.eq(self.pop.valid & self.pop.ready),
            popping.eq(buffer.pop & (self.pending & pop_onehot).any()),
            buffer.pop_queue.eq(self.pop.p.queue),
            buffer.pop_index.eq(taken.read_value[2]),
            buffer.pop_ok.eq(popping),
            taken.write.eq(popping | clear),
            taken.write_queue.eq(Mux(clear, bus_queue, self.pop.p.queue)),
            taken.write_value.eq(Mux(clear, 0, taken.read_value[2] + 1)),
        ]
        emptied = popping & (stored.read_value[0] == (taken.read_value[2] + 1)[:16])
        arrived = Mux(buffer.stored, 1 << buffer.stored_queue, 0)[:queues]
        m.d.sync += [
            popped.eq(popping),
            popped_queue.eq(self.pop.p.queue),
            free.eq(free - buffer.pop + (self.popped.valid & self.popped.ready)),
            self.pending.eq((self.pending & ~Mux(emptied, pop_onehot, 0) | arrived) & ~gone),
        ]

        m.d.comb += [
            self.counts.eq(doorbells.counts),
            self.idle.eq(
                planner.idle & buffer.idle & (free == POPS) & doorbells.idle & ~clear & ~forget
            ),
            self.busy.eq(~self.idle | want.any() | doorbells.working),
        ]
        return m
