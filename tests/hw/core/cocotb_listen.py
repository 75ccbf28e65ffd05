"""Commands: the listen table from the host's side."""

from __future__ import annotations

from dataclasses import replace

from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, EventType, ListenFlag, Status, Verdict

from .bench import TB, core_test
from .driver import Listener
from .frames import SERVER4, SERVER6, Client, as_number, assert_new


@core_test()
async def statuses(dut):
    """Each way a command can end, each with exactly one event, and counted."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    before = await tb.counters("commands", "command_errors", "tx_errors")
    any4 = Listener(80)
    exact = Listener(80, address=as_number(SERVER4), mss=1000)
    v6 = Listener(80, address=as_number(SERVER6), ipv6=True)
    reserved = max(ListenFlag) << 1
    unlisten, update = CommandOpcode.UNLISTEN, CommandOpcode.LISTEN_UPDATE
    script = [
        ({"opcode": CommandOpcode.NOP}, Status.OK),
        (any4.command(), Status.OK),
        (any4.command(), Status.DUPLICATE),
        (any4.command(mss=500), Status.DUPLICATE),
        (exact.command(), Status.OK),
        (Listener(80, ipv6=True).command(), Status.OK),
        (v6.command(), Status.OK),
        (v6.command(), Status.DUPLICATE),
        (any4.command(port=0), Status.BAD_ARGUMENT),
        (any4.command(port=81, queue=tb.config.queues), Status.BAD_ARGUMENT),
        (any4.command(port=81, queue=255), Status.BAD_ARGUMENT),
        (any4.command(port=81, mss=63), Status.BAD_ARGUMENT),
        (any4.command(port=81, mss=0), Status.BAD_ARGUMENT),
        (any4.command(port=81, wscale=15), Status.BAD_ARGUMENT),
        (any4.command(port=81, address=1), Status.BAD_ARGUMENT),
        (any4.command(port=81, flags=any4.flags | reserved), Status.BAD_ARGUMENT),
        (any4.command(port=81, _zero0=1 << 23), Status.BAD_ARGUMENT),
        (any4.command(port=81, _zero1=1 << 247), Status.BAD_ARGUMENT),
        (exact.command(port=81, address=1), Status.BAD_ARGUMENT),  # IPv4 with a first byte set
        (any4.command(port=81, mss=64, wscale=14, queue=tb.config.queues - 1), Status.OK),
        (any4.command(update, port=82), Status.NOT_FOUND),
        (any4.command(update, mss=63), Status.BAD_ARGUMENT),
        (any4.command(update, mss=1200), Status.OK),
        (any4.command(unlisten, port=82), Status.NOT_FOUND),
        (v6.command(unlisten, mss=0, queue=255), Status.OK),  # only the key is looked at
        (v6.command(unlisten), Status.NOT_FOUND),
        (exact.command(unlisten), Status.OK),
        ({"opcode": max(CommandOpcode) + 1}, Status.BAD_OPCODE),
        ({"opcode": 255}, Status.BAD_OPCODE),
    ]
    for number, (command, status) in enumerate(script):
        event = await queue.run(command)
        assert event["type"] == EventType.COMMAND_DONE
        assert event["status"] == status, f"command {number}: {event}, not {status!r}"
        if status != Status.OK:
            assert event["value"] == 0
    good = sum(status == Status.OK for _, status in script)
    moved = await tb.changes(before)
    assert (moved["commands"], moved["command_errors"]) == (good, len(script) - good)
    await tb.alive(replace(any4, mss=1200, index=0))
    await tb.end()


@core_test()
async def refused_commands_change_nothing(dut):
    """A wildcard listener goes on as it was after every kind of refused update."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    update = CommandOpcode.LISTEN_UPDATE
    for bad in ({"mss": 1}, {"wscale": 15}, {"queue": 77}, {"flags": 0x82}, {"_zero1": 1}):
        changed = {"mss": 777, "window": 7, **bad}
        assert (await queue.run(listener.command(update, **changed)))["status"] == Status.BAD_ARGUMENT
        await tb.open(Client(tb.rng.randrange(1, 65536)), listener)
    await tb.end()


@core_test(timeout_us=2000)
async def full_table(dut):
    tb = await TB.start(dut)
    queue, size = tb.queues[0], tb.config.listeners
    listeners = []
    for number in range(size):
        v6 = number % 3 == 1
        listener = Listener(
            1000 + number, ipv6=v6, mss=600 + number, address=None if number % 2 else 0x0A00_0001
        )
        listeners.append(await tb.listen(listener))
    assert sorted(listener.index for listener in listeners) == list(range(size))
    for _ in range(2):
        assert (await queue.run(Listener(80).command()))["status"] == Status.TABLE_FULL
    # All of them answer, each with its own values.
    for listener in tb.rng.sample(listeners, min(8, size)):
        dst = (None if listener.address is None else "::a00:1") if listener.ipv6 else "10.0.0.1"
        await tb.open(Client(server_port=listener.port, ipv6=listener.ipv6, dst=dst), listener)
    gone = tb.rng.choice(listeners)
    assert (await queue.run(gone.command(CommandOpcode.UNLISTEN)))["status"] == Status.OK
    newcomer = await tb.listen(Listener(80))
    assert newcomer.index == gone.index, "the only free place"
    await tb.alive(newcomer)
    await tb.end()


@core_test()
async def exact_before_any(dut):
    tb = await TB.start(dut)
    queue = tb.queues[0]
    exact = Listener(80, address=as_number(SERVER4), mss=900)
    for listeners in ((exact, Listener(80)), (Listener(80), exact)):
        made = {listener.mss: await tb.listen(listener) for listener in listeners}
        await tb.open(Client(), made[900])
        await tb.open(Client(dst="192.0.2.11"), made[1460])
        for listener in listeners:
            assert (await queue.run(listener.command(CommandOpcode.UNLISTEN)))["status"] == Status.OK
    await tb.end()


@core_test()
async def unlisten_and_update(dut):
    """After UNLISTEN a SYN is the host's; UPDATE moves a listener to another queue at once."""
    tb = await TB.start(dut, queues=2)
    queue, listener = tb.queues[0], await tb.listen()
    client = Client(options=[("MSS", 1400)])
    answer = await tb.open(client, listener)

    moved = replace(listener, queue=1, mss=1000, window=5000, wscale=2)
    assert (await queue.run(moved.command(CommandOpcode.LISTEN_UPDATE)))["status"] == Status.OK
    first = client.ack(answer, data=b"first")
    tb.rx[0].send(first)
    assert_new(await tb.queues[1].receive_one(), client.syn(), moved, first)
    await tb.open(Client(1), moved)

    assert (await queue.run(moved.command(CommandOpcode.UNLISTEN)))["status"] == Status.OK
    for frame in (client.syn(), first):
        tb.rx[0].send(frame)
        received = await queue.receive_one()
        assert (received.verdict, received.listener, received.data) == (Verdict.PLAIN, 0, frame)
    await tb.end()


@core_test()
async def commands_at_any_address(dut):
    """Commands need no alignment, may cross 4 KiB, and their length must be right."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    port = 100
    for offset in (1, 31, 32, 63, 4032 + 1, 4032 + 63):
        listener = Listener(port := port + 1)
        tb.memory.alloc(0, align=4096)
        assert (await queue.run(listener.command(), offset=offset))["status"] == Status.OK
        await tb.open(Client(server_port=port), listener)
        if port % 4 == 0:
            await queue.run(listener.command(CommandOpcode.UNLISTEN))
    before = await tb.counters("commands")
    for length in (0, 1, 63, 65, 128, 65535):
        event = await queue.run(Listener(7).command(), length=length)
        assert event["status"] == Status.BAD_LENGTH, (length, event)
    assert not await tb.changes(before)
    tb.rx[0].send(Client(server_port=7).syn())
    assert (await queue.receive_one()).listener == 0, "a refused command has had no effect"
    await tb.end()


@core_test()
async def commands_from_every_queue(dut):
    """Queues command at the same time: each gets its own events, and the table all the listeners."""
    tb = await TB.start(dut, queues=4, buffers=2)
    each = min(8, tb.config.listeners // 4)
    for number, queue in tb.queues.items():
        for count in range(each):
            listener = Listener(1000 + 100 * number + count, queue=number)
            queue.command_raw(
                LISTEN_COMMAND.pack(**listener.command(tag=count + 1)), offset=tb.rng.randrange(64)
            )
    for queue in tb.queues.values():
        await queue.ring_tx()
    indices = set()
    for number, queue in tb.queues.items():
        for count, event in enumerate(await queue.take_events(each, within_us=400)):
            assert (event["status"], event["tag"], event["queue"]) == (Status.OK, count + 1, number)
            assert event["index"] == count
            indices.add(event["value"])
            listener = Listener(1000 + 100 * number + count, queue=number, index=event["value"])
            if count == 0:
                await tb.alive(listener)
    assert len(indices) == 4 * each
    await tb.end()


@core_test()
async def commands_in_a_row(dut):
    """A ring full of commands ends in their events, in order."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    expected = []
    for number in range(queue.tx.entries):
        port = 200 + number // 2
        opcode = CommandOpcode.UNLISTEN if number % 2 else CommandOpcode.LISTEN
        raw = LISTEN_COMMAND.pack(**Listener(port).command(opcode, tag=0xABC0_0000 + number))
        expected.append((queue.command_raw(raw), 0xABC0_0000 + number, Status.OK))
    await queue.ring_tx()
    events = await queue.take_events(len(expected), within_us=800)
    assert [(e["index"], e["tag"], e["status"]) for e in events] == expected
    tb.rx[0].send(Client(server_port=200).syn())
    received = await queue.receive_one()
    assert (received.listener, received.verdict) == (0, Verdict.PLAIN)
    await tb.end()
