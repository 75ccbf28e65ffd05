"""The transport against a stand-in for the kernel's ioctls; with the real ones it runs in a guest (tests/system/test_vfio.py)."""

import contextlib
import errno
import fcntl
import mmap
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acceltcp.abi import pci, vfio, vfio_user
from acceltcp.abi.vfio import Ioctl
from acceltcp.host.errors import DeviceError, DeviceLostError
from acceltcp.host.vfio import kernel
from acceltcp.host.vfio.iommu import IovaSpace
from acceltcp.host.vfio.transport import VfioTransport

from .machine import NIC, FakeMachine

CONFIG_AT = 1 << 20


class Kernel:
    """VFIO's answers. refuse: request -> errno. The device is a file: BAR 0, and configuration space after it."""

    def __init__(self, folder):
        self.refuse = {}
        self.version, self.type1, self.viable, self.mappable = vfio.API_VERSION, 1, True, True
        self.bar_bytes = pci.BAR_REGISTERS_BYTES
        self.ranges = [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1)]
        self.maps, self.eventfds, self.resets = [], {}, 0
        self.device = folder / "device"
        with self.device.open("wb") as file:
            file.truncate(CONFIG_AT + 4096)
            file.seek(CONFIG_AT)
            file.write(struct.pack("<HHH", pci.VENDOR_ID, pci.DEVICE_ID, 0))

    def put(self, at, data):
        with self.device.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def ioctl(self, fd, request, argument=0, mutate=True):
        request = Ioctl(request)
        if request in self.refuse:
            raise OSError(self.refuse[request], os.strerror(self.refuse[request]))
        answer = getattr(self, request.name.lower(), lambda *_: 0)(argument)
        return 0 if answer is None else answer

    def get_api_version(self, _):
        return self.version

    def check_extension(self, kind):
        return self.type1 if kind == vfio.TYPE1V2_IOMMU else 0

    def group_get_status(self, data):
        data[:] = vfio.GroupStatus(8, int(self.viable)).pack()

    def group_get_device_fd(self, name):
        assert bytes(name) == NIC.encode() + b"\0"
        return os.open(self.device, os.O_RDWR)

    def iommu_get_info(self, data):
        ranges = b"".join(vfio.IovaRange(*each).pack() for each in self.ranges)
        first = vfio.IommuInfo.byte_size
        second = first + 16
        whole = vfio.IommuInfo(second + 16 + len(ranges), vfio.IommuInfoFlag.CAPS, 0x1000, first).pack()
        whole += vfio.Capability(9, 1, second).pack() + bytes(8)
        whole += vfio.Capability(vfio.Capability.IOVA_RANGES, 1, 0).pack() + vfio.Type1IovaRanges(len(self.ranges), 0).pack() + ranges
        data[:] = whole[: len(data)]

    def iommu_map_dma(self, data):
        self.maps.append(vfio.Type1Map.unpack(data))

    def ioas_alloc(self, data):
        data[:] = vfio.IoasAlloc(12, 0, 5).pack()

    def ioas_map(self, data):
        request = vfio.IoasMap.unpack(data)
        assert request.ioas_id == 5 and request.flags == vfio.IoasMapFlag.READABLE | vfio.IoasMapFlag.WRITEABLE
        self.maps.append(request)
        data[:] = vfio.IoasMap(40, request.flags, 5, 0, request.user_va, request.length, 0x4000_0000).pack()

    def device_get_info(self, data):
        data[:] = vfio_user.DeviceInfo(16, vfio_user.DeviceFlag.PCI | vfio_user.DeviceFlag.RESET, 9, 5).pack()

    def device_get_region_info(self, data):
        index = vfio_user.RegionInfo.unpack(data).index
        size, at = (4096, CONFIG_AT) if index == vfio_user.Region.CONFIG else (self.bar_bytes, 0)
        flags = 3 | (vfio_user.RegionFlag.MMAP if self.mappable else 0)
        data[:] = vfio_user.RegionInfo(32, flags, index, 0, size, at).pack()

    def device_get_irq_info(self, data):
        data[:] = vfio_user.IrqInfo(16, 1, vfio_user.Irq.MSIX, 4).pack()

    def device_set_irqs(self, data):
        request = vfio_user.IrqSet.unpack(data)
        assert request.argsz == len(data)
        self.eventfds[request.index] = struct.unpack_from(f"={request.count}i", data, vfio_user.IrqSet.byte_size)

    def device_reset(self, _):
        self.resets += 1


@pytest.fixture
def world(tmp_path, monkeypatch):
    machine = FakeMachine(tmp_path, monkeypatch)
    machine.add(driver="vfio-pci", cdev="vfio0")
    (machine.dev / "vfio").touch()
    made = Kernel(tmp_path)
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    made.machine = machine
    before = set(os.listdir("/proc/self/fd"))
    yield made
    assert set(os.listdir("/proc/self/fd")) == before, "descriptors were left open"


def start(world):
    return VfioTransport(NIC, root=world.machine.root, dev=world.machine.dev.parent)


@contextlib.contextmanager
def opened(world):
    transport = start(world)
    try:
        yield transport
    finally:
        transport.close()
        transport.close()


def fails(world, message, kind=DeviceError):
    with pytest.raises(kind, match=message):
        start(world)


def use_iommufd(world):
    (world.machine.dev.parent / "iommu").touch()
    world.group_get_device_fd = None  # must not be asked
    (world.machine.dev / "devices" / "vfio0").unlink()
    (world.machine.dev / "devices" / "vfio0").symlink_to(world.device)


def test_registers(world):
    with opened(world) as transport:
        transport.write32(0x40, 0x1234_5678)
        assert world.device.read_bytes()[0x40:0x44] == bytes.fromhex("78563412")
        world.put(0x44, bytes.fromhex("01020304"))
        assert transport.read32(0x44) == 0x0403_0201
        assert transport.read_block(0x40, 2) == [0x1234_5678, 0x0403_0201]
    with pytest.raises(DeviceLostError, match="has been closed"):
        transport.read32(0x40)
    with pytest.raises(DeviceLostError, match="has been closed"):
        transport.map_memory(4096)


def test_it_is_reset_before_it_may_master_the_bus(world):
    order = []
    world.device_reset = lambda _: order.append(world.device.read_bytes()[CONFIG_AT + 4])
    with opened(world):
        assert order == [0]
        assert world.device.read_bytes()[CONFIG_AT + 4] == 6  # memory and bus master


def test_memory(world):
    with opened(world) as transport:
        first, second = transport.map_memory(5000), transport.map_memory(2 << 20)
        assert (first.size, second.size) == (8192, 2 << 20)
        assert [(each.iova, each.size, each.flags) for each in world.maps] == [(1 << 32, 8192, 3), ((1 << 32) + (2 << 20), 2 << 20, 3)]
        assert second.address == world.maps[1].iova
        second.view[100:104] = b"abcd"
        world.refuse[Ioctl.IOMMU_MAP_DMA] = errno.ENOMEM
        with pytest.raises(DeviceError, match=r"4,096 more bytes cannot be locked .* the limit is [\d,]+ bytes|no memory to lock"):
            transport.map_memory(1)
        world.refuse[Ioctl.IOMMU_MAP_DMA] = errno.EINVAL
        with pytest.raises(DeviceError, match=r"4,096 bytes could not be mapped for vfio:0000:65:00\.0: Invalid argument"):
            transport.map_memory(1)
        world.ranges = []


def test_memory_has_huge_pages_if_there_are_any(monkeypatch):
    asked, real = [], mmap.mmap

    def fake(fd, size, **options):
        asked.append((size, options.get("flags", 0) & 0x40000 != 0))
        return real(fd, size)

    monkeypatch.setattr(kernel.mmap, "mmap", fake)
    mapping, address = kernel.memory(4 << 20)
    assert asked == [(4 << 20, True)]
    mapping[5] = 7
    assert address % 4096 == 0 and mapping[:6] == bytes(5) + b"\x07"
    assert kernel.memory(4096)[0][:] == bytes(4096)
    assert asked[1:] == [(4096, False)]

    def none_reserved(fd, size, **options):
        if "flags" in options:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(fd, size)

    monkeypatch.setattr(kernel.mmap, "mmap", none_reserved)
    assert len(kernel.memory(2 << 20)[0]) == 2 << 20


def test_interrupts(world):
    with opened(world) as transport:
        fds = transport.enable_interrupts(2)
        assert transport.enable_interrupts(2) == fds
        assert world.eventfds[vfio_user.Irq.MSIX][:2] == tuple(fds) and len(world.eventfds[vfio_user.Irq.MSIX]) == 4
        os.eventfd_write(fds[1], 3)
        assert os.eventfd_read(fds[1]) == 3
        with pytest.raises(DeviceError, match="has 4 interrupt vectors, not 5"):
            transport.enable_interrupts(5)


def test_interrupts_refused(world):
    with opened(world) as transport:
        world.refuse[Ioctl.DEVICE_SET_IRQS] = errno.ENOSPC
        with pytest.raises(DeviceError, match="its interrupts could not be enabled: No space left on device"):
            transport.enable_interrupts(1)
        del world.refuse[Ioctl.DEVICE_SET_IRQS]
        assert len(transport.enable_interrupts(1)) == 1


def test_the_kernel_wants_it_back(world):
    with opened(world) as transport:
        (fd,) = world.eventfds[vfio_user.Irq.REQ]
        assert transport.fileno() == fd
        transport.check()
        os.eventfd_write(fd, 1)
        for _ in range(2):
            with pytest.raises(DeviceLostError, match=r"vfio:0000:65:00\.0 went away: the kernel wants it back"):
                transport.check()


def test_a_kernel_that_would_not_say_so(world):
    world.refuse[Ioctl.DEVICE_SET_IRQS] = errno.EINVAL
    with opened(world) as transport:
        assert transport.fileno() is None
        transport.check()


def test_a_register_of_ones_and_a_card_that_is_gone(world):
    with opened(world) as transport:
        world.put(0x80, b"\xff" * 4)
        assert transport.read32(0x80) == 0xFFFF_FFFF
        world.put(CONFIG_AT, b"\xff" * 4)
        assert transport.read32(0x84) == 0
        with pytest.raises(DeviceLostError, match="it does not answer on the bus"):
            transport.read32(0x80)


def test_shared(world):
    with opened(world) as transport:
        transport.enable_interrupts(1)
        share = transport.share(16384)
        region, rest = share.map_memory(4096), share.map_memory(8000)
        assert (region.address, rest.address, rest.size) == (world.maps[0].iova, world.maps[0].iova + 4096, 8192)
        with pytest.raises(DeviceError, match="16384 bytes of memory for the device, 4096 of them free, which are too few for 8192"):
            share.map_memory(4097)
        share.write32(8, 5)
        assert transport.read32(8) == share.read32(8) == 5
        assert share.enable_interrupts(4) == transport.enable_interrupts(4)
        for act in (share.reset, lambda: share.share(1)):
            with pytest.raises(DeviceError, match="only who opened it can"):
                act()
        share.close()
        with pytest.raises(DeviceLostError, match="has been closed"):
            share.read32(8)
        del region, rest


@pytest.mark.parametrize("way", ["group", "iommufd"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda world: world.put(CONFIG_AT, b"\x86\x80\xfb\x10"), "is PCI device 8086:10fb, not 1234:acc7"),
        (lambda world: setattr(world, "bar_bytes", 4096), "has a BAR 0 of 4096 bytes .*; an AccelTCP NIC has 65536"),
        (lambda world: setattr(world, "mappable", False), "has a BAR 0 of 65536 bytes .* that can be mapped"),
        (lambda world: world.refuse.update({Ioctl.DEVICE_GET_INFO: errno.EIO}), "cannot be set up: Input/output error"),
        (lambda world: world.refuse.update({Ioctl.DEVICE_RESET: errno.EIO}), "could not be reset: Input/output error"),
    ],
)
def test_not_our_device(world, way, change, message):
    if way == "iommufd":
        use_iommufd(world)
    change(world)
    fails(world, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda world: world.refuse.update({Ioctl.GET_API_VERSION: errno.ENOTTY}), "asking for VFIO's version failed: Inappropriate ioctl"),
        (lambda world: world.refuse.update({Ioctl.GROUP_GET_STATUS: errno.EIO}), "asking for the group's state failed: Input/output error"),
        (lambda world: world.refuse.update({Ioctl.IOMMU_GET_INFO: errno.EIO}), "switching the IOMMU on failed: Input/output error"),
        (lambda world: setattr(world, "version", 1), "the kernel's VFIO has version 1, this driver takes 0"),
        (lambda world: setattr(world, "type1", 0), "no type 1 IOMMU for VFIO: is the module vfio_iommu_type1 loaded"),
        (lambda world: setattr(world, "viable", False), r"IOMMU group 7 have drivers of their own: 0000:65:00.1 \(nvme\)"),
        (lambda world: world.refuse.update({Ioctl.GROUP_SET_CONTAINER: errno.EINVAL}), "joining group and container failed: Invalid argument"),
        (lambda world: world.refuse.update({Ioctl.SET_IOMMU: errno.ENODEV}), "switching the IOMMU on failed: No such device"),
        (lambda world: world.refuse.update({Ioctl.GROUP_GET_DEVICE_FD: errno.EPERM}), "opening the device failed: Operation not permitted"),
        (lambda world: (world.machine.dev / "vfio").unlink(), "/dev/vfio/vfio, which vfio:0000:65:00.0 needs, is not there|is not there: is the module vfio-pci loaded"),
        (lambda world: (world.machine.devices / NIC / "driver").unlink(), "has no driver, not vfio-pci: 'sudo acceltcp bind 0000:65:00.0"),
    ],
)
def test_no_way_by_the_group(world, change, message):
    world.machine.add("0000:65:00.1", driver="nvme")
    change(world)
    fails(world, message)


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.EACCES, "You may not use .*/vfio/7"), (errno.EBUSY, "is in use: another program has .*/vfio/7 open"), (errno.EIO, "cannot be opened: Input/output")],
)
def test_the_group_s_file(world, monkeypatch, number, message):
    real = os.open

    def fake(path, flags, *more):
        if str(path).endswith("/7"):
            raise OSError(number, os.strerror(number))
        return real(path, flags, *more)

    monkeypatch.setattr(kernel.os, "open", fake)
    fails(world, message)


def test_iommufd(world):
    use_iommufd(world)
    with opened(world) as transport:
        assert transport.map_memory(4096).address == 0x4000_0000
        assert world.maps[0].length == 4096
        transport.write32(4, 9)
        assert transport.read32(4) == 9


@pytest.mark.parametrize(
    ("request_", "number", "message"),
    [
        # Another program has the group; another has bound this very file; no such thing.
        (Ioctl.DEVICE_BIND_IOMMUFD, errno.EBUSY, "is in use by another program"),
        (Ioctl.DEVICE_BIND_IOMMUFD, errno.EINVAL, "is in use by another program"),
        (Ioctl.DEVICE_BIND_IOMMUFD, errno.ENODEV, "cannot be used by iommufd: No such device"),
        (Ioctl.IOAS_ALLOC, errno.ENOMEM, "cannot be used by iommufd: Cannot allocate memory"),
        (Ioctl.DEVICE_ATTACH_IOMMUFD_PT, errno.EINVAL, "cannot be used by iommufd: Invalid argument"),
    ],
)
def test_iommufd_refuses(world, request_, number, message):
    use_iommufd(world)
    world.refuse[request_] = number
    fails(world, message)


def test_nothing_is_asked_of_it_once_it_is_closed(world, monkeypatch):
    """The number of its descriptor may be another file's by then."""
    with opened(world) as transport:
        share = transport.share(4096)
        transport.close()
        asked = []
        monkeypatch.setattr(fcntl, "ioctl", lambda *arguments: asked.append(arguments))
        uses = (
            transport.reset, transport.check, lambda: transport.enable_interrupts(1), lambda: transport.map_memory(4096),
            lambda: transport.share(4096), lambda: transport.read32(0), lambda: transport.write32(0, 0),
            lambda: share.read32(0), lambda: share.write32(0, 0),
        )  # fmt: skip
        for use in uses:
            with pytest.raises(DeviceLostError, match="has been closed"):
                use()
        assert asked == [] and transport.fileno() is None


def test_addresses_that_the_iommu_translates(world):
    world.ranges = [(0x10_0000, 0xFEDF_FFFF), (0x1_0030_0000, 0x1_007F_FFFF)]
    with opened(world) as transport:
        got = [transport.map_memory(2 << 20).address for _ in range(3)]
    assert got == [0x1_0040_0000, 0x1_0060_0000, 0x20_0000]


def test_kernels_that_name_no_ranges(world):
    world.iommu_get_info = lambda data: data.__setitem__(slice(None), vfio.IommuInfo(24).pack().ljust(len(data), b"\0"))
    with opened(world) as transport:
        assert transport.map_memory(4096).address == 1 << 32


@given(
    st.lists(st.tuples(st.integers(0, 1 << 34), st.integers(1, 1 << 28)), min_size=1, max_size=4),
    st.lists(st.integers(1, 64).map(lambda pages: 4096 * pages * 37 % (5 << 20) // 4096 * 4096 + 4096), max_size=30),
)
def test_addresses_never_overlap(starts, sizes):
    ranges = [(first, first + size) for first, size in starts]
    # The kernel's ranges are apart.
    ranges = [each for number, each in enumerate(sorted(ranges)) if all(each[0] > other[1] for other in sorted(ranges)[:number])]
    space, taken = IovaSpace(ranges), []
    for size in sizes:
        try:
            start = space.take(size)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            continue
        assert any(first <= start and start + size - 1 <= last for first, last in ranges)
        assert start % kernel.HUGE_PAGE == 0
        assert all(start + size <= other or other + length <= start for other, length in taken)
        taken.append((start, size))
