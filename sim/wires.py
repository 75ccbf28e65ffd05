"""What the MAC ports of a simulated NIC are plugged into.

A wire is polled, never waited for: `receive(now)` gives the frames that have arrived for the NIC
by then, `send(frame, now)` takes one from it. `now` is protocol time in seconds. Wires can be
stacked: `Impaired` spoils what passes, `Captured` writes it to a file. Frames have no FCS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import heapq
import logging
import os
import random
import struct
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .pcap import PcapPacket, PcapWriter, read_pcap

__all__ = [
    "Captured",
    "Impaired",
    "Impairment",
    "NullWire",
    "PairWire",
    "ReplayWire",
    "TapWire",
    "Wire",
    "pad_frame",
]

log = logging.getLogger("acceltcp.sim")

FRAME_BYTES_MIN = 60
"""Shortest frame without FCS; what is shorter is padded on its way to the wire."""

BATCH = 64
"""Most frames taken from a wire at a time."""


def pad_frame(frame: bytes) -> bytes:
    """A frame as a MAC sends it: zeros up to the shortest frame."""
    return frame + bytes(FRAME_BYTES_MIN - len(frame)) if len(frame) < FRAME_BYTES_MIN else frame


class Wire(ABC):
    """One end of a cable; the NIC is at the other."""

    def filenos(self) -> list[int]:
        """Descriptors that become readable when frames arrive."""
        return []

    @abstractmethod
    def receive(self, now: float) -> list[bytes]:
        """Frames that have arrived for the NIC, a bounded number."""

    @abstractmethod
    def send(self, frame: bytes, now: float) -> None:
        """Take a frame from the NIC."""

    def work(self, now: float) -> None:  # noqa: B027
        """Do what time demands in the direction from the NIC."""

    def deadline(self) -> float | None:
        """When `receive` or `work` has something to do, if a descriptor does not tell."""
        return None

    def close(self) -> None:  # noqa: B027
        """Unplug."""


class NullWire(Wire):
    """Nothing plugged in: frames vanish."""

    def receive(self, now: float) -> list[bytes]:
        return []

    def send(self, frame: bytes, now: float) -> None:
        pass


class TapWire(Wire):
    """A TAP device of the kernel, whose network stack is then the peer.

    name: of the device; made if it does not exist, which needs CAP_NET_ADMIN in its network
        namespace. Bringing it up and giving it addresses is the user's.
    """

    TUNSETIFF = 0x400454CA
    IFF_TAP, IFF_NO_PI = 0x0002, 0x1000

    def __init__(self, name: str, device: str = "/dev/net/tun") -> None:
        encoded = name.encode()
        if not 1 <= len(encoded) <= 15 or b"/" in encoded:
            raise ValueError(f"a TAP device's name must have 1 to 15 bytes and no '/', not {name!r}")
        try:
            self._fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise OSError(error.errno, f"cannot open {device}: {error.strerror}") from error
        try:
            request = struct.pack("16sH22x", encoded, self.IFF_TAP | self.IFF_NO_PI)
            answer = fcntl.ioctl(self._fd, self.TUNSETIFF, request)
        except OSError as error:
            os.close(self._fd)
            hint = "; it needs CAP_NET_ADMIN" if error.errno == errno.EPERM else ""
            raise OSError(error.errno, f"cannot use TAP device {name}: {error.strerror}{hint}") from error
        self.name = answer[:16].rstrip(b"\0").decode()
        """Name that the kernel gave."""
        self.refused = 0
        """Frames that the kernel did not take (the device is down or its queue full)."""

    def filenos(self) -> list[int]:
        return [self._fd]

    def receive(self, now: float) -> list[bytes]:
        frames: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(frames) < BATCH:
                frames.append(pad_frame(os.read(self._fd, 1 << 17)))
        return frames

    def send(self, frame: bytes, now: float) -> None:
        try:
            os.write(self._fd, frame)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EAGAIN, errno.ENOBUFS, errno.EINVAL):
                raise
            self.refused += 1

    def close(self) -> None:
        os.close(self._fd)


class PairWire(Wire):
    """One end of a cable between two ports; `pair` makes both."""

    def __init__(self) -> None:
        self._arrived: deque[bytes] = deque()
        self._other: PairWire | None = None

    @classmethod
    def pair(cls) -> tuple[PairWire, PairWire]:
        """Both ends."""
        one, two = cls(), cls()
        one._other, two._other = two, one
        return one, two

    def receive(self, now: float) -> list[bytes]:
        count = min(len(self._arrived), BATCH)
        return [self._arrived.popleft() for _ in range(count)]

    def send(self, frame: bytes, now: float) -> None:
        assert self._other is not None
        self._other._arrived.append(pad_frame(frame))

    def deadline(self) -> float | None:
        return 0.0 if self._arrived else None


class ReplayWire(Wire):
    """Frames of a pcap file arrive; frames from the NIC vanish.

    path: the file.
    speed: 1 keeps the gaps of the file, 2 halves them, 0 leaves none. The first frame comes
        at the first poll.
    """

    def __init__(self, path: str | Path, *, speed: float = 1.0) -> None:
        if speed < 0:
            raise ValueError(f"speed must not be negative, not {speed}")
        self._packets: deque[PcapPacket] = deque(read_pcap(path))
        self._speed = speed
        self._origin_ns = self._packets[0].time_ns if self._packets else 0
        self._start: float | None = None

    def _due(self, packet: PcapPacket) -> float:
        if not self._speed or self._start is None:
            return 0.0
        return self._start + (packet.time_ns - self._origin_ns) / 1e9 / self._speed

    def receive(self, now: float) -> list[bytes]:
        if self._start is None:
            self._start = now
        frames: list[bytes] = []
        while self._packets and len(frames) < BATCH and self._due(self._packets[0]) <= now:
            frames.append(pad_frame(self._packets.popleft().data))
        return frames

    def send(self, frame: bytes, now: float) -> None:
        pass

    def deadline(self) -> float | None:
        return self._due(self._packets[0]) if self._packets else None

    @property
    def finished(self) -> bool:
        """Every frame has arrived."""
        return not self._packets


@dataclass(frozen=True)
class Impairment:
    """What one direction of a wire does to frames; probabilities from 0 to 1.

    loss: a frame vanishes.
    duplicate: it comes twice.
    reorder: it comes `reorder_delay` seconds late, so that others overtake it.
    corrupt: one of its bits flips, unnoticed by the MAC.
    delay: seconds that every frame takes.
    jitter: up to so many seconds more, evenly spread; order is kept.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    reorder_delay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder", "corrupt"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability from 0 to 1, not {value!r}")
        for name in ("delay", "jitter", "reorder_delay"):
            value = getattr(self, name)
            if not 0 <= value < 3600:
                raise ValueError(f"{name} must be from 0 to 3600 seconds, not {value!r}")


class _Direction:
    """Applies an `Impairment`; the same seed and frames do the same.

    Every frame draws the same number of random values whatever becomes of it, so that one
    setting does not change what another does.
    """

    def __init__(self, impairment: Impairment, seed: object) -> None:
        self._what = impairment
        self._rng = random.Random(repr(seed))
        self._queue: list[tuple[float, int, bytes]] = []
        self._count = 0
        self._last = 0.0

    def put(self, frame: bytes, now: float) -> None:
        what = self._what
        loss, duplicate, reorder, corrupt, bit, jitter = (self._rng.random() for _ in range(6))
        if loss < what.loss:
            return
        if corrupt < what.corrupt:
            spoiled = bytearray(frame)
            at, lane = divmod(int(bit * 8 * len(frame)), 8)
            spoiled[at] ^= 1 << lane
            frame = bytes(spoiled)
        # Without reordering a frame never comes before an earlier one.
        due = max(self._last, now + what.delay + jitter * what.jitter)
        if reorder < what.reorder:
            due += what.reorder_delay
        else:
            self._last = due
        for _ in range(2 if duplicate < what.duplicate else 1):
            heapq.heappush(self._queue, (due, self._count, frame))
            self._count += 1

    def take(self, now: float) -> Iterable[bytes]:
        while self._queue and self._queue[0][0] <= now:
            yield heapq.heappop(self._queue)[2]

    def deadline(self) -> float | None:
        return self._queue[0][0] if self._queue else None


class Impaired(Wire):
    """A wire that spoils what passes.

    to_nic, from_nic: what happens in each direction.
    seed: of all chances; the directions have separate sequences.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        to_nic: Impairment = Impairment(),
        from_nic: Impairment = Impairment(),
        seed: object = 0,
    ) -> None:
        self._wire = wire
        self._in = _Direction(to_nic, (seed, "to"))
        self._out = _Direction(from_nic, (seed, "from"))

    def filenos(self) -> list[int]:
        return self._wire.filenos()

    def receive(self, now: float) -> list[bytes]:
        for frame in self._wire.receive(now):
            self._in.put(frame, now)
        return list(self._in.take(now))

    def send(self, frame: bytes, now: float) -> None:
        self._out.put(frame, now)
        self.work(now)

    def work(self, now: float) -> None:
        for frame in self._out.take(now):
            self._wire.send(frame, now)
        self._wire.work(now)

    def deadline(self) -> float | None:
        times = (self._in.deadline(), self._out.deadline(), self._wire.deadline())
        return min((when for when in times if when is not None), default=None)

    def close(self) -> None:
        self._wire.close()


class Captured(Wire):
    """A wire whose traffic, in both directions and as the NIC sees it, goes to a pcap file.

    clock: gives the timestamps, in nanoseconds since 1970.
    """

    def __init__(self, wire: Wire, writer: PcapWriter, clock: Callable[[], int] = time.time_ns) -> None:
        self._wire = wire
        self._writer = writer
        self._clock = clock

    def filenos(self) -> list[int]:
        return self._wire.filenos()

    def receive(self, now: float) -> list[bytes]:
        frames = self._wire.receive(now)
        for frame in frames:
            self._writer.write(self._clock(), frame)
        return frames

    def send(self, frame: bytes, now: float) -> None:
        self._writer.write(self._clock(), frame)
        self._wire.send(frame, now)

    def work(self, now: float) -> None:
        self._wire.work(now)

    def deadline(self) -> float | None:
        return self._wire.deadline()

    def close(self) -> None:
        self._wire.close()
