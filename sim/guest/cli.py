"""The command `acceltcp vm`: a Linux guest with the simulated NIC as a card, to try the driver in."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from acceltcp.apps import tap as tap_setup
from acceltcp.cli import DEFAULT_ADDRESSES, DEFAULT_DEVICE
from acceltcp.host import DeviceError
from acceltcp.host.simulated import SimulatorProcess
from acceltcp.host.transport import split_spec

from ..cache import BuildError
from . import NIC_BDF
from .agent import GuestError
from .image import guest_image
from .machine import Machine, check_memory

__all__ = ["main"]

_COMMAND_S = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = _parser().parse_args(arguments)
    if options.command[:1] == ["--"]:
        del options.command[0]
    logging.basicConfig(format="    %(message)s")
    logging.getLogger("acceltcp.sim").setLevel(logging.INFO)  # what the simulator does: to compile it takes minutes
    try:
        with _orderly_end():
            return _run(options)
    except BrokenPipeError:
        raise
    except (BuildError, DeviceError, GuestError, OSError, ValueError) as error:
        print(f"acceltcp vm: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind what has been set up, as Ctrl-C does: no process and no folder is left behind."""

    def end(number: int, _: object) -> None:
        for every in old:
            signal.signal(every, signal.SIG_IGN)  # while it is being put away
        raise SystemExit(128 + number)

    old: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                old[number] = signal.signal(number, end)
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="acceltcp vm", allow_abbrev=False,
        description="Start a Linux guest that has the simulated NIC as a PCI card behind an IOMMU. Without COMMAND you get a shell in it; "
        "the source tree is there, and /shared is a folder of the host's.",
    )  # fmt: skip
    parser.add_argument(
        "--device", default=DEFAULT_DEVICE, metavar="SPEC", help="the simulated NIC: sim:?tap=NAME&width=64&loss=0.01... (default: %(default)s)"
    )
    parser.add_argument(
        "--tap-address", action="append", metavar="ADDRESS/PREFIX",
        help="for the kernel's side of the TAP interface, set with 'ip' (default: 10.0.0.1/24 and fd00::1/64; 'none': leave it alone)",
    )  # fmt: skip
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="of the guest (default: %(default)s)")
    parser.add_argument("--no-iommu", action="store_true", help="without an IOMMU, as on a machine where it is off")
    parser.add_argument("--no-huge-pages", action="store_true", help="set no huge pages aside for the driver")
    parser.add_argument("--timeout", type=float, default=_COMMAND_S, metavar="SECONDS", help="for COMMAND (default: %(default)g)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=f"run this in the guest, where the NIC is {NIC_BDF}, and end")
    return parser


def _tell(line: str) -> None:
    print(f"==> {line}", file=sys.stderr, flush=True)


def _run(options: argparse.Namespace) -> int:
    scheme, path, device = split_spec(options.device)
    if scheme != "sim" or path:
        raise ValueError(f"the guest's card is a simulated one, sim:?tap=NAME..., not {options.device!r}")
    if not options.command and sys.stdin is None:
        raise ValueError("a shell in the guest needs a standard input; without one, give a COMMAND")
    check_memory(options.memory)
    if not options.timeout > 0:
        raise ValueError(f"--timeout takes seconds above 0, not {options.timeout:g}")
    for text in options.tap_address or []:
        if text != "none":
            tap_setup.check_address(text)
    image = guest_image(_tell)
    with contextlib.ExitStack() as stack:
        _tell("starting the simulated NIC (the first start compiles it)")
        nic = stack.enter_context(SimulatorProcess(device, options.device))
        _set_up_tap(options)
        _tell("booting the guest, about 15 s")
        console = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "console.log" if options.command else None
        machine = Machine(
            image, [nic.path], memory=options.memory, iommu=not options.no_iommu, huge_pages=not options.no_huge_pages, console=console
        )
        stack.enter_context(machine)
        if not options.command:
            return machine.wait()
        done = machine.agent.run(*options.command, timeout=options.timeout, check=False)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _set_up_tap(options: argparse.Namespace) -> None:
    done = tap_setup.set_up(options.device, DEFAULT_ADDRESSES, options.tap_address)
    if done is None:
        return
    tap, peers, reason = done
    if not reason:
        _tell(f"the kernel's side of {tap} has {' and '.join(peers)}")
        return
    _tell(f"the kernel's side of {tap} could not be set up ({reason}). Type, as root:")
    for command in tap_setup.tap_commands(tap, peers):
        print("  " + " ".join(command), file=sys.stderr)
