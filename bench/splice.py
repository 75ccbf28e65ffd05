"""`acceltcp bench splice`: what splicing costs the core in cycles, and what it saves a proxy's host in CPU time.

**Core.** See `bench.splice_core`: rates, latency and host bus of spliced packets; installing a splice; pairs that the U50 holds.

**Host.** Three processes in a network namespace, as in `acceltcp bench host`: the Verilated core behind vfio-user and a TAP interface;
clients and back end on the kernel's sockets (`bench.splice_load`); and the proxy (`bench.splice_server`), whose CPU time alone (user
and system) is taken. What a proxy spends while it waits for the slow NIC is in it, for both ways alike. Interrupts are moderated as in `acceltcp bench host`. What is compared is
the same proxy with the same connections, whether `acceltcp.host.splice` asks the NIC or relays in software; both take turns in
one process, in every round. Figures are per response of 64 KiB unless something else is said. Without a suffix: as the published system
does, the proxy reads a connection's first request, chooses the back end and joins the connections for good; 100 requests come on each (fewer
of more than 64 KiB), and opening, joining and closing count. `_response`: a bounded splice for each response, so that the proxy sees every request; the
connections are open before. `_head`: so, too, but the proxy reads the response's head and splices the rest, so that the
first of the server's packets, and their acknowledgments, are the host's. `_once`: connect, one response through an unbounded splice, close.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from acceltcp.host.transport import SIMULATED_QUEUES
from hw.build import board_config
from hw.config import NicConfig
from hw.plots import drawing, save

from . import splice_core
from .goals import Goal
from .host import run_rig
from .splice_host import KINDS, PLOTTED, RESPONSE, SIZES, WAYS, Plan, label, name_of, suffix

__all__ = ["GOALS", "TITLE", "measure", "plot"]

TITLE = "Splicing: cycles on the Verilated core, width 64; the proxy's CPU time, the NIC being the Verilated core in another process"

WIDTH = 64
_BOARD = "alveo_u50"


def _goals() -> dict[str, Goal]:
    """In the order in which they are printed."""
    goals = {
        "splice.packets_per_cycle_60B": Goal("spliced 60-byte packets per cycle", least=1.0),
        "splice.beats_per_cycle_1514B": Goal("beats of spliced 1514-byte packets per cycle", least=1.0),
        "splice.latency_cycles": Goal("cycles from the last beat in to the first beat out, one-beat packet", most=128),
        "splice.host_dma_bytes": Goal("bytes over the host bus while spliced packets pass", most=0),
        "splice.install_cycles": Goal("cycles from SPLICE fetched to COMMAND_DONE, one read of the host's memory included"),
        "splice.pairs_u50": Goal("pairs that the U50's configuration holds", least=65_536),
        "splice.uram_u50": Goal("Ultra RAM blocks of the splices (Yosys)"),
        "splice.bram36_u50": Goal("block RAMs of the splices"),
        "splice.uram_with_flows_u50": Goal("Ultra RAM blocks with connection table and flow state, of the part's 640", most=640),
        "splice.bram36_with_flows_u50": Goal("block RAMs likewise, of the part's 1344", most=1344),
    }
    what = {
        "connection": ", one splice per connection", "response": ", one splice each", "head": ", one splice each, head read by the proxy",
        "once": " on a connection of its own",
    }  # fmt: skip
    for kind in KINDS:
        for size in SIZES if kind in PLOTTED else (RESPONSE,):
            behind, of = suffix(kind, size), f"response of {label(size)}{what[kind]}"
            main = (kind, size) == (KINDS[0], RESPONSE)
            goals[f"host.splice_ratio{behind}"] = Goal(f"CPU relayed / spliced, {of}", least=11.9 if main else None)
            goals[f"host.splice_ratio_lowest{behind}"] = Goal("the same, lowest round")
            goals[f"host.splice_ratio_highest{behind}"] = Goal("the same, highest round")
            name = name_of(kind, size)
            for way in WAYS:
                goals[f"host.us_per_{way}_{name}"] = Goal(f"CPU of a {way} {of}, µs")
                goals[f"host.spread_{way}_{name}"] = Goal("half the range of the rounds over the median")
                goals[f"host.packets_per_{name}_{way}"] = Goal(f"packets that the host gets and sends per {way} {of}")
    goals["host.splice_rounds"] = Goal("rounds of the host's figures")
    return goals


GOALS = _goals()
"""Key -> what it is and what it should be, in the order in which they are printed."""


def measure(
    step: Callable[[str], None] = lambda text: None, *, board: NicConfig | None = None, plan: Plan | None = None, window: int = 8000
) -> dict[str, float]:
    """All figures, by key; without those of sizes that `plan` leaves out. `step` is told what comes next.

    board: the configuration whose memory is counted instead of the U50's. plan: of the host's part; `plan.opt` is how the model is
    compiled. window: cycles that rates are taken over.
    """
    plan = plan or Plan()
    step("building the core (kept for the next time)")
    results = splice_core.measure(NicConfig(width=WIDTH, queues=SIMULATED_QUEUES), plan.opt, window=window)
    results |= run_rig("bench.splice_host", plan.json(), step)["results"]
    results |= splice_core.memory(board or board_config(_BOARD), step)
    return {key: float(results[key]) for key in GOALS if key in results}


def plot(results: dict[str, float], file: Path) -> list[Path]:
    """Draw the ratio of CPU times over the size of the response, as PNG and as SVG beside it.

    results: figures as of `measure`. file: its suffix does not count. Returns the files written.
    """
    pyplot = drawing()
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    sizes = [size for size in SIZES if f"host.splice_ratio{suffix(KINDS[0], size)}" in results]

    def column(name: str, kind: str) -> list[float]:
        return [results[f"host.splice_ratio{name}{suffix(kind, size)}"] for size in sizes]

    for kind, marker, color, what in (
        ("connection", "o", "#2f6f9f", "one splice per connection, up to 100 requests on it"),
        ("response", "D", "#7a5195", "one splice per response, connections stay open"),
    ):
        ratios = column("", kind)
        bars = [[abs(ratio - end) for ratio, end in zip(ratios, column(name, kind), strict=True)] for name in ("_lowest", "_highest")]
        axes.errorbar(sizes, ratios, yerr=bars, marker=marker, capsize=3, color=color, label=what)
    for kind, marker, color, what in (
        ("head", "s", "#b0562f", "one splice per response, head read by the proxy"),
        ("once", "^", "#5a8f3c", "one connection per response"),
    ):
        axes.plot([RESPONSE], [results[f"host.splice_ratio_{kind}"]], marker, color=color, label=what)
    goal = GOALS["host.splice_ratio"].least
    assert goal is not None
    axes.plot([RESPONSE], [goal], "_", markersize=18, color="#444444", label=f"goal at {label(RESPONSE)}: {goal:g}")
    axes.axhline(1, color="#9a9a9a", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [label(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("bytes of the response")
    axes.set_ylabel("CPU time of the proxy, relayed / spliced")
    axes.set_title(f"median of {results['host.splice_rounds']:.0f} rounds (bars: lowest and highest)", fontsize=10)
    axes.legend(fontsize=8)
    return save(figure, file)
