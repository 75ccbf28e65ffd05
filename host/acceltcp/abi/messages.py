"""Descriptors, completions, events and commands: what lies in the rings in host memory.

Ring entries have a fixed size that divides 64 bytes, so none ever straddles a beat of the
512-bit AXI bus. Entries that the NIC writes end in a `phase` bit, the most significant one:
it is 1 on the first trip round the ring, 0 on the second, and so on; the host looks at
nothing else to see whether an entry is new. Ring memory starts as zeros.
"""

from __future__ import annotations

import enum

from .fields import Field, Message

__all__ = [
    "CLOSE_COMMAND",
    "COMMAND",
    "EVENT",
    "FINAL_FRAME",
    "FINAL_FRAMES_MAX",
    "FLOW_COMMAND",
    "FLOW_RECORD",
    "FRAME_TABLE_ALIGN",
    "LISTEN_COMMAND",
    "MESSAGES",
    "RING_SIZE_LOG2_MAX",
    "RING_SIZE_LOG2_MIN",
    "RX_COMPLETION",
    "RX_FREE",
    "SPLICE_COMMAND",
    "SPLICE_EVENT",
    "SPLICE_HOST_SENT_MAX",
    "SPLICE_IDLE_MAX",
    "SPLICE_LIMIT_MAX",
    "SPLICE_SIDE",
    "SPLICE_UNIT_STEPS",
    "SPLICE_UPDATE_COMMAND",
    "TX_DESCRIPTOR",
    "WINDOW_UNIT",
    "ChecksumState",
    "CloseFlag",
    "CommandOpcode",
    "EventType",
    "FlowFlag",
    "FlowState",
    "FrameFlag",
    "ListenFlag",
    "SpliceSideFlag",
    "Status",
    "TxFlag",
    "TxOpcode",
    "Verdict",
]

RING_SIZE_LOG2_MIN = 3
"""Smallest ring: 8 entries."""

RING_SIZE_LOG2_MAX = 15
"""Largest ring: 32,768 entries; indices are 16 bits and free-running."""


FINAL_FRAMES_MAX = 16
"""Most frames that `CLOSE` hands over."""

FRAME_TABLE_ALIGN = 256
"""A table of final frames starts at a multiple of this: 16 entries never cross a 4 KiB boundary."""

WINDOW_UNIT = 64
"""Bytes per step where a flow's window is told; rounded down."""

SPLICE_UNIT_STEPS = 256
"""Timer steps per unit of a splice's times."""

SPLICE_IDLE_MAX = (1 << 15) - 1
"""Longest idle time of a splice, in its units: less than half of what its clock can tell apart."""

SPLICE_LIMIT_MAX = 1 << 30
"""Bytes that one splice can be limited to."""

SPLICE_HOST_SENT_MAX = 1 << 20
"""What a peer acknowledges may be less than so far beyond what the NIC has forwarded: the host sends on what it had received
before the splice began, and no more than this."""


class Verdict(enum.IntEnum):
    """Why a packet was handed to the host."""

    PLAIN = 0
    """Nothing that the NIC takes care of."""
    NEW = 1
    """First segment of a connection: its acknowledgment carries a valid cookie."""
    GUARD = 2
    """Copy of a spliced packet, which the NIC has forwarded too: one of the two peers has not acknowledged yet what the host
    relayed to it before the hand-over. (A packet that begins with bytes that the host had acknowledged is not forwarded then.)"""
    DIVERTED = 3
    """A spliced packet that the NIC has not forwarded: data or FIN of the client during a bounded splice, data
    beyond its limit or FIN of the server, or anything that comes while the splice is being undone."""


class ChecksumState(enum.IntEnum):
    """What the NIC knows about a checksum."""

    NONE = 0
    """Not looked at: no such header, a fragment, IP options, or not TCP."""
    GOOD = 1
    """Verified."""
    BAD = 2
    """Wrong. Such packets are dropped and counted, so the host sees this only when
    `PORT.config.keep_bad` is set."""


class TxOpcode(enum.IntEnum):
    """What a TX descriptor asks for."""

    SEND = 1
    """Send the frame at `address`."""
    COMMAND = 2
    """Run the command (`COMMAND.size` bytes) at `address`."""


class TxFlag(enum.IntFlag):
    """Bits of `TX_DESCRIPTOR.flags`."""

    EVENT = 1
    """Write a `TX_DONE` event once the NIC has read the buffer. (A command always ends in
    an event and needs no flag; neither does an error.)"""
    IPV4_CHECKSUM = 2
    """Compute the IPv4 header checksum of the header at `l3_offset`."""
    L4_CHECKSUM = 4
    """Compute the TCP, UDP or ICMPv6 checksum of the segment at `l4_offset`, pseudo-header
    included; the field's contents are ignored."""
    IPV6 = 8
    """The header at `l3_offset` is IPv6; else it is IPv4."""
    UDP = 16
    """With `L4_CHECKSUM`: the checksum stands where UDP has it (offset 6); else where TCP
    has it (offset 16), or ICMPv6 (offset 2) with `ICMPV6`."""
    ICMPV6 = 32
    """With `L4_CHECKSUM`: see `UDP`."""


class EventType(enum.IntEnum):
    """What an event tells."""

    NONE = 0
    TX_DONE = 1
    """The NIC has read every buffer up to and including descriptor `index`."""
    COMMAND_DONE = 2
    """The command with this `tag` has ended as `status` says."""
    TX_ERROR = 3
    """Descriptor `index` was not carried out; `status` says why. It counts as read."""
    RX_ERROR = 4
    """A receive buffer could not be used; `status` says why, `tag` which."""
    QUEUE_ERROR = 5
    """A doorbell or ring set-up was refused; `status` says why."""
    FLOW_DONE = 6
    """A flow handed over by `CLOSE` has ended as `status` says, once per flow; `value` is its
    index. Its frames and their table are the host's again."""
    SPLICE_SIDE = 7
    """First part of the news that a splice has ended: the client's side (`SPLICE_EVENT`)."""
    SPLICE_DONE = 8
    """A splice has ended as `status` says, once per splice: the server's side (`SPLICE_EVENT`). Both connections
    are the host's again; the NIC has forgotten them."""


class Status(enum.IntEnum):
    """How a descriptor or command ended."""

    OK = 0
    BAD_OPCODE = 1
    """The opcode is not known."""
    BAD_LENGTH = 2
    """Zero, shorter than a header, longer than the largest frame, or not a command's size."""
    BAD_ARGUMENT = 3
    """A field has a value that makes no sense; reserved fields must be zero."""
    BAD_ADDRESS = 4
    """The bus refused an access (AXI SLVERR or DECERR)."""
    TABLE_FULL = 5
    DUPLICATE = 6
    NOT_FOUND = 7
    FEATURE_ABSENT = 8
    """This build of the NIC does not have it."""
    BAD_DOORBELL = 9
    """The index passed more entries than the ring has."""
    NO_SECRET = 10
    """The secret of the connection table has not been set, or its tables are still being cleared."""
    RESET = 11
    """FLOW_DONE: the peer has reset the connection."""
    TIMED_OUT = 12
    """FLOW_DONE: the retry limit was reached; the peer has not acknowledged everything."""
    PEER_DATA = 13
    """FLOW_DONE: the peer has sent data that nobody would read; it was reset (RFC 9293 section 3.6.1, RFC 1122
    section 4.2.2.13). It had acknowledged everything before."""
    FIN_TIMED_OUT = 14
    """FLOW_DONE: the peer has acknowledged everything, but did not close within `FLOWS.fin_wait_2`."""
    ABORTED = 15
    """FLOW_DONE: by `FLOW_UPDATE`. SPLICE_DONE: by `SPLICE_UPDATE`."""
    IDLE = 16
    """SPLICE_DONE: no packet came for as long as the host allowed."""
    LIMIT = 17
    """SPLICE_DONE: the client has acknowledged all that the limit allowed: both connections live on."""


class CommandOpcode(enum.IntEnum):
    """Commands to the NIC."""

    NOP = 0
    """Does nothing, successfully: a fence whose event says that all before it was read."""
    LISTEN = 1
    """Answer SYNs to an address and port (`LISTEN_COMMAND`)."""
    UNLISTEN = 2
    """Undo `LISTEN`; only the key is looked at."""
    LISTEN_UPDATE = 3
    """Change everything but the key of a listener."""
    CLOSE = 4
    """Hand over the end of a connection (`CLOSE_COMMAND`); the event's `value` is the flow's index."""
    FLOW_UPDATE = 5
    """Tell what the host has learned of a flow after it had handed it over (`FLOW_COMMAND`)."""
    SPLICE = 6
    """Join two connections (`SPLICE_COMMAND`); the event's `value` names the splice."""
    SPLICE_UPDATE = 7
    """End a splice, or have its packets copied again (`SPLICE_UPDATE_COMMAND`)."""


class ListenFlag(enum.IntFlag):
    """Bits of `LISTEN_COMMAND.flags`."""

    IPV6 = 1
    """Key: the address is IPv6. IPv4 addresses stand in the last four bytes."""
    ANY_ADDRESS = 2
    """Key: any address of this IP version; `address` must be zero."""
    DEFER_ACCEPT = 4
    """A valid handshake ACK without data is consumed: the first the host sees is data."""
    ECN = 8
    """Grant ECN to clients that ask for it and that carry timestamps (RFC 3168)."""
    PAUSED = 16
    """Answer no SYN (the host's backlog is full). Valid cookies still open connections."""
    SPREAD = 32
    """All packets to this listener, NEW or PLAIN, go to the queue that RSS chooses; where it chooses none, to `queue`."""


class FrameFlag(enum.IntFlag):
    """Bits of `FINAL_FRAME.flags`."""

    IPV6 = 1
    """The frame carries IPv6; else IPv4. The IP header ends where the TCP header starts."""


class CloseFlag(enum.IntFlag):
    """Bits of `CLOSE_COMMAND.flags`."""

    IPV6 = 1
    """The addresses are IPv6. IPv4 addresses stand in the last four bytes."""
    TIMESTAMPS = 2
    """Both sides use timestamps: in every frame the option stands, after two NOPs, behind the
    fixed TCP header, and there is no other option; else there is none at all."""
    PEER_FIN = 4
    """The peer's FIN has been received; `rcv_nxt` counts it."""


class FlowFlag(enum.IntFlag):
    """Bits of `FLOW_COMMAND.flags`."""

    FIN = 1
    """The peer's FIN has been received (and acknowledged by the host)."""
    ABORT = 2
    """End the flow without another segment. It ends with status ABORTED."""


class SpliceSideFlag(enum.IntFlag):
    """Bits of `SPLICE_SIDE.flags`."""

    IPV6 = 1
    """The addresses are IPv6, on both sides or on none. IPv4 addresses stand in the last four bytes."""
    VLAN = 2
    """Frames to this side carry the 802.1Q tag `vlan_tci`; else none."""
    TIMESTAMPS = 4
    """Both ends of this connection use timestamps; else the option becomes NOPs on the way to it."""
    SACK = 8
    """Both ends of this connection permit SACK; else the option becomes NOPs on the way to it."""
    ECN = 16
    """Both connections use ECN (set on both sides or on none); else the ECN bits of the IP and the TCP header are cleared."""


class FlowState(enum.IntEnum):
    """States of an entry of the state memory; the middle ones are those of RFC 9293 section 3.3.2."""

    FREE = 0
    """Not in use."""
    DELETING = 1
    """Leaving the connection table; free again when nothing in flight can refer to it."""
    FIN_WAIT_1 = 2
    FIN_WAIT_2 = 3
    CLOSING = 4
    LAST_ACK = 5
    TIME_WAIT = 6
    LINGER = 7
    """Over; what comes late is dropped so that it cannot open the connection again."""


RX_FREE = Message(
    "RX_FREE",
    "A buffer for received packets, posted by the host (16 bytes).",
    Field("address", 64, "Bus address of the buffer; any alignment."),
    Field("length", 32, "Its size in bytes; 1 to 65,535."),
    Field("tag", 32, "Given back in the completion."),
)

RX_COMPLETION = Message(
    "RX_COMPLETION",
    "A received packet, or a buffer given back (32 bytes). Each buffer taken from the ring ends in exactly one.",
    Field("tag", 32, "Tag of the buffer."),
    Field("length", 16, "Bytes written to the buffer; 0 when the buffer is given back unused."),
    Field("l3_offset", 8, "Offset of the IP header; 0 if there is none."),
    Field("l4_offset", 8, "Offset of the TCP header; 0 if none was parsed."),
    Field("payload_offset", 8, "Offset of the TCP payload; 0 if no TCP header was parsed."),
    Field("port", 3, "MAC port the packet came in on."),
    Field("verdict", 4, "Why the host gets it.", Verdict),
    Field("status", 5, "OK, BAD_LENGTH (buffer too small or its length invalid) or BAD_ADDRESS.", Status),
    Field("ip_checksum", 2, "State of the IPv4 header checksum.", ChecksumState),
    Field("l4_checksum", 2, "State of the TCP checksum.", ChecksumState),
    Field("vlan", 1, "The frame has an 802.1Q tag."),
    Field("ipv4", 1, "The frame carries IPv4."),
    Field("ipv6", 1, "The frame carries IPv6."),
    Field("tcp", 1, "A TCP header was parsed: not a fragment, no IP options, no extension headers."),
    Field("fragment", 1, "The IPv4 packet is a fragment."),
    Field("ip_options", 1, "The IPv4 header has options."),
    Field("listener", 1, "The destination is a listener of this NIC; `listener_index` says which."),
    Field("options_bad", 1, "The TCP options are malformed."),
    Field("vlan_tci", 16, "Tag of the frame, if `vlan`."),
    Field("mss", 16, "NEW: largest segment that the client takes, as encoded in the cookie."),
    Field("rss_hash", 32, "Toeplitz hash of the packet (`acceltcp.abi.toeplitz`); 0 where RSS does not hash it."),
    Field("ts_clock", 32, "The NIC's timestamp clock when the packet came in."),
    Field("wscale", 4, "NEW: the client's window shift, 15 when window scaling is off."),
    Field("sack", 1, "NEW: both sides permit SACK."),
    Field("timestamps", 1, "NEW: both sides use timestamps."),
    Field("ecn", 1, "NEW: both sides use ECN."),
    Field("_zero0", 1),
    Field("listener_index", 8, "Index in the listen table, if `listener`."),
    Field("_zero1", 47),
    Field("phase", 1, "See above."),
)

TX_DESCRIPTOR = Message(
    "TX_DESCRIPTOR",
    "Something for the NIC to do, in order (16 bytes).",
    Field("address", 64, "Bus address of the frame or command; any alignment."),
    Field("length", 16, "Bytes to read: 14 to the largest frame, or `COMMAND.size`."),
    Field("mss", 16, "Segment size for segmentation offload; must be 0 while the feature TSO is absent."),
    Field("l3_offset", 8, "Offset of the IP header, if a checksum is asked for."),
    Field("l4_offset", 8, "Offset of the transport header, if `L4_CHECKSUM`."),
    Field("opcode", 8, "What to do.", TxOpcode),
    Field("flags", 6, "How.", TxFlag),
    Field("port", 2, "MAC port to send on."),
)

EVENT = Message(
    "EVENT",
    "News from the NIC (32 bytes).",
    Field("type", 8, "What happened.", EventType),
    Field("status", 8, "How it ended.", Status),
    Field("queue", 8, "Queue it concerns."),
    Field("overflow", 1, "Events before this one were lost because the ring was full (and counted)."),
    Field("_zero0", 7),
    Field("index", 16, "TX ring index (free-running) of the descriptor it concerns."),
    Field("_zero1", 16),
    Field("tag", 32, "Tag of the command or buffer it concerns."),
    Field("value", 32, "COMMAND_DONE of LISTEN: index in the listen table; of CLOSE, and FLOW_DONE: index of the flow."),
    Field("rtt", 16, "FLOW_DONE: time from the first final frame to its acknowledgment, in timer steps; 0 if there is no sample (RFC 6298 section 3)."),
    Field("retransmissions", 8, "FLOW_DONE: how often frames were sent again; 63 means that or more."),
    Field("_zero2", 103),
    Field("phase", 1, "See above."),
)

COMMAND = Message(
    "COMMAND",
    "A command as it lies in host memory (64 bytes).",
    Field("opcode", 8, "Which.", CommandOpcode),
    Field("_zero0", 24),
    Field("tag", 32, "Given back in the event."),
    Field("body", 448, "Arguments: the fields of the command's own message after its first 8 bytes."),
)

LISTEN_COMMAND = Message(
    "LISTEN_COMMAND",
    "LISTEN, UNLISTEN and LISTEN_UPDATE (64 bytes).",
    Field("opcode", 8, "Which of the three.", CommandOpcode),
    Field("_zero0", 24),
    Field("tag", 32, "Given back in the event."),
    Field("address", 128, "Local address in network byte order: its first byte lies first in memory."),
    Field("port", 16, "Local TCP port; little-endian like every number here; not 0."),
    Field("flags", 8, "Key and options.", ListenFlag),
    Field("queue", 8, "Queue that its packets go to, NEW and PLAIN; see SPREAD."),
    Field("mss", 16, "MSS option of the SYN-ACK; 64 to 65,535."),
    Field("window", 16, "Window of the SYN-ACK (never scaled, RFC 7323 section 2.2)."),
    Field("wscale", 8, "Our window shift, 0 to 14, granted to clients that offer theirs."),
    Field("_zero1", 248),
)

FINAL_FRAME = Message(
    "FINAL_FRAME",
    "One frame in the table that CLOSE names (16 bytes). The frames are consecutive segments; the last one carries FIN, and only "
    "that one may be without data. Table and frames are the NIC's until the flow's FLOW_DONE event.",
    Field("address", 64, "Bus address of the frame; any alignment."),
    Field("seq", 32, "Its sequence number."),
    Field("length", 16, "Its length in bytes; up to the largest frame."),
    Field("l4_offset", 8, "Offset of its TCP header; even."),
    Field("flags", 8, "How it looks.", FrameFlag),
)

CLOSE_COMMAND = Message(
    "CLOSE_COMMAND",
    "CLOSE (64 bytes). Its COMMAND_DONE event tells whether the NIC takes the flow; before that event no frame is sent.",
    Field("opcode", 8, "CLOSE.", CommandOpcode),
    Field("frames", 5, "Entries of the table, 1 to 16."),
    Field("sent", 5, "How many of them the host has sent already; these are only retransmitted."),
    Field("retries", 4, "Retransmissions of one segment before the NIC gives up, 1 to 15."),
    Field("port", 2, "MAC port to send on."),
    Field("flags", 8, "What the connection is like.", CloseFlag),
    Field("tag", 32, "Given back in the event."),
    Field("table", 64, "Bus address of the FINAL_FRAME table: a multiple of 256, below 2^54."),
    Field("remote", 128, "Peer's address in network byte order: its first byte lies first in memory."),
    Field("local", 128, "Our address, likewise."),
    Field("remote_port", 16, "Peer's port; little-endian like every number here."),
    Field("local_port", 16, "Our port."),
    Field("rcv_nxt", 32, "Next sequence number expected from the peer."),
    Field("ts_recent", 32, "TS.Recent (RFC 7323 section 4.3), if TIMESTAMPS."),
    Field("rto", 16, "First retransmission time-out in timer steps, 1 to 16,383."),
    Field("window", 12, "Peer's window, scaled, in units of WINDOW_UNIT; 4095 for that or more."),
    Field("wscale", 4, "Peer's window shift, 0 to 14."),
)

FLOW_COMMAND = Message(
    "FLOW_COMMAND",
    "FLOW_UPDATE (64 bytes). Refused with NOT_FOUND when the flow has ended already or is another one; what it tells is taken only as far as it is news.",
    Field("opcode", 8, "FLOW_UPDATE.", CommandOpcode),
    Field("flags", 8, "What is told besides.", FlowFlag),
    Field("_zero0", 16),
    Field("tag", 32, "Given back in the event."),
    Field("flow", 32, "Index of the flow."),
    Field("snd_end", 32, "Sequence number after its last frame's FIN: tells it from an earlier flow of that index."),
    Field("ack", 32, "Highest acknowledgment received."),
    Field("ts_recent", 32, "TS.Recent, if the flow has timestamps."),
    Field("window", 12, "Peer's window, as in CLOSE_COMMAND."),
    Field("_zero1", 308),
)

FLOW_RECORD = Message(
    "FLOW_RECORD",
    "A flow as FLOWS.record shows it (36 bytes), for people who look for a fault.",
    Field("state", 4, "State.", FlowState),
    Field("port", 2, "MAC port."),
    Field("timestamps", 1, "Timestamps are in use."),
    Field("sending", 1, "Frames are being read from host memory."),
    Field("queue", 8, "Queue of its event."),
    Field("frames", 8, "Entries of its table."),
    Field("retries", 4, "Retransmission time-outs in a row."),
    Field("retry_limit", 4, "At which it gives up."),
    Field("snd_end", 32, "Sequence number after our FIN."),
    Field("table", 64, "Bus address of its frame table."),
    Field("unacked", 32, "Sequence numbers before it that are not acknowledged."),
    Field("rcv_nxt", 32, "Next sequence number expected."),
    Field("ts_recent", 32, "TS.Recent."),
    Field("deadline", 32, "Timer steps until its timer."),
    Field("rto", 16, "First retransmission time-out in timer steps."),
    Field("window", 12, "Peer's window in units of WINDOW_UNIT."),
    Field("_zero0", 4),
)

SPLICE_SIDE = Message(
    "SPLICE_SIDE",
    "One of the two connections of a splice, as the host sees it (64 bytes). Two of them, the client's first, make the table that "
    "SPLICE names. Side 0 is the client, side 1 the server; with a limit, the server's data are limited.",
    Field("remote", 128, "Peer's address in network byte order: its first byte lies first in memory."),
    Field("local", 128, "Our address, likewise."),
    Field("remote_port", 16, "Peer's port; little-endian like every number here."),
    Field("local_port", 16, "Our port."),
    Field("dst_mac", 48, "Next hop to the peer: the address's first byte lies first in memory. The source is the port's own address."),
    Field("vlan_tci", 16, "Tag of frames to the peer, if VLAN."),
    Field("flags", 8, "What the connection is like.", SpliceSideFlag),
    Field("port", 2, "MAC port on which the peer is."),
    Field("_zero0", 6),
    Field("snd_shift", 4, "Shift of windows that the peer announces, 0 to 14."),
    Field("rcv_shift", 4, "Shift of windows that the peer takes from us, 0 to 14."),
    Field("_zero1", 8),
    Field("snd_nxt", 32, "Sequence number after all that the host has relayed to the peer, or will."),
    Field("snd_una", 32, "Of it, what the peer has acknowledged."),
    Field("rcv_nxt", 32, "Sequence number after all that the host has acknowledged to the peer (and relayed)."),
    Field("ts_offset", 32, "Added, modulo 2^32, to the TSval of packets to the peer and subtracted from the TSecr of packets from it."),
)

SPLICE_COMMAND = Message(
    "SPLICE_COMMAND",
    "SPLICE (64 bytes). Its COMMAND_DONE event tells whether the NIC has joined the connections: from then on it forwards their packets. "
    "Sequence numbers of the client count from the server's as `server.snd_nxt - client.rcv_nxt` says, and vice versa.",
    Field("opcode", 8, "SPLICE.", CommandOpcode),
    Field("bounded", 1, "There is a limit."),
    Field("_zero0", 23),
    Field("tag", 32, "Given back in the event."),
    Field("table", 64, "Bus address of two SPLICE_SIDE messages: a multiple of 256, below 2^54. It may be reused after the event."),
    Field("limit", 32, f"`bounded`: bytes of the server that are forwarded, 1 to {SPLICE_LIMIT_MAX:,}; else 0."),
    Field("idle", 16, f"End after so long without a packet, in units of SPLICE_UNIT_STEPS, 1 to {SPLICE_IDLE_MAX:,}; 0: never."),
    Field("_zero1", 336),
)

SPLICE_UPDATE_COMMAND = Message(
    "SPLICE_UPDATE_COMMAND",
    "SPLICE_UPDATE (64 bytes): end a splice now, with status ABORTED, or have its packets copied. Refused with NOT_FOUND when it has "
    "ended already.",
    Field("opcode", 8, "SPLICE_UPDATE.", CommandOpcode),
    Field("copy", 1, "Do not end it: copy packets to the host (GUARD), as when it began, until each peer has said once more that it has "
        "all that the host had to deliver."),
    Field("_zero0", 23),
    Field("tag", 32, "Given back in the event."),
    Field("splice", 32, "The `value` of the COMMAND_DONE event of SPLICE."),
    Field("_zero1", 416),
)

SPLICE_EVENT = Message(
    "SPLICE_EVENT",
    "SPLICE_SIDE or SPLICE_DONE (32 bytes, in the event ring): what the NIC last knew of one side.",
    Field("type", 8, "Which: the client's or the server's.", EventType),
    Field("status", 8, "SPLICE_DONE: OK (both sides have closed), RESET, IDLE, LIMIT or ABORTED.", Status),
    Field("queue", 8, "Queue it concerns."),
    Field("overflow", 1, "Events before this one were lost because the ring was full (and counted)."),
    Field("reset_by", 1, "RESET: the side that reset the connection; 1 is the server."),
    Field("_zero0", 6),
    Field("splice", 32, "The `value` of the COMMAND_DONE event of SPLICE."),
    Field("snd_end", 32, "Sequence number after the last byte (or FIN) of this side that was forwarded, as this side counts."),
    Field("ack", 32, "Highest acknowledgment received from this side."),
    Field("tsval", 32, "Latest TSval forwarded from this side, as this side counts."),
    Field("packets", 32, "Packets forwarded from this side."),
    Field("octets", 40, "Payload bytes forwarded from this side, retransmissions included."),
    Field("fin", 1, "This side's FIN was forwarded; `snd_end` counts it."),
    Field("_zero1", 22),
    Field("phase", 1, "See above."),
)

MESSAGES = (
    RX_FREE, RX_COMPLETION, TX_DESCRIPTOR, EVENT, COMMAND, LISTEN_COMMAND, FINAL_FRAME, CLOSE_COMMAND, FLOW_COMMAND, FLOW_RECORD,
    SPLICE_SIDE, SPLICE_COMMAND, SPLICE_UPDATE_COMMAND, SPLICE_EVENT,
)  # fmt: skip
