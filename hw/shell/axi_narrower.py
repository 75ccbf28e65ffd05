"""`AxiNarrower`: the core's AXI4 master of 64 bytes on a bus of half that width.

* A burst becomes one burst of 32-byte beats. Reads begin at a multiple of 64; identifiers, order and answers are kept,
  and read beats of different identifiers may interleave.
* A half without strobes at the beginning or end of a written burst is left out: a bridge makes the length of its
  packets from the burst's. For that a burst is sent on once all of it is here.
* Bursts: INCR, at most 64 wide beats, of full size, within 4 KiB, as the core's are.
* Throughput: one narrow beat per cycle, each way. Latency: writes, the time in which the burst comes in and 4 cycles;
  reads, 1 cycle.
* Registered: AW and R; W comes from registers through one multiplexer, AR through none.
* Overflow: cannot happen. Reset: forgets what is in flight, so the bus must be reset too.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import AXI_BYTES
from ..stream.buffer import StreamBuffer
from ..stream.fifo import StreamFifo
from .message_writer import BUS_ID_BITS, BusSignature

__all__ = ["NARROW_BYTES", "AxiNarrower"]

NARROW_BYTES = AXI_BYTES // 2
"""Bytes of a beat of the narrow bus."""

_HALF = 8 * NARROW_BYTES
_SIZE = exact_log2(NARROW_BYTES)
_UPPER = _SIZE
"""Bit of an address that tells the halves of a wide beat apart."""

_BEATS = 128
"""Two of the largest bursts: one leaves while the next comes."""

_BURSTS = 16


class AxiNarrower(wiring.Component):
    """See the module's text.

    Members
    -------
    wide: In(BusSignature()); narrow: Out(BusSignature(NARROW_BYTES)).
    """

    wide: In(BusSignature())
    narrow: Out(BusSignature(NARROW_BYTES))

    def elaborate(self, platform):
        m = Module()
        self._elaborate_writes(m)
        self._elaborate_reads(m)
        return m

    def _elaborate_writes(self, m):
        wide, narrow = self.wide, self.narrow
        # `low`, `high`: the half at the beginning or end of the burst that is left out.
        ends = data.StructLayout({"low": 1, "high": 1})
        beats = m.submodules.beats = StreamFifo(
            data.StructLayout({"data": 8 * AXI_BYTES, "strb": AXI_BYTES, "last": 1}), _BEATS, kind="block"
        )
        whole = m.submodules.whole = StreamFifo(ends, _BURSTS)  # bursts that are here
        sent = m.submodules.sent = StreamFifo(ends, _BURSTS)  # those whose address has gone
        address = data.StructLayout({"id": BUS_ID_BITS, "addr": 64, "len": 8})
        aw = m.submodules.aw = StreamBuffer(address)

        inside, low = Signal(), Signal()
        no_low, no_high = ~wide.wstrb[:NARROW_BYTES].any(), ~wide.wstrb[NARROW_BYTES:].any()
        m.d.comb += [
            wide.wready.eq(beats.i.ready & whole.i.ready),
            beats.i.valid.eq(wide.wvalid & whole.i.ready),
            beats.i.p.data.eq(wide.wdata),
            beats.i.p.strb.eq(wide.wstrb),
            beats.i.p.last.eq(wide.wlast),
            whole.i.valid.eq(wide.wvalid & wide.wlast & beats.i.ready),
            whole.i.p.low.eq(Mux(inside, low, no_low & ~no_high)),
            whole.i.p.high.eq(no_high),
        ]
        with m.If(wide.wvalid & wide.wready):
            m.d.sync += [inside.eq(~wide.wlast), low.eq(whole.i.p.low)]

        # A burst may also begin in the upper half.
        go, plan = Signal(), Signal(ends)
        m.d.comb += [
            plan.low.eq(whole.o.p.low | wide.awaddr[_UPPER]),
            plan.high.eq(whole.o.p.high & ~(plan.low & (wide.awlen == 0))),
            go.eq(aw.i.ready & sent.i.ready),
            wide.awready.eq(go & whole.o.valid),
            whole.o.ready.eq(go & wide.awvalid),
            aw.i.valid.eq(wide.awvalid & whole.o.valid & sent.i.ready),
            aw.i.p.id.eq(wide.awid),
            aw.i.p.addr.eq(
                Cat(
                    Mux(plan.low & ~wide.awaddr[_UPPER], 0, wide.awaddr[:_UPPER]),
                    plan.low,
                    wide.awaddr[_UPPER + 1 :],
                )
            ),
            aw.i.p.len.eq((wide.awlen << 1) + 1 - plan.low - plan.high),
            sent.i.valid.eq(wide.awvalid & whole.o.valid & aw.i.ready),
            sent.i.payload.eq(plan),
            narrow.awvalid.eq(aw.o.valid),
            aw.o.ready.eq(narrow.awready),
            narrow.awid.eq(aw.o.p.id),
            narrow.awaddr.eq(aw.o.p.addr),
            narrow.awlen.eq(aw.o.p.len),
            narrow.awsize.eq(_SIZE),
            narrow.awburst.eq(1),
        ]

        first, second, upper, moves = Signal(init=1), Signal(), Signal(), Signal()
        beat = beats.o.p
        m.d.comb += [
            upper.eq(second | (first & sent.o.p.low)),
            narrow.wvalid.eq(beats.o.valid & sent.o.valid),
            narrow.wdata.eq(Mux(upper, beat.data[_HALF:], beat.data[:_HALF])),
            narrow.wstrb.eq(Mux(upper, beat.strb[NARROW_BYTES:], beat.strb[:NARROW_BYTES])),
            narrow.wlast.eq(beat.last & (upper | sent.o.p.high)),
            moves.eq(narrow.wvalid & narrow.wready),
            beats.o.ready.eq(moves & (upper | narrow.wlast)),
            sent.o.ready.eq(moves & narrow.wlast),
        ]
        with m.If(moves):
            m.d.sync += [second.eq(~upper & ~narrow.wlast), first.eq(narrow.wlast)]

        m.d.comb += [
            wide.bid.eq(narrow.bid),
            wide.bresp.eq(narrow.bresp),
            wide.bvalid.eq(narrow.bvalid),
            narrow.bready.eq(wide.bready),
        ]

    def _elaborate_reads(self, m):
        wide, narrow = self.wide, self.narrow
        m.d.comb += [
            narrow.arid.eq(wide.arid),
            narrow.araddr.eq(wide.araddr & ~C(AXI_BYTES - 1, 64)),
            narrow.arlen.eq((wide.arlen << 1) + 1),
            narrow.arsize.eq(_SIZE),
            narrow.arburst.eq(1),
            narrow.arvalid.eq(wide.arvalid),
            wide.arready.eq(narrow.arready),
        ]
        # Of each identifier: is the lower half of a beat here, and what it is.
        have, upper = Signal(1 << BUS_ID_BITS), Signal()
        shape = data.StructLayout({"data": _HALF, "resp": 2})
        lower = m.submodules.lower = Memory(
            shape=shape, depth=1 << BUS_ID_BITS, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = lower.write_port(), lower.read_port(domain="comb")
        r = m.submodules.r = StreamBuffer(
            data.StructLayout({"id": BUS_ID_BITS, "data": 8 * AXI_BYTES, "resp": 2, "last": 1})
        )
        m.d.comb += [
            upper.eq(have.bit_select(narrow.rid, 1)),
            narrow.rready.eq(~upper | r.i.ready),
            write.addr.eq(narrow.rid),
            write.data.data.eq(narrow.rdata),
            write.data.resp.eq(narrow.rresp),
            write.en.eq(narrow.rvalid & ~upper),
            read.addr.eq(narrow.rid),
            r.i.valid.eq(narrow.rvalid & upper),
            r.i.p.id.eq(narrow.rid),
            r.i.p.data.eq(Cat(read.data.data, narrow.rdata)),
            # An error of either half is the whole beat's.
            r.i.p.resp.eq(Mux(read.data.resp[1], read.data.resp, narrow.rresp)),
            r.i.p.last.eq(narrow.rlast),
            *(getattr(wide, f"r{name}").eq(r.o.p[name]) for name in ("id", "data", "resp", "last")),
            wide.rvalid.eq(r.o.valid),
            r.o.ready.eq(wide.rready),
        ]
        with m.If(narrow.rvalid & narrow.rready):
            m.d.sync += have.bit_select(narrow.rid, 1).eq(~upper)
