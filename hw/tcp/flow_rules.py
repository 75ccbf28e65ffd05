"""`FlowRules`: what an operation makes of a flow's state. The rules of docs/teardown.md, one cycle.

In the cycle of `early` everything that depends on fields which never change is worked out and registered (`_Facts`): so
sequence and acknowledgment numbers are flags and small numbers in the cycle of the update, whose result the next
operation on the same flow needs at once.

* Latency: 1 cycle from `early` to `next` and `act`, which are combinational from registers. One operation per cycle.
* Reset: nothing to reset.

RFC 9293 section 3.10.7, RFC 5961, RFC 6191, RFC 7323, RFC 6298, RFC 5681, RFC 6582.
"""

from amaranth import *
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.messages import FINAL_FRAMES_MAX, WINDOW_UNIT, Status

from .flow import FINAL_BITS, TIME_BITS, WINDOW_BITS, RttState, State, flow_layout

__all__ = ["Action", "FlowAct", "FlowOp", "FlowRules", "OpKind"]

STATUS_BITS = 4
OWED, STRAYS = 4, 5
"""Bits of `window` in TIME_WAIT and LINGER; below them the status."""

CHALLENGE_STEP = 8
"""A challenge ACK may go every 2^8 timer steps."""


class OpKind(enum.Enum, shape=3):
    """What happens to a flow."""

    PACKET = 0
    UPDATE = 1
    SENT = 2
    DELETED = 3  # the connection table has let go of it
    INSTALL = 4
    READ = 5
    SWEEP = 6
    CLEAR = 7


class FlowOp(data.Struct):
    """An operation. Of a packet: everything; of an update: as if it were a segment."""

    kind: OpKind
    seq: 32
    end: 32  # seq + payload
    ack: 32
    tsval: 32
    snd_end: 32  # UPDATE: must be the flow's
    window: 16  # UPDATE: scaled already, in WINDOW_UNIT
    syn: 1
    fin: 1
    rst: 1
    has_ack: 1
    timestamps: 1
    bad: 1
    answer: 1
    abort: 1
    empty: 1  # no payload
    status: 8  # SENT
    whole: 1  # SWEEP: of a lap that visits every flow
    # What there is room for; sampled when the operation began.
    event_room: 1
    job_room: 1
    delete_room: 1
    give_room: 1


class Action(enum.Enum, shape=2):
    """Segment to send."""

    NONE = 0
    ACK = 1
    RST = 2
    SYN_ACK = 3


class FlowAct(data.Struct):
    """What follows from an operation."""

    reply: Action
    challenge: 1  # the reply is a challenge ACK
    stray: 1  # RST: numbers from the segment, not from the flow
    event: 1
    job: 1
    put_off: 1  # a time-out found no room for its job
    limit: 5
    delete: 1
    give: 1
    freed: 1
    used: 1
    ended: 1  # with `status`
    status: STATUS_BITS
    reused: 1
    found: 1  # UPDATE: it was the flow


class _Facts(data.Struct):
    """What is known in the cycle before. `x0`, `x1`: without and with the peer's FIN received."""

    exact0: 1  # SEG.SEQ = rcv_nxt
    exact1: 1
    window0: 1  # 0 <= SEG.SEQ - rcv_nxt < 65535
    window1: 1
    before0: 1
    before1: 1
    old0: 1  # wholly before rcv_nxt
    old1: 1
    near0: 1  # 1 to 65535 before rcv_nxt
    near1: 1
    keep0: 1  # keep-alive
    keep1: 1
    news: 1  # payload beyond rcv_base
    fin_here: 1
    after: 1  # SEG.SEQ after rcv_base + 1
    forbidden: 1  # SEG.ACK beyond snd_end or very old (rule 7)
    close: 1  # 0 <= snd_end - SEG.ACK < 2^18
    rem: FINAL_BITS
    rem_zero: 1
    window: WINDOW_BITS
    same_flow: 1
    rto_deadline: TIME_BITS
    half_limit: 4
    backoff_deadline: TIME_BITS
    last_try: 1


class FlowRules(wiring.Component):
    """See the module's text.

    Members
    -------
    early_op, early_state: the operation that is due in the next cycle.
    op, state: the operation that is due.
    install: state to write for INSTALL.
    now, time_wait, fin_wait_2, linger, max_rto: times.
    next, write, act: what becomes of it.
    """

    def __init__(self, config):
        self._layout = layout = flow_layout(config)
        super().__init__(
            {
                "early_op": In(FlowOp),
                "early_state": In(layout),
                "op": In(FlowOp),
                "state": In(layout),
                "install": In(layout),
                "now": In(TIME_BITS),
                **{name: In(TIME_BITS) for name in ("time_wait", "fin_wait_2", "linger", "max_rto")},
                "next": Out(layout),
                "write": Out(1),
                "act": Out(FlowAct),
            }
        )

    def elaborate(self, platform):
        m = Module()
        facts = Signal(_Facts, reset_less=True)
        self._look_ahead(m, facts)
        self._update(m, facts)
        return m

    def _look_ahead(self, m, facts):
        op, state = self.early_op, self.early_state
        d, e, rem = Signal(32), Signal(32), Signal(32)  # SEG.SEQ, its payload's end, our end: how far
        update = op.kind == OpKind.UPDATE
        m.d.comb += [
            d.eq(Mux(update, 0, op.seq - state.rcv_base)),
            e.eq(Mux(update, 0, op.end - state.rcv_base)),
            rem.eq(state.snd_end - op.ack),
        ]
        length = op.fin | ~op.empty
        # The window in units of WINDOW_UNIT; the shift is 14 at most.
        unit = WINDOW_UNIT.bit_length() - 1
        scaled = Signal(16 + 14 - unit)
        m.d.comb += scaled.eq((op.window << state.wscale[:4]) >> unit)
        window = Mux(scaled >> WINDOW_BITS != 0, (1 << WINDOW_BITS) - 1, scaled[:WINDOW_BITS])
        backoff = Signal(TIME_BITS + 15)
        m.d.comb += backoff.eq(state.rto << (state.retries + 1)[:4])
        late = (state.retries == 15) | (backoff > self.max_rto)
        m.d.sync += [
            facts.exact0.eq(d == 0),
            facts.exact1.eq(d == 1),
            facts.window0.eq((d[16:] == 0) & ~d[:16].all()),
            facts.window1.eq((d[16:] == 0) & (d != 0)),
            facts.before0.eq(d[31]),
            facts.before1.eq(d[31] | (d == 0)),
            # Its last sequence number, e + FIN - 1, lies before rcv_nxt.
            facts.old0.eq(Mux(length, e[31] | (e == 0) & ~op.fin, d[31])),
            facts.old1.eq(Mux(length, e[31] | (e == 0) | (e == 1) & ~op.fin, d[31] | (d == 0))),
            facts.near0.eq(d[16:].all() & (d[:16] != 0)),
            facts.near1.eq((d == 0) | d[16:].all() & (d[1:16] != 0)),
            facts.keep0.eq(d.all() & ~length),
            facts.keep1.eq((d == 0) & ~length),
            facts.news.eq(~op.empty & ~e[31] & (e != 0)),
            facts.fin_here.eq(op.fin & (e == 0)),
            facts.after.eq(~d[31] & (d[1:] != 0)),
            facts.forbidden.eq(rem[31] | ((rem[FINAL_BITS:31] >> state.wscale) != 0)),
            facts.close.eq(rem[FINAL_BITS:] == 0),
            facts.rem.eq(rem),
            facts.rem_zero.eq(rem == 0),
            facts.window.eq(Mux(update, op.window, window)),
            facts.same_flow.eq(op.snd_end == state.snd_end),
            facts.rto_deadline.eq(self.now + state.rto),
            facts.backoff_deadline.eq(self.now + Mux(late, self.max_rto, backoff)),
            facts.half_limit.eq(state.retry_limit >> 1),
            facts.last_try.eq(state.retries >= state.retry_limit),
        ]

    def _update(self, m, p):
        op, s, n, act = self.op, self.state, self.next, self.act
        kind = op.kind

        def named(value, name, width=1):
            signal = Signal(width, name=name)
            m.d.comb += signal.eq(value)
            return signal

        fw1, fw2, closing, last_ack, waiting, linger = (
            named(s.state == state, f"in_{state.name.lower()}")
            for state in (
                State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING, State.LAST_ACK, State.TIME_WAIT, State.LINGER,
            )
        )  # fmt: skip
        active = named(fw1 | fw2 | closing | last_ack, "active")
        f = named(closing | last_ack | waiting, "peer_fin")
        owed = named(s.window[OWED], "owed")

        def by_fin(name):
            return named(Mux(f, p[f"{name}1"], p[f"{name}0"]), name)

        exact, inside, before, old, near, keep = (by_fin(name) for name in ("exact", "window", "before", "old", "near", "keep"))
        beyond = named(~before & ~inside, "beyond")
        ts_age = named(op.tsval - s.ts_recent, "ts_age", 32)
        older = named(ts_age[31], "older")
        length = named(op.fin | ~op.empty, "has_length")
        challenge_slot = self.now[CHALLENGE_STEP : CHALLENGE_STEP + len(s.challenge)]
        may_challenge = named(s.challenge != challenge_slot, "may_challenge")

        # Rules 1 to 7: is the segment to be believed, and how far?
        packet = named(kind == OpKind.PACKET, "packet")
        update = named((kind == OpKind.UPDATE) & active & p.same_flow, "update")
        here = named(packet & active & ~op.bad, "here")
        reset = named(here & op.rst & exact, "reset")
        reset_near = named(here & op.rst & ~exact & inside, "reset_near")
        timed = named(~op.rst & ~(s.timestamps & ~op.timestamps), "timed")
        paws = named(s.timestamps & older, "paws")
        believed = named(here & timed & ~paws & ~op.syn & op.has_ack, "believed")
        acceptable = named(believed & ~beyond & ~old, "acceptable")
        usable = named(acceptable & ~p.forbidden, "usable")
        # An old segment's acknowledgment counts too, if it comes from close by.
        heard = named(((acceptable | believed & old & near) & ~p.forbidden) | update & ~op.abort & ~p.forbidden, "heard")

        # Rules 8, 9, 11: acknowledgment and window.
        take = named(heard & p.close, "take")
        smaller = named(p.rem < s.unacked, "smaller")
        equal = named(p.rem == s.unacked, "equal")
        new = named(take & smaller, "new_ack")
        same = named(take & equal, "same_ack")
        unacked = named(Mux(new, p.rem, s.unacked), "unacked", FINAL_BITS)
        complete = named((new & p.rem_zero) | (s.unacked == 0), "complete")
        window = named(Mux(new | same, p.window, s.window), "window", WINDOW_BITS)
        was_shut = named((new | same) & (s.window == 0), "was_shut")
        opened = named(was_shut & (p.window != 0) & ~complete, "opened")
        duplicate = named(
            packet & same & ~length & (p.window == s.window) & (p.window != 0) & (s.unacked != 0), "duplicate"
        )
        third = named(duplicate & (s.duplicates == 2), "third")
        recovering = named((s.retries != 0) | (s.duplicates == 3), "recovering")
        partial = named(new & ~complete & recovering, "partial")

        # Rules 12 to 14: the peer's data and FIN.
        news = named(usable & ~f & p.news, "news")
        data_end = named(news & complete, "data_end")
        fin = named((usable & ~f & p.fin_here) | (update & ~op.abort & op.fin & ~f), "fin")
        answer = named(believed & (old & (length | keep) | beyond & length) | fin & packet, "answer")
        challenge = named(
            (reset_near | here & timed & (paws | op.syn) | acceptable & p.forbidden) & may_challenge, "challenge"
        )

        # TIME_WAIT and LINGER.
        over = named(packet & (waiting | linger) & ~op.bad, "over")
        # RFC 6191 section 2; a listener answers SYNs without ACK only.
        newer = named(
            Mux(op.timestamps, ~s.timestamps | ~older & ((ts_age != 0) | p.after), p.after), "newer"
        )
        reuse_wanted = named(over & op.answer & newer & ~owed & ~s.sending, "reuse_wanted")
        reuse = named(reuse_wanted & op.delete_room, "reuse")
        quiet = named(over & waiting & timed & ~op.syn & op.has_ack, "quiet")
        again = named(quiet & ~paws & op.fin, "again")
        wait_challenge = named(
            (
                over & waiting & op.syn & ~op.rst & ~reuse_wanted
                | quiet & (paws | ~op.fin & (~op.empty | ~p.window1))
            )
            & may_challenge,
            "wait_challenge",
        )
        stray = named(
            over & linger & s.window[STRAYS] & ~op.rst & op.has_ack, "stray"
        )

        # Timers.
        sweep = named(kind == OpKind.SWEEP, "sweep")
        passed = named(~(self.now - s.deadline)[:TIME_BITS][TIME_BITS - 1], "passed")
        due = named(sweep & passed, "due")
        retry_due = named(due & (fw1 | closing | last_ack) & ~s.sending, "retry_due")
        give_up = named(retry_due & p.last_try, "give_up")
        retry = named(retry_due & ~p.last_try & op.job_room, "retry")
        fin_late = named(due & fw2, "fin_late")
        expire = named(due & (waiting | linger) & ~owed & ~s.sending & op.delete_room, "expire")

        sent = named(kind == OpKind.SENT, "sent")
        fault = named(sent & active & (op.status != Status.OK), "fault")
        aborted = named(update & op.abort, "aborted")

        # Where it ends.
        to_wait = named((complete & (closing | fw1 & fin)) | (fw2 & fin), "to_wait")
        closed = named(complete & last_ack, "closed")
        broken = named(reset | data_end | give_up | fin_late | fault | aborted, "broken")
        moved = named(heard | fin, "moved")
        ends_well = named(moved & ~data_end & (to_wait | closed), "ends_well")
        status = Signal(STATUS_BITS)
        m.d.comb += status.eq(Status.OK)
        for condition, value in (
            (reset, Status.RESET), (data_end, Status.PEER_DATA), (give_up, Status.TIMED_OUT),
            (fin_late, Status.FIN_TIMED_OUT), (aborted, Status.ABORTED),
        ):  # fmt: skip
            with m.If(condition):
                m.d.comb += status.eq(value)
        with m.If(fault):
            m.d.comb += status.eq(op.status)

        # Jobs.
        job = named((third | partial | opened) & ~broken & ~ends_well & ~s.sending & op.job_room | retry, "job")

        m.d.comb += n.eq(s)
        with m.If(new | same):
            m.d.comb += [n.unacked.eq(unacked), n.window.eq(window)]
        with m.If(new):
            m.d.comb += [n.retries.eq(0), n.duplicates.eq(Mux(partial, 3, 0)), n.deadline.eq(p.rto_deadline)]
            with m.If(s.rtt_state == RttState.TIMING):
                sample = (self.now[: len(s.rtt)] - s.rtt)[: len(s.rtt)]
                m.d.comb += [n.rtt.eq(Mux(sample == 0, 1, sample)), n.rtt_state.eq(RttState.SAMPLE)]
        with m.If(opened):
            m.d.comb += [n.retries.eq(0), n.deadline.eq(p.rto_deadline)]
        with m.Elif(was_shut & ~new & (p.window == 0) & (s.retries > p.half_limit)):
            m.d.comb += n.retries.eq(p.half_limit)
        with m.If(duplicate & (s.duplicates != 3) & (~third | job)):
            m.d.comb += n.duplicates.eq(s.duplicates + 1)
        with m.If(s.timestamps & ~older & (usable & (before | exact) | update & ~op.abort)):
            m.d.comb += n.ts_recent.eq(op.tsval)
        with m.If(retry):
            m.d.comb += [
                n.retries.eq(Mux(s.retries == 15, 15, s.retries + 1)),
                n.deadline.eq(p.backoff_deadline),
            ]
        with m.If(job):
            m.d.comb += [
                n.sending.eq(1),
                n.retransmissions.eq(Mux(s.retransmissions.all(), s.retransmissions, s.retransmissions + 1)),
            ]
            with m.If(s.rtt_state == RttState.TIMING):
                m.d.comb += n.rtt_state.eq(RttState.SPOILT)
        with m.If(challenge | wait_challenge):
            m.d.comb += n.challenge.eq(challenge_slot)
        with m.If(again):
            m.d.comb += n.deadline.eq(self.now + self.time_wait)

        # States.
        with m.If(moved & fw1 & complete & ~fin & ~data_end):
            m.d.comb += [n.state.eq(State.FIN_WAIT_2), n.deadline.eq(self.now + self.fin_wait_2)]
        with m.If(moved & fw1 & ~complete & fin):
            m.d.comb += n.state.eq(State.CLOSING)
        no_wait = named(self.time_wait == 0, "no_wait")
        with m.If(ends_well | broken):
            m.d.comb += [
                n.state.eq(Mux(broken | closed | no_wait, State.LINGER.value, State.TIME_WAIT.value)),
                n.deadline.eq(self.now + Mux(broken | closed | no_wait, self.linger, self.time_wait)),
                n.window.eq(Cat(status, C(1, 1), data_end | aborted)),
            ]
        with m.If(sent):
            m.d.comb += n.sending.eq(0)
        with m.If(reuse | expire):
            m.d.comb += [n.state.eq(State.DELETING), n.duplicates.eq(0)]

        # Entries without a flow. DELETING counts in `duplicates`: 0 until the connection table has let
        # go, then the sweeper's laps; its second visit is a whole one later.
        free, deleting = (named(s.state == state, f"in_{state.name.lower()}") for state in (State.FREE, State.DELETING))
        give = named(sweep & free & ~s.sending & op.give_room, "give")
        count = named(sweep & op.whole & deleting & (s.duplicates != 0), "count")
        freed = named(count & (s.duplicates == 2), "freed")
        with m.If(give):
            m.d.comb += n.sending.eq(1)
        with m.If((kind == OpKind.DELETED) & deleting):
            m.d.comb += n.duplicates.eq(1)
        with m.If(count):
            m.d.comb += n.duplicates.eq(2)
        with m.If(freed | (kind == OpKind.CLEAR)):
            m.d.comb += n.eq(0)
        with m.If(kind == OpKind.INSTALL):
            m.d.comb += [n.eq(self.install), n.challenge.eq(challenge_slot - 1)]

        # An event that is owed goes when nothing reads host memory for the flow any more.
        ended = named(ends_well | broken, "ended_now")
        still_sending = named((s.sending | job) & ~sent, "still_sending")
        event = named(
            (ended | (waiting | linger) & owed & (packet | sweep | sent)) & ~still_sending & op.event_room, "event_now"
        )
        with m.If(event):
            m.d.comb += n.window[OWED].eq(0)

        m.d.comb += [
            self.write.eq(kind != OpKind.READ),
            act.challenge.eq((challenge | wait_challenge) & ~answer & ~again),
            act.stray.eq(stray),
            act.event.eq(event),
            act.job.eq(job),
            act.put_off.eq(retry_due & ~p.last_try & ~op.job_room),
            act.limit.eq(Mux(partial | opened, 2, 1)),
            act.delete.eq(reuse | expire),
            act.give.eq(give),
            act.freed.eq(freed | (kind == OpKind.INSTALL) & (self.install.state == State.FREE)),
            act.used.eq(~free & ~freed),
            act.ended.eq(ended),
            act.status.eq(status),
            act.reused.eq(reuse),
            act.found.eq(update),
        ]
        with m.If(data_end | stray):
            m.d.comb += act.reply.eq(Action.RST)
        with m.Elif(reuse):
            m.d.comb += act.reply.eq(Action.SYN_ACK)
        with m.Elif(answer | challenge | wait_challenge | again):
            m.d.comb += act.reply.eq(Action.ACK)
        assert 1 << len(act.limit) > FINAL_FRAMES_MAX
