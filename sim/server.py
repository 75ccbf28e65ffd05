"""The NIC as a PCI device on a UNIX socket: the server side of vfio-user.

One client at a time: a second one is refused (its connection is closed at once). A client that wants to share
the device with processes of its own asks for channels (`SubRegionType.CHANNEL`): sockets that carry accesses to
BAR 0 and nothing else, and that end with it. Memory is
reached by descriptor only; a mapping that comes without one is kept, but accesses to it end
in a bus error. BAR 0 is the register file, each access crosses the core's AXI4-Lite; writes are
posted. BAR 2 and configuration space live here. DMA and interrupts need the bus master bit.

A command that is wrong is answered with an errno. A stream that makes no sense ends
that connection only. When a client goes, all its memory is unmapped, its descriptors are closed
and the core is reset, and the next one may come.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from acceltcp.abi import pci
from acceltcp.abi import vfio_user as vfio
from acceltcp.abi.vfio_user import (
    CHANNELS,
    Command,
    DmaFlag,
    DmaUnmapFlag,
    Irq,
    IrqSetFlag,
    Region,
    RegionFlag,
    SubRegion,
    SubRegionType,
)

from .config_space import CONFIG_BYTES, ConfigSpace
from .eventfd import is_eventfd
from .link import EndOfLinkError, Link
from .msix import Msix
from .protocol import FDS_MAX, Message, ProtocolError

__all__ = ["Device", "PciDevice", "RefusedError", "Server", "SocketInUseError"]

log = logging.getLogger("acceltcp.sim")

PAGE = 4096
DMA_MAPS_MAX = 32768
"""Half of what Linux lets a process have. A guest without huge pages takes one per page."""
DMA_BYTES_MAX = 1 << 44
"""Most memory of a client that is mapped at a time: room in our own address space must remain, whatever its files say."""

ACCESS_BYTES_MAX = 4096
"""Longest access to a region: all of configuration space, and a quarter of a second for the core's registers."""

POSTED_WRITES_MAX = 256
"""Writes that may wait before the core; who posts more waits until they are done."""

CHANNELS_MAX = 128
MESSAGES_PER_TURN = 256
TURN_SECONDS = 0.02
"""Time after which others get their turn, though commands may wait: a long access alone takes as long."""

HANDSHAKE_SECONDS = 10.0
"""Time that a client has to negotiate the version: who says nothing must not keep others away."""


_REGION_AT = vfio.RegionAccess.byte_size - 8
_BAR_REGISTERS = pci.BAR_REGISTERS.to_bytes(4, "little")


class Device(Protocol):
    """What the PCI device needs of the core; `sim.device.Shell` is one."""

    def read(self, address: int) -> int: ...
    def write(self, address: int, value: int, strobe: int = 15) -> None: ...
    def map_file(self, iova: int, size: int, fd: int, offset: int, prot: int) -> None: ...
    def unmap(self, iova: int, size: int) -> int: ...
    def unmap_all(self) -> None: ...
    def set_bus_master(self, on: bool) -> None: ...
    def reset(self) -> None: ...
    @property
    def mappings(self) -> int: ...
    @property
    def mapped_bytes(self) -> int: ...


class RefusedError(Exception):
    """A command that cannot be carried out: errno and a sentence."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.errno = number


class SocketInUseError(OSError):
    """Somebody else serves the socket's path."""


def _need(condition: bool, sentence: str, number: int = errno.EINVAL) -> None:
    if not condition:
        raise RefusedError(number, sentence)


class PciDevice:
    """The commands of vfio-user, carried out on a core. Knows nothing of sockets.

    device: the core.
    queues: its host queues.
    """

    def __init__(self, device: Device, queues: int) -> None:
        self.device = device
        self.msix = Msix(pci.msix_vectors(queues))
        self.config = ConfigSpace(self.msix.vectors)
        self.version: tuple[int, int] | None = None
        """What was negotiated; nothing else is answered before."""
        self.new_channel: Callable[[], int] | None = None
        """Makes a channel and returns the client's end; None: there are none. Raises `OSError`."""
        self.passing: list[int] = []
        """Descriptors that go along with the reply that `execute` has returned; whoever sends it closes them."""
        self._channels = False
        self._bus_master = False
        self._posted = 0
        """Writes that the core may not have seen."""
        self._commands: dict[int, Callable[[Message], bytes]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_REGION_IO_FDS: self._region_io_fds,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_RESET: self._reset,
            Command.DEVICE_FEATURE: self._feature,
        }
        self.disconnect()

    def disconnect(self) -> None:
        """The client has gone: as after power-on."""
        self.device.unmap_all()
        self.msix.close()
        self.config.reset()
        self.version = None
        self._channels = False
        self._apply_config()
        self.device.reset()

    def execute(self, message: Message) -> bytes:
        """Carry a command out: the whole reply, empty if none is wanted.

        Closes the descriptors that nobody took. Raises `ProtocolError` when the connection
        has to end.
        """
        header = message.header
        try:
            if self.version is None and header.command != Command.VERSION:
                raise ProtocolError(f"the first command must be VERSION, not {header.command}")
            command = self._commands.get(header.command)
            _need(command is not None, f"there is no command {header.command}", errno.EOPNOTSUPP)
            assert command is not None
            takes_fds = header.command in (Command.DMA_MAP, Command.DEVICE_SET_IRQS)
            _need(takes_fds or not message.fds, f"command {header.command} takes no descriptors")
            reply = vfio.reply_message(header, command(message))
        except RefusedError as error:
            log.debug("refused command %d: %s", header.command, error)
            reply = vfio.error_message(header, error.errno)
        finally:
            while message.fds:
                os.close(message.fds.pop())
        return b"" if message.no_reply else reply

    def execute_on_channel(self, message: Message) -> bytes:
        """As `execute`, for a command that came over a channel."""
        header = message.header
        if message.fds or header.command not in (Command.REGION_READ, Command.REGION_WRITE):
            while message.fds:
                os.close(message.fds.pop())
            raise ProtocolError(f"a channel carries accesses to registers, not command {header.command}")
        if message.payload[_REGION_AT : _REGION_AT + 4] != _BAR_REGISTERS:
            return b"" if message.no_reply else vfio.error_message(header, errno.EACCES)
        return self.execute(message)

    def interrupt(self, vector: int) -> None:
        """The core raises a vector."""
        if self._bus_master:
            self.msix.trigger(vector)

    # Each command: payload of the reply

    @staticmethod
    def _exact(kind: Any, message: Message) -> Any:
        """The payload as this layout, of exactly this size."""
        _need(
            len(message.payload) == kind.byte_size,
            f"{kind.__name__} must have {kind.byte_size} bytes, not {len(message.payload)}",
        )
        return kind.unpack(message.payload)

    def _version(self, message: Message) -> bytes:
        _need(self.version is None, "the version has been negotiated already")
        try:
            proposed = vfio.Version.unpack(message.payload)
            theirs = vfio.unpack_version_data(message.payload[vfio.Version.byte_size :])
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        if proposed.major != vfio.VERSION_MAJOR:
            raise ProtocolError(f"major version must be {vfio.VERSION_MAJOR}, not {proposed.major}")
        minor = min(proposed.minor, vfio.VERSION_MINOR)
        ours = {
            "max_msg_fds": FDS_MAX,
            "max_data_xfer_size": ACCESS_BYTES_MAX,
            "max_dma_maps": DMA_MAPS_MAX,
            "pgsizes": PAGE,
            "write_multiple": True,
            CHANNELS: True,
        }
        self._channels = theirs.get(CHANNELS) is True
        self.version = (proposed.major, minor)
        # A subset of what was proposed, as the specification wants it.
        data = vfio.pack_version_data({name: value for name, value in ours.items() if name in theirs})
        return vfio.Version(vfio.VERSION_MAJOR, minor).pack() + data

    def _dma_map(self, message: Message) -> bytes:
        request = self._exact(vfio.DmaMap, message)
        _need(
            request.argsz == vfio.DmaMap.byte_size,
            f"argsz must be {vfio.DmaMap.byte_size}, not {request.argsz}",
        )
        _need(
            request.flags in (DmaFlag.READ, DmaFlag.WRITE, DmaFlag.READ | DmaFlag.WRITE),
            f"DMA flags must be 1, 2 or 3, not {request.flags:#x}",
        )
        for name in ("address", "size", "offset"):
            value = getattr(request, name)
            _need(value % PAGE == 0, f"{name} must be a multiple of {PAGE}, not {value:#x}")
        _need(request.size > 0, "size must not be 0")
        _need(request.offset < 1 << 63, f"offset must be below 2**63, not {request.offset:#x}")
        _need(len(message.fds) <= 1, f"DMA_MAP takes one descriptor, not {len(message.fds)}")
        _need(self.device.mappings < DMA_MAPS_MAX, f"there are {DMA_MAPS_MAX} mappings already", errno.ENOSPC)
        fd = message.fds[0] if message.fds else -1
        if fd >= 0:
            mode = os.fstat(fd).st_mode
            _need(stat.S_ISREG(mode) or stat.S_ISCHR(mode), "memory must be a file or a device")
            room = DMA_BYTES_MAX - self.device.mapped_bytes
            _need(request.size <= room, f"there is room for {room} more bytes, not {request.size}", errno.ENOMEM)
        try:
            self.device.map_file(request.address, request.size, fd, request.offset, request.flags)
        except OSError as error:
            raise RefusedError(error.errno or errno.EINVAL, str(error)) from error
        return b""

    def _dma_unmap(self, message: Message) -> bytes:
        request = self._exact(vfio.DmaUnmap, message)
        _need(request.argsz >= vfio.DmaUnmap.byte_size, f"argsz must be at least 24, not {request.argsz}")
        if request.flags == DmaUnmapFlag.ALL:
            _need(request.address == request.size == 0, "to unmap everything, address and size must be 0")
            self.device.unmap_all()
        else:
            _need(request.flags == 0, f"flags must be 0 or {DmaUnmapFlag.ALL:#x}, not {request.flags:#x}")
            try:
                size = self.device.unmap(request.address, request.size)
            except OSError as error:
                raise RefusedError(error.errno or errno.EINVAL, str(error)) from error
            return vfio.DmaUnmap(request.argsz, request.flags, request.address, size).pack()
        return message.payload

    def _device_info(self, message: Message) -> bytes:
        request = self._exact(vfio.DeviceInfo, message)
        size = vfio.DeviceInfo.byte_size
        _need(request.argsz >= size, f"argsz must be at least {size}, not {request.argsz}")
        flags = vfio.DeviceFlag.PCI | vfio.DeviceFlag.RESET
        return vfio.DeviceInfo(size, flags, vfio.NUM_REGIONS, vfio.NUM_IRQS).pack()

    @staticmethod
    def _region_bytes(region: int) -> int:
        return CONFIG_BYTES if region == Region.CONFIG else pci.BARS.get(region, 0)

    def _region_info(self, message: Message) -> bytes:
        request = self._exact(vfio.RegionInfo, message)
        size = vfio.RegionInfo.byte_size
        _need(request.argsz >= size, f"argsz must be at least {size}, not {request.argsz}")
        _need(request.index < vfio.NUM_REGIONS, f"there is no region {request.index}")
        length = self._region_bytes(request.index)
        flags = RegionFlag.READ | RegionFlag.WRITE if length else 0
        return vfio.RegionInfo(size, flags, request.index, 0, length, 0).pack()

    def _region_io_fds(self, message: Message) -> bytes:
        request = self._exact(vfio.RegionIoFds, message)
        _need(request.argsz >= vfio.RegionIoFds.byte_size, f"argsz must be at least 16, not {request.argsz}")
        _need(request.flags == request.count == 0, "flags and count must be 0")
        _need(request.index < vfio.NUM_REGIONS, f"there is no region {request.index}")
        size = vfio.RegionIoFds.byte_size
        if not self._channels or request.index != pci.BAR_REGISTERS or self.new_channel is None:
            return vfio.RegionIoFds(size, 0, request.index, 0).pack()
        size += SubRegion.byte_size
        if request.argsz < size:
            return vfio.RegionIoFds(size, 0, request.index, 0).pack()
        try:
            self.passing.append(self.new_channel())
        except OSError as error:
            raise RefusedError(error.errno or errno.ENOSPC, str(error)) from error
        channel = SubRegion(0, pci.BAR_REGISTERS_BYTES, 0, SubRegionType.CHANNEL)
        return vfio.RegionIoFds(size, 0, request.index, 1).pack() + channel.pack()

    def _irq_info(self, message: Message) -> bytes:
        request = self._exact(vfio.IrqInfo, message)
        size = vfio.IrqInfo.byte_size
        _need(request.argsz >= size, f"argsz must be at least {size}, not {request.argsz}")
        _need(request.index < vfio.NUM_IRQS, f"there is no interrupt type {request.index}")
        if request.index != Irq.MSIX:
            return vfio.IrqInfo(size, 0, request.index, 0).pack()
        flags = vfio.IrqInfoFlag.EVENTFD | vfio.IrqInfoFlag.MASKABLE
        return vfio.IrqInfo(size, flags, request.index, self.msix.vectors).pack()

    def _set_irqs(self, message: Message) -> bytes:
        try:
            request = vfio.IrqSet.unpack(message.payload)
        except ValueError as error:
            raise RefusedError(errno.EINVAL, str(error)) from error
        data = message.payload[vfio.IrqSet.byte_size :]
        kind = request.flags & IrqSetFlag.DATA_TYPE_MASK
        action = request.flags & IrqSetFlag.ACTION_TYPE_MASK
        kinds = (IrqSetFlag.DATA_NONE, IrqSetFlag.DATA_BOOL, IrqSetFlag.DATA_EVENTFD)
        actions = (IrqSetFlag.ACTION_MASK, IrqSetFlag.ACTION_UNMASK, IrqSetFlag.ACTION_TRIGGER)
        _need(
            kind in kinds and action in actions and request.flags == kind | action,
            f"flags must name one kind of data and one action, not {request.flags:#x}",
        )
        _need(request.index < vfio.NUM_IRQS, f"there is no interrupt type {request.index}")
        available = self.msix.vectors if request.index == Irq.MSIX else 0
        _need(
            request.start <= available and request.count <= available - request.start,
            f"vectors {request.start} to {request.start + request.count} are past the {available} there are",
        )
        expected = request.count if kind == IrqSetFlag.DATA_BOOL else 0
        _need(len(data) == expected, f"data must have {expected} bytes, not {len(data)}")
        _need(
            request.argsz == len(message.payload),
            f"argsz must be {len(message.payload)}, not {request.argsz}",
        )
        _need(kind == IrqSetFlag.DATA_EVENTFD or not message.fds, "only DATA_EVENTFD takes descriptors")
        vectors = range(request.start, request.start + request.count)
        if kind == IrqSetFlag.DATA_EVENTFD:
            _need(action == IrqSetFlag.ACTION_TRIGGER, "eventfds can be set for triggers only")
            self._set_eventfds(vectors, message.fds)
            return b""
        if not vectors:
            _need(
                kind == IrqSetFlag.DATA_NONE and action == IrqSetFlag.ACTION_TRIGGER and request.start == 0,
                "count 0 must come with DATA_NONE, ACTION_TRIGGER and start 0: switch all off",
            )
            for vector in range(available):
                self.msix.assign(vector, None)
            return b""
        chosen = [v for i, v in enumerate(vectors) if kind == IrqSetFlag.DATA_NONE or data[i]]
        for vector in chosen:
            if action == IrqSetFlag.ACTION_TRIGGER:
                self.msix.trigger(vector)
            else:
                self.msix.mask(vector, action == IrqSetFlag.ACTION_MASK)
        return b""

    def _set_eventfds(self, vectors: range, fds: list[int]) -> None:
        _need(len(vectors) > 0, "count must not be 0 with DATA_EVENTFD")
        _need(
            len(fds) in (0, len(vectors)),
            f"{len(vectors)} vectors take as many descriptors or none, not {len(fds)}",
        )
        _need(all(map(is_eventfd, fds)), "descriptors must be eventfds")
        for vector in vectors:
            self.msix.assign(vector, fds.pop(0) if fds else None)

    def _checked_access(self, region: int, offset: int, count: int) -> None:
        length = self._region_bytes(region)
        _need(length > 0, f"there is no region {region}")
        _need(
            0 < count <= ACCESS_BYTES_MAX,
            f"an access must have 1 to {ACCESS_BYTES_MAX} bytes, not {count}",
        )
        _need(
            count <= length and offset <= length - count,
            f"{count} bytes at {offset:#x} are outside the {length} bytes of region {region}",
        )

    def _region_read(self, message: Message) -> bytes:
        request = self._exact(vfio.RegionAccess, message)
        offset, region, count = request.offset, request.region, request.count
        self._checked_access(region, offset, count)
        if region == Region.CONFIG:
            data = self.config.read(offset, count)
        elif region == pci.BAR_MSIX:
            data = self.msix.read(offset, count)
        else:
            data = self._read_registers(offset, count)
        return message.payload + data

    def _read_registers(self, offset: int, count: int) -> bytes:
        first = offset & ~3
        data = bytearray()
        for at in range(first, offset + count, 4):
            data += self._read_register(at).to_bytes(4, "little")
        return bytes(data[offset - first : offset - first + count])

    def _read_register(self, at: int) -> int:
        try:
            value = self.device.read(at)
        except OSError as error:
            raise RefusedError(errno.EIO, str(error)) from error
        self._posted = 0  # a read comes after all writes before it
        return value

    def _region_write(self, message: Message) -> bytes:
        size = vfio.RegionAccess.byte_size
        try:
            request = vfio.RegionAccess.unpack(message.payload)
        except ValueError as error:
            raise RefusedError(errno.EINVAL, str(error)) from error
        data = message.payload[size:]
        _need(len(data) == request.count, f"count is {request.count}, but {len(data)} bytes came")
        self._write(request.region, request.offset, data)
        return message.payload[:size]

    def _region_write_multi(self, message: Message) -> bytes:
        size = vfio.RegionWriteMultiEntry.byte_size
        try:
            request = vfio.RegionWriteMulti.unpack(message.payload)
        except ValueError as error:
            raise RefusedError(errno.EINVAL, str(error)) from error
        body = message.payload[vfio.RegionWriteMulti.byte_size :]
        _need(request.count * size == len(body), f"{request.count} writes take {request.count * size} bytes")
        entries = [vfio.RegionWriteMultiEntry.unpack(body, at) for at in range(0, len(body), size)]
        for entry in entries:
            _need(entry.count <= 8, f"a write of many must have at most 8 bytes, not {entry.count}")
            self._checked_access(entry.region, entry.offset, entry.count)
        for entry in entries:
            self._write(entry.region, entry.offset, entry.data[: entry.count])
        return request.pack()

    def _write(self, region: int, offset: int, data: bytes) -> None:
        self._checked_access(region, offset, len(data))
        if region == Region.CONFIG:
            if self.config.write(offset, data):
                self._reset_core()
            self._apply_config()
        elif region == pci.BAR_MSIX:
            self.msix.write(offset, data)
        else:
            self._write_registers(offset, data)

    def _write_registers(self, offset: int, data: bytes) -> None:
        for at in range(offset & ~3, offset + len(data), 4):
            value = strobe = 0
            for lane in range(4):
                index = at + lane - offset
                if 0 <= index < len(data):
                    value |= data[index] << 8 * lane
                    strobe |= 1 << lane
            if self._posted >= POSTED_WRITES_MAX:
                self._read_register(0)
            self.device.write(at, value, strobe)
            self._posted += 1

    def _apply_config(self) -> None:
        self._bus_master = self.config.bus_master
        self.device.set_bus_master(self._bus_master)
        if self.msix.function_masked != self.config.function_masked:
            self.msix.set_function_mask(self.config.function_masked)

    def _reset_core(self) -> None:
        # As after VFIO's reset: the core is new; configuration space, mappings and eventfds stay.
        self.device.reset()
        self._posted = 0
        self.msix.reset()
        self.msix.function_masked = self.config.function_masked

    def _reset(self, message: Message) -> bytes:
        _need(not message.payload, f"DEVICE_RESET has no payload, not {len(message.payload)} bytes")
        self._reset_core()
        return b""

    def _feature(self, message: Message) -> bytes:
        try:
            request = vfio.FeatureRequest.unpack(message.payload)
        except ValueError as error:
            raise RefusedError(errno.EINVAL, str(error)) from error
        # As a number: a flag would keep each value that it has ever had.
        index = request.flags & int(vfio.FeatureFlag.INDEX_MASK)
        raise RefusedError(errno.ENOTTY, f"there is no device feature {index}")


class Server:
    """A UNIX socket on which one client at a time meets a `PciDevice`.

    path: of the socket. What a dead server left there is replaced, a live one is an error
        (`SocketInUseError`).
    """

    def __init__(self, path: str | Path, pci_device: PciDevice) -> None:
        self.path = str(path)
        self.pci = pci_device
        self._client: Link | None = None
        self._handshake_by = 0.0
        self._channels: list[Link] = []
        pci_device.new_channel = self._new_channel
        self.clients = 0
        """Clients so far, refused ones not counted."""
        self._listener = self._listen()

    def _listen(self) -> socket.socket:
        if os.path.lexists(self.path):
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise SocketInUseError(errno.EEXIST, f"{self.path} is there already and is no socket")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)  # its owner may be stuck
                try:
                    probe.connect(self.path)
                except OSError as error:
                    if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                        raise SocketInUseError(
                            error.errno, f"cannot take over {self.path}: {error}"
                        ) from error
                else:
                    raise SocketInUseError(errno.EADDRINUSE, f"another process serves {self.path}")
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        # Under its final name only once it takes connections: who sees it can connect.
        early = f"{self.path}.{os.getpid()}"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(early)
            listener.bind(early)
            listener.listen(8)
            os.rename(early, self.path)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"cannot serve {self.path}: {error.strerror or error}") from error
        self._identity = os.lstat(self.path).st_ino
        return listener

    @property
    def connected(self) -> bool:
        """A client is there."""
        return self._client is not None

    def poll(self) -> list[tuple[int, int]]:
        """Descriptors to watch and the events to watch them for."""
        watched = [(self._listener.fileno(), select.POLLIN)]
        if self._client is not None:
            watched.append(self._client.watched())
        watched += [channel.watched() for channel in self._channels]
        return watched

    def handle(self) -> bool:
        """Do what there is to do, without waiting. True if anything was done."""
        done = self._serve_client()
        self._hurry()
        for channel in list(self._channels):
            done = self._serve_channel(channel) or done
        return self._accept() or done

    def _new_channel(self) -> int:
        if len(self._channels) >= CHANNELS_MAX:
            raise OSError(errno.ENOSPC, f"there are {CHANNELS_MAX} channels already")
        ours, theirs = socket.socketpair()
        self._channels.append(Link(ours, fds_max=0))
        return theirs.detach()

    def _accept(self) -> bool:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("cannot accept a client: %s", error)
            return False
        if self._client is not None:
            self._serve_client()  # it may just have gone
        if self._client is not None:
            log.warning("refused a second client on %s", self.path)
            client.close()
            return True
        self._client = Link(client)
        self._handshake_by = time.monotonic() + HANDSHAKE_SECONDS
        self.clients += 1
        log.info("client connected to %s", self.path)
        return True

    def _hurry(self) -> None:
        """End a client that takes too long to say its version."""
        if self._client is not None and self.pci.version is None and time.monotonic() > self._handshake_by:
            log.warning("closing the connection on %s: no version within %g s", self.path, HANDSHAKE_SECONDS)
            self.drop()

    def _serve_client(self) -> bool:
        done = late = False
        until = time.monotonic() + TURN_SECONDS
        for _ in range(MESSAGES_PER_TURN):
            link = self._client
            if link is None:
                break
            try:
                if not link.flush() or late or (messages := link.receive()) is None:
                    break
                for message in messages:
                    reply = self.pci.execute(message)
                    passing, self.pci.passing = self.pci.passing, []
                    link.put(reply, passing)
                    late = time.monotonic() > until
            except ProtocolError as error:
                log.warning("closing the connection on %s: %s", self.path, error)
                self.drop()
            except EndOfLinkError:
                log.info("client on %s has gone", self.path)
                self.drop()
            except OSError as error:
                log.info("lost the client on %s: %s", self.path, error)
                self.drop()
            done = True
        return done

    def _serve_channel(self, channel: Link) -> bool:
        done = late = False
        until = time.monotonic() + TURN_SECONDS
        for _ in range(MESSAGES_PER_TURN):
            if channel not in self._channels:  # it went with the client
                break
            try:
                if not channel.flush() or late or (messages := channel.receive()) is None:
                    break
                for message in messages:
                    channel.put(self.pci.execute_on_channel(message))
                    late = time.monotonic() > until
            except (ProtocolError, EndOfLinkError, OSError) as error:
                if isinstance(error, ProtocolError):
                    log.warning("closing a channel of %s: %s", self.path, error)
                self._channels.remove(channel)
                channel.close()
            done = True
        return done

    @property
    def channels(self) -> int:
        """Channels that are open."""
        return len(self._channels)

    def flush(self) -> None:
        """Send replies as far as the client takes them."""
        if self._client is not None:
            try:
                self._client.flush()
            except OSError as error:
                log.info("lost the client on %s: %s", self.path, error)
                self.drop()

    def drop(self) -> None:
        """End the connection, if there is one, and put the device back as it was."""
        if self._client is None:
            return
        self._client.close()
        self._client = None
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self.pci.disconnect()

    def close(self) -> None:
        """Stop serving; the socket's file goes if it is still ours."""
        self.drop()
        self._listener.close()
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._identity:
                os.unlink(self.path)
