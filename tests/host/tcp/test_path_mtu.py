"""Path MTU discovery: RFC 1191, RFC 8201, RFC 5927 (forged errors)."""

from __future__ import annotations

import random

import pytest

from acceltcp.host.net.icmp import IcmpErrorKind
from acceltcp.host.tcp import State

from ..pair import Pair, Path, User
from .bench import ACK, PEERS, Bench, active, data, passive

TOO_BIG = IcmpErrorKind.TOO_BIG


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("mtu", [1280, 1400])
@pytest.mark.parametrize("who", [active, passive])
def test_segments_are_cut_anew(v6, mtu, who):
    """RFC 1191 section 6.4, RFC 8201 section 5.4: what is in flight goes again in packets that fit, and all that follows."""
    bench = Bench()
    peer, connection, _ = who(bench, v6=v6)
    stream = random.Random(1).randbytes(40_000)
    connection.write(stream)
    first = bench.turn()
    assert {out.packet for out in first[:-1]} == {1500}
    # Whatever is larger is lost on the way; the errors come back.
    peer.got.clear()
    peer.rcv = first[0].seq
    peer.follow = False
    for out in first:
        bench.icmp(TOO_BIG, connection, out.seq, mtu)
    after = bench.out[bench.out.index(first[-1]) + 1 :]
    assert after and after[0].seq == first[0].seq
    peer.follow = True
    for out in after:
        peer.heard(out)
    for _ in range(200):
        if len(peer.got) == len(stream):
            break
        peer.say()
        bench.run(0.01)
    later = bench.out[bench.out.index(after[0]) :]
    assert max(out.packet for out in later) == mtu
    assert bytes(peer.got) == stream


def test_cut_anew_at_once_without_waiting_for_a_time_out():
    """RFC 1191 section 6.4: the error stands for the loss; it is no sign of congestion: the window stays, in segments."""
    bench = Bench()
    _, connection, _ = active(bench)
    connection.write(bytes(8 * 1448))
    first = bench.turn()
    assert connection.congestion.cwnd == 10 * 1448
    before = len(bench.out)
    bench.icmp(TOO_BIG, connection, first[0].seq, 1300)
    assert bench.out[before].time == first[0].time and sum(len(out.payload) for out in bench.out[before:]) == 8 * 1448
    assert connection.congestion.cwnd == 10 * (1300 - 52) and connection.congestion.ssthresh > 1 << 20


@pytest.mark.parametrize("offset", [-1, -70_000, 3 * 1448, 3 * 1448 + 1, 1 << 31])
def test_errors_about_what_is_not_in_flight_are_ignored(offset):
    """RFC 5927 section 4.1: the quoted sequence number must be of data in flight."""
    bench = Bench()
    _, connection, _ = active(bench)
    connection.write(bytes(3 * 1448))
    bench.turn()
    for kind in IcmpErrorKind:
        assert not bench.icmp(kind, connection, connection.snd_una + offset, 1300)
    assert connection.mss == 1448 and connection.soft_error is None


def test_errors_about_other_connections_are_ignored():
    bench = Bench()
    _, connection, _ = active(bench)
    assert not bench.endpoint.icmp_error(TOO_BIG, 1300, bytes(12), connection.snd_una & 0xFFFFFFFF)


@pytest.mark.parametrize(("v6", "floor"), [(False, 552), (True, 1280)])
@pytest.mark.parametrize("mtu", [0, 68, 500])
def test_the_floor(v6, floor, mtu):
    """RFC 8201 section 4: never below 1280. IPv4: 552 is our least (RFC 5927 section 7 advises one)."""
    bench = Bench()
    _, connection, _ = active(bench, v6=v6)
    connection.write(bytes(20_000))
    (first, *_) = bench.turn()
    assert bench.icmp(TOO_BIG, connection, first.seq, mtu)
    assert connection.mss == floor - (60 if v6 else 40) - 12


def test_an_error_never_makes_packets_larger():
    """RFC 1191 section 3, RFC 8201 section 4: an estimate is not raised by an error."""
    bench = Bench()
    _, connection, _ = active(bench)
    connection.write(bytes(20_000))
    (first, *_) = bench.turn()
    bench.icmp(TOO_BIG, connection, first.seq, 1000)
    bench.icmp(TOO_BIG, connection, first.seq, 1400)
    bench.icmp(TOO_BIG, connection, first.seq, 9000)
    assert connection.mss == 1000 - 52


def test_a_path_that_is_known_to_be_narrow():
    """Connections that begin later, either way, use it from the start; our own MSS option stays (it says what we receive)."""
    bench = Bench()
    bench.net.path_mtus[PEERS[False]] = 1100
    bench.net.path_mtus[PEERS[True]] = 1290
    for who in (active, passive):
        for v6, size in ((False, 1100 - 52), (True, 1290 - 72)):
            _, connection, _ = who(bench, v6=v6, port=100 + size) if who is passive else who(bench, v6=v6)
            assert connection.mss == size
            connection.write(bytes(5000))
            assert max(len(out.payload) for out in bench.turn()) == size
    assert {out.mss for out in bench.out if out.mss} == {1460, 1440}


def test_too_big_about_a_fin():
    """Nothing to cut: it is sent again as it is."""
    bench = Bench()
    peer, connection, _ = active(bench)
    connection.shutdown()
    (fin,) = bench.turn()
    bench.icmp(TOO_BIG, connection, fin.seq, 600)
    peer.say(ACK, ack=fin.end)
    assert connection.state is State.FIN_WAIT_2


@pytest.mark.parametrize("fin", [False, True])
def test_nothing_too_large_goes_afterwards(fin):
    """Neither by a tail loss probe nor after time-outs, though the congestion window holds most of it back."""
    bench = Bench()
    peer, connection, _ = active(bench)
    peer.follow = False
    connection.write(bytes(10 * 1448))
    if fin:
        connection.shutdown()
    first = bench.turn()
    bench.icmp(TOO_BIG, connection, first[-1].seq, 552)
    assert len(bench.out) - bench.out.index(first[-1]) - 1 == 10
    bench.run(20)
    later = bench.out[bench.out.index(first[-1]) + 1 :]
    assert max(out.packet for out in later) == 552
    peer.follow = True
    peer.rcv = first[0].seq
    for _ in range(50):
        peer.say()
        bench.run(0.5)
    assert len(peer.got) == 10 * 1448 and peer.fin == fin


def test_a_storm_of_errors():
    """RFC 5927 section 7.2: an attacker who guesses the numbers gets packets of the floor at worst; each error costs one retransmission of what is
    in flight at most, and nothing once the size does not change."""
    bench = Bench()
    _, connection, _ = active(bench)
    connection.write(bytes(10 * 1448))
    (first, *_) = bench.turn()
    for mtu in range(1400, 68, -3):
        before = len(bench.out)
        bench.icmp(TOO_BIG, connection, first.seq, mtu)
        assert len(bench.out) - before <= 10 * 1448 // connection.mss + 1
    assert connection.mss == 552 - 52 and not connection.closed
    count = len(data(bench.out))
    for _ in range(100):
        bench.icmp(TOO_BIG, connection, first.seq, 100)
    assert len(data(bench.out)) == count


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_a_router_in_the_middle(v6, loss):
    """Everything above 1350 bytes is dropped on the cable and answered (sometimes) with an error, both ways; all data arrive."""
    pair = Pair(Path(loss=loss), seed=(v6, loss))
    told = random.Random(3)
    answering = User(pair.b, 150_000, seed=2, expect=1)
    pair.b.serve(user=lambda: answering, setup=False)
    opening = pair.a.connect(User(pair.a, 100_000, seed=1, expect=2), v6=v6)
    size = 32 if v6 else 8

    def router(side):
        def look(frame: bytes) -> bytes | None:
            if len(frame) - 14 <= 1350:
                return frame
            if told.random() < 0.7:
                l4 = 54 if v6 else 34
                at = l4 - size
                src, dst = frame[at : at + size // 2], frame[at + size // 2 : l4]
                key = dst + src + frame[l4 + 2 : l4 + 4] + frame[l4 : l4 + 2]
                seq = int.from_bytes(frame[l4 + 4 : l4 + 8], "big")

                def tell() -> None:
                    side.endpoint.now = pair.now
                    side.endpoint.icmp_error(TOO_BIG, 1350, key, seq)

                pair.at(pair.now + 0.003, tell)
            return None

        return look

    pair.to_b.tamper, pair.to_a.tamper = router(pair.a), router(pair.b)
    pair.until(lambda: opening.received == 150_000 and answering.received == 100_000, 100)
    assert pair.a.endpoint.stats["path_mtu"] and pair.b.endpoint.stats["path_mtu"]
