"""Memory of received data: per connection and in all, and that every byte of it is given back.

`endpoint.buffered` is what all connections keep for their users, in order or not. Whatever happens to connections, it is 0 when they are over.
"""

from __future__ import annotations

import random

import pytest

from acceltcp.host.tcp import ConnectionOptions, State, TcpConnection, TcpSettings

from ..pair import Pair, Path, User
from .bench import ACK, FIN, M32, RST, Bench, Out, Talk, active, passive, read

MSS = 1448


def flood(bench: Bench, peer: Talk, *, limit: int = 1 << 22) -> int:
    """The peer sends all that the window lets it; how much that was."""
    edge, sent = 0, 0
    wide = len(bench.out)
    last: Out | None = next((out for out in reversed(bench.out) if out.dport == peer.port and out.ack), None)
    while sent < limit:
        for out in bench.out[wide:]:
            if out.dport == peer.port:
                last = out
        wide = len(bench.out)
        if last is not None:
            edge = last.ack + (last.window << (0 if last.flags & 2 else 7)) & M32
        room = edge - peer.seq & M32
        if room == 0 or room >= 1 << 31:
            break
        part = min(MSS, room)
        peer.say(ACK, bytes(part))
        sent += part
        if part < MSS:
            bench.run(0.05)
    return sent


def test_a_window_grows_with_its_reader():
    """From 64 KiB up to the limit, and only as the user takes what comes; the edge it may use never shrinks."""
    bench = Bench(receive_buffer=1 << 20)
    peer, connection, _ = active(bench)
    windows = []
    for _ in range(2000):
        windows += [out.window << 7 for out in peer.say(ACK, bytes(MSS))]
        read(connection)
    assert windows[0] <= 1 << 16 and windows[-1] > (1 << 20) - 4 * MSS
    assert max(windows) <= (1 << 20) + 128
    assert bench.endpoint.buffered == 0


def test_a_window_does_not_grow_without_a_reader():
    bench = Bench(receive_buffer=1 << 20)
    peer, connection, _ = active(bench)
    assert flood(bench, peer) <= (1 << 16) + (1 << 16)
    assert connection.buffered == bench.endpoint.buffered < 2 << 16


@pytest.mark.parametrize("sink", [False, True])
def test_taking_by_sink_counts_as_reading(sink):
    bench = Bench(receive_buffer=1 << 20)
    peer, connection, user = active(bench)
    total = 0

    def take(view: memoryview) -> None:
        nonlocal total
        total += len(view)

    if sink:
        connection.sink = take
    else:
        user.on_readable = lambda: take(memoryview(read(connection)))
    for _ in range(1500):
        peer.say(ACK, bytes(MSS))
    assert total == 1500 * MSS and bench.endpoint.buffered == 0
    assert bench.out[-1].window << 7 > 1 << 19


def test_a_sink_that_is_set_later_gets_what_follows_what_was_kept():
    """Data never overtake each other: what is in the buffer is the user's to take first."""
    bench = Bench()
    peer, connection, _ = active(bench)
    got: list[bytes] = []
    peer.say(ACK, b"one ")
    connection.sink = lambda view: got.append(bytes(view))
    peer.say(ACK, b"two ")
    assert read(connection) == b"one two " and not got
    peer.say(ACK, b"three")
    assert got == [b"three"] and bench.endpoint.buffered == 0


def test_memory_limit_for_all():
    """Near it no window opens further: what was promised is still taken, and nothing beyond."""
    limit = 1 << 19
    bench = Bench(memory_limit=limit, receive_buffer=limit)
    bench.listen()
    peers = [Talk(bench, 5000 + number) for number in range(30)]
    for peer in peers:
        peer.open()
        flood(bench, peer)
    assert bench.endpoint.pressed
    assert bench.endpoint.buffered == sum(connection.buffered for connection in bench.accepted)
    # What the windows promised is taken up to twice the limit, and no byte more than a segment beyond.
    assert limit < bench.endpoint.buffered < 2 * limit + MSS
    # Out of order nothing is kept while memory is short.
    before = bench.endpoint.buffered
    late = Talk(bench, 6000)
    late.open()
    late.say(ACK, bytes(MSS), seq=late.seq + MSS)
    assert bench.endpoint.buffered == before
    # Readers bring it back.
    for connection in bench.accepted:
        read(connection)
    assert bench.endpoint.buffered == 0 and not bench.endpoint.pressed
    bench.turn()
    assert flood(bench, peers[0]) > 0


ENDINGS = {
    "read and closed": lambda bench, peer, connection: (read(connection), connection.close(), bench.turn(), peer.say(ACK | FIN), bench.run(5)),
    "closed unread": lambda bench, peer, connection: (connection.close(), bench.turn(), peer.say(ACK | FIN), bench.run(100)),
    "aborted": lambda bench, peer, connection: connection.abort(),
    "reset": lambda bench, peer, connection: peer.say(RST),
    "peer closed, unread": lambda bench, peer, connection: (peer.say(ACK | FIN), connection.close(), bench.turn(), peer.say()),
    "peer closed, shut down, never read": lambda bench, peer, connection: (
        peer.say(ACK | FIN), connection.shutdown(), bench.turn(), peer.say(), bench.run(5),
    ),
    "shut down, TIME_WAIT, never read": lambda bench, peer, connection: (
        connection.shutdown(), bench.turn(), peer.say(ACK | FIN), bench.run(5),
    ),
    "timed out": lambda bench, peer, connection: (connection.write(b"x"), bench.run(2000)),
    "data after close": lambda bench, peer, connection: (connection.close(), bench.turn(), peer.say(), peer.say(ACK, b"late")),
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("unordered", [False, True])
@pytest.mark.parametrize("who", [active, passive])
def test_everything_is_given_back(ending, unordered, who):
    """Unread data that outlive a connection are their user's; the endpoint counts them no longer."""
    bench = Bench()
    peer, connection, _ = who(bench)
    peer.say(ACK, bytes(3000))
    assert bench.endpoint.buffered == 3000
    if unordered:
        hole = peer.seq
        peer.say(ACK, bytes(500), seq=hole + 1000)
        assert bench.endpoint.buffered == 3500
        if ending not in ("aborted", "timed out", "reset"):
            peer.say(ACK, bytes(1000))
            peer.seq = peer.seq + 500 & M32
            assert bench.endpoint.buffered == 4500
    ENDINGS[ending](bench, peer, connection)
    bench.turn()
    assert connection.closed and bench.endpoint.buffered == 0 and not bench.endpoint.connections
    read(connection)
    assert bench.endpoint.buffered == 0


@pytest.mark.parametrize("how", ["syn", "connect", "cookie"])
def test_a_tuple_in_time_wait_with_unread_data_that_is_used_again(how):
    bench = Bench(time_wait=30.0)
    bench.listen()
    if how == "cookie":
        peer = Talk(bench)
        peer.cookie(bytes(2000))
        connection = bench.accepted[-1]
    elif how == "syn":
        peer, connection, _ = passive(bench)
        peer.say(ACK, bytes(2000))
    else:
        connection, _ = bench.connect(local_port=5000)
        peer = Talk(bench, 7, 0)
        peer.answer(connection)
        peer.say(ACK, bytes(2000))
    connection.shutdown()
    bench.turn()
    peer.say(ACK | FIN)
    assert connection.state is State.TIME_WAIT
    bench.run(1.5)
    if how == "connect":
        bench.connect(local_port=5000)
    elif how == "syn":
        Talk(bench, peer.port, iss=peer.seq + 9000 & M32).open()
    else:
        Talk(bench, peer.port, iss=peer.seq + 9000 & M32).cookie(irs=77)
    assert connection.closed and bench.endpoint.buffered == 0
    assert read(connection) == bytes(2000) and bench.endpoint.buffered == 0


def test_reassembly_is_bounded_by_the_window():
    """RFC 9293 section 3.10.7.4: only what lies inside the window (in units of 128) is kept, however it comes."""
    options = ConnectionOptions()
    options.rcvbuf = 20_000
    bench = Bench()
    peer, connection, _ = active(bench, options=options)
    rng = random.Random(3)
    for _ in range(1000):
        start = rng.randrange(1, 40_000)
        peer.say(ACK, bytes(rng.randrange(1, MSS)), seq=peer.seq + start)
    assert bench.endpoint.buffered == connection.reassembly.size <= 20_096
    connection.abort()
    assert bench.endpoint.buffered == 0


def test_reassembly_when_the_end_is_known():
    """Forged data beyond FIN are dropped with it, and given back."""
    bench = Bench()
    peer, connection, _ = active(bench)
    base = peer.seq
    peer.say(ACK, bytes(100), seq=base + 1000)
    peer.say(ACK, bytes(100), seq=base + 5000)
    peer.say(ACK | FIN, bytes(100), seq=base + 1100)
    peer.say(ACK, bytes(1000), seq=base)
    assert connection.fin_received and bench.endpoint.buffered == 1200 and len(read(connection)) == 1200
    assert bench.endpoint.buffered == 0


@pytest.mark.parametrize("seed", range(8))
def test_storms_of_connections_leave_nothing(seed):
    """Two stacks, bad cable, users that abort, close early, never read or leave half-way."""
    rng = random.Random(seed)
    brief = TcpSettings(retries=5, fin_wait_2=5.0, max_rto=5.0)
    flows = {"flows": 8}
    pair = Pair(Path(loss=0.03, reorder=0.1, duplicate=0.02), seed=seed, a=brief, b=brief, a_options=flows, b_options=flows)
    users: list[User] = []

    def user(side) -> User:
        one = User(side, rng.randrange(60_000), seed=1, expect=1, close=rng.choice(("shutdown", "close", "eager")), reading=rng.random() < 0.7)
        users.append(one)
        return one

    pair.b.serve(user=lambda: user(pair.b), setup=bool(seed % 2))
    for _ in range(25):
        pair.a.connect(user(pair.a))
        pair.run(rng.random() * 0.05)
    pair.run(3)
    for one in users:
        connection: TcpConnection | None = one.connection
        if connection is None or connection.closed:
            continue
        one.finished = True
        rng.choice((connection.abort, connection.close, connection.shutdown))()
        pair.touch(one.side)
    pair.run(10)
    for one in users:
        if one.connection is not None and not one.connection.closed:
            one.connection.abort()
            pair.touch(one.side)
    pair.run(40)
    for side in (pair.a, pair.b):
        assert not side.endpoint.connections and side.endpoint.buffered == 0, f"seed {seed}"
        assert not side.endpoint.blocked and not side.flows.open
    assert all(one.ends <= 1 for one in users)


def test_what_is_written_is_counted_and_limits_everybody():
    limit = 1 << 17
    bench = Bench(send_memory_limit=limit)
    bench.listen()
    peers = [Talk(bench, 7000 + number) for number in range(4)]
    for peer in peers:
        peer.open()
    first, *others = bench.accepted
    assert first.send_limit == first.options.sndbuf and bench.endpoint.queued == 0
    first.write(bytes(limit))
    assert first.send_limit == first.options.sndbuf
    others[0].write(b"one more")
    assert bench.endpoint.queued == limit + 8
    assert [connection.send_limit for connection in bench.accepted] == [16384] * 4
    first.abort()
    assert bench.endpoint.queued == 8 and others[0].send_limit == others[0].options.sndbuf
    bench.turn()
    peers[1].say(ACK)
    assert bench.endpoint.queued == 0
