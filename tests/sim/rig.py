"""Helpers of the simulator's tests: a server in a thread and a client made of a raw socket."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

from acceltcp.abi import vfio_user as vfio
from acceltcp.abi.vfio_user import Command, HeaderFlag
from sim.device import Shell
from sim.server import PciDevice, Server
from sim.simulator import Clock, Nic, Simulator
from sim.wires import NullWire, PairWire, Wire
from tests.sim.stub import stub_library

QUEUES = 4
VERSION = vfio.Version(0, 1).pack() + vfio.pack_version_data({"max_msg_fds": 8})


class FakeDevice:
    """A core without a model: registers that keep what is written, mappings by address."""

    def __init__(self) -> None:
        self.registers: dict[int, int] = {}
        self.regions: dict[int, int] = {}
        self.bus_master = False
        self.resets = 0

    def read(self, address: int) -> int:
        return self.registers.get(address, 0)

    def write(self, address: int, value: int, strobe: int = 15) -> None:
        assert address % 4 == 0
        assert 0 <= address < 0x10000
        assert 0 <= value < 1 << 32
        self.registers[address] = value

    def map_file(self, iova: int, size: int, fd: int, offset: int, prot: int) -> None:
        if any(iova < at + length and at < iova + size for at, length in self.regions.items()):
            raise FileExistsError(17, "overlap")
        self.regions[iova] = size

    def unmap(self, iova: int, size: int) -> int:
        within = [at for at, length in self.regions.items() if iova <= at and at + length <= iova + size]
        touched = [at for at, length in self.regions.items() if iova < at + length and at < iova + size]
        if size == 0 or within != touched:
            raise OSError(22, "cuts a mapping")
        return sum(self.regions.pop(at) for at in within)

    def unmap_all(self) -> None:
        self.regions.clear()

    def set_bus_master(self, on: bool) -> None:
        self.bus_master = on

    def reset(self) -> None:
        self.resets += 1
        self.registers.clear()

    @property
    def mappings(self) -> int:
        return len(self.regions)

    @property
    def mapped_bytes(self) -> int:
        return sum(self.regions.values())


class Wall:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A simulated NIC with the stand-in for a core, served by a thread."""

    def __init__(self, path: Path, wire: Wire | None = None, tick: float = 100e-6) -> None:
        self.shell = Shell(stub_library())
        self.far: PairWire | None = None
        if wire is None:
            wire, self.far = PairWire.pair()
        self.path = str(path)
        self.pci = PciDevice(self.shell, QUEUES)
        self.nic = Nic(self.shell, Server(path, self.pci), [wire], tick=tick)
        self.simulator = Simulator([self.nic], Clock())
        self.thread = threading.Thread(target=self.simulator.run, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.simulator.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.simulator.close()


class RefusalError(Exception):
    """An error reply."""

    def __init__(self, errno: int) -> None:
        super().__init__(os.strerror(errno))
        self.errno = errno


class Client:
    """A vfio-user client that can do wrong."""

    def __init__(self, path: str, version: bytes | None = VERSION) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.next_id = 0
        if version is not None:
            self.request(Command.VERSION, version)

    def close(self) -> None:
        self.socket.close()

    def send_raw(self, data: bytes, fds: list[int] | None = None) -> None:
        if fds:
            self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        else:
            self.socket.sendall(data)

    def post(self, command: int, payload: bytes = b"", fds: list[int] | None = None, **flags: bool) -> int:
        self.next_id = (self.next_id + 1) & 0xFFFF
        self.send_raw(vfio.command_message(self.next_id, command, payload, **flags), fds)
        return self.next_id

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError(f"closed after {len(data)} of {count} bytes")
            data += part
        return data

    def reply(self) -> tuple[vfio.Header, bytes]:
        header = vfio.Header.unpack(self.exactly(vfio.HEADER_BYTES))
        return header, self.exactly(header.size - vfio.HEADER_BYTES)

    def request(self, command: int, payload: bytes = b"", fds: list[int] | None = None) -> bytes:
        """Send and wait: the payload of the reply. Raises `RefusalError`."""
        msg_id = self.post(command, payload, fds)
        header, body = self.reply()
        assert (header.msg_id, header.command) == (msg_id, command)
        assert header.flags & HeaderFlag.TYPE_MASK == HeaderFlag.REPLY
        if header.flags & HeaderFlag.ERROR:
            assert not body
            raise RefusalError(header.error)
        return body

    def read(self, region: int, offset: int, count: int) -> bytes:
        access = vfio.RegionAccess(offset, region, count).pack()
        reply = self.request(Command.REGION_READ, access)
        assert reply[: len(access)] == access
        return reply[len(access) :]

    def write(self, region: int, offset: int, data: bytes) -> None:
        access = vfio.RegionAccess(offset, region, len(data)).pack()
        assert self.request(Command.REGION_WRITE, access + data) == access

    def read32(self, offset: int) -> int:
        return int(struct.unpack("<I", self.read(0, offset, 4))[0])

    def write32(self, offset: int, value: int) -> None:
        self.write(0, offset, struct.pack("<I", value))

    def map(
        self, address: int, size: int, fd: int | None, flags: int = 3, offset: int = 0, argsz: int = 32
    ) -> None:
        request = vfio.DmaMap(argsz, flags, offset, address, size).pack()
        self.request(Command.DMA_MAP, request, None if fd is None else [fd])

    def unmap(self, address: int, size: int, flags: int = 0) -> int:
        """How many bytes had been mapped in that range."""
        request = vfio.DmaUnmap(24, flags, address, size)
        reply = vfio.DmaUnmap.unpack(self.request(Command.DMA_UNMAP, request.pack()))
        assert (reply.argsz, reply.flags, reply.address) == (request.argsz, flags, address)
        return reply.size

    def set_irqs(
        self,
        flags: int,
        start: int,
        count: int,
        *,
        fds: list[int] | None = None,
        data: bytes = b"",
        index: int = 2,
    ) -> None:
        request = vfio.IrqSet(20 + len(data), flags, index, start, count).pack() + data
        assert self.request(Command.DEVICE_SET_IRQS, request, fds) == b""

    def bus_master(self, on: bool = True) -> None:
        self.write(7, 4, struct.pack("<H", 6 if on else 2))


def plain_nic(path: Path, device: Any) -> Server:
    """A server on a fake core, driven by the caller."""
    return Server(path, PciDevice(device, QUEUES))


__all__ = ["QUEUES", "VERSION", "Client", "FakeDevice", "NullWire", "RefusalError", "Rig", "Wall", "plain_nic"]
