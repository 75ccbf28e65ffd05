"""`ListenTable`: which address and port somebody listens on, and how to answer there.

Lookup: a `MatchMemory` finds the entries of a key; the listener's values lie in distributed
memory. An exact address beats "any address". Latency 3 cycles, one lookup per cycle; the
output is registered. `enable` = 0 holds the lookup pipeline as it is.

Commands (`acceltcp.abi.messages.LISTEN_COMMAND`) come one at a time and each ends in exactly
one result, in order. The keys lie in a memory that is searched one entry per cycle: a command
takes about `listeners` + 10 cycles. LISTEN writes the rows of the `MatchMemory` besides: up to
512 cycles more (480 with 64 listeners), during which the entry is not in use. So an entry
appears, changes or goes in one cycle, and the result is given when every lookup still in the
pipeline has passed: no lookup ever sees the key of one listener with the values of another.
A refused command changes nothing.

* Overflow: a full table refuses with TABLE_FULL. Reset: empties the table; memories stay as they
  are, and what no entry in use has written is never looked at.
* The lowest free index is used.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from acceltcp.abi.cookie import IPV4_MAPPED_PREFIX, MSS_CLASSES
from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, ListenFlag, Status
from acceltcp.abi.wire import WSCALE_MAX

from ..abi import flag_of, message_layout
from .match import MatchMemory

__all__ = ["ListenKey", "ListenPort", "ListenTable", "Listener"]


class ListenKey(data.Struct):
    """What is looked up; IPv4 addresses are ::ffff:a.b.c.d, first byte most significant."""

    address: 128
    port: 16
    ipv6: 1


class Listener(data.Struct):
    """Result of a lookup; without `hit` the rest means nothing."""

    hit: 1
    index: 8
    queue: 8
    mss: 16
    window: 16
    wscale: 4
    defer_accept: 1
    ecn: 1
    paused: 1
    spread: 1


class ListenPort(wiring.Signature):
    """Commands to the listen table, as who sends them sees it; one result per command, in order.

    `value` is the entry's index when `status` is OK, else 0.
    """

    def __init__(self):
        super().__init__(
            {
                "command": Out(stream.Signature(message_layout(LISTEN_COMMAND))),
                "result": In(stream.Signature(data.StructLayout({"status": 8, "value": 32}))),
            }
        )


_Values = data.StructLayout(
    {"queue": 8, "mss": 16, "window": 16, "wscale": 4, "defer_accept": 1, "ecn": 1, "paused": 1, "spread": 1}
)
_KNOWN_FLAGS = sum(ListenFlag)


class _Key(data.Struct):
    """Key of an entry; `address` is zero when `any_address`."""

    key: ListenKey
    any_address: 1


class ListenTable(wiring.Component):
    """Listen table of `config.listeners` entries.

    Members
    -------
    enable: the lookup pipeline moves on.
    key: what to look up.
    listener: the result, `latency` enabled cycles later.
    port: In(ListenPort()): commands.
    busy: a command is in work.
    """

    latency = 3

    def __init__(self, config):
        self._entries, self._queues = config.listeners, config.queues
        super().__init__(
            {
                "enable": In(1),
                "key": In(ListenKey),
                "listener": Out(Listener),
                "port": In(ListenPort()),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        used = Signal(self._entries)
        wild = Signal(self._entries, reset_less=True)  # entries for any address
        m.submodules.match = match = MatchMemory(self._entries, ListenKey.as_shape().size)
        m.submodules.values = values = Memory(
            shape=_Values, depth=self._entries, init=[], attrs={"ram_style": "distributed"}
        )
        m.submodules.keys = keys = Memory(
            shape=_Key, depth=self._entries, init=[], attrs={"ram_style": "block"}
        )
        self._look_up(m, match, used, wild, values)
        self._run_commands(m, match, used, wild, values, keys)
        return m

    def _look_up(self, m, match, used, wild, values):
        exact_hits = Signal(self._entries)
        wild_hits = Signal(self._entries)
        exact_hit = Signal()
        wild_hit = Signal()
        exact_at = Signal(range(max(2, self._entries)), reset_less=True)
        wild_at = Signal.like(exact_at)
        result = Signal(Listener, reset_less=True)
        read = values.read_port(domain="comb")
        m.d.comb += [
            # Stage 1: match.
            match.enable.eq(self.enable),
            match.key.eq(self.key),
            match.used.eq(used),
            exact_hits.eq(match.match & ~wild),
            wild_hits.eq(match.match & wild),
            read.addr.eq(Mux(exact_hit, exact_at, wild_at)),
            self.listener.eq(result),
        ]

        def index_of(hits):
            # Keys are unique, so at most one bit is set and an OR of indices will do.
            width = len(exact_at)
            return Cat(
                Cat(hits[i] for i in range(self._entries) if i >> bit & 1).any() for bit in range(width)
            )

        with m.If(self.enable):
            # Stage 2: encode.
            m.d.sync += [
                exact_hit.eq(exact_hits.any()),
                wild_hit.eq(wild_hits.any()),
                exact_at.eq(index_of(exact_hits)),
                wild_at.eq(index_of(wild_hits)),
            ]
            # Stage 3: read the values.
            m.d.sync += [
                result.hit.eq(exact_hit | wild_hit),
                result.index.eq(read.addr),
            ]
            m.d.sync += [getattr(result, name).eq(getattr(read.data, name)) for name in _Values.members]

    def _run_commands(self, m, match, used, wild, values, keys):
        command = Signal(message_layout(LISTEN_COMMAND), reset_less=True)
        result = self.port.result
        status = Signal(8, reset_less=True)

        flags = command.flags
        any_address = flag_of(flags, ListenFlag.ANY_ADDRESS)
        ipv6 = flag_of(flags, ListenFlag.IPV6)
        # In the message the first byte of the address is the least significant.
        address = Signal(128)
        m.d.comb += address.eq(Cat(command.address[at : at + 8] for at in range(120, -1, -8)))
        key = Signal(_Key, reset_less=True)
        new_values = Signal(_Values)
        m.d.comb += [
            new_values.queue.eq(command.queue),
            new_values.mss.eq(command.mss),
            new_values.window.eq(command.window),
            new_values.wscale.eq(command.wscale),
            new_values.defer_accept.eq(flag_of(flags, ListenFlag.DEFER_ACCEPT)),
            new_values.ecn.eq(flag_of(flags, ListenFlag.ECN)),
            new_values.paused.eq(flag_of(flags, ListenFlag.PAUSED)),
            new_values.spread.eq(flag_of(flags, ListenFlag.SPREAD)),
        ]

        listen = Signal()
        unlisten = Signal()
        update = Signal()
        key_bad = Signal()
        values_bad = Signal()
        m.d.comb += [
            listen.eq(command.opcode == CommandOpcode.LISTEN),
            unlisten.eq(command.opcode == CommandOpcode.UNLISTEN),
            update.eq(command.opcode == CommandOpcode.LISTEN_UPDATE),
            # An IPv4 address stands in the last four bytes, after zeros or as ::ffff:a.b.c.d.
            key_bad.eq(
                (command.port == 0)
                | (any_address & (address != 0))
                | (~ipv6 & (address[32:] != 0) & (address[32:] != IPV4_MAPPED_PREFIX >> 32))
            ),
            values_bad.eq(
                ((flags & ~_KNOWN_FLAGS & 0xFF) != 0)
                | (command.queue >= self._queues)
                | (command.mss < MSS_CLASSES[0])
                | (command.wscale > WSCALE_MAX)
                | Cat(command[f.name] for f in LISTEN_COMMAND.fields if f.reserved).any()
            ),
        ]

        # Search: one entry per cycle, read in one and compared in the next.
        read_key = keys.read_port()
        entry_key = read_key.data
        at = Signal(range(max(2, self._entries)))
        searching = Signal()
        shifting = Signal()
        entry_used = Signal()
        entry_at = Signal.like(at, reset_less=True)
        found = Signal()
        found_at = Signal.like(at, reset_less=True)
        free = Signal()
        free_at = Signal.like(at, reset_less=True)
        m.d.comb += read_key.addr.eq(at)
        m.d.sync += [
            entry_used.eq(used.bit_select(at, 1)),
            entry_at.eq(at),
            searching.eq(0),
            shifting.eq(0),
        ]
        with m.If(searching & entry_used & (Value.cast(entry_key) == Value.cast(key))):
            m.d.sync += [found.eq(1), found_at.eq(entry_at)]
        with m.If(searching & ~entry_used & ~free):
            m.d.sync += [free.eq(1), free_at.eq(entry_at)]

        target = Signal.like(at)
        write = Signal()
        write_values, write_key = values.write_port(), keys.write_port()
        m.d.comb += [
            write_values.addr.eq(target),
            write_values.data.eq(new_values),
            # Not for UNLISTEN: a lookup that has matched is about to read them.
            write_values.en.eq(write & ~unlisten),
            write_key.addr.eq(target),
            write_key.data.eq(key),
            write_key.en.eq(write & listen),
        ]
        use = Signal()
        for i in range(self._entries):
            with m.If(target == i):
                with m.If(write & unlisten):
                    m.d.sync += used[i].eq(0)
                with m.If(write & listen):
                    m.d.sync += wild[i].eq(any_address)
                with m.If(use):
                    m.d.sync += used[i].eq(1)

        # Rows: the keys of the target's group are read as in a search and shifted in.
        row = Signal(range(match.rows))
        group = Signal(match.groups)
        group_start = Signal.like(at)
        left = Signal(range(match.group_size))
        write_row = Signal()
        for number in range(match.groups):
            start = number * match.group_size
            with m.If((target >= start) & (target < start + match.group_size)):
                m.d.comb += [group[number].eq(1), group_start.eq(start)]
        m.d.comb += [
            match.shift.eq(shifting),
            match.entry.eq(entry_key.key),
            Value.cast(data.View(ListenKey, match.ignore).address).eq(entry_key.any_address.replicate(128)),
            match.row.eq(row),
            match.write.eq(Mux(write_row, group, 0)),
        ]

        settled = Signal(range(self.latency + 1))
        m.d.comb += [
            self.busy.eq(1),
            result.p.status.eq(status),
            result.p.value.eq(Mux(status == Status.OK, target, 0)),
        ]
        with m.FSM(name="command"):
            with m.State("Wait for a command"):
                m.d.comb += [self.busy.eq(self.port.command.valid), self.port.command.ready.eq(1)]
                m.d.sync += command.eq(self.port.command.payload)
                with m.If(self.port.command.valid):
                    m.next = "Check arguments"
            with m.State("Check arguments"):
                m.d.sync += [
                    key.key.address.eq(
                        Mux(any_address | ipv6, address, Cat(address[:32], C(IPV4_MAPPED_PREFIX >> 32, 96)))
                    ),
                    key.key.port.eq(command.port),
                    key.key.ipv6.eq(ipv6),
                    key.any_address.eq(any_address),
                    at.eq(0),
                    found.eq(0),
                    free.eq(0),
                    settled.eq(0),
                ]
                m.next = "Search"
                with m.If(~(listen | unlisten | update)):
                    m.d.sync += status.eq(Status.BAD_OPCODE)
                    m.next = "Give the result"
                with m.Elif(key_bad | (~unlisten & values_bad)):
                    m.d.sync += status.eq(Status.BAD_ARGUMENT)
                    m.next = "Give the result"
            with m.State("Search"):
                m.d.sync += [searching.eq(1), at.eq(at + 1)]
                with m.If(at == self._entries - 1):
                    m.next = "Compare the last entry"
            with m.State("Compare the last entry"):
                m.next = "Decide"
            with m.State("Decide"):
                m.d.sync += target.eq(Mux(listen, free_at, found_at))
                m.next = "Give the result"
                with m.If(listen & found):
                    m.d.sync += status.eq(Status.DUPLICATE)
                with m.Elif(listen & ~free):
                    m.d.sync += status.eq(Status.TABLE_FULL)
                with m.Elif(~listen & ~found):
                    m.d.sync += status.eq(Status.NOT_FOUND)
                with m.Else():
                    m.d.sync += status.eq(Status.OK)
                    m.next = "Change the entry"
            with m.State("Change the entry"):
                m.d.comb += write.eq(1)
                m.d.sync += [row.eq(0), at.eq(group_start), left.eq(match.group_size - 1)]
                m.next = "Let lookups pass"
                with m.If(listen):
                    m.next = "Read the group's keys"
            with m.State("Read the group's keys"):
                m.d.sync += [shifting.eq(1), at.eq(at + 1), left.eq(left - 1)]
                with m.If(left == 0):
                    m.next = "Shift in the last key"
            with m.State("Shift in the last key"):
                m.next = "Write the row"
            with m.State("Write the row"):
                m.d.comb += write_row.eq(1)
                m.d.sync += [row.eq(row + 1), at.eq(group_start), left.eq(match.group_size - 1)]
                m.next = "Read the group's keys"
                with m.If(row == match.rows - 1):
                    m.next = "Use the entry"
            with m.State("Use the entry"):
                m.d.comb += use.eq(1)
                m.next = "Let lookups pass"
            with m.State("Let lookups pass"):
                with m.If(self.enable):
                    m.d.sync += settled.eq(settled + 1)
                    with m.If(settled == self.latency - 1):
                        m.next = "Give the result"
            with m.State("Give the result"):
                m.d.comb += result.valid.eq(1)
                with m.If(result.ready):
                    m.next = "Wait for a command"
