"""`ShellCore`: the NIC with what every PCIe board puts beside it: BARs, MSI-X, time.

Domain `sync`. Towards the bridge it has two AXI4 interfaces of 512 or 256 bits, towards each MAC a pair of packet streams.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ..config import AXI_BYTES
from ..csr.axil import AxiLiteSignature
from ..dma.axi import AxiMasterSignature
from ..nic import Nic
from ..stream.axis import AxisSource
from ..stream.beat import byte_mask, packet_stream
from .axi_narrower import NARROW_BYTES, AxiNarrower
from .bars import BarAccess
from .message_writer import BusSignature, MessageWriter
from .msix import Msix

__all__ = ["ShellCore", "Prescaler"]


class Prescaler(wiring.Component):
    """One cycle of `tick` every `period_us` microseconds of a clock of `mhz`, to the nearest cycle."""

    tick: Out(1)

    def __init__(self, mhz, period_us):
        self._cycles = round(mhz * period_us)
        super().__init__()

    @property
    def cycles(self):
        """From one tick to the next."""
        return self._cycles

    def elaborate(self, platform):
        m = Module()
        left = Signal(range(self._cycles), init=self._cycles - 1)
        m.d.comb += self.tick.eq(left == 0)
        m.d.sync += left.eq(Mux(self.tick, self._cycles - 1, left - 1))
        return m


class ShellCore(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    config: NicConfig. mhz: frequency of `sync`.
    bus_bytes: bytes of a beat of the bridge: 64 or 32.

    Members
    -------
    host: In(BusSignature(bus_bytes)): what the host does to the BARs, at `BAR_OFFSETS`.
    memory: Out(BusSignature(bus_bytes)): host memory.
    msix_enable, msix_mask: In(1): of the function, in domain `sync`.
    rx: In(packet_stream(width, always_ready=True)).array(ports); tx: Out(packet_stream(width)).array(ports).
    """

    def __init__(self, config, mhz, bus_bytes=AXI_BYTES):
        if config.axi_bytes != AXI_BYTES:
            raise ValueError(f"axi_bytes must be {AXI_BYTES} beside PCI Express, not {config.axi_bytes}")
        if bus_bytes not in (AXI_BYTES, NARROW_BYTES):
            raise ValueError(f"bus_bytes must be {AXI_BYTES} or {NARROW_BYTES}, not {bus_bytes!r}")
        self._config, self._mhz, self._bus_bytes = config, mhz, bus_bytes
        super().__init__(
            {
                "host": In(BusSignature(bus_bytes)),
                "memory": Out(BusSignature(bus_bytes)),
                "msix_enable": In(1),
                "msix_mask": In(1),
                "rx": In(packet_stream(config.width, always_ready=True)).array(config.ports),
                "tx": Out(packet_stream(config.width)).array(config.ports),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.nic = nic = Nic(config)
        m.submodules.bars = bars = BarAccess(self._bus_bytes)
        m.submodules.msix = msix = Msix(config.queues)
        m.submodules.messages = messages = MessageWriter()
        m.submodules.prescaler = prescaler = Prescaler(self._mhz, config.tick_us)
        connect(m, flipped(self.host), bars.bus)
        if self._bus_bytes == AXI_BYTES:
            connect(m, messages.bus, flipped(self.memory))
        else:
            m.submodules.narrower = narrower = AxiNarrower()
            connect(m, messages.bus, narrower.wide)
            connect(m, narrower.narrow, flipped(self.memory))
        connect(m, bars.request, msix.request)
        connect(m, msix.response, bars.response)
        connect(m, msix.message, messages.message)
        self._connect_flat(m, nic, "m_axi", messages.core, AxiMasterSignature().members)
        self._connect_flat(m, nic, "s_axil", bars.axil, AxiLiteSignature().flip().members)
        m.d.comb += [
            nic.tick.eq(prescaler.tick),
            msix.irq.valid.eq(nic.irq_valid),
            msix.irq.p.vector.eq(nic.irq_vector),
            nic.irq_ready.eq(msix.irq.ready),
            msix.enable.eq(self.msix_enable),
            msix.mask.eq(self.msix_mask),
        ]
        for port, (rx, tx) in enumerate(zip(self.rx, self.tx, strict=True)):
            prefix = f"s_axis_rx{port}"
            m.d.comb += [
                getattr(nic, f"{prefix}_tdata").eq(rx.p.data),
                getattr(nic, f"{prefix}_tkeep").eq(byte_mask(rx.p.count, config.width)),
                getattr(nic, f"{prefix}_tlast").eq(rx.p.last),
                getattr(nic, f"{prefix}_tuser").eq(rx.p.err),
                getattr(nic, f"{prefix}_tvalid").eq(rx.valid),
            ]
            source = m.submodules[f"tx{port}"] = AxisSource(config.width)
            connect(m, source.o, flipped(tx))
            prefix = f"m_axis_tx{port}"
            m.d.comb += [
                *(getattr(source, name).eq(getattr(nic, f"{prefix}_{name}")) for name in ("tdata", "tkeep", "tlast", "tuser", "tvalid")),
                getattr(nic, f"{prefix}_tready").eq(source.tready),
            ]  # fmt: skip
        return m

    def _connect_flat(self, m, nic, prefix, other, members):
        """Join the core's members `prefix_*`, as it sees them, with those of the same names of `other`."""
        for name, member in members.items():
            mine, theirs = getattr(nic, f"{prefix}_{name}"), getattr(other, name)
            m.d.comb += theirs.eq(mine) if member.flow is Out else mine.eq(theirs)
