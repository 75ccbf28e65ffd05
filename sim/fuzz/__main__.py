"""The command `python -m sim.fuzz`."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from . import FuzzError
from .against_client import ClientFuzzer
from .against_server import ServerFuzzer
from .target import InProcess, Outside, Target

QUEUES = 4
STUCK_SECONDS = 120


class Fuzzer(Protocol):
    sessions: int
    messages: int

    def session(self, number: int) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def _watch() -> None:
    """End the process, with a traceback, if nothing moves from now on."""
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True, file=sys.__stderr__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the server's word on each of many thousand clients."""
    log = logging.getLogger("acceltcp.sim")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def run(fuzzer: Fuzzer, messages: int, first: int = 0, *, progress: bool = False) -> float:
    """Sessions until so many messages have been sent. The seconds that took. Raises `FuzzError`."""
    start = told = time.monotonic()
    number, before = first, fuzzer.messages
    while fuzzer.messages - before < messages:
        fuzzer.session(number)
        number += 1
        now = time.monotonic()
        if progress and now - told > 5:
            told = now
            print(f"{fuzzer.messages} messages in {fuzzer.sessions} sessions, {now - start:.0f} s", file=sys.stderr, flush=True)
            _watch()
    fuzzer.finish()
    return time.monotonic() - start


def _server(options: argparse.Namespace, folder: Path) -> tuple[Fuzzer, Target]:
    target: Target
    if options.socket:
        target = Outside(options.socket, options.pid)
    else:
        target = InProcess(folder / "nic.sock", QUEUES)
    return ServerFuzzer(target, options.seed), target


def _report(side: str, fuzzer: Any, seconds: float, options: argparse.Namespace) -> None:
    names = ("sessions", "messages", "replies", "errors", "lost", "good", "ends")
    report = {"side": side, "seed": options.seed, "seconds": round(seconds, 1)}
    report |= {name: getattr(fuzzer, name) for name in names if hasattr(fuzzer, name)}
    if options.json:
        print(json.dumps(report), flush=True)
    else:
        print(", ".join(f"{name} {value}" for name, value in report.items()), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m sim.fuzz", description="Hostile peers for both sides of vfio-user.")
    parser.add_argument("--side", choices=("server", "client", "both"), default="both", help="which is tested (default both)")
    parser.add_argument("--messages", type=int, default=100_000, help="for each side (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default 1)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first session (default 0)")
    parser.add_argument("--socket", metavar="PATH", help="test the server there, instead of one on a stand-in for the core")
    parser.add_argument("--pid", type=int, help="its process, with --socket")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(argv)
    if bool(options.socket) != bool(options.pid) or (options.socket and options.side != "server"):
        parser.error("--socket goes with --pid and --side server")
    if options.messages < 1:
        parser.error(f"--messages must be at least 1, not {options.messages}")
    _watch()
    with quiet(), tempfile.TemporaryDirectory(prefix="acceltcp-") as folder:
        try:
            if options.side != "client":
                fuzzer, target = _server(options, Path(folder))
                _report("server", fuzzer, run(fuzzer, options.messages, options.first, progress=True), options)
                fuzzer.close()
                target.close()
            if options.side != "server":
                client = ClientFuzzer(options.seed)
                _report("client", client, run(client, options.messages, options.first, progress=True), options)
                client.close()
        except FuzzError as error:
            print(f"sim.fuzz: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            print(f"sim.fuzz: {error}", file=sys.stderr)
            return 2
        finally:
            faulthandler.cancel_dump_traceback_later()
    return 0


if __name__ == "__main__":
    sys.exit(main())
