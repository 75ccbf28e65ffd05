import pytest
from amaranth.back import rtlil

from hw.config import NicConfig, TableSizes, ram_style
from hw.table.connection_table import ConnectionTable
from hw.table.state import StateMemory


def test_style_by_depth():
    assert [ram_style(depth, ultra=4096, block=128) for depth in (64, 128, 4095, 4096)] == [
        "distributed",
        "block",
        "block",
        "ultra",
    ]
    assert ram_style(1 << 20, ultra=4096, block=128, ultra_ram=False) == "block"


def test_a_table_knows_whether_there_is_ultra_ram():
    assert NicConfig().table.ultra_ram
    assert not NicConfig(ultra_ram=False).table.ultra_ram


@pytest.mark.parametrize("ultra_ram", [True, False])
def test_large_memories_are_ultra_ram_only_where_there_is_some(ultra_ram):
    for design in (
        ConnectionTable(TableSizes(index_bits=16, ways=1, ultra_ram=ultra_ram)),
        StateMemory(1, 16384, 1, ultra_ram),
    ):
        text = rtlil.convert(design)
        assert ('ram_style "ultra"' in text) == ultra_ram
        assert ('ram_style "block"' in text) == (not ultra_ram)
