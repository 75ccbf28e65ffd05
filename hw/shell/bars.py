"""`BarAccess`: what the host does to the BARs, from the PCIe bridge's AXI4 to accesses of 32-bit registers.

The bridge gives an access of up to four bytes as it is, larger ones as whole beats. A beat is carried out word by word,
lowest first: of a write those with a strobe, of a read those from the address on. So a read of more than four bytes
also reads the registers behind it up to the end of the beat; nobody has to do that, the driver reads words.

* Latency: a cycle for each word of a beat and what the register takes. Throughput: one access at a time; a write goes before a read.
* Registered: all outputs of `bus` but the `ready` of its address channels; `axil` and `msix` requests.
* Overflow: cannot happen. Reset drops the access under way, as the bus must be reset then.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from acceltcp.abi.pci import BAR_MSIX, BAR_MSIX_BYTES, BAR_REGISTERS, BAR_REGISTERS_BYTES

from ..config import AXI_BYTES
from ..csr.axil import AxiLiteSignature, RegisterRequest
from .message_writer import BUS_ID_BITS, BusSignature

__all__ = ["BAR_OFFSETS", "BarAccess"]

BAR_OFFSETS = {BAR_REGISTERS: 0, BAR_MSIX: BAR_REGISTERS_BYTES}
"""Where the bridge puts each BAR in the address space of `bus`."""

_MSIX_BIT = BAR_OFFSETS[BAR_MSIX].bit_length() - 1
_MSIX_WORD_BITS = (BAR_MSIX_BYTES // 4).bit_length() - 1


class BarAccess(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    size: bytes of a beat of `bus`.

    Members
    -------
    bus: In(BusSignature(size)): from the bridge.
    axil: Out(AxiLiteSignature()): `BAR_REGISTERS`.
    request: Out(stream of RegisterRequest), response: In(stream of 32 bits, always ready): `BAR_MSIX`.
    """

    def __init__(self, size=AXI_BYTES):
        self._size = size
        super().__init__(
            {
                "bus": In(BusSignature(size)),
                "axil": Out(AxiLiteSignature()),
                "request": Out(stream.Signature(RegisterRequest)),
                "response": In(stream.Signature(32, always_ready=True)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        count = self._size // 4  # words of a beat
        low = exact_log2(self._size)  # bits of an address within a beat
        bus, axil, request = self.bus, self.axil, self.request
        identifier, writing, word_only = Signal(BUS_ID_BITS), Signal(), Signal()
        address = Signal(_MSIX_BIT + 1)  # of the first word; then of each beat
        beats, step = Signal(8), Signal(range(count + 1))
        words, strobes, last = Signal(8 * self._size), Signal(self._size), Signal()
        first = Signal(range(count))  # words below it are not touched in a read
        answer, done = Signal(32), Signal()
        in_msix = address[_MSIX_BIT]
        here = Cat(step[: len(first)], address[low:_MSIX_BIT])  # number of the word in its BAR

        m.d.comb += [
            axil.awprot.eq(0),
            axil.arprot.eq(0),
            axil.awaddr.eq(here << 2),
            axil.araddr.eq(here << 2),
            axil.wdata.eq(words[:32]),
            axil.wstrb.eq(strobes[:4]),
            request.p.write.eq(writing),
            request.p.word.eq(Mux(in_msix, here[:_MSIX_WORD_BITS], 0)),
            request.p.data.eq(words[:32]),
            request.p.strobe.eq(strobes[:4]),
            axil.bready.eq(1),
            axil.rready.eq(1),
            bus.bid.eq(identifier),
            bus.rid.eq(identifier),
            bus.rdata.eq(words),
            done.eq(Mux(in_msix, self.response.valid, Mux(writing, axil.bvalid, axil.rvalid))),
            answer.eq(Mux(in_msix, self.response.payload, axil.rdata)),
        ]
        for channel in ("aw", "w", "ar"):
            with m.If(getattr(axil, f"{channel}ready")):
                m.d.sync += getattr(axil, f"{channel}valid").eq(0)
        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)

        with m.FSM():
            with m.State("Idle"):
                m.d.comb += [bus.awready.eq(1), bus.arready.eq(~bus.awvalid)]
                m.d.sync += [step.eq(0), writing.eq(bus.awvalid), beats.eq(bus.arlen)]
                with m.If(bus.awvalid):
                    m.d.sync += [identifier.eq(bus.awid), address.eq(bus.awaddr)]
                    m.next = "Take data"
                with m.Elif(bus.arvalid):
                    m.d.sync += [
                        identifier.eq(bus.arid),
                        address.eq(bus.araddr),
                        first.eq(bus.araddr[2:]),
                        word_only.eq(bus.arsize <= 2),
                    ]
                    m.next = "Step"
            with m.State("Take data"):
                m.d.comb += bus.wready.eq(1)
                m.d.sync += [words.eq(bus.wdata), strobes.eq(bus.wstrb), last.eq(bus.wlast), step.eq(0)]
                with m.If(bus.wvalid):
                    m.next = "Step"
            with m.State("Step"):
                with m.If(step == count):
                    with m.If(~writing):
                        m.d.sync += [bus.rvalid.eq(1), bus.rlast.eq(beats == 0)]
                        m.next = "Give data"
                    with m.Elif(last):
                        m.d.sync += bus.bvalid.eq(1)
                        m.next = "Answer"
                    with m.Else():
                        m.d.sync += address[low:].eq(address[low:] + 1)
                        m.next = "Take data"
                with m.Elif(
                    Mux(writing, strobes[:4].any(), Mux(word_only, step == first, step >= first))
                ):
                    with m.If(in_msix):
                        m.d.sync += request.valid.eq(1)
                    with m.Elif(writing):
                        m.d.sync += [axil.awvalid.eq(1), axil.wvalid.eq(1)]
                    with m.Else():
                        m.d.sync += axil.arvalid.eq(1)
                    m.next = "Access"
                with m.Else():
                    m.d.sync += [step.eq(step + 1), words.eq(words >> 32), strobes.eq(strobes >> 4)]
            with m.State("Access"):
                with m.If(done):
                    m.d.sync += [
                        step.eq(step + 1),
                        words.eq(Cat(words[32:], answer)),
                        strobes.eq(strobes >> 4),
                    ]
                    m.next = "Step"
            with m.State("Give data"):
                with m.If(bus.rready):
                    m.d.sync += [bus.rvalid.eq(0), beats.eq(beats - 1), step.eq(0), first.eq(0)]
                    m.d.sync += address[low:].eq(address[low:] + 1)
                    with m.If(bus.rlast):
                        m.next = "Idle"
                    with m.Else():
                        m.next = "Step"
            with m.State("Answer"):
                with m.If(bus.bready):
                    m.d.sync += bus.bvalid.eq(0)
                    m.next = "Idle"
        return m
