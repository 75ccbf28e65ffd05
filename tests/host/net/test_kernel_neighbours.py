"""The network layer against Linux, in a network namespace of its own (see `kernel_neighbours`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.namespace import unshare_command

from .kernel_neighbours import SCENARIOS

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_kernel_neighbours(scenario):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "host")])}
    done = subprocess.run(
        [*unshare_command(), sys.executable, "-m", "tests.host.net.kernel_neighbours", scenario],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
