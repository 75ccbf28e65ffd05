"""The loop: time, wires and cores together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.cache import build_once, content_hash
from sim.device import Shell
from sim.server import PciDevice, Server
from sim.simulator import Clock, Nic, Simulator
from sim.wires import PairWire
from tests.sim.rig import QUEUES, Client, Wall
from tests.sim.stub import stub_library

TICKS = 0x60


class Hand:
    """A simulator stepped by hand, with a client."""

    def __init__(self, path: Path, scale: float = 1.0) -> None:
        self.wall = Wall()
        self.shell = Shell(stub_library())
        wire, self.far = PairWire.pair()
        nic = Nic(self.shell, Server(path, PciDevice(self.shell, QUEUES)), [wire], tick=0.001)
        self.simulator = Simulator([nic], Clock(scale, self.wall))
        self.nic = nic
        self.client: Client | None = None

    def connect(self) -> None:
        self.client = Client(self.nic.server.path, None)
        self.steps(3)

    def steps(self, count: int = 5) -> None:
        for _ in range(count):
            self.simulator.step(0.0)


@pytest.fixture
def hand(tmp_path: Path) -> Iterator[Hand]:
    hand = Hand(tmp_path / "nic.sock")
    yield hand
    if hand.client:
        hand.client.close()
    hand.simulator.close()


def test_ticks_come_with_time_and_a_client(hand: Hand) -> None:
    hand.wall.now += 1.0
    hand.steps()
    assert hand.shell.counters().ticks == 0
    hand.connect()
    assert hand.shell.counters().ticks == 0
    hand.wall.now += 0.0505
    hand.steps()
    assert hand.shell.read(TICKS) == 50
    hand.wall.now += 2.0
    hand.steps(1)
    assert hand.shell.read(TICKS) == 2050


def test_time_scale(tmp_path: Path) -> None:
    hand = Hand(tmp_path / "nic.sock", scale=10.0)
    hand.connect()
    hand.wall.now += 0.01005
    hand.steps()
    assert hand.shell.read(TICKS) == 100
    assert hand.client
    hand.client.close()
    hand.simulator.close()
    with pytest.raises(ValueError, match="time scale"):
        Clock(0)


def test_the_core_stands_still_when_nothing_happens(hand: Hand) -> None:
    hand.connect()
    hand.steps()
    before = hand.shell.cycle
    hand.steps(20)
    assert hand.shell.cycle == before
    hand.far.send(bytes(60), 0)
    hand.steps()
    assert hand.shell.cycle > before
    assert hand.far.receive(0) == [bytes(60)]
    before = hand.shell.cycle
    hand.steps(20)
    assert hand.shell.cycle == before


def test_frames_without_client_are_dropped(hand: Hand) -> None:
    hand.far.send(bytes(60), 0)
    hand.steps()
    hand.connect()
    hand.steps()
    assert hand.far.receive(0) == []
    assert hand.shell.counters().rx_frames == (0,)


def test_ports_need_wires(tmp_path: Path) -> None:
    with Shell(stub_library()) as shell, pytest.raises(ValueError, match="as many wires"):
        server = Server(tmp_path / "nic.sock", PciDevice(shell, QUEUES))
        try:
            Nic(shell, server, [], tick=1e-4)
        finally:
            server.close()


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    target = tmp_path / "cache" / content_hash(["x"])
    script = (
        "import sys, time; from pathlib import Path; from sim.cache import build_once\n"
        "target = Path(sys.argv[1])\n"
        "def build(d): print('building'); time.sleep(0.3); (d / target.name).write_text('built')\n"
        "print(build_once(target, build).read_text())\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=20)[0] for process in processes)
    assert said == ["building\nbuilt\n", "built\n"]
    assert [path.name for path in target.parent.glob("[!.]*")] == [target.name]
    assert not list(target.parent.glob(".*.part"))

    def never(_: Path) -> None:
        raise AssertionError("built twice")

    assert build_once(target, never).read_text() == "built"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        build_once(tmp_path / "thing", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]
