"""Builds of the core for cocotb: a Verilator executable per configuration, cached.

Verilog comes from `sim.export` (cached under the hash of the gateware's sources); the
executable is kept under the hash of the Verilog, so a change of a comment costs no C++
compilation. A file lock makes it safe to run several pytest workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cocotb_tools.check_results import get_results
from cocotb_tools.runner import Verilator

from hw.config import NicConfig
from sim.cache import cache_directory
from sim.export import TOP_MODULE, export_verilog
from sim.verilate import verilator_root

__all__ = ["TOP_MODULE", "CoreRunner", "build", "build_verilog", "run_module"]

FLAGS = (
    "--x-assign", "fast",
    "--x-initial", "fast",
    "--no-timing",
    "--output-split", "20000",
    "--output-split-cfuncs", "2000",
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
    "-Werror-ALWNEVER",  # a process that never runs is a constant lost
)  # fmt: skip
MAKE = (
    "OPT_FAST=-O1",
    "OPT_SLOW=-O0",
    "OPT_GLOBAL=-O1",
    # The wheel is configured for no compiler in particular; g++ takes precompiled headers so.
    "CFG_CXXFLAGS_PCH_I=-include",
)


class CoreRunner(Verilator):
    """Verilator as cocotb drives it, except that only the top's ports are visible from Python.

    cocotb makes every signal public, which keeps Verilator from optimising anything.
    """

    def _build_command(self) -> list[Sequence[str]]:
        verilate, make = super()._build_command()
        return [[word for word in verilate if word != "--public-flat-rw"], [*make, *MAKE]]


def build(config: NicConfig) -> Path:
    """Folder with the executable of the core in this configuration, made if need be."""
    return build_verilog(export_verilog(config), TOP_MODULE)


def build_verilog(text: str, top: str) -> Path:
    """Folder with the executable of the module `top` in `text`, made if need be."""
    root = verilator_root()
    os.environ["VERILATOR_ROOT"] = str(root)
    binaries = str(root / "bin")
    if binaries not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = binaries + os.pathsep + os.environ["PATH"]
    key = hashlib.sha256("\0".join((text, *FLAGS, *MAKE)).encode()).hexdigest()[:16]
    folder = cache_directory() / "cocotb" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            compile_verilog(folder, text, top)
            (folder / "ready").touch()
    return folder


def compile_verilog(folder: Path, text: str, top: str) -> None:
    """Make the executable in `folder`. Raises `RuntimeError` with the end of the log."""
    source, control = folder / f"{top}.v", folder / "ports.vlt"
    source.write_text(text)
    ports = "".join(f'public_flat_rw -module "{top}" -var "{name}"\n' for name in _ports(text, top))
    control.write_text("`verilator_config\n" + ports)
    log = folder / "build.log"
    try:
        CoreRunner().build(
            sources=[control, source],
            hdl_toplevel=top,
            build_dir=folder,
            timescale=("1ns", "1ps"),
            build_args=FLAGS,
            log_file=log,
        )
    except RuntimeError as error:
        lines = [line for line in log.read_text().splitlines() if "rror" in line]
        raise RuntimeError("Verilator failed:\n" + "\n".join(lines[:30])) from error
    for leftover in (*folder.glob("*.o"), *folder.glob("*.gch")):
        leftover.unlink()


def _ports(text: str, top: str) -> list[str]:
    """Names of the top module's ports in Verilog as Yosys writes it."""
    body = text[text.index(f"module {top}(") :]
    header = body[body.index("(") + 1 : body.index(");")]
    return [name.strip().removeprefix("\\") for name in header.split(",")]


def run_module(text: str, top: str, module: str, folder: Path) -> tuple[int, int, str]:
    """Run the cocotb tests in `module` on the module `top` of the Verilog `text`: how many ran, how many failed, the end of the log."""
    log = folder / "run.log"
    results = CoreRunner().test(
        test_module=module, hdl_toplevel=top, hdl_toplevel_lang="verilog", build_dir=build_verilog(text, top), test_dir=folder, seed="1",
        log_file=log, extra_env={"COCOTB_ANSI_OUTPUT": "0", "PYTHONWARNINGS": "ignore::DeprecationWarning"},
    )  # fmt: skip
    ran, failed = get_results(results)
    return ran, failed, log.read_text()[-4000:]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
