"""The process that runs Yosys: `python -m hw.synth.worker` with a job as JSON on standard input.

A process of its own, so that a crash of Yosys is an error message, its log can be followed
line by line and its memory is returned at the end. The log goes to standard output.
"""

import json
import sys

from pyosys import libyosys as ys

from ..lattice import FAMILY as LATTICE

__all__ = ["main", "script"]


def script(job):
    """The Yosys commands of a job."""
    top = job["top"]
    reader = "read_rtlil" if job["source"].endswith(".il") else "read_verilog"
    yield f'{reader} "{job["source"]}"'
    for stage in job["stages"]:
        yield f"setattr -mod -set keep_hierarchy 1 {stage}"
    if job["family"] == LATTICE:
        yield f"synth_{LATTICE} -top {top}"
    else:
        yield f"synth_xilinx -family {job['family']} -flatten -noiopad -noclkbuf -top {top}"
    yield f'write_json "{job["netlist"]}"'


def main():
    """Run the job on standard input."""
    design = ys.Design()
    for command in script(json.load(sys.stdin)):
        ys.run_pass(command, design)


if __name__ == "__main__":
    main()
