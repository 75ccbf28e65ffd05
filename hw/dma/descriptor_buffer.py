"""`DescriptorBuffer`: prefetched descriptors of all queues in block memory.

One bank per descriptor of a beat, so that a beat is stored in one cycle, and only its wanted lanes. Beats that hold
less than a descriptor are gathered first.

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
from .descriptor_burst import BURST, Burst
from .gather import gathered

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
    """Storage for `depth` descriptors of each of `queues` queues, from a bus of `axi_bytes`.

    Members
    -------
    burst: In(stream(Burst)): announced no later than its request.
    response: In(stream(ReadBeat(axi_bytes), always_ready)): the data of the bursts, in order.
    stored, stored_queue, stored_index: descriptors of a queue up to this index are buffered now.
    pop, pop_queue, pop_index: answer with this descriptor; pop_ok becomes `ok` of the answer.
    popped: Out(stream(Popped)): at most `POPS` may be unanswered.
    idle: no burst is in flight.
    """

    def __init__(self, queues, depth, axi_bytes=AXI_BYTES):
        self._queues, self._depth, self._axi_bytes = queues, depth, axi_bytes
        super().__init__(
            {
                "burst": In(stream.Signature(Burst)),
                "response": In(stream.Signature(ReadBeat(axi_bytes), always_ready=True)),
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
        word_bytes = max(self._axi_bytes, TX_DESCRIPTOR.size)
        lanes_n = word_bytes // TX_DESCRIPTOR.size
        rows = exact_log2(self._depth // lanes_n)
        lane_bits = exact_log2(lanes_n)
        cell = data.StructLayout({"descriptor": 8 * TX_DESCRIPTOR.size, "error": 1})
        m.submodules.bursts = bursts = StreamFifo(Burst, BURSTS)
        connect(m, flipped(self.burst), bursts.i)

        # Store, stage 1: the beat and its place.
        word, word_valid = gathered(m, self.response, self._axi_bytes, word_bytes)
        beat = Signal(ReadBeat(word_bytes), name="beat", reset_less=True)
        beat_valid = Signal()
        m.d.sync += [beat.eq(word), beat_valid.eq(word_valid)]
        first = Signal(init=1)
        next_index = Signal(16, reset_less=True)
        next_left = Signal(range(BURST + 1), reset_less=True)
        index, left = Signal(16), Signal(range(BURST + 1))
        room, here = Signal(range(lanes_n + 1)), Signal(range(lanes_n + 1))
        m.d.comb += [
            index.eq(Mux(first, bursts.o.p.index, next_index)),
            left.eq(Mux(first, bursts.o.p.count, next_left)),
            room.eq(lanes_n - index[:lane_bits]),
            here.eq(Mux(left < room, left, room)),
            bursts.o.ready.eq(beat_valid & beat.last),
        ]
        with m.If(beat_valid):
            m.d.sync += [first.eq(beat.last), next_index.eq(index + here), next_left.eq(left - here)]

        # Store, stage 2: write the wanted lanes.
        wide = Signal(8 * word_bytes, reset_less=True)
        wide_error = Signal(reset_less=True)
        lanes = Signal(lanes_n)
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
        for lane in range(lanes_n):
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
        cells = Signal(data.ArrayLayout(cell, lanes_n), reset_less=True)
        for lane in range(lanes_n):
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
            chosen.eq(cells[tags[1].index[:lane_bits] if lane_bits else 0]),
            answers.i.valid.eq(asked[1]),
            answers.i.payload.eq(tags[1]),
            answers.i.p.descriptor.eq(chosen.descriptor),
            answers.i.p.error.eq(chosen.error),
            self.idle.eq((bursts.level == 0) & ~beat_valid & ~stored),
        ]
        return m
