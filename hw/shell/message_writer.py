"""`MessageWriter`: MSI-X messages on the core's way to host memory.

A message is a write like any other, so the rules of PCI Express keep it behind the writes that it tells of: the core
asks for an interrupt once the write of the entry has been answered, and a posted write never overtakes another. An
interface of the PCIe block beside the data has no such promise.

* The core's bursts pass unchanged and a cycle later. A message waits until every burst of which the address or a beat
  has passed is complete, and new bursts wait for it.
* Throughput: one beat per cycle; a message takes one. Registered: AW and W; their `ready` depends on the bus's.
* Identifiers: the core's, with a bit in front that marks messages. A message's answer is not looked at.
* Overflow: cannot happen. Reset: forgets what is in flight, as the core does, so the bus must be reset too.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out, Signature

from ..config import AXI_BYTES
from ..dma.axi import AXI_ID_BITS, AxiMasterSignature
from ..stream.buffer import StreamBuffer
from .msix import Message

__all__ = ["BUS_ID_BITS", "BusSignature", "MessageWriter"]

BUS_ID_BITS = 4
"""Width of an identifier on the PCIe bridge."""

_IDS = ("awid", "bid", "arid", "rid")
_INCR = 0b01
_SIZE = AXI_BYTES.bit_length() - 1


class BusSignature(Signature):
    """The core's AXI4 master with the bridge's identifiers; `size`: bytes of a beat, a power of two."""

    def __init__(self, size=AXI_BYTES):
        widths = dict.fromkeys(_IDS, BUS_ID_BITS) | {"wdata": 8 * size, "wstrb": size, "rdata": 8 * size}
        members = AxiMasterSignature().members
        super().__init__({name: member.flow(widths.get(name, member.shape)) for name, member in members.items()})


class MessageWriter(wiring.Component):
    """See the module's text.

    Members
    -------
    core: In(AxiMasterSignature()); bus: Out(BusSignature()).
    message: In(stream of Message).
    """

    core: In(AxiMasterSignature())
    bus: Out(BusSignature())
    message: In(stream.Signature(Message))

    def elaborate(self, platform):
        m = Module()
        core, bus, message = self.core, self.bus, self.message

        # Reads pass by.
        for name, member in AxiMasterSignature().members.items():
            if name.startswith(("ar", "r")):
                source, target = (core, bus) if member.flow is Out else (bus, core)
                m.d.comb += getattr(target, name).eq(getattr(source, name))

        channels = {}
        for channel in ("aw", "w"):
            fields = {
                name.removeprefix(channel): len(getattr(bus, name))
                for name in BusSignature().members
                if name.startswith(channel) and not name.endswith(("valid", "ready"))
            }
            buffer = channels[channel] = StreamBuffer(StructLayout(fields))
            m.submodules[channel] = buffer
            m.d.comb += [
                getattr(bus, f"{channel}valid").eq(buffer.o.valid),
                buffer.o.ready.eq(getattr(bus, f"{channel}ready")),
                *(getattr(bus, f"{channel}{name}").eq(buffer.o.p[name]) for name in fields),
                *(buffer.i.p[name].eq(getattr(core, f"{channel}{name}")) for name in fields),
            ]
        aw, w = channels["aw"].i, channels["w"].i

        # Bursts whose address has passed, less those whose last beat has; and whether a burst's beats are passing.
        ahead, inside = Signal(signed(8)), Signal()
        need_aw, need_w = (ahead < 0) | (inside & (ahead == 0)), inside | (ahead > 0)
        aw_go, w_go, send = Signal(), Signal(), Signal()
        m.d.comb += [
            # The counter is far wider than the core's FIFOs, which bound it on the low side.
            aw_go.eq(Mux(message.valid, need_aw, ahead < 64)),
            w_go.eq(Mux(message.valid, need_w, 1)),
            send.eq(message.valid & ~need_aw & ~need_w & aw.ready & w.ready),
            message.ready.eq(send),
            aw.valid.eq((core.awvalid & aw_go) | send),
            w.valid.eq((core.wvalid & w_go) | send),
            core.awready.eq(aw.ready & aw_go),
            core.wready.eq(w.ready & w_go),
        ]
        aw_done, w_done = core.awvalid & core.awready, core.wvalid & core.wready
        m.d.sync += ahead.eq(ahead + aw_done - (w_done & core.wlast))
        with m.If(w_done):
            m.d.sync += inside.eq(~core.wlast)

        lane = message.p.address[2 : _SIZE]
        with m.If(send):
            m.d.comb += [
                aw.p.id.eq(1 << AXI_ID_BITS),
                aw.p.addr.eq(message.p.address),
                aw.p.len.eq(0),
                aw.p.size.eq(_SIZE),
                aw.p.burst.eq(_INCR),
                w.p.data.eq(message.p.data.replicate(AXI_BYTES // 4)),
                w.p.strb.eq(Cat((lane == at).replicate(4) for at in range(AXI_BYTES // 4))),
                w.p.last.eq(1),
            ]

        ours = bus.bid[AXI_ID_BITS]
        m.d.comb += [
            core.bid.eq(bus.bid),
            core.bresp.eq(bus.bresp),
            core.bvalid.eq(bus.bvalid & ~ours),
            bus.bready.eq(core.bready | ours),
        ]
        return m
