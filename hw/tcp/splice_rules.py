"""`SpliceRules`: what becomes of a pair of spliced connections, and of a packet, in one operation.

* Latency: `next`, `write` and `act` belong to the operation on `op`; sums with what no packet changes (offsets, ends of what the host
  has to deliver) are taken a cycle before, from `early_op` and `early_state` (`hw.table.state.StateMemory`). An operation that writes them, INSTALL, is
  never followed by a packet that needs them: the pair's entries in the connection table do not stand yet.
* Throughput: one operation per cycle. Registered: those sums. Overflow, reset: nothing to lose.

All comparisons of sequence numbers are modulo 2^32 (RFC 9293 section 3.4), those of times modulo 2^16.
"""

from amaranth import *
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

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
        op, state, act = self.op, self.state, self.act

        # A cycle early: the packet in the numbers of the other connection.
        early, sides = self.early_op, self.early_state.sides
        # (The idle time, too, no packet changes; a unit of time that begins in between is not missed.)
        idle_end, linger_end = (Signal(SPLICE_TIME_BITS, reset_less=True, name=name) for name in ("idle_end", "linger_end"))
        mine_offset, other_offset = (Mux(early.side ^ k, sides[1].offset, sides[0].offset) for k in (0, 1))
        seq_there, ack_there = Signal(32, reset_less=True), Signal(32, reset_less=True)
        end_there = Signal(32, reset_less=True)
        # Whether it acknowledges less, and begins with less, than the host has to deliver.
        below_guard, before = Signal(reset_less=True), Signal(reset_less=True)
        mine_guard_end, other_guard_end = (Mux(early.side ^ k, sides[1].guard_end, sides[0].guard_end) for k in (0, 1))
        m.d.sync += [
            below_guard.eq((early.ack - mine_guard_end)[31]),
            before.eq((early.seq + mine_offset - other_guard_end)[31]),
            seq_there.eq(early.seq + mine_offset),
            ack_there.eq(early.ack - other_offset),
            end_there.eq(early.data_end + mine_offset),
            idle_end.eq(self.now + self.early_state.idle),
            linger_end.eq(self.now + self.linger),
        ]

        mine, other = Signal(SpliceSideState), Signal(SpliceSideState)
        after = Signal(SpliceSideState)  # `mine`
        other_acked = Signal()
        m.d.comb += [
            Value.cast(mine).eq(Mux(op.side, Value.cast(state.sides[1]), Value.cast(state.sides[0]))),
            Value.cast(other).eq(Mux(op.side, Value.cast(state.sides[0]), Value.cast(state.sides[1]))),
        ]

        def difference(name, left, right):
            value = Signal(32, name=name)
            m.d.comb += value.eq(left - right)
            return value

        def same(value, name, *, of_other=False):
            """Whether the field of the packet's side, or the other one, is this. The side is chosen behind the comparison."""
            first = value == state.sides[of_other][name]
            return Mux(op.side, value == state.sides[1 - of_other][name], first)

        # "Greater" and "the same" side by side: no look at all bits of a difference behind its carry chain.
        def greater(name, left, right):
            """left - right > 0 as a signed number."""
            return ~difference(name, left, right)[-1] & (left != right)

        # What becomes of the packet.
        moving, live, drop, divert, stale, forward = (
            Signal(name=name) for name in ("moving", "live", "drop", "divert", "stale", "forward")
        )
        past_limit = greater("past_limit", end_there, state.limit_end)
        m.d.comb += [
            moving.eq((state.state != PairState.PENDING) & ~state.ending),
            drop.eq((state.state == PairState.LINGER) & op.syn & ~op.has_ack),
            divert.eq(state.bounded & ~op.rst & (op.fin | Mux(op.side, past_limit, op.payload_length != 0))),
            live.eq((op.kind == OpKind.PACKET) & moving & ~drop),
            # In front of the first byte to forward the other side waits for the host's own data. This side's must not take their place,
            # nor their timestamp make those look old (RFC 7323 section 5.3). Later nobody takes what it has.
            stale.eq(other.guard & before & ~op.rst),
            forward.eq(live & ~divert & ~stale),
        ]

        # What it acknowledges, forwarded or not: no more than has been forwarded to it, here or by the host.
        # (Compared for both sides, so that the choice of the side comes behind the comparisons.)
        accepted = Signal()
        fresh, unheard = [], []
        for k in range(2):
            sender = state.sides[1 - k]
            beyond = difference(f"beyond{k}", ack_there, sender.snd_end)
            unseen = ~beyond[-1] & (ack_there != sender.snd_end)
            by_host = (beyond[exact_log2(SPLICE_HOST_SENT_MAX) :] == 0) & ~sender.fin
            fresh.append(greater(f"newer{k}", op.ack, state.sides[k].ack) & (~unseen | by_host))
            unheard.append(unseen)
        other_end = Signal(32)
        m.d.comb += other_end.eq(Mux(accepted & Mux(op.side, unheard[1], unheard[0]), ack_there, other.snd_end))
        known = op.has_ack & same(op.ack, "ack")
        m.d.comb += [
            accepted.eq(op.has_ack & Mux(op.side, fresh[1], fresh[0])),
            after.ack.eq(Mux(accepted, op.ack, mine.ack)),
            after.guard.eq(mine.guard & ~((accepted | known) & ~below_guard)),
            after.guard_end.eq(mine.guard_end),
            # The host has acknowledged more to the other side: whose segments would be selectively acknowledged from its first
            # one on, as if by a receiver that has changed its mind (RFC 2018 section 8), which costs it all it knows.
            act.hide_sack.eq(mine.guard & below_guard),
            # All that was forwarded is acknowledged at most: without `accepted` this is no news, and true.
            other_acked.eq(other.fin & op.has_ack & same(ack_there, "snd_end", of_other=True) | other.fin_acked),
        ]

        # What it carries. The text in a reset is not data (RFC 9293 section 3.5.3), and a FIN within data that have been
        # forwarded is none. (One right at their end is: it was lost, but what came after it has been forwarded.)
        end = Signal(32)
        carried = Signal()
        ahead = difference("ahead", end, mine.snd_end)
        m.d.comb += [
            end.eq(op.data_end + op.fin),
            carried.eq(forward & ~op.rst & ~mine.fin & (ahead[SEND_END_BITS:] == 0)),
            after.snd_end.eq(Mux(carried, end, mine.snd_end)),
            after.fin.eq(mine.fin | carried & op.fin),
            after.fin_acked.eq(mine.fin_acked),
            after.offset.eq(mine.offset),
        ]
        stamp = Signal()
        later = greater("later", op.tsval, mine.tsval)
        m.d.comb += [
            stamp.eq(forward & op.timestamps & (~mine.stamped | later)),
            after.tsval.eq(Mux(stamp, op.tsval, mine.tsval)),
            after.stamped.eq(mine.stamped | stamp),
            after.octets.eq(mine.octets + Mux(forward, op.payload_length, 0)),
            after.packets.eq(mine.packets + forward),
        ]

        # How it ends. A reset that is not exact is left to the far end (RFC 5961 section 3).
        reset, limit = Signal(), Signal()
        lingers, due, found = Signal(), Signal(), Signal()
        passed = Signal(SPLICE_TIME_BITS)
        m.d.comb += [
            reset.eq(live & op.rst & (same(seq_there, "ack", of_other=True) | same(op.seq, "snd_end"))),
            limit.eq(live & state.bounded & ~op.side & op.has_ack & fresh[0] & (op.ack == state.limit_end)),
            passed.eq(self.now - state.deadline),
            lingers.eq(state.state == PairState.LINGER),
            due.eq(moving & ~passed[-1] & (lingers | (state.idle != 0))),
            # (Not read back from `act`: Verilog's simulators do not look again at what a process assigns a part of.)
            found.eq(moving & (op.generation == state.generation)),
            act.found.eq(found),
        ]

        self._route(m, drop, divert, moving, forward, mine.guard | other.guard)

        new = self.next
        m.d.comb += new.eq(state)
        with m.If(act.ended):
            m.d.comb += [new.ending.eq(1), new.status.eq(act.status)]
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
                        m.d.comb += new.deadline.eq(idle_end)
                        with m.If(mine.fin_acked & other_acked):
                            m.d.comb += [new.deadline.eq(linger_end), new.state.eq(PairState.LINGER)]
                # The last reason that holds counts.
                with m.If(moving & drop):
                    m.d.comb += [act.ended.eq(1), act.status.eq(Status.OK)]
                with m.If(limit):
                    m.d.comb += [act.ended.eq(1), act.status.eq(Status.LIMIT)]
                with m.If(reset):
                    m.d.comb += [act.ended.eq(1), act.status.eq(Status.RESET), new.reset_by.eq(op.side)]
            with m.Case(OpKind.INSTALL):
                m.d.comb += [self.write.eq(1), new.eq(self.install)]
            with m.Case(OpKind.ACTIVATE):
                m.d.comb += [
                    self.write.eq(1),
                    new.state.eq(PairState.ACTIVE),
                    new.deadline.eq(idle_end),
                ]
            with m.Case(OpKind.ABORT):
                m.d.comb += self.write.eq(found)
                with m.If(found):
                    m.d.comb += [act.ended.eq(1), act.status.eq(Status.ABORTED)]
            with m.Case(OpKind.COPY):
                m.d.comb += [self.write.eq(found), *(side.guard.eq(1) for side in new.sides)]
            with m.Case(OpKind.SWEEP):
                m.d.comb += self.write.eq(due)
                with m.If(due):
                    m.d.comb += [act.ended.eq(1), act.status.eq(Mux(lingers, Status.OK, Status.IDLE))]
        return m

    def _route(self, m, drop, divert, moving, forward, guarded):
        """Where the packet goes. While the host still sends to one side, it gets copies of what either side sends: it has to know
        what is acknowledged there, and up to where its own acknowledgments may go (RFC 5961 section 5)."""
        state, act = self.state, self.act
        diverted = moving & ~drop & divert | state.ending
        m.d.comb += [
            act.forward.eq(forward),
            act.dropped.eq(moving & drop & (self.op.kind == OpKind.PACKET)),
            act.keep.eq(~(moving & drop) & ~(forward & ~guarded)),
            act.steer.eq(moving | diverted),
            act.verdict.eq(Mux(diverted, Verdict.DIVERTED, Mux(moving, Verdict.GUARD, 0))),
        ]
