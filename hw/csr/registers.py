"""The register file behind BAR0: `acceltcp.abi.registers` as gateware.

An access goes through five steps, one cycle each: accept, fetch (memories are read), select
(the register's value is chosen), merge (strobed bytes replace the value's), write. A read answers after the
third, a write after the last. So a partial write of a read-write register keeps the other
bytes; a write-only register ignores writes that do not cover all of its fields; read-only
registers and addresses with no register ignore writes and read as zero.

Latency: 4 cycles a read, 5 a write, from request to answer; one access at a time. No access ever waits
for the engines. An access waits 11 cycles behind the enabling of a queue, and 32 cycles per
queue behind the clearing that ends a soft reset. All outputs come from registers.

Soft reset: every register but `IDENT.scratch` returns to its reset value, and writes made
while `status.resetting` is 1 are lost (those to scratch are not). Meanwhile `control.enable`
reads to the engines as 0. Hard reset: the same at once, scratch included.

Secrets go out on `secret` and nowhere else: they cannot be read back.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.registers import (
    ABI_MAJOR,
    ABI_MINOR,
    BLOCKS,
    CONTROL,
    COUNTER_BASE,
    COUNTERS,
    FLOWS,
    IDENT,
    MAGIC,
    PORT,
    QUEUE,
    RSS,
    SPLICE,
    TIME,
    Access,
    Feature,
    map_hash,
)

from ..counts import counts_layout
from .axil import AxiLiteSignature, AxiLiteSlave, RegisterRequest
from .bus import QueueBus
from .counters import CounterPort
from .flows import TIMES, FlowsPort
from .queues import QueueRegisters
from .quiesce import Quiesce
from .rss import RssPort
from .splice import SplicePort
from .time import SecretPort, TimePort

__all__ = ["RegisterFile", "features"]

_SCALAR_BITS = 10  # blocks other than QUEUE and the counters lie below this power of two


def features(config):
    """Offloads in this gateware, for a `NicConfig`."""
    optional = (Feature.RSS if config.rss else Feature(0)) | (Feature.SPLICE if config.splices else Feature(0))
    return Feature.SETUP | Feature.TEARDOWN | optional


class RegisterFile(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    config : NicConfig
        Sizes, shown in IDENT.
    timeout : int
        Cycles that a soft reset waits for the engines to become idle.

    Members
    -------
    axil : In(AxiLiteSignature())
        The bus.
    control : Out({enable: 1})
        `CONTROL.control`; 0 during a soft reset.
    default_queue : Out(8)
        `CONTROL.default_queue`.
    mac, promiscuous, keep_bad : Out(48), Out(1), Out(1), arrays of ports
        `PORT`; the first byte of the MAC address is the most significant.
    secret : Out(SecretPort()); time : Out(TimePort()); counters : Out(CounterPort())
        Connect to `Secret`, `Clock`, `Counters`. Reset all three with `core_reset`.
    flows : Out(FlowsPort(config))
        Connection table and teardown engine; the secret is kept here.
    rss : Out(RssPort())
        Receive side scaling; the key is kept here.
    splice : Out(SplicePort(config))
        Splice engine.
    queues : Out(QueueBus())
        Broadcast to the engines.
    hold : Out(1)
        Engines must start nothing new.
    idle : In(1)
        No engine has anything in flight; need not be exact in the first cycles of `hold`.
    stop : Out(1)
        A soft reset is under way and the engines are idle: begin no frame on a wire. (Not
        before, because the engines become idle by handing over the frames that they have read.)
    drained : In(1)
        No frame is half sent; a soft reset waits for it.
    core_reset : Out(1)
        Soft reset of everything but this component.
    busy : In(1)
        Shown in `CONTROL.status`.
    working : Out(1)
        This component or `Counters` has something under way (clocks must not stop).
    counts : Out
        `queue_errors`.
    """

    def __init__(self, config, *, timeout=1 << 20):
        self._config = config
        self._timeout = timeout
        ports = config.ports
        super().__init__(
            {
                "axil": In(AxiLiteSignature()),
                "control": Out(data.StructLayout({"enable": 1})),
                "default_queue": Out(8),
                "mac": Out(48).array(ports),
                "promiscuous": Out(1).array(ports),
                "keep_bad": Out(1).array(ports),
                "secret": Out(SecretPort()),
                "time": Out(TimePort()),
                "counters": Out(CounterPort()),
                "flows": Out(FlowsPort(config)),
                "rss": Out(RssPort()),
                "splice": Out(SplicePort(config)),
                "queues": Out(QueueBus()),
                "hold": Out(1),
                "idle": In(1),
                "stop": Out(1),
                "drained": In(1, init=1),
                "core_reset": Out(1),
                "busy": In(1),
                "working": Out(1),
                "counts": Out(counts_layout("queue_errors")),
            }
        )

    @property
    def timeout(self):
        """Cycles that a soft reset waits for the engines to become idle."""
        return self._timeout

    def _registers(self):
        """(block, index, register) of every register of this build outside QUEUE."""
        for block in BLOCKS:
            if block is not QUEUE:
                for index in range(self._config.ports if block is PORT else block.count):
                    for register in block.registers:
                        yield block, index, register

    def _read_only(self, resetting, ticks_high):
        """(block, register name) -> value, for all that is not a register kept here."""
        config = self._config
        shape = IDENT["shape"].encode(
            width=config.width, ports=config.ports, queues=config.queues, tick_us=config.tick_us // 10
        )
        status = {
            "busy": self.busy,
            "resetting": resetting,
            "secret_valid": self.secret.valid,
            "snapshot_busy": self.counters.busy,
        }
        flows = self.flows
        record = Value.cast(flows.found.record)
        return {
            ("IDENT", "magic"): C(MAGIC, 32),
            ("IDENT", "abi"): C(IDENT["abi"].encode(minor=ABI_MINOR, major=ABI_MAJOR), 32),
            ("IDENT", "map_hash"): C(map_hash(), 32),
            ("IDENT", "features"): C(int(features(config)), 32),
            ("IDENT", "shape"): C(shape, 32),
            ("IDENT", "tables"): C(IDENT["tables"].encode(listeners=config.listeners, flows_log2=config.flow_bits, splices_log2=config.splice_bits), 32),
            ("IDENT", "max_frame"): C(config.max_frame, 32),
            ("CONTROL", "status"): Cat(status[field.name] for field in CONTROL["status"].fields),
            ("TIME", "ticks_low"): self.time.ticks[:32],
            ("TIME", "ticks_high"): ticks_high,
            ("TIME", "ts_clock"): self.time.ts_clock,
            ("TIME", "epoch"): self.time.epoch,
            ("SPLICE", "held"): self.splice.held,
            ("FLOWS", "status"): Cat(flows.key_valid, flows.ready),
            ("FLOWS", "held"): flows.held,
            ("FLOWS", "found"): self._fields(
                FLOWS["found"], index=flows.found.index, found=flows.found.found, busy=flows.found.busy
            ),
            **{("FLOWS", f"record{i}"): record[32 * i : 32 * i + 32] for i in range(len(record) // 32)},
        }

    @staticmethod
    def _fields(register, **values):
        """A register's value from its fields; those not named are zero."""
        parts = []
        for field in register.fields:
            value = Value.cast(values.get(field.name, C(0, 1)))
            parts.append(Cat(value, C(0, field.bits - len(value))))
        return Cat(*parts)

    def elaborate(self, platform):
        m = Module()
        m.submodules.slave = slave = AxiLiteSlave()
        m.submodules.queues = queues = QueueRegisters(self._config)
        m.submodules.quiesce = quiesce = Quiesce(self._timeout)
        connect(m, flipped(self.axil), slave.axil)
        connect(m, flipped(self.queues), queues.bus)

        resetting = Signal()
        ticks_high = Signal(32)
        m.d.comb += [
            self.hold.eq(quiesce.hold),
            self.core_reset.eq(quiesce.core_reset),
            resetting.eq(quiesce.resetting),
            quiesce.idle.eq(self.idle),
            quiesce.drained.eq(self.drained),
            self.counts.eq(queues.counts),
        ]
        for line in ("disable_pending", "disable_done", "cleared"):
            m.d.comb += getattr(quiesce, line).eq(getattr(queues, line))
        for line in ("disable_now", "clear"):
            m.d.comb += getattr(queues, line).eq(getattr(quiesce, line))

        # The steps of an access.
        request = Signal(RegisterRequest)
        value = Signal(32)
        merged = Signal(32)
        in_queues = Signal()
        in_counters = Signal()
        in_scalars = Signal()
        writing = Signal()
        answer = Signal()
        m.d.comb += [
            in_queues.eq(request.word[11:] == QUEUE.base >> 13),
            in_counters.eq(
                (request.word[10:] == COUNTER_BASE >> 12) & (request.word[:10] < 2 * len(COUNTERS))
            ),
            in_scalars.eq(request.word[_SCALAR_BITS - 2 :] == 0),
            Cat(queues.word, queues.queue).eq(request.word),
            queues.data.eq(merged),
            queues.strobe.eq(request.strobe),
            self.counters.address.eq(request.word),
            slave.response.valid.eq(answer),
            slave.response.payload.eq(value),
        ]
        m.d.sync += [writing.eq(0), answer.eq(0)]
        selected = Signal(32)
        with m.FSM() as fsm:
            m.d.comb += self.working.eq(
                ~fsm.ongoing("Accept")
                | slave.request.valid
                | answer
                | writing
                | quiesce.active
                | queues.busy
                | self.counters.snapshot
                | self.counters.busy
            )
            with m.State("Accept"):
                m.d.comb += slave.request.ready.eq(~queues.busy & ~writing)
                with m.If(slave.request.valid & slave.request.ready):
                    # Held until the next access: the check behind an enable still uses it.
                    m.d.sync += request.eq(slave.request.payload)
                    m.next = "Fetch"
            with m.State("Fetch"):
                m.next = "Select"
            with m.State("Select"):
                m.d.sync += [value.eq(selected), answer.eq(~request.write)]
                m.next = "Accept"
                with m.If(request.write):
                    m.next = "Merge"
            with m.State("Merge"):
                for byte in range(4):
                    old, new = (word.word_select(byte, 8) for word in (value, request.data))
                    m.d.sync += merged.word_select(byte, 8).eq(Mux(request.strobe[byte], new, old))
                m.d.sync += [writing.eq(1), answer.eq(1)]
                m.next = "Accept"
        m.d.comb += queues.write.eq(writing & in_queues)

        # Where values come from, and what a write does.
        kept = self._kept()
        scalar = Signal(32)
        with m.If(in_queues):
            m.d.comb += selected.eq(queues.value)
        with m.Elif(in_counters):
            m.d.comb += selected.eq(self.counters.data)
        with m.Elif(in_scalars):
            m.d.comb += selected.eq(scalar)
        sources = self._read_only(resetting, ticks_high)
        strobes = self._decode(m, request, writing & in_scalars, merged, scalar, kept, sources)
        self._connect_strobes(m, strobes, merged)

        reading_ticks = (request.word == TIME.address("ticks_low") // 4) & ~request.write
        with m.If(fsm.ongoing("Fetch") & reading_ticks):
            m.d.sync += ticks_high.eq(self.time.ticks[32:])
        m.d.sync += [
            quiesce.reset.eq(strobes["CONTROL", 0, "reset"] & merged[0]),
            self.stop.eq(resetting & self.idle),
        ]

        with m.If(quiesce.core_reset | quiesce.clear):
            for (_, _, name), register in kept.items():
                if name != "scratch":
                    m.d.sync += register.eq(register.init)
            m.d.sync += [
                self.secret.key.eq(0),
                self.secret.commit.eq(0),
                self.flows.key.eq(0),
                self.flows.key_valid.eq(0),
                self.flows.find.eq(0),
                self.rss.key.eq(0),
                self.rss.write.eq(0),
                ticks_high.eq(0),
            ]
        self._connect_kept(m, kept, resetting)
        return m

    def _kept(self):
        """A register for each read-write one outside QUEUE; the epoch lives in `Clock`."""
        return {
            (block.name, index, register.name): Signal(
                sum(field.bits for field in register.fields),
                init=register.reset,
                name=f"{block.name}_{index}_{register.name}".lower(),
            )
            for block, index, register in self._registers()
            if register.access is Access.RW and (block, register.name) != (TIME, "epoch")
        }

    def _decode(self, m, request, writing, merged, scalar, kept, sources):
        """Everything outside QUEUE and the counters: reads to `scalar` (one cycle after the
        address), writes to `kept`. Returns a strobe for each register that is more than kept."""
        strobes = {}
        m.d.sync += scalar.eq(0)
        with m.Switch(request.word[: _SCALAR_BITS - 2]):
            for block, index, register in self._registers():
                key = block.name, index, register.name
                access = register.access
                with m.Case(block.address(register.name, index) // 4):
                    if access is not Access.WO:
                        m.d.sync += scalar.eq(
                            kept[key] if key in kept else sources[block.name, register.name]
                        )
                    if key in kept:
                        with m.If(writing):
                            m.d.sync += kept[key].eq(merged)
                    elif access is not Access.RO:
                        # What is not covered by the strobes is old for a read-write register and
                        # unknown for a write-only one.
                        bits = sum(field.bits for field in register.fields)
                        needed = (1 << (bits + 7) // 8) - 1 if access is Access.WO else 0
                        strobes[key] = strobe = Signal(name=f"write_{register.name}")
                        m.d.comb += strobe.eq(writing & ((request.strobe & needed) == needed))
        return strobes

    def _connect_strobes(self, m, strobes, merged):
        """Write-only registers, and the epoch."""
        m.d.sync += [
            self.secret.commit.eq(strobes["SECRET", 0, "commit"]),
            self.secret.now.eq(merged[0]),
            self.time.epoch_write.eq(strobes["TIME", 0, "epoch"]),
            self.time.epoch_value.eq(merged),
            self.counters.snapshot.eq(strobes["CONTROL", 0, "snapshot"] & merged[0]),
        ]
        for word in range(len(self.secret.key) // 32):
            with m.If(strobes["SECRET", 0, f"word{word}"]):
                m.d.sync += self.secret.key.word_select(word, 32).eq(merged)
        # The connection table's entries are where their hash has put them: its secret stays.
        flows = self.flows
        for word in range(len(flows.key) // 32):
            with m.If(strobes["FLOWS", 0, f"word{word}"] & ~flows.key_valid):
                m.d.sync += flows.key.word_select(word, 32).eq(merged)
        with m.If(strobes["FLOWS", 0, "commit"] & merged[0]):
            m.d.sync += flows.key_valid.eq(1)
        m.d.sync += flows.find.start.eq(strobes["FLOWS", 0, "find"])
        with m.If(strobes["FLOWS", 0, "find"]):
            m.d.sync += flows.find.index.eq(merged)
        rss, entry = self.rss, RSS["entry"].positions
        for word in range(len(rss.key) // 32):
            with m.If(strobes["RSS", 0, f"key{word}"]):
                m.d.sync += rss.key.word_select(word, 32).eq(merged)
        m.d.sync += [
            rss.write.eq(strobes["RSS", 0, "entry"]),
            *(
                getattr(rss, name).eq(merged[at : at + bits])
                for name, (at, bits) in entry.items()
                if not name.startswith("_")
            ),
        ]

    def _connect_kept(self, m, kept, resetting):
        """Registers to typed outputs, field by field."""

        def field(block, name, part, index=0):
            at, bits = block[name].positions[part]
            return kept[block.name, index, name][at : at + bits]

        m.d.sync += self.control.enable.eq(field(CONTROL, "control", "enable") & ~resetting)
        m.d.comb += [
            self.default_queue.eq(field(CONTROL, "default_queue", "queue")),
            self.time.ts_ticks.eq(field(TIME, "ts_ticks", "ticks")),
            self.time.epoch_ticks.eq(field(TIME, "epoch_ticks", "value")),
            self.flows.window.eq(field(FLOWS, "window", "window")),
            self.rss.types.eq(field(RSS, "control", "types")),
            self.splice.linger.eq(field(SPLICE, "linger", "units")),
            *(getattr(self.flows, name).eq(field(FLOWS, name, "steps")) for name in TIMES),
        ]
        for port in range(self._config.ports):
            m.d.comb += [
                self.mac[port].eq(
                    Cat(field(PORT, "mac_low", "value", port), field(PORT, "mac_high", "high", port))
                ),
                self.promiscuous[port].eq(field(PORT, "config", "promiscuous", port)),
                self.keep_bad[port].eq(field(PORT, "config", "keep_bad", port)),
            ]
