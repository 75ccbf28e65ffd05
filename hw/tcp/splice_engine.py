"""`SpliceEngine`: every received packet passes it; it decides of those that are spliced, and keeps what it learns of them.

    packets ----------------+                        +--> FIFO --> o
    install, update, read --+--> StateMemory + rules +--> FIFO --> records (of packets that are forwarded)
    deadlines --------------+    memory of ways      +--> ended

One operation begins per cycle; packets have the right of way, but others get at least one cycle in nine (`SHARE`). Packets of one
pair may follow each other in every cycle (`StateMemory`). Of the deadlines one is looked at per cycle; the walk over all pairs begins
with every unit of time.

* Latency: `latency` cycles (7) from `i` to `o`, spliced or not. Throughput: one packet per cycle, 8 in 9 cycles during a walk.
* Registered: `o`, `records`, `ended` and all results; `i.ready` is a few gates behind registers.
* Overflow: cannot happen; a packet is taken when both FIFOs have room for what it may bring. `ended` is never stalled.
* Reset: forgets what is inside. The memories are not cleared: what was not installed since is not in the connection table.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.messages import SPLICE_UNIT_STEPS, Status, Verdict
from acceltcp.abi.registers import TIMER_TICKS
from acceltcp.abi.wire import TCP, TCPFlag

from ..config import ram_style
from ..counts import counts_layout
from ..csr.splice import LINGER_BITS
from ..stream.fifo import StreamFifo
from ..table.deep_memory import DeepMemory
from ..table.state import StateMemory
from .records import DispatchRecord
from .splice_records import (
    GENERATION_BITS,
    SPLICE_TIME_BITS,
    SpliceInput,
    SpliceOutput,
    SplicePair,
    SpliceRecord,
    SpliceWay,
)
from .splice_rules import OpKind, SpliceAct, SpliceOp, SpliceRules

__all__ = ["RECORDS", "SHARE", "SpliceEngine", "SpliceInstallation"]

RECORDS = 128
"""Packets that may wait for the rewriter before the engine stops."""

OUTPUTS = 16
"""Packets inside: more than `latency` and the way back of the credit, so that there is one packet per cycle."""

SHARE = 8
"""Packets in a row while something else waits."""

ULTRA_WAYS, BLOCK_WAYS = 16384, 256
"""Ways from which Ultra RAM and block RAM are worth it."""

_ENDED = {
    Status.OK: "splice_closed",
    Status.RESET: "splice_reset",
    Status.IDLE: "splice_idle",
    Status.LIMIT: "splice_limit",
    Status.ABORTED: "splice_aborted",
}

_COUNTS = (
    "splice_packets",
    "splice_octets",
    "splice_copied",
    "splice_diverted",
    "splice_stale",
    "splice_drop_syn",
    *_ENDED.values(),
)


def SpliceInstallation(config):  # noqa: N802
    """Write the state of a pair, or (`activate`) make it ACTIVE. `pair` must stay for `SpliceEngine.latency` cycles
    after the transfer."""
    return data.StructLayout({"activate": 1, "index": config.splice_bits, "pair": SplicePair})


class SpliceEngine(wiring.Component):
    """See the module's text.

    Members
    -------
    i, o, records: see the module's text.
    way_write, way_index, way: writes SpliceWay(config) of way 2 * pair + side.
    installs: In(stream of SpliceInstallation(config)).
    updates: In(stream of {"index", "generation", "copy"}): ends a pair, or (`copy`) makes the engine copy its packets anew. updated: its
        result, in order; `found`: there was one.
    reads: In(stream of {"way"}). read: the pair's state and the rows of the way's entry.
    ended: a pair has just begun to end; nothing of it changes any more.
    used_end: pairs from here on are not in use. any_held: some are.
    tick: of time. linger: in units of SPLICE_UNIT_STEPS.
    busy: something is inside, or a walk is under way.
    counts: strobes.
    """

    latency = 7

    def __init__(self, config):
        self._config = config
        index = config.splice_bits
        rows = data.ArrayLayout(config.table.row_bits, 2)
        super().__init__(
            {
                "i": In(stream.Signature(SpliceInput(config))),
                "o": Out(stream.Signature(SpliceOutput)),
                "records": Out(stream.Signature(SpliceRecord)),
                "way_write": In(1),
                "way_index": In(index + 1),
                "way": In(SpliceWay(config)),
                "installs": In(stream.Signature(SpliceInstallation(config))),
                "updates": In(
                    stream.Signature(data.StructLayout({"index": index, "generation": GENERATION_BITS, "copy": 1}))
                ),
                "updated": Out(data.StructLayout({"valid": 1, "found": 1})),
                "reads": In(stream.Signature(data.StructLayout({"way": index + 1}))),
                "read": Out(data.StructLayout({"valid": 1, "rows": rows, "pair": SplicePair})),
                "ended": Out(data.StructLayout({"valid": 1, "index": index})),
                "used_end": In(range(config.splices + 1)),
                "any_held": In(1),
                "tick": In(1),
                "linger": In(LINGER_BITS),
                "busy": Out(1),
                "counts": Out(counts_layout(*_COUNTS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        # The Ultra RAM of a board that has it is for the ways.
        m.submodules.memory = memory = StateMemory(SplicePair, config.splices, SpliceOp, ultra_ram=False)
        m.submodules.rules = rules = SpliceRules()
        m.submodules.outputs = outputs = StreamFifo(SpliceOutput, OUTPUTS)
        m.submodules.waiting = waiting = StreamFifo(SpliceRecord, RECORDS, kind="block")
        connect(m, outputs.o, flipped(self.o))
        connect(m, waiting.o, flipped(self.records))

        op, way = Signal(SpliceOp), Signal(config.splice_bits + 1)
        begun, taken = Signal(), Signal()
        now = Signal(SPLICE_TIME_BITS)
        sweeping = self._choose(m, op, way, begun, taken, self._time(m, now))

        # The operation meets its pair; the ways, which no packet changes, come beside it.
        way_of, dispatch = self._beside(m, memory.latency, way)
        m.d.comb += [
            memory.i_valid.eq(begun),
            memory.i_index.eq(way[1:]),
            memory.i_side.eq(op),
            rules.early_op.eq(memory.early_side),
            rules.early_state.eq(memory.early_state),
            rules.op.eq(memory.o_side),
            rules.state.eq(memory.o_state),
            rules.install.eq(self.installs.p.pair),
            rules.now.eq(now),
            rules.linger.eq(self.linger),
            memory.next.eq(rules.next),
            memory.write.eq(rules.write),
        ]
        record_spent = self._results(m, memory, rules, way_of, dispatch, outputs, waiting)

        # Credits: room for what a packet may bring.
        rooms = Signal(range(OUTPUTS + 1), init=OUTPUTS)
        records = Signal(range(RECORDS + 1), init=RECORDS)
        hit = self.i.p.hit
        m.d.comb += taken.eq(self.i.valid & (rooms != 0) & ((records != 0) | ~hit))
        m.d.sync += [
            rooms.eq(rooms - (self.i.valid & self.i.ready) + (self.o.valid & self.o.ready)),
            records.eq(
                records - (self.i.valid & self.i.ready & hit) + record_spent + (self.records.valid & self.records.ready)
            ),
        ]
        inside = Signal(memory.latency + 1)
        m.d.sync += inside.eq(Cat(begun, inside))
        m.d.comb += self.busy.eq(
            sweeping | self.i.valid | (rooms != OUTPUTS) | (records != RECORDS) | (inside != 0) | self.installs.valid
            | self.updates.valid | self.reads.valid
        )  # fmt: skip
        return m

    def _time(self, m, now):
        """`now` counts units; returns a strobe for each."""
        ticks, steps = Signal(range(TIMER_TICKS)), Signal(range(SPLICE_UNIT_STEPS))
        step, unit = Signal(), Signal()
        m.d.comb += [
            step.eq(self.tick & (ticks == TIMER_TICKS - 1)),
            unit.eq(step & (steps == SPLICE_UNIT_STEPS - 1)),
        ]
        with m.If(self.tick):
            m.d.sync += ticks.eq(Mux(step, 0, ticks + 1))
        with m.If(step):
            m.d.sync += steps.eq(Mux(unit, 0, steps + 1))
        m.d.sync += now.eq(now + unit)
        return unit

    def _choose(self, m, op, way, begun, taken, unit):
        """Which operation begins in this cycle; returns whether the walk over the deadlines is under way."""
        config = self._config
        sweeping, again = Signal(), Signal()
        at = Signal(range(config.splices))
        swept = Signal()
        with m.If(unit & self.any_held):
            m.d.sync += again.eq(1)
        with m.If(swept):
            m.d.sync += [at.eq(at + 1), sweeping.eq(at + 1 != self.used_end)]
        with m.Elif(again & ~sweeping):
            m.d.sync += [sweeping.eq(1), at.eq(0), again.eq(unit & self.any_held)]

        packet = self.i.p.packet
        flag = {one: packet.flags[int(one).bit_length() - 1] for one in TCPFlag}
        m.d.comb += [
            op.side.eq(way[0]),
            op.seq.eq(packet.seq),
            op.data_end.eq(packet.seq + packet.payload_length),
            op.ack.eq(packet.ack),
            op.tsval.eq(packet.tsval),
            op.timestamps.eq(packet.timestamps),
            op.has_ack.eq(flag[TCPFlag.ACK]),
            op.syn.eq(flag[TCPFlag.SYN]),
            op.fin.eq(flag[TCPFlag.FIN]),
            op.rst.eq(flag[TCPFlag.RST]),
            op.payload_length.eq(packet.payload_length),
            op.generation.eq(self.updates.p.generation),
        ]
        waited = Signal(range(SHARE + 1))
        others, urgent, packets_turn = Signal(), Signal(), Signal()
        m.d.comb += [
            others.eq(self.installs.valid | self.updates.valid | self.reads.valid | sweeping),
            urgent.eq(waited == SHARE),
            # Who has waited still does: nobody withdraws.
            packets_turn.eq(taken & ~urgent),
            self.i.ready.eq(packets_turn),
            begun.eq(1),
        ]
        with m.If(~others | ~packets_turn):
            m.d.sync += waited.eq(0)
        with m.Elif(~urgent):
            m.d.sync += waited.eq(waited + 1)

        with m.If(packets_turn):
            m.d.comb += [op.kind.eq(Mux(self.i.p.hit, OpKind.PACKET, OpKind.PASS)), way.eq(packet.way)]
        with m.Elif(self.installs.valid):
            m.d.comb += [
                op.kind.eq(Mux(self.installs.p.activate, OpKind.ACTIVATE, OpKind.INSTALL)),
                way[1:].eq(self.installs.p.index),
                self.installs.ready.eq(1),
            ]
        with m.Elif(self.updates.valid):
            m.d.comb += [
                op.kind.eq(Mux(self.updates.p.copy, OpKind.COPY, OpKind.ABORT)),
                way[1:].eq(self.updates.p.index),
                self.updates.ready.eq(1),
            ]
        with m.Elif(self.reads.valid):
            m.d.comb += [op.kind.eq(OpKind.READ), way.eq(self.reads.p.way), self.reads.ready.eq(1)]
        with m.Elif(sweeping):
            m.d.comb += [op.kind.eq(OpKind.SWEEP), way[1:].eq(at), swept.eq(1)]
        with m.Else():
            m.d.comb += [op.kind.eq(OpKind.PASS), begun.eq(0)]
        return sweeping | again

    def _beside(self, m, latency, way):
        """The memory of ways and the dispatch records, as late as the operation."""
        config = self._config
        depth = 2 * config.splices
        style = ram_style(depth, ultra=ULTRA_WAYS, block=BLOCK_WAYS, ultra_ram=config.ultra_ram)
        m.submodules.ways = ways = DeepMemory(SpliceWay(config), depth, style)
        m.d.comb += [
            ways.write.eq(self.way_write),
            ways.write_index.eq(self.way_index),
            ways.write_data.eq(self.way),
            ways.read_index.eq(way),
        ]
        # (The memory takes these registers into itself.)
        late = [Signal(SpliceWay(config), name=f"way{k}", reset_less=True) for k in range(ways.latency, latency)]
        m.d.sync += [later.eq(earlier) for later, earlier in zip(late, (ways.data, *late), strict=False)]
        passing = data.StructLayout({"packet": 1, "record": DispatchRecord})
        stages = [Signal(passing, name=f"passing{k}", reset_less=True) for k in range(latency)]
        m.d.sync += [
            stages[0].packet.eq(self.i.valid & self.i.ready),
            stages[0].record.eq(self.i.p.dispatch),
            *(later.eq(earlier) for later, earlier in zip(stages[1:], stages, strict=False)),
        ]
        return late[-1], stages[-1]

    def _results(self, m, memory, rules, way, passing, outputs, waiting):
        """One cycle after the operation: everything is told. Returns whether a record was reserved in vain."""
        op, act = memory.o_side, rules.act
        info = passing.record.info
        offsets = [memory.o_state.sides[k].offset for k in range(2)]
        spliced = Signal()
        m.d.comb += spliced.eq(op.kind == OpKind.PACKET)

        valid, forwarded, spared = Signal(), Signal(), Signal()
        output, record = Signal(SpliceOutput, reset_less=True), Signal(SpliceRecord, reset_less=True)
        m.d.sync += [
            valid.eq(memory.o_valid & passing.packet),
            output.forward.eq(spliced & act.forward),
            output.verdict.eq(Mux(spliced, act.verdict, 0)),
            output.dispatch.eq(passing.record),
            forwarded.eq(memory.o_valid & spliced & act.forward),
            spared.eq(memory.o_valid & spliced & ~act.forward),
            record.in_port.eq(info.port),
            record.in_vlan.eq(info.vlan),
            record.ipv6.eq(info.ipv6),
            record.option_words.eq((info.payload_offset - info.l4_offset - TCP.size) >> 2),
            record.seq_offset.eq(Mux(op.side, offsets[1], offsets[0])),
            record.ack_offset.eq(-Mux(op.side, offsets[0], offsets[1])),
            record.translation.eq(way.translation),
            record.translation.sack.eq(way.translation.sack & ~act.hide_sack),
        ]
        with m.If(spliced):
            m.d.sync += output.dispatch.keep.eq(act.keep)
            with m.If(act.steer):
                m.d.sync += output.dispatch.queue.eq(memory.o_state.queue)
        m.d.comb += [
            outputs.i.valid.eq(valid),
            outputs.i.payload.eq(output),
            waiting.i.valid.eq(forwarded),
            waiting.i.payload.eq(record),
        ]

        told, kind = Signal(SpliceAct), Signal(OpKind)
        octets = Signal(len(op.payload_length), reset_less=True)
        done = Signal()
        m.d.sync += [
            done.eq(memory.o_valid),
            told.eq(act),
            kind.eq(op.kind),
            octets.eq(op.payload_length),
            self.ended.valid.eq(memory.o_valid & act.ended),
            self.ended.index.eq(memory.o_index),
            self.updated.valid.eq(memory.o_valid & ((op.kind == OpKind.ABORT) | (op.kind == OpKind.COPY))),
            self.updated.found.eq(act.found),
            self.read.valid.eq(memory.o_valid & (op.kind == OpKind.READ)),
            self.read.pair.eq(memory.o_state),
            self.read.rows.eq(way.rows),
        ]
        counts = self.counts
        copied = told.forward & told.keep
        m.d.comb += [
            counts.splice_packets.eq(forwarded),
            counts.splice_octets.eq(Mux(forwarded, octets, 0)),
            counts.splice_copied.eq(forwarded & copied),
            counts.splice_diverted.eq(spared & told.keep & (told.verdict == Verdict.DIVERTED)),
            counts.splice_stale.eq(spared & told.keep & (told.verdict == Verdict.GUARD)),
            counts.splice_drop_syn.eq(spared & told.dropped),
            *(counts[name].eq(done & told.ended & (told.status == status)) for status, name in _ENDED.items()),
        ]
        return spared
