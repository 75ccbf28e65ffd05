"""Linux as the neighbour and the router of the network layer, over TAP devices and the functional model.

Run by `test_kernel_neighbours.py` in a network namespace of its own:
`unshare -Urn python -m tests.host.net.kernel_neighbours SCENARIO`. Prints a line and exits 0, or not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from acceltcp.host.device import Device
from acceltcp.host.net import Addresses, IcmpErrorKind, NeighbourSettings, NeighbourState, Network
from acceltcp.host.queue import Queue
from acceltcp.host.rings import RX_PACKING

from ..fake_device import FakeTransport

TAP, FAR_TAP = "acc0", "acc1"
MAC = "02:00:00:00:00:02"
V4, V6 = "10.0.0.2", "fd00::2"
KERNEL4, KERNEL6 = "10.0.0.1", "fd00::1"
NET_SYSCTL = Path("/proc/sys/net")


def shell(text: str) -> str:
    """Output of a command that must work."""
    return subprocess.run(text.split(), check=True, timeout=20, capture_output=True, text=True).stdout


def sysctl(name: str, value: object) -> None:
    (NET_SYSCTL / name).write_text(f"{value}\n")


def make_tap(name: str, *addresses: str, mtu: int = 1500) -> int:
    """A TAP device with the kernel's addresses on it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH", name.encode(), 0x1002))  # IFF_TAP | IFF_NO_PI
    shell(f"ip link set {name} mtu {mtu} up")
    for address in addresses:
        shell(f"ip addr add {address} dev {name}" + (" nodad" if ":" in address else ""))
    return fd


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


class World:
    """The network layer on a queue of the model device, whose wire is the TAP device."""

    def __init__(self, **options: object) -> None:
        shell("ip link set lo up")
        self.fd = make_tap(TAP, f"{KERNEL4}/24", f"{KERNEL6}/64")
        self.transport = FakeTransport()
        self.transport.on_wire = self._to_kernel
        number = int(MAC.replace(":", ""), 16)
        device = Device(self.transport)
        device.set_mac(number)
        self.queue = Queue(device)
        device.enable()
        self.calls: list[tuple[object, ...]] = []
        self.network = Network(Addresses([f"{V4}/24", f"{V6}/64"], number), self._send, **options)  # type: ignore[arg-type]
        self.network.on_neighbour_found = lambda address: self.calls.append(("found", address))
        self.network.on_neighbour_failed = lambda address: self.calls.append(("failed", address))
        self.network.on_tcp_error = self._tcp_error

    def _send(self, frame: bytes, port: int) -> bool:
        return self.queue.send(frame, port=port)

    def _to_kernel(self, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.fd, frame)

    def _from_kernel(self, view: memoryview, items: tuple[int, ...]) -> None:
        self.network.receive(view, RX_PACKING["port"].of(items), time.monotonic())

    def _tcp_error(self, kind: IcmpErrorKind, mtu: int, key: bytes, seq: int) -> bool:
        self.calls.append((kind, mtu, key, seq))
        return True

    def until(self, done: Callable[[], bool], seconds: float = 5.0) -> None:
        """Carry frames until something has come about."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.calls} {self.network.stats()}"
            self.queue.flush()
            if select.select([self.fd], [], [], 0.01)[0]:
                self.transport.inject(os.read(self.fd, 65536).ljust(60, b"\0"))
            self.queue.poll(self._from_kernel)
            now = time.monotonic()
            due = self.network.next_deadline()
            if due is not None and due <= now:
                self.network.run_timers(now)

    def carry(self, seconds: float) -> None:
        """Carry frames for a while."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, seconds + 5)

    def lookup(self, address: str) -> str:
        """The MAC address of a neighbour, asked for if need be."""
        route = self.network.route(packed(address))
        self.until(lambda: self.network.resolve(route) is not None)
        header = self.network.resolve(route)
        assert header is not None and header[6:12].hex(":") == MAC
        return header[:6].hex(":")

    def state(self, address: str) -> NeighbourState | None:
        return self.network.neighbours.state(packed(address), time.monotonic())


def kernel_mac() -> str:
    words = shell(f"ip -o link show dev {TAP}").split()
    return words[words.index("link/ether") + 1]


def kernel_link_local() -> str:
    for line in shell(f"ip -6 -o addr show dev {TAP} scope link").splitlines():
        return line.split()[3].partition("/")[0]
    raise AssertionError("the kernel has no link-local address")


def we_resolve() -> None:
    """We find the kernel's MAC address at its IPv4, IPv6 and link-local address; and nobody at an address without a host."""
    world = World()
    # The kernel does not answer for an address that it still looks for duplicates of.
    world.until(lambda: "tentative" not in shell(f"ip -6 -o addr show dev {TAP}"))
    for address in (KERNEL4, KERNEL6, kernel_link_local()):
        assert world.lookup(address) == kernel_mac(), address
        assert world.state(address) is NeighbourState.REACHABLE, address
        assert ("found", packed(address)) in world.calls
    nobody = packed("10.0.0.99"), packed("fd00::99")
    for address in nobody:
        assert world.network.resolve(world.network.route(address)) is None
    world.until(lambda: all(("failed", address) in world.calls for address in nobody))
    assert world.network.stats()["questions"] == 3 + 3 + 3


def kernel_resolves() -> None:
    """The kernel finds us, believes it after its own probes, and is known to us by its questions."""
    world = World()
    for address, family in ((V4, socket.AF_INET), (V6, socket.AF_INET6)):
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"hello", (address, 9))

            def entry(address: str = address) -> list[str]:
                return shell(f"ip neigh show {address} dev {TAP}").split()

            world.until(lambda: MAC in entry())
            assert entry()[-1] == "REACHABLE", entry()
            # A probe is a question to us alone.
            shell(f"ip neigh change {address} lladdr {MAC} dev {TAP} nud probe")
            world.until(lambda: entry()[-1] == "REACHABLE")
    for address in (KERNEL4, KERNEL6):
        assert world.state(address) is NeighbourState.STALE
        assert world.lookup(address) == kernel_mac()
    assert world.network.stats()["questions"] == 0, world.network.stats()


def probes() -> None:
    """A neighbour in doubt is probed, and the kernel answers; when it has gone we notice."""
    world = World(settings=NeighbourSettings(reachable_time=0.1, delay=0.1, retransmit=0.3))
    for address in (KERNEL4, KERNEL6):
        world.lookup(address)
    asked = world.network.stats()["questions"]
    world.carry(0.3)
    for address in (KERNEL4, KERNEL6):
        assert world.state(address) is NeighbourState.STALE
        world.lookup(address)
        assert world.state(address) is NeighbourState.DELAY
        world.until(lambda address=address: world.state(address) is NeighbourState.REACHABLE)  # type: ignore[misc]
    assert world.network.stats()["questions"] == asked + 2
    for address in (KERNEL4, KERNEL6):
        world.until(lambda address=address: world.state(address) is NeighbourState.STALE)  # type: ignore[misc]
    shell(f"ip addr del {KERNEL4}/24 dev {TAP}")
    shell(f"ip addr del {KERNEL6}/64 dev {TAP}")
    world.calls.clear()
    for address in (KERNEL4, KERNEL6):
        world.lookup(address)
    world.until(lambda: len(world.calls) == 2)
    assert world.calls == [("failed", packed(KERNEL4)), ("failed", packed(KERNEL6))]


def moves() -> None:
    """The kernel changes its MAC address and says so; we say ours, and the kernel changes its mind."""
    world = World()
    for address in (KERNEL4, KERNEL6):
        world.lookup(address)
    world.carry(1.1)
    sysctl(f"ipv4/conf/{TAP}/arp_notify", 1)
    sysctl(f"ipv6/conf/{TAP}/ndisc_notify", 1)
    world.calls.clear()
    shell(f"ip link set {TAP} address 02:00:00:00:00:77")
    world.until(lambda: all(("found", packed(address)) in world.calls for address in (KERNEL4, KERNEL6)))
    for address in (KERNEL4, KERNEL6):
        assert world.lookup(address) == "02:00:00:00:00:77"
    # Now the kernel knows a wrong address of ours.
    for address in (V4, V6):
        shell(f"ip neigh replace {address} lladdr 02:00:00:00:00:99 dev {TAP} nud stale")
    world.network.announce(time.monotonic())
    for address in (V4, V6):
        world.until(lambda address=address: MAC in shell(f"ip neigh show {address} dev {TAP}"))  # type: ignore[misc]


def errors() -> None:
    """The kernel as a router: too big, no way, too far, in both versions."""
    world = World(routes=[f"default via {KERNEL4}", f"default via {KERNEL6}"])
    far = make_tap(FAR_TAP, "198.51.100.1/24", "2001:db8::1/64", mtu=1300)
    sysctl("ipv4/ip_forward", 1)
    sysctl("ipv6/conf/all/forwarding", 1)
    with contextlib.suppress(OSError):
        sysctl("ipv4/icmp_ratelimit", 0)
        sysctl("ipv6/icmp/ratelimit", 0)

    def send(remote: str, seq: int, size: int, hops: int = 64) -> bytes:
        """A segment of ours to somebody behind the router; the connection's name."""
        route = world.network.route(packed(remote))
        world.until(lambda: world.network.resolve(route) is not None)
        header = world.network.resolve(route)
        assert header is not None
        segment = TCP(sport=80, dport=50000, seq=seq, flags="A")
        if ":" in remote:
            packet = IPv6(src=V6, dst=remote, hlim=hops) / segment / Raw(bytes(size - 60))
        else:
            packet = IP(src=V4, dst=remote, ttl=hops, flags="DF") / segment / Raw(bytes(size - 40))
        world.calls.clear()
        assert world.queue.send(header + bytes(packet))
        return packed(remote) + route.local + struct.pack("!HH", 50000, 80)

    def expect(call: tuple[object, ...]) -> None:
        world.until(lambda: bool(world.calls))
        assert world.calls == [call], (world.calls, call)

    kinds = IcmpErrorKind
    for remote, nowhere in (("198.51.100.7", "203.0.113.7"), ("2001:db8::7", "2001:db8:ff::7")):
        key = send(remote, 0x12345678, 1500)
        expect((kinds.TOO_BIG, 1300, key, 0x12345678))
        assert world.network.path_mtu(packed(remote)) == 1300
        key = send(nowhere, 0xFFFFFFFF, 100)
        expect((kinds.NET_UNREACHABLE, 0, key, 0xFFFFFFFF))
        key = send(remote, 7, 100, hops=1)
        expect((kinds.TIME_EXCEEDED, 0, key, 7))
        # Nobody answers behind the router; it finds out after three questions of its own.
        key = send(remote, 8, 100)
        expect((kinds.HOST_UNREACHABLE, 0, key, 8))
    assert world.network.stats()["malformed"] == 0 and world.network.stats()["icmp_foreign"] == 0
    os.close(far)


SCENARIOS: dict[str, Callable[[], None]] = {
    "we-resolve": we_resolve,
    "kernel-resolves": kernel_resolves,
    "probes": probes,
    "moves": moves,
    "errors": errors,
}


if __name__ == "__main__":
    started = time.monotonic()
    SCENARIOS[sys.argv[1]]()
    print(f"{sys.argv[1]}: {time.monotonic() - started:.2f} s")
