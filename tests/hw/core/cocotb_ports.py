"""Two MAC ports."""

from __future__ import annotations

from acceltcp.abi.messages import EventType, Status

from .bench import SECRET, TB, core_test
from .frames import MACS, Client, assert_new, plain_frame, syn_ack


@core_test()
async def replies_leave_where_requests_came(dut):
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    epoch, ts_clock = await tb.clocks()
    clients = [Client(1000 + number, dst_mac=MACS[number % 2]) for number in range(24)]
    for number, client in enumerate(clients):
        tb.rx[number % 2].send(client.syn())
    for number, client in enumerate(clients):
        answer = await tb.frame(number % 2)
        assert answer == syn_ack(client.syn(), listener, secret=SECRET, epoch=epoch, ts_clock=ts_clock)
        # The ACK may come in on the other port: cookies know no ports.
        other = Client(client.port, dst_mac=MACS[1 - number % 2]) if number % 3 == 0 else client
        port = MACS.index(other.dst_mac)
        segment = other.ack(answer, data=b"hello")
        tb.rx[port].send(segment)
        received = await queue.receive_one()
        assert_new(received, client.syn(), listener, segment)
        assert received.port == port
        await queue.refill(1)
    await tb.end()


@core_test(timeout_us=2000)
async def both_at_once(dut):
    """Full speed on both: order is kept per port, nothing is mixed up."""
    tb = await TB.start(dut, buffers=0, rx=6, completions=6)
    queue = tb.queues[0]
    await queue.refill(60, 1024)
    await tb.settle()
    sent = ([], [])
    for port in (0, 1):
        for _ in range(25):
            frame = plain_frame(tb.rng, tb.rng.choice((60, 64, 65, 200, 900)), dst_mac=MACS[port])
            sent[port].append(frame)
            tb.rx[port].send(frame)
    got = await queue.receive(50, within_us=100)
    for port in (0, 1):
        assert [one.data for one in got if one.port == port] == sent[port]
    totals = await tb.counters("rx_packets", "rx_bytes", "rx_host_packets")
    assert totals["rx_packets"] == totals["rx_host_packets"] == 50
    assert totals["rx_bytes"] == sum(map(len, sent[0] + sent[1]))
    await tb.end()


@core_test()
async def filters_are_per_port(dut):
    """Each port has its own address and its own switches."""
    tb = await TB.start(dut)
    queue, listener = tb.queues[0], await tb.listen()
    before = await tb.counters("rx_drop_filter")
    for port in (0, 1):
        tb.rx[port].send(plain_frame(tb.rng, 90, dst_mac=MACS[1 - port]))
    assert await tb.changes(before) == {"rx_drop_filter": 2}
    await tb.write("PORT", "config", 1, 1)
    frame = plain_frame(tb.rng, 90, dst_mac=MACS[0])
    tb.rx[1].send(frame)
    received = await queue.receive_one()
    assert (received.port, received.data) == (1, frame)
    tb.rx[0].send(plain_frame(tb.rng, 90, dst_mac=MACS[1]))
    assert await tb.changes(before) == {"rx_drop_filter": 3}
    await tb.alive(listener)
    await tb.end()


@core_test()
async def sending(dut):
    """Each frame leaves on the port its descriptor names; a stopped port does not change what the other sends."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    wanted = ([], [])
    for _ in range(16):
        port = tb.rng.randrange(2)
        frame = plain_frame(tb.rng, tb.rng.randrange(60, 300))
        wanted[port].append(frame)
        queue.send(frame, port=port)
    await queue.ring_tx()
    for port in (0, 1):
        assert await tb.frames(len(wanted[port]), port) == wanted[port]
    index = queue.send(plain_frame(tb.rng, 60), port=2)
    await queue.ring_tx()
    event = await queue.take_event()
    assert (event["type"], event["status"], event["index"]) == (EventType.TX_ERROR, Status.BAD_ARGUMENT, index)
    await tb.alive(await tb.listen())
    await tb.end()


@core_test()
async def stopped_port(dut):
    """SYNs on port 1 are answered while the wire of port 0 stands still (with few frames waiting for it)."""
    tb = await TB.start(dut)
    listener = await tb.listen()
    stopped = True
    tb.tx[0].pause = lambda: stopped
    tb.rx[0].send(Client(1).syn())
    await tb.cycles(400)
    answer = await tb.open(Client(2, dst_mac=MACS[1]), listener, port=1)
    assert answer
    stopped = False
    await tb.frame(0)
    await tb.end()
