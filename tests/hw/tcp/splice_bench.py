"""A running `Splices` with what surrounds it: packets, the connection table, tables in host memory, event rings.

Everything that it does with packets and pairs is compared in every cycle with `splice_engine_model`. Which operation comes in which
cycle is seen at the splice engine's own streams; what an operation does is the model's matter.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from amaranth import Value
from amaranth.lib import data

from acceltcp.abi.flow import flow_digest
from acceltcp.abi.messages import (
    SPLICE_COMMAND,
    SPLICE_EVENT,
    SPLICE_SIDE,
    CommandOpcode,
    EventType,
    SpliceSideFlag,
    Status,
    Verdict,
)
from acceltcp.abi.registers import TIMER_TICKS
from hw.config import NicConfig
from hw.dma.events import EventRequest
from hw.dma.tx import TxCommand
from hw.table.records import Kind
from hw.tcp.frame_table import TableRequest
from hw.tcp.records import DispatchRecord
from hw.tcp.splice_engine import SpliceEngine
from hw.tcp.splice_records import GENERATION_BITS, SpliceInput, SpliceOutput, SpliceRecord
from hw.tcp.splices import Splices
from tests.hw.simulate import always, run
from tests.hw.tcp.splice_engine_model import MAPPED, Pair, Segment, translation

__all__ = ["CONFIG", "Packet", "Sink", "Source", "SpliceBench", "side_message"]

CONFIG = NicConfig(flows=512, splices=16, ports=2, packets=32, width=8, pipelined_hash=False)
SECRET = bytes(range(7, 23))
ROW_MASK = (1 << CONFIG.table.row_bits) - 1
UNIT_STEPS, LOOKUP_CYCLES = 8, 60
"""Shorter than in earnest, so that simulations are."""

M32 = 0xFFFF_FFFF


def _places(layout: Any, at: int = 0, path: tuple = ()) -> dict[tuple, tuple[int, int]]:
    """Where the fields of a layout lie: path -> (lowest bit, width)."""
    found = {}
    for name, one in layout:
        found[(*path, name)] = (at + one.offset, one.width)
        try:
            inner = data.Layout.cast(one.shape)
        except TypeError:
            continue
        found |= _places(inner, at + one.offset, (*path, name))
    return found


TABLES = 1000
"""Where the tables of commands lie in host memory, in units of their alignment."""

_INPUT_BITS = SpliceInput(CONFIG).size
_INPUT = _places(SpliceInput(CONFIG))
_OUTPUT = _places(SpliceOutput.as_shape())
_DISPATCH = _places(DispatchRecord.as_shape())
_RECORD = _places(SpliceRecord.as_shape())


def pick(places: dict, value: int, *path: str) -> int:
    at, width = places[path]
    return value >> at & (1 << width) - 1


def put(places: dict, value: int, number: int, *path: str) -> int:
    at, width = places[path]
    assert 0 <= number < 1 << width, (path, number)
    return value & ~((1 << width) - 1 << at) | number << at


def side_message(**fields: int) -> dict[str, int]:
    """A SPLICE_SIDE with everything in order. Addresses are numbers, first byte most significant."""
    return {
        "remote": 0x0A000001, "local": 0x0A000002, "remote_port": 40000, "local_port": 80, "dst_mac": 0x02AABBCCDDEE,
        "vlan_tci": 0, "flags": int(SpliceSideFlag.TIMESTAMPS | SpliceSideFlag.SACK), "port": 0, "snd_shift": 7,
        "rcv_shift": 7, "snd_nxt": 1000, "snd_una": 1000, "rcv_nxt": 5000, "ts_offset": 0,
    } | fields  # fmt: skip


def pack_side(fields: dict[str, int]) -> int:
    turned = {n: int.from_bytes(fields[n].to_bytes(16, "big"), "little") for n in ("remote", "local")}
    mac = int.from_bytes(fields["dst_mac"].to_bytes(6, "big"), "little")
    return SPLICE_SIDE.to_int(**{**fields, **turned, "dst_mac": mac})


def digest_of(fields: dict[str, int]) -> int:
    ipv6 = bool(fields["flags"] & SpliceSideFlag.IPV6)
    address = {n: fields[n] | (0 if ipv6 else MAPPED) for n in ("remote", "local")}
    ports = {n: fields[n] for n in ("remote_port", "local_port")}
    return flow_digest(SECRET, **address, **ports, ipv6=ipv6) & (1 << CONFIG.table.digest_bits) - 1


class Packet:
    """A packet on its way to the engine. way: None for one that is not spliced."""

    def __init__(self, rng: random.Random, way: int | None = None, segment: Segment | None = None) -> None:
        self.way, self.segment = way, segment
        self.words = rng.randrange(11)
        l4 = rng.choice((34, 38, 54, 58))
        raw = rng.getrandbits(_INPUT_BITS)
        for number, path in (
            (way is not None, ("hit",)),
            (l4, ("dispatch", "info", "l4_offset")),
            (l4 + 20 + 4 * self.words, ("dispatch", "info", "payload_offset")),
            (rng.randrange(2), ("dispatch", "info", "port")),
        ):
            raw = put(_INPUT, raw, int(number), *path)
        if way is not None:
            assert segment is not None
            for name, number in (
                ("way", way), ("seq", segment.seq), ("ack", segment.ack), ("flags", int(segment.flags)),
                ("payload_length", segment.payload), ("timestamps", int(segment.tsval is not None)),
            ):  # fmt: skip
                raw = put(_INPUT, raw, number, "packet", name)
            if segment.tsval is not None:
                raw = put(_INPUT, raw, segment.tsval, "packet", "tsval")
            raw = put(_INPUT, raw, 1, "dispatch", "keep")
        self.raw = raw

    @property
    def dispatch(self) -> int:
        return pick(_INPUT, self.raw, "dispatch")


class Source:
    """Puts integers on a stream; `go()` says whether the next may be offered in this cycle."""

    def __init__(self, stream: Any, go: Callable[[], bool] = always) -> None:
        self.stream, self.go = stream, go
        self.payload = Value.cast(stream.payload)
        self.waiting: deque[int] = deque()
        self.offered = False

    def before(self, ctx: Any) -> None:
        if not self.offered and self.waiting and self.go():
            ctx.set(self.payload, self.waiting[0])
            ctx.set(self.stream.valid, 1)
            self.offered = True

    def after(self, ctx: Any, ready: int) -> int | None:
        if not (self.offered and ready):
            return None
        ctx.set(self.stream.valid, 0)
        self.offered = False
        return self.waiting.popleft()


class Sink:
    """Takes integers off a stream, and sees that what is offered stays."""

    def __init__(self, stream: Any, go: Callable[[], bool] = always) -> None:
        self.stream, self.go = stream, go
        self.payload = Value.cast(stream.payload)
        self.ready = False
        self.owed: int | None = None

    def before(self, ctx: Any) -> None:
        self.ready = self.go()
        ctx.set(self.stream.ready, self.ready)

    def after(self, valid: int, value: int) -> int | None:
        assert self.owed is None or (valid and value == self.owed), "an offer was taken back or changed"
        self.owed = value if valid and not self.ready else None
        return value if valid and self.ready else None


class SpliceBench:
    """See the module's text. `scenario(ctx, bench)` drives it; `await bench.cycle(ctx)` is one cycle.

    Inputs: packets (deque of Packet), `command`, `update`. go: name of a stream -> may it move now?
    Results: outputs, told (SPLICE_EVENTs as dicts), done (COMMAND_DONE: (tag, status, value)), updated (status), counted.
    pairs: the model's, by index. table: the connection table, digest -> index.
    """

    def __init__(self, go: Callable[[str], Callable[[], bool]] = lambda name: always, linger: int = 2) -> None:
        self.engines: list[SpliceEngine] = []
        self.dut = Splices(CONFIG)
        dut, self.linger = self.dut, linger
        self.sources = {
            name: Source(getattr(dut, name), go(name))
            for name in ("i", "commands", "updates", "entries", "inserted", "deleted")
        }
        self.sinks = {
            name: Sink(getattr(dut, name), go(name))
            for name in ("o", "records", "table_requests", "insert", "delete", "updated")
        } | {f"events{k}": Sink(dut.events[k], go(f"events{k}")) for k in (0, 1)}
        self.packets: deque[Packet] = deque()
        self._expected: deque[tuple[int, Packet, Any]] = deque()  # (cycle, packet, fate) whose operation has begun
        self._records: deque[dict] = deque()
        self.outputs: list[tuple[int, Packet, Any]] = []
        self.memory: dict[int, int] = {}
        self.refused: set[int] = set()
        self.table: dict[int, int] = {}
        self.full = 0  # so many insertions will be refused
        self.inserts_until_full: int | None = None
        self.commands: dict[int, dict] = {}  # by tag
        self._order: deque[int] = deque()  # tags of commands that are not done
        self.pairs: dict[int, Pair] = {}
        self.names: dict[int, int] = {}  # index -> name of the splice that is in use there
        self.done: list[tuple[int, int, int]] = []
        self.told: list[dict[str, int]] = []
        self._to_tell: dict[int, list[dict[str, int]]] = {}
        self.told_in_time: list[int] = []
        self.updated: list[int] = []
        self._updates: list[bool] = []
        self.counted: Counter[str] = Counter()
        self.wanted: Counter[str] = Counter()
        self.generation = 0
        self.cycles = 0
        self.now = 0
        self._ticks = 0
        self._nows: deque[int] = deque()
        self._seen: deque[dict] = deque()
        self.tick = 0

    # In

    def command(self, client: dict, server: dict, *, limit=None, idle=0, tag=None, queue=3, raw=None, want=None, **fields) -> int:
        """Post a SPLICE; returns its tag. raw: the table instead of what the sides make; want: its status."""
        tag = len(self.commands) if tag is None else tag
        at = TABLES + len(self.commands)
        assert tag not in self.commands
        self.memory[at] = pack_side(client) | pack_side(server) << 8 * SPLICE_SIDE.size if raw is None else raw
        values = {
            "opcode": CommandOpcode.SPLICE, "bounded": int(limit is not None), "tag": tag, "table": at << 8,
            "limit": limit or 0, "idle": idle,
        } | fields  # fmt: skip
        self.commands[tag] = {"sides": [client, server], "limit": limit, "idle": idle, "queue": queue, "want": want, "tag": tag}
        self._order.append(tag)
        value = {"queue": queue, "index": tag & 0xFFFF, "command": SPLICE_COMMAND.to_int(**values)}
        self.sources["commands"].waiting.append(TxCommand.const(value).as_value().value)
        return tag

    def update(self, name: int, *, copy: bool = False) -> None:
        """SPLICE_UPDATE."""
        self.sources["updates"].waiting.append(name | int(copy) << 32)

    def send(self, *packets: Packet) -> None:
        self.packets.extend(packets)

    # Per cycle

    def _signals(self) -> list:
        dut, engine = self.dut, self.engines[-1]
        flat = []
        for source in self.sources.values():
            flat.append(source.stream.ready)
        for sink in self.sinks.values():
            flat += [sink.stream.valid, sink.payload]
        flat += [
            engine.installs.valid & engine.installs.ready, engine.installs.p.activate, engine.installs.p.index,
            engine.updates.valid & engine.updates.ready, Value.cast(engine.updates.payload),
            Value.cast(engine.ended), Value.cast(dut.counts), dut.port.held, dut.busy, dut.idle,
        ]  # fmt: skip
        return flat

    async def cycle(self, ctx: Any) -> None:
        source = self.sources["i"]
        if not source.waiting and self.packets:
            source.waiting.append(self.packets[0].raw)
        for one in (*self.sources.values(), *self.sinks.values()):
            one.before(ctx)
        ctx.set(self.dut.tick, self.tick)
        _, _, *values = await ctx.tick().sample(*self._signals())
        given = {}
        for name, one in self.sources.items():
            given[name] = one.after(ctx, values.pop(0))
        taken = {}
        for name, one in self.sinks.items():
            taken[name] = one.after(values.pop(0), values.pop(0))
        installed, activate, index, updated, update, ended, counts, self.held, self.busy, self.idle = values

        seen: dict[str, Any] = {}
        if given["i"] is not None:
            packet = self.packets.popleft()
            seen["packet"] = packet
        if installed:
            seen["activate" if activate else "install"] = index
            if not activate:
                self._install(index)
        if updated:
            bits = CONFIG.splice_bits
            copy = update >> bits + GENERATION_BITS
            seen["copy" if copy else "abort"] = (update & (1 << bits) - 1, update >> bits & (1 << GENERATION_BITS) - 1)
        assert len(seen) <= 1, "more than one operation in a cycle"
        self._seen.append(seen)
        self._nows.append(self.now)
        if self.tick:
            self._ticks += 1
            if self._ticks == self.unit_steps * TIMER_TICKS:
                self._ticks, self.now = 0, (self.now + 1) & 0xFFFF
        # An operation meets its pair four cycles after it begins, and is told of in the next one.
        if len(self._seen) == 6:
            self._replay(self._seen.popleft(), self._nows[3], self._nows[4], ended, self.cycles - 5)
            self._nows.popleft()
        self._outside(taken)
        for name, width in ((n, f.width) for n, f in self.dut.counts.shape()):
            if counts & (1 << width) - 1:
                self.counted[name] += counts & (1 << width) - 1
            counts >>= width
        self.cycles += 1

    def _install(self, index: int) -> None:
        """A pair comes into use: that of the oldest command. (Nothing else of that index is in the pipeline.)"""
        command = self.commands[self._order[0]]
        assert index not in self.names, f"pair {index} is in use"
        for k in range(2):
            assert 2 * index + k not in self.table.values()
        assert all(p.way is None or p.way >> 1 != index for p in self.packets), "old packets are on their way"
        command["index"] = index
        command["generation"] = self.generation
        self.names[index] = command["name"] = self.generation << 24 | index
        self.pairs[index] = Pair(
            command["sides"], command["queue"], self.generation, command["limit"], command["idle"], self.linger
        )
        self.generation = (self.generation + 1) & 0xFF

    def _replay(self, seen: dict, early: int, now: int, ended: int, began: int) -> None:
        """What the model says of the operation that began then. early: the time a cycle before, from which deadlines are reckoned."""
        by = None
        if "packet" in seen:
            packet = seen["packet"]
            fate = None
            if packet.way is not None:
                pair = self.pairs[packet.way >> 1]
                before = pair.state
                fate = pair.packet(packet.way & 1, packet.segment, early)
                by = packet.way >> 1 if before != pair.state == "ENDING" else None
                self.wanted["splice_drop_syn"] += fate.dropped
                self.wanted["splice_diverted"] += fate.verdict == Verdict.DIVERTED
                self.wanted["splice_stale"] += fate.verdict == Verdict.GUARD and not fate.forward
                if fate.forward:
                    self.wanted["splice_packets"] += 1
                    self.wanted["splice_octets"] += packet.segment.payload
                    self.wanted["splice_copied"] += fate.keep
                    self._records.append(self._record(packet, pair, fate))
            self._expected.append((began, packet, fate))
        elif "install" in seen:
            pass  # See `_install`.
        elif "activate" in seen:
            self.pairs[seen["activate"]].activate(early)
            # Both of its entries stand.
            assert {2 * seen["activate"], 2 * seen["activate"] + 1} <= set(self.table.values())
        elif "abort" in seen:
            index, generation = seen["abort"]
            self._updates.append(self.pairs[index].abort(generation))
            by = index if self._updates[-1] else None
        elif "copy" in seen:
            index, generation = seen["copy"]
            self._updates.append(self.pairs[index].copy(generation))
        elif ended & 1:
            # Nobody else: the walk over the deadlines.
            by = ended >> 1
            pair = self.pairs[by]
            assert pair.due(now) is not None, (by, pair, now)
            pair.sweep(now)
            self.told_in_time.append((now - pair.deadline) & 0xFFFF)
        assert (ended & 1) == (by is not None), (seen, ended, by)
        if by is not None:
            assert ended >> 1 == by
            pair = self.pairs[by]
            self._to_tell[self.names[by]] = pair.events(self.names[by])
            name = {"OK": "closed"}.get(pair.status.name, pair.status.name.lower())
            self.wanted[f"splice_{name}"] += 1

    def _record(self, packet: Packet, pair: Pair, fate: Any) -> dict:
        info = ("dispatch", "info")
        way = translation(pair.messages, packet.way & 1)
        return {
            "in_port": pick(_INPUT, packet.raw, *info, "port"),
            "in_vlan": pick(_INPUT, packet.raw, *info, "vlan"),
            "ipv6": pick(_INPUT, packet.raw, *info, "ipv6"),
            "option_words": packet.words,
            "seq_offset": fate.seq_offset,
            "ack_offset": fate.ack_offset,
            "translation": way | {"sack": way["sack"] & ~fate.hide_sack},
        }

    def _outside(self, taken: dict[str, int | None]) -> None:
        """What came out, and what the surroundings answer."""
        if (value := taken["o"]) is not None:
            self._output(value)
        if (value := taken["records"]) is not None:
            wanted = self._records.popleft()
            got = {n: pick(_RECORD, value, n) for n in wanted if n != "translation"}
            got["translation"] = {n: pick(_RECORD, value, "translation", n) for n in wanted["translation"]}
            assert got == wanted
        if (value := taken["table_requests"]) is not None:
            request = data.Const(TableRequest, value)
            assert request.frames == 7
            for k in range(8):
                entry = self.memory[request.table] >> 128 * k & (1 << 128) - 1
                error = request.table in self.refused and k >= 4
                self.sources["entries"].waiting.append(entry | (k == 7) << 128 | error << 129)
        if (value := taken["insert"]) is not None:
            entry = data.Const(self.dut.insert.p.shape(), value)
            assert entry.kind == Kind.SPLICE
            status = Status.OK
            if entry.digest in self.table:
                status = Status.DUPLICATE
            elif self.inserts_until_full == 0:
                status = Status.TABLE_FULL
            elif self.inserts_until_full is not None:
                self.inserts_until_full -= 1
            if status == Status.OK:
                assert self.pairs[entry.index >> 1].state == "PENDING"
                sides = self.pairs[entry.index >> 1].messages
                assert entry.digest == digest_of(sides[entry.index & 1])
                self.table[entry.digest] = entry.index
            self.sources["inserted"].waiting.append(int(status))
        if (value := taken["delete"]) is not None:
            entry = data.Const(self.dut.delete.p.shape(), value)
            assert entry.kind == Kind.SPLICE
            (digest,) = (d for d, index in self.table.items() if index == entry.index)
            assert [int(row) for row in entry.rows] == [
                digest & ROW_MASK,
                digest >> CONFIG.table.row_bits & ROW_MASK,
            ]
            del self.table[digest]
            self.sources["deleted"].waiting.append(entry.index)
        if (value := taken["updated"]) is not None:
            self.updated.append(value)
        if (value := taken["events0"]) is not None:
            self._command_done(value)
        if (value := taken["events1"]) is not None:
            self._splice_event(value)

    def _output(self, value: int) -> None:
        began, packet, fate = self._expected.popleft()
        wanted = packet.dispatch
        if fate is not None:
            wanted = put(_DISPATCH, wanted, int(fate.keep), "keep")
            if fate.queue is not None:
                wanted = put(_DISPATCH, wanted, fate.queue, "queue")
        got = pick(_OUTPUT, value, "dispatch")
        if fate is not None and not fate.keep:
            # Nobody looks at its queue.
            got, wanted = (put(_DISPATCH, one, 0, "queue") for one in (got, wanted))
        assert got == wanted, (packet.segment, fate)
        assert pick(_OUTPUT, value, "forward") == (fate is not None and fate.forward)
        if fate is None or fate.keep:
            assert pick(_OUTPUT, value, "verdict") == int((fate and fate.verdict) or 0)
        self.outputs.append((self.cycles - began, packet, fate))

    def _command_done(self, value: int) -> None:
        request = data.Const(EventRequest, value)
        event = request.event
        command = self.commands[self._order.popleft()]
        assert event.tag == command["tag"]
        assert event.type == EventType.COMMAND_DONE
        assert request.queue == event.queue == command["queue"] and event.index == event.tag & 0xFFFF
        if command["want"] is not None:
            assert event.status == command["want"], (Status(event.status), command)
        if event.status == Status.OK:
            assert event.value == command["name"]
            self.wanted["splice_opened"] += 1
        else:
            assert event.value == 0
            if "index" in command:
                del self.names[command["index"]]
        self.wanted["commands" if event.status == Status.OK else "command_errors"] += 1
        self.done.append((event.tag, event.status, event.value))

    def _splice_event(self, value: int) -> None:
        request = data.Const(EventRequest, value)
        event = SPLICE_EVENT.from_int(request.event.as_value().value)
        assert request.queue == event["queue"]
        name = event["splice"]
        assert any(n == name for _, _, n in self.done), "an end before its beginning"
        index = name & 0xFFFFFF
        assert not {2 * index, 2 * index + 1} & set(self.table.values()), "still in the table"
        assert event == self._to_tell[name].pop(0)
        if not self._to_tell[name]:
            del self._to_tell[name]
            assert self.names.pop(index) == name
        self.told.append(event)

    # Whole runs

    def run(
        self, monkeypatch: Any, scenario: Callable, cycles: int = 50_000, unit_steps: int = UNIT_STEPS
    ) -> None:
        engines, self.unit_steps = self.engines, unit_steps
        monkeypatch.setattr("hw.tcp.splice_engine.SPLICE_UNIT_STEPS", unit_steps)
        monkeypatch.setattr("hw.tcp.splice_indices.LOOKUP_CYCLES", LOOKUP_CYCLES)

        class Watched(SpliceEngine):
            def __init__(self, config):
                super().__init__(config)
                engines.append(self)

        monkeypatch.setattr("hw.tcp.splices.SpliceEngine", Watched)

        async def bench(ctx):
            ctx.set(self.dut.key, int.from_bytes(SECRET, "little"))
            ctx.set(self.dut.ready, 1)
            ctx.set(self.dut.port.linger, self.linger)
            await scenario(ctx, self)
            await self.settle(ctx)
            assert not self._expected and not self._records and not self._to_tell and not self.packets
            assert self.counted == +self.wanted

        run(self.dut, bench, cycles=cycles)

    async def settle(self, ctx: Any, most: int = 3000) -> None:
        """Until nothing is in work any more."""
        for _ in range(12):
            await self.cycle(ctx)
        while self.busy or self.packets:
            await self.cycle(ctx)
            most -= 1
            assert most, "still busy"
        for _ in range(12):
            await self.cycle(ctx)

    async def open(self, ctx: Any, client: dict, server: dict, **how: Any) -> int:
        """A splice that the NIC must take; its name."""
        self.command(client, server, want=Status.OK, **how)
        before = len(self.done)
        while len(self.done) == before:
            await self.cycle(ctx)
        return self.done[-1][2]

    async def units(self, ctx: Any, count: int) -> None:
        """So many units of time pass, packets or not."""
        self.tick = 1
        until = (self.now + count) & 0xFFFF
        while self.now != until:
            await self.cycle(ctx)
        self.tick = 0
