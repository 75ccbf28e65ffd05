"""What is in flight: RFC by RFC, against a plain model that walks over everything, and through lossy networks."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from acceltcp.host.tcp import scoreboard as module
from acceltcp.host.tcp.scoreboard import DSACK, RECOVERED, REORDERED, REPAIRED, SPURIOUS, Scoreboard, Sent

MSS = 10
RTT = 0.1


def filled(count: int, sack: bool = True, gap: float = 0.001) -> Scoreboard:
    """`count` segments of MSS bytes from 0 on, sent `gap` seconds apart from time 0 on."""
    board = Scoreboard(MSS, sack, 0)
    for number in range(count):
        board.sent(number * MSS, (number + 1) * MSS, number * gap)
    return board


def block(first: int, last: int) -> tuple[int, int]:
    """SACK of segments first to last, both included."""
    return first * MSS, (last + 1) * MSS


def lost(board: Scoreboard) -> list[int]:
    """Numbers of the segments that are lost, in the order in which they come up; all are sent again (at time 1)."""
    numbers = []
    while (entry := board.next_lost()) is not None:
        numbers.append(entry.start // MSS)
        board.resent(entry, 1.0)
    return numbers


# -- in order ----------------------------------------------------------------------------


def test_acknowledged_in_order():
    board = filled(5)
    assert (board.in_flight, len(board), board.calm) == (50, 5, True)
    board.acked(20, (), 0.5)
    assert (board.newly_acked, board.delivered, board.in_flight, len(board), board.una) == (20, 20, 30, 3, 20)
    assert board.rtt == pytest.approx(0.5 - 0.001)
    assert board.detect(0.5, RTT, RTT) is None and board.next_lost() is None
    board.acked(50, (), 0.6)
    assert (board.in_flight, len(board), board.last()) == (0, 0, None)


def test_part_of_a_segment():
    board = filled(2)
    board.acked(5, (), 0.5)
    assert (board.in_flight, len(board), board.newly_acked, board.rtt) == (15, 2, 5, 0.0)
    board.acked(10, (), 0.5)
    assert (board.in_flight, len(board)) == (10, 1)


def test_old_and_impossible_acknowledgments():
    board = filled(3)
    board.acked(20, (), 0.5)
    board.acked(10, (), 0.5)
    assert (board.newly_acked, board.delivered, board.una, board.rtt) == (0, 0, 20, 0.0)
    board.acked(10**9, (), 0.5)
    assert (board.una, board.in_flight) == (30, 0)


def test_sent_must_follow():
    board = filled(2)
    for start, end in ((10, 30), (30, 40), (20, 20), (20, 10)):
        with pytest.raises(ValueError, match="does not follow 20"):
            board.sent(start, end, 1.0)


# -- SACK (RFC 2018, RFC 6675) -----------------------------------------------------------


def test_sacked_segments_are_not_in_flight():
    board = filled(10)
    board.acked(0, (block(2, 3), block(7, 7)), 0.2)
    assert (board.in_flight, board.sacked_bytes, board.delivered, board.newly_acked) == (70, 30, 30, 0)
    board.acked(0, (block(2, 3), block(7, 7)), 0.2)
    assert (board.in_flight, board.delivered) == (70, 0)
    board.acked(40, (block(7, 8),), 0.3)
    assert (board.in_flight, board.sacked_bytes, board.newly_acked, board.delivered) == (40, 20, 40, 30)


def test_a_segment_counts_only_when_one_block_covers_all_of_it():
    board = filled(4)
    board.acked(0, ((15, 35), (11, 19)), 0.2)
    assert board.sacked_bytes == 10  # segment 2
    board.acked(0, ((10, 15), (15, 20)), 0.2)
    assert board.sacked_bytes == 10


@pytest.mark.parametrize(
    "blocks", [((30, 20),), ((20, 20),), ((-50, -10),), ((40, 60),), ((60, 90),), ((20, 10**12),), ((-(10**12), 10**12),)]
)
def test_blocks_that_cannot_be_are_ignored(blocks):
    board = filled(5)
    board.acked(10, blocks, 0.2)
    assert (board.sacked_bytes, board.in_flight, board.news) == (0, 40, 0)


def test_a_block_from_below_is_clipped():
    board = filled(5)
    board.acked(10, ((0, 30),), 0.2)
    assert (board.sacked_bytes, board.in_flight) == (20, 20)


def test_more_blocks_than_options_can_hold_are_not_looked_at():
    board = filled(20)
    board.acked(0, [block(n, n) for n in range(2, 16, 2)], 0.2)
    assert board.sacked_bytes == 40


def test_without_sack_blocks_mean_nothing():
    board = filled(5, sack=False)
    board.acked(0, (block(2, 4),), 0.2)
    assert (board.sacked_bytes, board.in_flight, board.detect(9.0, RTT, RTT)) == (0, 50, None)


def test_reneging_after_time_out():
    """RFC 2018 section 8: the first segment SACKed at the time-out means that the peer has dropped what it had."""
    board = filled(4)
    board.acked(0, (block(1, 2),), 0.2)
    board.acked(10, (), 0.3)  # and did not go on: 1 and 2 are gone there
    assert board.sacked_bytes == 20
    board.time_out()
    assert (board.sacked_bytes, board.in_flight, board.lost_bytes) == (0, 0, 30)
    assert lost(board) == [1, 2, 3]


def test_time_out_keeps_what_is_sacked():
    board = filled(6)
    board.acked(0, (block(2, 3),), 0.2)
    board.time_out()
    assert (board.in_flight, board.lost_bytes, board.sacked_bytes) == (0, 40, 20)
    assert lost(board) == [0, 1, 4, 5]
    board.acked(40, (), 1.2)
    assert (board.in_flight, board.newly_acked, board.delivered) == (20, 40, 20)
    board.acked(60, (), 1.3)
    assert board.news & RECOVERED and not board.recovering and board.in_flight == 0


def test_smaller_segments_after_path_mtu_discovery():
    """RFC 1191: what was too long is split when it goes out again."""
    board = Scoreboard(100, True, 0)
    board.sent(0, 100, 0.0)
    board.sent(100, 201, 0.0)  # 100 bytes and FIN
    board.mss = 40
    board.time_out()
    pieces = []
    while (entry := board.next_lost()) is not None:
        pieces.append((entry.start, entry.end))
        board.resent(entry, 1.0)
    assert pieces == [(0, 40), (40, 80), (80, 100), (100, 140), (140, 180), (180, 201)]
    assert board.in_flight == 201 and len(board) == 6
    board.acked(40, ((80, 140),), 1.1)
    assert (board.sacked_bytes, board.in_flight) == (60, 101)
    board.acked(201, (), 1.2)
    assert (board.sacked_bytes, board.in_flight, len(board)) == (0, 0, 0)


# -- round trips -------------------------------------------------------------------------


def test_karn():
    """No sample of a segment that was sent again, nor of what waited behind one."""
    board = filled(3)
    board.time_out()
    board.resent(board.next_lost(), 1.0)
    board.acked(30, (), 1.1)
    assert board.rtt == 0.0


def test_sample_of_a_sacked_segment():
    board = filled(5)
    board.acked(0, (block(2, 3),), 0.2)
    assert board.rtt == pytest.approx(0.2 - 0.003)
    board.acked(0, (block(2, 3),), 0.7)
    assert board.rtt == 0.0


# -- RACK (RFC 8985 section 6) -----------------------------------------------------------


def test_three_later_ones_delivered_and_no_reordering_ever_seen():
    """Section 6.2 step 4: DupThresh as of old while reordering has not been seen: reo_wnd is 0."""
    board = filled(10)
    for last in (1, 2):
        board.acked(0, (block(1, last),), 0.101 + last / 1000, 0.1)
        due = board.detect(0.101 + last / 1000, RTT, 0.1)
        # xmit_ts + RACK.rtt + min_rtt / 4
        assert due == pytest.approx(0.0 + 0.101 + 0.025)
        assert board.lost_bytes == 0
    board.acked(0, (block(1, 3),), 0.104)
    assert board.detect(0.104, RTT, 0.1) is None
    assert lost(board) == [0]


def test_the_reordering_timer_finds_what_too_few_acknowledgments_do_not():
    board = filled(2)
    board.acked(0, (block(1, 1),), 0.101)
    due = board.detect(0.101, RTT, 0.1)
    assert board.detect(due - 0.001, RTT, 0.1) == due and not board.lost_bytes
    assert board.detect(due, RTT, 0.1) is None
    assert lost(board) == [0]


def test_what_was_sent_later_is_not_lost():
    board = filled(10)
    board.acked(0, (block(4, 6),), 0.2)
    board.detect(5.0, RTT, 0.1)
    assert lost(board) == [0, 1, 2, 3]


def test_lost_retransmission():
    """What was sent again long before something delivered was sent is lost again: no time-out needed."""
    board = filled(4)
    board.acked(0, (block(1, 3),), 0.103)
    board.detect(0.103, RTT, 0.1)
    board.recover()
    entry = board.next_lost()
    board.resent(entry, 0.103)
    assert (entry.start, board.in_flight, entry.lost) == (0, 10, False)
    board.sent(40, 50, 0.150)
    board.acked(0, (block(1, 4),), 0.250, 0.1)
    assert board.detect(0.250, RTT, 0.1) is None
    assert entry.lost and entry.resent == 1 and lost(board) == [0]


def test_an_acknowledged_retransmission_tells_of_what_was_sent_before_it():
    """0 and 1 again at 0.1, acknowledged with the SACKed 2: so 3, sent at 0 and not acknowledged, is lost. No SACK block is left to say so."""
    board = filled(4, gap=0.0)
    board.acked(0, (block(2, 2),), 0.05)
    board.detect(0.1, RTT, 0.02)
    for _ in range(2):
        board.resent(board.next_lost(), 0.1)
    board.acked(30, (), 0.2, 0.02)
    assert not board.calm
    board.detect(0.2, RTT, 0.02)
    assert lost(board) == [3]


def test_reordering_seen_makes_it_wait():
    board = filled(10)
    board.acked(0, (block(1, 4),), 0.105)
    board.acked(50, (), 0.106)  # segment 0 came late, and never was sent again
    assert board.news & REORDERED and board.reordering_seen
    board.acked(50, (block(6, 9),), 0.110)
    due = board.detect(0.110, RTT, 0.1)
    assert due == pytest.approx(0.005 + (0.110 - 0.009) + 0.025) and not board.lost_bytes


def test_a_retransmission_is_not_reordering():
    board = filled(5)
    board.acked(0, (block(1, 4),), 0.2)
    board.detect(0.2, RTT, 0.1)
    assert lost(board) == [0]
    board.acked(50, (), 1.1)
    assert not board.reordering_seen


def reorder_window(board: Scoreboard, min_rtt: float = 0.1, srtt: float = 10.0) -> float:
    """After two more segments of which the second arrives."""
    at = board.high
    board.sent(at, at + MSS, 100.0)
    board.sent(at + MSS, at + 2 * MSS, 100.0)
    board.acked(at, ((at + MSS, at + 2 * MSS),), 100.1, min_rtt)
    board.detect(100.1, srtt, min_rtt)
    found = board.reo_wnd
    board.acked(at + 2 * MSS, (), 100.1, min_rtt)
    return found


def test_dsack_widens_the_window_once_per_round_trip():
    board = filled(10)
    board.time_out()
    assert lost(board) == list(range(10))
    board.acked(50, (), 1.1)
    for first in (0, 1, 2):
        board.acked(50, (block(first, first),), 1.1)
        assert board.news & DSACK
    board.acked(100, (), 1.2)
    assert reorder_window(board) == pytest.approx(2 * 0.025)
    board.acked(board.una, (block(3, 3),), 1.3)  # the next round trip
    assert reorder_window(board) == pytest.approx(3 * 0.025)
    assert reorder_window(board, srtt=0.04) == 0.04  # never more than SRTT
    for _ in range(16):  # and after sixteen recoveries it is forgotten
        at = board.high
        board.sent(at, at + MSS, 200.0)
        board.recover()
        board.acked(at + MSS, (), 200.1)
    assert reorder_window(board) == pytest.approx(0.025)


def test_timestamps_tell_which_copy_was_answered():
    """Section 6.2 step 2: an acknowledgment that echoes an earlier time is not of the retransmission."""
    for echoed, numbers_lost in ((0.5, []), (1.5, [3])):
        board = filled(3)
        board.sent(30, 40, 0.9)
        board.acked(0, (block(2, 2),), 0.2)
        board.detect(9.0, RTT, 0.1)
        assert lost(board) == [0, 1]  # sent again at 1.0
        board.acked(10, (block(2, 2),), 1.2, 0.01, echoed)
        # If the second copy of 0 was answered, 3 went out before it and should have been, too.
        assert board.detect(1.2, RTT, 0.01) is None
        assert lost(board) == numbers_lost


def test_too_quick_an_answer_is_not_to_the_retransmission():
    board = filled(2)
    board.acked(0, (block(1, 1),), 0.1)
    board.detect(0.9, RTT, 0.1)
    assert lost(board) == [0]
    board.sent(20, 30, 0.9)
    board.sent(30, 40, 0.9)
    board.acked(10, (block(1, 1),), 1.01, 0.1)  # 10 ms after it went out again
    board.detect(1.01, RTT, 0.1)
    assert board.lost_bytes == 0


# -- duplicates and spurious recoveries --------------------------------------------------


def recovering() -> Scoreboard:
    """Ten segments, 0 and 1 deemed lost at 0.2 and sent again at 1.0."""
    board = filled(10)
    board.acked(0, (block(2, 6),), 0.2)
    board.detect(0.2, RTT, 0.1)
    board.recover()
    assert lost(board) == [0, 1]
    return board


def test_eifel():
    """RFC 3522: the first acknowledgment of new data echoes a time before the first retransmission."""
    for echoed, spurious in ((0.5, True), (1.0, False), (1.5, False), (float("inf"), False)):
        board = recovering()
        board.acked(20, (block(2, 6),), 1.1, 0.1, echoed)
        assert bool(board.news & SPURIOUS) == spurious
        board.acked(70, (), 1.1, 0.1, 0.5)
        assert not board.news & SPURIOUS  # the first one decides


def test_all_retransmissions_reported_as_duplicates():
    """RFC 3708: of every segment sent again the peer had the first copy."""
    board = recovering()
    board.acked(70, (block(0, 0),), 1.1)
    assert board.news == DSACK
    board.acked(70, (block(1, 1),), 1.1)
    assert board.news & SPURIOUS
    board.undo()
    assert not board.recovering and board.in_flight == 30


def test_forged_duplicates_are_not_believed():
    board = filled(10)
    for _ in range(50):
        board.acked(20, (block(0, 0),), 0.2)
        assert not board.news & DSACK  # nothing was ever sent twice
    board = recovering()
    board.acked(70, (block(0, 0),), 1.1)
    board.acked(70, ((-500, -400),), 1.1)
    assert not board.news
    board.acked(70, (block(20, 30),), 1.1)
    assert not board.news


def test_duplicate_inside_the_second_block():
    """RFC 2883 section 4.2: a duplicate above the acknowledgment."""
    board = recovering()
    board.acked(0, (block(3, 3), block(2, 6)), 1.1)
    assert board.news == DSACK
    board.acked(0, (block(2, 6), block(3, 3)), 1.1)
    assert not board.news


def test_undo_after_a_time_out():
    board = filled(5)
    board.time_out()
    board.resent(board.next_lost(), 1.0)
    board.acked(10, (), 1.01, 0.1, 0.0)
    assert board.news & SPURIOUS
    board.undo()
    assert (board.in_flight, board.lost_bytes, board.next_lost(), board.recovering) == (40, 0, None, False)
    # They are looked after as before.
    board.acked(10, (block(2, 4),), 1.1)
    board.detect(1.1, RTT, 0.1)
    assert lost(board) == [1]


# -- NewReno (RFC 6582) ------------------------------------------------------------------


def test_third_duplicate():
    board = filled(6, sack=False)
    for number in (1, 2, 3):
        board.acked(0, (), 0.1)
        assert board.duplicate() == number
        assert board.delivered == MSS
    assert (board.lost_bytes, board.in_flight) == (10, 20)
    board.recover()
    assert lost(board) == [0]
    assert board.in_flight == 30


def test_partial_acknowledgment():
    """Section 3.2 step 3: 0 and 3 of eight were lost; the acknowledgment of 0 stops at 3."""
    board = filled(8, sack=False)
    for _ in range(6):
        board.acked(0, (), 0.1)
        board.duplicate()
    board.recover()
    assert lost(board) == [0]
    board.acked(30, (), 0.2)
    assert not board.news & RECOVERED and board.recovering
    # 1, 2 and four more have arrived; 0 is acknowledged by its retransmission: only 3 is to be sent again.
    assert (board.in_flight, board.lost_bytes, board.delivered) == (0, 10, 10)
    assert lost(board) == [3]
    board.acked(80, (), 0.3)
    assert board.news & RECOVERED and board.in_flight == 0


def test_duplicates_of_an_old_recovery_start_no_new_one():
    """Section 3.2 step 2: unless the acknowledgment covers more than recover."""
    board = filled(4, sack=False)
    board.time_out()
    assert lost(board) == [0, 1, 2, 3]
    board.acked(40, (), 1.1)
    board.sent(40, 50, 1.1)
    board.sent(50, 60, 1.1)
    for _ in range(4):
        board.acked(40, (), 1.2)
        board.duplicate()
    assert board.lost_bytes == 0
    board.acked(50, (), 1.3)
    for _ in range(3):
        board.acked(50, (), 1.3)
        board.duplicate()
    assert board.lost_bytes == 10


def test_ten_thousand_forged_duplicates():
    board = filled(5, sack=False)
    for _ in range(10_000):
        board.acked(0, (), 0.1)
        board.duplicate()
        assert 0 <= board.in_flight <= 50
    board.acked(50, (), 0.2)
    assert board.in_flight == 0
    board.sent(50, 60, 0.3)
    assert board.in_flight == 10


# -- tail loss probe (RFC 8985 section 7) ------------------------------------------------


def test_when_a_probe_is_due():
    board = filled(3)
    assert board.probe_due(1.0, 0.1) == pytest.approx(1.2)
    assert board.probe_due(1.0, 0.0) == 2.0  # no round trip known
    board.acked(20, (), 0.1)
    assert board.probe_due(1.0, 0.1) == pytest.approx(1.2 + 0.2)  # a single segment: a delayed acknowledgment
    board.acked(30, (), 0.1)
    assert board.probe_due(1.0, 0.1) is None
    assert filled(3, sack=False).probe_due(1.0, 0.1) is None
    board = filled(3)
    board.acked(0, (block(1, 1),), 0.1)
    assert board.probe_due(1.0, 0.1) is None
    board = filled(3)
    board.recover()
    assert board.probe_due(1.0, 0.1) is None


def probing() -> Scoreboard:
    """Three segments, the last one sent again as a probe."""
    board = filled(3)
    entry = board.last()
    assert entry is not None and entry.start == 20
    board.resent(entry, 1.0)
    board.probed(entry)
    assert board.in_flight == 40  # both copies are (RFC 6675 section 4)
    assert board.probe_due(1.0, 0.1) is None
    return board


def test_probe_finds_the_loss():
    board = probing()
    board.acked(0, (block(2, 2),), 1.1)
    board.detect(1.1, RTT, 0.05)
    assert lost(board) == [0, 1]


def test_probe_repairs_the_loss():
    board = probing()
    board.acked(30, (), 1.1)
    assert not board.news & REPAIRED
    board.sent(30, 40, 1.2)
    board.acked(40, (), 1.3)
    assert board.news & REPAIRED
    board.sent(40, 50, 1.4)
    assert board.probe_due(1.4, 0.1) is not None


def test_probe_was_not_needed():
    board = probing()
    board.acked(30, (), 1.05)
    board.acked(30, (block(2, 2),), 1.1)
    assert board.news & DSACK
    board.sent(30, 40, 1.2)
    board.acked(40, (), 1.3)
    assert not board.news


def test_duplicate_without_blocks_ends_the_probe():
    """Section 7.4.2 case 2: a peer that sends no DSACK had the segment already."""
    board = probing()
    board.acked(30, (), 1.05)
    assert board.probing
    board.acked(30, (), 1.1)
    assert not board.probing
    board.sent(30, 40, 1.2)
    board.acked(40, (), 1.3)
    assert not board.news


def test_probe_with_new_data():
    board = filled(3)
    board.sent(30, 40, 1.0)
    board.probed(None)
    board.acked(40, (), 1.1)
    assert not board.news
    board.sent(40, 50, 1.0)
    assert board.probe_due(1.0, 0.1) is not None


# -- against a model that walks over everything ------------------------------------------


class Model:
    """The scoreboard written down plainly: a dictionary of bytes, and lists that are walked from end to end."""

    def __init__(self) -> None:
        self.segments: list[dict] = []
        self.bytes: dict[int, str] = {}  # "flying", "sacked", "lost"; acknowledged ones are gone
        self.copies: dict[int, int] = {}
        self.una = self.high = 0
        self.rack: tuple[float, int] | None = None
        self.rack_rtt = 0.0
        self.fack = 0
        self.reordering = self.probing = False
        self.recovering = False
        self.recover_until = -1
        self.resent_ever = self.dsacks = 0
        self.mult, self.persist, self.round = 1, 16, -1

    def of(self, segment: dict) -> str:
        return self.bytes[segment["start"]]

    def put(self, segment: dict, state: str, copies: int) -> None:
        for number in range(segment["start"], segment["end"]):
            self.bytes[number] = state
            self.copies[number] = copies

    @property
    def pipe(self) -> int:
        return sum(self.copies.values())

    def count(self, state: str) -> int:
        return sum(1 for value in self.bytes.values() if value == state)

    def sent(self, end: int, now: float) -> None:
        segment = {"start": self.high, "end": end, "at": now, "again": 0}
        self.segments.append(segment)
        self.put(segment, "flying", 1)
        self.high = end

    def lost(self) -> list[dict]:
        return [segment for segment in self.segments if self.of(segment) == "lost"]

    def resent(self, segment: dict, now: float) -> None:
        self.put(segment, "flying", self.copies[segment["start"]] + 1)
        segment["at"], segment["again"] = now, segment["again"] + 1
        self.resent_ever += 1

    def came(self, segment: dict, end: int, now: float, min_rtt: float, echoed: float) -> None:
        if end > self.fack:
            self.fack = end
        elif end < self.fack and not segment["again"]:
            self.reordering = True
        if segment["again"] and (echoed < segment["at"] or now - segment["at"] < min_rtt):
            return
        if self.rack is None or (segment["at"], end) > self.rack:
            self.rack, self.rack_rtt = (segment["at"], end), now - segment["at"]

    def acked(self, ack: int, blocks: list[tuple[int, int]], now: float, min_rtt: float, echoed: float) -> int:
        """Bytes newly delivered."""
        delivered = 0
        before, una = self.una, max(self.una, min(ack, self.high))
        self.una = una
        for segment in list(self.segments):
            if segment["end"] <= una and self.of(segment) != "sacked":
                self.came(segment, segment["end"], now, min_rtt, echoed)
            for number in range(segment["start"], min(segment["end"], una)):
                delivered += self.bytes.pop(number) != "sacked"
                del self.copies[number]
            segment["start"] = max(segment["start"], una)
            if segment["end"] <= una:
                self.segments.remove(segment)
        if blocks:
            (left, right), second = blocks[0], blocks[1] if len(blocks) > 1 else (0, 0)
            possible = 0 <= left < right <= self.high and self.dsacks < self.resent_ever
            if possible and (right <= una or (second[0] <= left and right <= second[1])):
                self.dsacks += 1
                # Beyond the RFC: what was late and not lost shows that the network reorders.
                self.reordering = self.reordering or not self.probing
                if una >= self.round:
                    self.round, self.mult, self.persist = self.high, self.mult + 1, 16
        for left, right in sorted(blocks[:4]):
            if right > self.high:
                continue
            for segment in self.segments:
                if max(left, una) <= segment["start"] and segment["end"] <= right and self.of(segment) != "sacked":
                    self.put(segment, "sacked", 0)
                    delivered += segment["end"] - segment["start"]
                    self.came(segment, segment["end"], now, min_rtt, echoed)
        if self.recovering and una >= self.recover_until and una > before:
            self.recovering = False
            self.persist -= 1
            if self.persist <= 0:
                self.mult = 1
        return delivered

    def detect(self, now: float, srtt: float, min_rtt: float) -> float | None:
        """Section 6.2 of RFC 8985, steps 4 and 5, word by word."""
        if self.rack is None:
            return None
        sacked = sum(1 for segment in self.segments if self.of(segment) == "sacked")
        reo_wnd = min(self.mult * min_rtt / 4, srtt)
        if not self.reordering and (self.recovering or sacked >= 3):
            reo_wnd = 0.0
        waiting = []
        for segment in self.segments:
            if self.of(segment) == "flying" and (segment["at"], segment["end"]) < self.rack:
                remaining = segment["at"] + self.rack_rtt + reo_wnd - now
                if remaining <= 1e-6:
                    self.put(segment, "lost", 0)
                else:
                    waiting.append(now + remaining)
        return min(waiting, default=None)

    def time_out(self) -> None:
        renege = self.of(self.segments[0]) == "sacked"
        for segment in self.segments:
            if renege or self.of(segment) != "sacked":
                self.put(segment, "lost", 0)
        self.recover()

    def recover(self) -> None:
        self.recovering, self.recover_until = True, self.high

    def undo(self) -> None:
        for segment in self.lost():
            self.put(segment, "flying", 1)
        if self.recovering:
            self.recovering = False
            self.persist -= 1
            if self.persist <= 0:
                self.mult = 1


class Machine(RuleBasedStateMachine):
    """Random sending, acknowledging and forging, on both."""

    @initialize()
    def begin(self) -> None:
        self.board, self.model, self.now = Scoreboard(MSS, True, 0), Model(), 1.0

    @rule(sizes=st.lists(st.integers(1, MSS), min_size=1, max_size=8), gap=st.sampled_from([0.0, 0.0, 0.001, 0.01]))
    def send(self, sizes, gap):
        for size in sizes:
            high = self.board.high
            self.board.sent(high, high + size, self.now)
            self.model.sent(high + size, self.now)
            self.now += gap

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.1, 0.3]))
    def wait(self, seconds):
        self.now += seconds

    def acknowledge(self, ack, blocks, min_rtt=0.02, back=float("inf")):
        echoed = self.now - back if back != float("inf") else float("inf")
        una = self.model.una
        self.model.probing = self.board.probing
        delivered = self.model.acked(ack, blocks, self.now, min_rtt, echoed)
        self.board.acked(ack, blocks, self.now, min_rtt, echoed)
        assert self.board.delivered == delivered
        assert self.board.newly_acked == self.model.una - una
        assert bool(self.board.news & REORDERED) <= self.model.reordering

    @rule(data=st.data(), back=st.sampled_from([float("inf"), 0.0, 0.05, 0.2]))
    def honest(self, data, back):
        """Up to a border, with blocks on borders."""
        borders = [self.model.una] + [segment["end"] for segment in self.model.segments]
        ack = data.draw(st.sampled_from(borders[: max(len(borders) // 3, 1)]))
        blocks = []
        for _ in range(data.draw(st.integers(0, 3))):
            left = data.draw(st.sampled_from(borders))
            blocks.append((left, data.draw(st.sampled_from([b for b in borders if b >= left]))))
        self.acknowledge(ack, blocks, back=back)

    @rule(ack=st.integers(-20, 120), blocks=st.lists(st.tuples(st.integers(-50, 150), st.integers(-50, 150)), max_size=6))
    def hostile(self, ack, blocks):
        una = self.model.una
        self.acknowledge(una + ack // 8, [(una + left, una + right) for left, right in blocks])

    @rule()
    def everything(self):
        self.acknowledge(self.model.high, [])

    @rule(srtt=st.sampled_from([0.02, 0.1]))
    def detect(self, srtt):
        found, expected = self.board.detect(self.now, srtt, 0.02), self.model.detect(self.now, srtt, 0.02)
        assert (found is None) == (expected is None)
        assert found is None or found == pytest.approx(expected)

    @rule(count=st.integers(1, 6))
    def repeat(self, count):
        for _ in range(count):
            entry = self.board.next_lost()
            if entry is None:
                assert not self.model.lost()
                break
            segment = self.model.lost()[0]
            assert (entry.start, entry.end, entry.resent, entry.lost) == (segment["start"], segment["end"], segment["again"], True)
            self.board.resent(entry, self.now)
            self.model.resent(segment, self.now)

    @rule()
    def probe(self):
        entry = self.board.last()
        assert (entry is None) == (not self.model.segments)
        if entry is not None and not entry.sacked:
            assert entry.end == self.model.high
            self.board.resent(entry, self.now)
            self.board.probed(entry)
            self.model.resent(self.model.segments[-1], self.now)

    @precondition(lambda self: self.model.segments)
    @rule()
    def time_out(self):
        self.board.time_out()
        self.model.time_out()

    @rule()
    def recover(self):
        self.board.recover()
        self.model.recover()

    @rule()
    def undo(self):
        self.board.undo()
        self.model.undo()

    @invariant()
    def same(self):
        board, model = self.board, self.model
        assert (board.una, board.high, len(board)) == (model.una, model.high, len(model.segments))
        assert board.in_flight == model.pipe >= 0
        assert (board.lost_bytes, board.sacked_bytes) == (model.count("lost"), model.count("sacked"))
        assert board.reordering_seen == model.reordering
        assert board.recovering == model.recovering
        head = model.lost()
        entry = board.next_lost()
        assert (entry.start if entry else None) == (head[0]["start"] if head else None)
        if board.calm:
            assert not head and not model.count("sacked") and model.pipe == model.high - model.una
        left = model.una
        for run in zip(board._left, board._right, strict=True):
            assert left <= run[0] < run[1]
            assert all(model.bytes[number] == "sacked" for number in range(*run))
            left = run[1] + 1


Machine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAgainstModel = Machine.TestCase


@pytest.mark.parametrize("seed", range(30))
def test_long_lives_against_the_model(seed):
    """What chance rarely builds in a few steps: long flights, often reordered, lost again and probed, with the windows of real ones."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    both = Machine()
    both.begin()
    for _ in range(250):
        borders = [both.model.una] + [segment["end"] for segment in both.model.segments]
        what = rng.random()
        if what < 0.25 and len(borders) < 40:
            both.send([rng.randint(1, MSS) for _ in range(rng.randint(1, 12))], rng.choice([0.0, 0.001, 0.005]))
        elif what < 0.40:
            both.wait(rng.choice([0.001, 0.005, 0.02]))
        elif what < 0.65:
            steps = rng.choice([0, 0, 0, rng.randint(1, 3), rng.randint(1, len(borders))])
            ack = borders[min(steps, len(borders) - 1)]
            blocks = []
            for _ in range(rng.randint(0, 3)):
                left = rng.randrange(len(borders))
                blocks.append((borders[left], borders[min(left + rng.randint(1, 4), len(borders) - 1)]))
            if rng.random() < 0.1:
                blocks.insert(0, (max(both.model.una - 20, 0), both.model.una))
            both.acknowledge(ack, blocks, back=rng.choice([float("inf"), 0.0, 0.03, 0.1]))
        elif what < 0.85:
            both.detect(rng.choice([0.02, 0.1]))
        elif what < 0.96:
            both.repeat(rng.randint(1, 6))
        elif what < 0.97:
            both.probe()
        elif what < 0.98:
            both.recover()
        elif what < 0.99:
            both.undo()
        elif both.model.segments:
            both.time_out()
        both.same()


# -- through a network -------------------------------------------------------------------


class Receiver:
    """What a peer makes of segments: cumulative acknowledgment, three SACK blocks, DSACK; with `reneges` it sometimes drops
    what it holds out of order."""

    def __init__(self, rng: random.Random, reneges: bool) -> None:
        self.rng, self.reneges = rng, reneges
        self.have: set[int] = set()
        self.next = 0

    def segment(self, start: int, end: int) -> tuple[int, list[tuple[int, int]]]:
        fresh = [number for number in range(start, end) if number >= self.next and number not in self.have]
        blocks = [] if fresh else [(start, end)]
        self.have.update(fresh)
        while self.next in self.have:
            self.have.discard(self.next)
            self.next += 1
        if self.reneges and self.rng.random() < 0.02:
            self.have.clear()
        runs: list[list[int]] = []
        for number in sorted(self.have):
            if runs and runs[-1][1] == number:
                runs[-1][1] += 1
            else:
                runs.append([number, number + 1])
        runs.sort(key=lambda run: not run[0] <= start < run[1])
        return self.next, blocks + [(left, right) for left, right in runs[: 3 - len(blocks)]]


@pytest.mark.parametrize("kind", ["sack", "newreno", "reneging", "forging"])
@pytest.mark.parametrize("seed", range(12))
def test_everything_arrives(kind, seed):
    """Loss up to 30 % both ways, reordering and duplication: all is delivered, each time with bounded work."""
    rng = random.Random(seed * 7919 + len(kind))
    loss, jitter, repeat = rng.choice([0.0, 0.02, 0.1, 0.3]), rng.choice([0.0, 0.01, 0.08]), rng.choice([0.0, 0.1])
    print(f"seed {seed} {kind}: loss {loss} jitter {jitter} repeat {repeat}")
    board = Scoreboard(MSS, kind != "newreno", 0)
    receiver = Receiver(rng, kind == "reneging")
    total, window = 3000, 40 * MSS
    now, serial, rto_at, wake = 0.0, 0, 1.0, None
    queue: list[tuple] = []

    def put(*what) -> None:
        nonlocal serial
        for _ in range(1 + (rng.random() < repeat)):
            if rng.random() >= loss:
                serial += 1
                queue.append((now + 0.05 + rng.random() * jitter, serial, *what))
                queue.sort()

    def output() -> None:
        while board.in_flight + MSS <= window:
            entry = board.next_lost()
            if entry is not None:
                board.resent(entry, now)
                put("segment", entry.start, entry.end)
            elif board.high < total and board.high - board.una < 4 * window:
                start = board.high
                board.sent(start, min(start + MSS, total), now)
                put("segment", start, board.high)
            else:
                break

    def heard(ack: int, blocks: list[tuple[int, int]]) -> None:
        nonlocal rto_at, wake
        before = board.una
        board.acked(ack, blocks, now, 0.1)
        if board.newly_acked:
            rto_at = now + 1.0
        elif not board.sack and ack == before:
            board.duplicate()
        wake = board.detect(now, 0.15, 0.1)

    output()
    for _ in range(60_000):
        if board.una >= total:
            break
        at = min(queue[0][0] if queue else 1e9, rto_at, wake if wake is not None else 1e9)
        now = max(now, at)
        if queue and queue[0][0] <= now:
            _, _, what, first, second = queue.pop(0)
            if what == "segment":
                put("ack", *receiver.segment(first, second))
            else:
                heard(first, second)
        elif wake is not None and wake <= now:
            wake = board.detect(now, 0.15, 0.1)
        elif rto_at <= now:
            board.time_out()
            rto_at = now + 1.0
        if kind == "forging" and rng.random() < 0.1:
            # Who pretends that data arrived delays them, at most until a time-out shows that the peer does not have them.
            board.acked(board.una, [(rng.randrange(-50, 400) + board.una, rng.randrange(-50, 400) + board.una)], now, 0.1)
        if board.lost_bytes and not board.recovering:
            board.recover()
        output()
        assert board.in_flight >= 0 and board.lost_bytes >= 0 and board.sacked_bytes >= 0
        # Without SACK it is an estimate: duplicates that stood for copies, not for what arrived, are taken back later.
        assert board.in_flight <= (window if board.sack else board.high - board.una + window)
        assert board.lost_bytes + board.sacked_bytes <= board.high - board.una
    assert board.una == total and receiver.next >= total, (board.una, receiver.next)
    assert (board.in_flight, board.lost_bytes, board.sacked_bytes, len(board)) == (0, 0, 0, 0)
    if not loss and not jitter and kind == "sack":
        assert board.retransmissions == 0


# -- bounded work ------------------------------------------------------------------------


class Lines:
    """Counts executed lines of the scoreboard: a measure of work that no busy machine changes."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Lines:
        def local(frame, event, argument):
            self.count += event == "line"
            return local

        def trace(frame, event, argument):
            return local if frame.f_code.co_filename == module.__file__ else None

        self._before = sys.gettrace()
        sys.settrace(trace)
        return self

    def __exit__(self, *exc) -> None:
        sys.settrace(self._before)


MANY = 10_000


def test_ten_thousand_in_flight_cost_an_ack_what_ten_do():
    """Acknowledged in order, and SACKed one after the other above a hole."""
    costs = {}
    for count in (100, MANY):
        board = filled(count)
        with Lines() as lines:
            for last in range(2, 52):
                board.acked(MSS, (block(2, last),), 0.5)
                board.detect(0.5, RTT, 0.1)
        costs[count] = lines.count / 50
    assert costs[MANY] <= costs[100] * 1.1
    board = filled(MANY)
    with Lines() as lines:
        for number in range(2, MANY, 2):
            board.acked(number * MSS, (), 0.5)
    assert lines.count / (MANY / 2) < 40


def test_hostile_blocks_cost_what_they_cover():
    """Every second segment SACKed; then the same, huge and shifted blocks over and over: each segment is worth its few lines once."""
    board = filled(MANY)
    with Lines() as lines:
        acks = 0
        for first in range(1, MANY - 8, 8):
            board.acked(0, [block(first + step, first + step) for step in (0, 2, 4, 6)], 0.5)
            acks += 1
    assert lines.count / acks < 4 * 60
    rng = random.Random(5)
    with Lines() as lines:
        for _ in range(500):
            first = rng.randrange(1, MANY - 1)
            board.acked(0, [block(first, first)] * 2 + [(first * MSS + 1, first * MSS + 9), block(first | 1, first | 1)], 0.5)
    assert lines.count / 500 < 4 * 60
    with Lines() as lines:
        for _ in range(500):
            board.acked(0, [block(1, MANY - 1)] * 4, 0.5)
    # The first one joins 5000 runs and marks 5000 segments; the rest find nothing to do.
    assert lines.count < 60 * MANY + 500 * 100
    with Lines() as lines:
        for _ in range(500):
            board.acked(0, [block(1, MANY - 1)] * 4, 0.5)
            board.detect(0.6, RTT, 0.1)
    assert lines.count / 500 < 150


def test_each_transmission_is_judged_once():
    """RACK's walk: losses spread over all of a large flight, found by thousands of acknowledgments."""
    board = filled(MANY, gap=1e-5)
    with Lines() as lines:
        for last in range(3, MANY, 4):
            board.acked(0, (block(last - 2, last),), 0.5, 0.01)
            board.detect(0.5, RTT, 0.01)
            while (entry := board.next_lost()) is not None:
                board.resent(entry, 0.5)
    assert board.retransmissions == MANY // 4
    assert lines.count / (MANY / 4) < 4 * 75


def test_entries_do_not_pile_up():
    """Acknowledged segments are let go while others stay in flight for ever."""
    board = Scoreboard(MSS, True, 0)
    for number in range(50_000):
        board.sent(number * MSS, (number + 1) * MSS, 0.0)
        if number >= 100:
            board.acked((number - 99) * MSS, (), 0.1)
    assert len(board) == 100 and len(board._entries) <= 1100


def test_sent_has_no_dictionary():
    assert not hasattr(Sent(0, 1, 0.0), "__dict__") and not hasattr(Scoreboard(1, True, 0), "__dict__")
