"""The command line, in a process of its own, with the stand-in for a core."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim.pcap import PcapWriter, read_pcap
from tests.sim.rig import Client

FRAMES = [bytes([i]) * (60 + i) for i in range(20)]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sim.stub_cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline().rstrip("\n")
    if not line:
        assert process.stderr
        raise AssertionError(process.stderr.read())
    return line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "nic.sock"
    process = start("--socket", path)
    assert ready(process) == f"listening on {path}"
    client = Client(str(path))
    assert client.read(0, 0, 4) == b"ATCP"
    process.send_signal(number)
    assert process.wait(10) == 0
    assert not path.exists()
    client.close()


def test_second_server_on_a_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nic.sock"
    first = start("--socket", path)
    ready(first)
    second = start("--socket", path)
    _, text = second.communicate(timeout=20)
    assert second.returncode == 1
    assert text.strip() == f"acceltcp sim: another process serves {path}"
    first.kill()
    first.wait()
    third = start("--socket", path)
    ready(third)
    third.terminate()
    assert third.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--width", "16"], "width must be one of (8, 32, 64), not 16"),
        (["--set", "colour=red"], "not 'colour=red'"),
        (["--set", "packets=many"], "--set packets takes a number"),
        (["--width", "8", "--set", "axi_bytes=8"], "axi_bytes must be 64 in simulation, not 8"),
        (["--loss", "2"], "loss must be a probability from 0 to 1, not 2.0"),
        (["--loop"], "--loop needs --ports 2"),
        (["--tap", "a", "--tap", "b"], "2 TAP devices need as many ports, not 1"),
        (["--tap", "a", "--peer-socket", "x"], "--peer-socket cables port 0"),
        (["--replay", "/nonexistent"], "No such file"),
        (["--time-scale", "0"], "time scale must be above 0"),
        (["--delay", "soon"], "a time is like 20ms"),
        (["--tapp", "acc0"], "error: there is no option --tapp; did you mean --tap"),
        (["--los", "0.1"], "error: there is no option --los; did you mean --loss"),
        (["--xyzzy=1"], "error: there is no option --xyzzy; there are --corrupt, --delay, --direction,"),
        (["acc0"], "options begin with --, unlike 'acc0'"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    process = start("--socket", tmp_path / "nic.sock", *arguments)
    _, text = process.communicate(timeout=20)
    assert process.returncode in (1, 2)
    assert sentence in text
    assert "Traceback" not in text


def test_replay_and_capture(tmp_path: Path) -> None:
    """Frames of a file go through the core and into the capture, twice."""
    source, target = tmp_path / "in.pcap", tmp_path / "out.pcap"
    writer = PcapWriter(source)
    for i, frame in enumerate(FRAMES):
        writer.write(i * 1_000_000, frame)
    writer.close()
    path = tmp_path / "nic.sock"
    process = start("--socket", path, "--replay", source, "--delay", "300ms", "--seed", "5", "--pcap", target)
    ready(process)
    client = Client(str(path))
    deadline = time.monotonic() + 10
    while len(read_pcap(target)) < 2 * len(FRAMES) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(10) == 0
    assert process.stderr
    assert "seed 5" in process.stderr.read()
    packets = read_pcap(target)
    assert sorted(packet.data for packet in packets) == sorted(FRAMES * 2)
    assert abs(packets[0].time_ns - time.time_ns()) < 60e9
    client.close()


def test_two_nics_on_one_cable(tmp_path: Path) -> None:
    one, two = tmp_path / "one.sock", tmp_path / "two.sock"
    process = start("--socket", one, "--peer-socket", two)
    assert [ready(process), ready(process)] == [f"listening on {one}", f"listening on {two}"]
    clients = [Client(str(path)) for path in (one, two)]
    for i, client in enumerate(clients):
        client.write32(0x1C, i + 1)
    assert [client.read32(0x1C) for client in clients] == [1, 2]
    process.terminate()
    assert process.wait(10) == 0


def test_waveforms(tmp_path: Path) -> None:
    path, trace = tmp_path / "nic.sock", tmp_path / "run.vcd"
    process = start("--socket", path, "--width", "8", "--trace", trace)
    ready(process)
    client = Client(str(path))
    assert client.read(0, 0, 4) == b"ATCP"
    process.terminate()
    assert process.wait(10) == 0
    assert "s_axil_araddr" in trace.read_text()
