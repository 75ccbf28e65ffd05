"""Handshakes that the host does itself: SYNs to listeners without set-up offload (RFC 9293 section 3.10.7.2), and the
options of our own SYNs.

Of an unfinished handshake only an `Embryo` is kept. The acknowledgment that finishes it makes a connection, just as
a segment marked NEW does when the NIC had answered the SYN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from acceltcp.abi.wire import MSS_DEFAULT_IPV4, MSS_DEFAULT_IPV6, WINDOW_MAX, WSCALE_MAX

from .block import NEVER, ControlBlock, headers_size
from .segment import ACK, CWR, ECE, HALF, MASK, RST, SYN, Peer, Segment, SynOptions

if TYPE_CHECKING:
    from .connection import TcpConnection
    from .endpoint import TcpEndpoint

__all__ = ["Embryo", "Handshakes", "Listener", "scale_for", "syn_options"]

_MSS_MAX = 0xFFFF


def scale_for(size: int) -> int:
    """The smallest window shift that can tell a window of that many bytes (RFC 7323 section 2)."""
    shift = 0
    while size >> shift > WINDOW_MAX and shift < WSCALE_MAX:
        shift += 1
    return shift


class Listener:
    """Who takes connections to a port.

    accept: called with each new connection; says whether it is wanted. When it is not, the segment is
    dropped and the client will try again. window, wscale: our first window and window shift. teardown: the NIC may
    close them, if it can. mss: largest segment that we take (0: what fits the MTU). paused: answer no SYN; for listeners of the
    host, those of the NIC are told by a command. lazy: as `TcpSettings.lazy`.
    """

    __slots__ = ("accept", "lazy", "mss", "paused", "teardown", "window", "wscale")

    def __init__(
        self,
        accept: Callable[[TcpConnection], bool],
        window: int = 65535,
        wscale: int = 7,
        teardown: bool = True,
        *,
        lazy: bool = True,
        mss: int = 0,
    ) -> None:
        self.accept = accept
        self.window, self.wscale = window, wscale
        self.teardown, self.lazy, self.mss = teardown, lazy, mss
        self.paused = False


class Embryo:
    """A handshake that waits for its last acknowledgment."""

    __slots__ = ("due", "ecn", "irs", "iss", "listener", "mss", "peer", "sack", "timestamps", "tries", "ts_recent", "wscale")

    def __init__(self, listener: Listener, peer: Peer, iss: int, segment: Segment, options: SynOptions) -> None:
        self.listener, self.peer = listener, peer
        self.iss, self.irs = iss, segment.seq
        self.mss = options.mss if options.mss is not None else (MSS_DEFAULT_IPV6 if peer.ipv6 else MSS_DEFAULT_IPV4)
        self.wscale: int | None = options.wscale
        self.timestamps = options.tsval is not None
        self.ts_recent = options.tsval or 0
        self.sack = options.sack
        self.ecn = False
        self.tries = 0
        self.due = 0.0


class Handshakes:
    """Unfinished handshakes of one endpoint, by key. They are answered as they come and again with back-off; at
    most `syn_backlog` are kept per endpoint, the oldest gives way."""

    def __init__(self, endpoint: TcpEndpoint) -> None:
        self.endpoint = endpoint
        self.embryos: dict[bytes, Embryo] = {}
        self._next = NEVER

    def syn(self, key: bytes, peer: Peer, segment: Segment, listener: Listener) -> None:
        """A SYN to a listener, for a tuple that has no connection."""
        endpoint, settings = self.endpoint, self.endpoint.settings
        known = self.embryos.get(key)
        if known is not None and known.irs == segment.seq:
            # Our SYN-ACK was lost, perhaps because the SYN before came with another source address: what the peer says now counts.
            if not segment.mac[0] & 1:
                known.peer = peer
            self._answer(known)
            return
        if listener.paused or (segment.payload and segment.flags & RST):
            return
        options = segment.syn_options()
        if options is None:
            endpoint.stats["bad_options"] += 1
            return
        if known is None and len(self.embryos) >= settings.syn_backlog:
            del self.embryos[next(iter(self.embryos))]
            endpoint.stats["syn_overflow"] += 1
        embryo = Embryo(listener, peer, endpoint.new_iss(key), segment, options)
        embryo.sack = embryo.sack and settings.sack
        embryo.timestamps = embryo.timestamps and settings.timestamps
        embryo.ecn = settings.ecn and segment.flags & (ECE | CWR) == ECE | CWR
        self.embryos[key] = embryo
        self._answer(embryo)

    def acknowledged(self, key: bytes, segment: Segment) -> Embryo | None:
        """The embryo that a segment finishes; it stays until `forget`. RFC 9293 section 3.10.7.4."""
        embryo = self.embryos.get(key)
        if embryo is None:
            return None
        flags = segment.flags
        if flags & RST:
            if segment.seq == embryo.irs + 1 & MASK:
                del self.embryos[key]
            return None
        if flags & SYN or not flags & ACK:
            return None
        if segment.ack != embryo.iss + 1 & MASK:
            self.endpoint.answer_with_reset(embryo.peer, segment)
            return None
        ahead = segment.seq - (embryo.irs + 1) & MASK
        if ahead > embryo.listener.window:
            return None
        if embryo.timestamps and (not segment.ts or segment.tsval - embryo.ts_recent & MASK >= HALF):
            return None  # RFC 7323 sections 3.2 and 5.3
        return embryo

    def forget(self, key: bytes) -> None:
        """The handshake is over."""
        self.embryos.pop(key, None)

    def _answer(self, embryo: Embryo) -> None:
        """SYN-ACK; without room in the ring the timer tries again."""
        endpoint = self.endpoint
        embryo.due = endpoint.now + min(endpoint.settings.initial_rto * (1 << embryo.tries), endpoint.settings.max_rto)
        self._next = min(self._next, embryo.due)
        link, peer = endpoint.link, embryo.peer
        slot = link.reserve()
        if slot is None:
            return
        listener = embryo.listener
        mss = listener.mss or min(endpoint.settings.mtu - headers_size(peer.ipv6), _MSS_MAX)
        options = SynOptions(
            mss=mss,
            wscale=listener.wscale if embryo.wscale is not None else None,
            sack=embryo.sack,
            tsval=endpoint.tsval() if embryo.timestamps else None,
            tsecr=embryo.ts_recent,
        ).build()
        flags = SYN | ACK | (ECE if embryo.ecn and embryo.tries == 0 else 0)
        length = peer.build(slot, embryo.iss, embryo.irs + 1, flags, min(listener.window, WINDOW_MAX), options, False, 0)
        link.commit(length, peer.l3, peer.l4, peer.tx_flags, peer.port)
        endpoint.stats["syn_acks"] += 1

    # -- time ----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `run_timers` may have something to do."""
        return self._next if self.embryos else None

    def run_timers(self, now: float) -> None:
        """Answer again, or give up."""
        if now < self._next:
            return
        self._next = NEVER
        limit = self.endpoint.settings.synack_retries
        for key, embryo in list(self.embryos.items()):
            if embryo.due > now:
                self._next = min(self._next, embryo.due)
                continue
            embryo.tries += 1
            if embryo.tries > limit:
                del self.embryos[key]
            else:
                self._answer(embryo)


def syn_options(connection: ControlBlock, tsval: int, mtu: int) -> bytes:
    """Options of the SYN of `connect`, or of the SYN-ACK after a simultaneous open."""
    return SynOptions(
        mss=min(connection.rcv_mss or mtu - headers_size(connection.peer.ipv6), _MSS_MAX),
        wscale=connection.rcv_shift if connection.snd_shift >= 0 else None,
        sack=connection.sack,
        tsval=tsval if connection.timestamps else None,
        tsecr=connection.ts_recent,
    ).build()


