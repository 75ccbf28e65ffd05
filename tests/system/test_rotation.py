"""Cookies under attack and in time: rotation of the secret, forgeries, replays, age."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from acceltcp.abi.wire import ETHERNET, IPV4, TCP, EtherType, IPProtocol, TCPFlag
from acceltcp.host import TcpSettings
from sim.flood import checksum

from .namespace import isolated
from .world import MAC, NIC, NIC4, Echo, Sniffer, World, connect, exchange, request, tcp_info, wait_until

CLIENT_MAC = 0x02_00_00_00_00_77
CLIENT = "10.0.0.77"
PORT = 7
EPOCH_S = 1.0


def segment(
    *,
    source: int,
    seq: int,
    ack: int = 0,
    flags: int,
    options: bytes = b"",
    data: bytes = b"",
    client: str = CLIENT,
) -> bytes:
    """A TCP segment of a client that the kernel knows nothing of."""
    src, dst = (int.from_bytes(socket.inet_aton(address), "big") for address in (client, NIC4))
    length = TCP.size + len(options) + len(data)
    ip = {
        "version": 4, "ihl": 5, "total_length": IPV4.size + length, "ttl": 64, "protocol": IPProtocol.TCP, "src": src, "dst": dst,
    }  # fmt: skip
    tcp = {
        "src_port": source, "dst_port": PORT, "seq": seq & 0xFFFFFFFF, "ack": ack & 0xFFFFFFFF,
        "data_offset": (TCP.size + len(options)) // 4, "flags": flags, "window": 64240,
    }  # fmt: skip
    body = options + data
    pseudo = struct.pack("!IIHH", src, dst, IPProtocol.TCP, length)
    tcp["checksum"] = checksum(pseudo + TCP.pack(**tcp) + body)
    frame = (
        ETHERNET.pack(dst=int(MAC.replace(":", ""), 16), src=CLIENT_MAC, ethertype=EtherType.IPV4)
        + IPV4.pack(**ip, checksum=checksum(IPV4.pack(**ip)))
        + TCP.pack(**tcp)
        + body
    )
    return frame.ljust(60, b"\0")


def handshake(wire: Sniffer, source: int, seq: int) -> int:
    """Send a SYN with no options but the segment size; the cookie that came back."""
    wire.send(segment(source=source, seq=seq, flags=TCPFlag.SYN, options=bytes.fromhex("020405b4")))

    def ours(outgoing: bool, frame: bytes) -> bool:
        return (
            not outgoing
            and frame[:6] == CLIENT_MAC.to_bytes(6, "big")
            and frame[47] == TCPFlag.SYN | TCPFlag.ACK
            and struct.unpack_from("!H", frame, 36)[0] == source
        )

    answer = wire.wait(ours)
    cookie, ack = struct.unpack_from("!II", answer, 38)
    assert ack == seq + 1 & 0xFFFFFFFF
    return cookie


def finish(source: int, seq: int, cookie: int, data: bytes = b"hello", **other: str) -> bytes:
    """The segment that ends a handshake, with data."""
    return segment(
        source=source, seq=seq + 1, ack=cookie + 1, flags=TCPFlag.ACK | TCPFlag.PSH, data=data, **other
    )


def opened(world: World) -> int:
    return world.tcp_stats()["opened"]


@isolated
@pytest.mark.slow
def test_rotation() -> None:
    """A new secret every epoch, with clients that connect all the time: no handshake breaks."""
    with World() as world:
        echo = Echo()
        device = world.nic.device
        world.do(lambda: device.registers.TIME.epoch_ticks.set(int(EPOCH_S * 1e6 / device.identity.tick_us)))
        world.listen(PORT, echo)
        stop = threading.Event()
        failed: list[BaseException] = []
        done = [0]

        def client(address: str) -> None:
            try:
                while not stop.is_set():
                    with connect(address, PORT, timeout=10) as sock:
                        assert tcp_info(sock).total_retrans == 0
                        exchange(sock, 200, done[0])
                    done[0] += 1
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=client, args=(address,), daemon=True) for address in NIC.values()]
        first = world.do(device.registers.TIME.epoch.get)
        for thread in threads:
            thread.start()
        rotations = 0
        until = time.monotonic() + 5 * EPOCH_S
        while time.monotonic() < until and not failed:
            world.do(lambda: device.set_secret(now=False))
            rotations += 1
            time.sleep(EPOCH_S)
        stop.set()
        for thread in threads:
            thread.join(20)
        epochs = world.do(device.registers.TIME.epoch.get) - first
        print(f"{done[0]} connections, {rotations} rotations, {epochs} epochs")
        assert not failed, failed
        assert done[0] > 50 and rotations >= 4 and epochs >= 4
        wait_until("every connection was served", lambda: len(echo.ended) == done[0])
        assert world.tcp_stats()["failed"] == world.tcp_stats()["resets_sent"] == 0


@isolated
@pytest.mark.slow
def test_forged_cookies() -> None:
    """Acknowledgments that guess: none opens a connection, and the true one still does."""
    rng = random.Random(1)
    with World() as world, Sniffer() as wire:
        echo = Echo()
        world.listen(PORT, echo)
        bad = 0

        def forgeries(source: int, seq: int, cookie: int) -> Iterator[bytes]:
            for bit in range(32):
                yield finish(source, seq, cookie ^ 1 << bit)
                yield finish(source, seq ^ 1 << bit, cookie)
            yield finish(source + 1, seq, cookie)
            yield finish(source, seq, cookie, client="10.0.0.78")
            yield finish(source, seq, cookie - 1)
            yield finish(source, seq, 0)
            for _ in range(200):
                yield finish(source, seq, rng.getrandbits(32))

        for round_ in range(2):
            source, seq = 50_000 + 10 * round_, rng.getrandbits(32)
            cookie = handshake(wire, source, seq)
            for frame in forgeries(source, seq, cookie):
                wire.send(frame)
                bad += 1
            wait_until("all are refused", lambda bad=bad: world.counters()["setup_cookie_bad"] >= bad)
            assert opened(world) == round_
            assert world.counters()["setup_cookie_bad"] == bad
            wire.send(finish(source, seq, cookie))
            wait_until("the true one opens", lambda round_=round_: opened(world) == round_ + 1)
            wait_until("its data come", lambda source=source: echo.received.get(source) == 5)
            assert echo.connections.keys() == {50_000 + 10 * n for n in range(round_ + 1)}
        # Those who guessed are told that there is nothing, once per tuple, when the time for a
        # first segment that was overtaken has passed.
        wait_until("the guessers are reset", lambda: world.tcp_stats()["resets_sent"] >= 4)
        assert request(NIC4, PORT, b"others") == b"others"


@isolated
@pytest.mark.slow
def test_age() -> None:
    """A cookie is good in its epoch and the next, and never under another secret."""
    with World() as world, Sniffer() as wire:
        echo = Echo()
        device = world.nic.device
        world.listen(PORT, echo)
        time_ = device.registers.TIME

        def next_epoch(count: int) -> None:
            world.do(lambda: time_.epoch.set(time_.epoch.get() + count))

        def attempt(source: int, seq: int, cookie: int, good: bool) -> None:
            before = world.counters()
            wire.send(finish(source, seq, cookie))
            name = "setup_cookie_good" if good else "setup_cookie_bad"
            wait_until(f"{name} for port {source}", lambda: world.counters()[name] == before[name] + 1)
            wait_until("that is known", lambda: (source in echo.connections) is good)

        cookies = {source: handshake(wire, source, source) for source in range(51_000, 51_006)}
        attempt(51_000, 51_000, cookies[51_000], True)
        next_epoch(1)
        attempt(51_001, 51_001, cookies[51_001], True)
        next_epoch(1)
        attempt(51_002, 51_002, cookies[51_002], False)
        # Without timestamps a cookie tells an epoch from the next by one bit; the hash by all.
        attempt(51_003, 51_003, cookies[51_003], False)
        next_epoch(2)
        attempt(51_004, 51_004, cookies[51_004], False)

        fresh = {source: handshake(wire, source, 7) for source in (52_000, 52_001, 52_002)}
        attempt(52_000, 7, fresh[52_000], True)
        world.do(lambda: device.set_secret(now=True))
        attempt(52_001, 7, fresh[52_001], False)
        attempt(52_003, 7, handshake(wire, 52_003, 7), True)


@isolated
@pytest.mark.slow
def test_no_data_before_the_first_segment() -> None:
    """The client's second segment overtakes the first: it opens nothing, and nothing is lost."""
    hold = 4.0  # longer than a busy machine takes from one step to the next
    with World(tcp=TcpSettings(unknown_hold=hold)) as world, Sniffer() as wire:
        echo = Echo()
        world.listen(PORT, echo)
        source, seq = 53_000, 0xFFFF_FFF0  # the sequence numbers wrap on the way
        cookie = handshake(wire, source, seq)
        first, second = b"a" * 30, b"b" * 20
        flags = TCPFlag.ACK | TCPFlag.PSH
        late = segment(source=source, seq=seq + 31, ack=cookie + 1, flags=flags, data=second)
        wire.send(late)
        wait_until("it is refused", lambda: world.counters()["setup_cookie_bad"] == 1)
        assert opened(world) == 0
        wire.send(segment(source=source, seq=seq + 1, ack=cookie + 1, flags=flags, data=first))
        wait_until("the first is taken", lambda: echo.received.get(source) == 30)
        wire.send(late)  # as its sender does when no acknowledgment comes
        wait_until("the second is taken", lambda: echo.received.get(source) == 50)
        assert opened(world) == 1
        time.sleep(hold + 0.2)
        assert world.tcp_stats()["resets_sent"] == 0
