"""docs/boards.md says what there is."""

import re
from pathlib import Path

import boards
from acceltcp.abi import pci
from hw import options
from hw.vivado.scripts import FIXED

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/boards.md").read_text()


def test_every_board_is_in_the_table():
    rows = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| (.+)$", TEXT, re.MULTILINE))
    vivado = [board for name in boards.names() if (board := boards.load(name)).flash]
    assert set(rows) == {board.name for board in vivado}
    for board in vivado:
        assert (
            board.part.startswith(rows[board.name].split()[0]) and f"PCIe {board.pcie} |" in rows[board.name]
        )
        assert f"{board.macs[0].gbps}GbE" in rows[board.name]
        assert board.flash.offset in (0, 0x0100_2000) and "0x01002000" in TEXT


def test_identity():
    assert f"lspci -nn -d {pci.VENDOR_ID:04x}:{pci.DEVICE_ID:04x}" in TEXT


def test_flags_and_files():
    flags = {flag for action in options.parser("", "")._actions for flag in action.option_strings}
    blocks = re.findall(r"python -m hw\.build ([^#\n`]+)", TEXT)
    assert len(blocks) > 3
    for block in blocks:
        assert {word for word in block.split() if word.startswith("--")} <= flags, block
    for name in FIXED:
        assert f"`{name}`" in TEXT


def test_sume_figures():
    config = boards.load("netfpga_sume").config
    assert f"{config.flows:,} flows and {config.splices:,} splices" in TEXT


def test_links():
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
