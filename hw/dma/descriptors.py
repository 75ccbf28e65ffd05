"""`DescriptorFetch`: prefetches 16-byte descriptors of every queue's ring out of host memory.

A doorbell says how far the host has filled the ring. What lies between is fetched in bursts of
up to 16 descriptors (4 beats), never more than the doorbell allows, many bursts in flight, until
`depth` descriptors of the queue are buffered or on their way. `pop` takes them out in ring order.

* Latency: doorbell to read request 12 cycles; read data to `pending` 3 cycles; `pop` to
  `popped` 5 cycles.
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
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from acceltcp.abi.messages import RX_FREE, TX_DESCRIPTOR

from ..config import AXI_BYTES, NicConfig
from ..counts import counts_layout
from ..csr.bus import QUEUE_BITS, QueueBus, queue_word
from ..stream.fifo import StreamFifo
from .axi import ReadPort
from .picker import RoundPicker

__all__ = ["DescriptorFetch", "Popped"]

LANES = AXI_BYTES // TX_DESCRIPTOR.size
"""Descriptors in a beat."""

BURST = 16
"""Most descriptors in a burst. A burst ends at an address that is a multiple of their bytes,
so it never crosses 4 KiB."""

BURSTS = 64
"""Bursts in flight: 16 hide 250 cycles when full; the rest is for small doorbells."""

POPS = 16
"""Popped descriptors not yet taken: more than the latency from pop to popped and back."""


class Popped(data.Struct):
    """Answer to a pop."""

    queue: QUEUE_BITS
    ok: 1  # 0: none was buffered; the rest means nothing
    error: 1  # the bus refused the read; `descriptor` means nothing
    index: 16  # free-running ring index
    descriptor: 8 * TX_DESCRIPTOR.size


class _Burst(data.Struct):
    """A burst in flight."""

    queue: QUEUE_BITS
    index: 16  # of its first wanted descriptor
    count: range(BURST + 1)


class _QueueIndex(wiring.Component):
    """A number per queue, read at once; one write per cycle."""

    def __init__(self, queues, width, readers):
        self._queues, self._width, self._readers = queues, width, readers
        super().__init__(
            {
                "write": In(1),
                "write_queue": In(QUEUE_BITS),
                "write_value": In(width),
                "read_queue": In(QUEUE_BITS).array(readers),
                "read_value": Out(width).array(readers),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(
            shape=self._width, depth=max(self._queues, 2), init=[], attrs={"ram_style": "distributed"}
        )
        write = memory.write_port()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.write_queue),
            write.data.eq(self.write_value),
        ]
        for queue, value in zip(self.read_queue, self.read_value):
            read = memory.read_port(domain="comb")
            m.d.comb += [read.addr.eq(queue), value.eq(read.data)]
        return m


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
                "read": Out(ReadPort()),
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

        # The bus, registered: it comes from far away.
        bus = Signal.like(Cat(self.bus.queue, self.bus.word, self.bus.data), name="bus_r", reset_less=True)
        write, clear, off = Signal(), Signal(), Signal()
        known = self.bus.queue < queues
        bus_queue, word, value = Signal(QUEUE_BITS), Signal.like(self.bus.word), Signal(32)
        m.d.comb += Cat(bus_queue, word, value).eq(bus)
        m.d.sync += [
            bus.eq(Cat(self.bus.queue, self.bus.word, self.bus.data)),
            write.eq(self.bus.write & known),
            clear.eq(self.bus.enable & known),
            off.eq(self.bus.disable & known),
        ]

        # A hold lasts a cycle longer in here: a queue's `disable` may be its last cycle.
        held = Signal()
        m.d.sync += held.eq(self.hold)

        # Per queue: where the ring lies, and four indices, each with one writer.
        # tail: doorbell. asked: requested up to. stored: buffered up to. taken: popped up to.
        def per_queue(name, width, readers):
            memory = _QueueIndex(queues, width, readers)
            m.submodules[name] = memory
            return memory

        base_low, base_high = per_queue("base_low", 32, 1), per_queue("base_high", 32, 1)
        size_log2 = per_queue("size_log2", 4, 2)
        tail, asked = per_queue("tail", 16, 2), per_queue("asked", 16, 1)
        stored, taken = per_queue("stored", 16, 1), per_queue("taken", 16, 3)
        for memory, register in (
            (base_low, "base_low"), (base_high, "base_high"), (size_log2, "size"),
        ):  # fmt: skip
            m.d.comb += [
                memory.write.eq(write & (word == queue_word(f"{self._ring}_{register}"))),
                memory.write_queue.eq(bus_queue),
                memory.write_value.eq(value),
            ]

        enabled, want, blocked = Signal(queues), Signal(queues), Signal(queues)
        bus_onehot, pop_onehot, ask_onehot = Signal(queues), Signal(queues), Signal(queues)
        m.d.comb += bus_onehot.eq(1 << bus_queue)
        with m.If(clear):
            m.d.sync += enabled.eq(enabled | bus_onehot)
        with m.If(off):
            m.d.sync += enabled.eq(enabled & ~bus_onehot)

        # Doorbell: accepted if the new tail lies between the old one and a whole ring past what
        # was taken.
        doorbell, accepted = Signal(), Signal()
        had, has, size = Signal(16), Signal(16), Signal(16)
        m.d.comb += [
            doorbell.eq(write & (word == queue_word(f"{self._ring}_tail"))),
            tail.read_queue[0].eq(bus_queue),
            taken.read_queue[0].eq(bus_queue),
            size_log2.read_queue[0].eq(bus_queue),
            size.eq(1 << size_log2.read_value[0]),
            had.eq(tail.read_value[0] - taken.read_value[0]),
            has.eq(value[:16] - taken.read_value[0]),
            accepted.eq(doorbell & (enabled & bus_onehot).any() & (has >= had) & (has <= size)),
            tail.write.eq(accepted | clear),
            tail.write_queue.eq(bus_queue),
            tail.write_value.eq(Mux(clear, 0, value)),
        ]
        refused = Signal(queues)
        m.submodules.refusals = refusals = RoundPicker(queues)
        m.d.sync += self.counts.doorbell_errors.eq(doorbell & ~accepted)
        reported = Signal(queues)
        m.d.comb += [
            refusals.requests.eq(refused),
            self.doorbell_error.p.queue.eq(refusals.index),
            self.doorbell_error.valid.eq(refusals.valid & refused.bit_select(refusals.index, 1)),
            refusals.take.eq(self.doorbell_error.ready | ~self.doorbell_error.valid),
        ]
        with m.If(self.doorbell_error.valid & self.doorbell_error.ready):
            m.d.comb += reported.eq(1 << refusals.index)
        rejected = doorbell & ~accepted
        m.d.sync += refused.eq(
            (refused & ~reported | Mux(rejected, bus_onehot & enabled, 0)) & ~Mux(off | clear, bus_onehot, 0)
        )

        m.submodules.ask = ask = _Ask(self._depth)
        m.submodules.picker = picker = RoundPicker(queues)
        connect(m, flipped(self.read.request), ask.request)
        m.d.comb += [
            picker.requests.eq(want),
            picker.take.eq(ask.take),
            ask.queue.eq(picker.index),
            ask.queue_valid.eq(picker.valid & ~self.hold & ~held & want.bit_select(picker.index, 1)),
            ask.queue_stale.eq(picker.valid & ~want.bit_select(picker.index, 1)),
            ask_onehot.eq(1 << ask.at),
        ]
        for memory, reader in ((tail, 1), (asked, 0), (taken, 1), (base_low, 0), (base_high, 0), (size_log2, 1)):
            m.d.comb += memory.read_queue[reader].eq(ask.at)
        m.d.comb += [
            ask.tail.eq(tail.read_value[1]),
            ask.asked.eq(asked.read_value[0]),
            ask.taken.eq(taken.read_value[1]),
            ask.base.eq(Cat(base_low.read_value[0], base_high.read_value[0])),
            ask.size_log2.eq(size_log2.read_value[1]),
            asked.write.eq(ask.asked_write | clear),
            asked.write_queue.eq(Mux(clear, bus_queue, ask.at)),
            asked.write_value.eq(Mux(clear, 0, ask.asked_new)),
        ]

        # A blocked queue (no room for its next burst) asks again after its next pop.
        popping = Signal()
        picked_onehot = Mux(ask.queue_valid & ask.take, 1 << picker.index, 0)[:queues]
        unblock = Mux(popping, pop_onehot & blocked, 0)
        again = Mux(ask.again, ask_onehot, 0)
        gone = Mux(clear | off, bus_onehot, 0)
        m.d.sync += [
            want.eq((want & ~picked_onehot | Mux(accepted, bus_onehot, 0) | unblock | again) & ~gone),
            blocked.eq((blocked & ~unblock | Mux(ask.block, ask_onehot, 0)) & ~gone),
        ]
        m.d.comb += ask.popped.eq(popping & (self.pop.p.queue == ask.at))

        # Storing and taking out.
        m.submodules.buffer = buffer = _Buffer(queues, self._depth)
        forget, forget_queue = Signal(), Signal(QUEUE_BITS)
        m.d.comb += [
            buffer.burst.payload.eq(ask.burst.payload),
            buffer.burst.valid.eq(ask.burst.valid),
            ask.burst.ready.eq(buffer.burst.ready),
            buffer.response.payload.eq(self.read.response.payload),
            buffer.response.valid.eq(self.read.response.valid),
            # Stored data cannot wait, so a clear waits for a cycle in which none is stored;
            # no burst is requested until then.
            stored.write.eq(buffer.stored | forget),
            stored.write_queue.eq(Mux(buffer.stored, buffer.stored_queue, forget_queue)),
            stored.write_value.eq(Mux(buffer.stored, buffer.stored_index, 0)),
            ask.pause.eq(forget | clear),
        ]
        with m.If(clear):
            m.d.sync += [forget.eq(1), forget_queue.eq(bus_queue)]
        with m.Elif(~buffer.stored):
            m.d.sync += forget.eq(0)

        free = Signal(range(POPS + 1), init=POPS)
        m.d.comb += [
            self.pop.ready.eq((free != 0) & ~clear & ~off),
            pop_onehot.eq(1 << self.pop.p.queue),
            stored.read_queue[0].eq(self.pop.p.queue),
            taken.read_queue[2].eq(self.pop.p.queue),
            # Not stored != taken: `stored` may still be stale for a queue that was just enabled.
            popping.eq(self.pop.valid & self.pop.ready & (self.pending & pop_onehot).any()),
            buffer.pop.eq(self.pop.valid & self.pop.ready),
            buffer.pop_queue.eq(self.pop.p.queue),
            buffer.pop_index.eq(taken.read_value[2]),
            buffer.pop_ok.eq(popping),
            taken.write.eq(popping | clear),
            taken.write_queue.eq(Mux(clear, bus_queue, self.pop.p.queue)),
            taken.write_value.eq(Mux(clear, 0, taken.read_value[2] + 1)),
        ]
        m.d.sync += free.eq(free - buffer.pop + (self.popped.valid & self.popped.ready))
        emptied = popping & (stored.read_value[0] == (taken.read_value[2] + 1)[:16])
        stored_onehot = Mux(buffer.stored, 1 << buffer.stored_queue, 0)[:queues]
        m.d.sync += self.pending.eq(
            (self.pending & ~Mux(emptied, pop_onehot, 0) | stored_onehot) & ~gone
        )
        connect(m, buffer.popped, flipped(self.popped))

        m.d.comb += [
            self.idle.eq(ask.idle & buffer.idle & (free == POPS) & ~refused.any() & ~clear & ~forget),
            self.busy.eq(~self.idle | want.any() | write),
        ]
        return m


class _Ask(wiring.Component):
    """Decides on one burst at a time: 7 cycles each."""

    def __init__(self, depth):
        self._depth = depth
        super().__init__(
            {
                "queue": In(QUEUE_BITS),
                "queue_valid": In(1),  # this queue wants a burst
                "queue_stale": In(1),  # it no longer does
                "take": Out(1),
                "at": Out(QUEUE_BITS),  # the queue being worked on; its state follows
                "tail": In(16),
                "asked": In(16),
                "taken": In(16),
                "base": In(64),
                "size_log2": In(4),
                "popped": In(1),  # a pop of `at` in this cycle
                "pause": In(1),  # request nothing now
                "asked_write": Out(1),
                "asked_new": Out(16),
                "again": Out(1),  # `at` wants another burst
                "block": Out(1),  # `at` has no room
                "burst": Out(stream.Signature(_Burst)),
                "request": Out(ReadPort().members["request"].signature),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        at = Signal(QUEUE_BITS, reset_less=True)
        tail, asked, taken = (Signal(16, name=n, reset_less=True) for n in ("tail_r", "asked_r", "taken_r"))
        base = Signal(64, reset_less=True)
        size, offset, available, used, wrap = (
            Signal(16, name=n, reset_less=True) for n in ("size", "offset", "available", "used", "wrap")
        )
        address = Signal(64, reset_less=True)
        count = Signal(range(BURST + 1), reset_less=True)
        popped = Signal(reset_less=True)
        request = Signal.like(self.request.payload, name="request_r", reset_less=True)
        request_valid = Signal()
        m.d.comb += [
            self.at.eq(at),
            self.request.payload.eq(request),
            self.request.valid.eq(request_valid),
        ]
        with m.If(self.request.ready):
            m.d.sync += request_valid.eq(0)
        # A pop during the decision makes `used` too high; then try again rather than wait for
        # a further pop that may never come.
        m.d.sync += popped.eq(popped | self.popped)

        fits = Signal()
        lane = exact_log2(TX_DESCRIPTOR.size)
        beats = address[lane : exact_log2(AXI_BYTES)] + count + (LANES - 1)
        m.d.comb += [
            fits.eq(used[: len(used)] + count <= self._depth),
            self.asked_new.eq(asked + count),
            self.burst.p.queue.eq(at),
            self.burst.p.index.eq(asked),
            self.burst.p.count.eq(count),
        ]

        with m.FSM(name="ask") as fsm:
            m.d.comb += self.idle.eq(fsm.ongoing("Select") & ~request_valid)
            with m.State("Select"):
                m.d.comb += self.take.eq(self.queue_valid | self.queue_stale)
                m.d.sync += [at.eq(self.queue), popped.eq(0)]
                with m.If(self.queue_valid):
                    m.next = "Read"
            with m.State("Read"):
                m.d.sync += [
                    tail.eq(self.tail),
                    asked.eq(self.asked),
                    taken.eq(self.taken),
                    base.eq(self.base),
                    size.eq(1 << self.size_log2),
                ]
                m.next = "Subtract"
            with m.State("Subtract"):
                m.d.sync += [
                    available.eq(tail - asked),
                    used.eq(asked - taken),
                    offset.eq(asked & (size - 1)),
                ]
                m.next = "Locate"
            with m.State("Locate"):
                m.d.sync += [
                    address.eq(base + (offset << lane)),
                    wrap.eq(size - offset),
                    count.eq(Mux(available >= BURST, BURST, available)),
                ]
                m.next = "Cut at ring"
            with m.State("Cut at ring"):
                with m.If(wrap < count):
                    m.d.sync += count.eq(wrap)
                m.next = "Cut at boundary"
            with m.State("Cut at boundary"):
                room = Signal(range(BURST + 1))
                m.d.comb += room.eq(BURST - address[lane : lane + exact_log2(BURST)])
                with m.If(room < count):
                    m.d.sync += count.eq(room)
                m.next = "Request"
            with m.State("Request"):
                with m.If(count == 0):
                    m.next = "Select"
                with m.Elif(~fits):
                    m.d.comb += [self.block.eq(~(popped | self.popped)), self.again.eq(~self.block)]
                    m.next = "Select"
                with m.Elif(~self.pause & (~request_valid | self.request.ready)):
                    m.d.comb += self.burst.valid.eq(1)
                    with m.If(self.burst.ready):
                        m.d.comb += [
                            self.asked_write.eq(1),
                            self.again.eq(available != count),
                        ]
                        m.d.sync += [
                            request_valid.eq(1),
                            request.address.eq(address & ~(AXI_BYTES - 1)),
                            request.length.eq(beats[exact_log2(LANES) :] - 1),
                        ]
                        m.next = "Select"
        return m


class _Buffer(wiring.Component):
    """Prefetched descriptors: one bank per lane of a beat, so a beat is stored in a cycle."""

    def __init__(self, queues, depth):
        self._queues, self._depth = queues, depth
        super().__init__(
            {
                "burst": In(stream.Signature(_Burst)),
                "response": In(ReadPort().members["response"].signature.flip()),
                "stored": Out(1),
                "stored_queue": Out(QUEUE_BITS),
                "stored_index": Out(16),
                "pop": In(1),
                "pop_queue": In(QUEUE_BITS),
                "pop_index": In(16),
                "pop_ok": In(1),
                "popped": Out(stream.Signature(Popped)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rows = exact_log2(self._depth // LANES)
        lane_bits = exact_log2(LANES)
        cell = data.StructLayout({"descriptor": 8 * TX_DESCRIPTOR.size, "error": 1})
        m.submodules.bursts = bursts = StreamFifo(_Burst, BURSTS)
        connect(m, flipped(self.burst), bursts.i)

        # Store, stage 1: the beat and its place.
        beat = Signal.like(self.response.payload, name="beat", reset_less=True)
        beat_valid = Signal()
        m.d.sync += [beat.eq(self.response.payload), beat_valid.eq(self.response.valid)]
        first = Signal(init=1)
        next_index = Signal(16, reset_less=True)
        next_left = Signal(range(BURST + 1), reset_less=True)
        index, left = Signal(16), Signal(range(BURST + 1))
        room, here = Signal(range(LANES + 1)), Signal(range(LANES + 1))
        m.d.comb += [
            index.eq(Mux(first, bursts.o.p.index, next_index)),
            left.eq(Mux(first, bursts.o.p.count, next_left)),
            room.eq(LANES - index[:lane_bits]),
            here.eq(Mux(left < room, left, room)),
            bursts.o.ready.eq(beat_valid & beat.last),
        ]
        with m.If(beat_valid):
            m.d.sync += [first.eq(beat.last), next_index.eq(index + here), next_left.eq(left - here)]

        # Store, stage 2: write the wanted lanes.
        wide = Signal(8 * AXI_BYTES, reset_less=True)
        wide_error = Signal(reset_less=True)
        lanes = Signal(LANES)
        row = Signal(QUEUE_BITS + rows, reset_less=True)
        stored_index, stored_queue = Signal(16, reset_less=True), Signal(QUEUE_BITS, reset_less=True)
        stored = Signal()
        m.d.sync += [
            wide.eq(beat.data),
            wide_error.eq(beat.error),
            stored.eq(beat_valid),
            stored_index.eq(index + here),
            stored_queue.eq(bursts.o.p.queue),
            row.eq(Cat(index[lane_bits : lane_bits + rows], bursts.o.p.queue)),
        ]
        for lane in range(LANES):
            wanted = (lane >= index[:lane_bits]) & (lane < index[:lane_bits] + left)
            m.d.sync += lanes[lane].eq(beat_valid & wanted)
        m.d.comb += [
            self.stored.eq(stored),
            self.stored_index.eq(stored_index),
            self.stored_queue.eq(stored_queue),
        ]

        # Take out, stages 1 (in the memory) and 2 (its output register), then the chosen lane.
        m.submodules.answers = answers = StreamFifo(Popped, POPS)
        connect(m, answers.o, flipped(self.popped))
        asked = Signal(2)
        tags = [Signal(Popped, name=f"tag{i}", reset_less=True) for i in range(2)]
        m.d.sync += [
            asked.eq(Cat(self.pop, asked)),
            tags[0].queue.eq(self.pop_queue),
            tags[0].ok.eq(self.pop_ok),
            tags[0].index.eq(self.pop_index),
            tags[1].eq(tags[0]),
        ]
        cells = Signal(data.ArrayLayout(cell, LANES), reset_less=True)
        for lane in range(LANES):
            memory = Memory(
                shape=cell,
                depth=max(self._queues, 2) << rows,
                init=[],
                attrs={"ram_style": "block"},
            )
            m.submodules[f"lane{lane}"] = memory
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [
                write.en.eq(lanes[lane]),
                write.addr.eq(row),
                write.data.descriptor.eq(wide[128 * lane : 128 * lane + 128]),
                write.data.error.eq(wide_error),
                read.addr.eq(Cat(self.pop_index[lane_bits : lane_bits + rows], self.pop_queue)),
                read.en.eq(self.pop),
            ]
            m.d.sync += cells[lane].eq(read.data)
        chosen = Signal(cell)
        m.d.comb += [
            chosen.eq(cells[tags[1].index[:lane_bits]]),
            answers.i.valid.eq(asked[1]),
            answers.i.payload.eq(tags[1]),
            answers.i.p.descriptor.eq(chosen.descriptor),
            answers.i.p.error.eq(chosen.error),
            self.idle.eq((bursts.level == 0) & ~beat_valid & ~stored),
        ]
        return m
