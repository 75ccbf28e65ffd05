"""Listening: deferred, paused, taken and closed ports, many clients at once."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import time

import pytest

from .namespace import isolated
from .world import NIC, NIC4, NIC6, TAP, Echo, Service, World, connect, exchange, folder, request, wait_until

pytestmark = pytest.mark.slow


@isolated
@pytest.mark.slow
def test_defer_accept() -> None:
    """The host hears of a connection with its first data, not before."""
    with World() as world:
        echo = Echo()
        world.listen(7, echo, defer_accept=True)
        for number, address in enumerate(NIC.values(), 1):
            with connect(address, 7) as sock:
                wait_until(
                    "the ACK is consumed", lambda number=number: world.counters()["setup_deferred"] == number
                )
                assert world.tcp_stats()["opened"] == number - 1
                assert not echo.connections
                time.sleep(1.2)  # longer than any grace period of the host
                exchange(sock, 3000, address)
            assert world.tcp_stats()["opened"] == number
            echo.connections.clear()
        assert world.tcp_stats()["resets_sent"] == 0


@isolated
@pytest.mark.slow
def test_pause() -> None:
    """A full backlog pauses the NIC's listener; it goes on when connections are taken."""
    with World() as world:
        server = world.listen(7, None, backlog=4)
        waiting = [connect(NIC4, 7) for _ in range(4)]
        for sock in waiting:
            sock.sendall(b"hello")
        wait_until("the listener is paused", lambda: server.paused)
        answered = world.counters()["setup_syn_ack"]
        late = socket.socket()
        late.setblocking(False)
        assert late.connect_ex((NIC4, 7)) == errno.EINPROGRESS
        wait_until("a SYN is refused", lambda: world.counters()["setup_drop_paused"] > 0)
        assert world.counters()["setup_syn_ack"] == answered
        taken = [world.call(server.accept()) for _ in waiting]
        assert {connection.peername[1] for connection in taken} == {sock.getsockname()[1] for sock in waiting}
        wait_until("the listener goes on", lambda: not server.paused)
        assert select.select([], [late], [], 15)[1], "the kernel's next SYN was not answered"
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        late.sendall(b"late")
        connection = world.call(server.accept())
        assert world.call(connection.readexactly(4)) == b"late"
        for connection in taken:
            assert world.call(connection.readexactly(5)) == b"hello"
        for sock in (*waiting, late):
            sock.close()
        assert server.pauses >= 1


@isolated
def test_port_taken() -> None:
    with World() as world:
        echo = Echo()
        server = world.listen(7, echo)
        with pytest.raises(OSError, match=r"already a listener on 10\.0\.0\.2 port 7") as error:
            world.listen(7, Echo())
        assert error.value.errno == errno.EADDRINUSE
        # The failed attempt took nothing away, and left nothing behind.
        assert request(NIC4, 7, b"still here") == b"still here"
        assert request(NIC6, 7, b"still here") == b"still here"
        world.listen(8, echo, host=NIC6)
        world.listen(8, echo, host=NIC4)
        assert request(NIC4, 8, b"eight") == request(NIC6, 8, b"eight") == b"eight"
        world.call(server.close())
        for address in NIC.values():
            with pytest.raises(ConnectionRefusedError):
                connect(address, 7)
        world.listen(7, echo)
        assert request(NIC4, 7, b"again") == b"again"


@isolated
@pytest.mark.slow
def test_table_full() -> None:
    """As many listeners as the NIC has room for, then a sentence."""
    with World() as world:
        echo = Echo()
        room = world.nic.device.identity.listeners // len(NIC)
        for port in range(1000, 1000 + room):
            world.listen(port, echo)
        with pytest.raises(OSError, match="no room") as error:
            world.listen(999, echo)
        assert error.value.errno == errno.ENOBUFS
        for port in (1000, 1000 + room - 1):
            for address in NIC.values():
                assert request(address, port, b"x" * 100) == b"x" * 100
        with pytest.raises(ConnectionRefusedError):
            connect(NIC4, 999)


@isolated
def test_closed_port() -> None:
    with World() as world:
        world.listen(7, Echo())
        for address in NIC.values():
            started = time.monotonic()
            with pytest.raises(ConnectionRefusedError):
                connect(address, 9)
            assert time.monotonic() - started < 5
        assert world.tcp_stats()["resets_sent"] == 2


@isolated
@pytest.mark.slow
def test_200_at_once() -> None:
    """All are connected before the first one speaks."""
    count = 200

    async def clients() -> None:
        everybody = asyncio.Barrier(count)

        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection(list(NIC.values())[number % 2], 7)
            await everybody.wait()
            data = number.to_bytes(2, "big") * 1500
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data
            writer.close()

        await asyncio.wait_for(asyncio.gather(*map(client, range(count))), 60)

    with folder() as where, Service("echo", folder=where) as service:
        asyncio.run(clients())
        stats = service.stats()
        assert stats["tcp"]["opened"] == count
        assert stats["tcp"]["failed"] == 0
        assert sum(entry["accepted"] for entry in stats["listeners"].values()) == count


@isolated
@pytest.mark.slow
def test_second_program_on_a_device() -> None:
    """Two programs cannot use the same TAP, and the second one says so."""
    with folder() as one, folder() as two, Service("echo", folder=one):
        with pytest.raises(AssertionError, match=f"cannot use TAP device {TAP}: Device or resource busy"):
            Service("echo", folder=two).start()
        assert request(NIC4, 7, b"first") == b"first"
