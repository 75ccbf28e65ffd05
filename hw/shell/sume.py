"""`SumeShell`: what surrounds the core on a NetFPGA SUME.

    SFP+ -- 10G MAC -- 8 to 32 bytes, packet crossing --+                    +-- AXI crossing -- PCIe bridge -- edge connector
            156.25 MHz                                  |                    |                   250 MHz
                                                        +-- ShellCore, sync -+
                                                            200 MHz

Clock domains: `sync`, the core's, 200 MHz, and `init`, 100 MHz, both from the board's oscillator through a PLL, so they are there
whatever the host and the cables do; `pcie`, the bridge's, which may stop; for each port those of `PortCrossing`. `sync` is in
reset while the bridge is, so a reset of the bus resets the NIC. `init` programs the chip that makes the reference clock of
the lanes, once; a reset of the bus leaves it alone.
"""

from amaranth import *
from amaranth.lib import io
from amaranth.lib.cdc import FFSynchronizer, ResetSynchronizer
from amaranth.lib.wiring import connect

from ..config import NicConfig
from .axi_crossing import AxiCrossing
from .axi_narrower import NARROW_BYTES
from .core import ShellCore
from .crossing import shell_constraints
from .message_writer import BusSignature
from .pcie import common_pins
from .pcie_virtex7 import HOST_ID_BITS, virtex7_bridge
from .pins import Blinker, drive
from .si5324 import ReferenceClock, Si5324Plan, switch
from .ten_gig_port import TenGigPort, quiet

__all__ = ["CORE_MHZ", "REFERENCE", "ROUTE", "SumeShell"]

CORE_MHZ = 200.0
_PCIE_MHZ = 250.0
_INIT_MHZ = 100.0
_WIDTH = 32

REFERENCE = Si5324Plan(crystal=114_285_000, n1_hs=9, nc1_ls=4, n2_hs=10, n2_ls=150_000, n3=30_476, bandwidth=1)
"""156.25 MHz: 114.285 MHz / 30476 = 3750 Hz, times 10 * 150000 = 5.625 GHz, divided by 9 * 4.

Dividers and the loop filter's step are those of the board maker's public reference design. Of the crystal it says nothing: 114.285 MHz
is this chip's usual one, and gives the frequency exactly. The step has no formula, it comes from the chip maker's program.
"""

ROUTE = (switch(0x74, 4),)
"""The I2C switch's branch with the clock chip (and the memory modules). Branches 0 to 3 are the SFP+ modules."""


class SumeShell(Elaboratable):
    """The whole of a card.

    board: `boards.Board`. config: NicConfig. Raises `ValueError` for what does not fit.
    """

    def __init__(self, board, config: NicConfig):
        if config.width != _WIDTH:
            raise ValueError(f"width must be {_WIDTH}, which the shell joins to its MACs, not {config.width}")
        self._board, self._config = board, config
        self._core = ShellCore(config, CORE_MHZ, NARROW_BYTES)
        self._ports = []
        for number, mac in enumerate(board.macs[: config.ports]):
            first = self._ports[0] if number else None
            self._ports.append(
                TenGigPort(number, mac, _WIDTH, config.max_frame, first=first, reference=f"{mac.resource}_refclk")
            )
        self._bridge = virtex7_bridge(board.pcie, config.queues)
        self._to_core = AxiCrossing(name="host", i_domain="pcie", o_domain="sync", size=NARROW_BYTES)
        self._to_host = AxiCrossing(name="memory", i_domain="sync", o_domain="pcie", size=NARROW_BYTES)

    @property
    def ips(self):
        """The vendor's blocks."""
        return [self._bridge, *(port.ip for port in self._ports)]

    def constraints(self):
        """XDC lines for what is known only after synthesis: the crossings."""
        return shell_constraints((*self._ports, self._to_core, self._to_host), max(_PCIE_MHZ, CORE_MHZ))

    def elaborate(self, platform):
        m = Module()
        for domain in ("init", "pcie", "sync", *(name for port in self._ports for name in port.domains)):
            m.domains += ClockDomain(domain)
        m.submodules.core = core = self._core
        m.submodules.host, m.submodules.memory = to_core, to_host = self._to_core, self._to_host
        running, reset_n, enable, mask = Signal(), Signal(), Signal(4), Signal(4)
        self._elaborate_clocks(m, platform, running)
        m.submodules += ResetSynchronizer(~reset_n | ~running, domain="sync")
        self._elaborate_bridge(m, platform, to_core.i, to_host.o, reset_n, enable, mask)
        connect(m, to_core.o, core.host)
        connect(m, core.memory, to_host.i)
        m.submodules += [FFSynchronizer(enable[0], core.msix_enable), FFSynchronizer(mask[0], core.msix_mask)]

        good = Signal()
        self._elaborate_reference(m, platform, good)
        for number, port in enumerate(self._ports):
            m.submodules[f"port{number}"] = port
            m.submodules[f"blinker{number}"] = blinker = Blinker()
            connect(m, port.rx, core.rx[number])
            connect(m, core.tx[number], port.tx)
            m.d.comb += [
                port.reference_good.eq(good),
                blinker.busy.eq(port.rx.valid | (port.tx.valid & port.tx.ready)),
                port.activity.eq(blinker.light),
            ]
        used = {(mac.resource, mac.number) for mac in self._board.macs[: len(self._ports)]}
        for name, number in platform.resources:
            if name == self._board.macs[0].resource and (name, number) not in used:
                m.submodules[f"quiet{number}"] = silent = Module()
                quiet(silent, platform.request(name, number, dir="-"))
        return m

    def _elaborate_clocks(self, m, platform, running):
        """200 MHz times 5, divided by 5 for `sync` and by 10 for `init`."""
        m.submodules.oscillator = oscillator = io.Buffer("i", platform.request("clk200", 0, dir="-"))
        feedback, outputs = Signal(), {"sync": Signal(name="pll_sync"), "init": Signal(name="pll_init")}
        m.submodules.pll = Instance(
            "PLLE2_BASE",
            p_CLKIN1_PERIOD=1e3 / CORE_MHZ,
            p_CLKFBOUT_MULT=5,
            p_CLKOUT0_DIVIDE=5,
            p_CLKOUT1_DIVIDE=10,
            i_CLKIN1=oscillator.i,
            i_CLKFBIN=feedback,
            i_PWRDWN=Const(0),
            i_RST=Const(0),
            o_CLKFBOUT=feedback,
            o_CLKOUT0=outputs["sync"],
            o_CLKOUT1=outputs["init"],
            o_LOCKED=running,
            **{f"o_CLKOUT{number}": Signal(name=f"pll_open{number}") for number in range(2, 6)},
        )
        for domain, clock in outputs.items():
            m.submodules[f"bufg_{domain}"] = Instance("BUFG", i_I=clock, o_O=ClockSignal(domain))
        m.submodules += ResetSynchronizer(~running, domain="init")

    def _elaborate_reference(self, m, platform, good):
        i2c, chip = platform.request("i2c", 0, dir="-"), platform.request("si5324", 0, dir="-")
        m.submodules.reference = reference = DomainRenamer("init")(ReferenceClock(REFERENCE, ROUTE, _INIT_MHZ))
        for name in ("scl", "sda"):
            # Nobody drives the bus high but its resistors.
            m.submodules[name] = line = io.Buffer("io", getattr(i2c, name))
            m.d.comb += [
                line.o.eq(0),
                line.oe.eq(getattr(reference, f"{name}_low")),
                getattr(reference, name).eq(line.i),
            ]
        drive(m, "mux_reset", i2c.mux_reset, ~reference.reset)
        drive(m, "chip_reset", chip.rst, ~reference.reset)
        drive(m, "led0", platform.request("led", 0, dir="-"), reference.good)
        m.d.comb += good.eq(reference.good)

    def _elaborate_bridge(self, m, platform, host, memory, reset_n, enable, mask):
        edge = platform.request(self._board.pcie.resource, 0, dir="-")
        clock, up = Signal(), Signal()
        m.submodules.refclk = Instance(
            "IBUFDS_GTE2", i_I=edge.refclk.p, i_IB=edge.refclk.n, i_CEB=Const(0), o_O=clock, o_ODIV2=Signal(name="refclk_half")
        )
        drive(m, "led1", platform.request("led", 1, dir="-"), up)
        members = BusSignature(NARROW_BYTES).members
        axi = {f"m_axi_{name}": getattr(host, name) for name in members}
        # The bridge's identifiers are a bit narrower than the core's.
        for name in ("awid", "arid", "bid", "rid"):
            axi[f"m_axi_{name}"] = axi[f"m_axi_{name}"][:HOST_ID_BITS]
        m.d.comb += [host.awid[HOST_ID_BITS:].eq(0), host.arid[HOST_ID_BITS:].eq(0)]
        axi |= {f"s_axi_{name}": getattr(memory, name) for name in members}
        m.submodules.bridge = self._bridge.instance(
            **self._bridge.low("s_axi_ctl_", "s_axi_awregion", "s_axi_arregion"),
            **axi,
            **common_pins(m, edge, reset_n, enable, mask),
            refclk=clock,
            user_link_up=up,
        )  # fmt: skip
