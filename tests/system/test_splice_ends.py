"""How splices in the RTL end: half-closed first, reset, idle, given up; nothing is left of any."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

import acceltcp.host
from acceltcp.host import Connection, SpliceResult, TcpSettings

from .namespace import isolated
from .splicing import BACKEND, PROXY, Ledger, receive
from .world import KERNEL4, KERNEL6, NIC4, NIC6, TRANSFER_S, World, connect, read_all, wait_until

pytestmark = pytest.mark.slow

FAMILIES = ((NIC4, KERNEL4), (NIC6, KERNEL6))
SETTINGS = TcpSettings(time_wait=0.3, linger=0.3)
LINGER_0 = struct.pack("ii", 1, 0)
LIMIT = 100_000


@dataclass
class Joined:
    """A client and a server that are spliced, and what the proxy has of them."""

    client: socket.socket
    server: socket.socket
    result: Future[SpliceResult]
    task: asyncio.Task[SpliceResult]
    held: tuple[Connection, Connection]

    @property
    def ends(self) -> tuple[socket.socket, socket.socket]:
        return self.client, self.server


class Joining:
    """Makes pairs of sockets that the NIC joins."""

    def __init__(self, world: World, address: str, target: str) -> None:
        self.world, self.address, self.target = world, address, target
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        self._listener = socket.create_server((target, BACKEND), family=family)
        self._listener.settimeout(TRANSFER_S)

    @contextlib.contextmanager
    def pair(self, limit: int | None = None, idle_timeout: float | None = None) -> Iterator[Joined]:
        """A new one, spliced already; its sockets are closed in the end."""
        result: Future[SpliceResult] = Future()
        begun: Future[tuple[asyncio.Task[SpliceResult], tuple[Connection, Connection]]] = Future()

        async def handler(client: Connection) -> None:
            server = await self.world.nic.connect(self.target, BACKEND, splice_with=client)
            task = asyncio.ensure_future(
                acceltcp.host.splice(client, server, limit, idle_timeout=idle_timeout, hardware=True)
            )
            begun.set_result((task, (client, server)))
            try:
                result.set_result(await asyncio.shield(task))
            except BaseException as error:
                result.set_exception(error)
            finally:
                if limit is not None:
                    server.close()

        live = self.world.do(lambda: self.world.nic.stats()["splice"]["live"])
        listening = self.world.listen(PROXY, handler)
        try:
            with connect(self.address, PROXY) as client:
                server, _ = self._listener.accept()
                with server:
                    server.settimeout(TRANSFER_S)
                    wait_until(
                        "the NIC has the pair",
                        lambda: self.world.do(lambda: self.world.nic.stats()["splice"]["live"]) == live + 1,
                        TRANSFER_S,
                    )
                    yield Joined(client, server, result, *begun.result(TRANSFER_S))
        finally:
            self.world.call(listening.close())

    def close(self) -> None:
        """No more."""
        self._listener.close()


@contextlib.contextmanager
def joining(world: World, address: str, target: str) -> Iterator[tuple[Joining, Ledger]]:
    """In the end nothing may be held that was not before."""
    joining, ledger = Joining(world, address, target), Ledger(world)
    try:
        yield joining, ledger
    finally:
        joining.close()


class Sending:
    """Random bytes on their way into a socket, until `stop`. digest: of all of them."""

    def __init__(self, sock: socket.socket, seed: int, size: int) -> None:
        data = random.Random(seed).randbytes(size)
        self.digest = hashlib.sha256(data).hexdigest()
        self._sock, self._left = sock, memoryview(data)
        self.error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # Never waits within a call: a socket that somebody waits for is not closed by `close`.
        try:
            while self._left and not self._stop.is_set():
                if select.select([], [self._sock], [], 0.01)[1]:
                    self._left = self._left[self._sock.send(self._left[:32768]) :]
        except OSError as error:
            self.error = error

    def join(self) -> None:
        """Wait until all are sent."""
        self._thread.join(TRANSFER_S)
        assert not self._left, f"{len(self._left)} bytes were not taken"

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()
        self._thread.join(TRANSFER_S)


def was_reset(sock: socket.socket, sending: Sending | None = None) -> None:
    """The peer has reset it, after whatever it had sent. (Whoever was sending has been told then, which is told once.)"""
    if sending is not None:
        sending.stop()
        if sending.error is not None:
            assert isinstance(sending.error, (ConnectionResetError, BrokenPipeError)), sending.error
            return
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while sock.recv(1 << 16):
            pass
        raise AssertionError("the connection came to an orderly end")


def failure(joined: Joined) -> BaseException | None:
    return joined.result.exception(TRANSFER_S)


THOROUGH = pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.long)])


@isolated
@THOROUGH
def test_half_close(thorough: bool) -> None:
    """Either side ends its data first, and reads on for as long as the other one likes; both at once."""
    with World(tcp=SETTINGS) as world:
        firsts = [(family, first) for family in FAMILIES for first in (0, 1)] if thorough else list(zip(FAMILIES, (0, 1), strict=True))
        for (address, target), first in firsts:
            with joining(world, address, target) as (make, ledger):
                with make.pair() as joined:
                    ahead, behind = joined.ends[first], joined.ends[1 - first]
                    sending = Sending(ahead, 1, 100_000)
                    digest = hashlib.sha256()
                    left = 100_000
                    while left:
                        part = behind.recv(left)
                        assert part
                        digest.update(part)
                        left -= len(part)
                    sending.join()
                    ahead.shutdown(socket.SHUT_WR)
                    assert behind.recv(1) == b"" and digest.hexdigest() == sending.digest
                    time.sleep(0.5)  # longer than it lingers once both have ended
                    sending = Sending(behind, 2, 200_000)
                    digest = hashlib.sha256()
                    with ThreadPoolExecutor(1) as pool:
                        total = pool.submit(read_all, ahead, digest)
                        sending.join()
                        behind.shutdown(socket.SHUT_WR)
                        assert total.result(TRANSFER_S) == 200_000
                    assert digest.hexdigest() == sending.digest
                    result = joined.result.result(TRANSFER_S)
                    octets = [200_000, 200_000]
                    octets[first] = 100_000
                    assert (result.reason, result.client_octets, result.server_octets) == ("closed", *octets), result
                counted = ledger.close()
                assert counted["opened"] == counted["closed"] == 1
        for address, target in FAMILIES:
            with joining(world, address, target) as (make, ledger):
                with make.pair() as joined:
                    for sock in joined.ends:
                        sock.shutdown(socket.SHUT_WR)
                    assert [sock.recv(1) for sock in joined.ends] == [b"", b""]
                    assert joined.result.result(TRANSFER_S).reason == "closed"
                assert ledger.close()["closed"] == 1


@isolated
@THOROUGH
def test_reset(thorough: bool) -> None:
    """SO_LINGER 0 on either side, at rest and in the middle of transfers both ways, with and without a limit: the other side is reset,
    the proxy is told by whom."""
    with World(tcp=SETTINGS) as world:
        cases = [(by, busy, limit) for by in (0, 1) for busy in (False, True) for limit in (None, LIMIT)]
        if not thorough:
            cases = [case for case in cases if (case[0] == case[1]) == (case[2] is None)]
        for number, (by, busy, limit) in enumerate(cases):
            with joining(world, *FAMILIES[number % 2]) as (make, ledger):
                with make.pair(limit) as joined:
                    one, other = joined.ends[by], joined.ends[1 - by]
                    senders: list[Sending | None] = [None, None]
                    if busy:
                        data = 3_000_000 if limit is None else LIMIT - 1
                        for k in range(0 if limit is None else 1, 2):
                            senders[k] = Sending(joined.ends[k], number, data)
                        receive(joined.client, 20_000)
                        if (mine := senders[by]) is not None:
                            mine.stop()
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
                    one.close()
                    was_reset(other, senders[1 - by])
                    error = failure(joined)
                    assert isinstance(error, ConnectionResetError), error
                    assert ("the client", "the server")[by] in str(error), error
                counted = ledger.close()
                assert counted["opened"] == counted["reset"] == 1, ((by, busy, limit), counted)


@isolated
@pytest.mark.long
@THOROUGH
def test_idle(thorough: bool) -> None:
    """Packets put the end off; without any both sides are reset."""
    idle = 8.0  # a busy machine may need seconds for a packet and its answer
    with World(tcp=SETTINGS) as world:
        for number, limit in enumerate((None, LIMIT) if thorough else (LIMIT,)):
            with joining(world, *FAMILIES[number]) as (make, ledger):
                with make.pair(limit, idle) as joined:
                    for _ in range(3):
                        time.sleep(idle / 2)
                        since = time.monotonic()
                        joined.server.sendall(b"still here")
                        assert receive(joined.client, 10) == b"still here"
                        assert not joined.result.done()
                    error = failure(joined)
                    took = time.monotonic() - since
                    assert isinstance(error, TimeoutError) and error.errno == errno.ETIMEDOUT, error
                    assert idle * 0.7 < took < idle * 5, took
                    for sock in joined.ends:
                        was_reset(sock)
                counted = ledger.close()
                assert counted["opened"] == counted["idle"] == 1, counted


@isolated
@pytest.mark.long
@THOROUGH
def test_given_up(thorough: bool) -> None:
    """`splice` is cancelled, or a connection aborted, at rest and in the middle of a transfer: both sides are reset."""
    with World(tcp=SETTINGS) as world:
        # (Without a limit the connections are given away, and cannot be aborted.)
        cases = [(how, busy, limit) for how in ("cancel", "abort") for busy in (False, True) for limit in (None, LIMIT)[how == "abort" :]]
        if not thorough:
            cases = [("cancel", True, None), ("abort", True, LIMIT)]
        for number, (how, busy, limit) in enumerate(cases):
            with joining(world, *FAMILIES[number % 2]) as (make, ledger):
                with make.pair(limit) as joined:
                    sending = None
                    if busy:
                        sending = Sending(joined.server, number, 3_000_000 if limit is None else LIMIT - 1)
                        receive(joined.client, 20_000)
                    if how == "cancel":
                        world.do(joined.task.cancel)
                        with pytest.raises(BaseException, match="") as caught:
                            joined.result.result(TRANSFER_S)
                        assert type(caught.value).__name__ == "CancelledError", caught.value
                    else:
                        world.do(joined.held[number % 2].abort)
                        assert isinstance(failure(joined), ConnectionAbortedError), failure(joined)
                    was_reset(joined.client)
                    was_reset(joined.server, sending)
                counted = ledger.close()
                assert counted["opened"] == counted["aborted"] == 1, ((how, busy, limit), counted)


@isolated
@pytest.mark.long
def test_early_end() -> None:
    """The server ends its data before the limit: what it has sent is read, then the client is reset and the proxy told."""
    with World(tcp=SETTINGS) as world:
        for address, target in FAMILIES:
            with joining(world, address, target) as (make, ledger):
                with make.pair(LIMIT) as joined:
                    joined.server.sendall(b"x" * 5000)
                    assert receive(joined.client, 5000) == b"x" * 5000
                    joined.server.shutdown(socket.SHUT_WR)
                    error = failure(joined)
                    assert isinstance(error, ConnectionResetError) and "before the limit" in str(error), error
                    was_reset(joined.client)
                counted = ledger.close()
                assert counted["opened"] == counted["aborted"] == 1, counted
