"""Active opens: RFC 9293 sections 3.5 and 3.10.7.3, RFC 6298, 5461, 6056, 6191, 3168, 5961."""

from __future__ import annotations

import errno
import itertools

import pytest

from acceltcp.host.net.icmp import IcmpErrorKind
from acceltcp.host.tcp import ConnectionOptions, State

from .bench import (
    ACK,
    CWR,
    ECE,
    FIN,
    M32,
    OURS,
    PEERS,
    PSH,
    RST,
    SYN,
    Bench,
    Talk,
    active,
    data,
    passive,
    read,
    syn_options,
)


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("ts", [False, True])
@pytest.mark.parametrize("sack", [False, True])
def test_our_syn(v6, ts, sack):
    """RFC 9293 section 3.7.1 (MSS), RFC 7323 section 2.2 and 3.2, RFC 2018 section 2."""
    bench = Bench(timestamps=ts, sack=sack, mtu=1400)
    connection, _ = bench.connect(v6=v6)
    (syn,) = bench.out
    assert syn.flags == SYN and syn.ack == 0 and syn.dport == 7
    assert (syn.src, syn.dst) == (OURS[v6], PEERS[v6])
    assert syn.mss == 1400 - 20 - (40 if v6 else 20)
    assert (syn.ts is not None) == ts and (4 in syn.options) == sack
    assert syn.wscale == 7 and syn.window == 65535  # not scaled
    if ts:
        assert syn.ts == (bench.clock(), 0)
    assert connection.state is State.SYN_SENT


@pytest.mark.parametrize(("size", "shift"), [(65535, 0), (65536, 1), (1 << 20, 5), (1 << 24, 9), (1 << 30, 14)])
def test_our_window_shift_is_enough_for_our_buffer(size, shift):
    """RFC 7323 section 2.2: the smallest shift that can tell it, at least that of the settings."""
    assert size >> shift <= 65536
    bench = Bench(window_scale=0)
    options = ConnectionOptions()
    options.rcvbuf = size
    bench.connect(options=options)
    assert bench.out[0].wscale == max(0, shift)


@pytest.mark.parametrize("retries", [0, 3])
def test_syn_is_sent_again_and_given_up(retries):
    """RFC 6298 sections 2.1, 5.5; RFC 9293 section 3.8.3: R2 for SYN."""
    bench = Bench(syn_retries=retries)
    connection, user = bench.connect()
    bench.run(100)
    assert [round(b.time - a.time, 6) for a, b in itertools.pairwise(bench.out)] == [1, 2, 4][:retries]
    assert len({(out.seq, out.sport) for out in bench.out}) == 1
    assert isinstance(user.errors[0], TimeoutError) and user.heard == ["closed"]
    assert bench.now > 1000 and connection.closed and not bench.endpoint.connections
    # The port is free at once, and a late answer is reset.
    late = Talk(bench, 7, bench.out[0].sport)
    (reset,) = late.say(SYN | ACK, ack=connection.iss + 1)
    assert reset.flags == RST and reset.seq == connection.iss + 1 & M32


def test_syn_back_off_has_a_limit():
    """RFC 6298 section 2.5."""
    bench = Bench(syn_retries=10, max_rto=5.0)
    bench.connect()
    bench.run(60)
    gaps = [round(b.time - a.time, 6) for a, b in itertools.pairwise(bench.out)]
    assert gaps == [1, 2, 4, 5, 5, 5, 5, 5, 5, 5]


def test_first_time_out_after_a_lost_syn():
    """RFC 6298 section 5.7: 3 s, and Karn: the handshake gives no sample when its SYN was repeated."""
    bench = Bench(sack=False)
    connection, _ = bench.connect()
    bench.run(1.2)
    peer = Talk(bench, 7, 0)
    peer.answer(connection)
    connection.write(b"x")
    (first,) = data(bench.turn())
    again = data(bench.run(4))
    assert again[0].time - first.time == pytest.approx(3)


def test_the_handshake_gives_the_first_sample():
    """RFC 6298 section 2.2: SRTT = R, RTTVAR = R/2, RTO = SRTT + 4 RTTVAR = 3 R."""
    bench = Bench(sack=False)
    connection, _ = bench.connect()
    bench.run(0.1)
    Talk(bench, 7, 0).answer(connection)
    connection.write(b"x")
    (first,) = data(bench.turn())
    assert data(bench.run(1))[0].time - first.time == pytest.approx(0.3, abs=0.002)


@pytest.mark.parametrize("wrong", [-1, 0, 1, 100_000])
def test_refused_only_by_the_exact_number(wrong):
    """RFC 9293 section 3.10.7.3: RST is acceptable if its ACK is that of our SYN; without ACK it is dropped."""
    bench = Bench()
    connection, user = bench.connect()
    peer = Talk(bench, 7, bench.out[0].sport)
    assert peer.say(RST, seq=0) == [] and not user.heard
    assert peer.say(RST | ACK, seq=0, ack=connection.iss + 1 + wrong) == []
    if wrong == 0:
        assert isinstance(user.errors[0], ConnectionRefusedError) and connection.closed
        assert not bench.endpoint.connections and bench.endpoint.next_deadline() is None
    else:
        assert connection.state is State.SYN_SENT and not user.heard


@pytest.mark.parametrize("wrong", [-1, 1, 1 << 31])
def test_wrong_acknowledgment_in_syn_sent(wrong):
    """RFC 9293 section 3.10.7.3: <SEQ=SEG.ACK><CTL=RST>, also with SYN; the state stays."""
    bench = Bench()
    connection, _ = bench.connect()
    peer = Talk(bench, 7, bench.out[0].sport)
    for flags in (ACK, SYN | ACK, FIN | ACK):
        (reset,) = peer.say(flags, seq=55, ack=connection.iss + 1 + wrong)
        assert reset.flags == RST and reset.seq == connection.iss + 1 + wrong & M32
    assert connection.state is State.SYN_SENT
    peer.seq = peer.iss
    peer.answer(connection)
    assert connection.state is State.ESTABLISHED


@pytest.mark.parametrize("flags", [ACK, PSH | ACK, FIN | ACK, 0, PSH])
def test_without_syn_nothing_opens(flags):
    """RFC 9293 section 3.10.7.3, fifth: neither SYN nor RST: drop."""
    bench = Bench()
    connection, _ = bench.connect()
    peer = Talk(bench, 7, bench.out[0].sport)
    assert peer.say(flags, b"x", seq=9, ack=connection.iss + 1) == []
    assert connection.state is State.SYN_SENT


def test_the_third_segment():
    """RFC 9293 section 3.10.7.3: <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>, with our timestamp and theirs echoed."""
    bench = Bench()
    peer, connection, _ = active(bench, wscale=3, window=1000)
    third = bench.out[-1]
    assert third.flags == ACK and third.seq == connection.iss + 1 and third.ack == peer.iss + 1 and not third.payload
    assert third.ts == (bench.clock(), peer.tsval())
    assert connection.snd_wnd == 1000  # that of a SYN-ACK is not scaled
    peer.say(window=1000)
    assert connection.snd_wnd == 8000


def test_data_written_before_the_handshake_is_over():
    """RFC 9293 section 3.10.2: SEND in SYN-SENT queues; the data carry the acknowledgment."""
    bench = Bench()
    connection, _user = bench.connect()
    connection.write(b"early")
    connection.shutdown()
    assert bench.turn() == []
    peer = Talk(bench, 7, 0)
    answer = peer.answer(connection)
    assert [(out.flags, out.payload) for out in answer] == [(ACK | PSH | FIN, b"early")]
    assert connection.state is State.FIN_WAIT_1


@pytest.mark.parametrize("ts", [False, True])
def test_data_and_fin_on_the_syn_ack(ts):
    """RFC 9293 section 3.10.7.3: other controls or text are processed further (or queued until ESTABLISHED)."""
    bench = Bench()
    connection, user = bench.connect()
    peer = Talk(bench, 7, 0, ts=ts)
    opening = bench.out[-1]
    peer.to = opening.sport
    peer.heard(opening)
    answer = peer.say(SYN | ACK | FIN, b"banner")
    assert answer[-1].ack == peer.seq == peer.iss + 8
    assert user.heard[0] == "connected" and read(connection) == b"banner" and connection.state is State.CLOSE_WAIT


@pytest.mark.parametrize(("v6", "mss"), [(False, 536), (True, 1220)])
def test_a_peer_without_options(v6, mss):
    """RFC 9293 section 3.7.1, RFC 7323: what the SYN-ACK does not have is off."""
    bench = Bench()
    peer, connection, _ = active(bench, v6=v6, ts=False, sack=False, wscale=None, mss=None)
    assert not connection.timestamps and not connection.sack
    peer.say(window=40_000)
    assert connection.snd_wnd == 40_000
    connection.write(bytes(3 * mss))
    out = bench.turn()
    assert [len(one.payload) for one in out] == [mss] * 3 and all(not one.options for one in out)
    (answer,) = peer.say(ACK, b"x" * 2 * mss) or bench.run(0.1)
    assert answer.window + 2 * mss <= 65535 + 2 * mss and answer.window > 60_000


def test_malformed_options_of_a_syn_ack():
    bench = Bench()
    connection, _ = bench.connect()
    peer = Talk(bench, 7, 0)
    peer.answer(connection, options=b"\2\0\0\0")
    assert connection.state is State.SYN_SENT


def test_scale_beyond_14_counts_as_14():
    """RFC 7323 section 2.3."""
    bench = Bench()
    connection, _ = bench.connect()
    Talk(bench, 7, 0).answer(connection, options=syn_options(wscale=200))
    assert connection.snd_shift == 14


# -- ECN ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "agreed"), [(ECE, True), (0, False), (ECE | CWR, False), (CWR, False)])
def test_ecn(flags, agreed):
    """RFC 3168 section 6.1.1: SYN with ECE and CWR; the SYN-ACK with ECE alone agrees."""
    bench = Bench(ecn=True)
    connection, _ = bench.connect()
    assert bench.out[0].flags == SYN | ECE | CWR and bench.out[0].tos & 3 == 0
    peer = Talk(bench, 7, bench.out[0].sport)
    peer.heard(bench.out[0])
    peer.say(SYN | ACK | flags)
    assert connection.ecn == agreed
    connection.write(b"x")
    assert bench.turn()[0].tos & 3 == (2 if agreed else 0)


def test_the_second_syn_asks_no_more_for_ecn():
    """RFC 3168 section 6.1.1.1."""
    bench = Bench(ecn=True)
    connection, _ = bench.connect()
    assert bench.run(1.1)[0].flags == SYN
    peer = Talk(bench, 7, bench.out[0].sport)
    peer.heard(bench.out[0])
    peer.say(SYN | ACK | ECE)
    assert connection.state is State.ESTABLISHED and not connection.ecn


# -- simultaneous open -------------------------------------------------------------------


@pytest.mark.parametrize("ts", [False, True])
@pytest.mark.parametrize("last", ["ack", "syn-ack", "data"])
def test_simultaneous_open(ts, last):
    """RFC 9293 section 3.5, figure 7: SYN crosses SYN, each answers SYN-ACK, each takes the other's for the acknowledgment."""
    bench = Bench()
    connection, user = bench.connect()
    peer = Talk(bench, 7, bench.out[0].sport, ts=ts, wscale=2)
    (answer,) = peer.say(SYN)
    assert answer.flags == SYN | ACK and answer.seq == connection.iss and answer.ack == peer.iss + 1
    assert connection.state is State.SYN_RECEIVED and (answer.ts is not None) == ts
    assert not user.heard
    if last == "syn-ack":
        (answer,) = peer.say(SYN | ACK, seq=peer.iss, window=5000)
        assert answer.flags == ACK and connection.snd_wnd == 5000
    else:
        peer.say(ACK, b"text" if last == "data" else b"", window=5000)
        assert connection.snd_wnd == 20_000
    assert connection.state is State.ESTABLISHED and user.heard[0] == "connected"
    if last == "data":
        assert read(connection) == b"text"
    connection.write(b"hello")
    assert bench.turn()[-1].seq == connection.iss + 1


def test_simultaneous_open_repeats_the_syn_ack_and_gives_up():
    """RFC 6298: as any SYN-ACK."""
    bench = Bench(synack_retries=2)
    _, user = bench.connect()
    peer = Talk(bench, 7, bench.out[0].sport)
    (first,) = peer.say(SYN)
    again = bench.run(30)
    times = [first.time, *(out.time for out in again if out.flags & SYN)]
    assert [round(b - a, 6) for a, b in itertools.pairwise(times)] == [1, 2]
    assert isinstance(user.errors[0], TimeoutError)


@pytest.mark.parametrize(("offset", "ends"), [(0, True), (5, False), (-1, False)])
def test_reset_after_a_simultaneous_open(offset, ends):
    """RFC 9293 section 3.10.7.4, SYN-RECEIVED from an active open: the connection was refused; RFC 5961: the exact number."""
    bench = Bench()
    connection, user = bench.connect()
    peer = Talk(bench, 7, bench.out[0].sport)
    peer.say(SYN)
    peer.say(RST, seq=peer.seq + offset)
    if ends:
        assert isinstance(user.errors[0], ConnectionRefusedError)
    else:
        assert connection.state is State.SYN_RECEIVED


def test_old_duplicate_syn_in_syn_sent():
    """RFC 9293 section 3.5, figure 8, seen from the active side: an old SYN looks like a simultaneous open; the reset that our
    answer to it brings ends the attempt (section 3.10.7.4: refused, it came from an active OPEN)."""
    bench = Bench()
    _, user = bench.connect()
    old = Talk(bench, 7, bench.out[0].sport, iss=0x5000)
    (answer,) = old.say(SYN)
    # The peer knows nothing of that SYN: RST with our acknowledgment as its number (section 3.5.2, group 1).
    old.say(RST, seq=answer.ack)
    assert isinstance(user.errors[0], ConnectionRefusedError)


# -- half-open -----------------------------------------------------------------------------


def test_half_open_peer_that_lost_its_memory():
    """RFC 9293 section 3.5.1, figure 9 seen from the side that crashed: our SYN meets an old connection, whose challenge ACK we answer with
    a reset that it believes; the next SYN succeeds."""
    bench = Bench()
    connection, _ = bench.connect()
    peer = Talk(bench, 7, bench.out[0].sport)
    (reset,) = peer.say(ACK, seq=300, ack=100)
    assert reset.flags == RST and reset.seq == 100
    assert connection.state is State.SYN_SENT
    (again,) = bench.run(1.1)
    assert again.flags == SYN and again.seq == connection.iss
    peer.answer(connection)
    assert connection.state is State.ESTABLISHED


def test_half_open_seen_from_the_side_that_remembers():
    """RFC 9293 section 3.5.1, figure 9, and RFC 5961 section 4: a SYN in ESTABLISHED gets a challenge ACK; the RST that follows has the
    exact number and ends the old connection."""
    bench = Bench()
    peer, connection, user = active(bench)
    connection.write(b"x")
    bench.turn()
    expected = peer.seq
    (challenge,) = peer.say(SYN, seq=peer.seq + 4000, options=syn_options(ts=peer.tsval()))
    assert challenge.flags == ACK and challenge.ack == expected
    assert connection.state is State.ESTABLISHED
    peer.say(RST, seq=challenge.ack)
    assert isinstance(user.errors[0], ConnectionResetError)


def test_data_to_a_peer_that_lost_its_memory():
    """RFC 9293 section 3.5.1, figure 10: it answers with a reset whose number is our acknowledgment."""
    bench = Bench()
    peer, connection, user = active(bench)
    connection.write(b"x")
    (out,) = bench.turn()
    peer.say(RST, seq=out.ack)
    assert isinstance(user.errors[0], ConnectionResetError)
    with pytest.raises(ConnectionResetError):
        connection.write(b"more")
    bench.run(100)
    assert not bench.endpoint.connections and user.heard.count("closed") == 1


# -- abort and close while opening --------------------------------------------------------


def test_close_in_syn_sent():
    """RFC 9293 section 3.10.4: the connection is deleted, nothing is sent; a late SYN-ACK is reset (section 3.10.7.1)."""
    bench = Bench()
    connection, user = bench.connect()
    connection.close()
    assert bench.turn() == [] and connection.closed and user.heard == ["closed"]
    peer = Talk(bench, 7, bench.out[0].sport)
    (reset,) = peer.say(SYN | ACK, ack=connection.iss + 1)
    assert reset.flags == RST and reset.seq == connection.iss + 1 & M32


def test_abort_in_syn_received():
    """RFC 9293 section 3.10.5: a reset is sent in SYN-RECEIVED."""
    bench = Bench()
    connection, _ = bench.connect()
    peer = Talk(bench, 7, bench.out[0].sport)
    peer.say(SYN)
    connection.abort()
    reset = bench.out[-1]
    assert reset.flags & RST and reset.seq in (connection.iss, connection.iss + 1 & M32)
    assert connection.closed and not bench.endpoint.connections


# -- the way there -----------------------------------------------------------------------


def test_unknown_neighbour():
    """The SYN waits for the next hop's address; its clock begins then."""
    bench = Bench()
    bench.net.known = False
    connection, user = bench.connect()
    assert bench.out == [] and bench.net.asked == [PEERS[False]]
    bench.run(0.5)
    bench.net.known = True
    bench.endpoint.neighbour_found(PEERS[False])
    (syn,) = bench.turn()
    assert syn.flags == SYN
    (again,) = bench.run(1.0)
    assert again.time - syn.time == pytest.approx(1)
    Talk(bench, 7, 0).answer(connection)
    assert user.heard == ["connected"]


def test_the_search_for_the_neighbour_is_no_round_trip():
    """RFC 6298 section 2.2: R is from the SYN to its acknowledgment."""
    bench = Bench()
    bench.net.known = False
    connection, _ = bench.connect()
    bench.run(0.8)
    bench.net.known = True
    bench.endpoint.neighbour_found(PEERS[False])
    bench.run(0.1)
    Talk(bench, 7, 0).answer(connection)
    assert connection.rtt.srtt == pytest.approx(0.1)


def test_neighbour_that_does_not_answer():
    bench = Bench()
    bench.net.known = False
    users = [bench.connect()[1] for _ in range(3)]
    bench.endpoint.neighbour_failed(PEERS[False])
    bench.turn()
    assert all(user.errors[0].errno == errno.EHOSTUNREACH and user.heard == ["closed"] for user in users)
    assert not bench.endpoint.connections and bench.endpoint.next_deadline() is None
    bench.endpoint.neighbour_failed(PEERS[False])
    bench.endpoint.neighbour_found(PEERS[False])
    assert bench.turn() == []


def test_closed_while_the_neighbour_is_asked_for():
    bench = Bench()
    bench.net.known = False
    connection, user = bench.connect()
    connection.abort()
    bench.net.known = True
    bench.endpoint.neighbour_found(PEERS[False])
    assert bench.turn() == [] and user.heard == ["closed"]


def test_no_route():
    bench = Bench()
    bench.net.unreachable = OSError(errno.ENETUNREACH, "no route")
    with pytest.raises(OSError, match="no route"):
        bench.connect()
    assert not bench.endpoint.connections


def test_route_that_goes_while_we_open():
    bench = Bench()
    bench.net.known = False
    _, user = bench.connect()
    bench.net.unreachable = OSError(errno.ENETUNREACH, "no route")
    bench.endpoint.neighbour_found(PEERS[False])
    bench.turn()
    assert user.errors[0].errno == errno.ENETUNREACH


def test_addresses_that_are_not_ours():
    bench = Bench()
    with pytest.raises(OSError, match="none of this NIC") as caught:
        bench.endpoint.connect(PEERS[False], 7, local=bytes((10, 0, 0, 9)))
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("kind", [kind for kind in IcmpErrorKind if kind is not IcmpErrorKind.TOO_BIG])
def test_icmp_ends_an_attempt(kind):
    """RFC 1122 section 4.2.3.9 and RFC 5461 section 4.1: in SYN-SENT an error about our very SYN is told the user."""
    bench = Bench()
    connection, user = bench.connect()
    assert not bench.icmp(kind, connection, connection.iss + 1) and not bench.icmp(kind, connection, connection.iss - 1)
    assert not user.heard
    assert bench.icmp(kind, connection, connection.iss)
    assert user.errors[0].errno == kind.errno and not bench.endpoint.connections


def test_icmp_of_an_established_connection_is_only_remembered():
    """RFC 1122 section 4.2.3.9: soft errors must not abort; they say why when it ends by time-out."""
    bench = Bench(retries=3)
    _, connection, user = active(bench)
    connection.write(b"x")
    bench.turn()
    assert bench.icmp(IcmpErrorKind.HOST_UNREACHABLE, connection, connection.snd_una)
    assert connection.state is State.ESTABLISHED
    bench.run(100)
    assert user.errors[0].errno == errno.EHOSTUNREACH


def test_soft_error_is_forgotten_with_progress():
    bench = Bench(retries=2)
    peer, connection, user = active(bench)
    connection.write(b"x")
    bench.turn()
    bench.icmp(IcmpErrorKind.HOST_UNREACHABLE, connection, connection.snd_una)
    peer.say()
    connection.write(b"y")
    bench.run(100)
    assert isinstance(user.errors[0], TimeoutError)


# -- ports ---------------------------------------------------------------------------------


def test_ports_of_their_own_to_one_destination():
    """RFC 6056: every port of the range can be used once per destination; then there is none."""
    bench = Bench(ports=(40_000, 40_019))
    used = [bench.connect() for _ in range(20)]
    assert {out.sport for out in bench.out} == set(range(40_000, 40_020))
    with pytest.raises(OSError, match="no port from 40000 to 40019 is free") as caught:
        bench.connect()
    assert caught.value.errno == errno.EADDRNOTAVAIL
    bench.connect(8)  # another destination has all of them
    used[3][0].close()
    bench.turn()
    bench.connect()
    assert bench.out[-1].sport == bench.out[3].sport


def test_listening_ports_are_not_taken():
    bench = Bench(ports=(40_000, 40_001))
    bench.listen(40_000)
    bench.connect()
    assert bench.out[-1].sport == 40_001
    with pytest.raises(OSError, match="no port"):
        bench.connect()


def test_a_chosen_port_in_use():
    bench = Bench()
    bench.connect(local_port=5000)
    with pytest.raises(OSError, match="port 5000 is connected") as caught:
        bench.connect(local_port=5000)
    assert caught.value.errno == errno.EADDRINUSE
    bench.connect(8, local_port=5000)


def closed_by_us(bench: Bench, **options: object) -> int:
    """A connection from port 5000 in TIME_WAIT; its snd_nxt."""
    connection, _ = bench.connect(local_port=5000)
    peer = Talk(bench, 7, 0, **options)
    peer.answer(connection)
    connection.shutdown()
    bench.turn()
    peer.say(ACK | FIN)
    assert connection.state is State.TIME_WAIT
    return connection.snd_nxt & M32


@pytest.mark.parametrize("ts", [False, True])
def test_connect_from_a_port_in_time_wait(ts):
    """RFC 6191 section 2 (as a client may with RFC 7323 timestamps, a second later); without them it waits TIME_WAIT out. The new numbers
    are above the old ones (RFC 9293 section 3.4.1)."""
    bench = Bench(time_wait=5.0)
    last = closed_by_us(bench, ts=ts)
    with pytest.raises(OSError, match="port 5000 is connected"):
        bench.connect(local_port=5000)
    bench.run(1.1)
    if ts:
        bench.connect(local_port=5000)
        assert 0 < bench.out[-1].seq - last & M32 < 1 << 31
        return
    with pytest.raises(OSError, match="port 5000 is connected"):
        bench.connect(local_port=5000)
    bench.run(10)
    bench.connect(local_port=5000)
    assert 0 < bench.out[-1].seq - last & M32 < 1 << 31


def test_initial_numbers_of_attempts_rise():
    """RFC 6528: with the clock."""
    bench = Bench()
    numbers = []
    for _ in range(3):
        connection, _ = bench.connect(local_port=5000)
        numbers.append(bench.out[-1].seq)
        connection.close()
        bench.run(1)
    assert [b - a & M32 for a, b in itertools.pairwise(numbers)] == [250_000] * 2


def test_both_ways_between_the_same_ports():
    """A listener on port 80 and a connection out of port 80 to the same host do not disturb each other."""
    bench = Bench()
    _, one, _ = passive(bench, port=4000)
    two, _ = bench.connect(4001, local_port=80)
    peer = Talk(bench, 4001, 0)
    peer.answer(two)
    assert one.state is two.state is State.ESTABLISHED


def test_a_tuple_that_a_listener_has():
    bench = Bench()
    passive(bench, port=4000)
    with pytest.raises(OSError, match="port 80 is connected"):
        bench.connect(4000, local_port=80)


def test_syn_waits_for_room_in_the_ring():
    bench = Bench()
    bench.room = 0
    connection, _ = bench.connect()
    assert bench.out == []
    bench.room = 10
    bench.endpoint.unblock()
    assert [out.flags for out in bench.turn()] == [SYN]
    assert connection.state is State.SYN_SENT
