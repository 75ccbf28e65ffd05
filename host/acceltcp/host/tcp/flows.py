"""Flows: connections whose end the NIC has taken over.

`post` posts `CLOSE` for final frames that lie in memory of the NIC's already, which is the way of `handover`; `hand_over`
checks frames of anybody and copies them there first. `update` tells what the host learned later; the FLOW_DONE event
gives the memory back. The `Flow` hears whether the NIC takes it, and if it does, how it ended; the end alone when the
device is lost before (`fail`). docs/teardown.md says what the NIC does.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from acceltcp.abi.wire import IPV4, IPV6, TCP, WINDOW_MAX, WSCALE_MAX, IPProtocol

from ..dma import align_up
from ..errors import DeviceError
from ..frames import FRAME_ALIGN, TABLE_BYTES, FrameBlock, FramePool
from ..layout import Packing
from ..queue import Queue, status_of
from .segment import ACK, FIN, MASK, PSH, TS_OPTION, TS_PREFIX

__all__ = ["ENTRY", "FLOW_BYTES_MAX", "FLOW_STATS", "Flow", "FlowEnd", "Flows", "Phase", "window_steps"]

log = logging.getLogger("acceltcp.flows")

ENTRY = Packing(FINAL_FRAME).struct
_CLOSE = Packing(CLOSE_COMMAND)
_pack_close_v6 = _CLOSE.struct.pack_into
# The first byte of an address lies first in memory; an IPv4 address in the last four.
_pack_close_v4 = struct.Struct(_CLOSE.struct.format.replace("16s", "12x4s")).pack_into
_KEY_V4, _KEY_V6 = struct.Struct("!4s4sHH"), struct.Struct("!16s16sHH")
_unpack_key_v4, _unpack_key_v6 = _KEY_V4.unpack, _KEY_V6.unpack
_pack_update = Packing(FLOW_COMMAND).struct.pack_into
_SENT_S, _RETRIES_S, _PORT_S, _WSCALE_S = (_CLOSE[name].shift for name in ("sent", "retries", "port", "wscale"))
_CLOSE_OPCODE, _UPDATE_OPCODE = int(CommandOpcode.CLOSE), int(CommandOpcode.FLOW_UPDATE)
_IPV6, _TIMESTAMPS, _PEER_FIN = int(CloseFlag.IPV6), int(CloseFlag.TIMESTAMPS), int(CloseFlag.PEER_FIN)
_ABORT, _FIN = int(FlowFlag.ABORT), int(FlowFlag.FIN)
_OK, _TABLE_FULL, _NOT_FOUND = int(Status.OK), int(Status.TABLE_FULL), int(Status.NOT_FOUND)
_SEQ = struct.Struct("!I")
_SEQ_AT, _OFFSET_AT, _FLAGS_AT = TCP.byte_offset("seq"), TCP.byte_offset("data_offset"), TCP.byte_offset("flags")
_WINDOW_STEPS = (1 << CLOSE_COMMAND.positions["window"][1]) - 1
_RTO_MAX = (1 << 14) - 1
_RETRIES_MAX = (1 << CLOSE_COMMAND.positions["retries"][1]) - 1

FLOW_BYTES_MAX = (1 << 18) - 1
"""Sequence numbers that the final frames may take."""

_COUNTED: dict[int, str] = {
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
    steps = window // WINDOW_UNIT
    return steps if steps < _WINDOW_STEPS else _WINDOW_STEPS


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


# Names in a class that is an enumeration are found slowly.
_POSTED, _HELD, _DONE = Phase.POSTED, Phase.HELD, Phase.DONE


class Flow:
    """A connection on its way to the NIC or there.

    key: peer's address, ours, peer's port, ours. The rest is what the NIC is told, and `index` what it answered;
    `snd_end`: the sequence number after our FIN. `ack`, `window` (bytes), `ts_recent`, `rcv_nxt` and `fin` go on
    with what the host learns. Sequence numbers have 32 bits. There is one for every connection that is closed, so it is
    made without arguments: who makes it sets everything down to `ts_recent`, and `Flows` the rest.
    """

    __slots__ = (
        "_error", "_retransmissions", "_rtt", "_status", "ack", "block", "fin", "index", "key", "phase", "rcv_nxt",
        "snd_end", "timestamps", "ts_recent", "window", "wscale",
    )  # fmt: skip

    key: bytes
    block: FrameBlock | None
    snd_end: int
    ack: int
    rcv_nxt: int
    fin: bool
    window: int
    wscale: int
    timestamps: bool
    ts_recent: int
    phase: Phase
    index: int
    # How it ended; `end` makes more of it.
    _status: int | None
    _rtt: float
    _retransmissions: int
    _error: OSError | None

    # What it hears. Called from the queue's `poll`; must not block.

    def answered(self, status: int) -> None:
        """`Status.OK`: the NIC has the connection. Else it has not, and the flow is over."""

    def ended(self) -> None:
        """The NIC is done with the connection, or lost; see `end`."""

    @property
    def end(self) -> FlowEnd | None:
        """How it ended; None before that, and if the NIC has refused it."""
        if self.phase is not _DONE:
            return None
        status = None if self._status is None else status_of(self._status)
        return FlowEnd(status, self._rtt or None, self._retransmissions, self._error)

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
        self._rto, self._rto_steps = 0.0, 1
        """The latest time-out, and what it is in timer steps: mostly it is the same again."""
        # A bound method is made anew each time that it is asked for.
        self._on_answer = self._answered
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
        flow: Flow,
    ) -> bool:
        """Post `CLOSE` for a connection; False when there is no memory for its frames.

        frames: from Ethernet header to data, the TCP header at `l4`; consecutive segments, FIN on
        the last. sent: so many of them have been sent already. rcv_nxt: next sequence number from the
        peer, whose FIN (`fin`: it has come) counts. window: the peer's, in bytes. rto: seconds. flow: a new one, which is
        filled in.

        Raises `ValueError` naming what is wrong with an argument; `DeviceError` when the ring is full
        (ask `queue.has_room` before).
        """
        for name, value, low, high in (
            ("sent", sent, 0, len(frames)),
            ("wscale", wscale, 0, WSCALE_MAX),
            ("retries", retries, 1, _RETRIES_MAX),
            ("window", window, 0, WINDOW_MAX << WSCALE_MAX),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")
        if l4 & 1:
            raise ValueError(f"l4 must be even, not {l4!r}")
        snd_una, snd_end = self._check(frames, l4, ipv6, timestamps)
        block = self.pool.allocate(TABLE_BYTES + sum(align_up(len(frame), FRAME_ALIGN) for frame in frames))
        if block is None:
            self.counts["no_memory"] += 1
            return False
        slot = self.queue.reserve()
        if slot is None:
            self.pool.free(block)
            raise DeviceError("The transmit ring has no room for a command.")
        self._fill(block, frames, l4, ipv6, snd_una)
        first = frames[0]
        at, size = (l4 - 32, 16) if ipv6 else (l4 - 8, 4)
        ours, theirs = first[at : at + size], first[at + size : l4]
        flow.key = bytes(theirs) + bytes(ours) + bytes(first[l4 + 2 : l4 + 4]) + bytes(first[l4 : l4 + 2])
        flow.block, flow.snd_end, flow.ack, flow.rcv_nxt, flow.fin = block, snd_end, snd_una, rcv_nxt & MASK, fin
        flow.window, flow.wscale, flow.timestamps, flow.ts_recent = window, wscale, timestamps, ts_recent
        self.post(flow, slot, len(frames), sent, rto, retries, port)
        return True

    def post(
        self, flow: Flow, slot: memoryview, frames: int, sent: int, rto: float, retries: int, port: int
    ) -> None:
        """Post `CLOSE` for so many frames that lie in the flow's block with their table (`ENTRY`), and are as `hand_over`
        would have them: nothing is checked. slot: what `queue.reserve` gave last."""
        queue, key, window = self.queue, flow.key, flow.window
        assert flow.block is not None, "the frames lie there"
        flags = (_TIMESTAMPS if flow.timestamps else 0) | (_PEER_FIN if flow.fin else 0)
        if len(key) == _KEY_V4.size:
            pack, (theirs, ours, their_port, our_port) = _pack_close_v4, _unpack_key_v4(key)
        else:
            pack, (theirs, ours, their_port, our_port) = _pack_close_v6, _unpack_key_v6(key)
            flags |= _IPV6
        if rto != self._rto:
            self._rto, self._rto_steps = rto, min(max(round(rto / self.step), 1), _RTO_MAX)
        pack(
            slot, 0, _CLOSE_OPCODE, frames | sent << _SENT_S | retries << _RETRIES_S | port << _PORT_S, flags,
            queue.next_tag, flow.block.address, theirs, ours, their_port, our_port, flow.rcv_nxt,
            flow.ts_recent if flow.timestamps else 0, self._rto_steps, window_steps(window) | flow.wscale << _WSCALE_S,
        )  # fmt: skip
        flow.phase, flow.index = _POSTED, -1
        queue.commit_command(self._on_answer, flow)
        self.posted[flow] = None

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
        queue = self.queue
        slot = queue.reserve()
        if slot is None:
            return False
        _pack_update(
            slot, 0, _UPDATE_OPCODE, _ABORT if abort else _FIN if flow.fin else 0, queue.next_tag, flow.index,
            flow.snd_end, flow.ack, flow.ts_recent if flow.timestamps else 0, window_steps(flow.window),
        )  # fmt: skip
        queue.commit_command(_updated, None)
        self.counts["updates"] += 1
        return True

    # -- what the NIC says -----------------------------------------------------------------

    def _answered(self, flow: Flow, status: int, index: int) -> None:
        self.posted.pop(flow, None)
        if flow.phase is not _POSTED:
            return
        if status == _OK:
            flow.phase, flow.index = _HELD, index
            if index in self.held:
                log.error("the NIC gave the index %d to two flows", index)
            self.held[index] = flow
            self.counts["handed_over"] += 1
        else:
            flow.phase = Phase.REFUSED
            self._release(flow)
            self.counts["refused_full" if status == _TABLE_FULL else "refused_other"] += 1
            if status not in (_TABLE_FULL, Status.DUPLICATE):
                log.warning("the NIC refused to close a connection: %s", status_of(status).name)
        flow.answered(status)

    def _done(self, index: int, status: int, rtt_steps: int, retransmissions: int) -> None:
        flow = self.held.pop(index, None)
        if flow is None:
            log.error("the NIC reports the end of flow %d, which it did not have", index)
            return
        counts = self.counts
        if status == _OK:
            counts["closed"] += 1
            flow._error = None
        else:
            counts[_COUNTED.get(status, "faults")] += 1
            flow._error = _error(status)
        if retransmissions:
            counts["retransmissions"] += retransmissions
        rtt = 0.0
        if rtt_steps:
            rtt = rtt_steps * self.step
            counts["rtt_samples"] += 1
            self._rtt_total += rtt
        flow.phase, flow._status, flow._rtt, flow._retransmissions = _DONE, status, rtt, retransmissions
        self._release(flow)
        flow.ended()

    def fail(self, error: OSError) -> None:
        """The device was lost or reset: it reads nothing any more, and no event will come."""
        flows = [*self.posted, *self.held.values()]
        self.posted.clear()
        self.held.clear()
        self.counts["lost"] += len(flows)
        for flow in flows:
            flow.phase, flow._status, flow._rtt, flow._retransmissions, flow._error = _DONE, None, 0.0, 0, error
            self._release(flow)
            flow.ended()

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


def _updated(what: object, status: int, value: int) -> None:
    # NOT_FOUND is no news: the flow had ended, and its event says how.
    if status not in (_OK, _NOT_FOUND):
        log.warning("the NIC refused what it was told about a flow: %s", status_of(status).name)


def _error(status: int) -> OSError | None:
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
    return OSError(errno.EIO, f"the NIC could not read the last frames of the connection: {status_of(status).name}")
