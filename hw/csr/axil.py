"""AXI4-Lite slave (AMBA AXI, IHI 0022, chapter B): turns bus accesses into register requests.

Write address and write data are taken in any order, each into a slot of its own, and so is a
read address. One access is carried out at a time: a request on `request`, then exactly one
answer on `response`. Waiting reads and writes take turns. Every address answers OKAY.

Latency: 2 cycles from the last channel's transfer to `request`, 1 cycle from `response` to
the answer on the bus. Throughput: one access per register latency + 3 cycles. All outputs come
from registers. A channel whose slot is full is not ready, so nothing can overflow. Reset drops
accesses under way, as AXI allows only together with the master's reset.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature

__all__ = ["AxiLiteSignature", "AxiLiteSlave", "RegisterRequest"]


class AxiLiteSignature(Signature):
    """The five channels as flat signals, from the master's side: 16-bit addresses, 32-bit data."""

    def __init__(self):
        super().__init__(
            {
                "awaddr": Out(16),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(32),
                "wstrb": Out(4),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(16),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(32),
                "rresp": In(2),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


class RegisterRequest(data.Struct):
    """One access to a 32-bit register."""

    write: 1
    word: 14  # address in 32-bit words
    data: 32  # writes only
    strobe: 4  # writes only: bytes to write


class AxiLiteSlave(wiring.Component):
    """See the module's text.

    Members
    -------
    axil : In(AxiLiteSignature())
        The bus.
    request : Out(stream of RegisterRequest)
        The access to carry out.
    response : In(stream of 32 bits, always ready)
        One per request: the register's value for a read, anything for a write.
    """

    axil: In(AxiLiteSignature())
    request: Out(stream.Signature(RegisterRequest))
    response: In(stream.Signature(32, always_ready=True))

    def elaborate(self, platform):
        m = Module()
        axil, request = self.axil, self.request

        # One slot per channel of requests.
        aw_full = Signal()
        w_full = Signal()
        ar_full = Signal()
        aw_word = Signal(14)
        ar_word = Signal(14)
        w_data = Signal(32)
        w_strobe = Signal(4)
        m.d.comb += [axil.awready.eq(~aw_full), axil.wready.eq(~w_full), axil.arready.eq(~ar_full)]
        with m.If(axil.awvalid & axil.awready):
            m.d.sync += [aw_full.eq(1), aw_word.eq(axil.awaddr[2:])]
        with m.If(axil.wvalid & axil.wready):
            m.d.sync += [w_full.eq(1), w_data.eq(axil.wdata), w_strobe.eq(axil.wstrb)]
        with m.If(axil.arvalid & axil.arready):
            m.d.sync += [ar_full.eq(1), ar_word.eq(axil.araddr[2:])]

        # Answers wait in registers until the master takes them.
        with m.If(axil.bready):
            m.d.sync += axil.bvalid.eq(0)
        with m.If(axil.rready):
            m.d.sync += axil.rvalid.eq(0)

        writing = Signal()
        read_turn = Signal()  # a write went last
        can_write = Signal()
        can_read = Signal()
        m.d.comb += [
            can_write.eq(aw_full & w_full & ~axil.bvalid),
            can_read.eq(ar_full & ~axil.rvalid),
        ]

        with m.FSM():
            with m.State("Choose"):
                choose_write = can_write & ~(can_read & read_turn)
                m.d.sync += [
                    writing.eq(choose_write),
                    request.payload.write.eq(choose_write),
                    request.payload.word.eq(Mux(choose_write, aw_word, ar_word)),
                    request.payload.data.eq(w_data),
                    request.payload.strobe.eq(w_strobe),
                ]
                with m.If(can_write | can_read):
                    m.d.sync += [read_turn.eq(choose_write), request.valid.eq(1)]
                    m.next = "Request"
            with m.State("Request"):
                with m.If(request.ready):
                    m.d.sync += request.valid.eq(0)
                    m.next = "Answer"
            with m.State("Answer"):
                with m.If(self.response.valid):
                    m.next = "Choose"
                    with m.If(writing):
                        m.d.sync += [aw_full.eq(0), w_full.eq(0), axil.bvalid.eq(1)]
                    with m.Else():
                        m.d.sync += [
                            ar_full.eq(0),
                            axil.rvalid.eq(1),
                            axil.rdata.eq(self.response.payload),
                        ]
        return m
