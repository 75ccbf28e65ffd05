"""`Ecp5Clock`: the core's clock and reset from the board's oscillator (Lattice FPGA-TN-02200, EHXPLLL)."""

from amaranth import *
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer

__all__ = ["Ecp5Clock"]

_VCO_MHZ = 600
"""At most, and the VCO has a range from 400 to 800 MHz."""
_DIVIDERS = range(1, 129)
_RATIO = 10
"""Largest divider of the input: the phase detector needs 10 MHz at least."""


class Ecp5Clock(Elaboratable):
    """Drives domain `sync`, which whoever holds it must define; in reset until the PLL has locked.

    name: the platform's resource of the oscillator. mhz: of `sync`; the oscillator's over a whole number.
    """

    def __init__(self, name, mhz):
        self._name, self._mhz = name, mhz

    def dividers(self, input_mhz):
        """(of the input, of the output); the VCO runs at `mhz` times the latter. Raises `ValueError` if there are none."""
        ratio = input_mhz / self._mhz
        output = round(_VCO_MHZ // self._mhz)
        if ratio.is_integer() and 1 <= ratio <= _RATIO and output in _DIVIDERS:
            return int(ratio), output
        raise ValueError(f"core_mhz must be {input_mhz:g} over a whole number from 1 to {_RATIO}, not {self._mhz!r}")

    def elaborate(self, platform):
        m = Module()
        resource = platform.lookup(self._name)
        input_mhz = resource.clock.frequency / 1e6
        m.submodules.oscillator = oscillator = io.Buffer("i", platform.request(self._name, 0, dir="-"))
        divider, output = self.dividers(input_mhz)
        locked, fed_back = Signal(), Signal()
        # Feedback is the output itself, so the phase detector runs at the core's frequency: input / divider.
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=f"{input_mhz:g}", a_FREQUENCY_PIN_CLKOP=f"{self._mhz:g}",
            a_ICP_CURRENT="12", a_LPF_RESISTOR="8",
            p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED", p_STDBY_ENABLE="DISABLED", p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA", p_CLKOP_ENABLE="ENABLED", p_FEEDBK_PATH="CLKOP",
            p_CLKI_DIV=divider, p_CLKFB_DIV=1, p_CLKOP_DIV=output, p_CLKOP_CPHASE=output - 1, p_CLKOP_FPHASE=0,
            i_CLKI=oscillator.i, i_CLKFB=fed_back, o_CLKOP=fed_back, o_LOCK=locked,
            i_RST=Const(0), i_STDBY=Const(0), i_PHASESEL0=Const(0), i_PHASESEL1=Const(0), i_PHASEDIR=Const(1),
            i_PHASESTEP=Const(1), i_PHASELOADREG=Const(1), i_PLLWAKESYNC=Const(0), i_ENCLKOP=Const(0),
        )  # fmt: skip
        m.d.comb += ClockSignal("sync").eq(fed_back)
        m.submodules += ResetSynchronizer(~locked, domain="sync")
        return m
