"""A proxy on loopback between clients of the test and back ends that do as the test says; nothing may be left of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from acceltcp.lb.config import Config, parse
from acceltcp.lb.proxy import Proxy
from acceltcp.lb.streams import Joined, Net, SocketNet, SocketStream, Stream

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TEST_S = 20


async def until(what: Callable[[], Any], seconds: float = 5) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.002)


class SplicingNet(SocketNet):
    """Forwards as the NIC would: exactly so many bytes of the server, nothing of the client; resets both when something goes wrong."""

    splices = True

    def __init__(self) -> None:
        self.joins: list[int | None] = []

    async def join(self, client: Stream, server: Stream, limit: int | None, idle: float) -> Joined:
        self.joins.append(limit)
        octets = [0, 0]
        loop = asyncio.get_running_loop()

        @contextlib.contextmanager
        def of(number: int) -> Iterator[None]:
            try:
                yield
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}: the {('client', 'server')[number]} has reset the connection") from None

        async def way(number: int, source: Stream, sink: Stream, most: int | None) -> None:
            while most is None or octets[number] < most:
                with of(number):
                    data = await source.read(65536 if most is None else min(65536, most - octets[number]))
                late.reschedule(loop.time() + idle)
                if not data:
                    if most is not None:
                        raise ConnectionResetError("the server ended its data before the limit")
                    sink.write_eof()
                    return
                octets[number] += len(data)
                with of(1 - number):
                    sink.write(data)
                    await sink.drain()

        ways = [asyncio.ensure_future(way(1, server, client, limit))]
        if limit is None:
            ways.append(asyncio.ensure_future(way(0, client, server, None)))
        late = asyncio.timeout(idle)
        try:
            async with late:
                await asyncio.gather(*ways)
        except BaseException as error:
            client.abort()
            server.abort()
            if late.expired():
                raise TimeoutError(errno.ETIMEDOUT, f"no packet came for {idle:g} s") from error
            raise
        finally:
            for task in ways:
                task.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        return Joined(octets[0], octets[1], True, None)


class Backend:
    """A back end whose connections a handler has."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.connections = 0
        self.live: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str = "127.0.0.1") -> None:
        self._server = await asyncio.start_server(self._run, host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.live.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._handler(reader, writer)
        finally:
            self.live.discard(task)
            writer.close()

    async def stop(self) -> None:
        self._server.close()
        for task in list(self.live):
            task.cancel()
        await asyncio.gather(*self.live, return_exceptions=True)


class World:
    """A proxy and its back ends. options: of the configuration."""

    def __init__(self, *handlers: Handler, net: Net | None = None, **options: Any) -> None:
        self.backends = [Backend(handler) for handler in handlers]
        self.net = net or SplicingNet()
        self._options = options
        self.config: Config
        self.proxy: Proxy
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> World:
        self._before = asyncio.all_tasks()
        self._files = len(os.listdir("/proc/self/fd"))
        for backend in self.backends:
            await backend.start()
        addresses = [{"host": "127.0.0.1", "port": backend.port} for backend in self.backends]
        options = {"splice_min": 10000, **self._options}
        options["timeouts"] = {"connect": 2, "header": 2, "response": 2, "idle": 2, "stop": 2, **options.get("timeouts", {})}
        self.config = parse({"backends": options.pop("backends", addresses), **options})
        self.proxy = Proxy(self.config, self.net)
        assert isinstance(self.net, SocketNet)
        self.server = await self.net.listen(self.proxy.handle, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: object, *rest: object) -> None:
        for writer in self._writers:
            writer.transport.abort()
        try:
            if kind is None:
                await self.settled()
        finally:
            self.server.close()
            await self.proxy.close()
            for backend in self.backends:
                await backend.stop()
        if kind is None:
            assert all(not member.pool and not member.active for member in self.proxy.backends.members)
            # What is left: a turn or two until the loop has told the transports.
            await until(lambda: not asyncio.all_tasks() - self._before)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= self._files)

    async def settled(self) -> None:
        """Nobody is served, and no task or connection is left of anybody; what waits in the pools is counted."""
        proxy = self.proxy
        await until(lambda: not proxy.sessions and all(not member.active for member in proxy.backends.members))
        pooled = {link.watching for member in proxy.backends.members for link in member.pool}
        theirs = {task for backend in self.backends for task in backend.live}
        await until(lambda: not asyncio.all_tasks() - self._before - pooled - theirs)
        await until(
            lambda: sum(len(backend.live) for backend in self.backends) <= sum(len(member.pool) for member in proxy.backends.members)
        )

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self._writers.append(writer)
        return reader, writer

    async def talk(self, data: bytes, *, end: bool = False) -> bytes:
        """Send on a connection of its own; all that comes back until it ends. A reset is b'RESET' at the end."""
        reader, writer = await self.connect()
        writer.write(data)
        if end:
            writer.write_eof()
        return await rest_of(reader)


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """Everything up to the end; a reset is b'RESET' behind it."""
    got = b""
    while True:
        try:
            data = await reader.read(1 << 16)
        except ConnectionResetError:
            return got + b"RESET"
        if not data:
            return got
        got += data


async def read_response(reader: asyncio.StreamReader, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
    """One response: status, fields, body. A plain parser, for what the tests' back ends send."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split(" ")[1])
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:-2])}
    if head_only or status < 200 or status in (204, 304):
        return status, fields, b""
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        while (line := await reader.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            fields[f"trailer {name.lower()}"] = value.strip()
        return status, fields, body
    if "content-length" in fields:
        return status, fields, await reader.readexactly(int(fields["content-length"]))
    return status, fields, await reader.read()


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], bytes]:
    """For back ends: method, target, fields, body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    method, target, version = first.split(" ")
    assert version == "HTTP/1.1"
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        assert name.lower() not in fields or name.lower() in ("via", "cookie", "x-test"), line
        fields[name.lower()] = value.strip()
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readline() == b"\r\n"
        return method, target, fields, body
    return method, target, fields, await reader.readexactly(int(fields.get("content-length", "0")))


def body_of(target: str) -> bytes:
    """The body that `sizes` sends for a target like /1000."""
    match = re.search(r"\d+", target)
    size = int(match[0]) if match else 0
    return random.Random(target).randbytes(size)


def sizes(name: str = "") -> Handler:
    """A well-behaved back end: GET /N has N bytes, chunked if the target says so; POST is answered with its body."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            method, target, _, body = await read_request(reader)
            if method != "POST":
                body = body_of(target)
            head = f"HTTP/1.1 200 OK\r\nX-Server: {name}\r\n".encode()
            if "chunked" in target:
                writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(body), 7000):
                    piece = body[at : at + 7000]
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                writer.write(b"0\r\nX-Sum: 5\r\n\r\n")
            elif "close" in target:
                writer.write(head + b"\r\n" + body)
                await writer.drain()
                return
            else:
                writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + (b"" if method == "HEAD" else body))
            await writer.drain()

    return handler


def says(*parts: bytes | float, close: bool = True, reset: bool = False) -> Handler:
    """A back end that reads a head, whatever it is, and says this; a number is a pause."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            if isinstance(part, bytes):
                writer.write(part)
                await writer.drain()
            else:
                await asyncio.sleep(part)
        if reset:
            await asyncio.sleep(0.05)
            reset_now(writer)
        elif not close:
            await reader.read()

    return handler


def reset_now(writer: asyncio.StreamWriter) -> None:
    """The other end sees a reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run it, for so long at most."""
    asyncio.run(asyncio.wait_for(test(), TEST_S))  # type: ignore[arg-type]


__all__ = [
    "Backend", "SocketStream", "SplicingNet", "World", "body_of", "read_request", "read_response", "reset_now", "rest_of", "run", "says", "sizes",
    "until",
]  # fmt: skip
