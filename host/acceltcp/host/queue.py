"""One host queue: four rings, packet buffers, commands.

Receive: `poll` hands each packet of a batch to a function that must not keep the view (the
buffer is posted again after the batch). Send: `reserve` a slot, build the frame in it,
`commit`; `flush` rings the doorbell. A slot is reused once the NIC says that it has read it.
Nothing here blocks except `run_command`, `stop` and `drain`, which say so.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from acceltcp.abi.fields import Message
from acceltcp.abi.messages import (
    COMMAND,
    EVENT,
    LISTEN_COMMAND,
    RX_COMPLETION,
    RX_FREE,
    TX_DESCRIPTOR,
    CommandOpcode,
    EventType,
    Status,
    TxFlag,
    TxOpcode,
)
from acceltcp.abi.registers import QueueState

from .device import WATCHDOG_S, Device
from .dma import DmaBuffer, align_up
from .errors import CommandRefusedError, DeviceError, DeviceTimeoutError
from .rings import EVENT_PACKING, RX_PACKING, ConsumerRing, ProducerRing, check_ring_size

__all__ = ["CommandResult", "Queue", "QueueStats", "Received", "status_of"]

log = logging.getLogger("acceltcp.queue")


class CommandResult(NamedTuple):
    """How a command ended."""

    status: Status
    value: int


class Received:
    """A received packet: names for the items of a completion. Valid during the callback."""

    __slots__ = ("items", "view")

    def __init__(self, view: memoryview, items: tuple[int, ...]) -> None:
        self.view = view
        self.items = items

    def __getattr__(self, name: str) -> int:
        try:
            return RX_PACKING.slots[name].of(self.items)
        except KeyError:
            raise AttributeError(f"a completion has no field {name!r}") from None


@dataclass(slots=True)
class QueueStats:
    """What the driver itself counts."""

    rx: int = 0
    tx: int = 0
    batches: int = 0
    interrupts: int = 0
    commands: int = 0
    bad_buffers: int = 0
    tx_errors: int = 0
    event_overflows: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


_RX_TAG = RX_PACKING["tag"].item
_RX_LENGTH = RX_PACKING["length"].item
_EV_TYPE = EVENT_PACKING["type"].item
_EV_STATUS = EVENT_PACKING["status"].item
_EV_INDEX = EVENT_PACKING["index"].item
_EV_TAG = EVENT_PACKING["tag"].item
_EV_VALUE = EVENT_PACKING["value"].item
_EV_OVERFLOW_I, _EV_OVERFLOW = EVENT_PACKING["overflow"].item, 1 << EVENT_PACKING["overflow"].shift
_EV_RTT = EVENT_PACKING["rtt"].item
_EV_RETRANSMISSIONS = EVENT_PACKING["retransmissions"].item
assert all(EVENT_PACKING[name].shift == 0 for name in ("type", "status", "index", "tag", "value", "rtt", "retransmissions"))
# Comparing with a member of an enumeration is slow.
_COMMAND_DONE, _FLOW_DONE = int(EventType.COMMAND_DONE), int(EventType.FLOW_DONE)
_SPLICE_EVENTS = frozenset(map(int, (EventType.SPLICE_SIDE, EventType.SPLICE_DONE)))
_SAY_READ = frozenset(map(int, (EventType.TX_DONE, EventType.TX_ERROR, EventType.COMMAND_DONE)))
"""Events that tell which descriptors have been read."""
_SEND, _COMMAND, _EVENT = int(TxOpcode.SEND), int(TxOpcode.COMMAND), int(TxFlag.EVENT)
_STATUS = {int(status): status for status in Status}
_TX_PORT_SHIFT = TX_DESCRIPTOR.positions["port"][0] - TX_DESCRIPTOR.positions["flags"][0]
_TAG = struct.Struct("<I")
_TAG_AT = COMMAND.byte_offset("tag")
_COMMAND_SIZE = COMMAND.size
assert COMMAND.byte_offset("opcode") == 0
assert LISTEN_COMMAND.size == COMMAND.size


class Queue:
    """Queue `index` of a device, started.

    rx_free, completions, tx, events: ring sizes (powers of two, 8 to 32,768; `events` at
    least twice `tx`; `completions` at least `rx_free`). buffer_size: bytes of a packet
    buffer, either way; it bounds the frames that can pass. interval: least number of ticks
    between two interrupts.
    Raises `ValueError` for a size that is not allowed, `DeviceError` when the device refuses.
    """

    def __init__(
        self,
        device: Device,
        index: int = 0,
        *,
        rx_free: int = 1024,
        completions: int = 1024,
        tx: int = 1024,
        events: int = 2048,
        buffer_size: int = 2048,
        interval: int = 0,
    ) -> None:
        if not 0 <= index < device.identity.queues:
            raise ValueError(f"queue must be below {device.identity.queues}, not {index!r}")
        for name, entries in (("rx_free", rx_free), ("completions", completions), ("tx", tx), ("events", events)):
            check_ring_size(name, entries)
        if events < 2 * tx:
            raise ValueError(f"events must be at least twice tx={tx}, not {events}")
        if completions < rx_free:
            raise ValueError(f"completions must be at least rx_free={rx_free}, not {completions}")
        if not 64 <= buffer_size <= 0xFFFF:
            raise ValueError(f"buffer_size must be from 64 to 65535, not {buffer_size!r}")
        self.device = device
        self.index = index
        self.stats = QueueStats()
        self.buffer_size = buffer_size
        self._regs = device.registers.QUEUE[index]
        self._write = device.transport.write32
        self._buffers: list[DmaBuffer] = []
        self._stopped = False
        self._stride = align_up(buffer_size, 64)

        def producer(message: Message, entries: int, register: str) -> ProducerRing:
            address = getattr(self._regs, register).address
            ring = self._allocate(entries * message.size)
            return ProducerRing(message, entries, ring, lambda tail: self._write(address, tail))

        def consumer(message: Message, entries: int, register: str) -> ConsumerRing:
            address = getattr(self._regs, register).address
            ring = self._allocate(entries * message.size)
            return ConsumerRing(message, entries, ring, lambda head: self._write(address, head))

        self.rx_free = producer(RX_FREE, rx_free, "rx_free_tail")
        self.completions = consumer(RX_COMPLETION, completions, "rx_completion_head")
        self.tx = producer(TX_DESCRIPTOR, tx, "tx_tail")
        self.events = consumer(EVENT, events, "event_head")
        rx_memory = self._allocate(rx_free * self._stride)
        tx_memory = self._allocate(tx * self._stride)
        self._rx_views = [rx_memory.view[i * self._stride :][:buffer_size] for i in range(rx_free)]
        self._rx_addresses = [rx_memory.address + i * self._stride for i in range(rx_free)]
        self._tx_views = [tx_memory.view[i * self._stride :][:buffer_size] for i in range(tx)]
        self._tx_addresses = [tx_memory.address + i * self._stride for i in range(tx)]
        # Which buffer each entry of rx_free holds. Those that come back in order are posted where they were before:
        # then the entry need not be written again.
        self._rx_posted = list(range(rx_free))
        # Ask for an event often enough that a full ring always has one outstanding (commands have theirs): at every
        # descriptor whose index has these bits set.
        self._event_mask = tx // 8 - 1
        self._commands = 0
        """Of what was pushed since the last `flush`."""
        self.next_tag = 1
        """Tag for the next command that is built in its slot; see `commit_command`."""
        self._waiting: dict[int, tuple[Callable[[Any, int, int], None], Any]] = {}
        self._arm_address = self._regs.arm.address
        self.on_space: Callable[[], None] | None = None
        """Called in `poll` when slots have become free after `reserve` had none to give."""
        self.on_flow_done: Callable[[int, int, int, int], None] | None = None
        """Called in `poll` when the NIC has ended a flow: index, status (`Status`, as a plain number), RTT in timer
        steps (0: none), retransmissions."""
        self.on_splice_event: Callable[[bytes], None] | None = None
        """Called in `poll` with an event that tells of the end of a splice, as it lies in the ring (`SPLICE_EVENT`)."""
        self._starved = False
        self._start(interval)

    def _allocate(self, size: int) -> DmaBuffer:
        buffer = self.device.memory.allocate(size)
        self._buffers.append(buffer)
        return buffer

    def _start(self, interval: int) -> None:
        regs = self._regs
        for name, ring in (
            ("rx_free", self.rx_free),
            ("rx_completion", self.completions),
            ("tx", self.tx),
            ("event", self.events),
        ):
            getattr(regs, f"{name}_base_low").set(ring.buffer.address & 0xFFFFFFFF)
            getattr(regs, f"{name}_base_high").set(ring.buffer.address >> 32)
            getattr(regs, f"{name}_size").write(log2=ring.log2)
        regs.interrupt.write(interval=interval)
        regs.control.write(enable=1)
        deadline = time.monotonic() + WATCHDOG_S
        while (state := regs.status.read()["state"]) != QueueState.ENABLED:
            if state == QueueState.REFUSED:
                raise DeviceError(f"{self._name} was refused: a ring's size or alignment is wrong.")
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(f"{self._name} did not start within {WATCHDOG_S:g} s.")
            time.sleep(0.001)
        for tag, address in enumerate(self._rx_addresses):
            self.rx_free.push(address, self.buffer_size, tag)
        self.rx_free.ring()

    @property
    def _name(self) -> str:
        return f"Queue {self.index} of {self.device.transport.description}"

    # -- receive -----------------------------------------------------------------------

    def poll(self, handle: Callable[[memoryview, tuple[int, ...]], None], limit: int = 64) -> int:
        """Deal with up to `limit` received packets and all events; how many entries there were.

        `handle` gets a view of the frame and the completion's items (`rings.RX_PACKING` names
        them). It must not keep the view.
        """
        done = self.poll_events() if self.events.ready() else 0
        taken = self.completions.take(limit)
        if not taken:
            return done
        bad = 0
        ring, views, posted = self.rx_free, self._rx_views, self._rx_posted
        tail, mask, buffers = ring.tail, ring.mask, len(views)
        for items in taken:
            length = items[_RX_LENGTH]
            tag = items[_RX_TAG]
            if tag >= buffers:
                log.error("%s: completion for buffer %d, which does not exist", self._name, tag)
                bad += 1
                continue
            if length:
                try:
                    handle(views[tag][:length], items)
                except DeviceError:
                    raise
                except Exception:
                    log.exception("%s: a packet could not be handled", self._name)
            else:
                bad += 1
            at = tail & mask
            if posted[at] != tag:
                posted[at] = tag
                ring.pack_into(ring.view, at * ring.size, self._rx_addresses[tag], self.buffer_size, tag)
            tail += 1
        count = len(taken)
        ring.tail = tail & 0xFFFF
        # Each buffer ends in one completion, so the entries behind it are free again.
        ring.head = ring.head + count & 0xFFFF
        self.completions.acknowledge()
        ring.ring()
        stats = self.stats
        stats.bad_buffers += bad
        stats.rx += count
        stats.batches += 1
        return done + count

    # -- events ------------------------------------------------------------------------

    def poll_events(self) -> int:
        """Deal with all events that are there; how many."""
        total = 0
        while taken := self.events.take(256):
            total += len(taken)
            self._read_up_to(taken)
            whole = self._whole_events(taken) if self.on_splice_event is not None else None
            for items in taken:
                try:
                    if items[_EV_OVERFLOW_I] & _EV_OVERFLOW:
                        self.stats.event_overflows += 1
                        log.error("%s lost events", self._name)
                    kind = items[_EV_TYPE]
                    if kind == _COMMAND_DONE:
                        waiting = self._waiting.pop(items[_EV_TAG], None)
                        if waiting is not None:
                            waiting[0](waiting[1], items[_EV_STATUS], items[_EV_VALUE])
                    elif kind == _FLOW_DONE:
                        if self.on_flow_done is not None:
                            self.on_flow_done(
                                items[_EV_VALUE], items[_EV_STATUS], items[_EV_RTT], items[_EV_RETRANSMISSIONS]
                            )
                    else:
                        self._rare_event(kind, items, whole)
                except DeviceError:
                    raise
                except Exception:
                    log.exception("%s: an event could not be handled", self._name)
            self.events.acknowledge()
        if self._starved and self.tx.space:
            self._starved = False
            if self.on_space is not None:
                self.on_space()
        return total

    def _whole_events(self, taken: list[tuple[int, ...]]) -> Iterator[bytes]:
        """Those that are more than an EVENT, in order. Copies: who handles one event may make room in the ring."""
        first = self.events.head - len(taken)
        return iter([bytes(self.events.entry(first + at)) for at, items in enumerate(taken) if items[_EV_TYPE] in _SPLICE_EVENTS])

    def _rare_event(self, kind: int, items: tuple[int, ...], whole: Iterator[bytes] | None) -> None:
        if kind in _SPLICE_EVENTS:
            if whole is not None and self.on_splice_event is not None:
                self.on_splice_event(next(whole))
        elif kind == EventType.TX_ERROR:
            self.stats.tx_errors += 1
            log.warning("%s: descriptor %d failed: %s", self._name, items[_EV_INDEX], status_of(items[_EV_STATUS]).name)
        elif kind in (EventType.RX_ERROR, EventType.QUEUE_ERROR):
            log.warning("%s: %s: %s", self._name, EventType(kind).name, status_of(items[_EV_STATUS]).name)

    def _read_up_to(self, events: list[tuple[int, ...]]) -> None:
        """Descriptors are free again up to and including the last that these events tell of."""
        for items in reversed(events):
            if items[_EV_TYPE] in _SAY_READ:
                tx, after = self.tx, items[_EV_INDEX] + 1
                if (after - tx.head & 0xFFFF) <= (tx.tail - tx.head & 0xFFFF):
                    tx.head = after & 0xFFFF
                return

    # -- send --------------------------------------------------------------------------

    def reserve(self) -> memoryview | None:
        """The slot for the next frame, or None when the ring is full. Its contents are old."""
        tx = self.tx
        if tx.tail - tx.head & 0xFFFF > tx.mask:
            if self.events.ready():
                self.poll_events()
            if not tx.space:
                self._starved = True
                return None
        return self._tx_views[tx.tail & tx.mask]

    def commit(self, length: int, l3_offset: int = 0, l4_offset: int = 0, flags: int = 0, port: int = 0) -> None:
        """Send the first `length` bytes of the slot that `reserve` gave; `flush` makes it go."""
        tx = self.tx
        tail = tx.tail
        if not ~tail & self._event_mask:
            flags |= _EVENT
        at = tail & tx.mask
        tx.pack_into(
            tx.view, at * tx.size,
            self._tx_addresses[at], length, 0, l3_offset, l4_offset, _SEND, flags | port << _TX_PORT_SHIFT,
        )  # fmt: skip
        tx.tail = tail + 1 & 0xFFFF

    def send(self, frame: bytes, l3_offset: int = 0, l4_offset: int = 0, flags: int = 0, port: int = 0) -> bool:
        """Copy and queue a whole frame; False when the ring is full.

        Raises `ValueError` for a frame that no slot holds.
        """
        length = len(frame)
        if not 14 <= length <= self.buffer_size:
            raise ValueError(f"a frame must have 14 to {self.buffer_size} bytes, not {length}")
        slot = self.reserve()
        if slot is None:
            return False
        slot[:length] = frame
        self.commit(length, l3_offset, l4_offset, flags, port)
        return True

    def flush(self) -> None:
        """Make everything that was committed known to the device, and count it."""
        tx, stats, commands = self.tx, self.stats, self._commands
        stats.tx += (tx.tail - tx.rung & 0xFFFF) - commands
        stats.commands += commands
        self._commands = 0
        tx.ring()

    # -- commands ----------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether something can be sent now; if not, `on_space` will be called."""
        return self.reserve() is not None

    def post_command(self, command: bytes, done: Callable[[CommandResult], None], *, ring: bool = True) -> int:
        """Put a command (`COMMAND.size` bytes, tag ignored) in the ring; its tag.

        `done` is called from `poll` with the result. ring: tell the device at once; else the next
        `flush` does. Raises `DeviceError` when the ring is full.
        """
        if len(command) != COMMAND.size:
            raise ValueError(f"a command has {COMMAND.size} bytes, not {len(command)}")
        slot = self.reserve()
        if slot is None:
            raise DeviceError(f"{self._name} has no room for a command.")
        tag = self.next_tag
        slot[: COMMAND.size] = command
        _TAG.pack_into(slot, _TAG_AT, tag)
        self.commit_command(_tell, done)
        if ring:
            self.flush()
        return tag

    def commit_command(self, done: Callable[[Any, int, int], None], what: Any) -> None:
        """Send the command that the caller has built in the slot that `reserve` gave, with `next_tag` as its tag;
        `flush` makes it go. `done` is called from `poll` with `what`, status (`Status`, as a plain number) and value.
        """
        tx = self.tx
        tail = tx.tail
        at = tail & tx.mask
        tx.pack_into(tx.view, at * tx.size, self._tx_addresses[at], _COMMAND_SIZE, 0, 0, 0, _COMMAND, 0)
        tx.tail = tail + 1 & 0xFFFF
        tag = self.next_tag
        self.next_tag = tag % 0xFFFFFFFF + 1
        self._waiting[tag] = done, what
        self._commands += 1

    def forget_command(self, tag: int) -> None:
        """No longer wait for a command's event."""
        self._waiting.pop(tag, None)

    def run_command(self, command: bytes, timeout: float = WATCHDOG_S) -> CommandResult:
        """Run a command and wait for its event, dealing with other events meanwhile. Blocks.

        Raises `CommandRefusedError` for any status but OK, `DeviceTimeoutError` without an event.
        """
        results: list[CommandResult] = []
        tag = self.post_command(command, results.append)
        deadline = time.monotonic() + timeout
        while not results:
            if not self.poll_events():
                self.device.transport.check()
                if time.monotonic() > deadline:
                    self.forget_command(tag)
                    raise self.command_timeout(command, timeout)
                time.sleep(0.0005)
        return self.check_result(command, results[0])

    def command_timeout(self, command: bytes, timeout: float) -> DeviceTimeoutError:
        """The error for a command that no event came for."""
        return DeviceTimeoutError(f"{self._name} did not finish {_command_name(command)} within {timeout:g} s.")

    def check_result(self, command: bytes, result: CommandResult) -> CommandResult:
        """The result if it is OK; else raises `CommandRefusedError`."""
        if result.status != Status.OK:
            raise CommandRefusedError(
                result.status, f"{self._name} refused {_command_name(command)}: {result.status.name}."
            )
        return result

    # -- interrupts and end ------------------------------------------------------------

    def arm(self) -> None:
        """Ask for one interrupt as soon as there is an entry that was not consumed yet."""
        self._write(self._arm_address, self.completions.head | self.events.head << 16)

    @property
    def ready(self) -> bool:
        """Whether `poll` would find something."""
        return self.completions.ready() or self.events.ready()

    def drain(self, timeout: float = 1.0) -> bool:
        """Wait until the NIC has read everything that was sent. Blocks; False at the time limit."""
        try:
            self.run_command(COMMAND.pack(opcode=CommandOpcode.NOP), timeout)
        except DeviceError:
            return False
        return True

    def stop(self) -> None:
        """Disable the queue and free its memory once nothing is in flight. Blocks."""
        if self._stopped:
            return
        self._stopped = True
        self._regs.control.write(enable=0)
        deadline = time.monotonic() + WATCHDOG_S
        while not self._regs.status.read()["idle"]:
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(f"{self._name} did not become idle within {WATCHDOG_S:g} s.")
            time.sleep(0.001)
        self._rx_views, self._tx_views = [], []
        for buffer in self._buffers:
            self.device.memory.free(buffer)
        self._buffers = []


def _tell(done: Callable[[CommandResult], None], status: int, value: int) -> None:
    done(CommandResult(status_of(status), value))


def status_of(value: int) -> Status:
    """The status that an event's number stands for; `BAD_ARGUMENT` if there is none such."""
    return _STATUS.get(value, Status.BAD_ARGUMENT)


def _command_name(command: bytes) -> str:
    try:
        return CommandOpcode(command[0]).name
    except ValueError:
        return f"command {command[0]}"
