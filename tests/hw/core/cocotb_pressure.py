"""Everything at once, with every bus stalling; stopping and restarting in the middle of it."""

from __future__ import annotations

from cocotb.triggers import Timer

from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, EventType, Status, TxFlag

from .bench import SECRET, TB, core_test
from .driver import Listener
from .frames import Client, plain_frame, syn_ack

NOP = LISTEN_COMMAND.pack(opcode=CommandOpcode.NOP)

STALLS = (
    {"ar": 0.7},
    {"r": 0.7},
    {"aw": 0.7},
    {"w": 0.7},
    {"b": 0.7},
    {"aw": 0.5, "w": 0.5},
    {"ar": 0.5, "r": 0.5, "aw": 0.5, "w": 0.5, "b": 0.5},
)


async def mixed_traffic(tb: TB, listener: Listener, rounds: int) -> None:
    """Host frames, received frames, handshakes and commands together; all of it is checked."""
    queue = tb.queues[0]
    epoch, ts_clock = await tb.clocks()
    for _ in range(rounds):
        received = [plain_frame(tb.rng, tb.rng.choice((60, 64, 65, 130, 300, 700))) for _ in range(6)]
        sent = [plain_frame(tb.rng, tb.rng.choice((60, 64, 65, 130, 300, 700))) for _ in range(6)]
        clients = [Client(tb.rng.randrange(1, 65536), iss=tb.rng.getrandbits(32)) for _ in range(6)]
        syns = [client.syn() for client in clients]
        for _ in received:
            queue.post(1024, offset=tb.rng.randrange(64))
        await queue.ring_rx()
        for frame in sent:
            queue.send(frame, flags=TxFlag.EVENT, offset=tb.rng.randrange(64))
        queue.command_raw(NOP)
        await queue.ring_tx()
        for frame, syn in zip(received, syns, strict=True):
            tb.rx[0].send(frame)
            tb.rx[0].send(syn)
        got = await queue.receive(len(received), within_us=200)
        assert [one.data for one in got] == received
        wire = await tb.frames(len(sent) + len(syns), within_us=200)
        # The command's event comes after those of the frames before it.
        types = [event["type"] for event in await queue.take_events(len(sent) + 1, within_us=200)]
        assert types == [EventType.TX_DONE] * len(sent) + [EventType.COMMAND_DONE]
        expected = [syn_ack(syn, listener, secret=SECRET, epoch=epoch, ts_clock=ts_clock) for syn in syns]
        answers = [frame for frame in wire if frame in expected]
        assert answers == expected
        assert [frame for frame in wire if frame not in expected] == sent


@core_test(timeout_us=4000)
async def stalled_buses(dut):
    """Stalls on each AXI channel alone and on all, a wire that toggles `tready`, gaps on the receive side."""
    tb = await TB.start(dut, rules=True, buffers=0)
    listener = await tb.listen()
    tb.tx[0].pause = lambda: tb.rng.random() < 0.4
    tb.rx[0].gap = lambda: tb.rng.random() < 0.2
    for stalls in STALLS:
        tb.bus.stall(**stalls)
        await mixed_traffic(tb, listener, 1)
    tb.bus.stall()
    tb.tx[0].pause = lambda: tb.rng.random() < 0.95
    await mixed_traffic(tb, listener, 1)
    assert all(tb.rules.stalled.values()), f"the stalls were not felt: {tb.rules.stalled}"
    await tb.end()


@core_test(timeout_us=2000)
async def stopped_wire(dut):
    """The wire stands still while SYNs flood in: they are dropped and counted, and all else goes on."""
    tb = await TB.start(dut, buffers=0)
    queue, listener = tb.queues[0], await tb.listen()
    stopped = True
    tb.tx[0].pause = lambda: stopped
    names = ("setup_syn", "setup_syn_ack", "setup_drop_busy", "rx_drop_full", "rx_host_packets", "tx_packets")
    before = await tb.counters(*names)
    syns = [Client(1000 + number).syn() for number in range(150)]
    for syn in syns:
        tb.rx[0].send(syn)
    await tb.rx[0].wait()
    # Receiving and commands do not depend on the wire.
    for _ in range(2):
        queue.post()
    await queue.ring_rx(wait=False)
    await tb.cycles(200)
    frame = plain_frame(tb.rng, 200)
    tb.rx[0].send(frame)
    assert (await queue.receive_one()).data == frame
    assert (await queue.run({"opcode": 0}))["status"] == Status.OK
    stopped = False
    moved = await tb.changes(before)
    # An iterative hash does not keep up with the wire; the receive buffer drops what it cannot hold.
    full = 0 if tb.config.pipelined_hash else moved.get("rx_drop_full", 0)
    assert moved["setup_syn"] + full == len(syns), moved
    assert moved["setup_syn"] == moved["setup_syn_ack"] + moved["setup_drop_busy"], moved
    assert moved["tx_packets"] == moved["setup_syn_ack"] == len(tb.tx[0].frames)
    tb.tx[0].frames.clear()
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=4000)
async def dead_memory(dut):
    """Host memory that does not answer: frames are dropped, SYNs still answered, and all of it ends well."""
    tb = await TB.start(dut, buffers=0, rx=6, completions=6)
    queue, listener = tb.queues[0], await tb.listen()
    await queue.refill(60, 2048)
    await tb.settle()
    before = await tb.counters()
    tb.bus.stall(ar=1.0, aw=1.0, w=1.0)
    frames = [plain_frame(tb.rng, 1000) for _ in range(70)]
    for frame in frames:
        tb.rx[0].send(frame)
    await tb.rx[0].wait()
    await Timer(2, "us")
    tb.bus.stall()
    moved = await tb.changes(before)
    queue.poll_received()
    got = [received.data for received in queue.received]
    queue.received.clear()
    remaining = iter(frames)
    assert all(frame in remaining for frame in got), "frames out of order or changed"
    drops = sum(moved.get(name, 0) for name in ("rx_drop_full", "rx_drop_no_buffer", "rx_drop_completion_full"))
    assert len(got) + drops == len(frames), moved
    await queue.write("rx_completion_head", queue.rx_completion.index)
    await queue.refill(4)
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=4000)
async def disable_under_load(dut):
    """A queue goes off and on again in the middle of traffic; another one loses nothing."""
    tb = await TB.start(dut, queues=2, buffers=0)
    steady, other = tb.queues[0], tb.queues[1]
    listener = await tb.listen(Listener(80, queue=0))
    flaky = await tb.listen(Listener(81, queue=1))
    await steady.refill(2)
    for round_number in range(5):
        await other.refill(12)
        for _ in range(10):
            other.send(plain_frame(tb.rng, 400), flags=TxFlag.EVENT)
        await other.ring_tx()
        await steady.refill(8)
        client = Client(server_port=81)
        for _ in range(8):
            tb.rx[0].send(client.segment("A", 1, 2, data=b"flaky"))
            tb.rx[0].send(Client(server_port=80).segment("A", 1, 2, data=b"steady"))
        await tb.cycles(20 + 37 * round_number)
        await other.disable()
        # Off means off: its memory may be reused at once.
        regions = [(ring.base, ring.message.size << ring.log2) for ring in (other.rx_completion, other.event)]
        regions += [(address, length) for address, length in other.buffers.values()]
        before = [tb.memory.read(address, size) for address, size in regions]
        got = await steady.receive(8, within_us=100)
        assert all(received.data.startswith(got[0].data[:12]) for received in got)
        await tb.settle()
        assert [tb.memory.read(address, size) for address, size in regions] == before
        tb.tx[0].frames.clear()
        await other.restart(buffers=4)
        await tb.alive(listener)
        await tb.alive(flaky)
        await other.disable()
        await other.restart(buffers=0)
    await tb.end()


async def set_up_again(tb: TB) -> Listener:
    """After a soft reset: everything as at power-on, then a good client."""
    await tb.set_addresses()
    await tb.set_secret(SECRET)
    for queue in tb.queues.values():
        await queue.restart()
    await tb.write("CONTROL", "control", 1)
    listener = await tb.listen()
    await tb.alive(listener)
    return listener


async def soft_reset(tb: TB) -> None:
    await tb.write("CONTROL", "reset", 1)

    async def over() -> bool:
        return not (await tb.read_fields("CONTROL", "status"))["resetting"]

    await tb.until(over, within_us=400)


@core_test(timeout_us=4000)
async def soft_reset_under_load(dut):
    """Reset in the middle of everything: the buses stay legal, everything is as new but scratch."""
    tb = await TB.start(dut, rules=True, buffers=0)
    listener = await tb.listen()
    await tb.write("IDENT", "scratch", 0x5C7A_7C40)
    for stalls in ({}, {"ar": 0.6, "r": 0.6, "w": 0.6, "b": 0.6}, {}):
        queue = tb.queues[0]
        tb.bus.stall(**stalls)
        await queue.refill(14)
        for _ in range(10):
            queue.send(plain_frame(tb.rng, 500), flags=TxFlag.EVENT)
        await queue.ring_tx()
        for number in range(12):
            tb.rx[0].send(Client(number + 1).syn())
            tb.rx[0].send(plain_frame(tb.rng, 300))
        await tb.cycles(tb.rng.randrange(10, 200))
        await soft_reset(tb)
        assert tb.bus.idle, "bus transactions were abandoned"
        tb.bus.stall()
        await tb.rx[0].wait()
        await tb.settle()
        tb.tx[0].frames.clear()
        assert not tb.tx[0].partial, "a frame was cut on the wire"
        assert await tb.read("IDENT", "scratch") == 0x5C7A_7C40
        assert await tb.read("CONTROL", "control") == 0
        assert not (await tb.read_fields("CONTROL", "status"))["secret_valid"]
        everything = await tb.counters()
        assert {name for name, value in everything.items() if value} <= {"rx_drop_disabled"}
        written = tb.bus.writes
        tb.rx[0].send(Client().syn())
        await tb.settle()
        assert tb.bus.writes == written
        listener = await set_up_again(tb)
    assert listener.index == 0
    await tb.end()


@core_test(timeout_us=4000)
async def hard_reset_under_load(dut):
    """Reset of NIC and bus in the middle of everything: afterwards all is as at power-on."""
    tb = await TB.start(dut, buffers=0)
    await tb.listen()
    for _ in range(4):
        queue = tb.queues[0]
        tb.bus.stall(r=0.5, w=0.5)
        await queue.refill(14)
        for _ in range(10):
            queue.send(plain_frame(tb.rng, 500), flags=TxFlag.EVENT)
        await queue.ring_tx()
        for number in range(8):
            tb.rx[0].send(Client(number + 1).syn())
            tb.rx[0].send(plain_frame(tb.rng, 300))
        await tb.cycles(tb.rng.randrange(10, 200))
        await tb.reset(tb.rng.randrange(1, 10))
        tb.bus.stall()
        await tb.rx[0].wait()
        tb.tx[0].frames.clear()
        written = tb.bus.writes
        await tb.settle()
        assert tb.bus.writes == written
        await set_up_again(tb)
    await tb.end()


@core_test()
async def disable_with_stopped_wire(dut):
    """A wire that stands still does not keep a queue's memory: its frames have been read."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    stopped = True
    tb.tx[0].pause = lambda: stopped
    frames = [plain_frame(tb.rng, 300) for _ in range(3)]
    for frame in frames:
        queue.send(frame, flags=TxFlag.EVENT)
    await queue.ring_tx()
    await queue.take_events(3)
    await queue.disable()
    stopped = False
    assert await tb.frames(3) == frames
    await queue.restart()
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=2000)
async def receive_switch(dut):
    """`CONTROL.control.enable` off and on under load cuts no frame and loses count of none."""
    tb = await TB.start(dut, buffers=0, rx=6, completions=6)
    queue, listener = tb.queues[0], await tb.listen()
    await queue.refill(60, 512)
    await tb.settle()
    before = await tb.counters("rx_drop_disabled", "rx_host_packets")
    frames = [plain_frame(tb.rng, tb.rng.randrange(60, 300)) for _ in range(40)]
    for frame in frames:
        tb.rx[0].send(frame)
    for _ in range(4):
        await tb.cycles(tb.rng.randrange(5, 60))
        await tb.write("CONTROL", "control", 0)
        await tb.cycles(tb.rng.randrange(5, 60))
        await tb.write("CONTROL", "control", 1)
    await tb.rx[0].wait()
    moved = await tb.changes(before)
    queue.poll_received()
    got = [received.data for received in queue.received]
    queue.received.clear()
    remaining = iter(frames)
    assert all(frame in remaining for frame in got)
    assert moved.get("rx_host_packets", 0) == len(got)
    assert moved.get("rx_drop_disabled", 0) + len(got) == len(frames)
    await queue.write("rx_completion_head", queue.rx_completion.index)
    await queue.refill(4)
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=2000)
async def narrow_receive_buffer(dut):
    """A burst of the largest frames with slow memory: whole frames arrive or are dropped whole."""
    tb = await TB.start(dut, buffers=0, rx=6, completions=6)
    queue, listener = tb.queues[0], await tb.listen()
    tb.bus.latency = lambda: 60
    tb.bus.stall(w=0.9)
    largest = tb.config.max_frame
    count = min(20, 6 * tb.config.rx_buffer_beats * tb.config.width // largest)
    await queue.refill(count, largest)
    await tb.settle()
    before = await tb.counters("rx_drop_full", "rx_host_packets")
    frames = [plain_frame(tb.rng, largest - number) for number in range(count)]
    for frame in frames:
        tb.rx[0].send(frame)
    await tb.rx[0].wait()
    tb.bus.stall()
    moved = await tb.changes(before)
    queue.poll_received()
    got = [received.data for received in queue.received]
    queue.received.clear()
    remaining = iter(frames)
    assert all(frame in remaining for frame in got)
    assert moved.get("rx_drop_full", 0) + len(got) == count
    await queue.write("rx_completion_head", queue.rx_completion.index)
    await queue.refill(4)
    await tb.alive(listener)
    await tb.end()
