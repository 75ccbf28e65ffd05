"""Transfers between the host stack and Linux's TCP in both roles (see `kernel_transfer`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.namespace import unshare_command

from .kernel_transfer import LIMIT_S

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(scenario: str, **options: object) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "host")])}
    words = [f"{name}={value}" for name, value in options.items()]
    print(f"python -m tests.host.kernel_transfer {scenario} {' '.join(words)}")
    done = subprocess.run(
        [*unshare_command(), sys.executable, "-m", "tests.host.kernel_transfer", scenario, *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S + 30, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.stdout


WIRES = {
    "clean": {},
    "loss-1": {"loss": 0.01},
    "loss-10": {"loss": 0.1, "size": 200_000},
    "reorder-10": {"reorder": 0.1, "delay": 0.002},
    "duplicate-10": {"duplicate": 0.1},
    "corrupt-10": {"corrupt": 0.1, "size": 200_000},
    "jitter": {"delay": 0.005, "jitter": 0.005},
    "all": {"loss": 0.02, "reorder": 0.02, "duplicate": 0.02, "corrupt": 0.02, "delay": 0.003, "size": 300_000},
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("role", ["passive", "active"])
def test_every_byte(role, wire):
    run(role, v6=len(wire) % 2, **WIRES[wire])


@pytest.mark.parametrize("wire", ["clean", "all"])
@pytest.mark.parametrize(("setup", "teardown"), [(0, 1), (1, 0), (0, 0)])
def test_every_byte_without_offload(wire, setup, teardown):
    run("passive", setup=setup, teardown=teardown, **WIRES[wire])


@pytest.mark.parametrize("role", ["many-passive", "many-active"])
def test_a_thousand_at_once(role):
    run(role, count=1000, linger=2)


@pytest.mark.parametrize("teardown", [0, 1])
@pytest.mark.parametrize("wire", ["clean", "all"])
def test_half_close(wire, teardown):
    run("half-close", teardown=teardown, **WIRES[wire])


@pytest.mark.parametrize("teardown", [0, 1])
def test_simultaneous_close(teardown):
    run("simultaneous-close", delay=0.1, teardown=teardown)


def test_simultaneous_open():
    run("simultaneous-open", delay=0.2)


def test_refused():
    run("refused")
