"""The process that `acceltcp bench splice` measures: a proxy between clients and a back end of the kernel.

Its ports differ in what the proxy does with a response (`Mode`). It reads JSON lines from standard input: `{"do": "mark"}` is answered with
the process's CPU time and all counters, `{"do": "settle", "seconds": N}` with the same once no connection is open any more,
`{"do": "joined", "count": N, "seconds": N}` once the proxy is through with so many responses. It ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from acceltcp.host import Connection, Nic, splice
from sim.stage import HOST4

from .host_configs import Config
from .serving import answer, open_nic, server_arguments
from .splice_load import REQUEST

__all__ = ["BACKEND", "MODES", "Mode", "main"]

BACKEND = 9000
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True)
class Mode:
    """What a port's proxy does.

    whole: with the first request both connections are joined for good; else for one response after the other. head: the response's
    head is read and handed on in software, and the body is joined; else all of it is. spliced: by the NIC, else by `splice` in software.
    """

    port: int
    whole: bool
    head: bool
    spliced: bool


MODES = {
    f"{way}_{name}": Mode(port + (way == "relayed"), whole, head, way == "spliced")
    for port, name, whole, head in (
        (8000, "connection", True, False), (8010, "response", False, False), (8020, "head", False, True), (8030, "once", True, False),
    )
    for way in ("spliced", "relayed")
}


class _Proxy:
    """Ports and figures."""

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._joined: Counter[str] = Counter()
        self._wanted = 0
        self._enough = asyncio.Event()

    async def listen(self) -> None:
        """Open all ports."""
        for mode in MODES.values():
            await self._nic.listen(mode.port, lambda client, mode=mode: self._serve(client, mode))  # type: ignore[misc]

    async def _serve(self, client: Connection, mode: Mode) -> None:
        server = await self._nic.connect(HOST4, BACKEND, splice_with=client)
        try:
            while True:
                try:
                    request = await client.readexactly(REQUEST.size)
                except asyncio.IncompleteReadError:
                    break
                left, _ = REQUEST.unpack(request)
                server.write(request)
                if mode.head:
                    head = await server.readuntil(_END_OF_HEAD)
                    client.write(head)
                    left -= len(head)
                result = await splice(client, server, None if mode.whole else left, hardware=None if mode.spliced else False)
                self._joined["spliced" if result.hardware else result.refused or "relayed"] += 1
                if self._joined.total() == self._wanted:
                    self._enough.set()
                if mode.whole:
                    return
        finally:
            server.close()
            client.close()

    def mark(self) -> dict[str, Any]:
        """CPU time and counters as they are. joined: responses, by how they were joined."""
        nic = self._nic
        return {
            "cpu": time.process_time(),
            "queue": nic.queue.stats.as_dict(),
            "tcp": {**nic.endpoint.stats, "open": len(nic.endpoint.connections)},
            "joined": dict(self._joined),
        }

    async def settle(self, seconds: float) -> dict[str, Any]:
        """The same, once everything is over; after `seconds` at most."""
        nic, deadline = self._nic, time.monotonic() + seconds
        while (nic.endpoint.connections or (nic.flows is not None and nic.flows.open)) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        mark = self.mark()
        gc.collect()  # what a round has left is not the next one's to clean up
        return mark

    async def joined(self, count: int, seconds: float) -> dict[str, Any]:
        """The same, once `count` responses have been joined to their end; after `seconds` at most."""
        self._wanted = count
        if self._joined.total() < count:
            self._enough.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), seconds)
        return self.mark()


async def _run(arguments: argparse.Namespace) -> None:
    switches = Config(**json.loads(arguments.config))
    async with open_nic(arguments, switches) as nic:
        proxy = _Proxy(nic)
        await proxy.listen()
        await answer({"mark": proxy.mark, "settle": proxy.settle, "joined": proxy.joined})


def main() -> int:
    """Serve until standard input ends."""
    parser = server_arguments("python -m bench.splice_server")
    asyncio.run(_run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
