"""Splices with a limit in the RTL: one client connection after the other over several back ends, again and again."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
import threading
from collections.abc import Callable

import pytest

import acceltcp.host
from acceltcp.host import Connection, TcpSettings

from .namespace import isolated
from .splicing import BACKEND, PROXY, Accepting, Ledger, receive, stream
from .test_transfer import WIRES
from .world import KERNEL4, KERNEL6, NIC4, NIC6, TRANSFER_S, World

pytestmark = [pytest.mark.slow, pytest.mark.long]

REQUEST = struct.Struct("!BQII")
"""Number of the back end, seed, bytes of the body that follows, bytes of the answer."""
BACKENDS = 3
SETTINGS = TcpSettings(time_wait=0.3, linger=0.3)


class KeepAlive(Accepting):
    """A back end that answers one request after the other: the body's hash, and as many bytes as were asked for."""

    def __init__(self, address: str, number: int) -> None:
        super().__init__(address, BACKEND + number, 64)

    def serve(self, sock: socket.socket) -> None:
        while first := sock.recv(1):
            _, seed, body, size = REQUEST.unpack(first + receive(sock, REQUEST.size - 1))
            sock.sendall(answer(seed, receive(sock, body), size))


def answer(seed: int, body: bytes, size: int) -> bytes:
    """What a back end says."""
    return hashlib.sha256(body).digest() + stream(seed, "server", size)


class Balancer:
    """Handler: keeps a connection to each back end, relays a request in software and has the answer spliced, all of it or what
    is left after its first bytes."""

    def __init__(self, world: World, target: str) -> None:
        self.world, self.target = world, target
        self.spliced = self.asked = 0
        self.refused: set[str | None] = set()
        self.errors: list[BaseException] = []

    async def __call__(self, client: Connection) -> None:
        servers: dict[int, Connection] = {}
        try:
            while head := await self._head(client):
                number, seed, body, size = REQUEST.unpack(head)
                if number not in servers:
                    servers[number] = await self.world.nic.connect(self.target, BACKEND + number, splice_with=client)
                server = servers[number]
                server.write(head)
                while body:
                    data = await client.read(min(body, 1 << 16))
                    assert data, "the client ended its data within a body"
                    server.write(data)
                    await server.drain()
                    body -= len(data)
                total = hashlib.sha256().digest_size + size
                start = 0
                if seed % 3 == 0:
                    start = random.Random(seed).randrange(1, total)
                    client.write(await server.readexactly(start))
                self.asked += 1
                result = await acceltcp.host.splice(client, server, total - start)
                assert (result.reason, result.server_octets, result.client_octets) == ("limit", total - start, 0), result
                self.spliced += result.hardware
                self.refused.add(result.refused)
        except BaseException as error:
            self.errors.append(error)
            raise
        finally:
            for server in servers.values():
                server.close()

    @staticmethod
    async def _head(client: Connection) -> bytes:
        try:
            return await client.readexactly(REQUEST.size)
        except asyncio.IncompleteReadError as error:
            assert not error.partial, "the client ended its data within a head"
            return b""


def sizes(rng: random.Random) -> tuple[int, int]:
    """Bytes of a body and of an answer."""
    body = rng.choice((0, 0, rng.randrange(2000), rng.randrange(30_000)))
    return body, rng.choice((0, 1, rng.randrange(1500), *3 * (rng.randrange(20_000),), rng.randrange(100_000)))


def session(address: str, seed: int, count: int, early: int) -> None:
    """So many requests over one connection, of which up to `early` are sent before the answer of the one before has been read."""
    rng = random.Random(seed)
    plan = [(rng.randrange(BACKENDS), rng.randrange(1 << 32), *sizes(rng)) for _ in range(count)]
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.settimeout(TRANSFER_S)
        sock.connect((address, PROXY))
        permits = threading.Semaphore(1 + early)
        failed: list[BaseException] = []

        def send() -> None:
            try:
                for number, one, body, size in plan:
                    assert permits.acquire(timeout=TRANSFER_S)
                    sock.sendall(REQUEST.pack(number, one, body, size) + stream(one, "client", body))
            except BaseException as error:
                failed.append(error)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        for k, (number, one, body, size) in enumerate(plan):
            want = answer(one, stream(one, "client", body), size)
            got = receive(sock, len(want))
            assert got == want, f"session {seed}, request {k} to back end {number}: not its answer"
            permits.release()
        sender.join(TRANSFER_S)
        assert not failed and not sender.is_alive(), failed
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b"", "more than was asked for"


def at_once(jobs: list[Callable[[], None]]) -> None:
    """Run them in threads; the first failure."""
    failed: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * TRANSFER_S)
    assert not any(thread.is_alive() for thread in threads), "a session hangs"
    if failed:
        raise failed[0]


@isolated
@pytest.mark.parametrize(
    "wire, sessions, requests",
    [
        ("clean", 2, 10),
        *(pytest.param(wire, 8, 100, marks=pytest.mark.timeout(1200)) for wire in WIRES),
    ],
)
def test_keep_alive(wire: str, sessions: int, requests: int) -> None:
    """Requests one by one, and several ahead (they come to the host and wait there): each gets its answer, byte for byte."""
    address, target = ((NIC4, KERNEL4), (NIC6, KERNEL6))[wire == "delayed"]
    with World(WIRES[wire], tcp=SETTINGS) as world:
        ledger, balancer = Ledger(world), Balancer(world, target)
        world.listen(PROXY, balancer)
        backends = [KeepAlive(target, number) for number in range(BACKENDS)]
        at_once([lambda n=n: session(address, n, requests, early=3 * (n % 2)) for n in range(sessions)])
        counted = ledger.close()
        for backend in backends:
            backend.close()
        print(balancer.asked, balancer.spliced, balancer.refused, {name: value for name, value in counted.items() if value})
        assert not balancer.errors and not any(backend.errors for backend in backends), balancer.errors[:3]
        assert balancer.asked == sessions * requests and balancer.refused <= {None}
        # What is short may have come as a whole before it could be spliced.
        assert counted["opened"] == counted["limit"] == balancer.spliced >= balancer.asked // 2
        assert counted["diverted"] > 0
