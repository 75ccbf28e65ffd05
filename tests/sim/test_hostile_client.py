"""Clients that mean harm to the server, each in its own way. The fuzzer (test_fuzz.py) does so by chance."""

from __future__ import annotations

import array
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceltcp.abi import vfio_user as vfio
from acceltcp.abi.vfio_user import CHANNELS, Command
from sim import server as sim_server
from sim.fuzz.process import quiet_descriptors
from sim.protocol import FDS_MAX
from sim.server import DMA_BYTES_MAX, POSTED_WRITES_MAX, PciDevice, Server
from tests.sim.rig import QUEUES, VERSION, FakeDevice


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Stage:
    """A server on a fake core, turned by hand, and a client on it."""

    def __init__(self, path: Path, device: FakeDevice, version: bytes = VERSION) -> None:
        self.device = device
        self.pci = PciDevice(device, QUEUES)
        self.server = Server(path, self.pci)
        self.before = quiet_descriptors(os.getpid(), 0.02)
        self.link = self.join()
        if version:
            self.send(vfio.command_message(1, Command.VERSION, version))
            assert self.answer()

    def join(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.connect(self.server.path)
        link.setblocking(False)
        return link

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        self.link.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])

    def turn(self) -> None:
        for _ in range(5):
            self.server.handle()

    def answer(self) -> bytes:
        """What comes back; b"" for the end of the connection."""
        self.turn()
        try:
            return self.link.recv(1 << 20)
        except ConnectionResetError:
            return b""

    def error(self) -> int:
        """Errno of the one reply that comes."""
        data = self.answer()
        header = vfio.Header.unpack(data)
        assert header.size == len(data)
        return header.error

    def close(self) -> None:
        self.link.close()
        self.turn()
        assert descriptors() == self.before
        assert self.device.mappings == 0
        self.server.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "nic.sock", FakeDevice())
    yield made
    made.close()


def test_the_end_may_come_at_every_byte(tmp_path: Path) -> None:
    """Whatever has come by then is undone, and the next client finds everything as new."""
    memory, eventfd = os.memfd_create("x"), os.eventfd(0)
    os.ftruncate(memory, 8192)
    commands = [
        (vfio.command_message(1, Command.VERSION, VERSION), []),
        (vfio.command_message(2, Command.DMA_MAP, vfio.DmaMap(32, 3, 0, 0, 8192).pack()), [memory]),
        (vfio.command_message(3, Command.DEVICE_SET_IRQS, vfio.IrqSet(20, 4 | 32, 2, 1, 1).pack()), [eventfd]),
        (vfio.command_message(4, Command.REGION_WRITE, vfio.RegionAccess(0, 0, 4).pack() + bytes(4)), []),
    ]
    device = FakeDevice()
    server = Server(tmp_path / "nic.sock", PciDevice(device, QUEUES))
    before = quiet_descriptors(os.getpid(), 0.02)
    for end in range(sum(len(data) for data, _ in commands) + 1):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(server.path)
            left = end
            for data, fds in commands:
                if left:
                    socket.send_fds(link, [data[:left]], fds)
                left -= min(left, len(data))
            for _ in range(3):
                server.handle()
            assert server.connected
        server.handle()
        assert not server.connected
        assert device.mappings == 0
        assert descriptors() == before
    server.close()
    os.close(memory)
    os.close(eventfd)


@pytest.mark.parametrize("command", [Command.DEVICE_RESET, Command.DEVICE_GET_INFO])
@pytest.mark.parametrize("more", [1, 100])
def test_too_many_descriptors_are_closed(stage: Stage, command: int, more: int) -> None:
    """Also when the bytes that they come with are a whole command."""
    fds = [os.eventfd(0) for _ in range(FDS_MAX + more)]
    stage.send(vfio.command_message(2, command), fds)
    for fd in fds:
        os.close(fd)
    assert stage.answer() == b""
    assert descriptors() == stage.before + 1  # our own end


def test_as_many_as_are_allowed_are_closed_too(stage: Stage) -> None:
    fds = [os.eventfd(0) for _ in range(FDS_MAX)]
    stage.send(vfio.command_message(2, Command.DEVICE_RESET), fds)
    for fd in fds:
        os.close(fd)
    assert stage.error() == errno.EINVAL
    assert descriptors() == stage.before + 2


def test_channels_take_no_descriptors(tmp_path: Path) -> None:
    sharing = vfio.Version(0, 1).pack() + vfio.pack_version_data({CHANNELS: True})
    stage = Stage(tmp_path / "nic.sock", FakeDevice(), sharing)
    size = vfio.RegionIoFds.byte_size + vfio.SubRegion.byte_size
    stage.send(vfio.command_message(2, Command.DEVICE_GET_REGION_IO_FDS, vfio.RegionIoFds(size, 0, 0).pack()))
    stage.turn()
    _, (channel,), _, _ = socket.recv_fds(stage.link, 1000, 1)
    with socket.socket(fileno=channel) as link:
        held = descriptors()
        socket.send_fds(link, [bytes(3)], [0] * FDS_MAX)  # the beginning of a command, to be kept until its end
        stage.turn()
        assert stage.server.channels == 0
        assert descriptors() == held - 1
    stage.close()


def test_files_larger_than_memory_leave_room_for_the_server(stage: Stage) -> None:
    fd = os.memfd_create("huge")
    os.ftruncate(fd, DMA_BYTES_MAX * 4)
    sizes = [DMA_BYTES_MAX // 2, DMA_BYTES_MAX // 2, 4096]
    address, errors = 0, []
    for size in sizes:
        stage.send(vfio.command_message(2, Command.DMA_MAP, vfio.DmaMap(32, 3, 0, address, size).pack()), [fd])
        errors.append(stage.error())
        address += size
    assert errors == [0, 0, errno.ENOMEM]
    stage.send(vfio.command_message(2, Command.DMA_UNMAP, vfio.DmaUnmap(24, 0, 0, sizes[0]).pack()))
    assert stage.error() == 0
    stage.send(vfio.command_message(2, Command.DMA_MAP, vfio.DmaMap(32, 3, 0, 0, 4096).pack()), [fd])
    assert stage.error() == 0
    stage.send(vfio.command_message(2, Command.DMA_MAP, vfio.DmaMap(32, 3, 0, 1 << 60, DMA_BYTES_MAX).pack()))
    assert stage.error() == 0  # without memory nothing is mapped
    os.close(fd)


class SlowDevice(FakeDevice):
    """A core that does nothing until it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = self.most = 0

    def write(self, address: int, value: int, strobe: int = 15) -> None:
        super().write(address, value, strobe)
        self.waiting += 1
        self.most = max(self.most, self.waiting)

    def read(self, address: int) -> int:
        self.waiting = 0
        return super().read(address)


def test_posted_writes_do_not_pile_up(tmp_path: Path) -> None:
    device = SlowDevice()
    stage = Stage(tmp_path / "nic.sock", device)
    for at in range(0, 65536, 4096):
        access = vfio.RegionAccess(at, 0, 4096).pack()
        stage.send(vfio.command_message(2, Command.REGION_WRITE, access + bytes(range(256)) * 16, no_reply=True))
    deadline = time.monotonic() + 20
    while len(device.registers) < 16384 and time.monotonic() < deadline:
        stage.turn()
    assert device.most == POSTED_WRITES_MAX
    assert device.registers == {at: int.from_bytes(bytes(b % 256 for b in range(at, at + 4)), "little") for at in range(0, 65536, 4)}
    stage.close()


def test_long_accesses_give_others_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_server, "TURN_SECONDS", 0.0)
    stage = Stage(tmp_path / "nic.sock", FakeDevice())
    for _ in range(20):
        stage.send(vfio.command_message(2, Command.DEVICE_RESET))
    resets = stage.device.resets
    for _ in range(5):
        stage.server.handle()
    assert stage.device.resets - resets == 5
    stage.close()


def test_who_says_nothing_does_not_keep_others_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_server, "HANDSHAKE_SECONDS", 0.02)
    stage = Stage(tmp_path / "nic.sock", FakeDevice(), b"")
    stage.send(b"\1")
    stage.turn()
    time.sleep(0.03)
    assert stage.answer() == b""
    stage.link.close()
    stage.link = stage.join()
    stage.send(vfio.command_message(1, Command.VERSION, VERSION))
    assert stage.answer()
    time.sleep(0.03)
    stage.send(vfio.command_message(2, Command.DEVICE_RESET))
    assert stage.error() == 0
    stage.close()


def test_a_stuck_owner_of_the_socket_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "nic.sock"
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(path))
        owner.listen(0)
        crowd = []
        for _ in range(3):
            link = socket.socket(socket.AF_UNIX)
            link.setblocking(False)
            crowd.append(link)
            link.connect_ex(str(path))
        with pytest.raises(sim_server.SocketInUseError):
            Server(path, PciDevice(FakeDevice(), QUEUES))
        for link in crowd:
            link.close()
