"""The figures of a build: per stage and in total, as JSON and as a table.

The total is of the flattened core. The stages below it are synthesised with their boundaries
kept, so nothing is optimised from one into the other and their sum is a little more than the total.
"""

import json
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .synth.netlist import Path, Usage

__all__ = ["Figures", "Report"]

_COLUMNS = (
    ("LUT sites", "lut_sites"),
    ("of them LUT", "lut"),
    ("LUTRAM", "lutram"),
    ("SRL", "srl"),
    ("FF", "ff"),
    ("BRAM36", "bram36"),
    ("BRAM18", "bram18"),
    ("URAM", "uram"),
    ("DSP", "dsp"),
    ("carry", "carry"),
)
_LEVELS = "levels"


@dataclass
class Figures:
    """One row: what a netlist uses, and its deepest paths, deepest first."""

    usage: Usage
    paths: list[Path]

    @classmethod
    def of(cls, netlist, count=10):
        """Figures of a `Netlist`."""
        return cls(netlist.usage(), netlist.paths(count))

    @property
    def path(self):
        """The deepest path."""
        return self.paths[0] if self.paths else Path()


@dataclass
class Report:
    """Everything that a build found out."""

    board: str
    part: str
    config: dict
    capacity: dict
    goals: dict
    total: Figures
    stages: dict[str, Figures] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    tool: str = ""

    def shares(self):
        """Resource -> share of the part, 0 to 1."""
        usage = self.total.usage
        used = {
            "lut": usage.lut_sites,
            "ff": usage.ff,
            "bram36": usage.bram,
            "uram": usage.uram,
            "dsp": usage.dsp,
        }
        return {name: used[name] / self.capacity[name] for name in used if self.capacity.get(name)}

    def verdicts(self):
        """Goal -> (limit, value, met)."""
        values = {**asdict(self.total.usage), _LEVELS: self.total.path.levels}
        return {name: (limit, values[name], values[name] <= limit) for name, limit in self.goals.items()}

    def as_dict(self):
        """Plain data for JSON."""

        def figures(row):
            return {**asdict(row.usage), "levels": row.path.levels, "paths": [p.as_dict() for p in row.paths]}

        return {
            "board": self.board,
            "part": self.part,
            "tool": self.tool,
            "config": self.config,
            "capacity": self.capacity,
            "shares": self.shares(),
            "goals": {
                name: {"limit": limit, "value": value, "met": met}
                for name, (limit, value, met) in self.verdicts().items()
            },
            "total": figures(self.total),
            "stages": {name: figures(row) for name, row in self.stages.items()},
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "cpu_seconds": {name: round(value, 1) for name, value in self.cpu_seconds.items()},
        }

    def to_json(self):
        """The report as JSON text."""
        return json.dumps(self.as_dict(), indent=2) + "\n"

    def to_text(self):
        """The report as plain text."""
        console = Console(width=140, record=True, file=_Nowhere(), no_color=True)
        self.print(console)
        return console.export_text()

    def print(self, console):
        """Print the tables."""
        table = Table(title=f"{self.board} ({self.part})", title_justify="left")
        table.add_column("stage", no_wrap=True)
        for heading, _ in _COLUMNS:
            table.add_column(heading, justify="right")
        table.add_column("LUT levels", justify="right")

        def add(name, row, style=None):
            path = row.path
            levels = f"{path.levels}" + (f" +{path.carries} carry" if path.carries else "")
            counts = [getattr(row.usage, key) for _, key in _COLUMNS]
            cells = [f"{count:,}" if count else "-" for count in counts]
            table.add_row(Text(name), *cells, levels, style=style)

        for name, row in sorted(self.stages.items(), key=lambda item: -item[1].usage.lut_sites):
            add(name, row)
        if self.stages:
            table.add_section()
        add("whole core, flattened", self.total, "bold")
        console.print(table)

        shares = ", ".join(
            f"{share:.1%} of {self.capacity[name]:,} {name.upper()}" for name, share in self.shares().items()
        )
        console.print(Text(f"Of the part: {shares}"))
        for name, (limit, value, met) in self.verdicts().items():
            console.print(
                Text(
                    f"Goal {name} <= {limit:,}: {value:,} {'met' if met else 'NOT MET'}",
                    style="green" if met else "red",
                )
            )
        if self.total.usage.latch:
            console.print(Text(f"{self.total.usage.latch} latches: a design error", style="red"))
        self._print_paths(console)
        times = ", ".join(
            f"{name} {value:.0f} s ({self.cpu_seconds.get(name, 0):.0f} s of processor)"
            for name, value in self.seconds.items()
        )
        console.print(Text(f"{self.tool}; time: {times}"))

    def _print_paths(self, console):
        console.print(Text("Deepest paths (LUT levels, carries, from -> to):"))
        for path in self.total.paths:
            console.print(Text(f"  {path.levels:3} {path.carries:3}  {path.start} -> {path.end}"))
        if self.total.path.steps:
            console.print(Text("The deepest one, cell by cell:"))
            for step in self.total.path.steps:
                console.print(Text(f"      {step}"))


class _Nowhere:
    """A file that forgets; rich wants one to record."""

    def write(self, text):
        return len(text)

    def flush(self):
        pass
