"""Handshakes that the host answers itself: RFC 9293 sections 3.5 and 3.10.7, RFC 7323, 6191, 6298, 6528, 3168."""

from __future__ import annotations

import itertools

import pytest

from acceltcp.host.tcp import State

from .bench import (
    ACK,
    CWR,
    ECE,
    FIN,
    M32,
    PEER_MAC,
    PSH,
    RST,
    SYN,
    Bench,
    Talk,
    data,
    passive,
    read,
    syn_options,
)


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("ts", [False, True])
@pytest.mark.parametrize("wscale", [None, 0, 7, 14])
@pytest.mark.parametrize("sack", [False, True])
def test_options_are_granted_when_asked_for(v6, ts, wscale, sack):
    """RFC 7323 sections 2.2 and 3.2, RFC 2018 section 2: an option is sent in the SYN-ACK only if the SYN had it; the MSS always
    is, and is the MTU without headers (RFC 6691)."""
    bench = Bench()
    bench.listen(wscale=5)
    talk = Talk(bench, v6=v6, ts=ts, wscale=wscale, sack=sack, mss=1300)
    (answer,) = talk.say(SYN)
    assert answer.flags == SYN | ACK and answer.ack == talk.iss + 1
    assert answer.mss == 1500 - 20 - (40 if v6 else 20)
    assert (answer.ts is not None) == ts and (4 in answer.options) == sack
    assert answer.wscale == (None if wscale is None else 5)
    if ts:
        assert answer.ts[1] == talk.tsval() and answer.ts[0] == bench.clock()
    assert not bench.accepted
    talk.say(window=1000)
    connection = bench.accepted[0]
    assert connection.state is State.ESTABLISHED
    assert connection.mss == 1300 - (12 if ts else 0)
    assert connection.snd_wnd == 1000 << (wscale or 0)
    assert not bench.endpoint.handshakes.embryos


@pytest.mark.parametrize("ts", [False, True])
@pytest.mark.parametrize("sack", [False, True])
def test_what_we_switch_off_is_refused(ts, sack):
    bench = Bench(timestamps=ts, sack=sack)
    bench.listen()
    (answer,) = Talk(bench).say(SYN)
    assert (answer.ts is not None) == ts and (4 in answer.options) == sack


@pytest.mark.parametrize(("v6", "mss"), [(False, 536), (True, 1220)])
def test_a_peer_that_says_no_segment_size(v6, mss):
    """RFC 9293 section 3.7.1: 536 bytes for IPv4, 1220 for IPv6."""
    bench = Bench()
    _, connection, _ = passive(bench, v6=v6, mss=None, ts=False)
    connection.write(bytes(5000))
    assert {len(out.payload) for out in bench.turn()[:-1]} == {mss}


def test_window_of_a_syn_ack_is_never_scaled():
    """RFC 7323 section 2.2."""
    bench = Bench()
    bench.listen(window=60_000, wscale=9)
    talk = Talk(bench)
    (answer,) = talk.say(SYN)
    assert answer.window == 60_000
    talk.say()
    (answer,) = talk.say(ACK, b"x" * 1448) or bench.run(0.1)
    assert 60_000 <= (answer.window << 9) + 1448 <= 65_536


def test_the_syn_ack_is_repeated_with_back_off_and_given_up():
    """RFC 6298 sections 2.1 and 5.5: 1 s, doubled each time; `synack_retries` times; then nothing is left of it."""
    bench = Bench(synack_retries=4)
    bench.listen()
    talk = Talk(bench)
    (first,) = talk.say(SYN)
    again = bench.run(120)
    times = [first.time, *(out.time for out in again)]
    assert [round(b - a, 6) for a, b in itertools.pairwise(times)] == [1, 2, 4, 8]
    assert all((out.seq, out.ack, out.flags) == (first.seq, first.ack, first.flags) for out in again)
    assert not bench.endpoint.handshakes.embryos and bench.endpoint.next_deadline() is None
    # What comes now belongs to nothing: RFC 9293 section 3.10.7.1.
    (reset,) = talk.say(ACK, seq=talk.seq)
    assert reset.flags == RST and reset.seq == talk.rcv and not bench.accepted


def test_a_repeated_syn_is_answered_at_once_with_the_same():
    """RFC 9293 section 3.8.1: the same segment again; one more embryo is none."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    (first,) = talk.say(SYN)
    bench.run(0.3)
    (second,) = talk.say(SYN, seq=talk.iss)
    assert (second.seq, second.ack) == (first.seq, first.ack)
    assert len(bench.endpoint.handshakes.embryos) == 1


def test_a_repeated_syn_is_answered_where_it_came_from():
    """One SYN with an odd source address must not send every SYN-ACK astray: nobody but the client knows that they do not come,
    and all that it can do is to repeat the SYN. A group of stations is no address to answer to."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    odd, group = bytes.fromhex("0200000000aa"), bytes.fromhex("0300000000aa")
    (astray,) = talk.say(SYN, mac=odd)
    assert astray.frame[:6] == odd
    bench.run(0.3)
    for source, answered in ((PEER_MAC, PEER_MAC), (group, PEER_MAC)):
        (answer,) = talk.say(SYN, seq=talk.iss, mac=source)
        assert answer.frame[:6] == answered and (answer.seq, answer.ack) == (astray.seq, astray.ack)
    assert [out.frame[:6] for out in bench.run(1.5)] == [PEER_MAC], "repeated by time"
    talk.say()
    assert bench.accepted[0].peer.mac == PEER_MAC


def test_a_syn_with_another_number_begins_anew():
    """RFC 9293 section 3.10.7.4, SYN-RECEIVED from LISTEN: the client has forgotten and begins again."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    again = Talk(bench, iss=0x7777_0000)
    (answer,) = again.say(SYN)
    assert answer.ack == again.iss + 1
    again.say()
    assert bench.accepted[0].irs == again.iss


def test_the_backlog_is_bounded_and_the_oldest_gives_way():
    bench = Bench(syn_backlog=10)
    bench.listen()
    talks = [Talk(bench, port) for port in range(5000, 5030)]
    for talk in talks:
        talk.say(SYN)
        bench.run(0.001)
        assert len(bench.endpoint.handshakes.embryos) <= 10
    assert bench.endpoint.stats["syn_overflow"] == 20
    assert talks[0].say(seq=talks[0].iss + 1)[0].flags == RST
    for talk in talks[20:]:
        talk.say()
    assert len(bench.accepted) == 10 and not bench.endpoint.handshakes.embryos


@pytest.mark.parametrize(("offset", "ends"), [(0, True), (1, False), (-1, False), (30_000, False)])
def test_reset_in_syn_received(offset, ends):
    """RFC 9293 section 3.10.7.4, RFC 5961 section 3.2: only the exact number returns it to LISTEN."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    assert talk.say(RST, seq=talk.seq + offset) == []
    assert bool(bench.endpoint.handshakes.embryos) != ends
    if not ends:
        talk.say()
        assert bench.accepted


@pytest.mark.parametrize("wrong", [-1, 1, 1 << 20, 1 << 31])
def test_wrong_acknowledgment_in_syn_received(wrong):
    """RFC 9293 section 3.5.2, group 2: <SEQ=SEG.ACK><CTL=RST>, and the state stays."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    (reset,) = talk.say(ack=talk.rcv + wrong)
    assert reset.flags == RST and reset.seq == talk.rcv + wrong & M32
    assert not bench.accepted
    talk.say()
    assert bench.accepted


@pytest.mark.parametrize("flags", [0, PSH, FIN, SYN | ACK, FIN | PSH])
def test_without_acknowledgment_nothing_opens(flags):
    """RFC 9293 section 3.10.7.4: no ACK bit: drop. SYN-ACK belongs to no handshake of ours."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    talk.say(flags, seq=talk.seq)
    assert not bench.accepted and len(bench.endpoint.handshakes.embryos) == 1


def test_data_and_fin_on_the_third_segment():
    """RFC 9293 section 3.10.7.4: processing goes on in ESTABLISHED with the rest of the same segment."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    answer = talk.say(ACK | FIN | PSH, b"question")
    connection = bench.accepted[0]
    assert read(connection) == b"question" and connection.state is State.CLOSE_WAIT
    assert answer[-1].ack == talk.seq


def test_data_that_overtake_the_third_segment():
    """Any acceptable acknowledgment finishes the handshake; what lies before the data is asked for."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    (answer,) = talk.say(ACK, b"world", seq=talk.seq + 6)
    assert bench.accepted and answer.ack == talk.seq and answer.sack == [(talk.seq + 6, talk.seq + 11)]
    talk.say(ACK, b"hello ")
    assert read(bench.accepted[0]) == b"hello world"


def test_data_on_a_syn_are_not_acknowledged():
    """RFC 9293 section 3.10.7.2 lets data on a SYN be queued; we leave them to be sent again: only the SYN is acknowledged."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    (answer,) = talk.say(SYN, b"early")
    assert answer.ack == talk.iss + 1


def test_a_paused_listener_answers_no_syn():
    bench = Bench()
    listener = bench.listen()
    early, late = Talk(bench, 4000), Talk(bench, 4001)
    early.say(SYN)
    listener.paused = True
    assert late.say(SYN) == []
    early.say()  # begun before
    assert len(bench.accepted) == 1
    listener.paused = False
    assert late.say(SYN, seq=late.iss)


def test_an_unwanted_connection_may_come_later():
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    bench.accepting = False
    assert talk.say() == [] and not talk.reset
    assert bench.endpoint.stats["unwanted"] == 1
    bench.accepting = True
    talk.say(ACK, b"again")
    assert read(bench.accepted[0]) == b"again"


def test_listeners_by_address():
    """A listener on an address comes before the one for all; unbinding ends its handshakes."""
    bench = Bench()
    general = bench.listen(80)
    special = bench.listen(80, bytes((10, 0, 0, 2)), mss=900)
    with pytest.raises(OSError, match="already a listener on port 80"):
        bench.endpoint.listen(80, special)
    four, six = Talk(bench), Talk(bench, v6=True)
    assert four.say(SYN)[0].mss == 900 and six.say(SYN)[0].mss == 1440
    bench.endpoint.unlisten(80, bytes((10, 0, 0, 2)))
    assert [embryo.listener for embryo in bench.endpoint.handshakes.embryos.values()] == [general]
    bench.endpoint.unlisten(80)
    (reset,) = Talk(bench, 4001).say(SYN)
    assert reset.flags == RST | ACK


@pytest.mark.parametrize("raw", [b"\2\5\5\0\0", b"\2\0\0\0", b"\3\4\7\0", b"\x08\x09" + bytes(10), b"\2\3\5\0"], ids=bytes.hex)
def test_malformed_options_of_a_syn(raw):
    """As in the NIC: the SYN is dropped (docs/first-connection)."""
    bench = Bench()
    bench.listen()
    assert Talk(bench).say(SYN, options=raw + b"\0" * (-len(raw) % 4)) == []
    assert bench.endpoint.stats["bad_options"] == 1 and not bench.endpoint.handshakes.embryos


# -- ECN -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "flags", "granted"),
    [(True, ECE | CWR, True), (True, 0, False), (True, ECE, False), (True, CWR, False), (False, ECE | CWR, False)],
)
def test_ecn_is_granted_to_who_asks(ours, flags, granted):
    """RFC 3168 section 6.1.1: an ECN-setup SYN has ECE and CWR, the SYN-ACK ECE alone; neither is ECN-capable in IP, nor a
    pure acknowledgment, data are."""
    bench = Bench(ecn=ours)
    bench.listen()
    talk = Talk(bench)
    (answer,) = talk.say(SYN | flags)
    assert answer.flags == SYN | ACK | (ECE if granted else 0) and answer.tos & 3 == 0
    talk.say()
    bench.accepted[0].write(b"data")
    (out,) = bench.turn()
    assert out.tos & 3 == (2 if granted else 0)


def test_a_repeated_syn_ack_asks_no_more_for_ecn():
    """RFC 3168 section 6.1.1.1: perhaps the network drops segments for these flags."""
    bench = Bench(ecn=True)
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN | ECE | CWR)
    (again,) = bench.run(1.5)
    assert again.flags == SYN | ACK


# -- the same tuple again --------------------------------------------------------------------


def into_time_wait(bench: Bench, **options: object) -> Talk:
    """A connection that we closed first, and both are done."""
    talk, connection, _ = passive(bench, **options)
    connection.shutdown()
    bench.turn()
    talk.say(ACK | FIN)
    assert connection.state is State.TIME_WAIT
    return talk


@pytest.mark.parametrize("ts", [False, True])
def test_a_new_syn_in_time_wait_opens(ts):
    """RFC 9293 section 3.6.1 (MAY-2) and RFC 6191: newer by timestamp, whatever the number is; without timestamps by the number."""
    bench = Bench()
    old = into_time_wait(bench, ts=ts)
    bench.run(0.01)
    number = old.seq - 70_000 if ts else old.seq + 70_000
    new = Talk(bench, old.port, iss=number & M32, ts=ts)
    connection = new.open()
    assert connection is not bench.accepted[0] and bench.accepted[0].state is State.CLOSED
    assert new.irs - old.irs & M32 > 0


@pytest.mark.parametrize("ts", [False, True])
def test_an_old_syn_in_time_wait_is_answered_with_an_acknowledgment(ts):
    """RFC 9293 section 3.10.7.4: an unacceptable SYN gets an ACK that says what the connection is; nothing opens."""
    bench = Bench()
    old = into_time_wait(bench, ts=ts)
    bench.run(0.5)
    raw = syn_options(ts=old.tsval() - 5000 if ts else None)
    answer = old.say(SYN, seq=old.iss, options=raw)
    assert [out.flags for out in answer] == [ACK] and answer[0].ack == old.seq
    assert len(bench.accepted) == 1 and not bench.endpoint.handshakes.embryos


def test_a_syn_without_timestamps_for_a_tuple_that_had_them():
    """RFC 6191 section 2: without timestamps in the SYN its number decides: higher opens, lower does not."""
    bench = Bench()
    old = into_time_wait(bench)
    bench.run(0.1)
    lower = Talk(bench, old.port, iss=old.seq - 5000 & M32, ts=False)
    assert all(not out.flags & SYN for out in lower.say(SYN))
    higher = Talk(bench, old.port, iss=old.seq + 5000 & M32, ts=False)
    assert higher.open().timestamps is False


def test_initial_numbers_follow_the_clock_and_the_tuple():
    """RFC 6528 section 3: ISN = M + F(tuple, secret): the same tuple goes up by 250,000 per second; others are elsewhere."""
    bench = Bench(synack_retries=0)
    bench.listen()
    numbers = []
    for _ in range(4):
        (answer,) = Talk(bench, 4000).say(SYN)
        numbers.append(answer.seq)
        bench.run(2)  # the embryo is gone
    assert [b - a & M32 for a, b in itertools.pairwise(numbers)] == [500_000] * 3
    others = [Talk(bench, port).say(SYN)[0].seq for port in range(5000, 5050)]
    gaps = [b - a & M32 for a, b in itertools.pairwise(others)]
    assert len(set(gaps)) == len(gaps) and max(gaps) - min(gaps) > 1 << 28
    assert Talk(Bench(), 81).say(SYN)[0].flags == RST | ACK
    assert Bench().endpoint.new_iss(bytes(12)) != Bench().endpoint.new_iss(bytes(12))


# -- PAWS in SYN-RECEIVED ---------------------------------------------------------------------


def test_no_timestamps_after_they_were_agreed():
    """RFC 7323 section 3.2: a segment without them is dropped once they were negotiated."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    assert talk.say(options=b"") == [] and not bench.accepted
    talk.say()
    assert bench.accepted


def test_an_old_acknowledgment_does_not_finish_a_handshake():
    """RFC 7323 section 5.2: a timestamp before that of the SYN is that of an earlier connection."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    talk.say(tsval=talk.tsval() - 1000)
    assert not bench.accepted
    talk.say()
    assert bench.accepted


@pytest.mark.parametrize("offset", [-1, 65536 + 128, -50_000, 1 << 31])
def test_numbers_outside_the_window_do_not_finish_a_handshake(offset):
    """RFC 9293 section 3.10.7.4, first check: not acceptable: an ACK (or nothing), dropped."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    assert all(out.flags & (RST | ACK) == ACK for out in talk.say(seq=talk.seq + offset))
    assert not bench.accepted and bench.endpoint.handshakes.embryos


def test_a_full_ring_delays_the_syn_ack():
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    bench.room = 0
    assert talk.say(SYN) == []
    bench.room = 10
    (answer,) = bench.run(1.5)
    assert answer.flags == SYN | ACK
    talk.say()
    assert bench.accepted


def test_a_lost_third_segment():
    """RFC 9293 section 3.10.7.4: the SYN-ACK that comes again is answered; here we are the ones who repeat it until data come."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench)
    talk.say(SYN)
    (again,) = bench.run(1.2)
    talk.say(ACK, b"data")
    assert read(bench.accepted[0]) == b"data"
    assert again.flags & SYN and not [out for out in bench.run(20) if out.flags & SYN]


@pytest.mark.parametrize(("lost", "rto"), [(0, 1.0), (1, 3.0), (2, 3.0)])
def test_first_time_out_of_data(lost, rto):
    """RFC 6298 section 2.1: 1 s without a sample; section 5.7: 3 s when a SYN-ACK had to be repeated."""
    bench = Bench()
    bench.listen()
    talk = Talk(bench, sack=False)
    talk.say(SYN)
    bench.run([0, 1.5, 4][lost])
    talk.say()
    bench.accepted[0].write(b"x")
    (first,) = bench.turn()
    again = data(bench.run(8 * rto))
    times = [first.time, *(out.time for out in again)]
    assert [round(b - a, 3) for a, b in itertools.pairwise(times)] == [rto, 2 * rto, 4 * rto]


def test_segments_of_the_wrong_kind_for_a_listener():
    """RFC 9293 section 3.10.7.2: RST ignored; ACK reset; without any of both dropped or reset (our endpoint, as CLOSED: reset)."""
    bench = Bench()
    bench.listen()
    assert Talk(bench, 1).say(RST) == []
    (reset,) = Talk(bench, 2).say(ACK, ack=77)
    assert (reset.flags, reset.seq) == (RST, 77)
    (reset,) = Talk(bench, 3).say(SYN | ACK, ack=78)
    assert (reset.flags, reset.seq) == (RST, 78)
    assert Talk(bench, 4).say(SYN | RST) == []
    assert not bench.endpoint.handshakes.embryos
