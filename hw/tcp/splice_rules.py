"""`SpliceRules`: what becomes of a pair of spliced connections, and of a packet, in one operation.

* Latency: `next`, `write` and `act` belong to the operation on `op`; what depends only on the operation and on what no packet changes (`_Facts`)
  is found a cycle before, from `early_op` and `early_state` (`hw.table.state.StateMemory`). What follows an operation that writes the latter, INSTALL, in the
  very next cycle would see them as they were: but the pair is PENDING then, and they count for nothing.
* Throughput: one operation per cycle. Registered: the facts. Overflow, reset: nothing to lose.

All comparisons of sequence numbers are modulo 2^32 (RFC 9293 section 3.4), those of times modulo 2^16.
"""

from amaranth import *
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.messages import RX_COMPLETION, SPLICE_HOST_SENT_MAX, Status, Verdict

from ..csr.splice import LINGER_BITS
from .splice_records import (
    GENERATION_BITS,
    SPLICE_TIME_BITS,
    STATUS_BITS,
    PairState,
    SplicePair,
    SpliceSideState,
)

__all__ = ["OpKind", "SpliceAct", "SpliceOp", "SpliceRules"]

SEND_END_BITS = 30
"""What is further ahead of the last byte forwarded than 2^30 is none of the connection's data."""


class OpKind(enum.Enum, shape=3):
    """What is done to a pair."""

    PASS = 0  # nothing: a packet that is not spliced
    PACKET = 1
    INSTALL = 2  # its state is written
    ACTIVATE = 3  # both of its entries are in the connection table
    ABORT = 4
    COPY = 5  # its packets are copied to the host again
    SWEEP = 6  # its deadline is looked at
    READ = 7


class SpliceOp(data.Struct):
    """An operation. What follows `side` is of a packet, if nothing else is said."""

    kind: OpKind
    side: 1
    seq: 32
    data_end: 32  # seq + payload_length
    ack: 32
    tsval: 32
    timestamps: 1
    has_ack: 1
    syn: 1
    fin: 1
    rst: 1
    payload_length: 16
    generation: GENERATION_BITS  # ABORT, COPY


class SpliceAct(data.Struct):
    """What an operation brings about. `keep`, `forward`, `verdict` and `hide_sack` are of a packet on `PACKET`."""

    keep: 1
    forward: 1
    verdict: RX_COMPLETION.positions["verdict"][1]
    hide_sack: 1  # its SACK blocks become NOPs
    steer: 1  # the host's copy goes to the pair's queue
    dropped: 1  # a SYN
    ended: 1
    status: STATUS_BITS  # ended: why
    found: 1  # ABORT, COPY: it has not ended


class _Facts(data.Struct):
    """What is known in the cycle before. `there`: in the numbers of the other connection."""

    seq_there: 32
    ack_there: 32
    ack_host: 32  # ack_there - SPLICE_HOST_SENT_MAX
    end: 32  # data_end + FIN
    abort: 1  # ABORT
    sweep: 1  # SWEEP
    packet: 1  # PACKET; the six that follow are 0 else
    reset: 1  # with RST
    syn: 1  # a SYN without ACK
    has_ack: 1
    fin: 1
    stamped: 1  # with timestamps
    divert: 1  # it goes past what may be forwarded
    at_limit: 1  # it acknowledges all of that
    below_guard: 1  # it acknowledges less than the host has to deliver, or
    before: 1  # begins with less (and is no reset)
    same_generation: 1
    idle: 1  # there is an idle time
    idle_end: SPLICE_TIME_BITS
    linger_end: SPLICE_TIME_BITS


class SpliceRules(wiring.Component):
    """See the module's text.

    Members
    -------
    early_op, early_state: the operation that will be on `op` in the next cycle, and its pair.
    op, state: the operation and its pair.
    install: INSTALL: the state to be.
    now, linger: in units of SPLICE_UNIT_STEPS.
    next, write: the pair's new state. act: what else.
    """

    def __init__(self):
        super().__init__(
            {
                "early_op": In(SpliceOp),
                "early_state": In(SplicePair),
                "op": In(SpliceOp),
                "state": In(SplicePair),
                "install": In(SplicePair),
                "now": In(SPLICE_TIME_BITS),
                "linger": In(LINGER_BITS),
                "next": Out(SplicePair),
                "write": Out(1),
                "act": Out(SpliceAct),
            }
        )

    def elaborate(self, platform):
        m = Module()
        facts = Signal(_Facts, reset_less=True)
        self._look_ahead(m, facts)
        self._update(m, facts)
        return m

    @staticmethod
    def _compared(m, name, left, right):
        """left - right as a signed number: (less than 0, 0 or less). Signs of two sums side by side: no look at all bits behind a
        carry chain, and nothing deeper than the chain. (The farthest number, -2^31, is not "0 or less" here.)"""
        less, less_or_same = Signal(32, name=f"{name}_less"), Signal(32, name=f"{name}_less_or_same")
        m.d.comb += [less.eq(left - right), less_or_same.eq(left + ~right)]
        return less[-1], less_or_same[-1]

    def _look_ahead(self, m, facts):
        early, state = self.early_op, self.early_state
        sides = state.sides
        mine_offset, other_offset = (Mux(early.side ^ k, sides[1].offset, sides[0].offset) for k in (0, 1))
        mine_guard_end, other_guard_end = (Mux(early.side ^ k, sides[1].guard_end, sides[0].guard_end) for k in (0, 1))
        within, up_to = self._compared(m, "over", early.data_end + mine_offset, state.limit_end)
        packet = early.kind == OpKind.PACKET
        past_limit = ~within & ~up_to
        m.d.sync += [
            facts.abort.eq(early.kind == OpKind.ABORT),
            facts.sweep.eq(early.kind == OpKind.SWEEP),
            facts.packet.eq(packet),
            facts.reset.eq(packet & early.rst),
            facts.syn.eq(packet & early.syn & ~early.has_ack),
            facts.has_ack.eq(packet & early.has_ack),
            facts.fin.eq(packet & early.fin),
            facts.stamped.eq(packet & early.timestamps),
            facts.seq_there.eq(early.seq + mine_offset),
            facts.ack_there.eq(early.ack - other_offset),
            facts.ack_host.eq(early.ack - other_offset - SPLICE_HOST_SENT_MAX),
            facts.end.eq(early.data_end + early.fin),
            facts.divert.eq(
                packet & state.bounded & ~early.rst & (early.fin | Mux(early.side, past_limit, early.payload_length != 0))
            ),
            facts.at_limit.eq(early.ack == state.limit_end),
            facts.below_guard.eq((early.ack - mine_guard_end)[31]),
            facts.before.eq((early.seq + mine_offset - other_guard_end)[31] & ~early.rst),
            facts.same_generation.eq(early.generation == state.generation),
            facts.idle.eq(state.idle != 0),
            # (A unit of time that begins in between is not missed.)
            facts.idle_end.eq(self.now + state.idle),
            facts.linger_end.eq(self.now + self.linger),
        ]

    def _update(self, m, facts):
        op, state, act = self.op, self.state, self.act

        mine, other = Signal(SpliceSideState), Signal(SpliceSideState)
        after = Signal(SpliceSideState)  # `mine`
        other_acked = Signal()
        m.d.comb += [
            Value.cast(mine).eq(Mux(op.side, Value.cast(state.sides[1]), Value.cast(state.sides[0]))),
            Value.cast(other).eq(Mux(op.side, Value.cast(state.sides[0]), Value.cast(state.sides[1]))),
        ]

        def same(name, left, right):
            less, less_or_same = self._compared(m, name, left, right)
            return ~less & less_or_same

        # What becomes of the packet.
        moving, live, drop, divert, stale, forward = (
            Signal(name=name) for name in ("moving", "live", "drop", "divert", "stale", "forward")
        )
        m.d.comb += [
            moving.eq((state.state != PairState.PENDING) & ~state.ending),
            drop.eq((state.state == PairState.LINGER) & facts.syn),
            divert.eq(facts.divert),
            live.eq(facts.packet & moving & ~drop),
            # In front of the first byte to forward the other side waits for the host's own data. This side's must not take their place,
            # nor their timestamp make those look old (RFC 7323 section 5.3). Later nobody takes what it has.
            stale.eq(other.guard & facts.before),
            forward.eq(live & ~divert & ~stale),
        ]

        # What it acknowledges, forwarded or not: no more than has been forwarded to it, here or by the host.
        # (Compared for both sides, so that the choice of the side comes behind the comparisons.)
        accepted = Signal()
        fresh, repeated, unheard, all_heard = [], [], [], []
        for k in range(2):
            sender = state.sides[1 - k]
            below, at_most = self._compared(m, f"beyond{k}", facts.ack_there, sender.snd_end)
            host_less = Signal(32, name=f"host_less{k}")
            m.d.comb += host_less.eq(facts.ack_host - sender.snd_end)
            heard = below | at_most
            old, no_newer = self._compared(m, f"newer{k}", op.ack, state.sides[k].ack)
            fresh.append(~old & ~no_newer & (heard | host_less[-1] & ~sender.fin))
            repeated.append(~old & no_newer)
            unheard.append(~heard)
            all_heard.append(~below & at_most)
        other_end = Signal(32)
        m.d.comb += other_end.eq(Mux(accepted & Mux(op.side, unheard[1], unheard[0]), facts.ack_there, other.snd_end))
        known = facts.has_ack & Mux(op.side, repeated[1], repeated[0])
        m.d.comb += [
            accepted.eq(facts.has_ack & Mux(op.side, fresh[1], fresh[0])),
            after.ack.eq(Mux(accepted, op.ack, mine.ack)),
            after.guard.eq(mine.guard & ~((accepted | known) & ~facts.below_guard)),
            after.guard_end.eq(mine.guard_end),
            # The host has acknowledged more to the other side: whose segments would be selectively acknowledged from its first
            # one on, as if by a receiver that has changed its mind (RFC 2018 section 8), which costs it all it knows.
            act.hide_sack.eq(mine.guard & facts.below_guard),
            # All that was forwarded is acknowledged at most: without `accepted` this is no news, and true.
            other_acked.eq(other.fin & facts.has_ack & Mux(op.side, all_heard[1], all_heard[0]) | other.fin_acked),
        ]

        # What it carries. The text in a reset is not data (RFC 9293 section 3.5.3), and a FIN within data that have been
        # forwarded is none. (One right at their end is: it was lost, but what came after it has been forwarded.)
        carried = Signal()
        ahead = Signal(32)
        m.d.comb += [
            ahead.eq(facts.end - mine.snd_end),
            carried.eq(forward & ~facts.reset & ~mine.fin & (ahead[SEND_END_BITS:] == 0)),
            after.snd_end.eq(Mux(carried, facts.end, mine.snd_end)),
            after.fin.eq(mine.fin | carried & facts.fin),
            after.fin_acked.eq(mine.fin_acked),
            after.offset.eq(mine.offset),
        ]
        stamp = Signal()
        earlier, no_later = self._compared(m, "later", op.tsval, mine.tsval)
        m.d.comb += [
            stamp.eq(forward & facts.stamped & (~mine.stamped | ~earlier & ~no_later)),
            after.tsval.eq(Mux(stamp, op.tsval, mine.tsval)),
            after.stamped.eq(mine.stamped | stamp),
            # (The choice comes behind the sums.)
            after.octets.eq(Mux(forward, mine.octets + op.payload_length, mine.octets)),
            after.packets.eq(Mux(forward, mine.packets + 1, mine.packets)),
        ]

        # How it ends. A reset that is not exact is left to the far end (RFC 5961 section 3).
        reset, limit = Signal(), Signal()
        lingers, due, found = Signal(), Signal(), Signal()
        passed = Signal(SPLICE_TIME_BITS)
        m.d.comb += [
            reset.eq(live & facts.reset & (same("at_ack", facts.seq_there, other.ack) | same("at_end", op.seq, mine.snd_end))),
            limit.eq(live & state.bounded & ~op.side & facts.has_ack & fresh[0] & facts.at_limit),
            passed.eq(self.now - state.deadline),
            lingers.eq(state.state == PairState.LINGER),
            due.eq(moving & ~passed[-1] & (lingers | facts.idle)),
            # (Not read back from `act`: Verilog's simulators do not look again at what a process assigns a part of.)
            found.eq(moving & facts.same_generation),
            act.found.eq(found),
        ]

        self._route(m, drop, divert, moving, forward, mine.guard | other.guard)

        # Side by side, as what a packet brings about is known late. The last reason that holds counts.
        aborted, expired, ended = (Signal(name=name) for name in ("aborted", "expired", "ended"))
        status = Signal(STATUS_BITS)
        m.d.comb += [
            aborted.eq(facts.abort & found),
            expired.eq(facts.sweep & due),
            ended.eq(moving & drop | limit | reset | aborted | expired),
            status.eq(
                Mux(facts.abort, Status.ABORTED, Mux(facts.sweep & ~lingers, Status.IDLE, Status.OK))
            ),
            act.ended.eq(ended),
        ]
        with m.If(limit):
            m.d.comb += status.eq(Status.LIMIT)
        with m.If(reset):
            m.d.comb += status.eq(Status.RESET)
        m.d.comb += act.status.eq(status)

        new = self.next
        m.d.comb += new.eq(state)
        with m.If(ended):
            m.d.comb += [new.ending.eq(1), new.status.eq(status)]
        with m.Switch(op.kind):
            with m.Case(OpKind.PACKET):
                m.d.comb += self.write.eq(moving)
                with m.If(live):
                    for side in range(2):
                        with m.If(op.side == side):
                            m.d.comb += [
                                new.sides[side].eq(after),
                                new.sides[1 - side].fin_acked.eq(other_acked),
                                new.sides[1 - side].snd_end.eq(other_end),
                            ]
                    with m.If(state.state == PairState.ACTIVE):
                        m.d.comb += new.deadline.eq(facts.idle_end)
                        with m.If(mine.fin_acked & other_acked):
                            m.d.comb += [new.deadline.eq(facts.linger_end), new.state.eq(PairState.LINGER)]
                with m.If(reset):
                    m.d.comb += new.reset_by.eq(op.side)
            with m.Case(OpKind.INSTALL):
                m.d.comb += [self.write.eq(1), new.eq(self.install)]
            with m.Case(OpKind.ACTIVATE):
                m.d.comb += [
                    self.write.eq(1),
                    new.state.eq(PairState.ACTIVE),
                    new.deadline.eq(facts.idle_end),
                ]
            with m.Case(OpKind.ABORT):
                m.d.comb += self.write.eq(found)
            with m.Case(OpKind.COPY):
                m.d.comb += [self.write.eq(found), *(side.guard.eq(1) for side in new.sides)]
            with m.Case(OpKind.SWEEP):
                m.d.comb += self.write.eq(due)
        return m

    def _route(self, m, drop, divert, moving, forward, guarded):
        """Where the packet goes. While the host still sends to one side, it gets copies of what either side sends: it has to know
        what is acknowledged there, and up to where its own acknowledgments may go (RFC 5961 section 5)."""
        state, act = self.state, self.act
        diverted = moving & ~drop & divert | state.ending
        m.d.comb += [
            act.forward.eq(forward),
            act.dropped.eq(moving & drop),
            act.keep.eq(~(moving & drop) & ~(forward & ~guarded)),
            act.steer.eq(moving | diverted),
            act.verdict.eq(Mux(diverted, Verdict.DIVERTED, Mux(moving, Verdict.GUARD, 0))),
        ]
