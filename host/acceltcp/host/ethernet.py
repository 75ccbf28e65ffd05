"""`ethernet:IFACE[,MAC]` - a board behind an Ethernet cable: the host link (docs/host-link.md) on a raw socket.

A thread answers the board's requests for memory and its interrupts, repeats the driver's request while it has no reply, and
notices when the board falls silent. Calls of the driver send by themselves and wait for the thread.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import select
import socket
import threading
import time

from acceltcp.abi.host_link import VERSION, LinkKind
from acceltcp.abi.registers import QUEUES_MAX
from acceltcp.abi.wire import EtherType

from .dma import DmaRegion, align_up
from .errors import AbiMismatchError, DeviceError, DeviceLostError, DeviceTimeoutError
from .ethernet_link import BROADCAST, Frame, LinkRequests, find_memory, pack_frame, parse_frame
from .transport import Transport

__all__ = ["EthernetTransport", "open_ethernet"]

RETRY_S = 0.02
"""After so long without a reply a request is repeated."""

PING_S = 0.5
SILENCE_S = 3.0
"""A board that has said nothing for so long is gone."""

TIMEOUT_S = 10.0
"""The reply to an access has to come within this time, though the board may say other things."""

BATCH = 64
"""Frames that are taken before the clock is looked at again."""

_BUS_START = 1 << 32
_BUS_ALIGNMENT = 2 << 20
_GONE = (errno.ENETDOWN, errno.ENXIO, errno.ENODEV, errno.EBADF)


class EthernetTransport(Transport):
    """A board on the other end of `link`.

    link: a socket whose datagrams are Ethernet frames; it belongs to the transport. mac: of our end. board: MAC address of the
    board; None: whichever answers first. silence: seconds after which a silent board is gone.
    Raises `DeviceError` when no board answers.
    """

    def __init__(
        self, link: socket.socket, mac: int, board: int | None = None, *, silence: float = SILENCE_S, description: str = "ethernet:"
    ) -> None:
        self.description = description
        self._link = link
        self._link.setblocking(False)
        self._mac = mac
        self._board = board
        self._silence = silence
        self._random = random.SystemRandom()
        self._regions: list[DmaRegion] = []
        self._mappings: list[mmap.mmap] = []
        self._next_address = _BUS_START
        self._eventfds: list[int] = []
        self._lost: DeviceError | None = None
        self._closed = False
        self._gone = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._callers = threading.RLock()  # one access at a time
        self._changed = threading.Condition()  # guards what follows
        self._session = 0
        self._requests = LinkRequests(self._find, self._interrupt)
        self._sequence = 0
        self._pending: bytes | None = None  # our request, until its reply comes
        self._expected: tuple[int, int] = (0, 0)  # kind and sequence of that reply
        self._value = 0
        self._repeat_at = 0.0
        self._heard_at = self._ping_at = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="acceltcp-ethernet", daemon=True)
        self._thread.start()
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    # -- the driver's calls ------------------------------------------------------------

    def read32(self, offset: int) -> int:
        with self._callers:
            self._request(LinkKind.READ, address=offset)
            self._finish()
            return self._value

    def write32(self, offset: int, value: int) -> None:
        with self._callers:
            self._request(LinkKind.WRITE, address=offset, value=value)

    def map_memory(self, size: int) -> DmaRegion:
        self.check()
        size = align_up(size, mmap.PAGESIZE)
        mapping = mmap.mmap(-1, size)
        with self._changed:
            region = DmaRegion(memoryview(mapping), self._next_address, size)
            self._next_address = align_up(self._next_address + size, _BUS_ALIGNMENT)
            self._mappings.append(mapping)
            self._regions.append(region)
        return region

    def enable_interrupts(self, count: int) -> list[int]:
        if not 1 <= count <= QUEUES_MAX:
            raise DeviceError(f"{self.description} has at most {QUEUES_MAX} interrupt vectors, not {count}.")
        self.check()
        while len(self._eventfds) < count:
            self._eventfds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return self._eventfds[:count]

    def reset(self) -> None:
        self._begin()

    def fileno(self) -> int | None:
        return self._gone if not self._closed else None

    def check(self) -> None:
        if self._closed:
            raise DeviceLostError(f"{self.description} is closed.")
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        if self._closed:
            return
        if self._lost is None and self._board is not None:
            with self._callers, contextlib.suppress(DeviceError):
                self._request(LinkKind.BYE)
                self._finish(timeout=0.2)
        self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._link.close()
        for fd in (*self._eventfds, self._gone, self._wake):
            os.close(fd)
        self._eventfds = []
        for region, mapping in zip(self._regions, self._mappings, strict=True):
            # Somebody may still hold a slice; the memory then goes when the slice does.
            with contextlib.suppress(BufferError):
                region.view.release()
                mapping.close()
        self._regions, self._mappings = [], []

    # -- requests ----------------------------------------------------------------------

    def _begin(self) -> None:
        """A new session; the board is reset."""
        with self._callers:
            with self._changed:
                self._pending = None
                self._session = self._random.randrange(1, 1 << 32)
                self._requests = LinkRequests(self._find, self._interrupt)
                self._sequence = 0
            self._request(LinkKind.HELLO)
            self._finish()

    def _request(self, kind: LinkKind, **fields: int) -> None:
        """Send a request once the one before has its reply."""
        self._finish()
        with self._changed:
            numbered = kind in (LinkKind.READ, LinkKind.WRITE)
            if numbered:
                self._sequence = (self._sequence + 1) & 0xFFFF
            sequence = self._sequence if numbered else 0
            board = BROADCAST if self._board is None else self._board
            self._pending = pack_frame(board, self._mac, kind=kind, session=self._session, sequence=sequence, **fields)
            self._expected = (kind, sequence)
            now = time.monotonic()
            self._repeat_at = now + RETRY_S
            if kind == LinkKind.HELLO:
                self._heard_at = now
            self._send(self._pending)

    def _finish(self, timeout: float = TIMEOUT_S) -> None:
        """Wait for the reply to the request under way, if there is one."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._pending is None or self._lost is not None, timeout):
                raise DeviceTimeoutError(f"{self.description} did not answer an access within {timeout:g} s.")
            self.check()

    def _send(self, frame: bytes) -> None:
        try:
            self._link.send(frame)
        except OSError as error:  # a full queue is a lost frame, which is repeated
            if error.errno in _GONE:
                self._lose(self._went_away(error.strerror or str(error)))

    def _went_away(self, reason: str) -> DeviceLostError:
        return DeviceLostError(f"{self.description} went away: {reason}.")

    def _lose(self, error: DeviceError) -> None:
        """From now on every call raises this."""
        with self._changed:
            if self._lost is None:
                self._lost = error
                os.eventfd_write(self._gone, 1)
            self._changed.notify_all()

    # -- the thread --------------------------------------------------------------------

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._closed and self._lost is None:
            poll.poll(RETRY_S * 1000)
            try:
                for _ in range(BATCH):
                    frame = parse_frame(self._link.recv(1 << 16))
                    if frame is not None:
                        self._take(frame)
            except BlockingIOError:
                pass
            except OSError as error:
                self._lose(self._went_away(error.strerror or str(error)))
            self._work(time.monotonic())

    def _work(self, now: float) -> None:
        """What is due by time."""
        with self._changed:
            if self._pending is not None and now >= self._repeat_at:
                self._repeat_at = now + RETRY_S
                self._send(self._pending)
            if now - self._heard_at > self._silence:
                self._lose(
                    DeviceError(f"No board answers at {self.description}.")
                    if self._board is None
                    else self._went_away(f"nothing has been heard of it for {self._silence:g} s")
                )
            elif now >= self._ping_at and self._board is not None:
                self._ping_at = now + PING_S
                self._send(pack_frame(self._board, self._mac, kind=LinkKind.PING, session=self._session))

    def _take(self, frame: Frame) -> None:
        fields = frame.fields
        with self._changed:
            if frame.dst != self._mac or fields["session"] != self._session or self._board not in (None, frame.src):
                return
            reply = (fields["kind"], fields["sequence"]) if fields["reply"] else None
            if fields["version"] != VERSION:
                self._lose(
                    AbiMismatchError(f"{self.description} speaks version {fields['version']} of the host link, this driver {VERSION}.")
                )
                return
            if self._board is None:
                if reply != (LinkKind.HELLO, 0):
                    return
                self._board = frame.src
            self._heard_at = time.monotonic()
            if reply is None:
                answer = self._requests.answer(frame)
                if answer is not None:
                    self._send(answer)
            elif self._pending is not None and reply == self._expected:
                self._value = fields["value"]
                self._pending = None
                self._changed.notify_all()

    def _find(self, address: int, size: int) -> memoryview | None:
        return find_memory(self._regions, address, size)

    def _interrupt(self, vector: int) -> None:
        if vector < len(self._eventfds):
            with contextlib.suppress(BlockingIOError):  # it is at its greatest number: more than told already
                os.eventfd_write(self._eventfds[vector], 1)


def open_ethernet(interface: str, board: int | None, description: str) -> EthernetTransport:
    """The board on that network interface. board: its MAC address, None for any. Raises `DeviceError`."""
    try:
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EtherType.HOST_LINK))
    except PermissionError:
        raise DeviceError(f"Device {description!r} needs a raw socket: root, or CAP_NET_RAW.") from None
    try:
        link.bind((interface, EtherType.HOST_LINK))
        mac = int.from_bytes(link.getsockname()[4], "big")
    except OSError as error:
        link.close()
        raise DeviceError(f"Network interface {interface!r} cannot be used: {error.strerror or error}.") from None
    return EthernetTransport(link, mac, board, description=description)
