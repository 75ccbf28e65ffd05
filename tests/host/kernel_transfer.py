"""Linux's TCP as the peer of the host stack in both roles, over a wire that is as bad as one likes.

Run by `test_kernel_transfer.py` in a network namespace of its own: `python -m tests.host.kernel_transfer SCENARIO [key=value ...]`.
Both sides send and receive at once, and both check every byte. Prints a line and exits 0, or not.

A conversation: the side that opened it says `UP DOWN\\n` (how many bytes it will send, and wants), sends stream 1, gets
stream 2 (`pair.pattern`); each side closes its half when it has sent everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import acceltcp.host
from acceltcp.host import Nic, TcpSettings
from acceltcp.host.device import Device
from sim.pcap import PcapWriter
from sim.wires import Captured, Impaired, Impairment, TapWire

from .fake_device import FakeTransport
from .kernel_wire import DeviceWire, plug
from .pair import pattern

OURS = {False: "10.0.0.2", True: "fd00::2"}
KERNEL = {False: "10.0.0.1", True: "fd00::1"}
MAC = "02:00:00:00:00:02"
PORT = 7000
PART = 1 << 16
LIMIT_S = 150


@dataclass
class Options:
    """Of a scenario. The wire: as `sim.wires.Impairment`, alike in both directions. size: bytes of the large transfers."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    seed: int = 1
    size: int = 1_000_000
    count: int = 100
    v6: int = 0
    setup: int = 1
    teardown: int = 1
    linger: float = 0.3
    pcap: str = ""


# -- the kernel's side: blocking sockets in threads --------------------------------------------


def kernel_send(sock: socket.socket, stream: int, size: int) -> None:
    at = 0
    while at < size:
        part = pattern(stream, at, min(PART, size - at))
        sock.sendall(part)
        at += len(part)
    sock.shutdown(socket.SHUT_WR)


def kernel_receive(sock: socket.socket, stream: int, size: int) -> None:
    at = 0
    while part := sock.recv(PART):
        assert part == pattern(stream, at, len(part)), f"wrong bytes near {at}"
        at += len(part)
    assert at == size, f"{at} of {size} bytes"


def both_at_once(sock: socket.socket, sends: int, out: int, gets: int, back: int) -> None:
    """Send stream `sends`, receive stream `gets`."""
    failed: list[BaseException] = []

    def send() -> None:
        try:
            kernel_send(sock, sends, out)
        except BaseException as error:
            failed.append(error)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    kernel_receive(sock, gets, back)
    sender.join(LIMIT_S)
    assert not failed, failed
    assert not sender.is_alive()


def kernel_opens(address: str, up: int, down: int) -> None:
    with socket.create_connection((address, PORT), timeout=LIMIT_S) as sock:
        sock.sendall(b"%d %d\n" % (up, down))
        both_at_once(sock, 1, up, 2, down)


def kernel_answers(sock: socket.socket) -> None:
    with sock:
        sock.settimeout(LIMIT_S)
        line = b""
        while not line.endswith(b"\n"):
            byte = sock.recv(1)
            assert byte, "closed before the first line"
            line += byte
        up, down = map(int, line.split())
        both_at_once(sock, 2, down, 1, up)


class KernelServer:
    """Serves conversations in threads; `failures` tells how they failed."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.served = 0
        self._lock = threading.Lock()
        self._sock = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._one, args=(self._sock.accept()[0],), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        try:
            kernel_answers(sock)
        except BaseException as error:
            self.failures.append(error)
        with self._lock:
            self.served += 1


# -- our side ----------------------------------------------------------------------------------


async def our_send(writer: Any, stream: int, size: int) -> None:
    at = 0
    while at < size:
        part = pattern(stream, at, min(PART, size - at))
        writer.write(part)
        at += len(part)
        await writer.drain()
    writer.write_eof()


async def our_receive(reader: Any, stream: int, size: int) -> None:
    at = 0
    while part := await reader.read(PART):
        assert part == pattern(stream, at, len(part)), f"wrong bytes near {at}"
        at += len(part)
    assert at == size, f"{at} of {size} bytes"


class OurServer:
    """Answers conversations."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.served = 0

    async def __call__(self, connection: acceltcp.host.Connection) -> None:
        try:
            up, down = map(int, (await connection.readline()).split())
            await asyncio.gather(our_send(connection, 2, down), our_receive(connection, 1, up))
            self.served += 1
        except BaseException as error:
            self.failures.append(error)
            raise


async def we_open(nic: Nic, address: str, up: int, down: int) -> None:
    reader, writer = await acceltcp.host.open_connection(address, PORT, nic=nic)
    writer.write(b"%d %d\n" % (up, down))
    await asyncio.gather(our_send(writer, 1, up), our_receive(reader, 2, down))
    writer.close()
    await writer.wait_closed()


# -- scenarios -----------------------------------------------------------------------------------


async def passive(nic: Nic, options: Options) -> str:
    """The kernel opens: small sizes, then large ones each way and both ways."""
    server = OurServer()
    await nic.listen(PORT, server, **switches(options))
    size, address = options.size, OURS[bool(options.v6)]
    plan = [(1, 1), (0, 1), (1, 0), (0, 0), (1448, 1449), (30_000, 70_000), (size, 0), (0, size), (size // 2, size // 2)]
    for up, down in plan:
        await asyncio.to_thread(kernel_opens, address, up, down)
    await served(server, len(plan))
    return f"{nic.endpoint.stats['retransmissions']} retransmissions"


async def active(nic: Nic, options: Options) -> str:
    """We open."""
    server = KernelServer()
    size, address = options.size, KERNEL[bool(options.v6)]
    plan = [(1, 1), (0, 1), (1, 0), (0, 0), (1448, 1449), (30_000, 70_000), (size, 0), (0, size), (size // 2, size // 2)]
    for up, down in plan:
        await asyncio.wait_for(we_open(nic, address, up, down), LIMIT_S)
    await served(server, len(plan))
    return f"{nic.endpoint.stats['retransmissions']} retransmissions"


async def served(server: OurServer | KernelServer, count: int) -> None:
    """Wait until so many conversations are over; fails when one failed."""
    deadline = time.monotonic() + 60
    while server.served < count and not server.failures:
        assert time.monotonic() < deadline, f"{server.served} of {count} served"
        await asyncio.sleep(0.01)
    assert not server.failures, server.failures[:3]


def switches(options: Options) -> dict[str, bool]:
    """Offloads of a listener, as keywords, only those that are off."""
    return {name: False for name in ("setup", "teardown") if not getattr(options, name)}


async def kernel_stream(address: str, up: int, down: int) -> None:
    """The kernel opens, by asyncio's own sockets: thousands at once."""
    reader, writer = await asyncio.open_connection(address, PORT)
    writer.write(b"%d %d\n" % (up, down))
    await asyncio.gather(our_send(writer, 1, up), our_receive(reader, 2, down))
    writer.close()
    await writer.wait_closed()


async def many_passive(nic: Nic, options: Options) -> str:
    """`count` connections of the kernel, all open at once before the first says anything."""
    server = OurServer()
    await nic.listen(PORT, server, max_connections=100_000, backlog=4096, **switches(options))
    open_now = asyncio.Semaphore(0)
    go = asyncio.Event()
    address = OURS[bool(options.v6)]

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(address, PORT)
        open_now.release()
        await go.wait()
        up, down = number % 5000, number * 7 % 5000
        writer.write(b"%d %d\n" % (up, down))
        await asyncio.gather(our_send(writer, 1, up), our_receive(reader, 2, down))
        writer.close()
        await writer.wait_closed()

    tasks = [asyncio.create_task(one(number)) for number in range(options.count)]
    for _ in tasks:
        await open_now.acquire()
    most = len(nic.endpoint.connections)
    go.set()
    await asyncio.gather(*tasks)
    await served(server, options.count)
    return f"{most} open at once"


async def many_active(nic: Nic, options: Options) -> str:
    """`count` connections of ours, all open at once before the first says anything."""
    failures: list[BaseException] = []
    served = asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up, down = map(int, (await reader.readline()).split())
            await asyncio.gather(our_send(writer, 2, down), our_receive(reader, 1, up))
            writer.close()
        except BaseException as error:
            failures.append(error)
        served.release()

    kernel = await asyncio.start_server(answer, "0.0.0.0", PORT, backlog=4096)
    open_now = asyncio.Semaphore(0)
    go = asyncio.Event()

    async def one(number: int) -> None:
        reader, writer = await acceltcp.host.open_connection(KERNEL[False], PORT, nic=nic)
        open_now.release()
        await go.wait()
        up, down = number % 5000, number * 7 % 5000
        writer.write(b"%d %d\n" % (up, down))
        await asyncio.gather(our_send(writer, 1, up), our_receive(reader, 2, down))
        writer.close()
        await writer.wait_closed()

    tasks = [asyncio.create_task(one(number)) for number in range(options.count)]
    for _ in tasks:
        await open_now.acquire()
    most = len(nic.endpoint.connections)
    go.set()
    await asyncio.gather(*tasks)
    for _ in tasks:
        await served.acquire()
    assert not failures, failures[:3]
    kernel.close()
    return f"{most} open at once"


async def half_close(nic: Nic, options: Options) -> str:
    """Each side in turn ends its half first and still gets everything of the other's."""
    size = options.size
    ended = asyncio.Event()

    async def late(connection: acceltcp.host.Connection) -> None:
        # The kernel has nothing more to say; we begin only then.
        await our_receive(connection, 1, 10)
        await our_send(connection, 2, size)
        ended.set()

    async def early(connection: acceltcp.host.Connection) -> None:
        # We have nothing to say; the kernel goes on only when it has read our end. (It says something before, as its
        # acknowledgment of a SYN-ACK that the NIC keeps no state of may be lost: nobody would repeat it.)
        assert await connection.readline() == b"\n"
        connection.write_eof()
        await our_receive(connection, 1, size)
        ended.set()

    def client_early() -> None:
        with socket.create_connection((OURS[False], PORT), timeout=LIMIT_S) as sock:
            kernel_send(sock, 1, 10)
            kernel_receive(sock, 2, size)

    def client_late() -> None:
        with socket.create_connection((OURS[True], PORT + 1), timeout=LIMIT_S) as sock:
            sock.sendall(b"\n")
            kernel_receive(sock, 2, 0)
            kernel_send(sock, 1, size)
            sock.settimeout(LIMIT_S)

    for port, handler, client in ((PORT, late, client_early), (PORT + 1, early, client_late)):
        ended.clear()
        await nic.listen(port, handler, **switches(options))
        await asyncio.to_thread(client)
        await asyncio.wait_for(ended.wait(), LIMIT_S)
    return "ok"


async def simultaneous_close(nic: Nic, options: Options) -> str:
    """Both FINs cross on the wire (RFC 9293 section 3.6, figure 13); the kernel ends in TIME_WAIT or closed without an error."""
    states: list[str] = []

    async def handler(connection: acceltcp.host.Connection) -> None:
        await connection.readline()
        await asyncio.sleep(max(start[0] - time.monotonic(), 0))
        connection.write_eof()
        assert await connection.read(1) == b""
        states.append("ok")

    start = [0.0]
    await nic.listen(PORT, handler, **switches(options))

    def client() -> None:
        with socket.create_connection((OURS[False], PORT), timeout=LIMIT_S) as sock:
            sock.sendall(b"\n")
            start[0] = time.monotonic() + 2 * options.delay + 0.3
            time.sleep(start[0] - time.monotonic())
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            assert not error, os.strerror(error)

    for _ in range(3):
        await asyncio.to_thread(client)
    await asyncio.sleep(4 * options.delay + 0.2)
    assert len(states) == 3 and nic.endpoint.stats["failed"] == 0, (states, nic.endpoint.stats)
    return "ok"


async def simultaneous_open(nic: Nic, options: Options) -> str:
    """Both SYNs cross on the wire (RFC 9293 section 3.5, figure 7)."""
    for number in range(3):
        local, theirs = 50_000 + number, 51_000 + number

        def kernel(local: int = local, theirs: int = theirs) -> None:
            with socket.socket() as sock:
                sock.settimeout(LIMIT_S)
                sock.bind((KERNEL[False], theirs))
                sock.connect((OURS[False], local))
                both_at_once(sock, 2, 20_000, 1, 30_000)

        async def ours(local: int = local, theirs: int = theirs) -> None:
            reader, writer = await acceltcp.host.open_connection(
                KERNEL[False], theirs, nic=nic, local_addr=(OURS[False], local)
            )
            await asyncio.gather(our_send(writer, 1, 30_000), our_receive(reader, 2, 20_000))
            writer.close()
            await writer.wait_closed()

        await asyncio.wait_for(asyncio.gather(asyncio.to_thread(kernel), ours()), LIMIT_S)
    return "ok"


async def refused(nic: Nic, options: Options) -> str:
    """The kernel refuses our SYN (RFC 9293 section 3.10.7.3), and we its."""
    try:
        await asyncio.wait_for(acceltcp.host.open_connection(KERNEL[False], 9999, nic=nic), 30)
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("not refused")
    try:
        await asyncio.to_thread(socket.create_connection, (OURS[False], 9999), 30)
    except ConnectionRefusedError:
        return "ok"
    raise AssertionError("not refused")


SCENARIOS: dict[str, Callable[[Nic, Options], Awaitable[str]]] = {
    "passive": passive,
    "active": active,
    "many-passive": many_passive,
    "many-active": many_active,
    "half-close": half_close,
    "simultaneous-close": simultaneous_close,
    "simultaneous-open": simultaneous_open,
    "refused": refused,
}


async def main(name: str, options: Options) -> None:
    tap = TapWire("acc0")
    plug("acc0", 1)
    if options.corrupt:
        # ARP has no checksum: a flipped bit may teach either side a wrong MAC address for half a minute.
        for address in OURS.values():
            subprocess.run(["ip", "neigh", "replace", address, "lladdr", MAC, "dev", "acc0"], check=True, timeout=20)
    names = ("loss", "duplicate", "reorder", "corrupt", "delay", "jitter")
    what = Impairment(**{name: getattr(options, name) for name in names})
    wire = Impaired(tap, to_nic=what, from_nic=what, seed=options.seed)
    device = FakeTransport(flows=1024)
    DeviceWire(Captured(wire, PcapWriter(options.pcap)) if options.pcap else wire, device)
    settings = TcpSettings(time_wait=options.linger, linger=options.linger)
    started = time.monotonic()
    addresses = [f"{OURS[False]}/24", f"{OURS[True]}/64"]
    async with acceltcp.host.open(Device(device), addresses, mac=MAC, tcp=settings) as nic:
        said = await asyncio.wait_for(SCENARIOS[name](nic, options), LIMIT_S)
        print(f"{name}: {time.monotonic() - started:.2f} s, {said}", nic.endpoint.stats)


def parse(words: list[str]) -> Options:
    """`key=value` words."""
    options = Options()
    kinds = {field.name: type(getattr(options, field.name)) for field in fields(Options)}
    return replace(options, **{key: kinds[key](value) for key, value in (word.split("=", 1) for word in words)})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], parse(sys.argv[2:])))
