"""`ListenTable`: which address and port somebody listens on, and how to answer there.

Lookup: all keys are compared at once in registers; the listener's values lie in distributed
memory. An exact address beats "any address". Latency 3 cycles, one lookup per cycle; the
output is registered. `enable` = 0 holds the lookup pipeline as it is.

Commands (`acceltcp.abi.messages.LISTEN_COMMAND`) come one at a time and each ends in exactly
one result, in order. A second copy of the keys in distributed memory is searched one entry
per cycle: a command takes about `listeners` + 10 cycles. An entry changes in one cycle, and
the result is given when every lookup still in the pipeline has passed: no lookup ever sees
the key of one listener with the values of another. A refused command changes nothing.

* Overflow: a full table refuses with TABLE_FULL. Reset: empties the table.
* The lowest free index is used.
"""

from acceltcp.abi.cookie import IPV4_MAPPED_PREFIX, MSS_CLASSES
from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, ListenFlag, Status
from acceltcp.abi.wire import WSCALE_MAX
from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..abi import message_layout

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
    {"queue": 8, "mss": 16, "window": 16, "wscale": 4, "defer_accept": 1, "ecn": 1, "paused": 1}
)
_KNOWN_FLAGS = sum(ListenFlag)
_HALVES = (slice(64, 128), slice(0, 64))


class _Key(data.Struct):
    """Key of an entry; `address` is zero when `any_address`."""

    key: ListenKey
    any_address: 1


def _flag(flags, flag):
    return flags[int(flag).bit_length() - 1]


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
        keys = [Signal(_Key, name=f"key{i}", reset_less=True) for i in range(self._entries)]
        m.submodules.values = values = Memory(
            shape=_Values, depth=self._entries, init=[], attrs={"ram_style": "distributed"}
        )
        m.submodules.key_copy = key_copy = Memory(
            shape=_Key, depth=self._entries, init=[], attrs={"ram_style": "distributed"}
        )
        self._look_up(m, used, keys, values)
        self._run_commands(m, used, keys, values, key_copy)
        return m

    def _look_up(self, m, used, keys, values):
        # Half of the address is compared apart: fewer levels of logic before the register.
        same_high, same_rest, wild = (Signal(self._entries) for _ in range(3))
        exact = Signal(self._entries)
        exact_hit, wild_hit = Signal(), Signal()
        exact_at, wild_at = (Signal(range(max(2, self._entries)), reset_less=True) for _ in range(2))
        result = Signal(Listener, reset_less=True)
        read = values.read_port(domain="comb")
        m.d.comb += [
            exact.eq(same_high & same_rest),
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
            # Stage 1: compare with all keys.
            for i, entry in enumerate(keys):
                same = used[i] & (entry.key.port == self.key.port) & (entry.key.ipv6 == self.key.ipv6)
                high, low = (entry.key.address[part] == self.key.address[part] for part in _HALVES)
                m.d.sync += [
                    same_high[i].eq(high),
                    same_rest[i].eq(same & ~entry.any_address & low),
                    wild[i].eq(same & entry.any_address),
                ]
            # Stage 2: encode.
            m.d.sync += [
                exact_hit.eq(exact.any()),
                wild_hit.eq(wild.any()),
                exact_at.eq(index_of(exact)),
                wild_at.eq(index_of(wild)),
            ]
            # Stage 3: read the values.
            m.d.sync += [
                result.hit.eq(exact_hit | wild_hit),
                result.index.eq(read.addr),
            ]
            m.d.sync += [getattr(result, name).eq(getattr(read.data, name)) for name in _Values.members]

    def _run_commands(self, m, used, keys, values, key_copy):
        command = Signal(message_layout(LISTEN_COMMAND), reset_less=True)
        result = self.port.result
        status = Signal(8, reset_less=True)

        flags = command.flags
        any_address = _flag(flags, ListenFlag.ANY_ADDRESS)
        ipv6 = _flag(flags, ListenFlag.IPV6)
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
            new_values.defer_accept.eq(_flag(flags, ListenFlag.DEFER_ACCEPT)),
            new_values.ecn.eq(_flag(flags, ListenFlag.ECN)),
            new_values.paused.eq(_flag(flags, ListenFlag.PAUSED)),
        ]

        listen, unlisten, update = Signal(), Signal(), Signal()
        key_bad, values_bad = Signal(), Signal()
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
        at = Signal(range(max(2, self._entries)))
        searching = Signal()
        entry_key = Signal(_Key, reset_less=True)
        entry_used, entry_at = Signal(), Signal.like(at, reset_less=True)
        found, found_at = Signal(), Signal.like(at, reset_less=True)
        free, free_at = Signal(), Signal.like(at, reset_less=True)
        read_key = key_copy.read_port(domain="comb")
        m.d.comb += read_key.addr.eq(at)
        m.d.sync += [
            entry_key.eq(read_key.data),
            entry_used.eq(used.bit_select(at, 1)),
            entry_at.eq(at),
            searching.eq(0),
        ]
        with m.If(searching & entry_used & (Value.cast(entry_key) == Value.cast(key))):
            m.d.sync += [found.eq(1), found_at.eq(entry_at)]
        with m.If(searching & ~entry_used & ~free):
            m.d.sync += [free.eq(1), free_at.eq(entry_at)]

        target = Signal.like(at)
        write, used_next = Signal(), Signal()
        write_values, write_key = values.write_port(), key_copy.write_port()
        m.d.comb += [
            used_next.eq(~unlisten),
            write_values.addr.eq(target),
            write_values.data.eq(new_values),
            # Not for UNLISTEN: a lookup that has matched is about to read them.
            write_values.en.eq(write & ~unlisten),
            write_key.addr.eq(target),
            write_key.data.eq(key),
            write_key.en.eq(write),
        ]
        for i, entry in enumerate(keys):
            with m.If(write & (target == i)):
                m.d.sync += [used[i].eq(used_next), entry.eq(key)]

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
