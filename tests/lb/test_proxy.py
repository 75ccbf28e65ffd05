"""Real clients and real back ends on loopback: what a request and an answer become on their way."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import random
import socket
import subprocess
from collections import Counter

import aiohttp
import pytest
from aiohttp import web

from .bench import SplicingNet, World, body_of, read_request, read_response, rest_of, run, says, sizes, until

NETS = [True, False]
"""With and without somebody who splices."""


def net(splices: bool) -> SplicingNet:
    made = SplicingNet()
    made.splices = splices
    return made


@pytest.mark.parametrize("splices", NETS)
def test_a_hundred_requests_on_one_connection_over_three_back_ends(splices):
    async def test() -> None:
        rng = random.Random(3)
        async with World(sizes("a"), sizes("b"), sizes("c"), net=net(splices)) as world:
            reader, writer = await world.connect()
            seen: Counter[str] = Counter()
            sent = []
            for number in range(100):
                target = f"/{rng.choice(['', 'chunked/'])}{rng.choice([0, 1, 100, 9999, 10000, 70000, 200000])}?{number}"
                writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                status, fields, body = await read_response(reader)
                assert status == 200 and hashlib.sha256(body).digest() == hashlib.sha256(body_of(target)).digest()
                assert "connection" not in fields
                sent += [body] if body else []
                seen[fields["x-server"]] += 1
            assert set(seen.values()) == {33, 34}
            assert [backend.connections for backend in world.backends] == [1, 1, 1]
            # The last one may not know yet that the client has it all.
            await until(lambda: sum(world.proxy.bodies.values()) == len(sent))
            stats = world.proxy.stats()
            assert stats["clients"] == {"connections": 1, "live": 1, "requests": 100}
            assert sum(each["requests"] for each in stats["backends"].values()) == 100
            assert bool(stats["bodies"]["spliced"]["bodies"]) == splices and stats["bodies"]["relayed"]["bodies"] > 20
            assert all(limit is not None and limit >= 10000 for limit in world.net.joins)
            assert stats["bodies"]["spliced"]["bytes"] == sum(limit or 0 for limit in world.net.joins)

    run(test)


def test_pipelined_requests_are_answered_in_order():
    async def test() -> None:
        async with World(sizes("a"), sizes("b")) as world:
            reader, writer = await world.connect()
            targets = [f"/{size}?{number}" for number, size in enumerate((50000, 3, 0, 12000, 100000, 1))]
            writer.write("".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n" for target in targets).encode())
            for target in targets:
                assert (await read_response(reader))[2] == body_of(target)

    run(test)


@pytest.mark.parametrize("splices", NETS)
def test_curl(splices, tmp_path):
    async def test() -> None:
        async with World(sizes(), sizes(), net=net(splices)) as world:
            names = ["30000", "chunked/5000", "close/20000", "0"]
            words = [word for name in names for word in (f"http://127.0.0.1:{world.port}/{name}", "-o", str(tmp_path / name.replace("/", "-")))]
            curl = await asyncio.create_subprocess_exec("curl", "-sSf", *words)
            assert await curl.wait() == 0
            for name in names:
                file = tmp_path / name.replace("/", "-")
                assert (file.read_bytes() if file.exists() else b"") == body_of(f"/{name}")
            big = random.Random(1).randbytes(700_000)
            (tmp_path / "up").write_bytes(big)
            # curl asks for 100 Continue before so long a body.
            done = await asyncio.to_thread(
                subprocess.run,
                ["curl", "-sS", "-H", "Expect: 100-continue", "--expect100-timeout", "0.05", "--data-binary", f"@{tmp_path / 'up'}", f"http://127.0.0.1:{world.port}/up"],
                capture_output=True, timeout=15,
            )  # fmt: skip
            assert done.returncode == 0 and done.stdout == big, done.stderr

    run(test)


def test_http_client():
    async def test() -> None:
        async with World(sizes()) as world:

            def work() -> None:
                client = http.client.HTTPConnection("127.0.0.1", world.port, timeout=5)
                for method, target in (("GET", "/20000"), ("HEAD", "/20000"), ("GET", "/chunked/9"), ("HEAD", "/9"), ("GET", "/7")):
                    client.request(method, target)
                    answer = client.getresponse()
                    assert answer.read() == (b"" if method == "HEAD" else body_of(target))
                    if method == "HEAD":
                        assert answer.getheader("Content-Length") == target[1:]
                client.request("POST", "/", body=iter([b"abc", b"d" * 5000]), encode_chunked=True)
                assert client.getresponse().read() == b"abc" + b"d" * 5000
                client.close()

            await asyncio.to_thread(work)

    run(test)


def test_aiohttp_on_both_sides():
    async def hello(request: web.Request) -> web.StreamResponse:
        return web.json_response({"peer": request.headers["X-Forwarded-For"], "via": request.headers["Via"], "got": len(await request.read())})

    async def talk(request: web.Request) -> web.StreamResponse:
        conversation = web.WebSocketResponse()
        await conversation.prepare(request)
        async for message in conversation:
            await conversation.send_str(message.data.upper())
        return conversation

    async def big(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 100_000, headers={"X-Id": request.query["n"]})

    async def test() -> None:
        app = web.Application(client_max_size=1 << 22)
        app.add_routes([web.post("/hello", hello), web.get("/talk", talk), web.get("/big", big)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        try:
            for splices in NETS:
                async with World(net=net(splices), backends=[{"host": "127.0.0.1", "port": port}]) as world:
                    base = f"http://127.0.0.1:{world.port}"
                    async with aiohttp.ClientSession() as session:
                        async with session.post(f"{base}/hello", data=b"z" * 300_000) as answer:
                            assert await answer.json() == {"peer": "127.0.0.1", "via": "1.1 acceltcp", "got": 300_000}

                        async def get(number: int, base=base, session=session) -> None:
                            async with session.get(f"{base}/big?n={number}") as answer:
                                assert answer.headers["X-Id"] == str(number) and len(await answer.read()) == 100_000

                        await asyncio.gather(*(get(number) for number in range(40)))
                        async with session.ws_connect(f"{base}/talk") as conversation:
                            for word in ("one", "two"):
                                await conversation.send_str(word)
                                assert (await conversation.receive_str()) == word.upper()
                        assert (None in world.net.joins) == splices
                    # aiohttp's server closes connections only when it is told to.
                    await world.proxy.backends.close()
        finally:
            await runner.cleanup()

    run(test)


def record(seen: list[tuple[str, str, dict[str, str], bytes]], answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await read_request(reader))
            writer.write(answer)

    return handler


@pytest.mark.parametrize(
    ("head", "target", "there", "gone"),
    [
        (
            "GET /a HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nX-Other: 2\r\n",
            "/a", {"host": "x", "x-other": "2", "x-forwarded-for": "127.0.0.1", "via": "1.1 acceltcp"},
            ["connection", "keep-alive", "te", "x-mine"],
        ),
        (
            "GET http://other.example:81/b?c HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n",
            "/b?c", {"host": "other.example:81", "x-forwarded-for": "1.2.3.4, 5.6.7.8, 127.0.0.1"}, [],
        ),
        ("GET http://other.example?q HTTP/1.1\r\nHost: x\r\n", "/?q", {"host": "other.example"}, []),
        ("GET /old HTTP/1.0\r\n", "/old", {"via": "1.0 acceltcp"}, ["connection"]),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n", "*", {}, ["content-length"]),
        ("GET / HTTP/1.1\r\nHost: x\r\nConnection: X-Forwarded-For\r\nX-Forwarded-For: 9\r\n", "/", {"x-forwarded-for": "127.0.0.1"}, []),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n",
            "/", {}, ["upgrade", "http2-settings", "connection"],
        ),
        ("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n", "/", {"upgrade": "websocket", "connection": "upgrade"}, []),
        ("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n", "/", {}, ["upgrade"]),
        ("\r\nGET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 0\r\n", "/", {"content-length": "0"}, []),
    ],
)  # fmt: skip
def test_what_a_back_end_is_asked(head, target, there, gone):
    async def test() -> None:
        seen: list[tuple[str, str, dict[str, str], bytes]] = []
        async with World(record(seen)) as world:
            reader, writer = await world.connect()
            writer.write(head.encode() + b"\r\n")
            status, _, _ = await read_response(reader)
            assert status == 200
            _, asked, fields, _ = seen[0]
            assert asked == target and there.items() <= fields.items() and not set(gone) & fields.keys(), fields
            assert "host" in fields

    run(test)


def test_an_answer_loses_what_is_for_one_hop():
    async def test() -> None:
        answer = b"HTTP/1.1 200 Fine enough\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: 9\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok"
        async with World(says(answer, close=False)) as world:
            got = await world.talk(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert got == (
                b"HTTP/1.1 200 Fine enough\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nVia: 1.1 acceltcp\r\nContent-Length: 2\r\n"
                b"Connection: close\r\n\r\nok"
            )

    run(test)


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(status):
    async def test() -> None:
        length = b"Content-Length: 50\r\n" if status == 304 else b""
        async with World(says(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, length), close=False), splice_min=1) as world:
            reader, writer = await world.connect()
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                got = await asyncio.wait_for(read_response(reader), 1)
                assert got[0] == status and got[1].get("content-length") == (None if status == 204 else "50")
                if world.proxy.backends.members[0].pool:
                    await world.proxy.backends.members[0].close()  # it says nothing twice
                    world.proxy.backends.members[0].closed = False

    run(test)


def test_interim_answers_pass():
    async def test() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert await reader.readexactly(5) == b"hello"
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\n!")
            await reader.read()

        async with World(handler) as world:
            reader, writer = await world.connect()
            writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            assert [(await read_response(reader))[0] for _ in range(2)] == [103, 100]
            writer.write(b"hello")
            assert (await read_response(reader))[::2] == (201, b"!")

    run(test)


def test_old_clients_get_no_interim_answers_and_no_chunks():
    async def test() -> None:
        answer = b"HTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
        async with World(says(answer, close=False)) as world:
            got = await world.talk(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert got.endswith(b"\r\n\r\nabcdefg") and b"chunked" not in got and b"102" not in got and b"Connection: close" in got
            assert world.proxy.backends.members[0].pool

    run(test)


def test_old_clients_may_keep_their_connection():
    async def test() -> None:
        async with World(sizes()) as world:
            reader, writer = await world.connect()
            for _ in range(3):
                writer.write(b"GET /20000 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                _, fields, body = await read_response(reader)
                assert body == body_of("/20000") and fields["connection"] == "keep-alive"

    run(test)


@pytest.mark.parametrize("until_close", [False, True])
@pytest.mark.parametrize("splices", NETS)
def test_a_body_that_ends_with_the_connection(splices, until_close):
    async def test() -> None:
        async with World(sizes(), net=net(splices), splice_until_close=until_close) as world:
            reader, writer = await world.connect()
            writer.write(b"GET /close/150000 HTTP/1.1\r\nHost: x\r\n\r\n")
            _, fields, body = await read_response(reader)
            assert body == body_of("/close/150000") and fields["connection"] == "close"
            writer.close()
            await until(lambda: not world.proxy.sessions)
            kind = "spliced" if splices and until_close else "relayed"
            assert world.proxy.stats()["bodies"][kind] == {"bodies": 1, "bytes": 150000}
            assert world.net.joins == ([None] if kind == "spliced" else [])

    run(test)


@pytest.mark.parametrize("splices", NETS)
@pytest.mark.parametrize("connect", [False, True])
def test_tunnels(splices, connect):
    async def test() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            if connect:
                assert head.startswith(b"CONNECT a.example:443 HTTP/1.1\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                assert b"Upgrade: chat\r\n" in head
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
            while data := await reader.read(1000):
                writer.write(data.swapcase())
            writer.write(b"bye")

        async with World(handler, net=net(splices)) as world:
            reader, writer = await world.connect()
            start = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"
            if not connect:
                start = b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n"
            writer.write(start + b"early")
            status, fields, _ = await read_response(reader, head_only=True)
            assert status == (200 if connect else 101) and fields.get("upgrade") == (None if connect else "chat")
            assert await reader.readexactly(5) == b"EARLY"
            data = random.Random(2).randbytes(100_000).hex().encode()
            writer.write(data)
            writer.write_eof()
            assert await rest_of(reader) == data.swapcase() + b"bye"
            await world.settled()
            bodies = world.proxy.stats()["bodies"]["spliced" if splices else "relayed"]
            assert bodies == {"bodies": 1, "bytes": 2 * len(data) + 2 * 5 + 3}

    run(test)


@pytest.mark.parametrize("splices", NETS)
def test_a_tunnel_in_which_one_side_listens_only(splices, caplog):
    """It is not idle before both are silent, and then it is nobody's fault."""

    async def test() -> None:
        caplog.set_level("INFO", "acceltcp.lb")
        start = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: news\r\n\r\n"
        async with World(says(start, *[0.1, b"news"] * 8, close=False), net=net(splices), timeouts={"idle": 0.4}) as world:
            got = await world.talk(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: news\r\n\r\n")
            assert got.endswith(b"\r\n\r\n" + 8 * b"news" + b"RESET")
            assert world.proxy.aborted == {"idle": 1} and world.proxy.backends.members[0].errors == 0
        (line,) = [record for record in caplog.records if record.name == "acceltcp.lb"]
        assert line.getMessage().endswith(" came for 0.4 s") and line.levelname == "INFO"

    run(test)


def test_a_refused_upgrade_is_an_answer_like_others():
    async def test() -> None:
        async with World(says(b"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: TLS/1.0\r\nContent-Length: 2\r\n\r\nno", close=False)) as world:
            reader, writer = await world.connect()
            writer.write(b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
            status, fields, body = await read_response(reader)
            assert (status, fields["upgrade"], body) == (426, "TLS/1.0", b"no")

    run(test)


def test_an_early_answer_to_a_long_body():
    async def test() -> None:
        async with World(says(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20000, close=False)) as world:
            reader, writer = await world.connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" + b"y" * 1000)
            status, fields, body = await read_response(reader)
            assert (status, len(body), fields["connection"]) == (413, 20000, "close")
            assert await rest_of(reader) == b"" and world.proxy.not_spliced == {"uploading": 1}

    run(test)


def test_a_body_is_answered_while_it_comes():
    async def test() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            for _ in range(1000):
                writer.write((await reader.readexactly(100)).upper())
            await reader.read()

        async with World(handler) as world:
            reader, writer = await world.connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
            writer.write(b"a" * 100)
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(999):
                assert await reader.readexactly(100) == b"A" * 100
                writer.write(b"a" * 100)
            assert await rest_of(reader) == b"A" * 100

    run(test)


# -- the choice of back ends --------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_the_next_back_end_when_one_does_not_answer(caplog):
    async def test() -> None:
        async with World(sizes("a")) as alive:
            backends = [{"host": "127.0.0.1", "port": closed_port()}, {"host": "127.0.0.1", "port": alive.backends[0].port}]
            async with World(backends=backends) as world:
                for number in range(4):
                    assert (await world.talk(b"GET /5?%d HTTP/1.0\r\n\r\n" % number)).endswith(body_of(f"/5?{number}"))
                dead, _ = world.proxy.backends.members
                # Tried once, and then not until it may be up again.
                assert dead.down and (dead.errors, dead.requests) == (1, 0)
                await world.proxy.backends.close()
        assert [record.getMessage() for record in caplog.records] == [f"back end {dead.name}: no connection: Connect call failed ('127.0.0.1', {dead.port})"]

    run(test)


def test_a_back_end_that_never_answers(caplog):
    """Its queue of connections is full, so that the kernel drops more of them."""

    async def test() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)):
                backends = [{"host": "127.0.0.1", "port": port}]
                async with World(backends=backends, timeouts={"connect": 0.2}) as world:
                    assert (await world.talk(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        assert caplog.records[0].getMessage() == f"back end 127.0.0.1:{port}: no connection: no answer within 0.2 s"

    run(test)


def test_503_when_none_answers(caplog):
    async def test() -> None:
        backends = [{"host": "127.0.0.1", "port": closed_port()} for _ in range(2)]
        async with World(backends=backends) as world:
            got = await world.talk(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and got.endswith(b"\r\n\r\nnone of 2 back ends takes a connection\n")
            head = await world.talk(b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n")
            assert head.endswith(b"Connection: close\r\n\r\n") and world.proxy.refused == {"no_backend": 2}
        assert any("GET /x: 503: none of 2" in record.getMessage() for record in caplog.records)

    run(test)


def test_the_limit_of_connections():
    async def test() -> None:
        hold = asyncio.Event()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await hold.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

        async with World(handler, handler, limits={"backend_connections": 2}) as world:
            waiting = [asyncio.ensure_future(world.talk(b"GET / HTTP/1.0\r\n\r\n")) for _ in range(4)]
            await until(lambda: [member.active for member in world.proxy.backends.members] == [2, 2])
            got = await world.talk(b"GET / HTTP/1.0\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 503 ") and got.endswith(b"all back ends have 2 connections each\n")
            hold.set()
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in await asyncio.gather(*waiting))

    run(test)


def test_uri_hash_keeps_a_target_at_its_back_end():
    async def test() -> None:
        async with World(sizes("a"), sizes("b"), sizes("c"), balance="uri_hash") as world:
            reader, writer = await world.connect()
            servers: dict[str, set[str]] = {}
            for number in range(60):
                target = f"/{number % 20}"
                writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                servers.setdefault(target, set()).add((await read_response(reader))[1]["x-server"])
            assert all(len(seen) == 1 for seen in servers.values()) and len(set.union(*servers.values())) == 3

    run(test)


def test_a_connection_that_ended_in_the_pool_is_not_used():
    async def test() -> None:
        async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Says that it keeps the connection, and does not; the client finds out when it asks again."""
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await reader.readuntil(b"\r\n\r\n")

        async with World(once) as world:
            reader, writer = await world.connect()
            for _ in range(5):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await read_response(reader))[2] == b"ok"
            # What must not be repeated has a connection of its own.
            for _ in range(3):
                writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1")
                assert (await read_response(reader))[2] == b"ok"
            assert world.proxy.backends.members[0].errors == 0

    run(test)


def test_the_pool_is_watched_and_bounded():
    async def test() -> None:
        async def soon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await asyncio.sleep(0.3)

        async with World(soon, limits={"pooled_connections": 2}) as world:
            (member,) = world.proxy.backends.members
            await asyncio.gather(*(world.talk(b"GET / HTTP/1.0\r\n\r\n") for _ in range(6)))
            assert world.backends[0].connections > 2 and len(member.pool) == 2
            await until(lambda: not member.pool)
            assert member.errors == 0
        async with World(sizes(), timeouts={"keep_alive": 0.1}) as world:
            await world.talk(b"GET /1 HTTP/1.0\r\n\r\n")
            await until(lambda: not world.proxy.backends.members[0].pool and not world.backends[0].live)
        async with World(sizes(), backend_keep_alive=False) as world:
            await world.talk(b"GET /1 HTTP/1.0\r\n\r\n")
            assert not world.proxy.backends.members[0].pool

    run(test)


# -- the end ------------------------------------------------------------------------------------------


def test_a_stop_lets_requests_end_and_idle_clients_go():
    async def test() -> None:
        hold = asyncio.Event()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await hold.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await reader.read()

        async with World(handler) as world:
            idle, _ = await world.connect()
            busy, writer = await world.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: world.proxy.backends.members[0].active and len(world.proxy.sessions) == 2)
            stopping = asyncio.ensure_future(world.proxy.close())
            assert await rest_of(idle) == b""
            hold.set()
            _, fields, body = await read_response(busy)
            assert body == b"ok" and fields["connection"] == "close" and await rest_of(busy) == b""
            await stopping

    run(test)


def test_a_stop_cuts_off_what_takes_too_long(caplog):
    async def test() -> None:
        async with World(says(close=False), timeouts={"stop": 0.1, "response": 20}) as world:
            reader, writer = await world.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: world.proxy.backends.members[0].active)
            await world.proxy.close()
            assert await rest_of(reader) == b"RESET" and not world.proxy.sessions
        assert any("1 connections were not over after 0.1 s" in record.getMessage() for record in caplog.records)

    run(test)
