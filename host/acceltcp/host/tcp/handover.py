"""The hand-over of closing connections to the NIC, on the side of the TCP endpoint.

A connection that its application has closed is offered whenever it would send. It goes when all
that the peer has not acknowledged fits the final frames of `CLOSE` and the peer's and the congestion
window; until then it sends by itself. While `CLOSE` is on its way the connection lives on, but sends no
data, and takes none: what nobody acknowledges, the peer repeats, and then the NIC decides about it. After a refusal it
goes on as if nothing had happened. After acceptance a small `Record` stays until the flow has ended, to
tell the NIC what packets say that reached the host before it took over.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from acceltcp.abi.messages import FINAL_FRAMES_MAX, WINDOW_UNIT, FrameFlag, Status
from acceltcp.abi.wire import TCP

from ..dma import align_up
from ..errors import DeviceTimeoutError
from ..frames import FRAME_ALIGN, TABLE_BYTES, FrameBlock
from .flows import ENTRY, FLOW_BYTES_MAX, Flow, Flows, Phase, window_steps
from .segment import ACK, ECE, FIN, HALF, MASK, PSH, RST, SYN, TS_OPTION, TS_PREFIX, Peer, Segment, supersedes

if TYPE_CHECKING:
    from .block import ConnectionEvents
    from .connection import TcpConnection
    from .endpoint import TcpEndpoint

__all__ = ["HandOver", "Record"]

_ANSWER_S = 30.0
"""A device that has not answered a `CLOSE` by then is given up; it may have a long ring to work through."""

_RECEIVE_WINDOW = 65535
"""Of a connection that nobody reads: what the NIC takes for it, and the window field of what is sent here."""

_RETRIES_MAX = 15
_OK = int(Status.OK)
_FRAME_IPV6 = int(FrameFlag.IPV6)
_TCP_SIZE, _ENTRY_SIZE = TCP.size, ENTRY.size
_pack_entry = ENTRY.pack_into
_pack_timestamps = TS_OPTION.pack


class Record(Flow):
    """What the host keeps of a connection that it has offered: until the answer the connection,
    after it just this. It looks like a closed connection to whoever compares segments with it.

    `HandOver.offer` sets all of it.
    """

    __slots__ = ("aborting", "connection", "counted", "error", "hand_over", "irs", "peer", "posted_at", "reset_due",
                 "reset_strays", "watcher")  # fmt: skip

    hand_over: HandOver
    connection: TcpConnection | None
    irs: int
    peer: Peer
    posted_at: float
    watcher: ConnectionEvents | weakref.ref[ConnectionEvents] | None
    """Who wants to hear of the end: if possible, as long as somebody else wants him."""
    error: OSError | None
    """Why the host aborted the flow."""
    aborting: bool
    reset_due: bool
    """The peer is still to be sent a reset."""
    reset_strays: bool
    counted: bool
    """The connection ended before the NIC answered, and has been counted."""

    def answered(self, status: int) -> None:
        """From `Flows`."""
        self.hand_over._answered(self, status)

    def ended(self) -> None:
        """From `Flows`."""
        self.hand_over._ended(self)


class HandOver:
    """Gives an endpoint's connections to the NIC. Set as `TcpEndpoint.hand_over`."""

    def __init__(self, endpoint: TcpEndpoint, flows: Flows) -> None:
        self.endpoint = endpoint
        self.flows = flows
        self.records: dict[bytes, Record] = {}
        """Connections that the NIC has, by key."""
        self._dirty: dict[Record, None] = {}
        self._retries = min(max(endpoint.settings.retries, 1), _RETRIES_MAX)

    # -- offer -----------------------------------------------------------------------------

    def offer(self, connection: TcpConnection) -> bool:
        """Post `CLOSE` for a connection that sends nothing but its end, if that is possible now."""
        if connection.ts_floor is not None and connection.tsval() == connection.ts_floor:
            return False  # the NIC's clock, with which it would go on, is behind what the peer has seen
        buffer, mss, built = connection.send_buffer, connection.mss, connection.built
        size = buffer.end - buffer.start if buffer is not None else 0
        parts: Sequence[tuple[int, int]]
        if not built and size <= mss and size <= window_steps(connection.snd_wnd) * WINDOW_UNIT:
            parts, sent = ((0, size),), 0  # nothing has been sent, and the congestion window takes more than one frame
        else:
            if not _fits(connection, size):
                return False
            parts, sent = _parts(connection, size)
            if len(parts) > FINAL_FRAMES_MAX:
                return False
        if sent == len(parts) and connection.owes_ack and not connection.send_ack():
            return False
        endpoint, flows = self.endpoint, self.flows
        slot = flows.queue.reserve()
        if slot is None:
            endpoint.blocked.add(connection)
            return False
        peer, timestamps = connection.peer, connection.timestamps
        options = _pack_timestamps(TS_PREFIX, endpoint.tsval(), connection.ts_recent) if timestamps else b""
        header = peer.l4 + _TCP_SIZE + len(options)
        room = TABLE_BYTES
        for start, end in parts:
            room += align_up(header + end - start, FRAME_ALIGN)
        block = flows.pool.allocate(room)
        if block is None:
            flows.counts["no_memory"] += 1
            connection.offload = False
            return False
        _fill(connection, block, parts, options, header)
        record = Record()
        record.hand_over, record.connection, record.key, record.block = self, connection, connection.key, block
        record.irs, record.peer, record.posted_at = connection.irs, peer, endpoint.now
        record.ack = connection.snd_una & MASK
        record.snd_end = connection.snd_una + size + 1 & MASK
        record.rcv_nxt, record.fin = connection.rcv_nxt & MASK, connection.fin_received
        record.window, record.wscale = connection.snd_wnd, connection.snd_shift
        record.timestamps, record.ts_recent = timestamps, connection.ts_recent
        record.watcher = record.error = None
        record.aborting = record.reset_due = record.reset_strays = record.counted = False
        flows.post(
            record, slot, len(parts), sent, connection.rtt.rto if built else connection.settings.initial_rto,
            self._retries, peer.port,
        )  # fmt: skip
        connection.hand_over_begins(record)
        return True

    def _answered(self, record: Record, status: int) -> None:
        connection, record.connection = record.connection, None
        assert connection is not None, "a flow is answered once"
        if status != _OK:
            connection.hand_over_refused()
            return
        endpoint, key = self.endpoint, record.key
        other = endpoint.connections.get(key)
        if other is connection:
            del endpoint.connections[key]
        elif other is not None:
            other.abort()  # of the same tuple, opened meanwhile: the NIC keeps its packets from us
        self.records[key] = record
        record.counted = connection.closed
        ack, window, ts_recent, fin = (
            connection.snd_una & MASK, connection.snd_wnd, connection.ts_recent, connection.fin_received,
        )  # fmt: skip
        if ack != record.ack or window != record.window or ts_recent != record.ts_recent or fin != record.fin:
            record.ack, record.window, record.ts_recent, record.fin = ack, window, ts_recent, fin
            self._dirty[record] = None
        record.rcv_nxt = connection.rcv_nxt & MASK
        if connection.error is not None or (connection.closed and not (connection.built and connection.fin_acked)):
            record.error, record.aborting = connection.error, True
            record.reset_strays = connection.reset_strays
            self._dirty[record] = None
        events = connection.handed_over()
        if events is not None:
            record.watcher = weakref.ref(events) if type(events).__weakrefoffset__ else events
            events.handed_over(record)

    def _ended(self, record: Record) -> None:
        endpoint = self.endpoint
        if self._dirty:
            self._dirty.pop(record, None)
        if record.connection is not None:
            record.connection = None  # the device was lost; the connection's user is told of that
            return
        status = record._status
        error = record.error or record._error
        if not record.counted:
            endpoint.stats["failed" if error is not None else "closed"] += 1
        if record._retransmissions:
            endpoint.stats["retransmissions"] += record._retransmissions
        if self.records.get(record.key) is record:
            del self.records[record.key]
            if status is not None:
                endpoint.remember(record.key, record)
        if status is not None and (status != _OK or record.reset_due):
            if status in (Status.PEER_DATA, Status.ABORTED):
                record.reset_strays = True
            unheard = record._error is not None and status not in (Status.RESET, Status.PEER_DATA, Status.ABORTED)
            if unheard or record.reset_due:
                self._send(record, RST | ACK)  # the peer may still wait for what will not come
        watcher, record.watcher = record.watcher, None
        events = watcher() if isinstance(watcher, weakref.ref) else watcher
        if events is not None:
            events.closed(error)

    # -- what comes late -------------------------------------------------------------------

    def receive(self, key: bytes, segment: Segment, new: bool) -> bool:
        """Deal with a segment if the NIC has its connection. new: it carries a valid cookie."""
        record = self.records.get(key)
        if record is None:
            return False
        if new and segment.seq - 1 & MASK != record.irs and supersedes(segment, record):
            left = record.snd_end - segment.ack & MASK
            # Unless the cookie is valid by chance (one in 2^27 or 2^23), the NIC has let a new
            # handshake have the tuple; it has or will have told that the flow ended.
            if segment.seq - record.rcv_nxt & MASK > _RECEIVE_WINDOW or left > record.reach:
                del self.records[key]
                return False
        self.flows.counts["stragglers"] += 1
        self._straggler(record, segment)
        return True

    def _straggler(self, record: Record, segment: Segment) -> None:
        """It reached our ring before the NIC took over. The rules are those of docs/teardown.md; what the
        NIC must know of it is told at the next `flush`."""
        flags = segment.flags
        offset = (segment.seq - record.rcv_nxt + HALF & MASK) - HALF
        if flags & RST:
            if offset == 0:
                record.error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                record.aborting = True
                self._dirty[record] = None
            return
        if record.timestamps and (not segment.ts or segment.tsval - record.ts_recent & MASK >= HALF):
            return
        left = record.snd_end - segment.ack & MASK
        if (
            flags & SYN
            or not flags & ACK
            or not -_RECEIVE_WINDOW <= offset < _RECEIVE_WINDOW
            or left >= record.reach
        ):
            return
        known = record.snd_end - record.ack & MASK
        if left <= known:
            window = segment.window << record.wscale
            if left < known or window != record.window:
                record.ack, record.window = segment.ack, window
                self._dirty[record] = None
        if record.timestamps and offset <= 0:
            record.ts_recent = segment.tsval
        # Data beyond what we have acknowledged are ignored: the peer will repeat them, to the NIC.
        if flags & FIN and not record.fin and offset + len(segment.payload) == 0:
            record.fin = True
            record.rcv_nxt = record.rcv_nxt + 1 & MASK
            self._dirty[record] = None
            self._send(record, ACK)

    # -- abort -----------------------------------------------------------------------------

    def abort(self, record: Record) -> None:
        """End a flow that the NIC has, and reset the peer."""
        if record.phase is Phase.HELD and not record.aborting:
            record.error = ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
            record.aborting = record.reset_due = True
            self._dirty[record] = None

    def abort_all(self) -> None:
        """Every flow that the NIC has."""
        for record in list(self.flows.held.values()):
            assert isinstance(record, Record)
            self.abort(record)

    def ended_flows(self) -> dict[int, Flow]:
        """Flows that ended lately, by index, the latest of each."""
        return {closed.index: closed for closed in self.endpoint.remembered() if isinstance(closed, Record)}

    # -- output and time -------------------------------------------------------------------

    def flush(self) -> None:
        """Tell the NIC what was learned. What finds no room in the ring stays for the next time."""
        while self._dirty:
            record = next(iter(self._dirty))
            if record.reset_due:
                if not self._send(record, RST | ACK):
                    return
                record.reset_due = False
            if not self.flows.update(record, abort=record.aborting):
                return
            self._dirty.pop(record, None)

    def next_deadline(self) -> float | None:
        """When `run_timers` is due."""
        record = self._oldest()
        return record.posted_at + _ANSWER_S if record is not None else None

    def run_timers(self, now: float) -> None:
        """Raises `DeviceTimeoutError` when the device does not answer."""
        record = self._oldest()
        if record is not None and now >= record.posted_at + _ANSWER_S:
            raise DeviceTimeoutError(f"The NIC has not answered a CLOSE within {_ANSWER_S:g} s.")

    def _oldest(self) -> Record | None:
        for record in self.flows.posted:
            assert isinstance(record, Record)
            return record
        return None

    def _send(self, record: Record, flags: int) -> bool:
        """A segment without data, as the NIC would send it; False when the ring is full."""
        link, peer = self.endpoint.link, record.peer
        slot = link.reserve()
        if slot is None:
            return False
        options = b""
        if record.timestamps:
            options = _pack_timestamps(TS_PREFIX, self.endpoint.tsval(), record.ts_recent)
        at = peer.build(slot, record.snd_end, record.rcv_nxt, flags, _RECEIVE_WINDOW, options, False, 0)
        link.commit(at, peer.l3, peer.l4, peer.tx_flags, peer.port)
        return True


def _fits(connection: TcpConnection, size: int) -> bool:
    """Whether all that is left (so many bytes) can leave at once, no loss is being recovered from, and we know where the
    peer is: the NIC sends to one MAC address only."""
    if connection.address_in_doubt or connection.in_trouble:
        return False
    if size >= FLOW_BYTES_MAX or size > FINAL_FRAMES_MAX * connection.mss:
        return False
    # A FIN alone takes no room in the window.
    cwnd = connection.congestion.cwnd if connection.built else connection.initial_window
    return size <= cwnd and size <= window_steps(connection.snd_wnd) * WINDOW_UNIT


def _parts(connection: TcpConnection, size: int) -> tuple[list[tuple[int, int]], int]:
    """From where to where in the send buffer each final frame's data go, and how many of the frames have left. None holds
    both what has been sent and what has not, so nothing is sent twice; when all data have been sent and the FIN has
    not, it goes alone."""
    mss = connection.mss
    sent = min(connection.snd_nxt - connection.snd_una, size)
    parts = [(at, min(at + mss, sent)) for at in range(0, sent, mss)]
    left = len(parts)
    parts += [(at, min(at + mss, size)) for at in range(sent, size, mss)]
    if sent == size:
        fin_sent = connection.built and connection.fin_sent
        if not (fin_sent and parts):
            parts.append((size, size))
            left += fin_sent
    return parts, left


def _fill(
    connection: TcpConnection, block: FrameBlock, parts: Sequence[tuple[int, int]], options: bytes, header: int
) -> None:
    """Build the final frames in the NIC's memory, and the table that describes them."""
    peer, data, una, nxt = connection.peer, connection.send_buffer, connection.snd_una, connection.rcv_nxt
    view, address, l4 = block.view, block.address, peer.l4
    window = connection.window_field()
    flags = ACK | ECE if connection.echoes_ce else ACK
    kind = _FRAME_IPV6 if peer.ipv6 else 0
    at, entry, left = TABLE_BYTES, 0, len(parts)
    for start, end in parts:
        length = end - start
        left -= 1
        if not left:
            flags |= FIN | PSH if length else FIN
        slot = view[at:]
        body = peer.build(slot, una + start, nxt, flags, window, options, False, length)
        if length:
            assert data is not None
            data.copy_into(slot, body, una + start, length)
        _pack_entry(view, entry, address + at, una + start & MASK, header + length, l4, kind)
        entry += _ENTRY_SIZE
        at += align_up(header + length, FRAME_ALIGN)
