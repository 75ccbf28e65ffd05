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


@pytest.mark.parametrize(
    "options, message",
    [
        ({"axi_bytes": 4}, "axi_bytes must be one of (8, 16, 32, 64), not 4"),
        ({"width": 32, "axi_bytes": 16}, "axi_bytes must be at least width=32, not 16"),
        ({"width": 8, "axi_bytes": 8, "read_beats": 512}, "read_beats must hold two frames of 9018 bytes, not 512 beats of 8"),
        ({"ways": 4}, "ways must be one of (9, 3), not 4"),
        ({"digest": 40}, "digest must be from 48 to 128, not 40"),
    ],
)
def test_what_does_not_go_is_told(options, message):
    with pytest.raises(ValueError) as caught:
        NicConfig(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize("ways, slots", [(9, 576), (3, 768)])
def test_a_table_has_more_slots_than_flows(ways, slots):
    assert NicConfig(flows=512, ways=ways).table.slots == slots


def test_digest():
    assert [NicConfig(digest=bits).table.digest_bits for bits in (128, 60)] == [128, 60]
