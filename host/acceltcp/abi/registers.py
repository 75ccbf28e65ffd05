"""The register file behind BAR0: 32-bit little-endian registers over AXI4-Lite.

A block is a group of registers at a base address; an array block repeats at a stride. From
this declaration come the gateware decoder, the host's typed accessors, the reference page
and the JSON map, whose hash the device shows in `IDENT.map_hash`.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .fields import Field
from .messages import SPLICE_UNIT_STEPS

__all__ = [
    "ABI_MAJOR",
    "ABI_MINOR",
    "BAR0_BYTES",
    "BLOCKS",
    "CONTROL",
    "COUNTERS",
    "COUNTER_BASE",
    "FLOWS",
    "IDENT",
    "MAGIC",
    "PORT",
    "PORTS_MAX",
    "QUEUE",
    "QUEUES_MAX",
    "RSS",
    "RSS_KEY_BYTES",
    "RSS_TABLE_ENTRIES",
    "SECRET",
    "SPLICE",
    "TIME",
    "TIMER_TICKS",
    "Access",
    "Block",
    "Counter",
    "Feature",
    "QueueState",
    "Register",
    "RssType",
    "block",
    "map_hash",
    "register_map",
]

MAGIC = int.from_bytes(b"ATCP", "little")
ABI_MAJOR = 1
"""Grows when software written for the version before no longer works."""
ABI_MINOR = 3
"""Grows when something is added."""

BAR0_BYTES = 0x1_0000
PORTS_MAX = 2
QUEUES_MAX = 64
RSS_KEY_BYTES = 40
RSS_TABLE_ENTRIES = 128

TIMER_TICKS = 4
"""Ticks per timer step: the unit of all times of a flow."""


class Access(enum.Enum):
    """Who may do what. A write to what cannot be written is ignored, never an error; an
    address with no register reads as zero."""

    RO = "read-only"
    RW = "read-write"
    WO = "write-only"
    """Reads as zero: secrets, doorbells and strobes."""


class Feature(enum.IntFlag):
    """Bits of `IDENT.features`."""

    SETUP = 1
    RSS = 2
    TSO = 4
    TEARDOWN = 8
    SPLICE = 16


class RssType(enum.IntFlag):
    """Bits of `RSS.control.types`: packets that are hashed. A packet is hashed with its ports if that is
    on and it can be, else without them if that is on, else not at all."""

    IPV4 = 1
    """IPv4 by addresses."""
    TCP_IPV4 = 2
    """TCP over IPv4 by addresses and ports, where a TCP header was parsed (`RX_COMPLETION.tcp`)."""
    IPV6 = 4
    """IPv6 by addresses."""
    TCP_IPV6 = 8
    """TCP over IPv6 by addresses and ports, where a TCP header was parsed."""


class QueueState(enum.IntEnum):
    """Values of `QUEUE.status.state`."""

    DISABLED = 0
    ENABLED = 1
    REFUSED = 2
    """`control.enable` was written with a ring size outside the limits or a base that is not
    a multiple of 64, or before an earlier disable had ended (`status.idle`): the queue stays off."""


@dataclass(frozen=True)
class Register:
    """One 32-bit register. Its fields start at bit 0; bits above them read as zero."""

    name: str
    offset: int
    access: Access
    doc: str
    fields: tuple[Field, ...]
    reset: int = 0

    @cached_property
    def positions(self) -> dict[str, tuple[int, int]]:
        """Field name -> (lowest bit, width)."""
        positions, at = {}, 0
        for field in self.fields:
            positions[field.name] = (at, field.bits)
            at += field.bits
        if at > 32:
            raise ValueError(f"{self.name}: fields take {at} bits of 32")
        return positions

    def encode(self, **values: int) -> int:
        """The register's value with these fields, others zero. Raises `ValueError`."""
        total = 0
        for name, value in values.items():
            if name not in self.positions:
                raise ValueError(f"{self.name} has no field {name!r}")
            at, bits = self.positions[name]
            if not 0 <= int(value) < 1 << bits:
                raise ValueError(f"{self.name}.{name} must fit {bits} bits, not {value!r}")
            total |= int(value) << at
        return total

    def decode(self, value: int) -> dict[str, int]:
        """All fields that are not reserved, by name."""
        return {
            field.name: value >> at & (1 << bits) - 1
            for field in self.fields
            if not field.reserved
            for at, bits in [self.positions[field.name]]
        }


@dataclass(frozen=True)
class Block:
    """Registers at `base`, repeated `count` times every `stride` bytes."""

    name: str
    base: int
    doc: str
    registers: tuple[Register, ...]
    count: int = 1
    stride: int = 0

    @cached_property
    def by_name(self) -> dict[str, Register]:
        return {register.name: register for register in self.registers}

    def __getitem__(self, name: str) -> Register:
        return self.by_name[name]

    def address(self, name: str, index: int = 0) -> int:
        """BAR0 offset of a register. Raises `IndexError` for an index past the array."""
        if not 0 <= index < self.count:
            raise IndexError(f"{self.name} has {self.count} instances, no index {index}")
        return self.base + index * self.stride + self.by_name[name].offset


def _whole(name: str, doc: str) -> tuple[Field, ...]:
    return (Field(name, 32, doc),)


def _register(name: str, offset: int, access: Access, doc: str, *fields: Field, reset: int = 0) -> Register:
    return Register(name, offset, access, doc, fields or _whole("value", doc), reset)


RO, RW, WO = Access.RO, Access.RW, Access.WO

IDENT = Block(
    "IDENT",
    0x0000,
    "Who the device is and what it can do. `map_hash` stays at offset 8 in every version.",
    (
        _register("magic", 0x00, RO, "'ATCP'."),
        _register(
            "abi", 0x04, RO, "Version of this contract.",
            Field("minor", 16, "Grows with additions."), Field("major", 16, "Grows with breaks."),
        ),
        _register("map_hash", 0x08, RO, "First 32 bits of the SHA-256 of the JSON register map."),
        _register("features", 0x0C, RO, "Offloads in this build.", Field("features", 32, "Bits.", Feature)),
        _register(
            "shape", 0x10, RO, "Sizes of this build.",
            Field("width", 8, "Bytes per beat of the packet path."),
            Field("ports", 8, "MAC ports."),
            Field("queues", 8, "Host queues."),
            Field("tick_us", 8, "Period of `tick` in units of 10 us."),
        ),
        _register(
            "tables", 0x14, RO, "Table sizes.",
            Field("listeners", 16, "Entries of the listen table."),
            Field("flows_log2", 8, "Flows that the NIC can hold, log2; 0 when absent."),
            Field("splices_log2", 8, "Splices that the NIC can hold, log2; 0 when absent. Each takes two entries of the connection table."),
        ),
        _register("max_frame", 0x18, RO, "Largest frame in bytes, without FCS, either way."),
        _register("scratch", 0x1C, RW, "Keeps what is written, for bus tests."),
    ),
)

CONTROL = Block(
    "CONTROL",
    0x0100,
    "The device as a whole.",
    (
        _register(
            "control", 0x00, RW, "Switches.",
            Field("enable", 1, "Receive from the wire. While 0, frames from the MAC are dropped and counted."),
        ),
        _register(
            "reset", 0x04, WO, "Soft reset.",
            Field("reset", 1, "Write 1: stop, wait for bus transactions in flight, reset everything but this register file's scratch. Poll `status.resetting`."),
        ),
        _register(
            "status", 0x08, RO, "State.",
            Field("busy", 1, "Packets, descriptors or bus transactions are in flight."),
            Field("resetting", 1, "A soft reset is under way."),
            Field("secret_valid", 1, "A cookie secret is in force."),
            Field("snapshot_busy", 1, "A counter snapshot is being taken."),
        ),
        _register(
            "snapshot", 0x0C, WO, "Counters.",
            Field("snapshot", 1, "Write 1: capture all counters at one clock edge; poll `status.snapshot_busy`, then read COUNTERS."),
        ),
        _register("default_queue", 0x10, RW, "Queue of packets for no listener that RSS does not spread.", Field("queue", 8, "Queue.")),
    ),
)

TIME = Block(
    "TIME",
    0x0140,
    "Clocks, all driven by the port `tick`.",
    (
        _register("ticks_low", 0x00, RO, "Ticks since reset, low half; reading it latches the high half."),
        _register("ticks_high", 0x04, RO, "Ticks since reset, high half, as latched."),
        _register("ts_clock", 0x08, RO, "TCP timestamp clock: what SYN-ACKs carry and the host goes on from."),
        _register("ts_ticks", 0x0C, RW, "Ticks per timestamp clock step, at least 1.", Field("ticks", 16, "Ticks."), reset=10),
        _register("epoch", 0x10, RW, "Cookie epoch counter; writable so that NICs can share cookies."),
        _register("epoch_ticks", 0x14, RW, "Ticks per epoch, at least 1; 640,000 at 100 us is 64 s.", reset=640_000),
    ),
)

SECRET = Block(
    "SECRET",
    0x0180,
    "Cookie secret: write the four words, then `commit`.",
    (
        _register("word0", 0x00, WO, "Bytes 0 to 3 of the key, little-endian."),
        _register("word1", 0x04, WO, "Bytes 4 to 7."),
        _register("word2", 0x08, WO, "Bytes 8 to 11."),
        _register("word3", 0x0C, WO, "Bytes 12 to 15."),
        _register(
            "commit", 0x10, WO, "Put the secret in force.",
            Field("now", 1, "1: at once, for every epoch (outstanding cookies become invalid). 0: from the next epoch on; cookies of the epoch before stay valid under the old secret. The first secret always counts as 1."),
        ),
    ),
)

PORT = Block(
    "PORT",
    0x0200,
    "One MAC port.",
    (
        _register("mac_low", 0x00, RW, "MAC address, last four bytes, the last one least significant."),
        _register("mac_high", 0x04, RW, "MAC address, first two bytes.", Field("high", 16, "Bytes.")),
        _register(
            "config", 0x08, RW, "Filters.",
            Field("promiscuous", 1, "Take frames for any unicast address to the host (never to the offloads)."),
            Field("keep_bad", 1, "Hand TCP/IP packets with wrong checksums or lengths to the host, marked, instead of dropping them (never to the offloads)."),
        ),
    ),
    count=PORTS_MAX,
    stride=0x20,
)

_STEPS_PER_SECOND = 1_000_000 // 100 // TIMER_TICKS
"""With ticks of 100 us."""

FLOWS = Block(
    "FLOWS",
    0x0280,
    "Connection table and flows that the NIC closes. Times are in timer steps of four ticks, below 2^19; reset values are for ticks of 100 us.",
    (
        _register("word0", 0x00, WO, "Secret of the connection table's hash: bytes 0 to 3, little-endian."),
        _register("word1", 0x04, WO, "Bytes 4 to 7."),
        _register("word2", 0x08, WO, "Bytes 8 to 11."),
        _register("word3", 0x0C, WO, "Bytes 12 to 15."),
        _register(
            "commit", 0x10, WO, "The secret.",
            Field("commit", 1, "Write 1: put it in force. Once only: after that it takes a reset."),
        ),
        _register(
            "status", 0x14, RO, "State.",
            Field("secret_valid", 1, "The secret is in force."),
            Field("ready", 1, "The tables have been cleared after the reset: CLOSE is taken."),
        ),
        _register("held", 0x18, RO, "Entries in the connection table, those in TIME_WAIT and LINGER too."),
        _register("time_wait", 0x1C, RW, "TIME_WAIT (2 MSL); 0: none.", Field("steps", 20, "Timer steps."), reset=60 * _STEPS_PER_SECOND),
        _register("fin_wait_2", 0x20, RW, "How long the peer's FIN is waited for.", Field("steps", 20, "Timer steps."), reset=60 * _STEPS_PER_SECOND),
        _register("linger", 0x24, RW, "How long a flow that is over drops what comes late.", Field("steps", 20, "Timer steps."), reset=2 * _STEPS_PER_SECOND),
        _register("max_rto", 0x28, RW, "Largest retransmission time-out.", Field("steps", 20, "Timer steps."), reset=60 * _STEPS_PER_SECOND),
        _register("window", 0x2C, RW, "Window field of segments that the NIC makes itself.", Field("window", 16, "Unscaled."), reset=0xFFFF),
        _register("find", 0x30, WO, "Write an index: look for the first flow in use at or after it; poll `found.busy`."),
        _register(
            "found", 0x34, RO, "What was found.",
            Field("index", 24, "Index of the flow."),
            Field("_zero", 6),
            Field("found", 1, "There is one; `record` shows it."),
            Field("busy", 1, "The search goes on."),
        ),
        *(
            _register(f"record{i}", 0x38 + 4 * i, RO, f"FLOW_RECORD, bytes {4 * i} to {4 * i + 3}.")
            for i in range(9)
        ),
    ),
)

RSS = Block(
    "RSS",
    0x0300,
    "Receive side scaling: the Toeplitz hash of a packet (`acceltcp.abi.toeplitz`) chooses its queue, for packets to no listener and for those to a "
    "listener with the flag SPREAD. Absent without the feature RSS. Write key and entries first, then `control`: packets that arrive while a key is written "
    "may go anywhere. What follows from an entry changes in one cycle.",
    (
        _register(
            "control", 0x00, RW, "Switch. 0: every packet to no listener goes to `CONTROL.default_queue`, and the hash is 0.",
            Field("types", 4, "Packets that are hashed and spread.", RssType),
        ),
        _register(
            "entry", 0x04, WO, "Write one entry of the indirection table. Entries never written mean nothing; a reset keeps them.",
            Field("index", (RSS_TABLE_ENTRIES - 1).bit_length(), "Which: the low bits of the hash."),
            Field("_zero", 8 - (RSS_TABLE_ENTRIES - 1).bit_length()),
            Field("queue", 8, "Queue of the packets with this index."),
        ),
        *(
            _register(f"key{i}", 0x08 + 4 * i, WO, f"Bytes {4 * i} to {4 * i + 3} of the key, little-endian.")
            for i in range(RSS_KEY_BYTES // 4)
        ),
    ),
)

SPLICE = Block(
    "SPLICE",
    0x0380,
    "Splices: connections that the NIC forwards to each other. Absent without the feature SPLICE.",
    (
        _register("held", 0x00, RO, "Splices in use, those that linger too."),
        _register(
            "linger", 0x04, RW, "How long a splice still forwards after both sides have closed.",
            Field("units", 15, "Units of SPLICE_UNIT_STEPS timer steps; 1 or more."),
            reset=2 * _STEPS_PER_SECOND // SPLICE_UNIT_STEPS,
        ),
    ),
)

QUEUE = Block(
    "QUEUE",
    0x8000,
    "One host queue: four rings in host memory, each 64-byte aligned, and an interrupt vector of the same number. "
    "Set bases and sizes, then `control.enable`; indices start at 0. Indices are free-running 16-bit counts. "
    "Bases and sizes can be written only while the queue is off and idle.",
    (
        _register("rx_free_base_low", 0x00, RW, "Ring of RX_FREE: bus address, low half."),
        _register("rx_free_base_high", 0x04, RW, "High half."),
        _register("rx_free_size", 0x08, RW, "Entries.", Field("log2", 4, "log2 of the number of entries.")),
        _register("rx_free_tail", 0x0C, WO, "Doorbell: index after the last buffer posted.", Field("index", 16, "Index.")),
        _register("rx_completion_base_low", 0x10, RW, "Ring of RX_COMPLETION: bus address, low half."),
        _register("rx_completion_base_high", 0x14, RW, "High half."),
        _register("rx_completion_size", 0x18, RW, "Entries.", Field("log2", 4, "log2 of the number of entries.")),
        _register("rx_completion_head", 0x1C, WO, "Doorbell: index after the last completion consumed.", Field("index", 16, "Index.")),
        _register("tx_base_low", 0x20, RW, "Ring of TX_DESCRIPTOR: bus address, low half."),
        _register("tx_base_high", 0x24, RW, "High half."),
        _register("tx_size", 0x28, RW, "Entries.", Field("log2", 4, "log2 of the number of entries.")),
        _register("tx_tail", 0x2C, WO, "Doorbell: index after the last descriptor posted.", Field("index", 16, "Index.")),
        _register("event_base_low", 0x30, RW, "Ring of EVENT: bus address, low half."),
        _register("event_base_high", 0x34, RW, "High half."),
        _register("event_size", 0x38, RW, "Entries; at least twice as many as the TX ring, so that no event is ever lost.", Field("log2", 4, "log2 of the number of entries.")),
        _register("event_head", 0x3C, WO, "Doorbell: index after the last event consumed.", Field("index", 16, "Index.")),
        _register("control", 0x40, RW, "Switch.", Field("enable", 1, "1: start, with all indices at 0. 0: stop.")),
        _register(
            "status", 0x44, RO, "State.",
            Field("state", 2, "State.", QueueState),
            Field("idle", 1, "Nothing of this queue is in flight: its memory may be freed once disabled."),
        ),
        _register(
            "interrupt", 0x48, RW, "Moderation.",
            Field("interval", 16, "Least number of ticks between two interrupts; 0: none."),
        ),
        _register(
            "arm", 0x4C, WO, "Ask for one interrupt.",
            Field("completion_head", 16, "Completions consumed so far."),
            Field("event_head", 16, "Events consumed so far. The interrupt comes as soon as either ring holds a newer entry: at once if it does already."),
        ),
    ),
    count=QUEUES_MAX,
    stride=0x80,
)

BLOCKS = (IDENT, CONTROL, TIME, SECRET, PORT, FLOWS, RSS, SPLICE, QUEUE)


@dataclass(frozen=True)
class Counter:
    """A 64-bit counter; `width` is how much one clock cycle can add, in bits."""

    name: str
    doc: str
    width: int = 1


COUNTER_BASE = 0x1000
"""Counter i is the 64-bit value at COUNTER_BASE + 8 i, low half first, as of the last snapshot."""

COUNTERS = (
    Counter("rx_packets", "Frames received from the MAC without error."),
    Counter("rx_bytes", "Their bytes, without FCS.", 16),
    Counter("rx_drop_mac_error", "Frames dropped: the MAC flagged an error (FCS and the like)."),
    Counter("rx_drop_runt", "Frames dropped: shorter than 60 bytes."),
    Counter("rx_drop_oversize", "Frames dropped: longer than the largest frame."),
    Counter("rx_drop_disabled", "Frames dropped: CONTROL.control.enable was 0 or a reset was under way."),
    Counter("rx_drop_full", "Frames dropped: the receive buffer was full."),
    Counter("rx_drop_filter", "Frames dropped: destination MAC address is not ours."),
    Counter("rx_drop_length", "Frames dropped: IP or TCP length fields contradict the frame."),
    Counter("rx_drop_ip_checksum", "Frames dropped: IPv4 header checksum wrong."),
    Counter("rx_drop_l4_checksum", "Frames dropped: TCP checksum wrong."),
    Counter("rx_drop_no_buffer", "Frames dropped: queue disabled, or its RX free ring empty."),
    Counter("rx_drop_completion_full", "Frames dropped: the RX completion ring was full."),
    Counter("rx_host_packets", "Frames written to host memory."),
    Counter("rx_host_bytes", "Their bytes.", 16),
    Counter("rx_buffer_errors", "Buffers given back unused or marked bad: invalid, too small, or refused by the bus."),
    Counter("setup_syn", "SYNs for a listener."),
    Counter("setup_syn_ack", "SYN-ACKs sent."),
    Counter("setup_drop_flags", "SYNs dropped: with FIN or RST."),
    Counter("setup_drop_address", "SYNs dropped: to or from broadcast, multicast or the unspecified address, from port 0, or from the destination itself."),
    Counter("setup_drop_options", "SYNs dropped: options run past the header, have an impossible length, or an MSS below the smallest class."),
    Counter("setup_drop_paused", "SYNs dropped: the listener is paused."),
    Counter("setup_drop_no_secret", "SYNs dropped: no cookie secret has been set."),
    Counter("setup_drop_busy", "SYNs dropped: SYN-ACKs wait for the wire."),
    Counter("setup_cookie_good", "Segments whose acknowledgment carries a valid cookie."),
    Counter("setup_cookie_bad", "Segments to a listener whose acknowledgment carries none."),
    Counter("setup_deferred", "Valid handshake ACKs consumed because of DEFER_ACCEPT."),
    Counter("flow_packets", "Segments of flows that the NIC holds."),
    Counter("flow_drop_busy", "Of them dropped: too many at once."),
    Counter("flow_opened", "Flows taken over by CLOSE."),
    Counter("flow_closed", "Flows ended: closed by both sides."),
    Counter("flow_reset", "Flows ended: reset by the peer."),
    Counter("flow_timed_out", "Flows ended: retry limit reached."),
    Counter("flow_peer_data", "Flows ended: the peer sent data that nobody reads."),
    Counter("flow_fin_timed_out", "Flows ended: the peer did not close."),
    Counter("flow_aborted", "Flows ended: by the host."),
    Counter("flow_faults", "Flows ended: their frames could not be read."),
    Counter("flow_reused", "Tuples in TIME_WAIT or LINGER given to a new SYN (RFC 6191)."),
    Counter("flow_retransmissions", "Retransmissions asked for, a batch of frames each."),
    Counter("flow_acks", "Acknowledgments made by the NIC."),
    Counter("flow_challenges", "Of them challenge ACKs (RFC 5961)."),
    Counter("flow_resets_sent", "Resets sent by the NIC."),
    Counter("flow_reply_busy", "Segments of the NIC lost: too many wait for the wire."),
    Counter("splice_packets", "Packets of splices that were forwarded."),
    Counter("splice_octets", "Their TCP payload bytes.", 16),
    Counter("splice_copied", "Of them, those of which the host got a copy (GUARD)."),
    Counter("splice_diverted", "Packets of splices that went to the host instead (DIVERTED)."),
    Counter(
        "splice_stale",
        "Packets of splices that only the host got (GUARD): they begin with data that it had acknowledged, and has still to deliver.",
    ),
    Counter("splice_drop_hops", "Packets of splices dropped: their TTL or hop limit was used up."),
    Counter("splice_drop_syn", "SYNs dropped: their tuple belongs to a splice that lingers, which ends with this."),
    Counter("splice_opened", "Splices begun."),
    Counter("splice_closed", "Splices ended: closed by both sides."),
    Counter("splice_reset", "Splices ended: reset by one side."),
    Counter("splice_idle", "Splices ended: no packet for too long."),
    Counter("splice_limit", "Splices ended: the client has all that the limit allowed."),
    Counter("splice_aborted", "Splices ended: by the host."),
    Counter("tx_packets", "Frames sent to the MAC."),
    Counter("tx_bytes", "Their bytes, without FCS.", 16),
    Counter("tx_host_packets", "Frames sent for the host."),
    Counter("tx_host_bytes", "Their bytes.", 16),
    Counter("tx_errors", "TX descriptors that ended in an error event."),
    Counter("commands", "Commands that succeeded."),
    Counter("command_errors", "Commands refused."),
    Counter("event_overflow", "Events lost because the event ring was full or its queue disabled."),
    Counter("doorbell_errors", "Doorbells refused: more entries than the ring has, or queue disabled."),
    Counter("queue_errors", "Queues refused: ring size or alignment."),
    Counter("axi_read_errors", "Read responses with SLVERR or DECERR."),
    Counter("axi_write_errors", "Write responses with SLVERR or DECERR."),
    Counter("axi_read_bytes", "Bytes read from host memory, whole beats.", 7),
    Counter("axi_write_bytes", "Bytes written to host memory.", 7),
    Counter("interrupts", "Interrupts requested."),
)


def block(name: str) -> Block:
    """The block of that name. Raises `KeyError`."""
    return {b.name: b for b in BLOCKS}[name]


def _all() -> Iterator[dict[str, Any]]:
    for b in BLOCKS:
        yield {
            "block": b.name,
            "base": b.base,
            "count": b.count,
            "stride": b.stride,
            "doc": b.doc,
            "registers": [
                {
                    "name": r.name,
                    "offset": r.offset,
                    "access": r.access.name,
                    "reset": r.reset,
                    "doc": r.doc,
                    "fields": [
                        {"name": f.name, "bits": f.bits, "at": r.positions[f.name][0], "doc": f.doc}
                        for f in r.fields
                    ],
                }
                for r in b.registers
            ],
        }


def register_map() -> dict[str, Any]:
    """The whole map as plain data, ready for JSON."""
    return {
        "abi": {"major": ABI_MAJOR, "minor": ABI_MINOR},
        "bar0_bytes": BAR0_BYTES,
        "blocks": list(_all()),
        "counters": [
            {"name": c.name, "address": COUNTER_BASE + 8 * i, "doc": c.doc} for i, c in enumerate(COUNTERS)
        ],
    }


def map_hash() -> int:
    """First 32 bits of the SHA-256 over names and positions (texts may change freely)."""

    def bare(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: bare(value) for key, value in node.items() if key != "doc"}
        return [bare(item) for item in node] if isinstance(node, list) else node

    canonical = json.dumps(bare(register_map()), sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:4], "big")
