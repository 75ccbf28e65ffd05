"""`acceltcp sim` with the stand-in for a core, for tests of the command line."""

from __future__ import annotations

import sys
from typing import Any

from sim import cli
from sim.device import Shell
from tests.sim.stub import stub_library


def open_stub(config: Any, *, trace: bool = False, **_: Any) -> Shell:
    """Like `sim.device.open_nic`."""
    return Shell(stub_library(config.width, config.ports, trace=trace))


if __name__ == "__main__":
    cli.open_nic = open_stub  # type: ignore[assignment]
    sys.exit(cli.main(sys.argv[1:]))
