"""Interrupts: arming, moderation, never lost, never superfluous."""

from __future__ import annotations

from acceltcp.abi.messages import TxFlag

from .bench import TB, core_test
from .driver import Queue
from .frames import plain_frame


async def arm(queue: Queue) -> None:
    """Ask for an interrupt past what the host has consumed."""
    await queue.write("arm", queue.rx_completion.index | queue.event.index << 16)


async def packet(tb: TB) -> None:
    frame = plain_frame(tb.rng, 70)
    tb.rx[0].send(frame)
    assert (await tb.queues[0].receive_one()).data == frame
    await tb.queues[0].refill(1, 256)


@core_test()
async def arming(dut):
    """One interrupt per arm, for whichever ring comes first; none without."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    await packet(tb)
    await tb.settle()
    assert tb.interrupts == [], "never armed"

    await arm(queue)
    await tb.settle()
    assert tb.interrupts == [], "nothing new"
    await packet(tb)
    await packet(tb)
    await tb.settle()
    assert tb.interrupts == [0], "one, for the first"

    await arm(queue)
    queue.send(plain_frame(tb.rng, 70), flags=TxFlag.EVENT)
    await queue.ring_tx()
    await queue.take_event()
    await tb.frame()
    await tb.settle()
    assert tb.interrupts == [0, 0], "an event counts too"

    # What came before the arm, and was not consumed, fires at once.
    frame = plain_frame(tb.rng, 70)
    tb.rx[0].send(frame)
    await tb.settle()
    await arm(queue)
    await tb.settle()
    assert tb.interrupts == [0, 0, 0]
    assert (await queue.receive_one()).data == frame
    counted = await tb.counters("interrupts")
    assert counted["interrupts"] == 3
    await tb.end()


@core_test()
async def moderation(dut):
    """At least `interval` ticks between two interrupts, and then at once."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    await queue.write("interrupt", 5)
    for number in range(3):
        await arm(queue)
        await packet(tb)
        await tb.settle()
        assert len(tb.interrupts) == number + 1
        await arm(queue)
        await packet(tb)
        await tb.tick(4)
        await tb.settle()
        assert len(tb.interrupts) == number + 1, "too early"
        await tb.tick(2)
        await tb.settle()
        assert len(tb.interrupts) == number + 2, "due"
        tb.interrupts.pop()
        await tb.tick(6)
    await queue.write("interrupt", 0)
    await arm(queue)
    await packet(tb)
    await arm(queue)
    await packet(tb)
    await tb.settle()
    assert len(tb.interrupts) == 5
    await tb.end()


@core_test()
async def many_queues_and_slow_bridge(dut):
    """All queues fire while the bridge takes no interrupt: each comes once when it does."""
    tb = await TB.start(dut, queues=0)
    for number in range(tb.config.queues):
        await tb.queue(number, buffers=4, rx=3, completions=3, events=4, tx=3)
    dut.irq_ready.value = 0
    for queue in tb.queues.values():
        await arm(queue)
        queue.send(plain_frame(tb.rng, 60), flags=TxFlag.EVENT)
    for queue in tb.queues.values():
        await queue.ring_tx()
    for queue in tb.queues.values():
        await queue.take_event()
    await tb.frames(tb.config.queues)
    assert tb.interrupts == []
    dut.irq_ready.value = 1
    await tb.settle()
    assert sorted(tb.interrupts) == list(range(tb.config.queues))
    await tb.end()


@core_test()
async def data_before_interrupt(dut):
    """When the interrupt comes the completion is in memory, with any latency of writes."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    tb.bus.latency = lambda: tb.rng.randrange(20, 200)
    for number in range(8):
        await arm(queue)
        tb.rx[0].send(plain_frame(tb.rng, tb.rng.choice((60, 200, 600))))
        while len(tb.interrupts) == number:
            await tb.cycles(1)
        assert queue.poll_received() == 1
        queue.received.clear()
        await queue.refill(1)
    await queue.write("rx_completion_head", queue.rx_completion.index)
    await tb.end()
