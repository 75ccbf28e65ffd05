"""The reference model of connection teardown against scenarios of the RFCs, values by hand."""

import pytest

from acceltcp.abi.messages import FlowState, Status
from acceltcp.abi.wire import TCPFlag
from tests.hw.tcp.teardown_model import (
    RTT_MASK,
    SAMPLE,
    SPOILT,
    TIMING,
    Flow,
    Registers,
    Segment,
    TeardownModel,
)

FREE, DELETING, FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK, TIME_WAIT, LINGER = FlowState
ACK, FIN, RST, SYN = TCPFlag.ACK, TCPFlag.ACK | TCPFlag.FIN, TCPFlag.RST, TCPFlag.SYN

END, BASE = 5000, 900
"""The flow under test: 1000 of ours up to 5000 (FIN included) are unacknowledged, 900 is expected."""
UNA = END - 1000
WINDOW = 64_000


class Scene:
    """A model with flow 7, what it says taken piece by piece."""

    def __init__(self, state=FIN_WAIT_1, *, now=10_000, registers=None, **fields):
        self.model = TeardownModel(registers or Registers(), now)
        values = {
            "snd_end": END,
            "rcv_base": BASE,
            "unacked": 1000,
            "window": WINDOW // 64,
            "deadline": now + 100,
            "rto": 100,
            "retry_limit": 4,
            "challenge": (now // 256 - 1) % 4,
            "queue": 3,
        }
        values.update(fields)
        self.model.install(7, Flow(state=state, **values))
        self.flow = self.model.flows[7]

    def get(self, seq, ack=UNA, flags=ACK, payload=0, window=WINDOW, **more):
        """A segment comes; says the replies as (kind, seq, ack)."""
        before = len(self.model.replies)
        self.model.segment(7, Segment(seq, ack, flags, payload, window, **more))
        return [(r.kind, r.seq, r.ack) for r in self.model.replies[before:]]

    def wait(self, steps):
        self.model.now += steps
        self.model.sweep()

    def jobs(self):
        """(left, limit) of jobs since the last call, all carried out."""
        jobs, self.model.jobs = self.model.jobs, []
        for job in jobs:
            self.model.sent(job.index)
        return [(job.left, job.limit) for job in jobs]

    @property
    def state(self):
        return self.flow.state

    @property
    def statuses(self):
        return [event["status"] for event in self.model.events]


def test_normal_close():
    """RFC 9293 figure 12, we are A."""
    s = Scene(unacked=1)
    assert s.get(BASE, END) == [] and s.state == FIN_WAIT_2 and not s.statuses
    assert s.get(BASE, END, FIN) == [("ACK", END, BASE + 1)]
    assert s.state == TIME_WAIT and s.statuses == [Status.OK]
    s.wait(999)
    assert s.state == TIME_WAIT
    s.wait(1)
    assert s.state == DELETING and s.model.deletes == [7]
    assert s.statuses == [Status.OK]
    s.model.deleted(7)
    assert not s.model.flows


def test_simultaneous_close():
    """RFC 9293 figure 13: both FINs cross."""
    s = Scene(unacked=1)
    assert s.get(BASE, END - 1, FIN) == [("ACK", END, BASE + 1)] and s.state == CLOSING
    assert s.get(BASE + 1, END) == [] and s.state == TIME_WAIT and s.statuses == [Status.OK]


def test_fin_acknowledges_all():
    s = Scene()
    assert s.get(BASE, END, FIN) == [("ACK", END, BASE + 1)]
    assert s.state == TIME_WAIT and s.statuses == [Status.OK]


def test_last_ack():
    s = Scene(LAST_ACK)
    assert s.get(BASE + 1, END - 1) == [] and s.state == LAST_ACK and s.flow.unacked == 1
    assert s.get(BASE + 1, END) == [] and s.state == LINGER and s.statuses == [Status.OK]
    assert s.get(BASE, END, FIN) == []
    s.wait(100)
    assert s.model.deletes == [7] and s.statuses == [Status.OK]


@pytest.mark.parametrize("state, after", [(CLOSING, TIME_WAIT), (LAST_ACK, LINGER)])
def test_repeated_fin_acknowledges(state, after):
    """The ACK of our FIN was lost; the repeated FIN of the peer carries it, and ends the flow."""
    s = Scene(state)
    assert s.get(BASE, END, FIN) == [("ACK", END, BASE + 1)]
    assert s.state == after and s.statuses == [Status.OK]


def test_old_segments_only_from_nearby():
    """A forged acknowledgment needs a plausible sequence number."""
    for seq in (BASE + 70_000, BASE - 65_536, BASE + (1 << 31)):
        s = Scene()
        assert s.get(seq, END) == [] and s.flow.unacked == 1000
    s = Scene()
    assert s.get(BASE - 65_535, END) == [] and s.state == FIN_WAIT_2
    s = Scene()
    assert s.get(BASE - 10, END + 1, payload=10) == [("ACK", END, BASE)] and s.flow.unacked == 1000


def test_half_close():
    """The peer does not close: FIN_WAIT_2 ends after its time (RFC 9293 leaves it to us)."""
    s = Scene()
    s.get(BASE, END)
    s.wait(1999)
    assert s.state == FIN_WAIT_2
    assert s.get(BASE - 1, END) == [("ACK", END, BASE)]  # a keep-alive does not prolong it
    s.wait(1)
    assert s.state == LINGER and s.statuses == [Status.FIN_TIMED_OUT]


def test_time_wait_answers():
    s = Scene(unacked=0, state=FIN_WAIT_2)
    s.get(BASE, END, FIN)
    s.model.now += 600
    assert s.get(BASE, END, FIN) == [("ACK", END, BASE + 1)]  # and the time starts again
    s.wait(999)
    assert s.state == TIME_WAIT
    assert s.get(BASE + 1, END) == []
    assert s.get(BASE + 1, END, RST) == []  # RFC 1337
    assert s.get(BASE + 1, 0, 0) == []
    assert s.get(BASE + 1, END, payload=5) == [("ACK", END, BASE + 1)]
    assert s.get(BASE - 5, END) == []  # at most one in 256 steps
    s.wait(1)
    assert s.state == DELETING


def test_no_time_wait():
    s = Scene(registers=Registers(time_wait=0))
    s.get(BASE, END, FIN)
    assert s.state == LINGER and s.statuses == [Status.OK]
    assert s.get(BASE + 1, END, payload=1) == []


REUSE = [
    # timestamps of the flow, TSval less ts_recent or None, SEQ less rcv_nxt, honoured (RFC 6191 section 2)
    (0, None, 1, True),
    (0, None, 0, False),
    (0, None, -1, False),
    (0, None, (1 << 31) - 1, True),
    (0, 5, -1, True),
    (1, 1, -1, True),
    (1, 0, 1, True),
    (1, 0, 0, False),
    (1, -1, 1, False),
    (1, None, 1, True),
    (1, None, 0, False),
]


@pytest.mark.parametrize("stamps, tsval, seq, honoured", REUSE)
@pytest.mark.parametrize("state", [TIME_WAIT, LINGER])
def test_reuse(state, stamps, tsval, seq, honoured):
    s = Scene(state, unacked=0, timestamps=stamps, ts_recent=100)
    stamp = None if tsval is None else 100 + tsval
    got = s.get(BASE + 1 + seq, 0, SYN, tsval=stamp, answer=True)
    if honoured:
        assert got == [("SYN_ACK", 0, 0)] and s.model.deletes == [7] and s.state == DELETING
    else:
        challenge = [("ACK", END, BASE + 1)]
        assert got == (challenge if state == TIME_WAIT else []) and not s.model.deletes


def test_reuse_waits_for_the_event():
    """Exactly one FLOW_DONE: a tuple is not given away before."""
    s = Scene(CLOSING, unacked=1, sending=1)
    s.get(BASE + 1, END)
    assert s.state == TIME_WAIT and not s.statuses
    assert s.get(BASE + 9, 0, SYN, answer=True) == [("ACK", END, BASE + 1)] and s.state == TIME_WAIT
    s.wait(5000)
    assert s.state == TIME_WAIT
    s.model.sent(7)
    assert s.statuses == [Status.OK]
    assert s.get(BASE + 9, 0, SYN, answer=True) == [("SYN_ACK", 0, 0)]


@pytest.mark.parametrize(
    "offset, ends, replies",
    [(0, True, 0), (1, False, 1), (65_534, False, 1), (65_535, False, 0), (-1, False, 0), (1 << 31, False, 0)],
)
@pytest.mark.parametrize("state", [FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK])
def test_reset(state, offset, ends, replies):
    """RFC 5961 section 3.2."""
    s = Scene(state, unacked=0 if state == FIN_WAIT_2 else 1)
    nxt = s.flow.rcv_nxt
    assert s.get(nxt + offset & 0xFFFFFFFF, 0, RST) == [("ACK", END, nxt)] * replies
    assert s.statuses == [Status.RESET] * ends
    assert s.state == (LINGER if ends else state)


def test_syn_and_challenge_rate():
    """RFC 5961 sections 4 and 7."""
    s = Scene(now=1024)
    challenge = [("ACK", END, BASE)]
    assert s.get(1, 0, SYN) == challenge
    assert s.get(1, 0, SYN) == []
    s.model.now = 1279
    assert s.get(BASE, 0, SYN) == []
    s.model.now = 1280
    assert s.get(BASE, 0, SYN) == challenge
    assert s.model.counts["flow_challenges"] == s.model.counts["flow_acks"] == 2
    assert s.state == FIN_WAIT_1


@pytest.mark.parametrize(
    "wscale, ack, good",
    [
        (0, END + 1, False),
        (0, END + (1 << 31) - 1, False),
        (0, END - (1 << 18), False),
        (0, END - (1 << 18) + 1, True),
        (7, END - (1 << 25), False),
        (7, END - (1 << 25) + 1, True),
        (14, END - (1 << 31) + 1, True),
        (14, END - (1 << 31), False),
    ],
)
def test_acknowledgment_range(wscale, ack, good):
    """RFC 5961 section 5; the FIN counts only with a plausible ACK."""
    s = Scene(wscale=wscale)
    assert s.get(BASE, ack & 0xFFFFFFFF, FIN) == [("ACK", END, BASE + good)]
    assert s.state == (CLOSING if good else FIN_WAIT_1) and s.flow.unacked == 1000


def test_paws():
    """RFC 7323 section 5.3, across the wrap; and section 4.3."""
    recent = 0xFFFFFFF0
    s = Scene(timestamps=1, ts_recent=recent)
    assert s.get(BASE, END) == [] and s.flow.unacked == 1000  # no timestamps
    assert s.get(BASE, END, tsval=recent - 1) == [("ACK", END, BASE)] and s.flow.unacked == 1000
    assert s.get(BASE, 0, RST) == [] and s.statuses == [Status.RESET]  # RST needs none
    s = Scene(timestamps=1, ts_recent=recent)
    assert s.get(BASE + 1, UNA, tsval=8) == [] and s.flow.ts_recent == recent  # SEQ beyond rcv_nxt
    assert s.get(BASE, END, tsval=5) == [] and s.flow.ts_recent == 5
    s.model.registers.ts_clock = 77
    assert s.get(BASE, END, FIN, tsval=6) == [("ACK", END, BASE + 1)]
    reply = s.model.replies[-1]
    assert (reply.timestamps, reply.tsval, reply.tsecr) == (1, 77, 6)
    assert s.get(BASE, END, FIN, tsval=4) == [("ACK", END, BASE + 1)] and s.flow.deadline == 11_000


def test_retries():
    """RFC 6298 section 5.5: the time-out doubles, up to a limit; then the flow ends."""
    s = Scene(registers=Registers(max_rto=500))
    times = []
    for _ in range(4000):
        s.wait(1)
        if s.jobs():
            times.append(s.model.now - 10_000)
    assert times == [100, 300, 700, 1200] and s.statuses == [Status.TIMED_OUT]
    assert s.model.events[0] == {"queue": 3, "status": Status.TIMED_OUT, "value": 7, "rtt": 0, "retransmissions": 4}
    assert s.model.deletes == [7]  # 1700 + linger


def test_time_out_waits_for_the_transmitter():
    s = Scene(sending=1)
    s.wait(200)
    assert not s.model.jobs and s.flow.retries == 0
    s.model.sent(7)
    s.model.job_room = False
    s.wait(1)
    assert not s.model.jobs and s.flow.retries == 0
    s.model.job_room = True
    s.wait(1)
    assert s.jobs() == [(1000, 1)] and s.flow.deadline == 10_202 + 200


def test_three_duplicates():
    """RFC 5681 section 3.2, and RFC 6582 section 3.2 for what follows."""
    s = Scene(rtt_state=TIMING, rtt=10_000)
    for _ in range(2):
        s.get(BASE)
    assert s.jobs() == []
    s.get(BASE, window=WINDOW - 64)  # another window: not a duplicate
    s.get(BASE, window=WINDOW - 64, flags=FIN)  # a FIN: not one either
    assert s.jobs() == [] and s.flow.duplicates == 2
    s.get(BASE + 1, window=WINDOW - 64)
    assert s.jobs() == [(1000, 1)] and s.flow.rtt_state == SPOILT
    s.get(BASE + 1, window=WINDOW - 64)
    assert s.jobs() == []
    for left in (600, 300):
        s.get(BASE + 1, END - left, window=WINDOW - 64)
        assert s.jobs() == [(left, 2)]
    s.get(BASE + 1, END, window=WINDOW - 64)
    assert s.jobs() == [] and s.model.events[0]["retransmissions"] == 3


def test_third_duplicate_without_room():
    s = Scene(duplicates=2)
    s.model.job_room = False
    s.get(BASE)
    assert s.flow.duplicates == 2
    s.model.job_room = True
    s.get(BASE)
    assert s.flow.duplicates == 3 and s.jobs() == [(1000, 1)]


def test_partial_acknowledgment():
    s = Scene()
    s.get(BASE, UNA + 100)
    assert s.jobs() == []  # nothing was sent again before
    s.wait(100)
    assert s.jobs() == [(900, 1)] and s.flow.retries == 1
    s.get(BASE, UNA + 200)
    assert s.jobs() == [(800, 2)] and s.flow.retries == 0 and s.flow.deadline == 10_200
    s.get(BASE, UNA + 300)
    assert s.jobs() == [(700, 2)]


def test_rtt():
    s = Scene(rtt_state=TIMING, rtt=10_000)
    s.model.now += 42
    s.get(BASE, UNA + 1)
    assert (s.flow.rtt, s.flow.rtt_state) == (42, SAMPLE)
    s.model.now += 42
    s.get(BASE, END, FIN)
    assert s.model.events[0]["rtt"] == 42
    s = Scene(rtt_state=TIMING, rtt=10_000 & RTT_MASK)
    s.get(BASE, END, FIN)
    assert s.model.events[0]["rtt"] == 1


def test_zero_window():
    """RFC 9293 section 3.8.6.1: probes for as long as the peer answers, ever rarer."""
    s = Scene(retry_limit=6)
    s.get(BASE, window=63)
    assert s.flow.window == 0
    gaps, last = [], s.model.now
    for _ in range(7):
        while not s.model.jobs:
            s.wait(1)
        gaps.append(s.model.now - last)
        last = s.model.now
        assert s.jobs() == [(1000, 1)]
        s.get(BASE, window=0)
    assert gaps == [100, 200, 400, 800, 1600, 1600, 1600]
    s.get(BASE, window=640)
    assert s.jobs() == [(1000, 2)] and s.flow.retries == 0 and s.flow.deadline == s.model.now + 100
    s.get(BASE, END)
    assert s.state == FIN_WAIT_2


def test_zero_window_and_gone():
    """A peer that no longer answers must not hold host memory for ever."""
    s = Scene(window=0, retry_limit=3)
    s.wait(1)
    for _ in range(100_000):
        s.wait(1)
        s.jobs()
    assert s.statuses == [Status.TIMED_OUT] and s.model.deletes == [7]


def test_old_acknowledgment_tells_no_window():
    s = Scene()
    s.get(BASE, UNA - 10, window=0)
    assert s.flow.window == WINDOW // 64 and s.flow.duplicates == 0


def test_peer_data():
    """RFC 9293 section 3.6.1: not before everything of ours is acknowledged."""
    s = Scene()
    assert s.get(BASE, payload=100) == [] and s.state == FIN_WAIT_1
    assert s.get(BASE, flags=FIN, payload=100) == [] and s.state == FIN_WAIT_1
    assert s.get(BASE, END, payload=100) == [("RST", END, BASE)]
    assert s.state == LINGER and s.statuses == [Status.PEER_DATA]
    assert s.get(BASE + 100, END, payload=50) == [("RST", END, BASE + 150)]
    assert s.get(BASE + 150, END, FIN) == [("RST", END, BASE + 151)]
    assert s.get(BASE + 150, END, RST) == []
    s.wait(100)
    assert s.model.deletes == [7]


def test_peer_data_after_fin():
    """The peer may send nothing after its FIN: ignored."""
    s = Scene(CLOSING)
    assert s.get(BASE + 1, UNA, payload=10) == [] and s.state == CLOSING
    assert s.get(BASE + 1, UNA, FIN) == [] and s.state == CLOSING and s.flow.rcv_nxt == BASE + 1


def test_overlapping_fin():
    """Old data with a new FIN behind them."""
    s = Scene()
    assert s.get(BASE - 50, UNA, FIN, payload=50) == [("ACK", END, BASE + 1)] and s.state == CLOSING
    s = Scene()
    assert s.get(BASE - 50, UNA, FIN, payload=49) == [("ACK", END, BASE)] and s.state == FIN_WAIT_1
    s = Scene()
    assert s.get(BASE + 1, UNA, FIN) == [] and s.state == FIN_WAIT_1  # something before it is missing


def test_update():
    s = Scene(timestamps=1, ts_recent=50)
    update = {"snd_end": END, "ack": UNA, "window": 100}
    assert s.model.update(7, **{**update, "snd_end": END + 1}) == Status.NOT_FOUND
    assert s.model.update(8, **update) == Status.NOT_FOUND
    assert s.model.update(7, **update, ts_recent=49) == Status.OK
    assert (s.flow.window, s.flow.ts_recent) == (100, 50)
    assert s.model.update(7, **{**update, "ack": END + 1, "window": 5}, fin=True) == Status.OK
    assert (s.flow.window, s.flow.unacked, s.state) == (100, 1000, CLOSING)
    assert s.model.update(7, **{**update, "ack": END}, ts_recent=60, fin=True) == Status.OK
    assert s.state == TIME_WAIT and s.statuses == [Status.OK] and not s.model.replies
    assert s.model.update(7, **update, abort=True) == Status.NOT_FOUND


def test_abort_waits_for_memory():
    s = Scene(sending=1)
    assert s.model.update(7, snd_end=END, ack=UNA, window=9, abort=True) == Status.OK
    assert s.state == LINGER and not s.statuses
    assert s.get(BASE, UNA, payload=3) == [("RST", UNA, BASE + 3)]
    s.wait(500)
    assert s.state == LINGER
    s.model.event_room = False
    s.model.sent(7, Status.BAD_ADDRESS)
    assert not s.statuses
    s.model.event_room = True
    s.wait(1)
    assert s.statuses == [Status.ABORTED] and s.model.counts["flow_faults"] == 0
    assert s.model.deletes == [7]


@pytest.mark.parametrize("state", [FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK])
def test_fault(state):
    s = Scene(state, sending=1, unacked=0 if state == FIN_WAIT_2 else 5)
    s.model.sent(7, Status.BAD_ADDRESS)
    assert s.state == LINGER and s.statuses == [Status.BAD_ADDRESS]
    assert s.model.counts["flow_faults"] == 1


def test_malformed_options():
    for state in (FIN_WAIT_1, TIME_WAIT, LINGER):
        s = Scene(state, strays=True)
        assert s.get(BASE, END, FIN, options_bad=True) == [] and s.state == state
