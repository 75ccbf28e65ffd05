# amaranth: UnusedElaboratable=no
"""What stands in for parts that a lint of the shells need not look into, and the lint."""

import os
import re
import subprocess

from amaranth import Module
from amaranth.lib import wiring

from hw.nic import Nic
from hw.verilog import convert_for
from sim.verilate import verilator_root

__all__ = ["HollowNic", "lint", "same_crossings", "verilog"]

PRIMITIVES = """
(* blackbox *) module IBUF (output wire O, input wire I); endmodule
(* blackbox *) module OBUFT (input wire I, input wire T, output wire O); endmodule
(* blackbox *) module IBUFDS (output wire O, input wire I, input wire IB); endmodule
(* blackbox *) module IBUFDS_GTE4 (output wire O, output wire ODIV2, input wire I, input wire IB, input wire CEB); endmodule
(* blackbox *) module IOBUF (output wire O, inout wire IO, input wire I, input wire T); endmodule
(* blackbox *) module IBUFDS_GTE2 (output wire O, output wire ODIV2, input wire I, input wire IB, input wire CEB); endmodule
(* blackbox *) module BUFG (output wire O, input wire I); endmodule
(* blackbox *) module PLLE2_BASE #(
  parameter BANDWIDTH = "OPTIMIZED", parameter CLKFBOUT_MULT = 5, parameter CLKIN1_PERIOD = 0.0, parameter DIVCLK_DIVIDE = 1,
  parameter CLKOUT0_DIVIDE = 1, parameter CLKOUT1_DIVIDE = 1
) (
  output wire CLKFBOUT, output wire CLKOUT0, output wire CLKOUT1, output wire CLKOUT2, output wire CLKOUT3,
  output wire CLKOUT4, output wire CLKOUT5, output wire LOCKED,
  input wire CLKFBIN, input wire CLKIN1, input wire PWRDWN, input wire RST
); endmodule
(* blackbox *) module BUFGCE_DIV #(parameter BUFGCE_DIVIDE = 1) (output wire O, input wire I, input wire CE, input wire CLR);
endmodule
(* blackbox *) module FDPE #(parameter INIT = 1'b1) (output wire Q, input wire C, input wire CE, input wire PRE, input wire D);
endmodule
"""
"""The devices' primitives, as AMD UG974 (UltraScale) and UG953 (7 series) have them."""

UNTOLD = (
    "CASEINCOMPLETE", "DECLFILENAME", "PROCASSINIT", "UNDRIVEN", "UNSIGNED", "UNUSEDPARAM", "UNUSEDSIGNAL", "VARHIDDEN",
    "WIDTHEXPAND", "WIDTHTRUNC",
)  # fmt: skip
"""How generated text looks: several modules in a file, initial values, unused bits, sums in the width of their result."""


class HollowNic(wiring.Component):
    """The core's ports with nothing behind them: a core takes minutes to convert."""

    def __init__(self, config):
        super().__init__(Nic(config).signature)

    def elaborate(self, platform):
        return Module()


def verilog(platform, shell):
    """The whole of a board as Verilog text."""
    return convert_for(platform, shell, "top")


def lint(text, shell, folder):
    """Complaints of Verilator about a board's Verilog and the stubs of its vendor blocks."""
    (folder / "top.v").write_text(text)
    (folder / "stubs.v").write_text(PRIMITIVES + "\n".join(ip.stub() for ip in shell.ips))
    root = verilator_root()
    command = [root / "bin" / "verilator_bin", "--lint-only", "-Wall", *(f"-Wno-{name}" for name in UNTOLD)]
    done = subprocess.run(
        [*command, "--top-module", "top", "top.v", "stubs.v"],
        cwd=folder, env={**os.environ, "VERILATOR_ROOT": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return [line for line in done.stderr.splitlines() if line.startswith("%")]


def same_crossings(text, lines):
    """Names of the crossings that the constraints `lines` speak of, each with registers of the Verilog on both sides and with two
    lines."""
    named = {found for line in lines for found in re.findall(r'== "([^"]+)"', line)}
    assert named and len(lines) == 2 * len(named)
    for side in ("from", "to"):
        assert set(re.findall(rf'acceltcp\.crossing_{side} *= "([^"]+)"', text)) == named
    return named
