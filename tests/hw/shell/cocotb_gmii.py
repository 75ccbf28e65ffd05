"""The gigabit MAC between cocotbext-eth's two ends of a GMII, its core's clock a fifth of the line's."""

import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, with_timeout
from cocotbext.eth import GmiiFrame, GmiiSink, GmiiSource

from .gmii_loop import LARGEST

LINE_NS, CORE_NS = 8, 40
SMALLEST = 60


class Bench:
    def __init__(self, dut):
        self.dut = dut
        cocotb.start_soon(Clock(dut.mac_clk, LINE_NS, unit="ns").start())
        cocotb.start_soon(Clock(dut.clk, CORE_NS, unit="ns").start())
        self.source = GmiiSource(dut.rxd, dut.rx_er, dut.rx_dv, dut.mac_clk, dut.mac_rst)
        self.sink = GmiiSink(dut.txd, dut.tx_er, dut.tx_en, dut.mac_clk, dut.mac_rst)
        for end in (self.source, self.sink):
            end.log.setLevel("WARNING")

    async def begin(self):
        self.dut.rst.value = self.dut.mac_rst.value = 1
        await ClockCycles(self.dut.clk, 4)
        self.dut.rst.value = 0
        await ClockCycles(self.dut.mac_clk, 4)
        self.dut.mac_rst.value = 0
        await ClockCycles(self.dut.clk, 20)

    async def back(self):
        """The next frame that comes back."""
        return await with_timeout(self.sink.recv(), 1, "ms")


@cocotb.test()
async def frames_of_every_size(dut):
    """Back to back at line rate: each comes back whole, in order, and the gaps between them are those of the standard."""
    bench, rng = Bench(dut), random.Random(1)
    await bench.begin()
    sizes = [*range(SMALLEST, SMALLEST + 20), LARGEST - 1, LARGEST, *(rng.randint(SMALLEST, LARGEST) for _ in range(20))]
    sent = [rng.randbytes(size) for size in sizes]
    for frame in sent:
        await bench.source.send(GmiiFrame.from_payload(frame))
    ended = None
    for number, frame in enumerate(sent):
        got = await bench.back()
        assert bytes(got.get_payload()) == frame, number
        assert got.check_fcs() and not got.error, number
        # The sink does not keep a frame's first octet, but when it came.
        assert bytes(got.get_preamble()) == bytes([0x55] * 6 + [0xD5]), number
        assert got.sim_time_sfd - got.sim_time_start == 8 * LINE_NS * 1000, number
        if ended is not None:
            gap = round((got.sim_time_start - ended) / LINE_NS / 1000)  # it ends in its first idle octet
            assert gap >= 12, (number, gap)
        ended = got.sim_time_end


@cocotb.test()
async def bad_frames(dut):
    """What is wrong on the line comes back as wrong, and the frames around it as they were."""
    bench, rng = Bench(dut), random.Random(2)
    await bench.begin()
    good = rng.randbytes(100)
    whole = GmiiFrame.from_payload(good)
    flipped, broken = GmiiFrame(whole), GmiiFrame(whole)
    flipped.data[40] ^= 4
    broken.error = [0] * len(broken.data)
    broken.error[50] = 1
    short = GmiiFrame.from_payload(good[:40], min_len=0)
    long = GmiiFrame.from_payload(rng.randbytes(LARGEST + 1))
    for bad in (flipped, broken, short, long):
        for frame in (bad, whole):
            await bench.source.send(GmiiFrame(frame))
        first, second = await bench.back(), await bench.back()
        assert first.error and any(first.error), bad
        assert bytes(second.get_payload()) == good and second.check_fcs() and not second.error, bad


@cocotb.test()
async def preambles(dut):
    """A PHY may have eaten some of the preamble; without a start delimiter there is no frame."""
    bench, rng = Bench(dut), random.Random(3)
    await bench.begin()
    for eaten in range(8):
        frame = rng.randbytes(64)
        whole = GmiiFrame.from_payload(frame)
        await bench.source.send(GmiiFrame(bytes([0x55] * 20)))
        await bench.source.send(GmiiFrame(bytes(whole.data)[eaten:]))
        got = await bench.back()
        assert bytes(got.get_payload()) == frame and not got.error, eaten
    await ClockCycles(dut.clk, 200)
    assert bench.sink.empty()
