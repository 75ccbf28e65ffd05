"""Regression of the whole core in Verilator under cocotb: one pytest result per build and test module.

`pytest tests/hw/core -k "width64 and setup"` runs a part. ACCELTCP_SEED=n repeats another seed,
ACCELTCP_CORE_TESTS=regex picks single tests, ACCELTCP_WAVES=1 is cocotb's WAVES.
"""

from __future__ import annotations

import contextlib
import json
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from pathlib import Path

import pytest

from hw.config import NicConfig

from .build import TOP_MODULE, CoreRunner, build

SMALL = {"queues": 4, "listeners": 8, "flows": 512, "descriptors": 64, "read_beats": 64, "writes": 16}
"""Small tables, so that full ones are met, and builds are quick. `packets` must outlast the latency of the verdict."""

CONFIGS = {
    "width64": NicConfig(
        width=64, queues=8, flows=512, rx_buffer_beats=512, tx_buffer_beats=512, packets=256, descriptors=64, writes=32
    ),
    "width8": NicConfig(
        width=8, splices=0, rx_buffer_beats=512, tx_buffer_beats=512, max_frame=1514, packets=32, pipelined_hash=False, **SMALL
    ),
    "narrow": NicConfig(
        width=8, axi_bytes=8, splices=0, rx_buffer_beats=512, tx_buffer_beats=512, max_frame=1514, packets=32, pipelined_hash=False,
        **SMALL | {"read_beats": 512},
    ),
    "width32": NicConfig(
        width=32, ports=2, rx_buffer_beats=256, tx_buffer_beats=128, max_frame=1514, packets=128, **SMALL
    ),
}
MODULES = (
    "registers", "listen", "setup", "rx", "tx", "bad_frames", "bad_host", "pressure", "interrupts", "random", "rss", "teardown",
    "splice",
)  # fmt: skip
ONLY = {
    "width32": ("ports", "registers", "setup", "rx", "tx", "bad_frames", "pressure", "random", "teardown", "splice"),
    "width8": tuple(module for module in MODULES if module != "splice"),
    "narrow": tuple(module for module in MODULES if module != "splice"),
}
LONG = ("width8", "narrow", "width32")
"""Builds of the core that `make test` leaves out; its parts are tested at these widths."""

RUNS = [
    pytest.param(config, module, id=f"{config}-{module}", marks=[pytest.mark.long] if config in LONG else [])
    for config in CONFIGS
    for module in ONLY.get(config, MODULES)
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "module"), RUNS)
def test_core(config: str, module: str, tmp_path: Path) -> None:
    folder = build(CONFIGS[config])
    results, log = tmp_path / "results.xml", tmp_path / "cocotb.log"
    seed = os.environ.get("ACCELTCP_SEED", "1")
    runner = CoreRunner()
    # How it failed is told below, from the results.
    with contextlib.suppress(RuntimeError, SystemExit):
        runner.test(
            test_module=f"tests.hw.core.cocotb_{module}",
            hdl_toplevel=TOP_MODULE,
            hdl_toplevel_lang="verilog",
            build_dir=folder,
            test_dir=tmp_path,
            results_xml=str(results),
            seed=seed,
            test_filter=os.environ.get("ACCELTCP_CORE_TESTS"),
            log_file=log,
            extra_env={"ACCELTCP_CORE_CONFIG": json.dumps(asdict(CONFIGS[config])), "COCOTB_ANSI_OUTPUT": "0", "PYTHONWARNINGS": "ignore::DeprecationWarning"},
        )
    text = log.read_text(errors="replace")
    print(text)
    problems = failures(results, text, seed)
    if problems:
        pytest.fail("\n\n".join(problems), pytrace=False)


def failures(results: Path, text: str, seed: str) -> list[str]:
    """One paragraph per failed cocotb test; one about the run if it did not get that far."""
    tail = "\n".join(text.splitlines()[-40:])
    if not results.exists():
        return [f"the simulation (seed {seed}) ended without results:\n{tail}"]
    cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    if not cases:
        return [f"no test has run:\n{tail}"]
    problems = []
    for case in cases:
        for kind in ("failure", "error"):
            for problem in case.iter(kind):
                message = problem.get("error_msg") or problem.get("message") or problem.text or ""
                problems.append(f"{case.get('name')} (seed {seed}): {kind}: {message}")
    return problems
