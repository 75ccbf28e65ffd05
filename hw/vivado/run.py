"""Runs the vendor tool on a folder that `project_files` has filled."""

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import threading

from .reports import ReportError, timing, utilisation

__all__ = ["TOOL", "VivadoError", "available", "run"]

TOOL = "vivado"
"""Its name on PATH."""

_GRACE = 2.0
"""Seconds for the last lines after the tool has ended, and for it to end when it is told to."""

_REPORTS = ("timing.rpt", "utilisation.rpt")
_STAGE = re.compile(r"^ACCELTCP: (.+)")
_PHASE = re.compile(r"^Phase [\d.]+ (.+)")
_VERSION = re.compile(r"\*+ Vivado v?(\S+)")


class VivadoError(RuntimeError):
    """The tool is not there, failed, or left something out; the text is one line.

    figures: what its reports said all the same, None if it had not come so far.
    """

    def __init__(self, text, figures=None):
        super().__init__(text)
        self.figures = figures


def available():
    """Path of the tool, None if it is not on PATH."""
    return shutil.which(TOOL)


def run(folder, result, progress=None):
    """Build in `folder`; returns the figures: tool, timing, utilisation.

    result: stem of the bitstream and flash image that must come out. `progress` is called with a few words whenever
    the tool begins something. Raises `VivadoError`. When this is interrupted the tool is ended; what it
    has finished stays for the next run.
    """
    log = folder / "work" / "vivado.log"
    stage, version, errors, figures = "its start", "", [], None
    for name in _REPORTS:  # an earlier run's
        (folder / name).unlink(missing_ok=True)
    with _tool(folder) as (lines, status):
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


@contextlib.contextmanager
def _tool(folder):
    """The running tool: its lines as they come, and a function for its exit status after them.

    It has a process group of its own, which is ended with the block: it starts helpers that would live on, and
    that may hold its output open.
    """
    if not available():
        raise VivadoError(f"{TOOL} is not on PATH")
    try:
        process = subprocess.Popen(
            ["/bin/sh", str(folder / "build.sh")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise VivadoError(f"build.sh cannot be run: {error.strerror}") from None
    lines = queue.SimpleQueue()

    def read():
        with contextlib.suppress(ValueError):  # closed below
            for line in process.stdout:
                lines.put(line.rstrip("\n"))
        lines.put(None)

    def each():
        while True:
            try:
                line = lines.get(timeout=_GRACE)
            except queue.Empty:
                if process.poll() is None:
                    continue
                return  # a helper holds the pipe open
            if line is None:
                return
            yield line

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield each(), process.wait
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        reader.join(_GRACE)
