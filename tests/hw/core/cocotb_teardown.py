"""Connection teardown on the whole core: CLOSE to FLOW_DONE, against scripted peers built with scapy.

RFC 9293 section 3.10.7, RFC 5961, RFC 6191, RFC 7323; docs/teardown.md.
"""

from __future__ import annotations

from acceltcp.abi.messages import CLOSE_COMMAND, EventType, FlowFlag, FlowState, Status, Verdict

from .bench import TB, core_test
from .closing import LAP_STEPS, M32, Closing, flow_secret, held, records, set_times, steps
from .frames import MACS, TCP, Client, Ether, assert_new

LINGER = 40
TIME_WAIT = 100


async def start(dut, **options) -> TB:
    tb = await TB.start(dut, **options)
    await flow_secret(tb)
    await set_times(tb, linger=LINGER, time_wait=TIME_WAIT, fin_wait_2=200, max_rto=4000)
    return tb


def clients(tb: TB):
    """One of each kind: IPv4, IPv6, tagged."""
    for number, (ipv6, vlan) in enumerate(((False, None), (True, None), (False, 0x2064), (True, 5))):
        yield Client(41000 + number, ipv6=ipv6, vlan=vlan, dst_mac=0)


@core_test(timeout_us=3000)
async def active_close(dut):
    """Data and FIN out, acknowledged, peer's FIN, TIME_WAIT, gone: all address families, with and without timestamps."""
    tb = await start(dut)
    before = await tb.counters()
    count = 0
    for client in clients(tb):
        for timestamps in (True, False):
            data = tb.rng.randbytes(tb.rng.randrange(1, 400))
            flow = await Closing(tb, client, [data], timestamps=timestamps, seq=tb.rng.getrandbits(32), rcv_nxt=tb.rng.getrandbits(32)).close()
            await flow.expect_frame(0)
            assert await flow.state() == FlowState.FIN_WAIT_1
            flow.segment("A")
            await tb.settle()
            assert await flow.state() == FlowState.FIN_WAIT_2
            flow.segment("FA")
            await flow.expect("A", ack=flow.rcv_nxt + 1)
            await flow.done(Status.OK, retransmissions=0)
            assert await flow.state() == FlowState.TIME_WAIT
            # The last acknowledgment was lost: the peer repeats its FIN.
            flow.segment("FA")
            await flow.expect("A", ack=flow.rcv_nxt + 1)
            await steps(tb, TIME_WAIT + LINGER + 4 * LAP_STEPS)
            assert await flow.state() is None and await held(tb) == 0
            count += 1
    moved = await tb.changes(before)
    assert moved["flow_opened"] == moved["flow_closed"] == moved["commands"] == count
    assert moved["flow_packets"] == 3 * count and moved["flow_acks"] == 2 * count
    assert "rx_host_packets" not in moved
    await tb.end()


@core_test(timeout_us=2000)
async def passive_close(dut):
    """The peer has closed first: LAST_ACK, then it lingers and lets nothing open it again."""
    tb = await start(dut)
    listener = await tb.listen()
    client = Client(42000, options=[("MSS", 1460), ("Timestamp", (1000, 0))])
    answer = await tb.open(client, listener)
    request = client.ack(answer, data=b"GET")
    tb.rx[0].send(request)
    assert_new(await tb.queues[0].receive_one(), client.syn(), listener, request)
    flow = Closing(
        tb, client, [b"x" * 300], seq=Ether(answer)[TCP].seq + 1, rcv_nxt=client.iss + 1 + 3 + 1 & M32, peer_fin=True
    )
    await flow.close()
    await flow.expect_frame(0)
    assert await flow.state() == FlowState.LAST_ACK
    # The peer repeats its FIN until it hears us.
    flow.segment("FA", flow.start, seq=flow.rcv_nxt - 1)
    await flow.expect("A")
    flow.segment("A")
    await flow.done(Status.OK, retransmissions=0)
    assert await flow.state() == FlowState.LINGER
    # A late duplicate of the request carries a valid cookie; it must not open the connection again.
    tb.rx[0].send(request)
    await tb.settle()
    await flow.gone()
    assert await flow.state() is None
    tb.rx[0].send(request)
    assert (await tb.queues[0].receive_one()).verdict == Verdict.NEW
    await tb.end()


@core_test(timeout_us=2000)
async def simultaneous_close(dut):
    """FINs cross: CLOSING, then TIME_WAIT."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"abc"]).close()
    await flow.expect_frame(0)
    flow.segment("FA", flow.start)
    await flow.expect("A", ack=flow.rcv_nxt + 1)
    assert await flow.state() == FlowState.CLOSING
    flow.segment("A", seq=flow.rcv_nxt + 1)
    await flow.done(Status.OK)
    assert await flow.state() == FlowState.TIME_WAIT
    await tb.end()


@core_test(timeout_us=4000)
async def sixteen_frames_lost(dut):
    """Sixteen frames, all lost: made good by a time-out and partial acknowledgments (RFC 6298, RFC 6582)."""
    tb = await start(dut)
    parts = [tb.rng.randbytes(100 + k) for k in range(15)] + [b""]
    flow = await Closing(tb, Client(), parts, rto=50).close()
    for number in range(16):
        await flow.expect_frame(number)
    # Nothing of it arrived.
    await steps(tb, 50 + LAP_STEPS)
    await flow.expect_frame(0)
    # A partial acknowledgment after a time-out sends two more, and so does every further one.
    flow.segment("A", flow.seqs[2])
    for number in (2, 3):
        await flow.expect_frame(number)
    flow.segment("A", flow.seqs[4])
    for number in (4, 5):
        await flow.expect_frame(number)
    flow.segment("FA")
    await flow.expect("A", ack=flow.rcv_nxt + 1)
    event = await flow.done(Status.OK)
    assert event["retransmissions"] == 3 and event["rtt"] == 0, "Karn: no sample after a retransmission"
    await tb.end()


@core_test(timeout_us=2000)
async def three_duplicates(dut):
    """RFC 5681: the third duplicate sends the first frame again, once; what carries something is none."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"a" * 90, b"b" * 90, b"c" * 90]).close()
    for number in range(3):
        await flow.expect_frame(number)
    flow.segment("A", flow.seqs[1])
    for _ in range(2):
        flow.segment("A", flow.seqs[1])
    flow.segment("A", flow.seqs[1], window=77)
    await tb.settle()
    tb.assert_nothing_sent()
    flow.segment("A", flow.seqs[1], window=77)
    await flow.expect_frame(1)
    for _ in range(3):
        flow.segment("A", flow.seqs[1], window=77)
    await tb.settle()
    tb.assert_nothing_sent()
    flow.segment("FA")
    await flow.expect("A", ack=flow.rcv_nxt + 1)
    await flow.done(Status.OK, retransmissions=1)
    await tb.end()


@core_test(timeout_us=4000)
async def back_off_and_give_up(dut):
    """The time-out doubles up to its limit; after `retries` the flow ends, its memory untouched afterwards."""
    tb = await start(dut)
    await set_times(tb, max_rto=200)
    flow = await Closing(tb, Client(), [b"lost"], rto=40, retries=4).close()
    await flow.expect_frame(0)
    for wait in (40, 80, 160, 200):
        left = (await records(tb))[flow.index]["deadline"]
        assert wait - LAP_STEPS <= left <= wait, (wait, left)
        await steps(tb, left - 1)
        tb.assert_nothing_sent()
        await steps(tb, 10)
        await flow.expect_frame(0)
        await tb.settle()
        tb.assert_nothing_sent()
    await steps(tb, 200 + LAP_STEPS)
    await flow.done(Status.TIMED_OUT, retransmissions=4)
    # Its memory is the host's again: whatever becomes of it, nothing happens.
    flow.write(address={0: 0x4000})
    before = await tb.counters("axi_read_errors")
    await steps(tb, 400)
    tb.assert_nothing_sent()
    assert not await tb.changes(before)
    await tb.end()


@core_test(timeout_us=2000)
async def round_trip_sample(dut):
    """The first acknowledgment gives the sample, in timer steps."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"data"]).close()
    await flow.expect_frame(0)
    await steps(tb, 30)
    flow.segment("FA")
    await flow.expect("A", ack=flow.rcv_nxt + 1)
    event = await flow.done(Status.OK)
    assert 29 <= event["rtt"] <= 31, event
    await tb.end()


@core_test(timeout_us=2000)
async def already_sent(dut):
    """Frames that the host has sent are only repeated."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"one", b"two", b"three"], sent=2, rto=50).close()
    await flow.expect_frame(2)
    await tb.settle()
    tb.assert_nothing_sent()
    await steps(tb, 50 + LAP_STEPS)
    await flow.expect_frame(0)
    flow.segment("A", flow.seqs[1])
    for number in (1, 2):
        await flow.expect_frame(number)
    other = await Closing(tb, Client(40001), [b"all of it"], sent=1, rto=60).close()
    await tb.settle()
    tb.assert_nothing_sent()
    await steps(tb, 60 + LAP_STEPS)
    sent = [await tb.frame() for _ in range(len(tb.tx[0].frames))]
    assert any(b"all of it" in frame for frame in sent)
    await other.update(flags=FlowFlag.ABORT)
    await other.done(Status.ABORTED)
    await tb.settle()


@core_test(timeout_us=2000)
async def resets(dut):
    """RFC 5961: only the exact sequence number ends a flow; elsewhere in the window a challenge, limited; else nothing."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"abc"]).close()
    await flow.expect_frame(0)
    flow.segment("R", seq=flow.rcv_nxt + 1)
    await flow.expect("A")
    flow.segment("R", seq=flow.rcv_nxt + 2)  # too soon for another challenge
    flow.segment("R", seq=flow.rcv_nxt - 1)
    flow.segment("R", seq=flow.rcv_nxt + 0x10000)
    await tb.settle()
    tb.assert_nothing_sent()
    assert await flow.state() == FlowState.FIN_WAIT_1
    flow.segment("R")
    await flow.done(Status.RESET)
    assert await flow.state() == FlowState.LINGER
    await tb.end()


@core_test(timeout_us=2000)
async def syn_on_a_live_flow(dut):
    """RFC 5961 section 4: a challenge; the listener is not asked."""
    tb = await start(dut)
    await tb.listen()
    flow = await Closing(tb, Client(), [b"abc"]).close()
    await flow.expect_frame(0)
    tb.rx[0].send(flow.client.syn(options=[("MSS", 1460), ("Timestamp", (5000, 0))]))
    await flow.expect("A")
    assert await flow.state() == FlowState.FIN_WAIT_1
    await tb.settle()
    tb.assert_nothing_sent()
    await flow.update(flags=FlowFlag.ABORT)
    await flow.done(Status.ABORTED)
    await tb.end()


@core_test(timeout_us=2000)
async def paws_and_future_acknowledgments(dut):
    """Old timestamps and acknowledgments of what was never sent change nothing."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"abc"]).close()
    await flow.expect_frame(0)
    flow.segment("A", tsval=999)
    await flow.expect("A")
    flow.segment("A", options=[])  # RFC 7323 section 3.2: timestamps were agreed upon
    await tb.settle()
    tb.assert_nothing_sent()
    assert await flow.state() == FlowState.FIN_WAIT_1
    await steps(tb, 256)
    flow.segment("A", flow.end + 1)
    await flow.expect("A")
    assert await flow.state() == FlowState.FIN_WAIT_1
    flow.segment("A")
    await tb.settle()
    assert await flow.state() == FlowState.FIN_WAIT_2
    await flow.update(flags=FlowFlag.ABORT)
    await flow.done(Status.ABORTED)
    await tb.end()


@core_test(timeout_us=2000)
async def data_for_nobody(dut):
    """Ignored while ours are not acknowledged, then answered with RST; strays afterwards too."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"abc"]).close()
    await flow.expect_frame(0)
    flow.segment("PA", flow.start, data=b"more")
    await tb.settle()
    tb.assert_nothing_sent()
    assert await flow.state() == FlowState.FIN_WAIT_1
    flow.segment("PA", data=b"more")
    await flow.expect("RA")
    await flow.done(Status.PEER_DATA)
    flow.segment("PA", data=b"more")
    await flow.expect("RA", seq=flow.end, ack=flow.rcv_nxt + 4)
    await tb.end()


@core_test(timeout_us=2000)
async def old_data_is_acknowledged(dut):
    """The peer has not heard our acknowledgment of its request, or asks whether we live."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"abc"]).close()
    await flow.expect_frame(0)
    flow.segment("PA", flow.start, seq=flow.rcv_nxt - 5, data=b"hello")
    await flow.expect("A")
    flow.segment("A", flow.start, seq=flow.rcv_nxt - 1)
    await flow.expect("A")
    flow.segment("FPA", flow.end, seq=flow.rcv_nxt - 5, data=b"hello")  # old data, new FIN, everything acknowledged
    await flow.expect("A", ack=flow.rcv_nxt + 1)
    await flow.done(Status.OK)
    await tb.end()


@core_test(timeout_us=2000)
async def no_fin_from_the_peer(dut):
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"abc"]).close()
    await flow.expect_frame(0)
    flow.segment("A")
    await steps(tb, 200 + LAP_STEPS)
    await flow.done(Status.FIN_TIMED_OUT)
    await tb.end()


@core_test(timeout_us=3000)
async def zero_window(dut):
    """A closed window is probed for as long as the peer answers; an opened one sends at once."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"a" * 200, b"b" * 200, b"c" * 200], rto=30, retries=2, wscale=0).close()
    for number in range(3):
        await flow.expect_frame(number)
    flow.segment("A", flow.seqs[1], window=0)
    await tb.settle()
    for _ in range(5):
        await steps(tb, (await records(tb))[flow.index]["deadline"] + 9)
        await flow.expect_frame(1)
        flow.segment("A", flow.seqs[1], window=0)
        await tb.settle()
        while tb.tx[0].frames:
            tb.tx[0].frames.popleft()
    assert await flow.state() == FlowState.FIN_WAIT_1
    flow.segment("A", flow.seqs[1], window=1000)
    await flow.expect_frame(1)
    await tb.settle()
    while tb.tx[0].frames:
        tb.tx[0].frames.popleft()
    flow.segment("FA")
    await flow.expect("A", ack=flow.rcv_nxt + 1)
    await flow.done(Status.OK)
    await tb.end()


@core_test(timeout_us=3000)
async def reuse_in_time_wait(dut):
    """RFC 6191: a newer SYN takes the tuple over and is answered like any other; an older one is not."""
    tb = await start(dut)
    listener = await tb.listen()
    before = await tb.counters()
    for timestamps in (True, False):
        client = Client(43000 + timestamps, options=[("MSS", 1460)] + ([("Timestamp", (1, 0))] if timestamps else []))
        flow = await Closing(tb, client, [b"x"], timestamps=timestamps).close()
        await flow.expect_frame(0)
        flow.segment("FA")
        await flow.expect("A", ack=flow.rcv_nxt + 1)
        await flow.done(Status.OK)
        old = {"options": [("MSS", 1460), ("Timestamp", (flow.tsval - 1, 0))]} if timestamps else {}
        client.iss = flow.rcv_nxt - 1000 & M32
        tb.rx[0].send(client.syn(**old))
        await flow.expect("A", ack=flow.rcv_nxt + 1)
        assert await flow.state() == FlowState.TIME_WAIT
        client.iss = flow.rcv_nxt - 1000 & M32 if timestamps else flow.rcv_nxt + 5000 & M32
        client.options = [("MSS", 1460)] + ([("Timestamp", (flow.tsval + 100, 0))] if timestamps else [])
        answer = await tb.open(client, listener)
        await tb.settle()
        segment = client.ack(answer, data=b"again")
        tb.rx[0].send(segment)
        assert_new(await tb.queues[0].receive_one(), client.syn(), listener, segment)
        await tb.queues[0].refill(1)
    assert (await tb.changes(before))["flow_reused"] == 2
    await tb.end()


@core_test(timeout_us=3000)
async def bad_commands(dut):
    """Each refused with its status, and without effect: the same flow is taken afterwards."""
    tb = await start(dut)
    before = await tb.counters("commands", "command_errors", "flow_opened", "flow_packets")
    flow = Closing(tb, Client(), [b"abc", b"def"])
    bad = Status.BAD_ARGUMENT
    cases = [
        ({"frames": 0}, bad), ({"frames": 17}, bad), ({"sent": 3}, bad), ({"retries": 0}, bad), ({"rto": 0}, bad),
        ({"rto": 1 << 14}, bad), ({"port": 3}, bad), ({"flags": flow.fields["flags"] | 0x80}, bad),
        ({"table": flow.table + 16}, bad), ({"table": 1 << 54}, bad), ({"wscale": 15}, bad),
        ({"table": 0x4000}, Status.BAD_ADDRESS),
    ]  # fmt: skip
    for changes, status in cases:
        event = await flow.command(**changes)
        assert event["status"] == status, (changes, event)
        assert await held(tb) == 0, changes
    for entry, status in (
        ({"seq": {1: 5}}, bad),
        ({"length": {0: 20}}, Status.BAD_LENGTH),
        ({"length": {1: tb.config.max_frame + 1}}, Status.BAD_LENGTH),
        ({"l4_offset": {1: 35}}, bad),
    ):
        flow.write(**entry)
        event = await flow.command()
        assert event["status"] == status, (entry, event)
        assert await held(tb) == 0, entry
    flow.write()
    await tb.settle()
    tb.assert_nothing_sent()
    await flow.close()
    for number in range(2):
        await flow.expect_frame(number)
    assert (await flow.command())["status"] == Status.DUPLICATE
    assert await held(tb) == 1
    await tb.settle()
    tb.assert_nothing_sent()
    flow.segment("FA")
    await flow.expect("A", ack=flow.rcv_nxt + 1)
    await flow.done(Status.OK)
    assert (await flow.command())["status"] == Status.DUPLICATE, "in TIME_WAIT the tuple is held, too"
    moved = await tb.changes(before)
    assert moved == {"commands": 1, "command_errors": len(cases) + 4 + 2, "flow_opened": 1, "flow_packets": 1}
    await tb.end()


@core_test(timeout_us=2000)
async def no_secret(dut):
    tb = await TB.start(dut)
    flow = Closing(tb, Client(), [b"abc"])
    assert (await flow.command())["status"] == Status.NO_SECRET
    await flow_secret(tb)
    await flow.close()
    await flow.expect_frame(0)
    await flow.update(flags=FlowFlag.ABORT)
    await flow.done(Status.ABORTED)
    await tb.end()


@core_test(timeout_us=3000)
async def faults(dut):
    """Frames that cannot be read, at first and when sent again: the flow ends and says so, others go on."""
    tb = await start(dut)
    before = await tb.counters("flow_faults")
    other = await Closing(tb, Client(45000), [b"fine"], rto=4000).close()
    await other.expect_frame(0)
    first = Closing(tb, Client(45001), [b"abc", b"def"])
    first.write(address={1: 0x4000})
    await first.close()
    await first.expect_frame(0)
    await first.done(Status.BAD_ADDRESS)
    second = await Closing(tb, Client(45002), [b"abc"], rto=40).close()
    await second.expect_frame(0)
    second.write(address={0: 0x4000})
    await steps(tb, 40 + LAP_STEPS)
    await second.done(Status.BAD_ADDRESS)
    other.segment("FA")
    await other.expect("A", ack=other.rcv_nxt + 1)
    await other.done(Status.OK)
    assert await tb.changes(before) == {"flow_faults": 2}
    await tb.end()


@core_test(timeout_us=3000)
async def updates(dut):
    """What the host has seen in its ring counts as if the NIC had: acknowledgment, FIN, abort."""
    tb = await start(dut)
    flow = await Closing(tb, Client(), [b"abc", b"def"]).close()
    for number in range(2):
        await flow.expect_frame(number)
    assert await flow.update(ack=flow.seqs[1]) == Status.OK
    assert await flow.update(snd_end=flow.end + 1) == Status.NOT_FOUND
    assert await flow.update(flow=tb.config.flows - 1) == Status.NOT_FOUND
    assert await flow.update(flow=1 << 31) == Status.NOT_FOUND
    assert await flow.update(ack=flow.end) == Status.OK
    assert await flow.state() == FlowState.FIN_WAIT_2
    assert await flow.update(ack=flow.end, flags=FlowFlag.FIN) == Status.OK
    await flow.done(Status.OK)
    assert await flow.update() == Status.NOT_FOUND
    await tb.settle()
    tb.assert_nothing_sent()
    other = await Closing(tb, Client(46000), [b"abc"]).close()
    await other.expect_frame(0)
    assert await other.update(flags=FlowFlag.ABORT) == Status.OK
    await other.done(Status.ABORTED)
    await tb.end()


@core_test(timeout_us=8000)
async def many_at_once(dut):
    """Over a hundred flows, their segments mixed at random with those of others and with back-pressure on the wire."""
    tb = await start(dut, tx=6, events=8)
    listener = await tb.listen()
    flows = []
    for number in range(120):
        client = Client(20000 + number, ipv6=bool(number % 2))
        flows.append(Closing(tb, client, [tb.rng.randbytes(tb.rng.randrange(1, 90))], rto=8000, timestamps=number % 3 > 0))
    for flow in flows:
        await flow.close()
        await flow.expect_frame(0)
    assert await held(tb) == len(flows) and set(await records(tb)) == {flow.index for flow in flows}
    tb.tx[0].pause = lambda: tb.rng.random() < 0.3
    if not tb.config.pipelined_hash:  # an iterative hash does not keep up with the wire
        tb.rx[0].gap = lambda: tb.rng.random() < 0.75
    order = [flow for flow in flows for _ in range(2)]
    tb.rng.shuffle(order)
    seen: dict[int, int] = {}
    for flow in order:
        seen[flow.index] = seen.get(flow.index, 0) + 1
        flow.segment("A" if seen[flow.index] == 1 else "FA")
        if tb.rng.random() < 0.2:
            tb.rx[0].send(Client(tb.rng.randrange(30000, 40000)).syn())
    await tb.settle()
    ends = {}
    for event in await tb.queues[0].take_events(len(flows)):
        ends[event["value"]] = event["status"]
    assert ends == dict.fromkeys((flow.index for flow in flows), Status.OK)
    tb.tx[0].frames.clear()
    tb.tx[0].pause = lambda: False
    await steps(tb, TIME_WAIT + LINGER + 6 * LAP_STEPS)
    assert await held(tb) == 0
    await tb.alive(listener)
    await tb.end()


@core_test(timeout_us=6000)
async def full_and_reset(dut):
    """More flows than the NIC holds: refused with TABLE_FULL; a soft reset forgets all, and the NIC works again."""
    tb = await start(dut, tx=6, events=8)
    template = Closing(tb, Client(1), [b"abc"], sent=1, rto=16000)
    taken = 0
    for port in range(1, tb.config.flows + 40):
        status = (await template.command(remote_port=port))["status"]
        if status != Status.OK:
            assert status == Status.TABLE_FULL
            break
        taken += 1
    assert taken >= tb.config.flows * 0.9, taken
    assert await held(tb) == taken
    await tb.write("CONTROL", "reset", 1)

    async def over() -> bool:
        return not (await tb.read_fields("CONTROL", "status"))["resetting"]

    await tb.until(over)
    await tb.set_addresses()
    await tb.set_secret(bytes(range(16)))
    await tb.queues[0].restart()
    await tb.write("CONTROL", "control", 1)
    await flow_secret(tb)
    assert await held(tb) == 0
    flow = await Closing(tb, Client(1), [b"abc"]).close()
    await flow.expect_frame(0)
    flow.segment("FA")
    await flow.expect("A", ack=flow.rcv_nxt + 1)
    await flow.done(Status.OK)
    await tb.end()


@core_test(timeout_us=3000)
async def two_ports_or_one(dut):
    """A flow answers on the port on which its peer is."""
    tb = await start(dut)
    for port in range(tb.config.ports):
        client = Client(47000 + port, dst_mac=0)
        client.dst_mac = MACS[port]
        flow = await Closing(tb, client, [b"abc"], port=port).close()
        await flow.expect_frame(0)
        flow.segment("FA")
        await flow.expect("A", ack=flow.rcv_nxt + 1)
        await flow.done(Status.OK)
    await tb.end()


async def post_closes(tb, count, frames, **changes):
    """Closing connections whose CLOSE commands stand in the ring, all of them, before the first is read."""
    flows = [
        Closing(tb, Client(30000 + number), [bytes([number, k]) * 40 for k in range(frames)], rto=8000, **changes)
        for number in range(count)
    ]
    for flow in flows:
        flow.queue.command_raw(CLOSE_COMMAND.pack(**flow.fields))
    await tb.queues[0].ring_tx()
    return flows


@core_test(timeout_us=8000)
async def more_closes_than_the_transmitter_holds(dut):
    """Sixty commands and all their frames at once, while the wire is slow: commands that wait for the frames of others
    must not stop these. Every frame leaves once."""
    tb = await start(dut, tx=6, events=8)
    tb.tx[0].pause = lambda: tb.rng.random() < 0.5
    flows = await post_closes(tb, 60, 5)
    indices = []
    for event in await tb.queues[0].take_events(len(flows), within_us=1000):
        assert (event["type"], event["status"]) == (EventType.COMMAND_DONE, Status.OK), event
        indices.append(event["value"])
    assert len(set(indices)) == len(flows)
    await tb.rest(2000)
    assert len(tb.tx[0].frames) == 5 * len(flows)
    sent = sorted((Ether(frame)[TCP].dport, bytes(Ether(frame)[TCP].payload)[:2]) for frame in tb.tx[0].frames)
    assert sent == [(30000 + number, bytes([number, k])) for number in range(len(flows)) for k in range(5)]
    tb.tx[0].frames.clear()
    for flow, index in zip(flows, indices, strict=True):
        flow.index = index
        flow.segment("FA")
        await flow.expect("A", ack=flow.rcv_nxt + 1)
        await flow.done(Status.OK)
    await tb.end()


@core_test(timeout_us=8000)
async def disabled_behind_waiting_closes(dut):
    """A queue is disabled while CLOSE commands wait for frames of others: it becomes idle, and all that were taken end."""
    tb = await start(dut, queues=2, tx=6, events=8)
    tb.tx[0].pause = lambda: tb.rng.random() < 0.7
    await post_closes(tb, 60, 5)
    await tb.cycles(400)
    await tb.queues[0].disable()
    tb.queues[0].poll_events()
    told = list(tb.queues[0].events)
    assert all(event["type"] == EventType.COMMAND_DONE and event["status"] == Status.OK for event in told)
    assert 1 <= len(told) < 60 and await held(tb) == len(told)
    tb.tx[0].pause = lambda: False
    await tb.queues[0].restart()
    await tb.rest(2000)
    assert len(tb.tx[0].frames) == 5 * len(told)
    tb.tx[0].frames.clear()
    flow = await Closing(tb, Client(40000), [b"abc"]).close()
    await flow.expect_frame(0)
    await tb.end()
