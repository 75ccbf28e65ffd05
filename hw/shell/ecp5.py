"""`Ecp5Shell`: what surrounds the core on an ECP5 board with gigabit PHYs and no PCI Express.

    PHY of the network -- RgmiiPort --+                   one PHY for both -- RgmiiPort -- SharedPort --+-- core
                                      +-- LinkedNic   or                                                +-- host link
    PHY of the host ----- RgmiiPort --+

Clock domains: `sync`, the core's, from a PLL; for each port those of `RgmiiPort`. Lights, as far as there are: the network's
link, the host's link, something is being done.
"""

from amaranth import *
from amaranth.lib.wiring import connect

from ..config import NicConfig
from ..stream.axis import AxisSource
from ..stream.beat import byte_mask
from .core import Prescaler
from .ecp5_clock import Ecp5Clock
from .host_link_nic import LinkedNic
from .pins import drive
from .rgmii_port import WIDTH, RgmiiPort
from .shared_port import SharedPort

__all__ = ["LINK_MAC", "Ecp5Shell"]

LINK_MAC = 0x02_AC_C7_00_00_01
"""The board's address on the host link, locally administered; the same in all boards. (The core's own is a register.)"""

_OSCILLATOR = "clk100"
_BLINK_BITS = 22
_LINK_FRAME = 1514


class Ecp5Shell(Elaboratable):
    """The whole of a board.

    board: `boards.Board`; its `link` is the port of the host link, None: the network's port carries both.
    config: NicConfig. Raises `ValueError` for what does not fit.
    """

    def __init__(self, board, config: NicConfig):
        if config.width != WIDTH:
            raise ValueError(f"width must be {WIDTH}, which is the MAC's, not {config.width}")
        if config.ports != 1:
            raise ValueError(f"ports must be 1 on {board.title}, not {config.ports}")
        self._board, self._config = board, config

    def elaborate(self, platform):
        m = Module()
        board, config = self._board, self._config
        frame = max(config.max_frame, _LINK_FRAME)
        macs = [board.macs[0], *([board.link] if board.link else [])]
        ports = [RgmiiPort(number, mac, frame, board.core_mhz) for number, mac in enumerate(macs)]
        for domain in ("sync", *(name for port in ports for name in port.domains)):
            m.domains += ClockDomain(domain)
        m.submodules.clock = Ecp5Clock(_OSCILLATOR, board.core_mhz)
        m.submodules.linked = linked = LinkedNic(config)
        m.submodules.prescaler = prescaler = Prescaler(board.core_mhz, config.tick_us)
        m.d.comb += [linked.mac.eq(LINK_MAC), linked.tick.eq(prescaler.tick)]
        for number, port in enumerate(ports):
            m.submodules[f"port{number}"] = port

        if board.link:
            joints = [(port.rx, port.tx) for port in ports]
        else:
            m.submodules.shared = shared = SharedPort()
            connect(m, ports[0].rx, shared.rx)
            connect(m, shared.tx, ports[0].tx)
            joints = [(shared.network_rx, shared.network_tx), (shared.link_rx, shared.link_tx)]
        for (rx, tx), come, go in zip(joints, ("s_axis_rx0", "s_axis_link"), ("m_axis_tx0", "m_axis_link"), strict=True):
            self._join(m, linked, come, go, rx, tx)
        self._elaborate_lights(m, platform, (ports[0].link, ports[-1].link, linked.busy))
        return m

    def _join(self, m, linked, come, go, rx, tx):
        """Streams of a port with the AXI4-Streams of `linked` that have these prefixes."""
        m.d.comb += [
            getattr(linked, f"{come}_tdata").eq(rx.p.data),
            getattr(linked, f"{come}_tkeep").eq(byte_mask(rx.p.count, WIDTH)),
            getattr(linked, f"{come}_tlast").eq(rx.p.last),
            getattr(linked, f"{come}_tuser").eq(rx.p.err),
            getattr(linked, f"{come}_tvalid").eq(rx.valid),
        ]
        m.submodules[go] = source = AxisSource(WIDTH)
        connect(m, source.o, tx)
        m.d.comb += [
            *(getattr(source, name).eq(getattr(linked, f"{go}_{name}")) for name in ("tdata", "tkeep", "tlast", "tuser", "tvalid")),
            getattr(linked, f"{go}_tready").eq(source.tready),
        ]  # fmt: skip

    def _elaborate_lights(self, m, platform, values):
        """Whatever is being done is seen for some milliseconds."""
        *links, busy = values
        left = Signal(_BLINK_BITS)
        m.d.sync += left.eq(Mux(busy, ~0, Mux(left.any(), left - 1, 0)))
        for number, value in enumerate((*links, left.any())):
            for name in ("led", "rgb_led"):
                if (name, number) in platform.resources:
                    pads = platform.request(name, number, dir="-")
                    colours = {"": pads} if name == "led" else {colour: getattr(pads, colour) for colour in "rgb"}
                    for colour, pad in colours.items():
                        drive(m, f"{name}{number}{colour}", pad, value if colour in ("", "g") else 0)
