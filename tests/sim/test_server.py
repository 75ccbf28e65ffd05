"""The vfio-user server with the stand-in for a core, against a raw socket."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import select
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceltcp.abi import pci
from acceltcp.abi import vfio_user as vfio
from acceltcp.abi.vfio_user import Command, IrqSetFlag
from sim.server import Server, SocketInUseError
from tests.sim.rig import QUEUES, VERSION, Client, FakeDevice, RefusalError, Rig, plain_nic

MAGIC = int.from_bytes(b"ATCP", "little")
SCRATCH, ADDRESS, PATTERN, COMMAND, FIRST, WORST, BUSY = 0x1C, 0x40, 0x48, 0x4C, 0x50, 0x54, 0x58
IRQ, TICKS, STUCK = 0x5C, 0x60, 0x64
EVENTFD_TRIGGER = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER
NONE_TRIGGER = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("nic") / "nic.sock")
    yield rig
    rig.close()


@pytest.fixture
def client(rig: Rig) -> Iterator[Client]:
    client = Client(rig.path)
    yield client
    client.close()


def refused(number: int, function: object, *arguments: object, **keywords: object) -> None:
    with pytest.raises(RefusalError) as caught:
        function(*arguments, **keywords)  # type: ignore[operator]
    assert caught.value.errno == number, os.strerror(caught.value.errno)


def memory(size: int = 8192) -> tuple[int, mmap.mmap]:
    fd = os.memfd_create("dma")
    os.ftruncate(fd, size)
    return fd, mmap.mmap(fd, size)


def bus(client: Client, address: int, command: int, pattern: int = 0) -> int:
    """One AXI beat by the stand-in; its response."""
    client.write32(ADDRESS, address & 0xFFFF_FFFF)
    client.write32(ADDRESS + 4, address >> 32)
    client.write32(PATTERN, pattern)
    client.write32(COMMAND, 0xFFFF_0000 | command)
    deadline = time.monotonic() + 5
    while client.read32(BUSY):
        assert time.monotonic() < deadline
    return client.read32(WORST)


def signalled(fd: int, timeout: float = 2.0) -> int:
    """Interrupts on an eventfd, waiting for the first."""
    if not select.select([fd], [], [], timeout)[0]:
        return 0
    return int.from_bytes(os.read(fd, 8), "little")


# Version


def test_version_reply_is_a_subset(rig: Rig) -> None:
    client = Client(rig.path, None)
    proposal = {"max_msg_fds": 1, "pgsizes": 4096, "twin_socket": {"supported": True}, "unknown": 3}
    reply = client.request(Command.VERSION, vfio.Version(0, 9).pack() + vfio.pack_version_data(proposal))
    version = vfio.Version.unpack(reply)
    assert (version.major, version.minor) == (0, 1)
    assert reply[-1] == 0
    granted = json.loads(reply[4:-1])["capabilities"]
    assert set(granted) == {"max_msg_fds", "pgsizes"}
    assert granted["max_msg_fds"] >= 8
    refused(errno.EINVAL, client.request, Command.VERSION, VERSION)
    client.close()


def test_version_without_data_and_older_minor(rig: Rig) -> None:
    client = Client(rig.path, None)
    reply = client.request(Command.VERSION, vfio.Version(0, 0).pack())
    assert vfio.Version.unpack(reply) == vfio.Version(0, 0)
    client.close()


@pytest.mark.parametrize(
    "payload",
    [
        vfio.Version(1, 0).pack(),
        b"\0",
        vfio.Version(0, 1).pack() + b"{}",
        vfio.Version(0, 1).pack() + b"[]\0",
        vfio.Version(0, 1).pack() + b'{"capabilities": 3}\0',
        vfio.Version(0, 1).pack() + b"[" * 100_000 + b"\0",
        vfio.Version(0, 1).pack() + b"\xff\xfe\0",
    ],
    ids=["major", "short", "no NUL", "list", "no object", "deep", "no UTF-8"],
)
def test_version_that_cannot_be(rig: Rig, payload: bytes) -> None:
    client = Client(rig.path, None)
    with pytest.raises((EOFError, ConnectionResetError)):
        client.request(Command.VERSION, payload)
    client.close()
    Client(rig.path).close()


def test_nothing_before_version(rig: Rig) -> None:
    client = Client(rig.path, None)
    with pytest.raises((EOFError, ConnectionResetError)):
        client.request(Command.DEVICE_GET_INFO, vfio.DeviceInfo(16).pack())
    client.close()


# Device, regions, interrupts


def test_device_info(client: Client) -> None:
    info = vfio.DeviceInfo.unpack(client.request(Command.DEVICE_GET_INFO, vfio.DeviceInfo(100).pack()))
    assert info == vfio.DeviceInfo(16, 3, 9, 5)
    refused(errno.EINVAL, client.request, Command.DEVICE_GET_INFO, vfio.DeviceInfo(15).pack())
    refused(errno.EINVAL, client.request, Command.DEVICE_GET_INFO, b"")
    refused(errno.EINVAL, client.request, Command.DEVICE_GET_INFO, bytes(17))


def test_region_info(client: Client) -> None:
    sizes = {}
    for index in range(vfio.NUM_REGIONS):
        reply = client.request(Command.DEVICE_GET_REGION_INFO, vfio.RegionInfo(32, 0, index).pack())
        info = vfio.RegionInfo.unpack(reply)
        assert (info.argsz, info.index, info.cap_offset, info.offset) == (32, index, 0, 0)
        assert info.flags == (3 if info.size else 0)
        sizes[index] = info.size
    assert {index: size for index, size in sizes.items() if size} == {0: 65536, 2: 4096, 7: 4096}
    for bad in (vfio.RegionInfo(32, 0, 9), vfio.RegionInfo(31, 0, 0)):
        refused(errno.EINVAL, client.request, Command.DEVICE_GET_REGION_INFO, bad.pack())


def test_region_io_fds_are_none(client: Client) -> None:
    reply = client.request(Command.DEVICE_GET_REGION_IO_FDS, vfio.RegionIoFds(16, 0, 0).pack())
    assert vfio.RegionIoFds.unpack(reply) == vfio.RegionIoFds(16, 0, 0, 0)


def test_irq_info(client: Client) -> None:
    for index in range(vfio.NUM_IRQS):
        reply = client.request(Command.DEVICE_GET_IRQ_INFO, vfio.IrqInfo(16, 0, index).pack())
        count = QUEUES if index == 2 else 0
        assert vfio.IrqInfo.unpack(reply) == vfio.IrqInfo(16, 3 if count else 0, index, count)
    refused(errno.EINVAL, client.request, Command.DEVICE_GET_IRQ_INFO, vfio.IrqInfo(16, 0, 5).pack())


@pytest.mark.parametrize("command", [0, 11, 12, 14, 17, 18, 19, 65535])
def test_unknown_commands(client: Client, command: int) -> None:
    refused(errno.EOPNOTSUPP, client.request, command, bytes(16))


def test_no_migration(client: Client) -> None:
    refused(errno.ENOTTY, client.request, Command.DEVICE_FEATURE, vfio.FeatureRequest(8, 0x1_0001).pack())


# Registers


def test_registers(client: Client) -> None:
    assert client.read32(0) == MAGIC
    client.write32(SCRATCH, 0x11223344)
    assert client.read32(SCRATCH) == 0x11223344
    assert client.read(0, SCRATCH, 8) == bytes.fromhex("4433221100000000")
    assert client.read(0, SCRATCH + 1, 2) == bytes.fromhex("3322")
    client.write(0, SCRATCH + 2, b"\xaa")
    assert client.read32(SCRATCH) == 0x11AA3344
    client.write(0, ADDRESS - 4, struct.pack("<IQ", 0, 5 << 32 | 7))
    assert client.read(0, 0xFFFC, 4) == bytes(4)
    assert len(client.read(0, 61440, 4096)) == 4096


def test_access_outside(client: Client) -> None:
    for region, offset, count in (
        (0, 65536, 4),
        (0, 65532, 8),
        (0, (1 << 64) - 4, 4),
        (0, 0, 0),
        (0, 0, 4097),
        (0, 0, 65537),
        (0, 0, 0xFFFF_FFFF),
        (1, 0, 4),
        (2, 4096, 1),
        (6, 0, 4),
        (7, 4095, 2),
        (8, 0, 4),
        (9, 0, 4),
    ):
        refused(errno.EINVAL, client.read, region, offset, count)
    refused(errno.EINVAL, client.write, 0, 65534, bytes(4))
    access = vfio.RegionAccess(0, 0, 5).pack()
    refused(errno.EINVAL, client.request, Command.REGION_WRITE, access + bytes(4))
    refused(errno.EINVAL, client.request, Command.REGION_WRITE, access[:-1])
    refused(errno.EINVAL, client.request, Command.REGION_READ, access + b"x")


def test_posted_writes_come_before_a_later_read(client: Client) -> None:
    for value in range(300):
        payload = vfio.RegionAccess(SCRATCH, 0, 4).pack() + struct.pack("<I", value)
        client.post(Command.REGION_WRITE, payload, no_reply=True)
    assert client.read32(SCRATCH) == 299


def test_errors_of_posted_commands_are_silent(client: Client) -> None:
    client.post(Command.REGION_WRITE, b"nonsense", no_reply=True)
    assert client.read32(0) == MAGIC


def test_write_multi(client: Client) -> None:
    entries = [
        vfio.RegionWriteMultiEntry(SCRATCH, 0, 4, struct.pack("<Q", 0x55)).pack(),
        vfio.RegionWriteMultiEntry(SCRATCH, 0, 1, struct.pack("<Q", 0xFF66)).pack(),
    ]
    payload = vfio.RegionWriteMulti(2).pack() + b"".join(entries)
    assert client.request(Command.REGION_WRITE_MULTI, payload) == vfio.RegionWriteMulti(2).pack()
    assert client.read32(SCRATCH) == 0x66
    for bad in (payload[:-1], payload[:7], vfio.RegionWriteMulti(1 << 63).pack() + b"".join(entries)):
        refused(errno.EINVAL, client.request, Command.REGION_WRITE_MULTI, bad)
    long = vfio.RegionWriteMultiEntry(SCRATCH, 0, 9, bytes(8)).pack()
    refused(errno.EINVAL, client.request, Command.REGION_WRITE_MULTI, vfio.RegionWriteMulti(1).pack() + long)


# Configuration space


def test_identity(client: Client) -> None:
    header = client.read(7, 0, 64)
    vendor, device, command, status, revision, low, middle, high = struct.unpack_from("<HHHHBBBB", header)
    assert (vendor, device) == (pci.VENDOR_ID, pci.DEVICE_ID)
    assert (command, status & 0x10) == (2, 0x10)
    assert (revision, high << 16 | middle << 8 | low) == (pci.REVISION_ID, pci.CLASS_CODE)
    capabilities, at = {}, header[0x34]
    while at:
        kind, following = client.read(7, at, 2)
        capabilities[kind] = at
        at = following
    assert set(capabilities) == {0x01, 0x10, 0x11}
    control, table, pba = struct.unpack("<HII", client.read(7, capabilities[0x11] + 2, 10))
    assert control == QUEUES - 1
    assert (table & 7, table & ~7) == (pci.BAR_MSIX, pci.MSIX_TABLE_OFFSET)
    assert (pba & 7, pba & ~7) == (pci.BAR_MSIX, pci.MSIX_PBA_OFFSET)


@pytest.mark.parametrize(("bar", "size"), list(pci.BARS.items()))
def test_bar_sizing(client: Client, bar: int, size: int) -> None:
    at = 0x10 + 4 * bar
    client.write(7, at, b"\xff" * 8)
    assert struct.unpack("<Q", client.read(7, at, 8))[0] == (1 << 64) - size | 4
    client.write(7, at, struct.pack("<Q", 0x12_3450_0000))
    assert struct.unpack("<Q", client.read(7, at, 8))[0] == 0x12_3450_0004


def test_identity_cannot_be_written(client: Client) -> None:
    before = client.read(7, 0, 4)
    client.write(7, 0, bytes(4))
    client.write(7, 0x100, b"\xff" * 100)
    assert client.read(7, 0, 4) == before
    assert client.read(7, 0x100, 100) == bytes(100)


def test_reset(client: Client) -> None:
    client.write32(SCRATCH, 5)
    client.bus_master()
    client.request(Command.DEVICE_RESET)
    assert client.read32(SCRATCH) == 0
    assert client.read(7, 4, 2) == b"\6\0"
    refused(errno.EINVAL, client.request, Command.DEVICE_RESET, b"x")


def test_function_level_reset(client: Client) -> None:
    client.write32(SCRATCH, 5)
    client.write(7, 0x60 + 8, struct.pack("<H", 0x8000))
    assert client.read32(SCRATCH) == 0
    assert client.read(7, 0x60 + 8, 2) == bytes(2)


# Memory


def test_dma(client: Client) -> None:
    fd, map_ = memory(3 * 4096)
    client.bus_master()
    client.map(0x1_0000_0000, 8192, fd, offset=4096)
    os.close(fd)
    assert bus(client, 0x1_0000_1000, 2, 0x61616161) == 0
    assert map_[8192 : 8192 + 64] == b"a" * 64
    map_[4096:4100] = b"wxyz"
    assert bus(client, 0x1_0000_0000, 1) == 0
    assert client.read(0, FIRST, 4) == b"wxyz"
    assert bus(client, 0x1_0000_2000, 1) == 3
    client.bus_master(False)
    assert bus(client, 0x1_0000_0000, 1) == 3
    client.bus_master()
    client.unmap(0x1_0000_0000, 8192)
    assert bus(client, 0x1_0000_0000, 1) == 3


def test_dma_directions(client: Client) -> None:
    fd, map_ = memory()
    client.bus_master()
    client.map(0, 4096, fd, flags=1)
    client.map(0x1000, 4096, fd, flags=2, offset=4096)
    os.close(fd)
    assert [bus(client, 0, 1), bus(client, 0, 2), bus(client, 0x1000, 1), bus(client, 0x1000, 2, 7)] == [
        0,
        2,
        2,
        0,
    ]
    assert map_[:4096] == bytes(4096)
    assert map_[4096] == 7


def test_dma_map_refused(client: Client) -> None:
    fd, _ = memory()
    client.map(0x10000, 8192, fd)
    for address, size in ((0x10000, 8192), (0x11000, 4096), (0xF000, 8192)):
        refused(errno.EEXIST, client.map, address, size, fd)
    for keywords in (
        {"address": 0x20001, "size": 4096},
        {"address": 0x20000, "size": 4097},
        {"address": 0x20000, "size": 0},
        {"address": 0x20000, "size": 4096, "offset": 1},
        {"address": 0x20000, "size": 4096, "offset": 8192},
        {"address": 0x20000, "size": 12288},
        {"address": 0x20000, "size": 4096, "offset": 1 << 63},
        {"address": (1 << 64) - 4096, "size": 8192},
        {"address": 0x20000, "size": 4096, "flags": 0},
        {"address": 0x20000, "size": 4096, "flags": 4},
        {"address": 0x20000, "size": 4096, "argsz": 31},
    ):
        refused(errno.EINVAL, client.map, fd=fd, **keywords)
    request = vfio.DmaMap(32, 3, 0, 0x20000, 4096).pack()
    refused(errno.EINVAL, client.request, Command.DMA_MAP, request, [fd, fd])
    refused(errno.EINVAL, client.request, Command.DMA_MAP, request[:-1], [fd])
    read_end, write_end = os.pipe()
    refused(errno.EINVAL, client.map, 0x20000, 4096, read_end)
    for each in (read_end, write_end, fd):
        os.close(each)


def test_dma_map_of_a_read_only_file(client: Client) -> None:
    fd, _ = memory()
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    refused(errno.EACCES, client.map, 0, 4096, read_only)
    client.map(0, 4096, read_only, flags=1)
    os.close(read_only)
    os.close(fd)


def test_dma_unmap_refused(client: Client) -> None:
    fd, _ = memory()
    client.map(0x10000, 8192, fd)
    for address, size in ((0x10000, 4096), (0x11000, 4096), (0xF000, 8192), (0, 0), ((1 << 64) - 4096, 8192)):
        refused(errno.EINVAL, client.unmap, address, size)
    refused(errno.EINVAL, client.unmap, 0x10000, 8192, 1)
    refused(errno.EINVAL, client.unmap, 0x10000, 8192, 2)
    client.map(0x20000, 4096, fd)
    client.map(0x21000, 4096, fd)
    assert client.unmap(0, 8192) == 0
    assert client.unmap(0x1F000, 0x4000) == 8192
    assert client.unmap(0, 0, 2) == 0
    client.map(0x10000, 8192, fd)
    os.close(fd)


def test_mapping_without_memory(client: Client) -> None:
    client.bus_master()
    client.map(0x30000, 4096, None)
    assert bus(client, 0x30000, 1) == 3
    client.unmap(0x30000, 4096)


def test_client_truncates_its_memory(client: Client, rig: Rig) -> None:
    fd, _ = memory()
    client.bus_master()
    client.map(0, 8192, fd)
    os.ftruncate(fd, 0)
    os.close(fd)
    assert bus(client, 0, 1) == 3
    assert bus(client, 4096, 2) == 3


# Interrupts


def test_interrupts(client: Client) -> None:
    fds = [os.eventfd(0) for _ in range(QUEUES)]
    client.bus_master()
    client.set_irqs(EVENTFD_TRIGGER, 0, QUEUES, fds=fds)
    for vector in (2, 0, 2, 3):
        client.write32(IRQ, vector)
        assert signalled(fds[vector]) == 1
    client.set_irqs(EVENTFD_TRIGGER, 2, 1)
    client.write32(IRQ, 2)
    client.write32(IRQ, 3)
    assert signalled(fds[3]) == 1
    assert signalled(fds[2], 0) == 0
    client.set_irqs(NONE_TRIGGER, 3, 1)
    assert signalled(fds[3]) == 1
    client.set_irqs(IrqSetFlag.DATA_BOOL | IrqSetFlag.ACTION_TRIGGER, 0, 4, data=b"\1\0\0\1")
    assert [signalled(fds[0]), signalled(fds[1], 0), signalled(fds[3])] == [1, 0, 1]
    client.set_irqs(NONE_TRIGGER, 0, 0)
    client.write32(IRQ, 0)
    assert client.read32(0) == MAGIC
    assert signalled(fds[0], 0.05) == 0
    client.write32(IRQ, 60)  # a vector that is not there
    assert client.read32(0) == MAGIC
    for fd in fds:
        os.close(fd)


def test_no_interrupts_without_bus_master(client: Client) -> None:
    fd = os.eventfd(0)
    client.set_irqs(EVENTFD_TRIGGER, 0, 1, fds=[fd])
    client.write32(IRQ, 0)
    assert client.read32(0) == MAGIC
    assert signalled(fd, 0.05) == 0
    os.close(fd)


def pending(client: Client) -> int:
    return int.from_bytes(client.read(2, pci.MSIX_PBA_OFFSET, 8), "little")


@pytest.mark.parametrize("how", ["set_irqs", "table", "function"])
def test_masked_interrupts_stay_pending(client: Client, how: str) -> None:
    def mask(on: bool) -> None:
        if how == "set_irqs":
            action = IrqSetFlag.ACTION_MASK if on else IrqSetFlag.ACTION_UNMASK
            client.set_irqs(IrqSetFlag.DATA_NONE | action, 1, 1)
        elif how == "table":
            client.write(2, 16 + 12, struct.pack("<I", int(on)))
        else:
            client.write(7, 0x52, struct.pack("<H", 0xC000 if on else 0x8000))

    fd = os.eventfd(0)
    client.bus_master()
    client.set_irqs(EVENTFD_TRIGGER, 1, 1, fds=[fd])
    mask(True)
    for _ in range(3):
        client.write32(IRQ, 1)
    assert client.read32(0) == MAGIC
    time.sleep(0.05)
    assert pending(client) == 2
    assert signalled(fd, 0) == 0
    mask(False)
    assert signalled(fd) == 1
    assert pending(client) == 0
    client.write32(IRQ, 1)
    assert signalled(fd) == 1
    os.close(fd)


def test_msix_table(client: Client) -> None:
    assert client.read(2, 0, 16) == bytes(12) + b"\1\0\0\0"
    client.write(2, 16, struct.pack("<IIII", 0xFEE0_0003, 1, 0x1234, 0xFFFF_FFFE))
    assert client.read(2, 16, 16) == struct.pack("<IIII", 0xFEE0_0000, 1, 0x1234, 0)
    client.write(2, pci.MSIX_PBA_OFFSET, b"\xff" * 8)
    client.write(2, 16 * QUEUES, b"\xff" * 16)
    assert client.read(2, pci.MSIX_PBA_OFFSET, 8) == bytes(8)
    assert client.read(2, 16 * QUEUES, 16) == bytes(16)


def test_set_irqs_refused(client: Client) -> None:
    fd = os.eventfd(0)
    file, _ = memory()
    bool_mask = IrqSetFlag.DATA_BOOL | IrqSetFlag.ACTION_MASK
    for flags, start, count, keywords in (
        (0, 0, 1, {}),
        (3 | 32, 0, 1, {}),
        (1 | 8 | 16, 0, 1, {}),
        (1 | 64 | 32, 0, 1, {}),
        (NONE_TRIGGER, 0, QUEUES + 1, {}),
        (NONE_TRIGGER, QUEUES, 1, {}),
        (NONE_TRIGGER, 0xFFFF_FFFF, 2, {}),
        (NONE_TRIGGER, 1, 0, {}),
        (NONE_TRIGGER, 0, 1, {"index": 0}),
        (NONE_TRIGGER, 0, 1, {"index": 5}),
        (NONE_TRIGGER, 0, 1, {"fds": [fd]}),
        (NONE_TRIGGER, 0, 1, {"data": b"x"}),
        (bool_mask, 0, 2, {"data": b"\1"}),
        (EVENTFD_TRIGGER, 0, 2, {"fds": [fd]}),
        (EVENTFD_TRIGGER, 0, 0, {}),
        (EVENTFD_TRIGGER, 0, 1, {"fds": [file]}),
        (IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_MASK, 0, 1, {"fds": [fd]}),
    ):
        refused(errno.EINVAL, client.set_irqs, flags, start, count, **keywords)
    refused(errno.EINVAL, client.request, Command.DEVICE_SET_IRQS, bytes(19))
    wrong = vfio.IrqSet(21, NONE_TRIGGER, 2, 0, 1).pack()
    refused(errno.EINVAL, client.request, Command.DEVICE_SET_IRQS, wrong)
    refused(errno.EINVAL, client.request, Command.DEVICE_GET_INFO, vfio.DeviceInfo(16).pack(), [fd])
    os.close(fd)
    os.close(file)


def test_full_eventfd_does_not_block(client: Client) -> None:
    fd = os.eventfd(0)
    os.write(fd, struct.pack("<Q", (1 << 64) - 2))
    client.bus_master()
    client.set_irqs(EVENTFD_TRIGGER, 0, 1, fds=[fd])
    client.write32(IRQ, 0)
    assert client.read32(0) == MAGIC
    os.close(fd)


# Clients


def test_pipelined_commands_with_descriptors(client: Client) -> None:
    """Descriptors belong to their own message even when everything comes at once."""
    fd, map_ = memory()
    client.bus_master()
    client.post(Command.DEVICE_GET_INFO, vfio.DeviceInfo(16).pack())
    client.post(Command.DMA_MAP, vfio.DmaMap(32, 3, 0, 0x5000, 4096).pack(), [fd])
    client.post(Command.DMA_MAP, vfio.DmaMap(32, 3, 0, 0x6000, 4096).pack())
    client.post(Command.DEVICE_GET_INFO, vfio.DeviceInfo(16).pack())
    for _ in range(4):
        assert client.reply()[0].flags == 1
    assert bus(client, 0x5000, 2, 9) == 0
    assert bus(client, 0x6000, 2, 9) == 3
    assert map_[0] == 9
    os.close(fd)


def test_message_in_small_pieces(client: Client) -> None:
    message = vfio.command_message(9, Command.REGION_READ, vfio.RegionAccess(0, 0, 4).pack())
    for byte in message:
        client.send_raw(bytes([byte]))
    assert client.reply()[1][-4:] == b"ATCP"


def test_second_client_is_refused(rig: Rig, client: Client) -> None:
    assert client.read32(0) == MAGIC
    with pytest.raises((EOFError, ConnectionError)):
        Client(rig.path)
    assert client.read32(0) == MAGIC


def test_next_client_finds_everything_reset(rig: Rig) -> None:
    first = Client(rig.path)
    fd, _ = memory()
    eventfd = os.eventfd(0)
    first.bus_master()
    first.map(0, 4096, fd)
    first.set_irqs(EVENTFD_TRIGGER, 0, 1, fds=[eventfd])
    first.write32(SCRATCH, 5)
    first.write32(STUCK, 1)
    before = len(os.listdir("/proc/self/fd"))
    first.close()
    second = Client(rig.path)
    assert second.read32(SCRATCH) == 0
    assert second.read(7, 4, 2) == b"\2\0"
    second.bus_master()
    assert bus(second, 0, 1) == 3
    second.write32(IRQ, 0)
    assert second.read32(0) == MAGIC
    assert signalled(eventfd, 0.05) == 0
    assert len(os.listdir("/proc/self/fd")) < before
    second.close()
    os.close(fd)
    os.close(eventfd)


def test_many_clients_one_after_the_other(rig: Rig) -> None:
    for _ in range(30):
        client = Client(rig.path)
        assert client.read32(0) == MAGIC
        client.close()


def test_garbage_ends_only_its_connection(rig: Rig) -> None:
    rng = random.Random(5)
    for _ in range(100):
        client = Client(rig.path, VERSION if rng.random() < 0.5 else None)
        try:
            client.send_raw(rng.randbytes(rng.randrange(1, 200)))
            if rng.random() < 0.5:
                client.socket.shutdown(socket.SHUT_WR)
                while client.socket.recv(4096):
                    pass
        except OSError:
            pass
        client.close()
    client = Client(rig.path)
    assert client.read32(0) == MAGIC
    client.close()


def test_client_that_reads_nothing_is_held_up(rig: Rig) -> None:
    client = Client(rig.path)
    client.socket.setblocking(False)
    request = vfio.command_message(1, Command.REGION_READ, vfio.RegionAccess(0, 7, 4096).pack())
    sent = 0
    deadline = time.monotonic() + 3
    with pytest.raises(BlockingIOError):
        while time.monotonic() < deadline:
            for _ in range(100_000):
                client.socket.sendall(request)
                sent += 1
    client.close()
    other = Client(rig.path)
    assert other.read32(0) == MAGIC
    other.close()


def test_stale_socket_is_replaced_and_a_live_one_not(tmp_path: Path) -> None:
    path = tmp_path / "nic.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    server = plain_nic(path, FakeDevice())
    with pytest.raises(SocketInUseError, match="another process serves"):
        plain_nic(path, FakeDevice())
    assert stat.S_ISSOCK(path.stat().st_mode)
    server.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(SocketInUseError, match="no socket"):
        plain_nic(path, FakeDevice())
    assert path.read_text() == "precious"
    with pytest.raises(OSError, match="cannot serve"):
        plain_nic(tmp_path / "absent" / "nic.sock", FakeDevice())


def test_close_leaves_a_successor_alone(tmp_path: Path) -> None:
    path = tmp_path / "nic.sock"
    first = plain_nic(path, FakeDevice())
    path.unlink()
    second = plain_nic(path, FakeDevice())
    first.close()
    assert path.exists()
    second.close()
    assert isinstance(second, Server)


# Wire and time


def test_frames_loop_through_the_core(rig: Rig, client: Client) -> None:
    assert rig.far
    frames = [bytes([i]) * (60 + i) for i in range(50)]
    for frame in frames:
        rig.far.send(frame, 0)
    got: list[bytes] = []
    deadline = time.monotonic() + 5
    while len(got) < len(frames) and time.monotonic() < deadline:
        got += rig.far.receive(0)
        time.sleep(0.005)
    assert got == frames


def test_ticks_follow_the_clock(client: Client) -> None:
    """To a millisecond in half a second. A thread that has to wait for a processor reads late, or reads what was ticked
    long before: both make time run ahead of ticks, never behind, so the least difference of many is the true one."""

    def ahead() -> float:
        differences = []
        for _ in range(50):
            ticks = client.read32(TICKS)
            differences.append(time.monotonic() - ticks * 100e-6)
            time.sleep(0.002)
        return min(differences)

    before = ahead()
    time.sleep(0.5)
    assert abs(ahead() - before) < 1e-3


def test_idle_takes_little_time(rig: Rig, client: Client) -> None:
    assert client.read32(0) == MAGIC
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.25
