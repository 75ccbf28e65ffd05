"""A proxy on the NIC between the kernel as client and the kernel as server; both ends count and hash."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import acceltcp.host
from acceltcp.host import Connection
from acceltcp.host.aio.splice import SpliceResult

from .world import KERNEL4, NIC4, TRANSFER_S, World

PROXY, BACKEND = 7070, 9100
HEAD = struct.Struct("!QQQ")
"""Seed, bytes of the client, bytes of the server."""
CHUNK = 1 << 16
DIGEST_BYTES = hashlib.sha256().digest_size


def stream(seed: int, role: str, size: int) -> bytes:
    """What one end of a transfer sends."""
    return random.Random(f"{seed} {role}").randbytes(size)


class Accepting:
    """A server on the kernel's sockets: `serve` for each connection, in a thread of its own; what it raises is in `errors`."""

    def __init__(self, address: str, port: int, backlog: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, port), family=family, backlog=backlog)
        self.errors: list[BaseException] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._guarded, args=(sock,), daemon=True).start()

    def _guarded(self, sock: socket.socket) -> None:
        try:
            with sock:
                sock.settimeout(TRANSFER_S)
                self.serve(sock)
        except BaseException as error:
            self.errors.append(error)

    def serve(self, sock: socket.socket) -> None:
        """One connection."""
        raise NotImplementedError

    def close(self) -> None:
        """Serve no more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Backend(Accepting):
    """Reads HEAD, then sends its bytes while it reads the client's; closes when both are through, having sent the hash of what it
    read as its last bytes."""

    def __init__(self, address: str = KERNEL4, port: int = BACKEND) -> None:
        self.served = 0
        self._lock = threading.Lock()
        super().__init__(address, port, 1024)

    def serve(self, sock: socket.socket) -> None:
        seed, up, down = HEAD.unpack(receive(sock, HEAD.size))
        received, _ = exchange(sock, stream(seed, "server", down), up)
        sock.sendall(received)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b"", "more than announced"
        with self._lock:
            self.served += 1


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, f"the connection ended after {len(data)} of {size} bytes"
        data += part
    return data


def exchange(sock: socket.socket, data: bytes, expect: int) -> tuple[bytes, bytes]:
    """Send while receiving; the digest and the last bytes of what came."""
    failed: list[BaseException] = []

    def send() -> None:
        try:
            sock.sendall(data)
        except BaseException as error:
            failed.append(error)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    digest, left, last = hashlib.sha256(), expect, b""
    while left:
        last = sock.recv(min(left, CHUNK))
        assert last, f"the connection ended {left} bytes early"
        digest.update(last)
        left -= len(last)
    sender.join(TRANSFER_S)
    assert not sender.is_alive(), "not everything was taken"
    if failed:
        raise failed[0]
    return digest.digest(), last


def transfer(seed: int, up: int, down: int, *, address: str = NIC4, port: int = PROXY) -> None:
    """Open a connection to the proxy, send and receive through it, compare both hashes, see it end in order."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(TRANSFER_S)
        sock.connect((address, port))
        sock.sendall(HEAD.pack(seed, up, down))
        received, _ = exchange(sock, stream(seed, "client", up), down)
        assert received == hashlib.sha256(stream(seed, "server", down)).digest(), f"seed {seed}: the client got something else"
        heard = receive(sock, DIGEST_BYTES)
        assert heard == hashlib.sha256(stream(seed, "client", up)).digest(), f"seed {seed}: the server got something else"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b"", f"seed {seed}: more than the server sent"


@dataclass
class Proxy:
    """Handler of a listener: connects to the back end, relays in software for a while, then splices for good.

    after: bytes from the client that are relayed in software before, given the seed. hardware: as in `splice`.
    """

    world: World
    after: Callable[[int], int] = lambda seed: 0
    hardware: bool | None = True
    target: str = KERNEL4
    before_connect: Callable[[], None] = lambda: None
    """Called between the client's handshake and the one with the server."""

    def __post_init__(self) -> None:
        self.results: list[SpliceResult] = []
        self.by_seed: dict[int, SpliceResult] = {}
        self.errors: list[BaseException] = []

    async def __call__(self, client: Connection) -> None:
        try:
            self.before_connect()
            server = await self.world.nic.connect(self.target, BACKEND)
            head = await client.readexactly(HEAD.size)
            seed, up, down = HEAD.unpack(head)
            server.write(head)
            share = min(self.after(seed), up + down)
            await self._relay_some(client, server, up, down, share)
            result = await acceltcp.host.splice(client, server, hardware=self.hardware)
            self.results.append(result)
            self.by_seed[seed] = result
        except BaseException as error:
            self.errors.append(error)
            raise

    @staticmethod
    async def _relay_some(client: Connection, server: Connection, up: int, down: int, share: int) -> None:
        """Hand on `share` bytes, both ways at once."""

        async def one_way(source: Connection, sink: Connection, count: int) -> None:
            while count:
                data = await source.read(min(count, CHUNK))
                sink.write(data)
                await sink.drain()
                count -= len(data)

        first = share * up // max(up + down, 1)
        ways: list[Awaitable[None]] = [one_way(client, server, first), one_way(server, client, min(share - first, down))]
        await asyncio.gather(*ways)


ENDS = ("closed", "reset", "idle", "limit", "aborted")
"""How splices end, as the NIC counts them (`splice_*`)."""


class Ledger:
    """What the NIC and the host hold for splices when it is made; `close` wants to find the same."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._counters = world.counters()
        self._before = world.do(self._held)

    def _held(self) -> dict[str, int]:
        nic = self._world.nic
        registers, endpoint, splices = nic.device.registers, nic.endpoint, nic.splices
        assert splices is not None and endpoint.splices is not None
        return {
            "SPLICE.held": registers.SPLICE.held.get(), "FLOWS.held": registers.FLOWS.held.get(),
            "live": nic.stats()["splice"]["live"], "posted": len(splices.posted), "sides": len(splices._sides),
            "memory": splices.pool.used, "spliced tuples": len(endpoint.splices.keys), "to end": len(endpoint.splices.dirty),
            "connections": len(endpoint.connections), "buffered": endpoint.buffered,
        }  # fmt: skip

    def counted(self) -> dict[str, int]:
        """The NIC's counters of splices since then."""
        after = self._world.counters()
        return {
            name.removeprefix("splice_"): value - self._counters[name] for name, value in after.items() if name.startswith("splice_")
        }

    def close(self, timeout: float = TRANSFER_S) -> dict[str, int]:
        """Wait until everything is as it was; `counted`, of which each splice that was opened has ended once."""
        deadline = time.monotonic() + timeout
        while (now := self._world.do(self._held)) != self._before:
            assert time.monotonic() < deadline, f"held {now}, before that {self._before}; {self.counted()}"
            time.sleep(0.02)
        counted = self.counted()
        assert counted["opened"] == sum(counted[name] for name in ENDS), counted
        return counted


def many(jobs: list[tuple[int, int, int]], *, workers: int, address: str = NIC4) -> None:
    """Run `transfer` for each (seed, up, down), so many at once; the first failure."""
    failed: list[BaseException] = []
    waiting = list(reversed(jobs))
    lock = threading.Lock()

    def run() -> None:
        while not failed:
            with lock:
                if not waiting:
                    return
                job = waiting.pop()
            try:
                transfer(*job, address=address)
            except BaseException as error:
                error.add_note(f"transfer {job}")
                failed.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


__all__ = ["Accepting", "BACKEND", "ENDS", "PROXY", "Backend", "Ledger", "Proxy", "many", "receive", "transfer"]
