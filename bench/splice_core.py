"""What splicing costs in the core: cycles on the Verilated core at width 64, and memory of a board's configuration.

AXI memory answers after 250 cycles, about a PCIe round trip at 250 MHz. Rates are those of frames that leave, in a window that opens
after the pipelines have filled, with frames in every cycle before; packets of both sides of many pairs take turns. Before that, frames
of both sizes are compared with what they have to be.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hw.build import MODULE, export, memory_usage
from hw.config import NicConfig
from hw.synth.netlist import Netlist, Usage
from hw.synth.yosys import synthesise
from hw.tcp.splice_engine import SpliceEngine
from sim.device import LogKind, open_nic

from .rig import Rig
from .setup import rate
from .splice_rig import Pair, SpliceRig

__all__ = ["measure", "memory"]

PCIE_LATENCY = 250
WARM_UP = 1500


def _dma(rig: Rig) -> int:
    """Beats over the host bus, either way."""
    counters = rig.shell.counters()
    return counters.axi_read_beats + counters.axi_write_beats


def measure(config: NicConfig, opt: str, *, pairs: int = 64, window: int = 8000) -> dict[str, float]:
    """The figures `splice.*` in cycles and bytes. `opt` is how the model is compiled."""
    results: dict[str, float] = {}
    with SpliceRig(open_nic(config, opt=opt, read_latency=PCIE_LATENCY, write_latency=PCIE_LATENCY, quiet=True)) as rig:
        shell = rig.shell
        every = [Pair(index) for index in range(pairs)]
        spent = [rig.splice(pair) - PCIE_LATENCY for pair in every]
        for length in (60, 1514):
            rig.expect(every[:4], length)

        shell.set_log(64)
        shell.rx_many(0, [every[0].segment(1, 60)])
        shell.run(100_000)
        when = {entry.kind: entry.cycle for entry in shell.log()}
        shell.set_log(0)

        shell.set_tx_keep(False)
        before, dma, sent = rig.counters()["splice_packets"], _dma(rig), shell.counters().tx_frames[0]
        total = 0
        for length, unit in ((60, "packets"), (1514, "beats")):
            beats = -(-length // config.width)
            frames = [pair.segment(side, length) for pair in every for side in (0, 1)]
            count = (WARM_UP + window) * 5 // (4 * beats)
            shell.rx_many(0, [frames[number % len(frames)] for number in range(count)])
            per_cycle = rate(rig, lambda: float(shell.counters().tx_frames[0]), warm_up=WARM_UP, window=window - window % beats)
            results[f"splice.{unit}_per_cycle_{length}B"] = per_cycle * beats
            shell.run(1_000_000)
            total += count
        spliced = rig.counters()["splice_packets"] - before
        left = shell.counters().tx_frames[0] - sent
        if spliced != total or left != total:
            raise RuntimeError(f"{total} packets went in, {spliced} were spliced and {left} came out")
        dma = (_dma(rig) - dma) * config.width
        shell.check()
    return results | {
        "splice.latency_cycles": when[LogKind.TX_FIRST] - when[LogKind.RX_LAST],
        "splice.host_dma_bytes": dma,
        "splice.install_cycles": max(spent),
    }


def memory(config: NicConfig, step: Callable[[str], None] = lambda text: None) -> dict[str, float]:
    """What splices and flows together cost in the U50's part; mapped by Yosys."""
    with tempfile.TemporaryDirectory(prefix="acceltcp-") as name:
        folder = Path(name)
        step("memory of the splices (Yosys)")
        source = folder / "splices.v"
        source.write_text(export(config, SpliceEngine(config)))
        netlist, _ = synthesise(source, MODULE, folder, "splices", family="xcup")
        own: Usage = Netlist(netlist, MODULE).usage()
        step("memory of connection table and flows (Yosys)")
        both = own + memory_usage(config, folder)
    return {
        "splice.pairs_u50": config.splices,
        "splice.uram_u50": own.uram,
        "splice.bram36_u50": own.bram,
        "splice.uram_with_flows_u50": both.uram,
        "splice.bram36_with_flows_u50": both.bram,
    }
