"""`AxiNarrower`: with cocotbext-axi in Verilator, and what that does not do: errors, order, rate."""

import random

import pytest
from amaranth import Elaboratable, Module
from amaranth.lib.wiring import connect

from hw.shell.axi_narrower import NARROW_BYTES, AxiNarrower
from hw.shell.message_writer import MessageWriter
from hw.verilog import convert

from ..core.build import run_module
from ..simulate import always, converts, run, sometimes

OKAY, SLVERR, DECERR = 0, 2, 3


@pytest.mark.long  # half a minute of C++ compiler
def test_memory_behind_it(tmp_path):
    ran, failed, said = run_module(convert(AxiNarrower(), "narrower"), "narrower", "tests.hw.shell.cocotb_axi_narrower", tmp_path)
    assert (ran, failed) == (2, 0), said


def test_written_bytes():
    """Bursts of random bytes from and to random addresses: what arrives, and that nothing else is strobed."""
    dut, rng = AxiNarrower(), random.Random(4)
    wide, narrow = dut.wide, dut.narrow
    wide_bytes, bursts = 2 * NARROW_BYTES, []
    for size in (1, 4, 31, 32, 33, 64, 65, 96, *(rng.randint(1, 400) for _ in range(22))):
        bursts.append((4096 * len(bursts) + rng.randrange(160), rng.randbytes(size)))
    got: dict[int, int] = {}
    plans, lengths = [], []

    async def send_aw(ctx):
        go = sometimes(1)
        for address, value in bursts:
            while not go():
                await ctx.tick()
            beats = -(-(address % wide_bytes + len(value)) // wide_bytes)
            for name, field in (("addr", address), ("len", beats - 1), ("valid", 1)):
                ctx.set(getattr(wide, f"aw{name}"), field)
            await ctx.tick().until(wide.awready)
            ctx.set(wide.awvalid, 0)

    async def send_w(ctx):
        go = sometimes(2, 0.8)
        for address, value in bursts:
            at = address % wide_bytes
            image, mask = int.from_bytes(bytes(at) + value, "little"), ((1 << len(value)) - 1) << at
            while mask:
                while not go():
                    await ctx.tick()
                ctx.set(wide.wdata, image & (1 << 8 * wide_bytes) - 1)
                ctx.set(wide.wstrb, mask & (1 << wide_bytes) - 1)
                image, mask = image >> 8 * wide_bytes, mask >> wide_bytes
                ctx.set(wide.wlast, not mask)
                ctx.set(wide.wvalid, 1)
                await ctx.tick().until(wide.wready)
                ctx.set(wide.wvalid, 0)

    async def take_aw(ctx):
        go = sometimes(3)
        while len(plans) < len(bursts):
            ctx.set(narrow.awready, go())
            valid, ready, *plan = (
                await ctx.tick().sample(narrow.awvalid, narrow.awready, narrow.awaddr, narrow.awlen)
            )[-4:]
            if valid and ready:
                plans.append(plan)
        ctx.set(narrow.awready, 0)

    async def take_w(ctx):
        go = sometimes(4)
        while len(lengths) < len(bursts):
            beats = []
            while not beats or not beats[-1][2]:
                ctx.set(narrow.wready, go())
                valid, ready, *beat = (
                    await ctx.tick().sample(narrow.wvalid, narrow.wready, narrow.wdata, narrow.wstrb, narrow.wlast)
                )[-5:]
                if valid and ready:
                    beats.append(beat)
            ctx.set(narrow.wready, 0)
            while len(plans) <= len(lengths):
                await ctx.tick()
            base = plans[len(lengths)][0] // NARROW_BYTES * NARROW_BYTES
            lengths.append(len(beats))
            assert beats[0][1] and beats[-1][1]
            for number, (value, strobes, _) in enumerate(beats):
                for lane in range(NARROW_BYTES):
                    if strobes >> lane & 1:
                        place = base + NARROW_BYTES * number + lane
                        assert place not in got
                        got[place] = value >> 8 * lane & 0xFF

    run(dut, send_aw, send_w, take_aw, take_w)
    assert got == {address + at: byte for address, value in bursts for at, byte in enumerate(value)}
    assert lengths == [beats + 1 for _, beats in plans]


def half(value):
    """A narrow beat that is filled with `value`."""
    return int.from_bytes(bytes([value]) * NARROW_BYTES, "little")


def test_interleaved_answers_and_errors():
    """Beats of two identifiers take turns; an error of either half reaches the whole beat, and no other."""
    dut = AxiNarrower()
    beats = [  # identifier, byte, response, last
        (1, 0x10, OKAY, 0), (2, 0x20, OKAY, 0), (2, 0x21, SLVERR, 0), (1, 0x11, OKAY, 0),
        (1, 0x12, DECERR, 0), (2, 0x22, OKAY, 0), (1, 0x13, OKAY, 1), (2, 0x23, OKAY, 1),
    ]  # fmt: skip
    got = []

    async def bridge(ctx):
        for identifier, byte, response, last in beats:
            for name, value in (("id", identifier), ("data", half(byte)), ("resp", response), ("last", last), ("valid", 1)):
                ctx.set(getattr(dut.narrow, f"r{name}"), value)
            await ctx.tick().until(dut.narrow.rready)
        ctx.set(dut.narrow.rvalid, 0)

    async def core(ctx):
        go, wide = sometimes(3), dut.wide
        while len(got) < len(beats) // 2:
            ctx.set(wide.rready, go())
            valid, ready, *fields = (
                await ctx.tick().sample(wide.rvalid, wide.rready, wide.rid, wide.rdata, wide.rresp, wide.rlast)
            )[-6:]
            if valid and ready:
                got.append(tuple(fields))

    run(dut, bridge, core)
    assert got == [
        (identifier, half(low) | half(high) << 8 * NARROW_BYTES, response, last)
        for identifier, low, high, response, last in (
            (2, 0x20, 0x21, SLVERR, 0), (1, 0x10, 0x11, OKAY, 0), (1, 0x12, 0x13, DECERR, 1), (2, 0x22, 0x23, OKAY, 1),
        )
    ]  # fmt: skip


@pytest.mark.parametrize("go", [always, sometimes(5, 0.5)])
def test_the_largest_bursts_follow_without_a_gap(go):
    dut, count, length = AxiNarrower(), 6, 64
    wide, narrow = dut.wide, dut.narrow
    cycles, addresses, answers = [], [], []

    async def send_aw(ctx):
        for number in range(count):
            for name, value in (("addr", number * 4096), ("len", length - 1), ("id", number), ("valid", 1)):
                ctx.set(getattr(wide, f"aw{name}"), value)
            await ctx.tick().until(wide.awready)
        ctx.set(wide.awvalid, 0)

    async def send_w(ctx):
        ctx.set(wide.wstrb, (1 << len(wide.wstrb)) - 1)
        for beat in range(count * length):
            ctx.set(wide.wdata, half(2 * beat & 0xFF) | half(2 * beat + 1 & 0xFF) << 8 * NARROW_BYTES)
            ctx.set(wide.wlast, beat % length == length - 1)
            ctx.set(wide.wvalid, 1)
            await ctx.tick().until(wide.wready)
        ctx.set(wide.wvalid, 0)

    async def take(ctx):
        ctx.set(narrow.awready, 1)
        cycle = 0
        while len(cycles) < 2 * count * length:
            ctx.set(narrow.wready, go())
            aw, address, beats, valid, ready, data, last = (
                await ctx.tick().sample(
                    narrow.awvalid, narrow.awaddr, narrow.awlen, narrow.wvalid, narrow.wready, narrow.wdata, narrow.wlast
                )
            )[-7:]
            cycle += 1
            if aw:
                addresses.append((address, beats))
            if valid and ready:
                assert data == half(len(cycles) & 0xFF) and last == (len(cycles) % (2 * length) == 2 * length - 1)
                cycles.append(cycle)

    async def answer(ctx):
        """Answers pass as they are."""
        for identifier, response in ((5, OKAY), (9, SLVERR)):
            for name, value in (("id", identifier), ("resp", response), ("valid", 1)):
                ctx.set(getattr(narrow, f"b{name}"), value)
            ctx.set(wide.bready, 1)
            answers.append((await ctx.tick().sample(wide.bid, wide.bresp, wide.bvalid, narrow.bready))[-4:])
        ctx.set(narrow.bvalid, 0)

    run(dut, send_aw, send_w, take, answer)
    assert addresses == [(number * 4096, 2 * length - 1) for number in range(count)]
    assert answers == [(5, OKAY, 1, 1), (9, SLVERR, 1, 1)]
    if go is always:
        assert cycles[-1] - cycles[0] == len(cycles) - 1
        assert cycles[0] <= length + 6


class Messages(Elaboratable):
    """A `MessageWriter` in front of it, as in the shell."""

    def __init__(self):
        self.writer, self.narrower = MessageWriter(), AxiNarrower()

    def elaborate(self, platform):
        m = Module()
        m.submodules.writer, m.submodules.narrower = self.writer, self.narrower
        connect(m, self.writer.bus, self.narrower.wide)
        return m


def test_a_message_is_one_beat():
    """An MSI-X message is a write of four bytes, wherever in a wide beat its address lies."""
    dut = Messages()
    message, bus = dut.writer.message, dut.narrower.narrow
    sent = [(0xFEE0_0000 + 4 * lane, 0x1234_0000 + lane) for lane in range(16)]
    addresses, beats = [], []

    async def send(ctx):
        for address, value in sent:
            ctx.set(message.p.address, address)
            ctx.set(message.p.data, value)
            ctx.set(message.valid, 1)
            await ctx.tick().until(message.ready)
            ctx.set(message.valid, 0)

    async def take(ctx):
        ctx.set(bus.awready, 1)
        ctx.set(bus.wready, 1)
        while len(beats) < len(sent):
            aw, *plan, w, data, strobes, last = (
                await ctx.tick().sample(bus.awvalid, bus.awaddr, bus.awlen, bus.awid, bus.wvalid, bus.wdata, bus.wstrb, bus.wlast)
            )[-8:]
            if aw:
                addresses.append(plan)
            if w:
                lane = (strobes & -strobes).bit_length() - 1
                beats.append((lane, strobes >> lane, data >> 8 * lane & 0xFFFF_FFFF, last))

    run(dut, send, take)
    assert addresses == [[address, 0, 4] for address, _ in sent]
    assert beats == [(address % NARROW_BYTES, 0xF, value, 1) for address, value in sent]


def test_converts():
    converts(AxiNarrower())
