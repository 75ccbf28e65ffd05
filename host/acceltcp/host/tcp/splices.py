"""Splices: pairs of connections whose packets the NIC forwards to each other. This is the side of commands and events.

`post` posts `SPLICE`, `end` ends a splice and `copy` asks for copies of its packets (`SPLICE_UPDATE`); the SPLICE_SIDE and SPLICE_DONE events say how it ended. The `Splice`
hears whether the NIC takes it, and if it does, how it ended; the end alone, with `status` None, when the device is lost before (`fail`).
`splicing` decides what to splice and deals with what reaches the host meanwhile. docs/splice.md says what the NIC does.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

from acceltcp.abi.messages import (
    SPLICE_COMMAND,
    SPLICE_EVENT,
    SPLICE_IDLE_MAX,
    SPLICE_SIDE,
    SPLICE_UNIT_STEPS,
    SPLICE_UPDATE_COMMAND,
    CommandOpcode,
    EventType,
    Status,
)
from acceltcp.abi.registers import SPLICE

from ..frames import FrameBlock, FramePool
from ..queue import Queue, status_of

__all__ = ["SPLICE_STATS", "SideEnd", "Splice", "Splices", "refusal_of"]

log = logging.getLogger("acceltcp.splices")

_TABLE_BYTES = 2 * SPLICE_SIDE.size

SPLICE_STATS = (
    "live", "hardware", "closed", "reset", "idle", "limit", "aborted", "lost", "guard_packets", "translated",
    "diverted",
)  # fmt: skip
"""Keys of `Splices.stats`."""

_COUNTED = {
    Status.OK: "closed", Status.RESET: "reset", Status.IDLE: "idle", Status.LIMIT: "limit", Status.ABORTED: "aborted",
}  # fmt: skip


class SideEnd(NamedTuple):
    """What the NIC last knew of one side, in its own numbers of 32 bits (`SPLICE_EVENT`)."""

    snd_end: int
    ack: int
    tsval: int
    packets: int
    octets: int
    fin: bool


class Splice:
    """A splice on its way to the NIC or there. `Splices` sets `name` and `block`."""

    __slots__ = ("block", "name", "posted_at")

    block: FrameBlock | None
    name: int
    """What the NIC calls it; -1 before it has answered."""
    posted_at: float

    # What it hears. Called from the queue's `poll`; must not block.

    def answered(self, status: int) -> None:
        """`Status.OK`: the NIC forwards packets. Else nothing has happened."""
        raise NotImplementedError

    def ended(self, status: Status | None, reset_by: int, sides: tuple[SideEnd, SideEnd] | None) -> None:
        """It has ended; status and sides are None when the device was lost."""
        raise NotImplementedError


class Splices:
    """All splices of one queue.

    step: seconds per timer step. pool: where the table of a command lies.
    """

    def __init__(self, queue: Queue, pool: FramePool, *, step: float) -> None:
        self.queue = queue
        self.pool = pool
        self.unit = step * SPLICE_UNIT_STEPS
        """Seconds per unit of a splice's idle time."""
        self.held: dict[int, Splice] = {}
        """By name: those whose SPLICE_DONE has not come."""
        self.posted: dict[Splice, None] = {}
        """Those whose COMMAND_DONE has not come, the oldest first."""
        self.counts = dict.fromkeys(SPLICE_STATS, 0)
        self._sides: dict[int, SideEnd] = {}
        queue.on_splice_event = self._event

    @property
    def open(self) -> int:
        """Splices that the NIC has or may have."""
        return len(self.held) + len(self.posted)

    def idle_units(self, seconds: float | None) -> int | None:
        """An idle time as the command tells it, rounded up; None when it is too long for it."""
        units = 0 if seconds is None else max(math.ceil(seconds / self.unit), 1)
        return units if units <= SPLICE_IDLE_MAX else None

    def linger_units(self, seconds: float) -> int:
        """For how long a splice of which both sides have closed goes on, as the register has it."""
        return min(max(math.ceil(seconds / self.unit), 1), (1 << SPLICE["linger"].positions["units"][1]) - 1)

    def post(
        self, splice: Splice, client: dict[str, int], server: dict[str, int], limit: int | None, idle: int, now: float
    ) -> str | None:
        """Post `SPLICE`. client, server: fields of SPLICE_SIDE. limit: None without one. Returns why it could not be posted."""
        queue = self.queue
        slot = queue.reserve()
        if slot is None:
            return "ring_full"
        block = self.pool.allocate(_TABLE_BYTES)
        if block is None:
            return "no_memory"
        size = SPLICE_SIDE.size
        block.view[:size] = SPLICE_SIDE.pack(**client)
        block.view[size : 2 * size] = SPLICE_SIDE.pack(**server)
        slot[: SPLICE_COMMAND.size] = SPLICE_COMMAND.pack(
            opcode=CommandOpcode.SPLICE, bounded=limit is not None, tag=queue.next_tag, table=block.address, limit=limit or 0,
            idle=idle,
        )  # fmt: skip
        queue.commit_command(self._answered, splice)
        splice.block, splice.name, splice.posted_at = block, -1, now
        self.posted[splice] = None
        return None

    def end(self, splice: Splice) -> bool:
        """End a splice now; False when the ring is full. Nothing happens when it has ended already."""
        return self._update(splice, copy=False)

    def copy(self, splice: Splice) -> bool:
        """Have its packets copied to the host again, until each peer has said what it has; False when the ring is full."""
        return self._update(splice, copy=True)

    def _update(self, splice: Splice, *, copy: bool) -> bool:
        if self.held.get(splice.name) is not splice:
            return True
        slot = self.queue.reserve()
        if slot is None:
            return False
        slot[: SPLICE_UPDATE_COMMAND.size] = SPLICE_UPDATE_COMMAND.pack(
            opcode=CommandOpcode.SPLICE_UPDATE, copy=copy, tag=self.queue.next_tag, splice=splice.name
        )
        self.queue.commit_command(_updated, None)
        return True

    # -- what the NIC says -----------------------------------------------------------------

    def _answered(self, splice: Splice, status: int, value: int) -> None:
        if splice not in self.posted:
            return  # the device was lost meanwhile
        del self.posted[splice]
        self._release(splice)
        if status == Status.OK:
            splice.name = value
            if value in self.held:
                log.error("the NIC gave the name %#x to two splices", value)
            self.held[value] = splice
            self.counts["hardware"] += 1
        elif status not in (Status.TABLE_FULL, Status.DUPLICATE):
            log.warning("the NIC refused to splice two connections: %s", status_of(status).name)
        splice.answered(status)

    def _event(self, raw: bytes) -> None:
        """SPLICE_SIDE, and SPLICE_DONE after it."""
        said = SPLICE_EVENT.unpack(raw)
        name = said["splice"]
        side = SideEnd(said["snd_end"], said["ack"], said["tsval"], said["packets"], said["octets"], bool(said["fin"]))
        if said["type"] == EventType.SPLICE_SIDE:
            self._sides[name] = side
            return
        splice, client = self.held.pop(name, None), self._sides.pop(name, None)
        if splice is None or client is None:
            log.error("the NIC reports the end of splice %#x, which it did not have", name)
            return
        status = status_of(said["status"])
        self.counts[_COUNTED.get(status, "aborted")] += 1
        splice.ended(status, said["reset_by"], (client, side))

    def fail(self) -> None:
        """The device was lost or reset: it reads nothing any more, and no event will come."""
        splices = [*self.posted, *self.held.values()]
        self.posted.clear()
        self.held.clear()
        self._sides.clear()
        self.counts["lost"] += len(splices)
        for splice in splices:
            self._release(splice)
            splice.ended(None, 0, None)

    def _release(self, splice: Splice) -> None:
        block, splice.block = splice.block, None
        if block is not None:
            self.pool.free(block)

    # -- readings --------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """What became of splices (`SPLICE_STATS`)."""
        return {**self.counts, "live": len(self.held)}


def refusal_of(status: int) -> str:
    """Why the NIC refused a splice, as it is counted."""
    return status_of(status).name.lower()


def _updated(what: object, status: int, value: int) -> None:
    # NOT_FOUND is no news: the splice had ended, and its events say how.
    if status not in (Status.OK, Status.NOT_FOUND):
        log.warning("the NIC refused to change a splice: %s", status_of(status).name)
