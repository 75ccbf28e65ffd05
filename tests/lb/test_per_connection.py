"""Back ends chosen per connection: the first request is read, and after it nothing of either side."""

from __future__ import annotations

import asyncio
import random
import subprocess

import pytest

from .bench import (
    SplicingNet,
    World,
    body_of,
    read_request,
    read_response,
    reset_now,
    rest_of,
    run,
    says,
    sizes,
    until,
)
from .test_hostile import REFUSED, nobody
from .test_proxy import NETS, closed_port, net

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def per_connection(*handlers, **options) -> World:
    return World(*handlers, balance_per="connection", **options)


@pytest.mark.parametrize("splices", NETS)
def test_all_requests_of_a_connection_have_one_back_end(splices):
    async def test() -> None:
        async with per_connection(sizes("a"), sizes("b"), sizes("c"), net=net(splices)) as world:
            served = []
            for turn in range(6):
                reader, writer = await world.connect()
                servers = set()
                for number, size in enumerate((0, 100_000, 7)):
                    target = f"/{'chunked/' * (number == 1)}{size}?{turn}.{number}"
                    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    _, fields, body = await read_response(reader)
                    assert body == body_of(target) and "via" not in fields
                    servers.add(fields["x-server"])
                served += servers
                assert world.proxy.stats()["handed_over"]["live"] == 1
                writer.write_eof()
                assert await rest_of(reader) == b""
                writer.close()
                await world.settled()
            assert served == ["a", "b", "c"] * 2
            # None is kept, and none was asked twice.
            assert [backend.connections for backend in world.backends] == [2, 2, 2]
            stats = world.proxy.stats()
            assert stats["clients"]["requests"] == 6 and [each["requests"] for each in stats["backends"].values()] == [2, 2, 2]
            handed = stats["handed_over"]
            assert handed.pop("bytes") > 600_000
            assert handed == {"connections": 6, "live": 0, "spliced": 6 * splices, "relayed": 6 * (not splices)}
            assert world.net.joins == [None] * 6 * splices
            assert stats["refused"] == stats["aborted"] == stats["not_spliced"] == {}

    run(test)


HEADS = [
    (b"GET /a HTTP/1.1\r\nHost: x\r\n", b"GET /a HTTP/1.1\r\nHost: x\r\n", b"1.1", b""),
    (b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n", b"GET /a HTTP/1.1\r\nHost: x\r\n", b"1.1", b"Connection: close\r\n"),
    (b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n", b"GET /a HTTP/1.1\r\nHost: x\r\n", b"1.1", b""),
    # Neither version nor Host are made better: the answer is for this client.
    (b"GET /a HTTP/1.0\r\n", b"GET /a HTTP/1.0\r\n", b"1.0", b""),
    (b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n", b"GET /a HTTP/1.0\r\n", b"1.0", b"Connection: keep-alive\r\n"),
    # What names our field would have the back end drop it.
    (b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: x-forwarded-for, via\r\n", b"GET /a HTTP/1.1\r\nHost: x\r\n", b"1.1", b""),
    (b"GET http://y/a HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 9\r\n", b"GET /a HTTP/1.1\r\nHost: y\r\n", b"1.1", b""),
    (
        b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n",
        b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n", b"1.1", b"",
    ),
    (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close, upgrade\r\nUpgrade: h2c, chat\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n", b"1.1", b"Upgrade: chat\r\nConnection: close, upgrade\r\n",
    ),
    (b"CONNECT y:1 HTTP/1.1\r\nHost: y:1\r\n", b"CONNECT y:1 HTTP/1.1\r\nHost: y:1\r\n", b"1.1", b""),
]  # fmt: skip


@pytest.mark.parametrize(("said", "begins", "version", "ends"), HEADS, ids=range(len(HEADS)))
def test_the_first_head_says_what_the_client_asked_for(said, begins, version, ends):
    async def test() -> None:
        got = asyncio.get_running_loop().create_future()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.set_result(await reader.readuntil(b"\r\n\r\n"))
            await reader.read()

        async with per_connection(handler) as world:
            _, writer = await world.connect()
            writer.write(said + b"\r\n")
            earlier = b"9, " if b"X-Forwarded-For" in said else b""
            assert await got == begins + b"X-Forwarded-For: %b127.0.0.1\r\nVia: %b acceltcp\r\n%b\r\n" % (earlier, version, ends)
            writer.write_eof()
            await world.settled()

    run(test)


@pytest.mark.parametrize("splices", NETS)
@pytest.mark.parametrize("at", [0, 3, 25])
def test_what_comes_behind_the_first_head_goes_along_unread(splices, at):
    """The rest of a chunked body, another request with what the balancer writes itself, and what is no HTTP: at once, or later."""
    behind = b'5;a="b"\r\nhello\r\n0\r\nA: b\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n\0\n' + bytes(70_000)

    async def test() -> None:
        got = asyncio.get_running_loop().create_future()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            got.set_result(await reader.readexactly(len(behind)))
            writer.write(b"\0no HTTP either")

        async with per_connection(handler, net=net(splices)) as world:
            reader, writer = await world.connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + behind[:at])
            await until(lambda: world.proxy.handed["live"])
            writer.write(behind[at:])
            assert await got == behind and await rest_of(reader) == b"\0no HTTP either"
            writer.close()
            await world.settled()
            assert world.proxy.stats()["clients"]["requests"] == 1

    run(test)


def test_pipelined_requests_go_to_the_same_back_end():
    async def test() -> None:
        async with per_connection(sizes("a"), sizes("b")) as world:
            reader, writer = await world.connect()
            targets = [f"/{size}?{number}" for number, size in enumerate((50000, 3, 0, 12000))]
            writer.write("".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n" for target in targets).encode())
            for target in targets:
                _, fields, body = await read_response(reader)
                assert body == body_of(target) and fields["x-server"] == "a"

    run(test)


@pytest.mark.parametrize("splices", NETS)
def test_curl(splices, tmp_path):
    async def test() -> None:
        async with per_connection(sizes("a"), sizes("b"), net=net(splices)) as world:
            big = random.Random(1).randbytes(300_000)
            (tmp_path / "up").write_bytes(big)
            base = f"http://127.0.0.1:{world.port}"
            upload = ["-H", "Expect: 100-continue", "--expect100-timeout", "0.05", "--data-binary", f"@{tmp_path / 'up'}", f"{base}/up"]
            for words, whole in (
                (upload, big), ([f"{base}/30000", f"{base}/chunked/5000"], body_of("/30000") + body_of("/chunked/5000")),
                (["-H", "Connection: close", f"{base}/close/20000"], body_of("/close/20000")),
            ):  # fmt: skip
                done = await asyncio.to_thread(subprocess.run, ["curl", "-sSf", *words], capture_output=True, timeout=15)
                assert done.returncode == 0 and done.stdout == whole, done.stderr
            assert [backend.connections for backend in world.backends] == [2, 1]

    run(test)


@pytest.mark.parametrize("splices", NETS)
def test_an_upgrade(splices):
    async def test() -> None:
        async def chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
            while data := await reader.read(1000):
                writer.write(data.swapcase())
            writer.write(b"bye")

        async with per_connection(chat, net=net(splices)) as world:
            reader, writer = await world.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\nearly")
            assert (await read_response(reader, head_only=True))[0] == 101
            writer.write_eof()
            assert await rest_of(reader) == b"EARLYbye"

    run(test)


# -- before the back end has it --------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "status", "said"), [case for case in REFUSED if b"EVIL" in case[0]][::4])
def test_a_first_head_that_is_ambiguous_is_refused(data, status, said):
    async def test() -> None:
        async with per_connection(nobody) as world:
            got = await world.talk(data)
            assert got.startswith(b"HTTP/1.1 %d " % status) and said in got
            assert world.backends[0].connections == 0 and world.proxy.refused == {"malformed": 1}

    run(test)


def test_refusals():
    async def test() -> None:
        async with per_connection(nobody, limits={"header_bytes": 1000, "backend_connections": 1}, timeouts={"header": 0.2}) as world:
            assert (await world.talk(b"GET / HT")).startswith(b"HTTP/1.1 408 ")
            assert (await world.talk(b"GET /" + b"a" * 2000)).startswith(b"HTTP/1.1 431 ")
            assert (await world.talk(b"GET / HT", end=True)).startswith(b"HTTP/1.1 400 ")
            _, writer = await world.connect()
            writer.write(GET)
            await until(lambda: world.proxy.handed["live"])
            got = await world.talk(GET)
            assert got.startswith(b"HTTP/1.1 503 ") and got.endswith(b"all back ends have 1 connections each\n")
            writer.close()
        dead = [{"host": "127.0.0.1", "port": closed_port()}]
        async with per_connection(backends=dead) as world:
            assert (await world.talk(GET)).endswith(b"none of 1 back ends takes a connection\n")
            assert world.proxy.refused == {"no_backend": 1} and not world.proxy.handed

    run(test)


def test_the_next_back_end_when_one_takes_no_connection():
    async def test() -> None:
        async with World(sizes("a")) as alive:
            backends = [{"host": "127.0.0.1", "port": closed_port()}, {"host": "127.0.0.1", "port": alive.backends[0].port}]
            async with per_connection(backends=backends) as world:
                assert (await world.talk(b"GET /5 HTTP/1.1\r\nHost: x\r\n\r\n", end=True)).endswith(body_of("/5"))

    run(test)


def test_a_back_end_that_resets_before_the_request_is_written():
    class Broken(SplicingNet):
        """Its connections to back ends are over as soon as they are there."""

        async def connect(self, *words):
            stream = await super().connect(*words)
            stream.abort()
            await stream.wait_closed()
            return stream

    async def test() -> None:
        async with per_connection(nobody, net=Broken()) as world:
            assert (await world.talk(GET)).startswith(b"HTTP/1.1 502 ")
            assert world.proxy.refused == {"backend_failed": 1} and world.proxy.backends.members[0].errors == 1

    run(test)


# -- afterwards ------------------------------------------------------------------------------------------

PART = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + b"x" * 20000


@pytest.mark.parametrize("splices", NETS)
def test_a_back_end_that_resets(splices, caplog):
    async def test() -> None:
        async with per_connection(says(PART, 0.05, reset=True), net=net(splices)) as world:
            got = await world.talk(b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n")
            assert got == PART + b"RESET"
            await world.settled()
            assert world.proxy.aborted == {"backend": 1} and world.proxy.backends.members[0].errors == 1
        (record,) = caplog.records
        assert record.levelname == "WARNING" and "GET /here: cut off: back end 127.0.0.1:" in record.getMessage()

    run(test)


@pytest.mark.parametrize("splices", NETS)
def test_silence(splices, caplog):
    """Of a back end, or of a client between two requests: that cannot be told apart."""

    async def test() -> None:
        caplog.set_level("INFO", "acceltcp.lb")
        async with per_connection(says(PART, close=False), net=net(splices), timeouts={"idle": 0.3}) as world:
            assert await world.talk(b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n") == PART + b"RESET"
            await world.settled()
            assert world.proxy.aborted == {"idle": 1} and world.proxy.backends.members[0].errors == 0
        (record,) = [record for record in caplog.records if record.name == "acceltcp.lb"]
        assert "GET /here: cut off: no" in record.getMessage() and record.getMessage().endswith("came for 0.3 s")

    run(test)


@pytest.mark.parametrize("splices", NETS)
def test_a_back_end_that_ends_its_data_early(splices):
    """Nobody here knows how long they should have been: the client sees the same end."""

    async def test() -> None:
        async with per_connection(says(PART), net=net(splices)) as world:
            assert await world.talk(GET, end=True) == PART
            await world.settled()
            assert not world.proxy.aborted

    run(test)


@pytest.mark.parametrize("splices", NETS)
def test_a_client_that_resets(splices):
    async def test() -> None:
        async with per_connection(sizes(), net=net(splices)) as world:
            reader, writer = await world.connect()
            writer.write(b"GET /5000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readexactly(10000)
            reset_now(writer)
            await world.settled()
            assert not world.backends[0].live and world.proxy.aborted == {"client": 1}
            assert world.proxy.backends.members[0].errors == 0

    run(test)


@pytest.mark.parametrize("splices", NETS)
def test_a_stop(splices, caplog):
    """Who has asked nothing goes at once, others have their time."""

    async def test() -> None:
        async with per_connection(sizes(), net=net(splices), timeouts={"stop": 0.4}) as world:
            idle, _ = await world.connect()
            (soon, closing), (late, busy) = [await world.connect() for _ in range(2)]
            for writer in (closing, busy):
                writer.write(b"GET /5 HTTP/1.1\r\nHost: x\r\n\r\n")
            for reader in (soon, late):
                await read_response(reader)
            await until(lambda: len(world.proxy.sessions) == 3)
            stopping = asyncio.ensure_future(world.proxy.close())
            assert await rest_of(idle) == b""
            closing.write(b"GET /9 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_response(soon))[2] == body_of("/9")
            closing.write_eof()
            assert await rest_of(soon) == b"" and await rest_of(late) == b"RESET"
            await stopping
        assert [record.getMessage() for record in caplog.records] == ["1 connections were not over after 0.4 s: cut off"]

    run(test)


def test_a_storm():
    """Good and bad clients at once; the good ones get what is theirs, from one back end each."""

    async def test() -> None:
        rng = random.Random(12)

        async def flaky(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                _, target, _, _ = await read_request(reader)
                if rng.random() < 0.1:
                    reset_now(writer)
                    return
                body = body_of(target)
                writer.write(b"HTTP/1.1 200 OK\r\nX-Server: f\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()

        async with per_connection(sizes("a"), flaky, sizes("c"), balance="least_connections") as world:
            whole = 0

            async def good(number: int) -> None:
                nonlocal whole
                reader, writer = await world.connect()
                servers = set()
                for turn in range(10):
                    target = f"/{rng.choice((10, 3000, 30000, 200000))}?{number}.{turn}"
                    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    try:
                        _, fields, body = await read_response(reader)
                    except (OSError, asyncio.IncompleteReadError):
                        assert servers <= {"f"}
                        return
                    servers.add(fields["x-server"])
                    assert body == body_of(target) and len(servers) == 1
                    whole += 1

            async def bad() -> None:
                for _ in range(10):
                    _reader, writer = await world.connect()
                    writer.write(rng.choice((b"GET /300000 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nEVIL", b"GET\r\n")))
                    await asyncio.sleep(rng.random() / 50)
                    writer.transport.abort()

            await asyncio.gather(*(good(number) for number in range(12)), *(bad() for _ in range(8)))
            assert whole > 60

    run(test)
