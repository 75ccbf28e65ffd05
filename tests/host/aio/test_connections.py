"""Servers, connections, streams, TLS and relays between two NICs on functional models."""

from __future__ import annotations

import asyncio
import errno
import random
import ssl
import time
from dataclasses import replace

import pytest

import acceltcp.host
from acceltcp.host import Connection, ConnectionOptions, DeviceLostError, Nic, TcpTransport

from ..test_stack import QUICK, until
from .pair import FAR4, FAR6, NEAR4, certificate, run_pair
from .test_transport import Recorder

PAYLOAD = random.Random(11).randbytes(400_000)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def round_trip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes = PAYLOAD) -> None:
    """Send and receive at once, half-close, check."""

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    sending = asyncio.ensure_future(send())
    got = await reader.readexactly(len(data))
    await sending
    assert got == data
    if writer.can_write_eof():
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("address", [FAR4, FAR6])
@pytest.mark.parametrize("setup", [True, False])
@pytest.mark.parametrize("teardown", [True, False])
def test_streams(address, setup, teardown):
    async def test(near: Nic, far: Nic) -> None:
        server = await acceltcp.host.start_server(echo, None, 7, nic=far, setup=setup, teardown=teardown)
        reader, writer = await acceltcp.host.open_connection(address, 7, nic=near, teardown=teardown)
        assert writer.get_extra_info("peername")[:2] == (address, 7)
        await round_trip(reader, writer)
        assert server.accepted == 1
        await until(lambda: not server.connections)
        server.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError, match=f"cannot connect to {address} port 7"):
            await acceltcp.host.open_connection(address, 7, nic=near)

    run_pair(test)


def test_who_closes_may_be_chosen_for_each_connection():
    async def test(near: Nic, far: Nic) -> None:
        async def handler(connection: Connection) -> None:
            assert connection.teardown
            connection.teardown = await connection.read(1) == b"n"
            connection.write(b"bye")

        await far.listen(7, handler)
        assert far.flows is not None
        for answer, by_nic in ((b"n", 1), (b"h", 1), (b"n", 2)):
            async with await near.connect(FAR4, 7, teardown=False) as connection:
                connection.write(answer)
                assert await connection.read() == b"bye"
            await until(lambda: not far.endpoint.connections)
            assert far.flows.counts["handed_over"] == by_nic

    run_pair(test)


def test_a_nic_that_closes_nothing_says_so():
    async def test(near: Nic, far: Nic) -> None:
        async def handler(connection: Connection) -> None:
            assert not connection.teardown
            with pytest.raises(OSError, match="does not close connections") as caught:
                connection.teardown = True
            connection.write(b"%d" % caught.value.errno)

        await far.listen(7, handler)
        far.endpoint.hand_over = None
        async with await near.connect(FAR4, 7) as connection:
            assert await connection.read() == b"%d" % errno.EOPNOTSUPP

    run_pair(test)


def test_connection_objects():
    async def test(near: Nic, far: Nic) -> None:
        async def handler(connection: Connection) -> None:
            connection.write(await connection.readline())

        await far.listen(7, handler)
        async with await near.connect(FAR4, 7, local_addr=(NEAR4, 45678)) as connection:
            assert connection.sockname == (NEAR4, 45678) and connection.peername == (FAR4, 7)
            connection.write(b"hello\n")
            assert await connection.readline() == b"hello\n"
            assert await connection.read() == b""
        with pytest.raises(ValueError, match="port must be from 1"):
            await near.connect(FAR4, 0)

    run_pair(test)


def test_who_does_not_answer():
    async def test(near: Nic, far: Nic) -> None:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer from 10\.0\.0\.77 port 7 within 0.2 s"):
            await near.connect("10.0.0.77", 7, timeout=0.2)
        assert time.monotonic() - started < 10
        with pytest.raises(OSError, match=r"cannot connect to 10\.0\.0\.77 port 7") as error:
            await near.connect("10.0.0.77", 7)
        assert error.value.errno == errno.EHOSTUNREACH
        with pytest.raises(OSError, match=r"cannot connect to 192\.0\.2\.1 port 7") as error:
            await near.connect("192.0.2.1", 7)
        assert error.value.errno == errno.ENETUNREACH
        with pytest.raises(OSError) as error:
            await near.connect(FAR4, 7, local_addr=("10.0.0.99", 0))
        assert error.value.errno == errno.EADDRNOTAVAIL
        connecting = asyncio.ensure_future(near.connect("10.0.0.78", 7))
        await asyncio.sleep(0.02)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert not near.endpoint.connections

    run_pair(test)


def test_of_several_addresses_the_first_that_answers():
    async def test(near: Nic, far: Nic) -> None:
        await acceltcp.host.start_server(echo, FAR6, 7, nic=far)
        connection = await near.connect([FAR4, FAR6], 7)
        assert connection.peername == (FAR6, 7)
        connection.abort()

    run_pair(test)


def test_options_of_a_connection():
    async def test(near: Nic, far: Nic) -> None:
        await acceltcp.host.start_server(echo, None, 7, nic=far)
        options = ConnectionOptions()
        options.congestion, options.maxseg = "reno", 500
        connection = await near.connect(FAR4, 7, options=options)
        assert connection.tcp.congestion.name == "reno" and connection.tcp.mss <= 500
        assert connection.tcp.options is not options
        transport, _ = await near.create_connection(asyncio.Protocol, FAR4, 7)
        assert transport.get_extra_info("tcp").options.nodelay, "as asyncio has it"
        connection.abort()
        transport.abort()

    run_pair(test)


@pytest.mark.parametrize("setup", [True, False])
def test_any_free_port_and_ports_in_use(setup):
    async def test(near: Nic, far: Nic) -> None:
        server = await far.create_server(asyncio.Protocol, None, 0, setup=setup)
        assert 0 < server.port < 65536
        assert [sock.getsockname()[:2] for sock in server.sockets] == [(FAR4, server.port), (FAR6, server.port)]
        with pytest.raises(OSError, match="there is already a listener on") as error:
            await far.create_server(asyncio.Protocol, FAR6, server.port, setup=setup)
        assert error.value.errno == errno.EADDRINUSE
        server.close()
        await server.wait_closed()
        assert server.sockets == () and not server.is_serving()
        again = await far.create_server(asyncio.Protocol, None, server.port or 4000, setup=setup)
        assert again.is_serving()
        with pytest.raises(OSError, match=r"10\.0\.0\.9 is no address of this NIC"):
            await far.create_server(asyncio.Protocol, "10.0.0.9", 80)
        with pytest.raises(ValueError, match="defer_accept needs setup"):
            await far.create_server(asyncio.Protocol, None, 81, setup=False, defer_accept=True)

    run_pair(test)


@pytest.mark.parametrize("setup", [True, False])
def test_a_full_server_pauses_its_port(setup):
    async def test(near: Nic, far: Nic) -> None:
        server = await far.create_server(Recorder, FAR4, 7, setup=setup, max_connections=3)
        connections = [await near.connect(FAR4, 7) for _ in range(3)]
        await until(lambda: server.paused)
        late = asyncio.ensure_future(near.connect(FAR4, 7))
        await asyncio.sleep(0.15)
        assert not late.done() and server.connections == 3
        connections[0].close()
        connections.append(await late)
        await until(lambda: server.accepted == 4)
        assert server.pauses >= 1
        for connection in connections[1:]:
            connection.abort()

    run_pair(test)


def test_start_serving_later_and_serve_forever():
    async def test(near: Nic, far: Nic) -> None:
        server = await far.create_server(Recorder, FAR4, 7, start_serving=False)
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            await near.connect(FAR4, 7)
        serving = asyncio.ensure_future(server.serve_forever())
        await until(lambda: server.is_serving() and server.addresses)
        (await near.connect(FAR4, 7)).abort()
        with pytest.raises(RuntimeError, match="already being awaited"):
            await server.serve_forever()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not server.is_serving()
        async with await far.create_server(Recorder, FAR4, 7) as server:
            assert server.get_loop() is asyncio.get_running_loop()
        assert not server.is_serving()

    run_pair(test)


def test_tls_both_ways(tmp_path):
    server_context, client_context = certificate(tmp_path, FAR4, "far.test")

    async def test(near: Nic, far: Nic) -> None:
        server = await acceltcp.host.start_server(echo, None, 443, nic=far, ssl=server_context)
        for hostname in (None, "far.test"):
            reader, writer = await acceltcp.host.open_connection(
                FAR4, 443, nic=near, ssl=client_context, server_hostname=hostname
            )
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            assert writer.get_extra_info("peername") == (FAR4, 443)
            await round_trip(reader, writer)
        with pytest.raises(ssl.SSLCertVerificationError):
            await near.create_connection(asyncio.Protocol, FAR4, 443, ssl=client_context, server_hostname="other.test")
        await until(lambda: not server.connections)
        with pytest.raises(TypeError, match="SSLContext"):
            await far.create_server(asyncio.Protocol, None, 444, ssl=True)
        with pytest.raises(ValueError, match="only meaningful with ssl"):
            await near.create_connection(asyncio.Protocol, FAR4, 7, server_hostname="x")

    run_pair(test)


def test_start_tls(tmp_path):
    server_context, client_context = certificate(tmp_path, FAR4)

    async def test(near: Nic, far: Nic) -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            writer.write(b"go\n")
            await writer.drain()
            await writer.start_tls(server_context)
            writer.write((await reader.readline()).upper())
            writer.close()

        await acceltcp.host.start_server(handler, None, 25, nic=far)
        reader, writer = await acceltcp.host.open_connection(FAR4, 25, nic=near)
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(client_context, server_hostname=FAR4)
        writer.write(b"secret\n")
        assert await reader.readline() == b"SECRET\n"
        writer.close()

    run_pair(test)


def test_sendfile(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(PAYLOAD)

    async def test(near: Nic, far: Nic) -> None:
        got: list[bytes] = []

        async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.append(await reader.read())
            writer.close()

        await acceltcp.host.start_server(collect, None, 7, nic=far)
        transport, _ = await near.create_connection(Recorder, FAR4, 7)
        with file.open("rb") as source:
            assert await asyncio.get_running_loop().sendfile(transport, source) == len(PAYLOAD)
        transport.close()
        await until(lambda: got)
        assert got[0] == PAYLOAD

    run_pair(test)


# -- relay -------------------------------------------------------------------------------


async def proxied(near: Nic, far: Nic, results: list[object]) -> None:
    """far:80 relays to near:8080, an echo server."""
    await acceltcp.host.start_server(echo, None, 8080, nic=near)

    async def proxy(connection: Connection) -> None:
        try:
            results.append(await acceltcp.host.relay(connection, await far.connect(NEAR4, 8080)))
        except OSError as error:
            results.append(error)

    await far.listen(80, proxy)


def test_relay_both_ways():
    async def test(near: Nic, far: Nic) -> None:
        results: list[object] = []
        await proxied(near, far, results)
        await round_trip(*await acceltcp.host.open_connection(FAR4, 80, nic=near))
        await until(lambda: results)
        assert results == [(len(PAYLOAD), len(PAYLOAD))]
        await until(lambda: not far._users)

    run_pair(test)


def test_relay_has_back_pressure():
    async def test(near: Nic, far: Nic) -> None:
        stuck: list[asyncio.StreamReader] = []

        async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()
            stuck.append((reader, writer))
            await asyncio.sleep(15)

        await acceltcp.host.start_server(never_reads, None, 8080, nic=near)
        sides: list[Connection] = []

        async def proxy(connection: Connection) -> None:
            sides.extend((connection, await far.connect(NEAR4, 8080)))
            await acceltcp.host.relay(*sides)

        await far.listen(80, proxy)
        client = await near.connect(FAR4, 80)
        size = 2_000_000
        client.write(bytes(size))
        await asyncio.sleep(1.0)
        kept = sum(side.tcp.unsent_or_unacked + side.tcp.buffered for side in sides)
        limit = far.endpoint.settings.receive_buffer + (1 << 18)
        assert client.tcp.unsent_or_unacked > 500_000 and kept <= limit + (1 << 17), kept
        stuck[0][1].transport.resume_reading()
        reader = stuck[0][0]
        got = 0
        while got < size:
            got += len(await asyncio.wait_for(reader.read(1 << 20), 10))
        assert got == size
        client.abort()

    small = {"tcp": replace(QUICK, receive_buffer=200_000)}
    run_pair(test, near=small, far=small)


def test_relay_resets_one_side_when_the_other_fails():
    async def test(near: Nic, far: Nic) -> None:
        results: list[object] = []
        await proxied(near, far, results)
        client = await near.connect(FAR4, 80)
        client.write(b"x")
        assert await client.read(10) == b"x"
        client.abort()
        await until(lambda: results)
        assert isinstance(results[0], ConnectionResetError)
        await until(lambda: not near._users)

    run_pair(test)


def test_relay_of_transports_with_data_that_wait():
    """What came before the relay is handed on, an end of data too."""

    async def test(near: Nic, far: Nic) -> None:
        protocols: list[Recorder] = []

        def factory() -> Recorder:
            protocols.append(Recorder())
            return protocols[-1]

        await far.create_server(factory, None, 80)
        one, two = await near.connect(FAR4, 80), await near.connect(FAR4, 80)
        await until(lambda: len(protocols) == 2)
        sides: list[TcpTransport] = [protocol.transport for protocol in protocols]
        for side in sides:
            side.pause_reading()
        one.write(b"from one")
        one.write_eof()
        two.write(b"from two")
        await until(lambda: sides[0].tcp.fin_received and sides[1].tcp.buffered)
        relaying = asyncio.ensure_future(acceltcp.host.relay(*sides))
        assert await two.read() == b"from one"
        two.close()
        assert await one.read() == b"from two"
        one.close()
        assert await asyncio.wait_for(relaying, 5) == (8, 8)
        assert protocols[0].calls == protocols[1].calls == ["made"]

    run_pair(test)


def test_a_cancelled_relay_resets_both():
    async def test(near: Nic, far: Nic) -> None:
        relays: list[asyncio.Task[object]] = []
        await acceltcp.host.start_server(echo, None, 8080, nic=near)

        async def proxy(connection: Connection) -> None:
            relays.append(asyncio.ensure_future(acceltcp.host.relay(connection, await far.connect(NEAR4, 8080))))
            await asyncio.wait(relays)

        await far.listen(80, proxy)
        client = await near.connect(FAR4, 80)
        await until(lambda: relays)
        await asyncio.sleep(0.02)
        relays[0].cancel()
        with pytest.raises(ConnectionResetError):
            await client.read()

    run_pair(test)


# -- batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["protocol", "streams", "handler"])
def test_a_request_answered_and_closed_in_one_batch_builds_no_control_block(kind):
    """Replies go out after the tasks that a batch wakes have run: what they write and close goes out together."""

    class Answer(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data.upper())
            self.transport.close()

    async def streams(reader, writer):
        writer.write((await reader.read(100)).upper())
        writer.close()

    async def handler(connection):
        connection.write((await connection.read(100)).upper())

    async def test(near: Nic, far: Nic) -> None:
        if kind == "protocol":
            await far.create_server(Answer, FAR4, 7, defer_accept=True)
        elif kind == "streams":
            await acceltcp.host.start_server(streams, FAR4, 7, nic=far, defer_accept=True)
        else:
            await far.listen(7, handler, host=FAR4, defer_accept=True)
        for _ in range(10):
            client = await near.connect(FAR4, 7)
            client.write(b"question")
            assert await client.read() == b"QUESTION"
            client.close()
        await until(lambda: not far._users)
        stats = far.endpoint.stats
        assert (stats["opened"], stats["built"]) == (10, 0)
        assert far.flows.counts["handed_over"] == 10

    run_pair(test)


def test_a_lost_device_is_told_to_everybody():
    async def test(near: Nic, far: Nic) -> None:
        protocols: list[Recorder] = []

        def factory() -> Recorder:
            protocols.append(Recorder())
            return protocols[-1]

        server = await near.create_server(factory, None, 80)
        serving = asyncio.ensure_future(server.serve_forever())
        await far.connect(NEAR4, 80)
        await until(lambda: protocols)
        await far.create_server(asyncio.Protocol, None, 7)
        sides = [await near.connect(FAR4, 7) for _ in range(2)]
        relaying = asyncio.ensure_future(acceltcp.host.relay(*sides))
        connecting = asyncio.ensure_future(near.connect("10.0.0.99", 7))
        await asyncio.sleep(0.02)
        near.device.transport.dead = DeviceLostError("fake: went away: test.")
        await asyncio.sleep(0)
        near._check_device()
        assert isinstance(await asyncio.wait_for(protocols[0].lost, 30), ConnectionAbortedError)
        with pytest.raises(OSError, match="the device went away"):
            await asyncio.wait_for(relaying, 30)
        with pytest.raises(OSError, match=r"cannot connect to 10\.0\.0\.99 port 7: the device went away"):
            await asyncio.wait_for(connecting, 30)
        with pytest.raises(DeviceLostError):
            await asyncio.wait_for(serving, 30)
        with pytest.raises(DeviceLostError):
            await near.connect(FAR4, 7)
        assert not near._users

    run_pair(test)
