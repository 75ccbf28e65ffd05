"""Runs the vendor tool on a folder that `project_files` has filled."""

import re
import shutil

from ..tool import ToolError, running
from .reports import ReportError, timing, utilisation

__all__ = ["TOOL", "VivadoError", "available", "run"]

TOOL = "vivado"
"""Its name on PATH."""

_REPORTS = ("timing.rpt", "utilisation.rpt")
_STAGE = re.compile(r"^ACCELTCP: (.+)")
_PHASE = re.compile(r"^Phase [\d.]+ (.+)")
_VERSION = re.compile(r"\*+ Vivado v?(\S+)")


class VivadoError(ToolError):
    """Vivado's."""


def available():
    """Path of the tool, None if it is not on PATH."""
    return shutil.which(TOOL)


def run(folder, result, progress=None):
    """Build in `folder`; returns the figures: tool, timing, utilisation.

    result: stem of the bitstream and flash image that must come out. `progress` is called with a few words whenever
    the tool begins something. Raises `ToolError`. When this is interrupted the tool is ended; what it
    has finished stays for the next run.
    """
    if not available():
        raise VivadoError(f"{TOOL} is not on PATH")
    log = folder / "work" / "vivado.log"
    stage, version, errors, figures = "its start", "", [], None
    for name in _REPORTS:  # an earlier run's
        (folder / name).unlink(missing_ok=True)
    with running(["/bin/sh", str(folder / "build.sh")], "build.sh") as (lines, status):
        for line in lines:
            words = None
            if match := _STAGE.match(line):
                words = stage = match[1]
            elif match := _PHASE.match(line):
                words = f"{stage}: {match[1]}"
            elif match := _VERSION.match(line):
                version = match[1]
            elif line.startswith("ERROR"):
                errors.append(line)
            if progress and words:
                progress(words)
        ended = status()
    if all((folder / name).is_file() for name in _REPORTS):
        figures = _figures(folder, version)
    if ended:
        words = errors[0] if errors else f"it ended with status {ended}"
        raise VivadoError(f"{TOOL} failed in {stage}: {words} (see {log})", figures)
    missing = [name for name in (f"{result}.bit", f"{result}.mcs") if not (folder / name).is_file()]
    if missing or not figures:
        raise VivadoError(f"{TOOL} ended without {', '.join(missing) or 'reports'} (see {log})", figures)
    return figures


def _figures(folder, version):
    texts = {name: (folder / name).read_text(errors="replace") for name in _REPORTS}
    try:
        return {
            "tool": f"Vivado {version}".strip(),
            "timing": timing(texts["timing.rpt"]),
            "utilisation": utilisation(texts["utilisation.rpt"]),
        }
    except ReportError as error:
        raise VivadoError(f"{TOOL} left a report that cannot be read: {error} (see {folder})") from None
