"""The building blocks of streams: nothing is lost, made up, changed or overtaken, nobody waits for ever."""

import pytest
from amaranth import *
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cover

from hw.stream.arbiter import PacketArbiter
from hw.stream.beat import BeatLayout
from hw.stream.buffer import SkidBuffer, StreamBuffer
from hw.stream.fifo import StreamFifo
from hw.stream.merge import StreamMerge
from hw.stream.route import PacketRoute
from hw.stream.width import Downsizer, Upsizer

from .prove import Harness, Queue, accept, free, offer, prove, reach

WIDTH = 2  # bytes a beat: the smallest


def both(body):
    """Prove the harness, and that its `Cover`s can be reached under its assumptions."""
    prove(Harness(body))
    reach(Harness(body))


@pytest.mark.parametrize(
    "make, capacity, latency",
    [
        (lambda: StreamBuffer(2), 1, 1),
        (lambda: SkidBuffer(2), 2, 1),
        (lambda: StreamFifo(2, 2), 3, 2),
        (lambda: StreamFifo(2, 3), 4, 2),
        (lambda: StreamFifo(2, 2, kind="block"), 4, 3),
        (lambda: StreamFifo(2, 3, kind="block"), 5, 3),
    ],
    ids=["StreamBuffer", "SkidBuffer", "lutram-2", "lutram-3", "block-2", "block-3"],
)
def test_is_a_queue(make, capacity, latency):
    def body(m):
        m.submodules.dut = dut = make()
        push, pop = offer(m, dut.i), accept(m, dut.o)
        queue = Queue(m, capacity, push=push, value=dut.i.payload, pop=pop)
        queue.compare(m, dut.o, latency=latency)
        if isinstance(dut, StreamFifo):
            m.d.comb += [Assert(dut.level == queue.level), Assert(dut.i.ready | (queue.level >= dut.depth))]
        elif isinstance(dut, SkidBuffer):
            m.d.comb += Assert(dut.i.ready | (queue.level == 2))
        emptied = Signal()
        with m.If(queue.level == capacity):
            m.d.sync += emptied.eq(1)
        m.d.comb += Cover(emptied & (queue.level == 0))

    both(body)


def turns(m, stream, fire_others, bound):
    """While `stream` waits, at most `bound` others are served before it."""
    passed = Signal(range(bound + 2))
    with m.If(~stream.valid | stream.ready):
        m.d.sync += passed.eq(0)
    with m.Elif(fire_others):
        m.d.sync += passed.eq(passed + 1)
    m.d.comb += Assert(passed <= bound)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_merge(n):
    def body(m):
        m.submodules.dut = dut = StreamMerge(4, n)
        fires = [offer(m, i, Cat(free(m, 2), C(k, 2))) for k, i in enumerate(dut.i)]
        pushed = Signal(4)
        for fire, i in zip(fires, dut.i, strict=True):
            with m.If(fire):
                m.d.comb += pushed.eq(i.payload)
        m.d.comb += Assert(sum(fires) <= 1)
        queue = Queue(m, 1, push=Cat(fires).any(), value=pushed, pop=accept(m, dut.o))
        queue.compare(m, dut.o, latency=1)
        for k, i in enumerate(dut.i):
            turns(m, i, Cat(fires[:k] + fires[k + 1 :]).any(), n - 1)
        m.d.comb += Assert(dut.idle == (~Cat(i.valid for i in dut.i).any() & (queue.level == 0)))
        # Whoever asks is served at once by a free output.
        m.d.comb += Assert(Cat(fires).any() | ~Cat(i.valid for i in dut.i).any() | (queue.level != 0))
        m.d.comb += Cover(dut.o.valid & (dut.o.payload[2:] == n - 1))

    both(body)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_arbiter(n):
    def body(m):
        m.submodules.dut = dut = PacketArbiter(WIDTH, n)
        layout = BeatLayout(WIDTH)
        fires = []
        for k, i in enumerate(dut.i):
            payload = Signal(layout, name=f"payload{k}")
            # The data name the input; one more bit is anything.
            m.d.comb += [
                payload.data.eq(Cat(C(k, 2), free(m))),
                Cat(payload.count, payload.last, payload.err).eq(free(m, 4)),
            ]
            fires.append(offer(m, i, Value.cast(payload)))
        pushed = Signal(layout)
        for fire, i in zip(fires, dut.i, strict=True):
            with m.If(fire):
                m.d.comb += pushed.eq(i.payload)
        pop = accept(m, dut.o)
        m.d.comb += Assert(sum(fires) <= 1)
        queue = Queue(m, 2, push=Cat(fires).any(), value=pushed, pop=pop)
        queue.compare(m, dut.o, latency=1)

        # A packet that has begun owns the output to its end.
        inside, owner = Signal(), Signal(2)
        with m.If(pop):
            m.d.sync += [inside.eq(~dut.o.p.last), owner.eq(dut.o.p.data[:2])]
            with m.If(inside):
                m.d.comb += Assert(dut.o.p.data[:2] == owner)

        # While an input waits for its turn, every other one begins one packet at the most.
        in_packet = Signal(n)
        begins = Signal(n)
        for k in range(n):
            m.d.comb += begins[k].eq(fires[k] & ~in_packet[k])
            with m.If(fires[k]):
                m.d.sync += in_packet[k].eq(~dut.i[k].p.last)
        for k in range(n):
            others = Cat(begins[j] for j in range(n) if j != k)
            turns(m, dut.i[k], others.any() if n > 1 else C(0), max(1, n - 1))
        m.d.comb += Cover(pop & inside & dut.o.p.last & (owner == n - 1))

    both(body)


def test_route():
    def body(m):
        n = 3
        m.submodules.dut = dut = PacketRoute(WIDTH, n)
        fire = offer(m, dut.i)
        pops = [accept(m, o) for o in dut.o]
        inside, before, waiting = Signal(), Signal(2), Signal()
        m.d.comb += [dut.to.eq(free(m, 2)), Assume(dut.to < n)]
        # The promise of whoever drives `to`: the choice holds from the first beat offered to the last.
        with m.If(inside | waiting):
            m.d.comb += Assume(dut.to == before)
        m.d.sync += [before.eq(dut.to), waiting.eq(dut.i.valid & ~fire)]
        with m.If(fire):
            m.d.sync += inside.eq(~dut.i.p.last)
        m.d.comb += [Assert(sum(pops) == fire), Assert(sum(o.valid for o in dut.o) == dut.i.valid)]
        owner, cut = Signal(2), Signal()
        for k, (o, pop) in enumerate(zip(dut.o, pops, strict=True)):
            with m.If(o.valid):
                m.d.comb += [Assert(dut.to == k), Assert(Value.cast(o.payload) == Value.cast(dut.i.payload))]
            with m.If(pop):
                m.d.comb += Assert(~cut | (owner == k))
                m.d.sync += [cut.eq(~o.p.last), owner.eq(k)]
        m.d.comb += Cover(pops[2] & cut & dut.o[2].p.last)

    both(body)


@pytest.mark.parametrize(
    "make, capacity",
    [
        (lambda: Upsizer(2, 2), 2),
        (lambda: Upsizer(2, 4), 4),
        (lambda: Downsizer(2, 2), 2),
        (lambda: Downsizer(4, 2), 4),
        pytest.param(lambda: Upsizer(2, 8), 8, marks=pytest.mark.long),
        pytest.param(lambda: Downsizer(8, 2), 8, marks=pytest.mark.long),
    ],
    ids=["up-2-2", "up-2-4", "down-2-2", "down-4-2", "up-2-8", "down-8-2"],
)
def test_width(make, capacity):
    """Any one byte that goes in comes out in its place, with the end of its packet and its `err`."""

    def body(m):
        m.submodules.dut = dut = make()
        narrow = len(dut.i.p.data) // 8
        layout = BeatLayout(narrow)
        payload = Signal(layout)
        m.d.comb += [
            # One bit of each byte is anything; the bytes travel whole.
            payload.data.eq(Cat(Cat(free(m), C(0, 7)) for _ in range(narrow))),
            Cat(payload.count, payload.last, payload.err).eq(free(m, len(payload.count) + 2)),
        ]
        push, pop = offer(m, dut.i, Value.cast(payload)), accept(m, dut.o)
        watched = AnyConst(4)  # place of the byte in the stream, modulo more than fits inside
        places = [Signal(4, name="place_in"), Signal(4, name="place_out")]
        seen = Signal(3)  # bit, last of its packet, err of its packet
        pending = Signal()

        def byte(stream, place, fire):
            """Is the watched byte in this transfer, and what is it?"""
            beat = stream.payload
            offset, here, what = Signal(4), Signal(), Signal(3)
            end = offset == beat.count - 1
            m.d.comb += [
                offset.eq(watched - place),
                here.eq(fire & (offset < beat.count)),
                what.eq(Cat(beat.data.bit_select(offset << 3, 1), beat.last & end, beat.last & end & beat.err)),
            ]
            with m.If(fire):
                m.d.sync += place.eq(place + beat.count)
            return here, what

        comes, what_in = byte(dut.i, places[0], push)
        goes, what_out = byte(dut.o, places[1], pop)
        with m.If(goes):
            m.d.comb += [Assert(pending), Assert(what_out == seen)]
            m.d.sync += pending.eq(0)
        with m.If(comes):
            m.d.sync += [pending.eq(1), seen.eq(what_in)]
        inside = Signal(4)
        m.d.comb += [inside.eq(places[0] - places[1]), Assert(inside <= capacity)]
        with m.If(pending & seen[1]):
            m.d.comb += Assert(dut.o.valid)  # a packet that has ended is not held back
        m.d.comb += Cover(goes & (what_out == 0b111))

    both(body)
