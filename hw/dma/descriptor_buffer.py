"""`DescriptorBuffer`: prefetched descriptors of all queues in block memory.

One bank per lane of a beat, so that a beat is stored in one cycle, and only its wanted lanes.

* Latency: read data to `stored` 2 cycles; `pop` to `popped` 4 cycles.
* Throughput: one beat in and one descriptor out per cycle.
* Registered: `popped`, `stored`.
* Overflow: cannot happen if room was reserved: `depth` descriptors per queue, `POPS` pops.
* Reset: forgets the bursts in flight, which must have been waited for. The memory is not cleared.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from acceltcp.abi.messages import TX_DESCRIPTOR

from ..config import AXI_BYTES
from ..csr.bus import QUEUE_BITS
from ..stream.fifo import StreamFifo
from .axi import ReadBeat
from .descriptor_burst import BURST, LANES, Burst

__all__ = ["BURSTS", "POPS", "DescriptorBuffer", "Popped"]

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


class DescriptorBuffer(wiring.Component):
    """Storage for `depth` descriptors of each of `queues` queues.

    Members
    -------
    burst: In(stream(Burst)): announced no later than its request.
    response: In(stream(ReadBeat, always_ready)): the data of the bursts, in order.
    stored, stored_queue, stored_index: descriptors of a queue up to this index are buffered now.
    pop, pop_queue, pop_index: answer with this descriptor; pop_ok becomes `ok` of the answer.
    popped: Out(stream(Popped)): at most `POPS` may be unanswered.
    idle: no burst is in flight.
    """

    def __init__(self, queues, depth):
        self._queues, self._depth = queues, depth
        super().__init__(
            {
                "burst": In(stream.Signature(Burst)),
                "response": In(stream.Signature(ReadBeat, always_ready=True)),
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
        m.submodules.bursts = bursts = StreamFifo(Burst, BURSTS)
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
