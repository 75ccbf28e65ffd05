"""What `acceltcp bench host` compares: offloads on and off, and each optimisation of the host off in turn."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["ALL", "CONFIGS", "OFF", "OPTIMISATIONS", "PLAIN", "Config"]

OPTIMISATIONS = {
    "lazy": "lazy connection state",
    "batch": "batch processing of rings",
    "zero_copy": "received data handed on without a copy",
    "direct": "responses built straight in the transmit buffer",
    "piggyback": "ACK and FIN with data",
}
"""Switch of `TcpSettings` -> what it switches."""


@dataclass(frozen=True)
class Config:
    """One way to run the host stack. `what`: in words."""

    name: str
    what: str
    setup: bool
    teardown: bool
    tcp: dict[str, Any] = field(default_factory=dict)

    def json(self) -> str:
        """For `bench.host_server`."""
        return json.dumps(asdict(self))


OFF = Config("off", "all offloads off", False, False)
PLAIN = Config(
    "plain", "all offloads off, lazy state and zero copy too", False, False, {"lazy": False, "zero_copy": False, "direct": False}
)
"""An ordinary stack: without the offloads and without what the published system adds in the host; the part that mTCP plays there."""
ALL = Config("all", "all offloads on", True, True)

CONFIGS = [
    PLAIN,
    OFF,
    Config("setup", "setup in the NIC alone", True, False),
    Config("teardown", "teardown in the NIC alone", False, True),
    ALL,
    *(Config(f"no_{name}", f"all offloads on, but not: {what}", True, True, {name: False}) for name, what in OPTIMISATIONS.items()),
]
