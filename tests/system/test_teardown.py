"""Connections whose end is in the NIC's hands, the Linux kernel at the other end.

Whoever closes, however, over a clean or a bad wire: every byte arrives, every flow ends once, both ends'
sockets reach their end state, and tshark has nothing to say about what was on the wire.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from acceltcp.host import Connection, TcpSettings

from .namespace import isolated
from .test_capture import MALFORMED, OVERTAKING, bad_checksums, tshark, verdicts
from .world import MAC, NIC, NIC4, TAP, Service, World, connect, folder, wait_until

SERVER_PORT = 8000
SETTINGS = {"time_wait": 0.3, "linger": 0.3, "fin_wait_2": 5.0}
TCP_TIME_WAIT = 6
OUTCOMES = ("closed", "reset", "timed_out", "peer_data", "fin_timed_out", "aborted", "faults")


def answer(seed: int, size: int) -> bytes:
    """What the server says to that request."""
    return random.Random(seed).randbytes(size)


async def serve(connection: Connection) -> None:
    """A line "MODE SEED SIZE", then `SIZE` bytes; MODE says who closes first."""
    mode, seed, size = (await connection.readline()).split()
    data = answer(int(seed), int(size))
    if mode == b"second":  # the client has ended its data before
        assert await connection.read() == b""
    elif mode == b"cross":  # our FIN leaves while the client's is on its way
        connection.write(data[:1])
        await connection.drain()
        await asyncio.sleep(0.075)
        data = data[1:]
    connection.write(data)
    connection.close()


def ask(mode: str, seed: int, size: int, address: str, timeout: float = 60.0) -> None:
    """One client; checks every byte of the answer."""
    with connect(address, SERVER_PORT, timeout=timeout) as sock:
        sock.sendall(f"{mode} {seed} {size}\n".encode())
        if mode == "second":
            sock.shutdown(socket.SHUT_WR)
        digest, total = hashlib.sha256(), 0
        if mode == "cross":
            first = sock.recv(1)
            sock.shutdown(socket.SHUT_WR)
            digest.update(first)
            total = len(first)
        while part := sock.recv(1 << 16):
            digest.update(part)
            total += len(part)
    assert (total, digest.digest()) == (size, hashlib.sha256(answer(seed, size)).digest())


def kernel_states() -> collections.Counter[int]:
    """States of the kernel's sockets to the server, TIME_WAIT left out (see tcp_states.h)."""
    states: collections.Counter[int] = collections.Counter()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, _, remote, state = line.split()[:4]
            if int(remote.rpartition(":")[2], 16) == SERVER_PORT and int(state, 16) != TCP_TIME_WAIT:
                states[int(state, 16)] += 1
    return states


class Books:
    """What the NIC counted since it was made."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._before = world.counters()

    def outcomes(self) -> dict[str, int]:
        after = self._world.counters()
        grown = {name: after[f"flow_{name}"] - self._before[f"flow_{name}"] for name in ("opened", *OUTCOMES)}
        return {name: value for name, value in grown.items() if value}

    def close(self, timeout: float = 60.0) -> dict[str, int]:
        """Wait until every flow has ended, every socket is closed and nothing is held; the outcomes."""

        def over() -> bool:
            found = self.outcomes()
            return found.get("opened", 0) == sum(found.get(name, 0) for name in OUTCOMES)

        wait_until("every flow has ended", over, timeout)
        wait_until("the kernel's sockets have closed", lambda: not kernel_states(), timeout)
        held = self._world.nic.device.registers.FLOWS.held
        wait_until("the table is empty", lambda: self._world.do(held.get) == 0, timeout)

        def given_back() -> bool:
            """(The last event may still be on its way to the host.)"""
            flows = self._world.do(self._world.nic.stats)["flows"]
            return flows["held"] == 0 and flows["memory_bytes"] == 0

        wait_until("the host holds nothing", given_back, timeout)
        return self.outcomes()


def world(sim: str = "", **tcp: float) -> World:
    return World(sim, tcp=TcpSettings(**{**SETTINGS, **tcp}))  # type: ignore[arg-type]


def listening(world: World) -> None:
    world.listen(SERVER_PORT, serve, backlog=1024)


@isolated
@pytest.mark.slow
def test_who_closes_first() -> None:
    """First, second and at once, from a bare FIN to more than fits the first window; IPv4 and IPv6."""
    cases = [
        (mode, size, address)
        for mode in ("first", "second", "cross")
        for size in (1, 100, 1448, 20_000, 200_000)
        for address in NIC.values()
    ]
    with folder() as where:
        capture = where / "close.pcap"
        with world(f"pcap={capture}&delay=50ms") as here:
            listening(here)
            books = Books(here)
            with ThreadPoolExecutor(8) as pool:
                jobs = [pool.submit(ask, mode, n, size, address) for n, (mode, size, address) in enumerate(cases)]
                for job in jobs:
                    job.result(60)

            def software() -> int:
                return here.do(here.nic.stats)["flows"]["software"]

            # (What the host closes itself it counts at the end.)
            wait_until("everybody has closed", lambda: books.outcomes().get("opened", 0) + software() == len(cases), 60)
            outcomes, by_host = books.close(), software()
            # On a busy machine a few are repeating something at their end, and are closed by the host.
            assert outcomes["opened"] + by_host == len(cases) and by_host <= len(cases) // 4, (outcomes, by_host)
            assert outcomes == dict.fromkeys(("opened", "closed"), outcomes["opened"])
            dropped = here.counters()["rx_drop_l4_checksum"]
        assert tshark(capture, MALFORMED, "frame.number") == []
        assert bad_checksums(capture, dropped) == []
        assert not verdicts(capture, f"!({OVERTAKING})")
        # The handshake's end: each side's FIN, and an acknowledgment of it. Some FINs have crossed.
        fins = tshark(capture, "tcp.flags.fin == 1 && tcp.srcport == 8000", "tcp.stream")
        assert len({stream for (stream,) in fins}) == len(cases)
        assert tshark(capture, "tcp.flags.reset == 1", "frame.number") == []


@isolated
@pytest.mark.slow
def test_rude_clients() -> None:
    """Data left unread, SO_LINGER 0, and data for a server that has closed: each flow ends, and says how."""
    with world() as here:
        listening(here)
        books = Books(here)
        for address in NIC.values():
            # Closed with unread data: the kernel resets.
            with connect(address, SERVER_PORT) as sock:
                sock.sendall(b"first 1 5000\n")
                wait_until("the answer has begun", lambda sock=sock: len(sock.recv(1, socket.MSG_PEEK)) == 1)
            # A reset instead of a close.
            with connect(address, SERVER_PORT) as sock:
                sock.sendall(b"first 2 5000\n")
                assert sock.recv(10)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert books.close() == {"opened": 4, "reset": 4}
        books = Books(here)
        for address in NIC.values():
            # The server has closed; the client goes on talking and is told.
            with connect(address, SERVER_PORT) as sock:
                sock.sendall(b"first 3 100\n")
                data = b""
                while part := sock.recv(1 << 16):
                    data += part
                assert data == answer(3, 100)
                sock.sendall(b"is anybody there?")
                with pytest.raises((ConnectionResetError, BrokenPipeError)):
                    for _ in range(50):
                        sock.sendall(b"?")
                        time.sleep(0.05)
                    raise AssertionError("not reset")
        assert books.close() == {"opened": 2, "peer_data": 2}


@isolated
@pytest.mark.slow
def test_silent_client() -> None:
    """A client that vanishes: the NIC gives up at the retry limit and the host hears of it."""
    asked, gone = threading.Event(), threading.Event()

    async def answer_too_late(connection: Connection) -> None:
        await connection.read(1)
        asked.set()
        await asyncio.to_thread(gone.wait, 30)
        connection.write(b"too late")

    with world(initial_rto=0.2, retries=3, max_rto=1.0) as here:
        here.listen(SERVER_PORT, answer_too_late)
        books = Books(here)
        with connect(NIC4, SERVER_PORT) as sock:
            sock.sendall(b"?")
            assert asked.wait(20)
            # Whatever comes from the NIC is thrown away from now on, and nothing goes out.
            subprocess.run(["ip", "link", "set", TAP, "down"], check=True, timeout=20)
            gone.set()
            wait_until("the flow has ended", lambda: len(books.outcomes()) == 2, 30)
        assert books.outcomes() == {"opened": 1, "timed_out": 1}
        assert here.counters()["flow_retransmissions"] == 3


def acknowledged_unsent(capture: Path) -> list[str]:
    """Frames of ours that acknowledge what the kernel had not sent. (tshark's own mark overlooks a FIN that was added to
    data sent again.)"""
    ends: dict[str, int] = {}
    found = []
    fields = ("frame.number", "eth.src", "tcp.stream", "tcp.seq", "tcp.ack", "tcp.len", "tcp.flags")
    for number, source, stream, seq, ack, length, flags in tshark(capture, "tcp", *fields):
        if source != MAC:
            end = int(seq) + int(length) + (int(flags, 16) & 1) + (int(flags, 16) >> 1 & 1)
            known = ends.get(stream, end)
            ends[stream] = end if (end - known) % (1 << 32) < 1 << 31 else known
        elif int(flags, 16) & 0x10 and (ends[stream] - int(ack)) % (1 << 32) >= 1 << 31:
            found.append(number)
    return found


def mix(count: int, rng: random.Random) -> Iterator[tuple[str, int, int, str]]:
    for number in range(count):
        size = int(10 ** rng.uniform(0, 4.5))
        yield rng.choice(("first", "second", "cross")), number, size, rng.choice(list(NIC.values()))


@isolated
@pytest.mark.slow
@pytest.mark.parametrize("count, seed", [(250, 1), pytest.param(1000, 1, marks=pytest.mark.long)])
def test_bad_wire(count: int, seed: int) -> None:
    """Hundreds of connections over a wire that loses a tenth, duplicates and reorders, both ways."""
    rng = random.Random(seed)
    with folder() as where:
        capture = where / "bad.pcap"
        wire = f"loss=0.1&duplicate=0.05&reorder=0.05&reorder_delay=5ms&seed={seed}&pcap={capture}"
        with world(wire, retries=12, fin_wait_2=60.0, unknown_hold=20.0) as here:
            listening(here)
            books = Books(here)
            with ThreadPoolExecutor(64) as pool:
                jobs = [pool.submit(ask, *case, 150.0) for case in mix(count, rng)]
                failed = [error for job in jobs if (error := job.exception(400)) is not None]
            assert not failed, (len(failed), failed[:3])
            outcomes = books.close(120)
            software = here.do(here.nic.stats)["flows"]["software"]
        print(f"seed {seed}: {outcomes}")
        # A few had lost segments to send again at their end, and it was over by then: those the host has closed.
        few = max(count // 50, 12)
        assert outcomes["opened"] + software == count and software <= few, (outcomes, software)
        # A client whose last acknowledgment was lost may be gone when we repeat our FIN: nothing else may go wrong.
        reset = outcomes.get("reset", 0)
        assert outcomes["closed"] + reset == outcomes["opened"] and reset <= few
        assert tshark(capture, MALFORMED, "frame.number") == []
        assert bad_checksums(capture, None) == []
        assert acknowledged_unsent(capture) == []


@isolated
@pytest.mark.slow
def test_flows_command() -> None:
    """`acceltcp flows` shows a connection that waits for its peer's FIN."""
    with folder() as where, Service("http", "--directory", str(where), folder=where) as service:
        with connect(NIC4, 80) as sock:
            local = sock.getsockname()[1]
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while sock.recv(4096):
                pass  # until the server has closed; this end stays open

            def flows() -> list[dict[str, object]]:
                out = subprocess.run(
                    [sys.executable, "-m", "acceltcp", "flows", "--control", str(service.control), "--json"],
                    capture_output=True, text=True, timeout=60,
                )  # fmt: skip
                assert out.returncode == 0, out.stderr
                return json.loads(out.stdout)["flows"]

            found = flows()
            assert len(found) == 1, found
            text = subprocess.run(
                [sys.executable, "-m", "acceltcp", "flows", "--control", str(service.control)],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert text.returncode == 0 and str(local) in text.stdout, (text.stdout, text.stderr)
