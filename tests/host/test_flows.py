"""The hand-over of closing connections to the NIC: `flows`, `handover` and what they change in the endpoint.

In virtual time on the functional model, which follows docs/teardown.md; what wants an event loop is in
the last part. Whatever happens, memory of final frames comes back exactly once (`FlowWorld.settled`).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import random
import weakref
from dataclasses import dataclass, field

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

import acceltcp.host
from acceltcp.abi.messages import CommandOpcode, EventType, FlowState, Status
from acceltcp.apps.http import HttpServer
from acceltcp.host import Connection, Device, DeviceError, DeviceLostError, Nic, TcpSettings
from acceltcp.host.errors import DeviceTimeoutError
from acceltcp.host.frames import FRAME_MEMORY_BYTES, FramePool
from acceltcp.host.tcp import State
from acceltcp.host.tcp.flows import Flow, Flows, Phase
from acceltcp.host.tcp.handover import HandOver

from .fake_device import FakeFlow, FakeTransport
from .test_stack import ADDRESSES, QUICK, RealTime, until
from .world import ACK, CLIENT_MAC, ECE, FIN, M32, MAC, PSH, RST, SYN, Client, World

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
        window=(1 << 16) >> 7 if client.wscale is not None else 65535,
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
    assert connection.congestion.cwnd > 17 * 1448
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
    # 3000 bytes went out as 1448, 1448 and 104; the final frames are cut there too, so no byte goes out twice.
    assert watcher.flow is not None and (len(world.flow.frames), world.flow.command["sent"]) == (6, 3)
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


def test_congestion_is_echoed_in_final_frames():
    world = FlowWorld(ecn=True)
    client, watcher = world.opened(ecn=True)
    client.auto = False
    client.send(client.nxt, ACK, b"marked", ce=True)
    world.run(0.0051)
    world.connections[0].write(b"reply")
    world.connections[0].close()
    world.run(0.02)
    (segment,) = [segment for segment in client.seen if segment.flags & FIN]
    assert watcher.flow is not None and segment.flags == ACK | PSH | FIN | ECE
    # RFC 3168 section 6.1.5: what may be sent again is not ECN-capable.
    assert segment.ect == 0


def test_times_are_told_to_the_nic_once_after_a_reset():
    transport = FakeTransport(flows=16)
    device = Device(transport)
    registers = device.registers.FLOWS
    times = {"time_wait": 0, "fin_wait_2": 1.5, "linger": 0.0004, "max_rto": 1000}
    device.prepare_flows(**times, secret=bytes(range(16)))
    steps = {name: getattr(registers, name).read()["steps"] for name in times}
    assert steps == {"time_wait": 0, "fin_wait_2": 3750, "linger": 1, "max_rto": (1 << 19) - 1}
    words = [getattr(registers, f"word{number}") for number in range(4)]
    assert [value for offset, value in transport.writes if offset in [word.address for word in words]] == [
        0x03020100, 0x07060504, 0x0B0A0908, 0x0F0E0D0C,
    ]  # fmt: skip
    with pytest.raises(DeviceError, match="has its secret for flows already: reset it first"):
        device.prepare_flows(**times)
    device.reset()
    with pytest.raises(ValueError, match="linger must not be negative, not -1"):
        device.prepare_flows(**{**times, "linger": -1})
    with pytest.raises(DeviceError, match="built without TEARDOWN"):
        Device(FakeTransport()).prepare_flows(**times)


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
    assert connection.in_trouble
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
@pytest.mark.parametrize(("size", "loss"), [(0, 0), (0, 0.1), (9000, 0), (9000, 0.1), (60_000, 0)])
def test_refused_connection_finishes_in_software(status, size, loss):
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
        "flow": Flow(),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        world.flows.hand_over(frames, **{**arguments, **change})
    assert not world.flows.open and world.pool.used == 0 and not world.pool.out


class Told(Flow):
    """Remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []

    def answered(self, status: int) -> None:
        self.heard.append(("answered", status))

    def ended(self) -> None:
        self.heard.append(("ended", self.end))


@pytest.mark.parametrize("v6", [False, True])
def test_frames_of_anybody_are_handed_over(v6):
    world = FlowWorld()
    frames = [frame_of(1000, "A", b"abc"), frame_of(1003, "FPA", b"de")]
    if v6:
        frames = [
            bytes(Ether(src=MAC.hex(":")) / IPv6(src="fd00::2", dst="fd00::1") / Ether(frame)[TCP]) for frame in frames
        ]
    flow = Told()
    world.endpoint.hand_over = None  # it knows its own flows alone
    assert world.flows.hand_over(
        frames, l4=54 if v6 else 34, ipv6=v6, sent=1, rcv_nxt=0x1_0000_0005, fin=True, window=64000, wscale=7, timestamps=True,
        ts_recent=77, rto=0.25, retries=4, flow=flow,
    )  # fmt: skip
    assert flow.phase is Phase.POSTED and flow.end is None
    world.turn()
    world.turn()
    taken = world.flow
    assert flow.phase is Phase.HELD and flow.heard == [("answered", Status.OK)] and flow.end is None
    assert [frame for _, frame in taken.frames] == frames and [entry["seq"] for entry, _ in taken.frames] == [1000, 1003]
    address = ipaddress.ip_address
    hosts = (address("fd00::1"), address("fd00::2")) if v6 else (address("10.0.0.1"), address("10.0.0.2"))
    assert taken.key == (*(host.packed.rjust(16, b"\0") for host in hosts), 40000, 80)
    wanted = {
        "sent": 1, "retries": 4, "rcv_nxt": 5, "ts_recent": 77, "window": 1000, "wscale": 7,
        "rto": round(0.25 / world.flows.step), "port": 0,
    }  # fmt: skip
    assert {name: taken.command[name] for name in wanted} == wanted and taken.fin
    assert flow.snd_end == taken.snd_end == 1006
    world.transport.end_flow(taken, Status.RESET)
    world.turn()
    assert flow.heard[1:] == [("ended", flow.end)] and flow.end.status is Status.RESET
    assert isinstance(flow.end.error, ConnectionResetError) and flow.end.rtt is None
    world.settled()


def test_full_ring_costs_no_memory():
    world = FlowWorld(tx=8)
    world.transport.frozen = True
    while world.queue.has_room:
        world.queue.send(bytes(60))
    with pytest.raises(DeviceError, match="has no room for a command"):
        world.flows.hand_over(
            [frame_of()], l4=34, ipv6=False, sent=0, rcv_nxt=5, fin=False, window=1, wscale=0, timestamps=True, flow=Flow()
        )  # fmt: skip
    assert not world.flows.open and world.pool.used == 0 and len(world.pool.back) == 1


# -- packets that reached the host's ring before the NIC took over -------------------------

DATA = b"w" * 1000
"""What the host has sent before `in_flight`, and the peer has not acknowledged."""


def in_flight(moment: str, send) -> tuple[FlowWorld, Client, Watcher]:
    """A world in which `send(client)` reached the host's ring while CLOSE was on its way, and is looked at

    * "posted": before COMMAND_DONE comes,
    * "held": with COMMAND_DONE,
    * "done": with COMMAND_DONE and FLOW_DONE (status OK).
    """
    world = FlowWorld()
    client, watcher = world.opened()
    client.auto = False
    world.connections[0].write(DATA)
    world.run(0.02)
    world.transport.frozen = True
    world.connections[0].close()
    world.turn()
    assert len(world.flows.posted) == 1 and client.rcv - len(DATA) - 1 & M32 == client.irs
    client.seen.clear()
    carry, world.to_nic = world.to_nic, world.transport.inject
    send(client)
    world.to_nic = carry
    if moment == "posted":
        world.turn()
    world.transport.thaw()
    if moment == "done":
        world.transport.end_flow(world.flow, Status.OK)
    world.turn()
    world.turn()
    assert watcher.flow is not None or world.connections[0].error is not None
    return world, client, watcher


def closes_in_the_nic(world: FlowWorld, client: Client, watcher: Watcher) -> None:
    assert world.flow.state in (FlowState.FIN_WAIT_1, FlowState.FIN_WAIT_2, FlowState.CLOSING)
    world.run(0.02)
    if watcher.flow is not None and not client.fin_wanted:
        finish(world, client)
    assert bytes(client.got) == DATA and client.fin_seen and watcher.ends == [None]
    assert world.flows.counts["closed"] == 1
    world.settled()


moments = pytest.mark.parametrize("moment", ["posted", "held"])


@moments
def test_acknowledgment_in_flight_is_told(moment):
    world, client, watcher = in_flight(moment, lambda client: client.send(client.nxt, ACK, window=77))
    assert (world.flow.unacked, world.flow.window * 64) == (1, 77 << 7)
    assert world.commands.count(CommandOpcode.FLOW_UPDATE) == 1
    assert world.flows.counts["stragglers"] == (moment == "held")
    closes_in_the_nic(world, client, watcher)


@moments
def test_no_news_in_flight_change_nothing(moment):
    world, client, watcher = in_flight(moment, lambda client: client.send(client.nxt, ACK, ack=client.irs + 1))
    assert (world.flow.unacked, world.flow.window) == (1001, 4095)
    closes_in_the_nic(world, client, watcher)


@moments
@pytest.mark.parametrize("ahead", [2, 1 << 20, 1 << 31])
def test_acknowledgment_of_what_was_never_sent(moment, ahead):
    # Behind DATA there is our FIN; `ahead` lies beyond it.
    world, client, watcher = in_flight(moment, lambda client: client.send(client.nxt, ACK, ack=client.rcv + ahead, window=9))
    assert (world.flow.unacked, world.flow.window) == (1001, 4095)
    closes_in_the_nic(world, client, watcher)


@moments
def test_fin_that_acknowledges_what_was_never_sent(moment):
    world, client, watcher = in_flight(moment, lambda client: client.send(client.nxt, ACK | FIN, ack=client.rcv + 2))
    assert not world.flow.fin and world.flow.rcv_nxt == client.nxt
    closes_in_the_nic(world, client, watcher)


@moments
def test_older_acknowledgment_behind_a_newer_one(moment):
    def both(client: Client) -> None:
        client.send(client.nxt, ACK, window=100)
        client.send(client.nxt, ACK, ack=client.irs + 1, window=50)

    world, client, watcher = in_flight(moment, both)
    assert (world.flow.unacked, world.flow.window * 64) == (1, 100 << 7)
    closes_in_the_nic(world, client, watcher)


@moments
def test_duplicate_acknowledgments_in_flight_make_the_host_send_nothing(moment):
    sent: list[int] = []

    def thrice(client: Client) -> None:
        sent.append(client.world.transport.counters["tx_host_packets"])
        for _ in range(4):
            client.send(client.nxt, ACK, ack=client.irs + 1)

    world, client, watcher = in_flight(moment, thrice)
    assert world.transport.counters["tx_host_packets"] == sent[0] and world.flow.retransmissions == 0
    closes_in_the_nic(world, client, watcher)


@moments
def test_repeated_segment_in_flight(moment):
    world, client, watcher = in_flight(
        moment, lambda client: client.send(client.nxt - 1, ACK, b"?", ack=client.irs + 1)
    )
    assert world.flow.rcv_nxt == client.nxt and not world.flow.fin
    if moment == "posted":
        world.run(0.006)
        assert client.nxt in [segment.ack for segment in client.seen]
    closes_in_the_nic(world, client, watcher)


@moments
@pytest.mark.parametrize("fin", [0, FIN])
def test_new_data_in_flight_are_left_for_the_nic_to_judge(moment, fin):
    world, client, watcher = in_flight(moment, lambda client: client.send(client.nxt, ACK | fin, b"news"))
    # What they acknowledge is told, but nobody has acknowledged them.
    assert world.flow.unacked == 1 and world.flow.rcv_nxt == client.nxt and not world.flow.fin
    world.run(0.02)
    assert all(segment.ack == client.nxt for segment in client.seen)
    # The peer repeats them, and has acknowledged everything by then.
    client.send(client.nxt, ACK | fin, b"news", ack=world.flow.snd_end)
    world.run(0.02)
    assert client.reset and world.flow.state is FlowState.LINGER
    (error,) = watcher.ends
    assert isinstance(error, ConnectionResetError) and world.flows.counts["peer_data"] == 1
    world.settled()


@moments
def test_fin_in_flight_is_told_and_acknowledged(moment):
    def close(client: Client) -> None:
        client.send(client.nxt, ACK | FIN, ack=client.irs + 1)
        client.fin_wanted = True

    world, client, watcher = in_flight(moment, close)
    assert world.flow.fin and world.flow.state is FlowState.CLOSING and world.flow.rcv_nxt == client.nxt + 1 & M32
    world.run(0.006)
    assert client.fin_acked
    client.auto = True
    client.send(client.nxt, ACK)
    world.run(0.5)
    assert bytes(client.got) == DATA and watcher.ends == [None] and world.flows.counts["closed"] == 1
    world.settled()


@moments
def test_fin_that_acknowledges_everything_in_flight(moment):
    """Our FIN had been sent before, so nothing is left to do but to tell the NIC."""
    world = FlowWorld()
    client, watcher = world.opened()
    client.auto = False
    world.connections[0].write(DATA)
    world.connections[0].shutdown()
    world.run(0.02)
    assert client.fin_seen
    world.transport.frozen = True
    world.connections[0].close()
    world.turn()
    assert len(world.flows.posted) == 1
    world.to_nic = world.transport.inject
    client.send(client.nxt, ACK | FIN)
    if moment == "posted":
        world.turn()
    world.transport.thaw()
    world.turn()
    world.turn()
    assert world.flow.state is FlowState.TIME_WAIT and watcher.ends == [None]
    assert world.flow.rcv_nxt == client.nxt + 1 & M32
    assert world.endpoint.stats["closed"] == 1 and world.flows.counts["closed"] == 1
    world.run(5)
    world.settled()


@moments
def test_reset_in_flight_ends_the_flow(moment):
    world, client, watcher = in_flight(moment, lambda client: client.send(client.nxt, RST))
    assert world.flow.status == Status.ABORTED and world.flows.counts["aborted"] == 1
    (error,) = watcher.ends
    assert isinstance(error, ConnectionResetError) and error.errno == errno.ECONNRESET
    assert (world.endpoint.stats["closed"], world.endpoint.stats["failed"]) == (0, 1)
    world.run(0.02)
    assert not client.reset, "a reset is not answered by a reset"
    world.settled()


@moments
@pytest.mark.parametrize("offset", [-1, 1, 1 << 20, 1 << 31])
def test_reset_with_another_number_does_nothing(moment, offset):
    world, client, watcher = in_flight(moment, lambda client: client.send(client.nxt + offset, RST))
    assert world.flow.status is None and not watcher.ends
    closes_in_the_nic(world, client, watcher)


@moments
@pytest.mark.parametrize(
    "odd",
    [
        lambda client: client.send(client.nxt, ACK, tsval=client.tsval() - 1000),
        lambda client: client.send(client.nxt, ACK, options=b""),
        lambda client: client.send(client.nxt, ACK | SYN, options=None),
        lambda client: client.send(client.nxt, PSH),
        lambda client: client.send(client.nxt + (1 << 21), ACK),
        lambda client: client.send(client.nxt - 70_000, ACK),
        lambda client: client.send(client.nxt - 70_000, ACK | FIN),
    ],
    ids=["old timestamp", "no timestamp", "SYN", "no ACK", "beyond the window", "long ago", "FIN long ago"],
)
def test_unacceptable_segment_in_flight_says_nothing(moment, odd):
    world, client, watcher = in_flight(moment, odd)
    assert world.flow.unacked == 1001 and not world.flow.fin and CommandOpcode.FLOW_UPDATE not in world.commands
    closes_in_the_nic(world, client, watcher)


@pytest.mark.parametrize("flags", [ACK, ACK | FIN, RST])
@pytest.mark.parametrize("payload", [b"", b"news"])
def test_what_is_looked_at_after_the_end_is_a_duplicate(flags, payload):
    world, client, watcher = in_flight("done", lambda client: client.send(client.nxt, flags, payload))
    assert watcher.ends == [None] and world.endpoint.stats["duplicates_of_closed"] == 1
    world.run(0.02)
    # Of the NIC there is the last frame with FIN; the host says nothing.
    assert [segment.flags & (FIN | RST) for segment in client.seen] == [FIN]
    world.settled()


def test_many_stragglers_are_told_at_once():
    world, _, _ = in_flight("held", lambda client: [client.send(client.nxt, ACK, ack=client.irs + n) for n in range(2, 900, 50)])
    assert world.flow.unacked == 1001 - 851 and world.commands.count(CommandOpcode.FLOW_UPDATE) == 1
    assert world.flows.counts["stragglers"] == 18 and world.flows.counts["updates"] == 1


def test_retransmission_timer_rests_while_close_is_on_its_way():
    world = FlowWorld()
    client, watcher = world.opened()
    client.auto = False
    world.connections[0].write(DATA)
    world.run(0.02)
    world.transport.frozen = True
    world.connections[0].close()
    world.turn()
    tail = world.queue.tx.tail
    world.run(5)
    assert world.queue.tx.tail == tail
    world.refuse = Status.TABLE_FULL
    world.transport.thaw()
    client.auto = True
    closes_in_software(world, client, watcher, DATA)


# -- how flows end ------------------------------------------------------------------------

ENDS = [
    (Status.OK, "closed", None, False),
    (Status.RESET, "reset", ConnectionResetError, False),
    (Status.TIMED_OUT, "timed_out", TimeoutError, True),
    (Status.PEER_DATA, "peer_data", ConnectionResetError, False),
    (Status.FIN_TIMED_OUT, "fin_timed_out", None, False),
    (Status.ABORTED, "aborted", ConnectionAbortedError, False),
    (Status.BAD_ADDRESS, "faults", OSError, True),
    (Status.BAD_LENGTH, "faults", OSError, True),
]  # fmt: skip
"""Status of FLOW_DONE, its counter, what a user is told, whether the host resets a peer that the NIC left waiting."""


class Unreferenced:
    """A user that cannot be referenced weakly."""

    __slots__ = ("ends",)

    def __init__(self, ends: list[OSError | None]) -> None:
        self.ends = ends

    def handed_over(self, flow: Flow) -> None:
        pass

    def closed(self, error: OSError | None) -> None:
        self.ends.append(error)


@pytest.mark.parametrize("weak", [True, False])
def test_end_is_told_to_a_user_that_nobody_else_keeps_only_if_it_has_no_weak_references(weak):
    world = FlowWorld()
    client, watcher = world.opened()
    told = watcher.ends
    if not weak:
        world.connections[0].events = Unreferenced(told)
    gone = weakref.ref(watcher)
    del watcher
    client.auto = False
    world.connections[0].close()
    world.turn()
    world.turn()
    assert len(world.flows.held) == 1
    gc.collect()
    assert gone() is None
    finish(world, client)
    world.run(5)
    assert told == ([] if weak else [None])
    world.settled()


@pytest.mark.parametrize(("status", "counter", "error", "resets"), ENDS, ids=lambda value: getattr(value, "name", None))
def test_every_end_has_its_counter_and_error(status, counter, error, resets):
    world = FlowWorld()
    client, watcher = world.held()
    world.flow.rtt, world.flow.retransmissions = 250, 3
    world.transport.end_flow(world.flow, status)
    world.turn()
    assert watcher.flow.phase is Phase.DONE and watcher.flow.end.status is status
    assert watcher.flow.end.rtt == pytest.approx(0.1) and watcher.flow.end.retransmissions == 3
    (told,) = watcher.ends
    assert told is watcher.flow.end.error is None if error is None else isinstance(told, error)
    if counter == "faults":
        assert told.errno == errno.EIO and status.name in str(told)
    stats = world.flows.stats()
    outcomes = {name: stats[name] for name in ("closed", "reset", "timed_out", "peer_data", "fin_timed_out", "aborted", "faults", "lost")}
    assert outcomes == {name: int(name == counter) for name in outcomes}
    assert stats["retransmissions"] == world.endpoint.stats["retransmissions"] == 3
    assert (stats["rtt_samples"], stats["rtt_mean_us"], stats["held"], stats["memory_bytes"]) == (1, 100_000, 0, 0)
    assert (world.endpoint.stats["closed"], world.endpoint.stats["failed"]) == ((1, 0) if error is None else (0, 1))
    world.run(0.02)
    assert client.reset == resets
    world.settled()


@pytest.mark.parametrize("status", [status for status, *_ in ENDS], ids=lambda status: status.name)
def test_late_segments_are_reset_only_where_data_were_lost(status):
    """The NIC does so in LINGER; when it is free there, the host does."""
    world = FlowWorld()
    client, _ = world.held()
    world.run(0.02)
    world.transport.end_flow(world.flow, status)
    world.run(0.02)
    world.transport.flows.clear()
    client.seen.clear()
    client.send(client.nxt, ACK, b"late")
    world.run(0.02)
    want = [RST] if status in (Status.PEER_DATA, Status.ABORTED) else []
    assert [segment.flags for segment in client.seen] == want and world.endpoint.stats["duplicates_of_closed"] == 1


def test_peer_that_resets():
    world = FlowWorld()
    client, watcher = world.held()
    client.send(client.nxt, RST)
    world.run(0.02)
    assert [type(error) for error in watcher.ends] == [ConnectionResetError] and world.flows.counts["reset"] == 1
    world.settled()


def test_peer_that_is_gone():
    world = FlowWorld(settings=TcpSettings(retries=3, initial_rto=0.2))
    client, watcher = world.held()
    world.run(20, lambda: bool(watcher.ends))
    assert [type(error) for error in watcher.ends] == [TimeoutError]
    assert watcher.flow.end.retransmissions == 3 == world.flows.counts["retransmissions"]
    world.run(0.02)
    assert client.reset
    world.settled()


def test_peer_that_never_closes():
    world = FlowWorld(settings=TcpSettings(fin_wait_2=1.5))
    client, watcher = world.held()
    world.run(0.02)
    client.send(client.nxt, ACK)
    world.run(0.1)
    assert world.flow.state is FlowState.FIN_WAIT_2 and not watcher.ends
    world.run(2)
    assert watcher.ends == [None] and world.flows.counts["fin_timed_out"] == 1
    world.settled()


def test_frames_that_cannot_be_read():
    world = FlowWorld(settings=TcpSettings(initial_rto=0.2))
    _, watcher = world.held()
    address = world.flow.command["table"]
    world.transport.memory = [region for region in world.transport.memory if not 0 <= address - region.address < region.size]
    world.run(1)
    assert [error.errno for error in watcher.ends] == [errno.EIO] and world.flows.counts["faults"] == 1
    world.settled()


def test_round_trip_time_is_measured():
    world = FlowWorld(delay=0.05)
    client, watcher = world.opened()
    world.connections[0].write(b"x")
    world.connections[0].close()
    client.write(b"", fin=True)
    world.run(2, lambda: bool(watcher.ends))
    assert watcher.flow.end.rtt == pytest.approx(0.1, abs=0.001) and watcher.flow.end.retransmissions == 0


def test_end_of_a_flow_that_is_not_there(caplog):
    world = FlowWorld()
    world.transport.post_event(0, type=EventType.FLOW_DONE, status=Status.OK, value=5)
    world.turn()
    assert "reports the end of flow 5, which it did not have" in caplog.text
    caplog.clear()
    world.settled()


# -- abort --------------------------------------------------------------------------------


def test_abort_of_what_the_nic_has():
    world = FlowWorld()
    client, watcher = world.held()
    world.run(0.02)
    world.connections[0].abort()
    world.connections[0].abort()
    world.run(0.02)
    assert client.reset and world.flow.status == Status.ABORTED
    assert [type(error) for error in watcher.ends] == [ConnectionAbortedError]
    assert world.commands.count(CommandOpcode.FLOW_UPDATE) == 1
    client.send(client.nxt, ACK)
    world.run(0.5)
    world.settled()


@pytest.mark.parametrize("status", [Status.OK, Status.TABLE_FULL])
def test_abort_while_close_is_on_its_way(status):
    world = FlowWorld()
    client, watcher = world.opened()
    world.transport.frozen = True
    world.connections[0].write(b"never mind")
    world.connections[0].close()
    world.turn()
    world.connections[0].abort()
    assert [type(error) for error in watcher.ends] == [ConnectionAbortedError]
    world.refuse = status or None
    world.turn()
    world.transport.thaw()
    world.run(0.1)
    assert client.reset and len(watcher.ends) == 1
    assert world.flows.counts["aborted"] == (status == Status.OK)
    assert world.endpoint.stats["failed"] == 1
    world.run(5)
    world.settled()


def test_abort_that_comes_too_late():
    """The flow ends while the update is on its way, which is then refused: no warning, one end."""
    world = FlowWorld()
    client, watcher = world.held()
    world.run(0.02)
    world.transport.frozen = True
    world.connections[0].abort()
    world.turn()
    world.transport.end_flow(world.flow, Status.OK)
    world.turn()
    world.transport.thaw()
    world.run(0.02)
    assert [type(error) for error in watcher.ends] == [ConnectionAbortedError] and client.reset
    assert world.flows.counts["closed"] == 1 and world.transport.counters["command_errors"] == 1
    world.settled()


# -- one tuple, two connections ------------------------------------------------------------


@pytest.mark.parametrize("ts", [True, False])
@pytest.mark.parametrize("status", [Status.OK, Status.RESET])
def test_tuple_is_used_again(ts, status):
    world = FlowWorld()
    client, watcher = world.held(ts=ts)
    world.run(0.02)
    world.transport.end_flow(world.flow, status)
    world.run(0.02)
    again, second = world.opened(iss=client.nxt + 100_000, ts=ts, ts_offset=90_000)
    assert not world.transport.flows
    world.connections[-1].write(b"second")
    world.connections[-1].close()
    again.write(b"", fin=True)
    world.run(1)
    assert bytes(again.got) == b"second" and second.ends == [None] and len(watcher.ends) == 1
    assert world.flows.counts["handed_over"] == 2
    world.run(5)
    world.settled()


def test_tuple_is_used_again_before_the_end_is_looked_at():
    world = FlowWorld()
    client, watcher = world.held()
    world.run(0.02)
    late: list[dict[str, int]] = []
    post = world.transport.post_event
    world.transport.post_event = lambda number, **fields: late.append({"number": number, **fields})
    world.transport.end_flow(world.flow, Status.OK)
    world.transport.post_event = post
    again, second = world.opened(iss=client.nxt + 100_000, ts_offset=90_000)
    assert again.established and not watcher.ends and not world.hand_over.records and len(world.flows.held) == 1
    again.write(b"hello")
    world.run(0.1)
    assert world.connections[-1].receive_buffer.peek(9) == b"hello"
    post(**late[0])
    world.turn()
    assert watcher.ends == [None] and not second.ends and world.connections[-1].state is State.ESTABLISHED
    world.connections[-1].close()
    again.write(b"", fin=True)
    world.run(5)
    assert second.ends == [None]
    world.settled()


# -- trouble ------------------------------------------------------------------------------


def test_lost_device_gives_everything_back_once():
    world = FlowWorld()
    watchers = [world.held(port=port)[1] for port in (40000, 40001)]
    _, waiting = world.opened(40002)
    world.transport.frozen = True
    world.connections[-1].close()
    world.turn()
    assert (len(world.flows.held), len(world.flows.posted)) == (2, 1)
    gone = ConnectionAbortedError("the device went away")
    world.flows.fail(gone)
    world.flows.fail(gone)
    assert world.pool.used == 0 and sorted(world.pool.out) == sorted(world.pool.back)
    assert [watcher.ends for watcher in watchers] == [[gone], [gone]] and waiting.ends == []
    assert world.flows.counts["lost"] == 3 and world.flows.open == 0
    assert all(watcher.flow.end.status is None for watcher in watchers)
    # An answer that had been written before the end is no news.
    world.transport.thaw()
    world.turn()
    assert sorted(world.pool.out) == sorted(world.pool.back)


@pytest.mark.parametrize("tx", [8, 16])
def test_small_ring_delays_but_loses_nothing(tx):
    world = FlowWorld(tx=tx)
    users = [world.opened(40000 + number) for number in range(30)]
    for connection in world.connections:
        connection.write(PATTERN[:5000])
        connection.close()
    for client, _ in users:
        client.write(b"", fin=True)
    world.run(20, lambda: all(watcher.ends for _, watcher in users))
    assert all(bytes(client.got) == PATTERN[:5000] and watcher.ends == [None] for client, watcher in users)
    assert world.flows.counts["closed"] + world.flows.counts["software"] == 30 and world.flows.counts["closed"]
    world.run(5)
    world.settled()


def test_small_ring_and_many_aborts():
    world = FlowWorld(tx=8)
    users = [world.held(port=40000 + number) for number in range(30)]
    world.hand_over.abort_all()
    world.run(1)
    assert all(client.reset and type(watcher.ends[0]) is ConnectionAbortedError for client, watcher in users)
    assert world.flows.counts["aborted"] == 30
    world.settled()


@pytest.mark.parametrize("seed", range(6))
def test_anything_may_happen_and_memory_comes_back(seed):
    """Forty connections with losses, refusals, resets, aborts and peers that vanish or talk on."""
    chooser = random.Random(seed)
    settings = TcpSettings(retries=4, fin_wait_2=2.0, initial_rto=0.3)
    world = FlowWorld(seed=seed, flows=16, tx=64, memory=512 << 10, settings=settings)
    users = []
    for number in range(40):
        world.loss = 0
        client, watcher = world.opened(40000 + number, v6=chooser.random() < 0.5, ts=chooser.random() < 0.5)
        world.loss, world.swap = 0.05, 0.05
        connection = world.connections[-1]
        data = PATTERN[: chooser.choice([0, 1, 3000, 20_000, 60_000])]
        connection.write(data)
        connection.close()
        world.refuse = chooser.choice([None] * 6 + list(REFUSALS))
        fate = chooser.choice(["close", "close", "close", "reset", "vanish", "talk", "abort", "stay"])
        if fate in ("close", "talk"):
            client.write(b"but" * (fate == "talk"), fin=True)
        elif fate == "vanish":
            client.auto = False
        elif fate == "abort":
            world.at(world.now + chooser.random() * 0.05, connection.abort)
        elif fate == "reset":
            world.at(world.now + chooser.random() * 0.05, lambda client=client: client.send(client.nxt, RST))
        users.append((client, watcher, data, fate))
        world.run(chooser.random() * 0.1)
    world.refuse = None
    world.run(200, lambda: all(watcher.ends for _, watcher, _, _ in users))
    world.run(70)
    for client, watcher, data, fate in users:
        assert len(watcher.ends) == 1, f"seed {seed}, port {client.port}: {fate} ended as {watcher.ends}"
        if fate == "close":
            assert bytes(client.got) == data and watcher.ends[0] is None, f"seed {seed}, port {client.port}"
        assert data.startswith(bytes(client.got)), f"seed {seed}, port {client.port}"
    assert world.flows.counts["handed_over"] > 10 and world.flows.counts["refused_other"], f"seed {seed}"
    world.settled()


# -- on the event loop ---------------------------------------------------------------------


def serve(test, *, flows: int = 64, **options) -> FakeTransport:
    """Run `test(nic, net)` with an open NIC that closes connections, and see that all memory came back."""
    transport = FakeTransport(flows=flows)
    pools: list[CountingPool] = []

    async def sweep() -> None:
        while True:
            transport.sweep()
            await asyncio.sleep(0.01)

    async def inside() -> None:
        net, sweeping = RealTime(transport), asyncio.ensure_future(sweep())
        options.setdefault("linger", 0.1)
        async with acceltcp.host.open(
            Device(transport), ADDRESSES, mac=MAC.hex(":"), **{"tcp": QUICK, **options}
        ) as nic:
            nic.flows.pool.__class__ = CountingPool
            nic.flows.pool.out, nic.flows.pool.back = [], []
            pools.append(nic.flows.pool)
            await test(nic, net)
        sweeping.cancel()
        assert transport.closed and not nic.flows.open

    asyncio.run(asyncio.wait_for(inside(), 30))
    assert sorted(pools[0].out) == sorted(pools[0].back) and pools[0].used == 0
    return transport


@pytest.mark.parametrize("v6", [False, True])
def test_orderly_end_reaches_who_waits(v6):
    async def test(nic: Nic, net: RealTime) -> None:
        ended: list[Connection] = []

        async def handler(connection: Connection) -> None:
            connection.write(await connection.readline())
            connection.close()
            await connection.wait_closed()
            assert await connection.read() == b"" and connection.is_closing()
            with pytest.raises(BrokenPipeError):
                connection.write(b"more")
            ended.append(connection)

        await nic.listen(80, handler)
        client = net.connect(v6=v6)
        client.write(b"line\n")
        await until(lambda: client.fin_seen)
        assert bytes(client.got) == b"line\n" and not ended
        client.write(b"", fin=True)
        await until(lambda: ended)
        assert ended[0].flow is not None and ended[0].flow.end.status == Status.OK
        assert repr(ended[0]) == f"<Connection from {'fd00::1' if v6 else '10.0.0.1'} port 40000: done by the NIC>"
        assert nic.stats()["flows"]["closed"] == 1

    serve(test)


@pytest.mark.parametrize(("status", "counter", "error", "resets"), ENDS, ids=lambda value: getattr(value, "name", None))
def test_who_waits_is_told_how_it_ended(status, counter, error, resets):
    async def test(nic: Nic, net: RealTime) -> None:
        ends: list[BaseException | None] = []

        async def handler(connection: Connection) -> None:
            connection.close()
            try:
                await connection.wait_closed()
                ends.append(None)
            except OSError as raised:
                ends.append(raised)

        await nic.listen(80, handler)
        net.connect()
        await until(lambda: net.transport.flows)
        assert not ends
        net.transport.end_flow(net.transport.flows[0], status)
        await until(lambda: ends)
        assert ends == [None] if error is None else isinstance(ends[0], error)
        assert nic.stats()["flows"][counter] == 1

    serve(test)


def test_who_drains_need_not_wait_for_the_peer():
    async def test(nic: Nic, net: RealTime) -> None:
        waited: list[Connection] = []

        async def handler(connection: Connection) -> None:
            connection.write(b"last words")
            connection._high_water = 0
            connection.close()
            await connection.drain()
            waited.append(connection)

        client = net.connect()
        client.auto = False
        await nic.listen(80, handler)
        await until(lambda: client.established)
        client.send(client.nxt, ACK)
        await until(lambda: waited)
        assert waited[0].flow.phase is Phase.HELD and waited[0].flow.end is None
        with pytest.raises(BrokenPipeError):
            waited[0].write(b"more")

    serve(test)


def test_nic_without_teardown():
    async def test(nic: Nic, net: RealTime) -> None:
        async def handler(connection: Connection) -> None:
            connection.write(b"by the host")

        await nic.listen(80, handler)
        await nic.listen(81, handler, teardown=True)
        client = net.connect()
        client.write(b"", fin=True)
        await until(lambda: client.fin_seen and client.fin_acked)
        assert bytes(client.got) == b"by the host"
        assert nic.stats()["flows"]["handed_over"] == 0
        other = net.connect(40001, dst_port=81)
        other.write(b"", fin=True)
        await until(lambda: nic.stats()["flows"]["closed"] == 1)
        assert nic.stats()["flows"]["handed_over"] == 1

    serve(test, teardown=False)


def test_listener_may_say_otherwise():
    async def test(nic: Nic, net: RealTime) -> None:
        async def handler(connection: Connection) -> None:
            connection.write(b"by the host")

        await nic.listen(80, handler, teardown=False)
        client = net.connect()
        client.write(b"", fin=True)
        await until(lambda: client.fin_seen and client.fin_acked)
        assert bytes(client.got) == b"by the host" and nic.stats()["flows"]["handed_over"] == 0

    serve(test)


def test_build_without_the_feature():
    transport = FakeTransport()

    async def main() -> None:
        net = RealTime(transport)
        async with acceltcp.host.open(Device(transport), ADDRESSES, mac=MAC.hex(":"), tcp=QUICK) as nic:
            with pytest.raises(DeviceError, match="built without TEARDOWN"):
                await nic.listen(80, teardown=True)
            with pytest.raises(DeviceError, match="built without TEARDOWN"):
                await nic.flow_table()

            async def handler(connection: Connection) -> None:
                connection.write(b"by the host")

            await nic.listen(80, handler)
            client = net.connect()
            client.write(b"", fin=True)
            await until(lambda: client.fin_seen and client.fin_acked)
            assert nic.flows is None and not any(nic.stats()["flows"].values())

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("size", [0, 100, 300_000])
def test_http_closes_by_the_nic_when_asked_to(size, tmp_path):
    (tmp_path / "file").write_bytes(PATTERN[:size].ljust(size, b"-"))

    async def test(nic: Nic, net: RealTime) -> None:
        await nic.listen(80, HttpServer(tmp_path).handle)
        client = net.connect()
        client.write(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: client.got.count(b"\r\n\r\n") and len(client.got.split(b"\r\n\r\n", 1)[1]) == size)
        assert not client.fin_seen and nic.stats()["flows"]["handed_over"] == 0
        client.got.clear()
        client.write(b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await until(lambda: client.fin_seen)
        head, body = bytes(client.got).split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 200 ") and b"\r\nConnection: close" in head
        assert body == (tmp_path / "file").read_bytes()
        client.write(b"", fin=True)
        await until(lambda: not nic.endpoint.connections and not nic.flows.open)
        stats = nic.stats()["flows"]
        assert (stats["closed"], stats["software"]) in ((1, 0), (0, 1)) and (size == 300_000 or stats["closed"])

    serve(test)


def held_by_the_nic(count: int):
    """A test that leaves the NIC with that many flows whose peers do not close."""

    async def test(nic: Nic, net: RealTime) -> None:
        async def handler(connection: Connection) -> None:
            connection.write(b"last words")

        await nic.listen(80, handler, backlog=count)
        for number in range(count):
            net.connect(20_000 + number)
        await until(lambda: len(nic.flows.held) == count)

    return test


def test_close_with_a_thousand_flows_held():
    used: list[Nic] = []

    async def test(nic: Nic, net: RealTime) -> None:
        used.append(nic)
        await held_by_the_nic(1000)(nic, net)

    serve(test, flows=1024)
    assert used[0].flows.counts["aborted"] == used[0].flows.counts["handed_over"] == 1000


@pytest.mark.parametrize("count", [1, 20])
def test_close_resets_a_device_that_lets_no_flow_go(count, monkeypatch):
    monkeypatch.setattr(acceltcp.host.engine, "_ABORT_S", 0.1)
    resets: list[int] = []

    async def test(nic: Nic, net: RealTime) -> None:
        await held_by_the_nic(count)(nic, net)
        net.transport.command_hook = lambda fields: Status.NOT_FOUND if fields["opcode"] == CommandOpcode.FLOW_UPDATE else None
        nic.device.on_reset.append(lambda: resets.append(nic.flows.open))

    serve(test)
    assert resets == [0], "one reset, and memory was given back with it"


def lost(how) -> list[BaseException | None]:
    """What who waits is told when `how(nic, net)` happens to a NIC with one flow held and one posted."""
    ends: list[BaseException | None] = []

    async def test(nic: Nic, net: RealTime) -> None:
        async def handler(connection: Connection) -> None:
            connection.close()
            try:
                await connection.wait_closed()
                ends.append(None)
            except OSError as error:
                ends.append(error)

        await nic.listen(80, handler)
        net.connect()
        await until(lambda: nic.flows.held)
        net.transport.frozen = True
        net.connect(40001)
        await until(lambda: nic.flows.posted)
        await how(nic, net)
        await until(lambda: len(ends) == 2)
        assert nic.flows.counts["lost"] == 2
        with pytest.raises(DeviceError):
            await nic.nop()

    serve(test)
    return ends


def test_device_that_goes_away_ends_flows(caplog):
    async def how(nic: Nic, net: RealTime) -> None:
        net.transport.dead = DeviceLostError("fake: went away.")
        nic._check_device()

    assert [str(error) for error in lost(how)] == ["[Errno 103] the device went away"] * 2
    assert caplog.messages == ["fake: went away."]
    caplog.clear()


def test_device_that_is_reset_ends_flows(caplog):
    async def how(nic: Nic, net: RealTime) -> None:
        net.transport.frozen = False
        nic.device.reset()

    assert [type(error) for error in lost(how)] == [ConnectionAbortedError] * 2
    assert caplog.messages == ["fake: was reset while in use."]
    caplog.clear()


def test_nic_closes_while_close_is_on_its_way():
    """And stays there: only a reset gives the memory back."""

    async def test(nic: Nic, net: RealTime) -> None:
        async def handler(connection: Connection) -> None:
            connection.close()

        await nic.listen(80, handler)
        carry_out = net.transport._command
        net.transport._command = lambda index, at, data: data[0] == CommandOpcode.CLOSE or carry_out(index, at, data)
        net.connect()
        await until(lambda: nic.flows.posted)

    serve(test)


def test_last_ack_while_posted():
    """The peer closed first and acknowledges our FIN while CLOSE is on its way: the user hears of it once."""
    world = FlowWorld()
    client, watcher = world.opened()
    client.write(b"bye", fin=True)
    world.run(0.1)
    client.auto = False
    world.connections[0].write(DATA)
    world.connections[0].shutdown()
    world.run(0.02)
    assert client.fin_seen
    world.transport.frozen = True
    world.connections[0].close()
    world.turn()
    assert len(world.flows.posted) == 1
    client.send(client.nxt, ACK)
    world.run(0.02)
    assert watcher.ends == [None]
    world.transport.thaw()
    world.run(1)
    assert watcher.ends == [None]
    world.run(5)
    world.settled()


def test_reset_of_a_sent_fin_while_posted():
    """The same, but the peer resets: the NIC is told, and nobody hears of it twice."""
    world = FlowWorld()
    client, watcher = world.opened()
    client.write(b"bye", fin=True)
    world.run(0.1)
    client.auto = False
    world.connections[0].write(DATA)
    world.connections[0].shutdown()
    world.run(0.02)
    world.transport.frozen = True
    world.connections[0].close()
    world.turn()
    assert len(world.flows.posted) == 1
    client.send(client.nxt, RST)
    world.run(0.02)
    world.transport.thaw()
    world.run(5)
    assert watcher.ends == [None]
    world.settled()


def test_the_smaller_mtu_counts():
    """A NIC whose MTU is smaller than that of the TCP settings: it serves all the same."""
    transport = FakeTransport(flows=64)

    async def main():
        net = RealTime(transport)
        async with acceltcp.host.open(Device(transport), ADDRESSES, mac="02:00:00:00:00:02", mtu=1280, tcp=TcpSettings(), linger=0.1) as nic:
            async def answer(connection):
                connection.write(PATTERN[:5000])

            await nic.listen(80, answer)
            a = net.connect(40000)
            await asyncio.sleep(0.5)
            b = net.connect(40001)
            await asyncio.sleep(0.5)
            assert a.fin_seen and b.fin_seen and len(a.got) == len(b.got) == 5000

    asyncio.run(main())
