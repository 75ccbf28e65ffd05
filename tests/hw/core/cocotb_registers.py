"""The register file as the host sees it: identity, every register, strange accesses."""

from __future__ import annotations

import cocotb
from cocotbext.axi import AxiResp

from acceltcp.abi.registers import (
    ABI_MAJOR,
    ABI_MINOR,
    BAR0_BYTES,
    BLOCKS,
    COUNTER_BASE,
    COUNTERS,
    MAGIC,
    PORT,
    QUEUE,
    SPLICE,
    Access,
    Feature,
    map_hash,
)

from .bench import TB, core_test


def blocks(tb: TB):
    """What this build has."""
    return [block for block in BLOCKS if block is not SPLICE or tb.config.splices]


def registers(tb: TB):
    """(block, index, register) of everything in this build; of the queues, the first and last."""
    counts = {PORT.name: range(tb.config.ports), QUEUE.name: (0, tb.config.queues - 1)}
    for block in blocks(tb):
        for index in counts.get(block.name, range(block.count)):
            for register in block.registers:
                yield block, index, register


@core_test()
async def identity(dut):
    tb = await TB.start(dut, queues=0)
    config = tb.config
    assert await tb.read("IDENT", "magic") == MAGIC
    assert await tb.read_fields("IDENT", "abi") == {"major": ABI_MAJOR, "minor": ABI_MINOR}
    assert await tb.read("IDENT", "map_hash") == map_hash()
    splicing = Feature.SPLICE if config.splices else Feature(0)
    assert await tb.read("IDENT", "features") == Feature.SETUP | Feature.TEARDOWN | Feature.RSS | splicing
    assert await tb.read_fields("IDENT", "shape") == {
        "width": config.width,
        "ports": config.ports,
        "queues": config.queues,
        "tick_us": config.tick_us // 10,
    }
    assert await tb.read_fields("IDENT", "tables") == {
        "listeners": config.listeners,
        "flows_log2": config.flow_bits,
        "splices_log2": config.splice_bits,
    }
    assert await tb.read("IDENT", "max_frame") == config.max_frame


@core_test()
async def reset_values_and_access(dut):
    """Everything reads its reset value; what is written stays or not as declared; nothing else moves."""
    tb = TB(dut)
    await tb.reset()
    for block, index, register in registers(tb):
        if register.access is Access.RW:
            assert await tb.read(block.name, register.name, index) == register.reset, register.name
        elif register.access is Access.WO:
            assert await tb.read(block.name, register.name, index) == 0, register.name

    written = {}
    for block, index, register in registers(tb):
        if register.access is Access.RW and (block.name, register.name) not in (
            ("QUEUE", "control"),
            ("CONTROL", "control"),
        ):
            bits = sum(field.bits for field in register.fields)
            value = tb.rng.getrandbits(bits)
            written[block.name, register.name, index] = value
            # Bits past the fields must be ignored.
            garbage = tb.rng.getrandbits(32 - bits) << bits if bits < 32 else 0
            if block.name == "QUEUE":
                garbage = 0
            await tb.write(block.name, register.name, value | garbage, index)
        elif register.access is Access.RO:
            before = await tb.read(block.name, register.name, index)
            await tb.write(block.name, register.name, 0xFFFF_FFFF, index)
            assert await tb.read(block.name, register.name, index) == before, register.name
    for (block_name, name, index), value in written.items():
        assert await tb.read(block_name, name, index) == value, (block_name, name, index)


@core_test()
async def strange_addresses(dut):
    """Holes read as zero, swallow writes, and always answer OKAY."""
    tb = await TB.start(dut, queues=0)
    await tb.write("IDENT", "scratch", 0x600D_CAFE)
    used = set(range(COUNTER_BASE, COUNTER_BASE + 8 * len(COUNTERS), 4))
    for block in blocks(tb):
        count = {"PORT": tb.config.ports, "QUEUE": tb.config.queues}.get(block.name, block.count)
        for index in range(count):
            used |= {block.address(register.name, index) for register in block.registers}
    holes = [address for address in range(0, BAR0_BYTES, 4) if address not in used]
    edges = [COUNTER_BASE + 8 * len(COUNTERS), COUNTER_BASE - 4, QUEUE.base - 4, BAR0_BYTES - 4]
    for address in edges + tb.rng.sample(holes, 40):
        answer = await tb.axil.write(address, b"\xff\xff\xff\xff")
        assert answer.resp == AxiResp.OKAY
        answer = await tb.axil.read(address, 4)
        assert answer.resp == AxiResp.OKAY
        assert answer.data == bytes(4), f"{address:#x} reads {answer.data.hex()}"
    assert await tb.read("IDENT", "scratch") == 0x600D_CAFE
    assert await tb.read("IDENT", "magic") == MAGIC


@core_test()
async def write_strobes(dut):
    """A partial write keeps the other bytes; half a doorbell is none."""
    tb = await TB.start(dut)
    queue = tb.queues[0]
    for address in (0x1C, QUEUE.address("interrupt", 0)):
        width = 4 if address == 0x1C else 2
        value = bytearray(tb.rng.randbytes(width))
        await tb.axil.write(address, bytes(value) + bytes(4 - width))
        for _ in range(8):
            at = tb.rng.randrange(width)
            part = tb.rng.randbytes(tb.rng.randrange(1, width - at + 1))
            value[at : at + len(part)] = part
            await tb.axil.write(address + at, part)
            assert (await tb.axil.read(address, width)).data == bytes(value)
    before = await tb.counters("doorbell_errors")
    await tb.axil.write(QUEUE.address("tx_tail", 0), b"\x05")
    assert not await tb.changes(before)
    queue.assert_quiet()


@core_test()
async def stalled_register_bus(dut):
    """Random pauses on all five channels, many accesses under way, answers in order."""
    tb = await TB.start(dut, queues=0)

    def pauses():
        while True:
            yield tb.rng.random() < 0.5

    write, read = tb.axil.write_if, tb.axil.read_if
    for channel in (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel):
        channel.set_pause_generator(pauses())
    for _ in range(30):
        value = tb.rng.randbytes(4)
        await tb.axil.write(0x1C, value)
        pending = [cocotb.start_soon(tb.axil.read(address, 4)) for address in (0x1C, 0x00, 0x1C)]
        writes = [cocotb.start_soon(tb.axil.write(0x500, b"1234")) for _ in range(2)]
        answers = [bytes((await task).data) for task in pending]
        for task in writes:
            await task
        assert answers == [value, MAGIC.to_bytes(4, "little"), value]


@core_test()
async def clocks(dut):
    """`tick` drives ticks, timestamp clock and epoch; each at its own rate."""
    tb = await TB.start(dut, queues=0)
    start = await tb.read("TIME", "ticks_low")
    await tb.write("TIME", "ts_ticks", 3)
    await tb.write("TIME", "epoch_ticks", 5)
    await tb.write("TIME", "epoch", 0xFFFF_FFFE)  # its write starts the epoch
    ts = await tb.read("TIME", "ts_clock")
    await tb.tick(14)
    assert await tb.read("TIME", "ticks_low") == start + 14
    assert await tb.read("TIME", "ticks_high") == 0
    assert await tb.read("TIME", "ts_clock") in (ts + 4, ts + 5)
    assert await tb.read("TIME", "epoch") == 0, "two epochs later the counter has wrapped"
    await tb.tick(1)
    assert await tb.read("TIME", "epoch") == 1


@core_test()
async def counters_start_at_zero_and_count(dut):
    tb = await TB.start(dut)
    await tb.settle()
    everything = await tb.counters()
    moved = {name: value for name, value in everything.items() if value}
    # Enabling the queue has made the NIC fetch buffers, nothing else has happened.
    assert set(moved) <= {"axi_read_bytes"}, moved
    assert moved["axi_read_bytes"] == tb.bus.width * tb.bus.read_beats
