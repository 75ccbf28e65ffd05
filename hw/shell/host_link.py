"""The host link's end on the board: the core's AXI ports and interrupts, to and from a MAC.

See docs/host-link.md. `LinkReceiver` and `LinkSender` know frames, `LinkDma` what the core asks of the host; here are
sessions, accesses to registers, and who may send next: replies first.

Latency: 10 cycles from the last beat of a request to the first beat of the reply, and the register file's own; 8
from an interrupt to its first beat. Overflow: cannot happen; a request that comes while another one is carried out is
ignored, and repeated by the host. Reset: no session.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.host_link import VERSION, LinkKind
from acceltcp.abi.wire import EtherType

from ..config import AXI_BYTES
from ..csr.axil import AxiLiteSignature
from ..csr.bus import QUEUE_BITS
from ..dma.axi import AxiMasterSignature
from .host_link_dma import LinkDma
from .host_link_frames import WORD_BYTES, LinkReceiver, LinkSender

__all__ = ["HostLink", "LinkRegisters"]

_BROADCAST = (1 << 48) - 1
_RESET_CYCLES = 16


class LinkRegisters(wiring.Component):
    """Accesses to registers, one at a time, on AXI4-Lite.

    Members
    -------
    start, write, address, value : In
        Begin an access; only while `idle`.
    result : Out(32)
        Of the last read; stands until the next one.
    done : Out(1)
        For one cycle: the access is over.
    idle : Out(1)
    axil : Out(AxiLiteSignature())
    """

    start: In(1)
    write: In(1)
    address: In(16)
    value: In(32)
    result: Out(32)
    done: Out(1)
    idle: Out(1)
    axil: Out(AxiLiteSignature())

    def elaborate(self, platform):
        m = Module()
        axil = self.axil
        m.d.comb += [axil.wstrb.eq(~0), axil.rready.eq(1), axil.bready.eq(1), axil.awaddr.eq(axil.araddr)]
        # A channel's request stands until it is taken.
        for name in ("aw", "w", "ar"):
            with m.If(getattr(axil, f"{name}ready")):
                m.d.sync += getattr(axil, f"{name}valid").eq(0)
        with m.FSM() as fsm:
            m.d.comb += self.idle.eq(fsm.ongoing("Idle"))
            with m.State("Idle"):
                with m.If(self.start):
                    m.d.sync += [
                        axil.araddr.eq(self.address),
                        axil.wdata.eq(self.value),
                        axil.awvalid.eq(self.write),
                        axil.wvalid.eq(self.write),
                        axil.arvalid.eq(~self.write),
                    ]
                    m.next = "Wait"
            with m.State("Wait"):
                m.d.comb += self.done.eq(axil.rvalid | axil.bvalid)
                with m.If(axil.rvalid):
                    m.d.sync += self.result.eq(axil.rdata)
                with m.If(self.done):
                    m.next = "Idle"
        return m


class HostLink(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    retry_ticks : int
        Pulses of `tick` after which a request to the host is repeated.
    silence_ticks : int
        Pulses of `tick` after which a host that says nothing is gone.
    axi_bytes : int
        Width of the core's bus.

    Members
    -------
    mac : In(48)
        The board's address on the link.
    tick : In(1)
        As of the core.
    s_axis_tdata, tkeep, tvalid, tlast, tuser : In. m_axis_... : Out, with tready
        The link's MAC, as the core's ports, 8 bytes wide.
    s_axi : In(AxiMasterSignature(axi_bytes)). m_axil : Out(AxiLiteSignature()). irq_... :
        The core.
    core_reset : Out(1)
        The core is to be held in reset.
    busy : Out(1)
        Something is to be done without further input.
    """

    def __init__(self, *, retry_ticks=100, silence_ticks=50_000, axi_bytes=AXI_BYTES):
        if not isinstance(silence_ticks, int) or silence_ticks < 1:
            raise ValueError(f"silence_ticks must be an integer of at least 1, not {silence_ticks!r}")
        self._retry_ticks, self._silence_ticks, self._axi_bytes = retry_ticks, silence_ticks, axi_bytes
        stream = {"tdata": 8 * WORD_BYTES, "tkeep": WORD_BYTES, "tvalid": 1, "tlast": 1, "tuser": 1}
        super().__init__(
            {
                "mac": In(48),
                "tick": In(1),
                **{f"s_axis_{name}": In(bits) for name, bits in stream.items()},
                **{f"m_axis_{name}": Out(bits) for name, bits in stream.items()},
                "m_axis_tready": In(1),
                "s_axi": In(AxiMasterSignature(axi_bytes)),
                "m_axil": Out(AxiLiteSignature()),
                "irq_valid": In(1),
                "irq_vector": In(QUEUE_BITS),
                "irq_ready": Out(1),
                "core_reset": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = LinkReceiver()
        m.submodules.sender = sender = LinkSender()
        m.submodules.dma = dma = ResetInserter(self.core_reset)(LinkDma(retry_ticks=self._retry_ticks, axi_bytes=self._axi_bytes))
        m.submodules.registers = registers = ResetInserter(self.core_reset)(LinkRegisters())
        connect(m, flipped(self.s_axi), dma.axi)
        connect(m, registers.axil, flipped(self.m_axil))
        for name in ("tdata", "tkeep", "tvalid", "tlast", "tuser"):
            m.d.comb += [
                getattr(receiver, name).eq(getattr(self, f"s_axis_{name}")),
                getattr(self, f"m_axis_{name}").eq(getattr(sender, name)),
            ]
        header = receiver.header
        m.d.comb += [
            sender.tready.eq(self.m_axis_tready),
            *(getattr(dma, name).eq(getattr(self, name)) for name in ("tick", "irq_valid", "irq_vector")),
            self.irq_ready.eq(dma.irq_ready),
            dma.header.eq(header),
            *(getattr(dma, name).eq(getattr(receiver, name)) for name in ("word", "word_index", "word_valid")),
            dma.payload_words_in.eq(receiver.payload_words),
            dma.read_index.eq(sender.read_index),
            dma.read_enable.eq(sender.read_enable),
            sender.read_data.eq(dma.read_data),
        ]

        # Sessions.
        linked = Signal()
        resetting = Signal(range(_RESET_CYCLES + 1))
        host_mac = Signal(48)
        session = Signal(32)
        silence = Signal(range(self._silence_ticks + 1))
        m.d.comb += self.core_reset.eq(~linked | (resetting != 0))
        with m.If(resetting != 0):
            m.d.sync += resetting.eq(resetting - 1)

        # Replies that wait to be sent; a register's has the sequence number of the access.
        greet = Signal()
        greeting = Signal.like(header.kind)  # HELLO, PING or BYE
        answer = Signal()
        access = Signal.like(header.kind)  # READ or WRITE
        sequence = Signal.like(header.sequence)

        to_us = header.dst == self.mac
        same = (header.src == host_mac) & (header.session == session)
        request = Signal()
        hello = Signal()
        ours = Signal()
        m.d.comb += [
            request.eq(receiver.valid & ~header.reply),
            hello.eq(request & (header.kind == LinkKind.HELLO) & (to_us | (header.dst == _BROADCAST))),
            ours.eq(receiver.valid & to_us & same & (header.version == VERSION) & linked & (resetting == 0)),
            dma.valid.eq(ours),
        ]
        with m.If(registers.done):
            m.d.sync += answer.eq(1)
        with m.If(ours):
            m.d.sync += silence.eq(0)
        with m.Elif(self.tick & linked):
            m.d.sync += silence.eq(silence + 1)
            with m.If(silence == self._silence_ticks - 1):
                m.d.sync += linked.eq(0)
        with m.If(ours & request):
            with m.Switch(header.kind):
                with m.Case(LinkKind.PING, LinkKind.BYE):
                    m.d.sync += [greet.eq(1), greeting.eq(header.kind)]
                    with m.If(header.kind == LinkKind.BYE):
                        m.d.sync += linked.eq(0)
                with m.Case(LinkKind.READ, LinkKind.WRITE):
                    with m.If(registers.idle & (header.sequence == sequence)):
                        m.d.sync += answer.eq(1)
                    with m.If(registers.idle & (header.sequence == (sequence + 1)[: len(sequence)])):
                        m.d.comb += registers.start.eq(1)
                        m.d.sync += [sequence.eq(header.sequence), access.eq(header.kind), answer.eq(0)]
        m.d.comb += [
            registers.write.eq(header.kind == LinkKind.WRITE),
            registers.address.eq(header.address),
            registers.value.eq(header.value),
        ]
        with m.If(hello & ((header.version == VERSION) | ~linked)):
            m.d.sync += [greet.eq(1), greeting.eq(header.kind)]
            with m.If(~(linked & same)):
                m.d.sync += [
                    linked.eq(header.version == VERSION),
                    host_mac.eq(header.src),
                    session.eq(header.session),
                    silence.eq(0),
                    sequence.eq(0),
                    answer.eq(0),
                    resetting.eq(_RESET_CYCLES),
                ]

        # Who sends next.
        out = sender.header
        m.d.comb += [
            out.dst.eq(host_mac),
            out.src.eq(self.mac),
            out.ethertype.eq(EtherType.HOST_LINK),
            out.version.eq(VERSION),
            out.session.eq(session),
        ]
        with m.If(sender.idle & (resetting == 0)):
            with m.If(greet):
                m.d.comb += [sender.start.eq(1), out.reply.eq(1), out.kind.eq(greeting)]
                m.d.sync += greet.eq(0)
            with m.Elif(answer):
                m.d.comb += [
                    sender.start.eq(1),
                    out.reply.eq(1),
                    out.kind.eq(access),
                    out.sequence.eq(sequence),
                    out.value.eq(registers.result),
                ]
                m.d.sync += answer.eq(0)
            with m.Elif(dma.pending):
                m.d.comb += [
                    sender.start.eq(1),
                    dma.sent.eq(1),
                    sender.payload_words.eq(dma.payload_words),
                    *(out[name].eq(getattr(dma, name)) for name in ("kind", "sequence", "count", "address", "value")),
                ]
        m.d.comb += self.busy.eq(dma.busy | ~registers.idle | ~sender.idle | greet | answer | (resetting != 0))
        return m
