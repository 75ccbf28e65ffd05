"""Bad input from the host and the bus: error events and counters, and the NIC keeps running."""

from __future__ import annotations

import itertools

from acceltcp.abi.messages import EventType, Status, TxFlag
from acceltcp.abi.registers import QueueState

from .bench import TB, core_test
from .driver import Listener, Queue
from .frames import Client, assert_frames_equal, pad, plain_frame
from .memory import DECERR, SLVERR, Fault

UNMAPPED = 0xDEAD_0000_0000


@core_test()
async def ring_setups(dut):
    """Ring sizes and bases outside the limits: the queue is refused, and can be enabled once corrected."""
    tb = await TB.start(dut, queues=0)
    before = await tb.counters("queue_errors")
    queue = Queue(tb, 0)
    refused = 0
    for ring in ("rx_free", "rx_completion", "tx", "event"):
        for register, value in ((f"{ring}_size", 0), (f"{ring}_size", 2), (f"{ring}_base_low", queue.event.base + 32)):
            await queue.set_up()
            await queue.write(register, value & 0xFFFF_FFFF)
            await queue.write("control", 1)
            await tb.until(queue.has_state, QueueState.REFUSED)
            refused += 1
            await queue.write("control", 0)
            await tb.until(queue.has_state, QueueState.DISABLED)
    assert (await tb.changes(before))["queue_errors"] == refused
    await queue.enable()
    tb.queues[0] = queue
    await tb.write("CONTROL", "control", 1)
    # While it is on its rings cannot move.
    for ring in ("rx_free", "rx_completion", "tx", "event"):
        base = getattr(queue, ring).base & 0xFFFF_FFFF
        await queue.write(f"{ring}_base_low", 0x40)
        await queue.write(f"{ring}_size", 15)
        assert await queue.read(f"{ring}_base_low") == base
    await tb.alive(await tb.listen())
    await tb.end()


@core_test()
async def doorbells(dut):
    """An index with more entries than the ring has, or of a queue that is off, is refused."""
    tb = await TB.start(dut, tx=3, rx=3, buffers=4)
    queue, listener = tb.queues[0], await tb.listen()
    before = await tb.counters("doorbell_errors", "axi_read_errors", "tx_errors")
    errors = 0
    for register, index in (
        ("tx_tail", queue.tx.index + 9),
        ("tx_tail", queue.tx.index - 1),
        ("tx_tail", queue.tx.index + 0x8000),
        ("rx_free_tail", queue.rx_free.index + 9),
        ("rx_free_tail", queue.rx_free.index - 9),
        ("rx_completion_head", queue.rx_completion.index + 1),
        ("event_head", queue.event.index + 40),
        ("event_head", queue.event.index - 1),
    ):
        await queue.write(register, index & 0xFFFF)
        errors += 1
    for register in ("tx_tail", "rx_free_tail", "rx_completion_head", "event_head"):
        await tb.write("QUEUE", register, 1, index=tb.config.queues - 1)
        errors += 1
    # A refused doorbell may be told in an event too.
    moved = await tb.changes(before)
    assert moved == {"doorbell_errors": errors}
    queue.poll_events()
    assert all(event["type"] == EventType.QUEUE_ERROR for event in queue.events), queue.events
    queue.events.clear()
    await queue.write("event_head", queue.event.index)
    # The very last index that fits is fine, and the same again is fine.
    frames = [plain_frame(tb.rng, 60 + number) for number in range(8)]
    for frame in frames:
        queue.send(frame)
    await queue.ring_tx()
    await queue.ring_tx()
    assert await tb.frames(8) == frames
    await tb.alive(listener)
    await tb.end()


@core_test()
async def tx_descriptors(dut):
    """Every field of a TX descriptor that can be wrong: one error event each, frames around it unharmed."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    frame = plain_frame(tb.rng, 100)
    limit, l4 = tb.config.max_frame, TxFlag.L4_CHECKSUM
    before = await tb.counters("tx_errors", "tx_packets")
    cases = [
        ({"opcode": 0}, Status.BAD_OPCODE),
        ({"opcode": 3}, Status.BAD_OPCODE),
        ({"opcode": 255}, Status.BAD_OPCODE),
        ({"length": 0}, Status.BAD_LENGTH),
        ({"length": 13}, Status.BAD_LENGTH),
        ({"length": limit + 1}, Status.BAD_LENGTH),
        ({"length": 65535}, Status.BAD_LENGTH),
        ({"mss": 1460}, Status.FEATURE_ABSENT),
        ({"address": UNMAPPED}, Status.BAD_ADDRESS),
        ({"address": tb.memory.end - 40}, Status.BAD_ADDRESS),
        ({"address": (1 << 64) - 64}, Status.BAD_ADDRESS),
        ({"flags": l4, "l3_offset": 14, "l4_offset": 99}, Status.BAD_ARGUMENT),
        ({"flags": l4, "l3_offset": 14, "l4_offset": 255}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.IPV4_CHECKSUM, "l3_offset": 90}, Status.BAD_ARGUMENT),
        ({"flags": TxFlag.IPV4_CHECKSUM, "l3_offset": 255}, Status.BAD_ARGUMENT),
        ({"port": 3}, Status.BAD_ARGUMENT),
    ]
    for changes, status in cases:
        good = [plain_frame(tb.rng, 70), plain_frame(tb.rng, 71)]
        queue.send(good[0])
        index = queue.send(frame, **changes)
        queue.send(good[1])
        await queue.ring_tx()
        event = await queue.take_event()
        assert (event["type"], event["index"]) == (EventType.TX_ERROR, index), (changes, event)
        assert event["status"] == status, f"{changes}: {Status(event['status'])!r}, not {status!r}"
        assert await tb.frames(2) == good, changes
    assert await tb.changes(before) == {"tx_errors": len(cases), "tx_packets": 2 * len(cases)}
    # Commands at bad addresses.
    for address in (UNMAPPED, tb.memory.end - 32):
        event = await queue.run(Listener(99).command(), address=address)
        assert (event["type"], event["status"]) == (EventType.TX_ERROR, Status.BAD_ADDRESS)
    await tb.alive(listener)
    await tb.end()


@core_test()
async def rx_buffers(dut):
    """Buffers with zero, huge or too small length, or at bad addresses: each ends in one completion."""
    tb = await TB.start(dut, buffers=0)
    queue, listener = tb.queues[0], await tb.listen()
    memory_end = tb.memory.end
    names = ("rx_buffer_errors", "rx_host_packets", "axi_write_errors")
    before = await tb.counters(*names)
    cases = [
        ({"length": 0}, Status.BAD_LENGTH),
        ({"length": 65536}, Status.BAD_LENGTH),
        ({"length": 0xFFFF_FFFF}, Status.BAD_LENGTH),
        ({"length": 199}, Status.BAD_LENGTH),
        ({"length": 1}, Status.BAD_LENGTH),
        ({"address": (1 << 64) - 100, "length": 2048}, Status.BAD_LENGTH),  # would wrap
        ({"address": UNMAPPED}, Status.BAD_ADDRESS),
        ({"address": memory_end - 100}, Status.BAD_ADDRESS),
    ]
    for changes, status in cases:
        tag = queue.post(2048, **changes)
        await queue.ring_rx()
        tb.rx[0].send(plain_frame(tb.rng, 200))
        await queue._wait(lambda: queue.received, f"completion for {changes}", 40)
        received = queue.received.popleft()
        assert received.tag == tag
        wanted = (status, Status.BAD_ADDRESS) if "address" in changes else (status,)
        assert received.status in wanted, (changes, received.completion)
        if status == Status.BAD_LENGTH:
            assert received.length == 0
    moved = await tb.changes(before)
    assert moved["rx_buffer_errors"] == len(cases)
    assert "rx_host_packets" not in moved
    queue.poll_events()
    assert all(event["type"] == EventType.RX_ERROR for event in queue.events)
    queue.events.clear()
    await queue.write("event_head", queue.event.index)
    # Exactly large enough is fine; the largest length is fine.
    for size in (200, 65535):
        address = tb.memory.alloc(1 << 16)
        queue.post(size, address=address, length=size)
        await queue.ring_rx()
        frame = plain_frame(tb.rng, 200)
        tb.rx[0].send(frame)
        assert (await queue.receive_one()).data == frame
    await queue.refill(2)
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=3000)
async def bus_errors(dut):
    """SLVERR and DECERR on each kind of access, one kind at a time; afterwards all is well again."""
    tb = await TB.start(dut, queues=2)
    queue, listener = tb.queues[0], await tb.listen()
    frame = plain_frame(tb.rng, 100)
    for error in (SLVERR, DECERR):
        # TX data
        address = tb.memory.alloc(256)
        fault = Fault(address, address + 256, read=error, write=error)
        tb.memory.faults[:] = [fault]
        queue.send(b"?", address=address, length=100, flags=TxFlag.EVENT)
        await queue.ring_tx()
        event = await queue.take_event()
        assert (event["type"], event["status"]) == (EventType.TX_ERROR, Status.BAD_ADDRESS)
        # A command
        event = await queue.run(Listener(5).command(), address=address)
        assert (event["type"], event["status"]) == (EventType.TX_ERROR, Status.BAD_ADDRESS)
        # RX data: buffers already fetched are good, this one is not
        assert fault.hits
        await tb.settle()
        other = tb.queues[1]
        await tb.write("CONTROL", "default_queue", 1)
        left = len(other.buffers)
        for tag in list(other.buffers):
            tb.memory.faults.append(Fault(other.buffers[tag][0], other.buffers[tag][0] + 64, read=0, write=error))
        for _ in range(left):
            tb.rx[0].send(frame)
        for received in await other.receive(left):
            assert received.status == Status.BAD_ADDRESS, received.completion
        tb.memory.faults.clear()
        await other.refill(left)
        tb.rx[0].send(frame)
        assert (await other.receive_one()).data == frame
        await other.refill(1)
        await tb.write("CONTROL", "default_queue", 0)
        other.poll_events()
        other.events.clear()
        await other.write("event_head", other.event.index)
    moved = await tb.counters("axi_read_errors", "axi_write_errors", "tx_errors", "rx_buffer_errors")
    assert all(moved.values()), moved
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=3000)
async def bad_rings(dut):
    """Rings whose memory the bus refuses: other queues do not notice, and the queue can be restarted."""
    tb = await TB.start(dut, queues=2, buffers=12)
    good, bad = tb.queues[0], tb.queues[1]
    listener = await tb.listen()
    frame = plain_frame(tb.rng, 100)
    for ring, error in itertools.product(("tx", "event", "rx_completion", "rx_free"), (SLVERR, DECERR)):
        place = getattr(bad, ring)
        size = place.message.size << place.log2
        tb.memory.faults[:] = [Fault(place.base, place.base + size, read=error, write=error)]
        before = await tb.counters("axi_read_errors", "axi_write_errors")
        await tb.write("CONTROL", "default_queue", 1)
        if ring == "rx_free":
            await bad.refill(2)
        tb.rx[0].send(frame)
        bad.send(frame, flags=TxFlag.EVENT)
        await bad.ring_tx()
        await tb.settle()
        assert await tb.changes(before), f"no error was counted for {ring}"
        await tb.write("CONTROL", "default_queue", 0)
        tb.tx[0].frames.clear()
        await tb.alive(listener)
        queue_frame = plain_frame(tb.rng, 333)
        good.send(queue_frame)
        await good.ring_tx()
        assert_frames_equal(await tb.frame(), pad(queue_frame))
        # With good memory the queue works again after a restart.
        tb.memory.faults.clear()
        await bad.disable()
        await bad.restart(buffers=4)
        await tb.write("CONTROL", "default_queue", 1)
        tb.rx[0].send(frame)
        assert (await bad.receive_one()).data == frame
        bad.send(frame, flags=TxFlag.EVENT)
        await bad.ring_tx()
        assert (await bad.take_event())["type"] == EventType.TX_DONE
        assert_frames_equal(await tb.frame(), frame)
        await tb.write("CONTROL", "default_queue", 0)
    await tb.end()


@core_test()
async def second_listener(dut):
    """A second listener on the same port is refused and the first one keeps serving."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    for _ in range(3):
        event = await queue.run(Listener(80, mss=555).command())
        assert event["status"] == Status.DUPLICATE
        await tb.open(Client(tb.rng.randrange(1, 65536)), listener)
    await tb.end()


@core_test()
async def event_overflow(dut):
    """Events for a full ring are lost, counted, and told of by the next one."""
    tb = await TB.start(dut, events=3, tx=5, buffers=0)
    queue = tb.queues[0]
    queue.acknowledge = False
    before = await tb.counters("event_overflow", "tx_packets")
    for number in range(12):
        queue.send(plain_frame(tb.rng, 60 + number), flags=TxFlag.EVENT)
    await queue.ring_tx()
    await tb.frames(12)
    assert await tb.changes(before) == {"event_overflow": 4, "tx_packets": 12}
    queue.acknowledge = True
    events = await queue.take_events(8)
    assert [event["index"] for event in events] == list(range(8))
    assert not any(event["overflow"] for event in events)
    await tb.settle()
    for overflow in (1, 0):
        queue.send(plain_frame(tb.rng, 60), flags=TxFlag.EVENT)
        await queue.ring_tx()
        assert (await queue.take_event())["overflow"] == overflow
        await tb.frame()
    await tb.end()
