"""What splices do with packets, in plain Python, from docs and RFCs; knows nothing of the gateware.

A pair begins as the two SPLICE_SIDE messages and the SPLICE command say. `Pair.packet` says what becomes of a packet,
`Pair.sweep`, `Pair.abort` and `Pair.activate` are the other things that can happen to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from acceltcp.abi.messages import EventType, SpliceSideFlag, Status, Verdict
from acceltcp.abi.wire import TCPFlag

__all__ = ["MAPPED", "Fate", "Pair", "Segment", "Side", "ahead", "translation"]

M32 = 0xFFFF_FFFF
MAPPED = 0xFFFF << 32
"""IPv4 addresses as numbers begin with ::ffff."""


def ahead(a: int, b: int) -> int:
    """a - b modulo 2^32 as a signed number."""
    difference = (a - b) & M32
    return difference - (1 << 32) if difference >> 31 else difference


def overdue(now: int, deadline: int) -> bool:
    return (now - deadline) & 0xFFFF < 0x8000


@dataclass
class Segment:
    """What matters of a TCP segment."""

    seq: int
    ack: int = 0
    flags: int = TCPFlag.ACK
    payload: int = 0
    tsval: int | None = None

    def has(self, flag: TCPFlag) -> bool:
        return bool(self.flags & flag)


HOST_SENT = 1 << 20
"""How far beyond what was forwarded an acknowledgment may go: the most that a host may have forwarded itself."""


@dataclass
class Fate:
    """What becomes of a packet. `queue`: where the host's copy goes, None: as if there were no splice."""

    keep: bool
    forward: bool = False
    verdict: Verdict | None = None
    queue: int | None = None
    seq_offset: int = 0
    ack_offset: int = 0
    hide_sack: bool = False
    dropped: bool = False


@dataclass
class Side:
    """One connection, in the peer's own numbers."""

    snd_end: int
    ack: int
    guard: bool
    guard_end: int
    offset: int
    tsval: int | None = None
    fin: bool = False
    fin_acked: bool = False
    octets: int = 0
    packets: int = 0


@dataclass
class Pair:
    """Two connections. `sides` are SPLICE_SIDE messages as dicts, the client's first."""

    messages: list[dict[str, int]]
    queue: int
    generation: int
    limit: int | None = None
    idle: int = 0
    linger: int = 2
    state: str = "PENDING"
    deadline: int = 0
    status: Status | None = None
    reset_by: int = 0
    sides: list[Side] = field(default_factory=list)

    def __post_init__(self) -> None:
        for x, y in ((0, 1), (1, 0)):
            mine, other = self.messages[x], self.messages[y]
            self.sides.append(
                Side(
                    snd_end=mine["rcv_nxt"],
                    ack=mine["snd_una"],
                    guard=mine["snd_una"] != mine["snd_nxt"],
                    guard_end=mine["snd_nxt"],
                    offset=(other["snd_nxt"] - mine["rcv_nxt"]) & M32,
                )
            )
        self.limit_end = None if self.limit is None else (self.messages[0]["snd_nxt"] + self.limit) & M32

    def _end(self, status: Status) -> None:
        assert self.state in ("ACTIVE", "LINGER")
        self.state, self.status = "ENDING", status

    def activate(self, now: int) -> None:
        assert self.state == "PENDING"
        self.state = "ACTIVE"
        self.deadline = now + self.idle

    def abort(self, generation: int) -> bool:
        if self.state not in ("ACTIVE", "LINGER") or generation != self.generation:
            return False
        self._end(Status.ABORTED)
        return True

    def copy(self, generation: int) -> bool:
        """SPLICE_UPDATE with `copy`."""
        if self.state not in ("ACTIVE", "LINGER") or generation != self.generation:
            return False
        for side in self.sides:
            side.guard = True
        return True

    def due(self, now: int) -> Status | None:
        """How the pair ends when somebody looks at the clock now."""
        if self.state == "LINGER" and overdue(now, self.deadline):
            return Status.OK
        if self.state == "ACTIVE" and self.idle and overdue(now, self.deadline):
            return Status.IDLE
        return None

    def sweep(self, now: int) -> None:
        status = self.due(now)
        if status is not None:
            self._end(status)

    def packet(self, d: int, segment: Segment, now: int) -> Fate:
        """A packet that comes from side d."""
        if self.state == "PENDING":
            return Fate(keep=True)
        if self.state == "ENDING":
            return Fate(keep=True, verdict=Verdict.DIVERTED, queue=self.queue)
        syn, fin, rst, has_ack = (segment.has(f) for f in (TCPFlag.SYN, TCPFlag.FIN, TCPFlag.RST, TCPFlag.ACK))
        if self.state == "LINGER" and syn and not has_ack:
            self._end(Status.OK)
            return Fate(keep=False, dropped=True)

        mine, other = self.sides[d], self.sides[1 - d]
        seq, seq_there = segment.seq, (segment.seq + mine.offset) & M32
        guard = mine.guard or other.guard
        behind_host = mine.guard and ahead(segment.ack, mine.guard_end) < 0
        # The other side has still to get the host's own bytes, in whose place these would be taken.
        stale = other.guard and not rst and ahead(seq_there, other.guard_end) < 0
        reset = rst and (seq_there == other.ack or seq == mine.snd_end)
        diverted = False
        if self.limit_end is not None and not rst:
            if d == 0:
                diverted = bool(segment.payload or fin)
            else:
                diverted = ahead(seq_there + segment.payload, self.limit_end) > 0 or fin

        # Acknowledgment
        beyond = ahead(segment.ack, other.snd_end + other.offset)  # what the host has forwarded itself, if anything
        if has_ack and ahead(segment.ack, mine.ack) > 0 and (beyond <= 0 or (beyond < HOST_SENT and not other.fin)):
            mine.ack = segment.ack
            if beyond > 0:
                other.snd_end = segment.ack - other.offset & M32
        if has_ack and segment.ack == mine.ack and ahead(mine.ack, mine.guard_end) >= 0:
            mine.guard = False
        if other.fin and mine.ack == (other.snd_end + other.offset) & M32:
            other.fin_acked = True

        if not diverted and not stale:
            end = (seq + segment.payload + fin) & M32
            # A FIN in front of data that have been forwarded is none, and so is the text in a reset. An acknowledgment that was
            # sent after a FIN that got lost has its number already: then the repeated FIN brings nothing new, and counts.
            if not rst and not mine.fin and 0 <= ahead(end, mine.snd_end) < 1 << 30:
                mine.snd_end = end
                mine.fin = fin
            if segment.tsval is not None and (mine.tsval is None or ahead(segment.tsval, mine.tsval) > 0):
                mine.tsval = segment.tsval
            mine.octets += segment.payload
            mine.packets += 1

        if self.state == "ACTIVE":
            self.deadline = now + self.idle
            if mine.fin_acked and other.fin_acked:
                self.state, self.deadline = "LINGER", now + self.linger
        if reset:
            self.reset_by = d
            self._end(Status.RESET)
        elif self.limit_end is not None and self.sides[0].ack == self.limit_end:
            self._end(Status.LIMIT)

        if diverted:
            return Fate(keep=True, verdict=Verdict.DIVERTED, queue=self.queue)
        if stale:
            return Fate(keep=True, verdict=Verdict.GUARD, queue=self.queue)
        return Fate(
            keep=guard,
            forward=True,
            verdict=Verdict.GUARD if guard else None,
            queue=self.queue if guard else None,
            seq_offset=mine.offset,
            ack_offset=-other.offset & M32,
            hide_sack=behind_host,
        )

    def events(self, name: int) -> list[dict[str, int]]:
        """The two SPLICE_EVENTs of its end; `name` is the value of its COMMAND_DONE."""
        assert self.status is not None
        told = []
        for number, side in enumerate(self.sides):
            told.append(
                {
                    "type": EventType.SPLICE_DONE if number else EventType.SPLICE_SIDE,
                    "status": self.status if number else 0,
                    "queue": self.queue,
                    "overflow": 0,
                    "reset_by": self.reset_by if number and self.status == Status.RESET else 0,
                    "splice": name,
                    "snd_end": side.snd_end,
                    "ack": side.ack,
                    "tsval": side.tsval or 0,
                    "packets": side.packets,
                    "octets": side.octets,
                    "fin": int(side.fin),
                    "phase": 0,
                }
            )
        return told


def translation(messages: list[dict[str, int]], d: int) -> dict[str, int]:
    """What makes a packet of side d one to the other side; addresses and MAC are numbers, first byte most significant."""
    mine, sink = messages[d], messages[1 - d]
    shift = mine["snd_shift"] - sink["rcv_shift"]
    flags = sink["flags"]
    prefix = 0 if flags & SpliceSideFlag.IPV6 else MAPPED
    return {
        "src": sink["local"] | prefix,
        "dst": sink["remote"] | prefix,
        "src_port": sink["local_port"],
        "dst_port": sink["remote_port"],
        "dst_mac": sink["dst_mac"],
        "vlan": int(bool(flags & SpliceSideFlag.VLAN)),
        "vlan_tci": sink["vlan_tci"],
        "port": sink["port"],
        "window_down": int(shift < 0),
        "window_shift": abs(shift),
        "tsval_offset": sink["ts_offset"],
        "tsecr_offset": -mine["ts_offset"] & M32,
        "timestamps": int(bool(flags & SpliceSideFlag.TIMESTAMPS)),
        "sack": int(bool(flags & SpliceSideFlag.SACK)),
        "ecn": int(bool(flags & SpliceSideFlag.ECN)),
    }
