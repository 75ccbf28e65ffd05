"""A core behind a host link in the simulator's C++ shell: what a shell drives, with the link as one more port.

The shell knows AXI ports, so the top has them, but nothing happens on them: registers, memory and interrupts take the
link, which is port 1; port 0 is the network's.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

import boards
from hw.config import AXI_BYTES
from hw.nic import Nic
from hw.shell.host_link_nic import LinkedNic
from hw.verilog import convert
from sim.cache import build_once, cache_directory, content_hash
from sim.export import TOP_MODULE, run_constants, source_hash
from sim.verilate import verilate

__all__ = ["BOARD_MAC", "CONFIG", "LINK_PORT", "NETWORK_PORT", "LinkedTop", "library"]

CONFIG = boards.load("ecpix5_85f").config
BOARD_MAC = 0x02_00_00_00_00_B0
NETWORK_PORT, LINK_PORT = 0, 1


class LinkedTop(wiring.Component):
    """`LinkedNic` with the ports of a `Nic` of one port more."""

    def __init__(self, config):
        self._linked = LinkedNic(config)
        self._shape = Nic(replace(config, ports=config.ports + 1, axi_bytes=AXI_BYTES))  # for its ports only
        super().__init__(dict(self._shape.signature.members.items()))

    def elaborate(self, platform):
        m = Module()
        m.submodules.linked = linked = self._linked
        m.d.comb += [linked.mac.eq(BOARD_MAC), linked.tick.eq(self.tick), self.busy.eq(linked.busy)]
        for name, member in self.signature.members.items():
            for network, inner in ((f"rx{LINK_PORT}", "link"), (f"tx{LINK_PORT}", "link"), (f"x{NETWORK_PORT}", f"x{NETWORK_PORT}")):
                if "_axis_" in name and network in name:
                    there = getattr(linked, name.replace(network, inner))
                    m.d.comb += getattr(self, name).eq(there) if member.flow is Out else there.eq(getattr(self, name))
        return m


@cache
def library() -> Path:
    """The Verilated model in its shell."""
    name = content_hash([source_hash(), repr(CONFIG), Path(__file__)])

    def build(directory: Path) -> None:
        text = convert(LinkedTop(CONFIG), TOP_MODULE, strip_internal_attrs=True)
        (directory / f"{name}.v").write_text(run_constants(text))

    verilog = build_once(cache_directory() / "verilog" / f"{name}.v", build).read_text()
    return verilate(verilog, width=CONFIG.width, ports=CONFIG.ports + 1)
