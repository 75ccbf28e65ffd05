"""`acceltcp lb` on the NIC's RTL: the kernel's sockets are clients and back ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from ..lb.bench import Backend, body_of, read_response, rest_of, says, sizes
from .namespace import isolated
from .world import KERNEL4, NIC4, Service, folder

LIMIT_S = 300
SIZES = (0, 1, 1448, 5000, 20_000, 65_536, 100_000)
REQUESTS = 100
SPLICE_MIN = 16384


class Balancer(Service):
    """`acceltcp lb` whose back ends are on the kernel's side."""

    def __init__(self, where: Path, ports: list[int], *words: str, per: str = "request") -> None:
        config = where / "lb.toml"
        backends = "".join(f"[[backends]]\nhost = '{KERNEL4}'\nport = {port}\n" for port in ports)
        config.write_text(f"balance_per = '{per}'\nsplice_min = {SPLICE_MIN}\n{backends}[timeouts]\nconnect = 30\nstop = 10\n")
        super().__init__("lb", "--config", str(config), "--json", *words, folder=where)


async def started(*handlers) -> list[Backend]:
    backends = [Backend(handler) for handler in handlers]
    for backend in backends:
        await backend.start(host="0.0.0.0")
    return backends


async def sequence(number: int, requests: int = REQUESTS) -> tuple[Counter[str], int, int]:
    """Requests of mixed sizes on one connection; who answered, and number and bytes of the bodies that are worth a splice."""
    rng = random.Random(number)
    reader, writer = await asyncio.open_connection(NIC4, 80)
    servers: Counter[str] = Counter()
    long = octets = 0
    for turn in range(requests):
        target = f"/{rng.choice(['', '', '', 'chunked/'])}{rng.choice(SIZES)}?{number}.{turn}"
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        status, fields, body = await read_response(reader)
        assert status == 200 and hashlib.sha256(body).digest() == hashlib.sha256(body_of(target)).digest(), target
        servers[fields["x-server"]] += 1
        if len(body) >= SPLICE_MIN and "chunked" not in target:
            long += 1
            octets += len(body)
    writer.close()
    await writer.wait_closed()
    return servers, long, octets


@isolated
@pytest.mark.slow
def test_keep_alive_over_three_back_ends() -> None:
    async def test(where: Path) -> None:
        backends = await started(sizes("a"), sizes("b"), sizes("c"))
        balancer = Balancer(where, [backend.port for backend in backends])
        await asyncio.to_thread(balancer.start)
        began = time.monotonic()
        servers, long, octets = await sequence(1)
        took = time.monotonic() - began
        assert sorted(servers.values()) == [33, 33, 34] and long > 20
        nic = await asyncio.to_thread(balancer.stats)
        assert await asyncio.to_thread(balancer.stop) == 0, balancer.said()
        print(balancer.said(), f"{took:.1f} s")
        stats = json.loads(balancer.said().splitlines()[-1])
        assert stats["clients"] == {"connections": 1, "live": 0, "requests": REQUESTS}
        assert stats["refused"] == stats["aborted"] == stats["not_spliced"] == {}
        spliced = stats["bodies"]["spliced"]
        assert long // 4 < spliced["bodies"] <= long and spliced["bytes"] <= octets
        counters = nic["counters"]
        assert spliced["bodies"] == counters["splice_opened"] == counters["splice_limit"] == nic["splice"]["limit"]
        # One connection to each back end served them all.
        assert [backend.connections for backend in backends] == [1, 1, 1]
        assert all(not each["active"] and not each["pooled"] and not each["errors"] for each in stats["backends"].values())
        for backend in backends:
            await backend.stop()

    with folder() as where:
        asyncio.run(asyncio.wait_for(test(where), LIMIT_S))


@isolated
@pytest.mark.slow
def test_per_connection() -> None:
    """The host sees a connection's first request, and hardly anything else."""

    async def test(where: Path) -> None:
        backends = await started(sizes("a"), sizes("b"))
        balancer = Balancer(where, [backend.port for backend in backends], per="connection")
        await asyncio.to_thread(balancer.start)
        began = time.monotonic()
        results = [await sequence(number, 5) for number in range(4)]
        took = time.monotonic() - began
        assert [list(servers) for servers, _, _ in results] == [["a"], ["b"]] * 2
        nic = await asyncio.to_thread(balancer.stats)
        # This waits until the NIC has forgotten the last one.
        assert await asyncio.to_thread(balancer.stop) == 0, balancer.said()
        print(balancer.said(), f"{took:.1f} s")
        stats = json.loads(balancer.said().splitlines()[-1])
        assert stats["clients"] == {"connections": 4, "live": 0, "requests": 4}
        handed = stats["handed_over"]
        assert handed["bytes"] > sum(octets for _, _, octets in results)
        assert (handed["connections"], handed["live"], handed["spliced"], handed["relayed"]) == (4, 0, 4, 0)
        assert stats["refused"] == stats["aborted"] == stats["not_spliced"] == {}
        counters = nic["counters"]
        print({name: counters[name] for name in ("rx_host_packets", "splice_packets", "splice_opened")})
        assert counters["splice_opened"] == 4 and counters["splice_packets"] > 5 * counters["rx_host_packets"]
        assert [backend.connections for backend in backends] == [2, 2]
        for backend in backends:
            await backend.stop()

    with folder() as where:
        asyncio.run(asyncio.wait_for(test(where), LIMIT_S))


@isolated
@pytest.mark.slow
def test_failures() -> None:
    """A back end that resets in mid-body, and a stop while an answer is on its way."""

    async def test(where: Path) -> None:
        short = b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + b"x" * 30000
        backends = await started(says(short, 0.3, reset=True))
        balancer = Balancer(where, [backends[0].port])
        await asyncio.to_thread(balancer.start)
        reader, writer = await asyncio.open_connection(NIC4, 80)
        writer.write(b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n")
        got = await rest_of(reader)
        assert got.startswith(b"HTTP/1.1 200 OK") and got.endswith(b"RESET")
        reader, writer = await asyncio.open_connection(NIC4, 80)
        writer.write(b"GET /there HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        assert (await rest_of(reader)).startswith(b"HTTP/1.1 400 ")
        reader, writer = await asyncio.open_connection(NIC4, 80)
        writer.write(b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert balancer._process is not None
        balancer._process.send_signal(signal.SIGTERM)
        assert (await rest_of(reader)).endswith(b"RESET")
        assert await asyncio.to_thread(balancer.wait) == 0, balancer.said()
        lines = balancer.said().splitlines()
        stats = json.loads(lines[-1])
        assert stats["aborted"] == {"backend": 2} and stats["refused"] == {"malformed": 1} and stats["clients"]["live"] == 0
        for target in ("here", "last"):
            assert sum(f"GET /{target}: cut off: back end {KERNEL4}:" in line for line in lines) == 1, lines
        for backend in backends:
            await backend.stop()

    with folder() as where:
        asyncio.run(asyncio.wait_for(test(where), LIMIT_S))


@isolated
@pytest.mark.slow
def test_workers() -> None:
    """Each worker balances what comes to its queue, and its splices are its own."""

    async def test(where: Path) -> None:
        backends = await started(sizes("a"), sizes("b"))
        balancer = Balancer(where, [backend.port for backend in backends], "--workers", "3")
        await asyncio.to_thread(balancer.start)
        results = await asyncio.gather(*(sequence(number, 6) for number in range(12)))
        assert await asyncio.to_thread(balancer.stop) == 0, balancer.said()
        print(balancer.said())
        figures = [json.loads(line) for line in balancer.said().splitlines() if line.startswith("{")]
        assert len({each["process"] for each in figures}) == 3
        worked = [each for each in figures if "clients" in each]
        assert len(worked) >= 2, "all connections on one queue"
        assert sum(each["clients"]["requests"] for each in worked) == 72
        long = sum(result[1] for result in results)
        assert 0 < sum(each["bodies"]["spliced"]["bodies"] for each in worked) <= long
        assert all(each["refused"] == each["aborted"] == each["not_spliced"] == {} for each in worked)
        for backend in backends:
            await backend.stop()

    with folder() as where:
        asyncio.run(asyncio.wait_for(test(where), LIMIT_S))
