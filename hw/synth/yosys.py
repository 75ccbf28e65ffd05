"""Runs a synthesis in a process of its own and reads its netlist back.

Yosys 0.70 `synth_xilinx` maps LUTs with abc9 (its only mapper for these families). It knows timing
of LUTs, carries and distributed RAM; so the mapping favours depth first, as a vendor tool
at a high clock would.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["SynthesisError", "stage_modules", "synthesise"]

_PASS = re.compile(r"^([\d.]+) Executing (.+?) (?:pass|frontend|backend)\b")


class SynthesisError(RuntimeError):
    """Yosys gave up; the text has its last words."""


def stage_modules(verilog, top):
    """Stage name -> Verilog module, for the direct submodules of `top` (Amaranth's naming)."""
    found = re.findall(rf"^module \\{re.escape(top)}\.(\S+)\s*\(", verilog, re.MULTILINE)
    return {name: f"\\{top}.{name}" for name in found if "." not in name}


def synthesise(source, top, folder, label, *, family, stages=(), progress=None):
    """Synthesise the file `source`, Verilog or RTLIL (`.il`), and return (parsed netlist, seconds).

    `stages` are modules that keep their boundaries; everything else is flattened. Log and
    netlist go to `folder`, named after `label`. `progress` is called with the name of
    each pass that starts. Raises `SynthesisError`.
    """
    folder = Path(folder)
    netlist, log = folder / f"{label}.netlist.json", folder / f"{label}.log"
    netlist.unlink(missing_ok=True)
    job = {
        "source": str(source),
        "top": top,
        "family": family,
        "stages": list(stages),
        "netlist": str(netlist),
    }
    started = time.monotonic()
    errors = []
    with (
        log.open("w") as copy,
        subprocess.Popen(
            [sys.executable, "-m", "hw.synth.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=Path(__file__).parents[2],
        ) as process,
    ):
        try:
            process.stdin.write(json.dumps(job))
            process.stdin.close()
            for line in process.stdout:
                copy.write(line)
                if line.startswith("ERROR") or "Error" in line:
                    errors.append(line.strip())
                if progress and (match := _PASS.match(line)):
                    progress(match[2])
        except BaseException:
            process.kill()
            raise
    if process.returncode or not netlist.exists():
        words = errors[-1] if errors else f"it ended with status {process.returncode}"
        raise SynthesisError(f"Yosys could not synthesise {top}: {words} (see {log})")
    with netlist.open() as file:
        design = json.load(file)
    return design, time.monotonic() - started
