"""The socket by which the user of a device is asked: found by the device's name, and never taken for absent when it is slow."""

import socket
import subprocess
import sys
import threading

import pytest

from acceltcp import cli
from acceltcp.host.control import ask, control_path
from acceltcp.host.errors import DeviceError


def test_a_simulated_nic_is_known_by_its_tap(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    plain = control_path("sim:?tap=acc0")
    assert control_path("sim:?tap=acc0&loss=0.1&seed=7") == control_path("sim:?loss=0.1&tap=acc0") == plain
    others = ("sim:?tap=acc1", "sim:?pcap=x", "sim:?pcap=y", "vfio-user:/tmp/a", "vfio-user:/tmp/b", "vfio-user:/tmp/b?tap=acc0")
    assert len({plain, *map(control_path, others)}) == 1 + len(others)


def test_namespaces_have_taps_of_their_own(monkeypatch, tmp_path):
    """The same name elsewhere is another NIC; what is no TAP is known everywhere."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    specs = ["sim:?tap=acc0", "vfio-user:/tmp/a", "sim:?pcap=x"]
    code = f"from acceltcp.host.control import control_path\nfor spec in {specs}: print(control_path(spec))"
    answers = [
        subprocess.run([*words, sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout.split()
        for words in ([], ["unshare", "-Urn"])
    ]
    assert answers[0] == [str(control_path(spec)) for spec in specs]
    assert answers[0][0] != answers[1][0] and answers[0][1:] == answers[1][1:]


def test_nobody_is_there(tmp_path):
    assert ask(tmp_path / "none", "ping") is None


@pytest.mark.parametrize("reply, said", [(None, "not answered within 0.2 s"), (b"", "gave no answer"), (b"what?\n", "gave no answer")])
def test_somebody_is_there_and_gives_no_answer(tmp_path, reply, said):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "c"))
        server.listen()
        if reply is not None:
            def answer():
                link, _ = server.accept()
                link.recv(100)
                link.sendall(reply)
                link.close()

            threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(DeviceError, match=said):
            ask(tmp_path / "c", "ping", timeout=0.2)


@pytest.mark.parametrize("command", ["flows", "stats"])
def test_a_simulation_that_nobody_serves(monkeypatch, tmp_path, capsys, command):
    """It would be a new one, whose counters are all 0."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert cli.main([command, "--device", "sim:?tap=nope0"]) == 1
    assert "Nobody serves sim:?tap=nope0" in capsys.readouterr().err
