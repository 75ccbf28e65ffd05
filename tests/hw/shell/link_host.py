"""The host's end of the link for simulations: the driver's own frames and answers, on a MAC in the simulator."""

from __future__ import annotations

import random
from collections import deque

from acceltcp.abi.host_link import LinkKind
from acceltcp.host.dma import DmaRegion
from acceltcp.host.ethernet_link import Frame, LinkRequests, find_memory, pack_frame, parse_frame

from .link_mac import collect_frames, send_frame

__all__ = ["BOARD", "HOST", "LinkHost"]

HOST, BOARD = 0x02_00_00_00_00_01, 0x02_00_00_00_00_B0


class LinkHost:
    """Serves `memory` at bus address `base` and keeps replies.

    loss, duplicate: probabilities of every frame, both ways. delay: cycles before each answer.
    """

    def __init__(self, dut, *, size: int = 1 << 14, base: int = 1 << 32, seed: int = 0, loss=0.0, duplicate=0.0, delay: int = 0):
        self._dut = dut
        self.memory = bytearray(size)
        self.base = base
        self.session = 0
        self.vectors: list[int] = []
        self.replies: deque[Frame] = deque()
        self.asked: list[Frame] = []
        """Requests of the board, copies included."""
        self.deaf = False
        self._random = random.Random(seed)
        self._loss, self._duplicate, self._delay = loss, duplicate, delay
        self._out: deque[bytes] = deque()
        self._renew()

    def _renew(self) -> None:
        regions = [DmaRegion(memoryview(self.memory), self.base, len(self.memory))]
        self._requests = LinkRequests(lambda address, size: find_memory(regions, address, size), self.vectors.append)

    def put(self, frame: bytes) -> None:
        """To the board, through the bad cable."""
        copies = 0 if self._random.random() < self._loss else 2 if self._random.random() < self._duplicate else 1
        self._out.extend([frame] * copies)

    def ask(self, kind: LinkKind, sequence: int = 0, *, src: int = HOST, dst: int = BOARD, session: int | None = None, **fields) -> None:
        """Send a request."""
        session = self.session if session is None else session
        self.put(pack_frame(dst, src, kind=kind, session=session, sequence=sequence, **fields))

    async def request(self, ctx, kind: LinkKind, sequence: int = 0, *, every: int = 600, **fields) -> Frame:
        """A request, repeated every so many cycles until its reply comes."""
        if kind == LinkKind.HELLO:
            self._renew()
        while True:
            self.ask(kind, sequence, **fields)
            for _ in range(every):
                await ctx.tick()
                while self.replies:
                    reply = self.replies.popleft()
                    if (reply.fields["kind"], reply.fields["sequence"]) == (kind, sequence):
                        return reply

    async def hello(self, ctx, session: int = 7, **fields) -> Frame:
        """Begin a session."""
        self.session = session
        return await self.request(ctx, LinkKind.HELLO, **fields)

    async def send(self, ctx) -> None:
        """Testbench for the background: frames to the board."""
        while True:
            if self._out:
                await send_frame(ctx, self._dut, "s_axis_", self._out.popleft())
            await ctx.tick()

    async def take(self, ctx) -> None:
        """Testbench for the background: frames from the board."""
        while True:
            (raw,) = await collect_frames(ctx, self._dut, "m_axis_", 1)
            frame = parse_frame(raw)
            assert frame is not None
            if self.deaf or frame.dst != HOST or self._random.random() < self._loss:
                continue
            if frame.fields["reply"]:
                self.replies.append(frame)
                continue
            self.asked.append(frame)
            answer = self._requests.answer(frame) if frame.fields["session"] == self.session else None
            if answer is not None:
                if self._delay:
                    for _ in range(self._random.randrange(self._delay)):  # `repeat` cannot be left in the middle, at a test's end
                        await ctx.tick()
                self.put(answer)
