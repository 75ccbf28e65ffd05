#!/bin/sh
# From Verilog to bitstream and flash image; goes on where an interrupted run has stopped.
set -eu
cd "$(dirname "$0")"
if ! command -v vivado >/dev/null; then
    echo "build.sh: vivado is not on PATH; source the settings64.sh of its installation first" >&2
    exit 1
fi
mkdir -p work
exec vivado -mode batch -nojournal -notrace -log work/vivado.log -source project.tcl
