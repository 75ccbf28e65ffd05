"""The fuzzer of vfio-user: that it finds nothing, and that it would find something."""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceltcp.host import vfio_user
from sim.device import Shell
from sim.fuzz import FuzzError
from sim.fuzz.__main__ import QUEUES, main, quiet, run
from sim.fuzz.against_client import ClientFuzzer
from sim.fuzz.against_server import ServerFuzzer
from sim.fuzz.process import descriptors, mapped_bytes, resident_bytes
from sim.fuzz.standin import StandIn
from sim.fuzz.target import InProcess, Outside
from sim.link import Link
from sim.msix import Msix
from sim.protocol import MessageParser
from sim.server import PciDevice
from tests.sim.stub import stub_library


@pytest.fixture
def target(tmp_path: Path) -> Iterator[InProcess]:
    made = InProcess(tmp_path / "nic.sock", QUEUES)
    yield made
    made.close()
    for address, (size, _, _) in list(made.device.regions.items()):  # what a planted fault has left
        made.device.unmap(address, size)


def attack(target: InProcess | Outside, messages: int, seed: int) -> ServerFuzzer:
    fuzzer = ServerFuzzer(target, seed)
    try:
        with quiet():  # pytest keeps what is logged
            run(fuzzer, messages)
    finally:
        fuzzer.close()
    return fuzzer


def burst(address: int, write: bool, pattern: int) -> bytes:
    """Four registers of the stand-in for a core (stub.v): address, pattern, command."""
    return struct.pack("=QIIQII", 0x40, 0, 16, address, pattern, 0xFFFF_0000 | 1 + write)


def small_core(path: Path) -> InProcess:
    return InProcess(path / "nic.sock", QUEUES, Shell(stub_library()), burst)


def test_server_stands(target: InProcess) -> None:
    fuzzer = attack(target, 16_000, 1)
    assert fuzzer.replies > 10_000
    assert 0.2 < fuzzer.errors / fuzzer.replies < 0.6  # half of it gets through the checks
    assert set(fuzzer.ends) == {"no version", "clean", "shut", "cut", "abrupt", "bad header", "flood"}
    assert target.server.clients >= fuzzer.sessions


def test_driver_stands() -> None:
    fuzzer = ClientFuzzer(1)
    run(fuzzer, 8_000)
    assert fuzzer.good >= 5
    assert fuzzer.errors > 500
    fuzzer.close()


def test_the_core_s_own_memory_stands(tmp_path: Path) -> None:
    """The shell in C++ around a small core, whose registers start bursts: canaries outside of mapped memory stay."""
    target = small_core(tmp_path)
    attack(target, 6_000, 2)
    counters = target.device.counters()
    assert counters.axi_write_bytes > 1000 and counters.axi_write_errors > 10
    assert counters.faults > 0
    target.close()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_server_stands_a_million(target: InProcess) -> None:
    attack(target, 1_000_000, random.SystemRandom().randrange(1 << 32))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_driver_stands_a_million() -> None:
    fuzzer = ClientFuzzer(random.SystemRandom().randrange(1 << 32))
    run(fuzzer, 1_000_000)
    fuzzer.close()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_core_s_own_memory_stands_longer(tmp_path: Path) -> None:
    target = small_core(tmp_path)
    attack(target, 200_000, random.SystemRandom().randrange(1 << 32))
    target.close()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_simulator_stands(tmp_path: Path) -> None:
    """The whole simulator with the real core, in its own process."""
    path = tmp_path / "nic.sock"
    with subprocess.Popen([sys.executable, "-m", "sim.cli", "--socket", str(path)], stderr=subprocess.DEVNULL) as simulator:
        try:
            deadline = time.monotonic() + 500
            while not path.exists():
                assert simulator.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            attack(Outside(str(path), simulator.pid), 50_000, random.SystemRandom().randrange(1 << 32))
            assert simulator.poll() is None
            simulator.send_signal(signal.SIGTERM)
            assert simulator.wait(10) == 0
        finally:
            simulator.kill()


# What it would find


class Unmasked(StandIn):
    """Forgets where in its file a mapping begins."""

    def map_file(self, iova: int, size: int, fd: int, offset: int, prot: int) -> None:
        super().map_file(iova, size, fd, 0 if fd >= 0 else offset, prot)


def keep_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MessageParser, "discard", lambda self: None)


def keep_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "unmap_all", lambda self: None)


def keep_eventfds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Msix, "close", lambda self: None)


def answer_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    put = Link.put
    monkeypatch.setattr(Link, "put", lambda self, data, fds=(): put(self, data * (2 if len(data) == 32 else 1), fds))


def answer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = PciDevice.execute
    monkeypatch.setattr(PciDevice, "execute", lambda self, message: execute(self, message) if message.header.command != 13 else b"")


def take_any_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MessageParser, "_checked", staticmethod(lambda header: header))


def take_any_access(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PciDevice, "_checked_access", lambda *a: None)


@pytest.mark.parametrize(
    "fault",
    [keep_descriptors, keep_mappings, keep_eventfds, answer_twice, answer_nothing, take_any_header, take_any_access],
)
def test_faults_of_the_server_are_found(target: InProcess, monkeypatch: pytest.MonkeyPatch, fault: object) -> None:
    monkeypatch.setattr("sim.fuzz.wire._PATIENCE", 0.1)
    monkeypatch.setattr("sim.fuzz.against_server._PATIENCE", 0.1)
    fault(monkeypatch)  # type: ignore[operator]
    with pytest.raises(FuzzError):
        attack(target, 20_000, 1)


def test_faults_of_the_device_are_found(tmp_path: Path) -> None:
    target = InProcess(tmp_path / "nic.sock", QUEUES, Unmasked())
    with pytest.raises(FuzzError, match=r"\(seed 3, session \d+\)"):
        attack(target, 20_000, 3)
    target.close()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("_reason", os.strerror),
        ("_stream_socket", lambda fd: vfio_user.socket.socket(fileno=fd)),
        ("_REPLY_FLAGS", range(256)),
        ("_limit", lambda value, least, default, most: value),
    ],
)
def test_faults_of_the_driver_are_found(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object) -> None:
    monkeypatch.setattr(vfio_user, name, wrong)
    with pytest.raises(FuzzError):
        run(ClientFuzzer(1), 100_000)


# The parts


def test_a_session_can_be_seen_again(target: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, without those before it."""
    monkeypatch.setattr("sim.server.is_eventfd", lambda fd: True)
    with pytest.raises(FuzzError) as found:
        attack(target, 20_000, 3)
    number = int(str(found.value).rpartition(" ")[2].rstrip(")"))
    assert number > 0
    target.server.drop()
    fuzzer = ServerFuzzer(target, 3)
    with pytest.raises(FuzzError) as again:
        run(fuzzer, 1, number)
    assert str(again.value) == str(found.value)
    fuzzer.close()


def test_what_the_kernel_says() -> None:
    pid = os.getpid()
    before = descriptors(pid)
    fd = os.memfd_create("fuzz-test-of-the-oracle")
    os.ftruncate(fd, 12288)
    assert descriptors(pid) == before + 1
    assert mapped_bytes(pid, "fuzz-test") == 0
    with mmap.mmap(fd, 8192):
        assert mapped_bytes(pid, "fuzz-test") == 8192
    os.close(fd)
    assert resident_bytes(pid) > 1 << 20


def test_stand_in_masks_writes() -> None:
    device = StandIn()
    device.write(4, 0x11223344)
    device.write(4, 0xAABBCCDD, 0b0101)
    assert device.read(4) == 0x11BB33DD
    with pytest.raises(AssertionError):
        device.write(2, 0)


def test_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--messages", "300", "--seed", "4", "--json"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(report["side"], report["seed"]) for report in reports] == [("server", 4), ("client", 4)]
    assert all(report["messages"] >= 300 for report in reports)
    with pytest.raises(SystemExit):
        main(["--messages", "0"])
    with pytest.raises(SystemExit):
        main(["--socket", "/tmp/x"])
    assert main(["--side", "server", "--socket", "/nonexistent", "--pid", str(os.getpid())]) == 2
    answer_twice(monkeypatch)
    assert main(["--side", "server", "--messages", "5000"]) == 1
    assert "sim.fuzz: in a good session: a reply to nothing" in capsys.readouterr().err
