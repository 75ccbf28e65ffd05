"""Builds the core for a board: `python -m hw.build --board alveo_u50`.

Writes build/<board>/acceltcp_nic.v; unless told not to, synthesises it with Yosys and
writes report.json and report.txt beside it. Every parameter of `NicConfig` has a flag.
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import boards

from .config import NicConfig
from .report import Figures, Report
from .synth.netlist import Netlist, NetlistError, Usage
from .synth.yosys import SynthesisError, stage_modules, synthesise
from .verilog import convert

__all__ = ["MODULE", "board_config", "build", "export", "main", "memory_usage"]

MODULE = "acceltcp_nic"
"""Name of the Verilog module."""


def export(config, design=None):
    """The core (or another design) as Verilog text."""
    if design is None:
        from .nic import Nic

        design = Nic(config)
    return convert(design, MODULE)


def build(board, config, out, *, synth=True, stages=True, design=None, console=None):
    """Write the Verilog and, with `synth`, the report; returns the `Report` or None.

    `stages` adds the figures stage by stage, which takes a second synthesis. Raises
    `SynthesisError` or `NetlistError`.
    """
    console = console or Console(stderr=True)
    folder = Path(out).resolve() / board.name
    folder.mkdir(parents=True, exist_ok=True)
    seconds, cpu_seconds = {}, {}
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
    ) as progress:

        def step(label, work):
            task = progress.add_task(label, total=None)
            started, cpu_started = time.monotonic(), _cpu()
            result = work(lambda text: progress.update(task, description=f"{label}: {text}"))
            seconds[label] = time.monotonic() - started
            cpu_seconds[label] = _cpu() - cpu_started
            progress.update(task, description=label, total=1, completed=1)
            return result

        text = step("export", lambda _: export(config, design))
        source = folder / f"{MODULE}.v"
        source.write_text(text)
        if not synth:
            return None

        def run(label, kept):
            def work(tell):
                name = label.replace(" ", "-")
                found, _ = synthesise(
                    source, MODULE, folder, name, family=board.family, stages=kept.values(), progress=tell
                )
                return found

            return step(label, work)

        modules = stage_modules(text, MODULE) if stages else {}
        # The two netlists are large: the first is let go before the second is made.
        total = Figures.of(Netlist(run("whole core", {}), MODULE))
        rows = {}
        if modules:
            hierarchy = run("stages", modules)
            rows = {
                name: Figures.of(Netlist(hierarchy, module.removeprefix("\\")), 3)
                for name, module in modules.items()
                # A stage without any cell (wiring only) is dissolved.
                if module.removeprefix("\\") in hierarchy["modules"]
            }
            rows["(wiring)"] = Figures.of(Netlist(hierarchy, MODULE), 3)
    report = Report(
        board=board.name,
        part=board.part,
        config=dataclasses.asdict(config),
        capacity=board.capacity,
        goals=board.goals,
        total=total,
        stages=rows,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        tool=_tool(),
    )
    (folder / "report.json").write_text(report.to_json())
    (folder / "report.txt").write_text(report.to_text())
    return report


def board_config(name):
    """The `NicConfig` of a board. Raises `ValueError` for an unknown one."""
    return boards.load(name).config


def memory_usage(config, folder, *, family="xcup"):
    """What connection table and flow state cost when they are synthesised alone; a `Usage`.

    Logs go to `folder`. Raises `SynthesisError` or `NetlistError`.
    """
    from .table.connection_table import ConnectionTable
    from .tcp.teardown import Teardown

    total = Usage()
    for design in (ConnectionTable(config.table), Teardown(config)):
        label = type(design).__name__
        source = Path(folder) / f"{label}.v"
        source.write_text(export(config, design))
        netlist, _ = synthesise(source, MODULE, folder, label, family=family)
        total += Netlist(netlist, MODULE).usage()
    return total


def _cpu():
    """Processor time of this process and of those it has waited for."""
    return sum(os.times()[:4])


def _tool():
    from importlib.metadata import version

    return f"Yosys {version('pyosys')}, synth_xilinx with abc9; Amaranth {version('amaranth')}"


def _parser():
    parser = argparse.ArgumentParser(prog="python -m hw.build", description=__doc__.splitlines()[0])
    parser.add_argument("--board", help="which board; see --list")
    parser.add_argument("--list", action="store_true", help="list the boards and stop")
    parser.add_argument("--out", default="build", type=Path, help="folder for results (default: build)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    parser.add_argument("--no-synth", action="store_true", help="write the Verilog only")
    parser.add_argument("--no-stages", action="store_true", help="the whole core only: half the time")
    group = parser.add_argument_group("parameters of the core", "what is not given is the board's")
    for field in dataclasses.fields(NicConfig):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            group.add_argument(flag, default=None, action=argparse.BooleanOptionalAction)
        else:
            group.add_argument(flag, default=None, type=int, metavar="N")
    return parser


def main(arguments=None, design=None):
    """The command. Returns the exit status: 0, 1 for a failed synthesis, 2 for bad arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    output, console = Console(soft_wrap=True), Console(stderr=True)
    if options.list:
        for name in boards.names():
            board = boards.load(name)
            output.print(f"{name}  {board.title}, {board.part}", highlight=False)
        return 0
    if not options.board:
        parser.error("--board is needed; --list shows the boards")
    try:
        board = boards.load(options.board)
        flags = {name: getattr(options, name) for name in NicConfig.names()}
        given = {name: value for name, value in flags.items() if value is not None}
        if "width" in given:
            # Buffers are given in beats: with another width they go back to their size in bytes.
            given = {"rx_buffer_beats": None, "tx_buffer_beats": None, **given}
        config = dataclasses.replace(board.config, **given)
    except ValueError as error:
        parser.error(str(error))
    try:
        report = build(
            board,
            config,
            options.out,
            synth=not options.no_synth,
            stages=not options.no_stages,
            design=design,
            console=console,
        )
    except (SynthesisError, NetlistError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    console.print(f"written to {options.out / board.name}", highlight=False, soft_wrap=True)
    if report and options.json:
        sys.stdout.write(report.to_json())
    elif report:
        report.print(Console(width=None if sys.stdout.isatty() else 140))
    return 0


if __name__ == "__main__":
    sys.exit(main())
