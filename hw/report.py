"""The figures of a build: per stage and in total, as JSON and as a table.

The total is of the flattened core. The stages below it are synthesised with their boundaries
kept, so nothing is optimised from one into the other and their sum is a little more than the total.
"""

import json
from dataclasses import asdict, dataclass, field, fields

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
_PLAIN = ("board", "part", "config", "capacity", "seconds", "cpu_seconds", "tool")
"""Fields of a report that are plain data."""


@dataclass
class Figures:
    """One row: what a netlist uses, and its deepest paths, deepest first."""

    usage: Usage
    paths: list[Path]

    @classmethod
    def of(cls, netlist, count=10):
        """Figures of a `Netlist`."""
        return cls(netlist.usage(), netlist.paths(count))

    @classmethod
    def from_dict(cls, row):
        """Figures from plain data, as a report has them."""
        usage = Usage(**{each.name: row[each.name] for each in fields(Usage)})
        return cls(usage, [Path(**path) for path in row["paths"]])

    @property
    def path(self):
        """The deepest path."""
        return self.paths[0] if self.paths else Path()


@dataclass
class Report:
    """Everything that a build found out.

    total, stages, tool: what Yosys says of the core, None and empty without it.
    implementation: what the vendor's tool says of the whole board (`hw.vivado.run`), None without it.
    """

    board: str
    part: str
    config: dict
    capacity: dict
    goals: dict
    total: Figures | None = None
    stages: dict[str, Figures] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    tool: str = ""
    implementation: dict | None = None

    def shares(self):
        """Resource -> share of the part, 0 to 1."""
        if not self.total:
            return {}
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
        if not self.total:
            return {}
        values = {**asdict(self.total.usage), _LEVELS: self.total.path.levels}
        return {name: (limit, values[name], values[name] <= limit) for name, limit in self.goals.items()}

    def as_dict(self):
        """Plain data for JSON."""

        verdicts = self.verdicts()

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
                name: dict(zip(("limit", "value", "met"), verdicts.get(name, (limit, None, None)), strict=True))
                for name, limit in self.goals.items()
            },
            "total": figures(self.total) if self.total else None,
            "stages": {name: figures(row) for name, row in self.stages.items()},
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "cpu_seconds": {name: round(value, 1) for name, value in self.cpu_seconds.items()},
            "implementation": self.implementation,
        }

    @classmethod
    def from_dict(cls, plain):
        """The report that `as_dict` was made of. Raises `ValueError` if it was none."""
        try:
            total = plain["total"]
            return cls(
                **{name: plain[name] for name in _PLAIN},
                goals={name: goal["limit"] for name, goal in plain["goals"].items()},
                total=Figures.from_dict(total) if total else None,
                stages={name: Figures.from_dict(row) for name, row in plain["stages"].items()},
                implementation=plain.get("implementation"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no build report: {type(error).__name__} {error}") from None

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
        if self.total:
            self._print_core(console)
        if self.implementation:
            self._print_implementation(console)
        times = ", ".join(
            f"{name} {value:.0f} s ({self.cpu_seconds.get(name, 0):.0f} s of processor)"
            for name, value in self.seconds.items()
        )
        console.print(Text(f"{self.tool}; time: {times}" if self.tool else f"Time: {times}"))

    def _print_core(self, console):
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

    def _print_implementation(self, console):
        timing, used = self.implementation["timing"], self.implementation["utilisation"]
        slack = ", ".join(
            f"{kind} {'none' if timing[f'{kind}_slack_ns'] is None else format(timing[f'{kind}_slack_ns'], '+.3f')}"
            for kind in ("setup", "hold", "pulse")
        )
        verdict = "met" if timing["met"] else f"NOT MET at {timing['setup_failing']} endpoints"
        style = "green" if timing["met"] else "red"
        console.print(Text(f"{self.board} placed and routed by {self.implementation['tool']}", style="bold"))
        console.print(Text(f"Timing {verdict}; worst slack in ns: {slack}", style=style))
        for name, row in self.implementation.get("clocks", {}).items():
            console.print(Text(f"  {name}: {row['mhz']:g} MHz of {row['wanted_mhz']:g} wanted"))
        shares = ", ".join(
            f"{row['used']:,g} {name.upper()} ({row['used'] / row['available']:.1%})"
            for name, row in used.items()
            if row["available"]
        )
        console.print(Text(f"Of the part: {shares}"))

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
