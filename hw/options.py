"""What `python -m hw.build` is told: flags, a TOML file, and the configuration that comes of them."""

import argparse
import dataclasses
import difflib
import tomllib
from pathlib import Path

from .config import NicConfig

__all__ = ["configuration", "parser"]


def parser(prog, description):
    """The command's parser, with a flag for every parameter of the core."""
    made = argparse.ArgumentParser(prog=prog, description=description)
    made.add_argument("--board", help="which board; see --list")
    made.add_argument("--list", action="store_true", help="describe the boards and stop")
    made.add_argument("--out", default="build", type=Path, help="folder for results (default: build)")
    made.add_argument("--core-clock", metavar="NAME", help="what drives the core, where the shell leaves a choice: pcie, mac")
    made.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    made.add_argument(
        "--no-synth", action="store_true", help="no synthesis with Yosys, so no report of area and depth"
    )
    made.add_argument("--no-stages", action="store_true", help="report on the whole core only: half the time")
    made.add_argument("--no-vivado", action="store_true", help="do not run Vivado, or nextpnr for Lattice's boards, even if it is there")
    made.add_argument(
        "--report", action="store_true", help="print what is known of all boards built so far, and stop"
    )
    made.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="compare two saved reports and stop: files, folders, boards",
    )
    made.add_argument("--plot", type=Path, metavar="FILE", help="with --report: draw it, as PNG and SVG")
    group = made.add_argument_group(
        "parameters of the core", "what is not given is the file's, then the board's"
    )
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file: parameters by name, such as flows = 65536"
    )
    for field in dataclasses.fields(NicConfig):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            group.add_argument(flag, default=None, action=argparse.BooleanOptionalAction)
        else:
            group.add_argument(flag, default=None, type=int, metavar="N")
    return made


def configuration(base, options):
    """The configuration `base` with what file and flags change. Raises `ValueError`, one line, and `OSError`."""
    given = _read(options.config) if options.config else {}
    given |= {name: value for name in NicConfig.names() if (value := getattr(options, name)) is not None}
    if "width" in given:
        # Buffers are given in beats: with another width they go back to their size in bytes.
        given = {"rx_buffer_beats": None, "tx_buffer_beats": None, **given}
        # The bus is at least as wide.
        if given["width"] > base.axi_bytes:
            given = {"axi_bytes": given["width"], **given}
    if "axi_bytes" in given:
        given = {"read_beats": None, **given}
    if "flows" in given:
        # So do splices to their share of the flows.
        given = {"splices": min(base.splices, given["flows"] // 4), **given}
    return dataclasses.replace(base, **given)


def _read(path):
    """Parameter -> value, from a TOML file."""
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    fields = {field.name: field for field in dataclasses.fields(NicConfig)}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0)[0]
            raise ValueError(f"{path}: there is no parameter {name!r}; did you mean {near!r}?")
        kind = bool if fields[name].type is bool else int
        if type(value) is not kind:
            words = "true or false" if kind is bool else "a whole number"
            raise ValueError(f"{path}: {name} must be {words}, not {value!r}")
    return values
