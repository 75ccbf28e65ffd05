"""What a simulated NIC costs, in cycles of the real core: everything that tests, demo and benches wait for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from acceltcp.abi import pci
from acceltcp.abi import vfio_user as vfio
from acceltcp.abi.registers import COUNTER_BASE, COUNTERS
from acceltcp.abi.vfio_user import Command
from acceltcp.host.transport import SIMULATED_QUEUES
from hw.config import NicConfig
from sim.device import open_nic
from sim.server import PciDevice, Server
from sim.simulator import IDLE_PERIOD, Clock, Nic, Simulator
from sim.wires import NullWire
from tests.sim.rig import VERSION, Client, Wall

pytestmark = pytest.mark.slow

TICK = 100e-6
SETTLE = 20
"""Cycles until the core is known to be idle."""
ACCESS = 10
"""Cycles of one access to a register."""


class Idle:
    """The NIC that `sim:` starts, stepped by hand, with a client and nothing to do."""

    def __init__(self, path: Path) -> None:
        self.wall = Wall()
        self.shell = open_nic(NicConfig(queues=SIMULATED_QUEUES), quiet=True)
        server = Server(path, PciDevice(self.shell, SIMULATED_QUEUES))
        self.simulator = Simulator([Nic(self.shell, server, [NullWire()], tick=TICK)], Clock(monotonic=self.wall))
        self.client = Client(server.path, None)
        self.client.post(Command.VERSION, VERSION)
        self.steps(100)  # the core clears its tables
        assert not self.client.reply()[0].error
        assert not self.shell.busy

    def steps(self, count: int) -> int:
        """Turns of the loop; the cycles that they took."""
        before = self.shell.cycle
        for _ in range(count):
            self.simulator.step(0.0)
        return self.shell.cycle - before


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Idle]:
    idle = Idle(tmp_path_factory.mktemp("cost") / "nic.sock")
    yield idle
    idle.client.close()
    idle.simulator.close()


def test_idle(idle: Idle) -> None:
    """A second of protocol time takes a cycle per tick and the time to settle; no table is walked."""
    cycles = 0
    periods = round(1 / IDLE_PERIOD)
    for _ in range(periods):
        idle.wall.now += IDLE_PERIOD
        cycles += idle.steps(3)
    assert 0.99 / TICK < cycles < 1 / TICK + periods * SETTLE


@pytest.mark.parametrize("count", (1, 2 * len(COUNTERS)))
def test_registers(idle: Idle, count: int) -> None:
    """Registers are read in the turn in which the message comes, one or many."""
    access = vfio.RegionAccess(COUNTER_BASE, pci.BAR_REGISTERS, 4 * count).pack()
    idle.client.post(Command.REGION_READ, access)
    cycles = idle.steps(1)
    header, body = idle.client.reply()
    assert not header.error and len(body) == len(access) + 4 * count
    assert cycles <= count * ACCESS + SETTLE
    assert idle.steps(3) <= SETTLE
