"""What the tests of this folder share: the NIC in a namespace, and the kernel as its client.

`World` uses a simulated NIC in this process (its driver runs in a thread), so that a test can
look at what the host stack knows. `Program` runs `acceltcp` as a user would. Both plug the NIC
into the TAP interface `acc0` and end everything they started. Only inside `@isolated` tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import acceltcp.host
from acceltcp.host import Connection, Nic, Server
from sim.wires import TapWire

TAP = "acc0"
MAC = "02:00:00:00:00:02"
KERNEL4, KERNEL6 = "10.0.0.1", "fd00::1"
NIC4, NIC6 = "10.0.0.2", "fd00::2"
ADDRESSES = (f"{NIC4}/24", f"{NIC6}/64")
NIC = {"ipv4": NIC4, "ipv6": NIC6}

START_S = 500
"""The first start compiles the model."""
CALL_S = TRANSFER_S = 200
"""Longer than anything takes: on a machine with much else to do, reading all counters alone may take a minute."""


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True, timeout=20)


def sysctl(**values: int) -> None:
    """Set `net.ipv4.NAME`."""
    for name, value in values.items():
        Path(f"/proc/sys/net/ipv4/{name}").write_text(f"{value}\n")


def plug(mtu: int = 1500, *, tap: str = TAP) -> None:
    """Bring up the kernel's side."""
    with contextlib.suppress(OSError):  # fewer packets that nobody asked for
        Path(f"/proc/sys/net/ipv6/conf/{tap}/router_solicitations").write_text("0\n")
        Path(f"/proc/sys/net/ipv6/conf/{tap}/addr_gen_mode").write_text("1\n")
    for version in ("ipv4", "ipv6"):  # ... and patience with an answer that the simulator is slow to give
        Path(f"/proc/sys/net/{version}/neigh/{tap}/mcast_solicit").write_text("30\n")
    ip("link", "set", "lo", "up")
    # A queue that holds a whole flood: the simulator may be slow, the wire loses nothing.
    ip("link", "set", tap, "mtu", str(mtu), "txqueuelen", "20000", "up")
    ip("addr", "replace", f"{KERNEL4}/24", "dev", tap)
    ip("addr", "replace", f"{KERNEL6}/64", "dev", tap, "nodad")
    sysctl(tcp_no_metrics_save=1)


def wait_until(what: str, condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Poll until it is true; fails with `what` otherwise."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)


# -- servers -----------------------------------------------------------------------------


class World:
    """A simulated NIC on a TAP interface, driven by this process.

    sim: more options of the simulator, as in `sim:?...`. mtu: of both sides.
    Further options are those of `acceltcp.host.Nic`.
    """

    def __init__(
        self, sim: str = "", *, addresses: tuple[str, ...] = ADDRESSES, mtu: int = 1500, **options: Any
    ) -> None:
        self._spec = f"sim:?tap={TAP}" + (f"&{sim}" if sim else "")
        self._options = {"addresses": addresses, "mac": MAC, "mtu": mtu, **options}
        self._mtu = mtu
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="driver", daemon=True)
        self.nic: Nic

    def __enter__(self) -> World:
        self._thread.start()
        self.nic = acceltcp.host.open(self._spec, **self._options)
        try:
            self.call(self.nic.start(), START_S)
            plug(self._mtu)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.call(self.nic.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            if not self._thread.is_alive():
                self._loop.close()

    def call(self, awaitable: Awaitable[Any], timeout: float = CALL_S) -> Any:
        """Run a coroutine in the driver's loop; its result."""

        async def run() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout)

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the driver's thread; its result."""

        async def run() -> Any:
            return function(*arguments)

        return self.call(run())

    def listen(
        self, port: int, handler: Callable[[Connection], Awaitable[None]] | None, **options: Any
    ) -> Server:
        """`Nic.listen`."""
        return self.call(self.nic.listen(port, handler, **options))

    def counters(self) -> dict[str, int]:
        """The NIC's."""
        return self.do(self.nic.device.counters)

    def tcp_stats(self) -> dict[str, int]:
        """The endpoint's."""
        return self.do(lambda: dict(self.nic.endpoint.stats))


class Echo:
    """An echo handler that remembers its connections by the client's port."""

    def __init__(self) -> None:
        self.connections: dict[int, Connection] = {}
        self.received: dict[int, int] = {}
        self.ended: list[int] = []
        self.errors: list[BaseException] = []

    async def __call__(self, connection: Connection) -> None:
        port = connection.peername[1]
        self.connections[port] = connection
        self.received[port] = 0
        try:
            while data := await connection.read(1 << 16):
                self.received[port] += len(data)
                connection.write(data)
                await connection.drain()
        except OSError as error:
            self.errors.append(error)
            raise
        finally:
            self.ended.append(port)


class Program:
    """`python -m acceltcp ...` in a process of its own. Use in `with`, or `start` and `stop`."""

    def __init__(self, *arguments: str, ready: Path, folder: Path) -> None:
        self._arguments = arguments
        self._ready = ready
        self._log = folder / f"{arguments[0]}-{id(self):x}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Program:
        """Start it and wait until the path `ready` is there."""
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "acceltcp", *self._arguments]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_S
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                code = self._process.poll()
                self.kill()
                raise AssertionError(f"{self._arguments} is not up (status {code}):\n{self.said()}")
            time.sleep(0.02)
        return self

    def said(self) -> str:
        """All its output."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def wait(self, timeout: float = 20) -> int:
        """Its exit status, when it has ended by itself."""
        assert self._process is not None
        return self._process.wait(timeout)

    def stop(self) -> int:
        """Ctrl-C; its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self._arguments} does not end:\n{self.said()}") from None

    def __enter__(self) -> Program:
        return self.start()

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            with contextlib.suppress(AssertionError):
                self.stop()
            print(self.said())
            return
        assert self.stop() == 0, self.said()
        assert "Traceback" not in self.said(), self.said()


class Service(Program):
    """`acceltcp echo` or `acceltcp http`, by default on a simulated NIC at `acc0`."""

    def __init__(
        self, name: str, *arguments: str, folder: Path, sim: str = "", device: str | None = None
    ) -> None:
        self.control = folder / "control.sock"
        device = device or f"sim:?tap={TAP}" + (f"&{sim}" if sim else "")
        addresses = [part for address in ADDRESSES for part in ("--address", address)]
        super().__init__(
            name, "--device", device, "--mac", MAC, *addresses, "--tap-address", "none",
            "--control", str(self.control), *arguments, ready=self.control, folder=folder,
        )  # fmt: skip

    def start(self) -> Service:
        self.control.unlink(missing_ok=True)  # of one that was killed
        super().start()
        plug()
        return self

    def stats(self) -> dict[str, dict[str, Any]]:
        """What `acceltcp stats --json` says."""
        out = subprocess.run(
            [sys.executable, "-m", "acceltcp", "stats", "--control", str(self.control), "--json"],
            capture_output=True, text=True, timeout=CALL_S,
        )  # fmt: skip
        assert out.returncode == 0, out.stderr
        return json.loads(out.stdout)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A short-lived directory with a short name (UNIX sockets)."""
    with tempfile.TemporaryDirectory(prefix="acceltcp-") as name:
        yield Path(name)


# -- the kernel as client ----------------------------------------------------------------


class TcpInfo(NamedTuple):
    """The part of struct tcp_info (linux/tcp.h) that is compared."""

    state: int
    timestamps: bool
    sack: bool
    wscale: bool
    ecn: bool
    snd_wscale: int
    rcv_wscale: int
    snd_mss: int
    rcv_mss: int
    advmss: int
    total_retrans: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """What the kernel says about a connection."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    options, scales = raw[5], raw[6]
    words = struct.unpack_from("=24I", raw, 8)
    return TcpInfo(
        state=raw[0],
        timestamps=bool(options & 1),
        sack=bool(options & 2),
        wscale=bool(options & 4),
        ecn=bool(options & 8),
        snd_wscale=scales & 15,
        rcv_wscale=scales >> 4,
        snd_mss=words[2],
        rcv_mss=words[3],
        advmss=words[19],
        total_retrans=words[23],
    )


def connect(
    address: str, port: int, *, timeout: float = TRANSFER_S, mss: int | None = None, source: int = 0
) -> socket.socket:
    """A connected socket. source: local port, taken even if it was just used."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        sock.settimeout(timeout)
        if mss is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        if source:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("::" if ":" in address else "", source))
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def read_all(sock: socket.socket, digest: Any = None) -> int:
    """Read to the end; the number of bytes."""
    total = 0
    while part := sock.recv(1 << 16):
        total += len(part)
        if digest is not None:
            digest.update(part)
    return total


def exchange(sock: socket.socket, size: int, seed: object) -> None:
    """Send `size` random bytes, then our end of data, and check that the same come back.

    Sends and receives at once, in chunks of random sizes.
    """
    rng = random.Random(repr(seed))
    data = rng.randbytes(size)
    failed: list[BaseException] = []

    def send() -> None:
        try:
            at = 0
            while at < size:
                step = rng.choice((1, 100, 1448, 5000, 65536))
                sock.sendall(data[at : at + step])
                at += step
            sock.shutdown(socket.SHUT_WR)
        except BaseException as error:
            failed.append(error)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    digest = hashlib.sha256()
    total = read_all(sock, digest)
    sender.join(TRANSFER_S)
    assert not failed, failed
    assert (total, digest.hexdigest()) == (size, hashlib.sha256(data).hexdigest())


def request(address: str, port: int, data: bytes, *, source: int = 0) -> bytes:
    """Send, end our data, read all."""
    with connect(address, port, source=source) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        reply = b""
        while part := sock.recv(1 << 16):
            reply += part
        return reply


def together(jobs: list[Callable[[], None]], timeout: float = 120.0) -> None:
    """Run all at once, each in a thread; raises the first failure."""
    failed: list[tuple[int, BaseException]] = []

    def run(number: int, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failed.append((number, error))

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    late = [number for number, thread in enumerate(threads) if thread.is_alive()]
    assert not late, f"not over after {timeout:g} s: {late}"
    if failed:
        raise AssertionError(
            f"{len(failed)} of {len(jobs)} failed; job {failed[0][0]}: {failed[0][1]!r}"
        ) from failed[0][1]


# -- frames ------------------------------------------------------------------------------


class Sniffer:
    """All frames on an interface of this namespace, and a way to put more there."""

    def __init__(self, interface: str = TAP) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._sock.bind((interface, 3))

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._sock.close()

    def send(self, frame: bytes) -> None:
        """To the NIC."""
        self._sock.send(frame)

    def frames(self) -> Iterator[tuple[bool, bytes]]:
        """What has passed since: whether it went to the NIC, and the frame."""
        self._sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, kind, _, _) = self._sock.recvfrom(1 << 16)
                yield kind == socket.PACKET_OUTGOING, frame

    def wait(self, accept: Callable[[bool, bytes], bool], timeout: float = 10.0) -> bytes:
        """The next frame that `accept` takes."""
        deadline = time.monotonic() + timeout
        while True:
            for outgoing, frame in self.frames():
                if accept(outgoing, frame):
                    return frame
            assert time.monotonic() < deadline, f"no such frame within {timeout:g} s"
            time.sleep(0.005)


class Vlan:
    """A TAP interface `name` whose frames travel over `acc0` with a VLAN tag.

    Does what `ip link add ... type vlan` does, also for kernels built without that. Frames
    without the tag do not get through. Use in `with`.
    """

    _AUXDATA = struct.Struct("=IIIHHHH")
    _TAG_VALID = 1 << 4

    def __init__(self, number: int, over: str = TAP) -> None:
        self.name = f"vlan{number}"
        self._number = number
        self._tag = struct.pack("!HH", 0x8100, number)
        self._tap = TapWire(self.name)
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: the kernel takes the tag out
        self._sock.bind((over, 3))
        self._sock.setblocking(False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vlan", daemon=True)

    def __enter__(self) -> Vlan:
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{self.name}/addr_gen_mode").write_text("1\n")
        ip("link", "set", self.name, "up")
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._tap.close()
        self._sock.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            select.select([self._sock, *self._tap.filenos()], [], [], 0.1)
            for frame in self._tap.receive(0):
                self._sock.send(frame[:12] + self._tag + frame[12:])
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, extra, _, address = self._sock.recvmsg(1 << 16, 256)
                    if address[2] != socket.PACKET_OUTGOING and self._tagged(extra):
                        self._tap.send(frame, 0)

    def _tagged(self, extra: list[tuple[int, int, bytes]]) -> bool:
        for _, _, data in extra:
            status, _, _, _, _, tci, _ = self._AUXDATA.unpack_from(data)
            return bool(status & self._TAG_VALID) and tci & 0xFFF == self._number
        return False
