"""asyncio's own functions in an `EventLoop`: what goes over the NIC, what over the kernel; libraries as they are."""

from __future__ import annotations

import asyncio
import gc
import socket

import aiohttp
import pytest
import redis.asyncio as redis
import uvicorn
from aiohttp import web

import acceltcp.host
from acceltcp.host import Device, EventLoop, Nic, TcpTransport

from ..fake_device import FakeTransport
from ..test_stack import until
from .pair import FAR4, FAR6, NEAR4, NEAR6, certificate, run_pair
from .resp import RespServer
from .test_connections import PAYLOAD, echo, round_trip


def over_nic(writer: asyncio.StreamWriter) -> bool:
    return isinstance(writer.transport, TcpTransport)


def test_servers_and_connections_go_where_they_belong():
    async def test(near: Nic, far: Nic) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, EventLoop) and loop.nic is near
        await acceltcp.host.start_server(echo, None, 7, nic=far)
        # Clients.
        for address in (FAR4, FAR6):
            reader, writer = await asyncio.open_connection(address, 7)
            assert over_nic(writer)
            await round_trip(reader, writer)
        # Servers: all of the NIC's addresses, those of a family, one, none.
        for host, expected in (
            (None, [NEAR4, NEAR6]), ("0.0.0.0", [NEAR4]), ("::", [NEAR6]), (NEAR6, [NEAR6]), ([NEAR4, NEAR6], [NEAR4, NEAR6]),
        ):  # fmt: skip
            server = await asyncio.start_server(echo, host, 8000)
            assert [sock.getsockname()[0] for sock in server.sockets] == expected
            reader, writer = await acceltcp.host.open_connection(expected[0], 8000, nic=far)
            await round_trip(reader, writer, b"x" * 1000)
            server.close()
            await server.wait_closed()
        # The kernel's.
        for host in ("127.0.0.1", "localhost"):
            async with await asyncio.start_server(echo, host, 0, family=socket.AF_INET) as server:
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                assert not over_nic(writer)
                await round_trip(reader, writer)
        assert near.endpoint.stats["failed"] == 0

    run_pair(test)


def test_a_server_on_both():
    async def test(near: Nic, far: Nic) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        async with await asyncio.start_server(echo, ["127.0.0.1", NEAR4], port) as server:
            assert {sock.getsockname()[0] for sock in server.sockets} == {"127.0.0.1", NEAR4}
            await round_trip(*await asyncio.open_connection("127.0.0.1", port))
            await round_trip(*await acceltcp.host.open_connection(NEAR4, port, nic=far))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    run_pair(test)


def test_kernel_sockets_stand_for_connections(tmp_path):
    server_context, client_context = certificate(tmp_path, FAR4)

    async def test(near: Nic, far: Nic) -> None:
        loop = asyncio.get_running_loop()
        await acceltcp.host.start_server(echo, None, 7, nic=far)
        await acceltcp.host.start_server(echo, None, 443, nic=far, ssl=server_context)
        for port, options in ((7, {}), (443, {"ssl": client_context, "server_hostname": FAR4})):
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await loop.sock_connect(sock, (FAR4, port))
            reader, writer = await asyncio.open_connection(sock=sock, **options)
            assert sock.fileno() == -1 and next(iter(near._users)).tcp.options.keepalive
            await round_trip(reader, writer)
        # One that loses a race is forgotten: its connection is reset.
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, (FAR4, 7))
        count = len(near.endpoint.connections)
        sock.close()
        del sock
        gc.collect()
        await until(lambda: len(near.endpoint.connections) < count)
        # The kernel's own.
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, server.sockets[0].getsockname())
            reader, writer = await asyncio.open_connection(sock=sock)
            assert not over_nic(writer)
            await round_trip(reader, writer)

    run_pair(test)


def test_run():
    async def plain() -> str:
        assert acceltcp.host.current_nic().mac == "02:00:00:00:00:05"
        return "done"

    async def with_nic(nic: Nic) -> Nic:
        return nic

    options = {"addresses": ["10.0.0.1/24"], "mac": "02:00:00:00:00:05"}
    assert acceltcp.host.run(plain(), device=Device(FakeTransport()), **options) == "done"
    transport = FakeTransport()
    assert isinstance(acceltcp.host.run(with_nic, device=Device(transport), **options), Nic)
    assert transport.closed
    with pytest.raises(ValueError, match="mtu must be"):
        acceltcp.host.run(plain(), device=Device(FakeTransport()), mtu=1, **options)


def test_which_nic():
    async def none() -> None:
        with pytest.raises(RuntimeError, match="no NICs are open"):
            acceltcp.host.current_nic()
        assert asyncio.get_running_loop().nic is None
        async with await asyncio.start_server(echo, None, 0) as server:
            assert all(sock.fileno() >= 0 for sock in server.sockets)

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(none())

    async def two(near: Nic, far: Nic) -> None:
        with pytest.raises(RuntimeError, match="2 NICs are open"):
            await acceltcp.host.start_server(echo, None, 7)

    run_pair(two)


# -- libraries, as they are ----------------------------------------------------------------


async def site(host: str, port: int, folder, **options) -> web.AppRunner:
    """An aiohttp application that knows nothing of NICs."""

    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"peer": request.remote, "got": len(await request.read())})

    async def big(request: web.Request) -> web.Response:
        return web.Response(body=PAYLOAD)

    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data.upper())
        return socket

    app = web.Application()
    app.add_routes([web.route("*", "/", hello), web.get("/big", big), web.get("/talk", talk), web.static("/files", folder)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, host, port, **options).start()
    return runner


@pytest.mark.parametrize("tls", [False, True])
def test_aiohttp_as_server_and_client(tmp_path, tls):
    server_context, client_context = certificate(tmp_path, FAR4) if tls else (None, None)
    (tmp_path / "file").write_bytes(PAYLOAD)

    async def test(near: Nic, far: Nic) -> None:
        # The loop's NIC is the near one: the application is there, and a client; the far one is another client.
        runner = await site("0.0.0.0", 8080, tmp_path, ssl_context=server_context)
        assert runner.addresses[0][0] == NEAR4
        base = f"{'https' if tls else 'http'}://{FAR4}:8081"
        await far.create_server(lambda: runner.server(), FAR4, 8081, ssl=server_context)
        connector = aiohttp.TCPConnector(ssl=client_context if tls else True)
        async with aiohttp.ClientSession(connector=connector) as session:
            for _ in range(3):
                async with session.post(f"{base}/", data=b"x" * 70_000) as response:
                    assert await response.json() == {"peer": NEAR4, "got": 70_000}
            for path in ("/big", "/files/file"):
                async with session.get(base + path) as response:
                    assert response.status == 200 and await response.read() == PAYLOAD
            async with session.ws_connect(f"{base}/talk") as talk:
                for word in ("one", "two" * 5000):
                    await talk.send_str(word)
                    assert await talk.receive_str(timeout=5) == word.upper()
        assert near.endpoint.stats["connected"] == 1, "the connection was kept alive"
        await runner.cleanup()

    run_pair(test)


def test_redis_as_client():
    async def test(near: Nic, far: Nic) -> None:
        store = RespServer()
        await acceltcp.host.start_server(store.serve, None, 6379, nic=far)
        client = redis.Redis(host=FAR4, port=6379, socket_keepalive=True)
        await client.set("name", b"\0value\r\n")
        assert await client.get("name") == b"\0value\r\n" and await client.get("nothing") is None
        async with client.pipeline(transaction=False) as pipeline:
            for _ in range(100):
                pipeline.incr("counter")
            assert await pipeline.execute() == list(range(1, 101))
        with pytest.raises(redis.ResponseError, match="unknown command"):
            await client.execute_command("NONSENSE")
        assert near.endpoint.stats["connected"] == 1
        await client.aclose()

    run_pair(test)


def test_uvicorn_as_server():
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"client", scope["client"][0].encode())]})
        await send({"type": "http.response.body", "body": body[::-1]})

    async def test(near: Nic, far: Nic) -> None:
        server = uvicorn.Server(uvicorn.Config(app, host="0.0.0.0", port=8000, log_level="warning"))
        serving = asyncio.ensure_future(server.serve())
        await until(lambda: server.started)
        reader, writer = await acceltcp.host.open_connection(NEAR4, 8000, nic=far)
        for size in (10, 100_000):
            body = PAYLOAD[:size]
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200 ok\r\n") and b"client: " + FAR4.encode() in head
            assert b"transfer-encoding: chunked" in head
            got = b""
            while length := int(await reader.readline(), 16):
                got += (await reader.readexactly(length + 2))[:-2]
            await reader.readline()
            assert got == body[::-1]
        writer.close()
        server.should_exit = True
        await asyncio.wait_for(serving, 5)

    run_pair(test)
