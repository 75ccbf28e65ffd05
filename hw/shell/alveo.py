"""`AlveoShell`: what surrounds the core on an Alveo card.

    QSFP -- CMAC -- packet crossing --+                          +-- BARs -- PCIe bridge -- edge connector
            322.27 MHz                |                          |           250 MHz
                                      +-- ShellCore, domain sync +-- host memory, MSI-X messages

Clock domains: `init`, free-running, from the board's oscillator; `pcie`, the bridge's; `sync`, the core's, which is
either that (`core_clock="pcie"`) or the clock of MAC 0 (`core_clock="mac"`), with crossings of AXI then; for each port those of
`CmacPort`. `sync` is in reset while the bridge is, so a reset of the bus resets the NIC.
"""

from amaranth import *
from amaranth.lib import io
from amaranth.lib.cdc import FFSynchronizer, ResetSynchronizer
from amaranth.lib.wiring import connect

from ..config import NicConfig
from . import cmac, pcie
from .axi_crossing import AxiCrossing
from .cmac_port import CmacPort, hold_pins
from .core import ShellCore
from .crossing import shell_constraints
from .message_writer import BusSignature
from .pins import Blinker, drive

__all__ = ["CORE_CLOCKS", "PCIE_MHZ", "AlveoShell"]

PCIE_MHZ = 250.0
CORE_CLOCKS = {"pcie": PCIE_MHZ, "mac": cmac.MHZ}
"""What may drive the core -> MHz."""

_INIT_MHZ = 100.0
_OSCILLATORS = {"clk100": 1, "clk300": 3}
"""Name of the board's clock -> what it is divided by to give `init`."""

_LIGHTS = 3
"""Per cage: activity, link green, link yellow."""


class AlveoShell(Elaboratable):
    """The whole of a card.

    board: `boards.Board`. config: NicConfig. core_clock: of `CORE_CLOCKS`. Raises `ValueError` for what does not fit.
    """

    def __init__(self, board, config: NicConfig, core_clock="pcie"):
        if core_clock not in CORE_CLOCKS:
            raise ValueError(f"core_clock must be one of {', '.join(CORE_CLOCKS)}, not {core_clock!r}")
        if config.width != cmac.WIDTH:
            raise ValueError(f"width must be {cmac.WIDTH}, which is the MAC's, not {config.width}")
        if config.ports > len(board.macs):
            raise ValueError(f"ports must be at most {len(board.macs)} on {board.title}, not {config.ports}")
        self._board, self._config, self._core_clock = board, config, core_clock
        self._core = ShellCore(config, CORE_CLOCKS[core_clock])
        self._ports = [
            CmacPort(number, mac, config.max_frame, _INIT_MHZ) for number, mac in enumerate(board.macs[: config.ports])
        ]
        self._bridge = pcie.bridge(board.pcie, config.queues)
        self._axi = {}
        if core_clock != "pcie":
            self._axi = {
                "host": AxiCrossing(name="host", i_domain="pcie", o_domain="sync"),
                "memory": AxiCrossing(name="memory", i_domain="sync", o_domain="pcie"),
            }

    @property
    def ips(self):
        """The vendor's blocks."""
        return [self._bridge, *(port.ip for port in self._ports)]

    def constraints(self):
        """XDC lines for what is known only after synthesis: the crossings."""
        return shell_constraints((*self._ports, *self._axi.values()), max(PCIE_MHZ, cmac.MHZ))

    def elaborate(self, platform):
        m = Module()
        for domain in ("init", "pcie", "sync", *(name for port in self._ports for name in port.domains)):
            m.domains += ClockDomain(domain)
        m.submodules.core = core = self._core
        host, memory = BusSignature().create(), BusSignature().flip().create()
        enable, mask, reset_n = Signal(4), Signal(4), Signal()
        self._elaborate_init(m, platform)
        self._elaborate_bridge(m, platform, host, memory, enable, mask, reset_n)

        if self._core_clock == "pcie":
            m.d.comb += [ClockSignal("sync").eq(ClockSignal("pcie")), ResetSignal("sync").eq(ResetSignal("pcie"))]
            connect(m, host, core.host)
            connect(m, core.memory, memory)
        else:
            port = self._ports[0]
            m.d.comb += ClockSignal("sync").eq(port.clock)
            m.submodules += ResetSynchronizer(~reset_n | ~port.clock_good, domain="sync")
            m.submodules.host, m.submodules.memory = to_core, to_host = self._axi["host"], self._axi["memory"]
            connect(m, host, to_core.i)
            connect(m, to_core.o, core.host)
            connect(m, core.memory, to_host.i)
            connect(m, to_host.o, memory)
        m.submodules += [FFSynchronizer(enable[0], core.msix_enable), FFSynchronizer(mask[0], core.msix_mask)]

        for number, port in enumerate(self._ports):
            m.submodules[f"port{number}"] = port
            connect(m, port.rx, core.rx[number])
            connect(m, core.tx[number], port.tx)
            self._elaborate_lights(m, platform, number, port)
        for mac in self._board.macs[len(self._ports) :]:
            hold_pins(m, platform.request(mac.resource, mac.number, dir="-"), used=False)
        self._elaborate_safe(m, platform)
        return m

    def _elaborate_init(self, m, platform):
        name = next(name for name, number in platform.resources if name in _OSCILLATORS)
        m.submodules.oscillator = oscillator = io.Buffer("i", platform.request(name, 0, dir="-"))
        m.submodules.divider = Instance(
            "BUFGCE_DIV",
            p_BUFGCE_DIVIDE=_OSCILLATORS[name],
            i_I=oscillator.i,
            i_CE=Const(1),
            i_CLR=Const(0),
            o_O=ClockSignal("init"),
        )
        # Registers of the device start with their initial values, so this begins at once and ends after 2^8 cycles.
        started = Signal(9, reset_less=True)
        m.d.init += started.eq(Mux(started[-1], started, started + 1))
        m.d.comb += ResetSignal("init").eq(~started[-1])

    def _elaborate_bridge(self, m, platform, host, memory, enable, mask, reset_n):
        edge = platform.request(self._board.pcie.resource, 0, dir="-")
        clock, clock_gt = Signal(), Signal()
        m.submodules.refclk = Instance(
            "IBUFDS_GTE4", i_I=edge.refclk.p, i_IB=edge.refclk.n, i_CEB=Const(0), o_O=clock_gt, o_ODIV2=clock
        )
        axi = {f"m_axib_{name}": getattr(host, name) for name in BusSignature().members}
        axi |= {f"s_axib_{name}": getattr(memory, name) for name in BusSignature().members}
        m.submodules.bridge = self._bridge.instance(
            **self._bridge.low("s_axil_", "usr_irq", "s_axib_awregion", "s_axib_arregion"),
            **axi,
            **pcie.common_pins(m, edge, reset_n, enable, mask),
            sys_clk=clock,
            sys_clk_gt=clock_gt,
        )  # fmt: skip

    def _elaborate_lights(self, m, platform, number, port):
        """Activity blinks with every packet; green: the link is up; yellow: it is not."""
        lights = [light for light in range(_LIGHTS * number, _LIGHTS * (number + 1)) if ("led", light) in platform.resources]
        if not lights:
            return
        m.submodules[f"blinker{number}"] = blinker = Blinker()
        m.d.comb += blinker.busy.eq(port.rx.valid | (port.tx.valid & port.tx.ready))
        for light, value in zip(lights, (blinker.light, port.link, ~port.link), strict=True):
            drive(m, f"led{light}", platform.request("led", light, dir="-"), value)

    def _elaborate_safe(self, m, platform):
        """Wires to the card's own controller, whose other end expects an idle line."""
        if ("satellite", 0) in platform.resources:
            drive(m, "satellite", platform.request("satellite", 0, dir="-").uart.tx, 1)
        if ("hbm_cattrip", 0) in platform.resources:
            # High would tell the card that its memory is too hot, and it would take the power away.
            drive(m, "cattrip", platform.request("hbm_cattrip", 0, dir="-"), 0)
