"""The balancer on the model NIC: clients and back ends are on the near one, the balancer is on the far one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

import acceltcp.host
from acceltcp.host import Nic
from acceltcp.lb import LoadBalancer
from acceltcp.lb.config import parse

from ..host.aio.pair import FAR4, FAR6, NEAR4, NEAR6
from ..host.aio.test_splice import run_spliced
from ..host.test_stack import QUICK, until
from .bench import Handler, body_of, read_response, rest_of, says, sizes

TIMES = {"connect": 1, "header": 2, "response": 3, "idle": 2, "stop": 2}


def closing(handler: Handler) -> Handler:
    """The connection ends with its handler, and that with the client."""

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    return whole


class World:
    """A balancer, its back ends on ports 8000 and up, and what clients need."""

    def __init__(self, near: Nic, far: Nic, v6: bool = False) -> None:
        self.near, self.far, self.v6 = near, far, v6
        self.balancer: LoadBalancer

    async def start(self, *handlers: Handler, **options: Any) -> None:
        address = NEAR6 if self.v6 else NEAR4
        for number, handler in enumerate(handlers):
            await acceltcp.host.start_server(closing(handler), None, 8000 + number, nic=self.near)
        backends = [{"host": address, "port": 8000 + number} for number in range(len(handlers))]
        timeouts = {**TIMES, **options.pop("timeouts", {})}
        self.balancer = LoadBalancer(parse({"backends": backends, "splice_min": 10000, "timeouts": timeouts, **options}))
        self.server = await self.far.listen(80, self.balancer.handle)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await acceltcp.host.open_connection(FAR6 if self.v6 else FAR4, 80, nic=self.near)

    async def stop(self) -> dict[str, Any]:
        """All in order; the figures at the end. Nothing is left on the far side but what TCP keeps for a while."""
        await self.server.close()
        await self.balancer.close()
        stats = self.balancer.stats()
        assert stats["clients"]["live"] == 0
        assert all(not each["active"] and not each["pooled"] for each in stats["backends"].values())
        await until(lambda: not self.far._users and not self.server.connections)
        return stats


def run(test: Callable[[World], Awaitable[None]], *, v6: bool = False, **options: Any) -> None:
    async def inside(near: Nic, far: Nic) -> None:
        await test(World(near, far, v6))

    run_spliced(inside, **options)


@pytest.mark.parametrize("splices", [16, 0])
@pytest.mark.parametrize("v6", [False, True])
def test_keep_alive_over_three_back_ends(v6, splices):
    async def test(world: World) -> None:
        rng = random.Random(5)
        await world.start(sizes("a"), sizes("b"), sizes("c"))
        reader, writer = await world.connect()
        servers: Counter[str] = Counter()
        long = longest = octets = 0
        for number in range(60):
            target = f"/{rng.choice(['', '', 'chunked/'])}{rng.choice((0, 1, 1448, 9999, 10000, 65536, 150_000))}?{number}"
            writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            status, fields, body = await read_response(reader)
            assert status == 200 and hashlib.sha256(body).digest() == hashlib.sha256(body_of(target)).digest()
            if len(body) >= 10000 and "chunked" not in target:
                long += 1
                longest += len(body) == 150_000
                octets += len(body)
            servers[fields["x-server"]] += 1
        writer.close()
        assert set(servers.values()) == {20} and long > 10
        stats = await world.stop()
        spliced = stats["bodies"]["spliced"]
        # What is short may all have come before the NIC is asked.
        if splices:
            assert spliced["bodies"] >= longest > 2 and stats["not_spliced"] == {}
            assert world.far.stats()["splice"]["hardware"] == spliced["bodies"] and spliced["bytes"] <= octets
        else:
            assert spliced["bodies"] == 0 and stats["not_spliced"] == {"no_feature": long}
        assert [each["requests"] for each in stats["backends"].values()] == [20, 20, 20]

    run(test, v6=v6, splices=splices)


def test_pipelined_requests_wait_while_the_nic_forwards():
    async def test(world: World) -> None:
        await world.start(sizes("a"), sizes("b"))
        reader, writer = await world.connect()
        targets = [f"/{size}?{number}" for number, size in enumerate((200_000, 5, 90_000, 0, 100_000))]
        writer.write("".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n" for target in targets).encode())
        for target in targets:
            assert (await read_response(reader))[2] == body_of(target)
        writer.close()
        assert (await world.stop())["bodies"]["spliced"]["bodies"] >= 2

    run(test)


def test_an_upgrade_is_given_to_the_nic_for_good():
    async def test(world: World) -> None:
        async def chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
            while data := await reader.read(1 << 16):
                writer.write(data.swapcase())
                await writer.drain()
            writer.close()

        await world.start(chat)
        reader, writer = await world.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\nearly")
        assert (await read_response(reader, head_only=True))[0] == 101
        assert await reader.readexactly(5) == b"EARLY"
        for _ in range(20):
            data = random.Random(1).randbytes(3000).hex().encode()
            writer.write(data)
            assert await reader.readexactly(len(data)) == data.swapcase()
        writer.write_eof()
        assert await rest_of(reader) == b""
        writer.close()
        assert (await world.stop())["bodies"]["spliced"] == {"bodies": 1, "bytes": 2 * (20 * 6000 + 5)}

    run(test)


SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + b"x" * 30000


@pytest.mark.parametrize("splices", [16, 0])
@pytest.mark.parametrize("end", ["ends", "silent"])
def test_a_body_that_is_cut_off(end, splices, caplog):
    async def test(world: World) -> None:
        # A pause, so that the splice is there before the end.
        await world.start(says(SHORT, 0.1, close=end == "ends"), timeouts={"idle": 0.4})
        reader, writer = await world.connect()
        writer.write(b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n")
        got = await rest_of(reader)
        assert got.startswith(b"HTTP/1.1 200 OK") and got.endswith(b"RESET")
        writer.close()
        stats = await world.stop()
        assert stats["aborted"] == {"backend": 1} and stats["backends"][f"{NEAR4}:8000"]["errors"] == 1
        lines = [record.getMessage() for record in caplog.records if record.name == "acceltcp.lb"]
        assert len(lines) == 1 and "GET /here: cut off: back end 10.0.0.1:8000 failed while spliced: " in lines[0]
        assert ("no packet came for 0.4 s" in lines[0]) == (end == "silent")

    run(test, splices=splices)


def test_more_than_was_announced():
    async def test(world: World) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60000
        await world.start(says(answer[:30000], 0.05, answer[30000:] + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL", close=False))
        reader, writer = await world.connect()
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_response(reader))[2] == b"x" * 60000
        writer.close()
        stats = await world.stop()
        assert stats["backends"][f"{NEAR4}:8000"]["errors"] == 3 and stats["bodies"]["spliced"]["bodies"] == 3

    run(test)


@pytest.mark.parametrize("splices", [16, 0])
def test_a_client_that_resets_in_mid_body(splices):
    async def test(world: World) -> None:
        await world.start(sizes())
        reader, writer = await world.connect()
        writer.write(b"GET /8000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(100_000)
        writer.transport.abort()
        await until(lambda: not world.balancer.proxy.sessions)
        stats = await world.stop()
        assert stats["aborted"] == {"client": 1} and stats["backends"][f"{NEAR4}:8000"]["errors"] == 0

    run(test, splices=splices)


def test_a_client_that_answers_and_takes_nothing(caplog):
    async def test(world: World) -> None:
        caplog.set_level("INFO", "acceltcp.lb")
        await world.start(sizes(), limits={"min_rate": 10_000_000}, timeouts={"idle": 0.5})
        reader, writer = await world.connect()
        writer.write(b"GET /4000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: world.balancer.proxy is not None and world.balancer.proxy.aborted, 5)
        assert (await rest_of(reader)).endswith(b"RESET")
        writer.close()
        stats = await world.stop()
        assert stats["aborted"] == {"client": 1} and stats["backends"][f"{NEAR4}:8000"]["errors"] == 0
        assert world.far.stats()["splice"]["aborted"] == 1
        (line,) = [record.getMessage() for record in caplog.records if record.name == "acceltcp.lb"]
        assert line.endswith("was sent less than 10000000 bytes per second of a spliced body")

    run(test)


def test_a_client_that_resets_while_it_waits():
    async def test(world: World) -> None:
        await world.start(says(close=False))
        _, writer = await world.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: world.balancer.proxy is not None and world.balancer.proxy.backends.members[0].active)
        writer.transport.abort()
        await until(lambda: not world.balancer.proxy.sessions)
        assert (await world.stop())["aborted"] == {"client": 1}

    run(test)


def test_no_back_end_and_bad_requests():
    async def refused(world: World) -> None:
        world.balancer = LoadBalancer(parse({"backends": [{"host": NEAR4, "port": 9}], "timeouts": TIMES}))
        world.server = await world.far.listen(80, world.balancer.handle)
        for request, status in ((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"503"), (b"\n", b"400"), (b"GET /\r\n\r\n", b"400")):
            reader, writer = await world.connect()
            writer.write(request)
            got = await rest_of(reader)
            assert got.startswith(b"HTTP/1.1 " + status), got
            writer.close()
        assert (await world.stop())["refused"] == {"no_backend": 1, "malformed": 2}

    run(refused)


@pytest.mark.parametrize("v6", [False, True])
def test_a_client_of_small_segments_gets_a_back_end_that_sends_such(v6):
    """Otherwise the NIC would refuse: it does not cut segments."""

    async def test(world: World) -> None:
        await world.start(sizes("a"))
        for _ in range(2):
            reader, writer = await world.connect()
            writer.write(b"GET /100000 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_response(reader))[2] == body_of("/100000")
            writer.close()
        stats = await world.stop()
        assert stats["bodies"]["spliced"]["bodies"] == 2 and stats["not_spliced"] == {}

    # The back end's own handshakes offer what the NIC's MTU allows.
    run(test, v6=v6, near={"tcp": replace(QUICK, mtu=1300)})


def test_a_stop_serves_what_runs():
    async def test(world: World) -> None:
        await world.start(says(0.2, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", close=False))
        idle, _ = await world.connect()
        busy, writer = await world.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: world.balancer.proxy is not None and world.balancer.proxy.backends.members[0].active)
        stopping = asyncio.ensure_future(world.stop())
        assert await rest_of(idle) == b""
        _, fields, body = await read_response(busy)
        assert body == b"ok" and fields["connection"] == "close" and await rest_of(busy) == b""
        writer.close()
        await stopping

    run(test)


# -- back ends chosen per connection ---------------------------------------------------------------------


@pytest.mark.parametrize("splices", [16, 0])
@pytest.mark.parametrize("v6", [False, True])
def test_per_connection(v6, splices):
    async def test(world: World) -> None:
        rng = random.Random(6)
        await world.start(sizes("a"), sizes("b"), sizes("c"), balance_per="connection")
        octets = 0
        for turn in range(6):
            reader, writer = await world.connect()
            for number in range(5):
                body = rng.randbytes(rng.choice((0, 1, 60_000)))
                target = f"/{rng.choice(['', 'chunked/'])}{rng.choice((0, 1, 1448, 65536))}?{number}"
                writer.write(f"{'POST' if body else 'GET'} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
                writer.write(body)
                status, fields, got = await read_response(reader)
                assert status == 200 and got == (body or body_of(target)) and fields["x-server"] == "abc"[turn % 3]
                octets += len(body) + len(got)
            writer.write_eof()
            assert await rest_of(reader) == b""
            writer.close()
        # The NIC says when it has forgotten them.
        await until(lambda: not world.balancer.proxy.sessions)
        stats = await world.stop()
        handed = stats["handed_over"]
        assert handed.pop("bytes") > octets
        assert handed == {"connections": 6, "live": 0, "spliced": 6 * bool(splices), "relayed": 6 * (not splices)}
        assert stats["not_spliced"] == ({} if splices else {"no_feature": 6}) and stats["aborted"] == stats["refused"] == {}
        assert [each["requests"] for each in stats["backends"].values()] == [2, 2, 2]
        assert world.far.stats()["splice"]["closed"] == 6 * bool(splices)

    run(test, v6=v6, splices=splices)


def test_per_connection_when_the_nic_has_no_room():
    """One more than it can splice: relayed, and counted."""

    async def test(world: World) -> None:
        await world.start(sizes("a"), balance_per="connection")
        clients = [await world.connect() for _ in range(2)]
        for reader, writer in clients:
            writer.write(b"GET /9 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_response(reader))[2] == body_of("/9")
        for reader, writer in clients:
            writer.write(b"GET /100000 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_response(reader))[2] == body_of("/100000")
            writer.write_eof()
            assert await rest_of(reader) == b""
            writer.close()
        await until(lambda: not world.balancer.proxy.sessions)
        stats = await world.stop()
        assert (stats["handed_over"]["spliced"], stats["handed_over"]["relayed"]) == (1, 1)
        assert stats["not_spliced"] == {"table_full": 1} and world.far.stats()["splice"]["refused"] == {"table_full": 1}

    run(test, splices=1)


@pytest.mark.parametrize("splices", [16, 0])
@pytest.mark.parametrize(
    ("end", "aborted", "errors", "said"),
    [
        ("server", {"backend": 1}, 1, "Connection reset by peer: the server has reset the connection"),
        ("client", {"client": 1}, 0, "Connection reset by peer: the client has reset the connection"),
        ("silent", {"idle": 1}, 0, "cut off: no packet came for 0.4 s"),
    ],
)
def test_per_connection_that_is_cut_off(end, aborted, errors, said, splices, caplog):
    async def test(world: World) -> None:
        caplog.set_level("INFO", "acceltcp.lb")

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SHORT)
            await asyncio.sleep(0.1)
            if end == "server":
                writer.transport.abort()
            await reader.read()

        await world.start(handler, balance_per="connection", timeouts={"idle": 0.4})
        reader, writer = await world.connect()
        writer.write(b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readexactly(len(SHORT)) == SHORT
        if end == "client":
            writer.transport.abort()
        else:
            assert await rest_of(reader) == b"RESET"
            writer.close()
        await until(lambda: not world.balancer.proxy.sessions)
        stats = await world.stop()
        assert stats["aborted"] == aborted and stats["backends"][f"{NEAR4}:8000"]["errors"] == errors
        (line,) = [record for record in caplog.records if record.name == "acceltcp.lb"]
        assert "GET /here: cut off: " in line.getMessage() and line.getMessage().endswith(said)
        assert line.levelname == ("WARNING" if end == "server" else "INFO")

    run(test, splices=splices)


@pytest.mark.parametrize("splices", [16, 0])
def test_per_connection_a_stop_ends_splices(splices, caplog):
    async def test(world: World) -> None:
        await world.start(sizes("a"), balance_per="connection", timeouts={"stop": 0.3})
        idle, _ = await world.connect()
        reader, writer = await world.connect()
        writer.write(b"GET /9 HTTP/1.1\r\nHost: x\r\n\r\n")
        await read_response(reader)
        await until(lambda: len(world.balancer.proxy.sessions) == 2)
        stopping = asyncio.ensure_future(world.stop())
        assert await rest_of(idle) == b""
        assert await rest_of(reader) == b"RESET"
        writer.close()
        assert (await stopping)["handed_over"]["live"] == 0
        assert [record.getMessage() for record in caplog.records] == ["1 connections were not over after 0.3 s: cut off"]

    run(test, splices=splices)


def test_per_connection_a_client_that_has_ended_its_data():
    """The NIC does not take half a connection."""

    async def test(world: World) -> None:
        await world.start(sizes("a"), balance_per="connection")
        reader, writer = await world.connect()
        writer.write(b"GET /50000 HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write_eof()
        assert (await read_response(reader))[2] == body_of("/50000") and await rest_of(reader) == b""
        writer.close()
        await until(lambda: not world.balancer.proxy.sessions)
        stats = await world.stop()
        assert stats["handed_over"]["connections"] == 1 and stats["aborted"] == {}
        assert stats["not_spliced"] == {"state": 1}

    run(test)
