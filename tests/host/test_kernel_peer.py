"""The host stack against Linux's TCP, in a network namespace of its own (see `kernel_peer`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .kernel_peer import SCENARIOS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def _possible() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
        return False
    probe = ["unshare", "-Urn", "ip", "tuntap", "add", "probe0", "mode", "tap"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _possible(), reason="needs user namespaces, iproute2 and /dev/net/tun")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_kernel_peer(scenario):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "host")])}
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-m", "tests.host.kernel_peer", scenario],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
