"""Connection table and flow state at their smallest, mapped for Lattice ECP5: small RAMs and registers, nothing left over."""

import collections
import json
import subprocess
import sys

import pytest

from hw.config import NicConfig
from hw.table.connection_table import ConnectionTable
from hw.table.state import StateMemory
from hw.tcp.flow import flow_layout
from hw.verilog import convert

CONFIG = NicConfig(flows=512)
SCRIPT = """
import sys
from pyosys import libyosys as ys
design = ys.Design()
for command in sys.argv[1:]:
    ys.run_pass(command, design)
"""


def mapped(design, folder):
    """Cell type -> how many, after the steps of `synth_ecp5` that decide on memories."""
    source, netlist = folder / "part.v", folder / "part.json"
    source.write_text(convert(design, "part"))
    commands = (
        f"read_verilog {source}", "synth_ecp5 -top part -run begin:map_gates", "flatten", "select part", f"write_json -selected {netlist}",
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SCRIPT, *commands], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    cells = json.loads(netlist.read_text())["modules"]["part"]["cells"].values()
    return collections.Counter(cell["type"] for cell in cells)


@pytest.mark.long  # a quarter of a minute of Yosys; the flow state below stays
def test_connection_table(tmp_path):
    cells = mapped(ConnectionTable(CONFIG.table), tmp_path)
    assert not [name for name in cells if name.startswith("$mem")], "a memory that fits nowhere"
    # Two banks of nine ways, 32 rows of 144 bits: 16x4 distributed RAMs, or block RAMs of 36 bits.
    assert cells["TRELLIS_DPR16X4"] or cells["DP16KD"] == 2 * 9 * 4, cells
    assert cells["DP16KD"] <= 2 * 9 * 4


@pytest.mark.slow
def test_flow_state(tmp_path):
    cells = mapped(StateMemory(flow_layout(CONFIG), CONFIG.flows, 8), tmp_path)
    assert not [name for name in cells if name.startswith("$mem")]
    assert cells["DP16KD"] == 288 // 36
