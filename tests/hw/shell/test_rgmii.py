# amaranth: UnusedElaboratable=no
"""`RgmiiPins` on models of the device's cells, with an RGMII PHY written from the standard (RGMII 2.0, 3.0) on the wires."""

import pytest
from amaranth import *
from amaranth.lib import data
from amaranth.sim import Simulator

from hw.shell import rgmii
from hw.shell.rgmii import RgmiiPins

PERIOD = 8e-9


class Wires:
    """A port's pins as signals."""

    def __init__(self, name, width):
        self.io = Signal(width, name=name)

    def __len__(self):
        return len(self.io)


class Pads:
    def __init__(self):
        for name, width in {"rx_clk": 1, "rx_ctl": 1, "rx_data": 4, "tx_clk": 1, "tx_ctl": 1, "tx_data": 4}.items():
            setattr(self, name, Wires(name, width))


class Buffer(Elaboratable):
    def __init__(self, direction, port):
        self.i = port.io

    def elaborate(self, platform):
        return Module()


class InputDdr(Elaboratable):
    """IDDRX1F: Q0 is what was there at the rising edge, Q1 at the falling edge after it; both change with rising edges."""

    def __init__(self, direction, port, i_domain):
        self._port, self.i = port.io, Signal(data.ArrayLayout(len(port), 2))

    def elaborate(self, platform):
        m = Module()
        rising, falling = Signal.like(self._port), Signal.like(self._port)
        m.d.mac += [rising.eq(self._port), self.i[0].eq(rising), self.i[1].eq(falling)]
        m.d.fall += falling.eq(self._port)
        return m


class OutputDdr(Elaboratable):
    """ODDRX1F: D0 while the clock is high, then D1."""

    def __init__(self, d0, d1, q):
        self._d0, self._d1, self._q = d0, d1, q

    def elaborate(self, platform):
        m = Module()
        d0, d1 = Signal(), Signal()
        m.d.mac += [d0.eq(self._d0), d1.eq(self._d1)]
        m.d.comb += self._q.eq(Mux(ClockSignal("mac"), d0, d1))
        return m


class Wire(Elaboratable):
    def __init__(self, here, there):
        self._here, self._there = here, there

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self._there.eq(self._here)
        return m


def cell(kind, **pins):
    if kind == "ODDRX1F":
        return OutputDdr(pins["i_D0"], pins["i_D1"], pins["o_Q"])
    assert kind == "OB"
    return Wire(pins["i_I"], pins["o_O"])


@pytest.fixture
def pads(monkeypatch):
    monkeypatch.setattr(rgmii, "Instance", cell)
    monkeypatch.setattr(rgmii.io, "Buffer", Buffer)
    monkeypatch.setattr(rgmii.io, "DDRBuffer", InputDdr)
    return Pads()


def simulate(dut, testbench):
    top = Module()
    mac, fall = ClockDomain("mac"), ClockDomain("fall", clk_edge="neg", reset_less=True)
    top.domains += [mac, fall]
    top.d.comb += fall.clk.eq(mac.clk)
    top.submodules.dut = dut
    sim = Simulator(top)
    sim.add_clock(PERIOD, domain="mac")
    sim.add_testbench(testbench)
    sim.run()


# Byte, valid, error.
LINE = [(0x12, 1, 0), (0xF0, 1, 0), (0x0F, 1, 1), (0xA5, 1, 0), (0x00, 0, 0), (0x5B, 1, 0), (0xFF, 0, 0)]


def test_receive(pads):
    dut, got = RgmiiPins(pads), []

    async def phy(ctx):
        await ctx.tick("mac")
        # Data change 2 ns before the edge by which they are taken.
        await ctx.delay(PERIOD - 2e-9)
        for octet, valid, error in [*LINE, *[(0, 0, 0)] * 4]:
            for nibble, control in ((octet & 15, valid), (octet >> 4, valid ^ error)):
                ctx.set(pads.rx_data.io, nibble)
                ctx.set(pads.rx_ctl.io, control)
                await ctx.delay(PERIOD / 2)
            got.append((ctx.get(dut.rxd), ctx.get(dut.rx_dv), ctx.get(dut.rx_er)))

    simulate(dut, phy)
    assert any(got[late : late + len(LINE)] == LINE for late in range(4)), got


def test_transmit(pads):
    dut, got = RgmiiPins(pads), []

    async def core(ctx):
        for octet, valid, error in [*LINE, *[(0, 0, 0)] * 4]:
            ctx.set(dut.txd, octet)
            ctx.set(dut.tx_en, valid)
            ctx.set(dut.tx_er, error)
            await ctx.tick("mac")
            halves = []
            for level in (1, 0):
                await ctx.delay(PERIOD / 4)
                assert ctx.get(pads.tx_clk.io) == level
                halves.append((ctx.get(pads.tx_data.io), ctx.get(pads.tx_ctl.io)))
                await ctx.delay(PERIOD / 4 if level else 0)
            (low, enable), (high, control) = halves
            got.append((low | high << 4, enable, enable ^ control))

    simulate(dut, core)
    assert any(got[late : late + len(LINE)] == LINE for late in range(4)), got


@pytest.mark.parametrize("delay", [-25, 10, 3200])
def test_delays(delay, pads):
    with pytest.raises(ValueError, match=rf"^tx_delay_ps must be a multiple of 25 from 0 to 3175, not {delay}$"):
        RgmiiPins(pads, tx_delay_ps=delay)
