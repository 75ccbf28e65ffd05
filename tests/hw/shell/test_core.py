"""`ShellCore` with the real core, and `Prescaler`."""

import pytest

from acceltcp.abi.pci import BAR_MSIX, MSIX_ENTRY_BYTES
from acceltcp.abi.registers import MAGIC
from hw.config import NicConfig
from hw.shell.bars import BAR_OFFSETS
from hw.shell.core import Prescaler, ShellCore

from ..simulate import run
from .test_bars import WORD, read, word_of

SMALL = NicConfig(
    width=8, ports=1, queues=2, listeners=1, flows=512, splices=0, packets=32, descriptors=16, writes=8, rss=False,
    pipelined_hash=False, max_frame=1514,
)  # fmt: skip


@pytest.mark.long  # takes a minute to make
@pytest.mark.parametrize("size", [64, 32])
def test_the_host_finds_the_device(size):
    dut = ShellCore(SMALL, 250.0, size)

    async def bench(ctx):
        assert word_of(await read(ctx, dut.host, 0, WORD), 0, size) == MAGIC
        # The control word of vector 1: masked, as after every reset.
        address = BAR_OFFSETS[BAR_MSIX] + 2 * MSIX_ENTRY_BYTES - 4
        assert word_of(await read(ctx, dut.host, address, WORD), address, size) == 1

    run(dut, bench)


@pytest.mark.parametrize("size", [64, 32])
def test_width_of_the_bus(size):
    dut = ShellCore(SMALL, 200.0, size)
    assert len(dut.host.wstrb) == len(dut.memory.wstrb) == size


def test_a_width_that_no_bridge_has():
    with pytest.raises(ValueError, match="bus_bytes must be 64 or 32, not 16"):
        ShellCore(SMALL, 200.0, 16)


def test_prescaler():
    dut = Prescaler(2.0, 10)
    ticks = []

    async def bench(ctx):
        for cycle in range(65):
            if (await ctx.tick().sample(dut.tick))[-1]:
                ticks.append(cycle)

    run(dut, bench)
    assert ticks == [19, 39, 59] and dut.cycles == 20
