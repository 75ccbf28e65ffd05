"""Throughput over a lossy, long wire: our stack and Linux's, each way, and Linux with itself.

`python -m tests.host.throughput` prints bytes per second of each, at 1 % loss and 50 ms of round trip unless told
otherwise, and how ours compare with Linux's CUBIC. The wire is the same every time (`sim.wires.Impaired`), the
measure too: the kernel's client asks its own `tcp_info` what was acknowledged or received between the end of the
warm-up and the end. Several connections run at once; nothing but chance joins them, as the wire has no limit. The last
two lines are two of our stacks, in virtual time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import acceltcp.host
from acceltcp.host import Connection
from acceltcp.host.device import Device
from sim.wires import Impaired, Impairment, TapWire
from tests.system.namespace import unshare_command

from .fake_device import FakeTransport
from .kernel_wire import DeviceWire, join_taps, other_kernel, plug

ROOT = Path(__file__).parents[2]
SOURCE, SINK = 7001, 7002
"""Ports: the server there sends without end, or reads until the end."""
_BYTES = struct.Struct("=QQ")
_BYTES_ACKED_AT = 120
"""Of tcpi_bytes_acked, followed by tcpi_bytes_received (linux/tcp.h)."""
CONFIGURATIONS = ("kernel to kernel", "ours to kernel", "kernel to ours")
CHUNK = bytes(1 << 16)


def _moved(sock: socket.socket, sending: bool) -> int:
    acked, received = _BYTES.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), _BYTES_ACKED_AT)
    return acked if sending else received


def client(address: str, port: int, flows: int, warm: float, seconds: float) -> list[float]:
    """The kernel's side: bytes per second of each connection."""
    sending = port == SINK
    socks = []
    for _ in range(flows):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        sock.settimeout(30)
        sock.connect((address, port))
        sock.setblocking(False)
        socks.append(sock)
    start = time.monotonic()
    marks: list[tuple[float, list[int]]] = []
    for until in (start + warm, start + warm + seconds):
        while (left := until - time.monotonic()) > 0:
            readable, writable, _ = select.select([] if sending else socks, socks if sending else [], [], min(left, 0.1))
            for sock in readable:
                sock.recv(1 << 20)
            for sock in writable:
                with contextlib.suppress(BlockingIOError):
                    sock.send(CHUNK)
        marks.append((time.monotonic(), [_moved(sock, sending) for sock in socks]))
    for sock in socks:
        sock.close()
    (t0, before), (t1, after) = marks
    return [(b - a) / (t1 - t0) for a, b in zip(before, after, strict=True)]


def server() -> Callable[[], None]:
    """The kernel as the server of both ports: gets ready, then the function to run."""
    listeners = {}
    for port in (SOURCE, SINK):
        sock = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
        sock.setblocking(False)
        listeners[sock] = port
    return lambda: _serve(listeners)


def _serve(listeners: dict[socket.socket, int]) -> None:
    sources: set[socket.socket] = set()
    sinks: set[socket.socket] = set()
    while True:
        readable, writable, _ = select.select([*listeners, *sinks], list(sources), [], 1)
        for sock in [*readable, *writable]:
            try:
                if sock in listeners:
                    new = sock.accept()[0]
                    new.setblocking(False)
                    new.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
                    (sources if listeners[sock] == SOURCE else sinks).add(new)
                elif sock in sinks:
                    if not sock.recv(1 << 20):
                        raise ConnectionError
                else:
                    sock.send(CHUNK)
            except BlockingIOError:
                pass
            except OSError:
                sinks.discard(sock)
                sources.discard(sock)
                sock.close()


async def _source(connection: Connection) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            connection.write(CHUNK)
            await connection.drain()


async def _sink(connection: Connection) -> None:
    with contextlib.suppress(ConnectionError):
        while await connection.read(1 << 20):
            pass


async def _client_process(port: int, options: argparse.Namespace) -> list[float]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.host.throughput", "--role", "client", "--port", str(port), "--flows", str(options.flows),
        "--warm", str(options.warm), "--seconds", str(options.seconds), cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(child.communicate(), options.warm + options.seconds + 60)
    finally:
        if child.returncode is None:
            child.kill()
    assert child.returncode == 0, "the client failed"
    return json.loads(out)


def inside(options: argparse.Namespace) -> list[float]:
    """Within the namespace: one configuration with one seed."""
    what = Impairment(loss=options.loss, delay=options.rtt / 2)
    port = SINK if options.configuration == "kernel to ours" else SOURCE
    tap = TapWire("one")
    plug("one", 1)

    async def with_kernel() -> list[float]:
        with other_kernel("two", 2, server) as wire:
            joined = asyncio.create_task(join_taps(wire, tap, what, what, options.seed))
            try:
                return await _client_process(port, options)
            finally:
                joined.cancel()

    async def with_ours() -> list[float]:
        device = FakeTransport()
        DeviceWire(Impaired(tap, to_nic=what, from_nic=what, seed=options.seed), device)
        async with acceltcp.host.open(Device(device), ["10.0.0.2/24", "fd00::2/64"]) as nic:
            await nic.listen(SOURCE, _source)
            await nic.listen(SINK, _sink)
            return await _client_process(port, options)

    return asyncio.run(with_kernel() if options.configuration == "kernel to kernel" else with_ours())


def measure(configuration: str, *, loss: float, rtt: float, seed: int, flows: int, warm: float, seconds: float) -> list[float]:
    """Bytes per second of every connection, from a namespace of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "host")])}
    done = subprocess.run(
        [
            *unshare_command(), sys.executable, "-m", "tests.host.throughput", "--role", "inside",
            "--configuration", configuration, "--loss", str(loss), "--rtt", str(rtt), "--seed", str(seed),
            "--flows", str(flows), "--warm", str(warm), "--seconds", str(seconds),
        ],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=warm + seconds + 120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", type=float, default=0.01, help="probability, each way")
    parser.add_argument("--rtt", type=float, default=0.05, help="seconds")
    parser.add_argument("--flows", type=int, default=4, help="connections at once")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--warm", type=float, default=3, help="seconds before the measurement")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--role", choices=("client", "inside"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--configuration", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "client":
        print(json.dumps(client("10.0.0.2", options.port, options.flows, options.warm, options.seconds)))
    elif options.role == "inside":
        print(json.dumps(inside(options)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Measure everything, the configurations in turn, and print it."""
    keep = {name: getattr(options, name) for name in ("loss", "rtt", "flows", "warm", "seconds")}
    rates: dict[str, list[float]] = {name: [] for name in CONFIGURATIONS}
    for seed in range(options.seeds):
        for name in CONFIGURATIONS:
            found = measure(name, seed=seed, **keep)
            rates[name] += found
            print(f"  seed {seed}: {name}: {' '.join(f'{rate / 1e3:.0f}' for rate in found)} kB/s", flush=True)
    reference = statistics.median(rates["kernel to kernel"])
    for name, found in rates.items():
        median = statistics.median(found)
        print(
            f"{name}: median {median / 1e3:.1f} kB/s, mean {statistics.mean(found) / 1e3:.1f}, from {min(found) / 1e3:.1f} to"
            f" {max(found) / 1e3:.1f} over {len(found)} connections; {median / reference:.2f} of the kernel's"
        )


if __name__ == "__main__":
    main()
