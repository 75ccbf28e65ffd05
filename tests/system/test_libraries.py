"""Libraries for asyncio on the NIC's RTL, unmodified: aiohttp and redis-py, with the kernel and curl as their peers."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio as redis
from aiohttp import web

import acceltcp.host
from acceltcp.host import Nic

from ..host.aio.pair import certificate
from ..host.aio.resp import RespServer
from .namespace import isolated
from .world import ADDRESSES, KERNEL4, KERNEL6, MAC, NIC, NIC4, TAP, folder, plug

MEGABYTE = random.Random(1 << 20).randbytes(1 << 20)
TEST_S = 60


@contextmanager
def kernel_side() -> Iterator[asyncio.AbstractEventLoop]:
    """An ordinary event loop in a thread of its own: programs that know only the kernel."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kernel's side", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def on(loop: asyncio.AbstractEventLoop, work: Awaitable[Any]) -> Any:
    """Run on the kernel's side; wait here."""

    async def run() -> Any:
        return await work

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), loop))


def on_the_nic(test: Callable[[Nic], Awaitable[None]], **options: Any) -> None:
    """Run `test(nic)` in an `EventLoop` whose NIC is at the TAP interface."""

    async def main(nic: Nic) -> None:
        plug()
        await asyncio.wait_for(test(nic), TEST_S)

    acceltcp.host.run(main, device=f"sim:?tap={TAP}", addresses=ADDRESSES, mac=MAC, **options)


def application(files: Path) -> web.Application:
    """An aiohttp application that knows nothing of NICs."""

    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"peer": request.remote, "got": len(await request.read())})

    async def big(request: web.Request) -> web.Response:
        return web.Response(body=MEGABYTE)

    async def talk(request: web.Request) -> web.WebSocketResponse:
        conversation = web.WebSocketResponse()
        await conversation.prepare(request)
        async for message in conversation:
            await conversation.send_str(message.data.upper())
        return conversation

    app = web.Application(client_max_size=2 << 20)
    app.add_routes([web.route("*", "/", hello), web.get("/big", big), web.get("/talk", talk), web.static("/files", files)])
    return app


async def curl(*arguments: str) -> bytes:
    """What it prints; fails with what it complains of."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "30", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    return out


@isolated
def test_aiohttp_as_server() -> None:
    """A session of aiohttp on the kernel, an application on the NIC: requests, uploads, a websocket."""
    with folder() as path, kernel_side() as kernel:

        async def fetch() -> None:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
                for _ in range(20):
                    async with session.post(f"http://{NIC4}:8080/", data=b"x" * 3000) as response:
                        assert await response.json() == {"peer": KERNEL4, "got": 3000}
                async with session.post(f"http://{NIC4}:8080/", data=MEGABYTE) as response:
                    assert (await response.json())["got"] == len(MEGABYTE)
                async with session.ws_connect(f"http://{NIC4}:8080/talk") as talk:
                    for text in ("hello", "x" * 100_000):
                        await talk.send_str(text)
                        assert await talk.receive_str(timeout=20) == text.upper()

        async def test(nic: Nic) -> None:
            runner = web.AppRunner(application(path))
            await runner.setup()
            await web.TCPSite(runner, port=8080).start()
            assert {address[0] for address in runner.addresses} == set(NIC.values())
            await on(kernel, fetch())
            assert nic.endpoint.stats["opened"] == 1, "twenty-two requests and a websocket, one connection"
            await runner.cleanup()
            assert nic.endpoint.stats["failed"] == 0

        on_the_nic(test)


@isolated
def test_curl_fetches_from_aiohttp() -> None:
    """Over IPv4 and IPv6, a megabyte at a time, with keep-alive."""
    with folder() as path:
        (path / "file").write_bytes(MEGABYTE)

        async def test(nic: Nic) -> None:
            runner = web.AppRunner(application(path))
            await runner.setup()
            await web.TCPSite(runner, port=8080).start()
            for address, peer in ((NIC4, KERNEL4), (f"[{NIC['ipv6']}]", KERNEL6)):
                base = f"http://{address}:8080"
                assert json.loads(await curl(f"{base}/")) == {"peer": peer, "got": 0}
                # Two requests in one connection: curl says how many it made.
                body = await curl(f"{base}/big", f"{base}/files/file", "-w", "%{num_connects}\n")
                size = len(MEGABYTE)
                assert body[:size] == body[size + 2 : -2] == MEGABYTE
                assert (body[size : size + 2], body[-2:]) == (b"1\n", b"0\n")
            await runner.cleanup()
            assert nic.endpoint.stats["failed"] == 0

        on_the_nic(test)


@isolated
def test_aiohttp_as_client() -> None:
    """An unmodified client session on the NIC fetches from an application on the kernel."""
    with folder() as path, kernel_side() as kernel:
        runner = web.AppRunner(application(path))

        async def start() -> None:
            await runner.setup()
            await web.TCPSite(runner, KERNEL4, 8080).start()

        async def test(nic: Nic) -> None:
            await on(kernel, start())
            async with aiohttp.ClientSession() as session:
                for _ in range(20):
                    async with session.get(f"http://{KERNEL4}:8080/") as response:
                        assert await response.json() == {"peer": NIC4, "got": 0}
                async with session.get(f"http://{KERNEL4}:8080/big") as response:
                    assert await response.read() == MEGABYTE
                async with session.ws_connect(f"http://{KERNEL4}:8080/talk") as talk:
                    await talk.send_str("hello")
                    assert await talk.receive_str(timeout=20) == "HELLO"
                with pytest.raises(aiohttp.ClientConnectorError):
                    await session.get(f"http://{KERNEL4}:8081/")
            assert nic.endpoint.stats["connected"] == 1
            await on(kernel, runner.cleanup())

        on_the_nic(test)


@isolated
def test_redis_as_client() -> None:
    """redis-py on the NIC, a RESP server on the kernel."""
    with kernel_side() as kernel:
        store = RespServer()

        async def test(nic: Nic) -> None:
            server = await on(kernel, asyncio.start_server(store.serve, KERNEL4, 6379))
            client = redis.Redis(host=KERNEL4, port=6379, socket_keepalive=True)
            await client.set("key", MEGABYTE[:50_000])
            assert await client.get("key") == MEGABYTE[:50_000] and await client.get("none") is None
            async with client.pipeline(transaction=False) as pipeline:
                for _ in range(100):
                    pipeline.incr("counter")
                assert await pipeline.execute() == list(range(1, 101))
            await client.aclose()
            assert nic.endpoint.stats["connected"] == 1 and store.data[b"counter"] == b"100"
            kernel.call_soon_threadsafe(server.close)

        on_the_nic(test)


@isolated
def test_tls() -> None:
    """curl verifies the certificate of an application on the NIC, a session on the NIC that of one on the kernel."""
    with folder() as path, kernel_side() as kernel:
        server_context, client_context = certificate(path, NIC4, KERNEL4)
        runners = [web.AppRunner(application(path)) for _ in range(2)]

        async def start(runner: web.AppRunner, host: str) -> None:
            await runner.setup()
            await web.TCPSite(runner, host, 8443, ssl_context=server_context).start()

        async def test(nic: Nic) -> None:
            await start(runners[0], NIC4)
            body = await curl("--cacert", str(path / "cert.pem"), f"https://{NIC4}:8443/big")
            assert body == MEGABYTE
            await on(kernel, start(runners[1], KERNEL4))
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_context)) as session:
                async with session.get(f"https://{KERNEL4}:8443/big") as response:
                    assert await response.read() == MEGABYTE
            await runners[0].cleanup()
            await on(kernel, runners[1].cleanup())

        on_the_nic(test)

