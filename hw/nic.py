"""The NIC: wires the stages together and holds no logic.

    rx{p} -> RxFrontEnd -> Setup -> RxDma -> AXI4           (see docs/architecture.md)
                  |         | |
                  |         | +-> Flows -> ReplyBuilder -------+
                  |         +----------------^ |               |
                  +-> PacketFork -> SpliceRewriter ------------+
    AXI4 -> TxDma -> TxPatcher -> TxChecksum ------------------+-> PacketArbiter -> TxPad -> tx{p}
              ^ frames of closing connections: Flows

Everything around it speaks plain AXI: AXI4-Stream to the MACs, AXI4 to host memory,
AXI4-Lite for registers. One clock; time enters as pulses on `tick`.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from acceltcp.abi.registers import COUNTERS

from .config import NicConfig
from .csr.axil import AxiLiteSignature
from .csr.bus import QUEUE_BITS, QueueBus
from .csr.counters import Counters
from .csr.registers import RegisterFile
from .csr.time import Clock, Secret
from .dma.axi import AxiMasterSignature
from .dma.commands import Commands
from .dma.events import EventWriter
from .dma.interrupts import Interrupts
from .dma.mux import AxiMaster
from .dma.rx import RxDma
from .dma.tx import TxDma
from .packet.meta import Reply, RxMeta
from .packet.patch import TxPatcher
from .packet.rx_front_end import RxFrontEnd
from .packet.tx_checksum import TxChecksum
from .stream.axis import AxisSource
from .stream.fork import PacketFork
from .stream.merge import StreamMerge
from .stream.route import PacketRoute
from .stream.width import Downsizer
from .tcp.flows import Flows, event_sources
from .tcp.reply import ReplyBuilder
from .tcp.setup import Setup
from .tcp.splice import SpliceRewriter
from .tx_port import TxPort

__all__ = ["Nic"]

def _axis(width, direction, ready):
    back = In if direction is Out else Out
    members = {
        "tdata": direction(8 * width),
        "tkeep": direction(width),
        "tvalid": direction(1),
        "tlast": direction(1),
        "tuser": direction(1),
    }
    return members | {"tready": back(1)} if ready else members


def _prefixed(prefix, members):
    return {f"{prefix}_{name}": member for name, member in members.items()}


class Nic(wiring.Component):
    """The core for one `NicConfig`.

    Members
    -------
    tick : In(1)
        One cycle every `config.tick_us` microseconds.
    s_axis_rx{p}_tdata, tkeep, tvalid, tlast, tuser : In
        Frames from MAC p, without FCS; `tuser` on the last beat marks a bad one. No `tready`:
        the receive side is never stalled.
    m_axis_tx{p}_... : Out
        Frames to MAC p, without FCS, padded to 60 bytes.
    m_axi_... : Out
        AXI4 master, `config.axi_bytes` wide; see `AxiMasterSignature`.
    s_axil_... : In
        AXI4-Lite register file, 64 KiB; see `AxiLiteSignature`.
    irq_valid, irq_vector, irq_ready :
        Interrupt requests: a vector is taken where valid and ready meet.
    busy : Out(1)
        Something is in flight or due without further input except `tick`.
    """

    def __init__(self, config=None):
        self._config = config = config or NicConfig()
        members = {"tick": In(1)}
        for port in range(config.ports):
            members |= _prefixed(f"s_axis_rx{port}", _axis(config.width, In, ready=False))
            members |= _prefixed(f"m_axis_tx{port}", _axis(config.width, Out, ready=True))
        members |= _prefixed("m_axi", AxiMasterSignature(config.axi_bytes).members)
        members |= _prefixed("s_axil", AxiLiteSignature().flip().members)
        members |= {"irq_valid": Out(1), "irq_vector": Out(QUEUE_BITS), "irq_ready": In(1), "busy": Out(1)}
        super().__init__(members)

    @property
    def config(self):
        """The parameters."""
        return self._config

    def elaborate(self, platform):
        m = Module()
        config = self._config
        ports = range(config.ports)

        # The register file survives a soft reset; everything else is reset by it.
        m.submodules.registers = registers = RegisterFile(config)

        def part(name, component):
            m.submodules[name] = ResetInserter(registers.core_reset)(component)
            return component

        clock = part("clock", Clock())
        secret = part("secret", Secret())
        counters = part("counters", Counters(config))
        front_ends = [part(f"rx_front_end{p}", RxFrontEnd(config, p)) for p in ports]
        metas = part("rx_merge", StreamMerge(RxMeta, config.ports))
        setup = part("setup", Setup(config))
        flows = part("flows", Flows(config))
        replies = part("replies", StreamMerge(Reply, 2))
        builder = part("reply", ReplyBuilder(config))
        rx_dma = part("rx_dma", RxDma(config))
        tx_dma = part("tx_dma", TxDma(config))
        patcher = part("tx_patcher", TxPatcher(config.axi_bytes))
        downsizer = part("tx_width", Downsizer(config.axi_bytes, config.width))
        tx_checksum = part("tx_checksum", TxChecksum(config))
        commands = part("commands", Commands(config))
        events = part("events", EventWriter(config, inputs=3 + event_sources(config)))
        interrupts = part("interrupts", Interrupts(config))
        axi = part("axi", AxiMaster(4, 3, config.axi_bytes))
        outputs = [part(f"tx_port{p}", TxPort(config)) for p in ports]
        splicing = [part("splice", SpliceRewriter(config))] if config.splices else []

        # Wire to verdict.
        for p, front_end in enumerate(front_ends):
            source = part(f"rx_axis{p}", AxisSource(config.width, always_ready=True))
            self._connect_flat(m, f"s_axis_rx{p}", source)
            connect(m, source.o, front_end.i)
            connect(m, front_end.meta, metas.i[p])
            if splicing:
                fork = part(f"fork{p}", PacketFork(config.width))
                connect(m, rx_dma.take[p], fork.take)
                connect(m, fork.buffer_take, front_end.take)
                connect(m, front_end.packets, fork.packets)
                connect(m, fork.host, rx_dma.packets[p])
                connect(m, fork.forward, splicing[0].packets[p])
            else:
                take, order = rx_dma.take[p], front_end.take
                connect(m, front_end.packets, rx_dma.packets[p])
                m.d.comb += [order.p.keep.eq(take.p.host), order.valid.eq(take.valid), take.ready.eq(order.ready)]
            m.d.comb += [
                front_end.enable.eq(registers.control.enable),
                setup.mac[p].eq(registers.mac[p]),
                setup.promiscuous[p].eq(registers.promiscuous[p]),
                setup.keep_bad[p].eq(registers.keep_bad[p]),
            ]
        connect(m, metas.o, setup.meta)
        connect(m, setup.dispatch, rx_dma.dispatch)
        connect(m, setup.connection, flows.connection)
        connect(m, flows.lookup, setup.lookup)
        connect(m, setup.flow, flows.packets)

        # Verdict to wire, host to wire.
        connect(m, setup.syn_ack, replies.i[0])
        connect(m, flows.replies, replies.i[1])
        connect(m, replies.o, builder.i)
        connect(m, flows.frames, tx_dma.frames)
        connect(m, tx_dma.frames_done, flows.frames_done)
        connect(m, tx_dma.packets, patcher.packets)
        connect(m, tx_dma.meta, patcher.meta)
        connect(m, patcher.o_packets, downsizer.i)
        connect(m, downsizer.o, tx_checksum.packets)
        connect(m, patcher.o_meta, tx_checksum.meta)
        for index, source in enumerate((builder, tx_checksum, *splicing)):
            route = part(f"tx_route{index}", PacketRoute(config.width, config.ports))
            connect(m, source.o, route.i)
            m.d.comb += route.to.eq(source.port)
            for p, output in enumerate(outputs):
                connect(m, route.o[p], output.i[index])
        for p, output in enumerate(outputs):
            self._connect_flat(m, f"m_axis_tx{p}", output)

        # Host memory.
        for requester, read in enumerate(
            (rx_dma.free_read, tx_dma.descriptor_read, tx_dma.read, flows.read)
        ):
            connect(m, read, axi.reads[requester])
        for requester, write in enumerate((rx_dma.write, rx_dma.completion_write, events.write)):
            connect(m, write, axi.writes[requester])
        self._connect_flat(m, "m_axi", axi.axi)

        # Commands and events.
        connect(m, tx_dma.commands, commands.i)
        connect(m, commands.listen, setup.listen)
        connect(m, commands.close, flows.close)
        connect(m, commands.updates, flows.updates)
        connect(m, flows.updated, commands.updated)
        room = flows.close_room
        if splicing:
            (rewriter,) = splicing
            connect(m, setup.to_splices, flows.splice_packets)
            connect(m, flows.spliced, setup.from_splices)
            connect(m, flows.splice_records, rewriter.records)
            for name in ("splice", "splice_updates"):
                connect(m, getattr(commands, name), getattr(flows, name))
            connect(m, flows.splice_updated, commands.splice_updated)
            connect(m, registers.splice, flows.splice_port)
            m.d.comb += [rewriter.mac[p].eq(registers.mac[p]) for p in ports]
            room = Mux(flows.splice_room < room, flows.splice_room, room)
        for index, source in enumerate((rx_dma.events, tx_dma.events, commands.events, *flows.events)):
            connect(m, source, events.i[index])
        m.d.comb += [
            interrupts.completions.eq(rx_dma.posted),
            interrupts.events.eq(events.posted),
            interrupts.tick.eq(self.tick),
            self.irq_valid.eq(interrupts.irq.valid),
            self.irq_vector.eq(interrupts.irq.p.vector),
            interrupts.irq.ready.eq(self.irq_ready),
        ]

        # Registers, time, secrets.
        self._connect_flat(m, "s_axil", registers.axil)
        connect(m, registers.time, clock.port)
        connect(m, registers.secret, secret.port)
        connect(m, registers.counters, counters.port)
        connect(m, registers.flows, flows.port)
        connect(m, registers.rss, setup.rss)
        m.d.comb += [
            clock.tick.eq(self.tick),
            secret.boundary.eq(clock.boundary),
            flows.tick.eq(self.tick),
            flows.ts_clock.eq(clock.ts_clock),
            patcher.ts_clock.eq(clock.ts_clock),
        ]
        for name, source in (
            ("default_queue", registers),
            ("ts_clock", clock),
            ("epoch", clock),
            ("key_current", secret),
            ("key_previous", secret),
            ("key_valid", secret),
        ):
            m.d.comb += getattr(setup, name).eq(getattr(source, name))

        # Queue set-up and quiescence.
        draining = Signal()
        for engine in (rx_dma, tx_dma, events, interrupts):
            m.d.comb += [
                getattr(engine.bus, name).eq(getattr(registers.queues, name)) for name in QueueBus().members
            ]
        engines = (rx_dma, tx_dma, commands, flows, events, axi)
        working = (
            *front_ends, setup, flows, builder, tx_dma, patcher, tx_checksum, interrupts, *outputs, *splicing,
        )  # fmt: skip
        m.d.comb += [
            registers.drained.eq(Cat(output.drained for output in outputs).all()),
            *(output.stop.eq(registers.stop) for output in outputs),
            rx_dma.hold.eq(registers.hold),
            tx_dma.hold.eq(registers.hold),
            flows.hold.eq(registers.hold),
            tx_dma.command_room.eq(room),
            # Commands are carried out before a hold is complete, and a CLOSE may wait for other flows' frames.
            draining.eq(tx_dma.commanding | ~commands.idle | flows.closing),
            tx_dma.drain.eq(draining),
            flows.drain.eq(draining),
            registers.idle.eq(Cat(engine.idle for engine in engines).all()),
            registers.busy.eq(Cat(*(~engine.idle for engine in engines), *(one.busy for one in working)).any()),
            self.busy.eq(registers.busy | registers.working),
        ]

        counting = (
            registers, *front_ends, setup, flows, rx_dma, tx_dma, tx_checksum, commands, events, interrupts, axi, *outputs,
            *splicing,
        )  # fmt: skip
        for counter in COUNTERS:
            sources = [one.counts[counter.name] for one in counting if counter.name in dict(one.counts.shape())]
            m.d.comb += counters.i[counter.name].eq(sum(sources[1:], sources[0]) if sources else 0)
        return m

    def _connect_flat(self, m, prefix, inner):
        """Connect the flat members `prefix_*` with the members of that name of `inner`."""
        for name, member in self.signature.members.items():
            if name.startswith(prefix + "_"):
                outer, part = getattr(self, name), getattr(inner, name.removeprefix(prefix + "_"))
                m.d.comb += outer.eq(part) if member.flow is Out else part.eq(outer)
