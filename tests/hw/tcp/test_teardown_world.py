"""Whole closes between the model of the teardown engine and a peer written from RFC 9293, over a lossy wire.

The wire loses 10 % of the segments, duplicates some and delivers in any order; somebody else throws in forged
ones. Between the hand-over command and the flow's installation segments still reach the host, which tells the
NIC with FLOW_UPDATE. Checked of every connection: both sides end, every final byte has been delivered
when FLOW_DONE says so, there is exactly one FLOW_DONE, memory is not read after it, and nobody floods the wire.
"""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from acceltcp.abi.messages import FlowState, Status
from acceltcp.abi.wire import TCPFlag
from tests.hw.tcp.teardown_model import TIMING, Flow, Registers, Segment, TeardownModel, distance

M32 = (1 << 32) - 1
FIN, SYN, RST, ACK = TCPFlag.FIN, TCPFlag.SYN, TCPFlag.RST, TCPFlag.ACK
LOSS, DUPLICATION, FORGERY = 0.1, 0.05, 0.02
DELAY = 20
MSS = 200
LAP = 8
RTO = (45, 60, 150)
PEER_RTO_MAX, PEER_TIME_WAIT, PEER_RETRIES = 500, 4000, 60
STEPS_MAX, SEGMENTS_MAX = 300_000, 600


@dataclass
class Packet:
    """A segment on the wire."""

    seq: int
    ack: int
    flags: int
    data: bytes = b""
    window: int = 65_535
    tsval: int | None = None
    tsecr: int = 0

    @property
    def length(self):
        """Sequence numbers that it takes."""
        return len(self.data) + bool(self.flags & FIN) + bool(self.flags & SYN)


class Peer:
    """A TCP of RFC 9293 from ESTABLISHED on, reading slowly, with timestamps if asked for."""

    def __init__(self, world, *, iss, irs, expect, timestamps, buffer, clock):
        self.world, self.expect, self.irs, self.clock = world, expect, irs, clock
        self.state = "ESTABLISHED"
        self.una = self.nxt = iss
        self.rcv_nxt = self.read_to = self.edge = irs
        self.buffer = buffer
        self.timestamps, self.ts_recent = timestamps, 0
        self.out_of_order = {}
        self.fin_at = None  # of the other side, in sequence numbers
        self.queue, self.fin_queued, self.fin_seq = b"", False, None
        self.first_rto = self.rto = world.rng.choice(RTO)
        self.retries = self.timer = 0
        self.eof = self.was_reset = self.gave_up = self.gone = False
        self.advertise()

    # What its application does, and its power supply.

    def vanish(self):
        self.state, self.gone = "CLOSED", True

    def write(self, data):
        if self.state in ("ESTABLISHED", "CLOSE_WAIT"):
            start = self.nxt
            self.queue += data
            self.nxt = self.nxt + len(data) & M32
            self.send(start, ACK, data)
            self.arm()

    def close(self):
        moves = {"ESTABLISHED": "FIN_WAIT_1", "CLOSE_WAIT": "LAST_ACK"}
        if self.state in moves:
            self.state = moves[self.state]
            self.fin_seq = self.nxt
            self.nxt = self.nxt + 1 & M32
            self.send(self.fin_seq, FIN | ACK)
            self.arm()

    def read(self):
        """Empties the buffer; tells a window that grew (RFC 9293 section 3.8.6.2.2)."""
        before = self.window
        self.read_to = self.rcv_nxt
        self.advertise()
        if self.state not in ("CLOSED", "TIME_WAIT") and self.window - before >= min(MSS, self.buffer // 2):
            self.acknowledge()

    # What it sends.

    @property
    def window(self):
        return max(distance(self.edge, self.rcv_nxt), 0)

    def advertise(self):
        edge = self.read_to + self.buffer & M32
        if distance(edge, self.edge) > 0:
            self.edge = edge

    def send(self, seq, flags, data=b""):
        stamp = self.clock + self.world.now & M32 if self.timestamps else None
        self.world.to_nic(Packet(seq, self.rcv_nxt, flags, data, self.window, stamp, self.ts_recent))

    def acknowledge(self):
        self.send(self.nxt, ACK)

    def arm(self):
        """One timer (RFC 6298 section 5); an older one finds `timer` changed."""
        self.timer += 1
        self.world.at(self.rto, self.expire, self.timer)

    def expire(self, timer):
        if timer != self.timer or self.state in ("CLOSED", "TIME_WAIT") or self.una == self.nxt:
            return
        self.retries += 1
        if self.retries > PEER_RETRIES:
            self.gave_up = True
            self.state = "CLOSED"
            return
        self.rto = min(self.rto * 2, PEER_RTO_MAX)
        if self.queue:
            data = self.queue[:MSS]
            last = len(data) == len(self.queue) and self.fin_seq is not None
            self.send(self.una, ACK | (FIN if last else 0), data)
        else:
            self.send(self.una, FIN | ACK)
        self.arm()

    def time_wait(self):
        self.state = "TIME_WAIT"
        self.timer += 1
        self.world.at(PEER_TIME_WAIT, self.time_wait_over, self.timer)

    def time_wait_over(self, timer):
        if timer == self.timer:
            self.state = "CLOSED"

    # What it receives: RFC 9293 section 3.10.7.4, check by check.

    def receive(self, p):
        if self.state == "CLOSED":
            if not p.flags & RST and not self.gone:
                self.world.to_nic(Packet(p.ack, p.seq + p.length & M32, RST | ACK))
            return
        if p.flags & RST:
            if p.seq == self.rcv_nxt:
                if self.state != "TIME_WAIT":  # RFC 1337
                    self.state, self.was_reset = "CLOSED", True
            elif 0 < distance(p.seq, self.rcv_nxt) < self.window:
                self.acknowledge()
            return
        if self.timestamps:
            if p.tsval is None:
                return
            if distance(p.tsval, self.ts_recent) < 0:
                self.acknowledge()
                return
        if not self.acceptable(p) and not (self.window == 0 and p.seq == self.rcv_nxt):
            if self.state == "TIME_WAIT" and p.flags & FIN:
                self.time_wait()
            self.acknowledge()
            return
        if p.flags & SYN:
            self.acknowledge()
            return
        if not p.flags & ACK:
            return
        if distance(p.ack, self.nxt) > 0:
            self.acknowledge()
            return
        if self.timestamps and distance(p.seq, self.rcv_nxt) <= 0:
            self.ts_recent = p.tsval
        self.acknowledged(p.ack)
        if self.state != "CLOSED" and p.length:
            self.text(p)

    def acceptable(self, p):
        first = distance(p.seq, self.rcv_nxt)
        last = first + p.length - 1
        if not p.length:
            return first == 0 if not self.window else 0 <= first < self.window
        # Overlap, as Linux and BSD have it. The RFC's two comparisons alone refuse a segment that begins before
        # the window and ends behind it; a sender that cannot cut its frames would never get through.
        return self.window > 0 and first < self.window and last >= 0

    def acknowledged(self, ack):
        moved = distance(ack, self.una)
        if moved <= 0:
            return
        self.queue = self.queue[min(moved, len(self.queue)) :]
        self.una, self.retries, self.rto = ack, 0, self.first_rto
        self.arm()
        if self.fin_seq is not None and ack == self.nxt:
            if self.state == "FIN_WAIT_1":
                self.state = "FIN_WAIT_2"
            elif self.state == "CLOSING":
                self.time_wait()
            elif self.state == "LAST_ACK":
                self.state = "CLOSED"

    def text(self, p):
        room = distance(self.edge, p.seq)
        data = p.data[: max(room, 0)]
        at = distance(p.seq, self.irs)
        assert data == self.expect[at : at + len(data)], "bytes that were never sent"
        if data:
            self.out_of_order[p.seq] = data
        if p.flags & FIN and room > len(p.data):
            self.fin_at = p.seq + len(data) & M32
        moved = True
        while moved:
            moved = False
            for seq, piece in list(self.out_of_order.items()):
                gap = distance(self.rcv_nxt, seq)
                if gap >= 0:
                    del self.out_of_order[seq]
                    if gap < len(piece):
                        self.rcv_nxt = seq + len(piece) & M32
                        moved = True
        if self.fin_at == self.rcv_nxt and not self.eof:
            self.rcv_nxt = self.rcv_nxt + 1 & M32
            self.eof = True
            if self.state == "ESTABLISHED":
                self.state = "CLOSE_WAIT"
            elif self.state == "FIN_WAIT_1":
                self.state = "CLOSING"
            elif self.state == "FIN_WAIT_2":
                self.time_wait()
            self.world.saw_eof()
        self.acknowledge()

    @property
    def received(self):
        return distance(self.rcv_nxt, self.irs) - self.eof


class World:
    """One connection: the NIC with one flow, its host, the wire, the peer."""

    def __init__(self, seed, role, time_wait=3000):
        self.rng = rng = random.Random(seed)
        self.role, self.now, self._order, self.heap = role, 0, 0, []
        self.segments = 0
        stamps = rng.random() < 0.5
        iss, irs = rng.getrandbits(32), rng.choice((rng.getrandbits(32), M32 - 500))
        sizes = [rng.randrange(1, MSS + 1) for _ in range(rng.randrange(0, 16))]
        if rng.random() < 0.4 or not sizes:
            sizes.append(0)  # the FIN goes alone
        self.final = rng.randbytes(sum(sizes))
        self.peer = Peer(
            self, iss=iss, irs=irs, expect=self.final, timestamps=stamps, clock=rng.getrandbits(32),
            buffer=rng.choice((len(self.final) + 64, len(self.final) + 64, 65_535)),
        )  # fmt: skip
        self.peer.ts_recent = 0x80000000 - 5
        self.nic_clock = 0x80000000
        self.frames, seq = [], irs
        for number, size in enumerate(sizes):
            at = distance(seq, irs)
            last = number == len(sizes) - 1
            self.frames.append((seq, self.final[at : at + size], last))
            seq = seq + size & M32
        self.snd_end = seq + 1 & M32
        self.timestamps = stamps
        self.model = TeardownModel(
            Registers(time_wait=time_wait, fin_wait_2=6000, linger=500, max_rto=400)
        )
        self.rto = rng.choice(RTO)
        self.host_window = self.peer.window
        self.freed = False
        self.installed = False
        self.updates = []
        self.start(iss)

    # Events.

    def at(self, steps, action, *arguments):
        self._order += 1
        heapq.heappush(self.heap, (self.now + steps, self._order, action, arguments))

    def run(self):
        while self.heap:
            self.now, _, action, arguments = heapq.heappop(self.heap)
            assert self.now < STEPS_MAX, "it does not end"
            self.model.now = self.now % (1 << 20)
            self.model.registers.ts_clock = self.nic_clock + self.now & M32
            action(*arguments)
            self.look()

    # The wire.

    def deliver(self, packet, receiver):
        self.segments += 1
        assert self.segments < SEGMENTS_MAX, "the wire is flooded"
        copies = (self.rng.random() >= LOSS) + (self.rng.random() < DUPLICATION)
        for _ in range(copies):
            self.at(self.rng.randrange(1, DELAY), receiver, packet)
        if self.rng.random() < FORGERY:
            flags = self.rng.choice((RST, SYN, ACK, FIN | ACK))
            forged = replace(packet, seq=self.rng.getrandbits(32), ack=self.rng.getrandbits(32), flags=flags)
            self.at(self.rng.randrange(1, DELAY), receiver, replace(forged, data=b""))

    def to_nic(self, packet):
        self.deliver(packet, self.nic_receives)

    def to_peer(self, packet):
        self.deliver(packet, self.peer.receive)

    # The hand-over.

    def start(self, iss):
        rng, role = self.rng, self.role
        peer_fin = role == "second"
        rcv_nxt = iss
        if peer_fin:
            # Its FIN has come; whether it has heard that depends on the wire.
            self.peer.close()
            self.heap.clear()
            self.peer.arm()
            rcv_nxt = iss + 1 & M32
        elif role == "simultaneous":
            self.at(rng.randrange(2 * DELAY), self.peer.close)
        elif role == "half":
            self.at(40_000, self.peer.close)
        elif role == "data":
            for _ in range(rng.randrange(1, 4)):
                self.at(rng.randrange(300), self.peer.write, rng.randbytes(rng.randrange(1, MSS)))
            self.at(40_000, self.peer.close)
        elif role == "gone":
            self.at(rng.randrange(200), self.peer.vanish)
        if rng.random() < 0.3:
            # It takes back window that the host has seen (RFC 9293 section 3.8.6: one has to live with that)
            # and reads now and then only.
            self.host_window = self.peer.window
            self.peer.buffer = rng.randrange(64, len(self.final) + 128)
            self.peer.edge = self.peer.irs + rng.choice((0, self.peer.buffer)) & M32
            self.at(rng.randrange(3000), self.reader)
        self.sent = rng.randrange(len(self.frames) + 1)
        for frame in self.frames[: self.sent]:
            self.send_frame(frame, rcv_nxt, self.peer.clock & M32)
        self.host_rcv_nxt, self.host_fin, self.host_ts = rcv_nxt, peer_fin, self.peer.clock & M32
        self.at(rng.randrange(12), self.install, rcv_nxt, peer_fin, self.host_ts)

    def reader(self):
        if self.peer.state != "CLOSED" and not self.peer.eof:
            self.peer.read()
            self.at(self.rng.randrange(50, 1000), self.reader)

    def saw_eof(self):
        if self.role == "first":
            self.at(self.rng.randrange(200), self.peer.close)

    def install(self, rcv_nxt, peer_fin, ts_recent):
        self.installed = True
        rest = self.frames[self.sent :]
        self.model.install(
            0,
            Flow(
                snd_end=self.snd_end, rcv_base=rcv_nxt - peer_fin & M32,
                unacked=distance(self.snd_end, self.frames[0][0]),
                state=FlowState.LAST_ACK if peer_fin else FlowState.FIN_WAIT_1,
                window=min(self.host_window // 64, 4095), timestamps=int(self.timestamps), ts_recent=ts_recent,
                rto=self.rto, retry_limit=15, deadline=self.model.now + self.rto, sending=int(bool(rest)),
                rtt=self.model.now, rtt_state=TIMING if not self.sent else 0,
            ),
        )  # fmt: skip
        if rest:
            self.at(1, self.transmit, rest, rcv_nxt, ts_recent)
        for update in self.updates:
            self.at(self.rng.randrange(1, 30), self.tell, update)
        self.sweeper()

    def sweeper(self):
        self.model.sweep()
        if self.model.flows:
            self.at(LAP, self.sweeper)

    # The NIC.

    def nic_receives(self, packet):
        if not self.installed:
            self.host_receives(packet)
        elif 0 in self.model.flows:
            self.model.segment(
                0,
                Segment(packet.seq, packet.ack, packet.flags, len(packet.data), packet.window, packet.tsval),
            )
        elif not packet.flags & RST:
            # The host knows no such connection: RFC 9293 section 3.10.7.1.
            self.to_peer(Packet(packet.ack, packet.seq + packet.length & M32, RST | ACK))

    def host_receives(self, p):
        """Between the command and the flow: as much of a TCP as matters here."""
        if p.flags & (SYN | RST) or abs(distance(p.seq, self.host_rcv_nxt)) > 65_535:
            return
        if distance(p.ack, self.snd_end) > 0 or (self.timestamps and p.tsval is None):
            return
        if p.data:
            return  # the peer repeats it, and the NIC resets it once everything of ours is acknowledged
        if p.flags & FIN and p.seq == self.host_rcv_nxt and not self.host_fin:
            self.host_fin = True
            self.host_rcv_nxt = self.host_rcv_nxt + 1 & M32
        if self.timestamps and distance(p.tsval, self.host_ts) > 0:
            self.host_ts = p.tsval
        self.updates.append(
            {"ack": p.ack, "window": p.window // 64, "fin": self.host_fin and self.role != "second"}
        )
        if p.flags & FIN:
            nxt = self.frames[self.sent][0] if self.sent < len(self.frames) else self.snd_end
            stamp = self.nic_clock + self.now & M32 if self.timestamps else None
            self.to_peer(Packet(nxt, self.host_rcv_nxt, ACK, b"", 65_535, stamp, self.host_ts))

    def tell(self, update):
        self.model.update(0, snd_end=self.snd_end, ts_recent=self.host_ts, **update)

    def send_frame(self, frame, ack, tsecr):
        assert not self.freed, "memory was read after FLOW_DONE"
        seq, data, last = frame
        stamp = self.nic_clock + self.now & M32 if self.timestamps else None
        self.to_peer(Packet(seq, ack, ACK | (FIN if last else 0), data, 65_535, stamp, tsecr))

    def transmit(self, frames, ack, tsecr):
        for frame in frames:
            self.send_frame(frame, ack, tsecr)
        self.at(1, self.model.sent, 0)

    def carry_out(self, job):
        """As the docstring of FlowJob says."""
        chosen = []
        for frame in self.frames:
            seq, data, last = frame
            if distance(self.snd_end, seq + len(data) + last) >= job.left or len(chosen) == job.limit:
                continue
            if not chosen or distance(seq, chosen[0][0]) <= job.room * 64:
                chosen.append(frame)
        self.transmit(chosen, job.ack, job.tsecr)

    def look(self):
        """Take what the NIC has put out."""
        model = self.model
        for reply in model.replies:
            flags = ACK | (RST if reply.kind == "RST" else 0)
            stamp = reply.tsval if reply.timestamps else None
            self.to_peer(Packet(reply.seq, reply.ack, flags, b"", reply.window, stamp, reply.tsecr))
        for job in model.jobs:
            self.at(self.rng.randrange(3), self.carry_out, job)
        for _ in model.deletes:
            model.deleted(0)
        model.replies, model.jobs, model.deletes = [], [], []
        if model.events and not self.freed:
            self.freed = True
            status = model.events[0]["status"]
            if status in (Status.OK, Status.FIN_TIMED_OUT, Status.PEER_DATA):
                assert self.peer.eof and self.peer.received == len(self.final), "bytes are lost"


def play(seed, role, **options):
    world = World(seed, role, **options)
    world.run()
    peer, events = world.peer, world.model.events
    assert len(events) == 1, events
    assert not world.model.flows and peer.state == "CLOSED" and not peer.gave_up
    return world, events[0]["status"]


CONNECTIONS = 1000
SEEDS = range(CONNECTIONS)


@pytest.mark.parametrize("role", ["first", "second", "simultaneous"])
def test_orderly(role):
    """Nobody is reset, everything arrives."""
    for seed in SEEDS:
        try:
            world, status = play(seed, role)
            assert status == Status.OK and not world.peer.was_reset, status
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {role}: {error}") from error


def test_peer_does_not_close():
    for seed in SEEDS:
        world, status = play(seed, "half")
        assert status == Status.FIN_TIMED_OUT, f"seed {seed}: {status}"
        assert world.peer.was_reset, f"seed {seed}: the host knows nothing of it any more"


def test_peer_data():
    """Data that nobody reads end in a reset, but never at the cost of our own."""
    for seed in SEEDS:
        world, status = play(seed, "data")
        assert status == Status.PEER_DATA, f"seed {seed}: {status}"
        assert world.peer.was_reset, f"seed {seed}: it goes on for ever"


def test_peer_vanishes():
    """Whatever it had said last, a window of 0 too: the flow ends and the memory is the host's again."""
    seen, closed = Counter(), 0
    for seed in SEEDS:
        world, status = play(seed, "gone")
        seen[status] += 1
        closed += not world.peer.window
    assert set(seen) == {Status.TIMED_OUT, Status.FIN_TIMED_OUT} and closed, (seen, closed)


def test_without_time_wait():
    """The peer may have to be told by a reset, but has everything by then."""
    for seed in range(100):
        for role in ("first", "simultaneous"):
            _, status = play(seed, role, time_wait=0)
            assert status == Status.OK, f"seed {seed}, {role}: {status}"
