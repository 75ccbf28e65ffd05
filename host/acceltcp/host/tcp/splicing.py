"""Splicing on the side of the TCP endpoint: two connections stand still, and the NIC forwards their packets.

`Splicing.begin` freezes both: TSval stays as it is, RCV.NXT and the window are what the other peer says, and nothing is written any more. What has
been written before is sent and sent again until it is acknowledged, of which copies of packets tell (GUARD); the NIC puts what it forwards behind it. Packets
that reach the host between the freezing and the NIC's beginning wait. When the NIC refuses, they are received as if nothing had
been. When it takes the connections, the host sends them on itself, with the NIC's offsets and without acknowledging
anything, so that the far end's acknowledgment is the only one. A FIN it leaves to the NIC: the sender repeats it.

With a limit (bytes of the server), what the NIC does not forward (DIVERTED) is kept: data and FIN of the client, and of the server
what lies beyond the limit. Once the client has acknowledged everything up to it, both connections live on, and what was kept is received then.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from acceltcp.abi.messages import SPLICE_HOST_SENT_MAX, SpliceSideFlag, Status, Verdict
from acceltcp.abi.wire import ETHERNET, TCP, VLAN, WINDOW_MAX

from ..errors import DeviceTimeoutError
from ..rings import RX_PACKING
from .segment import ACK, CWR, ECE, FIN, HALF, MASK, PSH, RST, SYN, TS_OPTION, TS_PREFIX, Segment, ends_of
from .splices import SideEnd, Splice, Splices, refusal_of

if TYPE_CHECKING:
    from .connection import TcpConnection
    from .endpoint import TcpEndpoint

__all__ = ["REFUSALS", "Half", "Outcome", "Pair", "PairUser", "Splicing", "blamed"]

_ANSWER_S = 30.0
"""A device that has not answered a `SPLICE` by then is given up."""

_L3, _L4 = RX_PACKING["l3_offset"].item, RX_PACKING["l4_offset"].item
assert RX_PACKING["l3_offset"].shift == RX_PACKING["l4_offset"].shift == 0

_QUEUED_MOST = 4096
"""Packets that wait for the answer at most, each way; the sender repeats others."""

_SHIFT_MOST = 10
"""A window that is told in steps of 2^10 bytes is rounded down by less than a segment, so that it never seems closed for long."""

REFUSALS = {
    "no_feature": "this NIC does not splice",
    "two_nics": "the connections are not on the same queue of the same NIC",
    "state": "one of the connections is not established, or half-closed",
    "ip_version": "one of the connections is IPv4, the other one IPv6",
    "timestamps": "one of the connections has TCP timestamps, the other one has not",
    "mss": "one peer may send larger segments than the other one takes",
    "window_scale": "the window shift that one peer has from us is too coarse for the windows of the other one",
    "link": "one peer is behind a link header that the NIC cannot build",
    "idle_timeout": "the idle time-out is longer than the NIC can measure",
    "ring_full": "the transmit ring has no room",
    "no_memory": "there is no memory for the command",
    "table_full": "the NIC has no room for another splice",
    "duplicate": "the NIC has one of the connections already",
    "no_secret": "the NIC's connection table is not ready",
}
"""Why connections are not spliced, in words; the NIC's other refusals are named as its statuses are."""


def blamed(error: OSError, who: str) -> OSError:
    """An error of one of the two connections that says whose it is, "client" or "server"."""
    what = f"the {who} has reset the connection" if isinstance(error, ConnectionResetError) else f"the {who}'s connection has failed"
    return OSError(error.errno, f"{error.strerror}: {what}")


@dataclass(frozen=True)
class Outcome:
    """How a splice ended. status: None when the device was lost. octets, packets: sent on, the client's first. host_packets:
    packets of both connections that came to the host. error: what its user is told, None for a good end."""

    status: Status | None
    octets: tuple[int, int]
    packets: tuple[int, int]
    host_packets: int
    error: OSError | None


class PairUser(Protocol):
    """What the user of a splice hears. Called from the endpoint's loop; must not block."""

    def spliced(self) -> None:
        """The NIC forwards the packets."""

    def refused(self, reason: str) -> None:
        """The NIC does not; both connections go on as before."""

    def ended(self, outcome: Outcome) -> None:
        """The splice is over. After LIMIT both connections live on: whoever shall hear of them is to be put in place now."""


class Half:
    """One of the two connections. Numbers are its own and do not wrap."""

    __slots__ = ("conn", "end", "kept_ts", "most", "other", "pair", "queue", "rcv", "sent", "sent_packets", "ts_offset")

    def __init__(self, pair: Pair, conn: TcpConnection) -> None:
        self.pair, self.conn = pair, conn
        self.other: Half
        assert conn.send_buffer is not None
        self.end = conn.send_buffer.end
        """After all that was written to its peer."""
        self.rcv = conn.rcv_nxt
        """After all that was received of its peer, and written to the other one."""
        self.most: int | None = None
        """The peer's data end there for the other one; None: they do not."""
        self.sent = conn.rcv_nxt
        """After all that the host has sent on."""
        self.sent_packets = 0
        self.ts_offset = 0
        self.queue: list[tuple[bytes, tuple[int, ...], int]] = []
        """Packets that wait for the NIC's answer: frame, items of its completion, verdict."""
        self.kept_ts: int | None = None

    @property
    def who(self) -> str:
        """Whose it is, for errors."""
        return "client" if self.pair.halves[0] is self else "server"

    @property
    def offset(self) -> int:
        """Added to a sequence number of its peer it is one of the other connection."""
        return self.other.end - self.rcv

    # -- packets ---------------------------------------------------------------------------

    def receive(self, segment: Segment, verdict: int, view: memoryview, items: tuple[int, ...]) -> None:
        """A packet of this connection that has come to the host."""
        pair = self.pair
        pair.host_packets += 1
        if verdict == Verdict.GUARD:
            pair.splicing.splices.counts["guard_packets"] += 1
            self._acknowledge(segment)
        elif pair.posted:
            if len(self.queue) < _QUEUED_MOST:
                self.queue.append((bytes(view), items, verdict))
        else:
            self.deal(segment, verdict)

    def deal(self, segment: Segment, verdict: int) -> None:
        """A packet that the NIC has not forwarded."""
        counts = self.pair.splicing.splices.counts
        if verdict == Verdict.DIVERTED:
            counts["diverted"] += 1
            if self.most is None:
                return  # the splice has ended; what remains to be known its event says
        flags = segment.flags
        if flags & RST:
            if self._number(segment.seq) == self.sent and verdict != Verdict.DIVERTED:
                self.pair.fail(blamed(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)), self.who))
            return
        if flags & SYN or not flags & ACK:
            return
        self._acknowledge(segment)
        seq, payload = self._number(segment.seq), segment.payload
        if verdict != Verdict.DIVERTED and seq + len(payload) - self.rcv >= SPLICE_HOST_SENT_MAX:
            return  # it will be repeated, to the NIC
        fin = bool(flags & FIN)
        if self.most is not None:
            payload = self._keep(segment, seq, payload, fin)
            if not payload and (segment.payload or fin):
                return
        if seq < self.rcv:
            # The host has acknowledged that, and has its own bytes for the place (they need not be the same).
            payload, seq = payload[self.rcv - seq :], self.rcv
            if not payload:
                return
        if payload or not fin:
            self._send_on(segment, seq, payload)

    def _number(self, seq: int) -> int:
        """A 32-bit number of the peer."""
        return self.sent + ((seq - self.sent + HALF) & MASK) - HALF

    def _keep(self, segment: Segment, seq: int, payload: memoryview, fin: bool) -> memoryview:
        """Keep what lies beyond the limit for later; what lies before it."""
        conn, most = self.conn, self.most
        assert most is not None
        if segment.ts and (self.kept_ts is None or (segment.tsval - self.kept_ts) & MASK < HALF):
            self.kept_ts = segment.tsval
        end = seq + len(payload)
        if fin and conn._fin_at is None and end >= self.rcv:
            conn._fin_at = end
            if end < most:
                self.pair.fail(
                    ConnectionResetError(errno.ECONNRESET, f"the server ended its data {most - end} bytes before the limit")
                )
        start = max(seq, most)
        room = max(conn.rcv_adv, most + conn.rcv_limit)
        if start < end and end <= room and not conn.endpoint.pressed:
            conn.endpoint.buffered += conn.reassembly.add(start, payload[start - seq :])
        return payload[: max(most - seq, 0)]

    def _acknowledge(self, segment: Segment) -> None:
        """What a packet says of the data that the host has to get there itself."""
        conn, end = self.conn, self.end
        una, nxt = conn.snd_una, conn.snd_nxt
        if conn.closed or not segment.flags & ACK or segment.flags & (SYN | RST):
            return
        ack = una + ((segment.ack - una + HALF) & MASK) - HALF
        if ack > nxt and nxt < end:
            return  # of data that were never sent
        if ack > end:
            self._pass_on(ack - end, segment.window << conn.snd_shift)
        if una == end:
            conn.snd_wnd = segment.window << conn.snd_shift
            return
        if ack < una - conn.max_wnd:
            return
        blocks = []
        for left, right in segment.sack:
            first = una + ((left - una + HALF) & MASK) - HALF
            last = min(una + ((right - una + HALF) & MASK) - HALF, nxt)
            if una <= first < last:
                blocks.append((first & MASK, last & MASK))
        segment.sack = tuple(blocks)
        conn.acknowledged_to_splice(segment, min(ack, nxt))

    def _pass_on(self, beyond: int, window: int) -> None:
        """This peer has so many bytes that the NIC has forwarded to it: what the host still sends to the other peer acknowledges them,
        too. With a number too old, it would not be taken (RFC 5961 section 5.2)."""
        other = self.other
        acked = other.rcv + beyond
        if acked > other.conn.rcv_nxt:
            other.conn.rcv_nxt = acked
            other.conn.rcv_adv = acked + window

    # -- sending on ------------------------------------------------------------------------

    def _send_on(self, segment: Segment, seq: int, payload: memoryview) -> None:
        """As the NIC would, but acknowledging no less than the host has."""
        other = self.other
        ack = other.rcv + ((segment.ack - self.end + HALF) & MASK) - HALF
        # A peer that has not heard of our backlog yet: its window begins before it.
        window = (segment.window << self.conn.snd_shift) - max(other.rcv - ack, 0)
        flags = segment.flags & (ACK | PSH)
        if self.conn.ecn and other.conn.ecn:
            flags |= segment.flags & (ECE | CWR)
        tsval = segment.tsval + other.ts_offset & MASK
        tsecr = segment.tsecr - self.ts_offset & MASK
        self._send(seq, max(ack, other.rcv), max(window, 0), flags, payload, tsval, tsecr)

    def _send(
        self, seq: int, ack: int, window: int, flags: int, payload: memoryview | bytes, tsval: int, tsecr: int
    ) -> None:
        """Segments of this peer to the other one. ack: in the other one's numbers; window: bytes."""
        to = self.other.conn
        if to.closed:
            return
        link, peer = to.endpoint.link, to.peer
        options = b""
        if to.timestamps:
            options = TS_OPTION.pack(TS_PREFIX, tsval, tsecr)
            floors = self.pair.floors
            if (tsval - floors.setdefault(self.other, tsval)) & MASK < HALF:
                floors[self.other] = tsval
        field = min(window >> to.rcv_shift, WINDOW_MAX)
        at, size = 0, len(payload)
        while at < size or not size:
            part = payload[at : at + to.mss]
            slot = link.reserve()
            if slot is None:
                return  # lost, as on a wire: it will be repeated
            last = at + len(part) == size
            body = peer.build(
                slot, seq + at + self.offset, ack, flags if last else flags & ~PSH, field, options, False, len(part)
            )
            slot[body : body + len(part)] = part
            link.commit(body + len(part), peer.l3, peer.l4, peer.tx_flags, peer.port)
            self.sent_packets += 1
            self.pair.splicing.splices.counts["translated"] += 1
            at += len(part)
            if not size:
                break
        self.sent = max(self.sent, seq + at)

    def begin(self) -> None:
        """The NIC has taken over: send on what came before that, and tell the other peer what this one has room for."""
        conn, other = self.conn, self.other
        if conn.closed:
            return
        if self.most is None or self.most > self.rcv:
            conn.endpoint.buffered -= conn.reassembly.size
            stretches = conn.reassembly.take()
            if self.most is None:
                conn._fin_at = None
            for seq, data in stretches:
                before = data if self.most is None else data[: max(self.most - seq, 0)]
                before = before[: max(self.rcv + SPLICE_HOST_SENT_MAX - 1 - seq, 0)]
                if before:
                    self._send(
                        seq, other.rcv, self._room, ACK, before, other.conn.tsval(), other.conn.ts_recent
                    )
                if self.most is not None and seq + len(data) > self.most:
                    kept = max(self.most, seq)
                    conn.endpoint.buffered += conn.reassembly.add(kept, memoryview(data)[kept - seq :])
        queue, self.queue = self.queue, []
        for frame, items, verdict in queue:
            self.deal(Segment(memoryview(frame), items[_L3], items[_L4], conn.peer.ipv6), verdict)
        edge = other.rcv + self._room
        if edge > other.conn.rcv_adv and not other.conn.closed:
            self._send(self.sent, other.rcv, self._room, ACK, b"", other.conn.tsval(), other.conn.ts_recent)

    @property
    def _room(self) -> int:
        """What this peer can take behind what the host has written to it, in bytes."""
        return max(self.conn.snd_una + self.conn.snd_wnd - self.end, 0)

    def end_of(self, side: SideEnd) -> int:
        """Where its data end of which the NIC knows. Numbers of 32 bits may have wrapped; how often, the count of bytes tells,
        as long as less than 2^32 of them were repetitions."""
        forwarded = side.snd_end - self.rcv & MASK
        if forwarded >= HALF and side.octets < HALF:
            return self.rcv  # never forwarded anything; the host may have sent on more than it knows
        most = side.octets + self.sent - self.rcv + side.fin
        return self.rcv + forwarded + max(most - forwarded >> 32, 0) * (MASK + 1)

    # -- from the connection ---------------------------------------------------------------

    def timed_out(self) -> None:
        """Nothing has been heard of what was written before. The packet that told of it may have found no room in host memory; from then on the
        NIC copies none: ask for others. (That there is no room in the ring now does not matter: the next time-out asks again.)"""
        self.pair.splicing.splices.copy(self.pair)

    def abort(self) -> None:
        """Its user wants it reset."""
        self.pair.fail(ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)))

    def closed(self, error: OSError | None) -> None:
        """It has ended by itself: its peer acknowledges nothing of what was written before."""
        self.pair.fail(blamed(error or ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)), self.who))


class Pair(Splice):
    """Both connections of a splice, the client's first."""

    __slots__ = ("error", "floors", "halves", "host_packets", "idle_timeout", "limit", "posted", "splicing", "user")

    def __init__(
        self, splicing: Splicing, client: TcpConnection, server: TcpConnection, limit: int | None, idle_timeout: float | None,
        user: PairUser,
    ) -> None:  # fmt: skip
        self.splicing, self.limit, self.idle_timeout, self.user = splicing, limit, idle_timeout, user
        self.posted = True
        self.error: OSError | None = None
        """Why the host ends it."""
        self.host_packets = 0
        self.floors: dict[Half, int] = {}
        """Latest TSval that the host has sent on to a peer."""
        one, two = self.halves = Half(self, client), Half(self, server)
        one.other, two.other = two, one
        if limit is not None:
            one.most, two.most = one.rcv, two.rcv + limit
        for half in self.halves:
            if half.conn.timestamps:
                half.conn.ts_floor = half.conn.tsval()
                half.ts_offset = half.conn.ts_floor - half.other.conn.ts_recent & MASK

    def side(self, half: Half) -> dict[str, int]:
        """Fields of SPLICE_SIDE."""
        conn, other = half.conn, half.other.conn
        ends, peer = ends_of(conn.key), conn.peer
        link = peer.link
        on = (
            (SpliceSideFlag.IPV6, peer.ipv6), (SpliceSideFlag.VLAN, len(link) > ETHERNET.size),
            (SpliceSideFlag.TIMESTAMPS, conn.timestamps), (SpliceSideFlag.SACK, conn.sack and other.sack),
            (SpliceSideFlag.ECN, conn.ecn and other.ecn),
        )  # fmt: skip
        flags = sum(int(flag) for flag, set_ in on if set_)
        return {
            "remote": int.from_bytes(ends.remote.rjust(16, b"\0"), "little"),
            "local": int.from_bytes(ends.local.rjust(16, b"\0"), "little"),
            "remote_port": ends.remote_port, "local_port": ends.local_port,
            "dst_mac": int.from_bytes(link[:6], "little"),
            "vlan_tci": int.from_bytes(link[14:16], "big") if flags & SpliceSideFlag.VLAN else 0,
            "flags": flags, "port": peer.port, "snd_shift": conn.snd_shift, "rcv_shift": conn.rcv_shift,
            "snd_nxt": half.end & MASK, "snd_una": conn.snd_una & MASK, "rcv_nxt": half.rcv & MASK, "ts_offset": half.ts_offset,
        }  # fmt: skip

    def fail(self, error: OSError) -> None:
        """End it, and reset both connections."""
        if self.error is None:
            self.error = error
            self.splicing.dirty[self] = None

    # -- from the NIC ----------------------------------------------------------------------

    def answered(self, status: int) -> None:
        """From `Splices`."""
        self.posted = False
        if status != Status.OK:
            self.splicing.release(self)
            self._thaw()
            self.user.refused(refusal_of(status))
            if self.error is not None:
                for half in self.halves:
                    half.conn.abort()
            return
        for half in self.halves:
            half.begin()
        self.user.spliced()

    def _thaw(self) -> None:
        """Go on as if nothing had happened; what has waited is received now."""
        waiting = []
        for half in self.halves:
            conn = half.conn
            conn.splice = None
            waiting += half.queue
            if conn.opts.keepalive:
                conn.keep_at = conn.endpoint.now + conn.opts.keepidle
            conn.endpoint.mark(conn)
        endpoint = self.splicing.endpoint
        for frame, items, _ in waiting:
            endpoint.stats["segments"] -= 1
            endpoint.receive(memoryview(frame), items)

    def ended(self, status: Status | None, reset_by: int, sides: tuple[SideEnd, SideEnd] | None) -> None:
        """From `Splices`."""
        self.posted = False
        self.splicing.release(self)
        one, two = self.halves
        for half in self.halves:
            half.conn.splice = None
        if status is None or sides is None:
            lost = ConnectionAbortedError(errno.ECONNABORTED, "the device went away")
            self.user.ended(Outcome(None, (0, 0), (0, 0), self.host_packets, lost))
            return
        if status is Status.RESET and self._both_closed(sides):
            status = Status.OK  # a peer that has forgotten the connection answers what it got twice: that harms nobody
        ends = [half.end_of(side) for half, side in zip(self.halves, sides, strict=True)]
        for half, side in zip(self.halves, sides, strict=True):
            self._stamps(half, side, sides[half is one])
        sent = [max(end - side.fin, half.sent) - half.rcv for half, side, end in zip(self.halves, sides, ends, strict=True)]
        if self.limit is not None:
            sent = [0, min(sent[1], self.limit)]
        packets = [side.packets + half.sent_packets for half, side in zip(self.halves, sides, strict=True)]
        error = self.error
        if error is None:
            error = self._error(status, reset_by)
        outcome = Outcome(status, (sent[0], sent[1]), (packets[0], packets[1]), self.host_packets, error)
        if status is Status.LIMIT and error is None and self.limit is not None:
            one.conn.forwarded_up_to(one.end + self.limit)
            one.conn.received_up_to(one.rcv)
            two.conn.received_up_to(two.rcv + self.limit)
            two.conn.acknowledged_elsewhere(two.conn.snd_una + ((sides[1].ack - two.conn.snd_una + HALF) & MASK) - HALF)
            self.user.ended(outcome)
            for half in self.halves:
                half.conn.take_kept()
            return
        for half, end in zip(self.halves, ends, strict=True):
            conn = half.conn
            if conn.closed:
                continue
            conn.rcv_nxt = end
            if status is Status.OK and self.error is None:
                conn.ended_elsewhere()
                continue
            conn.reset_strays = True
            if status is not Status.RESET:
                # Exactly what the peer expects, as far as we know (RFC 5961 section 3).
                whole = conn.snd_una == half.end
                forwarded = ends[half is one] - half.other.rcv
                conn.emit(half.end + max(forwarded, half.other.sent - half.other.rcv) if whole else conn.snd_una, RST | ACK)
            conn.end(error)
        self.user.ended(outcome)

    def _both_closed(self, sides: tuple[SideEnd, SideEnd]) -> bool:
        """Whether each peer has ended its data, and has acknowledged the other one's end."""
        return all(
            mine.fin and (theirs.ack - mine.snd_end - half.offset) & MASK == 0
            for half, mine, theirs in zip(self.halves, sides, sides[::-1], strict=True)
        )

    def _stamps(self, half: Half, mine: SideEnd, theirs: SideEnd) -> None:
        """What its peer has said and seen of timestamps."""
        conn = half.conn
        if not conn.timestamps:
            return
        for seen in (mine.tsval or None, half.kept_ts):
            if seen is not None and (seen - conn.ts_recent) & MASK < HALF:
                conn.ts_recent = seen
        floor = conn.ts_floor
        for said in (theirs.tsval + half.ts_offset & MASK if theirs.tsval else None, self.floors.get(half)):
            if said is not None and (floor is None or (said - floor) & MASK < HALF):
                floor = said
        conn.ts_floor = floor

    def _error(self, status: Status, reset_by: int) -> OSError | None:
        if status in (Status.OK, Status.LIMIT):
            return None
        if status is Status.RESET:
            return blamed(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)), self.halves[reset_by].who)
        if status is Status.IDLE:
            return TimeoutError(errno.ETIMEDOUT, f"no packet came for {self.idle_timeout:g} s")
        return ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))


class Splicing:
    """Has an endpoint's connections spliced. Set as `TcpEndpoint.splices`."""

    def __init__(self, endpoint: TcpEndpoint, splices: Splices) -> None:
        self.endpoint = endpoint
        self.splices = splices
        self.keys: dict[bytes, Pair] = {}
        """Connections that the NIC has or may have."""
        self.dirty: dict[Pair, None] = {}
        """Those that the host ends."""

    def refusal(self, client: TcpConnection, server: TcpConnection, idle_timeout: float | None) -> str | None:
        """Why these connections cannot be spliced (`REFUSALS`); None: they can, for all that we know."""
        if client.endpoint is not self.endpoint or server.endpoint is not self.endpoint:
            return "two_nics"
        if not (_established(client) and _established(server)):
            return "state"
        if client.peer.ipv6 != server.peer.ipv6:
            return "ip_version"
        if client.timestamps != server.timestamps:
            return "timestamps"
        if any(two.rcv_shift > max(one.snd_shift, _SHIFT_MOST) for one, two in ((client, server), (server, client))):
            return "window_scale"
        if any(len(one.peer.link) not in (ETHERNET.size, ETHERNET.size + VLAN.size) for one in (client, server)):
            return "link"
        if not (self._fits(client, server) and self._fits(server, client)):
            return "mss"
        if self.splices.idle_units(idle_timeout) is None:
            return "idle_timeout"
        return None

    def _fits(self, source: TcpConnection, sink: TcpConnection) -> bool:
        """Whether the largest segments of one peer are not too large for the other one, nor for the way to it."""
        endpoint = self.endpoint
        headers = sink.peer.l4 - sink.peer.l3 + TCP.size
        largest = source.rcv_mss or endpoint.settings.mtu - headers
        return largest <= sink.peer_mss and largest + headers <= endpoint.path_mtu(sink)

    def begin(
        self, client: TcpConnection, server: TcpConnection, limit: int | None, idle_timeout: float | None, user: PairUser
    ) -> str | None:
        """Post `SPLICE` for two connections for which there is no refusal; from now on they stand still. limit: bytes of the
        server, beginning with what it has not sent yet. Returns why it could not be posted."""
        for conn in (client, server):
            conn.build()
            if conn.owes_ack and not conn.send_ack():
                return "ring_full"
        pair = Pair(self, client, server, limit, idle_timeout, user)
        one, two = pair.halves
        idle = self.splices.idle_units(idle_timeout)
        assert idle is not None, "it was asked for a refusal"
        reason = self.splices.post(pair, pair.side(one), pair.side(two), limit, idle, self.endpoint.now)
        if reason is not None:
            return reason
        for half in pair.halves:
            conn = half.conn
            conn.splice, conn.sink = half, None
            conn.ack_now, conn.ack_at, conn.keep_at = False, None, None
            self.keys[conn.key] = pair
            self.endpoint.mark(conn)  # what Nagle or a cork holds back goes now
        return None

    def release(self, pair: Pair) -> None:
        """The NIC has the pair no longer."""
        self.dirty.pop(pair, None)
        for half in pair.halves:
            self.keys.pop(half.conn.key, None)

    def abort_all(self) -> None:
        """End all splices, and reset their connections."""
        for pair in dict.fromkeys(self.keys.values()):
            pair.halves[0].abort()

    # -- output and time -------------------------------------------------------------------

    def flush(self) -> None:
        """Tell the NIC what to end. What finds no room in the ring stays for the next time."""
        for pair in list(self.dirty):
            if not pair.posted:
                if not self.splices.end(pair):
                    return
                del self.dirty[pair]

    def next_deadline(self) -> float | None:
        """When `run_timers` is due."""
        for pair in self.splices.posted:
            return pair.posted_at + _ANSWER_S
        return None

    def run_timers(self, now: float) -> None:
        """Raises `DeviceTimeoutError` when the device does not answer."""
        due = self.next_deadline()
        if due is not None and now >= due:
            raise DeviceTimeoutError(f"The NIC has not answered a SPLICE within {_ANSWER_S:g} s.")


def _established(conn: TcpConnection) -> bool:
    return not (
        conn.closed or conn.opening or conn.fin_queued or conn.fin_received or conn.handing or conn.splice is not None
    ) and conn.reading
