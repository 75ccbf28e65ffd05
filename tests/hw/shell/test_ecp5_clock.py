"""Dividers of the PLL, within what Lattice's FPGA-TN-02200 allows."""

import pytest

from hw.shell.ecp5_clock import Ecp5Clock


@pytest.mark.parametrize("oscillator, mhz", [(100, 25), (100, 100 / 3), (100, 50), (100, 20), (100, 10), (100, 100), (12, 12)])
def test_dividers(oscillator, mhz):
    divider, output = Ecp5Clock("clk", mhz).dividers(oscillator)
    assert oscillator / divider == pytest.approx(mhz)
    assert 400 <= mhz * output <= 800 and 1 <= output <= 128 and 10 <= oscillator / divider <= 400


@pytest.mark.parametrize("mhz", [30, 3, 200])
def test_what_cannot_be_made(mhz):
    with pytest.raises(ValueError, match=rf"^core_mhz must be 100 over a whole number from 1 to 10, not {mhz}$"):
        Ecp5Clock("clk", mhz).dividers(100)
