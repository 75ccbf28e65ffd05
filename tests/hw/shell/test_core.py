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
def test_the_host_finds_the_device():
    dut = ShellCore(SMALL, 250.0)

    async def bench(ctx):
        assert word_of(await read(ctx, dut.host, 0, WORD), 0) == MAGIC
        # The control word of vector 1: masked, as after every reset.
        address = BAR_OFFSETS[BAR_MSIX] + 2 * MSIX_ENTRY_BYTES - 4
        assert word_of(await read(ctx, dut.host, address, WORD), address) == 1

    run(dut, bench)


def test_prescaler():
    dut = Prescaler(2.0, 10)
    ticks = []

    async def bench(ctx):
        for cycle in range(65):
            if (await ctx.tick().sample(dut.tick))[-1]:
                ticks.append(cycle)

    run(dut, bench)
    assert ticks == [19, 39, 59] and dut.cycles == 20
