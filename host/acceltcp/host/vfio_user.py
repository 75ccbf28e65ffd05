"""Client of the vfio-user protocol: a PCI device in another process, over a UNIX socket.

Registers are REGION_READ and REGION_WRITE of BAR 0, writes posted (no reply asked for);
memory is a memfd whose descriptor goes along with DMA_MAP; interrupts are eventfds handed
over by DEVICE_SET_IRQS. One request is outstanding at a time; each reply has a time limit.

The socket is one stream with one reader, so processes that share the device have a channel each
(`SubRegionType.CHANNEL`): a socket for accesses to registers and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import TypeVar

from acceltcp.abi import pci
from acceltcp.abi.vfio_user import (
    CHANNELS,
    HEADER_BYTES,
    MAX_DATA_XFER_SIZE_DEFAULT,
    MAX_MSG_FDS_DEFAULT,
    VERSION_MAJOR,
    VERSION_MINOR,
    Command,
    DeviceFlag,
    DeviceInfo,
    DmaFlag,
    DmaMap,
    Header,
    HeaderFlag,
    Irq,
    IrqInfo,
    IrqSet,
    IrqSetFlag,
    Region,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    SubRegion,
    SubRegionType,
    Version,
    command_message,
    pack_version_data,
    unpack_version_data,
)

from .dma import DmaRegion, align_up
from .errors import DeviceError, DeviceLostError, DeviceTimeoutError
from .shared_transport import SharedTransport
from .transport import Transport

__all__ = ["VfioUserTransport"]

PAGE = mmap.PAGESIZE
_IOVA_START = 1 << 32
_IOVA_ALIGNMENT = 2 << 20
_PCI_ID = struct.Struct("<HH")
_PCI_COMMAND = 4  # PCI configuration space: command register
_PCI_COMMAND_MEMORY_AND_BUS_MASTER = 0x6

# The hot path: header, access and one register's value in one struct.
_WRITE32 = struct.Struct(Header.format.format + RegionAccess.format.format.lstrip("=") + "I")
_READ32 = struct.Struct(Header.format.format + RegionAccess.format.format.lstrip("="))
_REPLY32 = _WRITE32
_REPLY_FLAGS = (HeaderFlag.REPLY, HeaderFlag.REPLY | HeaderFlag.ERROR)

_MESSAGE_BYTES_MAX = MAX_DATA_XFER_SIZE_DEFAULT + 256
"""Longest message that is taken: a full data transfer and its headers."""

_UNASKED_MAX = 64
"""Commands of the device that are refused in one look for them; one that sends more does not mean to stop."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Who gets the memory's descriptor must not cut it short: we would die of touching what is gone."""

_Layout = TypeVar("_Layout", DeviceInfo, RegionInfo, IrqInfo)


class VfioUserTransport(Transport):
    """A device behind the UNIX socket at `path`.

    timeout: seconds within which each reply has to come.
    connect: makes the connection, from the path and the time-out.
    """

    _transfer_max = MAX_DATA_XFER_SIZE_DEFAULT
    """Most bytes of one access."""

    def __init__(
        self,
        path: str,
        *,
        timeout: float = 10.0,
        description: str | None = None,
        connect: Callable[[str, float], socket.socket] | None = None,
    ) -> None:
        self.description = description or f"vfio-user:{path}"
        self._timeout = timeout
        self._msg_id = 0
        self._next_iova = _IOVA_START
        self._maps: list[tuple[memoryview, mmap.mmap]] = []
        self._eventfds: list[int] = []
        self._max_fds = MAX_MSG_FDS_DEFAULT
        self._lost: str | None = None
        self._early = b""
        self._has_channels = False
        self._begin((connect or _connect)(path, timeout))
        try:
            self._negotiate()
            self._identify()
        except BaseException:
            self.close()
            raise

    def _begin(self, link: socket.socket) -> None:
        self._socket: socket.socket | None = link
        self._poll = select.poll()
        self._poll.register(link, select.POLLIN)

    # -- set-up ------------------------------------------------------------------------

    def _negotiate(self) -> None:
        ours = Version(VERSION_MAJOR, VERSION_MINOR)
        wishes = {"max_msg_fds": 8, "max_data_xfer_size": MAX_DATA_XFER_SIZE_DEFAULT, CHANNELS: True}
        capabilities = pack_version_data(wishes)
        try:
            reply = self._request(Command.VERSION, ours.pack() + capabilities)
        except DeviceLostError as error:
            raise DeviceLostError(f"{error} Perhaps another driver has it: it takes one at a time.") from None
        try:
            theirs = Version.unpack(reply)
            granted = unpack_version_data(bytes(reply[Version.byte_size :]))
        except ValueError as error:
            raise DeviceError(f"{self.description} sent a version reply that makes no sense: {error}.") from None
        if theirs.major != VERSION_MAJOR or theirs.minor > VERSION_MINOR:
            raise DeviceError(
                f"{self.description} speaks vfio-user {theirs.major}.{theirs.minor}, "
                f"this driver {VERSION_MAJOR}.{VERSION_MINOR}."
            )
        self._max_fds = _limit(granted.get("max_msg_fds"), 1, MAX_MSG_FDS_DEFAULT, 64)
        default = MAX_DATA_XFER_SIZE_DEFAULT
        self._transfer_max = _limit(granted.get("max_data_xfer_size"), 4, default, default)
        self._has_channels = granted.get(CHANNELS) is True

    def _identify(self) -> None:
        info = self._ask(Command.DEVICE_GET_INFO, DeviceInfo(DeviceInfo.byte_size))
        if not info.flags & DeviceFlag.PCI:
            raise DeviceError(f"{self.description} is not a PCI device.")
        self._can_reset = bool(info.flags & DeviceFlag.RESET)
        bar = self._region_info(Region(pci.BAR_REGISTERS))
        wanted = RegionFlag.READ | RegionFlag.WRITE
        if bar.size < pci.BAR_REGISTERS_BYTES or bar.flags & wanted != wanted:
            raise DeviceError(
                f"{self.description} has a BAR {pci.BAR_REGISTERS} of {bar.size} bytes; "
                f"an AccelTCP NIC has {pci.BAR_REGISTERS_BYTES}."
            )
        vendor, device = _PCI_ID.unpack(self._region_read(Region.CONFIG, 0, _PCI_ID.size))
        if (vendor, device) != (pci.VENDOR_ID, pci.DEVICE_ID):
            raise DeviceError(
                f"{self.description} is PCI device {vendor:04x}:{device:04x}, "
                f"not {pci.IDENTITY}."
            )
        (command,) = struct.unpack("<H", self._region_read(Region.CONFIG, _PCI_COMMAND, 2))
        value = struct.pack("<H", command | _PCI_COMMAND_MEMORY_AND_BUS_MASTER)
        access = RegionAccess(_PCI_COMMAND, Region.CONFIG, len(value))
        self._request(Command.REGION_WRITE, access.pack() + value)
        self._vectors = self._ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(IrqInfo.byte_size, 0, Irq.MSIX)).count

    def _ask(self, command: Command, request: _Layout) -> _Layout:
        """A command whose request and reply have the same layout."""
        reply = self._request(command, request.pack())
        try:
            return type(request).unpack(reply)
        except ValueError as error:
            raise DeviceError(f"{self.description} gave no proper answer to {command.name}: {error}.") from None

    def _region_info(self, region: Region) -> RegionInfo:
        return self._ask(Command.DEVICE_GET_REGION_INFO, RegionInfo(RegionInfo.byte_size, 0, region))

    def _region_read(self, region: Region, offset: int, count: int) -> bytes:
        access = RegionAccess(offset, region, count).pack()
        reply = self._request(Command.REGION_READ, access)
        return self._data(reply, access, count)

    def _data(self, reply: bytes, access: bytes, count: int) -> bytes:
        """The data in the reply to a read."""
        at = RegionAccess.byte_size
        if len(reply) != at + count:
            raise DeviceError(f"{self.description} answered a read of {count} bytes with {max(len(reply) - at, 0)}.")
        if reply[:at] != access:
            raise DeviceError(f"{self.description} answered a read with the data of another one.")
        return reply[at:]

    # -- the seam ----------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        msg_id = self._msg_id = (self._msg_id + 1) & 0xFFFF
        request = _READ32.pack(
            msg_id, Command.REGION_READ, _READ32.size, HeaderFlag.COMMAND, 0, offset, pci.BAR_REGISTERS, 4
        )
        self._send(request)
        reply = self._receive_reply(msg_id, Command.REGION_READ)
        return int.from_bytes(self._data(reply, request[HEADER_BYTES:], 4), "little")

    def read_block(self, offset: int, count: int) -> list[int]:
        data, end, most = b"", offset + 4 * count, self._transfer_max & ~3
        for at in range(offset, end, most):
            data += self._region_read(Region(pci.BAR_REGISTERS), at, min(most, end - at))
        return list(struct.unpack(f"<{count}I", data))

    def write32(self, offset: int, value: int) -> None:
        msg_id = self._msg_id = (self._msg_id + 1) & 0xFFFF
        self._send(
            _WRITE32.pack(
                msg_id, Command.REGION_WRITE, _WRITE32.size, HeaderFlag.NO_REPLY, 0,
                offset, pci.BAR_REGISTERS, 4, value,
            )
        )  # fmt: skip

    def map_memory(self, size: int) -> DmaRegion:
        size = align_up(size, PAGE)
        fd = os.memfd_create("acceltcp-dma", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            mapping = mmap.mmap(fd, size)
            address = self._next_iova
            request = DmaMap(DmaMap.byte_size, DmaFlag.READ | DmaFlag.WRITE, 0, address, size)
            self._request(Command.DMA_MAP, request.pack(), [fd])
        finally:
            os.close(fd)
        self._next_iova = align_up(address + size, _IOVA_ALIGNMENT)
        view = memoryview(mapping)
        self._maps.append((view, mapping))
        return DmaRegion(view, address, size)

    def enable_interrupts(self, count: int) -> list[int]:
        if not 1 <= count <= self._vectors:
            raise DeviceError(f"{self.description} has {self._vectors} interrupt vectors, not {count}.")
        while len(self._eventfds) < count:
            self._eventfds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        flags = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER
        for start in range(0, count, self._max_fds):
            fds = self._eventfds[start : min(start + self._max_fds, count)]
            request = IrqSet(IrqSet.byte_size, flags, Irq.MSIX, start, len(fds))
            self._request(Command.DEVICE_SET_IRQS, request.pack(), fds)
        return self._eventfds[:count]

    def reset(self) -> None:
        if self._can_reset:
            self._request(Command.DEVICE_RESET, b"")

    def share(self, memory: int) -> Transport:
        if not self._has_channels:
            raise DeviceError(f"{self.description} takes no other process beside this one.")
        region = self.map_memory(memory)
        size = RegionIoFds.byte_size + SubRegion.byte_size
        request = RegionIoFds(size, 0, pci.BAR_REGISTERS).pack()
        reply, fds = self._request_fds(Command.DEVICE_GET_REGION_IO_FDS, request, 1)
        link = _stream_socket(fds[0]) if fds else None
        if link is None:
            raise DeviceError(f"{self.description} gave no channel.")
        if len(reply) != size or SubRegion.unpack(reply, RegionIoFds.byte_size).type != SubRegionType.CHANNEL:
            link.close()
            raise DeviceError(f"{self.description} gave no channel.")
        return _Channel(link, region, self._eventfds, self._timeout, self.description)

    def fileno(self) -> int | None:
        return self._socket.fileno() if self._socket is not None else None

    def check(self) -> None:
        if self._socket is None:
            raise DeviceLostError(f"{self.description} is closed.")
        if self._lost is not None:
            raise DeviceLostError(f"{self.description} went away: {self._lost}.")
        # Nothing is outstanding now, so what comes is the end, or a command that we refuse.
        deadline = time.monotonic() + self._timeout
        for _ in range(_UNASKED_MAX):
            if not self._poll.poll(0):
                return
            header, _ = self._receive_message(deadline)
            if not self._refuse(header):
                raise self._lose(f"it answered message {header.msg_id}, which nobody asked")
        raise self._lose(f"it sent {_UNASKED_MAX} commands at once, but has none to give")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for fd in self._eventfds:
            os.close(fd)
        self._eventfds = []
        for view, mapping in self._maps:
            # Somebody may still hold a slice; the memory then goes when the slice does.
            with contextlib.suppress(BufferError):
                view.release()
                mapping.close()
        self._maps = []

    # -- messages ----------------------------------------------------------------------

    def _request(self, command: Command, payload: bytes, fds: list[int] | None = None) -> bytes:
        msg_id = self._msg_id = (self._msg_id + 1) & 0xFFFF
        self._send(command_message(msg_id, command, payload), fds)
        return self._receive_reply(msg_id, command)

    def _request_fds(self, command: Command, payload: bytes, most: int) -> tuple[bytes, list[int]]:
        """As `_request`, for a reply with up to `most` descriptors."""
        msg_id = self._msg_id = (self._msg_id + 1) & 0xFFFF
        self._send(command_message(msg_id, command, payload))
        assert self._socket is not None
        if not self._poll.poll(self._timeout * 1000):
            raise self._late()
        try:  # they come with the first byte of the reply
            peeked, fds, _, _ = socket.recv_fds(self._socket, 1, most, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise self._lose(error.strerror or str(error)) from None
        self._early = peeked
        try:
            return self._receive_reply(msg_id, command), fds
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def _lose(self, reason: str) -> DeviceLostError:
        self._lost = reason
        return DeviceLostError(f"{self.description} went away: {reason}.")

    def _late(self) -> DeviceTimeoutError:
        self._lost = f"it did not answer within {self._timeout:g} s"
        return DeviceTimeoutError(f"{self.description} did not answer within {self._timeout:g} s.")

    def _send(self, message: bytes, fds: list[int] | None = None) -> None:
        if self._socket is None or self._lost is not None:
            self.check()
            raise AssertionError
        try:
            if fds:
                sent = socket.send_fds(self._socket, [message], fds)
            else:
                sent = self._socket.send(message)
            if sent < len(message):
                self._socket.sendall(message[sent:])
        except TimeoutError:
            raise self._lose(f"it took no message for {self._timeout:g} s") from None
        except OSError as error:
            raise self._lose(error.strerror or str(error)) from None

    def _receive_exactly(self, count: int, deadline: float) -> bytes:
        assert self._socket is not None
        data, self._early = self._early, b""
        while len(data) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000 + 1):
                raise self._late()
            try:
                part = self._socket.recv(count - len(data))
            except OSError as error:
                raise self._lose(error.strerror or str(error)) from None
            if not part:
                raise self._lose("the connection was closed by the other side")
            data += part
        return data

    def _receive_message(self, deadline: float) -> tuple[Header, bytes]:
        header = Header.unpack(self._receive_exactly(HEADER_BYTES, deadline))
        if not HEADER_BYTES <= header.size <= _MESSAGE_BYTES_MAX:
            raise self._lose(f"it sent a message of {header.size} bytes")
        return header, self._receive_exactly(header.size - HEADER_BYTES, deadline)

    def _refuse(self, header: Header) -> bool:
        """Whether the message was a command; if so it is refused, because all memory is shared
        by descriptor and the device has nothing to ask us."""
        if header.flags & HeaderFlag.TYPE_MASK != HeaderFlag.COMMAND:
            return False
        if not header.flags & HeaderFlag.NO_REPLY:
            flags = HeaderFlag.REPLY | HeaderFlag.ERROR
            self._send(Header(header.msg_id, header.command, HEADER_BYTES, flags, errno.ENOTSUP).pack())
        return True

    def _receive_reply(self, msg_id: int, command: Command) -> bytes:
        deadline = time.monotonic() + self._timeout
        while True:
            header, body = self._receive_message(deadline)
            if self._refuse(header):
                continue
            if header.msg_id != msg_id:
                raise self._lose(f"it answered message {header.msg_id}, but {msg_id} was asked")
            if header.command != command:
                raise self._lose(f"it answered {command.name} as if it were command {header.command}")
            if header.flags not in _REPLY_FLAGS:
                raise self._lose(f"it answered with flags {header.flags:#x}, which are none of a reply")
            if header.flags & HeaderFlag.ERROR:
                reason = _reason(header.error)
                raise DeviceError(f"{self.description} refused {command.name}: {reason}.")
            return body


class _Channel(SharedTransport, VfioUserTransport):
    """What `share` gives: registers over a channel, a piece of memory, interrupts that somebody else has enabled."""

    def __init__(
        self, link: socket.socket, region: DmaRegion, eventfds: list[int], timeout: float, description: str
    ) -> None:
        SharedTransport.__init__(self, description, region, eventfds)
        self._timeout = timeout
        self._msg_id = 0
        self._lost = None
        self._early = b""
        link.settimeout(timeout)
        self._begin(link)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _limit(value: object, least: int, default: int, most: int) -> int:
    """A limit that the other side names; what makes no sense counts as not named."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        return default
    return min(value, most)


def _reason(number: int) -> str:
    """An errno of the other side in words."""
    if not number:
        return "no reason given"
    return os.strerror(number) if number in errno.errorcode else f"error {number}"


def _stream_socket(fd: int) -> socket.socket | None:
    """The descriptor as a stream socket of this machine; closed and None if it is something else."""
    try:
        link = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return None
    if link.family == socket.AF_UNIX and link.type == socket.SOCK_STREAM:
        return link
    link.close()
    return None


def _connect(path: str, timeout: float) -> socket.socket:
    if not path:
        raise DeviceError("A vfio-user device is given as vfio-user:PATH, with the path of its socket.")
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(timeout)
    try:
        link.connect(path)
    except OSError as error:
        link.close()
        if error.errno == errno.ENOENT:
            raise DeviceError(f"There is no device at {path}: no such socket.") from None
        if error.errno == errno.ECONNREFUSED:
            raise DeviceError(f"There is no device at {path}: nobody listens on that socket.") from None
        raise DeviceError(f"The device at {path} cannot be reached: {error.strerror or error}.") from None
    return link
