"""Channels: sockets for registers, by which several processes share one device."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceltcp.abi import vfio_user as vfio
from acceltcp.abi.pci import BAR_REGISTERS_BYTES
from acceltcp.abi.vfio_user import CHANNELS, Command, SubRegion, SubRegionType
from acceltcp.host.errors import DeviceError, DeviceLostError
from acceltcp.host.vfio_user import VfioUserTransport
from sim.server import CHANNELS_MAX
from tests.sim.rig import Client, FakeDevice, RefusalError, Rig, plain_nic

SHARING = vfio.Version(0, 1).pack() + vfio.pack_version_data({"max_msg_fds": 8, CHANNELS: True})
FULL = vfio.RegionIoFds.byte_size + SubRegion.byte_size


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "nic.sock")
    yield made
    made.close()


@pytest.fixture
def client(rig: Rig) -> Iterator[Client]:
    made = Client(rig.path, SHARING)
    yield made
    made.close()


def channel(client: Client) -> Client:
    """A client's channel, as a client that has nothing to negotiate."""
    msg_id = client.post(Command.DEVICE_GET_REGION_IO_FDS, vfio.RegionIoFds(FULL, 0, 0).pack())
    data, fds, _, _ = socket.recv_fds(client.socket, vfio.HEADER_BYTES + FULL, 4)
    header = vfio.Header.unpack(data)
    if header.flags & vfio.HeaderFlag.ERROR:
        raise RefusalError(header.error)
    assert header.msg_id == msg_id
    assert vfio.RegionIoFds.unpack(data, vfio.HEADER_BYTES) == vfio.RegionIoFds(FULL, 0, 0, 1)
    part = SubRegion.unpack(data, vfio.HEADER_BYTES + vfio.RegionIoFds.byte_size)
    assert part == SubRegion(0, BAR_REGISTERS_BYTES, 0, SubRegionType.CHANNEL)
    made = Client.__new__(Client)
    made.socket = socket.socket(fileno=fds[0])
    made.socket.settimeout(10)
    made.next_id = 0
    return made


def scratch(client: Client) -> int:
    return client.read32(0x1C)


def test_registers(client: Client) -> None:
    first, second = channel(client), channel(client)
    for number, each in enumerate((first, second, client, first)):
        each.write32(0x1C, number + 77)
        assert [scratch(any_) for any_ in (client, first, second)] == [number + 77] * 3
    first.close()
    second.write32(0x1C, 5)
    assert scratch(client) == 5
    second.close()


def test_only_registers(client: Client) -> None:
    link = channel(client)
    for region in (2, 7, 9):
        with pytest.raises(RefusalError) as caught:
            link.read(region, 0, 4)
        assert caught.value.errno == errno.EACCES
    with pytest.raises(RefusalError) as caught:
        link.read(0, BAR_REGISTERS_BYTES, 4)
    assert caught.value.errno == errno.EINVAL
    assert scratch(link) == 0


@pytest.mark.parametrize("command", [Command.VERSION, Command.DEVICE_RESET, Command.DMA_MAP, Command.REGION_WRITE_MULTI, 99])
def test_anything_else_ends_the_channel_alone(client: Client, command: int) -> None:
    link, other = channel(client), channel(client)
    link.post(command, bytes(32))
    assert link.socket.recv(1) == b""
    client.write32(0x1C, 9)
    assert scratch(other) == scratch(client) == 9


def test_descriptors_end_the_channel_alone(client: Client) -> None:
    link, other = channel(client), channel(client)
    memory = os.memfd_create("x")
    before = len(os.listdir("/proc/self/fd"))
    link.post(Command.REGION_READ, vfio.RegionAccess(0, 0, 4).pack(), [memory])
    with contextlib.suppress(ConnectionResetError):
        assert link.socket.recv(1) == b""
    assert scratch(other) == scratch(client) == 0
    assert len(os.listdir("/proc/self/fd")) < before
    os.close(memory)


def test_rubbish_ends_the_channel_alone(client: Client) -> None:
    link = channel(client)
    link.send_raw(bytes(16))
    assert link.socket.recv(1) == b""
    assert scratch(client) == 0


def test_channels_end_with_the_client(rig: Rig, client: Client) -> None:
    link = channel(client)
    assert scratch(link) == 0
    client.close()
    assert link.socket.recv(1) == b""
    second = Client(rig.path, SHARING)
    assert scratch(channel(second)) == 0
    second.close()


def test_nobody_else_gets_in(rig: Rig, client: Client) -> None:
    link = channel(client)
    with pytest.raises((EOFError, ConnectionError)):
        Client(rig.path, SHARING)
    assert scratch(link) == scratch(client) == 0


def test_there_are_so_many(client: Client) -> None:
    links = [channel(client) for _ in range(CHANNELS_MAX)]
    with pytest.raises(RefusalError) as caught:
        channel(client)
    assert caught.value.errno == errno.ENOSPC
    links.pop().close()
    deadline = time.monotonic() + 5
    while True:
        assert time.monotonic() < deadline
        try:
            links.append(channel(client))
            break
        except RefusalError:
            time.sleep(0.01)
    for link in links:
        link.close()


def test_who_asks_for_less_gets_none(rig: Rig, client: Client) -> None:
    reply = client.request(Command.DEVICE_GET_REGION_IO_FDS, vfio.RegionIoFds(16, 0, 0).pack())
    assert vfio.RegionIoFds.unpack(reply) == vfio.RegionIoFds(FULL, 0, 0, 0)
    reply = client.request(Command.DEVICE_GET_REGION_IO_FDS, vfio.RegionIoFds(FULL, 0, 2).pack())
    assert vfio.RegionIoFds.unpack(reply) == vfio.RegionIoFds(16, 0, 2, 0)
    client.close()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    server = plain_nic(tmp_path / "nic.sock", FakeDevice())
    before = count()
    link = socket.socket(socket.AF_UNIX)
    link.connect(server.path)
    request = vfio.RegionIoFds(FULL, 0, 0).pack()
    link.sendall(vfio.command_message(1, Command.VERSION, SHARING))
    for number in range(5):
        link.sendall(vfio.command_message(2 + number, Command.DEVICE_GET_REGION_IO_FDS, request, no_reply=number % 2 == 1))
    for _ in range(20):
        server.handle()
    assert server.channels == 3  # the others went unasked for, so they have ended
    link.close()
    server.handle()
    assert server.channels == 0
    assert count() == before
    server.close()


# The driver's side


def test_shared_transport_in_another_process(rig: Rig) -> None:
    """A forked process uses registers, memory and interrupts; its end is the end of nothing else."""
    owner = VfioUserTransport(rig.path)
    owner.enable_interrupts(3)
    shared = owner.share(1 << 20)
    pid = os.fork()
    if not pid:  # the other process
        status = 1
        try:
            assert shared.read32(0x1C) == 0
            for value in range(1000):
                shared.write32(0x1C, value)
            assert shared.read32(0x1C) == 999
            region = shared.map_memory(5000)
            assert region.size == 8192
            assert shared.map_memory(4096).address == region.address + 8192
            region.view[:5] = b"hello"
            assert select.select([shared.enable_interrupts(3)[2]], [], [], 5)[0]
            shared.check()
            status = 0
        finally:
            os._exit(status)
    shared.close()
    os.eventfd_write(owner.enable_interrupts(3)[2], 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert owner.read32(0x1C) == 999
    owner.check()
    assert any(bytes(view[:5]) == b"hello" for view, _ in owner._maps)
    owner.close()


def test_shared_transport_has_limits(rig: Rig) -> None:
    owner = VfioUserTransport(rig.path)
    shared = owner.share(8192)
    for act, message in (
        (shared.reset, "only who opened it can reset it"),
        (lambda: shared.share(4096), "only who opened it can share it"),
        (lambda: shared.map_memory(8193), "8192 bytes of memory"),
        (lambda: shared.enable_interrupts(1), "0 interrupts enabled, not 1"),
    ):
        with pytest.raises(DeviceError, match=message):
            act()
    owner.close()
    with pytest.raises(DeviceLostError):
        shared.read32(0)
    shared.close()


def test_many_writers(rig: Rig) -> None:
    """Posted writes of several processes at once are each taken whole."""
    owner = VfioUserTransport(rig.path)
    pids = []
    for number in range(4):
        shared = owner.share(4096)
        pid = os.fork()
        if not pid:
            for value in range(2000):
                shared.write32(0x1C, number << 24 | value)
            os._exit(int(shared.read32(0x1C) & 0xFFFFFF >= 2000))
        shared.close()
        pids.append(pid)
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert struct.pack(">I", owner.read32(0x1C))[0] in range(4)
    owner.close()
