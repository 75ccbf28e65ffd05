"""The AXI4 master: requesters inside the NIC share one read and one write side.

Requester k uses AXI identifier k, so its responses stay in the order of its requests while
those of other requesters may overtake them. Reads are granted per burst, writes too: AXI4
has no write interleaving, so a granted write burst keeps the W channel to its last beat.
Grants go round robin.

Latency: 3 cycles from a request to AR or AW valid, 4 to W valid (a register, a small FIFO); 2 cycles from R and
1 cycle from B to the requester. Throughput: one AR, one AW, one W beat, one
R beat and one B per cycle, also when every burst is one beat and requesters alternate.
AW and W leave through FIFOs of their own, so the other side may take either first.
All outputs are registered; requesters' `ready` depends on registers and on who asks only.
`rready` and `bready` are always 1: requesters reserve room before they ask.
Overflow: a full FIFO stalls the requesters. Reset forgets what is in flight, so the bus has
to be idle or be reset too.

AMBA AXI protocol specification (IHI 0022): A3.3 (dependencies between channels), A3.4
(bursts; 4 KiB rule), A5 (identifiers).
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from ..config import AXI_BYTES
from ..counts import counts_layout
from ..stream.buffer import StreamBuffer
from ..stream.fifo import StreamFifo
from ..stream.round_robin import round_robin
from .axi import AXI_ID_BITS, AxiMasterSignature, ReadPort, ReadRequest, WriteBeat, WritePort

__all__ = ["AxiMaster", "ReadMux", "WriteMux"]

_READ_COUNTS = ("axi_read_errors", "axi_read_bytes")
_WRITE_COUNTS = ("axi_write_errors", "axi_write_bytes")
_INCR = 0b01
_OPEN_BITS = 16  # bursts in flight; the requesters' own limits are far below


def _flat(prefixes, axi_bytes):
    """Members of the AXI master of this width whose names start with one of `prefixes`."""
    return {
        name: member
        for name, member in AxiMasterSignature(axi_bytes).members.items()
        if name.startswith(prefixes)
    }


def _check_requesters(name, count):
    if not isinstance(count, int) or not 1 <= count <= 1 << AXI_ID_BITS:
        raise ValueError(f"{name} must be from 1 to {1 << AXI_ID_BITS}, not {count!r}")


class ReadMux(wiring.Component):
    """Read side: requesters to AR, R to requesters. See the module's docstring.

    Parameters
    ----------
    requesters : int
        1 to 4.
    axi_bytes : int
        Width of the bus.

    Members
    -------
    ports : In(ReadPort()), one per requester
    ar*, r* : flat AXI4 signals
    counts : Out(axi_read_errors, axi_read_bytes)
    idle : Out(1)
        No burst waits or is in flight.
    """

    def __init__(self, requesters, axi_bytes=AXI_BYTES):
        _check_requesters("requesters", requesters)
        self._requesters, self._axi_bytes = requesters, axi_bytes
        super().__init__(
            {
                "ports": In(ReadPort(axi_bytes)).array(requesters),
                "counts": Out(counts_layout(*_READ_COUNTS)),
                "idle": Out(1),
                **_flat(("ar", "r"), axi_bytes),
            }
        )

    @property
    def requesters(self):
        """Number of requesters."""
        return self._requesters

    def elaborate(self, platform):
        m = Module()
        n = self._requesters
        request = data.StructLayout({"id": AXI_ID_BITS, "request": ReadRequest})
        m.submodules.requests = requests = StreamFifo(request, 4, kind="lutram")

        # Grant one request per cycle.
        wanted = Signal(n)
        pick, last = Signal(range(max(2, n))), Signal(range(max(2, n)))
        m.d.comb += wanted.eq(Cat(port.request.valid for port in self.ports))
        round_robin(m, wanted, last, pick)
        granted = Signal()
        m.d.comb += [
            requests.i.valid.eq(wanted.any()),
            requests.i.payload.id.eq(pick),
            granted.eq(wanted.any() & requests.i.ready),
        ]
        with m.If(granted):
            m.d.sync += last.eq(pick)
        with m.Switch(pick):
            for k, port in enumerate(self.ports):
                with m.Case(k):
                    m.d.comb += [
                        requests.i.payload.request.eq(port.request.payload),
                        port.request.ready.eq(requests.i.ready),
                    ]

        # The FIFO's output is a register already.
        m.d.comb += [
            self.araddr.eq(requests.o.payload.request.address),
            self.arlen.eq(requests.o.payload.request.length),
            self.arid.eq(requests.o.payload.id),
            self.arvalid.eq(requests.o.valid),
            self.arsize.eq(exact_log2(self._axi_bytes)),
            self.arburst.eq(_INCR),
            requests.o.ready.eq(self.arready),
        ]

        # Responses: one register, then one more so that the fan-out starts at a register.
        rdata, rerror = Signal(8 * self._axi_bytes, reset_less=True), Signal(reset_less=True)
        rlast, rid = Signal(reset_less=True), Signal(AXI_ID_BITS, reset_less=True)
        rvalid = Signal()
        odata, oerror = Signal(8 * self._axi_bytes, reset_less=True), Signal(reset_less=True)
        olast, ovalid = Signal(reset_less=True), Signal(n)
        m.d.comb += self.rready.eq(1)
        m.d.sync += [
            rvalid.eq(self.rvalid),
            rdata.eq(self.rdata),
            rerror.eq(self.rresp[1]),
            rlast.eq(self.rlast),
            rid.eq(self.rid),
            ovalid.eq(Cat(rvalid & (rid == k) for k in range(n))),
            odata.eq(rdata),
            oerror.eq(rerror),
            olast.eq(rlast),
            self.counts.axi_read_errors.eq(rvalid & rerror),
            self.counts.axi_read_bytes.eq(Mux(rvalid, self._axi_bytes, 0)),
        ]
        for k, port in enumerate(self.ports):
            m.d.comb += [
                port.response.valid.eq(ovalid[k]),
                port.response.payload.data.eq(odata),
                port.response.payload.error.eq(oerror),
                port.response.payload.last.eq(olast),
            ]

        in_flight = Signal(_OPEN_BITS)
        m.d.sync += in_flight.eq(in_flight + granted - (ovalid.any() & olast))
        m.d.comb += self.idle.eq(~in_flight.any() & ~wanted.any())
        return m


class WriteMux(wiring.Component):
    """Write side: requesters to AW and W, B to requesters. See the module's docstring.

    Parameters
    ----------
    requesters : int
        1 to 4.
    axi_bytes : int
        Width of the bus.

    Members
    -------
    ports : In(WritePort()), one per requester
    aw*, w*, b* : flat AXI4 signals
    counts : Out(axi_write_errors, axi_write_bytes)
    idle : Out(1)
        No burst waits or is in flight.
    """

    def __init__(self, requesters, axi_bytes=AXI_BYTES):
        _check_requesters("requesters", requesters)
        self._requesters, self._axi_bytes = requesters, axi_bytes
        super().__init__(
            {
                "ports": In(WritePort(axi_bytes)).array(requesters),
                "counts": Out(counts_layout(*_WRITE_COUNTS)),
                "idle": Out(1),
                **_flat(("aw", "w", "b"), axi_bytes),
            }
        )

    @property
    def requesters(self):
        """Number of requesters."""
        return self._requesters

    def elaborate(self, platform):
        m = Module()
        n = self._requesters
        address = data.StructLayout({"id": AXI_ID_BITS, "address": 64, "length": 8})
        beat = data.StructLayout({"data": 8 * self._axi_bytes, "strobe": self._axi_bytes, "last": 1})
        m.submodules.addresses = addresses = StreamFifo(address, 16, kind="lutram")
        m.submodules.beats = beats = StreamFifo(beat, 16, kind="block")

        # Grant per burst; a burst's owner keeps the W channel to its last beat.
        wanted = Signal(n)
        pick, last = Signal(range(max(2, n))), Signal(range(max(2, n)))
        inside = Signal()
        owned, room, taken = Signal(), Signal(), Signal()
        m.d.comb += wanted.eq(Cat(port.request.valid for port in self.ports))
        with m.If(inside):
            m.d.comb += pick.eq(last)
        with m.Else():
            round_robin(m, wanted, last, pick)
        m.d.comb += [
            room.eq(addresses.i.ready & beats.i.ready),
            owned.eq(wanted.bit_select(pick, 1)),
            taken.eq(owned & room),
            beats.i.valid.eq(taken),
            addresses.i.valid.eq(taken & ~inside),
            addresses.i.payload.id.eq(pick),
        ]
        with m.Switch(pick):
            for k, port in enumerate(self.ports):
                with m.Case(k):
                    m.d.comb += [
                        port.request.ready.eq(room),
                        addresses.i.payload.address.eq(port.request.payload.address),
                        addresses.i.payload.length.eq(port.request.payload.length),
                        beats.i.payload.data.eq(port.request.payload.data),
                        beats.i.payload.strobe.eq(port.request.payload.strobe),
                        beats.i.payload.last.eq(port.request.payload.last),
                    ]
        with m.If(taken):
            m.d.sync += [last.eq(pick), inside.eq(~beats.i.payload.last)]

        self._outputs(m, addresses, beats)

        # Responses, registered.
        bvalid, berror = Signal(n), Signal(reset_less=True)
        answer = Signal()
        m.d.comb += [self.bready.eq(1), answer.eq(bvalid.any())]
        m.d.sync += [
            bvalid.eq(Cat(self.bvalid & (self.bid == k) for k in range(n))),
            berror.eq(self.bresp[1]),
            self.counts.axi_write_errors.eq(answer & berror),
        ]
        for k, port in enumerate(self.ports):
            m.d.comb += [port.response.valid.eq(bvalid[k]), port.response.payload.error.eq(berror)]

        in_flight = Signal(_OPEN_BITS)
        m.d.sync += in_flight.eq(in_flight + (taken & ~inside) - answer)
        m.d.comb += self.idle.eq(~in_flight.any() & ~wanted.any())
        return m

    def _outputs(self, m, addresses, beats):
        """AW and W, straight from the FIFOs' output registers, and the count of bytes."""
        aw, w = addresses.o, beats.o
        m.d.comb += [
            self.awaddr.eq(aw.payload.address),
            self.awlen.eq(aw.payload.length),
            self.awid.eq(aw.payload.id),
            self.awvalid.eq(aw.valid),
            self.awsize.eq(exact_log2(self._axi_bytes)),
            self.awburst.eq(_INCR),
            aw.ready.eq(self.awready),
            self.wdata.eq(w.payload.data),
            self.wstrb.eq(w.payload.strobe),
            self.wlast.eq(w.payload.last),
            self.wvalid.eq(w.valid),
            w.ready.eq(self.wready),
        ]

        # Bytes written = strobes set, added up over two cycles.
        sent = Signal(self._axi_bytes)
        parts = Signal(data.ArrayLayout(4, self._axi_bytes // 8))
        m.d.sync += sent.eq(Mux(w.valid & w.ready, w.payload.strobe, 0))
        for k in range(self._axi_bytes // 8):
            m.d.sync += parts[k].eq(sum(sent[8 * k + i] for i in range(8)))
        m.d.sync += self.counts.axi_write_bytes.eq(sum(parts[k] for k in range(self._axi_bytes // 8)))


class AxiMaster(wiring.Component):
    """Both sides as one AXI4 master, and a register per requester; wiring only.

    Parameters
    ----------
    reads, writes : int
        Requesters on either side, 1 to 4.
    axi_bytes : int
        Width of the bus.

    Members
    -------
    reads : In(ReadPort()), one per reading requester
    writes : In(WritePort()), one per writing requester
    axi : Out(AxiMasterSignature())
    counts : Out(axi_*)
    idle : Out(1)
    """

    def __init__(self, reads, writes, axi_bytes=AXI_BYTES):
        _check_requesters("reads", reads)
        _check_requesters("writes", writes)
        self._axi_bytes = axi_bytes
        super().__init__(
            {
                "reads": In(ReadPort(axi_bytes)).array(reads),
                "writes": In(WritePort(axi_bytes)).array(writes),
                "axi": Out(AxiMasterSignature(axi_bytes)),
                "counts": Out(counts_layout(*_READ_COUNTS, *_WRITE_COUNTS)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.read = read = ReadMux(len(self.reads), self._axi_bytes)
        m.submodules.write = write = WriteMux(len(self.writes), self._axi_bytes)
        # A register in front of each arbiter: what a requester does before it offers a request
        # and what others do once theirs is taken would else be one long path.
        for side, ports, mux, shape in (
            ("read", self.reads, read, ReadRequest),
            ("write", self.writes, write, WriteBeat(self._axi_bytes)),
        ):
            for k, port in enumerate(ports):
                m.submodules[f"{side}_request{k}"] = buffer = StreamBuffer(shape)
                connect(m, flipped(port.request), buffer.i)
                connect(m, buffer.o, mux.ports[k].request)
                connect(m, mux.ports[k].response, flipped(port.response))
        for mux, prefixes, names in (
            (read, ("ar", "r"), _READ_COUNTS),
            (write, ("aw", "w", "b"), _WRITE_COUNTS),
        ):
            for name, member in _flat(prefixes, self._axi_bytes).items():
                if member.flow is Out:
                    m.d.comb += getattr(self.axi, name).eq(getattr(mux, name))
                else:
                    m.d.comb += getattr(mux, name).eq(getattr(self.axi, name))
            for name in names:
                m.d.comb += self.counts[name].eq(mux.counts[name])
        m.d.comb += self.idle.eq(read.idle & write.idle)
        return m
