"""Runs a vendor's or an open tool that builds a board, and ends it with everything that it started."""

import contextlib
import os
import queue
import signal
import subprocess
import threading

__all__ = ["ToolError", "running"]

_GRACE = 2.0
"""Seconds for the last lines after the tool has ended, and for it to end when it is told to."""


class ToolError(RuntimeError):
    """A tool is not there, failed, left something out or missed the timing; the text is one line.

    figures: what was found out all the same, None if it had not come so far.
    """

    def __init__(self, text, figures=None):
        super().__init__(text)
        self.figures = figures


@contextlib.contextmanager
def running(command, name, *, cwd=None):
    """The running tool: its lines as they come, and a function for its exit status after them. Raises `ToolError`, which calls it `name`.

    It has a process group of its own, which is ended with the block: it starts helpers that would live on, and
    that may hold its output open.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f"{name} cannot be run: {error.strerror}") from None
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
