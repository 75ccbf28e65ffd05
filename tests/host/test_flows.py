"""The hand-over of closing connections to the NIC: `flows`, `handover` and what they change in the endpoint.

In virtual time on the functional model, which follows docs/teardown.md; what wants an event loop is in
the last part. Whatever happens, memory of final frames comes back exactly once (`FlowWorld.settled`).
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from acceltcp.abi.messages import CommandOpcode, FlowState, Status
from acceltcp.host import Device, DeviceError, TcpSettings
from acceltcp.host.errors import DeviceTimeoutError
from acceltcp.host.flows import Flow, Flows, Phase
from acceltcp.host.frames import FRAME_MEMORY_BYTES, FramePool
from acceltcp.host.handover import HandOver
from acceltcp.host.tcp import State

from .fake_device import FakeFlow
from .world import ACK, CLIENT_MAC, FIN, M32, MAC, Client, World

PATTERN = random.Random(11).randbytes(1 << 18)
REFUSALS = (
    Status.TABLE_FULL, Status.DUPLICATE, Status.NO_SECRET, Status.BAD_ARGUMENT, Status.BAD_LENGTH, Status.BAD_ADDRESS,
    Status.BAD_OPCODE, Status.FEATURE_ABSENT,
)  # fmt: skip


class CountingPool(FramePool):
    """Remembers what went out and came back."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.out: list[int] = []
        self.back: list[int] = []

    def allocate(self, size):
        block = super().allocate(size)
        if block is not None:
            self.out.append(block.address)
        return block

    def free(self, block):
        self.back.append(block.address)
        super().free(block)


@dataclass
class Watcher:
    """The user of a connection."""

    flow: Flow | None = None
    ends: list[OSError | None] = field(default_factory=list)

    def readable(self) -> None:
        pass

    def writable(self) -> None:
        pass

    def handed_over(self, flow: Flow) -> None:
        assert self.flow is None
        self.flow = flow

    def closed(self, error: OSError | None) -> None:
        self.ends.append(error)


class FlowWorld(World):
    """A world whose NIC closes connections: `flows` at a time, with `memory` bytes for their frames."""

    def __init__(self, *, flows: int = 64, memory: int = FRAME_MEMORY_BYTES, **options) -> None:
        super().__init__(**options)
        self.transport.give_flows(flows)
        self.device = Device(self.transport, reset=False)
        settings = self.endpoint.settings
        self.device.prepare_flows(
            time_wait=settings.time_wait, fin_wait_2=settings.fin_wait_2, linger=settings.linger, max_rto=settings.max_rto
        )
        self.pool = CountingPool(self.device.memory, settings.mtu + 22, limit=memory)
        self.flows = Flows(self.queue, self.pool, step=self.device.flow_step_s(), mtu=settings.mtu)
        self.hand_over = self.endpoint.hand_over = HandOver(self.endpoint, self.flows)
        self.commands: list[CommandOpcode] = []
        self.refuse: Status | None = None
        """How CLOSE is refused, if it is."""
        self.transport.command_hook = self._hook
        self._tick()

    def _hook(self, fields: dict[str, int]) -> Status | None:
        self.commands.append(CommandOpcode(fields["opcode"]))
        return self.refuse if fields["opcode"] == CommandOpcode.CLOSE else None

    def _tick(self) -> None:
        self.transport.sweep()
        self.at(self.now + 0.01, self._tick)

    @property
    def flow(self) -> FakeFlow:
        """The one that the NIC has."""
        (flow,) = self.transport.flows.values()
        return flow

    def opened(self, port: int = 40000, **options) -> tuple[Client, Watcher]:
        """A client and the user of its connection, which is the last of `connections`."""
        client = self.connect(port, **options)
        count = len(self.connections)
        self.run(5, lambda: len(self.connections) > count)
        assert len(self.connections) == count + 1, "no connection"
        self.run(0.02)
        watcher = Watcher()
        self.connections[-1].events = watcher
        return client, watcher

    def held(self, data: bytes = b"last words", **options) -> tuple[Client, Watcher]:
        """A connection that the NIC has, whose client does nothing by itself."""
        client, watcher = self.opened(**options)
        client.auto = False
        self.connections[-1].write(data)
        self.connections[-1].close()
        self.turn()
        self.turn()
        assert watcher.flow is not None and watcher.flow.phase is Phase.HELD
        return client, watcher

    def settled(self) -> None:
        """Nothing is open, and all memory has come back once."""
        assert not self.flows.open and not self.hand_over.records and not self.endpoint.connections
        assert sorted(self.pool.out) == sorted(self.pool.back) and self.pool.used == 0


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog):
    yield
    assert not [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


def finish(world: World, client: Client) -> None:
    """The client acknowledges everything and closes."""
    client.auto = True
    client.write(b"", fin=True)
    client.send(client.nxt, ACK)
    world.run(10, lambda: client.fin_acked and client.fin_seen)
    world.run(0.1)


# -- what is handed over -----------------------------------------------------------------


def by_scapy(client: Client, seq: int, flags: str, payload: bytes, timestamp: tuple[int, int]) -> Ether:
    """A final frame, checksums left for scapy to compute."""
    tcp = TCP(
        sport=80, dport=client.port, seq=seq & M32, ack=client.iss + 1 & M32, flags=flags,
        window=(1 << 20) >> 7 if client.wscale is not None else 65535,
        options=[("NOP", None), ("NOP", None), ("Timestamp", timestamp)] if client.ts else [],
    )  # fmt: skip
    link = Ether(src=MAC.hex(":"), dst=CLIENT_MAC.hex(":"))
    if client.vlan is not None:
        link /= Dot1Q(prio=client.vlan >> 13, vlan=client.vlan & 0xFFF)
    ip = IPv6(src="fd00::2", dst="fd00::1") if client.v6 else IP(src="10.0.0.2", dst="10.0.0.1", flags="DF", id=0)
    return link / ip / tcp / payload if payload else link / ip / tcp


@pytest.mark.parametrize("size", [0, 1, 1448, 5000, 14000])
@pytest.mark.parametrize(("v6", "vlan"), [(False, None), (True, None), (False, 0x6123), (True, 5)])
@pytest.mark.parametrize(("ts", "wscale"), [(True, 7), (False, 7), (True, None)])
def test_final_frames_are_exact_segments(size, v6, vlan, ts, wscale):
    world = FlowWorld()
    heard, carry_in = [], world.to_nic
    world.to_nic = lambda frame: (heard.append(frame), carry_in(frame))
    client, watcher = world.opened(v6=v6, vlan=vlan, ts=ts, wscale=wscale)
    sent_by_host = world.transport.counters["tx_host_packets"]
    wire, carry_out = [], world.transport.on_wire
    world.transport.on_wire = lambda frame: (wire.append(frame), carry_out(frame))
    world.connections[0].write(PATTERN[:size])
    world.connections[0].close()
    world.turn()
    world.turn()
    assert watcher.flow is not None and world.transport.counters["tx_host_packets"] == sent_by_host

    flow = world.flow
    mss = (1440 if v6 else 1460) - (12 if ts else 0)
    parts = [PATTERN[at : min(at + mss, size)] for at in range(0, size, mss)] or [b""]
    assert len(flow.frames) == len(wire) == len(parts) and flow.command["sent"] == 0
    seq, timestamp = client.irs + 1, (0, 0)
    if ts:
        timestamp = world.transport.ts_clock(), dict(Ether(heard[-1])[TCP].options)["Timestamp"][0]
    for number, (part, (entry, frame)) in enumerate(zip(parts, flow.frames, strict=True)):
        flags = "A" if number < len(parts) - 1 else "FPA" if part else "FA"
        want = by_scapy(client, seq, flags, part, timestamp)
        assert wire[number] == bytes(want).ljust(60, b"\0")
        want[TCP].chksum = 0  # in memory, what the NIC fills in is still missing
        if not v6:
            want[IP].chksum = 0
        assert frame == bytes(want)
        assert (entry["seq"], entry["length"]) == (seq & M32, len(frame))
        assert entry["l4_offset"] == (54 if v6 else 34) + (4 if vlan is not None else 0)
        seq += len(part)
    assert flow.snd_end == seq + 1 & M32 and flow.command["rcv_nxt"] == client.nxt
    finish(world, client)
    assert bytes(client.got) == PATTERN[:size] and watcher.ends == [None]
    world.settled()


def test_sixteen_frames_are_handed_over_and_one_byte_more_is_not():
    world = FlowWorld()
    client, watcher = world.opened()
    connection = world.connections[0]
    connection.write(PATTERN[:100_000])  # the congestion window grows
    world.run(2, lambda: len(client.got) == 100_000)
    world.run(0.1)
    assert connection.cwnd > 17 * 1448
    client.auto = False
    connection.write(PATTERN[: 16 * 1448 + 1])
    connection.close()
    world.turn()
    world.turn()
    assert watcher.flow is None and CommandOpcode.CLOSE not in world.commands
    client.send(client.nxt, ACK, ack=client.rcv + 1)
    world.run(0.02)
    # All frames have been sent by the host; cut anew, each of them lies before what was sent.
    assert watcher.flow is not None and len(world.flow.frames) == 16
    assert world.flow.command["sent"] == 16


def test_frames_of_which_some_have_been_sent():
    world = FlowWorld()
    client, watcher = world.opened()
    client.auto = False
    connection = world.connections[0]
    connection.write(PATTERN[:3000])
    world.turn()
    connection.write(PATTERN[3000:7000])
    connection.close()
    world.turn()
    world.turn()
    # 3000 bytes went out as 1448, 1448 and 104; of frames cut from the start, two lie wholly before that.
    assert watcher.flow is not None and (len(world.flow.frames), world.flow.command["sent"]) == (5, 2)
    world.run(0.02)
    finish(world, client)
    assert bytes(client.got) == PATTERN[:7000] and watcher.flow.end is not None and watcher.flow.end.rtt is None
    world.settled()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("loss", "swap"), [(0, 0), (0.03, 0.05)])
@pytest.mark.parametrize("size", [20_000, 30_000, 55_000])
def test_more_data_wait_and_the_rest_is_handed_over(seed, loss, swap, size):
    world = FlowWorld(seed=seed, loss=loss, swap=swap)
    client, watcher = world.opened(v6=bool(seed & 1), ts=bool(seed & 2))
    connection = world.connections[0]
    connection.write(PATTERN[:size])
    connection.close()
    world.turn()
    assert not world.flows.posted and len(connection.send_buffer) == size
    client.write(b"", fin=True)
    world.run(60, lambda: client.fin_seen and client.fin_acked and bool(watcher.ends))
    by_host = world.transport.counters["tx_host_packets"]
    assert bytes(client.got) == PATTERN[:size] and watcher.ends == [None], f"seed {seed}"
    if not loss:
        assert watcher.flow is not None and size - 16 * connection.mss <= by_host * connection.mss < size
    assert world.flows.counts["closed"] + world.flows.counts["software"] == 1, f"seed {seed}"
    world.run(5)
    world.settled()


@pytest.mark.parametrize("window", [1, 8, 20])
def test_what_does_not_fit_the_window_of_the_peer_waits(window):
    world = FlowWorld()
    client, watcher = world.opened(window=window)
    world.connections[0].write(PATTERN[:5000])
    world.connections[0].close()
    taken: list[tuple[int, int]] = []
    world.run(20, lambda: taken.extend((flow.unacked - 1, flow.window * 64) for flow in world.transport.flows.values()) or taken)
    assert taken[0][0] <= taken[0][1] == window << 7
    finish(world, client)
    assert bytes(client.got) == PATTERN[:5000] and watcher.ends == [None]
    world.settled()


def test_fin_alone_goes_against_a_closed_window_and_data_do_not():
    world = FlowWorld()
    clients = [world.opened(port, window=0) for port in (40000, 40001)]
    world.run(0.1)
    world.connections[0].write(b"x")
    for connection in world.connections:
        connection.close()
    world.run(0.1)
    assert [watcher.flow is not None for _, watcher in clients] == [False, True]
    clients[0][0].window = 65535
    finish(world, clients[0][0])
    finish(world, clients[1][0])
    assert bytes(clients[0][0].got) == b"x" and [watcher.ends for _, watcher in clients] == [[None], [None]]
    world.settled()


def test_not_while_the_application_reads():
    world = FlowWorld()
    client, watcher = world.opened()
    connection = world.connections[0]
    connection.write(b"question")
    connection.shutdown()
    world.run(0.1)
    client.write(b"answer")
    world.run(0.1)
    assert connection.state is State.FIN_WAIT_2 and CommandOpcode.CLOSE not in world.commands
    assert connection.consume(100) == b"answer"
    connection.close()
    finish(world, client)
    # Our FIN was acknowledged before: there is nothing left that the NIC could send.
    assert watcher.ends == [None] and watcher.flow is None
    world.run(5)
    assert world.flows.counts["software"] == 1
    world.settled()


def test_peer_that_closed_first_makes_it_last_ack():
    world = FlowWorld()
    client, watcher = world.opened()
    client.write(b"bye", fin=True)
    world.run(0.1)
    assert world.connections[0].state is State.CLOSE_WAIT
    client.auto = False
    world.connections[0].write(b"goodbye")
    world.connections[0].close()
    world.turn()
    world.turn()
    assert world.flow.state is FlowState.LAST_ACK and world.flow.rcv_nxt == client.nxt
    client.auto = True
    world.run(0.1)
    assert watcher.ends == [None] and bytes(client.got) == b"goodbye" and client.fin_acked
    assert world.flow.state is FlowState.LINGER
    world.run(3)
    assert not world.transport.flows
    world.settled()


def test_frames_carry_the_acknowledgment_that_was_due():
    world = FlowWorld()
    client, watcher = world.opened()
    client.write(b"request")
    world.run(0.006)  # its ACK is delayed
    world.connections[0].close()
    client.seen.clear()
    world.run(0.02)
    assert watcher.flow is not None and client.una == client.nxt and not client.out
    assert [segment.flags for segment in client.seen][:1] == [FIN | ACK]
    finish(world, client)
    world.settled()


def test_acknowledgment_is_sent_before_frames_that_are_only_retransmitted():
    world = FlowWorld()
    client, watcher = world.opened()
    client.auto = False
    world.connections[0].write(b"reply")
    world.connections[0].shutdown()
    world.run(0.02)
    client.send(client.nxt, ACK, b"more", ack=client.irs + 1)
    world.run(0.006)
    client.seen.clear()
    world.connections[0].close()
    world.run(0.02)
    assert watcher.flow is not None and world.flow.command["sent"] == 1
    assert [segment.ack for segment in client.seen] == [client.nxt + 4 & M32]


def test_retransmission_time_out_and_retries_are_told():
    settings = TcpSettings(retries=3, initial_rto=0.8, min_rto=0.8)
    world = FlowWorld(settings=settings)
    world.held()
    assert world.flow.command["retries"] == 3 and world.flow.command["rto"] == round(0.8 / 400e-6)
    world = FlowWorld(settings=TcpSettings(retries=0, initial_rto=50, min_rto=50))
    world.held()
    assert world.flow.command["retries"] == 1 and world.flow.command["rto"] == (1 << 14) - 1
    world = FlowWorld(settings=TcpSettings(retries=30))
    world.held()
    assert world.flow.command["retries"] == 15


def test_not_while_a_loss_is_repaired():
    world = FlowWorld()
    client, watcher = world.opened()
    client.auto = False
    connection = world.connections[0]
    connection.write(b"lost")
    world.run(2.5)
    assert connection.recovering
    connection.close()
    world.turn()
    assert CommandOpcode.CLOSE not in world.commands and watcher.flow is None
    finish(world, client)
    assert bytes(client.got) == b"lost" and watcher.ends == [None]


# -- refusals ----------------------------------------------------------------------------


def closes_in_software(world: World, client: Client, watcher: Watcher, data: bytes) -> None:
    """Everything arrives, both sides close, and the NIC is asked no second time."""
    client.write(b"", fin=True)
    world.run(20, lambda: client.fin_seen and client.fin_acked and bool(watcher.ends))
    assert bytes(client.got) == data and watcher.ends == [None] and watcher.flow is None
    world.run(5)
    world.settled()


@pytest.mark.parametrize("status", REFUSALS, ids=lambda status: status.name)
@pytest.mark.parametrize("loss", [0, 0.1])
@pytest.mark.parametrize("size", [0, 9000, 40_000])
def test_refused_connection_finishes_in_software(status, loss, size):
    world = FlowWorld(seed=size + status)
    client, watcher = world.opened()
    world.refuse, world.loss = status, loss
    world.connections[0].write(PATTERN[:size])
    world.connections[0].close()
    closes_in_software(world, client, watcher, PATTERN[:size])
    assert world.commands.count(CommandOpcode.CLOSE) == 1
    counted = "refused_full" if status == Status.TABLE_FULL else "refused_other"
    assert world.flows.counts[counted] == 1 and world.flows.counts["handed_over"] == 0
    assert world.flows.counts["refused_full"] + world.flows.counts["refused_other"] == 1
    assert world.endpoint.stats["closed"] == 1 and world.endpoint.stats["failed"] == 0


def test_full_table():
    world = FlowWorld(flows=2)
    for port in (40000, 40001):
        world.held(port=port)
    client, watcher = world.opened(40002)
    world.connections[-1].write(PATTERN[:9000])
    world.connections[-1].close()
    world.run(0.1)
    assert world.flows.counts["refused_full"] == 1 and bytes(client.got) == PATTERN[:9000]
    for flow in list(world.transport.flows.values()):
        world.transport.end_flow(flow, Status.OK)
    closes_in_software(world, client, watcher, PATTERN[:9000])


def test_tuple_that_the_nic_holds_already():
    world = FlowWorld()
    world.held()
    stale = world.flow
    world.transport.end_flow(stale, Status.OK)
    world.run(0.1)
    del world.transport.flows[0]
    client, watcher = world.opened(iss=world.clients[40000].nxt + 100_000, ts_offset=50_000)
    world.transport.flows[0] = stale
    world.connections[-1].write(b"again")
    world.connections[-1].close()
    world.turn()
    world.turn()
    assert world.flows.counts["refused_other"] == 1
    world.transport.flows.clear()
    closes_in_software(world, client, watcher, b"again")


def test_no_secret():
    world = FlowWorld()
    client, watcher = world.opened()
    world.transport.flow_secret = False
    world.connections[0].write(PATTERN[:9000])
    world.connections[0].close()
    closes_in_software(world, client, watcher, PATTERN[:9000])
    assert world.flows.counts["refused_other"] == 1


def test_no_memory():
    world = FlowWorld(memory=256 << 10)
    client, watcher = world.opened()
    blocks = [world.pool.allocate(512) for _ in range((256 << 10) // 512)]
    world.connections[0].write(PATTERN[:9000])
    world.connections[0].close()
    world.run(0.1)
    for block in blocks:
        world.pool.free(block)
    closes_in_software(world, client, watcher, PATTERN[:9000])
    assert CommandOpcode.CLOSE not in world.commands and world.flows.counts["no_memory"] == 1


def test_listener_without_teardown():
    world = FlowWorld()
    for listener in world.endpoint.listeners.values():
        listener.teardown = False
    client, watcher = world.opened()
    world.connections[0].write(PATTERN[:9000])
    world.connections[0].close()
    closes_in_software(world, client, watcher, PATTERN[:9000])
    assert CommandOpcode.CLOSE not in world.commands and world.flows.counts["software"] == 0


def test_device_that_does_not_answer():
    world = FlowWorld()
    _, watcher = world.opened()
    world.transport.swallow_commands = True
    world.connections[0].close()
    start = world.now
    with pytest.raises(DeviceTimeoutError, match="has not answered a CLOSE within 30 s"):
        world.run(60)
    assert world.now == pytest.approx(start + 30, abs=0.1)
    world.flows.fail(ConnectionAbortedError("gone"))
    assert watcher.ends == [] and world.pool.used == 0 and world.pool.out == world.pool.back


# -- what is wrong with the arguments ----------------------------------------------------


def frame_of(seq: int = 1000, flags: str = "FA", payload: bytes = b"", **fields) -> bytes:
    """A final frame with timestamps over IPv4, made by scapy."""
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    tcp = TCP(sport=80, dport=40000, seq=seq, ack=5, flags=flags, options=fields.pop("options", options))
    return bytes(Ether(src=MAC.hex(":")) / IP(**{"src": "10.0.0.2", "dst": "10.0.0.1", **fields}) / tcp / payload)


@pytest.mark.parametrize(
    ("frames", "change", "message"),
    [
        ([], {}, "there must be 1 to 16 final frames, not 0"),
        ([frame_of(1000 + at, "A", b"x") for at in range(16)] + [frame_of(1016)], {}, "1 to 16 final frames, not 17"),
        ([frame_of()], {"sent": 2}, "sent must be from 0 to 1, not 2"),
        ([frame_of()], {"sent": -1}, "sent must be from 0 to 1, not -1"),
        ([frame_of()], {"wscale": 15}, "wscale must be from 0 to 14, not 15"),
        ([frame_of()], {"retries": 0}, "retries must be from 1 to 15, not 0"),
        ([frame_of()], {"retries": 16}, "retries must be from 1 to 15, not 16"),
        ([frame_of()], {"window": -1}, "window must be from 0 to"),
        ([frame_of()], {"l4": 35}, "l4 must be even, not 35"),
        ([frame_of(payload=bytes(1449))], {}, "holds a packet of 1501 bytes, more than the MTU of 1500"),
        ([frame_of()[:-1]], {}, "final frame 0 has 65 bytes, fewer than its headers, which take 66"),
        ([frame_of(payload=bytes(20))], {"ipv6": True, "l4": 54}, "does not have an IPv6 header at 14: 0x45"),
        ([frame_of(proto=17)], {}, r"does not carry TCP \(6\) but protocol 17"),
        ([frame_of() + b"x"], {}, "final frame 0 has 67 bytes, but its IP header says 52"),
        ([frame_of(flags="A", payload=b"x"), frame_of(1001, src="10.0.0.3")], {}, "addresses or ports of final frame 1"),
        ([frame_of(options=[])], {}, "has 54 bytes, fewer than its headers"),
        ([frame_of(options=[], payload=bytes(12))], {}, "TCP header of final frame 0 must have 32 bytes, not 20"),
        ([frame_of(options=[("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)])], {}, "two NOPs and a timestamp"),
        ([frame_of(flags="A")], {}, "final frame 0 of 1 lacks FIN"),
        ([frame_of(payload=b"x"), frame_of(1001)], {}, "final frame 0 of 2 has FIN, but is not the last"),
        ([frame_of(flags="FAU")], {}, "flags of final frame 0 must be ACK, PSH and FIN at most, not 0x31"),
        ([frame_of(flags="F")], {}, "flags of final frame 0 must be ACK"),
        ([frame_of(flags="A"), frame_of()], {}, "final frame 0 has no data, but is not the last"),
        ([frame_of(flags="A", payload=b"xy"), frame_of(1001)], {}, "starts at sequence number 1001, but the one before ends at 1002"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named_and_cost_nothing(frames, change, message):
    world = FlowWorld()
    arguments = {
        "l4": 34, "ipv6": False, "sent": 0, "rcv_nxt": 5, "fin": False, "window": 1000, "wscale": 7, "timestamps": True,
        "user": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        world.flows.hand_over(frames, **{**arguments, **change})
    assert not world.flows.open and world.pool.used == 0 and not world.pool.out


def test_full_ring_costs_no_memory():
    world = FlowWorld(tx=8)
    world.transport.frozen = True
    while world.queue.has_room:
        world.queue.send(bytes(60))
    with pytest.raises(DeviceError, match="has no room for a command"):
        world.flows.hand_over(
            [frame_of()], l4=34, ipv6=False, sent=0, rcv_nxt=5, fin=False, window=1, wscale=0, timestamps=True, user=None
        )  # fmt: skip
    assert not world.flows.open and world.pool.used == 0 and len(world.pool.back) == 1
