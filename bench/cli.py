"""`acceltcp bench NAME`: run a benchmark, print its table, write its JSON."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import host, setup, splice, teardown, vfio
from .goals import Goal

__all__ = ["main"]

BENCHES = {"setup": setup, "teardown": teardown, "host": host, "splice": splice, "vfio": vfio}
PLOTS = {"host": host.plot, "splice": splice.plot}


def _show(console: Console, title: str, goals: dict[str, Goal], results: dict[str, float]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("goal", justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("what", style="dim")
    for key, value in results.items():
        goal = goals[key]
        met = goal.met(value)
        mark = "" if met is None else "[green]✔[/]" if met else "[red]✘[/]"
        shown = f"{value:,.0f}" if value == int(value) or value > 1000 else f"{value:.3f}"
        table.add_row(key, shown, str(goal), mark, goal.what)
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="acceltcp bench", description="Run a benchmark.")
    parser.add_argument("name", choices=list(BENCHES), help="setup: connection setup and rings; teardown: connection table and teardown; host: CPU time of the host stack; splice: splicing; vfio: the transports, the kernel's in a guest")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there ('-': standard output)")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw FILE.png and FILE.svg. host: the breakdown; splice: the gain over sizes")
    arguments = parser.parse_args(argv)
    bench = BENCHES[arguments.name]
    if arguments.plot and arguments.name not in PLOTS:
        parser.error(f"there is no plot of {arguments.name}, only of {' and '.join(PLOTS)}")
    console = Console(stderr=arguments.json == Path("-"))
    try:
        with console.status("") as status:
            results = bench.measure(lambda text: status.update(f"bench {arguments.name}: {text}"))
    except (RuntimeError, OSError, AssertionError) as error:
        print(f"acceltcp bench: {error}", file=sys.stderr)
        return 1
    _show(console, bench.TITLE, bench.GOALS, results)
    if arguments.json:
        text = json.dumps({"bench": arguments.name, "machine": platform.machine(), "results": results}, indent=2)
        if arguments.json == Path("-"):
            print(text)
        else:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(text + "\n")
            console.print(f"written: {arguments.json}")
    if arguments.plot:
        console.print(f"drawn: {', '.join(map(str, PLOTS[arguments.name](results, arguments.plot)))}")
    return 0
