"""RGMII pins on an ECP5: `RgmiiPins`, from and to GMII (RGMII 2.0; Lattice FPGA-TN-02035 for the cells).

Both directions run on the PHY's receive clock, which whoever holds this makes domain `mac`: at 1 Gbit/s the PHY makes
125 MHz of its own where the cable gives it none. A byte travels as two nibbles, the lower one with the rising
edge; RX_CTL is RX_DV with the rising edge and RX_DV ^ RX_ER with the falling one, likewise TX_CTL.

Clock and data leave with the same edge. A PHY that does not delay TX_CLK itself needs it 2 ns later: `tx_delay_ps`.
The receive side relies on the PHY's own delay.
"""

from amaranth import *
from amaranth.lib import io, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["RgmiiPins"]

_TAP_PS = 25
_TAPS = 127


class RgmiiPins(wiring.Component):
    """See the module's text. Latency: of the DDR registers, 2 to 3 cycles each way.

    Parameters
    ----------
    pads: the port as `platform.request(..., dir="-")` gives it: rx_clk, rx_ctl, rx_data, tx_clk, tx_ctl, tx_data.
    tx_delay_ps: by how much TX_CLK is late, in picoseconds; steps of 25.

    Members
    -------
    clock: Out(1): RX_CLK.
    rxd: Out(8). rx_dv, rx_er: Out(1). txd: In(8). tx_en, tx_er: In(1). Domain `mac`.
    """

    clock: Out(1)
    rxd: Out(8)
    rx_dv: Out(1)
    rx_er: Out(1)
    txd: In(8)
    tx_en: In(1)
    tx_er: In(1)

    def __init__(self, pads, *, tx_delay_ps=0):
        if tx_delay_ps % _TAP_PS or not 0 <= tx_delay_ps <= _TAP_PS * _TAPS:
            raise ValueError(
                f"tx_delay_ps must be a multiple of {_TAP_PS} from 0 to {_TAP_PS * _TAPS}, not {tx_delay_ps!r}"
            )
        self._pads, self._taps = pads, tx_delay_ps // _TAP_PS
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.rx_clk = clock = io.Buffer("i", self._pads.rx_clk)
        m.submodules.rx_ctl = rx_ctl = io.DDRBuffer("i", self._pads.rx_ctl, i_domain="mac")
        m.submodules.rx_data = rx_data = io.DDRBuffer("i", self._pads.rx_data, i_domain="mac")
        m.d.comb += [
            self.clock.eq(clock.i),
            self.rxd.eq(Cat(rx_data.i[0], rx_data.i[1])),
            self.rx_dv.eq(rx_ctl.i[0]),
            self.rx_er.eq(rx_ctl.i[0] ^ rx_ctl.i[1]),
        ]
        self._output(m, "tx_clk", self._pads.tx_clk, Const(1), Const(0), self._taps)
        self._output(m, "tx_ctl", self._pads.tx_ctl, self.tx_en, self.tx_en ^ self.tx_er)
        self._output(m, "tx_data", self._pads.tx_data, self.txd[:4], self.txd[4:])
        return m

    def _output(self, m, name, port, rising, falling, taps=0):
        """Amaranth's DDR buffer has no delay, and registers for an output enable that nothing here needs."""
        for bit in range(len(port)):
            q, late = Signal(name=f"{name}_q{bit}"), Signal(name=f"{name}_late{bit}")
            m.submodules[f"{name}_ddr{bit}"] = Instance(
                "ODDRX1F", i_SCLK=ClockSignal("mac"), i_RST=Const(0), i_D0=rising[bit], i_D1=falling[bit], o_Q=q
            )
            if taps:
                m.submodules[f"{name}_delay{bit}"] = Instance(
                    "DELAYG", p_DEL_MODE="USER_DEFINED", p_DEL_VALUE=taps, i_A=q, o_Z=late
                )
            else:
                m.d.comb += late.eq(q)
            m.submodules[f"{name}_buf{bit}"] = Instance("OB", i_I=late, o_O=port.io[bit])
