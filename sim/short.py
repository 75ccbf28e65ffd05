"""Short connections of real kernel clients: what the host has to do for each, with and without teardown in the NIC.

`python -m sim.short` (in a namespace made by `sim.stage.reexec`) prints both as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .stage import NIC4, PORT, StageError, stats, web_server

__all__ = ["Work", "closed_by_nic", "short_connections"]

REQUEST = b"GET / HTTP/1.1\r\nHost: nic\r\nConnection: close\r\n\r\n"
PAGE = "a short answer\n"


@dataclass(frozen=True)
class Work:
    """What the host did for `connections` connections: request, response, close."""

    connections: int
    received: int
    """Packets that the NIC handed to the host."""
    sent: int
    """Frames that the host's stack sent by itself."""
    commands: int
    """Commands to the NIC."""
    flows: int
    """Connections whose end the NIC took over."""
    seconds: float

    @property
    def packets(self) -> int:
        """Packets that the host handled."""
        return self.received + self.sent

    def per_connection(self, total: int) -> float:
        return total / self.connections


def _fetch(page: str) -> None:
    with socket.create_connection((NIC4, PORT), timeout=20) as client:
        client.sendall(REQUEST)
        reply = b""
        while part := client.recv(65536):
            reply += part
    if reply.partition(b"\r\n\r\n")[2].decode() != page:
        raise StageError(f"a client got another page than the server's: {reply[:200]!r}")


def short_connections(control: Path, count: int, page: str, tell: Callable[[int], None] = lambda done: None) -> Work:
    """`count` clients, one after another, against the server behind `control`, and what the host did for them."""
    _fetch(page)  # ARP and the like
    _settled(control)
    before = stats(control)
    started = time.monotonic()
    for number in range(count):
        _fetch(page)
        tell(number + 1)
    seconds = time.monotonic() - started
    _settled(control)
    after = stats(control)

    def grown(group: str, name: str) -> int:
        return int(after[group][name]) - int(before[group][name])

    return Work(
        connections=count,
        received=grown("queue", "rx"),
        sent=grown("queue", "tx"),
        commands=grown("queue", "commands"),
        flows=grown("counters", "flow_opened"),
        seconds=seconds,
    )


def _settled(control: Path, timeout: float = 20.0) -> None:
    """Wait until no connection is open in the host any more."""
    deadline = time.monotonic() + timeout
    while stats(control)["tcp"]["open"]:
        if time.monotonic() > deadline:
            raise StageError(f"connections are still open after {timeout:g} s")
        time.sleep(0.1)


def closed_by_nic(work: Work) -> None:
    """Raises `StageError` unless the NIC took over the end of every connection."""
    if work.flows != work.connections:
        raise StageError(f"the NIC took over {work.flows} of {work.connections} connections")


def main() -> int:
    """Both ways, as JSON on standard output."""
    parser = argparse.ArgumentParser(prog="python -m sim.short", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=100, help="connections each way (default: %(default)s)")
    parser.add_argument("--device", default="", help="options of the simulator")
    arguments = parser.parse_args()
    results = {}
    try:
        for name, options in (("offload", ()), ("software", ("--no-teardown",))):
            with (
                tempfile.TemporaryDirectory(prefix="acceltcp-") as folder,
                web_server(Path(folder), PAGE, *options, device=arguments.device) as control,
            ):
                results[name] = short_connections(control, arguments.count, PAGE)
    except StageError as error:
        print(f"sim.short: {error}", file=sys.stderr)
        return 1
    print(json.dumps({name: dataclasses.asdict(work) for name, work in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
