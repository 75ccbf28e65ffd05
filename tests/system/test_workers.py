"""Several worker processes on one NIC, over the real RTL, with the kernel as client."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceltcp.abi.toeplitz import RSS_KEY_PUBLISHED, Toeplitz, spread_evenly

from .namespace import isolated
from .world import (
    ADDRESSES,
    KERNEL4,
    KERNEL6,
    MAC,
    NIC,
    NIC4,
    NIC6,
    START_S,
    TAP,
    Service,
    connect,
    folder,
    ip,
    plug,
    wait_until,
)

pytestmark = pytest.mark.slow

PORT = 7
PROGRAM = """
import asyncio, json, logging, sys
from acceltcp.host import workers

logging.basicConfig(level=logging.WARNING)
arguments = json.loads(sys.argv[1])

async def main(nic):
    async def handler(connection):
        connection.write(bytes([nic.queue.index]))
        while data := await connection.read(1 << 16):
            if data == b"last words":
                await asyncio.sleep(1)
                connection.write(bytes(range(250)) * 12)
                break
            connection.write(data)
            await connection.drain()
    server = await nic.listen(7, handler)
    await server.serve_forever()

def started(group):
    print(json.dumps(group.pids), flush=True)

key = bytes.fromhex(arguments.pop("key"))
sys.exit(workers.run(main, started=started, key=key, **arguments))
"""


CLIENT = """
import asyncio, json, os, sys
from acceltcp.host import workers

arguments = json.loads(sys.argv[1])
go = arguments.pop("go")

async def main(nic):
    while not os.path.exists(go):
        await asyncio.sleep(0.02)
    for number in range(10):
        for host in ("10.0.0.1", "fd00::1"):
            connection = await nic.connect(host, 7, timeout=10)
            data = bytes([nic.queue.index, number]) * 2000
            connection.write(data)
            connection.write_eof()
            got = b""
            while part := await connection.read(1 << 16):
                got += part
            assert got == data, (len(got), len(data))
            connection.close()
    # Who ends early leaves its share of the ports to the other.
    while os.path.exists(go):
        await asyncio.sleep(0.02)

def started(group):
    print(json.dumps(group.pids), flush=True)

key = bytes.fromhex(arguments.pop("key"))
sys.exit(workers.run(main, started=started, key=key, **arguments))
"""


class Group:
    """One of the programs above. Use in `with`."""

    def __init__(
        self, where: Path, *, workers: int = 2, restart: bool = False, program: str = PROGRAM, **more: str
    ) -> None:
        self.workers = workers
        self.log = where / "workers.log"
        arguments = {
            "device": f"sim:?tap={TAP}", "addresses": ADDRESSES, "workers": workers, "restart": restart, "mac": MAC,
            "key": RSS_KEY_PUBLISHED.hex(), **more,
        }  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(arguments)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self.pids: list[int] = []

    def __enter__(self) -> Group:
        assert self.process.stdout is not None
        timer = threading.Timer(START_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.process.wait(10)
            raise AssertionError(f"the workers did not start:\n{self.said()}")
        self.pids = json.loads(line)
        plug()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            print(self.said())
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """The exit status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(30)


def alive(pid: int) -> bool:
    """Whether there is such a process. (/proc is that of another process namespace.)"""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # orphans become children of the first process, which may be us
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def expected_worker(sock: socket.socket, table: list[int]) -> int:
    """By the hash: which worker a kernel's connection belongs to."""
    (src, src_port), (dst, dst_port) = sock.getsockname()[:2], sock.getpeername()[:2]
    value = Toeplitz(RSS_KEY_PUBLISHED).flow(
        ipaddress.ip_address(src).packed, ipaddress.ip_address(dst).packed, src_port, dst_port
    )
    return table[value % len(table)]


def greeted(sock: socket.socket) -> int:
    """The worker's number, its first byte."""
    (number,) = sock.recv(1)
    return number


def echo(sock: socket.socket, data: bytes) -> None:
    """Every byte comes back."""
    sender = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
    sender.start()
    got = bytearray()
    while len(got) < len(data):
        part = sock.recv(1 << 16)
        assert part, f"closed after {len(got)} of {len(data)} bytes"
        got += part
    assert got == data
    sender.join(10)


@contextlib.contextmanager
def opened(count: int, table: list[int]) -> Iterator[dict[socket.socket, int]]:
    """So many connections over IPv4 and IPv6, with the worker of each; it must be the one that the hash says."""
    found: dict[socket.socket, int] = {}
    try:
        for number in range(count):
            sock = connect(NIC6 if number % 2 else NIC4, PORT)
            found[sock] = -1
        for sock in found:
            found[sock] = greeted(sock)
            assert found[sock] == expected_worker(sock, table)
        yield found
    finally:
        for sock in found:
            sock.close()


@isolated
@pytest.mark.slow
def test_two_workers_and_the_end_of_one() -> None:
    """100 connections, each with the worker of its hash, every byte right; one worker is killed, the other goes on."""
    rng = random.Random(1)
    table = spread_evenly(range(2))
    with folder() as where, Group(where) as group:
        with opened(100, table) as connections:
            counts = Counter(connections.values())
            print("connections per worker", dict(counts))
            assert set(counts) == {0, 1} and min(counts.values()) >= 20
            threads = [
                threading.Thread(target=echo, args=(sock, rng.randbytes(rng.choice((1, 500, 3000, 20_000)))), daemon=True)
                for sock in connections
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
            os.kill(group.pids[1], signal.SIGKILL)
            wait_until("the owner has noticed", lambda: "was ended by SIGKILL" in group.said())
            for sock, worker in connections.items():
                if worker == 0:
                    echo(sock, rng.randbytes(2000))
            # Its share goes to the other; who was with it is told at the next segment.
            with opened(20, [0] * len(table)) as later:
                assert set(later.values()) == {0}
            orphan = next(sock for sock, worker in connections.items() if worker == 1)
            orphan.sendall(b"anybody?")
            with pytest.raises(ConnectionResetError):
                while orphan.recv(100):
                    pass
        # Neighbours are the owner's business.
        ip("neigh", "flush", "dev", TAP)
        with opened(4, [0] * len(table)):
            pass
        assert group.terminate() == 1, "a worker has failed"
        wait_until("all processes have gone", lambda: not any(map(alive, group.pids)))


@isolated
@pytest.mark.slow
def test_a_successor() -> None:
    """With `restart` another worker takes the place of a dead one, and gets its share again."""
    table = spread_evenly(range(2))
    with folder() as where, Group(where, restart=True) as group:
        with opened(10, table):
            os.kill(group.pids[0], signal.SIGKILL)
            wait_until("there is a successor", lambda: "takes the place" in group.said())
            found = re.search(rf"worker 0 \(process (\d+)\) takes the place of process {group.pids[0]}", group.said())
            assert found
        with opened(20, table) as connections:
            assert set(connections.values()) == {0, 1}
            for sock in connections:
                echo(sock, b"again" * 100)
        successor = int(found[1])
        assert alive(successor)
        assert group.terminate(signal.SIGINT) == 1
        wait_until("all processes have gone", lambda: not any(map(alive, (successor, group.pids[1]))))


@isolated
@pytest.mark.slow
def test_last_words_of_a_dead_worker() -> None:
    """What a worker has handed to the NIC to close is sent again and closed after its death."""
    table = spread_evenly(range(2))
    with folder() as where, Group(where) as group, connect(NIC4, PORT) as sock:
        worker = greeted(sock)
        assert worker == expected_worker(sock, table)
        sock.sendall(b"last words")
        time.sleep(0.3)
        ip("link", "set", TAP, "down")
        time.sleep(2)  # now it has closed, and what it sent is lost
        os.kill(group.pids[worker], signal.SIGKILL)
        wait_until("the owner has noticed", lambda: "was ended by SIGKILL" in group.said())
        assert not select.select([sock], [], [], 0)[0], "nothing can have come yet"
        ip("link", "set", TAP, "up")
        got = b""
        while part := sock.recv(1 << 16):
            got += part
        assert got == bytes(range(250)) * 12


@isolated
@pytest.mark.slow
def test_active_opens() -> None:
    """Workers connect to the kernel: each from ports of its share, and with what the owner hears of neighbours."""
    table = spread_evenly(range(2))
    served: list[tuple[int, int]] = []

    def serve(listening: socket.socket) -> None:
        """An echo that begins when all is there."""
        while True:
            sock, _ = listening.accept()
            with sock:
                sock.settimeout(20)
                data = b""
                while part := sock.recv(1 << 16):
                    data += part
                served.append((data[0], expected_worker(sock, table)))
                sock.sendall(data)

    with folder() as where, Group(where, program=CLIENT, go=str(where / "go")) as group:
        for family, address in ((socket.AF_INET, KERNEL4), (socket.AF_INET6, KERNEL6)):
            listening = socket.create_server((address, PORT), family=family)
            threading.Thread(target=serve, args=(listening,), daemon=True).start()
        (where / "go").touch()
        wait_until("all are served", lambda: len(served) == 2 * 2 * 10, timeout=60)
        (where / "go").unlink()
        assert group.process.wait(60) == 0, group.said()
        print(Counter(worker for worker, _ in served))
        assert all(worker == expected for worker, expected in served), served
        assert Counter(worker for worker, _ in served) == {0: 20, 1: 20}


@isolated
@pytest.mark.slow
def test_the_owner_is_killed() -> None:
    """Workers do not outlive the process that has the device."""
    with folder() as where, Group(where) as group:
        assert all(map(alive, group.pids))
        group.process.kill()
        wait_until("the workers have gone", lambda: not any(map(alive, group.pids)))


@isolated
@pytest.mark.slow
def test_command() -> None:
    """`acceltcp echo --workers 3`: statistics of all, Ctrl-C."""
    with folder() as where, Service("echo", "--workers", "3", folder=where) as service:
        socks = [connect(address, PORT) for address in NIC.values() for _ in range(20)]
        for number, sock in enumerate(socks):
            echo(sock, bytes([number]) * 300)
        stats = service.stats()
        counts = [stats[f"worker {index}"]["tcp"]["opened"] for index in range(3)]
        print("connections per worker", counts)
        assert sum(counts) == len(socks) and min(counts) > 0
        assert stats["counters"]["setup_cookie_good"] >= len(socks)
        for sock in socks:
            sock.close()
        started = time.monotonic()
    assert time.monotonic() - started < 15
