"""The MAC side of the core: AXI4-Stream source without back-pressure, checking sink."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import cocotb
from cocotb.triggers import Event, RisingEdge

__all__ = ["MacSink", "MacSource"]


def never() -> bool:
    return False


class MacSource:
    """Sends frames into `s_axis_rx{port}`. What is not valid carries garbage, as it may.

    gap: called before each beat; true for a cycle without one.
    """

    def __init__(self, dut, port: int, width: int, clock, rng: random.Random) -> None:
        def signal(name):
            return getattr(dut, f"s_axis_rx{port}_t{name}")

        self.data, self.keep, self.valid = signal("data"), signal("keep"), signal("valid")
        self.last, self.user = signal("last"), signal("user")
        self.width, self.clock, self.rng = width, clock, rng
        self.gap: Callable[[], bool] = never
        self.sent = 0
        self._queue: deque[tuple[bytes, bool]] = deque()
        self._work, self._done = Event(), Event()
        self._busy = False
        self.valid.value = 0
        self.user.value = 0
        cocotb.start_soon(self._run())

    def send(self, frame: bytes, *, error: bool = False) -> None:
        """Queue a frame; `error` is the MAC's verdict on its last beat."""
        assert frame
        self._queue.append((bytes(frame), error))
        self._done.clear()
        self._work.set()

    async def wait(self) -> None:
        """Until everything queued is on the wire."""
        while self._queue or self._busy:
            await self._done.wait()

    async def _run(self) -> None:
        edge, full = RisingEdge(self.clock), (1 << self.width) - 1
        while True:
            if not self._queue:
                self.valid.value = 0
                self._busy = False
                self._done.set()
                self._work.clear()
                await self._work.wait()
                await edge
            frame, error = self._queue.popleft()
            self._busy = True
            for at in range(0, len(frame), self.width):
                while self.gap():
                    self.valid.value = 0
                    self.data.value = self.rng.getrandbits(8 * self.width)
                    self.last.value = self.rng.getrandbits(1)
                    await edge
                part = frame[at : at + self.width]
                last = at + self.width >= len(frame)
                missing = self.width - len(part)
                self.data.value = int.from_bytes(part + self.rng.randbytes(missing), "little")
                self.keep.value = full >> missing
                self.last.value = last
                self.user.value = int(error and last)
                self.valid.value = 1
                await edge
            self.sent += 1


class MacSink:
    """Takes frames from `m_axis_tx{port}` and checks the rules of the stream.

    pause: called each cycle while frames come; true to hold `tready` low.
    """

    def __init__(self, dut, port: int, width: int, clock, reset) -> None:
        def signal(name):
            return getattr(dut, f"m_axis_tx{port}_t{name}")

        self.data, self.keep, self.valid = signal("data"), signal("keep"), signal("valid")
        self.last, self.user, self.ready = signal("last"), signal("user"), signal("ready")
        self.width, self.clock, self.reset = width, clock, reset
        self.pause: Callable[[], bool] = never
        self.frames: deque[bytes] = deque()
        self.arrived = Event()
        self.partial = bytearray()
        self.ready.value = 1
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        edge, rise = RisingEdge(self.clock), RisingEdge(self.valid)
        ready, held = True, None
        while True:
            await edge
            if self.reset.value:
                held = None
                self.partial.clear()
                continue
            if self.valid.value:
                beat = (int(self.data.value), int(self.keep.value), int(self.last.value), int(self.user.value))
                assert held in (None, beat), "the beat changed while it waited"
                held = None if ready else beat
                if ready:
                    self._take(*beat)
            else:
                assert held is None, "tvalid fell before the beat was taken"
                if not ready or self.pause is never:
                    ready = True
                    self.ready.value = 1
                    await rise
                    continue
            ready = not self.pause()
            self.ready.value = int(ready)

    def _take(self, data: int, keep: int, last: int, user: int) -> None:
        count = keep.bit_length()
        assert keep and keep == (1 << count) - 1, f"tkeep {keep:#x} has holes"
        assert last or count == self.width, f"tkeep {keep:#x} before the last beat"
        assert data >> 8 * count == 0, "bytes past the frame's end are not cleared"
        assert not user, "a frame was sent with an error mark"
        self.partial += data.to_bytes(self.width, "little")[:count]
        if last:
            assert len(self.partial) >= 60, f"a frame of {len(self.partial)} bytes was sent"
            self.frames.append(bytes(self.partial))
            self.partial.clear()
            self.arrived.set()
