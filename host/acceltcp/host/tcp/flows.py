"""Flows: connections whose end the NIC has taken over.

`hand_over` checks final frames, copies them to memory of the NIC's and posts `CLOSE`; `update` tells
what the host learned later; the FLOW_DONE event gives the memory back. Whoever hands over (a
`FlowUser`) hears whether the NIC takes the flow, and if it does, how it ended; the end alone when
the device is lost before (`fail`). docs/teardown.md says what the NIC does.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from acceltcp.abi.messages import (
    CLOSE_COMMAND,
    FINAL_FRAME,
    FINAL_FRAMES_MAX,
    FLOW_COMMAND,
    WINDOW_UNIT,
    CloseFlag,
    CommandOpcode,
    FlowFlag,
    FrameFlag,
    Status,
)
from acceltcp.abi.wire import IPV4, IPV6, TCP, WSCALE_MAX, IPProtocol

from ..dma import align_up
from ..frames import FRAME_ALIGN, TABLE_BYTES, FrameBlock, FramePool
from ..layout import Packing
from ..queue import CommandResult, Queue
from .segment import ACK, FIN, MASK, PSH, TS_OPTION, TS_PREFIX

__all__ = ["ENTRY", "FLOW_BYTES_MAX", "FLOW_STATS", "Flow", "FlowEnd", "FlowUser", "Flows", "Phase", "window_steps"]

log = logging.getLogger("acceltcp.flows")

ENTRY = Packing(FINAL_FRAME).struct
_CLOSE = Packing(CLOSE_COMMAND)
_pack_close = _CLOSE.struct.pack
_SENT_S, _RETRIES_S, _PORT_S, _WSCALE_S = (_CLOSE[name].shift for name in ("sent", "retries", "port", "wscale"))
_U16_PAIR = struct.Struct("!HH")
_OPCODE = int(CommandOpcode.CLOSE)
_IPV6, _TIMESTAMPS, _PEER_FIN = int(CloseFlag.IPV6), int(CloseFlag.TIMESTAMPS), int(CloseFlag.PEER_FIN)
_SEQ = struct.Struct("!I")
_SEQ_AT, _OFFSET_AT, _FLAGS_AT = TCP.byte_offset("seq"), TCP.byte_offset("data_offset"), TCP.byte_offset("flags")
_WINDOW_STEPS = (1 << CLOSE_COMMAND.positions["window"][1]) - 1
_RTO_MAX = (1 << 14) - 1
_RETRIES_MAX = (1 << CLOSE_COMMAND.positions["retries"][1]) - 1

FLOW_BYTES_MAX = (1 << 18) - 1
"""Sequence numbers that the final frames may take."""

_COUNTED = {
    Status.OK: "closed",
    Status.RESET: "reset",
    Status.TIMED_OUT: "timed_out",
    Status.PEER_DATA: "peer_data",
    Status.FIN_TIMED_OUT: "fin_timed_out",
    Status.ABORTED: "aborted",
}
"""Every other status of FLOW_DONE is a fault."""

FLOW_STATS = (
    "held", "handed_over", "refused_full", "refused_other", "no_memory", "software", *_COUNTED.values(), "faults", "lost",
    "retransmissions", "rtt_samples", "rtt_mean_us", "stragglers", "updates", "memory_bytes",
)  # fmt: skip
"""Keys of `Flows.stats`."""


def window_steps(window: int) -> int:
    """A window in bytes as the messages tell it: rounded down, so that the NIC never overruns it."""
    return min(window // WINDOW_UNIT, _WINDOW_STEPS)


class Phase(enum.Enum):
    """Where a hand-over is."""

    POSTED = "posted"
    """`CLOSE` is on its way."""
    HELD = "held"
    """The NIC has the connection."""
    REFUSED = "refused"
    DONE = "done"
    """FLOW_DONE has come, or the device is lost; the memory has been freed."""


class FlowEnd(NamedTuple):
    """How a flow ended. status: None when the device was lost. rtt: seconds, None without a sample.
    error: what a socket would say; None for an orderly close."""

    status: Status | None
    rtt: float | None
    retransmissions: int
    error: OSError | None


class FlowUser(Protocol):
    """Whoever hands over. Called from the queue's `poll`; must not block."""

    def answered(self, flow: Flow, status: Status) -> None:
        """OK: the NIC has the connection. Else it has not, and the flow is over."""

    def ended(self, flow: Flow, end: FlowEnd) -> None:
        """The NIC is done with the connection, or lost."""


class Flow:
    """A connection on its way to the NIC or there.

    key: peer's address, ours, peer's port, ours. The rest is what the NIC was told, and `index` what it
    answered. `ack`, `window` (bytes), `ts_recent`, `rcv_nxt` and `fin` go on with what the host learns.
    """

    __slots__ = (
        "ack", "block", "end", "fin", "index", "key", "phase", "rcv_nxt", "snd_end", "timestamps", "ts_recent", "user",
        "window", "wscale",
    )  # fmt: skip

    def __init__(
        self,
        key: bytes,
        block: FrameBlock,
        *,
        snd_end: int,
        ack: int,
        rcv_nxt: int,
        fin: bool,
        window: int,
        wscale: int,
        timestamps: bool,
        ts_recent: int,
        user: FlowUser,
    ) -> None:
        self.key = key
        self.block: FrameBlock | None = block
        self.phase = Phase.POSTED
        self.index = -1
        self.end: FlowEnd | None = None
        self.snd_end, self.ack, self.rcv_nxt, self.fin = snd_end, ack, rcv_nxt, fin
        self.window, self.wscale = window, wscale
        self.timestamps, self.ts_recent = timestamps, ts_recent
        self.user = user

    @property
    def reach(self) -> int:
        """An acknowledgment this much before our end, or more, cannot be genuine (RFC 5961 section 5)."""
        return 1 << min(18 + self.wscale, 31)

    def __repr__(self) -> str:
        return f"<Flow {self.index} {self.phase.value}>"


class Flows:
    """All flows of one queue.

    step: seconds per timer step. mtu: largest IP packet. pool: where frames lie.
    """

    def __init__(self, queue: Queue, pool: FramePool, *, step: float, mtu: int) -> None:
        self.queue = queue
        self.pool = pool
        self.step = step
        self.mtu = mtu
        self.held: dict[int, Flow] = {}
        """By index: those whose FLOW_DONE has not come."""
        self.posted: dict[Flow, None] = {}
        """Those whose COMMAND_DONE has not come, the oldest first."""
        self.counts = dict.fromkeys(FLOW_STATS, 0)
        self._rtt_total = 0.0
        queue.on_flow_done = self._done

    # -- hand over -------------------------------------------------------------------------

    @property
    def open(self) -> int:
        """Flows that the NIC has or may have."""
        return len(self.held) + len(self.posted)

    def hand_over(
        self,
        frames: Sequence[bytes | bytearray],
        *,
        l4: int,
        ipv6: bool,
        sent: int,
        rcv_nxt: int,
        fin: bool,
        window: int,
        wscale: int,
        timestamps: bool,
        ts_recent: int = 0,
        rto: float = 1.0,
        retries: int = 10,
        port: int = 0,
        user: FlowUser,
    ) -> Flow | None:
        """Post `CLOSE` for a connection; None when there is no memory for its frames.

        frames: from Ethernet header to data, the TCP header at `l4`; consecutive segments, FIN on
        the last. sent: so many of them have been sent already. rcv_nxt: next sequence number from the
        peer, whose FIN (`fin`: it has come) counts. window: the peer's, in bytes. rto: seconds.

        Raises `ValueError` naming what is wrong with an argument; `DeviceError` when the ring is full
        (ask `queue.has_room` before).
        """
        for name, value, low, high in (
            ("sent", sent, 0, len(frames)),
            ("wscale", wscale, 0, WSCALE_MAX),
            ("retries", retries, 1, _RETRIES_MAX),
            ("window", window, 0, 0xFFFF << WSCALE_MAX),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")
        if l4 & 1:
            raise ValueError(f"l4 must be even, not {l4!r}")
        snd_una, snd_end = self._check(frames, l4, ipv6, timestamps)
        block = self.pool.allocate(TABLE_BYTES + sum(align_up(len(frame), FRAME_ALIGN) for frame in frames))
        if block is None:
            self.counts["no_memory"] += 1
            return None
        self._fill(block, frames, l4, ipv6, snd_una)
        first = frames[0]
        at, size = (l4 - 32, 16) if ipv6 else (l4 - 8, 4)
        key = bytes(first[at + size : l4]) + bytes(first[at : at + size]) + bytes(first[l4 + 2 : l4 + 4]) + bytes(first[l4 : l4 + 2])
        return self.post(
            key, block, len(frames), snd_una=snd_una, snd_end=snd_end, sent=sent, rcv_nxt=rcv_nxt, fin=fin, window=window,
            wscale=wscale, timestamps=timestamps, ts_recent=ts_recent, rto=rto, retries=retries, port=port, user=user,
        )  # fmt: skip

    def post(
        self,
        key: bytes,
        block: FrameBlock,
        frames: int,
        *,
        snd_una: int,
        snd_end: int,
        sent: int,
        rcv_nxt: int,
        fin: bool,
        window: int,
        wscale: int,
        timestamps: bool,
        ts_recent: int,
        rto: float,
        retries: int,
        port: int,
        user: FlowUser,
    ) -> Flow:
        """Post `CLOSE` for so many frames that lie in a block of `pool` with their table (`ENTRY`), and are as `hand_over`
        would have them: nothing is checked. Raises `DeviceError` when the ring is full; the block is free then."""
        flow = Flow(
            key, block, snd_end=snd_end & MASK, ack=snd_una & MASK, rcv_nxt=rcv_nxt & MASK,
            fin=fin, window=window, wscale=wscale, timestamps=timestamps, ts_recent=ts_recent, user=user,
        )  # fmt: skip
        size = len(key) - 4 >> 1
        flags = (_IPV6 if size == 16 else 0) | (_TIMESTAMPS if timestamps else 0) | (_PEER_FIN if fin else 0)
        steps = round(rto / self.step)
        command = _pack_close(
            _OPCODE, frames | sent << _SENT_S | retries << _RETRIES_S | port << _PORT_S, flags, 0, block.address,
            # The first byte of an address lies first in memory; IPv4 in the last four.
            key[:size].rjust(16, b"\0"), key[size : 2 * size].rjust(16, b"\0"),
            *_U16_PAIR.unpack_from(key, 2 * size), rcv_nxt & MASK, ts_recent if timestamps else 0,
            1 if steps < 1 else min(steps, _RTO_MAX), window_steps(window) | wscale << _WSCALE_S,
        )  # fmt: skip
        try:
            self.queue.post_command(command, lambda result: self._answered(flow, result), ring=False)
        except BaseException:
            self.pool.free(block)
            raise
        self.posted[flow] = None
        return flow

    def _check(
        self, frames: Sequence[bytes | bytearray], l4: int, ipv6: bool, timestamps: bool
    ) -> tuple[int, int]:
        """First sequence number, and the one after FIN. Raises `ValueError`."""
        if not 1 <= len(frames) <= FINAL_FRAMES_MAX:
            raise ValueError(f"there must be 1 to {FINAL_FRAMES_MAX} final frames, not {len(frames)}")
        l3 = l4 - (IPV6.size if ipv6 else IPV4.size)
        header = TCP.size + (TS_OPTION.size if timestamps else 0)
        data = l4 + header
        protocol_at, tuple_at = (l3 + 6, l3 + 8) if ipv6 else (l3 + 9, l3 + 12)
        first = frames[0]
        start = seq = 0
        for number, frame in enumerate(frames):
            where = f"final frame {number}"
            length = len(frame)
            if length > l3 + self.mtu:
                raise ValueError(f"{where} holds a packet of {length - l3} bytes, more than the MTU of {self.mtu}")
            if length < data:
                raise ValueError(f"{where} has {length} bytes, fewer than its headers, which take {data}")
            if frame[l3] >> 4 != 6 if ipv6 else frame[l3] != 0x45:
                raise ValueError(f"{where} does not have an IPv{6 if ipv6 else 4} header at {l3}: {frame[l3]:#04x}")
            if frame[protocol_at] != IPProtocol.TCP:
                raise ValueError(f"{where} does not carry TCP (6) but protocol {frame[protocol_at]}")
            said = frame[l3 + 4] << 8 | frame[l3 + 5] if ipv6 else frame[l3 + 2] << 8 | frame[l3 + 3]
            if said != (length - l4 if ipv6 else length - l3):
                raise ValueError(f"{where} has {length} bytes, but its IP header says {said}")
            if frame[tuple_at : l4 + 4] != first[tuple_at : l4 + 4]:
                raise ValueError(f"the addresses or ports of {where} are not those of the first")
            if frame[l4 + _OFFSET_AT] >> 4 != header // 4:
                raise ValueError(
                    f"the TCP header of {where} must have {header} bytes, not {(frame[l4 + _OFFSET_AT] >> 4) * 4}"
                )
            if timestamps and frame[l4 + TCP.size : l4 + TCP.size + len(TS_PREFIX)] != TS_PREFIX:
                raise ValueError(f"{where} does not have two NOPs and a timestamp behind its TCP header")
            flags = frame[l4 + _FLAGS_AT]
            last = number == len(frames) - 1
            if bool(flags & FIN) != last:
                raise ValueError(f"{where} of {len(frames)} {'lacks FIN' if last else 'has FIN, but is not the last'}")
            if flags & 0x3F & ~(FIN | PSH) != ACK:
                raise ValueError(f"the TCP flags of {where} must be ACK, PSH and FIN at most, not {flags:#04x}")
            if not last and length == data:
                raise ValueError(f"{where} has no data, but is not the last")
            (own,) = _SEQ.unpack_from(frame, l4 + _SEQ_AT)
            if number == 0:
                start = seq = own
            if own != seq:
                raise ValueError(f"{where} starts at sequence number {own}, but the one before ends at {seq}")
            seq = seq + length - data + last & MASK
        if seq - start & MASK > FLOW_BYTES_MAX:
            raise ValueError(f"the final frames may take {FLOW_BYTES_MAX} sequence numbers, not {seq - start & MASK}")
        return start, seq

    @staticmethod
    def _fill(block: FrameBlock, frames: Sequence[bytes | bytearray], l4: int, ipv6: bool, seq: int) -> None:
        """Copy frames behind the table, and describe them in it."""
        view, at = block.view, TABLE_BYTES
        flags = int(FrameFlag.IPV6) if ipv6 else 0
        for number, frame in enumerate(frames):
            length = len(frame)
            view[at : at + length] = frame
            ENTRY.pack_into(view, number * ENTRY.size, block.address + at, seq, length, l4, flags)
            seq = seq + length - l4 - (frame[l4 + _OFFSET_AT] >> 4) * 4 & MASK
            at += align_up(length, FRAME_ALIGN)

    def update(self, flow: Flow, *, abort: bool = False) -> bool:
        """Tell the NIC what a flow's record says now, or end it; False when the ring is full.

        When the flow has ended meanwhile, nothing happens.
        """
        if flow.phase is not Phase.HELD:
            return True
        if not self.queue.has_room:
            return False
        command = FLOW_COMMAND.pack(
            opcode=CommandOpcode.FLOW_UPDATE,
            flags=FlowFlag.ABORT if abort else FlowFlag.FIN if flow.fin else 0,
            flow=flow.index,
            snd_end=flow.snd_end,
            ack=flow.ack,
            ts_recent=flow.ts_recent if flow.timestamps else 0,
            window=window_steps(flow.window),
        )
        self.queue.post_command(command, self._updated, ring=False)
        self.counts["updates"] += 1
        return True

    # -- what the NIC says -----------------------------------------------------------------

    def _answered(self, flow: Flow, result: CommandResult) -> None:
        self.posted.pop(flow, None)
        if flow.phase is not Phase.POSTED:
            return
        if result.status == Status.OK:
            flow.phase, flow.index = Phase.HELD, result.value
            if flow.index in self.held:
                log.error("the NIC gave the index %d to two flows", flow.index)
            self.held[flow.index] = flow
            self.counts["handed_over"] += 1
        else:
            flow.phase = Phase.REFUSED
            self._release(flow)
            self.counts["refused_full" if result.status == Status.TABLE_FULL else "refused_other"] += 1
            if result.status not in (Status.TABLE_FULL, Status.DUPLICATE):
                log.warning("the NIC refused to close a connection: %s", result.status.name)
        flow.user.answered(flow, result.status)

    @staticmethod
    def _updated(result: CommandResult) -> None:
        # NOT_FOUND is no news: the flow had ended, and its event says how.
        if result.status not in (Status.OK, Status.NOT_FOUND):
            log.warning("the NIC refused what it was told about a flow: %s", result.status.name)

    def _done(self, index: int, status: Status, rtt_steps: int, retransmissions: int) -> None:
        flow = self.held.pop(index, None)
        if flow is None:
            log.error("the NIC reports the end of flow %d, which it did not have", index)
            return
        self.counts[_COUNTED.get(status, "faults")] += 1
        self.counts["retransmissions"] += retransmissions
        rtt = rtt_steps * self.step if rtt_steps else None
        if rtt is not None:
            self.counts["rtt_samples"] += 1
            self._rtt_total += rtt
        self._end(flow, FlowEnd(status, rtt, retransmissions, _error(status)))

    def fail(self, error: OSError) -> None:
        """The device was lost or reset: it reads nothing any more, and no event will come."""
        flows = [*self.posted, *self.held.values()]
        self.posted.clear()
        self.held.clear()
        self.counts["lost"] += len(flows)
        for flow in flows:
            self._end(flow, FlowEnd(None, None, 0, error))

    def _end(self, flow: Flow, end: FlowEnd) -> None:
        flow.phase, flow.end = Phase.DONE, end
        self._release(flow)
        flow.user.ended(flow, end)

    def _release(self, flow: Flow) -> None:
        block, flow.block = flow.block, None
        if block is not None:
            self.pool.free(block)

    # -- readings --------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """What became of connections, by outcome (`FLOW_STATS`)."""
        counts = dict(self.counts)
        counts["held"] = len(self.held)
        counts["memory_bytes"] = self.pool.used
        if counts["rtt_samples"]:
            counts["rtt_mean_us"] = round(self._rtt_total / counts["rtt_samples"] * 1e6)
        return counts


def _error(status: Status) -> OSError | None:
    """What the user of a socket would be told."""
    if status in (Status.OK, Status.FIN_TIMED_OUT):
        return None
    if status == Status.RESET:
        return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    if status == Status.TIMED_OUT:
        return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    if status == Status.PEER_DATA:
        return ConnectionResetError(errno.ECONNRESET, "data came after the connection was closed")
    if status == Status.ABORTED:
        return ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
    return OSError(errno.EIO, f"the NIC could not read the last frames of the connection: {status.name}")
