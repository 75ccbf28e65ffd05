import dataclasses

import pytest

import boards
from hw.fit import check, table_memory

U50 = boards.load("alveo_u50")
SUME = boards.load("netfpga_sume")


def config(board, **changes):
    return dataclasses.replace(board.config, **changes)


@pytest.mark.parametrize("name", boards.names())
def test_every_board_fits_its_own_configuration(name):
    board = boards.load(name)
    check(board, board.config)


def test_memory_of_the_tables():
    # 18 ways of 16,384 rows of 144 bits, 262,144 flows of 288 bits, in Ultra RAM of 72 by 4,096.
    assert table_memory(config(U50, splices=0))["uram"] == 18 * 2 * 4 + 4 * 64
    assert table_memory(SUME.config)["uram"] == 0
    assert table_memory(SUME.config)["bram36"] < SUME.capacity["bram36"] * 2 // 3


@pytest.mark.parametrize(
    "board, changes, message",
    [
        (U50, {"ports": 2}, "ports must be at most 1 on alveo_u50, not 2"),
        (U50, {"width": 8}, "width must be 64 on alveo_u50, whose MAC gives and takes 100 Gbit/s, not 8"),
        (
            U50,
            {"flows": 1 << 19, "splices": 16},
            "the tables of flows=524288 and splices=16 need 928 URAM, and alveo_u50 has 640",
        ),
        (SUME, {"axi_bytes": 32}, "axi_bytes must be 64 on netfpga_sume, which has PCI Express, not 32"),
        (SUME, {"width": 64}, "width must be 32 on netfpga_sume"),
        (SUME, {"ultra_ram": True}, "ultra_ram must be off on netfpga_sume, which has none"),
        (SUME, {"flows": 1 << 18}, "BRAM36, and netfpga_sume has 1,470"),
    ],
)
def test_what_does_not_fit_is_one_line(board, changes, message):
    # Buffers keep their size in bytes.
    changes = {"rx_buffer_beats": None, "tx_buffer_beats": None, "read_beats": None, **changes}
    with pytest.raises(ValueError) as caught:
        check(board, config(board, **changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
