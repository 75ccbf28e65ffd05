"""Saved reports of builds, over all boards and over time: `acceltcp report`, or `python -m hw.build --report`."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .plots import drawing, save
from .report import Report

__all__ = ["compare", "draw", "load", "main", "saved", "show"]

_FILE = "report.json"
_FIGURES = ("lut_sites", "ff", "bram36", "uram", "dsp")
_WHOLE = "whole core"


def load(path):
    """The report in a file, or in a folder of results. Raises `ValueError` or `OSError`."""
    path = Path(path)
    if path.is_dir():
        path = path / _FILE
    try:
        return Report.from_dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def saved(out):
    """Board -> report, for all boards that have one in the folder of results."""
    reports = [load(file) for file in sorted(Path(out).glob(f"*/{_FILE}"))]
    return {report.board: report for report in reports}


def compare(before, after):
    """Figure by figure: stage -> figure -> (before, after), for what differs; the whole core first."""

    def rows(report):
        if not report.total:
            return {}
        figures = {_WHOLE: report.total, **report.stages}
        return {
            name: {**{key: getattr(row.usage, key) for key in _FIGURES}, "levels": row.path.levels}
            for name, row in figures.items()
        }

    old, new = rows(before), rows(after)
    found = {}
    for name in dict.fromkeys([*old, *new]):
        one, two = old.get(name, {}), new.get(name, {})
        changes = {
            key: (one.get(key, 0), two.get(key, 0)) for key in one | two if one.get(key, 0) != two.get(key, 0)
        }
        if changes:
            found[name] = changes
    return found


def draw(reports, file):
    """Draw area by stage and deepest paths of all boards, as PNG and as SVG beside it; returns both files.

    file: its suffix does not count. Raises `ModuleNotFoundError` without matplotlib.
    """
    pyplot = drawing()
    shown = {name: report for name, report in reports.items() if report.total}
    figure, (area, depth) = pyplot.subplots(
        1, 2, figsize=(12, 1.5 + 0.6 * max(len(shown), 1)), layout="constrained"
    )
    stages = sorted(
        {stage for report in shown.values() for stage in report.stages},
        key=lambda stage: -max(r.stages[stage].usage.lut_sites for r in shown.values() if stage in r.stages),
    )
    left = dict.fromkeys(shown, 0.0)
    colors = pyplot.colormaps["tab20"]
    for number, stage in enumerate(stages):
        sizes = {
            name: 100 * report.stages[stage].usage.lut_sites / report.capacity["lut"]
            for name, report in shown.items()
            if stage in report.stages
        }
        area.barh(
            list(sizes),
            list(sizes.values()),
            left=[left[name] for name in sizes],
            label=stage,
            color=colors(number % 20),
        )
        for name, size in sizes.items():
            left[name] += size
    whole = [100 * report.shares()["lut"] for report in shown.values()]
    area.plot(whole, list(shown), "|", color="black", markersize=16, label="flattened")
    area.set_xlabel("LUT sites, per cent of the device")
    area.legend(fontsize=6, ncols=2)
    depth.barh(list(shown), [report.total.path.levels for report in shown.values()], color="#2f6f9f")
    for name, report in shown.items():
        if "levels" in report.goals:
            depth.plot([report.goals["levels"]], [name], "|", color="#b0562f", markersize=16)
    depth.set_xlabel("LUT levels on the longest path (mark: goal)")
    return save(figure, file)


def show(out, *, compare=None, as_json=False, plot=None):
    """Print the reports in the folder `out`, or how two differ; returns the exit status.

    compare: two files, folders, or names of boards in `out`. plot: where to draw the reports.
    """
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        if compare:
            _show_difference(console, *(_find(out, name) for name in compare), as_json)
            return 0
        reports = saved(out)
        if not reports:
            raise ValueError(
                f"no {_FILE} in {out}/*: build a board first, such as python -m hw.build --board alveo_u50"
            )
        if as_json:
            sys.stdout.write(
                json.dumps({name: report.as_dict() for name, report in reports.items()}, indent=2) + "\n"
            )
        else:
            _show_all(console, reports)
        if plot:
            files = " and ".join(map(str, draw(reports, plot)))
            print(f"drawn to {files}", file=sys.stderr)
    except ModuleNotFoundError as error:
        return _fail(
            f"a plot needs what is not installed here (no module {error.name}): pip install 'acceltcp[dev]'"
        )
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        return _fail(error)
    return 0


def _fail(text):
    print(f"error: {text}", file=sys.stderr)
    return 1


def _find(out, name):
    return load(name if Path(name).exists() else Path(out) / name)


def _show_all(console, reports):
    table = Table(title="Boards", title_justify="left")
    table.add_column("board", no_wrap=True)
    for heading in ("LUT sites", "FF", "BRAM36", "URAM", "DSP", "LUT levels", "placed and routed"):
        table.add_column(heading, justify="right")
    names = {"lut": "lut_sites", "ff": "ff", "bram36": None, "uram": "uram", "dsp": "dsp"}
    for name, report in reports.items():
        cells = ["-"] * (len(names) + 1)
        if report.total:
            usage, shares = report.total.usage, report.shares()
            counts = {key: getattr(usage, field) if field else usage.bram for key, field in names.items()}
            cells = [
                f"{count:,g} ({shares[key]:.1%})" if key in shares else f"{count:,g}"
                for key, count in counts.items()
            ]
            cells.append(str(report.total.path.levels))
        table.add_row(name, *cells, _verdict(report))
    console.print(table)
    for report in reports.values():
        report.print(console)


def _verdict(report):
    if not report.implementation:
        return Text("no")
    timing = report.implementation["timing"]
    slack = timing["setup_slack_ns"]
    return Text(
        f"{'met' if timing['met'] else 'NOT MET'}{'' if slack is None else f', {slack:+.3f} ns'}",
        style="green" if timing["met"] else "red",
    )


def _show_difference(console, before, after, as_json):
    found = compare(before, after)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    if not found:
        console.print(f"{before.board} and {after.board}: the same figures", highlight=False)
        return
    table = Table(title=f"{before.board} -> {after.board}", title_justify="left")
    table.add_column("stage", no_wrap=True)
    keys = [*_FIGURES, "levels"]
    for key in keys:
        table.add_column(key, justify="right")
    for name, changes in found.items():
        cells = [
            f"{changes[key][0]:,} -> {changes[key][1]:,} ({changes[key][1] - changes[key][0]:+,})"
            if key in changes
            else "="
            for key in keys
        ]
        table.add_row(Text(name), *cells)
    console.print(table)


def main(arguments=None):
    """The command `acceltcp report`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="acceltcp report", description="Area and timing of the boards built so far."
    )
    parser.add_argument("--out", default="build", type=Path, help="folder of results (default: build)")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="how two reports differ: files, folders, or boards"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as PNG and SVG")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    return show(options.out, compare=options.compare, as_json=options.json, plot=options.plot)
