"""The process that `acceltcp bench host` measures: the host stack on a NIC, and the smallest applications there are.

`python -m bench.host_server --device SPEC` opens the NIC, serves the ports below and reads one JSON object per line
from standard input: `{"do": "mark"}` is answered with the process's CPU time and all counters, `{"do": "settle", "seconds": N}` with the
same once no connection is open any more, `{"do": "application", "count": N}` with the CPU time of the application alone. It ends
with its standard input.

The applications use `TcpConnection` itself, with callbacks as epoll programs have them: no task, no stream, no transport.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import acceltcp.host
from acceltcp.host import Connection, Nic
from acceltcp.host.listening import ListeningPort, ListenOptions
from acceltcp.host.tcp import TcpConnection

from .host_configs import Config
from .host_load import REQUEST, UPLOAD, response_of
from .serving import answer, open_nic, server_arguments

__all__ = ["BACKEND", "HOLD", "KEEP", "LARGE", "PORTS", "RELAY", "SMALL", "UPLOADS", "Answerer", "main"]

SMALL, LARGE = 128, 16384
"""Bytes of the responses."""
PORTS = {SMALL: 8001, LARGE: 8002}
"""Bytes of the response -> port that answers with so many, and closes."""
HOLD, KEEP, UPLOADS, RELAY = 8003, 8004, 8005, 8006
"""Ports: takes connections and never answers; answers `SMALL` and keeps the connection; takes `UPLOAD` bytes, answers and closes;
relays to port `BACKEND` of the kernel."""
BACKEND = 9000


class Answerer:
    """One connection's application: a request in, the response out, close. Whole requests that come as one view are not copied."""

    __slots__ = ("__weakref__", "response", "tcp")

    def __init__(self, tcp: TcpConnection, response: bytes) -> None:
        self.tcp, self.response = tcp, response
        tcp.events = self
        tcp.sink = self.received

    def received(self, view: memoryview) -> None:
        """Data, straight from the ring."""
        if view == REQUEST:
            self.answer()
        else:
            self.tcp.abort()  # no client of this bench sends a request in parts

    def answer(self) -> None:
        """The request has come."""
        self.tcp.write(self.response)
        self.tcp.close()

    def connected(self) -> None:
        pass

    def readable(self) -> None:
        pass

    def writable(self) -> None:
        pass

    def handed_over(self, flow: object) -> None:
        pass

    def closed(self, error: OSError | None) -> None:
        pass


class _Keeper(Answerer):
    """Answers, and keeps the connection."""

    __slots__ = ()

    def answer(self) -> None:
        self.tcp.write(self.response)


class _Taker(Answerer):
    """Takes `UPLOAD` bytes, looks at each view, then answers and closes."""

    __slots__ = ("left",)

    def __init__(self, tcp: TcpConnection, response: bytes) -> None:
        super().__init__(tcp, response)
        self.left = UPLOAD

    def received(self, view: memoryview) -> None:
        self.left -= len(view)
        if not self.left:
            self.answer()


class _Nothing:
    """In place of a `TcpConnection`, to measure an application alone."""

    __slots__ = ("events", "sink")

    def write(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        pass


async def _relay(connection: Connection) -> None:
    peer = await connection.nic.connect(connection.peername[0], BACKEND)
    await acceltcp.host.relay(connection, peer)


class _Rig:
    """A NIC with the applications, and what is asked of it."""

    def __init__(self, nic: Nic, switches: Config) -> None:
        self._nic = nic
        self._switches = switches
        library = ctypes.CDLL(None)
        self._copied = (
            ctypes.c_ulonglong.in_dll(library, "acceltcp_copied_bytes") if hasattr(library, "acceltcp_copied_bytes") else None
        )

    async def listen(self) -> None:
        """Open all ports."""
        for size, port in PORTS.items():
            await self._port(port, Answerer, size, defer=True)
        await self._port(HOLD, Answerer, 0, defer=False)
        await self._port(KEEP, _Keeper, SMALL, defer=False)
        await self._port(UPLOADS, _Taker, SMALL, defer=True)
        await self._nic.listen(RELAY, _relay)

    async def _port(self, port: int, application: type[Answerer], size: int, *, defer: bool) -> None:
        response, nic = response_of(size), self._nic

        def accept(tcp: TcpConnection) -> bool:
            application(tcp, response)
            return True

        switches = self._switches
        options = ListenOptions(
            switches.setup, switches.teardown, lazy=switches.tcp.get("lazy", True), defer_accept=defer and switches.setup
        )
        await ListeningPort(nic, accept, lambda: None).open(nic.addresses.listenable, port, options)

    def mark(self) -> dict[str, Any]:
        """CPU time, memory and counters as they are."""
        nic = self._nic
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "cpu": time.process_time(),
            "wall": time.monotonic(),
            "rss": pages * os.sysconf("SC_PAGE_SIZE"),
            "copied": self._copied.value if self._copied is not None else 0,
            "queue": nic.queue.stats.as_dict(),
            "tcp": {**nic.endpoint.stats, "open": len(nic.endpoint.connections)},
            "handed_over": nic.flows.counts["handed_over"] if nic.flows is not None else 0,
        }

    async def settle(self, seconds: float) -> dict[str, Any]:
        """The same, once everything is over; after `seconds` at most."""
        nic, deadline = self._nic, time.monotonic() + seconds
        while (nic.endpoint.connections or (nic.flows is not None and nic.flows.open)) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        mark = self.mark()
        gc.collect()  # what a round has left is not the next one's to clean up
        return mark

    def application(self, count: int) -> dict[str, float]:
        """CPU seconds of one transaction's application: made, called with a request, its response dropped."""
        tcp: Any = _Nothing()
        view, response = memoryview(REQUEST), response_of(SMALL)
        started = time.process_time()
        for _ in range(count):
            Answerer(tcp, response).received(view)
        return {"cpu": (time.process_time() - started) / count}


async def _serve(arguments: argparse.Namespace) -> None:
    switches = Config(**json.loads(arguments.config))
    async with open_nic(arguments, switches) as nic:
        rig = _Rig(nic, switches)
        await rig.listen()
        await answer({"mark": rig.mark, "settle": rig.settle, "application": rig.application})


def main() -> int:
    """Serve until standard input ends."""
    parser = server_arguments("python -m bench.host_server")
    parser.add_argument("--profile", metavar="FILE", help="write cProfile's statistics there")
    arguments = parser.parse_args()
    if arguments.profile:
        import cProfile

        with cProfile.Profile() as profile:
            asyncio.run(_serve(arguments))
        profile.dump_stats(arguments.profile)
    else:
        asyncio.run(_serve(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
