"""Linux's own TCP as the peer of the host stack, over a TAP device and the functional model.

Run by `test_kernel_peer.py` in a network namespace of its own:
`unshare -Urn python -m tests.host.kernel_peer SCENARIO`. Prints a line and exits 0, or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import http.client as http_client
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import acceltcp.host
from acceltcp.apps.http import HttpServer
from acceltcp.host import Connection, Nic, TcpSettings
from acceltcp.host.device import Device

from .fake_device import FakeTransport, sum16

TAP = "acc0"
V4, V6 = "10.0.0.2", "fd00::2"
SIZE = 3_000_000


def open_tap() -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH", TAP.encode(), 0x1002))  # IFF_TAP | IFF_NO_PI
    for command in (
        f"ip link set {TAP} up",
        f"ip addr add 10.0.0.1/24 dev {TAP}",
        f"ip addr add fd00::1/64 dev {TAP} nodad",
        "ip link set lo up",
    ):
        subprocess.run(command.split(), check=True)
    return fd


class Wire:
    """TAP on one side, model on the other; loses and swaps frames under a seed."""

    def __init__(self, fd: int, device: FakeTransport, loss: float, swap: float, seed: int) -> None:
        self.fd, self.device, self.loss, self.swap = fd, device, loss, swap
        self.random = random.Random(seed)
        self.held: dict[str, bytes] = {}
        device.on_wire = self.to_kernel
        asyncio.get_running_loop().add_reader(fd, self.from_kernel)

    def _pass(self, way: str, frame: bytes, out: Callable[[bytes], object]) -> None:
        if self.random.random() < self.loss:
            return
        held = self.held.pop(way, None)
        if held is None and self.random.random() < self.swap:
            self.held[way] = frame
            asyncio.get_running_loop().call_later(0.002, self._release, way, out)
            return
        out(frame)
        if held is not None:
            out(held)

    def _release(self, way: str, out: Callable[[bytes], object]) -> None:
        held = self.held.pop(way, None)
        if held is not None:
            out(held)

    def to_kernel(self, frame: bytes) -> None:
        self._pass("out", frame, lambda f: self._write(f))

    def _write(self, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.fd, frame)

    def from_kernel(self) -> None:
        for _ in range(64):
            try:
                frame = os.read(self.fd, 65536)
            except BlockingIOError:
                return
            self._pass("in", frame.ljust(60, b"\0"), self.device.inject)


async def echo(connection: Connection) -> None:
    while data := await connection.read(1 << 16):
        connection.write(data)
        await connection.drain()


def pattern(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def serve_big(connection: Connection) -> None:
    await connection.readline()
    data = pattern(SIZE)
    for at in range(0, SIZE, 100_000):
        connection.write(data[at : at + 100_000])
        await connection.drain()


async def swallow(connection: Connection) -> None:
    digest = hashlib.sha256()
    total = 0
    while data := await connection.read(1 << 16):
        digest.update(data)
        total += len(data)
    connection.write(f"{total} {digest.hexdigest()}\n".encode())


def client_echo(address: str, port: int = 7) -> None:
    with socket.create_connection((address, port), timeout=20) as link:
        for size in (1, 100, 5000, 40000):
            data = pattern(size)
            link.sendall(data)
            got = b""
            while len(got) < size:
                part = link.recv(65536)
                assert part, "closed too early"
                got += part
            assert got == data
        link.shutdown(socket.SHUT_WR)
        assert link.recv(10) == b""


def client_download(address: str) -> None:
    with socket.create_connection((address, 80), timeout=60) as link:
        link.sendall(b"go\n")
        got = bytearray()
        while part := link.recv(1 << 20):
            got += part
        assert bytes(got) == pattern(SIZE), f"{len(got)} bytes"


def client_upload(address: str) -> None:
    with socket.create_connection((address, 9), timeout=60) as link:
        data = pattern(SIZE)
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        line = link.makefile().readline()
        assert line.split() == [str(SIZE), hashlib.sha256(data).hexdigest()], line


def client_slow_reader(address: str) -> None:
    """Closes its window for longer than a probe takes."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        link.settimeout(60)
        link.connect((address, 80))
        link.sendall(b"go\n")
        time.sleep(1.5)
        got = bytearray()
        while part := link.recv(1 << 16):
            got += part
        assert bytes(got) == pattern(SIZE), f"{len(got)} bytes"


def client_ping(address: str) -> None:
    """Echo requests of several sizes through a raw socket; the kernel resolves the neighbour."""
    v6 = ":" in address
    family = socket.AF_INET6 if v6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP) as link:
        link.settimeout(5)
        for size in (0, 1, 56, 1001, 1452):
            body = struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, 77, size) + pattern(size)
            if not v6:  # the kernel fills in the one of ICMPv6
                body = body[:2] + (0xFFFF ^ sum16(body)).to_bytes(2, "big") + body[4:]
            link.sendto(body, (address, 0))
            while True:
                reply = link.recv(65536)
                reply = reply if v6 else reply[20:]
                if reply[0] == (129 if v6 else 0) and reply[4:] == body[4:]:
                    break


async def in_thread(function: Callable[[str], None]) -> None:
    for address in (V4, V6):
        await asyncio.to_thread(function, address)


async def many(nic: Nic) -> None:
    async def one() -> None:
        reader, writer = await asyncio.open_connection(V4, 7)
        for i in range(5):
            writer.write(b"x" * (i + 1))
            assert await reader.readexactly(i + 1) == b"x" * (i + 1)
        writer.close()
        await writer.wait_closed()

    for _ in range(4):
        await asyncio.gather(*(one() for _ in range(50)))
    assert nic.endpoint.stats["opened"] == 200, nic.endpoint.stats
    assert nic.endpoint.stats["failed"] == 0, nic.endpoint.stats


async def http(nic: Nic) -> None:
    """A browser's questions, and a few that no browser asks."""

    def get(path: str, method: str = "GET", connection: http_client.HTTPConnection | None = None):  # type: ignore[no-untyped-def]
        link = connection or http_client.HTTPConnection(V4, 8080, timeout=20)
        link.request(method, path)
        response = link.getresponse()
        return response, response.read()

    def raw(data: bytes) -> bytes:
        with socket.create_connection((V6, 8080), timeout=20) as link:
            link.sendall(data)
            return link.makefile("rb").readline()

    def questions(folder: Path) -> None:
        link = http_client.HTTPConnection(V4, 8080, timeout=20)
        for _ in range(3):  # one connection
            response, body = get("/big.bin", connection=link)
            assert response.status == 200 and body == pattern(500_000), len(body)
        response, body = get("/")
        assert b"a%20b.txt" in body and b"&lt;x&gt;" in body and response.headers["Content-Type"].startswith("text/html")
        assert get("/a%20b.txt")[1] == b"spaces"
        assert get("/sub")[0].status == 301 and get("/sub")[0].headers["Location"] == "/sub/"
        assert get("/sub/")[1] == b"<p>index"
        response, body = get("/big.bin", "HEAD")
        assert response.headers["Content-Length"] == "500000" and body == b""
        for path in ("/nothing", "/../secret", "/%2e%2e/secret", "/link", "/a%00b", "//secret"):
            assert get(path)[0].status == 404, path
        assert get("/", "POST")[0].status == 405
        assert b" 400 " in raw(b"nonsense\r\n\r\n")
        assert b" 400 " in raw(b"GET / HTTP/1.1\r\n\r\n")
        assert b" 400 " in raw(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")
        assert b" 505 " in raw(b"GET / HTTP/2.0\r\n\r\n")
        assert b" 413 " in raw(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")
        assert b" 431 " in raw(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert b" 200 " in raw(b"GET / HTTP/1.0\r\n\r\n")

    with tempfile.TemporaryDirectory() as name:
        outside = Path(name)
        (outside / "secret").write_text("secret")
        folder = outside / "www"
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "index.html").write_text("<p>index")
        (folder / "a b.txt").write_text("spaces")
        (folder / "<x>").write_text("")
        (folder / "link").symlink_to(outside / "secret")
        (folder / "big.bin").write_bytes(pattern(500_000))
        await nic.listen(8080, HttpServer(folder).handle)
        await asyncio.to_thread(questions, folder)


async def closed_port(nic: Nic) -> None:
    before = nic.endpoint.stats["resets_sent"]
    try:
        await asyncio.open_connection(V4, 4444)
    except ConnectionRefusedError:
        assert nic.endpoint.stats["resets_sent"] == before + 1, "the first SYN was not answered, or more than it"
        return
    raise AssertionError("port 4444 was not refused")


async def aborts(nic: Nic) -> None:
    """A client that resets, and a server that does."""
    reader, writer = await asyncio.open_connection(V4, 7)
    writer.write(b"abc")
    await reader.readexactly(3)
    link = writer.get_extra_info("socket")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    await asyncio.sleep(0.2)
    assert nic.endpoint.stats["failed"] == 1, nic.endpoint.stats
    reader, writer = await asyncio.open_connection(V4, 7)
    writer.write(b"abc")
    await reader.readexactly(3)
    next(iter(nic.endpoint.connections.values())).abort()
    nic.schedule_flush()
    try:
        assert await reader.read(10) == b"reset expected"
    except ConnectionResetError:
        return


SCENARIOS: dict[str, tuple[float, float, Callable[[Nic], Awaitable[None]]]] = {
    "echo": (0, 0, lambda nic: in_thread(client_echo)),
    "download": (0, 0, lambda nic: in_thread(client_download)),
    "upload": (0, 0, lambda nic: in_thread(client_upload)),
    "lossy-echo": (0.05, 0.05, lambda nic: in_thread(client_echo)),
    "lossy-download": (0.01, 0.01, lambda nic: in_thread(client_download)),
    "lossy-upload": (0.01, 0.01, lambda nic: in_thread(client_upload)),
    "slow-reader": (0, 0, lambda nic: in_thread(client_slow_reader)),
    "ping": (0, 0, lambda nic: in_thread(client_ping)),
    "many": (0, 0, many),
    "http": (0, 0, http),
    "closed-port": (0, 0, closed_port),
    "aborts": (0, 0, aborts),
}


async def main(name: str) -> None:
    loss, swap, run = SCENARIOS[name]
    fd = open_tap()
    transport = FakeTransport()
    wire = Wire(fd, transport, loss, swap, seed=1)
    started = time.monotonic()
    async with acceltcp.host.open(
        Device(transport), [f"{V4}/24", f"{V6}/64"], tcp=TcpSettings(time_wait=0.3, linger=0.3)
    ) as nic:
        await nic.listen(7, echo)
        await nic.listen(80, serve_big)
        await nic.listen(9, swallow, ecn=True)
        await asyncio.wait_for(run(nic), 60)
        print(f"{name}: {time.monotonic() - started:.2f} s", nic.endpoint.stats, nic.queue.stats.as_dict())
    assert wire.fd == fd


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
