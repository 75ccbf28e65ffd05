"""The splicing of a NIC, as a plain model on packets: what the gateware does, for the tests of the host's side.

Written from the contract (`acceltcp.abi.messages`) and the standards, not from the driver or the gateware. A part of
`fake_device.FakeTransport`, which asks it about every TCP packet. `Way` and `FakePair` know nothing of a device, so that other
tests can use them for what they expect.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acceltcp.abi import registers as regs
from acceltcp.abi.messages import (
    SPLICE_COMMAND,
    SPLICE_EVENT,
    SPLICE_SIDE,
    SPLICE_UNIT_STEPS,
    SPLICE_UPDATE_COMMAND,
    EventType,
    SpliceSideFlag,
    Status,
    TxFlag,
    Verdict,
)
from acceltcp.abi.wire import TCPFlag

if TYPE_CHECKING:
    from .fake_device import FakeTransport

__all__ = ["FakePair", "FakeSplices", "rewrite"]

M32 = 0xFFFFFFFF
INDEX_BITS = 24
BEYOND = 1 << 20
"""Less than so far beyond what was forwarded an acknowledgment is believed: the host has sent those bytes on."""

COUNTED = {
    Status.OK: "splice_closed", Status.RESET: "splice_reset", Status.IDLE: "splice_idle", Status.LIMIT: "splice_limit",
    Status.ABORTED: "splice_aborted",
}  # fmt: skip


def ahead(a: int, b: int) -> int:
    """a - b modulo 2^32, signed."""
    difference = a - b & M32
    return difference - (1 << 32) if difference >> 31 else difference


def overdue(now: int, deadline: int) -> bool:
    return now - deadline & 0xFFFF < 0x8000


@dataclass
class FakeSide:
    """What is known of one side, in its own sequence numbers."""

    told: dict[str, int]
    """SPLICE_SIDE."""
    offset: int
    snd_end: int
    ack: int
    guard: bool
    guard_end: int
    tsval: int | None = None
    fin: bool = False
    packets: int = 0
    octets: int = 0


@dataclass
class FakePair:
    """A splice."""

    name: int
    queue: int
    sides: list[FakeSide]
    idle: int
    limit_end: int | None
    state: str = "PENDING"
    deadline: int = 0
    status: Status | None = None
    reset_by: int = 0
    answered: bool = False
    """The host has been told that the NIC has it; only then it is told of the end."""
    ending: bool = False
    """The host will be told of the end."""
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def made(cls, name: int, queue: int, told: list[dict[str, int]], idle: int, limit: int | None) -> FakePair:
        """told: both SPLICE_SIDE messages, the client's first. limit: None without one."""
        sides = [
            FakeSide(
                mine, other["snd_nxt"] - mine["rcv_nxt"] & M32, mine["rcv_nxt"], mine["snd_una"],
                mine["snd_una"] != mine["snd_nxt"], mine["snd_nxt"],
            )
            for mine, other in ((told[0], told[1]), (told[1], told[0]))
        ]  # fmt: skip
        return cls(name, queue, sides, idle, None if limit is None else told[0]["snd_nxt"] + limit & M32)

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def end(self, status: Status, reset_by: int = 0) -> None:
        self.state, self.status, self.reset_by = "ENDING", status, reset_by

    def copy(self) -> None:
        """Let the host see packets again."""
        for side in self.sides:
            side.guard = True

    def activate(self, now: int) -> None:
        self.state, self.deadline = "ACTIVE", now + self.idle

    def sweep(self, now: int) -> None:
        if self.state == "LINGER" and overdue(now, self.deadline):
            self.end(Status.OK)
        elif self.state == "ACTIVE" and self.idle and overdue(now, self.deadline):
            self.end(Status.IDLE)

    def packet(
        self, d: int, seq: int, ack: int, flags: int, length: int, tsval: int | None, now: int, linger: int
    ) -> tuple[bool, bool, Verdict]:
        """A packet of side d: whether it goes to the host, whether it is forwarded, and the verdict for the host."""
        if self.state == "PENDING":
            return True, False, Verdict.PLAIN
        if self.state == "ENDING":
            self.count("splice_diverted")
            return True, False, Verdict.DIVERTED
        fin, rst = bool(flags & TCPFlag.FIN), bool(flags & TCPFlag.RST)
        if self.state == "LINGER" and flags & TCPFlag.SYN and not flags & TCPFlag.ACK:
            self.count("splice_drop_syn")
            self.end(Status.OK)
            return False, False, Verdict.PLAIN
        mine, other = self.sides[d], self.sides[1 - d]
        there = seq + mine.offset & M32
        bounded = self.limit_end is not None and not rst
        if d == 0:
            diverted = bounded and bool(length or fin)
        else:
            diverted = bounded and (fin or ahead(there + length, self.limit_end or 0) > 0)
        guard = mine.guard or other.guard
        stale = other.guard and not rst and ahead(there, other.guard_end) < 0
        exact = rst and (there == other.ack or seq == mine.snd_end)

        limit = False
        if flags & TCPFlag.ACK:
            beyond = ahead(ack, other.snd_end + other.offset)
            if ahead(ack, mine.ack) > 0 and beyond < (1 if other.fin else BEYOND):
                mine.ack = ack
                if beyond > 0:
                    other.snd_end = ack - other.offset & M32
                limit = self.limit_end is not None and d == 0 and ack == self.limit_end
            if ack == mine.ack and ahead(ack, mine.guard_end) >= 0:
                mine.guard = False
        if diverted:
            self.count("splice_diverted")
        elif stale:
            self.count("splice_stale")
        else:
            end = seq + length + fin & M32
            if not rst and not mine.fin and 0 <= ahead(end, mine.snd_end) < 1 << 30:
                # A FIN that was lost before counts when it is repeated, though an acknowledgment has told of its number.
                mine.snd_end, mine.fin = end, fin
            if tsval is not None and (mine.tsval is None or ahead(tsval, mine.tsval) > 0):
                mine.tsval = tsval
            mine.packets += 1
            mine.octets += length
            self.count("splice_packets")
            self.count("splice_octets", length)
            self.count("splice_copied", int(guard))
        if self.state == "ACTIVE":
            self.deadline = now + self.idle
            if all(
                one.fin and two.ack == one.snd_end + one.offset & M32 for one, two in ((mine, other), (other, mine))
            ):
                self.state, self.deadline = "LINGER", now + linger
        if exact:
            self.end(Status.RESET, d)
        elif limit:
            self.end(Status.LIMIT)
        if diverted:
            return True, False, Verdict.DIVERTED
        if stale:
            return True, False, Verdict.GUARD
        return guard, True, Verdict.GUARD if guard else Verdict.PLAIN


def rewrite(frame: bytes, l3: int, l4: int, pair: FakePair, d: int, mac: bytes) -> bytes | None:
    """The packet as it leaves for the other side; None when its hop limit is used up. mac: of the port."""
    from .fake_device import insert_checksums

    mine, other = pair.sides[d], pair.sides[1 - d]
    to, ipv6 = other.told, l4 - l3 == 40
    ip = bytearray(frame[l3:l4])
    at = 7 if ipv6 else 8
    if ip[at] <= 1:
        return None
    ip[at] -= 1
    size = 16 if ipv6 else 4
    addresses = b"".join(to[name].to_bytes(16, "little")[16 - size :] for name in ("local", "remote"))
    ip[len(ip) - 2 * size :] = addresses
    ecn = bool(to["flags"] & SpliceSideFlag.ECN)
    if not ecn and ipv6:
        ip[1] &= 0xCF
    elif not ecn:
        ip[1] &= 0xFC
    end = l4 + struct.unpack_from("!H", frame, l3 + 4)[0] if ipv6 else l3 + struct.unpack_from("!H", frame, l3 + 2)[0]
    tcp = bytearray(frame[l4:end])
    _, _, seq, ack, offset, flags, window = struct.unpack_from("!HHIIBBH", tcp)
    if not ecn:
        flags &= ~(TCPFlag.ECE | TCPFlag.CWR)
    shift = mine.told["snd_shift"] - to["rcv_shift"]
    window = min(window << shift, 0xFFFF) if shift >= 0 else window >> -shift
    struct.pack_into(
        "!HHIIBBH", tcp, 0, to["local_port"], to["remote_port"], seq + mine.offset & M32,
        ack - other.offset & M32 if flags & TCPFlag.ACK else ack, offset, flags, window,
    )  # fmt: skip
    stop = (offset >> 4) * 4
    at = 20
    while at < stop and tcp[at]:
        kind = tcp[at]
        if kind == 1:
            at += 1
            continue
        length = tcp[at + 1] if at + 1 < stop else 0
        if length < 2 or at + length > stop:
            break
        if kind == 8 and length == 10:
            if to["flags"] & SpliceSideFlag.TIMESTAMPS:
                tsval, tsecr = struct.unpack_from("!II", tcp, at + 2)
                tsecr = tsecr - mine.told["ts_offset"] & M32 if flags & TCPFlag.ACK else tsecr
                struct.pack_into("!II", tcp, at + 2, tsval + to["ts_offset"] & M32, tsecr)
            else:
                tcp[at : at + length] = b"\1" * length
        elif kind == 5:
            if to["flags"] & SpliceSideFlag.SACK:
                for edge in range(at + 2, at + length, 4):
                    struct.pack_into("!I", tcp, edge, struct.unpack_from("!I", tcp, edge)[0] - other.offset & M32)
            else:
                tcp[at : at + length] = b"\1" * length
        at += length
    link = to["dst_mac"].to_bytes(6, "little") + mac
    if to["flags"] & SpliceSideFlag.VLAN:
        link += b"\x81\x00" + to["vlan_tci"].to_bytes(2, "big")
    link += b"\x86\xdd" if ipv6 else b"\x08\x00"
    checks = TxFlag.L4_CHECKSUM | (TxFlag.IPV6 if ipv6 else TxFlag.IPV4_CHECKSUM)
    whole = link + bytes(ip) + bytes(tcp)
    return insert_checksums(whole, len(link), len(link) + len(ip), checks).ljust(60, b"\0")


class FakeSplices:
    """All splices of a device. later: runs a function after so many seconds; without it everything happens at once.

    begin_lag, answer_lag, end_lag: functions that say how long a splice is pending, how much later the host is told, and how long
    its end takes.
    """

    def __init__(self, device: FakeTransport, count: int) -> None:
        self.device, self.most = device, count
        self.later: Callable[[float, Callable[[], None]], None] | None = None
        self.begin_lag: Callable[[], float] = lambda: 0.0
        self.answer_lag: Callable[[], float] = lambda: 0.0
        self.end_lag: Callable[[], float] = lambda: 0.0
        self.reset()

    def reset(self) -> None:
        self.pairs: dict[int, FakePair] = {}
        self.keys: dict[tuple[bytes, bytes, int, int], tuple[int, int]] = {}
        self.generation = 0
        self.epoch = object()

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        if self.later is None or seconds <= 0:
            what()
            return
        epoch = self.epoch
        self.later(seconds, lambda: what() if epoch is self.epoch else None)

    @property
    def now(self) -> int:
        return self.device._steps // SPLICE_UNIT_STEPS

    @property
    def linger(self) -> int:
        register = next(register for register in regs.SPLICE.registers if register.name == "linger")
        return self.device.values.get(regs.SPLICE.address("linger"), register.reset)

    # -- commands --------------------------------------------------------------------------

    def command(self, queue: int, at: int, fields: dict[str, int]) -> None:
        """SPLICE; answers by itself."""

        def answer(status: Status, value: int = 0) -> None:
            self.device.counters["command_errors" if status else "commands"] += 1
            self.device.post_event(
                queue, type=EventType.COMMAND_DONE, status=status, index=at, tag=fields["tag"], value=value
            )

        sides = self._read(fields)
        if isinstance(sides, Status):
            answer(sides)
            return
        keys = [
            (side["remote"].to_bytes(16, "little"), side["local"].to_bytes(16, "little"), side["remote_port"], side["local_port"])
            for side in sides
        ]
        flows = {flow.key for flow in self.device.flows.values()}
        status = None
        if not self.device.flow_secret:
            status = Status.NO_SECRET
        elif len(self.pairs) >= self.most:
            status = Status.TABLE_FULL
        elif any(key in self.keys or key in flows for key in keys):
            status = Status.DUPLICATE
        if status is not None:
            answer(status)
            return
        index = min(set(range(self.most)) - set(self.pairs))
        self.generation = self.generation + 1 & 0xFF
        pair = FakePair.made(
            self.generation << INDEX_BITS | index, queue, sides, fields["idle"], fields["limit"] if fields["bounded"] else None
        )
        self.pairs[index] = pair
        for side, key in enumerate(keys):
            self.keys[key] = index, side

        def told() -> None:
            answer(Status.OK, pair.name)
            pair.answered = True
            self._settle(pair)

        def begin() -> None:
            pair.activate(self.now)
            self.device.counters["splice_opened"] += 1
            self._after(self.answer_lag(), told)

        self._after(self.begin_lag(), begin)

    def _read(self, fields: dict[str, int]) -> list[dict[str, int]] | Status:
        """Both SPLICE_SIDE messages, or what is wrong."""
        bad = Status.BAD_ARGUMENT
        bounded, limit = fields["bounded"], fields["limit"]
        if fields["table"] % 256 or fields["table"] >> 54 or not (0 < limit <= 1 << 30 if bounded else limit == 0):
            return bad
        if fields["idle"] > 0x7FFF:
            return bad
        table = self.device.at(fields["table"], 2 * SPLICE_SIDE.size)
        if table is None:
            return Status.BAD_ADDRESS
        raw = bytes(table)
        told = [SPLICE_SIDE.unpack(raw, number * SPLICE_SIDE.size) for number in range(2)]
        if any(SPLICE_SIDE.pack(**side) != raw[at * SPLICE_SIDE.size :][: SPLICE_SIDE.size] for at, side in enumerate(told)):
            return bad  # reserved fields
        shared = SpliceSideFlag.IPV6 | SpliceSideFlag.ECN
        for side in told:
            same = side["remote"] == side["local"] and side["remote_port"] == side["local_port"]
            wide = side["snd_shift"] > 14 or side["rcv_shift"] > 14 or side["port"] >= self.device.ports
            if same or wide or side["flags"] & ~sum(SpliceSideFlag) or (told[0]["flags"] ^ side["flags"]) & shared:
                return bad
        names = ("remote", "local", "remote_port", "local_port")
        if all(told[0][name] == told[1][name] for name in names):
            return bad
        return told

    def update(self, fields: dict[str, int]) -> Status:
        """SPLICE_UPDATE."""
        pair = self.pairs.get(fields["splice"] & (1 << INDEX_BITS) - 1)
        if pair is None or pair.name != fields["splice"] or pair.state not in ("ACTIVE", "LINGER"):
            return Status.NOT_FOUND
        return Status.OK

    def updated(self, fields: dict[str, int]) -> None:
        pair = self.pairs[fields["splice"] & (1 << INDEX_BITS) - 1]
        if fields["copy"]:
            pair.copy()
            return
        pair.end(Status.ABORTED)
        self._settle(pair)

    # -- packets ---------------------------------------------------------------------------

    def takes(
        self, frame: bytes, l3: int, l4: int, tcp: dict[str, int], tsval: int | None, payload: int
    ) -> tuple[bool, int | None, Verdict] | None:
        """None: the packet is not spliced. Else whether the host gets it, on which queue (None: as if not spliced) and why."""
        size = 16 if l4 - l3 == 40 else 4
        remote, local = (frame[at : at + size].rjust(16, b"\0") for at in (l4 - 2 * size, l4 - size))
        found = self.keys.get((remote, local, tcp["src_port"], tcp["dst_port"]))
        if found is None:
            return None
        pair, d = self.pairs[found[0]], found[1]
        pair.sweep(self.now)
        keep, forward, verdict = pair.packet(d, tcp["seq"], tcp["ack"], tcp["flags"], payload, tsval, self.now, self.linger)
        if forward:
            mac = self.device.values.get(regs.PORT.address("mac_high"), 0) << 32 | self.device.values.get(
                regs.PORT.address("mac_low"), 0
            )
            out = rewrite(frame, l3, l4, pair, d, mac.to_bytes(6, "big"))
            if out is None:
                self.device.counters["splice_drop_hops"] += 1
            else:
                self.device.on_wire(out)
        self._settle(pair)
        return keep, None if pair.state == "PENDING" else pair.queue, verdict

    def sweep(self) -> None:
        for pair in list(self.pairs.values()):
            pair.sweep(self.now)
            self._settle(pair)

    def _settle(self, pair: FakePair) -> None:
        """Counters; and the rest of the end, once."""
        for name, by in pair.counts.items():
            self.device.counters[name] += by
        pair.counts.clear()
        if pair.state == "ENDING" and pair.answered and not pair.ending:
            pair.ending = True
            self._after(self.end_lag(), lambda: self._finish(pair))

    def _finish(self, pair: FakePair) -> None:
        assert pair.status is not None
        index = pair.name & (1 << INDEX_BITS) - 1
        del self.pairs[index]
        for key in [key for key, (at, _) in self.keys.items() if at == index]:
            del self.keys[key]
        self.device.counters[COUNTED[pair.status]] += 1
        for number, side in enumerate(pair.sides):
            self.device.post_event(
                pair.queue, SPLICE_EVENT, type=EventType.SPLICE_DONE if number else EventType.SPLICE_SIDE,
                status=pair.status if number else 0, reset_by=pair.reset_by if number else 0, splice=pair.name,
                snd_end=side.snd_end, ack=side.ack, tsval=side.tsval or 0, packets=side.packets, octets=side.octets,
                fin=int(side.fin),
            )  # fmt: skip


assert SPLICE_COMMAND.size == SPLICE_UPDATE_COMMAND.size == 64
