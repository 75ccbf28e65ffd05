"""A stand-in for the vendor's tool on PATH: says and leaves what the real one does, as far as our side reads it."""

import os
import stat
import sys

TIMING = """\
------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)  THS Failing Endpoints  THS Total Endpoints     WPWS(ns)     TPWS(ns)  TPWS Failing Endpoints  TPWS Total Endpoints  
    -------      -------  ---------------------  -------------------      -------      -------  ---------------------  -------------------     --------     --------  ----------------------  --------------------  
      {wns}        {tns}                      {failing}               812345        0.010        0.000                      0               812300        0.000        0.000                       0                301234  


All user specified timing constraints are met.
"""  # noqa: W291

UTILISATION = """\
1. CLB Logic
------------

+----------------------------+-------+-------+------------+-----------+-------+
|          Site Type         |  Used | Fixed | Prohibited | Available | Util% |
+----------------------------+-------+-------+------------+-----------+-------+
| CLB LUTs                   | 98123 |     0 |          0 |    871680 | 11.26 |
|   LUT as Logic             | 91000 |     0 |          0 |    871680 | 10.44 |
| CLB Registers              | 120456 |    0 |          0 |   1743360 |  6.91 |
+----------------------------+-------+-------+------------+-----------+-------+

3. BLOCKRAM
+-------------------+-------+-------+------------+-----------+-------+
|     Site Type     |  Used | Fixed | Prohibited | Available | Util% |
+-------------------+-------+-------+------------+-----------+-------+
| Block RAM Tile    | 210.5 |     0 |          0 |      1344 | 15.66 |
| URAM              |   288 |     0 |          0 |       640 | 45.00 |
+-------------------+-------+-------+------------+-----------+-------+

4. ARITHMETIC
+-----------+------+-------+------------+-----------+-------+
| Site Type | Used | Fixed | Prohibited | Available | Util% |
+-----------+------+-------+------------+-----------+-------+
| DSPs      |   12 |     0 |          0 |      5952 |  0.20 |
+-----------+------+-------+------------+-----------+-------+
"""

_SCRIPT = """\
#!{python}
import pathlib, subprocess, sys, time
print("****** Vivado v2024.2 (64-bit)", flush=True)
for stage in ("synthesis", "placement", "routing", "reports"):
    print("ACCELTCP:", stage, flush=True)
    if stage == "placement":
        print("Phase 1.1 Placer Initialization", flush=True)
{body}
"""

_GOOD = """\
here = pathlib.Path(".")
(here / "timing.rpt").write_text({timing!r})
(here / "utilisation.rpt").write_text({utilisation!r})
for line in (here / "settings.tcl").read_text().splitlines():
    if line.startswith("set result "):
        stem = line.split()[2].strip("{{}}")
(here / f"{{stem}}.bit").write_text("bit")
(here / f"{{stem}}.mcs").write_text("mcs")
print("ACCELTCP: complete", flush=True)
"""

GOOD = _GOOD.format(timing=TIMING.format(wns="0.012", tns="0.000", failing=0), utilisation=UTILISATION)
MISSED = (
    _GOOD.format(
        timing=TIMING.format(wns="-0.120", tns="-3.500", failing=41), utilisation=UTILISATION
    ).partition("for line")[0]
    + 'print("ERROR: timing is not met: worst setup slack -0.120 ns", flush=True)\nsys.exit(1)\n'
)
FAILS = 'print("ERROR: [Route 35-9] router went away", flush=True)\nprint("ERROR: later")\nsys.exit(1)\n'
DIES = "sys.exit(7)\n"
FORGETS = "pass\n"
GARBLED = GOOD.replace("WNS(ns)", "WHAT(ns)")
HANGS = 'pathlib.Path("started").write_text("")\nsubprocess.Popen(["sleep", "300"])\ntime.sleep(300)\n'
LEAVES_A_HELPER = GOOD + 'subprocess.Popen(["sleep", "300"])\n'


def install(folder, monkeypatch, body):
    """Put the stand-in on PATH; `body` is what it does after its stages."""
    folder.mkdir(exist_ok=True)
    script = folder / "vivado"
    script.write_text(_SCRIPT.format(python=sys.executable, body=body))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
