"""`BarAccess`, with the core's own AXI4-Lite slave and the MSI-X block behind it."""

import pytest
from amaranth import Elaboratable, Module, Signal
from amaranth.lib.wiring import connect

from acceltcp.abi.pci import BAR_MSIX, BAR_REGISTERS
from hw.config import AXI_BYTES
from hw.csr.axil import AxiLiteSlave
from hw.shell.bars import BAR_OFFSETS, BarAccess
from hw.shell.msix import Msix

from ..simulate import converts, run

WORD = 2
SIZES = [AXI_BYTES, AXI_BYTES // 2]


class Device(Elaboratable):
    """`log` says what has been done to the registers, each of which reads as its number."""

    def __init__(self, size):
        self.access, self.slave, self.msix = BarAccess(size), AxiLiteSlave(), Msix(4)
        self.bus = self.access.bus
        self.seen = Signal()

    def elaborate(self, platform):
        m = Module()
        m.submodules.access, m.submodules.slave, m.submodules.msix = self.access, self.slave, self.msix
        connect(m, self.access.axil, self.slave.axil)
        connect(m, self.access.request, self.msix.request)
        connect(m, self.msix.response, self.access.response)
        taken = self.slave.request.valid & self.slave.request.ready
        m.d.comb += [self.slave.request.ready.eq(1), self.seen.eq(taken)]
        m.d.sync += [self.slave.response.valid.eq(taken), self.slave.response.payload.eq(self.slave.request.p.word)]
        return m


async def write(ctx, bus, address, data, *, identifier=5):
    """A write of bytes in one burst."""
    size = len(bus.wstrb)
    lane = address % size
    beats = -(-(lane + len(data)) // size)
    for name, value in (("addr", address), ("len", beats - 1), ("size", size.bit_length() - 1), ("id", identifier), ("valid", 1)):
        ctx.set(getattr(bus, f"aw{name}"), value)
    await ctx.tick().until(bus.awready)
    ctx.set(bus.awvalid, 0)
    image, mask = int.from_bytes(bytes(lane) + data, "little"), ((1 << len(data)) - 1) << lane
    for beat in range(beats):
        ctx.set(bus.wdata, image >> 8 * size * beat & (1 << 8 * size) - 1)
        ctx.set(bus.wstrb, mask >> size * beat & (1 << size) - 1)
        ctx.set(bus.wlast, beat == beats - 1)
        ctx.set(bus.wvalid, 1)
        await ctx.tick().until(bus.wready)
    ctx.set(bus.wvalid, 0)
    ctx.set(bus.bready, 1)
    got, response = await ctx.tick().sample(bus.bid, bus.bresp).until(bus.bvalid)
    ctx.set(bus.bready, 0)
    assert (got, response) == (identifier, 0)


async def read(ctx, bus, address, size=None, *, beats=1, identifier=9):
    """The beats of a read, as bytes; `size`: log2 of the bytes asked for, None for a whole beat."""
    size = len(bus.wstrb).bit_length() - 1 if size is None else size
    for name, value in (("addr", address), ("len", beats - 1), ("size", size), ("id", identifier), ("valid", 1)):
        ctx.set(getattr(bus, f"ar{name}"), value)
    await ctx.tick().until(bus.arready)
    ctx.set(bus.arvalid, 0)
    data = b""
    for beat in range(beats):
        ctx.set(bus.rready, 1)
        value, last, got, response = await ctx.tick().sample(bus.rdata, bus.rlast, bus.rid, bus.rresp).until(bus.rvalid)
        ctx.set(bus.rready, 0)
        assert (last, got, response) == (beat == beats - 1, identifier, 0)
        data += int(value).to_bytes(len(bus.wstrb), "little")
    return data


def simulate(bench, size=AXI_BYTES):
    """Run it; returns what has been done to the registers: (write, word, data, strobe)."""
    dut, log = Device(size), []
    request = dut.slave.request.p

    async def testbench(ctx):
        await bench(ctx, dut)

    async def watch(ctx):
        async for *_, seen, wrote, word, data, strobe in ctx.tick().sample(
            dut.seen, request.write, request.word, request.data, request.strobe
        ):
            if seen:
                log.append((wrote, word, data, strobe) if wrote else (wrote, word))

    run(dut, testbench, background=[watch])
    return log


def word_of(data, address, size=AXI_BYTES):
    at = address % size
    return int.from_bytes(data[at : at + 4], "little")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("address", [0, 4, 0x3C, 0x40, 0x1234, 0xFFFC])
def test_a_word_is_read_alone(address, size):
    async def bench(ctx, dut):
        data = await read(ctx, dut.bus, BAR_OFFSETS[BAR_REGISTERS] + address, WORD)
        assert word_of(data, address, size) == address // 4

    assert simulate(bench, size) == [(0, address // 4)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("address, data, expected", [
    (0x44, b"abcd", [(1, 0x11, 0x64636261, 15)]),
    (0x45, b"b", [(1, 0x11, 0x6200, 2)]),
    (0x38, bytes(range(1, 17)), [(1, 14, 0x04030201, 15), (1, 15, 0x08070605, 15), (1, 16, 0x0C0B0A09, 15), (1, 17, 0x100F0E0D, 15)]),
])  # fmt: skip
def test_writes(address, data, expected, size):
    async def bench(ctx, dut):
        await write(ctx, dut.bus, address, data)

    assert simulate(bench, size) == expected


@pytest.mark.parametrize("size", SIZES)
def test_large_reads(size):
    end = 0x80 + size

    async def bench(ctx, dut):
        data = await read(ctx, dut.bus, 0x78, beats=2)
        for address in range(0x78, end, 4):
            assert word_of(data[:size] if address < 0x80 else data[size:], address, size) == address // 4

    assert simulate(bench, size) == [(0, word) for word in range(0x78 // 4, end // 4)]


@pytest.mark.parametrize("size", SIZES)
def test_msix_bar(size):
    base = BAR_OFFSETS[BAR_MSIX]

    async def word_at(ctx, dut, address):
        return word_of(await read(ctx, dut.bus, base + address, WORD), address, size)

    async def bench(ctx, dut):
        assert await word_at(ctx, dut, 0x1C) == 1  # masked
        await write(ctx, dut.bus, base + 0x10, bytes.fromhex("0010e0fe 00000000 22000000 00000000"))
        assert await word_at(ctx, dut, 0x1C) == 0
        assert await word_at(ctx, dut, 0x10) == 0xFEE0_1000
        assert await word_at(ctx, dut, 0x18) == 0x22

    assert simulate(bench, size) == []


def test_reads_and_writes_take_turns():
    async def bench(ctx, dut):
        for number in range(6):
            await write(ctx, dut.bus, 4 * number, bytes([number, 0, 0, 0]))
            assert word_of(await read(ctx, dut.bus, 4 * number, WORD), 4 * number) == number

    assert [entry[:2] for entry in simulate(bench)] == [(wrote, n) for n in range(6) for wrote in (1, 0)]


def test_converts():
    converts(BarAccess())
