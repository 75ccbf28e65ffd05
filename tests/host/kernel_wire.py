"""What joins Linux's TCP to the model device, or to itself, in a network namespace of its own: TAP devices and
`sim.wires.Impaired` between them, driven by an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from sim.wires import Impaired, Impairment, TapWire, Wire

from .fake_device import FakeTransport

__all__ = ["DeviceWire", "join_taps", "other_kernel", "plug"]

_CLONE_NEWNET = 0x40000000


def plug(tap: str, number: int) -> None:
    """Bring up the kernel's side of a TAP device: 10.0.0.N and fd00::N."""
    with contextlib.suppress(OSError):  # fewer packets that nobody asked for
        Path(f"/proc/sys/net/ipv6/conf/{tap}/router_solicitations").write_text("0\n")
    for command in (
        "ip link set lo up",
        f"ip link set {tap} txqueuelen 20000 up",
        f"ip addr add 10.0.0.{number}/24 dev {tap}",
        f"ip addr add fd00::{number}/64 dev {tap} nodad",
    ):
        subprocess.run(command.split(), check=True, timeout=20)
    # What a connection learns must not help the next one.
    Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1\n")


class _Poller:
    """Runs `work` whenever a descriptor of the wires is readable or one of their deadlines has come."""

    def __init__(self, wires: list[Wire], work: Callable[[float], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wires, self._work = wires, work
        self._timer: asyncio.TimerHandle | None = None
        for wire in wires:
            for fd in wire.filenos():
                self._loop.add_reader(fd, self.run)

    def run(self) -> None:
        self._work(time.monotonic())
        self.reschedule()

    def reschedule(self) -> None:
        times = [when for wire in self._wires if (when := wire.deadline()) is not None]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if times:
            self._timer = self._loop.call_at(min(times), self.run)


class DeviceWire:
    """The model device's port on a wire, within the running event loop."""

    def __init__(self, wire: Wire, device: FakeTransport) -> None:
        self.wire, self.device = wire, device
        device.on_wire = self._send
        self._poller = _Poller([wire], self._work)
        self._sweep()

    def _sweep(self) -> None:
        """Timers of the flows that the device closes."""
        self.device.sweep()
        asyncio.get_running_loop().call_later(0.005, self._sweep)

    def _send(self, frame: bytes) -> None:
        self.wire.send(frame, time.monotonic())
        self._poller.reschedule()

    def _work(self, now: float) -> None:
        for frame in self.wire.receive(now):
            self.device.inject(frame)
        self.wire.work(now)


@contextlib.contextmanager
def other_kernel(tap: str, number: int, prepare: Callable[[], Callable[[], None]]) -> Iterator[TapWire]:
    """A second network namespace with a TAP device of its own, and a process in it that runs what `prepare` returns there;
    the wire of that device. The process is killed at the end of the `with`, and the namespace with it.
    """
    ours, theirs = socket.socketpair()
    process = os.fork()
    if not process:
        try:
            ours.close()
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            wire = TapWire(tap)
            plug(tap, number)
            run = prepare()
            socket.send_fds(theirs, [tap.encode()], wire.filenos())
            wire.close()
            run()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    try:
        ours.settimeout(20)
        _, fds, _, _ = socket.recv_fds(ours, 16, 1)
        assert fds, "the other namespace could not be made"
        wire = TapWire.__new__(TapWire)
        wire._fd, wire.name, wire.refused = fds[0], tap, 0
        yield wire
        wire.close()
    finally:
        ours.close()
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


async def join_taps(one: Wire, two: Wire, to_one: Impairment, to_two: Impairment, seed: object) -> None:
    """Pass frames between two wires, spoiled by the impairments, until cancelled."""
    spoiled = Impaired(one, to_nic=to_two, from_nic=to_one, seed=seed)

    def work(now: float) -> None:
        for frame in two.receive(now):
            spoiled.send(frame, now)
        for frame in spoiled.receive(now):
            two.send(frame, now)
        spoiled.work(now)

    _Poller([spoiled, two], work)
    await asyncio.Event().wait()
