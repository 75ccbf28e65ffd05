"""Two NICs, each on a functional model, with a cable between them, in one event loop and in real time."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import acceltcp.host
from acceltcp.host import Device, EventLoop, Nic

from ..fake_device import FakeTransport
from ..test_stack import QUICK

NEAR4, NEAR6 = "10.0.0.1", "fd00::1"
FAR4, FAR6 = "10.0.0.2", "fd00::2"
LIMIT_S = 20


def join(one: FakeTransport, other: FakeTransport) -> None:
    """A cable: what one sends the other receives in the next turn of the loop."""
    loop = asyncio.get_running_loop()
    one.on_wire = lambda frame: loop.call_soon(other.inject, frame.ljust(60, b"\0")) and None
    other.on_wire = lambda frame: loop.call_soon(one.inject, frame.ljust(60, b"\0")) and None


async def _sweep(transports: tuple[FakeTransport, ...]) -> None:
    """The models' timers of flows."""
    while True:
        for transport in transports:
            transport.sweep()
        await asyncio.sleep(0.01)


def run_pair(test: Callable[[Nic, Nic], Awaitable[None]], *, near: Any = (), far: Any = (), far_splices: int = 0) -> None:
    """Run `test(near, far)` in an `EventLoop`, whose NIC is the near one. near, far: more options for `Nic`. far_splices: so many
    pairs of connections the far NIC can splice."""

    async def main() -> None:
        transports = FakeTransport(flows=64), FakeTransport(flows=64)
        if far_splices:
            transports[1].give_splices(far_splices)
        join(*transports)
        sweeping = asyncio.ensure_future(_sweep(transports))
        nics = [
            acceltcp.host.open(
                Device(transport), [f"{v4}/24", f"{v6}/64"], mac=mac, **{"tcp": QUICK, "linger": 0.3, **dict(options)}
            )
            for transport, v4, v6, mac, options in (
                (transports[0], NEAR4, NEAR6, "02:00:00:00:00:01", near),
                (transports[1], FAR4, FAR6, "02:00:00:00:00:02", far),
            )
        ]
        async with nics[0], nics[1]:
            await asyncio.wait_for(test(*nics), LIMIT_S)
        sweeping.cancel()

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(main())


def certificate(folder: Path, *names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server with a new certificate for these names and addresses, and of a client that trusts it."""
    alternatives = ",".join(f"{'IP' if name[0].isdigit() or ':' in name else 'DNS'}:{name}" for name in names)
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=acceltcp test", "-addext", f"subjectAltName={alternatives}", "-keyout", key, "-out", cert],
        check=True, capture_output=True, timeout=20,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, ssl.create_default_context(cafile=str(cert))
