"""Every field of `ConnectionOptions` as it shows on the wire, set before the connection begins and while it lives."""

from __future__ import annotations

import math
import re

import pytest

from acceltcp.host.tcp import ConnectionOptions, State, TcpConnection, TcpSettings
from acceltcp.host.tcp import block as block_module
from acceltcp.host.tcp.settings import DEFAULT_OPTIONS, SharedOptions

from .bench import ACK, ECE, RST, SYN, Bench, Out, Talk, active, data, passive, read

MSS = 1448


def with_(**names: object) -> ConnectionOptions:
    options = ConnectionOptions()
    for name, value in names.items():
        setattr(options, name, value)
    return options


def change(bench: Bench, connection: TcpConnection, **names: object) -> list[Out]:
    """Set options of a connection that lives."""
    for name, value in names.items():
        setattr(connection.options, name, value)
    connection.changed()
    return bench.turn()


@pytest.mark.parametrize("v6", [False, True])
def test_tos_and_ttl(v6):
    """RFC 2474: the upper six bits, in the SYN already; RFC 3168 section 5: the lower two are not the user's."""
    bench = Bench()
    peer, connection, _ = active(bench, v6=v6, options=with_(tos=0xB8 | 3, ttl=7))
    peer.say(ACK, b"x")
    connection.write(b"data")
    connection.shutdown()
    bench.turn()
    bench.run(3)
    assert len(bench.out) > 4 and all((out.tos, out.ttl) == (0xB8, 7) for out in bench.out)


@pytest.mark.parametrize("v6", [False, True])
def test_tos_and_ttl_changed(v6):
    bench = Bench()
    peer, connection, _ = passive(bench, v6=v6)
    assert all((out.tos, out.ttl) == (0, 64) for out in bench.out)
    change(bench, connection, tos=0x28, ttl=200)
    connection.write(b"data")
    (out,) = bench.turn()
    assert (out.tos, out.ttl, out.payload) == (0x28, 200, b"data")
    assert (out.src, out.sport, out.dport) == (bench.out[0].src, peer.to, peer.port)


def test_tos_with_ecn():
    """RFC 3168 section 5: ECT(0) beside the DSCP, on data only."""
    bench = Bench(ecn=True)
    connection, _ = bench.connect(options=with_(tos=0x28))
    peer = Talk(bench, 7, bench.out[0].sport)
    peer.heard(bench.out[0])
    peer.say(SYN | ACK | ECE)
    connection.write(b"x")
    assert [out.tos for out in bench.turn()] == [0x28 | 2]
    assert peer.say(ACK, bytes(2 * MSS))[-1].tos == 0x28


@pytest.mark.parametrize("maxseg", [88, 536, 1000, 1460, 9000])
def test_maxseg(maxseg):
    """TCP_MAXSEG: what we say (RFC 9293 section 3.7.1), and what we send, less options (RFC 6691)."""
    bench = Bench()
    _, connection, _ = active(bench, options=with_(maxseg=maxseg))
    assert bench.out[0].mss == min(maxseg, 1460)
    connection.write(bytes(20_000))
    assert {len(out.payload) for out in bench.turn()[:3]} == {min(maxseg, 1460) - 12}


def test_maxseg_set_on_a_connection_that_lives():
    """It bounds what is cut from now on."""
    bench = Bench()
    _, connection, _ = passive(bench)
    change(bench, connection, maxseg=600)
    connection.write(bytes(5000))
    out = bench.turn()
    assert max(len(one.payload) for one in out) == 600 - 12


@pytest.mark.parametrize("name", ["cubic", "reno"])
@pytest.mark.parametrize("default", ["cubic", "reno"])
def test_congestion(name, default):
    """RFC 9438 section 4.6: beta 0.7; RFC 5681 equation 4: 0.5. Seen by what may be in flight after a loss."""
    for options in (with_(congestion=name), None):
        bench = Bench(congestion=default)
        peer, connection, _ = active(bench, options=options)
        expected = {"cubic": 0.7, "reno": 0.5}[name if options is not None else default]
        peer.follow = False
        connection.write(bytes(400 * MSS))
        flight = bench.turn()
        for _ in range(2):
            bench.run(0.1)
            for out in flight[1::2]:
                peer.say(ack=out.end)
            flight = [out for out in bench.out if out.payload and out.seq >= connection.snd_una & 0xFFFFFFFF]
        before = connection.snd_nxt - connection.snd_una
        bench.run(0.1)
        peer.say(ack=flight[0].seq, blocks=((flight[1].seq, flight[8].end),))
        assert connection.congestion.name == (name if options is not None else default)
        assert connection.congestion.ssthresh == pytest.approx(before * expected, abs=2 * MSS)


def test_unknown_congestion_control():
    bench = Bench()
    with pytest.raises(ValueError, match=r"cubic.*reno"):
        bench.connect(options=with_(congestion="vegas"))
    bench.run(10)
    assert not bench.endpoint.connections


def test_congestion_changed():
    bench = Bench()
    _, connection, _ = active(bench)
    connection.write(bytes(5 * MSS))
    bench.turn()
    cwnd = connection.congestion.cwnd
    change(bench, connection, congestion="reno")
    assert connection.congestion.name == "reno" and connection.congestion.cwnd == cwnd


@pytest.mark.parametrize("size", [4096, 30_000, 65_535, 200_000])
@pytest.mark.parametrize("when", ["before", "after"])
def test_rcvbuf(size, when):
    """SO_RCVBUF: a peer that does all that the window lets it do leaves so much, and no more. A window that was promised is kept
    (RFC 9293 section 3.8.6)."""
    bench = Bench(receive_buffer=1 << 20)
    peer, connection, _ = active(bench, options=with_(rcvbuf=size) if when == "before" else None)
    promised = size if when == "before" else max(size, 65_536)
    if when == "after":
        change(bench, connection, rcvbuf=size)
    edge = peer.seq + bench.out[0].window

    for _ in range(2000):
        for out in bench.out[-3:]:
            if not out.flags & SYN:
                edge = max(edge, out.ack + (out.window << 7))
        part = min(MSS, edge - peer.seq)
        if part <= 0:
            break
        peer.say(ACK, bytes(part))
        bench.run(0.05)
    have = connection.buffered
    # An edge that the window's unit cannot tell is rounded up, once per acknowledgment, rather than moved back.
    assert size - MSS <= have <= min(promised + 127 * len(bench.out), promised + 0x10000 + MSS), have
    assert bench.out[-1].window == 0
    assert len(read(connection)) == have


def test_quickack_changed():
    bench = Bench()
    peer, connection, _ = passive(bench)
    assert peer.say(ACK, b"x") == []
    change(bench, connection, quickack=True)
    bench.run(0.1)
    (out,) = peer.say(ACK, b"x")
    assert out.ack == peer.seq


def test_nodelay_and_cork_together():
    """Cork wins, as on Linux: TCP_NODELAY is remembered for when it is taken out."""
    bench = Bench()
    _, connection, _ = active(bench, options=with_(nodelay=True, cork=True))
    connection.write(b"a")
    assert bench.turn() == []
    assert [out.payload for out in change(bench, connection, cork=False)] == [b"a"]
    connection.write(b"b")
    assert [out.payload for out in bench.turn()] == [b"b"]


def test_user_timeout_set_late():
    bench = Bench()
    _, connection, user = active(bench)
    connection.write(b"x")
    bench.run(1)
    change(bench, connection, user_timeout=2.0)
    bench.run(1.5, lambda: bool(user.errors))
    assert isinstance(user.errors[0], TimeoutError)


def test_options_of_one_are_not_those_of_another():
    """Connections that have none of their own share the defaults, which nobody can change; whoever asks for them gets his own."""
    bench = Bench()
    _, one, _ = passive(bench, port=4000)
    _, two, _ = passive(bench, port=4001)
    assert one.opts is two.opts is DEFAULT_OPTIONS
    change(bench, one, tos=0x20, ttl=9, maxseg=700, nodelay=True)
    two.write(bytes(1400))
    (out,) = bench.turn()
    assert (out.tos, out.ttl, len(out.payload)) == (0, 64, 1400)
    assert one.options is one.opts is not DEFAULT_OPTIONS and two.opts is DEFAULT_OPTIONS
    assert (DEFAULT_OPTIONS.tos, DEFAULT_OPTIONS.ttl, DEFAULT_OPTIONS.maxseg, DEFAULT_OPTIONS.nodelay) == (0, 64, 0, False)


def test_shared_options_cannot_be_changed():
    with pytest.raises(AttributeError, match="ttl cannot be set here"):
        DEFAULT_OPTIONS.ttl = 9
    own = DEFAULT_OPTIONS.copy()
    own.ttl = 9
    assert (own.ttl, DEFAULT_OPTIONS.ttl) == (9, 64) and not isinstance(own, SharedOptions)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("keepidle", -1, "from 0.001 to 32767 seconds"), ("keepidle", 0, "from 0.001"), ("keepintvl", 0, "from 0.001"),
        ("keepintvl", math.nan, "from 0.001"), ("keepcnt", 0, "from 1 to 127"), ("keepcnt", 2.0, "an integer from 1 to 127"),
        ("user_timeout", -0.1, "from 0 to 2147483.647 seconds"), ("user_timeout", "3", "a number from 0"),
        ("linger", -1, "from 0 to 2147483.647 seconds"), ("linger", math.inf, "from 0"), ("ttl", 0, "from 1 to 255"),
        ("ttl", 999, "from 1 to 255"), ("ttl", None, "an integer from 1 to 255"), ("tos", 999, "from 0 to 255"),
        ("rcvbuf", -1, "from 4096 to 1073741824"), ("rcvbuf", 1e6, "an integer from"), ("sndbuf", 0, "from 4096"),
        ("maxseg", 1, "from 88 to 32767"), ("maxseg", False, "an integer from 88"), ("congestion", "bbr", "one of cubic, reno"),
        ("congestion", None, "one of cubic, reno"), ("nodelay", "no", "True or False"), ("keepalive", 1, "True or False"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(name, value, expected):
    """The same bounds as Linux has for its socket options (tcp(7), ip(7)); what was there stays."""
    options = ConnectionOptions()
    before = getattr(options, name)
    with pytest.raises(ValueError, match=re.escape(f"{name} must be {expected}") + r".*, not " + re.escape(repr(value))):
        setattr(options, name, value)
    assert getattr(options, name) == before
    connection = passive(Bench())[1]
    with pytest.raises(ValueError, match=f"{name} must be"):
        setattr(connection.options, name, value)


def test_values_at_the_bounds_and_options_that_do_not_exist():
    options = with_(
        keepidle=0.001, keepintvl=32767, keepcnt=127, user_timeout=0, linger=None, ttl=255, tos=255, rcvbuf=0, sndbuf=4096,
        maxseg=0, congestion="",
    )  # fmt: skip
    assert (options.keepidle, options.linger, options.rcvbuf, options.maxseg) == (0.001, None, 0, 0)
    with pytest.raises(AttributeError, match="hoplimit"):
        options.hoplimit = 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"options must be a ConnectionOptions, not \{'ttl': 3\}"):
        passive(Bench())[1].options = {"ttl": 3}


def test_a_copy_is_another_with_the_same_values():
    options = with_(nodelay=True, tos=8, linger=3.0, congestion="reno", keepcnt=2)
    other = options.copy()
    assert all(getattr(other, name) == getattr(options, name) for name in ConnectionOptions.__slots__)
    other.tos = 16
    assert options.tos == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mtu", 575), ("mtu", 65536), ("receive_buffer", 2047), ("retries", -1), ("syn_backlog", 0), ("window_scale", 15),
        ("initial_rto", 0.0), ("min_rto", 0.0), ("initial_segments", 0), ("memory_limit", 1), ("reassembly_pieces", 0),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=f"{name} must be from .* not {value}"):
        TcpSettings(**{name: value})


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"congestion": "bbr"}, "congestion must be one of cubic, reno, not 'bbr'"),
        ({"linger": -1}, "linger must be from 0 to .* seconds, not -1"),
        ({"time_wait": -1}, "time_wait must be from 0"), ({"fin_wait_2": -1}, "fin_wait_2 must be from 0"),
        ({"delayed_ack": -1}, "delayed_ack must be from 0"), ({"delayed_ack": 0.5}, "delayed_ack must be from 0 to 0.499 seconds, not 0.5"),
        ({"unknown_hold": -1}, "unknown_hold must be from 0"), ({"unknown_limit": -1}, "unknown_limit must be from 1"),
        ({"challenge_interval": -1}, "challenge_interval must be from 0"),
        ({"min_rto": 10, "max_rto": 1}, r"max_rto must be at least min_rto \(10\), not 1"),
        ({"receive_buffer": 1e6}, "receive_buffer must be an integer from 2048 to 1073741824, not 1000000.0"),
        ({"retries": True}, "retries must be an integer from 0 to 100, not True"), ({"retries": "5"}, "retries must be an integer .* not '5'"),
        ({"lazy": "no"}, "lazy must be True or False, not 'no'"), ({"max_rto": "a"}, "max_rto must be a number from .* seconds, not 'a'"),
        ({"memory_limit": 1 << 19}, r"memory_limit must be at least receive_buffer \(1048576\), not 524288"),
        ({"ports": 5}, "ports must be two ports, like .* not 5"), ({"ports": "ab"}, "ports must be two ports, like .* not 'ab'"),
        ({"ports": (1, 2.0)}, "ports must be an integer from 1 to 65535, not 2.0"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(names, text):
    with pytest.raises(ValueError, match=text):
        TcpSettings(**names)


def test_a_control_block_that_cannot_be_built_is_none(monkeypatch):
    """Whatever fails in `build`, the connection is as before: it can be reset, and built later."""
    bench = Bench()
    _, connection, _ = passive(bench)
    assert not connection.built

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    for name in ("Scoreboard", "make", "RttEstimator", "Reassembly", "Prr"):
        with monkeypatch.context() as patch:
            patch.setattr(block_module, name, fail)
            with pytest.raises(MemoryError):
                connection.build()
        assert not connection.built and connection.state is State.ESTABLISHED
    connection.abort()
    assert connection.closed and bench.out[-1].flags & RST and bench.out[-1].dport == 4000
    other = passive(bench, port=4001)[1]
    other.abort()  # lazy, and nothing ever asked for a block
    assert other.closed and not other.built and bench.out[-1].flags & RST and bench.out[-1].dport == 4001


@pytest.mark.parametrize("ports", [(0, 10), (10, 9), (1, 65536)])
def test_ports_that_cannot_be(ports):
    with pytest.raises(ValueError, match="two ports"):
        TcpSettings(ports=ports)


def test_delayed_ack_zero_acknowledges_at_once():
    bench = Bench(delayed_ack=0.0)
    peer, _, _ = passive(bench)
    peer.say(ACK, b"x")
    bench.run(0.0)
    assert data(bench.out) == [] and bench.out[-1].ack == peer.seq
