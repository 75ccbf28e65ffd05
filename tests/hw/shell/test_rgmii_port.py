# amaranth: UnusedElaboratable=no
"""`RgmiiPort` from the wires of its PHY to the core and back, on models of the device's cells."""

import zlib

from amaranth import *
from amaranth.lib import data
from amaranth.lib.wiring import connect
from amaranth.sim import Simulator

import boards
from hw.shell import clock_meter, pins
from hw.shell.rgmii_port import RgmiiPort
from hw.stream.beat import BeatLayout
from hw.stream.fifo import StreamFifo

from ..simulate import packets
from .test_rgmii import Wires, pads

__all__ = ["pads"]

PERIOD = 8e-9
MAC = boards.load("versa_ecp5_5g").macs[0]
FRAMES = [bytes(range(60)), bytes(reversed(range(113)))]


class ResetBuffer(Elaboratable):
    def __init__(self, direction, port):
        self.o, self._pin = Signal(), port.io

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self._pin.eq(self.o)
        return m


class Platform:
    def __init__(self, port):
        self._port = port

    def request(self, name, number, dir):
        assert (name, number, dir) == ("eth_rgmii", 0, "-")
        return self._port


class Loop(Elaboratable):
    """The port, with what it receives sent back."""

    def __init__(self):
        self.port = RgmiiPort(0, MAC, 1514, 25.0)

    def elaborate(self, platform):
        m = Module()
        m.submodules.port = port = self.port
        m.submodules.queue = queue = StreamFifo(BeatLayout(8), 64)
        m.d.comb += [queue.i.payload.eq(port.rx.payload), queue.i.valid.eq(port.rx.valid)]
        connect(m, queue.o, port.tx)
        return m


def line(frame):
    return bytes([0x55] * 7 + [0xD5]) + frame + zlib.crc32(frame).to_bytes(4, "little")


def test_frames_in_and_out(pads, monkeypatch):
    monkeypatch.setattr(pins.io, "Buffer", _buffers(pins.io.Buffer))
    monkeypatch.setattr(clock_meter, "_WINDOW_US", 5)  # for a short test
    pads.rst = Wires("rst", 1)
    dut, over, received, sent = Loop(), [], [], []
    top = Module()
    fall = ClockDomain("fall", clk_edge="neg", reset_less=True)
    top.domains += [ClockDomain("sync"), ClockDomain("mac0"), ClockDomain("port0"), fall]
    top.d.comb += fall.clk.eq(pads.rx_clk.io)
    top.submodules.dut = Fragment.get(dut, Platform(pads))
    sim = Simulator(top)
    sim.add_clock(40e-9, domain="sync")

    async def phy(ctx):
        async def cycles(octets, valid):
            for octet in octets:
                # Data change 2 ns before the clock does, and are sampled from the other side as it falls and rises.
                for level in (1, 0):
                    ctx.set(pads.rx_data.io, octet >> (0 if level else 4) & 15)
                    ctx.set(pads.rx_ctl.io, valid)
                    await ctx.delay(2e-9)
                    ctx.set(pads.rx_clk.io, level)
                    await ctx.delay(2e-9)
                    halves.append((ctx.get(pads.tx_data.io), ctx.get(pads.tx_ctl.io)))
                (low, enable), (high, control) = halves[-2:]
                assert enable == control
                sent.append((low | high << 4) if enable else None)

        halves = []
        # A bad frame before the clock has been found good: nothing of it may come.
        await cycles(line(FRAMES[1]), 1)
        await cycles(bytes(1400), 0)
        assert ctx.get(dut.port.link)
        for frame in FRAMES:
            await cycles(line(frame), 1)
            await cycles(bytes(24), 0)
        await cycles(bytes(600), 0)
        over.append(True)

    async def core(ctx):
        port = dut.port
        while not over:
            _, _, valid, payload = await ctx.tick().sample(port.rx.valid, port.rx.payload.as_value())
            if valid:
                received.append(payload)

    sim.add_testbench(phy)
    sim.add_testbench(core)
    sim.run()
    assert packets(received, 8) == FRAMES
    assert not any(data.Const(BeatLayout(8), value).err for value in received)
    assert _frames(sent) == [line(frame) for frame in FRAMES]


def _frames(octets):
    """Runs of bytes between idle cycles."""
    out, run = [], bytearray()
    for octet in [*octets, None]:
        if octet is not None:
            run.append(octet)
        elif run:
            out.append(bytes(run))
            run = bytearray()
    return out


def _buffers(original):
    def make(direction, port):
        return ResetBuffer(direction, port) if direction == "o" else original(direction, port)

    return make


def test_domains():
    assert RgmiiPort(3, MAC, 1514, 25.0).domains == ["mac3", "port3"]
