"""The board's end of the host link, against the driver's own frames: sessions, registers, memory, interrupts, a bad cable."""

import random

import pytest

from acceltcp.abi.host_link import BEAT_BYTES, HOST_LINK, VERSION, LinkKind
from hw.shell.host_link import HostLink, LinkRegisters
from tests.hw.simulate import converts, run, seeds_and_sizes

from .link_host import BOARD, HOST, LinkHost

CABLES = pytest.mark.parametrize(
    "cable",
    [
        pytest.param({}, id="clean"),
        pytest.param({"loss": 0.1, "duplicate": 0.2, "delay": 400}, id="lossy", marks=pytest.mark.slow),
        pytest.param({"delay": 900}, id="delayed", marks=pytest.mark.slow),
    ],
)
TICK = 20
"""Cycles per `tick` here."""
RETRY_TICKS = 20
SILENCE_TICKS = 200
OKAY, SLVERR = 0, 2
ALL = (1 << BEAT_BYTES) - 1


def make(width=BEAT_BYTES):
    """With a bus of `width` bytes towards the core."""
    return HostLink(retry_ticks=RETRY_TICKS, silence_ticks=SILENCE_TICKS, axi_bytes=width)


class Registers:
    """Register file on the link's AXI4-Lite: keeps what is written, counts reads."""

    def __init__(self, dut):
        self._axil = dut.m_axil
        self.values, self.writes, self.reads = {}, [], 0

    async def serve(self, ctx):
        axil = self._axil
        while True:
            await ctx.tick()
            if ctx.get(axil.awvalid) and ctx.get(axil.wvalid):
                ctx.set(axil.awready, 1)
                address, value = ctx.get(axil.awaddr), ctx.get(axil.wdata)
                assert ctx.get(axil.wstrb) == 15
                await ctx.tick()
                ctx.set(axil.awready, 0)
                await ctx.tick()
                ctx.set(axil.wready, 1)
                await ctx.tick()
                ctx.set(axil.wready, 0)
                self.values[address] = value
                self.writes.append((address, value))
                ctx.set(axil.bvalid, 1)
                await ctx.tick()
                ctx.set(axil.bvalid, 0)
            elif ctx.get(axil.arvalid):
                ctx.set(axil.arready, 1)
                address = ctx.get(axil.araddr)
                await ctx.tick()
                ctx.set(axil.arready, 0)
                self.reads += 1
                ctx.set(axil.rdata, self.values.get(address, 0) + self.reads)
                ctx.set(axil.rvalid, 1)
                await ctx.tick()
                ctx.set(axil.rvalid, 0)


def simulate(dut, host, *testbenches, cycles=100_000, background=()):
    async def tick(ctx):
        ctx.set(dut.mac, BOARD)
        while True:
            for cycle in range(TICK):
                ctx.set(dut.tick, cycle == 0)
                await ctx.tick()

    run(dut, *testbenches, cycles=cycles, background=[tick, host.send, host.take, *background])


async def write_burst(ctx, axi, address, beats, ident=1):
    """`beats` of (data, strobe); the response."""
    ctx.set(axi.awaddr, address)
    ctx.set(axi.awlen, len(beats) - 1)
    ctx.set(axi.awid, ident)
    ctx.set(axi.awvalid, 1)
    await ctx.tick().until(axi.awready)
    ctx.set(axi.awvalid, 0)
    for number, (data, strobe) in enumerate(beats):
        ctx.set(axi.wdata, int.from_bytes(data, "little"))
        ctx.set(axi.wstrb, strobe)
        ctx.set(axi.wlast, number == len(beats) - 1)
        ctx.set(axi.wvalid, 1)
        await ctx.tick().until(axi.wready)
    ctx.set(axi.wvalid, 0)
    ctx.set(axi.bready, 1)
    got, response = await ctx.tick().sample(axi.bid, axi.bresp).until(axi.bvalid)
    ctx.set(axi.bready, 0)
    assert got == ident
    return response


async def read_burst(ctx, axi, address, count, ident=2):
    """Bytes and the worst response."""
    ctx.set(axi.araddr, address)
    ctx.set(axi.arlen, count - 1)
    ctx.set(axi.arid, ident)
    ctx.set(axi.arvalid, 1)
    await ctx.tick().until(axi.arready)
    ctx.set(axi.arvalid, 0)
    ctx.set(axi.rready, 1)
    octets, worst = b"", OKAY
    for number in range(count):
        got, data, response, last = await ctx.tick().sample(axi.rid, axi.rdata, axi.rresp, axi.rlast).until(axi.rvalid)
        assert (got, last) == (ident, number == count - 1)
        octets += data.to_bytes(len(axi.rdata) // 8, "little")
        worst = max(worst, response)
    ctx.set(axi.rready, 0)
    return octets, worst


@CABLES
def test_registers_are_accessed_once_each(cable):
    dut = make()
    host, registers = LinkHost(dut, **cable), Registers(dut)

    async def access(ctx):
        await host.hello(ctx)
        for number in range(1, 20):
            reply = await host.request(ctx, LinkKind.WRITE, 2 * number - 1, address=4 * number, value=1000 * number)
            assert reply.fields["session"] == host.session
            reply = await host.request(ctx, LinkKind.READ, 2 * number, address=4 * number)
            assert reply.fields["value"] == 1001 * number

    simulate(dut, host, access, background=[registers.serve])
    assert registers.reads == 19
    assert registers.writes == [(4 * number, 1000 * number) for number in range(1, 20)]


@CABLES
@pytest.mark.parametrize("seed, width", seeds_and_sizes(3, (0, 8)))
def test_memory(cable, seed, width):
    rng = random.Random(seed)
    dut = make(width)
    counts = (1, 16, 17, 64, rng.randint(2, 40)) if width == BEAT_BYTES else (1, 2, 9, 2000 // width, rng.randint(2, 40))
    host = LinkHost(dut, seed=seed, **cable)
    size = len(host.memory)
    half = size // 2
    host.memory[:] = rng.randbytes(size)
    expected = bytearray(host.memory)

    async def write(ctx):
        await host.hello(ctx)
        for count in counts:
            at = half + width * rng.randrange(half // width - count)
            beats = [(rng.randbytes(width), rng.choice([(1 << width) - 1, 0, rng.getrandbits(width)])) for _ in range(count)]
            assert await write_burst(ctx, dut.s_axi, host.base + at, beats, ident=count & 3) == OKAY
            for number, (data, strobe) in enumerate(beats):
                for byte in range(width):
                    if strobe >> byte & 1:
                        expected[at + width * number + byte] = data[byte]
            assert host.memory == expected  # what is answered has been written

    async def read(ctx):
        await ctx.tick().until(~dut.core_reset)
        for count in counts:
            at = width * rng.randrange(half // width - count)
            octets, response = await read_burst(ctx, dut.s_axi, host.base + at, count, ident=count & 3)
            assert (response, octets) == (OKAY, bytes(expected[at : at + width * count]))

    simulate(dut, host, write, read)


def test_memory_that_the_host_refuses_is_an_error_and_nothing_else():
    dut = make()
    host = LinkHost(dut)
    end = host.base + len(host.memory)

    async def access(ctx):
        await host.hello(ctx)
        beats = [(bytes([255]) * BEAT_BYTES, ALL)] * 20
        assert await write_burst(ctx, dut.s_axi, end, beats) == SLVERR
        assert (await read_burst(ctx, dut.s_axi, end, 20))[1] == SLVERR
        assert await write_burst(ctx, dut.s_axi, host.base, beats[:1]) == OKAY
        assert await read_burst(ctx, dut.s_axi, host.base, 1) == (beats[0][0], OKAY)

    simulate(dut, host, access)


@CABLES
def test_interrupts_are_told_once_each(cable):
    dut = make()
    host = LinkHost(dut, **cable)
    vectors = [3, 0, 3, 63, 1]

    async def interrupt(ctx):
        await host.hello(ctx)
        for number, vector in enumerate(vectors):
            ctx.set(dut.irq_vector, vector)
            ctx.set(dut.irq_valid, 1)
            await ctx.tick().until(dut.irq_ready)
            ctx.set(dut.irq_valid, 0)
            while len(host.vectors) <= number:
                await ctx.tick()

    simulate(dut, host, interrupt)
    assert host.vectors == vectors


def test_sessions():
    dut = make()
    host, registers = LinkHost(dut), Registers(dut)
    resets = []

    async def watch(ctx):
        before = 1
        while True:
            await ctx.tick()
            now = ctx.get(dut.core_reset)
            if now and not before:
                resets.append(host.session)
            before = now

    async def silence(ctx):
        await ctx.tick().repeat(300)
        assert not host.replies

    async def lead(ctx):
        # Before a session there is nothing but HELLO.
        host.session = 5
        host.ask(LinkKind.PING)
        host.ask(LinkKind.WRITE, 1, address=4, value=1)
        host.ask(LinkKind.HELLO, dst=BOARD + 1)
        await silence(ctx)
        assert ctx.get(dut.core_reset)
        reply = await host.request(ctx, LinkKind.HELLO, dst=(1 << 48) - 1)
        assert (reply.src, reply.dst, reply.fields["version"]) == (BOARD, HOST, VERSION)
        assert not ctx.get(dut.core_reset)
        await host.request(ctx, LinkKind.WRITE, 1, address=4, value=1)
        # Again HELLO of this session: an answer, no reset.
        await host.request(ctx, LinkKind.HELLO)
        await host.request(ctx, LinkKind.PING)
        assert resets == []
        # Late copies, and frames of others, in which nothing may happen.
        for told in ({"src": HOST + 1}, {"session": 6}, {"dst": BOARD + 1}, {"version": VERSION + 1}, {"reply": 1}):
            host.ask(LinkKind.WRITE, 2, address=8, value=2, **told)
            host.ask(LinkKind.BYE, **told)
        host.ask(LinkKind.WRITE, 3, address=8, value=3)
        host.ask(LinkKind.WRITE, 0, address=8, value=4)
        host.ask(LinkKind.HELLO, session=99, version=VERSION + 1)
        await silence(ctx)
        assert (registers.writes, resets) == ([(4, 1)], [])
        # Another session: a reset, and counting begins anew.
        await host.hello(ctx, 8)
        assert resets == [8]
        await host.request(ctx, LinkKind.WRITE, 1, address=12, value=5)
        # The end.
        await host.request(ctx, LinkKind.BYE)
        assert ctx.get(dut.core_reset)
        host.ask(LinkKind.WRITE, 2, address=16, value=6)
        await silence(ctx)
        # Another version is told ours.
        host.session = 9
        host.ask(LinkKind.HELLO, version=VERSION + 1)
        while not host.replies:
            await ctx.tick()
        assert host.replies.popleft().fields["version"] == VERSION
        assert ctx.get(dut.core_reset)

    simulate(dut, host, lead, background=[registers.serve, watch])
    assert registers.writes == [(4, 1), (12, 5)]


def test_a_host_that_says_nothing_is_gone():
    dut = make()
    host = LinkHost(dut)
    address = host.base

    async def lead(ctx):
        await host.hello(ctx)
        for _ in range(4):  # a PING now and then keeps the session
            await ctx.tick().repeat(TICK * SILENCE_TICKS * 3 // 4)
            await host.request(ctx, LinkKind.PING)
        assert not ctx.get(dut.core_reset)
        host.deaf = True
        ctx.set(dut.s_axi.araddr, address)
        ctx.set(dut.s_axi.arvalid, 1)
        await ctx.tick().until(dut.s_axi.arready)
        ctx.set(dut.s_axi.arvalid, 0)
        await ctx.tick().repeat(TICK * SILENCE_TICKS * 3 // 4)
        assert not ctx.get(dut.core_reset)
        await ctx.tick().repeat(TICK * SILENCE_TICKS // 2)
        assert ctx.get(dut.core_reset)
        # It comes back, and what was under way is forgotten.
        host.deaf = False
        await host.hello(ctx, 8)
        assert (await read_burst(ctx, dut.s_axi, address, 2))[1] == OKAY
        assert [frame.fields["sequence"] for frame in host.asked] == [1]

    simulate(dut, host, lead)


def test_a_new_session_amid_a_burst():
    dut = make()
    host = LinkHost(dut)

    async def lead(ctx):
        await host.hello(ctx)
        beats = [(bytes([number]) * BEAT_BYTES, ALL) for number in range(40)]
        ctx.set(dut.s_axi.awaddr, host.base)
        ctx.set(dut.s_axi.awlen, 39)
        ctx.set(dut.s_axi.awvalid, 1)
        await ctx.tick().until(dut.s_axi.awready)
        ctx.set(dut.s_axi.awvalid, 0)
        ctx.set(dut.s_axi.wvalid, 1)
        await ctx.tick().repeat(250)  # the first piece is on its way
        ctx.set(dut.s_axi.wvalid, 0)
        await host.hello(ctx, 8)
        host.memory[:] = bytes(len(host.memory))
        assert await write_burst(ctx, dut.s_axi, host.base, beats) == OKAY
        assert bytes(host.memory[: 40 * BEAT_BYTES]) == b"".join(data for data, _ in beats)

    simulate(dut, host, lead)


def test_fields_that_the_board_does_not_use_are_zero():
    dut = make()
    host = LinkHost(dut)

    async def lead(ctx):
        reply = await host.hello(ctx)
        named = {"version": VERSION, "reply": 1, "kind": LinkKind.HELLO, "session": host.session}
        assert reply.fields == {field.name: named.get(field.name, 0) for field in HOST_LINK if not field.reserved}

    simulate(dut, host, lead)


@pytest.mark.parametrize("option", ["retry_ticks", "silence_ticks"])
def test_options(option):
    with pytest.raises(ValueError, match=f"{option} must be an integer of at least 1, not 0"):
        HostLink(**{option: 0}).elaborate(None)


def test_conversion():
    converts(make())
    converts(make(8))
    converts(LinkRegisters())
