"""Loss and what only looks like it, end to end: RFC 6675, 6937, 2883, 3522, 6582, 8985, 3168, 2018 section 8."""

from __future__ import annotations

import math
import random

import pytest

from acceltcp.host.tcp import TcpConnection, TcpSettings

from ..pair import Pair, Path, User
from .bench import ACK, CWR, ECE, SYN, Bench, Out, Talk, data

MSS = 1448


def flight(count: int, *, sack: bool = True, ts: bool = True, rtt: float = 0.1, **settings: object) -> tuple[Bench, Talk, TcpConnection, list[Out]]:
    """A connection with `count` full segments in flight, sent a round trip ago; its peer says nothing by itself."""
    bench = Bench(initial_segments=1000, **settings)
    connection, _ = bench.connect()
    bench.run(rtt)
    peer = Talk(bench, 7, 0, sack=sack, ts=ts)
    peer.answer(connection)
    peer.follow = False
    peer.say()  # the first window that is scaled
    connection.congestion.cwnd = count * connection.mss
    connection.write(bytes(count * connection.mss))
    sent = bench.turn()
    assert len(sent) == count
    bench.run(rtt)
    return bench, peer, connection, sent


def test_one_loss_is_repaired_at_once_and_only_once():
    """RFC 6675 section 5, RFC 8985 section 6.2: with three segments SACKed above it the hole is lost; nothing else goes again."""
    _, peer, connection, sent = flight(10)
    out = []
    for last in range(1, 10):
        out += data(peer.say(ack=sent[0].seq, blocks=((sent[1].seq, sent[last].end),)))
    assert [one.seq for one in out] == [sent[0].seq] and connection.retransmissions == 1
    cwnd = connection.congestion.cwnd
    peer.say(ack=sent[9].end)
    assert not connection.recovering and connection.congestion.cwnd >= cwnd and not connection.in_trouble


@pytest.mark.parametrize("lost", [(0, 1, 2), (0, 4, 8), (3, 5, 7), (2,), (0, 2, 4, 6, 8)])
def test_many_losses_are_repaired_in_a_round_trip(lost):
    """With SACK every hole of one flight goes again in one recovery, each once (RFC 6675), as PRR lets it (RFC 6937)."""
    bench, peer, connection, sent = flight(20)
    there: list[tuple[int, int]] = []
    out: list[Out] = []
    una = sent[0].seq
    for number, segment in enumerate(sent):
        if number in lost:
            continue
        if segment.seq == una:
            una = segment.end
            out += data(peer.say(ack=una))
            continue
        there = [(segment.seq, segment.end), *(block for block in there if block[1] != segment.seq)]
        out += data(peer.say(ack=una, blocks=tuple(there[:3])))
    out += data(bench.run(0.09))
    assert sorted(one.seq for one in out) == [sent[number].seq for number in lost]
    assert connection.retries == 0 and connection.retransmissions == len(lost)


def test_recovery_sends_no_more_than_prr_allows():
    """RFC 6937 section 3.1: over the recovery new and old segments sent are about ssthresh / RecoverFS of what is delivered."""
    _, peer, connection, sent = flight(40, congestion="reno")
    connection.write(bytes(100 * MSS))
    out: list[Out] = []
    for last in range(1, 40):
        out += data(peer.say(ack=sent[0].seq, blocks=((sent[1].seq, sent[last].end),)))
    assert connection.congestion.ssthresh == 20 * MSS
    assert 18 <= len(out) <= 21


def test_without_sack_three_duplicates():
    """RFC 5681 section 3.2 and RFC 6582: the third duplicate sends the first segment again; a partial acknowledgment the next hole."""
    _, peer, connection, sent = flight(10, sack=False)
    out = [data(peer.say(ack=sent[0].seq)) for _ in range(3)]
    assert [len(one) for one in out] == [0, 0, 1] and out[2][0].seq == sent[0].seq
    (next_hole,) = data(peer.say(ack=sent[4].seq))
    assert next_hole.seq == sent[4].seq and connection.recovering
    peer.say(ack=sent[9].end)
    assert not connection.recovering and connection.retransmissions == 2


@pytest.mark.parametrize("change", ["window", "data", "progress"])
def test_what_is_no_duplicate_acknowledgment(change):
    """RFC 5681 section 2: same number, same window, no data, something outstanding."""
    _, peer, connection, sent = flight(10, sack=False)
    for number in range(6):
        match change:
            case "window":
                peer.say(ack=sent[0].seq, window=60_000 - number)
            case "data":
                peer.say(ACK, b"x", ack=sent[0].seq)
            case "progress":
                peer.say(ack=sent[number].end)
    assert connection.retransmissions == 0


def test_a_delay_spike_is_undone():
    """RFC 3522 (Eifel): the acknowledgment echoes a timestamp older than the retransmission: the first copy had arrived; window and threshold
    come back (RFC 4015)."""
    bench, peer, connection, sent = flight(20)
    cwnd = connection.congestion.cwnd
    echoed = peer.ts_recent
    bench.run(1.5)
    assert connection.retries >= 1 and connection.congestion.cwnd == MSS
    peer.say(ack=sent[4].end, tsecr=echoed)
    assert bench.endpoint.stats["spurious"] == 1 and connection.congestion.cwnd >= cwnd - 5 * MSS
    assert connection.scoreboard.lost_bytes == 0
    before = connection.retransmissions
    peer.say(ack=sent[19].end, tsecr=echoed)
    bench.run(1)
    assert connection.retransmissions == before


def test_a_real_time_out_is_not_undone():
    bench, peer, connection, sent = flight(20)
    bench.run(1.5)
    ssthresh = connection.congestion.ssthresh
    peer.say(ack=sent[0].end, tsecr=peer.ts_recent)
    assert bench.endpoint.stats["spurious"] == 0 and connection.congestion.ssthresh == ssthresh <= 15 * MSS


def test_dsack_undoes_what_was_in_vain():
    """RFC 2883 and RFC 3708: every retransmission is reported as a duplicate: nothing was lost."""
    bench, peer, connection, sent = flight(10, ts=False)
    cwnd = connection.congestion.cwnd
    peer.say(ack=sent[0].seq, blocks=((sent[1].seq, sent[3].end),))
    assert connection.retransmissions == 1
    peer.say(ack=sent[4].end)
    assert connection.congestion.ssthresh < cwnd
    peer.say(ack=sent[4].end, blocks=((sent[0].seq, sent[0].end),))
    assert bench.endpoint.stats["spurious"] == 1
    assert not connection.recovering and connection.congestion.ssthresh >= cwnd


def test_reneging():
    """RFC 2018 section 8: SACKed data may be dropped by the receiver: after a time-out they go again, and are kept until acknowledged."""
    bench, peer, connection, sent = flight(5)
    peer.say(ack=sent[0].seq, blocks=((sent[0].seq, sent[4].end),))
    assert connection.unsent_or_unacked == 5 * MSS
    # A tail loss probe may come first, then the time-out.
    again = [out.seq for out in data(bench.run(5))]
    assert sent[0].seq in again[:2]
    peer.follow = True
    peer.rcv = sent[0].seq
    for _ in range(20):
        bench.run(1)
        peer.say()
    assert len(peer.got) == 5 * MSS and connection.unsent_or_unacked == 0


def test_ecn_slows_down_once_per_round_trip():
    """RFC 3168 sections 6.1.2 and 6.1.3: ECE halves the window once per round trip; CWR on the next new
    segment, ECT on new data, not on retransmissions."""
    bench = Bench(ecn=True, congestion="reno")
    connection, _ = bench.connect()
    peer = Talk(bench, 7, bench.out[0].sport)
    peer.heard(bench.out[0])
    peer.say(SYN | ACK | ECE)
    peer.follow = False
    connection.write(bytes(40 * MSS))
    sent = bench.turn()
    assert all(out.tos & 3 == 2 for out in sent)
    bench.run(0.1)
    before = connection.congestion.cwnd
    after = []
    for number in range(6):
        after += data(peer.say(ACK | ECE, ack=sent[number].end))
    assert connection.congestion.cwnd == pytest.approx(before / 2, abs=2 * MSS)
    assert connection.retransmissions == 0
    for number in range(6, len(sent)):
        after += data(peer.say(ACK, ack=sent[number].end))
    assert [bool(out.flags & CWR) for out in after] == [True] + [False] * (len(after) - 1)


def test_congestion_experienced_is_echoed_until_cwr():
    """RFC 3168 section 6.1.3."""
    bench = Bench(ecn=True)
    bench.listen()
    peer = Talk(bench)
    peer.say(SYN | ECE | CWR)
    peer.say()
    peer.say(ACK, bytes(MSS), ce=True)
    answers = [out for _ in range(6) for out in peer.say(ACK, bytes(MSS))]
    assert answers and all(out.flags & ECE for out in answers)
    peer.say(ACK | CWR, bytes(MSS))
    bench.run(0.1)
    assert not bench.out[-1].flags & ECE


# -- whole transfers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "congestion"), [(0.001, "reno"), (0.01, "reno"), (0.01, "cubic"), (0.05, "cubic")])
def test_throughput_of_a_lossy_wire(loss, congestion):
    """Not much less than MSS / RTT * sqrt(3 / 2p) (Mathis et al. 1997; RFC 5348 section 3.1 with b = 1, no time-outs): half of it at least; CUBIC
    is Reno-friendly where these numbers are (RFC 9438 section 4.3)."""
    rates = []
    for seed in range(3):
        pair = Pair(Path(loss=loss, delay=0.02), Path(delay=0.02), seed=(loss, seed), a=TcpSettings(congestion=congestion))
        answering = User(pair.b, 0, expect=1)
        pair.b.serve(user=lambda one=answering: one)
        opening = pair.a.connect(User(pair.a, 1_500_000, seed=1))
        pair.until(lambda one=answering: one.over or one.received == 1_500_000, 500)
        rates.append(1_500_000 / (pair.now - opening.connected_at))
    expected = MSS / 0.04 * math.sqrt(1.5 / loss)
    assert sorted(rates)[1] > 0.5 * expected, (rates, expected)


@pytest.mark.parametrize("sack", [False, True])
@pytest.mark.parametrize("ts", [False, True])
def test_every_pattern_of_four_losses(sack, ts):
    """Any set of segments of a first flight lost, and all arrives; with SACK without a time-out unless all after some point were lost."""
    rng = random.Random(8)
    for _ in range(25):
        lost = {rng.randrange(12) for _ in range(4)}
        bench, peer, connection, sent = flight(12, sack=sack, ts=ts)
        peer.follow = True
        peer.rcv = sent[0].seq
        arrived = [segment for number, segment in enumerate(sent) if number not in lost]
        for segment in arrived:
            peer.heard(segment)
            blocks = ((segment.seq, segment.end),) if sack and segment.seq != peer.rcv and segment.end != peer.rcv else ()
            peer.say(blocks=blocks)
        for _ in range(40):
            if connection.unsent_or_unacked == 0:
                break
            bench.run(0.1)
            peer.say()
        assert len(peer.got) == 12 * connection.mss and connection.unsent_or_unacked == 0, (lost, sack, ts)
