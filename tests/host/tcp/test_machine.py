"""Random courses of a connection against a model of RFC 9293: two streams of bytes, and the states of figure 5.

The user writes, reads, shuts down, closes, changes options; the peer sends any parts of its stream in any order and again, acknowledges
what it likes of what reached it, opens its window, closes; segments of ours are lost, repeated and overtaken; forged ones come in between; time
passes. The model knows what was written, sent, delivered and acknowledged, and from that alone what our state has to be.
"""

from __future__ import annotations

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from acceltcp.host.tcp import ConnectionOptions, State

from .bench import ACK, FIN, M32, PSH, RST, SYN, Bench, Out, Talk, User

STREAM = random.Random(31).randbytes(1 << 20)
MINE, THEIRS = STREAM[: 1 << 19], STREAM[1 << 19 :]
HALF = 1 << 31
TIME_WAIT_S = 2.0

# RFC 9293 figure 5, without LISTEN and what leads to CLOSED by reset, time-out or abort (from everywhere).
FIGURE_5 = {
    State.ESTABLISHED: {State.FIN_WAIT_1, State.CLOSE_WAIT},
    State.FIN_WAIT_1: {State.FIN_WAIT_2, State.CLOSING, State.TIME_WAIT},
    State.FIN_WAIT_2: {State.TIME_WAIT},
    State.CLOSE_WAIT: {State.LAST_ACK},
    State.CLOSING: {State.TIME_WAIT},
    State.LAST_ACK: {State.CLOSED},
    State.TIME_WAIT: {State.CLOSED},
    State.CLOSED: set(),
}


def near(number: int, about: int) -> int:
    """A 32-bit number as the integer nearest to another."""
    return about + ((number - about + HALF) & M32) - HALF


class Course(RuleBasedStateMachine):
    """Offsets count bytes of a stream from 0; a FIN is the byte after the last."""

    @initialize(
        who=st.sampled_from(("active", "passive", "cookie")), ts=st.booleans(), sack=st.booleans(), lazy=st.booleans(),
        wscale=st.sampled_from((None, 0, 2)), v6=st.booleans(), high=st.booleans(), mss=st.sampled_from((100, 536, 1460)),
        window=st.sampled_from((0, 1, 500, 4000, 65535)), buffer=st.sampled_from((2048, 20_000, 1 << 20)),
        nodelay=st.booleans(), congestion=st.sampled_from(("cubic", "reno")),
    )  # fmt: skip
    def open(self, who, ts, sack, lazy, wscale, v6, high, mss, window, buffer, nodelay, congestion) -> None:
        # Nobody gives up: what is to be seen is that all arrives in the end.
        self.bench = Bench(
            retries=100, max_rto=2.0, time_wait=TIME_WAIT_S, receive_buffer=buffer, lazy=lazy, congestion=congestion, fin_wait_2=1e6
        )
        self.peer = Talk(
            self.bench, 7 if who == "active" else 4000, 0 if who == "active" else 80, v6=v6, ts=ts, sack=sack, wscale=wscale, mss=mss,
            window=window, iss=M32 - 3000 if high else 5,
        )  # fmt: skip
        self.peer.follow = False
        if who == "active":
            options = ConnectionOptions()
            options.nodelay = nodelay
            self.connection, self.user = self.bench.connect(v6=v6, options=options)
            self.peer.answer(self.connection)
            self.edge = window
        else:
            if who == "passive":
                self.bench.listen()
                self.peer.say(SYN)
                self.peer.say(ACK)
            else:
                self.peer.cookie(irs=M32 - 2000 if high else 9)
            self.connection, self.user = self.bench.accepted[0], self.bench.users[0]
            self.edge = window << (wscale or 0)
        self.sack, self.shift = sack, wscale or 0
        self.mine_base, self.theirs_base = self.peer.irs + 1, self.peer.iss + 1
        # Our stream: written by the user, seen on the wire, at the peer, acknowledged by what reached us.
        self.written = self.sent = self.arrived = self.acked = 0
        self.fin_queued = self.fin_sent = False
        self.held: list[tuple[int, bytes, bool]] = []
        self.wire: list[Out] = []
        # The peer's stream: said to be closed after so much, parts that reached us, in order of these, read by the user.
        self.offered = 0
        self.peer_end: int | None = None
        self.parts: list[tuple[int, int]] = []
        self.in_order = self.read_at = self.told = 0
        self.peer_fin = False  # it reached us, everything before it as well
        self.passive = False  # it was there before ours went out
        self.our_edge = 0
        self.reading = True
        self.may_reset = self.over = False
        self.state = State.ESTABLISHED
        self.looked = 0
        self.look()

    # -- what goes out ---------------------------------------------------------------------

    def look(self) -> None:
        """Check all that went out since."""
        for out in self.bench.out[self.looked :]:
            if out.flags & SYN:
                continue
            if out.flags & RST:
                assert self.may_reset, f"a reset: {out}"
                continue
            at = near(out.seq, self.mine_base + self.sent) - self.mine_base
            assert -1 <= at <= self.sent, f"a hole: {out} at {at}, sent {self.sent}"
            if out.payload:
                end = at + len(out.payload)
                assert out.payload == MINE[at:end] and end <= self.written, out
                assert end <= max(self.edge, self.acked + 1), f"beyond the window: {out}"
                self.sent = max(self.sent, end)
            if out.flags & FIN:
                assert self.fin_queued and at + len(out.payload) == self.written, out
                if not self.fin_sent:
                    self.fin_sent, self.passive = True, self.peer_fin
                self.sent = self.written + 1
            # What is acknowledged came; the window's edge does not move back.
            ack = near(out.ack, self.theirs_base + self.in_order) - self.theirs_base
            assert self.told <= ack <= self.in_order + self.peer_fin, (out, ack, self.in_order)
            self.told = ack
            edge = ack + (out.window << (7 if self.peer.wscale is not None else 0))
            assert edge >= self.our_edge - self.peer_fin, f"the edge moved back from {self.our_edge}: {out}"
            self.our_edge = max(edge, self.our_edge)
            for left, right in out.sack:
                left, right = (near(number, self.theirs_base + ack) - self.theirs_base for number in (left, right))
                assert all(any(low <= byte < high for low, high in self.parts) for byte in (left, right - 1)), (out, self.parts)
            self.wire.append(out)
        self.looked = len(self.bench.out)
        del self.wire[:-40]

    def turn(self) -> None:
        self.bench.turn()
        self.look()

    # -- the user --------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return not self.over and not self.fin_queued

    @precondition(lambda self: self.writable)
    @rule(size=st.sampled_from((1, 1, 10, 99, 700, 5000)), turn=st.booleans())
    def write(self, size, turn) -> None:
        self.connection.write(MINE[self.written : self.written + size])
        self.written += size
        if turn:
            self.turn()

    @precondition(lambda self: self.writable)
    @rule()
    def shutdown(self) -> None:
        self.fin_queued = True
        self.connection.shutdown()
        self.turn()

    @precondition(lambda self: self.reading and not self.over)
    @rule(likely=st.integers(0, 5))
    def close(self, likely) -> None:
        if likely:
            return
        self.fin_queued = self.may_reset = True
        self.reading = False
        self.connection.close()
        self.turn()

    @precondition(lambda self: not self.over)
    @rule(likely=st.integers(0, 20))
    def abort(self, likely) -> None:
        if likely:
            return
        self.may_reset = self.over = True
        self.connection.abort()
        self.look()
        assert self.connection.state is State.CLOSED

    @precondition(lambda self: self.reading)
    @rule(size=st.sampled_from((1, 100, 3000, 1 << 20)), turn=st.booleans())
    def read(self, size, turn) -> None:
        got = self.connection.consume(size)
        assert got == THEIRS[self.read_at : self.read_at + len(got)]
        assert len(got) <= size and (got or self.read_at == self.in_order)
        self.read_at += len(got)
        if turn:
            self.turn()

    @precondition(lambda self: not self.over)
    @rule(name=st.sampled_from(("nodelay", "quickack", "keepalive", "tos", "cork")), on=st.booleans())
    def option(self, name, on) -> None:
        self.connection.options = self.connection.options.copy()
        setattr(self.connection.options, name, 0x20 * on if name == "tos" else on)
        self.connection.changed()
        self.turn()

    # -- the peer --------------------------------------------------------------------------

    def say(self, flags: int, start: int, payload: bytes, *, ack: int | None = None, blocks: tuple = ()) -> None:
        ack = self.arrived + self.fin_arrived if ack is None else ack
        window = min(max(self.edge - self.arrived, 0) >> self.shift, 65535)
        end = start + len(payload)
        self.said = max(self.said, end + bool(flags & FIN))
        # Of what is not acceptable the acknowledgment does not count either (RFC 9293 section 3.10.7.4, first).
        acceptable = end + bool(flags & FIN) > self.theirs_next or (start == end and not flags & FIN)
        if self.taking and acceptable:
            self.acked = max(self.acked, ack)
            if payload:
                self.parts.append((start, end))
            # The state as the segment leaves it; what it makes us send is checked against that.
            reach = self.in_order
            for low, high in sorted(self.parts):
                if low <= reach < high:
                    reach = high
            self.in_order = reach
            if self.peer_end is not None and reach == self.peer_end and (flags & FIN or self.fin_came):
                self.peer_fin = True
            if flags & FIN:
                self.fin_came = True
                self.peer_fin |= reach == self.peer_end
        self.peer.say(flags, payload, seq=self.theirs_base + start, ack=self.mine_base + ack, window=window, blocks=blocks)
        self.look()
        if self.bench.out and self.bench.out[-1].flags & RST and self.may_reset and self.connection.closed:
            self.over = True

    said = 0
    fin_came = False
    fin_arrived = False

    @property
    def taking(self) -> bool:
        """Segments are still taken."""
        return not self.over and not self.connection.closed

    @rule(size=st.sampled_from((1, 50, 500, 2000)))
    def offer(self, size) -> None:
        """The peer has more to say."""
        if self.peer_end is None:
            self.offered += size

    @precondition(lambda self: self.taking)
    @rule(back=st.integers(0, 3000), size=st.integers(1, 1400), ahead=st.integers(0, 3000), more=st.booleans())
    def send(self, back, size, ahead, more) -> None:
        """Any part of what the peer has to say, inside our window."""
        if more and self.peer_end is None:
            self.offered += size
        limit = min(self.offered, self.our_edge)
        start = max(min(self.in_order - back + ahead if back % 3 else self.in_order, limit - 1), 0)
        end = min(start + size, limit)
        if end > start:
            self.say(ACK | (PSH if end == self.offered else 0), start, THEIRS[start:end])

    @precondition(lambda self: self.taking)
    @rule(likely=st.integers(0, 3))
    def finish(self, likely) -> None:
        """The peer's FIN, perhaps before the data in front of it."""
        if likely and self.peer_end is None:
            return
        if self.offered < self.our_edge:
            self.peer_end = self.offered
            self.say(ACK | FIN, self.offered, b"")

    @precondition(lambda self: self.wire)
    @rule(number=st.integers(0, 39), keep=st.booleans(), answer=st.booleans(), blocks=st.booleans())
    def arrive(self, number, keep, answer, blocks) -> None:
        """A segment of ours reaches the peer, perhaps not for the last time; perhaps it answers."""
        out = self.wire[number % len(self.wire)]
        if not keep:
            self.wire.remove(out)
        at = near(out.seq, self.mine_base + self.arrived) - self.mine_base
        if out.payload or out.flags & FIN:
            self.held.append((at, out.payload, bool(out.flags & FIN)))
        moved = True
        while moved:
            moved = False
            for start, payload, fin in self.held:
                end = start + len(payload)
                if start <= self.arrived < end:
                    self.arrived, moved = end, True
                if fin and self.arrived == end:
                    self.fin_arrived = True
        self.held = [one for one in self.held if one[0] + len(one[1]) > self.arrived]
        if answer and self.taking:
            self.acknowledge(blocks)

    def acknowledge(self, with_blocks: bool) -> None:
        blocks: tuple = ()
        if self.sack and with_blocks and self.held:
            start, payload, fin = self.held[-1]
            if payload:
                blocks = ((self.mine_base + start, self.mine_base + start + len(payload) + fin),)
        self.say(ACK, self.latest, b"", blocks=blocks)

    @property
    def theirs_next(self) -> int:
        """The number that we expect next."""
        return self.in_order + self.peer_fin

    @property
    def latest(self) -> int:
        """SND.NXT of the peer, which pure acknowledgments carry: windows are taken by it."""
        return max(self.said, self.theirs_next)

    @precondition(lambda self: self.taking)
    @rule(size=st.sampled_from((0, 1, 100, 1460, 5000, 60_000)))
    def window(self, size) -> None:
        """The peer's window opens further."""
        self.edge = max(self.edge, min(self.arrived + size, self.arrived + (65535 << self.shift)))
        self.edge += -(self.edge - self.arrived) % (1 << self.shift)
        self.say(ACK, self.latest, b"")

    @precondition(lambda self: self.taking)
    @rule(
        kind=st.sampled_from(("reset", "syn", "ack ahead", "ack old", "no ack", "far", "old data", "old timestamp")),
        offset=st.sampled_from((1, 2, 100, 70_000, 1 << 20, 1 << 30)),
    )
    def forge(self, kind, offset) -> None:
        """What changes nothing, at most brings an ACK (RFC 5961, RFC 7323, RFC 9293 section 3.10.7.4)."""
        nxt = self.theirs_base + self.theirs_next
        ack = self.mine_base + self.acked
        match kind:
            case "reset":
                self.peer.say(RST, seq=nxt + offset)
            case "syn":
                self.peer.say(SYN, seq=nxt + offset if self.connection.state is not State.TIME_WAIT else nxt - offset - 1, options=b"")
            case "ack ahead":
                self.peer.say(ACK, b"forged", seq=nxt, ack=self.mine_base + self.sent + offset)
            case "ack old":
                self.peer.say(ACK, b"forged", seq=nxt, ack=ack - max(offset, 1 << 20))
            case "no ack":
                self.peer.say(PSH, b"forged", seq=nxt, ack=ack)
            case "far":
                self.peer.say(ACK, b"forged", seq=nxt + max(offset, 2 << 20), ack=ack)
            case "old data":
                size = min(offset, self.in_order)
                if 0 < size <= 1400:
                    self.peer.say(ACK, b"f" * size, seq=self.theirs_base + self.in_order - size, ack=ack)
            case "old timestamp" if self.peer.ts:
                self.peer.say(ACK, b"forged", seq=nxt, ack=ack, tsval=self.peer.tsval() - 100_000 - offset)
        self.look()

    # -- time ------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.001, 0.01, 0.05, 0.3, 1.0, 5.0)))
    def wait(self, seconds) -> None:
        self.bench.run(seconds)
        self.look()

    # -- what must always be ---------------------------------------------------------------

    def expected(self) -> State:
        """By the model alone."""
        fin_acked = self.fin_sent and self.acked > self.written
        if not self.fin_sent:
            return State.CLOSE_WAIT if self.peer_fin else State.ESTABLISHED
        if not self.peer_fin:
            return State.FIN_WAIT_2 if fin_acked else State.FIN_WAIT_1
        if self.passive:
            return State.CLOSED if fin_acked else State.LAST_ACK
        return State.TIME_WAIT if fin_acked else State.CLOSING

    @invariant()
    def state_is_that_of_the_model(self) -> None:
        if not hasattr(self, "connection"):
            return
        state = self.connection.state
        if self.over:
            assert state is State.CLOSED
            return
        expected = self.expected()
        assert state is expected or (expected is State.TIME_WAIT and state is State.CLOSED), (state, expected)
        steps = {self.state} | FIGURE_5[self.state] | {two for one in FIGURE_5[self.state] for two in FIGURE_5[one]}
        assert state in steps, (self.state, state)
        self.state = state
        self.over = state is State.CLOSED
        user: User = self.user
        assert user.errors in ([], [None])
        assert bool(user.errors) == (state in (State.TIME_WAIT, State.CLOSED))

    @invariant()
    def counts_are_what_they_are(self) -> None:
        if not hasattr(self, "connection") or self.connection.closed:
            return
        connection = self.connection
        assert connection.unsent_or_unacked == self.written - min(self.acked, self.written)
        if self.reading:
            assert connection.buffered == self.in_order - self.read_at
        if connection.built:
            assert self.bench.endpoint.buffered == connection.buffered + connection.reassembly.size
            assert connection.scoreboard.in_flight >= 0 and connection.scoreboard.una == connection.snd_una

    def teardown(self) -> None:
        """On a wire that loses nothing any more everything arrives, and it ends in order."""
        if not hasattr(self, "connection"):
            return
        if self.writable:
            self.connection.options = self.connection.options.copy()
            self.connection.options.cork = False
            self.connection.changed()
            self.shutdown()
        for _ in range(3000):
            if self.over or self.connection.closed:
                break
            self.state_is_that_of_the_model()
            if self.peer_end is None and self.in_order == self.offered:
                self.peer_end = self.offered
            if self.reading:
                self.read(1 << 20, True)
            limit = min(self.offered, self.our_edge)
            end = min(self.in_order + 1400, limit)
            if end > self.in_order:
                self.say(ACK, self.in_order, THEIRS[self.in_order : end])
            elif self.peer_end is not None and not self.peer_fin:
                self.say(ACK | FIN, self.peer_end, b"")
            while self.wire:
                self.arrive(0, False, False, False)
            if self.taking:
                self.edge = max(self.edge, self.arrived + 5000)
                self.edge += -(self.edge - self.arrived) % (1 << self.shift)
                self.say(ACK, self.latest, b"")
            self.wait(0.5)
        assert self.connection.closed, (self.connection.state, self.arrived, self.written, self.in_order, self.offered)
        if not self.may_reset:
            assert self.arrived == self.written and self.fin_arrived and self.in_order == self.offered
            self.read(1 << 20, False)
            assert self.read_at == self.offered
        self.bench.run(100)
        assert self.bench.endpoint.buffered == 0 and not self.bench.endpoint.connections
        assert self.user.heard.count("closed") == 1


Course.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestCourse = Course.TestCase
