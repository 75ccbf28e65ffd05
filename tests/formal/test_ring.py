"""RingSlots: a ring is never given more entries than it has, and a doorbell cannot make room that is not there."""

from amaranth import *
from amaranth.hdl import Assert, Assume, Cover

from hw.config import NicConfig
from hw.csr.bus import queue_word
from hw.dma.ring import RingSlots

from .prove import Harness, check, free, reach

QUEUE = 1  # of two; the other one is there to disturb


def body(m):
    m.submodules.dut = dut = RingSlots(NicConfig(queues=2), "event")
    bus, claim, finish = dut.bus, dut.claim, dut.finish
    m.d.comb += [
        bus.queue.eq(free(m, len(bus.queue))),
        bus.write.eq(free(m)),
        bus.word.eq(Mux(free(m), queue_word("event_head"), queue_word("event_size"))),
        bus.data.eq(free(m, 32)),
        bus.enable.eq(free(m)),
        claim.queue.eq(free(m, len(claim.queue))),
        claim.strobe.eq(free(m)),
        finish.queue.eq(free(m, len(finish.queue))),
        finish.strobe.eq(free(m)),
        finish.use.eq(free(m)),
        dut.doorbell_error.ready.eq(free(m)),
        Assume(bus.queue < 2),
        Assume(~(bus.write & bus.enable)),
    ]
    mine = bus.queue == QUEUE
    # The register file checks sizes before it enables, and they stay while the queue is on.
    sized, on, was_on, log2 = Signal(), Signal(), Signal(), Signal(4)
    m.d.sync += was_on.eq(on)
    resize = bus.write & (bus.word == queue_word("event_size")) & mine
    with m.If(resize):
        m.d.comb += [Assume(bus.data <= 2), Assume(~on)]
        m.d.sync += [sized.eq(1), log2.eq(bus.data)]
    with m.If(bus.enable & mine):
        m.d.comb += [Assume(sized), Assume(~on)]
        m.d.sync += on.eq(1)
    late = Signal()  # the memories are cleared a cycle after the enable
    m.d.sync += late.eq(bus.enable)
    m.d.comb += [Assert(claim.ready == ~late), Assert(finish.ready == ~late)]

    # Straight accounts of the queue: claims open, entries used and not consumed by the host.
    claims, used, produced = Signal(5), Signal(5), Signal(16)
    claimed = claim.strobe & claim.ready & claim.enabled & claim.free & (claim.queue == QUEUE)
    finished = finish.strobe & (finish.queue == QUEUE)
    with m.If(finish.strobe):
        m.d.comb += Assume(finish.ready & (finish.queue < 2))
    with m.If(finished):
        m.d.comb += Assume((claims != 0) | claimed)
    with m.If(claim.queue == QUEUE):
        m.d.comb += Assert(claim.enabled == was_on)
        with m.If(was_on & claim.ready):
            m.d.comb += Assert(claim.free == (claims + used < (1 << log2)))
    step, head = Signal(16), Signal(16)
    ring, index = Signal(), Signal(16)
    m.d.sync += [
        ring.eq(bus.write & (bus.word == queue_word("event_head")) & mine & on),
        index.eq(bus.data),
    ]
    m.d.comb += step.eq(Mux(ring, index - head, 0))
    consumed, refused = Signal(5), Signal()
    with m.If(step <= used):
        m.d.comb += consumed.eq(step)
    with m.Else():
        m.d.comb += refused.eq(1)
    with m.If(ring & ~refused):
        m.d.sync += head.eq(index)
    m.d.sync += [
        claims.eq(claims + claimed - finished),
        used.eq(used + (finished & finish.use) - consumed),
        produced.eq(produced + (finished & finish.use)),
    ]
    with m.If(finished):
        m.d.comb += Assert(finish.index == produced)
    m.d.comb += Assert(claims + used <= (1 << log2))
    told = Signal()
    m.d.sync += told.eq(refused)
    with m.If(told):
        m.d.comb += Assert(dut.counts.doorbell_errors)
    m.d.comb += Cover(told & (used == 2) & (claims == 2) & (head != 0))


def test_never_more_than_the_ring_has():
    check(Harness(body), depth=10)
    reach(Harness(body), depth=10)
