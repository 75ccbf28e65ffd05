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
from typing import TYPE_CHECKING

from acceltcp.abi.messages import FINAL_FRAMES_MAX, WINDOW_UNIT, FrameFlag, Status
from acceltcp.abi.wire import TCP

from ..dma import align_up
from ..errors import DeviceTimeoutError
from ..frames import FRAME_ALIGN, TABLE_BYTES, FrameBlock
from .flows import ENTRY, FLOW_BYTES_MAX, Flow, FlowEnd, Flows, Phase, window_steps
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
_FRAME_IPV6 = int(FrameFlag.IPV6)
_pack_entry = ENTRY.pack_into
_pack_timestamps = TS_OPTION.pack


class Record:
    """What the host keeps of a connection that it has offered: until the answer the connection,
    after it just this. It looks like a closed connection to whoever compares segments with it.
    """

    __slots__ = ("__weakref__", "_hand_over", "aborting", "connection", "counted", "error", "flow", "irs", "peer",
                 "posted_at", "reset_due", "reset_strays", "watcher")  # fmt: skip

    def __init__(self, hand_over: HandOver, connection: TcpConnection, posted_at: float) -> None:
        self._hand_over = hand_over
        self.connection: TcpConnection | None = connection
        self.flow: Flow
        self.irs = connection.irs
        self.peer: Peer = connection.peer
        self.posted_at = posted_at
        self.watcher: weakref.ref[ConnectionEvents] | None = None
        self.error: OSError | None = None
        """Why the host aborted the flow."""
        self.aborting = False
        self.reset_due = False
        """The peer is still to be sent a reset."""
        self.reset_strays = False
        self.counted = False
        """The connection ended before the NIC answered, and has been counted."""

    @property
    def timestamps(self) -> bool:
        return self.flow.timestamps

    @property
    def ts_recent(self) -> int:
        return self.flow.ts_recent

    @property
    def rcv_nxt(self) -> int:
        return self.flow.rcv_nxt

    def answered(self, flow: Flow, status: Status) -> None:
        """From `Flows`."""
        self._hand_over._answered(self, status)

    def ended(self, flow: Flow, end: FlowEnd) -> None:
        """From `Flows`."""
        self._hand_over._ended(self, end)


class HandOver:
    """Gives an endpoint's connections to the NIC. Set as `TcpEndpoint.hand_over`."""

    def __init__(self, endpoint: TcpEndpoint, flows: Flows) -> None:
        self.endpoint = endpoint
        self.flows = flows
        self.records: dict[bytes, Record] = {}
        """Connections that the NIC has, by key."""
        self._dirty: dict[Record, None] = {}

    # -- offer -----------------------------------------------------------------------------

    def offer(self, connection: TcpConnection) -> bool:
        """Post `CLOSE` for a connection that sends nothing but its end, if that is possible now."""
        if not _fits(connection):
            return False
        parts, sent = _parts(connection)
        if sent == len(parts) and connection.owes_ack and not connection.send_ack():
            return False
        flows = self.flows
        if not flows.queue.has_room:
            self.endpoint.blocked.add(connection)
            return False
        record = Record(self, connection, self.endpoint.now)
        peer, settings = connection.peer, connection.settings
        options = b""
        if connection.timestamps:
            options = _pack_timestamps(TS_PREFIX, self.endpoint.tsval(), connection.ts_recent)
        header = peer.l4 + TCP.size + len(options)
        size = TABLE_BYTES
        for start, end in parts:
            size += align_up(header + end - start, FRAME_ALIGN)
        block = flows.pool.allocate(size)
        if block is None:
            flows.counts["no_memory"] += 1
            connection.offload = False
            return False
        _fill(connection, block, parts, options, header)
        una = connection.snd_una
        record.flow = flows.post(
            connection.key,
            block,
            len(parts),
            snd_una=una,
            snd_end=una + parts[-1][1] + 1,
            sent=sent,
            rcv_nxt=connection.rcv_nxt,
            fin=connection.fin_received,
            window=connection.snd_wnd,
            wscale=connection.snd_shift,
            timestamps=connection.timestamps,
            ts_recent=connection.ts_recent,
            rto=connection.rtt.rto if connection.built else settings.initial_rto,
            retries=min(max(settings.retries, 1), _RETRIES_MAX),
            port=peer.port,
            user=record,
        )
        connection.hand_over_begins(record)
        return True

    def _answered(self, record: Record, status: Status) -> None:
        connection, record.connection = record.connection, None
        assert connection is not None, "a flow is answered once"
        if status != Status.OK:
            connection.hand_over_refused()
            return
        endpoint, flow = self.endpoint, record.flow
        other = endpoint.connections.get(flow.key)
        if other is connection:
            del endpoint.connections[flow.key]
        elif other is not None:
            other.abort()  # of the same tuple, opened meanwhile: the NIC keeps its packets from us
        self.records[flow.key] = record
        record.counted = connection.closed
        before = (flow.ack, flow.window, flow.ts_recent, flow.fin)
        flow.ack, flow.window = connection.snd_una & MASK, connection.snd_wnd
        flow.ts_recent, flow.rcv_nxt = connection.ts_recent, connection.rcv_nxt & MASK
        flow.fin = connection.fin_received
        if connection.error is not None or (connection.closed and not (connection.built and connection.fin_acked)):
            record.error, record.aborting = connection.error, True
            record.reset_strays = connection.reset_strays
            self._dirty[record] = None
        elif before != (flow.ack, flow.window, flow.ts_recent, flow.fin):
            self._dirty[record] = None
        events = connection.handed_over()
        if events is not None:
            record.watcher = weakref.ref(events)
            events.handed_over(flow)

    def _ended(self, record: Record, end: FlowEnd) -> None:
        flow, endpoint = record.flow, self.endpoint
        self._dirty.pop(record, None)
        if record.connection is not None:
            record.connection = None  # the device was lost; the connection's user is told of that
            return
        error = record.error or end.error
        if not record.counted:
            endpoint.stats["failed" if error is not None else "closed"] += 1
        endpoint.stats["retransmissions"] += end.retransmissions
        if self.records.get(flow.key) is record:
            del self.records[flow.key]
            if end.status is not None:
                endpoint.remember(flow.key, record)
        record.reset_strays |= end.status in (Status.PEER_DATA, Status.ABORTED)
        unheard = end.error is not None and end.status not in (None, Status.RESET, Status.PEER_DATA, Status.ABORTED)
        if unheard or (record.reset_due and end.status is not None):
            self._send(record, RST | ACK)  # the peer may still wait for what will not come
        events = record.watcher() if record.watcher is not None else None
        if events is not None:
            events.closed(error)

    # -- what comes late -------------------------------------------------------------------

    def receive(self, key: bytes, segment: Segment, new: bool) -> bool:
        """Deal with a segment if the NIC has its connection. new: it carries a valid cookie."""
        record = self.records.get(key)
        if record is None:
            return False
        if new and segment.seq - 1 & MASK != record.irs and supersedes(segment, record):
            left = record.flow.snd_end - segment.ack & MASK
            # Unless the cookie is valid by chance (one in 2^27 or 2^23), the NIC has let a new
            # handshake have the tuple; it has or will have told that the flow ended.
            if segment.seq - record.rcv_nxt & MASK > _RECEIVE_WINDOW or left > record.flow.reach:
                del self.records[key]
                return False
        self.flows.counts["stragglers"] += 1
        self._straggler(record, segment)
        return True

    def _straggler(self, record: Record, segment: Segment) -> None:
        """It reached our ring before the NIC took over. The rules are those of docs/teardown.md; what the
        NIC must know of it is told at the next `flush`."""
        flow, flags = record.flow, segment.flags
        offset = (segment.seq - flow.rcv_nxt + HALF & MASK) - HALF
        if flags & RST:
            if offset == 0:
                record.error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                record.aborting = True
                self._dirty[record] = None
            return
        if flow.timestamps and (not segment.ts or segment.tsval - flow.ts_recent & MASK >= HALF):
            return
        left = flow.snd_end - segment.ack & MASK
        if (
            flags & SYN
            or not flags & ACK
            or not -_RECEIVE_WINDOW <= offset < _RECEIVE_WINDOW
            or left >= flow.reach
        ):
            return
        known = flow.snd_end - flow.ack & MASK
        if left <= known:
            window = segment.window << flow.wscale
            if left < known or window != flow.window:
                flow.ack, flow.window = segment.ack, window
                self._dirty[record] = None
        if flow.timestamps and offset <= 0:
            flow.ts_recent = segment.tsval
        # Data beyond what we have acknowledged are ignored: the peer will repeat them, to the NIC.
        if flags & FIN and not flow.fin and offset + len(segment.payload) == 0:
            flow.fin = True
            flow.rcv_nxt = flow.rcv_nxt + 1 & MASK
            self._dirty[record] = None
            self._send(record, ACK)

    # -- abort -----------------------------------------------------------------------------

    def abort(self, record: Record) -> None:
        """End a flow that the NIC has, and reset the peer."""
        if record.flow.phase is Phase.HELD and not record.aborting:
            record.error = ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
            record.aborting = record.reset_due = True
            self._dirty[record] = None

    def abort_all(self) -> None:
        """Every flow that the NIC has."""
        for flow in list(self.flows.held.values()):
            assert isinstance(flow.user, Record)
            self.abort(flow.user)

    def ended_flows(self) -> dict[int, Flow]:
        """Flows that ended lately, by index, the latest of each."""
        return {closed.flow.index: closed.flow for closed in self.endpoint.remembered() if isinstance(closed, Record)}

    # -- output and time -------------------------------------------------------------------

    def flush(self) -> None:
        """Tell the NIC what was learned. What finds no room in the ring stays for the next time."""
        while self._dirty:
            record = next(iter(self._dirty))
            if record.reset_due:
                if not self._send(record, RST | ACK):
                    return
                record.reset_due = False
            if not self.flows.update(record.flow, abort=record.aborting):
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
        for flow in self.flows.posted:
            assert isinstance(flow.user, Record)
            return flow.user
        return None

    def _send(self, record: Record, flags: int) -> bool:
        """A segment without data, as the NIC would send it; False when the ring is full."""
        link, flow, peer = self.endpoint.link, record.flow, record.peer
        slot = link.reserve()
        if slot is None:
            return False
        options = b""
        if flow.timestamps:
            options = TS_OPTION.pack(TS_PREFIX, self.endpoint.tsval(), flow.ts_recent)
        at = peer.build(slot, flow.snd_end, flow.rcv_nxt, flags, _RECEIVE_WINDOW, options, False, 0)
        link.commit(at, peer.l3, peer.l4, peer.tx_flags, peer.port)
        return True


def _fits(connection: TcpConnection) -> bool:
    """Whether all that is left can leave at once, no loss is being recovered from, and we know where the peer is: the NIC
    sends to one MAC address only."""
    size = connection.send_bytes
    if connection.address_in_doubt or connection.in_trouble or size >= FLOW_BYTES_MAX:
        return False
    if size > FINAL_FRAMES_MAX * connection.mss or len(_parts(connection)[0]) > FINAL_FRAMES_MAX:
        return False
    # A FIN alone takes no room in the window.
    cwnd = connection.congestion.cwnd if connection.built else connection.initial_window
    return size <= min(window_steps(connection.snd_wnd) * WINDOW_UNIT, cwnd)


def _parts(connection: TcpConnection) -> tuple[list[tuple[int, int]], int]:
    """From where to where in the send buffer each final frame's data go, and how many of the frames have left. None holds
    both what has been sent and what has not, so nothing is sent twice; when all data have been sent and the FIN has
    not, it goes alone."""
    size, mss = connection.send_bytes, connection.mss
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
    connection: TcpConnection, block: FrameBlock, parts: list[tuple[int, int]], options: bytes, header: int
) -> None:
    """Build the final frames in the NIC's memory, and the table that describes them."""
    peer, data, una, nxt = connection.peer, connection.send_buffer, connection.snd_una, connection.rcv_nxt
    view, address, l4 = block.view, block.address, peer.l4
    window = connection.window_field()
    always = ACK | (ECE if connection.echoes_ce else 0)
    kind = _FRAME_IPV6 if peer.ipv6 else 0
    at, entry, last = TABLE_BYTES, 0, len(parts) - 1
    for number, (start, end) in enumerate(parts):
        length = end - start
        flags = always
        if number == last:
            flags |= FIN | PSH if length else FIN
        slot = view[at:]
        body = peer.build(slot, una + start, nxt, flags, window, options, False, length)
        if length:
            assert data is not None
            data.copy_into(slot, body, una + start, length)
        _pack_entry(view, entry, address + at, una + start & MASK, header + length, l4, kind)
        entry += ENTRY.size
        at += align_up(header + length, FRAME_ALIGN)
