"""`AxiNarrower` between cocotbext-axi's master of 64 bytes and its memory of 32 bytes."""

import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiBus, AxiMaster, AxiRam

SPACE = 1 << 14
LARGEST = 2048
COUNT = 60


class Bench:
    def __init__(self, dut, seed):
        self.dut, self.rng = dut, random.Random(seed)
        cocotb.start_soon(Clock(dut.clk, 4, unit="ns").start())
        self.master = AxiMaster(AxiBus.from_prefix(dut, "wide_"), dut.clk, dut.rst, max_burst_len=64)
        self.ram = AxiRam(AxiBus.from_prefix(dut, "narrow_"), dut.clk, dut.rst, size=SPACE)
        self.bursts = []
        for channels in (self.master.write_if, self.master.read_if, self.ram.write_if, self.ram.read_if):
            channels.log.setLevel("WARNING")

    async def begin(self):
        self.dut.rst.value = 1
        for _ in range(4):
            await RisingEdge(self.dut.clk)
        self.dut.rst.value = 0
        cocotb.start_soon(self._watch())

    async def _watch(self):
        """Strobes of every burst on the narrow bus."""
        dut, strobes = self.dut, []
        while True:
            await RisingEdge(dut.clk)
            if dut.narrow__wvalid.value and dut.narrow__wready.value:
                strobes.append(int(dut.narrow__wstrb.value))
                if dut.narrow__wlast.value:
                    self.bursts.append(strobes)
                    strobes = []

    def pauses(self, probability):
        def pause():
            while True:
                yield self.rng.random() < probability

        return pause()

    def place(self):
        size = self.rng.choice([1, 4, 16, 32, 64, 100, self.rng.randint(1, LARGEST)])
        return self.rng.randrange(SPACE - size), size


async def run(dut, seed, busy):
    bench = Bench(dut, seed)
    for channel in (
        bench.master.write_if.aw_channel, bench.master.write_if.w_channel, bench.master.write_if.b_channel,
        bench.master.read_if.ar_channel, bench.master.read_if.r_channel, bench.ram.write_if.aw_channel,
        bench.ram.write_if.w_channel, bench.ram.write_if.b_channel, bench.ram.read_if.ar_channel,
        bench.ram.read_if.r_channel,
    ):  # fmt: skip
        if busy:
            channel.set_pause_generator(bench.pauses(busy))
    await bench.begin()

    image = bytearray(bench.rng.randbytes(SPACE))
    bench.ram.write(0, bytes(image))
    pending = []
    for _ in range(COUNT):
        address, size = bench.place()
        value = bench.rng.randbytes(size)
        image[address : address + size] = value
        pending.append(cocotb.start_soon(bench.master.write(address, value, awid=bench.rng.randrange(16))))
        if bench.rng.random() < 0.3:  # otherwise they are in flight together, in order
            for task in pending:
                await task
            pending = []
    for task in pending:
        await task
    assert bench.ram.read(0, SPACE) == bytes(image)

    places = [bench.place() for _ in range(COUNT)]
    reads = [cocotb.start_soon(bench.master.read(*place, arid=bench.rng.randrange(16))) for place in places]
    for (address, size), read in zip(places, reads, strict=True):
        assert (await read).data == bytes(image[address : address + size])

    # A bridge makes a packet of a burst: no beat without strobes at its ends, and none missing between.
    assert len(bench.bursts) >= COUNT
    for strobes in bench.bursts:
        ones = f"{sum(strobe << 32 * at for at, strobe in enumerate(strobes)):b}".rstrip("0")
        assert strobes[0] and strobes[-1] and "0" not in ones


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def test_at_full_rate(dut):
    await run(dut, 1, 0)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def test_with_pauses(dut):
    await run(dut, 2, 0.4)
