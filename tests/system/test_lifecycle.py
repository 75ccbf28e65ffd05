"""How connections and servers end: in order, by force, and too late."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import struct
import threading
import time
from typing import Any

import pytest

from acceltcp.abi.registers import ABI_MAJOR, ABI_MINOR
from acceltcp.host import AbiMismatchError, Connection, Device, TcpSettings, Transport, open_transport

from .namespace import isolated
from .world import (
    NIC,
    NIC4,
    TAP,
    Echo,
    Program,
    Service,
    Sniffer,
    World,
    connect,
    exchange,
    folder,
    read_all,
    request,
    wait_until,
)

pytestmark = pytest.mark.slow

RST = 4


def tcp_of(frame: bytes) -> tuple[int, int, int, int, bytes] | None:
    """Source port, destination port, flags, acknowledgment and data of a TCP segment over IPv4."""
    if frame[12:14] != b"\x08\x00" or frame[23] != 6:
        return None
    l4 = 14 + (frame[14] & 15) * 4
    end = 14 + int.from_bytes(frame[16:18], "big")
    src, dst, _, ack, offset, flags = struct.unpack_from("!HHIIBB", frame, l4)
    return src, dst, flags, ack, frame[l4 + (offset >> 4) * 4 : end]


@isolated
def test_half_close() -> None:
    """The client ends its data first and then reads all; the server answers after that end."""

    async def later(connection: Connection) -> None:
        data = await connection.read()
        connection.write(data[::-1])
        await connection.drain()

    with World() as world:
        world.listen(7, later)
        for address in NIC.values():
            data = random.Random(address).randbytes(300_000)
            assert request(address, 7, data) == data[::-1]
            assert request(address, 7, b"") == b""
        wait_until("all connections are closed", lambda: world.tcp_stats()["closed"] == 4)
        assert world.tcp_stats()["failed"] == 0


@isolated
def test_server_ends_first() -> None:
    """The server's FIN comes first; the client still sends, and the server still reads."""
    got: list[bytes] = []

    async def ends(connection: Connection) -> None:
        connection.write(b"over")
        connection.write_eof()
        got.append(await connection.read())

    with World() as world:
        world.listen(7, ends)
        for address in NIC.values():
            with connect(address, 7) as sock:
                sock.sendall(b"a")
                assert sock.recv(100) == b"over"
                assert sock.recv(100) == b""
                sock.sendall(b"b" * 100_000)
        wait_until("the server has read all", lambda: len(got) == 2)
        assert got == [b"a" + b"b" * 100_000] * 2


@isolated
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_in_mid_transfer(workers: int) -> None:
    """A client that has data to come is reset and not told that this was all, also if it reads nothing and its window is shut."""
    words = ["--workers", str(workers)] if workers > 1 else []
    with folder() as where:
        with Service("echo", *words, folder=where):
            socks = [connect(address, 7) for address in NIC.values()]
            for sock in socks:
                sock.settimeout(1)
                with pytest.raises(TimeoutError):
                    while True:
                        sock.send(bytes(1 << 16))
        for sock in socks:
            sock.settimeout(5)
            with sock, pytest.raises(ConnectionResetError):
                while sock.recv(1 << 16):
                    pass
                pytest.fail("the server has ended the data in order")


def from_port(source: int, address: str) -> socket.socket:
    """A connection from that port as soon as the kernel has no use for it any more (the last
    acknowledgment of the connection before is on its way)."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return connect(address, 80, source=source)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


@isolated
@pytest.mark.slow
def test_same_port_again() -> None:
    """A client that comes back from the same port at once is served, though the server keeps
    the old connection in TIME_WAIT."""
    with folder() as where:
        pages = where / "pages"
        pages.mkdir()
        (pages / "index.html").write_text("again")
        with Service("http", "--directory", str(pages), folder=where) as service:
            for address in NIC.values():
                for _ in range(5):
                    head = b"GET / HTTP/1.1\r\nHost: nic\r\nConnection: close\r\n\r\n"
                    with from_port(40_001, address) as sock:
                        sock.sendall(head)
                        started = time.monotonic()
                        reply = b""
                        while part := sock.recv(1 << 16):  # so the server ends first
                            reply += part
                    assert reply.endswith(b"again")
                    assert time.monotonic() - started < 5
            assert service.stats()["tcp"]["opened"] == 10


@isolated
@pytest.mark.slow
def test_client_reset() -> None:
    """A client that goes away in mid-transfer: the handler learns it, the server goes on."""
    ended: list[BaseException | None] = []

    async def pour(connection: Connection) -> None:
        try:
            await connection.read(1)
            while True:
                connection.write(bytes(50_000))
                await connection.drain()
        except BaseException as error:
            ended.append(error)
            raise

    with World() as world:
        world.listen(7, Echo())
        world.listen(9, pour)
        for number, address in enumerate(NIC.values(), 1):
            sock = connect(address, 9)
            sock.sendall(b"x")
            got = 0
            while got < 200_000:
                got += len(sock.recv(1 << 16))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            wait_until("the handler has ended", lambda number=number: len(ended) == number)
            assert isinstance(ended[-1], ConnectionResetError)
            assert request(address, 7, b"still here") == b"still here"
        wait_until("nothing is left open", lambda: not world.do(lambda: world.nic.endpoint.connections))


@isolated
def test_server_abort() -> None:
    """The server resets; so does closing the NIC, for all who are connected."""

    async def abort(connection: Connection) -> None:
        await connection.read(1)
        connection.abort()

    with World() as world:
        world.listen(7, Echo())
        world.listen(9, abort)
        with connect(NIC4, 9) as sock:
            sock.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        open_one = connect(NIC4, 7)
        open_one.sendall(b"abc")
        assert open_one.recv(3) == b"abc"
    with pytest.raises(ConnectionResetError):
        open_one.recv(1)
    open_one.close()


@isolated
@pytest.mark.slow
@pytest.mark.parametrize("teardown", [False, True])
def test_late_duplicates(teardown: bool) -> None:
    """Everything that a client sent comes a second time after the end: nothing opens, nothing
    is delivered again, and a later stray is answered with a reset. Whether the host or the NIC closes."""
    # (Longer than it takes to read the counters of a simulated NIC.)
    with World(teardown=teardown, tcp=TcpSettings(linger=6)) as world, Sniffer() as wire:

        def duplicates() -> int:
            return world.counters()["flow_packets"] if teardown else world.tcp_stats()["duplicates_of_closed"]

        echo = Echo()
        world.listen(7, echo)
        with connect(NIC4, 7) as sock:
            exchange(sock, 5000, 1)
            local = sock.getsockname()[1]
        wait_until("the connection is over", lambda: world.tcp_stats()["closed"] == 1)
        sent = [
            frame
            for outgoing, frame in wire.frames()
            if outgoing and (tcp := tcp_of(frame)) and tcp[0] == local
        ]
        assert len(sent) > 5
        before = duplicates()
        for _ in range(2):
            for frame in sent:
                wire.send(frame)
        # Where nobody keeps state the SYN is answered; the kernel resets what it did not ask for.
        syns = 0 if teardown else 1
        wait_until("the duplicates have come", lambda: duplicates() - before >= 2 * (len(sent) - syns))
        time.sleep(0.3)
        assert world.tcp_stats()["opened"] == 1
        assert list(echo.connections) == [local]
        assert echo.received[local] == 5000
        assert world.counters()["setup_syn"] == 3
        assert world.counters()["setup_syn_ack"] == 1 + 2 * syns

        time.sleep(world.nic.endpoint.settings.linger)  # the tuple is forgotten
        data = next(frame for frame in reversed(sent) if (tcp := tcp_of(frame)) and tcp[4])
        list(wire.frames())
        wire.send(data)
        found = tcp_of(
            wire.wait(
                lambda outgoing, frame: (
                    not outgoing and (tcp := tcp_of(frame)) is not None and bool(tcp[2] & RST)
                )
            )
        )
        assert found is not None and found[1] == local
        assert world.tcp_stats()["opened"] == 1
        assert request(NIC4, 7, b"new") == b"new"


@isolated
@pytest.mark.slow
def test_odd_source_address() -> None:
    """A copy of a client's segment with another source MAC address, as a bit error makes it,
    does not cut the client off, though he has nothing more to say."""
    go = threading.Event()

    async def answers(connection: Connection) -> None:
        connection.write(await connection.read(1))
        await asyncio.to_thread(go.wait, 30)
        connection.write(b"the answer")
        await connection.drain()

    with World() as world, Sniffer() as wire:
        world.listen(7, answers)
        with connect(NIC4, 7) as sock:
            sock.sendall(b"?")
            assert sock.recv(1) == b"?"

            def acknowledges(outgoing: bool, frame: bytes) -> bool:
                tcp = tcp_of(frame)
                return outgoing and tcp is not None and sent and not tcp[4]

            sent = False
            frame = b""
            for outgoing, candidate in list(wire.frames()):
                tcp = tcp_of(candidate)
                sent = sent or (outgoing and tcp is not None and tcp[4] == b"?")
                if acknowledges(outgoing, candidate):
                    frame = candidate
            if not frame:
                frame = wire.wait(acknowledges)
            time.sleep(0.3)  # the frame itself has come by now
            before = world.tcp_stats()["segments"]
            for odd in ("030000000055", "020000000055"):
                wire.send(frame[:6] + bytes.fromhex(odd) + frame[12:])
            wait_until("they have come", lambda: world.tcp_stats()["segments"] >= before + 2)
            go.set()
            assert sock.recv(100) == b"the answer"


@isolated
@pytest.mark.slow
def test_server_killed() -> None:
    """kill -9 of the server; another one takes over the same device."""
    with folder() as where:
        path = where / "nic.sock"
        device = Program("sim", "--socket", str(path), "--tap", TAP, ready=path, folder=where)
        with device:
            service = Service("echo", folder=where, device=f"vfio-user:{path}").start()
            old = connect(NIC4, 7)
            idle = connect(NIC["ipv6"], 7)
            idle.sendall(b"hello")
            assert idle.recv(5) == b"hello"
            old.sendall(b"x" * 100_000)
            stop = threading.Event()
            failed: list[OSError] = []

            def flow() -> None:
                try:
                    while not stop.is_set():
                        old.sendall(b"y" * 1000)
                        old.recv(1 << 16)
                except OSError as error:
                    failed.append(error)

            thread = threading.Thread(target=flow, daemon=True)
            thread.start()
            time.sleep(0.3)
            service.kill()
            time.sleep(0.3)
            with Service("echo", folder=where, device=f"vfio-user:{path}") as fresh:
                for address in NIC.values():
                    with connect(address, 7) as sock:
                        exchange(sock, 100_000, address)
                # Who was connected to the old one is told as soon as he speaks.
                thread.join(30)
                stop.set()
                assert failed and isinstance(failed[0], ConnectionResetError), failed
                idle.sendall(b"anybody?")
                with pytest.raises(ConnectionResetError):
                    idle.recv(1)
                assert fresh.stats()["tcp"]["opened"] == 2
        old.close()
        idle.close()


@isolated
@pytest.mark.slow
def test_simulator_lost() -> None:
    """When the device's process dies the server says so and ends; nothing hangs."""
    with folder() as where:
        path = where / "nic.sock"
        device = Program("sim", "--socket", str(path), "--tap", TAP, ready=path, folder=where).start()
        service = Service("echo", folder=where, device=f"vfio-user:{path}").start()
        assert request(NIC4, 7, b"before") == b"before"
        device.kill()
        assert service.wait() == 1
        assert "Traceback" not in service.said()
        assert str(path) in service.said()


class OtherVersion(Transport):
    """A device that says another ABI version."""

    def __init__(self, inner: Transport, abi: int) -> None:
        self._inner, self._abi = inner, abi
        self.description = inner.description

    def read32(self, offset: int) -> int:
        return self._abi if offset == 4 else self._inner.read32(offset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write32(self, offset: int, value: int) -> None:
        raise AssertionError("written to before its version was checked")

    def map_memory(self, size: int) -> Any:
        raise AssertionError("given memory before its version was checked")

    def enable_interrupts(self, count: int) -> list[int]:
        raise AssertionError("not before its version was checked")

    def reset(self) -> None:
        raise AssertionError("not before its version was checked")

    def close(self) -> None:
        self._inner.close()


def test_other_abi() -> None:
    """A device of another version is refused before it is touched; both versions are named."""
    inner = open_transport("sim:")
    try:
        for major, minor in ((ABI_MAJOR + 1, ABI_MINOR), (ABI_MAJOR + 7, 3)):
            other = OtherVersion(inner, major << 16 | minor)
            with pytest.raises(AbiMismatchError) as error:
                Device(other)
            assert f"ABI {major}.{minor}" in str(error.value)
            assert f"ABI {ABI_MAJOR}.{ABI_MINOR}" in str(error.value)
        with Device(inner) as device:
            assert device.identity.abi == f"{ABI_MAJOR}.{ABI_MINOR}"
    finally:
        inner.close()


@isolated
@pytest.mark.slow
def test_unread_data() -> None:
    """A client that writes and never reads: the windows close both ways, then all comes through."""
    size = 6_000_000
    with World() as world:
        world.listen(7, Echo())
        with connect(NIC4, 7) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
            sock.setblocking(False)
            sent = 0
            quiet = 0
            while quiet < 10 and sent < size:
                try:
                    sent += sock.send(b"z" * min(50_000, size - sent))
                    quiet = 0
                except BlockingIOError:
                    quiet += 1
                    time.sleep(0.05)
            assert sent < size, "nobody pushes back"
            sock.settimeout(30)
            rest = threading.Thread(
                target=lambda: (sock.sendall(b"z" * (size - sent)), sock.shutdown(socket.SHUT_WR)),
                daemon=True,
            )
            rest.start()
            assert read_all(sock) == size
            rest.join(10)
