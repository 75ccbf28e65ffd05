"""Reference model of connection teardown in plain Python, written from docs/teardown.md and the RFCs.

A `TeardownModel` holds flows by index. A test calls what happens to them, `install`, `segment`, `update`,
`sent`, `deleted`, and `visit` for the sweeper, and sets the attribute `now` (timer steps); what the NIC does
is appended to `replies`, `jobs`, `events` and `deletes`, and counted in `counts` under the names of
`acceltcp.abi.registers.COUNTERS`. `job_room` and `event_room` say whether the transmitter and the event
queue would take something at this moment. No gateware is imported.

Numbers in comments ("rule 8") are those of docs/teardown.md. Sequence numbers and timestamps are compared
modulo 2^32 (RFC 9293 section 3.4, RFC 7323 section 5.2), times modulo 2^20.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from acceltcp.abi.messages import WINDOW_UNIT, FlowState, Status
from acceltcp.abi.wire import TCPFlag

__all__ = ["Flow", "Job", "Registers", "Reply", "Segment", "TeardownModel", "distance"]

M32 = (1 << 32) - 1
TIME = 1 << 20
RECEIVE_WINDOW = 65_535
WINDOW_MAX = (1 << 12) - 1
RTT_MASK = (1 << 14) - 1
RETRANSMISSIONS_MAX = 63
CHALLENGE_STEPS = 256

NONE, TIMING, SAMPLE, SPOILT = range(4)  # of `rtt_state`

FREE, DELETING, FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK, TIME_WAIT, LINGER = FlowState
OPEN = (FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK)
"""Nothing has been decided yet."""
UNACKED = (FIN_WAIT_1, CLOSING, LAST_ACK)
"""Something of ours is not acknowledged."""

OUTCOMES = {
    Status.OK: "flow_closed",
    Status.RESET: "flow_reset",
    Status.TIMED_OUT: "flow_timed_out",
    Status.PEER_DATA: "flow_peer_data",
    Status.FIN_TIMED_OUT: "flow_fin_timed_out",
    Status.ABORTED: "flow_aborted",
}
"""Every other status is a fault."""


def distance(a: int, b: int, modulus: int = 1 << 32) -> int:
    """a - b as a number that may be negative."""
    half = modulus >> 1
    return (a - b + half) % modulus - half


@dataclass
class Registers:
    """Of the block FLOWS, and the timestamp clock."""

    time_wait: int = 1000
    fin_wait_2: int = 2000
    linger: int = 100
    max_rto: int = 4000
    window: int = 65_535
    ts_clock: int = 0


@dataclass
class Segment:
    """A received segment, good checksums, to our MAC address."""

    seq: int
    ack: int = 0
    flags: int = TCPFlag.ACK
    payload: int = 0
    window: int = 0
    tsval: int | None = None
    options_bad: bool = False
    answer: bool = False
    """A SYN that a listener would answer."""

    @property
    def fin(self) -> int:
        return int(bool(self.flags & TCPFlag.FIN))

    @property
    def end(self) -> int:
        """Without FIN."""
        return self.seq + self.payload & M32


@dataclass
class Reply:
    """A segment that the NIC makes; of a SYN-ACK that is given through only the kind counts."""

    index: int
    kind: str
    seq: int = 0
    ack: int = 0
    window: int = 0
    timestamps: int = 0
    tsval: int = 0
    tsecr: int = 0


@dataclass
class Job:
    """Frames to send; fields as `hw.tcp.flow.FlowJob`."""

    index: int
    left: int
    limit: int
    room: int
    ack: int
    timestamps: int
    tsecr: int
    snd_end: int
    table: int
    frames: int
    port: int


@dataclass
class Flow:
    """State of a flow; fields as `hw.tcp.flow.flow_layout` where they have the same name."""

    snd_end: int
    rcv_base: int
    unacked: int
    state: FlowState = FIN_WAIT_1
    window: int = WINDOW_MAX
    wscale: int = 0
    timestamps: int = 0
    ts_recent: int = 0
    rto: int = 100
    retry_limit: int = 8
    deadline: int = 0
    retries: int = 0
    duplicates: int = 0
    sending: int = 0
    rtt: int = 0
    rtt_state: int = NONE
    retransmissions: int = 0
    challenge: int = 3
    table: int = 0
    frames: int = 0
    queue: int = 0
    port: int = 0
    rows: tuple[int, int] = (0, 0)
    # How it ended; in TIME_WAIT and LINGER only.
    owed: Status | None = None
    strays: bool = False

    @property
    def rcv_nxt(self) -> int:
        return self.rcv_base + (self.state not in (FIN_WAIT_1, FIN_WAIT_2)) & M32

    @property
    def snd_una(self) -> int:
        return self.snd_end - self.unacked & M32


@dataclass
class TeardownModel:
    """See the module's docstring."""

    registers: Registers = field(default_factory=Registers)
    now: int = 0
    job_room: bool = True
    event_room: bool = True
    flows: dict[int, Flow] = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    deletes: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _wanted: int = 0
    """Most frames of the job that the present operation asks for."""

    # What happens to flows.

    def install(self, index: int, flow: Flow) -> None:
        """A flow's whole state is written."""
        assert index not in self.flows, f"flow {index} is in use"
        self.flows[index] = flow

    def segment(self, index: int, segment: Segment) -> None:
        """A segment of the connection has arrived."""
        self.counts["flow_packets"] += 1
        flow = self.flows.get(index)
        if flow is None or flow.state == DELETING or segment.options_bad:  # rule 1
            return
        if flow.state in OPEN:
            self._open(index, flow, segment)
        elif flow.state == TIME_WAIT:
            self._time_wait(index, flow, segment)
        else:
            self._linger(index, flow, segment)
        self._finish(index, flow)

    def update(
        self,
        index: int,
        *,
        snd_end: int,
        ack: int,
        window: int,
        ts_recent: int = 0,
        fin: bool = False,
        abort: bool = False,
    ) -> Status:
        """FLOW_UPDATE."""
        flow = self.flows.get(index)
        if flow is None or flow.state not in OPEN or flow.snd_end != snd_end:
            return Status.NOT_FOUND
        if abort:
            self._end(flow, Status.ABORTED)
        else:
            if self._plausible(flow, ack):
                self._acknowledged(flow, ack, window)
            if flow.timestamps and distance(ts_recent, flow.ts_recent) >= 0:
                flow.ts_recent = ts_recent
            self._all_acknowledged(flow)
            if fin:
                self._fin(flow)
        self._finish(index, flow)
        return Status.OK

    def sent(self, index: int, status: Status = Status.OK) -> None:
        """A job has ended: nothing of it reads host memory any more."""
        flow = self.flows[index]
        assert flow.sending, f"flow {index} has no job"
        flow.sending = 0
        if status != Status.OK and flow.state in OPEN:
            self._end(flow, status)
        self._finish(index, flow)

    def visit(self, index: int) -> None:
        """The sweeper comes by."""
        flow = self.flows.get(index)
        if flow is None or flow.state == DELETING:
            return
        self._finish(index, flow)
        if distance(self.now, flow.deadline, TIME) < 0:
            return
        if flow.state in UNACKED:
            # RFC 6298 section 5.4 to 5.6; R2 of RFC 9293 section 3.8.3; section 3.8.6.1 when the window is 0.
            if flow.sending:
                return
            if flow.retries >= flow.retry_limit:
                self._end(flow, Status.TIMED_OUT)
            elif self.job_room:
                flow.retries = min(flow.retries + 1, 15)
                self._arm(flow, min(flow.rto << flow.retries, self.registers.max_rto))
                self._wanted = 1
        elif flow.state == FIN_WAIT_2:
            self._end(flow, Status.FIN_TIMED_OUT)
        elif flow.owed is None:
            self._delete(index, flow)
        self._finish(index, flow)

    def sweep(self) -> None:
        """One lap."""
        for index in sorted(self.flows):
            self.visit(index)

    def deleted(self, index: int) -> None:
        """No look-up finds the connection any more."""
        assert self.flows[index].state == DELETING, f"flow {index} is {self.flows[index].state.name}"
        del self.flows[index]

    # Received segments.

    def _open(self, index: int, flow: Flow, segment: Segment) -> None:
        flags, rcv_nxt = segment.flags, flow.rcv_nxt
        offset = distance(segment.seq, rcv_nxt)
        if flags & TCPFlag.RST:  # rule 2, RFC 5961 section 3.2
            if offset == 0:
                self._end(flow, Status.RESET)
            elif 0 < offset < RECEIVE_WINDOW:
                self._challenge(index, flow)
            return
        if flow.timestamps:  # rule 3, RFC 7323 sections 3.2 and 5.3
            if segment.tsval is None:
                return
            if distance(segment.tsval, flow.ts_recent) < 0:
                self._challenge(index, flow)
                return
        if flags & TCPFlag.SYN:  # rule 4, RFC 5961 section 4.2
            self._challenge(index, flow)
            return
        if not flags & TCPFlag.ACK:  # rule 5, RFC 9293 section 3.10.7.4
            return
        window = min((segment.window << flow.wscale) // WINDOW_UNIT, WINDOW_MAX)
        length = segment.payload + segment.fin
        before_fin = flow.state in (FIN_WAIT_1, FIN_WAIT_2)
        old = offset < 0 and offset + length <= 0
        if old or offset >= RECEIVE_WINDOW:  # rule 6, RFC 9293 section 3.10.7.4, first check
            if -RECEIVE_WINDOW <= offset < 0 and self._plausible(flow, segment.ack):
                self._acknowledged(flow, segment.ack, window, duplicate=not length)
                self._all_acknowledged(flow)
            if length or offset == -1:
                self._acknowledge(index, flow)
            return
        if not self._plausible(flow, segment.ack):  # rule 7, RFC 5961 section 5.2
            self._challenge(index, flow)
            return
        self._acknowledged(flow, segment.ack, window, duplicate=not length)  # rules 8 and 9
        if flow.timestamps and segment.tsval is not None and offset <= 0:  # rule 10, RFC 7323 section 4.3
            flow.ts_recent = segment.tsval
        self._all_acknowledged(flow)  # rule 11
        if not before_fin:
            return
        beyond = distance(segment.end, rcv_nxt)
        if segment.payload and beyond > 0:  # rule 12, RFC 9293 section 3.6.1, RFC 1122 section 4.2.2.13
            if not flow.unacked:
                self._reset(index, flow, flow.snd_end, rcv_nxt)
                self._end(flow, Status.PEER_DATA)
        elif segment.fin and beyond == 0:  # rule 13, RFC 9293 section 3.10.7.4, eighth check
            self._fin(flow)
            self._acknowledge(index, flow)

    def _time_wait(self, index: int, flow: Flow, segment: Segment) -> None:
        flags = segment.flags
        offset = distance(segment.seq, flow.rcv_nxt)
        if segment.answer and self._reusable(flow, segment):
            self._reuse(index, flow)
        elif flags & TCPFlag.RST:  # RFC 1337
            pass
        elif flags & TCPFlag.SYN:  # RFC 5961 section 4.2
            self._challenge(index, flow)
        elif not flags & TCPFlag.ACK or (flow.timestamps and segment.tsval is None):
            pass
        elif flow.timestamps and distance(segment.tsval or 0, flow.ts_recent) < 0:
            self._challenge(index, flow)
        elif segment.fin:  # RFC 9293 section 3.10.7.4: acknowledge it, and restart the 2 MSL timeout
            self._acknowledge(index, flow)
            self._arm(flow, self.registers.time_wait)
        elif segment.payload or not 0 <= offset < RECEIVE_WINDOW:
            self._challenge(index, flow)

    def _linger(self, index: int, flow: Flow, segment: Segment) -> None:
        flags = segment.flags
        if segment.answer and self._reusable(flow, segment):
            self._reuse(index, flow)
        elif flow.strays and flags & TCPFlag.ACK and not flags & TCPFlag.RST:
            # RFC 9293 section 3.5.2, group 1.
            length = segment.payload + segment.fin + bool(flags & TCPFlag.SYN)
            self._reset(index, flow, segment.ack, segment.seq + length & M32)

    @staticmethod
    def _reusable(flow: Flow, segment: Segment) -> bool:
        """May a SYN open the connection anew (RFC 6191 section 2)?"""
        if flow.owed is not None:
            return False
        later = distance(segment.seq, flow.rcv_nxt) > 0
        if segment.tsval is None:
            return later
        if not flow.timestamps:
            return True
        newer = distance(segment.tsval, flow.ts_recent)
        return newer > 0 or (newer == 0 and later)

    # Parts of the rules.

    @staticmethod
    def _plausible(flow: Flow, ack: int) -> bool:
        """Rule 7: neither beyond what we sent nor older than any window (RFC 5961 section 5)."""
        return (flow.snd_end - ack) % (1 << 32) < 1 << min(18 + flow.wscale, 31)

    def _acknowledged(self, flow: Flow, ack: int, window: int, duplicate: bool = False) -> None:
        """Rules 8 and 9. `duplicate`: the segment carries nothing, so it may be a duplicate ACK."""
        left = (flow.snd_end - ack) % (1 << 32)
        if left < flow.unacked:
            recovering = flow.retries > 0 or flow.duplicates == 3
            flow.unacked = left
            flow.retries = flow.duplicates = 0
            self._arm(flow, flow.rto)
            if flow.rtt_state == TIMING:  # RFC 6298 section 3
                flow.rtt_state, flow.rtt = SAMPLE, max(self.now - flow.rtt & RTT_MASK, 1)
            if recovering and left:  # RFC 6582 section 3.2, step 3, partial acknowledgment
                flow.duplicates = 3
                self._wanted = 2
        elif duplicate and left == flow.unacked and left and window == flow.window and window:
            # RFC 5681 section 3.2.
            if flow.duplicates < 2:
                flow.duplicates += 1
            elif flow.duplicates == 2 and not flow.sending and self.job_room:
                flow.duplicates = 3
                self._wanted = 1
        if left <= flow.unacked:
            if not flow.window:
                if not window:
                    flow.retries = min(flow.retries, flow.retry_limit >> 1)
                elif flow.unacked:
                    flow.retries = 0
                    self._arm(flow, flow.rto)
                    self._wanted = 2
            flow.window = window

    def _all_acknowledged(self, flow: Flow) -> None:
        """Rule 11."""
        if flow.unacked:
            return
        if flow.state == FIN_WAIT_1:
            flow.state = FIN_WAIT_2
            self._arm(flow, self.registers.fin_wait_2)
        elif flow.state == CLOSING:
            self._enter_time_wait(flow)
        elif flow.state == LAST_ACK:
            self._end(flow, Status.OK)

    def _fin(self, flow: Flow) -> None:
        """Rule 13: the peer's FIN has been received."""
        if flow.state == FIN_WAIT_1:
            flow.state = CLOSING
        elif flow.state == FIN_WAIT_2:
            self._enter_time_wait(flow)

    def _enter_time_wait(self, flow: Flow) -> None:
        if not self.registers.time_wait:
            self._end(flow, Status.OK)
            return
        flow.state, flow.owed = TIME_WAIT, Status.OK
        self._arm(flow, self.registers.time_wait)
        self.counts["flow_closed"] += 1

    def _end(self, flow: Flow, status: Status) -> None:
        flow.state, flow.owed = LINGER, status
        flow.strays = status in (Status.PEER_DATA, Status.ABORTED)
        self._arm(flow, self.registers.linger)
        self._wanted = 0
        self.counts[OUTCOMES.get(status, "flow_faults")] += 1

    def _arm(self, flow: Flow, steps: int) -> None:
        flow.deadline = (self.now + steps) % TIME

    def _delete(self, index: int, flow: Flow) -> None:
        flow.state = DELETING
        self.deletes.append(index)

    def _reuse(self, index: int, flow: Flow) -> None:
        self._delete(index, flow)
        self.replies.append(Reply(index, "SYN_ACK"))
        self.counts["flow_reused"] += 1

    # What leaves.

    def _reply(self, index: int, flow: Flow, kind: str, seq: int, ack: int) -> None:
        stamps = flow.timestamps
        reply = Reply(index, kind, seq, ack, self.registers.window, stamps)
        if stamps:
            reply.tsval, reply.tsecr = self.registers.ts_clock, flow.ts_recent
        self.replies.append(reply)

    def _acknowledge(self, index: int, flow: Flow) -> None:
        self.counts["flow_acks"] += 1
        self._reply(index, flow, "ACK", flow.snd_end, flow.rcv_nxt)

    def _challenge(self, index: int, flow: Flow) -> None:
        """RFC 5961 section 7: rate limited."""
        at = self.now // CHALLENGE_STEPS % 4
        if flow.challenge != at:
            flow.challenge = at
            self.counts["flow_challenges"] += 1
            self._acknowledge(index, flow)

    def _reset(self, index: int, flow: Flow, seq: int, ack: int) -> None:
        self.counts["flow_resets_sent"] += 1
        self._reply(index, flow, "RST", seq, ack)

    def _finish(self, index: int, flow: Flow) -> None:
        """Hand over the job that was asked for, if there is room, and an event that is owed."""
        limit, self._wanted = self._wanted, 0
        if limit and flow.unacked and flow.state in UNACKED and not flow.sending and self.job_room:
            flow.sending = 1
            flow.retransmissions = min(flow.retransmissions + 1, RETRANSMISSIONS_MAX)
            if flow.rtt_state == TIMING:  # Karn
                flow.rtt_state = SPOILT
            self.counts["flow_retransmissions"] += 1
            self.jobs.append(
                Job(
                    index, flow.unacked, limit, flow.window, flow.rcv_nxt, flow.timestamps, flow.ts_recent,
                    flow.snd_end, flow.table, flow.frames, flow.port,
                )
            )  # fmt: skip
        if flow.owed is not None and not flow.sending and self.event_room:
            self.events.append(
                {
                    "queue": flow.queue,
                    "status": flow.owed,
                    "value": index,
                    "rtt": flow.rtt if flow.rtt_state == SAMPLE else 0,
                    "retransmissions": flow.retransmissions,
                }
            )
            flow.owed = None
