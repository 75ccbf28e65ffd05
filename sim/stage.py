"""What the demonstration and the benchmarks share: a namespace, the NIC with a web server, its counters."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "HOST4", "HOST6", "MAC", "NIC4", "NIC6", "PORT", "TAP", "StageError", "end", "inside", "reexec", "served", "stats", "web_server",
]  # fmt: skip

_INSIDE = "ACCELTCP_STAGE_NAMESPACE"
TAP = "acc0"
HOST4, HOST6 = "10.0.0.1", "fd00::1"
NIC4, NIC6 = "10.0.0.2", "fd00::2"
MAC = "02:00:00:00:00:02"
PORT = 80
START_S = 900
"""The first start compiles the RTL."""


class StageError(Exception):
    """A step did not do what it should; the text says which and how."""


def inside() -> bool:
    """Whether this process was started by `reexec`."""
    return bool(os.environ.get(_INSIDE))


def reexec(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python with `arguments` in a new network namespace, where it may make TAP interfaces.

    Raises `StageError` where that cannot be had.
    """
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        raise StageError("`unshare` and `ip` are needed: apt-get install util-linux iproute2")
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *rights, "--net", "--kill-child", sys.executable, *arguments]
    return subprocess.run(command, env=os.environ | {_INSIDE: "1"}, text=True, **options)


@contextlib.contextmanager
def web_server(
    folder: Path,
    page: str,
    *options: str,
    device: str = "",
    waiting: Callable[[float, str], None] = lambda seconds, last: None,
) -> Iterator[Path]:
    """`acceltcp http` with `options` on a simulated NIC, serving `page`; yields its control socket's path.

    device: options of the simulator, as in `sim:?...`. waiting: told while it starts.
    """
    pages = folder / "pages"
    pages.mkdir(exist_ok=True)
    (pages / "index.html").write_text(page)
    control, log = folder / "control.sock", folder / "server.log"
    command = [
        sys.executable, "-m", "acceltcp", "http",
        "--device", f"sim:?tap={TAP}" + (f"&{device}" if device else ""),
        "--mac", MAC,
        "--address", f"{NIC4}/24", "--address", f"{NIC6}/64",
        "--tap-address", f"{HOST4}/24", "--tap-address", f"{HOST6}/64",
        "--directory", str(pages), "--port", str(PORT), "--control", str(control), *options,
    ]  # fmt: skip
    with served(command, "the server", control, log, waiting):
        yield control


@contextlib.contextmanager
def served(
    command: Sequence[str], name: str, control: Path, log: Path, waiting: Callable[[float, str], None]
) -> Iterator[None]:
    """A program with a control socket: started, waited for, ended. name: what errors call it. waiting: told while it starts.

    Raises `StageError` when it does not come up, or ends by itself; the text has what it said.
    """
    control.unlink(missing_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        started = time.monotonic()
        while not control.exists():
            if process.poll() is not None:
                raise StageError(f"{name} ended with status {process.returncode}:\n{log.read_text()}")
            if time.monotonic() - started > START_S:
                raise StageError(f"{name} did not come up in {START_S // 60} minutes:\n{log.read_text()}")
            last = log.read_text().strip().splitlines()[-1:]
            waiting(time.monotonic() - started, last[0] if last else "")
            time.sleep(0.2)
        yield
        if process.poll() is not None:
            raise StageError(f"{name} ended early with status {process.returncode}:\n{log.read_text()}")
    finally:
        end(process)


def end(*processes: subprocess.Popen[bytes]) -> None:
    """Ctrl-C to all of them; those that do not heed it are killed."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def stats(control: Path) -> dict[str, dict[str, Any]]:
    """What `acceltcp stats --json` says of the program behind `control`."""
    out = subprocess.run(
        [sys.executable, "-m", "acceltcp", "stats", "--control", str(control), "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if out.returncode:
        raise StageError(f"`acceltcp stats` failed: {out.stderr}")
    answer = json.loads(out.stdout)
    assert isinstance(answer, dict)
    return answer
