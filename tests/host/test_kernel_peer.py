"""The host stack against Linux's TCP, in a network namespace of its own (see `kernel_peer`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.namespace import unshare_command

from .kernel_peer import SCENARIOS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_kernel_peer(scenario):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "host")])}
    done = subprocess.run(
        [*unshare_command(), sys.executable, "-m", "tests.host.kernel_peer", scenario],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
