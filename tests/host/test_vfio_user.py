"""The vfio-user client against a small server of the test's own, and `sim:` against a stub."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import itertools
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from acceltcp.abi import pci
from acceltcp.abi.vfio_user import (
    CHANNELS,
    HEADER_BYTES,
    Command,
    DeviceInfo,
    DmaMap,
    Header,
    HeaderFlag,
    IrqInfo,
    IrqSet,
    RegionAccess,
    RegionInfo,
    RegionIoFds,
    SubRegion,
    SubRegionType,
    Version,
    pack_version_data,
)
from acceltcp.host import simulated
from acceltcp.host.errors import DeviceError, DeviceLostError, DeviceTimeoutError
from acceltcp.host.transport import open_transport
from acceltcp.host.vfio_user import VfioUserTransport


class Server(threading.Thread):
    """Speaks the protocol; `override` maps a command to what it does instead."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.override: dict[int, object] = {}
        self.registers: dict[int, int] = {}
        self.config = bytearray(struct.pack("<HHHH", pci.VENDOR_ID, pci.DEVICE_ID, 0, 0) + bytes(248))
        self.maps: list[tuple[DmaMap, int]] = []
        self.irqs: dict[int, int] = {}
        self.headers: list[Header] = []
        self.max_fds = 2
        self.granted: dict[str, object] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        link, _ = self.listener.accept()
        self.link = link
        with contextlib.suppress(OSError), link:
            while True:
                fds = array.array("i")
                data, ancillary, _, _ = link.recvmsg(HEADER_BYTES, socket.CMSG_SPACE(32))
                for _, _, raw in ancillary:
                    fds.frombytes(raw)
                if not data:
                    break
                while len(data) < HEADER_BYTES:
                    data += link.recv(HEADER_BYTES - len(data))
                header = Header.unpack(data)
                body = b""
                while len(body) < header.size - HEADER_BYTES:
                    body += link.recv(header.size - HEADER_BYTES - len(body))
                self.headers.append(header)
                self.answer(header, body, list(fds))
        self.ended.set()

    def answer(self, header: Header, body: bytes, fds: list[int]) -> None:
        override = self.override.get(header.command)
        if override is not None:
            override(self, header, body)  # type: ignore[operator]
            return
        reply = self.carry_out(Command(header.command), body, fds)
        if not header.flags & HeaderFlag.NO_REPLY:
            self.reply(header, reply)

    def reply(self, header: Header, payload: bytes = b"", error: int = 0) -> None:
        flags = HeaderFlag.REPLY | (HeaderFlag.ERROR if error else 0)
        message = Header(header.msg_id, header.command, HEADER_BYTES + len(payload), flags, error).pack() + payload
        for i in range(0, len(message), 7):  # in pieces, as a stream may come
            self.link.sendall(message[i : i + 7])

    def carry_out(self, command: Command, body: bytes, fds: list[int]) -> bytes:
        if command == Command.VERSION:
            return Version(0, 1).pack() + pack_version_data({"max_msg_fds": self.max_fds, **self.granted})
        if command == Command.DEVICE_GET_INFO:
            return DeviceInfo(16, 3, 9, 5).pack()
        if command == Command.DEVICE_GET_REGION_INFO:
            return RegionInfo(32, 3, RegionInfo.unpack(body).index, 0, pci.BAR_REGISTERS_BYTES, 0).pack()
        if command == Command.DEVICE_GET_IRQ_INFO:
            return IrqInfo(16, 1, 2, 5).pack()
        if command == Command.DMA_MAP:
            assert len(fds) == 1
            self.maps.append((DmaMap.unpack(body), fds[0]))
        if command == Command.DEVICE_SET_IRQS:
            request = IrqSet.unpack(body)
            assert len(fds) == request.count <= self.max_fds
            for i, fd in enumerate(fds):
                self.irqs[request.start + i] = fd
        if command in (Command.REGION_READ, Command.REGION_WRITE):
            access = RegionAccess.unpack(body)
            data = body[RegionAccess.byte_size :]
            if access.region == 7:
                if command == Command.REGION_WRITE:
                    self.config[access.offset : access.offset + access.count] = data
                    return access.pack()
                return access.pack() + bytes(self.config[access.offset : access.offset + access.count])
            assert access.region == 0 and access.count % 4 == 0
            if command == Command.REGION_WRITE:
                assert access.count == 4
                self.registers[access.offset] = int.from_bytes(data, "little")
                return access.pack()
            offsets = range(access.offset, access.offset + access.count, 4)
            return access.pack() + b"".join(self.registers.get(at, 0).to_bytes(4, "little") for at in offsets)
        return b""


@pytest.fixture
def server(tmp_path):
    made = Server(str(tmp_path / "nic.sock"))
    made.path = str(tmp_path / "nic.sock")
    made.start()
    yield made
    made.listener.close()


def test_registers_are_read_and_written_in_order(server):
    transport = VfioUserTransport(server.path)
    for i in range(100):
        transport.write32(0x8000, i)
        assert transport.read32(0x8000) == i
    transport.write32(8, 0xFFFFFFFF)
    assert transport.read32(8) == 0xFFFFFFFF
    writes = [header for header in server.headers if header.command == Command.REGION_WRITE]
    assert all(header.flags & HeaderFlag.NO_REPLY for header in writes[1:])
    assert struct.unpack_from("<H", server.config, 4)[0] & 6 == 6
    assert len({header.msg_id for header in server.headers}) == len(server.headers)
    transport.close()
    transport.close()
    assert server.ended.wait(30)


def test_a_block_of_registers_is_one_message(server):
    transport = VfioUserTransport(server.path)
    for i in range(5):
        transport.write32(0x8000 + 4 * i, 0xFFFFFFFF - i)
    before = len(server.headers)
    assert transport.read_block(0x8004, 3) == [0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFFC]
    assert [header.command for header in server.headers[before:] if header.command != Command.REGION_WRITE] == [
        Command.REGION_READ
    ]
    server.override[Command.REGION_READ] = lambda s, header, body: s.reply(header, body + bytes(8))
    with pytest.raises(DeviceError, match="answered a read of 12 bytes with 8"):
        transport.read_block(0x8004, 3)
    transport.close()


def test_memory_is_shared(server):
    transport = VfioUserTransport(server.path)
    regions = [transport.map_memory(size) for size in (1, 4096, 3 << 20)]
    assert [region.size for region in regions] == [4096, 4096, 3 << 20]
    for region, (request, fd) in zip(regions, server.maps, strict=True):
        assert (request.address, request.size, request.flags & 3) == (region.address, region.size, 3)
        with mmap.mmap(fd, region.size) as view:
            view[100:105] = b"hello"
            assert bytes(region.view[100:105]) == b"hello"
            region.view[7] = 9
            assert view[7] == 9
    spans = sorted((region.address, region.address + region.size) for region in regions)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    held = regions[0].view[:10]
    transport.close()
    assert held[7] == 9  # memory that somebody still looks at stays


def test_interrupts(server):
    transport = VfioUserTransport(server.path)
    fds = transport.enable_interrupts(5)
    assert sorted(server.irqs) == [0, 1, 2, 3, 4]
    for vector, fd in server.irqs.items():
        os.eventfd_write(fd, 1)
        assert os.eventfd_read(fds[vector]) == 1
    with pytest.raises(DeviceError, match="has 5 interrupt vectors, not 6"):
        transport.enable_interrupts(6)
    transport.close()


def test_no_answer_in_time(server):
    transport = VfioUserTransport(server.path, timeout=0.2)
    server.override[Command.REGION_READ] = lambda *a: None
    with pytest.raises(DeviceTimeoutError, match=r"did not answer within 0\.2 s"):
        transport.read32(0)
    with pytest.raises(DeviceLostError, match="went away"):
        transport.write32(0, 0)
    transport.close()


def test_refusal_has_a_reason(server):
    transport = VfioUserTransport(server.path)
    server.override[Command.DMA_MAP] = lambda s, header, body: s.reply(header, error=12)
    with pytest.raises(DeviceError, match="refused DMA_MAP: Cannot allocate memory"):
        transport.map_memory(4096)
    assert transport.read32(0) == 0
    transport.close()


def test_device_that_goes_away(server):
    transport = VfioUserTransport(server.path)
    transport.check()
    server.link.shutdown(socket.SHUT_RDWR)
    time.sleep(0.05)
    with pytest.raises(DeviceLostError, match="closed by the other side"):
        transport.check()
    with pytest.raises(DeviceLostError):
        transport.read32(0)
    transport.close()
    with pytest.raises(DeviceLostError, match="is closed"):
        transport.read32(0)


def test_command_from_the_device_is_refused_and_the_reply_still_found(server):
    def chatty(s, header, body):
        s.link.sendall(Header(7, Command.DMA_READ, HEADER_BYTES, HeaderFlag.COMMAND).pack())
        s.reply(header, s.carry_out(Command.REGION_READ, body, []))

    transport = VfioUserTransport(server.path)
    server.override[Command.REGION_READ] = chatty
    transport.write32(4, 77)
    assert transport.read32(4) == 77
    time.sleep(0.05)
    assert next(header for header in server.headers if header.flags & HeaderFlag.ERROR).msg_id == 7
    transport.close()


@pytest.mark.parametrize(
    ("command", "payload", "message"),
    [
        (Command.VERSION, Version(1, 0).pack(), r"speaks vfio-user 1\.0, this driver 0\.1"),
        (Command.VERSION, Version(0, 1).pack() + b"{]\0", "version reply that makes no sense"),
        (Command.DEVICE_GET_INFO, DeviceInfo(16, 1, 9, 5).pack(), "is not a PCI device"),
        (Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 3, 0, 0, 4096, 0).pack(), "BAR 0 of 4096 bytes"),
    ],
)
def test_wrong_devices(server, command, payload, message):
    server.override[command] = lambda s, header, body: s.reply(header, payload)
    with pytest.raises(DeviceError, match=message):
        VfioUserTransport(server.path)


def test_other_pci_device(server):
    server.config[0:4] = struct.pack("<HH", 0x8086, 0x100E)
    with pytest.raises(DeviceError, match="is PCI device 8086:100e, not 1234:acc7"):
        VfioUserTransport(server.path)


# -- a server that means harm: one clear error, whatever it does -----------------------------


@pytest.mark.parametrize(
    ("command", "payload", "message"),
    [
        (Command.VERSION, b"\0", "version reply that makes no sense"),
        (Command.VERSION, Version(0, 2).pack(), r"speaks vfio-user 0\.2"),
        (Command.VERSION, Version(0, 1).pack() + b'{"capabilities": {"max_msg_fds": ' + b"9" * 5000 + b"}}\0", "makes no sense"),
        (Command.DEVICE_GET_INFO, bytes(15), "no proper answer to DEVICE_GET_INFO: DeviceInfo takes 16 bytes, not 15"),
        (Command.DEVICE_GET_REGION_INFO, b"", "no proper answer to DEVICE_GET_REGION_INFO"),
        (Command.DEVICE_GET_IRQ_INFO, b"", "no proper answer to DEVICE_GET_IRQ_INFO"),
        (Command.REGION_READ, b"", "answered a read of 4 bytes with 0"),
        (Command.REGION_READ, bytes(20), "answered a read with the data of another one"),
    ],
)
def test_answers_that_are_none(server, command, payload, message):
    server.override[command] = lambda s, header, body: s.reply(header, payload)
    with pytest.raises(DeviceError, match=message):
        VfioUserTransport(server.path)


@pytest.mark.parametrize("number", [0, 4095, 1 << 31, (1 << 32) - 1])
def test_errors_without_a_name(server, number):
    flags = HeaderFlag.REPLY | HeaderFlag.ERROR
    transport = VfioUserTransport(server.path)
    server.override[Command.DEVICE_RESET] = lambda s, header, body: s.link.sendall(
        Header(header.msg_id, header.command, HEADER_BYTES, flags, number).pack()
    )
    with pytest.raises(DeviceError, match=f"refused DEVICE_RESET: error {number}" if number else "no reason given"):
        transport.reset()
    assert transport.read32(0) == 0
    transport.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"msg_id": 0x1234}, "answered message 4660"),
        ({"command": 4}, "answered DEVICE_RESET as if it were command 4"),
        ({"flags": 2}, "answered with flags 0x2"),
        ({"flags": 0x11}, "answered with flags 0x11"),
        ({"flags": 0x41}, "answered with flags 0x41"),
        ({"size": 15}, "sent a message of 15 bytes"),
        ({"size": 1 << 31}, "sent a message of 2147483648 bytes"),
    ],
)
def test_headers_that_are_none_of_a_reply(server, change, message):
    transport = VfioUserTransport(server.path)
    server.override[Command.DEVICE_RESET] = lambda s, header, body: s.link.sendall(
        dataclasses.replace(Header(header.msg_id, header.command, HEADER_BYTES, HeaderFlag.REPLY), **change).pack()
    )
    with pytest.raises(DeviceLostError, match=message):
        transport.reset()
    with pytest.raises(DeviceLostError):
        transport.check()
    transport.close()


def test_commands_without_end(server):
    """Neither a look for the device's end nor a wait for an answer goes on for ever."""
    transport = VfioUserTransport(server.path, timeout=0.5)
    flood = Header(7, Command.DMA_READ, HEADER_BYTES, HeaderFlag.NO_REPLY).pack() * 500
    server.link.sendall(flood)
    with pytest.raises(DeviceLostError, match="64 commands at once"):
        transport.check()
    transport.close()


def test_an_answer_in_drops_does_not_come_for_ever(server):
    def drip(s, header, body):
        for byte in Header(header.msg_id, header.command, 1 << 20, HeaderFlag.REPLY).pack() + bytes(100):
            s.link.sendall(bytes([byte]))
            time.sleep(0.02)

    transport = VfioUserTransport(server.path, timeout=0.2)
    server.override[Command.DEVICE_RESET] = drip
    start = time.monotonic()
    with pytest.raises(DeviceTimeoutError, match=r"did not answer within 0\.2 s"):
        transport.reset()
    assert time.monotonic() - start < 1
    transport.close()


def test_a_server_that_takes_nothing(server):
    transport = VfioUserTransport(server.path, timeout=0.2)
    blocked = threading.Event()
    server.override[Command.REGION_WRITE] = lambda *a: blocked.wait(30)
    with pytest.raises(DeviceLostError, match=r"it took no message for 0\.2 s"):
        for value in range(100_000):
            transport.write32(0, value)
    blocked.set()
    transport.close()


def test_second_client_is_told_why(tmp_path):
    path = str(tmp_path / "nic.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        with pytest.raises(DeviceLostError, match="Perhaps another driver has it"):
            VfioUserTransport(path)


def test_shared_memory_cannot_be_cut_short(server):
    """A process that touches what is gone dies of SIGBUS."""
    transport = VfioUserTransport(server.path)
    region = transport.map_memory(8192)
    _, fd = server.maps[0]
    for size in (0, 4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    region.view[8191] = 1
    with mmap.mmap(fd, 8192) as theirs:
        assert theirs[8191] == 1
    transport.close()


@pytest.mark.parametrize("what", ["nothing", "file", "datagrams"])
def test_channels_that_are_none(server, what):
    fds = {
        "nothing": list,
        "file": lambda: [os.memfd_create("x")],
        "datagrams": lambda: [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()],
    }[what]()
    size = RegionIoFds.byte_size + SubRegion.byte_size
    body = RegionIoFds(size, 0, 0, 1).pack() + SubRegion(0, 65536, 0, SubRegionType.CHANNEL).pack()

    def answer(s, header, request):
        message = Header(header.msg_id, header.command, HEADER_BYTES + len(body), HeaderFlag.REPLY).pack() + body
        socket.send_fds(s.link, [message], fds)

    server.granted[CHANNELS] = True
    server.override[Command.DEVICE_GET_REGION_IO_FDS] = answer
    transport = VfioUserTransport(server.path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceError, match="gave no channel"):
        transport.share(4096)
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the memory, mapped here and kept by the test's server
    assert transport.read32(0) == 0
    transport.close()
    for fd in fds:
        os.close(fd)


def test_long_reads_keep_to_the_limit(server):
    server.granted["max_data_xfer_size"] = 10
    transport = VfioUserTransport(server.path)
    for i in range(5):
        transport.write32(0x8000 + 4 * i, i)
    before = len(server.headers)
    assert transport.read_block(0x8000, 5) == [0, 1, 2, 3, 4]
    assert [header.command for header in server.headers[before:]].count(Command.REGION_READ) == 3
    transport.close()


# -- specifications ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("eth0", "given as SCHEME:..., like 'sim:.tap=acc0', not 'eth0'"),
        ("usb:1", "There is no kind of device 'usb:'; known are vfio:, vfio-user:, sim:, ethernet:"),
        ("vfio-user:", "with the path of its socket"),
        ("vfio-user:/nonexistent/nic.sock", "There is no device at /nonexistent/nic.sock: no such socket"),
        ("vfio-user:/tmp?x=1", "takes no options"),
        ("sim:?tap", "must read key=value"),
        ("sim:acc0", r"should read 'sim:\?key=value&...', without 'acc0'"),
    ],
)
def test_specifications_that_name_nothing(spec, message):
    with pytest.raises(DeviceError, match=message):
        open_transport(spec)


def test_socket_without_a_listener(tmp_path):
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(DeviceError, match="nobody listens"):
        VfioUserTransport(path)


# -- sim: ----------------------------------------------------------------------------------

STUB = """
import json, os, sys, threading, time
sys.path[:0] = {path!r}
def watch():
    while os.read(0, 1):
        pass
    os._exit(7)
threading.Thread(target=watch, daemon=True).start()
from tests.host.test_vfio_user import Server
arguments = sys.argv[1:]
print("compiling", file=sys.stderr, flush=True)
if "--broken" in arguments:
    print("no such TAP", file=sys.stderr, flush=True)
    sys.exit(3)
server = Server(arguments[arguments.index("--socket") + 1])
server.registers[0] = len(arguments)
server.start()
server.ended.wait()
print("bye", file=sys.stderr, flush=True)
if "--crash" in arguments:
    os._exit(9)
time.sleep(60)
"""


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(simulated, "_BOOT", STUB.format(path=[path for path in sys.path if path]))


def test_simulator_is_started_and_stopped(stub):
    transport = open_transport("sim:?tap=acc0&fast=")
    assert transport.read32(0) == 6  # sim --socket PATH --tap acc0 --fast
    pid = transport.pid
    os.kill(pid, 0)
    transport.close()
    transport.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_simulator_that_fails_says_why(stub):
    with pytest.raises(DeviceError, match=r"(?s)ended with status 3; it said:.*no such TAP"):
        open_transport("sim:?broken=")


def test_simulator_that_dies_later_says_how(stub):
    transport = open_transport("sim:?x=1")
    os.kill(transport.pid, signal.SIGKILL)
    with pytest.raises(DeviceLostError, match="was ended by signal 9"):
        for _ in range(10):
            transport.read32(0)
    transport.close()


def test_simulator_ends_with_its_parent(stub, tmp_path):
    path = [entry for entry in sys.path if entry]
    code = (
        f"import sys, os; sys.path[:0] = {path!r}\n"
        "from acceltcp.host import simulated\n"
        f"simulated._BOOT = {simulated._BOOT!r}\n"
        "t = simulated.SimulatedTransport({})\n"
        "print(t.pid, flush=True); os._exit(1)\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30).stdout)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
            if stat.read().split()[2] == "Z":
                return
        time.sleep(0.02)
    pytest.fail("the simulator outlived its parent")
